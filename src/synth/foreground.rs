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

use crate::dataset::Surface;
use crate::dataset::mask::Mask;
use crate::metrics::components;

/// How the foreground is found.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Foreground {
    /// [`estimate`] it; of a texture it is the whole picture.
    #[default]
    Otsu,
    /// [`estimate_in_colour`]: for parts that are as bright as what they lie on.
    Colour,
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
            Foreground::Otsu | Foreground::Colour if surface == Some(Surface::Texture) => whole(),
            Foreground::Otsu => estimate(picture),
            Foreground::Colour => estimate_in_colour(picture),
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
    part_of(&imageops::blur(&grey(picture), BLUR_SIGMA))
}

/// As [`estimate`], not on grey but on red, green or blue: on the one of which Otsu's threshold
/// explains most of the variance.
pub fn estimate_in_colour(picture: &RgbImage) -> Mask {
    let smooth = [0, 1, 2].map(|channel| {
        let levels = picture.pixels().map(|pixel| pixel.0[channel]).collect();
        let plane = GrayImage::from_vec(picture.width(), picture.height(), levels);
        imageops::blur(&plane.expect("one level a pixel"), BLUR_SIGMA)
    });
    let explained = |plane: &&GrayImage| otsu(plane).1;
    let best = smooth.iter().max_by(|a, b| explained(a).total_cmp(&explained(b)));
    part_of(best.expect("there are three"))
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

/// The part in levels that are smooth.
fn part_of(smooth: &GrayImage) -> Mask {
    let (level, _) = otsu(smooth);
    let mut part = threshold(smooth, &|grey| grey > level);
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
/// between the classes, the first of such (Otsu 1979), and its share of all variance, 0 to 1.
fn otsu(grey: &GrayImage) -> (u8, f64) {
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
    let mean = sum / pixels;
    let square = |(level, &n): (u32, &u64)| n as f64 * (f64::from(level) - mean).powi(2);
    let all = (0..).zip(&counts).map(square).sum::<f64>() / pixels;
    (best, if all > 0.0 { most / all } else { 0.0 })
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
    let mask = Mask::read(path, width, height)?;
    ensure!(
        mask.inside.contains(&true),
        "{} covers nothing; draw the part in white, or remove the file and take foreground = otsu",
        path.display()
    );
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const SIDE: usize = 64;

    /// A disc with a hole and a crumb beside it.
    fn part(on: u8, off: u8) -> RgbImage {
        RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
            let away = |cx: f64, cy: f64| (f64::from(x) - cx).hypot(f64::from(y) - cy);
            let disc = away(34.0, 30.0) <= 20.0 && away(30.0, 28.0) > 5.0;
            Rgb([if disc || away(5.0, 5.0) < 2.0 { on } else { off }; 3])
        })
    }

    #[test]
    fn the_part_is_found_on_either_ground() {
        for (on, off) in [(200, 20), (40, 230), (130, 90)] {
            let found = estimate(&part(on, off));
            let mut wrong = 0;
            for (at, &inside) in found.inside.iter().enumerate() {
                let away = ((at % SIDE) as f64 - 34.0).hypot((at / SIDE) as f64 - 30.0);
                // The blur moves the rim by less than a pixel.
                wrong += usize::from(inside != (away <= 20.0) && (away - 20.0).abs() > 1.0);
            }
            assert_eq!(wrong, 0, "{on} on {off}");
        }
    }

    #[test]
    fn a_part_as_bright_as_its_ground_is_found_by_its_colour() {
        // The luma of both is 150 within a level.
        let (nut, ground) = (Rgb([160, 145, 150]), Rgb([190, 158, 1]));
        let picture = RgbImage::from_fn(64, 64, |x, y| {
            let away = (f64::from(x) - 34.0).hypot(f64::from(y) - 30.0);
            if away <= 20.0 { nut } else { ground }
        });
        let found = estimate_in_colour(&picture);
        let disc = std::f64::consts::PI * 400.0;
        assert!((found.area() as f64 - disc).abs() < 0.05 * disc, "{} of {disc}", found.area());
        assert!(found.inside[30 * SIDE + 34] && !found.inside[0]);
        // On grey all channels are the same.
        assert_eq!(estimate_in_colour(&part(200, 20)), estimate(&part(200, 20)));
        // Two levels are explained by their threshold.
        let two = GrayImage::from_vec(4, 1, vec![3, 3, 9, 9]).unwrap();
        assert!((otsu(&two).1 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn no_part_is_the_whole_picture() {
        let all = whole(SIDE, SIDE);
        let flat = RgbImage::from_pixel(64, 64, Rgb([90; 3]));
        assert_eq!(estimate(&flat), all);
        let mut speck = flat.clone();
        for (x, y) in [(30, 30), (30, 31), (31, 30)] {
            speck.put_pixel(x, y, Rgb([200; 3]));
        }
        assert_eq!(estimate(&speck), all);
        assert_eq!(estimate(&RgbImage::from_pixel(1, 1, Rgb([3; 3]))), whole(1, 1));
    }

    /// Otsu's by its definition, over all divisions.
    fn plain_otsu(levels: &[u8]) -> u8 {
        let between = |level: u8| {
            let (low, high): (Vec<u8>, Vec<u8>) = levels.iter().partition(|&&l| l <= level);
            let mean = |levels: &[u8]| {
                levels.iter().map(|&l| f64::from(l)).sum::<f64>() / levels.len() as f64
            };
            let apart = mean(&low) - mean(&high);
            let between = (low.len() * high.len()) as f64 * apart * apart;
            if between.is_nan() { 0.0 } else { between }
        };
        let most = (0..=255).map(between).fold(0.0, f64::max);
        (0..=255).find(|&level| between(level) >= most * (1.0 - 1e-12)).unwrap()
    }

    #[test]
    fn otsu_divides_best() {
        for levels in [
            vec![10, 12, 11, 200, 210, 190, 10, 13],
            vec![0, 0, 255, 255],
            vec![1, 2, 3, 4, 5, 6, 7, 8, 90],
            vec![7; 5],
        ] {
            let picture = GrayImage::from_vec(levels.len() as u32, 1, levels.clone()).unwrap();
            assert_eq!(otsu(&picture).0, plain_otsu(&levels), "{levels:?}");
        }
    }

    fn drawn(rows: &[&str]) -> Mask {
        let inside = rows.iter().flat_map(|row| row.bytes()).map(|byte| byte == b'#').collect();
        Mask { width: rows[0].len(), height: rows.len(), inside }
    }

    #[test]
    fn closing_is_of_a_disc() {
        let mut mask = Mask::empty(31, 17);
        let seeds: Vec<(usize, usize)> = (0..17)
            .flat_map(|y| (0..31).map(move |x| (x, y)))
            .filter(|(x, y)| (x * x + 7 * y * y + x * y) % 23 < 2)
            .collect();
        seeds.iter().for_each(|(x, y)| mask.inside[y * 31 + x] = true);
        // A place is open where a disc about a place of the picture holds it and no seed.
        let mut want = mask.clone();
        let disc = |x: i32, y: i32, cx: i32, cy: i32| (x - cx).pow(2) + (y - cy).pow(2) <= 9;
        for y in 0..17 {
            for x in 0..31 {
                let free = |cx: i32, cy: i32| {
                    disc(x, y, cx, cy)
                        && !seeds.iter().any(|&(sx, sy)| disc(sx as i32, sy as i32, cx, cy))
                };
                let open = (0..17).any(|cy| (0..31).any(|cx| free(cx, cy)));
                want.inside[y as usize * 31 + x as usize] = !open;
            }
        }
        close(&mut mask);
        assert_eq!(mask, want);
        assert!((seeds.len() + 1..31 * 17).contains(&mask.area()), "some gaps are closed");
    }

    #[test]
    fn holes_are_filled_but_not_bays() {
        let mut mask =
            drawn(&["#####.", "#...#.", "#.#.#.", "#...##", "####..", ".#.###", ".#.#.."]);
        fill_holes(&mut mask);
        let want = drawn(&["#####.", "#####.", "#####.", "######", "####..", ".#.###", ".#.#.."]);
        assert_eq!(mask, want);
    }

    #[test]
    fn small_regions_are_dropped() {
        let mut mask = Mask::empty(20, 20);
        [0, 1, 2, 3, 100, 102, 104, 399].into_iter().for_each(|at| mask.inside[at] = true);
        drop_small_regions(&mut mask);
        assert_eq!(mask.inside.iter().filter(|&&inside| inside).count(), 4);
        assert!(mask.inside[..4].iter().all(|&inside| inside), "1 % is enough");
    }

    #[test]
    fn thresholds_keep_one_side() {
        let picture = RgbImage::from_fn(64, 8, |x, _| Rgb([x as u8 * 2; 3]));
        let of = |foreground: Foreground, category: &str| {
            foreground.of(&picture, Path::new("000.png"), category, Some(Surface::Object))
        };
        let columns = |mask: Mask| mask.inside[..64].iter().filter(|&&inside| inside).count();
        assert_eq!(columns(of(Foreground::Above(50), "").unwrap()), 38);
        assert_eq!(columns(of(Foreground::Below(50), "").unwrap()), 25);
        assert_eq!(columns(of(Foreground::Above(200), "").unwrap()), 64, "nothing: all");
        assert_eq!(columns(of(Foreground::Memseg, "hazelnut").unwrap()), 38);
        assert_eq!(columns(of(Foreground::Memseg, "zipper").unwrap()), 50);
        assert_eq!(columns(of(Foreground::Memseg, "cable").unwrap()), 64);
        let error = of(Foreground::Memseg, "hazelnut_toy").unwrap_err();
        assert!(error.to_string().contains("hazelnut_toy"), "{error}");
    }

    #[test]
    fn of_a_texture_it_is_everything() {
        let picture = part(200, 20);
        let of = |surface| Foreground::Otsu.of(&picture, Path::new("0.png"), "x", surface).unwrap();
        assert_eq!(of(Some(Surface::Texture)), whole(SIDE, SIDE));
        assert_eq!(of(Some(Surface::Object)), estimate(&picture));
        assert_eq!(of(None), estimate(&picture));
        let whole_object = Foreground::Whole.of(&picture, Path::new("0.png"), "x", None).unwrap();
        assert_eq!(whole_object, whole(SIDE, SIDE));
    }

    #[test]
    fn the_user_s_masks_go_before() {
        let folder = tempfile::tempdir().unwrap();
        let picture = part(200, 20);
        let masks = Foreground::Masks(folder.path().to_path_buf());
        let of = |name: &str| masks.of(&picture, Path::new(name), "x", Some(Surface::Texture));
        GrayImage::from_fn(128, 128, |x, _| Luma([if x < 32 { 255 } else { 0 }]))
            .save(folder.path().join("000.png"))
            .unwrap();
        RgbImage::from_pixel(64, 64, Rgb([255; 3])).save(folder.path().join("1.5.bmp")).unwrap();
        GrayImage::new(64, 64).save(folder.path().join("002.png")).unwrap();
        std::fs::write(folder.path().join("003.png"), "no picture").unwrap();
        let found = of("train/good/000.jpg").unwrap();
        assert!(found.inside.iter().enumerate().all(|(at, &inside)| inside == (at % SIDE < 16)));
        assert_eq!(of("train/good/1.5.png").unwrap(), whole(SIDE, SIDE));
        for (name, words) in [
            ("002.png", "002.png covers nothing"),
            ("003.png", "003.png"),
            ("good/004.png", "it would be"),
        ] {
            let error = format!("{:#}", of(name).unwrap_err());
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
        let gone = Foreground::Masks(folder.path().join("gone"));
        let error = gone.of(&picture, Path::new("000.png"), "x", None).unwrap_err();
        assert!(format!("{error:#}").contains("gone is not there"), "{error:#}");
    }

    #[test]
    fn a_config_names_the_way() {
        #[derive(Deserialize)]
        struct Config {
            foreground: Foreground,
        }
        for (words, want) in [
            ("\"otsu\"", Foreground::Otsu),
            ("\"memseg\"", Foreground::Memseg),
            ("{ above = 50 }", Foreground::Above(50)),
            ("{ masks = \"fg\" }", Foreground::Masks("fg".into())),
        ] {
            let config: Config = toml::from_str(&format!("foreground = {words}")).unwrap();
            assert_eq!(config.foreground, want);
        }
        assert!(toml::from_str::<Config>("foreground = { above = 500 }").is_err());
        assert!(toml::from_str::<Config>("foreground = \"otsus\"").is_err());
    }
}
