//! What `--net` can name besides a network: the search, the whole way of a picture, the pixel figures
//! of a test set, the line.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use inspectd::bench::line::Traffic;
use inspectd::bench::metrics::{MAPS, Maps};
use inspectd::bench::nets::Net;
use inspectd::bench::samples::{self, milliseconds};
use inspectd::bench::search::{self, Search};
use inspectd::bench::{Samples, histogram, line, patches};
use inspectd::detector::Detector;
use inspectd::frame::Image;
use inspectd::nn::engine::Engine;
use inspectd::nn::plan::Precision;
use inspectd::ops::nearest_prototype::Scan;
use inspectd::ops::simd::Isa;
use inspectd::ops::team::Team;
use log::LevelFilter;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Figures, LEAST_RUNS, now};

#[derive(clap::Args)]
pub struct Options {
    /// For search and patch_prototypes: safetensors with prototypes [N, D]; for search also
    /// queries [Q, D]
    #[arg(long)]
    bank: Option<PathBuf>,
    /// For patch_prototypes: rows of the memory bank [default: 3000, or all of --bank]
    #[arg(long)]
    bank_size: Option<usize>,
    /// For patch_prototypes: compact, resnet18, resnet50 and so on with random weights, or
    /// resnet18:FILE
    #[arg(long, default_value = "compact")]
    backbone: String,
    /// For patch_prototypes: a folder of pictures to inspect; rendered parts where none is named
    #[arg(long)]
    pictures: Option<PathBuf>,
    /// For metrics: safetensors with scores [M, P] and masks [M, P] of 0 and 1; square maps
    #[arg(long)]
    maps: Option<PathBuf>,
    /// For line: parts per second
    #[arg(long, default_value_t = 100.0)]
    rate_hz: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Job {
    Search,
    PatchPrototypes,
    Metrics,
    Line,
}

impl Job {
    const ALL: [Self; 4] = [Self::Search, Self::PatchPrototypes, Self::Metrics, Self::Line];

    fn word(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::PatchPrototypes => "patch_prototypes",
            Self::Metrics => "metrics",
            Self::Line => "line",
        }
    }
}

/// The networks and the other jobs among the words of `--net`.
pub fn told_apart(words: &[String]) -> Result<(Vec<Net>, Vec<Job>)> {
    let (mut nets, mut jobs) = (Vec::new(), Vec::new());
    for word in words {
        match (Net::of(word), Job::ALL.into_iter().find(|job| job.word() == word)) {
            (Some(net), _) => nets.push(net),
            (None, Some(job)) => jobs.push(job),
            (None, None) => {
                let nets = Net::ALL.into_iter().map(Net::word);
                let known: Vec<_> = nets.chain(Job::ALL.into_iter().map(Job::word)).collect();
                bail!("net {word}: not known; say one of {}", known.join(", "))
            }
        }
    }
    Ok((nets, jobs))
}

/// Where and how long everything is timed.
pub struct Bench<'a> {
    pub args: &'a super::Args,
    pub isa: Isa,
    /// Of the search.
    pub scans: &'a [Precision],
}

impl Bench<'_> {
    /// The jobs whose work a team does.
    pub fn on(&self, team: &Arc<Team>, peak: f64, jobs: &[Job]) -> Result<Vec<Figures>> {
        let mut all = Vec::new();
        if jobs.contains(&Job::Search) {
            all.extend(self.search(team, peak).context("net search")?);
        }
        if jobs.contains(&Job::PatchPrototypes) {
            all.extend(self.patch_prototypes(team, peak).context("net patch_prototypes")?);
        }
        if jobs.contains(&Job::Metrics) {
            all.push(self.metrics(team.threads()).context("net metrics")?);
        }
        Ok(all)
    }

    /// The threads are not the team's, which is for inference, but as many.
    fn metrics(&self, threads: usize) -> Result<Figures> {
        let maps = match &self.args.jobs.maps {
            Some(path) => Maps::open(path)?,
            None => Maps::random(MAPS, &mut ChaCha8Rng::seed_from_u64(0)),
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let samples = pool.install(|| self.repeat(|| maps.figures().map(drop)))?;
        let figures = Figures {
            precision: "none",
            peak_gflops: None,
            ..self.figures("metrics", (maps.len(), threads), &samples, 0.0)
        };
        let found = maps.figures()?;
        let what =
            format!("{} maps of {} pixels, {} regions", maps.len(), maps.pixels(), found.regions);
        say(&figures, &what);
        let [auroc, ap] = [found.auroc, found.average_precision]
            .map(|figure| figure.map_or_else(|| "n/a".to_owned(), |figure| format!("{figure:.9}")));
        println!("  pixel AUROC {auroc}, pixel AP {ap}");
        Ok(figures)
    }

    fn search(&self, team: &Team, peak: f64) -> Result<Vec<Figures>> {
        let search = match &self.args.jobs.bank {
            Some(path) => Search::open(path)?,
            None => Search::random(&mut ChaCha8Rng::seed_from_u64(0)),
        };
        let (queries, dims, count) = (search.queries(), search.dims(), search.count());
        let mut exact = search.ready(Scan::F32, self.isa)?;
        let mut sketched = search.ready(Scan::Int8, self.isa)?;
        ensure!(exact.run(team)? == sketched.run(team)?, "the two scans differ in what they find");
        let mut all = Vec::new();
        for (scan, ready) in [(Scan::F32, &mut exact), (Scan::Int8, &mut sketched)] {
            let precision = search::word(scan);
            if !self.scans.iter().any(|scan| scan.word() == precision) {
                continue;
            }
            let samples = self.repeat(|| ready.run(team).map(drop))?;
            let flops = search.flops() / samples.median().as_secs_f64();
            let figures = Figures {
                precision,
                gflops: Some(flops / 1e9),
                ..self.figures("search", (1, team.threads()), &samples, peak)
            };
            say(&figures, &format!("{precision}, {queries} × {dims} against {count}"));
            all.push(figures);
        }
        println!("  both scans find the same prototypes at the same distances, to the bit");
        Ok(all)
    }

    fn patch_prototypes(&self, team: &Arc<Team>, peak: f64) -> Result<Vec<Figures>> {
        let engine = Engine { isa: self.isa, team: team.clone(), gpus: None };
        self.patch_prototypes_on(&engine, peak)
    }

    /// The whole way of a picture, on the engine's team or card.
    pub fn patch_prototypes_on(&self, engine: &Engine, peak: f64) -> Result<Vec<Figures>> {
        ensure!(
            !self.args.precision.iter().any(|word| word == Precision::Int8.word()),
            "patch_prototypes is timed in f32: the scales of int8 are measured on good parts, by \
             `inspectd teach --precision int8`"
        );
        let Options { bank, bank_size, backbone, pictures, .. } = &self.args.jobs;
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut features = patches::features(&patches::backbone(backbone, &mut rng)?, engine)?;
        let bank = match bank {
            Some(path) => patches::bank_of(path, *bank_size)?,
            None => {
                let count = bank_size.unwrap_or(patches::USUAL_BANK);
                patches::bank(&mut features, count, &mut rng)?
            }
        };
        let count = bank.len() / features.dims();
        let mut detector = patches::detector(features, bank)?;
        let pictures = match pictures {
            Some(folder) => patches::pictures_of(folder)?,
            None => patches::pictures(),
        };
        let mut all = Vec::new();
        for &batch in &self.args.batch {
            let mut turn = pictures.iter().cycle();
            let samples = self.repeat(|| {
                let images: Vec<&Image> = turn.by_ref().take(batch).collect();
                detector.detect(&images).map(drop)
            })?;
            let figures =
                self.figures("patch_prototypes", (batch, engine.team.threads()), &samples, peak);
            let (width, height) = (pictures[0].width(), pictures[0].height());
            let what =
                format!("{backbone}, {count} prototypes, {batch} of {width} × {height} pixels");
            say(&figures, &what);
            all.push(figures);
        }
        Ok(all)
    }

    /// The daemon around a detector that answers at once; its threads are its own.
    pub fn line(&self) -> Result<Vec<Figures>> {
        let rate_hz = self.args.jobs.rate_hz;
        let parts = (self.args.seconds * rate_hz).ceil().max(LEAST_RUNS as f64) as u64;
        let level = log::max_level();
        let mut all = Vec::new();
        for &batch in &self.args.batch {
            // What is off is not formatted either: the log's writer is no part of this.
            log::set_max_level(LevelFilter::Off);
            let overhead = line::run(&Traffic { rate_hz, parts, batch }, &env::temp_dir());
            log::set_max_level(level);
            let overhead = overhead.context("net line")?;
            let samples = &overhead.latency;
            let report = &overhead.report;
            let figures = Figures {
                precision: "none",
                images_per_s: parts as f64 / report.span.as_secs_f64(),
                peak_gflops: None,
                ..self.figures("line", (batch, 1), samples, 0.0)
            };
            say(&figures, &format!("{parts} parts at {rate_hz}/s, trigger to signal"));
            print!("{}", histogram::bars(samples));
            println!(
                "  the slowest {:.3} ms; of it all, the stand-in for a detector median {:.3} ms, \
                 p99.9 {:.3} ms; {} parts were not inspected",
                milliseconds(samples.quantile(1.0)),
                milliseconds(overhead.detector.median()),
                milliseconds(overhead.detector.quantile(0.999)),
                report.tally.uninspected()
            );
            all.push(figures);
        }
        Ok(all)
    }

    /// Times of `work` for as long as asked for.
    fn repeat(&self, mut work: impl FnMut() -> Result<()>) -> Result<Samples> {
        let mut outcome = Ok(());
        let samples = samples::repeat(self.args.seconds, LEAST_RUNS, now, || {
            if outcome.is_ok() {
                outcome = work();
            }
        });
        outcome.map(|()| samples)
    }

    pub fn figures(
        &self,
        net: &str,
        (batch, threads): (usize, usize),
        samples: &Samples,
        peak: f64,
    ) -> Figures {
        Figures {
            net: net.to_owned(),
            precision: "f32",
            simd: self.isa.word(),
            batch,
            threads,
            runs: samples.runs(),
            min_ms: milliseconds(samples.min()),
            median_ms: milliseconds(samples.median()),
            p99_ms: milliseconds(samples.quantile(0.99)),
            p999_ms: milliseconds(samples.quantile(0.999)),
            images_per_s: batch as f64 / samples.median().as_secs_f64(),
            gflops: None,
            peak_gflops: Some(peak / 1e9),
            arena_mib: None,
            weights_mib: None,
            samples_ms: self.args.samples.then(|| samples.milliseconds()),
        }
    }
}

fn say(figures: &Figures, what: &str) {
    println!("{}, threads {}: {what}", figures.net, figures.threads);
    println!(
        "  min {:.3} ms, median {:.3}, p99 {:.3}, p99.9 {:.3}, {:.1} images/s, {} runs",
        figures.min_ms,
        figures.median_ms,
        figures.p99_ms,
        figures.p999_ms,
        figures.images_per_s,
        figures.runs
    );
}
