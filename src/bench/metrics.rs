//! The pixel figures of a test set, every pixel ranked, on made-up maps or on what a file holds.
//! Letters: M maps, P pixels of one.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::{Rng, RngExt};

use super::nets::SIDE;
use super::search;
use crate::metrics::pixels::{PixelFigures, PixelScores};
use crate::nn::weights::Weights;

/// As many maps as the largest category of MVTec AD has test pictures: 11 million pixels.
pub const MAPS: usize = 168;

/// Side of the anomalous square on two of three made-up maps.
const DEFECT: usize = 40;

/// Square maps and where they are anomalous.
pub struct Maps {
    side: usize,
    maps: Vec<(Vec<f32>, Vec<bool>)>,
}

impl Maps {
    /// Of 256 × 256, scores between 0 and a few, no two alike if it can be helped.
    pub fn random(count: usize, rng: &mut impl Rng) -> Maps {
        let one = |i: usize| {
            let mut mask = vec![false; SIDE * SIDE];
            if !i.is_multiple_of(3) {
                let corner = |rng: &mut dyn Rng| rng.random_range(0..SIDE - DEFECT);
                let (left, top) = (corner(rng), corner(rng));
                for row in mask.chunks_exact_mut(SIDE).skip(top).take(DEFECT) {
                    row[left..left + DEFECT].fill(true);
                }
            }
            let mut score = |&anomalous: &bool| {
                let (a, b): (f32, f32) = (rng.random_range(1e-6..1.0), rng.random_range(0.5..1.5));
                (-a.ln()).sqrt() * b * if anomalous { 1.8 } else { 1.0 }
            };
            (mask.iter().map(&mut score).collect(), mask)
        };
        Maps { side: SIDE, maps: (0..count).map(one).collect() }
    }

    /// The tensors `scores` [M, P] and `masks` [M, P], 0 or 1, of a safetensors file; maps are square.
    pub fn open(path: &Path) -> Result<Maps> {
        let weights = Weights::open(path)?;
        let (scores, pixels) = search::rows(&weights, "scores")?;
        let (masks, of_mask) = search::rows(&weights, "masks")?;
        let side = pixels.isqrt();
        ensure!(
            side > 0 && side * side == pixels && of_mask == pixels && masks.len() == scores.len(),
            "{}: scores and masks must be as many square maps, and have {pixels} and {of_mask} \
             pixels",
            path.display()
        );
        let map = |(scores, masks): (&[f32], &[f32])| {
            (scores.to_vec(), masks.iter().map(|&mask| mask > 0.5).collect())
        };
        let maps = scores.chunks_exact(pixels).zip(masks.chunks_exact(pixels)).map(map).collect();
        Ok(Maps { side, maps })
    }

    /// M.
    pub fn len(&self) -> usize {
        self.maps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// P.
    pub fn pixels(&self) -> usize {
        self.side * self.side
    }

    /// All figures, regions and curves included.
    pub fn figures(&self) -> Result<PixelFigures> {
        let mut scores = PixelScores::default();
        for (i, (map, mask)) in self.maps.iter().enumerate() {
            scores.add(map, mask, self.side).with_context(|| format!("map {i}"))?;
        }
        Ok(scores.finish())
    }
}
