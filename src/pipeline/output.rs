//! The output thread: owns the wires, the tracker and the ledger; every part's way ends here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{Event, Grounds, Inspection, Report, Tuning, now};
use crate::archive::{self, Archive, Evidence};
use crate::detector::Detection;
use crate::frame::{Frame, PartId};
use crate::journal::{Repeats, plain};
use crate::ledger::{Ledger, Record, Resumed};
use crate::output::{LineState, LineStatus, Outcome, RejectOutput, Tally};
use crate::telemetry::{Counters, Latency, Progress, StandingAlarms};
use crate::tracker::{Track, Tracker};
use crate::verdict::web::{self, Web, WebDefect};
use crate::verdict::{Anomaly, Cause, Verdict};

const BEAT_EVERY: Duration = Duration::from_millis(100);
const SUMMARY_EVERY: Duration = Duration::from_secs(60);
/// So many parts too late one after the other are no bad luck: the line is in error until one is in
/// time again.
const LATE_IN_A_ROW: u32 = 10;

pub(super) struct Setup {
    pub cameras: Vec<Arc<str>>,
    /// By camera; `None` where its parts are apart.
    pub webs: Vec<Option<Web>>,
    pub tunings: Vec<Tuning>,
    pub outputs: Vec<Box<dyn RejectOutput>>,
    pub ledger: Option<Ledger>,
    pub resumed: Option<Resumed>,
    pub evidence: Sender<Evidence>,
    /// What is worth keeping; `None`: nothing is.
    pub keeping: Option<archive::Config>,
    /// No camera takes pictures but when it is triggered.
    pub triggered: bool,
    pub alarms: Arc<StandingAlarms>,
    pub counters: Arc<Counters>,
    pub progress: Progress,
}

pub(super) struct Output {
    setup: Setup,
    tracker: Tracker,
    /// Parts rejected at their decision time whose picture is still with the detector.
    overdue: HashMap<PartId, Outcome>,
    epoch: u32,
    /// The ledger's totals before this start.
    before: Tally,
    /// One moment on both clocks; moved up each minute, since the wall clock may be set.
    anchor: (Instant, SystemTime),
    latency: Latency,
    /// The first trigger and the last verdict so far.
    span: Option<(Instant, Instant)>,
    window: Window,
    wire_faults: u64,
    trouble: Repeats<String>,
    all_cameras_were_up: bool,
    /// Parts one after the other that this machine had no time for.
    late_in_a_row: u32,
}

/// What the minute's summary is about.
struct Window {
    since: Instant,
    tally: Tally,
    latency: Latency,
    evidence_lost: u64,
}

impl Output {
    pub fn new(setup: Setup) -> Output {
        let (epoch, before) = match &setup.resumed {
            Some(resumed) => (resumed.epoch, resumed.tally),
            None => (1, Tally::default()),
        };
        let start = now();
        Output {
            setup,
            tracker: Tracker::default(),
            overdue: HashMap::new(),
            epoch,
            before,
            anchor: (start, SystemTime::now()),
            latency: Latency::default(),
            span: None,
            window: Window {
                since: start,
                tally: Tally::default(),
                latency: Latency::default(),
                evidence_lost: 0,
            },
            wire_faults: 0,
            trouble: Repeats::new(Duration::from_secs(60)),
            all_cameras_were_up: false,
            late_in_a_row: 0,
        }
    }

    /// Returns when cameras and detector are gone and every part has its verdict.
    pub fn run(mut self, events: &Receiver<Event>) -> Report {
        let mut beat_at = now();
        loop {
            self.setup.progress.mark();
            let time = now();
            if time >= beat_at {
                self.beat(None);
                beat_at = time + BEAT_EVERY;
            }
            if time >= self.window.since + SUMMARY_EVERY {
                self.summarise(time);
            }
            while let Some(track) = self.tracker.expire(now()) {
                let grounds = Grounds::of("no verdict at the decision time");
                let verdict = Verdict::Reject(Cause::TooLate);
                self.conclude(track, now(), verdict, grounds, None, None);
            }
            let wake = self.tracker.next_due().map_or(beat_at, |due| due.min(beat_at));
            match events.recv_deadline(wake) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        while let Some(track) = self.tracker.pop() {
            let grounds = Grounds::of("the line ended before its verdict");
            let verdict = Verdict::Reject(Cause::NotReady);
            self.conclude(track, now(), verdict, grounds, None, None);
        }
        let last = self.setup.webs.iter_mut().flatten().flat_map(Web::finish).collect();
        self.tell(last);
        self.beat(Some(LineState::Halted));
        self.summarise(now());
        if let Some(ledger) = self.setup.ledger.take()
            && let Err(error) = ledger.close(self.wall(now()))
        {
            log::error!("ledger_failed times=1 reason=\"{}\"", plain(format!("{error:#}")));
        }
        Report {
            tally: self.setup.counters.tally(),
            latency: self.latency,
            span: self.span.map_or(Duration::ZERO, |(first, last)| last - first),
            late_verdicts: self.setup.counters.late_verdicts.load(Ordering::Relaxed),
            evidence_lost: 0,
            wire_faults: self.wire_faults,
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Triggered { part, frame, name, captured_at, place, truth } => {
                if let Some(ledger) = &mut self.setup.ledger {
                    ledger.mark_issued(part);
                }
                let tuning = &self.setup.tunings[usize::from(frame.camera)];
                let decide_at = captured_at + tuning.decide_within;
                let eject_at = decide_at + tuning.output_latency;
                let track =
                    Track { part, frame, name, captured_at, place, decide_at, eject_at, truth };
                for i in 0..self.setup.outputs.len() {
                    let wire = &mut self.setup.outputs[i];
                    if let Err(error) = wire.triggered(&track) {
                        let name = wire.name().to_owned();
                        self.wire_fault(name, &error);
                    }
                }
                self.tracker.admit(track);
            }
            Event::Judged(inspection) => self.judged(*inspection),
            Event::Lost { part, cause, reason } => {
                if let Some(track) = self.tracker.conclude(part) {
                    let verdict = Verdict::Reject(cause);
                    self.conclude(track, now(), verdict, Grounds::of(reason), None, None);
                } else if let Some(outcome) = self.overdue.remove(&part) {
                    self.keep(outcome, None, None);
                }
            }
            Event::Retune(tunings) => {
                log::info!("retuned cameras={}", tunings.len());
                self.setup.tunings = tunings;
            }
        }
    }

    fn judged(&mut self, inspection: Inspection) {
        let Inspection { frame, verdict, grounds, detection } = inspection;
        let Some(track) = self.tracker.conclude(frame.part) else {
            self.came_late(frame, verdict, &grounds, detection);
            return;
        };
        let decided_at = now();
        let (verdict, grounds) = if verdict == Verdict::Accept && decided_at >= track.decide_at {
            self.setup.counters.late_verdicts.fetch_add(1, Ordering::Relaxed);
            let reason = "the verdict came after the decision time";
            let grounds = Grounds { reason: Some(reason.into()), ..grounds };
            (Verdict::Reject(Cause::TooLate), grounds)
        } else {
            (verdict, grounds)
        };
        self.conclude(track, decided_at, verdict, grounds, Some(frame), detection);
    }

    /// The part was rejected at its decision time. Its verdict changes nothing now, but its
    /// picture and score are what an engineer will ask for.
    fn came_late(
        &mut self,
        frame: Frame,
        verdict: Verdict,
        grounds: &Grounds,
        detection: Option<Detection>,
    ) {
        let Some(mut outcome) = self.overdue.remove(&frame.part) else { return };
        if detection.is_some() {
            self.setup.counters.late_verdicts.fetch_add(1, Ordering::Relaxed);
            let decide_within = self.setup.tunings[usize::from(frame.id.camera)].decide_within;
            let late_by = now().saturating_duration_since(frame.captured_at + decide_within);
            log::warn!(
                "late_verdict part={} camera={} would_be={} score={} late_by_ms={:.1}",
                frame.part,
                outcome.camera,
                if verdict == Verdict::Accept { "accept" } else { "reject" },
                grounds.score.map_or("-".into(), |score| format!("{score:.4}")),
                late_by.as_secs_f64() * 1000.0,
            );
        }
        outcome.score = grounds.score;
        outcome.threshold = grounds.threshold;
        outcome.region = grounds.region;
        self.keep(outcome, Some(frame), detection);
    }

    /// The one place where a part gets its verdict: ledger, then wires, then counters, then
    /// evidence. The record comes before the signal, so that what the PLC was told is always in
    /// the ledger.
    fn conclude(
        &mut self,
        track: Track,
        decided_at: Instant,
        verdict: Verdict,
        grounds: Grounds,
        frame: Option<Frame>,
        detection: Option<Detection>,
    ) {
        let camera = usize::from(track.frame.camera);
        let mut outcome = Outcome {
            part: track.part,
            frame: track.frame,
            camera: self.setup.cameras[camera].clone(),
            name: frame.as_ref().map_or(track.name, |frame| frame.name.clone()),
            verdict,
            score: grounds.score,
            threshold: grounds.threshold,
            region: grounds.region,
            position: frame.as_ref().and_then(|frame| frame.position),
            latency: decided_at.saturating_duration_since(track.captured_at),
            triggered_at: self.wall(track.captured_at),
            image: None,
            reason: grounds.reason,
            truth: frame.as_ref().map_or(track.truth, |frame| frame.truth.clone()),
        };
        let pictured = frame.is_some() || verdict == Verdict::Reject(Cause::TooLate);
        if pictured && self.keeps(&outcome) && !self.setup.evidence.is_full() {
            outcome.image = Some(Archive::picture_path(&outcome));
        }

        let recorded = self.record(&outcome, Ledger::append);
        // An accept that nobody could look up later is not said.
        if outcome.verdict == Verdict::Accept && !recorded {
            outcome.verdict = Verdict::Reject(Cause::NotReady);
            outcome.reason = Some("the ledger takes no more records".into());
        }
        // A disk that stood still must not turn into an accept after the part has passed.
        if outcome.verdict == Verdict::Accept && now() >= track.eject_at {
            outcome.verdict = Verdict::Reject(Cause::TooLate);
            outcome.reason = Some("the ledger's disk stood still past the ejector".into());
            self.record(&outcome, Ledger::withdraw);
        }
        for i in 0..self.setup.outputs.len() {
            let wire = &mut self.setup.outputs[i];
            if let Err(error) = wire.signal(&outcome) {
                let name = wire.name().to_owned();
                self.wire_fault(name, &error);
            }
        }
        self.follow_web(&outcome, frame.as_ref(), detection.is_some(), grounds.anomalies);
        self.setup.counters.count(outcome.verdict);
        self.late_in_a_row = match outcome.verdict {
            Verdict::Reject(Cause::TooLate | Cause::QueueFull) => self.late_in_a_row + 1,
            _ => 0,
        };
        let done = now();
        let latency = done.saturating_duration_since(track.captured_at);
        self.span = Some((self.span.map_or(track.captured_at, |(first, _)| first), done));
        self.latency.record(latency);
        self.window.latency.record(latency);

        let overdue = outcome.verdict == Verdict::Reject(Cause::TooLate) && frame.is_none();
        if overdue {
            self.overdue.insert(outcome.part, outcome);
        } else {
            self.keep(outcome, frame, detection);
        }
    }

    /// Tells of the defects that end with this part, where it is a block of a web.
    fn follow_web(
        &mut self,
        outcome: &Outcome,
        frame: Option<&Frame>,
        inspected: bool,
        anomalies: Vec<Anomaly>,
    ) {
        let Some(web) = &mut self.setup.webs[usize::from(outcome.frame.camera)] else { return };
        let late = outcome.verdict == Verdict::Reject(Cause::TooLate);
        let inspected = inspected && outcome.verdict != Verdict::Reject(Cause::DetectorFailed);
        let is_rejected = outcome.verdict == Verdict::Reject(Cause::Anomaly);
        let block = web::Block {
            part: outcome.part,
            // A late one has a picture, which is with the detector still.
            height: frame
                .map(|frame| frame.image.height())
                .or_else(|| late.then_some(web.config().part_rows)),
            position: outcome.position,
            found: inspected.then_some(web::Found { is_rejected, anomalies }),
        };
        let defects = web.take(outcome.frame.seq, block);
        self.tell(defects);
    }

    fn tell(&mut self, defects: Vec<WebDefect>) {
        for defect in &defects {
            for i in 0..self.setup.outputs.len() {
                let wire = &mut self.setup.outputs[i];
                if let Err(error) = wire.defect(defect) {
                    let name = wire.name().to_owned();
                    self.wire_fault(name, &error);
                }
            }
        }
    }

    /// False: the ledger refuses the record for good.
    fn record(
        &mut self,
        outcome: &Outcome,
        write: impl FnOnce(&mut Ledger, &Record) -> anyhow::Result<()>,
    ) -> bool {
        let issued = PartId(self.setup.counters.issued());
        let Some(ledger) = &mut self.setup.ledger else { return true };
        let Err(error) = write(ledger, &Record::of(outcome, issued)) else { return true };
        self.trouble("ledger_record_lost", &error);
        false
    }

    /// Logs trouble, repeats counted.
    fn trouble(&mut self, event: &str, error: &anyhow::Error) {
        if let Some(times) = self.trouble.admit(event.to_owned(), now()) {
            log::error!("{event} times={times} reason=\"{}\"", plain(format!("{error:#}")));
        }
    }

    /// Gives the ledger a chance to write what the disk did not take, and tells of it.
    fn tend_ledger(&mut self) {
        let Some(ledger) = &mut self.setup.ledger else { return };
        if ledger.backlog() == 0 {
            return;
        }
        if let Err(error) = ledger.flush() {
            let waiting = ledger.backlog();
            self.trouble("ledger_failed", &error.context(format!("{waiting} records wait")));
        }
    }

    fn keeps(&self, outcome: &Outcome) -> bool {
        self.setup.keeping.as_ref().is_some_and(|keeping| keeping.wants(outcome))
    }

    /// Hands a part to the archive thread. A full queue costs the picture, never the time.
    fn keep(&mut self, outcome: Outcome, frame: Option<Frame>, detection: Option<Detection>) {
        if !self.keeps(&outcome) {
            return;
        }
        let tuning = &self.setup.tunings[usize::from(outcome.frame.camera)];
        let map_limit = Some(tuning.limits.map_threshold);
        let evidence = Evidence { outcome, frame, detection, map_limit };
        if self.setup.evidence.try_send(evidence).is_err() {
            self.setup.counters.evidence_lost.fetch_add(1, Ordering::Relaxed);
            if let Some(times) = self.trouble.admit("archive".into(), now()) {
                log::warn!("picture_lost times={times} reason=\"the archive is behind\"");
            }
        }
    }

    fn beat(&mut self, state: Option<LineState>) {
        self.tend_ledger();
        let status = self.status(state);
        // The PLC reads a trigger count that includes ids not heard of here yet; they are marked
        // before it does, so that the count never goes back, whatever happens next.
        let issued = PartId(self.setup.counters.issued());
        if let Some(ledger) = &mut self.setup.ledger {
            ledger.mark_issued(issued);
        }
        for i in 0..self.setup.outputs.len() {
            let wire = &mut self.setup.outputs[i];
            if let Err(error) = wire.beat(&status) {
                let name = wire.name().to_owned();
                self.wire_fault(name, &error);
            }
        }
    }

    fn wire_fault(&mut self, wire: String, error: &anyhow::Error) {
        self.wire_faults += 1;
        self.trouble(&format!("wire_failed wire={wire}"), error);
    }

    fn status(&mut self, state: Option<LineState>) -> LineStatus {
        let counters = &self.setup.counters;
        let cameras_up: Vec<bool> =
            (0..self.setup.cameras.len()).map(|camera| counters.camera_up(camera)).collect();
        let all_up =
            (0..cameras_up.len()).all(|camera| cameras_up[camera] || counters.camera_ended(camera));
        self.all_cameras_were_up |= all_up;
        let refuses = self
            .setup
            .ledger
            .as_ref()
            .is_some_and(|ledger| ledger.fault().is_some() && ledger.lost() > 0);
        let failing = counters.detector_failing.load(Ordering::Relaxed)
            || refuses
            || self.late_in_a_row >= LATE_IN_A_ROW;
        let tally = counters.tally();
        let sound = match (self.setup.triggered, tally.in_flight()) {
            (false, _) => LineState::ContinuousExecution,
            (true, 0) => LineState::Ready,
            (true, _) => LineState::SingleExecution,
        };
        let state = state.unwrap_or(match (all_up && !failing, self.all_cameras_were_up) {
            (true, _) => sound,
            (false, false) if !failing => LineState::Initialized,
            (false, _) => LineState::Error,
        });
        LineStatus {
            state,
            epoch: self.epoch,
            tally: self.before + tally,
            late_verdicts: counters.late_verdicts.load(Ordering::Relaxed),
            cameras_up,
            alarms: self.setup.alarms.get(),
            evidence_lost: counters.archive_failing.load(Ordering::Relaxed)
                || counters.evidence_lost.load(Ordering::Relaxed) > self.window.evidence_lost
                || self
                    .setup
                    .ledger
                    .as_ref()
                    .is_some_and(|ledger| ledger.fault().is_some() || ledger.lost() > 0),
        }
    }

    /// One line a minute for the night shift.
    fn summarise(&mut self, time: Instant) {
        let tally = self.setup.counters.tally();
        let before = self.window.tally;
        let latency = &self.window.latency;
        log::info!(
            "summary window_s={:.0} parts={} accepted={} anomaly={} uninspected={} in_flight={} \
             latency_p50_ms={:.1} latency_p99_ms={:.1} latency_max_ms={:.1} late_verdicts={} \
             pictures_lost={}",
            time.saturating_duration_since(self.window.since).as_secs_f64(),
            tally.triggers - before.triggers,
            tally.accepted - before.accepted,
            tally.rejected_for(Cause::Anomaly) - before.rejected_for(Cause::Anomaly),
            tally.uninspected() - before.uninspected(),
            tally.in_flight(),
            latency.quantile_ms(0.5),
            latency.quantile_ms(0.99),
            latency.max_ms(),
            self.setup.counters.late_verdicts.load(Ordering::Relaxed),
            self.setup.counters.evidence_lost.load(Ordering::Relaxed),
        );
        for (event, times) in self.trouble.overdue(time) {
            log::warn!("repeated event=\"{}\" times={times}", plain(event));
        }
        self.window.since = time;
        self.window.tally = tally;
        self.window.evidence_lost = self.setup.counters.evidence_lost.load(Ordering::Relaxed);
        self.window.latency.reset();
        self.anchor = (time, SystemTime::now());
    }

    /// The wall clock's reading at `time`.
    fn wall(&self, time: Instant) -> SystemTime {
        let (instant, wall) = self.anchor;
        match time.checked_duration_since(instant) {
            Some(after) => wall + after,
            None => wall - instant.saturating_duration_since(time),
        }
    }
}
