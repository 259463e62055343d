//! Texture statistics of MLFF (`../shared/spec/mlff.md`; the operations of the same names in
//! [`crate::nn::graph`]): places are compared with their region's mean, the cosines quantised into
//! levels, levels counted alone and in neighbouring pairs, and what is learned about each level
//! spread back to its places.
//!
//! Letters: N levels, S × S regions, R = S² of them in raster order, T columns a region. A cosine map
//! is [B, 1, H, W] like any other feature map: one lane of sixteen. E of a place, N numbers,
//! is worked out sixteen levels at a time where it is needed and never stored for a whole map. In
//! scratch memory levels stand in rows of N rounded up to a multiple of 16, the rest so far off
//! that no value is near.

mod counts;
mod reach;
mod regions;
mod spread;

pub use counts::{co_occurrence, co_occurrence_scratch, level_counts, level_counts_scratch};
pub use reach::{Reach, reach};
pub(super) use regions::own;
pub use regions::{cosine_to_mean, mean_regions, repeat_regions};
pub use spread::{level_attention, level_attention_scratch, spread_levels, spread_levels_scratch};

use serde::{Deserialize, Serialize};

use super::feature_map::{FeatureMap, Shape, Shared};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Which values a level takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LevelRule {
    /// L_n = (max − min)/N · n + min for n = 1..N, and E = 1 − |L − M| where −½/N ≤ L − M < ½/N
    /// (eq. 1 of the paper).
    #[default]
    Paper,
    /// L_n = (2n + 1)/(2N) · (max − min) + min for n = 0..N−1, and E = 1 − |L − M| where |L − M| is
    /// below the spacing L₁ − L₀ (STLNet's published code).
    Reference,
}

impl LevelRule {
    /// Level `n` of `count` between the bounds of M.
    #[inline(always)]
    fn level(self, n: usize, count: usize, (low, high): (f32, f32)) -> f32 {
        let (step, count) = (n as f32, count as f32);
        match self {
            LevelRule::Paper => (high - low) / count * (step + 1.0) + low,
            LevelRule::Reference => (2.0 * step + 1.0) / (2.0 * count) * (high - low) + low,
        }
    }

    /// How much of the largest value is in level `n` of `count`; the rest is of the smallest.
    pub(super) fn share_of_high(self, n: usize, count: usize) -> f32 {
        match self {
            LevelRule::Paper => (n + 1) as f32 / count as f32,
            LevelRule::Reference => (2 * n + 1) as f32 / (2 * count) as f32,
        }
    }

    /// Whether a level takes a value: `d` is L − M, `spacing` L₁ − L₀.
    fn takes(self, d: f32, count: usize, spacing: f32) -> bool {
        let half = 0.5 / count as f32;
        match self {
            LevelRule::Paper => (-half..half).contains(&d),
            LevelRule::Reference => 1.0 - d.abs() > 1.0 - spacing,
        }
    }
}

/// With which place a place makes a pair; both lie in the same region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Neighbour {
    /// One row down and one column to the right (STLNet's published code).
    #[default]
    Diagonal,
    /// One column to the right.
    Right,
}

impl Neighbour {
    /// Rows and columns from a place to it.
    pub fn offset(self) -> (usize, usize) {
        match self {
            Neighbour::Diagonal => (1, 1),
            Neighbour::Right => (0, 1),
        }
    }
}

/// A level that no value is near.
const NOWHERE: f32 = 1e30;

/// Numbers of a row of N levels.
pub(super) fn padded(levels: usize) -> usize {
    levels.next_multiple_of(LANES)
}

/// Levels between the bounds of M, and what decides whether a value is of one.
#[derive(Clone, Copy)]
pub(super) struct Levels {
    pub rule: LevelRule,
    pub count: usize,
    /// [`padded`], all NaN where a value was.
    pub start: *mut f32,
}

impl Levels {
    /// Those of another picture.
    #[inline(always)]
    fn of(&self, image: usize) -> Self {
        Self { start: self.start.wrapping_add(image * padded(self.count)), ..*self }
    }

    /// # Safety
    /// `padded(count)` writable numbers at `start`, which nobody else uses meanwhile.
    pub unsafe fn fill(&self, bounds: (f32, f32)) {
        for i in 0..padded(self.count) {
            let level =
                if i < self.count { self.rule.level(i, self.count, bounds) } else { NOWHERE };
            // SAFETY: as the caller promises.
            unsafe { self.start.add(i).write(level) };
        }
    }

    /// What [`member`] compares with.
    ///
    /// # Safety
    /// The levels were filled.
    #[inline(always)]
    pub unsafe fn bound(&self) -> f32 {
        match self.rule {
            LevelRule::Paper => 0.5 / self.count as f32,
            // SAFETY: there are two levels at least.
            LevelRule::Reference => unsafe { 1.0 - (*self.start.add(1) - *self.start) },
        }
    }

    /// The levels of `value`, which stand side by side: first, and one past the last.
    ///
    /// # Safety
    /// The levels were filled, and `bound` is theirs.
    #[inline(always)]
    pub unsafe fn range<S: Simd>(&self, s: S, bound: f32, value: f32) -> (usize, usize) {
        let (mut first, mut last) = (self.count, 0);
        for at in (0..padded(self.count)).step_by(LANES) {
            // SAFETY: sixteen of the levels, filled before.
            let own = unsafe { s.load(self.start.add(at)) };
            let (mask, near) = member(s, self.rule, bound, own, s.splat(value));
            // Among NaN there is no level: all of them then, each with E = NaN.
            let mask = if s.to_array(near)[0].is_nan() { u16::MAX } else { mask };
            if mask != 0 {
                first = first.min(at + mask.trailing_zeros() as usize);
                last = at + LANES - mask.leading_zeros() as usize;
            }
        }
        (first, last.min(self.count))
    }
}

/// Which of sixteen levels `value` belongs to, and 1 − |L − M| of all.
#[inline(always)]
pub(super) fn member<S: Simd>(
    s: S,
    rule: LevelRule,
    bound: f32,
    levels: S::F,
    value: S::F,
) -> (u16, S::F) {
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
pub(super) fn encode<S: Simd>(
    s: S,
    rule: LevelRule,
    bound: f32,
    levels: S::F,
    value: S::F,
) -> S::F {
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

pub(super) fn check_cosines(cosines: &FeatureMap<'_>, levels: usize) -> Shape {
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

/// Of each picture, from the bounds of its cosines.
fn fill_levels(team: &Team, isa: Isa, cosines: &FeatureMap<'_>, levels: Levels) {
    let shared = Shared((*cosines, levels));
    team.chunks(cosines.shape().images, 1, |_, from, to| {
        let (cosines, levels) = shared.get();
        isa.run(Fill { cosines, levels, from, to });
    });
}

#[cfg(test)]
mod tests;
