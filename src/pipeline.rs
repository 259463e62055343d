//! The threads and queues of the line, and its clock. A thread or a clock elsewhere (the log's
//! writer, the reader of a USB camera, the Modbus wire, commands that time themselves) carries its
//! reason where it stands.
//!
//! ```text
//!  camera-0..n ──frames──▶ infer ──┐
//!       └────────events────────────┴──▶ output ──evidence──▶ archive
//! ```
//! Every queue is bounded. What happens when one is full:
//! - `frames`: the newest part is rejected at once as `QueueFull`; it will not be inspected and the
//!   PLC must know now.
//! - `events`: the sender waits. No event is lost; the output thread stands still, so the heartbeat
//!   to the PLC stops and the PLC rejects meanwhile.
//! - `evidence`: the picture is not kept; the loss is counted. The verdict is out already.
//!
//! The end comes from left to right: cameras stop, their senders drop, the queues empty and close.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};
use serde::Deserialize;

use crate::archive::Archive;
use crate::camera::{CameraFault, FrameSource};
use crate::detector::{Detection, Detector};
use crate::frame::{Frame, FrameId, PartId, Truth};
use crate::ledger::{Ledger, Resumed};
use crate::output::{RejectOutput, Tally};
use crate::telemetry::{Counters, Latency, Progress, StandingAlarms};
use crate::tracker::Place;
use crate::trigger::Triggers;
use crate::verdict::web::{self, Web};
use crate::verdict::{Anomaly, Cause, Limits, Region, Verdict};

mod archive;
mod camera;
mod infer;
mod output;

/// The clock of the line. Logic takes the time as an argument.
#[expect(clippy::disallowed_methods, reason = "the clock itself; commands and threads read it")]
pub fn now() -> Instant {
    Instant::now()
}

/// Starts a named thread.
#[expect(clippy::disallowed_methods, reason = "the threads of the line are started here")]
fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .with_context(|| format!("starting thread {name}"))
}

/// `[queue]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Parts that may wait for the detector; the next one is rejected as `queue_full`.
    pub frames: usize,
    /// Most parts inspected in one go; fewer where a deadline would be missed.
    pub batch: usize,
    /// Rejects whose pictures may wait for the disk; the next one's picture is not kept.
    pub evidence: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { frames: 32, batch: 4, evidence: 64 }
    }
}

impl Config {
    /// Refuses sizes that cannot work; the text names the keys.
    pub fn check(&self) -> Result<()> {
        let Config { frames, batch, evidence } = *self;
        for (key, value, most) in
            [("frames", frames, 4096), ("batch", batch, 64), ("evidence", evidence, 4096)]
        {
            if value == 0 || value > most {
                bail!("queue.{key} = {value} must lie between 1 and {most}");
            }
        }
        if batch > frames {
            bail!(
                "queue.batch = {batch} is more than queue.frames = {frames}; a batch is taken \
                 from the queue"
            );
        }
        Ok(())
    }
}

/// Opens a camera, also again after it was lost. Runs on the camera's own thread.
pub type Opener = Box<dyn FnMut() -> Result<Box<dyn FrameSource>, CameraFault> + Send>;

/// One camera as the line needs it.
pub struct CameraSlot {
    pub name: Arc<str>,
    pub open: Opener,
    /// Index into [`Parts::detectors`].
    pub detector: usize,
    /// Where its parts are blocks of a web: defects are put together over them.
    pub web: Option<web::Config>,
    pub tuning: Tuning,
    /// What makes its parts; `None`: each picture is one.
    pub triggers: Option<Triggers>,
}

/// What may change for a camera while the line runs.
#[derive(Clone, Debug)]
pub struct Tuning {
    pub limits: Limits,
    /// From the trigger to the decision time.
    pub decide_within: Duration,
    /// From the decision time to the moment the ejector must act.
    pub output_latency: Duration,
}

/// Everything a line is made of.
pub struct Parts {
    pub queue: Config,
    pub cameras: Vec<CameraSlot>,
    pub detectors: Vec<Box<dyn Detector>>,
    /// Keep the infer thread, the first of the detectors' team, to a CPU of its own.
    pub pin: bool,
    pub outputs: Vec<Box<dyn RejectOutput>>,
    /// Without a ledger part ids start at 1 and nothing is recorded: tests only.
    pub ledger: Option<(Ledger, Resumed)>,
    pub archive: Option<Archive>,
    /// What stands at the gate, by whoever watches it.
    pub alarms: Arc<StandingAlarms>,
}

/// What travels to the output thread.
enum Event {
    /// A part exists. Always precedes every other event of the part: both go through one queue.
    Triggered {
        part: PartId,
        frame: FrameId,
        name: Arc<str>,
        captured_at: Instant,
        place: Place,
        truth: Option<Truth>,
    },
    /// The part went through the detector, or was turned away with its picture in hand.
    Judged(Box<Inspection>),
    /// The part has no picture.
    Lost { part: PartId, cause: Cause, reason: Arc<str> },
    /// New limits and deadlines, one per camera.
    Retune(Vec<Tuning>),
}

/// A part with its picture after the detector.
struct Inspection {
    frame: Frame,
    verdict: Verdict,
    grounds: Grounds,
    detection: Option<Detection>,
}

/// What a verdict rests on.
#[derive(Default)]
struct Grounds {
    score: Option<f32>,
    threshold: Option<f32>,
    region: Option<Region>,
    reason: Option<Arc<str>>,
    /// All that was found, where the part is a block of a web.
    anomalies: Vec<Anomaly>,
}

impl Grounds {
    fn of(reason: impl Into<Arc<str>>) -> Grounds {
        Grounds { reason: Some(reason.into()), ..Grounds::default() }
    }
}

impl Inspection {
    /// A part that was not inspected and rejects for `cause`.
    fn without(frame: Frame, cause: Cause, reason: &str) -> Inspection {
        let verdict = Verdict::Reject(cause);
        Inspection { frame, verdict, grounds: Grounds::of(reason), detection: None }
    }
}

/// The figures of a line since its start.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Parts of this start only; [`crate::output::LineStatus`] carries the ledger's totals.
    pub tally: Tally,
    /// From trigger to the return of the last wire's signal, over all parts.
    pub latency: Latency,
    /// From the first trigger to the last verdict.
    pub span: Duration,
    pub late_verdicts: u64,
    pub evidence_lost: u64,
    /// Signals that a wire did not take.
    pub wire_faults: u64,
}

/// A line that is running.
pub struct Running {
    /// Dropped to stop the cameras.
    stop: Option<Sender<()>>,
    services_stop: Arc<AtomicBool>,
    cameras: Vec<JoinHandle<()>>,
    infer: JoinHandle<()>,
    output: JoinHandle<Report>,
    archive: JoinHandle<()>,
    services: Vec<JoinHandle<()>>,
    retune_infer: Sender<Vec<Tuning>>,
    retune_output: Option<Sender<Event>>,
    stages: Vec<(String, Progress)>,
    counters: Arc<Counters>,
}

/// Starts all threads. Cameras open on their own threads and report through the counters.
pub fn start(parts: Parts) -> Result<Running> {
    let Parts { queue, cameras, detectors, pin, mut outputs, ledger, archive, alarms } = parts;
    queue.check()?;
    ensure!(!cameras.is_empty(), "a line needs at least one camera");
    ensure!(cameras.len() <= usize::from(u16::MAX), "too many cameras");
    for slot in &cameras {
        ensure!(slot.detector < detectors.len(), "camera {} has no detector", slot.name);
    }

    let (ledger, resumed) = ledger.map_or((None, None), |(l, r)| (Some(l), Some(r)));
    let next_part = resumed.as_ref().map_or(1, |resumed| resumed.next_part.0);
    let counters = Arc::new(Counters::new(next_part, cameras.len()));
    let tunings: Vec<Tuning> = cameras.iter().map(|slot| slot.tuning.clone()).collect();
    let names: Vec<Arc<str>> = cameras.iter().map(|slot| slot.name.clone()).collect();

    let (stop, stopped) = bounded::<()>(0);
    let (frames_in, frames) = bounded::<Frame>(queue.frames);
    let (events_in, events) = bounded::<Event>(4 * queue.frames + 64);
    let (retune_infer, retuned) = bounded::<Vec<Tuning>>(4);
    let mut stages = Vec::new();
    let mut stage = |name: &str| {
        let progress = Progress::default();
        stages.push((name.to_owned(), progress.clone()));
        progress
    };

    let services_stop = Arc::new(AtomicBool::new(false));
    let mut services = Vec::new();
    for output in &mut outputs {
        if let Some(service) = output.service() {
            let name = format!("wire-{}", output.name());
            let stop = services_stop.clone();
            let progress = stage(&name);
            services.push(spawn(&name, move || service(&stop, &progress))?);
        }
    }

    let (evidence_in, evidence) = bounded(queue.evidence);
    let keeping = archive.as_ref().map(|archive| archive.config().clone());
    let sync = ledger.as_ref().map(Ledger::sync);
    let archive = {
        let counters = counters.clone();
        spawn("archive", move || archive::run(archive, sync, &evidence, &counters))?
    };

    let web = |slot: &CameraSlot| {
        slot.web.as_ref().map(|config| Web::new(config.clone(), slot.name.clone()))
    };
    let output = output::Output::new(output::Setup {
        cameras: names,
        webs: cameras.iter().map(web).collect(),
        tunings: tunings.clone(),
        outputs,
        ledger,
        resumed,
        evidence: evidence_in,
        keeping,
        triggered: cameras.iter().all(|slot| slot.triggers.is_some()),
        alarms,
        counters: counters.clone(),
        progress: stage("output"),
    });
    let output = spawn("output", move || output.run(&events))?;

    let infer = infer::Infer {
        detectors,
        pin,
        detector_of: cameras.iter().map(|slot| slot.detector).collect(),
        is_web: cameras.iter().map(|slot| slot.web.is_some()).collect(),
        batch: queue.batch,
        progress: stage("infer"),
        counters: counters.clone(),
    };
    let infer_events = events_in.clone();
    let infer = spawn("infer", move || infer.run(&frames, &retuned, &infer_events, &tunings))?;

    let mut camera_threads = Vec::new();
    for (index, slot) in cameras.into_iter().enumerate() {
        let body = camera::Camera {
            index: index as u16,
            name: slot.name,
            open: slot.open,
            triggers: slot.triggers,
            frames: frames_in.clone(),
            events: events_in.clone(),
            stopped: stopped.clone(),
            counters: counters.clone(),
            progress: stage(&format!("camera-{index}")),
        };
        camera_threads.push(spawn(&format!("camera-{index}"), move || body.run())?);
    }

    Ok(Running {
        stop: Some(stop),
        services_stop,
        cameras: camera_threads,
        infer,
        output,
        archive,
        services,
        retune_infer,
        retune_output: Some(events_in),
        stages,
        counters,
    })
}

impl Running {
    /// Each stage on the verdict's way with its sign of life, for the watchdog.
    pub fn stages(&self) -> Vec<(String, Progress)> {
        self.stages.clone()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// True when every camera has come to its end by itself (a folder played once).
    pub fn finished(&self) -> bool {
        self.cameras.iter().all(JoinHandle::is_finished)
    }

    /// New limits and deadlines, one per camera in config order. Parts judged from now on follow
    /// them; none is lost.
    pub fn retune(&self, tunings: Vec<Tuning>) -> Result<()> {
        ensure!(tunings.len() == self.cameras.len(), "one tuning per camera is needed");
        self.retune_infer.try_send(tunings.clone()).map_err(|_| {
            anyhow!("the detector has not taken the previous reload yet; try again")
        })?;
        if let Some(output) = &self.retune_output {
            output.send(Event::Retune(tunings)).map_err(|_| anyhow!("the line has ended"))?;
        }
        Ok(())
    }

    /// Stops triggering, waits until every part has its verdict and every thread has ended.
    pub fn stop(mut self) -> Result<Report> {
        self.stop = None;
        self.retune_output = None;
        let died = |stage: &str| anyhow!("the {stage} thread panicked");
        for camera in self.cameras {
            camera.join().map_err(|_| died("camera"))?;
        }
        self.infer.join().map_err(|_| died("infer"))?;
        let report = self.output.join().map_err(|_| died("output"))?;
        // The wires serve on until the last verdict is in them.
        self.services_stop.store(true, Ordering::SeqCst);
        for service in self.services {
            service.join().map_err(|_| died("wire"))?;
        }
        self.archive.join().map_err(|_| died("archive"))?;
        Ok(Report { evidence_lost: self.counters.evidence_lost.load(Ordering::Relaxed), ..report })
    }
}

/// Waits until `until` or until the line stops; true when it stops.
fn wait(stopped: &Receiver<()>, until: Instant) -> bool {
    matches!(stopped.recv_deadline(until), Err(crossbeam_channel::RecvTimeoutError::Disconnected))
}
