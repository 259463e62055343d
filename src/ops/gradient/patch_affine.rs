//! Scales and shifts of a patch's numbers in training: [`crate::ops::patch_affine`] forward and its
//! gradients, from numbers `[C·patch²]` that stay the caller's.

use super::accumulate::Accumulate;
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::patch_affine::{self, assert_patches, packed_len};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// For maps of one shape.
pub struct TrainPatchAffine {
    isa: Isa,
    shape: Shape,
    patch: usize,
}

impl TrainPatchAffine {
    /// # Panics
    /// If patches of that size do not cut `shape` up.
    pub fn new(isa: Isa, shape: Shape, patch: usize) -> Self {
        assert_patches(shape, patch);
        Self { isa, shape, patch }
    }

    /// Numbers of scratch memory that the ways to maps need.
    pub fn scratch_len(&self) -> usize {
        packed_len(self.shape.channels, self.patch)
    }

    /// y = w·x + b.
    ///
    /// # Panics
    /// As all three: if a shape or length is not what it was made for, what is written overlaps what is
    /// read, or `scratch` is too small.
    pub fn forward(
        &self,
        team: &Team,
        [weight, bias]: [&[f32]; 2],
        x: FeatureMap<'_>,
        y: FeatureMap<'_>,
        scratch: &Buffer,
    ) {
        self.run(team, (weight, Some(bias)), x, (Accumulate::Set, y), scratch);
    }

    /// dx (+)= w·dy.
    pub fn input_gradient(
        &self,
        team: &Team,
        weight: &[f32],
        dy: FeatureMap<'_>,
        dx: (Accumulate, FeatureMap<'_>),
        scratch: &Buffer,
    ) {
        self.run(team, (weight, None), dy, dx, scratch);
    }

    fn run(
        &self,
        team: &Team,
        (weight, bias): (&[f32], Option<&[f32]>),
        x: FeatureMap<'_>,
        (into, y): (Accumulate, FeatureMap<'_>),
        scratch: &Buffer,
    ) {
        assert_eq!(x.shape(), self.shape, "a patch's scales");
        let len = self.scratch_len();
        assert!(scratch.len() >= len, "scratch of {} numbers", scratch.len());
        assert!(!x.is_in(scratch) && !y.is_in(scratch), "scratch memory holds a map");
        // SAFETY: as many numbers, which hold no map and which nobody else has while this runs.
        let packed = unsafe { std::slice::from_raw_parts_mut(scratch.as_ptr(), len) };
        patch_affine::pack(weight, bias, self.patch, packed);
        patch_affine::run(team, self.isa, (packed, self.patch), x, into, y);
    }

    /// Overwrites dw and db `[C·patch²]`: the sums of dy·x and of dy over pictures and patches.
    pub fn gradients(
        &self,
        team: &Team,
        x: FeatureMap<'_>,
        dy: FeatureMap<'_>,
        [dw, db]: [&mut [f32]; 2],
    ) {
        let patch = self.patch;
        assert_eq!((x.shape(), dy.shape()), (self.shape, self.shape), "a patch's scales");
        let numbers = self.shape.channels * patch * patch;
        assert_eq!((dw.len(), db.len()), (numbers, numbers), "scales of {:?}", self.shape);
        let work = Shared((x, dy, dw.as_mut_ptr(), db.as_mut_ptr()));
        team.chunks(self.shape.blocks() * patch, 1, |_, from, to| {
            let (x, dy, dw, db) = work.get();
            for job in from..to {
                let (block, row) = (job / patch, job % patch);
                let own = (x.shape().channels - block * LANES).min(LANES);
                for column in 0..patch {
                    let [weight, bias] = self.isa.run(Place { x, dy, patch, block, row, column });
                    for lane in 0..own {
                        let at = ((block * LANES + lane) * patch + row) * patch + column;
                        // SAFETY: a number of row `row` of this block's channels, which is this job's
                        // alone.
                        unsafe {
                            *dw.add(at) = weight[lane];
                            *db.add(at) = bias[lane];
                        }
                    }
                }
            }
        });
    }
}

/// Σ dy·x and Σ dy over pictures and patches at one place of a patch.
struct Place<'a> {
    x: FeatureMap<'a>,
    dy: FeatureMap<'a>,
    patch: usize,
    block: usize,
    row: usize,
    column: usize,
}

impl Kernel for Place<'_> {
    type Output = [[f32; LANES]; 2];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [[f32; LANES]; 2] {
        let Self { x, dy, patch, block, row, column } = self;
        let Shape { images, height, width, .. } = x.shape();
        let (mut weight, mut bias) = (s.zero(), s.zero());
        for image in 0..images {
            for y in (row..height).step_by(patch) {
                let x = x.place(image, block, y as isize, 0).cast_const();
                let dy = dy.place(image, block, y as isize, 0).cast_const();
                for at in (column..width).step_by(patch).map(|x| x * LANES) {
                    // SAFETY: a place of the row in both maps, which have one shape.
                    let (x, dy) = unsafe { (s.load(x.add(at)), s.load(dy.add(at))) };
                    weight = s.mul_add(x, dy, weight);
                    bias = s.add(bias, dy);
                }
            }
        }
        [s.to_array(weight), s.to_array(bias)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, filled, pattern, used};

    #[test]
    fn all_ways_equal_their_scalar_twins() {
        let cases = [
            (1, (1, 16, 1, 1)),
            (2, (3, 21, 4, 6)),
            (3, (2, 40, 6, 9)),
            (4, (1, 3, 4, 4)),
            (8, (2, 33, 8, 16)),
        ];
        for (patch, (b, c, h, w)) in cases {
            let shape = Shape::new(b, c, h, w);
            let ((x, x_values), (dy, dy_values)) = (filled(shape, 3), filled(shape, 4));
            let (x, dy) = (x.map(shape, 0), dy.map(shape, 0));
            let numbers = c * patch * patch;
            let (weight, bias) = (pattern(numbers, 5), pattern(numbers, 6));
            let at = |i: usize| {
                let (c, y, column) = (i / w / h % c, i / w % h, i % w);
                (c * patch + y % patch) * patch + column % patch
            };
            let (mut y, mut dx) = (Vec::new(), Vec::new());
            let (mut dw, mut db) = (vec![0.0; numbers], vec![0.0; numbers]);
            for (i, (x, dy)) in x_values.iter().zip(&dy_values).enumerate() {
                let (x, dy, weight) = (f64::from(*x), f64::from(*dy), f64::from(weight[at(i)]));
                y.push((weight * x + f64::from(bias[at(i)])) as f32);
                dx.push((weight * dy) as f32);
                dw[at(i)] += x * dy;
                db[at(i)] += dy;
            }
            everywhere(|team, isa| {
                let op = TrainPatchAffine::new(isa, shape, patch);
                let scratch = Buffer::zeroed(op.scratch_len());
                let to = used(shape);
                let to = to.map(shape, 0);
                op.forward(team, [&weight, &bias], x, to, &scratch);
                // A product and a sum of numbers below 1 are rounded once or twice.
                assert_holds(to, &y, (3e-7, 0.0), "forward");
                op.input_gradient(team, &weight, dy, (Accumulate::Set, to), &scratch);
                assert_holds(to, &dx, (1e-7, 0.0), "input");
                op.input_gradient(team, &weight, dy, (Accumulate::Add, to), &scratch);
                let twice: Vec<f32> = dx.iter().map(|x| 2.0 * x).collect();
                assert_holds(to, &twice, (3e-7, 0.0), "input, added");
                let (mut got_w, mut got_b) = (vec![77.0; numbers], vec![77.0; numbers]);
                op.gradients(team, x, dy, [&mut got_w, &mut got_b]);
                for (got, want) in got_w.iter().zip(&dw).chain(got_b.iter().zip(&db)) {
                    // At most 18 products of numbers below 1.
                    assert!((f64::from(*got) - want).abs() < 3e-6, "{shape:?}: {got} {want}");
                }
            });
        }
    }
}
