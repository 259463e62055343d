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
