//! Line scan: a source around any other whose pictures are blocks of rows (a folder of strips, the
//! frames of a line-scan camera), which makes parts of them.
//!
//! ```text
//!  blocks   |──────|──|────────|─|──────────|          any number of rows each
//!  fixed    |─────────|─────────|─────────|            parts of part_rows, one after the other
//!  trigger     ▲─────────|         ▲─────────|         from a trigger on; the rest is between parts
//!  web      |─────────|                                abutting blocks of part_rows, of which the
//!                   |─────────|                        first overlap_rows are those before again
//! ```
//! What is missing is never made up: a part that lost rows is bad, and so is one whose rows stop
//! coming. Row numbers count from the first row after the source was opened.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::{CameraFault, FrameSource, Grab};
use crate::verdict::web;
use rows::Rows;

mod part;
mod rows;
#[cfg(test)]
mod tests;

/// `[camera.line_scan]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub mode: Mode,
    /// Rows of a part; in web mode of a block, the repeated ones among them.
    pub part_rows: u32,
    /// Web: how many rows of a block are repeated at the beginning of the next.
    #[serde(default)]
    pub overlap_rows: u32,
    /// Trigger: rows that pass between the trigger and the part's first row.
    #[serde(default)]
    pub delay_rows: u32,
    /// Encoder counts from one row to the next; without it they are taken from the blocks.
    pub counts_per_row: Option<f64>,
    /// Web: millimetres of belt a count.
    pub mm_per_count: Option<f64>,
    /// A part without new rows for so long is not waited for any more; without it for ever.
    pub finish_after_ms: Option<u64>,
    /// Web: a defect longer than this is told of before its end is seen.
    #[serde(default = "default_max_defect_rows")]
    pub max_defect_rows: u64,
}

fn default_max_defect_rows() -> u64 {
    DEFAULT_MAX_DEFECT_ROWS
}

const DEFAULT_MAX_DEFECT_ROWS: u64 = 20_000;

/// What makes a part of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Fixed,
    Trigger,
    Web,
}

impl Config {
    /// Refuses values that cannot be meant. The caller adds file and table to the message.
    pub fn check(&self) -> Result<()> {
        let Config { mode, part_rows, overlap_rows, delay_rows, .. } = *self;
        ensure!(
            (1..=MOST_PART_ROWS).contains(&part_rows),
            "part_rows = {part_rows} is not in 1..={MOST_PART_ROWS}"
        );
        for (key, given) in [
            ("overlap_rows", overlap_rows != 0),
            ("mm_per_count", self.mm_per_count.is_some()),
            ("max_defect_rows", self.max_defect_rows != DEFAULT_MAX_DEFECT_ROWS),
        ] {
            ensure!(
                mode == Mode::Web || !given,
                "{key} is for mode = \"web\"; parts that are apart have no rows in common"
            );
        }
        ensure!(
            mode == Mode::Trigger || delay_rows == 0,
            "delay_rows = {delay_rows} is for mode = \"trigger\"; nothing else has a trigger"
        );
        ensure!(
            u64::from(overlap_rows) * 2 <= u64::from(part_rows),
            "overlap_rows = {overlap_rows} is more than half of part_rows = {part_rows}; a row \
             should be in two blocks at most"
        );
        for (key, value) in
            [("counts_per_row", self.counts_per_row), ("mm_per_count", self.mm_per_count)]
        {
            if let Some(value) = value {
                ensure!(
                    value.is_finite() && value != 0.0,
                    "{key} = {value} must be a number other than 0 (below 0: it counts down)"
                );
            }
        }
        if let Some(ms) = self.finish_after_ms {
            ensure!(
                (1..=600_000).contains(&ms),
                "finish_after_ms = {ms} is not in 1..=600000 milliseconds"
            );
        }
        ensure!(self.max_defect_rows > 0, "max_defect_rows = 0: a defect has at least one row");
        Ok(())
    }

    /// What the parts of a web have in common.
    pub fn web(&self) -> Option<web::Config> {
        let Config { mode, part_rows, overlap_rows, max_defect_rows, mm_per_count, .. } = *self;
        (mode == Mode::Web).then_some(web::Config {
            part_rows,
            overlap_rows,
            max_defect_rows,
            mm_per_count,
        })
    }

    fn finish_after(&self) -> Option<Duration> {
        self.finish_after_ms.map(Duration::from_millis)
    }
}

/// Rows of the largest part; that many of 16,384 grey pixels are 1.6 GiB.
const MOST_PART_ROWS: u32 = 100_000;

/// The source that makes parts of another's blocks.
pub struct LineScan {
    blocks: Box<dyn FrameSource>,
    rows: Rows,
    finish_after: Option<Duration>,
    clock: fn() -> Instant,
    /// Why no more blocks come; parts that were ready then go first.
    over: Option<Over>,
}

enum Over {
    End,
    Fault(CameraFault),
}

impl LineScan {
    /// `clock` is asked when a block, a trigger or nothing comes.
    pub fn new(config: &Config, blocks: Box<dyn FrameSource>, clock: fn() -> Instant) -> LineScan {
        let (rows, finish_after) = (Rows::new(config), config.finish_after());
        LineScan { blocks, rows, finish_after, clock, over: None }
    }

    /// `source` itself where its pictures are parts.
    pub fn around(
        config: Option<&Config>,
        source: Box<dyn FrameSource>,
        clock: fn() -> Instant,
    ) -> Box<dyn FrameSource> {
        match config {
            Some(config) => Box::new(LineScan::new(config, source, clock)),
            None => source,
        }
    }
}

impl FrameSource for LineScan {
    /// Takes one block at most: who waits for a long part hears "nothing yet" with each.
    fn grab(&mut self, patience: Duration) -> Result<Grab, CameraFault> {
        if let Some(grab) = self.rows.next() {
            return Ok(grab);
        }
        if self.over.is_none() {
            let patience = self.finish_after.map_or(patience, |after| patience.min(after));
            let block = self.blocks.grab(patience);
            let now = (self.clock)();
            match block {
                Ok(Grab::Picture(block)) => self.rows.push(&block, now),
                Ok(Grab::Bad { name, reason }) => self.rows.lost(&name, &reason, now),
                Ok(Grab::Idle) => self.rows.idle(now),
                Ok(Grab::End) => {
                    self.rows.end();
                    self.over = Some(Over::End);
                }
                Err(fault) => {
                    self.rows.abandon(&fault.0);
                    self.over = Some(Over::Fault(fault));
                }
            }
        }
        match (self.rows.next(), self.over.take()) {
            (Some(grab), over) => {
                self.over = over;
                Ok(grab)
            }
            (None, None) => Ok(Grab::Idle),
            (None, Some(Over::Fault(fault))) => Err(fault),
            (None, Some(Over::End)) => {
                self.over = Some(Over::End);
                Ok(Grab::End)
            }
        }
    }

    fn trigger(&mut self) -> Result<(), CameraFault> {
        if self.rows.are_triggered() {
            self.rows.trigger((self.clock)());
            return Ok(());
        }
        self.blocks.trigger()
    }

    /// That of the blocks' source, for parts: a folder of strips is played part by part.
    fn period(&self) -> Option<Duration> {
        self.blocks.period()
    }
}
