//! DeSTSeg (Zhang et al. 2023, "DeSTSeg: Segmentation Guided Denoising Student-Teacher for Anomaly
//! Detection"): a teacher and a student that learned to see no defects look at the picture, and a
//! segmentation network says where they differ. The anomaly map is the segmentation brought to the
//! picture's size, not smoothed; the score is the mean of its T largest values.
//!
//! Without the segmentation network the map is the product of the cosine distances of the three levels
//! (the paper's DeST).

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::input::Input;
use super::network::{Network, top_mean};
use super::{AnomalyMap, Detection, Detector};
use crate::frame::Image;
use crate::nn::destseg::{Segmentation, Variant};
use crate::nn::engine::Engine;
use crate::nn::weights::Weights;
use crate::ops::smooth_upsample::SmoothUpsample;

/// The word for this system in a card.
pub const SYSTEM: &str = "destseg";

/// T: the published code's number; the paper tunes it.
pub const TOP: usize = 100;

/// This system's part of `model.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    #[serde(flatten)]
    pub variant: Variant,
    /// T, how many of the map's largest values the score is the mean of.
    pub top: usize,
}

/// The detector.
pub struct DeStSeg {
    card: Card,
    input: Input,
    network: Network,
    /// To the size of the first level, then of the picture.
    to_level: Vec<SmoothUpsample>,
    to_picture: SmoothUpsample,
    work: Work,
}

/// Of one picture; kept from one to the next.
#[derive(Default)]
struct Work {
    level: Vec<f32>,
    product: Vec<f32>,
    at_level: Vec<f32>,
    top: Vec<f32>,
}

impl DeStSeg {
    /// `weights` are named as the published checkpoints name them.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or not finite; T = 0.
    pub fn new(card: Card, input: Input, weights: &Weights, engine: &Engine) -> Result<DeStSeg> {
        ensure!(card.top > 0, "destseg.top = 0: a score is the mean of 1 or more values");
        let segments = card.variant.segmentation != Segmentation::None;
        let graph = |height: usize, width: usize| {
            let whole = card.variant.graph(height, width);
            let outputs = whole.outputs();
            // The line reads the segmentation, or where there is none the distances.
            if segments { whole.to_outputs(&outputs[..1]) } else { whole }
        };
        let network = Network::new(graph, input, weights, engine)?;
        let sizes = network.sizes();
        let threads = engine.team.threads();
        let upsample = |from, to| SmoothUpsample::new(engine.isa, threads, from, to, 0.0);
        Ok(DeStSeg {
            card,
            input,
            to_level: sizes[1..].iter().map(|&from| upsample(from, sizes[0])).collect(),
            to_picture: upsample(sizes[0], (input.height, input.width)),
            network,
            work: Work::default(),
        })
    }

    fn judge(&mut self, image: &Image) -> Result<Detection> {
        self.network.run(image)?;
        let team = self.network.engine().team.clone();
        let Work { level, product, at_level, top } = &mut self.work;
        self.network.read(0, product)?;
        for (i, upsample) in self.to_level.iter_mut().enumerate() {
            self.network.read(i + 1, level)?;
            at_level.resize(product.len(), 0.0);
            upsample.run(&team, level, at_level);
            product.iter_mut().zip(at_level.iter()).for_each(|(product, level)| *product *= level);
        }
        let Input { width, height } = self.input;
        let mut scores = vec![0.0; width * height];
        self.to_picture.run(&team, product, &mut scores);
        let score = top_mean(&scores, self.card.top, top)?;
        Ok(Detection { score, map: AnomalyMap { width, height, scores } })
    }
}

impl Detector for DeStSeg {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        ensure!(!images.is_empty(), "a batch needs at least one picture");
        images.iter().map(|image| self.judge(image)).collect()
    }
}
