//! From pictures to anomaly scores. Tensors live in here and never leave: images in, plain numbers
//! out.

use anyhow::Result;

use crate::frame::Image;

pub mod bundle;
pub mod destseg;
pub mod input;
pub mod mlff;
pub mod network;
pub mod ntsnet;
pub mod patch_prototypes;
pub mod prn;
pub mod tiles;

/// How anomalous each place of a picture is, larger = more anomalous; raw score units.
#[derive(Clone, Debug, PartialEq)]
pub struct AnomalyMap {
    pub width: usize,
    pub height: usize,
    /// Rows from top to bottom, `width * height` values, at detector resolution.
    pub scores: Vec<f32>,
}

/// What a detector says of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// Image score in raw units; compared with the bundle's threshold.
    pub score: f32,
    pub map: AnomalyMap,
}

/// A trained anomaly detector.
pub trait Detector: Send {
    /// One [`Detection`] per picture, in order. An error means that none of them was inspected.
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>>;
}
