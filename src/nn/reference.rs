//! Runs a [`Graph`] on candle tensors: slow, plain and differentiable. What training follows, and
//! what the fast path is held against. Every operation is made of candle operations that have a
//! gradient; where an operation chooses (a prototype, the levels a place counts for), the choice
//! has none.
//!
//! Letters: B pictures, C channels, O channels out, H × W places, K = H·W, N levels, S × S regions,
//! R = B·S².

mod levels;

use anyhow::{Result, ensure};
use candle_core::{D, DType, Tensor};
use candle_nn::ops;

use super::graph::{Conv, Distance, Graph, Node, Op, Resample};
use super::weights::Weights;
use crate::ops::interpolate::bilinear_planes;

/// Added to the variance before its root is taken; PyTorch's value.
pub const BN_EPS: f64 = 1e-5;

/// Added to norms before something is divided by them.
const LEAST_NORM: f64 = 1e-12;

/// Where a run gets its numbers: [`Weights`] for inference, variables in training.
pub trait Parameters {
    /// The tensor `name` of this shape.
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// Mean and variance `[C]` that the batch norm `name` normalises `xs` [B, C, H, W] with: the
    /// running ones. Training overrides this where it wants those of the batch, see
    /// [`batch_statistics`], and updates the running ones itself.
    fn statistics(&self, name: &str, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        let c = xs.dim(1)?;
        let mean = self.get(&format!("{name}.running_mean"), &[c])?;
        Ok((mean, self.get(&format!("{name}.running_var"), &[c])?))
    }
}

/// Shapes are checked; numbers were when the weights were loaded ([`Weights::get`]).
impl Parameters for Weights {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.find(name, shape)?.clone())
    }
}

/// Mean and biased variance of each channel over a batch: `xs` [B, C, H, W] → `[C]`, `[C]`.
pub fn batch_statistics(xs: &Tensor) -> Result<(Tensor, Tensor)> {
    let all = xs.transpose(0, 1)?.flatten_from(1)?; // [C, B·H·W]
    let mean = all.mean_keepdim(1)?; // [C, 1]
    let variance = all.broadcast_sub(&mean)?.sqr()?.mean(1)?;
    Ok((mean.squeeze(1)?, variance))
}

/// The graph's outputs, in order, for pictures `xs` [B, 3, H, W] of its size.
///
/// # Errors
/// A picture of another size, a tensor that `parameters` does not have.
pub fn run(graph: &Graph, parameters: &impl Parameters, xs: &Tensor) -> Result<Vec<Tensor>> {
    run_on(graph, parameters, std::slice::from_ref(xs))
}

/// As [`run`], for a graph of several inputs, in the order of their making.
pub fn run_on(
    graph: &Graph,
    parameters: &impl Parameters,
    inputs: &[Tensor],
) -> Result<Vec<Tensor>> {
    let nodes = graph.nodes();
    // the last node that needs each value; what no node needs any more is dropped
    let mut last: Vec<usize> = (0..nodes.len()).collect();
    for (i, node) in nodes.iter().enumerate() {
        node.inputs.iter().for_each(|value| last[value.index()] = i);
    }
    graph.outputs().iter().for_each(|value| last[value.index()] = nodes.len());

    let mut inputs = inputs.iter();
    let mut values: Vec<Option<Tensor>> = vec![None; nodes.len()];
    for (i, node) in nodes.iter().enumerate() {
        let value = if node.op == Op::Input {
            let Some(xs) = inputs.next() else { anyhow::bail!("the network has more inputs") };
            xs.clone()
        } else {
            let arguments: Vec<&Tensor> = node
                .inputs
                .iter()
                .map(|value| values[value.index()].as_ref().expect("made before and still needed"))
                .collect();
            step(node, &arguments, parameters)?
        };
        let (_, c, h, w) = value.dims4()?;
        let want = node.dims;
        ensure!(
            (c, h, w) == (want.channels, want.height, want.width),
            "{:?} gives [{c}, {h}, {w}], the network was made for [{}, {}, {}]",
            node.op,
            want.channels,
            want.height,
            want.width
        );
        values[i] = Some(value);
        for value in &node.inputs {
            if last[value.index()] == i {
                values[value.index()] = None;
            }
        }
    }
    ensure!(inputs.next().is_none(), "the network has fewer inputs");
    let outputs = graph.outputs().iter();
    Ok(outputs.map(|value| values[value.index()].clone().expect("outputs are kept")).collect())
}

fn step(node: &Node, xs: &[&Tensor], parameters: &impl Parameters) -> Result<Tensor> {
    let to = (node.dims.height, node.dims.width);
    Ok(match (&node.op, xs) {
        (Op::Conv(conv), [x]) => convolve(conv, x, parameters)?,
        (Op::BatchNorm { name }, [x]) => batch_norm(name, x, parameters)?,
        // candle's own relu makes zero of NaN
        (Op::Relu, [x]) => x.maximum(0f32)?,
        (Op::LeakyRelu { slope }, [x]) => ops::leaky_relu(x, f64::from(*slope))?,
        (Op::Sigmoid, [x]) => ops::sigmoid(x)?,
        (Op::Add, [a, b]) => (*a + *b)?,
        (Op::Mul, [a, b]) => (*a * *b)?,
        (Op::MaxPool, [x]) => halve_by_maximum(&halve_by_maximum(x, 2)?, 3)?,
        (Op::AveragePool { kernel }, [x]) => x.avg_pool2d(*kernel)?,
        (Op::RegionMean { regions }, [x]) => split(x, *regions)?.mean(5)?.mean(3)?,
        (Op::Upsample(rule), [x]) => resample(x, to, *rule)?,
        (Op::Concat, parts) => Tensor::cat(parts, 1)?,
        (Op::CosineProduct, [a, b]) => (unit(a)? * unit(b)?)?.neg()?,
        (Op::CosineDistance(Distance::OneMinusCosine), [a, b]) => {
            (1.0 - (unit(a)? * unit(b)?)?.sum_keepdim(1)?)?
        }
        (Op::CosineDistance(Distance::HalfSquared), [a, b]) => {
            ((unit(a)? - unit(b)?)?.sqr()?.sum_keepdim(1)? * 0.5)?
        }
        (Op::PrototypeResidual { name, prototypes }, [x]) => {
            let (_, c, h, w) = x.dims4()?;
            let all = parameters.get(name, &[*prototypes, c, h, w])?.to_device(x.device())?;
            prototype_residual(x, &all)?
        }
        (Op::PatchAttention { patch }, [q, k, v]) => patch_attention(q, k, v, *patch)?,
        (Op::WindowAttention, [logits, values]) => window_attention(logits, values)?,
        (Op::PlaceSoftmax, [x]) => {
            ops::softmax(&x.contiguous()?.flatten_from(2)?, D::Minus1)?.reshape(x.shape())?
        }
        (Op::CosineToMean, [x, means]) => cosine_to_mean(x, means)?,
        (Op::LevelCounts { levels, rule }, [m]) => levels::counts(m, *levels, *rule)?,
        (Op::CoOccurrence { levels, regions, rule, neighbour }, [m]) => {
            levels::co_occurrence(m, *levels, *regions, (*rule, *neighbour))?
        }
        (Op::RepeatRegions { times }, [x]) => {
            let (b, c, h, w) = x.dims4()?;
            x.reshape((b, c, h * w, 1))?.repeat((1, 1, 1, *times))?
        }
        (Op::MeanRegions, [x]) => {
            let (b, c, _, _) = x.dims4()?;
            x.mean(3)?.reshape((b, c, to.0, to.1))?
        }
        (Op::LevelAttention, [k, q, v]) => {
            let [k, q, v] = [k.squeeze(2)?, q.squeeze(2)?, v.squeeze(2)?]; // [B, C, N]
            let scores = k.t()?.contiguous()?.matmul(&q)?; // [B, N, N]
            let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&v.t()?.contiguous()?)?;
            mixed.t()?.contiguous()?.unsqueeze(2)?
        }
        (Op::SpreadLevels { rule }, [m, d]) => levels::spread(m, d, *rule)?,
        (op, xs) => anyhow::bail!("{op:?} does not take {} arguments", xs.len()),
    })
}

fn convolve(conv: &Conv, xs: &Tensor, parameters: &impl Parameters) -> Result<Tensor> {
    let Conv { name, c_in, c_out, kernel, stride, padding, dilation, groups, bias } = conv;
    let shape = [*c_out, c_in / groups, *kernel, *kernel];
    let weight = parameters.get(&format!("{name}.weight"), &shape)?.to_device(xs.device())?;
    let ys = xs.conv2d(&weight, *padding, *stride, *dilation, *groups)?;
    if !bias {
        return Ok(ys);
    }
    let bias = parameters.get(&format!("{name}.bias"), &[*c_out])?.to_device(xs.device())?;
    Ok(ys.broadcast_add(&bias.reshape((1, *c_out, 1, 1))?)?)
}

/// γ(x − μ)/√(σ² + ε) + β, as scale · x + shift.
fn batch_norm(name: &str, xs: &Tensor, parameters: &impl Parameters) -> Result<Tensor> {
    let c = xs.dim(1)?;
    let [gamma, beta] = ["weight", "bias"].map(|kind| {
        anyhow::Ok(parameters.get(&format!("{name}.{kind}"), &[c])?.to_device(xs.device())?)
    });
    let (mean, variance) = parameters.statistics(name, xs)?;
    let (mean, variance) = (mean.to_device(xs.device())?, variance.to_device(xs.device())?);
    let scale = (gamma? / (variance + BN_EPS)?.sqrt()?)?;
    let shift = (beta? - (mean * &scale)?)?;
    let ys = xs.broadcast_mul(&scale.reshape((1, c, 1, 1))?)?;
    Ok(ys.broadcast_add(&shift.reshape((1, c, 1, 1))?)?)
}

/// Maximum of places 2i − 1, 2i, 2i + 1 of dimension `dim`, as far as they exist. A place that does
/// not is given the value of its neighbour, which is among the three.
fn halve_by_maximum(xs: &Tensor, dim: usize) -> Result<Tensor> {
    let xs = xs.pad_with_same(dim, 0, xs.dim(dim)? % 2)?;
    let half = xs.dim(dim)? / 2;
    let mut shape = xs.dims().to_vec();
    shape.splice(dim..=dim, [half, 2]);
    let pairs = xs.contiguous()?.reshape(shape)?;
    let even = pairs.narrow(dim + 1, 0, 1)?.squeeze(dim + 1)?;
    let odd = pairs.narrow(dim + 1, 1, 1)?.squeeze(dim + 1)?;
    let before = Tensor::cat(&[odd.narrow(dim, 0, 1)?, odd.narrow(dim, 0, half - 1)?], dim)?;
    larger(&larger(&even, &odd)?, &before)
}

/// The larger of each two, NaN where one of them is: candle's `maximum` drops NaN on its right.
fn larger(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let take_a = (a.ge(b)? + a.ne(a)?)?;
    Ok(take_a.where_cond(a, b)?)
}

/// `xs` [B, C, H, W] → [B, C, S, H/S, S, W/S].
fn split(xs: &Tensor, regions: usize) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    Ok(xs.contiguous()?.reshape(vec![b, c, regions, h / regions, regions, w / regions])?)
}

fn resample(xs: &Tensor, (height, width): (usize, usize), rule: Resample) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    match rule {
        Resample::Nearest => {
            let from = |from: usize, to: usize| {
                let index = (0..to).map(|i| (i * from / to) as u32).collect::<Vec<_>>();
                Tensor::from_vec(index, to, xs.device())
            };
            Ok(xs.index_select(&from(h, height)?, 2)?.index_select(&from(w, width)?, 3)?)
        }
        Resample::Bilinear(align) => {
            let stretch = |xs: &Tensor, from: usize, to: usize| -> Result<Tensor> {
                // [from, to]: row i is what an impulse at place i becomes
                let mut impulses = vec![0.0; from * from];
                impulses.iter_mut().step_by(from + 1).for_each(|x| *x = 1.0);
                let rows = bilinear_planes(&impulses, (1, from), (1, to), align);
                let weights = Tensor::from_vec(rows, (from, to), xs.device())?;
                Ok(xs.contiguous()?.flatten_to(2)?.matmul(&weights)?)
            };
            let wide = stretch(xs, w, width)?.reshape((b, c, h, width))?.transpose(2, 3)?;
            let tall = stretch(&wide, h, height)?.reshape((b, c, width, height))?;
            Ok(tall.transpose(2, 3)?.contiguous()?)
        }
    }
}

/// x / (√Σ_c x² + 10⁻¹²), zero without a gradient where x is zero (`../shared/spec/destseg.md`,
/// D-6).
fn unit(xs: &Tensor) -> Result<Tensor> {
    let squares = xs.sqr()?.sum_keepdim(1)?;
    let any = squares.gt(0f32)?.to_dtype(xs.dtype())?;
    // the root of zero has no gradient, and `any` drops what this one would give
    let norm = squares.maximum((LEAST_NORM * LEAST_NORM) as f32)?.sqrt()?;
    Ok(xs.broadcast_mul(&(any / (norm + LEAST_NORM)?)?)?)
}

/// `xs` [B, C, H, W], `prototypes` [P, C, H, W].
fn prototype_residual(xs: &Tensor, prototypes: &Tensor) -> Result<Tensor> {
    let mut nearest = Vec::with_capacity(xs.dim(0)?);
    for i in 0..xs.dim(0)? {
        let difference = prototypes.broadcast_sub(&xs.detach().narrow(0, i, 1)?)?;
        let distances = difference.sqr()?.flatten_from(1)?.sum(1)?.to_vec1::<f32>()?; // [P]
        let first_least = (0..distances.len())
            .min_by(|&a, &b| distances[a].total_cmp(&distances[b]))
            .map_or(0, |index| index as u32);
        nearest.push(first_least);
    }
    let count = nearest.len();
    let nearest = Tensor::from_vec(nearest, count, xs.device())?;
    Ok((xs - prototypes.index_select(&nearest, 0)?)?.abs()?)
}

fn patch_attention(q: &Tensor, k: &Tensor, v: &Tensor, patch: usize) -> Result<Tensor> {
    let (b, c, h, w) = v.dims4()?;
    let (rows, columns) = (h / patch, w / patch);
    let tokens = |xs: &Tensor| -> Result<Tensor> {
        let xs = xs.contiguous()?.reshape(vec![b, c, rows, patch, columns, patch])?;
        let xs = xs.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?;
        Ok(xs.reshape((b, rows * columns, c * patch * patch))?)
    };
    let scores = tokens(q)?.matmul(&tokens(k)?.t()?.contiguous()?)?;
    let scores = (scores / (c * patch * patch) as f64)?;
    let mixed = ops::softmax(&scores, D::Minus1)?.matmul(&tokens(v)?)?;
    let mixed = mixed.reshape(vec![b, rows, columns, c, patch, patch])?;
    Ok(mixed.permute(vec![0, 3, 1, 4, 2, 5])?.contiguous()?.reshape((b, c, h, w))?)
}

fn window_attention(logits: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = values.dims4()?;
    let groups = logits.dim(1)? / 9;
    let weights = ops::softmax(&logits.contiguous()?.reshape((b, groups, 9, h, w))?, 2)?;
    let padded = values.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
    let mut sum = Tensor::zeros((b, c / groups, groups, h, w), DType::F32, values.device())?;
    for place in 0..9 {
        let shifted = padded.narrow(2, place / 3, h)?.narrow(3, place % 3, w)?;
        let shifted = shifted.contiguous()?.reshape((b, c / groups, groups, h, w))?;
        let weight = weights.narrow(2, place, 1)?.transpose(1, 2)?; // [B, 1, G, H, W]
        sum = (sum + shifted.broadcast_mul(&weight)?)?;
    }
    Ok(sum.reshape((b, c, h, w))?)
}

/// `xs` [B, C, H, W], `means` [B, C, S, S] → [B, 1, H, W]. [`fn@unit`] and a norm of at least 10⁻¹²
/// are one in f32, but for norms below 10⁻⁵.
fn cosine_to_mean(xs: &Tensor, means: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    let regions = means.dim(2)?;
    let xs = split(&unit(xs)?, regions)?;
    let means = unit(means)?.reshape(vec![b, c, regions, 1, regions, 1])?;
    Ok(xs.broadcast_mul(&means)?.sum(1)?.reshape((b, 1, h, w))?)
}

#[cfg(test)]
mod tests;
