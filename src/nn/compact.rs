//! The embedded compact backbone: 972,032 parameters trained to impersonate ResNet18's three feature
//! levels (heads are linear estimates of its layer1, layer2, layer3 outputs), so that the product
//! works with no download. Plain 3×3 convolutions with bias, no batch norm.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};

use super::Backbone;
use super::conv::{Conv, ConvSpec};
use super::weights::Weights;

/// Channels of the three levels, as ResNet18's.
pub const CHANNELS: [usize; 3] = [64, 128, 256];

/// Half precision; widened to f32 when loaded.
const EMBEDDED: &[u8] = include_bytes!("../../assets/compact_f16.safetensors");

/// Width inside each stage, before the heads.
const WIDTHS: [usize; 3] = [64, 96, 160];

/// The network: a stem, then three stages that each halve the picture and end in a level.
pub struct Compact {
    stem: Conv,
    stages: Vec<Stage>,
    sha256: String,
}

struct Stage {
    down: Conv,
    conv1: Conv,
    conv2: Conv,
    head: Conv,
}

impl Compact {
    /// From the weights in the binary.
    pub fn embedded(device: &Device) -> Result<Self> {
        let weights = Weights::from_bytes("embedded compact_f16.safetensors", EMBEDDED)?;
        Self::load(&weights, device).context("loading the embedded compact backbone")
    }

    /// From weights of the same names (`stem.weight`, `block1.conv1.bias`, …).
    pub fn load(weights: &Weights, device: &Device) -> Result<Self> {
        let conv = |spec: ConvSpec| Conv::load(&spec, weights, device);
        let mut stages = Vec::new();
        let mut c_in = 32;
        for (i, (&width, &c_out)) in WIDTHS.iter().zip(&CHANNELS).enumerate() {
            let n = i + 1;
            stages.push(Stage {
                down: conv(plain(format!("down{n}"), c_in, width, 3, 2, true))?,
                conv1: conv(plain(format!("block{n}.conv1"), width, width, 3, 1, true))?,
                conv2: conv(plain(format!("block{n}.conv2"), width, width, 3, 1, false))?,
                head: conv(plain(format!("head{n}"), width, c_out, 1, 1, false))?,
            });
            c_in = width;
        }
        let stem = conv(plain("stem".into(), 3, 32, 3, 2, true))?;
        Ok(Self { stem, stages, sha256: weights.sha256().to_owned() })
    }
}

impl Backbone for Compact {
    fn levels(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let mut levels = Vec::with_capacity(self.stages.len());
        let mut xs = self.stem.forward(xs)?;
        for stage in &self.stages {
            xs = stage.down.forward(&xs)?;
            let inner = stage.conv2.forward(&stage.conv1.forward(&xs)?)?;
            xs = (xs + inner)?.relu()?;
            levels.push(stage.head.forward(&xs)?);
        }
        Ok(levels)
    }

    fn channels(&self) -> &[usize] {
        &CHANNELS
    }

    fn sha256(&self) -> &str {
        &self.sha256
    }
}

fn plain(
    name: String,
    c_in: usize,
    c_out: usize,
    kernel: usize,
    stride: usize,
    relu: bool,
) -> ConvSpec {
    ConvSpec { name, norm: None, c_in, c_out, kernel, stride, relu }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::shared;

    /// A smooth picture with an edge, values as after ImageNet normalisation.
    fn picture() -> Tensor {
        let at = |i: usize| {
            let (c, y, x) = (i / 65536, i / 256 % 256, i % 256);
            let wave = (x as f32 * 0.11 + c as f32).sin() + (y as f32 * 0.07).cos();
            if x > y { wave } else { 0.5 - wave }
        };
        let values: Vec<f32> = (0..3 * 65536).map(at).collect();
        Tensor::from_vec(values, (1, 3, 256, 256), &Device::Cpu).unwrap()
    }

    #[test]
    fn levels_have_resnet18_shapes() {
        let compact = Compact::embedded(&Device::Cpu).unwrap();
        let levels = compact.levels(&picture()).unwrap();
        let shapes: Vec<_> = levels.iter().map(|level| level.dims().to_vec()).collect();
        assert_eq!(shapes, [[1, 64, 64, 64], [1, 128, 32, 32], [1, 256, 16, 16]]);
        assert_eq!(compact.channels(), [64, 128, 256]);
    }

    #[test]
    fn half_precision_weights_give_the_f32_features() {
        let Some(path) = shared("weights/compact.safetensors") else { return };
        let full = Compact::load(&Weights::open(&path).unwrap(), &Device::Cpu).unwrap();
        let half = Compact::embedded(&Device::Cpu).unwrap();
        assert_ne!(full.sha256(), half.sha256());
        let pairs = full.levels(&picture()).unwrap().into_iter();
        for (want, got) in pairs.zip(half.levels(&picture()).unwrap()) {
            let norm = |xs: &Tensor| {
                xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
            };
            // f16 rounds each weight by 2^-11 at most; a dozen layers deep that is below 1e-2.
            let error = norm(&(&want - &got).unwrap()) / norm(&want);
            assert!(error > 0.0 && error < 1e-2, "relative error {error}");
        }
    }
}
