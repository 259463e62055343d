//! How well scores tell defects from good parts: AUROC, average precision, F1-max, the shares of
//! parts sorted right within an error budget, curves; of images here, of the pixels of a test set
//! in [`pixels`], and how far a figure would vary with other images in [`bootstrap`].
//!
//! Counts are `u64`, sums `f64`; equal scores form one threshold. A metric that is not defined
//! (no defect, no good part) is `None`, which is printed `n/a` and is `null` in JSON.

use anyhow::{Result, bail};

pub mod bootstrap;
pub mod components;
mod curve;
mod histogram;
pub mod pixels;
pub mod regions;
pub mod sort;
mod steps;

pub use curve::Curve;

use sort::{key, score, sort_keys};
use steps::{Step, Totals};

/// The scores of two classes, ranked.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// Order-preserving keys (see [`sort::key`]), ascending.
    positives: Vec<u32>,
    negatives: Vec<u32>,
}

/// The best F1 over all thresholds and where it is reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct F1Max {
    pub f1: f64,
    /// Positive is what scores at or above this. Equal F1: the lowest such threshold.
    pub threshold: f32,
}

impl Ranking {
    /// Ranks `scores[i]` by the truth `anomalous[i]`. A score that is not a number is an error.
    pub fn new(scores: &[f32], anomalous: &[bool]) -> Result<Ranking> {
        if scores.len() != anomalous.len() {
            bail!("{} scores for {} labels", scores.len(), anomalous.len());
        }
        let (mut positives, mut negatives) = (Vec::new(), Vec::new());
        for (i, (&score, &anomalous)) in scores.iter().zip(anomalous).enumerate() {
            if score.is_nan() {
                bail!("score {i} is not a number, so it has no rank");
            }
            if anomalous { &mut positives } else { &mut negatives }.push(key(score));
        }
        Ok(Ranking::of_keys(positives, negatives))
    }

    /// Ranks keys that are not yet sorted.
    pub fn of_keys(mut positives: Vec<u32>, mut negatives: Vec<u32>) -> Ranking {
        rayon::join(|| sort_keys(&mut positives), || sort_keys(&mut negatives));
        Ranking { positives, negatives }
    }

    pub fn positives(&self) -> usize {
        self.positives.len()
    }

    pub fn negatives(&self) -> usize {
        self.negatives.len()
    }

    /// The probability that a positive outranks a negative, ties counted half (Mann-Whitney);
    /// equal to the trapezoid area under the ROC curve. `None` without both classes.
    pub fn auroc(&self) -> Option<f64> {
        self.totals().auroc(self.steps())
    }

    /// Average precision: the sum over distinct thresholds, descending, of the recall gained
    /// times the precision there; no interpolation. `None` without positives.
    pub fn average_precision(&self) -> Option<f64> {
        self.totals().average_precision(self.steps())
    }

    /// The best F1 and its threshold. `None` without positives; see [`Ranking::fallback`].
    pub fn f1_max(&self) -> Option<F1Max> {
        self.totals().f1_max(self.steps())
    }

    /// Where F1 says nothing: the highest negative score if there are no positives (anomalous is
    /// what lies strictly above it), `None` if there is nothing at all.
    pub fn fallback(&self) -> Option<f32> {
        self.negatives.last().map(|&key| score(key))
    }

    /// The largest share of good parts that any threshold keeps while at most `percent` % of the
    /// defects escape: PG2 at 2 % ("presorted good", Baitieva et al. 2025, "Beyond Academic
    /// Benchmarks"). `None` without both classes.
    ///
    /// A part is rejected at or above the threshold. Of n defects ⌊n · percent / 100⌋ may escape,
    /// so that below 50 defects none may at 2 %. A good part that ties with the lowest defect that
    /// must not escape is rejected with it.
    pub fn goods_kept(&self, percent: u32) -> Option<f64> {
        if !self.totals().has_both_classes() {
            return None;
        }
        let kept = match self.positives.get(within(self.positives.len(), percent)) {
            Some(&lowest_caught) => self.negatives.partition_point(|&key| key < lowest_caught),
            None => self.negatives.len(),
        };
        Some(kept as f64 / self.negatives.len() as f64)
    }

    /// The largest share of defects that any threshold catches while at most `percent` % of the
    /// good parts are rejected: PB2 at 2 % ("presorted bad"). Counted as [`Ranking::goods_kept`]
    /// counts: a defect that ties with the highest good part that must be kept escapes with it.
    pub fn bads_caught(&self, percent: u32) -> Option<f64> {
        if !self.totals().has_both_classes() {
            return None;
        }
        let rejected = within(self.negatives.len(), percent);
        let caught = match self.negatives.iter().rev().nth(rejected) {
            Some(&highest_kept) => at_or_above(&self.positives, highest_kept.saturating_add(1)),
            None => self.positives.len(),
        };
        Some(caught as f64 / self.positives.len() as f64)
    }

    /// (false positive rate, true positive rate) from (0, 0) to (1, 1), a point for each distinct
    /// score, thinned to at most `points`. `None` without both classes.
    pub fn roc(&self, points: usize) -> Option<Curve> {
        self.totals().roc(points, self.steps())
    }

    /// (recall, precision) at each distinct score from the highest down, thinned to at most
    /// `points`; no point is made up at recall 0. `None` without positives.
    pub fn precision_recall(&self, points: usize) -> Option<Curve> {
        self.totals().precision_recall(points, self.steps())
    }

    fn totals(&self) -> Totals {
        Totals {
            positives: self.positives.len() as u64,
            negatives: self.negatives.len() as u64,
            regions: 0,
        }
    }

    /// Distinct scores, descending, with how many of each class have them.
    fn steps(&self) -> Steps<'_> {
        Steps { positives: &self.positives, negatives: &self.negatives }
    }
}

/// How many of so many `percent` % are at most.
fn within(count: usize, percent: u32) -> usize {
    assert!(percent <= 100, "a budget is at most 100 %");
    (count as u128 * u128::from(percent) / 100) as usize
}

struct Steps<'a> {
    positives: &'a [u32],
    negatives: &'a [u32],
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let key = match (self.positives.last(), self.negatives.last()) {
            (Some(&p), Some(&n)) => p.max(n),
            (Some(&one), None) | (None, Some(&one)) => one,
            (None, None) => return None,
        };
        Some(Step {
            key,
            positives: take_equal(&mut self.positives, key),
            negatives: take_equal(&mut self.negatives, key),
            overlap: 0,
        })
    }
}

/// Takes the values equal to `key` off the end and counts them.
fn take_equal(keys: &mut &[u32], key: u32) -> u64 {
    let mut taken = 0;
    while let Some((&last, rest)) = keys.split_last() {
        if last != key {
            break;
        }
        *keys = rest;
        taken += 1;
    }
    taken
}

fn at_or_above(ascending: &[u32], key: u32) -> usize {
    ascending.len() - ascending.partition_point(|&other| other < key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;

    fn ranking(scores: &[f32], labels: &[u8]) -> Ranking {
        let anomalous: Vec<bool> = labels.iter().map(|&label| label == 1).collect();
        Ranking::new(scores, &anomalous).unwrap()
    }

    #[test]
    fn worked_example_of_four_scores() {
        // Pairs won: .8 beats both, .35 beats .1 only. Thresholds .8: R .5, P 1; .35: R 1, P 2/3.
        let ranking = ranking(&[0.1, 0.4, 0.35, 0.8], &[0, 0, 1, 1]);
        assert_eq!(ranking.auroc(), Some(0.75));
        assert!((ranking.average_precision().unwrap() - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-15);
        assert_eq!(ranking.f1_max(), Some(F1Max { f1: 0.8, threshold: 0.35 }));
    }

    #[test]
    fn equal_scores_say_nothing() {
        let ranking = ranking(&[0.3; 36], &[[1_u8; 7].as_slice(), &[0; 29]].concat());
        assert_eq!(ranking.auroc(), Some(0.5));
        assert_eq!(ranking.average_precision(), Some(7.0 / 36.0));
    }

    #[test]
    fn undefined_is_none() {
        let goods = ranking(&[0.1, 0.9, 0.4], &[0, 0, 0]);
        assert_eq!((goods.auroc(), goods.average_precision(), goods.f1_max()), (None, None, None));
        assert_eq!(goods.fallback(), Some(0.9));
        let defects = ranking(&[0.1, 0.9], &[1, 1]);
        assert_eq!((defects.auroc(), defects.average_precision()), (None, Some(1.0)));
        assert_eq!(ranking(&[], &[]).f1_max(), None);
    }

    #[test]
    fn nan_has_no_rank() {
        let error = Ranking::new(&[0.1, f32::NAN], &[true, false]).unwrap_err();
        assert!(error.to_string().contains("score 1"), "{error}");
    }

    #[test]
    fn minus_zero_ties_with_zero() {
        assert_eq!(ranking(&[0.0, -0.0], &[0, 1]).auroc(), Some(0.5));
    }

    #[test]
    fn agrees_with_scikit_learn() {
        let Some(path) = shared("spec/vectors/metrics_auroc_ap.json") else { return };
        let vectors: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let tolerance = vectors["tolerance"]["abs"].as_f64().unwrap();
        let cases = vectors["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 14);
        for case in cases {
            let scores: Vec<f32> = serde_json::from_value(case["scores"].clone()).unwrap();
            let labels: Vec<u8> = serde_json::from_value(case["labels"].clone()).unwrap();
            let ranking = ranking(&scores, &labels);
            let best = ranking.f1_max();
            let got = [
                ("auroc", ranking.auroc()),
                ("ap", ranking.average_precision()),
                ("f1max", best.map(|best| best.f1)),
                ("f1max_threshold", best.map(|best| f64::from(best.threshold))),
            ];
            for (metric, got) in got {
                let want = case["expected"][metric].as_f64();
                let close = match (got, want) {
                    (Some(got), Some(want)) => (got - want).abs() <= tolerance,
                    (got, want) => got == want,
                };
                assert!(close, "{} {metric}: {got:?}, not {want:?}", case["name"]);
            }
        }
    }

    #[test]
    fn two_percent_of_few_parts_are_none_and_of_fifty_one() {
        // Defects 0, 1, 2, …; the good parts lie at .5, between the first two defects.
        for (defects, kept) in [(10_u8, 0.0), (49, 0.0), (50, 1.0), (99, 1.0), (100, 1.0)] {
            let scores: Vec<f32> = (0..defects).map(f32::from).chain([0.5, 0.5]).collect();
            let labels: Vec<u8> = [vec![1; usize::from(defects)], vec![0, 0]].concat();
            assert_eq!(ranking(&scores, &labels).goods_kept(2), Some(kept), "{defects} defects");
            // The same turned over, for the defects caught.
            let scores: Vec<f32> = scores.iter().map(|score| -score).collect();
            let labels: Vec<u8> = labels.iter().map(|label| 1 - label).collect();
            assert_eq!(ranking(&scores, &labels).bads_caught(2), Some(kept), "{defects} goods");
        }
        let one_class = ranking(&[0.1, 0.2], &[1, 1]);
        assert_eq!((one_class.goods_kept(2), one_class.bads_caught(2)), (None, None));
    }

    #[test]
    fn curves_go_through_every_distinct_score() {
        let ranking = ranking(&[0.1, 0.4, 0.4, 0.8], &[0, 0, 1, 1]);
        let roc = ranking.roc(100).unwrap();
        assert_eq!(roc.points, [(0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]);
        let precision_recall = ranking.precision_recall(100).unwrap();
        assert_eq!(precision_recall.points, [(0.5, 1.0), (1.0, 2.0 / 3.0), (1.0, 0.5)]);
        assert_eq!((roc.max_error, precision_recall.max_error), (0.0, 0.0));
    }

    fn samples() -> impl Strategy<Value = Vec<(u8, bool)>> {
        // Few levels, so that ties are common.
        prop::collection::vec((0_u8..12, any::<bool>()), 1..60)
    }

    proptest! {
        #[test]
        fn auroc_is_the_share_of_pairs_won(samples in samples()) {
            let (scores, anomalous): (Vec<f32>, Vec<bool>) =
                samples.iter().map(|&(s, a)| (f32::from(s) - 6.0, a)).unzip();
            let (mut won, mut pairs) = (0.0, 0.0);
            for &(p, p_anomalous) in &samples {
                for &(n, n_anomalous) in &samples {
                    if p_anomalous && !n_anomalous {
                        pairs += 1.0;
                        won += if p > n { 1.0 } else if p == n { 0.5 } else { 0.0 };
                    }
                }
            }
            let want = (pairs > 0.0).then_some(won / pairs);
            prop_assert_eq!(Ranking::new(&scores, &anomalous).unwrap().auroc(), want);
        }

        #[test]
        fn precision_and_f1_follow_their_definitions(samples in samples()) {
            let (scores, anomalous): (Vec<f32>, Vec<bool>) =
                samples.iter().map(|&(s, a)| (f32::from(s), a)).unzip();
            let all = samples.iter().filter(|s| s.1).count() as f64;
            let (mut ap, mut best_f1, mut recall_before) = (0.0, 0.0, 0.0);
            for threshold in (0_u8..12).rev() {
                let chosen: Vec<_> = samples.iter().filter(|s| s.0 >= threshold).collect();
                let hits = chosen.iter().filter(|s| s.1).count() as f64;
                if chosen.is_empty() || all == 0.0 { continue }
                ap += (hits / all - recall_before) * hits / chosen.len() as f64;
                recall_before = hits / all;
                best_f1 = f64::max(best_f1, 2.0 * hits / (chosen.len() as f64 + all));
            }
            let ranking = Ranking::new(&scores, &anomalous).unwrap();
            prop_assert_eq!(ranking.average_precision().is_some(), all > 0.0);
            if all > 0.0 {
                prop_assert!((ranking.average_precision().unwrap() - ap).abs() < 1e-12);
                prop_assert!((ranking.f1_max().unwrap().f1 - best_f1).abs() < 1e-12);
            }
        }

        #[test]
        fn no_threshold_sorts_better_within_the_budget(samples in samples(), percent in 0_u32..=100) {
            let (scores, anomalous): (Vec<f32>, Vec<bool>) =
                samples.iter().map(|&(s, a)| (f32::from(s), a)).unzip();
            let count = |of: bool, sorted: &dyn Fn(u8) -> bool| {
                samples.iter().filter(|&&(s, a)| a == of && sorted(s)).count()
            };
            let (bads, goods) = (count(true, &|_| true), count(false, &|_| true));
            let (mut kept, mut caught) = (0, 0);
            for threshold in 0_u8..=12 {
                let escapes = count(true, &|s| s < threshold);
                let rejects = count(false, &|s| s >= threshold);
                if 100 * escapes <= percent as usize * bads {
                    kept = kept.max(goods - rejects);
                }
                if 100 * rejects <= percent as usize * goods {
                    caught = caught.max(bads - escapes);
                }
            }
            let want = (bads > 0 && goods > 0)
                .then(|| (kept as f64 / goods as f64, caught as f64 / bads as f64));
            let ranking = Ranking::new(&scores, &anomalous).unwrap();
            prop_assert_eq!(ranking.goods_kept(percent), want.map(|want| want.0));
            prop_assert_eq!(ranking.bads_caught(percent), want.map(|want| want.1));
        }
    }
}
