//! A network as a description: the one definition that training and the line are both built from.
//!
//! [`Graph`] holds operations in the order of their making, each with the shape of what it makes for
//! one picture. [`super::reference`] runs it on candle tensors, which is what training differentiates
//! and what the fast path is held against; [`super::plan`] compiles it for the line. Learned tensors
//! are named as the published state dicts name them.
//!
//! Letters: C channels in, O channels out, K kernel width, G groups, H × W places, N levels.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use rand::{Rng, RngExt};

use super::weights::Weights;
pub use crate::ops::cosine_map::Distance;
use crate::ops::interpolate::Align;
pub use crate::ops::texture::{LevelRule, Neighbour};

/// What an operation made: an index into [`Graph::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub(super) usize);

impl Value {
    pub fn index(self) -> usize {
        self.0
    }

    /// Made by the node at this index.
    pub(crate) fn at(node: usize) -> Self {
        Self(node)
    }
}

/// Of one picture's feature map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: Vec<Value>,
    pub dims: Dims,
}

/// A convolution apart from its numbers: `<name>.weight` [O, C/G, K, K], and `<name>.bias` `[O]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    pub name: String,
    pub c_in: usize,
    pub c_out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub dilation: usize,
    pub groups: usize,
    pub bias: bool,
}

impl Conv {
    /// Stride 1, padding that keeps the size, no bias.
    pub fn new(name: impl Into<String>, c_in: usize, c_out: usize, kernel: usize) -> Self {
        Self {
            name: name.into(),
            c_in,
            c_out,
            kernel,
            stride: 1,
            padding: kernel / 2,
            dilation: 1,
            groups: 1,
            bias: false,
        }
    }

    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// With the padding that keeps the size.
    pub fn dilation(self, dilation: usize) -> Self {
        Self { dilation, padding: self.kernel / 2 * dilation, ..self }
    }

    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    pub fn with_bias(self) -> Self {
        Self { bias: true, ..self }
    }

    /// Whether each channel has a filter of its own.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.c_in && self.c_in == self.c_out
    }

    fn side(&self, side: usize) -> usize {
        (side + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) / self.stride + 1
    }
}

/// Where the values between given ones come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    Nearest,
    Bilinear(Align),
}

/// An operation. Arguments are in the order of [`Node::inputs`]; shapes are those of one picture.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// What comes from outside: the picture, [3, H, W], normalised.
    Input,
    Conv(Conv),
    /// `<name>.weight`, `.bias`, `.running_mean`, `.running_var` `[C]`; ε = 10⁻⁵.
    BatchNorm {
        name: String,
    },
    Relu,
    /// x, or slope · x where x is negative.
    LeakyRelu {
        slope: f32,
    },
    Sigmoid,
    Add,
    Mul,
    /// 3×3 maximum, stride 2, padding 1 (which counts as −∞).
    MaxPool,
    /// Mean of K × K places that do not overlap; sides must be multiples of K.
    AveragePool {
        kernel: usize,
    },
    /// Means of S × S equal regions: [C, S, S]. S = 1 is global average pooling.
    RegionMean {
        regions: usize,
    },
    /// To the node's size.
    Upsample(Resample),
    /// Channels of the arguments one behind the other.
    Concat,
    /// [C, H, W] → [C·times, H, W]: channel c is that of x at c / times.
    RepeatChannels {
        times: usize,
    },
    /// −n(a)·n(b), place by place and channel by channel, with n(F) = F/(√Σ_c F² + 10⁻¹²)
    /// (DeSTSeg, `../shared/spec/destseg.md`).
    CosineProduct,
    /// How far a and b point apart, place by place: [1, H, W].
    CosineDistance(Distance),
    /// |x − p*| with p* that of the prototypes `<name>` [P, C, H, W] whose squared L2 distance to
    /// the whole map is smallest, ties to the lowest index (PRN).
    PrototypeResidual {
        name: String,
        prototypes: usize,
    },
    /// q, k, v [C, H, W], each cut into tokens of `patch` × `patch` places:
    /// softmax(scale · Q Kᵀ) V, laid back (PRN, eq. 3).
    PatchAttention {
        patch: usize,
        scale: f32,
    },
    /// w·x + b with a w and a b for each number of a patch, the same for all patches:
    /// `<name>.weight` and `<name>.bias` `[C·patch²]`, in the order (channel, row, column).
    PatchAffine {
        name: String,
        patch: usize,
    },
    /// Logits [G·9, H, W] (group g, place o of the 3×3 window, row by row, at channel 9g + o) and
    /// values [C, H, W]: softmax over the window's nine places, and for channel c the sum over o of
    /// a[c mod G, o] times the value at o, zero outside (NTSNet's CoT block, mode `local`).
    WindowAttention,
    /// Softmax over the places of each channel.
    PlaceSoftmax,
    /// x [C, H, W] and region means g [C, S, S] → [1, H, W]: the cosine between each place and the
    /// mean of its region, norms no smaller than 10⁻¹².
    CosineToMean,
    /// A cosine map [1, H, W] → [2, 1, N]: the levels L, and their counts
    /// c_n = Σ_i E_{i,n} / (Σ_{i,n} E_{i,n} + 10⁻¹²).
    LevelCounts {
        levels: usize,
        rule: LevelRule,
    },
    /// A cosine map [1, H, W] in S × S regions → [3, S², N²]: for each pair (m, n), at column
    /// N·m + n, the level L_m, the level L_n, and P = Σ E_{(i,j),m} E_{neighbour of (i,j),n} divided
    /// by the region's ΣP + 10⁻⁶. Levels are each region's own; both places of a pair lie in it.
    CoOccurrence {
        levels: usize,
        regions: usize,
        rule: LevelRule,
        neighbour: Neighbour,
    },
    /// [C, S, S] → [C, S², T]: region by region, each value T times.
    RepeatRegions {
        times: usize,
    },
    /// [C, S², T] → [C, S, S]: the mean of each row.
    MeanRegions,
    /// k, q, v [C, 1, N]: softmax of the rows of kᵀq (N × N) applied to v: [C, 1, N].
    LevelAttention,
    /// A cosine map [1, H, W] and d [C, 1, N] → [C, H, W]: Σ_n d_n E_n of each place, E of the whole
    /// map's N levels.
    SpreadLevels {
        rule: LevelRule,
    },
}

/// A network for pictures of one size.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    outputs: Vec<Value>,
}

impl Graph {
    /// A graph whose only node is the picture.
    pub fn new(height: usize, width: usize) -> (Self, Value) {
        let dims = Dims { channels: 3, height, width };
        let input = Node { op: Op::Input, inputs: Vec::new(), dims };
        (Self { nodes: vec![input], outputs: Vec::new() }, Value(0))
    }

    /// A further map from outside: the second picture of a network that compares two, or what a part
    /// of a network is tried on.
    pub fn input(&mut self, dims: Dims) -> Value {
        self.push(Op::Input, &[], dims)
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, value: Value) -> &Node {
        &self.nodes[value.0]
    }

    pub fn dims(&self, value: Value) -> Dims {
        self.nodes[value.0].dims
    }

    /// What the network gives back, in order.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    pub fn set_outputs(&mut self, outputs: Vec<Value>) {
        self.outputs = outputs;
    }

    /// The part of this network that `outputs` need, and nothing else.
    pub fn to_outputs(&self, outputs: &[Value]) -> Self {
        let mut needed = vec![false; self.nodes.len()];
        for output in outputs {
            needed[output.0] = true;
        }
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if needed[i] {
                node.inputs.iter().for_each(|input| needed[input.0] = true);
            }
        }
        let mut part = Self::default();
        let mut now_at = vec![Value(usize::MAX); self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate().filter(|(i, _)| needed[*i]) {
            let inputs: Vec<Value> = node.inputs.iter().map(|input| now_at[input.0]).collect();
            now_at[i] = part.push(node.op.clone(), &inputs, node.dims);
        }
        part.set_outputs(outputs.iter().map(|output| now_at[output.0]).collect());
        part
    }

    fn push(&mut self, op: Op, inputs: &[Value], dims: Dims) -> Value {
        self.nodes.push(Node { op, inputs: inputs.to_vec(), dims });
        Value(self.nodes.len() - 1)
    }

    pub fn conv(&mut self, xs: Value, conv: Conv) -> Value {
        let Dims { channels, height, width } = self.dims(xs);
        assert_eq!(channels, conv.c_in, "{}", conv.name);
        assert!(conv.c_in.is_multiple_of(conv.groups) && conv.c_out.is_multiple_of(conv.groups));
        let dims =
            Dims { channels: conv.c_out, height: conv.side(height), width: conv.side(width) };
        self.push(Op::Conv(conv), &[xs], dims)
    }

    pub fn batch_norm(&mut self, xs: Value, name: impl Into<String>) -> Value {
        self.push(Op::BatchNorm { name: name.into() }, &[xs], self.dims(xs))
    }

    pub fn relu(&mut self, xs: Value) -> Value {
        self.push(Op::Relu, &[xs], self.dims(xs))
    }

    pub fn leaky_relu(&mut self, xs: Value, slope: f32) -> Value {
        self.push(Op::LeakyRelu { slope }, &[xs], self.dims(xs))
    }

    pub fn sigmoid(&mut self, xs: Value) -> Value {
        self.push(Op::Sigmoid, &[xs], self.dims(xs))
    }

    pub fn add(&mut self, a: Value, b: Value) -> Value {
        assert_eq!(self.dims(a), self.dims(b));
        self.push(Op::Add, &[a, b], self.dims(a))
    }

    pub fn mul(&mut self, a: Value, b: Value) -> Value {
        assert_eq!(self.dims(a), self.dims(b));
        self.push(Op::Mul, &[a, b], self.dims(a))
    }

    pub fn max_pool(&mut self, xs: Value) -> Value {
        let Dims { channels, height, width } = self.dims(xs);
        let dims = Dims { channels, height: height.div_ceil(2), width: width.div_ceil(2) };
        self.push(Op::MaxPool, &[xs], dims)
    }

    pub fn average_pool(&mut self, xs: Value, kernel: usize) -> Value {
        let Dims { channels, height, width } = self.dims(xs);
        assert!(height.is_multiple_of(kernel) && width.is_multiple_of(kernel));
        let dims = Dims { channels, height: height / kernel, width: width / kernel };
        self.push(Op::AveragePool { kernel }, &[xs], dims)
    }

    pub fn region_mean(&mut self, xs: Value, regions: usize) -> Value {
        let Dims { channels, height, width } = self.dims(xs);
        assert!(height.is_multiple_of(regions) && width.is_multiple_of(regions));
        let dims = Dims { channels, height: regions, width: regions };
        self.push(Op::RegionMean { regions }, &[xs], dims)
    }

    /// To `height` × `width`; nothing is added where it has that size.
    pub fn upsample(
        &mut self,
        xs: Value,
        (height, width): (usize, usize),
        rule: Resample,
    ) -> Value {
        let dims = Dims { height, width, ..self.dims(xs) };
        if dims == self.dims(xs) {
            return xs;
        }
        self.push(Op::Upsample(rule), &[xs], dims)
    }

    pub fn concat(&mut self, parts: &[Value]) -> Value {
        let first = self.dims(parts[0]);
        let mut channels = 0;
        for &part in parts {
            let dims = self.dims(part);
            assert_eq!((dims.height, dims.width), (first.height, first.width));
            channels += dims.channels;
        }
        self.push(Op::Concat, parts, Dims { channels, ..first })
    }

    pub fn repeat_channels(&mut self, xs: Value, times: usize) -> Value {
        let dims = self.dims(xs);
        let dims = Dims { channels: dims.channels * times, ..dims };
        self.push(Op::RepeatChannels { times }, &[xs], dims)
    }

    pub fn cosine_product(&mut self, a: Value, b: Value) -> Value {
        assert_eq!(self.dims(a), self.dims(b));
        self.push(Op::CosineProduct, &[a, b], self.dims(a))
    }

    pub fn cosine_distance(&mut self, a: Value, b: Value, rule: Distance) -> Value {
        assert_eq!(self.dims(a), self.dims(b));
        self.push(Op::CosineDistance(rule), &[a, b], Dims { channels: 1, ..self.dims(a) })
    }

    pub fn prototype_residual(
        &mut self,
        xs: Value,
        name: impl Into<String>,
        prototypes: usize,
    ) -> Value {
        let op = Op::PrototypeResidual { name: name.into(), prototypes };
        self.push(op, &[xs], self.dims(xs))
    }

    pub fn patch_attention(&mut self, [q, k, v]: [Value; 3], patch: usize, scale: f32) -> Value {
        let dims = self.dims(v);
        assert!(self.dims(q) == dims && self.dims(k) == dims);
        assert!(dims.height.is_multiple_of(patch) && dims.width.is_multiple_of(patch));
        self.push(Op::PatchAttention { patch, scale }, &[q, k, v], dims)
    }

    pub fn patch_affine(&mut self, xs: Value, name: impl Into<String>, patch: usize) -> Value {
        let dims = self.dims(xs);
        assert!(dims.height.is_multiple_of(patch) && dims.width.is_multiple_of(patch));
        self.push(Op::PatchAffine { name: name.into(), patch }, &[xs], dims)
    }

    pub fn window_attention(&mut self, logits: Value, values: Value) -> Value {
        let (a, v) = (self.dims(logits), self.dims(values));
        assert_eq!((a.height, a.width), (v.height, v.width));
        assert!(a.channels.is_multiple_of(9) && v.channels.is_multiple_of(a.channels / 9));
        self.push(Op::WindowAttention, &[logits, values], v)
    }

    pub fn place_softmax(&mut self, xs: Value) -> Value {
        self.push(Op::PlaceSoftmax, &[xs], self.dims(xs))
    }

    pub fn cosine_to_mean(&mut self, xs: Value, means: Value) -> Value {
        let (x, g) = (self.dims(xs), self.dims(means));
        assert_eq!((x.channels, g.height), (g.channels, g.width));
        assert!(x.height.is_multiple_of(g.height) && x.width.is_multiple_of(g.width));
        self.push(Op::CosineToMean, &[xs, means], Dims { channels: 1, ..x })
    }

    pub fn level_counts(&mut self, cosines: Value, levels: usize, rule: LevelRule) -> Value {
        let dims = Dims { channels: 2, height: 1, width: levels };
        self.push(Op::LevelCounts { levels, rule }, &[cosines], dims)
    }

    pub fn co_occurrence(
        &mut self,
        cosines: Value,
        levels: usize,
        regions: usize,
        (rule, neighbour): (LevelRule, Neighbour),
    ) -> Value {
        let dims = Dims { channels: 3, height: regions * regions, width: levels * levels };
        self.push(Op::CoOccurrence { levels, regions, rule, neighbour }, &[cosines], dims)
    }

    pub fn repeat_regions(&mut self, xs: Value, times: usize) -> Value {
        let Dims { channels, height, width } = self.dims(xs);
        let dims = Dims { channels, height: height * width, width: times };
        self.push(Op::RepeatRegions { times }, &[xs], dims)
    }

    pub fn mean_regions(&mut self, xs: Value) -> Value {
        let Dims { channels, height, .. } = self.dims(xs);
        let side = height.isqrt();
        assert_eq!(side * side, height);
        self.push(Op::MeanRegions, &[xs], Dims { channels, height: side, width: side })
    }

    pub fn level_attention(&mut self, k: Value, q: Value, v: Value) -> Value {
        assert!(self.dims(k) == self.dims(q) && self.dims(k).height == 1);
        self.push(Op::LevelAttention, &[k, q, v], self.dims(v))
    }

    pub fn spread_levels(&mut self, cosines: Value, d: Value, rule: LevelRule) -> Value {
        let dims = Dims { channels: self.dims(d).channels, ..self.dims(cosines) };
        self.push(Op::SpreadLevels { rule }, &[cosines, d], dims)
    }

    /// Learned tensors and running statistics with their shapes, in the order of their making, each
    /// once.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all: Vec<(String, Vec<usize>)> = Vec::new();
        for node in &self.nodes {
            let c = node.dims.channels;
            let own = match &node.op {
                Op::Conv(conv) => {
                    let weight = vec![c, conv.c_in / conv.groups, conv.kernel, conv.kernel];
                    let bias = conv.bias.then(|| (format!("{}.bias", conv.name), vec![c]));
                    std::iter::once((format!("{}.weight", conv.name), weight)).chain(bias).collect()
                }
                Op::BatchNorm { name } => ["weight", "bias", "running_mean", "running_var"]
                    .map(|kind| (format!("{name}.{kind}"), vec![c]))
                    .to_vec(),
                Op::PatchAffine { name, patch } => ["weight", "bias"]
                    .map(|kind| (format!("{name}.{kind}"), vec![c * patch * patch]))
                    .to_vec(),
                Op::PrototypeResidual { name, prototypes } => {
                    let Dims { channels, height, width } = node.dims;
                    vec![(name.clone(), vec![*prototypes, channels, height, width])]
                }
                _ => Vec::new(),
            };
            for tensor in own {
                if !all.iter().any(|(name, _)| *name == tensor.0) {
                    all.push(tensor);
                }
            }
        }
        all
    }

    /// How many numbers are learned: everything but running statistics and prototypes.
    pub fn parameter_count(&self) -> usize {
        let prototypes = |name: &String| {
            let is = |op: &Op| matches!(op, Op::PrototypeResidual { name: own, .. } if own == name);
            self.nodes.iter().any(|node| is(&node.op))
        };
        self.tensors()
            .iter()
            .filter(|(name, _)| !name.contains(".running_") && !prototypes(name))
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    /// Floating-point operations of the convolutions for one picture, a multiplication and an
    /// addition each, as if none were saved.
    pub fn conv_flops(&self) -> f64 {
        let of = |node: &Node| match &node.op {
            Op::Conv(conv) => {
                let Dims { channels, height, width } = node.dims;
                let taps = conv.c_in / conv.groups * conv.kernel * conv.kernel;
                2.0 * (channels * height * width) as f64 * taps as f64
            }
            _ => 0.0,
        };
        self.nodes.iter().map(of).sum()
    }

    /// Weights drawn as torchvision initialises ResNets: convolutions normal with σ = √(2/(O·K·K))
    /// (He et al. 2015, fan out), γ = 1, β = 0, μ = 0, σ² = 1, biases 0, prototypes normal. For tests
    /// and benches: features mean nothing.
    pub fn random_weights(&self, rng: &mut impl Rng) -> Result<Weights> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in self.tensors() {
            let tensor = match shape.as_slice() {
                &[o, _, k, _] => {
                    let sigma = if name.ends_with(".weight") {
                        (2.0 / (o * k * k) as f32).sqrt()
                    } else {
                        1.0
                    };
                    let values: Vec<f32> =
                        (0..shape.iter().product()).map(|_| sigma * normal(rng)).collect();
                    Tensor::from_vec(values, shape, &Device::Cpu)?
                }
                _ if name.ends_with(".weight") || name.ends_with(".running_var") => {
                    Tensor::ones(shape, DType::F32, &Device::Cpu)?
                }
                _ => Tensor::zeros(shape, DType::F32, &Device::Cpu)?,
            };
            tensors.insert(name, tensor);
        }
        Weights::from_tensors("random weights", tensors)
    }
}

/// A standard normal number (Box & Muller 1958).
pub(crate) fn normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}
