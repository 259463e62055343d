//! Of what each level has back to its places: d_n gets Σ_i E_{i,n} dy_i, and E_{i,n} gets d_n · dy_i.

use super::{Region, Wanted, put_one};
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::gradient::accumulate::Accumulate;
use crate::ops::patch_attention::claim;
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;
use crate::ops::texture::{LevelRule, Levels, check_cosines, own, padded};

/// Numbers of scratch memory for [`spread_levels`] of `levels`.
pub fn spread_levels_scratch(threads: usize, levels: usize) -> usize {
    threads * 2 * padded(levels)
}

/// Of [`crate::ops::texture::spread_levels`]: cosines [B, 1, H, W], d [B, C, 1, N] and dy [B, C, H, W] →
/// the gradients of the cosines and of d, where they are wanted.
///
/// # Panics
/// If shapes do not fit, N < 2, or a gradient or `scratch` shares memory with another map.
pub fn spread_levels(
    team: &Team,
    isa: Isa,
    maps: [FeatureMap<'_>; 3],
    rule: LevelRule,
    scratch: &Buffer,
    gradients: [Option<Wanted<'_>>; 2],
) {
    let [cosines, d, dy] = maps;
    let Shape { channels, width: count, .. } = d.shape();
    let shape = check_cosines(&cosines, count);
    assert_eq!(d.shape(), Shape::new(shape.images, channels, 1, count), "values of levels");
    assert_eq!(dy.shape(), Shape { channels, ..shape }, "levels spread");
    let len = spread_levels_scratch(team.threads(), count);
    for (gradient, of) in gradients.iter().zip([cosines, d]) {
        let Some((_, to)) = gradient else { continue };
        assert_eq!(to.shape(), of.shape(), "a gradient of levels spread");
        assert!(maps.iter().all(|map| !to.overlaps(map)), "a gradient of levels spread in place");
        claim(scratch, len, &[to]);
    }
    if let [Some((_, a)), Some((_, b))] = &gradients {
        assert!(!a.overlaps(b), "both gradients in one place");
    }
    let start = claim(scratch, len, &[&cosines, &d, &dy]);
    let shared = Shared((maps, gradients, start));
    team.chunks(shape.images, 1, |thread, from, to| {
        let (maps, gradients, start) = shared.get();
        let start = start.wrapping_add(thread * 2 * padded(count));
        let levels = Levels { rule, count, start };
        for image in from..to {
            isa.run(Picture { maps, gradients, levels, image });
        }
    });
}

struct Picture<'a> {
    /// Cosines, d and dy.
    maps: [FeatureMap<'a>; 3],
    /// Of the cosines and of d.
    gradients: [Option<Wanted<'a>>; 2],
    /// This thread's; behind them a row of what each level gets.
    levels: Levels,
    image: usize,
}

impl Kernel for Picture<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Picture { maps: [cosines, _, dy], gradients, levels, image } = self;
        let Levels { rule, count, start } = levels;
        let (pad, shape) = (padded(count), dy.shape());
        let given = start.wrapping_add(pad);
        let region = Region::of(&cosines, image, 0, 1);
        let bounds = region.bounds(&cosines);
        // SAFETY: this thread's part of the scratch memory, two rows of `pad`.
        let bound = unsafe {
            levels.fill((bounds.low, bounds.high));
            for at in (0..pad).step_by(LANES) {
                s.store(given.add(at), s.zero());
            }
            levels.bound()
        };
        let [by_cosines, by_values] = gradients;
        if let Some((Accumulate::Set, dd)) = by_values {
            for block in 0..shape.blocks() {
                let row = dd.place(image, block, 0, 0);
                for n in 0..count {
                    // SAFETY: place n of this picture's only row.
                    unsafe { s.store(row.add(n * LANES), s.zero()) };
                }
            }
        }
        let odd = bounds.odd();
        for y in 0..shape.height {
            for x in 0..shape.width {
                // SAFETY: a place of the cosines, and levels filled before.
                let (value, (first, last)) = unsafe {
                    let value = *region.place(&cosines, (y, x));
                    (value, levels.range(s, bound, value))
                };
                let mut sum = odd;
                for n in first..last {
                    // SAFETY: one of the levels.
                    let difference = unsafe { *start.add(n) } - value;
                    let by_encoded = self.level(s, (y, x), n, 1.0 - difference.abs());
                    let sign = f32::from(difference > 0.0) - f32::from(difference < 0.0);
                    sum += sign * by_encoded;
                    // SAFETY: what that level gets.
                    unsafe { *given.add(n) -= sign * by_encoded };
                }
                if let Some((into, dx)) = by_cosines {
                    // SAFETY: a place of this picture, which this job alone writes.
                    unsafe { put_one(s, into, region.place(&dx, (y, x)), sum) };
                }
            }
        }
        if let Some((_, dx)) = by_cosines {
            // SAFETY: as above.
            unsafe { region.give_bounds(&bounds, (rule, count), given, &dx) };
        }
    }
}

impl Picture<'_> {
    /// The gradient by E of level n at (y, x), and the share of d_n.
    #[inline(always)]
    fn level<S: Simd>(&self, s: S, (y, x): (usize, usize), n: usize, encoded: f32) -> f32 {
        let [_, d, dy] = self.maps;
        let [by_cosines, by_values] = self.gradients;
        let shape = dy.shape();
        let last = shape.blocks() - 1;
        let from = dy.place(self.image, 0, y as isize, x as isize);
        let value = d.place(self.image, 0, 0, n as isize);
        if let Some((_, dd)) = by_values {
            let to = dd.place(self.image, 0, 0, n as isize);
            let encoded = s.splat(encoded);
            for block in 0..=last {
                // SAFETY: this place of dy's planes, and place n of those of d's gradient, which this
                // job alone writes.
                unsafe {
                    let dy = s.load(from.add(block * dy.plane_len()));
                    let to = to.add(block * dd.plane_len());
                    s.store(to, s.mul_add(encoded, dy, s.load(to)));
                }
            }
        }
        if by_cosines.is_none() {
            return 0.0;
        }
        let mut dot = s.zero();
        for block in 0..=last {
            // SAFETY: as above, of d.
            unsafe {
                let mut dy = s.load(from.add(block * dy.plane_len()));
                if block == last {
                    dy = s.select(own(shape.channels, block), dy, s.zero());
                }
                dot = s.mul_add(dy, s.load(value.add(block * d.plane_len())), dot);
            }
        }
        s.sum(dot)
    }
}
