//! Turning, shearing and shifting: Pillow's bilinear `Image.rotate`, and affine maps in general for
//! pictures, masks and planes of numbers.
//!
//! Sources: `anomaly-generation.md` (sections 1, 3.2, 4 and 7) and `destseg.md` (section 4) of the
//! specification; Pillow's documented behaviour.
//!
//! Points are (x, y), x to the right, y down, pixel centres on whole numbers, so that the middle of a
//! picture is ((W − 1)/2, (H − 1)/2). A positive angle of an [`Affine`] turns clockwise on the screen
//! (as imgaug's), one of [`rotate`] counter-clockwise (as Pillow's).

use image::{Rgb, RgbImage, imageops};

use crate::dataset::mask::Mask;

/// Pillow's `rotate(degrees, BILINEAR, fillcolor=fill)`: about the middle, counter-clockwise, same size.
///
/// Multiples of 90° move pixels (90° and 270° of a picture that is not square do interpolate, as in
/// Pillow). A pixel whose source lies outside is `fill`, one at the rim is not blended with it, and
/// fractions of levels are cut off.
pub fn rotate(picture: &RgbImage, degrees: f64, fill: [u8; 3]) -> RgbImage {
    let (width, height) = picture.dimensions();
    if let Some(turned) = quarter_turned(picture, degrees)
        && turned.dimensions() == (width, height)
    {
        return turned;
    }
    let to_source = pillows_rotation(degrees, (width, height), (width, height));
    RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = to_source.apply((f64::from(x) + 0.5, f64::from(y) + 0.5));
        if !(0.0..f64::from(width)).contains(&u) || !(0.0..f64::from(height)).contains(&v) {
            return Rgb(fill);
        }
        Rgb(inside_bilinear(picture, u - 0.5, v - 0.5).map(|level| level as u8))
    })
}

/// The picture turned counter-clockwise about its middle on a canvas large enough for all of it
/// (Pillow's `expand=True`), and how much of each pixel of the canvas it covers, 0 to 1, rows from
/// the top.
///
/// Colours at the rim are the picture's own, not mixed with what is outside: the cover says how
/// strongly to paste them.
pub fn rotate_expanded(picture: &RgbImage, degrees: f64) -> (RgbImage, Vec<f32>) {
    if let Some(turned) = quarter_turned(picture, degrees) {
        let cover = vec![1.0; turned.pixels().len()];
        return (turned, cover);
    }
    let (width, height) = picture.dimensions();
    let canvas = expanded(degrees, (width, height));
    let to_source = pillows_rotation(degrees, (width, height), canvas);
    let mut cover = Vec::with_capacity(canvas.0 as usize * canvas.1 as usize);
    let mut turned = RgbImage::new(canvas.0, canvas.1);
    for (x, y, pixel) in turned.enumerate_pixels_mut() {
        let (u, v) = to_source.apply((f64::from(x) + 0.5, f64::from(y) + 0.5));
        let (u, v) = (u - 0.5, v - 0.5);
        *pixel = Rgb(inside_bilinear(picture, u, v).map(round));
        let within = |at: f64, side: u32| (at + 1.0).min(f64::from(side) - at).clamp(0.0, 1.0);
        cover.push((within(u, width) * within(v, height)) as f32);
    }
    (turned, cover)
}

/// (x, y) becomes (a·x + b·y + c, d·x + e·y + f).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// [[a, b, c], [d, e, f]]
    rows: [[f64; 3]; 2],
}

impl Affine {
    pub const IDENTITY: Affine = Affine { rows: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] };

    /// Clockwise on the screen, about the origin.
    pub fn rotation(degrees: f64) -> Affine {
        let (sin, cos) = degrees.to_radians().sin_cos();
        Affine { rows: [[cos, -sin, 0.0], [sin, cos, 0.0]] }
    }

    /// Columns lean by `x_degrees`, rows by `y_degrees`, both at once; the origin stays.
    pub fn shear(x_degrees: f64, y_degrees: f64) -> Affine {
        let (along_x, along_y) = (x_degrees.to_radians().tan(), y_degrees.to_radians().tan());
        Affine { rows: [[1.0, along_x, 0.0], [along_y, 1.0, 0.0]] }
    }

    pub fn translation(x: f64, y: f64) -> Affine {
        Affine { rows: [[1.0, 0.0, x], [0.0, 1.0, y]] }
    }

    /// First this map, then `next`.
    pub fn then(&self, next: &Affine) -> Affine {
        let [first, second] = self.rows;
        Affine {
            rows: next.rows.map(|[by_x, by_y, constant]| {
                let mut row = [0, 1, 2].map(|k| by_x * first[k] + by_y * second[k]);
                row[2] += constant;
                row
            }),
        }
    }

    /// The same map with `centre` in the place of the origin.
    pub fn about(&self, centre: (f64, f64)) -> Affine {
        Affine::translation(-centre.0, -centre.1)
            .then(self)
            .then(&Affine::translation(centre.0, centre.1))
    }

    pub fn apply(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let [u, v] = self.rows.map(|[by_x, by_y, constant]| by_x * x + by_y * y + constant);
        (u, v)
    }

    /// The way back; `None` for a map that flattens the plane to a line or point.
    pub fn inverse(&self) -> Option<Affine> {
        let [[a, b, c], [d, e, f]] = self.rows;
        let determinant = a * e - b * d;
        // Zero, or so little that the inverse would not be finite.
        if !(1.0 / determinant).is_finite() {
            return None;
        }
        let [a, b, d, e] = [e, -b, -d, a].map(|cofactor| cofactor / determinant);
        Some(Affine { rows: [[a, b, -(a * c + b * f)], [d, e, -(d * c + e * f)]] })
    }

    /// The picture moved by this map, same size: bilinear, outside black, rounded to whole levels.
    pub fn warp_rgb(&self, picture: &RgbImage) -> RgbImage {
        let (width, height) = picture.dimensions();
        let samples = picture.as_raw();
        let mut warped = RgbImage::new(width, height);
        let (width, height) = (width as usize, height as usize);
        let pixels: &mut [u8] = &mut warped;
        self.each_source(width, height, |at, u, v| {
            let mut sums = [0.0; 3];
            for (place, weight) in corners(u, v, width, height) {
                for (sum, &level) in sums.iter_mut().zip(&samples[3 * place..]) {
                    *sum += weight * f64::from(level);
                }
            }
            pixels[3 * at..3 * at + 3].copy_from_slice(&sums.map(round));
        });
        warped
    }

    /// The mask moved by this map, same size: the nearest place counts, outside is not anomalous.
    pub fn warp_mask(&self, mask: &Mask) -> Mask {
        let (width, height) = (mask.width, mask.height);
        let mut warped = Mask::empty(width, height);
        self.each_source(width, height, |at, u, v| {
            let (x, y) = (below(u + 0.5), below(v + 0.5));
            if x >= 0 && y >= 0 && x < width as i64 && y < height as i64 {
                warped.inside[at] = mask.inside[y as usize * width + x as usize];
            }
        });
        warped
    }

    /// `width` numbers a row, moved by this map, same size: bilinear, outside 0.
    ///
    /// # Panics
    /// If `plane` is not a whole number of rows.
    pub fn warp_plane(&self, plane: &[f32], width: usize) -> Vec<f32> {
        let mut warped = vec![0.0; plane.len()];
        if plane.is_empty() {
            return warped;
        }
        assert!(plane.len().is_multiple_of(width), "{} numbers in rows of {width}", plane.len());
        let height = plane.len() / width;
        self.each_source(width, height, |at, u, v| {
            let corners = corners(u, v, width, height);
            let sum: f64 =
                corners.iter().map(|&(place, weight)| weight * f64::from(plane[place])).sum();
            warped[at] = sum as f32;
        });
        warped
    }

    /// For each place of the moved picture, rows from the top: which it is and where it comes from.
    fn each_source(&self, width: usize, height: usize, mut each: impl FnMut(usize, f64, f64)) {
        // A map without a way back leaves nothing that has an area.
        let Some(back) = self.inverse() else { return };
        for y in 0..height {
            for x in 0..width {
                let (u, v) = back.apply((x as f64, y as f64));
                each(y * width + x, u, v);
            }
        }
    }
}

/// The picture turned counter-clockwise, without interpolation, where `degrees` is a multiple of 90.
fn quarter_turned(picture: &RgbImage, degrees: f64) -> Option<RgbImage> {
    // The crate turns clockwise.
    match degrees.rem_euclid(360.0) {
        0.0 => Some(picture.clone()),
        90.0 => Some(imageops::rotate270(picture)),
        180.0 => Some(imageops::rotate180(picture)),
        270.0 => Some(imageops::rotate90(picture)),
        _ => None,
    }
}

/// From the pixels of a turned picture to those of the picture, both counted from the corner of the
/// canvas (pixel centres on halves), with Pillow's rounding of sine and cosine.
fn pillows_rotation(degrees: f64, from: (u32, u32), to: (u32, u32)) -> Affine {
    let rounded = |value: f64| (value * 1e15).round() / 1e15;
    let (sin, cos) = (-degrees.to_radians()).sin_cos();
    let (sin, cos) = (rounded(sin), rounded(cos));
    let turn = Affine { rows: [[cos, sin, 0.0], [-sin, cos, 0.0]] };
    let [width, height] = [from.0, from.1].map(f64::from);
    let shift = turn.apply((-width / 2.0, -height / 2.0));
    let centred = turn.then(&Affine::translation(shift.0 + width / 2.0, shift.1 + height / 2.0));
    let grown = [f64::from(to.0) - width, f64::from(to.1) - height];
    let corner = centred.apply((-grown[0] / 2.0, -grown[1] / 2.0));
    turn.then(&Affine::translation(corner.0, corner.1))
}

/// The canvas that holds all of a picture of size `from` turned by `degrees`.
fn expanded(degrees: f64, from: (u32, u32)) -> (u32, u32) {
    let map = pillows_rotation(degrees, from, from);
    let (width, height) = (f64::from(from.0), f64::from(from.1));
    let corners = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)].map(|c| map.apply(c));
    let span = |places: [f64; 4]| {
        let most = places.iter().copied().fold(f64::MIN, f64::max).ceil();
        let least = places.iter().copied().fold(f64::MAX, f64::min).floor();
        (most - least) as u32
    };
    (span(corners.map(|corner| corner.0)), span(corners.map(|corner| corner.1)))
}

/// The levels at a point, what lies outside as at the nearest rim.
fn inside_bilinear(picture: &RgbImage, u: f64, v: f64) -> [f64; 3] {
    let (x, y) = (below(u) as f64, below(v) as f64);
    let (dx, dy) = (u - x, v - y);
    let columns = [x, x + 1.0].map(|x| x.clamp(0.0, f64::from(picture.width() - 1)) as u32);
    let rows = [y, y + 1.0].map(|y| y.clamp(0.0, f64::from(picture.height() - 1)) as u32);
    let pixels = rows.map(|y| columns.map(|x| picture.get_pixel(x, y).0.map(f64::from)));
    // In Pillow's order of operations, to the last bit: what is left of it is cut off.
    std::array::from_fn(|channel| {
        let [upper, lower] =
            pixels.map(|[left, right]| left[channel] + (right[channel] - left[channel]) * dx);
        upper + (lower - upper) * dy
    })
}

/// The four places around a point and their weights; one that is not in the picture weighs nothing.
fn corners(u: f64, v: f64, width: usize, height: usize) -> [(usize, f64); 4] {
    let (x, y) = (below(u), below(v));
    let (dx, dy) = (u - x as f64, v - y as f64);
    let weights = [(1.0 - dx) * (1.0 - dy), dx * (1.0 - dy), (1.0 - dx) * dy, dx * dy];
    let (right, bottom) = (width as i64 - 1, height as i64 - 1);
    if x >= 0 && y >= 0 && x < right && y < bottom {
        let first = y as usize * width + x as usize;
        let places = [first, first + 1, first + width, first + width + 1];
        return std::array::from_fn(|i| (places[i], weights[i]));
    }
    let around = [(x, y), (x.saturating_add(1), y), (x, y.saturating_add(1))];
    let around = [around[0], around[1], around[2], (around[1].0, around[2].1)];
    std::array::from_fn(|i| {
        let (x, y) = around[i];
        let inside = (0..=right).contains(&x) && (0..=bottom).contains(&y);
        if inside { (y as usize * width + x as usize, weights[i]) } else { (0, 0.0) }
    })
}

/// The whole number at or below: `floor` is a call of the mathematics library where the compiler may
/// not count on SSE4.1.
fn below(value: f64) -> i64 {
    let cut = value as i64;
    cut - i64::from(value < cut as f64)
}

fn round(level: f64) -> u8 {
    (level + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([1, 2, 3]
                .map(|c: u32| ((x * 131 + y * 7 + c).wrapping_mul(2_654_435_761) >> 21) as u8))
        })
    }

    fn mask(width: usize, height: usize) -> Mask {
        let inside = (0..width * height).map(|k| (k * 7 + k / width).is_multiple_of(3)).collect();
        Mask { width, height, inside }
    }

    fn middle(width: u32, height: u32) -> (f64, f64) {
        ((f64::from(width) - 1.0) / 2.0, (f64::from(height) - 1.0) / 2.0)
    }

    #[test]
    fn rotate_is_pillows_to_the_bit() {
        let Some(path) = shared("spec/vectors/pil_rotate.json") else { return };
        let vector: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let pixels =
            |value: &Value| -> Vec<u8> { serde_json::from_value(value["data"].clone()).unwrap() };
        let input = RgbImage::from_raw(16, 16, pixels(&vector["input"])).unwrap();
        let cases = vector["expected"].as_object().unwrap();
        assert_eq!(cases.len(), 7);
        for (degrees, expected) in cases {
            let got = rotate(&input, degrees.parse().unwrap(), [114; 3]);
            assert!(got.into_raw() == pixels(expected), "{degrees}°");
        }
    }

    #[test]
    fn a_canvas_is_as_large_as_pillows() {
        /* Image.new("L", (w, h)).rotate(a, expand=True).size */
        for (width, height, degrees, want) in [
            (12, 5, 0.0, (12, 5)),
            (12, 5, 90.0, (5, 12)),
            (12, 5, 45.0, (14, 13)),
            (12, 5, -30.0, (14, 11)),
            (9, 20, 17.5, (15, 22)),
            (1, 1, 10.0, (3, 3)),
        ] {
            let (turned, cover) = rotate_expanded(&picture(width, height), degrees);
            assert_eq!(turned.dimensions(), want, "{width}×{height} {degrees}°");
            assert_eq!(cover.len(), (want.0 * want.1) as usize);
            let area: f32 = cover.iter().sum();
            // The rim fades over a pixel, in the middle of which the picture ends.
            let (inner, outer) = ((width - 1) * (height - 1), (width + 1) * (height + 1));
            assert!((inner as f32..=outer as f32).contains(&area), "{area}");
        }
    }

    #[test]
    fn a_canvas_for_no_turn_is_the_picture_and_fully_covered() {
        let (turned, cover) = rotate_expanded(&picture(7, 4), 0.0);
        assert_eq!(turned, picture(7, 4));
        assert!(cover.iter().all(|&part| part == 1.0));
    }

    #[test]
    fn a_turned_patch_keeps_its_colour_to_the_rim() {
        let patch = RgbImage::from_pixel(20, 9, Rgb([200, 10, 90]));
        let (turned, cover) = rotate_expanded(&patch, 33.0);
        for (pixel, part) in turned.pixels().zip(cover) {
            assert!((0.0..=1.0).contains(&part));
            assert_eq!(pixel.0, [200, 10, 90]);
        }
    }

    #[test]
    fn identity_changes_nothing() {
        for (width, height) in [(1, 1), (8, 8), (31, 5)] {
            let (rgb, truth) = (picture(width, height), mask(width as usize, height as usize));
            let plane: Vec<f32> = (0..width * height).map(|k| (k as f32).sin()).collect();
            assert_eq!(Affine::IDENTITY.warp_rgb(&rgb), rgb);
            assert_eq!(Affine::IDENTITY.warp_mask(&truth), truth);
            assert_eq!(Affine::IDENTITY.warp_plane(&plane, width as usize), plane);
        }
    }

    #[test]
    fn a_quarter_turn_is_clockwise_for_pictures_masks_and_planes() {
        let turn = Affine::rotation(90.0).about(middle(9, 9));
        assert_eq!(turn.warp_rgb(&picture(9, 9)), imageops::rotate90(&picture(9, 9)));
        let truth = mask(9, 9);
        let turned: Vec<bool> = (0..81).map(|k| truth.inside[(8 - k % 9) * 9 + k / 9]).collect();
        assert_eq!(turn.warp_mask(&truth).inside, turned);
        let plane: Vec<f32> = truth.inside.iter().map(|&inside| f32::from(inside)).collect();
        for (value, inside) in turn.warp_plane(&plane, 9).into_iter().zip(turned) {
            assert!((value - f32::from(inside)).abs() < 1e-6);
        }
    }

    #[test]
    fn half_a_pixel_is_the_mean_of_two_and_outside_is_nothing() {
        let shift = Affine::translation(0.5, 0.0);
        assert_eq!(
            shift.warp_plane(&[2.0, 4.0, 8.0, 1.0, 0.0, 6.0], 3),
            [1.0, 3.0, 6.0, 0.5, 0.5, 3.0]
        );
        let rgb = RgbImage::from_raw(2, 1, vec![10, 20, 30, 20, 30, 250]).unwrap();
        assert_eq!(shift.warp_rgb(&rgb).into_raw(), [5, 10, 15, 15, 25, 140]);
        let far = Affine::translation(0.0, -40.0);
        assert!(far.warp_rgb(&picture(6, 6)).iter().all(|&level| level == 0));
        assert_eq!(far.warp_mask(&mask(6, 6)), Mask::empty(6, 6));
    }

    #[test]
    fn maps_follow_one_another_and_lead_back() {
        let map = Affine::rotation(40.0)
            .then(&Affine::shear(15.0, -10.0))
            .about((3.0, 9.0))
            .then(&Affine::translation(-2.0, 0.5));
        let steps = |(x, y): (f64, f64)| {
            let (x, y) = Affine::rotation(40.0).apply((x - 3.0, y - 9.0));
            let (x, y) = Affine::shear(15.0, -10.0).apply((x, y));
            (x + 3.0 - 2.0, y + 9.0 + 0.5)
        };
        let back = map.inverse().unwrap();
        for point in [(0.0, 0.0), (3.0, 9.0), (-7.5, 100.0)] {
            let (there, want) = (map.apply(point), steps(point));
            assert!((there.0 - want.0).hypot(there.1 - want.1) < 1e-9);
            let home = back.apply(there);
            assert!((home.0 - point.0).hypot(home.1 - point.1) < 1e-9);
        }
        assert_eq!(map.apply((3.0, 9.0)), (1.0, 9.5));
    }

    #[test]
    fn a_map_that_flattens_shows_nothing() {
        let flat = Affine { rows: [[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]] };
        assert_eq!(flat.inverse(), None);
        assert_eq!(flat.warp_mask(&mask(5, 5)), Mask::empty(5, 5));
        assert!(flat.warp_rgb(&picture(5, 5)).iter().all(|&level| level == 0));
    }
}
