//! The squared length of the channel vector at each place: how far a feature lies from the origin, which
//! is what MLFF's hypersphere asks (`../shared/spec/mlff.md`, section 2).
//! Letters: B pictures, C channels, H × W places.

use super::feature_map::{FeatureMap, Shared};
use super::rows::{Rows, helping};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Places whose sums are kept in registers at once.
const TOGETHER: usize = 4;

/// Σ_c x², x [B, C, H, W] → `to` [B, H, W], rows from the top.
///
/// # Panics
/// If `to` has another length.
pub fn squared_norm(team: &Team, isa: Isa, x: FeatureMap<'_>, to: &mut [f32]) {
    let shape = x.shape();
    assert_eq!(to.len(), shape.images * shape.places(), "squared norms of {shape:?}");
    let rows = Rows::of_images(shape);
    let len = shape.width * shape.blocks() * LANES;
    let shared = Shared((x, to.as_mut_ptr()));
    team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
        let (x, to) = shared.get();
        isa.run(NormRows { x, to, first, end });
    });
}

struct NormRows<'a> {
    x: FeatureMap<'a>,
    to: *mut f32,
    first: usize,
    end: usize,
}

impl Kernel for NormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.x.shape();
        let rows = Rows::of_images(shape);
        for row in self.first..self.end {
            let (image, _, y) = rows.at(row);
            let from = self.x.place(image, 0, y as isize, 0);
            let mut x = 0;
            while x < shape.width {
                // SAFETY: N places of the row, which has a plane for each block; the row's numbers of
                // the result are this thread's alone.
                x += unsafe {
                    let to = self.to.add(row * shape.width + x);
                    let from = from.add(x * LANES).cast_const();
                    let planes = (self.x.plane_len(), shape.blocks());
                    if x + TOGETHER <= shape.width {
                        norms::<S, TOGETHER>(s, from, planes, to)
                    } else {
                        norms::<S, 1>(s, from, planes, to)
                    }
                };
            }
        }
    }
}

/// Of N places; N.
///
/// # Safety
/// `from` has N readable places in each of so many planes, so far apart; `to` N writable numbers.
#[inline(always)]
unsafe fn norms<S: Simd, const N: usize>(
    s: S,
    from: *const f32,
    (plane, blocks): (usize, usize),
    to: *mut f32,
) -> usize {
    let mut sums = [s.zero(); N];
    for block in 0..blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            let x = unsafe { s.load(from.add(block * plane + i * LANES)) };
            *sum = s.mul_add(x, x, *sum);
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: as the caller promises.
        unsafe { *to.add(i) = s.sum(sum) };
    }
    N
}

#[cfg(test)]
mod tests {
    use super::super::checks::{everywhere, filled};
    use super::super::feature_map::Shape;
    use super::*;

    #[test]
    fn norms_equal_their_scalar_twin() {
        for (b, c, h, w) in [(1, 16, 4, 4), (3, 21, 5, 7), (2, 40, 1, 1), (1, 96, 2, 9)] {
            let shape = Shape::new(b, c, h, w);
            let (x, values) = filled(shape, 8);
            let mut want = vec![0.0_f64; b * h * w];
            for (i, value) in values.iter().enumerate() {
                let (image, place) = (i / (c * h * w), i % (h * w));
                want[image * h * w + place] += f64::from(*value).powi(2);
            }
            everywhere(|team, isa| {
                let mut got = vec![f32::NAN; want.len()];
                squared_norm(team, isa, x.map(shape, 0), &mut got);
                for (got, want) in got.iter().zip(&want) {
                    // Up to 6 sums a lane and 16 lanes, of squares below 1.
                    assert!((f64::from(*got) - want).abs() <= 2e-6 * want, "{got} {want}");
                }
            });
        }
    }
}
