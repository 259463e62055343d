//! Training of networks by gradient descent: what the published systems are learned with. Workshop:
//! nothing on the line uses it.
//!
//! A [`Trainee`] makes one step after the other; [`run`] goes through its schedule, writes losses
//! down, and saves what a run needs to go on after an interruption exactly as if there had been none.

pub mod checkpoint;
pub mod curve;
pub mod destseg;
pub mod distance_loss;
pub mod feed;
pub mod finish;
pub mod health;
pub mod loss;
pub mod mixed;
pub mod mlff;
pub mod ntsnet;
pub mod optimizer;
pub mod parameters;
pub mod prn;
pub mod tape;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use checkpoint::Checkpoint;
use curve::Curve;
use optimizer::Optimizer;
use parameters::Parameters;

/// The losses of a step, by name.
pub type Losses = Vec<(&'static str, f64)>;

/// A system that learns step by step.
pub trait Trainee {
    /// Of the whole schedule.
    fn steps(&self) -> u64;

    /// Makes step `step`, which follows the one made last.
    ///
    /// # Errors
    /// A picture that can't be read; numbers that are not finite.
    fn step(&mut self, step: u64) -> Result<Losses>;

    fn parameters(&self) -> &Parameters;

    /// `None` before the first step.
    fn optimizer(&self) -> Option<&Optimizer>;

    /// Makes ready to go on with step `step`, and gives what a checkpoint is to be put into.
    fn restore(&mut self, step: u64) -> Result<(&mut Parameters, &mut Optimizer)>;

    /// Of its maps, bytes.
    fn bytes(&self) -> usize;
}

/// How far a run goes, and where it writes.
#[derive(Clone, Debug)]
pub struct Budget {
    /// No step is begun after this time.
    pub time: Option<Duration>,
    /// Of checkpoint and curve.
    pub folder: PathBuf,
    /// Time between checkpoints.
    pub save_every: Duration,
    /// Go on from the checkpoint in the folder.
    pub resume: bool,
    /// All that the learned numbers depend on, as text: a run is only gone on with where it is the
    /// same.
    pub description: String,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    /// Steps made in all, earlier runs included.
    pub steps: u64,
    /// Whether that is the whole schedule.
    pub whole: bool,
    /// Steps of this run, and how long they took.
    pub own_steps: u64,
    pub time: Duration,
}

/// Trains. `progress` hears of each step: (done, of, losses). `now` is the clock.
///
/// # Errors
/// What [`Trainee::step`] says; a folder that can't be written; a checkpoint of another run.
pub fn run(
    trainee: &mut dyn Trainee,
    budget: &Budget,
    now: &dyn Fn() -> Instant,
    progress: &mut dyn FnMut(u64, u64, &Losses),
) -> Result<Ended> {
    let all = trainee.steps();
    let started = now();
    let checkpoint = Checkpoint::new(&budget.folder, &budget.description)?;
    let first = if budget.resume { checkpoint.read_into(trainee)? } else { 0 };
    let mut curve = Curve::open(&budget.folder, first)?;
    let mut saved = started;
    let mut step = first;
    while step < all {
        if budget.time.is_some_and(|time| now() - started >= time) {
            break;
        }
        let begun = now();
        let losses = trainee.step(step).with_context(|| format!("training step {}", step + 1))?;
        ensure!(
            losses.iter().all(|(_, value)| value.is_finite()),
            "training step {}: the loss {losses:?} is not finite; lower the learning rate",
            step + 1
        );
        step += 1;
        curve.add(step, &losses, now() - begun)?;
        progress(step, all, &losses);
        if now() - saved >= budget.save_every {
            checkpoint.write(trainee, step)?;
            saved = now();
        }
    }
    if step > first {
        checkpoint.write(trainee, step)?;
    }
    curve.draw()?;
    let time = now() - started;
    Ok(Ended { steps: step, whole: step == all, own_steps: step - first, time })
}
