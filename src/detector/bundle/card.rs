//! The card of a bundle, `model.toml`: where the model comes from and what it promises.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{EXPECTED, System, Units, VERSION, WEIGHTS, picture_name};
use crate::detector::input::Input;
use crate::detector::{destseg, mlff, ntsnet, patch_prototypes, prn, tiles};
use crate::nn::plan::{Precision, Quantization};

/// `model.toml`: where the model comes from and what it promises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// `patch_prototypes`, `destseg`, `ntsnet`, `prn` or `mlff`.
    pub system: String,
    pub version: u32,
    /// The version of the program that made it, and its git revision or `unknown`.
    pub inspectd: String,
    pub revision: String,
    /// What every draw came from: split or folds, projection, first centre.
    pub seed: u64,
    /// What the backbone computes with; f32 where it is not said.
    #[serde(default, skip_serializing_if = "is_f32")]
    pub precision: Precision,
    pub input: Input,
    /// The tiles of pictures that it was taught on; none where it was taught on whole ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiles: Option<tiles::Layout>,
    /// What features come from; the teacher of a system that has one.
    pub backbone: BackboneCard,
    /// One of these, the system's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prototypes: Option<patch_prototypes::Card>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destseg: Option<destseg::Card>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ntsnet: Option<ntsnet::Card>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prn: Option<prn::Card>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlff: Option<mlff::Card>,
    /// Where `precision` is `int8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8: Option<Int8>,
    pub threshold: Threshold,
    pub calibration: Calibration,
    pub training_data: TrainingData,
    /// Of a network that was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// SHA-256 of every other file of the bundle, hex, by its name in the folder.
    pub files: BTreeMap<String, String>,
}

/// Which feature extractor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneCard {
    /// `compact` (in the program), or a network whose tensors are in `weights.safetensors`:
    /// `resnet18`, `resnet34`, `resnet50`, `wide_resnet50_2`.
    pub network: String,
    /// SHA-256 of the weight file it was taught with, hex.
    pub sha256: String,
}

/// The backbone in int8.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Int8 {
    pub check: PrecisionCheck,
    /// Of each convolution in int8, what one step of the bytes that it reads stands for.
    pub scales: Quantization,
}

/// What int8 was found to cost, on good parts that were in no memory bank and on the same with
/// anomalies drawn on them; see [`crate::teach::precision`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionCheck {
    pub goods: usize,
    pub anomalies: usize,
    /// Image AUROC of either, by small memory banks made for the comparison.
    pub auroc_f32: f64,
    pub auroc_int8: f64,
    /// The least of all pictures, between the anomaly maps of the two.
    pub map_correlation: f64,
}

fn is_f32(precision: &Precision) -> bool {
    *precision == Precision::F32
}

/// The decision limits found in calibration, raw score units.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// A part is rejected when its image score is at or above this.
    pub score: f32,
    /// The same promise for the largest value of the anomaly map; used where regions are judged.
    pub map: f32,
}

/// How the limits were chosen; see [`crate::calibrate`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub rule: Rule,
    /// The rate of good parts rejected that was asked for: 0.001 is 1000 ppm.
    pub false_rejects: f64,
    /// Good parts that the limits were found on, each scored by a memory bank that it is not in.
    pub held_out: usize,
    /// Where that was not the memory bank of this bundle but one made of the other folds: how many
    /// folds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folds: Option<usize>,
    /// Held-out good parts that the conformal rule needs for this rate.
    pub needed: usize,
    /// Image scores of the held-out good parts.
    pub scores: Spread,
    /// The largest values of their anomaly maps.
    pub map_maxima: Spread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A promise that assumes nothing of the scores.
    Conformal,
    /// The same rank among cross-fitted scores, of which nothing can be promised.
    Ranked,
    /// Too few parts for a promise: an estimate that takes good scores for normal.
    Extrapolated,
}

/// How scores lie, raw units.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    pub min: f32,
    pub median: f32,
    pub max: f32,
    pub mean: f32,
    pub std: f32,
}

/// How far a network was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Optimizer steps made.
    pub steps: u64,
    /// Those of the whole schedule: more, where a run was ended before.
    pub schedule: u64,
}

/// The pictures a model was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingData {
    /// SHA-256 over the names and contents of the pictures used, sorted by name.
    pub sha256: String,
    /// Pictures in the memory bank.
    pub taught: usize,
    /// Pictures kept out of it for the thresholds; none where they come from folds.
    pub held_out: usize,
    /// Bits a sample that 16-bit grey files carried; a camera on the line must say the same.
    pub significant_bits: u32,
    /// Files that could not be read.
    pub unreadable: usize,
    /// Files left out because another has the very same pixels.
    pub copies: usize,
    /// Defects of the test set that were learned from, as [`crate::dataset::Sample::name`] calls them:
    /// who tests leaves them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen_anomalies: Vec<String>,
}

impl Card {
    /// What must hold of any card, whoever wrote it.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.version == VERSION,
            "version = {}: this inspectd ({}) reads bundles of version {VERSION}; teach again, or \
             use the inspectd that made it ({})",
            self.version,
            env!("CARGO_PKG_VERSION"),
            self.inspectd
        );
        self.input.check()?;
        ensure!(
            self.int8.is_some() == (self.precision == Precision::Int8),
            "precision = \"{}\" needs {} table [int8]",
            self.precision.word(),
            if self.int8.is_some() { "no" } else { "a" }
        );
        // Distances and probabilities are never below 0: a limit there would reject every part.
        let is_signed = System::of(self)?.is_some_and(|system| system.units() == Units::Signed);
        for (key, value) in [("score", self.threshold.score), ("map", self.threshold.map)] {
            ensure!(value.is_finite(), "threshold.{key} = {value}: must be a finite number");
            ensure!(
                is_signed || value > 0.0,
                "threshold.{key} = {value}: must be a number above 0"
            );
        }
        for name in [WEIGHTS, EXPECTED] {
            ensure!(self.files.contains_key(name), "files: \"{name}\" is not listed");
        }
        let pictures = self.pictures();
        ensure!(pictures > 0, "files: no golden picture is listed; the model can't be sealed");
        let known = |name: &str| {
            name == WEIGHTS || name == EXPECTED || (0..pictures).any(|i| name == picture_name(i))
        };
        for (name, hash) in &self.files {
            ensure!(
                known(name),
                "files: \"{name}\" has no place in a bundle (a name is fixed, never a path)"
            );
            ensure!(
                hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
                "files: \"{name}\" = \"{hash}\" is not a SHA-256 in hex"
            );
        }
        Ok(())
    }

    /// What a card of patch prototypes says of its memory bank.
    ///
    /// # Errors
    /// It says nothing.
    pub fn memory_bank(&self) -> Result<&patch_prototypes::Card> {
        self.prototypes.as_ref().context("table [prototypes] is missing")
    }

    pub(super) fn pictures(&self) -> usize {
        (0..).take_while(|&i| self.files.contains_key(&picture_name(i))).count()
    }
}
