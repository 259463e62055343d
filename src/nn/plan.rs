//! A network made ready for the line: a [`Graph`] and its weights compiled for one batch size.
//!
//! Batch norm is folded into the convolution before it; bias, residual and ReLU happen in the
//! convolution's output stage; weights are packed once for the kernel that suits each layer; feature
//! maps share a few buffers, planned from when each is made and last read; the parts of a
//! concatenation are written where it lies. After that a run allocates nothing, takes no lock and
//! makes no system call (with more than one thread: but the call that wakes the others).
//!
//! With a [`Quantization`], convolutions read bytes instead ([`crate::ops::quantized_conv`]), and
//! what only they read is never there as floats.
//!
//! Letters: B pictures, C channels, H × W places.

mod bytes;
mod compile;
mod memory;
mod quantization;

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::graph::{Graph, LevelRule, Neighbour};
use super::weights::Weights;
use crate::ops::affine::Affine;
use crate::ops::byte_simd::ByteIsa;
use crate::ops::conv::{Conv, Stage};
use crate::ops::cosine_map::{self, Distance, Level};
use crate::ops::depthwise::Depthwise;
use crate::ops::feature_map::{Buffer, ByteBuffer, FeatureMap, Shape};
use crate::ops::patch_affine::PatchAffine;
use crate::ops::patch_attention::{self, patch_attention};
use crate::ops::place_softmax::place_softmax;
use crate::ops::prototype_residual::Prototypes;
use crate::ops::simd::Isa;
use crate::ops::stem_conv::{Planes, StemConv};
use crate::ops::team::Team;
use crate::ops::upsample::Upsample;
use crate::ops::window_attention::window_attention;
use crate::ops::{elementwise, pooling, texture};
use bytes::Bytes;
use memory::Place;
pub use quantization::{Calibrator, Precision, Quantization, calibrate};

/// A network for one batch size, its weights and its memory.
pub struct Plan {
    isa: Isa,
    byte_isa: ByteIsa,
    team: Arc<Team>,
    images: usize,
    planes: Planes,
    pixels: Buffer,
    buffers: Vec<Buffer>,
    byte_buffers: Vec<ByteBuffer>,
    scratch: Buffer,
    steps: Vec<Step>,
    outputs: Vec<Place>,
}

/// Levels whose cosine distances are computed in one pass, at most.
const MOST_LEVELS: usize = 4;

/// One operation with where it reads and writes.
struct Step {
    name: String,
    work: Work,
    from: Vec<Place>,
    /// None for [`Work::Bytes`], which has its own places.
    to: Option<Place>,
    /// Of what it makes.
    shape: Shape,
    flops: f64,
}

enum Work {
    Stem(StemConv),
    Conv {
        groups: Vec<Conv>,
        residual: Option<Place>,
        relu: bool,
    },
    Affine {
        affine: Affine,
        relu: bool,
    },
    Depthwise(Depthwise),
    Elementwise(Elementwise),
    MaxPool,
    AveragePool {
        kernel: usize,
    },
    RegionMean {
        regions: usize,
    },
    Upsample(Upsample),
    CosineProduct,
    /// Of the step's own two maps, and of `more` levels whose arguments follow and which are done in
    /// the same pass.
    CosineDistance {
        rule: Distance,
        more: Vec<Place>,
    },
    PrototypeResidual(Prototypes),
    PatchAttention {
        patch: usize,
        scale: f32,
    },
    PatchAffine(PatchAffine),
    WindowAttention,
    PlaceSoftmax,
    CosineToMean,
    LevelCounts {
        rule: LevelRule,
    },
    CoOccurrence {
        rule: LevelRule,
        neighbour: Neighbour,
    },
    RepeatRegions,
    MeanRegions,
    LevelAttention,
    SpreadLevels {
        rule: LevelRule,
    },
    Bytes(Bytes),
}

/// Place by place.
enum Elementwise {
    /// A part of a concatenation that could not be written in place.
    Copy,
    /// The same, beginning at this channel of the whole, within a block.
    CopyChannels(usize),
    /// Each channel as often as this.
    RepeatChannels(usize),
    Add,
    AddRelu,
    Mul,
    Relu,
    LeakyRelu(f32),
    Sigmoid,
}

/// What a layer is and costs, for reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Of the convolution, or the operation's word.
    pub name: String,
    /// `winograd`, `direct`, `int8`, …
    pub kernel: &'static str,
    /// Of what it makes.
    pub shape: Shape,
    /// Of the whole batch; multiplications that Winograd saves are counted.
    pub flops: f64,
    pub weight_bytes: usize,
}

impl Plan {
    /// Compiles `graph` for batches of `images` on the threads of `team`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or is not finite; an operation that is not on the
    /// line.
    pub fn new(
        graph: &Graph,
        weights: &Weights,
        images: usize,
        isa: Isa,
        team: Arc<Team>,
    ) -> Result<Self> {
        ensure!(images > 0, "a batch of no pictures");
        compile::compile(graph, weights, images, isa, team, None)
    }

    /// As [`Plan::new`], with the convolutions in int8 that `quantization` names. All machines
    /// compute the same sums of bytes; whether that is faster on this one, [`ByteIsa::pays`] says.
    ///
    /// # Errors
    /// As [`Plan::new`]; a quantization that was made for another network.
    pub fn quantized(
        graph: &Graph,
        weights: &Weights,
        quantization: &Quantization,
        images: usize,
        isa: Isa,
        team: Arc<Team>,
    ) -> Result<Self> {
        ensure!(images > 0, "a batch of no pictures");
        let int8 = Some((ByteIsa::of(isa), quantization));
        compile::compile(graph, weights, images, isa, team, int8)
    }

    /// What really runs.
    pub fn precision(&self) -> Precision {
        let in_bytes = |step: &Step| matches!(step.work, Work::Bytes(_));
        if self.steps.iter().any(in_bytes) { Precision::Int8 } else { Precision::F32 }
    }

    /// Pictures of a batch.
    pub fn images(&self) -> usize {
        self.images
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn team(&self) -> &Arc<Team> {
        &self.team
    }

    /// How the pixels lie in [`Plan::pixels`].
    pub fn planes(&self) -> Planes {
        self.planes
    }

    /// Where the normalised pixels of the batch are to be put before a run; the border stays zero.
    pub fn pixels(&mut self) -> &mut Buffer {
        &mut self.pixels
    }

    /// Computes the network on what [`Plan::pixels`] holds.
    ///
    /// # Errors
    /// A feature that is not finite would have become a byte, which does not show it. In floats it
    /// goes on to the outputs.
    pub fn run(&mut self) -> Result<()> {
        self.run_steps(|_| {})
    }

    /// As [`Plan::run`]; `after(i)` is called when step i, in the order of [`Plan::layers`], is done.
    pub fn run_steps(&mut self, mut after: impl FnMut(usize)) -> Result<()> {
        let mut finite = true;
        for (i, step) in self.steps.iter().enumerate() {
            finite &= self.run_step(step);
            after(i);
        }
        ensure!(finite, "a feature of the picture is not finite");
        Ok(())
    }

    /// False if a float that became a byte was not finite.
    fn run_step(&self, step: &Step) -> bool {
        let map = |place: &Place| place.map(&self.buffers);
        if let Work::Bytes(work) = &step.work {
            return work.run(&self.team, self.byte_isa, (&self.buffers, &self.byte_buffers));
        }
        let (team, scratch, to) = (&*self.team, &self.scratch, map(step.floats()));
        match &step.work {
            Work::Bytes(_) => unreachable!("done above"),
            Work::Stem(conv) => conv.run(team, &self.pixels, to, scratch),
            Work::Conv { groups, residual, relu } => {
                let residual = residual.as_ref().map(map);
                let from = map(&step.from[0]);
                let (c_in, c_out) =
                    (from.shape().channels / groups.len(), to.shape().channels / groups.len());
                for (group, conv) in groups.iter().enumerate() {
                    let residual = residual.map(|map| part(map, group, c_out));
                    let stage = Stage { residual, relu: *relu };
                    conv.run(team, part(from, group, c_in), part(to, group, c_out), stage, scratch);
                }
            }
            Work::Affine { affine, relu } => affine.run(team, map(&step.from[0]), to, *relu),
            Work::Depthwise(conv) => conv.run(team, self.isa, map(&step.from[0]), to),
            Work::Elementwise(kind) => self.elementwise(kind, step),
            Work::MaxPool => pooling::max_pool(team, self.isa, map(&step.from[0]), to),
            Work::AveragePool { kernel } => {
                pooling::average_pool(team, self.isa, *kernel, map(&step.from[0]), to);
            }
            Work::RegionMean { regions } => {
                pooling::region_mean(team, self.isa, *regions, map(&step.from[0]), to);
            }
            Work::Upsample(upsample) => upsample.run(team, self.isa, map(&step.from[0]), to),
            Work::CosineProduct => {
                let [a, b] = self.arguments(step);
                cosine_map::cosine_product(team, self.isa, a, b, to);
            }
            Work::CosineDistance { rule, more } => {
                let levels: [Level<'_>; MOST_LEVELS] = std::array::from_fn(|i| {
                    let i = i.min(more.len());
                    let to = if i == 0 { to } else { map(&more[i - 1]) };
                    Level { a: map(&step.from[2 * i]), b: map(&step.from[2 * i + 1]), to }
                });
                cosine_map::cosine_distances(team, self.isa, *rule, &levels[..=more.len()]);
            }
            Work::PrototypeResidual(prototypes) => {
                prototypes.residual(team, self.isa, &map(&step.from[0]), scratch, &to);
            }
            Work::PatchAttention { patch, scale } => {
                let maps = self.arguments(step);
                patch_attention(team, self.isa, maps, (*patch, *scale), scratch, to);
            }
            Work::PatchAffine(affine) => affine.run(team, self.isa, map(&step.from[0]), to),
            Work::WindowAttention => {
                let [logits, values] = self.arguments(step);
                window_attention(team, self.isa, &logits, &values, &to);
            }
            Work::PlaceSoftmax => {
                place_softmax(team, self.isa, map(&step.from[0]), to);
            }
            Work::CosineToMean => {
                let [xs, means] = self.arguments(step);
                texture::cosine_to_mean(team, self.isa, &xs, &means, &to);
            }
            Work::LevelCounts { rule } => {
                texture::level_counts(team, self.isa, &map(&step.from[0]), *rule, scratch, &to);
            }
            Work::CoOccurrence { rule, neighbour } => {
                let (cosines, pairs) = (map(&step.from[0]), (*rule, *neighbour));
                texture::co_occurrence(team, self.isa, &cosines, pairs, scratch, &to);
            }
            Work::RepeatRegions => {
                texture::repeat_regions(team, self.isa, &map(&step.from[0]), &to);
            }
            Work::MeanRegions => {
                texture::mean_regions(team, self.isa, &map(&step.from[0]), &to);
            }
            Work::LevelAttention => {
                let [k, q, v] = self.arguments(step);
                texture::level_attention(team, self.isa, [&k, &q, &v], scratch, &to);
            }
            Work::SpreadLevels { rule } => {
                let [cosines, d] = self.arguments(step);
                texture::spread_levels(team, self.isa, [&cosines, &d], *rule, scratch, &to);
            }
        }
        true
    }

    fn elementwise(&self, kind: &Elementwise, step: &Step) {
        let (team, isa) = (&*self.team, self.isa);
        let (a, to) = (step.from[0].map(&self.buffers), step.floats().map(&self.buffers));
        let b = || step.from[1].map(&self.buffers);
        match kind {
            Elementwise::Copy => elementwise::copy(team, isa, a, to),
            Elementwise::CopyChannels(first) => elementwise::copy_channels(team, a, to, *first),
            Elementwise::RepeatChannels(times) => {
                elementwise::repeat_channels(team, a, to, *times);
            }
            Elementwise::Add => elementwise::add(team, isa, a, b(), to),
            Elementwise::AddRelu => elementwise::add_relu(team, isa, a, b(), to),
            Elementwise::Mul => elementwise::mul(team, isa, a, b(), to),
            Elementwise::Relu => elementwise::relu(team, isa, a, to),
            Elementwise::LeakyRelu(slope) => elementwise::leaky_relu(team, isa, *slope, a, to),
            Elementwise::Sigmoid => elementwise::sigmoid(team, isa, a, to),
        }
    }

    fn arguments<const N: usize>(&self, step: &Step) -> [FeatureMap<'_>; N] {
        std::array::from_fn(|i| step.from[i].map(&self.buffers))
    }

    /// What the network made of the last run, in the order of the graph's outputs.
    pub fn output(&self, index: usize) -> FeatureMap<'_> {
        self.outputs[index].map(&self.buffers)
    }

    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// The steps of a run.
    pub fn layers(&self) -> Vec<Layer> {
        let layer = |step: &Step| Layer {
            name: step.name.clone(),
            kernel: step.work.word(),
            shape: step.shape,
            flops: step.flops,
            weight_bytes: step.work.bytes(),
        };
        self.steps.iter().map(layer).collect()
    }

    /// Bytes of feature maps, pixels and scratch memory.
    pub fn arena_bytes(&self) -> usize {
        let floats: usize = self.buffers.iter().map(Buffer::bytes).sum();
        let bytes: usize = self.byte_buffers.iter().map(ByteBuffer::bytes).sum();
        floats + bytes + self.pixels.bytes() + self.scratch.bytes()
    }

    /// Bytes of packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.steps.iter().map(|step| step.work.bytes()).sum()
    }

    /// Floating-point operations of the convolutions of one run, none saved.
    pub fn flops(&self) -> f64 {
        self.steps.iter().map(|step| step.flops).sum()
    }
}

/// The channels of one group.
fn part(map: FeatureMap<'_>, group: usize, channels: usize) -> FeatureMap<'_> {
    if map.shape().channels == channels { map } else { map.channels(group * channels, channels) }
}

impl Step {
    /// Without convolutions.
    fn new(name: String, work: Work, from: Vec<Place>, to: Place) -> Self {
        Self { name, work, from, to: Some(to), shape: to.shape, flops: 0.0 }
    }

    /// Where it writes floats.
    fn floats(&self) -> &Place {
        self.to.as_ref().expect("only steps of bytes have none")
    }

    /// Numbers of scratch memory.
    fn scratch_len(&self) -> usize {
        let images = self.shape.images;
        match &self.work {
            Work::Stem(conv) => conv.scratch_len(),
            Work::Conv { groups, .. } => groups.iter().map(Conv::scratch_len).max().unwrap_or(0),
            Work::PrototypeResidual(prototypes) => prototypes.scratch_len(images),
            Work::PatchAttention { patch, .. } => {
                patch_attention::scratch_len(self.from[0].shape, *patch)
            }
            Work::LevelCounts { .. } => texture::level_counts_scratch(images, self.shape.width),
            Work::CoOccurrence { .. } => {
                let Shape { height, width, .. } = self.shape;
                let (regions, levels) = (height.isqrt(), width.isqrt());
                texture::co_occurrence_scratch(self.from[0].shape, levels, regions)
            }
            Work::LevelAttention => texture::level_attention_scratch(self.from[0].shape),
            Work::SpreadLevels { .. } => {
                texture::spread_levels_scratch(images, self.from[1].shape.width)
            }
            _ => 0,
        }
    }
}

impl Work {
    /// Bytes of packed weights.
    fn bytes(&self) -> usize {
        match self {
            Self::Stem(conv) => conv.bytes(),
            Self::Conv { groups, .. } => groups.iter().map(Conv::bytes).sum(),
            Self::PrototypeResidual(prototypes) => prototypes.bytes(),
            Self::PatchAffine(affine) => affine.bytes(),
            Self::Bytes(work) => work.weight_bytes(),
            _ => 0,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Stem(_) => "stem",
            Self::Conv { groups, .. } => groups[0].word(),
            Self::Affine { .. } | Self::PatchAffine(_) => "affine",
            Self::Depthwise(_) => "depthwise",
            Self::Elementwise(kind) => match kind {
                Elementwise::Copy
                | Elementwise::CopyChannels(_)
                | Elementwise::RepeatChannels(_) => "copy",
                Elementwise::Add | Elementwise::AddRelu => "add",
                Elementwise::Mul => "mul",
                Elementwise::Relu | Elementwise::LeakyRelu(_) => "relu",
                Elementwise::Sigmoid => "sigmoid",
            },
            Self::MaxPool | Self::AveragePool { .. } | Self::RegionMean { .. } => "pool",
            Self::Upsample(_) => "upsample",
            Self::CosineProduct | Self::CosineDistance { .. } | Self::CosineToMean => "cosine",
            Self::PrototypeResidual(_) => "residual",
            Self::PatchAttention { .. }
            | Self::WindowAttention
            | Self::PlaceSoftmax
            | Self::LevelAttention => "attention",
            Self::LevelCounts { .. }
            | Self::CoOccurrence { .. }
            | Self::RepeatRegions
            | Self::MeanRegions
            | Self::SpreadLevels { .. } => "texture",
            Self::Bytes(work) => work.word(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{Device, Tensor};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::nn::attention::multi_size_attention;
    use crate::nn::cot::Attention;
    use crate::nn::graph;
    use crate::nn::resnet::Depth;
    use crate::nn::teacher::Teacher;
    use crate::nn::{compact, destseg, mlff, ntsnet, prn, reference, resnet};
    use crate::ops::interpolate::Align;

    /// Drawn weights whose batch norms are not the identity.
    pub(super) fn weights(graph: &Graph) -> Weights {
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
            }
            tensors.insert(name.to_owned(), tensor);
        }
        Weights::from_tensors("drawn", tensors).unwrap()
    }

    /// The same with smaller convolutions, σ = 0.7·√(2/(C·K·K)): numbers stay moderate even where many
    /// channels become few and no batch norm follows, which in PRN ends in maps of just 0 and 1.
    fn tame(graph: &Graph) -> Weights {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in weights(graph).tensors() {
            let mut tensor = tensor.clone();
            if let &[o, c, _, _] = tensor.dims()
                && name.ends_with(".weight")
            {
                tensor = (tensor * (0.7 * (o as f64 / c as f64).sqrt())).unwrap();
            }
            tensors.insert(name.to_owned(), tensor);
        }
        Weights::from_tensors("drawn", tensors).unwrap()
    }

    /// What a graph makes of two pictures on candle tensors.
    struct Wanted<'a> {
        graph: &'a Graph,
        weights: Weights,
        pixels: Vec<f32>,
        outputs: Vec<Vec<f32>>,
    }

    impl<'a> Wanted<'a> {
        fn of(graph: &'a Graph) -> Self {
            Self::with(graph, weights(graph))
        }

        fn with(graph: &'a Graph, weights: Weights) -> Self {
            let dims = graph.nodes()[0].dims;
            let mut rng = ChaCha8Rng::seed_from_u64(6);
            let count = 2 * 3 * dims.height * dims.width;
            let pixels: Vec<f32> = (0..count).map(|_| rng.random_range(-2.0..2.0)).collect();
            let shape = (2, 3, dims.height, dims.width);
            let xs = Tensor::from_slice(&pixels, shape, &Device::Cpu).unwrap();
            let outputs = reference::run(graph, &weights, &xs).unwrap();
            let numbers = |xs: &Tensor| xs.flatten_all().unwrap().to_vec1().unwrap();
            let outputs = outputs.iter().map(numbers).collect();
            Self { graph, weights, pixels, outputs }
        }

        /// Of the first `images`: pictures do not know of each other.
        fn first(&self, images: usize) -> (&[f32], Vec<&[f32]>) {
            let part = |numbers: &Vec<f32>| numbers.len() / 2 * images;
            let outputs = self.outputs.iter().map(|output| &output[..part(output)]);
            (&self.pixels[..part(&self.pixels)], outputs.collect())
        }
    }

    /// Holds a plan for one picture or two against that.
    fn check(name: &str, wanted: &Wanted<'_>, images: usize, isa: Isa, threads: usize, bound: f64) {
        let (pixels, want) = wanted.first(images);
        let team = Arc::new(Team::new(threads, false).unwrap());
        let mut plan = Plan::new(wanted.graph, &wanted.weights, images, isa, team).unwrap();
        let planes = plan.planes();
        planes.write(pixels, plan.pixels());
        // Twice: what a run leaves behind must not change the next.
        plan.run().unwrap();
        plan.run().unwrap();
        assert_eq!(plan.outputs(), want.len());
        for (i, want) in want.iter().enumerate() {
            let got = plan.output(i).read();
            assert_eq!(got.len(), want.len(), "{name} output {i}");
            let largest = want.iter().fold(0f32, |max, x| max.max(x.abs()));
            let off = got.iter().zip(*want).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
            let relative = f64::from(off) / f64::from(largest);
            assert!(
                relative <= bound,
                "{name} output {i}, {} × {images}, {threads} threads: {relative}",
                isa.word()
            );
        }
    }

    /// Two tests, which run side by side.
    fn check_networks(nets: &[(&str, Graph)]) {
        for (name, graph) in nets {
            let wanted = Wanted::of(graph);
            // f32 through some twenty layers, in another order and by Winograd
            check(name, &wanted, 1, Isa::detect().unwrap(), 1, 2e-5);
            check(name, &wanted, 2, Isa::detect().unwrap(), 2, 2e-5);
        }
    }

    #[test]
    fn backbones_compute_what_their_graphs_say() {
        check_networks(&[
            ("resnet18", resnet::graph(Depth::R18, 4, (64, 96)).unwrap()),
            ("resnet50", resnet::graph(Depth::R50, 3, (64, 64)).unwrap()),
            ("compact", compact::graph(96, 64)),
        ]);
    }

    #[test]
    fn whole_networks_compute_what_their_graphs_say() {
        let global = ntsnet::Variant { attention: Attention::Global, ..Default::default() };
        check_networks(&[
            ("destseg", destseg::graph(64, 64)),
            ("ntsnet", ntsnet::graph(64, 64)),
            ("ntsnet, global", global.graph(64, 64)),
        ]);
    }

    #[test]
    fn prn_computes_what_its_graph_says() {
        let paper = prn::Variant::default();
        let other = prn::Variant {
            encoder: Teacher::Compact,
            residual: prn::Residual::Squared,
            embedding: prn::Embedding::Elementwise,
            depthwise: prn::Depthwise::Grouped,
            shared_fusion: true,
            align: Align::HalfPixel,
            ..paper
        };
        let bare = prn::Variant { prototypes: false, attention: false, fusion: false, ..paper };
        for (name, variant) in [("prn", paper), ("prn, other options", other), ("prn, bare", bare)]
        {
            let graph = variant.graph(128, [3; 3]);
            let wanted = Wanted::with(&graph, tame(&graph));
            let middling = |x: &&f32| (0.05..0.95).contains(*x);
            let share = wanted.outputs[0].iter().filter(middling).count();
            assert!(2 * share > wanted.outputs[0].len(), "{name} says yes or no: {share}");
            check(name, &wanted, 1, Isa::detect().unwrap(), 1, 2e-5);
            check(name, &wanted, 2, Isa::detect().unwrap(), 2, 2e-5);
        }
    }

    #[test]
    fn attention_of_every_kind_is_computed() {
        for embedding in [prn::Embedding::Shared, prn::Embedding::Elementwise] {
            for scale in [prn::Scale::PatchSize, prn::Scale::Root] {
                let (mut g, xs) = Graph::new(16, 16);
                let xs = g.conv(xs, graph::Conv::new("stem", 3, 20, 3).with_bias());
                let out = multi_size_attention(&mut g, xs, "", embedding, scale);
                g.set_outputs(vec![out]);
                let wanted = Wanted::with(&g, tame(&g));
                for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                    check("attention", &wanted, 2, isa, 2, 2e-5);
                }
            }
        }
    }

    #[test]
    fn textures_are_counted_alike() {
        // A value at the edge of a level falls to one side or the other by its last bit, and there is
        // a step: what Paper's rule gives to a place near an edge is not to be compared. The
        // reference's gives it to another level, whose statistics differ little.
        let paper = mlff::Variant { levels: graph::LevelRule::Reference, ..Default::default() };
        let changed = mlff::Variant {
            encoder: mlff::Encoder::Resnet18,
            resolution: mlff::Resolution::Eighth,
            neighbour: graph::Neighbour::Right,
            map_levels: 37,
            region_levels: 5,
            projection: true,
            ..paper
        };
        let baseline =
            mlff::Variant { texture: false, calibration: false, score: false, ..changed };
        for (name, variant) in [("mlff", paper), ("changed", changed), ("baseline", baseline)] {
            let graph = variant.graph(64, 64);
            let wanted = Wanted::of(&graph);
            check(name, &wanted, 1, Isa::detect().unwrap(), 1, 2e-3);
            check(name, &wanted, 2, Isa::detect().unwrap(), 2, 2e-3);
        }
    }

    #[test]
    fn every_path_computes_the_same_network() {
        let graph = compact::graph(64, 64);
        let wanted = Wanted::of(&graph);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            check("compact", &wanted, 1, isa, 2, 2e-5);
        }
    }

    #[test]
    fn concatenations_within_each_other_and_values_read_twice_lie_right() {
        let (mut g, xs) = Graph::new(16, 16);
        let conv = |g: &mut Graph, xs, name: &str, c_in: usize, c_out: usize| {
            g.conv(xs, graph::Conv::new(name, c_in, c_out, 3).with_bias())
        };
        let stem = conv(&mut g, xs, "stem", 3, 32);
        let a = conv(&mut g, stem, "a", 32, 16);
        let b = conv(&mut g, a, "b", 16, 20);
        let inner = g.concat(&[stem, a]);
        // `a` twice, and a part that does not end with a block
        let outer = g.concat(&[inner, a, b]);
        let last = conv(&mut g, outer, "last", 84, 24);
        let doubled = g.add(last, last);
        let up = g.upsample(doubled, (33, 17), graph::Resample::Bilinear(Align::Corners));
        g.set_outputs(vec![up, outer, a]);
        let wanted = Wanted::of(&g);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            check("made up", &wanted, 2, isa, 2, 1e-5);
        }
    }

    #[test]
    fn distances_of_all_levels_are_one_step() {
        for (graph, steps) in [(ntsnet::graph(64, 64), 1), (destseg::graph(64, 64), 1)] {
            let weights = weights(&graph);
            let team = Arc::new(Team::alone());
            let plan = Plan::new(&graph, &weights, 1, Isa::detect().unwrap(), team).unwrap();
            let distances = |step: &&Step| matches!(step.work, Work::CosineDistance { .. });
            assert_eq!(plan.steps.iter().filter(distances).count(), steps);
        }
    }

    #[test]
    fn maps_share_memory() {
        let graph = resnet::graph(Depth::R18, 3, (256, 256)).unwrap();
        let weights = weights(&graph);
        let team = Arc::new(Team::alone());
        let plan = Plan::new(&graph, &weights, 1, Isa::detect().unwrap(), team).unwrap();
        let all: usize = plan.layers().iter().map(|layer| layer.shape.len() * 4).sum();
        let kept: usize = plan.buffers.iter().map(Buffer::bytes).sum();
        assert!(3 * kept < 2 * all, "{kept} of {all}");
        // stem, 4 + 5 + 5 convolutions
        assert_eq!(plan.layers().len(), 15);
        assert!((plan.flops() - graph.conv_flops()).abs() < 1.0);
    }
}
