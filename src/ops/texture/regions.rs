//! Places, regions and their means: cosines, repeats, averages.

use crate::ops::feature_map::{FeatureMap, Shape, Shared};
use crate::ops::patch_attention::first_lanes;
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Norms of a cosine are no smaller.
const SMALLEST_NORM: f32 = 1e-12;

/// x [B, C, H, W] and region means [B, C, S, S] → y [B, 1, H, W]: the cosine of the angle between
/// each place and the mean of its region.
///
/// # Panics
/// If shapes do not fit, or `y` shares memory with an argument.
pub fn cosine_to_mean(
    team: &Team,
    isa: Isa,
    x: &FeatureMap<'_>,
    means: &FeatureMap<'_>,
    y: &FeatureMap<'_>,
) {
    let (shape, g) = (x.shape(), means.shape());
    assert_eq!(y.shape(), Shape { channels: 1, ..shape }, "cosines of {shape:?}");
    assert_eq!((g.images, g.channels, g.height), (shape.images, shape.channels, g.width));
    let fits = shape.height.is_multiple_of(g.height) && shape.width.is_multiple_of(g.width);
    assert!(fits, "{g:?} as region means of {shape:?}");
    assert!(!y.overlaps(x) && !y.overlaps(means), "cosines in place");
    let shared = Shared((*x, *means, *y));
    team.chunks(shape.images * shape.height, 2, |_, from, to| {
        let (x, means, y) = shared.get();
        isa.run(Cosines { x, means, y, from, to });
    });
}

/// Rows `from`..`to`, counted over pictures and rows.
struct Cosines<'a> {
    x: FeatureMap<'a>,
    means: FeatureMap<'a>,
    y: FeatureMap<'a>,
    from: usize,
    to: usize,
}

impl Kernel for Cosines<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shape, regions) = (self.x.shape(), self.means.shape().width);
        let (height, width) = (shape.height / regions, shape.width / regions);
        for job in self.from..self.to {
            let (b, row) = (job / shape.height, job % shape.height);
            for region in 0..regions {
                let mean = self.means.place(b, 0, (row / height) as isize, region as isize);
                let mut squares = s.zero();
                for block in 0..shape.blocks() {
                    // SAFETY: the region's place in one of the means' planes.
                    let g = unsafe { s.load(mean.add(block * self.means.plane_len())) };
                    let g = s.select(own(shape.channels, block), g, s.zero());
                    squares = s.mul_add(g, g, squares);
                }
                let norm = larger(s.sum(squares).sqrt());
                let end = (region + 1) * width;
                let mut x = region * width;
                while x + 4 <= end {
                    self.places::<S, 4>(s, (b, row, x), mean, norm);
                    x += 4;
                }
                for x in x..end {
                    self.places::<S, 1>(s, (b, row, x), mean, norm);
                }
            }
        }
    }
}

impl Cosines<'_> {
    /// P places of one region.
    #[inline(always)]
    fn places<S: Simd, const P: usize>(
        &self,
        s: S,
        (b, row, x): (usize, usize, usize),
        mean: *const f32,
        norm: f32,
    ) {
        let shape = self.x.shape();
        let from = self.x.place(b, 0, row as isize, x as isize);
        let (mut dots, mut squares) = ([s.zero(); P], [s.zero(); P]);
        for block in 0..shape.blocks() {
            // SAFETY: the region's place in one of the means' planes.
            let g = unsafe { s.load(mean.add(block * self.means.plane_len())) };
            let mask = own(shape.channels, block);
            for i in 0..P {
                // SAFETY: places x.. of this row, in one of the map's planes.
                let mut value = unsafe { s.load(from.add(block * self.x.plane_len() + i * LANES)) };
                if mask != u16::MAX {
                    value = s.select(mask, value, s.zero());
                }
                dots[i] = s.mul_add(value, g, dots[i]);
                squares[i] = s.mul_add(value, value, squares[i]);
            }
        }
        for i in 0..P {
            let mut lanes = [0.0; LANES];
            lanes[0] = s.sum(dots[i]) / (larger(s.sum(squares[i]).sqrt()) * norm);
            let to = self.y.place(b, 0, row as isize, (x + i) as isize);
            // SAFETY: a place of y's interior, which this job alone writes.
            unsafe { s.store(to, s.load_array(lanes)) };
        }
    }
}

/// A norm, or the smallest that counts; NaN stays.
#[inline(always)]
fn larger(norm: f32) -> f32 {
    if norm < SMALLEST_NORM { SMALLEST_NORM } else { norm }
}

/// x [B, C, S, S] → y [B, C, S², T]: region by region, each value T times.
///
/// # Panics
/// If shapes do not fit, or `y` shares memory with `x`.
pub fn repeat_regions(team: &Team, isa: Isa, x: &FeatureMap<'_>, y: &FeatureMap<'_>) {
    let (from, to) = (x.shape(), y.shape());
    assert_eq!((from.images, from.channels, from.places()), (to.images, to.channels, to.height));
    assert!(!x.overlaps(y), "regions repeated in place");
    let shared = Shared((*x, *y));
    let jobs = to.images * to.blocks() * to.height;
    team.chunks(jobs, jobs.div_ceil(4 * team.threads()), |_, from, to| {
        let (x, y) = shared.get();
        isa.run(Regions { x, y, mean: false, from, to });
    });
}

/// x [B, C, S², T] → y [B, C, S, S]: the mean of each region's row.
///
/// # Panics
/// If shapes do not fit, or `y` shares memory with `x`.
pub fn mean_regions(team: &Team, isa: Isa, x: &FeatureMap<'_>, y: &FeatureMap<'_>) {
    let (from, to) = (x.shape(), y.shape());
    assert_eq!((from.images, from.channels, from.height), (to.images, to.channels, to.places()));
    assert!(from.width > 0 && !x.overlaps(y), "means of regions");
    let shared = Shared((*x, *y));
    let jobs = from.images * from.blocks() * from.height;
    team.chunks(jobs, jobs.div_ceil(4 * team.threads()), |_, from, to| {
        let (x, y) = shared.get();
        isa.run(Regions { x, y, mean: true, from, to });
    });
}

/// Rows `from`..`to` of the map [B, C, S², T], counted over pictures, blocks and regions: their means
/// to y, or x's values along them.
struct Regions<'a> {
    x: FeatureMap<'a>,
    y: FeatureMap<'a>,
    mean: bool,
    from: usize,
    to: usize,
}

impl Kernel for Regions<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (long, square) = if self.mean { (self.x, self.y) } else { (self.y, self.x) };
        let (shape, side) = (long.shape(), square.shape().width);
        let share = s.splat(1.0 / shape.width as f32);
        for job in self.from..self.to {
            let (plane, region) = (job / shape.height, job % shape.height);
            let (b, block) = (plane / shape.blocks(), plane % shape.blocks());
            let row = long.place(b, block, region as isize, 0);
            let one = square.place(b, block, (region / side) as isize, (region % side) as isize);
            if self.mean {
                let mut sums = [s.zero(); 4];
                for i in 0..shape.width {
                    // SAFETY: place i of the region's row.
                    let value = unsafe { s.load(row.add(i * LANES)) };
                    sums[i % 4] = s.add(sums[i % 4], value);
                }
                let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
                // SAFETY: the region's place of y, which this job alone writes.
                unsafe { s.store(one, s.mul(sum, share)) };
            } else {
                // SAFETY: the region's place of x.
                let value = unsafe { s.load(one) };
                for i in 0..shape.width {
                    // SAFETY: place i of the region's row of y, which this job alone writes.
                    unsafe { s.store(row.add(i * LANES), value) };
                }
            }
        }
    }
}

/// Lanes that hold one of `channels` in block `block`.
#[inline(always)]
pub(in crate::ops) fn own(channels: usize, block: usize) -> u16 {
    first_lanes((channels - block * LANES).min(LANES))
}
