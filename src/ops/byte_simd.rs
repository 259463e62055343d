//! Sums of products of bytes, sixteen at a time, under one name on every machine; and bytes from and
//! to the f32 lanes of [`super::simd`].
//!
//! All paths compute the same integers: the product of an unsigned and a signed byte, four of them
//! summed in 32 bits, nothing saturated in between. A value of a [`ByteSimd`] type is the proof that
//! this machine has its instructions: they are made by [`ByteIsa::run`] only.

use super::simd::{Isa, LANES, Portable, Simd};

/// How products of bytes are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteIsa {
    Portable,
    /// Pairs of 16-bit numbers: exact, at about the speed of f32.
    Avx2,
    /// Four products and their sum in one instruction of 256 bits.
    AvxVnni,
    /// The same in 512 bits.
    Avx512Vnni,
}

impl ByteIsa {
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512Vnni];

    /// The fastest on this machine that needs no wider registers than `isa` has.
    pub fn of(isa: Isa) -> Self {
        match isa {
            Isa::Avx512 if Self::Avx512Vnni.is_here() => Self::Avx512Vnni,
            Isa::Avx512 | Isa::Avx2 if Self::AvxVnni.is_here() => Self::AvxVnni,
            Isa::Avx512 | Isa::Avx2 if Self::Avx2.is_here() => Self::Avx2,
            _ => Self::Portable,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx_vnni",
            Self::Avx512Vnni => "avx512_vnni",
        }
    }

    /// Whether products of bytes are summed faster than those of floats.
    pub fn pays(self) -> bool {
        matches!(self, Self::AvxVnni | Self::Avx512Vnni)
    }

    /// Whether this machine can run it.
    pub fn is_here(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Isa::Avx2.is_here(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Isa::Avx2.is_here() && std::arch::is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Isa::Avx512.is_here() && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Runs `kernel` with these instructions.
    ///
    /// # Panics
    /// If this machine lacks them.
    #[inline]
    pub fn run<K: ByteKernel>(self, kernel: K) -> K::Output {
        assert!(self.is_here(), "{} is not on this machine", self.word());
        match self {
            Self::Portable => kernel.run(PortableBytes(Portable::new())),
            // SAFETY: the features were detected above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { x86::run_avx2(kernel) },
            // SAFETY: the features were detected above.
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => unsafe { x86::run_avx_vnni(kernel) },
            // SAFETY: the features were detected above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => unsafe { x86::run_avx512_vnni(kernel) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("asserted above"),
        }
    }
}

/// Work to be compiled once for each path.
pub trait ByteKernel {
    type Output;
    /// Mark it `#[inline(always)]`.
    fn run<B: ByteSimd>(self, bytes: B) -> Self::Output;
}

/// Arithmetic on bytes. `Copy`, no data of its own: a proof that the instructions are there.
pub trait ByteSimd: Copy + Send + Sync + 'static {
    /// The f32 lanes that go with it.
    type Floats: Simd;
    /// 16 × i32, one an output channel.
    type Sums: Copy;
    /// Four channels of one place, ready to be multiplied with the weights of 16 outputs.
    type Quad: Copy;
    /// Weights of 16 outputs for four channels, ready likewise.
    type Weights: Copy;

    /// Blocks of 16 outputs whose sums the registers hold at once, …
    const PANEL: usize;
    /// … for so many places.
    const PLACES: usize;

    fn floats(self) -> Self::Floats;
    fn zero(self) -> Self::Sums;
    /// `sums[o] + Σ_i quad[i] · weights[o][i]`: exact as long as it stays within 32 bits.
    fn dot(self, sums: Self::Sums, quad: Self::Quad, weights: Self::Weights) -> Self::Sums;
    /// The nearest f32, ties to even.
    fn to_floats(self, sums: Self::Sums) -> <Self::Floats as Simd>::F;

    /// # Safety
    /// 4 readable bytes at `from`; no alignment needed.
    unsafe fn quad(self, from: *const u8) -> Self::Quad;
    /// # Safety
    /// 64 readable bytes at `from`, [16 outputs][4 channels]; no alignment needed.
    unsafe fn weights(self, from: *const i8) -> Self::Weights;
    /// 16 bytes as f32.
    ///
    /// # Safety
    /// 16 readable bytes at `from`; no alignment needed.
    unsafe fn load(self, from: *const u8) -> <Self::Floats as Simd>::F;
    /// The nearest bytes, ties to even: 0 for what is below, 255 for what is above and for NaN.
    ///
    /// # Safety
    /// 16 writable bytes at `to`; no alignment needed.
    unsafe fn store(self, to: *mut u8, xs: <Self::Floats as Simd>::F);
}

/// Plain loops over arrays.
#[derive(Clone, Copy)]
pub struct PortableBytes(Portable);

impl ByteSimd for PortableBytes {
    type Floats = Portable;
    type Sums = [i32; LANES];
    type Quad = [i32; 4];
    type Weights = [[i8; 4]; LANES];

    const PANEL: usize = 1;
    const PLACES: usize = 2;

    #[inline(always)]
    fn floats(self) -> Portable {
        self.0
    }
    #[inline(always)]
    fn zero(self) -> Self::Sums {
        [0; LANES]
    }
    #[inline(always)]
    fn dot(self, mut sums: Self::Sums, quad: Self::Quad, weights: Self::Weights) -> Self::Sums {
        for (sum, weights) in sums.iter_mut().zip(weights) {
            for i in 0..4 {
                *sum += quad[i] * i32::from(weights[i]);
            }
        }
        sums
    }
    #[inline(always)]
    fn to_floats(self, sums: Self::Sums) -> [f32; LANES] {
        sums.map(|sum| sum as f32)
    }
    #[inline(always)]
    unsafe fn quad(self, from: *const u8) -> Self::Quad {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<[u8; 4]>().read() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn weights(self, from: *const i8) -> Self::Weights {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<Self::Weights>().read() }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> [f32; LANES] {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<[u8; LANES]>().read() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8, xs: [f32; LANES]) {
        /// From here on the numbers next to each other are one apart: adding it rounds to even and
        /// leaves the whole number in the low bits.
        const ONES: f32 = (1 << 23) as f32;
        let s = self.0;
        let within = s.max(s.min(xs, s.splat(255.0)), s.zero());
        let bytes = within.map(|x| (x + ONES).to_bits() as u8);
        // SAFETY: as the caller promises.
        unsafe { to.cast::<[u8; LANES]>().write(bytes) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    // Each intrinsic needs the features that the type proves; loads and stores need in addition what
    // their callers promise.
    use std::arch::x86_64::*;

    use super::{ByteKernel, ByteSimd};
    use crate::ops::simd::{Avx2, Avx512, Simd};

    /// AVX2 has no exact product of bytes: channels are widened to 16 bits, the even and the odd
    /// ones apart, and multiplied in pairs.
    #[derive(Clone, Copy)]
    pub struct Avx2Bytes(Avx2);

    #[derive(Clone, Copy)]
    pub struct AvxVnni(Avx2);

    #[derive(Clone, Copy)]
    pub struct Avx512Vnni(Avx512);

    /// # Safety
    /// The machine has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run_avx2<K: ByteKernel>(kernel: K) -> K::Output {
        // SAFETY: as the caller promises.
        kernel.run(Avx2Bytes(unsafe { Avx2::assumed() }))
    }

    /// # Safety
    /// The machine has AVX-VNNI, AVX2 and FMA.
    #[target_feature(enable = "avxvnni,avx2,fma")]
    pub(super) unsafe fn run_avx_vnni<K: ByteKernel>(kernel: K) -> K::Output {
        // SAFETY: as the caller promises.
        kernel.run(AvxVnni(unsafe { Avx2::assumed() }))
    }

    /// # Safety
    /// The machine has AVX-512 F, BW, DQ, VL and VNNI, and AVX2 and FMA.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
    pub(super) unsafe fn run_avx512_vnni<K: ByteKernel>(kernel: K) -> K::Output {
        // SAFETY: as the caller promises.
        kernel.run(Avx512Vnni(unsafe { Avx512::assumed() }))
    }

    /// What the two paths of 256 bits share.
    macro_rules! on_avx2 {
        () => {
            type Floats = Avx2;
            /// Outputs 0 to 7, and 8 to 15.
            type Sums = [__m256i; 2];

            const PANEL: usize = 1;

            #[inline(always)]
            fn floats(self) -> Avx2 {
                self.0
            }
            #[inline(always)]
            fn zero(self) -> Self::Sums {
                // SAFETY: the type exists only where AVX2 was detected.
                unsafe { [_mm256_setzero_si256(); 2] }
            }
            #[inline(always)]
            fn to_floats(self, sums: Self::Sums) -> [__m256; 2] {
                // SAFETY: the type exists only where AVX2 was detected.
                unsafe { [_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])] }
            }
            #[inline(always)]
            unsafe fn load(self, from: *const u8) -> [__m256; 2] {
                // SAFETY: as the caller promises; AVX2 was detected.
                unsafe {
                    let bytes = _mm_loadu_si128(from.cast());
                    let high = _mm_srli_si128::<8>(bytes);
                    [
                        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
                        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high)),
                    ]
                }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut u8, xs: [__m256; 2]) {
                let s = self.0;
                let within = s.max(s.min(xs, s.splat(255.0)), s.zero());
                // SAFETY: as the caller promises; AVX2 was detected.
                unsafe {
                    let (low, high) =
                        (_mm256_cvtps_epi32(within[0]), _mm256_cvtps_epi32(within[1]));
                    // Packing keeps to halves: quarters 0 2 1 3 come out of it.
                    let words =
                        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
                    let bytes = _mm_packus_epi16(
                        _mm256_castsi256_si128(words),
                        _mm256_extracti128_si256::<1>(words),
                    );
                    _mm_storeu_si128(to.cast(), bytes);
                }
            }
        };
    }

    impl ByteSimd for Avx2Bytes {
        on_avx2!();

        /// Channels 0 and 2, and 1 and 3, as 16 bits.
        type Quad = [__m256i; 2];
        /// The same of outputs 0 to 7, then of 8 to 15.
        type Weights = [[__m256i; 2]; 2];

        /// 8 of 16 registers for sums, 4 for weights, 2 for the channels.
        const PLACES: usize = 4;

        #[inline(always)]
        fn dot(self, sums: Self::Sums, quad: Self::Quad, weights: Self::Weights) -> Self::Sums {
            // SAFETY: AVX2 was detected.
            let half = |i: usize| unsafe {
                let even = _mm256_madd_epi16(quad[0], weights[i][0]);
                let odd = _mm256_madd_epi16(quad[1], weights[i][1]);
                _mm256_add_epi32(_mm256_add_epi32(sums[i], even), odd)
            };
            [half(0), half(1)]
        }
        #[inline(always)]
        unsafe fn quad(self, from: *const u8) -> Self::Quad {
            // SAFETY: as the caller promises; AVX2 was detected.
            unsafe {
                let all = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
                let even = _mm256_and_si256(all, _mm256_set1_epi16(0xff));
                [even, _mm256_srli_epi16::<8>(all)]
            }
        }
        #[inline(always)]
        unsafe fn weights(self, from: *const i8) -> Self::Weights {
            // SAFETY: as the caller promises; AVX2 was detected.
            let half = |i: usize| unsafe {
                let all = _mm256_loadu_si256(from.add(32 * i).cast());
                [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(all)), _mm256_srai_epi16::<8>(all)]
            };
            [half(0), half(1)]
        }
    }

    impl ByteSimd for AvxVnni {
        on_avx2!();

        type Quad = __m256i;
        type Weights = [__m256i; 2];

        /// 12 of 16 registers for sums, 2 for weights, 1 for the channels.
        const PLACES: usize = 6;

        #[inline(always)]
        fn dot(self, sums: Self::Sums, quad: Self::Quad, weights: Self::Weights) -> Self::Sums {
            // SAFETY: AVX-VNNI was detected.
            unsafe {
                [
                    _mm256_dpbusd_avx_epi32(sums[0], quad, weights[0]),
                    _mm256_dpbusd_avx_epi32(sums[1], quad, weights[1]),
                ]
            }
        }
        #[inline(always)]
        unsafe fn quad(self, from: *const u8) -> Self::Quad {
            // SAFETY: as the caller promises; AVX2 was detected.
            unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn weights(self, from: *const i8) -> Self::Weights {
            // SAFETY: as the caller promises; AVX2 was detected.
            unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
        }
    }

    impl ByteSimd for Avx512Vnni {
        type Floats = Avx512;
        type Sums = __m512i;
        type Quad = __m512i;
        type Weights = __m512i;

        const PANEL: usize = 2;
        /// As many as there are registers for pointers to them; the sums take 16 of 32.
        const PLACES: usize = 8;

        #[inline(always)]
        fn floats(self) -> Avx512 {
            self.0
        }
        #[inline(always)]
        fn zero(self) -> Self::Sums {
            // SAFETY: AVX-512 was detected.
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        fn dot(self, sums: Self::Sums, quad: Self::Quad, weights: Self::Weights) -> Self::Sums {
            // SAFETY: AVX-512 VNNI was detected.
            unsafe { _mm512_dpbusd_epi32(sums, quad, weights) }
        }
        #[inline(always)]
        fn to_floats(self, sums: Self::Sums) -> __m512 {
            // SAFETY: AVX-512 was detected.
            unsafe { _mm512_cvtepi32_ps(sums) }
        }
        #[inline(always)]
        unsafe fn quad(self, from: *const u8) -> Self::Quad {
            // SAFETY: as the caller promises; AVX-512 was detected.
            unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn weights(self, from: *const i8) -> Self::Weights {
            // SAFETY: as the caller promises; AVX-512 was detected.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn load(self, from: *const u8) -> __m512 {
            // SAFETY: as the caller promises; AVX-512 was detected.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut u8, xs: __m512) {
            // NaN passes this maximum; it and all that is too large become 0x8000_0000, which is
            // too large for a byte as an unsigned number.
            let positive = self.0.max(self.0.zero(), xs);
            // SAFETY: as the caller promises; AVX-512 was detected.
            unsafe {
                let bytes = _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(positive));
                _mm_storeu_si128(to.cast(), bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything on one set of numbers.
    struct All {
        quad: [u8; 4],
        weights: [i8; 64],
        floats: [f32; LANES],
    }

    impl ByteKernel for All {
        type Output = ([f32; LANES], [u8; LANES], [f32; LANES]);

        #[inline(always)]
        fn run<B: ByteSimd>(self, b: B) -> Self::Output {
            let mut stored = [0; LANES];
            // SAFETY: the arrays are as long as each reads or writes.
            let (sums, loaded) = unsafe {
                let (quad, weights) =
                    (b.quad(self.quad.as_ptr()), b.weights(self.weights.as_ptr()));
                b.store(stored.as_mut_ptr(), b.floats().load_array(self.floats));
                (b.dot(b.dot(b.zero(), quad, weights), quad, weights), b.load(stored.as_ptr()))
            };
            let (sums, loaded) = (b.to_floats(sums), b.floats().to_array(loaded));
            (b.floats().to_array(sums), stored, loaded)
        }
    }

    #[test]
    fn every_path_sums_without_saturating_and_rounds_to_even() {
        let nan = f32::NAN;
        let floats = [
            -0.0,
            0.5,
            1.5,
            2.5,
            -3.0,
            254.5,
            255.5,
            256.0,
            1e30,
            -1e30,
            nan,
            127.49,
            0.51,
            3e9,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ];
        let bytes = [0, 0, 2, 2, 0, 254, 255, 255, 255, 0, 255, 127, 1, 255, 255, 0];
        // The extremes, where 16 bits would not do.
        let mut weights = [127; 64];
        weights[4..8].fill(-127);
        weights[8..12].copy_from_slice(&[1, -2, 3, -4]);
        let quad = [255, 254, 253, 252];
        for isa in ByteIsa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let (sums, stored, loaded) = isa.run(All { quad, weights, floats });
            assert_eq!(sums[..4], [257_556.0, -257_556.0, -1004.0, 257_556.0], "{isa:?}");
            assert_eq!(stored, bytes, "{isa:?}");
            assert_eq!(loaded, bytes.map(f32::from), "{isa:?}");
        }
    }

    #[test]
    fn a_path_is_no_wider_than_asked_for() {
        assert_eq!(ByteIsa::of(Isa::Portable), ByteIsa::Portable);
        assert_ne!(ByteIsa::of(Isa::Avx2), ByteIsa::Avx512Vnni);
        for isa in Isa::ALL {
            assert!(ByteIsa::of(isa).is_here());
        }
    }
}
