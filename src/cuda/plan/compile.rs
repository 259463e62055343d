//! From a graph to the launches of a run.
//!
//! A chain ends at one node, its tail, and stands for the nodes that were fused into it: a
//! convolution with the batch norm, the sum and the ReLU that alone read it. A step is one chain, or several
//! cosine maps that one launch makes; steps come in the order of their tails.

use std::collections::HashMap;

use anyhow::{Context, Result};

use super::Plan;
use super::memory::{Life, Within, count, parts, place, root};
use crate::cuda::conv::{self, Ending};
use crate::cuda::cosine_map::{self, Level, MOST_LEVELS};
use crate::cuda::texture::{self, Cosines};
use crate::cuda::{
    DeviceMemory, Gpu, Launch, Number, Region, elementwise, patch_affine, patch_attention,
    place_softmax, pooling, prototype_residual, upsample, window_attention,
};
use crate::nn::folding::{folded, norm, tensor};
use crate::nn::graph::{Conv, Dims, Graph, Node, Op, Value};
use crate::nn::weights::Weights;

pub fn compile<G: Gpu>(
    gpu: &mut G,
    graph: &Graph,
    weights: &Weights,
    images: usize,
) -> Result<Plan<G::Memory>> {
    let chains = fuse(graph);
    let steps = steps(graph, &chains);
    let within = parts(graph, images);
    let memory = Memory::new(graph, images, &chains, &steps, &within);
    let arena = gpu.alloc(memory.length)?;
    let mut compiler = Compiler {
        gpu,
        graph,
        weights,
        images,
        within: &within,
        arena: arena.region(),
        memory: &memory,
        uploads: Uploads { kept: Vec::new(), known: HashMap::new(), bytes: 0 },
    };
    let mut launches = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let members: Vec<&Chain> = step.iter().map(|&chain| &chains[chain]).collect();
        launches.extend(compiler.launches(&members, memory.between[i])?);
    }
    let maps = |values: &[Value]| -> Vec<(Region, Dims)> {
        values.iter().map(|&value| (compiler.region(value), graph.dims(value))).collect()
    };
    let is_input = |value: &Value| graph.node(*value).op == Op::Input;
    let all: Vec<Value> = (0..graph.nodes().len()).map(Value::at).filter(is_input).collect();
    let (inputs, outputs) = (maps(&all), maps(graph.outputs()));
    let Uploads { kept, bytes, .. } = compiler.uploads;
    Ok(Plan {
        _weights: kept,
        _arena: arena,
        arena_bytes: memory.length,
        weight_bytes: bytes,
        inputs,
        outputs,
        launches,
    })
}

/// The nodes of one operation.
#[derive(Debug, PartialEq)]
struct Chain {
    /// What it begins with.
    head: usize,
    norm: Option<usize>,
    /// The other argument of the sum.
    addend: Option<Value>,
    /// Of what is negative in the end.
    slope: f32,
    tail: usize,
}

/// Every node but the inputs, in chains, ordered by tail.
fn fuse(graph: &Graph) -> Vec<Chain> {
    let nodes = graph.nodes();
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        node.inputs.iter().for_each(|input| readers[input.index()].push(i));
    }
    // Someone outside reads it: it must be there in full.
    graph.outputs().iter().for_each(|output| readers[output.index()].push(usize::MAX));
    let mut taken = vec![false; nodes.len()];
    let mut chains = Vec::new();
    for (head, node) in nodes.iter().enumerate() {
        if taken[head] || node.op == Op::Input {
            continue;
        }
        taken[head] = true;
        let mut chain = Chain { head, norm: None, addend: None, slope: 1.0, tail: head };
        // The only reader of the tail, if it is such an operation that no other chain has.
        let mut take = |tail: &mut usize, accepts: &dyn Fn(&Op) -> bool| {
            let &[next] = readers[*tail].as_slice() else { return None };
            if next == usize::MAX || taken[next] || !accepts(&nodes[next].op) {
                return None;
            }
            taken[next] = true;
            *tail = next;
            Some(next)
        };
        let conv = matches!(node.op, Op::Conv(_));
        if conv {
            chain.norm = take(&mut chain.tail, &|op| matches!(op, Op::BatchNorm { .. }));
            // x + x has two arguments and reads x twice, so that it is never the only reader.
            let summand = Value::at(chain.tail);
            if let Some(sum) = take(&mut chain.tail, &|op| *op == Op::Add) {
                chain.addend = nodes[sum].inputs.iter().copied().find(|&input| input != summand);
            }
        }
        if conv || matches!(node.op, Op::BatchNorm { .. } | Op::Add) {
            let next = take(&mut chain.tail, &|op| matches!(op, Op::Relu | Op::LeakyRelu { .. }));
            chain.slope = match next.map(|next| &nodes[next].op) {
                Some(Op::LeakyRelu { slope }) => *slope,
                Some(_) => 0.0,
                None => 1.0,
            };
        }
        chains.push(chain);
    }
    chains.sort_by_key(|chain| chain.tail);
    chains
}

/// Chains by their indices, one a step, or as many cosine maps of one kind that follow each other as
/// a launch takes and none of which reads another.
fn steps(graph: &Graph, chains: &[Chain]) -> Vec<Vec<usize>> {
    let op = |chain: usize| &graph.nodes()[chains[chain].head].op;
    let mut steps: Vec<Vec<usize>> = Vec::new();
    for i in 0..chains.len() {
        let node = &graph.nodes()[chains[i].head];
        if matches!(node.op, Op::CosineDistance(_) | Op::CosineProduct)
            && let Some(last) = steps.last_mut()
            && last.len() < MOST_LEVELS
            && *op(last[0]) == node.op
            && last.iter().all(|&other| !node.inputs.contains(&Value::at(chains[other].tail)))
        {
            last.push(i);
        } else {
            steps.push(vec![i]);
        }
    }
    steps
}

/// Where values, and what is in between, lie in the arena.
struct Memory {
    /// Of each value's root, in bytes.
    values: Vec<usize>,
    /// Of each step's memory in between.
    between: Vec<usize>,
    length: usize,
}

impl Memory {
    fn new(
        graph: &Graph,
        images: usize,
        chains: &[Chain],
        steps: &[Vec<usize>],
        within: &[Option<Within>],
    ) -> Self {
        // A root lives from the first of its parts to the last.
        let mut lives: Vec<Option<Life>> = vec![None; graph.nodes().len()];
        let mut live = |value: Value, life: Life| {
            let (root, _) = root(within, value);
            let own = &mut lives[root.index()];
            *own = Some(own.map_or(life, |own| own.and(life)));
        };
        for (i, node) in graph.nodes().iter().enumerate() {
            // What comes from outside is there until others come.
            if node.op == Op::Input {
                live(Value::at(i), Life { made: 0, read: usize::MAX });
            }
        }
        for &output in graph.outputs() {
            live(output, Life { made: usize::MAX, read: usize::MAX });
        }
        for (step, members) in steps.iter().enumerate() {
            for chain in members.iter().map(|&i| &chains[i]) {
                live(Value::at(chain.tail), Life::of_step(step));
                let inputs = &graph.nodes()[chain.head].inputs;
                for &read in inputs.iter().chain(&chain.addend) {
                    live(read, Life::of_step(step));
                }
            }
        }
        let mut pieces = Vec::new();
        let mut owners = Vec::new();
        for (i, life) in lives.iter().enumerate() {
            if let Some(life) = life {
                pieces.push((4 * count(images, graph.nodes()[i].dims), *life));
                owners.push(i);
            }
        }
        let roots = pieces.len();
        for (step, members) in steps.iter().enumerate() {
            let bytes = between_bytes(graph, images, &chains[members[0]]);
            pieces.push((bytes, Life::of_step(step)));
        }
        let (offsets, length) = place(&pieces);
        let mut values = vec![usize::MAX; graph.nodes().len()];
        for (owner, offset) in owners.into_iter().zip(&offsets) {
            values[owner] = *offset;
        }
        Self { values, between: offsets[roots..].to_vec(), length }
    }
}

/// Bytes of memory that a chain's launches need in between.
fn between_bytes(graph: &Graph, images: usize, chain: &Chain) -> usize {
    let node = &graph.nodes()[chain.head];
    let of = |i: usize| graph.dims(node.inputs[i]);
    match &node.op {
        Op::Conv(conv) => conv_sizes(conv, of(0), images).part_bytes(),
        Op::PrototypeResidual { prototypes, .. } => {
            residual_sizes(*prototypes, of(0), images).part_bytes()
        }
        Op::PatchAttention { patch, .. } => {
            attention_sizes(of(0), of(2), *patch, images).score_bytes()
        }
        Op::LevelAttention => attention_sizes(of(0), of(2), 1, images).score_bytes(),
        // Bounds and sums of the levels.
        Op::LevelCounts { levels, .. } => 8 * images + 4 * images * levels,
        Op::CoOccurrence { regions, .. } => 8 * images * regions * regions,
        Op::SpreadLevels { .. } => 8 * images,
        _ => 0,
    }
}

fn conv_sizes(conv: &Conv, dims: Dims, images: usize) -> conv::Sizes {
    conv::Sizes {
        images,
        c_in: conv.c_in,
        height: dims.height,
        width: dims.width,
        c_out: conv.c_out,
        kernel: conv.kernel,
        stride: conv.stride,
        padding: conv.padding,
        dilation: conv.dilation,
        groups: conv.groups,
    }
}

fn residual_sizes(prototypes: usize, dims: Dims, images: usize) -> prototype_residual::Sizes {
    prototype_residual::Sizes { images, prototypes, length: count(1, dims) }
}

fn attention_sizes(q: Dims, v: Dims, patch: usize, images: usize) -> patch_attention::Sizes {
    patch_attention::Sizes {
        images,
        channels: q.channels,
        value_channels: v.channels,
        height: q.height,
        width: q.width,
        patch,
    }
}

/// What was put on the card, once for each name.
struct Uploads<M> {
    kept: Vec<M>,
    known: HashMap<String, Region>,
    bytes: usize,
}

struct Compiler<'a, G: Gpu> {
    gpu: &'a mut G,
    graph: &'a Graph,
    weights: &'a Weights,
    images: usize,
    within: &'a [Option<Within>],
    arena: Region,
    memory: &'a Memory,
    uploads: Uploads<G::Memory>,
}

impl<G: Gpu> Compiler<'_, G> {
    /// Where a value lies.
    fn region(&self, value: Value) -> Region {
        let (root, channel) = root(self.within, value);
        let dims = self.graph.dims(value);
        let offset = self.memory.values[root.index()] + 4 * channel * dims.height * dims.width;
        self.arena.part(offset, 4 * count(self.images, dims))
    }

    /// What was uploaded under a name, made where it is new.
    fn uploaded(&mut self, name: String, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Region> {
        if let Some(&region) = self.uploads.known.get(&name) {
            return Ok(region);
        }
        let bytes = make()?;
        let memory = self.gpu.alloc(bytes.len())?;
        let region = memory.region();
        self.gpu.upload(&bytes, region)?;
        self.uploads.kept.push(memory);
        self.uploads.bytes += bytes.len();
        self.uploads.known.insert(name, region);
        Ok(region)
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Region> {
        let weights = self.weights;
        self.uploaded(name.to_owned(), || Ok(bytes(&tensor(weights, name, shape)?)))
    }

    /// `between`: where the step's memory in between lies in the arena.
    fn launches(&mut self, members: &[&Chain], between: usize) -> Result<Vec<Launch>> {
        let (graph, images) = (self.graph, self.images);
        let chain = members[0];
        let node = &graph.nodes()[chain.head];
        let to = self.region(Value::at(chain.tail));
        let between = self.arena.part(between, between_bytes(graph, images, chain));
        match &node.op {
            Op::Conv(conv) => {
                self.conv(conv, chain, between, to).with_context(|| format!("layer {}", conv.name))
            }
            Op::Concat => Ok(self.copies(Value::at(chain.tail))),
            Op::CosineDistance(rule) => {
                let levels = self.levels(members);
                Ok(vec![cosine_map::cosine_distances(*rule, Number::F32, images, &levels)])
            }
            Op::CosineProduct => {
                let levels = self.levels(members);
                Ok(vec![cosine_map::cosine_products(Number::F32, images, &levels)])
            }
            _ => self.other(node, chain, between, to),
        }
    }

    fn conv(
        &mut self,
        conv: &Conv,
        chain: &Chain,
        between: Region,
        to: Region,
    ) -> Result<Vec<Launch>> {
        let input = self.graph.nodes()[chain.head].inputs[0];
        let sizes = conv_sizes(conv, self.graph.dims(input), self.images);
        let norm = chain.norm.map(|norm| match &self.graph.nodes()[norm].op {
            Op::BatchNorm { name } => name.as_str(),
            _ => unreachable!("a chain's norm is a batch norm"),
        });
        // Two networks of one graph may share a layer.
        let name = format!("{} folded with {norm:?}", conv.name);
        let weights = self.weights;
        let bias = self
            .uploaded(format!("{name}: bias"), || Ok(bytes(&folded(weights, conv, norm)?.bias)))?;
        let weights = self.uploaded(format!("{name}: weights"), || {
            Ok(bytes(&sizes.pack(&folded(weights, conv, norm)?.weights)))
        })?;
        let taps = self.uploaded(format!("taps of {sizes:?}"), || {
            Ok(sizes.taps().iter().flat_map(|tap| tap.to_le_bytes()).collect())
        })?;
        let numbers = conv::Numbers { weights, taps, bias };
        let residual = chain.addend.map(|addend| self.region(addend));
        let ending = Ending { residual, slope: chain.slope };
        let parts = (between.bytes > 0).then_some(between);
        Ok(conv::convolve(&sizes, &numbers, self.region(input), parts, to, ending))
    }

    /// What of a concatenation does not lie in its place.
    fn copies(&self, whole: Value) -> Vec<Launch> {
        let dims = self.graph.dims(whole);
        let (places, to) = (dims.height * dims.width, self.region(whole));
        let mut launches = Vec::new();
        let mut first = 0;
        for &part in &self.graph.node(whole).inputs {
            let channels = self.graph.dims(part).channels;
            let from = self.region(part);
            let in_place = from.address == to.address + 4 * (first * places) as u64;
            if !(in_place && self.images == 1) {
                launches.push(elementwise::copy_channels(
                    (self.images, places),
                    from,
                    channels,
                    to,
                    (first, dims.channels),
                ));
            }
            first += channels;
        }
        launches
    }

    /// Of cosine maps that are made together.
    fn levels(&self, members: &[&Chain]) -> Vec<Level> {
        let level = |chain: &&Chain| {
            let inputs = &self.graph.nodes()[chain.head].inputs;
            let dims = self.graph.dims(inputs[0]);
            Level {
                a: self.region(inputs[0]),
                b: self.region(inputs[1]),
                to: self.region(Value::at(chain.tail)),
                channels: dims.channels,
                places: dims.height * dims.width,
            }
        };
        members.iter().map(level).collect()
    }

    /// Everything that is neither a convolution, a concatenation nor a cosine map.
    fn other(
        &mut self,
        node: &Node,
        chain: &Chain,
        between: Region,
        to: Region,
    ) -> Result<Vec<Launch>> {
        let images = self.images;
        let from: Vec<Region> = node.inputs.iter().map(|&input| self.region(input)).collect();
        let own: Vec<Dims> = node.inputs.iter().map(|&input| self.graph.dims(input)).collect();
        let Dims { channels, height, width } = own[0];
        let (planes, places) = (images * channels, height * width);
        let (numbers, made) = (count(images, own[0]), count(images, node.dims));
        let (shape, size) = ([images, channels, height, width], (height, width));
        let to_size = (node.dims.height, node.dims.width);
        let cosines = Cosines { map: from[0], images, height, width };
        let launch = match &node.op {
            Op::Input | Op::Conv(_) | Op::Concat | Op::CosineDistance(_) | Op::CosineProduct => {
                unreachable!("none of these")
            }
            Op::BatchNorm { name } => {
                let affine = self.norm(name, channels)?;
                let shape = [images, channels, places];
                elementwise::affine(shape, from[0], affine, to, chain.slope)
            }
            Op::Relu => elementwise::leaky_relu(numbers, from[0], to, 0.0),
            Op::LeakyRelu { slope } => elementwise::leaky_relu(numbers, from[0], to, *slope),
            Op::Sigmoid => elementwise::sigmoid(numbers, from[0], to),
            Op::Add => elementwise::add(numbers, from[0], from[1], to, chain.slope),
            Op::Mul => elementwise::multiply(numbers, from[0], from[1], to),
            Op::MaxPool => pooling::max_pool(planes, size, from[0], to),
            Op::AveragePool { .. } | Op::RegionMean { .. } => {
                pooling::means(planes, size, to_size, from[0], to)
            }
            Op::Upsample(rule) => upsample::upsample(planes, size, to_size, *rule, from[0], to),
            Op::RepeatChannels { times } => {
                elementwise::repeat(numbers, places, *times, from[0], to)
            }
            Op::RepeatRegions { times } => elementwise::repeat(numbers, 1, *times, from[0], to),
            Op::PrototypeResidual { name, prototypes } => {
                let all = self.tensor(name, &[*prototypes, channels, height, width])?;
                let sizes = residual_sizes(*prototypes, own[0], images);
                let residual = prototype_residual::prototype_residual;
                return Ok(residual(sizes, from[0], all, between, to).to_vec());
            }
            Op::PatchAttention { patch, scale } => {
                let sizes = attention_sizes(own[0], own[2], *patch, images);
                let maps = [from[0], from[1], from[2]];
                let attention = patch_attention::patch_attention;
                return Ok(attention(&sizes, maps, *scale, between, to).to_vec());
            }
            Op::LevelAttention => {
                // Levels are the tokens of attention between patches of one place: here k asks and
                // q answers, and they come in that order.
                let sizes = attention_sizes(own[0], own[2], 1, images);
                let maps = [from[0], from[1], from[2]];
                let attention = patch_attention::patch_attention;
                return Ok(attention(&sizes, maps, 1.0, between, to).to_vec());
            }
            Op::PatchAffine { name, patch } => {
                let shapes = [channels * patch * patch];
                let scale = self.tensor(&format!("{name}.weight"), &shapes)?;
                let shift = self.tensor(&format!("{name}.bias"), &shapes)?;
                patch_affine::patch_affine(shape, *patch, from[0], [scale, shift], to)
            }
            Op::WindowAttention => {
                let Dims { channels: values, height, width } = own[1];
                let shape = [images, values, height, width];
                let groups = channels / WINDOW;
                window_attention::window_attention(shape, groups, from[0], from[1], to)
            }
            Op::PlaceSoftmax => place_softmax::place_softmax(planes, places, from[0], to),
            Op::CosineToMean => texture::cosine_to_mean(shape, own[1].height, from[0], from[1], to),
            Op::LevelCounts { levels, rule } => {
                let bounds = between.part(0, cosines.bound_bytes(1));
                let sums = between.part(bounds.bytes, between.bytes - bounds.bytes);
                let first = texture::bounds(&cosines, 1, bounds);
                let counts = texture::level_counts(&cosines, bounds, *levels, *rule, sums, to);
                return Ok([first].into_iter().chain(counts).collect());
            }
            Op::CoOccurrence { levels, regions, rule, neighbour } => {
                let (sizes, rules) = ((*levels, *regions), (*rule, *neighbour));
                return Ok(vec![
                    texture::bounds(&cosines, *regions, between),
                    texture::co_occurrence(&cosines, between, sizes, rules, to),
                ]);
            }
            Op::MeanRegions => texture::mean_regions(made, width, from[0], to),
            Op::SpreadLevels { rule } => {
                let d = (own[1].channels, own[1].width);
                return Ok(vec![
                    texture::bounds(&cosines, 1, between),
                    texture::spread_levels(&cosines, between, from[1], d, *rule, to),
                ]);
            }
        };
        Ok(vec![launch])
    }

    /// Scale and shift of a batch norm, `[C]` each.
    fn norm(&mut self, name: &str, channels: usize) -> Result<[Region; 2]> {
        let (scale, shift) = norm(self.weights, name, channels)?;
        let narrow = |values: Vec<f64>| -> Vec<u8> {
            values.into_iter().flat_map(|value| (value as f32).to_le_bytes()).collect()
        };
        Ok([
            self.uploaded(format!("{name}: scale"), || Ok(narrow(scale)))?,
            self.uploaded(format!("{name}: shift"), || Ok(narrow(shift)))?,
        ])
    }
}

/// Places of the window of a window attention.
const WINDOW: usize = 9;

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
