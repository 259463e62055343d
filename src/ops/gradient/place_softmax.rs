//! The gradient of the softmax over places ([`crate::ops::place_softmax`]):
//! dx = y · (dy − Σ y·dy), the sum over the places of a channel.

use super::accumulate::Accumulate;
use crate::ops::feature_map::{FeatureMap, Shared};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// y and dy [B, C, H, W] → dx of that shape.
///
/// # Panics
/// If shapes differ, or `dx` shares memory with another map.
pub fn place_softmax(
    team: &Team,
    isa: Isa,
    y: FeatureMap<'_>,
    dy: FeatureMap<'_>,
    into: Accumulate,
    dx: FeatureMap<'_>,
) {
    let shape = y.shape();
    assert!(dy.shape() == shape && dx.shape() == shape, "softmax's gradient");
    assert!(!dx.overlaps(&y) && !dx.overlaps(&dy), "softmax's gradient in place");
    let maps = Shared([y, dy, dx]);
    team.chunks(shape.images * shape.blocks(), 1, |_, from, to| {
        for plane in from..to {
            let (image, block) = (plane / shape.blocks(), plane % shape.blocks());
            isa.run(Plane { maps: maps.get(), into, image, block });
        }
    });
}

struct Plane<'a> {
    /// y, dy and dx.
    maps: [FeatureMap<'a>; 3],
    into: Accumulate,
    image: usize,
    block: usize,
}

impl Kernel for Plane<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.maps[0].shape();
        let rows =
            |row: usize| self.maps.map(|map| map.place(self.image, self.block, row as isize, 0));
        let mut sum = s.zero();
        for [y, dy, _] in (0..shape.height).map(rows) {
            for at in (0..shape.width).map(|place| place * LANES) {
                // SAFETY: the same place of two planes' interiors.
                sum = unsafe { s.mul_add(s.load(y.add(at)), s.load(dy.add(at)), sum) };
            }
        }
        for [y, dy, dx] in (0..shape.height).map(rows) {
            for at in (0..shape.width).map(|place| place * LANES) {
                // SAFETY: as above; this job alone writes dx's plane.
                unsafe {
                    let value = s.mul(s.load(y.add(at)), s.sub(s.load(dy.add(at)), sum));
                    self.into.put(s, dx.add(at), value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, filled, used};
    use crate::ops::feature_map::Shape;
    use crate::ops::place_softmax;

    #[test]
    fn a_channels_gradients_sum_to_nothing() {
        for (b, c, h, w) in [(1, 16, 8, 8), (3, 21, 5, 7), (1, 40, 1, 9)] {
            let shape = Shape::new(b, c, h, w);
            let ((x, _), (dy, dy_values)) = (filled(shape, 3), filled(shape, 4));
            everywhere(|team, isa| {
                let (y, dx) = (used(shape), used(shape));
                let (y, dx) = (y.map(shape, 0), dx.map(shape, 0));
                place_softmax::place_softmax(team, isa, x.map(shape, 0), y);
                let mut want = Vec::new();
                for (y, dy) in y.read().chunks(h * w).zip(dy_values.chunks(h * w)) {
                    let pairs = || y.iter().zip(dy).map(|(&y, &dy)| (f64::from(y), f64::from(dy)));
                    let sum: f64 = pairs().map(|(y, dy)| y * dy).sum();
                    want.extend(pairs().map(|(y, dy)| (y * (dy - sum)) as f32));
                }
                place_softmax(team, isa, y, dy.map(shape, 0), Accumulate::Set, dx);
                assert_holds(dx, &want, (1e-7, 1e-5), "softmax");
                place_softmax(team, isa, y, dy.map(shape, 0), Accumulate::Add, dx);
                let twice: Vec<f32> = want.iter().map(|x| 2.0 * x).collect();
                assert_holds(dx, &twice, (2e-7, 1e-5), "softmax, added");
            });
        }
    }
}
