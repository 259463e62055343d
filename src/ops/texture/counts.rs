//! How many values each level has, and each pair of levels at neighbours.

use super::{LevelRule, Levels, Neighbour, check_cosines, encode, extent, fill_levels, padded};
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::patch_attention::claim;
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Numbers of scratch memory for [`level_counts`].
pub fn level_counts_scratch(images: usize, levels: usize) -> usize {
    2 * images * padded(levels)
}

/// Cosines [B, 1, H, W] → y [B, 2, 1, N]: the levels, and Σ_i E_{i,n} / Σ_{i,n} E_{i,n} (zero where
/// no value is of any level).
///
/// # Panics
/// If shapes do not fit, N < 2, or `y` or `scratch` shares memory with another argument.
pub fn level_counts(
    team: &Team,
    isa: Isa,
    cosines: &FeatureMap<'_>,
    rule: LevelRule,
    scratch: &Buffer,
    y: &FeatureMap<'_>,
) {
    let count = y.shape().width;
    let shape = check_cosines(cosines, count);
    assert_eq!(y.shape(), Shape::new(shape.images, 2, 1, count), "level counts");
    assert!(!y.overlaps(cosines), "level counts in place");
    let len = level_counts_scratch(shape.images, count);
    let start = claim(scratch, len, &[cosines, y]);
    let levels = Levels { rule, count, start };
    let sums = start.wrapping_add(shape.images * padded(count));
    fill_levels(team, isa, cosines, levels);
    let shared = Shared((*cosines, levels, sums));
    team.chunks(shape.images * padded(count) / LANES, 1, |_, from, to| {
        let (cosines, levels, sums) = shared.get();
        isa.run(Count { cosines, levels, sums, from, to });
    });
    for b in 0..shape.images {
        let row = b * padded(count);
        // SAFETY: picture b's levels and sums, written above and by nobody now.
        let (levels, sums) = unsafe {
            let levels = std::slice::from_raw_parts(start.add(row), count);
            (levels, std::slice::from_raw_parts(sums.add(row), count))
        };
        let total = sums.iter().map(|x| f64::from(*x)).sum::<f64>() + 1e-12;
        for n in 0..count {
            y.set(b, 0, 0, n, levels[n]);
            y.set(b, 1, 0, n, (f64::from(sums[n]) / total) as f32);
        }
    }
}

/// Σ_i E_{i,n} for sixteen levels, jobs counted over pictures and blocks of levels.
struct Count<'a> {
    cosines: FeatureMap<'a>,
    levels: Levels,
    /// As the levels.
    sums: *mut f32,
    from: usize,
    to: usize,
}

impl Kernel for Count<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.cosines.shape();
        let blocks = padded(self.levels.count) / LANES;
        for job in self.from..self.to {
            let levels = self.levels.of(job / blocks);
            // SAFETY: filled before, and this job's sixteen of them.
            let (bound, own) =
                unsafe { (levels.bound(), s.load(self.levels.start.add(job * LANES))) };
            let mut sum = s.zero();
            for y in 0..shape.height {
                let from = self.cosines.place(job / blocks, 0, y as isize, 0);
                let mut row = s.zero();
                for at in (0..shape.width * LANES).step_by(LANES) {
                    // SAFETY: a place of the interior.
                    let value = s.splat(unsafe { *from.add(at) });
                    row = s.add(row, encode(s, levels.rule, bound, own, value));
                }
                sum = s.add(sum, row);
            }
            // SAFETY: as above.
            unsafe { s.store(self.sums.add(job * LANES), sum) };
        }
    }
}

/// Numbers of scratch memory for [`co_occurrence`] of cosines of `shape`.
pub fn co_occurrence_scratch(shape: Shape, levels: usize, regions: usize) -> usize {
    shape.images * regions * regions * region_scratch(shape.width / regions, levels)
}

/// Of one region: its levels, E of two rows, and the pairs.
fn region_scratch(width: usize, levels: usize) -> usize {
    (1 + 2 * width + levels) * padded(levels)
}

/// Cosines [B, 1, H, W] in S × S regions → y [B, 3, S², N²]: for each pair (m, n), at column N·m + n,
/// the level L_m, the level L_n, and P = Σ E_{(i,j),m} E_{neighbour of (i,j),n} divided by the
/// region's ΣP + 10⁻⁶.
///
/// # Panics
/// If shapes do not fit, N < 2, or `y` or `scratch` shares memory with another argument.
pub fn co_occurrence(
    team: &Team,
    isa: Isa,
    cosines: &FeatureMap<'_>,
    (rule, neighbour): (LevelRule, Neighbour),
    scratch: &Buffer,
    y: &FeatureMap<'_>,
) {
    let (regions, count) = (y.shape().height.isqrt(), y.shape().width.isqrt());
    let shape = check_cosines(cosines, count);
    let wanted = Shape::new(shape.images, 3, regions * regions, count * count);
    assert_eq!(y.shape(), wanted, "co-occurrences");
    let fits = shape.height.is_multiple_of(regions) && shape.width.is_multiple_of(regions);
    assert!(fits, "{shape:?} in {regions} × {regions} regions");
    assert!(!y.overlaps(cosines), "co-occurrences in place");
    let len = co_occurrence_scratch(shape, count, regions);
    let start = claim(scratch, len, &[cosines, y]);
    let shared = Shared((*cosines, Levels { rule, count, start }, *y));
    team.chunks(shape.images * regions * regions, 1, |_, from, to| {
        let (cosines, levels, y) = shared.get();
        isa.run(Pairs { cosines, levels, neighbour, regions, y, from, to });
    });
}

/// Regions `from`..`to`, counted over pictures and regions.
struct Pairs<'a> {
    cosines: FeatureMap<'a>,
    /// At the start of the scratch memory; each region has its own of [`region_scratch`].
    levels: Levels,
    neighbour: Neighbour,
    regions: usize,
    y: FeatureMap<'a>,
    from: usize,
    to: usize,
}

impl Kernel for Pairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shape, regions) = (self.cosines.shape(), self.regions);
        let (height, width) = (shape.height / regions, shape.width / regions);
        let count = self.levels.count;
        let pad = padded(count);
        for job in self.from..self.to {
            let (b, region) = (job / (regions * regions), job % (regions * regions));
            let corner = (region / regions * height, region % regions * width);
            let start = self.levels.start.wrapping_add(job * region_scratch(width, count));
            let levels = Levels { start, ..self.levels };
            let rows = [start.wrapping_add(pad), start.wrapping_add((1 + width) * pad)];
            let pairs = start.wrapping_add((1 + 2 * width) * pad);
            let bounds = extent(s, &self.cosines, (b, corner.0, corner.1), (height, width));
            // SAFETY: this region's own part of the scratch memory, here and below.
            let bound = unsafe {
                levels.fill(bounds);
                levels.bound()
            };
            for at in (0..count * pad).step_by(LANES) {
                // SAFETY: as above.
                unsafe { s.store(pairs.add(at), s.zero()) };
            }
            for i in 0..height {
                let now = rows[i % 2];
                let (before, alone) = match self.neighbour {
                    Neighbour::Diagonal => (rows[(i + 1) % 2], i == 0),
                    Neighbour::Right => (now, false),
                };
                let (y, x) = ((corner.0 + i) as isize, corner.1 as isize);
                let from = self.cosines.place(b, 0, y, x);
                for j in 0..width {
                    // SAFETY: place j of the region's row i.
                    let value = s.splat(unsafe { *from.add(j * LANES) });
                    for at in (0..pad).step_by(LANES) {
                        // SAFETY: as above.
                        unsafe {
                            let own = s.load(start.add(at));
                            let encoded = encode(s, levels.rule, bound, own, value);
                            s.store(now.add(j * pad + at), encoded);
                        }
                    }
                }
                for j in 1..if alone { 0 } else { width } {
                    for m in 0..count {
                        // SAFETY: as above.
                        unsafe {
                            let first = s.splat(*before.add((j - 1) * pad + m));
                            for at in (0..pad).step_by(LANES) {
                                let pair = pairs.add(m * pad + at);
                                let second = s.load(now.add(j * pad + at));
                                s.store(pair, s.mul_add(first, second, s.load(pair)));
                            }
                        }
                    }
                }
            }
            // SAFETY: as above.
            let (levels, pairs) = unsafe {
                let levels = std::slice::from_raw_parts(start, count);
                (levels, std::slice::from_raw_parts(pairs, count * pad))
            };
            let own = |i: &usize| i % pad < count;
            let total: f32 = (0..count * pad).filter(own).map(|i| pairs[i]).sum();
            for m in 0..count {
                let to = self.y.place(b, 0, region as isize, (m * count) as isize);
                for n in 0..count {
                    let mut lanes = [0.0; LANES];
                    lanes[0] = levels[m];
                    lanes[1] = levels[n];
                    lanes[2] = pairs[m * pad + n] / (total + 1e-6);
                    // SAFETY: column N·m + n of the region's row of y, which this job alone writes.
                    unsafe { s.store(to.add(n * LANES), s.load_array(lanes)) };
                }
            }
        }
    }
}
