//! Short vectors that are never farther apart than the long ones they stand for.
//! Letters: N prototypes, D dimensions, K dimensions of a sketch, R vectors at once.
//!
//! With the mean m taken off and W the matrix of K − 1 orthonormal directions of largest variance,
//! φ(x) = (W(x − m), |x − m − WᵀW(x − m)|) brings no two points farther apart: both parts are
//! lengths of the parts of a vector along W and across it, and the length across obeys the triangle
//! inequality. Patch features vary in few directions (a quarter of them hold 97 % on bottle), so
//! |φ(q) − φ(p)| says of nearly all prototypes that they are too far. Where the variance is spread
//! over all directions, φ(x) is x − m.

use super::panels::{Grain, Panels};
use super::{UNIT, norm2};
use crate::ops::simd::Isa;

/// What may be left across the directions, of the variance: where twice as many directions would
/// leave out few prototypes more.
const ACROSS: f64 = 0.04;

/// K is a multiple of it: the sums of a product begin and end once for as many dimensions.
const STEP: usize = 32;

/// Prototypes whose variance is looked at: evenly drawn from all.
const SAMPLE: usize = 2048;

/// Rounds of the orthogonal iteration (Golub & Van Loan 2013, section 8.2.4): any directions are
/// right, better ones make a faster search, and these are near the best.
const ROUNDS: usize = 6;

/// φ.
#[derive(Debug)]
pub(super) struct Sketch {
    mean: Vec<f32>,
    grain: Grain,
    directions: Option<Directions>,
}

#[derive(Debug)]
struct Directions {
    panels: Panels, // [K − 1, D]
    count: usize,
    /// Bound of the error of W(x − m) over |x − m|.
    error: f64,
}

/// Length and error of one sketch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drawn {
    /// |sketch|².
    pub norm2: f64,
    /// |φ(x) − sketch|, not less.
    pub error: f64,
}

/// Memory that sketching needs.
#[derive(Debug)]
pub(super) struct Desk {
    row: Vec<f32>,      // [D]
    centred: Vec<f32>,  // [D][R]
    products: Vec<f32>, // [R][⌈(K − 1)/W⌉ · W]
}

impl Sketch {
    /// For the prototypes `rows` [N, D].
    pub fn new(rows: &[f32], dim: usize, isa: Isa) -> Self {
        let count = rows.len() / dim;
        let mut sums = vec![0f64; dim];
        for row in rows.chunks_exact(dim) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let mean: Vec<f32> = sums.iter().map(|sum| (sum / count as f64) as f32).collect();
        let every = count.div_ceil(SAMPLE);
        let sample: Vec<f32> = rows
            .chunks_exact(dim)
            .step_by(every)
            .flat_map(|row| row.iter().zip(&mean).map(|(x, mean)| x - mean))
            .collect();
        let directions = directions(&sample, dim, dim / 2);
        let directions = directions.map(|rows| Directions::new(&rows, dim, isa));
        Self { mean, grain: Grain::of(isa), directions }
    }

    /// K.
    pub fn dims(&self) -> usize {
        self.directions.as_ref().map_or(self.mean.len(), |directions| directions.count + 1)
    }

    /// R.
    pub fn vectors(&self) -> usize {
        self.grain.vectors
    }

    pub fn desk(&self) -> Desk {
        let vectors = self.grain.vectors;
        let lanes = |directions: &Directions| directions.panels.count() * self.grain.width;
        Desk {
            row: vec![0.0; self.mean.len()],
            centred: vec![0.0; self.mean.len() * vectors],
            products: vec![0.0; vectors * self.directions.as_ref().map_or(0, lanes)],
        }
    }

    /// Sketches of `xs`, at most R vectors `[D]`, → `out` `[R][stride]` with `stride` ≥ K, of which
    /// the first K are written, and `drawn` `[R]`.
    pub fn draw<'a>(
        &self,
        xs: impl Iterator<Item = &'a [f32]>,
        desk: &mut Desk,
        out: &mut [f32],
        stride: usize,
        drawn: &mut [Drawn],
    ) {
        let vectors = self.grain.vectors;
        let mut count = 0;
        for (r, x) in xs.take(vectors).enumerate() {
            count = r + 1;
            desk.row.iter_mut().zip(x.iter().zip(&self.mean)).for_each(|(c, (x, m))| *c = x - m);
            let norm2 = norm2(&desk.row);
            if self.directions.is_some() {
                let places = desk.centred[r..].iter_mut().step_by(vectors);
                places.zip(&desk.row).for_each(|(place, x)| *place = *x);
            } else {
                out[r * stride..][..desk.row.len()].copy_from_slice(&desk.row);
            }
            // The difference is rounded once; twice that, for the sum as well.
            drawn[r] = Drawn { norm2, error: 2.0 * f64::from(UNIT) * norm2.sqrt() };
        }
        let Some(directions) = &self.directions else { return };
        directions.panels.multiply(&desk.centred, &mut desk.products);
        let products = desk.products.chunks_exact(desk.products.len() / vectors);
        for ((products, out), drawn) in
            products.zip(out.chunks_mut(stride)).zip(&mut drawn[..count])
        {
            let along = &products[..directions.count];
            let (out, across_at) = out.split_at_mut(directions.count);
            out.copy_from_slice(along);
            let whole2 = drawn.norm2;
            let off = directions.error * whole2.sqrt();
            let along2 = norm2(along);
            // The length along W is off by no more than W(x − m) is, so that across lies between:
            let across = |along: f64| (whole2 - along.max(0.0).powi(2)).max(0.0).sqrt();
            let (least, most) = (across(along2.sqrt() + off), across(along2.sqrt() - off));
            let middle = (0.5 * (least + most)) as f32;
            across_at[0] = middle;
            let half = 0.5 * (most - least) + f64::from(UNIT) * most;
            drawn.error += (off * off + half * half).sqrt() * (1.0 + 1e-9);
            drawn.norm2 = along2 + f64::from(middle).powi(2);
        }
    }
}

impl Directions {
    fn new(rows: &[f32], dim: usize, isa: Isa) -> Self {
        let count = rows.len() / dim;
        // How far the rows V are from orthonormal: with W the orthonormal ones of the same span that
        // are nearest, V = S·W, |S − 1| ≤ |S² − 1| = |VVᵀ − 1| ≤ its root of summed squares.
        let mut off2 = 0f64;
        for (i, a) in rows.chunks_exact(dim).enumerate() {
            for (j, b) in rows[..(i + 1) * dim].chunks_exact(dim).enumerate() {
                let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let (want, times) = if i == j { (1.0, 1.0) } else { (0.0, 2.0) };
                off2 += times * (dot - want) * (dot - want);
            }
        }
        // Each of the K − 1 products is off by D·u·|x − m| and a little, as in `Bound`.
        let product = (dim + 8) as f64 * f64::from(UNIT) * (1.0 + off2.sqrt());
        let error = 1.01 * (off2.sqrt() + product * (count as f64).sqrt());
        Self { panels: Panels::new(rows, dim, vec![0.0; count], isa), count, error }
    }
}

/// The fewest directions [·, D] that leave no more than [`ACROSS`] of the variance of `sample`
/// [·, D], or none where more than `most` are needed.
fn directions(sample: &[f32], dim: usize, most: usize) -> Option<Vec<f32>> {
    let most = (most / STEP * STEP).checked_sub(1)?;
    let mut covariance = vec![0f32; dim * dim];
    for row in sample.chunks_exact(dim) {
        for (x, line) in row.iter().zip(covariance.chunks_exact_mut(dim)) {
            line.iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let whole: f64 = covariance.iter().step_by(dim + 1).map(|x| f64::from(*x)).sum();
    if whole <= 0.0 || !whole.is_finite() {
        return None;
    }
    // Any start that is not at right angles to what is sought: the sample's rows are none.
    let mut basis: Vec<f32> = sample.iter().copied().cycle().take(most * dim).collect();
    let mut image = vec![0f32; basis.len()];
    orthonormalise(&mut basis, dim);
    for _ in 0..ROUNDS {
        multiply(&basis, &covariance, dim, &mut image);
        std::mem::swap(&mut basis, &mut image);
        orthonormalise(&mut basis, dim);
    }
    multiply(&basis, &covariance, dim, &mut image);
    let mut along = 0f64;
    let pairs = basis.chunks_exact(dim).zip(image.chunks_exact(dim));
    for (i, (v, image)) in pairs.enumerate() {
        along += f64::from(v.iter().zip(image).map(|(a, b)| a * b).sum::<f32>());
        if (i + 2).is_multiple_of(STEP) && along >= (1.0 - ACROSS) * whole {
            basis.truncate((i + 1) * dim);
            // Without the zero ones, which are not of length 1.
            let kept = basis.chunks_exact(dim).filter(|row| row.iter().any(|x| *x != 0.0));
            return Some(kept.flatten().copied().collect());
        }
    }
    None
}

/// `rows` [·, D] times a symmetric `matrix` [D, D].
fn multiply(rows: &[f32], matrix: &[f32], dim: usize, out: &mut [f32]) {
    out.fill(0.0);
    for (row, out) in rows.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        for (x, line) in row.iter().zip(matrix.chunks_exact(dim)) {
            out.iter_mut().zip(line).for_each(|(out, y)| *out += x * y);
        }
    }
}

/// Makes `rows` orthonormal, the first ones changed least (Gram–Schmidt, twice over, since once
/// leaves them as far from it as their angles are small). A row that the ones before it span becomes
/// zero and adds nothing.
fn orthonormalise(rows: &mut [f32], dim: usize) {
    for i in 0..rows.len() / dim {
        let (before, rest) = rows.split_at_mut(i * dim);
        let row = &mut rest[..dim];
        let start = norm2(row).sqrt() as f32;
        for _ in 0..2 {
            for other in before.chunks_exact(dim) {
                let mut lanes = [0f32; 16];
                let (a, b) = (row.as_chunks::<16>(), other.as_chunks::<16>());
                for (a, b) in a.0.iter().zip(b.0) {
                    (0..16).for_each(|i| lanes[i] += a[i] * b[i]);
                }
                let rest: f32 = a.1.iter().zip(b.1).map(|(a, b)| a * b).sum();
                let dot = lanes.iter().sum::<f32>() + rest;
                row.iter_mut().zip(other).for_each(|(x, y)| *x -= dot * y);
            }
        }
        let norm = norm2(row).sqrt() as f32;
        // Of what is left of a spanned row, its direction is rounding.
        let scale = if norm > 1e-4 * start && norm > 0.0 { 1.0 / norm } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Sketches of `rows` [N, D] one behind the other, with their errors.
    fn sketches(sketch: &Sketch, rows: &[f32], dim: usize) -> Vec<(Vec<f64>, f64)> {
        let dims = sketch.dims();
        let mut desk = sketch.desk();
        let mut out = vec![0.0; dims * sketch.vectors()];
        let mut drawn = vec![Drawn::default(); sketch.vectors()];
        let mut all = Vec::new();
        for rows in rows.chunks(dim * sketch.vectors()) {
            sketch.draw(rows.chunks(dim), &mut desk, &mut out, dims, &mut drawn);
            for (own, drawn) in out.chunks(dims).zip(&drawn).take(rows.len() / dim) {
                let own: Vec<f64> = own.iter().map(|&x| f64::from(x)).collect();
                let norm2: f64 = own.iter().map(|x| x * x).sum();
                assert!((norm2 - drawn.norm2).abs() <= 1e-9 * norm2);
                all.push((own, drawn.error));
            }
        }
        all
    }

    #[test]
    fn sketches_are_never_farther_apart_than_what_they_stand_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (dim, steps, size) in [(5, 5, 1.0), (96, 3, 1.0), (130, 6, 1e-6), (130, 2, 1e9)] {
            // Steps between few corners, and noise of different size.
            let corners: Vec<f32> = (0..steps * dim).map(|_| size * rng.random::<f32>()).collect();
            let mut rows = Vec::new();
            for i in 0..150 {
                let corner = &corners[i % steps * dim..][..dim];
                let noise = size * [0.0, 1e-4, 0.1][i % 3];
                rows.extend(corner.iter().map(|x| x + noise * rng.random::<f32>()));
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                let sketch = Sketch::new(&rows, dim, isa);
                assert!(sketch.dims() <= if dim < 96 { dim } else { 32 }, "{}", sketch.dims());
                let all = sketches(&sketch, &rows, dim);
                for (i, (a, a_error)) in all.iter().enumerate() {
                    for (j, (b, b_error)) in all.iter().enumerate() {
                        let (x, y) = (&rows[i * dim..][..dim], &rows[j * dim..][..dim]);
                        let apart = |a: f64, b: f64| (a - b).powi(2);
                        let pairs = x.iter().zip(y);
                        let whole: f64 = pairs.map(|(a, b)| apart((*a).into(), (*b).into())).sum();
                        let short: f64 = a.iter().zip(b).map(|(a, b)| apart(*a, *b)).sum();
                        let bound = whole.sqrt() + a_error + b_error;
                        assert!(short.sqrt() <= bound * (1.0 + 1e-9), "{short} {whole}");
                    }
                }
            }
        }
    }
}
