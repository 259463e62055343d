//! Roundings that Rust has no word for.

/// `a · b + c` in f64, rounded to odd: what is inexact ends in a one, so that rounding it once more
/// to fewer digits gives what rounding the exact sum would. `a · b` must be exact in f64, as
/// products of f32 are.
#[inline(always)]
pub fn fused_to_odd(a: f64, b: f64, c: f64) -> f64 {
    let product = a * b;
    let sum = product + c;
    // Knuth's two-sum: sum + rest = product + c exactly.
    let part = sum - product;
    let rest = (product - (sum - part)) + (c - part);
    let bits = sum.to_bits();
    let even_and_inexact = (rest != 0.0) & (bits & 1 == 0) & sum.is_finite();
    let outward = (rest > 0.0) == (sum > 0.0);
    let step = if outward { 1u64 } else { u64::MAX };
    f64::from_bits(if even_and_inexact { bits.wrapping_add(step) } else { bits })
}

/// `a · b + c` rounded once, as the card does.
#[inline(always)]
pub fn fused(a: f32, b: f32, c: f32) -> f32 {
    fused_to_odd(f64::from(a), f64::from(b), f64::from(c)) as f32
}

/// `a · b + c` rounded towards minus infinity.
pub fn fused_down(a: f32, b: f32, c: f32) -> f32 {
    down(fused_to_odd(f64::from(a), f64::from(b), f64::from(c)))
}

/// `a · b + c` rounded towards plus infinity.
pub fn fused_up(a: f32, b: f32, c: f32) -> f32 {
    -down(-fused_to_odd(f64::from(a), f64::from(b), f64::from(c)))
}

/// `a · b + c` rounded towards zero.
pub fn fused_in(a: f32, b: f32, c: f32) -> f32 {
    toward_zero(fused_to_odd(f64::from(a), f64::from(b), f64::from(c)))
}

pub fn down(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) > value { nearest.next_down() } else { nearest }
}

pub fn up(value: f64) -> f32 {
    -down(-value)
}

pub fn toward_zero(value: f64) -> f32 {
    if value > 0.0 { down(value) } else { up(value) }
}

/// The smaller, or the one that is a number; -0 is smaller than +0.
#[inline(always)]
pub fn min(a: f32, b: f32) -> f32 {
    let first = a < b || (a == b && a.is_sign_negative());
    if b.is_nan() || first { a } else { b }
}

#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    let first = a > b || (a == b && a.is_sign_positive());
    if b.is_nan() || first { a } else { b }
}

pub fn min_f64(a: f64, b: f64) -> f64 {
    if a.is_nan() || (b <= a && !(a == b && a.is_sign_negative())) { b } else { a }
}

pub fn max_f64(a: f64, b: f64) -> f64 {
    -min_f64(-a, -b)
}

/// Numbers too small for full precision become zero, as `.ftz` wants.
pub fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(state: &mut u64) -> f32 {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f32::from_bits((*state >> 32) as u32)
    }

    /// Rust's `mul_add` is the C library's, which rounds once.
    #[test]
    fn fused_rounds_once() {
        let mut state = 1;
        let near = |x: f32, state: &mut u64| {
            // Exponents close to each other, where the sum is not just the larger.
            let y = random(state);
            f32::from_bits(y.to_bits() & 0x807f_ffff | x.to_bits() & 0x7f80_0000)
        };
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        for round in 0..400_000 {
            let a = random(&mut state);
            let b = if round % 2 == 0 { random(&mut state) } else { near(1.0, &mut state) };
            let c = if round % 3 == 0 { random(&mut state) } else { near(a * b, &mut state) };
            assert!(same(fused(a, b, c), a.mul_add(b, c)), "{a:e} {b:e} {c:e}");
            let (low, high) = (fused_down(a, b, c), fused_up(a, b, c));
            let nearest = a.mul_add(b, c);
            assert!(nearest.is_nan() || (low <= nearest && nearest <= high));
            assert!(nearest.is_nan() || low == high || low.next_up() == high, "{a:e} {b:e} {c:e}");
        }
        // 1 + 2^-24 lies between 1 and 1 + 2^-23, and the last product makes it a little more.
        let (tiny, half) = (f32::from_bits(1), 2f32.powi(-24));
        assert_eq!(fused(1.0, 1.0, half), 1.0);
        assert_eq!(fused(1.0 + f32::EPSILON, half, 1.0), 1.0 + f32::EPSILON);
        assert_eq!(fused(1.0, half, 1.0), 1.0);
        assert_eq!(fused_up(1.0, tiny, 1.0), 1.0 + f32::EPSILON);
        assert_eq!(fused_down(1.0, tiny, 1.0), 1.0);
        assert_eq!(fused_down(1.0, -tiny, 1.0), 1.0 - f32::EPSILON / 2.0);
        assert_eq!(fused_in(1.0, -tiny, -1.0), -1.0);
    }

    #[test]
    fn nan_gives_way_to_a_number() {
        assert_eq!(min(f32::NAN, 1.0), 1.0);
        assert_eq!(max(1.0, f32::NAN), 1.0);
        assert!(min(f32::NAN, f32::NAN).is_nan());
        assert!(min(0.0, -0.0).is_sign_negative() && max(-0.0, 0.0).is_sign_positive());
        assert_eq!((min_f64(f64::NAN, 1.0), max_f64(2.0, f64::NAN)), (1.0, 2.0));
        assert!(min_f64(0.0, -0.0).is_sign_negative() && max_f64(-0.0, 0.0).is_sign_positive());
    }
}
