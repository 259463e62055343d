//! NTSNet: a teacher and a student that has seen good parts only look at the picture; where their
//! features part, something is not as on good parts. The distances of the levels are brought to the
//! picture's size, smoothed and fused; the score is the largest value of the map.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::input::Input;
use super::network::{Network, top_mean};
use super::{AnomalyMap, Detection, Detector};
use crate::frame::Image;
use crate::nn::engine::Engine;
use crate::nn::ntsnet::Variant;
use crate::nn::weights::Weights;
use crate::ops::gaussian::Gaussian;
use crate::ops::smooth_upsample::SmoothUpsample;
use crate::ops::team::Team;

/// The word for this system in a card.
pub const SYSTEM: &str = "ntsnet";

/// How maps become one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fusion {
    pub op: Fuse,
    pub order: Order,
    /// σ of the Gaussian, pixels; the paper gives none (N-4), MKD's code has 4. 0 smooths nothing.
    pub sigma_px: f32,
}

/// N-3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fuse {
    /// The paper's equation 12.
    #[default]
    Sum,
    /// Its prose.
    Product,
}

/// N-4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    #[default]
    UpsampleFirst,
    /// With σ in places of each level.
    SmoothFirst,
}

impl Default for Fusion {
    fn default() -> Fusion {
        Fusion { op: Fuse::default(), order: Order::default(), sigma_px: 4.0 }
    }
}

/// This system's part of `model.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub network: Variant,
    pub fusion: Fusion,
}

/// The detector.
pub struct NtsNet {
    input: Input,
    network: Network,
    maps: Maps,
    /// Of one picture; kept from one to the next.
    levels: Vec<Vec<f32>>,
    work: Vec<f32>,
}

/// From the distances of levels to one map.
struct Maps {
    op: Fuse,
    levels: Vec<Level>,
    /// A level at the picture's size.
    upsampled: Vec<f32>,
}

struct Level {
    width: usize,
    /// Before the upsampling; changes nothing where σ is 0.
    blur: Gaussian,
    upsample: SmoothUpsample,
}

impl Fusion {
    /// # Errors
    /// A σ that is none.
    pub fn check(&self) -> Result<()> {
        let sigma = self.sigma_px;
        ensure!(
            sigma.is_finite() && (0.0..=64.0).contains(&sigma),
            "ntsnet.fusion.sigma_px = {sigma}: must lie between 0 and 64 (4 is usual)"
        );
        Ok(())
    }
}

impl Maps {
    /// From levels of `sizes` (height, width) to a map of size `to`.
    fn new(
        fusion: Fusion,
        sizes: &[(usize, usize)],
        to: (usize, usize),
        engine: &Engine,
    ) -> Result<Maps> {
        fusion.check()?;
        let (before, after) = match fusion.order {
            Order::UpsampleFirst => (0.0, fusion.sigma_px),
            Order::SmoothFirst => (fusion.sigma_px, 0.0),
        };
        let level = |&size: &(usize, usize)| Level {
            width: size.1,
            blur: Gaussian::new(before),
            upsample: SmoothUpsample::new(engine.isa, engine.team.threads(), size, to, after),
        };
        let levels = sizes.iter().map(level).collect();
        Ok(Maps { op: fusion.op, levels, upsampled: vec![0.0; to.0 * to.1] })
    }

    fn fuse(&mut self, team: &Team, levels: &mut [Vec<f32>]) -> Vec<f32> {
        let begin = if self.op == Fuse::Sum { 0.0 } else { 1.0 };
        let mut map = vec![begin; self.upsampled.len()];
        for (level, values) in self.levels.iter_mut().zip(levels) {
            level.blur.blur(values, level.width);
            level.upsample.run(team, values, &mut self.upsampled);
            for (sum, value) in map.iter_mut().zip(&self.upsampled) {
                match self.op {
                    Fuse::Sum => *sum += value,
                    Fuse::Product => *sum *= value,
                }
            }
        }
        map
    }
}

impl NtsNet {
    /// `weights` lie under `teacher.` and `student.`.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or not finite; a σ that is none, no level.
    pub fn new(card: Card, input: Input, weights: &Weights, engine: &Engine) -> Result<NtsNet> {
        let Card { network: variant, fusion } = card;
        ensure!(
            variant.levels.contains(&true),
            "ntsnet.network.levels = [false, false, false]: one level at least is compared"
        );
        let graph = |height: usize, width: usize| variant.graph(height, width);
        let network = Network::new(graph, input, weights, engine)?;
        let sizes = network.sizes();
        let maps = Maps::new(fusion, &sizes, (input.height, input.width), engine)?;
        let levels = vec![Vec::new(); sizes.len()];
        Ok(NtsNet { input, network, maps, levels, work: Vec::new() })
    }

    fn judge(&mut self, image: &Image) -> Result<Detection> {
        self.network.run(image)?;
        for (i, level) in self.levels.iter_mut().enumerate() {
            self.network.read(i, level)?;
        }
        let team = &self.network.engine().team;
        let scores = self.maps.fuse(team, &mut self.levels);
        let score = top_mean(&scores, 1, &mut self.work)?;
        let Input { width, height } = self.input;
        Ok(Detection { score, map: AnomalyMap { width, height, scores } })
    }
}

impl Detector for NtsNet {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        ensure!(!images.is_empty(), "a batch needs at least one picture");
        images.iter().map(|image| self.judge(image)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::engine;
    use crate::nn::vectors::{Vector, flat};

    #[test]
    fn fused_maps_are_the_vectors() {
        let Some(vector) = Vector::open("ntsnet_loss_maps") else { return };
        let engine =
            Engine::new(&engine::Config { threads: Some(1), ..Default::default() }).unwrap();
        struct Case {
            name: &'static str,
            fusion: Fusion,
        }
        let cases = [
            Case { name: "map_sum", fusion: Fusion::default() },
            Case { name: "map_prod", fusion: Fusion { op: Fuse::Product, ..Fusion::default() } },
            Case {
                name: "map_sum_smooth_first",
                fusion: Fusion { order: Order::SmoothFirst, sigma_px: 1.0, op: Fuse::Sum },
            },
        ];
        let sizes = [(8, 8), (4, 4)];
        let given = [flat(&vector.expected("M1")), flat(&vector.expected("M2"))];
        for Case { name, fusion } in cases {
            let want = flat(&vector.expected(name));
            let mut maps = Maps::new(fusion, &sizes, (32, 32), &engine).unwrap();
            for image in 0..2 {
                let mut levels: Vec<Vec<f32>> = sizes
                    .iter()
                    .zip(&given)
                    .map(|((h, w), level)| level[image * h * w..][..h * w].to_vec())
                    .collect();
                let got = maps.fuse(&engine.team, &mut levels);
                for (got, want) in got.iter().zip(&want[image * 1024..]) {
                    let close = (got - want).abs() <= 2e-5 + 1e-4 * want.abs();
                    assert!(close, "{name} {image}: {got} {want}");
                }
                if name == "map_sum" {
                    let score = top_mean(&got, 1, &mut Vec::new()).unwrap();
                    let want = flat(&vector.expected("score_sum"))[image];
                    assert!((score - want).abs() <= 2e-5 + 1e-4 * want, "{score} {want}");
                }
            }
        }
    }
}
