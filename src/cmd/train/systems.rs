//! What each system wants of the command: its table of the config, its trainee, its part of the card.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use inspectd::dataset::split::{Draw, Pool, SeenAnomalies};
use inspectd::dataset::{Category, Sample, pictures::Pictures};
use inspectd::detector::bundle::System;
use inspectd::detector::input::Input;
use inspectd::detector::{
    destseg as destseg_detector, mlff as mlff_detector, ntsnet as ntsnet_detector,
    prn as prn_detector,
};
use inspectd::nn::engine::Engine;
use inspectd::nn::mlff::Encoder;
use inspectd::nn::teacher::{self, Teacher};
use inspectd::nn::{self, Backbone, BackboneSpec};
use inspectd::synth::source::Source;
use inspectd::synth::synthesizer::{Seen, Stock};
use inspectd::train::{Losses, Trainee, destseg, health, mlff, ntsnet, prn};
use serde::{Deserialize, Serialize};

use super::Args;

/// Which system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    DeStSeg,
    NtsNet,
    Prn,
    Mlff,
}

/// The file of `--config`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    destseg: Option<destseg::Config>,
    ntsnet: Option<ntsnet::Config>,
    prn: Option<prn::Config>,
    mlff: Option<mlff::Config>,
}

/// What a system is trained from.
pub struct Given<'a> {
    pub args: &'a Args,
    pub config: Config,
    pub category: &'a Category,
    pub backbone: &'a Backbone,
    pub input: Input,
    /// Good parts to learn from.
    pub pictures: Arc<Pictures>,
    /// Of corruptions.
    pub source: Arc<Source>,
    pub engine: &'a Engine,
}

/// What a person should know of a step's figures, if anything.
pub type Advice = dyn Fn(&Losses) -> Option<String>;

/// A system ready for its first step.
pub struct Prepared {
    pub trainee: Box<dyn Trainee>,
    pub system: System,
    /// All that was set, as text.
    pub settings: String,
    /// Defects of the test set that are learned from.
    pub seen_anomalies: Vec<String>,
    /// A sentence for a person where the figures of a step say that training goes astray.
    pub advice: Box<Advice>,
}

impl FromStr for Word {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "destseg" => Ok(Self::DeStSeg),
            "ntsnet" => Ok(Self::NtsNet),
            "prn" => Ok(Self::Prn),
            "mlff" => Ok(Self::Mlff),
            _ => bail!("system {word}: must be destseg, ntsnet, prn or mlff"),
        }
    }
}

impl Config {
    pub fn read(path: Option<&Path>) -> Result<Config> {
        let Some(path) = path else { return Ok(Config::default()) };
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }
}

impl Word {
    /// What can be said of the options before the data is looked at.
    ///
    /// # Errors
    /// An input size that it can't have, defects to learn from for one that can't.
    pub fn check(self, args: &Args, input: Input) -> Result<()> {
        if self == Word::Prn {
            return prn_detector::check(input).context("--size");
        }
        ensure!(
            args.seen.is_none() && args.seen_list.is_none(),
            "--seen and --seen-list are for prn, the only system that learns from defects"
        );
        Ok(())
    }

    /// The backbone to the level that it needs.
    pub fn backbone(self, spec: &BackboneSpec) -> Result<Backbone> {
        match self {
            Word::DeStSeg | Word::NtsNet | Word::Mlff => nn::load(spec, teacher::LEVELS),
            Word::Prn => nn::load_deepest(spec, teacher::LEVELS + 1),
        }
    }

    /// # Errors
    /// A backbone that it can't have, settings that can't be meant.
    pub fn prepare(self, given: Given<'_>) -> Result<Prepared> {
        match self {
            Word::DeStSeg => destseg(given),
            Word::NtsNet => ntsnet(given),
            Word::Prn => prn(given),
            Word::Mlff => mlff(given),
        }
    }
}

fn teacher(args: &Args) -> Result<Teacher> {
    Teacher::of(&args.backbone).with_context(|| {
        format!(
            "backbone {}: a teacher is compact, resnet18:FILE or resnet34:FILE",
            args.backbone.word()
        )
    })
}

fn destseg(given: Given<'_>) -> Result<Prepared> {
    let Given { args, config, category, backbone, input, pictures, source, engine } = given;
    let mut own = config.destseg.unwrap_or_else(|| destseg::Config {
        rotation: destseg::Rotation::of_category(&category.name),
        ..destseg::Config::default()
    });
    own.network.teacher = teacher(args)?;
    own.batch = args.batch.unwrap_or(own.batch);
    if let Some(steps) = args.steps {
        let whole = own.steps().max(1);
        let student = (own.student_steps * steps).div_ceil(whole).max(1);
        own.segmentation_steps =
            if own.steps() > own.student_steps { steps.saturating_sub(student) } else { 0 };
        own.student_steps = student;
    }
    println!("corruptions: {}", source.words());
    let card = destseg_detector::Card { variant: own.network, top: own.top };
    let settings = toml::to_string(&own)?;
    let trainee = destseg::DeStSeg::new(own, input, backbone, pictures, source, args.seed, engine)?;
    Ok(Prepared {
        trainee: Box::new(trainee),
        system: System::DeStSeg(card),
        settings,
        seen_anomalies: Vec::new(),
        advice: Box::new(|_| None),
    })
}

fn ntsnet(given: Given<'_>) -> Result<Prepared> {
    let Given { args, config, backbone, input, pictures, engine, .. } = given;
    let mut own = config.ntsnet.unwrap_or_default();
    own.network.teacher = teacher(args)?;
    own.batch = args.batch.unwrap_or(own.batch).min(pictures.len().max(2));
    if let Some(steps) = args.steps {
        own.epochs = steps.div_ceil(ntsnet::steps_of_epoch(own.batch, pictures.len())).max(1);
    }
    let card = ntsnet_detector::Card { network: own.network, fusion: own.fusion };
    let settings = toml::to_string(&own)?;
    let trainee = ntsnet::NtsNet::new(own, input, backbone, pictures, args.seed, engine)?;
    Ok(Prepared {
        trainee: Box::new(trainee),
        system: System::NtsNet(card),
        settings,
        seen_anomalies: Vec::new(),
        advice: Box::new(health::advice),
    })
}

fn mlff(given: Given<'_>) -> Result<Prepared> {
    let Given { args, config, backbone, input, pictures, engine, .. } = given;
    let mut own = config.mlff.unwrap_or_default();
    own.network.encoder = encoder(&args.backbone)?;
    own.batch = args.batch.unwrap_or(own.batch);
    own.steps = args.steps.or(own.steps);
    let (card, levels) = (mlff_detector::Card { network: own.network }, own.network.levels);
    let settings = toml::to_string(&own)?;
    let trainee = mlff::Mlff::new(own, input, backbone, pictures, args.seed, engine)?;
    Ok(Prepared {
        trainee: Box::new(trainee),
        system: System::Mlff(card),
        settings,
        seen_anomalies: Vec::new(),
        advice: Box::new(move |figures| mlff::advice(levels, figures)),
    })
}

fn encoder(backbone: &BackboneSpec) -> Result<Encoder> {
    let known = [Encoder::Resnet18, Encoder::Resnet34, Encoder::Resnet50];
    let of = |depth| known.into_iter().find(|encoder| encoder.depth() == depth);
    match backbone {
        BackboneSpec::ResNet { depth, .. } => of(*depth),
        BackboneSpec::Compact => None,
    }
    .with_context(|| {
        format!(
            "backbone {}: mlff goes on training its backbone, which must be a ResNet with batch norms: \
             give --backbone resnet50:FILE (the paper's), resnet34:FILE or resnet18:FILE",
            backbone.word()
        )
    })
}

fn prn(given: Given<'_>) -> Result<Prepared> {
    let Given { args, config, category, backbone, input, pictures, source, engine } = given;
    let mut own = config.prn.unwrap_or_default();
    own.network.encoder = teacher(args)?;
    own.batch = args.batch.unwrap_or(own.batch);
    own.check()?;
    if let Some(steps) = args.steps {
        own.epochs = steps.div_ceil(own.steps_of_epoch(pictures.len())).max(1);
    }
    let drawn = seen(args, category)?;
    let size = (input.width, input.height);
    let seen: Vec<Seen> = drawn
        .iter()
        .map(|sample| Seen::read(sample, size, args.significant_bits))
        .collect::<Result<_>>()?;
    let names: Vec<String> = drawn.into_iter().map(|sample| sample.name).collect();
    match names.len() {
        0 => println!("no defect is learned from, but those that are made up"),
        count => {
            println!("{count} defects are learned from, and left out by eval: {}", names.join(", "))
        }
    }
    if backbone.channels().len() <= teacher::LEVELS {
        println!("the backbone ends with layer3: layer4 begins drawn");
    }
    println!("made-up anomalies: {}", source.words());
    let settings = format!("{}seen_anomalies = {names:?}\n", toml::to_string(&own)?);
    let stock = Stock {
        normals: pictures,
        source,
        seen,
        category: category.name.clone(),
        surface: category.surface,
    };
    let (network, top) = (own.network, own.top);
    let mut trainee = prn::Prn::new(own, input, backbone, stock, args.seed, engine)?;
    // A checkpoint has them.
    if !args.resume {
        trainee.find_prototypes(&mut |found| {
            println!(
                "scale {}: {} prototypes of {} good parts, {} rounds of k-means",
                found.scale + 1,
                found.count,
                found.maps,
                found.rounds
            );
        })?;
    }
    let card = prn_detector::Card { network, prototypes: trainee.prototypes(), top };
    Ok(Prepared {
        trainee: Box::new(trainee),
        system: System::Prn(card),
        settings,
        seen_anomalies: names,
        advice: Box::new(|_| None),
    })
}

/// The defects to learn from.
fn seen(args: &Args, category: &Category) -> Result<Vec<Sample>> {
    let count = args.seen.unwrap_or(SEEN);
    if count == 0 {
        return Ok(Vec::new());
    }
    let draw = args.seen_list.clone().map_or(Draw::Pooled, Draw::List);
    let pool = Pool::usual(category.layout);
    let seen = SeenAnomalies { count, seed: args.seed, draw, pool };
    let split = seen.split(category).with_context(|| {
        format!("--seen {count}; 0 learns from good parts and made-up anomalies alone")
    })?;
    Ok(split.seen)
}

/// The paper's number of defects.
const SEEN: usize = 10;
