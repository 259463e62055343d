//! Layers and backbones that detectors share.

pub mod compact;
pub mod resnet;
pub mod weights;

use anyhow::Result;
use candle_core::{Device, Tensor};

/// Which feature extractor: the embedded one or a torchvision network with the user's weight file.
#[derive(Clone, Debug, PartialEq)]
pub enum BackboneSpec {
    /// The weights in the binary (`assets/compact_f16.safetensors`).
    Compact,
    ResNet {
        depth: resnet::Depth,
        weights: std::path::PathBuf,
    },
}

/// A frozen feature extractor, batch norm folded.
pub trait Backbone: Send {
    /// `xs` [B, 3, H, W], ImageNet-normalised → features after layer1, layer2, layer3 (and layer4
    /// where asked for): [B, C1, H/4, W/4], [B, C2, H/8, W/8], …
    fn levels(&self, xs: &Tensor) -> Result<Vec<Tensor>>;
    /// Channels of each level.
    fn channels(&self) -> &[usize];
    /// SHA-256 of the weight file's bytes, hex.
    fn sha256(&self) -> &str;
}

/// Loads a backbone up to layer `last_layer` (3 or 4; the compact one has 3).
pub fn load(
    _spec: &BackboneSpec,
    _last_layer: usize,
    _device: &Device,
) -> Result<Box<dyn Backbone>> {
    anyhow::bail!("nn")
}
