//! Every network against PyTorch's: files that `benches/peers/references.py` writes, in the folder that
//! the variable `INSPECTD_NETS` names. They are a gigabyte, so they are made where they are wanted.

use std::path::{Path, PathBuf};

use candle_core::{D, Tensor};
use inspectd::nn::graph::{Graph, LevelRule};
use inspectd::nn::resnet::Depth;
use inspectd::nn::weights::Weights;
use inspectd::nn::{destseg, mlff, ntsnet, prn, reference, resnet};

/// Of the largest value of an output: sums of some thousand products in f32, a hundred layers deep,
/// in another order.
const TOLERANCE: f32 = 1e-4;

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
    let mut worst = Vec::new();
    for (name, graph) in networks() {
        let path = folder.join(format!("{name}.safetensors"));
        if !path.exists() {
            println!("SKIPPED: {} is not here", path.display());
            continue;
        }
        let errors = errors(&path, &graph);
        println!("{name}: {errors:?}");
        worst.extend(errors.into_iter().map(|error| (name, error)));
    }
    assert!(!worst.is_empty(), "{} has no file of any network", folder.display());
    for (name, error) in worst {
        assert!(error <= TOLERANCE, "{name}: {error} of the largest value");
    }
}

/// Of each output: the largest error as a part of the largest value.
fn errors(path: &Path, graph: &Graph) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let weights = Weights::from_bytes(&path.display().to_string(), &bytes).unwrap();
    for (name, shape) in graph.tensors() {
        weights.get(&name, &shape).unwrap();
    }
    let pictures = weights.get("input", &[2, 3, SIDE, SIDE]).unwrap();
    let got = reference::run(graph, &weights, &pictures).unwrap();
    let error = |(i, got): (usize, &Tensor)| {
        let want = weights.get(&format!("output.{i}"), got.dims()).unwrap();
        largest(&(got - &want).unwrap()) / largest(&want)
    };
    got.iter().enumerate().map(error).collect()
}

fn largest(xs: &Tensor) -> f32 {
    xs.flatten_all().unwrap().abs().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
}
