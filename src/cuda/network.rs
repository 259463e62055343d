//! A network on a card: a picture in, maps out ([`crate::detector::network`] is what a detector
//! sees of it).

use anyhow::Result;

use super::detectors::Maps;
use super::from_pixels::FromPixels;
use super::plan::Plan;
use super::{Gpu, Region};
use crate::nn::graph::Graph;
use crate::nn::weights::Weights;
use crate::ops::pixels::Pixels;

pub struct Network<G: Gpu> {
    way: FromPixels<G>,
    /// Channels, height and width of each output, and where it lies.
    shapes: Vec<[usize; 3]>,
    outputs: Vec<Region>,
    /// Weights and maps, which the launches read and write.
    _plan: Plan<G::Memory>,
}

impl<G: Gpu> Network<G> {
    /// # Errors
    /// A tensor that is missing, of another shape or not finite; what the card says.
    pub fn new(mut gpu: G, graph: &Graph, weights: &Weights) -> Result<Self> {
        let plan = Plan::new(&mut gpu, graph, weights, 1)?;
        let input = graph.nodes()[0].dims;
        let shape = |dims: crate::nn::graph::Dims| [dims.channels, dims.height, dims.width];
        let shapes = graph.outputs().iter().map(|&output| shape(graph.dims(output))).collect();
        let outputs = (0..graph.outputs().len()).map(|i| plan.output(i)).collect();
        let to = (input.height, input.width);
        let way = FromPixels::new(gpu, to, plan.input(0), plan.launches().to_vec());
        Ok(Self { way, shapes, outputs, _plan: plan })
    }
}

impl<G> Maps for Network<G>
where
    G: Gpu<Memory: Send> + Send,
{
    fn run(&mut self, pixels: &Pixels<'_>) -> Result<()> {
        self.way.run(pixels)
    }

    fn shapes(&self) -> &[[usize; 3]] {
        &self.shapes
    }

    fn read(&mut self, index: usize) -> Result<Vec<f32>> {
        self.way.read(self.outputs[index])
    }
}
