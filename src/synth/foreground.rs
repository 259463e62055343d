//! The foreground: where the part is in a picture, so that anomalies come on the part. Section 5 of
//! `anomaly-generation.md`; the fixed thresholds are those of MemSeg (Yang et al. 2023,
//! `anomaly_mask.json`).
//!
//! It is found on the normal picture at the working size. Whoever makes many anomalies on one picture
//! keeps it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::{GrayImage, Luma, RgbImage, imageops};
use serde::{Deserialize, Serialize};

use crate::camera::folder;
use crate::dataset::Surface;
use crate::dataset::mask::{self, Mask};
use crate::frame::Image;
use crate::metrics::components;

/// How the foreground is found.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Foreground {
    /// [`estimate`] it; of a texture it is the whole picture.
    #[default]
    Otsu,
    /// By MemSeg's threshold of the category, for MVTec AD's categories only.
    Memseg,
    /// Where grey is above this level.
    Above(u8),
    /// Where grey is below this level.
    Below(u8),
    /// A folder of masks, each called as its picture: `000.png` for `train/good/000.jpg`.
    Masks(PathBuf),
    /// The whole picture, for objects too.
    Whole,
}

impl Foreground {
    /// The foreground of a picture at the working size; `path` is the file that it was read from. It
    /// is never empty: where a threshold leaves nothing, it is the whole picture.
    ///
    /// # Errors
    /// A mask that is not there, cannot be read or covers nothing; a category without a threshold.
    pub fn of(
        &self,
        picture: &RgbImage,
        path: &Path,
        category: &str,
        surface: Option<Surface>,
    ) -> Result<Mask> {
        let whole = || whole(picture.width() as usize, picture.height() as usize);
        let thresholded = |keeps: &dyn Fn(u8) -> bool| {
            let found = threshold(&grey(picture), keeps);
            if found.inside.contains(&true) { found } else { whole() }
        };
        Ok(match self {
            Foreground::Otsu if surface == Some(Surface::Texture) => whole(),
            Foreground::Otsu => estimate(picture),
            Foreground::Memseg => match memseg(category)? {
                Some(Side::Above(level)) => thresholded(&|grey| grey > level),
                Some(Side::Below(level)) => thresholded(&|grey| grey < level),
                None => whole(),
            },
            Foreground::Above(level) => thresholded(&|grey| grey > *level),
            Foreground::Below(level) => thresholded(&|grey| grey < *level),
            Foreground::Masks(folder) => {
                supplied(folder, path, picture.width() as usize, picture.height() as usize)
                    .with_context(|| format!("the foreground of {}", path.display()))?
            }
            Foreground::Whole => whole(),
        })
    }
}

/// The foreground estimated: grey, blurred with a sigma of 2, divided by Otsu's threshold; the class
/// with fewer pixels at the picture's rim (the brighter, where they have the same) is the part. Then
/// gaps up to 6 pixels are closed, holes filled, and regions below 1 % of the picture dropped. The
/// whole picture, where this leaves less than 3 % or more than 97 % of it.
pub fn estimate(picture: &RgbImage) -> Mask {
    let smooth = imageops::blur(&grey(picture), BLUR_SIGMA);
    let level = otsu(&smooth);
    let mut part = threshold(&smooth, &|grey| grey > level);
    let rim = rim(part.width, part.height);
    if 2 * rim.iter().filter(|&&at| part.inside[at]).count() > rim.len() {
        part.inside.iter_mut().for_each(|inside| *inside = !*inside);
    }
    close(&mut part);
    fill_holes(&mut part);
    drop_small_regions(&mut part);
    let share = part.area() as f64 / part.inside.len() as f64;
    if PLAUSIBLE.contains(&share) { part } else { whole(part.width, part.height) }
}

/// All of the picture, as of a texture.
pub fn whole(width: usize, height: usize) -> Mask {
    Mask { width, height, inside: vec![true; width * height] }
}

const BLUR_SIGMA: f32 = 2.0;

/// Of the disc that gaps are closed with, in pixels.
const CLOSING_RADIUS: isize = 3;

/// Share of the picture below which a region is not the part.
const SMALLEST_REGION: f64 = 0.01;

/// Shares of the picture that a part may have.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = 0.03..=0.97;

/// Luma as of Rec. 601, in which MemSeg's thresholds are.
fn grey(picture: &RgbImage) -> GrayImage {
    let luma = |&[r, g, b]: &[u8; 3]| {
        ((299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b) + 500) / 1000) as u8
    };
    let levels = picture.as_chunks::<3>().0.iter().map(luma).collect();
    GrayImage::from_vec(picture.width(), picture.height(), levels).expect("one level a pixel")
}

fn threshold(grey: &GrayImage, keeps: &dyn Fn(u8) -> bool) -> Mask {
    let kept: [bool; 256] = std::array::from_fn(|level| keeps(level as u8));
    let inside = grey.pixels().map(|Luma([level])| kept[*level as usize]).collect();
    Mask { width: grey.width() as usize, height: grey.height() as usize, inside }
}

/// The level that divides the grey levels (the lower class includes it) with the greatest variance
/// between the classes, the first of such (Otsu 1979).
fn otsu(grey: &GrayImage) -> u8 {
    let mut counts = [0_u64; 256];
    grey.pixels().for_each(|Luma([level])| counts[*level as usize] += 1);
    let sum_of = |counts: &[u64]| -> u64 { (0..).zip(counts).map(|(level, n)| level * n).sum() };
    let (pixels, sum) = (counts.iter().sum::<u64>() as f64, sum_of(&counts) as f64);
    let (mut best, mut most) = (0, 0.0);
    let (mut below, mut sum_below) = (0, 0);
    for level in 0..=255_u8 {
        below += counts[level as usize];
        sum_below += u64::from(level) * counts[level as usize];
        let share = below as f64 / pixels;
        // (m·w - m₀)² / (w·(1 - w)), w the lower class's share and m₀ its sum over all pixels.
        let difference = sum / pixels * share - sum_below as f64 / pixels;
        let variance = difference * difference / (share * (1.0 - share));
        if variance > most {
            (best, most) = (level, variance);
        }
    }
    best
}

/// The pixels along the picture's sides, each once.
fn rim(width: usize, height: usize) -> Vec<usize> {
    let at_rim = |at: &usize| {
        let (x, y) = (at % width, at / width);
        x == 0 || y == 0 || x == width - 1 || y == height - 1
    };
    (0..width * height).filter(at_rim).collect()
}

/// Grown by a disc, then shrunk by it. What is outside the picture neither grows into it nor shrinks
/// what is inside.
fn close(mask: &mut Mask) {
    for _ in 0..2 {
        grow(mask);
        mask.inside.iter_mut().for_each(|inside| *inside = !*inside);
    }
}

fn grow(mask: &mut Mask) {
    let (width, height) = (mask.width, mask.height);
    let mut grown = vec![false; mask.inside.len()];
    for dy in -CLOSING_RADIUS..=CLOSING_RADIUS {
        let half = ((CLOSING_RADIUS * CLOSING_RADIUS - dy * dy) as f64).sqrt() as usize;
        for y in 0..height {
            let Some(from) = y.checked_add_signed(dy).filter(|from| *from < height) else {
                continue;
            };
            let row = &mask.inside[from * width..][..width];
            let grown = &mut grown[y * width..][..width];
            for dx in 0..=half.min(width) {
                let or = |(grown, inside): (&mut bool, &bool)| *grown |= inside;
                grown[dx..].iter_mut().zip(row).for_each(or);
                grown.iter_mut().zip(&row[dx..]).for_each(or);
            }
        }
    }
    mask.inside = grown;
}

/// Fills what no way over sides of pixels leads to from the picture's rim.
fn fill_holes(mask: &mut Mask) {
    let (width, height) = (mask.width, mask.height);
    let mut enclosed: Vec<bool> = mask.inside.iter().map(|inside| !inside).collect();
    let mut open = rim(width, height);
    open.retain(|&at| std::mem::take(&mut enclosed[at]));
    while let Some(at) = open.pop() {
        let (x, y) = (at % width, at / width);
        let mut go = |near: usize| {
            if std::mem::take(&mut enclosed[near]) {
                open.push(near);
            }
        };
        if x > 0 {
            go(at - 1);
        }
        if x + 1 < width {
            go(at + 1);
        }
        if y > 0 {
            go(at - width);
        }
        if y + 1 < height {
            go(at + width);
        }
    }
    mask.inside.iter_mut().zip(enclosed).for_each(|(inside, enclosed)| *inside |= enclosed);
}

fn drop_small_regions(mask: &mut Mask) {
    let (labels, regions) = components::label(&mask.inside, mask.width);
    let mut sizes = vec![0_usize; regions as usize + 1];
    labels.iter().for_each(|&label| sizes[label as usize] += 1);
    let least = SMALLEST_REGION * mask.inside.len() as f64;
    for (inside, label) in mask.inside.iter_mut().zip(labels) {
        *inside = *inside && sizes[label as usize] as f64 >= least;
    }
}

/// On which side of a grey level the part is.
enum Side {
    Above(u8),
    Below(u8),
}

/// MemSeg's threshold of a category; `None` where the part fills the picture, or as good as.
fn memseg(category: &str) -> Result<Option<Side>> {
    Ok(Some(match category {
        "bottle" => Side::Below(250),
        "capsule" => Side::Below(120),
        "hazelnut" => Side::Above(50),
        "metal_nut" => Side::Above(40),
        "pill" => Side::Above(100),
        "screw" => Side::Below(110),
        "toothbrush" => Side::Above(30),
        "transistor" => Side::Below(90),
        "zipper" => Side::Below(100),
        "cable" | "carpet" | "grid" | "leather" | "tile" | "wood" => return Ok(None),
        _ => bail!(
            "foreground = memseg knows the categories of MVTec AD, not {category}; give a level \
             (above or below), a folder of masks, or otsu"
        ),
    }))
}

/// The mask that the user has for a picture.
fn supplied(folder: &Path, picture: &Path, width: usize, height: usize) -> Result<Mask> {
    ensure!(folder.is_dir(), "the folder of masks {} is not there", folder.display());
    let stem = picture.file_stem().context("its name has no stem to look for")?;
    let masks = ["png", "tif", "tiff", "bmp", "jpg", "jpeg"]
        .map(|ending| folder.join(stem).with_added_extension(ending));
    let Some(path) = masks.iter().find(|path| path.exists()) else {
        bail!("{} has no mask for it; it would be {}", folder.display(), masks[0].display());
    };
    let grey = match folder::read(path, 8)? {
        Image::Gray(mask) => mask,
        // As MVTec AD's are now and then: grey put on three channels.
        Image::Rgb(mask) => grey(&mask),
    };
    let inside =
        mask::at_resolution(&grey, width, height).with_context(|| path.display().to_string())?;
    ensure!(
        inside.contains(&true),
        "{} covers nothing; draw the part in white, or remove the file and take foreground = otsu",
        path.display()
    );
    Ok(Mask { width, height, inside })
}
