//! torchvision's `ColorJitter` as it is on Pillow's pictures: brightness, contrast, saturation and hue
//! changed in random order, 8 bits between them.
//!
//! Draws: brightness, contrast, saturation, hue, then the order.

use image::RgbImage;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

/// How colours are changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColourJitter {
    steps: [Step; 4],
}

/// Factors are 1 where nothing changes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Brightness(f32),
    Contrast(f32),
    Saturation(f32),
    /// Share of the circle.
    Hue(f64),
}

impl ColourJitter {
    /// Factors uniform in 1 ± `amount`, a hue shift uniform in ± `amount` of the circle.
    pub fn draw(amount: f32, rng: &mut impl Rng) -> ColourJitter {
        let mut factor = || rng.random_range(1.0 - amount..=1.0 + amount);
        let mut steps = [
            Step::Brightness(factor()),
            Step::Contrast(factor()),
            Step::Saturation(factor()),
            Step::Hue(f64::from(factor() - 1.0)),
        ];
        steps.shuffle(rng);
        ColourJitter { steps }
    }

    pub fn apply(&self, picture: &mut RgbImage) {
        for step in self.steps {
            step.apply(picture);
        }
    }
}

impl Step {
    fn apply(self, picture: &mut RgbImage) {
        match self {
            Step::Brightness(factor) => {
                picture.iter_mut().for_each(|level| *level = blend(0, *level, factor));
            }
            Step::Contrast(factor) => {
                let sum: u64 = picture.pixels().map(|pixel| u64::from(grey(pixel.0))).sum();
                let count = f64::from(picture.width()) * f64::from(picture.height());
                let mean = (sum as f64 / count.max(1.0) + 0.5) as u8;
                picture.iter_mut().for_each(|level| *level = blend(mean, *level, factor));
            }
            Step::Saturation(factor) => {
                for pixel in picture.pixels_mut() {
                    let grey = grey(pixel.0);
                    pixel.0 = pixel.0.map(|level| blend(grey, level, factor));
                }
            }
            Step::Hue(share) => {
                // Towards zero, then around the circle of 256.
                let shift = (share * 255.0) as i32 as u8;
                for pixel in picture.pixels_mut() {
                    let [hue, saturation, value] = to_hsv(pixel.0);
                    pixel.0 = from_hsv([hue.wrapping_add(shift), saturation, value]);
                }
            }
        }
    }
}

/// Pillow's `Image.blend`: from `base` at 0 over `level` at 1 and beyond.
fn blend(base: u8, level: u8, factor: f32) -> u8 {
    let (base, level) = (f32::from(base), f32::from(level));
    (base + factor * (level - base)) as u8
}

/// Pillow's `convert("L")`.
fn grey([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16)
        as u8
}

/// Pillow's `convert("HSV")`, hue on a circle of 255.
fn to_hsv(rgb: [u8; 3]) -> [u8; 3] {
    let [red, green, blue] = rgb;
    let max = red.max(green).max(blue);
    let min = red.min(green).min(blue);
    if max == min {
        return [0, 0, max];
    }
    let range = f32::from(max - min);
    let below = |level: u8| f32::from(max - level) / range;
    let (r, g, b) = (below(red), below(green), below(blue));
    let sixth = if red == max {
        b - g
    } else if green == max {
        (2.0 + f64::from(r) - f64::from(b)) as f32
    } else {
        (4.0 + f64::from(g) - f64::from(r)) as f32
    };
    let hue = (f64::from(sixth) / 6.0 + 1.0).rem_euclid(1.0) as f32;
    let saturation = range / f32::from(max);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, max]
}

/// Pillow's way back.
fn from_hsv([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let at = f64::from(hue) * 6.0 / 255.0;
    let sixth = at.floor();
    let within = f64::from((at - sixth) as f32);
    let saturation = f64::from((f64::from(saturation) / 255.0) as f32);
    let lower = |share: f64| (f64::from(value) * (1.0 - share)).round() as u8;
    let (p, q, t) =
        (lower(saturation), lower(saturation * within), lower(saturation * (1.0 - within)));
    match sixth as u8 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn every_step_is_torchvisions() {
        /* torchvision 0.29, Pillow 13, F = torchvision.transforms._functional_pil:
        x = np.array([[[200,30,40],[10,250,130],[90,91,92]],[[0,0,0],[255,255,255],[17,60,199]]],np.uint8)
        np.asarray(F.adjust_brightness(Image.fromarray(x), 0.9)) and so on */
        let picture = [200, 30, 40, 10, 250, 130, 90, 91, 92, 0, 0, 0, 255, 255, 255, 17, 60, 199];
        let cases = [
            (
                Step::Brightness(0.9),
                [180, 27, 36, 9, 225, 117, 81, 81, 82, 0, 0, 0, 229, 229, 229, 15, 54, 179],
            ),
            (
                Step::Brightness(1.1),
                [220, 33, 44, 11, 255, 143, 99, 100, 101, 0, 0, 0, 255, 255, 255, 18, 66, 218],
            ),
            (Step::Brightness(1.0), picture),
            (
                Step::Contrast(0.9),
                [190, 37, 46, 19, 235, 127, 91, 92, 93, 10, 10, 10, 240, 240, 240, 26, 64, 190],
            ),
            (
                Step::Contrast(1.1),
                [209, 22, 33, 0, 255, 132, 88, 89, 90, 0, 0, 0, 255, 255, 255, 7, 55, 208],
            ),
            (
                Step::Saturation(0.9),
                [188, 35, 44, 25, 241, 133, 90, 91, 91, 0, 0, 0, 255, 255, 255, 21, 60, 185],
            ),
            (
                Step::Saturation(1.1),
                [211, 24, 35, 0, 255, 126, 89, 91, 92, 0, 0, 0, 255, 255, 255, 12, 59, 212],
            ),
            (
                Step::Hue(-0.1),
                [200, 31, 142, 33, 250, 11, 90, 92, 92, 0, 0, 0, 255, 255, 255, 17, 171, 199],
            ),
            (
                Step::Hue(0.04),
                [200, 55, 31, 11, 250, 185, 90, 91, 92, 0, 0, 0, 255, 255, 255, 17, 21, 199],
            ),
            (
                Step::Hue(0.1),
                [200, 114, 31, 11, 230, 250, 90, 90, 92, 0, 0, 0, 255, 255, 255, 77, 17, 199],
            ),
        ];
        for (step, want) in cases {
            let mut got = RgbImage::from_raw(3, 2, picture.to_vec()).unwrap();
            step.apply(&mut got);
            assert_eq!(got.into_raw(), want, "{step:?}");
        }
    }

    #[test]
    fn factors_keep_to_the_amount_and_every_order_comes() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut orders = std::collections::HashSet::new();
        for _ in 0..600 {
            let jitter = ColourJitter::draw(0.1, &mut rng);
            for step in jitter.steps {
                let (Step::Brightness(f) | Step::Contrast(f) | Step::Saturation(f)) = step else {
                    let Step::Hue(share) = step else { unreachable!() };
                    assert!(share.abs() <= 0.1001, "{share}");
                    continue;
                };
                assert!((0.9..=1.1).contains(&f), "{step:?}");
            }
            orders.insert(jitter.steps.map(|step| std::mem::discriminant(&step)));
        }
        assert_eq!(orders.len(), 24);
    }
}
