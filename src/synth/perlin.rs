//! Perlin noise and the masks that are cut from it: DRAEM (Zavrtanik et al. 2021, `perlin.py`), as
//! section 1 of `anomaly-generation.md` states it.
//!
//! `[R, C]` cells of the lattice, `[R + 1, C + 1]` gradients; `[H, W]` pixels. DRAEM wants R to divide
//! H and C to divide W; here a cell may end between pixels.

use std::f32::consts::{SQRT_2, TAU};

use rand::{Rng, RngExt};

use super::affine::Affine;
use crate::dataset::mask::Mask;

/// Where the noise is above, the mask is: DRAEM's.
const THRESHOLD: f32 = 0.5;

/// How often an empty mask is drawn anew before it is taken as it is (G-1).
const RETRIES: u32 = 10;

/// The gradients that noise is made of, by their angles.
#[derive(Clone, Debug, PartialEq)]
pub struct Lattice {
    /// Cells from the top to the bottom.
    pub rows: usize,
    /// Cells from the left to the right.
    pub columns: usize,
    /// In radians, 0 points down and a quarter turn to the right; `[rows + 1, columns + 1]`.
    pub angles: Vec<f32>,
}

impl Lattice {
    /// Draws, in this order: a then b, uniform in 0..=5, for 2^a rows and 2^b columns; the angles,
    /// uniform in a full turn, rows from the top.
    pub fn draw(rng: &mut impl Rng) -> Lattice {
        let rows = 1 << rng.random_range(0..=5_u32);
        let columns = 1 << rng.random_range(0..=5_u32);
        let angles = (0..(rows + 1) * (columns + 1)).map(|_| rng.random_range(0.0..TAU)).collect();
        Lattice { rows, columns, angles }
    }
}

/// Noise of about -1 to 1, `[height, width]`.
///
/// # Panics
/// The lattice has not an angle for each corner of its cells.
pub fn noise(lattice: &Lattice, width: usize, height: usize) -> Vec<f32> {
    let Lattice { rows, columns, ref angles } = *lattice;
    assert_eq!(angles.len(), (rows + 1) * (columns + 1), "each corner of a cell has an angle");
    let gradients: Vec<(f32, f32)> =
        angles.iter().map(|angle| (angle.cos(), angle.sin())).collect(); // [R + 1, C + 1]
    let across: Vec<Place> = (0..width).map(|x| Place::of(x, width, columns)).collect();
    let mut noise = Vec::with_capacity(height * width);
    for y in 0..height {
        let down = Place::of(y, height, rows);
        let above = &gradients[down.cell * (columns + 1)..][..columns + 1];
        let below = &gradients[(down.cell + 1) * (columns + 1)..][..columns + 1];
        noise.extend(across.iter().map(|at| {
            // One corner's gradient times the way from it to the pixel.
            let corner = |gradients: &[(f32, f32)], p: usize, q: usize| {
                let (along_rows, along_columns) = gradients[at.cell + q];
                along_rows * (down.offset - p as f32) + along_columns * (at.offset - q as f32)
            };
            let left = mix(corner(above, 0, 0), corner(below, 1, 0), down.fade);
            let right = mix(corner(above, 0, 1), corner(below, 1, 1), down.fade);
            SQRT_2 * mix(left, right, at.fade)
        }));
    }
    noise
}

/// A mask of noise that is turned about the picture's centre; drawn anew up to ten times while it is
/// empty, and then empty.
///
/// Draws for each try: the [`Lattice`]; the angle, uniform in -90..90 degrees.
pub fn mask(rng: &mut impl Rng, width: usize, height: usize) -> Mask {
    let middle = ((width as f64 - 1.0) / 2.0, (height as f64 - 1.0) / 2.0);
    let mut mask = Mask::empty(width, height);
    for _ in 0..=RETRIES {
        let lattice = Lattice::draw(rng);
        let degrees = rng.random_range(-90.0..=90.0_f64);
        let turn = Affine::rotation(degrees).about(middle);
        let noise = turn.warp_plane(&noise(&lattice, width, height), width);
        mask.inside = above(&noise);
        if mask.inside.contains(&true) {
            break;
        }
    }
    mask
}

fn above(noise: &[f32]) -> Vec<bool> {
    noise.iter().map(|&level| level > THRESHOLD).collect()
}

/// Where a row or a column of pixels lies in the lattice.
struct Place {
    cell: usize,
    /// From the cell's beginning, in cells: 0 to 1, without 1.
    offset: f32,
    /// How much of the cell's end: 6z⁵ - 15z⁴ + 10z³.
    fade: f32,
}

impl Place {
    fn of(pixel: usize, pixels: usize, cells: usize) -> Place {
        let (cell, rest) = (pixel * cells / pixels, pixel * cells % pixels);
        let z = rest as f32 / pixels as f32;
        Place { cell, offset: z, fade: z * z * z * (z * (z * 6.0 - 15.0) + 10.0) }
    }
}

fn mix(from: f32, to: f32, share: f32) -> f32 {
    from + share * (to - from)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use serde_json::Value;

    use super::*;
    use crate::shared::shared;
    use crate::synth::{SampleKey, Tag};

    #[test]
    fn agrees_with_the_vector() {
        let Some(path) = shared("spec/vectors/perlin.json") else { return };
        let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let tolerance = vector["tolerance"]["abs"].as_f64().unwrap() as f32;
        let numbers =
            |array: &Value| -> Vec<f32> { serde_json::from_value(array["data"].clone()).unwrap() };
        let cases = vector["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let [height, width]: [usize; 2] =
                serde_json::from_value(case["shape"].clone()).unwrap();
            let [rows, columns]: [usize; 2] = serde_json::from_value(case["res"].clone()).unwrap();
            let lattice = Lattice { rows, columns, angles: numbers(&case["angles"]) };
            let noise = noise(&lattice, width, height);
            let want = numbers(&case["noise"]);
            assert_eq!(noise.len(), want.len());
            for (got, want) in noise.iter().zip(want) {
                assert!((got - want).abs() <= tolerance, "{got}, not {want}");
            }
            let mask: Vec<bool> = numbers(&case["mask_gt_0.5"]).iter().map(|&m| m == 1.0).collect();
            assert_eq!(above(&noise), mask);
        }
    }

    /// The definition, pixel by pixel.
    fn plain(lattice: &Lattice, x: usize, y: usize, width: usize, height: usize) -> f64 {
        let u = (y * lattice.rows) as f64 / height as f64;
        let v = (x * lattice.columns) as f64 / width as f64;
        let fade = |z: f64| 6.0 * z.powi(5) - 15.0 * z.powi(4) + 10.0 * z.powi(3);
        let (s, t) = (u - u.floor(), v - v.floor());
        let mut sum = 0.0;
        for (p, q) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let (i, j) = (u as usize + p, v as usize + q);
            let angle = f64::from(lattice.angles[i * (lattice.columns + 1) + j]);
            let (p, q) = (p as f64, q as f64);
            let value = angle.cos() * (s - p) + angle.sin() * (t - q);
            sum += value * (1.0 - (p - fade(s)).abs()) * (1.0 - (q - fade(t)).abs());
        }
        sum * 2_f64.sqrt()
    }

    #[test]
    fn cells_need_not_end_between_pixels() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for (width, height) in [(1, 1), (31, 33), (64, 7), (5, 100)] {
            let lattice = Lattice::draw(&mut rng);
            let noise = noise(&lattice, width, height);
            assert_eq!(noise.len(), width * height);
            for (at, &got) in noise.iter().enumerate() {
                let want = plain(&lattice, at % width, at / width, width, height);
                // Offsets of f32 below 1, four products of them.
                assert!((f64::from(got) - want).abs() < 2e-6, "pixel {at}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn draws_are_pinned() {
        let mut rng = SampleKey { seed: 7, epoch: 1, index: 2 }.rng(Tag::Mask);
        let lattice = Lattice::draw(&mut rng);
        let degrees: f64 = rng.random_range(-90.0..=90.0);
        let mask = mask(&mut SampleKey { seed: 7, epoch: 1, index: 2 }.rng(Tag::Mask), 64, 64);
        let pinned = (lattice.rows, lattice.columns, lattice.angles[0], degrees, mask.area());
        assert_eq!(pinned, (8, 2, 0.278_379_32, -47.770_573_427_862_12, 3));
    }

    #[test]
    fn masks_are_seldom_empty_and_never_most_of_the_picture() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let masks: Vec<usize> = (0..200).map(|_| mask(&mut rng, 64, 48).area()).collect();
        assert!(masks.iter().filter(|&&area| area == 0).count() <= 2, "{masks:?}");
        assert!(masks.iter().all(|&area| area < 64 * 48 / 2), "{masks:?}");
        let mean = masks.iter().sum::<usize>() as f64 / (200 * 64 * 48) as f64;
        assert!((0.03..0.2).contains(&mean), "{mean}");
    }

    #[test]
    fn an_empty_mask_is_drawn_anew_ten_times() {
        // One pixel lies on a corner of the lattice, where the noise is 0.
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(mask(&mut rng, 1, 1), Mask::empty(1, 1));
        let mut same = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..11 {
            Lattice::draw(&mut same);
            same.random_range(-90.0..=90.0_f64);
        }
        assert_eq!(rng, same);
    }
}
