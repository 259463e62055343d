//! Does the camera still deliver? Counted is only the time in which a frame was due.

use std::time::{Duration, Instant};

/// A camera's first frame may take as long as this: exposures, sensors and shutters start up.
const START: Duration = Duration::from_secs(1);
/// Less than this is the host's own hesitation.
const SHORTEST: Duration = Duration::from_millis(20);
/// Slower than this is no rate of parts.
const LONGEST: Duration = Duration::from_secs(600);

/// Since when the camera owes a frame.
#[derive(Debug)]
pub enum Silence {
    /// It always does: it runs freely.
    Free { limit: Duration, since: Instant, started: bool },
    /// It does for each trigger that was sent.
    Asked { limit: Duration, since: Instant, owed: u64 },
    /// Others trigger it: nobody here knows.
    Unknown,
}

impl Silence {
    pub fn free(limit: Duration, now: Instant) -> Silence {
        Silence::Free { limit, since: now, started: false }
    }

    pub fn asked(limit: Duration, now: Instant) -> Silence {
        Silence::Asked { limit, since: now, owed: 0 }
    }

    /// A frame was asked for.
    pub fn trigger(&mut self, now: Instant) {
        if let Silence::Asked { since, owed, .. } = self {
            if *owed == 0 {
                *since = now;
            }
            *owed += 1;
        }
    }

    /// `frames` came, or are known to be lost.
    pub fn heard(&mut self, frames: u64, now: Instant) {
        match self {
            Silence::Free { since, started, .. } => (*since, *started) = (now, true),
            Silence::Asked { since, owed, .. } => {
                (*since, *owed) = (now, owed.saturating_sub(frames));
            }
            Silence::Unknown => {}
        }
    }

    /// How long to wait yet; `None`: for as long as one likes.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let (limit, since) = match *self {
            Silence::Free { limit, since, started } => {
                (if started { limit } else { limit.max(START) }, since)
            }
            Silence::Asked { limit, since, owed } if owed > 0 => (limit, since),
            Silence::Asked { .. } | Silence::Unknown => return None,
        };
        Some((since + limit).saturating_duration_since(now))
    }

    /// Frames that were asked for and did not come.
    pub fn owed(&self) -> u64 {
        if let Silence::Asked { owed, .. } = self { *owed } else { 0 }
    }

    /// Gives up one of the frames that are owed.
    pub fn forgive(&mut self) {
        if let Silence::Asked { owed, .. } = self {
            *owed = owed.saturating_sub(1);
        }
    }
}

/// Two periods of a camera that delivers `rate_hz` frames a second.
pub fn two_periods(rate_hz: f64) -> Duration {
    Duration::try_from_secs_f64(2.0 / rate_hz).unwrap_or(LONGEST).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[expect(clippy::disallowed_methods, reason = "any moment will do to count from")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_free_camera_owes_a_frame_from_one_to_the_next() {
        let t = start();
        let mut silence = Silence::free(ms(40), t);
        assert_eq!(silence.left(t + ms(900)), Some(ms(100)), "the first may take longer");
        silence.heard(1, t + ms(900));
        assert_eq!(silence.left(t + ms(910)), Some(ms(30)));
        assert_eq!(silence.left(t + ms(940)), Some(ms(0)));
    }

    #[test]
    fn a_camera_that_is_asked_owes_what_was_asked_for() {
        let t = start();
        let mut silence = Silence::asked(ms(500), t);
        assert_eq!(silence.left(t + ms(9000)), None, "nothing was asked for");
        silence.trigger(t + ms(9000));
        silence.trigger(t + ms(9100));
        assert_eq!(silence.left(t + ms(9100)), Some(ms(400)), "counted from the oldest");
        silence.heard(1, t + ms(9200));
        assert_eq!((silence.owed(), silence.left(t + ms(9200))), (1, Some(ms(500))));
        silence.heard(1, t + ms(9300));
        assert_eq!((silence.owed(), silence.left(t + ms(9300))), (0, None));
        silence.heard(1, t + ms(9400));
        assert_eq!(silence.owed(), 0, "a frame nobody asked for is no credit");
    }

    #[test]
    fn a_camera_that_others_trigger_owes_nothing() {
        let t = start();
        let mut silence = Silence::Unknown;
        silence.trigger(t);
        silence.heard(1, t);
        assert_eq!((silence.left(t + ms(1_000_000)), silence.owed()), (None, 0));
    }

    #[test]
    fn two_periods_stay_within_what_can_be_meant() {
        assert_eq!(two_periods(25.0), ms(80));
        assert_eq!(two_periods(1000.0), SHORTEST);
        assert_eq!(two_periods(0.0), LONGEST);
    }
}
