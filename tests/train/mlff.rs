//! MLFF at tiny size, with an encoder of drawn weights.

use inspectd::detector::bundle::System;
use inspectd::nn::graph::LevelRule;
use inspectd::nn::mlff::{Encoder, Resolution, Variant};
use inspectd::synth::{confetti, cutpaste};
use inspectd::train::loss::mlff::{Counting, Direction, Likeness, Pairing, Sign};
use inspectd::train::mlff::{Config, EncoderNorms, Mlff, WITHOUT_LEVEL};

use super::*;

fn small() -> Config {
    Config {
        network: Variant {
            encoder: Encoder::Resnet18,
            map_levels: 8,
            region_levels: 4,
            ..Variant::default()
        },
        steps: Some(2),
        batch: 3,
        repetition: 2,
        ..Config::default()
    }
}

fn network(change: fn(&mut Variant)) -> Config {
    let mut config = small();
    change(&mut config.network);
    config
}

fn new_mlff(config: Config, paths: &[PathBuf], seed: u64) -> Box<dyn Trainee> {
    let encoder = random_resnet18();
    let trainee = Mlff::new(config, INPUT, &encoder, pictures(paths), seed, &engine());
    Box::new(trainee.unwrap())
}

#[test]
fn every_ablation_of_mlff_learns() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 4);
    let cases = [
        ("the paper's", small()),
        ("baseline", network(|n| (n.texture, n.calibration, n.score) = (false, false, false))),
        ("calibration", network(|n| (n.texture, n.score) = (false, false))),
        ("texture", network(|n| n.score = false)),
        ("scores", Config { consistency_weight: 0.0, ..small() }),
        ("reference levels", network(|n| n.levels = LevelRule::Reference)),
        ("coarse, projected", {
            network(|n| (n.resolution, n.projection) = (Resolution::Eighth, true))
        }),
    ];
    for (name, config) in cases {
        learns(new_mlff(config, &paths, 3), name, "enc.conv1.weight");
    }
}

#[test]
fn every_way_to_train_mlff_learns() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 4);
    // Light, since none of it asks what the network is.
    let plain = || network(|n| (n.texture, n.calibration) = (false, false));
    let likeness = Likeness {
        sign: Sign::Positive,
        direction: Direction::FeaturesToScores,
        stop_gradient: true,
        by_row_mean: true,
    };
    let cases = [
        ("frozen norms", Config { encoder_norms: EncoderNorms::Frozen, ..plain() }),
        ("mean", Config { pairing: Pairing::Mean, counting: Counting::Batch, ..plain() }),
        ("ordered", Config { pairing: Pairing::Ordered, ..plain() }),
        ("likeness", Config { likeness, patch: 2, ..plain() }),
        ("no anomalies", Config { anomaly_share: 0.0, ..plain() }),
        ("anomalies only", Config { anomaly_share: 1.0, ..plain() }),
        (
            "pasted scars",
            Config { confetti_share: 0.0, pasted: cutpaste::Variant::Scar, ..plain() },
        ),
        (
            "visible confetti",
            Config {
                confetti_share: 1.0,
                confetti: confetti::Config { mask_min_change: 20 },
                ..plain()
            },
        ),
    ];
    for (name, config) in cases {
        let frozen = config.encoder_norms == EncoderNorms::Frozen;
        let mut trainee = new_mlff(config, &paths, 3);
        let mean = |trainee: &dyn Trainee| {
            trainee.parameters().get("enc.bn1.running_mean").unwrap().to_vec()
        };
        let before = mean(trainee.as_ref());
        trainee.step(0).unwrap();
        assert_eq!(mean(trainee.as_ref()) == before, frozen, "{name}");
        learns(trainee, name, "score.weight");
    }
}

#[test]
fn losses_say_what_is_learned() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 4);
    let names = |config: Config| {
        let mut trainee = new_mlff(config, &paths, 3);
        let all = trainee.steps();
        let steps: Vec<Vec<&str>> = (0..all)
            .map(|step| trainee.step(step).unwrap().iter().map(|(name, _)| *name).collect())
            .collect();
        steps
    };
    let every = ["feature", "feature_anomalous", "score", "score_anomalous", "consistency"];
    let reach = ["cosine_range_map", WITHOUT_LEVEL[0], "cosine_range_regions", WITHOUT_LEVEL[1]];
    let got = names(small());
    assert_eq!(got[0], every);
    // The last step looks at the levels.
    assert_eq!(got[1], [&every[..], &reach].concat());
    let got = names(network(|n| (n.texture, n.calibration, n.score) = (false, false, false)));
    assert_eq!(got[1], every[..2]);
}

#[test]
fn the_rate_falls_from_epoch_to_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 4);
    let plain = network(|n| (n.texture, n.calibration) = (false, false));
    // An epoch of two steps: 8 pictures in batches of 4.
    let run = |rate_decay, steps| {
        let config = Config { rate_decay, batch: 4, steps: Some(steps), ..plain.clone() };
        let mut trainee = new_mlff(config, &paths, 3);
        (0..steps).for_each(|step| drop(trainee.step(step).unwrap()));
        trainee.parameters().get("score.weight").unwrap().to_vec()
    };
    assert_eq!(run(0.5, 2), run(1.0, 2));
    assert_ne!(run(0.5, 3), run(1.0, 3));
}

#[test]
fn an_interrupted_run_of_mlff_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 5);
    // Epochs of 4, 4 and 2 pictures.
    let config = Config { batch: 4, steps: Some(4), rate_decay: 0.9, ..small() };
    let new = || new_mlff(config.clone(), &paths, 3);
    let mut whole = new();
    assert_eq!(run_some(whole.as_mut(), &folder.path().join("whole"), None, false), 4);
    for first in [2, 3] {
        let at = folder.path().join(format!("{first}"));
        assert_eq!(run_some(new().as_mut(), &at, Some(first), false), first);
        let mut resumed = new();
        assert_eq!(run_some(resumed.as_mut(), &at, None, true), 4);
        assert!(resumed.parameters() == whole.parameters(), "after {first}");
    }
    let mut other = new_mlff(config.clone(), &paths, 4);
    (0..4).for_each(|step| drop(other.step(step).unwrap()));
    assert!(other.parameters() != whole.parameters());
}

/// A file of [`random_resnet18`]'s weights, as a backbone.
fn weight_file(folder: &Path) -> String {
    let graph = resnet::graph(Depth::R18, 3, (64, 64)).unwrap();
    let parameters = Parameters::begin(&graph, 9, |_| Some(Start::FanOut));
    let path = folder.join("drawn.safetensors");
    let tensors = parameters.tensors().unwrap().into_iter().collect();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    format!("resnet18:{}", path.display())
}

#[test]
fn a_bundle_of_mlff_is_sealed_and_its_scores_may_lie_below_zero() {
    let folder = tempfile::tempdir().unwrap();
    goods(folder.path(), 8);
    let file = |name: &str| folder.path().join(name).display().to_string();
    let backbone = weight_file(folder.path());
    let (data, config) = (file("part"), file("c.toml"));
    for (name, settings, scores) in [
        ("whole", "map_levels = 8\nregion_levels = 4\n", true),
        ("baseline", "texture = false\ncalibration = false\nscore = false\n", false),
    ] {
        std::fs::write(&config, format!("[mlff]\nbatch = 2\n[mlff.network]\n{settings}")).unwrap();
        let place = file(name);
        let output = inspectd(&[
            "train",
            "--system",
            "mlff",
            "--data",
            &data,
            "--out",
            &place,
            "--size",
            "64",
            "--steps",
            "3",
            "--holdout",
            "0.4",
            "--threads",
            "2",
            "--config",
            &config,
            "--backbone",
            &backbone,
        ]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let loaded = bundle::load(Path::new(&place), 3, &engine()).unwrap();
        assert_eq!((loaded.card.system.as_str(), loaded.card.training.unwrap().steps), ("mlff", 3));
        let system = System::of(&loaded.card).unwrap().unwrap();
        assert_eq!(system.units() == bundle::Units::Signed, scores);
        assert_eq!(loaded.card.mlff.unwrap().network.encoder, Encoder::Resnet18);
        // A limit below zero is one where scores have a sign, and refused where they have none.
        let card = Path::new(&place).join("model.toml");
        let text = std::fs::read_to_string(&card).unwrap();
        let limit = loaded.card.threshold.score;
        std::fs::write(&card, text.replacen(&format!("score = {limit}"), "score = -1.5", 1))
            .unwrap();
        match bundle::load(Path::new(&place), 1, &engine()) {
            Ok(loaded) => assert!(scores && loaded.card.threshold.score == -1.5),
            Err(error) => {
                assert!(!scores && format!("{error:#}").contains("must be a number above 0"));
            }
        }
    }
}

#[test]
fn settings_of_mlff_that_cannot_be_meant_are_named() {
    let folder = tempfile::tempdir().unwrap();
    goods(folder.path(), 6);
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (backbone, data, out) = (weight_file(folder.path()), file("part"), file("b"));
    let refused = |settings: &str, args: &[&str]| {
        let config = file("c.toml");
        std::fs::write(&config, format!("[mlff]\n{settings}")).unwrap();
        let all =
            ["train", "--system", "mlff", "--data", &data, "--out", &out, "--config", &config];
        let output = inspectd(&[&all[..], args].concat());
        assert!(!output.status.success(), "{settings} {args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let given = ["--backbone", &backbone, "--size", "64"];
    let error = refused("", &["--size", "64"]);
    assert!(error.contains("backbone compact") && error.contains("resnet50:FILE"), "{error}");
    let error = refused("", &["--backbone", &backbone, "--size", "96"]);
    assert!(error.contains("multiples of 64"), "{error}");
    let error = refused("anomaly_share = 2.0\n", &given);
    assert!(error.contains("mlff.anomaly_share = 2"), "{error}");
    let error = refused("alpha = 2.0\n", &given);
    assert!(error.contains("c.toml") && error.contains("alpha"), "{error}");
}
