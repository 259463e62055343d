//! The systems that are a network, each with its own part of the card.

use anyhow::{Context, Result, bail};

use super::Card;
use crate::detector::input::Input;
use crate::detector::{Detector, destseg, mlff, ntsnet, patch_prototypes, prn};
use crate::nn::destseg::Segmentation;
use crate::nn::engine::Engine;
use crate::nn::weights::Weights;

/// Which network, and what its card says of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum System {
    DeStSeg(destseg::Card),
    NtsNet(ntsnet::Card),
    Prn(prn::Card),
    Mlff(mlff::Card),
}

/// What scores are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// Distances.
    Positive,
    /// Without a bound to either side.
    Signed,
    /// Between 0 and 1.
    Probability,
}

impl System {
    /// The one that a card is of; `None` where it is patch prototypes.
    ///
    /// # Errors
    /// A system that is not known; a table that is missing.
    pub fn of(card: &Card) -> Result<Option<System>> {
        let table = || format!("table [{}] is missing", card.system);
        Ok(match card.system.as_str() {
            patch_prototypes::SYSTEM => None,
            destseg::SYSTEM => Some(System::DeStSeg(card.destseg.with_context(table)?)),
            ntsnet::SYSTEM => Some(System::NtsNet(card.ntsnet.with_context(table)?)),
            prn::SYSTEM => Some(System::Prn(card.prn.with_context(table)?)),
            mlff::SYSTEM => Some(System::Mlff(card.mlff.with_context(table)?)),
            other => bail!(
                "system = \"{other}\" is not known to this inspectd ({}); known: {}",
                env!("CARGO_PKG_VERSION"),
                [
                    patch_prototypes::SYSTEM,
                    destseg::SYSTEM,
                    ntsnet::SYSTEM,
                    prn::SYSTEM,
                    mlff::SYSTEM
                ]
                .join(", ")
            ),
        })
    }

    /// Its word in a card.
    pub fn word(&self) -> &'static str {
        match self {
            System::DeStSeg(_) => destseg::SYSTEM,
            System::NtsNet(_) => ntsnet::SYSTEM,
            System::Prn(_) => prn::SYSTEM,
            System::Mlff(_) => mlff::SYSTEM,
        }
    }

    /// What its scores are.
    pub fn units(&self) -> Units {
        match self {
            System::DeStSeg(own) if own.variant.segmentation != Segmentation::None => {
                Units::Probability
            }
            System::Prn(_) => Units::Probability,
            System::Mlff(own) if own.network.score => Units::Signed,
            System::DeStSeg(_) | System::NtsNet(_) | System::Mlff(_) => Units::Positive,
        }
    }

    /// Puts its table into a card, and its word.
    pub fn write(self, card: &mut Card) {
        card.system = self.word().to_owned();
        match self {
            System::DeStSeg(own) => card.destseg = Some(own),
            System::NtsNet(own) => card.ntsnet = Some(own),
            System::Prn(own) => card.prn = Some(own),
            System::Mlff(own) => card.mlff = Some(own),
        }
    }

    /// # Errors
    /// A tensor that is missing, of another shape or not finite; settings that can't be meant.
    pub fn detector(
        self,
        input: Input,
        weights: &Weights,
        engine: &Engine,
    ) -> Result<Box<dyn Detector>> {
        Ok(match self {
            System::DeStSeg(own) => Box::new(destseg::DeStSeg::new(own, input, weights, engine)?),
            System::NtsNet(own) => Box::new(ntsnet::NtsNet::new(own, input, weights, engine)?),
            System::Prn(own) => Box::new(prn::Prn::new(own, input, weights, engine)?),
            System::Mlff(own) => Box::new(mlff::Mlff::new(own, input, weights, engine)?),
        })
    }
}
