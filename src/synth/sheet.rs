//! The contact sheet of made-up anomalies: each picture as it is (left) and with its mask outlined
//! (right).

use anyhow::Result;
use image::RgbImage;
use image::buffer::ConvertBuffer;

use super::Synthetic;
use crate::dataset::mask;
use crate::picture::sheet::{INK, SIDE, Section, Sheet, TRUTH, Tile, WRONG, shrink};
use crate::picture::{line_px, outline};

/// The sheet; each section has a heading and what [`tile`] made.
pub fn sheet(title: String, sections: Vec<(String, Vec<Tile>)>) -> RgbImage {
    let sections =
        sections.into_iter().map(|(heading, tiles)| Section { heading, tiles }).collect();
    Sheet { title, legend: LEGEND.to_owned(), columns: COLUMNS, sections }.draw()
}

/// One anomaly; `name` is said of it beside the share of the picture that its mask covers.
pub fn tile(made: &Synthetic, name: String) -> Result<Tile> {
    let picture: RgbImage = made.image.convert();
    let left = shrink(&picture, SIDE);
    let (width, height) = left.dimensions();
    let inside = mask::at_resolution(&made.mask.to_gray(), width as usize, height as usize)?;
    let mut right = left.clone();
    outline(&mut right, &inside, line_px(width, height), TRUTH);
    let area = made.mask.area();
    let share = area as f64 * 100.0 / made.mask.inside.len() as f64;
    let (word, colour) = match area {
        0 => ("EMPTY MASK".to_owned(), WRONG),
        _ => (format!("{area} px  {share:.1} %"), INK),
    };
    Ok(Tile { left, right, name, word, colour })
}

/// Tiles side by side.
pub const COLUMNS: u32 = 3;

const LEGEND: &str = "left: as made; right: mask outlined, its area below";

#[cfg(test)]
mod tests {
    use image::{Rgb, Rgb32FImage};

    use super::*;
    use crate::dataset::mask::Mask;

    #[test]
    fn the_right_picture_is_the_left_one_with_its_mask_outlined() {
        let mut mask = Mask::empty(112, 112);
        for y in 20..40 {
            mask.inside[y * 112 + 30..y * 112 + 60].fill(true);
        }
        let image = Rgb32FImage::from_pixel(112, 112, Rgb([0.5; 3]));
        let made = tile(&Synthetic { image: image.clone(), mask }, "0001".to_owned()).unwrap();
        assert_eq!(made.word, "600 px  4.8 %");
        let outlined: Vec<(u32, u32)> =
            made.right.enumerate_pixels().filter(|p| *p.2 == TRUTH).map(|p| (p.0, p.1)).collect();
        assert!(outlined.contains(&(60, 40)) && outlined.contains(&(119, 79)), "{outlined:?}");
        assert!(made.left.pixels().all(|pixel| *pixel == Rgb([128; 3])));

        let empty = Synthetic { image, mask: Mask::empty(112, 112) };
        let made = tile(&empty, String::new()).unwrap();
        assert_eq!((made.word.as_str(), made.left == made.right), ("EMPTY MASK", true));
    }
}
