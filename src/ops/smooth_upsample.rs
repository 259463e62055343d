//! From patch distances to an anomaly map: bilinear upsampling (pixel centres aligned) and Gaussian
//! smoothing in one. Both are linear and act on rows and columns alike, so together they are one
//! small matrix a side, made once: map = V · D · Hᵀ.
//! Letters: h × w patches, H × W the map.

use super::feature_map::{Buffer, Frozen, Shared};
use super::gaussian::Gaussian;
use super::interpolate::{Align, bilinear_planes};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Rows of the map that a thread takes at once.
const CHUNK: usize = 16;

/// Blocks of 16 columns whose sums are kept in registers at once.
const COLUMNS: usize = 4;

/// The two matrices for one size.
pub struct SmoothUpsample {
    isa: Isa,
    from: (usize, usize),
    to: (usize, usize),
    vertical: Vec<f32>, // [H, h]
    horizontal: Frozen, // [w, W in whole blocks]
    /// A row of V · D for each thread.
    rows: Buffer, // [threads, w in whole blocks]
    threads: usize,
}

impl SmoothUpsample {
    /// From `from` = (h, w) to `to` = (H, W), smoothed with `sigma` places of the map.
    pub fn new(
        isa: Isa,
        threads: usize,
        from: (usize, usize),
        to: (usize, usize),
        sigma: f32,
    ) -> Self {
        let width = to.1.div_ceil(LANES) * LANES;
        let mut horizontal = Buffer::zeroed(from.1 * width);
        for (x, row) in matrix(from.1, to.1, sigma).chunks(from.1).enumerate() {
            for (i, weight) in row.iter().enumerate() {
                horizontal.as_mut_slice()[i * width + x] = *weight;
            }
        }
        Self {
            isa,
            from,
            to,
            vertical: matrix(from.0, to.0, sigma),
            horizontal: horizontal.into(),
            rows: Buffer::zeroed(threads * from.1.div_ceil(LANES) * LANES),
            threads,
        }
    }

    /// `distances` [h, w] → `map` [H, W].
    ///
    /// # Panics
    /// If either has another size, or the team more threads than this was made for.
    pub fn run(&mut self, team: &Team, distances: &[f32], map: &mut [f32]) {
        assert_eq!(distances.len(), self.from.0 * self.from.1, "patches of {:?}", self.from);
        assert_eq!(map.len(), self.to.0 * self.to.1, "a map of {:?}", self.to);
        assert!(team.threads() <= self.threads, "made for {} threads", self.threads);
        let stride = self.rows.len() / self.threads;
        let out = Shared((map.as_mut_ptr(), self.rows.as_ptr()));
        let (this, width) = (&Shared(&*self), self.to.1);
        team.chunks(self.to.0, CHUNK, |thread, from, to| {
            let (map, rows) = out.get();
            let this = this.get();
            for y in from..to {
                // SAFETY: row y of the map and the work row of this thread; no other has them.
                let (row, work) = unsafe {
                    (
                        std::slice::from_raw_parts_mut(map.add(y * width), width),
                        std::slice::from_raw_parts_mut(rows.add(thread * stride), stride),
                    )
                };
                let weights = &this.vertical[y * this.from.0..][..this.from.0];
                let horizontal = this.horizontal.as_slice();
                this.isa.run(Row {
                    weights,
                    distances,
                    patches: this.from.1,
                    horizontal,
                    work,
                    row,
                });
            }
        });
    }
}

/// What upsampling and smoothing make of each of `from` places: [to, from].
fn matrix(from: usize, to: usize, sigma: f32) -> Vec<f32> {
    let mut matrix = vec![0.0; to * from];
    let mut blur = Gaussian::new(sigma);
    for i in 0..from {
        let mut one = vec![0.0; from];
        one[i] = 1.0;
        let mut line = bilinear_planes(&one, (1, from), (1, to), Align::HalfPixel);
        blur.blur(&mut line, to);
        for (y, value) in line.into_iter().enumerate() {
            matrix[y * from + i] = value;
        }
    }
    matrix
}

/// One row of the map.
struct Row<'a> {
    weights: &'a [f32],    // [h]
    distances: &'a [f32],  // [h, w]
    patches: usize,        // w
    horizontal: &'a [f32], // [w, W in whole blocks]
    work: &'a mut [f32],   // [w in whole blocks]
    row: &'a mut [f32],    // [W]
}

impl Kernel for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let work = &mut self.work[..self.patches];
        work.fill(0.0);
        for (weight, line) in self.weights.iter().zip(self.distances.chunks_exact(self.patches)) {
            // Rows further away than the smoothing reaches add nothing.
            if *weight != 0.0 {
                for (sum, distance) in work.iter_mut().zip(line) {
                    *sum += weight * distance;
                }
            }
        }
        let stride = self.row.len().div_ceil(LANES) * LANES;
        for (block, row) in self.row.chunks_mut(COLUMNS * LANES).enumerate() {
            let first = block * COLUMNS * LANES;
            let blocks = row.len().div_ceil(LANES);
            let mut sums = [s.zero(); COLUMNS];
            for (value, weights) in work.iter().zip(self.horizontal.chunks_exact(stride)) {
                let value = s.splat(*value);
                for (sum, weights) in sums.iter_mut().zip(weights[first..].chunks_exact(LANES)) {
                    // SAFETY: 16 numbers of the slice.
                    *sum = s.mul_add(value, unsafe { s.load(weights.as_ptr()) }, *sum);
                }
            }
            for (sum, row) in sums.into_iter().zip(row.chunks_mut(LANES)).take(blocks) {
                row.copy_from_slice(&s.to_array(sum)[..row.len()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_upsampling_and_then_smoothing() {
        struct Case((usize, usize), (usize, usize), f32);
        let cases = [
            Case((32, 32), (256, 256), 4.0),
            Case((12, 9), (96, 72), 4.0),
            Case((3, 5), (17, 33), 1.5),
            Case((1, 1), (7, 2), 4.0),
            Case((8, 8), (64, 64), 0.0),
        ];
        for Case(from, to, sigma) in cases {
            let distances: Vec<f32> =
                (0..from.0 * from.1).map(|i| 2.0 + (i as f32 * 0.7).sin()).collect();
            let mut want = bilinear_planes(&distances, from, to, Align::HalfPixel);
            Gaussian::new(sigma).blur(&mut want, to.1);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                for threads in [1, 2] {
                    let mut both = SmoothUpsample::new(isa, threads, from, to, sigma);
                    let mut map = vec![f32::NAN; to.0 * to.1];
                    both.run(&Team::new(threads, false).unwrap(), &distances, &mut map);
                    for (got, want) in map.iter().zip(&want) {
                        // weighted means of values up to 3, summed in another order
                        assert!((got - want).abs() < 3e-6, "{from:?} {to:?}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn nan_is_seen_in_the_map() {
        let mut distances = vec![1.0; 64];
        distances[10] = f32::NAN;
        let mut map = vec![0.0; 64 * 64];
        SmoothUpsample::new(Isa::Portable, 1, (8, 8), (64, 64), 4.0).run(
            &Team::alone(),
            &distances,
            &mut map,
        );
        assert!(map[10 * 64 + 18].is_nan());
    }
}
