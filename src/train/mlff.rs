//! MLFF's training (`../shared/spec/mlff.md`, sections 2 and 3): encoder, branches and head learn together
//! from good parts, half of which had an anomaly made on them: features of normal places are drawn to the
//! origin, those of anomalous ones driven from it, and a head learns to score each place.
//!
//! Letters: B pictures, H × W input size, h × w places of the features, C channels, K patches.

mod batches;
mod config;

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use self::batches::Batch;
pub use self::config::{Config, EncoderNorms};
use super::feed::Feed;
use super::loss::mlff::{self as loss, Partners};
use super::optimizer::{Group, Optimizer, Rule};
use super::parameters::{Parameters, Start};
use super::tape::{Statistics, Tape, Training};
use super::{Losses, Trainee};
use crate::dataset::pictures::Pictures;
use crate::detector::input::Input;
use crate::nn::Backbone;
use crate::nn::engine::Engine;
use crate::nn::graph::{Graph, LevelRule};
use crate::nn::mlff::{ENCODER, Variant};
use crate::ops::gradient::squared_norm::squared_norm as squared_norm_gradient;
use crate::ops::squared_norm::squared_norm;
use crate::ops::texture::{Reach, reach};
use crate::synth::{SampleKey, Tag};

/// Names of what is logged at an epoch's end, of the whole map's levels and of the regions': how far its
/// cosines lie apart, and the share of places that no level takes (M-2).
const RANGES: [&str; 2] = ["cosine_range_map", "cosine_range_regions"];
pub const WITHOUT_LEVEL: [&str; 2] = ["without_level_map", "without_level_regions"];

/// Share of places without a level above which a person should know, where levels are the paper's.
pub const MOST_WITHOUT_LEVEL: f64 = 0.25;

/// Which output of the tape is what.
struct Outputs {
    /// Of the head.
    score: Option<usize>,
    /// Means over patches: of the features, of the scores.
    patches: Option<[usize; 2]>,
    cosines: Range<usize>,
}

/// h and w of the features.
fn places(network: Variant, input: Input) -> (usize, usize) {
    let graph = network.graph(input.height, input.width);
    let dims = graph.dims(graph.outputs()[0]);
    (dims.height, dims.width)
}

/// The network as it is trained.
fn training_graph(config: &Config, input: Input) -> (Graph, Outputs) {
    let mut graph = config.network.graph_with_cosines(input.height, input.width);
    let mut outputs = graph.outputs().to_vec();
    let first = 1 + usize::from(config.network.score);
    let cosines = first..outputs.len();
    let patches = config.compares().then(|| {
        [0, 1].map(|from| {
            let pooled = graph.average_pool(outputs[from], config.patch);
            outputs.push(pooled);
            outputs.len() - 1
        })
    });
    graph.set_outputs(outputs);
    (graph, Outputs { score: config.network.score.then_some(1), patches, cosines })
}

/// MLFF in training.
pub struct Mlff {
    config: Config,
    seed: u64,
    engine: Engine,
    graph: Graph,
    outputs: Outputs,
    parameters: Parameters,
    pictures: usize,
    /// For batches of one size. A smaller one at an epoch's end gets another in its place: two at a time
    /// would take half as much memory again.
    tape: Option<(usize, Tape)>,
    optimizer: Optimizer,
    feed: Feed<Batch>,
    norms: Vec<f32>, // [B, h, w]
}

impl Mlff {
    /// `encoder` is the network that the config names.
    ///
    /// # Errors
    /// A config that can't be meant, an encoder of other shapes, fewer than two pictures.
    pub fn new(
        config: Config,
        input: Input,
        encoder: &Backbone,
        pictures: Arc<Pictures>,
        seed: u64,
        engine: &Engine,
    ) -> Result<Mlff> {
        input.check()?;
        config.check(input)?;
        let count = pictures.len();
        let repeated = count * config.repetition;
        ensure!(
            repeated >= 2,
            "{count} pictures, mlff.repetition = {}: a batch norm needs two at least",
            config.repetition
        );
        let (graph, outputs) = training_graph(&config, input);
        // What the paper adds to a ResNet begins as PyTorch's layers do.
        let start = |name: &str| (!name.starts_with(ENCODER)).then_some(Start::FanIn);
        let mut parameters = Parameters::begin(&graph, seed, start);
        parameters.take(&graph, ENCODER, encoder.weights()).context("the encoder of MLFF")?;
        let size = places(config.network, input);
        let own = config.clone();
        let feed = Feed::new(move |step| batches::batch(&own, &pictures, size, seed, step));
        let rule = Rule::Sgd { momentum: config.momentum, weight_decay: config.weight_decay };
        let mut trainee = Mlff {
            seed,
            engine: engine.clone(),
            graph,
            outputs,
            parameters,
            pictures: count,
            tape: None,
            optimizer: Optimizer::new(rule, Vec::new()),
            feed,
            norms: Vec::new(),
            config,
        };
        trainee.fit(trainee.config.batch.min(repeated))?;
        let learning_rate = trainee.config.learning_rate;
        let names = trainee.tape()?.gradients().keys().cloned().collect();
        trainee.optimizer = Optimizer::new(rule, vec![Group { learning_rate, names }]);
        Ok(trainee)
    }

    /// Makes the tape one for batches of `images`.
    fn fit(&mut self, images: usize) -> Result<()> {
        if self.tape.as_ref().is_some_and(|(size, _)| *size == images) {
            return Ok(());
        }
        self.tape = None;
        let norms = self.config.encoder_norms;
        let training = Training {
            learned: &|_| true,
            statistics: &|name| match norms {
                EncoderNorms::Frozen if name.starts_with(ENCODER) => Statistics::Running,
                _ => Statistics::Batch,
            },
        };
        let tape = Tape::new(&self.graph, images, &self.engine, &training)?;
        self.tape = Some((images, tape));
        Ok(())
    }

    fn tape(&self) -> Result<&Tape> {
        self.tape.as_ref().map(|(_, tape)| tape).context("no tape")
    }

    /// The losses of what the tape's last run said of a batch. Their gradients are put where they
    /// belong.
    fn losses(&mut self, step: u64, truth: &[bool]) -> Result<Losses> {
        let Mlff { config, engine, outputs, tape, norms, .. } = self;
        let (images, tape) = tape.as_ref().context("no tape")?;
        let images = *images;
        let gradient = |index: usize| {
            tape.output_gradient(index).context("an output from which nothing is learned")
        };
        let mut losses = Losses::new();

        norms.resize(truth.len(), 0.0);
        let features = tape.output(0);
        squared_norm(&engine.team, engine.isa, features, norms);
        let mut by_norms = vec![0.0; truth.len()];
        if config.feature_weight > 0.0 {
            let terms = loss::feature(norms, truth, images, config.counting);
            losses.extend([("feature", terms.normal), ("feature_anomalous", terms.anomalous)]);
            by_norms = scaled(&terms.gradient, config.feature_weight);
        }
        squared_norm_gradient(&engine.team, engine.isa, features, &by_norms, gradient(0)?);

        if let Some(score) = outputs.score {
            let mut by_scores = vec![0.0; truth.len()];
            if config.score_weight > 0.0 {
                let key = SampleKey { seed: self.seed, epoch: step, index: PAIRS };
                let mut rng = key.rng(Tag::Order);
                let partners = Partners::find(config.pairing, truth, images, &mut rng);
                let limits = (config.gamma, config.lambda);
                let scores = tape.output(score).read();
                let terms = loss::score(&scores, truth, images, &partners, limits, config.counting);
                losses.extend([("score", terms.normal), ("score_anomalous", terms.anomalous)]);
                by_scores = scaled(&terms.gradient, config.score_weight);
            }
            gradient(score)?.write(&by_scores);
        }
        if let Some(patches) = outputs.patches {
            let mut sum = 0.0;
            for image in 0..images {
                let of = truth.len() / images;
                let truth = &truth[image * of..][..of];
                sum += compare(config, tape, patches, (image, images), truth)?;
            }
            losses.push(("consistency", sum / images as f64));
        }
        for cosines in outputs.cosines.clone() {
            let to = gradient(cosines)?;
            to.write(&vec![0.0; images * to.shape().places()]);
        }
        Ok(losses)
    }

    /// How the cosines of the last batch lie to their levels (M-2): for the whole map's levels and for
    /// the regions', the mean over pictures and scales.
    fn reaches(&self) -> Result<Losses> {
        let (tape, network) = (self.tape()?, self.config.network);
        let mut found: [Vec<Reach>; 2] = Default::default();
        let maps = network.quantised().into_iter().zip(self.outputs.cosines.clone());
        for (scale, (of, index)) in maps.enumerate() {
            let map = tape.output(index);
            let (places, size) = (map.shape().places(), (map.shape().height, map.shape().width));
            for cosines in map.read().chunks(places) {
                let reach = reach(cosines, size, of.regions, of.levels, network.levels);
                found[usize::from(scale > 0)].push(reach);
            }
        }
        let mut figures = Losses::new();
        for (i, reaches) in found.iter().enumerate().filter(|(_, reaches)| !reaches.is_empty()) {
            let mean =
                |of: fn(&Reach) -> f64| reaches.iter().map(of).sum::<f64>() / reaches.len() as f64;
            figures.push((RANGES[i], mean(|reach| reach.range)));
            figures.push((WITHOUT_LEVEL[i], mean(|reach| reach.without_level)));
        }
        Ok(figures)
    }
}

/// The draw of pairs, apart from those of epochs.
const PAIRS: u64 = u64::MAX - 3;

/// A sentence for a person where the paper's levels leave much of a picture without texture; `figures`
/// are those of a step.
pub fn advice(levels: LevelRule, figures: &Losses) -> Option<String> {
    let (name, share) = figures
        .iter()
        .find(|(name, share)| WITHOUT_LEVEL.contains(name) && *share > MOST_WITHOUT_LEVEL)?;
    (levels == LevelRule::Paper).then(|| {
        format!(
            "{:.0} % of the places have no level ({name}) and are left out of the texture: cosines lie \
             further apart than the paper's levels reach; try levels = \"reference\" in [mlff.network] \
             (docs/train.md)",
            share * 100.0
        )
    })
}

/// Compares the patches of one picture that are normal everywhere; the loss. The gradients are written.
fn compare(
    config: &Config,
    tape: &Tape,
    [features, scores]: [usize; 2],
    (image, images): (usize, usize),
    truth: &[bool],
) -> Result<f64> {
    let of = |index: usize| tape.output(index).image(image);
    let shape = of(features).shape();
    let (patches, channels) = (shape.places(), shape.channels);
    let width = shape.width * config.patch;
    let mut normal = vec![true; patches];
    for (place, _) in truth.iter().enumerate().filter(|(_, anomalous)| **anomalous) {
        let (y, x) = (place / width / config.patch, place % width / config.patch);
        normal[y * shape.width + x] = false;
    }
    let kept: Vec<usize> = (0..patches).filter(|&patch| normal[patch]).collect();
    let planes = of(features).read(); // [C, patches]
    let mut rows = Vec::with_capacity(kept.len() * channels); // [K, C]
    for &patch in &kept {
        rows.extend((0..channels).map(|channel| planes[channel * patches + patch]));
    }
    let all = of(scores).read();
    let own: Vec<f32> = kept.iter().map(|&patch| all[patch]).collect();
    let loss = loss::consistency(&rows, &own, config.likeness);

    let weight = config.consistency_weight / images as f64;
    let (mut by_planes, mut by_scores) = (planes, all);
    by_planes.fill(0.0);
    by_scores.fill(0.0);
    for (row, &patch) in kept.iter().enumerate() {
        for channel in 0..channels {
            let slope = f64::from(loss.by_features[row * channels + channel]);
            by_planes[channel * patches + patch] = (weight * slope) as f32;
        }
        by_scores[patch] = (weight * f64::from(loss.by_scores[row])) as f32;
    }
    for (index, slopes) in [(features, &by_planes), (scores, &by_scores)] {
        let to = tape.output_gradient(index).context("patches from which nothing is learned")?;
        to.image(image).write(slopes);
    }
    Ok(loss.value)
}

fn scaled(slopes: &[f32], weight: f64) -> Vec<f32> {
    slopes.iter().map(|&slope| (weight * f64::from(slope)) as f32).collect()
}

impl Trainee for Mlff {
    fn steps(&self) -> u64 {
        self.config.schedule(self.pictures)
    }

    fn step(&mut self, step: u64) -> Result<Losses> {
        let batch = self.feed.take(step)?;
        self.fit(batch.images)?;
        let Mlff { config, tape, parameters, optimizer, .. } = self;
        let tape = &mut tape.as_mut().context("no tape")?.1;
        let of_epoch = config.steps_of_epoch(self.pictures);
        let decay = f64::from(config.rate_decay).powf((step / of_epoch) as f64);
        optimizer.set_learning_rate((f64::from(config.learning_rate) * decay) as f32);
        tape.input(0).write(&batch.pictures);
        tape.forward(parameters)?;
        let mut losses = self.losses(step, &batch.truth)?;
        if (step + 1).is_multiple_of(of_epoch) || step + 1 == self.steps() {
            losses.extend(self.reaches()?);
        }
        let Mlff { tape, parameters, optimizer, .. } = self;
        let tape = &mut tape.as_mut().context("no tape")?.1;
        tape.backward(parameters)?;
        optimizer.step(parameters, tape.gradients())?;
        Ok(losses)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn optimizer(&self) -> Option<&Optimizer> {
        Some(&self.optimizer)
    }

    fn restore(&mut self, _: u64) -> Result<(&mut Parameters, &mut Optimizer)> {
        Ok((&mut self.parameters, &mut self.optimizer))
    }

    fn bytes(&self) -> usize {
        self.tape.as_ref().map_or(0, |(_, tape)| tape.bytes())
    }
}

#[cfg(test)]
mod tests;
