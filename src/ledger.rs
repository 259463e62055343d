//! The record of every part: append-only, one record a part, survives `kill -9` at any byte.
//!
//! On disk a ledger is a folder of segments (see `ledger/segment.rs`), of which only the last is read at
//! start and only the last is written. What a power cut or a bad disk can do beyond a half-written
//! last record is set aside under a `.damaged` name, never deleted and never skipped in silence.
//!
//! Each part has a mark when its id is given out and a record when it has its verdict. What has a
//! mark and no record when the process died is closed as `Interrupted` by the next start.
//!
//! An id is never given twice. After a clean end counting goes on where it stopped; after an
//! unclean one it skips [`UNCLEAN_SKIP`] ids, since parts may have had an id when the process died
//! that nothing on disk speaks of.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::frame::{FrameId, PartId};
use crate::output::{Outcome, Tally};
use crate::verdict::{Cause, Region, Verdict};

mod read;
mod resume;
mod segment;

pub use read::{Contents, Problem, read, read_with, survey};

use segment::{ENTRY_BYTES, Entry, State};

/// Ids left out after an unclean end: more than can have been given out above the last one known on
/// disk. That is a few parts after a kill (triggered, and not marked yet), a second's parts after a
/// power cut, and after a failing disk all parts since it took nothing, with the backlog and those
/// lost: over a day at 10 parts/s, during which the PLC was told that evidence is lost.
pub const UNCLEAN_SKIP: u64 = 1 << 20;

/// What an interrupted part has for a frame: nobody knows which it was.
pub const UNKNOWN_FRAME: FrameId = FrameId { camera: u16::MAX, seq: u64::MAX };

const SEGMENT_BYTES: u64 = 16 << 20;

/// Records kept in memory while the disk takes none: 10 parts/s for almost two hours, 8 MiB.
const BACKLOG: usize = 1 << 16;

#[derive(Clone, Debug, PartialEq, Deserialize)]
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

impl Config {
    pub fn check(&self) -> Result<()> {
        ensure!(!self.folder.as_os_str().is_empty(), "ledger.folder is empty; name a folder");
        let least = 4.0 * SEGMENT_BYTES as f64 / GIB;
        ensure!(
            self.max_gib.is_finite() && self.max_gib >= least,
            "ledger.max_gib = {} is less than four segments; use at least {least}",
            self.max_gib
        );
        Ok(())
    }
}

const GIB: f64 = (1_u64 << 30) as f64;

/// What the ledger keeps of a part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    pub part: PartId,
    /// The highest part id given out so far: a mark of all ids up to it, where their own marks are
    /// missing.
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
    /// Segments that were unreadable in places, set aside under these names; what is wrong and
    /// where. Parts whose record was in the unreadable bytes are among the interrupted ones.
    pub damaged: Vec<Problem>,
}

/// The ledger of a running line. Holds a lock on its folder; dropped without [`Ledger::close`] it
/// counts as an unclean end.
pub struct Ledger {
    folder: PathBuf,
    _lock: File,
    limits: Limits,
    disk: Box<dyn Disk>,
    /// The segment being written: its number, its file, how many bytes of it are whole entries.
    index: u64,
    file: Arc<File>,
    len: u64,
    /// With and without the backlog.
    taken: State,
    written: State,
    backlog: VecDeque<Entry>,
    lost: u64,
    /// The highest id heard of: above `taken`'s where a record was lost or a mark is still to be
    /// written.
    issued: u64,
    /// The latest time heard of, for the heads of segments.
    latest: SystemTime,
    fault: Option<String>,
    sync: SyncHandle,
}

impl Ledger {
    /// Locks the folder, repairs what an unclean end left and says where counting goes on. Needs a
    /// disk that can be written: without a start on disk the same ids would be given out again.
    pub fn open(config: &Config, now: SystemTime) -> Result<(Ledger, Resumed)> {
        config.check()?;
        let max_bytes = (config.max_gib * GIB) as u64;
        let limits = Limits { max_bytes, segment_bytes: SEGMENT_BYTES, backlog: BACKLOG };
        Ledger::open_with(&config.folder, limits, Box::new(Direct), now)
    }

    /// Says that the ids up to this one are given out, before anybody is told of the part: what has
    /// a mark and no record at the next start is closed as `Interrupted`. Costs one entry, none if
    /// it is known already. Marks need no room in the backlog: what the disk does not take now is
    /// in the next mark that it takes, or in a record's `issued`.
    pub fn mark_issued(&mut self, part: PartId) {
        let known = self.issued.max(self.taken.issued);
        if part.0.saturating_sub(known) > segment::MOST_OPEN / 2 {
            log::error!("ledger_mark_refused part={part} known={known} reason=\"ids jump\"");
            return;
        }
        self.heard_of(part);
        // Told by `backlog` and `fault`.
        let _kept = self.flush();
    }

    /// Hands one record to the operating system (no fsync); microseconds. While the disk takes
    /// nothing the record is kept in memory and written, in order, by a later call: see
    /// [`Ledger::backlog`]. An error means that this record will never be on disk: the part has one
    /// already, or the backlog is full.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        if self.backlog.len() >= self.limits.backlog {
            // Whether it made room is what counts.
            let _told_below = self.flush();
        }
        if let Some(why) = self.taken.refuses(record) {
            bail!("ledger {}: {why}; the record is refused", self.folder.display());
        }
        if self.backlog.len() >= self.limits.backlog {
            self.heard_of(record.issued);
            self.lost += 1;
            bail!(
                "ledger {}: part {} is not recorded, {} records wait for the disk already: {}",
                self.folder.display(),
                record.part,
                self.backlog.len(),
                self.fault().unwrap_or("no reason known")
            );
        }
        self.take(Entry::Part(*record));
        // The record is kept; the fault is told by `backlog` and `fault`.
        let _kept = self.flush();
        Ok(())
    }

    /// Records that the PLC was told `record`'s reject though the part's record says accept: the
    /// disk stood still in between until the part had passed.
    pub fn withdraw(&mut self, record: &Record) -> Result<()> {
        let entry = Entry::Withdrawn(*record);
        let mut after = self.taken.clone();
        if let Err(why) = after.apply(&entry) {
            bail!("ledger {}: {why}", self.folder.display());
        }
        self.take(entry);
        let _kept = self.flush();
        Ok(())
    }

    /// Tries to write what the disk did not take so far. For the line's heartbeat, so that the
    /// ledger recovers without a part coming by.
    pub fn flush(&mut self) -> Result<()> {
        loop {
            let waiting = self.backlog.front().copied();
            let entry = match waiting {
                Some(entry) => entry,
                None if self.unmarked() => Entry::Issued { part: PartId(self.issued) },
                None => break,
            };
            if let Err(error) = self.write(&entry) {
                let fault = format!("{error:#}");
                self.fault = Some(fault.clone());
                bail!("{fault}");
            }
            match waiting {
                Some(_) => {
                    self.backlog.pop_front();
                }
                None => self.count(&entry),
            }
        }
        self.fault = None;
        Ok(())
    }

    /// Entries that wait in memory for the disk; lost if the process dies now.
    pub fn backlog(&self) -> usize {
        self.backlog.len() + usize::from(self.unmarked())
    }

    /// Records that found the backlog full, since the start. Their parts are closed as
    /// `Interrupted` by the next start.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Why the last write did not work; `None` while all is well.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Totals over all parts ever taken, including the backlog.
    pub fn tally(&self) -> Tally {
        self.taken.tally
    }

    /// For another thread, to bring what was written onto the platter now and then.
    pub fn sync(&self) -> SyncHandle {
        self.sync.clone()
    }

    /// The clean end: everything written, a `Stop` after it, all of it on the platter.
    pub fn close(mut self, now: SystemTime) -> Result<()> {
        self.take(Entry::Stop { issued: PartId(self.taken.issued.max(self.issued)), at: now });
        self.flush().context("closing the ledger")?;
        self.sync.run()
    }

    fn open_with(
        folder: &Path,
        limits: Limits,
        disk: Box<dyn Disk>,
        now: SystemTime,
    ) -> Result<(Ledger, Resumed)> {
        fs::create_dir_all(folder)
            .with_context(|| format!("making ledger folder {}", folder.display()))?;
        let lock = lock(folder)?;
        let mut found = resume::resume(folder)?;
        let directory = File::open(folder)
            .with_context(|| format!("opening ledger folder {}", folder.display()))?;
        let (index, file, len) = match found.last {
            Some((index, len)) => {
                let path = folder.join(segment_name(index));
                let file = OpenOptions::new().write(true).open(&path);
                let file = file.with_context(|| format!("opening {}", path.display()))?;
                file.set_len(len).with_context(|| format!("repairing {}", path.display()))?;
                (index, file, len)
            }
            None => {
                let mut disk = Direct;
                let (file, len) =
                    new_segment(folder, found.free_index, &mut found.state, now, &mut disk)?;
                (found.free_index, file, len)
            }
        };
        let file = Arc::new(file);
        let sync = SyncHandle {
            waiting: Arc::new(Mutex::new(vec![file.clone()])),
            directory: Arc::new(directory),
        };
        let mut ledger = Ledger {
            folder: folder.to_owned(),
            _lock: lock,
            limits,
            disk,
            index,
            file,
            len,
            taken: found.state.clone(),
            written: found.state,
            backlog: VecDeque::new(),
            lost: 0,
            issued: 0,
            latest: now,
            fault: None,
            sync,
        };
        // Torn bytes behind a stop were a start.
        let clean = found.fresh || (ledger.taken.stopped && found.torn_bytes == 0);
        let skip = if clean { 0 } else { UNCLEAN_SKIP };
        let interrupted: Vec<PartId> = ledger.taken.open.iter().map(|&id| PartId(id)).collect();
        for &part in &interrupted {
            ledger.take(Entry::Part(Record {
                part,
                issued: PartId(ledger.taken.issued),
                frame: UNKNOWN_FRAME,
                verdict: Verdict::Reject(Cause::Interrupted),
                score: None,
                threshold: None,
                region: None,
                triggered_at: now,
                latency_us: 0,
            }));
            ledger.flush()?;
        }
        // A damaged segment may have swallowed a start.
        let epoch = ledger.taken.epoch + 1 + u32::from(!found.damaged.is_empty());
        let issued = ledger.taken.issued + skip;
        ledger.take(Entry::Start { epoch, issued: PartId(issued), at: now });
        ledger.flush()?;
        ledger.trim();
        ledger.sync.run()?;
        let resumed = Resumed {
            next_part: PartId(issued + 1),
            epoch,
            tally: ledger.taken.tally,
            torn_bytes: found.torn_bytes,
            interrupted,
            damaged: found.damaged,
        };
        Ok((ledger, resumed))
    }

    /// The entry counts from here on, on disk or not. Callers have asked `refuses`.
    fn take(&mut self, entry: Entry) {
        self.count(&entry);
        if let Entry::Part(Record { triggered_at: at, .. })
        | Entry::Start { at, .. }
        | Entry::Stop { at, .. } = entry
        {
            self.latest = at;
        }
        self.backlog.push_back(entry);
    }

    fn count(&mut self, entry: &Entry) {
        self.taken.apply(entry).expect("the entry was checked against this state");
    }

    /// Keeps in mind that ids up to this one are given out.
    fn heard_of(&mut self, part: PartId) {
        self.issued = self.issued.max(part.0);
        // While the disk takes nothing for so long that the jump would be taken for a wrong number.
        // Once in half a million parts, so the backlog's bound is not asked.
        if self.issued.saturating_sub(self.taken.issued) > segment::MOST_OPEN / 2 {
            self.take(Entry::Issued { part: PartId(self.issued) });
        }
    }

    /// Ids were heard of that no entry taken so far speaks of.
    fn unmarked(&self) -> bool {
        self.issued > self.taken.issued
    }

    /// One write at the end of the last whole entry: a half-written one is overwritten.
    fn write(&mut self, entry: &Entry) -> Result<()> {
        if self.len + ENTRY_BYTES as u64 > self.limits.segment_bytes {
            self.rotate()?;
        }
        let bytes = segment::encode(entry, self.written.entries);
        write_all(self.disk.as_mut(), &self.file, &bytes, self.len).with_context(|| {
            format!("writing {}", self.folder.join(segment_name(self.index)).display())
        })?;
        self.len += ENTRY_BYTES as u64;
        self.written.apply(entry).expect("what was taken in order is written in order");
        Ok(())
    }

    fn rotate(&mut self) -> Result<()> {
        let (file, len) = new_segment(
            &self.folder,
            self.index + 1,
            &mut self.written,
            self.latest,
            self.disk.as_mut(),
        )?;
        self.index += 1;
        self.file = Arc::new(file);
        self.len = len;
        // Held by the other side only to swap the list: never during an fsync.
        self.sync.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(self.file.clone());
        self.trim();
        Ok(())
    }

    /// Removes the oldest segments beyond the bound. Set-aside ones are a person's to remove.
    fn trim(&mut self) {
        let Ok(segments) = read::segments(&self.folder) else { return };
        let sized: Vec<(&Path, u64)> = segments
            .iter()
            .filter(|segment| !segment.damaged)
            .map(|segment| (segment.path.as_path(), segment.path.metadata().map_or(0, |m| m.len())))
            .collect();
        // The one being written may grow to its full size.
        let written: u64 = sized.iter().map(|(_, bytes)| bytes).sum();
        let mut total = written.saturating_sub(self.len) + self.limits.segment_bytes;
        for (path, bytes) in sized {
            if total <= self.limits.max_bytes || path == self.folder.join(segment_name(self.index))
            {
                break;
            }
            match fs::remove_file(path) {
                Ok(()) => {
                    total -= bytes;
                    log::info!("ledger_trimmed segment={} bytes={bytes}", path.display());
                }
                Err(error) => {
                    log::warn!("ledger_not_trimmed segment={} error={error}", path.display());
                    break;
                }
            }
        }
    }
}

/// Brings the ledger onto the platter; cloneable, for a thread that may wait.
#[derive(Clone)]
pub struct SyncHandle {
    /// Written since they were last synced; the newest stays in the list.
    waiting: Arc<Mutex<Vec<Arc<File>>>>,
    directory: Arc<File>,
}

impl SyncHandle {
    /// One `fdatasync` a segment written to; as slow as the disk is.
    pub fn run(&self) -> Result<()> {
        let files = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for file in &files {
            file.sync_data().context("syncing the ledger")?;
        }
        if files.len() > 1 {
            self.directory.sync_all().context("syncing the ledger's folder")?;
        }
        // Only what was synced is struck off; a segment begun meanwhile stays.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain(..files.len().saturating_sub(1));
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Limits {
    max_bytes: u64,
    segment_bytes: u64,
    backlog: usize,
}

/// The ledger's write call; tests put one here that fails on purpose.
trait Disk: Send {
    fn write_at(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize>;
}

struct Direct;

impl Disk for Direct {
    fn write_at(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        file.write_at(bytes, offset)
    }
}

fn write_all(disk: &mut dyn Disk, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match disk.write_at(file, &bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = lock.with_context(|| format!("opening {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "ledger {} is in use by another inspectd; stop it or name another ledger.folder",
            folder.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", path.display()))
        }
    }
}

fn segment_name(index: u64) -> String {
    format!("segment-{index:010}.ledger")
}

/// A segment with its header and the open parts, visible under its name only when it is whole.
fn new_segment(
    folder: &Path,
    index: u64,
    state: &mut State,
    now: SystemTime,
    disk: &mut dyn Disk,
) -> Result<(File, u64)> {
    let mut bytes = segment::encode_header(state, now).to_vec();
    for (number, &part) in (state.entries..).zip(&state.open) {
        bytes.extend(segment::encode(&Entry::Open { part: PartId(part) }, number));
    }
    let (unborn, path) = (folder.join("segment.new"), folder.join(segment_name(index)));
    let mut make = || -> io::Result<File> {
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&unborn)?;
        write_all(disk, &file, &bytes, 0)?;
        fs::rename(&unborn, &path)?;
        Ok(file)
    };
    let file = make().with_context(|| format!("beginning {}", path.display()))?;
    state.entries += state.open.len() as u64;
    Ok((file, bytes.len() as u64))
}

#[cfg(test)]
#[path = "ledger/tests.rs"]
mod tests;
