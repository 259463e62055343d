//! The contact sheet: the defects that score lowest and the good parts that score highest, each
//! with its truth (left) and what the detector saw (right).

use anyhow::Result;
use image::RgbImage;

use super::{Evaluation, Scored, Settings, tile};
use crate::detector::Detector;
use crate::picture::sheet::{RIGHT, SIDE, Section, Sheet, Tile, WRONG};

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
    let mut sections = Vec::with_capacity(rows.len());
    for (heading, chosen) in rows {
        let mut tiles = Vec::with_capacity(chosen.len());
        for one in chosen {
            tiles.push(tile(detector, one, settings)?);
        }
        sections.push(Section { heading: heading.to_owned(), tiles });
    }
    let sheet =
        Sheet { title: title.to_owned(), legend: LEGEND.to_owned(), columns: COLUMNS, sections };
    Ok(sheet.draw())
}

const LEGEND: &str =
    "left: truth outlined; right: map at or above its limit (blue: its peak, below the limit)";
const COLUMNS: u32 = 3;
/// Pictures of each sort: two lines of tiles.
const WORST: usize = 6;

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

fn tile(detector: &mut dyn Detector, one: &Scored, settings: &Settings) -> Result<Tile> {
    let looked = tile::look(detector, &[&one.sample], settings, SIDE)?.remove(0);
    let rejected = one.score >= settings.threshold;
    let (verdict, colour) = match (one.sample.defect.is_some(), rejected) {
        (true, true) => ("caught", RIGHT),
        (true, false) => ("ESCAPE", WRONG),
        (false, true) => ("FALSE REJECT", WRONG),
        (false, false) => ("accepted", RIGHT),
    };
    let sign = if rejected { ">=" } else { "<" };
    Ok(Tile {
        left: looked.truth,
        right: looked.seen,
        name: one.sample.name.clone(),
        word: format!("{:.2} {sign} {:.2}  {verdict}", one.score, settings.threshold),
        colour,
    })
}
