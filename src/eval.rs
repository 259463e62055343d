//! How good a detector is on a test set: scores every picture and takes the figures of
//! [`crate::metrics`]; [`report`] puts runs of several bundles on several categories side by side,
//! [`sheet`] and [`gallery`] show the pictures that an engineer should look at.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use image::GrayImage;
use rayon::prelude::*;
use serde::Serialize;

use crate::camera::folder;
use crate::dataset::{Sample, mask};
use crate::detector::{AnomalyMap, Detection, Detector};
use crate::frame::Image;
use crate::metrics::bootstrap::{Bootstrap, Interval};
use crate::metrics::pixels::{Bounds, CURVE_POINTS, PixelScores};
use crate::metrics::{Curve, Ranking};
use crate::picture::overlay;

pub mod few_shot;
pub mod gallery;
mod html;
mod metric;
pub mod published;
pub mod report;
pub mod sheet;
pub mod systems;
mod table;
mod tile;

pub use metric::Metric;

/// The defects, or good parts, that PG2 and PB2 may judge wrongly, percent.
pub const ERROR_BUDGET: u32 = 2;

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
    pub resolution: Resolution,
    /// Take the figures without the pictures that can't be read, instead of none.
    pub allow_unreadable: bool,
    /// Of the intervals; none are taken without.
    pub bootstrap: Option<Bootstrap>,
}

/// The resolution at which pixels are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolution {
    /// The anomaly map's; masks are brought there.
    #[default]
    Map,
    /// The mask's; maps are brought there bilinearly.
    Original,
}

impl FromStr for Resolution {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Resolution> {
        match text {
            "map" => Ok(Resolution::Map),
            "original" => Ok(Resolution::Original),
            other => bail!("\"{other}\" is no resolution: map or original"),
        }
    }
}

/// A test picture with its score.
#[derive(Clone, Debug)]
pub struct Scored {
    pub sample: Sample,
    /// Raw score units.
    pub score: f32,
}

/// A picture of the test set that the figures are without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    pub name: String,
    pub why: String,
}

/// The scores of a test set and what they are worth.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// In the order of the samples.
    pub scored: Vec<Scored>,
    pub unreadable: Vec<Unreadable>,
    pub figures: Figures,
    pub curves: Curves,
}

/// What there is to draw; `None` where it is not defined.
#[derive(Clone, Debug, Default)]
pub struct Curves {
    /// True positive rate over false positive rate.
    pub image_roc: Option<Curve>,
    pub pixel_roc: Option<Curve>,
    /// Precision over recall.
    pub image_precision: Option<Curve>,
    pub pixel_precision: Option<Curve>,
    /// Per-region overlap over false positive rate.
    pub overlap: Option<Curve>,
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
    /// Goods kept where [`ERROR_BUDGET`] of the defects escape, and defects caught where as large a
    /// share of the goods is rejected.
    pub pg2: Option<f64>,
    pub pb2: Option<f64>,
    /// Instance average precision, and the precision where 90 % of the instances are found.
    pub pixel_iap: Option<f64>,
    pub pixel_iap_90: Option<f64>,
    /// How pixels were counted; `None` where they were not.
    pub pixel_counting: Option<Counting>,
    /// Where pixels were streamed: no exact figure is further away than this.
    pub pixel_bounds: Option<Bounds>,
    pub intervals: Intervals,
    pub kinds: Vec<KindFigures>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Counting {
    /// Every pixel was ranked.
    Exact,
    /// They outgrew memory and were counted in a histogram.
    Streamed,
}

/// How far the figures of another draw of as many test pictures may lie from these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Intervals {
    pub image_auroc: Option<Interval>,
    pub image_ap: Option<Interval>,
    pub f1_max: Option<Interval>,
    pub pixel_auroc: Option<Interval>,
    pub pixel_ap: Option<Interval>,
    pub aupro_0_3: Option<Interval>,
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
/// Pixels count over all pictures with a mask and all good ones; their figures are `None` if a
/// defect has no mask.
///
/// # Errors
/// Unreadable pictures or masks, unless they are allowed; a score that is not a finite number. The
/// message names the files.
pub fn evaluate(
    detector: &mut dyn Detector,
    samples: &[Sample],
    settings: &Settings,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    ensure!(settings.batch > 0, "batch = 0: a batch takes at least one picture");
    let has_masks = samples.iter().all(|sample| sample.defect.is_none() || sample.mask.is_some());
    let mut scored = Vec::with_capacity(samples.len());
    let mut unreadable = Vec::new();
    let mut pixels = has_masks.then(PixelScores::default);
    let mut done = 0;
    for samples in samples.chunks(settings.batch) {
        let read: Vec<_> = samples.par_iter().map(|sample| read(sample, settings)).collect();
        let (mut here, mut pictures, mut masks) = (Vec::new(), Vec::new(), Vec::new());
        for (sample, read) in samples.iter().zip(read) {
            match read {
                Ok((picture, mask)) => {
                    here.push(sample);
                    pictures.push(picture);
                    masks.push(mask);
                }
                Err(error) => unreadable
                    .push(Unreadable { name: sample.name.clone(), why: format!("{error:#}") }),
            }
        }
        // Once it is clear that there will be no figures, only the list is completed.
        if (unreadable.is_empty() || settings.allow_unreadable) && !here.is_empty() {
            let detections = detect(detector, &here, &pictures)?;
            for (i, (sample, detection)) in here.iter().zip(detections).enumerate() {
                if let Some(pixels) = &mut pixels {
                    add(pixels, &pictures[i], masks[i].as_ref(), &detection.map, settings)
                        .with_context(|| sample.name.clone())?;
                }
                scored.push(Scored { sample: (*sample).clone(), score: detection.score });
            }
        }
        done += samples.len();
        progress(done);
    }
    refuse(&unreadable, scored.len(), samples.len(), settings)?;
    let (figures, curves) = figures(&scored, pixels, settings)?;
    Ok(Evaluation { scored, unreadable, figures, curves })
}

fn refuse(unreadable: &[Unreadable], scored: usize, all: usize, settings: &Settings) -> Result<()> {
    if unreadable.is_empty() || (settings.allow_unreadable && scored > 0) {
        return Ok(());
    }
    let list: String =
        unreadable.iter().map(|one| format!("\n  {}: {}", one.name, one.why)).collect();
    bail!(
        "{} of {all} test pictures can't be read; repair or remove them, or take the figures \
         without them (--allow-unreadable):{list}",
        unreadable.len(),
    )
}

/// Scores the pictures of a few samples in one batch.
fn detect(
    detector: &mut dyn Detector,
    samples: &[&Sample],
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

/// The sample's picture, and its mask if it has one.
fn read(sample: &Sample, settings: &Settings) -> Result<(Image, Option<GrayImage>)> {
    let picture = folder::read(&sample.path, settings.significant_bits)?;
    let mask = sample.mask.as_deref().map(mask::open).transpose()?;
    Ok((picture, mask))
}

/// The mask at `width` × `height`; all false on a good part.
fn truth(mask: Option<&GrayImage>, width: usize, height: usize) -> Result<Vec<bool>> {
    mask.map_or_else(
        || Ok(vec![false; width * height]),
        |mask| mask::at_resolution(mask, width, height),
    )
}

fn add(
    pixels: &mut PixelScores,
    picture: &Image,
    mask: Option<&GrayImage>,
    map: &AnomalyMap,
    settings: &Settings,
) -> Result<()> {
    match settings.resolution {
        Resolution::Map => pixels.add(&map.scores, &truth(mask, map.width, map.height)?, map.width),
        Resolution::Original => {
            let (width, height) =
                mask.map_or((picture.width(), picture.height()), GrayImage::dimensions);
            let scores = overlay::at_resolution(map, width, height);
            let (width, height) = (width as usize, height as usize);
            pixels.add(&scores, &truth(mask, width, height)?, width)
        }
    }
}

fn figures(
    scored: &[Scored],
    pixels: Option<PixelScores>,
    settings: &Settings,
) -> Result<(Figures, Curves)> {
    let scores: Vec<f32> = scored.iter().map(|one| one.score).collect();
    let anomalous: Vec<bool> = scored.iter().map(|one| one.sample.defect.is_some()).collect();
    let intervals = intervals(&scores, &anomalous, pixels.as_ref(), settings)?;
    let images = Ranking::new(&scores, &anomalous)?;
    let best = images.f1_max();
    let pixels = pixels.map(PixelScores::finish);
    let of_pixels = pixels.as_ref();
    let is_rejected = |one: &&Scored| one.score >= settings.threshold;
    let (goods, defects): (Vec<&Scored>, Vec<&Scored>) =
        scored.iter().partition(|one| one.sample.defect.is_none());
    let figures = Figures {
        images: scored.len(),
        image_auroc: images.auroc(),
        pixel_auroc: of_pixels.and_then(|pixels| pixels.auroc),
        pixel_ap: of_pixels.and_then(|pixels| pixels.average_precision),
        aupro_0_3: of_pixels.and_then(|pixels| pixels.aupro),
        threshold: settings.threshold,
        goods: goods.len(),
        defects: defects.len(),
        false_rejects: goods.iter().copied().filter(is_rejected).count(),
        escapes: defects.len() - defects.iter().copied().filter(is_rejected).count(),
        image_ap: images.average_precision(),
        f1_max: best.map(|best| best.f1),
        f1_max_threshold: best.map(|best| best.threshold),
        pg2: images.goods_kept(ERROR_BUDGET),
        pb2: images.bads_caught(ERROR_BUDGET),
        pixel_iap: of_pixels.and_then(|pixels| pixels.iap),
        pixel_iap_90: of_pixels.and_then(|pixels| pixels.iap_90),
        pixel_counting: of_pixels.map(|pixels| match pixels.bounds {
            None => Counting::Exact,
            Some(_) => Counting::Streamed,
        }),
        pixel_bounds: of_pixels.and_then(|pixels| pixels.bounds),
        intervals,
        kinds: kinds(&goods, &defects, settings.threshold)?,
    };
    let mut curves = Curves {
        image_roc: images.roc(CURVE_POINTS),
        image_precision: images.precision_recall(CURVE_POINTS),
        ..Curves::default()
    };
    if let Some(pixels) = pixels {
        curves.pixel_roc = pixels.roc;
        curves.pixel_precision = pixels.precision_recall;
        curves.overlap = pixels.pro;
    }
    Ok((figures, curves))
}

fn intervals(
    scores: &[f32],
    anomalous: &[bool],
    pixels: Option<&PixelScores>,
    settings: &Settings,
) -> Result<Intervals> {
    let Some(bootstrap) = &settings.bootstrap else { return Ok(Intervals::default()) };
    let images = bootstrap.images(scores, anomalous)?;
    let pixels = pixels.map(|pixels| bootstrap.pixels(pixels)).transpose()?.flatten();
    Ok(Intervals {
        image_auroc: images.map(|of| of.auroc),
        image_ap: images.map(|of| of.average_precision),
        f1_max: images.map(|of| of.f1_max),
        pixel_auroc: pixels.map(|of| of.auroc),
        pixel_ap: pixels.map(|of| of.average_precision),
        aupro_0_3: pixels.map(|of| of.aupro),
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
