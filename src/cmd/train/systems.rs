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
    destseg as destseg_detector, ntsnet as ntsnet_detector, prn as prn_detector,
};
use inspectd::nn::engine::Engine;
use inspectd::nn::teacher::{self, Teacher};
use inspectd::nn::{self, Backbone, BackboneSpec};
use inspectd::synth::source::Source;
use inspectd::synth::synthesizer::{Seen, Stock};
use inspectd::train::{Trainee, destseg, ntsnet, prn};
use serde::{Deserialize, Serialize};

use super::Args;

/// Which system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    DeStSeg,
    NtsNet,
    Prn,
}

/// The file of `--config`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    destseg: Option<destseg::Config>,
    ntsnet: Option<ntsnet::Config>,
    prn: Option<prn::Config>,
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

/// A system ready for its first step.
pub struct Prepared {
    pub trainee: Box<dyn Trainee>,
    pub system: System,
    /// All that was set, as text.
    pub settings: String,
    /// Defects of the test set that are learned from.
    pub seen_anomalies: Vec<String>,
}

impl FromStr for Word {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "destseg" => Ok(Self::DeStSeg),
            "ntsnet" => Ok(Self::NtsNet),
            "prn" => Ok(Self::Prn),
            _ => bail!("system {word}: must be destseg, ntsnet or prn"),
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
            Word::DeStSeg | Word::NtsNet => nn::load(spec, teacher::LEVELS),
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
