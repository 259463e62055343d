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
use crate::tracker::{Actuator, Clock, Command, Gate, GateConfig, Reading, Track};
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
    Part { part: PartId, camera: u16, captured_at: Instant, count: Option<i64> },
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
        let &Track { part, frame, captured_at, count, .. } = track;
        self.news.give_result(News::Part { part, camera: frame.camera, captured_at, count })
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
        let _counted_in_the_line_status = self.inbox.missed();
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
            self.gate.clear_alarms();
            log::info!("alarms_cleared");
        }
        self.surroundings.alarms.set(self.gate.alarms());
    }

    fn take(&mut self, news: News, now: Instant) {
        match news {
            News::Part { part, camera, captured_at, count } => {
                let name = &self.surroundings.cameras[usize::from(camera)];
                self.gate.admit(part, (camera, name), captured_at, count);
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
