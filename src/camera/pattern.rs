//! Renders parts where no camera is at hand: turned aluminium dials on a conveyor belt, printed,
//! drilled, each a little different in place, light, finish and noise. At a set rate a part has a
//! defect, and what and where it is is known.
//!
//! Part `index` of a `seed` is always the same picture, and a defect changes nothing but the pixels
//! under its mask: with `defect_rate = 0` the same part comes out whole.

use std::time::Duration;

use anyhow::{Result, ensure};
use image::{GrayImage, Luma, Rgb, RgbImage};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::{CameraFault, FrameSource, Grab, Picture, period};
use crate::frame::{Image, Truth};

mod defect;
mod part;

use defect::Defect;
pub use defect::Kind;
use part::Part;

/// Rendered parts that stand in for a camera.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Parts per second.
    pub rate_hz: f64,
    /// Of the picture, in pixels, 64 to 4096; the part fills the shorter side.
    pub width: u32,
    pub height: u32,
    /// How many parts come before the end; endless where it is not given.
    pub parts: Option<u64>,
    pub seed: u64,
    /// The chance of a part to have a defect, 0 to 1.
    pub defect_rate: f64,
    /// The kinds of defects that occur, each as likely as the next.
    pub defects: Vec<Kind>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            rate_hz: 5.0,
            width: 320,
            height: 320,
            parts: None,
            seed: 0,
            defect_rate: 0.1,
            defects: Kind::ALL.to_vec(),
        }
    }
}

impl Config {
    /// Refuses values that cannot be meant.
    pub fn check(&self) -> Result<()> {
        period(self.rate_hz)?;
        for (key, pixels) in [("width", self.width), ("height", self.height)] {
            ensure!(
                (64..=4096).contains(&pixels),
                "{key} = {pixels} cannot be rendered; 64 to 4096 pixels can"
            );
        }
        ensure!(
            (0.0..=1.0).contains(&self.defect_rate),
            "defect_rate = {} is no chance; it goes from 0 (all good) to 1 (all defective)",
            self.defect_rate
        );
        ensure!(
            !self.defects.is_empty(),
            "defects is empty; name a kind, or set defect_rate = 0 for good parts only"
        );
        Ok(())
    }
}

/// The running line of rendered parts.
pub struct Pattern {
    config: Config,
    period: Duration,
    index: u64,
}

impl Pattern {
    pub fn open(config: &Config) -> Result<Pattern, CameraFault> {
        let fault = |error: anyhow::Error| CameraFault(format!("{error:#}"));
        config.check().map_err(fault)?;
        let period = period(config.rate_hz).map_err(fault)?;
        Ok(Pattern { period, config: config.clone(), index: 0 })
    }
}

impl FrameSource for Pattern {
    fn grab(&mut self, _patience: Duration) -> Result<Grab, CameraFault> {
        if self.config.parts.is_some_and(|parts| self.index >= parts) {
            return Ok(Grab::End);
        }
        let (image, defect) = render(&self.config, self.index);
        let name = format!("part-{:06}", self.index);
        self.index += 1;
        let truth = Some(Truth { defect: defect.map(|(kind, _)| kind.word()) });
        Ok(Grab::Picture(Picture {
            image: Image::Rgb(image),
            name,
            captured_at: None,
            position: None,
            truth,
        }))
    }

    fn period(&self) -> Option<Duration> {
        Some(self.period)
    }
}

/// Part number `index` of `config.seed`. A defective part comes with its kind and its mask: 255
/// where the defect changed a channel by more than [`VISIBLE`], 0 elsewhere.
pub fn render(config: &Config, index: u64) -> (RgbImage, Option<(Kind, GrayImage)>) {
    // One stream each for part, defect and noise, so that none shifts the others' draws.
    let stream = |of: u64| {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(index.wrapping_mul(4).wrapping_add(of));
        rng
    };
    let (width, height) = (config.width, config.height);
    let good = Part::draw(width as f32, height as f32, &mut stream(0));
    let defect = draw_defect(config, &mut stream(1));
    let hurt = defect.as_ref().map(|defect| (defect, defect.alter(&good)));

    let mut mask = GrayImage::new(width, height);
    let mut image = RgbImage::new(width, height);
    let mut noise = stream(2);
    let mut row_noise = vec![0u8; width as usize * 6];
    for y in 0..height {
        noise.fill_bytes(&mut row_noise);
        for x in 0..width {
            let at = [x as f32 + 0.5, y as f32 + 0.5];
            let mut color = good.color(at);
            if let Some((defect, part)) = &hurt
                && defect.reaches(part.place(at))
            {
                let changed = defect.cover(part, part.place(at), part.color(at));
                if color.iter().zip(changed).any(|(a, b)| (a - b).abs() * 255.0 > VISIBLE) {
                    mask.put_pixel(x, y, Luma([255]));
                }
                color = changed;
            }
            let noise = &row_noise[x as usize * 6..][..6];
            let level = |channel: usize| {
                // The sum of two bytes has a standard deviation of 104.5.
                let two = f32::from(noise[2 * channel]) + f32::from(noise[2 * channel + 1]);
                let level = color[channel] * 255.0 + (two - 255.0) * (NOISE / 104.5);
                (level + 0.5) as u8
            };
            image.put_pixel(x, y, Rgb([level(0), level(1), level(2)]));
        }
    }
    (image, defect.map(|defect| (defect.kind, mask)))
}

/// A change of fewer levels drowns in the noise: three of its standard deviations.
pub const VISIBLE: f32 = 3.0 * NOISE;

/// Standard deviation of the sensor noise, in levels of 255.
const NOISE: f32 = 2.0;

fn draw_defect(config: &Config, rng: &mut impl Rng) -> Option<Defect> {
    // Both are drawn in any case, so that a part's kind does not hang on the rate.
    let chance: f64 = rng.random();
    let kind = config.defects[rng.random_range(0..config.defects.len())];
    (chance < config.defect_rate).then(|| Defect::draw(kind, rng))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Small, since tests render without optimisation.
    fn config(defect_rate: f64) -> Config {
        Config { width: 128, height: 128, seed: 11, defect_rate, ..Config::default() }
    }

    fn differ(a: &Rgb<u8>, b: &Rgb<u8>) -> u8 {
        a.0.iter().zip(b.0).map(|(a, b)| a.abs_diff(b)).max().unwrap()
    }

    #[test]
    fn a_part_hangs_on_seed_and_index_alone() {
        let (part, _) = render(&config(0.0), 5);
        assert_eq!(part, render(&config(0.0), 5).0);
        assert_ne!(part, render(&config(0.0), 6).0);
        assert_ne!(part, render(&Config { seed: 12, ..config(0.0) }, 5).0);
        let mut line = Pattern::open(&config(0.0)).unwrap();
        for index in 0..6 {
            let Ok(Grab::Picture(picture)) = line.grab(Duration::ZERO) else { panic!("a part") };
            assert_eq!(picture.name, format!("part-{index:06}"));
            assert_eq!(picture.truth, Some(Truth { defect: None }));
            if index == 5 {
                assert_eq!(picture.image, Image::Rgb(part.clone()));
            }
        }
    }

    #[test]
    fn a_defect_is_seen_under_its_mask_and_nowhere_else() {
        // The noise is the same, a level is rounded on either side.
        let visible = VISIBLE as u8;
        for kind in Kind::ALL {
            for index in 0..4 {
                let (good, none) = render(&config(0.0), index);
                assert_eq!(none, None);
                let config = Config { defects: vec![kind], ..config(1.0) };
                let (bad, Some((found, mask))) = render(&config, index) else {
                    panic!("each part has a defect")
                };
                assert_eq!(found, kind);
                let mut area = 0;
                for ((a, b), masked) in good.pixels().zip(bad.pixels()).zip(mask.pixels()) {
                    if masked.0 == [255] {
                        area += 1;
                        assert!(differ(a, b) >= visible - 1, "{kind:?} {index}: {a:?} {b:?}");
                    } else {
                        assert!(differ(a, b) <= visible + 1, "{kind:?} {index}: {a:?} {b:?}");
                    }
                }
                // A speck of three by three at 128 pixels; no defect is half the picture.
                assert!((9..128 * 64).contains(&area), "{kind:?} {index}: {area} pixels");
                for level in bad.as_raw() {
                    assert!((1..255).contains(level), "{kind:?} {index} clips");
                }
            }
        }
    }

    #[test]
    fn defects_come_at_their_rate_each_kind_alike_and_a_lower_rate_only_leaves_some_out() {
        let draw = |rate: f64| -> Vec<Option<Kind>> {
            let config = config(rate);
            (0..4000u64)
                .map(|index| {
                    let mut rng = ChaCha8Rng::seed_from_u64(index);
                    draw_defect(&config, &mut rng).map(|defect| defect.kind)
                })
                .collect()
        };
        assert!(draw(0.0).iter().all(Option::is_none));
        let all = draw(1.0);
        let mut kinds = HashMap::new();
        for kind in &all {
            *kinds.entry(kind.unwrap()).or_insert(0) += 1;
        }
        // Binomial, n = 4000: five standard deviations are 105 at 1/8 and 145 at 0.3.
        assert_eq!(kinds.len(), 8);
        assert!(kinds.values().all(|&count: &i32| count.abs_diff(500) < 105), "{kinds:?}");
        let some = draw(0.3);
        let count = some.iter().flatten().count();
        assert!(count.abs_diff(1200) < 145, "{count}");
        assert!(some.iter().zip(&all).all(|(some, all)| some.is_none() || some == all));
    }

    #[test]
    fn the_line_ends_after_its_parts_and_knows_each_ones_truth() {
        let config = Config { parts: Some(3), rate_hz: 50.0, ..config(1.0) };
        let mut line = Pattern::open(&config).unwrap();
        assert_eq!(line.period(), Some(Duration::from_millis(20)));
        for index in 0..3 {
            let kind = render(&config, index).1.map(|(kind, _)| kind.word());
            let Ok(Grab::Picture(picture)) = line.grab(Duration::ZERO) else { panic!("a part") };
            assert_eq!(picture.truth, Some(Truth { defect: kind }));
            assert!(kind.is_some());
        }
        assert!(matches!(line.grab(Duration::ZERO), Ok(Grab::End)));
    }

    #[test]
    fn the_part_lies_whole_on_the_belt_whatever_the_pictures_shape() {
        for (width, height) in [(160, 64), (64, 160)] {
            for index in 0..8 {
                let (image, _) = render(&Config { width, height, ..config(0.0) }, index);
                for (x, y, pixel) in image.enumerate_pixels() {
                    if x == 0 || y == 0 || x == width - 1 || y == height - 1 {
                        // The belt has about 42 levels, metal and print above the belt 100.
                        assert!(pixel.0.iter().all(|&level| level < 75), "{x} {y} {pixel:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_kind_is_written_as_its_word() {
        for kind in Kind::ALL {
            let text = format!("defects = ['{}']", kind.word());
            assert_eq!(toml::from_str::<Config>(&text).unwrap().defects, [kind]);
        }
    }
}
