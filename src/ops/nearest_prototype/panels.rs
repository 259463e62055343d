//! Prototypes packed for products with a few vectors at a time, and the f32 scan.
//! Letters: N prototypes, D dimensions, R = [`Grain::vectors`] vectors, W = [`Grain::width`] lanes.
//!
//! A panel is W prototypes side by side, dimension by dimension, so that a product reads it from
//! one end to the other: `[⌈N/W⌉][D][W]`. The vectors stand likewise, `[D][R]`.

use std::ops::Range;

use crate::ops::feature_map::Buffer;
use crate::ops::simd::{Isa, Kernel, LANES, Simd};

/// Upper bounds of W and R on any machine.
pub(super) const WIDEST: usize = 2 * LANES;
pub(super) const MOST_VECTORS: usize = 12;

/// Values of one panel for R vectors; the first R rows and W lanes are written.
pub(super) type Values = [[f32; WIDEST]; MOST_VECTORS];

/// What a scan holds against the values of one vector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bar {
    /// A prototype whose value is above it is none of the nearest.
    pub limit: f32,
    /// How far those that count may be away by their codes; see [`super::bytes`].
    pub reach: f32,
    /// Scale of the vector's code; see [`super::bytes`].
    pub scale: f32,
}

/// Where a scan stopped: bit r of `vectors` is set where vector r has a value not above its limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    pub panel: usize,
    pub vectors: u32,
}

/// The piece that a kernel works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grain {
    pub width: usize,
    pub vectors: usize,
}

impl Grain {
    pub fn of(isa: Isa) -> Self {
        isa.run(Ask)
    }
}

struct Ask;

impl Kernel for Ask {
    type Output = Grain;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Grain {
        Grain { width: S::PANEL * LANES, vectors: S::ROWS }
    }
}

/// A matrix [N, D], packed, with a number beside each row.
#[derive(Debug)]
pub(super) struct Panels {
    isa: Isa,
    grain: Grain,
    dim: usize,
    count: usize,
    packed: Buffer,
    /// [⌈N/W⌉ · W]; infinite past N.
    halves: Vec<f32>,
}

// SAFETY: the buffer is written in `new` only, before it can be shared.
unsafe impl Sync for Panels {}

impl Panels {
    /// Packs `rows` `[N, D]` and `halves` `[N]`, ½|p|² of each.
    pub fn new(rows: &[f32], dim: usize, mut halves: Vec<f32>, isa: Isa) -> Self {
        let grain = Grain::of(isa);
        let width = grain.width;
        let count = halves.len().div_ceil(width);
        assert_eq!(rows.len(), halves.len() * dim);
        let mut packed = Buffer::zeroed(count * width * dim);
        let panels = packed.as_mut_slice().chunks_exact_mut(width * dim);
        for (panel, rows) in panels.zip(rows.chunks(width * dim)) {
            for (lane, row) in rows.chunks_exact(dim).enumerate() {
                let places = panel[lane..].iter_mut().step_by(width);
                places.zip(row).for_each(|(place, x)| *place = *x);
            }
        }
        halves.resize(count * width, f32::INFINITY);
        Self { isa, grain, dim, count, packed, halves }
    }

    pub fn grain(&self) -> Grain {
        self.grain
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Panels, ⌈N/W⌉.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of one panel.
    pub fn panel_bytes(&self) -> usize {
        self.grain.width * self.dim * size_of::<f32>()
    }

    /// Products of `vectors` `[D][R]` with all rows → `out` `[R][⌈N/W⌉ · W]`.
    pub fn multiply(&self, vectors: &[f32], out: &mut [f32]) {
        assert_eq!(out.len(), self.grain.vectors * self.halves.len());
        self.check(0..self.count, vectors);
        self.isa.run(Multiply { panels: self, vectors, out });
    }

    /// Looks through `panels` until one has values ½|p|² − q·p that are not above `bars` `[R]`, and
    /// leaves the values there in `values`.
    pub fn scan(
        &self,
        panels: Range<usize>,
        vectors: &[f32],
        bars: &[Bar],
        values: &mut Values,
    ) -> Option<Hit> {
        self.check(panels.clone(), vectors);
        assert_eq!(bars.len(), self.grain.vectors);
        self.isa.run(Scan { panels: self, range: panels, vectors, bars, values })
    }

    fn check(&self, panels: Range<usize>, vectors: &[f32]) {
        assert!(panels.end <= self.count && vectors.len() == self.dim * self.grain.vectors);
    }

    /// Products of R vectors with the rows of P · 16 lanes.
    #[inline(always)]
    fn products<S: Simd, const R: usize, const P: usize>(
        &self,
        s: S,
        panel: usize,
        vectors: &[f32],
    ) -> [[S::F; P]; R] {
        let size = self.dim * P * LANES;
        assert!(vectors.len() >= self.dim * R && (panel + 1) * size <= self.packed.len());
        let mut sums = [[s.zero(); P]; R];
        // SAFETY: D steps of P · 16 numbers in the buffer and of R numbers in `vectors`, which the
        // line above found to be there.
        unsafe {
            let mut rows = self.packed.as_ptr().add(panel * size).cast_const();
            let mut vectors = vectors.as_ptr();
            for _ in 0..self.dim {
                let mut lanes = [s.zero(); P];
                for (p, lanes) in lanes.iter_mut().enumerate() {
                    *lanes = s.load(rows.add(p * LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = s.splat(*vectors.add(r));
                    for (sum, lanes) in sums.iter_mut().zip(lanes) {
                        *sum = s.mul_add(x, lanes, *sum);
                    }
                }
                rows = rows.add(P * LANES);
                vectors = vectors.add(R);
            }
        }
        sums
    }
}

/// Runs `$call::<S, R, P>` with this machine's R and P.
macro_rules! for_grain {
    ($S:ident, $name:ident($($arg:expr),*)) => {
        match ($S::ROWS, $S::PANEL) {
            (12, 2) => $name::<$S, 12, 2>($($arg),*),
            (6, 1) => $name::<$S, 6, 1>($($arg),*),
            (2, 1) => $name::<$S, 2, 1>($($arg),*),
            _ => unreachable!("every Simd has one of these"),
        }
    };
}

struct Multiply<'a> {
    panels: &'a Panels,
    vectors: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for_grain!(S, multiply(s, self));
    }
}

#[inline(always)]
fn multiply<S: Simd, const R: usize, const P: usize>(s: S, task: Multiply<'_>) {
    let stride = task.panels.halves.len();
    for panel in 0..task.panels.count {
        let products = task.panels.products::<S, R, P>(s, panel, task.vectors);
        for (r, products) in products.into_iter().enumerate() {
            for (p, products) in products.into_iter().enumerate() {
                let to = r * stride + (panel * P + p) * LANES;
                task.out[to..to + LANES].copy_from_slice(&s.to_array(products));
            }
        }
    }
}

struct Scan<'a> {
    panels: &'a Panels,
    range: Range<usize>,
    vectors: &'a [f32],
    bars: &'a [Bar],
    values: &'a mut Values,
}

impl Kernel for Scan<'_> {
    type Output = Option<Hit>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Option<Hit> {
        for_grain!(S, scan(s, self))
    }
}

#[inline(always)]
fn scan<S: Simd, const R: usize, const P: usize>(s: S, task: Scan<'_>) -> Option<Hit> {
    let bars: &[Bar; R] = task.bars.try_into().expect("R bars");
    for panel in task.range {
        let products = task.panels.products::<S, R, P>(s, panel, task.vectors);
        let halves = &task.panels.halves[panel * P * LANES..][..P * LANES];
        let mut hits = 0;
        for p in 0..P {
            // SAFETY: 16 numbers from p · 16 on lie in the slice of P · 16.
            let halves = unsafe { s.load(halves.as_ptr().add(p * LANES)) };
            for (r, products) in products.iter().enumerate() {
                let value = s.sub(halves, products[p]);
                // Asked this way round so that a NaN is a hit.
                let above = s.lt(s.splat(bars[r].limit), value);
                hits |= u32::from(above != u16::MAX) << r;
                // SAFETY: 16 lanes from p · 16 on lie in a row of WIDEST ≥ P · 16.
                unsafe { s.store(task.values[r].as_mut_ptr().add(p * LANES), value) };
            }
        }
        if hits != 0 {
            return Some(Hit { panel, vectors: hits });
        }
    }
    None
}
