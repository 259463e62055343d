//! Whole networks, compiled for a card and run in the interpreter, against candle.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use inspectd::cuda::Gpu;
use inspectd::cuda::plan::Plan;
use inspectd::nn::cot::Attention;
use inspectd::nn::graph::{self, Conv, Graph, Op, Resample, Value};
use inspectd::nn::resnet::{self, Depth};
use inspectd::nn::weights::Weights;
use inspectd::nn::{compact, destseg, mlff, ntsnet, prn, reference};
use inspectd::ops::interpolate::Align;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::data::noise;
use crate::interpreter::{Buffer, Interpreter};

/// Drawn weights whose batch norms are not the identity, and small enough that numbers stay
/// moderate where no batch norm follows.
fn weights(graph: &Graph) -> Weights {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let drawn = graph.random_weights(&mut rng).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, tensor) in drawn.tensors() {
        let mut tensor = tensor.clone();
        if tensor.dims().len() == 1 {
            let (from, to) = if name.ends_with("running_var") || name.ends_with("weight") {
                (0.6, 1.2)
            } else {
                (-0.2, 0.2)
            };
            let values: Vec<f32> =
                (0..tensor.elem_count()).map(|_| rng.random_range(from..to)).collect();
            tensor = Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap();
        } else if let &[o, c, _, _] = tensor.dims()
            && name.ends_with(".weight")
        {
            tensor = (tensor * (0.7 * (o as f64 / c as f64).sqrt())).unwrap();
        }
        tensors.insert(name.to_owned(), tensor);
    }
    Weights::from_tensors("drawn", tensors).unwrap()
}

/// A network on a card, with drawn inputs and what candle makes of them.
struct Trial {
    gpu: Interpreter,
    plan: Plan<Buffer>,
    wanted: Vec<Vec<f32>>,
}

impl Trial {
    /// `change` what the first input holds.
    fn of(graph: &Graph, images: usize, change: impl Fn(&mut [f32])) -> Self {
        let weights = weights(graph);
        let mut gpu = Interpreter::default();
        let plan = Plan::new(&mut gpu, graph, &weights, images).unwrap();
        let inputs = graph.nodes().iter().filter(|node| node.op == Op::Input);
        let mut tensors = Vec::new();
        for (i, node) in inputs.enumerate() {
            let graph::Dims { channels, height, width } = node.dims;
            let mut values = noise(images * channels * height * width, 6 + i as u32);
            values.iter_mut().for_each(|x| *x *= 2.0);
            if i == 0 {
                change(&mut values);
            }
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            gpu.upload(&bytes, plan.input(i)).unwrap();
            let shape = (images, channels, height, width);
            tensors.push(Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
        }
        let wanted = reference::run_on(graph, &weights, &tensors).unwrap();
        let numbers = |xs: &Tensor| xs.flatten_all().unwrap().to_vec1().unwrap();
        Self { gpu, plan, wanted: wanted.iter().map(numbers).collect() }
    }

    fn run(&mut self) -> Vec<Vec<f32>> {
        self.plan.run(&mut self.gpu).unwrap();
        (0..self.wanted.len()).map(|i| self.gpu.read_floats(self.plan.output(i)).unwrap()).collect()
    }
}

/// Holds the card's outputs for `images` pictures against candle's, each to `bound` of its largest
/// number.
pub fn check(name: &str, graph: &Graph, images: usize, bound: f32) {
    let mut trial = Trial::of(graph, images, |_| {});
    let first = trial.run();
    for (i, (got, want)) in first.iter().zip(&trial.wanted).enumerate() {
        assert_eq!(got.len(), want.len(), "{name}, output {i}");
        let largest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let apart = got.iter().zip(want).fold(0.0f32, |most, (got, want)| {
            let apart = (got - want).abs();
            if apart.is_nan() { f32::INFINITY } else { most.max(apart) }
        });
        assert!(apart <= bound * largest, "{name}, output {i}: {apart} of {largest} apart");
        println!("{name}, output {i}: {} of {largest} apart", apart / largest);
    }
    println!(
        "{name}: {} launches, {} instructions",
        trial.plan.launches().len(),
        trial.gpu.taken.instructions
    );
    if trial.gpu.taken.instructions < 20_000_000 {
        assert!(trial.run() == first, "{name}: another answer in memory that was used before");
    }
}

/// Where candle has NaN from one in the first input, the card has it too; and there is some.
pub fn nan_shows(name: &str, graph: &Graph, images: usize) {
    let mut trial = Trial::of(graph, images, |values| values[0] = f32::NAN);
    let mut shown = 0;
    for (i, (got, want)) in trial.run().iter().zip(&trial.wanted).enumerate() {
        for (got, want) in got.iter().zip(want) {
            assert!(got.is_nan() || !want.is_nan(), "{name}, output {i}: {got} where it is NaN");
        }
        shown += usize::from(got.iter().any(|x| x.is_nan()));
    }
    assert!(shown > 0, "{name}");
}

#[test]
fn the_compact_backbone_is_computed() {
    check("compact", &compact::graph(32, 32), 1, 1e-5);
    check("compact, two pictures", &compact::graph(32, 48), 2, 1e-5);
}

#[test]
fn concatenations_within_each_other_and_values_read_twice_lie_right() {
    let (mut g, xs) = Graph::new(12, 10);
    let other = g.input(graph::Dims { channels: 5, height: 12, width: 10 });
    let conv = |g: &mut Graph, xs, name: &str, c_in: usize, c_out: usize| {
        g.conv(xs, Conv::new(name, c_in, c_out, 3).with_bias())
    };
    let stem = conv(&mut g, xs, "stem", 3, 32);
    let a = conv(&mut g, stem, "a", 32, 16);
    let b = conv(&mut g, a, "b", 16, 21);
    let inner = g.concat(&[stem, a]);
    // `a` twice, an input, and parts whose channels begin anywhere.
    let outer = g.concat(&[inner, other, a, b]);
    let last = conv(&mut g, outer, "last", 90, 24);
    let doubled = g.add(last, last);
    let up = g.upsample(doubled, (33, 17), Resample::Bilinear(Align::Corners));
    g.set_outputs(vec![up, outer, a, other]);
    for images in [1, 2] {
        check("made up", &g, images, 1e-5);
    }
}

/// The same network with an eighth of the channels, at least one, where they are a convolution's
/// choice: all operations, joints and concatenations are there, and the interpreter is done in
/// seconds.
fn thin(graph: &Graph) -> Graph {
    const BY: usize = 8;
    let nodes = graph.nodes();
    let first = nodes[0].dims;
    let (mut g, input) = Graph::new(first.height, first.width);
    let mut now: Vec<Value> = vec![input];
    for (i, node) in nodes.iter().enumerate().skip(1) {
        let xs: Vec<Value> = node.inputs.iter().map(|x| now[x.index()]).collect();
        let size = (node.dims.height, node.dims.width);
        let made = match &node.op {
            Op::Input => g.input(node.dims),
            Op::Conv(conv) => {
                let logits = nodes.iter().any(|reader| {
                    reader.op == Op::WindowAttention && reader.inputs[0].index() == i
                });
                let c_in = g.dims(xs[0]).channels;
                let thinner = |channels: usize| channels.div_ceil(BY);
                let groups = if conv.is_depthwise() { c_in } else { conv.groups };
                let c_out = match conv.c_out {
                    _ if conv.is_depthwise() => c_in,
                    c_out if logits => 9 * thinner(c_out / 9),
                    c_out if c_out < BY => c_out,
                    c_out => thinner(c_out).next_multiple_of(groups),
                };
                g.conv(xs[0], Conv { c_in, c_out, groups, ..conv.clone() })
            }
            Op::BatchNorm { name } => g.batch_norm(xs[0], name),
            Op::Relu => g.relu(xs[0]),
            Op::LeakyRelu { slope } => g.leaky_relu(xs[0], *slope),
            Op::Sigmoid => g.sigmoid(xs[0]),
            Op::Add => g.add(xs[0], xs[1]),
            Op::Mul => g.mul(xs[0], xs[1]),
            Op::MaxPool => g.max_pool(xs[0]),
            Op::AveragePool { kernel } => g.average_pool(xs[0], *kernel),
            Op::RegionMean { regions } => g.region_mean(xs[0], *regions),
            Op::Upsample(rule) => g.upsample(xs[0], size, *rule),
            Op::Concat => g.concat(&xs),
            Op::RepeatChannels { times } => g.repeat_channels(xs[0], *times),
            Op::CosineProduct => g.cosine_product(xs[0], xs[1]),
            Op::CosineDistance(rule) => g.cosine_distance(xs[0], xs[1], *rule),
            Op::PrototypeResidual { name, prototypes } => {
                g.prototype_residual(xs[0], name, *prototypes)
            }
            Op::PatchAttention { patch, scale } => {
                g.patch_attention([xs[0], xs[1], xs[2]], *patch, *scale)
            }
            Op::PatchAffine { name, patch } => g.patch_affine(xs[0], name, *patch),
            Op::WindowAttention => g.window_attention(xs[0], xs[1]),
            Op::PlaceSoftmax => g.place_softmax(xs[0]),
            Op::CosineToMean => g.cosine_to_mean(xs[0], xs[1]),
            Op::LevelCounts { levels, rule } => g.level_counts(xs[0], *levels, *rule),
            Op::CoOccurrence { levels, regions, rule, neighbour } => {
                g.co_occurrence(xs[0], *levels, *regions, (*rule, *neighbour))
            }
            Op::RepeatRegions { times } => g.repeat_regions(xs[0], *times),
            Op::MeanRegions => g.mean_regions(xs[0]),
            Op::LevelAttention => g.level_attention(xs[0], xs[1], xs[2]),
            Op::SpreadLevels { rule } => g.spread_levels(xs[0], xs[1], *rule),
        };
        now.push(made);
    }
    g.set_outputs(graph.outputs().iter().map(|output| now[output.index()]).collect());
    g
}

#[test]
fn the_residual_networks_are_computed() {
    for depth in [Depth::R18, Depth::R50] {
        let graph = resnet::graph(depth, 3, (64, 64)).unwrap();
        check(depth.word(), &thin(&graph), 1, 1e-5);
    }
}

#[test]
fn the_five_systems_are_computed() {
    check("destseg", &thin(&destseg::graph(64, 64)), 1, 1e-5);
    for attention in [Attention::Local, Attention::Global] {
        let variant = ntsnet::Variant { attention, ..Default::default() };
        check("ntsnet", &thin(&variant.graph(64, 64)), 1, 1e-5);
    }
    let paper = prn::Variant::default();
    let other = prn::Variant {
        residual: prn::Residual::Squared,
        attention: false,
        shared_fusion: true,
        ..paper
    };
    for (name, variant) in [("prn", paper), ("prn, other options", other)] {
        check(name, &thin(&variant.graph(128, [3; 3])), 1, 1e-5);
    }
    // A cosine at the edge of one of the paper's levels falls to a side by its last bit.
    let levels = graph::LevelRule::Reference;
    let mlff = mlff::Variant { encoder: mlff::Encoder::Resnet18, levels, ..Default::default() };
    check("mlff", &thin(&mlff.graph(64, 64)), 1, 1e-5);
}

/// How often a plan launches each kernel.
fn launched(graph: &Graph, images: usize) -> BTreeMap<&'static str, usize> {
    let mut gpu = Interpreter::default();
    let plan = Plan::new(&mut gpu, graph, &weights(graph), images).unwrap();
    let mut counts = BTreeMap::new();
    for launch in plan.launches() {
        *counts.entry(launch.entry).or_default() += 1;
    }
    counts
}

#[test]
fn what_can_be_done_at_once_is_one_launch() {
    // Norm, sum and ReLU are a convolution's; levels are compared together.
    let residual = launched(&thin(&resnet::graph(Depth::R50, 3, (64, 64)).unwrap()), 1);
    let others = residual.keys().filter(|entry| !entry.starts_with("convolve_"));
    assert!(others.eq(&["finish_sums", "max_pool"]), "{residual:?}");
    let (destseg, ntsnet) = (thin(&destseg::graph(64, 64)), thin(&ntsnet::graph(64, 64)));
    for (graph, images) in [(&destseg, 1), (&ntsnet, 1), (&ntsnet, 2)] {
        assert_eq!(launched(graph, images)["cosine_distances_f32"], 1);
    }
    // Of one picture, parts of a concatenation are made where it lies; of two they are copied.
    assert_eq!(launched(&destseg, 1).get("copy_rows"), None);
    assert!(launched(&destseg, 2)["copy_rows"] > 0);
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    let graph = compact::graph(32, 32);
    let all = weights(&graph);
    let missing = graph.tensors()[3].0.clone();
    let rest = all.tensors().filter(|(name, _)| *name != missing);
    let rest = rest.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
    let rest = Weights::from_tensors("drawn", rest).unwrap();
    let error = Plan::new(&mut Interpreter::default(), &graph, &rest, 1).err().unwrap();
    assert!(format!("{error:#}").contains(&missing), "{error:#}");
}

#[test]
fn values_share_memory() {
    let graph = thin(&resnet::graph(Depth::R18, 3, (64, 64)).unwrap());
    let mut gpu = Interpreter::default();
    let plan = Plan::new(&mut gpu, &graph, &weights(&graph), 1).unwrap();
    let all: usize = graph
        .nodes()
        .iter()
        .filter(|node| !matches!(node.op, Op::BatchNorm { .. } | Op::Relu | Op::Add))
        .map(|node| 4 * node.dims.channels * node.dims.height * node.dims.width)
        .sum();
    assert!(2 * plan.arena_bytes() < all + all / 2, "{} of {all}", plan.arena_bytes());
    assert!(plan.weight_bytes() > 4 * graph.parameter_count());
}
