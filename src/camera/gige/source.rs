//! Makes parts of what a camera delivers: each frame that was taken becomes one, also those that
//! came in pieces or never.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::camera::{Camera, Delivery, Opened};
use super::clock::{CameraClock, SetBack};
use super::continuity::{Continuity, MOST_MISSING, Step};
use super::encoder::Unwrap;
use super::pixels::{self, Format, Layout};
use super::silence::{Silence, two_periods};
use super::{Config, Encoder, LineStatus, Trigger, chunks};
use crate::camera::{CameraFault, FrameSource, Grab, Picture};
use crate::frame::Position;

/// Where neither the file nor the camera says how long a frame may stay away.
const DEFAULT_SILENCE: Duration = Duration::from_secs(1);
/// Where this thread was kept from running until the limit had passed, so was the one that puts
/// packets together: it gets this long to hand over what lies in the socket.
const HESITATION: Duration = Duration::from_millis(5);

/// A camera that was opened.
pub struct Source<C: Camera> {
    /// For faults.
    address: String,
    camera: C,
    format: Format,
    silence: Silence,
    continuity: Continuity,
    /// Frames that never came, by how many before the held one they were.
    missing: Range<u64>,
    /// Waits until those before it are reported.
    held: Option<Taken<C::Payload>>,
    clock: CameraClock,
    encoder: Option<Belt>,
    lines: Option<(chunks::Place, LineStatus)>,
    software: bool,
}

/// A frame and when it was captured.
struct Taken<P> {
    frame: Delivery<P>,
    captured_at: Result<Instant, SetBack>,
}

/// How often the camera is asked for its clock when it was opened: the quickest answer counts.
const SIGHTINGS: usize = 5;

struct Belt {
    place: chunks::Place,
    unwrap: Unwrap,
    per_row: f64,
}

impl<C: Camera> Source<C> {
    pub fn new(config: &Config, mut camera: C, opened: Opened) -> Source<C> {
        let now = clock();
        let mut camera_clock = CameraClock::new(now);
        for (stamp_ns, by) in (0..SIGHTINGS).map_while(|_| camera.sight()) {
            camera_clock.sighted(stamp_ns, by);
        }
        let set = config.silence_ms.map(Duration::from_millis);
        let limit = set.unwrap_or(DEFAULT_SILENCE);
        let silence = match config.trigger {
            Trigger::Free => {
                Silence::free(set.or(opened.rate_hz.map(two_periods)).unwrap_or(limit), now)
            }
            Trigger::Software => Silence::asked(limit, now),
            Trigger::Hardware => Silence::Unknown,
        };
        let belt = |(place, encoder): (_, &Encoder)| Belt {
            place,
            // A camera that is opened again counts anew: nobody saw what happened meanwhile.
            unwrap: Unwrap::new(encoder.bits),
            per_row: encoder.per_row,
        };
        Source {
            address: config.address.to_string(),
            camera,
            format: opened.format,
            silence,
            continuity: Continuity::default(),
            missing: 0..0,
            held: None,
            clock: camera_clock,
            encoder: opened.encoder.zip(config.encoder.as_ref()).map(belt),
            lines: opened.line_status.zip(config.line_status.clone()),
            software: config.trigger == Trigger::Software,
        }
    }

    fn fault(&self, reason: impl std::fmt::Display) -> CameraFault {
        CameraFault(format!("{}: {reason}", self.address))
    }

    /// The limit has passed without a frame.
    fn silent(&mut self) -> Result<Grab, CameraFault> {
        // The fault itself stands for the last of them.
        if self.silence.owed() > 1 {
            self.silence.forgive();
            let name = "frame-none".to_owned();
            return Ok(Grab::Bad { name, reason: "the camera sent no picture of it".to_owned() });
        }
        let (limit, after) = match self.silence {
            Silence::Asked { limit, .. } => (limit, " after a trigger"),
            Silence::Free { limit, .. } => (limit, ""),
            Silence::Unknown => return Ok(Grab::Idle),
        };
        let losses = self.camera.own_losses();
        Err(self.fault(format!(
            "no frame for {} ms{after}; silence_ms sets this limit{losses}",
            limit.as_millis()
        )))
    }

    /// When a frame was captured that has come by `now`.
    fn taken(&mut self, frame: Delivery<C::Payload>, now: Instant) -> Taken<C::Payload> {
        let captured_at = frame.stamp_ns.map_or(Ok(now), |stamp_ns| {
            self.clock.sighted(stamp_ns, now);
            Ok(self.clock.captured_at(stamp_ns, now)?.unwrap_or(now))
        });
        Taken { frame, captured_at }
    }

    fn part(&mut self, taken: &Taken<C::Payload>) -> Grab {
        let Taken { frame, captured_at } = taken;
        let name = format!("frame-{}", frame.id);
        if let Some(reason) = &frame.incomplete {
            let reason = format!("{reason}{}", self.camera.own_losses());
            return Grab::Bad { name, reason };
        }
        let Ok(captured_at) = *captured_at else {
            let reason = "the camera's clock was set back: when it was captured is not known";
            return Grab::Bad { name, reason: reason.to_owned() };
        };
        let bytes = frame.payload.as_ref();
        // Before the pixels: the counter must be followed over bad pictures too.
        let position = match &mut self.encoder {
            None => None,
            Some(Belt { place, unwrap, per_row }) => match chunks::number(bytes, place) {
                Ok(raw) => Some(Position { count: unwrap.count(raw), per_row: *per_row }),
                Err(reason) => return Grab::Bad { name, reason },
            },
        };
        if let Some((place, wanted)) = &self.lines {
            match chunks::number(bytes, place).map(|lines| wanted.wrong(lines)) {
                Ok(None) => {}
                Ok(Some(reason)) | Err(reason) => return Grab::Bad { name, reason },
            }
        }
        let layout = Layout {
            format: self.format,
            code: frame.format,
            width: frame.width,
            height: frame.height,
            padding: frame.row_padding,
        };
        match pixels::picture(&layout, bytes) {
            Ok(image) => {
                let captured_at = Some(captured_at);
                Grab::Picture(Picture { image, name, captured_at, position, truth: None })
            }
            Err(reason) => Grab::Bad { name, reason },
        }
    }
}

impl<C: Camera> FrameSource for Source<C> {
    fn grab(&mut self, patience: Duration) -> Result<Grab, CameraFault> {
        if let Some(before) = self.missing.next_back()
            && let Some(held) = &self.held
        {
            let id = self.continuity.before(held.frame.id, before);
            return Ok(Grab::Bad {
                name: format!("frame-{id}"),
                reason: format!("frame id {id} never came{}", self.camera.own_losses()),
            });
        }
        if let Some(held) = self.held.take() {
            return Ok(self.part(&held));
        }
        if let Some(reason) = self.camera.lost() {
            return Err(self.fault(reason));
        }
        if self.clock.due(clock())
            && let Some((stamp_ns, by)) = self.camera.sight()
        {
            self.clock.sighted(stamp_ns, by);
        }
        let wait = self.silence.left(clock()).map_or(patience, |left| left.min(patience));
        let mut frame = self.camera.next(wait);
        if frame.is_none() && self.silence.left(clock()) == Some(Duration::ZERO) {
            frame = self.camera.next(HESITATION);
        }
        let Some(frame) = frame else {
            return match self.silence.left(clock()) {
                Some(Duration::ZERO) => self.silent(),
                _ => Ok(Grab::Idle),
            };
        };
        let now = clock();
        let id = frame.id;
        match self.continuity.step(id) {
            Step::Ahead { missing: 0 } => {
                self.silence.heard(1, now);
                let taken = self.taken(frame, now);
                Ok(self.part(&taken))
            }
            Step::Ahead { missing } => {
                self.silence.heard(missing + 1, now);
                self.missing = 1..missing + 1;
                self.held = Some(self.taken(frame, now));
                self.grab(patience)
            }
            Step::Behind => Ok(Grab::Bad {
                name: format!("frame-{id}"),
                reason: format!("frame id {id} came again, or after its turn"),
            }),
            Step::Lost { last } => {
                let losses = self.camera.own_losses();
                Err(self.fault(format!(
                    "frame ids went from {last} to {id}: the camera was started again, or more \
                     than {MOST_MISSING} frames are lost{losses}"
                )))
            }
        }
    }

    fn trigger(&mut self) -> Result<(), CameraFault> {
        if !self.software {
            return Ok(());
        }
        self.silence.trigger(clock());
        self.camera.trigger().map_err(|reason| self.fault(reason))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "whether a frame is due is asked where it is waited for, on the camera's thread"
)]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::thread::sleep;

    use super::*;
    use crate::frame::Image;

    /// Longer than any test waits.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A camera that delivers what a test puts there.
    #[derive(Clone, Default)]
    struct Fake(Rc<RefCell<State>>);

    #[derive(Default)]
    struct State {
        frames: VecDeque<Delivery<Vec<u8>>>,
        triggers: usize,
        lost: Option<String>,
        /// What its clock shows when it is asked.
        sights: VecDeque<(u64, Instant)>,
        /// How long the machine does nothing in the next wait, whatever comes meanwhile.
        hesitates: Option<Duration>,
    }

    impl Camera for Fake {
        type Payload = Vec<u8>;

        fn next(&mut self, wait: Duration) -> Option<Delivery<Vec<u8>>> {
            if let Some(time) = self.0.borrow_mut().hesitates.take() {
                sleep(time);
                return None;
            }
            let frame = self.0.borrow_mut().frames.pop_front();
            if frame.is_none() {
                assert!(wait < PATIENCE, "this would be waited for in vain");
                sleep(wait);
            }
            frame
        }

        fn trigger(&mut self) -> Result<(), String> {
            self.0.borrow_mut().triggers += 1;
            Ok(())
        }

        fn sight(&mut self) -> Option<(u64, Instant)> {
            self.0.borrow_mut().sights.pop_front()
        }

        fn lost(&self) -> Option<String> {
            self.0.borrow().lost.clone()
        }

        fn own_losses(&mut self) -> String {
            String::new()
        }
    }

    fn frame(id: u64) -> Delivery<Vec<u8>> {
        Delivery {
            id,
            incomplete: None,
            width: 2,
            height: 1,
            row_padding: 0,
            format: 0x0108_0001,
            payload: vec![id as u8, 7],
            stamp_ns: None,
        }
    }

    fn source(config: &str, encoder: Option<chunks::Place>) -> (Fake, Source<Fake>) {
        let config = toml::from_str(&format!("address = '10.0.0.5'\n{config}")).unwrap();
        let camera = Fake::default();
        let opened =
            Opened { format: Format::Mono8, rate_hz: Some(100.0), encoder, line_status: None };
        (camera.clone(), Source::new(&config, camera, opened))
    }

    fn deliver(camera: &Fake, ids: &[u64]) {
        camera.0.borrow_mut().frames.extend(ids.iter().map(|&id| frame(id)));
    }

    fn describe(grab: Result<Grab, CameraFault>) -> String {
        match grab {
            Ok(Grab::Picture(Picture { image: Image::Gray(image), name, .. })) => {
                format!("{name} {}", image.as_raw()[0])
            }
            Ok(Grab::Bad { name, reason }) => format!("{name} bad: {reason}"),
            Ok(other) => format!("{other:?}"),
            Err(fault) => format!("fault: {fault}"),
        }
    }

    #[test]
    fn each_frame_that_was_taken_becomes_a_part_in_its_turn() {
        let (camera, mut source) = source("", None);
        deliver(&camera, &[65534, 3, 3, 4]);
        camera.0.borrow_mut().frames[3].incomplete = Some("30 of 38 packets came".to_owned());
        for says in [
            "frame-65534 254",
            "frame-65535 bad: frame id 65535 never came",
            "frame-1 bad: frame id 1 never came",
            "frame-2 bad: frame id 2 never came",
            "frame-3 3",
            "frame-3 bad: frame id 3 came again, or after its turn",
            "frame-4 bad: 30 of 38 packets came",
        ] {
            assert_eq!(describe(source.grab(PATIENCE)), says);
        }
    }

    #[test]
    fn a_jump_of_ids_is_a_fault() {
        let (camera, mut source) = source("", None);
        deliver(&camera, &[5000, 1]);
        assert_eq!(describe(source.grab(PATIENCE)), "frame-5000 136");
        let fault = describe(source.grab(PATIENCE));
        assert!(fault.starts_with("fault: 10.0.0.5: frame ids went from 5000 to 1"), "{fault}");
    }

    #[test]
    fn a_free_camera_is_lost_after_two_of_its_periods() {
        let (camera, mut source) = source("", None);
        deliver(&camera, &[1]);
        assert_eq!(describe(source.grab(PATIENCE)), "frame-1 1");
        let fault = describe(source.grab(PATIENCE));
        assert!(fault.starts_with("fault: 10.0.0.5: no frame for 20 ms;"), "{fault}");
    }

    #[test]
    fn a_host_that_hesitates_takes_no_camera_for_lost() {
        let (camera, mut source) = source("", None);
        deliver(&camera, &[1, 2]);
        assert_eq!(describe(source.grab(PATIENCE)), "frame-1 1");
        camera.0.borrow_mut().hesitates = Some(Duration::from_millis(30));
        assert_eq!(describe(source.grab(PATIENCE)), "frame-2 2");
    }

    #[test]
    fn patience_ends_before_silence() {
        let (camera, mut source) = source("silence_ms = 60000", None);
        deliver(&camera, &[1]);
        assert_eq!(describe(source.grab(PATIENCE)), "frame-1 1");
        assert_eq!(describe(source.grab(Duration::from_millis(2))), "Idle");
    }

    #[test]
    fn each_trigger_without_a_picture_is_a_rejected_part() {
        let (camera, mut source) = source("trigger = 'software'\nsilence_ms = 40", None);
        assert_eq!(describe(source.grab(Duration::from_millis(1))), "Idle");
        for _ in 0..4 {
            source.trigger().unwrap();
        }
        assert_eq!(camera.0.borrow().triggers, 4);
        deliver(&camera, &[1]);
        assert_eq!(describe(source.grab(PATIENCE)), "frame-1 1");
        // Two come out as bad parts; for the last one the fault stands.
        let none = "frame-none bad: the camera sent no picture of it";
        assert_eq!(describe(source.grab(PATIENCE)), none);
        assert_eq!(describe(source.grab(PATIENCE)), none);
        let fault = describe(source.grab(PATIENCE));
        assert!(fault.contains("no frame for 40 ms after a trigger"), "{fault}");
    }

    #[test]
    fn an_outside_trigger_is_not_ours_and_its_silence_no_fault() {
        let (camera, mut source) = source("trigger = 'hardware'", None);
        source.trigger().unwrap();
        assert_eq!(camera.0.borrow().triggers, 0);
        assert_eq!(describe(source.grab(Duration::from_millis(30))), "Idle");
    }

    #[test]
    fn lost_control_is_a_fault() {
        let (camera, mut source) = source("", None);
        camera.0.borrow_mut().lost = Some("control was lost".to_owned());
        assert_eq!(describe(source.grab(PATIENCE)), "fault: 10.0.0.5: control was lost");
    }

    #[test]
    fn frames_that_are_taken_late_were_captured_by_the_cameras_clock() {
        let camera = Fake::default();
        let opened =
            Opened { format: Format::Mono8, rate_hz: None, encoder: None, line_status: None };
        let config = toml::from_str("address = '10.0.0.5'\ntrigger = 'hardware'").unwrap();
        let began = clock();
        camera.0.borrow_mut().sights.push_back((9_000_000_000, began));
        let mut source = Source::new(&config, camera.clone(), opened);
        sleep(Duration::from_millis(60));
        // A step of the camera's clock in between, which is no frame's time.
        for (id, stamp_ms) in [(1, 9_010), (2, 9_030), (3, 4), (4, 9_050)] {
            let stamp_ns = Some(stamp_ms * 1_000_000);
            camera.0.borrow_mut().frames.push_back(Delivery { stamp_ns, ..frame(id) });
        }
        let mut captured_ms = || match source.grab(PATIENCE).unwrap() {
            Grab::Picture(picture) => Ok((picture.captured_at.unwrap() - began).as_millis()),
            Grab::Bad { reason, .. } => Err(reason),
            other => panic!("{other:?}"),
        };
        assert_eq!(captured_ms(), Ok(10));
        assert_eq!(captured_ms(), Ok(30));
        assert!(captured_ms().unwrap_err().contains("set back"));
        assert!(captured_ms().is_ok_and(|ms| ms >= 60), "known anew from this frame on");
    }

    #[test]
    fn a_picture_taken_while_a_line_was_wrong_is_bad() {
        let place = chunks::Place { id: 5, offset: 0, length: 4, big_endian: true };
        let config = "address = '10.0.0.5'\nline_status = { high = [0, 2], low = [1] }";
        let camera = Fake::default();
        let line_status = Some(place);
        let opened = Opened { format: Format::Mono8, rate_hz: None, encoder: None, line_status };
        let mut source = Source::new(&toml::from_str(config).unwrap(), camera.clone(), opened);
        let mut grabbed = |id, lines: Option<u32>| {
            let mut frame = frame(id);
            for word in lines.iter().flat_map(|&lines| [lines, 5, 4]) {
                frame.payload.extend(word.to_be_bytes());
            }
            camera.0.borrow_mut().frames.push_back(frame);
            describe(source.grab(PATIENCE))
        };
        assert_eq!(grabbed(1, Some(0b1101)), "frame-1 1");
        for (id, lines, says) in [
            (2, Some(0b1001), "the camera's line 2 was low and must be high (line_status)"),
            (3, Some(0b0111), "the camera's line 1 was high and must be low (line_status)"),
            (4, None, "it came without the chunk 0x5; are ChunkModeActive and ChunkEnable set?"),
        ] {
            assert_eq!(grabbed(id, lines), format!("frame-{id} bad: {says}"));
        }
    }

    #[test]
    fn the_encoder_gives_each_picture_its_position() {
        let place = chunks::Place { id: 9, offset: 0, length: 4, big_endian: true };
        let (camera, mut source) = source("encoder = { per_row = 1.5 }", Some(place));
        let counted = |id, count: u32| {
            let mut frame = frame(id);
            for word in [count, 9, 4] {
                frame.payload.extend(word.to_be_bytes());
            }
            frame
        };
        // The picture in between is of no use; its count is.
        let bent = Delivery { format: 1, ..counted(2, 0x7000_0000) };
        camera.0.borrow_mut().frames.extend([
            counted(1, 10),
            bent,
            counted(3, 0xe000_0000),
            counted(4, 5),
            frame(5),
        ]);
        let mut position = || match source.grab(PATIENCE).unwrap() {
            Grab::Picture(picture) => picture.position,
            Grab::Bad { .. } => None,
            other => panic!("{other:?}"),
        };
        let at = |count| Some(Position { count, per_row: 1.5 });
        assert_eq!(position(), at(10));
        assert_eq!(position(), None);
        assert_eq!(position(), at(0xe000_0000));
        assert_eq!(position(), at((1 << 32) + 5));
        assert_eq!(position(), None, "a frame without its chunk is bad");
    }
}
