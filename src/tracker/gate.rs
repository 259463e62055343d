//! Where each part is between its trigger and the gate, and what the gate does: all the logic, no
//! hardware. `output/gate.rs` turns it at a fixed pace with what the I/O station reads.
//!
//! A part is known to the gate from its trigger on, as *reject*; only a verdict that comes before it
//! reaches the gate makes it pass. The gate stands at reject whenever it is not known that the part in
//! it passed (for a pulse-to-reject gate: whenever a part is in it that did not).
//!
//! Terms:
//! - *count*: the belt's position, in encoder counts, or in microseconds where time stands for it;
//! - *window*: from `before` counts ahead of the gate to `after` counts behind it: a part in it is
//!   handled by the gate;
//! - *reach*: how far a part moves at most from the moment that the gate is told until it has moved;
//! - *blind*: parts are on the belt whose position is not known.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Alarm, Alarms};
use crate::frame::PartId;

mod config;

pub use config::{Actuator, Clock, Config};

/// What the I/O station's inputs say in one turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The encoder's counter, which may wrap.
    pub encoder: Option<u32>,
    pub eye: bool,
    pub confirm: bool,
    pub bin_full: bool,
    pub air_low: bool,
}

/// What the outputs shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The gate's position.
    pub pass: bool,
    /// Ask for the belt to stop.
    pub stop: bool,
}

/// What tells where on the belt a part was triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// When it was.
    Time,
    /// A trigger that came through the gate's own station: the belt's position there.
    Count(i64),
    /// Nothing: its picture is its trigger, and did not come whole.
    Unknown,
}

/// An alarm that came up.
#[derive(Clone, Debug, PartialEq)]
pub struct Raised {
    pub alarm: Alarm,
    pub part: Option<PartId>,
    pub reason: String,
}

/// A part between its trigger and some way behind the gate.
#[derive(Clone, Debug)]
struct OnBelt {
    /// Where the belt is when the part is in the gate.
    at: i64,
    accepted: bool,
    seen: bool,
    /// Its fate, from the moment on that the gate must be told.
    fate: Option<bool>,
    /// It was told as missing.
    missed: bool,
}

/// A part whose trigger is not on the belt's clock yet.
#[derive(Clone, Debug)]
struct Arriving {
    part: PartId,
    camera: u16,
    captured_at: Instant,
    place: Place,
    travel: i64,
    accepted: bool,
    /// The belt was lost sight of meanwhile.
    doomed: bool,
}

/// The part of a camera that was put on the belt last.
#[derive(Clone, Copy, Debug)]
struct Last {
    part: PartId,
    /// Where it was triggered.
    at: i64,
    /// How many after it were triggered just there.
    again: u32,
}

/// The gate of a line.
#[derive(Debug)]
pub struct Gate {
    config: Config,
    /// Counts since the first reading, unwrapped.
    position: i64,
    encoder: Option<u32>,
    /// Of the last reading.
    read_at: Option<Instant>,
    moved_at: Option<Instant>,
    began_at: Option<Instant>,
    /// Where the belt was when, oldest first.
    history: VecDeque<(Instant, i64)>,
    arriving: Vec<Arriving>,
    on_belt: BTreeMap<PartId, OnBelt>,
    /// Where nobody was triggered but something was seen.
    strangers: Vec<i64>,
    /// Parts are on the belt up to here that are not known.
    blind_until: Option<i64>,
    /// Behind this everything is forgotten.
    forgotten_to: Option<i64>,
    eye: bool,
    confirm: bool,
    unconfirmed: VecDeque<(PartId, Instant)>,
    /// At reject, whatever comes, until then.
    hold_until: Option<Instant>,
    passing: bool,
    alarms: Alarms,
    raised: Vec<Raised>,
    rejects_in_a_row: u32,
    fates: VecDeque<bool>,
    /// By camera.
    last: BTreeMap<u16, Last>,
}

/// So far back a trigger's time is put on the belt's clock. Longer ago than any picture takes.
const HISTORY: Duration = Duration::from_secs(20);

/// Parts of one camera that are triggered without the encoder moving before it counts as lost.
const STANDING: u32 = 2;

/// Readings may be this much faster than the belt, for the jitter of when they are taken.
const JITTER: f64 = 1.5;

/// Two parts of a camera that are nearer than this share of the pitch can't both be where they seem
/// to be: a trigger that bounced, or a time that is wrong by so much that a part could be taken for
/// its neighbour.
const NEAR: f64 = 0.5;

impl Gate {
    pub fn new(config: Config) -> Gate {
        Gate {
            config,
            position: 0,
            encoder: None,
            read_at: None,
            moved_at: None,
            began_at: None,
            history: VecDeque::new(),
            arriving: Vec::new(),
            on_belt: BTreeMap::new(),
            strangers: Vec::new(),
            blind_until: None,
            forgotten_to: None,
            eye: false,
            confirm: false,
            unconfirmed: VecDeque::new(),
            hold_until: None,
            passing: false,
            alarms: Alarms::default(),
            raised: Vec::new(),
            rejects_in_a_row: 0,
            fates: VecDeque::new(),
            last: BTreeMap::new(),
        }
    }

    /// A part was triggered at `captured_at`. One whose place is unknown is kept from passing by there
    /// being no part of ours where it is; where that lets things pass, nothing passes for a while.
    pub fn admit(&mut self, part: PartId, camera: (u16, &str), captured_at: Instant, place: Place) {
        let travel = self.config.travel_of.get(camera.1).copied().unwrap_or(self.config.travel);
        let travel = (travel * self.config.per_unit()) as i64;
        let (accepted, doomed, camera) = (false, false, camera.0);
        if place == Place::Unknown {
            self.count_fate(part, false);
            if self.passes_unseen() {
                self.go_blind();
            }
            return;
        }
        let arriving = Arriving { part, camera, captured_at, place, travel, accepted, doomed };
        self.arriving.push(arriving);
    }

    /// The part's verdict. One that comes after the part has reached the gate changes nothing.
    pub fn verdict(&mut self, part: PartId, accepted: bool) {
        if let Some(arriving) = self.arriving.iter_mut().find(|arriving| arriving.part == part) {
            arriving.accepted = accepted;
            return;
        }
        let Some(on_belt) = self.on_belt.get_mut(&part) else { return };
        match on_belt.fate {
            None => on_belt.accepted = accepted,
            Some(false) if accepted && !on_belt.accepted => {
                let reason = "its verdict came when it had reached the gate".to_owned();
                self.raise(Alarm::VerdictLate, Some(part), reason);
            }
            Some(_) => {}
        }
    }

    /// Somebody has looked: nothing stands any more.
    pub fn clear_alarms(&mut self) {
        if self.alarms.stands(Alarm::EncoderLost) {
            self.go_blind();
        }
        self.alarms.clear();
        self.rejects_in_a_row = 0;
        self.fates.clear();
        self.unconfirmed.clear();
        self.last.clear();
    }

    /// One turn. `reading`: `None` where the station did not answer; its outputs are not known then.
    pub fn turn(&mut self, reading: Option<&Reading>, now: Instant) -> Command {
        match reading {
            Some(reading) => self.read(reading, now),
            None => self.raise(Alarm::IoLost, None, "the I/O station does not answer".to_owned()),
        }
        self.place_arriving();
        self.fix_fates(now);
        self.watch_confirms(now);
        self.forget();
        let pass = reading.is_some() && self.passes(now);
        self.passing = pass;
        Command { pass, stop: self.alarms.stop() }
    }

    /// The belt's position now, in counts since the first reading: for a trigger through the same
    /// station.
    pub fn position(&self) -> i64 {
        self.position
    }

    pub fn alarms(&self) -> Alarms {
        self.alarms
    }

    /// What came up since it was last asked.
    pub fn raised(&mut self) -> Vec<Raised> {
        std::mem::take(&mut self.raised)
    }

    fn raise(&mut self, alarm: Alarm, part: Option<PartId>, reason: String) {
        if self.alarms.raise(alarm) {
            self.raised.push(Raised { alarm, part, reason });
        }
    }

    fn counts(&self, distance: f64) -> i64 {
        (distance * self.config.per_unit()).round() as i64
    }

    fn reach(&self) -> i64 {
        self.config.reach().ceil() as i64
    }

    fn read(&mut self, reading: &Reading, now: Instant) {
        let before = self.position;
        match self.config.clock {
            Clock::Time => {
                let began = *self.began_at.get_or_insert(now);
                self.position = now.saturating_duration_since(began).as_micros() as i64;
            }
            Clock::Encoder => self.count(reading.encoder, now),
        }
        if self.read_at.is_none() && self.config.actuator == Actuator::PulseToReject {
            // Whatever lies on the belt was not seen by us, and would pass by itself.
            self.go_blind();
        }
        if self.position != before || self.moved_at.is_none() {
            self.moved_at = Some(now);
        }
        self.read_at = Some(now);
        self.history.push_back((now, self.position));
        while self.history.len() > 2 && now.saturating_duration_since(self.history[1].0) > HISTORY {
            self.history.pop_front();
        }
        self.see(reading);
        if reading.bin_full {
            self.raise(Alarm::BinFull, None, "the bin is full".to_owned());
        }
        if reading.air_low {
            self.raise(Alarm::AirLow, None, "the ejector's air is low".to_owned());
        }
        if self.forgotten_to.is_some_and(|forgotten| self.position < forgotten) {
            let reason = "the belt ran back beyond the parts that are remembered".to_owned();
            self.raise(Alarm::TrackingLost, None, reason);
            let until = self.blind_until.max(self.forgotten_to);
            self.blind_until = until;
        }
    }

    fn count(&mut self, encoder: Option<u32>, now: Instant) {
        let Some(raw) = encoder else {
            self.raise(Alarm::EncoderLost, None, "the station has no encoder value".to_owned());
            return;
        };
        let Some(last) = self.encoder.replace(raw) else { return };
        let moved = i64::from(raw.wrapping_sub(last).cast_signed());
        let taken = self.read_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let cycle = self.config.cycle_ms / 1000.0;
        let most = self.config.speed() * (taken.as_secs_f64() * JITTER + 2.0 * cycle) + 2.0;
        if moved.unsigned_abs() as f64 > most {
            let reason = format!(
                "the encoder leapt by {moved} counts in {:.1} ms",
                taken.as_secs_f64() * 1000.0
            );
            self.raise(Alarm::EncoderLost, None, reason);
            self.go_blind();
            return;
        }
        // Over a gap a leap could hide in what the belt may have moved: it is held against the speed
        // before, so closely that no part could be taken for its neighbour.
        let slack = self.config.free() / 2.0;
        let expected = self.speed_before() * taken.as_secs_f64();
        if most > slack && (moved as f64 - expected).abs() > slack {
            let reason = format!(
                "the encoder moved by {moved} counts while it was not read for {:.0} ms; {expected:.0} \
                 were expected",
                taken.as_secs_f64() * 1000.0
            );
            self.raise(Alarm::EncoderLost, None, reason);
            self.go_blind();
        }
        self.position += moved;
        let Some(speed) = self.speed(now) else { return };
        if speed > self.config.speed() * 1.05 {
            let reason = format!("{speed:.0} counts/s, laid out for {:.0}", self.config.speed());
            self.raise(Alarm::Overspeed, None, reason);
            self.go_blind();
        }
    }

    /// Counts per second over the last tenth of a second and more.
    fn speed(&self, now: Instant) -> Option<f64> {
        let since = |at: Instant| now.saturating_duration_since(at);
        let &(at, position) =
            self.history.iter().rev().find(|(at, _)| since(*at) >= Duration::from_millis(100))?;
        // Over a gap the speed within it is not known.
        let seconds = since(at).as_secs_f64();
        (seconds < 0.5).then(|| (self.position - position) as f64 / seconds)
    }

    /// Counts per second up to the last reading; 0 where there were too few.
    fn speed_before(&self) -> f64 {
        self.read_at.and_then(|at| self.speed(at)).unwrap_or(0.0)
    }

    /// Everything on the belt has been lost sight of, and will have left it when so much has moved.
    fn go_blind(&mut self) {
        let farthest = self.config.travel_of.values().copied().fold(self.config.travel, f64::max);
        let until = self.position + self.counts(farthest + self.config.after) + self.reach();
        self.blind_until = self.blind_until.max(Some(until));
        for part in self.on_belt.values_mut() {
            part.fate = Some(false);
        }
        for arriving in &mut self.arriving {
            arriving.doomed = true;
        }
    }

    /// Edges of the photo-eye and of the bin's sensor.
    fn see(&mut self, reading: &Reading) {
        let came = reading.eye && !self.eye;
        self.eye = reading.eye;
        if let Some(eye_before) = self.config.eye_before {
            let eye_before = self.counts(eye_before);
            let tolerance = self.counts(self.config.eye_tolerance);
            let here = self.position + eye_before;
            if came {
                let nearest = self
                    .on_belt
                    .values_mut()
                    .filter(|part| !part.seen && (part.at - here).abs() <= tolerance)
                    .min_by_key(|part| (part.at - here).abs());
                match nearest {
                    Some(part) => (part.seen, part.at) = (true, here),
                    None => {
                        self.strangers.push(here);
                        let reason = "the photo-eye saw what nobody triggered".to_owned();
                        self.raise(Alarm::PartUnexpected, None, reason);
                    }
                }
            }
            let missing = self.on_belt.iter_mut().find_map(|(&part, on_belt)| {
                let gone = !on_belt.seen && !on_belt.missed && on_belt.at + tolerance < here;
                on_belt.missed |= gone;
                gone.then_some(part)
            });
            if let Some(part) = missing {
                let reason = "it did not come to the photo-eye".to_owned();
                self.raise(Alarm::PartMissing, Some(part), reason);
            }
        }
        let confirmed = reading.confirm && !self.confirm;
        self.confirm = reading.confirm;
        if confirmed {
            self.unconfirmed.pop_front();
        }
    }

    /// Puts triggers on the belt's clock as soon as it has passed them.
    fn place_arriving(&mut self) {
        let Some(read_at) = self.read_at else { return };
        let (ready, later): (Vec<Arriving>, Vec<Arriving>) = std::mem::take(&mut self.arriving)
            .into_iter()
            .partition(|part| matches!(part.place, Place::Count(_)) || part.captured_at <= read_at);
        self.arriving = later;
        for arriving in ready {
            let placed = match arriving.place {
                Place::Count(count) => Some(count),
                _ => self.position_at(arriving.captured_at),
            };
            // From before the first reading, or longer ago than is remembered: it may be anywhere.
            let unplaced = arriving.doomed || placed.is_none();
            let at = placed.unwrap_or(self.position);
            let doomed = self.watch_neighbours(&arriving, at) || unplaced;
            let on_belt = OnBelt {
                at: at + arriving.travel,
                accepted: arriving.accepted,
                seen: self.config.eye_before.is_none(),
                fate: doomed.then_some(false),
                missed: false,
            };
            self.on_belt.insert(arriving.part, on_belt);
        }
    }

    fn encoder_lost(&self) -> bool {
        self.alarms.stands(Alarm::EncoderLost)
    }

    /// What lies on the belt without a part of ours there passes by itself.
    fn passes_unseen(&self) -> bool {
        self.config.actuator == Actuator::PulseToReject && self.config.eye_before.is_none()
    }

    /// Holds a part against the one before it of its camera: parts that come while the encoder stands
    /// mean that it is dead. True: the part must not pass.
    fn watch_neighbours(&mut self, arriving: &Arriving, at: i64) -> bool {
        let now = Last { part: arriving.part, at, again: 0 };
        let Some(before) = self.last.insert(arriving.camera, now) else { return false };
        let again = if before.at == at { before.again + 1 } else { 0 };
        self.last.insert(arriving.camera, Last { again, ..now });
        if again >= STANDING && self.config.clock == Clock::Encoder {
            let reason = "parts are triggered, but the encoder stands".to_owned();
            self.raise(Alarm::EncoderLost, Some(arriving.part), reason);
            self.go_blind();
        }
        let apart = (at - before.at).abs();
        if apart as f64 >= NEAR * self.config.pitch * self.config.per_unit() {
            return false;
        }
        let reason = format!(
            "it was triggered {:.1} {unit} from part {}, laid out for {} {unit}",
            apart as f64 / self.config.per_unit(),
            before.part,
            self.config.pitch,
            unit = self.config.unit()
        );
        self.raise(Alarm::TooClose, Some(arriving.part), reason);
        if let Some(other) = self.on_belt.get_mut(&before.part) {
            other.fate = Some(false);
        }
        // Where they really are something else would pass.
        if self.passes_unseen() {
            self.go_blind();
        }
        true
    }

    /// Where the belt was at a time; `None`: longer ago than is remembered.
    fn position_at(&self, time: Instant) -> Option<i64> {
        let after = self.history.partition_point(|&(at, _)| at < time);
        let &(late, to) = self.history.get(after)?;
        if late == time {
            return Some(to);
        }
        let &(early, from) = self.history.get(after.checked_sub(1)?)?;
        let share = time.duration_since(early).as_secs_f64() / (late - early).as_secs_f64();
        Some(from + ((to - from) as f64 * share).round() as i64)
    }

    /// What has reached the gate can change no more.
    fn fix_fates(&mut self, now: Instant) {
        let (before, reach) = (self.counts(self.config.before), self.reach());
        let ahead = self.position + reach;
        let blind = self.blind(self.position) || self.encoder_lost();
        let mut fixed: Vec<(i64, PartId, bool)> = Vec::new();
        for (&part, on_belt) in &mut self.on_belt {
            if on_belt.fate.is_none() && ahead >= on_belt.at - before {
                let pass = on_belt.accepted && on_belt.seen && !blind;
                on_belt.fate = Some(pass);
                fixed.push((on_belt.at, part, pass));
            }
        }
        fixed.sort_unstable();
        for (_, part, pass) in fixed {
            if !pass && self.config.confirm_within_ms > 0.0 {
                let until = now + Duration::from_secs_f64(self.config.confirm_within_ms / 1000.0);
                self.unconfirmed.push_back((part, until));
            }
            self.count_fate(part, pass);
        }
    }

    fn count_fate(&mut self, part: PartId, pass: bool) {
        let Config { consecutive_rejects, reject_share, reject_share_of, .. } = self.config;
        self.rejects_in_a_row = if pass { 0 } else { self.rejects_in_a_row + 1 };
        if consecutive_rejects > 0 && self.rejects_in_a_row >= consecutive_rejects {
            let reason = format!("{} rejects one after the other", self.rejects_in_a_row);
            self.raise(Alarm::ConsecutiveRejects, Some(part), reason);
        }
        self.fates.push_back(pass);
        if self.fates.len() > reject_share_of as usize {
            self.fates.pop_front();
        }
        let rejects = self.fates.iter().filter(|&&pass| !pass).count();
        if reject_share > 0.0
            && self.fates.len() == reject_share_of as usize
            && rejects as f64 > reject_share * f64::from(reject_share_of)
        {
            let reason = format!("{rejects} of the last {reject_share_of} parts are rejects");
            self.raise(Alarm::RejectRate, Some(part), reason);
        }
    }

    fn watch_confirms(&mut self, now: Instant) {
        while let Some(&(part, until)) = self.unconfirmed.front()
            && now >= until
        {
            self.unconfirmed.pop_front();
            let reason = "the rejected part was not seen in the bin".to_owned();
            self.raise(Alarm::RejectNotConfirmed, Some(part), reason);
        }
    }

    /// Parts are kept for a belt that runs back, as far again as a part's way.
    fn forget(&mut self) {
        let keep = self.counts(self.config.after + self.config.travel);
        let limit = self.position - keep;
        let (after, mut gone) = (self.counts(self.config.after), self.forgotten_to);
        self.on_belt.retain(|_, part| {
            let over = part.at < limit && part.fate.is_some();
            if over {
                gone = gone.max(Some(part.at + after));
            }
            !over
        });
        self.strangers.retain(|&at| {
            let over = at < limit;
            if over {
                gone = gone.max(Some(at + after));
            }
            !over
        });
        self.forgotten_to = gone;
        if self.blind_until.is_some_and(|until| self.position > until) {
            self.blind_until = None;
        }
    }

    fn blind(&self, position: i64) -> bool {
        self.blind_until.is_some_and(|until| position <= until)
    }

    fn passes(&mut self, now: Instant) -> bool {
        let (before, after) = (self.counts(self.config.before), self.counts(self.config.after));
        let (here, ahead) = (self.position, self.position + self.reach());
        let in_window = |at: i64| at - before <= ahead && at + after >= here;
        let fates = |wanted: bool| {
            self.on_belt
                .values()
                .any(|part| in_window(part.at) && part.fate.unwrap_or(false) == wanted)
        };
        let rejects = fates(false) || self.strangers.iter().any(|&at| in_window(at));
        let stands = self.config.clock == Clock::Encoder
            && self
                .moved_at
                .is_none_or(|at| now.saturating_duration_since(at) > self.config.standstill());
        let lost = self.blind(self.position) || self.encoder_lost() || stands;
        let idle = self.config.actuator == Actuator::PulseToReject;
        let wants = !rejects && !lost && (fates(true) || idle);
        if !wants && (rejects || lost) && self.passing {
            let pulse = Duration::from_secs_f64(self.config.min_pulse_ms / 1000.0);
            self.hold_until = Some(now + pulse);
        }
        wants && self.hold_until.is_none_or(|until| now >= until)
    }
}

#[cfg(test)]
#[path = "gate/tests.rs"]
mod tests;
