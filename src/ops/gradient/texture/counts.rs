//! Of how many values each level has. With c_n = Σ_i E_{i,n}, T = Σ c + 10⁻¹² and dy the gradient by
//! the shares c/T: every E_{i,n} gets (dy_n − Σ dy·c/T)/T.

use super::{Region, Wanted, give_levels, put_one};
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::patch_attention::claim;
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;
use crate::ops::texture::{LevelRule, Levels, check_cosines, encode, padded};

/// Numbers of scratch memory for [`level_counts`] of `levels`.
pub fn level_counts_scratch(threads: usize, levels: usize) -> usize {
    threads * 3 * padded(levels)
}

/// Of [`crate::ops::texture::level_counts`]: cosines [B, 1, H, W] and dy [B, 2, 1, N], by the levels
/// and by their shares → the cosines' gradient.
///
/// # Panics
/// If shapes do not fit, N < 2, or the gradient or `scratch` shares memory with another map.
pub fn level_counts(
    team: &Team,
    isa: Isa,
    [cosines, dy]: [FeatureMap<'_>; 2],
    rule: LevelRule,
    scratch: &Buffer,
    gradient: Wanted<'_>,
) {
    let count = dy.shape().width;
    let shape = check_cosines(&cosines, count);
    assert_eq!(dy.shape(), Shape::new(shape.images, 2, 1, count), "level counts");
    assert_eq!(gradient.1.shape(), shape, "the gradient of level counts");
    let apart = [cosines, dy].iter().all(|map| !gradient.1.overlaps(map));
    assert!(apart, "the gradient of level counts in place");
    let len = level_counts_scratch(team.threads(), count);
    let start = claim(scratch, len, &[&cosines, &dy, &gradient.1]);
    let shared = Shared((cosines, dy, gradient, start));
    team.chunks(shape.images, 1, |thread, from, to| {
        let (cosines, dy, gradient, start) = shared.get();
        let start = start.wrapping_add(thread * 3 * padded(count));
        let levels = Levels { rule, count, start };
        for image in from..to {
            isa.run(Picture { cosines, dy, gradient, levels, image });
        }
    });
}

struct Picture<'a> {
    cosines: FeatureMap<'a>,
    dy: FeatureMap<'a>,
    gradient: Wanted<'a>,
    /// This thread's; behind them a row of what each E gets and one of what each level gets.
    levels: Levels,
    image: usize,
}

impl Kernel for Picture<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Picture { cosines, dy, gradient: (into, dx), levels, image } = self;
        let Levels { rule, count, start } = levels;
        let (pad, shape) = (padded(count), cosines.shape());
        let (encoded, given) = (start.wrapping_add(pad), start.wrapping_add(2 * pad));
        let region = Region::of(&cosines, image, 0, 1);
        let bounds = region.bounds(&cosines);
        // SAFETY: this thread's part of the scratch memory, three rows of `pad`.
        let bound = unsafe {
            levels.fill((bounds.low, bounds.high));
            for at in (0..2 * pad).step_by(LANES) {
                s.store(encoded.add(at), s.zero());
            }
            levels.bound()
        };
        let mut total = 0.0;
        for y in 0..shape.height {
            let from = region.place(&cosines, (y, 0));
            let mut row = s.zero();
            for x in 0..shape.width {
                // SAFETY: place x of the row, and rows of the scratch memory.
                unsafe {
                    let value = s.splat(*from.add(x * LANES));
                    for at in (0..pad).step_by(LANES) {
                        let own = encode(s, rule, bound, s.load(start.add(at)), value);
                        row = s.add(row, own);
                        s.store(encoded.add(at), s.add(s.load(encoded.add(at)), own));
                    }
                }
            }
            total += f64::from(s.sum(row));
        }
        total += 1e-12;
        let mut mean = 0.0;
        for n in 0..count {
            // SAFETY: a number of this thread's row.
            let sum = f64::from(unsafe { *encoded.add(n) });
            mean += f64::from(dy.get(image, 1, 0, n)) * (sum / total);
        }
        for n in 0..count {
            let by_share = f64::from(dy.get(image, 1, 0, n));
            // SAFETY: numbers of this thread's rows.
            unsafe {
                *encoded.add(n) = ((by_share - mean) / total) as f32;
                *given.add(n) = dy.get(image, 0, 0, n);
            }
        }
        let odd = bounds.odd();
        for y in 0..shape.height {
            let (from, to) = (region.place(&cosines, (y, 0)), region.place(&dx, (y, 0)));
            for x in (0..shape.width).map(|x| x * LANES) {
                // SAFETY: a place of this picture, which this job alone writes, and rows of scratch.
                unsafe {
                    let value = *from.add(x);
                    let sum = give_levels(s, &levels, bound, value, encoded, given);
                    put_one(s, into, to.add(x), sum + odd);
                }
            }
        }
        // SAFETY: as above.
        unsafe { region.give_bounds(&bounds, (rule, count), given, &dx) };
    }
}
