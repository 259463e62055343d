//! Where inference runs: which instructions, and on which threads.

use std::sync::Arc;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::ops::simd::Isa;
use crate::ops::team::{Team, default_threads};

/// `[inference]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Threads of an inference, the infer thread among them; all CPUs of the process where it is not
    /// set. All detectors share them and take turns.
    pub threads: Option<usize>,
    /// Keep each of these threads to a CPU of its own.
    pub pin: bool,
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

/// Instructions and a team; copies share the team.
#[derive(Clone)]
pub struct Engine {
    pub isa: Isa,
    pub team: Arc<Team>,
}

impl Engine {
    /// # Errors
    /// Settings that can't work, threads that the system does not give, a forced set of instructions
    /// that this machine lacks.
    pub fn new(config: &Config) -> Result<Self> {
        config.check()?;
        let threads = config.threads.unwrap_or_else(|| default_threads().min(256));
        let team = Arc::new(Team::new(threads, config.pin)?);
        Ok(Self { isa: Isa::detect()?, team })
    }
}
