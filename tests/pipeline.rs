//! The promise: every triggered part gets exactly one verdict, in time, and what was not inspected
//! is rejected. Faults are planted on every station of the way.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use image::GrayImage;
use inspectd::camera::{CameraFault, FrameSource, Grab, Picture};
use inspectd::detector::{AnomalyMap, Detection, Detector};
use inspectd::frame::Image;
use inspectd::ledger::{self, Ledger};
use inspectd::output::{LineStatus, Outcome, RejectOutput};
use inspectd::pipeline::{self, CameraSlot, Parts, Report, Tuning, now};
use inspectd::verdict::{Cause, Limits, Verdict};
use proptest::prelude::*;

#[path = "pipeline/triggered.rs"]
mod triggered;

/// A deadline that no part misses unless a fault makes it, however busy the machine is.
const PLENTY: Duration = Duration::from_secs(20);
/// A deadline that the planted faults miss by a wide margin.
const SHORT: Duration = Duration::from_millis(150);
const OUTPUT_LATENCY: Duration = Duration::from_millis(20);

/// What happens to one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Good,
    Defect,
    /// The score is not a number.
    NotANumber,
    /// The detector errs on any batch with this part in it.
    DetectorErrs,
    /// The detector takes four times as long as the part has.
    Slow,
    /// The detector takes a while, so that others queue up behind this part.
    Pause,
    /// The picture is broken.
    BadPicture,
    /// The camera dies in front of this part and must be opened again.
    CameraDies,
    /// The wire blocks while this part is signalled.
    WireBlocks,
}

const FATES: [Fate; 9] = [
    Fate::Good,
    Fate::Defect,
    Fate::NotANumber,
    Fate::DetectorErrs,
    Fate::Slow,
    Fate::Pause,
    Fate::BadPicture,
    Fate::CameraDies,
    Fate::WireBlocks,
];

/// A camera that plays a plan: a wait in milliseconds, then a part.
struct PlannedCamera {
    plan: Arc<Mutex<std::vec::IntoIter<(u64, Fate)>>>,
}

impl FrameSource for PlannedCamera {
    fn grab(&mut self, _patience: Duration) -> Result<Grab, CameraFault> {
        let Some((wait_ms, fate)) = self.plan.lock().unwrap().next() else {
            return Ok(Grab::End);
        };
        std::thread::sleep(Duration::from_millis(wait_ms));
        let name = format!("{fate:?}");
        match fate {
            Fate::BadPicture => Ok(Grab::Bad { name, reason: "half a frame".into() }),
            Fate::CameraDies => Err(CameraFault("unplugged".into())),
            _ => {
                let code = FATES.iter().position(|&f| f == fate).unwrap() as u8;
                let image = Image::Gray(GrayImage::from_pixel(4, 4, image::Luma([code])));
                Ok(Grab::Picture(Picture {
                    image,
                    name,
                    captured_at: None,
                    position: None,
                    truth: None,
                }))
            }
        }
    }
}

/// Does to each picture what its pixels say.
struct PlannedDetector {
    decide_within: Duration,
}

impl Detector for PlannedDetector {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        let fates: Vec<Fate> = images
            .iter()
            .map(|image| {
                let Image::Gray(image) = image else { panic!("the plan is grey") };
                FATES[usize::from(image.get_pixel(0, 0).0[0])]
            })
            .collect();
        if fates.contains(&Fate::Slow) {
            std::thread::sleep(self.decide_within * 4);
        }
        if fates.contains(&Fate::Pause) {
            std::thread::sleep(Duration::from_millis(30));
        }
        if fates.contains(&Fate::DetectorErrs) {
            bail!("planted error");
        }
        let detection = |fate: &Fate| {
            let score = match fate {
                Fate::Defect => 2.0,
                Fate::NotANumber => f32::NAN,
                _ => 0.5,
            };
            Detection { score, map: AnomalyMap { width: 2, height: 2, scores: vec![0.1; 4] } }
        };
        Ok(fates.iter().map(detection).collect())
    }
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(Outcome, Instant)>>>);

/// Remembers what the PLC was told and when.
struct Wire {
    told: Told,
    blocks_for: Duration,
}

impl RejectOutput for Wire {
    fn name(&self) -> &str {
        "test"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        self.told.0.lock().unwrap().push((outcome.clone(), now()));
        if &*outcome.name == "WireBlocks" {
            std::thread::sleep(self.blocks_for);
        }
        Ok(())
    }

    fn beat(&mut self, status: &LineStatus) -> Result<()> {
        let tally = status.tally;
        assert!(tally.accepted + tally.rejected_total() <= tally.triggers);
        Ok(())
    }
}

struct Played {
    told: Vec<(Outcome, Instant)>,
    report: Report,
    decide_within: Duration,
    started: Instant,
}

fn play(
    plans: Vec<Vec<(u64, Fate)>>,
    frames: usize,
    batch: usize,
    decide_within: Duration,
) -> Played {
    let tuning = Tuning {
        limits: Limits { threshold: 1.0, map_threshold: 1.0, regions: vec![] },
        decide_within,
        output_latency: OUTPUT_LATENCY,
    };
    let cameras = plans
        .into_iter()
        .enumerate()
        .map(|(i, plan)| {
            let plan = Arc::new(Mutex::new(plan.into_iter()));
            CameraSlot {
                name: format!("camera{i}").into(),
                open: Box::new(move || Ok(Box::new(PlannedCamera { plan: plan.clone() }))),
                detector: 0,
                web: None,
                tuning: tuning.clone(),
                triggers: None,
            }
        })
        .collect();
    let told = Told::default();
    let started = now();
    let running = pipeline::start(Parts {
        pin: false,
        queue: pipeline::Config { frames, batch, evidence: 4 },
        cameras,
        detectors: vec![Box::new(PlannedDetector { decide_within })],
        outputs: vec![Box::new(Wire { told: told.clone(), blocks_for: decide_within * 2 })],
        ledger: None,
        archive: None,
        alarms: Default::default(),
    })
    .unwrap();
    while !running.finished() {
        std::thread::sleep(Duration::from_millis(2));
        let tally = running.counters().tally();
        assert!(tally.accepted + tally.rejected_total() <= tally.triggers);
    }
    let report = running.stop().unwrap();
    let told = std::mem::take(&mut *told.0.lock().unwrap());
    Played { told, report, decide_within, started }
}

/// The parts of a plan: one a line, but for a camera that dies again before it has delivered.
fn parts_of(plan: &[(u64, Fate)]) -> usize {
    let mut delivered = false;
    let mut parts = 0;
    for &(_, fate) in plan {
        let dies = fate == Fate::CameraDies;
        parts += usize::from(!dies || delivered);
        delivered = !dies;
    }
    parts
}

/// The promise, whatever was planted.
fn assert_promise(planned: usize, played: &Played) {
    let Played { told, report, decide_within, .. } = played;
    assert!(report.tally.closed(), "the counters close: {:?}", report.tally);
    assert_eq!(report.tally.triggers, planned as u64, "each planned part was triggered");
    let mut verdicts: HashMap<u64, u32> = HashMap::new();
    for (outcome, _) in told {
        *verdicts.entry(outcome.part.0).or_default() += 1;
    }
    for part in 1..=planned as u64 {
        assert_eq!(verdicts.get(&part), Some(&1), "part {part} gets exactly one verdict");
    }
    assert_eq!(verdicts.len(), planned, "no verdict without a part");

    for (outcome, _) in told {
        let fate = &*outcome.name;
        if outcome.verdict == Verdict::Accept {
            assert!(
                ["Good", "WireBlocks", "Pause"].contains(&fate),
                "accepted a part that was {fate}"
            );
            assert!(outcome.score.unwrap() < outcome.threshold.unwrap());
            assert!(outcome.latency < *decide_within, "an accept is decided in time");
        } else if let Verdict::Reject(Cause::Anomaly) = outcome.verdict {
            assert_eq!(fate, "Defect", "an anomaly is claimed only where one was scored");
        }
    }
    let accepted = told.iter().filter(|(o, _)| o.verdict == Verdict::Accept).count();
    assert_eq!(report.tally.accepted, accepted as u64, "the counters say what the wire was told");
}

/// The verdict of the `index`-th planned part of a line with one camera.
fn verdict_of(played: &Played, index: usize) -> Verdict {
    let part = index as u64 + 1;
    played.told.iter().find(|(outcome, _)| outcome.part.0 == part).unwrap().0.verdict
}

#[test]
fn each_frame_gets_one_verdict() {
    let plan: Vec<(u64, Fate)> =
        (0..30).map(|i| (2, if i % 5 == 0 { Fate::Defect } else { Fate::Good })).collect();
    let played = play(vec![plan.clone()], 32, 2, PLENTY);
    assert_promise(30, &played);
    for (i, (_, fate)) in plan.iter().enumerate() {
        let want = match fate {
            Fate::Defect => Verdict::Reject(Cause::Anomaly),
            _ => Verdict::Accept,
        };
        assert_eq!(verdict_of(&played, i), want, "part {i}");
    }
}

#[test]
fn nan_score_rejects() {
    let played = play(vec![vec![(0, Fate::NotANumber), (5, Fate::Good)]], 4, 1, PLENTY);
    assert_promise(2, &played);
    assert_eq!(verdict_of(&played, 0), Verdict::Reject(Cause::DetectorFailed));
}

#[test]
fn a_failing_detector_rejects_its_part_and_spares_the_neighbours() {
    let plan = vec![
        (0, Fate::Pause),
        (0, Fate::Good),
        (0, Fate::DetectorErrs),
        (0, Fate::Good),
        (80, Fate::DetectorErrs),
        (0, Fate::Good),
    ];
    let played = play(vec![plan.clone()], 8, 4, PLENTY);
    assert_promise(6, &played);
    for (i, (_, fate)) in plan.iter().enumerate() {
        let want = match fate {
            Fate::DetectorErrs => Verdict::Reject(Cause::DetectorFailed),
            _ => Verdict::Accept,
        };
        assert_eq!(verdict_of(&played, i), want, "part {i}");
    }
}

#[test]
fn a_slow_detector_is_too_late_and_its_verdict_stays_a_reject() {
    let played = play(vec![vec![(0, Fate::Slow), (0, Fate::Good)]], 4, 1, SHORT);
    assert_promise(2, &played);
    assert_eq!(verdict_of(&played, 0), Verdict::Reject(Cause::TooLate));
    let (outcome, told_at) = &played.told[0];
    assert!(outcome.latency >= SHORT, "not before the decision time");
    let detector_done = SHORT * 4;
    assert!(
        told_at.duration_since(played.started) < detector_done,
        "not when the detector is done"
    );
    assert!(played.report.late_verdicts >= 1);
}

#[test]
fn a_burst_beyond_the_queue_is_rejected_at_once() {
    let mut plan = vec![(0, Fate::Slow)];
    plan.extend([(0, Fate::Good); 20]);
    let played = play(vec![plan], 3, 1, SHORT);
    assert_promise(21, &played);
    assert!(played.report.tally.rejected_for(Cause::QueueFull) >= 15, "{:?}", played.report.tally);
}

#[test]
fn a_camera_that_dies_rejects_the_part_in_front_of_it_and_comes_back() {
    let plan = vec![(0, Fate::Good), (5, Fate::CameraDies), (5, Fate::Good)];
    let played = play(vec![plan], 4, 1, PLENTY);
    assert_promise(3, &played);
    assert_eq!(verdict_of(&played, 0), Verdict::Accept);
    assert_eq!(verdict_of(&played, 1), Verdict::Reject(Cause::CameraLost));
    assert_eq!(verdict_of(&played, 2), Verdict::Accept);
}

#[test]
fn a_broken_picture_rejects() {
    let played = play(vec![vec![(0, Fate::BadPicture), (5, Fate::Good)]], 4, 1, PLENTY);
    assert_promise(2, &played);
    assert_eq!(verdict_of(&played, 0), Verdict::Reject(Cause::BadFrame));
}

#[test]
fn a_wire_that_blocks_costs_rejects_but_no_verdict() {
    let mut plan = vec![(0, Fate::WireBlocks)];
    plan.extend([(3, Fate::Good); 10]);
    let played = play(vec![plan], 16, 1, SHORT);
    assert_promise(11, &played);
    assert!(played.report.tally.rejected_for(Cause::TooLate) >= 3, "{:?}", played.report.tally);
}

#[test]
fn one_dead_camera_does_not_hold_up_the_other() {
    let dying = vec![(0, Fate::Good), (0, Fate::CameraDies), (0, Fate::CameraDies)];
    let living = vec![(10, Fate::Good); 20];
    let played = play(vec![dying, living], 32, 2, PLENTY);
    assert_promise(22, &played);
    let accepted = played.told.iter().filter(|(o, _)| o.verdict == Verdict::Accept);
    assert_eq!(accepted.filter(|(o, _)| o.frame.camera == 1).count(), 20);
}

/// A line of good parts with a real ledger, stopped half way for the limits to change.
#[test]
fn a_live_change_of_the_threshold_loses_no_part_and_the_ledger_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = ledger::Config { folder: folder.path().join("ledger"), max_gib: 1.0 };
    let tuning = |threshold| Tuning {
        limits: Limits { threshold, map_threshold: 1.0, regions: vec![] },
        decide_within: PLENTY,
        output_latency: OUTPUT_LATENCY,
    };
    let told = Told::default();
    let (open_gate, gate) = crossbeam_channel::bounded::<()>(0);
    let plan = Arc::new(Mutex::new(vec![(1, Fate::Good); 40].into_iter()));
    let running = pipeline::start(Parts {
        pin: false,
        queue: pipeline::Config::default(),
        cameras: vec![CameraSlot {
            name: "camera".into(),
            open: Box::new(move || {
                let camera = PlannedCamera { plan: plan.clone() };
                Ok(Box::new(GatedCamera { camera, before_gate: 15, gate: gate.clone() }))
            }),
            detector: 0,
            web: None,
            tuning: tuning(1.0),
            triggers: None,
        }],
        detectors: vec![Box::new(PlannedDetector { decide_within: PLENTY })],
        outputs: vec![Box::new(Wire { told: told.clone(), blocks_for: Duration::ZERO })],
        ledger: Some(Ledger::open(&config, SystemTime::now()).unwrap()),
        archive: None,
        alarms: Default::default(),
    })
    .unwrap();
    let decided = || running.counters().tally().accepted;
    while decided() < 15 {
        std::thread::sleep(Duration::from_millis(1));
    }
    running.retune(vec![tuning(0.25)]).unwrap();
    drop(open_gate);
    while !running.finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let report = running.stop().unwrap();
    assert!(report.tally.closed());
    assert_eq!(report.tally.triggers, 40);

    // A score of 0.5 passes under 1.0 and fails under 0.25.
    let told = told.0.lock().unwrap();
    let verdicts: Vec<Verdict> = told.iter().map(|(outcome, _)| outcome.verdict).collect();
    assert!(verdicts[..15].iter().all(|&verdict| verdict == Verdict::Accept));
    assert!(verdicts[15..].iter().all(|&verdict| verdict == Verdict::Reject(Cause::Anomaly)));
    let records = ledger::read(&config.folder).unwrap();
    let recorded: Vec<_> = records.iter().map(|record| (record.part, record.verdict)).collect();
    let said: Vec<_> = told.iter().map(|(outcome, _)| (outcome.part, outcome.verdict)).collect();
    assert_eq!(recorded, said, "the ledger holds what the wire was told, in its order");
}

/// Holds its parts back after the first ones until the gate is dropped.
struct GatedCamera {
    camera: PlannedCamera,
    before_gate: usize,
    gate: crossbeam_channel::Receiver<()>,
}

impl FrameSource for GatedCamera {
    fn grab(&mut self, patience: Duration) -> Result<Grab, CameraFault> {
        if self.before_gate == 0
            && self.gate.recv_timeout(patience) == Err(crossbeam_channel::RecvTimeoutError::Timeout)
        {
            return Ok(Grab::Idle);
        }
        self.before_gate = self.before_gate.saturating_sub(1);
        self.camera.grab(patience)
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        10 => Just(Fate::Good),
        3 => Just(Fate::Defect),
        1 => Just(Fate::NotANumber),
        1 => Just(Fate::DetectorErrs),
        1 => Just(Fate::Slow),
        1 => Just(Fate::Pause),
        1 => Just(Fate::BadPicture),
        1 => Just(Fate::CameraDies),
        1 => Just(Fate::WireBlocks),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// Any mix of faults, cameras, queue and batch sizes.
    #[test]
    fn no_sequence_of_faults_breaks_the_promise(
        plans in prop::collection::vec(prop::collection::vec((0u64..8, fate()), 1..25), 1..4),
        frames in 1usize..6,
        batch in 1usize..5,
    ) {
        let planned = plans.iter().map(|plan| parts_of(plan)).sum();
        let played = play(plans, frames, batch.min(frames), Duration::from_millis(25));
        assert_promise(planned, &played);
    }
}
