//! From pixels to tensor: what the line's own path ([`crate::ops::pixels`]) is held against, to the
//! bit, and what training takes.
//!
//! A picture is resized to the model's input size without keeping its aspect ratio, by Pillow's
//! `BILINEAR` rule (a triangle filter whose support grows with the reduction, so that fine texture
//! is averaged and not aliased; 8 bits between the two passes). The crate goes along columns first
//! and has coarser weights than Pillow, so that a pixel may be one level off Pillow's. Levels are
//! scaled to 0..1 and normalised with ImageNet's mean and standard deviation, as torchvision's
//! networks were trained. Grey is put on all three channels.
//!
//! Letters: B pictures, H × W input size.

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use fast_image_resize::images::{Image as Resized, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{GrayImage, RgbImage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::frame::Image;
use crate::ops::pixels::Pixels;

/// Channel means of ImageNet, red, green, blue, in 0..1 (torchvision's transforms).
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Channel standard deviations of ImageNet.
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The size a model sees, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub width: usize,
    pub height: usize,
}

impl Input {
    /// Both sides must be multiples of 32 from 64 to 1024: the deepest level has stride 16 (32
    /// with layer4), and a ragged last row would shift the levels against each other.
    pub fn check(&self) -> Result<()> {
        for (key, value) in [("width", self.width), ("height", self.height)] {
            ensure!(
                (64..=1024).contains(&value) && value.is_multiple_of(32),
                "input.{key} = {value}: must be a multiple of 32 from 64 to 1024 (256 is usual)"
            );
        }
        Ok(())
    }

    /// `[B, 3, H, W]` f32, ImageNet-normalised, in the order of `images`.
    ///
    /// # Errors
    /// An empty batch or a picture without pixels.
    pub fn tensor(&self, images: &[&Image], device: &Device) -> Result<Tensor> {
        ensure!(!images.is_empty(), "a batch needs at least one picture");
        let plane = self.width * self.height;
        let table = levels();
        let mut values = vec![0f32; images.len() * 3 * plane];
        values.par_chunks_mut(3 * plane).zip(images).try_for_each(|(planes, image)| {
            let resized = resize(image, self.width, self.height)?;
            let (red, rest) = planes.split_at_mut(plane);
            let (green, blue) = rest.split_at_mut(plane);
            let targets = [red, green, blue];
            match resized {
                Image::Gray(pixels) => {
                    for (target, table) in targets.into_iter().zip(&table) {
                        for (value, &pixel) in target.iter_mut().zip(pixels.as_raw()) {
                            *value = table[usize::from(pixel)];
                        }
                    }
                }
                Image::Rgb(pixels) => {
                    for (channel, (target, table)) in targets.into_iter().zip(&table).enumerate() {
                        let samples = pixels.as_raw().iter().skip(channel).step_by(3);
                        for (value, &pixel) in target.iter_mut().zip(samples) {
                            *value = table[usize::from(pixel)];
                        }
                    }
                }
            }
            Ok::<(), anyhow::Error>(())
        })?;
        Ok(Tensor::from_vec(values, (images.len(), 3, self.height, self.width), device)?)
    }
}

/// The picture at the size of a model's input or any other; grey stays grey.
///
/// # Errors
/// A picture without pixels, or a size without.
pub fn resize(image: &Image, width: usize, height: usize) -> Result<Image> {
    let (from_width, from_height) = (image.width(), image.height());
    ensure!(
        from_width > 0 && from_height > 0,
        "a picture of {from_width} × {from_height} has no pixels"
    );
    ensure!(width > 0 && height > 0, "a size of {width} × {height} has no pixels");
    let (kind, samples) = match image {
        Image::Gray(gray) => (PixelType::U8, gray.as_raw()),
        Image::Rgb(rgb) => (PixelType::U8x3, rgb.as_raw()),
    };
    let source = ImageRef::new(from_width, from_height, samples, kind).context("reading pixels")?;
    let fits = |side: usize| u32::try_from(side).context("input size");
    let (width, height) = (fits(width)?, fits(height)?);
    let mut target = Resized::new(width, height, kind);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .use_alpha(false);
    Resizer::new().resize(&source, &mut target, &options).context("resizing a picture")?;
    let pixels = target.into_vec();
    match image {
        Image::Gray(_) => GrayImage::from_raw(width, height, pixels).map(Image::Gray),
        Image::Rgb(_) => RgbImage::from_raw(width, height, pixels).map(Image::Rgb),
    }
    .context("a resized picture lacks pixels")
}

/// The picture as the line's own path ([`crate::ops::pixels`]) reads it.
///
/// # Errors
/// A picture without pixels.
pub fn pixels(image: &Image) -> Result<Pixels<'_>> {
    let (width, height) = (image.width(), image.height());
    ensure!(width > 0 && height > 0, "a picture of {width} × {height} has no pixels");
    let (samples, depth): (&[u8], _) = match image {
        Image::Gray(gray) => (gray.as_raw(), 1),
        Image::Rgb(rgb) => (rgb.as_raw(), 3),
    };
    Ok(Pixels::new(samples, (height as usize, width as usize), depth))
}

/// What each of the 256 grey levels becomes, by channel.
fn levels() -> [[f32; 256]; 3] {
    std::array::from_fn(|channel| {
        std::array::from_fn(|level| (level as f32 / 255.0 - MEAN[channel]) / STD[channel])
    })
}

#[cfg(test)]
mod tests {
    use image::{Luma, Rgb};

    use super::*;
    use crate::ops::feature_map::Buffer;
    use crate::ops::pixels::PixelsIn;
    use crate::ops::simd::Isa;
    use crate::ops::stem_conv::Planes;
    use crate::ops::team::Team;

    fn pixels(value: &serde_json::Value) -> Vec<u8> {
        value["data"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u8).collect()
    }

    fn size(value: &serde_json::Value) -> (u32, u32) {
        let side = |axis: usize| value["shape"][axis].as_u64().unwrap() as u32;
        (side(1), side(0))
    }

    #[test]
    fn resize_is_pillows_bilinear_within_one_level() {
        let Some(path) = crate::shared::shared("spec/vectors/pil_resize.json") else { return };
        let vector: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (width, height) = size(&vector["input_rgb"]);
        let rgb = RgbImage::from_raw(width, height, pixels(&vector["input_rgb"])).unwrap();
        let gray = GrayImage::from_raw(width, height, pixels(&vector["input_l"])).unwrap();
        let cases = vector["expected"].as_object().unwrap();
        assert_eq!(cases.len(), 10);
        for (name, expected) in cases {
            let (width, height) = size(expected);
            let image = if name.starts_with("rgb") {
                Image::Rgb(rgb.clone())
            } else {
                Image::Gray(gray.clone())
            };
            let got = match resize(&image, width as usize, height as usize).unwrap() {
                Image::Gray(gray) => gray.into_raw(),
                Image::Rgb(rgb) => rgb.into_raw(),
            };
            let want = pixels(expected);
            assert_eq!(got.len(), want.len(), "{name}");
            let worst = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 1, "{name}: off by {worst} grey levels");
        }
    }

    #[test]
    fn the_lines_own_path_gives_the_same_numbers() {
        let level = |seed: u32, x: u32, y: u32, c: u32| {
            ((((x * 131 + y) * 3 + c) ^ seed).wrapping_mul(2_654_435_761) >> 13) as u8
        };
        // Smaller, larger, the very size, and one side kept, of (96, 64).
        let sizes = [(301, 77), (50, 40), (64, 96), (64, 500), (700, 96), (1, 1)];
        let images: Vec<Image> = (0..2)
            .flat_map(|kind| sizes.map(|size| (kind, size)))
            .map(|(kind, (width, height))| {
                let rgb = RgbImage::from_fn(width, height, |x, y| {
                    Rgb([0, 1, 2].map(|c| level(width * height, x, y, c)))
                });
                let gray = GrayImage::from_fn(width, height, |x, y| Luma([rgb.get_pixel(x, y)[0]]));
                if kind == 0 { Image::Gray(gray) } else { Image::Rgb(rgb) }
            })
            .collect();
        let input = Input { width: 64, height: 96 };
        let want = input.tensor(&images.iter().collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let planes = Planes { height: 96, width: 64, pad: 3 };
        let mut own = Buffer::zeroed(planes.len(images.len()));
        planes.write(&want.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &mut own);
        let pictures: Vec<_> = images.iter().map(|image| super::pixels(image).unwrap()).collect();
        let team = Team::new(2, false).unwrap();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let mut got = Buffer::zeroed(own.len());
            PixelsIn::new(planes, MEAN, STD).run(&team, isa, &pictures, &got);
            assert!(got.as_mut_slice() == own.as_mut_slice(), "{}", isa.word());
        }
    }

    #[test]
    fn gray_and_its_rgb_copy_give_the_same_tensor() {
        let gray = GrayImage::from_fn(301, 77, |x, y| Luma([((x * 7 + y * 13) % 251) as u8]));
        let gray = Image::Gray(gray);
        let rgb = Image::Rgb(gray.to_rgb());
        let input = Input { width: 64, height: 96 };
        let both = input.tensor(&[&gray, &rgb], &Device::Cpu).unwrap();
        assert_eq!(both.dims(), [2, 3, 96, 64]);
        let rows = both.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows[0], rows[1]);
    }

    #[test]
    fn a_flat_colour_is_normalised_by_channel() {
        /* torchvision: (torch.tensor([255, 0, 51]) / 255 - mean) / std */
        let want = [(1.0 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225];
        let image = Image::Rgb(RgbImage::from_pixel(500, 300, Rgb([255, 0, 51])));
        let input = Input { width: 64, height: 64 };
        let planes = input.tensor(&[&image], &Device::Cpu).unwrap();
        let planes = planes.flatten(2, 3).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        for (plane, want) in planes.iter().zip(want) {
            // one f32 division and subtraction away from the f64 value
            assert!(plane.iter().all(|value| (f64::from(*value) - want).abs() < 1e-6));
        }
    }

    #[test]
    fn a_ragged_or_huge_input_is_refused() {
        for side in [0, 32, 250, 2048] {
            let error = Input { width: 256, height: side }.check().unwrap_err();
            assert!(error.to_string().contains("multiple of 32"), "{error}");
        }
        Input { width: 256, height: 320 }.check().unwrap();
    }
}
