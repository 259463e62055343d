//! Every network against PyTorch's: files that `benches/peers/references.py` writes, in the folder that
//! the variable `INSPECTD_NETS` names. They are a gigabyte, so they are made where they are wanted.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use inspectd::nn::graph::{Graph, LevelRule};
use inspectd::nn::plan::Plan;
use inspectd::nn::resnet::Depth;
use inspectd::nn::weights::Weights;
use inspectd::nn::{destseg, mlff, ntsnet, prn, reference, resnet};
use inspectd::ops::simd::Isa;
use inspectd::ops::team::Team;

/// Of the largest value of an output: sums of some thousand products in f32, a hundred layers deep,
/// in another order.
const TOLERANCE: f32 = 1e-4;

/// Share of the places of MLFF's maps that may be further off: a place whose cosine is a rounding
/// away from the edge of a level's window counts for the level or not. PyTorch in f32 and in f64
/// differ at 0.2 % of them.
const AT_AN_EDGE: f32 = 0.01;

const SIDE: usize = 256;

/// Prototypes that the script draws at each scale.
const PROTOTYPES: usize = 10;

fn networks() -> Vec<(&'static str, Graph)> {
    let trunk = |depth: Depth, last_layer| {
        (depth.word(), resnet::graph(depth, last_layer, (SIDE, SIDE)).unwrap())
    };
    vec![
        trunk(Depth::R18, 4),
        trunk(Depth::R34, 4),
        trunk(Depth::R50, 4),
        trunk(Depth::WideR50, 3),
        ("destseg", destseg::graph(SIDE, SIDE)),
        ("ntsnet", ntsnet::graph(SIDE, SIDE)),
        ("prn", prn::graph(SIDE, [PROTOTYPES; 3])),
        ("mlff_paper", mlff::graph(SIDE, SIDE, LevelRule::Paper)),
        ("mlff_reference", mlff::graph(SIDE, SIDE, LevelRule::Reference)),
    ]
}

#[test]
fn networks_equal_pytorchs() {
    let Some(folder) = std::env::var_os("INSPECTD_NETS").map(PathBuf::from) else {
        println!("SKIPPED: INSPECTD_NETS names no folder of benches/peers/references.py");
        return;
    };
    let mut compared = Vec::new();
    for (name, graph) in networks() {
        let path = folder.join(format!("{name}.safetensors"));
        if !path.exists() {
            println!("SKIPPED: {} is not here", path.display());
            continue;
        }
        for (what, errors) in errors(&path, &graph) {
            let worst = errors.iter().copied().fold(0.0, f32::max);
            let far = errors.iter().filter(|&&error| error > TOLERANCE).count();
            let share = far as f32 / errors.len() as f32;
            println!("{name} {what}: error {worst:.1e}, {share:.1e} of places beyond tolerance");
            compared.push((name, what, share));
        }
    }
    assert!(!compared.is_empty(), "{} has no file of any network", folder.display());
    for (name, what, share) in compared {
        let allowed = if name.starts_with("mlff") { AT_AN_EDGE } else { 0.0 };
        assert!(share <= allowed, "{name}: {what} differs at {share} of places");
    }
}

/// Of each output, by the graph on candle tensors and by the compiled plan, at each place: the
/// largest error of its channels as a part of the output's largest value.
fn errors(path: &Path, graph: &Graph) -> Vec<(String, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let weights = Weights::from_bytes(&path.display().to_string(), &bytes).unwrap();
    for (name, shape) in graph.tensors() {
        weights.get(&name, &shape).unwrap();
    }
    let pictures = weights.get("input", &[2, 3, SIDE, SIDE]).unwrap();
    let plain = reference::run(graph, &weights, &pictures).unwrap();
    let team = Arc::new(Team::new(2, false).unwrap());
    let mut plan = Plan::new(graph, &weights, 2, Isa::detect().unwrap(), team).unwrap();
    plan.planes().write(&flat(&pictures), plan.pixels());
    plan.run().unwrap();
    let mut all = Vec::new();
    for (i, plain) in plain.iter().enumerate() {
        let want = weights.get(&format!("output.{i}"), plain.dims()).unwrap();
        let largest = flat(&want.abs().unwrap()).into_iter().fold(0.0, f32::max);
        let fast = Tensor::from_vec(plan.output(i).read(), plain.dims(), &Device::Cpu).unwrap();
        for (way, got) in [("graph", plain), ("plan", &fast)] {
            assert!(flat(got).iter().all(|value| value.is_finite()), "{} {way}", path.display());
            let errors = flat(&(got - &want).unwrap().abs().unwrap().max(1).unwrap());
            let errors = errors.into_iter().map(|error| error / largest).collect();
            all.push((format!("output {i} of the {way}"), errors));
        }
    }
    all
}

fn flat(xs: &Tensor) -> Vec<f32> {
    xs.flatten_all().unwrap().to_vec1().unwrap()
}
