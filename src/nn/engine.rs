//! Where inference runs: which instructions, on which threads, and whether on a card.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Error, Result, bail};
use serde::Deserialize;

use crate::cuda::detectors::{self, Gpus};
use crate::journal::plain;
use crate::ops::simd::Isa;
use crate::ops::team::{Team, default_threads};

/// `[inference]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Threads of an inference, the infer thread among them; all CPUs of the process where it is
    /// not set. All detectors share them and take turns.
    pub threads: Option<usize>,
    /// Keep each of these threads to a CPU of its own.
    pub pin: bool,
    pub device: Device,
}

/// What computes the networks and searches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    #[default]
    Cpu,
    /// The card of this number, as the driver counts them.
    Cuda(u32),
    /// The first card that can be used, else the CPU.
    Auto,
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let ordinal = |text: &str| text.parse().ok().filter(|&ordinal: &u32| ordinal < 64);
        Ok(match (text, text.strip_prefix("cuda:").and_then(ordinal)) {
            ("cpu", _) => Self::Cpu,
            ("auto", _) => Self::Auto,
            ("cuda", _) => Self::Cuda(0),
            (_, Some(ordinal)) => Self::Cuda(ordinal),
            _ => bail!(
                "device = \"{text}\": say \"cpu\", \"cuda:0\" for the first card, \"cuda:1\" for \
                 the second and so on, or \"auto\""
            ),
        })
    }
}

impl TryFrom<String> for Device {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl Config {
    /// Refuses what can't work; the text names the key.
    pub fn check(&self) -> Result<()> {
        match self.threads {
            Some(threads) if !(1..=256).contains(&threads) => {
                bail!("inference.threads = {threads} must lie between 1 and 256")
            }
            _ => Ok(()),
        }
    }
}

/// Instructions, a team, and a card where there is one; copies share team and card.
#[derive(Clone)]
pub struct Engine {
    pub isa: Isa,
    pub team: Arc<Team>,
    /// What makes detectors on a card; `None` where they run on the team.
    pub gpus: Option<Arc<dyn Gpus>>,
}

impl Engine {
    /// # Errors
    /// Settings that can't work, threads that the system does not give, a forced set of instructions
    /// that this machine lacks, a card that is asked for and can't be used.
    pub fn new(config: &Config) -> Result<Self> {
        config.check()?;
        let gpus = match config.device {
            Device::Cpu => None,
            Device::Cuda(ordinal) => Some(detectors::open(ordinal)?),
            Device::Auto => match detectors::first() {
                Ok(gpus) => Some(gpus),
                Err(error) => {
                    log::info!("inference device=cpu reason=\"{}\"", plain(format!("{error:#}")));
                    None
                }
            },
        };
        let threads = config.threads.unwrap_or_else(|| default_threads().min(256));
        let team = Arc::new(Team::new(threads, config.pin)?);
        Ok(Self { isa: Isa::detect()?, team, gpus })
    }

    /// The same, computing on `gpus`.
    pub fn on(self, gpus: Arc<dyn Gpus>) -> Self {
        Self { gpus: Some(gpus), ..self }
    }

    /// For people: the card, or the CPU with its threads.
    pub fn place(&self) -> String {
        match &self.gpus {
            Some(gpus) => gpus.about(),
            None => format!("the CPU, {} threads, {}", self.team.threads(), self.isa.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_in_one_way_and_a_card_by_its_number() {
        let cases = [
            ("cpu", Device::Cpu),
            ("auto", Device::Auto),
            ("cuda", Device::Cuda(0)),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<Device>().unwrap(), want);
            assert_eq!(want.to_string().parse::<Device>().unwrap(), want);
        }
        for text in ["gpu", "cuda:", "cuda:-1", "cuda:64", "CUDA:0", "", "cuda:0 "] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("device = \"{text}\": say")), "{error}");
        }
    }

    #[test]
    fn the_config_refuses_a_device_with_key_and_value() {
        let config: Config = toml::from_str("device = \"cuda:1\"").unwrap();
        assert_eq!(config.device, Device::Cuda(1));
        let error = toml::from_str::<Config>("device = \"gpu\"").unwrap_err().to_string();
        assert!(error.contains("device = \"gpu\": say \"cpu\""), "{error}");
    }
}
