//! An anomaly map laid over the picture it was made from.

use image::{Rgb, RgbImage};

use super::{frame_region, line_px, outline};
use crate::detector::AnomalyMap;
use crate::frame::Image;
use crate::verdict::{Region, region_around};

/// The picture at its own resolution; where the map reaches `limit` (raw score units) it is
/// coloured, the more so the further beyond, with a line along the limit. Below the limit the
/// picture shows unchanged, so that the eye goes to the anomaly. `region` gets a frame. A map
/// whose values do not fill its size shows nothing.
pub fn overlay(picture: &Image, map: &AnomalyMap, limit: f32, region: Option<Region>) -> RgbImage {
    let mut out = picture.to_rgb();
    let (width, height) = out.dimensions();
    if map.scores.is_empty() || map.scores.len() != map.width * map.height {
        return out;
    }
    let scores = at_resolution(map, width, height);
    let peak = map.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // The colours span at least half of the limit's own size, so that a map which hardly reaches
    // the limit does not look like one that is far beyond.
    let span = (peak - limit).max(limit.abs() * 0.5).max(f32::MIN_POSITIVE);
    let inside: Vec<bool> = scores.iter().map(|&score| score >= limit).collect();
    for (pixel, (&score, &inside)) in out.pixels_mut().zip(scores.iter().zip(&inside)) {
        if inside {
            let beyond = ((score - limit) / span).clamp(0.0, 1.0);
            let heat = inferno(HEAT_FROM + beyond * (HEAT_TO - HEAT_FROM));
            let cover = COVER_FROM + beyond * (COVER_TO - COVER_FROM);
            for (channel, heat) in pixel.0.iter_mut().zip(heat) {
                *channel = (f32::from(*channel) * (1.0 - cover) + heat * 255.0 * cover) as u8;
            }
        }
    }
    let line = line_px(width, height);
    outline(&mut out, &inside, line, LIMIT_LINE);
    if let Some(region) = region {
        // Dark around light, to be seen on any part.
        frame_region(&mut out, region, 2 * line, FRAME_SHADOW);
        frame_region(&mut out, region, line, FRAME);
    }
    out
}

/// The box, in pixels of a `width` × `height` picture, around the map's peak and all places at or
/// above `limit` that hang together with it (8-connected); `None` if the peak is below `limit`.
pub fn peak_box(map: &AnomalyMap, limit: f32, width: u32, height: u32) -> Option<Region> {
    let peak = (0..map.scores.len())
        .filter(|&at| map.scores[at] >= limit)
        .max_by(|&a, &b| map.scores[a].total_cmp(&map.scores[b]).then(b.cmp(&a)))?;
    Some(region_around(map, peak, limit, width, height))
}

/// The map bilinearly at a picture's size, rows of `width` values; pixel centres at halves, edges
/// continued.
pub fn at_resolution(map: &AnomalyMap, width: u32, height: u32) -> Vec<f32> {
    let columns = places(map.width, width);
    let rows = places(map.height, height);
    let mut out = Vec::with_capacity(width as usize * height as usize);
    for row in &rows {
        let above = &map.scores[row.before * map.width..][..map.width];
        let below = &map.scores[row.after * map.width..][..map.width];
        out.extend(columns.iter().map(|column| {
            let mix = |row: &[f32]| {
                row[column.before] + column.share * (row[column.after] - row[column.before])
            };
            let (above, below) = (mix(above), mix(below));
            above + row.share * (below - above)
        }));
    }
    out
}

/// Where in inferno the limit and the peak lie: from purple-red to yellow, leaving out the dark
/// end, which would look like a shadow on the part, and the near-white one.
const HEAT_FROM: f32 = 0.45;
const HEAT_TO: f32 = 0.95;
/// How much of the picture the colour hides, at the limit and at the peak.
const COVER_FROM: f32 = 0.40;
const COVER_TO: f32 = 0.70;
const LIMIT_LINE: Rgb<u8> = Rgb([255, 222, 89]);
const FRAME: Rgb<u8> = Rgb([255, 255, 255]);
const FRAME_SHADOW: Rgb<u8> = Rgb([20, 20, 24]);

/// Between which two source pixels a target pixel lies, and how far towards the second.
struct Place {
    before: usize,
    after: usize,
    share: f32,
}

fn places(from: usize, to: u32) -> Vec<Place> {
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|target| {
            let at = ((target as f32 + 0.5) * scale - 0.5).clamp(0.0, (from - 1) as f32);
            let before = at as usize;
            Place { before, after: (before + 1).min(from - 1), share: at - before as f32 }
        })
        .collect()
}

/// The colour map "inferno" of matplotlib (Smith, van der Walt; CC0) by the polynomials that Matt
/// Zucker fitted to it (CC0); 0..=1 to red, green, blue in 0..=1.
fn inferno(heat: f32) -> [f32; 3] {
    const COEFFICIENTS: [[f32; 3]; 7] = [
        [0.000_218_94, 0.001_651, -0.019_480_9],
        [0.106_513_42, 0.563_956_44, 3.932_712_4],
        [11.602_493, -3.972_854, -15.942_394],
        [-41.703_996, 17.436_398, 44.354_145],
        [77.162_94, -33.402_36, -81.807_31],
        [-71.319_43, 32.626_064, 73.209_52],
        [25.131_126, -12.242_669, -23.070_325],
    ];
    let mut colour = [0.0; 3];
    for coefficients in COEFFICIENTS.iter().rev() {
        for (colour, coefficient) in colour.iter_mut().zip(coefficients) {
            *colour = *colour * heat + coefficient;
        }
    }
    colour.map(|channel| channel.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(width: usize, height: usize, scores: &[f32]) -> AnomalyMap {
        AnomalyMap { width, height, scores: scores.to_vec() }
    }

    #[test]
    fn below_the_limit_the_picture_is_unchanged() {
        let picture = RgbImage::from_fn(16, 12, |x, y| Rgb([x as u8 * 9, y as u8 * 9, 77]));
        let map = map(4, 3, &[1.0; 12]);
        assert_eq!(overlay(&Image::Rgb(picture.clone()), &map, 1.5, None), picture);
    }

    #[test]
    fn the_hot_corner_is_coloured_and_the_others_are_not() {
        let picture = Image::Rgb(RgbImage::from_pixel(40, 40, Rgb([90; 3])));
        let map = map(2, 2, &[9.0, 0.0, 0.0, 0.0]);
        let out = overlay(&picture, &map, 4.0, None);
        assert_ne!(out.get_pixel(2, 2), &Rgb([90; 3]));
        for corner in [(37, 2), (2, 37), (37, 37)] {
            assert_eq!(out.get_pixel(corner.0, corner.1), &Rgb([90; 3]));
        }
    }

    /* torch.nn.functional.interpolate(torch.tensor([[[[0., 1.], [2., 3.]]]]), size=(4, 4),
    mode="bilinear", align_corners=False) */
    #[test]
    fn the_map_grows_as_torch_does_it() {
        let want = [
            0.0, 0.25, 0.75, 1.0, 0.5, 0.75, 1.25, 1.5, 1.5, 1.75, 2.25, 2.5, 2.0, 2.25, 2.75, 3.0,
        ];
        assert_eq!(at_resolution(&map(2, 2, &[0.0, 1.0, 2.0, 3.0]), 4, 4), want);
    }

    #[test]
    fn the_box_holds_what_hangs_together_with_the_peak() {
        let scores = [
            0.0, 5.0, 0.0, 0.0, 0.0, //
            0.0, 0.0, 7.0, 0.0, 0.0, //
            6.0, 0.0, 0.0, 0.0, 6.0,
        ];
        let map = map(5, 3, &scores);
        let around = Region { x: 10, y: 0, width: 20, height: 20 };
        assert_eq!(peak_box(&map, 5.0, 50, 30), Some(around));
        let peak = Region { x: 20, y: 10, width: 10, height: 10 };
        assert_eq!(peak_box(&map, 5.1, 50, 30), Some(peak));
        assert_eq!(peak_box(&map, 7.1, 50, 30), None);
    }

    /* matplotlib.colormaps["inferno"](x)[:3]; the fit is within 0.02 of it */
    #[test]
    fn inferno_runs_from_black_over_red_to_yellow() {
        let table = [
            (0.0, [0.001, 0.000, 0.014]),
            (0.5, [0.736, 0.216, 0.330]),
            (1.0, [0.988, 0.998, 0.645]),
        ];
        for (heat, want) in table {
            for (got, want) in inferno(heat).iter().zip(want) {
                assert!((got - want).abs() < 0.02, "{heat}: {got}, not {want}");
            }
        }
    }
}
