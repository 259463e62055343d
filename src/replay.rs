//! What if: the pictures that a line kept, judged again by another model or other limits, and which
//! verdicts change. Workshop: nothing on the line uses it.
//!
//! An archive holds every reject and, with `archive.accepted_every`, samples of what was accepted: how
//! many escapes a candidate would let through or find can only be seen as far as these go.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::camera::folder;
use crate::detector::{Detection, Detector};
use crate::frame::Image;
use crate::output::{Recorded, Word};
use crate::verdict::{Cause, Judge, Judgement, Verdict};

/// Who judges again.
pub struct Candidate<'a> {
    pub detector: &'a mut dyn Detector,
    pub judge: &'a mut Judge,
}

/// A recorded part and what the candidate says of it.
#[derive(Clone, Debug)]
pub struct Replayed {
    pub recorded: Recorded,
    pub now: Now,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Now {
    Judged(Judgement),
    /// None was taken when the part came.
    NoPicture,
    /// The archive has made room since.
    PictureGone,
    /// There, and can't be read or judged: why.
    Failed(String),
}

/// How the verdict of then and that of now stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Rejected for anomaly, and accepted now.
    RejectToAccept,
    AcceptToReject,
    /// Rejected since it could not be inspected in time; it can be now.
    UninspectedToAccept,
    UninspectedToReject,
    SameAccept,
    SameReject,
    /// Nothing to compare.
    NotReplayed,
}

impl Change {
    pub const ALL: [Change; 7] = [
        Change::RejectToAccept,
        Change::AcceptToReject,
        Change::UninspectedToAccept,
        Change::UninspectedToReject,
        Change::SameReject,
        Change::SameAccept,
        Change::NotReplayed,
    ];

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Change::RejectToAccept => "reject -> accept",
            Change::AcceptToReject => "accept -> reject",
            Change::UninspectedToAccept => "not inspected -> accept",
            Change::UninspectedToReject => "not inspected -> reject",
            Change::SameAccept => "accepted as before",
            Change::SameReject => "rejected as before",
            Change::NotReplayed => "not replayed",
        }
    }

    /// Whether a person should look.
    pub fn is_flip(self) -> bool {
        !matches!(self, Change::SameAccept | Change::SameReject | Change::NotReplayed)
    }
}

impl Replayed {
    pub fn change(&self) -> Change {
        let Now::Judged(judgement) = &self.now else { return Change::NotReplayed };
        let accepted = judgement.verdict == Verdict::Accept;
        match (self.recorded.verdict, self.recorded.cause, accepted) {
            (Word::Accept, _, true) => Change::SameAccept,
            (Word::Accept, _, false) => Change::AcceptToReject,
            (Word::Reject, Some(Cause::Anomaly), true) => Change::RejectToAccept,
            (Word::Reject, Some(Cause::Anomaly), false) => Change::SameReject,
            (Word::Reject, _, true) => Change::UninspectedToAccept,
            (Word::Reject, _, false) => Change::UninspectedToReject,
        }
    }

    /// How far the score is above its limit now; `None` where it was not judged.
    pub fn margin(&self) -> Option<f32> {
        match &self.now {
            Now::Judged(judgement) => Some(judgement.score - judgement.threshold),
            _ => None,
        }
    }
}

impl Candidate<'_> {
    /// Judges a part of the archive in `folder` again. A picture that can't be judged is no reason to
    /// stop.
    pub fn replay(&mut self, folder: &Path, recorded: Recorded) -> Replayed {
        let now = match picture(folder, &recorded) {
            None => Now::NoPicture,
            Some(path) if !path.exists() => Now::PictureGone,
            Some(path) => match self.judge(&path) {
                Ok(judgement) if judgement.verdict == Verdict::Reject(Cause::DetectorFailed) => {
                    Now::Failed(format!("the detector's score is {}", judgement.score))
                }
                Ok(judgement) => Now::Judged(judgement),
                Err(error) => Now::Failed(format!("{error:#}")),
            },
        };
        Replayed { recorded, now }
    }

    fn judge(&mut self, path: &Path) -> Result<Judgement> {
        let picture = folder::read(path, ARCHIVED_BITS)?;
        let detection = self.detect(&picture)?;
        Ok(self.judge.judge(&detection, picture.width(), picture.height()))
    }

    /// For the picture of a sheet.
    ///
    /// # Errors
    /// The detector's own.
    pub fn detect(&mut self, picture: &Image) -> Result<Detection> {
        self.detector.detect(&[picture])?.pop().context("the detector gave no detection")
    }
}

/// Where a part's picture lies, if it has one; the oldest may be gone.
pub fn picture(folder: &Path, recorded: &Recorded) -> Option<PathBuf> {
    Some(folder.join(recorded.image.as_ref()?))
}

/// The archive keeps what the detector saw, 8 bits a sample: nothing is to be shifted.
pub const ARCHIVED_BITS: u32 = 16;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use image::{GrayImage, Luma};

    use super::*;
    use crate::archive::{self, Archive, Evidence};
    use crate::detector::AnomalyMap;
    use crate::frame::{Frame, FrameId, PartId};
    use crate::output::Outcome;
    use crate::verdict::{self, Limits};

    /// The score is the brightness of the picture's first pixel.
    struct Brightness;

    impl Detector for Brightness {
        fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
            let score = |image: &&Image| {
                let score = f32::from(image.to_rgb().get_pixel(0, 0).0[0]);
                let map = AnomalyMap { width: 1, height: 1, scores: vec![score] };
                Detection { score, map }
            };
            Ok(images.iter().map(score).collect())
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a frame carries the moment of its trigger")]
    fn keep(archive: &mut Archive, part: u64, level: Option<u8>, verdict: Verdict) {
        let frame = level.map(|level| Frame {
            id: FrameId { camera: 0, seq: part },
            part: PartId(part),
            captured_at: std::time::Instant::now(),
            image: Image::Gray(GrayImage::from_pixel(4, 4, Luma([level]))),
            name: Arc::from("x"),
            position: None,
            truth: None,
        });
        let outcome = Outcome {
            part: PartId(part),
            frame: FrameId { camera: 0, seq: part },
            camera: Arc::from("left"),
            name: Arc::from("x"),
            verdict,
            score: level.map(f32::from),
            threshold: Some(100.0),
            region: None,
            position: None,
            latency: Duration::from_millis(5),
            triggered_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_777_852_800),
            image: None,
            reason: None,
            truth: None,
        };
        let evidence = Evidence { outcome, frame, detection: None, map_limit: None };
        assert_eq!(archive.store(&evidence).unwrap(), archive::Kept::Yes);
    }

    #[test]
    fn each_recorded_part_is_held_against_its_verdict_of_then() {
        let folder = tempfile::tempdir().unwrap();
        let config = archive::Config {
            folder: folder.path().to_owned(),
            max_gib: 1.0,
            min_free_gib: 0.0,
            accepted_every: 1,
        };
        let mut archive = Archive::open(&config).unwrap();
        let anomaly = Verdict::Reject(Cause::Anomaly);
        let late = Verdict::Reject(Cause::TooLate);
        keep(&mut archive, 1, Some(120), anomaly);
        keep(&mut archive, 2, Some(220), anomaly);
        keep(&mut archive, 3, Some(90), Verdict::Accept);
        keep(&mut archive, 4, Some(200), late);
        keep(&mut archive, 5, Some(20), late);
        keep(&mut archive, 6, None, Verdict::Reject(Cause::CameraLost));
        keep(&mut archive, 7, Some(200), anomaly);
        keep(&mut archive, 8, Some(200), anomaly);
        keep(&mut archive, 9, Some(160), Verdict::Accept);
        let day = folder.path().join("2026-05-04");
        std::fs::remove_file(day.join("7.png")).unwrap();
        std::fs::write(day.join("8.png"), "no picture").unwrap();

        let recordings = archive::read(folder.path(), |_| true).unwrap();
        assert!(recordings.damaged.is_empty(), "{:?}", recordings.damaged);
        let limits = verdict::Config { threshold: Some(150.0), ..verdict::Config::default() };
        let mut judge = Judge::new(Limits::new(&limits, 1.0, 1.0));
        let mut candidate = Candidate { detector: &mut Brightness, judge: &mut judge };
        let replayed: Vec<Replayed> = recordings
            .parts
            .into_iter()
            .map(|recorded| candidate.replay(folder.path(), recorded))
            .collect();
        let changes: Vec<(u64, Change)> =
            replayed.iter().map(|one| (one.recorded.part, one.change())).collect();
        let want = [
            (1, Change::RejectToAccept),
            (2, Change::SameReject),
            (3, Change::SameAccept),
            (4, Change::UninspectedToReject),
            (5, Change::UninspectedToAccept),
            (6, Change::NotReplayed),
            (7, Change::NotReplayed),
            (8, Change::NotReplayed),
            (9, Change::AcceptToReject),
        ];
        assert_eq!(changes, want);
        assert_eq!(replayed[0].margin(), Some(-30.0));
        assert_eq!(replayed[5].now, Now::NoPicture);
        assert_eq!(replayed[6].now, Now::PictureGone);
        let Now::Failed(why) = &replayed[7].now else { panic!("{:?}", replayed[7].now) };
        assert!(why.contains("8.png"), "{why}");
    }
}
