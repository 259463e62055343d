//! Gradients of MLFF's texture statistics ([`crate::ops::texture`]).
//!
//! With d = L − M, E = 1 − |d| where a level takes a value: ∂E/∂M = sign d and ∂E/∂L = −sign d there,
//! and nothing elsewhere; whether it takes it has no gradient. sign 0 is 0. A level is a mean, with
//! fixed weights, of the smallest and the largest cosine of its region, so that what is given to levels
//! goes to the first places that hold those two.
//!
//! A cosine map is [B, 1, H, W]; its gradient is zero in the other fifteen lanes. Scratch memory is a
//! part for each thread. Letters: N levels, S × S regions, T columns a region.

mod attention;
mod cosines;
mod counts;
mod pairs;
mod regions;
mod spread;

pub use attention::{level_attention, level_attention_scratch};
pub use cosines::{cosine_to_mean, cosine_to_mean_scratch};
pub use counts::{level_counts, level_counts_scratch};
pub use pairs::{co_occurrence, co_occurrence_scratch};
pub use regions::{mean_regions, repeat_regions};
pub use spread::{spread_levels, spread_levels_scratch};

use super::accumulate::Accumulate;
use crate::ops::feature_map::FeatureMap;
use crate::ops::simd::{LANES, Simd};
use crate::ops::texture::{LevelRule, Levels, member, padded};

/// An argument's gradient and how it is written.
pub type Wanted<'a> = (Accumulate, FeatureMap<'a>);

/// A part of a cosine map that has levels of its own: places from (y, x) of a picture on.
#[derive(Clone, Copy)]
struct Region {
    image: usize,
    y: usize,
    x: usize,
    height: usize,
    width: usize,
}

/// The smallest and the largest cosine of a region, and the first places that hold them; both NaN where
/// a cosine is.
#[derive(Clone, Copy)]
struct Bounds {
    low: f32,
    high: f32,
    at_low: (usize, usize),
    at_high: (usize, usize),
}

impl Region {
    /// Region `region` of `side` × `side`, row by row.
    fn of(cosines: &FeatureMap<'_>, image: usize, region: usize, side: usize) -> Region {
        let shape = cosines.shape();
        let (height, width) = (shape.height / side, shape.width / side);
        Region { image, y: region / side * height, x: region % side * width, height, width }
    }

    /// Place (i, j) of the region in a map of one channel.
    #[inline(always)]
    fn place(&self, map: &FeatureMap<'_>, (i, j): (usize, usize)) -> *mut f32 {
        map.place(self.image, 0, (self.y + i) as isize, (self.x + j) as isize)
    }

    fn bounds(&self, cosines: &FeatureMap<'_>) -> Bounds {
        let mut found =
            Bounds { low: f32::INFINITY, high: f32::NEG_INFINITY, at_low: (0, 0), at_high: (0, 0) };
        let mut odd = 0.0;
        for i in 0..self.height {
            let row = self.place(cosines, (i, 0));
            for j in 0..self.width {
                // SAFETY: place j of the region's row i.
                let value = unsafe { *row.add(j * LANES) };
                if value < found.low {
                    (found.low, found.at_low) = (value, (i, j));
                }
                if value > found.high {
                    (found.high, found.at_high) = (value, (i, j));
                }
                odd += value * 0.0;
            }
        }
        Bounds { low: found.low + odd, high: found.high + odd, ..found }
    }

    /// Gives what its levels were given to the places of the bounds.
    ///
    /// # Safety
    /// `given` has `count` readable numbers; nobody else uses the region of `to`.
    unsafe fn give_bounds(
        &self,
        bounds: &Bounds,
        (rule, count): (LevelRule, usize),
        given: *const f32,
        to: &FeatureMap<'_>,
    ) {
        let (mut low, mut high) = (0.0, 0.0);
        for n in 0..count {
            // SAFETY: as the caller promises.
            let given = unsafe { *given.add(n) };
            let share = rule.share_of_high(n, count);
            high += share * given;
            low += (1.0 - share) * given;
        }
        // SAFETY: two places of the region.
        unsafe {
            *self.place(to, bounds.at_low) += low;
            *self.place(to, bounds.at_high) += high;
        }
    }
}

impl Bounds {
    /// Zero, or NaN where a cosine is: what is added to every gradient, so that a NaN shows.
    #[inline(always)]
    fn odd(&self) -> f32 {
        (self.high - self.low) * 0.0
    }
}

/// Writes the one number of a place.
///
/// # Safety
/// 16 writable numbers at `to`, and readable ones to be added to.
#[inline(always)]
unsafe fn put_one<S: Simd>(s: S, into: Accumulate, to: *mut f32, value: f32) {
    // SAFETY: as the caller promises.
    unsafe {
        match into {
            Accumulate::Set => s.store(to, s.select(1, s.splat(value), s.zero())),
            Accumulate::Add => *to += value,
        }
    }
}

/// Which of sixteen levels take `value`, and sign d.
#[inline(always)]
fn slope<S: Simd>(s: S, rule: LevelRule, bound: f32, levels: S::F, value: S::F) -> (u16, S::F) {
    let (mask, _) = member(s, rule, bound, levels, value);
    let (one, zero) = (s.splat(1.0), s.zero());
    let above = s.select(s.lt(value, levels), one, zero);
    (mask, s.sub(above, s.select(s.lt(levels, value), one, zero)))
}

/// What the E of a place are given goes to its cosine, which is returned, and to its levels.
///
/// # Safety
/// `levels` were filled and `bound` is theirs; `encoded`, the gradients by E, and `given` have as many
/// numbers, the latter nobody else uses.
#[inline(always)]
unsafe fn give_levels<S: Simd>(
    s: S,
    levels: &Levels,
    bound: f32,
    value: f32,
    encoded: *const f32,
    given: *mut f32,
) -> f32 {
    let mut sum = 0.0;
    for at in (0..padded(levels.count)).step_by(LANES) {
        // SAFETY: sixteen of the levels, and of what they are given.
        unsafe {
            let own = s.load(levels.start.add(at));
            let (mask, sign) = slope(s, levels.rule, bound, own, s.splat(value));
            if mask == 0 {
                continue;
            }
            let part = s.select(mask, s.mul(sign, s.load(encoded.add(at))), s.zero());
            sum += s.sum(part);
            s.store(given.add(at), s.sub(s.load(given.add(at)), part));
        }
    }
    sum
}

#[cfg(test)]
mod tests;
