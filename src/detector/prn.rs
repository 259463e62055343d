//! PRN (Zhang et al. 2023, "Prototypical Residual Networks for Anomaly Detection and Localization"): a
//! network that learned from good parts, from some real defects and from many made up of both, reads
//! features beside what separates them from the nearest good part's. What it says is the anomaly map,
//! at the picture's size and not smoothed; the score is the mean of its largest values.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::input::Input;
use super::network::{Network, top_mean};
use super::{AnomalyMap, Detection, Detector};
use crate::frame::Image;
use crate::nn::engine::Engine;
use crate::nn::prn::Variant;
use crate::nn::weights::Weights;

/// The word for this system in a card.
pub const SYSTEM: &str = "prn";

/// How many of the map's largest values the score is the mean of (paper).
pub const TOP: usize = 100;

/// This system's part of `model.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub network: Variant,
    /// Maps of good parts at each scale; of no meaning where the network has no prototypes.
    pub prototypes: [usize; 3],
    /// How many of the map's largest values the score is the mean of.
    pub top: usize,
}

/// The detector.
pub struct Prn {
    card: Card,
    input: Input,
    network: Network,
    /// Of one picture; kept from one to the next.
    work: Vec<f32>,
}

/// Whether the network can be of pictures of this size.
///
/// # Errors
/// Sides that differ, or that are no multiple of 128.
pub fn check(input: Input) -> Result<()> {
    let Input { width, height } = input;
    ensure!(
        width == height && width.is_multiple_of(SIDE),
        "input = {width} × {height}: PRN wants a square with a side that is a multiple of {SIDE} (256 \
         is the paper's), since its attention cuts features of a sixteenth of it in eight"
    );
    Ok(())
}

/// Sides are a multiple of it.
const SIDE: usize = 128;

impl Prn {
    /// # Errors
    /// A tensor that is missing, of another shape or not finite; a size that can't be, a score of no
    /// values, no prototypes.
    pub fn new(card: Card, input: Input, weights: &Weights, engine: &Engine) -> Result<Prn> {
        check(input)?;
        ensure!(card.top > 0, "prn.top = 0: a score is the mean of 1 or more values");
        ensure!(
            !card.network.prototypes || !card.prototypes.contains(&0),
            "prn.prototypes = {:?}: each scale has one at least",
            card.prototypes
        );
        let graph = |side: usize, _: usize| card.network.graph(side, card.prototypes);
        let network = Network::new(graph, input, weights, engine)?;
        Ok(Prn { card, input, network, work: Vec::new() })
    }

    fn judge(&mut self, image: &Image) -> Result<Detection> {
        self.network.run(image)?;
        let Input { width, height } = self.input;
        let mut scores = Vec::with_capacity(width * height);
        self.network.read(0, &mut scores)?;
        let score = top_mean(&scores, self.card.top, &mut self.work)?;
        Ok(Detection { score, map: AnomalyMap { width, height, scores } })
    }
}

impl Detector for Prn {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        ensure!(!images.is_empty(), "a batch needs at least one picture");
        images.iter().map(|image| self.judge(image)).collect()
    }
}
