//! Every kernel on a few sizes, with what the CPU makes of the same numbers: what a card is tried
//! on (`inspectd selftest --device`), and what tests run in the interpreter of PTX, so that the
//! trial itself is tried. At the sizes of a line they are also what is timed (`inspectd bench
//! --device`).
//!
//! Answers of the CPU are plain loops in f64, or the detectors' own code where that is plain.
//! Letters are those of each kernel's room.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use candle_core::Device as CandleDevice;
use half::bf16;
use image::{GrayImage, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::kept::{Kept, read_floats};
use super::nearest_prototype::{self as nearest, Bank, Codes, Found};
use super::pixels::PixelsIn;
use super::plan::Plan;
use super::smooth_upsample::{self, Fused, SmoothUpsample};
use super::{
    Gpu, Launch, Number, Region, cosine_map, patch_features, prototype_residual, top_mean,
};
use crate::detector::input::{Input, MEAN, STD};
use crate::detector::network;
use crate::frame::Image;
use crate::nn::engine::Engine;
use crate::nn::graph::{Distance, Graph};
use crate::nn::plan;
use crate::nn::weights::Weights;
use crate::ops::gaussian::Gaussian;
use crate::ops::interpolate::{Align, bilinear_planes};
use crate::ops::neighbourhood::average_planes;

/// A kernel, or a whole network, on one set of sizes.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Height, width and samples of the picture; height and width of the planes.
    Pixels([usize; 3], [usize; 2]),
    CosineDistances(Distance, Number, Vec<[usize; 2]>),
    CosineProducts(Number, Vec<[usize; 2]>),
    PatchFeatures([[usize; 3]; 2]),
    /// Q, N, D
    Nearest(By, [usize; 3]),
    /// P, N, D, prototypes around
    ImageScore([usize; 4]),
    /// N, D, k
    Ranked([usize; 3]),
    /// Sizes of levels, of the map, σ.
    SmoothUpsample(Fused, Vec<[usize; 2]>, [usize; 2], f32),
    /// B, P, M
    Residual([usize; 3]),
    /// B, N, T
    TopMean([usize; 3]),
    Network(Graph, f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    F32,
    Bf16,
}

/// A case laid out on a card.
pub struct Work<M> {
    pub launches: Vec<Launch>,
    /// That have to be read and written at least, and floating-point operations.
    pub bytes: f64,
    pub flops: f64,
    /// Whether these are tensor cores', in bf16.
    is_tensor: bool,
    checks: Vec<Check>,
    _memory: Vec<M>,
    _plan: Option<Plan<M>>,
}

/// What should be there afterwards.
struct Check {
    at: Region,
    want: Want,
    /// Largest difference, as a share of the largest number wanted.
    bound: f64,
}

enum Want {
    Floats(Vec<f32>),
    /// To the last bit.
    Words(Vec<u32>),
}

/// How far a card was from the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Largest difference, as a share of the largest number wanted; infinite where a number is
    /// none.
    pub difference: f64,
    /// What it may be.
    pub bound: f64,
}

impl Outcome {
    pub fn is_good(&self) -> bool {
        self.difference <= self.bound
    }
}

/// Sizes that fit no tile of a kernel, small enough for an interpreter.
pub fn ragged() -> Vec<Case> {
    use Kind::*;
    let both = [Number::F32, Number::Bf16];
    let mut cases = vec![
        ("pixels, smaller", Pixels([70, 97, 3], [32, 33])),
        ("pixels, larger", Pixels([5, 7, 3], [31, 9])),
        ("pixels, grey", Pixels([64, 65, 1], [17, 65])),
        ("pixels, as they are", Pixels([33, 31, 3], [33, 31])),
        ("patch_features", PatchFeatures([[5, 9, 11], [7, 5, 6]])),
        ("patch_features, one place", PatchFeatures([[33, 1, 1], [1, 1, 1]])),
        ("image_score", ImageScore([65, 20, 33, 9])),
        ("ranked", Ranked([300, 17, 9])),
        ("ranked, few", Ranked([9, 5, 9])),
        ("top_mean", TopMean([2, 1025, 100])),
        ("top_mean, one", TopMean([1, 1, 1])),
        ("top_mean, long", TopMean([1, 9001, 700])),
        ("top_mean, all", TopMean([3, 33, 100])),
        ("prototype_residual", Residual([2, 3, 2049])),
        ("prototype_residual, one", Residual([1, 1, 1])),
        ("prototype_residual, many", Residual([5, 33, 257])),
        ("prototype_residual, long", Residual([1, 3, 140_001])),
    ];
    for numbers in both {
        // Of one channel a distance is 0, and rounding any share of it.
        let levels = vec![[33, 35], [64, 16], [2, 1]];
        for rule in [Distance::OneMinusCosine, Distance::HalfSquared] {
            cases.push(("cosine_distances", CosineDistances(rule, numbers, levels.clone())));
        }
        cases.push(("cosine_products", CosineProducts(numbers, levels)));
        // So deep that every lane has a part of the sums.
        cases.push(("cosine_products, deep", CosineProducts(numbers, vec![[1031, 40], [515, 9]])));
    }
    for by in [By::F32, By::Bf16] {
        for sizes in [[1, 1, 1], [33, 65, 31], [130, 129, 96], [5, 1025, 33]] {
            cases.push(("nearest_prototype", Nearest(by, sizes)));
        }
    }
    for fused in [Fused::Added, Fused::Multiplied] {
        let levels = vec![[9, 7], [1, 3], [16, 17]];
        cases.push(("smooth_upsample", SmoothUpsample(fused, levels.clone(), [33, 31], 0.0)));
        cases.push(("smooth_upsample, blurred", SmoothUpsample(fused, levels, [33, 31], 1.5)));
    }
    cases.into_iter().map(|(name, kind)| Case::of(name, kind)).collect()
}

/// Sizes of a line with pictures of 256 × 256.
pub fn line() -> Vec<Case> {
    use Kind::*;
    let resnet18 = || vec![[64, 64 * 64], [128, 32 * 32], [256, 16 * 16]];
    let maps = || vec![[64, 64], [32, 32], [16, 16]];
    [
        ("pixels", Pixels([2048, 2448, 3], [256, 256])),
        ("cosine_distances", CosineDistances(Distance::HalfSquared, Number::F32, resnet18())),
        ("cosine_distances", CosineDistances(Distance::HalfSquared, Number::Bf16, resnet18())),
        ("cosine_products", CosineProducts(Number::F32, resnet18())),
        ("patch_features", PatchFeatures([[128, 32, 32], [256, 16, 16]])),
        ("nearest_prototype", Nearest(By::F32, [1024, 3000, 384])),
        ("nearest_prototype", Nearest(By::Bf16, [1024, 3000, 384])),
        ("nearest_prototype", Nearest(By::Bf16, [1024, 16384, 384])),
        ("image_score", ImageScore([1024, 3000, 384, 9])),
        ("smooth_upsample, blurred", SmoothUpsample(Fused::Added, maps(), [256, 256], 4.0)),
        ("prototype_residual", Residual([1, 30, 64 * 64 * 64])),
        ("top_mean", TopMean([1, 256 * 256, 100])),
    ]
    .into_iter()
    .map(|(name, kind)| Case::of(name, kind))
    .collect()
}

/// What a kernel's launches do to numbers in their order, f32 sums of a thousand or so.
const SUMS: f64 = 1e-5;

impl Case {
    fn of(name: &str, kind: Kind) -> Self {
        let sizes = match &kind {
            Kind::Network(..) => String::new(),
            kind => format!("{kind:?}")
                .split_once('(')
                .map_or_else(String::new, |(_, sizes)| format!(" ({}", sizes)),
        };
        Self { name: format!("{name}{sizes}"), kind }
    }

    /// A network with drawn weights, which may differ by `bound`.
    pub fn network(name: &str, graph: Graph, bound: f64) -> Self {
        Self::of(name, Kind::Network(graph, bound))
    }

    /// Lays the numbers out and finds the CPU's answer.
    ///
    /// # Errors
    /// What the card says.
    pub fn lay_out<G: Gpu>(&self, gpu: &mut G, engine: &Engine) -> Result<Work<G::Memory>> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        if let Kind::Network(graph, bound) = &self.kind {
            return network_on(gpu, graph, *bound, engine, &mut rng);
        }
        let mut kept = Kept::on(gpu);
        let laid = match &self.kind {
            Kind::Pixels(from, to) => pixels(&mut kept, *from, *to, &mut rng),
            Kind::CosineDistances(rule, numbers, levels) => {
                cosines(&mut kept, Some(*rule), *numbers, levels, &mut rng)
            }
            Kind::CosineProducts(numbers, levels) => {
                cosines(&mut kept, None, *numbers, levels, &mut rng)
            }
            Kind::PatchFeatures(levels) => features(&mut kept, *levels, &mut rng),
            Kind::Nearest(by, sizes) => nearest(&mut kept, *by, *sizes, &mut rng),
            Kind::ImageScore(sizes) => image_score(&mut kept, *sizes, &mut rng),
            Kind::Ranked(sizes) => ranked(&mut kept, *sizes, &mut rng),
            Kind::SmoothUpsample(fused, levels, to, sigma) => {
                upsampled(&mut kept, *fused, levels, *to, *sigma, &mut rng)
            }
            Kind::Residual(sizes) => residual(&mut kept, *sizes, &mut rng),
            Kind::TopMean(sizes) => means(&mut kept, *sizes, &mut rng),
            Kind::Network(..) => unreachable!("done above"),
        }?;
        let Laid { launches, checks, bytes, flops } = laid;
        let is_tensor = matches!(self.kind, Kind::Nearest(By::Bf16, _));
        Ok(Work { launches, bytes, flops, is_tensor, checks, _memory: kept.memory, _plan: None })
    }

    /// Runs it once and holds it against the CPU's answer.
    ///
    /// # Errors
    /// What the card says.
    pub fn try_on(&self, gpu: &mut impl Gpu, engine: &Engine) -> Result<Outcome> {
        let work = self.lay_out(gpu, engine)?;
        work.launches.iter().try_for_each(|launch| gpu.launch(launch))?;
        work.held_against(gpu)
    }
}

impl<M> Work<M> {
    /// Operations that the card's usual units do.
    pub fn f32_flops(&self) -> f64 {
        if self.is_tensor { 0.0 } else { self.flops }
    }

    /// What the launches have left against the CPU's answer; the worst of all of it.
    ///
    /// # Errors
    /// What the card says.
    pub fn held_against(&self, gpu: &mut impl Gpu) -> Result<Outcome> {
        ensure!(!self.checks.is_empty(), "a case without an answer");
        let mut worst = Outcome { difference: 0.0, bound: 0.0 };
        for check in &self.checks {
            let difference = check.difference(gpu)?;
            let outcome = Outcome { difference, bound: check.bound };
            if worst.is_good() && (!outcome.is_good() || difference >= worst.difference) {
                worst = outcome;
            }
        }
        Ok(worst)
    }
}

impl Check {
    fn difference(&self, gpu: &mut impl Gpu) -> Result<f64> {
        let got = read_floats(gpu, self.at)?;
        let want = match &self.want {
            Want::Words(want) => {
                let wrong = got.iter().zip(want).any(|(got, want)| got.to_bits() != *want);
                return Ok(if wrong || got.len() != want.len() { f64::INFINITY } else { 0.0 });
            }
            Want::Floats(want) => want,
        };
        ensure!(got.len() == want.len(), "{} numbers of {}", got.len(), want.len());
        let largest = want.iter().fold(1e-30, |most, want| want.abs().max(most));
        let off = got.iter().zip(want).map(|(got, want)| f64::from((got - want).abs()));
        // A NaN is kept by none of the usual comparisons.
        let most = off.fold(0.0, |most: f64, off| if off <= most { most } else { off });
        Ok(if most.is_nan() { f64::INFINITY } else { most / f64::from(largest) })
    }
}

/// A case but for its memory.
struct Laid {
    launches: Vec<Launch>,
    checks: Vec<Check>,
    bytes: f64,
    flops: f64,
}

type Made = Result<Laid>;

fn floats(at: Region, want: Vec<f32>, bound: f64) -> Check {
    Check { at, want: Want::Floats(want), bound }
}

fn drawn(count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// As bf16 has them.
fn coarse(numbers: &mut [f32]) {
    numbers.iter_mut().for_each(|number| *number = bf16::from_f32(*number).to_f32());
}

fn halves(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| bf16::from_f32(*number).to_bits().to_le_bytes()).collect()
}

fn pixels<G: Gpu>(
    kept: &mut Kept<'_, G>,
    [height, width, depth]: [usize; 3],
    [to_height, to_width]: [usize; 2],
    rng: &mut ChaCha8Rng,
) -> Made {
    let samples: Vec<u8> = (0..height * width * depth).map(|_| rng.random()).collect();
    let (columns, rows) = (width as u32, height as u32);
    let image = match depth {
        1 => GrayImage::from_raw(columns, rows, samples.clone()).map(Image::Gray),
        _ => RgbImage::from_raw(columns, rows, samples.clone()).map(Image::Rgb),
    };
    let image = anyhow::Context::context(image, "a picture of another size")?;
    let input = Input { width: to_width, height: to_height };
    let want = input.tensor(&[&image], &CandleDevice::Cpu)?.flatten_all()?.to_vec1()?;
    let resize = PixelsIn::new((height, width), depth, (to_height, to_width), MEAN, STD);
    let (table, from) = (kept.bytes(&resize.table())?, kept.bytes(&samples)?);
    let to = kept.room(12 * to_height * to_width)?;
    Ok(Laid {
        launches: vec![resize.run(1, table, from, to)],
        // The same whole numbers, normalised.
        checks: vec![floats(to, want, 1e-6)],
        bytes: (samples.len() + to.bytes) as f64,
        flops: 0.0,
    })
}

/// Distances by a rule, or products where there is none.
fn cosines<G: Gpu>(
    kept: &mut Kept<'_, G>,
    rule: Option<Distance>,
    numbers: Number,
    sizes: &[[usize; 2]],
    rng: &mut ChaCha8Rng,
) -> Made {
    let (mut levels, mut checks) = (Vec::new(), Vec::new());
    let (mut bytes, mut flops) = (0, 0);
    for &[channels, places] in sizes {
        let mut maps = [drawn(channels * places, rng), drawn(channels * places, rng)];
        let [a, b] = maps.each_mut().map(|map| match numbers {
            Number::Bf16 => {
                coarse(map);
                kept.bytes(&halves(map))
            }
            _ => kept.floats(map),
        });
        let to = kept.room(4 * if rule.is_some() { places } else { channels * places })?;
        let level = cosine_map::Level { a: a?, b: b?, to, channels, places };
        bytes += level.a.bytes + level.b.bytes + to.bytes;
        flops += 6 * channels * places;
        levels.push(level);
        checks.push(floats(to, cosines_by_definition(&maps, rule, channels, places), SUMS));
    }
    let launch = match rule {
        Some(rule) => cosine_map::cosine_distances(rule, numbers, 1, &levels),
        None => cosine_map::cosine_products(numbers, 1, &levels),
    };
    Ok(Laid { launches: vec![launch], checks, bytes: bytes as f64, flops: flops as f64 })
}

fn cosines_by_definition(
    [a, b]: &[Vec<f32>; 2],
    rule: Option<Distance>,
    channels: usize,
    places: usize,
) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32], place: usize| -> f64 {
        (0..channels)
            .map(|c| f64::from(a[c * places + place]) * f64::from(b[c * places + place]))
            .sum()
    };
    // n(F) = F / (√ΣF² + 10⁻¹²): of drawn numbers, which are not near 0.
    let cosine = |place| dot(a, b, place) / (dot(a, a, place).sqrt() * dot(b, b, place).sqrt());
    if rule.is_some() {
        // ½‖n(a) − n(b)‖² is 1 − cos where neither is 0.
        return (0..places).map(|place| (1.0 - cosine(place)) as f32).collect();
    }
    let mut products = vec![0.0; channels * places];
    for place in 0..places {
        let norms = dot(a, a, place).sqrt() * dot(b, b, place).sqrt();
        for c in 0..channels {
            let at = c * places + place;
            products[at] = (-f64::from(a[at]) * f64::from(b[at]) / norms) as f32;
        }
    }
    products
}

fn features<G: Gpu>(kept: &mut Kept<'_, G>, sizes: [[usize; 3]; 2], rng: &mut ChaCha8Rng) -> Made {
    let [upper, deeper] = sizes.map(|[c, h, w]| drawn(c * h * w, rng));
    let [[upper_channels, h, w], [deeper_channels, deeper_h, deeper_w]] = sizes;
    let level = |at, [channels, height, width]: [usize; 3]| patch_features::Level {
        at,
        channels,
        height,
        width,
    };
    let averaged = average_planes(&deeper, deeper_h, deeper_w);
    let resized = bilinear_planes(&averaged, (deeper_h, deeper_w), (h, w), Align::HalfPixel);
    let planes = [average_planes(&upper, h, w), resized].concat();
    let dims = upper_channels + deeper_channels;
    let turned = |i: usize| planes[i % dims * (h * w) + i / dims];
    let want: Vec<f32> = (0..h * w * dims).map(turned).collect();
    let at = [kept.floats(&upper)?, kept.floats(&deeper)?];
    let rows = kept.room(4 * want.len())?;
    let [upper, deeper] = [level(at[0], sizes[0]), level(at[1], sizes[1])];
    Ok(Laid {
        launches: vec![patch_features::patch_features(1, upper, deeper, rows, None)],
        checks: vec![floats(rows, want, SUMS)],
        bytes: (at[0].bytes + at[1].bytes + rows.bytes) as f64,
        flops: 0.0,
    })
}

fn distance2(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}

fn nearest<G: Gpu>(
    kept: &mut Kept<'_, G>,
    by: By,
    [queries, count, dims]: [usize; 3],
    rng: &mut ChaCha8Rng,
) -> Made {
    let prototypes = drawn(count * dims, rng);
    // Each query lies near a prototype, which is the nearest by any arithmetic; in few dimensions
    // another may be nearer.
    let mut rows = Vec::with_capacity(queries * dims);
    let mut indices = Vec::with_capacity(queries);
    for _ in 0..queries {
        let index = rng.random_range(0..count);
        let near = &prototypes[index * dims..][..dims];
        rows.extend(near.iter().map(|x| x + rng.random_range(-0.05..0.05)));
        indices.push(index as u32);
    }
    if dims < 16 {
        for (row, index) in rows.chunks(dims).zip(&mut indices) {
            let distance = |i: &usize| distance2(row, &prototypes[i * dims..][..dims]);
            let best = (0..count).min_by(|a, b| distance(a).total_cmp(&distance(b)));
            *index = best.unwrap_or(0) as u32;
        }
    }
    let distances: Vec<f32> = rows
        .chunks(dims)
        .zip(&indices)
        .map(|(row, &i)| distance2(row, &prototypes[i as usize * dims..][..dims]).sqrt() as f32)
        .collect();

    let bank = Bank { count, dims, rows: kept.floats(&prototypes)? };
    let wide = nearest::code_dims(dims);
    let (search, searched) = match by {
        By::F32 => (nearest::Search::F32, 4 * (rows.len() + prototypes.len())),
        By::Bf16 => {
            let codes = Codes::new(&prototypes, dims);
            let code = |row: &[f32]| -> Vec<u8> {
                let own = row.iter().zip(&codes.centre).map(|(x, centre)| x - centre);
                let own: Vec<f32> = own.chain(std::iter::repeat(0.0)).take(wide).collect();
                halves(&own)
            };
            let of_rows: Vec<u8> = rows.chunks(dims).flat_map(code).collect();
            let bits: Vec<u8> = codes.rows.iter().flat_map(|bits| bits.to_le_bytes()).collect();
            let search = nearest::Search::Bf16 {
                codes: kept.bytes(&bits)?,
                norms2: kept.floats(&codes.norms2)?,
                queries: kept.bytes(&of_rows)?,
            };
            (search, 2 * wide * (queries + count))
        }
    };
    let found = Found {
        winners: kept.room(nearest::winner_bytes(&search, bank, queries))?,
        nearest: kept.room(4 * queries)?,
        distances: kept.room(4 * queries)?,
    };
    let at = kept.floats(&rows)?;
    Ok(Laid {
        launches: nearest::nearest(search, bank, queries, at, found).into(),
        checks: vec![
            Check { at: found.nearest, want: Want::Words(indices), bound: 0.0 },
            floats(found.distances, distances, SUMS),
        ],
        bytes: (searched + 8 * queries) as f64,
        flops: 2.0 * (queries * count * dims) as f64,
    })
}

fn image_score<G: Gpu>(
    kept: &mut Kept<'_, G>,
    [patches, count, dims, around]: [usize; 4],
    rng: &mut ChaCha8Rng,
) -> Made {
    let (prototypes, rows) = (drawn(count * dims, rng), drawn(patches * dims, rng));
    let neighbours: Vec<u32> =
        (0..count).flat_map(|i| (0..around).map(move |k| ((i + k * 7) % count) as u32)).collect();
    let nearest: Vec<u32> = (0..patches).map(|_| rng.random_range(0..count) as u32).collect();
    let to = |row: &[f32], i: u32| distance2(row, &prototypes[i as usize * dims..][..dims]).sqrt();
    let distances: Vec<f64> = rows.chunks(dims).zip(&nearest).map(|(row, &i)| to(row, i)).collect();
    let worst =
        (0..patches).fold(0, |most, i| if distances[i] > distances[most] { i } else { most });
    let row = &rows[worst * dims..][..dims];
    let others = &neighbours[nearest[worst] as usize * around..][..around];
    let total: f64 =
        others.iter().skip(1).map(|&i| (to(row, i) - distances[worst]).exp()).sum::<f64>() + 1.0;
    let want = (distances[worst] * (1.0 - 1.0 / total)) as f32;

    let bank = Bank { count, dims, rows: kept.floats(&prototypes)? };
    let distances: Vec<f32> = distances.into_iter().map(|distance| distance as f32).collect();
    let looked_up = nearest::Patches {
        images: 1,
        patches,
        rows: kept.floats(&rows)?,
        nearest: kept.words(&nearest)?,
        distances: kept.floats(&distances)?,
    };
    let around_each = kept.words(&neighbours)?;
    let score = kept.room(4)?;
    Ok(Laid {
        launches: vec![nearest::image_score(bank, looked_up, around_each, around, score)],
        checks: vec![floats(score, vec![want], SUMS)],
        bytes: (4 * patches + 4 * (around + 1) * dims) as f64,
        flops: 0.0,
    })
}

fn ranked<G: Gpu>(
    kept: &mut Kept<'_, G>,
    [count, dims, k]: [usize; 3],
    rng: &mut ChaCha8Rng,
) -> Made {
    let (prototypes, row) = (drawn(count * dims, rng), drawn(dims, rng));
    let mut order: Vec<(f64, u32)> = prototypes
        .chunks(dims)
        .zip(0..)
        .map(|(prototype, i)| (distance2(&row, prototype), i))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    order.truncate(k);
    let bank = Bank { count, dims, rows: kept.floats(&prototypes)? };
    let found = nearest::Ranked {
        candidates: kept.room(nearest::ranked_bytes(bank, k))?,
        indices: kept.room(4 * k)?,
        distances2: kept.room(4 * k)?,
    };
    let at = kept.floats(&row)?;
    let indices = order.iter().map(|(_, i)| *i).collect();
    let distances2 = order.iter().map(|(distance2, _)| *distance2 as f32).collect();
    Ok(Laid {
        launches: nearest::ranked(bank, at, k, found).into(),
        checks: vec![
            Check { at: found.indices, want: Want::Words(indices), bound: 0.0 },
            floats(found.distances2, distances2, SUMS),
        ],
        bytes: 4.0 * prototypes.len() as f64,
        flops: 3.0 * prototypes.len() as f64,
    })
}

fn upsampled<G: Gpu>(
    kept: &mut Kept<'_, G>,
    fused: Fused,
    sizes: &[[usize; 2]],
    [height, width]: [usize; 2],
    sigma: f32,
    rng: &mut ChaCha8Rng,
) -> Made {
    let to = (height, width);
    let mut want = vec![if fused == Fused::Added { 0.0 } else { 1.0 }; height * width];
    let mut ways = Vec::new();
    for &[h, w] in sizes {
        let level: Vec<f32> = drawn(h * w, rng).into_iter().map(f32::abs).collect();
        let mut map = bilinear_planes(&level, (h, w), to, Align::HalfPixel);
        Gaussian::new(sigma).blur(&mut map, width);
        for (want, own) in want.iter_mut().zip(&map) {
            match fused {
                Fused::Added => *want += own,
                Fused::Multiplied => *want *= own,
            }
        }
        let way = SmoothUpsample::new((h, w), to, sigma);
        let table = kept.bytes(&way.table())?;
        ways.push((way, table, kept.floats(&level)?));
    }
    let map = kept.room(4 * want.len())?;
    let levels: Vec<smooth_upsample::Level<'_>> = ways
        .iter()
        .map(|(way, table, from)| smooth_upsample::Level { way, table: *table, from: *from })
        .collect();
    let bytes: usize = ways.iter().map(|(_, table, from)| table.bytes + from.bytes).sum();
    Ok(Laid {
        launches: vec![smooth_upsample::fuse_levels(fused, 1, &levels, map)],
        checks: vec![floats(map, want, SUMS)],
        bytes: (bytes + map.bytes) as f64,
        flops: 0.0,
    })
}

fn residual<G: Gpu>(
    kept: &mut Kept<'_, G>,
    [images, prototypes, length]: [usize; 3],
    rng: &mut ChaCha8Rng,
) -> Made {
    let bank = drawn(prototypes * length, rng);
    let maps = drawn(images * length, rng);
    let mut want = Vec::with_capacity(maps.len());
    for map in maps.chunks(length) {
        let distance = |i: &usize| distance2(map, &bank[i * length..][..length]);
        let nearest = (0..prototypes).min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let nearest = &bank[nearest.unwrap_or(0) * length..][..length];
        want.extend(map.iter().zip(nearest).map(|(x, p)| (x - p).abs()));
    }
    let sizes = prototype_residual::Sizes { images, prototypes, length };
    let (at, of) = (kept.floats(&maps)?, kept.floats(&bank)?);
    let (parts, to) = (kept.room(sizes.part_bytes())?, kept.room(at.bytes)?);
    Ok(Laid {
        launches: prototype_residual::prototype_residual(sizes, at, of, parts, to).into(),
        checks: vec![floats(to, want, 1e-6)],
        bytes: (of.bytes + 3 * at.bytes) as f64,
        flops: 3.0 * (images * prototypes * length) as f64,
    })
}

fn means<G: Gpu>(
    kept: &mut Kept<'_, G>,
    [images, count, top]: [usize; 3],
    rng: &mut ChaCha8Rng,
) -> Made {
    let maps = drawn(images * count, rng);
    let mean = |map: &[f32]| network::top_mean(map, top, &mut Vec::new());
    let want = maps.chunks(count).map(mean).collect::<Result<_>>()?;
    let (at, to) = (kept.floats(&maps)?, kept.room(4 * images)?);
    Ok(Laid {
        launches: vec![top_mean::top_mean(images, count, top, at, to)],
        checks: vec![floats(to, want, SUMS)],
        bytes: at.bytes as f64,
        flops: 0.0,
    })
}

/// A whole network against the CPU's plan of it.
fn network_on<G: Gpu>(
    gpu: &mut G,
    graph: &Graph,
    bound: f64,
    engine: &Engine,
    rng: &mut ChaCha8Rng,
) -> Result<Work<G::Memory>> {
    let weights = tame(graph, rng)?;
    let dims = graph.nodes()[0].dims;
    let pixels: Vec<f32> =
        (0..3 * dims.height * dims.width).map(|_| rng.random_range(-2.0..2.0)).collect();
    let mut cpu = plan::Plan::new(graph, &weights, 1, engine.isa, engine.team.clone())?;
    let planes = cpu.planes();
    planes.write(&pixels, cpu.pixels());
    cpu.run()?;

    let own = Plan::new(gpu, graph, &weights, 1)?;
    let bytes: Vec<u8> = pixels.iter().flat_map(|x| x.to_le_bytes()).collect();
    gpu.upload(&bytes, own.input(0))?;
    let checks =
        (0..cpu.outputs()).map(|i| floats(own.output(i), cpu.output(i).read(), bound)).collect();
    let launches = own.launches().to_vec();
    Ok(Work {
        launches,
        bytes: cpu.weight_bytes() as f64,
        flops: cpu.flops(),
        is_tensor: false,
        checks,
        _memory: Vec::new(),
        _plan: Some(own),
    })
}

/// Drawn weights with smaller convolutions, σ = 0.7·√(2/(C·K·K)), so that numbers stay moderate
/// where many channels become few.
fn tame(graph: &Graph, rng: &mut ChaCha8Rng) -> Result<Weights> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in graph.random_weights(rng)?.tensors() {
        let tensor = match tensor.dims() {
            &[o, c, _, _] if name.ends_with(".weight") => {
                (tensor * (0.7 * (o as f64 / c as f64).sqrt()))?
            }
            _ => tensor.clone(),
        };
        tensors.insert(name.to_owned(), tensor);
    }
    Weights::from_tensors("drawn", tensors)
}
