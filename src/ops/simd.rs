//! Sixteen f32 lanes under one name on every machine, so that a kernel is written once and runs on
//! AVX-512, on AVX2 with FMA, and anywhere else.
//!
//! A value of a [`Simd`] type is the proof that this machine has its instructions: they are made by
//! [`Isa::run`] only, for an [`Isa`] that was detected. A kernel is a struct of its arguments with
//! [`Kernel::run`]; all that it calls with lanes in hand must be `#[inline(always)]`, or the compiler
//! builds it without the instructions. A block of 16 channels of one place is one value whatever the
//! machine: two registers on AVX2, four of SSE2 or NEON.

use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};

/// Lanes of a value, and channels of a block in [`super::feature_map`].
pub const LANES: usize = 16;

/// Which instructions kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the compiler makes of plain loops: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// The environment variable that forces a path, for tests and for doubtful machines.
pub const FORCE: &str = "INSPECTD_SIMD";

impl Isa {
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The word of [`FORCE`] and of reports.
    pub fn word(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this machine can run it.
    pub fn is_here(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_here()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The widest that this machine has, or the one that [`FORCE`] names. Asked once.
    ///
    /// # Errors
    /// A word that is none, or instructions that this machine lacks.
    pub fn detect() -> Result<Self> {
        static CHOSEN: OnceLock<Result<Isa, String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| {
            Self::choose(std::env::var(FORCE).ok().as_deref()).map_err(|error| error.to_string())
        });
        chosen.clone().map_err(anyhow::Error::msg)
    }

    fn choose(forced: Option<&str>) -> Result<Self> {
        let here = || Self::ALL.into_iter().filter(|isa| isa.is_here());
        let Some(word) = forced.filter(|word| !word.is_empty()) else {
            return Ok(here().max().unwrap_or(Self::Portable));
        };
        let Some(isa) = Self::ALL.into_iter().find(|isa| isa.word() == word) else {
            bail!("{FORCE}={word}: not known; say portable, avx2 or avx512, or leave it unset");
        };
        ensure!(isa.is_here(), "{FORCE}={word}: this machine does not have these instructions");
        Ok(isa)
    }

    /// Runs `kernel` with these instructions.
    ///
    /// # Panics
    /// If this machine lacks them.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => kernel.run(Portable(())),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                assert!(self.is_here(), "AVX2 and FMA are not on this machine");
                // SAFETY: the features were detected in the line above.
                unsafe { x86::run_avx2(kernel) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                assert!(self.is_here(), "AVX-512 is not on this machine");
                // SAFETY: the features were detected in the line above.
                unsafe { x86::run_avx512(kernel) }
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("{} is not on this machine", self.word()),
        }
    }
}

/// Work to be compiled once for each set of instructions.
pub trait Kernel {
    type Output;
    /// Mark it `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Arithmetic on 16 lanes. `Copy`, no data: a proof that the instructions are there.
pub trait Simd: Copy + Send + Sync + 'static {
    /// 16 × f32.
    type F: Copy;
    /// 16 × i32.
    type I: Copy;

    const ISA: Isa;

    /// Blocks of outputs and rows whose sums a matrix kernel keeps in registers, beside its operands.
    const PANEL: usize;
    const ROWS: usize;
    /// The same for a convolution's kernel, where the rows lie apart in memory and weights are the
    /// cheaper load.
    const CONV_PANEL: usize;
    const CONV_ROWS: usize;

    fn splat(self, x: f32) -> Self::F;
    fn load_array(self, xs: [f32; LANES]) -> Self::F;
    fn to_array(self, xs: Self::F) -> [f32; LANES];
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn sqrt(self, a: Self::F) -> Self::F;
    /// The larger; where one is NaN, `b`.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; where one is NaN, `b`.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c, rounded once where the machine can.
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// c − a·b.
    fn neg_mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Bit i set where `a[i] < b[i]`.
    fn lt(self, a: Self::F, b: Self::F) -> u16;
    /// a where the bit is set, else b.
    fn select(self, mask: u16, a: Self::F, b: Self::F) -> Self::F;
    /// Sum of the lanes, in a fixed tree: 8 apart, 4 apart, 2 apart, 1 apart.
    fn sum(self, a: Self::F) -> f32;

    /// 2ᵃ for whole a from −126 to 127; others give some number or NaN.
    fn pow2(self, a: Self::F) -> Self::F;
    fn widen_u8(self, xs: [u8; LANES]) -> Self::F;
    fn splat_i32(self, x: i32) -> Self::I;
    /// xs·b + c for b from 0 to 2¹⁵ − 1; others give some number.
    fn mul_add_u8(self, xs: [u8; LANES], b: Self::I, c: Self::I) -> Self::I;
    /// xs / 2ᵇ rounded down, for b from 0 to 31; 255 where that is more. Negative ones give some byte.
    fn shift_to_u8(self, xs: Self::I, bits: Self::I) -> [u8; LANES];
    /// `to[i][j] = from[j][i]`.
    fn turn_u8(self, from: [&[u8; LANES]; LANES], to: &mut [[u8; LANES]; LANES]);

    /// # Safety
    /// 16 readable f32 at `from`; no alignment needed.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// # Safety
    /// 16 writable f32 at `to`; no alignment needed.
    unsafe fn store(self, to: *mut f32, xs: Self::F);

    /// Asks for the cache line at `from`, which may be any address.
    fn prefetch(self, from: *const f32);

    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }
}

/// Plain loops over arrays.
#[derive(Clone, Copy)]
pub struct Portable(());

impl Portable {
    /// For lanes of other numbers that are built on these.
    #[inline(always)]
    pub(super) fn new() -> Self {
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

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
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
                let words =
                    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
                let (low, high) =
                    (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
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
            unsafe {
                sum_8(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)))
            }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on two rows of lanes, results one behind the other.
    struct All([f32; LANES], [f32; LANES], [f32; LANES]);

    impl Kernel for All {
        type Output = (Vec<[f32; LANES]>, u16, f32);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let (a, b, c) = (s.load_array(self.0), s.load_array(self.1), s.load_array(self.2));
            let mask = s.lt(a, b);
            let values = [
                s.add(a, b),
                s.sub(a, b),
                s.mul(a, b),
                s.div(a, b),
                s.sqrt(s.mul(a, a)),
                s.max(a, b),
                s.min(a, b),
                s.mul_add(a, b, c),
                s.neg_mul_add(a, b, c),
                s.select(mask, a, c),
                s.splat(3.5),
                s.zero(),
            ];
            (values.map(|x| s.to_array(x)).to_vec(), mask, s.sum(a))
        }
    }

    #[test]
    fn every_path_computes_what_plain_loops_do() {
        let row = |seed: f32| std::array::from_fn(|i| (i as f32 * 1.7 + seed).sin() * 3.0);
        // One lane is NaN: max, min and the comparison must treat it alike.
        let (mut a, b, c): ([f32; LANES], _, _) = (row(0.3), row(1.9), row(4.4));
        let plain_sum = Isa::Portable.run(All(a, b, c)).2;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            assert_eq!(isa.run(All(a, b, c)).2, plain_sum, "{}", isa.word());
        }
        a[5] = f32::NAN;
        let (want, want_mask, _) = Isa::Portable.run(All(a, b, c));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let (got, mask, _) = isa.run(All(a, b, c));
            assert_eq!(mask, want_mask, "{}", isa.word());
            for (op, (got, want)) in got.iter().zip(&want).enumerate() {
                for (got, want) in got.iter().zip(want) {
                    // A product and a sum are rounded once or twice.
                    let close = (got - want).abs() <= 4e-6 || got.is_nan() && want.is_nan();
                    assert!(close, "{} op {op}: {got} {want}", isa.word());
                }
            }
        }
    }

    struct Turn([[u8; LANES]; LANES]);

    impl Kernel for Turn {
        type Output = [[u8; LANES]; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let mut to = [[0; LANES]; LANES];
            s.turn_u8(self.0.each_ref(), &mut to);
            to
        }
    }

    #[test]
    fn a_square_of_bytes_is_turned() {
        let from: [[u8; LANES]; LANES] =
            std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as u8));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let to = isa.run(Turn(from));
            for (i, j) in (0..LANES).flat_map(|i| (0..LANES).map(move |j| (i, j))) {
                assert_eq!(to[i][j], from[j][i], "{}", isa.word());
            }
        }
    }

    /// Bytes as numbers, their products shifted, and powers of two.
    struct Bytes([u8; LANES]);

    impl Kernel for Bytes {
        type Output = ([f32; LANES], [[u8; LANES]; 2], [f32; LANES]);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let xs = s.widen_u8(self.0);
            let powers = s.pow2(s.sub(xs, s.splat(126.0)));
            let product = s.mul_add_u8(self.0, s.splat_i32(32_767), s.splat_i32(255));
            let shifted = [14, 15].map(|bits| s.shift_to_u8(product, s.splat_i32(bits)));
            (s.to_array(xs), shifted, s.to_array(powers))
        }
    }

    #[test]
    fn bytes_and_powers_of_two_are_exact() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            for from in (0..=255).step_by(LANES) {
                let bytes: [u8; LANES] = std::array::from_fn(|i| (from + i) as u8);
                let (numbers, shifted, powers) = isa.run(Bytes(bytes));
                assert_eq!(numbers, bytes.map(f32::from), "{}", isa.word());
                let twice = bytes.map(|byte| byte.saturating_mul(2));
                assert_eq!(shifted, [twice, bytes], "{}", isa.word());
                for (power, byte) in powers.iter().zip(bytes).filter(|(_, byte)| *byte < 254) {
                    assert_eq!(*power, 2f32.powi(i32::from(byte) - 126), "{}", isa.word());
                }
            }
        }
    }

    #[test]
    fn a_forced_path_is_taken_or_refused() {
        assert_eq!(Isa::choose(Some("portable")).unwrap(), Isa::Portable);
        assert_eq!(Isa::choose(Some("")).unwrap(), Isa::choose(None).unwrap());
        let error = Isa::choose(Some("sse9")).unwrap_err().to_string();
        assert!(error.contains("INSPECTD_SIMD=sse9: not known"), "{error}");
        for isa in Isa::ALL {
            assert_eq!(Isa::choose(Some(isa.word())).is_ok(), isa.is_here());
        }
    }
}
