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

#[cfg(test)]
mod tests {
    use super::super::Ranking;
    use super::super::regions::{PixelRanking, Pixels};
    use super::*;

    const FEW: Bootstrap = Bootstrap { resamples: 40, seed: 5, confidence: 0.9 };

    struct Map {
        scores: Vec<f32>,
        mask: Vec<bool>,
    }

    /// Six maps of 32 × 32, four of them with an anomalous square; `levels` distinct scores.
    fn maps(levels: u32) -> Vec<Map> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let one = |i: usize| {
            let inside = |at: usize| {
                i < 4 && (8..20).contains(&(at % 32)) && (4..9 + i).contains(&(at / 32))
            };
            let mask: Vec<bool> = (0..1024).map(inside).collect();
            let mut score = |&anomalous: &bool| {
                let level = rng.random_range(0..levels) as f32 / levels as f32;
                level + if anomalous { 0.4 } else { 0.0 }
            };
            Map { scores: mask.iter().map(&mut score).collect(), mask }
        };
        (0..6).map(one).collect()
    }

    fn scores(maps: &[Map]) -> PixelScores {
        let mut scores = PixelScores::default();
        maps.iter().for_each(|map| scores.add(&map.scores, &map.mask, 32).unwrap());
        scores
    }

    /// The draws as they are promised: pictures with replacement, a stream for each resample, again
    /// where `is_usable` says no.
    fn draws(pictures: usize, is_usable: impl Fn(&[usize]) -> bool) -> Vec<Vec<usize>> {
        let draw = |resample| {
            let mut rng = ChaCha8Rng::seed_from_u64(FEW.seed);
            rng.set_stream(resample);
            loop {
                let drawn: Vec<usize> =
                    (0..pictures).map(|_| rng.random_range(0..pictures)).collect();
                if is_usable(&drawn) {
                    return drawn;
                }
            }
        };
        (0..FEW.resamples as u64).map(draw).collect()
    }

    /// 5 % and 95 % of forty values: between ranks 1.95 and 37.05 counted from 0.
    fn interval(mut values: Vec<f64>) -> Interval {
        values.sort_by(f64::total_cmp);
        Interval {
            low: values[1] * 0.05 + values[2] * 0.95,
            high: values[37] * 0.95 + values[38] * 0.05,
        }
    }

    #[track_caller]
    fn assert_near(got: Interval, want: Interval, tolerance: f64) {
        let off = (got.low - want.low).abs().max((got.high - want.high).abs());
        assert!(off <= tolerance, "{got:?}, not {want:?}");
    }

    /// Against every pixel of each resample ranked anew.
    fn assert_pixel_intervals(levels: u32, tolerance: f64) {
        let maps = maps(levels);
        let rankings: Vec<PixelRanking> = draws(6, |drawn| drawn.iter().any(|&i| i < 4))
            .iter()
            .map(|drawn| {
                let mut pixels = Pixels::default();
                for map in drawn.iter().map(|&i| &maps[i]) {
                    pixels.add(&map.scores, &map.mask, 32).unwrap();
                }
                pixels.rank()
            })
            .collect();
        let wanted = |figure: fn(&PixelRanking) -> Option<f64>| {
            interval(rankings.iter().map(|ranking| figure(ranking).unwrap()).collect())
        };
        let got = FEW.pixels(&scores(&maps)).unwrap().unwrap();
        assert_near(got.auroc, wanted(PixelRanking::auroc), tolerance);
        assert_near(got.average_precision, wanted(PixelRanking::average_precision), tolerance);
        assert_near(got.aupro, wanted(|ranking| ranking.aupro(AUPRO_LIMIT)), tolerance);
    }

    #[test]
    fn pixel_intervals_are_exact_where_each_score_has_its_bin() {
        assert_pixel_intervals(1000, 1e-12);
    }

    #[test]
    fn pixel_intervals_of_more_scores_than_bins_are_near() {
        assert_pixel_intervals(1 << 22, 1e-3);
    }

    #[test]
    fn image_intervals_are_those_of_resampled_rankings() {
        let (scores, anomalous) = ([0.1_f32, 0.4, 0.4, 0.8, 0.3], [false, false, true, true, true]);
        let usable = |drawn: &[usize]| {
            drawn.iter().any(|&i| anomalous[i]) && drawn.iter().any(|&i| !anomalous[i])
        };
        let rankings: Vec<Ranking> = draws(5, usable)
            .iter()
            .map(|drawn| {
                let (scores, anomalous): (Vec<f32>, Vec<bool>) =
                    drawn.iter().map(|&i| (scores[i], anomalous[i])).unzip();
                Ranking::new(&scores, &anomalous).unwrap()
            })
            .collect();
        let wanted = |figure: fn(&Ranking) -> Option<f64>| {
            interval(rankings.iter().map(|ranking| figure(ranking).unwrap()).collect())
        };
        let got = FEW.images(&scores, &anomalous).unwrap().unwrap();
        assert_near(got.auroc, wanted(Ranking::auroc), 1e-12);
        assert_near(got.average_precision, wanted(Ranking::average_precision), 1e-12);
        assert_near(got.f1_max, wanted(|ranking| Some(ranking.f1_max()?.f1)), 1e-12);
    }

    #[test]
    fn the_seed_decides_and_threads_do_not() {
        let scores = scores(&maps(1 << 22));
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| FEW.pixels(&scores).unwrap())
        };
        assert_eq!(on(1), on(3));
        assert_ne!(on(1), Bootstrap { seed: 6, ..FEW }.pixels(&scores).unwrap());
    }

    #[test]
    fn one_class_or_streamed_pixels_have_no_interval() {
        assert_eq!(FEW.images(&[0.1, 0.2], &[true, true]).unwrap(), None);
        let mut goods = PixelScores::default();
        goods.add(&[0.1; 4], &[false; 4], 2).unwrap();
        assert_eq!(FEW.pixels(&goods).unwrap(), None);
        let mut streamed = PixelScores::new(0);
        streamed.add(&[0.1; 4], &[false, false, true, true], 2).unwrap();
        assert_eq!(FEW.pixels(&streamed).unwrap(), None);
    }

    #[test]
    fn settings_that_make_no_interval_are_refused() {
        for (wrong, says) in [
            (Bootstrap { resamples: 0, ..FEW }, "resamples = 0"),
            (Bootstrap { confidence: 1.0, ..FEW }, "confidence = 1"),
        ] {
            let error = wrong.images(&[0.1, 0.2], &[true, false]).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(FEW.images(&[0.1, f32::NAN], &[true, false]).is_err());
    }
}
