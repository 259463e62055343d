//! Simulated anomalies: another picture seen through a mask of Perlin noise.
//!
//! [`make`] is PRN's (Zhang et al. 2023; section 3.5 of `anomaly-generation.md`), of textures (HEA) or
//! of shuffled normal pictures (HOA), within a target area; [`textured`] is DeSTSeg's (Zhang et al.
//! 2023) and DRAEM's (Zavrtanik et al. 2021), of textures, anywhere.

use anyhow::{Result, ensure};
use image::RgbImage;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::augment::{self, Menu};
use super::blend::{self, Opacity};
use super::source::Source;
use super::target_area::{self, keep_within};
use super::{SampleKey, Synthetic, Tag, homogeneous, perlin};
use crate::dataset::mask::Mask;

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The chance of a texture as source (HEA); else it is a shuffled normal picture (HOA). PRN does
    /// not say; one half (G-5).
    pub heterogeneous_share: f64,
    /// PRN's (G-2).
    pub opacity: Opacity,
    pub target_area: target_area::Config,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            heterogeneous_share: 0.5,
            opacity: Opacity::PRN,
            target_area: target_area::Config::default(),
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<()> {
        ensure!(
            (0.0..=1.0).contains(&self.heterogeneous_share),
            "heterogeneous_share = {}: must be from 0 (only shuffled normal pictures) to 1 (only \
             textures)",
            self.heterogeneous_share
        );
        self.target_area.check()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TexturedConfig {
    /// DeSTSeg's, by its paper (G-2).
    pub opacity: Opacity,
    /// How many of DRAEM's ten operations change the texture: none as in DeSTSeg's code, or 3 as in
    /// DRAEM and DeSTSeg's paper.
    pub augmentations: usize,
}

impl Default for TexturedConfig {
    fn default() -> TexturedConfig {
        TexturedConfig { opacity: Opacity::DESTSEG, augmentations: 0 }
    }
}

impl TexturedConfig {
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.augmentations <= DRAEM_OPERATIONS,
            "augmentations = {}: must be from 0 to {DRAEM_OPERATIONS}, of which there are no more",
            self.augmentations
        );
        Ok(())
    }
}

/// A simulated anomaly of PRN on the `normal` picture; `other` is the normal picture that a
/// homogeneous source is made of (G-4). The mask is Perlin noise within a target area. Where they
/// have nothing in common, both are drawn anew, up to 20 times; then the foreground is the target
/// area; then the noise is alone, and may be empty (G-1).
///
/// Draws, of [`Tag::Source`]: one u of [0, 1), below the share a texture: what [`Source::picture`]
/// draws, then 2 of [`Menu::Prn`]; else what [`homogeneous::source`] draws. Of [`Tag::Mask`] what
/// [`perlin::mask`] draws, of [`Tag::TargetArea`] what [`target_area::draw`] draws, each for each try.
/// Of [`Tag::Blend`] the opacity.
///
/// # Errors
/// Pictures of different sizes; a source that cannot be read; a size that has no 8 by 8 grid.
pub fn make(
    normal: &RgbImage,
    other: &RgbImage,
    foreground: &Mask,
    source: &Source,
    config: &Config,
    key: SampleKey,
) -> Result<Synthetic> {
    let (width, height) = normal.dimensions();
    blend::same_size(normal, "the other normal picture", other.dimensions())?;
    blend::same_size(
        normal,
        "the foreground",
        (foreground.width as u32, foreground.height as u32),
    )?;
    let mut rng = key.rng(Tag::Source);
    let anomaly = if rng.random::<f64>() < config.heterogeneous_share {
        let texture = source.picture(&mut rng, width, height)?;
        recolour(&texture, &mut rng)
    } else {
        homogeneous::source(other, &mut rng)?
    };
    let mask = place(foreground, &config.target_area, key);
    let opacity = config.opacity.draw(&mut key.rng(Tag::Blend));
    Ok(blend::lay(normal, &anomaly, mask, opacity))
}

/// A texture seen through Perlin noise, anywhere in the `normal` picture; seldom through nothing, as
/// the mask may be empty (G-1).
///
/// Draws, of [`Tag::Source`]: what [`Source::picture`] draws, then the operations of [`Menu::Draem`];
/// of [`Tag::Mask`] what [`perlin::mask`] draws; of [`Tag::Blend`] the opacity.
///
/// # Errors
/// A source that cannot be read.
pub fn textured(
    normal: &RgbImage,
    source: &Source,
    config: &TexturedConfig,
    key: SampleKey,
) -> Result<Synthetic> {
    let (width, height) = normal.dimensions();
    let mut rng = key.rng(Tag::Source);
    let texture = source.picture(&mut rng, width, height)?;
    let anomaly =
        augment::apply(&augment::draw(Menu::Draem, config.augmentations, &mut rng), &texture);
    let mask = perlin::mask(&mut key.rng(Tag::Mask), width as usize, height as usize);
    let opacity = config.opacity.draw(&mut key.rng(Tag::Blend));
    Ok(blend::lay(normal, &anomaly, mask, opacity))
}

/// PRN's Aug_1: 2 of the 7 operations of [`Menu::Prn`].
pub(super) fn recolour(picture: &RgbImage, rng: &mut impl Rng) -> RgbImage {
    augment::apply(&augment::draw(Menu::Prn, 2, rng), picture)
}

const DRAEM_OPERATIONS: usize = 10;

/// How often noise and target area are drawn anew while they have nothing in common.
const REDRAWS: u32 = 20;

/// The mask of [`make`].
fn place(foreground: &Mask, config: &target_area::Config, key: SampleKey) -> Mask {
    let (mut noises, mut areas) = (key.rng(Tag::Mask), key.rng(Tag::TargetArea));
    let mut noise = Mask::empty(foreground.width, foreground.height);
    for _ in 0..=REDRAWS {
        noise = perlin::mask(&mut noises, foreground.width, foreground.height);
        let area = target_area::draw(foreground, config, &mut areas);
        let mask = keep_within(&noise, &area);
        if mask.inside.contains(&true) {
            return mask;
        }
    }
    let mask = keep_within(&noise, foreground);
    if mask.inside.contains(&true) { mask } else { noise }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use image::buffer::ConvertBuffer;
    use rayon::prelude::*;

    use super::*;
    use crate::camera::pattern;
    use crate::synth::foreground;

    fn parts() -> [RgbImage; 2] {
        let config =
            pattern::Config { width: 64, height: 64, defect_rate: 0.0, ..Default::default() };
        [0, 1].map(|index| pattern::render(&config, index).0)
    }

    fn key(index: u64) -> SampleKey {
        SampleKey { seed: 7, epoch: 1, index }
    }

    /// Of the disc in the middle.
    fn disc() -> Mask {
        let inside = (0..64 * 64).map(|at| (at % 64_i32 - 32).pow(2) + (at / 64 - 32).pow(2) < 400);
        Mask { width: 64, height: 64, inside: inside.collect() }
    }

    /// A folder of one grey picture: whatever the order of draws or the way of resizing, it is grey.
    fn grey() -> (tempfile::TempDir, Source) {
        let folder = tempfile::tempdir().unwrap();
        RgbImage::from_pixel(64, 64, Rgb([100; 3])).save(folder.path().join("grey.png")).unwrap();
        let source = Source::open(Some(folder.path())).unwrap();
        (folder, source)
    }

    /// Where something was drawn, and nowhere else.
    fn check_outside(normal: &RgbImage, made: &Synthetic) {
        let normal: image::Rgb32FImage = normal.convert();
        assert_eq!((made.mask.width, made.mask.height), (64, 64));
        for ((before, after), inside) in
            normal.pixels().zip(made.image.pixels()).zip(&made.mask.inside)
        {
            assert!(*inside || before == after, "outside the mask nothing changes");
            assert!(after.0.iter().all(|level| (0.0..=1.0).contains(level)), "{after:?}");
        }
    }

    #[test]
    fn anomalies_come_on_the_part() {
        let ([normal, other], part) = (parts(), disc());
        for index in 0..60 {
            let config = Config::default();
            let made =
                make(&normal, &other, &part, &Source::Procedural, &config, key(index)).unwrap();
            check_outside(&normal, &made);
            assert!(made.mask.area() > 0);
            assert!(made.mask.inside.iter().zip(&part.inside).all(|(made, part)| !made || *part));
        }
    }

    #[test]
    fn a_texture_may_be_anywhere() {
        let [normal, _] = parts();
        let mut at_rim = 0;
        for index in 0..60 {
            let config = TexturedConfig { augmentations: index as usize % 4, ..Default::default() };
            let made = textured(&normal, &Source::Procedural, &config, key(index)).unwrap();
            check_outside(&normal, &made);
            at_rim += usize::from(made.mask.inside[..64].contains(&true));
        }
        assert!(at_rim > 0);
    }

    #[test]
    fn the_texture_is_as_opaque_as_drawn() {
        let ([normal, _], (_folder, source)) = (parts(), grey());
        let config = TexturedConfig::default();
        let made = textured(&normal, &source, &config, key(3)).unwrap();
        let opacity = config.opacity.draw(&mut key(3).rng(Tag::Blend));
        let before: image::Rgb32FImage = normal.convert();
        for ((before, after), inside) in
            before.pixels().zip(made.image.pixels()).zip(&made.mask.inside)
        {
            for (before, after) in before.0.iter().zip(after.0) {
                let want = before + opacity * (100.0 / 255.0 - before);
                assert!(!inside || (after - want).abs() < 1e-6, "{after}, not {want}");
            }
        }
    }

    #[test]
    fn the_share_of_textures_is_as_said() {
        let ([normal, _], (_folder, source)) = (parts(), grey());
        let mut rng = key(0).rng(Tag::Order);
        let noise = RgbImage::from_fn(64, 64, |_, _| Rgb(rng.random()));
        let whole = foreground::whole(64, 64);
        for (share, least, most) in [(0.0, 0, 0), (0.5, 10, 30), (1.0, 40, 40)] {
            let config = Config {
                heterogeneous_share: share,
                opacity: Opacity { lo: 1.0, hi: 1.0 },
                ..Default::default()
            };
            let textures = (0..40)
                .filter(|&index| {
                    let made = make(&normal, &noise, &whole, &source, &config, key(index)).unwrap();
                    // In whatever colour, the texture is flat and the noise is not.
                    let mut seen =
                        made.image.pixels().zip(&made.mask.inside).filter(|(_, inside)| **inside);
                    let first = seen.next().unwrap().0;
                    seen.all(|(pixel, _)| pixel == first)
                })
                .count();
            assert!((least..=most).contains(&textures), "{textures} of 40 at {share}");
        }
    }

    #[test]
    fn a_target_area_without_noise_is_given_up() {
        let mut speck = Mask::empty(64, 64);
        speck.inside[64 * 32 + 32] = true;
        let config = target_area::Config::default();
        let masks: Vec<Mask> = (0..40).map(|index| place(&speck, &config, key(index))).collect();
        let on_speck = masks.iter().filter(|mask| **mask == speck).count();
        let elsewhere = masks.iter().filter(|mask| mask.area() > 1).count();
        assert!(on_speck > 0, "21 tries for one pixel do seldom find it");
        assert_eq!(on_speck + elsewhere, 40);
        let nowhere = place(&Mask::empty(64, 64), &config, key(0));
        assert!(nowhere.area() > 1, "without a foreground the noise is alone");
    }

    #[test]
    fn threads_change_nothing() {
        let ([normal, other], part) = (parts(), disc());
        let one = |index| {
            let config = Config::default();
            make(&normal, &other, &part, &Source::Procedural, &config, key(index)).unwrap()
        };
        let in_order: Vec<Synthetic> = (0..24).map(one).collect();
        let at_once: Vec<Synthetic> = (0..24).into_par_iter().map(one).collect();
        assert!(in_order == at_once);
        assert!(in_order[0] != in_order[1]);
    }

    #[test]
    fn draws_are_pinned() {
        let ([normal, other], part, (_folder, source)) = (parts(), disc(), grey());
        let pinned: Vec<(usize, i64)> = (0..6)
            .map(|index| {
                let config = Config::default();
                let made = make(&normal, &other, &part, &source, &config, key(index)).unwrap();
                (made.mask.area(), changes(&normal, &made))
            })
            .collect();
        let want = [(24, 1916), (2, 81), (29, 2379), (134, 17634), (6, 206), (3, 86)];
        assert_eq!(pinned, want);
        let config = TexturedConfig { augmentations: 3, ..Default::default() };
        let made = textured(&normal, &source, &config, key(0)).unwrap();
        assert_eq!((made.mask.area(), changes(&normal, &made)), (141, 35337));
    }

    /// By how many levels the picture was changed, all in all.
    fn changes(normal: &RgbImage, made: &Synthetic) -> i64 {
        let before: image::Rgb32FImage = normal.convert();
        let change = |(before, after): (&f32, &f32)| f64::from((after - before).abs());
        (before.iter().zip(made.image.iter()).map(change).sum::<f64>() * 255.0).round() as i64
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let [normal, other] = parts();
        let config = Config { heterogeneous_share: 0.0, ..Default::default() };
        let make = |normal: &RgbImage, other: &RgbImage, side: usize| {
            let whole = foreground::whole(side, side);
            make(normal, other, &whole, &Source::Procedural, &config, key(0)).map(|_| ())
        };
        assert!(make(&normal, &other, 64).is_ok());
        let odd = RgbImage::new(60, 60);
        for (result, words) in [
            (make(&normal, &odd, 64), "the other normal picture is 60×60"),
            (make(&normal, &other, 60), "the foreground is 60×60"),
            (make(&odd, &odd, 60), "multiples of 8"),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_config_that_cannot_be_meant_is_refused() {
        let config: Config =
            toml::from_str("opacity = [0.5, 1.0]\ntarget_area.on = false").unwrap();
        assert!(config.check().is_ok() && !config.target_area.on);
        assert!(toml::from_str::<Config>("opacities = [0.5, 1.0]").is_err());
        assert!(Config { heterogeneous_share: 1.1, ..config }.check().is_err());
        assert!(TexturedConfig::default().check().is_ok());
        assert!(TexturedConfig { augmentations: 11, ..Default::default() }.check().is_err());
    }
}
