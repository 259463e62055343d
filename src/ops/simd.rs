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
            Self::Portable => kernel.run(Portable::new()),
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

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

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
