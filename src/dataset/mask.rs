//! Truth masks brought to a detector's resolution by the protocol of DeSTSeg (Zhang et al. 2023,
//! section 4.2): bilinear with antialias, then 1 where at least one half.

use std::path::Path;

use anyhow::{Context, Result, bail};
use image::{DynamicImage, GrayImage};

use crate::camera::folder;
use crate::frame::Image;
use crate::ops::interpolate::{Align, bilinear_planes};

/// Where a picture is anomalous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    pub width: usize,
    pub height: usize,
    /// Rows from the top, `width` · `height` places.
    pub inside: Vec<bool>,
}

impl Mask {
    /// No place is anomalous.
    pub fn empty(width: usize, height: usize) -> Mask {
        Mask { width, height, inside: vec![false; width * height] }
    }

    /// A mask file at `width` × `height`; see [`at_resolution`].
    ///
    /// # Errors
    /// A file that is no picture; the message names it.
    pub fn read(path: &Path, width: usize, height: usize) -> Result<Mask> {
        let mask = open(path)?;
        let inside =
            at_resolution(&mask, width, height).with_context(|| path.display().to_string())?;
        Ok(Mask { width, height, inside })
    }

    /// As DeSTSeg's training brings a mask of the working size to that of its segmentation: bilinear
    /// without antialias, then 1 where at least one half.
    pub fn without_antialias(&self, width: usize, height: usize) -> Mask {
        let levels: Vec<f32> = self.inside.iter().map(|&inside| f32::from(inside)).collect();
        let (from, to) = ((self.height, self.width), (height, width));
        let resized = bilinear_planes(&levels, from, to, Align::HalfPixel);
        let inside = resized.into_iter().map(|level| level >= 0.5).collect();
        Mask { width, height, inside }
    }

    /// A place of the smaller mask is anomalous where at least `share` of its pixels are (MLFF's M-11).
    ///
    /// # Panics
    /// If the sides are no multiples of the smaller ones.
    pub fn by_area(&self, width: usize, height: usize, share: f64) -> Mask {
        let fits = self.width.is_multiple_of(width) && self.height.is_multiple_of(height);
        assert!(fits, "{}×{} to {width}×{height}", self.width, self.height);
        let (across, down) = (self.width / width, self.height / height);
        let mut counts = vec![0_usize; width * height];
        for (i, _) in self.inside.iter().enumerate().filter(|(_, inside)| **inside) {
            counts[i / self.width / down * width + i % self.width / across] += 1;
        }
        let least = share * (across * down) as f64;
        let inside = counts.into_iter().map(|count| count > 0 && count as f64 >= least).collect();
        Mask { width, height, inside }
    }

    /// How many places are anomalous.
    pub fn area(&self) -> usize {
        self.inside.iter().filter(|&&inside| inside).count()
    }

    /// As a picture of 0 and 255, 255 where anomalous.
    pub fn to_gray(&self) -> GrayImage {
        let levels = self.inside.iter().map(|&inside| if inside { 255 } else { 0 }).collect();
        GrayImage::from_raw(self.width as u32, self.height as u32, levels)
            .expect("a mask has a place for each pixel")
    }
}

/// A mask file as it is; see [`at_resolution`] for what its values say.
///
/// # Errors
/// A file that is no picture; the message names it.
pub fn open(path: &Path) -> Result<GrayImage> {
    Ok(match folder::read(path, 16)? {
        Image::Gray(mask) => mask,
        Image::Rgb(mask) => DynamicImage::ImageRgb8(mask).into_luma8(),
    })
}

/// The mask at `width` × `height`, rows from the top; true where anomalous.
///
/// A pixel of the file is anomalous above 127 if the file is 0/255, above 0 if it holds labels.
pub fn at_resolution(mask: &GrayImage, width: usize, height: usize) -> Result<Vec<bool>> {
    let (from_width, from_height) = (mask.width() as usize, mask.height() as usize);
    if from_width == 0 || from_height == 0 || width == 0 || height == 0 {
        bail!("a mask of {from_width}×{from_height} has no {width}×{height} version");
    }
    let above = if mask.pixels().any(|pixel| pixel.0[0] == 255) { 127 } else { 0 };
    let truth: Vec<f64> =
        mask.pixels().map(|pixel| if pixel.0[0] > above { 1.0 } else { 0.0 }).collect();
    let resized = resize(&truth, (from_width, from_height), (width, height));
    Ok(resized.into_iter().map(|value| value >= 0.5).collect())
}

/// Separable triangle filter, its support widened by the shrink factor; pixel centres at halves
/// (`align_corners = False`). Sizes are (width, height).
fn resize(values: &[f64], from: (usize, usize), to: (usize, usize)) -> Vec<f64> {
    let columns = taps(from.0, to.0);
    let rows = taps(from.1, to.1);
    let mut narrow = Vec::with_capacity(to.0 * from.1); // [from.1, to.0]
    for row in values.chunks_exact(from.0) {
        narrow.extend(columns.iter().map(|tap| {
            tap.weights.iter().zip(&row[tap.first..]).map(|(w, value)| w * value).sum::<f64>()
        }));
    }
    let mut out = Vec::with_capacity(to.0 * to.1); // [to.1, to.0]
    for tap in &rows {
        for x in 0..to.0 {
            let column = narrow[tap.first * to.0 + x..].iter().step_by(to.0);
            out.push(tap.weights.iter().zip(column).map(|(w, value)| w * value).sum::<f64>());
        }
    }
    out
}

/// The source pixels that make one target pixel.
struct Tap {
    first: usize,
    weights: Vec<f64>,
}

fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f64 / to as f64;
    let support = scale.max(1.0);
    (0..to)
        .map(|target| {
            let centre = (target as f64 + 0.5) * scale;
            // As Pillow and PyTorch: from the first to the last pixel whose centre may be inside.
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            let mut weights: Vec<f64> = (first..last)
                .map(|source| {
                    let away = (source as f64 + 0.5 - centre).abs() / support;
                    (1.0 - away).max(0.0)
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
            Tap { first, weights }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;

    fn numbers(value: &Value) -> Vec<f64> {
        serde_json::from_value(value["data"].clone()).unwrap()
    }

    #[test]
    fn agrees_with_the_protocol_of_destseg() {
        let Some(path) = shared("spec/vectors/mask_downsample.json") else { return };
        let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let shape: [u32; 2] = serde_json::from_value(vector["input"]["shape"].clone()).unwrap();
        let small: [usize; 2] = serde_json::from_value(vector["resized"]["shape"].clone()).unwrap();
        let input = numbers(&vector["input"]);
        let truth: Vec<f64> = input.iter().map(|value| value / 255.0).collect();
        let from = (shape[1] as usize, shape[0] as usize);
        let resized = resize(&truth, from, (small[1], small[0]));
        let tolerance = vector["tolerance"]["abs"].as_f64().unwrap();
        for (i, (got, want)) in resized.iter().zip(numbers(&vector["resized"])).enumerate() {
            assert!((got - want).abs() <= tolerance, "pixel {i}: {got}, not {want}");
        }
        let pixels = input.iter().map(|&value| value as u8).collect();
        let mask = GrayImage::from_raw(shape[1], shape[0], pixels).unwrap();
        let got = at_resolution(&mask, small[1], small[0]).unwrap();
        let want: Vec<bool> =
            numbers(&vector["binary"]).iter().map(|&value| value == 1.0).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn training_masks_shrink_as_destsegs() {
        let Some(path) = shared("spec/vectors/destseg_seg_losses.json") else { return };
        let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(vector["inputs"]["mask"]["shape"], serde_json::json!([2, 1, 32, 32]));
        let input = numbers(&vector["inputs"]["mask"]);
        let levels: Vec<f32> = input.iter().map(|&level| level as f32).collect();
        let resized = bilinear_planes(&levels, (32, 32), (8, 8), Align::HalfPixel);
        let tolerance = vector["tolerance"]["abs"].as_f64().unwrap();
        for (got, want) in resized.iter().zip(numbers(&vector["expected"]["mask_resized"])) {
            assert!((f64::from(*got) - want).abs() <= tolerance, "{got}, not {want}");
        }
        let want = numbers(&vector["expected"]["mask_binary"]);
        for (levels, want) in input.chunks_exact(32 * 32).zip(want.chunks_exact(8 * 8)) {
            let inside = levels.iter().map(|&level| level == 1.0).collect();
            let small = Mask { width: 32, height: 32, inside }.without_antialias(8, 8);
            let want: Vec<bool> = want.iter().map(|&level| level == 1.0).collect();
            assert_eq!(small, Mask { width: 8, height: 8, inside: want });
        }
    }

    #[test]
    fn a_file_in_colour_is_a_mask_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mask.png");
        let white = |x: u32, _| image::Rgb(if x < 2 { [255; 3] } else { [0; 3] });
        image::RgbImage::from_fn(4, 2, white).save(&path).unwrap();
        let mask = Mask::read(&path, 2, 1).unwrap();
        assert_eq!(mask, Mask { width: 2, height: 1, inside: vec![true, false] });
        let error = format!("{:#}", Mask::read(&folder.path().join("none.png"), 2, 1).unwrap_err());
        assert!(error.contains("none.png"), "{error}");
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let mask = GrayImage::from_fn(5, 3, |x, y| image::Luma([if x > y { 255 } else { 0 }]));
        let want: Vec<bool> = mask.pixels().map(|pixel| pixel.0[0] > 127).collect();
        assert_eq!(at_resolution(&mask, 5, 3).unwrap(), want);
    }

    #[test]
    fn label_files_count_from_one() {
        let mask = GrayImage::from_raw(2, 1, vec![0, 3]).unwrap();
        assert_eq!(at_resolution(&mask, 2, 1).unwrap(), [false, true]);
    }

    #[test]
    fn a_place_is_anomalous_by_its_share_of_pixels() {
        // 6×4 to 3×2: 2×2 pixels a place.
        let rows = ["##.#..", "##.#.#", "#.....", "......"];
        let inside = rows.iter().flat_map(|row| row.chars().map(|c| c == '#')).collect();
        let mask = Mask { width: 6, height: 4, inside };
        let by = |share| mask.by_area(3, 2, share).inside;
        assert_eq!(by(0.5), [true, true, false, false, false, false]);
        assert_eq!(by(0.25), [true, true, true, true, false, false]);
        assert_eq!(by(1.0), [true, false, false, false, false, false]);
    }
}
