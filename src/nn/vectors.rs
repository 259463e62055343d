//! Test vectors of `../shared/spec/vectors`, for tests.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{Device, Tensor};
use serde_json::Value;

use super::reference::{Parameters, batch_statistics};
use super::weights::Weights;
use crate::shared::shared;

/// One file.
pub struct Vector {
    name: &'static str,
    file: Value,
}

impl Vector {
    /// `None` where the shared folder is not there.
    pub fn open(name: &'static str) -> Option<Self> {
        let path = shared(&format!("spec/vectors/{name}.json"))?;
        Some(Self { name, file: serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() })
    }

    /// Its parameters under other names; those of one-dimensional convolutions get a fourth
    /// dimension.
    pub fn weights(&self, rename: impl Fn(&str) -> String) -> Weights {
        let named = |(name, value): (&String, &Value)| {
            let mut xs = tensor(value);
            if xs.rank() == 3 {
                xs = xs.unsqueeze(3).unwrap();
            }
            (rename(name), xs)
        };
        let tensors: BTreeMap<_, _> =
            self.file["params"].as_object().unwrap().iter().map(named).collect();
        Weights::from_tensors(self.name, tensors).unwrap()
    }

    pub fn input(&self, name: &str) -> Tensor {
        tensor(&self.file["inputs"][name])
    }

    pub fn expected(&self, name: &str) -> Tensor {
        tensor(&self.file["expected"][name])
    }

    /// Within 2·10⁻⁵ + 10⁻⁴ · |want|, the vectors' own tolerance; shapes may differ in dimensions
    /// of one.
    pub fn assert_close(&self, name: &str, got: &Tensor) {
        let want = self.expected(name);
        let sides = |xs: &Tensor| -> Vec<usize> {
            xs.dims().iter().copied().filter(|&side| side != 1).collect()
        };
        assert_eq!(sides(got), sides(&want), "{} {name}", self.name);
        for (got, want) in flat(got).iter().zip(flat(&want)) {
            let close = (got - want).abs() <= 2e-5 + 1e-4 * want.abs();
            assert!(close, "{} {name}: {got} {want}", self.name);
        }
    }
}

/// Weights whose batch norms use the batch's statistics.
pub struct Batch<P>(pub P);

impl<P: Parameters> Parameters for Batch<P> {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.0.get(name, shape)
    }

    fn statistics(&self, _: &str, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        batch_statistics(xs)
    }
}

pub fn flat(xs: &Tensor) -> Vec<f32> {
    xs.flatten_all().unwrap().to_vec1().unwrap()
}

fn tensor(value: &Value) -> Tensor {
    let shape: Vec<usize> = serde_json::from_value(value["shape"].clone()).unwrap();
    let values: Vec<f32> = serde_json::from_value(value["data"].clone()).unwrap();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}
