//! The one building block of every backbone: convolution, with batch norm folded into it, with or
//! without ReLU. Letters: B pictures, C channels in, O channels out, K kernel width.

use anyhow::Result;
use candle_core::{Device, Tensor};

use super::weights::Weights;

/// Added to the variance before its root is taken; torchvision's value for every network here.
pub const BN_EPS: f64 = 1e-5;

/// What a convolution is, apart from its numbers: enough to name its parameters, to load it for the
/// line and to make it for training. Square kernel, padding K/2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Path of the convolution, `layer1.0.conv1`: its weight is `<name>.weight` [O, C, K, K].
    pub name: String,
    /// Path of the batch norm behind it; without one the convolution has a `<name>.bias`.
    pub norm: Option<String>,
    pub c_in: usize,
    pub c_out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub relu: bool,
}

impl ConvSpec {
    /// Learned tensors with their shapes, in the order of a torchvision state dict: the weight, then
    /// bias, or gamma and beta. Running statistics are not learned: see [`Self::statistics`].
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let weight = vec![self.c_out, self.c_in, self.kernel, self.kernel];
        let mut all = vec![(format!("{}.weight", self.name), weight)];
        match &self.norm {
            None => all.push((format!("{}.bias", self.name), vec![self.c_out])),
            Some(norm) => {
                all.push((format!("{norm}.weight"), vec![self.c_out]));
                all.push((format!("{norm}.bias"), vec![self.c_out]));
            }
        }
        all
    }

    /// Running mean and variance of the batch norm, where there is one.
    pub fn statistics(&self) -> Vec<(String, Vec<usize>)> {
        let Some(norm) = &self.norm else { return Vec::new() };
        ["running_mean", "running_var"]
            .map(|kind| (format!("{norm}.{kind}"), vec![self.c_out]))
            .into()
    }
}

/// A convolution ready for inference: batch norm folded in.
#[derive(Clone, Debug)]
pub struct Conv {
    weight: Tensor, // [O, C, K, K]
    bias: Tensor,   // [1, O, 1, 1]
    padding: usize,
    stride: usize,
    relu: bool,
}

impl Conv {
    /// Reads the tensors that `spec` names. With batch norm y = γ(Wx − μ)/√(σ² + ε) + β the folded
    /// weight is W·γ/√(σ² + ε) and the bias β − μ·γ/√(σ² + ε).
    pub fn load(spec: &ConvSpec, weights: &Weights, device: &Device) -> Result<Self> {
        let mut named = Vec::new();
        for (name, shape) in spec.parameters().into_iter().chain(spec.statistics()) {
            named.push(weights.get(&name, &shape)?.to_device(device)?);
        }
        let (weight, bias) = match named.as_slice() {
            [weight, bias] => (weight.clone(), bias.clone()),
            [weight, gamma, beta, mean, variance] => {
                let scale = (gamma / (variance + BN_EPS)?.sqrt()?)?;
                let weight = weight.broadcast_mul(&scale.reshape((spec.c_out, 1, 1, 1))?)?;
                (weight, (beta - (mean * scale)?)?)
            }
            _ => unreachable!("a convolution has two tensors, or five with batch norm"),
        };
        Ok(Self {
            weight,
            bias: bias.reshape((1, spec.c_out, 1, 1))?,
            padding: spec.kernel / 2,
            stride: spec.stride,
            relu: spec.relu,
        })
    }

    /// `xs` [B, C, H, W] → [B, O, ⌈H/stride⌉, ⌈W/stride⌉].
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let ys = xs.conv2d(&self.weight, self.padding, self.stride, 1, 1)?;
        let ys = ys.broadcast_add(&self.bias)?;
        Ok(if self.relu { ys.relu()? } else { ys })
    }
}
