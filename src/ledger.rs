//! The record of every part: append-only, one record a part, survives `kill -9` at any byte.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;
use serde::Deserialize;

use crate::frame::{FrameId, PartId};
use crate::output::{Outcome, Tally};
use crate::verdict::{Region, Verdict};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of the ledger's segments.
    pub folder: PathBuf,
    /// Oldest segments are removed beyond this; said in the log.
    #[serde(default = "default_max_gib")]
    pub max_gib: f64,
}

fn default_max_gib() -> f64 {
    2.0
}

/// What the ledger keeps of a part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    pub part: PartId,
    /// The highest part id given out so far: what an unclean end may have left without a record.
    pub issued: PartId,
    pub frame: FrameId,
    pub verdict: Verdict,
    pub score: Option<f32>,
    pub threshold: Option<f32>,
    pub region: Option<Region>,
    pub triggered_at: SystemTime,
    pub latency_us: u32,
}

impl Record {
    pub fn of(outcome: &Outcome, issued: PartId) -> Record {
        Record {
            part: outcome.part,
            issued,
            frame: outcome.frame,
            verdict: outcome.verdict,
            score: outcome.score,
            threshold: outcome.threshold,
            region: outcome.region,
            triggered_at: outcome.triggered_at,
            latency_us: u32::try_from(outcome.latency.as_micros()).unwrap_or(u32::MAX),
        }
    }
}

/// What opening the ledger found.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// The first id to give out now.
    pub next_part: PartId,
    /// Counts up with every start.
    pub epoch: u32,
    /// Totals over all parts ever recorded, closed: `triggers = accepted + rejected`.
    pub tally: Tally,
    /// Bytes of a half-written record that were dropped.
    pub torn_bytes: u64,
    /// Parts that had an id but no record: closed now as `Reject(Interrupted)`.
    pub interrupted: Vec<PartId>,
}

pub struct Ledger {}

impl Ledger {
    pub fn open(_config: &Config, _now: SystemTime) -> Result<(Ledger, Resumed)> {
        anyhow::bail!("ledger")
    }

    /// Hands one record to the operating system (no fsync); microseconds.
    pub fn append(&mut self, _record: &Record) -> Result<()> {
        anyhow::bail!("ledger")
    }
}

impl Ledger {
    pub fn syncer(&self) -> Syncer {
        Syncer {}
    }

    pub fn close(self, _now: SystemTime) -> Result<()> {
        Ok(())
    }
}

pub struct Syncer {}

impl Syncer {
    pub fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// Every record of the ledger in `folder`, in order of writing.
pub fn read(_folder: &Path) -> Result<Vec<Record>> {
    anyhow::bail!("ledger")
}
