//! A trained detector on disk, a folder that can be copied to another machine:
//!
//! ```text
//! model.toml                   the card: what it is, what it was made from, what it promises
//! weights.safetensors          prototypes, and the user's backbone up to the level needed
//! golden/0.png … golden/3.png  good parts, and one of them with a blot
//! golden/expected.safetensors  their scores [G] and anomaly maps [G, H, W] when it was made
//! ```
//!
//! Nothing in it is ever executed, and the names of its files are fixed: a card can't point
//! outside of its folder. The card holds the SHA-256 of every other file.
//!
//! *Parity seal*: [`load`] scores the golden pictures again on this machine, at batch 1 and at the
//! batch that the line will use.

mod card;
mod seal;
mod system;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use image::{DynamicImage, ImageFormat};
use sha2::{Digest, Sha256};

pub use card::{
    BackboneCard, Calibration, Card, Int8, PrecisionCheck, Rule, Spread, Threshold, Training,
    TrainingData,
};
pub use seal::{Golden, SEAL_TOLERANCE, seal};
pub use system::{System, Units};

use super::patch_prototypes::PatchPrototypes;
use super::{AnomalyMap, Detection, Detector};
use crate::frame::Image;
use crate::nn::engine::Engine;
use crate::nn::weights::{Weights, hex};
use crate::unfinished::Unfinished;

/// The version of the folder's format that this program reads and writes.
pub const VERSION: u32 = 1;

/// A loaded bundle whose golden scores were reproduced on this machine.
pub struct Bundle {
    pub card: Card,
    pub detector: Box<dyn Detector>,
}

/// Loads and seals: checks every hash, recomputes the golden scores at batch 1 and at `batch`;
/// beyond [`SEAL_TOLERANCE`] it is an error and the line must not arm.
///
/// # Errors
/// A missing, changed or foreign file, a card that does not add up, weights that are not finite,
/// golden scores that are not reproduced; the message says which and what to do.
pub fn load(folder: &Path, batch: usize, engine: &Engine) -> Result<Bundle> {
    ensure!(batch > 0, "batch = 0: a batch takes at least one picture");
    let card = read_card(folder)?;
    let weights = read_tensors(folder, &card, WEIGHTS)?;
    let golden = read_golden(folder, &card)?;
    let mut detector =
        detector(&card, weights, engine).with_context(|| format!("bundle {}", folder.display()))?;
    seal(detector.as_mut(), &golden, batch)
        .with_context(|| format!("bundle {} does not pass its parity seal", folder.display()))?;
    Ok(Bundle { card, detector })
}

/// The detector of the card's system.
fn detector(
    card: &Card,
    tensors: BTreeMap<String, Tensor>,
    engine: &Engine,
) -> Result<Box<dyn Detector>> {
    let Some(system) = System::of(card).context(CARD)? else {
        return Ok(Box::new(PatchPrototypes::from_bundle(card, tensors, engine)?));
    };
    let weights = Weights::from_tensors(WEIGHTS, tensors)?;
    system.detector(card.input, &weights, engine)
}

/// The card alone, checked; nothing else of the bundle is read.
pub fn read_card(folder: &Path) -> Result<Card> {
    let path = folder.join(CARD);
    let text = fs::read_to_string(&path).with_context(|| {
        format!("reading {} (a bundle is a folder made by `inspectd teach`)", path.display())
    })?;
    let card: Card = toml::from_str(&text).with_context(|| path.display().to_string())?;
    card.check().with_context(|| path.display().to_string())?;
    Ok(card)
}

/// Whether a folder is meant as a bundle.
pub fn is_at(folder: &Path) -> bool {
    folder.join(CARD).is_file()
}

/// Refuses a place where [`write()`] would refuse to put a bundle; to be asked before the work.
pub fn check_place(folder: &Path, replace: bool) -> Result<()> {
    ensure!(
        folder.file_name().is_some(),
        "{}: a bundle needs a name, such as models/bottle.bundle",
        folder.display()
    );
    if folder.symlink_metadata().is_err() {
        return Ok(());
    }
    ensure!(
        replace,
        "{} is already there: choose another name, or replace it with --force",
        folder.display()
    );
    ensure!(
        is_at(folder),
        "{} is not a bundle (it has no {CARD}) and is not replaced, even with --force",
        folder.display()
    );
    Ok(())
}

/// Writes a bundle: into a hidden folder beside, then renamed, so that a reader never sees half of
/// one. `card.files` is filled in here. The same arguments give the same bytes.
///
/// # Errors
/// The place is taken (see [`check_place`]), the card does not add up, a disk error.
pub fn write(
    folder: &Path,
    mut card: Card,
    weights: &BTreeMap<String, Tensor>,
    golden: &[Golden],
    replace: bool,
) -> Result<()> {
    check_place(folder, replace)?;
    let mut contents = BTreeMap::from([
        (WEIGHTS.to_owned(), to_safetensors(weights)?),
        (EXPECTED.to_owned(), to_safetensors(&expected(golden)?)?),
    ]);
    for (i, golden) in golden.iter().enumerate() {
        contents.insert(picture_name(i), to_png(&golden.image)?);
    }
    card.files = contents.iter().map(|(name, bytes)| (name.clone(), sha256(bytes))).collect();
    card.check().context("the new bundle's card")?;
    let text = toml::to_string(&card).context("the new bundle's card")?;
    contents.insert(CARD.to_owned(), text.into_bytes());

    let unfinished = Unfinished::beside(folder)?;
    let inner = unfinished.path().join("golden");
    fs::create_dir(&inner).with_context(|| format!("making {}", inner.display()))?;
    for (name, bytes) in &contents {
        let path = unfinished.path().join(name);
        write_through(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    unfinished.take_the_place_of(folder)
}

/// SHA-256 in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

const CARD: &str = "model.toml";
const WEIGHTS: &str = "weights.safetensors";
const EXPECTED: &str = "golden/expected.safetensors";

fn picture_name(i: usize) -> String {
    format!("golden/{i}.png")
}

/// One file of the bundle, if it is the one that the card was written for.
fn read_file(folder: &Path, card: &Card, name: &str) -> Result<Vec<u8>> {
    let path = folder.join(name);
    let bytes = fs::read(&path).with_context(|| {
        format!("reading {}: the bundle is incomplete, copy the whole folder", path.display())
    })?;
    let found = sha256(&bytes);
    let listed = card.files.get(name).map_or("nothing", String::as_str);
    ensure!(
        found.eq_ignore_ascii_case(listed),
        "{} was changed after the bundle was made (SHA-256 {found}, the card says {listed}): copy \
         the bundle again from where it was taught, or teach anew",
        path.display()
    );
    Ok(bytes)
}

fn read_tensors(folder: &Path, card: &Card, name: &str) -> Result<BTreeMap<String, Tensor>> {
    let bytes = read_file(folder, card, name)?;
    let what = || folder.join(name).display().to_string();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).with_context(what)?;
    for (name, tensor) in &tensors {
        // one NaN or infinity anywhere makes the sum of magnitudes one
        let magnitude = tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
        ensure!(
            magnitude.is_finite(),
            "{}: tensor {name} holds numbers that are not finite; teach anew",
            what()
        );
    }
    Ok(tensors.into_iter().collect())
}

fn read_golden(folder: &Path, card: &Card) -> Result<Vec<Golden>> {
    let mut tensors = read_tensors(folder, card, EXPECTED)?;
    let mut take = |name: &str| {
        tensors.remove(name).with_context(|| format!("{EXPECTED}: tensor {name} is missing"))
    };
    let scores = take("scores")?.to_vec1::<f32>().context(EXPECTED)?;
    let maps = take("maps")?;
    let (g, height, width) = maps.dims3().context(EXPECTED)?;
    ensure!(
        g == scores.len() && g == card.pictures() && g > 0 && width * height > 0,
        "{EXPECTED}: {} scores and {g} maps for {} golden pictures",
        scores.len(),
        card.pictures()
    );
    let mut golden = Vec::with_capacity(g);
    for (i, score) in scores.into_iter().enumerate() {
        let name = picture_name(i);
        let bytes = read_file(folder, card, &name)?;
        let image = image::load_from_memory_with_format(&bytes, ImageFormat::Png)
            .with_context(|| folder.join(&name).display().to_string())?;
        let image = match image {
            DynamicImage::ImageLuma8(gray) => Image::Gray(gray),
            other => Image::Rgb(other.into_rgb8()),
        };
        let scores = maps.get(i)?.flatten_all()?.to_vec1::<f32>().context(EXPECTED)?;
        let map = AnomalyMap { width, height, scores };
        golden.push(Golden { image, detection: Detection { score, map } });
    }
    Ok(golden)
}

/// `scores` `[G]`, `maps` `[G, H, W]`.
fn expected(golden: &[Golden]) -> Result<BTreeMap<String, Tensor>> {
    let first = &golden.first().context("a bundle needs golden pictures")?.detection.map;
    let scores: Vec<f32> = golden.iter().map(|g| g.detection.score).collect();
    let maps: Vec<f32> =
        golden.iter().flat_map(|g| g.detection.map.scores.iter().copied()).collect();
    let maps = Tensor::from_vec(maps, (golden.len(), first.height, first.width), &Device::Cpu)
        .context("golden maps of different sizes")?;
    let scores = Tensor::from_vec(scores, golden.len(), &Device::Cpu)?;
    Ok(BTreeMap::from([("scores".to_owned(), scores), ("maps".to_owned(), maps)]))
}

fn to_safetensors(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    Ok(safetensors::serialize(tensors, None)?)
}

fn to_png(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    match image {
        Image::Gray(gray) => gray.write_to(&mut bytes, ImageFormat::Png)?,
        Image::Rgb(rgb) => rgb.write_to(&mut bytes, ImageFormat::Png)?,
    }
    Ok(bytes.into_inner())
}

/// Writes and waits until it is on the disk: the rename that follows must not overtake it.
fn write_through(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}
