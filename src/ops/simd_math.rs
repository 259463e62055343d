//! Functions on lanes that machines have no instruction for.

use super::simd::Simd;

/// Where the results leave f32's normal numbers: arguments beyond count as these.
const LOWEST: f32 = -87.3;
const HIGHEST: f32 = 88.3;

/// ln 2 in two parts; the first has so few bits that n · LN_2_HIGH is exact for |n| < 2¹¹ (Cody and
/// Waite 1980).
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// 1.5 · 2²³: adding it rounds what is far smaller to a whole number, ties to even.
const TO_WHOLE: f32 = 12_582_912.0;

/// The nearest whole number, ties to even, of |x| ≤ 2²².
#[inline(always)]
pub fn round<S: Simd>(s: S, x: S::F) -> S::F {
    let whole = s.splat(TO_WHOLE);
    s.sub(s.add(x, whole), whole)
}

/// eˣ, relative error below 3 · 10⁻⁷; e^−87.3 below and e^88.3 above those arguments; NaN of NaN.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.max(s.splat(LOWEST), s.min(s.splat(HIGHEST), x));
    let n = round(s, s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.neg_mul_add(n, s.splat(LN_2_HIGH), x);
    let r = s.neg_mul_add(n, s.splat(LN_2_LOW), r);
    // Taylor's to r⁷ leaves 6 · 10⁻⁹ of the value for |r| ≤ ½ ln 2.
    let mut p = s.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.mul_add(p, r, s.splat(c));
    }
    s.mul(p, s.pow2(n))
}

/// 1/(1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.zero(), x))))
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Isa, Kernel, LANES};
    use super::*;

    struct Both([f32; LANES]);

    impl Kernel for Both {
        type Output = [[f32; LANES]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let xs = s.load_array(self.0);
            [s.to_array(exp(s, xs)), s.to_array(sigmoid(s, xs))]
        }
    }

    #[test]
    fn exp_and_sigmoid_are_close_to_f64() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            for step in 0..2000 {
                let xs = std::array::from_fn(|i| -87.3 + (step * LANES + i) as f32 * 0.005_49);
                let [exps, sigmoids] = isa.run(Both(xs));
                for i in 0..LANES {
                    let want = f64::from(xs[i].clamp(LOWEST, HIGHEST)).exp();
                    let off = (f64::from(exps[i]) / want - 1.0).abs();
                    assert!(off < 3e-7, "{} exp({}): {off}", isa.word(), xs[i]);
                    let want = 1.0 / (1.0 + f64::from(-xs[i]).exp());
                    let off = (f64::from(sigmoids[i]) / want - 1.0).abs();
                    assert!(off < 6e-7, "{} sigmoid({}): {off}", isa.word(), xs[i]);
                }
            }
        }
    }

    #[test]
    fn far_arguments_saturate_and_nan_stays() {
        let mut xs = [0.0; LANES];
        xs[..4].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1000.0]);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let [exps, sigmoids] = isa.run(Both(xs));
            assert!(exps[0].is_nan() && sigmoids[0].is_nan(), "{}", isa.word());
            assert!(exps[1].is_finite() && exps[1] > 2e38 && exps[3] == exps[1]);
            assert!(exps[2] > 0.0 && exps[2] < 2e-38 && exps[4] == 1.0);
            assert!(sigmoids[1] == 1.0 && sigmoids[2] < 1e-37 && sigmoids[4] == 0.5);
        }
    }
}
