//! The homogeneous source: a normal picture in 64 shuffled pieces (PRN, Zhang et al. 2023; MemSeg,
//! Yang et al. 2023; section 3.4 of `anomaly-generation.md`).

use anyhow::{Result, ensure};
use image::{RgbImage, imageops};
use rand::{Rng, RngExt};

use super::simulated::recolour;

/// Cells from side to side; MemSeg's code and PRN's paper have the same.
const GRID: u32 = 8;

const CELLS: usize = (GRID * GRID) as usize;

/// An anomaly source made of a normal picture, which need not be the one that the anomaly comes on
/// (G-4): PRN's colour augmentation, then the shuffled grid.
///
/// Draws, in this order: 2 of [`Menu::Prn`](super::augment::Menu::Prn); Fisher-Yates, for k from 63
/// down to 1 a j uniform in 0..=k that k changes places with.
///
/// # Errors
/// As [`shuffle_grid`].
pub fn source(normal: &RgbImage, rng: &mut impl Rng) -> Result<RgbImage> {
    let recoloured = recolour(normal, rng);
    shuffle_grid(&recoloured, &permutation(rng))
}

/// The picture cut into 8 by 8 cells; cell k of the result, counted along the rows, is cell `order[k]`.
///
/// # Errors
/// 8 does not divide the picture's sides.
///
/// # Panics
/// `order` names a cell above 63.
pub fn shuffle_grid(picture: &RgbImage, order: &[usize; CELLS]) -> Result<RgbImage> {
    let (width, height) = picture.dimensions();
    ensure!(
        width.is_multiple_of(GRID) && height.is_multiple_of(GRID),
        "a picture of {width}×{height} has no grid of {GRID} by {GRID} equal cells; take sides that \
         are multiples of {GRID}"
    );
    let corner = |cell: u32| (cell % GRID * (width / GRID), cell / GRID * (height / GRID));
    let mut shuffled = RgbImage::new(width, height);
    for (cell, &from) in (0..).zip(order) {
        assert!(from < CELLS, "the grid has {CELLS} cells, no cell {from}");
        let ((x, y), (from_x, from_y)) = (corner(cell), corner(from as u32));
        let piece = imageops::crop_imm(picture, from_x, from_y, width / GRID, height / GRID);
        imageops::replace(&mut shuffled, &*piece, x.into(), y.into());
    }
    Ok(shuffled)
}

fn permutation(rng: &mut impl Rng) -> [usize; CELLS] {
    let mut order = std::array::from_fn(|k| k);
    for k in (1..CELLS).rev() {
        order.swap(k, rng.random_range(0..=k as u32) as usize);
    }
    order
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
        let Some(path) = shared("spec/vectors/grid_shuffle.json") else { return };
        let vector: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let picture = |array: &Value| {
            let levels = serde_json::from_value(array["data"].clone()).unwrap();
            RgbImage::from_vec(16, 16, levels).unwrap()
        };
        let order: Vec<usize> = serde_json::from_value(vector["perm"]["data"].clone()).unwrap();
        let shuffled =
            shuffle_grid(&picture(&vector["input"]), &order.try_into().unwrap()).unwrap();
        assert_eq!(shuffled, picture(&vector["output"]));
    }

    #[test]
    fn every_cell_is_there_once() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..20 {
            let mut order = permutation(&mut rng);
            assert_ne!(order, std::array::from_fn(|k| k));
            order.sort_unstable();
            assert_eq!(order, std::array::from_fn(|k| k));
        }
    }

    #[test]
    fn sides_are_multiples_of_eight() {
        let order = std::array::from_fn(|k| k);
        for (width, height) in [(8, 8), (64, 24)] {
            let picture =
                RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 0]));
            assert_eq!(shuffle_grid(&picture, &order).unwrap(), picture);
        }
        for (width, height) in [(20, 16), (16, 20)] {
            let error = shuffle_grid(&RgbImage::new(width, height), &order).unwrap_err();
            assert!(error.to_string().contains("multiples of 8"), "{error}");
        }
    }

    #[test]
    fn draws_are_pinned() {
        let mut rng = SampleKey { seed: 7, epoch: 1, index: 2 }.rng(Tag::Source);
        assert_eq!(permutation(&mut rng)[..8], [57, 23, 52, 32, 35, 41, 13, 51]);
    }
}
