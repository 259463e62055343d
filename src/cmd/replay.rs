//! `inspectd replay`: the parts that a line kept, judged again by another model or other limits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use inspectd::archive;
use inspectd::camera::folder;
use inspectd::config::Config;
use inspectd::detector::bundle;
use inspectd::detector::tiles::{self, Tiles};
use inspectd::nn::engine::{self, Device, Engine};
use inspectd::output::Recorded;
use inspectd::picture::{self as pictures, overlay, sheet};
use inspectd::replay::{ARCHIVED_BITS, Candidate, Change, Now, Replayed, picture};
use inspectd::unfinished::Unfinished;
use inspectd::verdict::{self, Judge, Limits};
use serde_json::json;

/// Judge the pictures that a line kept again: which verdicts another model or limit would change
#[derive(clap::Args)]
pub struct Args {
    /// The line's config: its archive, and bundle and limits of each camera [default: config.toml,
    /// unless both --archive and --bundle are given]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The archive's folder [default: the config's]
    #[arg(long, value_name = "DIR")]
    archive: Option<PathBuf>,
    /// The model to judge with [default: each camera's own]
    #[arg(long, value_name = "BUNDLE")]
    bundle: Option<PathBuf>,
    /// Image score at or above which a part is rejected [default: the camera's, else the bundle's]
    #[arg(long, value_name = "SCORE")]
    threshold: Option<f32>,
    /// The same for places of the map, where regions are set
    #[arg(long, value_name = "SCORE")]
    map_threshold: Option<f32>,
    /// Parts of this camera only
    #[arg(long, value_name = "NAME")]
    camera: Option<String>,
    /// From this day on, UTC
    #[arg(long, value_name = "2026-05-04")]
    from: Option<String>,
    /// To this day
    #[arg(long, value_name = "2026-05-04")]
    to: Option<String>,
    /// Folder to make: flips.jsonl, a line a part whose verdict changes, and sheet.png of the first
    /// of them
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the figures as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Threads [default: all CPUs]
    #[arg(long)]
    threads: Option<usize>,
    /// What computes: cpu, cuda:N or auto [default: the config's, else cpu]
    #[arg(long)]
    device: Option<Device>,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(out) = &args.out {
        ensure!(
            out.symlink_metadata().is_err(),
            "{} is already there: choose another name",
            out.display()
        );
    }
    let config = config(args)?;
    let archive = match (&args.archive, &config) {
        (Some(folder), _) => folder.clone(),
        (None, Some(Config { archive: Some(archive), .. })) => archive.folder.clone(),
        _ => bail!("the config has no [archive], so that the line kept no pictures; see --archive"),
    };
    let within = |day: &str| {
        args.from.as_deref().is_none_or(|from| day >= from)
            && args.to.as_deref().is_none_or(|to| day <= to)
    };
    let mut recordings = archive::read(&archive, within)?;
    for line in &recordings.damaged {
        println!("left out: {line}");
    }
    if let Some(camera) = &args.camera {
        recordings.parts.retain(|recorded| recorded.camera == *camera);
    }
    ensure!(
        !recordings.parts.is_empty(),
        "{} has no part of {} between these days",
        archive.display(),
        args.camera.as_deref().unwrap_or("any camera")
    );

    let mut models = Models::new(args, config.as_ref())?;
    let count = recordings.parts.len();
    let mut replayed = Vec::with_capacity(count);
    for recorded in recordings.parts {
        let mut candidate = models.candidate(&recorded.camera)?;
        replayed.push(candidate.replay(&archive, recorded));
    }
    let mut flips: Vec<&Replayed> = replayed.iter().filter(|one| one.change().is_flip()).collect();
    for one in &flips {
        println!("{}", line(one));
    }
    for one in replayed.iter().filter(|one| matches!(one.now, Now::Failed(_))) {
        println!("{}", line(one));
    }
    let counts = counts(&replayed);
    println!("{count} parts of {}:", archive.display());
    for (change, count) in &counts {
        println!("{count:8}  {}", change.words());
    }
    if let Some(path) = &args.json {
        let figures = figures(&archive, &counts, &replayed);
        fs::write(path, format!("{figures}\n"))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(out) = &args.out {
        // What changed most is looked at first.
        flips.sort_by(|a, b| {
            let size = |one: &Replayed| one.margin().unwrap_or(0.0).abs();
            size(b).total_cmp(&size(a))
        });
        write(out, &archive, &flips, &mut models)?;
        println!("wrote {}", out.display());
    }
    Ok(())
}

fn config(args: &Args) -> Result<Option<Config>> {
    let needed = args.archive.is_none() || args.bundle.is_none();
    let path = match &args.config {
        Some(path) => path.clone(),
        None if needed => PathBuf::from("config.toml"),
        None => return Ok(None),
    };
    Config::read(&path).map(Some)
}

/// A bundle, and how its pictures are cut into tiles.
type Key = (PathBuf, Option<tiles::Config>);

/// The detector of each bundle, loaded when it is first asked for, and each camera's judge.
struct Models<'a> {
    args: &'a Args,
    config: Option<&'a Config>,
    engine: Engine,
    bundles: BTreeMap<Key, bundle::Bundle>,
    judges: BTreeMap<String, Judge>,
}

impl<'a> Models<'a> {
    fn new(args: &'a Args, config: Option<&'a Config>) -> Result<Models<'a>> {
        let own = config.map(|config| config.inference.device);
        let engine = Engine::new(&engine::Config {
            threads: args.threads,
            device: args.device.or(own).unwrap_or_default(),
            ..Default::default()
        })?;
        Ok(Models { args, config, engine, bundles: BTreeMap::new(), judges: BTreeMap::new() })
    }

    fn candidate(&mut self, camera: &str) -> Result<Candidate<'_>> {
        let at = self.config.and_then(|config| {
            config.cameras.iter().position(|known| known.name == camera).map(|i| (config, i))
        });
        let path = match (&self.args.bundle, at) {
            (Some(bundle), _) => bundle.clone(),
            (None, Some((config, i))) => config.bundle_of(i).to_owned(),
            (None, None) => bail!(
                "camera {camera} of the archive is not in the config: say with --bundle what its \
                 parts are to be judged by, or choose others with --camera"
            ),
        };
        let tiles = at.and_then(|(config, i)| config.cameras[i].tiles.clone());
        let key = (path, tiles);
        if !self.bundles.contains_key(&key) {
            let bundle::Bundle { card, detector } = bundle::load(&key.0, 1, &self.engine)?;
            // Parts of a camera that is gone are cut as the bundle wants it.
            let layout = match at {
                Some(_) => tiles::agreed(card.tiles, key.1.as_ref())
                    .with_context(|| format!("camera \"{camera}\", bundle {}", key.0.display()))?,
                None => card.tiles,
            };
            let detector = Tiles::around(layout, detector);
            self.bundles.insert(key.clone(), bundle::Bundle { card, detector });
        }
        let bundle = self.bundles.get_mut(&key).context("a bundle just loaded")?;
        if !self.judges.contains_key(camera) {
            let own = at.map(|(config, i)| config.cameras[i].limits.clone()).unwrap_or_default();
            // Limits are in the units of the model that they were set for.
            let kept = if self.args.bundle.is_some() && self.args.threshold.is_none() {
                verdict::Config { threshold: None, map_threshold: None, ..own }
            } else {
                own
            };
            let limits = verdict::Config {
                threshold: self.args.threshold.or(kept.threshold),
                map_threshold: self.args.map_threshold.or(kept.map_threshold),
                ..kept
            };
            limits.check()?;
            let card = &bundle.card.threshold;
            self.judges
                .insert(camera.to_owned(), Judge::new(Limits::new(&limits, card.score, card.map)));
        }
        let judge = self.judges.get_mut(camera).context("a judge just made")?;
        Ok(Candidate { detector: bundle.detector.as_mut(), judge })
    }
}

fn counts(replayed: &[Replayed]) -> BTreeMap<Change, usize> {
    let mut counts: BTreeMap<Change, usize> = Change::ALL.into_iter().map(|c| (c, 0)).collect();
    for one in replayed {
        *counts.entry(one.change()).or_default() += 1;
    }
    counts
}

/// `key=value`, as the log writes.
fn line(one: &Replayed) -> String {
    let Recorded { time, part, camera, .. } = &one.recorded;
    let number = |value: Option<f32>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    let (then, now) = (&one.recorded, &one.now);
    let said = match now {
        Now::Judged(now) => {
            format!("score={:.4} threshold={:.4}", now.score, now.threshold)
        }
        Now::NoPicture => "no picture was taken".to_owned(),
        Now::PictureGone => "the picture is gone".to_owned(),
        Now::Failed(why) => why.clone(),
    };
    format!(
        "time={time} part={part} camera={camera} change=\"{}\" {said} score_then={} threshold_then={}",
        one.change().words(),
        number(then.score),
        number(then.threshold)
    )
}

fn figures(
    archive: &Path,
    counts: &BTreeMap<Change, usize>,
    replayed: &[Replayed],
) -> serde_json::Value {
    // How far the same model is from what it said on the line.
    let moved = replayed.iter().filter_map(|one| match (&one.now, one.recorded.score) {
        (Now::Judged(now), Some(then)) => Some((now.score - then).abs()),
        _ => None,
    });
    json!({
        "archive": archive.display().to_string(),
        "parts": replayed.len(),
        "changes": counts,
        "largest_score_change": moved.reduce(f32::max),
    })
}

/// Most flips on the sheet.
const SHOWN: usize = 24;
const COLUMNS: u32 = 3;

fn write(out: &Path, archive: &Path, flips: &[&Replayed], models: &mut Models<'_>) -> Result<()> {
    let unfinished = Unfinished::beside(out)?;
    let mut lines = String::new();
    for one in flips {
        let judged = match &one.now {
            Now::Judged(now) => json!({
                "score": now.score,
                "threshold": now.threshold,
                "region": now.region,
            }),
            _ => serde_json::Value::Null,
        };
        let object = json!({ "change": one.change(), "then": one.recorded, "now": judged });
        lines += &format!("{object}\n");
    }
    let list = unfinished.path().join("flips.jsonl");
    fs::write(&list, lines).with_context(|| format!("writing {}", list.display()))?;
    let mut sections = Vec::new();
    for change in Change::ALL.into_iter().filter(|change| change.is_flip()) {
        let own: Vec<&&Replayed> = flips.iter().filter(|one| one.change() == change).collect();
        if own.is_empty() {
            continue;
        }
        let tiles = own.iter().take(SHOWN).map(|one| tile(archive, one, models));
        sections.push(sheet::Section {
            heading: format!("{}: {}", change.words(), own.len()),
            tiles: tiles.collect::<Result<_>>()?,
        });
    }
    if !sections.is_empty() {
        let drawn = sheet::Sheet {
            title: "What would change".to_owned(),
            legend: "left: as kept; right: the candidate's map at or above its limit".to_owned(),
            columns: COLUMNS,
            sections,
        };
        let path = unfinished.path().join("sheet.png");
        fs::write(&path, pictures::rgb_png(&drawn.draw())?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    unfinished.take_the_place_of(out)
}

fn tile(archive: &Path, one: &Replayed, models: &mut Models<'_>) -> Result<sheet::Tile> {
    let path = picture(archive, &one.recorded).context("a flip has a picture")?;
    let kept = folder::read(&path, ARCHIVED_BITS)?;
    let mut candidate = models.candidate(&one.recorded.camera)?;
    let detection = candidate.detect(&kept)?;
    let limit = candidate.judge.limits().map_threshold;
    let small = sheet::shrink(&kept.to_rgb(), sheet::SIDE);
    let (width, height) = small.dimensions();
    let region = overlay::peak_box(&detection.map, limit, width, height);
    let shown = inspectd::frame::Image::Rgb(small.clone());
    let (word, colour) = match &one.now {
        Now::Judged(now) if now.score < now.threshold => {
            (format!("{:.2} < {:.2}", now.score, now.threshold), sheet::RIGHT)
        }
        Now::Judged(now) => (format!("{:.2} >= {:.2}", now.score, now.threshold), sheet::WRONG),
        _ => (String::new(), sheet::INK),
    };
    Ok(sheet::Tile {
        left: small,
        right: overlay::overlay(&shown, &detection.map, limit, region),
        name: format!("{} {}", one.recorded.camera, one.recorded.part),
        word,
        colour,
    })
}
