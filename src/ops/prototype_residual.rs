//! The residual of a feature map to its nearest prototype (`Op::PrototypeResidual` of
//! [`crate::nn::graph`], PRN's multi-scale prototypes): |x − p*| with p* that of P prototypes
//! [P, C, H, W] whose squared L2 distance to the whole map x [B, C, H, W] is smallest, ties to the
//! lowest index.
//!
//! Distances are sums of (x − p)², never ‖x‖² + ‖p‖² − 2x·p, which loses near matches to
//! cancellation: f32 along a row of places, f64 from row to row. What is added never lowers a sum,
//! so a prototype is dropped as soon as its part of the distance is above a whole one that is known,
//! and the answer is the same whichever thread is faster. Prototypes are stored side by side and read
//! where they lie; at PRN's sizes the time is that of reading them once.

use std::sync::atomic::{AtomicU64, Ordering};

use super::feature_map::{Buffer, FeatureMap, Shape, Shared};
use super::patch_attention::{claim, first_lanes};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Rows that are summed before a distance is held against the best.
const ROWS_AT_ONCE: usize = 4;

/// P maps of one shape.
pub struct Prototypes {
    /// [P, ⌈C/16⌉, H, W, 16], zero behind the last channel.
    packed: Buffer,
    count: usize,
    /// Of one.
    shape: Shape,
}

impl Prototypes {
    /// From `values` [count, C, H, W].
    ///
    /// # Panics
    /// If there are none, or not as many values.
    pub fn new(
        values: &[f32],
        count: usize,
        (channels, height, width): (usize, usize, usize),
    ) -> Self {
        let mut prototypes = Self::zeros(count, (channels, height, width));
        prototypes.write(values);
        prototypes
    }

    /// # Panics
    /// If there are none.
    pub fn zeros(count: usize, (channels, height, width): (usize, usize, usize)) -> Self {
        let shape = Shape::new(1, channels, height, width);
        let places = shape.places();
        assert!(count > 0 && channels * places > 0, "{count} prototypes of {shape:?}");
        let packed = Buffer::zeroed(count * shape.blocks() * places * LANES);
        Self { packed, count, shape }
    }

    /// Others in the place of these: `values` [P, C, H, W].
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn write(&mut self, values: &[f32]) {
        let (shape, places) = (self.shape, self.shape.places());
        let one = shape.channels * places;
        assert_eq!(values.len(), self.count * one, "{} prototypes of {shape:?}", self.count);
        let packed = self.packed.as_mut_slice().chunks_mut(shape.blocks() * places * LANES);
        for (to, values) in packed.zip(values.chunks(one)) {
            for (c, plane) in values.chunks(places).enumerate() {
                let to = &mut to[c / LANES * places * LANES + c % LANES..];
                to.iter_mut().step_by(LANES).zip(plane).for_each(|(to, value)| *to = *value);
            }
        }
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// Numbers of scratch memory for `images` pictures.
    pub fn scratch_len(&self, images: usize) -> usize {
        // Distances and the best of them are f64.
        2 * images * (self.count + 1)
    }

    /// x [B, C, H, W] → y [B, C, H, W]; `scratch` of [`Prototypes::scratch_len`].
    ///
    /// # Panics
    /// If shapes do not fit, or `y` or `scratch` shares memory with another argument.
    pub fn residual(
        &self,
        team: &Team,
        isa: Isa,
        x: &FeatureMap<'_>,
        scratch: &Buffer,
        y: &FeatureMap<'_>,
    ) {
        let images = x.shape().images;
        assert_eq!(x.shape(), Shape { images, ..self.shape }, "map and prototypes");
        assert_eq!(x.shape(), y.shape(), "residual");
        assert!(!x.overlaps(y), "residual in place");
        let claimed = claim(scratch, self.scratch_len(images), &[x, y]);
        let packed = self.packed.as_ptr();
        // A buffer is aligned for f64: [B] the best, behind it [B, P].
        let best = claimed.cast::<f64>();
        let distances = best.wrapping_add(images);
        for b in 0..images {
            // SAFETY: the first `images` f64 of the scratch memory.
            unsafe { best.add(b).write(f64::INFINITY) };
        }
        let shared = Shared((*x, *y, packed.cast_const(), best.cast::<u64>(), distances));
        let (count, size) = (self.count, self.shape.blocks() * self.shape.places() * LANES);
        team.chunks(count, 1, |_, from, to| {
            let (x, _, packed, best, distances) = shared.get();
            for p in from..to {
                let prototype = packed.wrapping_add(p * size);
                isa.run(Distances { x, prototype, p, count, best, distances });
            }
        });
        let rows = self.shape.blocks() * self.shape.height;
        for b in 0..images {
            // SAFETY: picture b's distances; each was written by the job of its prototype.
            let own = unsafe { std::slice::from_raw_parts(distances.add(b * count), count) };
            let nearest = (0..count).fold(0, |best, p| if own[p] < own[best] { p } else { best });
            team.chunks(rows, rows.div_ceil(4 * team.threads()), |_, from, to| {
                let (x, y, packed, ..) = shared.get();
                let prototype = packed.wrapping_add(nearest * size);
                isa.run(Residual { x, y, b, prototype, from, to });
            });
        }
    }
}

/// The distances of all pictures to prototype `p`, or infinity where it can't be the nearest.
struct Distances<'a> {
    x: FeatureMap<'a>,
    /// [⌈C/16⌉, H, W, 16]
    prototype: *const f32,
    p: usize,
    count: usize,
    /// `[B]`, the bits of the smallest distance found so far: those of numbers ≥ 0 are in their
    /// order.
    best: *mut u64,
    /// `[B, P]`
    distances: *mut f64,
}

impl Kernel for Distances<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.x.shape();
        let rows = shape.blocks() * shape.height;
        let of = |b: usize| self.distances.wrapping_add(b * self.count + self.p);
        for b in 0..shape.images {
            // SAFETY: this job alone has column p of the distances.
            unsafe { of(b).write(0.0) };
        }
        for from in (0..rows).step_by(ROWS_AT_ONCE) {
            let to = (from + ROWS_AT_ONCE).min(rows);
            let mut left = false;
            for b in 0..shape.images {
                // SAFETY: as above; the best are touched as atomics only while jobs run.
                let (distance, best) =
                    unsafe { (&mut *of(b), AtomicU64::from_ptr(self.best.add(b))) };
                if *distance == f64::INFINITY {
                    continue;
                }
                for row in from..to {
                    *distance += self.row(s, b, row);
                }
                // A NaN is never above: it stays, and with it the residual is NaN.
                if *distance > f64::from_bits(best.load(Ordering::Relaxed)) {
                    *distance = f64::INFINITY;
                } else {
                    left = true;
                    if to == rows {
                        best.fetch_min(distance.to_bits(), Ordering::Relaxed);
                    }
                }
            }
            if !left {
                return;
            }
        }
    }
}

impl Distances<'_> {
    /// Σ (x − p)² over one row of one block.
    #[inline(always)]
    fn row<S: Simd>(&self, s: S, b: usize, row: usize) -> f64 {
        let Shape { height, width, channels, .. } = self.x.shape();
        let x = self.x.place(b, row / height, (row % height) as isize, 0);
        let prototype = self.prototype.wrapping_add(row * width * LANES);
        let mut sums = [s.zero(); 4];
        let mut from = 0;
        while from < width {
            let n = (width - from).min(4);
            for (i, sum) in sums.iter_mut().enumerate().take(n) {
                let at = (from + i) * LANES;
                // SAFETY: place `from + i` of a row of the map's interior and of the prototype.
                let (x, p) = unsafe { (s.load(x.add(at)), s.load(prototype.add(at))) };
                let d = s.sub(x, p);
                *sum = s.mul_add(d, d, *sum);
            }
            from += n;
        }
        let mut sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
        let own = channels - row / height * LANES;
        if own < LANES {
            sum = s.select(first_lanes(own), sum, s.zero());
        }
        f64::from(s.sum(sum))
    }
}

/// Rows `from`..`to` of |x − p|, counted over blocks and rows.
struct Residual<'a> {
    x: FeatureMap<'a>,
    y: FeatureMap<'a>,
    b: usize,
    prototype: *const f32,
    from: usize,
    to: usize,
}

impl Kernel for Residual<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Shape { height, width, .. } = self.x.shape();
        for row in self.from..self.to {
            let (block, y) = (row / height, (row % height) as isize);
            let (x, y) = (self.x.place(self.b, block, y, 0), self.y.place(self.b, block, y, 0));
            let prototype = self.prototype.wrapping_add(row * width * LANES);
            for at in (0..width * LANES).step_by(LANES) {
                // SAFETY: a place of the interior of this row, which this job alone writes, and of
                // the prototype's.
                unsafe {
                    let (x, p) = (s.load(x.add(at)), s.load(prototype.add(at)));
                    s.store(y.add(at), s.max(s.sub(x, p), s.sub(p, x)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest and the residual for each picture, distances in f64.
    fn plain(x: &[f32], prototypes: &[f32], size: usize) -> Vec<(usize, Vec<f32>)> {
        let distance = |x: &[f32], p: &[f32]| -> f64 {
            x.iter().zip(p).map(|(x, p)| (f64::from(*x) - f64::from(*p)).powi(2)).sum()
        };
        let of = |x: &[f32]| {
            let mut best = (0, f64::INFINITY);
            for (i, p) in prototypes.chunks(size).enumerate() {
                if distance(x, p) < best.1 {
                    best = (i, distance(x, p));
                }
            }
            let p = &prototypes[best.0 * size..][..size];
            (best.0, x.iter().zip(p).map(|(x, p)| (x - p).abs()).collect())
        };
        x.chunks(size).map(of).collect()
    }

    fn run(isa: Isa, threads: usize, prototypes: &Prototypes, x: &[f32]) -> Vec<f32> {
        let one = prototypes.shape;
        let images = x.len() / (one.channels * one.places());
        let shape = Shape { images, ..one };
        let (from, to) = (Buffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
        let (from, to) = (from.map(shape, 0), to.map(shape, 0));
        from.write(x);
        for c in shape.channels..shape.blocks() * LANES {
            from.set(0, c, 0, 0, 1e4);
        }
        let scratch = Buffer::zeroed(prototypes.scratch_len(images));
        let team = Team::new(threads, false).unwrap();
        prototypes.residual(&team, isa, &from, &scratch, &to);
        to.read()
    }

    fn wave(len: usize, seed: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 1.37 + seed).sin().max(0.0)).collect()
    }

    #[test]
    fn every_path_finds_the_nearest_and_ties_go_to_the_lowest() {
        for (images, (c, h, w)) in
            [(1, (4, 8, 8)), (3, (6, 4, 4)), (2, (17, 3, 5)), (1, (32, 9, 2))]
        {
            let size = c * h * w;
            let mut values = wave(7 * size, 0.3);
            // Prototypes 2 and 5 are one map, and picture 0 is it.
            values.copy_within(2 * size..3 * size, 5 * size);
            let prototypes = Prototypes::new(&values, 7, (c, h, w));
            let mut x = wave(images * size, 2.1);
            x[..size].copy_from_slice(&values[2 * size..3 * size]);
            let want = plain(&x, &values, size);
            assert_eq!(want[0].0, 2);
            let want: Vec<f32> = want.into_iter().flat_map(|(_, residual)| residual).collect();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                for threads in [1, 2] {
                    assert_eq!(run(isa, threads, &prototypes, &x), want, "{}", isa.word());
                }
            }
        }
    }

    #[test]
    fn a_near_match_far_from_zero_is_found() {
        // ‖x‖² + ‖p‖² − 2x·p of these in f32 can't tell them apart.
        let size = 16 * 8 * 8;
        let x = vec![1000.0; size];
        let mut values = vec![1000.0625; 2 * size];
        values[size..].fill(1000.03125);
        let prototypes = Prototypes::new(&values, 2, (16, 8, 8));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            assert!(run(isa, 1, &prototypes, &x).iter().all(|r| *r == 0.03125));
        }
    }

    #[test]
    fn what_is_written_again_counts() {
        let shape = (17, 3, 5);
        let (first, second) = (wave(4 * 17 * 15, 0.3), wave(4 * 17 * 15, 1.9));
        let mut prototypes = Prototypes::new(&first, 4, shape);
        prototypes.write(&second);
        let x = wave(17 * 15, 2.1);
        let want = run(Isa::Portable, 1, &Prototypes::new(&second, 4, shape), &x);
        assert_eq!(run(Isa::Portable, 1, &prototypes, &x), want);
        assert_ne!(run(Isa::Portable, 1, &Prototypes::new(&first, 4, shape), &x), want);
    }

    #[test]
    fn a_nan_shows() {
        let prototypes = Prototypes::new(&wave(3 * 64, 0.0), 3, (16, 2, 2));
        let mut x = wave(64, 1.0);
        x[5] = f32::NAN;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let y = run(isa, 2, &prototypes, &x);
            assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i == 5)));
        }
    }
}
