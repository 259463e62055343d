//! PRN's training (Zhang et al. 2023, sections 3 and 4): prototypes of good parts are found once, then
//! all behind the frozen features learns where defects are, on batches of which a half are good parts
//! and the others anomalies made up on such: of a few real defects and of textures and good parts.
//!
//! Letters: B pictures, H × W input size, N good parts, K prototypes.

pub mod kmeans;
pub mod prototypes;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::feed::{Feed, pictures_around, steps_around};
use super::mixed::{Member, Mixed, mixed};
use super::optimizer::{Group, Optimizer, Rule};
use super::parameters::{Parameters, Start};
use super::tape::{Statistics, Tape, Training};
use super::{Losses, Trainee, loss};
use crate::detector::input::Input;
use crate::detector::prn::{self as detector, TOP};
use crate::nn::Backbone;
use crate::nn::engine::Engine;
use crate::nn::graph::Graph;
use crate::nn::prn::{ENCODER, LAYER4, Variant};
use crate::nn::teacher::LEVELS;
use crate::nn::weights::Weights;
use crate::synth::synthesizer::{Stock, Synthesizer};
use crate::synth::{self, Kind};
use prototypes::Found;

/// The schedule and everything that the paper leaves open; the defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub network: Variant,
    /// Each goes once over the good parts, the last step filled from the epoch's beginning (P-12).
    pub epochs: u64,
    /// B: a half of it good parts, a quarter extended anomalies, the others simulated ones.
    pub batch: usize,
    /// How weight decay comes to a step (P-1).
    pub optimizer: Preset,
    pub learning_rate: f32,
    /// Of every parameter, those of batch norms too (P-1: the paper has 10⁻² and 10⁻⁵).
    pub weight_decay: f32,
    /// λ, the share of the focal loss.
    pub lambda: f64,
    /// α of the focal loss; one half weighs both classes alike.
    pub alpha: f64,
    /// γ of the focal loss.
    pub gamma: i32,
    /// β, where the smooth L1 loss becomes straight.
    pub beta: f64,
    /// K / N at each scale, K rounded down and one at least (P-10); at 1 every good part's map is a
    /// prototype (table 6).
    pub prototype_ratio: f64,
    /// P-8.
    pub layer4: Layer4,
    pub anomalies: Anomalies,
    /// How each kind is made (P-13, G-2 to G-7), in the tables of `inspectd synth --config`.
    pub synth: synth::Config,
    /// How many of the map's largest values the score is the mean of.
    pub top: usize,
}

/// P-1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// With decay as L2.
    #[default]
    Adam,
    /// With decoupled decay.
    AdamW,
}

/// The encoder's last layer, at the bottom of the U (P-8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer4 {
    /// With the batch's statistics: the paper freezes layer1 to layer3.
    #[default]
    Trained,
    /// As the unofficial code has it.
    Frozen,
}

/// What is made up (paper, table 5). The slots of a kind that is off go to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Anomalies {
    /// EA, of seen defects.
    pub extended: bool,
    /// HEA, of textures.
    pub heterogeneous: bool,
    /// HOA, of good parts.
    pub homogeneous: bool,
    /// TA: off, they may be anywhere in the picture.
    pub target_area: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            network: Variant::default(),
            epochs: 700,
            batch: 64,
            optimizer: Preset::default(),
            learning_rate: 1e-4,
            weight_decay: 1e-2,
            lambda: 5.0,
            alpha: 0.5,
            gamma: 4,
            beta: 1.0,
            prototype_ratio: 0.1,
            layer4: Layer4::default(),
            anomalies: Anomalies::default(),
            synth: synth::Config::default(),
            top: TOP,
        }
    }
}

impl Default for Anomalies {
    fn default() -> Anomalies {
        Anomalies { extended: true, heterogeneous: true, homogeneous: true, target_area: true }
    }
}

impl Config {
    /// # Errors
    /// A value that can't be meant; the message names the key.
    pub fn check(&self) -> Result<()> {
        ensure!(
            (4..=256).contains(&self.batch),
            "prn.batch = {}: must lie between 4 (a half of it good parts, a quarter each sort of \
             anomaly) and 256",
            self.batch
        );
        ensure!(self.epochs > 0, "prn.epochs = 0: the network has to learn");
        ensure!(
            self.learning_rate > 0.0 && self.learning_rate <= 1.0,
            "prn.learning_rate = {}: must be above 0, up to 1 (0.0001 is the paper's)",
            self.learning_rate
        );
        ensure!(
            (0.0..=1.0).contains(&self.weight_decay),
            "prn.weight_decay = {}: must lie between 0 and 1 (0.01 is the paper's)",
            self.weight_decay
        );
        ensure!(
            (0.0..=1000.0).contains(&self.lambda),
            "prn.lambda = {}: must lie between 0 and 1000 (5 is the paper's)",
            self.lambda
        );
        ensure!(
            0.0 < self.alpha && self.alpha < 1.0,
            "prn.alpha = {}: must lie between 0 and 1 (0.5 is the paper's)",
            self.alpha
        );
        ensure!(
            (1..=16).contains(&self.gamma),
            "prn.gamma = {}: must lie between 1 and 16 (4 is the paper's)",
            self.gamma
        );
        ensure!(
            self.beta > 0.0 && self.beta <= 1.0,
            "prn.beta = {}: must be above 0, up to 1 (the paper's), which nothing is farther away",
            self.beta
        );
        ensure!(
            self.prototype_ratio > 0.0 && self.prototype_ratio <= 1.0,
            "prn.prototype_ratio = {}: must be above 0, up to 1 (0.1 is the paper's)",
            self.prototype_ratio
        );
        ensure!(self.top > 0, "prn.top = 0: a score is the mean of 1 or more values");
        let Anomalies { extended, heterogeneous, homogeneous, .. } = self.anomalies;
        ensure!(
            extended || heterogeneous || homogeneous,
            "prn.anomalies: extended, heterogeneous and homogeneous are all false, and there is nothing \
             to learn defects from"
        );
        self.synth.check().context("prn.synth")
    }

    /// Prototypes of each scale, of so many good parts.
    pub fn prototypes(&self, goods: usize) -> [usize; LEVELS] {
        if !self.network.prototypes {
            return [0; LEVELS];
        }
        // A product that is whole on paper may lie below in f64.
        let count = (self.prototype_ratio * goods as f64 + 1e-9).floor() as usize;
        [count.clamp(1, goods.max(1)); LEVELS]
    }

    /// Steps of an epoch over so many good parts.
    pub fn steps_of_epoch(&self, goods: usize) -> u64 {
        steps_around(self.batch / 2, goods)
    }

    fn rule(&self) -> Rule {
        let weight_decay = self.weight_decay;
        match self.optimizer {
            Preset::Adam => Rule::Adam { weight_decay },
            Preset::AdamW => Rule::AdamW { weight_decay },
        }
    }

    /// As the tables say it, without a target area where that is off.
    fn made_up(&self) -> synth::Config {
        let mut config = self.synth.clone();
        if !self.anomalies.target_area {
            config.simulated.target_area.on = false;
            config.extended.target_area.on = false;
        }
        config
    }
}

impl Anomalies {
    /// The one kind of simulated anomalies, or both; `None` where neither is on.
    fn simulated(self) -> Option<Kind> {
        match (self.heterogeneous, self.homogeneous) {
            (true, true) => Some(Kind::Simulated),
            (true, false) => Some(Kind::Heterogeneous),
            (false, true) => Some(Kind::Homogeneous),
            (false, false) => None,
        }
    }

    /// The kind of each anomaly of a batch of B: a quarter extended, the others simulated, or all what
    /// is on.
    fn of_batch(self, batch: usize) -> Vec<Kind> {
        let count = batch - batch / 2;
        let extended = match (self.extended, self.simulated()) {
            (true, Some(_)) => batch / 4,
            (true, None) => count,
            (false, _) => 0,
        };
        let simulated = self.simulated().unwrap_or(Kind::Extended);
        let kind = |place| if place < extended { Kind::Extended } else { simulated };
        (0..count).map(kind).collect()
    }
}

/// The good parts of `step`, then its anomalies, those on any good part.
fn members(
    config: &Config,
    kinds: Anomalies,
    synthesizer: &Synthesizer,
    seed: u64,
    step: u64,
) -> Vec<Member> {
    let count = synthesizer.stock().normals.len();
    let goods = pictures_around(step, config.batch / 2, count, seed);
    let anomalies = kinds.of_batch(config.batch).into_iter().zip(0..);
    let anomalies =
        anomalies.map(|(kind, place)| Member::Anomalous(synthesizer.choose(kind, step, place)));
    goods.into_iter().map(Member::Good).chain(anomalies).collect()
}

/// PRN in training.
pub struct Prn {
    config: Config,
    input: Input,
    engine: Engine,
    seed: u64,
    /// To layer3, named as its file names them; what prototypes are found with.
    encoder: Weights,
    synthesizer: Arc<Synthesizer>,
    prototypes: [usize; LEVELS],
    /// Whether the parameters hold them.
    has_prototypes: bool,
    parameters: Parameters,
    tape: Tape,
    optimizer: Optimizer,
    feed: Feed<Mixed>,
}

impl Prn {
    /// The network before its first step. Without seen anomalies in `stock` there are no extended
    /// ones.
    ///
    /// # Errors
    /// A config that can't be meant, an input size that can't be, an encoder of other shapes, nothing
    /// that anomalies could be made of.
    pub fn new(
        config: Config,
        input: Input,
        encoder: &Backbone,
        stock: Stock,
        seed: u64,
        engine: &Engine,
    ) -> Result<Prn> {
        config.check()?;
        input.check()?;
        detector::check(input)?;
        let mut kinds = config.anomalies;
        kinds.extended &= !stock.seen.is_empty();
        ensure!(
            kinds.extended || kinds.simulated().is_some(),
            "prn.anomalies: extended anomalies alone are made, and no defect was seen to make them of; \
             give some (--seen), or make heterogeneous or homogeneous ones"
        );
        let ends_with_layer4 = encoder.channels().len() > LEVELS;
        ensure!(
            config.layer4 == Layer4::Trained || ends_with_layer4,
            "prn.layer4 = \"frozen\": the backbone has no layer4 that could stay as it is; take a file \
             that has, or layer4 = \"trained\""
        );
        let prototypes = config.prototypes(stock.normals.len());
        let graph = config.network.graph(input.width, prototypes);
        let mut parameters = Parameters::begin(&graph, seed, |name| match () {
            // As torchvision's networks do, where it is not read from a file.
            () if name.starts_with(LAYER4) => Some(Start::FanOut),
            () if is_frozen(name, Layer4::Trained) => None,
            // PyTorch's layers as they come (specification, backbones.md, section 5).
            () => Some(Start::FanIn),
        });
        let levels = levels(&config.network, input, ENCODER);
        parameters.take(&levels, ENCODER, encoder.weights()).context("the encoder of PRN")?;
        if ends_with_layer4 {
            take_layer4(&mut parameters, &graph, encoder).context("the encoder of PRN")?;
        }
        for (name, shape) in graph.tensors().into_iter().filter(|(name, _)| is_prototype(name)) {
            let zeros = vec![0.0; shape.iter().product()];
            parameters.insert(&name, shape, zeros);
        }
        let layer4 = config.layer4;
        let training = Training {
            learned: &|name| !is_frozen(name, layer4),
            statistics: &|name| {
                if is_frozen(name, layer4) { Statistics::Running } else { Statistics::Batch }
            },
        };
        let tape = Tape::new(&graph, config.batch, engine, &training)?;
        let names = tape.gradients().keys().cloned().collect();
        let groups = vec![Group { learning_rate: config.learning_rate, names }];
        let optimizer = Optimizer::new(config.rule(), groups);
        let synthesizer = Arc::new(Synthesizer::new(stock, config.made_up(), seed)?);
        let (own, shared) = (config.clone(), Arc::clone(&synthesizer));
        let feed =
            Feed::new(move |step| mixed(&shared, &members(&own, kinds, &shared, seed, step)));
        Ok(Prn {
            config,
            input,
            engine: engine.clone(),
            seed,
            encoder: encoder.weights().clone(),
            synthesizer,
            prototypes,
            has_prototypes: prototypes == [0; LEVELS],
            parameters,
            tape,
            optimizer,
            feed,
        })
    }

    /// Of each scale; none where the network has none.
    pub fn prototypes(&self) -> [usize; LEVELS] {
        self.prototypes
    }

    /// Finds the prototypes of each scale in turn, and tells of each. Without, the first step does.
    ///
    /// # Errors
    /// A picture that can't be read.
    pub fn find_prototypes(&mut self, told: &mut dyn FnMut(&Found)) -> Result<()> {
        let graph = levels(&self.config.network, self.input, "");
        for scale in (0..LEVELS).filter(|_| !self.has_prototypes) {
            let whole = graph.to_outputs(&graph.outputs()[scale..=scale]);
            let pictures = &self.synthesizer.stock().normals;
            let found = prototypes::find(
                &whole,
                &self.encoder,
                pictures,
                (scale, self.prototypes[scale]),
                self.seed,
                &self.engine,
            )
            .with_context(|| format!("finding the prototypes of scale {}", scale + 1))?;
            let own = self.parameters.get_mut(&format!("prototypes.{}", scale + 1))?;
            own.copy_from_slice(&found.prototypes);
            told(&found);
        }
        self.has_prototypes = true;
        Ok(())
    }
}

/// Whether the tensor or batch norm of this name stays as it is.
fn is_frozen(name: &str, layer4: Layer4) -> bool {
    let is_layer4 = name.starts_with(LAYER4);
    let is_learned = is_layer4 && layer4 == Layer4::Trained;
    is_prototype(name) || name.starts_with(ENCODER) && !is_learned
}

fn is_prototype(name: &str) -> bool {
    name.starts_with("prototypes.")
}

/// The encoder to layer3, its tensors named under `at`.
fn levels(network: &Variant, input: Input, at: &str) -> Graph {
    let (mut graph, xs) = Graph::new(input.height, input.width);
    let levels = network.encoder.levels(&mut graph, xs, at);
    graph.set_outputs(levels.to_vec());
    graph
}

/// Layer4 begins as that of the backbone's file, as far as the network has its blocks.
fn take_layer4(parameters: &mut Parameters, graph: &Graph, encoder: &Backbone) -> Result<()> {
    for (name, shape) in graph.tensors() {
        if let Some(theirs) = name.strip_prefix(ENCODER).filter(|_| name.starts_with(LAYER4)) {
            let values = encoder.weights().get(theirs, &shape)?.flatten_all()?.to_vec1()?;
            parameters.insert(&name, shape, values);
        }
    }
    Ok(())
}

impl Trainee for Prn {
    fn steps(&self) -> u64 {
        self.config.epochs * self.config.steps_of_epoch(self.synthesizer.stock().normals.len())
    }

    fn step(&mut self, step: u64) -> Result<Losses> {
        self.find_prototypes(&mut |_| {})?;
        let batch = self.feed.take(step)?;
        let Config { lambda, alpha, gamma, beta, .. } = self.config;
        let tape = &mut self.tape;
        tape.input(0).write(&batch.pictures);
        tape.forward(&mut self.parameters)?;
        let said = tape.output(0).read();
        let smooth = loss::smooth_l1(&said, &batch.truth, beta);
        let focal = loss::weighted_focal(&said, &batch.truth, alpha, gamma);
        let losses = vec![("smooth_l1", smooth.value), ("focal", focal.value)];
        let to = tape.output_gradient(0).context("the network learns nothing")?;
        to.write(&smooth.plus(&focal.times(lambda)).gradient);
        tape.backward(&self.parameters)?;
        self.optimizer.step(&mut self.parameters, tape.gradients())?;
        Ok(losses)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn optimizer(&self) -> Option<&Optimizer> {
        Some(&self.optimizer)
    }

    fn restore(&mut self, _: u64) -> Result<(&mut Parameters, &mut Optimizer)> {
        // They are in the checkpoint.
        self.has_prototypes = true;
        Ok((&mut self.parameters, &mut self.optimizer))
    }

    fn bytes(&self) -> usize {
        self.tape.bytes()
    }
}

#[cfg(test)]
mod tests;
