//! The embedded compact backbone: 972,032 parameters trained to impersonate ResNet18's three feature
//! levels (heads are linear estimates of its layer1, layer2, layer3 outputs), so that the product
//! works with no download. Plain 3×3 convolutions with bias, no batch norm.

use anyhow::Result;

use super::graph::{Conv, Graph, Value};
use super::weights::Weights;

/// Half precision; widened to f32 when loaded.
const EMBEDDED: &[u8] = include_bytes!("../../assets/compact_f16.safetensors");

/// Width inside each stage, and what its head makes of it: ResNet18's channels.
const STAGES: [(usize, usize); 3] = [(64, 64), (96, 128), (160, 256)];

/// The whole network; its levels are the outputs.
pub fn graph(height: usize, width: usize) -> Graph {
    let (mut g, xs) = Graph::new(height, width);
    let levels = levels(&mut g, xs, "");
    g.set_outputs(levels);
    g
}

/// A stem, then three stages that each halve the picture and end in a level. `at` is a path: empty,
/// or ending in a dot.
pub fn levels(g: &mut Graph, xs: Value, at: &str) -> Vec<Value> {
    let mut xs = conv_relu(g, xs, format!("{at}stem"), 32, 2);
    let mut levels = Vec::with_capacity(STAGES.len());
    for (i, (width, c_out)) in STAGES.into_iter().enumerate() {
        let n = i + 1;
        xs = conv_relu(g, xs, format!("{at}down{n}"), width, 2);
        let ys = conv_relu(g, xs, format!("{at}block{n}.conv1"), width, 1);
        let conv2 = Conv::new(format!("{at}block{n}.conv2"), width, width, 3).with_bias();
        let ys = g.conv(ys, conv2);
        let sum = g.add(xs, ys);
        xs = g.relu(sum);
        levels.push(g.conv(xs, Conv::new(format!("{at}head{n}"), width, c_out, 1).with_bias()));
    }
    levels
}

/// The weights in the binary, named as [`graph`] names them.
pub fn embedded() -> Result<Weights> {
    Weights::from_bytes("embedded compact_f16.safetensors", EMBEDDED)
}

fn conv_relu(g: &mut Graph, xs: Value, name: String, c_out: usize, stride: usize) -> Value {
    let conv = Conv::new(name, g.dims(xs).channels, c_out, 3).stride(stride).with_bias();
    let ys = g.conv(xs, conv);
    g.relu(ys)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::nn::Backbone;
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
        let compact = Backbone::compact(&embedded().unwrap()).unwrap();
        assert_eq!(compact.graph(256, 256).parameter_count(), 972_032);
        let levels = compact.levels(&picture()).unwrap();
        let shapes: Vec<_> = levels.iter().map(|level| level.dims().to_vec()).collect();
        assert_eq!(shapes, [[1, 64, 64, 64], [1, 128, 32, 32], [1, 256, 16, 16]]);
        assert_eq!(compact.channels(), [64, 128, 256]);
    }

    #[test]
    fn half_precision_weights_give_the_f32_features() {
        let Some(path) = shared("weights/compact.safetensors") else { return };
        let full = Backbone::compact(&Weights::open(&path).unwrap()).unwrap();
        let half = Backbone::compact(&embedded().unwrap()).unwrap();
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
