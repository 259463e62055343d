//! Confetti noise (Liznerski et al. 2021, FCDD; section 6 of the specification on anomalies): blurred
//! squares of darker colour, or of brighter colour where the picture is too dark to show them.
//!
//! Two layers are drawn on their own and added: one of random colours, one that takes the same from
//! all channels. What is drawn ([`draw`]) is apart from what is done with it ([`apply`]).
//!
//! Draws, layer by layer: the gaps between centres, again while there is none; then for each blob
//! side and rotation from `places`, and red, green, blue from `colours` in the coloured layer.
//!
//! Letters: H × W the picture's size.

use std::ops::{Range, RangeInclusive};

use anyhow::{Result, ensure};
use image::RgbImage;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::dataset::mask::Mask;

/// What is added to the levels of a picture, before it is blurred.
#[derive(Clone, Debug, PartialEq)]
pub struct Noise {
    pub width: usize,
    pub height: usize,
    /// Red, green and blue, rows from the top.
    pub planes: [Vec<f32>; 3], // [H, W]
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Levels that a channel must change by for the pixel to be in the mask; 1 as in FCDD takes in
    /// what no eye sees at the rim of a blob.
    pub mask_min_change: u8,
}

impl Default for Config {
    fn default() -> Config {
        Config { mask_min_change: 1 }
    }
}

impl Config {
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.mask_min_change > 0,
            "mask_min_change = 0: must be from 1 to 255; with 0 all of a picture were anomalous"
        );
        Ok(())
    }
}

/// Draws both layers; `places` says where blobs lie, `colours` what they take away.
pub fn draw(width: usize, height: usize, places: &mut impl Rng, colours: &mut impl Rng) -> Noise {
    let mut sum = Noise::silent(width, height);
    for (rate, colour) in [(COLOURED, Some(COLOURS)), (PLAIN, None)] {
        let mut layer = Noise::silent(width, height);
        for centre in centres(rate, width * height, places) {
            let blob = Blob {
                x: centre % width,
                y: centre / width,
                side: places.random_range(SIDES),
                degrees: places.random_range(-MOST_DEGREES..=MOST_DEGREES),
            };
            let level = std::array::from_fn(|_| match &colour {
                Some(range) => colours.random_range(range.clone()) as f32,
                None => PLAIN_LEVEL,
            });
            blob.lay_on(&mut layer, level);
        }
        for (sum, layer) in sum.planes.iter_mut().zip(&layer.planes) {
            sum.iter_mut().zip(layer).for_each(|(sum, layer)| *sum += layer);
        }
    }
    sum
}

/// The picture with the noise on it, and where that changed it. Where the noise would hardly show (as darker blobs on black), it is turned around.
pub fn apply(picture: &RgbImage, noise: &Noise, config: &Config) -> (RgbImage, Mask) {
    let smooth = smoothed(noise);
    let [plain, turned] = [1, -1].map(|sign| mean_change(picture, &smooth, sign));
    let sign = if plain < LEAST_SEEN && turned > plain { -1 } else { 1 };
    let mut out = picture.clone();
    let mut mask = Mask::empty(noise.width, noise.height);
    let levels: &mut [u8] = &mut out;
    for (place, noise) in smooth.places(noise.width).zip(smooth.levels.chunks_exact(3)) {
        let mut most = 0;
        for (level, noise) in levels[3 * place..].iter_mut().zip(noise) {
            let new = changed(*level, sign * noise);
            most = most.max(new.abs_diff(*level));
            *level = new;
        }
        mask.inside[place] = most >= config.mask_min_change;
    }
    (out, mask)
}

/// Centres a pixel; 1.18 and 0.79 blobs in a picture of 256 × 256, before there must be one.
const COLOURED: f64 = 1.8e-5;
const PLAIN: f64 = 1.2e-5;
const SIDES: RangeInclusive<usize> = 8..=54;
const MOST_DEGREES: f32 = 45.0;
const COLOURS: RangeInclusive<i32> = -256..=-1;
const PLAIN_LEVEL: f32 = -255.0;
/// Of the blur: 25 taps, sigma 5.
const RADIUS: usize = 12;
const SIGMA: f64 = 5.0;
/// Mean change of all levels of a picture below which noise is turned around.
const LEAST_SEEN: f64 = 0.025;

impl Noise {
    fn silent(width: usize, height: usize) -> Noise {
        Noise { width, height, planes: std::array::from_fn(|_| vec![0.0; width * height]) }
    }

    /// Columns and rows outside of which there is none.
    fn extent(&self) -> (Range<usize>, Range<usize>) {
        let (mut columns, mut rows) = (self.width..0, self.height..0);
        for plane in &self.planes {
            for (y, row) in plane.chunks_exact(self.width).enumerate() {
                let Some(first) = row.iter().position(|&level| level != 0.0) else { continue };
                let last = row.iter().rposition(|&level| level != 0.0).unwrap_or(first);
                columns = columns.start.min(first)..columns.end.max(last + 1);
                rows = rows.start.min(y)..rows.end.max(y + 1);
            }
        }
        (columns, rows)
    }
}

/// The places that become centres, each with chance `rate`; at least one, unless there is no place.
fn centres(rate: f64, places: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut centres = Vec::new();
    while centres.is_empty() && places > 0 {
        // The gap to the next centre follows a geometric law, which takes a draw a centre instead of
        // one a place.
        let mut next = 0.0;
        loop {
            next += ((1.0 - rng.random::<f64>()).ln() / (-rate).ln_1p()).floor();
            if next >= places as f64 {
                break;
            }
            centres.push(next as usize);
            next += 1.0;
        }
    }
    centres
}

/// A square, turned around the pixel at its centre.
struct Blob {
    x: usize,
    y: usize,
    side: usize,
    degrees: f32,
}

impl Blob {
    /// Overwrites the pixels whose centres are in the square; what lies beyond the picture is cut.
    fn lay_on(&self, layer: &mut Noise, level: [f32; 3]) {
        // As many pixels as the side, at even sides one more behind the centre than before it.
        let half = (self.side / 2) as f32;
        let first = if self.side.is_multiple_of(2) { 1.0 - half } else { -half };
        let (sin, cos) = self.degrees.to_radians().sin_cos();
        // The corners of a turned square are at most a diagonal away.
        let reach = (self.side as f32 * std::f32::consts::SQRT_2 / 2.0).ceil() as usize + 1;
        let span =
            |centre: usize, end: usize| centre.saturating_sub(reach)..(centre + reach + 1).min(end);
        for y in span(self.y, layer.height) {
            for x in span(self.x, layer.width) {
                let (dx, dy) = (x as f32 - self.x as f32, y as f32 - self.y as f32);
                let turned = [cos * dx + sin * dy, cos * dy - sin * dx];
                // Half a pixel around, as a pixel at the square's edge is wholly in it.
                if turned.iter().all(|&at| at >= first - 0.5 && at < half + 0.5) {
                    for (plane, level) in layer.planes.iter_mut().zip(level) {
                        plane[y * layer.width + x] = level;
                    }
                }
            }
        }
    }
}

/// Blurred noise in whole levels, of the part of the picture that it reaches.
struct Smooth {
    columns: Range<usize>,
    rows: Range<usize>,
    /// Rows of red, green, blue triples.
    levels: Vec<i32>,
}

impl Smooth {
    /// Number of each place in a picture `width` wide, in the order of the levels.
    fn places(&self, width: usize) -> impl Iterator<Item = usize> {
        self.rows.clone().flat_map(move |y| self.columns.clone().map(move |x| y * width + x))
    }
}

/// Blurred, then cut to whole levels towards zero.
fn smoothed(noise: &Noise) -> Smooth {
    let (columns, rows) = noise.extent();
    let grown = |range: Range<usize>, end: usize| {
        range.start.saturating_sub(RADIUS)..(range.end + RADIUS).min(end)
    };
    let columns = grown(columns, noise.width);
    let rows = grown(rows, noise.height);
    let mut levels = vec![0; 3 * columns.len() * rows.len()];
    for (channel, plane) in noise.planes.iter().enumerate() {
        let blurred = blur(plane, (noise.width, noise.height), &columns, &rows);
        for (level, value) in levels.iter_mut().skip(channel).step_by(3).zip(blurred) {
            *level = value as i32;
        }
    }
    Smooth { columns, rows, levels }
}

/// A Gaussian of 25 taps along rows, then along columns, only of some columns and rows; beyond the
/// edges the picture is mirrored around its outermost pixels.
fn blur(
    plane: &[f32],
    (width, height): (usize, usize),
    columns: &Range<usize>,
    rows: &Range<usize>,
) -> Vec<f32> {
    let taps = taps();
    // Columns that the taps of the wanted ones reach.
    let mut along = vec![0.0; columns.len() * height]; // [H, columns]
    let mut padded = vec![0.0; columns.len() + 2 * RADIUS];
    for (row, out) in plane.chunks_exact(width).zip(along.chunks_exact_mut(columns.len().max(1))) {
        for (i, value) in padded.iter_mut().enumerate() {
            *value = row[mirrored(columns.start + i, width)];
        }
        for (k, tap) in taps.iter().enumerate() {
            out.iter_mut().zip(&padded[k..]).for_each(|(out, value)| *out += tap * value);
        }
    }
    let mut out = vec![0.0; columns.len() * rows.len()]; // [rows, columns]
    for (y, out) in rows.clone().zip(out.chunks_exact_mut(columns.len().max(1))) {
        for (k, tap) in taps.iter().enumerate() {
            let row = &along[mirrored(y + k, height) * columns.len()..];
            out.iter_mut().zip(row).for_each(|(out, value)| *out += tap * value);
        }
    }
    out
}

/// The pixel that stands `RADIUS` before the `at`-th, mirrored into 0..`len`.
fn mirrored(at: usize, len: usize) -> usize {
    let period = (2 * (len - 1)).max(1) as isize;
    let at = (at as isize - RADIUS as isize).rem_euclid(period) as usize;
    at.min(period as usize - at).min(len - 1)
}

fn taps() -> [f32; 2 * RADIUS + 1] {
    let bell = |k: usize| {
        let away = k as f64 - RADIUS as f64;
        (-away * away / (2.0 * SIGMA * SIGMA)).exp()
    };
    let sum: f64 = (0..=2 * RADIUS).map(bell).sum();
    std::array::from_fn(|k| (bell(k) / sum) as f32)
}

fn changed(level: u8, noise: i32) -> u8 {
    (i32::from(level) + noise).clamp(0, 255) as u8
}

/// Mean change of all levels of the picture, whatever its sign.
fn mean_change(picture: &RgbImage, smooth: &Smooth, sign: i32) -> f64 {
    let mut sum = 0i64;
    let places = smooth.places(picture.width() as usize);
    for (place, noise) in places.zip(smooth.levels.chunks_exact(3)) {
        for (&level, noise) in picture.as_raw()[3 * place..].iter().zip(noise) {
            sum += i64::from(changed(level, sign * noise)) - i64::from(level);
        }
    }
    sum.unsigned_abs() as f64 / picture.as_raw().len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    #[test]
    fn noise_is_laid_on_as_the_reference_does() {
        let Some(path) = shared("spec/vectors/confetti_apply.json") else { return };
        let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let numbers = |key: &str| -> Vec<i32> {
            serde_json::from_value(vector[key]["data"].clone()).unwrap()
        };
        let side = 40;
        let planes = |numbers: &[i32]| -> [Vec<f32>; 3] {
            let plane = |c| &numbers[c * side * side..(c + 1) * side * side];
            std::array::from_fn(|c| plane(c).iter().map(|&n| n as f32).collect())
        };
        let noise = Noise { width: side, height: side, planes: planes(&numbers("noise")) };

        let smooth = smoothed(&noise);
        assert_eq!((smooth.columns.clone(), smooth.rows.clone()), (0..side, 0..side));
        let want = numbers("smoothed_trunc");
        for (i, level) in smooth.levels.iter().enumerate() {
            let (place, channel) = (i / 3, i % 3);
            let want = want[channel * side * side + place];
            if *level != want {
                // "may differ by 1 where the blurred value is within 1e-4 of an integer"
                let exact =
                    blur(&noise.planes[channel], (side, side), &(0..side), &(0..side))[place];
                assert!((exact - exact.round()).abs() < 1e-4, "place {place}: {level}, not {want}");
                assert!((level - want).abs() <= 1, "place {place}: {level}, not {want}");
            }
        }

        let (image, output) = (numbers("image"), numbers("output"));
        let at = |x: u32, y: u32, c: usize| c * side * side + y as usize * side + x as usize;
        let picture = |levels: &[i32]| {
            RgbImage::from_fn(side as u32, side as u32, |x, y| {
                Rgb([0, 1, 2].map(|c| levels[at(x, y, c)] as u8))
            })
        };
        let (got, mask) = apply(&picture(&image), &noise, &Config::default());
        let worst = got.iter().zip(picture(&output).iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(1), "off by {worst:?} levels");
        let want: Vec<bool> = numbers("mask").iter().map(|&inside| inside == 1).collect();
        let differ = mask.inside.iter().zip(&want).filter(|(a, b)| a != b).count();
        assert!(differ == 0, "{differ} places of the mask differ");
    }

    #[test]
    fn a_part_of_the_picture_is_blurred_as_the_whole() {
        let mut noise = Noise::silent(90, 61);
        Blob { x: 70, y: 9, side: 15, degrees: 20.0 }.lay_on(&mut noise, [-200.0, -100.0, -1.0]);
        let smooth = smoothed(&noise);
        assert!(smooth.columns.start > 0 && smooth.rows.end < 61);
        for (channel, plane) in noise.planes.iter().enumerate() {
            let mut whole: Vec<i32> =
                blur(plane, (90, 61), &(0..90), &(0..61)).iter().map(|&v| v as i32).collect();
            for (i, place) in smooth.places(90).enumerate() {
                assert_eq!(smooth.levels[3 * i + channel], whole[place]);
                whole[place] = 0;
            }
            assert!(whole.iter().all(|&level| level == 0));
        }
    }

    #[test]
    fn an_upright_blob_has_as_many_pixels_as_its_side() {
        for side in SIDES {
            let mut layer = Noise::silent(120, 120);
            Blob { x: 60, y: 58, side, degrees: 0.0 }.lay_on(&mut layer, [-1.0; 3]);
            let (columns, rows) = layer.extent();
            // even sides: -(k/2)+1..=k/2, odd ones -(k/2)..=k/2
            let first = if side % 2 == 0 { side / 2 - 1 } else { side / 2 };
            assert_eq!((columns, rows.start), (60 - first..60 + side / 2 + 1, 58 - first));
            assert_eq!(layer.planes[0].iter().filter(|&&v| v != 0.0).count(), side * side);
        }
    }

    #[test]
    fn a_turned_blob_keeps_its_area_and_the_edge_cuts_it() {
        let area = |x, degrees| {
            let mut layer = Noise::silent(120, 120);
            Blob { x, y: 60, side: 31, degrees }.lay_on(&mut layer, [-1.0; 3]);
            layer.planes[2].iter().filter(|&&level| level != 0.0).count()
        };
        for degrees in [-45.0, -31.0, 12.5, 40.0] {
            // s² lattice points, but for up to half of those on its edge
            assert!(area(60, degrees).abs_diff(31 * 31) < 2 * 31, "{}", area(60, degrees));
        }
        assert_eq!(area(0, 0.0), 31 * 16);
    }

    #[test]
    fn centres_come_as_often_as_their_rate_says() {
        // Mean of a binomial count that is not zero: n p / (1 - (1 - p)^n)
        let mut rng = rng(3);
        let (rate, places) = (1.8e-5, 65536);
        let total: usize = (0..4000).map(|_| centres(rate, places, &mut rng).len()).sum();
        let mean = total as f64 / 4000.0;
        let want = rate * 65536.0 / (1.0 - (1.0 - rate).powi(65536));
        // four standard errors of a count of variance about 0.9
        assert!((mean - want).abs() < 4.0 * (0.9f64 / 4000.0).sqrt(), "{mean}, not {want}");
        let mut seen = [0u32; 8];
        for _ in 0..4000 {
            centres(0.5, 8, &mut rng).iter().for_each(|&at| seen[at] += 1);
        }
        // half of 4000, with the empty maps redrawn 4000 / 2 · 256 / 255 = 2008 ± 4 · 32
        assert!(seen.iter().all(|&n| n.abs_diff(2008) < 130), "{seen:?}");
        assert_eq!(centres(0.5, 0, &mut rng), [0usize; 0]);
    }

    #[test]
    fn noise_shows_on_white_and_on_black() {
        for (level, darker) in [(255u8, true), (0, false)] {
            let picture = RgbImage::from_pixel(128, 128, Rgb([level; 3]));
            let noise = draw(128, 128, &mut rng(1), &mut rng(2));
            let (out, mask) = apply(&picture, &noise, &Config::default());
            let changed = out.pixels().filter(|pixel| pixel.0 != [level; 3]).count();
            assert!(changed > 64, "{level}: {changed} pixels");
            assert_eq!(mask.area(), changed);
            let strong = Config { mask_min_change: 40 };
            let (larger, _) = apply(&picture, &noise, &strong);
            assert_eq!(larger, out, "the least change only concerns the mask");
            let strong = apply(&picture, &noise, &strong).1.area();
            assert!(strong > 0 && strong < changed);
            assert_eq!(out.iter().any(|&new| new < level), darker);
        }
    }

    #[test]
    fn tiny_pictures_do_no_harm() {
        for (width, height) in [(1, 1), (1, 40), (3, 2)] {
            let picture = RgbImage::from_pixel(width, height, Rgb([200; 3]));
            let noise = draw(width as usize, height as usize, &mut rng(1), &mut rng(2));
            let (out, mask) = apply(&picture, &noise, &Config::default());
            assert_eq!(out.dimensions(), (width, height));
            assert!(mask.area() > 0);
        }
        let nothing = Noise::silent(9, 9);
        let picture = RgbImage::from_pixel(9, 9, Rgb([20; 3]));
        assert_eq!(
            apply(&picture, &nothing, &Config::default()),
            (picture.clone(), Mask::empty(9, 9))
        );
    }

    /// Draw order is part of the format: what is made from a seed stays the same.
    #[test]
    fn a_seed_stands_for_the_same_noise() {
        let noise = draw(256, 256, &mut rng(7), &mut rng(8));
        let sums = noise.planes.map(|plane| plane.iter().sum::<f32>());
        assert_eq!(sums, [-410449.0, -414864.0, -411109.0]);
    }
}
