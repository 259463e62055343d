//! The register image a PLC reads, and the ring of the last verdicts, apart from any socket: Modbus
//! serves it, S7 writes it into a data block. The map is explained for PLC programmers in
//! `docs/plc.md`; numbers of more than one register come high word first.

use std::time::{Duration, Instant, UNIX_EPOCH};

use super::handshake::{ResultHandshake, TriggerHandshake};
use super::{Controls, LineState, LineStatus, Outcome, Tally};
use crate::verdict::{Cause, Verdict};

/// Addresses on the wire, counted from 0. The register that manuals call 40001 is address 0.
pub mod map {
    /// Changes when a register changes its place or meaning.
    pub const VERSION: u16 = 2;

    /// Written by the PLC.
    pub const CONTROL: u16 = 0;
    pub const PLC_HEARTBEAT: u16 = 1;
    pub const ACKNOWLEDGE: u16 = 2;
    /// Camera `n` is bit `n`.
    pub const TRIGGER: u16 = 3;
    pub(in crate::output) const WRITABLE: u16 = 4;

    /// From here on read only.
    pub const MAP_VERSION: u16 = 100;
    pub const STATUS: u16 = 101;
    pub const STATE: u16 = 102;
    pub const HEARTBEAT: u16 = 103;
    /// u32
    pub const EPOCH: u16 = 104;
    pub const NEWEST_SEQ: u16 = 106;
    pub const UNACKNOWLEDGED: u16 = 107;
    pub const OLDEST_UNACKNOWLEDGED_SEQ: u16 = 108;
    pub const CAMERAS_UP: u16 = 109;
    pub const CAMERAS: u16 = 110;
    pub const RING_SLOTS: u16 = 111;
    /// Camera `n` is bit `n` in these four.
    pub const TRIGGER_READY: u16 = 112;
    pub const TRIGGER_ACK: u16 = 113;
    pub const TRIGGER_MISSED: u16 = 114;
    pub const EXPOSED: u16 = 115;
    /// u32
    pub const MISSED: u16 = 116;
    /// Alarm with code `c` is bit `c - 1`.
    pub const ALARMS: u16 = 118;
    /// The newest one's code.
    pub const ALARM: u16 = 119;
    /// A copy of the newest ring entry.
    pub const LATEST: u16 = 120;
    /// u64 each
    pub const TRIGGERS: u16 = 152;
    pub const ACCEPTED: u16 = 156;
    pub const REJECTED: u16 = 160;
    pub const IN_FLIGHT: u16 = 164;
    pub const LATE: u16 = 168;
    pub const OVERRUNS: u16 = 172;
    /// u64 each, at `4 * (cause - 1)` from here; room for 16 causes.
    pub const CAUSES: u16 = 176;
    pub(in crate::output) const STATUS_END: u16 = 240;

    pub const HELD_STATUS: u16 = 300;
    pub const HELD_WAITING: u16 = 301;
    /// One ring entry.
    pub const HELD: u16 = 304;
    /// u64 each: the part that camera `n` was last triggered for.
    pub const ACQUISITION: u16 = 336;
    pub(in crate::output) const HANDSHAKE_END: u16 = ACQUISITION + 4 * CAMERAS_TRIGGERED;
    /// So many cameras, the first ones of the config, can be triggered by a PLC.
    pub const CAMERAS_TRIGGERED: u16 = 16;

    pub const RING: u16 = 1000;
    /// Registers of one entry.
    pub const ENTRY: u16 = 32;
    /// Divides 65535, so that slot = (seq - 1) MOD 255 holds across the wrap from 65535 to 1.
    pub const SLOTS: u16 = 255;

    /// Bits of [`CONTROL`].
    pub const CLEAR_OVERRUN: u16 = 1 << 0;
    pub const TRIGGER_ENABLE: u16 = 1 << 1;
    pub const HOLD_RESULTS: u16 = 1 << 2;
    pub const RESULTS_ACK: u16 = 1 << 3;
    pub const CLEAR_ALARMS: u16 = 1 << 4;

    /// Bits of [`HELD_STATUS`].
    pub const RESULTS_VALID: u16 = 1 << 0;
    pub const INSPECTION_COMPLETED: u16 = 1 << 1;
    pub const HELD_OVERRUN: u16 = 1 << 2;

    /// Bits of [`STATUS`]; also coils and discrete inputs 0 to 15.
    pub const READY: u16 = 1 << 0;
    pub const ERROR: u16 = 1 << 1;
    pub const EVIDENCE_LOST: u16 = 1 << 2;
    pub const OVERRUN: u16 = 1 << 3;
    pub const PLC_STALE: u16 = 1 << 4;
    pub const STANDSTILL: u16 = 1 << 5;
    pub const ACKNOWLEDGE_UNKNOWN: u16 = 1 << 6;
    pub const RESULT_WAITS: u16 = 1 << 7;
    pub const CAMERAS_ALL_UP: u16 = 1 << 8;
    pub const ALARM_STANDS: u16 = 1 << 9;

    /// Offsets in an entry.
    pub const SEQ: u16 = 0;
    pub const RESULT: u16 = 1;
    pub const CAUSE: u16 = 2;
    pub const CAMERA: u16 = 3;
    /// u64
    pub const PART: u16 = 4;
    /// f32
    pub const SCORE: u16 = 8;
    /// f32
    pub const THRESHOLD: u16 = 10;
    pub const VALID: u16 = 12;
    /// u32 each: x, y, width, height
    pub const REGION: u16 = 14;
    /// u32, microseconds
    pub const LATENCY: u16 = 22;
    /// u32
    pub const ENTRY_EPOCH: u16 = 24;
    /// u64, milliseconds since 1970
    pub const TRIGGERED_AT: u16 = 26;
    pub const SEQ_COPY: u16 = 31;

    /// Values of [`RESULT`]. Only `PASS` keeps a part.
    pub const NONE: u16 = 0;
    pub const PASS: u16 = 1;
    pub const FAIL: u16 = 2;
    pub const UNINSPECTED: u16 = 3;
    pub const FAULT: u16 = 4;

    /// Bits of [`VALID`].
    pub const SCORE_VALID: u16 = 1 << 0;
    pub const THRESHOLD_VALID: u16 = 1 << 1;
    pub const REGION_VALID: u16 = 1 << 2;
}

/// MODBUS exception codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exception {
    Function = 1,
    Address = 2,
    Value = 3,
    GatewayTarget = 11,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The line stands still when its last beat is older.
    pub beat: Duration,
    /// The PLC's heartbeat is stale when its last change is older.
    pub plc_heartbeat: Duration,
    /// Not ready while the PLC's heartbeat is stale.
    pub require_plc_heartbeat: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            beat: Duration::from_millis(500),
            plc_heartbeat: Duration::from_millis(500),
            require_plc_heartbeat: false,
        }
    }
}

/// One verdict as the PLC reads it; its sequence number is given when it enters the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(pub [u16; map::ENTRY as usize]);

impl Entry {
    pub fn of(outcome: &Outcome) -> Entry {
        let mut entry = Entry([0; map::ENTRY as usize]);
        let (result, cause) = match outcome.verdict {
            Verdict::Accept => (map::PASS, 0),
            Verdict::Reject(cause) => (result_of(cause), u16::from(cause.code())),
        };
        entry.put(map::RESULT, &[result]);
        entry.put(map::CAUSE, &[cause]);
        entry.put(map::CAMERA, &[outcome.frame.camera]);
        entry.put(map::PART, &quad(outcome.part.0));
        let mut valid = 0;
        // A PLC may stop on a NaN: what is no finite number is said not to be there.
        if let Some(score) = outcome.score.filter(|score| score.is_finite()) {
            entry.put(map::SCORE, &pair(score.to_bits()));
            valid |= map::SCORE_VALID;
        }
        if let Some(threshold) = outcome.threshold.filter(|threshold| threshold.is_finite()) {
            entry.put(map::THRESHOLD, &pair(threshold.to_bits()));
            valid |= map::THRESHOLD_VALID;
        }
        if let Some(region) = outcome.region {
            let sides = [region.x, region.y, region.width, region.height];
            for (at, side) in (map::REGION..).step_by(2).zip(sides) {
                entry.put(at, &pair(side));
            }
            valid |= map::REGION_VALID;
        }
        entry.put(map::VALID, &[valid]);
        let latency = u32::try_from(outcome.latency.as_micros()).unwrap_or(u32::MAX);
        entry.put(map::LATENCY, &pair(latency));
        let since = outcome.triggered_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        entry.put(map::TRIGGERED_AT, &quad(since.as_millis() as u64));
        entry
    }

    fn put(&mut self, at: u16, words: &[u16]) {
        let at = usize::from(at);
        self.0[at..at + words.len()].copy_from_slice(words);
    }
}

/// A person must come for a fault; the other causes of *uninspected* may pass by themselves.
fn result_of(cause: Cause) -> u16 {
    match cause {
        Cause::Anomaly => map::FAIL,
        Cause::QueueFull | Cause::TooLate | Cause::BadFrame | Cause::NotReady => map::UNINSPECTED,
        Cause::DetectorFailed | Cause::CameraLost | Cause::Interrupted => map::FAULT,
    }
}

/// A [`LineStatus`] as the registers need it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    state: LineState,
    epoch: u32,
    tally: Tally,
    late: u64,
    /// Camera `n` is bit `n`; cameras beyond 16 count for `all_up` only.
    cameras_up: u16,
    cameras: u16,
    all_up: bool,
    evidence_lost: bool,
    alarms: u16,
    /// 0: none.
    alarm: u16,
}

impl Beat {
    pub fn of(status: &LineStatus) -> Beat {
        let bits = status.cameras_up.iter().take(16).enumerate();
        Beat {
            state: status.state,
            epoch: status.epoch,
            tally: status.tally,
            late: status.late_verdicts,
            cameras_up: bits.fold(0, |bits, (n, &up)| bits | (u16::from(up) << n)),
            cameras: u16::try_from(status.cameras_up.len()).unwrap_or(u16::MAX),
            all_up: status.cameras_up.iter().all(|&up| up),
            evidence_lost: status.evidence_lost,
            alarms: status.alarms.bits(),
            alarm: status.alarms.newest().map_or(0, |alarm| u16::from(alarm.code())),
        }
    }
}

/// Results and beats on their way from the output thread to a wire's own.
pub(super) enum News {
    Result(Entry),
    Beat(Beat),
}

/// All registers. What depends on time is worked out when it is read, so that nothing has to run
/// for a standstill to show.
pub(super) struct Image {
    limits: Limits,
    control: u16,
    plc_heartbeat: u16,
    plc_changed_at: Option<Instant>,
    acknowledge: u16,
    acknowledge_unknown: bool,
    beat: Option<(Beat, Instant)>,
    heartbeat: u16,
    /// Results ever published and, of them, those the PLC has handled or missed.
    published: u64,
    settled: u64,
    overrun: bool,
    overruns: u64,
    ring: Box<[Entry]>,
    trigger: u16,
    triggers: TriggerHandshake,
    held: ResultHandshake,
    controls: Controls,
}

impl Image {
    pub fn new(limits: Limits, controls: Controls) -> Image {
        Image {
            trigger: 0,
            triggers: TriggerHandshake::new(&controls.triggers),
            held: ResultHandshake::default(),
            controls,
            limits,
            control: 0,
            plc_heartbeat: 0,
            plc_changed_at: None,
            acknowledge: 0,
            acknowledge_unknown: false,
            beat: None,
            heartbeat: 0,
            published: 0,
            settled: 0,
            overrun: false,
            overruns: 0,
            ring: vec![Entry([0; map::ENTRY as usize]); usize::from(map::SLOTS)].into(),
        }
    }

    /// Puts a result into the ring, over the oldest one.
    pub fn publish(&mut self, mut entry: Entry) {
        if self.unacknowledged() == map::SLOTS {
            self.settled += 1;
            self.missed(1);
        }
        let slot = (self.published % u64::from(map::SLOTS)) as usize;
        self.published += 1;
        let seq = seq_of(self.published);
        entry.put(map::SEQ, &[seq]);
        entry.put(map::SEQ_COPY, &[seq]);
        entry.put(map::ENTRY_EPOCH, &pair(self.beat.map_or(0, |(beat, _)| beat.epoch)));
        self.ring[slot] = entry;
        self.held.publish(entry);
    }

    /// What came over from the output thread.
    pub fn take(&mut self, news: News, now: Instant) {
        match news {
            News::Result(entry) => self.publish(entry),
            News::Beat(beat) => self.beat(beat, now),
        }
    }

    /// Results ever published.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// `count` results can no longer be read, or never could.
    pub fn missed(&mut self, count: u64) {
        self.overrun |= count > 0;
        self.overruns += count;
    }

    pub fn beat(&mut self, beat: Beat, now: Instant) {
        self.heartbeat = self.heartbeat.wrapping_add(1);
        self.beat = Some((beat, now));
    }

    /// The PLC has acknowledged everything that it can still read.
    pub fn settled(&self) -> bool {
        self.unacknowledged() == 0
    }

    /// Appends `count` registers from `address` on, high byte first.
    pub fn read(
        &self,
        address: u16,
        count: u16,
        now: Instant,
        reply: &mut Vec<u8>,
    ) -> Result<(), Exception> {
        let end = address.checked_add(count).ok_or(Exception::Address)?;
        let ring_end = map::RING + map::SLOTS * map::ENTRY;
        let mut put =
            |words: &[u16]| reply.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        if end <= map::WRITABLE {
            let words = [self.control, self.plc_heartbeat, self.acknowledge, self.trigger];
            put(&words[usize::from(address)..usize::from(end)]);
        } else if (map::MAP_VERSION..map::STATUS_END).contains(&address) && end <= map::STATUS_END {
            let words = self.status_block(now);
            let at = |address: u16| usize::from(address - map::MAP_VERSION);
            put(&words[at(address)..at(end)]);
        } else if (map::HELD_STATUS..map::HANDSHAKE_END).contains(&address)
            && end <= map::HANDSHAKE_END
        {
            let words = self.handshake_block();
            let at = |address: u16| usize::from(address - map::HELD_STATUS);
            put(&words[at(address)..at(end)]);
        } else if (map::RING..ring_end).contains(&address) && end <= ring_end {
            for at in address - map::RING..end - map::RING {
                let entry = self.ring[usize::from(at / map::ENTRY)];
                put(&[entry.0[usize::from(at % map::ENTRY)]]);
            }
        } else {
            return Err(Exception::Address);
        }
        Ok(())
    }

    /// The status bits from `address` on, the first one lowest.
    pub fn bits(&self, address: u16, count: u16, now: Instant) -> Result<u16, Exception> {
        match address.checked_add(count) {
            Some(..=16) => Ok((self.status(now) >> address) & (u16::MAX >> (16 - count))),
            _ => Err(Exception::Address),
        }
    }

    /// Writes all of `values` or none.
    pub fn write(&mut self, address: u16, values: &[u16], now: Instant) -> Result<(), Exception> {
        if usize::from(address) + values.len() > usize::from(map::WRITABLE) {
            return Err(Exception::Address);
        }
        for (address, &value) in (address..).zip(values) {
            match address {
                map::CONTROL => {
                    // On the rising edge only: a bit left standing must not hide the next overrun.
                    let rises = value & !self.control;
                    if rises & map::CLEAR_OVERRUN != 0 {
                        self.overrun = false;
                        self.held.clear_overrun();
                    }
                    if rises & map::CLEAR_ALARMS != 0 {
                        self.controls.clear_alarms();
                    }
                    self.control = value;
                }
                map::PLC_HEARTBEAT => {
                    if self.plc_changed_at.is_none() || value != self.plc_heartbeat {
                        self.plc_changed_at = Some(now);
                    }
                    self.plc_heartbeat = value;
                }
                map::ACKNOWLEDGE => self.acknowledge(value),
                _ => self.trigger = value,
            }
        }
        let set = |bit: u16| self.control & bit != 0;
        self.held.write(set(map::HOLD_RESULTS), set(map::RESULTS_ACK));
        let enabled = set(map::TRIGGER_ENABLE);
        let ready = self.ready(now);
        self.triggers.write(enabled, self.trigger, ready, now);
        Ok(())
    }

    /// Everything up to `seq` is handled. 0 says nothing; a number that is not in the ring is shown
    /// as unknown; an older one than before changes nothing.
    fn acknowledge(&mut self, seq: u16) {
        self.acknowledge = seq;
        let back = (u64::from(seq_of(self.published)) + SEQS - u64::from(seq)) % SEQS;
        let known = seq != 0 && back < self.published.min(u64::from(map::SLOTS));
        self.acknowledge_unknown = seq != 0 && !known;
        if known {
            self.settled = self.settled.max(self.published - back);
        }
    }

    fn unacknowledged(&self) -> u16 {
        (self.published - self.settled) as u16
    }

    fn beating(&self, now: Instant) -> Option<&Beat> {
        let (beat, at) = self.beat.as_ref()?;
        (now.saturating_duration_since(*at) <= self.limits.beat).then_some(beat)
    }

    /// OPC 40100-1 state number. A line that stands still without having said goodbye is in error.
    fn state(&self, now: Instant) -> LineState {
        match (self.beating(now), &self.beat) {
            (Some(beat), _) => beat.state,
            (None, None) => LineState::Preoperational,
            (None, Some((Beat { state: LineState::Halted, .. }, _))) => LineState::Halted,
            (None, Some(_)) => LineState::Error,
        }
    }

    fn plc_stale(&self, now: Instant) -> bool {
        self.plc_changed_at
            .is_none_or(|at| now.saturating_duration_since(at) > self.limits.plc_heartbeat)
    }

    fn ready(&self, now: Instant) -> bool {
        self.beating(now).is_some()
            && self.state(now).ready()
            && !(self.limits.require_plc_heartbeat && self.plc_stale(now))
    }

    fn status(&self, now: Instant) -> u16 {
        let state = self.state(now);
        let beat = self.beating(now);
        let lost = self.beat.is_some_and(|(beat, _)| beat.evidence_lost);
        let bits = [
            (map::READY, self.ready(now)),
            (map::ERROR, state == LineState::Error),
            (map::EVIDENCE_LOST, lost),
            (map::OVERRUN, self.overrun),
            (map::PLC_STALE, self.plc_stale(now)),
            (map::STANDSTILL, beat.is_none()),
            (map::ACKNOWLEDGE_UNKNOWN, self.acknowledge_unknown),
            (map::RESULT_WAITS, self.unacknowledged() > 0),
            (map::CAMERAS_ALL_UP, beat.is_some_and(|beat| beat.all_up)),
            (map::ALARM_STANDS, self.beat.is_some_and(|(beat, _)| beat.alarms != 0)),
        ];
        bits.iter().filter(|(_, set)| *set).fold(0, |word, (bit, _)| word | bit)
    }

    fn status_block(&self, now: Instant) -> [u16; STATUS_WORDS] {
        let mut block = [0; STATUS_WORDS];
        let mut put = |address: u16, words: &[u16]| {
            let at = usize::from(address - map::MAP_VERSION);
            block[at..at + words.len()].copy_from_slice(words);
        };
        put(map::MAP_VERSION, &[map::VERSION]);
        put(map::STATUS, &[self.status(now)]);
        put(map::STATE, &[self.state(now) as u16]);
        put(map::HEARTBEAT, &[self.heartbeat]);
        put(map::NEWEST_SEQ, &[seq_of(self.published)]);
        put(map::UNACKNOWLEDGED, &[self.unacknowledged()]);
        if self.unacknowledged() > 0 {
            put(map::OLDEST_UNACKNOWLEDGED_SEQ, &[seq_of(self.settled + 1)]);
        }
        put(map::RING_SLOTS, &[map::SLOTS]);
        let triggers = &self.triggers;
        put(
            map::TRIGGER_READY,
            &[
                triggers.ready(self.ready(now)),
                triggers.acks(),
                triggers.missed(),
                triggers.exposed(),
            ],
        );
        put(map::MISSED, &pair(u32::try_from(triggers.missed_ever()).unwrap_or(u32::MAX)));
        if let Some(newest) = self.published.checked_sub(1) {
            let slot = (newest % u64::from(map::SLOTS)) as usize;
            put(map::LATEST, &self.ring[slot].0);
        }
        put(map::OVERRUNS, &quad(self.overruns));
        if let Some((beat, _)) = &self.beat {
            put(map::EPOCH, &pair(beat.epoch));
            // A line that stands still has no camera that delivers.
            put(map::CAMERAS_UP, &[self.beating(now).map_or(0, |beat| beat.cameras_up)]);
            put(map::CAMERAS, &[beat.cameras]);
            put(map::ALARMS, &[beat.alarms, beat.alarm]);
            put(map::TRIGGERS, &quad(beat.tally.triggers));
            put(map::ACCEPTED, &quad(beat.tally.accepted));
            put(map::REJECTED, &quad(beat.tally.rejected_total()));
            put(map::IN_FLIGHT, &quad(beat.tally.in_flight()));
            put(map::LATE, &quad(beat.late));
            const { assert!(Cause::ALL.len() <= 16) };
            for (address, cause) in (map::CAUSES..).step_by(4).zip(Cause::ALL) {
                put(address, &quad(beat.tally.rejected_for(cause)));
            }
        }
        block
    }

    fn handshake_block(&self) -> [u16; HANDSHAKE_WORDS] {
        let mut block = [0; HANDSHAKE_WORDS];
        let mut put = |address: u16, words: &[u16]| {
            let at = usize::from(address - map::HELD_STATUS);
            block[at..at + words.len()].copy_from_slice(words);
        };
        let bits = [
            (map::RESULTS_VALID, self.held.valid().is_some()),
            (map::INSPECTION_COMPLETED, self.held.completed()),
            (map::HELD_OVERRUN, self.held.overrun()),
        ];
        let status = bits.iter().filter(|(_, set)| *set).fold(0, |word, (bit, _)| word | bit);
        put(map::HELD_STATUS, &[status, self.held.waiting()]);
        if let Some(entry) = self.held.valid() {
            put(map::HELD, &entry.0);
        }
        for (camera, address) in (0..map::CAMERAS_TRIGGERED).zip((map::ACQUISITION..).step_by(4)) {
            put(address, &quad(self.triggers.part(usize::from(camera))));
        }
        block
    }
}

const HANDSHAKE_WORDS: usize = (map::HANDSHAKE_END - map::HELD_STATUS) as usize;

const STATUS_WORDS: usize = (map::STATUS_END - map::MAP_VERSION) as usize;

/// Sequence numbers go from 1 to 65535 and around; 0 is none.
const SEQS: u64 = 65_535;

/// Of the `nth` result, counted from 1; 0 before the first.
fn seq_of(nth: u64) -> u16 {
    nth.checked_sub(1).map_or(0, |before| (before % SEQS) as u16 + 1)
}

fn pair(value: u32) -> [u16; 2] {
    [(value >> 16) as u16, value as u16]
}

fn quad(value: u64) -> [u16; 4] {
    [(value >> 48) as u16, (value >> 32) as u16, (value >> 16) as u16, value as u16]
}

#[cfg(test)]
#[path = "registers_tests.rs"]
mod tests;
