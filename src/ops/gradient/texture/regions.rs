//! Of values repeated along a region's row, and of rows averaged: each is the other's, but for a
//! factor.

use super::Wanted;
use crate::ops::feature_map::{FeatureMap, Shared};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Of [`crate::ops::texture::repeat_regions`]: dy [B, C, S², T] → dx [B, C, S, S], the sum of each
/// region's row.
///
/// # Panics
/// If shapes do not fit, or `dx` shares memory with `dy`.
pub fn repeat_regions(team: &Team, isa: Isa, dy: FeatureMap<'_>, dx: Wanted<'_>) {
    run::<true>(team, isa, dy, dx);
}

/// Of [`crate::ops::texture::mean_regions`]: dy [B, C, S, S] → dx [B, C, S², T], a T-th of it to each
/// place of the region's row.
///
/// # Panics
/// If shapes do not fit, or `dx` shares memory with `dy`.
pub fn mean_regions(team: &Team, isa: Isa, dy: FeatureMap<'_>, dx: Wanted<'_>) {
    run::<false>(team, isa, dy, dx);
}

/// `SUM`: dy has the long rows.
fn run<const SUM: bool>(team: &Team, isa: Isa, dy: FeatureMap<'_>, dx: Wanted<'_>) {
    let (long, square) = if SUM { (dy, dx.1) } else { (dx.1, dy) };
    let (long, square) = (long.shape(), square.shape());
    let fits = (long.images, long.channels, long.height)
        == (square.images, square.channels, square.places());
    assert!(fits && square.height == square.width, "{long:?} as rows of {square:?}");
    assert!(!dx.1.overlaps(&dy), "the gradient overlaps the argument");
    let shared = Shared((dy, dx));
    let jobs = long.images * long.blocks() * long.height;
    team.chunks(jobs, jobs.div_ceil(4 * team.threads()), |_, from, to| {
        let (dy, dx) = shared.get();
        isa.run(Rows::<SUM> { dy, dx, from, to });
    });
}

/// Rows `from`..`to` of the long map, counted over pictures, blocks and regions.
struct Rows<'a, const SUM: bool> {
    dy: FeatureMap<'a>,
    dx: Wanted<'a>,
    from: usize,
    to: usize,
}

impl<const SUM: bool> Kernel for Rows<'_, SUM> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (dy, (into, dx)) = (self.dy, self.dx);
        let (long, square) = if SUM { (dy, dx) } else { (dx, dy) };
        let (shape, side) = (long.shape(), square.shape().width);
        let share = s.splat(1.0 / shape.width as f32);
        for job in self.from..self.to {
            let (plane, region) = (job / shape.height, job % shape.height);
            let (b, block) = (plane / shape.blocks(), plane % shape.blocks());
            let row = long.place(b, block, region as isize, 0);
            let one = square.place(b, block, (region / side) as isize, (region % side) as isize);
            if SUM {
                let mut sums = [s.zero(); 4];
                for i in 0..shape.width {
                    // SAFETY: place i of the region's row of dy.
                    let value = unsafe { s.load(row.add(i * LANES)) };
                    sums[i % 4] = s.add(sums[i % 4], value);
                }
                let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
                // SAFETY: the region's place of dx, which this job alone writes.
                unsafe { into.put(s, one, sum) };
            } else {
                // SAFETY: the region's place of dy.
                let value = s.mul(unsafe { s.load(one) }, share);
                for i in 0..shape.width {
                    // SAFETY: place i of the region's row of dx, which this job alone writes.
                    unsafe { into.put(s, row.add(i * LANES), value) };
                }
            }
        }
    }
}
