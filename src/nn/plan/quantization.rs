//! Which convolutions run in int8, and in which steps they read: found by looking at the activations
//! of good pictures.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::compile::{Chain, fuse};
use super::{Plan, Work};
use crate::nn::graph::{Graph, Op, Value};
use crate::nn::weights::Weights;
use crate::ops::activation_range::Range;
use crate::ops::feature_map::Buffer;
use crate::ops::simd::Isa;
use crate::ops::stem_conv::Planes;
use crate::ops::team::Team;

/// What a network computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    /// Convolutions on bytes, where that is possible and listed in a [`Quantization`].
    Int8,
}

impl Precision {
    pub fn word(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int8 => "int8",
        }
    }
}

impl FromStr for Precision {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "f32" => Ok(Self::F32),
            "int8" => Ok(Self::Int8),
            _ => bail!("precision {word}: must be f32 or int8"),
        }
    }
}

/// The convolutions that run in int8, by name, each with what one step of the bytes that it reads
/// stands for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quantization {
    scales: BTreeMap<String, f32>,
}

impl Quantization {
    pub fn new(scales: BTreeMap<String, f32>) -> Self {
        Self { scales }
    }

    pub fn scales(&self) -> &BTreeMap<String, f32> {
        &self.scales
    }

    pub fn scale(&self, conv: &str) -> Option<f32> {
        self.scales.get(conv).copied()
    }
}

/// A convolution that can run in int8.
pub(super) struct Candidate {
    pub name: String,
    /// Index of its node.
    pub conv: usize,
    pub reads: Value,
}

/// Largest C·K² whose sums fit 32 bits.
const MAX_FAN_IN: usize = i32::MAX as usize / (255 * 127);

/// Convolutions without groups whose input is never negative, but for the first layer and the last:
/// one with no ReLU, behind which no other convolution comes.
pub(super) fn candidates(graph: &Graph, chains: &[Chain]) -> Vec<Candidate> {
    let positive = never_negative(graph);
    let ends = reaches_no_conv(graph);
    let candidate = |chain: &Chain| {
        let node = &graph.nodes()[chain.head];
        let Op::Conv(conv) = &node.op else { return None };
        let reads = node.inputs[0];
        let last = chain.relu.is_none() && ends[chain.tail];
        let fits = conv.groups == 1 && conv.c_in * conv.kernel * conv.kernel <= MAX_FAN_IN;
        let can = fits && !last && positive[reads.index()];
        can.then(|| Candidate { name: conv.name.clone(), conv: chain.head, reads })
    };
    chains.iter().filter_map(candidate).collect()
}

/// For each value, whether it is zero or more whatever the picture.
fn never_negative(graph: &Graph) -> Vec<bool> {
    let mut positive: Vec<bool> = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes() {
        let all = node.inputs.iter().all(|input| positive[input.index()]);
        positive.push(match node.op {
            Op::Relu | Op::Sigmoid => true,
            Op::Add
            | Op::Mul
            | Op::MaxPool
            | Op::AveragePool { .. }
            | Op::RegionMean { .. }
            | Op::Upsample(_)
            | Op::Concat => all,
            _ => false,
        });
    }
    positive
}

/// For each value, whether no convolution reads what is made of it.
fn reaches_no_conv(graph: &Graph) -> Vec<bool> {
    let mut ends = vec![true; graph.nodes().len()];
    for (i, node) in graph.nodes().iter().enumerate().rev() {
        if matches!(node.op, Op::Conv(_)) || !ends[i] {
            for input in &node.inputs {
                ends[input.index()] = false;
            }
        }
    }
    ends
}

/// Watches what the convolutions of a network read while it runs in f32.
///
/// The same pictures in the same order give the same steps.
pub struct Calibrator {
    plan: Plan,
    candidates: Vec<Candidate>,
    /// Of the maps that candidates read, by the name of the first that does.
    ranges: BTreeMap<String, Range>,
    pictures: usize,
}

impl Calibrator {
    /// # Errors
    /// As [`Plan::new`]; a network without a convolution that can run in int8.
    pub fn new(graph: &Graph, weights: &Weights, isa: Isa, team: Arc<Team>) -> Result<Self> {
        let plan = Plan::new(graph, weights, 1, isa, team)?;
        let candidates = candidates(graph, &fuse(graph));
        ensure!(!candidates.is_empty(), "no convolution of this network can run in int8");
        let first = |candidate: &Candidate| {
            let same = candidates.iter().find(|other| other.reads == candidate.reads);
            same.map(|first| (first.name.clone(), Range::default()))
        };
        let ranges = candidates.iter().filter_map(first).collect();
        Ok(Self { plan, candidates, ranges, pictures: 0 })
    }

    /// How the pixels lie in [`Calibrator::pixels`].
    pub fn planes(&self) -> Planes {
        self.plan.planes()
    }

    /// Where the normalised pixels of one picture are to be put.
    pub fn pixels(&mut self) -> &mut Buffer {
        self.plan.pixels()
    }

    /// Takes in what [`Calibrator::pixels`] holds.
    ///
    /// # Errors
    /// A feature is not finite.
    pub fn observe(&mut self) -> Result<()> {
        for step in &self.plan.steps {
            if matches!(step.work, Work::Conv { .. })
                && let Some(range) = self.ranges.get_mut(&step.name)
            {
                let values = step.from[0].map(&self.plan.buffers).read();
                range.observe(&values).with_context(|| format!("layer {}", step.name))?;
            }
            self.plan.run_step(step);
        }
        self.pictures += 1;
        Ok(())
    }

    /// # Errors
    /// No picture was observed.
    pub fn finish(self) -> Result<Quantization> {
        ensure!(self.pictures > 0, "int8: no picture to find the steps of the bytes on");
        let mut by_map = BTreeMap::new();
        let mut scales = BTreeMap::new();
        for candidate in &self.candidates {
            let own = self.ranges.get(&candidate.name);
            let scale =
                *by_map.entry(candidate.reads).or_insert_with(|| own.map_or(1.0, Range::scale));
            scales.insert(candidate.name.clone(), scale);
        }
        Ok(Quantization { scales })
    }
}

/// Finds the steps on `pictures`, each of normalised pixels [3, H, W].
///
/// # Errors
/// As [`Calibrator`]; a picture that could not be had.
pub fn calibrate(
    graph: &Graph,
    weights: &Weights,
    isa: Isa,
    team: Arc<Team>,
    pictures: impl IntoIterator<Item = Result<Vec<f32>>>,
) -> Result<Quantization> {
    let mut calibrator = Calibrator::new(graph, weights, isa, team)?;
    let planes = calibrator.planes();
    for pixels in pictures {
        planes.write(&pixels?, calibrator.pixels());
        calibrator.observe()?;
    }
    calibrator.finish()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::{compile, tests::weights};
    use super::*;
    use crate::nn::graph;
    use crate::nn::resnet::{self, Depth};
    use crate::nn::{compact, destseg, mlff, ntsnet, prn};
    use crate::ops::byte_simd::ByteIsa;
    use crate::ops::interpolate::Align;

    fn pixels(graph: &Graph, images: usize, seed: u64) -> Vec<f32> {
        let dims = graph.nodes()[0].dims;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..images * 3 * dims.height * dims.width).map(|_| rng.random_range(-2.0..2.0)).collect()
    }

    fn team(threads: usize) -> Arc<Team> {
        Arc::new(Team::new(threads, false).unwrap())
    }

    fn steps(graph: &Graph, weights: &Weights) -> Quantization {
        let pictures = (10..12).map(|seed| Ok(pixels(graph, 1, seed)));
        calibrate(graph, weights, Isa::detect().unwrap(), team(1), pictures).unwrap()
    }

    /// On paths of one's choice, whether they pay or not.
    fn int8(graph: &Graph, weights: &Weights, images: usize, isa: ByteIsa, threads: usize) -> Plan {
        let quantization = steps(graph, weights);
        let int8 = Some((isa, &quantization));
        let floats = Isa::detect().unwrap();
        compile::compile(graph, weights, images, floats, team(threads), int8).unwrap()
    }

    fn outputs(plan: &mut Plan, pixels: &[f32]) -> Vec<Vec<f32>> {
        plan.planes().write(pixels, plan.pixels());
        plan.run().unwrap();
        (0..plan.outputs()).map(|i| plan.output(i).read()).collect()
    }

    /// √Σ(a − b)² / √Σb².
    fn relative_error(got: &[f32], want: &[f32]) -> f64 {
        let square = |x: f32| f64::from(x).powi(2);
        let error: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
        (error / want.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
    }

    /// Holds int8 against f32, and counts the convolutions in int8.
    fn check(name: &str, graph: &Graph, convs: usize, bound: f64) -> Plan {
        let weights = weights(graph);
        let isa = Isa::detect().unwrap();
        let mut floats = Plan::new(graph, &weights, 1, isa, team(1)).unwrap();
        let mut bytes = int8(graph, &weights, 1, ByteIsa::of(isa), 1);
        assert_eq!((floats.precision(), bytes.precision()), (Precision::F32, Precision::Int8));
        assert_eq!(bytes.flops(), floats.flops());
        let count = bytes.layers().iter().filter(|layer| layer.kernel == "int8").count();
        assert_eq!(count, convs, "{name}");
        let pixels = pixels(graph, 1, 3);
        let (got, want) = (outputs(&mut bytes, &pixels), outputs(&mut floats, &pixels));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let error = relative_error(got, want);
            assert!(error <= bound, "{name} output {i}: {error}");
        }
        bytes
    }

    #[test]
    fn int8_stays_close_to_f32() {
        // A byte is off by 0.29 steps of 1/255 of the range, which is some 1 % of what activations
        // are on average, a weight by half of that; some 15 layers deep these errors add like noise
        // to 3 to 5 %.
        let resnet18 = resnet::graph(Depth::R18, 3, (64, 96)).unwrap();
        check("resnet18", &resnet18, 14, 0.05);
        check("resnet50", &resnet::graph(Depth::R50, 2, (64, 64)).unwrap(), 23, 0.05);
        // Heads are last layers.
        check("compact", &compact::graph(64, 64), 9, 0.05);
        let plan = check("destseg", &destseg::graph(64, 64), 61, 0.05);
        assert!(plan.layers().iter().all(|layer| layer.kernel != "copy"));
    }

    #[test]
    fn other_networks_run_what_they_can() {
        check("ntsnet", &ntsnet::graph(64, 64), 66, 0.05);
        // Levels have hard edges: a value near one falls to either side.
        check("mlff", &mlff::graph(64, 64, graph::LevelRule::Paper), 53, 0.2);
        // Drawn weights of PRN amplify: a millionth of the picture moves its output by some hundred
        // times that, in PyTorch too. More than that it runs is for learned weights to show.
        check("prn", &prn::graph(128, [1; 3]), 113, 0.6);
    }

    #[test]
    fn every_path_gives_the_same_numbers_to_the_bit() {
        let graph = resnet::graph(Depth::R18, 3, (64, 64)).unwrap();
        let (weights, pixels) = (weights(&graph), pixels(&graph, 1, 3));
        let want = outputs(&mut int8(&graph, &weights, 1, ByteIsa::Portable, 1), &pixels);
        for isa in ByteIsa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let mut plan = int8(&graph, &weights, 1, isa, 2);
            // Twice: what a run leaves behind must not change the next.
            for _ in 0..2 {
                assert!(outputs(&mut plan, &pixels) == want, "{}", isa.word());
            }
        }
    }

    #[test]
    fn pictures_of_a_batch_do_not_mix() {
        let graph = resnet::graph(Depth::R18, 2, (64, 64)).unwrap();
        let (weights, pixels) = (weights(&graph), pixels(&graph, 2, 3));
        let isa = ByteIsa::of(Isa::detect().unwrap());
        let both = outputs(&mut int8(&graph, &weights, 2, isa, 1), &pixels);
        let mut one = int8(&graph, &weights, 1, isa, 1);
        for (image, pixels) in pixels.chunks(pixels.len() / 2).enumerate() {
            for (alone, both) in outputs(&mut one, pixels).iter().zip(&both) {
                assert!(alone[..] == both[image * alone.len()..][..alone.len()]);
            }
        }
    }

    /// Bytes and floats of one value, sums with floats that may be NaN, a concatenation of bytes and
    /// one that has to be quantised whole.
    fn made_up() -> Graph {
        let (mut g, xs) = Graph::new(16, 20);
        let conv = |g: &mut Graph, xs, name: &str, c_in: usize, c_out: usize| {
            g.conv(xs, graph::Conv::new(name, c_in, c_out, 3).with_bias())
        };
        let relu = |g: &mut Graph, xs, name: &str, c_in: usize, c_out: usize| {
            let ys = conv(g, xs, name, c_in, c_out);
            g.relu(ys)
        };
        let stem = relu(&mut g, xs, "stem", 3, 32);
        let a = relu(&mut g, stem, "a", 32, 16);
        let b = relu(&mut g, a, "b", 16, 20);
        let c = conv(&mut g, b, "c", 20, 20);
        let grouped = g.conv(b, graph::Conv::new("grouped", 20, 20, 3).groups(20));
        let sum = g.add(c, grouped);
        let sum = g.relu(sum);
        let d = relu(&mut g, sum, "d", 20, 16);
        let e = relu(&mut g, d, "e", 16, 16);
        let f = relu(&mut g, d, "f", 16, 40);
        // Read by a convolution alone; the part of 40 comes last.
        let in_place = g.concat(&[e, f]);
        let h = relu(&mut g, in_place, "h", 56, 16);
        let up = g.upsample(h, (32, 40), graph::Resample::Bilinear(Align::Corners));
        let small = g.max_pool(up);
        let whole = g.concat(&[small, d, sum]);
        let last = relu(&mut g, whole, "last", 52, 16);
        g.set_outputs(vec![last, d, sum]);
        g
    }

    #[test]
    fn values_are_there_in_the_forms_that_are_read() {
        let plan = check("made up", &made_up(), 8, 0.05);
        let words: Vec<_> = plan.layers().iter().map(|layer| layer.kernel).collect();
        let count = |word: &str| words.iter().filter(|own| **own == word).count();
        // stem, the sum with floats that may be NaN, the concatenation whose parts others read too
        assert_eq!((count("quantize"), count("copy")), (3, 0), "{words:?}");
    }

    #[test]
    fn nan_is_an_error() {
        for (name, graph) in [("compact", compact::graph(64, 64)), ("made up", made_up())] {
            let weights = weights(&graph);
            let mut plan = int8(&graph, &weights, 1, ByteIsa::of(Isa::detect().unwrap()), 1);
            let mut pixels = pixels(&graph, 1, 3);
            pixels[100] = f32::NAN;
            plan.planes().write(&pixels, plan.pixels());
            let error = plan.run().unwrap_err().to_string();
            assert!(error.contains("a feature of the picture is not finite"), "{name}: {error}");
        }
    }

    #[test]
    fn a_quantization_of_another_network_is_refused() {
        let graph = compact::graph(64, 64);
        let weights = weights(&graph);
        let steps = |steps: &[(&str, f32)]| {
            let named = steps.iter().map(|&(name, step)| (name.to_owned(), step));
            let quantization = Quantization::new(named.collect());
            let int8 = Some((ByteIsa::Portable, &quantization));
            let isa = Isa::detect().unwrap();
            compile::compile(&graph, &weights, 1, isa, team(1), int8).err().unwrap().to_string()
        };
        let error = steps(&[("layer1.0.conv1", 0.1)]);
        assert!(error.contains("layer1.0.conv1 is not a convolution of this network"), "{error}");
        // The first layer and the last stay in f32.
        assert!(steps(&[("stem", 0.1)]).contains("stem is not"));
        assert!(steps(&[("head1", 0.1)]).contains("head1 is not"));
        assert!(steps(&[("down1", f32::NAN)]).contains("steps of NaN"));
        let resnet = resnet::graph(Depth::R18, 2, (32, 32)).unwrap();
        let quantization = Quantization::new(BTreeMap::from([
            ("layer2.0.conv1".to_owned(), 0.1),
            ("layer2.0.downsample.0".to_owned(), 0.2),
        ]));
        let error = super::super::bytes::Forms::new(&resnet, &fuse(&resnet), &quantization);
        assert!(error.err().unwrap().to_string().contains("in other steps"));
    }
}
