//! What the daemon itself adds to an inspection: the real line, from a picture in hand to the signal
//! on the wire, around a detector that answers at once. Camera thread, queues, batching, judging,
//! tracker, ledger and Modbus are those of `inspectd run`; the log is off and nothing is archived.
//!
//! Pictures are rendered before the line starts and handed out at a steady rate, as a camera would.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use crossbeam_channel::{Sender, bounded};
use image::RgbImage;

use super::Samples;
use crate::camera::{CameraFault, FrameSource, Grab, Picture, pattern};
use crate::detector::{AnomalyMap, Detection, Detector};
use crate::frame::Image;
use crate::ledger::{self, Ledger};
use crate::output::log::LogOutput;
use crate::output::modbus::{self, Modbus};
use crate::output::{Controls, RejectOutput};
use crate::pipeline::{self, CameraSlot, Parts, Report, Tuning, now};
use crate::verdict::Limits;

/// Different pictures, handed out in turn.
const PICTURES: u64 = 8;

/// Sides of the detector's map, and of the square of it that is anomalous on a reject.
const MAP_SIDE: usize = 256;
const ANOMALY_SIDE: usize = 40;

/// One in so many parts is a reject.
const REJECT_EVERY: u64 = 10;

/// Time that a part has; none is late on a machine that can run the line at all.
const DECIDE_WITHIN: Duration = Duration::from_secs(1);

/// What passes.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Parts per second.
    pub rate_hz: f64,
    pub parts: u64,
    /// Most parts inspected in one go.
    pub batch: usize,
}

/// What was measured.
pub struct Overhead {
    /// From trigger to the return of the last wire's signal, the detector's time included.
    pub latency: Samples,
    /// What the detector that answers at once took of it.
    pub detector: Samples,
    pub report: Report,
}

/// Runs a line of these parts to its end, its ledger in a folder of its own below `folder`.
///
/// # Errors
/// A rate that can't be played, a folder or port that can't be used, a line that does not give every
/// part its verdict.
pub fn run(traffic: &Traffic, folder: &Path) -> Result<Overhead> {
    let source = pattern::Config {
        rate_hz: traffic.rate_hz,
        parts: Some(traffic.parts),
        ..pattern::Config::default()
    };
    source.check()?;
    let pictures = (0..PICTURES).map(|part| pattern::render(&source, part).0).collect();
    let camera = Rendered {
        pictures,
        period: Duration::from_secs_f64(1.0 / traffic.rate_hz),
        next: 0,
        parts: traffic.parts,
    };

    let folder = Scrap(folder.join(format!("inspectd-bench-{}", std::process::id())));
    let ledger = ledger::Config { folder: folder.0.clone(), max_gib: 1.0 };
    let ledger = Ledger::open(&ledger, SystemTime::now())?;
    let listen = ([127, 0, 0, 1], 0).into();
    let modbus =
        Modbus::bind(&modbus::Config { listen, ..Default::default() }, Controls::default())?;
    let outputs: Vec<Box<dyn RejectOutput>> = vec![Box::new(modbus), Box::<LogOutput>::default()];
    let (took, times) = bounded(usize::try_from(traffic.parts)?);
    let running = pipeline::start(Parts {
        queue: pipeline::Config { batch: traffic.batch, ..Default::default() },
        cameras: vec![CameraSlot {
            name: "bench".into(),
            open: Box::new(move || Ok(Box::new(camera.clone()))),
            detector: 0,
            web: None,
            tuning: Tuning {
                limits: Limits { threshold: 1.0, map_threshold: 1.0, regions: Vec::new() },
                decide_within: DECIDE_WITHIN,
                output_latency: Duration::from_millis(20),
            },
            triggers: None,
        }],
        detectors: vec![Box::new(Ready::new(took))],
        pin: false,
        outputs,
        ledger: Some(ledger),
        archive: None,
        alarms: Arc::default(),
    })?;
    while !running.finished() {
        thread::sleep(Duration::from_millis(20));
    }
    let report = running.stop()?;

    let tally = &report.tally;
    ensure!(tally.closed(), "the counters do not close: {tally:?}");
    let latencies = report.latency.recorded();
    let latency = latencies.flat_map(|(time, parts)| vec![time; parts as usize]).collect();
    let detector: Vec<Duration> = times.try_iter().collect();
    ensure!(!detector.is_empty(), "no part came to the detector: {tally:?}");
    Ok(Overhead { latency: Samples::new(latency), detector: Samples::new(detector), report })
}

/// A folder that goes when it is no longer needed.
struct Scrap(PathBuf);

impl Drop for Scrap {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            log::warn!("folder_left folder={} reason=\"{error}\"", self.0.display());
        }
    }
}

/// A camera whose pictures are there already.
#[derive(Clone)]
struct Rendered {
    pictures: Arc<[RgbImage]>,
    period: Duration,
    next: u64,
    parts: u64,
}

impl FrameSource for Rendered {
    fn grab(&mut self, _patience: Duration) -> Result<Grab, CameraFault> {
        if self.next == self.parts {
            return Ok(Grab::End);
        }
        let image = self.pictures[self.next as usize % self.pictures.len()].clone();
        let name = format!("part-{:06}", self.next);
        self.next += 1;
        Ok(Grab::Picture(Picture {
            image: Image::Rgb(image),
            name,
            captured_at: None,
            position: None,
            truth: None,
        }))
    }

    fn period(&self) -> Option<Duration> {
        Some(self.period)
    }
}

/// A detector that knows its answers; it says what it took itself to give them.
struct Ready {
    good: Detection,
    defect: Detection,
    seen: u64,
    took: Sender<Duration>,
}

impl Ready {
    fn new(took: Sender<Duration>) -> Self {
        let map = |anomaly: f32| {
            let mut scores = vec![0.1; MAP_SIDE * MAP_SIDE];
            for row in scores.chunks_exact_mut(MAP_SIDE).take(ANOMALY_SIDE) {
                row[..ANOMALY_SIDE].fill(anomaly);
            }
            AnomalyMap { width: MAP_SIDE, height: MAP_SIDE, scores }
        };
        let (good, defect) = (map(0.1), map(2.0));
        let detection = |score: f32, map: AnomalyMap| Detection { score, map };
        Self { good: detection(0.1, good), defect: detection(2.0, defect), seen: 0, took }
    }
}

impl Detector for Ready {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        let start = now();
        let answer = |_: &&Image| {
            self.seen += 1;
            let defect = self.seen.is_multiple_of(REJECT_EVERY);
            if defect { self.defect.clone() } else { self.good.clone() }
        };
        let answers = images.iter().map(answer).collect();
        self.took.send(now() - start).context("nobody asks for the times any more")?;
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_measured_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let traffic = Traffic { rate_hz: 500.0, parts: 30, batch: 2 };
        let overhead = run(&traffic, folder.path()).unwrap();
        assert_eq!(overhead.latency.runs(), 30);
        assert_eq!(overhead.report.tally.triggers, 30);
        assert_eq!(overhead.report.tally.uninspected(), 0, "{:?}", overhead.report.tally);
        assert_eq!(overhead.report.tally.rejected_total(), 3);
        assert!((15..=30).contains(&overhead.detector.runs()));
        assert!(overhead.detector.min() <= overhead.latency.quantile(1.0));
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_rate_that_cannot_be_played_is_refused() {
        let traffic = Traffic { rate_hz: 0.0, parts: 30, batch: 1 };
        let error = run(&traffic, Path::new("")).err().unwrap().to_string();
        assert!(error.contains("rate_hz = 0"), "{error}");
    }
}
