//! A camera thread: opens and owns its source, numbers its parts, opens it again when it is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::{Event, Inspection, Opener, now, wait};
use crate::camera::{CameraFault, FrameSource, Grab, Picture};
use crate::frame::{Frame, FrameId, PartId, Position, Truth};
use crate::journal::{Repeats, plain};
use crate::telemetry::{Counters, Progress};
use crate::tracker::Place;
use crate::trigger::{Asked, Triggers};
use crate::verdict::Cause;

/// How long a source may take before it must say "nothing yet".
const PATIENCE: Duration = Duration::from_millis(100);
/// An open source that has waited this long for its first part without a fault counts as up.
const PROVEN_AFTER: Duration = Duration::from_secs(2);
/// How long a thread whose parts are triggered looks one way only: for triggers, or for a picture.
const TRIGGER_PATIENCE: Duration = Duration::from_millis(5);
/// Between two attempts to open a lost camera: doubled from the first to the last.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];

pub(super) struct Camera {
    pub index: u16,
    pub name: Arc<str>,
    pub open: Opener,
    /// `None`: each picture is a part.
    pub triggers: Option<Triggers>,
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
    /// Until the next attempt to open a lost camera.
    back_off: Duration,
    retry_at: Instant,
    /// The log has heard that the camera is gone.
    complained: bool,
    /// The wires were told that the next trigger will be taken.
    waiting: bool,
    /// A picture that came before its trigger, if that comes.
    early: Option<Picture>,
    untriggered: Repeats<()>,
}

/// What a turn with an open source came to.
enum Turn {
    Idle,
    Part,
    End,
    Gone(CameraFault),
}

/// The other threads are gone: nothing can be judged any more.
struct LineGone;

impl Camera {
    /// Returns when the line stops or the source has no more parts.
    pub fn run(mut self) {
        let start = now();
        let mut state = State {
            seq: 0,
            due: start,
            period: None,
            back_off: BACK_OFF[0],
            retry_at: start,
            complained: false,
            waiting: false,
            early: None,
            untriggered: Repeats::new(Duration::from_secs(60)),
        };
        let mut source: Option<Open> = None;
        let mut ended = false;
        loop {
            self.progress.mark();
            if wait(&self.stopped, now()) {
                break;
            }
            let step = match source.take() {
                Some(mut open) => self.turn(&mut open, &mut state).and_then(|turn| {
                    match turn {
                        Turn::End => ended = true,
                        Turn::Gone(fault) => return self.gone(open, &fault, &mut state),
                        Turn::Idle | Turn::Part => source = Some(open),
                    }
                    Ok(())
                }),
                None if now() >= state.retry_at => {
                    source = self.reopen(&mut state);
                    Ok(())
                }
                None => self.wait_for_camera(&mut state),
            };
            if step.is_err() {
                log::error!("camera_stopped camera={} reason=\"the line is gone\"", self.name);
                break;
            }
            if ended {
                break;
            }
        }
        self.refuse_triggers();
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

    fn reopen(&mut self, state: &mut State) -> Option<Open> {
        match (self.open)() {
            Ok(opened) => {
                state.period = opened.period();
                state.due = now() + state.period.unwrap_or_default();
                Some(Open { source: opened, since: now(), proven: false })
            }
            Err(fault) => {
                if !state.complained {
                    self.lost(&fault);
                    state.complained = true;
                }
                state.back_off = (state.back_off * 2).min(BACK_OFF[1]);
                state.retry_at = now() + state.back_off;
                None
            }
        }
    }

    /// The source is given up, and the part that was in front of it.
    fn gone(&self, open: Open, fault: &CameraFault, state: &mut State) -> Result<(), LineGone> {
        // A source that never worked had no part in front of it that we knew of.
        let in_front = open.proven || state.period.is_some();
        if open.proven || !state.complained {
            self.lost(fault);
            state.complained = true;
        }
        drop(open);
        state.early = None;
        state.retry_at = now() + state.back_off;
        state.back_off = (state.back_off * 2).min(BACK_OFF[1]);
        if let Some(triggers) = &self.triggers {
            // Whoever was triggered has its verdict; nobody else is known to be there.
            triggers.set_ready(false);
            state.waiting = false;
            return Ok(());
        }
        if in_front && self.pace(state)? {
            self.miss(state, Cause::CameraLost, &fault.0)?;
        }
        Ok(())
    }

    /// While the camera is gone: what is triggered, or would be at the line's pace, is rejected.
    fn wait_for_camera(&self, state: &mut State) -> Result<(), LineGone> {
        let until = state.retry_at.min(now() + PATIENCE);
        if let Some(triggers) = &self.triggers {
            if let Ok(asked) = triggers.asked.recv_deadline(until) {
                self.refuse(asked, state, Cause::CameraLost, "the camera is gone")?;
            }
            return Ok(());
        }
        match state.period {
            Some(_) if state.due <= until => {
                if self.pace(state)? {
                    self.miss(state, Cause::CameraLost, "the camera is gone")?;
                }
            }
            _ => {
                wait(&self.stopped, until);
            }
        }
        Ok(())
    }

    /// Waits for one part, or a while.
    fn turn(&self, open: &mut Open, state: &mut State) -> Result<Turn, LineGone> {
        if let Some(triggers) = &self.triggers {
            return self.triggered_turn(triggers, open, state);
        }
        let grab = match open.source.grab(PATIENCE) {
            Ok(Grab::End) => return Ok(Turn::End),
            Ok(grab) => grab,
            Err(fault) => return Ok(Turn::Gone(fault)),
        };
        let idle = matches!(grab, Grab::Idle);
        self.prove(open, state, !idle);
        match grab {
            Grab::Idle | Grab::End => {}
            Grab::Bad { name, reason } => {
                if self.pace(state)? {
                    self.lose(state, name.into(), Cause::BadFrame, &reason)?;
                }
            }
            Grab::Picture(picture) => {
                if self.pace(state)? {
                    self.send(state, picture)?;
                }
            }
        }
        Ok(if idle { Turn::Idle } else { Turn::Part })
    }

    fn prove(&self, open: &mut Open, state: &mut State, delivered: bool) {
        if !open.source.ready() {
            open.since = now();
        } else if !open.proven && (delivered || now() >= open.since + PROVEN_AFTER) {
            open.proven = true;
            (state.back_off, state.complained) = (BACK_OFF[0], false);
            self.up(true);
            log::info!("camera_up camera={}", self.name);
        }
    }

    /// Waits for a trigger and then for its picture; or looks after a camera that has none to wait
    /// for.
    fn triggered_turn(
        &self,
        triggers: &Triggers,
        open: &mut Open,
        state: &mut State,
    ) -> Result<Turn, LineGone> {
        self.prove(open, state, false);
        if !state.waiting && open.source.ready() {
            triggers.set_ready(true);
            state.waiting = true;
        }
        let Ok(asked) = triggers.asked.recv_timeout(TRIGGER_PATIENCE) else {
            // Files and rendered parts are not taken without a trigger.
            return match open.source.period() {
                Some(_) => Ok(Turn::Idle),
                None => Ok(self.drain(triggers, open, state)),
            };
        };
        if !asked.in_time {
            self.missed(triggers, asked, state)?;
            return Ok(Turn::Idle);
        }
        state.waiting = false;
        let name: Arc<str> = state.seq.to_string().into();
        let (part, id) = self.trigger(state, name, asked.at, place(&asked), None)?;
        asked.answer(part);
        let turn = self.picture_of(triggers, &asked, (part, id), open, state);
        asked.exposed();
        turn
    }

    /// Pictures that nobody triggered: the youngest is kept for a trigger that is still on its way.
    fn drain(&self, triggers: &Triggers, open: &mut Open, state: &mut State) -> Turn {
        loop {
            match open.source.grab(Duration::ZERO) {
                Ok(Grab::Picture(mut picture)) => {
                    picture.captured_at.get_or_insert_with(now);
                    let before = state.early.replace(picture);
                    self.untriggered(before, state);
                }
                Ok(Grab::Bad { name, reason }) => {
                    log::debug!("picture_untriggered camera={} name={name} {reason}", self.name);
                }
                Ok(Grab::Idle) => break,
                Ok(Grab::End) => return Turn::End,
                Err(fault) => return Turn::Gone(fault),
            }
        }
        let limit = now().checked_sub(triggers.picture_before + TRIGGER_PATIENCE);
        let old = state.early.take_if(|early| early.captured_at < limit);
        self.untriggered(old, state);
        Turn::Idle
    }

    /// Tells of a picture that belongs to no part, repeats counted.
    fn untriggered(&self, picture: Option<Picture>, state: &mut State) {
        if let Some(picture) = picture
            && let Some(times) = state.untriggered.admit((), now())
        {
            log::warn!(
                "picture_untriggered camera={} name=\"{}\" times={times} reason=\"no trigger \
                 belongs to it; it is not looked at\"",
                self.name,
                plain(&picture.name)
            );
        }
    }

    /// The picture of a part that was triggered.
    fn picture_of(
        &self,
        triggers: &Triggers,
        asked: &Asked,
        (part, id): (PartId, FrameId),
        open: &mut Open,
        state: &mut State,
    ) -> Result<Turn, LineGone> {
        let lose = |cause, reason: &str| {
            let lost = Event::Lost { part, cause, reason: reason.into() };
            self.events.send(lost).map_err(|_| LineGone)
        };
        let since = asked.at.checked_sub(triggers.picture_before);
        let of_this = |picture: &Picture| picture.captured_at.is_none_or(|at| Some(at) >= since);
        let deliver = |mut picture: Picture| {
            let count = asked.count.map(|count| Position { count, per_row: 0.0 });
            picture.position = picture.position.or(count);
            self.enqueue(part, id, asked.at, picture)
        };
        if let Err(fault) = open.source.trigger() {
            lose(Cause::CameraLost, &fault.0)?;
            return Ok(Turn::Gone(fault));
        }
        if let Some(early) = state.early.take_if(|early| of_this(early)) {
            self.prove(open, state, true);
            return deliver(early).map(|()| Turn::Part);
        }
        let until = asked.at + triggers.picture_within;
        loop {
            self.progress.mark();
            while let Ok(other) = triggers.asked.try_recv() {
                self.missed(triggers, other, state)?;
            }
            let left = until.saturating_duration_since(now());
            if left.is_zero() {
                // Opened anew: a picture that came now would be taken for the next part's.
                let reason = format!(
                    "no picture within {:.0} ms of its trigger",
                    triggers.picture_within.as_secs_f64() * 1000.0
                );
                lose(Cause::BadFrame, &reason)?;
                return Ok(Turn::Gone(CameraFault(reason)));
            }
            match open.source.grab(left.min(TRIGGER_PATIENCE)) {
                Ok(Grab::Picture(picture)) if of_this(&picture) => {
                    self.prove(open, state, true);
                    return deliver(picture).map(|()| Turn::Part);
                }
                Ok(Grab::Picture(picture)) => self.untriggered(Some(picture), state),
                Ok(Grab::Bad { reason, .. }) => {
                    self.prove(open, state, true);
                    return lose(Cause::BadFrame, &reason).map(|()| Turn::Part);
                }
                Ok(Grab::Idle) => {}
                Ok(Grab::End) => {
                    return lose(Cause::CameraLost, "the source has no more pictures")
                        .map(|()| Turn::End);
                }
                Err(fault) => {
                    lose(Cause::CameraLost, &fault.0)?;
                    return Ok(Turn::Gone(fault));
                }
            }
        }
    }

    fn missed(&self, triggers: &Triggers, asked: Asked, state: &mut State) -> Result<(), LineGone> {
        triggers.count_missed();
        self.refuse(asked, state, Cause::NotReady, "triggered while the camera was not ready")
    }

    /// A trigger makes a part even where no picture can be.
    fn refuse(
        &self,
        asked: Asked,
        state: &mut State,
        cause: Cause,
        reason: &str,
    ) -> Result<(), LineGone> {
        let name: Arc<str> = state.seq.to_string().into();
        let (part, _) = self.trigger(state, name, asked.at, place(&asked), None)?;
        asked.answer(part);
        asked.exposed();
        let lost = Event::Lost { part, cause, reason: reason.into() };
        self.events.send(lost).map_err(|_| LineGone)
    }

    /// What was triggered while the line ended.
    fn refuse_triggers(&self) {
        let Some(triggers) = &self.triggers else { return };
        triggers.set_ready(false);
        while let Ok(asked) = triggers.asked.try_recv() {
            let part = PartId(self.counters.trigger());
            asked.answer(part);
            asked.exposed();
            let frame = FrameId { camera: self.index, seq: part.0 };
            let name = "".into();
            let (captured_at, place) = (asked.at, place(&asked));
            let came = Event::Triggered { part, frame, name, captured_at, place, truth: None };
            let reason = "the line has ended".into();
            let lost = Event::Lost { part, cause: Cause::NotReady, reason };
            if self.events.send(came).and_then(|()| self.events.send(lost)).is_err() {
                return;
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
        place: Place,
        truth: Option<Truth>,
    ) -> Result<(PartId, FrameId), LineGone> {
        let part = PartId(self.counters.trigger());
        let frame = FrameId { camera: self.index, seq: state.seq };
        state.seq += 1;
        self.events
            .send(Event::Triggered { part, frame, name, captured_at, place, truth })
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
        let (part, _) = self.trigger(state, name, now(), Place::Unknown, None)?;
        let lost = Event::Lost { part, cause, reason: reason.into() };
        self.events.send(lost).map_err(|_| LineGone)
    }

    /// A picture that is its own trigger.
    fn send(&self, state: &mut State, picture: Picture) -> Result<(), LineGone> {
        let now = now();
        let captured_at = picture.captured_at.unwrap_or(now).min(now);
        let name = picture.name.as_str().into();
        let truth = picture.truth.clone();
        let (part, id) = self.trigger(state, name, captured_at, Place::Time, truth)?;
        self.enqueue(part, id, captured_at, picture)
    }

    fn enqueue(
        &self,
        part: PartId,
        id: FrameId,
        captured_at: Instant,
        picture: Picture,
    ) -> Result<(), LineGone> {
        let Picture { image, name, captured_at: _, position, truth } = picture;
        let frame = Frame { id, part, captured_at, image, name: name.into(), position, truth };
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
/// A trigger that came through the gate's station knows where the belt was.
fn place(asked: &Asked) -> Place {
    asked.count.map_or(Place::Time, Place::Count)
}
