//! `inspectd bench --device`: a card's kernels held against the CPU, then timed; then the whole way
//! of a picture.

use anyhow::{Context as _, Result, ensure};
use inspectd::bench::card::{all_cases, try_all};
use inspectd::bench::nets::Net;
use inspectd::bench::samples::{self, milliseconds};
use inspectd::bench::{Samples, patches};
use inspectd::cuda::cases::{self, Case};
use inspectd::cuda::detectors::{Each, Gpus};
use inspectd::cuda::driver::{About, Card, Context};
use inspectd::cuda::{Gpu, Prepared};
use inspectd::detector::input;
use inspectd::nn::engine::{Config, Device, Engine};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::jobs::{self, Bench, Job};
use super::{Args, Figures, LEAST_RUNS, now};

/// Runs of a kernel that are timed together, since one is near what a card's clock tells apart.
const TOGETHER: usize = 20;
/// Such times, of which the median counts.
const TIMES: usize = 15;

/// Opens a card.
///
/// # Errors
/// It can't be used; the CPU was asked for.
pub fn open(device: Device) -> Result<Context> {
    match device {
        Device::Cuda(ordinal) => Context::open(ordinal),
        Device::Auto => Context::first(),
        Device::Cpu => anyhow::bail!("--device cpu: there is no card to try"),
    }
}

/// Every kernel and network on this card against the CPU.
///
/// # Errors
/// One is not what the CPU makes of it.
pub fn try_card(context: &Context) -> Result<()> {
    let engine = Engine::new(&Config::default())?;
    println!("{}", context.about());
    println!("\nagainst the CPU: largest difference, of what it may be, relative to the largest");
    let cases = all_cases()?;
    let mut card = Card::new(context)?;
    let failed = try_all(&mut card, &engine, &cases, &mut |line| println!("{line}"));
    ensure!(
        failed == 0,
        "{failed} of {} cases are not what the CPU makes of them: do not use this card",
        cases.len()
    );
    println!("all {} cases are what the CPU makes of them", cases.len());
    Ok(())
}

pub(super) fn run(args: &Args, device: Device) -> Result<Vec<Figures>> {
    let context = open(device)?;
    try_card(&context)?;
    let engine = Engine::new(&Config::default())?;
    let mut card = Card::new(&context)?;
    println!("\n{:76} {:>9} {:>9} {:>9} {:>9}", "kernel", "µs", "GB/s", "TFLOP/s", "roofline");
    for case in cases::line() {
        time(&mut card, &case, &engine).with_context(|| case.name.clone())?;
    }
    drop(card);

    println!("\nfrom pixels in memory to maps in memory, one picture at a time");
    let (nets, jobs) = jobs::told_apart(&args.net)?;
    let about = context.about().to_string();
    let gpus = std::sync::Arc::new(Each { about, make: move || Card::new(&context) });
    let engine = engine.on(gpus.clone());
    let bench = Bench { args, isa: engine.isa, scans: &[] };
    let mut all = Vec::new();
    for net in nets {
        let samples = network(args, net, gpus.as_ref()).with_context(|| net.word())?;
        let figures = bench.figures(net.word(), (1, 1), &samples, 0.0);
        say(net.word(), &samples);
        all.push(Figures { simd: "cuda", peak_gflops: None, ..figures });
    }
    if jobs.contains(&Job::PatchPrototypes) {
        all.extend(bench.patch_prototypes_on(&engine, 0.0)?);
    }
    Ok(all)
}

/// Times a kernel by the card's clock. What it reads may lie in the card's cache, as on a line.
fn time(card: &mut Card, case: &Case, engine: &Engine) -> Result<()> {
    let work = case.lay_out(card, engine)?;
    let prepared = Prepared::new(work.launches.clone());
    // The first goes one by one, the second is recorded.
    (0..3).try_for_each(|_| card.run(&prepared))?;
    let mut times = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let milliseconds =
            card.timed(|card| (0..TOGETHER).try_for_each(|_| card.run(&prepared)))?;
        times.push(f64::from(milliseconds) * 1e-3 / TOGETHER as f64);
    }
    card.forget(prepared);
    times.sort_by(f64::total_cmp);
    let seconds = times[TIMES / 2];
    let roofline = least_seconds(card.about(), work.bytes, work.f32_flops())
        .map_or_else(|| "-".to_owned(), |least| format!("{:.0}%", 100.0 * least / seconds));
    let rate = |amount: f64, unit: f64| match amount {
        0.0 => "-".to_owned(),
        amount => format!("{:.1}", amount / seconds / unit),
    };
    println!(
        "{:76} {:>9.1} {:>9} {:>9} {:>9}",
        case.name,
        seconds * 1e6,
        rate(work.bytes, 1e9),
        rate(work.flops, 1e12),
        roofline
    );
    Ok(())
}

/// What the card takes at least for that, by its clocks and widths.
fn least_seconds(about: &About, bytes: f64, flops: f64) -> Option<f64> {
    let (bytes_per_s, flops_per_s) = (about.bytes_per_s()?, about.f32_flops_per_s()?);
    Some((bytes / bytes_per_s).max(flops / flops_per_s))
}

/// A network from a picture to its maps.
fn network(args: &Args, net: Net, gpus: &dyn Gpus) -> Result<Samples> {
    let graph = net.graph()?;
    let weights = graph.random_weights(&mut ChaCha8Rng::seed_from_u64(0))?;
    let mut maps = gpus.network(&graph, &weights)?;
    let pictures = patches::pictures();
    let mut turn = pictures.iter().cycle();
    let mut outcome = Ok(());
    let samples = samples::repeat(args.seconds, LEAST_RUNS, now, || {
        let image = turn.next().expect("a cycle of pictures");
        let mut inspect = || {
            maps.run(&input::pixels(image)?)?;
            (0..maps.shapes().len()).try_for_each(|i| maps.read(i).map(drop))
        };
        if outcome.is_ok() {
            outcome = inspect();
        }
    });
    outcome.map(|()| samples)
}

fn say(net: &str, samples: &Samples) {
    println!(
        "{net:17} min {:.3} ms, median {:.3}, p99 {:.3}, {} runs",
        milliseconds(samples.min()),
        milliseconds(samples.median()),
        milliseconds(samples.quantile(0.99)),
        samples.runs()
    );
}
