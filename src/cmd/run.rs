//! `inspectd run`: the daemon.

use std::panic;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use image::GrayImage;
use inspectd::archive::Archive;
use inspectd::camera;
use inspectd::camera::line_scan::{self, LineScan};
use inspectd::config::{self, Config};
use inspectd::detector::Detector;
use inspectd::detector::bundle::{self, Card};
use inspectd::detector::tiles::{self, Tiles};
use inspectd::frame::Image;
use inspectd::journal;
use inspectd::ledger::Ledger;
use inspectd::nn::engine::{Device, Engine};
use inspectd::output::ethernet_ip::EthernetIp;
use inspectd::output::gate::{self, GateOutput};
use inspectd::output::log::LogOutput;
use inspectd::output::modbus::Modbus;
use inspectd::output::mqtt::Mqtt;
use inspectd::output::opcua;
use inspectd::output::s7::S7;
use inspectd::output::{Controls, RejectOutput};
use inspectd::pipeline::{self, CameraSlot, Parts, Report, Running, Tuning, now};
use inspectd::telemetry::{StandingAlarms, Watchdog};
use inspectd::tracker::{Load, Timing};
use inspectd::trigger::{self, Port, Triggers};
use inspectd::verdict::Limits;
use log::LevelFilter;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// How often the main thread looks at signals and stages.
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// A stage that has not turned its loop for this long stands still.
const STALLED_AFTER: Duration = Duration::from_secs(3);

/// Inspect every part until told to stop (SIGTERM) or the last picture is played.
#[derive(clap::Args)]
pub struct Args {
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
    /// What computes: cpu, cuda:N or auto [default: the config's]
    #[arg(long)]
    device: Option<Device>,
}

impl Args {
    fn read(&self) -> Result<Config> {
        let mut config = Config::read(&self.config)?;
        config.inference.device = self.device.unwrap_or(config.inference.device);
        Ok(config)
    }
}

pub fn run(args: &Args, level: LevelFilter) -> Result<()> {
    let _journal = journal::start(level)?;
    abort_on_panic();
    let report = run_line(args).inspect_err(|error| {
        log::error!("failed reason=\"{}\"", journal::plain(format!("{error:#}")));
    })?;
    log::info!(
        "stopped parts={} accepted={} rejected={} uninspected={} closed={}",
        report.tally.triggers,
        report.tally.accepted,
        report.tally.rejected_total(),
        report.tally.uninspected(),
        report.tally.closed()
    );
    ensure!(report.tally.closed(), "the counters do not close: {:?}", report.tally);
    Ok(())
}

fn run_line(args: &Args) -> Result<Report> {
    let signals = Signals::register()?;
    let config = args.read()?;
    log::info!(
        "starting line={} version={} config={}",
        config.line.name,
        env!("CARGO_PKG_VERSION"),
        args.config.display()
    );
    Line::assemble(config, Vec::new())?.run(&signals, Some(args))
}

/// What the outside asks of the daemon.
pub struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    pub fn register() -> Result<Signals> {
        let signals = Signals { stop: Arc::default(), reload: Arc::default() };
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, signals.stop.clone())?;
        }
        signal_hook::flag::register(SIGHUP, signals.reload.clone())?;
        // A file that may not grow further is a disk that takes nothing, no end of the line.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        Ok(signals)
    }
}

/// A panic anywhere must take the whole process down: the heartbeat stops, the PLC rejects, the
/// service manager restarts. A thread that dies alone would leave parts without verdict.
pub fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// A line that is loaded, sealed and bound to its wires, not yet triggering.
pub struct Line {
    config: Config,
    cards: Vec<Card>,
    /// By camera, into `cards`.
    card_of: Vec<usize>,
    /// What one inspection takes here, by camera.
    inspect: Vec<Timing>,
    parts: Parts,
}

impl Line {
    /// Loads every bundle (parity seal), binds the wires, opens ledger and archive. `outputs` are
    /// served besides those of the config.
    pub fn assemble(config: Config, outputs: Vec<Box<dyn RejectOutput>>) -> Result<Line> {
        let Loaded { cards, mut detectors, pictures, card_of } = load_bundles(&config)?;
        let mut timed = Vec::with_capacity(detectors.len());
        for (detector, picture) in detectors.iter_mut().zip(pictures) {
            timed.push(time_inspection(detector.as_mut(), picture)?);
        }
        let inspect: Vec<Timing> = card_of.iter().map(|&card| timed[card]).collect();
        check_timing(&config, &inspect)?;

        let mut triggering = Triggering::of(&config);
        let controls = Controls::new(triggering.by_plc.clone());
        let alarms = Arc::<StandingAlarms>::default();
        let mut wires: Vec<Box<dyn RejectOutput>> = Vec::new();
        if let Some(gate) = &config.output.gate {
            let surroundings = gate::Surroundings {
                controls: controls.clone(),
                alarms: alarms.clone(),
                triggers: std::mem::take(&mut triggering.by_input),
                cameras: config.cameras.iter().map(|camera| camera.name.as_str().into()).collect(),
            };
            wires.push(Box::new(GateOutput::new(gate, surroundings)?));
            log::info!("wire_up wire=gate");
        }
        if let Some(modbus) = &config.output.modbus {
            let modbus = Modbus::bind(modbus, controls.clone())?;
            log::info!("wire_up wire=modbus listen={}", modbus.local_addr());
            wires.push(Box::new(modbus));
        }
        if let Some(s7) = &config.output.s7 {
            wires.push(Box::new(S7::new(s7, controls.clone())?));
            log::info!("wire_up wire=s7 plc={}:{} db={}", s7.address, s7.port, s7.db);
        }
        if let Some(ethernet_ip) = &config.output.ethernet_ip {
            wires.push(Box::new(EthernetIp::bind(ethernet_ip, controls.clone())?));
            let (listen, port) = (ethernet_ip.listen, ethernet_ip.port);
            log::info!("wire_up wire=ethernet_ip listen={listen}:{port}");
        }
        if let Some(mqtt) = &config.output.mqtt {
            wires.push(Box::new(Mqtt::new(mqtt)?));
            log::info!("wire_up wire=mqtt broker={}:{} topic={}", mqtt.host, mqtt.port, mqtt.topic);
        }
        if let Some(opcua) = &config.output.opcua {
            wires.push(opcua::bind(opcua, opcua_surroundings(&config, &controls))?);
            log::info!("wire_up wire=opcua listen={}", opcua.listen);
        }
        wires.extend(outputs);
        wires.push(Box::new(LogOutput::default()));

        let (ledger, resumed) = Ledger::open(&config.ledger, SystemTime::now())?;
        log::info!(
            "ledger_open folder={} epoch={} next_part={} torn_bytes={} interrupted={}",
            config.ledger.folder.display(),
            resumed.epoch,
            resumed.next_part,
            resumed.torn_bytes,
            resumed.interrupted.len()
        );
        for problem in &resumed.damaged {
            log::error!("ledger_damaged {problem}");
        }
        let archive = config.archive.as_ref().map(Archive::open).transpose()?;

        let tunings = tunings(&config, &cards, &card_of);
        let cameras = config
            .cameras
            .iter()
            .zip(&card_of)
            .zip(tunings)
            .zip(triggering.cameras)
            .map(|(((camera, &detector), tuning), triggers)| {
                let (source, scan) = (camera.source.clone(), camera.line_scan.clone());
                CameraSlot {
                    name: camera.name.as_str().into(),
                    open: Box::new(move || {
                        let source = camera::open(&source)?;
                        Ok(LineScan::around(scan.as_ref(), source, now))
                    }),
                    detector,
                    web: camera.line_scan.as_ref().and_then(line_scan::Config::web),
                    tuning,
                    triggers,
                }
            })
            .collect();
        let queue = config.queue.clone();
        let ledger = Some((ledger, resumed));
        let pin = config.inference.pin;
        let outputs = wires;
        let parts = Parts { queue, cameras, detectors, pin, outputs, ledger, archive, alarms };
        Ok(Line { config, cards, card_of, inspect, parts })
    }

    /// Runs until a signal or the end of all sources; `reload_from` is re-read on SIGHUP.
    pub fn run(self, signals: &Signals, reload_from: Option<&Args>) -> Result<Report> {
        let Line { mut config, cards, card_of, inspect, parts } = self;
        let running = pipeline::start(parts)?;
        notify(&[NotifyState::Ready]);
        log::info!("armed line={} cameras={}", config.line.name, config.cameras.len());
        let mut watchdog = Watchdog::new(running.stages(), now());
        let fed = sd_notify::watchdog_enabled().is_some();
        let mut stalled = false;
        let mut said = String::new();
        while !signals.stop.load(Ordering::Relaxed) && !running.finished() {
            thread::sleep(WATCH_EVERY);
            match watchdog.stalled(STALLED_AFTER, now()) {
                Some(stage) if !stalled => {
                    log::error!("stalled stage={stage} limit_s={}", STALLED_AFTER.as_secs());
                    stalled = true;
                }
                Some(_) => {}
                None => {
                    stalled = false;
                    if fed {
                        notify(&[NotifyState::Watchdog]);
                    }
                }
            }
            if signals.reload.swap(false, Ordering::Relaxed)
                && let Some(args) = reload_from
            {
                reload(args, &mut config, &running, |fresh| {
                    check_timing(fresh, &inspect)?;
                    Ok(tunings(fresh, &cards, &card_of))
                });
            }
            let status = status_line(&config, &running);
            if status != said {
                notify(&[NotifyState::Status(&status)]);
                said = status;
            }
        }
        log::info!("stopping line={}", config.line.name);
        notify(&[NotifyState::Stopping]);
        running.stop()
    }
}

fn opcua_surroundings(config: &Config, controls: &Controls) -> opcua::Surroundings {
    let camera = |(index, camera): (usize, &config::Camera)| {
        let bundle = config.bundle_of(index).file_name().unwrap_or_default();
        opcua::Camera {
            name: camera.name.as_str().into(),
            bundle: bundle.to_string_lossy().as_ref().into(),
        }
    };
    opcua::Surroundings {
        line: config.line.name.clone(),
        cameras: config.cameras.iter().enumerate().map(camera).collect(),
        controls: controls.clone(),
    }
}

/// Who triggers which camera.
struct Triggering {
    /// The cameras' ends, by camera.
    cameras: Vec<Option<Triggers>>,
    by_plc: Vec<Option<Port>>,
    by_input: Vec<(u8, Port)>,
}

impl Triggering {
    fn of(config: &Config) -> Triggering {
        let mut triggering =
            Triggering { cameras: Vec::new(), by_plc: Vec::new(), by_input: Vec::new() };
        for camera in &config.cameras {
            let ends = camera.trigger.wait().map(trigger::port);
            let port = ends.as_ref().map(|(port, _)| port.clone());
            let by_plc = matches!(camera.trigger, trigger::Config::Plc(_));
            triggering.by_plc.push(port.clone().filter(|_| by_plc));
            if let (trigger::Config::Input(eye), Some(port)) = (camera.trigger, port) {
                triggering.by_input.push((eye.input, port));
            }
            triggering.cameras.push(ends.map(|(_, triggers)| triggers));
        }
        triggering
    }
}

/// What the config's bundles became: one of each for every bundle that is cut into tiles in its own
/// way.
struct Loaded {
    cards: Vec<Card>,
    detectors: Vec<Box<dyn Detector>>,
    /// The size that an inspection is timed with, width and height.
    pictures: Vec<[u32; 2]>,
    /// Which of them each camera uses.
    card_of: Vec<usize>,
}

fn load_bundles(config: &Config) -> Result<Loaded> {
    let engine = Engine::new(&config.inference)?;
    log::info!("inference threads={} simd={}", engine.team.threads(), engine.isa.word());
    if let Some(gpus) = &engine.gpus {
        log::info!("inference device=\"{}\"", gpus.about());
    }
    let mut known = Vec::new();
    let mut loaded = Loaded {
        cards: Vec::new(),
        detectors: Vec::new(),
        pictures: Vec::new(),
        card_of: Vec::new(),
    };
    for (index, camera) in config.cameras.iter().enumerate() {
        let (folder, tiles) = (config.bundle_of(index), camera.tiles.as_ref());
        loaded.card_of.push(match known.iter().position(|known| *known == (folder, tiles)) {
            Some(known) => known,
            None => {
                notify(&[NotifyState::Status(&format!("loading {}", folder.display()))]);
                let bundle = bundle::load(folder, config.queue.batch, &engine)?;
                log::info!(
                    "bundle_sealed bundle={} system={} threshold={}",
                    folder.display(),
                    bundle.card.system,
                    bundle.card.threshold.score
                );
                let layout = tiles::agreed(bundle.card.tiles, tiles).with_context(|| {
                    format!("camera \"{}\", bundle {}", camera.name, folder.display())
                })?;
                known.push((folder, tiles));
                loaded.cards.push(bundle.card);
                loaded.detectors.push(Tiles::around(layout, bundle.detector));
                loaded.pictures.push(timed_with(camera));
                known.len() - 1
            }
        });
    }
    Ok(loaded)
}

/// The size of picture, width and height, that a camera's inspection is timed with: what is resized
/// as a whole takes about the same whatever its size.
pub fn timed_with(camera: &config::Camera) -> [u32; 2] {
    camera.tiles.as_ref().map_or([256, 256], |tiles| tiles.picture_px)
}

/// What one inspection takes on this machine, after one to warm up.
pub fn time_inspection(detector: &mut dyn Detector, [width, height]: [u32; 2]) -> Result<Timing> {
    let blank = Image::Gray(GrayImage::from_pixel(width, height, image::Luma([128])));
    let begun = now();
    let mut times = Vec::new();
    detector.detect(&[&blank]).context("inspecting a blank picture to time it")?;
    while times.len() < LEAST_TIMED
        || times.len() < MOST_TIMED && now().saturating_duration_since(begun) < TIMING_LASTS
    {
        let start = now();
        detector.detect(&[&blank]).context("inspecting a blank picture to time it")?;
        times.push(now().saturating_duration_since(start));
    }
    times.sort_unstable();
    Ok(Timing { median: times[times.len() / 2], slowest: times[times.len() - 1] })
}

/// Inspections that are timed: enough for a slow one to be among them, and soon over where each is slow.
const LEAST_TIMED: usize = 3;
const MOST_TIMED: usize = 100;
const TIMING_LASTS: Duration = Duration::from_millis(500);

/// Refuses a line that this machine cannot keep up with, and says what may become too tight.
pub fn check_timing(config: &Config, inspections: &[Timing]) -> Result<()> {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let mut line = Vec::new();
    for (camera, &inspection) in config.cameras.iter().zip(inspections) {
        let batch = inspection.slowest * config.queue.batch as u32;
        ensure!(
            camera.tiles.is_none() || batch < STALLED_AFTER,
            "camera \"{}\", [camera.tiles]: a batch of queue.batch = {} pictures takes up to {:.0} ms on this \
             machine, and a detector that is not heard of for {} ms is taken for dead; set larger \
             tiles or a smaller batch",
            camera.name,
            config.queue.batch,
            ms(batch),
            STALLED_AFTER.as_millis()
        );
        log::info!(
            "timing camera={} inspect_ms={:.1} slowest_ms={:.1} decide_within_ms={:.1} why=\"{}\"",
            camera.name,
            ms(inspection.median),
            ms(inspection.slowest),
            ms(camera.deadline.decide_within()),
            camera.deadline.arithmetic()
        );
        line.push(Load { camera: &camera.name, deadline: &camera.deadline, inspection });
    }
    for warning in Load::check(&line, config.queue.batch)? {
        log::warn!("timing_tight {warning}");
    }
    Ok(())
}

fn tunings(config: &Config, cards: &[Card], card_of: &[usize]) -> Vec<Tuning> {
    let tuning = |(camera, &card): (&config::Camera, &usize)| Tuning {
        limits: Limits::new(&camera.limits, cards[card].threshold.score, cards[card].threshold.map),
        decide_within: camera.deadline.decide_within(),
        output_latency: camera.deadline.output_latency(),
    };
    config.cameras.iter().zip(card_of).map(tuning).collect()
}

/// Takes over limits and deadlines. A file that is wrong changes nothing.
fn reload(
    args: &Args,
    config: &mut Config,
    running: &Running,
    tune: impl FnOnce(&Config) -> Result<Vec<Tuning>>,
) {
    if let Ok(usec) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, usec]);
    }
    let fresh = args.read().and_then(|fresh| {
        ensure!(
            fresh.same_but_for_limits(config),
            "something other than limits and deadlines differs from the running line; that needs \
             a restart"
        );
        running.retune(tune(&fresh)?)?;
        Ok(fresh)
    });
    match fresh {
        Ok(fresh) => {
            *config = fresh;
            log::info!("reloaded config=\"{}\"", args.config.display());
        }
        Err(error) => log::error!(
            "reload_failed kept=old reason=\"{}\"",
            journal::plain(format!("{error:#}"))
        ),
    }
    notify(&[NotifyState::Ready]);
}

fn status_line(config: &Config, running: &Running) -> String {
    let counters = running.counters();
    let tally = counters.tally();
    let up = (0..config.cameras.len()).filter(|&camera| counters.camera_up(camera)).count();
    format!(
        "{} parts, {} accepted, {} rejected ({} uninspected), {up} of {} cameras up",
        tally.triggers,
        tally.accepted,
        tally.rejected_total(),
        tally.uninspected(),
        config.cameras.len()
    )
}

/// Tells the service manager, if there is one.
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("notify_failed reason=\"{error}\"");
    }
}
