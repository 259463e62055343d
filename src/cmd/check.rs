//! `inspectd check`: would this config arm? For people and for `ExecStartPre`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use inspectd::config::Config;
use inspectd::detector::bundle;
use inspectd::detector::tiles::{self, Tiles};
use inspectd::nn::engine::Engine;

use super::run::{check_timing, time_inspection, timed_with};

/// Read the config, load its bundles, time an inspection; touch no camera, no PLC, no ledger.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    let config = Config::read(&args.config)?;
    let engine = Engine::new(&config.inference)?;
    println!("inference on {}", engine.place());
    let mut inspections = Vec::new();
    for (index, camera) in config.cameras.iter().enumerate() {
        let folder = config.bundle_of(index);
        let bundle = bundle::load(folder, config.queue.batch, &engine)?;
        let layout = tiles::agreed(bundle.card.tiles, camera.tiles.as_ref())
            .with_context(|| format!("camera \"{}\", bundle {}", camera.name, folder.display()))?;
        let mut detector = Tiles::around(layout, bundle.detector);
        let timing = time_inspection(detector.as_mut(), timed_with(camera))?;
        let tiles = camera.tiles.as_ref().map(|tiles| {
            let [width, height] = tiles.picture_px;
            format!(" of {width} × {height} pixels, {} tiles", tiles.layout().count(width, height))
        });
        println!(
            "camera {}: {} from {}, threshold {}; an inspection{} takes {:.1} ms; {}",
            camera.name,
            bundle.card.system,
            folder.display(),
            camera.limits.threshold.unwrap_or(bundle.card.threshold.score),
            tiles.unwrap_or_default(),
            timing.median.as_secs_f64() * 1000.0,
            camera.deadline.arithmetic(),
        );
        inspections.push(timing);
    }
    check_timing(&config, &inspections)?;
    println!("{} is fine", args.config.display());
    Ok(())
}
