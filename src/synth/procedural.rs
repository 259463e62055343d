//! Textures made from nothing, for those who have no folder of them: anomalies of them teach a
//! detector, but no published result was made with them.
//!
//! A recipe is a pattern (nine families) in the colours of a palette, turned and scaled, often
//! with a second pattern laid over it, then uneven light and grain. The same recipe in any size shows
//! the same texture: lengths count in the shorter side of the picture.
//!
//! Draw order, part of the format: whether there is a second layer and its opacity; for each layer
//! the family, its parameters as the fields of `Pattern` are written, cells to the side, angle,
//! distortion, seed, number of colours, contrast, chroma, grey, base colour, each colour (lighter or darker,
//! red, green, blue), stepped or not; then shade, grain and their seed.

use std::f32::consts::{PI, TAU};

use image::{Rgb, RgbImage};
use rand::{Rng, RngExt};

mod lattice;

use lattice::{cells, hash, octaves, split, unit};

/// A texture of this size.
pub fn texture(rng: &mut impl Rng, width: u32, height: u32) -> RgbImage {
    Recipe::draw(rng).picture(width, height)
}

/// All that a texture depends on.
#[derive(Clone, Debug, PartialEq)]
struct Recipe {
    ground: Layer,
    /// Another pattern over the first, and how opaque it is.
    over: Option<(Layer, f32)>,
    /// How much brighter and darker the light makes some places, as a part.
    shade: f32,
    /// How many levels neighbouring pixels differ by, at most.
    grain: f32,
    seed: u32,
}

/// A pattern with its colours.
#[derive(Clone, Debug, PartialEq)]
struct Layer {
    pattern: Pattern,
    /// Of the pattern, along the shorter side of the picture.
    cells: f32,
    /// Cosine and sine of the angle by which the pattern is turned.
    turn: (f32, f32),
    /// How far it is bent out of shape, in cells.
    distortion: f32,
    seed: u32,
    /// What the values of the pattern, 0 to 1 in 256 steps, look like, in levels.
    colours: Vec<[f32; 3]>,
}

/// The families.
#[derive(Clone, Debug, PartialEq)]
enum Pattern {
    /// Gradient noise in octaves, whose places are displaced by more of it.
    Clouds { octaves: u32, swirl: f32 },
    /// Stripes, straight to marbled, with soft to hard edges.
    Bands { waviness: f32, hardness: f32 },
    /// Noise drawn out along one direction: wood, brushed metal, fibres.
    Fibres { length: f32, octaves: u32 },
    /// Threads over and under each other, plain or as twill.
    Weave { gap: f32, twill: bool },
    /// Worley's cells.
    Cells { look: Look },
    /// Patches with a rim, sharp to soft.
    Blotches { threshold: f32, softness: f32 },
    /// Grains of all sizes on a ground.
    Speckle { radius: f32 },
    /// Tiles of two kinds, each a little different.
    Checks { unevenness: f32, joint: f32 },
    /// Discs or rings in rows.
    Dots { radius: f32, ring: bool, staggered: bool },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Look {
    /// Each cell of one value.
    Flat,
    /// Value falls from the middle of each cell: pebbles, bubbles.
    Domed,
    /// Dark lines between the cells: cracks, nets.
    Cracked,
}

impl Recipe {
    fn draw(rng: &mut impl Rng) -> Recipe {
        let opacity = rng.random_bool(0.4).then(|| rng.random_range(0.3..0.7));
        Recipe {
            ground: Layer::draw(rng),
            over: opacity.map(|opacity| (Layer::draw(rng), opacity)),
            shade: rng.random_range(0.0..0.3),
            grain: rng.random_range(0.0f32..1.0).powi(2) * 40.0,
            seed: rng.random(),
        }
    }

    fn picture(&self, width: u32, height: u32) -> RgbImage {
        let side = width.min(height).max(1) as f32;
        RgbImage::from_fn(width, height, |x, y| {
            let place = ((x as f32 + 0.5) / side, (y as f32 + 0.5) / side);
            let mut colour = self.ground.colour(place);
            if let Some((layer, opacity)) = &self.over {
                let over = layer.colour(place);
                colour = [0, 1, 2].map(|c| colour[c] + opacity * (over[c] - colour[c]));
            }
            let light = 1.0 + self.shade * octaves(place.0 * 2.0, place.1 * 2.0, self.seed, 1);
            let grain = self.grain * (unit(hash(x as i32, y as i32, self.seed)) - 0.5);
            Rgb(colour.map(|level| (level * light + grain + 0.5) as u8))
        })
    }
}

impl Layer {
    fn draw(rng: &mut impl Rng) -> Layer {
        Layer {
            pattern: Pattern::draw(rng),
            cells: 4.0 * 10f32.powf(rng.random_range(0.0..1.0)),
            turn: {
                let (sin, cos) = rng.random_range(0.0..PI).sin_cos();
                (cos, sin)
            },
            distortion: rng.random_range(0.0f32..1.0).powi(2),
            seed: rng.random(),
            colours: colours(rng),
        }
    }

    /// At a place in sides of the picture.
    fn colour(&self, (x, y): (f32, f32)) -> [f32; 3] {
        let (cos, sin) = self.turn;
        let (mut u, mut v) = (self.cells * (cos * x + sin * y), self.cells * (cos * y - sin * x));
        if self.distortion > 0.05 {
            let bend = |seed| self.distortion * octaves(u * 0.4, v * 0.4, seed, 1);
            (u, v) = (u + bend(self.seed ^ 0x5bd1), v + bend(self.seed ^ 0xe995));
        }
        let value = self.pattern.value(u, v, self.seed);
        self.colours[(value * 255.0) as usize & 255]
    }
}

impl Pattern {
    fn draw(rng: &mut impl Rng) -> Pattern {
        match rng.random_range(0..9) {
            0 => Pattern::Clouds {
                octaves: rng.random_range(2..=5),
                swirl: rng.random_range(0.0..2.0),
            },
            1 => Pattern::Bands {
                waviness: rng.random_range(0.0f32..1.0).powi(2) * 3.0,
                hardness: rng.random_range(0.0..1.0),
            },
            2 => Pattern::Fibres {
                length: rng.random_range(4.0..20.0),
                octaves: rng.random_range(2..=4),
            },
            3 => Pattern::Weave { gap: rng.random_range(0.0..0.4), twill: rng.random_bool(0.5) },
            4 => Pattern::Cells {
                look: [Look::Flat, Look::Domed, Look::Cracked][rng.random_range(0..3)],
            },
            5 => Pattern::Blotches {
                threshold: rng.random_range(-0.25..0.25),
                softness: rng.random_range(0.02..0.4),
            },
            6 => Pattern::Speckle { radius: rng.random_range(0.15..0.5) },
            7 => Pattern::Checks {
                unevenness: rng.random_range(0.0..0.6),
                joint: rng.random_range(0.0f32..0.2) - 0.08,
            },
            _ => Pattern::Dots {
                radius: rng.random_range(0.15..0.5),
                ring: rng.random_bool(0.4),
                staggered: rng.random_bool(0.5),
            },
        }
    }

    /// 0 to 1.
    fn value(&self, u: f32, v: f32, seed: u32) -> f32 {
        // Which tile, and where in it, −1 to 1.
        let tile = |u: f32, v: f32| {
            let ((column, x), (row, y)) = (split(u), split(v));
            (column, row, 2.0 * x - 1.0, 2.0 * y - 1.0)
        };
        let value = match *self {
            Pattern::Clouds { octaves: count, swirl } => {
                let (u, v) = (u * 0.5, v * 0.5);
                let away = |seed| swirl * octaves(u * 0.5, v * 0.5, seed, 1);
                0.5 + octaves(u + away(seed ^ 1), v + away(seed ^ 2), seed, count)
            }
            Pattern::Bands { waviness, hardness } => {
                let at = u + waviness * octaves(u * 0.3, v * 0.3, seed, 3);
                0.5 + 0.5 * (at * TAU).sin() * (1.0 + 8.0 * hardness * hardness)
            }
            Pattern::Fibres { length, octaves: count } => {
                0.5 + octaves(u * 2.0, v * 2.0 / length, seed, count)
            }
            Pattern::Weave { gap, twill } => {
                let (column, row, x, y) = tile(u, v);
                let over =
                    if twill { (column - row).rem_euclid(4) < 2 } else { (column + row) % 2 == 0 };
                let (across, along, thread) =
                    if over { (y, x, hash(row, 0, seed)) } else { (x, y, hash(column, 1, seed)) };
                if across.abs() > 1.0 - gap {
                    0.0
                } else {
                    let round = 1.0 - (across / (1.0 - gap)).powi(2) * 0.7 - along.powi(2) * 0.3;
                    0.2 + 0.6 * round + 0.2 * unit(thread)
                }
            }
            Pattern::Cells { look } => {
                let [nearest, second] = cells(u, v, seed);
                match look {
                    Look::Flat => unit(nearest.hash),
                    Look::Domed => {
                        (1.0 - nearest.distance).max(0.0) * (0.7 + 0.3 * unit(nearest.hash))
                    }
                    Look::Cracked => {
                        let between = (second.distance - nearest.distance) * 5.0;
                        between.min(0.6 + 0.4 * unit(nearest.hash))
                    }
                }
            }
            Pattern::Blotches { threshold, softness } => {
                0.5 + (octaves(u * 0.5, v * 0.5, seed, 3) - threshold) / softness
            }
            Pattern::Speckle { radius } => {
                let [nearest, _] = cells(u, v, seed);
                let size = radius * (0.3 + unit(nearest.hash));
                let kind = 0.4 + 0.6 * unit(nearest.hash.rotate_left(11));
                kind * ((size - nearest.distance) * 12.0).clamp(0.0, 1.0)
            }
            Pattern::Checks { unevenness, joint } => {
                let (column, row, x, y) = tile(u, v);
                if x.abs().max(y.abs()) > 1.0 - joint {
                    0.5
                } else {
                    let kind = if (column + row) % 2 == 0 { 0.1 } else { 0.9 };
                    kind + unevenness * (unit(hash(column, row, seed)) - 0.5)
                }
            }
            Pattern::Dots { radius, ring, staggered } => {
                let odd = split(v).0 & 1 == 1;
                let (.., x, y) = tile(if staggered && odd { u + 0.5 } else { u }, v);
                let away = x.hypot(y) / 2.0;
                let inside = ((radius - away) * 15.0).clamp(0.0, 1.0);
                let hole = if ring { ((radius * 0.6 - away) * 15.0).clamp(0.0, 1.0) } else { 0.0 };
                inside - hole
            }
        };
        value.clamp(0.0, 1.0)
    }
}

/// Two to five colours about one base, light and dark in turn so that none of them is lost, spread
/// over 256 steps, one running into the next or each for itself.
fn colours(rng: &mut impl Rng) -> Vec<[f32; 3]> {
    let count = rng.random_range(2..=5usize);
    let contrast = rng.random_range(0.15..0.7);
    // Grey to gaudy.
    let chroma = rng.random_range(0.0f32..1.0);
    let grey = rng.random_range(0.15f32..0.85);
    let base = [(); 3].map(|()| grey + chroma * (rng.random_range(0.1..0.9) - grey));
    let stops: Vec<[f32; 3]> = (0..count)
        .map(|stop| {
            let sign = if stop % 2 == 0 { 1.0 } else { -1.0 };
            let lighter = sign * rng.random_range(0.3f32..1.0) * (1.0 - 0.5 * chroma);
            base.map(|part| {
                let part = part + contrast * (lighter + chroma * rng.random_range(-1.0f32..1.0));
                255.0 * part.clamp(0.0, 1.0)
            })
        })
        .collect();
    let stepped = rng.random_bool(0.3);
    let colour = |step: usize| {
        let at = step as f32 / 255.0 * (count - 1) as f32;
        let at = if stepped { at.round() } else { at };
        let before = (at as usize).min(count - 2);
        [0, 1, 2].map(|c| {
            stops[before][c] + (at - before as f32) * (stops[before + 1][c] - stops[before][c])
        })
    };
    (0..256).map(colour).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    /// Mean and standard deviation of all levels.
    fn spread(picture: &RgbImage) -> (f64, f64) {
        let count = picture.len() as f64;
        let mean = picture.iter().map(|&level| f64::from(level)).sum::<f64>() / count;
        let squares = picture.iter().map(|&level| (f64::from(level) - mean).powi(2)).sum::<f64>();
        (mean, (squares / count).sqrt())
    }

    #[test]
    fn a_texture_depends_on_its_seed_alone() {
        for (width, height) in [(1, 1), (64, 64), (31, 70)] {
            let picture = texture(&mut rng(5), width, height);
            assert_eq!(picture.dimensions(), (width, height));
            assert_eq!(picture, texture(&mut rng(5), width, height));
        }
    }

    #[test]
    fn two_draws_look_different() {
        let textures: Vec<RgbImage> = (0..24).map(|seed| texture(&mut rng(seed), 48, 48)).collect();
        for (i, one) in textures.iter().enumerate() {
            for other in &textures[..i] {
                let away = one.iter().zip(other.iter()).map(|(a, b)| u64::from(a.abs_diff(*b)));
                let mean = away.sum::<u64>() as f64 / one.len() as f64;
                assert!(mean > 10.0, "{i}: {mean:.1} levels from an earlier one");
            }
        }
    }

    #[test]
    fn a_texture_is_neither_flat_nor_burnt_out() {
        for seed in 0..48 {
            let (mean, deviation) = spread(&texture(&mut rng(seed), 64, 64));
            assert!(
                (15.0..240.0).contains(&mean) && deviation > 5.0,
                "{seed}: {mean} ± {deviation}"
            );
        }
    }

    #[test]
    fn every_family_comes() {
        let mut families: Vec<_> = (0..200)
            .map(|seed| std::mem::discriminant(&Recipe::draw(&mut rng(seed)).ground.pattern))
            .collect();
        let mut seen = Vec::new();
        while let Some(&one) = families.first() {
            families.retain(|&other| other != one);
            seen.push(one);
        }
        assert_eq!(seen.len(), 9);
    }

    #[test]
    fn a_recipe_is_the_same_texture_in_any_size() {
        for seed in 0..16 {
            let recipe = Recipe { grain: 0.0, ..Recipe::draw(&mut rng(seed)) };
            let small = spread(&recipe.picture(64, 64));
            let large = spread(&recipe.picture(128, 128));
            let same = (small.0 - large.0).abs() < 6.0 && (small.1 - large.1).abs() < 6.0;
            assert!(same, "{seed}: {small:?} and {large:?}");
        }
    }

    #[test]
    fn the_draw_order_is_pinned() {
        let recipe = Recipe::draw(&mut rng(0));
        assert_eq!(recipe.ground.pattern, Pattern::Speckle { radius: 0.31307256 });
        assert_eq!((recipe.over, recipe.ground.seed), (None, 258_433_188));
        // The last that is drawn: a draw more or less before it makes it another.
        assert_eq!(recipe.seed, 1_506_613_898);
    }
}
