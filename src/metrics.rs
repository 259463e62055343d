//! How well scores tell defects from good parts, exactly: AUROC, average precision, F1-max of
//! images or pixels, and the region metrics (AUPRO, IAP) in [`regions`].
//!
//! Counts are `u64`, sums `f64`; equal scores form one threshold. A metric that is not defined
//! (no defect, no good part) is `None`, which is printed `n/a` and is `null` in JSON.

use anyhow::{Result, bail};

pub mod components;
pub mod regions;
pub mod sort;

use sort::{key, score, sort_keys};

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
        if self.positives.is_empty() || self.negatives.is_empty() {
            return None;
        }
        // Twice the pairs won, so that ties stay whole numbers.
        let (mut won_twice, mut above) = (0_u128, 0_u64);
        for step in self.steps() {
            let below = self.negatives.len() as u64 - above - step.negatives;
            won_twice +=
                u128::from(step.positives) * (2 * u128::from(below) + u128::from(step.negatives));
            above += step.negatives;
        }
        let pairs = self.positives.len() as f64 * self.negatives.len() as f64;
        Some(won_twice as f64 / (2.0 * pairs))
    }

    /// Average precision: the sum over distinct thresholds, descending, of the recall gained
    /// times the precision there; no interpolation. `None` without positives.
    pub fn average_precision(&self) -> Option<f64> {
        if self.positives.is_empty() {
            return None;
        }
        let (mut true_positives, mut false_positives, mut sum) = (0_u64, 0_u64, 0.0_f64);
        for step in self.steps() {
            true_positives += step.positives;
            false_positives += step.negatives;
            if step.positives > 0 {
                sum += step.positives as f64 * true_positives as f64
                    / (true_positives + false_positives) as f64;
            }
        }
        Some(sum / self.positives.len() as f64)
    }

    /// The best F1 and its threshold. `None` without positives; see [`Ranking::fallback`].
    pub fn f1_max(&self) -> Option<F1Max> {
        let all = self.positives.len() as u64;
        let (mut true_positives, mut false_positives) = (0_u64, 0_u64);
        // F1 = 2 TP / (TP + FP + P), held as a fraction so that equal means equal.
        let mut best: Option<(u64, u64, u32)> = None;
        for step in self.steps() {
            true_positives += step.positives;
            false_positives += step.negatives;
            let (over, under) = (2 * true_positives, true_positives + false_positives + all);
            let better = best.is_none_or(|(best_over, best_under, _)| {
                u128::from(over) * u128::from(best_under)
                    >= u128::from(best_over) * u128::from(under)
            });
            if better && step.positives > 0 {
                best = Some((over, under, step.key));
            }
        }
        best.map(|(over, under, key)| F1Max {
            f1: over as f64 / under as f64,
            threshold: score(key),
        })
    }

    /// Where F1 says nothing: the highest negative score if there are no positives (anomalous is
    /// what lies strictly above it), `None` if there is nothing at all.
    pub fn fallback(&self) -> Option<f32> {
        self.negatives.last().map(|&key| score(key))
    }

    /// Distinct scores, descending, with how many of each class have them.
    fn steps(&self) -> Steps<'_> {
        Steps { positives: &self.positives, negatives: &self.negatives }
    }
}

struct Step {
    key: u32,
    positives: u64,
    negatives: u64,
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
    }
}
