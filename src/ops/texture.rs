//! Texture statistics of MLFF (`../shared/spec/mlff.md`; the operations of the same names in
//! [`crate::nn::graph`]): places are compared with their region's mean, the cosines quantised into
//! levels, levels counted alone and in neighbouring pairs, and what is learned about each level
//! spread back to its places.
//!
//! Letters: N levels, S × S regions, R = S² of them in raster order, T columns a region. A cosine map
//! is [B, 1, H, W] like any other feature map: one lane of sixteen. The encoding E of a place
//! [N] is worked out sixteen levels at a time where it is needed and never stored for a map. In
//! scratch memory levels stand in rows of N rounded up to a multiple of 16 ([`padded`]), the rest
//! [`NOWHERE`].

use super::feature_map::{Buffer, FeatureMap, Shape, Shared};
use super::patch_attention::{Attention, attend, claim};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Which values a level takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LevelRule {
    /// L_n = (max − min)/N · n + min for n = 1..N, and E = 1 − |L − M| where −½/N ≤ L − M < ½/N
    /// (eq. 1 of the paper).
    Paper,
    /// L_n = (2n + 1)/(2N) · (max − min) + min for n = 0..N−1, and E = 1 − |L − M| where |L − M| is
    /// below the spacing L₁ − L₀ (STLNet's published code).
    Reference,
}

/// Norms of a cosine are no smaller.
const SMALLEST_NORM: f32 = 1e-12;

/// A level that no value is near.
const NOWHERE: f32 = 1e30;

/// Numbers of a row of N levels.
fn padded(levels: usize) -> usize {
    levels.next_multiple_of(LANES)
}

/// Lanes that hold one of `channels` in block `block`.
#[inline(always)]
fn own(channels: usize, block: usize) -> u16 {
    (u32::MAX >> (LANES * 2 - (channels - block * LANES).min(LANES))) as u16
}

/// Levels between the bounds of M, and what decides whether a value is of one.
#[derive(Clone, Copy)]
struct Levels {
    rule: LevelRule,
    count: usize,
    /// [`padded`], all NaN where a value was.
    start: *mut f32,
}

impl Levels {
    /// # Safety
    /// `padded(count)` writable numbers at `start`, which nobody else uses meanwhile.
    unsafe fn fill(&self, (low, high): (f32, f32)) {
        let n = self.count as f32;
        for i in 0..padded(self.count) {
            let step = i as f32;
            let level = match self.rule {
                _ if i >= self.count => NOWHERE,
                LevelRule::Paper => (high - low) / n * (step + 1.0) + low,
                LevelRule::Reference => (2.0 * step + 1.0) / (2.0 * n) * (high - low) + low,
            };
            // SAFETY: as the caller promises.
            unsafe { self.start.add(i).write(level) };
        }
    }

    /// What [`member`] compares with.
    ///
    /// # Safety
    /// The levels were filled.
    #[inline(always)]
    unsafe fn bound(&self) -> f32 {
        match self.rule {
            LevelRule::Paper => 0.5 / self.count as f32,
            // SAFETY: there are two levels at least.
            LevelRule::Reference => unsafe { 1.0 - (*self.start.add(1) - *self.start) },
        }
    }
}

/// Which of sixteen levels `value` belongs to, and 1 − |L − M| of all.
#[inline(always)]
fn member<S: Simd>(s: S, rule: LevelRule, bound: f32, levels: S::F, value: S::F) -> (u16, S::F) {
    let d = s.sub(levels, value);
    let near = s.sub(s.splat(1.0), s.max(d, s.sub(s.zero(), d)));
    let mask = match rule {
        LevelRule::Paper => !s.lt(d, s.splat(-bound)) & s.lt(d, s.splat(bound)),
        LevelRule::Reference => s.lt(s.splat(bound), near),
    };
    (mask, near)
}

/// E of sixteen levels. NaN where the value or the level is.
#[inline(always)]
fn encode<S: Simd>(s: S, rule: LevelRule, bound: f32, levels: S::F, value: S::F) -> S::F {
    let (mask, near) = member(s, rule, bound, levels, value);
    s.mul(near, s.select(mask, s.splat(1.0), s.zero()))
}

/// The smallest and largest of channel 0 in the `height` × `width` places from (y, x) on; NaN if one
/// of them is.
#[inline(always)]
fn extent<S: Simd>(
    s: S,
    map: &FeatureMap<'_>,
    (b, y, x): (usize, usize, usize),
    (height, width): (usize, usize),
) -> (f32, f32) {
    let mut low = s.splat(f32::INFINITY);
    let (mut high, mut odd) = (s.splat(f32::NEG_INFINITY), s.zero());
    for row in y..y + height {
        let from = map.place(b, 0, row as isize, x as isize);
        for at in (0..width * LANES).step_by(LANES) {
            // SAFETY: a place of the interior.
            let value = unsafe { s.load(from.add(at)) };
            (low, high) = (s.min(low, value), s.max(high, value));
            odd = s.mul_add(value, s.zero(), odd);
        }
    }
    let odd = s.to_array(odd)[0];
    (s.to_array(low)[0] + odd, s.to_array(high)[0] + odd)
}

fn check_cosines(cosines: &FeatureMap<'_>, levels: usize) -> Shape {
    let shape = cosines.shape();
    assert!(shape.channels == 1 && shape.places() > 0, "{shape:?} as cosines");
    assert!(levels > 1, "{levels} levels");
    shape
}

/// Finds the levels of whole maps, one picture after the other.
struct Fill<'a> {
    cosines: FeatureMap<'a>,
    /// Of picture 0; the others' behind it.
    levels: Levels,
    from: usize,
    to: usize,
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.cosines.shape();
        for b in self.from..self.to {
            let bounds = extent(s, &self.cosines, (b, 0, 0), (shape.height, shape.width));
            // SAFETY: picture b's row of the scratch memory, which this job alone writes.
            unsafe { self.levels.of(b).fill(bounds) };
        }
    }
}

impl Levels {
    #[inline(always)]
    fn of(&self, image: usize) -> Self {
        Self { start: self.start.wrapping_add(image * padded(self.count)), ..*self }
    }
}

fn fill_levels(team: &Team, isa: Isa, cosines: &FeatureMap<'_>, levels: Levels) {
    let shared = Shared((*cosines, levels));
    team.chunks(cosines.shape().images, 1, |_, from, to| {
        let (cosines, levels) = shared.get();
        isa.run(Fill { cosines, levels, from, to });
    });
}

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
            unsafe { s.store(to, s.from_array(lanes)) };
        }
    }
}

/// A norm, or the smallest that counts; NaN stays.
#[inline(always)]
fn larger(norm: f32) -> f32 {
    if norm < SMALLEST_NORM { SMALLEST_NORM } else { norm }
}

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
/// the level L_m, the level L_n, and P = Σ E_{(i,j),m} E_{(i+1,j+1),n} divided by the region's
/// ΣP + 10⁻⁶.
///
/// # Panics
/// If shapes do not fit, N < 2, or `y` or `scratch` shares memory with another argument.
pub fn co_occurrence(
    team: &Team,
    isa: Isa,
    cosines: &FeatureMap<'_>,
    rule: LevelRule,
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
        isa.run(Pairs { cosines, levels, regions, y, from, to });
    });
}

/// Regions `from`..`to`, counted over pictures and regions.
struct Pairs<'a> {
    cosines: FeatureMap<'a>,
    /// At the start of the scratch memory; each region has its own of [`region_scratch`].
    levels: Levels,
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
                let (before, now) = (rows[(i + 1) % 2], rows[i % 2]);
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
                for j in 1..if i == 0 { 0 } else { width } {
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
                    unsafe { s.store(to.add(n * LANES), s.from_array(lanes)) };
                }
            }
        }
    }
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

/// Numbers of scratch memory for [`level_attention`] with k of `shape`.
pub fn level_attention_scratch(shape: Shape) -> usize {
    super::patch_attention::scratch_len(shape, 1)
}

/// k, q [B, C, 1, N] and v [B, Cv, 1, N] → y [B, Cv, 1, N]: softmax of the rows of kᵀq (N × N)
/// applied to v.
///
/// # Panics
/// If shapes do not fit, or `y` or `scratch` shares memory with another argument.
pub fn level_attention(
    team: &Team,
    isa: Isa,
    [k, q, v]: [&FeatureMap<'_>; 3],
    scratch: &Buffer,
    y: &FeatureMap<'_>,
) {
    // Levels are the tokens of attention between patches of one place: here k asks and q answers.
    attend(team, isa, Attention { q: *k, k: *q, v: *v, y: *y, patch: 1, scale: 1.0 }, scratch);
}

/// Numbers of scratch memory for [`spread_levels`].
pub fn spread_levels_scratch(images: usize, levels: usize) -> usize {
    images * padded(levels)
}

/// Cosines [B, 1, H, W] and d [B, C, 1, N] → y [B, C, H, W]: Σ_n d_n E_n of each place.
///
/// # Panics
/// If shapes do not fit, N < 2, or `y` or `scratch` shares memory with another argument.
pub fn spread_levels(
    team: &Team,
    isa: Isa,
    [cosines, d]: [&FeatureMap<'_>; 2],
    rule: LevelRule,
    scratch: &Buffer,
    y: &FeatureMap<'_>,
) {
    let Shape { channels, width: count, .. } = d.shape();
    let shape = check_cosines(cosines, count);
    assert_eq!(d.shape(), Shape::new(shape.images, channels, 1, count), "values of levels");
    assert_eq!(y.shape(), Shape { channels, ..shape }, "levels spread");
    assert!(!y.overlaps(cosines) && !y.overlaps(d), "levels spread in place");
    let len = spread_levels_scratch(shape.images, count);
    let levels = Levels { rule, count, start: claim(scratch, len, &[cosines, d, y]) };
    fill_levels(team, isa, cosines, levels);
    let shared = Shared((*cosines, *d, levels, *y));
    team.chunks(shape.images * shape.height, 2, |_, from, to| {
        let (cosines, d, levels, y) = shared.get();
        isa.run(Spread { cosines, d, levels, y, from, to });
    });
}

/// Rows `from`..`to`, counted over pictures and rows.
struct Spread<'a> {
    cosines: FeatureMap<'a>,
    d: FeatureMap<'a>,
    levels: Levels,
    y: FeatureMap<'a>,
    from: usize,
    to: usize,
}

impl Kernel for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.y.shape();
        for job in self.from..self.to {
            let (b, row) = (job / shape.height, (job % shape.height) as isize);
            let levels = self.levels.of(b);
            // SAFETY: filled before.
            let bound = unsafe { levels.bound() };
            for x in 0..shape.width {
                // SAFETY: place (row, x) of the cosines.
                let value = unsafe { *self.cosines.place(b, 0, row, x as isize) };
                let (first, last) = self.range(s, levels, bound, value);
                for block in (0..shape.blocks()).step_by(4) {
                    let sums = self.sums(s, (b, block), levels, (first, last), value);
                    for (i, sum) in sums.iter().enumerate().take(shape.blocks() - block) {
                        let to = self.y.place(b, block + i, row, x as isize);
                        // SAFETY: a place of y's interior, which this job alone writes.
                        unsafe { s.store(to, *sum) };
                    }
                }
            }
        }
    }
}

impl Spread<'_> {
    /// The levels of `value`, which stand side by side: first, and one past the last.
    #[inline(always)]
    fn range<S: Simd>(&self, s: S, levels: Levels, bound: f32, value: f32) -> (usize, usize) {
        let (mut first, mut last) = (levels.count, 0);
        for at in (0..padded(levels.count)).step_by(LANES) {
            // SAFETY: sixteen of the levels, filled before.
            let own = unsafe { s.load(levels.start.add(at)) };
            let (mask, near) = member(s, levels.rule, bound, own, s.splat(value));
            // Among NaN there is no level: all of them then, each with E = NaN.
            let mask = if s.to_array(near)[0].is_nan() { u16::MAX } else { mask };
            if mask != 0 {
                first = first.min(at + mask.trailing_zeros() as usize);
                last = at + LANES - mask.leading_zeros() as usize;
            }
        }
        (first, last.min(levels.count))
    }

    /// Σ d_n E_n over a range of levels for four blocks of d.
    #[inline(always)]
    fn sums<S: Simd>(
        &self,
        s: S,
        (b, block): (usize, usize),
        levels: Levels,
        (first, last): (usize, usize),
        value: f32,
    ) -> [S::F; 4] {
        let blocks = self.d.shape().blocks();
        let mut from = [std::ptr::null(); 4];
        for (i, from) in from.iter_mut().enumerate() {
            // Past the last block it is taken again, and the caller drops it.
            *from = self.d.place(b, (block + i).min(blocks - 1), 0, 0).cast_const();
        }
        let mut sums = [s.zero(); 4];
        for n in first..last {
            // SAFETY: one of the levels, filled before.
            let encoded = s.splat(1.0 - (unsafe { *levels.start.add(n) } - value).abs());
            for i in 0..4 {
                // SAFETY: place (0, n) of d.
                let d = unsafe { s.load(from[i].add(n * LANES)) };
                sums[i] = s.mul_add(encoded, d, sums[i]);
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests;
