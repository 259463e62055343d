//! The whole way of a picture through `patch_prototypes`: from 8-bit pixels in memory to score and
//! map. Rendered parts stand in for a camera's where no pictures are named; nothing is decoded while
//! it is timed.

use std::path::Path;

use anyhow::{Result, ensure};
use rand::Rng;
use rayon::prelude::*;

use super::nets::SIDE;
use super::search;
use crate::camera::{self, pattern};
use crate::detector::input::Input;
use crate::detector::patch_prototypes::{self, LEVELS, PatchFeatures, PatchPrototypes};
use crate::frame::Image;
use crate::nn::engine::Engine;
use crate::nn::resnet::{self, Depth};
use crate::nn::weights::Weights;
use crate::nn::{Backbone, BackboneSpec};
use crate::ops::coreset::{self, CoresetConfig};

/// Prototypes of a bank where nobody says: as many as a bundle usually has.
pub const USUAL_BANK: usize = 3000;

/// Side of the camera's pictures, pixels: as those that anomaly detectors are mostly measured on
/// (MVTec AD: 700 to 1024).
pub const CAMERA_PX: u32 = 900;

/// Different pictures at most, taken in turn.
const PICTURES: usize = 4;

/// Seeds of the parts that make the bank, and of those that are inspected.
const BANK_SEED: u64 = 1;
const LINE_SEED: u64 = 2;

/// `compact`, `resnet18:FILE` and the like, or a network without a file: random weights.
pub fn backbone(text: &str, rng: &mut impl Rng) -> Result<Backbone> {
    let deepest = LEVELS[LEVELS.len() - 1];
    if let Some(depth) = Depth::ALL.into_iter().find(|depth| depth.word() == text) {
        let weights = resnet::graph(depth, deepest, (SIDE, SIDE))?.random_weights(rng)?;
        return Backbone::resnet(depth, deepest, &weights);
    }
    Ok(patch_prototypes::load_backbone(&text.parse::<BackboneSpec>()?)?.backbone)
}

/// Parts to be inspected, one in ten with a defect.
pub fn pictures() -> Vec<Image> {
    rendered(LINE_SEED, 0.1, PICTURES)
}

/// The first pictures of a folder.
pub fn pictures_of(folder: &Path) -> Result<Vec<Image>> {
    let names = camera::folder::list(folder, false)?;
    let read = |name| camera::folder::read(&folder.join(name), 16);
    names.into_iter().take(PICTURES).map(read).collect()
}

/// A memory bank [N, D] of `count` prototypes: a coreset of the patches of rendered good parts, of
/// which there are at least twice as many.
pub fn bank(features: &mut PatchFeatures, count: usize, rng: &mut impl Rng) -> Result<Vec<f32>> {
    let (rows, columns) = features.grid();
    let parts = (2 * count).div_ceil(rows * columns).max(2);
    let parts = rendered(BANK_SEED, 0.0, parts);
    let patches = features.extract(&parts.iter().collect::<Vec<_>>())?;
    let dims = features.dims();
    let choice = CoresetConfig { target: count, ..CoresetConfig::default() };
    let chosen = coreset::select(&patches, dims, &choice, rng, |_, _| ())?;
    ensure!(chosen.len() == count, "the parts have {} different patches only", chosen.len());
    Ok(chosen.iter().flat_map(|row| &patches[row * dims..][..dims]).copied().collect())
}

/// The first `count` rows, all where it is `None`, of `prototypes` in a file.
pub fn bank_of(path: &Path, count: Option<usize>) -> Result<Vec<f32>> {
    let (mut rows, dims) = search::rows(&Weights::open(path)?, "prototypes")?;
    let found = rows.len() / dims.max(1);
    let count = count.unwrap_or(found);
    ensure!(count <= found, "{}: {found} prototypes, {count} were asked for", path.display());
    rows.truncate(count * dims);
    Ok(rows)
}

/// What turns a picture into patch features.
pub fn features(backbone: &Backbone, engine: &Engine) -> Result<PatchFeatures> {
    PatchFeatures::new(Input { width: SIDE, height: SIDE }, backbone, engine)
}

/// The detector with this memory bank [N, D].
pub fn detector(features: PatchFeatures, bank: Vec<f32>) -> Result<PatchPrototypes> {
    let dims = features.dims();
    ensure!(
        bank.len().is_multiple_of(dims),
        "the prototypes do not fit this backbone's {dims} dimensions"
    );
    PatchPrototypes::new(features, bank)
}

fn rendered(seed: u64, defect_rate: f64, parts: usize) -> Vec<Image> {
    let (width, height) = (CAMERA_PX, CAMERA_PX);
    let config = pattern::Config { width, height, seed, defect_rate, ..Default::default() };
    let render = |part| Image::Rgb(pattern::render(&config, part as u64).0);
    (0..parts).into_par_iter().map(render).collect()
}
