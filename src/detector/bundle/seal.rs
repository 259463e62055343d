//! The parity seal: a model that no longer gives its own scores on this machine does not arm.

use anyhow::{Context, Result, ensure};

use super::picture_name;
use crate::detector::{Detection, Detector};
use crate::frame::Image;

/// A picture and what the detector said of it when the bundle was made.
#[derive(Clone, Debug)]
pub struct Golden {
    pub image: Image,
    pub detection: Detection,
}

/// How far a golden score may be off, relative to itself, and a map, relative to its largest
/// value. Kernels that sum in another order move the feature levels by less than 1e-5 (f32 against
/// f64 networks of this depth), scores by less than 1e-4 of their value; a wrong weight, channel
/// order or resize moves them by percents.
pub const SEAL_TOLERANCE: f32 = 1e-3;

/// A score or map below this share of the largest golden one is measured by that share instead: a
/// good part whose patches are all in the memory bank scores 0, which another kernel hits only
/// nearly. With [`SEAL_TOLERANCE`] that leaves 1e-4 of the largest, the most that kernels differ by.
const LEAST_SHARE: f32 = 0.1;

/// Compares what `detector` says of the golden pictures with what it said when the bundle was
/// made, one at a time and in batches of `batch`.
///
/// # Errors
/// A score or map beyond [`SEAL_TOLERANCE`], naming the picture, what was expected and what came.
pub fn seal(detector: &mut dyn Detector, golden: &[Golden], batch: usize) -> Result<()> {
    ensure!(!golden.is_empty(), "there are no golden pictures to seal the model with");
    let floor = Scale::largest(golden.iter().map(|golden| Scale::of(&golden.detection)));
    let floor = Scale { score: LEAST_SHARE * floor.score, map: LEAST_SHARE * floor.map };
    for size in if batch == 1 { vec![1] } else { vec![1, batch] } {
        for round in 0..golden.len().div_ceil(size) {
            // the last batch is filled up from the start, so that it has the line's size
            let picked: Vec<usize> =
                (round * size..(round + 1) * size).map(|i| i % golden.len()).collect();
            let images: Vec<&Image> = picked.iter().map(|&i| &golden[i].image).collect();
            let detections = detector.detect(&images)?;
            ensure!(detections.len() == size, "{} detections of {size} pictures", detections.len());
            for (&i, got) in picked.iter().zip(&detections) {
                same(&golden[i].detection, got, floor)
                    .with_context(|| format!("{} at batch {size}", picture_name(i)))?;
            }
        }
    }
    Ok(())
}

/// How large scores are, by which differences are measured.
#[derive(Clone, Copy)]
struct Scale {
    score: f32,
    /// The largest magnitude in the anomaly map; scores of some systems lie below zero.
    map: f32,
}

impl Scale {
    fn of(detection: &Detection) -> Scale {
        let map = detection.map.scores.iter().copied().map(f32::abs).fold(0.0, f32::max);
        Scale { score: detection.score.abs(), map }
    }

    fn largest(scales: impl IntoIterator<Item = Scale>) -> Scale {
        scales.into_iter().fold(Scale { score: 0.0, map: 0.0 }, |a, b| Scale {
            score: a.score.max(b.score),
            map: a.map.max(b.map),
        })
    }
}

fn same(want: &Detection, got: &Detection, floor: Scale) -> Result<()> {
    let scale = Scale::largest([Scale::of(want), floor]);
    // `<=` and not `>` throughout, so that NaN fails
    ensure!(
        (got.score - want.score).abs() <= SEAL_TOLERANCE * scale.score,
        "score {} where {} was expected: this machine computes another model than the one taught",
        got.score,
        want.score
    );
    let size = |detection: &Detection| (detection.map.width, detection.map.height);
    ensure!(
        size(got) == size(want) && got.map.scores.len() == want.map.scores.len(),
        "an anomaly map of {:?} where {:?} was expected",
        size(got),
        size(want)
    );
    for (i, (got, expected)) in got.map.scores.iter().zip(&want.map.scores).enumerate() {
        ensure!(
            (got - expected).abs() <= SEAL_TOLERANCE * scale.map,
            "anomaly map {got} at ({}, {}) where {expected} was expected: this machine computes \
             another model than the one taught",
            i % want.map.width,
            i / want.map.width
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use image::GrayImage;

    use super::*;
    use crate::detector::AnomalyMap;

    /// Says of every picture what its table says; in batches above one, `batch_factor` times that.
    struct Fake {
        detections: Vec<Detection>,
        batch_factor: f32,
        next: usize,
    }

    impl Detector for Fake {
        fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
            let factor = if images.len() > 1 { self.batch_factor } else { 1.0 };
            let said = images.iter().map(|_| {
                let mut detection = self.detections[self.next % self.detections.len()].clone();
                self.next += 1;
                detection.score *= factor;
                detection
            });
            Ok(said.collect())
        }
    }

    fn detection(score: f32) -> Detection {
        let map = AnomalyMap { width: 2, height: 2, scores: vec![0.0, 0.1, 0.2, score] };
        Detection { score, map }
    }

    fn sealed(spoil: impl Fn(&mut Detection), batch_factor: f32) -> Result<()> {
        sealed_at(2.0, spoil, batch_factor)
    }

    /// The picture that is spoilt scored `score` when the bundle was made, the others 1 and 3.
    fn sealed_at(score: f32, spoil: impl Fn(&mut Detection), batch_factor: f32) -> Result<()> {
        let golden: Vec<Golden> = [1.0, score, 3.0]
            .map(|score| Golden {
                image: Image::Gray(GrayImage::new(4, 4)),
                detection: detection(score),
            })
            .into();
        let mut detections: Vec<Detection> = golden.iter().map(|g| g.detection.clone()).collect();
        spoil(&mut detections[1]);
        seal(&mut Fake { detections, batch_factor, next: 0 }, &golden, 2)
    }

    #[test]
    fn the_same_numbers_pass() {
        sealed(|_| (), 1.0).unwrap();
        sealed(|d| d.score *= 1.0 + 0.9 * SEAL_TOLERANCE, 1.0).unwrap();
    }

    #[test]
    fn another_score_map_size_or_nan_does_not_pass() {
        type Spoil = fn(&mut Detection);
        let cases: [(Spoil, &str); 5] = [
            (|d| d.score *= 1.0 + 1.2 * SEAL_TOLERANCE, "score"),
            (|d| d.score = f32::NAN, "score NaN"),
            (|d| d.map.scores[0] += 3e-3, "at (0, 0)"),
            (|d| d.map.scores[3] = f32::NAN, "at (1, 1)"),
            (|d| d.map.width = 4, "(4, 2)"),
        ];
        for (spoil, word) in cases {
            let error = format!("{:#}", sealed(spoil, 1.0).unwrap_err());
            assert!(error.contains("golden/1.png at batch 1"), "{error}");
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_part_that_is_in_the_memory_bank_may_score_nearly_nothing() {
        let still = |d: &mut Detection| d.map.scores.fill(0.0);
        // a tenth of 3, the largest golden score and map value
        let floor = 0.3 * SEAL_TOLERANCE;
        sealed_at(0.0, |d| d.score = 0.9 * floor, 1.0).unwrap();
        sealed_at(0.0, |d| d.map.scores[0] = 0.9 * floor, 1.0).unwrap();
        for spoil in [
            (&|d: &mut Detection| d.score = 1.2 * floor) as &dyn Fn(&mut Detection),
            &|d| d.map.scores[0] = 1.2 * floor,
            &|d| d.score = f32::NAN,
        ] {
            sealed_at(0.0, spoil, 1.0).unwrap_err();
        }
        // one that scored as usual is not let off
        sealed(still, 1.0).unwrap_err();
    }

    #[test]
    fn a_fault_that_only_batches_have_does_not_pass() {
        let error = format!("{:#}", sealed(|_| (), 1.01).unwrap_err());
        assert!(error.contains("at batch 2"), "{error}");
    }
}
