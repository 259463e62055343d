//! Softmax over the places of each channel (`Op::PlaceSoftmax` of [`crate::nn::graph`]): how the
//! attention of NTSNet's contextual block is read where its weights go over the whole map.

use super::feature_map::{FeatureMap, Shared};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::simd_math::exp;
use super::team::Team;

/// x [B, C, H, W] → y of that shape, the numbers of a picture's channel above zero and with sum 1.
///
/// # Panics
/// If the shapes differ, or `y` shares memory with `x`.
pub fn place_softmax(team: &Team, isa: Isa, x: FeatureMap<'_>, y: FeatureMap<'_>) {
    let shape = x.shape();
    assert_eq!(shape, y.shape(), "softmax's output");
    assert!(!y.overlaps(&x), "softmax in place");
    let maps = Shared((x, y));
    team.chunks(shape.images * shape.blocks(), 1, |_, from, to| {
        let (x, y) = maps.get();
        for plane in from..to {
            isa.run(Plane { x, y, image: plane / shape.blocks(), block: plane % shape.blocks() });
        }
    });
}

/// The lanes of `block` that are channels of a map with `channels`.
pub(super) fn lanes_of(channels: usize, block: usize) -> u16 {
    let own = (channels - block * LANES).min(LANES);
    u16::MAX >> (LANES - own)
}

struct Plane<'a> {
    x: FeatureMap<'a>,
    y: FeatureMap<'a>,
    image: usize,
    block: usize,
}

impl Kernel for Plane<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Plane { x, y, image, block } = self;
        let shape = x.shape();
        let lanes = lanes_of(shape.channels, block);
        let row = |map: FeatureMap<'_>, row: usize| map.place(image, block, row as isize, 0);
        let mut largest = s.splat(f32::NEG_INFINITY);
        for from in (0..shape.height).map(|i| row(x, i)) {
            for place in 0..shape.width {
                // SAFETY: a place of the plane's interior.
                largest = s.max(largest, unsafe { s.load(from.add(place * LANES)) });
            }
        }
        let mut sum = s.zero();
        for i in 0..shape.height {
            let (from, to) = (row(x, i), row(y, i));
            for place in 0..shape.width {
                // SAFETY: the same place of both planes; this job alone writes y's.
                unsafe {
                    let value = exp(s, s.sub(s.load(from.add(place * LANES)), largest));
                    sum = s.add(sum, value);
                    s.store(to.add(place * LANES), value);
                }
            }
        }
        let share = s.select(lanes, s.div(s.splat(1.0), sum), s.zero());
        for to in (0..shape.height).map(|i| row(y, i)) {
            for place in 0..shape.width {
                // SAFETY: as above.
                unsafe {
                    let to = to.add(place * LANES);
                    s.store(to, s.mul(s.load(to), share));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::{assert_holds, everywhere, filled, used};
    use super::super::feature_map::Shape;
    use super::*;

    #[test]
    fn each_channel_is_shared_out_among_its_places() {
        for (b, c, h, w) in [(1, 16, 8, 8), (3, 21, 5, 7), (2, 3, 1, 1), (1, 40, 1, 9)] {
            let shape = Shape::new(b, c, h, w);
            let (x, mut values) = filled(shape, 3);
            // Large numbers too: only differences count.
            values.iter_mut().for_each(|x| *x = *x * 30.0 + 100.0);
            x.map(shape, 0).write(&values);
            let mut want = Vec::new();
            for plane in values.chunks(h * w) {
                let largest = plane.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let powers: Vec<f64> =
                    plane.iter().map(|&x| f64::from(x - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                want.extend(powers.iter().map(|power| (power / sum) as f32));
            }
            everywhere(|team, isa| {
                let y = used(shape);
                let y = y.map(shape, 0);
                place_softmax(team, isa, x.map(shape, 0), y);
                assert_holds(y, &want, (1e-30, 2e-6), "softmax");
            });
        }
    }
}
