//! The contact sheet: the defects that score lowest and the good parts that score highest, each
//! with its truth (left) and what the detector saw (right).

use anyhow::Result;
use image::{Rgb, RgbImage, imageops};

use super::{Evaluation, Scored, Settings, tile};
use crate::detector::Detector;
use crate::picture::lettering::{self, Style};

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
    let looked = tile::look(detector, &[&one.sample], settings, SIDE)?.remove(0);
    let mut tile = RgbImage::from_pixel(TILE_WIDTH, TILE_HEIGHT, TILE_PAPER);
    for (half, left) in [(looked.truth, 0), (looked.seen, SIDE + GAP)] {
        let (x, y) = (left + (SIDE - half.width()) / 2, (SIDE - half.height()) / 2);
        imageops::replace(&mut tile, &half, i64::from(x), i64::from(y));
    }
    caption(&mut tile, one, settings.threshold);
    Ok(tile)
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
