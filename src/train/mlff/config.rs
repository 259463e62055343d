//! What MLFF's training can be told.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::places;
use crate::detector::input::Input;
use crate::nn::mlff::Variant;
use crate::synth::{confetti, cutpaste};
use crate::train::feed;
use crate::train::loss::mlff::{Counting, Likeness, Pairing};

/// The schedule and everything that the paper leaves open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Of the repeated pictures.
    pub epochs: u64,
    /// Of the whole schedule, in the place of `epochs`; it may end within one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// B.
    pub batch: usize,
    pub learning_rate: f32,
    /// What the rate is multiplied with after each epoch; FCDD's code has 0.985.
    pub rate_decay: f32,
    /// M-6.
    pub momentum: f32,
    pub weight_decay: f32,
    pub encoder_norms: EncoderNorms,
    /// How often an epoch goes through the good parts.
    pub repetition: usize,
    /// Share of an epoch that becomes anomalous (paper, table 3).
    pub anomaly_share: f64,
    /// Share of the anomalies that is confetti; the rest is pasted (G-9).
    pub confetti_share: f64,
    /// What piece is pasted (G-8).
    pub pasted: cutpaste::Variant,
    /// α, β, ξ: what the losses of features, of scores and of consistency count. One that counts nothing
    /// is not computed.
    pub feature_weight: f64,
    pub score_weight: f64,
    pub consistency_weight: f64,
    /// γ and λ of the score loss.
    pub gamma: f64,
    pub lambda: f64,
    /// M-12.
    pub counting: Counting,
    /// M-5.
    pub pairing: Pairing,
    /// Sides of a patch, places (M-9).
    pub patch: usize,
    /// Share of its pixels from which on a place counts as anomalous (M-11).
    pub label_share: f64,
    pub network: Variant,
    pub confetti: confetti::Config,
    pub cutpaste: cutpaste::Config,
    /// M-7, M-8, M-10.
    pub likeness: Likeness,
}

/// What the batch norms of the encoder normalise with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderNorms {
    /// The batch, as all others.
    #[default]
    Train,
    /// The statistics that it came with; scales and shifts still learn.
    Frozen,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            epochs: 200,
            steps: None,
            batch: 32,
            learning_rate: 1e-3,
            rate_decay: 1.0,
            momentum: 0.9,
            weight_decay: 3e-5,
            encoder_norms: EncoderNorms::default(),
            repetition: 10,
            anomaly_share: 0.5,
            confetti_share: 0.5,
            pasted: cutpaste::Variant::default(),
            feature_weight: 1.0,
            score_weight: 1.0,
            consistency_weight: 1.0,
            gamma: 2.5,
            lambda: 5.0,
            counting: Counting::default(),
            pairing: Pairing::default(),
            patch: 4,
            label_share: 0.5,
            network: Variant::default(),
            confetti: confetti::Config::default(),
            cutpaste: cutpaste::Config::default(),
            likeness: Likeness::default(),
        }
    }
}

impl Config {
    /// # Errors
    /// A value that can't be meant, or one that pictures of this size don't allow; the message names the
    /// key.
    pub fn check(&self, input: Input) -> Result<()> {
        ensure!(
            (2..=256).contains(&self.batch),
            "mlff.batch = {}: must lie between 2 (a batch norm needs two) and 256",
            self.batch
        );
        ensure!(self.epochs > 0, "mlff.epochs = 0: the network has to learn");
        ensure!(self.steps != Some(0), "mlff.steps = 0: the network has to learn");
        ensure!(
            (1..=1000).contains(&self.repetition),
            "mlff.repetition = {}: must lie between 1 and 1000 (10 is the paper's)",
            self.repetition
        );
        for (key, rate) in [("learning_rate", self.learning_rate), ("rate_decay", self.rate_decay)]
        {
            ensure!(rate > 0.0 && rate <= 1.0, "mlff.{key} = {rate}: must be above 0, up to 1");
        }
        for (key, share) in [("momentum", self.momentum), ("weight_decay", self.weight_decay)] {
            ensure!(
                (0.0..1.0).contains(&share),
                "mlff.{key} = {share}: must lie between 0 and 1, 1 left out"
            );
        }
        for (key, share) in
            [("anomaly_share", self.anomaly_share), ("confetti_share", self.confetti_share)]
        {
            ensure!((0.0..=1.0).contains(&share), "mlff.{key} = {share}: must lie between 0 and 1");
        }
        ensure!(
            self.label_share > 0.0 && self.label_share <= 1.0,
            "mlff.label_share = {}: must be above 0, up to 1 (0.5 is usual)",
            self.label_share
        );
        for (key, number) in [
            ("feature_weight", self.feature_weight),
            ("score_weight", self.score_weight),
            ("consistency_weight", self.consistency_weight),
            ("gamma", self.gamma),
            ("lambda", self.lambda),
        ] {
            ensure!(
                (0.0..=1e6).contains(&number),
                "mlff.{key} = {number}: must lie between 0 and 1000000"
            );
        }
        let by_scores = self.score_weight > 0.0 || self.consistency_weight > 0.0;
        ensure!(
            !self.network.score || by_scores,
            "mlff.network.score = true, but score_weight and consistency_weight are 0: the head that \
             scores would learn nothing; set score = false, or one of the weights"
        );
        ensure!(
            self.network.score || self.feature_weight > 0.0,
            "mlff.feature_weight = 0 with network.score = false: there is no loss to learn from"
        );
        self.confetti.check().context("mlff.confetti")?;
        self.network.check((input.height, input.width))?;
        let (height, width) = places(self.network, input);
        let fits =
            self.patch > 0 && height.is_multiple_of(self.patch) && width.is_multiple_of(self.patch);
        ensure!(
            fits || !self.compares(),
            "mlff.patch = {}: must divide the {height} × {width} places of the features (4 is usual)",
            self.patch
        );
        Ok(())
    }

    /// Steps of the whole schedule for so many good parts.
    pub fn schedule(&self, pictures: usize) -> u64 {
        self.steps.unwrap_or_else(|| self.epochs * self.steps_of_epoch(pictures))
    }

    /// Of so many good parts; the last batch may be smaller.
    pub fn steps_of_epoch(&self, pictures: usize) -> u64 {
        feed::steps_of_epoch(self.batch, pictures * self.repetition, true)
    }

    /// Whether patches are compared.
    pub(super) fn compares(&self) -> bool {
        self.network.score && self.consistency_weight > 0.0
    }
}
