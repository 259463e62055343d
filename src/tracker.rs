//! Where each part is between trigger and verdict, and when its time is up.
//!
//! A part's *decision time* is its trigger time plus the travel time to the ejector minus the
//! output's latency. A part without verdict at its decision time is rejected; a verdict that comes
//! later never turns it into an accept.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::frame::{FrameId, PartId, Truth};

/// `[camera.deadline]`: the way of the part.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// From the trigger to the moment the ejector must act.
    pub travel_ms: f64,
    /// Kept free for the way from here to the ejector: PLC scan, network, valve.
    #[serde(default = "default_output_latency_ms")]
    pub output_latency_ms: f64,
}

fn default_output_latency_ms() -> f64 {
    10.0
}

impl Config {
    /// From the trigger to the decision time.
    pub fn decide_within(&self) -> Duration {
        Duration::from_secs_f64((self.travel_ms - self.output_latency_ms) / 1000.0)
    }

    /// From the decision time to the moment the ejector must act.
    pub fn output_latency(&self) -> Duration {
        Duration::from_secs_f64(self.output_latency_ms / 1000.0)
    }

    /// Refuses a way that leaves no time; the text names the key below `[camera.deadline]`.
    pub fn check(&self) -> Result<()> {
        let Config { travel_ms, output_latency_ms } = *self;
        if !(travel_ms.is_finite() && travel_ms > 0.0 && travel_ms <= 3.6e6) {
            bail!("travel_ms = {travel_ms} must lie between 0 and 3600000");
        }
        if !(output_latency_ms.is_finite() && output_latency_ms >= 0.0) {
            bail!("output_latency_ms = {output_latency_ms} must be 0 or more");
        }
        if output_latency_ms >= travel_ms {
            bail!(
                "travel_ms = {travel_ms} leaves nothing after output_latency_ms = \
                 {output_latency_ms}; the part is at the ejector before a verdict can be out"
            );
        }
        Ok(())
    }
}

/// A part on its way.
#[derive(Clone, Debug)]
pub struct Track {
    pub part: PartId,
    pub frame: FrameId,
    pub name: Arc<str>,
    pub captured_at: Instant,
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
    use super::*;

    fn track(part: u64, decide_at: Instant) -> Track {
        Track {
            part: PartId(part),
            frame: FrameId { camera: 0, seq: part },
            name: "".into(),
            captured_at: decide_at,
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

    #[test]
    fn a_way_that_leaves_no_time_is_refused() {
        let config = |travel_ms, output_latency_ms| Config { travel_ms, output_latency_ms };
        assert!(config(200.0, 10.0).check().is_ok());
        assert_eq!(config(200.0, 10.0).decide_within(), Duration::from_millis(190));
        for bad in [config(10.0, 10.0), config(f64::NAN, 1.0), config(0.0, 0.0), config(5.0, -1.0)]
        {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
