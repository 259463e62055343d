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
        Ok(Grab::Picture(Picture { image: Image::Rgb(image), name, captured_at: None, truth }))
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
