//! Made-up anomalies: what detectors are trained on where defects are rare, and what a model's
//! promises are tried on. Workshop: nothing on the line may use it.
//!
//! Sources: `anomaly-generation.md` of the specification, which follows DRAEM (Zavrtanik et al. 2021),
//! CutPaste (Li et al. 2021), FCDD (Liznerski et al. 2021), MemSeg (Yang et al. 2023), PRN (Zhang et al.
//! 2023) and DeSTSeg (Zhang et al. 2023).
//!
//! Every sample draws from generators of its own ([`SampleKey`]), so that what is made does not depend
//! on how many threads make it or in which order.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use image::Rgb32FImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use self::foreground::Foreground;
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
pub mod sheet;
pub mod simulated;
pub mod source;
pub mod synthesizer;
pub mod target_area;

/// A picture with an anomaly made on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Synthetic {
    /// Levels from 0 to 1.
    pub image: Rgb32FImage,
    pub mask: Mask,
}

/// How anomalies are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Blurred squares (FCDD, MLFF).
    Confetti,
    /// A piece of the picture on another place of it (CutPaste, MLFF).
    Cutpaste,
    CutpasteScar,
    /// A piece or a scar.
    CutpasteUnion,
    /// A texture through Perlin noise, anywhere (DRAEM, DeSTSeg).
    Perlin,
    /// A texture through Perlin noise, on the part (HEA, PRN).
    Heterogeneous,
    /// A shuffled good part through Perlin noise, on the part (HOA, PRN).
    Homogeneous,
    /// One of the two (SA, PRN).
    Simulated,
    /// A seen anomaly, changed and moved (EA, PRN).
    Extended,
}

/// What is set of every kind.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub confetti: confetti::Config,
    pub cutpaste: cutpaste::Config,
    pub perlin: simulated::TexturedConfig,
    /// Of heterogeneous and homogeneous ones too, which fix its share.
    pub simulated: simulated::Config,
    pub extended: extended::Config,
    /// Of the kinds that come on the part.
    pub foreground: Foreground,
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
    /// Which picture is taken when, with which other and which seen anomaly, and which of them become
    /// anomalous.
    Order,
    /// The augmentation of the normal picture.
    NormalAugmentation,
    /// The anomaly's source and its augmentation.
    Source,
    Mask,
    /// Opacity.
    Blend,
    /// The colours and the place of a seen anomaly.
    Extended,
    TargetArea,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Confetti,
        Kind::Cutpaste,
        Kind::CutpasteScar,
        Kind::CutpasteUnion,
        Kind::Perlin,
        Kind::Heterogeneous,
        Kind::Homogeneous,
        Kind::Simulated,
        Kind::Extended,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Kind::Confetti => "confetti",
            Kind::Cutpaste => "cutpaste",
            Kind::CutpasteScar => "cutpaste-scar",
            Kind::CutpasteUnion => "cutpaste-union",
            Kind::Perlin => "perlin",
            Kind::Heterogeneous => "heterogeneous",
            Kind::Homogeneous => "homogeneous",
            Kind::Simulated => "simulated",
            Kind::Extended => "extended",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Kind> {
        let known = Kind::ALL.map(Kind::word);
        match known.iter().position(|known| *known == word) {
            Some(i) => Ok(Kind::ALL[i]),
            None => bail!("kind {word}: must be one of {}", known.join(", ")),
        }
    }
}

impl Config {
    pub fn check(&self) -> Result<()> {
        self.confetti.check().context("confetti")?;
        self.perlin.check().context("perlin")?;
        self.simulated.check().context("simulated")?;
        self.extended.check().context("extended")
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_called_as_they_are_printed() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse::<Kind>().unwrap(), kind);
        }
        let error = "fog".parse::<Kind>().unwrap_err().to_string();
        assert!(error.contains("cutpaste-scar, cutpaste-union, perlin"), "{error}");
    }

    #[test]
    fn settings_are_refused_with_the_kind_that_they_are_of() {
        let cases = [
            ("[confetti]\nmask_min_change = 0", "confetti: mask_min_change = 0"),
            ("[perlin]\naugmentations = 11", "perlin: augmentations = 11"),
            ("[simulated]\nheterogeneous_share = 2.0", "simulated: heterogeneous_share = 2"),
            ("[extended]\nshear_deg = 60.0", "extended: shear_deg = 60"),
        ];
        for (text, word) in cases {
            let error = toml::from_str::<Config>(text).unwrap().check().unwrap_err();
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
        toml::from_str::<Config>("foreground = { above = 50 }").unwrap().check().unwrap();
        assert!(toml::from_str::<Config>("[confetti]\nsize = 3").is_err());
    }

    #[test]
    fn tags_and_keys_do_not_share_numbers() {
        use rand::RngExt;
        let first =
            |seed, epoch, index, tag| SampleKey { seed, epoch, index }.rng(tag).random::<u64>();
        let drawn = [
            first(0, 0, 0, Tag::Order),
            first(0, 0, 0, Tag::Mask),
            first(1, 0, 0, Tag::Order),
            first(0, 1, 0, Tag::Order),
            first(0, 0, 1, Tag::Order),
        ];
        let distinct: std::collections::HashSet<u64> = drawn.into_iter().collect();
        assert_eq!(distinct.len(), drawn.len());
    }
}
