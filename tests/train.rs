//! Training from pictures to a bundle, at tiny size: that every variant of the papers learns, that an
//! interrupted run ends as one that was not, and that what was trained is what the line runs.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use inspectd::camera::pattern::{self, render};
use inspectd::dataset::pictures::Pictures;
use inspectd::detector::bundle;
use inspectd::detector::input::Input;
use inspectd::nn::cot::Attention;
use inspectd::nn::engine::{self, Engine};
use inspectd::nn::resnet::{self, Depth};
use inspectd::nn::{self, Backbone, BackboneSpec, destseg as seg, ntsnet as nts, teacher::Teacher};
use inspectd::synth::source::Source;
use inspectd::train::distance_loss::Reduction;
use inspectd::train::parameters::{Parameters, Start};
use inspectd::train::{self, Budget, Trainee, destseg, ntsnet};

#[path = "train/mlff.rs"]
mod mlff;
#[path = "train/prn.rs"]
mod prn;

const INPUT: Input = Input { width: 64, height: 64 };

/// `count` good parts in `train/good`.
fn goods(root: &Path, count: u64) -> Vec<PathBuf> {
    let folder = root.join("part/train/good");
    std::fs::create_dir_all(&folder).unwrap();
    let config =
        pattern::Config { width: 64, height: 64, defect_rate: 0.0, ..pattern::Config::default() };
    (0..count)
        .map(|i| {
            let path = folder.join(format!("{i:03}.png"));
            render(&config, i).0.save(&path).unwrap();
            path
        })
        .collect()
}

fn engine() -> Engine {
    Engine::new(&engine::Config { threads: Some(2), ..Default::default() }).unwrap()
}

fn pictures(paths: &[PathBuf]) -> Arc<Pictures> {
    Arc::new(Pictures::open(paths.to_vec(), (64, 64), 64 << 20, 16).unwrap())
}

fn small_destseg() -> destseg::Config {
    destseg::Config {
        network: seg::Variant { teacher: Teacher::Compact, ..seg::Variant::default() },
        student_steps: 2,
        segmentation_steps: 2,
        batch: 2,
        ..destseg::Config::default()
    }
}

fn small_ntsnet() -> ntsnet::Config {
    ntsnet::Config {
        network: nts::Variant { teacher: Teacher::Compact, ..nts::Variant::default() },
        epochs: 1,
        batch: 3,
        ..ntsnet::Config::default()
    }
}

fn new_destseg(config: destseg::Config, paths: &[PathBuf]) -> Box<dyn Trainee> {
    let teacher = nn::load(&BackboneSpec::Compact, 3).unwrap();
    let source = Arc::new(Source::open(None).unwrap());
    let pictures = pictures(paths);
    let trainee = destseg::DeStSeg::new(config, INPUT, &teacher, pictures, source, 3, &engine());
    Box::new(trainee.unwrap())
}

fn new_ntsnet(config: ntsnet::Config, paths: &[PathBuf]) -> Box<dyn Trainee> {
    let teacher = match config.network.teacher {
        Teacher::Compact => nn::load(&BackboneSpec::Compact, 3).unwrap(),
        _ => random_resnet18(),
    };
    let trainee = ntsnet::NtsNet::new(config, INPUT, &teacher, pictures(paths), 3, &engine());
    Box::new(trainee.unwrap())
}

/// A teacher with batch norms, whose weights nobody has to download.
fn random_resnet18() -> Backbone {
    let graph = resnet::graph(Depth::R18, 3, (64, 64)).unwrap();
    let parameters = Parameters::begin(&graph, 9, |_| Some(Start::FanOut));
    Backbone::resnet(Depth::R18, 3, &parameters.weights("drawn").unwrap()).unwrap()
}

/// Every loss is finite and something learned has moved.
fn learns(mut trainee: Box<dyn Trainee>, name: &str, watched: &str) {
    let before = trainee.parameters().get(watched).unwrap().to_vec();
    for step in 0..trainee.steps() {
        let losses = trainee.step(step).unwrap();
        assert!(losses.iter().all(|(_, value)| value.is_finite()), "{name} {step}: {losses:?}");
    }
    assert_ne!(trainee.parameters().get(watched).unwrap(), before, "{name} {watched}");
}

#[test]
fn every_variant_of_destseg_learns() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 4);
    let whole = small_destseg();
    let network = |change: fn(&mut seg::Variant)| {
        let mut config = small_destseg();
        change(&mut config.network);
        config
    };
    const STUDENT: &str = "student_net.encoder.layer1.0.conv1.weight";
    const HEAD: &str = "segmentation_net.head.4.weight";
    let cases = [
        ("plain student", network(|n| n.student = seg::Student::Encoder), HEAD),
        ("no segmentation", network(|n| n.segmentation = seg::Segmentation::None), STUDENT),
        ("features", network(|n| n.segmentation = seg::Segmentation::Features), HEAD),
        ("distances", network(|n| n.segmentation = seg::Segmentation::Distances), HEAD),
        ("clean student", destseg::Config { denoising: false, ..whole.clone() }, STUDENT),
        ("focal alone", destseg::Config { l1: false, ..whole.clone() }, HEAD),
        ("mean over the batch", destseg::Config { reduction: Reduction::Mean, ..whole }, STUDENT),
    ];
    for (name, config, watched) in cases {
        learns(new_destseg(config, &paths), name, watched);
    }
}

#[test]
fn every_variant_of_ntsnet_learns() {
    let folder = tempfile::tempdir().unwrap();
    // An epoch of a whole batch and a smaller one.
    let paths = goods(folder.path(), 5);
    let whole = small_ntsnet();
    let network = |change: fn(&mut nts::Variant)| {
        let mut config = small_ntsnet();
        change(&mut config.network);
        config
    };
    let cases = [
        ("the paper's", whole.clone()),
        ("second", network(|n| n.transformers = nts::Transformers::Second)),
        ("plain", network(|n| n.transformers = nts::Transformers::None)),
        ("global", network(|n| n.attention = Attention::Global)),
        ("deep", network(|n| n.student = nts::Student::Resnet34)),
        ("one level", network(|n| n.levels = [true, false, false])),
        ("no EMAN", ntsnet::Config { eman: ntsnet::Eman::Off, ..whole.clone() }),
        ("running", ntsnet::Config { eman: ntsnet::Eman::Running, ..whole.clone() }),
        ("the teacher's own", ntsnet::Config { eman: ntsnet::Eman::TeacherBatch, ..whole.clone() }),
        ("literal", ntsnet::Config { optimizer: ntsnet::Preset::PaperLiteral, ..whole.clone() }),
        ("sum", ntsnet::Config { reduction: Reduction::Sum, ..whole.clone() }),
        ("adam", ntsnet::Config { optimizer: ntsnet::Preset::Adam, ..whole }),
    ];
    for (name, config) in cases {
        learns(new_ntsnet(config, &paths), name, "student.conv1.weight");
    }
}

#[test]
fn a_teachers_statistics_go_where_eman_says() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 4);
    const TEACHER: &str = "teacher.layer1.0.bn1.running_mean";
    const STUDENT: &str = "student.layer1.0.bn1.running_mean";
    let mut moved = Vec::new();
    for eman in
        [ntsnet::Eman::Off, ntsnet::Eman::Batch, ntsnet::Eman::Running, ntsnet::Eman::TeacherBatch]
    {
        let network = nts::Variant { teacher: Teacher::Resnet18, ..nts::Variant::default() };
        let config = ntsnet::Config { eman, network, batch: 4, ..small_ntsnet() };
        let mut trainee = new_ntsnet(config, &paths);
        let before = trainee.parameters().get(TEACHER).unwrap().to_vec();
        let losses = trainee.step(0).unwrap();
        // The step ends an epoch; a teacher that is moved is looked at.
        assert_eq!(losses.iter().any(|(name, _)| *name == "drift1"), eman != ntsnet::Eman::Off);
        let after = trainee.parameters().get(TEACHER).unwrap().to_vec();
        if eman == ntsnet::Eman::Batch {
            // Both began at 0: the student's running mean is a tenth of its batch's, the teacher's
            // a hundredth.
            let student = trainee.parameters().get(STUDENT).unwrap();
            for (teacher, student) in after.iter().zip(student) {
                assert!((teacher - student * 0.1).abs() <= 1e-5 + 1e-4 * teacher.abs());
            }
        }
        assert_eq!(after != before, eman != ntsnet::Eman::Off, "{eman:?}");
        moved.push(after);
    }
    // Each towards something else.
    assert!((1..4).all(|i| (0..i).all(|j| moved[i] != moved[j])));
}

fn budget(folder: &Path, time: Option<Duration>, resume: bool) -> Budget {
    Budget {
        time,
        folder: folder.to_owned(),
        save_every: Duration::from_secs(3600),
        resume,
        description: "a run".to_owned(),
    }
}

/// Runs `trainee` for as many steps as `steps` say, by a clock that goes on a second a look.
#[allow(clippy::disallowed_methods)]
fn run_some(trainee: &mut dyn Trainee, folder: &Path, steps: Option<u64>, resume: bool) -> u64 {
    let begin = Instant::now();
    let made = std::cell::Cell::new(0_u64);
    let now = || begin + Duration::from_secs(made.get());
    let time = steps.map(Duration::from_secs);
    let budget = budget(folder, time, resume);
    let mut progress = |_, _, _: &train::Losses| made.set(made.get() + 1);
    train::run(trainee, &budget, &now, &mut progress).unwrap().steps
}

#[test]
fn an_interrupted_run_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 5);
    type New<'a> = &'a dyn Fn() -> Box<dyn Trainee>;
    let destseg = || new_destseg(small_destseg(), &paths);
    let ntsnet = || new_ntsnet(ntsnet::Config { epochs: 2, ..small_ntsnet() }, &paths);
    let systems: [(&str, New<'_>); 2] = [("destseg", &destseg), ("ntsnet", &ntsnet)];
    for (name, new) in systems {
        let mut whole = new();
        assert_eq!(run_some(whole.as_mut(), &folder.path().join(name), None, false), 4);
        // Once within a phase, once where one ends.
        for first in [1, 2, 3] {
            let at = folder.path().join(format!("{name}-{first}"));
            assert_eq!(run_some(new().as_mut(), &at, Some(first), false), first);
            let mut resumed = new();
            assert_eq!(run_some(resumed.as_mut(), &at, None, true), 4);
            assert!(resumed.parameters() == whole.parameters(), "{name} after {first}");
            let csv = |at: &Path| std::fs::read_to_string(at.join("losses.csv")).unwrap();
            let steps = |text: &str| text.lines().count();
            assert_eq!(steps(&csv(&at)), steps(&csv(&folder.path().join(name))));
        }
    }
}

#[test]
fn another_runs_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 3);
    let mut trainee = new_ntsnet(small_ntsnet(), &paths);
    run_some(trainee.as_mut(), folder.path(), Some(1), false);
    let other = Budget { description: "another".to_owned(), ..budget(folder.path(), None, true) };
    #[allow(clippy::disallowed_methods)]
    let error = train::run(trainee.as_mut(), &other, &Instant::now, &mut |_, _, _| {});
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("other settings") && error.contains("a run"), "{error}");
}

fn inspectd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_inspectd")).args(args).output().unwrap()
}

#[test]
fn a_trained_bundle_is_sealed_and_scores_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    goods(folder.path(), 8);
    let data = folder.path().join("part").display().to_string();
    for system in ["destseg", "ntsnet"] {
        let out = folder.path().join(format!("{system}.bundle"));
        let place = out.display().to_string();
        let args = [
            "train",
            "--system",
            system,
            "--data",
            &data,
            "--out",
            &place,
            "--size",
            "64",
            "--batch",
            "2",
            "--steps",
            "4",
            "--holdout",
            "0.4",
            "--threads",
            "2",
        ];
        let output = inspectd(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let loaded = bundle::load(&out, 3, &engine()).unwrap();
        assert_eq!(loaded.card.system, system);
        assert_eq!(loaded.card.training.unwrap().steps, 4);
        assert!(folder.path().join(format!("{system}.bundle.training/losses.svg")).is_file());
        let again = inspectd(&args);
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(!again.status.success() && said.contains("already there"), "{said}");
    }
}

#[test]
fn a_published_checkpoint_becomes_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let paths = goods(folder.path(), 8);
    // What is published is a state dict; names and shapes are those of its code.
    let graph = seg::graph(64, 64);
    let begin = Parameters::begin(&graph, 4, |_| Some(Start::FanOut));
    let file = folder.path().join("published.safetensors");
    candle_core::safetensors::save(&begin.tensors().unwrap().into_iter().collect(), &file).unwrap();
    let goods = paths[0].parent().unwrap().display().to_string();
    let import = |weights: &Path, out: &str, more: &[&str]| {
        let (weights, out) = (weights.display().to_string(), folder.path().join(out));
        let place = out.display().to_string();
        let args = ["import", "--system", "destseg", "--data", &goods, "--size", "64"];
        let output =
            inspectd(&[&args[..], &["--weights", &weights, "--out", &place], more].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned(), out)
    };
    let (well, said, out) = import(&file, "whole.bundle", &[]);
    assert!(well, "{said}");
    let mut loaded = bundle::load(&out, 1, &engine()).unwrap();
    assert_eq!((loaded.card.training, loaded.card.training_data.taught), (None, 0));
    let picture = inspectd::camera::folder::read(&paths[0], 16).unwrap();
    let got = loaded.detector.detect(&[&picture]).unwrap().remove(0);
    let card = inspectd::detector::destseg::Card { variant: seg::Variant::default(), top: 100 };
    let weights = begin.weights("drawn").unwrap();
    let mut want =
        inspectd::detector::destseg::DeStSeg::new(card, INPUT, &weights, &engine()).unwrap();
    let want = inspectd::detector::Detector::detect(&mut want, &[&picture]).unwrap().remove(0);
    assert_eq!(got, want);

    let (well, said, out) = import(&file, "plain.bundle", &["--no-segmentation", "--top", "7"]);
    assert!(well, "{said}");
    assert_eq!(bundle::read_card(&out).unwrap().destseg.unwrap().top, 7);

    let foreign = folder.path().join("resnet.safetensors");
    let graph = resnet::graph(Depth::R18, 4, (64, 64)).unwrap();
    let resnet = Parameters::begin(&graph, 4, |_| Some(Start::FanOut)).tensors().unwrap();
    candle_core::safetensors::save(&resnet.into_iter().collect(), &foreign).unwrap();
    let (well, said, out) = import(&foreign, "foreign.bundle", &[]);
    assert!(!well && said.contains("not the weights of DeSTSeg"), "{said}");
    assert!(said.contains("teacher_net.encoder.") && !out.exists(), "{said}");
}

#[test]
fn settings_that_cannot_be_meant_are_named() {
    let folder = tempfile::tempdir().unwrap();
    goods(folder.path(), 6);
    let data = folder.path().join("part").display().to_string();
    let out = folder.path().join("b").display().to_string();
    let file = folder.path().join("c.toml");
    let config = file.display().to_string();
    let refused = |args: &[&str]| {
        let all = [&["train", "--data", &data, "--out", &out, "--size", "64"], args].concat();
        let output = inspectd(&all);
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&["--system", "dream"]).contains("must be destseg, ntsnet, prn or mlff"));
    assert!(refused(&["--system", "ntsnet", "--holdout", "0"]).contains("holdout = 0"));
    assert!(refused(&["--system", "destseg", "--batch", "1"]).contains("destseg.batch = 1"));
    std::fs::write(&file, "[destseg]\nstudent_rat = 1.0\n").unwrap();
    let error = refused(&["--system", "destseg", "--config", &config]);
    assert!(error.contains("c.toml") && error.contains("student_rat"), "{error}");
    std::fs::write(&file, "[destseg]\ntop = 0\n[ntsnet.fusion]\nsigma_px = 99.0\n").unwrap();
    assert!(refused(&["--system", "destseg", "--config", &config]).contains("destseg.top = 0"));
    let error = refused(&["--system", "ntsnet", "--config", &config]);
    assert!(error.contains("ntsnet.fusion.sigma_px = 99"), "{error}");
    let error = refused(&["--system", "ntsnet", "--resume"]);
    assert!(error.contains("nothing to resume"), "{error}");
}
