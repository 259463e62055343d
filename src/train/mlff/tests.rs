use std::collections::BTreeMap;

use super::batches::{Sample, samples};
use super::*;
use crate::synth::{confetti, cutpaste};

const COUNT: usize = 7;

fn config(anomaly_share: f64) -> Config {
    Config { anomaly_share, batch: 8, ..Config::default() }
}

fn epoch(config: &Config, epoch: u64) -> Vec<Vec<Sample>> {
    let steps = config.steps_of_epoch(COUNT);
    (epoch * steps..(epoch + 1) * steps).map(|step| samples(config, COUNT, 3, step)).collect()
}

/// How often each picture comes, and how often of these it is anomalous.
fn counts(samples: &[Vec<Sample>]) -> BTreeMap<usize, (usize, usize)> {
    let mut counts = BTreeMap::new();
    for sample in samples.iter().flatten() {
        let (all, bad): &mut (usize, usize) = counts.entry(sample.picture).or_default();
        *all += 1;
        *bad += usize::from(sample.anomalous);
    }
    counts
}

#[test]
fn half_of_an_epoch_is_anomalous_and_each_picture_comes_both_ways() {
    let config = config(0.5);
    let first = epoch(&config, 0);
    // 70 in batches of 8, the last of 6.
    assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 8, 8, 8, 8, 8, 8, 6]);
    let counts = counts(&first);
    assert_eq!(counts.len(), COUNT);
    assert!(counts.values().all(|count| *count == (10, 5)), "{counts:?}");
    // The two kinds come mixed.
    let mixed = first.iter().filter(|batch| {
        let bad = batch.iter().filter(|sample| sample.anomalous).count();
        bad > 0 && bad < batch.len()
    });
    assert!(mixed.count() >= 7, "{first:?}");
    assert_ne!(first, epoch(&config, 1));
    assert_eq!(first, epoch(&config, 0));
}

#[test]
fn shares_are_kept_to_a_picture() {
    for (share, anomalies) in [(0.0, 0), (0.05, 4), (0.25, 18), (0.75, 53), (1.0, 70)] {
        let config = config(share);
        let counts = counts(&epoch(&config, 2));
        let bad: Vec<usize> = counts.values().map(|(_, bad)| *bad).collect();
        assert_eq!(bad.iter().sum::<usize>(), anomalies, "{share}");
        let (least, most) = (bad.iter().min().unwrap(), bad.iter().max().unwrap());
        assert!(most - least <= 1, "{share}: {bad:?}");
    }
}

#[test]
fn a_schedule_is_epochs_or_steps() {
    let whole = Config { epochs: 3, ..config(0.5) };
    assert_eq!(whole.schedule(COUNT), 27);
    assert_eq!(Config { steps: Some(5), ..whole }.schedule(COUNT), 5);
}

#[test]
fn settings_that_cannot_be_meant_are_named() {
    let input = Input { width: 64, height: 64 };
    let paper = Config::default();
    paper.check(input).unwrap();
    let network = |change: fn(&mut Variant)| {
        let mut network = Variant::default();
        change(&mut network);
        network
    };
    let cases = [
        (Config { batch: 1, ..paper.clone() }, "mlff.batch = 1"),
        (Config { epochs: 0, ..paper.clone() }, "mlff.epochs = 0"),
        (Config { steps: Some(0), ..paper.clone() }, "mlff.steps = 0"),
        (Config { repetition: 0, ..paper.clone() }, "mlff.repetition = 0"),
        (Config { learning_rate: f32::NAN, ..paper.clone() }, "mlff.learning_rate = NaN"),
        (Config { rate_decay: 0.0, ..paper.clone() }, "mlff.rate_decay = 0"),
        (Config { momentum: 1.0, ..paper.clone() }, "mlff.momentum = 1"),
        (Config { weight_decay: -1.0, ..paper.clone() }, "mlff.weight_decay = -1"),
        (Config { anomaly_share: 1.5, ..paper.clone() }, "mlff.anomaly_share = 1.5"),
        (Config { confetti_share: f64::NAN, ..paper.clone() }, "mlff.confetti_share = NaN"),
        (Config { label_share: 0.0, ..paper.clone() }, "mlff.label_share = 0"),
        (Config { score_weight: -1.0, ..paper.clone() }, "mlff.score_weight = -1"),
        (
            Config { score_weight: 0.0, consistency_weight: 0.0, ..paper.clone() },
            "mlff.network.score = true",
        ),
        (
            Config { feature_weight: 0.0, network: network(|n| n.score = false), ..paper.clone() },
            "mlff.feature_weight = 0",
        ),
        (Config { patch: 3, ..paper.clone() }, "mlff.patch = 3: must divide the 16 × 16 places"),
        (Config { patch: 0, ..paper.clone() }, "mlff.patch = 0"),
        (
            Config { confetti: confetti::Config { mask_min_change: 0 }, ..paper.clone() },
            "mlff.confetti",
        ),
        (
            Config { network: network(|n| n.region_levels = 1), ..paper.clone() },
            "mlff.network.region_levels = 1",
        ),
    ];
    for (config, word) in cases {
        let error = format!("{:#}", config.check(input).unwrap_err());
        assert!(error.contains(word), "{word}: {error}");
    }
    // Without a comparison nobody asks for patches.
    Config { patch: 3, consistency_weight: 0.0, ..paper }.check(input).unwrap();
}

#[test]
fn settings_are_read_back_as_they_are_written() {
    let text = toml::to_string(&Config { steps: Some(9), ..Config::default() }).unwrap();
    assert_eq!(toml::from_str::<Config>(&text).unwrap().steps, Some(9));
    let text = "anomaly_share = 0.25\npasted = \"scar\"\nencoder_norms = \"frozen\"\n\
                [network]\nlevels = \"reference\"\n[likeness]\nsign = \"positive\"\n";
    let read: Config = toml::from_str(text).unwrap();
    assert_eq!((read.anomaly_share, read.pasted), (0.25, cutpaste::Variant::Scar));
    assert_eq!(read.likeness.sign, loss::Sign::Positive);
    assert!(toml::from_str::<Config>("alpha = 1").is_err());
}

#[test]
fn advice_comes_where_the_papers_levels_miss_much() {
    let figures = |share| vec![("feature", 0.9), (WITHOUT_LEVEL[0], share)];
    let said = advice(LevelRule::Paper, &figures(0.49)).unwrap();
    assert!(said.contains("49 %") && said.contains("reference"), "{said}");
    assert_eq!(advice(LevelRule::Paper, &figures(0.1)), None);
    assert_eq!(advice(LevelRule::Reference, &figures(0.49)), None);
}

const INPUT: Input = Input { width: 64, height: 64 };

/// MLFF with a drawn encoder and without the texture branch, whose levels have no slope.
fn smooth(folder: &std::path::Path, config: Config) -> Mlff {
    let paths: Vec<_> = (0..2).map(|i| folder.join(format!("{i}.png"))).collect();
    for (i, path) in paths.iter().enumerate() {
        let picture = image::RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([(x * 3 + y) as u8, (y * 3) as u8, ((x * y + 7 * i as u32) % 97) as u8 + 80])
        });
        picture.save(path).unwrap();
    }
    let depth = config.network.encoder.depth();
    let graph = crate::nn::resnet::graph(depth, 3, (64, 64)).unwrap();
    let drawn = Parameters::begin(&graph, 9, |_| Some(Start::FanOut)).weights("drawn").unwrap();
    let encoder = Backbone::resnet(depth, 3, &drawn).unwrap();
    let pictures = Arc::new(Pictures::open(paths, (64, 64), 1 << 20, 16).unwrap());
    let engine = crate::nn::engine::Config { threads: Some(2), ..Default::default() };
    Mlff::new(config, INPUT, &encoder, pictures, 3, &Engine::new(&engine).unwrap()).unwrap()
}

/// The weighted sum of what a step logs.
fn total(config: &Config, losses: &Losses) -> f64 {
    let weight = |name: &str| match name {
        "feature" | "feature_anomalous" => config.feature_weight,
        "score" | "score_anomalous" => config.score_weight,
        "consistency" => config.consistency_weight,
        _ => panic!("{name} is no loss"),
    };
    losses.iter().map(|(name, value)| weight(name) * value).sum()
}

/// Along the gradient of everything that learns, the losses change as it says.
#[test]
fn what_is_learned_is_the_slope_of_the_weighted_losses() {
    let folder = tempfile::tempdir().unwrap();
    let network = Variant {
        encoder: crate::nn::mlff::Encoder::Resnet18,
        texture: false,
        ..Variant::default()
    };
    for weights in [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [2.0, 0.5, 3.0]] {
        let [feature_weight, score_weight, consistency_weight] = weights;
        // A weight on the way from the features to their loss alone needs no head.
        let network = Variant { score: weights[1] + weights[2] > 0.0, ..network };
        let own = Config {
            network,
            feature_weight,
            score_weight,
            consistency_weight,
            batch: 4,
            repetition: 2,
            ..Config::default()
        };
        let mut trainee = smooth(folder.path(), own.clone());
        let batch = trainee.feed.take(0).unwrap();
        assert!(batch.truth.contains(&true) && batch.truth.contains(&false));
        let begun = trainee.parameters.clone();
        let run = |trainee: &mut Mlff| {
            let tape = &mut trainee.tape.as_mut().unwrap().1;
            tape.input(0).write(&batch.pictures);
            tape.forward(&mut trainee.parameters).unwrap();
            total(&own, &trainee.losses(0, &batch.truth).unwrap())
        };
        run(&mut trainee);
        let Mlff { tape, parameters, .. } = &mut trainee;
        let tape = &mut tape.as_mut().unwrap().1;
        tape.backward(parameters).unwrap();
        let gradients = tape.gradients().clone();
        let squares = gradients.values().flatten().map(|&slope| f64::from(slope).powi(2));
        let length = squares.sum::<f64>().sqrt();
        assert!(length > 0.0);
        let slope = |trainee: &mut Mlff, step: f64| {
            let [more, less] = [step, -step].map(|step| {
                trainee.parameters = begun.clone();
                for (name, gradient) in &gradients {
                    let values = trainee.parameters.get_mut(name).unwrap();
                    for (value, slope) in values.iter_mut().zip(gradient) {
                        *value += (step * f64::from(*slope) / length) as f32;
                    }
                }
                run(trainee)
            });
            (more - less) / (2.0 * step)
        };
        // Hinges and ReLUs open on the way of a long step, of a short one rounding is left.
        let slopes = [1e-3, 3e-4, 1e-4, 3e-5].map(|step| slope(&mut trainee, step));
        let close = slopes.iter().any(|slope| (slope - length).abs() <= 0.02 * length);
        assert!(close, "{weights:?}: {slopes:?}, not {length}");
    }
}
