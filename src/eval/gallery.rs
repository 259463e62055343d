//! The pictures of a test set as small JPEG files to look through: each with its truth (left) and
//! what the detector saw (right).

use anyhow::{Context, Result};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageEncoder, Rgb, RgbImage, imageops};
use rayon::prelude::*;

use super::tile::{self, Look};
use super::{Evaluation, Scored, Settings};
use crate::detector::Detector;

/// A picture of the gallery; its file is two views side by side.
#[derive(Clone, Debug)]
pub struct Shown {
    pub scored: Scored,
    pub jpeg: Vec<u8>,
    pub width: u32,
    pub height: u32,
}

/// Shows at most `most` pictures of an evaluation made with the same settings, from the highest
/// score down. Where there are more, those that the threshold judges wrongly come first, then those
/// nearest to it. The pictures are scored once more.
pub fn gallery(
    detector: &mut dyn Detector,
    evaluation: &Evaluation,
    settings: &Settings,
    most: usize,
) -> Result<Vec<Shown>> {
    let chosen = choose(&evaluation.scored, settings.threshold, most);
    let mut shown = Vec::with_capacity(chosen.len());
    for chosen in chosen.chunks(settings.batch) {
        let samples: Vec<_> = chosen.iter().map(|one| &one.sample).collect();
        let looks = tile::look(detector, &samples, settings, SIDE)?;
        let pictures: Vec<_> = looks.into_par_iter().map(|look| jpeg(&look)).collect();
        for (&one, picture) in chosen.iter().zip(pictures) {
            let (jpeg, width, height) = picture.with_context(|| one.sample.name.clone())?;
            shown.push(Shown { scored: one.clone(), jpeg, width, height });
        }
    }
    Ok(shown)
}

/// The longer side of a view.
const SIDE: u32 = 224;
const GAP: u32 = 2;
const QUALITY: u8 = 80;
const BETWEEN: Rgb<u8> = Rgb([128; 3]);

fn choose(scored: &[Scored], threshold: f32, most: usize) -> Vec<&Scored> {
    let mut chosen: Vec<&Scored> = scored.iter().collect();
    let is_right = |one: &Scored| (one.score >= threshold) == one.sample.defect.is_some();
    chosen.sort_by(|a, b| {
        let away = |one: &Scored| (one.score - threshold).abs();
        is_right(a).cmp(&is_right(b)).then_with(|| away(a).total_cmp(&away(b)))
    });
    chosen.truncate(most);
    chosen.sort_by(|a, b| {
        b.score.total_cmp(&a.score).then_with(|| a.sample.name.cmp(&b.sample.name))
    });
    chosen
}

fn jpeg(look: &Look) -> Result<(Vec<u8>, u32, u32)> {
    let (width, height) = look.truth.dimensions();
    let mut both = RgbImage::from_pixel(2 * width + GAP, height, BETWEEN);
    imageops::replace(&mut both, &look.truth, 0, 0);
    imageops::replace(&mut both, &look.seen, i64::from(width + GAP), 0);
    let (width, height) = both.dimensions();
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, QUALITY)
        .write_image(&both, width, height, image::ExtendedColorType::Rgb8)
        .with_context(|| format!("encoding a picture of {width}×{height} as JPEG"))?;
    Ok((file, width, height))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::dataset::Sample;

    fn scored(name: &str, defect: bool, score: f32) -> Scored {
        Scored {
            sample: Sample {
                path: PathBuf::new(),
                name: name.to_owned(),
                defect: defect.then(|| "dent".to_owned()),
                mask: None,
            },
            score,
        }
    }

    #[test]
    fn errors_are_shown_before_what_is_right() {
        let all = [
            scored("right", true, 2.0),
            scored("close", false, 0.9),
            scored("escape", true, 0.2),
            scored("false reject", false, 1.5),
            scored("far", false, 0.1),
        ];
        let names = |most| -> Vec<&str> {
            choose(&all, 1.0, most).iter().map(|one| one.sample.name.as_str()).collect()
        };
        assert_eq!(names(2), ["false reject", "escape"]);
        assert_eq!(names(3), ["false reject", "close", "escape"]);
        assert_eq!(names(9), ["right", "false reject", "close", "escape", "far"]);
    }
}
