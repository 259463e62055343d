//! What an epoch of MLFF shows: each good part several times over, a fixed share of that with an anomaly
//! made on it (G-10), confetti or something pasted (G-9).
//!
//! Draws of [`Tag::Order`]: by epoch the order of the repeated pictures ([`pictures_of`]) and, under an
//! index of its own, of those that become anomalous; by sample whether it is confetti.

use anyhow::Result;
use image::RgbImage;
use rand::RngExt;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use super::Config;
use crate::dataset::mask::Mask;
use crate::dataset::pictures::Pictures;
use crate::synth::{SampleKey, Tag, confetti, cutpaste};
use crate::train::feed::{normalise, pictures_of};

/// Pictures, normalised, and where they are anomalous.
pub struct Batch {
    pub images: usize,
    pub pictures: Vec<f32>, // [B, 3, H, W]
    pub truth: Vec<bool>,   // [B, h, w]
}

/// One of an epoch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Which good part.
    pub picture: usize,
    pub anomalous: bool,
    key: SampleKey,
}

/// The samples of a step, of `count` good parts.
///
/// Of the repeated pictures, laid out repetition after repetition in an order that the epoch draws, the
/// first are the anomalous ones. So each good part has its share of them, as nearly as can be.
pub fn samples(config: &Config, count: usize, seed: u64, step: u64) -> Vec<Sample> {
    let repeated = count * config.repetition;
    let epoch = step / config.steps_of_epoch(count);
    let anomalies = (config.anomaly_share * repeated as f64).round() as usize;
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut SampleKey { seed, epoch, index: SPLIT }.rng(Tag::Order));
    let chosen = pictures_of(step, config.batch, repeated, true, seed);
    let sample = |slot: usize| Sample {
        picture: order[slot % count],
        anomalous: slot < anomalies,
        key: SampleKey { seed, epoch, index: slot as u64 },
    };
    chosen.into_iter().map(sample).collect()
}

/// The draw of anomalous ones, apart from the order of an epoch.
const SPLIT: u64 = u64::MAX - 2;

/// The batch of a step; `size` is (h, w).
pub fn batch(
    config: &Config,
    pictures: &Pictures,
    size: (usize, usize),
    seed: u64,
    step: u64,
) -> Result<Batch> {
    let chosen = samples(config, pictures.len(), seed, step);
    let made = chosen.par_iter().map(|sample| {
        let picture = pictures.get(sample.picture)?;
        let (picture, mask) = match sample.anomalous {
            true => corrupted(config, &picture, sample.key),
            false => {
                let (width, height) = pictures.size();
                ((*picture).clone(), Mask::empty(width, height))
            }
        };
        let mut values = Vec::new();
        normalise(&image::DynamicImage::ImageRgb8(picture).into_rgb32f(), &mut values);
        Ok((values, mask.by_area(size.1, size.0, config.label_share).inside))
    });
    let made = made.collect::<Result<Vec<_>>>()?;
    let images = made.len();
    let (values, truth): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    Ok(Batch { images, pictures: values.concat(), truth: truth.concat() })
}

/// A good part with an anomaly on it, and where.
fn corrupted(config: &Config, picture: &RgbImage, key: SampleKey) -> (RgbImage, Mask) {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let (places, colours) = (&mut key.rng(Tag::Mask), &mut key.rng(Tag::Source));
    if key.rng(Tag::Order).random_bool(config.confetti_share) {
        let noise = confetti::draw(width, height, places, colours);
        confetti::apply(picture, &noise, &config.confetti)
    } else {
        cutpaste::make(picture, config.pasted, &config.cutpaste, places, colours)
    }
}
