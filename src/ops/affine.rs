//! A batch norm with no convolution before it: y = γ'·x + β' channel by channel, and ReLU where
//! asked for.

use super::conv::{Stage, pack_bias};
use super::feature_map::{FeatureMap, Frozen, Shared};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// The scale and shift of each channel.
pub struct Affine {
    isa: Isa,
    scale: Frozen,
    shift: Frozen,
    channels: usize,
}

impl Affine {
    /// `scale` and `shift` `[C]`.
    pub fn new(isa: Isa, scale: &[f32], shift: &[f32]) -> Self {
        let channels = scale.len();
        Self { isa, scale: pack_bias(scale, channels), shift: pack_bias(shift, channels), channels }
    }

    /// y = scale·x + shift. `y` may be `x`.
    ///
    /// # Panics
    /// If the shapes are not equal or have other channels, or `y` shares only a part with `x`.
    pub fn run(&self, team: &Team, x: FeatureMap<'_>, y: FeatureMap<'_>, relu: bool) {
        let shape = x.shape();
        assert!(shape == y.shape() && shape.channels == self.channels, "{shape:?}");
        assert!(y.is_or_is_apart_from(&x), "the result shares a part with the argument");
        let rows = shape.images * shape.blocks() * shape.height;
        let work = Shared((x, y));
        team.chunks(rows, rows.div_ceil(4 * team.threads()), |_, from, to| {
            let (x, y) = work.get();
            self.isa.run(Work { affine: self, x, y, relu, rows: (from, to) });
        });
    }
}

struct Work<'a> {
    affine: &'a Affine,
    x: FeatureMap<'a>,
    y: FeatureMap<'a>,
    relu: bool,
    /// Counted over pictures and blocks.
    rows: (usize, usize),
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.x.shape();
        let floor = Stage { residual: None, relu: self.relu }.floor(s);
        for row in self.rows.0..self.rows.1 {
            let (plane, y) = (row / shape.height, (row % shape.height) as isize);
            let (image, block) = (plane / shape.blocks(), plane % shape.blocks());
            let (from, to) = (self.x.place(image, block, y, 0), self.y.place(image, block, y, 0));
            // SAFETY: block `block` of the channels' numbers.
            let (scale, shift) = unsafe {
                (
                    s.load(self.affine.scale.as_ptr().add(block * LANES)),
                    s.load(self.affine.shift.as_ptr().add(block * LANES)),
                )
            };
            for x in 0..shape.width {
                // SAFETY: place x of the row; rows belong to one thread.
                unsafe {
                    let value = s.mul_add(s.load(from.add(x * LANES)), scale, shift);
                    s.store(to.add(x * LANES), s.max(floor, value));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::feature_map::{Buffer, Shape};
    use super::*;

    #[test]
    fn each_channel_has_its_own_scale() {
        let shape = Shape::new(2, 19, 3, 5);
        let values: Vec<f32> = (0..2 * 19 * 15).map(|i| (i as f32 * 0.37).sin()).collect();
        let (scale, shift): (Vec<f32>, Vec<f32>) =
            (0..19).map(|c| (c as f32 * 0.5 - 3.0, 0.1 * c as f32)).unzip();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            for (threads, relu) in [(1, false), (2, true)] {
                let map = Buffer::zeroed(shape.len());
                map.map(shape, 0).write(&values);
                let team = Team::new(threads, false).unwrap();
                let affine = Affine::new(isa, &scale, &shift);
                affine.run(&team, map.map(shape, 0), map.map(shape, 0), relu);
                for (i, (got, x)) in map.map(shape, 0).read().iter().zip(&values).enumerate() {
                    let c = i / 15 % 19;
                    let want = x * scale[c] + shift[c];
                    let want = if relu { want.max(0.0) } else { want };
                    assert!((got - want).abs() < 1e-6, "{got} {want}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "shares a part")]
    fn a_part_shared_is_refused() {
        let buffer = Buffer::zeroed(Shape::new(1, 48, 2, 2).len());
        let map = buffer.map(Shape::new(1, 48, 2, 2), 0);
        let affine = Affine::new(Isa::Portable, &[1.0; 32], &[0.0; 32]);
        affine.run(&Team::alone(), map.channels(0, 32), map.channels(16, 32), false);
    }
}
