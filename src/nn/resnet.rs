//! ResNet18, 34, 50 and Wide-ResNet50-2 (He et al. 2016; Zagoruyko & Komodakis 2016) under
//! torchvision's parameter names, up to layer3 or layer4, batch norm folded. The stride of a
//! bottleneck sits on its 3×3 convolution, as in torchvision ("V1.5").

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use rand::{Rng, RngExt};

use super::Backbone;
use super::conv::{Conv, ConvSpec};
use super::weights::Weights;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    R18,
    R34,
    R50,
    WideR50,
}

impl Depth {
    pub const ALL: [Self; 4] = [Self::R18, Self::R34, Self::R50, Self::WideR50];

    /// The word of the command line and of the model card, torchvision's name.
    pub fn word(self) -> &'static str {
        match self {
            Self::R18 => "resnet18",
            Self::R34 => "resnet34",
            Self::R50 => "resnet50",
            Self::WideR50 => "wide_resnet50_2",
        }
    }

    /// Blocks of layer1..layer4.
    fn blocks(self) -> [usize; 4] {
        match self {
            Self::R18 => [2, 2, 2, 2],
            Self::R34 | Self::R50 | Self::WideR50 => [3, 4, 6, 3],
        }
    }

    fn bottleneck(self) -> bool {
        matches!(self, Self::R50 | Self::WideR50)
    }

    /// Channels after layer1..layer4.
    pub fn channels(self) -> [usize; 4] {
        if self.bottleneck() { [256, 512, 1024, 2048] } else { [64, 128, 256, 512] }
    }
}

/// The convolutions of one residual block; `main` runs in order, the last without ReLU, which
/// follows the sum with the shortcut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSpec {
    pub main: Vec<ConvSpec>,
    /// A 1×1 projection where shape or stride change, else the identity.
    pub shortcut: Option<ConvSpec>,
}

impl BlockSpec {
    /// Two 3×3 convolutions under the path `at`.
    pub fn basic(at: &str, c_in: usize, c_out: usize, stride: usize) -> Self {
        Self {
            main: vec![
                conv_bn(at, 1, c_in, c_out, 3, stride, true),
                conv_bn(at, 2, c_out, c_out, 3, 1, false),
            ],
            shortcut: projection(at, c_in, c_out, stride),
        }
    }

    /// 1×1 down to `width`, 3×3, 1×1 up to `c_out`.
    pub fn bottleneck(at: &str, c_in: usize, width: usize, c_out: usize, stride: usize) -> Self {
        Self {
            main: vec![
                conv_bn(at, 1, c_in, width, 1, 1, true),
                conv_bn(at, 2, width, width, 3, stride, true),
                conv_bn(at, 3, width, c_out, 1, 1, false),
            ],
            shortcut: projection(at, c_in, c_out, stride),
        }
    }

    fn convs(&self) -> impl Iterator<Item = &ConvSpec> {
        self.main.iter().chain(&self.shortcut)
    }
}

/// A whole network as a description: what training and the line are both built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    pub stem: ConvSpec,
    pub layers: Vec<Vec<BlockSpec>>,
}

impl NetworkSpec {
    /// Stem and layer1..`last_layer` (1 to 4).
    pub fn new(depth: Depth, last_layer: usize) -> Result<Self> {
        ensure!(
            (1..=4).contains(&last_layer),
            "{} has layers 1 to 4, not {last_layer}",
            depth.word()
        );
        let widen = if depth == Depth::WideR50 { 2 } else { 1 };
        let mut c_in = 64;
        let mut layers = Vec::new();
        for (i, (blocks, c_out)) in depth.blocks().into_iter().zip(depth.channels()).enumerate() {
            let mut layer = Vec::new();
            for b in 0..blocks {
                let at = format!("layer{}.{b}.", i + 1);
                let stride = if b == 0 && i > 0 { 2 } else { 1 };
                layer.push(if depth.bottleneck() {
                    BlockSpec::bottleneck(&at, c_in, c_out / 4 * widen, c_out, stride)
                } else {
                    BlockSpec::basic(&at, c_in, c_out, stride)
                });
                c_in = c_out;
            }
            layers.push(layer);
        }
        layers.truncate(last_layer);
        Ok(Self { stem: stem("", 64), layers })
    }

    fn convs(&self) -> impl Iterator<Item = &ConvSpec> {
        let blocks = self.layers.iter().flatten();
        std::iter::once(&self.stem).chain(blocks.flat_map(BlockSpec::convs))
    }

    /// Learned tensors: torchvision names and shapes.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        self.convs().flat_map(ConvSpec::parameters).collect()
    }

    /// Every tensor a weight file must hold: the learned ones and the running statistics.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.convs().flat_map(|conv| [conv.parameters(), conv.statistics()].concat()).collect()
    }

    /// Weights drawn as torchvision initialises them: convolutions normal with σ = √(2/(O·K·K))
    /// (He et al. 2015, fan out), γ = 1, β = 0, μ = 0, σ² = 1. For tests: features mean nothing.
    pub fn random_weights(&self, rng: &mut impl Rng) -> Result<Weights> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in self.tensors() {
            let tensor = match shape.as_slice() {
                &[o, _, k, _] => {
                    let sigma = (2.0 / (o * k * k) as f32).sqrt();
                    let values: Vec<f32> =
                        (0..shape.iter().product()).map(|_| sigma * normal(rng)).collect();
                    Tensor::from_vec(values, shape, &Device::Cpu)?
                }
                _ if name.ends_with(".weight") || name.ends_with(".running_var") => {
                    Tensor::ones(shape, DType::F32, &Device::Cpu)?
                }
                _ => Tensor::zeros(shape, DType::F32, &Device::Cpu)?,
            };
            tensors.insert(name, tensor);
        }
        Weights::from_tensors("random weights", tensors)
    }
}

/// 7×7 stride 2 convolution of the stem, under the path `at`.
pub fn stem(at: &str, c_out: usize) -> ConvSpec {
    conv_bn(at, 1, 3, c_out, 7, 2, true)
}

/// 3×3 maximum, stride 2, padding 1: `xs` [B, C, H, W] → [B, C, ⌈H/2⌉, ⌈W/2⌉]. The padding counts
/// as −∞; `xs` comes from a ReLU, where zero does the same.
pub fn max_pool(xs: &Tensor) -> Result<Tensor> {
    let padded = xs.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
    Ok(padded.max_pool2d_with_stride(3, 2)?)
}

/// A residual block for inference.
pub struct Block {
    main: Vec<Conv>,
    shortcut: Option<Conv>,
}

impl Block {
    pub fn load(spec: &BlockSpec, weights: &Weights, device: &Device) -> Result<Self> {
        let load = |conv: &ConvSpec| Conv::load(conv, weights, device);
        Ok(Self {
            main: spec.main.iter().map(load).collect::<Result<_>>()?,
            shortcut: spec.shortcut.as_ref().map(load).transpose()?,
        })
    }

    /// relu(main(xs) + shortcut(xs)); `xs` [B, C, H, W].
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let shortcut = match &self.shortcut {
            Some(projection) => projection.forward(xs)?,
            None => xs.clone(),
        };
        let mut ys = xs.clone();
        for conv in &self.main {
            ys = conv.forward(&ys)?;
        }
        Ok((ys + shortcut)?.relu()?)
    }
}

/// A frozen network, batch norm folded.
pub struct ResNet {
    stem: Conv,
    layers: Vec<Vec<Block>>,
    channels: Vec<usize>,
    sha256: String,
}

impl ResNet {
    /// Builds layer1..`last_layer` (1 to 4) from tensors under torchvision's names; others in the
    /// file are left alone.
    pub fn load(
        depth: Depth,
        last_layer: usize,
        weights: &Weights,
        device: &Device,
    ) -> Result<Self> {
        let spec = NetworkSpec::new(depth, last_layer)?;
        let mut layers = Vec::new();
        for layer in &spec.layers {
            let blocks = layer.iter().map(|block| Block::load(block, weights, device));
            layers.push(blocks.collect::<Result<Vec<_>>>()?);
        }
        Ok(Self {
            stem: Conv::load(&spec.stem, weights, device)?,
            layers,
            channels: depth.channels()[..last_layer].to_vec(),
            sha256: weights.sha256().to_owned(),
        })
    }
}

impl Backbone for ResNet {
    fn levels(&self, xs: &Tensor) -> Result<Vec<Tensor>> {
        let mut xs = max_pool(&self.stem.forward(xs)?)?;
        let mut levels = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            for block in layer {
                xs = block.forward(&xs)?;
            }
            levels.push(xs.clone());
        }
        Ok(levels)
    }

    fn channels(&self) -> &[usize] {
        &self.channels
    }

    fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// `<at>conv<n>` and `<at>bn<n>`; `at` is empty or ends in a dot.
fn conv_bn(
    at: &str,
    n: usize,
    c_in: usize,
    c_out: usize,
    kernel: usize,
    stride: usize,
    relu: bool,
) -> ConvSpec {
    let norm = Some(format!("{at}bn{n}"));
    ConvSpec { name: format!("{at}conv{n}"), norm, c_in, c_out, kernel, stride, relu }
}

fn projection(at: &str, c_in: usize, c_out: usize, stride: usize) -> Option<ConvSpec> {
    (stride != 1 || c_in != c_out).then(|| ConvSpec {
        name: format!("{at}downsample.0"),
        norm: Some(format!("{at}downsample.1")),
        c_in,
        c_out,
        kernel: 1,
        stride,
        relu: false,
    })
}

/// A standard normal number (Box & Muller 1958).
fn normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;

    fn random(depth: Depth, last_layer: usize) -> Weights {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        NetworkSpec::new(depth, last_layer).unwrap().random_weights(&mut rng).unwrap()
    }

    fn tensor(value: &Value) -> Tensor {
        let shape: Vec<usize> = serde_json::from_value(value["shape"].clone()).unwrap();
        let values: Vec<f32> = serde_json::from_value(value["data"].clone()).unwrap();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn flat(xs: &Tensor) -> Vec<f32> {
        xs.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn parameter_counts_equal_torchvisions() {
        // Without fc; torchvision 0.29.
        struct Case(Depth, usize, usize, usize);
        let cases = [
            Case(Depth::R18, 2_782_784, 11_176_512, 122 - 2),
            Case(Depth::R34, 8_170_304, 21_284_672, 218 - 2),
            Case(Depth::R50, 8_543_296, 23_508_032, 320 - 2),
            Case(Depth::WideR50, 24_862_528, 66_834_240, 320 - 2),
        ];
        for Case(depth, to_layer3, to_layer4, entries) in cases {
            for (last_layer, want) in [(3, to_layer3), (4, to_layer4)] {
                let parameters = NetworkSpec::new(depth, last_layer).unwrap().parameters();
                let count = parameters.iter().map(|(_, shape)| shape.iter().product::<usize>());
                assert_eq!(count.sum::<usize>(), want, "{depth:?} to layer{last_layer}");
            }
            let tensors = NetworkSpec::new(depth, 4).unwrap().tensors();
            let norms = tensors.iter().filter(|(name, _)| name.ends_with("running_var")).count();
            // Each batch norm also has num_batches_tracked in a state dict.
            assert_eq!(tensors.len() + norms, entries, "{depth:?}");
        }
    }

    #[test]
    fn names_are_torchvisions() {
        let name_of = |depth, i: usize| NetworkSpec::new(depth, 4).unwrap().tensors()[i].0.clone();
        assert_eq!(name_of(Depth::R18, 0), "conv1.weight");
        assert_eq!(name_of(Depth::R18, 3), "bn1.running_mean");
        assert_eq!(name_of(Depth::R50, 20), "layer1.0.downsample.0.weight");
        assert_eq!(name_of(Depth::R50, 24), "layer1.0.downsample.1.running_var");
        assert_eq!(name_of(Depth::R50, 264), "layer4.2.bn3.running_var");
    }

    #[test]
    fn features_have_the_published_shapes() {
        let xs = Tensor::ones((1, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
        for (depth, last_layer, widest) in [(Depth::R18, 4, 512), (Depth::R50, 3, 1024)] {
            let weights = random(depth, last_layer);
            let net = ResNet::load(depth, last_layer, &weights, &Device::Cpu).unwrap();
            let levels = net.levels(&xs).unwrap();
            assert_eq!(levels.len(), last_layer);
            assert_eq!(net.channels()[last_layer - 1], widest);
            for (i, level) in levels.iter().enumerate() {
                let side = 16 >> i;
                assert_eq!(level.dims(), [1, net.channels()[i], side, side], "{depth:?}");
                assert!(flat(level).iter().all(|x| x.is_finite()));
            }
        }
    }

    #[test]
    fn file_of_another_network_is_refused() {
        let weights = random(Depth::R18, 3);
        let error = ResNet::load(Depth::R18, 4, &weights, &Device::Cpu).err().unwrap();
        assert!(format!("{error:#}").contains("no tensor layer4.0.conv1.weight"), "{error:#}");
        let error = ResNet::load(Depth::R50, 3, &weights, &Device::Cpu).err().unwrap();
        let want = "tensor layer1.0.conv1.weight has shape [64, 64, 3, 3]";
        assert!(format!("{error:#}").contains(want), "{error:#}");
        assert!(NetworkSpec::new(Depth::R18, 5).is_err());
    }

    #[test]
    fn stem_and_block_equal_the_vector() {
        let Some(path) = shared("spec/vectors/basic_block_stem.json") else { return };
        let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let tensors = file["params"].as_object().unwrap().iter();
        let tensors = tensors.map(|(name, value)| (name.clone(), tensor(value))).collect();
        let weights = Weights::from_tensors("vector", tensors).unwrap();
        let stem = Conv::load(&stem("", 4), &weights, &Device::Cpu).unwrap();
        let block = BlockSpec::basic("block.", 4, 6, 2);
        let block = Block::load(&block, &weights, &Device::Cpu).unwrap();
        let pooled = max_pool(&stem.forward(&tensor(&file["inputs"]["x"])).unwrap()).unwrap();
        let out = block.forward(&pooled).unwrap();
        for (name, got) in [("eval_pool", pooled), ("eval_out", out)] {
            let want = tensor(&file["expected"][name]);
            assert_eq!(got.dims(), want.dims(), "{name}");
            for (got, want) in flat(&got).iter().zip(flat(&want)) {
                assert!((got - want).abs() <= 2e-5 + 1e-4 * want.abs(), "{name}: {got} {want}");
            }
        }
    }

    #[test]
    fn shared_weight_files_load() {
        let xs = Tensor::ones((1, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
        for (depth, file) in [(Depth::R18, "resnet18"), (Depth::R50, "resnet50")] {
            let Some(path) = shared(&format!("weights/{file}.safetensors")) else { return };
            let weights = Weights::open(&path).unwrap();
            let net = ResNet::load(depth, 3, &weights, &Device::Cpu).unwrap();
            let layer3 = &net.levels(&xs).unwrap()[2];
            assert!(flat(layer3).iter().all(|x| x.is_finite() && *x >= 0.0));
            assert!(flat(layer3).iter().any(|x| *x > 0.0));
        }
    }
}
