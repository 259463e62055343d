//! Reading a ledger: without a lock, also while a daemon writes it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Record;
use super::segment::{self, End, Entry, HeaderFault, Scan, State};
use crate::output::Tally;

/// Something in a ledger that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub path: PathBuf,
    /// Byte of the segment where it begins.
    pub offset: u64,
    pub what: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}: {}", self.path.display(), self.offset, self.what)
    }
}

/// What a ledger holds, all of it gone through.
#[derive(Clone, Debug)]
pub struct Contents {
    pub segments: usize,
    /// Readable part records on disk; fewer than the tally's where old segments were removed.
    pub records: u64,
    pub epoch: u32,
    /// Since the ledger began. `triggers` counts every id given out, so that the parts of a running
    /// line that have no record yet are in flight.
    pub tally: Tally,
    /// The last start was followed by a clean end.
    pub stopped: bool,
    /// Bytes at the end that are no whole record: being written, or cut off and dropped by the next
    /// start.
    pub torn_bytes: u64,
    pub problems: Vec<Problem>,
}

/// Every record of the ledger in `folder`, one a part, in order of writing; a withdrawn accept as
/// the reject that it became. An error where the ledger is damaged; a half-written last record is
/// none.
pub fn read(folder: &Path) -> Result<Vec<Record>> {
    let mut records: Vec<Record> = Vec::new();
    let contents = read_with(folder, |record| records.push(*record))?;
    match contents.problems.first() {
        Some(problem) => bail!("{problem}"),
        None => Ok(records),
    }
}

/// Gives every readable record to `visit`, one a part, in order of writing, and says what is not
/// readable. A withdrawn accept comes as the reject that it became.
pub fn read_with(folder: &Path, visit: impl FnMut(&Record)) -> Result<Contents> {
    let mut held = Held { records: VecDeque::with_capacity(HELD + 1), visit };
    let mut segments = segments(folder)?;
    if segments.is_empty() {
        bail!(
            "{} holds no ledger; name the folder of the config's ledger.folder",
            folder.display()
        );
    }
    let mut contents = Contents {
        segments: 0,
        records: 0,
        epoch: 0,
        tally: Tally::default(),
        stopped: false,
        torn_bytes: 0,
        problems: Vec::new(),
    };
    let mut before: Option<State> = None;
    let last = segments.len() - 1;
    for (place, segment) in segments.drain(..).enumerate() {
        let bytes = match fs::read(&segment.path) {
            Ok(bytes) => bytes,
            // The writer removes its oldest segments meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                before = None;
                continue;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", segment.path.display()));
            }
        };
        let scan = segment.scan(&bytes, before.as_ref(), |entry| match entry {
            Entry::Part(record) => held.take(record),
            Entry::Withdrawn(record) => held.replace(record),
            Entry::Start { .. }
            | Entry::Stop { .. }
            | Entry::Open { .. }
            | Entry::Issued { .. } => {}
        })?;
        contents.segments += 1;
        contents.records += scan.parts;
        let problem = match scan.end {
            End::Whole => None,
            End::Torn { offset } if place == last => {
                contents.torn_bytes = bytes.len() as u64 - offset;
                None
            }
            End::Torn { offset } => Some((offset, "the segment is cut short".to_owned())),
            End::Damaged { offset, what } => Some((offset, what)),
        };
        // Behind a damaged segment the count starts anew from the next header.
        before = problem.is_none().then_some(scan.state.clone());
        if let Some((offset, what)) = problem {
            contents.problems.push(Problem { path: segment.path, offset, what });
        }
        contents.close_with(&scan.state);
    }
    held.end();
    Ok(contents)
}

/// As [`read_with`], but only the last segment is gone through: totals in milliseconds. `records`
/// and `problems` then speak of that segment alone.
pub fn survey(folder: &Path) -> Result<Contents> {
    let Some(segment) = segments(folder)?.pop() else {
        bail!(
            "{} holds no ledger; name the folder of the config's ledger.folder",
            folder.display()
        );
    };
    let bytes = segment.bytes()?;
    let scan = segment.scan(&bytes, None, |_| {})?;
    let mut contents = Contents {
        segments: 1,
        records: scan.parts,
        epoch: 0,
        tally: Tally::default(),
        stopped: false,
        torn_bytes: 0,
        problems: Vec::new(),
    };
    match &scan.end {
        End::Whole => {}
        End::Torn { offset } => contents.torn_bytes = bytes.len() as u64 - offset,
        End::Damaged { offset, what } => contents.problems.push(Problem {
            path: segment.path.clone(),
            offset: *offset,
            what: what.clone(),
        }),
    }
    contents.close_with(&scan.state);
    Ok(contents)
}

impl Contents {
    fn close_with(&mut self, state: &State) {
        self.epoch = state.epoch;
        self.stopped = state.stopped;
        self.tally = state.tally;
        self.tally.triggers += state.open.len() as u64;
    }
}

/// Records held back until no withdrawal can follow: it comes within milliseconds of its accept.
const HELD: usize = 64;

struct Held<F> {
    records: VecDeque<Record>,
    visit: F,
}

impl<F: FnMut(&Record)> Held<F> {
    fn take(&mut self, record: &Record) {
        self.records.push_back(*record);
        if self.records.len() > HELD
            && let Some(settled) = self.records.pop_front()
        {
            (self.visit)(&settled);
        }
    }

    fn replace(&mut self, record: &Record) {
        match self.records.iter_mut().rfind(|known| known.part == record.part) {
            Some(known) => *known = *record,
            // The accept is not readable, or in a segment that was removed.
            None => self.take(record),
        }
    }

    fn end(mut self) {
        self.records.iter().for_each(&mut self.visit);
    }
}

/// A segment by its name.
pub(super) struct Segment {
    pub path: PathBuf,
    pub index: u64,
    /// Set aside by an earlier start.
    pub damaged: bool,
}

impl Segment {
    pub fn bytes(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).with_context(|| format!("reading {}", self.path.display()))
    }

    /// The state at its head, if that is readable.
    pub fn header(&self) -> Result<Option<State>> {
        match segment::decode_header(&self.bytes()?) {
            Ok((state, _)) => Ok(Some(state)),
            Err(HeaderFault::Damaged(_)) => Ok(None),
            Err(HeaderFault::Newer(version)) => Err(self.newer(version)),
        }
    }

    pub fn scan(
        &self,
        bytes: &[u8],
        before: Option<&State>,
        visit: impl FnMut(&Entry),
    ) -> Result<Scan> {
        segment::scan(bytes, before, visit).map_err(|version| self.newer(version))
    }

    /// Renames it to what no daemon writes to, and never over another.
    pub fn set_aside(&self) -> Result<PathBuf> {
        let aside = self.path.with_extension("ledger.damaged");
        fs::rename(&self.path, &aside)
            .with_context(|| format!("setting {} aside", self.path.display()))?;
        Ok(aside)
    }

    fn newer(&self, version: u32) -> anyhow::Error {
        anyhow::anyhow!(
            "{} has format {version}, written by a later inspectd; run that one, or name another \
             ledger.folder",
            self.path.display()
        )
    }
}

/// The segments in `folder`, oldest first.
pub(super) fn segments(folder: &Path) -> Result<Vec<Segment>> {
    let listing =
        fs::read_dir(folder).with_context(|| format!("reading ledger {}", folder.display()))?;
    let mut segments = Vec::new();
    for entry in listing {
        let path = entry.with_context(|| format!("reading ledger {}", folder.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(rest) = name.strip_prefix("segment-") else { continue };
        let (index, damaged) = match rest.split_once('.') {
            Some((index, "ledger")) => (index, false),
            Some((index, "ledger.damaged")) => (index, true),
            _ => continue,
        };
        let Ok(index) = index.parse() else { continue };
        segments.push(Segment { path, index, damaged });
    }
    segments.sort_by_key(|segment| (segment.index, !segment.damaged));
    Ok(segments)
}
