//! `inspectd train`: a data set in, a bundle of one of the published systems out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use inspectd::dataset::{self, Category, Purpose, pictures::Pictures};
use inspectd::detector::bundle::{self, BackboneCard};
use inspectd::detector::input::Input;
use inspectd::nn::BackboneSpec;
use inspectd::nn::engine::{self, Engine};
use inspectd::synth::source::Source;
use inspectd::synth::{SampleKey, Tag};
use inspectd::teach::Good;
use inspectd::train::finish::{self, Goods, Origin};
use inspectd::train::{self, Budget};
use rand::seq::SliceRandom;

use self::systems::{Config, Given, Prepared, Word};

mod systems;

/// Train DeSTSeg, NTSNet, PRN or MLFF on good parts, PRN on some defects too
#[derive(clap::Args)]
pub struct Args {
    /// destseg, ntsnet, prn or mlff
    #[arg(long)]
    system: Word,

    /// A category of a data set (docs/datasets.md); learned from are its good parts
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Folder to make, the bundle; losses and checkpoint come into BUNDLE.training beside it
    #[arg(long, value_name = "BUNDLE")]
    out: PathBuf,

    /// The teacher: compact (built in), resnet18:FILE or resnet34:FILE; for mlff the network that it
    /// begins with: resnet50:FILE (the paper's), resnet34:FILE or resnet18:FILE
    #[arg(long, default_value = "compact")]
    backbone: BackboneSpec,

    /// Pictures that corruptions are made of, DTD or any folder [default: drawn textures]
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,

    /// TOML file with a table [destseg], [ntsnet], [prn] or [mlff]: schedule, ablations, what the papers
    /// leave open
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Defects of the test set that prn learns from, drawn by the seed; eval leaves them out
    /// [default: the paper's 10]
    #[arg(long, value_name = "N")]
    seen: Option<usize>,

    /// Text file with these defects' names, a line each, instead of a draw (docs/train.md)
    #[arg(long, value_name = "FILE")]
    seen_list: Option<PathBuf>,

    /// What every draw comes from; same seed, pictures and threads: same bytes
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Steps of the whole schedule, the phases keeping their shares [default: the paper's]
    #[arg(long)]
    steps: Option<u64>,

    /// Pictures of a step [default: the paper's, 32 or of prn 64]
    #[arg(long)]
    batch: Option<usize>,

    /// End after this time, with a bundle of what is learned by then; --resume goes on
    #[arg(long)]
    minutes: Option<f64>,

    /// Go on where an interrupted run stood
    #[arg(long)]
    resume: bool,

    /// Keep this share of the good parts for the thresholds
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    holdout: f64,

    /// Rate of good parts that may be rejected; 0.001 is 1000 ppm
    #[arg(long, value_name = "RATE", default_value_t = 0.001)]
    false_rejects: f64,

    /// Side of the square that the model sees, pixels; a multiple of 32, of prn of 128
    #[arg(long, value_name = "PIXELS", default_value_t = 256)]
    size: usize,

    /// Bits a sample that 16-bit files really carry: 10 or 12 for many cameras
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    significant_bits: u32,

    /// Memory for decoded pictures
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    cache_mib: usize,

    /// Threads [default: all CPUs]
    #[arg(long)]
    threads: Option<usize>,

    /// Replace a bundle that is already there
    #[arg(long)]
    force: bool,
}

#[expect(clippy::disallowed_methods, reason = "a command measures its own run")]
pub fn run(args: &Args) -> Result<()> {
    bundle::check_place(&args.out, args.force || args.resume)?;
    ensure!(
        args.holdout > 0.0 && args.holdout <= 0.8,
        "holdout = {}: must be a share above 0 and up to 0.8 (0.2 is usual)",
        args.holdout
    );
    let minutes = args.minutes.unwrap_or(0.0);
    ensure!(minutes.is_finite() && minutes >= 0.0, "minutes = {minutes}: must be above 0");
    let category = category(args)?;
    let config = Config::read(args.config.as_deref())?;
    let input = Input { width: args.size, height: args.size };
    input.check()?;
    args.system.check(args, input)?;
    let backbone = args.system.backbone(&args.backbone)?;
    let engine = Engine::new(&engine::Config { threads: args.threads, ..Default::default() })?;
    let source = Arc::new(Source::open(args.source.as_deref())?);

    let (taught, held_out) = split(&category, args);
    let paths = |goods: &[Good]| goods.iter().filter_map(|good| good.path().cloned()).collect();
    let mut pictures = Pictures::open(
        paths(&taught),
        (args.size, args.size),
        args.cache_mib << 20,
        args.significant_bits,
    )?;
    for (path, why) in pictures.scan()? {
        println!("left out, can't be read: {}: {why}", path.display());
    }
    println!(
        "{}: {} good parts to learn from, {} held out for the thresholds; {}",
        category.name,
        pictures.len(),
        held_out.len(),
        pictures.words()
    );
    let pictures = Arc::new(pictures);

    let given = Given {
        args,
        config,
        category: &category,
        backbone: &backbone,
        input,
        pictures,
        source: Arc::clone(&source),
        engine: &engine,
    };
    let Prepared { mut trainee, system, settings, seen_anomalies, advice } =
        args.system.prepare(given)?;
    let folder = args.out.with_added_extension("training");
    let budget = Budget {
        time: args.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
        save_every: SAVE_EVERY,
        resume: args.resume,
        description: format!(
            "seed = {}\nsize = {}\nthreads = {}\nholdout = {}\nbackbone = {} {}\nsource = {}\n{settings}",
            args.seed,
            args.size,
            engine.team.threads(),
            args.holdout,
            args.backbone.word(),
            backbone.sha256(),
            source.words(),
        ),
        folder: folder.clone(),
    };
    let bar = bar(trainee.steps());
    let mut warned = false;
    let ended =
        train::run(trainee.as_mut(), &budget, &Instant::now, &mut |done, all, losses_of| {
            bar.set_position(done);
            let losses: Vec<String> =
                losses_of.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
            let losses = losses.join(", ");
            if bar.is_hidden() && (done % TOLD_EVERY == 0 || done == all) {
                println!("step {done} of {all}: {losses}");
            }
            if let (Some(advice), false) = (advice(losses_of), warned) {
                warned = true;
                bar.suspend(|| println!("WARNING: step {done}: {advice}"));
            }
            bar.set_message(losses);
        })?;
    bar.finish_and_clear();
    println!(
        "{} of {} steps{}, {} of them now in {:.0} s; maps of {} MiB; losses: {}",
        ended.steps,
        trainee.steps(),
        if ended.whole { "" } else { " (ended before; --resume goes on)" },
        ended.own_steps,
        ended.time.as_secs_f64(),
        trainee.bytes() >> 20,
        folder.join("losses.csv").display()
    );
    ensure!(ended.steps > 0, "no step was made: there is nothing to make a bundle of");

    let origin = Origin {
        system,
        input,
        backbone: BackboneCard {
            network: args.backbone.word().to_owned(),
            sha256: backbone.sha256().to_owned(),
        },
        seed: args.seed,
        significant_bits: args.significant_bits,
        training: Some(bundle::Training { steps: ended.steps, schedule: trainee.steps() }),
        seen_anomalies,
    };
    let goods = Goods { taught: &taught, held_out: &held_out };
    let finished =
        finish::finish(trainee.parameters(), &origin, &goods, args.false_rejects, &engine)?;
    let weights = trainee.parameters().tensors()?;
    drop(trainee);
    let replace = args.force || args.resume;
    bundle::write(&args.out, finished.card, &weights, &finished.golden, replace)?;
    let bundle = bundle::load(&args.out, 1, &engine).context("the bundle just written")?;
    println!(
        "wrote {}, threshold {:.4} ({:?}, from {} held-out good parts)",
        args.out.display(),
        bundle.card.threshold.score,
        bundle.card.calibration.rule,
        bundle.card.calibration.held_out
    );
    Ok(())
}

/// Between checkpoints: what an interruption may cost.
const SAVE_EVERY: Duration = Duration::from_secs(120);

/// Steps between lines where there is no terminal.
const TOLD_EVERY: u64 = 20;

fn category(args: &Args) -> Result<Category> {
    let mut found = dataset::find_for(&args.data, Purpose::Teaching)?;
    ensure!(
        found.len() == 1,
        "{} holds {} categories ({}, …); a network learns one: give its folder",
        args.data.display(),
        found.len(),
        found[0].name
    );
    let category = found.remove(0);
    for oddity in &category.oddities {
        println!("note: {oddity}");
    }
    Ok(category)
}

/// Good parts to learn from, and those kept for the thresholds.
fn split(category: &Category, args: &Args) -> (Vec<Good>, Vec<Good>) {
    let mut goods: Vec<Good> = category
        .train
        .iter()
        .map(|sample| Good::File { name: sample.name.clone(), path: sample.path.clone() })
        .collect();
    let key = SampleKey { seed: args.seed, epoch: 0, index: HOLDOUT };
    goods.shuffle(&mut key.rng(Tag::Order));
    let held_out = ((goods.len() as f64 * args.holdout).round() as usize).max(2).min(goods.len());
    let taught = goods.split_off(held_out);
    (taught, goods)
}

/// The draw of held-out pictures, apart from those of epochs.
const HOLDOUT: u64 = u64::MAX - 1;

fn bar(steps: u64) -> ProgressBar {
    ProgressBar::new(steps).with_style(
        ProgressStyle::with_template("{wide_bar} {pos}/{len} {elapsed} gone, {eta} left  {msg}")
            .expect("the template is well-formed"),
    )
}
