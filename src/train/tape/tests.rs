//! The tape against candle's own differentiation of the reference.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::nn::attention::{Embedding, Scale, multi_size_attention};
use crate::nn::engine;
use crate::nn::fusion::{Depthwise, multi_scale_fusion};
use crate::nn::graph::{Conv, Graph, LevelRule, Neighbour, Op, Resample};
use crate::nn::reference::{self, batch_statistics};
use crate::nn::texture::{self, Sizes};
use crate::nn::{destseg, mlff, ntsnet, prn};
use crate::ops::interpolate::Align;
use crate::train::parameters::Start;

/// Variables, and batch norms of either kind.
struct Variables<'a> {
    tensors: BTreeMap<String, Var>,
    statistics: &'a dyn Fn(&str) -> Statistics,
}

impl reference::Parameters for Variables<'_> {
    fn get(&self, name: &str, shape: &[usize]) -> anyhow::Result<Tensor> {
        let tensor = self.tensors[name].as_tensor().clone();
        assert_eq!(tensor.dims(), shape, "{name}");
        Ok(tensor)
    }

    fn statistics(&self, name: &str, xs: &Tensor) -> anyhow::Result<(Tensor, Tensor)> {
        if (self.statistics)(name) == Statistics::Batch {
            return batch_statistics(xs);
        }
        let c = xs.dim(1)?;
        let get = |kind: &str| reference::Parameters::get(self, &format!("{name}.{kind}"), &[c]);
        Ok((get("running_mean")?, get("running_var")?))
    }
}

fn random(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0_f32)).collect()
}

/// All tensors random, variances positive; a network whose every part matters.
fn parameters_of(graph: &Graph, seed: u64) -> Parameters {
    let mut parameters = Parameters::begin(graph, seed, |_| Some(Start::FanOut));
    let mut rng = ChaCha8Rng::seed_from_u64(seed + 1);
    let names: Vec<String> = parameters.names().map(str::to_owned).collect();
    for name in names {
        let values = parameters.get_mut(&name).unwrap();
        let norm = values.iter().all(|&value| value == 0.0 || value == 1.0);
        if norm {
            values.iter_mut().for_each(|value| *value += rng.random_range(-0.3..0.3));
        }
    }
    parameters
}

/// Every output and every gradient of the sum of all outputs, weighted at random: the length of the
/// difference within a share of the tensor's length, of `bounds` that of outputs and of gradients.
fn same_as_candle(
    graph: &Graph,
    images: usize,
    training: &Training<'_>,
    threads: usize,
    bounds: (f64, f64),
) {
    let mut parameters = parameters_of(graph, 11);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let engine =
        Engine::new(&engine::Config { threads: Some(threads), ..Default::default() }).unwrap();
    let mut tape = Tape::new(graph, images, &engine, training).unwrap();
    let variable = |(name, tensor): (String, Tensor)| (name, Var::from_tensor(&tensor).unwrap());
    let tensors = parameters.tensors().unwrap().into_iter().map(variable).collect();
    let variables = Variables { tensors, statistics: training.statistics };

    let mut inputs = Vec::new();
    let given = graph.nodes().iter().filter(|node| node.op == Op::Input);
    for (i, node) in given.enumerate() {
        let dims = [images, node.dims.channels, node.dims.height, node.dims.width];
        let values = random(&mut rng, dims.iter().product());
        tape.input(i).write(&values);
        inputs.push(Tensor::from_vec(values, &dims, &Device::Cpu).unwrap());
    }
    let want = reference::run_on(graph, &variables, &inputs).unwrap();
    tape.forward(&mut parameters).unwrap();
    let mut loss = Tensor::zeros((), candle_core::DType::F32, &Device::Cpu).unwrap();
    for (i, want) in want.iter().enumerate() {
        let got = tape.output(i).read();
        close(&got, &flat(want), bounds.0, &format!("output {i}"));
        let weights = random(&mut rng, got.len());
        if let Some(gradient) = tape.output_gradient(i) {
            gradient.write(&weights);
            let weights = Tensor::from_vec(weights, want.dims(), &Device::Cpu).unwrap();
            loss = (loss + (want * weights).unwrap().sum_all().unwrap()).unwrap();
        }
    }
    tape.backward(&parameters).unwrap();
    let store = loss.backward().unwrap();
    let mut compared = 0;
    let wanted = |name: &str| -> Vec<f32> {
        flat(store.get(variables.tensors[name].as_tensor()).unwrap_or_else(|| panic!("{name}")))
    };
    let without_effect = biases_without_effect(graph, training);
    for (name, got) in tape.gradients() {
        match without_effect.get(name) {
            // Nothing but rounding of what the weights' gradients are sums of.
            Some(weight) => {
                let most = bounds.1 * length(&wanted(weight)).max(1e-6);
                let own = length(got);
                assert!(own <= most, "{name}: {own} instead of nothing");
            }
            None => close(got, &wanted(name), bounds.1, name),
        }
        compared += 1;
    }
    let learned = graph
        .tensors()
        .into_iter()
        .filter(|(name, _)| (training.learned)(name) && !name.contains("running_"));
    assert_eq!(compared, learned.count());
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// Biases whose gradients are zero, with the weights beside them: before a batch norm, which takes the
/// batch's mean away, and of keys, whose softmax does not change if all of a query's logits do.
fn biases_without_effect(graph: &Graph, training: &Training<'_>) -> BTreeMap<String, String> {
    let mut biases = BTreeMap::new();
    for node in graph.nodes() {
        let before = match &node.op {
            Op::BatchNorm { name } if (training.statistics)(name) == Statistics::Batch => 0,
            Op::PatchAttention { .. } => 1,
            _ => continue,
        };
        if let Op::Conv(Conv { name, bias: true, .. }) | Op::PatchAffine { name, .. } =
            &graph.node(node.inputs[before]).op
        {
            biases.insert(format!("{name}.bias"), format!("{name}.weight"));
        }
    }
    biases
}

fn close(got: &[f32], want: &[f32], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let difference: Vec<f32> = got.iter().zip(want).map(|(got, want)| got - want).collect();
    let (off, whole) = (length(&difference), length(want));
    assert!(off <= bound * whole.max(1e-6), "{what}: off by {off} of {whole}");
}

/// Of small networks: sums of hundreds of products in f32, in another order.
const SMALL: (f64, f64) = (2e-5, 2e-4);

/// Of deep ones. Among their hundred thousands of ReLUs some have an argument that is a rounding away
/// from zero, which one side opens and the other does not. Outputs hardly show it; in the gradients of
/// all layers before it one place's share is missing, which was seen to be 3 % of the length. A wrong
/// factor, sign or term is more than that, and the small network shows it sharper.
const DEEP: (f64, f64) = (1e-4, 0.1);

const ALL: Training<'_> = Training { learned: &|_| true, statistics: &|_| Statistics::Batch };

#[test]
fn a_small_network_of_every_operation_is_candles() {
    for threads in [1, 2] {
        let (mut g, xs) = Graph::new(16, 24);
        let xs = g.conv(xs, Conv::new("stem", 3, 20, 7).stride(2));
        let xs = g.batch_norm(xs, "norm");
        let xs = g.relu(xs);
        let xs = g.max_pool(xs);
        let ys = crate::nn::layers::basic_block(&mut g, xs, "block.", 33, 2);
        let up = g.upsample(ys, (4, 6), Resample::Bilinear(Align::HalfPixel));
        let corners = g.upsample(ys, (4, 6), Resample::Bilinear(Align::Corners));
        let mean = g.region_mean(ys, 1);
        let spread = g.upsample(mean, (4, 6), Resample::Nearest);
        let sum = g.add(up, spread);
        let gate = g.sigmoid(corners);
        let shares = g.place_softmax(corners);
        let sum = g.add(sum, shares);
        let product = g.mul(sum, gate);
        let slope = g.leaky_relu(product, 0.2);
        let product = g.cosine_product(slope, up);
        let distance = g.cosine_distance(product, sum, Distance::OneMinusCosine);
        let pooled = g.average_pool(slope, 2);
        let wide = g.conv(slope, Conv::new("wide", 33, 32, 3).dilation(2).with_bias());
        // The second part begins within a block.
        let all = g.concat(&[xs, wide]);
        let last = g.conv(all, Conv::new("last", 52, 3, 1).with_bias());
        g.set_outputs(vec![last, distance, pooled]);
        same_as_candle(&g, 3, &ALL, threads, SMALL);
    }
}

/// Everything of PRN's but its residual, each option, and weights that two places share.
#[test]
fn a_small_network_of_prns_operations_is_candles() {
    for threads in [1, 2] {
        let (mut g, xs) = Graph::new(16, 16);
        let mut xs = g.conv(xs, Conv::new("stem", 3, 12, 3).stride(2).with_bias());
        let options =
            [(Embedding::Shared, Scale::PatchSize), (Embedding::Elementwise, Scale::Root)];
        for (i, (embedding, scale)) in options.into_iter().enumerate() {
            xs = multi_size_attention(&mut g, xs, &format!("msa.{i}."), embedding, scale);
        }
        let ys = g.conv(xs, Conv::new("half", 12, 24, 3).stride(2).with_bias());
        let zs = g.conv(ys, Conv::new("quarter", 24, 48, 3).stride(2).with_bias());
        let scales = [xs, ys, zs];
        let fuse = |g: &mut Graph, scales, at: &str, depthwise| {
            multi_scale_fusion(g, scales, at, depthwise, Align::Corners)
        };
        let once = fuse(&mut g, scales, "separable.", Depthwise::Separable);
        let twice = fuse(&mut g, once, "separable.", Depthwise::Separable);
        let grouped = fuse(&mut g, scales, "grouped.", Depthwise::Grouped);
        let again = fuse(&mut g, grouped, "grouped.", Depthwise::Grouped);
        g.set_outputs([twice, again].concat());
        same_as_candle(&g, 3, &ALL, threads, SMALL);
    }
}

#[test]
fn what_can_not_be_trained_is_refused() {
    let engine = Engine::new(&engine::Config { threads: Some(1), ..Default::default() }).unwrap();
    let refused = |graph: &Graph| Tape::new(graph, 1, &engine, &ALL).err().unwrap().to_string();
    let (mut g, xs) = Graph::new(8, 8);
    let xs = g.conv(xs, Conv::new("stem", 3, 16, 3));
    let out = g.prototype_residual(xs, "prototypes.1", 2);
    g.set_outputs(vec![out]);
    assert!(refused(&g).contains("compared with prototypes.1 are learned"), "{}", refused(&g));
    let (mut g, xs) = Graph::new(8, 8);
    let xs = g.patch_affine(xs, "twice", 2);
    let out = g.patch_affine(xs, "twice", 2);
    g.set_outputs(vec![out]);
    assert!(refused(&g).contains("twice is learned at several places"), "{}", refused(&g));
}

#[test]
fn the_student_of_destseg_learns_as_candle_says() {
    let graph = destseg::Variant::default().student_training(64, 64);
    let student = |name: &str| name.starts_with(destseg::STUDENT);
    let training = Training {
        learned: &student,
        statistics: &|name| {
            if name.starts_with(destseg::STUDENT) { Statistics::Batch } else { Statistics::Running }
        },
    };
    same_as_candle(&graph, 2, &training, 2, DEEP);
}

#[test]
fn the_segmentation_of_destseg_learns_as_candle_says() {
    let graph = destseg::graph(64, 64);
    let graph = graph.to_outputs(&graph.outputs()[..1]);
    let own = |name: &str| name.starts_with(destseg::SEGMENTATION);
    let training = Training {
        learned: &own,
        statistics: &|name| {
            if name.starts_with(destseg::SEGMENTATION) {
                Statistics::Batch
            } else {
                Statistics::Running
            }
        },
    };
    same_as_candle(&graph, 2, &training, 2, DEEP);
}

#[test]
fn the_student_of_ntsnet_learns_as_candle_says() {
    let graph = ntsnet::graph(64, 64);
    let own = |name: &str| name.starts_with(ntsnet::STUDENT);
    let training = Training {
        learned: &own,
        statistics: &|name| {
            if name.starts_with(ntsnet::STUDENT) { Statistics::Batch } else { Statistics::Running }
        },
    };
    same_as_candle(&graph, 2, &training, 2, DEEP);
}

/// What PRN learns: all but the encoder's stem to layer3, and the prototypes.
fn prn_learns(name: &str) -> bool {
    name.starts_with(prn::LAYER4)
        || !name.starts_with(prn::ENCODER) && !name.starts_with("prototypes.")
}

fn prn_is_candles(variant: prn::Variant, images: usize) {
    let graph = variant.graph(128, [3; 3]);
    let training = Training {
        learned: &prn_learns,
        statistics: &|name| {
            if prn_learns(name) { Statistics::Batch } else { Statistics::Running }
        },
    };
    same_as_candle(&graph, images, &training, 2, DEEP);
}

#[test]
fn prn_learns_as_candle_says() {
    prn_is_candles(prn::Variant::default(), 2);
}

#[test]
fn prn_of_other_options_learns_as_candle_says() {
    let variant = prn::Variant {
        encoder: crate::nn::teacher::Teacher::Compact,
        embedding: prn::Embedding::Elementwise,
        depthwise: prn::Depthwise::Grouped,
        shared_fusion: true,
        align: Align::HalfPixel,
        ..prn::Variant::default()
    };
    prn_is_candles(variant, 2);
}

/// The pyramid's last batch norm with running statistics: with the batch's it would take away what the
/// biases of its branches add to all places alike, and their gradients would be what rounding leaves.
const ALL_TEXTURES: Training<'_> = Training {
    learned: &|_| true,
    statistics: &|name| {
        if name == "ptfem.out.1" { Statistics::Running } else { Statistics::Batch }
    },
};

/// Everything of the texture branch, small. No cosine lies so near to the edge of a level that a rounding
/// would take it to the other side.
#[test]
fn texture_statistics_learn_as_candle_says() {
    let rules =
        [(LevelRule::Paper, Neighbour::Right, 1), (LevelRule::Reference, Neighbour::Diagonal, 2)];
    for (rule, neighbour, threads) in rules {
        let (mut g, xs) = Graph::new(16, 24);
        let xs = g.conv(xs, Conv::new("stem", 3, 20, 3).stride(2));
        let sizes = Sizes { width: 5, levels: 8, rule, neighbour };
        let enhanced = texture::enhance(&mut g, xs, "tem.", sizes);
        let both = g.concat(&[enhanced, xs]);
        let sizes = Sizes { levels: 4, ..sizes };
        let pyramid = texture::pyramid(&mut g, both, "ptfem.", (17, &[1, 2, 4]), sizes);
        g.set_outputs(vec![enhanced, pyramid]);
        same_as_candle(&g, 3, &ALL_TEXTURES, threads, SMALL);
    }
}

#[test]
fn mlff_learns_as_candle_says() {
    let variant = mlff::Variant {
        encoder: mlff::Encoder::Resnet18,
        levels: LevelRule::Reference,
        ..mlff::Variant::default()
    };
    // Wider than high, so that the calibration's smallest map has more than one place.
    let graph = variant.graph(64, 128);
    same_as_candle(&graph, 2, &ALL_TEXTURES, 2, DEEP);
}
