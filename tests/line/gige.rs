//! GigE Vision cameras against one that we did not write: the simulator of Aravis, with pictures
//! of ours (`tests/peers/factory_camera.c`). Each test runs in a network of its own, where nothing
//! but its loopback is: the camera's port is fixed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use inspectd::camera::{self, CameraFault, FrameSource, Grab, Picture};
use inspectd::detector::{AnomalyMap, Detection, Detector};
use inspectd::frame::Image;
use inspectd::output::{LineStatus, Outcome, RejectOutput};
use inspectd::pipeline::{self, CameraSlot, Parts, Tuning, now};
use inspectd::verdict::{Cause, Limits, Verdict};

use super::peers;

/// Far beyond what any wait here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);
/// A silence that even a busy machine keeps below, where silence is not what is tested.
const CALM: &str = "silence_ms = 20000";

struct Camera(Child);

impl Camera {
    fn start(peer: &Path, packets_lost: f64) -> Camera {
        let mut child = Command::new(peer)
            .arg(packets_lost.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "listening\n");
        Camera(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Camera {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the rest of `test` in a network of its own, as a process of its own. There: the camera to
/// start. Here: `None`; it has passed, or was skipped with a clear word.
fn in_own_network(test: &str) -> Option<PathBuf> {
    const INSIDE: &str = "INSPECTD_TEST_NETWORK";
    let peer = peers::compiled("factory_camera.c", "aravis-0.8", "libaravis-dev libusb-1.0-0-dev")?;
    if std::env::var_os(INSIDE).is_some() {
        return Some(peer);
    }
    let unshare = |rights: &[&str], program: &str| {
        let mut command = Command::new("unshare");
        command.args(rights).args(["--net", "sh", "-c", program, "sh"]);
        command
    };
    let up = "ip link set lo up mtu 65536";
    // As root, or as what is taken for root in names of its own.
    let all_rights: [&[&str]; 2] = [&[], &["--user", "--map-root-user"]];
    let works = |rights: &&[&str]| {
        let run = unshare(rights, up).stderr(Stdio::null()).status();
        run.is_ok_and(|status| status.success())
    };
    let Some(rights) = all_rights.into_iter().find(works) else {
        assert!(
            std::env::var_os("INSPECTD_REQUIRE_PEERS").is_none(),
            "no network of its own: that needs unshare, ip, and root or user namespaces"
        );
        println!("SKIPPED: a network of its own needs unshare, ip, and root or user namespaces");
        return None;
    };
    let run = unshare(rights, &format!("{up} && exec \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    print!("{said}");
    eprint!("{}", String::from_utf8_lossy(&run.stderr));
    // A name that is no test's would pass too.
    assert!(
        run.status.success() && said.contains("1 passed"),
        "{test} failed in its own network; see above"
    );
    None
}

fn config(keys: &str, features: &str) -> camera::Config {
    toml::from_str(&format!(
        "kind = \"gige\"\naddress = \"127.0.0.1\"\n{keys}\nfeatures = [{features}]"
    ))
    .unwrap()
}

/// 1024×512 grey, `rate_hz` times a second.
fn grey(rate_hz: f64) -> String {
    format!(
        "['Width', 1024], ['Height', 512], ['PixelFormat', 'Mono8'],
         ['AcquisitionFrameRate', {rate_hz:.1}]"
    )
}

/// A source begins to open its camera, and says with its first grabs how that went.
fn opened(config: &camera::Config) -> Result<Box<dyn FrameSource>, CameraFault> {
    let mut source = camera::open(config)?;
    let give_up = now() + PATIENCE;
    while !source.ready() {
        let grab = source.grab(Duration::from_millis(100))?;
        assert!(matches!(grab, Grab::Idle), "{grab:?} of a camera that is not open");
        assert!(now() < give_up, "it was neither open nor a fault after {PATIENCE:?}");
    }
    Ok(source)
}

fn open(config: &camera::Config) -> Box<dyn FrameSource> {
    opened(config).unwrap_or_else(|fault| panic!("{fault}"))
}

fn fault_of_open(config: &camera::Config) -> String {
    let Err(CameraFault(text)) = opened(config) else { panic!("it opened") };
    text
}

/// The next part, good or bad.
fn part(source: &mut dyn FrameSource) -> Grab {
    let give_up = now() + PATIENCE;
    loop {
        match source.grab(Duration::from_millis(100)).unwrap() {
            Grab::Idle => assert!(now() < give_up, "no part for {PATIENCE:?}"),
            grab => return grab,
        }
    }
}

fn picture(source: &mut dyn FrameSource) -> Picture {
    match part(source) {
        Grab::Picture(picture) => picture,
        other => panic!("{other:?}"),
    }
}

/// Until the camera is lost, and how long that took from now on.
fn fault(source: &mut dyn FrameSource) -> (String, Duration) {
    let began = now();
    loop {
        match source.grab(Duration::from_millis(100)) {
            Ok(_) => assert!(began.elapsed() < PATIENCE, "no fault for {PATIENCE:?}"),
            Err(CameraFault(text)) => return (text, began.elapsed()),
        }
    }
}

/// What the camera wrote into the picture: its number, and whether there is a defect.
fn read(picture: &Picture) -> (u64, bool) {
    let Image::Gray(image) = &picture.image else { panic!("{picture:?} is not grey") };
    let number = u64::from_le_bytes(image.as_raw()[..8].try_into().unwrap());
    (number, image.get_pixel(110, 12).0[0] < 50)
}

fn id(name: &str) -> u64 {
    name.strip_prefix("frame-").unwrap().parse().unwrap()
}

/// The id after `id`, with 16 bits and without 0.
fn after(id: u64) -> u64 {
    if id == 65_535 { 1 } else { id + 1 }
}

#[test]
fn a_free_camera_gives_every_picture_once_over_the_wrap_of_its_ids() {
    let Some(peer) =
        in_own_network("gige::a_free_camera_gives_every_picture_once_over_the_wrap_of_its_ids")
    else {
        return;
    };
    let _camera = Camera::start(&peer, 0.0);
    let mut source = open(&config(CALM, &grey(50.0)));
    let mut last: Option<(u64, Picture)> = None;
    let (mut defects, mut wrapped) = (0, false);
    for _ in 0..200 {
        let picture = picture(&mut *source);
        let (number, defect) = read(&picture);
        assert_eq!((picture.image.width(), picture.image.height()), (1024, 512));
        assert_eq!(defect, number % 10 == 7, "picture {number}");
        defects += usize::from(defect);
        let age = now().checked_duration_since(picture.captured_at.unwrap());
        assert!(age.is_some_and(|age| age < PATIENCE), "{age:?}");
        if let Some((last_number, last)) = last {
            assert_eq!(number, last_number + 1);
            assert_eq!(id(&picture.name), after(id(&last.name)));
            wrapped |= picture.name == "frame-1";
        }
        last = Some((number, picture));
    }
    assert_eq!(defects, 20, "every tenth of 200");
    assert!(wrapped, "the simulator begins at 65400, so its ids wrap within 200");
}

#[test]
fn a_camera_that_is_asked_gives_one_picture_for_each_trigger() {
    let Some(peer) =
        in_own_network("gige::a_camera_that_is_asked_gives_one_picture_for_each_trigger")
    else {
        return;
    };
    let _camera = Camera::start(&peer, 0.0);
    let mut source = open(&config(&format!("trigger = 'software'\n{CALM}"), &grey(500.0)));
    let quiet = |source: &mut dyn FrameSource| {
        let grab = source.grab(Duration::from_millis(300)).unwrap();
        assert!(matches!(grab, Grab::Idle), "{grab:?} that nobody asked for");
    };
    quiet(&mut *source);
    let mut last = None;
    for _ in 0..20 {
        source.trigger().unwrap();
        let (number, _) = read(&picture(&mut *source));
        if let Some(last) = last {
            assert_eq!(number, last + 1);
        }
        last = Some(number);
    }
    quiet(&mut *source);
}

#[test]
fn where_packets_are_lost_every_frame_is_a_picture_or_a_bad_part() {
    let Some(peer) =
        in_own_network("gige::where_packets_are_lost_every_frame_is_a_picture_or_a_bad_part")
    else {
        return;
    };
    // 358 packets a frame: about half of the frames lose one, few lose all.
    let _camera = Camera::start(&peer, 0.002);
    let mut source = open(&config(&format!("packet_bytes = 1500\n{CALM}"), &grey(50.0)));
    let (mut pictures, mut bad) = (0, 0);
    let mut last: Option<u64> = None;
    // Which id has which number: (id, number) of a picture, carried on through bad parts.
    let mut number: Option<u64> = None;
    for _ in 0..150 {
        let part = part(&mut *source);
        let name = match &part {
            Grab::Picture(picture) => picture.name.clone(),
            Grab::Bad { name, .. } => name.clone(),
            other => panic!("{other:?}"),
        };
        if let Some(last) = last {
            assert_eq!(id(&name), after(last), "no id is left out, none comes twice");
        }
        last = Some(id(&name));
        number = number.map(|number| number + 1);
        match part {
            Grab::Picture(picture) => {
                pictures += 1;
                let (read, defect) = read(&picture);
                assert_eq!(read, *number.get_or_insert(read), "the pixels are of this id");
                assert_eq!(defect, read % 10 == 7);
            }
            Grab::Bad { reason, .. } => {
                bad += 1;
                assert!(
                    ["packets came", "never came"].iter().any(|says| reason.contains(says)),
                    "{reason}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(pictures > 10 && bad > 10, "{pictures} pictures, {bad} bad parts");
}

#[test]
fn a_killed_camera_is_a_fault_after_two_periods_and_opens_again() {
    let Some(peer) =
        in_own_network("gige::a_killed_camera_is_a_fault_after_two_periods_and_opens_again")
    else {
        return;
    };
    let mut camera = Camera::start(&peer, 0.0);
    // Two periods are longer than a busy machine hesitates, and shorter than a heartbeat is waited for.
    let config = config("", &grey(4.0));
    let mut source = open(&config);
    for _ in 0..3 {
        picture(&mut *source);
    }
    camera.kill();
    let (text, took) = fault(&mut *source);
    assert!(text.starts_with("127.0.0.1: no frame for 500 ms"), "{text}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    let began = now();
    drop(source);
    let text = fault_of_open(&config);
    assert!(text.starts_with("127.0.0.1: no camera answers"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    let _camera = Camera::start(&peer, 0.0);
    let mut source = open(&config);
    picture(&mut *source);
}

#[test]
fn a_triggered_camera_that_goes_silent_is_found_by_its_heartbeat() {
    let Some(peer) =
        in_own_network("gige::a_triggered_camera_that_goes_silent_is_found_by_its_heartbeat")
    else {
        return;
    };
    let mut camera = Camera::start(&peer, 0.0);
    let features = "['TriggerSelector', 'FrameStart'], ['TriggerSource', 'Line0'], \
                    ['TriggerMode', 'On']";
    let mut source = open(&config("trigger = 'hardware'\nheartbeat_ms = 900", features));
    let grab = source.grab(Duration::from_secs(1)).unwrap();
    assert!(matches!(grab, Grab::Idle), "an empty belt is no fault: {grab:?}");
    camera.kill();
    let (text, took) = fault(&mut *source);
    assert!(text.contains("control of the camera was lost"), "{text}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_second_controller_is_refused_until_the_first_has_gone() {
    let Some(peer) =
        in_own_network("gige::a_second_controller_is_refused_until_the_first_has_gone")
    else {
        return;
    };
    let _camera = Camera::start(&peer, 0.0);
    let config = config(CALM, &grey(25.0));
    let mut first = open(&config);
    picture(&mut *first);
    let text = fault_of_open(&config);
    assert!(text.contains("another program controls this camera"), "{text}");
    picture(&mut *first);
    drop(first);
    picture(&mut *open(&config));
}

#[test]
fn features_that_the_camera_does_not_take_are_named() {
    let Some(peer) = in_own_network("gige::features_that_the_camera_does_not_take_are_named")
    else {
        return;
    };
    let _camera = Camera::start(&peer, 0.0);
    for (keys, features, says) in [
        ("", "['Nonsense', 1]", "no Nonsense"),
        ("", "['ExposureTime', 100.0]", "ExposureTimeAbs"),
        ("", "['PixelFormat', 'Mono99']", "it takes one of BayerBG8, "),
        ("", "['Width', 'wide']", "it takes a whole number; it takes "),
        ("", "['SensorWidth', 1]", "SensorWidth = 1 "),
        ("trigger = 'hardware'", "", "has TriggerMode = \"Off\""),
        ("encoder = { per_row = 1 }", "", "no ChunkEncoderValue"),
    ] {
        let text = fault_of_open(&config(keys, features));
        assert!(text.starts_with("127.0.0.1: ") && text.contains(says), "{features}: {text}");
    }
}

#[test]
fn deep_and_coloured_formats_come_as_pictures() {
    let Some(peer) = in_own_network("gige::deep_and_coloured_formats_come_as_pictures") else {
        return;
    };
    let _camera = Camera::start(&peer, 0.0);
    for (format, coloured) in [("Mono16", false), ("RGB8", true), ("BayerGB8", true)] {
        let features = format!("['Width', 128], ['Height', 64], ['PixelFormat', '{format}']");
        let picture = picture(&mut *open(&config(CALM, &features)));
        assert_eq!((picture.image.width(), picture.image.height()), (128, 64));
        assert_eq!(matches!(picture.image, Image::Rgb(_)), coloured, "{format}");
        // The texture lies between 110 and 125, the upper bytes of 16 bits too.
        let sample = match &picture.image {
            Image::Gray(image) => image.get_pixel(60, 40).0[0],
            Image::Rgb(image) => image.get_pixel(60, 40).0[1],
        };
        assert!((110..=125).contains(&sample), "{format}: {sample}");
    }
}

/// Finds nothing anomalous.
struct Content;

impl Detector for Content {
    fn detect(&mut self, images: &[&Image]) -> anyhow::Result<Vec<Detection>> {
        let map = AnomalyMap { width: 2, height: 2, scores: vec![0.1; 4] };
        Ok(images.iter().map(|_| Detection { score: 0.5, map: map.clone() }).collect())
    }
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(u16, Verdict)>>>);

impl RejectOutput for Told {
    fn name(&self) -> &str {
        "test"
    }

    fn signal(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        self.0.lock().unwrap().push((outcome.frame.camera, outcome.verdict));
        Ok(())
    }

    fn beat(&mut self, _status: &LineStatus) -> anyhow::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_runs_on_while_one_of_its_cameras_is_gone_and_takes_it_back() {
    let Some(peer) =
        in_own_network("gige::a_line_runs_on_while_one_of_its_cameras_is_gone_and_takes_it_back")
    else {
        return;
    };
    let mut camera = Camera::start(&peer, 0.0);
    let rendered =
        toml::from_str("kind = 'pattern'\nrate_hz = 20\nwidth = 64\nheight = 64").unwrap();
    let cameras = [config("silence_ms = 1000", &grey(10.0)), rendered];
    let slot = |(nth, config): (usize, camera::Config)| CameraSlot {
        name: format!("camera{nth}").into(),
        open: Box::new(move || camera::open(&config)),
        detector: 0,
        triggers: None,
        web: None,
        tuning: Tuning {
            limits: Limits { threshold: 1.0, map_threshold: 1.0, regions: vec![] },
            decide_within: PATIENCE,
            output_latency: Duration::from_millis(20),
        },
    };
    let told = Told::default();
    let running = pipeline::start(Parts {
        pin: false,
        queue: pipeline::Config { frames: 64, batch: 4, evidence: 4 },
        cameras: cameras.into_iter().enumerate().map(slot).collect(),
        detectors: vec![Box::new(Content)],
        outputs: vec![Box::new(told.clone())],
        ledger: None,
        archive: None,
        alarms: Default::default(),
    })
    .unwrap();
    let wait_for = |what: &str, camera: u16, verdict: Verdict, count: usize| {
        let seen = told.0.lock().unwrap().len();
        let give_up = now() + PATIENCE;
        loop {
            let new = told.0.lock().unwrap()[seen..]
                .iter()
                .filter(|&&said| said == (camera, verdict))
                .count();
            if new >= count {
                break;
            }
            assert!(now() < give_up, "{what}: {new} of {count}");
            sleep(Duration::from_millis(10));
        }
    };
    wait_for("both run", 0, Verdict::Accept, 5);
    camera.kill();
    wait_for("the part in front of a lost camera", 0, Verdict::Reject(Cause::CameraLost), 1);
    wait_for("the other runs on", 1, Verdict::Accept, 20);
    camera = Camera::start(&peer, 0.0);
    wait_for("the camera is back", 0, Verdict::Accept, 5);
    drop(running.stop().unwrap());
    drop(camera);
}
