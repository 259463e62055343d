//! Whether a model may run in int8: measured before it is taught.
//!
//! Two small memory banks are made of some of the good parts, one of features in f32 and one of the
//! same patches in int8. Both score good parts that are in neither, and each of these again with a
//! blot, a scratch and a displaced piece drawn on it, many of them faint. Int8 is allowed where it
//! tells good from anomalous as well as f32 does ([`MOST_AUROC_LOST`]) and its anomaly maps are the
//! same to the eye ([`LEAST_CORRELATION`]).

use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use rand::{Rng, RngExt};

use super::pictures::{Good, Register};
use super::{Config, Draw, PROJECTED_DIMS, Plan};
use crate::detector::bundle::{Int8, PrecisionCheck};
use crate::detector::patch_prototypes::{self, PatchFeatures, PatchPrototypes};
use crate::detector::{Detection, Detector};
use crate::frame::Image;
use crate::metrics::Ranking;
use crate::nn::Backbone;
use crate::nn::engine::Engine;
use crate::ops::byte_simd::ByteIsa;
use crate::ops::coreset::{self, CoresetConfig};

/// Image AUROC that int8 may cost: a tenth of a point.
pub const MOST_AUROC_LOST: f64 = 1e-3;

/// Pearson's between the anomaly maps of f32 and int8, for each picture.
pub const LEAST_CORRELATION: f64 = 0.99;

/// Good parts in the memory banks, and whose activations the steps of the bytes are found on.
const TAUGHT: usize = 32;

/// Good parts scored; with their anomalies, three times as many, 3072 pairs: the AUROC is known in
/// steps of a thirtieth of a point.
const SCORED: usize = 32;

/// In each memory bank.
const PROTOTYPES: usize = 1000;

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    #[default]
    F32,
    /// Int8, or an error where it costs too much.
    Int8,
    /// Int8 where it is the faster on this machine and costs little enough.
    Auto,
}

impl FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            "auto" => Ok(Self::Auto),
            _ => bail!("precision {word}: must be f32, int8 or auto"),
        }
    }
}

/// Whether these figures allow int8.
pub fn passes(check: &PrecisionCheck) -> bool {
    // NaN does not
    check.auroc_f32 - check.auroc_int8 <= MOST_AUROC_LOST
        && check.map_correlation >= LEAST_CORRELATION
}

/// How the model is to run: in int8 as said, or in f32 where there is none. The figures come where
/// they were measured.
///
/// # Errors
/// Int8 is wanted at all costs and costs too much; too few pictures to measure it.
pub(super) fn choose(
    config: &Config,
    plan: &Plan,
    backbone: &Backbone,
    engine: &Engine,
) -> Result<(Option<Int8>, Option<PrecisionCheck>)> {
    let pays = ByteIsa::of(engine.isa).pays();
    if config.precision == Wanted::F32 || config.precision == Wanted::Auto && !pays {
        return Ok((None, None));
    }
    let int8 = measure(config, plan, backbone, engine).context("measuring int8")?;
    let check = int8.check;
    if passes(&check) {
        return Ok((Some(int8), Some(check)));
    }
    ensure!(
        config.precision == Wanted::Auto,
        "precision = int8 costs too much here: image AUROC {:.4} where f32 has {:.4} (at most \
         {MOST_AUROC_LOST} may be lost), map correlation {:.4} (at least {LEAST_CORRELATION}); \
         teach in f32",
        check.auroc_int8,
        check.auroc_f32,
        check.map_correlation
    );
    Ok((None, Some(check)))
}

fn measure(config: &Config, plan: &Plan, backbone: &Backbone, engine: &Engine) -> Result<Int8> {
    // Those held out; where there are none, a part of the taught ones.
    let (taught, scored) = if plan.held_out.is_empty() {
        let scored = SCORED.min(plan.taught.len() / 4).max(1);
        plan.taught.split_at(plan.taught.len() - scored)
    } else {
        (plan.taught.as_slice(), plan.held_out.as_slice())
    };
    let mut register = Register::default();
    let mut read = |goods: &[Good], most: usize| {
        register.read(&goods[..most.min(goods.len())], config.significant_bits)
    };
    let (taught, scored) = (read(taught, TAUGHT), read(scored, SCORED));
    ensure!(!taught.is_empty() && !scored.is_empty(), "no picture to measure it on");

    let scales = patch_prototypes::calibrate(config.input, backbone, engine, &taught)?;
    let floats = PatchFeatures::new(config.input, backbone, engine)?;
    let bytes = PatchFeatures::quantized(config.input, backbone, &scales, engine)?;
    let mut rng = config.rng(Draw::Precision);
    let [mut f32, mut int8] = detectors([floats, bytes], &taught, &mut rng)?;

    let (mut said, mut anomalous) = ([Vec::new(), Vec::new()], Vec::new());
    let mut map_correlation = f64::INFINITY;
    let mut score = |image: &Image, is_anomalous: bool| -> Result<()> {
        let a = f32.detect(&[image])?.pop().context("no detection")?;
        let b = int8.detect(&[image])?.pop().context("no detection")?;
        map_correlation = map_correlation.min(correlation(&a, &b));
        said[0].push(a.score);
        said[1].push(b.score);
        anomalous.push(is_anomalous);
        Ok(())
    };
    for good in &scored {
        score(good, false)?;
        for kind in Anomaly::ALL {
            score(&Image::Rgb(kind.draw(&good.to_rgb(), &mut rng)), true)?;
        }
    }
    let auroc = |scores: &[f32]| {
        Ranking::new(scores, &anomalous)?.auroc().context("parts of one kind only")
    };
    let check = PrecisionCheck {
        goods: scored.len(),
        anomalies: anomalous.len() - scored.len(),
        auroc_f32: auroc(&said[0])?,
        auroc_int8: auroc(&said[1])?,
        map_correlation,
    };
    Ok(Int8 { check, scales })
}

/// A detector of each kind of features, their memory banks made of the same patches: those that a
/// coreset of the first kind keeps.
fn detectors(
    kinds: [PatchFeatures; 2],
    taught: &[Image],
    rng: &mut impl Rng,
) -> Result<[PatchPrototypes; 2]> {
    let images: Vec<&Image> = taught.iter().collect();
    let [mut first, mut second] = kinds;
    let dims = first.dims();
    let features = [first.extract(&images)?, second.extract(&images)?];
    let target = PROTOTYPES.min(features[0].len() / dims / 2);
    let choice = CoresetConfig { target, projection: PROJECTED_DIMS };
    let centres = coreset::select(&features[0], dims, &choice, rng, |_, _| {})?;
    let rows = |features: &[f32]| -> Vec<f32> {
        let row = |&centre: &usize| &features[centre * dims..(centre + 1) * dims];
        centres.iter().flat_map(row).copied().collect()
    };
    Ok([
        PatchPrototypes::new(first, rows(&features[0]))?,
        PatchPrototypes::new(second, rows(&features[1]))?,
    ])
}

/// Pearson's, of two anomaly maps; 1 where both are flat, 0 where one is.
fn correlation(a: &Detection, b: &Detection) -> f64 {
    let (a, b) = (&a.map.scores, &b.map.scores);
    let mean = |xs: &[f32]| xs.iter().map(|&x| f64::from(x)).sum::<f64>() / xs.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a) - mean_a, f64::from(b) - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    match (aa > 0.0, bb > 0.0) {
        (true, true) => ab / (aa * bb).sqrt(),
        (false, false) => 1.0,
        _ => 0.0,
    }
}

/// What is drawn on good parts, in the middle four fifths of the picture.
#[derive(Clone, Copy)]
enum Anomaly {
    /// A disc, a twentieth to an eighth of the shorter side across, partly see-through.
    Blot,
    /// A straight line, an eighth to a third of the shorter side long.
    Scratch,
    /// A square of the picture, laid somewhere else (CutPaste, Li et al. 2021).
    Displaced,
}

impl Anomaly {
    const ALL: [Self; 3] = [Self::Blot, Self::Scratch, Self::Displaced];

    fn draw(self, good: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        let (width, height) = (f64::from(good.width()), f64::from(good.height()));
        let side = width.min(height);
        let x0 = width * rng.random_range(0.1..0.9);
        let y0 = height * rng.random_range(0.1..0.9);
        let strength = rng.random_range(0.15..0.8);
        let level: [f64; 3] = std::array::from_fn(|_| rng.random_range(0.0..255.0));
        let length = side * rng.random_range(0.05..0.33);
        let angle = rng.random_range(0.0..std::f64::consts::PI);
        let (dx, dy) = (angle.cos(), angle.sin());
        let shift = (rng.random_range(0.2..0.8) * width, rng.random_range(0.2..0.8) * height);
        let mut drawn = good.clone();
        for (x, y, pixel) in drawn.enumerate_pixels_mut() {
            let (px, py) = (f64::from(x) - x0, f64::from(y) - y0);
            let (along, across) = (px * dx + py * dy, px * dy - py * dx);
            let (inside, strength, new) = match self {
                Self::Blot => (px.hypot(py) <= length / 5.0 + side / 50.0, strength, level),
                Self::Scratch => {
                    (along.abs() <= length / 2.0 && across.abs() <= side / 200.0, 1.0, level)
                }
                Self::Displaced => {
                    let from_x = ((f64::from(x) + shift.0) % width) as u32;
                    let from_y = ((f64::from(y) + shift.1) % height) as u32;
                    let from = good.get_pixel(from_x, from_y).0.map(f64::from);
                    (px.abs().max(py.abs()) <= length / 3.0, 1.0, from)
                }
            };
            if inside {
                for (old, new) in pixel.0.iter_mut().zip(new) {
                    *old = (f64::from(*old) * (1.0 - strength) + new * strength).round() as u8;
                }
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::AnomalyMap;

    fn map(scores: &[f32]) -> Detection {
        let map = AnomalyMap { width: scores.len(), height: 1, scores: scores.to_vec() };
        Detection { score: 0.0, map }
    }

    #[test]
    fn maps_that_differ_in_scale_correlate_and_others_do_not() {
        let first = map(&[0.0, 1.0, 4.0, 2.0]);
        assert!((correlation(&first, &map(&[1.0, 3.0, 9.0, 5.0])) - 1.0).abs() < 1e-12);
        // numpy.corrcoef([0, 1, 4, 2], [0, 4, 1, 2])[0, 1]
        assert!((correlation(&first, &map(&[0.0, 4.0, 1.0, 2.0])) - -0.028_571_428).abs() < 1e-6);
        assert_eq!(correlation(&first, &map(&[2.0; 4])), 0.0);
        assert_eq!(correlation(&map(&[1.0; 4]), &map(&[2.0; 4])), 1.0);
    }

    #[test]
    fn int8_passes_where_it_costs_little() {
        let check = |auroc_int8, map_correlation| PrecisionCheck {
            goods: 1,
            anomalies: 3,
            auroc_f32: 0.99,
            auroc_int8,
            map_correlation,
        };
        assert!(passes(&check(0.9895, 0.995)) && passes(&check(1.0, 0.99)));
        assert!(!passes(&check(0.988, 0.995)) && !passes(&check(0.99, 0.98)));
        assert!(!passes(&check(f64::NAN, 0.995)) && !passes(&check(0.99, f64::NAN)));
    }
}
