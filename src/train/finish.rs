//! From a trained network to a bundle: thresholds from good parts that it has not learned from, golden
//! pictures, the card.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::parameters::Parameters;
use crate::calibrate;
use crate::detector::Detector;
use crate::detector::bundle::{self, BackboneCard, Card, Golden, System, TrainingData};
use crate::detector::input::Input;
use crate::nn::engine::Engine;
use crate::nn::plan::Precision;
use crate::teach::pictures::{Good, Register};
use crate::teach::{GOLDEN_GOODS, blot, scores};

/// What the card says of how the network came about.
#[derive(Clone, Debug)]
pub struct Origin {
    pub system: System,
    pub input: Input,
    /// The teacher.
    pub backbone: BackboneCard,
    pub seed: u64,
    pub significant_bits: u32,
    /// `None` of a network that was trained elsewhere.
    pub training: Option<bundle::Training>,
    /// Defects of the test set that were learned from, by name.
    pub seen_anomalies: Vec<String>,
}

/// The pictures.
pub struct Goods<'a> {
    /// Learned from.
    pub taught: &'a [Good],
    /// Only scored, for the thresholds.
    pub held_out: &'a [Good],
}

/// A bundle, not yet on disk.
pub struct Finished {
    pub card: Card,
    pub golden: Vec<Golden>,
}

/// Scores the held-out pictures with what was learned and finds the thresholds.
///
/// # Errors
/// Too few pictures, too many of them unreadable; scores that no threshold can be found on.
pub fn finish(
    parameters: &Parameters,
    origin: &Origin,
    goods: &Goods<'_>,
    false_rejects: f64,
    engine: &Engine,
) -> Result<Finished> {
    let weights = parameters.weights("the trained network")?;
    let mut detector = origin.system.detector(origin.input, &weights, engine)?;
    let bits = origin.significant_bits;
    let mut register = Register::default();
    for some in goods.taught.chunks(BATCH) {
        register.read(some, bits);
    }
    let taught = register.used.len();
    let (mut judged, mut pictures) = (Vec::new(), Vec::new());
    for some in goods.held_out.chunks(BATCH) {
        for image in register.read(some, bits) {
            judged.push(scores(&one(detector.as_mut(), &image)?.detection));
            if pictures.len() < GOLDEN_GOODS {
                pictures.push(image);
            }
        }
    }
    register.check(LEAST, goods.taught.len() + goods.held_out.len())?;
    ensure!(!pictures.is_empty(), "no held-out picture could be read");
    let (scores, maxima): (Vec<f32>, Vec<f32>) = judged.into_iter().unzip();
    let units = origin.system.units();
    let (threshold, calibration) = calibrate::limits(&scores, &maxima, false_rejects, None, units)
        .context("finding the thresholds")?;
    pictures.push(blot(&pictures[0]));
    let golden: Vec<Golden> =
        pictures.iter().map(|image| one(detector.as_mut(), image)).collect::<Result<_>>()?;
    let mut card = Card {
        system: String::new(),
        version: bundle::VERSION,
        inspectd: env!("CARGO_PKG_VERSION").to_owned(),
        revision: option_env!("INSPECTD_REVISION").unwrap_or("unknown").to_owned(),
        seed: origin.seed,
        precision: Precision::F32,
        input: origin.input,
        tiles: None,
        backbone: origin.backbone.clone(),
        prototypes: None,
        destseg: None,
        ntsnet: None,
        prn: None,
        mlff: None,
        int8: None,
        threshold,
        calibration,
        training_data: TrainingData {
            sha256: register.sha256(),
            taught,
            held_out: register.used.len() - taught,
            significant_bits: bits,
            unreadable: register.unreadable.len(),
            copies: register.copies.len(),
            seen_anomalies: origin.seen_anomalies.clone(),
        },
        training: origin.training,
        files: BTreeMap::new(),
    };
    origin.system.write(&mut card);
    Ok(Finished { card, golden })
}

fn one(detector: &mut dyn Detector, image: &crate::frame::Image) -> Result<Golden> {
    let detection = detector.detect(&[image])?.pop().context("no detection")?;
    Ok(Golden { image: image.clone(), detection })
}

/// Pictures decoded side by side.
const BATCH: usize = 8;

/// Pictures that a model may be made of.
const LEAST: usize = 5;
