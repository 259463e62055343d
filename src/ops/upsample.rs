//! Feature maps at another size: nearest and bilinear, in both of PyTorch's conventions
//! ([`super::interpolate`] is the twin on planes). Letters: C channels, H × W places.

use super::feature_map::{FeatureMap, Shape, Shared};
use super::interpolate::{Align, Tap, taps};
use super::rows::{Rows, helping};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// From one size to another, with the places and weights that this takes.
#[derive(Debug)]
pub struct Upsample {
    rows: Vec<Tap>,
    columns: Vec<Tap>,
    from: (usize, usize),
    /// All weights are 0.
    nearest: bool,
}

impl Upsample {
    /// (H, W) = `from` to `to`; the value at ⌊i · from/to⌋.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn nearest(from: (usize, usize), to: (usize, usize)) -> Self {
        assert_sides(from, to);
        let side = |from: usize, to: usize| -> Vec<Tap> {
            let at = |i: usize| i * from / to;
            (0..to).map(|i| Tap { low: at(i), high: at(i), weight: 0.0 }).collect()
        };
        let (rows, columns) = (side(from.0, to.0), side(from.1, to.1));
        Self { rows, columns, from, nearest: true }
    }

    /// (H, W) = `from` to `to`, no antialias. A single place is spread over all.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn bilinear(from: (usize, usize), to: (usize, usize), align: Align) -> Self {
        if from == (1, 1) {
            return Self::nearest(from, to);
        }
        assert_sides(from, to);
        let (rows, columns) = (taps(from.0, to.0, align), taps(from.1, to.1, align));
        Self { rows, columns, from, nearest: false }
    }

    /// [C, H, W] → [C, H', W'].
    ///
    /// # Panics
    /// If the maps are not of these sizes, differ in pictures or channels, or overlap.
    pub fn run(&self, team: &Team, isa: Isa, x: FeatureMap<'_>, to: FeatureMap<'_>) {
        let (height, width) = self.from;
        let from = Shape { height, width, ..to.shape() };
        assert_eq!(x.shape(), from, "argument of an upsampling");
        let sides = (to.shape().height, to.shape().width);
        assert_eq!(sides, (self.rows.len(), self.columns.len()), "result of an upsampling");
        assert!(!x.overlaps(&to), "the result overlaps the argument");
        let rows = Rows::of(to.shape());
        let maps = Shared((x, to));
        let helping = helping(team, rows.count(), 2 * to.shape().width * LANES);
        team.chunks(rows.count(), helping, |_, first, end| {
            let (x, to) = maps.get();
            isa.run(UpsampleRows { own: self, x, to, rows, first, end });
        });
    }
}

fn assert_sides(from: (usize, usize), to: (usize, usize)) {
    assert!(from.0 * from.1 * to.0 * to.1 > 0, "resize from {from:?} to {to:?} has an empty side");
}

struct UpsampleRows<'a> {
    own: &'a Upsample,
    x: FeatureMap<'a>,
    to: FeatureMap<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for UpsampleRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in self.first..self.end {
            let (image, block, y) = self.rows.at(row);
            let tap = self.own.rows[y];
            let upper = self.x.place(image, block, tap.low as isize, 0);
            let lower = self.x.place(image, block, tap.high as isize, 0);
            let to = self.to.place(image, block, y as isize, 0);
            let (up, down) = (s.splat(1.0 - tap.weight), s.splat(tap.weight));
            for (i, tap) in self.own.columns.iter().enumerate() {
                // SAFETY: taps are below W of the argument, i below W of the result; no other thread
                // has this row.
                unsafe {
                    if self.own.nearest {
                        s.store(to.add(i * LANES), s.load(upper.add(tap.low * LANES)));
                        continue;
                    }
                    let (low, high) = (tap.low * LANES, tap.high * LANES);
                    let left = s.mul(s.load(upper.add(low)), up);
                    let left = s.mul_add(s.load(lower.add(low)), down, left);
                    let right = s.mul(s.load(upper.add(high)), up);
                    let right = s.mul_add(s.load(lower.add(high)), down, right);
                    let left = s.mul(left, s.splat(1.0 - tap.weight));
                    let value = s.mul_add(right, s.splat(tap.weight), left);
                    s.store(to.add(i * LANES), value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::{assert_holds, everywhere, filled, used};
    use super::super::interpolate::bilinear_planes;
    use super::*;

    const SIZES: [((usize, usize), (usize, usize)); 6] = [
        ((4, 4), (8, 8)),
        ((5, 7), (10, 14)),
        ((3, 2), (7, 13)),
        ((6, 9), (4, 5)),
        ((1, 1), (3, 4)),
        ((1, 3), (1, 1)),
    ];

    #[test]
    fn bilinear_equals_its_twin_on_planes() {
        for (from, to) in SIZES {
            for (b, c) in [(1, 16), (3, 21)] {
                let shape = Shape::new(b, c, from.0, from.1);
                let result = Shape::new(b, c, to.0, to.1);
                let (x, values) = filled(shape, 7);
                for align in [Align::HalfPixel, Align::Corners] {
                    let want = bilinear_planes(&values, from, to, align);
                    let upsample = Upsample::bilinear(from, to, align);
                    everywhere(|team, isa| {
                        let out = used(result);
                        upsample.run(team, isa, x.map(shape, 0), out.map(result, 0));
                        // Four products of numbers below 1, rounded once or twice.
                        assert_holds(out.map(result, 0), &want, (3e-7, 0.0), "bilinear");
                    });
                }
            }
        }
    }

    #[test]
    fn nearest_equals_its_scalar_twin() {
        for (from, to) in SIZES {
            let (shape, result) =
                (Shape::new(2, 19, from.0, from.1), Shape::new(2, 19, to.0, to.1));
            let (x, values) = filled(shape, 8);
            let mut want = Vec::new();
            for plane in values.chunks(shape.places()) {
                for (y, i) in (0..to.0).flat_map(|y| (0..to.1).map(move |i| (y, i))) {
                    want.push(plane[y * from.0 / to.0 * from.1 + i * from.1 / to.1]);
                }
            }
            everywhere(|team, isa| {
                let out = used(result);
                let upsample = Upsample::nearest(from, to);
                upsample.run(team, isa, x.map(shape, 0), out.map(result, 0));
                assert_holds(out.map(result, 0), &want, (0.0, 0.0), "nearest");
            });
        }
    }

    #[test]
    #[should_panic(expected = "argument of an upsampling")]
    fn another_size_is_refused() {
        let shape = Shape::new(1, 16, 4, 4);
        let ((x, _), out) = (filled(shape, 1), used(shape));
        let upsample = Upsample::nearest((2, 2), (4, 4));
        upsample.run(&Team::alone(), Isa::Portable, x.map(shape, 0), out.map(shape, 0));
    }
}
