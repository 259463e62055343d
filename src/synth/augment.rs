//! Augmentation of an anomaly's source.
//!
//! Sources: `anomaly-generation.md` of the specification, sections 3.2 (DRAEM's list, in imgaug 0.4's
//! meaning) and 3.3 (PRN's).
//!
//! Draw order of [`draw`], part of the format (a new order makes other anomalies of the same seed):
//! first the operations, by `count` steps of a Fisher–Yates shuffle of the menu in its written
//! order (step i swaps place i with one drawn from i to the end), then the magnitudes of each in the
//! order in which they were drawn:
//! gamma red, green, blue; brightness space, factor, offset, which comes first; sharpness factor; hue
//! offset, saturation offset; solarize whether, then threshold; posterize bits; autocontrast cutoff;
//! rotate angle. Invert and equalize draw nothing. A solarize that is not done draws no threshold.

use image::RgbImage;
use rand::{Rng, RngExt};

use super::affine;

mod colour;
mod levels;

pub use colour::Space;

/// What is done to a picture; levels are 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// 255 · (level/255)^exponent for red, green and blue, cut to whole levels.
    Gamma([f64; 3]),
    /// The brightness channel of `space` times `factor` (cut to whole levels) and plus `offset`.
    Brightness {
        space: Space,
        factor: f64,
        offset: i16,
        factor_first: bool,
    },
    /// Pillow's: 0 is smoothed, 1 as it is, 2 as much the other way.
    Sharpness(f64),
    /// Offsets of hue (255 are the full circle) and saturation.
    HueSaturation {
        hue: i16,
        saturation: i16,
    },
    /// Levels from the threshold up become 255 − level; `None` leaves them.
    Solarize(Option<u8>),
    /// How many high bits are kept, 1 to 8.
    Posterize(u8),
    Invert,
    /// Pillow's, channel by channel; the percentage of pixels that is cut off at each end.
    Autocontrast(u8),
    /// Pillow's, channel by channel.
    Equalize,
    /// Degrees clockwise about the middle, bilinear, outside black.
    Rotate(f64),
}

/// What is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Menu {
    /// DRAEM's ten, of which it takes 3.
    Draem,
    /// PRN's seven, of which it takes 2: those of DRAEM without brightness, hue and rotation.
    /// Its "exposure" is read as solarize.
    Prn,
}

impl Menu {
    fn kinds(self) -> &'static [Kind] {
        match self {
            Menu::Draem => &[
                Kind::Gamma,
                Kind::Brightness,
                Kind::Sharpness,
                Kind::HueSaturation,
                Kind::Solarize,
                Kind::Posterize,
                Kind::Invert,
                Kind::Autocontrast,
                Kind::Equalize,
                Kind::Rotate,
            ],
            Menu::Prn => &[
                Kind::Equalize,
                Kind::Solarize,
                Kind::Posterize,
                Kind::Sharpness,
                Kind::Autocontrast,
                Kind::Invert,
                Kind::Gamma,
            ],
        }
    }
}

/// `count` different operations of the menu (all of them if it has fewer) with drawn magnitudes.
pub fn draw(menu: Menu, count: usize, rng: &mut impl Rng) -> Vec<Operation> {
    let mut kinds = menu.kinds().to_vec();
    let count = count.min(kinds.len());
    for place in 0..count {
        let with = rng.random_range(place..kinds.len());
        kinds.swap(place, with);
    }
    kinds[..count].iter().map(|kind| kind.draw(rng)).collect()
}

/// One operation after the other.
pub fn apply(operations: &[Operation], picture: &RgbImage) -> RgbImage {
    operations.iter().fold(picture.clone(), |picture, operation| operation.apply(&picture))
}

impl Operation {
    /// Same size.
    pub fn apply(&self, picture: &RgbImage) -> RgbImage {
        match *self {
            Operation::Gamma(exponents) => {
                levels::through_tables(picture, &exponents.map(levels::gamma))
            }
            Operation::Brightness { space, factor, offset, factor_first } => {
                let table = levels::brightness(factor, offset, factor_first);
                colour::change_brightness(picture, space, &table)
            }
            Operation::Sharpness(factor) => levels::sharpen(picture, factor),
            Operation::HueSaturation { hue, saturation } => {
                colour::shift_hue_saturation(picture, hue, saturation)
            }
            Operation::Solarize(None) => picture.clone(),
            Operation::Solarize(Some(threshold)) => {
                levels::map(picture, |level| if level >= threshold { 255 - level } else { level })
            }
            Operation::Posterize(bits) => {
                // More than 8 bits are not there to be dropped.
                let kept = u8::MAX.checked_shl(8u32.saturating_sub(bits.into())).unwrap_or(0);
                levels::map(picture, |level| level & kept)
            }
            Operation::Invert => levels::map(picture, |level| 255 - level),
            Operation::Autocontrast(cutoff_percent) => {
                levels::autocontrast(picture, cutoff_percent)
            }
            Operation::Equalize => levels::equalize(picture),
            Operation::Rotate(degrees) => {
                let (width, height) = picture.dimensions();
                let middle = [width, height].map(|side| (f64::from(side) - 1.0) / 2.0);
                affine::Affine::rotation(degrees).about((middle[0], middle[1])).warp_rgb(picture)
            }
        }
    }
}

/// An operation without its magnitudes.
#[derive(Clone, Copy)]
enum Kind {
    Gamma,
    Brightness,
    Sharpness,
    HueSaturation,
    Solarize,
    Posterize,
    Invert,
    Autocontrast,
    Equalize,
    Rotate,
}

impl Kind {
    fn draw(self, rng: &mut impl Rng) -> Operation {
        match self {
            Kind::Gamma => Operation::Gamma([(); 3].map(|()| rng.random_range(0.5..2.0))),
            Kind::Brightness => Operation::Brightness {
                space: Space::ALL[rng.random_range(0..Space::ALL.len())],
                factor: rng.random_range(0.8..1.2),
                offset: rng.random_range(-30..=30),
                factor_first: rng.random_bool(0.5),
            },
            Kind::Sharpness => Operation::Sharpness(rng.random_range(0.0..2.0)),
            Kind::HueSaturation => Operation::HueSaturation {
                hue: rng.random_range(-50..=50),
                saturation: rng.random_range(-50..=50),
            },
            Kind::Solarize => {
                Operation::Solarize(rng.random_bool(0.5).then(|| rng.random_range(32..=128)))
            }
            Kind::Posterize => Operation::Posterize(rng.random_range(1..=8)),
            Kind::Invert => Operation::Invert,
            Kind::Autocontrast => Operation::Autocontrast(rng.random_range(0..=20)),
            Kind::Equalize => Operation::Equalize,
            Kind::Rotate => Operation::Rotate(rng.random_range(-45.0..45.0)),
        }
    }
}
