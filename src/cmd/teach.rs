//! `inspectd teach`: pictures of good parts in, a bundle out.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use inspectd::detector::bundle::{self, Calibration, Card, Rule};
use inspectd::detector::input::Input;
use inspectd::detector::patch_prototypes;
use inspectd::detector::tiles::Layout;
use inspectd::nn::BackboneSpec;
use inspectd::nn::engine::{self, Engine};
use inspectd::teach::precision::Wanted;
use inspectd::teach::{self, BankSize, Good, HoldOut, Plan, Step, Taught};

use super::machine;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of pictures of good parts (PNG, JPEG, TIFF, BMP; not the folders below it)
    #[arg(long, value_name = "DIR")]
    good: PathBuf,

    /// Folder to make, the bundle
    #[arg(long, value_name = "BUNDLE")]
    out: PathBuf,

    /// compact (built in), or a torchvision network with its weight file (safetensors or zip .pth):
    /// resnet18:FILE, resnet34:FILE, resnet50:FILE, wide_resnet50_2:FILE
    #[arg(long, default_value = "compact")]
    backbone: BackboneSpec,

    /// Teach with so many of the good parts only, drawn by the seed; 5 and more
    #[arg(long, value_name = "K")]
    few_shot: Option<usize>,

    /// What every draw comes from; same seed, same pictures: same bytes
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Prototypes in the memory bank [default: 3000, or half of the patches if there are few]
    #[arg(long, value_name = "N", conflicts_with = "ratio")]
    prototypes: Option<usize>,

    /// Prototypes as a share of all patches, above 0 and up to 1
    #[arg(long)]
    ratio: Option<f64>,

    /// Keep this share of the good parts out of the memory bank, for the thresholds [default: 0.2
    /// from 100 pictures on, else see --folds]
    #[arg(long, value_name = "SHARE", conflicts_with = "folds")]
    holdout: Option<f64>,

    /// Keep no part out: score each by a memory bank of the other folds, cut into this many
    /// [default: 5 below 100 pictures]
    #[arg(long, value_name = "K")]
    folds: Option<usize>,

    /// Rate of good parts that may be rejected; 0.001 is 1000 ppm
    #[arg(long, value_name = "RATE", default_value_t = 0.001)]
    false_rejects: f64,

    /// Side of the square that the model sees, pixels; a multiple of 32
    #[arg(long, value_name = "PIXELS", default_value_t = 256)]
    size: usize,

    /// Teach on overlapping tiles of the pictures, for a line with [camera.tiles]: side and overlap in
    /// pixels, such as 512:64; the thresholds are those of whole pictures. All must be of one size
    #[arg(long, value_name = "SIZE:OVERLAP")]
    tiles: Option<Layout>,

    /// Bits a sample that 16-bit files really carry: 10 or 12 for many cameras
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    significant_bits: u32,

    /// What the backbone computes with. int8 is faster on machines with VNNI and is taken only where
    /// held-out good parts and drawn anomalies show that it costs nothing; auto tries it there
    #[arg(long, value_name = "f32|int8|auto", default_value = "f32")]
    precision: Wanted,

    /// Threads of an inference [default: all CPUs]
    #[arg(long)]
    threads: Option<usize>,

    /// Memory to keep to [default: what the system says is available]
    #[arg(long, value_name = "GIB")]
    max_memory_gib: Option<f64>,

    /// Replace a bundle that is already there
    #[arg(long)]
    force: bool,

    /// Write {images, prototypes, seconds, peak_rss_mib} here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Figures for machines; the keys are stable.
#[derive(serde::Serialize)]
struct Figures {
    /// Pictures used, held-out ones included.
    images: usize,
    prototypes: usize,
    seconds: f64,
    peak_rss_mib: f64,
}

pub fn run(args: &Args) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a command reports how long it took")]
    let started = Instant::now();
    bundle::check_place(&args.out, args.force)?;
    let config = teach::Config {
        backbone: args.backbone.clone(),
        input: Input { width: args.size, height: args.size },
        seed: args.seed,
        bank: match (args.prototypes, args.ratio) {
            (Some(count), _) => BankSize::Count(count),
            (None, Some(ratio)) => BankSize::Ratio(ratio),
            (None, None) => BankSize::Usual,
        },
        holdout: match (args.holdout, args.folds) {
            (Some(share), _) => HoldOut::Split(share),
            (None, Some(folds)) => HoldOut::Folds(folds),
            (None, None) => HoldOut::Auto,
        },
        false_rejects: args.false_rejects,
        significant_bits: args.significant_bits,
        precision: args.precision,
        tiles: args.tiles,
    };
    config.check()?;
    let mut goods = teach::pictures_in(&args.good)?;
    if let Some(count) = args.few_shot {
        let all = goods.len();
        goods = teach::few::draw(goods, count, args.seed)?;
        let names: Vec<&str> = goods.iter().map(Good::name).collect();
        println!("{count} of {all} good parts, by seed {}: {}", args.seed, names.join(", "));
    }
    let loaded = patch_prototypes::load_backbone(&config.backbone)?;
    let plan = config.plan(goods, &loaded)?;
    check_memory(&plan, args.max_memory_gib)?;

    let engine = Engine::new(&engine::Config { threads: args.threads, ..Default::default() })?;
    let mut bars = Bars::default();
    let taught = teach::teach(&config, plan, loaded, &engine, &mut |step, done, total| {
        bars.show(step, done, total);
    })?;
    bars.finish();
    tell(&taught);
    let (card, out) = (taught.card.clone(), &args.out);
    taught.write(out, args.force)?;
    bundle::load(out, SEAL_BATCH, &engine).context("the bundle just written")?;

    let seconds = started.elapsed().as_secs_f64();
    let figures = Figures {
        images: card.training_data.taught + card.training_data.held_out,
        prototypes: card.memory_bank()?.count,
        seconds,
        peak_rss_mib: machine::peak_rss_mib()?,
    };
    println!(
        "wrote {} in {seconds:.1} s, peak memory {:.0} MiB",
        out.display(),
        figures.peak_rss_mib
    );
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&figures)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Batch of the seal that ends teaching; `run` seals again at its own.
const SEAL_BATCH: usize = 8;

fn check_memory(plan: &Plan, max_gib: Option<f64>) -> Result<()> {
    let thresholds = match plan.folds() {
        Some(folds) => format!("all taught, and scored in {folds} folds for the thresholds"),
        None => format!("{} of them held out for the thresholds", plan.held_out()),
    };
    println!("{} pictures, {thresholds}; memory needed {}", plan.pictures(), plan.arithmetic());
    let available = match max_gib {
        Some(gib) => {
            ensure!(gib > 0.0 && gib.is_finite(), "max-memory-gib = {gib}: must be above 0");
            (gib * f64::from(1 << 30)) as u64
        }
        None => machine::available_bytes()?,
    };
    plan.check_memory(available)
}

fn tell(taught: &Taught) {
    let Card { training_data, prototypes, threshold, calibration, .. } = &taught.card;
    for (name, why) in &taught.unreadable {
        println!("left out, can't be read: {name}: {why}");
    }
    for name in &taught.copies {
        println!("left out, same contents as another: {name}");
    }
    if let Some(bank) = prototypes {
        println!(
            "{} prototypes of {} patches ({} pictures)",
            bank.count, bank.patches, training_data.taught
        );
    }
    println!(
        "threshold {:.4} (map {:.4}): {}",
        threshold.score,
        threshold.map,
        promise(calibration)
    );
    if let Some(check) = &taught.precision {
        println!(
            "precision {}: image AUROC {:.4} in f32 and {:.4} in int8, map correlation {:.4} and more, \
             on {} good parts and {} with anomalies drawn on them",
            taught.card.precision.word(),
            check.auroc_f32,
            check.auroc_int8,
            check.map_correlation,
            check.goods,
            check.anomalies
        );
    }
    if taught.blot_score < threshold.score {
        println!(
            "WARNING: a good part with a blot on it scores {:.4}, below the threshold: this model \
             would miss large defects. Are defective parts among the good ones?",
            taught.blot_score
        );
    }
}

fn promise(calibration: &Calibration) -> String {
    let Calibration { rule, false_rejects, held_out, folds, needed, scores, .. } = calibration;
    let ppm = false_rejects * 1e6;
    let parts = match folds {
        Some(folds) => format!("{held_out} good parts scored in {folds} folds"),
        None => format!("{held_out} held-out good parts"),
    };
    match rule {
        Rule::Conformal => format!("at most {ppm:.0} ppm of good parts rejected, from {parts}"),
        Rule::Ranked => format!(
            "an estimate, no promise: {ppm:.0} ppm of good parts rejected, from {parts}; a promise \
             needs {needed} held-out good parts (--holdout)"
        ),
        Rule::Extrapolated => format!(
            "an estimate, no promise: have {parts}, need {needed} held-out ones for {ppm:.0} ppm; \
             theirs score {:.4} to {:.4}",
            scores.min, scores.max
        ),
    }
}

/// One bar a step, with the time left; plain lines where there is no terminal.
#[derive(Default)]
struct Bars {
    current: Option<(Step, ProgressBar)>,
}

impl Bars {
    fn show(&mut self, step: Step, done: usize, total: usize) {
        if self.current.as_ref().is_none_or(|(current, _)| *current != step) {
            self.finish();
            let bar = ProgressBar::new(total as u64).with_message(name(step)).with_style(
                ProgressStyle::with_template(
                    "{msg:<12} {wide_bar} {pos}/{len} {elapsed} gone, {eta} left",
                )
                .expect("the template is well-formed"),
            );
            if bar.is_hidden() {
                println!("{} ({total})", name(step));
            }
            self.current = Some((step, bar));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_position(done as u64);
        }
    }

    fn finish(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish();
        }
    }
}

fn name(step: Step) -> String {
    match step {
        Step::Features => "features".to_owned(),
        Step::Fold { fold, folds } => format!("fold {fold} of {folds}"),
        Step::Coreset => "prototypes".to_owned(),
        Step::Calibration => "calibration".to_owned(),
    }
}
