//! The bytes of the ledger on disk, apart from any file: headers, entries, and what they add up to.
//!
//! A ledger is a folder of segments. A segment is one header of [`HEADER_BYTES`] and then entries
//! of [`ENTRY_BYTES`], all numbers little endian, each closed by the CRC-32 (IEEE 802.3) of the
//! bytes before it. The header holds the sums over everything before the segment and the entries
//! that follow it list the parts then open, so that a segment can be read without its elders.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Record;
use crate::frame::{FrameId, PartId};
use crate::output::Tally;
use crate::verdict::{Cause, Region, Verdict};

pub(super) const HEADER_BYTES: usize = 256;
pub(super) const ENTRY_BYTES: usize = 80;

const MAGIC: &[u8; 8] = b"inspledg";
const VERSION: u32 = 1;

/// Causes that a header has room for.
const CAUSE_SLOTS: usize = 16;

/// More parts than this between two records are no burst but a wrong number: each of them would
/// have to be closed on its own.
pub(super) const MOST_OPEN: u64 = 1 << 20;

const KIND_PART: u8 = 1;
const KIND_START: u8 = 2;
const KIND_STOP: u8 = 3;
const KIND_OPEN: u8 = 4;
const KIND_WITHDRAWN: u8 = 5;
const KIND_ISSUED: u8 = 6;

const HAS_SCORE: u8 = 1;
const HAS_THRESHOLD: u8 = 2;
const HAS_REGION: u8 = 4;

/// One entry of a segment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Entry {
    Part(Record),
    /// The part's record said accept and the PLC was told reject, with this record's cause: the
    /// disk stood still until the part had passed.
    Withdrawn(Record),
    /// The ledger was opened. Ids up to `issued` are never given out again.
    Start {
        epoch: u32,
        issued: PartId,
        at: SystemTime,
    },
    /// The ledger was closed in order. `issued` is above the last record's where records were lost.
    Stop {
        issued: PartId,
        at: SystemTime,
    },
    /// At the head of a segment: this part had an id and no record when the segment began.
    Open {
        part: PartId,
    },
    /// Ids up to this one are given out; its record follows.
    Issued {
        part: PartId,
    },
}

/// What all entries so far add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub epoch: u32,
    /// The highest part id given out.
    pub issued: u64,
    /// Ids given out that have no record yet.
    pub open: BTreeSet<u64>,
    /// Over all recorded parts: closed.
    pub tally: Tally,
    /// How many entries there are; the number of the next one.
    pub entries: u64,
    /// The last entry is a `Stop`.
    pub stopped: bool,
}

impl State {
    /// Why `record` may not follow, if it may not.
    pub fn refuses(&self, record: &Record) -> Option<String> {
        let (part, issued) = (record.part.0, record.issued.0);
        if part > issued {
            return Some(format!("part {part} is above the highest id given out, {issued}"));
        }
        if issued.saturating_sub(self.issued) > MOST_OPEN {
            return Some(format!("ids jump from {} to {issued}", self.issued));
        }
        if part <= self.issued && !self.open.contains(&part) {
            return Some(format!("part {part} has its record already, or never had an id"));
        }
        None
    }

    pub fn apply(&mut self, entry: &Entry) -> Result<(), String> {
        match entry {
            Entry::Withdrawn(record) => {
                let part = record.part.0;
                if part > self.issued || self.open.contains(&part) || self.tally.accepted == 0 {
                    return Err(format!("part {part} has no accept that could be withdrawn"));
                }
                self.tally.accepted -= 1;
                self.tally.count(record.verdict);
            }
            Entry::Part(record) => {
                if let Some(why) = self.refuses(record) {
                    return Err(why);
                }
                self.open.extend(self.issued + 1..=record.issued.0);
                self.issued = self.issued.max(record.issued.0);
                self.open.remove(&record.part.0);
                self.tally.triggers += 1;
                self.tally.count(record.verdict);
            }
            Entry::Start { epoch, issued, .. } => {
                if *epoch <= self.epoch || issued.0 < self.issued {
                    return Err(format!(
                        "a start with epoch {epoch} and id {issued} follows epoch {} and id {}",
                        self.epoch, self.issued
                    ));
                }
                self.epoch = *epoch;
                self.issued = issued.0;
            }
            Entry::Stop { issued, .. } => {
                if issued.0 < self.issued || issued.0 - self.issued > MOST_OPEN {
                    return Err(format!("a stop with id {issued} follows id {}", self.issued));
                }
                self.open.extend(self.issued + 1..=issued.0);
                self.issued = issued.0;
            }
            Entry::Issued { part } => {
                if part.0 <= self.issued || part.0 - self.issued > MOST_OPEN {
                    return Err(format!("id {part} is given out after id {}", self.issued));
                }
                self.open.extend(self.issued + 1..=part.0);
                self.issued = part.0;
            }
            Entry::Open { part } => {
                if part.0 > self.issued || !self.open.insert(part.0) {
                    return Err(format!("part {part} is said to be open and cannot be"));
                }
            }
        }
        self.stopped = matches!(entry, Entry::Stop { .. });
        self.entries += 1;
        Ok(())
    }
}

/// The head of a segment: the state before it (without the open parts, which follow as entries).
pub(super) fn encode_header(state: &State, created_at: SystemTime) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let mut at = Writer { bytes: &mut bytes, at: 0 };
    at.put(MAGIC);
    at.put(&VERSION.to_le_bytes());
    at.put(&(HEADER_BYTES as u32).to_le_bytes());
    at.put(&(ENTRY_BYTES as u32).to_le_bytes());
    at.put(&state.epoch.to_le_bytes());
    at.put(&state.entries.to_le_bytes());
    at.put(&state.issued.to_le_bytes());
    at.put(&micros(created_at).to_le_bytes());
    at.put(&u32::from(state.stopped).to_le_bytes());
    at.put(&(state.open.len() as u32).to_le_bytes());
    at.put(&state.tally.accepted.to_le_bytes());
    for cause in state.tally.rejected {
        at.put(&cause.to_le_bytes());
    }
    const { assert!(64 + 8 * CAUSE_SLOTS <= HEADER_BYTES - 4 && Cause::ALL.len() <= CAUSE_SLOTS) };
    seal(&mut bytes);
    bytes
}

/// Why a header cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// Not to be touched: a later inspectd wrote it.
    Newer(u32),
    Damaged(&'static str),
}

/// The state before the segment (its open parts still missing) and how many `Open` entries follow.
pub(super) fn decode_header(bytes: &[u8]) -> Result<(State, u64), HeaderFault> {
    let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(HeaderFault::Damaged("the header is cut short"));
    };
    let mut at = Reader { bytes, at: 0 };
    if at.take::<8>() != *MAGIC {
        return Err(HeaderFault::Damaged("this is not the head of a ledger segment"));
    }
    if !sealed(bytes) {
        return Err(HeaderFault::Damaged("the header's checksum is wrong"));
    }
    let version = at.u32();
    if version > VERSION {
        return Err(HeaderFault::Newer(version));
    }
    if (at.u32() as usize, at.u32() as usize) != (HEADER_BYTES, ENTRY_BYTES) {
        return Err(HeaderFault::Damaged("the header names other sizes"));
    }
    let mut state = State { epoch: at.u32(), entries: at.u64(), ..State::default() };
    state.issued = at.u64();
    let _created_at = at.i64();
    state.stopped = at.u32() != 0;
    let open = u64::from(at.u32());
    state.tally.accepted = at.u64();
    for cause in &mut state.tally.rejected {
        *cause = at.u64();
    }
    state.tally.triggers = state.tally.accepted + state.tally.rejected_total();
    Ok((state, open))
}

/// `number` is the entry's place in the whole ledger.
pub(super) fn encode(entry: &Entry, number: u64) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    let mut at = Writer { bytes: &mut bytes, at: 0 };
    match entry {
        Entry::Part(record) | Entry::Withdrawn(record) => {
            let kind = match entry {
                Entry::Part(_) => KIND_PART,
                _ => KIND_WITHDRAWN,
            };
            let (verdict, cause) = match record.verdict {
                Verdict::Accept => (1, 0),
                Verdict::Reject(cause) => (2, cause.code()),
            };
            let mut has = 0;
            has |= if record.score.is_some() { HAS_SCORE } else { 0 };
            has |= if record.threshold.is_some() { HAS_THRESHOLD } else { 0 };
            has |= if record.region.is_some() { HAS_REGION } else { 0 };
            at.put(&[kind, verdict, cause, has]);
            at.put(&record.frame.camera.to_le_bytes());
            at.put(&[0; 2]);
            at.put(&record.part.0.to_le_bytes());
            at.put(&record.issued.0.to_le_bytes());
            at.put(&record.frame.seq.to_le_bytes());
            at.put(&micros(record.triggered_at).to_le_bytes());
            at.put(&record.latency_us.to_le_bytes());
            at.put(&record.score.unwrap_or(0.0).to_le_bytes());
            at.put(&record.threshold.unwrap_or(0.0).to_le_bytes());
            let region = record.region.unwrap_or(Region { x: 0, y: 0, width: 0, height: 0 });
            for side in [region.x, region.y, region.width, region.height] {
                at.put(&side.to_le_bytes());
            }
        }
        Entry::Start { epoch, issued, at: when } => {
            at.put(&[KIND_START, 0, 0, 0]);
            at.put(&epoch.to_le_bytes());
            at.put(&[0; 8]);
            at.put(&issued.0.to_le_bytes());
            at.put(&[0; 8]);
            at.put(&micros(*when).to_le_bytes());
        }
        Entry::Stop { issued, at: when } => {
            at.put(&[KIND_STOP, 0, 0, 0]);
            at.put(&[0; 12]);
            at.put(&issued.0.to_le_bytes());
            at.put(&[0; 8]);
            at.put(&micros(*when).to_le_bytes());
        }
        Entry::Open { part } => {
            at.put(&[KIND_OPEN, 0, 0, 0, 0, 0, 0, 0]);
            at.put(&part.0.to_le_bytes());
        }
        Entry::Issued { part } => {
            at.put(&[KIND_ISSUED, 0, 0, 0, 0, 0, 0, 0]);
            at.put(&part.0.to_le_bytes());
        }
    }
    bytes[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&number.to_le_bytes());
    seal(&mut bytes);
    bytes
}

const NUMBER_AT: usize = ENTRY_BYTES - 4 - 8;

/// The entry and its number; `None` where the bytes are not an entry.
pub(super) fn decode(bytes: &[u8; ENTRY_BYTES]) -> Option<(Entry, u64)> {
    if !sealed(bytes) {
        return None;
    }
    let number = Reader { bytes, at: NUMBER_AT }.u64();
    let mut at = Reader { bytes, at: 0 };
    let [kind, verdict, cause, has] = at.take();
    let entry = match kind {
        KIND_PART | KIND_WITHDRAWN => {
            let verdict = match verdict {
                1 => Verdict::Accept,
                2 => Verdict::Reject(Cause::from_code(cause)?),
                _ => return None,
            };
            let camera = at.u16();
            at.take::<2>();
            let (part, issued) = (PartId(at.u64()), PartId(at.u64()));
            let frame = FrameId { camera, seq: at.u64() };
            let triggered_at = moment(at.i64());
            let latency_us = at.u32();
            let (score, threshold) = (at.f32(), at.f32());
            let (x, y, width, height) = (at.u32(), at.u32(), at.u32(), at.u32());
            let record = Record {
                part,
                issued,
                frame,
                verdict,
                score: (has & HAS_SCORE != 0).then_some(score),
                threshold: (has & HAS_THRESHOLD != 0).then_some(threshold),
                region: (has & HAS_REGION != 0).then_some(Region { x, y, width, height }),
                triggered_at,
                latency_us,
            };
            if kind == KIND_PART { Entry::Part(record) } else { Entry::Withdrawn(record) }
        }
        KIND_START => {
            let epoch = at.u32();
            at.take::<8>();
            let issued = PartId(at.u64());
            at.take::<8>();
            Entry::Start { epoch, issued, at: moment(at.i64()) }
        }
        KIND_STOP => {
            at.take::<12>();
            let issued = PartId(at.u64());
            at.take::<8>();
            Entry::Stop { issued, at: moment(at.i64()) }
        }
        KIND_OPEN => {
            at.take::<4>();
            Entry::Open { part: PartId(at.u64()) }
        }
        KIND_ISSUED => {
            at.take::<4>();
            Entry::Issued { part: PartId(at.u64()) }
        }
        _ => return None,
    };
    Some((entry, number))
}

/// What was found in one segment.
#[derive(Debug)]
pub(super) struct Scan {
    /// After the last usable entry.
    pub state: State,
    /// Usable part records.
    pub parts: u64,
    pub end: End,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Every byte is part of a whole entry.
    Whole,
    /// From byte `offset` on there is no whole entry any more: a write was cut off there.
    Torn { offset: u64 },
    /// At byte `offset` something is wrong, and usable entries follow.
    Damaged { offset: u64, what: String },
}

/// Reads one segment from its first byte. `before` is the state after the segment before it; it is
/// used where the header is unusable and held against the header where it is not. Every usable
/// entry is given to `visit`, also those after a damaged one.
pub(super) fn scan(
    bytes: &[u8],
    before: Option<&State>,
    mut visit: impl FnMut(&Entry),
) -> Result<Scan, u32> {
    let mut damage: Option<(usize, String)> = None;
    let (mut state, open) = match decode_header(bytes) {
        Ok((state, open)) => {
            if let Some(before) = before {
                let expected = State { open: BTreeSet::new(), ..before.clone() };
                if state != expected || open != before.open.len() as u64 {
                    damage = Some((0, "the header does not continue the segment before".into()));
                }
            }
            (state, Some(open))
        }
        Err(HeaderFault::Newer(version)) => return Err(version),
        Err(HeaderFault::Damaged(what)) => {
            damage = Some((0, what.into()));
            (before.cloned().unwrap_or_default(), None)
        }
    };
    let (entries, rest) = bytes.get(HEADER_BYTES..).unwrap_or(&[]).as_chunks::<ENTRY_BYTES>();
    let first = state.entries;
    let (mut parts, mut torn) = (0, None);
    for (index, entry) in entries.iter().enumerate() {
        let offset = HEADER_BYTES + index * ENTRY_BYTES;
        let Some((entry, number)) = decode(entry) else {
            torn.get_or_insert(offset);
            continue;
        };
        if let Some(offset) = torn.take() {
            damage.get_or_insert((offset, "an entry is unreadable".into()));
        }
        if number != first + index as u64 {
            let what = format!("entry {number} stands in place of {}", first + index as u64);
            damage.get_or_insert((offset, what));
        }
        let listed = matches!(entry, Entry::Open { .. });
        if open.is_some_and(|open| listed != ((index as u64) < open)) {
            damage.get_or_insert((offset, "the list of open parts is not at the head".into()));
        }
        if let Entry::Part(Record { part, .. }) | Entry::Issued { part } = &entry
            && open.is_none()
            && state.issued == 0
        {
            // Nothing is known of the ids before; they are not to be closed a second time.
            state.issued = part.0.saturating_sub(1);
        }
        match state.apply(&entry) {
            Ok(()) => {
                parts += u64::from(matches!(entry, Entry::Part(_)));
                visit(&entry);
            }
            // Where the header is gone the list of open parts repeats what is known.
            Err(_) if listed && open.is_none() => {}
            Err(what) => {
                damage.get_or_insert((offset, what));
                if let Entry::Part(Record { issued, .. }) | Entry::Issued { part: issued } = &entry
                {
                    state.issued = state.issued.max(issued.0);
                }
            }
        }
        state.entries = state.entries.max(number.saturating_add(1));
    }
    if torn.is_none() && !rest.is_empty() {
        torn = Some(HEADER_BYTES + entries.len() * ENTRY_BYTES);
    }
    let whole_list = open.is_none_or(|open| {
        torn.map_or(entries.len(), |torn| (torn - HEADER_BYTES) / ENTRY_BYTES) as u64 >= open
    });
    if !whole_list {
        damage.get_or_insert((HEADER_BYTES, "the list of open parts is cut short".into()));
    }
    let end = match (damage, torn) {
        (Some((offset, what)), _) => End::Damaged { offset: offset as u64, what },
        (None, Some(offset)) => End::Torn { offset: offset as u64 },
        (None, None) => End::Whole,
    };
    Ok(Scan { state, parts, end })
}

fn seal(bytes: &mut [u8]) {
    let (body, crc) = bytes.split_at_mut(bytes.len() - 4);
    crc.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
}

fn sealed(bytes: &[u8]) -> bool {
    let (body, crc) = bytes.split_at(bytes.len() - 4);
    crc == crc32fast::hash(body).to_le_bytes()
}

/// Microseconds since 1970; a clock set before that gives 0.
fn micros(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn moment(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

/// Takes fields off a block whose size is known to hold them.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        field
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn i64(&mut self) -> i64 {
        i64::from_le_bytes(self.take())
    }

    fn f32(&mut self) -> f32 {
        f32::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(part: u64, issued: u64) -> Record {
        Record {
            part: PartId(part),
            issued: PartId(issued),
            frame: FrameId { camera: 3, seq: 1 << 40 },
            verdict: Verdict::Reject(Cause::Anomaly),
            score: Some(3.5),
            threshold: None,
            region: Some(Region { x: 1, y: 2, width: 3, height: 4_000_000_000 }),
            triggered_at: UNIX_EPOCH + Duration::from_micros(1_777_000_000_123_456),
            latency_us: 18_400,
        }
    }

    #[test]
    fn an_entry_reads_back_as_written_and_no_flipped_bit_passes() {
        let at = UNIX_EPOCH + Duration::from_micros(77);
        let entries = [
            Entry::Part(record(7, 9)),
            Entry::Part(Record { verdict: Verdict::Accept, region: None, ..record(1, 1) }),
            Entry::Start { epoch: 4, issued: PartId(u64::MAX), at },
            Entry::Stop { issued: PartId(8), at },
            Entry::Open { part: PartId(12) },
            Entry::Issued { part: PartId(u64::MAX) },
        ];
        for entry in entries {
            let bytes = encode(&entry, 42);
            assert_eq!(decode(&bytes), Some((entry, 42)));
            for bit in 0..ENTRY_BYTES * 8 {
                let mut bytes = bytes;
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&bytes), None, "bit {bit} of {entry:?}");
            }
        }
        assert_eq!(decode(&[0; ENTRY_BYTES]), None);
    }

    /* zlib.crc32(b"123456789") = 0xCBF43926 (the check value of CRC-32/ISO-HDLC) */
    #[test]
    fn the_checksum_is_crc_32() {
        let mut bytes = *b"123456789....";
        seal(&mut bytes);
        assert_eq!(bytes[9..], 0xCBF4_3926_u32.to_le_bytes());
    }

    #[test]
    fn a_header_carries_the_state_and_a_later_version_is_told_apart() {
        let mut state = State { epoch: 3, entries: 900, issued: 1000, ..State::default() };
        state.apply(&Entry::Part(record(1002, 1003))).unwrap();
        let bytes = encode_header(&state, UNIX_EPOCH);
        let (read, open) = decode_header(&bytes).unwrap();
        assert_eq!(open, 2);
        assert_eq!(read, State { open: BTreeSet::new(), ..state });
        let mut later = bytes;
        later[8] = 2;
        seal(&mut later);
        assert_eq!(decode_header(&later), Err(HeaderFault::Newer(2)));
        assert!(matches!(decode_header(&bytes[..255]), Err(HeaderFault::Damaged(_))));
    }

    #[test]
    fn a_part_is_recorded_once_and_only_with_an_id_given_out() {
        let mut state = State::default();
        state.apply(&Entry::Part(record(2, 3))).unwrap();
        assert_eq!(state.open, BTreeSet::from([1, 3]));
        assert!(state.refuses(&record(2, 3)).is_some());
        assert!(state.refuses(&record(4, 3)).is_some());
        assert!(state.refuses(&record(3, u64::MAX)).is_some());
        assert!(state.refuses(&record(4, 4)).is_none());
        state.apply(&Entry::Part(record(1, 3))).unwrap();
        state.apply(&Entry::Part(record(3, 3))).unwrap();
        assert!(state.open.is_empty() && state.tally.closed());
        assert_eq!(state.tally.rejected_for(Cause::Anomaly), 3);
    }

    #[test]
    fn an_id_is_marked_once_and_open_until_its_record() {
        let mut state = State::default();
        state.apply(&Entry::Issued { part: PartId(2) }).unwrap();
        assert_eq!(state.open, BTreeSet::from([1, 2]));
        assert!(state.apply(&Entry::Issued { part: PartId(2) }).is_err());
        assert!(state.apply(&Entry::Issued { part: PartId(3 + MOST_OPEN) }).is_err());
        state.apply(&Entry::Part(record(1, 2))).unwrap();
        state.apply(&Entry::Part(record(2, 2))).unwrap();
        assert!(state.open.is_empty() && state.tally.closed());
    }
}
