//! `inspectd demo`: the main job on an embedded default. Teaches on rendered good parts, runs the
//! whole way of a frame on parts with defects, and holds the verdicts against the known truth.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use inspectd::camera::pattern;
use inspectd::config::Config;
use inspectd::detector::input::Input;
use inspectd::detector::patch_prototypes;
use inspectd::journal;
use inspectd::nn::BackboneSpec;
use inspectd::nn::engine::{self, Engine};
use inspectd::output::{LineStatus, Outcome, RejectOutput};
use inspectd::pipeline::Report;
use inspectd::teach;
use inspectd::verdict::{Cause, Verdict};
use log::LevelFilter;
use serde_json::json;

use super::run::{Line, Signals, abort_on_panic};
use super::scratch::fresh_folder;

/// Learn rendered good parts, run a line with defects, serve Modbus on loopback, count.
#[derive(clap::Args)]
pub struct Args {
    /// Parts on the line.
    #[arg(long, default_value_t = 150)]
    parts: u64,
    /// Parts per second.
    #[arg(long, default_value_t = 5.0)]
    rate_hz: f64,
    /// Rendered good parts to learn from.
    #[arg(long, default_value_t = 80)]
    goods: u64,
    /// The chance of a part to have a defect.
    #[arg(long, default_value_t = 0.15)]
    defect_rate: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where Modbus is served; another port of the same address where this one is taken.
    #[arg(long, default_value = "127.0.0.1:1502")]
    modbus: SocketAddr,
    /// Where bundle, config, ledger and pictures go; replaced at each demo.
    #[arg(long, default_value = "inspectd-demo")]
    out: PathBuf,
    /// Write the figures here (docs/json.md).
    #[arg(long)]
    json: Option<PathBuf>,
}

pub fn run(args: &Args, level: LevelFilter) -> Result<()> {
    let _journal = journal::start(level)?;
    abort_on_panic();
    let signals = Signals::register()?;
    let out = fresh_folder(&args.out, "demo")?;
    let source = pattern::Config {
        rate_hz: args.rate_hz,
        parts: Some(args.parts),
        seed: args.seed,
        defect_rate: args.defect_rate,
        ..pattern::Config::default()
    };

    source.check()?;
    println!("learning from {} rendered good parts", args.goods);
    teach(args, &source, &out)?;

    let listen = free_address(args.modbus)?;
    let path = out.join("config.toml");
    fs::write(&path, config_text(args, listen))
        .with_context(|| format!("writing {}", path.display()))?;
    println!(
        "running {} parts at {} per second; verdicts on modbus://{listen}, rejects below",
        args.parts, args.rate_hz
    );
    let truth = Arc::new(Truth::default());
    let told = Told { truth: truth.clone() };
    let report = Line::assemble(Config::read(&path)?, vec![Box::new(told)])?.run(&signals, None)?;
    log::logger().flush();

    print_table(&report, &truth);
    println!("\nlook at        {}", out.join("rejects").display());
    println!("run it again   inspectd run --config {}", path.display());
    if let Some(path) = &args.json {
        fs::write(path, figures(&report, &truth).to_string())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    ensure!(report.tally.triggers > 0, "stopped before the first part");
    if !report.tally.closed() {
        bail!("the counters do not close: {:?}", report.tally);
    }
    Ok(())
}

/// Renders good parts of another seed than the line's, and teaches on them.
fn teach(args: &Args, source: &pattern::Config, out: &Path) -> Result<()> {
    let goods = out.join("goods");
    fs::create_dir(&goods).with_context(|| format!("making {}", goods.display()))?;
    let seed = args.seed.wrapping_add(1);
    let rendered = pattern::Config { seed, defect_rate: 0.0, ..source.clone() };
    for index in 0..args.goods {
        let path = goods.join(format!("{index:04}.png"));
        let (picture, _) = pattern::render(&rendered, index);
        picture.save(&path).with_context(|| format!("writing {}", path.display()))?;
    }
    let config = teach::Config {
        backbone: BackboneSpec::Compact,
        input: Input { width: 256, height: 256 },
        seed: args.seed,
        bank: teach::BankSize::Usual,
        holdout: teach::HoldOut::Auto,
        false_rejects: 0.001,
        significant_bits: 16,
        precision: teach::precision::Wanted::F32,
        tiles: None,
    };
    let loaded = patch_prototypes::load_backbone(&config.backbone)?;
    let plan = config.plan(teach::pictures_in(&goods)?, &loaded)?;
    let engine = Engine::new(&engine::Config::default())?;
    let taught = teach::teach(&config, plan, loaded, &engine, &mut |_, _, _| {})?;
    println!(
        "{} prototypes, threshold {:.3} from the scores of {} good parts",
        taught.card.memory_bank()?.count,
        taught.card.threshold.score,
        taught.card.calibration.held_out
    );
    taught.write(&out.join("bundle"), false)
}

/// The address wished for, or another port of it where that one is taken.
fn free_address(wished: SocketAddr) -> Result<SocketAddr> {
    for port in [wished.port(), 0] {
        let address = SocketAddr::new(wished.ip(), port);
        if let Ok(listener) = TcpListener::bind(address) {
            return listener.local_addr().context("asking for the port");
        }
    }
    bail!("--modbus {wished}: no port of this address can be listened on")
}

/// A real config file, so that the line can be run again and played with.
fn config_text(args: &Args, listen: SocketAddr) -> String {
    format!(
        "\
# Written by `inspectd demo`. Every key is explained in docs/config.md.
[line]
name = \"demo\"
bundle = \"bundle\"

[[camera]]
name = \"station\"

[camera.source]
kind = \"pattern\"
rate_hz = {:?}
parts = {}
seed = {}
defect_rate = {:?}

[camera.deadline]
travel_ms = 1000
output_latency_ms = 20

[output.modbus]
listen = \"{listen}\"

[ledger]
folder = \"ledger\"

[archive]
folder = \"rejects\"
max_gib = 1.0
",
        args.rate_hz, args.parts, args.seed, args.defect_rate
    )
}

/// What the parts really were against what was said of them.
#[derive(Debug, Default)]
struct Truth {
    goods: AtomicU64,
    defects: AtomicU64,
    /// Parts with a defect that were accepted.
    escapes: AtomicU64,
    /// Parts without a defect that were rejected for anomaly.
    false_rejects: AtomicU64,
}

/// A wire that knows the truth.
struct Told {
    truth: Arc<Truth>,
}

impl RejectOutput for Told {
    fn name(&self) -> &str {
        "truth"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        let Some(truth) = &outcome.truth else { return Ok(()) };
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match (truth.defect, outcome.verdict) {
            (Some(_), verdict) => {
                count(&self.truth.defects);
                if verdict == Verdict::Accept {
                    count(&self.truth.escapes);
                }
            }
            (None, verdict) => {
                count(&self.truth.goods);
                if verdict == Verdict::Reject(Cause::Anomaly) {
                    count(&self.truth.false_rejects);
                }
            }
        }
        Ok(())
    }

    fn beat(&mut self, _status: &LineStatus) -> Result<()> {
        Ok(())
    }
}

fn parts_per_s(report: &Report) -> f64 {
    let seconds = report.span.as_secs_f64();
    if seconds > 0.0 { report.tally.triggers as f64 / seconds } else { 0.0 }
}

/// The causes of parts that were not inspected, with their numbers.
fn uninspected(report: &Report) -> impl Iterator<Item = (Cause, u64)> {
    let tally = report.tally;
    let causes = Cause::ALL.into_iter().filter(|&cause| cause != Cause::Anomaly);
    causes.map(move |cause| (cause, tally.rejected_for(cause))).filter(|&(_, parts)| parts > 0)
}

fn print_table(report: &Report, truth: &Truth) {
    let tally = &report.tally;
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (accepted, rejected) = (tally.accepted, tally.rejected_total());
    let closed = if tally.closed() { "yes" } else { "NO" };
    println!();
    println!("parts          {}", tally.triggers);
    println!("accepted       {accepted}");
    println!("rejected       {rejected} ({} for anomaly)", tally.rejected_for(Cause::Anomaly));
    println!("uninspected    {}", tally.uninspected());
    for (cause, parts) in uninspected(report) {
        println!("  {cause:<16} {parts}");
    }
    println!("escapes        {} of {} with a defect", load(&truth.escapes), load(&truth.defects));
    println!("false rejects  {} of {} good", load(&truth.false_rejects), load(&truth.goods));
    println!(
        "latency        p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, from trigger to signal",
        report.latency.quantile_ms(0.5),
        report.latency.quantile_ms(0.99),
        report.latency.quantile_ms(0.999),
    );
    println!("throughput     {:.2} parts/s", parts_per_s(report));
    println!("counters close {closed}: {} = {accepted} + {rejected}", tally.triggers);
}

fn figures(report: &Report, truth: &Truth) -> serde_json::Value {
    let uninspected: serde_json::Map<String, serde_json::Value> =
        uninspected(report).map(|(cause, parts)| (cause.word().into(), parts.into())).collect();
    json!({
        "parts": report.tally.triggers,
        "accepted": report.tally.accepted,
        "rejected": report.tally.rejected_total(),
        "uninspected": uninspected,
        "escapes": truth.escapes.load(Ordering::Relaxed),
        "false_rejects": truth.false_rejects.load(Ordering::Relaxed),
        "latency_ms": {
            "p50": report.latency.quantile_ms(0.5),
            "p99": report.latency.quantile_ms(0.99),
            "p999": report.latency.quantile_ms(0.999),
        },
        "parts_per_s": parts_per_s(report),
        "closed": report.tally.closed(),
    })
}
