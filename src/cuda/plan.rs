//! A network made ready for a card: a [`Graph`] and its weights compiled for one batch size.
//!
//! As on the CPU ([`crate::nn::plan`]), batch norm is folded into the convolution before it; bias,
//! sum and ReLU happen in the convolution's output stage; feature maps share one piece of memory,
//! planned from when each is made and last read; and of one picture the parts of a concatenation
//! are written where it lies. The launches are fixed from then on: a run allocates nothing and asks the
//! host nothing, so that a card can record it.
//!
//! Maps are f32, [B, C, H, W].

mod compile;
mod memory;

use anyhow::{Result, ensure};

use super::{Gpu, Launch, Region};
use crate::nn::graph::{Dims, Graph};
use crate::nn::weights::Weights;

/// A network for one batch size: its weights and maps on the card, and the launches that compute
/// it.
pub struct Plan<M> {
    /// Weights, and what the launches look up in tables; kept as long as the launches are.
    _weights: Vec<M>,
    /// Maps and what is in between; likewise.
    _arena: M,
    arena_bytes: usize,
    weight_bytes: usize,
    inputs: Vec<(Region, Dims)>,
    outputs: Vec<(Region, Dims)>,
    launches: Vec<Launch>,
}

impl<M> Plan<M> {
    /// For batches of `images`.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or not finite; what the card says.
    pub fn new<G>(gpu: &mut G, graph: &Graph, weights: &Weights, images: usize) -> Result<Self>
    where
        G: Gpu<Memory = M>,
    {
        ensure!(images > 0, "a batch of no pictures");
        compile::compile(gpu, graph, weights, images)
    }

    /// Where the graph's `index`-th `Op::Input` is read from, [B, C, H, W].
    pub fn input(&self, index: usize) -> Region {
        self.inputs[index].0
    }

    /// Where its `index`-th output lies, [B, C, H, W].
    pub fn output(&self, index: usize) -> Region {
        self.outputs[index].0
    }

    /// Of one picture of that output.
    pub fn output_dims(&self, index: usize) -> Dims {
        self.outputs[index].1
    }

    /// What computes the network, in this order.
    pub fn launches(&self) -> &[Launch] {
        &self.launches
    }

    /// Computes the outputs from what the inputs hold.
    ///
    /// # Errors
    /// What the card says.
    pub fn run(&self, gpu: &mut impl Gpu<Memory = M>) -> Result<()> {
        self.launches.iter().try_for_each(|launch| gpu.launch(launch))
    }

    /// Bytes of maps and of what is in between.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Bytes of weights and tables.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }
}
