//! Whole detectors on a card, pixels in and score and map out, in the interpreter against
//! themselves on the CPU.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use image::{GrayImage, Luma, Rgb, RgbImage};
use inspectd::camera::pattern;
use inspectd::cuda::detectors::Each;
use inspectd::cuda::{Gpu, Launch, Region};
use inspectd::detector::bundle;
use inspectd::detector::input::Input;
use inspectd::detector::network::Network;
use inspectd::detector::patch_prototypes::{self, PatchFeatures, PatchPrototypes};
use inspectd::detector::{Detection, Detector, destseg, mlff, ntsnet};
use inspectd::frame::Image;
use inspectd::nn::engine::{Config, Engine};
use inspectd::nn::graph::{Conv, Graph};
use inspectd::nn::weights::Weights;
use inspectd::nn::{self, Backbone, BackboneSpec};
use inspectd::teach::{self, precision::Wanted};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::interpreter::Interpreter;

const INPUT: Input = Input { width: 64, height: 64 };

fn cpu() -> Engine {
    Engine::new(&Config { threads: Some(1), ..Default::default() }).unwrap()
}

fn card() -> Engine {
    let about = "the interpreter".to_owned();
    cpu().on(Arc::new(Each { about, make: || Ok(Interpreter::default()) }))
}

/// Of two sizes, in colour and grey: a card keeps something ready for each.
fn pictures() -> [Image; 3] {
    let colour = |width: u32, height: u32| {
        Image::Rgb(RgbImage::from_fn(width, height, |x, y| {
            Rgb([(x * 3) as u8, (y * 5) as u8, ((x * y) % 251) as u8])
        }))
    };
    let grey = GrayImage::from_fn(64, 64, |x, y| Luma([((x * 7) ^ (y * 11)) as u8]));
    [colour(97, 70), Image::Gray(grey), colour(64, 64)]
}

fn drawn(graph: &Graph) -> Weights {
    graph.random_weights(&mut ChaCha8Rng::seed_from_u64(4)).unwrap()
}

/// Both say the same of all pictures, of the first once more in the end.
fn same(name: &str, mut one: impl Detector, mut other: impl Detector, bound: f32) {
    let pictures = pictures();
    for image in pictures.iter().chain(&pictures[..1]) {
        let [one, other] = [one.detect(&[image]), other.detect(&[image])]
            .map(|detections| detections.unwrap_or_else(|error| panic!("{name}: {error:?}")))
            .map(|mut detections: Vec<Detection>| detections.remove(0));
        assert_eq!((one.map.width, one.map.height), (other.map.width, other.map.height));
        let most = one.map.scores.iter().fold(0f32, |most, score| most.max(score.abs()));
        assert!(most > 0.0, "{name}: a map of zeros");
        for (i, (one, other)) in one.map.scores.iter().zip(&other.map.scores).enumerate() {
            assert!((one - other).abs() <= bound * most, "{name} at {i}: {one} {other}");
        }
        let (one, other) = (one.score, other.score);
        assert!((one - other).abs() <= bound * one.abs().max(most), "{name}: {one} {other}");
    }
}

/// A backbone whose levels have the usual sizes and few channels.
fn small_graph(height: usize, width: usize) -> Graph {
    let (mut graph, xs) = Graph::new(height, width);
    let mut levels = Vec::new();
    let mut below = xs;
    for (name, from, to, stride) in [("a", 3, 6, 4), ("b", 6, 7, 2), ("c", 7, 9, 2)] {
        let conv = Conv::new(name, from, to, 3).stride(stride).with_bias();
        let level = graph.conv(below, conv);
        below = graph.relu(level);
        levels.push(below);
    }
    graph.set_outputs(levels);
    graph
}

fn prototypes(backbone: &Backbone, engine: &Engine) -> PatchPrototypes {
    let mut features = PatchFeatures::new(INPUT, backbone, engine).unwrap();
    let rows = features.extract(&pictures().iter().skip(1).collect::<Vec<_>>()).unwrap();
    // Every third patch: the others have a distance.
    let bank = rows.chunks(features.dims()).step_by(3).flatten().copied().collect();
    PatchPrototypes::new(features, bank).unwrap()
}

#[test]
fn patch_prototypes_say_on_a_card_what_they_say_on_the_cpu() {
    let backbone = Backbone::new(small_graph, &drawn(&small_graph(64, 64))).unwrap();
    let [one, other] = [cpu(), card()].map(|engine| prototypes(&backbone, &engine));
    same("patch_prototypes", one, other, 1e-4);
}

/// Taught on the CPU: the golden pictures are scored again on the card before a line arms.
#[test]
fn a_bundle_is_sealed_on_a_card() {
    let config = teach::Config {
        backbone: BackboneSpec::Compact,
        input: INPUT,
        seed: 3,
        bank: teach::BankSize::Ratio(0.2),
        holdout: teach::HoldOut::Split(0.5),
        false_rejects: 0.001,
        significant_bits: 16,
        precision: Wanted::F32,
        tiles: None,
    };
    let pattern = pattern::Config { width: 40, height: 36, ..Default::default() };
    let goods = (0..8).map(|index| teach::Good::Picture {
        name: format!("good-{index}"),
        image: Image::Rgb(pattern::render(&pattern, index).0),
    });
    let loaded = patch_prototypes::load_backbone(&config.backbone).unwrap();
    let plan = config.plan(goods.collect(), &loaded).unwrap();
    let taught = teach::teach(&config, plan, loaded, &cpu(), &mut |_, _, _| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.bundle");
    taught.write(&path, false).unwrap();
    let mut sealed = bundle::load(&path, 2, &card()).unwrap();
    let picture = Image::Rgb(pattern::render(&pattern, 9).0);
    let [one, other] = [&mut sealed, &mut bundle::load(&path, 2, &cpu()).unwrap()]
        .map(|bundle| bundle.detector.detect(&[&picture]).unwrap()[0].score);
    assert!((one - other).abs() <= 1e-4 * one, "{one} {other}");

    // A card that computes something else does not get past the seal.
    let make = || Ok(Halving(Interpreter::default()));
    let engine = cpu().on(Arc::new(Each { about: "a wrong one".to_owned(), make }));
    let error = format!("{:#}", bundle::load(&path, 2, &engine).err().expect("it must not load"));
    assert!(error.contains("does not pass its parity seal"), "{error}");
}

/// A card whose numbers come back half as large.
struct Halving(Interpreter);

impl Gpu for Halving {
    type Memory = <Interpreter as Gpu>::Memory;

    fn alloc(&mut self, bytes: usize) -> Result<Self::Memory> {
        self.0.alloc(bytes)
    }

    fn upload(&mut self, from: &[u8], to: Region) -> Result<()> {
        self.0.upload(from, to)
    }

    fn download(&mut self, from: Region, to: &mut [u8]) -> Result<()> {
        self.0.download(from, to)?;
        for word in to.as_chunks_mut().0 {
            *word = (f32::from_le_bytes(*word) / 2.0).to_le_bytes();
        }
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        self.0.launch(launch)
    }
}

#[test]
fn features_that_are_not_finite_have_no_score_on_a_card() {
    let graph = small_graph(64, 64);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in drawn(&graph).tensors() {
        // So large that squares of what comes of it are infinite.
        let factor = if name == "b.weight" { 1e30 } else { 1.0 };
        tensors.insert(name.to_owned(), (tensor * factor).unwrap());
    }
    let backbone =
        Backbone::new(small_graph, &Weights::from_tensors("large", tensors).unwrap()).unwrap();
    let features = PatchFeatures::new(INPUT, &backbone, &card()).unwrap();
    let bank = (0..20 * features.dims()).map(|i| (i % 17) as f32).collect();
    let mut detector = PatchPrototypes::new(features, bank).unwrap();
    let error = detector.detect(&[&pictures()[0]]).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
}

#[test]
fn a_network_makes_on_a_card_the_maps_that_the_cpu_makes() {
    let weights = drawn(&small_graph(64, 64));
    let [mut one, mut other] =
        [cpu(), card()].map(|engine| Network::new(small_graph, INPUT, &weights, &engine).unwrap());
    assert_eq!(one.sizes(), [(16, 16), (8, 8), (4, 4)]);
    assert_eq!(one.sizes(), other.sizes());
    // More sizes than are kept ready, and the first again.
    let sizes = [(64, 64), (30, 70), (97, 31), (64, 65), (128, 64), (64, 64)];
    for (width, height) in sizes {
        let image = Image::Gray(GrayImage::from_fn(width, height, |x, y| {
            Luma([((x * 7) ^ (y * 11)) as u8])
        }));
        one.run(&image).unwrap();
        other.run(&image).unwrap();
        for (i, (height, width)) in one.sizes().into_iter().enumerate() {
            let mut norms = [vec![0.0; height * width], vec![0.0; height * width]];
            one.read_squared_norm(i, &mut norms[0]).unwrap();
            other.read_squared_norm(i, &mut norms[1]).unwrap();
            let most = norms[0].iter().fold(0f32, |most, norm| most.max(*norm));
            assert!(most > 0.0);
            for (one, other) in norms[0].iter().zip(&norms[1]) {
                assert!((one - other).abs() <= 1e-5 * most, "{width} × {height}: {one} {other}");
            }
        }
    }
}

/// The networks as they are: minutes in the interpreter.
#[test]
#[ignore = "minutes: cargo test --test kernels -- --ignored"]
fn whole_systems_say_on_a_card_what_they_say_on_the_cpu() {
    let backbone = nn::load(&BackboneSpec::Compact, 3).unwrap();
    let [one, other] = [cpu(), card()].map(|engine| prototypes(&backbone, &engine));
    same("patch_prototypes", one, other, 1e-4);

    let own = ntsnet::Card { network: Default::default(), fusion: Default::default() };
    let weights = drawn(&own.network.graph(64, 64));
    let [one, other] =
        [cpu(), card()].map(|engine| ntsnet::NtsNet::new(own, INPUT, &weights, &engine).unwrap());
    same("ntsnet", one, other, 1e-4);

    let own = destseg::Card { variant: Default::default(), top: destseg::TOP };
    let weights = drawn(&own.variant.graph(64, 64));
    let [one, other] =
        [cpu(), card()].map(|engine| destseg::DeStSeg::new(own, INPUT, &weights, &engine).unwrap());
    same("destseg", one, other, 1e-4);

    // With scores, and by the length of features, whose levels are not counted.
    for (texture, score) in [(true, true), (false, false)] {
        let network = nn::mlff::Variant {
            encoder: nn::mlff::Encoder::Resnet18,
            levels: nn::graph::LevelRule::Reference,
            texture,
            score,
            ..Default::default()
        };
        let weights = drawn(&network.graph(64, 64));
        let [one, other] = [cpu(), card()].map(|engine| {
            mlff::Mlff::new(mlff::Card { network }, INPUT, &weights, &engine).unwrap()
        });
        same(&format!("mlff {score}"), one, other, 5e-3);
    }
}

#[test]
fn a_model_in_int8_is_refused_on_a_card() {
    let backbone = nn::load(&BackboneSpec::Compact, 3).unwrap();
    let scales = patch_prototypes::calibrate(INPUT, &backbone, &cpu(), &pictures()).unwrap();
    assert!(PatchFeatures::quantized(INPUT, &backbone, &scales, &cpu()).is_ok());
    let error = PatchFeatures::quantized(INPUT, &backbone, &scales, &card()).err().unwrap();
    assert!(error.to_string().contains("int8, which is for the CPU: device = \"cpu\""), "{error}");
}
