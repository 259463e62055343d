//! `inspectd bench`: what this machine does in which time (docs/performance.md).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use inspectd::bench::nets::Net;
use inspectd::bench::samples::milliseconds;
use inspectd::bench::{Samples, peak, samples};
use inspectd::nn::engine::Device;
use inspectd::nn::graph::Graph;
use inspectd::nn::plan::{Calibrator, Plan, Precision};
use inspectd::nn::weights::Weights;
use inspectd::ops::byte_simd::ByteIsa;
use inspectd::ops::simd::Isa;
use inspectd::ops::team::{self, Team};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use jobs::{Bench, Job};

use super::machine;

#[cfg(feature = "cuda")]
pub mod card;
mod jobs;

/// Time networks, layers, the search and the whole way of a picture on this machine
#[derive(clap::Args)]
pub struct Args {
    /// resnet18-layer3, resnet50-layer3, compact, destseg, ntsnet, prn or mlff, or search,
    /// patch_prototypes, metrics, line; again for more
    #[arg(long, default_values_t = ["resnet18-layer3".to_owned(), "compact".to_owned()])]
    net: Vec<String>,
    /// f32 or int8, of convolutions and of the search; again for both [default: f32 for networks,
    /// both for the search]
    #[arg(long)]
    precision: Vec<String>,
    /// Pictures at once; again for more
    #[arg(long, default_values_t = [1])]
    batch: Vec<usize>,
    /// Threads of an inference; again for more
    #[arg(long, default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Try and time a card instead: cuda:N or auto
    #[arg(long)]
    device: Option<Device>,
    /// Weights (safetensors or zip .pth); random ones where none are named
    #[arg(long)]
    weights: Option<PathBuf>,
    /// How long each is repeated
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Also time each layer
    #[arg(long)]
    layers: bool,
    /// Write the figures to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also write every single time to the JSON
    #[arg(long)]
    samples: bool,
    #[command(flatten)]
    jobs: jobs::Options,
}

/// One line of the table.
#[derive(Serialize)]
struct Figures {
    net: String,
    precision: &'static str,
    simd: &'static str,
    batch: usize,
    threads: usize,
    runs: usize,
    min_ms: f64,
    median_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    images_per_s: f64,
    /// Of the median, multiplications that Winograd saves counted.
    gflops: Option<f64>,
    peak_gflops: Option<f64>,
    arena_mib: Option<f64>,
    weights_mib: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    samples_ms: Option<Vec<f64>>,
}

/// Fewest runs that a figure rests on.
const LEAST_RUNS: usize = 5;

pub fn run(args: &Args) -> Result<()> {
    ensure!(
        args.seconds > 0.0 && args.seconds <= 3600.0,
        "seconds = {}: must be above 0, up to 3600",
        args.seconds
    );
    for threads in &args.threads {
        ensure!((1..=256).contains(threads), "threads = {threads}: must be from 1 to 256");
    }
    for batch in &args.batch {
        ensure!((1..=64).contains(batch), "batch = {batch}: must be from 1 to 64");
    }
    if let Some(device) = args.device.filter(|device| *device != Device::Cpu) {
        return write(args, &on_card(args, device)?);
    }
    let (nets, other_jobs) = jobs::told_apart(&args.net)?;
    let named: Vec<Precision> =
        args.precision.iter().map(|word| word.parse()).collect::<Result<_>>()?;
    let or = |usual: &[Precision]| if named.is_empty() { usual.to_vec() } else { named.clone() };
    let precisions = or(&[Precision::F32]);
    let scans = or(&[Precision::F32, Precision::Int8]);
    let isa = Isa::detect()?;
    println!("{}, {} CPUs, {} kernels", machine::cpu_model(), team::default_threads(), isa.word());
    println!(
        "{:17} {:>9} {:>5} {:>7} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}",
        "net",
        "precision",
        "batch",
        "threads",
        "min ms",
        "median",
        "p99",
        "images/s",
        "GFLOP/s",
        "of peak",
        "maps MiB",
        "weights"
    );
    let bench = Bench { args, isa, scans: &scans };
    let mut all = Vec::new();
    for &threads in &args.threads {
        let team = Arc::new(Team::new(threads, false)?);
        let peak = peak::measure(isa, &team, now);
        for &net in &nets {
            for (&batch, &precision) in
                args.batch.iter().flat_map(|batch| precisions.iter().map(move |p| (batch, p)))
            {
                let figures = time(args, (net, precision), batch, isa, &team, peak)
                    .with_context(|| format!("net {}", net.word()))?;
                all.push(figures);
            }
        }
        all.extend(bench.on(&team, peak, &other_jobs)?);
    }
    if other_jobs.contains(&Job::Line) {
        all.extend(bench.line()?);
    }
    write(args, &all)
}

fn write(args: &Args, all: &[Figures]) -> Result<()> {
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(all)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn on_card(args: &Args, device: Device) -> Result<Vec<Figures>> {
    card::run(args, device)
}

#[cfg(not(feature = "cuda"))]
fn on_card(_: &Args, device: Device) -> Result<Vec<Figures>> {
    anyhow::bail!("--device {device}: this inspectd was built without the feature cuda")
}

fn time(
    args: &Args,
    (net, precision): (Net, Precision),
    batch: usize,
    isa: Isa,
    team: &Arc<Team>,
    peak: f64,
) -> Result<Figures> {
    let graph = net.graph()?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let weights = match &args.weights {
        Some(path) => Weights::open(path)?,
        None => graph.random_weights(&mut rng)?,
    };
    let dims = graph.nodes()[0].dims;
    let pixels: Vec<f32> =
        (0..batch * 3 * dims.height * dims.width).map(|_| rng.random_range(-2.0..2.0)).collect();
    let mut plan = match precision {
        // What the line would run: bytes only where they are the faster.
        Precision::Int8 if ByteIsa::of(isa).pays() => {
            quantized(&graph, &weights, batch, isa, team, &pixels)?
        }
        Precision::F32 | Precision::Int8 => Plan::new(&graph, &weights, batch, isa, team.clone())?,
    };
    drop(weights);
    let planes = plan.planes();
    planes.write(&pixels, plan.pixels());

    let mut outcome = Ok(());
    let samples = samples::repeat(args.seconds, LEAST_RUNS, now, || {
        if let Err(error) = plan.run() {
            outcome = Err(error);
        }
    });
    outcome?;
    let gflops = plan.flops() / samples.median().as_secs_f64() / 1e9;
    let figures = Figures {
        net: net.word().to_owned(),
        precision: plan.precision().word(),
        simd: isa.word(),
        batch,
        threads: team.threads(),
        runs: samples.runs(),
        min_ms: milliseconds(samples.min()),
        median_ms: milliseconds(samples.median()),
        p99_ms: milliseconds(samples.quantile(0.99)),
        p999_ms: milliseconds(samples.quantile(0.999)),
        images_per_s: batch as f64 / samples.median().as_secs_f64(),
        gflops: Some(gflops),
        peak_gflops: Some(peak / 1e9),
        arena_mib: Some(mib(plan.arena_bytes())),
        weights_mib: Some(mib(plan.weight_bytes())),
        samples_ms: args.samples.then(|| samples.milliseconds()),
    };
    println!(
        "{:17} {:>9} {:>5} {:>7} {:>9.3} {:>9.3} {:>9.3} {:>9.1} {:>8.0} {:>7.0}% {:>9.1} {:>8.1}",
        figures.net,
        figures.precision,
        batch,
        figures.threads,
        figures.min_ms,
        figures.median_ms,
        figures.p99_ms,
        figures.images_per_s,
        gflops,
        100e9 * gflops / peak,
        mib(plan.arena_bytes()),
        mib(plan.weight_bytes())
    );
    if args.layers {
        layers(args, &mut plan, peak)?;
    }
    Ok(figures)
}

/// In int8, its steps found on the first of the pictures that it is timed with.
fn quantized(
    graph: &Graph,
    weights: &Weights,
    batch: usize,
    isa: Isa,
    team: &Arc<Team>,
    pixels: &[f32],
) -> Result<Plan> {
    let mut calibrator = Calibrator::new(graph, weights, isa, team.clone())?;
    let planes = calibrator.planes();
    planes.write(&pixels[..pixels.len() / batch], calibrator.pixels());
    calibrator.observe()?;
    let quantization = calibrator.finish()?;
    Plan::quantized(graph, weights, &quantization, batch, isa, team.clone())
}

/// Each layer's fastest time of many runs.
fn layers(args: &Args, plan: &mut Plan, peak: f64) -> Result<()> {
    let layers = plan.layers();
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); layers.len()];
    let begun = now();
    while (now() - begun).as_secs_f64() < args.seconds || times[0].len() < LEAST_RUNS {
        let mut last = now();
        plan.run_steps(|step| {
            let done = now();
            times[step].push(done - last);
            last = done;
        })?;
    }
    println!(
        "  {:38} {:9} {:>18} {:>9} {:>9} {:>8} {:>8}",
        "layer", "kernel", "makes", "min ms", "median", "GFLOP/s", "of peak"
    );
    for (layer, times) in layers.iter().zip(times) {
        let samples = Samples::new(times);
        let rate = layer.flops / samples.min().as_secs_f64();
        let shape = layer.shape;
        println!(
            "  {:38} {:9} {:>18} {:>9.4} {:>9.4} {:>8.0} {:>7.0}%",
            layer.name,
            layer.kernel,
            format!("{}×{}×{}", shape.channels, shape.height, shape.width),
            milliseconds(samples.min()),
            milliseconds(samples.median()),
            rate / 1e9,
            100.0 * rate / peak
        );
    }
    Ok(())
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}
