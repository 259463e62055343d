//! Batch norm folded into the convolution before it.

use anyhow::{Result, ensure};

use super::graph::Conv;
use super::weights::Weights;

/// Added to the variance before its root is taken; PyTorch's value for every network here.
pub const BN_EPS: f64 = 1e-5;

/// The numbers of a convolution, batch norm folded in.
pub struct Folded {
    /// [O, C/G, K, K]
    pub weights: Vec<f32>,
    /// `[O]`
    pub bias: Vec<f32>,
}

/// The numbers of the tensor `name`.
///
/// # Errors
/// One that is missing, of another shape or not finite.
pub fn tensor(weights: &Weights, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    Ok(weights.get(name, shape)?.flatten_all()?.to_vec1::<f32>()?)
}

/// Scale and shift of the batch norm `name`: γ/√(σ² + ε) and β − μ·γ/√(σ² + ε).
///
/// # Errors
/// As [`tensor`]; a variance below zero.
pub fn norm(weights: &Weights, name: &str, channels: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut read = [const { Vec::new() }; 4];
    for (values, kind) in read.iter_mut().zip(["weight", "bias", "running_mean", "running_var"]) {
        *values = tensor(weights, &format!("{name}.{kind}"), &[channels])?;
    }
    let [gamma, beta, mean, variance] = read;
    let scale: Vec<f64> = gamma
        .iter()
        .zip(&variance)
        .map(|(&gamma, &variance)| f64::from(gamma) / (f64::from(variance) + BN_EPS).sqrt())
        .collect();
    let shift = beta.iter().zip(&mean).zip(&scale);
    let shift = shift.map(|((&beta, &mean), scale)| f64::from(beta) - f64::from(mean) * scale);
    ensure!(
        scale.iter().all(|scale| scale.is_finite()),
        "tensor {name}.running_var has a variance below zero"
    );
    Ok((scale.clone(), shift.collect()))
}

/// `conv` with the batch norm of this name behind it.
///
/// # Errors
/// As [`norm`].
pub fn folded(weights: &Weights, conv: &Conv, norm_name: Option<&str>) -> Result<Folded> {
    let shape = [conv.c_out, conv.c_in / conv.groups, conv.kernel, conv.kernel];
    let mut numbers = tensor(weights, &format!("{}.weight", conv.name), &shape)?;
    let mut bias = vec![0.0; conv.c_out];
    if conv.bias {
        bias = tensor(weights, &format!("{}.bias", conv.name), &[conv.c_out])?;
    }
    if let Some(name) = norm_name {
        let (scale, shift) = norm(weights, name, conv.c_out)?;
        let row = numbers.len() / conv.c_out;
        for (o, (scale, shift)) in scale.into_iter().zip(shift).enumerate() {
            bias[o] = (f64::from(bias[o]) * scale + shift) as f32;
            for number in &mut numbers[o * row..(o + 1) * row] {
                *number = (f64::from(*number) * scale) as f32;
            }
        }
    }
    Ok(Folded { weights: numbers, bias })
}
