//! Layers and backbones that detectors share.

pub mod compact;
pub mod conv;
pub mod graph;
pub mod plan;
mod pth;

pub mod resnet;
pub mod weights;

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};

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

/// A frozen feature extractor, batch norm folded.
pub trait Backbone: Send + Sync {
    /// `xs` [B, 3, H, W], ImageNet-normalised → features after layer1, layer2, layer3 (and layer4
    /// where asked for): [B, C1, H/4, W/4], [B, C2, H/8, W/8], …
    fn levels(&self, xs: &Tensor) -> Result<Vec<Tensor>>;
    /// Channels of each level.
    fn channels(&self) -> &[usize];
    /// SHA-256 of the weight file's bytes, hex.
    fn sha256(&self) -> &str;
}

/// Loads a backbone up to layer `last_layer` (1 to 4; the compact one has
/// exactly 3).
pub fn load(spec: &BackboneSpec, last_layer: usize, device: &Device) -> Result<Box<dyn Backbone>> {
    match spec {
        BackboneSpec::Compact => {
            ensure!(last_layer == 3, "the compact backbone ends with layer 3, not {last_layer}");
            Ok(Box::new(compact::Compact::embedded(device)?))
        }
        BackboneSpec::ResNet { depth, weights } => {
            let weights = Weights::open(weights)?;
            Ok(Box::new(resnet::ResNet::load(*depth, last_layer, &weights, device)?))
        }
    }
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
        let backbone = load(&BackboneSpec::Compact, 3, &Device::Cpu).unwrap();
        assert_eq!(backbone.channels(), [64, 128, 256]);
        assert_eq!(backbone.sha256().len(), 64);
        assert!(load(&BackboneSpec::Compact, 4, &Device::Cpu).is_err());
    }
}
