//! NTSNet's training: a student with contextual transformer blocks learns to say of good parts what the
//! teacher says, while the teacher's normalisation follows the student's (EMAN).
//!
//! Letters: B pictures, C channels, H × W input size.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::distance_loss::{self, Reduction};
use super::feed::{self, Feed, normalise, pictures_of};
use super::health::Health;
use super::optimizer::{Group, Optimizer, Rule};
use super::parameters::{Parameters, Start};
use super::tape::{Statistics, Tape, Training};
use super::{Losses, Trainee};
use crate::dataset::pictures::Pictures;
use crate::detector::input::Input;
use crate::detector::ntsnet::Fusion;
use crate::nn::Backbone;
use crate::nn::engine::Engine;
use crate::nn::ntsnet::{STUDENT, TEACHER, Variant};
use crate::ops::gradient::batch_norm;

/// The schedule and everything that the paper leaves open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub network: Variant,
    pub epochs: u64,
    /// B.
    pub batch: usize,
    pub optimizer: Preset,
    /// N-6.
    pub reduction: Reduction,
    pub eman: Eman,
    /// m, how much of its statistics a teacher keeps with each step.
    pub eman_momentum: f32,
    pub student_norms: StudentNorms,
    /// How the distances become a map (N-3, N-4).
    pub fusion: Fusion,
}

/// N-1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// SGD, rate 0.4, momentum 0.9, decay 10⁻⁴: what every reference of the paper does.
    #[default]
    Sgd,
    /// Adam, rate 0.4, decay 10⁻⁴: the paper to the letter.
    PaperLiteral,
    /// Adam, rate 10⁻³.
    Adam,
}

/// Which statistics a teacher's batch norms go towards (N-7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eman {
    /// Those of the batch in the student's batch norm of the same name: the paper to the letter (eq. 3
    /// and 4).
    Batch,
    /// That batch norm's running ones.
    Running,
    /// Those of the batch in the teacher's own batch norm: the teacher gets used to these parts.
    TeacherBatch,
    /// None: they stay what they were. The default, since every other way was found to make a teacher
    /// worse that knows the world already; see `docs/decisions/a-teacher-that-stays.md`.
    #[default]
    Off,
}

/// What the running statistics of the student's batch norms begin as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StudentNorms {
    #[default]
    ZeroOne,
    /// The teacher's, where it has one of the same name.
    Teacher,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            network: Variant::default(),
            epochs: 200,
            batch: 32,
            optimizer: Preset::default(),
            reduction: Reduction::Mean,
            eman: Eman::default(),
            eman_momentum: 0.99,
            student_norms: StudentNorms::default(),
            fusion: Fusion::default(),
        }
    }
}

impl Config {
    /// # Errors
    /// A value that can't be meant; the message names the key.
    pub fn check(&self) -> Result<()> {
        ensure!(
            (2..=256).contains(&self.batch),
            "ntsnet.batch = {}: must lie between 2 (a batch norm needs two) and 256",
            self.batch
        );
        ensure!(self.epochs > 0, "ntsnet.epochs = 0: the student has to learn");
        ensure!(
            (0.0..1.0).contains(&self.eman_momentum),
            "ntsnet.eman_momentum = {}: must lie between 0 and 1 (0.99 is the paper's)",
            self.eman_momentum
        );
        ensure!(
            self.network.levels.contains(&true),
            "ntsnet.network.levels = [false, false, false]: one level at least is compared"
        );
        self.fusion.check()
    }
}

impl Preset {
    fn rule(self) -> (f32, Rule) {
        match self {
            Preset::Sgd => (0.4, Rule::Sgd { momentum: 0.9, weight_decay: 1e-4 }),
            Preset::PaperLiteral => (0.4, Rule::Adam { weight_decay: 1e-4 }),
            Preset::Adam => (1e-3, Rule::Adam { weight_decay: 1e-4 }),
        }
    }
}

/// Pictures on which the teacher's health is looked at.
const WATCHED: usize = 4;

/// Pictures as a batch [B, 3, H, W].
fn normalised(pictures: &Pictures, chosen: &[usize]) -> Result<Vec<f32>> {
    let each = chosen.par_iter().map(|&index| {
        let picture = pictures.get(index)?;
        let levels = image::DynamicImage::ImageRgb8((*picture).clone()).into_rgb32f();
        let mut values = Vec::new();
        normalise(&levels, &mut values);
        Ok(values)
    });
    Ok(each.collect::<Result<Vec<_>>>()?.concat())
}

/// Steps of an epoch of so many pictures; the last batch may be smaller.
pub fn steps_of_epoch(batch: usize, pictures: usize) -> u64 {
    feed::steps_of_epoch(batch, pictures, true)
}

/// NTSNet in training.
pub struct NtsNet {
    config: Config,
    input: Input,
    engine: Engine,
    parameters: Parameters,
    pictures: usize,
    /// For batches of this size; an epoch may end with a smaller one.
    tapes: Vec<(usize, Tape)>,
    optimizer: Optimizer,
    feed: Feed<Vec<f32>>, // [B, 3, H, W]
    /// Teacher's batch norms that have a counterpart: their names without a path.
    followed: Vec<String>,
    /// Of a teacher that is moved.
    health: Option<Health>,
}

impl NtsNet {
    /// # Errors
    /// A config that can't be meant, a teacher of other shapes, fewer than two pictures.
    pub fn new(
        config: Config,
        input: Input,
        teacher: &Backbone,
        pictures: Arc<Pictures>,
        seed: u64,
        engine: &Engine,
    ) -> Result<NtsNet> {
        config.check()?;
        input.check()?;
        let count = pictures.len();
        ensure!(count >= 2, "{count} pictures: a batch norm needs two at least");
        let graph = config.network.graph(input.height, input.width);
        let mut parameters = Parameters::begin(&graph, seed, |name| {
            let behind = [".conv1.", ".conv2."].iter().find_map(|part| name.split_once(part));
            let contextual = behind.is_some_and(|(_, layer)| layer.contains('.'));
            match () {
                () if name.starts_with(TEACHER) => None,
                // What the paper adds to a ResNet begins as PyTorch's layers do.
                () if contextual => Some(Start::FanIn),
                () => Some(Start::FanOut),
            }
        });
        parameters.take(&graph, TEACHER, teacher.weights()).context("the teacher of NTSNet")?;
        let means = parameters.names().filter_map(|name| name.strip_suffix(".running_mean"));
        let norms: Vec<String> = means.map(str::to_owned).collect();
        let followed: Vec<String> = norms
            .iter()
            .filter_map(|name| name.strip_prefix(TEACHER))
            .filter(|name| norms.contains(&format!("{STUDENT}{name}")))
            .map(str::to_owned)
            .collect();
        if config.student_norms == StudentNorms::Teacher {
            for name in &followed {
                for kind in ["running_mean", "running_var"] {
                    let values = parameters.get(&format!("{TEACHER}{name}.{kind}"))?.to_vec();
                    let own = parameters.get_mut(&format!("{STUDENT}{name}.{kind}"))?;
                    own.copy_from_slice(&values);
                }
            }
        }
        let moved = config.eman != Eman::Off && !followed.is_empty();
        let health = moved.then(|| {
            let watched: Vec<usize> = (0..count.min(WATCHED)).collect();
            let (teacher, watched) = (config.network.teacher, normalised(&pictures, &watched)?);
            Health::new(teacher, TEACHER, input, &watched, &mut parameters, engine)
        });
        let health = health.transpose()?;
        let batch = config.batch;
        let feed = Feed::new(move |step| {
            normalised(&pictures, &pictures_of(step, batch, pictures.len(), true, seed))
        });
        let mut trainee = NtsNet {
            config,
            input,
            engine: engine.clone(),
            parameters,
            pictures: count,
            tapes: Vec::new(),
            optimizer: Optimizer::new(Rule::Adam { weight_decay: 0.0 }, Vec::new()),
            feed,
            followed,
            health,
        };
        let first = trainee.tape(trainee.config.batch.min(count))?;
        let names = trainee.tapes[first].1.gradients().keys().cloned().collect();
        let (learning_rate, rule) = trainee.config.optimizer.rule();
        trainee.optimizer = Optimizer::new(rule, vec![Group { learning_rate, names }]);
        Ok(trainee)
    }

    /// Which of the tapes is for batches of `images`; made where there is none.
    fn tape(&mut self, images: usize) -> Result<usize> {
        if let Some(at) = self.tapes.iter().position(|(size, _)| *size == images) {
            return Ok(at);
        }
        let graph = self.config.network.graph(self.input.height, self.input.width);
        let teacher = match self.config.eman {
            Eman::TeacherBatch => Statistics::Watched,
            _ => Statistics::Running,
        };
        let training = Training {
            learned: &|name| name.starts_with(STUDENT),
            statistics: &|name| {
                if name.starts_with(STUDENT) { Statistics::Batch } else { teacher }
            },
        };
        let tape = Tape::new(&graph, images, &self.engine, &training)?;
        self.tapes.push((images, tape));
        Ok(self.tapes.len() - 1)
    }

    /// The teacher's statistics go their way (paper, eq. 3 to 6).
    fn follow(&mut self, tape: usize) -> Result<()> {
        let m = self.config.eman_momentum;
        for name in &self.followed {
            let student = format!("{STUDENT}{name}");
            let of_batch = |name: &str| {
                let batch = self.tapes[tape].1.statistics(name);
                batch.map(|batch| batch.map(<[f32]>::to_vec)).context("statistics of a batch")
            };
            let [mean, variance] = match self.config.eman {
                Eman::Off => return Ok(()),
                Eman::Batch => of_batch(&student)?,
                Eman::TeacherBatch => of_batch(&format!("{TEACHER}{name}"))?,
                Eman::Running => {
                    let of = |kind: &str| self.parameters.get(&format!("{student}.{kind}"));
                    [of("running_mean")?.to_vec(), of("running_var")?.to_vec()]
                }
            };
            let own = ["running_mean", "running_var"].map(|kind| format!("{TEACHER}{name}.{kind}"));
            self.parameters.get_two_mut([&own[0], &own[1]], |own| {
                batch_norm::update_eman(own, [&mean, &variance], f64::from(m));
            })?;
        }
        Ok(())
    }
}

impl Trainee for NtsNet {
    fn steps(&self) -> u64 {
        self.config.epochs * steps_of_epoch(self.config.batch, self.pictures)
    }

    fn step(&mut self, step: u64) -> Result<Losses> {
        let batch = self.feed.take(step)?;
        let images = batch.len() / (3 * self.input.width * self.input.height);
        let at = self.tape(images)?;
        let tape = &mut self.tapes[at].1;
        tape.input(0).write(&batch);
        tape.forward(&mut self.parameters)?;
        let mut losses = distance_loss::distances(tape, self.config.reduction)?;
        tape.backward(&self.parameters)?;
        self.optimizer.step(&mut self.parameters, tape.gradients())?;
        self.follow(at)?;
        let of_epoch = steps_of_epoch(self.config.batch, self.pictures);
        if let Some(health) = &mut self.health
            && (step + 1).is_multiple_of(of_epoch)
        {
            losses.extend(health.measure(&mut self.parameters)?);
        }
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
        self.tapes.iter().map(|(_, tape)| tape.bytes()).sum()
    }
}
