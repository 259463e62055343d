//! What detectors that are a network have in common: a picture in, one-channel maps out.

use anyhow::{Result, ensure};

use super::input::{Input, MEAN, STD, pixels};
use crate::cuda::detectors::Maps;
use crate::frame::Image;
use crate::nn::engine::Engine;
use crate::nn::graph::Graph;
use crate::nn::plan::Plan;
use crate::nn::weights::Weights;
use crate::ops::pixels::PixelsIn;
use crate::ops::squared_norm::squared_norm;

/// A network ready for the line, picture by picture.
pub struct Network {
    engine: Engine,
    place: Place,
}

/// Where it runs.
enum Place {
    Cpu { pixels: Box<PixelsIn>, plan: Box<Plan> },
    Card(Box<dyn Maps>),
}

impl Network {
    /// # Errors
    /// An input size that can't be; a tensor that is missing, of another shape or not finite; what
    /// the card says, where there is one.
    pub fn new(
        graph: impl FnOnce(usize, usize) -> Graph,
        input: Input,
        weights: &Weights,
        engine: &Engine,
    ) -> Result<Network> {
        input.check()?;
        let graph = graph(input.height, input.width);
        let place = match &engine.gpus {
            Some(gpus) => Place::Card(gpus.network(&graph, weights)?),
            None => {
                let plan = Plan::new(&graph, weights, 1, engine.isa, engine.team.clone())?;
                let pixels = Box::new(PixelsIn::new(plan.planes(), MEAN, STD));
                Place::Cpu { pixels, plan: Box::new(plan) }
            }
        };
        Ok(Network { engine: engine.clone(), place })
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How many maps it makes, and the height and width of each.
    pub fn sizes(&self) -> Vec<(usize, usize)> {
        match &self.place {
            Place::Cpu { plan, .. } => {
                let size = |i: usize| {
                    let shape = plan.output(i).shape();
                    (shape.height, shape.width)
                };
                (0..plan.outputs()).map(size).collect()
            }
            Place::Card(maps) => maps.shapes().iter().map(|&[_, h, w]| (h, w)).collect(),
        }
    }

    /// # Errors
    /// A picture without pixels; what the card says.
    pub fn run(&mut self, image: &Image) -> Result<()> {
        match &mut self.place {
            Place::Cpu { pixels: pixels_in, plan } => {
                let Engine { isa, team, .. } = &self.engine;
                pixels_in.run(team, *isa, &[pixels(image)?], plan.pixels());
                plan.run()
            }
            Place::Card(maps) => maps.run(&pixels(image)?),
        }
    }

    /// Map `index` of the last run into `map`, rows from the top.
    ///
    /// # Errors
    /// What the card says, the run being the reason.
    pub fn read(&mut self, index: usize, map: &mut Vec<f32>) -> Result<()> {
        match &mut self.place {
            Place::Cpu { plan, .. } => {
                let from = plan.output(index);
                let shape = from.shape();
                map.clear();
                for y in 0..shape.height {
                    map.extend((0..shape.width).map(|x| from.get(0, 0, y, x)));
                }
                Ok(())
            }
            Place::Card(maps) => {
                *map = maps.read(index)?;
                Ok(())
            }
        }
    }

    /// Σ_c x² at each place of the last run's output `index`, which has many channels.
    ///
    /// # Errors
    /// What the card says, the run being the reason.
    ///
    /// # Panics
    /// If `norms` is not as long as there are places.
    pub fn read_squared_norm(&mut self, index: usize, norms: &mut [f32]) -> Result<()> {
        match &mut self.place {
            Place::Cpu { plan, .. } => {
                squared_norm(&self.engine.team, self.engine.isa, plan.output(index), norms);
            }
            Place::Card(maps) => {
                norms.fill(0.0);
                for plane in maps.read(index)?.chunks_exact(norms.len()) {
                    norms.iter_mut().zip(plane).for_each(|(norm, x)| *norm += x * x);
                }
            }
        }
        Ok(())
    }
}

/// The mean of the `count` largest values, of all where there are fewer. `work` is memory for it.
///
/// # Errors
/// A value that is not finite.
pub fn top_mean(map: &[f32], count: usize, work: &mut Vec<f32>) -> Result<f32> {
    ensure!(map.iter().all(|value| value.is_finite()), "the anomaly map is not finite");
    work.clear();
    work.extend_from_slice(map);
    let count = count.clamp(1, work.len());
    if count < work.len() {
        work.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        work.truncate(count);
    }
    // In their order, so that the sum depends on the values alone.
    work.sort_unstable_by(|a, b| b.total_cmp(a));
    let sum: f64 = work.iter().map(|&value| f64::from(value)).sum();
    Ok((sum / count as f64) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::vectors::{Vector, flat};

    #[test]
    fn the_mean_of_the_largest_is_the_vectors() {
        let Some(vector) = Vector::open("topk_mean") else { return };
        let maps = flat(&vector.input("x"));
        for count in [1, 10, 100, 256, 1000] {
            let want = flat(&vector.expected(&format!("T{count}")));
            for (map, want) in maps.chunks(256).zip(want) {
                let got = top_mean(map, count, &mut Vec::new()).unwrap();
                assert!((got - want).abs() <= 1e-6 + 1e-6 * want.abs(), "{count}: {got} {want}");
            }
        }
    }

    #[test]
    fn a_map_that_is_not_finite_has_no_score() {
        assert!(top_mean(&[0.5, f32::NAN], 1, &mut Vec::new()).is_err());
    }
}
