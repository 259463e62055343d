//! `inspectd check`: would this config arm? For people and for `ExecStartPre`.

use std::path::PathBuf;

use anyhow::Result;
use inspectd::config::Config;
use inspectd::detector::bundle;
use inspectd::nn::engine::Engine;

use super::run::{check_timing, time_inspection};

/// Read the config, load its bundles, time an inspection; touch no camera, no PLC, no ledger.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    let config = Config::read(&args.config)?;
    let engine = Engine::new(&config.inference)?;
    let mut inspections = Vec::new();
    for (index, camera) in config.cameras.iter().enumerate() {
        let folder = config.bundle_of(index);
        let mut bundle = bundle::load(folder, config.queue.batch, &engine)?;
        let timing = time_inspection(bundle.detector.as_mut())?;
        println!(
            "camera {}: {} from {}, threshold {}; an inspection takes {:.1} ms; {}",
            camera.name,
            bundle.card.system,
            folder.display(),
            camera.limits.threshold.unwrap_or(bundle.card.threshold.score),
            timing.median.as_secs_f64() * 1000.0,
            camera.deadline.arithmetic(),
        );
        inspections.push(timing);
    }
    check_timing(&config, &inspections)?;
    println!("{} is fine", args.config.display());
    Ok(())
}
