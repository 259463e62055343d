//! The log as a wire: one line per reject for whoever tails it at night, nothing per good part.

use anyhow::Result;

use super::{LineState, LineStatus, Outcome, RejectOutput};
use crate::journal::plain;
use crate::verdict::{Cause, Verdict};

/// Writes `reject part=… camera=… …`; the keys and their order are stable.
#[derive(Debug, Default)]
pub struct LogOutput {
    state: Option<LineState>,
}

impl RejectOutput for LogOutput {
    fn name(&self) -> &str {
        "log"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        match outcome.verdict {
            Verdict::Accept => log::debug!("{}", line("accept", None, outcome)),
            Verdict::Reject(Cause::Anomaly) => {
                log::info!("{}", line("reject", Some(Cause::Anomaly), outcome));
            }
            Verdict::Reject(cause) => log::warn!("{}", line("reject", Some(cause), outcome)),
        }
        Ok(())
    }

    fn beat(&mut self, status: &LineStatus) -> Result<()> {
        if self.state != Some(status.state) {
            self.state = Some(status.state);
            log::info!("state state={:?} epoch={}", status.state, status.epoch);
        }
        Ok(())
    }
}

fn line(event: &str, cause: Option<Cause>, outcome: &Outcome) -> String {
    let number = |value: Option<f32>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
    let mut line = format!(
        "{event} part={} camera={} seq={} cause={} score={} threshold={} region={} \
         latency_ms={:.1} image={} name=\"{}\"",
        outcome.part,
        outcome.camera,
        outcome.frame.seq,
        cause.map_or("-", Cause::word),
        number(outcome.score),
        number(outcome.threshold),
        outcome.region.map_or("-".to_owned(), |region| region.to_string()),
        outcome.latency.as_secs_f64() * 1000.0,
        outcome.image.as_ref().map_or("-".to_owned(), |image| image.display().to_string()),
        plain(&outcome.name),
    );
    if let Some(position) = outcome.position {
        line += &format!(" encoder={}", position.count);
    }
    if let Some(reason) = &outcome.reason {
        line += &format!(" reason=\"{}\"", plain(reason));
    }
    line
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::frame::{FrameId, PartId};
    use crate::verdict::Region;

    fn outcome() -> Outcome {
        Outcome {
            part: PartId(10422),
            frame: FrameId { camera: 0, seq: 17 },
            camera: "left".into(),
            name: "broken \"big\"\n.png".into(),
            verdict: Verdict::Reject(Cause::Anomaly),
            score: Some(3.81),
            threshold: Some(2.9),
            region: Some(Region { x: 120, y: 84, width: 40, height: 32 }),
            position: None,
            latency: Duration::from_micros(18_432),
            triggered_at: SystemTime::UNIX_EPOCH,
            image: Some("2026-05-04/10422.png".into()),
            reason: None,
            truth: None,
        }
    }

    #[test]
    fn the_reject_line_has_its_keys_in_order() {
        assert_eq!(
            line("reject", Some(Cause::Anomaly), &outcome()),
            "reject part=10422 camera=left seq=17 cause=anomaly score=3.8100 threshold=2.9000 \
             region=120,84,40,32 latency_ms=18.4 image=2026-05-04/10422.png \
             name=\"broken 'big'\n.png\""
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash() {
        let lost = Outcome {
            score: None,
            threshold: None,
            region: None,
            image: None,
            name: "18".into(),
            reason: Some("no answer".into()),
            ..outcome()
        };
        assert_eq!(
            line("reject", Some(Cause::CameraLost), &lost),
            "reject part=10422 camera=left seq=17 cause=camera_lost score=- threshold=- region=- \
             latency_ms=18.4 image=- name=\"18\" reason=\"no answer\""
        );
    }
}
