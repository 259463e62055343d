//! Sixteen lanes on x86-64: one register of AVX-512, two of AVX2.

// Each intrinsic needs the features that the type proves; loads and stores need in addition what
// their callers promise.
use std::arch::x86_64::*;

use super::{Isa, Kernel, LANES, Simd};

/// Two registers of 8 lanes.
#[derive(Clone, Copy)]
pub struct Avx2(());

#[derive(Clone, Copy)]
pub struct Avx512(());

/// # Safety
/// The machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// # Safety
/// The machine has AVX-512 F, BW, DQ, VL, and AVX2 and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// One intrinsic on both halves.
macro_rules! halves {
    ($name:ident($($arg:ident),+)) => {
        // SAFETY: an Avx2 exists only where AVX2 and FMA were detected.
        unsafe { [$name($($arg[0]),+), $name($($arg[1]),+)] }
    };
}

macro_rules! whole {
    ($name:ident($($arg:expr),*)) => {
        // SAFETY: an Avx512 exists only where AVX-512 F, BW, DQ and VL were detected.
        unsafe { $name($($arg),*) }
    };
}

impl Avx2 {
    /// For lanes of other numbers that are built on these.
    ///
    /// # Safety
    /// The machine has AVX2 and FMA.
    #[inline(always)]
    pub(in super::super) unsafe fn assumed() -> Self {
        Self(())
    }
}

impl Avx512 {
    /// As for [`Avx2`].
    ///
    /// # Safety
    /// The machine has AVX-512 F, BW, DQ, VL, and AVX2 and FMA.
    #[inline(always)]
    pub(in super::super) unsafe fn assumed() -> Self {
        Self(())
    }
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];

    const ISA: Isa = Isa::Avx2;
    const PANEL: usize = 1;
    /// 12 of 16 registers for sums, 2 for weights, 1 for the value spread.
    const ROWS: usize = 6;
    const CONV_PANEL: usize = Self::PANEL;
    const CONV_ROWS: usize = Self::ROWS;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: as in `halves`.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load_array(self, xs: [f32; LANES]) -> Self::F {
        // SAFETY: 16 f32 are readable behind the array.
        unsafe { self.load(xs.as_ptr()) }
    }
    #[inline(always)]
    fn to_array(self, xs: Self::F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: 16 f32 are writable behind the array.
        unsafe { self.store(out.as_mut_ptr(), xs) };
        out
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        halves!(_mm256_sqrt_ps(a))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        halves!(_mm256_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> u16 {
        // SAFETY: as in `halves`.
        let mask = |i: usize| unsafe {
            _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a[i], b[i])) as u16
        };
        mask(0) | mask(1) << 8
    }
    #[inline(always)]
    fn select(self, mask: u16, a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as in `halves`.
        let half = |i: usize| unsafe {
            let bits = _mm256_set1_epi32(i32::from(mask >> (8 * i) & 0xff));
            let own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let set = _mm256_cmpeq_epi32(_mm256_and_si256(bits, own), own);
            _mm256_blendv_ps(b[i], a[i], _mm256_castsi256_ps(set))
        };
        [half(0), half(1)]
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        // SAFETY: as in `halves`.
        unsafe { sum_8(_mm256_add_ps(a[0], a[1])) }
    }
    #[inline(always)]
    fn pow2(self, a: Self::F) -> Self::F {
        let whole = halves!(_mm256_cvtps_epi32(a));
        // SAFETY: as in `halves`.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let exponent = [_mm256_add_epi32(whole[0], bias), _mm256_add_epi32(whole[1], bias)];
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent[0])),
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent[1])),
            ]
        }
    }
    #[inline(always)]
    fn widen_u8(self, xs: [u8; LANES]) -> Self::F {
        // SAFETY: as in `halves`; 16 bytes are readable at the array.
        unsafe {
            let bytes = _mm_loadu_si128(xs.as_ptr().cast());
            let low = _mm256_cvtepu8_epi32(bytes);
            let high = _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        // SAFETY: as in `halves`.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    fn mul_add_u8(self, xs: [u8; LANES], b: Self::I, c: Self::I) -> Self::I {
        // SAFETY: as in `halves`; 16 bytes are readable at the array.
        unsafe {
            let bytes = _mm_loadu_si128(xs.as_ptr().cast());
            let low = _mm256_cvtepu8_epi32(bytes);
            let high = _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes));
            // The upper 16 bits of both factors are 0, and so is their product.
            [
                _mm256_add_epi32(c[0], _mm256_madd_epi16(low, b[0])),
                _mm256_add_epi32(c[1], _mm256_madd_epi16(high, b[1])),
            ]
        }
    }
    #[inline(always)]
    fn shift_to_u8(self, xs: Self::I, bits: Self::I) -> [u8; LANES] {
        let mut out = [0; LANES];
        let [low, high] = halves!(_mm256_srlv_epi32(xs, bits));
        // SAFETY: as in `halves`; 16 bytes are writable at the array.
        unsafe {
            // The halves of both registers stand crosswise after the packing.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_packus_epi16(low, high));
        }
        out
    }
    #[inline(always)]
    fn turn_u8(self, from: [&[u8; LANES]; LANES], to: &mut [[u8; LANES]; LANES]) {
        turn(from, to);
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: as the caller promises.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, xs: Self::F) {
        // SAFETY: as the caller promises.
        unsafe {
            _mm256_storeu_ps(to, xs[0]);
            _mm256_storeu_ps(to.add(8), xs[1]);
        }
    }
    #[inline(always)]
    fn prefetch(self, from: *const f32) {
        // SAFETY: a prefetch of any address is no access.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}

/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn sum_8(a: __m256) -> f32 {
    // SAFETY: as the caller promises.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Four rounds of riffling: row i and row i + 8 become rows 2i and 2i + 1.
#[inline(always)]
fn turn(from: [&[u8; LANES]; LANES], to: &mut [[u8; LANES]; LANES]) {
    macro_rules! riffle {
        ($rows:ident: $($i:literal)+) => {
            // SAFETY: x86-64 has SSE2.
            [$(unsafe {
                [_mm_unpacklo_epi8($rows[$i], $rows[$i + 8]),
                 _mm_unpackhi_epi8($rows[$i], $rows[$i + 8])]
            }),+]
        };
    }
    macro_rules! load {
        ($($i:literal)+) => {
            // SAFETY: as above; 16 bytes are readable at each row.
            [$(unsafe { _mm_loadu_si128(from[$i].as_ptr().cast()) }),+]
        };
    }
    let mut rows = load!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    for _ in 0..4 {
        let [a, b, c, d, e, f, g, h] = riffle!(rows: 0 1 2 3 4 5 6 7);
        rows = [
            a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1], e[0], e[1], f[0], f[1], g[0], g[1],
            h[0], h[1],
        ];
    }
    for (to, row) in to.iter_mut().zip(rows) {
        // SAFETY: as above; 16 bytes are writable at each row.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), row) };
    }
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;

    const ISA: Isa = Isa::Avx512;
    const PANEL: usize = 2;
    /// 24 of 32 registers for sums, 2 for weights.
    const ROWS: usize = 12;
    const CONV_PANEL: usize = 4;
    const CONV_ROWS: usize = 6;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        whole!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load_array(self, xs: [f32; LANES]) -> Self::F {
        // SAFETY: 16 f32 are readable behind the array.
        unsafe { self.load(xs.as_ptr()) }
    }
    #[inline(always)]
    fn to_array(self, xs: Self::F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: 16 f32 are writable behind the array.
        unsafe { self.store(out.as_mut_ptr(), xs) };
        out
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        whole!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        whole!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        whole!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        whole!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, a: Self::F) -> Self::F {
        whole!(_mm512_sqrt_ps(a))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        whole!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        whole!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        whole!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        whole!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> u16 {
        // SAFETY: as in `whole`.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    fn select(self, mask: u16, a: Self::F, b: Self::F) -> Self::F {
        whole!(_mm512_mask_blend_ps(mask, b, a))
    }
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        // SAFETY: an Avx512 exists only where AVX-512 DQ and AVX2 were detected.
        unsafe { sum_8(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a))) }
    }
    #[inline(always)]
    fn pow2(self, a: Self::F) -> Self::F {
        whole!(_mm512_scalef_ps(_mm512_set1_ps(1.0), a))
    }
    #[inline(always)]
    fn widen_u8(self, xs: [u8; LANES]) -> Self::F {
        // SAFETY: as in `whole`; 16 bytes are readable at the array.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(xs.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        whole!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn mul_add_u8(self, xs: [u8; LANES], b: Self::I, c: Self::I) -> Self::I {
        // SAFETY: as in `whole`; 16 bytes are readable at the array.
        unsafe {
            let levels = _mm512_cvtepu8_epi32(_mm_loadu_si128(xs.as_ptr().cast()));
            // The upper 16 bits of both factors are 0, and so is their product.
            _mm512_add_epi32(c, _mm512_madd_epi16(levels, b))
        }
    }
    #[inline(always)]
    fn shift_to_u8(self, xs: Self::I, bits: Self::I) -> [u8; LANES] {
        let mut out = [0; LANES];
        // SAFETY: as in `whole`; 16 bytes are writable at the array.
        unsafe {
            let bytes = _mm512_cvtusepi32_epi8(_mm512_srlv_epi32(xs, bits));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        }
        out
    }
    #[inline(always)]
    fn turn_u8(self, from: [&[u8; LANES]; LANES], to: &mut [[u8; LANES]; LANES]) {
        turn(from, to);
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::F {
        // SAFETY: as the caller promises.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, xs: Self::F) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_ps(to, xs) }
    }
    #[inline(always)]
    fn prefetch(self, from: *const f32) {
        // SAFETY: a prefetch of any address is no access.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
}
