//! The networks that can be timed, by name.

use anyhow::Result;

use crate::nn::graph::{Graph, LevelRule};
use crate::nn::resnet::Depth;
use crate::nn::{compact, destseg, mlff, ntsnet, prn, resnet};

/// Side of the pictures, pixels.
pub const SIDE: usize = 256;

/// Prototypes a scale of PRN: a tenth of a hundred good parts.
const PROTOTYPES: usize = 10;

/// A name of `--net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    ResNet18,
    ResNet50,
    Compact,
    DeStSeg,
    NtsNet,
    Prn,
    Mlff,
}

impl Net {
    pub const ALL: [Self; 7] = [
        Self::ResNet18,
        Self::ResNet50,
        Self::Compact,
        Self::DeStSeg,
        Self::NtsNet,
        Self::Prn,
        Self::Mlff,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::ResNet18 => "resnet18-layer3",
            Self::ResNet50 => "resnet50-layer3",
            Self::Compact => "compact",
            Self::DeStSeg => "destseg",
            Self::NtsNet => "ntsnet",
            Self::Prn => "prn",
            Self::Mlff => "mlff",
        }
    }

    /// `None`: no network has this name.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|net| net.word() == word)
    }

    /// The network for pictures of [`SIDE`] × [`SIDE`].
    pub fn graph(self) -> Result<Graph> {
        Ok(match self {
            Self::ResNet18 => resnet::graph(Depth::R18, 3, (SIDE, SIDE))?,
            Self::ResNet50 => resnet::graph(Depth::R50, 3, (SIDE, SIDE))?,
            Self::Compact => compact::graph(SIDE, SIDE),
            Self::DeStSeg => destseg::graph(SIDE, SIDE),
            Self::NtsNet => ntsnet::graph(SIDE, SIDE),
            Self::Prn => prn::graph(SIDE, [PROTOTYPES; 3]),
            Self::Mlff => mlff::graph(SIDE, SIDE, LevelRule::Paper),
        })
    }
}
