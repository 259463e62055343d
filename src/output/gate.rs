//! The gate that this daemon moves itself, through digital I/O. Where each part is and what the gate
//! does is decided in [`crate::tracker::Gate`]; here is the thread that turns it, and which input and
//! output is which.
//!
//! The outputs follow the end of the pipeline: without its beat the gate closes, and the output
//! `alive` stops changing, which a watchdog relay outside turns into *reject*. A process that dies
//! leaves its outputs as they were where the station has no watchdog of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::handover::{Handover, Inbox, handover};
use super::io::{self, DigitalIo, Inputs};
use super::{Controls, LineStatus, Outcome, RejectOutput, Service};
use crate::frame::PartId;
use crate::journal::plain;
use crate::telemetry::{Progress, StandingAlarms};
use crate::tracker::{Actuator, Clock, Command, Gate, GateConfig, Place, Reading, Track};
use crate::trigger::Port;
use crate::verdict::Verdict;

/// `[output.gate]`. Inputs and outputs are those of the station, from 0.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub io: io::Config,
    pub way: GateConfig,
    /// Moves the gate.
    pub gate_output: u8,
    /// Asks for the belt to stop.
    pub stop_output: Option<u8>,
    /// Changes with each beat of the pipeline, ten times a second: for a watchdog relay.
    pub alive_output: Option<u8>,
    pub eye_input: Option<u8>,
    pub confirm_input: Option<u8>,
    pub bin_full_input: Option<u8>,
    pub air_low_input: Option<u8>,
    /// A push-button: somebody has looked at the alarms.
    pub clear_input: Option<u8>,
}

impl Config {
    /// Refuses what cannot be meant; the text names the key below `[output.gate]`.
    pub fn check(&self) -> Result<()> {
        self.io.check().context("output.gate.io")?;
        self.way.check().context("output.gate")?;
        let inputs = [
            ("eye_input", self.eye_input),
            ("confirm_input", self.confirm_input),
            ("bin_full_input", self.bin_full_input),
            ("air_low_input", self.air_low_input),
            ("clear_input", self.clear_input),
        ];
        let outputs = [
            ("gate_output", Some(self.gate_output)),
            ("stop_output", self.stop_output),
            ("alive_output", self.alive_output),
        ];
        let kinds = [(&inputs[..], self.io.inputs()), (&outputs[..], self.io.outputs())];
        for (of_a_kind, count) in kinds {
            for (i, &(key, bit)) in of_a_kind.iter().enumerate() {
                let Some(bit) = bit else { continue };
                ensure!(
                    u16::from(bit) < count,
                    "output.gate.{key} = {bit}: the station of [output.gate.io] has {count}, from 0"
                );
                let same = of_a_kind[..i].iter().find(|(_, other)| *other == Some(bit));
                if let Some((other, _)) = same {
                    anyhow::bail!("output.gate.{key} and {other} are both {bit}");
                }
            }
        }
        if let io::Config::Modbus(remote) = &self.io {
            ensure!(
                self.way.watchdog_ms >= remote.timeout_ms as f64,
                "output.gate.way.watchdog_ms = {} is less than io.timeout_ms = {}: while an answer is \
                 waited for the outputs stay as they are",
                self.way.watchdog_ms,
                remote.timeout_ms
            );
        }
        ensure!(
            self.way.clock == Clock::Time || self.io.has_encoder(),
            "output.gate.way.clock = \"encoder\": the station of [output.gate.io] counts nothing"
        );
        ensure!(
            self.way.eye_before.is_some() == self.eye_input.is_some(),
            "output.gate: eye_input and way.eye_before belong together"
        );
        ensure!(
            (self.way.confirm_within_ms > 0.0) == self.confirm_input.is_some(),
            "output.gate: confirm_input and way.confirm_within_ms belong together"
        );
        Ok(())
    }
}

/// Beats older than this mean that nothing is being judged.
const BEAT_WITHIN: Duration = Duration::from_millis(500);

enum News {
    Part { part: PartId, camera: u16, captured_at: Instant, place: Place },
    Verdict { part: PartId, accepted: bool },
    Beat { ready: bool },
}

/// The output thread's end.
pub struct GateOutput {
    news: Handover<News>,
    keeper: Option<Keeper>,
}

/// What the gate's thread has to do with besides its station.
pub struct Surroundings {
    pub controls: Controls,
    pub alarms: Arc<StandingAlarms>,
    /// Inputs whose rising edge triggers a camera.
    pub triggers: Vec<(u8, Port)>,
    /// Names by camera, for ways of their own.
    pub cameras: Vec<Arc<str>>,
}

impl GateOutput {
    /// Nothing moves before [`RejectOutput::service`] runs.
    ///
    /// # Errors
    /// A config that can't be meant, or a station that this build cannot reach.
    pub fn new(config: &Config, surroundings: Surroundings) -> Result<GateOutput> {
        config.check()?;
        for name in config.way.travel_of.keys() {
            ensure!(
                surroundings.cameras.iter().any(|camera| **camera == **name),
                "output.gate.way.travel_of.{name}: there is no such camera"
            );
        }
        let station = config.io.open().context("output.gate.io")?;
        Ok(GateOutput::with_station(config, surroundings, station))
    }

    fn with_station(
        config: &Config,
        surroundings: Surroundings,
        station: Box<dyn DigitalIo>,
    ) -> GateOutput {
        let (news, inbox) = handover("gate");
        let keeper = Keeper {
            gate: Gate::new(config.way.clone()),
            cleared: surroundings.controls.alarms_cleared(),
            config: config.clone(),
            surroundings,
            station,
            inbox,
            inputs: 0,
            beat: None,
            alive: false,
            command: Command { pass: false, stop: false },
        };
        GateOutput { news, keeper: Some(keeper) }
    }
}

impl RejectOutput for GateOutput {
    fn name(&self) -> &str {
        "gate"
    }

    fn triggered(&mut self, track: &Track) -> Result<()> {
        let &Track { part, frame, captured_at, place, .. } = track;
        self.news.give_result(News::Part { part, camera: frame.camera, captured_at, place })
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        let accepted = outcome.verdict == Verdict::Accept;
        self.news.give_result(News::Verdict { part: outcome.part, accepted })
    }

    fn beat(&mut self, status: &LineStatus) -> Result<()> {
        self.news.give(News::Beat { ready: status.state.ready() })
    }

    fn service(&mut self) -> Option<Service> {
        let keeper = self.keeper.take()?;
        Some(Box::new(move |stop, progress| keeper.run(stop, progress)))
    }
}

/// Turns the gate.
struct Keeper {
    config: Config,
    surroundings: Surroundings,
    station: Box<dyn DigitalIo>,
    inbox: Inbox<News>,
    gate: Gate,
    /// The inputs in the turn before.
    inputs: u32,
    /// The last beat, and whether the line was ready then.
    beat: Option<(Instant, bool)>,
    alive: bool,
    cleared: u64,
    command: Command,
}

impl Keeper {
    fn run(mut self, stop: &AtomicBool, progress: &Progress) {
        let cycle = Duration::from_secs_f64(self.config.way.cycle_ms / 1000.0);
        let mut due = clock();
        while !stop.load(Ordering::SeqCst) {
            progress.mark();
            self.turn(clock());
            due = (due + cycle).max(clock());
            std::thread::sleep(due.saturating_duration_since(clock()));
        }
        // Without us nothing passes.
        self.command = Command { pass: false, stop: self.config.stop_output.is_some() };
        if let Err(error) = self.station.exchange(self.outputs(), clock()) {
            log::error!("gate_left_as_it_was reason=\"{}\"", plain(format!("{error:#}")));
        }
    }

    fn turn(&mut self, now: Instant) {
        while let Ok(news) = self.inbox.news.try_recv() {
            self.take(news, now);
        }
        let inputs = self.station.exchange(self.outputs(), now);
        // What the station took to answer has passed.
        let now = clock();
        match inputs {
            Ok(inputs) => {
                let reading = self.reading(inputs);
                self.command = self.gate.turn(Some(&reading), now);
                self.see_edges(inputs.bits, now);
            }
            // The station has told the log why.
            Err(_) => self.command = self.gate.turn(None, now),
        }
        if !self.beating(now) {
            self.command.pass = false;
        }
        for raised in self.gate.raised() {
            log::error!(
                "alarm alarm={} code={} stop={} part={} reason=\"{}\"",
                raised.alarm,
                raised.alarm.code(),
                u8::from(raised.alarm.stops()),
                raised.part.map_or("-".to_owned(), |part| part.to_string()),
                plain(&raised.reason)
            );
        }
        let cleared = self.surroundings.controls.alarms_cleared();
        if cleared != self.cleared {
            self.cleared = cleared;
            if self.gate.alarms().bits() != 0 {
                log::info!("alarms_cleared");
            }
            self.gate.clear_alarms();
        }
        self.surroundings.alarms.set(self.gate.alarms());
    }

    fn take(&mut self, news: News, now: Instant) {
        match news {
            News::Part { part, camera, captured_at, place } => {
                let name = &self.surroundings.cameras[usize::from(camera)];
                self.gate.admit(part, (camera, name), captured_at, place);
            }
            News::Verdict { part, accepted } => self.gate.verdict(part, accepted),
            News::Beat { ready } => {
                self.beat = Some((now, ready));
                self.alive = !self.alive;
            }
        }
    }

    fn beating(&self, now: Instant) -> bool {
        self.beat.is_some_and(|(at, _)| now.saturating_duration_since(at) <= BEAT_WITHIN)
    }

    fn outputs(&self) -> u32 {
        let energised = match self.config.way.actuator {
            Actuator::EnergiseToPass => self.command.pass,
            Actuator::PulseToReject => !self.command.pass,
        };
        let bits = [
            (Some(self.config.gate_output), energised),
            (self.config.stop_output, self.command.stop),
            (self.config.alive_output, self.alive),
        ];
        let set = bits.iter().filter_map(|&(bit, on)| bit.filter(|_| on));
        set.fold(0, |outputs, bit| outputs | 1 << bit)
    }

    fn reading(&self, inputs: Inputs) -> Reading {
        let on = |bit: Option<u8>| bit.is_some_and(|bit| inputs.bits & (1 << bit) != 0);
        Reading {
            encoder: inputs.encoder,
            eye: on(self.config.eye_input),
            confirm: on(self.config.confirm_input),
            bin_full: on(self.config.bin_full_input),
            air_low: on(self.config.air_low_input),
        }
    }

    fn see_edges(&mut self, bits: u32, now: Instant) {
        let rising = bits & !self.inputs;
        self.inputs = bits;
        let ready = self.beating(now) && self.beat.is_some_and(|(_, ready)| ready);
        for (input, port) in &self.surroundings.triggers {
            if rising & (1 << input) != 0 {
                // The answer is for PLCs; here the part itself comes back as a track.
                let _answer = port.ask(now, Some(self.gate.position()), ready);
            }
        }
        if self.config.clear_input.is_some_and(|bit| rising & (1 << bit) != 0) {
            self.surroundings.controls.clear_alarms();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the gate's own thread, started by pipeline")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;
    use std::time::SystemTime;

    use super::*;
    use crate::frame::FrameId;
    use crate::output::{LineState, Tally};
    use crate::trigger::{self, Wait};
    use crate::verdict::Cause;

    /// A station whose inputs a test sets, and which remembers its outputs.
    #[derive(Clone, Default)]
    struct Desk {
        outputs: Arc<AtomicU64>,
        inputs: Arc<Mutex<Inputs>>,
    }

    impl Default for Inputs {
        fn default() -> Inputs {
            Inputs { bits: 0, encoder: Some(0) }
        }
    }

    impl DigitalIo for Desk {
        fn name(&self) -> &str {
            "desk"
        }

        fn exchange(&mut self, outputs: u32, _now: Instant) -> Result<Inputs> {
            self.outputs.store(outputs.into(), Ordering::SeqCst);
            Ok(*self.inputs.lock().unwrap())
        }
    }

    fn config() -> Config {
        toml::from_str(
            "gate_output = 0\nstop_output = 1\nalive_output = 2\nbin_full_input = 0\n\
             clear_input = 1\n[io]\nkind = 'modbus'\naddress = '127.0.0.1'\noutputs = 3\n\
             inputs = 4\ntimeout_ms = 10\n[way]\ntravel = 60.0\nbefore = 5.0\nafter = 30.0\n\
             pitch = 100.0\nvalve_ms = 5\nwatchdog_ms = 10\n",
        )
        .unwrap()
    }

    fn keeper(desk: &Desk, triggers: Vec<(u8, Port)>) -> (GateOutput, Keeper, Surroundings) {
        let surroundings = || Surroundings {
            controls: Controls::default(),
            alarms: Arc::default(),
            triggers: triggers.clone(),
            cameras: vec!["left".into()],
        };
        let kept = surroundings();
        let given = Surroundings {
            controls: kept.controls.clone(),
            alarms: kept.alarms.clone(),
            ..surroundings()
        };
        let mut output = GateOutput::with_station(&config(), given, Box::new(desk.clone()));
        let keeper = output.keeper.take().unwrap();
        (output, keeper, kept)
    }

    fn status() -> LineStatus {
        LineStatus {
            state: LineState::ContinuousExecution,
            epoch: 1,
            tally: Tally::default(),
            late_verdicts: 0,
            cameras_up: vec![true],
            evidence_lost: false,
            alarms: Default::default(),
        }
    }

    fn track(part: u64, captured_at: Instant) -> Track {
        Track {
            part: PartId(part),
            frame: FrameId { camera: 0, seq: part },
            name: "".into(),
            captured_at,
            place: Place::Time,
            decide_at: captured_at,
            eject_at: captured_at,
            truth: None,
        }
    }

    fn outcome(part: u64, verdict: Verdict) -> Outcome {
        Outcome {
            part: PartId(part),
            frame: FrameId { camera: 0, seq: part },
            camera: "left".into(),
            name: "".into(),
            verdict,
            score: None,
            threshold: None,
            region: None,
            position: None,
            latency: Duration::ZERO,
            triggered_at: SystemTime::UNIX_EPOCH,
            image: None,
            reason: None,
            truth: None,
        }
    }

    /// Turns the gate for so long; whether its output was ever on.
    fn opened(keeper: &mut Keeper, desk: &Desk, ms: u64) -> bool {
        let until = clock() + Duration::from_millis(ms);
        let mut on = false;
        while clock() < until {
            keeper.turn(clock());
            on |= desk.outputs.load(Ordering::SeqCst) & 1 != 0;
            std::thread::sleep(Duration::from_millis(1));
        }
        on
    }

    #[test]
    fn the_output_is_on_for_a_part_that_passed_and_only_while_the_line_beats() {
        let desk = Desk::default();
        let (mut output, mut keeper, _) = keeper(&desk, vec![]);
        let mut play = |part: u64, verdict: Verdict, beats: bool| {
            if beats {
                output.beat(&status()).unwrap();
            } else {
                keeper.beat = None;
            }
            keeper.turn(clock());
            output.triggered(&track(part, clock())).unwrap();
            output.signal(&outcome(part, verdict)).unwrap();
            opened(&mut keeper, &desk, 150)
        };
        assert!(play(1, Verdict::Accept, true));
        assert!(!play(2, Verdict::Reject(Cause::Anomaly), true));
        assert!(!play(3, Verdict::Accept, false), "nothing is being judged");
    }

    #[test]
    fn alarms_reach_the_status_the_stop_output_and_the_push_button() {
        let desk = Desk::default();
        let (mut output, mut keeper, around) = keeper(&desk, vec![]);
        output.beat(&status()).unwrap();
        desk.inputs.lock().unwrap().bits = 1;
        keeper.turn(clock());
        keeper.turn(clock());
        assert_eq!(around.alarms.get().newest(), Some(crate::tracker::Alarm::BinFull));
        assert_eq!(desk.outputs.load(Ordering::SeqCst) & 0b10, 0b10, "the belt shall stop");
        desk.inputs.lock().unwrap().bits = 0b10;
        keeper.turn(clock());
        keeper.turn(clock());
        assert_eq!(around.alarms.get().bits(), 0);
        let alive = |keeper: &mut Keeper| {
            keeper.turn(clock());
            desk.outputs.load(Ordering::SeqCst) & 0b100
        };
        let before = alive(&mut keeper);
        assert_eq!(alive(&mut keeper), before, "no timer moves it");
        output.beat(&status()).unwrap();
        assert_ne!(alive(&mut keeper), before);
    }

    #[test]
    fn an_inputs_rising_edge_triggers_its_camera_once() {
        let wait = Wait { picture_within_ms: 50.0, picture_before_ms: 0.0 };
        let (port, triggers) = trigger::port(wait);
        triggers.set_ready(true);
        let desk = Desk::default();
        let (mut output, mut keeper, _) = keeper(&desk, vec![(3, port)]);
        output.beat(&status()).unwrap();
        keeper.turn(clock());
        desk.inputs.lock().unwrap().bits = 1 << 3;
        keeper.turn(clock());
        keeper.turn(clock());
        let asked = triggers.asked.try_recv().unwrap();
        assert!(asked.in_time && asked.count.is_some());
        assert!(triggers.asked.try_recv().is_err());
    }

    #[test]
    fn the_example_of_the_docs_is_read() {
        #[derive(Deserialize)]
        struct File {
            output: Wires,
        }
        #[derive(Deserialize)]
        struct Wires {
            gate: Config,
        }
        let page = include_str!("../../docs/plc.md");
        let begin = page.find("[output.gate]\n").unwrap();
        let example = page[begin..].split("```").next().unwrap();
        let file: File = toml::from_str(example).unwrap();
        file.output.gate.check().unwrap();
        // What is commented out is an example too.
        let all = example.replace("\n# ", "\n");
        let file: File = toml::from_str(&all).unwrap();
        assert_eq!(file.output.gate.way.eye_before, Some(1500.0));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_key() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 6] = [
            ("output.gate.gate_output = 3", |config| config.gate_output = 3),
            ("stop_output and gate_output are both 0", |config| config.stop_output = Some(0)),
            ("eye_input and way.eye_before", |config| config.eye_input = Some(2)),
            ("confirm_input and way.confirm_within_ms", |config| config.confirm_input = Some(2)),
            ("counts nothing", |config| {
                config.way.clock = Clock::Encoder;
                config.way.max_speed = Some(100.0);
            }),
            ("way.watchdog_ms = 1", |config| config.way.watchdog_ms = 1.0),
        ];
        assert!(config().check().is_ok());
        for (says, change) in cases {
            let mut changed = config();
            change(&mut changed);
            let error = format!("{:#}", changed.check().unwrap_err());
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
