//! A part's end as one JSON object: a line of the archive's lists, a message to a broker.

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::journal::rfc3339;
use crate::verdict::{Cause, Region, Verdict};

/// One part in a day's list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Of the trigger, RFC 3339.
    pub time: String,
    pub part: u64,
    /// As the config names it.
    pub camera: String,
    /// Of the picture, as its source calls it.
    pub name: String,
    pub verdict: Word,
    pub cause: Option<Cause>,
    pub reason: Option<String>,
    /// `null` also where the score is not a finite number.
    pub score: Option<f32>,
    pub threshold: Option<f32>,
    pub region: Option<Region>,
    pub latency_ms: f64,
    /// Relative to the archive's folder.
    pub image: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    Accept,
    Reject,
}

impl Recorded {
    /// `image`: where its picture lies, if it is kept.
    pub fn of(outcome: &Outcome, image: Option<String>) -> Recorded {
        let cause = match outcome.verdict {
            Verdict::Accept => None,
            Verdict::Reject(cause) => Some(cause),
        };
        Recorded {
            time: rfc3339(outcome.triggered_at),
            part: outcome.part.0,
            camera: outcome.camera.to_string(),
            name: outcome.name.to_string(),
            verdict: if cause.is_none() { Word::Accept } else { Word::Reject },
            cause,
            reason: outcome.reason.as_deref().map(str::to_owned),
            score: outcome.score.filter(|score| score.is_finite()),
            threshold: outcome.threshold,
            region: outcome.region,
            latency_ms: (outcome.latency.as_secs_f64() * 1e6).round() / 1e3,
            image,
        }
    }
}
