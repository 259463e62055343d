//! How good a detector is on a test set: scores every picture and reports by the definitions of
//! [`crate::metrics`], with the pictures that an engineer should look at first ([`sheet`]).

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::Serialize;

use crate::camera::folder;
use crate::dataset::Sample;
use crate::dataset::mask::Mask;
use crate::detector::{AnomalyMap, Detection, Detector};
use crate::frame::Image;
use crate::metrics::Ranking;
use crate::metrics::regions::Pixels;

pub mod report;
pub mod sheet;

/// The false positive rate up to which AUPRO is taken, as in the MVTec AD paper.
pub const AUPRO_LIMIT: f64 = 0.3;

/// How a test set is read, scored and judged.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The limits of the bundle, raw score units: a part is rejected when its score is at or above
    /// `threshold`; the map counts from `map_limit` on.
    pub threshold: f32,
    pub map_limit: f32,
    /// Pictures scored at once.
    pub batch: usize,
    /// Bits a sample that 16-bit files really carry; see [`folder::decode`].
    pub significant_bits: u32,
}

/// A test picture with its score.
#[derive(Clone, Debug)]
pub struct Scored {
    pub sample: Sample,
    /// Raw score units.
    pub score: f32,
}

/// The scores of a test set and what they are worth.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// In the order of the samples.
    pub scored: Vec<Scored>,
    pub figures: Figures,
}

/// The figures of a test set. What is not defined (no defect, no good part, no masks) is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    pub images: usize,
    pub image_auroc: Option<f64>,
    pub pixel_auroc: Option<f64>,
    pub pixel_ap: Option<f64>,
    pub aupro_0_3: Option<f64>,
    /// A part is rejected when its score is at or above this; raw score units.
    pub threshold: f32,
    pub goods: usize,
    pub defects: usize,
    /// Good parts at or above the threshold.
    pub false_rejects: usize,
    /// Defects below the threshold.
    pub escapes: usize,
    pub image_ap: Option<f64>,
    /// The best F1 that any threshold would reach on these pictures, and that threshold.
    pub f1_max: Option<f64>,
    pub f1_max_threshold: Option<f32>,
    /// Instance average precision, and the precision where 90 % of the instances are found.
    pub pixel_iap: Option<f64>,
    pub pixel_iap_90: Option<f64>,
    pub kinds: Vec<KindFigures>,
}

/// One kind of defect against all good parts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KindFigures {
    pub kind: String,
    pub images: usize,
    pub image_auroc: Option<f64>,
    pub escapes: usize,
    pub lowest_score: f32,
    pub median_score: f32,
    pub highest_score: f32,
}

/// Scores and judges all samples. `progress` is told how many are done after each batch.
///
/// Pixel metrics are taken at the resolution of the detector's maps, over all pictures with a
/// mask and all good ones; they are `None` if a defect has no mask.
///
/// # Errors
/// An unreadable picture or mask, a score that is not a finite number; the message names the file.
pub fn evaluate(
    detector: &mut dyn Detector,
    samples: &[Sample],
    settings: &Settings,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    ensure!(settings.batch > 0, "batch = 0: a batch takes at least one picture");
    let has_masks = samples.iter().all(|sample| sample.defect.is_none() || sample.mask.is_some());
    let mut scored = Vec::with_capacity(samples.len());
    let mut pixels = has_masks.then(Pixels::default);
    for samples in samples.chunks(settings.batch) {
        let pictures = pictures(samples, settings)?;
        for (sample, detection) in samples.iter().zip(detect(detector, samples, &pictures)?) {
            if let Some(pixels) = &mut pixels {
                add(pixels, sample, &detection.map).with_context(|| sample.name.clone())?;
            }
            scored.push(Scored { sample: sample.clone(), score: detection.score });
        }
        progress(scored.len());
    }
    let figures = figures(&scored, pixels, settings.threshold)?;
    Ok(Evaluation { scored, figures })
}

/// Scores the pictures of a few samples in one batch.
fn detect(
    detector: &mut dyn Detector,
    samples: &[Sample],
    pictures: &[Image],
) -> Result<Vec<Detection>> {
    let detections = detector.detect(&pictures.iter().collect::<Vec<_>>())?;
    ensure!(
        detections.len() == samples.len(),
        "the detector said {} things of {} pictures",
        detections.len(),
        samples.len()
    );
    for (sample, detection) in samples.iter().zip(&detections) {
        if !detection.score.is_finite() {
            bail!("{}: the score {} is not a finite number", sample.name, detection.score);
        }
    }
    Ok(detections)
}

/// Decodes the pictures of a few samples side by side.
fn pictures(samples: &[Sample], settings: &Settings) -> Result<Vec<Image>> {
    let read = |sample: &Sample| folder::read(&sample.path, settings.significant_bits);
    samples.par_iter().map(read).collect()
}

/// The sample's mask at `width` × `height`; all false on a good part.
fn truth(sample: &Sample, width: usize, height: usize) -> Result<Vec<bool>> {
    match &sample.mask {
        None => Ok(vec![false; width * height]),
        Some(path) => Ok(Mask::read(path, width, height)?.inside),
    }
}

fn add(pixels: &mut Pixels, sample: &Sample, map: &AnomalyMap) -> Result<()> {
    pixels.add(&map.scores, &truth(sample, map.width, map.height)?, map.width)
}

fn figures(scored: &[Scored], pixels: Option<Pixels>, threshold: f32) -> Result<Figures> {
    let scores: Vec<f32> = scored.iter().map(|one| one.score).collect();
    let anomalous: Vec<bool> = scored.iter().map(|one| one.sample.defect.is_some()).collect();
    let images = Ranking::new(&scores, &anomalous)?;
    let best = images.f1_max();
    let pixels = pixels.map(Pixels::rank);
    let pixels = pixels.as_ref();
    let is_rejected = |one: &&Scored| one.score >= threshold;
    let (goods, defects): (Vec<&Scored>, Vec<&Scored>) =
        scored.iter().partition(|one| one.sample.defect.is_none());
    Ok(Figures {
        images: scored.len(),
        image_auroc: images.auroc(),
        pixel_auroc: pixels.and_then(|pixels| pixels.auroc()),
        pixel_ap: pixels.and_then(|pixels| pixels.average_precision()),
        aupro_0_3: pixels.and_then(|pixels| pixels.aupro(AUPRO_LIMIT)),
        threshold,
        goods: goods.len(),
        defects: defects.len(),
        false_rejects: goods.iter().copied().filter(is_rejected).count(),
        escapes: defects.len() - defects.iter().copied().filter(is_rejected).count(),
        image_ap: images.average_precision(),
        f1_max: best.map(|best| best.f1),
        f1_max_threshold: best.map(|best| best.threshold),
        pixel_iap: pixels.and_then(|pixels| pixels.iap()),
        pixel_iap_90: pixels.and_then(|pixels| pixels.iap_at(90)),
        kinds: kinds(&goods, &defects, threshold)?,
    })
}

fn kinds(goods: &[&Scored], defects: &[&Scored], threshold: f32) -> Result<Vec<KindFigures>> {
    let mut by_kind: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for one in defects {
        let kind = one.sample.defect.as_deref().expect("defects have a kind");
        by_kind.entry(kind).or_default().push(one.score);
    }
    let mut rows = Vec::with_capacity(by_kind.len());
    for (kind, mut scores) in by_kind {
        scores.sort_by(f32::total_cmp);
        let all: Vec<f32> =
            scores.iter().copied().chain(goods.iter().map(|one| one.score)).collect();
        let anomalous: Vec<bool> = (0..all.len()).map(|i| i < scores.len()).collect();
        rows.push(KindFigures {
            kind: kind.to_owned(),
            images: scores.len(),
            image_auroc: Ranking::new(&all, &anomalous)?.auroc(),
            escapes: scores.iter().filter(|score| **score < threshold).count(),
            lowest_score: scores[0],
            median_score: scores[scores.len() / 2],
            highest_score: scores[scores.len() - 1],
        });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
