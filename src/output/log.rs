//! The log as a wire: one line per reject for whoever tails it at night, nothing per good part.

use anyhow::Result;

use super::{LineState, LineStatus, Outcome, RejectOutput};
use crate::journal::plain;
use crate::verdict::web::WebDefect;
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

    fn defect(&mut self, defect: &WebDefect) -> Result<()> {
        log::info!("{}", defect_line(defect));
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

fn defect_line(defect: &WebDefect) -> String {
    let WebDefect { camera, number, part, goes_on, x, width, row, rows, peak, counts, mm } = defect;
    let encoder = counts.map_or("-".to_owned(), |[from, to]| format!("{from},{to}"));
    let mm = mm.map_or("-".to_owned(), |[from, to]| format!("{from:.1},{to:.1}"));
    format!(
        "defect camera={camera} defect={number} goes_on={goes_on} part={part} x={x} width={width} \
         row={row} rows={rows} peak={peak:.4} encoder={encoder} mm={mm}"
    )
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
    fn the_defect_line_has_its_keys_in_order() {
        let defect = WebDefect {
            camera: "web".into(),
            number: 3,
            part: PartId(412),
            goes_on: false,
            x: 120,
            width: 40,
            row: 88_400,
            rows: 1310,
            peak: 3.81,
            counts: Some([176_800, 179_420]),
            mm: Some([8840.0, 8971.0]),
        };
        assert_eq!(
            defect_line(&defect),
            "defect camera=web defect=3 goes_on=false part=412 x=120 width=40 row=88400 rows=1310 \
             peak=3.8100 encoder=176800,179420 mm=8840.0,8971.0"
        );
        let defect = WebDefect { goes_on: true, counts: None, mm: None, ..defect };
        let line = defect_line(&defect);
        assert!(line.contains("goes_on=true") && line.ends_with("encoder=- mm=-"), "{line}");
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
