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
