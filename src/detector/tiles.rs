//! Large pictures through a detector made for small ones: cut into overlapping tiles, each seen at
//! a size where small defects are still there, and put together again.
//!
//! Along a side of L pixels, tiles of T with an overlap of O begin at 0, T − O, 2 (T − O), …, and the
//! last at L − T: it is moved inwards, nothing is padded. A side shorter than T is one tile.
//!
//! **Score**: the largest of the tiles' scores, so that a defect counts as much as if its tile came
//! alone. A bundle whose threshold lets α of good *tiles* be rejected lets up to n α of good pictures
//! of n tiles be rejected.
//!
//! **Map**: the tiles' maps at their own resolution, laid one over the other from left to right and
//! from top to bottom. Over the n places that a tile at offset a shares with what lies there, it
//! comes in along half a cosine,
//! ```text
//! m ← m + w (t − m),   w(i) = ½ − ½ cos(π (i − a + ½) / n)   for a ≤ i < a + n,   1 beyond
//! ```
//! where t is the tile's value. The weights of all tiles at a place add up to one by construction:
//! where tiles agree, the map is what they say, to the bit. A tile's outermost places, which see the
//! least around them, weigh least.
//!
//! Letters: H × W the picture's map, h × w a tile's.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use image::{GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

use super::{AnomalyMap, Detection, Detector};
use crate::frame::Image;

/// `[camera.tiles]`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Side of a tile, pixels of the camera's picture; the detector sees it at its own size.
    pub size_px: u32,
    /// How far neighbours overlap at least.
    #[serde(default)]
    pub overlap_px: u32,
    /// Width and height of the pictures that inspections are timed with; others are inspected too.
    pub picture_px: [u32; 2],
}

/// How pictures are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// As in [`Config`].
    pub size_px: u32,
    pub overlap_px: u32,
}

impl Config {
    /// Refuses values that cannot be meant. The caller adds file and table to the message.
    pub fn check(&self) -> Result<()> {
        self.layout().check()?;
        let [width, height] = self.picture_px;
        ensure!(
            (1..=MOST_SIDE).contains(&width) && (1..=MOST_SIDE).contains(&height),
            "picture_px = [{width}, {height}]: both must be in 1..={MOST_SIDE}"
        );
        Ok(())
    }

    pub fn layout(&self) -> Layout {
        Layout { size_px: self.size_px, overlap_px: self.overlap_px }
    }
}

impl Layout {
    /// Refuses sizes that cannot be meant.
    pub fn check(&self) -> Result<()> {
        let Layout { size_px, overlap_px } = *self;
        ensure!(
            (LEAST_TILE..=MOST_SIDE).contains(&size_px),
            "size_px = {size_px} is not in {LEAST_TILE}..={MOST_SIDE}"
        );
        ensure!(
            overlap_px <= size_px / 2,
            "overlap_px = {overlap_px} is more than half of size_px = {size_px}; an eighth is usual"
        );
        Ok(())
    }

    /// Tiles of a picture.
    pub fn count(&self, width: u32, height: u32) -> usize {
        self.starts(width).len() * self.starts(height).len()
    }

    /// The tiles of a picture, from left to right and from top to bottom.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn tiles(&self, image: &Image) -> Result<Vec<Image>> {
        let places = self.places(image)?;
        let mut tiles = vec![Image::Gray(GrayImage::new(0, 0)); places.len()];
        for (tile, place) in tiles.iter_mut().zip(places) {
            self.cut(image, place, tile)?;
        }
        Ok(tiles)
    }

    /// Left and top of each tile.
    fn places(&self, image: &Image) -> Result<Vec<[u32; 2]>> {
        let (width, height) = (image.width(), image.height());
        ensure!(width > 0 && height > 0, "a picture of {width} × {height} has no pixels");
        let lefts = self.starts(width);
        let row = |top| lefts.iter().map(move |&left| [left, top]);
        Ok(self.starts(height).into_iter().flat_map(row).collect())
    }

    /// Where tiles begin along a side.
    fn starts(&self, side: u32) -> Vec<u32> {
        let Layout { size_px, overlap_px } = *self;
        let last = side.saturating_sub(size_px);
        let mut starts: Vec<u32> = (0..last).step_by((size_px - overlap_px) as usize).collect();
        starts.push(last);
        starts
    }

    /// Puts the pixels of the tile at `place` into the memory of another.
    fn cut(&self, image: &Image, [left, top]: [u32; 2], tile: &mut Image) -> Result<()> {
        let (width, height) = (self.size_px.min(image.width()), self.size_px.min(image.height()));
        let rows = |samples: &[u8], channels: usize, mut into: Vec<u8>| {
            into.clear();
            let stride = image.width() as usize * channels;
            let columns = left as usize * channels..(left + width) as usize * channels;
            for row in samples.chunks_exact(stride).skip(top as usize).take(height as usize) {
                into.extend_from_slice(&row[columns.clone()]);
            }
            into
        };
        let memory = match std::mem::replace(tile, Image::Gray(GrayImage::new(0, 0))) {
            Image::Gray(gray) => gray.into_raw(),
            Image::Rgb(rgb) => rgb.into_raw(),
        };
        let filled = match image {
            Image::Gray(gray) => {
                GrayImage::from_raw(width, height, rows(gray.as_raw(), 1, memory)).map(Image::Gray)
            }
            Image::Rgb(rgb) => {
                RgbImage::from_raw(width, height, rows(rgb.as_raw(), 3, memory)).map(Image::Rgb)
            }
        };
        *tile = filled.context("a tile reaches beyond its picture")?;
        Ok(())
    }
}

/// How a camera's pictures are cut for a bundle that was `taught` on tiles, or was not.
///
/// # Errors
/// It was taught on other tiles than the camera's, or on tiles where the camera has none: its threshold
/// would mean nothing.
pub fn agreed(taught: Option<Layout>, camera: Option<&Config>) -> Result<Option<Layout>> {
    let own = camera.map(Config::layout);
    match taught {
        Some(taught) if own != Some(taught) => bail!(
            "the bundle was taught on tiles of {taught} (size:overlap), but the camera has {}: set \
             [camera.tiles] size_px = {}, overlap_px = {}, or teach anew",
            own.map_or("no [camera.tiles]".to_owned(), |own| format!("tiles of {own}")),
            taught.size_px,
            taught.overlap_px
        ),
        _ => Ok(own),
    }
}

impl fmt::Display for Layout {
    /// `SIZE:OVERLAP`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.size_px, self.overlap_px)
    }
}

impl FromStr for Layout {
    type Err = anyhow::Error;

    /// `SIZE:OVERLAP`
    fn from_str(text: &str) -> Result<Layout> {
        let sides = text.split_once(':').unwrap_or((text, "0"));
        let pixels = |side: &str| {
            side.parse::<u32>().with_context(|| {
                format!("tiles {text}: must be SIZE:OVERLAP in pixels, such as 512:64")
            })
        };
        let layout = Layout { size_px: pixels(sides.0)?, overlap_px: pixels(sides.1)? };
        layout.check()?;
        Ok(layout)
    }
}

/// Smaller ones than the smallest input of a model would only be blown up.
const LEAST_TILE: u32 = 32;
const MOST_SIDE: u32 = 100_000;

/// Tiles that are cut out and handed on at once.
const BATCH: usize = 8;

/// A detector that sees tiles, behind the face of one that sees pictures.
pub struct Tiles {
    layout: Layout,
    detector: Box<dyn Detector>,
    /// Tiles of the batch; their memory is used again.
    cut: Vec<Image>,
    /// A row of tiles, put together [h, W].
    band: Vec<f32>,
}

impl Tiles {
    /// `layout` is one that [`Layout::check`] passes.
    pub fn new(layout: Layout, detector: Box<dyn Detector>) -> Tiles {
        Tiles { layout, detector, cut: Vec::new(), band: Vec::new() }
    }

    /// `detector` itself where there are no tiles.
    pub fn around(layout: Option<Layout>, detector: Box<dyn Detector>) -> Box<dyn Detector> {
        match layout {
            Some(layout) => Box::new(Tiles::new(layout, detector)),
            None => detector,
        }
    }

    fn inspect(&mut self, image: &Image) -> Result<Detection> {
        let places = self.layout.places(image)?;
        let (width, height) = (image.width(), image.height());
        let (lefts, tops) = (self.layout.starts(width), self.layout.starts(height));
        let size = self.layout.size_px;
        let mut score = f32::NEG_INFINITY;
        let mut whole: Option<Whole> = None;
        for (first, batch) in (0..).step_by(BATCH).zip(places.chunks(BATCH)) {
            self.cut.resize_with(batch.len(), || Image::Gray(GrayImage::new(0, 0)));
            for (tile, &place) in self.cut.iter_mut().zip(batch) {
                self.layout.cut(image, place, tile)?;
            }
            let detections = self.detector.detect(&self.cut.iter().collect::<Vec<_>>())?;
            ensure!(
                detections.len() == batch.len(),
                "the detector answered {} of {} tiles",
                detections.len(),
                batch.len()
            );
            for (i, Detection { score: own, map }) in (first..).zip(detections) {
                // max() would pass over what is not a number.
                score = if own.is_finite() && !score.is_nan() { score.max(own) } else { f32::NAN };
                let whole = match &mut whole {
                    Some(whole) => whole,
                    None => whole.insert(Whole::new(
                        &map,
                        Side::new(&lefts, size.min(width), width, map.width)?,
                        Side::new(&tops, size.min(height), height, map.height)?,
                    )?),
                };
                whole.add(&map, (i % lefts.len(), i / lefts.len()), &mut self.band)?;
            }
        }
        let map = whole.context("a picture without tiles")?.map;
        Ok(Detection { score, map })
    }
}

impl Detector for Tiles {
    /// One picture after the other, each with as many tiles at once as a batch has.
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        ensure!(!images.is_empty(), "a batch needs at least one picture");
        images.iter().map(|image| self.inspect(image)).collect()
    }
}

/// Where the tiles of one side lie in the map.
struct Side {
    /// Places of the whole map.
    length: usize,
    /// The first place of each tile.
    offsets: Vec<usize>,
}

impl Side {
    /// `starts` of tiles `tile` pixels long, along `side` pixels; `places`: those of a tile's map.
    fn new(starts: &[u32], tile: u32, side: u32, places: usize) -> Result<Side> {
        ensure!(places > 0, "the detector's map of a tile has no places");
        let place =
            |pixel: u32| (f64::from(pixel) * places as f64 / f64::from(tile)).round() as usize;
        let length = place(side).max(places);
        let last = length - places;
        let mut offsets: Vec<usize> = starts.iter().map(|&start| place(start).min(last)).collect();
        // The last tile ends with the map, whatever was rounded.
        offsets.pop();
        offsets.push(last);
        Ok(Side { length, offsets })
    }
}

/// A picture's map under way.
struct Whole {
    columns: Side,
    rows: Side,
    tile: (usize, usize),
    map: AnomalyMap,
}

impl Whole {
    fn new(tile: &AnomalyMap, columns: Side, rows: Side) -> Result<Whole> {
        let (width, height) = (columns.length, rows.length);
        let scores = vec![0.0; width * height];
        let map = AnomalyMap { width, height, scores };
        Ok(Whole { columns, rows, tile: (tile.width, tile.height), map })
    }

    /// Lays tile `(x, y)` of the picture, in rows from left to right, over what is there.
    fn add(
        &mut self,
        tile: &AnomalyMap,
        (x, y): (usize, usize),
        band: &mut Vec<f32>,
    ) -> Result<()> {
        let (w, h) = self.tile;
        ensure!(
            (tile.width, tile.height) == (w, h) && tile.scores.len() == w * h,
            "the detector's maps of tiles differ: {} × {} ({} values) after {w} × {h}",
            tile.width,
            tile.height,
            tile.scores.len()
        );
        let width = self.map.width;
        band.resize(width * h, 0.0);
        let (from, covered) = span(&self.columns.offsets, x, w);
        for (band, tile) in band.chunks_exact_mut(width).zip(tile.scores.chunks_exact(w)) {
            lay(&mut band[from..from + w], tile, covered);
        }
        if x + 1 < self.columns.offsets.len() {
            return Ok(());
        }
        let (from, covered) = span(&self.rows.offsets, y, h);
        let rows = self.map.scores[from * width..].chunks_exact_mut(width);
        for (i, (row, band)) in rows.zip(band.chunks_exact(width)).enumerate() {
            let weight = ramp(i, covered);
            for (there, new) in row.iter_mut().zip(band) {
                *there = mix(*there, *new, weight);
            }
        }
        Ok(())
    }
}

/// The first place of tile `i`, and how many of its places those before cover already.
fn span(offsets: &[usize], i: usize, length: usize) -> (usize, usize) {
    let from = offsets[i];
    let covered = if i > 0 { (offsets[i - 1] + length).saturating_sub(from) } else { 0 };
    (from, covered)
}

/// Lays `new` over `there`, of which the first `covered` places hold something.
fn lay(there: &mut [f32], new: &[f32], covered: usize) {
    for (i, (there, new)) in there.iter_mut().zip(new).enumerate() {
        *there = mix(*there, *new, ramp(i, covered));
    }
}

/// The weight of a tile at its place `i`, of which it shares the first `covered`; `None`: it is
/// alone there.
fn ramp(i: usize, covered: usize) -> Option<f32> {
    let t = (i as f64 + 0.5) / covered as f64;
    (i < covered).then(|| (0.5 - 0.5 * (std::f64::consts::PI * t).cos()) as f32)
}

/// Exactly `new` where both are the same, and never beyond the two.
fn mix(there: f32, new: f32, weight: Option<f32>) -> f32 {
    weight.map_or(new, |weight| there + weight * (new - there))
}

#[cfg(test)]
mod tests {
    use image::{Luma, Rgb};
    use proptest::prelude::*;

    use super::*;

    /// Maps of a fixed size, or of the tile's: the level of the pixel in the middle of each place,
    /// plus a number; the score is the largest level.
    struct Levels {
        map: Option<(usize, usize)>,
        plus: f32,
    }

    impl Levels {
        fn boxed(map: Option<(usize, usize)>, plus: f32) -> Box<Levels> {
            Box::new(Levels { map, plus })
        }
    }

    impl Detector for Levels {
        fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
            assert!((1..=BATCH).contains(&images.len()));
            let detection = |image: &&Image| {
                let (w, h) = (image.width() as usize, image.height() as usize);
                let (width, height) = self.map.unwrap_or((w, h));
                let pixels = image.to_rgb();
                let level = |i: usize| {
                    let (x, y) = (i % width, i / width);
                    let (x, y) = ((2 * x + 1) * w / (2 * width), (2 * y + 1) * h / (2 * height));
                    f32::from(pixels.get_pixel(x as u32, y as u32).0[0]) + self.plus
                };
                let scores: Vec<f32> = (0..width * height).map(level).collect();
                let levels = pixels.pixels().map(|pixel| pixel.0[0]);
                let score = levels.max().map_or(0.0, f32::from) + self.plus;
                Detection { score, map: AnomalyMap { width, height, scores } }
            };
            Ok(images.iter().map(detection).collect())
        }
    }

    fn layout(size_px: u32, overlap_px: u32) -> Layout {
        let layout = Layout { size_px, overlap_px };
        layout.check().unwrap();
        layout
    }

    fn detect(layout: Layout, detector: Box<dyn Detector>, image: &Image) -> Detection {
        Tiles::new(layout, detector).detect(&[image]).unwrap().remove(0)
    }

    fn flat(width: u32, height: u32, level: u8) -> Image {
        Image::Gray(GrayImage::from_pixel(width, height, Luma([level])))
    }

    #[test]
    fn tiles_cover_a_side_and_the_last_is_moved_inwards() {
        let layout = layout(100, 20);
        assert_eq!(layout.starts(40), [0]);
        assert_eq!(layout.starts(100), [0]);
        assert_eq!(layout.starts(101), [0, 1]);
        assert_eq!(layout.starts(180), [0, 80]);
        assert_eq!(layout.starts(181), [0, 80, 81]);
        assert_eq!(layout.count(180, 100), 2);
    }

    proptest! {
        /// At the picture's own resolution every pixel comes back exactly, whoever saw it.
        #[test]
        fn what_tiles_agree_on_comes_back_to_the_bit(
            width in 1..190u32,
            height in 1..190u32,
            size in 32..90u32,
            overlap in 0..16u32,
            plus in 0.0..1.0f32,
        ) {
            let picture = GrayImage::from_fn(width, height, |x, y| Luma([(x * 7 + y * 13) as u8]));
            let layout = layout(size, overlap);
            let found = detect(layout, Levels::boxed(None, plus), &Image::Gray(picture.clone()));
            prop_assert_eq!((found.map.width, found.map.height), (width as usize, height as usize));
            for (score, pixel) in found.map.scores.iter().zip(picture.pixels()) {
                prop_assert_eq!(*score, f32::from(pixel.0[0]) + plus);
            }
            let largest = picture.pixels().map(|pixel| pixel.0[0]).max().unwrap();
            prop_assert_eq!(found.score, f32::from(largest) + plus);
        }

        #[test]
        fn a_uniform_detector_shows_no_seam(
            width in 1..300u32,
            height in 1..300u32,
            size in 32..90u32,
            overlap in 0..16u32,
            map in (1..40usize, 1..40usize),
            plus in 0.0..1.0f32,
        ) {
            let layout = layout(size, overlap);
            let found = detect(layout, Levels::boxed(Some(map), plus), &flat(width, height, 3));
            prop_assert!(found.map.scores.iter().all(|&score| score == 3.0 + plus));
            let scale = |side: u32, places: usize| {
                let exact = side as f32 * places as f32 / size.min(side) as f32;
                (exact.round() as usize).max(places)
            };
            prop_assert!(found.map.width.abs_diff(scale(width, map.0)) <= 1);
            prop_assert!(found.map.height.abs_diff(scale(height, map.1)) <= 1);
        }
    }

    #[test]
    fn a_small_defect_survives_wherever_it_lies() {
        // Tiles begin at 0, 48, 96 and 137: seams, corners, the last tile and the picture's edge.
        let layout = layout(64, 16);
        for x in [0, 46, 47, 48, 55, 62, 63, 95, 136, 137, 198] {
            for y in [0, 47, 63, 136, 198] {
                let mut picture = GrayImage::from_pixel(201, 201, Luma([10]));
                for (dx, dy) in (0..3).flat_map(|dx| (0..3).map(move |dy| (dx, dy))) {
                    picture.put_pixel(x + dx, y + dy, Luma([200]));
                }
                let found = detect(layout, Levels::boxed(None, 0.0), &Image::Gray(picture));
                assert_eq!(found.score, 200.0, "{x}, {y}");
                let of = |x: u32, y: u32| found.map.scores[(y * 201 + x) as usize];
                assert_eq!([of(x, y), of(x + 2, y + 2)], [200.0; 2], "{x}, {y}");
            }
        }
    }

    /// Says of each tile how many came before it.
    struct Counts(f32);

    impl Detector for Counts {
        fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
            let next = |image: &&Image| {
                let (width, height) = (image.width() as usize, image.height() as usize);
                let scores = vec![self.0; width * height];
                let detection =
                    Detection { score: self.0, map: AnomalyMap { width, height, scores } };
                self.0 += 1.0;
                detection
            };
            Ok(images.iter().map(next).collect())
        }
    }

    #[test]
    fn where_tiles_differ_one_passes_into_the_other_along_half_a_cosine() {
        let found = detect(layout(32, 8), Box::new(Counts(0.0)), &flat(56, 20, 0));
        assert_eq!((found.map.width, found.map.height, found.score), (56, 20, 1.0));
        let row = &found.map.scores[..56];
        assert!(row[..24].iter().all(|&score| score == 0.0));
        assert!(row[32..].iter().all(|&score| score == 1.0));
        for (i, &score) in row[24..32].iter().enumerate() {
            let expected = 0.5 - 0.5 * (std::f32::consts::PI * (i as f32 + 0.5) / 8.0).cos();
            assert!((score - expected).abs() < 1e-6, "{i}: {score}");
        }
        assert!(found.map.scores.chunks(56).all(|other| other == row));
    }

    #[test]
    fn colour_stays_colour() {
        let picture = Image::Rgb(RgbImage::from_fn(70, 40, |x, y| Rgb([x as u8, y as u8, 9])));
        let tiles = layout(32, 8).tiles(&picture).unwrap();
        assert_eq!(tiles.len(), 6);
        let Image::Rgb(tile) = tiles[5].clone() else { panic!("a tile of a colour picture") };
        assert_eq!(tile, RgbImage::from_fn(32, 32, |x, y| Rgb([x as u8 + 38, y as u8 + 8, 9])));
    }

    /// As [`Levels`], but one tile's score is what is given.
    struct Spoilt {
        score: f32,
        at: usize,
    }

    impl Detector for Spoilt {
        fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
            let mut detections = Levels::boxed(None, 0.0).detect(images)?;
            if let Some(detection) = detections.get_mut(self.at) {
                detection.score = self.score;
            }
            Ok(detections)
        }
    }

    #[test]
    fn one_score_that_is_no_number_spoils_the_picture() {
        for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..4 {
                let found = detect(layout(32, 0), Box::new(Spoilt { score, at }), &flat(64, 64, 5));
                assert!(!found.score.is_finite(), "{score} at {at}: {}", found.score);
            }
        }
    }

    #[test]
    fn a_detector_that_answers_too_little_is_an_error() {
        struct Silent;
        impl Detector for Silent {
            fn detect(&mut self, _images: &[&Image]) -> Result<Vec<Detection>> {
                Ok(Vec::new())
            }
        }
        let mut tiles = Tiles::new(layout(32, 0), Box::new(Silent));
        let error = tiles.detect(&[&flat(64, 64, 0)]).unwrap_err().to_string();
        assert!(error.contains("answered 0 of 4 tiles"), "{error}");
        assert!(tiles.detect(&[]).is_err());
        assert!(tiles.detect(&[&flat(0, 0, 0)]).is_err());
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused_with_key_and_value() {
        for (text, says) in [
            ("size_px = 31\npicture_px = [9, 9]", "size_px = 31"),
            ("size_px = 64\noverlap_px = 33\npicture_px = [9, 9]", "overlap_px = 33"),
            ("size_px = 64\npicture_px = [0, 9]", "picture_px = [0, 9]"),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert_eq!("512:64".parse::<Layout>().unwrap(), layout(512, 64));
        assert_eq!("512".parse::<Layout>().unwrap(), layout(512, 0));
        for (text, says) in [("a:b", "tiles a:b"), ("16:4", "size_px = 16"), ("64:33", "overlap")] {
            let error = text.parse::<Layout>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
