//! PRN's prototypes: maps that good parts have at a scale, whole, or the means of clusters of them
//! (Zhang et al. 2023, section 3.1).
//!
//! All maps of one scale are in memory at once: 1 MiB a picture at the first of 256×256, then a half,
//! then a quarter.

use anyhow::{Context, Result, ensure};

use super::kmeans;
use crate::dataset::pictures::Pictures;
use crate::detector::input::{MEAN, STD};
use crate::nn::engine::Engine;
use crate::nn::graph::Graph;
use crate::nn::plan::Plan;
use crate::nn::weights::Weights;
use crate::ops::gram::gram;
use crate::ops::pixels::{Pixels, PixelsIn};
use crate::synth::{SampleKey, Tag};

/// The prototypes of a scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// From 0.
    pub scale: usize,
    pub prototypes: Vec<f32>, // [K, C, H, W]
    /// K, and the maps that they are means of.
    pub count: usize,
    pub maps: usize,
    /// Of k-means; none where every map is a prototype.
    pub rounds: usize,
}

/// `count` prototypes of the only output of `graph`, which is for pictures of their size.
///
/// # Errors
/// A picture that can't be read; fewer pictures than prototypes.
pub fn find(
    graph: &Graph,
    weights: &Weights,
    pictures: &Pictures,
    (scale, count): (usize, usize),
    seed: u64,
    engine: &Engine,
) -> Result<Found> {
    let n = pictures.len();
    ensure!((1..=n).contains(&count), "{count} prototypes of {n} good parts");
    let maps = maps(graph, weights, pictures, engine)?;
    if count == n {
        return Ok(Found { scale, prototypes: maps, count, maps: n, rounds: 0 });
    }
    let key = SampleKey { seed, epoch: scale as u64, index: CENTRES };
    let initial = rand::seq::index::sample(&mut key.rng(Tag::Order), n, count).into_vec();
    let clusters = kmeans::cluster(&gram(engine.isa, &maps, n), &initial);
    let prototypes = kmeans::centres(&maps, &clusters.labels, count);
    Ok(Found { scale, prototypes, count, maps: n, rounds: clusters.rounds })
}

/// The draw of first centres, apart from those of epochs and of held-out pictures.
const CENTRES: u64 = u64::MAX - 2;

/// What the network makes of each picture: [N, C, H, W].
fn maps(
    graph: &Graph,
    weights: &Weights,
    pictures: &Pictures,
    engine: &Engine,
) -> Result<Vec<f32>> {
    let Engine { isa, team, .. } = engine;
    let mut plan = Plan::new(graph, weights, 1, *isa, team.clone())?;
    let mut pixels = PixelsIn::new(plan.planes(), MEAN, STD);
    let dims = graph.dims(*graph.outputs().first().context("a network without output")?);
    let size = dims.channels * dims.height * dims.width;
    let mut maps = Vec::with_capacity(pictures.len() * size);
    for index in 0..pictures.len() {
        let picture = pictures.get(index)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let from = Pixels::new(picture.as_raw(), (height, width), 3);
        pixels.run(team, *isa, &[from], plan.pixels());
        plan.run()?;
        maps.extend(plan.output(0).read());
    }
    ensure!(maps.iter().all(|value| value.is_finite()), "a feature of a good part is not finite");
    Ok(maps)
}
