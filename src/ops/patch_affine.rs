//! A scale and a shift for each number of a patch (`Op::PatchAffine` of [`crate::nn::graph`], PRN's
//! embeddings number by number): x [B, C, H, W] is cut into patches of p × p places, and place
//! (dy, dx) of channel c of each becomes w[c, dy, dx]·x + b[c, dy, dx].

use super::feature_map::{FeatureMap, Frozen, Memory, Shape, Shared};
use super::gradient::accumulate::Accumulate;
use super::rows::{Rows, helping};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Scales and shifts packed for the line.
pub struct PatchAffine {
    packed: Frozen,
    channels: usize,
    patch: usize,
}

impl PatchAffine {
    /// `weight` and `bias` `[C·patch²]`.
    ///
    /// # Panics
    /// If the lengths differ or are no multiple of patch² ≥ 1.
    pub fn new(weight: &[f32], bias: &[f32], patch: usize) -> Self {
        let channels = weight.len() / (patch * patch);
        let mut packed = Memory::zeroed(packed_len(channels, patch));
        pack(weight, Some(bias), patch, packed.as_mut_slice());
        Self { packed: packed.into(), channels, patch }
    }

    /// x [B, C, H, W] → y of that shape, which may be x.
    ///
    /// # Panics
    /// If the shapes differ or have other channels, the patch does not divide H and W, or `y` shares
    /// only a part with `x`.
    pub fn run(&self, team: &Team, isa: Isa, x: FeatureMap<'_>, y: FeatureMap<'_>) {
        assert_eq!(x.shape().channels, self.channels, "channels of a patch's scales");
        run(team, isa, (self.packed.as_slice(), self.patch), x, Accumulate::Set, y);
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

/// Numbers of packed scales and shifts.
pub(super) fn packed_len(channels: usize, patch: usize) -> usize {
    channels.div_ceil(LANES) * patch * patch * 2 * LANES
}

/// Where the scale of place (dy, dx) of a block lies; its shift is behind it.
#[inline(always)]
pub(super) fn packed_at(patch: usize, block: usize, (dy, dx): (usize, usize)) -> usize {
    ((block * patch + dy) * patch + dx) * 2 * LANES
}

/// `weight` and `bias` (zero without) `[C·patch²]` → `to` `[⌈C/16⌉, patch, patch, 2, 16]`.
///
/// # Panics
/// If a length does not fit.
pub(super) fn pack(weight: &[f32], bias: Option<&[f32]>, patch: usize, to: &mut [f32]) {
    let places = patch * patch;
    assert!(places > 0 && weight.len().is_multiple_of(places), "{} for {patch}", weight.len());
    let channels = weight.len() / places;
    assert!(bias.is_none_or(|bias| bias.len() == weight.len()), "a shift for each scale");
    assert_eq!(to.len(), packed_len(channels, patch), "scales of {channels} channels");
    to.fill(0.0);
    for (i, weight) in weight.iter().enumerate() {
        let (c, place) = (i / places, i % places);
        let at = packed_at(patch, c / LANES, (place / patch, place % patch)) + c % LANES;
        to[at] = *weight;
        to[at + LANES] = bias.map_or(0.0, |bias| bias[i]);
    }
}

/// y (+)= w·x + b.
///
/// # Panics
/// As [`PatchAffine::run`]; if `packed` is not as long as [`packed_len`] says, or `y` is to be added to
/// and overlaps `x`.
pub(super) fn run(
    team: &Team,
    isa: Isa,
    (packed, patch): (&[f32], usize),
    x: FeatureMap<'_>,
    into: Accumulate,
    y: FeatureMap<'_>,
) {
    let shape = x.shape();
    assert_patches(shape, patch);
    assert_eq!(shape, y.shape(), "a patch's scales");
    assert_eq!(packed.len(), packed_len(shape.channels, patch), "scales of {shape:?}");
    let apart = match into {
        Accumulate::Set => y.is_or_is_apart_from(&x),
        Accumulate::Add => !y.overlaps(&x),
    };
    assert!(apart, "the result shares a part with the argument");
    let rows = Rows::of(shape);
    let maps = Shared((x, y));
    team.chunks(rows.count(), helping(team, rows.count(), shape.width * LANES), |_, first, end| {
        let (x, y) = maps.get();
        isa.run(PatchRows { packed, patch, x, into, y, rows, first, end });
    });
}

/// # Panics
/// If patches of that size do not cut `shape` up.
pub(super) fn assert_patches(shape: Shape, patch: usize) {
    assert!(
        patch > 0 && shape.height.is_multiple_of(patch) && shape.width.is_multiple_of(patch),
        "{shape:?} in patches of {patch}"
    );
}

struct PatchRows<'a> {
    packed: &'a [f32],
    patch: usize,
    x: FeatureMap<'a>,
    into: Accumulate,
    y: FeatureMap<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for PatchRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { packed, patch, .. } = self;
        let width = self.x.shape().width;
        for row in self.first..self.end {
            let (image, block, y) = self.rows.at(row);
            let numbers = packed[packed_at(patch, block, (y % patch, 0))..].as_ptr();
            let from = self.x.place(image, block, y as isize, 0);
            let to = self.y.place(image, block, y as isize, 0);
            for left in (0..width).step_by(patch) {
                for dx in 0..patch {
                    let at = (left + dx) * LANES;
                    // SAFETY: place left + dx < W of a row that no other thread has; the numbers of
                    // place (y % patch, dx) of this block.
                    unsafe {
                        let weight = s.load(numbers.add(2 * dx * LANES));
                        let bias = s.load(numbers.add((2 * dx + 1) * LANES));
                        let value = s.mul_add(s.load(from.add(at)), weight, bias);
                        self.into.put(s, to.add(at), value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::{assert_holds, everywhere, filled, pattern, used};
    use super::*;

    #[test]
    fn equals_its_scalar_twin() {
        let cases = [
            (1, (1, 16, 1, 1)),
            (2, (3, 21, 4, 6)),
            (3, (2, 40, 6, 9)),
            (4, (1, 3, 4, 4)),
            (8, (2, 33, 8, 16)),
        ];
        for (patch, (b, c, h, w)) in cases {
            let shape = Shape::new(b, c, h, w);
            let (x, values) = filled(shape, 3);
            let (weight, bias) = (pattern(c * patch * patch, 4), pattern(c * patch * patch, 5));
            let twin = |(i, x): (usize, &f32)| {
                let (c, y, column) = (i / w / h % c, i / w % h, i % w);
                let at = (c * patch + y % patch) * patch + column % patch;
                (f64::from(weight[at]) * f64::from(*x) + f64::from(bias[at])) as f32
            };
            let want: Vec<f32> = values.iter().enumerate().map(twin).collect();
            let affine = PatchAffine::new(&weight, &bias, patch);
            everywhere(|team, isa| {
                let y = used(shape);
                affine.run(team, isa, x.map(shape, 0), y.map(shape, 0));
                // A product and a sum of numbers below 1 are rounded once or twice.
                assert_holds(y.map(shape, 0), &want, (3e-7, 0.0), "patch affine");
            });
        }
    }

    #[test]
    #[should_panic(expected = "in patches of 3")]
    fn a_patch_that_does_not_fit_is_refused() {
        let shape = Shape::new(1, 16, 4, 6);
        let (x, _) = filled(shape, 1);
        let affine = PatchAffine::new(&[1.0; 144], &[0.0; 144], 3);
        affine.run(&Team::alone(), Isa::Portable, x.map(shape, 0), x.map(shape, 0));
    }
}
