//! Parts that a PLC or an input triggers: each trigger is a part, whether a picture comes or not.

use std::collections::VecDeque;

use inspectd::trigger::{self, Answer, Port, Wait};

use super::*;

/// What becomes of one trigger that found the camera waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exposure {
    Good,
    Defect,
    Bad,
    /// No picture comes.
    Nothing,
    /// The picture comes when its time is over.
    Late,
    /// The camera dies.
    Dies,
    /// A picture that nobody triggered came before.
    StrayBefore,
}

const WITHIN: Duration = Duration::from_millis(400);

/// A camera that takes a picture when it is told to, as its plan says.
struct Snapping {
    plan: Arc<Mutex<VecDeque<Exposure>>>,
    triggered: Arc<Mutex<u64>>,
    /// When each picture is there.
    coming: VecDeque<(Instant, Grab)>,
    dead: bool,
}

impl Snapping {
    fn picture(name: &str, fate: Fate, at: Instant) -> Grab {
        let code = FATES.iter().position(|&f| f == fate).unwrap() as u8;
        Grab::Picture(Picture {
            image: Image::Gray(GrayImage::from_pixel(4, 4, image::Luma([code]))),
            name: name.into(),
            captured_at: Some(at),
            position: None,
            truth: None,
        })
    }
}

impl FrameSource for Snapping {
    fn trigger(&mut self) -> Result<(), CameraFault> {
        let mut triggered = self.triggered.lock().unwrap();
        let name = triggered.to_string();
        *triggered += 1;
        let now = now();
        let exposure = self.plan.lock().unwrap().pop_front().unwrap_or(Exposure::Good);
        let soon = now + Duration::from_millis(3);
        let grab = match exposure {
            Exposure::Good => Snapping::picture(&name, Fate::Good, now),
            Exposure::Defect => Snapping::picture(&name, Fate::Defect, now),
            Exposure::Bad => Grab::Bad { name, reason: "half a frame".into() },
            Exposure::Nothing => return Ok(()),
            Exposure::Late => {
                let late = now + WITHIN + Duration::from_millis(20);
                self.coming.push_back((late, Snapping::picture(&name, Fate::Good, late)));
                return Ok(());
            }
            Exposure::Dies => {
                self.dead = true;
                return Ok(());
            }
            Exposure::StrayBefore => {
                let before = now.checked_sub(Duration::from_secs(1)).unwrap();
                self.coming.push_back((now, Snapping::picture("stray", Fate::Good, before)));
                Snapping::picture(&name, Fate::Defect, now)
            }
        };
        self.coming.push_back((soon, grab));
        Ok(())
    }

    fn grab(&mut self, patience: Duration) -> Result<Grab, CameraFault> {
        if self.dead {
            return Err(CameraFault("unplugged".into()));
        }
        let until = now() + patience;
        loop {
            if self.coming.front().is_some_and(|&(at, _)| at <= now()) {
                return Ok(self.coming.pop_front().unwrap().1);
            }
            if now() >= until {
                return Ok(Grab::Idle);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Triggered {
    told: Vec<(Outcome, Instant)>,
    report: Report,
    answers: Vec<Arc<Answer>>,
    missed: u64,
}

/// Waits until the camera is ready, or not for so long.
fn wait_ready(port: &Port, patience: Duration) -> bool {
    let until = now() + patience;
    while !port.ready() && now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    port.ready()
}

/// Triggers once for each entry: `true` waits for the camera, `false` does not.
fn trigger_all(plan: &[Exposure], asks: &[bool]) -> Triggered {
    let wait = Wait { picture_within_ms: WITHIN.as_secs_f64() * 1000.0, picture_before_ms: 0.0 };
    let (port, triggers) = trigger::port(wait);
    let plan = Arc::new(Mutex::new(VecDeque::from(plan.to_vec())));
    let triggered = Arc::new(Mutex::new(0));
    let told = Told::default();
    let running = pipeline::start(Parts {
        pin: false,
        queue: pipeline::Config::default(),
        cameras: vec![CameraSlot {
            name: "camera".into(),
            open: Box::new(move || {
                Ok(Box::new(Snapping {
                    plan: plan.clone(),
                    triggered: triggered.clone(),
                    coming: VecDeque::new(),
                    dead: false,
                }))
            }),
            detector: 0,
            tuning: Tuning {
                limits: Limits { threshold: 1.0, map_threshold: 1.0, regions: vec![] },
                decide_within: PLENTY,
                output_latency: OUTPUT_LATENCY,
            },
            triggers: Some(triggers),
            web: None,
        }],
        detectors: vec![Box::new(PlannedDetector { decide_within: PLENTY })],
        outputs: vec![Box::new(Wire { told: told.clone(), blocks_for: Duration::ZERO })],
        ledger: None,
        archive: None,
        alarms: Default::default(),
    })
    .unwrap();
    let mut answers = Vec::new();
    for &waits in asks {
        if waits {
            assert!(wait_ready(&port, PLENTY), "the camera is never ready again");
        }
        answers.push(port.ask(now(), None, true).unwrap());
        std::thread::sleep(Duration::from_millis(1));
    }
    let report = running.stop().unwrap();
    let missed = port.missed();
    let told = std::mem::take(&mut *told.0.lock().unwrap());
    Triggered { told, report, answers, missed }
}

/// What holds whatever the camera and the PLC do.
fn assert_each_trigger_is_a_part(plan: &[Exposure], played: &Triggered) {
    let Triggered { told, report, answers, .. } = played;
    assert!(report.tally.closed());
    assert_eq!(report.tally.triggers, answers.len() as u64);
    assert_eq!(told.len(), answers.len());
    let mut nth_exposed = 0;
    for answer in answers {
        let part = answer.part().expect("each trigger is answered with its part");
        assert!(answer.exposed());
        let of_part: Vec<_> = told.iter().filter(|(outcome, _)| outcome.part == part).collect();
        assert_eq!(of_part.len(), 1, "part {part} gets one verdict");
        let outcome = &of_part[0].0;
        if answer.missed() {
            let Verdict::Reject(Cause::NotReady | Cause::CameraLost) = outcome.verdict else {
                panic!("nobody looked at part {part}: {:?}", outcome.verdict)
            };
            continue;
        }
        let exposure = plan.get(nth_exposed).copied().unwrap_or(Exposure::Good);
        if outcome.verdict == Verdict::Accept {
            assert_eq!(exposure, Exposure::Good);
            assert_eq!(*outcome.name, nth_exposed.to_string(), "its own picture");
        }
        if let Verdict::Reject(Cause::Anomaly) = outcome.verdict {
            assert!([Exposure::Defect, Exposure::StrayBefore].contains(&exposure));
        }
        nth_exposed += 1;
    }
}

#[test]
fn each_trigger_gets_the_verdict_of_its_own_picture() {
    use Exposure::{Bad, Defect, Good, StrayBefore};
    let plan = [Good, Defect, Good, Bad, StrayBefore, Good];
    let played = trigger_all(&plan, &[true; 6]);
    assert_each_trigger_is_a_part(&plan, &played);
    let verdicts: Vec<Verdict> = played.told.iter().map(|(outcome, _)| outcome.verdict).collect();
    let (anomaly, bad) = (Verdict::Reject(Cause::Anomaly), Verdict::Reject(Cause::BadFrame));
    let accept = Verdict::Accept;
    assert_eq!(verdicts, [accept, anomaly, accept, bad, anomaly, accept]);
}

#[test]
fn a_picture_that_comes_too_late_is_not_taken_for_the_next_parts() {
    let plan = [Exposure::Late, Exposure::Good, Exposure::Nothing, Exposure::Good];
    let played = trigger_all(&plan, &[true; 4]);
    assert_each_trigger_is_a_part(&plan, &played);
    let accepted: Vec<&str> = played
        .told
        .iter()
        .filter(|(outcome, _)| outcome.verdict == Verdict::Accept)
        .map(|(outcome, _)| &*outcome.name)
        .collect();
    assert_eq!(accepted, ["1", "3"]);
    assert_eq!(played.report.tally.rejected_for(Cause::BadFrame), 2);
}

#[test]
fn a_trigger_while_the_camera_is_busy_is_missed_and_rejected() {
    let plan = [Exposure::Nothing];
    let played = trigger_all(&plan, &[true, false, false]);
    assert_each_trigger_is_a_part(&plan, &played);
    assert_eq!(played.missed, 2);
    assert_eq!(played.report.tally.rejected_for(Cause::NotReady), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_triggers_and_faults_loses_a_part_or_mixes_pictures_up(
        plan in prop::collection::vec(
            prop_oneof![
                4 => Just(Exposure::Good),
                2 => Just(Exposure::Defect),
                1 => Just(Exposure::Bad),
                1 => Just(Exposure::Late),
                1 => Just(Exposure::Dies),
                1 => Just(Exposure::StrayBefore),
            ],
            1..10,
        ),
        asks in prop::collection::vec(prop_oneof![3 => Just(true), 1 => Just(false)], 1..12),
    ) {
        let played = trigger_all(&plan, &asks);
        assert_each_trigger_is_a_part(&plan, &played);
    }
}
