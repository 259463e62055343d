//! Pictures for people: where an anomaly is, boxes, lettering, and PNG files of all that.

use anyhow::{Context, Result};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage};

use crate::frame::Image;
use crate::verdict::Region;

pub mod lettering;
pub mod overlay;
pub mod sheet;

/// The picture as a PNG file, pixel for pixel; compressed for speed, not for size.
pub fn png(picture: &Image) -> Result<Vec<u8>> {
    let (bytes, colour) = match picture {
        Image::Gray(gray) => (gray.as_raw(), ExtendedColorType::L8),
        Image::Rgb(rgb) => (rgb.as_raw(), ExtendedColorType::Rgb8),
    };
    encode(bytes, picture.width(), picture.height(), colour)
}

/// As [`png`], of a colour picture.
pub fn rgb_png(picture: &RgbImage) -> Result<Vec<u8>> {
    encode(picture.as_raw(), picture.width(), picture.height(), ExtendedColorType::Rgb8)
}

/// Draws the frame of `region`, `line_px` thick, just outside of it; what lies beyond the picture
/// is left out.
pub fn frame_region(picture: &mut RgbImage, region: Region, line_px: u32, colour: Rgb<u8>) {
    let (left, top) = (i64::from(region.x), i64::from(region.y));
    let (right, bottom) = (left + i64::from(region.width), top + i64::from(region.height));
    let line = i64::from(line_px);
    for y in top - line..bottom + line {
        for x in left - line..right + line {
            let inside = (left..right).contains(&x) && (top..bottom).contains(&y);
            if !inside {
                put(picture, x, y, colour);
            }
        }
    }
}

/// Draws the inner edge of a shape, `line_px` thick. `inside` holds rows of the picture's width.
pub fn outline(picture: &mut RgbImage, inside: &[bool], line_px: u32, colour: Rgb<u8>) {
    let (width, height) = (i64::from(picture.width()), i64::from(picture.height()));
    let line = i64::from(line_px);
    // Beyond the picture counts as inside: a shape cut by the picture's edge has no edge there.
    let is_inside = |x: i64, y: i64| {
        !(0..width).contains(&x) || !(0..height).contains(&y) || inside[(y * width + x) as usize]
    };
    for y in 0..height {
        for x in 0..width {
            let near = [(x - line, y), (x + line, y), (x, y - line), (x, y + line)];
            if is_inside(x, y) && near.iter().any(|&(x, y)| !is_inside(x, y)) {
                put(picture, x, y, colour);
            }
        }
    }
}

/// How thick a line must be to be seen at the picture's size, in pixels.
pub fn line_px(width: u32, height: u32) -> u32 {
    (width.min(height) / 200).max(1)
}

fn put(picture: &mut RgbImage, x: i64, y: i64, colour: Rgb<u8>) {
    let place = u32::try_from(x).ok().zip(u32::try_from(y).ok());
    if let Some(pixel) = place.and_then(|(x, y)| picture.get_pixel_mut_checked(x, y)) {
        *pixel = colour;
    }
}

fn encode(bytes: &[u8], width: u32, height: u32, colour: ExtendedColorType) -> Result<Vec<u8>> {
    let mut file = Vec::with_capacity(bytes.len() / 2);
    PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Up)
        .write_image(bytes, width, height, colour)
        .with_context(|| format!("encoding a picture of {width}×{height} as PNG"))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use image::GrayImage;

    use super::*;

    const WHITE: Rgb<u8> = Rgb([255; 3]);

    #[test]
    fn png_keeps_every_pixel() {
        let gray = Image::Gray(GrayImage::from_fn(7, 5, |x, y| image::Luma([(x * 31 + y) as u8])));
        let rgb = Image::Rgb(RgbImage::from_fn(5, 7, |x, y| Rgb([x as u8, y as u8, 200])));
        for picture in [gray, rgb] {
            let back = image::load_from_memory(&png(&picture).unwrap()).unwrap();
            let back = match picture {
                Image::Gray(_) => Image::Gray(back.into_luma8()),
                Image::Rgb(_) => Image::Rgb(back.into_rgb8()),
            };
            assert_eq!(back, picture);
        }
    }

    fn drawn(picture: &RgbImage) -> Vec<(u32, u32)> {
        picture.enumerate_pixels().filter(|p| *p.2 == WHITE).map(|p| (p.0, p.1)).collect()
    }

    #[test]
    fn a_frame_lies_around_its_region() {
        let mut picture = RgbImage::new(5, 4);
        frame_region(&mut picture, Region { x: 1, y: 1, width: 2, height: 1 }, 1, WHITE);
        let around =
            [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (3, 1), (0, 2), (1, 2), (2, 2), (3, 2)];
        assert_eq!(drawn(&picture), around);
    }

    #[test]
    fn a_frame_may_leave_the_picture() {
        let mut picture = RgbImage::new(3, 3);
        frame_region(&mut picture, Region { x: 0, y: 1, width: 9, height: 9 }, 1, WHITE);
        assert_eq!(drawn(&picture), [(0, 0), (1, 0), (2, 0)]);
    }

    #[test]
    fn an_outline_is_the_shapes_edge() {
        let mut picture = RgbImage::new(4, 3);
        let inside: Vec<bool> = (0..12).map(|i| i % 4 < 3).collect();
        outline(&mut picture, &inside, 1, WHITE);
        assert_eq!(drawn(&picture), [(2, 0), (2, 1), (2, 2)]);
    }
}
