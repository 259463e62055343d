//! Where each part is between trigger and verdict, and when its time is up.
//!
//! A part's *decision time* is its trigger time plus the travel time to the ejector minus the
//! output's latency. A part without verdict at its decision time is rejected; a verdict that comes
//! later never turns it into an accept.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crate::frame::{FrameId, PartId, Truth};

mod alarm;
mod gate;
mod way;

pub use alarm::{Alarm, Alarms};
pub use gate::{Actuator, Clock, Command, Config as GateConfig, Gate, Place, Raised, Reading};
pub use way::{Belt, Config, Load, Timing};

/// A part on its way.
#[derive(Clone, Debug)]
pub struct Track {
    pub part: PartId,
    pub frame: FrameId,
    pub name: Arc<str>,
    pub captured_at: Instant,
    /// What tells where it was triggered.
    pub place: Place,
    /// The decision time.
    pub decide_at: Instant,
    /// When the ejector must act.
    pub eject_at: Instant,
    pub truth: Option<Truth>,
}

/// All parts that are triggered and have no verdict yet.
#[derive(Debug, Default)]
pub struct Tracker {
    tracks: HashMap<PartId, Track>,
    by_time: BTreeSet<(Instant, PartId)>,
}

impl Tracker {
    pub fn admit(&mut self, track: Track) {
        self.by_time.insert((track.decide_at, track.part));
        self.tracks.insert(track.part, track);
    }

    /// Takes the part off the way. `None`: it has had its verdict already.
    pub fn conclude(&mut self, part: PartId) -> Option<Track> {
        let track = self.tracks.remove(&part)?;
        self.by_time.remove(&(track.decide_at, part));
        Some(track)
    }

    /// The earliest decision time.
    pub fn next_due(&self) -> Option<Instant> {
        self.by_time.first().map(|&(at, _)| at)
    }

    /// Takes one part whose decision time has come, the earliest first.
    pub fn expire(&mut self, now: Instant) -> Option<Track> {
        let &(at, part) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.conclude(part)
    }

    /// Takes any part, the earliest due first: for the end of the line.
    pub fn pop(&mut self) -> Option<Track> {
        let &(_, part) = self.by_time.first()?;
        self.conclude(part)
    }

    pub fn len(&self) -> usize {
        self.tracks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn track(part: u64, decide_at: Instant) -> Track {
        Track {
            part: PartId(part),
            frame: FrameId { camera: 0, seq: part },
            name: "".into(),
            captured_at: decide_at,
            place: Place::Time,
            decide_at,
            eject_at: decide_at,
            truth: None,
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    fn a_part_leaves_once_and_in_order_of_its_deadline() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut tracker = Tracker::default();
        for (part, ms) in [(1, 30), (2, 10), (3, 10), (4, 20)] {
            tracker.admit(track(part, after(ms)));
        }
        assert_eq!(tracker.next_due(), Some(after(10)));
        assert!(tracker.expire(after(9)).is_none());
        assert_eq!(tracker.conclude(PartId(3)).unwrap().part, PartId(3));
        assert!(tracker.conclude(PartId(3)).is_none());
        let late: Vec<u64> =
            std::iter::from_fn(|| tracker.expire(after(20))).map(|t| t.part.0).collect();
        assert_eq!(late, [2, 4]);
        assert_eq!(tracker.len(), 1);
    }
}
