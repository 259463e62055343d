//! Where frames come from. A source hands over one picture a part; the camera thread of
//! [`crate::pipeline`] numbers, times and queues them.

use std::time::{Duration, Instant};

use crate::frame::{Image, Truth};

pub mod folder;
pub mod pattern;
#[cfg(feature = "usb")]
pub mod usb;

/// One picture as a source delivers it, not yet a [`crate::frame::Frame`].
#[derive(Clone, Debug)]
pub struct Picture {
    pub image: Image,
    /// What the source calls it: a file name, a frame number.
    pub name: String,
    /// When the picture was taken, if the source knows better than "now".
    pub captured_at: Option<Instant>,
    pub truth: Option<Truth>,
}

/// What became of one wait for a part.
#[derive(Clone, Debug)]
pub enum Grab {
    Picture(Picture),
    /// A part came by but its picture is unusable: rejected as `BadFrame`.
    Bad {
        name: String,
        reason: String,
    },
    /// No part came within the patience given. Nothing is wrong.
    Idle,
    /// The source has no more parts and never will.
    End,
}

/// The source is gone (unplugged, silent, refused). The part that may have been in front of it is
/// rejected as `CameraLost`; the source is dropped and opened again with back-off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CameraFault(pub String);

/// A camera, or what stands in for one. Made, used and dropped on its own camera thread.
pub trait FrameSource {
    /// Waits for the next part, at most about `patience`.
    fn grab(&mut self, patience: Duration) -> Result<Grab, CameraFault>;

    /// The time between two parts where the source has no clock of its own (files, rendered
    /// parts): the camera thread then triggers at this pace. `None`: the camera sets the pace.
    fn period(&self) -> Option<Duration> {
        None
    }
}
