//! Metrics as sums over distinct scores from the highest down, whoever counted them: a full
//! ranking, a histogram or a resample. Counts are whole numbers, so that no order of pictures and
//! no number of threads shows in a figure.
//!
//! Letters: P positives (defects), N negatives (good), R regions.

use super::F1Max;
use super::curve::{Curve, Thinning};
use super::sort::score;

/// What has one score, or one bin of scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// See [`super::sort::key`].
    pub key: u32,
    pub positives: u64,
    pub negatives: u64,
    /// What the regions gain here, in parts of [`WHOLE`] a region; 0 where there are no regions.
    pub overlap: u64,
}

/// How many there are of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub positives: u64,
    pub negatives: u64,
    pub regions: u64,
}

/// A region that is wholly found. A share of one is off by half of 1/WHOLE at most, and shares can
/// be added in any order; 2²⁴ regions fit 64 bits.
pub(super) const WHOLE: u64 = 1 << 40;

/// The share that `found` pixels are of a region of `size`. Gains are differences of it.
pub(super) fn share(found: u32, size: u32) -> u64 {
    (f64::from(found) / f64::from(size) * WHOLE as f64).round() as u64
}

/// What a region gains from pixel to pixel, or from one group of its pixels to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gain {
    size: u32,
    found: u32,
}

impl Gain {
    pub fn new(size: u32) -> Gain {
        Gain { size, found: 0 }
    }

    /// What finding so many more pixels adds.
    pub fn find(&mut self, pixels: u32) -> u64 {
        let before = share(self.found, self.size);
        self.found += pixels;
        share(self.found, self.size) - before
    }
}

impl Totals {
    pub fn has_both_classes(&self) -> bool {
        self.positives > 0 && self.negatives > 0
    }

    /// See [`super::Ranking::auroc`].
    pub fn auroc(&self, steps: impl Iterator<Item = Step>) -> Option<f64> {
        if !self.has_both_classes() {
            return None;
        }
        // Twice the pairs won, so that ties stay whole numbers.
        let (mut won_twice, mut above) = (0_u128, 0_u64);
        for step in steps {
            let below = self.negatives - above - step.negatives;
            won_twice +=
                u128::from(step.positives) * (2 * u128::from(below) + u128::from(step.negatives));
            above += step.negatives;
        }
        Some(won_twice as f64 / (2.0 * self.positives as f64 * self.negatives as f64))
    }

    /// See [`super::Ranking::average_precision`].
    pub fn average_precision(&self, steps: impl Iterator<Item = Step>) -> Option<f64> {
        if self.positives == 0 {
            return None;
        }
        let (mut true_positives, mut false_positives, mut sum) = (0_u64, 0_u64, 0.0_f64);
        for step in steps {
            true_positives += step.positives;
            false_positives += step.negatives;
            if step.positives > 0 {
                sum += step.positives as f64 * true_positives as f64
                    / (true_positives + false_positives) as f64;
            }
        }
        Some(sum / self.positives as f64)
    }

    /// See [`super::Ranking::f1_max`].
    pub fn f1_max(&self, steps: impl Iterator<Item = Step>) -> Option<F1Max> {
        let (mut true_positives, mut false_positives) = (0_u64, 0_u64);
        // F1 = 2 TP / (TP + FP + P), held as a fraction so that equal means equal.
        let mut best: Option<(u64, u64, u32)> = None;
        for step in steps {
            true_positives += step.positives;
            false_positives += step.negatives;
            let (over, under) =
                (2 * true_positives, true_positives + false_positives + self.positives);
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

    /// See [`super::regions::PixelRanking::aupro`].
    pub fn aupro(&self, limit: f64, steps: impl Iterator<Item = Step>) -> Option<f64> {
        assert!(limit > 0.0 && limit <= 1.0, "a rate limit is in 0..=1");
        let mut area = 0.0;
        let mut last = (0.0, 0.0);
        for point in self.pro_points(limit, steps)? {
            area += (point.0 - last.0) * (last.1 + point.1) / 2.0;
            last = point;
        }
        Some(area / limit)
    }

    /// See [`super::Ranking::roc`].
    pub fn roc(&self, thinning: usize, steps: impl Iterator<Item = Step>) -> Option<Curve> {
        if !self.has_both_classes() {
            return None;
        }
        let mut curve = Thinning::new(1.0);
        let (mut hits, mut wrong) = (0, 0);
        curve.push((0.0, 0.0));
        for step in steps {
            hits += step.positives;
            wrong += step.negatives;
            curve.push((wrong as f64 / self.negatives as f64, hits as f64 / self.positives as f64));
        }
        Some(curve.finish(thinning))
    }

    /// See [`super::Ranking::precision_recall`].
    pub fn precision_recall(
        &self,
        thinning: usize,
        steps: impl Iterator<Item = Step>,
    ) -> Option<Curve> {
        if self.positives == 0 {
            return None;
        }
        let mut curve = Thinning::new(1.0);
        let (mut hits, mut wrong) = (0, 0);
        for step in steps {
            hits += step.positives;
            wrong += step.negatives;
            curve.push((hits as f64 / self.positives as f64, hits as f64 / (hits + wrong) as f64));
        }
        Some(curve.finish(thinning))
    }

    /// See [`super::regions::PixelRanking::pro_curve`].
    pub fn pro_curve(
        &self,
        limit: f64,
        thinning: usize,
        steps: impl Iterator<Item = Step>,
    ) -> Option<Curve> {
        let mut curve = Thinning::new(limit);
        curve.push((0.0, 0.0));
        self.pro_points(limit, steps)?.for_each(|point| curve.push(point));
        Some(curve.finish(thinning))
    }

    /// (false positive rate, overlap) from the first distinct score on, the last cut at `limit`.
    fn pro_points(
        &self,
        limit: f64,
        steps: impl Iterator<Item = Step>,
    ) -> Option<impl Iterator<Item = (f64, f64)>> {
        if self.regions == 0 || self.negatives == 0 {
            return None;
        }
        let all_overlap = self.regions as f64 * WHOLE as f64;
        let all_negatives = self.negatives as f64;
        let (mut wrong, mut overlap, mut last) = (0_u64, 0_u128, (0.0, 0.0));
        Some(steps.map_while(move |step| {
            if last.0 >= limit {
                return None;
            }
            wrong += step.negatives;
            overlap += u128::from(step.overlap);
            let mut point = (wrong as f64 / all_negatives, overlap as f64 / all_overlap);
            if point.0 > limit {
                let part = (limit - last.0) / (point.0 - last.0);
                point = (limit, last.1 + part * (point.1 - last.1));
            }
            last = point;
            Some(point)
        }))
    }
}
