//! A network in training: a [`Graph`](crate::nn::graph::Graph) run forward on feature maps with what
//! its gradients need kept, and then backward.
//!
//! The maps, kernels and threads are those of the line ([`crate::nn::plan`]), the weights are the
//! caller's and change between runs. A batch norm takes the ReLU behind it along, and the sum with a
//! shortcut between the two. Prototypes are packed anew with each run, as weights are. Which maps live at the same time is known before the first run: they
//! share buffers, and a run takes no memory.
//!
//! Letters: B pictures, C channels, H × W places, S steps.

mod backward;
mod compile;
mod memory;

use std::collections::BTreeMap;

use anyhow::Result;

use super::parameters::Parameters;
use crate::nn::engine::Engine;
use crate::ops::cosine_map::{self, Distance, Level};
use crate::ops::feature_map::{Buffer, FeatureMap};
use crate::ops::gradient::accumulate::Accumulate;
use crate::ops::gradient::batch_norm::{self, BatchNorm, Forward};
use crate::ops::gradient::conv::TrainConv;
use crate::ops::gradient::depthwise::TrainDepthwise;
use crate::ops::gradient::patch_affine::TrainPatchAffine;
use crate::ops::gradient::upsample as upsample_gradient;
use crate::ops::patch_attention::patch_attention;
use crate::ops::place_softmax::place_softmax;
use crate::ops::prototype_residual::Prototypes;
use crate::ops::simd::LANES;
use crate::ops::upsample::Upsample;
use crate::ops::window_attention::window_attention;
use crate::ops::{elementwise, pooling};
use memory::Place;

/// What a batch norm normalises with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// The batch's; the running ones follow it with momentum 0.1.
    Batch,
    /// The running ones, which stay.
    Running,
    /// The running ones, which stay; the batch's are found out besides.
    Watched,
}

/// How a network is trained.
pub struct Training<'a> {
    /// Whether the tensor of this name is learned.
    pub learned: &'a dyn Fn(&str) -> bool,
    /// Of the batch norm of this name.
    pub statistics: &'a dyn Fn(&str) -> Statistics,
}

/// A network for batches of one size, with its memory.
pub struct Tape {
    engine: Engine,
    steps: Vec<Step>,
    buffers: Vec<Buffer>,
    scratch: Buffer,
    inputs: Vec<Place>,
    outputs: Vec<Output>,
    gradients: BTreeMap<String, Vec<f32>>,
}

struct Output {
    value: Place,
    /// Where something learned is behind it.
    gradient: Option<Place>,
}

struct Step {
    work: Work,
    from: Vec<Place>,
    to: Place,
    /// Of what the step makes; `None` where nothing learned is behind it, or no output before it.
    gradient: Option<Place>,
    /// Of each argument that has one, and how it comes there.
    gradients: Vec<Option<(Place, Accumulate)>>,
    /// For a gradient that nobody wants and the kernel writes all the same.
    spare: Option<Place>,
}

enum Work {
    Conv(Box<Convolution>),
    Depthwise(Box<Depthwise>),
    Norm(Box<Norm>),
    Relu,
    LeakyRelu(f32),
    Sigmoid,
    Add,
    Mul,
    MaxPool,
    AveragePool {
        kernel: usize,
    },
    RegionMean {
        regions: usize,
    },
    Upsample(Upsample, upsample_gradient::Upsample),
    Concat,
    RepeatChannels {
        times: usize,
    },
    CosineProduct,
    CosineDistance(Distance),
    /// Of frozen features: there is no way back.
    PrototypeResidual(Box<Residual>),
    PatchAttention {
        patch: usize,
        scale: f32,
    },
    PatchAffine(Box<PatchAffine>),
    WindowAttention,
    PlaceSoftmax,
}

struct Convolution {
    kernel: TrainConv,
    weight: String,
    bias: Option<String>,
    learned: bool,
    /// How the gradients of weights and bias come to those of the network, which may use them at
    /// several places.
    into: Accumulate,
    own: Option<OwnRows>,
}

/// Of a convolution whose outputs the engine wants in another order than they are defined in, some of
/// them more than once, or whose gradients are added to others.
struct OwnRows {
    /// For each of the engine's outputs the one of the definition.
    source: Vec<usize>,
    weights: Vec<f32>,
    bias: Vec<f32>,
    weight_gradient: Vec<f32>,
    bias_gradient: Vec<f32>,
}

/// A convolution with a filter for each channel.
struct Depthwise {
    kernel: TrainDepthwise,
    weight: String,
    bias: Option<String>,
    learned: bool,
    /// Gradients of weights and bias that are added to those of the same tensors at other places.
    added: Option<[Vec<f32>; 2]>,
}

struct Residual {
    prototypes: Prototypes,
    name: String,
}

struct PatchAffine {
    kernel: TrainPatchAffine,
    name: String,
    learned: bool,
}

/// y = relu(γ(x − μ)/√(σ² + ε) + β + shortcut), the last two where they are.
struct Norm {
    kernel: BatchNorm,
    name: String,
    statistics: Statistics,
    learned: bool,
    relu: bool,
    /// The batch's mean and variance `[C]`, where it normalises with others.
    watched: Option<[Vec<f32>; 2]>,
}

/// How far the running statistics go to the batch's with each run; PyTorch's value.
const MOMENTUM: f64 = 0.1;

impl Tape {
    /// Where the argument `index` of the graph is to be put before a run.
    pub fn input(&self, index: usize) -> FeatureMap<'_> {
        self.inputs[index].map(&self.buffers)
    }

    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// What the last run made of the graph's output `index`.
    pub fn output(&self, index: usize) -> FeatureMap<'_> {
        self.outputs[index].value.map(&self.buffers)
    }

    /// Where the gradient of the loss by that output is to be put before the way back; `None` where
    /// nothing learned is behind it.
    pub fn output_gradient(&self, index: usize) -> Option<FeatureMap<'_>> {
        Some(self.outputs[index].gradient?.map(&self.buffers))
    }

    /// Of every learned tensor, as the last way back found them.
    pub fn gradients(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.gradients
    }

    /// Mean and biased variance `[C]` of the last batch at the batch norm `name`; `None` where it
    /// normalised with others and did not watch.
    pub fn statistics(&self, name: &str) -> Option<[&[f32]; 2]> {
        self.steps.iter().find_map(|step| match &step.work {
            Work::Norm(norm) if norm.name == name => match norm.statistics {
                Statistics::Batch => Some([norm.kernel.mean(), norm.kernel.variance()]),
                Statistics::Running => None,
                Statistics::Watched => {
                    norm.watched.as_ref().map(|[mean, variance]| [&mean[..], &variance[..]])
                }
            },
            _ => None,
        })
    }

    /// Bytes of all maps.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Buffer::bytes).sum::<usize>() + self.scratch.bytes()
    }

    /// Runs the network on what the inputs hold. Running statistics of batch norms that normalise
    /// with the batch's move.
    ///
    /// # Errors
    /// A tensor that `parameters` lack.
    pub fn forward(&mut self, parameters: &mut Parameters) -> Result<()> {
        let Tape { engine, steps, buffers, scratch, .. } = self;
        for step in steps {
            step.forward(engine, buffers, scratch, parameters)?;
        }
        Ok(())
    }

    /// From the gradients by the outputs to those by everything learned.
    ///
    /// # Errors
    /// As [`Tape::forward`].
    pub fn backward(&mut self, parameters: &Parameters) -> Result<()> {
        let Tape { engine, steps, buffers, scratch, gradients, .. } = self;
        for step in steps.iter_mut().rev().filter(|step| step.gradient.is_some()) {
            step.backward(engine, buffers, scratch, parameters, gradients)?;
        }
        Ok(())
    }
}

impl Step {
    fn forward(
        &mut self,
        engine: &Engine,
        buffers: &[Buffer],
        scratch: &Buffer,
        parameters: &mut Parameters,
    ) -> Result<()> {
        let (team, isa) = (&*engine.team, engine.isa);
        let (x, y) = (self.from[0].map(buffers), self.to.map(buffers));
        let second = || self.from[1].map(buffers);
        match &mut self.work {
            Work::Conv(conv) => {
                conv.load(parameters)?;
                let (weights, bias) = conv.numbers(parameters)?;
                conv.kernel.forward(team, weights, bias, x, y, scratch);
            }
            Work::Depthwise(conv) => {
                let weights = parameters.get(&conv.weight)?;
                let bias = conv.bias.as_ref().map(|name| parameters.get(name)).transpose()?;
                conv.kernel.forward(team, weights, bias, x, y, scratch);
            }
            Work::Norm(norm) => {
                let name = &norm.name;
                let running = [format!("{name}.running_mean"), format!("{name}.running_var")];
                let statistics = match norm.statistics {
                    Statistics::Batch => batch_norm::Statistics::Batch,
                    Statistics::Running | Statistics::Watched => batch_norm::Statistics::Fixed {
                        mean: parameters.get(&running[0])?,
                        variance: parameters.get(&running[1])?,
                    },
                };
                if norm.statistics == Statistics::Watched {
                    norm.kernel.measure(team, x);
                    let batch = [norm.kernel.mean(), norm.kernel.variance()];
                    norm.watched = Some(batch.map(<[f32]>::to_vec));
                }
                let residual = self.from.get(1).map(|place| place.map(buffers));
                let forward = Forward {
                    statistics,
                    gamma: parameters.get(&format!("{name}.weight"))?,
                    beta: parameters.get(&format!("{name}.bias"))?,
                    x,
                    residual,
                    relu: norm.relu,
                    y,
                };
                norm.kernel.forward(team, forward);
                if norm.statistics == Statistics::Batch {
                    let batch = [norm.kernel.mean(), norm.kernel.variance()];
                    parameters.get_two_mut([&running[0], &running[1]], |running| {
                        batch_norm::update_running(running, batch, norm.kernel.count(), MOMENTUM);
                    })?;
                }
            }
            Work::Relu => elementwise::relu(team, isa, x, y),
            Work::LeakyRelu(slope) => elementwise::leaky_relu(team, isa, *slope, x, y),
            Work::Sigmoid => elementwise::sigmoid(team, isa, x, y),
            Work::Add => elementwise::add(team, isa, x, second(), y),
            Work::Mul => elementwise::mul(team, isa, x, second(), y),
            Work::MaxPool => pooling::max_pool(team, isa, x, y),
            Work::AveragePool { kernel } => pooling::average_pool(team, isa, *kernel, x, y),
            Work::RegionMean { regions } => pooling::region_mean(team, isa, *regions, x, y),
            Work::Upsample(upsample, _) => upsample.run(team, isa, x, y),
            Work::Concat => {
                let mut first = 0;
                for part in &self.from {
                    let (map, channels) = (part.map(buffers), part.shape.channels);
                    if first % LANES == 0 {
                        elementwise::copy(team, isa, map, y.channels(first, channels));
                    } else {
                        elementwise::copy_channels(team, map, y, first);
                    }
                    first += channels;
                }
            }
            Work::RepeatChannels { times } => elementwise::repeat_channels(team, x, y, *times),
            Work::PrototypeResidual(own) => {
                own.prototypes.write(parameters.get(&own.name)?);
                own.prototypes.residual(team, isa, &x, scratch, &y);
            }
            Work::PatchAttention { patch, scale } => {
                let maps = [0, 1, 2].map(|i| self.from[i].map(buffers));
                patch_attention(team, isa, maps, (*patch, *scale), scratch, y);
            }
            Work::PatchAffine(own) => {
                own.kernel.forward(team, own.numbers(parameters)?, x, y, scratch);
            }
            Work::CosineProduct => cosine_map::cosine_product(team, isa, x, second(), y),
            Work::CosineDistance(rule) => {
                let level = Level { a: x, b: second(), to: y };
                cosine_map::cosine_distances(team, isa, *rule, &[level]);
            }
            Work::WindowAttention => window_attention(team, isa, &x, &second(), &y),
            Work::PlaceSoftmax => place_softmax(team, isa, x, y),
        }
        Ok(())
    }
}

impl Convolution {
    /// Fetches the weights, where the engine has rows of its own.
    fn load(&mut self, parameters: &Parameters) -> Result<()> {
        let Some(own) = &mut self.own else { return Ok(()) };
        let weights = parameters.get(&self.weight)?;
        let row = own.weights.len() / own.source.len();
        for (to, &from) in own.weights.chunks_exact_mut(row).zip(&own.source) {
            to.copy_from_slice(&weights[from * row..][..row]);
        }
        if let Some(name) = &self.bias {
            let bias = parameters.get(name)?;
            own.bias.iter_mut().zip(&own.source).for_each(|(to, &from)| *to = bias[from]);
        }
        Ok(())
    }

    /// Weights and bias as the kernel wants them.
    fn numbers<'a>(&'a self, parameters: &'a Parameters) -> Result<(&'a [f32], Option<&'a [f32]>)> {
        if let Some(own) = &self.own {
            return Ok((&own.weights, self.bias.is_some().then_some(own.bias.as_slice())));
        }
        let bias = self.bias.as_ref().map(|name| parameters.get(name)).transpose()?;
        Ok((parameters.get(&self.weight)?, bias))
    }
}

impl PatchAffine {
    /// Scales and shifts.
    fn numbers<'a>(&self, parameters: &'a Parameters) -> Result<[&'a [f32]; 2]> {
        let get = |kind: &str| parameters.get(&format!("{}.{kind}", self.name));
        Ok([get("weight")?, get("bias")?])
    }
}

#[cfg(test)]
mod tests;
