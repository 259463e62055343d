//! A camera thread: opens and owns its source, numbers its parts, opens it again when it is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::{Event, Inspection, Opener, now, wait};
use crate::camera::{CameraFault, FrameSource, Grab, Picture};
use crate::frame::{Frame, FrameId, PartId, Truth};
use crate::journal::plain;
use crate::telemetry::{Counters, Progress};
use crate::verdict::Cause;

/// How long a source may take before it must say "nothing yet".
const PATIENCE: Duration = Duration::from_millis(100);
/// An open source that has waited this long for its first part without a fault counts as up.
const PROVEN_AFTER: Duration = Duration::from_secs(2);
/// Between two attempts to open a lost camera: doubled from the first to the last.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

pub(super) struct Camera {
    pub index: u16,
    pub name: Arc<str>,
    pub open: Opener,
    pub frames: Sender<Frame>,
    pub events: Sender<Event>,
    pub stopped: Receiver<()>,
    pub counters: Arc<Counters>,
    pub progress: Progress,
}

/// A source that was opened.
struct Open {
    source: Box<dyn FrameSource>,
    since: Instant,
    /// It has handed on a part, or stayed without a fault for a while: the camera is up.
    proven: bool,
}

/// Where the thread stands between two parts.
struct State {
    seq: u64,
    /// When the next part of a paced source is due.
    due: Instant,
    /// The pace of the last source that had one; parts keep coming while the camera is gone.
    period: Option<Duration>,
}

/// The other threads are gone: nothing can be judged any more.
struct LineGone;

impl Camera {
    /// Returns when the line stops or the source has no more parts.
    pub fn run(mut self) {
        let mut state = State { seq: 0, due: now(), period: None };
        let mut source: Option<Open> = None;
        let mut back_off = BACK_OFF[0];
        let mut retry_at = now();
        let mut complained = false;
        let mut ended = false;
        loop {
            self.progress.mark();
            if wait(&self.stopped, now()) {
                break;
            }
            let step = match &mut source {
                Some(open) => match open.source.grab(PATIENCE) {
                    Ok(Grab::End) => {
                        ended = true;
                        break;
                    }
                    Ok(grab) => {
                        let idle = matches!(grab, Grab::Idle);
                        if !open.source.ready() {
                            open.since = now();
                        } else if !open.proven && (!idle || now() >= open.since + PROVEN_AFTER) {
                            open.proven = true;
                            (back_off, complained) = (BACK_OFF[0], false);
                            self.up(true);
                            log::info!("camera_up camera={}", self.name);
                        }
                        self.take(grab, &mut state)
                    }
                    Err(fault) => {
                        // A source that never worked had no part in front of it that we knew of.
                        let in_front = open.proven || state.period.is_some();
                        if open.proven || !complained {
                            self.lost(&fault);
                            complained = true;
                        }
                        source = None;
                        retry_at = now() + back_off;
                        back_off = (back_off * 2).min(BACK_OFF[1]);
                        match in_front.then(|| self.pace(&mut state)).transpose() {
                            Ok(Some(true)) => self.miss(&mut state, Cause::CameraLost, &fault.0),
                            Ok(_) => Ok(()),
                            Err(gone) => Err(gone),
                        }
                    }
                },
                None if now() >= retry_at => match (self.open)() {
                    Ok(opened) => {
                        state.period = opened.period();
                        state.due = now() + state.period.unwrap_or_default();
                        source = Some(Open { source: opened, since: now(), proven: false });
                        Ok(())
                    }
                    Err(fault) => {
                        if !complained {
                            self.lost(&fault);
                            complained = true;
                        }
                        back_off = (back_off * 2).min(BACK_OFF[1]);
                        retry_at = now() + back_off;
                        Ok(())
                    }
                },
                None => self.wait_for_camera(&mut state, retry_at),
            };
            if step.is_err() {
                log::error!("camera_stopped camera={} reason=\"the line is gone\"", self.name);
                break;
            }
        }
        self.counters.cameras_ended[usize::from(self.index)].store(ended, Ordering::Relaxed);
        self.up(false);
        self.progress.finish();
    }

    fn up(&self, up: bool) {
        self.counters.cameras_up[usize::from(self.index)].store(up, Ordering::Relaxed);
    }

    fn lost(&self, fault: &CameraFault) {
        self.up(false);
        log::error!("camera_lost camera={} reason=\"{}\"", self.name, plain(fault));
    }

    /// While the camera is gone: a paced line goes on triggering, and each part is rejected.
    fn wait_for_camera(&self, state: &mut State, retry_at: Instant) -> Result<(), LineGone> {
        let soon = now() + PATIENCE;
        match state.period {
            Some(_) if state.due <= retry_at.min(soon) => {
                if self.pace(state)? {
                    self.miss(state, Cause::CameraLost, "the camera is gone")?;
                }
            }
            _ => {
                wait(&self.stopped, retry_at.min(soon));
            }
        }
        Ok(())
    }

    fn take(&self, grab: Grab, state: &mut State) -> Result<(), LineGone> {
        match grab {
            Grab::Idle | Grab::End => Ok(()),
            Grab::Bad { name, reason } => {
                if self.pace(state)? {
                    self.lose(state, name.into(), Cause::BadFrame, &reason)?;
                }
                Ok(())
            }
            Grab::Picture(picture) => {
                if self.pace(state)? {
                    self.send(state, picture)?;
                }
                Ok(())
            }
        }
    }

    /// Waits for the moment of a paced source's next part. False: the line stops before it, so
    /// the part is never triggered.
    fn pace(&self, state: &mut State) -> Result<bool, LineGone> {
        let Some(period) = state.period else { return Ok(true) };
        loop {
            self.progress.mark();
            let slice = state.due.min(now() + PATIENCE);
            if wait(&self.stopped, slice) {
                return Ok(false);
            }
            if now() >= state.due {
                break;
            }
        }
        // A source slower than its own pace is not followed by a burst to catch up.
        state.due = (state.due + period).max(now());
        Ok(true)
    }

    fn trigger(
        &self,
        state: &mut State,
        name: Arc<str>,
        captured_at: Instant,
        truth: Option<Truth>,
    ) -> Result<(PartId, FrameId), LineGone> {
        let part = PartId(self.counters.trigger());
        let frame = FrameId { camera: self.index, seq: state.seq };
        state.seq += 1;
        self.events
            .send(Event::Triggered { part, frame, name, captured_at, truth })
            .map_err(|_| LineGone)?;
        Ok((part, frame))
    }

    fn miss(&self, state: &mut State, cause: Cause, reason: &str) -> Result<(), LineGone> {
        let name = state.seq.to_string().into();
        self.lose(state, name, cause, reason)
    }

    fn lose(
        &self,
        state: &mut State,
        name: Arc<str>,
        cause: Cause,
        reason: &str,
    ) -> Result<(), LineGone> {
        let (part, _) = self.trigger(state, name, now(), None)?;
        let lost = Event::Lost { part, cause, reason: reason.into() };
        self.events.send(lost).map_err(|_| LineGone)
    }

    fn send(&self, state: &mut State, picture: Picture) -> Result<(), LineGone> {
        let Picture { image, name, captured_at, position, truth } = picture;
        let now = now();
        let captured_at = captured_at.unwrap_or(now).min(now);
        let name: Arc<str> = name.into();
        let (part, id) = self.trigger(state, name.clone(), captured_at, truth.clone())?;
        let frame = Frame { id, part, captured_at, image, name, position, truth };
        let (frame, cause, reason) = match self.frames.try_send(frame) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(frame)) => {
                (frame, Cause::QueueFull, "the detector is behind; no place in the queue")
            }
            Err(TrySendError::Disconnected(frame)) => {
                (frame, Cause::NotReady, "the detector has ended")
            }
        };
        let turned_away = Inspection::without(frame, cause, reason);
        self.events.send(Event::Judged(Box::new(turned_away))).map_err(|_| LineGone)
    }
}
