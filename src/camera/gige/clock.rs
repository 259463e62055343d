//! The camera's clock on ours: when a frame was captured, however late this program came to it.
//!
//! A camera stamps each frame by a clock of its own, which counts from a moment of its own and drifts
//! against ours. What is known of the two together are *sightings*: the camera's clock showed so much
//! no later than this moment of ours. The one that was seen with the least delay tells the offset; it
//! is looked for among the last [`SPANS`] seconds only, as the clocks drift. A thread that was kept
//! from running has sightings with more delay, which change nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Sightings are kept by the second, for so many seconds: at a drift of 100 millionths they put a
/// frame 2 ms off at most.
const SPANS: u64 = 20;

/// Nanoseconds that both clocks can differ by and still be reckoned with: 146 years.
const MOST: u64 = i64::MAX as u64 / 2;

/// What is known of a camera's clock.
#[derive(Debug)]
pub struct CameraClock {
    origin: Instant,
    /// By second since the origin: the least of our clock minus the camera's, ns.
    least: VecDeque<(u64, i64)>,
    /// The last frame's.
    last_ns: Option<u64>,
}

/// A frame's stamp is before that of the frame before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetBack;

impl CameraClock {
    pub fn new(origin: Instant) -> Self {
        Self { origin, least: VecDeque::new(), last_ns: None }
    }

    /// The camera's clock showed `stamp_ns` no later than `by`.
    pub fn sighted(&mut self, stamp_ns: u64, by: Instant) {
        let since = by.saturating_duration_since(self.origin);
        let Some(offset) = offset(since, stamp_ns) else { return };
        let second = since.as_secs();
        match self.least.back_mut() {
            // A sighting that is handed in late counts as one of the newest second.
            Some((newest, least)) if *newest >= second => *least = offset.min(*least),
            _ => self.least.push_back((second, offset)),
        }
        while self.least.front().is_some_and(|&(old, _)| old + SPANS <= second) {
            self.least.pop_front();
        }
    }

    /// When the frame with this stamp was captured, which had been by `by`; `None` where nothing is
    /// known of the camera's clock.
    ///
    /// # Errors
    /// The camera's clock was set back. What was known of it is forgotten.
    pub fn captured_at(&mut self, stamp_ns: u64, by: Instant) -> Result<Option<Instant>, SetBack> {
        if self.last_ns.replace(stamp_ns).is_some_and(|last| stamp_ns < last) {
            self.least.clear();
            return Err(SetBack);
        }
        let Some(offset) = self.least.iter().map(|&(_, offset)| offset).min() else {
            return Ok(None);
        };
        let since = i64::try_from(stamp_ns).ok().and_then(|stamp| stamp.checked_add(offset));
        let since = since.and_then(|ns| u64::try_from(ns).ok()).unwrap_or(0);
        Ok(Some((self.origin + Duration::from_nanos(since)).min(by)))
    }

    /// Whether nothing was sighted for a second.
    pub fn due(&self, now: Instant) -> bool {
        let second = now.saturating_duration_since(self.origin).as_secs();
        self.least.back().is_none_or(|&(newest, _)| newest < second)
    }
}

/// `None`: a clock that can't be.
fn offset(since: Duration, stamp_ns: u64) -> Option<i64> {
    let ours = u64::try_from(since.as_nanos()).ok().filter(|ns| *ns < MOST)?;
    Some(ours as i64 - Some(stamp_ns).filter(|ns| *ns < MOST)? as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn start() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "a moment to count from")]
        Instant::now()
    }

    #[test]
    fn frames_that_are_handled_together_keep_their_distance() {
        let origin = start();
        let ms = |ms| origin + Duration::from_millis(ms);
        let mut clock = CameraClock::new(origin);
        assert_eq!(clock.captured_at(5, ms(0)), Ok(None));
        clock.sighted(70_000 * MS, ms(1));
        // The program stood still for half a second.
        for frame in 1..10 {
            let stamp = (70_000 + 50 * frame) * MS;
            clock.sighted(stamp, ms(501));
            assert_eq!(clock.captured_at(stamp, ms(501)), Ok(Some(ms(1 + 50 * frame))));
        }
    }

    #[test]
    fn nothing_is_captured_after_it_was_there() {
        let origin = start();
        let mut clock = CameraClock::new(origin);
        clock.sighted(0, origin + Duration::from_millis(7));
        let by = origin + Duration::from_millis(20);
        assert_eq!(clock.captured_at(15 * MS, by), Ok(Some(by)));
    }

    #[test]
    fn a_clock_that_is_set_back_is_known_anew() {
        let origin = start();
        let second = |s| origin + Duration::from_secs(s);
        let mut clock = CameraClock::new(origin);
        clock.sighted(1_000_000 * MS, second(1));
        assert_eq!(clock.captured_at(1_000_000 * MS, second(1)), Ok(Some(second(1))));
        assert_eq!(clock.captured_at(3 * MS, second(2)), Err(SetBack));
        assert_eq!(clock.captured_at(4 * MS, second(2)), Ok(None));
        clock.sighted(1000 * MS, second(3));
        assert_eq!(clock.captured_at(2000 * MS, second(5)), Ok(Some(second(4))));
    }

    #[test]
    fn senseless_stamps_do_no_harm() {
        let origin = start();
        let mut clock = CameraClock::new(origin);
        clock.sighted(u64::MAX, origin);
        assert_eq!(clock.captured_at(u64::MAX, origin), Ok(None));
        assert!(clock.due(origin));
        clock.sighted(0, origin);
        assert!(!clock.due(origin));
        assert!(clock.due(origin + Duration::from_secs(1)));
        assert_eq!(clock.captured_at(u64::MAX, origin), Ok(Some(origin)));
    }

    proptest! {
        /// Whatever delays sightings, frames are put where they were up to the drift of the window
        /// and the least delay in it.
        #[test]
        fn places_are_off_by_drift_and_least_delay_only(
            begins in 0u64..1 << 60,
            drift_ppm in -100i64..=100,
            delays_us in prop::collection::vec(0u64..400_000, 200),
        ) {
            let origin = start();
            let mut clock = CameraClock::new(origin);
            for (i, delay_us) in delays_us.iter().enumerate() {
                // One in ten is seen at once.
                let delay_us = if i % 10 == 0 { 100 } else { *delay_us };
                let ours = Duration::from_millis(100 * i as u64);
                let drifted = ours.as_nanos() as i64 * (1_000_000 + drift_ppm) / 1_000_000;
                let stamp = begins + drifted as u64;
                let by = origin + ours + Duration::from_micros(delay_us);
                clock.sighted(stamp, by);
                let placed = clock.captured_at(stamp, by).unwrap().unwrap();
                prop_assert!(placed <= by);
                let off = (placed - origin).as_micros().abs_diff(ours.as_micros());
                prop_assert!(off <= 100 + 2100, "{off} us at {i}");
            }
        }
    }
}
