//! The pixel figures of a test set: exact as long as the pixels fit a budget of memory, and from
//! there on counted in a histogram of 2²⁴ bins ([`super::histogram`]) with a bound on what that
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
