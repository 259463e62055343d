//! What a camera library is put behind.

use std::time::{Duration, Instant};

use super::chunks::Place;
use super::pixels::Format;

/// A camera that streams, or a test's stand-in. Dropping it stops the camera and gives it back.
pub trait Camera {
    type Payload: AsRef<[u8]>;

    /// The next frame, complete or not, waiting at most for `wait`.
    fn next(&mut self, wait: Duration) -> Option<Delivery<Self::Payload>>;

    fn trigger(&mut self) -> Result<(), String>;

    /// What the camera's clock shows, ns, no later than the moment given with it; `None`: it does
    /// not say.
    fn sight(&mut self) -> Option<(u64, Instant)>;

    /// Why the camera can't be controlled any more.
    fn lost(&self) -> Option<String>;

    /// What this host lost since the last question, to go on behind a part's reason; mostly
    /// empty.
    fn own_losses(&mut self) -> String;
}

/// A frame as it came.
pub struct Delivery<P> {
    pub id: u64,
    /// What is missing of it. Size, format and pixels mean nothing then.
    pub incomplete: Option<String>,
    /// In pixels.
    pub width: u32,
    pub height: u32,
    /// Bytes after each row that are no pixels.
    pub row_padding: usize,
    /// Code of the Pixel Format Naming Convention.
    pub format: u32,
    /// Rows of pixels from the first byte on, then chunks if the camera sends any.
    pub payload: P,
    /// When it was captured, ns on the camera's clock; `None`: it does not say.
    pub stamp_ns: Option<u64>,
}

/// What was found out when the camera was opened.
pub struct Opened {
    pub format: Format,
    /// Frames a second in free run, by the camera's own word.
    pub rate_hz: Option<f64>,
    pub encoder: Option<Place>,
    pub line_status: Option<Place>,
}
