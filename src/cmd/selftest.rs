//! `inspectd selftest`: the daemon on a simulated line on which things go wrong.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use inspectd::nn::engine::Device;
use inspectd::selftest::{self, Fault, Figures, Settings};

use super::scratch::fresh_folder;

/// A simulated conveyor with camera, encoder, gate and PLC around the real daemon, over sockets on
/// loopback, while things go wrong; counts broken promises and ends with 1 if there was one.
#[derive(clap::Args)]
pub struct Args {
    /// How long parts come.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Parts per second.
    #[arg(long, default_value_t = 20.0)]
    rate_hz: f64,
    /// What goes wrong, in turn, such as half_frame,daemon_killed; all, or none.
    #[arg(long, value_name = "FAULTS", default_value = "all", value_delimiter = ',')]
    faults: Vec<String>,
    /// Seconds from the end of a fault to the next.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pause: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Try a card instead, cuda:N or auto: every kernel and network against the CPU.
    #[arg(long)]
    device: Option<Device>,
    /// Where bundle, config, ledger and the daemon's log go; replaced at each selftest.
    #[arg(long, default_value = "inspectd-selftest")]
    out: PathBuf,
    /// Write the figures here (docs/json.md).
    #[arg(long)]
    json: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(device) = args.device.filter(|device| *device != Device::Cpu) {
        return try_card(device);
    }
    ensure!(
        (1.0..=1e6).contains(&args.seconds),
        "--seconds {} is not in 1..=1000000",
        args.seconds
    );
    ensure!((0.0..=3600.0).contains(&args.pause), "--pause {} is not in 0..=3600", args.pause);
    let settings = Settings {
        duration: Duration::from_secs_f64(args.seconds),
        rate_hz: args.rate_hz,
        seed: args.seed,
        faults: faults(&args.faults)?,
        pause: Duration::from_secs_f64(args.pause),
        // The daemon is started from elsewhere.
        folder: fresh_folder(&args.out, "selftest")?.canonicalize().context("finding --out")?,
        program: std::env::current_exe().context("finding this program")?,
    };
    let figures = selftest::run(&settings, &mut |line| println!("{line}"))?;
    print(&figures);
    println!("\nthe daemon's log     {}", args.out.join("daemon.log").display());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&figures).context("the figures as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    ensure!(figures.violations == 0, "the promise was broken {} times", figures.violations);
    Ok(())
}

#[cfg(feature = "cuda")]
fn try_card(device: Device) -> Result<()> {
    use super::bench::card;
    card::try_card(&card::open(device)?)
}

#[cfg(not(feature = "cuda"))]
fn try_card(device: Device) -> Result<()> {
    anyhow::bail!("--device {device}: this inspectd was built without the feature cuda")
}

fn faults(words: &[String]) -> Result<Vec<Fault>> {
    match words {
        [word] if word == "all" => Ok(Fault::value_variants().to_vec()),
        [word] if word == "none" => Ok(Vec::new()),
        words => words
            .iter()
            .map(|word| {
                Fault::from_str(word, false).map_err(|_| {
                    let known: Vec<&str> =
                        Fault::value_variants().iter().map(|fault| fault.word()).collect();
                    anyhow::anyhow!(
                        "--faults {word}: there is no such fault; all, none, or of {}",
                        known.join(", ")
                    )
                })
            })
            .collect(),
    }
}

fn print(figures: &Figures) {
    let Figures { gate, latency_ms, rss_mib, .. } = figures;
    println!("\nparts              {} in {:.0} s", figures.parts, figures.seconds);
    println!("  good, passed       {}", gate.good_passed);
    println!("  good, rejected     {} at faults", gate.good_rejected_at_faults);
    println!("                     {} otherwise", gate.good_rejected_otherwise);
    println!("  defects            {} rejected", gate.defects_rejected);
    println!("  not inspected      {} rejected", gate.uninspected_rejected);
    println!("faults");
    for (fault, times) in &figures.faults {
        println!("  {fault:<19}{times}");
    }
    println!(
        "results              {} read by the PLC, {} overrun",
        figures.results_read, figures.results_overrun
    );
    println!(
        "latency              p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, most {:.1} ms",
        latency_ms.p50, latency_ms.p99, latency_ms.p999, latency_ms.max
    );
    println!(
        "memory               {:.1} MiB at the start, {:.1} MiB at the end; {} starts",
        rss_mib.start, rss_mib.end, figures.daemon_starts
    );
    println!("violations           {}", figures.violations);
    for broken in figures.broken.iter().take(20) {
        println!("  {broken}");
    }
}
