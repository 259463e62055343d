//! How many good parts it takes: memory banks of a few of them, drawn anew for each seed, and what
//! their scores are worth on the test set. No thresholds, so that one part is enough.
//!
//! For each seed the parts are drawn in one order ([`crate::teach::few::order`]), so that the bank
//! of four has the parts of the bank of two among its own. All parts are taken once a seed too: then
//! only the coreset is drawn.
//!
//! Letters: P patches of a picture, D channels of a patch feature.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::truth;
use crate::camera::folder;
use crate::dataset::{Category, mask};
use crate::detector::input::Input;
use crate::detector::patch_prototypes::{self, PatchFeatures, PatchPrototypes};
use crate::metrics::Ranking;
use crate::metrics::pixels::PixelScores;
use crate::nn::BackboneSpec;
use crate::nn::engine::Engine;
use crate::teach::{self, BankSize, few};

pub mod report;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Config {
    pub shots: Vec<Shots>,
    /// Each draws its parts and its coreset.
    pub seeds: Vec<u64>,
    pub input: Input,
    pub bank: BankSize,
    /// Bits a sample that 16-bit files really carry; see [`folder::decode`].
    pub significant_bits: u32,
}

/// How many good parts: `4`, or `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shots {
    Few(usize),
    All,
}

/// Where the work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Pictures.
    Features,
    /// Memory banks, made and scored with.
    Banks,
}

/// The figures of one backbone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackboneCurve {
    pub backbone: String,
    pub points: Vec<Point>,
}

/// The figures of so many good parts, over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// `4`, or `all`.
    pub shots: String,
    pub pictures: usize,
    pub prototypes: usize,
    pub image_auroc: Spread,
    pub pixel_auroc: Spread,
    pub pixel_ap: Spread,
    pub aupro_0_3: Spread,
    pub runs: Vec<Run>,
}

/// Over the seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// `None` where a seed has no figure.
    pub mean: Option<f64>,
    /// The sample standard deviation; `None` of one seed.
    pub std: Option<f64>,
}

/// One memory bank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    pub seed: u64,
    /// The good parts drawn, in order; left empty where all are taken.
    pub parts: Vec<String>,
    #[serde(flatten)]
    pub figures: Figures,
}

/// As in [`super::Figures`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    pub image_auroc: Option<f64>,
    pub pixel_auroc: Option<f64>,
    pub pixel_ap: Option<f64>,
    pub aupro_0_3: Option<f64>,
}

/// A category and what of it is the same for all backbones.
pub struct Experiment<'a> {
    config: &'a Config,
    category: &'a Category,
    /// Of each seed, the order its parts are drawn in.
    orders: Vec<Vec<usize>>,
    /// Of each test picture, at the input size; `None` where a defect has no mask.
    truths: Option<Vec<Vec<bool>>>,
}

impl Shots {
    fn pictures(self, all: usize) -> usize {
        match self {
            Shots::Few(count) => count,
            Shots::All => all,
        }
    }
}

impl FromStr for Shots {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Shots> {
        match word.parse() {
            Ok(0) => bail!("0 good parts make no memory bank"),
            Ok(count) => Ok(Shots::Few(count)),
            Err(_) if word == "all" => Ok(Shots::All),
            Err(_) => bail!("{word}: must be a number of good parts, or all"),
        }
    }
}

impl fmt::Display for Shots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shots::Few(count) => write!(f, "{count}"),
            Shots::All => f.write_str("all"),
        }
    }
}

impl<'a> Experiment<'a> {
    /// Draws the parts and reads the masks.
    ///
    /// # Errors
    /// More parts wanted than there are, nothing to do, a mask that can't be read.
    pub fn new(config: &'a Config, category: &'a Category) -> Result<Experiment<'a>> {
        config.input.check()?;
        ensure!(!config.shots.is_empty() && !config.seeds.is_empty(), "no shots or no seeds");
        let goods = category.train.len();
        for shots in &config.shots {
            ensure!(
                shots.pictures(goods) <= goods && goods > 0,
                "few-shot = {shots}, and {} has {goods} good parts to learn from",
                category.root.display()
            );
        }
        let Input { width, height } = config.input;
        let of_sample = |path: Option<&Path>| -> Result<Vec<bool>> {
            let mask = path.map(mask::open).transpose()?;
            truth(mask.as_ref(), width, height)
        };
        let test = &category.test;
        let has_masks = test.iter().all(|sample| sample.defect.is_none() || sample.mask.is_some());
        let truths = has_masks
            .then(|| test.par_iter().map(|sample| of_sample(sample.mask.as_deref())).collect())
            .transpose()?;
        let orders = config.seeds.iter().map(|&seed| few::order(goods, seed)).collect();
        Ok(Experiment { config, category, orders, truths })
    }

    /// Bytes that features take with a backbone of D channels, and as much as those of the largest
    /// bank again for the choice of its prototypes.
    pub fn bytes(&self, dims: usize) -> u64 {
        let (rows, columns) = patch_prototypes::grid(self.config.input);
        let of_picture = (rows * columns * dims * 4) as u64;
        let most = self.config.shots.iter().map(|shots| shots.pictures(self.category.train.len()));
        let most = most.max().unwrap_or(0) as u64;
        (self.needed().len() + self.category.test.len()) as u64 * of_picture + most * of_picture
    }

    /// Memory banks of one backbone, each scored with. `progress` hears `(step, done, total)`.
    ///
    /// # Errors
    /// A picture that can't be read.
    pub fn measure(
        &self,
        spec: &BackboneSpec,
        engine: &Engine,
        progress: &mut dyn FnMut(Step, usize, usize),
    ) -> Result<BackboneCurve> {
        let Config { shots, seeds, input, .. } = self.config;
        let loaded = patch_prototypes::load_backbone(spec)?;
        let mut extractor = PatchFeatures::new(*input, &loaded.backbone, engine)?;
        drop(loaded);

        let needed = self.needed();
        let good = |&i: &usize| self.category.train[i].path.as_path();
        let goods: Vec<&Path> = needed.keys().map(good).collect();
        let tests: Vec<&Path> = self.category.test.iter().map(|s| s.path.as_path()).collect();
        let total = goods.len() + tests.len();
        let mut done = 0;
        let mut features = |paths: &[&Path]| {
            self.features(&mut extractor, paths, &mut |more| {
                done += more;
                progress(Step::Features, done, total);
            })
        };
        let goods = features(&goods)?;
        let tests = features(&tests)?;

        let mut points = Vec::with_capacity(shots.len());
        for (i, &shots) in shots.iter().enumerate() {
            let mut runs = Vec::with_capacity(seeds.len());
            let mut prototypes = 0;
            for (j, (&seed, order)) in seeds.iter().zip(&self.orders).enumerate() {
                let done = i * seeds.len() + j;
                progress(Step::Banks, done, self.config.shots.len() * seeds.len());
                let picture = extractor.len();
                let drawn: Vec<f32>;
                let (rows, parts): (&[f32], _) = match shots {
                    Shots::All => (&goods, Vec::new()),
                    Shots::Few(count) => {
                        let order = &order[..count];
                        let of = |i: &usize| &goods[needed[i] * picture..][..picture];
                        drawn = order.iter().flat_map(of).copied().collect();
                        let name = |&i: &usize| self.category.train[i].name.clone();
                        (&drawn, order.iter().map(name).collect())
                    }
                };
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(CORESET_STREAM);
                let dims = extractor.dims();
                let rows =
                    teach::memory_bank(self.config.bank, rows, dims, &mut rng, &mut |_, _| ())?;
                prototypes = rows.len() / dims;
                let mut detector = PatchPrototypes::new(extractor, rows)
                    .with_context(|| format!("few-shot = {shots}"))?;
                runs.push(Run { seed, parts, figures: self.judge(&mut detector, &tests)? });
                extractor = detector.into_features();
            }
            points.push(Point::new(shots, self.category.train.len(), prototypes, runs));
        }
        progress(Step::Banks, points.len() * seeds.len(), points.len() * seeds.len());
        Ok(BackboneCurve { backbone: spec.word().to_owned(), points })
    }

    /// The good parts that any seed draws, with their place among these.
    fn needed(&self) -> BTreeMap<usize, usize> {
        let all = self.category.train.len();
        let most = self.config.shots.iter().map(|shots| shots.pictures(all)).max().unwrap_or(0);
        let mut drawn: Vec<usize> =
            self.orders.iter().flat_map(|order| &order[..most]).copied().collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn.into_iter().enumerate().map(|(place, part)| (part, place)).collect()
    }

    /// `[pictures · P, D]`
    fn features(
        &self,
        extractor: &mut PatchFeatures,
        paths: &[&Path],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        let mut features = vec![0.0; paths.len() * extractor.len()];
        let batch = BATCH * extractor.len();
        for (paths, features) in paths.chunks(BATCH).zip(features.chunks_mut(batch)) {
            let read = |path: &&Path| folder::read(path, self.config.significant_bits);
            let images = paths.par_iter().map(read).collect::<Result<Vec<_>>>()?;
            for (image, features) in images.iter().zip(features.chunks_mut(extractor.len())) {
                extractor.extract_into(image, features)?;
            }
            progress(paths.len());
        }
        Ok(features)
    }

    fn judge(&self, detector: &mut PatchPrototypes, features: &[f32]) -> Result<Figures> {
        let test = &self.category.test;
        let mut scores = Vec::with_capacity(test.len());
        let mut pixels = PixelScores::default();
        for (i, features) in features.chunks_exact(features.len() / test.len()).enumerate() {
            let detection = detector.detect_features(features)?.remove(0);
            if let Some(truths) = &self.truths {
                pixels.add(&detection.map.scores, &truths[i], detection.map.width)?;
            }
            scores.push(detection.score);
        }
        let anomalous: Vec<bool> = test.iter().map(|sample| sample.defect.is_some()).collect();
        let image_auroc = Ranking::new(&scores, &anomalous)?.auroc();
        let pixels = pixels.finish();
        Ok(Figures {
            image_auroc,
            pixel_auroc: pixels.auroc,
            pixel_ap: pixels.average_precision,
            aupro_0_3: pixels.aupro,
        })
    }
}

impl Point {
    fn new(shots: Shots, all: usize, prototypes: usize, runs: Vec<Run>) -> Point {
        let spread = |figure: fn(&Figures) -> Option<f64>| {
            Spread::of(&runs.iter().map(|run| figure(&run.figures)).collect::<Vec<_>>())
        };
        Point {
            shots: shots.to_string(),
            pictures: shots.pictures(all),
            prototypes,
            image_auroc: spread(|figures| figures.image_auroc),
            pixel_auroc: spread(|figures| figures.pixel_auroc),
            pixel_ap: spread(|figures| figures.pixel_ap),
            aupro_0_3: spread(|figures| figures.aupro_0_3),
            runs,
        }
    }
}

impl Spread {
    fn of(figures: &[Option<f64>]) -> Spread {
        let Some(values) = figures.iter().copied().collect::<Option<Vec<f64>>>() else {
            return Spread::default();
        };
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let std = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        Spread { mean: (!values.is_empty()).then_some(mean), std }
    }
}

/// Pictures decoded side by side.
const BATCH: usize = 8;

/// Of a seed's generator; the parts are drawn from another.
const CORESET_STREAM: u64 = 1;

#[cfg(test)]
mod tests;
