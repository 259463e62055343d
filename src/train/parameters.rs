//! Named numbers that training changes, and what they begin as.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::nn::graph::Graph;
use crate::nn::weights::Weights;

/// Tensors by the names of their state dict, f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    tensors: BTreeMap<String, Parameter>,
}

#[derive(Clone, Debug, PartialEq)]
struct Parameter {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// What a convolution's weights and a norm's scale begin as. Every other bias and shift begins at
/// zero, running statistics at mean 0 and variance 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Normal with σ = √(2 / (O·K·K)) (He et al. 2015, fan out), scales 1: torchvision's ResNet.
    FanOut,
    /// The same, and the last scale of each residual block 0, so that a block begins as its shortcut:
    /// timm's ResNet.
    FanOutLastZero,
    /// Uniform within ±1/√(C·K·K), biases too, scales 1: PyTorch's layers as they come.
    FanIn,
}

impl Parameters {
    /// Of all tensors of `graph`, drawn from `seed`: each tensor from a stream of its own. `start` says
    /// of a tensor's name how its layer begins; where it says `None` the tensor is left out.
    pub fn begin(graph: &Graph, seed: u64, start: impl Fn(&str) -> Option<Start>) -> Parameters {
        let mut parameters = Parameters::default();
        let all = graph.tensors();
        let convolutions: BTreeMap<&str, &[usize]> = all
            .iter()
            .filter(|(_, shape)| shape.len() == 4)
            .filter_map(|(name, shape)| Some((name.strip_suffix(".weight")?, shape.as_slice())))
            .collect();
        for (stream, (name, shape)) in all.iter().enumerate() {
            let Some(start) = start(name) else { continue };
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(stream as u64);
            let count = shape.iter().product();
            let (layer, kind) = name.rsplit_once('.').unwrap_or(("", name));
            let fan_in = |shape: &[usize]| shape[1..].iter().product::<usize>();
            let values = match (kind, convolutions.get(layer), start) {
                ("weight", Some(shape), Start::FanOut | Start::FanOutLastZero) => {
                    let fan_out = shape[0] * shape[2] * shape[3];
                    normal(&mut rng, (2.0 / fan_out as f64).sqrt(), count)
                }
                ("weight" | "bias", Some(shape), Start::FanIn) => {
                    uniform(&mut rng, 1.0 / (fan_in(shape) as f64).sqrt(), count)
                }
                ("weight", None, Start::FanOutLastZero) if is_last_norm(layer) => vec![0.0; count],
                ("weight" | "running_var", _, _) => vec![1.0; count],
                _ => vec![0.0; count],
            };
            parameters.insert(name, shape.clone(), values);
        }
        parameters
    }

    pub fn insert(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name} {shape:?}");
        self.tensors.insert(name.to_owned(), Parameter { shape, values });
    }

    /// Takes over the tensors of `weights` that `graph` has under `at`, as they are called there
    /// without it: a pretrained network as part of a larger one.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or not finite.
    pub fn take(&mut self, graph: &Graph, at: &str, weights: &Weights) -> Result<()> {
        for (name, shape) in graph.tensors() {
            if let Some(theirs) = name.strip_prefix(at) {
                let values = weights.get(theirs, &shape)?.flatten_all()?.to_vec1()?;
                self.insert(&name, shape, values);
            }
        }
        Ok(())
    }

    /// # Errors
    /// There is none of this name.
    pub fn get(&self, name: &str) -> Result<&[f32]> {
        let tensor = self.tensors.get(name);
        Ok(&tensor.with_context(|| format!("there is no tensor {name}"))?.values)
    }

    /// # Errors
    /// As [`Parameters::get`].
    pub fn get_mut(&mut self, name: &str) -> Result<&mut [f32]> {
        Ok(&mut self.tensor(name)?.values)
    }

    /// Two of them at once, as a batch norm's running statistics are changed.
    ///
    /// # Errors
    /// As [`Parameters::get`].
    pub fn get_two_mut(
        &mut self,
        [a, b]: [&str; 2],
        change: impl FnOnce([&mut [f32]; 2]),
    ) -> Result<()> {
        let mut first = std::mem::take(&mut self.tensor(a)?.values);
        let second = self.tensor(b);
        let changed = second.map(|second| change([&mut first, &mut second.values]));
        self.tensor(a)?.values = first;
        changed
    }

    fn tensor(&mut self, name: &str) -> Result<&mut Parameter> {
        self.tensors.get_mut(name).with_context(|| format!("there is no tensor {name}"))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Weights that a plan can be made of.
    pub fn weights(&self, origin: &str) -> Result<Weights> {
        Weights::from_tensors(origin, self.tensors()?)
    }

    /// As tensors, for a file.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let tensor = |(name, Parameter { shape, values }): (&String, &Parameter)| {
            let tensor = Tensor::from_slice(values, shape.as_slice(), &Device::Cpu)?;
            Ok((name.clone(), tensor))
        };
        self.tensors.iter().map(tensor).collect()
    }

    /// Puts tensors of a file in the place of these, which must be just the same ones.
    ///
    /// # Errors
    /// A name or shape that differs; the message says which.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for name in tensors.keys() {
            ensure!(self.tensors.contains_key(name), "tensor {name} belongs to another network");
        }
        for (name, Parameter { shape, values }) in &mut self.tensors {
            let tensor = tensors.get(name).with_context(|| format!("tensor {name} is missing"))?;
            ensure!(
                tensor.dims() == shape,
                "tensor {name} has shape {:?}, not {shape:?}",
                tensor.dims()
            );
            *values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        }
        Ok(())
    }
}

/// The last batch norm of a residual block: torchvision's `bn2` of a basic block, `bn3` of a bottleneck.
fn is_last_norm(layer: &str) -> bool {
    layer.contains("layer") && (layer.ends_with(".bn2") || layer.ends_with(".bn3"))
}

fn uniform(rng: &mut ChaCha8Rng, most: f64, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-most..most) as f32).collect()
}

/// Normal numbers, two of each pair of draws (Box and Muller 1958).
fn normal(rng: &mut ChaCha8Rng, deviation: f64, count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // 1 − u lies in (0, 1], whose logarithm is finite.
        let radius = deviation * (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        values.push((radius * cosine) as f32);
        values.push((radius * sine) as f32);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::resnet::{self, Depth};

    fn spread(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt())
    }

    #[test]
    fn each_rule_draws_its_spread() {
        let graph = resnet::graph(Depth::R18, 3, (64, 64)).unwrap();
        let [out, zero, fan_in] = [Start::FanOut, Start::FanOutLastZero, Start::FanIn]
            .map(|start| Parameters::begin(&graph, 7, |_| Some(start)));
        // 128 channels out of 3×3 places: σ = √(2/1152).
        let name = "layer2.0.conv2.weight";
        let (mean, std) = spread(out.get(name).unwrap());
        assert!(mean.abs() < 1e-3 && (std - (2.0_f64 / 1152.0).sqrt()).abs() < 5e-4, "{std}");
        assert_eq!(out.get("layer2.0.bn2.weight").unwrap(), [1.0; 128]);
        assert_eq!(zero.get(name).unwrap(), out.get(name).unwrap());
        assert_eq!(zero.get("layer2.0.bn2.weight").unwrap(), [0.0; 128]);
        assert_eq!(zero.get("layer2.0.downsample.1.weight").unwrap(), [1.0; 128]);
        // Uniform within ±1/√1152: σ is that by √3.
        let most = 1.0 / 1152.0_f64.sqrt();
        let (_, std) = spread(fan_in.get(name).unwrap());
        assert!((std - most / 3.0_f64.sqrt()).abs() < 2e-4, "{std}");
        assert!(fan_in.get(name).unwrap().iter().all(|v| f64::from(v.abs()) <= most));
        for start in [&out, &zero, &fan_in] {
            assert_eq!(start.get("bn1.running_var").unwrap(), [1.0; 64]);
            assert_eq!(start.get("bn1.bias").unwrap(), [0.0; 64]);
        }
    }

    #[test]
    fn a_seed_says_everything() {
        let graph = resnet::graph(Depth::R18, 1, (64, 64)).unwrap();
        let begin = |seed| Parameters::begin(&graph, seed, |_| Some(Start::FanOut));
        assert_eq!(begin(1), begin(1));
        assert_ne!(begin(1), begin(2));
    }

    #[test]
    fn a_file_of_another_network_is_named() {
        let graph = resnet::graph(Depth::R18, 1, (64, 64)).unwrap();
        let mut parameters = Parameters::begin(&graph, 1, |_| Some(Start::FanOut));
        let tensors = parameters.tensors().unwrap();
        let before = parameters.clone();
        parameters.restore(&tensors).unwrap();
        assert_eq!(parameters, before);
        let mut other = tensors.clone();
        other.remove("bn1.bias");
        let error = parameters.restore(&other).unwrap_err().to_string();
        assert!(error.contains("bn1.bias is missing"), "{error}");
        let mut other = tensors;
        other.insert("fc.bias".to_owned(), other["bn1.bias"].clone());
        let error = parameters.restore(&other).unwrap_err().to_string();
        assert!(error.contains("fc.bias belongs to another network"), "{error}");
    }
}
