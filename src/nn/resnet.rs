//! ResNet18, 34, 50 and Wide-ResNet50-2 (He et al. 2016; Zagoruyko & Komodakis 2016) under
//! torchvision's parameter names, up to layer3 or layer4. The stride of a bottleneck sits on its 3×3
//! convolution, as in torchvision ("V1.5").

use anyhow::{Result, ensure};

use super::graph::{Conv, Graph, Value};
use super::layers::{basic_block, conv_bn, conv_bn_relu, join};

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

/// A whole network: its outputs are the levels after layer1..`last_layer` (1 to 4).
///
/// # Errors
/// Another `last_layer`.
pub fn graph(depth: Depth, last_layer: usize, (height, width): (usize, usize)) -> Result<Graph> {
    ensure!((1..=4).contains(&last_layer), "{} has layers 1 to 4, not {last_layer}", depth.word());
    let (mut g, xs) = Graph::new(height, width);
    let levels = trunk(&mut g, xs, "", depth, last_layer);
    g.set_outputs(levels);
    Ok(g)
}

/// Stem and layer1..`last_layer` (1 to 4) under the path `at` (empty, or ending in a dot): what
/// each layer gives, [C1, H/4, W/4], [C2, H/8, W/8], …
pub fn trunk(g: &mut Graph, xs: Value, at: &str, depth: Depth, last_layer: usize) -> Vec<Value> {
    let widen = if depth == Depth::WideR50 { 2 } else { 1 };
    let mut xs = stem(g, xs, at, 64);
    let mut levels = Vec::with_capacity(last_layer);
    let layers = depth.blocks().into_iter().zip(depth.channels());
    for (i, (blocks, c_out)) in layers.enumerate().take(last_layer) {
        for b in 0..blocks {
            let at = format!("{at}layer{}.{b}.", i + 1);
            let stride = if b == 0 && i > 0 { 2 } else { 1 };
            xs = if depth.bottleneck() {
                bottleneck(g, xs, &at, (c_out / 4 * widen, c_out), stride)
            } else {
                basic_block(g, xs, &at, c_out, stride)
            };
        }
        levels.push(xs);
    }
    levels
}

/// 7×7 convolution of stride 2 (`<at>conv1`, `<at>bn1`) and 3×3 maximum of stride 2.
pub fn stem(g: &mut Graph, xs: Value, at: &str, c_out: usize) -> Value {
    let conv = Conv::new(format!("{at}conv1"), g.dims(xs).channels, c_out, 7).stride(2);
    let xs = conv_bn_relu(g, xs, conv, format!("{at}bn1"));
    g.max_pool(xs)
}

/// 1×1 down to `width`, 3×3, 1×1 up to `c_out`, and the shortcut.
fn bottleneck(
    g: &mut Graph,
    xs: Value,
    at: &str,
    (width, c_out): (usize, usize),
    stride: usize,
) -> Value {
    let conv1 = Conv::new(format!("{at}conv1"), g.dims(xs).channels, width, 1);
    let ys = conv_bn_relu(g, xs, conv1, format!("{at}bn1"));
    let conv2 = Conv::new(format!("{at}conv2"), width, width, 3).stride(stride);
    let ys = conv_bn_relu(g, ys, conv2, format!("{at}bn2"));
    let conv3 = Conv::new(format!("{at}conv3"), width, c_out, 1);
    let ys = conv_bn(g, ys, conv3, format!("{at}bn3"));
    join(g, xs, ys, at, stride)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::nn::Backbone;
    use crate::nn::graph::Dims;
    use crate::nn::vectors::{Batch, Vector};
    use crate::nn::weights::Weights;
    use crate::nn::{reference, vectors::flat};
    use crate::shared::shared;

    fn whole(depth: Depth, last_layer: usize) -> Graph {
        graph(depth, last_layer, (64, 64)).unwrap()
    }

    fn random(depth: Depth, last_layer: usize) -> Weights {
        whole(depth, last_layer).random_weights(&mut ChaCha8Rng::seed_from_u64(1)).unwrap()
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
                let count = whole(depth, last_layer).parameter_count();
                assert_eq!(count, want, "{depth:?} to layer{last_layer}");
            }
            let tensors = whole(depth, 4).tensors();
            let norms = tensors.iter().filter(|(name, _)| name.ends_with("running_var")).count();
            // Each batch norm also has num_batches_tracked in a state dict.
            assert_eq!(tensors.len() + norms, entries, "{depth:?}");
        }
    }

    #[test]
    fn names_are_torchvisions() {
        let name_of = |depth, i: usize| whole(depth, 4).tensors()[i].0.clone();
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
            let net = Backbone::resnet(depth, last_layer, &random(depth, last_layer)).unwrap();
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
        let error = Backbone::resnet(Depth::R18, 4, &weights).err().unwrap();
        assert!(format!("{error:#}").contains("no tensor layer4.0.conv1.weight"), "{error:#}");
        let error = Backbone::resnet(Depth::R50, 3, &weights).err().unwrap();
        let want = "tensor layer1.0.conv1.weight has shape [64, 64, 3, 3]";
        assert!(format!("{error:#}").contains(want), "{error:#}");
        assert!(graph(Depth::R18, 5, (64, 64)).is_err());
    }

    #[test]
    fn stem_and_block_equal_the_vector() {
        let Some(vector) = Vector::open("basic_block_stem") else { return };
        let mut g = Graph::default();
        let xs = g.input(Dims { channels: 3, height: 32, width: 32 });
        let pooled = stem(&mut g, xs, "", 4);
        let out = basic_block(&mut g, pooled, "block.", 6, 2);
        g.set_outputs(vec![pooled, out]);
        let weights = vector.weights(str::to_owned);
        let inputs = [vector.input("x")];
        let got = reference::run_on(&g, &weights, &inputs).unwrap();
        vector.assert_close("eval_pool", &got[0]);
        vector.assert_close("eval_out", &got[1]);
        let got = reference::run_on(&g, &Batch(weights), &inputs).unwrap();
        vector.assert_close("train_out", &got[1]);
    }

    #[test]
    fn shared_weight_files_load() {
        let xs = Tensor::ones((1, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
        for (depth, file) in [(Depth::R18, "resnet18"), (Depth::R50, "resnet50")] {
            let Some(path) = shared(&format!("weights/{file}.safetensors")) else { return };
            let net = Backbone::resnet(depth, 3, &Weights::open(&path).unwrap()).unwrap();
            let layer3 = &net.levels(&xs).unwrap()[2];
            assert!(flat(layer3).iter().all(|x| x.is_finite() && *x >= 0.0));
            assert!(flat(layer3).iter().any(|x| *x > 0.0));
        }
    }
}
