//! Made-up anomalies: what detectors are trained on where defects are rare, and what a model's
//! promises are tried on. Workshop: nothing on the line may use it.
//!
//! Sources: `anomaly-generation.md` of the specification, which follows DRAEM (Zavrtanik et al. 2021),
//! CutPaste (Li et al. 2021), FCDD (Liznerski et al. 2021), MemSeg (Yang et al. 2023), PRN (Zhang et al.
//! 2023) and DeSTSeg (Zhang et al. 2023).
//!
//! Every sample draws from generators of its own ([`SampleKey`]), so that what is made does not depend
//! on how many threads make it or in which order.

use image::Rgb32FImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::dataset::mask::Mask;

pub mod affine;
pub mod augment;
pub mod blend;
pub mod colour_jitter;
pub mod confetti;
pub mod cutpaste;
pub mod extended;
pub mod foreground;
pub mod homogeneous;
pub mod perlin;
pub mod procedural;
pub mod simulated;
pub mod source;
pub mod target_area;

/// A picture with an anomaly made on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Synthetic {
    /// Levels from 0 to 1.
    pub image: Rgb32FImage,
    pub mask: Mask,
}

/// Which sample: with the [`Tag`] all that its draws depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleKey {
    pub seed: u64,
    /// Or the step, where there are no epochs.
    pub epoch: u64,
    pub index: u64,
}

/// What is drawn; one more draw under one tag shifts none under another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Which picture is taken when, and which of them become anomalous.
    Order,
    /// The augmentation of the normal picture.
    NormalAugmentation,
    /// The anomaly's source and its augmentation.
    Source,
    Mask,
    /// Opacity.
    Blend,
    /// The seen anomaly, its colours and its place.
    Extended,
    TargetArea,
}

impl SampleKey {
    pub fn rng(&self, tag: Tag) -> ChaCha8Rng {
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([self.seed, self.epoch, self.index]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(tag as u64);
        rng
    }
}
