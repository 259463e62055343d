//! From a detection to accept or reject.

use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::detector::{AnomalyMap, Detection};

pub mod web;

/// What the PLC is told of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Accept,
    Reject(Cause),
}

/// Why a part is rejected. All but [`Cause::Anomaly`] mean that it was *not inspected*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Cause {
    /// The score is at or above the threshold.
    Anomaly = 1,
    /// The detector could not keep up; the part never reached it.
    QueueFull = 2,
    /// No verdict at the decision time.
    TooLate = 3,
    /// The detector erred, or its score is not a finite number.
    DetectorFailed = 4,
    /// The picture is incomplete or unreadable.
    BadFrame = 5,
    /// The camera went away.
    CameraLost = 6,
    /// The part came while the line was not armed (start, reload, shutdown).
    NotReady = 7,
    /// The process ended (crash, kill) between trigger and verdict; found at the next start.
    Interrupted = 8,
}

impl Cause {
    pub const ALL: [Cause; 8] = [
        Cause::Anomaly,
        Cause::QueueFull,
        Cause::TooLate,
        Cause::DetectorFailed,
        Cause::BadFrame,
        Cause::CameraLost,
        Cause::NotReady,
        Cause::Interrupted,
    ];

    /// The number the PLC and the ledger use; stable.
    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.code() == code)
    }

    /// The word the log uses; stable.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Anomaly => "anomaly",
            Cause::QueueFull => "queue_full",
            Cause::TooLate => "too_late",
            Cause::DetectorFailed => "detector_failed",
            Cause::BadFrame => "bad_frame",
            Cause::CameraLost => "camera_lost",
            Cause::NotReady => "not_ready",
            Cause::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A rectangle in pixels of the camera's picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl fmt::Display for Region {
    /// `x,y,width,height`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{},{}", self.x, self.y, self.width, self.height)
    }
}

/// `[camera.limits]`: what a plant sets over the bundle's own thresholds, live-changeable.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Image score at or above which a part is rejected; raw score units. Default: the bundle's.
    pub threshold: Option<f32>,
    /// The same for single places of the anomaly map; used where regions are set. Default: the
    /// bundle's.
    pub map_threshold: Option<f32>,
    /// Where other limits hold. Later entries win where they overlap. With at least one entry the
    /// part is judged by its map instead of its image score.
    #[serde(default, rename = "region")]
    pub regions: Vec<RegionLimit>,
}

/// `[[camera.limits.region]]`: a rectangle with its own threshold, or one that is not judged.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionLimit {
    /// What the log calls it.
    pub name: String,
    /// Pixels of the camera's picture.
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
    /// Map value at or above which this region rejects; raw score units.
    pub threshold: Option<f32>,
    /// Never judged (a printed date, a serial number).
    #[serde(default)]
    pub ignore: bool,
}

impl Config {
    /// Refuses limits that cannot be meant; the text names the key below `[camera.limits]`.
    pub fn check(&self) -> Result<()> {
        for (key, value) in [("threshold", self.threshold), ("map_threshold", self.map_threshold)] {
            if let Some(value) = value
                && !value.is_finite()
            {
                bail!("{key} = {value} is not a finite number");
            }
        }
        for region in &self.regions {
            let name = &region.name;
            if region.width == 0 || region.height == 0 {
                bail!(
                    "region \"{name}\" is {} x {} pixels; both must be at least 1",
                    region.width,
                    region.height
                );
            }
            match (region.ignore, region.threshold) {
                (true, Some(_)) => {
                    bail!("region \"{name}\" has both ignore and a threshold");
                }
                (false, None) => {
                    bail!("region \"{name}\" needs a threshold, or ignore = true");
                }
                (false, Some(value)) if !value.is_finite() => {
                    bail!("region \"{name}\": threshold = {value} is not a finite number");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Places of a picture that hang together and are anomalous.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anomaly {
    pub region: Region,
    /// The largest map value in it; raw score units.
    pub peak: f32,
}

/// Of one picture: beyond, a limit is wrong and the list is of no use.
pub const MOST_ANOMALIES: usize = 256;

/// The limits in force for one camera: the bundle's thresholds under the plant's.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub threshold: f32,
    pub map_threshold: f32,
    pub regions: Vec<RegionLimit>,
}

impl Limits {
    /// `threshold`, `map_threshold`: those of the bundle.
    pub fn new(config: &Config, threshold: f32, map_threshold: f32) -> Limits {
        Limits {
            threshold: config.threshold.unwrap_or(threshold),
            map_threshold: config.map_threshold.unwrap_or(map_threshold),
            regions: config.regions.clone(),
        }
    }
}

/// A verdict with its grounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// The value that was held against `threshold`: the image score, or where regions are set the
    /// map value at the worst place.
    pub score: f32,
    pub threshold: f32,
    /// Where the anomaly is, on rejects for anomaly only.
    pub region: Option<Region>,
}

/// Judges the detections of one camera. Keeps the threshold of each map place between parts.
#[derive(Clone, Debug)]
pub struct Judge {
    limits: Limits,
    /// The threshold at each place of the map, infinite where it is not judged; empty without
    /// regions.
    plane: Vec<f32>,
    /// Map and picture sizes that `plane` was made for.
    plane_of: [usize; 4],
}

impl Judge {
    pub fn new(limits: Limits) -> Judge {
        Judge { limits, plane: Vec::new(), plane_of: [0; 4] }
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Accept only what is finite and below every threshold; `width` and `height` are those of the
    /// picture, in pixels.
    pub fn judge(&mut self, detection: &Detection, width: u32, height: u32) -> Judgement {
        let map = &detection.map;
        let by_map = !self.limits.regions.is_empty();
        let failed = |score: f32, threshold: f32| Judgement {
            verdict: Verdict::Reject(Cause::DetectorFailed),
            score,
            threshold,
            region: None,
        };
        let whole = map.width > 0 && map.height > 0 && map.scores.len() == map.width * map.height;
        if !whole || !detection.score.is_finite() || !map.scores.iter().all(|s| s.is_finite()) {
            return failed(detection.score, self.limits.threshold);
        }
        if by_map {
            self.plan(map, width, height);
        }
        let peak = self.peak(map);
        let (score, threshold) = if by_map {
            (map.scores[peak], self.plane[peak])
        } else {
            (detection.score, self.limits.threshold)
        };
        // A plane that ignores the whole picture inspects nothing, and what is not inspected is
        // rejected.
        if !threshold.is_finite() {
            return failed(score, threshold);
        }
        if score < threshold {
            return Judgement { verdict: Verdict::Accept, score, threshold, region: None };
        }
        let level = if by_map { threshold } else { self.limits.map_threshold };
        let region = region_around(map, peak, level, width, height);
        Judgement {
            verdict: Verdict::Reject(Cause::Anomaly),
            score,
            threshold,
            region: Some(region),
        }
    }

    /// All connected places at or above their thresholds, of a detection that was just judged; the
    /// worst place in any case where it was rejected for anomaly. The worst
    /// [`MOST_ANOMALIES`] where there are more.
    pub fn anomalies(
        &self,
        judged: &Judgement,
        map: &AnomalyMap,
        width: u32,
        height: u32,
    ) -> Vec<Anomaly> {
        let level = self.limits.map_threshold;
        let is_over = |place: usize| {
            let limit = if self.plane.is_empty() { level } else { self.plane[place] };
            map.scores[place] >= limit
        };
        let found = |found: Connected| Anomaly {
            region: found.region(map, width, height),
            peak: found.peak,
        };
        let mut seen = vec![false; map.scores.len()];
        let mut anomalies = Vec::new();
        for place in 0..map.scores.len() {
            if !seen[place] && is_over(place) {
                anomalies.push(found(connected(map, place, is_over, &mut seen)));
            }
        }
        if anomalies.is_empty() && judged.verdict == Verdict::Reject(Cause::Anomaly) {
            let peak = self.peak(map);
            let alone = |place: usize| map.scores[place] >= map.scores[peak];
            anomalies.push(found(connected(map, peak, alone, &mut seen)));
        }
        anomalies.sort_by(|a, b| b.peak.total_cmp(&a.peak));
        anomalies.truncate(MOST_ANOMALIES);
        anomalies
    }

    /// The place that exceeds its threshold most (least falls short of it).
    fn peak(&self, map: &AnomalyMap) -> usize {
        let excess = |i: usize| match self.limits.regions.is_empty() {
            true => map.scores[i],
            false => map.scores[i] - self.plane[i],
        };
        let mut best = 0;
        for i in 1..map.scores.len() {
            if excess(i) > excess(best) {
                best = i;
            }
        }
        best
    }

    fn plan(&mut self, map: &AnomalyMap, width: u32, height: u32) {
        let of = [map.width, map.height, width as usize, height as usize];
        if self.plane_of == of {
            return;
        }
        self.plane.clear();
        self.plane.resize(map.width * map.height, self.limits.map_threshold);
        for limit in &self.limits.regions {
            let threshold = match limit.ignore {
                true => f32::INFINITY,
                false => limit.threshold.unwrap_or(self.limits.map_threshold),
            };
            let columns = span(limit.x, limit.width, width, map.width);
            for row in span(limit.y, limit.height, height, map.height) {
                self.plane[row * map.width..][columns.clone()].fill(threshold);
            }
        }
        self.plane_of = of;
    }
}

/// The map places whose centres lie in `start..start + length` of a picture `picture` pixels long.
fn span(start: u32, length: u32, picture: u32, map: usize) -> std::ops::Range<usize> {
    let place = |pixel: u32| {
        let at = f64::from(pixel) * map as f64 / f64::from(picture.max(1));
        ((at - 0.5).ceil().max(0.0) as usize).min(map)
    };
    place(start)..place(start.saturating_add(length))
}

/// The bounding box, in picture pixels, of the places connected to `peak` (8 neighbours) whose
/// value is at least `level`; the peak alone where it does not reach `level` itself.
pub fn region_around(map: &AnomalyMap, peak: usize, level: f32, width: u32, height: u32) -> Region {
    let level = level.min(map.scores[peak]);
    let mut seen = vec![false; map.scores.len()];
    connected(map, peak, |place| map.scores[place] >= level, &mut seen).region(map, width, height)
}

/// Places of a map that hang together.
struct Connected {
    /// First and last column, first and last row.
    bounds: [usize; 4],
    peak: f32,
}

/// All that `is_over` and is connected to `start` (8 neighbours), by way of places not yet `seen`.
fn connected(
    map: &AnomalyMap,
    start: usize,
    is_over: impl Fn(usize) -> bool,
    seen: &mut [bool],
) -> Connected {
    let (w, h) = (map.width, map.height);
    let mut open = vec![start];
    seen[start] = true;
    let [mut left, mut right, mut top, mut bottom] = [start % w, start % w, start / w, start / w];
    let mut peak = map.scores[start];
    while let Some(place) = open.pop() {
        let (x, y) = (place % w, place / w);
        (left, right) = (left.min(x), right.max(x));
        (top, bottom) = (top.min(y), bottom.max(y));
        peak = peak.max(map.scores[place]);
        for ny in y.saturating_sub(1)..=(y + 1).min(h - 1) {
            for nx in x.saturating_sub(1)..=(x + 1).min(w - 1) {
                let next = ny * w + nx;
                if !seen[next] && is_over(next) {
                    seen[next] = true;
                    open.push(next);
                }
            }
        }
    }
    Connected { bounds: [left, right, top, bottom], peak }
}

impl Connected {
    /// The box around it in a picture of these pixels.
    fn region(&self, map: &AnomalyMap, width: u32, height: u32) -> Region {
        let floor = |place: usize, picture: u32, places: usize| {
            (place as u64 * u64::from(picture) / places as u64) as u32
        };
        let ceil = |place: usize, picture: u32, places: usize| {
            (place as u64 * u64::from(picture)).div_ceil(places as u64) as u32
        };
        let [left, right, top, bottom] = self.bounds;
        let (w, h) = (map.width, map.height);
        let (x, y) = (floor(left, width, w), floor(top, height, h));
        let (right, bottom) = (ceil(right + 1, width, w), ceil(bottom + 1, height, h));
        Region { x, y, width: right - x, height: bottom - y }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detection(score: f32, width: usize, scores: &[f32]) -> Detection {
        let map = AnomalyMap { width, height: scores.len() / width, scores: scores.to_vec() };
        Detection { score, map }
    }

    fn limits(regions: Vec<RegionLimit>) -> Limits {
        Limits { threshold: 2.0, map_threshold: 1.0, regions }
    }

    fn region(x: u32, y: u32, width: u32, height: u32, threshold: Option<f32>) -> RegionLimit {
        let ignore = threshold.is_none();
        RegionLimit { name: "r".into(), x, y, width, height, threshold, ignore }
    }

    #[test]
    fn only_a_finite_score_below_the_threshold_is_accepted() {
        struct Case {
            score: f32,
            verdict: Verdict,
        }
        let anomaly = Verdict::Reject(Cause::Anomaly);
        let failed = Verdict::Reject(Cause::DetectorFailed);
        for case in [
            Case { score: 1.999, verdict: Verdict::Accept },
            Case { score: 2.0, verdict: anomaly },
            Case { score: 9.0, verdict: anomaly },
            Case { score: f32::NAN, verdict: failed },
            Case { score: f32::INFINITY, verdict: failed },
            Case { score: f32::NEG_INFINITY, verdict: failed },
        ] {
            let judged = Judge::new(limits(vec![])).judge(
                &detection(case.score, 2, &[0.0, 0.1, 0.2, 0.3]),
                20,
                20,
            );
            assert_eq!(judged.verdict, case.verdict, "score {}", case.score);
        }
    }

    #[test]
    fn a_map_that_is_not_whole_or_not_finite_rejects() {
        let mut judge = Judge::new(limits(vec![]));
        for scores in [&[][..], &[0.0, f32::NAN][..]] {
            let map = AnomalyMap { width: 2, height: 1, scores: scores.to_vec() };
            let judged = judge.judge(&Detection { score: 0.0, map }, 2, 1);
            assert_eq!(judged.verdict, Verdict::Reject(Cause::DetectorFailed));
        }
    }

    #[test]
    fn the_region_is_the_box_of_the_connected_places_around_the_peak() {
        #[rustfmt::skip]
        let scores = [
            0.0, 0.0, 0.0, 0.0, 1.5,
            0.0, 1.2, 0.0, 0.0, 0.0,
            0.0, 0.0, 3.0, 0.0, 0.0,
            0.0, 0.0, 0.0, 0.9, 0.0,
        ];
        let judged = Judge::new(limits(vec![])).judge(&detection(3.0, 5, &scores), 50, 80);
        assert_eq!(judged.region, Some(Region { x: 10, y: 20, width: 20, height: 40 }));
    }

    #[test]
    fn every_connected_region_is_an_anomaly_the_worst_first() {
        #[rustfmt::skip]
        let scores = [
            0.0, 0.0, 0.0, 0.0, 1.5,
            0.0, 1.2, 0.0, 0.0, 0.0,
            0.0, 0.0, 3.0, 0.0, 0.0,
            0.0, 0.0, 0.0, 0.9, 0.0,
        ];
        let found = |score: f32, regions: Vec<RegionLimit>, scores: &[f32]| {
            let mut judge = Judge::new(limits(regions));
            let detection = detection(score, 5, scores);
            let judged = judge.judge(&detection, 50, 80);
            judge.anomalies(&judged, &detection.map, 50, 80)
        };
        let anomaly =
            |x, y, width, height, peak| Anomaly { region: Region { x, y, width, height }, peak };
        let two = [anomaly(10, 20, 20, 40, 3.0), anomaly(40, 0, 10, 20, 1.5)];
        assert_eq!(found(3.0, vec![], &scores), two);
        assert_eq!(found(0.0, vec![], &scores), two, "also those of an accepted picture");
        assert_eq!(found(3.0, vec![region(0, 20, 50, 60, None)], &scores), two[1..]);
        let weak = scores.map(|score| score / 4.0);
        assert_eq!(found(1.0, vec![], &weak), []);
        assert_eq!(found(9.0, vec![], &weak), [anomaly(20, 40, 10, 20, 0.75)]);
        let many: Vec<f32> = (0..15).flat_map(|y| [1.0 + y as f32, 0.0].repeat(50)).collect();
        let rows: Vec<f32> = many.chunks(100).flat_map(|row| [row, &[0.0; 100]].concat()).collect();
        let mut judge = Judge::new(limits(vec![]));
        let detection = detection(9.0, 100, &rows);
        let judged = judge.judge(&detection, 100, 30);
        let most = judge.anomalies(&judged, &detection.map, 100, 30);
        assert_eq!((most.len(), most[0].peak), (MOST_ANOMALIES, 15.0));
    }

    #[test]
    fn an_ignored_region_does_not_reject_and_the_rest_still_does() {
        let scores = [0.0, 5.0, 0.0, 0.5];
        let printed_date = region(10, 0, 10, 10, None);
        let mut judge = Judge::new(limits(vec![printed_date.clone()]));
        assert_eq!(judge.judge(&detection(5.0, 2, &scores), 20, 20).verdict, Verdict::Accept);
        let judged = judge.judge(&detection(5.0, 2, &[0.0, 5.0, 1.0, 0.5]), 20, 20);
        assert_eq!(judged.verdict, Verdict::Reject(Cause::Anomaly));
        assert_eq!((judged.score, judged.threshold), (1.0, 1.0));
    }

    #[test]
    fn a_region_has_its_own_threshold() {
        let mut judge = Judge::new(limits(vec![region(0, 0, 10, 20, Some(4.0))]));
        assert_eq!(
            judge.judge(&detection(9.0, 2, &[3.9, 0.9, 0.0, 0.0]), 20, 20).verdict,
            Verdict::Accept
        );
        let judged = judge.judge(&detection(0.0, 2, &[4.0, 0.9, 0.0, 0.0]), 20, 20);
        assert_eq!(judged.verdict, Verdict::Reject(Cause::Anomaly));
        assert_eq!(judged.threshold, 4.0);
    }

    #[test]
    fn ignoring_the_whole_picture_inspects_nothing_and_rejects() {
        let mut judge = Judge::new(limits(vec![region(0, 0, 20, 20, None)]));
        let judged = judge.judge(&detection(0.0, 2, &[0.0; 4]), 20, 20);
        assert_eq!(judged.verdict, Verdict::Reject(Cause::DetectorFailed));
    }

    #[test]
    fn the_plane_follows_a_change_of_picture_size() {
        let mut judge = Judge::new(limits(vec![region(0, 0, 10, 10, None)]));
        let scores = [5.0, 0.0, 0.0, 0.0];
        assert_eq!(judge.judge(&detection(5.0, 2, &scores), 20, 20).verdict, Verdict::Accept);
        let judged = judge.judge(&detection(5.0, 2, &scores), 200, 200);
        assert_eq!(judged.verdict, Verdict::Reject(Cause::Anomaly));
    }

    #[test]
    fn causes_keep_their_codes() {
        for (cause, code) in Cause::ALL.into_iter().zip(1..) {
            assert_eq!(cause.code(), code);
            assert_eq!(Cause::from_code(code), Some(cause));
        }
        assert_eq!(Cause::from_code(0), None);
    }
}
