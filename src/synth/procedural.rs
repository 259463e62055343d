//! Textures made from nothing, for those who have no folder of them.

use image::RgbImage;
use rand::Rng;

/// A texture of this size.
pub fn texture(_rng: &mut impl Rng, width: u32, height: u32) -> RgbImage {
    RgbImage::new(width, height)
}
