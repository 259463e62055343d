//! From a graph to the steps of a run.
//!
//! A step ends at one node, its tail, and stands for the nodes that were fused into it: a convolution
//! with the batch norm, the sum and the ReLU that alone read it; at the picture also the maximum
//! behind it. Steps come in the order of their tails, so that a residual is there when the
//! convolution that adds it runs.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::bytes::{Addend, ByteConv, Bytes, Forms};
use super::memory::{Layout, Place};
use super::quantization::Quantization;
use super::{Elementwise, MOST_LEVELS, Plan, Step, Work};
use crate::nn::folding::{self, Folded};
use crate::nn::graph::{self, Graph, Op, Resample, Value};
use crate::nn::weights::Weights;
use crate::ops::affine::Affine;
use crate::ops::byte_simd::ByteIsa;
use crate::ops::conv::{Conv, Geometry};
use crate::ops::depthwise::{Depthwise, Window};
use crate::ops::feature_map::{Buffer, Shape};
use crate::ops::patch_affine::PatchAffine;
use crate::ops::prototype_residual::Prototypes;
use crate::ops::quantized_conv::{QuantizedConv, Scales};
use crate::ops::simd::{Isa, LANES};
use crate::ops::stem_conv::{Planes, StemConv};
use crate::ops::team::Team;
use crate::ops::upsample::Upsample;
use crate::ops::window_attention::logit_source;

/// `int8`: the instructions for bytes, and what is kept in them.
pub(super) fn compile(
    graph: &Graph,
    weights: &Weights,
    images: usize,
    isa: Isa,
    team: Arc<Team>,
    int8: Option<(ByteIsa, &Quantization)>,
) -> Result<Plan> {
    let chains = fuse(graph);
    let forms = match int8 {
        Some((_, quantization)) => Forms::new(graph, &chains, quantization)?,
        None => Forms::floats(graph, &chains),
    };
    let logits = window_logits(graph)?;
    let channels: Vec<usize> = (0..graph.nodes().len())
        .map(|i| logits[i].as_ref().map_or(graph.nodes()[i].dims.channels, Vec::len))
        .collect();
    let (floats, bytes) = (forms.float_lives(graph, &chains), forms.byte_lives(graph, &chains));
    let layout = Layout::new(graph, &channels, &forms.float_parts, &floats, images);
    let byte_layout = Layout::new(graph, &channels, &forms.byte_parts, &bytes, images);
    let compiler = Compiler {
        graph,
        weights,
        images,
        isa,
        byte_isa: int8.map_or(ByteIsa::of(isa), |(byte_isa, _)| byte_isa),
        threads: team.threads(),
        layout: &layout,
        byte_layout: &byte_layout,
        forms: &forms,
        logits: &logits,
    };
    let planes = compiler.planes()?;
    let mut steps = Vec::with_capacity(chains.len());
    for chain in &chains {
        for step in compiler.steps(chain, planes)? {
            if !steps.last_mut().is_some_and(|last: &mut Step| last.takes_in(&step)) {
                steps.push(step);
            }
        }
    }
    let scratch = steps.iter().map(Step::scratch_len).max().unwrap_or(0);
    Ok(Plan {
        isa,
        byte_isa: compiler.byte_isa,
        team,
        images,
        planes,
        pixels: Buffer::zeroed(planes.len(images)),
        buffers: layout.buffers(),
        byte_buffers: byte_layout.buffers(),
        scratch: Buffer::zeroed(scratch),
        steps,
        outputs: graph.outputs().iter().map(|&output| layout.place(output)).collect(),
    })
}

impl Step {
    /// Makes the cosine distances of `next` part of this step, if it computes some too and no level
    /// is written to memory that another reads or writes.
    fn takes_in(&mut self, next: &Step) -> bool {
        let Work::CosineDistance { rule, more } = &mut self.work else { return false };
        let Work::CosineDistance { rule: other, more: none } = &next.work else { return false };
        let (Some(own), Some(to)) = (self.to, next.to) else { return false };
        let apart = |written: &Place, others: &[Place]| {
            others.iter().all(|other| !written.shares_with(other))
        };
        let fits = rule == other
            && none.is_empty()
            && more.len() + 1 < MOST_LEVELS
            && apart(&to, &self.from)
            && apart(&to, more)
            && apart(&own, &[&next.from[..], &[to]].concat())
            && more.iter().all(|own| apart(own, &next.from));
        if fits {
            more.push(to);
            self.from.extend_from_slice(&next.from);
        }
        fits
    }
}

/// For each convolution that makes the logits of a window attention, which of its channels the line
/// keeps where ([`logit_source`]).
fn window_logits(graph: &Graph) -> Result<Vec<Option<Vec<usize>>>> {
    let mut logits = vec![None; graph.nodes().len()];
    for node in graph.nodes().iter().filter(|node| node.op == Op::WindowAttention) {
        let from = node.inputs[0];
        let readers = graph.nodes().iter().filter(|reader| reader.inputs.contains(&from)).count();
        ensure!(
            matches!(graph.node(from).op, Op::Conv(_)) && readers == 1,
            "window attention whose logits are not a convolution's, for it alone, is not on the line"
        );
        logits[from.index()] = Some(logit_source(graph.dims(from).channels / 9));
    }
    Ok(logits)
}

/// The nodes of one step.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Chain {
    /// What it begins with.
    pub head: usize,
    norm: Option<usize>,
    /// The sum, and its other argument.
    pub sum: Option<(usize, Value)>,
    pub relu: Option<usize>,
    pool: Option<usize>,
    pub tail: usize,
}

/// Every node but the picture, in chains, ordered by tail.
pub(super) fn fuse(graph: &Graph) -> Vec<Chain> {
    let nodes = graph.nodes();
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        for input in &node.inputs {
            readers[input.index()].push(i);
        }
    }
    for output in graph.outputs() {
        // Someone outside reads it: it must be there in full.
        readers[output.index()].push(usize::MAX);
    }
    // The only reader of a node, if it is an operation of the network.
    let only = |node: usize| match readers[node].as_slice() {
        &[reader] if reader != usize::MAX => Some(reader),
        _ => None,
    };
    let mut taken = vec![false; nodes.len()];
    let mut chains = Vec::new();
    for (head, node) in nodes.iter().enumerate() {
        if taken[head] || node.op == Op::Input {
            continue;
        }
        taken[head] = true;
        let mut chain = Chain { head, tail: head, ..Chain::default() };
        // The kernel of depthwise ones takes no sum and no ReLU along.
        let conv = matches!(&node.op, Op::Conv(conv) if !conv.is_depthwise());
        let depthwise = matches!(node.op, Op::Conv(_)) && !conv;
        let stem = conv && graph.node(node.inputs[0]).op == Op::Input;
        let mut take = |chain: &mut Chain, accepts: &dyn Fn(&Op) -> bool| {
            let next = only(chain.tail).filter(|&next| !taken[next] && accepts(&nodes[next].op))?;
            taken[next] = true;
            chain.tail = next;
            Some(next)
        };
        if conv || depthwise {
            chain.norm = take(&mut chain, &|op| matches!(op, Op::BatchNorm { .. }));
        }
        if conv && !stem {
            let summand = Value(chain.tail);
            // x + x has two arguments and one reader.
            let twice = only(chain.tail).is_some_and(|next| {
                nodes[next].inputs[0] == nodes[next].inputs[nodes[next].inputs.len() - 1]
            });
            if !twice && let Some(sum) = take(&mut chain, &|op| *op == Op::Add) {
                let other = nodes[sum].inputs.iter().find(|input| **input != summand);
                chain.sum = other.map(|&other| (sum, other));
            }
        }
        if conv || matches!(node.op, Op::BatchNorm { .. } | Op::Add) {
            chain.relu = take(&mut chain, &|op| *op == Op::Relu);
        }
        if stem && chain.relu.is_some() {
            chain.pool = take(&mut chain, &|op| *op == Op::MaxPool);
        }
        chains.push(chain);
    }
    chains.sort_by_key(|chain| chain.tail);
    chains
}

struct Compiler<'a> {
    graph: &'a Graph,
    weights: &'a Weights,
    images: usize,
    isa: Isa,
    byte_isa: ByteIsa,
    threads: usize,
    layout: &'a Layout,
    byte_layout: &'a Layout<u8>,
    forms: &'a Forms,
    logits: &'a [Option<Vec<usize>>],
}

impl Folded {
    /// The output channels of these indices.
    fn channels(&self, sources: &[usize]) -> Self {
        let row = self.weights.len() / self.bias.len();
        let weights = sources.iter().flat_map(|&o| &self.weights[o * row..(o + 1) * row]);
        Self {
            weights: weights.copied().collect(),
            bias: sources.iter().map(|&o| self.bias[o]).collect(),
        }
    }
}

impl Compiler<'_> {
    /// How the pixels lie: with the widest border that a convolution of the picture needs.
    fn planes(&self) -> Result<Planes> {
        let dims = self.graph.nodes()[0].dims;
        let reads_picture =
            |node: &&graph::Node| node.inputs.iter().any(|input| input.index() == 0);
        let mut pad = 0;
        for node in self.graph.nodes().iter().filter(reads_picture) {
            match &node.op {
                Op::Conv(conv) => pad = pad.max(conv.padding),
                op => bail!("{op:?} of the picture itself is not on the line"),
            }
        }
        Ok(Planes { height: dims.height, width: dims.width, pad })
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        folding::tensor(self.weights, name, shape)
    }

    /// The name of a batch norm.
    fn norm_name(&self, node: usize) -> &str {
        let Op::BatchNorm { name } = &self.graph.nodes()[node].op else {
            unreachable!("a chain's norm is a batch norm")
        };
        name
    }

    fn folded(&self, conv: &graph::Conv, norm: Option<usize>) -> Result<Folded> {
        folding::folded(self.weights, conv, norm.map(|node| self.norm_name(node)))
    }

    fn shape(&self, value: Value) -> Shape {
        let dims = self.graph.dims(value);
        Shape::new(self.images, dims.channels, dims.height, dims.width)
    }

    fn place(&self, value: Value) -> Place {
        self.layout.place(value)
    }

    /// The steps of a chain: one, but for a concatenation, whose parts lie in place already or have
    /// to be copied; and one more where floats are needed as bytes.
    fn steps(&self, chain: &Chain, planes: Planes) -> Result<Vec<Step>> {
        let tail = Value(chain.tail);
        let head = &self.graph.nodes()[chain.head];
        let mut steps = match &head.op {
            Op::Conv(conv) => {
                let step = if self.forms.in_bytes(chain) {
                    self.byte_conv(conv, chain)
                } else {
                    self.conv(conv, chain, planes)
                };
                vec![step.with_context(|| format!("layer {}", conv.name))?]
            }
            Op::Concat if self.forms.floats[chain.tail] => self.copies(tail),
            // Its parts were put where it lies.
            Op::Concat => Vec::new(),
            _ => vec![self.other(head, chain)?],
        };
        if let Some(scale) = self.forms.quantized(chain) {
            let from = self.place(tail);
            let bytes = Bytes::Quantize { from, scale, to: self.byte_layout.place(tail) };
            steps.push(Step {
                name: String::new(),
                work: Work::Bytes(bytes),
                from: Vec::new(),
                to: None,
                shape: from.shape,
                flops: 0.0,
            });
        }
        Ok(steps)
    }

    /// Everything that is neither a convolution nor a concatenation.
    fn other(&self, node: &graph::Node, chain: &Chain) -> Result<Step> {
        let relu = chain.relu.is_some();
        let work = match &node.op {
            Op::Input | Op::Conv(_) | Op::Concat => unreachable!("none of these"),
            Op::BatchNorm { name } => {
                let (scale, shift) = folding::norm(self.weights, name, node.dims.channels)?;
                let narrow = |values: Vec<f64>| -> Vec<f32> {
                    values.into_iter().map(|value| value as f32).collect()
                };
                let affine = Affine::new(self.isa, &narrow(scale), &narrow(shift));
                Work::Affine { affine, relu }
            }
            Op::Add if relu => Work::Elementwise(Elementwise::AddRelu),
            Op::Add => Work::Elementwise(Elementwise::Add),
            Op::Mul => Work::Elementwise(Elementwise::Mul),
            Op::Relu => Work::Elementwise(Elementwise::Relu),
            Op::LeakyRelu { slope } => Work::Elementwise(Elementwise::LeakyRelu(*slope)),
            Op::Sigmoid => Work::Elementwise(Elementwise::Sigmoid),
            Op::MaxPool => Work::MaxPool,
            Op::AveragePool { kernel } => Work::AveragePool { kernel: *kernel },
            Op::RegionMean { regions } => Work::RegionMean { regions: *regions },
            Op::Upsample(rule) => {
                let size = |dims: graph::Dims| (dims.height, dims.width);
                let (from, to) = (size(self.graph.dims(node.inputs[0])), size(node.dims));
                Work::Upsample(match rule {
                    Resample::Nearest => Upsample::nearest(from, to),
                    Resample::Bilinear(align) => Upsample::bilinear(from, to, *align),
                })
            }
            Op::CosineProduct => Work::CosineProduct,
            Op::CosineDistance(rule) => Work::CosineDistance { rule: *rule, more: Vec::new() },
            Op::PrototypeResidual { name, prototypes } => {
                let graph::Dims { channels, height, width } = node.dims;
                let values = self.tensor(name, &[*prototypes, channels, height, width])?;
                let shape = (channels, height, width);
                Work::PrototypeResidual(Prototypes::new(&values, *prototypes, shape))
            }
            Op::PatchAttention { patch, scale } => {
                Work::PatchAttention { patch: *patch, scale: *scale }
            }
            Op::PatchAffine { name, patch } => {
                let numbers = |kind: &str| {
                    let shape = [node.dims.channels * patch * patch];
                    self.tensor(&format!("{name}.{kind}"), &shape)
                };
                let (weight, bias) = (numbers("weight")?, numbers("bias")?);
                Work::PatchAffine(PatchAffine::new(&weight, &bias, *patch))
            }
            Op::RepeatChannels { times } => Work::Elementwise(Elementwise::RepeatChannels(*times)),
            Op::WindowAttention => Work::WindowAttention,
            Op::PlaceSoftmax => Work::PlaceSoftmax,
            Op::CosineToMean => Work::CosineToMean,
            Op::LevelCounts { rule, .. } => Work::LevelCounts { rule: *rule },
            Op::CoOccurrence { rule, neighbour, .. } => {
                Work::CoOccurrence { rule: *rule, neighbour: *neighbour }
            }
            Op::RepeatRegions { .. } => Work::RepeatRegions,
            Op::MeanRegions => Work::MeanRegions,
            Op::LevelAttention => Work::LevelAttention,
            Op::SpreadLevels { rule } => Work::SpreadLevels { rule: *rule },
        };
        let from = node.inputs.iter().map(|&input| self.place(input)).collect();
        let name = match &node.op {
            Op::BatchNorm { name }
            | Op::PrototypeResidual { name, .. }
            | Op::PatchAffine { name, .. } => name.clone(),
            _ => String::new(),
        };
        Ok(Step::new(name, work, from, self.place(Value(chain.tail))))
    }

    /// What of a concatenation does not lie in its place.
    fn copies(&self, whole: Value) -> Vec<Step> {
        let mut steps = Vec::new();
        let (mut channel, place) = (0, self.place(whole));
        for &part in &self.graph.node(whole).inputs {
            let (channels, from) = (self.graph.dims(part).channels, self.place(part));
            if channel % LANES == 0 {
                let to = place.channels(channel, channels);
                if from != to {
                    let work = Work::Elementwise(Elementwise::Copy);
                    steps.push(Step::new(String::new(), work, vec![from], to));
                }
            } else {
                let work = Work::Elementwise(Elementwise::CopyChannels(channel));
                steps.push(Step::new(String::new(), work, vec![from], place));
            }
            channel += channels;
        }
        steps
    }

    /// A convolution with its numbers and floating-point operations, batch norm folded in.
    fn layer(&self, conv: &graph::Conv, chain: &Chain) -> Result<(Geometry, Folded, f64)> {
        let mut folded = self.folded(conv, chain.norm)?;
        if let Some(sources) = &self.logits[chain.head] {
            folded = folded.channels(sources);
        }
        let whole = Geometry {
            c_in: conv.c_in,
            c_out: folded.bias.len(),
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.padding,
            dilation: conv.dilation,
        };
        let output = self.shape(Value(chain.head));
        let flops = whole.flops(output) * self.images as f64 / conv.groups as f64;
        Ok((whole, folded, flops))
    }

    /// A convolution of bytes, whose result is written as whatever is read of it.
    fn byte_conv(&self, conv: &graph::Conv, chain: &Chain) -> Result<Step> {
        let input = self.graph.nodes()[chain.head].inputs[0];
        let (whole, folded, flops) = self.layer(conv, chain)?;
        ensure!(
            folded.weights.iter().chain(&folded.bias).all(|number| number.is_finite()),
            "weights that are not finite once the batch norm is folded in"
        );
        let tail = Value(chain.tail);
        let bytes = self.forms.written_bytes(chain);
        let (to_bytes, to_floats) =
            (bytes.map(|_| self.byte_layout.place(tail)), self.layout.find(tail));
        let scales = Scales {
            input: self.forms.scales[input.index()].expect("what is read as bytes has a scale"),
            output: bytes.unwrap_or(1.0),
            relu: chain.relu.is_some(),
        };
        let weights = (folded.weights.as_slice(), folded.bias.as_slice());
        let residual = chain.sum.map(|(_, other)| match self.forms.scales[other.index()] {
            Some(scale) => Addend::Bytes(self.byte_layout.place(other), scale),
            None => Addend::Floats(self.place(other)),
        });
        let bytes = Bytes::Conv(Box::new(ByteConv {
            conv: QuantizedConv::new(self.byte_isa, whole, scales, weights),
            from: self.byte_layout.place(input),
            residual,
            bytes: to_bytes,
            floats: to_floats,
        }));
        Ok(Step {
            name: conv.name.clone(),
            work: Work::Bytes(bytes),
            from: Vec::new(),
            to: None,
            shape: Shape { channels: whole.c_out, ..self.shape(tail) },
            flops,
        })
    }

    fn conv(&self, conv: &graph::Conv, chain: &Chain, planes: Planes) -> Result<Step> {
        let input = self.graph.nodes()[chain.head].inputs[0];
        let (whole, folded, flops) = self.layer(conv, chain)?;
        let relu = chain.relu.is_some();
        let named = |work: Work, from: Vec<Place>| {
            let to = self.place(Value(chain.tail));
            Step { flops, ..Step::new(conv.name.clone(), work, from, to) }
        };
        if self.graph.node(input).op == Op::Input {
            ensure!(
                conv.dilation == 1 && conv.groups == 1,
                "a first layer has one group, undilated"
            );
            let stem = StemConv::new(
                self.isa,
                whole,
                &folded.weights,
                &folded.bias,
                planes,
                self.images,
                (relu, chain.pool.is_some()),
                self.threads,
            );
            return Ok(named(Work::Stem(stem), Vec::new()));
        }
        let places = vec![self.place(input)];
        if conv.is_depthwise() {
            ensure!(conv.dilation == 1, "a dilated depthwise convolution is not on the line");
            let Geometry { kernel, stride, padding, .. } = whole;
            let window = Window { kernel, stride, padding };
            let depthwise = Depthwise::new(&folded.weights, &folded.bias, window);
            return Ok(named(Work::Depthwise(depthwise), places));
        }
        let residual = chain.sum.map(|(_, other)| self.place(other));
        let (c_in, c_out) = (conv.c_in / conv.groups, whole.c_out / conv.groups);
        ensure!(
            conv.groups == 1 || c_in.is_multiple_of(LANES) && c_out.is_multiple_of(LANES),
            "groups of {c_in} to {c_out} channels: only multiples of {LANES} are on the line"
        );
        let geometry = Geometry { c_in, c_out, ..whole };
        let own = Shape { channels: c_in, ..self.shape(input) };
        let groups = folded
            .weights
            .chunks(geometry.weights())
            .zip(folded.bias.chunks(c_out))
            .map(|(weights, bias)| Conv::new(self.isa, geometry, weights, bias, own, self.threads))
            .collect();
        Ok(named(Work::Conv { groups, residual, relu }, places))
    }
}
