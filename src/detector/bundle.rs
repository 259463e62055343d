//! A trained detector on disk: `model.toml` (the card), `weights.safetensors`, `golden/`.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Detector;

/// `model.toml`: where the model comes from and what it promises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// `patch_prototypes`, later `destseg`, …
    pub system: String,
    pub version: u32,
    pub threshold: Threshold,
}

/// The decision limits found in calibration, raw score units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// A part is rejected when its image score is at or above this.
    pub score: f32,
    /// The same promise for the largest value of the anomaly map; used where regions are judged.
    pub map: f32,
}

/// A loaded bundle whose golden scores were reproduced on this machine.
pub struct Bundle {
    pub card: Card,
    pub detector: Box<dyn Detector>,
}

/// Loads and seals: recomputes the golden scores at batch 1 and at `batch`; beyond tolerance it is
/// an error and the line must not arm.
pub fn load(_folder: &Path, _batch: usize) -> Result<Bundle> {
    anyhow::bail!("bundle")
}
