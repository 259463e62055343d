//! A test picture as it is shown: with its truth outlined, and with what the detector saw.

use anyhow::{Context, Result};
use image::{GrayImage, Rgb, RgbImage};

use super::{Settings, detect, read, truth};
use crate::dataset::Sample;
use crate::detector::{AnomalyMap, Detector};
use crate::frame::Image;
use crate::picture::sheet::{TRUTH, shrink};
use crate::picture::{frame_region, line_px, outline, overlay};

/// The two views, of the same size.
pub(super) struct Look {
    /// The picture with its truth outlined.
    pub truth: RgbImage,
    /// The picture under its map, where that reaches the limit; a box around the peak, blue where
    /// even the peak is below.
    pub seen: RgbImage,
}

/// Scores a batch of samples and shows each in a square of `side` pixels, its shape kept; small
/// pictures grow.
pub(super) fn look(
    detector: &mut dyn Detector,
    samples: &[&Sample],
    settings: &Settings,
    side: u32,
) -> Result<Vec<Look>> {
    let read = samples.iter().map(|sample| read(sample, settings));
    let (pictures, masks): (Vec<_>, Vec<_>) = read.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let detections = detect(detector, samples, &pictures)?;
    let shown = samples.iter().zip(pictures).zip(masks).zip(detections);
    shown
        .map(|(((sample, picture), mask), detection)| {
            let small = shrink(&picture.to_rgb(), side);
            Ok(Look {
                truth: with_truth(&small, mask.as_ref()).with_context(|| sample.name.clone())?,
                seen: seen(&small, &detection.map, settings.map_limit),
            })
        })
        .collect()
}

/// What is this much lower than the peak is shown with it, as a share of the peak.
const BELOW_PEAK: f32 = 0.15;
const BELOW_LIMIT: Rgb<u8> = Rgb([105, 170, 255]);

fn seen(picture: &RgbImage, map: &AnomalyMap, map_limit: f32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let region = overlay::peak_box(map, map_limit, width, height);
    let mut out = overlay::overlay(&Image::Rgb(picture.clone()), map, map_limit, region);
    if region.is_none() {
        // An escape: was the detector looking at the right place at least?
        let peak = map.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let nearly = peak - peak.abs() * BELOW_PEAK;
        if let Some(place) = overlay::peak_box(map, nearly, width, height) {
            frame_region(&mut out, place, line_px(width, height), BELOW_LIMIT);
        }
    }
    out
}

fn with_truth(picture: &RgbImage, mask: Option<&GrayImage>) -> Result<RgbImage> {
    let mut out = picture.clone();
    let (width, height) = out.dimensions();
    let mask = truth(mask, width as usize, height as usize)?;
    outline(&mut out, &mask, line_px(width, height), TRUTH);
    Ok(out)
}
