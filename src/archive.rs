//! Rejects are looked at: picture, map overlay and a JSON line of each, under a hard disk budget.

use std::path::PathBuf;

use anyhow::Result;
use serde::Deserialize;

use crate::detector::Detection;
use crate::frame::Frame;
use crate::output::Outcome;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub folder: PathBuf,
    /// The oldest day folders' files are removed before this is exceeded.
    pub max_gib: f64,
}

/// What the archive thread gets of one part.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub outcome: Outcome,
    pub frame: Option<Frame>,
    pub detection: Option<Detection>,
}

pub struct Archive {}

impl Archive {
    pub fn open(_config: &Config) -> Result<Archive> {
        anyhow::bail!("archive")
    }

    /// Where `store` will put the picture of this part, relative to the folder; goes into the log
    /// line before the file exists.
    pub fn picture_path(_outcome: &Outcome) -> PathBuf {
        PathBuf::new()
    }

    /// Writes `<path>.png`, `<path>_map.png` and one line into the day's `rejects.jsonl`.
    pub fn store(&mut self, _evidence: &Evidence) -> Result<()> {
        anyhow::bail!("archive")
    }
}
