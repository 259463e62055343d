//! What each instruction on values does, by its full name. A name that is not here is not known.

use std::array::from_fn;
use std::cmp::Ordering;

use half::{bf16, f16};

use crate::float;
use crate::instruction::Function::{self, *};
use crate::registers::{LANES, Words};

#[inline(always)]
fn w1(x: &Words, f: impl Fn(u32) -> u32) -> Words {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(x[lane]);
    }
    out
}

#[inline(always)]
fn w2(x: &Words, y: &Words, f: impl Fn(u32, u32) -> u32) -> Words {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(x[lane], y[lane]);
    }
    out
}

#[inline(always)]
fn bits(f: impl Fn(usize) -> bool) -> u32 {
    (0..LANES).fold(0, |bits, lane| bits | u32::from(f(lane)) << lane)
}

/// Functions of words as signed numbers, as f32 and so on.
macro_rules! words {
    (|$a:ident| $e:expr) => {
        W1(|x| w1(x, |$a| $e))
    };
    (|$a:ident, $b:ident| $e:expr) => {
        W2(|x, y| w2(x, y, |$a, $b| $e))
    };
    (|$a:ident, $b:ident, $c:ident| $e:expr) => {
        W3(|x, y, z| {
            from_fn(|i| {
                let ($a, $b, $c) = (x[i], y[i], z[i]);
                $e
            })
        })
    };
    (|$a:ident, $b:ident, $c:ident, $d:ident| $e:expr) => {
        W4(|x, y, z, w| {
            from_fn(|i| {
                let ($a, $b, $c, $d) = (x[i], y[i], z[i], w[i]);
                $e
            })
        })
    };
}

macro_rules! doubles {
    (|$a:ident| $e:expr) => {
        D1(|x| {
            from_fn(|i| {
                let $a = x[i];
                $e
            })
        })
    };
    (|$a:ident, $b:ident| $e:expr) => {
        D2(|x, y| {
            from_fn(|i| {
                let ($a, $b) = (x[i], y[i]);
                $e
            })
        })
    };
    (|$a:ident, $b:ident, $c:ident| $e:expr) => {
        D3(|x, y, z| {
            from_fn(|i| {
                let ($a, $b, $c) = (x[i], y[i], z[i]);
                $e
            })
        })
    };
}

/// f32 out of words and into them.
macro_rules! singles {
    (|$($a:ident),+| $e:expr) => {
        words!(|$($a),+| { $(let $a = f32::from_bits($a);)+ let value: f32 = $e; value.to_bits() })
    };
}

macro_rules! halves_of_doubles {
    (|$($a:ident),+| $e:expr) => {
        doubles!(|$($a),+| {
            $(let $a = f64::from_bits($a);)+
            let value: f64 = $e;
            value.to_bits()
        })
    };
}

/// The lower 16 bits as a signed number.
fn short(x: u32) -> i32 {
    i32::from(x as i16)
}

fn low(x: u32) -> u32 {
    x & 0xffff
}

pub fn function(name: &str) -> Option<Function> {
    integer(name).or_else(|| wide(name)).or_else(|| narrow(name)).or_else(|| floating(name))
}

/// Of an integer division, how many bits it divides by.
pub fn divisor(name: &str) -> Option<u32> {
    let (head, kind) = name.split_once('.')?;
    let bits = kind.strip_prefix(['s', 'u'])?.parse().ok()?;
    matches!(head, "div" | "rem").then_some(bits)
}

fn integer(name: &str) -> Option<Function> {
    Some(match name {
        "add.s32" | "add.u32" => words!(|a, b| a.wrapping_add(b)),
        "sub.s32" | "sub.u32" => words!(|a, b| a.wrapping_sub(b)),
        "mul.lo.s32" | "mul.lo.u32" => words!(|a, b| a.wrapping_mul(b)),
        "mul.hi.s32" => words!(|a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
        "mul.hi.u32" => words!(|a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        "mad.lo.s32" | "mad.lo.u32" => words!(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "mad.hi.s32" => words!(|a, b, c| {
            (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).wrapping_add(c)
        }),
        "mad.hi.u32" => {
            words!(|a, b, c| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c))
        }
        // Lanes that are not active may have a zero; the others are seen to by `Op::Divisor`.
        "div.s32" => words!(|a, b| (a as i32).checked_div(b as i32).unwrap_or(a as i32) as u32),
        "div.u32" => words!(|a, b| a.checked_div(b).unwrap_or(0)),
        "rem.s32" => words!(|a, b| (a as i32).checked_rem(b as i32).unwrap_or(0) as u32),
        "rem.u32" => words!(|a, b| a.checked_rem(b).unwrap_or(0)),
        "min.s32" => words!(|a, b| (a as i32).min(b as i32) as u32),
        "min.u32" => words!(|a, b| a.min(b)),
        "max.s32" => words!(|a, b| (a as i32).max(b as i32) as u32),
        "max.u32" => words!(|a, b| a.max(b)),
        "neg.s32" => words!(|a| a.wrapping_neg()),
        "abs.s32" => words!(|a| (a as i32).unsigned_abs()),
        "and.b32" => words!(|a, b| a & b),
        "or.b32" => words!(|a, b| a | b),
        "xor.b32" => words!(|a, b| a ^ b),
        "not.b32" => words!(|a| !a),
        "shl.b32" => words!(|a, b| a.checked_shl(b).unwrap_or(0)),
        "shr.u32" | "shr.b32" => words!(|a, b| a.checked_shr(b).unwrap_or(0)),
        "shr.s32" => words!(|a, b| ((a as i32) >> b.min(31)) as u32),
        "shf.l.wrap.b32" => words!(|a, b, c| shift_left(a, b, c & 31)),
        "shf.r.wrap.b32" => words!(|a, b, c| shift_right(a, b, c & 31)),
        "shf.l.clamp.b32" => words!(|a, b, c| shift_left(a, b, c.min(32))),
        "shf.r.clamp.b32" => words!(|a, b, c| shift_right(a, b, c.min(32))),
        "bfe.u32" => words!(|a, b, c| extract(u64::from(a), b, c, 32, false) as u32),
        "bfe.s32" => words!(|a, b, c| extract(u64::from(a), b, c, 32, true) as u32),
        "bfi.b32" => words!(|a, b, c, d| insert(u64::from(a), u64::from(b), c, d, 32) as u32),
        "prmt.b32" => words!(|a, b, c| permute(a, b, c)),
        "lop3.b32" => words!(|a, b, c, d| lookup(a, b, c, d)),
        "popc.b32" => words!(|a| a.count_ones()),
        "clz.b32" => words!(|a| a.leading_zeros()),
        "brev.b32" => words!(|a| a.reverse_bits()),
        "dp4a.s32.s32" => words!(|a, b, c| products(a, b, c)),
        _ => return None,
    })
}

fn wide(name: &str) -> Option<Function> {
    Some(match name {
        "add.s64" | "add.u64" => doubles!(|a, b| a.wrapping_add(b)),
        "sub.s64" | "sub.u64" => doubles!(|a, b| a.wrapping_sub(b)),
        "mul.lo.s64" | "mul.lo.u64" => doubles!(|a, b| a.wrapping_mul(b)),
        "mul.hi.s64" => {
            doubles!(|a, b| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64)
        }
        "mul.hi.u64" => doubles!(|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        "mad.lo.s64" | "mad.lo.u64" => doubles!(|a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        "div.s64" => doubles!(|a, b| (a as i64).checked_div(b as i64).unwrap_or(a as i64) as u64),
        "div.u64" => doubles!(|a, b| a.checked_div(b).unwrap_or(0)),
        "rem.s64" => doubles!(|a, b| (a as i64).checked_rem(b as i64).unwrap_or(0) as u64),
        "rem.u64" => doubles!(|a, b| a.checked_rem(b).unwrap_or(0)),
        "min.s64" => doubles!(|a, b| (a as i64).min(b as i64) as u64),
        "min.u64" => doubles!(|a, b| a.min(b)),
        "max.s64" => doubles!(|a, b| (a as i64).max(b as i64) as u64),
        "max.u64" => doubles!(|a, b| a.max(b)),
        "neg.s64" => doubles!(|a| a.wrapping_neg()),
        "abs.s64" => doubles!(|a| (a as i64).unsigned_abs()),
        "and.b64" => doubles!(|a, b| a & b),
        "or.b64" => doubles!(|a, b| a | b),
        "xor.b64" => doubles!(|a, b| a ^ b),
        "not.b64" => doubles!(|a| !a),
        "shl.b64" => DByW(|x, y| from_fn(|i| x[i].checked_shl(y[i]).unwrap_or(0))),
        "shr.u64" | "shr.b64" => DByW(|x, y| from_fn(|i| x[i].checked_shr(y[i]).unwrap_or(0))),
        "shr.s64" => DByW(|x, y| from_fn(|i| ((x[i] as i64) >> y[i].min(63)) as u64)),
        "bfe.u64" => DByWw(|x, y, z| from_fn(|i| extract(x[i], y[i], z[i], 64, false))),
        "bfe.s64" => DByWw(|x, y, z| from_fn(|i| extract(x[i], y[i], z[i], 64, true))),
        "bfi.b64" => DdByWw(|x, y, z, w| from_fn(|i| insert(x[i], y[i], z[i], w[i], 64))),
        "popc.b64" => DToW(|x| from_fn(|i| x[i].count_ones())),
        "clz.b64" => DToW(|x| from_fn(|i| x[i].leading_zeros())),
        "brev.b64" => doubles!(|a| a.reverse_bits()),
        "mul.wide.s32" => WWToD(|x, y| {
            from_fn(|i| i64::from(x[i] as i32).wrapping_mul(i64::from(y[i] as i32)) as u64)
        }),
        "mul.wide.u32" => WWToD(|x, y| from_fn(|i| u64::from(x[i]).wrapping_mul(u64::from(y[i])))),
        "mad.wide.s32" => WWDToD(|x, y, z| {
            from_fn(|i| {
                let product = i64::from(x[i] as i32).wrapping_mul(i64::from(y[i] as i32));
                z[i].wrapping_add(product as u64)
            })
        }),
        "mad.wide.u32" => WWDToD(|x, y, z| {
            from_fn(|i| z[i].wrapping_add(u64::from(x[i]).wrapping_mul(u64::from(y[i]))))
        }),
        _ => return None,
    })
}

fn narrow(name: &str) -> Option<Function> {
    Some(match name {
        "add.s16" | "add.u16" => words!(|a, b| low(a.wrapping_add(b))),
        "sub.s16" | "sub.u16" => words!(|a, b| low(a.wrapping_sub(b))),
        "mul.lo.s16" | "mul.lo.u16" => words!(|a, b| low(low(a).wrapping_mul(low(b)))),
        "mul.hi.s16" => words!(|a, b| low(((short(a) * short(b)) >> 16) as u32)),
        "mul.hi.u16" => words!(|a, b| low(a).wrapping_mul(low(b)) >> 16),
        "mul.wide.s16" => words!(|a, b| (short(a) * short(b)) as u32),
        "mul.wide.u16" => words!(|a, b| low(a).wrapping_mul(low(b))),
        "mad.lo.s16" | "mad.lo.u16" => {
            words!(|a, b, c| low(low(a).wrapping_mul(low(b)).wrapping_add(c)))
        }
        "mad.wide.s16" => words!(|a, b, c| ((short(a) * short(b)) as u32).wrapping_add(c)),
        "mad.wide.u16" => words!(|a, b, c| low(a).wrapping_mul(low(b)).wrapping_add(c)),
        "div.s16" => {
            words!(|a, b| low(short(a).checked_div(short(b)).unwrap_or(short(a)) as u32))
        }
        "div.u16" => words!(|a, b| low(a).checked_div(low(b)).unwrap_or(0)),
        "rem.s16" => words!(|a, b| low(short(a).checked_rem(short(b)).unwrap_or(0) as u32)),
        "rem.u16" => words!(|a, b| low(a).checked_rem(low(b)).unwrap_or(0)),
        "min.s16" => words!(|a, b| low(short(a).min(short(b)) as u32)),
        "min.u16" => words!(|a, b| low(a).min(low(b))),
        "max.s16" => words!(|a, b| low(short(a).max(short(b)) as u32)),
        "max.u16" => words!(|a, b| low(a).max(low(b))),
        "neg.s16" => words!(|a| low(a.wrapping_neg())),
        "abs.s16" => words!(|a| low(short(a).unsigned_abs())),
        "and.b16" => words!(|a, b| low(a & b)),
        "or.b16" => words!(|a, b| low(a | b)),
        "xor.b16" => words!(|a, b| low(a ^ b)),
        "not.b16" => words!(|a| low(!a)),
        "shl.b16" => words!(|a, b| low(a.checked_shl(b).unwrap_or(0))),
        "shr.u16" | "shr.b16" => words!(|a, b| low(a).checked_shr(b).unwrap_or(0)),
        "shr.s16" => words!(|a, b| low((short(a) >> b.min(15)) as u32)),
        _ => return None,
    })
}

fn floating(name: &str) -> Option<Function> {
    Some(match name {
        "add.f32" | "add.rn.f32" => singles!(|a, b| a + b),
        "sub.f32" | "sub.rn.f32" => singles!(|a, b| a - b),
        "mul.f32" | "mul.rn.f32" => singles!(|a, b| a * b),
        "fma.rn.f32" => W3(fused),
        "fma.rm.f32" => singles!(|a, b, c| float::fused_down(a, b, c)),
        "fma.rp.f32" => singles!(|a, b, c| float::fused_up(a, b, c)),
        "fma.rz.f32" => singles!(|a, b, c| float::fused_in(a, b, c)),
        "div.rn.f32" => singles!(|a, b| a / b),
        "rcp.rn.f32" => singles!(|a| 1.0 / a),
        "sqrt.rn.f32" => singles!(|a| a.sqrt()),
        "min.f32" => singles!(|a, b| float::min(a, b)),
        "max.f32" => singles!(|a, b| float::max(a, b)),
        "min.NaN.f32" => {
            singles!(|a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { float::min(a, b) })
        }
        "max.NaN.f32" => {
            singles!(|a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { float::max(a, b) })
        }
        "neg.f32" => words!(|a| a ^ 0x8000_0000),
        "abs.f32" => words!(|a| a & 0x7fff_ffff),
        "copysign.f32" => words!(|a, b| a & 0x8000_0000 | b & 0x7fff_ffff),
        "ex2.approx.f32" => singles!(|a| f64::from(a).exp2() as f32),
        "ex2.approx.ftz.f32" => {
            singles!(|a| float::flush(f64::from(float::flush(a)).exp2() as f32))
        }
        "lg2.approx.f32" => singles!(|a| f64::from(a).log2() as f32),
        "lg2.approx.ftz.f32" => {
            singles!(|a| float::flush(f64::from(float::flush(a)).log2() as f32))
        }
        "rsqrt.approx.f32" => singles!(|a| (1.0 / f64::from(a).sqrt()) as f32),
        "rsqrt.approx.ftz.f32" => {
            singles!(|a| float::flush((1.0 / f64::from(float::flush(a)).sqrt()) as f32))
        }
        "rcp.approx.ftz.f32" => singles!(|a| float::flush(1.0 / float::flush(a))),
        "add.f64" | "add.rn.f64" => halves_of_doubles!(|a, b| a + b),
        "sub.f64" | "sub.rn.f64" => halves_of_doubles!(|a, b| a - b),
        "mul.f64" | "mul.rn.f64" => halves_of_doubles!(|a, b| a * b),
        "fma.rn.f64" => halves_of_doubles!(|a, b, c| a.mul_add(b, c)),
        "div.rn.f64" => halves_of_doubles!(|a, b| a / b),
        "rcp.rn.f64" => halves_of_doubles!(|a| 1.0 / a),
        "sqrt.rn.f64" => halves_of_doubles!(|a| a.sqrt()),
        "min.f64" => halves_of_doubles!(|a, b| float::min_f64(a, b)),
        "max.f64" => halves_of_doubles!(|a, b| float::max_f64(a, b)),
        "neg.f64" => doubles!(|a| a ^ 1 << 63),
        "abs.f64" => doubles!(|a| a & !(1 << 63)),
        "fma.rn.bf16x2" => words!(|a, b, c| pair(a, b, c, bf16_fused)),
        "fma.rn.bf16" => words!(|a, b, c| u32::from(bf16_fused(a as u16, b as u16, c as u16))),
        "fma.rn.f16x2" => words!(|a, b, c| pair(a, b, c, f16_fused)),
        "fma.rn.f16" => words!(|a, b, c| u32::from(f16_fused(a as u16, b as u16, c as u16))),
        "add.f16" | "add.rn.f16" => {
            words!(|a, b| u32::from(f16_fused(a as u16, F16_ONE, b as u16)))
        }
        "add.f16x2" | "add.rn.f16x2" => {
            words!(|a, b| pair(a, u32::from(F16_ONE) * 0x1_0001, b, f16_fused))
        }
        "mul.f16" | "mul.rn.f16" => {
            words!(|a, b| u32::from(f16_fused(a as u16, b as u16, F16_NOTHING)))
        }
        "mul.f16x2" | "mul.rn.f16x2" => {
            words!(|a, b| pair(a, b, u32::from(F16_NOTHING) * 0x1_0001, f16_fused))
        }
        "neg.bf16" | "neg.f16" => words!(|a| a ^ 0x8000),
        "neg.bf16x2" | "neg.f16x2" => words!(|a| a ^ 0x8000_8000),
        "abs.bf16" | "abs.f16" => words!(|a| a & 0x7fff),
        "abs.bf16x2" | "abs.f16x2" => words!(|a| a & 0x7fff_7fff),
        _ => return None,
    })
}

/// A third of what kernels do, so it is worth the card's own instruction where this machine has it.
fn fused(x: &Words, y: &Words, z: &Words) -> Words {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the machine has what the function is compiled for.
        #[allow(unsafe_code)]
        return unsafe { fused_by_machine(x, y, z) };
    }
    from_fn(|i| {
        let [a, b, c] = [x[i], y[i], z[i]].map(f32::from_bits);
        float::fused(a, b, c).to_bits()
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fused_by_machine(x: &Words, y: &Words, z: &Words) -> Words {
    let mut out = [0; LANES];
    for i in 0..LANES {
        out[i] = f32::from_bits(x[i]).mul_add(f32::from_bits(y[i]), f32::from_bits(z[i])).to_bits();
    }
    out
}

const F16_ONE: u16 = 0x3c00;
/// -0: added to a product it leaves the sign of a zero as it is.
const F16_NOTHING: u16 = 0x8000;

fn bf16_fused(a: u16, b: u16, c: u16) -> u16 {
    let value = |bits| bf16::from_bits(bits).to_f64();
    bf16::from_f64(float::fused_to_odd(value(a), value(b), value(c))).to_bits()
}

fn f16_fused(a: u16, b: u16, c: u16) -> u16 {
    let value = |bits| f16::from_bits(bits).to_f64();
    f16::from_f64(float::fused_to_odd(value(a), value(b), value(c))).to_bits()
}

fn pair(a: u32, b: u32, c: u32, f: fn(u16, u16, u16) -> u16) -> u32 {
    let upper = f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
    u32::from(upper) << 16 | u32::from(f(a as u16, b as u16, c as u16))
}

/// The upper word of `b:a` shifted left.
fn shift_left(a: u32, b: u32, by: u32) -> u32 {
    ((((u64::from(b) << 32) | u64::from(a)) << by) >> 32) as u32
}

/// The lower word of `b:a` shifted right.
fn shift_right(a: u32, b: u32, by: u32) -> u32 {
    (((u64::from(b) << 32) | u64::from(a)) >> by) as u32
}

/// Bits `from..from + count` of `a`, the last one repeated upwards if signed.
fn extract(a: u64, from: u32, count: u32, width: u32, signed: bool) -> u64 {
    let (from, count) = (from & 0xff, count & 0xff);
    let bit = |index: u32| index < 64 && a >> index & 1 == 1;
    let sign = signed && count > 0 && bit((from + count - 1).min(width - 1));
    (0..width).fold(0, |bits, index| {
        let inside = index < count && from + index < width;
        bits | u64::from(if inside { bit(from + index) } else { sign }) << index
    })
}

/// `b` with its bits `from..from + count` replaced by the lowest of `a`.
fn insert(a: u64, b: u64, from: u32, count: u32, width: u32) -> u64 {
    let (from, count) = (from & 0xff, (count & 0xff).min(width));
    if from >= width {
        return b;
    }
    let mask = if count == 64 { u64::MAX } else { (1 << count) - 1 } << from;
    b & !mask | (a << from) & mask
}

/// Bytes of `b:a` picked by the four lower hex digits of `by`, or their signs where its eight is
/// set.
fn permute(a: u32, b: u32, by: u32) -> u32 {
    let all = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    u32::from_le_bytes(from_fn(|index| {
        let pick = by >> (4 * index);
        let byte = all[pick as usize & 7];
        if pick & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 }
    }))
}

/// The function of three bits whose table is `table`.
fn lookup(a: u32, b: u32, c: u32, table: u32) -> u32 {
    (0..8).filter(|row| table >> row & 1 == 1).fold(0, |bits, row: u32| {
        let of = |value: u32, bit: u32| if row >> bit & 1 == 1 { value } else { !value };
        bits | of(a, 2) & of(b, 1) & of(c, 0)
    })
}

/// Four products of signed bytes added to `c`.
fn products(a: u32, b: u32, c: u32) -> u32 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    (0..4)
        .fold(c, |sum, i| sum.wrapping_add((i32::from(a[i] as i8) * i32::from(b[i] as i8)) as u32))
}

/// Comparisons of one type.
macro_rules! comparisons {
    ($shape:ident, $how:expr, $value:expr, [$($name:literal => $test:expr),+ $(,)?]) => {
        match $how {
            $($name => $shape(|x, y| bits(|i| {
                let (a, b) = ($value(x[i]), $value(y[i]));
                $test(a, b)
            })),)+
            _ => return None,
        }
    };
}

macro_rules! ordered {
    ($shape:ident, $how:expr, $value:expr) => {
        comparisons!($shape, $how, $value, [
            "eq" => |a, b| a == b, "ne" => |a, b| a != b,
            "lt" => |a, b| a < b, "le" => |a, b| a <= b,
            "gt" => |a, b| a > b, "ge" => |a, b| a >= b,
            "lo" => |a, b| a < b, "ls" => |a, b| a <= b,
            "hi" => |a, b| a > b, "hs" => |a, b| a >= b,
        ])
    };
}

/// Of floats: without a `u` false where there is NaN, with one true.
macro_rules! with_nan {
    ($shape:ident, $how:expr, $value:expr) => {
        comparisons!($shape, $how, $value, [
            "eq" => |a, b| a == b,
            "ne" => |a: f64, b| a.partial_cmp(&b).is_some_and(Ordering::is_ne),
            "lt" => |a, b| a < b,
            "le" => |a, b| a <= b,
            "gt" => |a, b| a > b,
            "ge" => |a, b| a >= b,
            "equ" => |a: f64, b| a.partial_cmp(&b).is_none_or(Ordering::is_eq),
            "neu" => |a, b| a != b,
            "ltu" => |a: f64, b| a.partial_cmp(&b).is_none_or(Ordering::is_lt),
            "leu" => |a: f64, b| a.partial_cmp(&b).is_none_or(Ordering::is_le),
            "gtu" => |a: f64, b| a.partial_cmp(&b).is_none_or(Ordering::is_gt),
            "geu" => |a: f64, b| a.partial_cmp(&b).is_none_or(Ordering::is_ge),
            "num" => |a: f64, b| a.partial_cmp(&b).is_some(),
            "nan" => |a: f64, b| a.partial_cmp(&b).is_none(),
        ])
    };
}

fn single(x: u32) -> f64 {
    f64::from(f32::from_bits(x))
}

fn word(x: u32) -> u32 {
    x
}

fn double(x: u64) -> u64 {
    x
}

fn signed_word(x: u32) -> i32 {
    x as i32
}

fn signed_double(x: u64) -> i64 {
    x as i64
}

/// The comparison of `setp` by its word and type.
pub fn comparison(how: &str, kind: &str) -> Option<Function> {
    let unsigned_word = matches!(how, "lo" | "ls" | "hi" | "hs");
    if unsigned_word && !matches!(kind, "u16" | "u32" | "u64") {
        return None;
    }
    if matches!(kind, "b16" | "b32" | "b64") && !matches!(how, "eq" | "ne") {
        return None;
    }
    Some(match kind {
        "s32" => ordered!(WWToP, how, signed_word),
        "u32" | "b32" => ordered!(WWToP, how, word),
        "s64" => ordered!(DDToP, how, signed_double),
        "u64" | "b64" => ordered!(DDToP, how, double),
        "s16" => ordered!(WWToP, how, short),
        "u16" | "b16" => ordered!(WWToP, how, low),
        "f32" => with_nan!(WWToP, how, single),
        "f64" => with_nan!(DDToP, how, f64::from_bits),
        _ => return None,
    })
}

/// Conversions that are frequent enough to be done for all lanes at once.
pub fn conversion(name: &str) -> Option<Function> {
    Some(match name {
        "cvt.s64.s32" => WToD(|x| from_fn(|i| i64::from(x[i] as i32) as u64)),
        "cvt.u64.u32" => WToD(|x| from_fn(|i| u64::from(x[i]))),
        "cvt.u32.u64" | "cvt.s32.s64" => DToW(|x| from_fn(|i| x[i] as u32)),
        "cvt.rn.f32.s32" => words!(|a| (a as i32 as f32).to_bits()),
        "cvt.rn.f32.u32" => words!(|a| (a as f32).to_bits()),
        "cvt.f64.f32" => WToD(|x| from_fn(|i| single(x[i]).to_bits())),
        _ => return None,
    })
}
