//! How an anomaly is laid on a normal picture, section 2 of `anomaly-generation.md`.
//!
//! N normal picture, A anomaly, M mask, o opacity: (1 - M)·N + M·(o·A + (1 - o)·N). DRAEM and PRN
//! write 1 - β for the opacity, DeSTSeg's paper writes β.

use anyhow::{Error, Result, ensure};
use image::buffer::ConvertBuffer;
use image::{Rgb32FImage, RgbImage};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::Synthetic;
use crate::dataset::mask::Mask;

/// How much of the anomaly is seen inside the mask: from `lo` (never quite) to `hi`, uniform; written
/// `[lo, hi]` in a config.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "[f32; 2]", into = "[f32; 2]")]
pub struct Opacity {
    pub lo: f32,
    pub hi: f32,
}

impl Opacity {
    /// DeSTSeg's, as its paper has it; its code has PRN's (G-2).
    pub const DESTSEG: Opacity = Opacity { lo: 0.15, hi: 1.0 };

    /// PRN's, which is DRAEM's: 1 - β, β uniform from 0 to 0.8 (G-2).
    pub const PRN: Opacity = Opacity { lo: 0.2, hi: 1.0 };

    pub fn new(lo: f32, hi: f32) -> Result<Opacity> {
        ensure!(
            0.0 <= lo && lo <= hi && hi <= 1.0,
            "opacity = [{lo}, {hi}]: must be two numbers from 0 to 1, the smaller first"
        );
        Ok(Opacity { lo, hi })
    }

    /// One uniform draw u of [0, 1): hi - (hi - lo)·u, which for PRN is 1 - 0.8·u.
    pub fn draw(&self, rng: &mut impl Rng) -> f32 {
        self.hi - (self.hi - self.lo) * rng.random::<f32>()
    }
}

impl TryFrom<[f32; 2]> for Opacity {
    type Error = Error;

    fn try_from([lo, hi]: [f32; 2]) -> Result<Opacity> {
        Opacity::new(lo, hi)
    }
}

impl From<Opacity> for [f32; 2] {
    fn from(Opacity { lo, hi }: Opacity) -> [f32; 2] {
        [lo, hi]
    }
}

/// The anomaly laid on the normal picture; outside the mask not a bit is changed.
///
/// # Panics
/// The sizes differ.
pub fn blend(
    normal: &Rgb32FImage,
    anomaly: &Rgb32FImage,
    mask: &Mask,
    opacity: f32,
) -> Rgb32FImage {
    let size = (mask.width as u32, mask.height as u32);
    assert_eq!((normal.dimensions(), anomaly.dimensions()), (size, size), "one size");
    let mut blended = normal.clone();
    let anomaly = anomaly.pixels();
    for ((pixel, anomaly), _) in
        blended.pixels_mut().zip(anomaly).zip(&mask.inside).filter(|(_, inside)| **inside)
    {
        for (level, anomaly) in pixel.0.iter_mut().zip(anomaly.0) {
            *level = *level * (1.0 - opacity) + anomaly * opacity;
        }
    }
    blended
}

/// [`blend`] of pictures of 256 levels.
///
/// # Panics
/// The sizes differ.
pub fn lay(normal: &RgbImage, anomaly: &RgbImage, mask: Mask, opacity: f32) -> Synthetic {
    Synthetic { image: blend(&normal.convert(), &anomaly.convert(), &mask, opacity), mask }
}

/// That something of this `size` can be laid on the picture.
pub(super) fn same_size(normal: &RgbImage, what: &str, size: (u32, u32)) -> Result<()> {
    let (width, height) = normal.dimensions();
    ensure!(
        size == (width, height),
        "{what} is {}×{}, the normal picture {width}×{height}; bring both to the working size",
        size.0,
        size.1
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;

    fn picture(array: &Value) -> Rgb32FImage {
        let [height, width, _]: [u32; 3] = serde_json::from_value(array["shape"].clone()).unwrap();
        let levels = serde_json::from_value(array["data"].clone()).unwrap();
        Rgb32FImage::from_vec(width, height, levels).unwrap()
    }

    #[test]
    fn agrees_with_the_vector() {
        let Some(path) = shared("spec/vectors/blend.json") else { return };
        let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let (normal, anomaly) = (picture(&vector["N"]), picture(&vector["A"]));
        let inside: Vec<f32> = serde_json::from_value(vector["M"]["data"].clone()).unwrap();
        let inside = inside.iter().map(|&m| m == 1.0).collect();
        let mask = Mask { width: 6, height: 6, inside };
        let tolerance = vector["tolerance"]["abs"].as_f64().unwrap() as f32;
        let cases = vector["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let opacity = 1.0 - case["beta"].as_f64().unwrap() as f32;
            let blended = blend(&normal, &anomaly, &mask, opacity);
            for (got, want) in blended.iter().zip(picture(&case["out"]).iter()) {
                assert!((got - want).abs() <= tolerance, "{got}, not {want}");
            }
        }
    }

    #[test]
    fn opacity_is_drawn_from_its_range() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for opacity in [Opacity::DESTSEG, Opacity::PRN, Opacity { lo: 0.5, hi: 0.5 }] {
            let drawn: Vec<f32> = (0..1000).map(|_| opacity.draw(&mut rng)).collect();
            assert!(drawn.iter().all(|o| (opacity.lo..=opacity.hi).contains(o)));
            let mean = drawn.iter().sum::<f32>() / 1000.0;
            let spread = (opacity.hi - opacity.lo) / 12.0_f32.sqrt();
            assert!(
                (mean - (opacity.lo + opacity.hi) / 2.0).abs() <= 4.0 * spread / 1000_f32.sqrt()
            );
        }
    }

    #[test]
    fn a_config_says_the_two_ends() {
        #[derive(Debug, PartialEq, Deserialize, Serialize)]
        struct Config {
            opacity: Opacity,
        }
        let config: Config = toml::from_str("opacity = [0.25, 1.0]").unwrap();
        assert_eq!(config.opacity, Opacity { lo: 0.25, hi: 1.0 });
        assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
        for wrong in ["[0.5, 0.2]", "[-0.1, 1.0]", "[0.0, 1.1]", "[nan, 1.0]", "[0.5]", "0.5"] {
            let error = toml::from_str::<Config>(&format!("opacity = {wrong}")).unwrap_err();
            assert!(error.to_string().contains("opacity"), "{error}");
        }
    }
}
