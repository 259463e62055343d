//! The pixel figures of a test set: exact as long as the pixels fit a budget of memory, and from
//! there on counted in a histogram of 2²⁴ bins, with a bound on what that
//! costs.

use anyhow::Result;
use serde::Serialize;

use super::Curve;
use super::histogram::Histogram;
use super::regions::{self, Pixels};

/// The false positive rate up to which AUPRO is taken, as in the MVTec AD paper.
pub const AUPRO_LIMIT: f64 = 0.3;

/// Bytes that exact pixels may take at their peak: 8 for a normal pixel, 20 for an anomalous one,
/// so about 2000 maps of 256 × 256.
pub const USUAL_BUDGET_BYTES: u64 = 1 << 30;

/// Points that a curve is thinned to; see [`Curve`].
pub const CURVE_POINTS: usize = 400;

/// Gathers the anomaly maps of a test set, whose pictures may come in any order.
#[derive(Clone, Debug)]
pub struct PixelScores {
    budget_bytes: u64,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Exact(Pixels),
    Streamed(Histogram),
}

/// What the maps are worth. What is not defined (no region, no normal pixel) is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PixelFigures {
    pub pixels: u64,
    pub regions: u64,
    pub auroc: Option<f64>,
    pub average_precision: Option<f64>,
    /// Up to [`AUPRO_LIMIT`].
    pub aupro: Option<f64>,
    pub iap: Option<f64>,
    pub iap_90: Option<f64>,
    pub roc: Option<Curve>,
    pub precision_recall: Option<Curve>,
    /// (false positive rate, per-region overlap) up to [`AUPRO_LIMIT`].
    pub pro: Option<Curve>,
    /// Where the figures are not exact: how far each may be off.
    pub bounds: Option<Bounds>,
}

/// The exact figure lies no further than this from the one given; 0 where that is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Bounds {
    pub auroc: f64,
    pub average_precision: f64,
    pub aupro: f64,
    pub iap: f64,
    pub iap_90: f64,
}

impl Default for PixelScores {
    fn default() -> PixelScores {
        PixelScores::new(USUAL_BUDGET_BYTES)
    }
}

impl PixelScores {
    /// Exact up to so many bytes.
    pub fn new(budget_bytes: u64) -> PixelScores {
        PixelScores { budget_bytes, state: State::Exact(Pixels::default()) }
    }

    /// Adds one picture: its anomaly `scores` and its truth `mask`, both rows of `width` pixels.
    ///
    /// # Errors
    /// A score that is not a number, a mask of another size.
    pub fn add(&mut self, scores: &[f32], mask: &[bool], width: usize) -> Result<()> {
        match &mut self.state {
            State::Exact(pixels) => {
                pixels.add(scores, mask, width)?;
                if pixels.peak_bytes() > self.budget_bytes {
                    self.state = State::Streamed(Histogram::of(std::mem::take(pixels)));
                }
                Ok(())
            }
            State::Streamed(histogram) => {
                regions::check(scores, mask)?;
                histogram.add(scores, mask, width);
                Ok(())
            }
        }
    }

    /// Every pixel, as long as they are exact.
    pub(super) fn exact(&self) -> Option<&Pixels> {
        match &self.state {
            State::Exact(pixels) => Some(pixels),
            State::Streamed(_) => None,
        }
    }

    pub fn finish(self) -> PixelFigures {
        match self.state {
            State::Exact(pixels) => exact(pixels),
            State::Streamed(histogram) => histogram.figures(),
        }
    }
}

fn exact(pixels: Pixels) -> PixelFigures {
    let ranking = pixels.rank();
    let (areas, curves) = rayon::join(
        || (ranking.auroc(), ranking.average_precision(), ranking.aupro(AUPRO_LIMIT)),
        || {
            (
                ranking.roc(CURVE_POINTS),
                ranking.precision_recall(CURVE_POINTS),
                ranking.pro_curve(AUPRO_LIMIT, CURVE_POINTS),
            )
        },
    );
    PixelFigures {
        pixels: ranking.pixels() as u64,
        regions: ranking.regions() as u64,
        auroc: areas.0,
        average_precision: areas.1,
        aupro: areas.2,
        iap: ranking.iap(),
        iap_90: ranking.iap_at(90),
        roc: curves.0,
        precision_recall: curves.1,
        pro: curves.2,
        bounds: None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// A map of rows of 8 and its mask.
    type Map = (Vec<f32>, Vec<bool>);

    fn figures<'a>(maps: impl IntoIterator<Item = &'a Map>, budget_bytes: u64) -> PixelFigures {
        let mut scores = PixelScores::new(budget_bytes);
        for (map, mask) in maps {
            scores.add(map, mask, 8).unwrap();
        }
        scores.finish()
    }

    /// Scores within a few bins of 256, so that most share theirs; around each of three levels.
    fn maps() -> impl Strategy<Value = Vec<Map>> {
        let pixel = (0_usize..3, 0_u32..400, prop::bool::weighted(0.2)).prop_map(
            |(level, above, anomalous)| {
                let level = [-0.5_f32, 1e-3, 1.0][level];
                (f32::from_bits(level.to_bits() + above), anomalous)
            },
        );
        let map = prop::collection::vec(pixel, 40).prop_map(|pixels| pixels.into_iter().unzip());
        prop::collection::vec(map, 1..5)
    }

    proptest! {
        #[test]
        fn a_streamed_figure_lies_within_its_bound(maps in maps(), kept in 0_u64..4) {
            let exact = figures(&maps, u64::MAX);
            prop_assert_eq!(exact.bounds, None);
            let streamed = figures(&maps, kept * 400);
            let Some(bounds) = streamed.bounds else { return Ok(()) };
            for (name, exact, streamed, bound) in [
                ("AUROC", exact.auroc, streamed.auroc, bounds.auroc),
                ("AP", exact.average_precision, streamed.average_precision, bounds.average_precision),
                ("AUPRO", exact.aupro, streamed.aupro, bounds.aupro),
                ("IAP", exact.iap, streamed.iap, bounds.iap),
                ("IAP@90", exact.iap_90, streamed.iap_90, bounds.iap_90),
            ] {
                let off = exact.zip(streamed).map_or(0.0, |(a, b)| (a - b).abs());
                prop_assert_eq!(exact.is_some(), streamed.is_some());
                prop_assert!(off <= bound + 1e-12, "{}: {:?}, {:?} ± {}", name, exact, streamed, bound);
            }
            prop_assert_eq!((exact.pixels, exact.regions), (streamed.pixels, streamed.regions));
        }

        #[test]
        fn the_order_of_pictures_does_not_show(maps in maps(), kept in 0_u64..4) {
            for budget in [u64::MAX, kept * 400] {
                let backwards = figures(maps.iter().rev(), budget);
                prop_assert_eq!(figures(&maps, budget), backwards);
            }
        }
    }

    #[test]
    fn few_levels_are_exact_even_when_streamed() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let maps: Vec<Map> = (0..4)
            .map(|_| (0..64).map(|_| (rng.random_range(0..9) as f32, rng.random_bool(0.3))).unzip())
            .collect();
        let (exact, streamed) = (figures(&maps, u64::MAX), figures(&maps, 0));
        assert_eq!(streamed, PixelFigures { bounds: Some(Bounds::default()), ..exact });
    }

    #[test]
    fn a_streamed_bound_is_small() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let maps: Vec<Map> = (0..100)
            .map(|_| {
                let anomalous: Vec<bool> = (0..640).map(|i| i % 80 < 8).collect();
                let score = |&anomalous: &bool| {
                    let far: f32 = rng.random_range(0.0..1.0_f32) * rng.random_range(0.0..1.0);
                    if anomalous { far + 0.2 } else { far }
                };
                (anomalous.iter().map(score).collect(), anomalous)
            })
            .collect();
        let bounds = figures(&maps, 0).bounds.unwrap();
        let worst = bounds.auroc.max(bounds.aupro).max(bounds.average_precision);
        assert!(worst < 1e-4 && bounds.auroc > 0.0, "{bounds:?}");
    }

    #[test]
    fn what_has_no_rank_is_refused_streamed_or_not() {
        for budget in [u64::MAX, 0] {
            let mut scores = PixelScores::new(budget);
            scores.add(&[1.0; 8], &[false; 8], 8).unwrap();
            let error = scores.add(&[f32::NAN; 8], &[true; 8], 8).unwrap_err().to_string();
            assert!(error.contains("pixel 0"), "{error}");
            assert!(scores.add(&[1.0; 8], &[false; 9], 8).is_err());
            let figures = scores.finish();
            assert_eq!((figures.pixels, figures.auroc, figures.pro), (8, None, None));
        }
    }
}
