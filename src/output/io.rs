//! Digital inputs and outputs: what a gate's sensors say and what moves its ejector. One turn of a
//! station writes all of its outputs and reads all of its inputs.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Deserialize;

pub mod gpio;
pub mod remote;

/// Which station; in the file a table with `kind = "modbus" | "gpio"` and the keys of that kind
/// (docs/plc.md).
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Config {
    Modbus(remote::Config),
    Gpio(gpio::Config),
}

impl Config {
    /// Refuses values that cannot be meant. The caller adds file and table to the message.
    pub fn check(&self) -> Result<()> {
        match self {
            Config::Modbus(config) => config.check(),
            Config::Gpio(config) => config.check(),
        }
    }

    /// The station, which is first asked in the first turn. To be called where it is used, since a turn
    /// belongs to one thread.
    ///
    /// # Errors
    /// A config that can't be meant, or a station that this build can't have.
    pub fn open(&self) -> Result<Box<dyn DigitalIo>> {
        Ok(match self {
            Config::Modbus(config) => Box::new(remote::Remote::new(config)?),
            Config::Gpio(config) => gpio::open(config)?,
        })
    }

    /// How many outputs it has.
    pub fn outputs(&self) -> u16 {
        match self {
            Config::Modbus(config) => config.outputs,
            Config::Gpio(config) => config.outputs.len() as u16,
        }
    }

    /// How many inputs it has.
    pub fn inputs(&self) -> u16 {
        match self {
            Config::Modbus(config) => config.inputs,
            Config::Gpio(config) => config.inputs.len() as u16,
        }
    }

    /// Does it have a counter?
    pub fn has_encoder(&self) -> bool {
        matches!(self, Config::Modbus(remote::Config { encoder_at: Some(_), .. }))
    }
}

/// What digital inputs and the counter read in one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Input `n` of the station's config is bit `n`; those that are not there read 0.
    pub bits: u32,
    /// Where the station's counter stands; `None`: it has none.
    pub encoder: Option<u32>,
}

/// A digital I/O station. Nobody reaches it but the thread that owns it. When it is dropped its outputs
/// go to what its config calls safe; when the process dies they do not, which is why a module's watchdog
/// is part of the wiring (docs/plc.md).
pub trait DigitalIo: Send {
    /// The word for this station in the log.
    fn name(&self) -> &str;

    /// Writes all outputs (output `n` of the config is bit `n`, further bits mean nothing) and reads all
    /// inputs. Blocks for about the station's own time limit at most, twice where it must connect.
    ///
    /// # Errors
    /// The station did not take part in this turn: what its outputs do is not known. Where that helps it
    /// was closed, and is opened again by the next turns, with pauses between attempts. The log
    /// hears of it from the station, once until it takes part again.
    fn exchange(&mut self, outputs: u32, now: Instant) -> Result<Inputs>;
}

/// The lowest `count` bits.
fn mask(count: u16) -> u32 {
    u32::MAX.checked_shr(32 - u32::from(count.min(32))).unwrap_or(0)
}

/// Between attempts to open, doubled each time up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// When a station that is not open may be tried again.
#[derive(Debug, Default)]
struct Retry {
    next: Option<(Instant, Duration)>,
}

impl Retry {
    fn is_due(&self, now: Instant) -> bool {
        self.next.is_none_or(|(at, _)| now >= at)
    }

    fn failed(&mut self, now: Instant) {
        let pause = self.next.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
        self.next = Some((now + pause, pause));
    }

    fn worked(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "tests have a clock of their own")]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn pauses_grow_and_end_with_success() {
        let mut retry = Retry::default();
        let mut at = now();
        for pause_ms in [100, 200, 400, 800, 1600, 2000, 2000] {
            assert!(retry.is_due(at));
            retry.failed(at);
            let pause = Duration::from_millis(pause_ms);
            assert!(!retry.is_due(at + pause - Duration::from_millis(1)), "{pause_ms}");
            at += pause;
        }
        retry.worked();
        retry.failed(at);
        assert!(retry.is_due(at + FIRST_PAUSE));
    }

    #[test]
    fn masks_hold_the_lowest_bits() {
        assert_eq!([0, 1, 8, 31, 32].map(mask), [0, 1, 255, u32::MAX >> 1, u32::MAX]);
    }

    #[test]
    fn the_kind_says_which_keys_there_are() {
        let read = |text: &str| toml::from_str::<Config>(text);
        let remote =
            read("kind = \"modbus\"\naddress = \"10.0.0.2\"\ninputs = 3\noutputs = 2").unwrap();
        assert_eq!((remote.inputs(), remote.outputs(), remote.has_encoder()), (3, 2, false));
        let gpio = "kind = \"gpio\"\nchip = \"/dev/gpiochip0\"\ninputs = [{ line = 16 }]";
        let gpio = read(gpio).unwrap();
        assert_eq!((gpio.inputs(), gpio.outputs(), gpio.has_encoder()), (1, 0, false));
        for unknown in ["kind = \"modbus\"\naddress = \"10.0.0.2\"\nchip = \"x\"", "kind = \"can\""]
        {
            assert!(read(unknown).is_err(), "{unknown}");
        }
    }
}
