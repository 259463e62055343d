//! Making a bundle from pictures of good parts: features, coreset, thresholds, golden pictures.
//!
//! Good parts are split by the seed: most make the memory bank, the held-out ones are only scored,
//! so that their scores are what the next good part's will be (see [`crate::calibrate`]). The same
//! pictures, config and program give the same bundle, byte for byte.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use image::{GrayImage, RgbImage};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::calibrate;
use crate::camera;
use crate::detector::bundle::{self, Card, Golden, TrainingData};
use crate::detector::input::Input;
use crate::detector::patch_prototypes::{self, LoadedBackbone, PatchFeatures, PatchPrototypes};
use crate::detector::{Detection, Detector};
use crate::frame::Image;
use crate::nn::{BackboneSpec, weights};
use crate::ops::coreset::{self, CoresetConfig};

/// What to make.
#[derive(Clone, Debug)]
pub struct Config {
    pub backbone: BackboneSpec,
    pub input: Input,
    /// Every draw comes from it: split, projection, first centre.
    pub seed: u64,
    pub bank: BankSize,
    /// Share of the good parts that is kept out of the memory bank for the thresholds.
    pub holdout: f64,
    /// Rate of good parts that may be rejected: 0.001 is 1000 ppm.
    pub false_rejects: f64,
    /// Bits a sample that 16-bit grey files really carry, 8 to 16; see [`camera::folder::decode`].
    pub significant_bits: u32,
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

/// A picture of a good part.
#[derive(Clone, Debug)]
pub enum Good {
    File { name: String, path: PathBuf },
    Picture { name: String, image: Image },
}

/// What teaching these pictures will take; made before the work starts.
#[derive(Clone, Debug)]
pub struct Plan {
    taught: Vec<Good>,
    held_out: Vec<Good>,
    /// P, a picture.
    patches: usize,
    /// D.
    dims: usize,
    /// Of the backbone's tensors that the bundle will carry.
    backbone_bytes: u64,
    pub prototypes: usize,
}

/// Where the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Pictures.
    Features,
    /// Prototypes.
    Coreset,
    /// Pictures.
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
    weights: BTreeMap<String, Tensor>,
    golden: Vec<Golden>,
}

/// The pictures lying in `folder` (not in folders below it), in byte order of their names.
///
/// # Errors
/// A folder that can't be read, or has no picture in it.
pub fn pictures_in(folder: &Path) -> Result<Vec<Good>> {
    let names = camera::folder::list(folder, false)
        .context("good parts (folders below are not looked into: give the folder of good ones)")?;
    let good = |name: PathBuf| Good::File {
        path: folder.join(&name),
        name: name.to_string_lossy().into_owned(),
    };
    Ok(names.into_iter().map(good).collect())
}

impl Config {
    pub fn check(&self) -> Result<()> {
        self.input.check()?;
        ensure!(
            self.holdout > 0.0 && self.holdout <= 0.8,
            "holdout = {}: must be a share above 0 and up to 0.8 (0.2 is usual)",
            self.holdout
        );
        ensure!(
            (calibrate::LEAST_RATE..=0.5).contains(&self.false_rejects),
            "false_rejects = {}: must be a rate from {} to 0.5 (0.001 is one good part in a \
             thousand)",
            self.false_rejects,
            calibrate::LEAST_RATE
        );
        Ok(())
    }

    /// Splits the pictures and counts what is coming.
    ///
    /// # Errors
    /// Too few pictures, or a memory bank larger than they can fill.
    pub fn plan(&self, mut goods: Vec<Good>, loaded: &LoadedBackbone) -> Result<Plan> {
        self.check()?;
        let total = goods.len();
        ensure!(
            total >= LEAST_PICTURES,
            "{total} pictures of good parts: at least {LEAST_PICTURES} are needed, 50 and more \
             are sensible"
        );
        // two is what it takes to see a spread at all
        let held_out = ((total as f64 * self.holdout).round() as usize).max(2);
        ensure!(
            total - held_out >= LEAST_TAUGHT,
            "holdout = {} leaves {} of {total} pictures to teach with: hold out fewer",
            self.holdout,
            total - held_out
        );
        goods.sort_by(|a, b| a.name().cmp(b.name()));
        ensure!(
            goods.windows(2).all(|pair| pair[0].name() != pair[1].name()),
            "two pictures have the same name"
        );
        goods.shuffle(&mut self.rng(Draw::Split));
        let held_out = goods.split_off(total - held_out);
        let (rows, columns) = patch_prototypes::grid(self.input);
        let patches = rows * columns;
        let all = goods.len() * patches;
        let prototypes = match self.bank {
            BankSize::Usual => USUAL_PROTOTYPES.min(all / 2),
            BankSize::Count(count) => count,
            BankSize::Ratio(ratio) => {
                ensure!(ratio > 0.0 && ratio <= 1.0, "ratio = {ratio}: must be above 0, up to 1");
                (all as f64 * ratio).ceil() as usize
            }
        };
        ensure!(
            (patch_prototypes::NEIGHBOURS..=all).contains(&prototypes),
            "{prototypes} prototypes: must be from {} to the {all} patches of {} pictures",
            patch_prototypes::NEIGHBOURS,
            goods.len()
        );
        Ok(Plan {
            taught: goods,
            held_out,
            patches,
            dims: patch_prototypes::dims(loaded.backbone.as_ref()),
            backbone_bytes: loaded.tensors.values().map(|t| t.elem_count() as u64 * 4).sum(),
            prototypes,
        })
    }

    /// A stream of its own for each thing drawn, so that one more draw here does not shift another
    /// there.
    fn rng(&self, draw: Draw) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(draw as u64);
        rng
    }
}

impl Plan {
    pub fn pictures(&self) -> usize {
        self.taught.len() + self.held_out.len()
    }

    pub fn held_out(&self) -> usize {
        self.held_out.len()
    }

    /// Bytes that the work needs at its peak.
    pub fn bytes(&self) -> u64 {
        self.parts().iter().sum()
    }

    /// The arithmetic behind [`Plan::bytes`], for people.
    pub fn arithmetic(&self) -> String {
        let all = self.taught.len() * self.patches;
        let [features, projected, bank, work] = self.parts().map(mib);
        format!(
            "{:.0} MiB: features {} pictures × {} patches × {} channels × 4 bytes = {features:.0}, \
             projected {all} × ({} + 2) × 4 = {projected:.0}, memory bank {} × {} × 4 × 2 = {bank:.0}, \
             program and backbone {work:.0}",
            mib(self.bytes()),
            self.taught.len(),
            self.patches,
            self.dims,
            PROJECTED_DIMS,
            self.prototypes,
            self.dims,
        )
    }

    /// # Errors
    /// The work does not fit into `available` bytes; with the arithmetic.
    pub fn check_memory(&self, available: u64) -> Result<()> {
        ensure!(
            self.bytes() <= available,
            "teaching does not fit into memory: it needs {}, and {:.0} MiB are there; teach with \
             fewer pictures, a smaller --size, or a larger --max-memory-gib if you know better",
            self.arithmetic(),
            mib(available)
        );
        Ok(())
    }

    /// Features, projected features with the nearest centre of each and its distance, the memory
    /// bank twice (as rows and as tiles of the search), and what does not grow with the pictures:
    /// the backbone twice (as the bundle keeps it and folded), a batch under way, the program.
    fn parts(&self) -> [u64; 4] {
        let patches = (self.taught.len() * self.patches) as u64;
        [
            patches * self.dims as u64 * 4,
            patches * (PROJECTED_DIMS as u64 + 2) * 4,
            (self.prototypes * self.dims) as u64 * 4 * 2,
            self.backbone_bytes * 2
                + WORK_BYTES_A_PATCH * (self.patches * BATCH) as u64
                + PROGRAM_BYTES,
        ]
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
    progress: &mut dyn FnMut(Step, usize, usize),
) -> Result<Taught> {
    let LoadedBackbone { backbone, tensors: backbone_tensors } = loaded;
    let backbone_card = bundle::BackboneCard {
        network: config.backbone.word().to_owned(),
        sha256: backbone.sha256().to_owned(),
    };
    let extractor = PatchFeatures::new(config.input, backbone)?;
    let dims = extractor.dims();
    let mut register = Register::default();
    let rows = memory_bank(config, &plan, &extractor, &mut register, progress)?;
    let (taught, prototypes) = (register.used.len(), rows.len() / dims);
    let mut detector = PatchPrototypes::new(extractor, rows)?;

    let mut judged = Vec::with_capacity(plan.held_out.len());
    let mut golden_images = Vec::new();
    for (i, batch) in plan.held_out.chunks(BATCH).enumerate() {
        let images = register.read(batch, config.significant_bits);
        if !images.is_empty() {
            let detections = detector.detect(&images.iter().collect::<Vec<_>>())?;
            judged.extend(detections.iter().map(scores));
        }
        let wanted = GOLDEN_GOODS - golden_images.len();
        golden_images.extend(images.into_iter().take(wanted));
        progress(Step::Calibration, i * BATCH + batch.len(), plan.held_out.len());
    }
    register.check(LEAST_PICTURES, plan.pictures())?;
    let (scores, maxima): (Vec<f32>, Vec<f32>) = judged.into_iter().unzip();
    let (threshold, calibration) = calibrate::limits(&scores, &maxima, config.false_rejects)
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
        input: config.input,
        backbone: backbone_card,
        prototypes: patch_prototypes::Card {
            levels: patch_prototypes::LEVELS.to_vec(),
            neighbourhood: patch_prototypes::NEIGHBOURHOOD,
            count: prototypes,
            dims,
            patches: taught * plan.patches,
            projected_dims: PROJECTED_DIMS.min(dims),
        },
        threshold,
        calibration,
        training_data: TrainingData {
            sha256: register.sha256(),
            taught,
            held_out: scores.len(),
            significant_bits: config.significant_bits,
            unreadable: register.unreadable.len(),
            copies: register.copies.len(),
        },
        files: BTreeMap::new(),
    };
    let weights = detector.tensors(&backbone_tensors)?;
    let Register { unreadable, copies, .. } = register;
    Ok(Taught { card, unreadable, copies, blot_score, weights, golden })
}

/// The prototypes [N, D] of the pictures to be taught.
fn memory_bank(
    config: &Config,
    plan: &Plan,
    extractor: &PatchFeatures,
    register: &mut Register,
    progress: &mut dyn FnMut(Step, usize, usize),
) -> Result<Vec<f32>> {
    let dims = extractor.dims();
    let total = plan.taught.len();
    let mut features = Vec::with_capacity(total * plan.patches * dims); // [patches, D]
    progress(Step::Features, 0, total);
    for (i, batch) in plan.taught.chunks(BATCH).enumerate() {
        let images = register.read(batch, config.significant_bits);
        if !images.is_empty() {
            features.extend(extractor.extract(&images.iter().collect::<Vec<_>>())?);
        }
        progress(Step::Features, i * BATCH + batch.len(), total);
    }
    register.check(LEAST_TAUGHT, plan.pictures())?;
    let patches = features.len() / dims;
    ensure!(
        plan.prototypes <= patches,
        "{} prototypes, but the {} pictures that could be used have only {patches} patches",
        plan.prototypes,
        register.used.len(),
    );
    let choice = CoresetConfig { target: plan.prototypes, projection: PROJECTED_DIMS };
    let mut rng = config.rng(Draw::Coreset);
    let centres = coreset::select(&features, dims, &choice, &mut rng, |done, total| {
        progress(Step::Coreset, done, total);
    })?;
    let row = |centre: usize| &features[centre * dims..(centre + 1) * dims];
    Ok(centres.into_iter().flat_map(row).copied().collect())
}

impl Taught {
    /// Puts the bundle into `folder`; see [`bundle::write`].
    pub fn write(self, folder: &Path, replace: bool) -> Result<()> {
        bundle::write(folder, self.card, &self.weights, &self.golden, replace)
    }
}

impl Good {
    fn name(&self) -> &str {
        match self {
            Good::File { name, .. } | Good::Picture { name, .. } => name,
        }
    }

    /// The picture and the SHA-256 of its contents.
    fn read(&self, significant_bits: u32) -> Result<(Image, [u8; 32])> {
        match self {
            Good::File { path, .. } => {
                let bytes = fs::read(path)?;
                let image = camera::folder::decode(&bytes, significant_bits)?;
                Ok((image, Sha256::digest(&bytes).into()))
            }
            Good::Picture { image, .. } => {
                let (samples, pixels): (u8, &[u8]) = match image {
                    Image::Gray(gray) => (1, gray.as_raw()),
                    Image::Rgb(rgb) => (3, rgb.as_raw()),
                };
                let mut hash = Sha256::new_with_prefix([samples]);
                hash.update(image.width().to_le_bytes());
                hash.update(image.height().to_le_bytes());
                hash.update(pixels);
                Ok((image.clone(), hash.finalize().into()))
            }
        }
    }
}

/// What was read so far and what was left out.
#[derive(Default)]
struct Register {
    used: BTreeMap<String, [u8; 32]>,
    contents: HashSet<[u8; 32]>,
    unreadable: Vec<(String, String)>,
    copies: Vec<String>,
}

impl Register {
    /// The pictures of `goods` that can be read and were not seen before, in order.
    fn read(&mut self, goods: &[Good], significant_bits: u32) -> Vec<Image> {
        let read: Vec<_> = goods.par_iter().map(|good| good.read(significant_bits)).collect();
        let mut images = Vec::with_capacity(goods.len());
        for (good, read) in goods.iter().zip(read) {
            let name = good.name().to_owned();
            match read {
                Err(error) => self.unreadable.push((name, format!("{error:#}"))),
                Ok((_, contents)) if !self.contents.insert(contents) => self.copies.push(name),
                Ok((image, contents)) => {
                    self.used.insert(name, contents);
                    images.push(image);
                }
            }
        }
        images
    }

    fn check(&self, least: usize, pictures: usize) -> Result<()> {
        let usable = self.used.len();
        let listed = || {
            let lines = self.unreadable.iter().take(10);
            lines.map(|(name, why)| format!("\n  {name}: {why}")).collect::<String>()
        };
        let bad = self.unreadable.len();
        ensure!(
            bad * 10 <= pictures,
            "{bad} of {pictures} pictures can't be read, more than a tenth; repair or remove them:{}",
            listed()
        );
        ensure!(
            usable >= least,
            "only {usable} pictures are left where {least} are needed ({bad} can't be read, {} are copies of \
             others){}",
            self.copies.len(),
            listed()
        );
        Ok(())
    }

    /// Over `name`, a zero byte and the SHA-256 of the contents of each picture used, by name.
    fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (name, contents) in &self.used {
            hash.update(name.as_bytes());
            hash.update([0]);
            hash.update(contents);
        }
        weights::hex(&hash.finalize())
    }
}

#[derive(Clone, Copy)]
enum Draw {
    Split,
    Coreset,
}

/// Pictures decoded and scored in one go: enough for both cores, small beside the features.
const BATCH: usize = 8;

/// Fewer can't be split into a memory bank and a spread of held-out scores.
const LEAST_PICTURES: usize = 5;

/// Of them, to make the memory bank.
const LEAST_TAUGHT: usize = 3;

/// Goods among the golden pictures; a blotted one is added.
const GOLDEN_GOODS: usize = 3;

/// Enough for the AUROC of the whole bank on MVTec AD's classes within a few thousandths (Roth et
/// al. 2022, table 3: 1 % and 10 % of the patches differ by 0.1 points), at a few milliseconds.
const USUAL_PROTOTYPES: usize = 3000;

/// Johnson–Lindenstrauss dimension for the choice of prototypes; the search uses all channels.
const PROJECTED_DIMS: usize = 128;

/// Activations and unfolded convolutions that live at once, bytes a patch of a batch. With
/// [`PROGRAM_BYTES`] it covers the peaks seen at 256 × 256: 80 MiB beside the features for
/// `compact`, 117 for `resnet18`, 249 for `resnet50`.
const WORK_BYTES_A_PATCH: u64 = 16 << 10;

/// The program and its libraries.
const PROGRAM_BYTES: u64 = 64 << 20;

/// The image score and the largest value of the anomaly map.
fn scores(detection: &Detection) -> (f32, f32) {
    let largest = detection.map.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (detection.score, largest)
}

/// The picture with a round blot a little off the middle, an eighth of its shorter side across:
/// light where it is dark there, and dark where it is light.
fn blot(image: &Image) -> Image {
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

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
