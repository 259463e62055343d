//! A part under way: the rows it has so far.

use std::ops::Range;
use std::time::Instant;

use image::{GrayImage, RgbImage};

use crate::camera::{Grab, Picture};
use crate::frame::{Image, Position};

/// What two blocks must have in common to be of one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub width: u32,
    /// Samples a pixel: 1 grey, 3 colour.
    pub channels: u8,
}

impl Format {
    fn row_bytes(self) -> usize {
        self.width as usize * usize::from(self.channels)
    }

    pub fn words(self) -> String {
        let kind = if self.channels == 1 { "grey" } else { "colour" };
        format!("{} pixels wide, {kind}", self.width)
    }
}

/// The encoder's count at a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    pub row: u64,
    pub count: i64,
}

/// A block of rows as a source delivered it.
pub(super) struct Block<'a> {
    pub name: &'a str,
    pub format: Format,
    pub height: u32,
    samples: &'a [u8],
    pub captured_at: Instant,
    /// When it came, by the line's clock.
    pub came_at: Instant,
}

impl<'a> Block<'a> {
    /// `None`: it has no pixels.
    pub fn of(picture: &'a Picture, now: Instant) -> Option<Block<'a>> {
        let (channels, samples): (u8, &[u8]) = match &picture.image {
            Image::Gray(gray) => (1, gray.as_raw()),
            Image::Rgb(rgb) => (3, rgb.as_raw()),
        };
        let (width, height) = (picture.image.width(), picture.image.height());
        (width > 0 && height > 0).then_some(Block {
            name: &picture.name,
            format: Format { width, channels },
            height,
            samples,
            captured_at: picture.captured_at.unwrap_or(now),
            came_at: now,
        })
    }

    fn rows(&self, rows: Range<u32>) -> &'a [u8] {
        let bytes = self.format.row_bytes();
        &self.samples[rows.start as usize * bytes..rows.end as usize * bytes]
    }
}

/// A part that is not complete.
pub(super) struct Part {
    name: Option<String>,
    first_row: u64,
    /// Rows to let pass before its first.
    skip: u32,
    /// Rows it has, the repeated and the lost among them.
    pub rows: u32,
    /// Of them, those of the block before.
    repeated: u32,
    format: Option<Format>,
    samples: Vec<u8>,
    /// Why it cannot be inspected.
    spoilt: Option<String>,
    triggered_at: Option<Instant>,
    captured_at: Option<Instant>,
    /// When its newest row came.
    fed_at: Option<Instant>,
    /// The first and the last mark of its blocks.
    marks: Option<[Mark; 2]>,
}

impl Part {
    pub fn at(first_row: u64) -> Part {
        Part {
            name: None,
            first_row,
            skip: 0,
            rows: 0,
            repeated: 0,
            format: None,
            samples: Vec::new(),
            spoilt: None,
            triggered_at: None,
            captured_at: None,
            fed_at: None,
            marks: None,
        }
    }

    /// A part that begins `delay_rows` after `row`.
    pub fn triggered(row: u64, delay_rows: u32, at: Instant) -> Part {
        let first_row = row + u64::from(delay_rows);
        Part { skip: delay_rows, triggered_at: Some(at), ..Part::at(first_row) }
    }

    /// The part that begins with the last `overlap` rows of this one.
    pub fn follow(&self, overlap: u32, part_rows: u32) -> Part {
        let end = self.first_row + u64::from(self.rows);
        let (Some(format), None) = (self.format, &self.spoilt) else { return Part::at(end) };
        let repeated = overlap.min(self.rows);
        let mut samples = Vec::with_capacity(format.row_bytes() * part_rows as usize);
        let tail = self.samples.len() - format.row_bytes() * repeated as usize;
        samples.extend_from_slice(&self.samples[tail..]);
        Part {
            rows: repeated,
            repeated,
            format: (repeated > 0).then_some(format),
            samples,
            captured_at: self.captured_at,
            marks: self.marks.map(|[_, last]| [last, last]),
            ..Part::at(end - u64::from(repeated))
        }
    }

    /// Rows until it is complete.
    pub fn wants(&self, part_rows: u32) -> u32 {
        self.skip + part_rows - self.rows
    }

    /// Whether it has a row that no part before it has.
    pub fn is_begun(&self) -> bool {
        self.rows > self.repeated
    }

    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Since when nothing new has come; `None`: nothing is waited for.
    pub fn waits_since(&self) -> Option<Instant> {
        self.fed_at.max(self.triggered_at)
    }

    /// Takes `rows` of a block, at most as many as it wants.
    pub fn take(&mut self, block: &Block, rows: Range<u32>, mark: Option<Mark>, part_rows: u32) {
        let Some(rows) = self.reach(rows, block.came_at) else { return };
        self.rows += rows.len() as u32;
        self.captured_at = Some(block.captured_at);
        if let Some(mark) = mark {
            self.marks = Some(self.marks.map_or([mark, mark], |[first, _]| [first, mark]));
        }
        self.name.get_or_insert_with(|| block.name.to_owned());
        let format = *self.format.get_or_insert(block.format);
        let bytes = format.row_bytes() * part_rows as usize;
        if format != block.format {
            self.spoil(format!(
                "block {} is {}, the part's other rows are {}",
                block.name,
                block.format.words(),
                format.words()
            ));
        } else if bytes > MOST_BYTES {
            self.spoil(format!(
                "part_rows = {part_rows} rows of {} take {bytes} bytes, more than {MOST_BYTES}",
                format.words()
            ));
        }
        if self.spoilt.is_none() {
            self.samples.reserve_exact(bytes - self.samples.len());
            self.samples.extend_from_slice(block.rows(rows));
        }
    }

    /// As [`Part::take`] of rows that never came.
    pub fn lose(&mut self, rows: u32, reason: &str, now: Instant) {
        if let Some(rows) = self.reach(0..rows, now) {
            self.rows += rows.len() as u32;
            self.spoil(reason.to_owned());
        }
    }

    /// What of `rows` is the part's own.
    fn reach(&mut self, rows: Range<u32>, now: Instant) -> Option<Range<u32>> {
        self.fed_at = Some(now);
        let skipped = self.skip.min(rows.len() as u32);
        self.skip -= skipped;
        let rows = rows.start + skipped..rows.end;
        (!rows.is_empty()).then_some(rows)
    }

    /// The first reason stays. Its pixels are of no use any more.
    pub fn spoil(&mut self, reason: String) {
        self.spoilt.get_or_insert(reason);
        self.samples = Vec::new();
    }

    /// What becomes of it. `fixed`: the counts a row that are set; `rate`: those seen last.
    pub fn finish(self, fixed: Option<f64>, rate: Option<f64>) -> Grab {
        let position = self.position(fixed, rate);
        let name = self.name.as_deref().unwrap_or("part");
        let name = format!("{name}@{}", self.first_row);
        if let Some(reason) = self.spoilt {
            return Grab::Bad { name, reason };
        }
        let image = self.format.and_then(|Format { width, channels }| match channels {
            1 => GrayImage::from_raw(width, self.rows, self.samples).map(Image::Gray),
            _ => RgbImage::from_raw(width, self.rows, self.samples).map(Image::Rgb),
        });
        match image {
            Some(image) => Grab::Picture(Picture {
                image,
                name,
                captured_at: self.triggered_at.or(self.captured_at),
                position,
                truth: None,
            }),
            None => Grab::Bad { name, reason: "none of its rows came".to_owned() },
        }
    }

    fn position(&self, fixed: Option<f64>, rate: Option<f64>) -> Option<Position> {
        let [first, last] = self.marks?;
        let between = last.row.saturating_sub(first.row);
        let counted = || (last.count.wrapping_sub(first.count)) as f64 / between as f64;
        let per_row = fixed.or_else(|| (between > 0).then(counted)).or(rate)?;
        let ahead = self.first_row as f64 - first.row as f64;
        let count = first.count.saturating_add((ahead * per_row).round() as i64);
        Some(Position { count, per_row })
    }
}

/// Of a part's picture.
const MOST_BYTES: usize = 2 << 30;
