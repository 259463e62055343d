//! DeSTSeg's two phases (Zhang et al. 2023, section 3, and the published code where the paper is
//! silent): first a student learns to give of a corrupted picture what the teacher says of the clean
//! one, then, the student frozen, a segmentation network learns from their differences where the
//! corruption was.
//!
//! Letters: B pictures, H × W input size.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use rand::{Rng, RngExt};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::distance_loss::{self, Reduction};
use super::feed::{Feed, normalise, pictures_of};
use super::loss::{self, Loss};
use super::optimizer::{Group, Optimizer, Rule};
use super::parameters::{Parameters, Start};
use super::tape::{Statistics, Tape, Training};
use super::{Losses, Trainee};
use crate::dataset::pictures::Pictures;
use crate::detector::destseg::TOP;
use crate::detector::input::Input;
use crate::nn::Backbone;
use crate::nn::destseg::{SEGMENTATION, STUDENT, Segmentation, TEACHER, Variant};
use crate::nn::engine::Engine;
use crate::synth::simulated::{TexturedConfig, textured};
use crate::synth::source::Source;
use crate::synth::{SampleKey, Tag, affine};

/// The schedule and everything that the paper or its code leaves open; the defaults are theirs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub network: Variant,
    /// Steps of the first phase and of the second.
    pub student_steps: u64,
    pub segmentation_steps: u64,
    /// B.
    pub batch: usize,
    pub student_rate: f32,
    /// Of the segmentation network's residual blocks, and of all behind them.
    pub residual_rate: f32,
    pub head_rate: f32,
    pub momentum: f32,
    /// Of every parameter, those of batch norms too.
    pub weight_decay: f32,
    /// Whether the student's picture is corrupted in the first phase (the ablation `den`).
    pub denoising: bool,
    /// D-2.
    pub reduction: Reduction,
    /// γ of the focal loss.
    pub gamma: i32,
    /// Whether the L1 loss is added to it (paper, table 5).
    pub l1: bool,
    /// D-3, D-4.
    pub corruption: TexturedConfig,
    /// D-5.
    pub rotation: Rotation,
    /// T, how many of the map's largest values the score is the mean of; the paper tunes it.
    pub top: usize,
}

/// How clean pictures are turned before they are corrupted (D-5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    #[default]
    None,
    /// By −5 to 5 degrees.
    Small,
    /// By a multiple of 90 degrees, then as `Small`.
    QuarterAndSmall,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            network: Variant::default(),
            student_steps: 1000,
            segmentation_steps: 4000,
            batch: 32,
            student_rate: 0.4,
            residual_rate: 0.1,
            head_rate: 0.01,
            momentum: 0.9,
            weight_decay: 1e-4,
            denoising: true,
            reduction: Reduction::Sum,
            gamma: 4,
            l1: true,
            corruption: TexturedConfig::default(),
            rotation: Rotation::default(),
            top: TOP,
        }
    }
}

impl Config {
    /// # Errors
    /// A value that can't be meant; the message names the key.
    pub fn check(&self) -> Result<()> {
        ensure!(
            (2..=256).contains(&self.batch),
            "destseg.batch = {}: must lie between 2 (a batch norm needs two) and 256",
            self.batch
        );
        ensure!(self.student_steps > 0, "destseg.student_steps = 0: the student has to learn");
        ensure!(
            (1..=16).contains(&self.gamma),
            "destseg.gamma = {}: must lie between 1 and 16 (4 is the paper's)",
            self.gamma
        );
        ensure!(self.top > 0, "destseg.top = 0: a score is the mean of 1 or more values");
        for (key, rate) in [
            ("student_rate", self.student_rate),
            ("residual_rate", self.residual_rate),
            ("head_rate", self.head_rate),
        ] {
            ensure!(
                rate > 0.0 && rate <= 10.0,
                "destseg.{key} = {rate}: must be above 0, up to 10"
            );
        }
        self.corruption.check()
    }

    /// Steps of both phases.
    pub fn steps(&self) -> u64 {
        let segments = self.network.segmentation != Segmentation::None;
        self.student_steps + if segments { self.segmentation_steps } else { 0 }
    }
}

impl Rotation {
    /// The published code's choice for MVTec AD's categories; none for any other.
    pub fn of_category(name: &str) -> Rotation {
        match name {
            "wood" | "zipper" | "cable" => Rotation::Small,
            "bottle" | "grid" | "hazelnut" | "leather" | "tile" | "carpet" | "screw" => {
                Rotation::QuarterAndSmall
            }
            _ => Rotation::None,
        }
    }

    fn apply(self, picture: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        // The grey that the published code fills corners with.
        const FILL: [u8; 3] = [114; 3];
        const MOST_DEGREES: f64 = 5.0;
        let mut turned = picture.clone();
        if self == Rotation::QuarterAndSmall {
            turned = affine::rotate(&turned, 90.0 * f64::from(rng.random_range(0..4_u8)), FILL);
        }
        if self != Rotation::None {
            let degrees = rng.random_range(-MOST_DEGREES..=MOST_DEGREES);
            turned = affine::rotate(&turned, degrees, FILL);
        }
        turned
    }
}

/// A batch, normalised.
struct Batch {
    clean: Vec<f32>,     // [B, 3, H, W]
    corrupted: Vec<f32>, // [B, 3, H, W]
    truth: Vec<bool>,    // [B, H/4, W/4]
}

/// DeSTSeg in training.
pub struct DeStSeg {
    config: Config,
    input: Input,
    engine: Engine,
    parameters: Parameters,
    phase: Option<Phase>,
    feed: Feed<Batch>,
}

/// One of the two, with what only it needs.
struct Phase {
    segments: bool,
    tape: Tape,
    optimizer: Optimizer,
}

impl DeStSeg {
    /// # Errors
    /// A config that can't be meant, a teacher of other shapes.
    pub fn new(
        config: Config,
        input: Input,
        teacher: &Backbone,
        pictures: Arc<Pictures>,
        source: Arc<Source>,
        seed: u64,
        engine: &Engine,
    ) -> Result<DeStSeg> {
        config.check()?;
        input.check()?;
        let graph = config.network.graph(input.height, input.width);
        let mut parameters = Parameters::begin(&graph, seed, start);
        parameters.take(&graph, TEACHER, teacher.weights()).context("the teacher of DeSTSeg")?;
        let (own, size) = (config.clone(), (input.width, input.height));
        let feed = Feed::new(move |step| batch(&own, &pictures, &source, size, seed, step));
        let engine = engine.clone();
        Ok(DeStSeg { config, input, engine, parameters, phase: None, feed })
    }

    fn begin_phase(&self, segments: bool) -> Result<Phase> {
        let Config { network, batch, momentum, weight_decay, .. } = self.config;
        let Input { width, height } = self.input;
        let graph = if segments {
            let whole = network.graph(height, width);
            whole.to_outputs(&whole.outputs()[..1])
        } else {
            network.student_training(height, width)
        };
        let own = if segments { SEGMENTATION } else { STUDENT };
        let training = Training {
            learned: &|name| name.starts_with(own),
            // A frozen network keeps its statistics (D-9).
            statistics: &|name| {
                if name.starts_with(own) { Statistics::Batch } else { Statistics::Running }
            },
        };
        let tape = Tape::new(&graph, batch, &self.engine, &training)?;
        let residual = format!("{SEGMENTATION}res.");
        let (mut student, mut blocks, mut head) = (Vec::new(), Vec::new(), Vec::new());
        for name in tape.gradients().keys() {
            let group = match () {
                () if !segments => &mut student,
                () if name.starts_with(&residual) => &mut blocks,
                () => &mut head,
            };
            group.push(name.clone());
        }
        let groups = [
            (self.config.student_rate, student),
            (self.config.residual_rate, blocks),
            (self.config.head_rate, head),
        ];
        let groups = groups.map(|(learning_rate, names)| Group { learning_rate, names });
        let rule = Rule::Sgd { momentum, weight_decay };
        Ok(Phase { segments, tape, optimizer: Optimizer::new(rule, groups.to_vec()) })
    }

    /// Phase of `step` (D-10), begun where it is another than the last one's.
    fn enter(&mut self, step: u64) -> Result<&mut Phase> {
        let segments = step >= self.config.student_steps;
        if self.phase.as_ref().is_none_or(|phase| phase.segments != segments) {
            // The memory of one phase is given back before the other's is taken.
            self.phase = None;
            self.phase = Some(self.begin_phase(segments)?);
        }
        self.phase.as_mut().context("no phase")
    }
}

impl Trainee for DeStSeg {
    fn steps(&self) -> u64 {
        self.config.steps()
    }

    fn step(&mut self, step: u64) -> Result<Losses> {
        self.enter(step)?;
        let batch = self.feed.take(step)?;
        let Some(phase) = &mut self.phase else { unreachable!("entered above") };
        let tape = &mut phase.tape;
        let losses = if phase.segments {
            tape.input(0).write(&batch.corrupted);
            tape.forward(&mut self.parameters)?;
            let said = tape.output(0).read();
            let focal = loss::focal(&said, &batch.truth, self.config.gamma);
            let l1 = loss::l1(&said, &batch.truth);
            let losses = vec![("focal", focal.value), ("l1", l1.value)];
            let Loss { gradient, .. } = if self.config.l1 { focal.plus(&l1) } else { focal };
            let to = tape.output_gradient(0).context("the segmentation learns nothing")?;
            to.write(&gradient);
            losses
        } else {
            let corrupted = if self.config.denoising { &batch.corrupted } else { &batch.clean };
            tape.input(0).write(&batch.clean);
            tape.input(1).write(corrupted);
            tape.forward(&mut self.parameters)?;
            distance_loss::distances(tape, self.config.reduction)?
        };
        tape.backward(&self.parameters)?;
        phase.optimizer.step(&mut self.parameters, tape.gradients())?;
        Ok(losses)
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn optimizer(&self) -> Option<&Optimizer> {
        self.phase.as_ref().map(|phase| &phase.optimizer)
    }

    fn restore(&mut self, step: u64) -> Result<(&mut Parameters, &mut Optimizer)> {
        // A checkpoint holds the optimizer of the step before.
        self.enter(step.saturating_sub(1))?;
        let Some(phase) = &mut self.phase else { unreachable!("entered above") };
        Ok((&mut self.parameters, &mut phase.optimizer))
    }

    fn bytes(&self) -> usize {
        self.phase.as_ref().map_or(0, |phase| phase.tape.bytes())
    }
}

/// How each layer begins: timm's student encoder, torchvision's decoder and residual blocks, PyTorch's
/// own head (the published code).
fn start(name: &str) -> Option<Start> {
    let encoder = format!("{STUDENT}encoder.");
    let head = format!("{SEGMENTATION}head.");
    Some(match () {
        () if name.starts_with(TEACHER) => return None,
        () if name.starts_with(&encoder) => Start::FanOutLastZero,
        () if name.starts_with(&head) => Start::FanIn,
        () => Start::FanOut,
    })
}

fn batch(
    config: &Config,
    pictures: &Pictures,
    source: &Source,
    (width, height): (usize, usize),
    seed: u64,
    step: u64,
) -> Result<Batch> {
    let chosen = pictures_of(step, config.batch, pictures.len(), false, seed);
    let samples: Vec<_> = chosen
        .par_iter()
        .enumerate()
        .map(|(place, &index)| {
            // The place in the batch tells two draws of one picture apart.
            let key = SampleKey { seed, epoch: step, index: place as u64 };
            let picture = pictures.get(index)?;
            let turned = config.rotation.apply(&picture, &mut key.rng(Tag::NormalAugmentation));
            let synthetic = textured(&turned, source, &config.corruption, key)?;
            let truth = synthetic.mask.without_antialias(width / 4, height / 4);
            let (mut clean, mut corrupted) = (Vec::new(), Vec::new());
            normalise(&image::DynamicImage::ImageRgb8(turned).into_rgb32f(), &mut clean);
            normalise(&synthetic.image, &mut corrupted);
            Ok((clean, corrupted, truth.inside))
        })
        .collect::<Result<_>>()?;
    let mut batch = Batch { clean: Vec::new(), corrupted: Vec::new(), truth: Vec::new() };
    for (clean, corrupted, truth) in samples {
        batch.clean.extend(clean);
        batch.corrupted.extend(corrupted);
        batch.truth.extend(truth);
    }
    Ok(batch)
}
