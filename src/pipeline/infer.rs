//! The infer thread: owns the detectors, forms batches by deadline slack, judges.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{Event, Grounds, Inspection, Tuning, now};
use crate::detector::{Detection, Detector};
use crate::frame::{Frame, Image};
use crate::ops::team;
use crate::telemetry::{Counters, Progress};
use crate::verdict::{Cause, Judge, Verdict};

pub(super) struct Infer {
    pub detectors: Vec<Box<dyn Detector>>,
    pub pin: bool,
    /// By camera.
    pub detector_of: Vec<usize>,
    /// By camera: its parts are blocks of a web.
    pub is_web: Vec<bool>,
    /// Most frames in one go.
    pub batch: usize,
    pub progress: Progress,
    pub counters: Arc<Counters>,
}

impl Infer {
    /// Returns when the cameras are gone and the queue is empty, or the output thread is gone.
    pub fn run(
        mut self,
        frames: &Receiver<Frame>,
        retuned: &Receiver<Vec<Tuning>>,
        events: &Sender<Event>,
        tunings: &[Tuning],
    ) {
        if self.pin {
            team::pin_current(0);
        }
        let is_web = std::mem::take(&mut self.is_web);
        let mut rules = Rules::new(tunings, &is_web);
        let mut paces = vec![Pace::new(self.batch); self.detectors.len()];
        let mut held: Option<Frame> = None;
        loop {
            self.progress.mark();
            let first = match held.take() {
                Some(frame) => frame,
                None => match frames.recv_timeout(Duration::from_millis(100)) {
                    Ok(frame) => frame,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => break,
                },
            };
            // Looked at with the part in hand: one that came after a change follows it.
            while let Ok(tunings) = retuned.try_recv() {
                rules = Rules::new(&tunings, &is_web);
            }
            let detector = self.detector_of[usize::from(first.id.camera)];
            let mut batch = vec![first];
            while batch.len() < self.batch && held.is_none() {
                let Ok(next) = frames.try_recv() else { break };
                let same = self.detector_of[usize::from(next.id.camera)] == detector;
                let earliest =
                    batch.iter().chain([&next]).map(|frame| rules.decide_at(frame)).min();
                let takes = paces[detector].expect(batch.len() + 1);
                let done_at = takes.map(|takes| now() + takes);
                if same && done_at.is_some_and(|done_at| earliest.is_none_or(|at| done_at <= at)) {
                    batch.push(next);
                } else {
                    held = Some(next);
                }
            }
            if self.inspect(detector, batch, &mut rules, &mut paces[detector], events).is_err() {
                break;
            }
        }
    }

    /// Sends one inspection per frame of the batch. An error means that the output is gone.
    fn inspect(
        &mut self,
        detector: usize,
        batch: Vec<Frame>,
        rules: &mut Rules,
        pace: &mut Pace,
        events: &Sender<Event>,
    ) -> Result<(), ()> {
        let send = |inspection| events.send(Event::Judged(Box::new(inspection))).map_err(|_| ());
        // A part whose time is up is rejected already: inspecting it would make the next one late.
        let start = now();
        let (batch, overdue): (Vec<Frame>, Vec<Frame>) =
            batch.into_iter().partition(|frame| rules.decide_at(frame) > start);
        for frame in overdue {
            let reason = "its decision time came while it waited for the detector";
            send(Inspection::without(frame, Cause::TooLate, reason))?;
        }
        if batch.is_empty() {
            return Ok(());
        }

        let detector = &mut self.detectors[detector];
        let result = detect(detector.as_mut(), &batch);
        let taken = now().saturating_duration_since(start);
        self.counters.detector_failing.store(result.is_err(), Ordering::Relaxed);
        match result {
            Ok(detections) => {
                pace.learn(batch.len(), taken);
                for (frame, detection) in batch.into_iter().zip(detections) {
                    send(rules.judge(frame, detection))?;
                }
            }
            // One picture must not cost its neighbours their verdict.
            Err(_) if batch.len() > 1 => {
                for frame in batch {
                    let detected = detect(detector.as_mut(), std::slice::from_ref(&frame));
                    self.counters.detector_failing.store(detected.is_err(), Ordering::Relaxed);
                    self.progress.mark();
                    send(match detected {
                        Ok(mut detections) => rules.judge(frame, detections.remove(0)),
                        Err(error) => {
                            let reason = format!("{error:#}");
                            Inspection::without(frame, Cause::DetectorFailed, &reason)
                        }
                    })?;
                }
            }
            Err(error) => {
                let reason = format!("{error:#}");
                for frame in batch {
                    send(Inspection::without(frame, Cause::DetectorFailed, &reason))?;
                }
            }
        }
        Ok(())
    }
}

/// One detection per frame, or an error.
fn detect(detector: &mut dyn Detector, frames: &[Frame]) -> Result<Vec<Detection>> {
    let images: Vec<&Image> = frames.iter().map(|frame| &frame.image).collect();
    let detections = detector.detect(&images)?;
    ensure!(
        detections.len() == frames.len(),
        "the detector answered {} of {} pictures",
        detections.len(),
        frames.len()
    );
    Ok(detections)
}

/// The limits and deadlines in force, by camera.
struct Rules<'a> {
    judges: Vec<Judge>,
    decide_within: Vec<Duration>,
    is_web: &'a [bool],
}

impl<'a> Rules<'a> {
    fn new(tunings: &[Tuning], is_web: &'a [bool]) -> Rules<'a> {
        Rules {
            is_web,
            judges: tunings.iter().map(|tuning| Judge::new(tuning.limits.clone())).collect(),
            decide_within: tunings.iter().map(|tuning| tuning.decide_within).collect(),
        }
    }

    fn decide_at(&self, frame: &Frame) -> Instant {
        frame.captured_at + self.decide_within[usize::from(frame.id.camera)]
    }

    fn judge(&mut self, frame: Frame, detection: Detection) -> Inspection {
        let camera = usize::from(frame.id.camera);
        let judge = &mut self.judges[camera];
        let (width, height) = (frame.image.width(), frame.image.height());
        let judged = judge.judge(&detection, width, height);
        let failed = judged.verdict == Verdict::Reject(Cause::DetectorFailed);
        let anomalies = match self.is_web[camera] && !failed {
            true => judge.anomalies(&judged, &detection.map, width, height),
            false => Vec::new(),
        };
        let reason = failed
            .then(|| "the score or map is not finite, or no place of the picture is judged".into());
        let grounds = Grounds {
            score: Some(judged.score).filter(|score| score.is_finite()),
            threshold: Some(judged.threshold).filter(|threshold| threshold.is_finite()),
            region: judged.region,
            reason,
            anomalies,
        };
        Inspection { frame, verdict: judged.verdict, grounds, detection: Some(detection) }
    }
}

/// What a batch of each size takes, learned on the line.
#[derive(Clone)]
struct Pace {
    /// Seconds by batch size, index 0 = one frame; `None`: not seen yet.
    seconds: Vec<Option<f64>>,
}

impl Pace {
    fn new(batch: usize) -> Pace {
        Pace { seconds: vec![None; batch] }
    }

    /// How long `frames` frames are expected to take: what this size took, or the next smaller
    /// known size in proportion. `None` before the first batch: a single frame goes first then.
    fn expect(&self, frames: usize) -> Option<Duration> {
        let seconds = (0..frames.min(self.seconds.len())).rev().find_map(|i| {
            self.seconds[i].map(|seconds| seconds * frames as f64 / (i + 1) as f64)
        })?;
        Some(Duration::from_secs_f64(seconds))
    }

    /// Slower than thought counts at once, faster little by little: a missed deadline costs a good
    /// part, a small batch costs nothing but throughput. Larger sizes, which may not be tried any
    /// more, follow downwards in proportion, so that one stall is not remembered for ever.
    fn learn(&mut self, frames: usize, taken: Duration) {
        let taken = taken.as_secs_f64();
        let known = &mut self.seconds[frames - 1];
        *known = Some(known.map_or(taken, |known| taken.max(known + 0.1 * (taken - known))));
        for (i, larger) in self.seconds.iter_mut().enumerate().skip(frames) {
            let in_proportion = taken * (i + 1) as f64 / frames as f64;
            if let Some(larger) = larger {
                *larger = larger.min(*larger + 0.02 * (in_proportion - *larger));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_time_of_a_batch_grows_from_what_was_seen() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let taken = Duration::from_millis;
        let mut pace = Pace::new(4);
        assert_eq!(pace.expect(2), None);
        pace.learn(1, taken(10));
        assert_eq!(pace.expect(3), ms(30));
        pace.learn(3, taken(21));
        assert_eq!(pace.expect(3), ms(21));
        assert_eq!(pace.expect(4), ms(28));
        pace.learn(1, taken(20));
        assert_eq!(pace.expect(1), ms(20));
        pace.learn(1, taken(10));
        assert_eq!(pace.expect(1), ms(19));
        pace.learn(3, taken(3000));
        (0..200).for_each(|_| pace.learn(1, taken(10)));
        assert!(pace.expect(3) < ms(100), "a stall is forgotten: {:?}", pace.expect(3));
    }
}
