//! Gradient of the squared length of the channel vector at each place. Letters: B pictures, C channels,
//! H × W places.

use crate::ops::feature_map::{FeatureMap, Shared};
use crate::ops::rows::{Rows, helping};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Of y = Σ_c x² ([`crate::ops::squared_norm::squared_norm`]): dx = 2 · dy · x, `dy` [B, H, W]. What `dx`
/// held is overwritten.
///
/// # Panics
/// If shapes or lengths do not fit, or `dx` shares only a part with `x`.
pub fn squared_norm(team: &Team, isa: Isa, x: FeatureMap<'_>, dy: &[f32], dx: FeatureMap<'_>) {
    let shape = x.shape();
    assert_eq!(dx.shape(), shape, "the gradient of a squared norm");
    assert_eq!(dy.len(), shape.images * shape.places(), "gradients of {shape:?}");
    assert!(dx.is_or_is_apart_from(&x), "the gradient shares a part with the argument");
    let rows = Rows::of(shape);
    let maps = Shared((x, dx));
    team.chunks(rows.count(), helping(team, rows.count(), shape.width * LANES), |_, first, end| {
        let (x, dx) = maps.get();
        isa.run(ScaledRows { x, dy, dx, rows, first, end });
    });
}

struct ScaledRows<'a> {
    x: FeatureMap<'a>,
    dy: &'a [f32], // [B, H, W]
    dx: FeatureMap<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for ScaledRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.x.shape();
        for row in self.first..self.end {
            let (image, block, y) = self.rows.at(row);
            let place = |map: &FeatureMap<'_>| map.place(image, block, y as isize, 0);
            let (from, to) = (place(&self.x), place(&self.dx));
            let dy = &self.dy[(image * shape.height + y) * shape.width..][..shape.width];
            for (i, dy) in dy.iter().enumerate() {
                // SAFETY: a row has W places of 16 from its place 0 on, in both maps; no other thread
                // has this row of the gradient.
                unsafe {
                    let value = s.mul(s.load(from.add(i * LANES)), s.splat(2.0 * dy));
                    s.store(to.add(i * LANES), value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, filled, pattern, used};
    use crate::ops::feature_map::Shape;

    #[test]
    fn the_gradient_is_twice_the_vector() {
        for (b, c, h, w) in [(1, 16, 4, 4), (3, 21, 5, 7), (2, 40, 1, 1)] {
            let shape = Shape::new(b, c, h, w);
            let (x, values) = filled(shape, 8);
            let dy = pattern(b * h * w, 9);
            let of = |i: usize| dy[i / (c * h * w) * h * w + i % (h * w)];
            let want: Vec<f32> =
                values.iter().enumerate().map(|(i, x)| x * (2.0 * of(i))).collect();
            everywhere(|team, isa| {
                let dx = used(shape);
                let dx = dx.map(shape, 0);
                squared_norm(team, isa, x.map(shape, 0), &dy, dx);
                assert_holds(dx, &want, (0.0, 0.0), "squared norm");
            });
        }
    }
}
