//! How far a figure would vary with other pictures of the same kind: percentile intervals (Efron
//! and Tibshirani 1993, section 13.3) by drawing pictures with replacement.
//!
//! All pictures are drawn from, good parts and defects alike, so that their numbers vary too. A
//! resample without both classes says nothing and is drawn again. Each resample has a stream of its
//! own, so that threads do not show.
//!
//! The pixels of a resample are not sorted anew. Scores are cut once into at most [`BINS`] bins,
//! half of their borders at equal shares of the anomalous pixels and half at equal shares of the
//! normal ones (of an even pick of [`PICKED`] of each class); each picture is counted once into
//! them, and a resample is a sum of such counts. Where there are no more distinct scores than bins
//! each has its own, and a resample's figure is exact.

use anyhow::{Result, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::pixels::{AUPRO_LIMIT, PixelScores};
use super::sort::key;
use super::steps::{Step, Totals};
use binned::Binned;

mod binned;

/// How intervals are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    pub resamples: usize,
    pub seed: u64,
    /// Of the resamples, how many lie in the interval: 0.95 leaves 2.5 % on each side.
    pub confidence: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// Of the scores of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ImageIntervals {
    pub auroc: Interval,
    pub average_precision: Interval,
    pub f1_max: Interval,
}

/// Of the pixels of maps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PixelIntervals {
    pub auroc: Interval,
    pub average_precision: Interval,
    /// Up to [`AUPRO_LIMIT`].
    pub aupro: Interval,
}

/// Most bins of pixel scores.
pub const BINS: usize = 4096;

/// Most pixels of a class that borders are found with.
pub const PICKED: usize = 1 << 18;

impl Default for Bootstrap {
    fn default() -> Bootstrap {
        Bootstrap { resamples: 1000, seed: 0, confidence: 0.95 }
    }
}

impl Bootstrap {
    /// Of `scores[i]` with the truth `anomalous[i]`. `None` without both classes.
    ///
    /// # Errors
    /// A score that is not a number, settings that make no interval.
    pub fn images(&self, scores: &[f32], anomalous: &[bool]) -> Result<Option<ImageIntervals>> {
        self.check()?;
        ensure!(
            scores.len() == anomalous.len(),
            "{} scores for {} labels",
            scores.len(),
            anomalous.len()
        );
        ensure!(scores.iter().all(|score| !score.is_nan()), "a score is not a number");
        if !(anomalous.contains(&true) && anomalous.contains(&false)) {
            return Ok(None);
        }
        let mut descending: Vec<usize> = (0..scores.len()).collect();
        descending.sort_by_key(|&i| std::cmp::Reverse(key(scores[i])));
        let [auroc, average_precision, f1_max] = self.resample(scores.len(), |weights| {
            let steps: Vec<Step> = descending
                .chunk_by(|&a, &b| key(scores[a]) == key(scores[b]))
                .map(|same| {
                    let mut step = Step { key: key(scores[same[0]]), ..Step::default() };
                    for &i in same {
                        let class =
                            if anomalous[i] { &mut step.positives } else { &mut step.negatives };
                        *class += u64::from(weights[i]);
                    }
                    step
                })
                .collect();
            let totals = totals(&steps, 0);
            let of = || steps.iter().copied();
            totals.has_both_classes().then(|| {
                [
                    totals.auroc(of()),
                    totals.average_precision(of()),
                    totals.f1_max(of()).map(|best| best.f1),
                ]
                .map(|figure| figure.expect("both classes were drawn"))
            })
        });
        Ok(Some(ImageIntervals { auroc, average_precision, f1_max }))
    }

    /// Of the pixels of all maps, pictures being drawn. `None` without both classes, and where the
    /// pixels outgrew memory, so that it is not known any more which picture they are of.
    ///
    /// # Errors
    /// Settings that make no interval.
    pub fn pixels(&self, scores: &PixelScores) -> Result<Option<PixelIntervals>> {
        self.check()?;
        let Some(pixels) = scores.exact() else { return Ok(None) };
        if pixels.normal.is_empty() || pixels.anomalous.is_empty() {
            return Ok(None);
        }
        let binned = Binned::new(pixels);
        let [auroc, average_precision, aupro] = self.resample(binned.pictures(), |weights| {
            let (steps, regions) = binned.steps(weights);
            let totals = totals(&steps, regions);
            let of = || steps.iter().copied();
            totals.has_both_classes().then(|| {
                [
                    totals.auroc(of()),
                    totals.average_precision(of()),
                    totals.aupro(AUPRO_LIMIT, of()),
                ]
                .map(|figure| figure.expect("both classes were drawn, so regions were"))
            })
        });
        Ok(Some(PixelIntervals { auroc, average_precision, aupro }))
    }

    fn check(&self) -> Result<()> {
        let Bootstrap { resamples, confidence, .. } = *self;
        ensure!(
            (10..=1_000_000).contains(&resamples),
            "resamples = {resamples}: must be from 10 to 1000000 (1000 is usual)"
        );
        ensure!(
            confidence > 0.0 && confidence < 1.0,
            "confidence = {confidence}: must be between 0 and 1 (0.95 is usual)"
        );
        Ok(())
    }

    /// Intervals of the figures that `of` makes of how often each of `pictures` was drawn. It makes
    /// none of a resample that lacks a class, which not every one may.
    fn resample<const F: usize>(
        &self,
        pictures: usize,
        of: impl Fn(&[u32]) -> Option<[f64; F]> + Sync,
    ) -> [Interval; F] {
        let mut figures: Vec<[f64; F]> = vec![[0.0; F]; self.resamples];
        figures.par_iter_mut().enumerate().for_each(|(resample, figures)| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(resample as u64);
            let mut weights = vec![0; pictures];
            loop {
                weights.fill(0);
                for _ in 0..pictures {
                    weights[rng.random_range(0..pictures)] += 1;
                }
                if let Some(found) = of(&weights) {
                    *figures = found;
                    return;
                }
            }
        });
        std::array::from_fn(|figure| {
            let mut values: Vec<f64> = figures.iter().map(|figures| figures[figure]).collect();
            values.sort_by(f64::total_cmp);
            let tail = (1.0 - self.confidence) / 2.0;
            Interval { low: quantile(&values, tail), high: quantile(&values, 1.0 - tail) }
        })
    }
}

fn totals(steps: &[Step], regions: u64) -> Totals {
    Totals {
        positives: steps.iter().map(|step| step.positives).sum(),
        negatives: steps.iter().map(|step| step.negatives).sum(),
        regions,
    }
}

/// Between the two nearest ranks of ascending values (numpy's usual way).
fn quantile(ascending: &[f64], share: f64) -> f64 {
    let at = share * (ascending.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(ascending.len() - 1);
    ascending[low] + part * (ascending[high] - ascending[low])
}
