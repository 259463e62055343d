//! CutPaste (Li et al. 2021; section 7 of the specification on anomalies): a piece of the picture,
//! its colours changed a little, laid on another place of it.
//!
//! Values are those of the reimplementation by Runinho. Draws from `places`: for a rectangle six
//! uniforms, in the order of `Rectangle::of`; for a scar width, height and degrees, then the
//! places as there; for the union the choice first. From `colours`: the [`ColourJitter`].

use image::{RgbImage, imageops};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::affine;
use super::colour_jitter::ColourJitter;
use crate::dataset::mask::Mask;

/// What piece is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// A rectangle, a fiftieth to three twentieths of the picture.
    #[default]
    Normal,
    /// A narrow strip, turned, its rim half seen through.
    Scar,
    /// One or the other.
    Union,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether pixels that happen to look as before are left out of the mask.
    pub drop_unchanged: bool,
}

/// The picture with a piece pasted, and where.
pub fn make(
    picture: &RgbImage,
    variant: Variant,
    config: &Config,
    places: &mut impl Rng,
    colours: &mut impl Rng,
) -> (RgbImage, Mask) {
    let size = (picture.width() as usize, picture.height() as usize);
    let is_scar = match variant {
        Variant::Normal => false,
        Variant::Scar => true,
        Variant::Union => places.random_bool(0.5),
    };
    let jitter = ColourJitter::draw(JITTER, colours);
    let (pasted, mut mask) = if is_scar {
        let width = round(places.random_range(SCAR_WIDTH.0..=SCAR_WIDTH.1));
        let height = round(places.random_range(SCAR_HEIGHT.0..=SCAR_HEIGHT.1));
        let degrees = places.random_range(-MOST_DEGREES..=MOST_DEGREES);
        let strip =
            Rectangle::placed(width, height, std::array::from_fn(|_| places.random()), size);
        strip.paste(picture, Some(degrees), &jitter)
    } else {
        let uniforms = std::array::from_fn(|_| places.random());
        Rectangle::of(uniforms, size).paste(picture, None, &jitter)
    };
    if config.drop_unchanged {
        let changed = pasted.pixels().zip(picture.pixels()).map(|(new, old)| new != old);
        mask.inside.iter_mut().zip(changed).for_each(|(inside, changed)| *inside &= changed);
    }
    (pasted, mask)
}

/// Share of the picture that a rectangle takes.
const AREA: (f64, f64) = (0.02, 0.15);
/// Width over height of a rectangle; its logarithm is uniform.
const ASPECT: (f64, f64) = (0.3, 1.0 / 0.3);
/// Of a scar, pixels.
const SCAR_WIDTH: (f64, f64) = (2.0, 16.0);
const SCAR_HEIGHT: (f64, f64) = (10.0, 25.0);
const MOST_DEGREES: f64 = 45.0;
const JITTER: f32 = 0.1;

/// What is cut, and how far its place is from the picture's upper left corner: `from` as it is cut,
/// `to` as shares of the room that it has where it is pasted. Pairs are (x, y).
#[derive(Clone, Debug, PartialEq)]
struct Rectangle {
    width: usize,
    height: usize,
    from: (usize, usize),
    to: (f64, f64),
}

impl Rectangle {
    /// From uniforms in 0..1: area, aspect, then y and x it is cut at, y and x it goes to.
    fn of([area, aspect, rest @ ..]: [f64; 6], size: (usize, usize)) -> Rectangle {
        let (area, aspect) = area_and_aspect(area, aspect, size);
        let width = round((area * aspect).sqrt());
        let height = round((area / aspect).sqrt());
        Rectangle::placed(width, height, rest, size)
    }

    fn placed(
        width: usize,
        height: usize,
        [from_y, from_x, to_y, to_x]: [f64; 4],
        size: (usize, usize),
    ) -> Rectangle {
        let (width, height) = (width.clamp(1, size.0), height.clamp(1, size.1));
        let from = (place(from_x, size.0, width), place(from_y, size.1, height));
        Rectangle { width, height, from, to: (to_x, to_y) }
    }

    /// Pastes it, turned about its centre where `degrees` say so (counter-clockwise). Where it is
    /// less than half on a pixel, that is not in the mask.
    fn paste(
        &self,
        picture: &RgbImage,
        degrees: Option<f64>,
        jitter: &ColourJitter,
    ) -> (RgbImage, Mask) {
        let (x, y) = (self.from.0 as u32, self.from.1 as u32);
        let (width, height) = (self.width as u32, self.height as u32);
        let mut piece = imageops::crop_imm(picture, x, y, width, height).to_image();
        jitter.apply(&mut piece);
        let (piece, cover) = match degrees {
            Some(degrees) => affine::rotate_expanded(&piece, degrees),
            None => {
                let whole = vec![1.0; self.width * self.height];
                (piece, whole)
            }
        };
        let (width, height) = (piece.width() as usize, piece.height() as usize);
        let size = (picture.width() as usize, picture.height() as usize);
        let to = (place(self.to.0, size.0, width), place(self.to.1, size.1, height));
        // Of one that is larger than the picture, the middle is seen.
        let cut = (width.saturating_sub(size.0) / 2, height.saturating_sub(size.1) / 2);
        let mut out = picture.clone();
        let mut mask = Mask::empty(size.0, size.1);
        for y in 0..height.min(size.1) {
            for x in 0..width.min(size.0) {
                let from = (x + cut.0, y + cut.1);
                let share = cover[from.1 * width + from.0];
                let new = piece.get_pixel(from.0 as u32, from.1 as u32).0;
                let pixel = out.get_pixel_mut((to.0 + x) as u32, (to.1 + y) as u32);
                for (old, new) in pixel.0.iter_mut().zip(new) {
                    let (below, above) = (f32::from(*old), f32::from(new));
                    *old = (below + share * (above - below)).round() as u8;
                }
                mask.inside[(to.1 + y) * size.0 + to.0 + x] = share > 0.5;
            }
        }
        (out, mask)
    }
}

fn area_and_aspect(area: f64, aspect: f64, size: (usize, usize)) -> (f64, f64) {
    let pixels = (size.0 * size.1) as f64;
    let (lo, hi) = (ASPECT.0.ln(), ASPECT.1.ln());
    ((AREA.0 + (AREA.1 - AREA.0) * area) * pixels, (lo + (hi - lo) * aspect).exp())
}

/// Half to even, as Python.
fn round(length: f64) -> usize {
    length.round_ties_even() as usize
}

/// Where something as long as `cut` begins in `size` pixels; at 0 if it is longer.
fn place(uniform: f64, size: usize, cut: usize) -> usize {
    (uniform * size.saturating_sub(cut) as f64) as usize
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    fn made(picture: &RgbImage, variant: Variant, seed: u64) -> (RgbImage, Mask) {
        make(picture, variant, &Config::default(), &mut rng(seed), &mut rng(seed))
    }

    fn noisy(width: u32, height: u32) -> RgbImage {
        let mut rng = rng(1);
        RgbImage::from_fn(width, height, |_, _| Rgb(rng.random()))
    }

    #[test]
    fn rectangles_are_those_of_the_reference() {
        let Some(path) = shared("spec/vectors/cutpaste_geometry.json") else { return };
        let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let cases = vector["cases"].as_array().unwrap();
        assert!(cases.len() > 1);
        for case in cases {
            let uniforms: [f64; 6] = serde_json::from_value(case["u"].clone()).unwrap();
            let size = (256, 256);
            let (area, aspect) = area_and_aspect(uniforms[0], uniforms[1], size);
            let near = |got: f64, key: &str| {
                let want = case[key].as_f64().unwrap();
                assert!((got - want).abs() <= 1e-12 * want, "{key}: {got}, not {want}");
            };
            near(area, "area");
            near(aspect, "aspect");
            let got = Rectangle::of(uniforms, size);
            let want = |key: &str| case[key].as_u64().unwrap() as usize;
            assert_eq!((got.width, got.height), (want("cut_w"), want("cut_h")));
            assert_eq!(got.from, (want("from_x"), want("from_y")));
            let to = (place(got.to.0, 256, got.width), place(got.to.1, 256, got.height));
            assert_eq!(to, (want("to_x"), want("to_y")));
        }
    }

    #[test]
    fn a_rectangle_is_pasted_whole_and_nothing_else_changes() {
        let picture = noisy(80, 60);
        for seed in 0..20 {
            let (out, mask) = made(&picture, Variant::Normal, seed);
            let uniforms = {
                let mut places = rng(seed);
                std::array::from_fn(|_| places.random())
            };
            let cut = Rectangle::of(uniforms, (80, 60));
            assert_eq!(mask.area(), cut.width * cut.height);
            for (place, (new, old)) in out.pixels().zip(picture.pixels()).enumerate() {
                assert!(mask.inside[place] || new == old, "seed {seed}, place {place}");
            }
            // colours of noise nearly always differ between two places
            let differ = out.pixels().zip(picture.pixels()).filter(|(new, old)| new != old).count();
            assert!(differ * 10 > mask.area() * 9, "{differ} of {}", mask.area());
        }
    }

    #[test]
    fn a_scar_leaves_everything_outside_of_its_rim_alone() {
        let picture = noisy(80, 60);
        for seed in 0..20 {
            let (out, mask) = made(&picture, Variant::Scar, seed);
            let near_mask = |x: i64, y: i64| {
                (-1..=1).any(|dy| {
                    (-1..=1).any(|dx| {
                        let (x, y) = (x + dx, y + dy);
                        (0..80).contains(&x)
                            && (0..60).contains(&y)
                            && mask.inside[(y * 80 + x) as usize]
                    })
                })
            };
            for (x, y, new) in out.enumerate_pixels() {
                let same = new == picture.get_pixel(x, y);
                assert!(same || near_mask(i64::from(x), i64::from(y)), "seed {seed}: {x}, {y}");
            }
        }
    }

    #[test]
    fn scars_are_narrow_and_union_is_both() {
        let picture = noisy(256, 256);
        let area = |variant, seed| made(&picture, variant, seed).1.area();
        // a scar has at most 16 · 25 pixels, a rectangle at least a fiftieth of the picture
        assert!((0..50).all(|seed| (15..450).contains(&area(Variant::Scar, seed))));
        let scars = (0..200).filter(|&seed| area(Variant::Union, seed) < 450).count();
        // 100 ± 4 standard deviations of 7
        assert!((72..=128).contains(&scars), "{scars} of 200");
    }

    #[test]
    fn what_looks_as_before_may_stay_out_of_the_mask() {
        let white = RgbImage::from_pixel(64, 64, Rgb([255; 3]));
        for (drop_unchanged, seed) in (0..20).map(|i| (i % 2 == 0, i / 2)) {
            let config = Config { drop_unchanged };
            let (out, mask) =
                make(&white, Variant::Normal, &config, &mut rng(seed), &mut rng(seed));
            // white under 1 ± 0.1 of brightness: all of a piece changes, or nothing
            let changed = out.pixels().any(|pixel| pixel.0 != [255; 3]);
            assert_eq!(mask.area() > 0, changed || !drop_unchanged, "seed {seed}");
        }
    }

    #[test]
    fn tiny_pictures_do_no_harm() {
        for (width, height) in [(1, 1), (1, 40), (3, 2), (20, 20)] {
            for variant in [Variant::Normal, Variant::Scar] {
                for seed in 0..20 {
                    let picture = noisy(width, height);
                    let (out, mask) = made(&picture, variant, seed);
                    assert_eq!(out.dimensions(), (width, height));
                    assert!(mask.area() > 0 || width < 20, "{variant:?} on {width}×{height}");
                }
            }
        }
    }
}
