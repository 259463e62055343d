//! The loss of a student that learns to say what its teacher says: the distances of their levels.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Losses;
use super::tape::Tape;

/// How the loss goes over a batch (D-2, N-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// DeSTSeg's published code, whose learning rate is made for it.
    Sum,
    /// The papers' formulas, of one picture.
    Mean,
}

/// Names and values of the losses of a tape whose outputs are distances [B, 1, H, W]: of each level the
/// mean over places, and over pictures their sum or mean. The gradients are put where they belong.
pub fn distances(tape: &Tape, reduction: Reduction) -> Result<Losses> {
    const NAMES: [&str; 3] = ["level1", "level2", "level3"];
    let mut losses = Vec::with_capacity(NAMES.len());
    for (i, name) in NAMES.iter().enumerate().take(tape.outputs()) {
        let shape = tape.output(i).shape();
        let pictures = match reduction {
            Reduction::Sum => 1,
            Reduction::Mean => shape.images,
        };
        let each = 1.0 / (shape.places() * pictures) as f64;
        let distances = tape.output(i).read();
        let sum: f64 = distances.iter().map(|&distance| f64::from(distance)).sum();
        losses.push((*name, sum * each));
        let to = tape.output_gradient(i).context("a distance from which nothing is learned")?;
        to.write(&vec![each as f32; distances.len()]);
    }
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::engine::{self, Engine};
    use crate::nn::graph::{Conv, Dims, Distance, Graph};
    use crate::nn::vectors::{Vector, flat};
    use crate::train::parameters::{Parameters, Start};
    use crate::train::tape::{Statistics, Training};

    /// The losses of a vector's features, through a tape like that of training: the students' features
    /// go through a 1×1 convolution that changes nothing, so that something is learned.
    fn of_vector(
        name: &'static str,
        levels: usize,
        rule: Distance,
        reduction: Reduction,
    ) -> Option<f64> {
        let vector = Vector::open(name)?;
        let mut graph = Graph::default();
        let (mut given, mut outputs) = (Vec::new(), Vec::new());
        let mut images = 0;
        for level in 1..=levels {
            let features = ["teacher", "student"].map(|who| vector.input(&format!("{who}{level}")));
            let (b, channels, height, width) = features[0].dims4().unwrap();
            images = b;
            let [t, s] = [0, 1].map(|_| graph.input(Dims { channels, height, width }));
            let s = graph.conv(s, Conv::new(format!("own{level}"), channels, channels, 1));
            outputs.push(graph.cosine_distance(t, s, rule));
            given.extend(features);
        }
        graph.set_outputs(outputs);
        let mut parameters = Parameters::begin(&graph, 0, |_| Some(Start::FanOut));
        for level in 1..=levels {
            let weights = parameters.get_mut(&format!("own{level}.weight")).unwrap();
            let side = weights.len().isqrt();
            weights.fill(0.0);
            weights.iter_mut().step_by(side + 1).for_each(|weight| *weight = 1.0);
        }
        let engine =
            Engine::new(&engine::Config { threads: Some(1), ..Default::default() }).unwrap();
        let training = Training { learned: &|_| true, statistics: &|_| Statistics::Batch };
        let mut tape = Tape::new(&graph, images, &engine, &training).unwrap();
        for (i, features) in given.iter().enumerate() {
            tape.input(i).write(&flat(features));
        }
        tape.forward(&mut parameters).unwrap();
        let losses = distances(&tape, reduction).unwrap();
        assert_eq!(losses.len(), levels);
        Some(losses.iter().map(|(_, value)| value).sum())
    }

    #[test]
    fn losses_are_the_vectors() {
        let cases = [
            ("destseg_features", 3, Distance::OneMinusCosine, Reduction::Sum, "loss_batchsum"),
            ("destseg_features", 3, Distance::OneMinusCosine, Reduction::Mean, "loss_batchmean"),
            ("ntsnet_loss_maps", 2, Distance::HalfSquared, Reduction::Mean, "total_loss"),
        ];
        for (name, levels, rule, reduction, wanted) in cases {
            let Some(got) = of_vector(name, levels, rule, reduction) else { return };
            let vector = Vector::open(name).unwrap();
            let want = f64::from(flat(&vector.expected(wanted))[0]);
            assert!((got - want).abs() <= 2e-5 + 1e-4 * want, "{name} {wanted}: {got}, not {want}");
        }
    }
}
