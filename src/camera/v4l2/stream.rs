//! From a driver's buffers to parts. Knows no hardware: the driver is handed in, and the time with it.
//!
//! A driver numbers its frames and fills the buffers that it has; while none is free it drops frames
//! and counts on. So a gap in its numbers says how many parts nobody saw.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Policy;
use super::unpack::Unpacker;
use crate::camera::{CameraFault, FrameSource, Grab, Picture};

/// One moment on both clocks: ours, and the one that drivers stamp frames with.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub now: Instant,
    pub monotonic: Duration,
}

/// A device that streams.
pub trait Driver {
    /// How many frames can wait. With so many it has none to fill, and drops what comes.
    fn buffers(&self) -> usize;

    fn clock(&self) -> Clock;

    /// Waits at most so long for a frame to take; false: there is none yet. An error: the stream has
    /// failed.
    fn wait(&mut self, patience: Duration) -> Result<bool, Errno>;

    /// The oldest frame that is there, if any. Its buffer stays with us until it is given back.
    fn take(&mut self) -> Result<Option<Taken>, Errno>;

    /// What the driver filled of a frame's buffer.
    fn bytes(&self, taken: &Taken) -> &[u8];

    fn give_back(&mut self, taken: Taken) -> Result<(), Errno>;
}

/// A frame in its buffer.
#[derive(Debug)]
pub struct Taken {
    pub index: u32,
    pub bytes_used: u32,
    /// The driver knows that it is not whole.
    pub broken: bool,
    /// The driver's number of the frame; wraps.
    pub sequence: u32,
    /// When it was taken, on the monotonic clock. `None`: the driver does not say by that clock.
    pub stamp: Option<Duration>,
}

/// What a stream is to do, from the config and from what the device agreed to.
pub struct Settings {
    /// What faults and log lines call the camera.
    pub device: String,
    pub policy: Policy,
    /// Without a frame for so long the camera is lost; `None`: never.
    pub silence: Option<Duration>,
    /// Between two frames; `None`: not known.
    pub period: Option<Duration>,
}

/// A camera as a source of parts.
pub struct Stream<D: Driver> {
    driver: D,
    settings: Settings,
    unpacker: Unpacker,
    opened: Clock,
    /// The last frame's number as the driver counts, and as we do.
    last: Option<(u32, u64)>,
    heard_at: Instant,
    /// What the next grabs hand on.
    ready: VecDeque<Grab>,
    /// What ends the stream once `ready` is empty.
    failed: Option<CameraFault>,
    unnumbered: bool,
    /// All buffers were full of old frames, which were passed over for the next that comes.
    overslept: bool,
    /// A trigger has come: from now on only triggers make parts.
    triggered: bool,
    /// When the part was in front of the camera that waits for its picture.
    waiting_since: Option<Instant>,
    /// Parts triggered while another still waited.
    too_soon: u32,
    passed_over: u64,
    told_at: Instant,
}

/// A gap larger than this is no gap: the driver has lost count.
const LARGEST_GAP: u32 = 10_000;
/// A triggered part whose picture takes more frame periods has moved on: up to one until the frame
/// begins, one of exposure, one of transfer.
const PERIODS_TO_PICTURE: u32 = 3;
/// In place of these periods for a camera that knows no rate and is never silent for too long.
const LONGEST_TO_PICTURE: Duration = Duration::from_secs(2);
/// How often it is told how many frames were passed over.
const TELL_EVERY: Duration = Duration::from_secs(600);

impl<D: Driver> Stream<D> {
    pub fn new(driver: D, unpacker: Unpacker, settings: Settings) -> Stream<D> {
        let opened = driver.clock();
        Stream {
            driver,
            settings,
            unpacker,
            opened,
            last: None,
            heard_at: opened.now,
            ready: VecDeque::new(),
            failed: None,
            unnumbered: false,
            overslept: false,
            triggered: false,
            waiting_since: None,
            too_soon: 0,
            passed_over: 0,
            told_at: opened.now,
        }
    }

    fn fault(&self, what: impl std::fmt::Display) -> CameraFault {
        CameraFault(format!("{}: {what}", self.settings.device))
    }

    fn failure(&self, error: Errno) -> CameraFault {
        match error {
            Errno::NODEV => self.fault(format_args!("it is gone, unplugged perhaps: {error}")),
            Errno::IO => self.fault(format_args!("its driver has stopped the stream: {error}")),
            error => self.fault(error),
        }
    }

    fn take(&mut self) -> Result<Option<Taken>, CameraFault> {
        let taken = self.driver.take().map_err(|error| self.failure(error))?;
        if taken.is_some() {
            self.heard_at = self.driver.clock().now;
        }
        Ok(taken)
    }

    /// The stream ends if this fails, but what was made of the frame before is handed on first.
    fn give_back(&mut self, taken: Taken) {
        if let Err(error) = self.driver.give_back(taken) {
            self.failed = Some(self.failure(error));
        }
    }

    /// Takes what is there and makes of it what the policy says.
    fn fetch(&mut self) -> Result<(), CameraFault> {
        match self.settings.policy {
            Policy::Every => {
                if let Some(taken) = self.take()? {
                    let (number, lost) = self.number(&taken)?;
                    for number in number - u64::from(lost)..number {
                        let reason = format!("frame {number} was dropped by the driver");
                        self.ready.push_back(Grab::Bad { name: name(number), reason });
                    }
                    self.hand_on(taken, number);
                }
            }
            Policy::Newest if self.triggered => {
                while self.failed.is_none()
                    && let Some(taken) = self.take()?
                {
                    self.sort(taken)?;
                }
            }
            Policy::Newest => {
                let Some(mut newest) = self.take()? else { return Ok(()) };
                let (mut number, lost) = self.number(&newest)?;
                self.passed_over += u64::from(lost);
                let mut there = 1;
                while self.failed.is_none()
                    && let Some(newer) = self.take()?
                {
                    let lost;
                    (number, lost) = self.number(&newer)?;
                    self.passed_over += u64::from(lost) + 1;
                    self.give_back(std::mem::replace(&mut newest, newer));
                    there += 1;
                }
                // A full driver has dropped the newest. Once only: on a machine that is always late this
                // would wait for ever.
                self.overslept = there >= self.driver.buffers() && !self.overslept;
                if self.overslept {
                    self.passed_over += 1;
                    self.give_back(newest);
                } else {
                    self.hand_on(newest, number);
                }
            }
        }
        Ok(())
    }

    /// The picture of the part that waits for one, or nobody's.
    fn sort(&mut self, taken: Taken) -> Result<(), CameraFault> {
        let (number, lost) = self.number(&taken)?;
        self.passed_over += u64::from(lost);
        let captured_at = self.captured_at(&taken);
        let Some(since) = self.waiting_since.filter(|since| captured_at >= *since) else {
            self.passed_over += 1;
            self.give_back(taken);
            return Ok(());
        };
        if captured_at > since + self.longest_to_picture() {
            self.without_picture();
            self.passed_over += 1;
            self.give_back(taken);
        } else {
            self.hand_on(taken, number);
            self.waited_for();
        }
        Ok(())
    }

    /// Part and picture are together again; those that came in between have none.
    fn waited_for(&mut self) {
        self.waiting_since = None;
        for _ in 0..std::mem::take(&mut self.too_soon) {
            self.ready.push_back(Grab::Bad {
                name: "no-frame".to_owned(),
                reason: "triggered before the camera had taken the picture of the part before"
                    .to_owned(),
            });
        }
    }

    fn without_picture(&mut self) {
        let limit = self.longest_to_picture().as_millis();
        self.ready.push_back(Grab::Bad {
            name: "no-frame".to_owned(),
            reason: format!("the camera took no picture within {limit} ms of the trigger"),
        });
        self.waited_for();
    }

    fn longest_to_picture(&self) -> Duration {
        let Settings { period, silence, .. } = self.settings;
        period.map(|period| period * PERIODS_TO_PICTURE).or(silence).unwrap_or(LONGEST_TO_PICTURE)
    }

    /// Our number of a frame, and how many before it were lost.
    fn number(&mut self, taken: &Taken) -> Result<(u64, u32), CameraFault> {
        // The first frame begins the count: not all drivers begin at 0.
        let Some((sequence, number)) = self.last else {
            self.last = Some((taken.sequence, u64::from(taken.sequence)));
            return Ok((u64::from(taken.sequence), 0));
        };
        let step = match taken.sequence.wrapping_sub(sequence) {
            0 => {
                if !std::mem::replace(&mut self.unnumbered, true) {
                    log::warn!(
                        "frames_unnumbered device={} sequence={sequence}",
                        self.settings.device
                    );
                }
                1
            }
            step if step <= LARGEST_GAP => step,
            _ => {
                return Err(self.fault(format_args!(
                    "its driver counted from frame {sequence} to {}",
                    taken.sequence
                )));
            }
        };
        let number = number + u64::from(step);
        self.last = Some((taken.sequence, number));
        Ok((number, step - 1))
    }

    fn hand_on(&mut self, taken: Taken, number: u64) {
        let captured_at = Some(self.captured_at(&taken));
        let name = name(number);
        let unpacked = if taken.broken {
            Err(format!("the driver marks frame {number} as broken"))
        } else {
            self.unpacker.unpack(self.driver.bytes(&taken))
        };
        self.give_back(taken);
        self.ready.push_back(match unpacked {
            Ok(image) => {
                Grab::Picture(Picture { image, name, captured_at, position: None, truth: None })
            }
            Err(reason) => Grab::Bad { name, reason },
        });
    }

    /// By the driver's stamp, if it lies between the start of the stream and now: others have been
    /// made by another clock.
    fn captured_at(&self, taken: &Taken) -> Instant {
        let Clock { now, monotonic } = self.driver.clock();
        taken
            .stamp
            .filter(|stamp| *stamp >= self.opened.monotonic)
            .and_then(|stamp| now.checked_sub(monotonic.checked_sub(stamp)?))
            .unwrap_or(now)
    }

    fn tell_passed_over(&mut self, now: Instant) {
        self.told_at = now;
        let frames = std::mem::take(&mut self.passed_over);
        if frames > 0 {
            log::info!("frames_passed_over device={} frames={frames}", self.settings.device);
        }
    }
}

impl<D: Driver> FrameSource for Stream<D> {
    fn grab(&mut self, patience: Duration) -> Result<Grab, CameraFault> {
        let until = self.driver.clock().now + patience;
        loop {
            if let Some(grab) = self.ready.pop_front() {
                return Ok(grab);
            }
            if let Some(fault) = self.failed.take() {
                return Err(fault);
            }
            self.fetch()?;
            let now = self.driver.clock().now;
            if now >= self.told_at + TELL_EVERY {
                self.tell_passed_over(now);
            }
            if !self.ready.is_empty() || self.failed.is_some() {
                continue;
            }
            if self.waiting_since.is_some_and(|since| now > since + self.longest_to_picture()) {
                self.without_picture();
                continue;
            }
            let mut wait = until.saturating_duration_since(now);
            if let Some(silence) = self.settings.silence {
                let left = (self.heard_at + silence).saturating_duration_since(now);
                if left.is_zero() {
                    let silence = silence.as_millis();
                    return Err(self.fault(format_args!("no frame for {silence} ms")));
                }
                wait = wait.min(left);
            }
            if now >= until {
                return Ok(Grab::Idle);
            }
            self.driver.wait(wait).map_err(|error| self.failure(error))?;
        }
    }

    /// With [`Policy::Newest`]: from now on frames are nobody's but the first that is taken at or after
    /// a trigger. With [`Policy::Every`] each frame is a part already.
    fn trigger(&mut self) -> Result<(), CameraFault> {
        if self.settings.policy == Policy::Every {
            return Ok(());
        }
        self.triggered = true;
        // What is there is older than this part, by whatever clock.
        self.fetch()?;
        if self.waiting_since.is_some() {
            self.too_soon += 1;
        } else {
            self.waiting_since = Some(self.driver.clock().now);
        }
        Ok(())
    }
}

impl<D: Driver> Drop for Stream<D> {
    fn drop(&mut self) {
        self.tell_passed_over(self.told_at);
    }
}

fn name(number: u64) -> String {
    format!("frame-{number}")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use image::{GrayImage, Luma};

    use super::*;
    use crate::camera::v4l2::Format;
    use crate::camera::v4l2::uapi::PixFormat;
    use crate::frame::Image;

    const MS: Duration = Duration::from_millis(1);
    /// The time on the monotonic clock when a fake begins.
    const BOOT: Duration = Duration::from_secs(1000);

    /// Delivers frames of one pixel, whose level is the frame's number, at planned times.
    struct Fake {
        start: Instant,
        /// Since the start; goes on while somebody waits.
        time: Cell<Duration>,
        /// In the order of their times.
        plan: VecDeque<(Duration, Result<Planned, Errno>)>,
        with_us: Vec<u32>,
        give_back: Result<(), Errno>,
        buffers: usize,
    }

    #[derive(Clone, Copy)]
    struct Planned {
        sequence: u32,
        broken: bool,
        short: bool,
        stamp: Option<Duration>,
    }

    impl Driver for Fake {
        fn buffers(&self) -> usize {
            self.buffers
        }

        fn clock(&self) -> Clock {
            let time = self.time.get();
            Clock { now: self.start + time, monotonic: BOOT + time }
        }

        fn wait(&mut self, patience: Duration) -> Result<bool, Errno> {
            let now = self.time.get();
            let next = self.plan.front().map(|(at, _)| *at);
            let came = next.filter(|at| *at <= now + patience);
            self.time.set(came.unwrap_or(now + patience).max(now));
            Ok(came.is_some())
        }

        fn take(&mut self) -> Result<Option<Taken>, Errno> {
            let now = self.time.get();
            let Some((_, planned)) = self.plan.pop_front_if(|(at, _)| *at <= now) else {
                return Ok(None);
            };
            let Planned { sequence, broken, short, stamp } = planned?;
            self.with_us.push(sequence);
            Ok(Some(Taken {
                index: sequence,
                bytes_used: u32::from(!short),
                broken,
                sequence,
                stamp,
            }))
        }

        fn bytes(&self, taken: &Taken) -> &[u8] {
            const LEVELS: [u8; 256] = {
                let mut levels = [0; 256];
                let mut level = 0;
                while level < 256 {
                    levels[level] = level as u8;
                    level += 1;
                }
                levels
            };
            assert!(self.with_us.contains(&taken.index), "the buffer is the driver's");
            let at = taken.sequence as usize % 256;
            &LEVELS[at..at + taken.bytes_used as usize]
        }

        fn give_back(&mut self, taken: Taken) -> Result<(), Errno> {
            let at = self.with_us.iter().position(|index| *index == taken.index);
            self.with_us.swap_remove(at.expect("a buffer is given back once"));
            self.give_back
        }
    }

    /// A frame at `ms`, taken 5 ms before.
    fn frame(ms: u64, sequence: u32) -> (Duration, Result<Planned, Errno>) {
        let at = Duration::from_millis(ms);
        let stamp = Some(BOOT + at.saturating_sub(5 * MS));
        (at, Ok(Planned { sequence, broken: false, short: false, stamp }))
    }

    fn changed(
        (at, frame): (Duration, Result<Planned, Errno>),
        change: impl FnOnce(&mut Planned),
    ) -> (Duration, Result<Planned, Errno>) {
        let mut frame = frame.unwrap();
        change(&mut frame);
        (at, Ok(frame))
    }

    #[expect(clippy::disallowed_methods, reason = "some moment; its value is not looked at")]
    fn moment() -> Instant {
        Instant::now()
    }

    fn stream(
        policy: Policy,
        plan: impl IntoIterator<Item = (Duration, Result<Planned, Errno>)>,
    ) -> Stream<Fake> {
        let fake = Fake {
            start: moment(),
            time: Cell::new(Duration::ZERO),
            plan: plan.into_iter().collect(),
            with_us: Vec::new(),
            give_back: Ok(()),
            buffers: 4,
        };
        let pix = PixFormat { width: 1, height: 1, ..PixFormat::default() };
        let settings = Settings {
            device: "cam".to_owned(),
            policy,
            silence: Some(500 * MS),
            period: Some(20 * MS),
        };
        Stream::new(fake, Unpacker::new(Format::Grey, 16, &pix).unwrap(), settings)
    }

    /// `frame-7 7 @15`: the name, the level, and when it was taken in ms since the start.
    fn grab(stream: &mut Stream<Fake>) -> String {
        match stream.grab(100 * MS) {
            Ok(Grab::Picture(Picture { image: Image::Gray(image), name, captured_at, .. })) => {
                let at = captured_at.unwrap().duration_since(stream.driver.start).as_millis();
                format!("{name} {} @{at}", image.get_pixel(0, 0).0[0])
            }
            Ok(Grab::Bad { name, reason }) => format!("{name} bad: {reason}"),
            Ok(other) => format!("{other:?}"),
            Err(CameraFault(text)) => format!("fault: {text}"),
        }
    }

    fn assert_grabs(stream: &mut Stream<Fake>, expected: &[&str]) {
        for expected in expected {
            assert_eq!(grab(stream), *expected);
        }
        assert!(stream.driver.with_us.is_empty(), "every buffer is given back");
    }

    #[test]
    fn each_frame_is_a_part_with_the_time_of_the_driver() {
        let mut stream = stream(Policy::Every, [frame(10, 0), frame(30, 1), frame(240, 2)]);
        assert_grabs(
            &mut stream,
            &["frame-0 0 @5", "frame-1 1 @25", "Idle", "Idle", "frame-2 2 @235"],
        );
    }

    #[test]
    fn a_gap_is_as_many_bad_parts_before_the_frame_that_shows_it() {
        let mut stream = stream(Policy::Every, [frame(10, 15), frame(30, 18), frame(50, 19)]);
        assert_grabs(
            &mut stream,
            &[
                "frame-15 15 @5",
                "frame-16 bad: frame 16 was dropped by the driver",
                "frame-17 bad: frame 17 was dropped by the driver",
                "frame-18 18 @25",
                "frame-19 19 @45",
            ],
        );
    }

    #[test]
    fn the_count_goes_on_over_its_wrap() {
        let plan = [frame(10, u32::MAX - 1), frame(30, 1)];
        let mut stream = stream(Policy::Every, plan);
        let first = u64::from(u32::MAX) - 1;
        assert!(grab(&mut stream).starts_with(&format!("frame-{first} ")));
        for lost in 1..=2 {
            let number = first + lost;
            let bad = format!("frame-{number} bad: frame {number} was dropped by the driver");
            assert_eq!(grab(&mut stream), bad);
        }
        assert!(grab(&mut stream).starts_with(&format!("frame-{} ", first + 3)));
    }

    #[test]
    fn a_driver_that_lost_count_is_a_fault_and_one_that_never_counts_is_none() {
        for (sequence, counted) in [(6, "7 to 6"), (7 + LARGEST_GAP + 1, "7 to 10008")] {
            let mut stream = stream(Policy::Every, [frame(10, 7), frame(30, sequence)]);
            assert_eq!(grab(&mut stream), "frame-7 7 @5");
            let fault = format!("fault: cam: its driver counted from frame {counted}");
            assert_eq!(grab(&mut stream), fault);
        }
        let mut stream = stream(Policy::Every, [frame(10, 0), frame(30, 0), frame(50, 0)]);
        assert_grabs(&mut stream, &["frame-0 0 @5", "frame-1 0 @25", "frame-2 0 @45"]);
    }

    #[test]
    fn broken_and_short_frames_are_bad_parts() {
        let plan = [
            changed(frame(10, 0), |frame| frame.broken = true),
            changed(frame(30, 1), |frame| frame.short = true),
            frame(50, 2),
        ];
        assert_grabs(
            &mut stream(Policy::Every, plan),
            &[
                "frame-0 bad: the driver marks frame 0 as broken",
                "frame-1 bad: 0 bytes, a frame has 1",
                "frame-2 2 @45",
            ],
        );
    }

    #[test]
    fn a_stamp_of_another_clock_is_not_believed() {
        let plan = [
            changed(frame(10, 0), |frame| frame.stamp = None),
            changed(frame(30, 1), |frame| frame.stamp = Some(BOOT + 31 * MS)),
            changed(frame(50, 2), |frame| frame.stamp = Some(BOOT - MS)),
        ];
        assert_grabs(
            &mut stream(Policy::Every, plan),
            &["frame-0 0 @10", "frame-1 1 @30", "frame-2 2 @50"],
        );
    }

    #[test]
    fn silence_is_a_fault_when_it_lasts_and_is_not_asked_for_never() {
        let silent = ["Idle", "Idle", "Idle", "Idle", "fault: cam: no frame for 500 ms"];
        assert_grabs(&mut stream(Policy::Every, []), &silent);
        let mut late = stream(Policy::Every, [frame(490, 0)]);
        assert_grabs(&mut late, &["Idle", "Idle", "Idle", "Idle", "frame-0 0 @485"]);
        assert_grabs(&mut late, &silent);

        let mut patient = stream(Policy::Every, []);
        patient.settings.silence = None;
        for _ in 0..100 {
            assert_eq!(grab(&mut patient), "Idle");
        }
    }

    #[test]
    fn frames_that_waited_while_nobody_came_are_no_silence() {
        let mut stream = stream(Policy::Every, [frame(10, 0), frame(30, 1)]);
        stream.driver.time.set(Duration::from_secs(3));
        assert_grabs(&mut stream, &["frame-0 0 @5", "frame-1 1 @25"]);
    }

    #[test]
    fn an_error_of_the_driver_is_a_fault_after_what_came_before() {
        for (error, says) in [
            (Errno::NODEV, "it is gone, unplugged perhaps: No such device (os error 19)"),
            (Errno::IO, "its driver has stopped the stream: Input/output error (os error 5)"),
        ] {
            let mut failing = stream(Policy::Every, [frame(10, 0), (30 * MS, Err(error))]);
            assert_grabs(&mut failing, &["frame-0 0 @5", &format!("fault: cam: {says}")]);
            let mut refusing = stream(Policy::Every, [frame(10, 0), frame(30, 1)]);
            refusing.driver.give_back = Err(error);
            assert_grabs(&mut refusing, &["frame-0 0 @5", &format!("fault: cam: {says}")]);
        }
    }

    #[test]
    fn newest_passes_over_what_is_older_and_counts_it() {
        let plan = [frame(10, 0), frame(20, 1), frame(30, 4), frame(150, 5)];
        let mut stream = stream(Policy::Newest, plan);
        stream.driver.time.set(40 * MS);
        assert_grabs(&mut stream, &["frame-4 4 @25"]);
        assert_eq!(stream.passed_over, 4, "0 and 1, and those that the driver dropped: 2 and 3");
        assert_grabs(&mut stream, &["Idle", "frame-5 5 @145"]);
        assert_eq!(stream.passed_over, 4);
    }

    #[test]
    fn newest_waits_for_the_next_where_the_driver_had_to_drop_the_newest() {
        let plan = [frame(10, 0), frame(20, 1), frame(500, 7), frame(510, 8), frame(520, 9)];
        let mut stream = stream(Policy::Newest, plan);
        stream.driver.buffers = 2;
        stream.driver.time.set(450 * MS);
        assert_grabs(&mut stream, &["frame-7 7 @495"]);
        assert_eq!(stream.passed_over, 7);
        // Late again and again, it does not wait again and again.
        stream.driver.plan.extend([frame(530, 10), frame(540, 11)]);
        stream.driver.time.set(525 * MS);
        stream.overslept = true;
        assert_grabs(&mut stream, &["frame-9 9 @515"]);
    }

    #[test]
    fn the_picture_of_a_trigger_is_the_first_that_is_taken_after_it() {
        // 0 has come before the trigger at 20 ms; 1 comes after it, but was taken at 17 ms.
        let plan = [frame(10, 0), frame(22, 1), frame(42, 2), frame(62, 3), frame(82, 4)];
        let mut stream = stream(Policy::Newest, plan);
        stream.driver.time.set(20 * MS);
        stream.trigger().unwrap();
        assert_grabs(&mut stream, &["frame-2 2 @37", "Idle"]);
        assert_eq!(stream.passed_over, 4, "all but the picture");
    }

    #[test]
    fn a_trigger_before_the_picture_of_the_last_has_none() {
        let mut stream = stream(Policy::Newest, [frame(10, 0), frame(30, 1), frame(50, 2)]);
        for _ in 0..3 {
            stream.trigger().unwrap();
        }
        let none =
            "no-frame bad: triggered before the camera had taken the picture of the part before";
        assert_grabs(&mut stream, &["frame-0 0 @5", none, none, "Idle"]);

        // One that comes when the picture of the part before is there, though not yet fetched, is in time.
        stream.driver.plan.extend([frame(210, 9), frame(230, 10)]);
        stream.driver.time.set(200 * MS);
        stream.trigger().unwrap();
        stream.driver.time.set(215 * MS);
        stream.trigger().unwrap();
        assert_grabs(&mut stream, &["frame-9 9 @205", "frame-10 10 @225"]);
    }

    #[test]
    fn a_trigger_whose_picture_is_late_has_none() {
        let none = "no-frame bad: the camera took no picture within 60 ms of the trigger";
        let mut waiting = stream(Policy::Newest, [frame(90, 0)]);
        waiting.trigger().unwrap();
        assert_grabs(&mut waiting, &[none, "Idle"]);
        assert_eq!(waiting.passed_over, 1);

        let mut fetched_late = stream(Policy::Newest, [frame(90, 0)]);
        fetched_late.trigger().unwrap();
        fetched_late.driver.time.set(95 * MS);
        assert_grabs(&mut fetched_late, &[none, "Idle"]);
    }

    #[test]
    fn a_source_of_every_frame_is_not_triggered() {
        let mut stream = stream(Policy::Every, [frame(10, 0), frame(30, 1)]);
        stream.driver.time.set(40 * MS);
        stream.trigger().unwrap();
        assert_grabs(&mut stream, &["frame-0 0 @5", "frame-1 1 @25"]);
    }

    #[test]
    fn a_picture_is_of_its_own_buffer() {
        let mut stream = stream(Policy::Every, [frame(10, 200)]);
        let Ok(Grab::Picture(picture)) = stream.grab(100 * MS) else {
            panic!("a picture is there")
        };
        assert_eq!(picture.image, Image::Gray(GrayImage::from_pixel(1, 1, Luma([200]))));
    }
}
