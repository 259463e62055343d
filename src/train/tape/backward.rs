//! The way back: each step's gradients by its arguments and by what it learns.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::{Convolution, Depthwise, Norm, PatchAffine, Step, Work};
use crate::nn::engine::Engine;
use crate::ops::feature_map::{Buffer, FeatureMap};
use crate::ops::gradient::accumulate::Accumulate;
use crate::ops::gradient::batch_norm::{Backward, Relu};
use crate::ops::gradient::place_softmax::place_softmax;
use crate::ops::gradient::{cosine, elementwise, patch_attention, pooling, window_attention};
use crate::ops::simd::LANES;
use crate::train::parameters::Parameters;

impl Step {
    /// # Errors
    /// A tensor that `parameters` lack.
    pub(super) fn backward(
        &mut self,
        engine: &Engine,
        buffers: &[Buffer],
        scratch: &Buffer,
        parameters: &Parameters,
        learned: &mut BTreeMap<String, Vec<f32>>,
    ) -> Result<()> {
        let (team, isa) = (&*engine.team, engine.isa);
        let Step { work, from, to, gradient, gradients, spare } = self;
        let Some(dy) = gradient.map(|place| place.map(buffers)) else { return Ok(()) };
        let (x, y) = (from[0].map(buffers), to.map(buffers));
        let second = || from[1].map(buffers);
        let wanted: Vec<Option<(Accumulate, FeatureMap<'_>)>> = gradients
            .iter()
            .map(|gradient| gradient.map(|(place, into)| (into, place.map(buffers))))
            .collect();
        match work {
            Work::Conv(conv) => {
                if conv.learned {
                    conv.learn(engine, x, dy, scratch, learned)?;
                }
                let (weights, _) = conv.numbers(parameters)?;
                match wanted[0] {
                    Some((Accumulate::Set, dx)) => {
                        conv.kernel.input_gradient(team, weights, dy, dx, scratch);
                    }
                    Some((Accumulate::Add, dx)) => {
                        conv.kernel.add_input_gradient(team, weights, dy, dx, scratch);
                    }
                    None => {}
                }
            }
            Work::Depthwise(conv) => {
                if conv.learned {
                    conv.learn(engine, x, dy, learned)?;
                }
                if let Some(dx) = wanted[0] {
                    let weights = parameters.get(&conv.weight)?;
                    conv.kernel.input_gradient(team, weights, dy, dx, scratch);
                }
            }
            Work::Norm(norm) => {
                norm.backward(engine, [x, y, dy], &wanted, *spare, buffers, learned)?
            }
            Work::Relu => each(&wanted, |into, dx| elementwise::relu(team, isa, y, dy, into, dx)),
            Work::LeakyRelu(slope) => each(&wanted, |into, dx| {
                elementwise::leaky_relu(team, isa, *slope, y, dy, into, dx);
            }),
            Work::Sigmoid => {
                each(&wanted, |into, dx| elementwise::sigmoid(team, isa, y, dy, into, dx))
            }
            Work::Add => each(&wanted, |into, dx| elementwise::add(team, isa, dy, into, dx)),
            Work::Mul => {
                let others = [second(), x];
                for (wanted, other) in wanted.iter().zip(others) {
                    if let Some((into, da)) = *wanted {
                        elementwise::mul(team, isa, other, dy, into, da);
                    }
                }
            }
            Work::MaxPool => {
                each(&wanted, |into, dx| pooling::max_pool(team, isa, [x, y, dy], into, dx));
            }
            Work::AveragePool { .. } | Work::RegionMean { .. } => {
                each(&wanted, |into, dx| pooling::mean(team, isa, dy, into, dx));
            }
            Work::Upsample(_, back) => each(&wanted, |into, dx| back.run(team, isa, dy, into, dx)),
            Work::Concat => {
                let mut first = 0;
                for (part, wanted) in from.iter().zip(&wanted) {
                    let channels = part.shape.channels;
                    match *wanted {
                        Some((into, dx)) if first % LANES == 0 => {
                            elementwise::add(team, isa, dy.channels(first, channels), into, dx);
                        }
                        Some((into, dx)) => elementwise::add_channels(team, dy, first, into, dx),
                        None => {}
                    }
                    first += channels;
                }
            }
            Work::RepeatChannels { times } => {
                each(&wanted, |into, dx| elementwise::repeat_channels(team, dy, *times, into, dx));
            }
            Work::PrototypeResidual(_) => bail!("a residual to prototypes has no way back"),
            Work::PatchAttention { patch, scale } => {
                let maps = [x, second(), from[2].map(buffers), dy];
                let (how, wanted) = ((*patch, *scale), [wanted[0], wanted[1], wanted[2]]);
                patch_attention::patch_attention(team, isa, maps, how, wanted, scratch);
            }
            Work::PatchAffine(own) => {
                if own.learned {
                    own.learn(engine, x, dy, learned)?;
                }
                if let Some(dx) = wanted[0] {
                    let [weight, _] = own.numbers(parameters)?;
                    own.kernel.input_gradient(team, weight, dy, dx, scratch);
                }
            }
            Work::CosineProduct | Work::CosineDistance(_) => {
                // Both are the same from either side.
                for (wanted, pair) in wanted.iter().zip([[second(), x], [x, second()]]) {
                    let Some((into, gradient)) = *wanted else { continue };
                    if matches!(work, Work::CosineProduct) {
                        cosine::cosine_product(team, isa, pair, dy, into, gradient);
                    } else {
                        cosine::cosine_distance(team, isa, pair, dy, into, gradient);
                    }
                }
            }
            Work::PlaceSoftmax => {
                each(&wanted, |into, dx| place_softmax(team, isa, y, dy, into, dx));
            }
            Work::WindowAttention => {
                let [Some(logits), Some(values)] = wanted[..] else {
                    bail!("window attention learns both its logits and its values, or neither")
                };
                let maps = [x, second(), dy];
                window_attention::window_attention(team, isa, maps, logits, values);
            }
        }
        Ok(())
    }
}

/// For the gradient of each argument that has one.
fn each(
    wanted: &[Option<(Accumulate, FeatureMap<'_>)>],
    mut write: impl FnMut(Accumulate, FeatureMap<'_>),
) {
    for (into, dx) in wanted.iter().flatten() {
        write(*into, *dx);
    }
}

/// The gradient of the tensor `name`, to be written over.
fn of<'a>(learned: &'a mut BTreeMap<String, Vec<f32>>, name: &str) -> Result<&'a mut Vec<f32>> {
    learned.get_mut(name).with_context(|| format!("{name} is not learned"))
}

impl Convolution {
    /// The gradients of weights and bias.
    fn learn(
        &mut self,
        engine: &Engine,
        x: FeatureMap<'_>,
        dy: FeatureMap<'_>,
        scratch: &Buffer,
        learned: &mut BTreeMap<String, Vec<f32>>,
    ) -> Result<()> {
        let team = &*engine.team;
        let Some(own) = &mut self.own else {
            self.kernel.weight_gradient(team, x, dy, of(learned, &self.weight)?, scratch);
            if let Some(bias) = &self.bias {
                self.kernel.bias_gradient(team, dy, of(learned, bias)?);
            }
            return Ok(());
        };
        self.kernel.weight_gradient(team, x, dy, &mut own.weight_gradient, scratch);
        let set = self.into == Accumulate::Set;
        let defined = of(learned, &self.weight)?;
        if set {
            defined.fill(0.0);
        }
        let row = own.weight_gradient.len() / own.source.len();
        for (from, &to) in own.weight_gradient.chunks_exact(row).zip(&own.source) {
            let defined = &mut defined[to * row..][..row];
            defined.iter_mut().zip(from).for_each(|(sum, value)| *sum += value);
        }
        if let Some(bias) = &self.bias {
            self.kernel.bias_gradient(team, dy, &mut own.bias_gradient);
            let defined = of(learned, bias)?;
            if set {
                defined.fill(0.0);
            }
            own.bias_gradient.iter().zip(&own.source).for_each(|(value, &to)| defined[to] += value);
        }
        Ok(())
    }
}

impl Depthwise {
    /// The gradients of weights and bias.
    fn learn(
        &mut self,
        engine: &Engine,
        x: FeatureMap<'_>,
        dy: FeatureMap<'_>,
        learned: &mut BTreeMap<String, Vec<f32>>,
    ) -> Result<()> {
        let team = &*engine.team;
        let Some([weight, bias]) = &mut self.added else {
            self.kernel.weight_gradient(team, x, dy, of(learned, &self.weight)?);
            if let Some(bias) = &self.bias {
                self.kernel.bias_gradient(team, dy, of(learned, bias)?);
            }
            return Ok(());
        };
        let add = |sums: &mut [f32], more: &[f32]| {
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        };
        self.kernel.weight_gradient(team, x, dy, weight);
        add(of(learned, &self.weight)?, weight);
        if let Some(name) = &self.bias {
            self.kernel.bias_gradient(team, dy, bias);
            add(of(learned, name)?, bias);
        }
        Ok(())
    }
}

impl PatchAffine {
    /// The gradients of scales and shifts.
    fn learn(
        &self,
        engine: &Engine,
        x: FeatureMap<'_>,
        dy: FeatureMap<'_>,
        learned: &mut BTreeMap<String, Vec<f32>>,
    ) -> Result<()> {
        let [weight, bias] = ["weight", "bias"].map(|kind| format!("{}.{kind}", self.name));
        let mut dw = std::mem::take(of(learned, &weight)?);
        let mut db = std::mem::take(of(learned, &bias)?);
        self.kernel.gradients(&engine.team, x, dy, [&mut dw, &mut db]);
        *of(learned, &weight)? = dw;
        *of(learned, &bias)? = db;
        Ok(())
    }
}

impl Norm {
    fn backward(
        &mut self,
        engine: &Engine,
        [x, y, dy]: [FeatureMap<'_>; 3],
        wanted: &[Option<(Accumulate, FeatureMap<'_>)>],
        spare: Option<super::memory::Place>,
        buffers: &[Buffer],
        learned: &mut BTreeMap<String, Vec<f32>>,
    ) -> Result<()> {
        let residual = wanted.get(1).copied().flatten();
        let relu = match (self.relu, wanted.len()) {
            (false, _) => Relu::Absent,
            (true, 1) => Relu::OfNorm,
            (true, _) => Relu::Of(y),
        };
        // Where nobody wants the argument's gradient, the parameters' still has to be summed.
        let nowhere = || spare.map(|place| (Accumulate::Set, place.map(buffers)));
        let (into, dx) =
            wanted[0].or_else(nowhere).context("a place for a batch norm's gradient")?;
        let mut own = if self.learned {
            let take = |learned: &mut BTreeMap<String, Vec<f32>>, kind: &str| {
                of(learned, &format!("{}.{kind}", self.name)).map(std::mem::take)
            };
            Some((take(learned, "weight")?, take(learned, "bias")?))
        } else {
            None
        };
        let parameters = own.as_mut().map(|(gamma, beta)| (&mut gamma[..], &mut beta[..]));
        let backward = Backward { x, relu, dy, residual, into, dx };
        self.kernel.backward(&engine.team, backward, parameters);
        if let Some((gamma, beta)) = own {
            *of(learned, &format!("{}.weight", self.name))? = gamma;
            *of(learned, &format!("{}.bias", self.name))? = beta;
        }
        Ok(())
    }
}
