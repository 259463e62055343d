//! Nearest-prototype search: for each query patch the prototypes of a bank closest to it, by squared
//! L2 distance, exactly. Letters: Q queries, N prototypes, D dimensions.
//!
//! A scan gives each prototype a value that is cheap and nearly right, a few queries and a panel of
//! prototypes at a time; the Q×N matrix is nowhere. Bounds of the scan's error say which prototypes
//! can't be among the nearest; every other one is measured as Σ(q − p)², and that decides. So the
//! answer is the same whatever the scan and the machine, to the bit.
//!
//! Queries are searched in runs, each beginning with what its neighbour found: neighbouring patches
//! look alike, so nearly all prototypes are ruled out from the start.

mod bytes;
mod codes;
mod panels;
mod search;
mod sketch;
#[cfg(test)]
mod tests;

use anyhow::{Result, ensure};

use super::simd::Isa;
use super::team::Team;
use bytes::Dot8;
use codes::{Bound, Codes};
use search::Task;

pub use search::Scratch;

/// Half an ulp of 1 in f32.
const UNIT: f32 = 1.0 / (1u32 << 24) as f32;

/// Largest |q|² and |p|²: below it no sum of the search overflows.
const LARGEST_NORM2: f64 = f32::MAX as f64 / 16.0;

/// A prototype found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// Its row in the bank.
    pub index: u32,
    /// Squared L2 distance Σ(a − b)².
    pub distance2: f32,
}

impl Nearest {
    fn comes_before(&self, other: &Self) -> bool {
        self.distance2 < other.distance2
            || self.distance2 == other.distance2 && self.index < other.index
    }
}

/// How the prototypes that matter are found; the answer is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// All dimensions in f32.
    F32,
    /// Sketches of fewer dimensions, one byte a dimension, on machines with 8-bit dot products
    /// (VNNI); in f32 on others.
    Int8,
}

impl Scan {
    /// What suits `count` prototypes of `dim` dimensions. To sketch a query costs as much as to scan
    /// some two hundred prototypes in f32; from a thousand on, sketches were several times faster
    /// both on patch features, which vary in few directions, and on noise, which varies in all.
    pub fn usual(count: usize, dim: usize) -> Self {
        if count >= 1024 && dim >= 64 { Self::Int8 } else { Self::F32 }
    }
}

/// Prototypes with what the search needs of them, computed once.
#[derive(Debug)]
pub struct PrototypeBank {
    dim: usize,
    rows: Vec<f32>, // [N, D]
    isa: Isa,
    codes: Codes,
    bound: Bound,
}

impl PrototypeBank {
    /// `rows` [N, D] with D = `dim`; N ≥ 1, finite. Scanned as [`Scan::usual`] says, with the widest
    /// instructions of this machine.
    pub fn new(rows: Vec<f32>, dim: usize) -> Result<Self> {
        let scan = Scan::usual(rows.len() / dim.max(1), dim);
        Self::scanned_by(scan, rows, dim, Isa::detect()?)
    }

    /// As [`PrototypeBank::new`], with a scan of one's own choice.
    pub fn scanned_by(scan: Scan, rows: Vec<f32>, dim: usize, isa: Isa) -> Result<Self> {
        let dot = match isa {
            Isa::Portable => None,
            Isa::Avx2 => Some(Dot8::Vnni256),
            Isa::Avx512 => Some(Dot8::Vnni512),
        };
        Self::coded(scan, rows, dim, isa, dot.filter(|dot| dot.is_here()))
    }

    fn coded(scan: Scan, rows: Vec<f32>, dim: usize, isa: Isa, dot: Option<Dot8>) -> Result<Self> {
        ensure!(
            dim > 0 && !rows.is_empty() && rows.len().is_multiple_of(dim),
            "{} numbers are no prototypes of {dim} dimensions",
            rows.len()
        );
        ensure!(u32::try_from(rows.len() / dim).is_ok(), "more than 2^32 prototypes");
        let norms2: Vec<f64> = rows.chunks(dim).map(norm2).collect();
        if let Some(bad) = norms2.iter().position(|norm2| norm2.is_nan() || *norm2 > LARGEST_NORM2)
        {
            anyhow::bail!("prototype {bad} is not finite or too large");
        }
        let (codes, bound) = Codes::new(scan, &rows, dim, &norms2, (isa, dot));
        Ok(Self { dim, rows, isa, codes, bound })
    }

    /// Number of prototypes N.
    pub fn len(&self) -> usize {
        self.rows.len() / self.dim
    }

    /// Never: a bank holds at least one prototype.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Prototype `index`, `[D]`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.rows[index * self.dim..][..self.dim]
    }

    /// All prototypes, [N, D].
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// How many dimensions the scan goes through: fewer than D where few of them hold nearly all
    /// of the prototypes' variance.
    pub fn scanned_dims(&self) -> usize {
        self.codes.dims()
    }

    /// The closest prototype of each query: `queries` `[Q, D]` → `[Q]`. Ties: lowest index.
    pub fn nearest(&self, team: &Team, queries: &[f32]) -> Result<Vec<Nearest>> {
        self.top(team, queries, 1)
    }

    /// The min(k, N) closest prototypes of each query, nearest first, ties by lowest index:
    /// `queries` [Q, D] → [Q, min(k, N)], flat. A query that is not finite is an error.
    pub fn top(&self, team: &Team, queries: &[f32], k: usize) -> Result<Vec<Nearest>> {
        let k = k.min(self.len());
        let mut out = vec![NOTHING; queries.len() / self.dim * k];
        if k > 0 {
            self.top_into(team, queries, k, &mut out, &mut Scratch::default())?;
        }
        Ok(out)
    }

    /// As [`PrototypeBank::nearest`], into `out` `[Q]`, without allocation where `scratch` has seen
    /// this bank and a team as large.
    ///
    /// # Panics
    /// If `out` is of another length.
    pub fn nearest_into(
        &self,
        team: &Team,
        queries: &[f32],
        out: &mut [Nearest],
        scratch: &mut Scratch,
    ) -> Result<()> {
        self.top_into(team, queries, 1, out, scratch)
    }

    /// As [`PrototypeBank::top`] with 1 ≤ `k` ≤ N, into `out` [Q, k].
    ///
    /// # Panics
    /// If `k` or the length of `out` is another.
    pub fn top_into(
        &self,
        team: &Team,
        queries: &[f32],
        k: usize,
        out: &mut [Nearest],
        scratch: &mut Scratch,
    ) -> Result<()> {
        let task = Task { queries, order: None, seeded: false, panels: 0..self.codes.panels(), k };
        self.search(team, &task, out, scratch)
    }

    /// The query whose nearest prototype is farthest, and that prototype: what an image score
    /// without a map needs. Ties: lowest query. `queries` [Q, D], Q ≥ 1.
    ///
    /// The first prototypes of a coreset already cover all others roughly, so a scan of them bounds
    /// every query's distance; then queries are searched in order of that bound, until it falls
    /// below a distance found.
    pub fn farthest_nearest(
        &self,
        team: &Team,
        queries: &[f32],
        scratch: &mut Scratch,
    ) -> Result<(usize, Nearest)> {
        let mut order = std::mem::take(&mut scratch.order);
        let mut bounds = std::mem::take(&mut scratch.bounds);
        let mut found = std::mem::take(&mut scratch.found);
        let farthest =
            self.farthest_of(team, queries, scratch, (&mut order, &mut bounds, &mut found));
        (scratch.order, scratch.bounds, scratch.found) = (order, bounds, found);
        farthest
    }

    fn farthest_of(
        &self,
        team: &Team,
        queries: &[f32],
        scratch: &mut Scratch,
        (order, bounds, found): (&mut Vec<u32>, &mut Vec<Nearest>, &mut Vec<Nearest>),
    ) -> Result<(usize, Nearest)> {
        let count = queries.len() / self.dim;
        ensure!(u32::try_from(count).is_ok_and(|count| count > 0), "{count} queries");
        let first = self.codes.panels().div_ceil(FIRST_SHARE);
        bounds.clear();
        bounds.resize(count, NOTHING);
        let task = Task { queries, order: None, seeded: false, panels: 0..first, k: 1 };
        self.search(team, &task, bounds, scratch)?;
        order.clear();
        order.extend(0..count as u32);
        let bound = |query: u32| bounds[query as usize].distance2;
        order.sort_unstable_by(|&a, &b| bound(b).total_cmp(&bound(a)).then(a.cmp(&b)));
        let mut farthest: Option<(u32, Nearest)> = None;
        for group in order.chunks(self.codes.slots() / 2 * team.threads()) {
            // Not below it: one as far may have a lower number.
            let open = |query: &u32| farthest.is_none_or(|(_, far)| bound(*query) >= far.distance2);
            let group = &group[..group.partition_point(open)];
            if group.is_empty() {
                break;
            }
            found.clear();
            found.extend(group.iter().map(|&query| bounds[query as usize]));
            let order = Some(group);
            let task =
                Task { queries, order, seeded: true, panels: first..self.codes.panels(), k: 1 };
            self.search(team, &task, found, scratch)?;
            for (&query, &nearest) in group.iter().zip(&*found) {
                let further = farthest.is_none_or(|(other, far)| {
                    nearest.distance2 > far.distance2
                        || nearest.distance2 == far.distance2 && query < other
                });
                if further {
                    farthest = Some((query, nearest));
                }
            }
        }
        let (query, nearest) = farthest.expect("there is a query, and the first group is open");
        Ok((query as usize, nearest))
    }
}

/// One in so many panels is looked through for the first bound of [`PrototypeBank::farthest_nearest`].
const FIRST_SHARE: usize = 16;

const NOTHING: Nearest = Nearest { index: 0, distance2: f32::INFINITY };

/// Σ(a − b)², f32: sixteen sums side by side, then added in a fixed order, so that the result is
/// the same on every machine.
#[inline(always)]
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += (a[i] - b[i]) * (a[i] - b[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| (a - b) * (a - b)).sum();
    sums.iter().sum::<f32>() + rest
}

/// |a|², summed in f64.
fn norm2(a: &[f32]) -> f64 {
    let (eights, rest) = a.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for eight in eights {
        for i in 0..8 {
            sums[i] += f64::from(eight[i]) * f64::from(eight[i]);
        }
    }
    let rest: f64 = rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    sums.iter().sum::<f64>() + rest
}
