//! `inspectd eval`: how good a bundle is on a test set.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use inspectd::dataset::mvtec;
use inspectd::detector::bundle;
use inspectd::eval::report::Report;
use inspectd::eval::{Settings, evaluate, sheet};
use inspectd::nn::engine::{self, Engine};
use inspectd::picture;

/// Score a test set (MVTec AD layout) and report how well defects are told from good parts
#[derive(clap::Args)]
pub struct Args {
    /// The bundle that `inspectd teach` made
    #[arg(long)]
    bundle: PathBuf,
    /// Folder with test/good, test/<defect> and ground_truth/<defect>/<stem>_mask.png
    #[arg(long)]
    data: PathBuf,
    /// Write the figures to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the worst misses and worst false rejects to this file as one PNG picture
    #[arg(long)]
    sheet: Option<PathBuf>,
    /// Pictures scored at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Threads of an inference [default: all CPUs]
    #[arg(long)]
    threads: Option<usize>,
    /// Bits a sample that 16-bit files really carry: 10 or 12 for many cameras
    #[arg(long, value_name = "BITS", default_value_t = 16)]
    significant_bits: u32,
}

#[expect(clippy::disallowed_methods, reason = "a command measures its own run")]
pub fn run(args: &Args) -> Result<ExitCode> {
    let batch = usize::from(args.batch);
    let samples = mvtec::test(&args.data)?;
    let engine = Engine::new(&engine::Config { threads: args.threads, pin: false })?;
    let mut bundle = bundle::load(&args.bundle, batch, &engine)?;
    let settings = Settings {
        threshold: bundle.card.threshold.score,
        map_limit: bundle.card.threshold.map,
        batch,
        significant_bits: args.significant_bits,
    };

    let started = Instant::now();
    let bar = ProgressBar::new(samples.len() as u64).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} images, {eta} left")
            .expect("the template is well formed"),
    );
    let mut show = |done: usize| bar.set_position(done as u64);
    let evaluation = evaluate(bundle.detector.as_mut(), &samples, &settings, &mut show)?;
    bar.finish_and_clear();
    let report = Report {
        bundle: args.bundle.display().to_string(),
        data: args.data.display().to_string(),
        seconds: started.elapsed().as_secs_f64(),
        figures: evaluation.figures.clone(),
    };
    print!("{report}");

    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &args.sheet {
        let name = args.data.canonicalize().unwrap_or_else(|_| args.data.clone());
        let auroc = evaluation.figures.image_auroc;
        let title = format!(
            "{}: image AUROC {}, {} of {} defects escape, {} of {} good parts rejected",
            name.file_name().unwrap_or_default().to_string_lossy(),
            auroc.map_or_else(|| "n/a".to_owned(), |auroc| format!("{auroc:.4}")),
            evaluation.figures.escapes,
            evaluation.figures.defects,
            evaluation.figures.false_rejects,
            evaluation.figures.goods,
        );
        let sheet = sheet::sheet(bundle.detector.as_mut(), &evaluation, &settings, &title)?;
        fs::write(path, picture::rgb_png(&sheet)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
