//! Attention between levels, and what each has back to its places.

use super::{LevelRule, Levels, check_cosines, fill_levels, padded};
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::patch_attention::{Attention, attend, claim, scratch_len};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Numbers of scratch memory for [`level_attention`] with k of `shape`.
pub fn level_attention_scratch(shape: Shape) -> usize {
    scratch_len(shape, 1)
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
                // SAFETY: place (row, x) of the cosines, and levels filled before.
                let (value, (first, last)) = unsafe {
                    let value = *self.cosines.place(b, 0, row, x as isize);
                    (value, levels.range(s, bound, value))
                };
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
