//! What becomes of a teacher whose normalisation is moved: how far its features have gone from where they
//! began, and how many of its channels say nothing any more. The literal rule of EMAN can drag a teacher
//! to where the loss is small because there is nothing left to learn (specification, NTSNet, section 3).
//!
//! Letters: B pictures, C channels, H × W places.

use anyhow::Result;

use super::Losses;
use super::parameters::Parameters;
use super::tape::{Statistics, Tape, Training};
use crate::detector::input::Input;
use crate::nn::engine::Engine;
use crate::nn::graph::Graph;
use crate::nn::teacher::{LEVELS, Teacher};

/// Share of channels that are zero everywhere above which a person should know.
pub const MOST_DEAD: f64 = 0.1;

/// Names of the figures, by level: 1 − the mean cosine to the features at the beginning, and the share of
/// channels that are zero everywhere.
pub const DRIFT: [&str; LEVELS] = ["drift1", "drift2", "drift3"];
pub const DEAD: [&str; LEVELS] = ["dead1", "dead2", "dead3"];

/// A sentence for a person where too many channels are dead; `figures` are those of a step.
pub fn advice(figures: &Losses) -> Option<String> {
    let dead = |(name, share): &&(&str, f64)| DEAD.contains(name) && *share > MOST_DEAD;
    let (name, share) = figures.iter().find(dead)?;
    Some(format!(
        "{:.0} % of the teacher's channels say nothing any more ({name}): EMAN drags it away, and a small \
         loss means little; try eman = \"running\" or \"off\" (docs/train.md)",
        share * 100.0
    ))
}

/// A teacher watched on a few pictures that stay the same.
pub struct Health {
    tape: Tape,
    before: Vec<Vec<f32>>, // [B, C, H, W] each
}

impl Health {
    /// `pictures` [B, 3, H, W], normalised; the teacher's tensors lie under `at`.
    pub fn new(
        teacher: Teacher,
        at: &str,
        input: Input,
        pictures: &[f32],
        parameters: &mut Parameters,
        engine: &Engine,
    ) -> Result<Health> {
        let (mut graph, xs) = Graph::new(input.height, input.width);
        let levels = teacher.levels(&mut graph, xs, at);
        graph.set_outputs(levels.to_vec());
        let images = pictures.len() / (3 * input.width * input.height);
        let training = Training { learned: &|_| false, statistics: &|_| Statistics::Running };
        let mut tape = Tape::new(&graph, images, engine, &training)?;
        tape.input(0).write(pictures);
        tape.forward(parameters)?;
        let before = (0..LEVELS).map(|level| tape.output(level).read()).collect();
        Ok(Health { tape, before })
    }

    /// The figures now.
    pub fn measure(&mut self, parameters: &mut Parameters) -> Result<Losses> {
        self.tape.forward(parameters)?;
        let mut figures = Losses::new();
        for (level, before) in self.before.iter().enumerate() {
            let map = self.tape.output(level);
            let (channels, places) = (map.shape().channels, map.shape().places());
            let now = map.read();
            figures.push((DRIFT[level], drift(before, &now, channels, places)));
            figures.push((DEAD[level], dead(&now, channels, places)));
        }
        Ok(figures)
    }
}

/// 1 − the mean cosine between the features of each place; one that is zero has none in common.
fn drift(before: &[f32], now: &[f32], channels: usize, places: usize) -> f64 {
    let picture = channels * places;
    let mut sum = 0.0;
    for (before, now) in before.chunks(picture).zip(now.chunks(picture)) {
        for place in 0..places {
            let of = |map: &[f32], channel: usize| f64::from(map[channel * places + place]);
            let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
            for channel in 0..channels {
                let (a, b) = (of(before, channel), of(now, channel));
                ab += a * b;
                aa += a * a;
                bb += b * b;
            }
            if aa > 0.0 && bb > 0.0 {
                sum += ab / (aa * bb).sqrt();
            }
        }
    }
    1.0 - sum / (before.len() / channels) as f64
}

fn dead(now: &[f32], channels: usize, places: usize) -> f64 {
    let planes: Vec<&[f32]> = now.chunks(places).collect();
    let is_dead = |channel: &usize| {
        planes.iter().skip(*channel).step_by(channels).all(|plane| plane.iter().all(|&x| x == 0.0))
    };
    (0..channels).filter(is_dead).count() as f64 / channels as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_hand_made_change() {
        // Two pictures of two channels and two places.
        let before = [1.0, 0.0, 0.0, 2.0, 3.0, 1.0, 0.0, 0.0];
        assert_eq!(drift(&before, &before, 2, 2), 0.0);
        // The first place of the first picture turns by a right angle; the others keep directions.
        let now = [0.0, 0.0, 5.0, 1.0, 1.0, 2.0, 0.0, 0.0];
        assert!((drift(&before, &now, 2, 2) - 0.25).abs() < 1e-12);
        assert_eq!(dead(&now, 2, 2), 0.0);
        let now = [0.0, 0.0, 5.0, 1.0, 0.0, 0.0, 1.0, 0.0];
        assert_eq!(dead(&now, 2, 2), 0.5);
        // A feature that has gone has no direction.
        assert_eq!(drift(&[1.0], &[0.0], 1, 1), 1.0);
    }
}
