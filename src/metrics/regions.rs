//! Pixel metrics over a whole data set, exactly: AUROC and AP of pixels, AUPRO (per-region overlap,
//! MVTec AD, Bergmann et al. 2021) and IAP (instance average precision, DeSTSeg, Zhang et al. 2023).
//!
//! A region (instance) is an 8-connected component of one picture's truth mask.

use anyhow::{Result, bail};

use super::components;
use super::sort::{key, sort_by_key};
use super::steps::{Gain, Step, Totals};
use super::{Curve, Ranking, at_or_above};

/// Gathers the pixels of all pictures: 4 bytes for a normal pixel, 8 for an anomalous one.
#[derive(Clone, Debug, Default)]
pub struct Pixels {
    pub(super) normal: Vec<u32>,
    pub(super) anomalous: Vec<RegionPixel>,
    /// Pixels of each region.
    pub(super) sizes: Vec<u32>,
    /// Where each picture's share of the three lists above ends.
    pub(super) pictures: Vec<PictureEnd>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PictureEnd {
    pub normal: usize,
    pub anomalous: usize,
    pub regions: usize,
}

/// All pixels of a data set, ranked.
#[derive(Clone, Debug)]
pub struct PixelRanking {
    ranking: Ranking,
    /// As `ranking.positives`, with the region each belongs to; ascending by key.
    anomalous: Vec<RegionPixel>,
    sizes: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct RegionPixel {
    pub key: u32,
    pub region: u32,
}

/// Refuses what has no rank or does not fit its mask.
pub(super) fn check(scores: &[f32], mask: &[bool]) -> Result<()> {
    if scores.len() != mask.len() {
        bail!("a map of {} pixels does not fit a mask of {}", scores.len(), mask.len());
    }
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        bail!("the map's value at pixel {at} is not a number");
    }
    Ok(())
}

impl Pixels {
    /// Adds one picture: its anomaly `scores` and its truth `mask`, both rows of `width` pixels.
    /// A score that is not a number is an error.
    pub fn add(&mut self, scores: &[f32], mask: &[bool], width: usize) -> Result<()> {
        check(scores, mask)?;
        if mask.contains(&true) {
            self.add_anomalous(scores, mask, width)?;
        } else {
            self.normal.extend(scores.iter().map(|&score| key(score)));
        }
        self.pictures.push(PictureEnd {
            normal: self.normal.len(),
            anomalous: self.anomalous.len(),
            regions: self.sizes.len(),
        });
        Ok(())
    }

    fn add_anomalous(&mut self, scores: &[f32], mask: &[bool], width: usize) -> Result<()> {
        let (labels, regions) = components::label(mask, width);
        let first = u32::try_from(self.sizes.len())?;
        self.sizes.resize(self.sizes.len() + regions as usize, 0);
        for (&score, &label) in scores.iter().zip(&labels) {
            if label == 0 {
                self.normal.push(key(score));
            } else {
                let region = first + label - 1;
                self.sizes[region as usize] += 1;
                self.anomalous.push(RegionPixel { key: key(score), region });
            }
        }
        Ok(())
    }

    /// Bytes that these pixels take at the peak, while they are ranked.
    pub(super) fn peak_bytes(&self) -> u64 {
        8 * self.normal.len() as u64 + 20 * self.anomalous.len() as u64
    }

    pub fn rank(mut self) -> PixelRanking {
        sort_by_key(&mut self.anomalous, |pixel| pixel.key);
        let positives = self.anomalous.iter().map(|pixel| pixel.key).collect();
        PixelRanking {
            ranking: Ranking::of_keys(positives, self.normal),
            anomalous: self.anomalous,
            sizes: self.sizes,
        }
    }
}

impl PixelRanking {
    pub fn regions(&self) -> usize {
        self.sizes.len()
    }

    /// How many pixels there are.
    pub fn pixels(&self) -> usize {
        self.ranking.positives() + self.ranking.negatives()
    }

    /// See [`Ranking::auroc`].
    pub fn auroc(&self) -> Option<f64> {
        self.ranking.auroc()
    }

    /// See [`Ranking::average_precision`].
    pub fn average_precision(&self) -> Option<f64> {
        self.ranking.average_precision()
    }

    /// See [`Ranking::roc`].
    pub fn roc(&self, points: usize) -> Option<Curve> {
        self.ranking.roc(points)
    }

    /// See [`Ranking::precision_recall`].
    pub fn precision_recall(&self, points: usize) -> Option<Curve> {
        self.ranking.precision_recall(points)
    }

    /// The area under per-region overlap against false positive rate, from 0 to `limit`, divided
    /// by `limit`: 1 is perfect, a constant map gives `limit / 2`. `None` without regions or
    /// without normal pixels.
    ///
    /// Overlap is the mean over regions of the share of each at or above the threshold; the curve
    /// has a point for each distinct score and starts at (0, 0).
    pub fn aupro(&self, limit: f64) -> Option<f64> {
        self.totals().aupro(limit, self.steps())
    }

    /// The curve that [`PixelRanking::aupro`] is the area under, up to `limit`, thinned to at most
    /// `points`.
    pub fn pro_curve(&self, limit: f64, points: usize) -> Option<Curve> {
        self.totals().pro_curve(limit, points, self.steps())
    }

    /// Instance average precision: the mean over instances of the best pixel precision at which
    /// this share of instances is found, an instance being found when more than half of its
    /// pixels are. `None` without instances.
    pub fn iap(&self) -> Option<f64> {
        mean(&self.instance_precisions())
    }

    /// The best pixel precision at which at least `percent` % of the instances are found.
    pub fn iap_at(&self, percent: u32) -> Option<f64> {
        precision_at(&self.instance_precisions(), percent)
    }

    /// The mean share of each region that scores strictly above `threshold`. `None` without
    /// regions.
    pub fn pro_above(&self, threshold: f32) -> Option<f64> {
        let mut found = vec![0_u32; self.sizes.len()];
        let above = self.anomalous.partition_point(|pixel| pixel.key <= key(threshold));
        for pixel in &self.anomalous[above..] {
            found[pixel.region as usize] += 1;
        }
        let shares =
            found.iter().zip(&self.sizes).map(|(&n, &size)| f64::from(n) / f64::from(size));
        (!self.sizes.is_empty()).then(|| shares.sum::<f64>() / self.sizes.len() as f64)
    }

    fn totals(&self) -> Totals {
        Totals { regions: self.sizes.len() as u64, ..self.ranking.totals() }
    }

    /// Distinct scores, descending, with what the regions gain at each.
    fn steps(&self) -> impl Iterator<Item = Step> {
        let mut gains: Vec<Gain> = self.sizes.iter().map(|&size| Gain::new(size)).collect();
        let mut pixels = self.anomalous.iter().rev();
        self.ranking.steps().map(move |step| {
            let found = pixels.by_ref().take(step.positives as usize);
            let overlap = found.map(|pixel| gains[pixel.region as usize].find(1)).sum();
            Step { overlap, ..step }
        })
    }

    /// For each instance, lowest score first, the best precision at this or a higher recall.
    fn instance_precisions(&self) -> Vec<f64> {
        let mut best = 0.0_f64;
        self.instance_keys()
            .into_iter()
            .map(|key| {
                let hits = at_or_above(&self.ranking.positives, key);
                let all = hits + at_or_above(&self.ranking.negatives, key);
                best = best.max(hits as f64 / all as f64);
                best
            })
            .collect()
    }

    /// The highest threshold at which each instance is found: its pixel score of descending index
    /// n/2, so that strictly more than half of n pixels reach it. Ascending.
    fn instance_keys(&self) -> Vec<u32> {
        let mut passed = vec![0_u32; self.sizes.len()];
        let mut keys = Vec::with_capacity(self.sizes.len());
        for pixel in self.anomalous.iter().rev() {
            let region = pixel.region as usize;
            if passed[region] == self.sizes[region] / 2 {
                keys.push(pixel.key);
            }
            passed[region] += 1;
        }
        keys.reverse();
        keys
    }
}

/// IAP of the instances' precisions.
pub(super) fn mean(precisions: &[f64]) -> Option<f64> {
    (!precisions.is_empty()).then(|| precisions.iter().sum::<f64>() / precisions.len() as f64)
}

/// IAP@percent of the instances' precisions, lowest score first.
pub(super) fn precision_at(precisions: &[f64], percent: u32) -> Option<f64> {
    assert!(percent <= 100, "a share of instances is at most 100 %");
    // Missing the i lowest instances leaves a recall of 1 − i/m ≥ percent/100.
    let missed = precisions.len() * (100 - percent as usize) / 100;
    precisions.get(missed.min(precisions.len().saturating_sub(1))).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;

    fn one_map(scores: &[f32], mask: &[u8], width: usize) -> PixelRanking {
        let mut pixels = Pixels::default();
        let mask: Vec<bool> = mask.iter().map(|&m| m == 1).collect();
        pixels.add(scores, &mask, width).unwrap();
        pixels.rank()
    }

    #[test]
    fn a_constant_map_gives_half_the_limit() {
        let mask = [[1_u8; 7].as_slice(), &[0; 29]].concat();
        let ranking = one_map(&[0.5; 36], &mask, 6);
        assert_eq!(ranking.auroc(), Some(0.5));
        assert!((ranking.aupro(0.3).unwrap() - 0.15).abs() < 1e-12);
        assert_eq!(ranking.iap(), Some(7.0 / 36.0));
    }

    #[test]
    fn a_perfect_map_gives_one() {
        let ranking = one_map(&[0.1, 0.2, 0.9, 0.3, 0.1, 0.8], &[0, 0, 1, 0, 0, 1], 3);
        assert_eq!(
            (ranking.aupro(0.3), ranking.iap(), ranking.regions()),
            (Some(1.0), Some(1.0), 1)
        );
    }

    #[test]
    fn half_of_an_instance_is_not_enough() {
        // Region of .9 .8 .2 .1: found at .2, where the normal .5 counts too: precision 3/4.
        let ranking = one_map(&[0.9, 0.8, 0.2, 0.1, 0.0, 0.5], &[1, 1, 1, 1, 0, 0], 6);
        assert_eq!(ranking.iap(), Some(0.75));
    }

    #[test]
    fn a_tenth_of_the_instances_may_be_missed_at_90() {
        // Ten one-pixel instances, one of them at the bottom, beside one normal pixel in between.
        let mut scores = vec![0.5_f32; 20];
        let mut mask = vec![0_u8; 20];
        for i in 0..10 {
            (scores[2 * i], mask[2 * i]) = (0.9, 1);
        }
        scores[0] = 0.1;
        let ranking = one_map(&scores, &mask, 20);
        assert_eq!(ranking.regions(), 10);
        assert_eq!(ranking.iap_at(90), Some(1.0));
        assert_eq!(ranking.iap_at(100), Some(0.5));
    }

    #[test]
    fn the_pro_curve_is_cut_at_the_limit() {
        // Four normal pixels; the region's lie above the first and between the second and third.
        let ranking = one_map(&[0.9, 0.5, 0.8, 0.6, 0.4, 0.1], &[1, 1, 0, 0, 0, 0], 6);
        let curve = ranking.pro_curve(0.6, 100).unwrap();
        let want = [(0.0, 0.0), (0.0, 0.5), (0.25, 0.5), (0.5, 0.5), (0.5, 1.0), (0.6, 1.0)];
        assert_eq!((curve.points, curve.max_error), (want.to_vec(), 0.0));
    }

    #[test]
    fn undefined_is_none() {
        let normal = one_map(&[0.1, 0.2], &[0, 0], 2);
        assert_eq!((normal.aupro(0.3), normal.iap(), normal.iap_at(90)), (None, None, None));
        assert_eq!((normal.pro_above(0.5), normal.auroc()), (None, None));
        let anomalous = one_map(&[0.1, 0.2], &[1, 1], 2);
        assert_eq!((anomalous.aupro(0.3), anomalous.iap()), (None, Some(1.0)));
    }

    #[test]
    fn a_map_with_nan_is_refused() {
        let error = Pixels::default().add(&[0.0, f32::NAN], &[false, true], 2).unwrap_err();
        assert!(error.to_string().contains("pixel 1"), "{error}");
    }

    #[test]
    fn agrees_with_the_official_scripts() {
        let Some(path) = shared("spec/vectors/metrics_regions.json") else { return };
        let vectors: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let tolerance = vectors["tolerance"]["abs"].as_f64().unwrap();
        let cases = vectors["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 11);
        for case in cases {
            let shape: [usize; 3] = serde_json::from_value(case["shape"].clone()).unwrap();
            let scores: Vec<f32> = serde_json::from_value(case["scores"].clone()).unwrap();
            let masks: Vec<u8> = serde_json::from_value(case["masks"].clone()).unwrap();
            let masks: Vec<bool> = masks.iter().map(|&m| m == 1).collect();
            let mut pixels = Pixels::default();
            let one = shape[1] * shape[2];
            for (scores, mask) in scores.chunks(one).zip(masks.chunks(one)) {
                pixels.add(scores, mask, shape[2]).unwrap();
            }
            let ranking = pixels.rank();
            let name = &case["name"];
            let expected = &case["expected"];
            assert_eq!(ranking.regions() as u64, expected["regions_8conn"].as_u64().unwrap());
            let mut got = vec![
                ("aupro_0.3", ranking.aupro(0.3)),
                ("aupro_0.05", ranking.aupro(0.05)),
                ("aupro_1.0", ranking.aupro(1.0)),
                ("iap_by_definition", ranking.iap()),
                ("iap@90_by_definition", ranking.iap_at(90)),
                ("pro_at_0.5", ranking.pro_above(0.5)),
                ("pixel_auroc", ranking.auroc()),
                ("pixel_ap", ranking.average_precision()),
            ];
            // The published code departs from its definition in these two (metrics.md section 5).
            if name != "instance_score_zero" && name != "all_pixels_anomalous" {
                got.extend([("iap@50", ranking.iap_at(50)), ("iap@100", ranking.iap_at(100))]);
            }
            for (metric, got) in got {
                let want = expected[metric].as_f64();
                let close = match (got, want) {
                    (Some(got), Some(want)) => (got - want).abs() <= tolerance,
                    (got, want) => got == want,
                };
                assert!(close, "{name} {metric}: {got:?}, not {want:?}");
            }
        }
    }

    proptest! {
        /// Against the definition: a curve point for each distinct score, counted afresh.
        #[test]
        fn aupro_follows_its_definition(
            cells in prop::collection::vec((0_u8..6, prop::bool::weighted(0.3)), 36),
            limit in 0.02_f64..=1.0,
        ) {
            let scores: Vec<f32> = cells.iter().map(|c| f32::from(c.0)).collect();
            let mask: Vec<bool> = cells.iter().map(|c| c.1).collect();
            let (labels, regions) = components::label(&mask, 6);
            let normal = mask.iter().filter(|&&m| !m).count();
            prop_assume!(regions > 0 && normal > 0);
            let mut curve = vec![(0.0, 0.0)];
            for threshold in (0_u8..6).rev() {
                let positive = |i: &usize| cells[*i].0 >= threshold;
                let wrong = (0..36).filter(positive).filter(|&i| !mask[i]).count();
                let overlap: f64 = (1..=regions).map(|region| {
                    let of_region = (0..36).filter(|&i| labels[i] == region);
                    of_region.clone().filter(positive).count() as f64 / of_region.count() as f64
                }).sum::<f64>() / f64::from(regions);
                curve.push((wrong as f64 / normal as f64, overlap));
            }
            // The integral by fine strips of the curve's straight pieces, cut at the limit.
            let area: f64 = curve.windows(2).map(|piece| {
                let ((x0, y0), (x1, y1)) = (piece[0], piece[1]);
                if x0 >= limit || x1 == x0 { return 0.0 }
                let end = f64::min(x1, limit);
                let y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0);
                (end - x0) * (y0 + y_end) / 2.0
            }).sum();
            let mut pixels = Pixels::default();
            pixels.add(&scores, &mask, 6).unwrap();
            prop_assert!((pixels.rank().aupro(limit).unwrap() - area / limit).abs() < 1e-12);
        }

        /// Against the definition: each instance's threshold and each precision counted afresh.
        #[test]
        fn iap_follows_its_definition(
            cells in prop::collection::vec((0_u8..6, prop::bool::weighted(0.3)), 36),
            percent in 0_u32..=100,
        ) {
            let scores: Vec<f32> = cells.iter().map(|c| f32::from(c.0)).collect();
            let mask: Vec<bool> = cells.iter().map(|c| c.1).collect();
            let (labels, regions) = components::label(&mask, 6);
            prop_assume!(regions > 0);
            let found_at = |region: u32, threshold: u8| {
                let of_region = (0..36).filter(|&i| labels[i] == region);
                let found = of_region.clone().filter(|&i| cells[i].0 >= threshold).count();
                2 * found > of_region.count()
            };
            // The best precision of a threshold at which so many instances are found.
            let best = |least: u32| {
                (0_u8..6)
                    .filter(|&t| (1..=regions).filter(|&r| found_at(r, t)).count() >= least as usize)
                    // only where an instance is just found
                    .filter(|&t| (1..=regions).any(|r| found_at(r, t) && !found_at(r, t + 1)))
                    .map(|t| {
                        let all = cells.iter().filter(|c| c.0 >= t);
                        all.clone().filter(|c| c.1).count() as f64 / all.count() as f64
                    })
                    .fold(0.0, f64::max)
            };
            let iap = (1..=regions).map(best).sum::<f64>() / f64::from(regions);
            let least = (1..=regions).find(|n| 100 * n >= percent * regions).unwrap();
            let mut pixels = Pixels::default();
            pixels.add(&scores, &mask, 6).unwrap();
            let ranking = pixels.rank();
            prop_assert!((ranking.iap().unwrap() - iap).abs() < 1e-12);
            prop_assert_eq!(ranking.iap_at(percent), Some(best(least)));
        }
    }
}
