//! Gradients of feature maps at another size: what [`crate::ops::upsample`] spreads is gathered with
//! the same weights, rows first, then columns. Letters: C channels, H × W places.

use super::accumulate::Accumulate;
use crate::ops::feature_map::{FeatureMap, Shape, Shared};
use crate::ops::interpolate::{Align, Tap, taps};
use crate::ops::rows::{Rows, helping};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// The way back from (H', W') = `to` to (H, W) = `from`.
#[derive(Debug)]
pub struct Upsample {
    /// For each row of the argument where its part of `given` begins; the end of all behind.
    begins: Vec<usize>,
    /// Rows of the result and the weight that they took of it, in their order.
    given: Vec<(usize, f32)>,
    columns: Vec<Tap>,
    from: (usize, usize),
    to: (usize, usize),
}

impl Upsample {
    /// Of [`crate::ops::upsample::Upsample::nearest`] with the same sides.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn nearest(from: (usize, usize), to: (usize, usize)) -> Self {
        let side = |from: usize, to: usize| -> Vec<Tap> {
            let at = |i: usize| i * from / to;
            (0..to).map(|i| Tap { low: at(i), high: at(i), weight: 0.0 }).collect()
        };
        assert_sides(from, to);
        Self::new(from, to, &side(from.0, to.0), side(from.1, to.1))
    }

    /// Of [`crate::ops::upsample::Upsample::bilinear`] with the same sides and rule.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn bilinear(from: (usize, usize), to: (usize, usize), align: Align) -> Self {
        assert_sides(from, to);
        Self::new(from, to, &taps(from.0, to.0, align), taps(from.1, to.1, align))
    }

    fn new(from: (usize, usize), to: (usize, usize), rows: &[Tap], mut columns: Vec<Tap>) -> Self {
        let (mut begins, mut given) = (Vec::with_capacity(from.0 + 1), Vec::new());
        for y in 0..from.0 {
            begins.push(given.len());
            for (row, tap) in rows.iter().enumerate() {
                let weight = match (tap.low == y, tap.high == y) {
                    (true, true) => 1.0,
                    (true, false) => 1.0 - tap.weight,
                    (false, true) => tap.weight,
                    (false, false) => continue,
                };
                given.push((row, weight));
            }
        }
        begins.push(given.len());
        // At the far edge both neighbours are one.
        for tap in columns.iter_mut().filter(|tap| tap.low == tap.high) {
            tap.weight = 0.0;
        }
        Self { begins, given, columns, from, to }
    }

    /// dx [C, H, W] (+)= what dy [C, H', W'] gives.
    ///
    /// # Panics
    /// If the maps are not of these sizes, differ in pictures or channels, or overlap.
    pub fn run(
        &self,
        team: &Team,
        isa: Isa,
        dy: FeatureMap<'_>,
        into: Accumulate,
        dx: FeatureMap<'_>,
    ) {
        let sized = |(height, width)| Shape { height, width, ..dx.shape() };
        assert_eq!(dx.shape(), sized(self.from), "gradient of an upsampling's argument");
        assert_eq!(dy.shape(), sized(self.to), "gradient of an upsampling's result");
        assert!(!dx.overlaps(&dy), "the gradient overlaps the argument");
        let rows = Rows::of(dx.shape());
        let len = self.to.1 * LANES * self.given.len().div_ceil(self.from.0);
        let maps = Shared((dy, dx));
        team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
            let (dy, dx) = maps.get();
            isa.run(GatherRows { own: self, dy, into, dx, rows, first, end });
        });
    }
}

fn assert_sides(from: (usize, usize), to: (usize, usize)) {
    assert!(from.0 * from.1 * to.0 * to.1 > 0, "resize from {from:?} to {to:?} has an empty side");
}

struct GatherRows<'a> {
    own: &'a Upsample,
    dy: FeatureMap<'a>,
    into: Accumulate,
    dx: FeatureMap<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for GatherRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Upsample { begins, given, columns, from, .. } = self.own;
        for row in self.first..self.end {
            let (image, block, y) = self.rows.at(row);
            let given = &given[begins[y]..begins[y + 1]];
            let dy = self.dy.place(image, block, 0, 0);
            let row_len = self.dy.shape().row();
            let dx = self.dx.place(image, block, y as isize, 0);
            // Columns' neighbours move to the right only: the sums of two are at hand.
            let (mut low, mut sum, mut next) = (0, s.zero(), s.zero());
            for (i, tap) in columns.iter().enumerate() {
                while low < tap.low {
                    // SAFETY: column `low` < W of a row that no other thread has.
                    unsafe { self.into.put(s, dx.add(low * LANES), sum) };
                    (low, sum, next) = (low + 1, next, s.zero());
                }
                let mut value = s.zero();
                for (row, weight) in given {
                    // SAFETY: rows of the list are below H', i is below W'.
                    let dy = unsafe { s.load(dy.add(row * row_len + i * LANES)) };
                    value = s.mul_add(dy, s.splat(*weight), value);
                }
                sum = s.mul_add(value, s.splat(1.0 - tap.weight), sum);
                next = s.mul_add(value, s.splat(tap.weight), next);
            }
            while low < from.1 {
                // SAFETY: as above.
                unsafe { self.into.put(s, dx.add(low * LANES), sum) };
                (low, sum, next) = (low + 1, next, s.zero());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, filled, used};
    use crate::ops::interpolate::bilinear_planes;

    const SIZES: [((usize, usize), (usize, usize)); 7] = [
        ((4, 4), (8, 8)),
        ((5, 7), (10, 14)),
        ((3, 2), (7, 13)),
        ((6, 9), (4, 5)),
        ((11, 13), (2, 3)),
        ((1, 1), (3, 4)),
        ((1, 3), (1, 1)),
    ];

    /// The transpose of `forward`, which is linear, on one plane after the other: ⟨dy, forward(eᵢ)⟩.
    fn transpose(
        dy: &[f32],
        [from, to]: [(usize, usize); 2],
        forward: impl Fn(&[f32]) -> Vec<f32>,
    ) -> Vec<f32> {
        let mut dx = Vec::new();
        for dy in dy.chunks(to.0 * to.1) {
            for i in 0..from.0 * from.1 {
                let mut unit = vec![0.0; from.0 * from.1];
                unit[i] = 1.0;
                let parts = forward(&unit);
                let sum: f64 =
                    dy.iter().zip(&parts).map(|(dy, x)| f64::from(*dy) * f64::from(*x)).sum();
                dx.push(sum as f32);
            }
        }
        dx
    }

    fn check(
        upsample: &Upsample,
        [from, to]: [(usize, usize); 2],
        forward: &dyn Fn(&[f32]) -> Vec<f32>,
    ) {
        for (b, c) in [(1, 16), (3, 21), (1, 1)] {
            let (shape, wide) = (Shape::new(b, c, from.0, from.1), Shape::new(b, c, to.0, to.1));
            let (dy, values) = filled(wide, 7);
            let want = transpose(&values, [from, to], forward);
            everywhere(|team, isa| {
                let dx = used(shape);
                let dx = dx.map(shape, 0);
                upsample.run(team, isa, dy.map(wide, 0), Accumulate::Set, dx);
                // Fewer than a hundred products of numbers below 1.
                assert_holds(dx, &want, (2e-6, 1e-6), "upsampling");
                upsample.run(team, isa, dy.map(wide, 0), Accumulate::Add, dx);
                let twice: Vec<f32> = want.iter().map(|x| 2.0 * x).collect();
                assert_holds(dx, &twice, (4e-6, 1e-6), "upsampling, added");
            });
        }
    }

    #[test]
    fn bilinear_is_the_transpose_of_the_way_forward() {
        for (from, to) in SIZES {
            for align in [Align::HalfPixel, Align::Corners] {
                let forward = |x: &[f32]| bilinear_planes(x, from, to, align);
                check(&Upsample::bilinear(from, to, align), [from, to], &forward);
            }
        }
    }

    #[test]
    fn nearest_is_the_transpose_of_the_way_forward() {
        for (from, to) in SIZES {
            let forward = |x: &[f32]| {
                let places = (0..to.0).flat_map(|y| (0..to.1).map(move |i| (y, i)));
                places
                    .map(|(y, i)| x[y * from.0 / to.0 * from.1 + i * from.1 / to.1])
                    .collect::<Vec<_>>()
            };
            check(&Upsample::nearest(from, to), [from, to], &forward);
        }
    }
}
