//! What the line counts of itself: parts, latencies, and whether each stage still moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::output::Tally;
use crate::tracker::{Alarm, Alarms};
use crate::verdict::{Cause, Verdict};

/// Counters that several threads write; the output thread makes the PLC's status of them.
#[derive(Debug)]
pub struct Counters {
    first_part: u64,
    next_part: AtomicU64,
    accepted: AtomicU64,
    rejected: [AtomicU64; Cause::ALL.len()],
    /// Verdicts that came after the part's decision time; all such parts were rejected.
    pub late_verdicts: AtomicU64,
    /// Rejects whose picture could not be kept.
    pub evidence_lost: AtomicU64,
    /// The archive cannot write.
    pub archive_failing: AtomicBool,
    /// The last detection was an error.
    pub detector_failing: AtomicBool,
    /// One per camera: does it deliver?
    pub cameras_up: Vec<AtomicBool>,
    /// One per camera: has its source no more parts? Such a camera is not missed.
    pub cameras_ended: Vec<AtomicBool>,
}

impl Counters {
    /// `next_part`: the first part id to give out.
    pub fn new(next_part: u64, cameras: usize) -> Counters {
        Counters {
            first_part: next_part,
            next_part: AtomicU64::new(next_part),
            accepted: AtomicU64::new(0),
            rejected: Default::default(),
            late_verdicts: AtomicU64::new(0),
            evidence_lost: AtomicU64::new(0),
            archive_failing: AtomicBool::new(false),
            detector_failing: AtomicBool::new(false),
            cameras_up: (0..cameras).map(|_| AtomicBool::new(false)).collect(),
            cameras_ended: (0..cameras).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Gives out a part id: this is what makes a trigger count.
    pub fn trigger(&self) -> u64 {
        self.next_part.fetch_add(1, Ordering::SeqCst)
    }

    /// Counts a part's one verdict.
    pub fn count(&self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Accept => &self.accepted,
            Verdict::Reject(cause) => &self.rejected[usize::from(cause.code()) - 1],
        };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    /// Parts since this start.
    pub fn tally(&self) -> Tally {
        // Verdicts are read before triggers, so that no verdict is seen without its trigger.
        let accepted = self.accepted.load(Ordering::SeqCst);
        let rejected = std::array::from_fn(|i| self.rejected[i].load(Ordering::SeqCst));
        let triggers = self.next_part.load(Ordering::SeqCst) - self.first_part;
        Tally { triggers, accepted, rejected }
    }

    /// The highest part id given out, 0 where there is none yet.
    pub fn issued(&self) -> u64 {
        self.next_part.load(Ordering::SeqCst).saturating_sub(1)
    }

    pub fn camera_up(&self, camera: usize) -> bool {
        self.cameras_up[camera].load(Ordering::Relaxed)
    }

    pub fn camera_ended(&self, camera: usize) -> bool {
        self.cameras_ended[camera].load(Ordering::Relaxed)
    }
}

/// The alarms that stand, on their way from who watches the gate to the PLC's status.
#[derive(Debug, Default)]
pub struct StandingAlarms(AtomicU32);

impl StandingAlarms {
    pub fn set(&self, alarms: Alarms) {
        let newest = alarms.newest().map_or(0, Alarm::code);
        self.0.store(u32::from(alarms.bits()) << 8 | u32::from(newest), Ordering::SeqCst);
    }

    pub fn get(&self) -> Alarms {
        let word = self.0.load(Ordering::SeqCst);
        Alarms::of((word >> 8) as u16, word as u8)
    }
}

/// A stage's sign of life: it marks each turn of its loop, idle or not.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Life>);

#[derive(Debug, Default)]
struct Life {
    turns: AtomicU64,
    finished: AtomicBool,
}

impl Progress {
    pub fn mark(&self) {
        self.0.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// The stage has come to its end in order; nobody waits for another turn.
    pub fn finish(&self) {
        self.0.finished.store(true, Ordering::Relaxed);
    }

    pub fn finished(&self) -> bool {
        self.0.finished.load(Ordering::Relaxed)
    }

    fn turns(&self) -> u64 {
        self.0.turns.load(Ordering::Relaxed)
    }
}

/// Tells which stage stands still. The service manager's watchdog is fed only while none does.
#[derive(Debug)]
pub struct Watchdog {
    stages: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    name: String,
    progress: Progress,
    turns: u64,
    moved_at: Instant,
}

impl Watchdog {
    pub fn new(stages: Vec<(String, Progress)>, now: Instant) -> Watchdog {
        let watched = |(name, progress): (String, Progress)| Watched {
            turns: progress.turns(),
            name,
            progress,
            moved_at: now,
        };
        Watchdog { stages: stages.into_iter().map(watched).collect() }
    }

    /// The first stage that has not moved for longer than `limit`.
    pub fn stalled(&mut self, limit: Duration, now: Instant) -> Option<&str> {
        for stage in &mut self.stages {
            let turns = stage.progress.turns();
            if turns != stage.turns {
                stage.turns = turns;
                stage.moved_at = now;
            }
        }
        let late = |stage: &&Watched| {
            !stage.progress.finished() && now.saturating_duration_since(stage.moved_at) > limit
        };
        self.stages.iter().find(late).map(|stage| stage.name.as_str())
    }
}

/// A latency distribution from 1 µs to an hour, three significant digits.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Latency {
        let hour_us = 3_600_000_000;
        Latency(Histogram::new_with_bounds(1, hour_us, 3).expect("1 µs to 1 h, 3 digits is valid"))
    }
}

impl Latency {
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Milliseconds at a quantile of 0..=1; 0 where nothing was recorded.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latencies recorded, to the histogram's digits, and how often each, fastest first.
    pub fn recorded(&self) -> impl Iterator<Item = (Duration, u64)> {
        let steps = self.0.iter_recorded();
        steps.map(|step| (Duration::from_micros(step.value_iterated_to()), step.count_at_value()))
    }

    pub fn reset(&mut self) {
        self.0.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
    fn the_watchdog_names_the_stage_that_stands_still() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let limit = Duration::from_millis(100);
        let (infer, output) = (Progress::default(), Progress::default());
        let stages = vec![("infer".into(), infer.clone()), ("output".into(), output.clone())];
        let mut watchdog = Watchdog::new(stages, start);
        assert_eq!(watchdog.stalled(limit, at(100)), None);
        output.mark();
        assert_eq!(watchdog.stalled(limit, at(150)), Some("infer"));
        infer.mark();
        assert_eq!(watchdog.stalled(limit, at(240)), None);
        assert_eq!(watchdog.stalled(limit, at(251)), Some("output"));
        output.finish();
        assert_eq!(watchdog.stalled(limit, at(300)), None);
    }

    #[test]
    fn latency_quantiles_are_in_milliseconds() {
        let mut latency = Latency::default();
        for ms in 1..=1000 {
            latency.record(Duration::from_millis(ms));
        }
        assert!((latency.quantile_ms(0.5) - 500.0).abs() < 1.0);
        assert!((latency.quantile_ms(0.999) - 999.0).abs() < 1.0);
        assert_eq!(latency.count(), 1000);
        latency.record(Duration::from_millis(1));
        assert_eq!(latency.recorded().map(|(_, times)| times).sum::<u64>(), 1001);
        let (first, times) = latency.recorded().next().unwrap();
        assert_eq!((first, times), (Duration::from_millis(1), 2));
    }

    #[test]
    fn triggers_count_what_was_given_out() {
        let counters = Counters::new(17, 1);
        assert_eq!((counters.tally().triggers, counters.issued()), (0, 16));
        assert_eq!(counters.trigger(), 17);
        assert_eq!((counters.tally().triggers, counters.issued()), (1, 17));
        assert_eq!(counters.tally().in_flight(), 1);
        counters.count(Verdict::Reject(Cause::TooLate));
        assert!(counters.tally().closed());
        assert_eq!(counters.tally().rejected_for(Cause::TooLate), 1);
    }
}
