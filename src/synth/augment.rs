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

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    /// Strong, weak, grey, black and white colours.
    fn swatches() -> RgbImage {
        let levels = [
            250, 10, 30, 40, 200, 60, 20, 60, 240, 128, 128, 128, 0, 0, 0, 255, 255, 255, 90, 70,
            50, 200, 180, 30, 60, 170, 220, 240, 120, 200, 15, 15, 40, 100, 0, 0, 33, 99, 66, 255,
            200, 150, 70, 70, 71, 180, 60, 250,
        ];
        RgbImage::from_raw(4, 4, levels.to_vec()).unwrap()
    }

    fn worst(got: &RgbImage, want: &[u8]) -> u8 {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    #[test]
    fn operations_are_pillows_to_the_bit() {
        let Some(path) = shared("spec/vectors/pil_ops.json") else { return };
        let vector: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let pixels =
            |value: &Value| -> Vec<u8> { serde_json::from_value(value["data"].clone()).unwrap() };
        let input = RgbImage::from_raw(16, 16, pixels(&vector["input"])).unwrap();
        let cases = vector["expected"].as_object().unwrap();
        assert_eq!(cases.len(), 18);
        for (name, expected) in cases {
            let (kind, magnitude) = name.split_once('_').unwrap_or((name, "0"));
            let number: f64 = magnitude.parse().unwrap();
            let operation = match kind {
                "equalize" => Operation::Equalize,
                "autocontrast" => Operation::Autocontrast(number as u8),
                "posterize" => Operation::Posterize(number as u8),
                "solarize" => Operation::Solarize(Some(number as u8)),
                "invert" => Operation::Invert,
                "sharpness" => Operation::Sharpness(number),
                "gamma" => Operation::Gamma([number; 3]),
                other => panic!("{other} is unknown"),
            };
            assert_eq!(worst(&operation.apply(&input), &pixels(expected)), 0, "{name}");
        }
    }

    #[test]
    fn brightness_is_that_of_opencv() {
        /* OpenCV 5.0.0, x the swatches, to/back/channel of each space:
        x = cv2.cvtColor(x, to); v = np.clip(x[..., channel].astype(int) - 20, 0, 255)
        x[..., channel] = np.clip(v * np.float32(1.1), 0, 255); cv2.cvtColor(x, back)

        Lab and Luv are computed through coarser tables there: a level in a channel of theirs is up
        to 5 levels of the weakest primary of a strong colour. */
        let cases: [(Space, u8, [u8; 48]); 6] = [
            (
                Space::YCrCb,
                0,
                [
                    236, 0, 17, 32, 190, 51, 4, 45, 223, 118, 118, 118, 0, 0, 0, 255, 255, 255, 74,
                    56, 34, 194, 174, 25, 52, 162, 211, 233, 114, 194, 0, 0, 21, 81, 0, 0, 18, 85,
                    50, 253, 200, 150, 55, 55, 57, 169, 50, 238,
                ],
            ),
            (
                Space::Hsv,
                0,
                [
                    253, 10, 26, 40, 198, 61, 20, 57, 242, 118, 118, 118, 0, 0, 0, 255, 255, 255,
                    77, 60, 43, 198, 176, 30, 60, 172, 220, 242, 121, 202, 8, 8, 22, 88, 0, 0, 29,
                    86, 57, 255, 199, 150, 55, 55, 56, 182, 61, 253,
                ],
            ),
            (
                Space::Hls,
                0,
                [
                    237, 5, 20, 37, 183, 56, 15, 50, 227, 118, 118, 118, 0, 0, 0, 255, 255, 255,
                    71, 55, 39, 181, 160, 27, 47, 166, 217, 239, 113, 197, 4, 4, 12, 66, 0, 0, 25,
                    75, 50, 255, 197, 147, 55, 55, 55, 175, 46, 250,
                ],
            ),
            (
                Space::Lab,
                5,
                [
                    237, 0, 21, 32, 196, 56, 0, 48, 225, 119, 119, 119, 0, 0, 0, 255, 255, 255, 76,
                    58, 39, 196, 176, 25, 50, 164, 214, 235, 114, 194, 1, 0, 30, 82, 0, 0, 15, 87,
                    54, 253, 199, 150, 58, 57, 58, 170, 48, 241,
                ],
            ),
            (
                Space::Luv,
                6,
                [
                    238, 0, 3, 21, 195, 50, 0, 36, 243, 117, 119, 119, 0, 0, 0, 254, 255, 255, 75,
                    56, 34, 195, 175, 8, 48, 163, 214, 233, 112, 193, 0, 0, 0, 83, 0, 0, 4, 86, 52,
                    254, 199, 149, 55, 56, 56, 172, 40, 242,
                ],
            ),
            (
                Space::Yuv,
                0,
                [
                    215, 7, 15, 31, 190, 52, 4, 45, 224, 118, 118, 118, 0, 0, 0, 255, 255, 255, 75,
                    56, 35, 194, 174, 25, 52, 162, 212, 234, 114, 194, 0, 0, 22, 81, 0, 0, 18, 85,
                    51, 254, 199, 149, 55, 55, 55, 169, 50, 239,
                ],
            ),
        ];
        for (space, tolerance, want) in cases {
            let darker =
                Operation::Brightness { space, factor: 1.1, offset: -20, factor_first: false };
            let off = worst(&darker.apply(&swatches()), &want);
            assert!(off <= tolerance, "{space:?}: off by {off} levels");
        }
    }

    #[test]
    fn hue_and_saturation_are_those_of_opencv() {
        /* x = cv2.cvtColor(x, cv2.COLOR_RGB2HSV).astype(int)
        x[..., 0] = (x[..., 0] + int(-37 / 255 * 180)) % 180
        x[..., 1] = np.clip(x[..., 1] + 25, 0, 255)
        cv2.cvtColor(x.astype(np.uint8), cv2.COLOR_HSV2RGB) */
        let want = [
            250, 0, 233, 152, 200, 20, 0, 240, 232, 128, 115, 126, 0, 0, 0, 255, 230, 252, 90, 41,
            59, 200, 10, 10, 39, 220, 117, 163, 96, 240, 11, 36, 40, 100, 0, 87, 51, 99, 23, 255,
            125, 177, 63, 70, 71, 35, 85, 250,
        ];
        let operation = Operation::HueSaturation { hue: -37, saturation: 25 };
        assert_eq!(operation.apply(&swatches()).as_raw(), &want);
    }

    #[test]
    fn rotation_is_that_of_imgaug() {
        /* what imgaug's Affine(rotate=30) calls:
        c, s = np.cos(np.pi / 6), np.sin(np.pi / 6); m = 1.5
        M = np.array([[c, -s, m - c * m + s * m], [s, c, m - s * m - c * m]])
        cv2.warpAffine(x, M, (4, 4), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0)) */
        let want = [
            6, 0, 1, 137, 75, 58, 35, 166, 88, 11, 29, 106, 47, 132, 171, 208, 183, 207, 121, 124,
            127, 102, 108, 134, 136, 145, 138, 174, 100, 145, 56, 37, 37, 173, 140, 23, 110, 88,
            66, 99, 89, 81, 113, 37, 112, 47, 1, 6,
        ];
        assert_eq!(Operation::Rotate(30.0).apply(&swatches()).as_raw(), &want);
    }

    #[test]
    fn brightness_is_cut_and_held_after_each_step() {
        let gray = RgbImage::from_pixel(1, 1, image::Rgb([101; 3]));
        for (factor_first, offset, want) in
            [(true, 30, 151), (false, 30, 157), (true, 200, 255), (false, -200, 0)]
        {
            let space = Space::Hsv;
            let operation = Operation::Brightness { space, factor: 1.2, offset, factor_first };
            assert_eq!(operation.apply(&gray).as_raw(), &[want; 3]);
        }
    }

    #[test]
    fn magnitudes_that_say_nothing_change_nothing() {
        for operation in [
            Operation::Sharpness(1.0),
            Operation::Solarize(None),
            Operation::Posterize(8),
            Operation::Rotate(0.0),
        ] {
            assert_eq!(operation.apply(&swatches()), swatches(), "{operation:?}");
        }
        assert_eq!(apply(&[Operation::Invert, Operation::Invert], &swatches()), swatches());
    }

    #[test]
    fn every_draw_keeps_the_size_and_repeats() {
        for (width, height) in [(1, 1), (2, 5), (33, 20)] {
            let picture = RgbImage::from_fn(width, height, |x, y| {
                image::Rgb([x * 40, y * 30, x * y].map(|level| level as u8))
            });
            for seed in 0..60 {
                for (menu, all) in [(Menu::Draem, 10), (Menu::Prn, 7)] {
                    let operations = draw(menu, usize::MAX, &mut rng(seed));
                    assert_eq!(operations.len(), all);
                    let augmented = apply(&operations, &picture);
                    assert_eq!(augmented.dimensions(), (width, height));
                    assert_eq!(augmented, apply(&draw(menu, all, &mut rng(seed)), &picture));
                }
            }
        }
    }

    #[test]
    fn drawn_operations_differ_and_are_of_the_menu() {
        for seed in 0..200 {
            let operations = draw(Menu::Prn, 2, &mut rng(seed));
            assert_eq!(operations.len(), 2);
            let kinds = [0, 1].map(|k| std::mem::discriminant(&operations[k]));
            assert_ne!(kinds[0], kinds[1]);
            assert!(!operations.iter().any(|operation| matches!(
                operation,
                Operation::Brightness { .. }
                    | Operation::HueSaturation { .. }
                    | Operation::Rotate(_)
            )));
        }
    }

    #[test]
    fn the_draw_order_is_pinned() {
        let space = Space::Lab;
        assert_eq!(
            draw(Menu::Draem, 10, &mut rng(0)),
            [
                Operation::Invert,
                Operation::Autocontrast(12),
                Operation::Brightness {
                    space,
                    factor: 1.1315937904095996,
                    offset: 20,
                    factor_first: true
                },
                Operation::Gamma([1.8517559201469813, 1.2447768687809437, 1.8776440096136806]),
                Operation::Sharpness(0.9788590240155131),
                Operation::Equalize,
                Operation::Posterize(5),
                Operation::Solarize(Some(36)),
                Operation::HueSaturation { hue: 27, saturation: 8 },
                Operation::Rotate(-40.47386916870285),
            ]
        );
        assert_eq!(
            draw(Menu::Prn, 7, &mut rng(0)),
            [
                Operation::Autocontrast(1),
                Operation::Invert,
                Operation::Solarize(None),
                Operation::Equalize,
                Operation::Posterize(5),
                Operation::Gamma([1.1221596810091978, 1.7353075203121353, 1.241414640425504]),
                Operation::Sharpness(1.8023412268626418),
            ]
        );
    }
}
