//! From a detection to accept or reject.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the PLC is told of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Accept,
    Reject(Cause),
}

/// Why a part is rejected. All but [`Cause::Anomaly`] mean that it was *not inspected*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Cause {
    /// The score is at or above the threshold.
    Anomaly = 1,
    /// The detector could not keep up; the part never reached it.
    QueueFull = 2,
    /// No verdict at the decision time.
    TooLate = 3,
    /// The detector erred, or its score is not a finite number.
    DetectorFailed = 4,
    /// The picture is incomplete or unreadable.
    BadFrame = 5,
    /// The camera went away.
    CameraLost = 6,
    /// The part came while the line was not armed (start, reload, shutdown).
    NotReady = 7,
    /// The process ended (crash, kill) between trigger and verdict; found at the next start.
    Interrupted = 8,
}

impl Cause {
    pub const ALL: [Cause; 8] = [
        Cause::Anomaly,
        Cause::QueueFull,
        Cause::TooLate,
        Cause::DetectorFailed,
        Cause::BadFrame,
        Cause::CameraLost,
        Cause::NotReady,
        Cause::Interrupted,
    ];

    /// The number the PLC and the ledger use; stable.
    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.code() == code)
    }

    /// The word the log uses; stable.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Anomaly => "anomaly",
            Cause::QueueFull => "queue_full",
            Cause::TooLate => "too_late",
            Cause::DetectorFailed => "detector_failed",
            Cause::BadFrame => "bad_frame",
            Cause::CameraLost => "camera_lost",
            Cause::NotReady => "not_ready",
            Cause::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A rectangle in pixels of the camera's picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl fmt::Display for Region {
    /// `x,y,width,height`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{},{}", self.x, self.y, self.width, self.height)
    }
}
