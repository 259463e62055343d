//! Inputs and outputs of the machine itself, or of an I/O card with a Linux driver: lines of a GPIO
//! character device.
//!
//! The kernel leaves an output as it was when the process that held it dies, so nothing here makes a
//! line fail-safe: that needs a watchdog outside, a retriggerable relay that an output keeps awake
//! (docs/plc.md).

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::DigitalIo;

#[cfg(feature = "gpio")]
mod lines;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `/dev/gpiochip<n>` or a link to it.
    pub chip: PathBuf,
    /// Input `n` is the `n`th of these.
    #[serde(default)]
    pub inputs: Vec<Input>,
    /// Output `n` is the `n`th of these.
    #[serde(default)]
    pub outputs: Vec<Output>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub line: Line,
    /// On when the line is low.
    #[serde(default)]
    pub active_low: bool,
    #[serde(default)]
    pub bias: Bias,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    pub line: Line,
    /// The line is low when it is on.
    #[serde(default)]
    pub active_low: bool,
    /// On, rather than off, before the first turn and when the daemon ends in order.
    #[serde(default)]
    pub safe_on: bool,
}

/// Which line of the chip.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// Counted from 0.
    Offset(u32),
    /// As the device tree, ACPI or the card's driver calls it (`gpioinfo`).
    Name(String),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Line::Offset(offset) => write!(f, "{offset}"),
            Line::Name(name) => write!(f, "\"{name}\""),
        }
    }
}

/// What holds an input that nothing drives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// Whatever the board has set.
    #[default]
    AsIs,
    PullUp,
    PullDown,
    Disabled,
}

/// Bits of a turn.
const MOST_LINES: usize = 32;

impl Config {
    /// Refuses values that cannot be meant. The caller adds file and table to the message.
    pub fn check(&self) -> Result<()> {
        for (key, count) in [("inputs", self.inputs.len()), ("outputs", self.outputs.len())] {
            ensure!(count <= MOST_LINES, "io.{key} has {count} lines, more than {MOST_LINES}");
        }
        ensure!(
            !(self.inputs.is_empty() && self.outputs.is_empty()),
            "io has neither inputs nor outputs; name lines of {}",
            self.chip.display()
        );
        let mut seen = BTreeSet::new();
        let inputs = self.inputs.iter().map(|input| &input.line);
        for line in inputs.chain(self.outputs.iter().map(|output| &output.line)) {
            ensure!(*line != Line::Name(String::new()), "io has a line without a name");
            ensure!(seen.insert(line), "io names line {line} twice");
        }
        Ok(())
    }
}

/// The lines, which are requested in the first turn.
///
/// # Errors
/// A config that can't be meant, or a build without GPIO.
#[cfg(feature = "gpio")]
pub fn open(config: &Config) -> Result<Box<dyn DigitalIo>> {
    config.check()?;
    Ok(Box::new(lines::Gpio::new(config)))
}

/// As in builds with GPIO.
///
/// # Errors
/// Always: this build has none.
#[cfg(not(feature = "gpio"))]
pub fn open(config: &Config) -> Result<Box<dyn DigitalIo>> {
    config.check()?;
    anyhow::bail!("io.kind = \"gpio\": this build has no GPIO; build it with --features gpio")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Config {
        toml::from_str(&format!("chip = \"/dev/gpiochip0\"\n{text}")).unwrap()
    }

    #[test]
    fn lines_are_named_or_counted() {
        let config = read(
            "inputs = [{ line = \"PART\", bias = \"pull_up\", active_low = true }, { line = 17 }]\n\
             outputs = [{ line = 3, safe_on = true }]",
        );
        config.check().unwrap();
        assert_eq!(
            config.inputs,
            [
                Input { line: Line::Name("PART".into()), active_low: true, bias: Bias::PullUp },
                Input { line: Line::Offset(17), active_low: false, bias: Bias::AsIs },
            ]
        );
        assert_eq!(
            config.outputs,
            [Output { line: Line::Offset(3), active_low: false, safe_on: true }]
        );
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (text, says) in [
            ("", "neither inputs nor outputs"),
            ("inputs = [{ line = 3 }]\noutputs = [{ line = 3 }]", "line 3 twice"),
            ("inputs = [{ line = \"A\" }, { line = \"A\" }]", "line \"A\" twice"),
            ("outputs = [{ line = \"\" }]", "without a name"),
        ] {
            let error = read(text).check().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let many: Vec<String> = (0..33).map(|line| format!("{{ line = {line} }}")).collect();
        let error = read(&format!("inputs = [{}]", many.join(", "))).check().unwrap_err();
        assert!(error.to_string().contains("33 lines"), "{error}");
    }
}
