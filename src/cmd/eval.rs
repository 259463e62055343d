//! `inspectd eval`: how good bundles are on test sets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use inspectd::dataset::{self, Category, Purpose, split};
use inspectd::detector::bundle::{self, Bundle};
use inspectd::detector::tiles::Tiles;
use inspectd::eval::published::{Choice, published};
use inspectd::eval::report::{Made, Report, Run, Shared};
use inspectd::eval::systems::System;
use inspectd::eval::{Resolution, Settings, evaluate, gallery, sheet};
use inspectd::metrics::bootstrap::Bootstrap;
use inspectd::nn::engine::{self, Device, Engine};
use inspectd::picture;

use super::machine;

mod few_shot;

/// Score test sets and report how well defects are told from good parts
#[derive(clap::Args)]
pub struct Args {
    /// A bundle that `inspectd teach` made, or a folder with a bundle for each category
    /// (DIR/bottle/model.toml); again for more
    #[arg(long, required_unless_present = "few_shot", value_name = "DIR")]
    bundle: Vec<PathBuf>,
    /// A category or a whole data set: MVTec AD, BTAD, DAGM 2007, KolektorSDD2, VisA, or a folder
    /// good beside folders of defects; again for more
    #[arg(long, required = true, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a line a bundle and category to this file as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write everything, with curves and pictures, to this file as one page of HTML
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Pictures of each category on the page at most; errors first
    #[arg(long, value_name = "N", default_value_t = 200, requires = "html")]
    gallery: usize,
    /// Write the worst misses and worst false rejects to this file as one PNG picture
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Published figures to put beside: all, none, or methods as PRN,PatchCore [default: a few]
    #[arg(long, value_name = "METHODS")]
    published: Option<Choice>,
    /// Resamples of the pictures for 95 % intervals; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,
    /// What the resamples are drawn from; the first seed of --few-shot
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where pixels are counted: at the size of the anomaly map, or of the original mask
    #[arg(long, value_name = "map|original", default_value = "map")]
    resolution: Resolution,
    /// Take the figures without pictures that can't be read, and list these
    #[arg(long)]
    allow_unreadable: bool,
    /// Pictures scored at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Threads of an inference [default: all CPUs]
    #[arg(long)]
    threads: Option<usize>,
    /// What computes: cpu, cuda:N or auto [default: cpu]
    #[arg(long)]
    device: Option<Device>,
    /// Bits a sample that 16-bit files really carry: 10 or 12 for many cameras
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    significant_bits: u32,
    #[command(flatten)]
    few_shot: few_shot::Args,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(shots) = &args.few_shot.few_shot {
        ensure!(
            args.device.is_none_or(|device| device == Device::Cpu),
            "--few-shot teaches, which is done on the CPU: leave --device out"
        );
        return few_shot::run(args, shots);
    }
    let categories = categories(&args.data)?;
    let systems: Vec<System> =
        args.bundle.iter().map(|path| System::at(path)).collect::<Result<_>>()?;
    // What is missing is said before hours of work.
    for system in &systems {
        for category in &categories {
            system.bundle_for(&category.name)?;
        }
    }
    let count = systems.len() * categories.len();
    ensure!(
        args.sheet.is_none() || count == 1,
        "--sheet shows one bundle on one category, and these are {count} runs; --html shows all"
    );
    let engine = Engine::new(&engine::Config {
        threads: args.threads,
        device: args.device.unwrap_or_default(),
        ..Default::default()
    })?;
    let mut runs = Vec::with_capacity(count);
    for system in &systems {
        runs.extend(system_on(args, system, &categories, &engine)?);
    }
    let report = Report {
        runs,
        settings: Shared {
            inspectd: env!("CARGO_PKG_VERSION").to_owned(),
            revision: option_env!("INSPECTD_REVISION").unwrap_or("unknown").to_owned(),
            cpu: match &engine.gpus {
                Some(gpus) => format!("{}, {}", machine::cpu_model(), gpus.about()),
                None => machine::cpu_model(),
            },
            threads: engine.team.threads(),
            batch: usize::from(args.batch),
            resolution: args.resolution,
            resamples: args.resamples,
            confidence: Bootstrap::default().confidence,
            seed: args.seed,
        },
        choice: args.published.clone().unwrap_or_default(),
        made_at: SystemTime::now(),
    };
    print!("{report}");
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> Result<String>| match path {
        Some(path) => put(path, text()?.as_bytes()),
        None => Ok(()),
    };
    write(&args.json, &|| report.json())?;
    write(&args.csv, &|| report.csv())?;
    if let Some(path) = &args.html {
        let page = report.html()?;
        put(path, page.as_bytes())?;
        println!("wrote {}, {:.1} MiB", path.display(), page.len() as f64 / f64::from(1 << 20));
    }
    Ok(ExitCode::SUCCESS)
}

fn categories(roots: &[PathBuf]) -> Result<Vec<Category>> {
    let mut categories = Vec::new();
    for root in roots {
        categories.extend(dataset::find_for(root, Purpose::Testing)?);
    }
    Ok(categories)
}

/// One `--bundle` on all categories.
fn system_on(
    args: &Args,
    system: &System,
    categories: &[Category],
    engine: &Engine,
) -> Result<Vec<Run>> {
    let batch = usize::from(args.batch);
    let mut loaded: Option<(PathBuf, Bundle)> = None;
    let mut runs = Vec::with_capacity(categories.len());
    for category in categories {
        let folder = system.bundle_for(&category.name)?;
        if loaded.as_ref().is_none_or(|(there, _)| *there != folder) {
            // The old one goes first: two may not fit.
            drop(loaded.take());
            let mut bundle = bundle::load(&folder, batch, engine)?;
            bundle.detector = Tiles::around(bundle.card.tiles, bundle.detector);
            loaded = Some((folder.clone(), bundle));
        }
        let (_, bundle) = loaded.as_mut().expect("it was just loaded");
        let mut run = one(args, system, bundle, category)
            .with_context(|| format!("{} on {}", folder.display(), category.root.display()))?;
        if let Some(tiles) = bundle.card.tiles {
            run.notes.push(format!("pictures were seen in tiles of {tiles} (size:overlap)"));
        }
        if system.is_one_bundle() && categories.len() > 1 {
            run.notes.push(format!(
                "the bundle was taught on one kind of part and is used on all {} categories",
                categories.len()
            ));
        }
        runs.push(run);
    }
    Ok(runs)
}

/// One bundle on one category.
fn one(args: &Args, system: &System, bundle: &mut Bundle, category: &Category) -> Result<Run> {
    let settings = Settings {
        threshold: bundle.card.threshold.score,
        map_limit: bundle.card.threshold.map,
        batch: usize::from(args.batch),
        significant_bits: args.significant_bits,
        resolution: args.resolution,
        allow_unreadable: args.allow_unreadable,
        bootstrap: (args.resamples > 0).then(|| Bootstrap {
            resamples: args.resamples,
            seed: args.seed,
            ..Bootstrap::default()
        }),
    };
    let seen = &bundle.card.training_data.seen_anomalies;
    let (samples, left_out) = split::tested(category, seen);
    let mut notes = category.oddities.clone();
    if !seen.is_empty() {
        notes.push(format!(
            "{left_out} of the {} defects that the bundle was taught with are in this test set and \
             were left out",
            seen.len()
        ));
    }
    let more = samples.len() + left_out - category.test.len();
    if more > 0 {
        notes.push(format!(
            "{more} defects of the training half are tested with, as PRN's protocol has it where seen \
             ones are drawn from both halves"
        ));
    }

    let bar = ProgressBar::new(samples.len() as u64).with_style(
        ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} images, {eta} left")
            .expect("the template is well formed"),
    );
    bar.set_message(category.name.clone());
    let started = now();
    let mut scored_at = started;
    let evaluation = evaluate(bundle.detector.as_mut(), &samples, &settings, &mut |done| {
        bar.set_position(done as u64);
        scored_at = now();
    })?;
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    if !evaluation.unreadable.is_empty() {
        let names: Vec<_> = evaluation.unreadable.iter().map(|one| one.name.as_str()).collect();
        notes.push(format!(
            "the figures are without {} pictures that can't be read: {}",
            names.len(),
            names.join(", ")
        ));
    }
    let mut run = Run {
        bundle: system.path.display().to_string(),
        data: category.root.display().to_string(),
        category: category.name.clone(),
        layout: category.layout,
        seconds,
        images_per_s: evaluation.scored.len() as f64 / (scored_at - started).as_secs_f64(),
        peak_rss_mib: machine::peak_rss_mib()?,
        figures: evaluation.figures.clone(),
        made: Made::of(&bundle.card),
        seen_anomalies: seen.clone(),
        unreadable: evaluation.unreadable.clone(),
        published: published(
            category.layout,
            &category.name,
            args.published.as_ref().unwrap_or(&Choice::default()),
        ),
        notes,
        scored: evaluation.scored.clone(),
        curves: evaluation.curves.clone(),
        gallery: Vec::new(),
    };
    if args.html.is_some() {
        run.gallery =
            gallery::gallery(bundle.detector.as_mut(), &evaluation, &settings, args.gallery)?;
    }
    if let Some(path) = &args.sheet {
        let sheet =
            sheet::sheet(bundle.detector.as_mut(), &evaluation, &settings, &headline(&run))?;
        put(path, &picture::rgb_png(&sheet)?)?;
    }
    Ok(run)
}

/// The first line of the sheet.
fn headline(run: &Run) -> String {
    let figures = &run.figures;
    format!(
        "{}: image AUROC {}, {} of {} defects escape, {} of {} good parts rejected",
        run.category,
        figures.image_auroc.map_or_else(|| "n/a".to_owned(), |auroc| format!("{auroc:.4}")),
        figures.escapes,
        figures.defects,
        figures.false_rejects,
        figures.goods,
    )
}

fn put(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("writing {}", path.display()))
}

#[expect(clippy::disallowed_methods, reason = "a command measures its own run")]
fn now() -> Instant {
    Instant::now()
}
