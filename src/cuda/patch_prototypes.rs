//! Patch features against a memory bank, on a card: a picture in, score and map out
//! ([`crate::detector::patch_prototypes`] says what they are). The nearest prototypes are those of
//! the search in f32, the CPU's to the bit where features are.
//! Letters: P patches, D dimensions of a feature, N prototypes, H × W the map.

use anyhow::{Context, Result};

use super::detectors::{Patches, Search};
use super::from_pixels::FromPixels;
use super::kept::Kept;
use super::nearest_prototype::{self, Bank, Found};
use super::patch_features::{self, Level};
use super::plan::Plan;
use super::smooth_upsample::{self, Fused, SmoothUpsample};
use super::{Gpu, Launch, Region};
use crate::detector::input::Input;
use crate::detector::patch_prototypes::NEIGHBOURS;
use crate::nn::graph::Graph;
use crate::nn::weights::Weights;
use crate::ops::pixels::Pixels;

pub struct PatchPrototypes<G: Gpu> {
    way: FromPixels<G>,
    /// The map [H, W] and behind it the score.
    found: Region,
    /// What the launches read and write.
    _plan: Plan<G::Memory>,
    _memory: Vec<G::Memory>,
}

impl<G: Gpu> PatchPrototypes<G> {
    /// `graph` ends with levels 2 and 3 of the backbone.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape or not finite; what the card says.
    pub fn new(mut gpu: G, graph: &Graph, weights: &Weights, search: &Search<'_>) -> Result<Self> {
        let plan = Plan::new(&mut gpu, graph, weights, 1)?;
        let mut rest = plan.launches().to_vec();
        let mut kept = Kept::on(&mut gpu);
        let found = searched(&mut kept, graph, &plan, search, &mut rest)
            .context("the memory bank on the card")?;
        let memory = kept.memory;
        let Input { width, height } = search.input;
        let way = FromPixels::new(gpu, (height, width), plan.input(0), rest);
        Ok(Self { way, found, _plan: plan, _memory: memory })
    }
}

/// Adds the launches from levels to score and map, and says where these are.
fn searched<G: Gpu>(
    kept: &mut Kept<'_, G>,
    graph: &Graph,
    plan: &Plan<G::Memory>,
    search: &Search<'_>,
    launches: &mut Vec<Launch>,
) -> Result<Region> {
    let Search { input, bank: host, neighbours, sigma_px } = search;
    let level = |i: usize| {
        let dims = graph.dims(graph.outputs()[i]);
        Level {
            at: plan.output(i),
            channels: dims.channels,
            height: dims.height,
            width: dims.width,
        }
    };
    let (upper, deeper) = (level(0), level(1));
    let patches = upper.height * upper.width;
    let (count, dims) = (host.len(), host.dim());
    let bank = Bank { count, dims, rows: kept.floats(host.rows())? };
    let rows = kept.room(4 * patches * dims)?;
    launches.push(patch_features::patch_features(1, upper, deeper, rows, None));

    let by = nearest_prototype::Search::F32;
    let winners = kept.room(nearest_prototype::winner_bytes(&by, bank, patches))?;
    let (nearest, distances) = (kept.room(4 * patches)?, kept.room(4 * patches)?);
    let places = Found { winners, nearest, distances };
    launches.extend(nearest_prototype::nearest(by, bank, patches, rows, places));

    let (height, width) = (input.height, input.width);
    let map_bytes = 4 * height * width;
    let found = kept.room(map_bytes + 4)?;
    let around = kept.words(neighbours)?;
    let looked_up = nearest_prototype::Patches { images: 1, patches, rows, nearest, distances };
    let score = found.part(map_bytes, 4);
    launches.push(nearest_prototype::image_score(bank, looked_up, around, NEIGHBOURS, score));

    let way = SmoothUpsample::new((upper.height, upper.width), (height, width), *sigma_px);
    let table = kept.bytes(&way.table())?;
    let level = smooth_upsample::Level { way: &way, table, from: distances };
    let map = found.part(0, map_bytes);
    launches.push(smooth_upsample::fuse_levels(Fused::Added, 1, &[level], map));
    Ok(found)
}

impl<G> Patches for PatchPrototypes<G>
where
    G: Gpu<Memory: Send> + Send,
{
    fn run(&mut self, pixels: &Pixels<'_>, map: &mut [f32]) -> Result<f32> {
        self.way.run(pixels)?;
        let found = self.way.read(self.found)?;
        let (score, own) = found.split_last().context("a result of no numbers")?;
        map.copy_from_slice(own);
        Ok(*score)
    }
}
