//! From a graph to steps with their gradients and the times of their maps.
//!
//! Step s runs forward at time s + 1 (at time 0 the inputs are there) and backward at time 2S + 1 − s,
//! S + 1 being when the caller has looked at the outputs and says how the loss follows from them.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use super::memory::{Life, plan};
use super::{
    Convolution, Depthwise, Norm, Output, OwnRows, PatchAffine, Residual, Step, Tape, Training,
    Work,
};
use crate::nn::engine::Engine;
use crate::nn::graph::{self, Graph, Op, Resample};
use crate::ops::conv::Geometry;
use crate::ops::depthwise::Window;
use crate::ops::feature_map::{Buffer, Shape};
use crate::ops::gradient::accumulate::Accumulate;
use crate::ops::gradient::batch_norm::BatchNorm;
use crate::ops::gradient::conv::TrainConv;
use crate::ops::gradient::depthwise::TrainDepthwise;
use crate::ops::gradient::patch_affine::TrainPatchAffine;
use crate::ops::gradient::patch_attention;
use crate::ops::gradient::upsample as upsample_gradient;
use crate::ops::prototype_residual::Prototypes;
use crate::ops::upsample::Upsample;
use crate::ops::window_attention::logit_source;

/// Nodes that are done in one go: the last of them, and what it needs from outside.
struct Group {
    /// Where the work begins: the batch norm, or the node itself.
    head: usize,
    tail: usize,
    /// Nodes, the shortcut behind the first argument where there is one.
    from: Vec<usize>,
    relu: bool,
}

/// Batch norms with the sum and the ReLU behind them, and every other node by itself, in the order of
/// their tails.
fn group(graph: &Graph) -> Vec<Group> {
    let nodes = graph.nodes();
    let mut readers = vec![0; nodes.len()];
    nodes.iter().flat_map(|node| &node.inputs).for_each(|value| readers[value.index()] += 1);
    // Whoever reads an output wants it as it is.
    graph.outputs().iter().for_each(|value| readers[value.index()] += 1);
    let lone_norm = |i: usize| matches!(nodes[i].op, Op::BatchNorm { .. }) && readers[i] == 1;
    let mut taken = vec![false; nodes.len()];
    let mut groups = Vec::new();
    for (tail, node) in nodes.iter().enumerate().rev() {
        if taken[tail] || node.op == Op::Input {
            continue;
        }
        let from: Vec<usize> = node.inputs.iter().map(|value| value.index()).collect();
        let mut own = Group { head: tail, tail, from, relu: false };
        if node.op == Op::Relu {
            let before = own.from[0];
            if lone_norm(before) {
                taken[before] = true;
                let from = vec![nodes[before].inputs[0].index()];
                own = Group { head: before, tail, from, relu: true };
            } else if nodes[before].op == Op::Add && readers[before] == 1 {
                let arguments = [0, 1].map(|i| nodes[before].inputs[i].index());
                if let Some(i) = (0..2).find(|&i| lone_norm(arguments[i]))
                    && arguments[0] != arguments[1]
                {
                    taken[before] = true;
                    taken[arguments[i]] = true;
                    let x = nodes[arguments[i]].inputs[0].index();
                    let from = vec![x, arguments[1 - i]];
                    own = Group { head: arguments[i], tail, from, relu: true };
                }
            }
        }
        groups.push(own);
    }
    groups.reverse();
    groups
}

impl Tape {
    /// A tape of `graph` for batches of `images`.
    ///
    /// # Errors
    /// An operation whose gradient is not known here, or a tensor learned at places that can't share it.
    pub fn new(
        graph: &Graph,
        images: usize,
        engine: &Engine,
        training: &Training<'_>,
    ) -> Result<Tape> {
        ensure!(images > 0, "a batch of no pictures");
        let groups = group(graph);
        let logits = window_logits(graph)?;
        let compiler = Compiler { graph, images, engine, training, logits: &logits };

        let count = groups.len();
        let backward = |step: usize| 2 * count + 1 - step;
        let end = backward(0);
        // Behind which nodes something is learned, and which ones an output needs.
        let mut learned = vec![false; graph.nodes().len()];
        for group in &groups {
            learned[group.tail] =
                compiler.learns(group.head) || group.from.iter().any(|&from| learned[from]);
        }
        let mut needed = vec![false; graph.nodes().len()];
        graph.outputs().iter().for_each(|value| needed[value.index()] = true);
        for group in groups.iter().rev() {
            if needed[group.tail] {
                group.from.iter().for_each(|&from| needed[from] = true);
            }
        }
        let has_gradient = |node: usize| learned[node] && needed[node];
        // The way back comes to the last user of a tensor first.
        let mut last_user: BTreeMap<&str, usize> = BTreeMap::new();
        for (step, group) in groups.iter().enumerate() {
            let node = &graph.nodes()[group.head];
            if let Op::PrototypeResidual { name, .. } = &node.op {
                ensure!(
                    !learned[group.from[0]],
                    "features that are compared with {name} are learned; prototypes are of frozen ones"
                );
            }
            let Some(name) = compiler.learned(group.head).filter(|_| has_gradient(group.tail))
            else {
                continue;
            };
            let before = last_user.insert(name, step);
            ensure!(
                before.is_none() || matches!(node.op, Op::Conv(_)),
                "{name} is learned at several places; only convolutions can share weights"
            );
        }

        let mut lives: BTreeMap<usize, Life> = BTreeMap::new();
        let mut gradient_lives: BTreeMap<usize, Life> = BTreeMap::new();
        for (i, node) in graph.nodes().iter().enumerate() {
            if node.op == Op::Input {
                lives.insert(i, Life { shape: compiler.shape(i), from: 0, to: 0 });
            }
        }
        for (step, group) in groups.iter().enumerate() {
            let life = Life { shape: compiler.shape(group.tail), from: step + 1, to: step + 1 };
            lives.insert(group.tail, life);
            let mut read = |node: usize, time: usize| {
                let life = lives.get_mut(&node).expect("made before it is read");
                life.to = life.to.max(time);
            };
            group.from.iter().for_each(|&from| read(from, step + 1));
            if has_gradient(group.tail) {
                let kept = compiler.kept(group);
                kept.into_iter().for_each(|node| read(node, backward(step)));
            }
        }
        for output in graph.outputs() {
            lives.get_mut(&output.index()).expect("outputs are made").to = end;
            if has_gradient(output.index()) {
                let shape = compiler.shape(output.index());
                gradient_lives.insert(output.index(), Life { shape, from: count + 1, to: end });
            }
        }
        // Backward in time: whoever comes first sets a gradient, the others add to it.
        let mut steps_gradients = Vec::with_capacity(count);
        for (step, group) in groups.iter().enumerate().rev() {
            let mut gradients = vec![None; group.from.len()];
            if has_gradient(group.tail) {
                for (gradient, &from) in gradients.iter_mut().zip(&group.from) {
                    if !has_gradient(from) {
                        continue;
                    }
                    let known = gradient_lives.contains_key(&from);
                    *gradient = Some(if known { Accumulate::Add } else { Accumulate::Set });
                    let (shape, now) = (compiler.shape(from), backward(step));
                    gradient_lives.entry(from).or_insert(Life { shape, from: now, to: end });
                }
                let own = gradient_lives.get_mut(&group.tail);
                own.expect("a needed value is read, or an output").to = backward(step);
            }
            steps_gradients.push(gradients);
        }
        steps_gradients.reverse();

        // A batch norm sums for its parameters while it writes its argument's gradient.
        let mut spare_lives: BTreeMap<usize, Life> = BTreeMap::new();
        for (step, (group, gradients)) in groups.iter().zip(&steps_gradients).enumerate() {
            let is_norm = matches!(graph.nodes()[group.head].op, Op::BatchNorm { .. });
            if is_norm && gradients[0].is_none() && has_gradient(group.tail) {
                let (shape, now) = (compiler.shape(group.from[0]), backward(step));
                spare_lives.insert(step, Life { shape, from: now, to: now });
            }
        }

        let planned = [&lives, &gradient_lives, &spare_lives];
        let all: Vec<Life> = planned.iter().flat_map(|lives| lives.values()).copied().collect();
        let (places, buffers) = plan(&all);
        let (gradients_from, spares_from) = (lives.len(), lives.len() + gradient_lives.len());
        let value_at: BTreeMap<usize, _> =
            lives.keys().copied().zip(places.iter().copied()).collect();
        let from = |first: usize| places[first..].iter().copied();
        let gradient_at: BTreeMap<usize, _> =
            gradient_lives.keys().copied().zip(from(gradients_from)).collect();
        let spare_at: BTreeMap<usize, _> =
            spare_lives.keys().copied().zip(from(spares_from)).collect();

        let mut steps = Vec::with_capacity(count);
        for (step, (group, accumulate)) in groups.iter().zip(steps_gradients).enumerate() {
            let backward = has_gradient(group.tail);
            let passes_on = accumulate.first().is_some_and(Option::is_some);
            let first =
                compiler.learned(group.head).is_none_or(|name| last_user.get(name) == Some(&step));
            let into = if first { Accumulate::Set } else { Accumulate::Add };
            steps.push(Step {
                work: compiler.work(group, backward.then_some(into), passes_on)?,
                from: group.from.iter().map(|from| value_at[from]).collect(),
                to: value_at[&group.tail],
                gradient: backward.then(|| gradient_at[&group.tail]),
                gradients: group
                    .from
                    .iter()
                    .zip(accumulate)
                    .map(|(from, accumulate)| accumulate.map(|how| (gradient_at[from], how)))
                    .collect(),
                spare: spare_at.get(&step).copied(),
            });
        }
        let inputs = graph.nodes().iter().enumerate().filter(|(_, node)| node.op == Op::Input);
        let inputs = inputs.map(|(i, _)| value_at[&i]).collect();
        let outputs = graph.outputs().iter().map(|value| Output {
            value: value_at[&value.index()],
            gradient: gradient_at.get(&value.index()).copied(),
        });
        let outputs = outputs.collect();
        let scratch = steps.iter().map(Step::scratch_len).max().unwrap_or(0);
        let gradients = compiler.gradients(&steps);
        Ok(Tape {
            engine: engine.clone(),
            steps,
            buffers,
            scratch: Buffer::zeroed(scratch),
            inputs,
            outputs,
            gradients,
        })
    }
}

/// For each convolution that makes the logits of a window attention, its rows in the engine's order.
fn window_logits(graph: &Graph) -> Result<BTreeMap<usize, Vec<usize>>> {
    let mut logits = BTreeMap::new();
    for node in graph.nodes().iter().filter(|node| node.op == Op::WindowAttention) {
        let from = node.inputs[0].index();
        let readers = graph.nodes().iter().filter(|reader| reader.inputs.contains(&node.inputs[0]));
        ensure!(
            matches!(graph.nodes()[from].op, Op::Conv(_)) && readers.count() == 1,
            "window attention is trained with logits that are a convolution's, for it alone"
        );
        logits.insert(from, logit_source(graph.nodes()[from].dims.channels / 9));
    }
    Ok(logits)
}

struct Compiler<'a> {
    graph: &'a Graph,
    images: usize,
    engine: &'a Engine,
    training: &'a Training<'a>,
    logits: &'a BTreeMap<usize, Vec<usize>>,
}

impl Compiler<'_> {
    fn shape(&self, node: usize) -> Shape {
        let dims = self.graph.nodes()[node].dims;
        let channels = self.logits.get(&node).map_or(dims.channels, Vec::len);
        Shape::new(self.images, channels, dims.height, dims.width)
    }

    /// Whether the operation of this node has something to learn.
    fn learns(&self, node: usize) -> bool {
        self.learned(node).is_some()
    }

    /// The path of what the operation of this node learns, if it does.
    fn learned(&self, node: usize) -> Option<&str> {
        let name = match &self.graph.nodes()[node].op {
            Op::Conv(conv) => &conv.name,
            Op::BatchNorm { name } | Op::PatchAffine { name, .. } => name,
            _ => return None,
        };
        (self.training.learned)(&format!("{name}.weight")).then_some(name)
    }

    /// Values that the gradients of a group are computed from.
    fn kept(&self, group: &Group) -> Vec<usize> {
        match &self.graph.nodes()[group.head].op {
            Op::Conv(_) | Op::PatchAffine { .. } if self.learns(group.head) => group.from.clone(),
            Op::BatchNorm { .. } => vec![group.from[0], group.tail],
            Op::Relu | Op::LeakyRelu { .. } | Op::Sigmoid | Op::PlaceSoftmax => vec![group.tail],
            Op::MaxPool => vec![group.from[0], group.tail],
            Op::Mul
            | Op::CosineProduct
            | Op::CosineDistance(_)
            | Op::PatchAttention { .. }
            | Op::WindowAttention => group.from.clone(),
            _ => Vec::new(),
        }
    }

    /// `backward`: a gradient comes, and how those of what is learned come to the network's;
    /// `passes_on`: the first argument wants one.
    fn work(&self, group: &Group, backward: Option<Accumulate>, passes_on: bool) -> Result<Work> {
        let node = &self.graph.nodes()[group.head];
        let from = self.graph.nodes()[group.from[0]].dims;
        let size = ((from.height, from.width), (node.dims.height, node.dims.width));
        let learned = backward.is_some() && self.learns(group.head);
        let into = backward.unwrap_or(Accumulate::Set);
        Ok(match &node.op {
            Op::Conv(conv) if conv.is_depthwise() => {
                self.depthwise(conv, group, learned.then_some(into))?
            }
            Op::Conv(conv) => {
                let rows = self.logits.get(&group.head).cloned();
                let shared =
                    (learned && into == Accumulate::Add).then(|| (0..conv.c_out).collect());
                let geometry = Geometry {
                    c_in: conv.c_in,
                    c_out: rows.as_ref().map_or(conv.c_out, Vec::len),
                    kernel: conv.kernel,
                    stride: conv.stride,
                    padding: conv.padding,
                    dilation: conv.dilation,
                };
                let input = self.shape(group.from[0]);
                let kernel = TrainConv::new(
                    self.engine.isa,
                    geometry,
                    conv.groups,
                    input,
                    self.engine.team.threads(),
                    passes_on,
                );
                let own = rows.or(shared).map(|source: Vec<usize>| OwnRows {
                    weights: vec![0.0; kernel.weights_len()],
                    weight_gradient: vec![0.0; kernel.weights_len()],
                    bias: vec![0.0; source.len()],
                    bias_gradient: vec![0.0; source.len()],
                    source,
                });
                Work::Conv(Box::new(Convolution {
                    weight: format!("{}.weight", conv.name),
                    bias: conv.bias.then(|| format!("{}.bias", conv.name)),
                    learned,
                    into,
                    own,
                    kernel,
                }))
            }
            Op::BatchNorm { name } => Work::Norm(Box::new(Norm {
                kernel: BatchNorm::new(self.engine.isa, self.shape(group.head)),
                statistics: (self.training.statistics)(name),
                learned,
                relu: group.relu,
                watched: None,
                name: name.clone(),
            })),
            Op::Relu => Work::Relu,
            Op::LeakyRelu { slope } => Work::LeakyRelu(*slope),
            Op::Sigmoid => Work::Sigmoid,
            Op::Add => Work::Add,
            Op::Mul => Work::Mul,
            Op::MaxPool => Work::MaxPool,
            Op::AveragePool { kernel } => Work::AveragePool { kernel: *kernel },
            Op::RegionMean { regions } => Work::RegionMean { regions: *regions },
            Op::Upsample(Resample::Nearest) => Work::Upsample(
                Upsample::nearest(size.0, size.1),
                upsample_gradient::Upsample::nearest(size.0, size.1),
            ),
            Op::Upsample(Resample::Bilinear(align)) => Work::Upsample(
                Upsample::bilinear(size.0, size.1, *align),
                upsample_gradient::Upsample::bilinear(size.0, size.1, *align),
            ),
            Op::Concat => Work::Concat,
            Op::RepeatChannels { times } => Work::RepeatChannels { times: *times },
            Op::PrototypeResidual { name, prototypes } => {
                let graph::Dims { channels, height, width } = node.dims;
                let prototypes = Prototypes::zeros(*prototypes, (channels, height, width));
                Work::PrototypeResidual(Box::new(Residual { prototypes, name: name.clone() }))
            }
            Op::PatchAttention { patch, scale } => {
                Work::PatchAttention { patch: *patch, scale: *scale }
            }
            Op::PatchAffine { name, patch } => Work::PatchAffine(Box::new(PatchAffine {
                kernel: TrainPatchAffine::new(self.engine.isa, self.shape(group.head), *patch),
                name: name.clone(),
                learned,
            })),
            Op::CosineProduct => Work::CosineProduct,
            Op::CosineDistance(rule) => Work::CosineDistance(*rule),
            Op::WindowAttention => Work::WindowAttention,
            Op::PlaceSoftmax => Work::PlaceSoftmax,
            op => bail!("{op:?} has no gradient here"),
        })
    }

    /// `learned`: how its gradients come to the network's.
    fn depthwise(
        &self,
        conv: &graph::Conv,
        group: &Group,
        learned: Option<Accumulate>,
    ) -> Result<Work> {
        ensure!(
            conv.dilation == 1,
            "{}: a dilated depthwise convolution is not trained",
            conv.name
        );
        let window = Window { kernel: conv.kernel, stride: conv.stride, padding: conv.padding };
        let input = self.shape(group.from[0]);
        let kernel = TrainDepthwise::new(self.engine.isa, window, input);
        let added = (learned == Some(Accumulate::Add))
            .then(|| [kernel.weights_len(), conv.c_out].map(|count| vec![0.0; count]));
        Ok(Work::Depthwise(Box::new(Depthwise {
            weight: format!("{}.weight", conv.name),
            bias: conv.bias.then(|| format!("{}.bias", conv.name)),
            learned: learned.is_some(),
            added,
            kernel,
        })))
    }

    /// Zeros for each learned tensor.
    fn gradients(&self, steps: &[Step]) -> BTreeMap<String, Vec<f32>> {
        let learned: Vec<String> = steps.iter().flat_map(|step| step.work.learned()).collect();
        let all = self.graph.tensors().into_iter();
        let own = all.filter(|(name, _)| learned.contains(name));
        own.map(|(name, shape)| (name, vec![0.0; shape.iter().product()])).collect()
    }
}

impl Step {
    /// Numbers of scratch memory that it needs.
    fn scratch_len(&self) -> usize {
        match &self.work {
            Work::Conv(conv) => conv.kernel.scratch_len(),
            Work::Depthwise(conv) => conv.kernel.scratch_len(),
            Work::PrototypeResidual(own) => own.prototypes.scratch_len(self.to.shape.images),
            Work::PatchAttention { patch, .. } => {
                patch_attention::scratch_len(self.to.shape, *patch)
            }
            Work::PatchAffine(own) => own.kernel.scratch_len(),
            _ => 0,
        }
    }
}

impl Work {
    /// The tensors that it learns.
    fn learned(&self) -> Vec<String> {
        match self {
            Work::Conv(conv) if conv.learned => {
                [Some(conv.weight.clone()), conv.bias.clone()].into_iter().flatten().collect()
            }
            Work::Depthwise(conv) if conv.learned => {
                [Some(conv.weight.clone()), conv.bias.clone()].into_iter().flatten().collect()
            }
            Work::PatchAffine(own) if own.learned => {
                ["weight", "bias"].map(|kind| format!("{}.{kind}", own.name)).to_vec()
            }
            Work::Norm(norm) if norm.learned => {
                ["weight", "bias"].map(|kind| format!("{}.{kind}", norm.name)).to_vec()
            }
            _ => Vec::new(),
        }
    }
}
