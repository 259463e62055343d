//! `inspectd eval --few-shot`: how many good parts it takes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use inspectd::dataset::{self, Purpose};
use inspectd::detector::input::Input;
use inspectd::detector::patch_prototypes;
use inspectd::eval::few_shot::report::Report;
use inspectd::eval::few_shot::{Config, Experiment, Shots, Step};
use inspectd::nn::BackboneSpec;
use inspectd::nn::engine::{self, Engine};
use inspectd::teach::BankSize;

use super::{machine, now, put};

#[derive(clap::Args)]
#[command(next_help_heading = "How many good parts it takes")]
#[group(id = "few_shot_args")]
pub struct Args {
    /// Instead of bundles, judge memory banks of so many good parts of the category's train folder,
    /// such as 1,2,4,8,16,all; without thresholds
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        conflicts_with_all = ["bundle", "html", "sheet", "published", "allow_unreadable"]
    )]
    pub few_shot: Option<Vec<Shots>>,
    /// Seeds from --seed on; each draws its parts and its prototypes
    #[arg(long, value_name = "N", default_value_t = 5, requires = "few_shot")]
    seeds: u64,
    /// As of `inspectd teach`; again for more
    #[arg(long, default_value = "compact", requires = "few_shot")]
    backbone: Vec<BackboneSpec>,
    /// Side of the square that the model sees, pixels; a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value_t = 256, requires = "few_shot")]
    size: usize,
    /// Prototypes of each memory bank at most [default: 3000, or half of the patches]
    #[arg(long, value_name = "N", requires = "few_shot")]
    prototypes: Option<usize>,
    /// Write the curves to this file as an SVG picture
    #[arg(long, value_name = "FILE", requires = "few_shot")]
    plot: Option<PathBuf>,
}

pub fn run(all: &super::Args, shots: &[Shots]) -> Result<ExitCode> {
    let args = &all.few_shot;
    ensure!((1..=1000).contains(&args.seeds), "seeds = {}: must be from 1 to 1000", args.seeds);
    let [root] = all.data.as_slice() else { bail!("--few-shot takes one --data") };
    let categories = dataset::find_for(root, Purpose::Both)?;
    let [category] = categories.as_slice() else {
        bail!("{} has {} categories: --few-shot takes one", root.display(), categories.len())
    };
    let config = Config {
        shots: shots.to_vec(),
        seeds: (all.seed..).take(args.seeds as usize).collect(),
        input: Input { width: args.size, height: args.size },
        bank: args.prototypes.map_or(BankSize::Usual, BankSize::Count),
        significant_bits: all.significant_bits,
    };
    let started = now();
    let experiment = Experiment::new(&config, category)?;
    check_memory(&experiment, &args.backbone)?;
    let engine = Engine::new(&engine::Config { threads: all.threads, ..Default::default() })?;
    let mut backbones = Vec::with_capacity(args.backbone.len());
    for backbone in &args.backbone {
        let mut bars = Bars::default();
        let name = backbone.word();
        let curve = experiment
            .measure(backbone, &engine, &mut |step, done, total| bars.show(name, step, done, total))
            .with_context(|| format!("backbone {name}"))?;
        bars.finish();
        backbones.push(curve);
    }
    let report = Report {
        inspectd: env!("CARGO_PKG_VERSION").to_owned(),
        category: category.name.clone(),
        data: root.display().to_string(),
        test_images: category.test.len(),
        seeds: config.seeds.clone(),
        backbones,
        seconds: started.elapsed().as_secs_f64(),
    };
    print!("{report}");
    if let Some(path) = &all.json {
        put(path, report.json()?.as_bytes())?;
    }
    if let Some(path) = &all.csv {
        put(path, report.csv()?.as_bytes())?;
    }
    if let Some(path) = &args.plot {
        put(path, report.svg()?.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses before the work what would end in the middle of it.
fn check_memory(experiment: &Experiment<'_>, backbones: &[BackboneSpec]) -> Result<()> {
    let available = machine::available_bytes()?;
    for backbone in backbones {
        let loaded = patch_prototypes::load_backbone(backbone)?;
        let needed = experiment.bytes(patch_prototypes::dims(&loaded.backbone));
        ensure!(
            needed <= available,
            "backbone {}: features take {} MiB of memory, and {} are there; take fewer parts or a \
             smaller --size",
            backbone.word(),
            needed >> 20,
            available >> 20
        );
    }
    Ok(())
}

/// One bar a step.
#[derive(Default)]
struct Bars {
    current: Option<(Step, ProgressBar)>,
}

impl Bars {
    fn show(&mut self, backbone: &str, step: Step, done: usize, total: usize) {
        if self.current.as_ref().is_none_or(|(current, _)| *current != step) {
            self.finish();
            let what = match step {
                Step::Features => "pictures",
                Step::Banks => "memory banks",
            };
            let style = ProgressStyle::with_template(
                "{msg} {bar:40} {pos}/{len}, {elapsed} gone, {eta} left",
            )
            .expect("the template is well formed");
            let bar = ProgressBar::new(total as u64)
                .with_message(format!("{backbone}: {what}"))
                .with_style(style);
            self.current = Some((step, bar));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_position(done as u64);
        }
    }

    fn finish(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}
