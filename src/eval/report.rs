//! An evaluation as people and machines read it: runs of bundles on categories, their means, and
//! what was published of the same categories. As a table for the terminal (`Display`), JSON, CSV
//! and one page of HTML.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::gallery::Shown;
use super::published::{self, Choice, Published};
use super::{Curves, Figures, Metric, Resolution, Scored, Unreadable, html};
use crate::dataset::Layout;
use crate::detector::bundle::Card;
use crate::metrics::bootstrap::Interval;

/// All runs of one call, bundle by bundle.
#[derive(Clone, Debug)]
pub struct Report {
    pub runs: Vec<Run>,
    pub settings: Shared,
    /// Who is shown beside the means.
    pub choice: Choice,
    pub made_at: SystemTime,
}

/// What all runs of a report have in common.
#[derive(Clone, Debug, Serialize)]
pub struct Shared {
    pub inspectd: String,
    pub revision: String,
    /// The machine's processor, the card where one computed, and the threads of an inference.
    pub cpu: String,
    pub threads: usize,
    pub batch: usize,
    pub resolution: Resolution,
    /// Resamples of the intervals, 0 for none, the share of them inside, and what drew them.
    pub resamples: usize,
    pub confidence: f64,
    pub seed: u64,
}

/// One bundle on one category. The keys of its JSON are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// As named on the command line.
    pub bundle: String,
    pub data: String,
    pub category: String,
    #[serde(serialize_with = "words")]
    pub layout: Layout,
    /// To decode and score all pictures and take the figures.
    pub seconds: f64,
    /// Decoded and scored.
    pub images_per_s: f64,
    /// Of the process, up to the end of this run.
    pub peak_rss_mib: f64,
    #[serde(flatten)]
    pub figures: Figures,
    pub made: Made,
    /// Defects that the bundle was taught with, left out of this test.
    pub seen_anomalies: Vec<String>,
    pub unreadable: Vec<Unreadable>,
    pub published: Vec<Published>,
    /// What a reader of this run must know.
    pub notes: Vec<String>,
    #[serde(skip)]
    pub scored: Vec<Scored>,
    #[serde(skip)]
    pub curves: Curves,
    #[serde(skip)]
    pub gallery: Vec<Shown>,
}

/// How a bundle was made, from its card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Made {
    pub system: String,
    pub backbone: String,
    pub precision: &'static str,
    /// Width and height, pixels.
    pub input: (usize, usize),
    /// Of a memory bank.
    pub prototypes: Option<usize>,
    /// Of training.
    pub steps: Option<u64>,
    pub seed: u64,
    pub inspectd: String,
    pub revision: String,
    pub images: usize,
    /// Over the names and contents of the pictures it was made from.
    pub training_data_sha256: String,
}

/// The unweighted means of a bundle over its categories.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mean {
    pub bundle: String,
    pub categories: Vec<String>,
    #[serde(flatten)]
    pub figures: BTreeMap<Metric, Option<f64>>,
    /// The categories in which a figure is not defined, which its mean is without.
    pub undefined: BTreeMap<Metric, Vec<String>>,
    pub published: Vec<Published>,
}

impl Made {
    pub fn of(card: &Card) -> Made {
        Made {
            system: card.system.clone(),
            backbone: card.backbone.network.clone(),
            precision: card.precision.word(),
            input: (card.input.width, card.input.height),
            prototypes: card.prototypes.as_ref().map(|bank| bank.count),
            steps: card.training.map(|training| training.steps),
            seed: card.seed,
            inspectd: card.inspectd.clone(),
            revision: card.revision.clone(),
            images: card.training_data.taught + card.training_data.held_out,
            training_data_sha256: card.training_data.sha256.clone(),
        }
    }
}

impl Run {
    /// The last part of the bundle's path: what a row is called.
    pub fn short_bundle(&self) -> &str {
        short(&self.bundle)
    }
}

impl Mean {
    pub fn of(&self, metric: Metric) -> Option<f64> {
        self.figures.get(&metric).copied().flatten()
    }

    /// What the means are without, in words.
    pub fn note(&self) -> Option<String> {
        let lacking = self
            .undefined
            .iter()
            .map(|(metric, categories)| format!("{} of {}", metric.word(), categories.join(", ")));
        let lacking: Vec<String> = lacking.collect();
        (!lacking.is_empty())
            .then(|| format!("not defined, and not in the mean: {}", lacking.join("; ")))
    }
}

impl Report {
    /// The runs of each bundle, in the order of the command line.
    pub fn by_bundle(&self) -> Vec<&[Run]> {
        self.runs.chunk_by(|a, b| a.bundle == b.bundle).collect()
    }

    /// The categories in the order of the runs, each with its runs.
    pub fn by_category(&self) -> Vec<(&str, Vec<&Run>)> {
        let mut categories: Vec<(&str, Vec<&Run>)> = Vec::new();
        for run in &self.runs {
            let is_this =
                |one: &&mut (&str, Vec<&Run>)| one.1[0].data == run.data && one.0 == run.category;
            match categories.iter_mut().find(is_this) {
                Some((_, runs)) => runs.push(run),
                None => categories.push((&run.category, vec![run])),
            }
        }
        categories
    }

    /// Of each bundle with more than one category.
    pub fn means(&self) -> Vec<Mean> {
        let blocks = self.by_bundle().into_iter().filter(|runs| runs.len() > 1);
        blocks.map(|runs| mean(runs, &self.choice)).collect()
    }

    /// With one run its keys at the top, with several an array `runs` and their `means`.
    pub fn json(&self) -> Result<String> {
        let mut json = match self.runs.as_slice() {
            [run] => serde_json::to_value(run)?,
            runs => serde_json::json!({ "runs": runs, "means": self.means() }),
        };
        json["settings"] = serde_json::to_value(&self.settings)?;
        Ok(serde_json::to_string_pretty(&json)? + "\n")
    }

    /// A head and a line a run; what is not defined is empty.
    pub fn csv(&self) -> Result<String> {
        let mut out = csv::Writer::from_writer(Vec::new());
        out.write_record(COLUMNS)?;
        for run in &self.runs {
            let json = serde_json::to_value(run)?;
            let cell = |name: &str| {
                let value = match name.rsplit_once('.') {
                    Some((metric, end)) => &json["intervals"][metric][end],
                    None => &json[name],
                };
                match value {
                    Value::Null => String::new(),
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                }
            };
            out.write_record(COLUMNS.iter().map(|name| match *name {
                "system" => run.made.system.clone(),
                "backbone" => run.made.backbone.clone(),
                name => cell(name),
            }))?;
        }
        Ok(String::from_utf8(out.into_inner()?)?)
    }

    /// One page that needs nothing else: no other file, no network.
    pub fn html(&self) -> Result<String> {
        html::page(self)
    }

    /// Whether any category has published figures.
    pub fn has_published(&self) -> bool {
        self.runs.iter().any(|run| !run.published.is_empty())
    }
}

/// The columns of the CSV: keys of a run's JSON, `.low` and `.high` those of its intervals.
const COLUMNS: [&str; 38] = [
    "bundle",
    "data",
    "layout",
    "category",
    "system",
    "backbone",
    "images",
    "goods",
    "defects",
    "image_auroc",
    "image_auroc.low",
    "image_auroc.high",
    "image_ap",
    "image_ap.low",
    "image_ap.high",
    "f1_max",
    "f1_max.low",
    "f1_max.high",
    "f1_max_threshold",
    "pg2",
    "pb2",
    "pixel_auroc",
    "pixel_auroc.low",
    "pixel_auroc.high",
    "pixel_ap",
    "pixel_ap.low",
    "pixel_ap.high",
    "aupro_0_3",
    "aupro_0_3.low",
    "aupro_0_3.high",
    "pixel_iap",
    "pixel_iap_90",
    "threshold",
    "false_rejects",
    "escapes",
    "seconds",
    "images_per_s",
    "peak_rss_mib",
];

fn mean(runs: &[Run], choice: &Choice) -> Mean {
    let mut figures = BTreeMap::new();
    let mut undefined = BTreeMap::new();
    for metric in Metric::ALL {
        let defined: Vec<f64> = runs.iter().filter_map(|run| metric.of(&run.figures)).collect();
        let mean = defined.iter().sum::<f64>() / defined.len() as f64;
        figures.insert(metric, (!defined.is_empty()).then_some(mean));
        let without = runs.iter().filter(|run| metric.of(&run.figures).is_none());
        let without: Vec<String> = without.map(|run| run.category.clone()).collect();
        if !without.is_empty() {
            undefined.insert(metric, without);
        }
    }
    let mut categories: Vec<String> = runs.iter().map(|run| run.category.clone()).collect();
    let layout = runs[0].layout;
    categories.sort_unstable();
    let is_whole_set =
        runs.iter().all(|run| run.layout == layout) && categories == published::categories(layout);
    Mean {
        bundle: runs[0].bundle.clone(),
        categories: runs.iter().map(|run| run.category.clone()).collect(),
        figures,
        undefined,
        published: if is_whole_set {
            published::published(layout, published::MEAN, choice)
        } else {
            Vec::new()
        },
    }
}

fn words<S: serde::Serializer>(
    value: &impl fmt::Display,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.collect_str(value)
}

/// The last part of a path.
pub(super) fn short(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

/// A figure as it is printed.
pub(super) fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "n/a".to_owned(), |value| format!("{value:.4}"))
}

/// An interval as it is printed.
pub(super) fn range(interval: Interval) -> String {
    format!("{:.3}–{:.3}", interval.low, interval.high)
}
