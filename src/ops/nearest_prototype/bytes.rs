//! Sketches in one byte a dimension, multiplied by the machine's 8-bit dot products (VNNI).
//! Letters: N prototypes, K dimensions of a sketch, R vectors, W = 32 lanes.
//!
//! The code of a vector x is x̂ = scale · (whole numbers from −127 to 127), and |x − x̂| is known. With
//! ρ for a prototype's own error and r ("reach") for the distance, plus the query's own error, that
//! is still of interest, p can be left out where |q̂ − p̂| > r + ρ, that is where
//!
//! ½(|p̂|² − ρ²) − r·ρ − q̂·p̂ > ½(r² − |q̂|²).
//!
//! The left side is the value of this scan, the right one its limit. A panel is `[K/4][W][4]`; the
//! vectors are `[K/4][R][4]`, from 1 to 255 with 128 for 0, as the instruction wants one factor
//! unsigned; the sums start at −128·Σp̂ to make up for it.

use std::ops::Range;

use super::panels::{Bar, Hit, MOST_VECTORS, Values, WIDEST};

/// Most K whose sums can't leave an i32: K · 255 · 127 < 2³¹.
pub(super) const MOST_DIMS: usize = 1 << 16;

/// Which 8-bit dot products there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dot8 {
    /// Plain loops, the twin of the others.
    #[cfg(test)]
    Plain,
    /// AVX-VNNI.
    Vnni256,
    /// AVX-512 VNNI.
    Vnni512,
}

impl Dot8 {
    #[cfg(test)]
    pub const ALL: [Self; 3] = [Self::Plain, Self::Vnni256, Self::Vnni512];

    pub fn is_here(self) -> bool {
        match self {
            #[cfg(test)]
            Self::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Self::Vnni256 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("avxvnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Vnni512 => {
                std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// R of its scan.
    pub fn vectors(self) -> usize {
        match self {
            #[cfg(test)]
            Self::Plain => 2,
            // 4 registers of lanes and of sums a vector: 12 sums, 2 for what is loaded.
            Self::Vnni256 => 3,
            Self::Vnni512 => MOST_VECTORS,
        }
    }
}

/// Codes of prototypes, packed.
#[derive(Debug)]
pub(super) struct Bytes {
    dot: Dot8,
    /// K/4.
    steps: usize,
    /// `[⌈N/W⌉][K/4][W]`: four codes a number, the first in the lowest byte.
    packed: Vec<i32>,
    lanes: Vec<Lanes>, // [⌈N/W⌉]
    largest_norm: f64,
    largest_error: f64,
}

/// What belongs to the prototypes of one panel.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
struct Lanes {
    /// −128·Σ of the codes.
    start: [i32; WIDEST],
    scale: [f32; WIDEST],
    /// ½(|p̂|² − ρ²); infinite past N.
    half: [f32; WIDEST],
    /// ρ.
    error: [f32; WIDEST],
}

/// The code of one vector but for its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Code {
    pub scale: f32,
    /// |x̂|².
    pub norm2: f64,
    /// |x − x̂|, not less.
    pub error: f64,
}

/// Writes the code of `x` `[K]` to `bytes` `[K]`.
pub(super) fn encode(x: &[f32], bytes: &mut [i8]) -> Code {
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    // Of numbers too small to divide by, none is kept.
    let scale = if largest > 1e-30 { largest / 127.0 } else { 0.0 };
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let (mut norm2, mut error2) = (0f64, 0f64);
    for (x, byte) in x.iter().zip(bytes) {
        // To the nearest whole number, ties to even: |x/scale| is far below 2²².
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
        *byte = ((x * inverse + ROUND) - ROUND).clamp(-127.0, 127.0) as i8;
        let code = f64::from(scale) * f64::from(*byte);
        norm2 += code * code;
        error2 += (f64::from(*x) - code).powi(2);
    }
    // Sums in f64 are off by far less than the billionth added.
    Code { scale, norm2, error: error2.sqrt() * (1.0 + 1e-9) }
}

impl Bytes {
    /// Packs the sketches `rows` `[N, K]`, each off by `errors` `[N]` already. K is a multiple of 4
    /// and at most [`MOST_DIMS`].
    pub fn new(rows: &[f32], dims: usize, errors: &[f64], dot: Dot8) -> Self {
        assert!(dims.is_multiple_of(4) && dims <= MOST_DIMS && rows.len() == errors.len() * dims);
        assert!(dot.is_here(), "{dot:?} is not on this machine");
        let (steps, count) = (dims / 4, errors.len().div_ceil(WIDEST));
        let empty = Lanes {
            start: [0; WIDEST],
            scale: [0.0; WIDEST],
            half: [f32::INFINITY; WIDEST],
            error: [0.0; WIDEST],
        };
        let mut packed = vec![0; count * steps * WIDEST];
        let mut lanes = vec![empty; count];
        let mut bytes = vec![0i8; dims];
        let (mut largest_norm, mut largest_error) = (0f64, 0f64);
        for (i, (row, &own)) in rows.chunks_exact(dims).zip(errors).enumerate() {
            let (panel, lane) = (i / WIDEST, i % WIDEST);
            let code = encode(row, &mut bytes);
            let error = code.error + own;
            largest_norm = largest_norm.max(code.norm2.sqrt());
            largest_error = largest_error.max(error);
            let panel_lanes = &mut lanes[panel];
            panel_lanes.start[lane] = -128 * bytes.iter().map(|&b| i32::from(b)).sum::<i32>();
            panel_lanes.scale[lane] = code.scale;
            panel_lanes.half[lane] = (0.5 * (code.norm2 - error * error)) as f32;
            panel_lanes.error[lane] = (error as f32).next_up();
            for (step, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
                let at = (panel * steps + step) * WIDEST + lane;
                packed[at] = i32::from_le_bytes(four.map(|b| b.cast_unsigned()));
            }
        }
        Self { dot, steps, packed, lanes, largest_norm, largest_error }
    }

    /// K.
    pub fn dims(&self) -> usize {
        4 * self.steps
    }

    /// R.
    pub fn vectors(&self) -> usize {
        self.dot.vectors()
    }

    /// Panels, ⌈N/W⌉.
    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Bytes of one panel.
    pub fn panel_bytes(&self) -> usize {
        self.dims() * WIDEST
    }

    /// Largest |p̂| and ρ.
    pub fn largest(&self) -> (f64, f64) {
        (self.largest_norm, self.largest_error)
    }

    /// Puts the bytes of vector `i`, `code` `[K]`, where they stand in `vectors` `[·/R][K/4][R]`.
    pub fn place(&self, i: usize, code: &[i8], vectors: &mut [i32]) {
        let at_once = self.vectors();
        let group = &mut vectors[i / at_once * at_once * self.steps..][..at_once * self.steps];
        let places = group[i % at_once..].iter_mut().step_by(at_once);
        for (place, four) in places.zip(code.as_chunks::<4>().0) {
            *place = i32::from_le_bytes(four.map(|byte| byte.cast_unsigned() ^ 0x80));
        }
    }

    /// Looks through `panels` until one has values that are not above `bars` `[R]`, and leaves the
    /// values there in `values`. `vectors` `[K/4][R]`: four bytes a number.
    pub fn scan(
        &self,
        panels: Range<usize>,
        vectors: &[i32],
        bars: &[Bar],
        values: &mut Values,
    ) -> Option<Hit> {
        assert!(panels.end <= self.count() && vectors.len() == self.steps * self.vectors());
        assert!(bars.len() == self.vectors());
        match self.dot {
            #[cfg(test)]
            Dot8::Plain => self.scan_plain(panels, vectors, bars, values),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` found the instructions to be there; lengths are as checked above.
            Dot8::Vnni256 => unsafe { x86::scan_256(self, panels, vectors, bars, values) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Dot8::Vnni512 => unsafe { x86::scan_512(self, panels, vectors, bars, values) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("`new` refuses what is not here"),
        }
    }

    #[cfg(test)]
    fn scan_plain(
        &self,
        panels: Range<usize>,
        vectors: &[i32],
        bars: &[Bar],
        values: &mut Values,
    ) -> Option<Hit> {
        for panel in panels {
            let codes = &self.packed[panel * self.steps * WIDEST..][..self.steps * WIDEST];
            let lanes = &self.lanes[panel];
            let mut hits = 0;
            for (r, (bar, values)) in bars.iter().zip(values.iter_mut()).enumerate() {
                let mut sums = lanes.start;
                for (codes, vectors) in
                    codes.chunks_exact(WIDEST).zip(vectors.chunks_exact(bars.len()))
                {
                    for (sum, code) in sums.iter_mut().zip(codes) {
                        let pairs = vectors[r].to_le_bytes().into_iter().zip(code.to_le_bytes());
                        *sum += pairs
                            .map(|(q, p)| i32::from(q) * i32::from(p.cast_signed()))
                            .sum::<i32>();
                    }
                }
                for lane in 0..WIDEST {
                    let product = sums[lane] as f32 * lanes.scale[lane];
                    let value = lanes.half[lane] - bar.scale * product;
                    values[lane] = value - bar.reach * lanes.error[lane];
                    let above = values[lane] > bar.limit;
                    hits |= u32::from(!above) << r;
                }
            }
            if hits != 0 {
                return Some(Hit { panel, vectors: hits });
            }
        }
        None
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::super::panels::{Bar, Hit, Values, WIDEST};
    use super::Bytes;

    /// The scan over registers of `$lanes` lanes, `$regs` of them to a panel, R = `$vectors`.
    macro_rules! scan {
        ($name:ident, $features:literal, $lanes:literal, $regs:literal, $vectors:literal,
         $int:ty, $load:ident, $spread:ident, $dot:ident, $float:ident, $loadf:ident,
         $spreadf:ident, $mul:ident, $neg_mul_add:ident, $storef:ident, $all_above:expr) => {
            /// # Safety
            /// The machine has the features; `panels` are in `bytes`, `vectors` is `[K/4][R]` and
            /// `bars` `[R]`.
            #[target_feature(enable = $features)]
            pub unsafe fn $name(
                bytes: &Bytes,
                panels: Range<usize>,
                vectors: &[i32],
                bars: &[Bar],
                values: &mut Values,
            ) -> Option<Hit> {
                const { assert!($lanes * $regs == WIDEST) };
                for panel in panels {
                    let lanes = &bytes.lanes[panel];
                    // SAFETY: the panel's codes are K/4 times W numbers, and the vectors K/4 times
                    // R, as the caller promises; rows of `Lanes` and `Values` have W numbers, and
                    // registers of a row end within it.
                    unsafe {
                        let mut codes = bytes.packed.as_ptr().add(panel * bytes.steps * WIDEST);
                        let mut vectors = vectors.as_ptr();
                        let start: [$int; $regs] = std::array::from_fn(|i| {
                            $load(lanes.start.as_ptr().add(i * $lanes).cast())
                        });
                        let mut sums = [start; $vectors];
                        for _ in 0..bytes.steps {
                            let four: [$int; $regs] =
                                std::array::from_fn(|i| $load(codes.add(i * $lanes).cast()));
                            for (r, sums) in sums.iter_mut().enumerate() {
                                let x = $spread(*vectors.add(r));
                                for (sum, four) in sums.iter_mut().zip(four) {
                                    *sum = $dot(*sum, x, four);
                                }
                            }
                            codes = codes.add(WIDEST);
                            vectors = vectors.add($vectors);
                        }
                        // A small loop of its own, or the sums would not stay in registers above.
                        for (sums, values) in sums.iter().zip(values.iter_mut()) {
                            for (i, sum) in sums.iter().enumerate() {
                                $storef(values.as_mut_ptr().add(i * $lanes), $float(*sum));
                            }
                        }
                        let mut hits = 0u32;
                        for i in 0..$regs {
                            let scale = $loadf(lanes.scale.as_ptr().add(i * $lanes));
                            let half = $loadf(lanes.half.as_ptr().add(i * $lanes));
                            let error = $loadf(lanes.error.as_ptr().add(i * $lanes));
                            for r in 0..$vectors {
                                let bar = bars.get_unchecked(r);
                                let at = values[r].as_mut_ptr().add(i * $lanes);
                                let product = $mul($loadf(at), scale);
                                let value = $neg_mul_add($spreadf(bar.scale), product, half);
                                let value = $neg_mul_add($spreadf(bar.reach), error, value);
                                let all_above = $all_above($spreadf(bar.limit), value);
                                hits |= u32::from(!all_above) << r;
                                $storef(at, value);
                            }
                        }
                        if hits != 0 {
                            return Some(Hit { panel, vectors: hits });
                        }
                    }
                }
                None
            }
        };
    }

    scan!(
        scan_512,
        "avx512f,avx512vnni",
        16,
        2,
        12,
        __m512i,
        _mm512_loadu_si512,
        _mm512_set1_epi32,
        _mm512_dpbusd_epi32,
        _mm512_cvtepi32_ps,
        _mm512_loadu_ps,
        _mm512_set1_ps,
        _mm512_mul_ps,
        _mm512_fnmadd_ps,
        _mm512_storeu_ps,
        |limit, value| _mm512_cmp_ps_mask::<_CMP_LT_OQ>(limit, value) == u16::MAX
    );
    scan!(
        scan_256,
        "avx2,fma,avxvnni",
        8,
        4,
        3,
        __m256i,
        _mm256_loadu_si256,
        _mm256_set1_epi32,
        _mm256_dpbusd_avx_epi32,
        _mm256_cvtepi32_ps,
        _mm256_loadu_ps,
        _mm256_set1_ps,
        _mm256_mul_ps,
        _mm256_fnmadd_ps,
        _mm256_storeu_ps,
        |limit, value| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(limit, value)) == 0xff
    );
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_code_is_as_far_off_as_it_says() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for size in [0.0, 1e-35, 1e-3, 1e6] {
            let x: Vec<f32> = (0..36).map(|_| size * (rng.random::<f32>() - 0.5)).collect();
            let mut bytes = [0; 36];
            let code = encode(&x, &mut bytes);
            let off =
                |(x, byte): (&f32, &i8)| f64::from(*x) - f64::from(code.scale) * f64::from(*byte);
            let error = x.iter().zip(&bytes).map(|pair| off(pair).powi(2)).sum::<f64>().sqrt();
            assert!(error <= code.error, "{error} {code:?}");
            // Half a step in each of 36 dimensions.
            assert!(code.error <= 3.01 * f64::from(code.scale) || size < 1e-30, "{code:?}");
        }
    }

    #[test]
    fn every_path_stops_where_plain_loops_do() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let (n, dims) = (101, 36);
        let rows: Vec<f32> = (0..n * dims).map(|_| rng.random::<f32>() - 0.3).collect();
        let errors = vec![0.01; n];
        let plain = Bytes::new(&rows, dims, &errors, Dot8::Plain);
        let open = Bar { limit: f32::MAX, reach: 0.5, scale: 0.01 };
        let closed = Bar { limit: f32::NEG_INFINITY, ..open };
        for dot in Dot8::ALL.into_iter().filter(|dot| dot.is_here()) {
            let packed = Bytes::new(&rows, dims, &errors, dot);
            let at_once = dot.vectors();
            let mut vectors = vec![0; at_once * dims / 4];
            let mut codes = vec![[0i8; 36]; at_once];
            for (r, code) in codes.iter_mut().enumerate() {
                code.fill_with(|| rng.random_range(-127..=127));
                packed.place(r, code, &mut vectors);
            }
            for (r, panel) in (0..at_once).flat_map(|r| (0..4).map(move |panel| (r, panel))) {
                let mut own = vec![0; plain.vectors() * dims / 4];
                plain.place(0, &codes[r], &mut own);
                let (mut got, mut want) = ([[0.0; 32]; 12], [[0.0; 32]; 12]);
                plain.scan(panel..4, &own, &[open, closed], &mut want).unwrap();
                let mut bars = vec![closed; at_once];
                let hit = packed.scan(0..4, &vectors, &bars, &mut got);
                assert!(hit.is_none(), "{dot:?}");
                bars[r] = open;
                let hit = packed.scan(panel..4, &vectors, &bars, &mut got).unwrap();
                assert_eq!((hit.panel, hit.vectors), (panel, 1 << r), "{dot:?}");
                for (got, want) in got[r].iter().zip(want[0]) {
                    // Sums are whole; what follows is rounded thrice or five times, at most at 40.
                    assert!(*got == want || (got - want).abs() < 2e-5, "{dot:?} {got} {want}");
                }
            }
        }
    }
}
