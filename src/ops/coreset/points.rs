//! Points in blocks of 16, measured side by side. Letters: N points, E dimensions.
//!
//! A distance is the sum that [`squared_distance`] makes, to the bit: dimension 16·i + j goes to sum
//! j, the sums are added in the order of j, then what is past the last sixteen. Dimensions are
//! stored in that order, so that a block is read from one end to the other.
//!
//! [`squared_distance`]: super::super::nearest_prototype::squared_distance

use std::ops::Range;

use rayon::prelude::*;

use crate::ops::simd::{Isa, Kernel, LANES, Simd};

/// Blocks that one task goes through.
const TASK: usize = 64;

/// One number of each point of a block.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Row([f32; LANES]);

/// All points [N, E], the centres among them, and how far each point is from the nearest centre.
#[derive(Debug)]
pub(super) struct Points {
    isa: Isa,
    count: usize,
    dim: usize,
    rows: Vec<Row>,     // [⌈N/16⌉, E]
    blocks: Vec<Block>, // [⌈N/16⌉]
    centres: Vec<f32>,  // [centres, E]
}

#[derive(Clone, Copy, Debug)]
struct Block {
    /// Smallest squared distances to the first `seen` centres; below zero past N.
    bounds: [f32; LANES],
    largest: f32,
    seen: usize,
}

/// A point and its squared distance to the nearest centre.
#[derive(Clone, Copy, Debug)]
pub(super) struct Farthest {
    pub index: usize,
    pub distance2: f32,
}

impl Points {
    /// `fill(range, out)` writes points `range`, at most 16 of them, to `out` [·, E].
    pub fn new(
        count: usize,
        dim: usize,
        isa: Isa,
        fill: impl Fn(Range<usize>, &mut [f32]) + Sync,
    ) -> Self {
        let blocks = count.div_ceil(LANES);
        let mut rows = vec![Row([0.0; LANES]); blocks * dim];
        let tasks = rows.par_chunks_mut(dim).enumerate().with_min_len(TASK);
        tasks.for_each_init(
            || vec![0f32; LANES * dim],
            |points, (block, rows)| {
                let first = block * LANES;
                let range = first..(first + LANES).min(count);
                let points = &mut points[..range.len() * dim];
                fill(range, points);
                for (lane, point) in points.chunks_exact(dim).enumerate() {
                    let places = rows.iter_mut().map(|row| &mut row.0[lane]);
                    places.zip(in_order(dim)).for_each(|(place, i)| *place = point[i]);
                }
            },
        );
        let block = |first: usize| {
            let bound = |i| if first * LANES + i < count { f32::INFINITY } else { -1.0 };
            Block { bounds: std::array::from_fn(bound), largest: f32::INFINITY, seen: 0 }
        };
        Self {
            isa,
            count,
            dim,
            rows,
            blocks: (0..blocks).map(block).collect(),
            centres: Vec::new(),
        }
    }

    /// N.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Makes point `index` a centre.
    pub fn add_centre(&mut self, index: usize) {
        let rows = &self.rows[index / LANES * self.dim..][..self.dim];
        self.centres.extend(rows.iter().map(|row| row.0[index % LANES]));
    }

    /// The centre added last, `[E]` in the order of storage.
    pub fn newest_centre(&self) -> &[f32] {
        &self.centres[self.centres.len() - self.dim..]
    }

    /// No point is farther from its nearest centre; squared.
    pub fn largest_bound(&self) -> f32 {
        self.blocks.iter().fold(-1.0, |largest, block| largest.max(block.largest))
    }

    /// Brings up to date all points that may be `level` or more away from the centres.
    pub fn refresh(&mut self, level: f32) {
        let Self { isa, dim, rows, blocks, centres, .. } = self;
        let tasks = blocks.par_chunks_mut(TASK).zip(rows.par_chunks(TASK * *dim));
        tasks.for_each(|(blocks, rows)| {
            isa.run(Refresh { blocks, rows, centres, dim: *dim, level });
        });
    }

    /// How many points have a bound of `level` or more.
    pub fn count_at_least(&self, level: f32) -> usize {
        let blocks = self.blocks.iter().filter(|block| block.largest >= level);
        blocks.flat_map(|block| block.bounds).filter(|bound| *bound >= level).count()
    }

    /// The points whose bound is `level` or more.
    pub fn at_least(&self, level: f32) -> Near {
        let mut near = Near { isa: self.isa, dim: self.dim, ..Near::default() };
        let blocks = self.blocks.iter().enumerate().filter(|(_, block)| block.largest >= level);
        for (at, block) in blocks {
            let rows = &self.rows[at * self.dim..][..self.dim];
            for (lane, &bound) in block.bounds.iter().enumerate() {
                if bound >= level {
                    near.push(at * LANES + lane, bound, rows.iter().map(|row| row.0[lane]));
                }
            }
        }
        near
    }

    /// Keeps what `near` knows of its points.
    pub fn take_back(&mut self, near: &Near) {
        let bounds = near.bounds.iter().flat_map(|row| row.0);
        for (&index, bound) in near.indices.iter().zip(bounds) {
            self.blocks[index / LANES].bounds[index % LANES] = bound;
        }
        for &index in &near.indices {
            let block = &mut self.blocks[index / LANES];
            block.largest = block.bounds.iter().copied().fold(-1.0, f32::max);
        }
    }
}

/// Some points, kept up to date with each new centre.
#[derive(Debug)]
pub(super) struct Near {
    isa: Isa,
    dim: usize,
    indices: Vec<usize>, // rising
    rows: Vec<Row>,      // [⌈·/16⌉, E]
    bounds: Vec<Row>,    // [⌈·/16⌉], below zero past the last
}

impl Default for Near {
    fn default() -> Self {
        Self {
            isa: Isa::Portable,
            dim: 0,
            indices: Vec::new(),
            rows: Vec::new(),
            bounds: Vec::new(),
        }
    }
}

impl Near {
    fn push(&mut self, index: usize, bound: f32, point: impl Iterator<Item = f32>) {
        let lane = self.indices.len() % LANES;
        if lane == 0 {
            self.bounds.push(Row([-1.0; LANES]));
            self.rows.resize(self.bounds.len() * self.dim, Row([0.0; LANES]));
        }
        let block = self.bounds.len() - 1;
        self.bounds[block].0[lane] = bound;
        let rows = &mut self.rows[block * self.dim..];
        rows.iter_mut().zip(point).for_each(|(row, x)| row.0[lane] = x);
        self.indices.push(index);
    }

    /// Takes a new centre `[E]`, in the order of storage, into account.
    pub fn measure(&mut self, centre: &[f32]) {
        let Self { isa, dim, rows, bounds, .. } = self;
        isa.run(Measure { bounds, rows, centre, dim: *dim });
    }

    /// The farthest; ties: lowest index.
    pub fn farthest(&self) -> Option<Farthest> {
        let mut largest = [-1f32; LANES];
        for row in &self.bounds {
            largest = std::array::from_fn(|i| largest[i].max(row.0[i]));
        }
        let largest = largest.into_iter().fold(-1.0, f32::max);
        let at = self.bounds.iter().flat_map(|row| row.0).position(|bound| bound == largest)?;
        Some(Farthest { index: *self.indices.get(at)?, distance2: largest })
    }
}

/// Dimensions in the order of storage.
fn in_order(dim: usize) -> impl Iterator<Item = usize> {
    let whole = dim - dim % LANES;
    (0..LANES).flat_map(move |j| (j..whole).step_by(LANES)).chain(whole..dim)
}

struct Refresh<'a> {
    blocks: &'a mut [Block],
    rows: &'a [Row],
    centres: &'a [f32],
    dim: usize,
    level: f32,
}

impl Kernel for Refresh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, rows) in self.blocks.iter_mut().zip(self.rows.chunks_exact(self.dim)) {
            let mut bounds = s.load_array(block.bounds);
            let level = s.splat(self.level);
            let centres = self.centres.chunks_exact(self.dim);
            for centre in centres.skip(block.seen) {
                if s.lt(bounds, level) == u16::MAX {
                    break;
                }
                bounds = s.min(distances2(s, rows, centre), bounds);
                block.seen += 1;
            }
            block.bounds = s.to_array(bounds);
            block.largest = block.bounds.iter().copied().fold(-1.0, f32::max);
        }
    }
}

struct Measure<'a> {
    bounds: &'a mut [Row],
    rows: &'a [Row],
    centre: &'a [f32],
    dim: usize,
}

impl Kernel for Measure<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (bounds, rows) in self.bounds.iter_mut().zip(self.rows.chunks_exact(self.dim)) {
            let new = distances2(s, rows, self.centre);
            *bounds = Row(s.to_array(s.min(new, s.load_array(bounds.0))));
        }
    }
}

/// Squared distances of a block's points, `rows` `[E]`, to `centre` `[E]`.
#[inline(always)]
fn distances2<S: Simd>(s: S, rows: &[Row], centre: &[f32]) -> S::F {
    /// Sums that are made at the same time, as each addition waits for the one before.
    const AT_ONCE: usize = 4;
    let length = rows.len() / LANES;
    let (rows, rows_rest) = rows.split_at(length * LANES);
    let (centre, centre_rest) = centre.split_at(length * LANES);
    let mut total = s.zero();
    if length > 0 {
        let groups = rows.chunks_exact(AT_ONCE * length).zip(centre.chunks_exact(AT_ONCE * length));
        for (rows, centre) in groups {
            let mut sums = [s.zero(); AT_ONCE];
            for i in 0..length {
                for (j, sum) in sums.iter_mut().enumerate() {
                    let apart = s
                        .sub(s.load_array(rows[j * length + i].0), s.splat(centre[j * length + i]));
                    *sum = s.add(*sum, s.mul(apart, apart));
                }
            }
            for sum in sums {
                total = s.add(total, sum);
            }
        }
    }
    let mut rest = s.zero();
    for (row, x) in rows_rest.iter().zip(centre_rest) {
        let apart = s.sub(s.load_array(row.0), s.splat(*x));
        rest = s.add(rest, s.mul(apart, apart));
    }
    s.add(total, rest)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::ops::nearest_prototype::squared_distance;

    #[test]
    fn distances_are_those_of_squared_distance_to_the_bit() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for dim in [1, 15, 16, 33, 128] {
            let points: Vec<f32> = (0..37 * dim).map(|_| rng.random::<f32>() - 0.5).collect();
            let row = |i: usize| &points[i * dim..][..dim];
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                let mut packed = Points::new(37, dim, isa, |range, out| {
                    out.copy_from_slice(&points[range.start * dim..range.end * dim]);
                });
                packed.add_centre(20);
                packed.refresh(0.0);
                packed.add_centre(3);
                let mut near = packed.at_least(0.0);
                near.measure(packed.newest_centre());
                packed.refresh(0.0);
                let again = packed.at_least(0.0);
                assert_eq!(near.indices, (0..37).collect::<Vec<_>>());
                for (i, (near, again)) in near
                    .bounds
                    .iter()
                    .zip(&again.bounds)
                    .flat_map(|(a, b)| a.0.into_iter().zip(b.0))
                    .take(37)
                    .enumerate()
                {
                    let want =
                        squared_distance(row(i), row(20)).min(squared_distance(row(i), row(3)));
                    assert_eq!((near, again), (want, want), "{dim} {}", isa.word());
                }
            }
        }
    }
}
