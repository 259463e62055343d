//! `kind = "v4l2"` against the kernel's own driver for tests, vivid: a camera without hardware that can be
//! told to fail. It is the peer that we did not write; `v4l2-ctl`, told by the tests, is another.
//!
//! Most machines have no vivid: `tests/qemu/v4l2.sh` boots one that has, and runs this there with
//! `INSPECTD_VIVID` naming the device. Without it the tests say so and are skipped. There is one device,
//! so they take turns, and a test leaves no control as it set it: [`Vivid::take`] sets all of them back.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use image::{GrayImage, RgbImage};
use inspectd::camera::{self, CameraFault, Config, FrameSource, Grab, Picture};
use inspectd::detector::{AnomalyMap, Detection, Detector};
use inspectd::frame::Image;
use inspectd::output::{LineStatus, Outcome, RejectOutput};
use inspectd::pipeline::{self, CameraSlot, Parts, Tuning, now};
use inspectd::verdict::{Cause, Limits, Verdict};

/// More than anything takes in a machine that is emulated on a busy one.
const PATIENCE: Duration = Duration::from_secs(20);
/// What vivid's webcam does at 320×180.
const RATE_HZ: u32 = 10;

/// The device, for one test.
struct Vivid {
    device: String,
    _turn: MutexGuard<'static, ()>,
}

impl Vivid {
    fn take() -> Option<Vivid> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(device) = std::env::var("INSPECTD_VIVID") else {
            println!(
                "SKIPPED: no vivid here (INSPECTD_VIVID is not set); tests/qemu/v4l2.sh has one"
            );
            return None;
        };
        let vivid = Vivid { device, _turn: turn };
        for control in [
            "test_pattern=0",
            "osd_text_mode=2",
            "percentage_of_dropped_buffers=0",
            "timestamp_source=0",
            "wrap_sequence_number=0",
            "wrap_timestamp=0",
            "colorspace=2",
            "y_cbcr_encoding=0",
            "quantization=0",
            "gain_automatic=1",
            "brightness=128",
        ] {
            vivid.tell(control);
        }
        Some(vivid)
    }

    /// Sets a control from outside, as `v4l2-ctl -c` does.
    fn tell(&self, control: &str) {
        let told =
            Command::new("v4l2-ctl").args(["-d", &self.device, "-c", control]).status().unwrap();
        assert!(told.success(), "v4l2-ctl -c {control}");
    }

    fn open(&self, keys: &str) -> Result<Box<dyn FrameSource>, CameraFault> {
        camera::open(&self.config(keys))
    }

    fn config(&self, keys: &str) -> Config {
        let device = &self.device;
        toml::from_str(&format!(
            "kind = 'v4l2'\ndevice = '{device}'\nwidth = 320\nheight = 180\n{keys}"
        ))
        .unwrap()
    }

    fn refusal(&self, keys: &str) -> String {
        let Err(CameraFault(text)) = self.open(keys) else { panic!("{keys} is refused") };
        text
    }
}

/// The next that is not `Idle`.
fn grab(source: &mut dyn FrameSource) -> Result<Grab, CameraFault> {
    let until = now() + PATIENCE;
    loop {
        match source.grab(Duration::from_millis(100)) {
            Ok(Grab::Idle) => assert!(now() < until, "nothing came"),
            other => return other,
        }
    }
}

fn picture(source: &mut dyn FrameSource) -> Picture {
    match grab(source) {
        Ok(Grab::Picture(picture)) => picture,
        other => panic!("{other:?}"),
    }
}

/// The next fault, whatever comes before it.
fn fault(source: &mut dyn FrameSource) -> String {
    loop {
        if let Err(CameraFault(text)) = grab(source) {
            return text;
        }
    }
}

fn number(name: &str) -> u64 {
    name.strip_prefix("frame-").unwrap().parse().unwrap()
}

fn grey(image: Image) -> GrayImage {
    let Image::Gray(image) = image else { panic!("a grey format gives grey pictures") };
    image
}

fn rgb(image: Image) -> RgbImage {
    let Image::Rgb(image) = image else { panic!("a colour format gives coloured pictures") };
    image
}

const BLACK: &str = "test_pattern=5";
const WHITE: &str = "test_pattern=6";
const PRIMARIES: [&str; 3] = ["test_pattern=7", "test_pattern=8", "test_pattern=9"];

#[test]
fn each_grey_format_gives_black_and_white() {
    let Some(vivid) = Vivid::take() else { return };
    for format in ["grey", "y10", "y12", "y16"] {
        for (pattern, level) in [(BLACK, 0), (WHITE, 255)] {
            vivid.tell(pattern);
            let mut source =
                vivid.open(&format!("format = '{format}'\nrate_hz = {RATE_HZ}")).unwrap();
            let image = grey(picture(source.as_mut()).image);
            assert_eq!(image.dimensions(), (320, 180));
            let [least, most] = [image.iter().min().unwrap(), image.iter().max().unwrap()];
            // vivid's own white is 254.
            assert!(
                least.abs_diff(level) <= 1 && most.abs_diff(level) <= 1,
                "{format} {pattern}: {least} to {most}"
            );
        }
    }
}

/// vivid paints full red, green and blue and codes them as it says that it does.
#[test]
fn yuyv_gives_the_primaries_in_each_coding_and_range() {
    let Some(vivid) = Vivid::take() else { return };
    for encoding in [1, 2, 3, 4, 6, 8] {
        for quantization in [1, 2] {
            vivid.tell(&format!("y_cbcr_encoding={encoding}"));
            vivid.tell(&format!("quantization={quantization}"));
            for (channel, pattern) in PRIMARIES.into_iter().enumerate() {
                vivid.tell(pattern);
                let mut source = vivid.open("format = 'yuyv'").unwrap();
                let image = rgb(picture(source.as_mut()).image);
                let mut wanted = [0; 3];
                wanted[channel] = 255;
                let got = image.get_pixel(160, 90).0;
                for (a, b) in got.into_iter().zip(wanted) {
                    // Both sides round, vivid in whole numbers of 8 bits.
                    assert!(a.abs_diff(b) <= 4, "{encoding}/{quantization} {pattern}: {got:?}");
                }
            }
        }
    }
    vivid.tell("y_cbcr_encoding=7");
    let text = vivid.refusal("format = 'yuyv'");
    assert!(text.contains("(V4L2 Y'CbCr encoding 7)"), "{text}");
}

#[test]
fn frames_come_at_the_rate_with_the_time_of_the_driver() {
    let Some(vivid) = Vivid::take() else { return };
    for source in ["timestamp_source=0", "timestamp_source=1"] {
        vivid.tell(source);
        let mut source = vivid.open(&format!("format = 'grey'\nrate_hz = {RATE_HZ}")).unwrap();
        let mut last: Option<(u64, Instant)> = None;
        for _ in 0..10 {
            let Ok(grab) = grab(source.as_mut()) else { panic!("the camera is there") };
            let Grab::Picture(Picture { name, captured_at, .. }) = grab else { continue };
            let captured_at = captured_at.unwrap();
            assert!(captured_at <= now());
            if let Some((before, at)) = last {
                // The stamps have the pace of the camera, however late they are fetched. vivid stamps some
                // frames ahead of time, which become "now".
                let frames = (number(&name) - before) as u32;
                let period = Duration::from_secs(1) / RATE_HZ;
                let passed = captured_at.duration_since(at);
                assert!(passed < period * (frames + 3), "{passed:?} for {frames} frames");
            }
            last = Some((number(&name), captured_at));
        }
        assert!(last.is_some(), "pictures came");
    }
}

#[test]
fn what_the_driver_would_change_is_refused_with_what_it_offers() {
    let Some(vivid) = Vivid::take() else { return };
    for (keys, says) in [
        ("format = 'mjpeg'", ["format = \"mjpeg\" (MJPG) is not what it delivers", "YUYV"]),
        ("format = 'grey'\nrate_hz = 11", ["rate_hz = 11 is not what it delivers", "320×180"]),
        (
            "format = 'grey'\n[controls]\nexposure = 3",
            ["[controls] exposure is not a control of it", "brightness"],
        ),
        (
            "format = 'grey'\n[controls]\nbrightness = 256",
            ["[controls] brightness = 256 is out of range", "it may be 0 to 255"],
        ),
    ] {
        let text = vivid.refusal(keys);
        println!("{text}");
        assert!(says.iter().all(|says| text.contains(says)), "{keys}: {text}");
    }
    let config = format!("kind = 'v4l2'\ndevice = '{}'\nwidth = 322\nheight = 180", vivid.device);
    let Err(CameraFault(text)) = camera::open(&toml::from_str(&config).unwrap()) else {
        panic!("322×180 is refused")
    };
    println!("{text}");
    assert!(text.contains("width = 322, height = 180 is not what it delivers"), "{text}");
    assert!(text.contains("it offers 320×180, 640×360"), "{text}");
}

#[test]
fn controls_are_set_and_read_back() {
    let Some(vivid) = Vivid::take() else { return };
    // The gain is another's while it is automatic.
    let keys = "format = 'grey'\n[controls]\ngain = 33\ngain_automatic = false\nbrightness = 200";
    let mut source = vivid.open(keys).unwrap();
    picture(source.as_mut());
    let told = Command::new("v4l2-ctl")
        .args(["-d", &vivid.device, "-C", "gain,gain_automatic,brightness"])
        .output()
        .unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    for value in ["gain: 33", "gain_automatic: 0", "brightness: 200"] {
        assert!(told.contains(value), "{told}");
    }
}

#[test]
fn a_second_program_is_told_that_the_camera_is_taken() {
    let Some(vivid) = Vivid::take() else { return };
    let mut source = vivid.open("format = 'grey'").unwrap();
    picture(source.as_mut());
    let text = vivid.refusal("format = 'grey'");
    assert!(text.contains("another program streams from it"), "{text}");
    drop(source);
    picture(vivid.open("format = 'grey'").unwrap().as_mut());
}

#[test]
fn each_dropped_frame_is_a_bad_part() {
    let Some(vivid) = Vivid::take() else { return };
    let mut source = vivid.open(&format!("format = 'grey'\nrate_hz = {RATE_HZ}")).unwrap();
    picture(source.as_mut());
    vivid.tell("percentage_of_dropped_buffers=50");
    let (mut next, mut dropped) = (None, 0);
    for _ in 0..40 {
        let name = match grab(source.as_mut()).unwrap() {
            Grab::Picture(picture) => picture.name,
            Grab::Bad { name, reason } => {
                assert!(reason.ends_with("was dropped by the driver"), "{reason}");
                dropped += 1;
                name
            }
            other => panic!("{other:?}"),
        };
        let number = number(&name);
        assert!(next.is_none_or(|next| next == number), "no number is missing: {next:?} {name}");
        next = Some(number + 1);
    }
    // Of 40 coins fewer than 5 show tails once in ten million times; a slow machine only adds drops.
    assert!(dropped >= 5, "{dropped}");
}

#[test]
fn a_slow_consumer_makes_the_driver_drop_and_hears_of_it() {
    let Some(vivid) = Vivid::take() else { return };
    let mut source =
        vivid.open(&format!("format = 'grey'\nrate_hz = {RATE_HZ}\nbuffers = 2")).unwrap();
    let first = number(&picture(source.as_mut()).name);
    std::thread::sleep(Duration::from_secs(2));
    let (mut dropped, mut next) = (0, first + 1);
    while dropped < 10 {
        match grab(source.as_mut()).unwrap() {
            Grab::Picture(picture) => assert_eq!(number(&picture.name), next),
            Grab::Bad { name, .. } => {
                assert_eq!(number(&name), next);
                dropped += 1;
            }
            other => panic!("{other:?}"),
        }
        next += 1;
    }
    assert!(next - first > 10, "two seconds at {RATE_HZ} Hz in two buffers");
}

#[test]
fn the_count_goes_on_where_the_drivers_wraps() {
    let Some(vivid) = Vivid::take() else { return };
    // vivid then begins 128 before the wrap; at 50 Hz that is soon.
    vivid.tell("wrap_sequence_number=1");
    let mut source = vivid.open("format = 'grey'").unwrap();
    let first = number(&picture(source.as_mut()).name);
    assert!(first > u64::from(u32::MAX) - 200, "{first}");
    let mut next = first + 1;
    while next < u64::from(u32::MAX) + 20 {
        let name = match grab(source.as_mut()).unwrap() {
            Grab::Picture(picture) => picture.name,
            Grab::Bad { name, .. } => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(number(&name), next);
        next += 1;
    }
}

#[test]
fn a_frame_that_the_driver_marks_as_broken_is_a_bad_part() {
    let Some(vivid) = Vivid::take() else { return };
    let mut source = vivid.open(&format!("format = 'grey'\nrate_hz = {RATE_HZ}")).unwrap();
    picture(source.as_mut());
    vivid.tell("inject_v4l2_buf_flag_error=1");
    let until = now() + PATIENCE;
    loop {
        assert!(now() < until, "the flag shows");
        match grab(source.as_mut()).unwrap() {
            Grab::Bad { reason, .. } if reason.contains("as broken") => break,
            Grab::Bad { reason, .. } => assert!(reason.contains("dropped"), "{reason}"),
            Grab::Picture(_) => {}
            other => panic!("{other:?}"),
        }
    }
    while !matches!(grab(source.as_mut()).unwrap(), Grab::Picture(_)) {}
}

#[test]
fn newest_is_the_newest_and_a_trigger_takes_the_next() {
    let Some(vivid) = Vivid::take() else { return };
    let keys = format!("format = 'grey'\nrate_hz = {RATE_HZ}\npolicy = 'newest'");
    let mut source = vivid.open(&keys).unwrap();
    let first = picture(source.as_mut());
    std::thread::sleep(Duration::from_secs(1));
    let asked = now();
    let newest = picture(source.as_mut());
    let passed = number(&newest.name) - number(&first.name);
    assert!(passed > 4, "all buffers were full: {passed}");
    let period = Duration::from_secs(1) / RATE_HZ;
    assert!(newest.captured_at.unwrap() + period >= asked, "not one that waited in a buffer");

    std::thread::sleep(Duration::from_secs(1));
    let trigger = now();
    source.trigger().unwrap();
    let triggered = picture(source.as_mut());
    assert!(triggered.captured_at.unwrap() >= trigger, "not one that waited in a buffer");
    for _ in 0..5 {
        let grab = source.grab(Duration::from_millis(200)).unwrap();
        assert!(matches!(grab, Grab::Idle), "nobody asked: {grab:?}");
    }
}

#[test]
fn an_error_while_streaming_is_a_fault_and_opening_again_works() {
    let Some(vivid) = Vivid::take() else { return };
    for (control, says) in [
        ("inject_fatal_streaming_error=1", "its driver has stopped the stream"),
        ("inject_vidioc_qbuf_error=1", "(os error 22)"),
        ("disconnect=1", "it is gone, unplugged perhaps"),
    ] {
        let mut source = vivid.open("format = 'grey'").unwrap();
        picture(source.as_mut());
        vivid.tell(control);
        let text = fault(source.as_mut());
        println!("{control}: {text}");
        assert!(text.contains(says), "{control}: {text}");
        drop(source);
        let mut source = vivid.open("format = 'grey'").unwrap();
        picture(source.as_mut());
    }
    for control in ["inject_vidioc_streamon_error=1", "inject_vidioc_reqbufs_error=1"] {
        vivid.tell(control);
        let text = vivid.refusal("format = 'grey'");
        println!("{control}: {text}");
        assert!(text.contains("starting the stream: "), "{text}");
        picture(vivid.open("format = 'grey'").unwrap().as_mut());
    }
}

#[test]
fn silence_is_a_fault() {
    let Some(vivid) = Vivid::take() else { return };
    let mut source = vivid.open("format = 'grey'\nsilence_ms = 1000").unwrap();
    picture(source.as_mut());
    vivid.tell("percentage_of_dropped_buffers=100");
    let began = now();
    let text = fault(source.as_mut());
    assert!(text.ends_with("no frame for 1000 ms"), "{text}");
    assert!(began.elapsed() < PATIENCE);
    vivid.tell("percentage_of_dropped_buffers=0");
    drop(source);
    picture(vivid.open("format = 'grey'").unwrap().as_mut());
}

/// Accepts whatever has a picture.
struct Content;

impl Detector for Content {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        let map = AnomalyMap { width: 1, height: 1, scores: vec![0.0] };
        Ok(images.iter().map(|_| Detection { score: 0.0, map: map.clone() }).collect())
    }
}

type Told = Arc<Mutex<Vec<(Verdict, String)>>>;

struct Wire {
    told: Told,
}

impl RejectOutput for Wire {
    fn name(&self) -> &str {
        "test"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        let reason = outcome.reason.as_deref().unwrap_or_default().to_owned();
        self.told.lock().unwrap().push((outcome.verdict, reason));
        Ok(())
    }

    fn beat(&mut self, _status: &LineStatus) -> Result<()> {
        Ok(())
    }
}

/// The whole line: what the camera lacks is rejected, and the line goes on when it is back.
#[test]
fn a_line_loses_its_camera_and_gets_it_back() {
    let Some(vivid) = Vivid::take() else { return };
    let config = vivid.config(&format!("format = 'yuyv'\nrate_hz = {RATE_HZ}\nsilence_ms = 1000"));
    let told = Told::default();
    let running = pipeline::start(Parts {
        pin: false,
        queue: pipeline::Config { frames: 32, batch: 1, evidence: 4 },
        cameras: vec![CameraSlot {
            name: "station".into(),
            open: Box::new(move || camera::open(&config)),
            detector: 0,
            web: None,
            triggers: None,
            tuning: Tuning {
                limits: Limits { threshold: 1.0, map_threshold: 1.0, regions: vec![] },
                decide_within: PATIENCE,
                output_latency: Duration::ZERO,
            },
        }],
        detectors: vec![Box::new(Content)],
        outputs: vec![Box::new(Wire { told: told.clone() })],
        ledger: None,
        archive: None,
        alarms: Default::default(),
    })
    .unwrap();
    let mut from = 0;
    let mut wait_for = |wanted: &dyn Fn(&(Verdict, String)) -> bool| {
        let until = now() + PATIENCE;
        loop {
            let found = told.lock().unwrap()[from..].iter().position(wanted);
            if let Some(at) = found {
                from += at + 1;
                return;
            }
            assert!(now() < until, "{:?}", &told.lock().unwrap()[from..]);
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let accepted = |part: &(Verdict, String)| part.0 == Verdict::Accept;
    let lost = |says: &'static str| {
        move |part: &(Verdict, String)| {
            part.0 == Verdict::Reject(Cause::CameraLost) && part.1.contains(says)
        }
    };
    wait_for(&accepted);
    vivid.tell("percentage_of_dropped_buffers=50");
    wait_for(&|(verdict, reason)| {
        *verdict == Verdict::Reject(Cause::BadFrame) && reason.contains("dropped by the driver")
    });
    vivid.tell("percentage_of_dropped_buffers=0");
    wait_for(&accepted);
    vivid.tell("disconnect=1");
    wait_for(&lost("it is gone"));
    wait_for(&accepted);
    vivid.tell("percentage_of_dropped_buffers=100");
    wait_for(&lost("no frame for 1000 ms"));
    vivid.tell("percentage_of_dropped_buffers=0");
    wait_for(&accepted);
    let report = running.stop().unwrap();
    assert!(report.tally.closed(), "{:?}", report.tally);
}
