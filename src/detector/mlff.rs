//! MLFF: a network that was shown made-up anomalies on good parts scores each place of the picture from
//! features of several levels. The scores are brought to the picture's size and not smoothed; the score is
//! the largest of them. Scores have no bounds and may lie below zero.
//!
//! Without the head the map is the distance A = √(‖ψ‖² + 1) − 1 of the features ψ from their centre, the
//! origin (the paper's baseline).

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::input::Input;
use super::network::{Network, top_mean};
use super::{AnomalyMap, Detection, Detector};
use crate::frame::Image;
use crate::nn::engine::Engine;
use crate::nn::mlff::Variant;
use crate::nn::weights::Weights;
use crate::ops::smooth_upsample::SmoothUpsample;

/// The word for this system in a card.
pub const SYSTEM: &str = "mlff";

/// This system's part of `model.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub network: Variant,
}

/// A of a feature whose squared length is ‖ψ‖²; exact near the origin too.
pub fn radius(squared_norm: f64) -> f64 {
    squared_norm / ((squared_norm + 1.0).sqrt() + 1.0)
}

/// The detector.
pub struct Mlff {
    input: Input,
    /// Its one output: the scores, or the features where there is no head.
    network: Network,
    has_head: bool,
    to_picture: SmoothUpsample,
    /// Of one picture; kept from one to the next.
    places: Vec<f32>,
    work: Vec<f32>,
}

impl Mlff {
    /// `weights` are named as in [`crate::nn::mlff`].
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or not finite; a network that can't be, or not for
    /// pictures of this size.
    pub fn new(card: Card, input: Input, weights: &Weights, engine: &Engine) -> Result<Mlff> {
        let Card { network: variant } = card;
        variant.check((input.height, input.width))?;
        let graph = |height: usize, width: usize| {
            let whole = variant.graph(height, width);
            whole.to_outputs(&whole.outputs()[usize::from(variant.score)..][..1])
        };
        let network = Network::new(graph, input, weights, engine)?;
        let size = network.sizes()[0];
        let to = (input.height, input.width);
        Ok(Mlff {
            input,
            network,
            has_head: variant.score,
            to_picture: SmoothUpsample::new(engine.isa, engine.team.threads(), size, to, 0.0),
            places: vec![0.0; size.0 * size.1],
            work: Vec::new(),
        })
    }

    fn judge(&mut self, image: &Image) -> Result<Detection> {
        self.network.run(image)?;
        if self.has_head {
            self.network.read(0, &mut self.places)?;
        } else {
            self.network.read_squared_norm(0, &mut self.places)?;
            self.places.iter_mut().for_each(|norm| *norm = radius(f64::from(*norm)) as f32);
        }
        let Input { width, height } = self.input;
        let mut scores = vec![0.0; width * height];
        self.to_picture.run(&self.network.engine().team, &self.places, &mut scores);
        let score = top_mean(&scores, 1, &mut self.work)?;
        Ok(Detection { score, map: AnomalyMap { width, height, scores } })
    }
}

impl Detector for Mlff {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        ensure!(!images.is_empty(), "a batch needs at least one picture");
        images.iter().map(|image| self.judge(image)).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::nn::engine;
    use crate::nn::mlff::Encoder;
    use crate::nn::reference;
    use crate::nn::vectors::flat;
    use crate::ops::interpolate::{Align, bilinear_planes};

    const INPUT: Input = Input { width: 64, height: 64 };

    #[test]
    fn maps_are_the_networks_scores_or_distances_at_the_pictures_size() {
        let engine =
            Engine::new(&engine::Config { threads: Some(2), ..Default::default() }).unwrap();
        let picture = image::RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([(x * 3) as u8, (y * 3) as u8, ((x * y) % 251) as u8])
        });
        let image = Image::Rgb(picture);
        for score in [true, false] {
            let small = Variant { encoder: Encoder::Resnet18, score, ..Variant::default() };
            let network = Variant { texture: false, ..small };
            let graph = network.graph(64, 64);
            let weights = graph.random_weights(&mut ChaCha8Rng::seed_from_u64(4)).unwrap();
            let mut detector = Mlff::new(Card { network }, INPUT, &weights, &engine).unwrap();
            let got = detector.detect(&[&image]).unwrap().remove(0);

            let xs = INPUT.tensor(&[&image], &candle_core::Device::Cpu).unwrap();
            let outputs = reference::run(&graph, &weights, &xs).unwrap();
            let places: Vec<f32> = if score {
                flat(&outputs[1])
            } else {
                let features = flat(&outputs[0]);
                let norm = |place: usize| -> f32 {
                    features.iter().skip(place).step_by(256).map(|x| x * x).sum()
                };
                (0..256).map(|place| (norm(place) + 1.0).sqrt() - 1.0).collect()
            };
            let want = bilinear_planes(&places, (16, 16), (64, 64), Align::HalfPixel);
            let most = want.iter().copied().map(f32::abs).fold(0.0, f32::max);
            assert_eq!(got.map.scores.len(), want.len());
            for (got, want) in got.map.scores.iter().zip(&want) {
                assert!((got - want).abs() <= 1e-4 * most, "{score}: {got} {want}");
            }
            let largest = got.map.scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(got.score, largest);
        }
    }

    #[test]
    fn a_size_that_the_network_cannot_take_is_named() {
        let engine =
            Engine::new(&engine::Config { threads: Some(1), ..Default::default() }).unwrap();
        let network = Variant { encoder: Encoder::Resnet18, ..Variant::default() };
        let graph = network.graph(64, 64);
        let weights = graph.random_weights(&mut ChaCha8Rng::seed_from_u64(4)).unwrap();
        let input = Input { width: 96, height: 96 };
        let error = Mlff::new(Card { network }, input, &weights, &engine).err().unwrap();
        assert!(error.to_string().contains("multiples of 64"), "{error}");
    }
}
