//! The pixels of each picture, counted once into bins that all pictures share.

use std::collections::HashSet;

use rayon::prelude::*;

use super::super::regions::{PictureEnd, Pixels, RegionPixel};
use super::super::steps::{Gain, Step};
use super::{BINS, PICKED};

/// Bins, descending: bin 0 has the highest scores.
pub(super) struct Binned {
    bins: usize,
    pictures: Vec<Picture>,
}

struct Picture {
    regions: u64,
    /// (bin, pixels)
    normal: Vec<(u32, u32)>,
    /// (bin, pixels, what the regions gain)
    anomalous: Vec<(u32, u32, u64)>,
}

impl Binned {
    pub fn new(pixels: &Pixels) -> Binned {
        let edges = edges(pixels);
        let starts = std::iter::once(PictureEnd::default()).chain(pixels.pictures.iter().copied());
        let spans: Vec<(PictureEnd, PictureEnd)> =
            starts.zip(pixels.pictures.iter().copied()).collect();
        let pictures = spans
            .par_iter()
            .map(|(from, to)| Picture {
                regions: (to.regions - from.regions) as u64,
                normal: normal(&pixels.normal[from.normal..to.normal], &edges),
                anomalous: anomalous(
                    &pixels.anomalous[from.anomalous..to.anomalous],
                    &pixels.sizes,
                    &edges,
                ),
            })
            .collect();
        Binned { bins: edges.len(), pictures }
    }

    pub fn pictures(&self) -> usize {
        self.pictures.len()
    }

    /// What the pictures are, each taken so many times, and how many regions they have.
    pub fn steps(&self, weights: &[u32]) -> (Vec<Step>, u64) {
        let mut steps = vec![Step::default(); self.bins];
        let mut regions = 0;
        for (picture, &weight) in self.pictures.iter().zip(weights) {
            if weight == 0 {
                continue;
            }
            let weight = u64::from(weight);
            regions += weight * picture.regions;
            for &(bin, count) in &picture.normal {
                steps[bin as usize].negatives += weight * u64::from(count);
            }
            for &(bin, count, gained) in &picture.anomalous {
                let step = &mut steps[bin as usize];
                step.positives += weight * u64::from(count);
                step.overlap += weight * gained;
            }
        }
        (steps, regions)
    }
}

/// The lowest key of each bin, descending; the last takes whatever is lower.
fn edges(pixels: &Pixels) -> Vec<u32> {
    let anomalous = || pixels.anomalous.iter().map(|pixel| pixel.key);
    let mut distinct = HashSet::new();
    for key in anomalous().chain(pixels.normal.iter().copied()) {
        distinct.insert(key);
        if distinct.len() > BINS {
            break;
        }
    }
    let mut edges: Vec<u32> = if distinct.len() <= BINS {
        distinct.into_iter().collect()
    } else {
        let of_class =
            |keys: Vec<u32>| (0..BINS / 2).map(move |i| keys[i * keys.len() / (BINS / 2)]);
        of_class(picked(anomalous(), pixels.anomalous.len()))
            .chain(of_class(picked(pixels.normal.iter().copied(), pixels.normal.len())))
            .collect()
    };
    edges.sort_unstable_by(|a, b| b.cmp(a));
    edges.dedup();
    edges
}

/// Evenly over the pictures, ascending.
fn picked(keys: impl Iterator<Item = u32>, count: usize) -> Vec<u32> {
    let mut picked: Vec<u32> = keys.step_by(count.div_ceil(PICKED).max(1)).collect();
    picked.sort_unstable();
    picked
}

fn bin_of(key: u32, edges: &[u32]) -> u32 {
    let above = edges.partition_point(|&edge| edge > key);
    above.min(edges.len() - 1) as u32
}

fn normal(keys: &[u32], edges: &[u32]) -> Vec<(u32, u32)> {
    let mut counts = vec![0_u32; edges.len()];
    for &key in keys {
        counts[bin_of(key, edges) as usize] += 1;
    }
    let filled = counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
    filled.map(|(bin, count)| (bin as u32, count)).collect()
}

fn anomalous(pixels: &[RegionPixel], sizes: &[u32], edges: &[u32]) -> Vec<(u32, u32, u64)> {
    let mut placed: Vec<(u32, u32)> =
        pixels.iter().map(|pixel| (pixel.region, bin_of(pixel.key, edges))).collect();
    placed.sort_unstable();
    let mut counts = vec![(0_u32, 0_u64); edges.len()];
    for region in placed.chunk_by(|a, b| a.0 == b.0) {
        let mut gain = Gain::new(sizes[region[0].0 as usize]);
        for same in region.chunk_by(|a, b| a.1 == b.1) {
            let (count, gained) = &mut counts[same[0].1 as usize];
            *count += same.len() as u32;
            *gained += gain.find(same.len() as u32);
        }
    }
    let filled = counts.into_iter().enumerate().filter(|(_, (count, _))| *count > 0);
    filled.map(|(bin, (count, gained))| (bin as u32, count, gained)).collect()
}
