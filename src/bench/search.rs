//! The nearest-prototype search alone, on normal random numbers or on what a file holds.
//! Letters: Q queries, N prototypes, D dimensions.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::Rng;

use crate::nn::graph::normal;
use crate::nn::weights::Weights;
use crate::ops::nearest_prototype::{Nearest, PrototypeBank, Scan, Scratch};
use crate::ops::simd::Isa;
use crate::ops::team::Team;

/// Patches of one picture of 256 × 256, at the size of the widest usual backbones' features, against
/// a large bank.
const QUERIES: usize = 1024;
const DIMS: usize = 384;
const COUNT: usize = 16384;

/// The word of a scan where precisions are named.
pub fn word(scan: Scan) -> &'static str {
    match scan {
        Scan::F32 => "f32",
        Scan::Int8 => "int8",
    }
}

/// What is looked for, and where.
pub struct Search {
    dims: usize,
    queries: Vec<f32>,    // [Q, D]
    prototypes: Vec<f32>, // [N, D]
}

impl Search {
    /// 1024 × 384 against 16384.
    pub fn random(rng: &mut impl Rng) -> Self {
        let mut rows = |count: usize| (0..count * DIMS).map(|_| normal(rng)).collect();
        Self { dims: DIMS, queries: rows(QUERIES), prototypes: rows(COUNT) }
    }

    /// The tensors `queries` [Q, D] and `prototypes` [N, D] of a safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let weights = Weights::open(path)?;
        let (queries, width) = rows(&weights, "queries")?;
        let (prototypes, dims) = rows(&weights, "prototypes")?;
        ensure!(
            width == dims,
            "{}: queries of {width} dimensions, prototypes of {dims}",
            path.display()
        );
        Ok(Self { dims, queries, prototypes })
    }

    /// Q.
    pub fn queries(&self) -> usize {
        self.queries.len() / self.dims
    }

    /// D.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// N.
    pub fn count(&self) -> usize {
        self.prototypes.len() / self.dims
    }

    /// Of the search that leaves nothing out.
    pub fn flops(&self) -> f64 {
        2.0 * (self.queries() * self.count() * self.dims) as f64
    }

    /// The prototypes as a bank of this scan, ready to be searched.
    pub fn ready(&self, scan: Scan, isa: Isa) -> Result<Ready<'_>> {
        let bank = PrototypeBank::scanned_by(scan, self.prototypes.clone(), self.dims, isa)?;
        let found = vec![Nearest { index: 0, distance2: 0.0 }; self.queries()];
        Ok(Ready { queries: &self.queries, bank, found, scratch: Scratch::default() })
    }
}

/// A bank and the place for its answers.
pub struct Ready<'a> {
    queries: &'a [f32],
    bank: PrototypeBank,
    found: Vec<Nearest>,
    scratch: Scratch,
}

impl Ready<'_> {
    /// The nearest prototype of each query.
    pub fn run(&mut self, team: &Team) -> Result<&[Nearest]> {
        self.bank.nearest_into(team, self.queries, &mut self.found, &mut self.scratch)?;
        Ok(&self.found)
    }
}

/// Tensor `name` of a file as rows, and how wide they are.
pub(super) fn rows(weights: &Weights, name: &str) -> Result<(Vec<f32>, usize)> {
    let found = weights.tensors().find(|(other, _)| *other == name);
    let (_, tensor) = found.with_context(|| format!("the file has no tensor {name}"))?;
    let (_, dims) = tensor.dims2().with_context(|| format!("tensor {name} is no table"))?;
    Ok((tensor.flatten_all()?.to_vec1()?, dims))
}
