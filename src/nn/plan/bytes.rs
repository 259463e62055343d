//! Which values of a network are kept as bytes, which as floats, and the steps between.
//!
//! A convolution in int8 reads bytes; everything else reads floats. So a value is made in the forms
//! that someone reads: bytes alone from one convolution of bytes to the next, both at the network's
//! outputs, and floats with a step behind that quantises them where the maker knows floats only.
//!
//! A byte does not show NaN. Sums of bytes are always finite; so NaN can come in through floats only:
//! where they are quantised, which says so, and where they are added to sums of bytes. There, unless
//! it is known that they are finite, the sum stays in floats and is quantised after.

use anyhow::{Result, bail, ensure};

use super::compile::Chain;
use super::memory::{Life, Place, Within, parts};
use super::quantization::{Quantization, candidates};
use crate::nn::graph::{Graph, Op, Value};
use crate::ops::byte_map;
use crate::ops::byte_simd::ByteIsa;
use crate::ops::feature_map::{Buffer, ByteBuffer};
use crate::ops::quantized_conv::{Output, QuantizedConv, Residual};
use crate::ops::simd::LANES;
use crate::ops::team::Team;

/// A step that writes bytes or reads them.
pub(super) enum Bytes {
    Quantize { from: Place, scale: f32, to: Place<u8> },
    Conv(Box<ByteConv>),
}

pub(super) struct ByteConv {
    pub conv: QuantizedConv,
    pub from: Place<u8>,
    pub residual: Option<Addend>,
    /// Where the result goes: at least one of the two.
    pub bytes: Option<Place<u8>>,
    pub floats: Option<Place>,
}

/// What is added to sums of bytes.
pub(super) enum Addend {
    Bytes(Place<u8>, f32),
    Floats(Place),
}

impl Bytes {
    /// False if a float was not finite.
    pub fn run(
        &self,
        team: &Team,
        isa: ByteIsa,
        (floats, bytes): (&[Buffer], &[ByteBuffer]),
    ) -> bool {
        match self {
            Self::Quantize { from, scale, to } => {
                byte_map::quantize(team, isa, from.map(floats), *scale, to.map(bytes))
            }
            Self::Conv(step) => {
                let ByteConv { conv, from, residual, bytes: to_bytes, floats: to_floats } = &**step;
                let residual = residual.as_ref().map(|addend| match addend {
                    Addend::Bytes(place, scale) => {
                        Residual::Bytes { map: place.map(bytes), scale: *scale }
                    }
                    Addend::Floats(place) => Residual::Floats(place.map(floats)),
                });
                let output = match (to_bytes, to_floats) {
                    (Some(to_bytes), Some(to_floats)) => {
                        Output::Both(to_bytes.map(bytes), to_floats.map(floats))
                    }
                    (Some(to_bytes), None) => Output::Bytes(to_bytes.map(bytes)),
                    (None, Some(to_floats)) => Output::Floats(to_floats.map(floats)),
                    (None, None) => unreachable!("a convolution is made for someone"),
                };
                conv.run(team, from.map(bytes), residual, output);
                true
            }
        }
    }

    /// Bytes of packed weights.
    pub fn weight_bytes(&self) -> usize {
        match self {
            Self::Quantize { .. } => 0,
            Self::Conv(step) => step.conv.bytes(),
        }
    }

    pub fn word(&self) -> &'static str {
        match self {
            Self::Quantize { .. } => "quantize",
            Self::Conv(_) => "int8",
        }
    }
}

/// In which forms each value is kept, by its index.
pub(super) struct Forms {
    /// Of the values kept as bytes: what one step stands for.
    pub scales: Vec<Option<f32>>,
    pub floats: Vec<bool>,
    /// Known to be finite whatever comes in.
    finite: Vec<bool>,
    /// Convolutions that read bytes.
    in_bytes: Vec<bool>,
    pub float_parts: Vec<Option<Within>>,
    pub byte_parts: Vec<Option<Within>>,
}

impl Forms {
    /// Everything in floats.
    pub fn floats(graph: &Graph, chains: &[Chain]) -> Self {
        let nodes = graph.nodes().len();
        let mut forms = Self {
            scales: vec![None; nodes],
            floats: vec![false; nodes],
            finite: vec![false; nodes],
            in_bytes: vec![false; nodes],
            float_parts: parts(graph),
            byte_parts: vec![None; nodes],
        };
        for chain in chains {
            forms.floats[chain.tail] = true;
        }
        forms
    }

    /// Bytes for the convolutions that `quantization` names.
    ///
    /// # Errors
    /// It names one that can't, or gives a map that several read different steps.
    pub fn new(graph: &Graph, chains: &[Chain], quantization: &Quantization) -> Result<Self> {
        let mut forms = Self::floats(graph, chains);
        let candidates = candidates(graph, chains);
        for (name, &scale) in quantization.scales() {
            ensure!(scale > 0.0 && scale.is_finite(), "int8: {name} reads steps of {scale}");
            if !candidates.iter().any(|candidate| candidate.name == *name) {
                bail!("int8: {name} is not a convolution of this network that can run in bytes");
            }
        }
        for candidate in &candidates {
            let Some(scale) = quantization.scale(&candidate.name) else { continue };
            forms.in_bytes[candidate.conv] = true;
            let own = &mut forms.scales[candidate.reads.index()];
            ensure!(
                own.is_none_or(|own| own == scale),
                "int8: {} reads the same map as another convolution, in other steps",
                candidate.name
            );
            *own = Some(scale);
        }
        forms.put_parts_in_place(graph, chains);
        forms.decide_floats(graph, chains);
        Ok(forms)
    }

    /// Lets the parts of a concatenation that is read as bytes alone be written as such where it lies.
    fn put_parts_in_place(&mut self, graph: &Graph, chains: &[Chain]) {
        for (i, node) in graph.nodes().iter().enumerate() {
            let (whole, Some(scale)) = (Value(i), self.scales[i]) else { continue };
            if node.op != Op::Concat || graph.outputs().contains(&whole) {
                continue;
            }
            let only_bytes = chains.iter().all(|chain| {
                let reads_it = graph.nodes()[chain.head].inputs.contains(&whole);
                !reads_it || self.in_bytes[chain.head]
            });
            let mut channel = 0;
            let mut own = Vec::with_capacity(node.inputs.len());
            for &part in &node.inputs {
                let fits = channel % LANES == 0
                    && self.scales[part.index()].is_none()
                    && !own.iter().any(|&(other, _)| other == part)
                    && !matches!(graph.node(part).op, Op::Concat | Op::Input);
                if fits {
                    own.push((part, Within { whole, channel }));
                }
                channel += graph.dims(part).channels;
            }
            if !only_bytes || own.len() < node.inputs.len() {
                continue;
            }
            self.floats[i] = false;
            for (part, within) in own {
                self.scales[part.index()] = Some(scale);
                self.byte_parts[part.index()] = Some(within);
                self.float_parts[part.index()] = None;
            }
        }
    }

    /// Which convolutions of bytes also have to write floats.
    fn decide_floats(&mut self, graph: &Graph, chains: &[Chain]) {
        let mut read = vec![false; graph.nodes().len()];
        for value in chains.iter().flat_map(|chain| self.float_reads(graph, chain)) {
            read[value.index()] = true;
        }
        for value in graph.outputs() {
            read[value.index()] = true;
        }
        for chain in chains.iter().filter(|chain| self.in_bytes[chain.head]) {
            let other = chain.sum.map(|(_, other)| other.index());
            self.finite[chain.tail] =
                other.is_none_or(|other| self.scales[other].is_some() || self.finite[other]);
            let wanted = read[chain.tail] || self.scales[chain.tail].is_none();
            self.floats[chain.tail] = wanted || !self.finite[chain.tail];
        }
    }

    /// Whether a chain's convolution reads bytes.
    pub fn in_bytes(&self, chain: &Chain) -> bool {
        self.in_bytes[chain.head]
    }

    /// The step of the bytes that a convolution of bytes writes itself.
    pub fn written_bytes(&self, chain: &Chain) -> Option<f32> {
        self.scales[chain.tail].filter(|_| self.in_bytes(chain) && self.finite[chain.tail])
    }

    /// The step of the bytes that the floats of a chain are turned into behind it.
    pub fn quantized(&self, chain: &Chain) -> Option<f32> {
        let floats = self.floats[chain.tail] && self.written_bytes(chain).is_none();
        self.scales[chain.tail].filter(|_| floats)
    }

    fn reads<'a>(&self, graph: &'a Graph, chain: &Chain) -> impl Iterator<Item = Value> + 'a {
        let residual = chain.sum.map(|(_, other)| other);
        let own = graph.nodes()[chain.head].inputs.iter().copied();
        own.chain(residual).filter(|&value| graph.node(value).op != Op::Input)
    }

    /// What a chain reads as floats.
    fn float_reads(&self, graph: &Graph, chain: &Chain) -> Vec<Value> {
        if graph.nodes()[chain.head].op == Op::Concat && !self.floats[chain.tail] {
            return Vec::new();
        }
        let as_bytes = |value: &Value| self.in_bytes(chain) && self.scales[value.index()].is_some();
        self.reads(graph, chain).filter(|value| !as_bytes(value)).collect()
    }

    /// What a chain reads as bytes; the whole of a concatenation is made when its last part is.
    fn byte_reads(&self, graph: &Graph, chain: &Chain) -> Vec<Value> {
        let as_bytes = |value: &Value| self.in_bytes(chain) && self.scales[value.index()].is_some();
        self.reads(graph, chain).filter(as_bytes).collect()
    }

    /// When each value is there as floats.
    pub fn float_lives(&self, graph: &Graph, chains: &[Chain]) -> Vec<Life> {
        let mut lives =
            lives(chains, |chain| self.floats[chain.tail], |chain| self.float_reads(graph, chain));
        for life in &mut lives {
            if graph.outputs().contains(&life.value) {
                life.read = usize::MAX;
            }
        }
        lives
    }

    /// When each value is there as bytes.
    pub fn byte_lives(&self, graph: &Graph, chains: &[Chain]) -> Vec<Life> {
        lives(
            chains,
            |chain| self.scales[chain.tail].is_some(),
            |chain| self.byte_reads(graph, chain),
        )
    }
}

fn lives(
    chains: &[Chain],
    is_made: impl Fn(&Chain) -> bool,
    reads: impl Fn(&Chain) -> Vec<Value>,
) -> Vec<Life> {
    let made =
        |step: usize, chain: &Chain| Life { value: Value(chain.tail), made: step, read: step };
    let mut lives: Vec<Life> = chains
        .iter()
        .enumerate()
        .filter(|(_, chain)| is_made(chain))
        .map(|(step, chain)| made(step, chain))
        .collect();
    for (step, chain) in chains.iter().enumerate() {
        for read in reads(chain) {
            if let Some(life) = lives.iter_mut().find(|life| life.value == read) {
                life.read = life.read.max(step);
            }
        }
    }
    lives
}
