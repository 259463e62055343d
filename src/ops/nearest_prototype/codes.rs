//! What a scan goes through instead of the prototypes, and how far its values may be off.
//! Letters: N prototypes, D dimensions, R vectors of one product.

use std::ops::Range;

use super::bytes::{self, Bytes, Dot8};
use super::panels::{Bar, Hit, MOST_VECTORS, Panels, Values, WIDEST};
use super::sketch::{self, Drawn, Sketch};
use super::{LARGEST_NORM2, Scan, UNIT, norm2};
use crate::ops::simd::Isa;

/// Codes of the prototypes.
#[derive(Debug)]
pub(super) enum Codes {
    Whole(Panels),
    Sketches(Sketch, Panels),
    Bytes(Sketch, Bytes),
}

/// The code of a query, but for its numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coded {
    /// |c|².
    norm2: f64,
    /// ρ, how far it is off.
    error: f64,
    scale: f32,
}

/// Where queries become codes.
#[derive(Debug)]
pub(super) struct Table {
    /// `[slots/R][dims][R]`, by what is scanned.
    vectors: Vec<f32>,
    bytes: Vec<i32>,
    sketch: Option<sketch::Desk>,
    sketches: Vec<f32>, // [R, dims]
    code: Vec<i8>,      // [dims]
}

/// Between the value of a scan and ½d², with d the distance of prototype and query.
///
/// With c the code of the query, off by ρ, a prototype is ruled out where its value is above
/// ½r² − ½|c|² + E: r is the distance that counts plus ρ plus `slack`, and E bounds the rounding of
/// values and of this limit, `per_norm`·|c| + `constant` + `per_reach`·r.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    per_norm: f64,
    constant: f64,
    per_reach: f64,
    /// Largest error of a prototype's code where the scan has none for each.
    slack: f64,
}

impl Bound {
    /// For values ½|p|² − q·p in f32, after Higham (2002), section 3.1: a dot product of `dim` terms,
    /// summed in any order, is off by at most dim·u·|q||p| (u = 2⁻²⁴; a little more for u²); ½|p|² is
    /// rounded once, and so is the difference.
    fn of_f32(dim: usize, largest_norm: f64, slack: f64) -> Self {
        let unit = f64::from(UNIT);
        Self {
            per_norm: relative(dim) * largest_norm,
            constant: 2.0 * unit * largest_norm.powi(2) + underflow(dim),
            per_reach: 0.0,
            slack,
        }
    }

    /// For values of [`super::bytes`]: whole sums are exact, what follows is rounded fewer than 16 times.
    fn of_bytes(largest_norm: f64, largest_error: f64) -> Self {
        let unit = 16.0 * f64::from(UNIT);
        Self {
            per_norm: unit * largest_norm,
            constant: unit * (largest_norm.powi(2) + largest_error.powi(2)) + underflow(1),
            per_reach: unit * largest_error,
            slack: 0.0,
        }
    }
}

/// Bound of the relative error of Σ(a − b)² (dim + 2 roundings) and, over |q||p|, of q·p.
fn relative(dim: usize) -> f64 {
    (dim + 8) as f64 * f64::from(UNIT)
}

/// More than products too small for f32 can lose in a sum of `dim`.
fn underflow(dim: usize) -> f64 {
    (dim + 8) as f64 * f64::from(f32::MIN_POSITIVE)
}

impl Coded {
    /// What a value must not be above for the prototype to be as near as `distance2`, a squared
    /// distance measured over `dim` dimensions.
    pub fn bar(&self, distance2: f32, dim: usize, bound: &Bound) -> Bar {
        // Whoever is measured no farther is, with the true t² ≤ measured/(1 − relative), within:
        let near2 = f64::from(distance2) * (1.0 + 2.0 * relative(dim)) + underflow(dim);
        let reach = (near2.sqrt() + self.error + bound.slack) * (1.0 + 1e-12);
        // The norm is a sum of fewer than 2²⁰ terms in f64.
        let half = 0.5 * self.norm2 * (1.0 - 1e-9);
        let error = bound.per_norm * self.norm2.sqrt() + bound.constant + bound.per_reach * reach;
        let limit = 0.5 * reach * reach - half + 1.01 * error;
        Bar { limit: (limit as f32).next_up(), reach: (reach as f32).next_up(), scale: self.scale }
    }

    fn is_finite(&self) -> bool {
        self.norm2 <= LARGEST_NORM2
    }
}

impl Codes {
    /// Of `rows` `[N, D]` with |p|² in `norms2` `[N]`; bytes only where there is a `dot` product
    /// for them.
    pub fn new(
        scan: Scan,
        rows: &[f32],
        dim: usize,
        norms2: &[f64],
        (isa, dot): (Isa, Option<Dot8>),
    ) -> (Self, Bound) {
        match scan {
            Scan::F32 => {
                let bound = Bound::of_f32(dim, largest(norms2).sqrt(), 0.0);
                (Self::Whole(Panels::new(rows, dim, halves(norms2), isa)), bound)
            }
            Scan::Int8 => Self::of_sketches(rows, dim, isa, dot),
        }
    }

    fn of_sketches(rows: &[f32], dim: usize, isa: Isa, dot: Option<Dot8>) -> (Self, Bound) {
        let sketch = Sketch::new(rows, dim, isa);
        let (count, group) = (rows.len() / dim, sketch.vectors());
        let dims = sketch.dims().next_multiple_of(4);
        let mut sketches = vec![0f32; count.next_multiple_of(group) * dims];
        let mut drawn = vec![Drawn::default(); count.next_multiple_of(group)];
        let mut desk = sketch.desk();
        let groups = sketches.chunks_mut(group * dims).zip(drawn.chunks_mut(group));
        for ((out, drawn), rows) in groups.zip(rows.chunks(group * dim)) {
            sketch.draw(rows.chunks_exact(dim), &mut desk, out, dims, drawn);
        }
        sketches.truncate(count * dims);
        drawn.truncate(count);
        let errors: Vec<f64> = drawn.iter().map(|drawn| drawn.error).collect();
        if let Some(dot) = dot.filter(|_| dims <= bytes::MOST_DIMS) {
            let bytes = Bytes::new(&sketches, dims, &errors, dot);
            let (norm, error) = bytes.largest();
            return (Self::Bytes(sketch, bytes), Bound::of_bytes(norm, error));
        }
        let norms2: Vec<f64> = drawn.iter().map(|drawn| drawn.norm2).collect();
        let bound = Bound::of_f32(dims, largest(&norms2).sqrt(), largest(&errors));
        (Self::Sketches(sketch, Panels::new(&sketches, dims, halves(&norms2), isa)), bound)
    }

    /// Dimensions of a code.
    pub fn dims(&self) -> usize {
        match self {
            Self::Whole(panels) | Self::Sketches(_, panels) => panels.dim(),
            Self::Bytes(_, bytes) => bytes.dims(),
        }
    }

    pub fn panels(&self) -> usize {
        match self {
            Self::Whole(panels) | Self::Sketches(_, panels) => panels.count(),
            Self::Bytes(_, bytes) => bytes.count(),
        }
    }

    pub fn panel_bytes(&self) -> usize {
        match self {
            Self::Whole(panels) | Self::Sketches(_, panels) => panels.panel_bytes(),
            Self::Bytes(_, bytes) => bytes.panel_bytes(),
        }
    }

    /// Prototypes of a panel.
    pub fn width(&self) -> usize {
        match self {
            Self::Whole(panels) | Self::Sketches(_, panels) => panels.grain().width,
            Self::Bytes(..) => WIDEST,
        }
    }

    /// R.
    pub fn vectors(&self) -> usize {
        match self {
            Self::Whole(panels) | Self::Sketches(_, panels) => panels.grain().vectors,
            Self::Bytes(_, bytes) => bytes.vectors(),
        }
    }

    /// Queries that are searched side by side: a bank of f32 is read from far away, and so is read
    /// for many.
    pub fn slots(&self) -> usize {
        match self {
            Self::Whole(_) => 96,
            Self::Sketches(..) => 48,
            Self::Bytes(..) => 24,
        }
    }

    fn sketch(&self) -> Option<&Sketch> {
        match self {
            Self::Whole(_) => None,
            Self::Sketches(sketch, _) | Self::Bytes(sketch, _) => Some(sketch),
        }
    }

    /// Two codes of equal shape can share a table.
    pub fn shape(&self) -> [usize; 4] {
        let sketch = self.sketch().map_or(0, Sketch::dims);
        [self.dims(), self.slots(), self.vectors(), sketch]
    }

    pub fn table(&self) -> Table {
        let (slots, dims) = (self.slots(), self.dims());
        let are_bytes = matches!(self, Self::Bytes(..));
        let sketch = self.sketch();
        Table {
            vectors: vec![0.0; if are_bytes { 0 } else { slots * dims }],
            bytes: vec![0; if are_bytes { slots * dims / 4 } else { 0 }],
            sketches: vec![0.0; sketch.map_or(0, |sketch| sketch.vectors() * dims)],
            sketch: sketch.map(Sketch::desk),
            code: vec![0; dims],
        }
    }

    /// Codes of `queries`, no more than slots, into `table`, and what is to be known of each into
    /// `coded`. False where a query is not finite or too large.
    pub fn encode<'a>(
        &self,
        mut queries: impl Iterator<Item = &'a [f32]>,
        coded: &mut [Coded],
        table: &mut Table,
    ) -> bool {
        let (vectors, dims) = (self.vectors(), self.dims());
        let Some(sketch) = self.sketch() else {
            for (i, (query, coded)) in queries.zip(&mut *coded).enumerate() {
                *coded = Coded { norm2: norm2(query), error: 0.0, scale: 1.0 };
                place(&mut table.vectors, i, vectors, query);
            }
            return coded.iter().all(Coded::is_finite);
        };
        let desk = table.sketch.as_mut().expect("a table of these codes");
        let mut drawn = [Drawn::default(); MOST_VECTORS];
        for (group, coded) in coded.chunks_mut(sketch.vectors()).enumerate() {
            let group_of = queries.by_ref().take(coded.len());
            sketch.draw(group_of, desk, &mut table.sketches, dims, &mut drawn);
            let sketches = table.sketches.chunks_exact(dims);
            for (r, ((coded, own), drawn)) in coded.iter_mut().zip(sketches).zip(drawn).enumerate()
            {
                let i = group * sketch.vectors() + r;
                *coded = Coded { norm2: drawn.norm2, error: drawn.error, scale: 1.0 };
                if !coded.is_finite() {
                    return false;
                }
                if let Self::Bytes(_, bytes) = self {
                    let code = bytes::encode(own, &mut table.code);
                    let error = drawn.error + code.error;
                    *coded = Coded { norm2: code.norm2, error, scale: code.scale };
                    bytes.place(i, &table.code, &mut table.bytes);
                } else {
                    place(&mut table.vectors, i, vectors, own);
                }
            }
        }
        true
    }

    /// Looks through `panels` for the R queries of `table` from `first` on, until one has values not
    /// above `bars` `[R]`, and leaves the values there in `values`.
    pub fn scan(
        &self,
        panels: Range<usize>,
        table: &Table,
        first: usize,
        bars: &[Bar],
        values: &mut Values,
    ) -> Option<Hit> {
        let (vectors, dims) = (self.vectors(), self.dims());
        match self {
            Self::Whole(codes) | Self::Sketches(_, codes) => {
                let own = &table.vectors[first * dims..][..vectors * dims];
                codes.scan(panels, own, bars, values)
            }
            Self::Bytes(_, codes) => {
                let own = &table.bytes[first * dims / 4..][..vectors * dims / 4];
                codes.scan(panels, own, bars, values)
            }
        }
    }
}

/// Puts `x` `[dims]` where vector `i` stands in `[·/R][dims][R]`, R = `at_once`.
fn place(vectors: &mut [f32], i: usize, at_once: usize, x: &[f32]) {
    let group = &mut vectors[i / at_once * at_once * x.len()..][..at_once * x.len()];
    let places = group[i % at_once..].iter_mut().step_by(at_once);
    places.zip(x).for_each(|(place, x)| *place = *x);
}

fn halves(norms2: &[f64]) -> Vec<f32> {
    norms2.iter().map(|norm2| (0.5 * norm2) as f32).collect()
}

fn largest(xs: &[f64]) -> f64 {
    xs.iter().copied().fold(0.0, f64::max)
}
