//! The wires and cameras of a line against peers that we did not write.
#![allow(clippy::unwrap_used)]

#[path = "../peers/mod.rs"]
mod peers;

mod ethernet_ip;
#[cfg(feature = "gige")]
mod gige;
mod modbus;
mod mqtt;
#[cfg(feature = "opcua")]
mod opcua;
mod remote_io;
mod s7;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use inspectd::frame::{FrameId, PartId};
use inspectd::output::{LineState, LineStatus, Outcome, Tally};
use inspectd::verdict::{Cause, Region, Verdict};

/// What the peer expects of the nth part, counted from 1.
pub fn outcome(nth: u64) -> Outcome {
    let verdict = match nth {
        nth if nth.is_multiple_of(5) => Verdict::Reject(Cause::Anomaly),
        nth if nth.is_multiple_of(7) => Verdict::Reject(Cause::TooLate),
        _ => Verdict::Accept,
    };
    let scored = verdict != Verdict::Reject(Cause::TooLate);
    Outcome {
        part: PartId((1 << 40) + nth),
        frame: FrameId { camera: 4, seq: nth },
        camera: Arc::from("left"),
        name: Arc::from("1.png"),
        verdict,
        score: scored.then_some(nth as f32 / 8.0),
        threshold: Some(2.5),
        region: scored.then_some(Region { x: nth as u32, y: 70_000, width: 30, height: 40 }),
        position: None,
        latency: Duration::from_micros(100_000 + nth),
        triggered_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_777_000_000_000 + nth),
        image: None,
        reason: None,
        truth: None,
    }
}

pub fn status() -> LineStatus {
    LineStatus {
        state: LineState::ContinuousExecution,
        epoch: 70_001,
        tally: Tally { triggers: (1 << 35) + 1, ..Tally::default() },
        late_verdicts: 0,
        cameras_up: vec![true, false],
        alarms: Default::default(),
        evidence_lost: false,
    }
}

/// Ends a service also when an assertion fails: it would run on, and the test hang.
pub struct SetAtEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
