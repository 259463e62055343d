//! How a gate is set, and whether it can work so.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;

/// `[output.gate.way]`: distances are encoder counts with `clock = "encoder"`, else
/// milliseconds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    pub clock: Clock,
    #[serde(default)]
    pub actuator: Actuator,
    /// From the trigger to the gate.
    pub travel: f64,
    /// Of single cameras, by name, where it is another.
    #[serde(default)]
    pub travel_of: BTreeMap<String, f64>,
    pub before: f64,
    pub after: f64,
    /// The least from one part to the next.
    pub pitch: f64,
    /// Counts per second that the belt never exceeds; with the encoder only.
    pub max_speed: Option<f64>,
    /// From the output to the gate's new position.
    pub valve_ms: f64,
    /// The gate stays at reject for at least so long.
    #[serde(default)]
    pub min_pulse_ms: f64,
    /// How long the I/O station keeps its outputs when it hears nothing; then they fall.
    #[serde(default)]
    pub watchdog_ms: f64,
    /// Between two turns.
    #[serde(default = "default_cycle_ms")]
    pub cycle_ms: f64,
    /// A photo-eye so far ahead of the gate: positions follow it, and what it does not see is not
    /// passed.
    pub eye_before: Option<f64>,
    /// A part may come so much earlier or later to the eye than it should.
    #[serde(default)]
    pub eye_tolerance: f64,
    /// A rejected part is seen in the bin so soon after it reached the gate; 0: there is no sensor.
    #[serde(default)]
    pub confirm_within_ms: f64,
    /// So many rejects one after the other ask for the belt to stop; 0: none do.
    #[serde(default)]
    pub consecutive_rejects: u32,
    /// So does this share of rejects among the last `reject_share_of` parts; 0: none does.
    #[serde(default)]
    pub reject_share: f64,
    #[serde(default = "default_reject_share_of")]
    pub reject_share_of: u32,
}

/// What tells where the belt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// A counter on the I/O station.
    Encoder,
    /// The time: for a belt that never stops or changes its speed.
    #[default]
    Time,
}

/// What the gate's output does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actuator {
    /// Energised for a part that passes; without power everything is rejected.
    #[default]
    EnergiseToPass,
    /// Energised for a part that is rejected (air jets); without power everything passes.
    PulseToReject,
}

fn default_cycle_ms() -> f64 {
    2.0
}

fn default_reject_share_of() -> u32 {
    100
}

/// Counts that time stands for: microseconds.
const US_PER_MS: f64 = 1000.0;
const US_PER_S: f64 = 1e6;

impl Config {
    /// Refuses what cannot work, with the arithmetic; the text names the key below `[output.gate]`.
    pub fn check(&self) -> Result<()> {
        let travels = std::iter::once(("travel", self.travel))
            .chain(self.travel_of.iter().map(|(name, &travel)| (name.as_str(), travel)));
        for (key, value) in travels.chain([("pitch", self.pitch)]) {
            ensure!(value.is_finite() && value > 0.0, "way.{key} = {value} must be above 0");
        }
        for (key, value) in [
            ("before", self.before),
            ("after", self.after),
            ("valve_ms", self.valve_ms),
            ("min_pulse_ms", self.min_pulse_ms),
            ("watchdog_ms", self.watchdog_ms),
            ("eye_tolerance", self.eye_tolerance),
            ("confirm_within_ms", self.confirm_within_ms),
            ("reject_share", self.reject_share),
        ] {
            ensure!(value.is_finite() && value >= 0.0, "way.{key} = {value} must be 0 or more");
        }
        ensure!(
            (0.5..=100.0).contains(&self.cycle_ms),
            "way.cycle_ms = {} must lie between 0.5 and 100",
            self.cycle_ms
        );
        ensure!(self.reject_share <= 1.0, "way.reject_share = {} is no share", self.reject_share);
        ensure!(self.reject_share_of > 0, "way.reject_share_of = 0: it is a number of parts");
        match (self.clock, self.max_speed) {
            (Clock::Encoder, None) => anyhow::bail!(
                "way.max_speed is missing: the fastest that the belt runs, in counts per second"
            ),
            (Clock::Time, Some(_)) => anyhow::bail!(
                "way.max_speed belongs to clock = \"encoder\"; by time the belt has one speed"
            ),
            (_, Some(speed)) => {
                ensure!(speed.is_finite() && speed > 0.0, "way.max_speed = {speed} must be above 0")
            }
            (_, None) => {}
        }
        let (reach, unit) = (self.reach() / self.per_unit(), self.unit());
        let window = self.before + self.after;
        ensure!(
            self.pitch > window + reach,
            "way: before {} + after {} + {reach:.1} {unit} that a part moves while the gate does \
             ({} ms valve + {} ms watchdog + 2 x {} ms cycle) is not less than pitch {}: a reject \
             could not be told from the part ahead of it",
            self.before,
            self.after,
            self.valve_ms,
            self.watchdog_ms,
            self.cycle_ms,
            self.pitch
        );
        let shortest = self.travel_of.values().copied().fold(self.travel, f64::min);
        ensure!(
            shortest > self.before + reach,
            "way: a part is at the gate {shortest} {unit} after its trigger, but the gate must be \
             told before {} {unit}: the camera is too near",
            self.before + reach
        );
        if let Some(eye) = self.eye_before {
            let least = self.before + reach + self.eye_tolerance;
            ensure!(
                eye >= least && eye < shortest,
                "way.eye_before = {eye} must lie between {least:.1} (before + reach + \
                 eye_tolerance) and the travel of {shortest}"
            );
            ensure!(
                2.0 * self.eye_tolerance < self.pitch,
                "way.eye_tolerance = {} is more than half of pitch {}: parts could be mistaken",
                self.eye_tolerance,
                self.pitch
            );
        }
        Ok(())
    }

    pub(super) fn unit(&self) -> &'static str {
        match self.clock {
            Clock::Encoder => "counts",
            Clock::Time => "ms",
        }
    }

    pub(super) fn per_unit(&self) -> f64 {
        match self.clock {
            Clock::Encoder => 1.0,
            Clock::Time => US_PER_MS,
        }
    }

    /// Counts per second at most.
    pub(super) fn speed(&self) -> f64 {
        self.max_speed.unwrap_or(US_PER_S)
    }

    /// In counts.
    pub(super) fn reach(&self) -> f64 {
        self.speed() * (self.valve_ms + self.watchdog_ms + 2.0 * self.cycle_ms) / 1000.0
    }

    /// How long the gate may stand open without the encoder moving: a belt whose encoder is dead
    /// brings the next part no sooner.
    pub(super) fn standstill(&self) -> Duration {
        Duration::from_secs_f64((self.free() / self.speed()).clamp(0.0, 3600.0))
    }

    /// What is free between two parts at the gate, in encoder counts.
    pub(super) fn free(&self) -> f64 {
        self.pitch - self.before - self.after - self.reach()
    }
}
