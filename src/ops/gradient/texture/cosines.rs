//! Of the cosine between each place and the mean of its region, y = x·g/(‖x‖‖g‖): with a = dy/(‖x‖‖g‖),
//! x gets a·g − dy·y/‖x‖² · x, and g gets Σ a·x − Σ dy·y/‖g‖² · g over the region. A zero vector has no
//! gradient and gives none.

use super::Wanted;
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::patch_attention::claim;
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;
use crate::ops::texture::own;

/// Places whose ends are worked out together, in lanes.
const TILE: usize = LANES;

/// Places whose sums grow together.
const TOGETHER: usize = 4;

/// The smallest number above zero: a sum of squares below it is zero, and a NaN is not below.
const ABOVE_ZERO: f32 = f32::from_bits(1);

/// Numbers of scratch memory for [`cosine_to_mean`] with means of `means`.
pub fn cosine_to_mean_scratch(threads: usize, means: Shape) -> usize {
    threads * means.width * sums_len(means)
}

/// Σ a·x of one region and, in the last sixteen, Σ dy·y.
fn sums_len(means: Shape) -> usize {
    (means.blocks() + 1) * LANES
}

/// Of [`crate::ops::texture::cosine_to_mean`]: x [B, C, H, W], means g [B, C, S, S] and dy [B, 1, H, W] →
/// the gradients of x and of g, where they are wanted.
///
/// # Panics
/// If shapes do not fit, or a gradient or `scratch` shares memory with another map.
pub fn cosine_to_mean(
    team: &Team,
    isa: Isa,
    maps: [FeatureMap<'_>; 3],
    scratch: &Buffer,
    gradients: [Option<Wanted<'_>>; 2],
) {
    let [x, means, dy] = maps;
    let (shape, g) = (x.shape(), means.shape());
    assert_eq!(dy.shape(), Shape { channels: 1, ..shape }, "cosines of {shape:?}");
    assert_eq!((g.images, g.channels, g.height), (shape.images, shape.channels, g.width));
    let fits = shape.height.is_multiple_of(g.height) && shape.width.is_multiple_of(g.width);
    assert!(fits, "{g:?} as region means of {shape:?}");
    let len = cosine_to_mean_scratch(team.threads(), g);
    for (gradient, of) in gradients.iter().zip([x, means]) {
        let Some((_, to)) = gradient else { continue };
        assert_eq!(to.shape(), of.shape(), "a gradient of cosines");
        assert!(maps.iter().all(|map| !to.overlaps(map)), "a gradient of cosines in place");
        claim(scratch, len, &[to]);
    }
    if let [Some((_, a)), Some((_, b))] = &gradients {
        assert!(!a.overlaps(b), "both gradients in one place");
    }
    let start = claim(scratch, len, &[&x, &means, &dy]);
    let shared = Shared((maps, gradients, start));
    team.chunks(shape.images * g.height, 1, |thread, from, to| {
        let (maps, gradients, start) = shared.get();
        let sums = start.wrapping_add(thread * g.width * sums_len(g));
        for job in from..to {
            let at = (job / g.height, job % g.height);
            isa.run(Regions { maps, gradients, sums, at });
        }
    });
}

/// The regions side by side in one picture.
struct Regions<'a> {
    /// x, g and dy.
    maps: [FeatureMap<'a>; 3],
    /// Of x and of g.
    gradients: [Option<Wanted<'a>>; 2],
    /// This thread's, [`sums_len`] of each region.
    sums: *mut f32,
    /// Picture, and which row of regions.
    at: (usize, usize),
}

impl Kernel for Regions<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [x, means, _] = self.maps;
        let (shape, g) = (x.shape(), means.shape());
        let (image, region_row) = self.at;
        let (height, width) = (shape.height / g.height, shape.width / g.width);
        for at in (0..g.width * sums_len(g)).step_by(LANES) {
            // SAFETY: this thread's part of the scratch memory.
            unsafe { s.store(self.sums.add(at), s.zero()) };
        }
        for row in region_row * height..(region_row + 1) * height {
            for region in 0..g.width {
                let mean = means.place(image, 0, region_row as isize, region as isize);
                let squares = self.squares(s, mean);
                let end = (region + 1) * width;
                for from in (region * width..end).step_by(TILE) {
                    let count = (end - from).min(TILE);
                    self.tile(s, (row, from), count, (mean, squares), region);
                }
            }
        }
        let [_, Some((into, dg))] = self.gradients else { return };
        for region in 0..g.width {
            let mean = means.place(image, 0, region_row as isize, region as isize);
            let to = dg.place(image, 0, region_row as isize, region as isize);
            let squares = self.squares(s, mean);
            let sums = self.sums.wrapping_add(region * sums_len(g));
            // SAFETY: the region's place in the planes of g and of its gradient, which this job alone
            // writes, and this thread's sums.
            unsafe {
                let along = s.sum(s.load(sums.add(g.blocks() * LANES)));
                let along = s.splat(if squares < ABOVE_ZERO { 0.0 } else { along / squares });
                for block in 0..g.blocks() {
                    let value = self.load(s, mean.add(block * means.plane_len()), block);
                    let value = s.neg_mul_add(along, value, s.load(sums.add(block * LANES)));
                    into.put(s, to.add(block * dg.plane_len()), value);
                }
            }
        }
    }
}

impl Regions<'_> {
    /// Sixteen channels of block `block`, zero past the last.
    ///
    /// # Safety
    /// 16 readable numbers at `from`.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, from: *const f32, block: usize) -> S::F {
        // SAFETY: as the caller promises.
        let value = unsafe { s.load(from) };
        let mask = own(self.maps[0].shape().channels, block);
        if mask == u16::MAX { value } else { s.select(mask, value, s.zero()) }
    }

    /// ‖g‖².
    #[inline(always)]
    fn squares<S: Simd>(&self, s: S, mean: *const f32) -> f32 {
        let means = &self.maps[1];
        let mut squares = s.zero();
        for block in 0..means.shape().blocks() {
            // SAFETY: the region's place in one of the means' planes.
            let g = unsafe { self.load(s, mean.add(block * means.plane_len()), block) };
            squares = s.mul_add(g, g, squares);
        }
        s.sum(squares)
    }

    /// `count` places of one region from (row, from) on. Of its mean: where it lies, and ‖g‖².
    #[inline(always)]
    fn tile<S: Simd>(
        &self,
        s: S,
        (row, from): (usize, usize),
        count: usize,
        (mean, squares): (*const f32, f32),
        region: usize,
    ) {
        let [x, means, dy] = self.maps;
        let shape = x.shape();
        let image = self.at.0;
        let place = |map: &FeatureMap<'_>| map.place(image, 0, row as isize, from as isize);
        let (x_at, dy_at) = (place(&x), place(&dy));
        let mut ends = [[0.0; TILE]; 2];
        let mut i = 0;
        while i < count {
            i += if i + TOGETHER > count {
                self.ends::<S, 1>(s, i, (x_at, mean), &mut ends)
            } else {
                self.ends::<S, TOGETHER>(s, i, (x_at, mean), &mut ends)
            };
        }
        let mut given = [0.0; TILE];
        for (i, given) in given.iter_mut().enumerate().take(count) {
            // SAFETY: `count` places of dy's row.
            *given = unsafe { *dy_at.add(i * LANES) };
        }
        let [dots, xx] = ends.map(|ends| s.load_array(ends));
        let (norm, norm_g) = (s.sqrt(xx), s.splat(squares.sqrt()));
        // By one norm before the other: a product of two small ones is no normal number.
        let share = s.div(s.load_array(given), norm);
        let towards = s.div(share, norm_g);
        let cosine = s.div(s.div(dots, norm), norm_g);
        let along = s.mul(share, s.div(cosine, norm));
        let no_vector = s.lt(xx, s.splat(ABOVE_ZERO)) | s.lt(s.splat(squares), s.splat(ABOVE_ZERO));
        let sums = self.sums.wrapping_add(region * sums_len(means.shape()));
        let both = s.select(no_vector, s.zero(), s.mul(s.load_array(given), cosine));
        let last = sums.wrapping_add(shape.blocks() * LANES);
        // SAFETY: this thread's sums.
        unsafe { s.store(last, s.add(s.load(last), both)) };
        let towards = s.to_array(s.select(no_vector, s.zero(), towards));
        let along = s.to_array(s.select(no_vector, s.zero(), along));
        let dx = self.gradients[0].map(|(into, dx)| (into, place(&dx), dx.plane_len()));
        for block in 0..shape.blocks() {
            // SAFETY: the mean's place, `count` places of the row in one plane of x and of its
            // gradient, which this job alone writes, and this thread's sums.
            unsafe {
                let g = self.load(s, mean.add(block * means.plane_len()), block);
                let mut sum = s.zero();
                for i in 0..count {
                    let at = block * x.plane_len() + i * LANES;
                    let value = self.load(s, x_at.add(at), block);
                    let towards = s.splat(towards[i]);
                    sum = s.mul_add(towards, value, sum);
                    if let Some((into, dx, plane)) = dx {
                        let gradient = s.neg_mul_add(s.splat(along[i]), value, s.mul(towards, g));
                        into.put(s, dx.add(block * plane + i * LANES), gradient);
                    }
                }
                let to = sums.add(block * LANES);
                s.store(to, s.add(s.load(to), sum));
            }
        }
    }

    /// Σ x·g and Σ x² of places `i`..`i + P` of a tile, of which the first lies at `x_at`; P.
    #[inline(always)]
    fn ends<S: Simd, const P: usize>(
        &self,
        s: S,
        i: usize,
        (x_at, mean): (*const f32, *const f32),
        ends: &mut [[f32; TILE]; 2],
    ) -> usize {
        let [x, means, _] = self.maps;
        let mut sums = [[s.zero(); 2]; P];
        for block in 0..x.shape().blocks() {
            // SAFETY: the mean's place and places of the row in one plane of x.
            unsafe {
                let g = self.load(s, mean.add(block * means.plane_len()), block);
                for (j, [dot, xx]) in sums.iter_mut().enumerate() {
                    let at = block * x.plane_len() + (i + j) * LANES;
                    let value = self.load(s, x_at.add(at), block);
                    *dot = s.mul_add(value, g, *dot);
                    *xx = s.mul_add(value, value, *xx);
                }
            }
        }
        for (j, own) in sums.into_iter().enumerate() {
            for (ends, own) in ends.iter_mut().zip(own) {
                ends[i + j] = s.sum(own);
            }
        }
        P
    }
}
