//! The rows as they come, and the parts they make. Nothing here waits or asks a clock.

use std::collections::VecDeque;
use std::time::Instant;

use super::part::{Block, Mark, Part};
use super::{Config, Mode};
use crate::camera::{Grab, Picture};
use crate::frame::Position;

pub(super) struct Rows {
    config: Config,
    /// Parts under way, in the order of their first rows; more than one only where triggers come
    /// faster than parts pass.
    open: VecDeque<Part>,
    done: VecDeque<Grab>,
    /// The number of the next row: those that came, and those that are known to be lost.
    row: u64,
    mark: Option<Mark>,
    /// Whether blocks come with positions.
    has_encoder: bool,
    /// Counts a row, as seen last.
    rate: Option<f64>,
    /// Height of the last block.
    block_rows: Option<u32>,
    /// Rows were lost and nobody has said how many.
    is_unsure: bool,
}

impl Rows {
    pub fn new(config: &Config) -> Rows {
        Rows {
            config: config.clone(),
            open: VecDeque::new(),
            done: VecDeque::new(),
            row: 0,
            mark: None,
            has_encoder: false,
            rate: None,
            block_rows: None,
            is_unsure: false,
        }
    }

    pub fn are_triggered(&self) -> bool {
        self.config.mode == Mode::Trigger
    }

    /// What has become ready, the oldest first.
    pub fn next(&mut self) -> Option<Grab> {
        self.done.pop_front()
    }

    /// A block came, at `now`.
    pub fn push(&mut self, picture: &Picture, now: Instant) {
        let Some(block) = Block::of(picture, now) else {
            return self.lost(&picture.name, "it has no pixels", now);
        };
        let mark = self.locate(picture.position, now);
        let before = self.open.front().and_then(Part::format);
        if self.config.mode == Mode::Web
            && let Some(before) = before
            && before != block.format
        {
            let (is, was) = (block.format.words(), before.words());
            self.hole(&format!("block {} is {is}, those before are {was}", block.name), 0);
        }
        let mut from = 0;
        while from < block.height {
            let left = block.height - from;
            let taken = self.step(left, |part, rows, part_rows| {
                part.take(&block, from..from + rows, mark, part_rows);
            });
            from += taken;
        }
        self.block_rows = Some(block.height);
    }

    /// A block came whose rows are lost. They are taken for as many as the last block had, until
    /// the encoder knows better.
    pub fn lost(&mut self, name: &str, reason: &str, now: Instant) {
        let rows = self.block_rows.unwrap_or(self.config.part_rows);
        let reason = format!("block {name}: {reason}");
        self.is_unsure = true;
        match self.config.mode {
            Mode::Web => self.hole(&reason, u64::from(rows)),
            Mode::Fixed | Mode::Trigger => self.lose(u64::from(rows), &reason, now),
        }
    }

    /// A part begins here.
    pub fn trigger(&mut self, now: Instant) {
        if self.open.len() == MOST_OPEN {
            let name = format!("part@{}", self.row);
            let reason = format!("{MOST_OPEN} triggered parts are not complete yet");
            self.done.push_back(Grab::Bad { name, reason });
            return;
        }
        self.open.push_back(Part::triggered(self.row, self.config.delay_rows, now));
    }

    /// No block came until `now`.
    pub fn idle(&mut self, now: Instant) {
        let Some(patience) = self.config.finish_after() else { return };
        while let Some(since) = self.open.front().and_then(Part::waits_since)
            && now.saturating_duration_since(since) >= patience
        {
            self.cut_short(&format!("none came for {} ms", patience.as_millis()));
        }
    }

    /// No block will come any more.
    pub fn end(&mut self) {
        while self.open.front().is_some_and(|part| part.is_begun() || self.are_triggered()) {
            self.cut_short("the source has ended");
        }
        self.open.clear();
    }

    /// The source is gone. One part is what the camera thread rejects for that; the others
    /// were triggered and are bad.
    pub fn abandon(&mut self, reason: &str) {
        while self.open.len() > 1 {
            self.cut_short(reason);
        }
        self.open.clear();
    }

    /// Gives up to `left` rows to all open parts, so many that none is complete before another;
    /// returns how many.
    fn step(&mut self, left: u32, mut give: impl FnMut(&mut Part, u32, u32)) -> u32 {
        let part_rows = self.config.part_rows;
        if self.open.is_empty() {
            if self.are_triggered() {
                self.row += u64::from(left);
                return left;
            }
            self.open.push_back(Part::at(self.row));
        }
        let rows = self.open.iter().map(|part| part.wants(part_rows)).fold(left, u32::min);
        for part in &mut self.open {
            give(part, rows, part_rows);
        }
        self.row += u64::from(rows);
        while self.open.front().is_some_and(|part| part.wants(part_rows) == 0) {
            self.finish();
        }
        rows
    }

    /// The first open part is as complete as it will be.
    fn finish(&mut self) {
        let Some(part) = self.open.pop_front() else { return };
        if self.config.mode == Mode::Web {
            let Config { overlap_rows, part_rows, .. } = self.config;
            self.open.push_front(part.follow(overlap_rows, part_rows));
        }
        self.done.push_back(part.finish(self.config.counts_per_row, self.rate));
    }

    /// The first open part gets no more rows: bad, or in web mode a shorter block.
    fn cut_short(&mut self, reason: &str) {
        let Some(part) = self.open.front_mut() else { return };
        if self.config.mode != Mode::Web {
            let part_rows = self.config.part_rows;
            part.spoil(format!("only {} of its {part_rows} rows came: {reason}", part.rows));
        }
        self.finish();
    }

    /// `rows` never came; who wanted them is spoilt.
    fn lose(&mut self, rows: u64, reason: &str, now: Instant) {
        let most = MOST_LOST_PARTS * u64::from(self.config.part_rows);
        let mut left = rows.min(most);
        while left > 0 {
            let some = u32::try_from(left).unwrap_or(u32::MAX);
            left -= u64::from(self.step(some, |part, rows, _| part.lose(rows, reason, now)));
        }
    }

    /// Web: the block under way ends here, and the next begins behind the hole.
    fn hole(&mut self, reason: &str, rows: u64) {
        if self.open.front().is_some_and(Part::is_begun) {
            self.finish();
        }
        self.open.clear();
        let from = self.row;
        let rate = self.config.counts_per_row.or(self.rate);
        let count = self.mark.zip(rate).map(|(mark, rate)| {
            let rows = (from - mark.row) as f64;
            format!(", encoder {}", mark.count.saturating_add((rows * rate).round() as i64))
        });
        self.row += rows;
        self.done.push_back(Grab::Bad {
            name: format!("hole@{from}"),
            reason: format!(
                "not seen: about {rows} rows from row {from}{}: {reason}",
                count.unwrap_or_default()
            ),
        });
    }

    /// Learns where the belt is at the next row, and from that how many rows are really lost.
    fn locate(&mut self, position: Option<Position>, now: Instant) -> Option<Mark> {
        let Some(Position { count, per_row }) = position else {
            // An encoder that is silent for a block is not replaced by another's counts.
            self.config.counts_per_row.filter(|_| !self.has_encoder)?;
            self.is_unsure = false;
            self.mark = Some(Mark { row: 0, count: 0 });
            return self.mark;
        };
        self.has_encoder = true;
        let unsure = std::mem::take(&mut self.is_unsure);
        if let Some(last) = self.mark {
            let counts = count.wrapping_sub(last.count) as f64;
            let rows = (self.row - last.row) as f64;
            let rate = self.config.counts_per_row.or(self.rate);
            if unsure && let Some(rate) = rate {
                let more = (counts / rate - rows).round().max(0.0) as u64;
                match self.config.mode {
                    Mode::Web => self.row += more,
                    _ => self.lose(more, "the encoder counted on while rows were lost", now),
                }
            } else if per_row == 0.0 && rows > 0.0 && !unsure {
                self.rate = Some(counts / rows);
            }
        }
        if per_row != 0.0 {
            self.rate = Some(per_row);
        }
        self.mark = Some(Mark { row: self.row, count });
        self.mark
    }
}

/// Triggered parts that may be under way at once: a trigger that chatters is not followed.
const MOST_OPEN: usize = 16;

/// A hole longer than so many parts is not told of part by part.
const MOST_LOST_PARTS: u64 = 16;
