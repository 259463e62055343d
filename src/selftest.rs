//! The factory in a box: a simulated belt with camera, encoder, gate and PLC around the real daemon,
//! over real sockets, while things go wrong. It counts how often the promise was broken.
//!
//! ```text
//!  plant ─frames─▶ camera (GigE Vision, UDP) ─▶ ┌──────────────┐ ─▶ PLC (Modbus TCP client)
//!    ▲                                          │ inspectd run │
//!    └─ gate, encoder ── station (Modbus TCP) ◀▶ └──────────────┘
//! ```
//! The daemon is a process of its own, so that it can be stopped and killed. What the plant knows and
//! the daemon does not: which part lies where, and whether its picture was delivered whole. That is
//! what the verdicts are held against at the gate.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

mod camera;
mod daemon;
mod fault;
mod plant;
mod plc;
mod station;
mod teaching;

pub use fault::Fault;

use daemon::Daemon;
use plant::{Plant, Yield};
use plc::Heard;

/// What to play.
pub struct Settings {
    pub duration: Duration,
    /// Parts per second.
    pub rate_hz: f64,
    pub seed: u64,
    /// Kinds of faults, played in turn with a pause between; empty: nothing goes wrong.
    pub faults: Vec<Fault>,
    /// From the end of one fault to the next.
    pub pause: Duration,
    /// Where bundle, config, ledger and the daemon's log go.
    pub folder: PathBuf,
    /// `inspectd` itself.
    pub program: PathBuf,
}

/// How it went.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub seconds: f64,
    /// That came by the camera.
    pub parts: u64,
    pub faults: std::collections::BTreeMap<&'static str, u64>,
    /// How often the promise was broken; [`Figures::broken`] says how.
    pub violations: u64,
    /// From trigger to verdict, as the PLC was told.
    pub latency_ms: LatencyMs,
    pub rss_mib: Rss,
    pub broken: Vec<String>,
    #[serde(flatten)]
    pub gate: Yield,
    /// Results that the PLC has read.
    pub results_read: u64,
    /// Results that were overwritten while the PLC was frozen; their parts have no PASS.
    pub results_overrun: u64,
    pub daemon_starts: u64,
}

#[derive(Debug, Serialize)]
pub struct LatencyMs {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Of the daemon, resident, once it runs and before it ends (a killed one's successor).
#[derive(Debug, Serialize)]
pub struct Rss {
    pub start: f64,
    pub end: f64,
}

/// What the threads of the box share. It is a simulation: nothing of the daemon waits for it.
#[derive(Clone)]
struct Shared {
    plant: Arc<Mutex<Plant>>,
    over: Arc<AtomicBool>,
}

impl Shared {
    fn plant(&self) -> MutexGuard<'_, Plant> {
        self.plant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// The clock of the simulated plant.
#[expect(clippy::disallowed_methods, reason = "a simulated plant runs in real time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the plant around the daemon, not the daemon")]
fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .with_context(|| format!("starting thread {name}"))
}

/// Until the daemon says READY for the first time.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// Teaches, starts the daemon and the plant around it, plays the faults, and counts.
///
/// # Errors
/// The box itself does not work: a port, a folder, a daemon that does not get ready. A broken promise
/// is no error but counted.
pub fn run(settings: &Settings, said: &mut dyn FnMut(&str)) -> Result<Figures> {
    ensure!(
        (1.0..=40.0).contains(&settings.rate_hz),
        "--rate-hz {} is not in 1..=40",
        settings.rate_hz
    );
    said("learning from rendered good parts");
    let pictures = teaching::teach(&settings.folder, settings.seed)?;
    let station = station::Station::bind()?;
    let camera = camera::Camera::bind(&pictures)?;
    let layout = plant::Layout::at(settings.rate_hz);
    let plc_port = plc::free_port()?;
    let config = daemon::Files::write(
        &settings.folder,
        &layout,
        camera.address(),
        station.address(),
        plc_port,
    )?;
    let passable = pictures.iter().map(|picture| picture.accepted).collect();
    let plant = Plant::new(layout, passable, settings.seed, now());
    let shared = Shared { plant: Arc::new(Mutex::new(plant)), over: Arc::default() };

    let mut daemon = Daemon::start(&settings.program, &config)?;
    let around = (shared.clone(), shared.clone(), shared.clone(), shared.clone());
    let heard = Arc::new(Mutex::new(Heard::default()));
    let told = heard.clone();
    let threads = [
        spawn("selftest-station", move || station.serve(&around.0))?,
        spawn("selftest-camera", move || camera.serve(&around.1))?,
        spawn("selftest-belt", move || plant::run(&around.2))?,
        spawn("selftest-plc", move || plc::poll(plc_port, &around.3, &told))?,
    ];
    let outcome = play(settings, &mut daemon, &shared, &heard, said);
    shared.over.store(true, Ordering::SeqCst);
    let ended = daemon.end();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread of the box panicked"))?;
    }
    let (seconds, rss) = outcome?;
    let mut broken = ended?;
    broken.extend(audit(&settings.folder)?);

    let plant = shared.plant();
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    broken.extend(plant.broken.iter().cloned());
    broken.extend(heard.broken.iter().cloned());
    Ok(Figures {
        seconds,
        parts: plant.parts(),
        faults: plant.faults.clone(),
        violations: broken.len() as u64,
        latency_ms: LatencyMs {
            p50: heard.latency.quantile_ms(0.5),
            p99: heard.latency.quantile_ms(0.99),
            p999: heard.latency.quantile_ms(0.999),
            max: heard.latency.max_ms(),
        },
        rss_mib: rss,
        broken,
        gate: plant.yields.clone(),
        results_read: heard.results,
        results_overrun: heard.overrun,
        daemon_starts: daemon.starts,
    })
}

/// Waits for the daemon, then lets things go wrong until the time is over.
fn play(
    settings: &Settings,
    daemon: &mut Daemon,
    shared: &Shared,
    heard: &Mutex<Heard>,
    said: &mut dyn FnMut(&str),
) -> Result<(f64, Rss)> {
    let ready = || heard.lock().unwrap_or_else(PoisonError::into_inner).ready;
    let give_up = now() + STARTS_WITHIN;
    while !ready() {
        daemon.must_run()?;
        ensure!(
            now() < give_up,
            "the daemon was not ready within {} s; its log: {}",
            STARTS_WITHIN.as_secs(),
            daemon.log().display()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    said("the daemon is ready; parts come");
    shared.plant().begin(now());
    let start = now();
    let end = start + settings.duration;
    let mut rss = Rss { start: 0.0, end: 0.0 };
    let mut turn = 0;
    let mut next_fault = start + settings.pause.max(Duration::from_secs(3));
    while now() < end {
        if rss.start == 0.0 && now() > start + Duration::from_secs(2).min(settings.duration / 2) {
            rss.start = daemon.rss_mib()?;
        }
        if !settings.faults.is_empty() && now() >= next_fault {
            let fault = settings.faults[turn % settings.faults.len()];
            turn += 1;
            said(&format!("fault {}", fault.word()));
            shared.plant().began(fault, now());
            fault.play(daemon, shared, heard)?;
            shared.plant().ended(now());
            next_fault = now() + settings.pause;
        }
        daemon.must_run()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    rss.end = daemon.rss_mib()?;
    let seconds = now().duration_since(start).as_secs_f64();
    // The last parts come to the gate.
    shared.plant().no_more_parts();
    std::thread::sleep(Duration::from_secs(2));
    Ok((seconds, rss))
}

/// What the ledger says after the end: each part once, and all of them.
fn audit(folder: &Path) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let ledger = folder.join("ledger");
    let contents = crate::ledger::read_with(&ledger, |record| {
        if !seen.insert(record.part.0) {
            broken.push(format!("part {} has two records in the ledger", record.part.0));
        }
    })?;
    broken.extend(contents.problems.iter().map(|problem| format!("ledger: {problem}")));
    if !contents.tally.closed() {
        broken.push(format!("the ledger's counters do not close: {:?}", contents.tally));
    }
    Ok(broken)
}
