//! Layers and backbones that detectors share.

pub mod aspp;
pub mod attention;
pub mod compact;
pub mod cot;
pub mod destseg;
pub mod engine;
pub mod folding;
pub mod fusion;
pub mod graph;
pub mod layers;
pub mod mlff;
pub mod ntsnet;
pub mod plan;
pub mod prn;
mod pth;
pub mod reference;
pub mod resnet;
pub mod scconv;
pub mod teacher;
pub mod texture;
#[cfg(test)]
pub(crate) mod vectors;
pub mod weights;

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;

use graph::Graph;
use weights::Weights;

/// Which feature extractor: the embedded one or a torchvision network with the user's weight file.
#[derive(Clone, Debug, PartialEq)]
pub enum BackboneSpec {
    /// The weights in the binary (`assets/compact_f16.safetensors`).
    Compact,
    ResNet {
        depth: resnet::Depth,
        weights: PathBuf,
    },
}

/// `compact`, `resnet18:PATH`, `resnet34:PATH`, `resnet50:PATH` or `wide_resnet50_2:PATH`.
impl FromStr for BackboneSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (word, path) = text.split_once(':').unwrap_or((text, ""));
        if text == "compact" {
            return Ok(Self::Compact);
        }
        ensure!(word != "compact", "backbone {text}: compact is in the binary and takes no file");
        let depth = resnet::Depth::ALL.into_iter().find(|depth| depth.word() == word);
        let Some(depth) = depth else {
            anyhow::bail!(
                "backbone {text}: not known; say compact, resnet18:FILE, resnet34:FILE, \
                 resnet50:FILE or wide_resnet50_2:FILE"
            );
        };
        ensure!(
            !path.is_empty(),
            "backbone {text}: needs its weight file (safetensors or zip .pth), as {word}:FILE"
        );
        Ok(Self::ResNet { depth, weights: path.into() })
    }
}

impl BackboneSpec {
    /// `compact`, `resnet18`, …, without the path.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Compact => "compact",
            Self::ResNet { depth, .. } => depth.word(),
        }
    }
}

/// A frozen feature extractor: a network whose outputs are levels, and its weights.
pub struct Backbone {
    graph: Box<dyn Fn(usize, usize) -> Graph + Send + Sync>,
    weights: Weights,
    channels: Vec<usize>,
}

impl Backbone {
    /// `graph` describes the network for pictures of a height and width. Tensors of `weights` that
    /// it does not need are left out.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or not finite.
    pub fn new(
        graph: impl Fn(usize, usize) -> Graph + Send + Sync + 'static,
        weights: &Weights,
    ) -> Result<Self> {
        // channels and tensors are those of any size
        let any = graph(64, 64);
        let channels = any.outputs().iter().map(|&level| any.dims(level).channels).collect();
        let weights = weights.only(&any.tensors())?;
        Ok(Self { graph: Box::new(graph), weights, channels })
    }

    /// The compact backbone, from its own weights or others of the same names.
    pub fn compact(weights: &Weights) -> Result<Self> {
        Self::new(compact::graph, weights)
    }

    /// A ResNet to layer `last_layer` (1 to 4), from tensors under torchvision's names.
    pub fn resnet(depth: resnet::Depth, last_layer: usize, weights: &Weights) -> Result<Self> {
        resnet::graph(depth, last_layer, (64, 64))?; // refuses a layer that does not exist
        Self::new(
            move |height, width| {
                resnet::graph(depth, last_layer, (height, width)).expect("the layer exists")
            },
            weights,
        )
    }

    /// The network for pictures of this size.
    pub fn graph(&self, height: usize, width: usize) -> Graph {
        (self.graph)(height, width)
    }

    /// Every tensor of the network and no other.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// `xs` [B, 3, H, W], ImageNet-normalised → features after layer1, layer2, layer3 (and layer4
    /// where asked for): [B, C1, H/4, W/4], [B, C2, H/8, W/8], …
    pub fn levels(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let (_, _, height, width) = xs.dims4()?;
        reference::run(&self.graph(height, width), &self.weights, xs)
    }

    /// Channels of each level.
    pub fn channels(&self) -> &[usize] {
        &self.channels
    }

    /// SHA-256 of the weight file's bytes, hex.
    pub fn sha256(&self) -> &str {
        self.weights.sha256()
    }
}

/// Loads a backbone up to layer `last_layer` (1 to 4; the compact one has
/// exactly 3).
pub fn load(spec: &BackboneSpec, last_layer: usize) -> Result<Backbone> {
    match spec {
        BackboneSpec::Compact => {
            ensure!(last_layer == 3, "the compact backbone ends with layer 3, not {last_layer}");
            Backbone::compact(&compact::embedded()?)
                .context("loading the embedded compact backbone")
        }
        BackboneSpec::ResNet { depth, weights } => {
            Backbone::resnet(*depth, last_layer, &Weights::open(weights)?)
        }
    }
}

/// As [`load`] up to layer `last_layer`, or where that is missing up to the last that there is.
pub fn load_deepest(spec: &BackboneSpec, last_layer: usize) -> Result<Backbone> {
    let BackboneSpec::ResNet { depth, weights } = spec else { return load(spec, 3) };
    let weights = Weights::open(weights)?;
    let has =
        |layer: &usize| weights.names().any(|name| name.starts_with(&format!("layer{layer}.")));
    let deepest = (1..=last_layer).rev().find(has).unwrap_or(last_layer);
    Backbone::resnet(*depth, deepest, &weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backbone_words_are_read() {
        let read = |text: &str| text.parse::<BackboneSpec>();
        assert_eq!(read("compact").unwrap(), BackboneSpec::Compact);
        for depth in resnet::Depth::ALL {
            let spec = read(&format!("{}:C:/w.pth", depth.word())).unwrap();
            assert_eq!(spec, BackboneSpec::ResNet { depth, weights: "C:/w.pth".into() });
            assert_eq!(spec.word(), depth.word());
        }
        for (text, want) in [
            ("resnet101:w.pth", "not known; say compact, resnet18:FILE"),
            ("", "not known"),
            ("resnet18", "as resnet18:FILE"),
            ("resnet18:", "as resnet18:FILE"),
            ("compact:w.pth", "takes no file"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn compact_loads_with_no_file() {
        let backbone = load(&BackboneSpec::Compact, 3).unwrap();
        assert_eq!(backbone.channels(), [64, 128, 256]);
        assert_eq!(backbone.sha256().len(), 64);
        assert!(load(&BackboneSpec::Compact, 4).is_err());
    }
}
