//! The lines as the kernel hands them out.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use gpiocdev::line::{Offset, Value, Values};
use gpiocdev::{Chip, Request};

use super::super::{DigitalIo, Inputs, Retry};
use super::{Bias, Config, Line};
use crate::journal::plain;

/// The lines of a config, or that they are not held just now.
pub(super) struct Gpio {
    config: Config,
    held: Option<Held>,
    retry: Retry,
    /// Whether the log has heard that they are not.
    told: bool,
}

impl Gpio {
    pub fn new(config: &Config) -> Gpio {
        Gpio { config: config.clone(), held: None, retry: Retry::default(), told: false }
    }

    fn turn(&mut self, outputs: u32) -> Result<Inputs> {
        let held = match &mut self.held {
            Some(held) => held,
            None => {
                let held = self.held.insert(Held::request(&self.config)?);
                log::info!("io_up station=gpio chip={}", self.config.chip.display());
                self.told = false;
                held
            }
        };
        held.set(|n| outputs & (1 << n) != 0)?;
        Ok(Inputs { bits: held.read()?, encoder: None })
    }
}

impl DigitalIo for Gpio {
    fn name(&self) -> &str {
        "gpio"
    }

    fn exchange(&mut self, outputs: u32, now: Instant) -> Result<Inputs> {
        let chip = self.config.chip.display();
        if self.held.is_none() && !self.retry.is_due(now) {
            bail!("GPIO {chip}: its lines are not held; it is tried again soon");
        }
        match self.turn(outputs) {
            Ok(inputs) => {
                self.retry.worked();
                Ok(inputs)
            }
            Err(error) => {
                let chip = self.config.chip.display();
                self.held = None;
                self.retry.failed(now);
                if !std::mem::replace(&mut self.told, true) {
                    let reason = plain(format!("{error:#}"));
                    log::error!("io_down station=gpio chip={chip} reason=\"{reason}\"");
                }
                Err(error).with_context(|| format!("GPIO {chip}"))
            }
        }
    }
}

impl Drop for Gpio {
    fn drop(&mut self) {
        let Some(held) = &mut self.held else { return };
        let outputs = &self.config.outputs;
        if let Err(error) = held.set(|n| outputs[n].safe_on) {
            let (chip, reason) = (self.config.chip.display(), plain(format!("{error:#}")));
            log::error!("io_not_safe station=gpio chip={chip} reason=\"{reason}\"");
        }
    }
}

/// Lines that are ours until this is dropped. The offsets are in the order of the config.
struct Held {
    inputs: Option<(Request, Vec<Offset>)>,
    outputs: Option<(Request, Vec<Offset>)>,
}

impl Held {
    fn request(config: &Config) -> Result<Held> {
        let chip = Chip::from_path(&config.chip).context("opening io.chip")?;
        let offset = |line: &Line| match line {
            Line::Offset(offset) => Ok(*offset),
            Line::Name(name) => chip
                .find_line_info(name)
                .map(|info| info.offset)
                .with_context(|| format!("io.chip has no line {line}; see gpioinfo")),
        };
        let mut held = Held { inputs: None, outputs: None };
        // Outputs first: they are safe from now on.
        if !config.outputs.is_empty() {
            let mut request = Request::builder();
            request.on_chip(&config.chip).with_consumer("inspectd");
            let mut offsets = Vec::with_capacity(config.outputs.len());
            for output in &config.outputs {
                let offset = offset(&output.line)?;
                request.with_line(offset).as_output(Value::from(output.safe_on));
                if output.active_low {
                    request.as_active_low()
                } else {
                    request.as_active_high()
                };
                offsets.push(offset);
            }
            held.outputs = Some((request.request().context("requesting io.outputs")?, offsets));
        }
        if !config.inputs.is_empty() {
            let mut request = Request::builder();
            request.on_chip(&config.chip).with_consumer("inspectd");
            let mut offsets = Vec::with_capacity(config.inputs.len());
            for input in &config.inputs {
                let offset = offset(&input.line)?;
                request.with_line(offset).as_input().with_bias(bias(input.bias));
                if input.active_low {
                    request.as_active_low()
                } else {
                    request.as_active_high()
                };
                offsets.push(offset);
            }
            held.inputs = Some((request.request().context("requesting io.inputs")?, offsets));
        }
        Ok(held)
    }

    /// Output `n` goes to `on(n)`, all of them at once.
    fn set(&mut self, on: impl Fn(usize) -> bool) -> Result<()> {
        let Some((request, offsets)) = &self.outputs else { return Ok(()) };
        let mut values = Values::default();
        for (n, &offset) in offsets.iter().enumerate() {
            values.set(offset, Value::from(on(n)));
        }
        request.set_values(&values).context("setting io.outputs")
    }

    /// All inputs at once.
    fn read(&mut self) -> Result<u32> {
        let Some((request, offsets)) = &self.inputs else { return Ok(0) };
        let mut values = Values::from_offsets(offsets);
        request.values(&mut values).context("reading io.inputs")?;
        let on = |offset: Offset| values.get(offset) == Some(Value::Active);
        Ok(offsets.iter().enumerate().fold(0, |bits, (n, &o)| bits | (u32::from(on(o)) << n)))
    }
}

fn bias(bias: Bias) -> Option<gpiocdev::line::Bias> {
    match bias {
        Bias::AsIs => None,
        Bias::PullUp => Some(gpiocdev::line::Bias::PullUp),
        Bias::PullDown => Some(gpiocdev::line::Bias::PullDown),
        Bias::Disabled => Some(gpiocdev::line::Bias::Disabled),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_chip_that_is_not_there_is_named_and_tried_again_later() {
        let config: Config =
            toml::from_str("chip = \"/dev/gpiochip-none\"\noutputs = [{ line = 0 }]").unwrap();
        let mut gpio = Gpio::new(&config);
        #[expect(clippy::disallowed_methods, reason = "tests have a clock of their own")]
        let now = Instant::now();
        let said = |gpio: &mut Gpio, at| format!("{:#}", gpio.exchange(1, at).unwrap_err());
        let first = said(&mut gpio, now);
        assert!(first.contains("/dev/gpiochip-none") && first.contains("io.chip"), "{first}");
        assert!(said(&mut gpio, now).contains("tried again soon"));
        assert_eq!(said(&mut gpio, now + Duration::from_secs(3)), first);
    }
}
