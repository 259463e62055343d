//! Batch norm while a network learns, with the sum and the ReLU that follow it:
//! y = relu(γ·(x − μ)/√(σ² + ε) + β + residual), where μ and σ² are those of the batch or fixed.
//!
//! With g the gradient behind the ReLU, dβ = Σ g and dγ = Σ g·(x − μ)/√(σ² + ε) over the n places of a
//! channel, and dx = γ/√(σ² + ε)·(g − dβ/n − (x − μ)/√(σ² + ε)·dγ/n), or the first term alone where
//! the statistics are fixed (Ioffe and Szegedy 2015).
//!
//! Sums are made in pieces of a few rows that the shape alone decides, each of which stays in a core's
//! first cache while its deviations from its own mean are summed; pieces are put together in f64 and
//! in their order (Chan, Golub and LeVeque 1979). So no result depends on the number of threads. A few
//! blocks of channels at a time are summed and then written, while they are still in a cache.

mod passes;
#[cfg(test)]
mod tests;

use passes::{Deviations, Gate, GradientSums, Gradients, Normalise, OfNorm, OfY, Open};

use super::accumulate::Accumulate;
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::rows::helping;
use crate::ops::simd::{Isa, LANES};
use crate::ops::team::Team;

/// Added to every variance.
pub const EPSILON: f64 = 1e-5;

/// Places of a piece: 32 KiB of each map.
const PLACES_A_PIECE: usize = 512;

/// Bytes of one map that are summed before they are written: with the other maps of a pass, within a
/// core's second cache or not far outside.
const BYTES_AT_ONCE: usize = 1 << 20;

/// A batch norm of maps of one shape, and what it keeps on the way forward for the way back.
#[derive(Debug)]
pub struct BatchNorm {
    isa: Isa,
    cut: Cut,
    /// How it went forward last: with fixed statistics, with a residual.
    fixed: bool,
    with_residual: bool,
    mean: Vec<f32>,
    variance: Vec<f32>,
    /// For each block of channels the rows of [`row`], 16 numbers each.
    coefficients: Buffer,
    /// For each piece of the blocks at hand three rows of 16.
    partials: Buffer,
}

/// What a batch norm normalises with.
#[derive(Clone, Copy, Debug)]
pub enum Statistics<'a> {
    /// The batch's own mean and (biased) variance.
    Batch,
    /// Others, such as the running ones `[C]`.
    Fixed { mean: &'a [f32], variance: &'a [f32] },
}

/// The way forward. `y` may be `residual`, and where no gradient will be asked for, `x`.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    pub statistics: Statistics<'a>,
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub x: FeatureMap<'a>,
    /// Added before the ReLU.
    pub residual: Option<FeatureMap<'a>>,
    pub relu: bool,
    pub y: FeatureMap<'a>,
}

/// How the way back knows where the ReLU was open.
#[derive(Clone, Copy)]
pub enum Relu<'a> {
    /// There was none.
    Absent,
    /// It followed the batch norm with no residual between: x tells.
    OfNorm,
    /// Where this, the result, is above zero.
    Of(FeatureMap<'a>),
}

/// The way back. `dx` and the residual's gradient may be `dy`, but not one map.
#[derive(Clone, Copy)]
pub struct Backward<'a> {
    pub x: FeatureMap<'a>,
    pub relu: Relu<'a>,
    pub dy: FeatureMap<'a>,
    pub residual: Option<(Accumulate, FeatureMap<'a>)>,
    pub into: Accumulate,
    pub dx: FeatureMap<'a>,
}

/// Rows of [`BatchNorm::coefficients`]: the mean; γ/√(σ² + ε), and β − μ times that; what dx has for
/// each unit of x − μ, and without one.
mod row {
    pub const MEAN: usize = 0;
    pub const SCALE: usize = 1;
    pub const SHIFT: usize = 2;
    pub const SLOPE: usize = 3;
    pub const OFFSET: usize = 4;
    pub const COUNT: usize = 5;
}

/// How maps are cut into pieces: a few rows of a plane each.
#[derive(Clone, Copy, Debug)]
struct Cut {
    shape: Shape,
    /// Rows of a piece, and pieces of a plane.
    rows: usize,
    pieces: usize,
    /// Blocks that are summed before they are written.
    blocks_at_once: usize,
}

/// Piece by piece: (block, picture, first row).
impl Cut {
    fn new(shape: Shape) -> Self {
        let rows = (PLACES_A_PIECE / shape.width.max(1)).clamp(1, shape.height);
        let bytes = shape.images * shape.places() * LANES * size_of::<f32>();
        let blocks_at_once = (BYTES_AT_ONCE / bytes).clamp(1, shape.blocks());
        Self { shape, rows, pieces: shape.height.div_ceil(rows), blocks_at_once }
    }

    /// Pieces of a block of channels.
    fn of_block(&self) -> usize {
        self.shape.images * self.pieces
    }

    /// Block (counted from the first at hand), picture, first row and rows of piece `i`.
    #[inline(always)]
    fn at(&self, i: usize) -> (usize, usize, usize, usize) {
        let (plane, first) = (i / self.pieces, i % self.pieces * self.rows);
        let (block, image) = (plane / self.shape.images, plane % self.shape.images);
        (block, image, first, self.rows.min(self.shape.height - first))
    }
}

impl BatchNorm {
    /// For maps of `shape`.
    ///
    /// # Panics
    /// If it has no places or channels.
    pub fn new(isa: Isa, shape: Shape) -> Self {
        assert!(shape.images * shape.channels * shape.places() > 0, "{shape:?}");
        let cut = Cut::new(shape);
        Self {
            isa,
            cut,
            fixed: false,
            with_residual: false,
            mean: vec![0.0; shape.channels],
            variance: vec![0.0; shape.channels],
            coefficients: Buffer::zeroed(shape.blocks() * row::COUNT * LANES),
            partials: Buffer::zeroed(cut.blocks_at_once * cut.of_block() * 3 * LANES),
        }
    }

    /// Places of a channel that the statistics are of.
    pub fn count(&self) -> usize {
        self.cut.shape.images * self.cut.shape.places()
    }

    /// `[C]`, those that x was normalised with or that [`BatchNorm::measure`] found.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// `[C]`, biased.
    pub fn variance(&self) -> &[f32] {
        &self.variance
    }

    /// The batch's statistics, and nothing else.
    ///
    /// # Panics
    /// If `x` has another shape.
    pub fn measure(&mut self, team: &Team, x: FeatureMap<'_>) {
        assert_eq!(x.shape(), self.cut.shape, "the argument of a batch norm");
        for first in (0..self.cut.shape.blocks()).step_by(self.cut.blocks_at_once) {
            self.measure_blocks(team, x, first);
        }
    }

    /// # Panics
    /// If shapes or lengths do not fit, or `y` shares only a part with another map.
    pub fn forward(&mut self, team: &Team, forward: Forward<'_>) {
        let (cut, isa) = (self.cut, self.isa);
        let Forward { statistics, gamma, beta, x, residual, relu, y } = forward;
        assert_eq!(x.shape(), cut.shape, "the argument of a batch norm");
        assert_eq!((gamma.len(), beta.len()), (cut.shape.channels, cut.shape.channels), "γ and β");
        for map in [Some(x), residual].into_iter().flatten() {
            assert_eq!(map.shape(), y.shape(), "the result of a batch norm");
            assert!(y.is_or_is_apart_from(&map), "the result shares a part with an argument");
        }
        self.with_residual = residual.is_some();
        self.fixed = match statistics {
            Statistics::Batch => false,
            Statistics::Fixed { mean, variance } => {
                self.mean.copy_from_slice(mean);
                self.variance.copy_from_slice(variance);
                true
            }
        };
        for first in (0..cut.shape.blocks()).step_by(cut.blocks_at_once) {
            if !self.fixed {
                self.measure_blocks(team, x, first);
            }
            self.set_scales(first, gamma, beta);
            let coefficients = self.coefficients.as_ptr().cast_const();
            let shared = Shared((x, residual, y, coefficients));
            self.pieces(team, first, 2, |from, to| {
                let (x, residual, y, coefficients) = shared.get();
                isa.run(Normalise { cut, first, coefficients, x, residual, relu, y, from, to });
            });
        }
    }

    /// The gradients of what went [`BatchNorm::forward`] last: of γ and β, if they are asked for, into
    /// `[C]` each, and of the maps.
    ///
    /// # Panics
    /// If shapes or lengths do not fit, or a gradient shares memory with a map that it may not.
    pub fn backward(
        &mut self,
        team: &Team,
        backward: Backward<'_>,
        parameters: Option<(&mut [f32], &mut [f32])>,
    ) {
        backward.check(self.cut.shape);
        let known = !self.with_residual || !matches!(backward.relu, Relu::OfNorm);
        assert!(known, "where a ReLU behind a residual was open, the batch norm can't tell");
        let sums = !self.fixed || parameters.is_some() || backward.residual.is_some();
        let (mut d_gamma, mut d_beta) = parameters.unzip();
        for slice in [&d_gamma, &d_beta].into_iter().flatten() {
            assert_eq!(slice.len(), self.cut.shape.channels, "the gradient of γ or β");
        }
        for first in (0..self.cut.shape.blocks()).step_by(self.cut.blocks_at_once) {
            if sums {
                match backward.relu {
                    Relu::Absent => self.sum_gradients(team, first, backward, Open),
                    Relu::OfNorm => self.sum_gradients(team, first, backward, OfNorm),
                    Relu::Of(y) => self.sum_gradients(team, first, backward, OfY(y)),
                }
                self.join_gradients(first, d_gamma.as_deref_mut(), d_beta.as_deref_mut());
            }
            // Where the residual's gradient was set, it is g.
            match (backward.residual, backward.relu) {
                (Some((Accumulate::Set, g)), _) => {
                    self.write_gradients(team, first, Backward { dy: g, ..backward }, Open);
                }
                (_, Relu::Absent) => self.write_gradients(team, first, backward, Open),
                (_, Relu::OfNorm) => self.write_gradients(team, first, backward, OfNorm),
                (_, Relu::Of(y)) => self.write_gradients(team, first, backward, OfY(y)),
            }
        }
    }

    /// The pieces of the blocks at hand, shared out; `streams` maps are read or written of each.
    fn pieces(
        &self,
        team: &Team,
        first: usize,
        streams: usize,
        work: impl Fn(usize, usize) + Sync,
    ) {
        let cut = self.cut;
        let count = self.blocks_from(first) * cut.of_block();
        let len = streams * cut.rows * cut.shape.width * LANES;
        team.chunks(count, helping(team, count, len), |_, from, to| work(from, to));
    }

    /// Blocks at hand if `first` is the first.
    fn blocks_from(&self, first: usize) -> usize {
        self.cut.blocks_at_once.min(self.cut.shape.blocks() - first)
    }

    fn measure_blocks(&mut self, team: &Team, x: FeatureMap<'_>, first: usize) {
        let (cut, isa) = (self.cut, self.isa);
        let shared = Shared((x, self.partials.as_ptr()));
        self.pieces(team, first, 1, |from, to| {
            let (x, partials) = shared.get();
            isa.run(Deviations { cut, first, x, partials, from, to });
        });
        let n = self.count() as f64;
        for block in 0..self.blocks_from(first) {
            let (mut sums, mut squares) = ([0.0; LANES], [0.0; LANES]);
            for (count, [mean, off, _]) in self.block_partials(block) {
                for lane in 0..LANES {
                    sums[lane] += count * f64::from(mean[lane]) + f64::from(off[lane]);
                }
            }
            let mean = sums.map(|sum| sum / n);
            for (count, [own, off, square]) in self.block_partials(block) {
                for lane in 0..LANES {
                    // Σ(x − μ)² from the sums about the piece's own mean.
                    let apart = f64::from(own[lane]) - mean[lane];
                    let twice = 2.0 * apart * f64::from(off[lane]);
                    squares[lane] += f64::from(square[lane]) + twice + count * apart * apart;
                }
            }
            let channels = self.channels_of(first + block);
            for (lane, c) in channels.enumerate() {
                self.mean[c] = mean[lane] as f32;
                self.variance[c] = (squares[lane] / n) as f32;
            }
        }
    }

    fn channels_of(&self, block: usize) -> std::ops::Range<usize> {
        block * LANES..((block + 1) * LANES).min(self.cut.shape.channels)
    }

    /// Places and the three sums of each piece of a block at hand.
    fn block_partials(&mut self, block: usize) -> impl Iterator<Item = (f64, [&[f32]; 3])> {
        let (cut, len) = (self.cut, self.cut.of_block());
        let own = &self.partials.as_mut_slice()[block * len * 3 * LANES..][..len * 3 * LANES];
        own.chunks(3 * LANES).enumerate().map(move |(i, sums)| {
            let (_, _, _, rows) = cut.at(i);
            let sums = [&sums[..LANES], &sums[LANES..2 * LANES], &sums[2 * LANES..]];
            ((rows * cut.shape.width) as f64, sums)
        })
    }

    /// Row `row` of the coefficients of `block`.
    fn coefficients(&mut self, block: usize, row: usize) -> &mut [f32] {
        let from = (block * row::COUNT + row) * LANES;
        &mut self.coefficients.as_mut_slice()[from..from + LANES]
    }

    fn set_scales(&mut self, first: usize, gamma: &[f32], beta: &[f32]) {
        for block in first..first + self.blocks_from(first) {
            for (lane, c) in self.channels_of(block).enumerate() {
                let mean = self.mean[c];
                let scale = f64::from(gamma[c]) / (f64::from(self.variance[c]) + EPSILON).sqrt();
                let shift = f64::from(beta[c]) - f64::from(mean) * scale;
                self.coefficients(block, row::MEAN)[lane] = mean;
                self.coefficients(block, row::SCALE)[lane] = scale as f32;
                self.coefficients(block, row::SHIFT)[lane] = shift as f32;
            }
        }
    }

    fn sum_gradients(&self, team: &Team, first: usize, backward: Backward<'_>, gate: impl Gate) {
        let (cut, isa) = (self.cut, self.isa);
        let coefficients = self.coefficients.as_ptr().cast_const();
        let shared = Shared((backward, gate, coefficients, self.partials.as_ptr()));
        self.pieces(team, first, 3, |from, to| {
            let (backward, gate, coefficients, partials) = shared.get();
            isa.run(GradientSums { cut, first, backward, gate, coefficients, partials, from, to });
        });
    }

    fn write_gradients(&self, team: &Team, first: usize, backward: Backward<'_>, gate: impl Gate) {
        let (cut, isa, fixed) = (self.cut, self.isa, self.fixed);
        let coefficients = self.coefficients.as_ptr().cast_const();
        let shared = Shared((backward, gate, coefficients));
        self.pieces(team, first, 4, |from, to| {
            let (backward, gate, coefficients) = shared.get();
            isa.run(Gradients { cut, first, backward, gate, fixed, coefficients, from, to });
        });
    }

    /// Puts the pieces' sums together.
    fn join_gradients(
        &mut self,
        first: usize,
        mut d_gamma: Option<&mut [f32]>,
        mut d_beta: Option<&mut [f32]>,
    ) {
        let n = self.count() as f64;
        for block in 0..self.blocks_from(first) {
            // Σ g and Σ g·(x − μ).
            let mut sums = [[0.0; LANES]; 2];
            for (_, partials) in self.block_partials(block) {
                for (sums, partials) in sums.iter_mut().zip(partials) {
                    for (sum, partial) in sums.iter_mut().zip(partials) {
                        *sum += f64::from(*partial);
                    }
                }
            }
            let [alone, with_x] = sums;
            for (lane, c) in self.channels_of(first + block).enumerate() {
                let inverse = 1.0 / (f64::from(self.variance[c]) + EPSILON).sqrt();
                if let Some(d_gamma) = d_gamma.as_deref_mut() {
                    d_gamma[c] = (with_x[lane] * inverse) as f32;
                }
                if let Some(d_beta) = d_beta.as_deref_mut() {
                    d_beta[c] = alone[lane] as f32;
                }
                let scale = f64::from(self.coefficients(first + block, row::SCALE)[lane]);
                let slope = -scale * inverse * inverse * with_x[lane] / n;
                self.coefficients(first + block, row::SLOPE)[lane] = slope as f32;
                let offset = -scale * alone[lane] / n;
                self.coefficients(first + block, row::OFFSET)[lane] = offset as f32;
            }
        }
    }
}

impl Backward<'_> {
    fn check(&self, shape: Shape) {
        let Self { x, relu, dy, residual, into, dx } = *self;
        let mask = match relu {
            Relu::Of(y) => Some(y),
            Relu::Absent | Relu::OfNorm => None,
        };
        let read = [Some(x), Some(dy), mask];
        for map in read.into_iter().chain([Some(dx), residual.map(|to| to.1)]).flatten() {
            assert_eq!(map.shape(), shape, "a map of a batch norm's gradient");
        }
        for (into, to) in [Some((into, dx)), residual].into_iter().flatten() {
            for from in read.into_iter().flatten() {
                let apart = match into {
                    Accumulate::Set => to.is_or_is_apart_from(&from),
                    Accumulate::Add => !to.overlaps(&from),
                };
                assert!(apart, "a gradient shares a part with an argument");
            }
        }
        if let Some((_, g)) = residual {
            assert!(!g.overlaps(&dx), "both gradients in one place");
            assert!(!g.overlaps(&x), "the residual's gradient over x, which is still read");
        }
    }
}

/// Running statistics after a batch of `count` places a channel, whose mean and biased variance these
/// are: r + `momentum`·(batch − r), where the batch's variance is unbiased.
///
/// # Panics
/// If lengths differ, or `count` is 1: one number has no unbiased variance.
pub fn update_running(
    [running_mean, running_variance]: [&mut [f32]; 2],
    [mean, variance]: [&[f32]; 2],
    count: usize,
    momentum: f64,
) {
    assert!(count > 1, "a batch norm learns from two places a channel at least");
    let unbiased = count as f64 / (count - 1) as f64;
    move_towards(running_mean, mean, momentum, 1.0);
    move_towards(running_variance, variance, momentum, unbiased);
}

/// EMAN (NTSNet, eq. 5 and 6): the teacher's statistics m·t + (1 − m)·s after a batch of the student's
/// mean and biased variance.
///
/// # Panics
/// If lengths differ.
pub fn update_eman(
    [teacher_mean, teacher_variance]: [&mut [f32]; 2],
    [mean, variance]: [&[f32]; 2],
    m: f64,
) {
    move_towards(teacher_mean, mean, 1.0 - m, 1.0);
    move_towards(teacher_variance, variance, 1.0 - m, 1.0);
}

fn move_towards(own: &mut [f32], batch: &[f32], part: f64, factor: f64) {
    assert_eq!(own.len(), batch.len(), "statistics of other channels");
    for (own, batch) in own.iter_mut().zip(batch) {
        *own = ((1.0 - part) * f64::from(*own) + part * factor * f64::from(*batch)) as f32;
    }
}
