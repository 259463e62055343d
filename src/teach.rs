//! Making a bundle from pictures of good parts: features, coreset, thresholds, golden pictures.
//!
//! A good part's score says what the next good part's will be only if it is not in the memory bank
//! that scores it. Where there are many good parts, some are held out for that; where there are few,
//! each is scored by a memory bank of others, and then all of them make the finished one
//! ([`HoldOut`]). What either promises is said in [`crate::calibrate`]. Who goes where is drawn from
//! the seed: the same pictures, config and program give the same bundle, byte for byte.

pub mod few;
mod folds;
pub(crate) mod pictures;
mod plan;
pub mod precision;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use image::{GrayImage, RgbImage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use pictures::{Good, pictures_in};
pub use plan::Plan;

use crate::calibrate;
use crate::detector::bundle::{self, Card, Golden, PrecisionCheck, TrainingData, Units};
use crate::detector::input::Input;
use crate::detector::patch_prototypes::{self, LoadedBackbone, PatchFeatures, PatchPrototypes};
use crate::detector::{Detection, Detector, tiles};
use crate::frame::Image;
use crate::nn::BackboneSpec;
use crate::nn::engine::Engine;
use crate::nn::plan::Precision;
use crate::ops::coreset::{self, CoresetConfig};
use pictures::Register;

/// What to make.
#[derive(Clone, Debug)]
pub struct Config {
    pub backbone: BackboneSpec,
    pub input: Input,
    /// Every draw comes from it: split or folds, projection, first centre.
    pub seed: u64,
    pub bank: BankSize,
    pub holdout: HoldOut,
    /// Rate of good parts that may be rejected: 0.001 is 1000 ppm.
    pub false_rejects: f64,
    /// Bits a sample that 16-bit grey files really carry, 8 to 16; see
    /// [`crate::camera::folder::decode`].
    pub significant_bits: u32,
    pub precision: precision::Wanted,
    /// Teach on tiles of the pictures, as [`crate::detector::tiles`] will inspect them: good parts
    /// are still whole pictures, each with the largest of its tiles' scores.
    pub tiles: Option<tiles::Layout>,
}

/// How many prototypes the coreset keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BankSize {
    /// 3000, or half of the patches where there are fewer than 6000.
    Usual,
    Count(usize),
    /// Of the patches of good parts, in (0, 1].
    Ratio(f64),
}

/// Which good parts the thresholds are found on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HoldOut {
    /// Five folds of fewer than 100 pictures; from there on a fifth of them is held out.
    Auto,
    /// This share is kept out of the memory bank and only scored.
    Split(f64),
    /// All, cut into so many folds: each fold is scored by a memory bank of the others, and the
    /// finished one is made of all.
    Folds(usize),
}

/// Where the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Pictures.
    Features,
    /// Prototypes of the memory bank that scores fold `fold`, 1 to `folds`.
    Fold { fold: usize, folds: usize },
    /// Prototypes of the finished memory bank.
    Coreset,
    /// Held-out pictures; where there are folds this step does not come.
    Calibration,
}

/// A model, not yet on disk.
pub struct Taught {
    pub card: Card,
    /// Files that could not be read, with the reason; the rest was taught.
    pub unreadable: Vec<(String, String)>,
    /// Names of files left out because another has the very same contents.
    pub copies: Vec<String>,
    /// The score of a good part that we put a blot on; below the threshold something is wrong.
    pub blot_score: f32,
    /// Where int8 was tried; what the card says was chosen.
    pub precision: Option<PrecisionCheck>,
    weights: BTreeMap<String, Tensor>,
    golden: Vec<Golden>,
}

impl Config {
    pub fn check(&self) -> Result<()> {
        self.input.check()?;
        match self.holdout {
            HoldOut::Split(share) => ensure!(
                share > 0.0 && share <= 0.8,
                "holdout = {share}: must be a share above 0 and up to 0.8 ({USUAL_SHARE} is usual)"
            ),
            HoldOut::Folds(folds) => {
                ensure!(folds >= 2, "folds = {folds}: must be 2 or more ({USUAL_FOLDS} is usual)");
            }
            HoldOut::Auto => {}
        }
        ensure!(
            (calibrate::LEAST_RATE..=0.5).contains(&self.false_rejects),
            "false_rejects = {}: must be a rate from {} to 0.5 (0.001 is one good part in a \
             thousand)",
            self.false_rejects,
            calibrate::LEAST_RATE
        );
        if let Some(layout) = self.tiles {
            layout.check()?;
            ensure!(
                self.precision == precision::Wanted::F32,
                "int8 is measured on whole pictures: teach on tiles in f32"
            );
        }
        Ok(())
    }

    /// What the model sees of a picture, which has `tiles` tiles as all have.
    fn pieces(&self, picture: Image, tiles: usize) -> Result<Vec<Image>> {
        let Some(layout) = self.tiles else { return Ok(vec![picture]) };
        let pieces = layout.tiles(&picture)?;
        ensure!(
            pieces.len() == tiles,
            "a picture of {} × {} pixels has {} tiles, the first one had {tiles}: teach with pictures of \
             one size",
            picture.width(),
            picture.height(),
            pieces.len()
        );
        Ok(pieces)
    }

    /// A stream of its own for each thing drawn, so that one more draw here does not shift another
    /// there.
    fn rng(&self, draw: Draw) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(draw.stream());
        rng
    }
}

impl BankSize {
    /// N, of so many patches.
    ///
    /// # Errors
    /// A ratio that is none.
    fn prototypes(self, patches: usize) -> Result<usize> {
        match self {
            BankSize::Usual => Ok(USUAL_PROTOTYPES.min(patches / 2)),
            BankSize::Count(count) => Ok(count),
            BankSize::Ratio(ratio) => {
                ensure!(ratio > 0.0 && ratio <= 1.0, "ratio = {ratio}: must be above 0, up to 1");
                Ok((patches as f64 * ratio).ceil() as usize)
            }
        }
    }
}

impl HoldOut {
    /// K, if so many pictures go into folds.
    fn folds(self, pictures: usize) -> Option<usize> {
        match self {
            HoldOut::Folds(folds) => Some(folds),
            HoldOut::Auto => (pictures < SPLIT_FROM).then_some(USUAL_FOLDS),
            HoldOut::Split(_) => None,
        }
    }

    /// The share held out where there are no folds.
    fn share(self) -> f64 {
        if let HoldOut::Split(share) = self { share } else { USUAL_SHARE }
    }
}

/// Teaches. `progress` hears of each step `(step, done, total)`.
///
/// # Errors
/// More than a tenth of the pictures unreadable, fewer than 5 left, scores that no threshold can be
/// found on.
pub fn teach(
    config: &Config,
    plan: Plan,
    loaded: LoadedBackbone,
    engine: &Engine,
    progress: &mut dyn FnMut(Step, usize, usize),
) -> Result<Taught> {
    let LoadedBackbone { backbone, tensors: backbone_tensors } = loaded;
    let backbone_card = bundle::BackboneCard {
        network: config.backbone.word().to_owned(),
        sha256: backbone.sha256().to_owned(),
    };
    let (int8, precision) = precision::choose(config, &plan, &backbone, engine)?;
    let mut extractor = match &int8 {
        Some(int8) => PatchFeatures::quantized(config.input, &backbone, &int8.scales, engine)?,
        None => PatchFeatures::new(config.input, &backbone, engine)?,
    };
    drop(backbone);
    let dims = extractor.dims();
    let mut register = Register::default();
    let (mut features, first) = extract(config, &plan, &mut extractor, &mut register, progress)?;
    let taught = register.used.len();

    let (extractor, mut judged, mut golden_images) = match plan.folds {
        Some(folds) => {
            let (extractor, judged) =
                folds::cross_fit(config, (folds, plan.tiles), extractor, &mut features, progress)?;
            (extractor, judged, first)
        }
        None => (extractor, Vec::with_capacity(plan.held_out.len()), Vec::new()),
    };
    let mut rng = config.rng(Draw::Coreset);
    let rows = memory_bank(config.bank, &features, dims, &mut rng, &mut |done, total| {
        progress(Step::Coreset, done, total);
    })?;
    drop(features);
    let prototypes = rows.len() / dims;
    let mut detector = PatchPrototypes::new(extractor, rows)?;

    for (i, batch) in plan.held_out.chunks(BATCH).enumerate() {
        for image in register.read(batch, config.significant_bits) {
            let mut pieces = config.pieces(image, plan.tiles)?;
            let detections = detector.detect(&pieces.iter().collect::<Vec<_>>())?;
            judged.push(worst(&detections));
            if golden_images.len() < GOLDEN_GOODS {
                golden_images.push(pieces.swap_remove(plan.tiles / 2));
            }
        }
        progress(Step::Calibration, i * BATCH + batch.len(), plan.held_out.len());
    }
    register.check(LEAST_PICTURES, plan.pictures())?;
    let (scores, maxima): (Vec<f32>, Vec<f32>) = judged.into_iter().unzip();
    let (threshold, calibration) =
        calibrate::limits(&scores, &maxima, config.false_rejects, plan.folds, Units::Positive)
            .context("finding the thresholds")?;

    let blotted = blot(&golden_images[0]);
    golden_images.push(blotted);
    let golden = golden_images
        .into_iter()
        .map(|image| {
            let detection = detector.detect(&[&image])?.pop().context("no detection")?;
            Ok(Golden { image, detection })
        })
        .collect::<Result<Vec<_>>>()?;
    let blot_score = golden.last().map_or(0.0, |golden| golden.detection.score);

    let card = Card {
        system: patch_prototypes::SYSTEM.to_owned(),
        version: bundle::VERSION,
        inspectd: env!("CARGO_PKG_VERSION").to_owned(),
        revision: option_env!("INSPECTD_REVISION").unwrap_or("unknown").to_owned(),
        seed: config.seed,
        precision: if int8.is_some() { Precision::Int8 } else { Precision::F32 },
        input: config.input,
        tiles: config.tiles,
        backbone: backbone_card,
        prototypes: Some(patch_prototypes::Card {
            levels: patch_prototypes::LEVELS.to_vec(),
            neighbourhood: patch_prototypes::NEIGHBOURHOOD,
            count: prototypes,
            dims,
            patches: taught * plan.patches,
            projected_dims: PROJECTED_DIMS.min(dims),
        }),
        destseg: None,
        ntsnet: None,
        prn: None,
        mlff: None,
        int8,
        threshold,
        calibration,
        training_data: TrainingData {
            sha256: register.sha256(),
            taught,
            held_out: register.used.len() - taught,
            significant_bits: config.significant_bits,
            unreadable: register.unreadable.len(),
            copies: register.copies.len(),
            seen_anomalies: Vec::new(),
        },
        training: None,
        files: BTreeMap::new(),
    };
    let weights = detector.tensors(&backbone_tensors)?;
    let Register { unreadable, copies, .. } = register;
    Ok(Taught { card, unreadable, copies, blot_score, precision, weights, golden })
}

/// The features [pictures · P, D] of the pictures to be taught, and the first few pictures (of each, the
/// tile in the middle).
fn extract(
    config: &Config,
    plan: &Plan,
    extractor: &mut PatchFeatures,
    register: &mut Register,
    progress: &mut dyn FnMut(Step, usize, usize),
) -> Result<(Vec<f32>, Vec<Image>)> {
    let total = plan.taught.len();
    let mut features = Vec::with_capacity(total * plan.patches * extractor.dims());
    let mut first = Vec::new();
    progress(Step::Features, 0, total);
    for (i, batch) in plan.taught.chunks(BATCH).enumerate() {
        for image in register.read(batch, config.significant_bits) {
            let mut pieces = config.pieces(image, plan.tiles)?;
            features.extend(extractor.extract(&pieces.iter().collect::<Vec<_>>())?);
            if first.len() < GOLDEN_GOODS {
                first.push(pieces.swap_remove(plan.tiles / 2));
            }
        }
        progress(Step::Features, i * BATCH + batch.len(), total);
    }
    let least = if plan.folds.is_some() { LEAST_PICTURES } else { LEAST_TAUGHT };
    register.check(least, plan.pictures())?;
    Ok((features, first))
}

/// The prototypes [N, D] that stand for `features` [patches, D].
pub(crate) fn memory_bank(
    size: BankSize,
    features: &[f32],
    dims: usize,
    rng: &mut impl Rng,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<f32>> {
    let patches = features.len() / dims;
    let prototypes = size.prototypes(patches)?;
    ensure!(
        prototypes <= patches,
        "{prototypes} prototypes, but the pictures that could be used have only {patches} patches"
    );
    let choice = CoresetConfig { target: prototypes, projection: PROJECTED_DIMS };
    let centres = coreset::select(features, dims, &choice, rng, progress)?;
    let row = |centre: usize| &features[centre * dims..(centre + 1) * dims];
    Ok(centres.into_iter().flat_map(row).copied().collect())
}

impl Taught {
    /// Puts the bundle into `folder`; see [`bundle::write`].
    pub fn write(self, folder: &Path, replace: bool) -> Result<()> {
        bundle::write(folder, self.card, &self.weights, &self.golden, replace)
    }
}

/// What is drawn; folds are cut from the order that the split is drawn in.
#[derive(Clone, Copy)]
enum Draw {
    Split,
    Coreset,
    Fold(usize),
    /// Of the comparison with int8.
    Precision,
    /// Which few good parts are taken; see [`few`].
    FewShot,
}

impl Draw {
    fn stream(self) -> u64 {
        match self {
            Draw::Split => 0,
            Draw::Coreset => 1,
            Draw::Fold(fold) => 2 + fold as u64,
            Draw::Precision => u64::MAX,
            Draw::FewShot => u64::MAX - 1,
        }
    }
}

/// Pictures decoded and scored in one go: enough for both cores, small beside the features.
const BATCH: usize = 8;

/// Fewer can't be split into a memory bank and a spread of held-out scores.
const LEAST_PICTURES: usize = 5;

/// Of them, to make the memory bank.
const LEAST_TAUGHT: usize = 3;

/// Pictures from which on a fifth of them is enough to see how far scores vary. At 1000 ppm the
/// limit that 20 held-out parts bear lies t(19, 0.999) · √(1 + 1/20) = 3.67 standard deviations
/// above their mean, where ever so many would bring it to 3.09; that of 6 held-out parts lies 6.37
/// above, where defects are. A split costs one memory bank instead of six.
const SPLIT_FROM: usize = 100;

/// K: the usual number (Hastie et al. 2009, section 7.10). A fold's memory bank has four fifths of
/// the pictures, as many as a split would leave it.
const USUAL_FOLDS: usize = 5;

/// As many for the thresholds as one of five folds.
const USUAL_SHARE: f64 = 0.2;

/// Goods among the golden pictures; a blotted one is added.
pub(crate) const GOLDEN_GOODS: usize = 3;

/// Enough for the AUROC of the whole bank on MVTec AD's classes within a few thousandths (Roth et
/// al. 2022, table 3: 1 % and 10 % of the patches differ by 0.1 points), at a few milliseconds.
const USUAL_PROTOTYPES: usize = 3000;

/// Johnson–Lindenstrauss dimension for the choice of prototypes; the search uses all channels.
const PROJECTED_DIMS: usize = 128;

/// The image score and the largest value of the anomaly map.
pub(crate) fn scores(detection: &Detection) -> (f32, f32) {
    let largest = detection.map.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (detection.score, largest)
}

/// The largest score and the largest map value of the pieces of one picture.
fn worst(pieces: &[Detection]) -> (f32, f32) {
    let none = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    pieces.iter().map(scores).fold(none, |a, b| (a.0.max(b.0), a.1.max(b.1)))
}

/// The picture with a round blot a little off the middle, an eighth of its shorter side across:
/// light where it is dark there, and dark where it is light.
pub(crate) fn blot(image: &Image) -> Image {
    let (width, height) = (image.width(), image.height());
    let radius = f64::from(width.min(height)) / 16.0;
    let (x0, y0) = (f64::from(width) * 0.55, f64::from(height) * 0.45);
    let inside = |x: u32, y: u32| {
        (f64::from(x) - x0).powi(2) + (f64::from(y) - y0).powi(2) <= radius * radius
    };
    let opposite = |level: u8| if level < 128 { 230 } else { 25 };
    match image {
        Image::Gray(gray) => Image::Gray(GrayImage::from_fn(width, height, |x, y| {
            let mut pixel = *gray.get_pixel(x, y);
            if inside(x, y) {
                pixel.0 = pixel.0.map(opposite);
            }
            pixel
        })),
        Image::Rgb(rgb) => Image::Rgb(RgbImage::from_fn(width, height, |x, y| {
            let mut pixel = *rgb.get_pixel(x, y);
            if inside(x, y) {
                pixel.0 = pixel.0.map(opposite);
            }
            pixel
        })),
    }
}
