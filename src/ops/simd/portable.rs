//! Sixteen lanes as an array: what the compiler makes of plain loops.

use super::{Isa, LANES, Simd};

/// Plain loops over arrays.
#[derive(Clone, Copy)]
pub struct Portable(());

impl Portable {
    /// For lanes of other numbers that are built on these.
    #[inline(always)]
    pub(in crate::ops) fn new() -> Self {
        Self(())
    }

    #[inline(always)]
    fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f(a[i], b[i]);
        }
        out
    }
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];

    const ISA: Isa = Isa::Portable;
    const PANEL: usize = 1;
    /// NEON has 32 registers of 4 lanes, SSE2 16.
    const ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 2 };
    const CONV_PANEL: usize = Self::PANEL;
    const CONV_ROWS: usize = Self::ROWS;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load_array(self, xs: [f32; LANES]) -> Self::F {
        xs
    }
    #[inline(always)]
    fn to_array(self, xs: Self::F) -> [f32; LANES] {
        xs
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        Self::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        Self::zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        Self::zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        Self::zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        Self::zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        Self::zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let mut out = c;
        for i in 0..LANES {
            // Without the instruction, which x86-64 does not promise, f32::mul_add calls a library.
            out[i] = if cfg!(target_arch = "aarch64") {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            };
        }
        out
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.mul_add(a.map(|x| -x), b, c)
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> u16 {
        (0..LANES).fold(0, |mask, i| mask | (u16::from(a[i] < b[i]) << i))
    }
    #[inline(always)]
    fn select(self, mask: u16, a: Self::F, b: Self::F) -> Self::F {
        let mut out = b;
        for i in 0..LANES {
            if mask >> i & 1 == 1 {
                out[i] = a[i];
            }
        }
        out
    }
    #[inline(always)]
    fn sum(self, mut a: Self::F) -> f32 {
        let mut apart = LANES / 2;
        while apart > 0 {
            for i in 0..apart {
                a[i] += a[i + apart];
            }
            apart /= 2;
        }
        a[0]
    }
    #[inline(always)]
    fn pow2(self, a: Self::F) -> Self::F {
        a.map(|a| f32::from_bits(((a as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn widen_u8(self, xs: [u8; LANES]) -> Self::F {
        xs.map(f32::from)
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn mul_add_u8(self, xs: [u8; LANES], b: Self::I, c: Self::I) -> Self::I {
        let mut out = c;
        for i in 0..LANES {
            // As 16 bits each: SSE2 multiplies no wider ones.
            out[i] += i32::from(i16::from(xs[i])) * i32::from(b[i] as i16);
        }
        out
    }
    #[inline(always)]
    fn shift_to_u8(self, xs: Self::I, bits: Self::I) -> [u8; LANES] {
        let mut out = [0; LANES];
        for i in 0..LANES {
            out[i] = (xs[i] >> bits[i]).min(255) as u8;
        }
        out
    }
    #[inline(always)]
    fn turn_u8(self, from: [&[u8; LANES]; LANES], to: &mut [[u8; LANES]; LANES]) {
        for (i, to) in to.iter_mut().enumerate() {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from[i];
            }
        }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: as the caller promises; arrays of f32 have the alignment of f32, and unaligned
        // reads need none.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, xs: Self::F) {
        // SAFETY: as the caller promises.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(xs) }
    }
    #[inline(always)]
    fn prefetch(self, _: *const f32) {}
}
