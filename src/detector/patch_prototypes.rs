//! Nearest-prototype search over patch features: the PatchCore family (Roth et al. 2022, "Towards
//! Total Recall in Industrial Anomaly Detection").
//!
//! Levels 2 and 3 of a frozen backbone, each averaged over 3 × 3 neighbourhoods, level 3 brought
//! to level 2's grid and laid beside it: one feature a patch of 8 × 8 pixels. The memory bank
//! holds prototypes, a coreset of the patch features of good parts. A patch is as anomalous as it
//! is far from the nearest prototype (L2, not squared).
//!
//! The image score is the distance s* of the worst patch m*test, re-weighted by eq. 7 as anomalib
//! reads it: w = 1 − exp(d(m*test, m*)) / Σ exp(d(m*test, m)), the sum over the b = 9 prototypes
//! nearest to m*, m* itself among them; distances are not normalised. As m* is the nearest of all,
//! w lies in [8/9, 1) (for b = 9): it orders parts, it does not excuse them.
//!
//! Letters: B pictures, C channels, D = C2 + C3, H × W input size, P = H/8 · W/8 patches, N
//! prototypes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::bundle;
use super::input::{Input, MEAN, STD};
use super::{AnomalyMap, Detection, Detector};
use crate::cuda::detectors::{Patches, Search};
use crate::frame::Image;
use crate::nn::engine::Engine;
use crate::nn::graph::Graph;
use crate::nn::plan::{Calibrator, Plan, Quantization};
use crate::nn::resnet::Depth;
use crate::nn::weights::Weights;
use crate::nn::{self, Backbone, BackboneSpec};
use crate::ops::nearest_prototype::{Nearest, PrototypeBank, Scratch, squared_distance};
use crate::ops::patch_features::PatchFeatures as PatchRows;
use crate::ops::pixels::PixelsIn;
use crate::ops::smooth_upsample::SmoothUpsample;
use crate::ops::team::Team;

/// The word for this system in a card.
pub const SYSTEM: &str = "patch_prototypes";

/// b of eq. 7; the paper's and anomalib's number.
pub const NEIGHBOURS: usize = 9;

/// Blur of the full-size anomaly map, pixels; the paper's σ (section 4.1).
pub const SIGMA_PX: f32 = 4.0;

/// Side of the neighbourhoods that features are averaged over; the paper's p.
pub const NEIGHBOURHOOD: usize = 3;

/// Feature levels used, the shallower first; its grid is the patches'.
pub const LEVELS: [usize; 2] = [2, 3];

/// Input pixels along a patch: the stride of level 2.
const PATCH_PX: usize = 8;

/// This system's part of `model.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub levels: Vec<usize>,
    /// Side of the neighbourhoods that features are averaged over.
    pub neighbourhood: usize,
    /// N, rows of the memory bank.
    pub count: usize,
    /// D, channels of a prototype.
    pub dims: usize,
    /// Patches of good parts that the prototypes were chosen from.
    pub patches: usize,
    /// Dimensions that features were randomly projected to for the choice.
    pub projected_dims: usize,
}

/// Patch features of pictures, by one backbone at one input size: picture by picture, so that a
/// batch says of each what it says of it alone.
pub struct PatchFeatures {
    engine: Engine,
    input: Input,
    dims: usize,
    pixels: PixelsIn,
    /// Levels 2 and 3 of one picture.
    plan: Plan,
    rows: PatchRows,
    /// What a card needs to do the same, where there is one.
    for_card: Option<(Graph, Weights)>,
}

/// A frozen backbone, and its tensors where a bundle has to carry them.
pub struct LoadedBackbone {
    pub backbone: Backbone,
    /// By torchvision's names, up to layer3; empty for the backbone that is in the program.
    pub tensors: BTreeMap<String, Tensor>,
}

/// The detector: patch features against the memory bank.
pub struct PatchPrototypes {
    features: PatchFeatures,
    bank: PrototypeBank,
    /// N · b indices: the b prototypes nearest to each, itself first.
    neighbours: Vec<u32>,
    map: SmoothUpsample,
    /// What does all of it, where there is a card.
    card: Option<Box<dyn Patches>>,
    work: Work,
}

/// Of one picture; kept from one to the next.
#[derive(Default)]
struct Work {
    features: Vec<f32>,    // [P, D]
    nearest: Vec<Nearest>, // [P]
    distances: Vec<f32>,   // [P]
    search: Scratch,
}

/// Reads a backbone as deep as this system needs it.
pub fn load_backbone(spec: &BackboneSpec) -> Result<LoadedBackbone> {
    let backbone = nn::load(spec, DEEPEST)?;
    let tensors = match spec {
        BackboneSpec::Compact => BTreeMap::new(),
        BackboneSpec::ResNet { .. } => {
            let tensors = backbone.weights().tensors();
            tensors.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect()
        }
    };
    Ok(LoadedBackbone { backbone, tensors })
}

impl PatchFeatures {
    pub fn new(input: Input, backbone: &Backbone, engine: &Engine) -> Result<PatchFeatures> {
        let graph = graph(input, backbone)?;
        let plan = Plan::new(&graph, backbone.weights(), 1, engine.isa, engine.team.clone())?;
        let features = Self::of(plan, input, backbone, engine)?;
        let for_card = engine.gpus.is_some().then(|| (graph, backbone.weights().clone()));
        Ok(PatchFeatures { for_card, ..features })
    }

    /// As [`PatchFeatures::new`], with the convolutions in int8 that `scales` name.
    ///
    /// # Errors
    /// Scales of another backbone; an engine with a card, which has no int8.
    pub fn quantized(
        input: Input,
        backbone: &Backbone,
        scales: &Quantization,
        engine: &Engine,
    ) -> Result<PatchFeatures> {
        ensure!(
            engine.gpus.is_none(),
            "this model computes in int8, which is for the CPU: device = \"cpu\", or teach it with \
             --precision f32"
        );
        let (graph, weights) = (graph(input, backbone)?, backbone.weights());
        let plan = Plan::quantized(&graph, weights, scales, 1, engine.isa, engine.team.clone())?;
        Self::of(plan, input, backbone, engine)
    }

    fn of(plan: Plan, input: Input, backbone: &Backbone, engine: &Engine) -> Result<PatchFeatures> {
        let size = |level: usize| {
            let shape = plan.output(level).shape();
            (shape.height, shape.width)
        };
        ensure!(size(0) == grid(input), "level {} is {:?} patches", LEVELS[0], size(0));
        Ok(PatchFeatures {
            input,
            dims: dims(backbone),
            pixels: PixelsIn::new(plan.planes(), MEAN, STD),
            rows: PatchRows::new(size(0), size(1), engine.team.threads()),
            plan,
            for_card: None,
            engine: engine.clone(),
        })
    }

    /// Patches of a picture, rows and columns.
    pub fn grid(&self) -> (usize, usize) {
        grid(self.input)
    }

    /// D.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Numbers of one picture's features, P · D.
    pub fn len(&self) -> usize {
        let (rows, columns) = self.grid();
        rows * columns * self.dims
    }

    /// Never: a picture has patches.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `[B·P, D]` as rows, patches from left to right and top to bottom.
    pub fn extract(&mut self, images: &[&Image]) -> Result<Vec<f32>> {
        let mut features = vec![0.0; images.len() * self.len()];
        for (image, features) in images.iter().zip(features.chunks_exact_mut(self.len())) {
            self.extract_into(image, features)?;
        }
        Ok(features)
    }

    /// The features [P, D] of one picture.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn extract_into(&mut self, image: &Image, features: &mut [f32]) -> Result<()> {
        let (team, isa) = (&*self.engine.team, self.engine.isa);
        let pixels = super::input::pixels(image)?;
        self.pixels.run(team, isa, &[pixels], self.plan.pixels());
        self.plan.run()?;
        self.rows.run(team, isa, [self.plan.output(0), self.plan.output(1)], features);
        Ok(())
    }
}

/// The network up to the levels used.
fn graph(input: Input, backbone: &Backbone) -> Result<Graph> {
    input.check()?;
    let whole = backbone.graph(input.height, input.width);
    let levels = LEVELS.map(|level| whole.outputs()[level - 1]);
    Ok(whole.to_outputs(&levels))
}

/// Finds the steps of the bytes that the convolutions of `backbone` read, on good parts.
///
/// # Errors
/// No picture, one without pixels, features that are not finite.
pub fn calibrate(
    input: Input,
    backbone: &Backbone,
    engine: &Engine,
    images: &[Image],
) -> Result<Quantization> {
    let graph = graph(input, backbone)?;
    let Engine { isa, team, .. } = engine;
    let mut calibrator = Calibrator::new(&graph, backbone.weights(), *isa, team.clone())?;
    let mut pixels = PixelsIn::new(calibrator.planes(), MEAN, STD);
    for image in images {
        pixels.run(team, *isa, &[super::input::pixels(image)?], calibrator.pixels());
        calibrator.observe()?;
    }
    calibrator.finish()
}

/// Patches of a picture at this input size, rows and columns.
pub fn grid(input: Input) -> (usize, usize) {
    (input.height / PATCH_PX, input.width / PATCH_PX)
}

/// D: channels of a patch feature.
pub fn dims(backbone: &Backbone) -> usize {
    LEVELS.iter().map(|level| backbone.channels()[level - 1]).sum()
}

impl PatchPrototypes {
    /// `prototypes` are the rows `[N, D]` of the memory bank.
    ///
    /// # Errors
    /// Fewer prototypes than the re-weighting looks at, rows that do not fit the features.
    pub fn new(features: PatchFeatures, prototypes: Vec<f32>) -> Result<PatchPrototypes> {
        let dims = features.dims();
        let count = prototypes.len() / dims;
        ensure!(
            count >= NEIGHBOURS && count * dims == prototypes.len(),
            "{count} prototypes: a memory bank needs at least {NEIGHBOURS}"
        );
        let bank = PrototypeBank::new(prototypes, dims)?;
        let Engine { isa, team, .. } = &features.engine;
        let neighbours = neighbours(&bank, team)?;
        let Input { width, height } = features.input;
        let (from, to) = (features.grid(), (height, width));
        let map = SmoothUpsample::new(*isa, team.threads(), from, to, SIGMA_PX);
        let card = match (&features.engine.gpus, &features.for_card) {
            (Some(gpus), Some((graph, weights))) => {
                let search = Search {
                    input: features.input,
                    bank: &bank,
                    neighbours: &neighbours,
                    sigma_px: SIGMA_PX,
                };
                Some(gpus.patches(graph, weights, &search)?)
            }
            _ => None,
        };
        Ok(PatchPrototypes { features, bank, neighbours, map, card, work: Work::default() })
    }

    /// From the tensors of a bundle: `prototypes` [N, D] and, for a user's backbone, its tensors
    /// under `backbone.`.
    pub fn from_bundle(
        card: &bundle::Card,
        mut tensors: BTreeMap<String, Tensor>,
        engine: &Engine,
    ) -> Result<PatchPrototypes> {
        let rows = tensors.remove("prototypes").context("weights: tensor prototypes is missing")?;
        let expected = card.memory_bank()?;
        ensure!(
            expected.levels == LEVELS && expected.neighbourhood == NEIGHBOURHOOD,
            "prototypes.levels = {:?}, prototypes.neighbourhood = {}: this inspectd computes \
             {LEVELS:?} and {NEIGHBOURHOOD}",
            expected.levels,
            expected.neighbourhood
        );
        ensure!(
            rows.dims() == [expected.count, expected.dims],
            "the memory bank is {:?}, the card says [{}, {}]",
            rows.dims(),
            expected.count,
            expected.dims
        );
        let backbone = bundled_backbone(card, tensors)?;
        let features = match &card.int8 {
            Some(int8) => PatchFeatures::quantized(card.input, &backbone, &int8.scales, engine)?,
            None => PatchFeatures::new(card.input, &backbone, engine)?,
        };
        ensure!(
            features.dims() == expected.dims,
            "{} features have {} channels, the card says {}",
            card.backbone.network,
            features.dims(),
            expected.dims
        );
        PatchPrototypes::new(features, rows.flatten_all()?.to_vec1()?)
    }

    /// What a bundle keeps, to be read by [`PatchPrototypes::from_bundle`].
    pub fn tensors(&self, backbone: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let shape = (self.bank.len(), self.bank.dim());
        let rows = Tensor::from_slice(self.bank.rows(), shape, &Device::Cpu)?;
        let named =
            backbone.iter().map(|(name, tensor)| (format!("{BACKBONE}{name}"), tensor.clone()));
        Ok(named.chain([("prototypes".to_owned(), rows)]).collect())
    }

    /// What [`Detector::detect`] says of pictures whose features [B·P, D] are there already.
    pub fn detect_features(&mut self, features: &[f32]) -> Result<Vec<Detection>> {
        features.chunks_exact(self.features.len()).map(|features| self.judge(features)).collect()
    }

    /// The feature extractor, to be used with another memory bank.
    pub fn into_features(self) -> PatchFeatures {
        self.features
    }

    /// Score and map of one picture, by the card where there is one.
    fn inspect(&mut self, image: &Image) -> Result<Detection> {
        let Some(card) = &mut self.card else {
            let mut features = std::mem::take(&mut self.work.features);
            features.resize(self.features.len(), 0.0);
            let detection = self
                .features
                .extract_into(image, &mut features)
                .and_then(|()| self.judge(&features));
            self.work.features = features;
            return detection;
        };
        let pixels = super::input::pixels(image)?;
        let Input { width, height } = self.features.input;
        let mut scores = vec![0.0; width * height];
        let score = card.run(&pixels, &mut scores)?;
        ensure!(
            score.is_finite() && scores.iter().all(|score| score.is_finite()),
            "a patch distance is not finite"
        );
        Ok(Detection { score, map: AnomalyMap { width, height, scores } })
    }

    /// Score and map of one picture with `features` [P, D]. Nothing is allocated but the map.
    fn judge(&mut self, features: &[f32]) -> Result<Detection> {
        let (rows, columns) = self.features.grid();
        let (dims, patches) = (self.bank.dim(), rows * columns);
        let team = &*self.features.engine.team;
        let Work { nearest, distances, search, .. } = &mut self.work;
        nearest.resize(patches, Nearest { index: 0, distance2: f32::INFINITY });
        self.bank.nearest_into(team, features, nearest, search)?;
        distances.clear();
        distances.extend(nearest.iter().map(|nearest| nearest.distance2.sqrt()));
        ensure!(
            distances.iter().all(|distance| distance.is_finite()),
            "a patch distance is not finite"
        );
        let worst = first_largest(distances);
        let patch = &features[worst * dims..(worst + 1) * dims];
        let distance = distances[worst];
        let score = distance * weight(&self.bank, &self.neighbours, patch, nearest[worst]);
        ensure!(score.is_finite(), "the image score is not finite");

        let Input { width, height } = self.features.input;
        let mut scores = vec![0.0; width * height];
        self.map.run(team, distances, &mut scores);
        Ok(Detection { score, map: AnomalyMap { width, height, scores } })
    }
}

/// w of eq. 7 for a patch `[D]` and its nearest prototype; `neighbours` `[N, b]`.
fn weight(bank: &PrototypeBank, neighbours: &[u32], patch: &[f32], nearest: Nearest) -> f32 {
    let distance = nearest.distance2.sqrt();
    let first = nearest.index as usize * NEIGHBOURS;
    let others = &neighbours[first + 1..first + NEIGHBOURS];
    let others =
        others.iter().map(|&other| squared_distance(patch, bank.row(other as usize)).sqrt());
    // exp of plain distances overflows f32 from 88; only their differences matter
    let total: f32 = 1.0 + others.map(|other| (other - distance).exp()).sum::<f32>();
    1.0 - 1.0 / total
}

impl Detector for PatchPrototypes {
    fn detect(&mut self, images: &[&Image]) -> Result<Vec<Detection>> {
        ensure!(!images.is_empty(), "a batch needs at least one picture");
        images.iter().map(|image| self.inspect(image)).collect()
    }
}

/// The deepest level used.
const DEEPEST: usize = LEVELS[LEVELS.len() - 1];

/// Before the backbone's tensor names in `weights.safetensors`.
const BACKBONE: &str = "backbone.";

fn bundled_backbone(card: &bundle::Card, tensors: BTreeMap<String, Tensor>) -> Result<Backbone> {
    let network = card.backbone.network.as_str();
    if network == BackboneSpec::Compact.word() {
        let backbone = nn::load(&BackboneSpec::Compact, DEEPEST)?;
        ensure!(
            backbone.sha256() == card.backbone.sha256,
            "it was taught on another compact backbone (SHA-256 {}, this inspectd has {}): teach \
             again with this inspectd",
            card.backbone.sha256,
            backbone.sha256()
        );
        return Ok(backbone);
    }
    let Some(depth) = Depth::ALL.into_iter().find(|depth| depth.word() == network) else {
        bail!("backbone.network = \"{network}\" is not known to this inspectd");
    };
    let bare = tensors
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(BACKBONE)?.to_owned(), tensor)))
        .collect();
    let weights = Weights::from_tensors("weights.safetensors", bare)?;
    Backbone::resnet(depth, DEEPEST, &weights)
}

/// The b prototypes nearest to each, itself first.
fn neighbours(bank: &PrototypeBank, team: &Team) -> Result<Vec<u32>> {
    let ranked = bank.top(team, bank.rows(), NEIGHBOURS)?;
    let mut neighbours = Vec::with_capacity(bank.len() * NEIGHBOURS);
    for (own, ranked) in ranked.chunks_exact(NEIGHBOURS).enumerate() {
        // a twin of this prototype may come before it
        let own = own as u32;
        let others = ranked.iter().map(|near| near.index).filter(|&i| i != own);
        neighbours.push(own);
        neighbours.extend(others.take(NEIGHBOURS - 1));
    }
    Ok(neighbours)
}

fn first_largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use image::{GrayImage, Luma};
    use rand::{Rng, RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::nn::engine;
    use crate::nn::graph::{Conv, Graph};

    /// Levels that are block means of the picture: 1, 2 and 3 channels, strides 4, 8 and 16, each
    /// mean times its stride, or spoilt: so large that its square is not finite.
    fn block_means(spoilt: bool) -> Backbone {
        let levels = [(1, 4), (2, 8), (3, 16)];
        let graph = move |height, width| {
            let (mut g, xs) = Graph::new(height, width);
            let outputs = levels.map(|(channels, stride)| {
                let conv = Conv::new(format!("level{stride}"), 3, channels, stride);
                g.conv(xs, Conv { padding: 0, stride, ..conv })
            });
            g.set_outputs(outputs.into());
            g
        };
        let weight = |(channels, stride): (usize, usize)| {
            let scale = if spoilt { 1e30 } else { 1.0 / stride as f64 };
            let first = Tensor::eye(3, DType::F32, &Device::Cpu)?.narrow(0, 0, channels)?;
            let weight = (first * scale)?.reshape((channels, 3, 1, 1))?;
            let weight = weight.broadcast_as((channels, 3, stride, stride))?.contiguous()?;
            Ok((format!("level{stride}.weight"), weight))
        };
        let tensors: Result<BTreeMap<_, _>> = levels.into_iter().map(weight).collect();
        let weights = Weights::from_tensors("block means", tensors.unwrap()).unwrap();
        Backbone::new(graph, &weights).unwrap()
    }

    const INPUT: Input = Input { width: 96, height: 64 };

    fn engine() -> Engine {
        Engine::new(&engine::Config { threads: Some(2), ..Default::default() }).unwrap()
    }

    fn noise(seed: u64) -> Image {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Image::Gray(GrayImage::from_fn(96, 64, |_, _| Luma([(rng.next_u32() >> 24) as u8])))
    }

    fn detector(spoilt: bool) -> PatchPrototypes {
        let features = PatchFeatures::new(INPUT, &block_means(spoilt), &engine()).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let prototypes = (0..40 * 5).map(|_| rng.random::<f32>() * 8.0 - 4.0).collect();
        PatchPrototypes::new(features, prototypes).unwrap()
    }

    /// A plane of a level averaged over 3 × 3, the border filled with zeros and counted.
    fn averaged(plane: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (h, w) = (plane.len() as i64, plane[0].len() as i64);
        let at = |y: i64, x: i64| {
            if (0..h).contains(&y) && (0..w).contains(&x) {
                plane[y as usize][x as usize]
            } else {
                0.0
            }
        };
        let mean = |y: i64, x: i64| {
            (-1..=1)
                .flat_map(|dy| (-1..=1).map(move |dx| (dy, dx)))
                .map(|(dy, dx)| at(y + dy, x + dx))
                .sum::<f64>()
                / 9.0
        };
        (0..h).map(|y| (0..w).map(|x| mean(y, x)).collect()).collect()
    }

    /// Twice the size, pixel centres aligned, edges held.
    fn doubled(plane: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let line = |values: &[f64]| -> Vec<f64> {
            let last = values.len() as i64 - 1;
            (0..2 * values.len() as i64)
                .map(|o| {
                    let (near, far) =
                        (o / 2, (o / 2 + if o % 2 == 0 { -1 } else { 1 }).clamp(0, last));
                    0.75 * values[near as usize] + 0.25 * values[far as usize]
                })
                .collect()
        };
        let wide: Vec<Vec<f64>> = plane.iter().map(|row| line(row)).collect();
        let columns =
            (0..wide[0].len()).map(|x| line(&wide.iter().map(|row| row[x]).collect::<Vec<_>>()));
        let columns: Vec<Vec<f64>> = columns.collect();
        (0..columns[0].len()).map(|y| columns.iter().map(|column| column[y]).collect()).collect()
    }

    /// Patch features of one picture by plain loops in f64.
    fn plain_features(image: &Image) -> Vec<Vec<f64>> {
        let xs = INPUT.tensor(&[image], &Device::Cpu).unwrap();
        let xs = xs.squeeze(0).unwrap().to_vec3::<f32>().unwrap();
        let block_mean = |channel: usize, stride: usize| -> Vec<Vec<f64>> {
            let mean = |y: usize, x: usize| {
                let rows = &xs[channel][y * stride..(y + 1) * stride];
                let sum: f64 = rows
                    .iter()
                    .flat_map(|row| &row[x * stride..(x + 1) * stride])
                    .map(|v| f64::from(*v))
                    .sum();
                sum / (stride * stride) as f64 * stride as f64
            };
            (0..64 / stride).map(|y| (0..96 / stride).map(|x| mean(y, x)).collect()).collect()
        };
        let mut planes: Vec<_> = (0..2).map(|c| averaged(&block_mean(c, 8))).collect();
        planes.extend((0..3).map(|c| doubled(&averaged(&block_mean(c, 16)))));
        (0..8 * 12).map(|p| planes.iter().map(|plane| plane[p / 12][p % 12]).collect()).collect()
    }

    #[test]
    fn the_score_is_eq_7_on_features_computed_by_hand() {
        let mut detector = detector(false);
        let bank: Vec<Vec<f64>> = detector
            .bank
            .rows()
            .chunks(5)
            .map(|row| row.iter().map(|v| f64::from(*v)).collect())
            .collect();
        let d = |a: &[f64], b: &[f64]| {
            a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
        };
        for seed in 0..5 {
            let image = noise(seed);
            let got = detector.detect(&[&image]).unwrap().pop().unwrap();
            let nearest = plain_features(&image).into_iter().map(|patch| {
                let (i, distance) = bank
                    .iter()
                    .map(|row| d(&patch, row))
                    .enumerate()
                    .min_by(|a, b| a.1.total_cmp(&b.1))
                    .unwrap();
                (distance, i, patch)
            });
            let (worst, star, patch) = nearest.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
            let mut around: Vec<f64> = (0..bank.len()).map(|i| d(&bank[star], &bank[i])).collect();
            let mut order: Vec<usize> = (0..bank.len()).collect();
            order.sort_by(|&a, &b| around[a].total_cmp(&around[b]));
            around = order[..9].iter().map(|&i| d(&patch, &bank[i]).exp()).collect();
            let want = (1.0 - worst.exp() / around.iter().sum::<f64>()) * worst;
            // f32 sums of 256 pixels and 5 squares
            assert!((f64::from(got.score) - want).abs() < 1e-5 * want, "{} {want}", got.score);
            assert!(want < worst && want > worst * 8.0 / 9.0);
        }
    }

    #[test]
    fn the_map_is_as_large_as_the_input_and_highest_where_the_part_differs() {
        let flat = GrayImage::from_pixel(96, 64, Luma([90]));
        let mut spotted = flat.clone();
        for (x, y) in (60..72).flat_map(|x| (20..32).map(move |y| (x, y))) {
            spotted.put_pixel(x, y, Luma([250]));
        }
        let mut features = PatchFeatures::new(INPUT, &block_means(false), &engine()).unwrap();
        let rows = features.extract(&[&Image::Gray(flat)]).unwrap();
        let mut detector = PatchPrototypes::new(features, rows).unwrap();
        let map = detector.detect(&[&Image::Gray(spotted)]).unwrap().pop().unwrap().map;
        assert_eq!((map.width, map.height, map.scores.len()), (96, 64, 96 * 64));
        let peak = first_largest(&map.scores);
        let (x, y) = (peak % 96, peak / 96);
        assert!((56..76).contains(&x) && (16..36).contains(&y), "peak at {x}, {y}");
        assert!(map.scores[0] < 0.05 * map.scores[peak]);
    }

    #[test]
    fn a_batch_says_what_each_picture_alone_says() {
        let mut detector = detector(false);
        let images = [noise(1), noise(2), noise(3)];
        let together = detector.detect(&images.iter().collect::<Vec<_>>()).unwrap();
        for (image, together) in images.iter().zip(together) {
            assert_eq!(detector.detect(&[image]).unwrap(), [together]);
        }
    }

    #[test]
    fn features_that_are_not_finite_are_an_error_and_no_score() {
        let error = detector(true).detect(&[&noise(1)]).unwrap_err().to_string();
        assert!(error.contains("not finite"), "{error}");
    }

    #[test]
    fn a_bank_too_small_to_re_weight_with_is_refused() {
        let features = PatchFeatures::new(INPUT, &block_means(false), &engine()).unwrap();
        let error = PatchPrototypes::new(features, vec![0.5; 8 * 5]).err().unwrap();
        assert!(error.to_string().contains("at least 9"), "{error}");
    }
}
