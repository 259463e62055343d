//! The contact sheet: the defects that score lowest and the good parts that score highest, each
//! with its truth (left) and what the detector saw (right).

use anyhow::Result;
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::{Evaluation, Scored, Settings, detect, pictures, truth};
use crate::dataset::Sample;
use crate::detector::{Detection, Detector};
use crate::frame::Image;
use crate::picture::lettering::{self, Style};
use crate::picture::{frame_region, line_px, outline, overlay};

/// Draws the sheet of an evaluation made with the same settings; `title` is its first line. The
/// few pictures on it are scored once more.
pub fn sheet(
    detector: &mut dyn Detector,
    evaluation: &Evaluation,
    settings: &Settings,
    title: &str,
) -> Result<RgbImage> {
    let (goods, defects) = ranked(&evaluation.scored);
    let rows = [
        ("Worst misses: the defects with the lowest scores", worst(defects.into_iter())),
        (
            "Worst false rejects: the good parts with the highest scores",
            worst(goods.into_iter().rev()),
        ),
    ];
    let width = MARGIN + COLUMNS * (TILE_WIDTH + MARGIN);
    let section = |tiles: usize| {
        let lines = (tiles as u32).div_ceil(COLUMNS);
        HEADING + lines * (TILE_HEIGHT + MARGIN)
    };
    let height = MARGIN + HEADING + rows.iter().map(|(_, row)| section(row.len())).sum::<u32>();
    let mut sheet = RgbImage::from_pixel(width, height, PAPER);
    let title = Style::Title.fit(title, width - 2 * MARGIN);
    lettering::write(&mut sheet, MARGIN, MARGIN, &title, Style::Title, INK);
    let left = width - MARGIN - Style::Plain.width_px(LEGEND);
    lettering::write(&mut sheet, left, MARGIN + HEADING + 8, LEGEND, Style::Plain, FAINT);
    let mut top = MARGIN + HEADING;
    for (heading, chosen) in rows {
        lettering::write(&mut sheet, MARGIN, top + 8, heading, Style::Strong, FAINT);
        top += HEADING;
        for (i, one) in chosen.iter().enumerate() {
            let (column, line) = (i as u32 % COLUMNS, i as u32 / COLUMNS);
            let x = MARGIN + column * (TILE_WIDTH + MARGIN);
            let y = top + line * (TILE_HEIGHT + MARGIN);
            let tile = tile(detector, one, settings)?;
            imageops::replace(&mut sheet, &tile, i64::from(x), i64::from(y));
        }
        top += section(chosen.len()) - HEADING;
    }
    Ok(sheet)
}

const LEGEND: &str =
    "left: truth outlined; right: map at or above its limit (blue: its peak, below the limit)";
/// What is this much lower than the peak is shown with it, as a share of the peak.
const BELOW_PEAK: f32 = 0.15;
const COLUMNS: u32 = 3;
/// Pictures of each sort: two lines of tiles.
const WORST: usize = 6;
const MARGIN: u32 = 16;
const HEADING: u32 = 40;
/// A tile is two pictures of this size side by side, and a line of words below.
const SIDE: u32 = 224;
const GAP: u32 = 2;
const CAPTION: u32 = 26;
const TILE_WIDTH: u32 = 2 * SIDE + GAP;
const TILE_HEIGHT: u32 = SIDE + CAPTION;

const PAPER: Rgb<u8> = Rgb([22, 24, 29]);
const TILE_PAPER: Rgb<u8> = Rgb([34, 37, 44]);
const INK: Rgb<u8> = Rgb([236, 238, 242]);
const FAINT: Rgb<u8> = Rgb([160, 166, 178]);
const RIGHT: Rgb<u8> = Rgb([112, 214, 140]);
const WRONG: Rgb<u8> = Rgb([255, 107, 107]);
const BELOW_LIMIT: Rgb<u8> = Rgb([105, 170, 255]);
const TRUTH: Rgb<u8> = Rgb([64, 224, 120]);

/// Good parts and defects, each from the lowest score to the highest; equal scores by name.
fn ranked(scored: &[Scored]) -> (Vec<&Scored>, Vec<&Scored>) {
    let mut ascending: Vec<&Scored> = scored.iter().collect();
    ascending.sort_by(|a, b| {
        a.score.total_cmp(&b.score).then_with(|| a.sample.name.cmp(&b.sample.name))
    });
    ascending.into_iter().partition(|one| one.sample.defect.is_none())
}

fn worst<'a>(from_worst: impl Iterator<Item = &'a Scored>) -> Vec<&'a Scored> {
    from_worst.take(WORST).collect()
}

fn tile(detector: &mut dyn Detector, one: &Scored, settings: &Settings) -> Result<RgbImage> {
    let sample = std::slice::from_ref(&one.sample);
    let pictures = pictures(sample, settings)?;
    let detection = detect(detector, sample, &pictures)?.remove(0);
    let picture = shrink(&pictures[0]);
    let mut tile = RgbImage::from_pixel(TILE_WIDTH, TILE_HEIGHT, TILE_PAPER);
    let seen = seen(&picture, &detection, settings.map_limit);
    let truth = with_truth(&picture, &one.sample)?;
    for (half, left) in [(truth, 0), (seen, SIDE + GAP)] {
        let (x, y) = (left + (SIDE - half.width()) / 2, (SIDE - half.height()) / 2);
        imageops::replace(&mut tile, &half, i64::from(x), i64::from(y));
    }
    caption(&mut tile, one, settings.threshold);
    Ok(tile)
}

/// The picture in a square of `SIDE` pixels, its shape kept; small ones grow.
fn shrink(picture: &Image) -> RgbImage {
    let (width, height) = (picture.width(), picture.height());
    let longer = width.max(height);
    let scaled = |length: u32| (length * SIDE / longer).max(1);
    imageops::resize(&picture.to_rgb(), scaled(width), scaled(height), FilterType::CatmullRom)
}

fn seen(picture: &RgbImage, detection: &Detection, map_limit: f32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let map = &detection.map;
    let region = overlay::peak_box(map, map_limit, width, height);
    let mut out = overlay::overlay(&Image::Rgb(picture.clone()), map, map_limit, region);
    if region.is_none() {
        // An escape: was the detector looking at the right place at least?
        let peak = map.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let nearly = peak - peak.abs() * BELOW_PEAK;
        if let Some(place) = overlay::peak_box(map, nearly, width, height) {
            frame_region(&mut out, place, line_px(width, height), BELOW_LIMIT);
        }
    }
    out
}

fn with_truth(picture: &RgbImage, sample: &Sample) -> Result<RgbImage> {
    let mut out = picture.clone();
    let (width, height) = out.dimensions();
    let mask = truth(sample, width as usize, height as usize)?;
    outline(&mut out, &mask, line_px(width, height), TRUTH);
    Ok(out)
}

fn caption(tile: &mut RgbImage, one: &Scored, threshold: f32) {
    let rejected = one.score >= threshold;
    let (word, colour) = match (one.sample.defect.is_some(), rejected) {
        (true, true) => ("caught", RIGHT),
        (true, false) => ("ESCAPE", WRONG),
        (false, true) => ("FALSE REJECT", WRONG),
        (false, false) => ("accepted", RIGHT),
    };
    let sign = if rejected { ">=" } else { "<" };
    let verdict = format!("{:.2} {sign} {threshold:.2}  {word}", one.score);
    let baseline = SIDE + (CAPTION - Style::Plain.height_px()) / 2;
    let right = TILE_WIDTH - 6 - Style::Strong.width_px(&verdict);
    let name = Style::Plain.fit(&one.sample.name, right - 6 - 8);
    lettering::write(tile, 6, baseline, &name, Style::Plain, INK);
    lettering::write(tile, right, baseline, &verdict, Style::Strong, colour);
}
