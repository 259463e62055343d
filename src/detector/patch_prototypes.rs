//! Nearest-prototype search over patch features: the PatchCore family (Roth et al. 2022, "Towards
//! Total Recall in Industrial Anomaly Detection").
//!
//! Levels 2 and 3 of a frozen backbone, each averaged over 3 × 3 neighbourhoods, level 3 brought
//! to level 2's grid and laid beside it: one feature a patch of 8 × 8 pixels. The memory bank
//! holds prototypes, a coreset of the patch features of good parts. A patch is as anomalous as it
//! is far from the nearest prototype (L2, not squared).
//!
//! The image score is the distance s* of the worst patch m*test, re-weighted by eq. 7 as anomalib
//! reads it: w = 1 − exp(d(m*test, m*)) / Σ exp(d(m*test, m)), the sum over the b = 9 prototypes
//! nearest to m*, m* itself among them; distances are not normalised. As m* is the nearest of all,
//! w lies in [8/9, 1) (for b = 9): it orders parts, it does not excuse them.
//!
//! Letters: B pictures, C channels, D = C2 + C3, H × W input size, P = H/8 · W/8 patches, N
//! prototypes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::bundle;
use super::input::Input;
use super::{AnomalyMap, Detection, Detector};
use crate::frame::Image;
use crate::nn::resnet::{Depth, ResNet};
use crate::nn::weights::Weights;
use crate::nn::{self, Backbone, BackboneSpec};
use crate::ops::nearest_prototype::PrototypeBank;
use crate::ops::{gaussian, interpolate, neighbourhood};

/// The word for this system in a card.
pub const SYSTEM: &str = "patch_prototypes";

/// b of eq. 7; the paper's and anomalib's number.
pub const NEIGHBOURS: usize = 9;

/// Blur of the full-size anomaly map, pixels; the paper's σ (section 4.1).
pub const SIGMA_PX: f64 = 4.0;

/// Feature levels used, the shallower first; its grid is the patches'.
pub const LEVELS: [usize; 2] = [2, 3];

/// Input pixels along a patch: the stride of level 2.
const PATCH_PX: usize = 8;

/// This system's part of `model.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub levels: Vec<usize>,
    /// Side of the neighbourhoods that features are averaged over.
    pub neighbourhood: usize,
    /// N, rows of the memory bank.
    pub count: usize,
    /// D, channels of a prototype.
    pub dims: usize,
    /// Patches of good parts that the prototypes were chosen from.
    pub patches: usize,
    /// Dimensions that features were randomly projected to for the choice.
    pub projected_dims: usize,
}

/// Patch features of pictures, by one backbone at one input size.
pub struct PatchFeatures {
    input: Input,
    backbone: Box<dyn Backbone>,
}

/// A frozen backbone, and its tensors where a bundle has to carry them.
pub struct LoadedBackbone {
    pub backbone: Box<dyn Backbone>,
    /// By torchvision's names, up to layer3; empty for the backbone that is in the program.
    pub tensors: BTreeMap<String, Tensor>,
}

/// The detector: patch features against the memory bank.
pub struct PatchPrototypes {
    features: PatchFeatures,
    bank: PrototypeBank,
    /// N · b indices: the b prototypes nearest to each, itself first.
    neighbours: Vec<u32>,
}

/// Reads a backbone as deep as this system needs it.
pub fn load_backbone(spec: &BackboneSpec) -> Result<LoadedBackbone> {
    match spec {
        BackboneSpec::Compact => Ok(LoadedBackbone {
            backbone: nn::load(spec, DEEPEST, &Device::Cpu)?,
            tensors: BTreeMap::new(),
        }),
        BackboneSpec::ResNet { depth, weights } => {
            let weights = Weights::open(weights)?;
            let backbone = Box::new(ResNet::load(*depth, DEEPEST, &weights, &Device::Cpu)?);
            let needed = |name: &str| {
                let stem = ["conv1.", "bn1."].iter().any(|part| name.starts_with(part));
                let layer = (1..=DEEPEST).any(|n| name.starts_with(&format!("layer{n}.")));
                (stem || layer) && !name.ends_with("num_batches_tracked")
            };
            let tensors = weights
                .tensors()
                .filter(|(name, _)| needed(name))
                .map(|(name, tensor)| (name.to_owned(), tensor.clone()))
                .collect();
            Ok(LoadedBackbone { backbone, tensors })
        }
    }
}

impl PatchFeatures {
    pub fn new(input: Input, backbone: Box<dyn Backbone>) -> Result<PatchFeatures> {
        input.check()?;
        Ok(PatchFeatures { input, backbone })
    }

    /// Patches of a picture, rows and columns.
    pub fn grid(&self) -> (usize, usize) {
        grid(self.input)
    }

    /// D.
    pub fn dims(&self) -> usize {
        dims(self.backbone.as_ref())
    }

    /// `[B·P, D]` as rows, patches from left to right and top to bottom.
    pub fn extract(&self, images: &[&Image]) -> Result<Vec<f32>> {
        let xs = self.input.tensor(images, &Device::Cpu)?; // [B, 3, H, W]
        let levels = self.backbone.levels(&xs)?;
        let (rows, columns) = self.grid();
        let mut grids = Vec::with_capacity(LEVELS.len());
        for level in LEVELS {
            let grid = neighbourhood::average(&levels[level - 1])?;
            let (_, _, h, w) = grid.dims4()?;
            let fits = (h, w) == (rows, columns);
            grids.push(if fits { grid } else { interpolate::bilinear(&grid, rows, columns)? });
        }
        let features = Tensor::cat(&grids, 1)?; // [B, D, H/8, W/8]
        let features = features.permute((0, 2, 3, 1))?.contiguous()?; // [B, H/8, W/8, D]
        Ok(features.flatten_all()?.to_vec1()?)
    }
}

/// Patches of a picture at this input size, rows and columns.
pub fn grid(input: Input) -> (usize, usize) {
    (input.height / PATCH_PX, input.width / PATCH_PX)
}

/// D: channels of a patch feature.
pub fn dims(backbone: &dyn Backbone) -> usize {
    LEVELS.iter().map(|level| backbone.channels()[level - 1]).sum()
}

impl PatchPrototypes {
    /// `prototypes` are the rows `[N, D]` of the memory bank.
    ///
    /// # Errors
    /// Fewer prototypes than the re-weighting looks at, rows that do not fit the features.
    pub fn new(features: PatchFeatures, prototypes: Vec<f32>) -> Result<PatchPrototypes> {
        let dims = features.dims();
        let count = prototypes.len() / dims;
        ensure!(
            count >= NEIGHBOURS && count * dims == prototypes.len(),
            "{count} prototypes: a memory bank needs at least {NEIGHBOURS}"
        );
        let bank = PrototypeBank::new(prototypes, dims)?;
        let neighbours = neighbours(&bank)?;
        Ok(PatchPrototypes { features, bank, neighbours })
    }

    /// From the tensors of a bundle: `prototypes` [N, D] and, for a user's backbone, its tensors
    /// under `backbone.`.
    pub fn from_bundle(
        card: &bundle::Card,
        mut tensors: BTreeMap<String, Tensor>,
    ) -> Result<PatchPrototypes> {
        let rows = tensors.remove("prototypes").context("weights: tensor prototypes is missing")?;
        let expected = &card.prototypes;
        ensure!(
            expected.levels == LEVELS && expected.neighbourhood == neighbourhood::SIDE,
            "prototypes.levels = {:?}, prototypes.neighbourhood = {}: this inspectd computes \
             {LEVELS:?} and {}",
            expected.levels,
            expected.neighbourhood,
            neighbourhood::SIDE
        );
        ensure!(
            rows.dims() == [expected.count, expected.dims],
            "the memory bank is {:?}, the card says [{}, {}]",
            rows.dims(),
            expected.count,
            expected.dims
        );
        let features = PatchFeatures::new(card.input, bundled_backbone(card, tensors)?)?;
        ensure!(
            features.dims() == expected.dims,
            "{} features have {} channels, the card says {}",
            card.backbone.network,
            features.dims(),
            expected.dims
        );
        PatchPrototypes::new(features, rows.flatten_all()?.to_vec1()?)
    }

    /// What a bundle keeps, to be read by [`PatchPrototypes::from_bundle`].
    pub fn tensors(&self, backbone: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let shape = (self.bank.len(), self.bank.dims());
        let rows = Tensor::from_slice(self.bank.rows(), shape, &Device::Cpu)?;
        let named =
            backbone.iter().map(|(name, tensor)| (format!("{BACKBONE}{name}"), tensor.clone()));
        Ok(named.chain([("prototypes".to_owned(), rows)]).collect())
    }

    /// Score and map of one picture: `features` [P, D], `nearest` the P nearest prototypes.
    fn judge(&self, features: &[f32], nearest: &[(u32, f32)]) -> Result<Detection> {
        let (rows, columns) = self.features.grid();
        let distances: Vec<f32> = nearest.iter().map(|&(_, squared)| squared.sqrt()).collect();
        ensure!(
            distances.iter().all(|distance| distance.is_finite()),
            "a patch distance is not a finite number"
        );
        let worst = first_largest(&distances);
        let (prototype, _) = nearest[worst];
        let dims = self.bank.dims();
        let patch = &features[worst * dims..(worst + 1) * dims];
        let score = distances[worst] * self.weight(patch, prototype, distances[worst]);
        ensure!(score.is_finite(), "the image score is not a finite number");

        let Input { width, height } = self.features.input;
        let full = interpolate::bilinear_map(&distances, (rows, columns), (height, width));
        let scores = gaussian::blur(&full, (height, width), SIGMA_PX);
        Ok(Detection { score, map: AnomalyMap { width, height, scores } })
    }

    /// w of eq. 7 for a patch whose nearest prototype is `nearest`, `distance` away.
    fn weight(&self, patch: &[f32], nearest: u32, distance: f32) -> f32 {
        let first = nearest as usize * NEIGHBOURS;
        let others = &self.neighbours[first + 1..first + NEIGHBOURS];
        let rows = self.bank.rows();
        let dims = self.bank.dims();
        let others: Vec<f32> = others
            .iter()
            .map(|&i| l2(patch, &rows[i as usize * dims..(i as usize + 1) * dims]))
            .collect();
        // exp of plain distances overflows f32 from 88; only their differences matter
        let total: f32 = 1.0 + others.iter().map(|d| (d - distance).exp()).sum::<f32>();
        1.0 - 1.0 / total
    }
}

impl Detector for PatchPrototypes {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        let features = self.features.extract(images)?; // [B·P, D]
        let nearest = self.bank.nearest(&features)?;
        let (rows, columns) = self.features.grid();
        let patches = rows * columns;
        let per_picture = features.chunks_exact(patches * self.bank.dims());
        per_picture
            .zip(nearest.chunks_exact(patches))
            .map(|(features, nearest)| self.judge(features, nearest))
            .collect()
    }
}

/// The deepest level used.
const DEEPEST: usize = LEVELS[LEVELS.len() - 1];

/// Before the backbone's tensor names in `weights.safetensors`.
const BACKBONE: &str = "backbone.";

fn bundled_backbone(
    card: &bundle::Card,
    tensors: BTreeMap<String, Tensor>,
) -> Result<Box<dyn Backbone>> {
    let network = card.backbone.network.as_str();
    if network == BackboneSpec::Compact.word() {
        let backbone = nn::load(&BackboneSpec::Compact, DEEPEST, &Device::Cpu)?;
        ensure!(
            backbone.sha256() == card.backbone.sha256,
            "it was taught on another compact backbone (SHA-256 {}, this inspectd has {}): teach \
             again with this inspectd",
            card.backbone.sha256,
            backbone.sha256()
        );
        return Ok(backbone);
    }
    let Some(depth) = Depth::ALL.into_iter().find(|depth| depth.word() == network) else {
        bail!("backbone.network = \"{network}\" is not known to this inspectd");
    };
    let bare = tensors
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(BACKBONE)?.to_owned(), tensor)))
        .collect();
    let weights = Weights::from_tensors("weights.safetensors", bare)?;
    Ok(Box::new(ResNet::load(depth, DEEPEST, &weights, &Device::Cpu)?))
}

/// The b prototypes nearest to each, itself first.
fn neighbours(bank: &PrototypeBank) -> Result<Vec<u32>> {
    let ranked = bank.nearest_k(bank.rows(), NEIGHBOURS)?;
    let mut neighbours = Vec::with_capacity(bank.len() * NEIGHBOURS);
    for (own, ranked) in ranked.chunks_exact(NEIGHBOURS).enumerate() {
        // a twin of this prototype may come before it
        let own = own as u32;
        let others = ranked.iter().map(|&(i, _)| i).filter(|&i| i != own);
        neighbours.push(own);
        neighbours.extend(others.take(NEIGHBOURS - 1));
    }
    Ok(neighbours)
}

fn first_largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

fn l2(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt()
}
