//! A network made ready for the line: a [`Graph`] and its weights compiled for one batch size.
//!
//! Batch norm is folded into the convolution before it; bias, residual and ReLU happen in the
//! convolution's output stage; weights are packed once for the kernel that suits each layer; feature
//! maps share a few buffers, planned from when each is made and last read; the parts of a
//! concatenation are written where it lies. After that a run allocates nothing, takes no lock and
//! makes no system call (with more than one thread: but the call that wakes the others).
//!
//! Letters: B pictures, C channels, H × W places.

mod compile;
mod memory;

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::graph::Graph;
use super::weights::Weights;
use crate::ops::affine::Affine;
use crate::ops::conv::{Conv, Stage};
use crate::ops::feature_map::{Buffer, FeatureMap, Shape};
use crate::ops::simd::Isa;
use crate::ops::stem_conv::{Planes, StemConv};
use crate::ops::team::Team;
use memory::Place;

/// A network for one batch size, its weights and its memory.
pub struct Plan {
    isa: Isa,
    team: Arc<Team>,
    images: usize,
    planes: Planes,
    pixels: Buffer,
    buffers: Vec<Buffer>,
    scratch: Buffer,
    steps: Vec<Step>,
    outputs: Vec<Place>,
}

/// One operation with where it reads and writes.
struct Step {
    name: String,
    work: Work,
    from: Vec<Place>,
    to: Place,
    flops: f64,
}

enum Work {
    Stem(StemConv),
    Conv { groups: Vec<Conv>, residual: Option<Place>, relu: bool },
    Affine { affine: Affine, relu: bool },
}

/// What a layer is and costs, for reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Of the convolution, or the operation's word.
    pub name: String,
    /// `winograd`, `direct`, …
    pub kernel: &'static str,
    /// Of what it makes.
    pub shape: Shape,
    /// Of the whole batch; multiplications that Winograd saves are counted.
    pub flops: f64,
    pub weight_bytes: usize,
}

impl Plan {
    /// Compiles `graph` for batches of `images` on the threads of `team`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape or is not finite; an operation that is not on the
    /// line.
    pub fn new(
        graph: &Graph,
        weights: &Weights,
        images: usize,
        isa: Isa,
        team: Arc<Team>,
    ) -> Result<Self> {
        ensure!(images > 0, "a batch of no pictures");
        compile::compile(graph, weights, images, isa, team)
    }

    /// Pictures of a batch.
    pub fn images(&self) -> usize {
        self.images
    }

    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub fn team(&self) -> &Arc<Team> {
        &self.team
    }

    /// How the pixels lie in [`Plan::pixels`].
    pub fn planes(&self) -> Planes {
        self.planes
    }

    /// Where the normalised pixels of the batch are to be put before a run; the border stays zero.
    pub fn pixels(&mut self) -> &mut Buffer {
        &mut self.pixels
    }

    /// Computes the network on what [`Plan::pixels`] holds.
    pub fn run(&mut self) {
        self.run_steps(|_| {});
    }

    /// As [`Plan::run`]; `after(i)` is called when step i, in the order of [`Plan::layers`], is done.
    pub fn run_steps(&mut self, mut after: impl FnMut(usize)) {
        for (i, step) in self.steps.iter().enumerate() {
            self.run_step(step);
            after(i);
        }
    }

    fn run_step(&self, step: &Step) {
        let map = |place: &Place| place.map(&self.buffers);
        let (team, scratch, to) = (&*self.team, &self.scratch, map(&step.to));
        match &step.work {
            Work::Stem(conv) => conv.run(team, &self.pixels, to, scratch),
            Work::Conv { groups, residual, relu } => {
                let residual = residual.as_ref().map(map);
                let from = map(&step.from[0]);
                let (c_in, c_out) =
                    (from.shape().channels / groups.len(), to.shape().channels / groups.len());
                for (group, conv) in groups.iter().enumerate() {
                    let residual = residual.map(|map| part(map, group, c_out));
                    let stage = Stage { residual, relu: *relu };
                    conv.run(team, part(from, group, c_in), part(to, group, c_out), stage, scratch);
                }
            }
            Work::Affine { affine, relu } => affine.run(team, map(&step.from[0]), to, *relu),
        }
    }

    /// What the network made of the last run, in the order of the graph's outputs.
    pub fn output(&self, index: usize) -> FeatureMap<'_> {
        self.outputs[index].map(&self.buffers)
    }

    pub fn outputs(&self) -> usize {
        self.outputs.len()
    }

    /// The steps of a run.
    pub fn layers(&self) -> Vec<Layer> {
        let layer = |step: &Step| Layer {
            name: step.name.clone(),
            kernel: step.work.word(),
            shape: step.to.shape,
            flops: step.flops,
            weight_bytes: step.work.bytes(),
        };
        self.steps.iter().map(layer).collect()
    }

    /// Bytes of feature maps, pixels and scratch memory.
    pub fn arena_bytes(&self) -> usize {
        let maps: usize = self.buffers.iter().map(Buffer::bytes).sum();
        maps + self.pixels.bytes() + self.scratch.bytes()
    }

    /// Bytes of packed weights.
    pub fn weight_bytes(&self) -> usize {
        self.steps.iter().map(|step| step.work.bytes()).sum()
    }

    /// Floating-point operations of the convolutions of one run, none saved.
    pub fn flops(&self) -> f64 {
        self.steps.iter().map(|step| step.flops).sum()
    }
}

/// The channels of one group.
fn part(map: FeatureMap<'_>, group: usize, channels: usize) -> FeatureMap<'_> {
    if map.shape().channels == channels { map } else { map.channels(group * channels, channels) }
}

impl Work {
    fn scratch_len(&self) -> usize {
        match self {
            Self::Stem(conv) => conv.scratch_len(),
            Self::Conv { groups, .. } => groups.iter().map(Conv::scratch_len).max().unwrap_or(0),
            Self::Affine { .. } => 0,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Stem(conv) => conv.bytes(),
            Self::Conv { groups, .. } => groups.iter().map(Conv::bytes).sum(),
            Self::Affine { .. } => 0,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Stem(_) => "stem",
            Self::Conv { groups, .. } => groups[0].word(),
            Self::Affine { .. } => "affine",
        }
    }
}
