//! Batches of good parts and of anomalies made up on them, with the truth of every place.
//!
//! Letters: B pictures, H × W pixels.

use anyhow::Result;
use image::Rgb32FImage;
use image::buffer::ConvertBuffer;
use rayon::prelude::*;

use super::feed::normalise;
use crate::synth::synthesizer::{Choice, Synthesizer};

/// Pictures, and where they are anomalous.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixed {
    pub pictures: Vec<f32>, // [B, 3, H, W], normalised
    pub truth: Vec<bool>,   // [B, H, W]
}

/// What a picture of a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// This good part; nothing of it is anomalous.
    Good(usize),
    Anomalous(Choice),
}

/// The batch of these members, in their order.
///
/// # Errors
/// A picture that can't be read; an extended anomaly where none was seen.
pub fn mixed(synthesizer: &Synthesizer, members: &[Member]) -> Result<Mixed> {
    let normals = &synthesizer.stock().normals;
    let (width, height) = normals.size();
    let places = width * height;
    let mut pictures = vec![0.0; members.len() * 3 * places];
    let mut truth = vec![false; members.len() * places];
    (pictures.par_chunks_mut(3 * places).zip(truth.par_chunks_mut(places)).zip(members))
        .try_for_each(|((values, truth), member)| -> Result<()> {
            let image = match member {
                Member::Good(index) => {
                    ConvertBuffer::<Rgb32FImage>::convert(&*normals.get(*index)?)
                }
                Member::Anomalous(choice) => {
                    let made = synthesizer.make(choice)?;
                    truth.copy_from_slice(&made.mask.inside);
                    made.image
                }
            };
            let mut normalised = Vec::with_capacity(3 * places);
            normalise(&image, &mut normalised);
            values.copy_from_slice(&normalised);
            Ok(())
        })?;
    Ok(Mixed { pictures, truth })
}
