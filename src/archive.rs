//! Rejects are looked at: picture, map overlay and a JSON line of each, under a hard disk budget.
//!
//! ```text
//! <folder>/2026-05-04/10422.png        the picture, pixel for pixel
//!                     10422_map.png    the anomaly map laid over it
//!                     rejects.jsonl    one line a reject, also where there is no picture
//!                     samples.jsonl    one line an accepted part that is kept as a sample
//! ```
//!
//! Days are UTC days of the trigger. Files appear whole or not at all (written beside, renamed);
//! they are not forced to the disk, so a power cut may cost the last seconds of evidence, which
//! the [`crate::ledger`] still has in words.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::detector::Detection;
use crate::frame::Frame;
use crate::journal::rfc3339;
use crate::output::{Outcome, Recorded};
use crate::picture::{self, overlay};
use crate::verdict::Verdict;

mod read;
mod stock;

pub use read::{Recordings, read};

use stock::{Kind, Stock, on_disk};

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub folder: PathBuf,
    /// The whole folder never holds more than this; the oldest parts' files go first.
    pub max_gib: f64,
    /// The file system keeps at least this much free; the oldest parts' files go first.
    #[serde(default = "default_min_free_gib")]
    pub min_free_gib: f64,
    /// Every so many-eth accepted part is kept too, as a sample; 0: none.
    #[serde(default)]
    pub accepted_every: u64,
}

fn default_min_free_gib() -> f64 {
    1.0
}

impl Config {
    pub fn check(&self) -> Result<()> {
        if self.folder.as_os_str().is_empty() {
            bail!("archive.folder is empty; name a folder");
        }
        if !(self.max_gib > 0.0 && self.max_gib.is_finite()) {
            bail!(
                "archive.max_gib = {} is no disk budget; give a number above 0, or remove \
                 [archive] to keep no evidence",
                self.max_gib
            );
        }
        if !(self.min_free_gib >= 0.0 && self.min_free_gib.is_finite()) {
            bail!("archive.min_free_gib = {} must be 0 or more", self.min_free_gib);
        }
        Ok(())
    }

    /// Is this part's evidence to be kept? All rejects are, and the samples of accepted parts.
    pub fn wants(&self, outcome: &Outcome) -> bool {
        match outcome.verdict {
            Verdict::Reject(_) => true,
            Verdict::Accept => {
                self.accepted_every > 0 && outcome.part.0.is_multiple_of(self.accepted_every)
            }
        }
    }
}

/// What the archive thread gets of one part.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub outcome: Outcome,
    /// `None` where no picture was taken; the part still gets its JSON line.
    pub frame: Option<Frame>,
    pub detection: Option<Detection>,
    /// Where the anomaly map starts to count (the bundle's `threshold.map`, raw score units).
    /// `None`: the outcome's threshold is taken.
    pub map_limit: Option<f32>,
}

/// The lists of a day.
const REJECTS: &str = "rejects.jsonl";
const SAMPLES: &str = "samples.jsonl";

/// What became of a part's evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Yes,
    /// Lost for the reason that an earlier error told; counted in [`Archive::lost`].
    StillNot,
}

pub struct Archive {
    config: Config,
    stock: Stock,
    max_bytes: u64,
    min_free_bytes: u64,
    lost: u64,
    failing: bool,
}

impl Archive {
    /// Counts what is in the folder, makes it if need be, and clears away half-written files.
    pub fn open(config: &Config) -> Result<Archive> {
        config.check()?;
        Archive::open_folder(config).with_context(|| {
            format!(
                "opening the archive: archive.folder = {} must be a folder that inspectd may \
                 write to",
                config.folder.display()
            )
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where `store` will put the picture of this part, relative to the folder; goes into the log
    /// line before the file exists.
    pub fn picture_path(outcome: &Outcome) -> PathBuf {
        Path::new(&day(outcome.triggered_at)).join(format!("{}.png", outcome.part))
    }

    /// Writes `<path>.png`, `<path>_map.png` and the JSON line, after making room for them.
    ///
    /// An error comes once, when keeping evidence begins to fail, and says what to do; until it
    /// works again further parts are [`Kept::StillNot`]. Each part is tried anew.
    pub fn store(&mut self, evidence: &Evidence) -> Result<Kept> {
        match self.try_store(evidence) {
            Ok(()) => {
                self.failing = false;
                Ok(Kept::Yes)
            }
            Err(error) => {
                self.lost += 1;
                if std::mem::replace(&mut self.failing, true) {
                    return Ok(Kept::StillNot);
                }
                Err(error.context(format!(
                    "keeping the evidence of part {}: free the disk of {} or make it writable; \
                     inspection goes on, and the evidence of further parts is lost until then",
                    evidence.outcome.part,
                    self.stock.folder().display()
                )))
            }
        }
    }

    /// Parts whose evidence was not kept, or not all of it, since `open`.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// True while evidence is being lost.
    pub fn failing(&self) -> bool {
        self.failing
    }

    /// What the folder holds, in bytes; each file and folder counted in whole disk blocks.
    pub fn bytes(&self) -> u64 {
        self.stock.bytes()
    }

    fn try_store(&mut self, evidence: &Evidence) -> Result<()> {
        let outcome = &evidence.outcome;
        let day = day(outcome.triggered_at);
        let mut files = Vec::with_capacity(2);
        if let Some(frame) = &evidence.frame {
            if let Some(map) = map_overlay(evidence, frame)? {
                files.push((Kind::Map, map));
            }
            files.push((Kind::Picture, picture::png(&frame.image)?));
        }
        let line = json_line(outcome, !files.is_empty())?;
        let list = match outcome.verdict {
            Verdict::Accept => SAMPLES,
            Verdict::Reject(_) => REJECTS,
        };
        let contents = files.iter().map(|(_, file)| file.len()).chain([line.len()]);
        let room = contents.map(|length| on_disk(length as u64)).sum::<u64>();
        // The day's folder may be new: a block for it.
        self.make_room(room + stock::BLOCK)?;
        // The line comes last, so that the files it names are there.
        let part = outcome.part.0;
        self.stock.open_day(&day)?;
        for (kind, content) in &files {
            self.stock.add(&day, part, *kind, content)?;
        }
        self.stock.append(&day, list, line.as_bytes())
    }

    fn open_folder(config: &Config) -> Result<Archive> {
        fs::create_dir_all(&config.folder)?;
        let mut stock = Stock::count(&config.folder)?;
        let max_bytes = bytes(config.max_gib);
        while stock.bytes() > max_bytes && stock.remove_oldest()? {}
        let min_free_bytes = bytes(config.min_free_gib);
        let config = config.clone();
        Ok(Archive { config, stock, max_bytes, min_free_bytes, lost: 0, failing: false })
    }

    /// Removes the oldest until `room` more bytes fit. Where removing all would not be enough,
    /// nothing is removed.
    fn make_room(&mut self, room: u64) -> Result<()> {
        let stays = self.stock.foreign_bytes();
        if stays.saturating_add(room) > self.max_bytes {
            bail!(
                "archive.max_gib allows {} bytes, {stays} of them are taken by the folder and \
                 files that are not inspectd's, and this part needs {room}",
                self.max_bytes
            );
        }
        while self.stock.bytes() + room > self.max_bytes && self.stock.remove_oldest()? {}
        if self.min_free_bytes == 0 {
            return Ok(());
        }
        let wanted = self.min_free_bytes.saturating_add(room);
        let free_now = free(self.stock.folder())?;
        if free_now.saturating_add(self.stock.bytes() - stays) < wanted {
            bail!(
                "archive.min_free_gib asks for {} free bytes, the disk has {free_now}",
                self.min_free_bytes
            );
        }
        while free(self.stock.folder())? < wanted && self.stock.remove_oldest()? {}
        Ok(())
    }
}

/// The overlay as PNG, where there is a map.
fn map_overlay(evidence: &Evidence, frame: &Frame) -> Result<Option<Vec<u8>>> {
    let Some(detection) = &evidence.detection else { return Ok(None) };
    let limit = evidence.map_limit.or(evidence.outcome.threshold).unwrap_or(f32::INFINITY);
    let region = evidence.outcome.region;
    picture::rgb_png(&overlay::overlay(&frame.image, &detection.map, limit, region)).map(Some)
}

fn json_line(outcome: &Outcome, has_picture: bool) -> Result<String> {
    let image = has_picture.then(|| Archive::picture_path(outcome).display().to_string());
    Ok(serde_json::to_string(&Recorded::of(outcome, image))? + "\n")
}

/// `2026-05-04`, UTC.
fn day(time: SystemTime) -> String {
    let mut text = rfc3339(time);
    text.truncate(10);
    text
}

fn bytes(gib: f64) -> u64 {
    (gib * f64::from(1 << 30)) as u64
}

/// Bytes that inspectd may still write on the file system of `folder`.
fn free(folder: &Path) -> Result<u64> {
    let space = rustix::fs::statvfs(folder)
        .with_context(|| format!("asking for the free space of {}", folder.display()))?;
    Ok(space.f_bavail * space.f_frsize)
}

/// Writes `content` to a temporary file beside `path` and renames it.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(stock::HALF_WRITTEN);
    let beside = PathBuf::from(beside);
    let written = fs::write(&beside, content).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // What could be written of it takes room that the count does not know of.
        let _ = fs::remove_file(&beside);
    }
    written.with_context(|| format!("writing {}", path.display()))
}

/// Appends one line; a line that could be written only in part is taken back.
fn append_line(path: &Path, line: &[u8]) -> Result<()> {
    let appending = || format!("appending to {}", path.display());
    let mut file =
        OpenOptions::new().create(true).append(true).open(path).with_context(appending)?;
    let before = file.metadata().with_context(appending)?.len();
    file.write_all(line)
        .inspect_err(|_| {
            let _ = file.set_len(before);
        })
        .with_context(appending)
}

#[cfg(test)]
mod tests;
