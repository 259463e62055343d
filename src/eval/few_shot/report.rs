//! The few-shot curve as people and machines read it.

use std::fmt::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

use super::{BackboneCurve, Figures, Point, Spread};
use crate::plot::{Axis, Chart, Line};

/// The figures with where they come from. `inspectd eval --few-shot --json` writes this; its keys
/// are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub inspectd: String,
    pub category: String,
    /// As named on the command line.
    pub data: String,
    pub test_images: usize,
    pub seeds: Vec<u64>,
    pub backbones: Vec<BackboneCurve>,
    /// To read, learn and score everything.
    pub seconds: f64,
}

/// A figure of a point and of a run.
struct Shown {
    name: &'static str,
    key: &'static str,
    of_point: fn(&Point) -> Spread,
    of_run: fn(&Figures) -> Option<f64>,
}

const SHOWN: [Shown; 4] = [
    Shown {
        name: "image AUROC",
        key: "image_auroc",
        of_point: |point| point.image_auroc,
        of_run: |figures| figures.image_auroc,
    },
    Shown {
        name: "pixel AUROC",
        key: "pixel_auroc",
        of_point: |point| point.pixel_auroc,
        of_run: |figures| figures.pixel_auroc,
    },
    Shown {
        name: "pixel AP",
        key: "pixel_ap",
        of_point: |point| point.pixel_ap,
        of_run: |figures| figures.pixel_ap,
    },
    Shown {
        name: "AUPRO@0.3",
        key: "aupro_0_3",
        of_point: |point| point.aupro_0_3,
        of_run: |figures| figures.aupro_0_3,
    },
];

/// Of one of the four charts, pixels.
const CHART: (u32, u32) = (560, 380);

impl fmt::Display for Report {
    /// A table of about 90 columns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} test pictures, mean ± standard deviation over {} seeds, {:.0} s",
            self.category,
            self.test_images,
            self.seeds.len(),
            self.seconds
        )?;
        for curve in &self.backbones {
            writeln!(f, "\n{}", curve.backbone)?;
            write!(f, "{:>10} {:>10}", "good parts", "prototypes")?;
            SHOWN.iter().try_for_each(|shown| write!(f, "  {:>15}", shown.name))?;
            writeln!(f)?;
            for point in &curve.points {
                let parts = match point.shots.as_str() {
                    "all" => format!("all {}", point.pictures),
                    shots => shots.to_owned(),
                };
                write!(f, "{parts:>10} {:>10}", point.prototypes)?;
                for shown in &SHOWN {
                    write!(f, "  {:>15}", words((shown.of_point)(point)))?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

impl Report {
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// A line a memory bank.
    pub fn csv(&self) -> Result<String> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        let head = ["category", "backbone", "shots", "pictures", "prototypes", "seed"];
        csv.write_record(head.into_iter().chain(SHOWN.iter().map(|shown| shown.key)))?;
        for curve in &self.backbones {
            for point in &curve.points {
                for run in &point.runs {
                    let [pictures, prototypes] =
                        [point.pictures, point.prototypes].map(|n| n.to_string());
                    let seed = run.seed.to_string();
                    let names = [&self.category, &curve.backbone, &point.shots];
                    let named = names.into_iter().cloned().chain([pictures, prototypes, seed]);
                    let figures = SHOWN.iter().map(|shown| {
                        (shown.of_run)(&run.figures).map_or_else(String::new, |v| v.to_string())
                    });
                    csv.write_record(named.chain(figures))?;
                }
            }
        }
        Ok(String::from_utf8(csv.into_inner()?)?)
    }

    /// Four charts, two by two, as one picture.
    pub fn svg(&self) -> Result<String> {
        let (width, height) = CHART;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" \
             viewBox=\"0 0 {0} {1}\">\n",
            2 * width,
            2 * height
        );
        for (i, shown) in SHOWN.iter().enumerate() {
            let (x, y) = (i as u32 % 2 * width, i as u32 / 2 * height);
            let chart = self.chart(shown).svg(CHART)?;
            writeln!(svg, "<g transform=\"translate({x} {y})\">\n{chart}</g>")?;
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }

    fn chart(&self, shown: &Shown) -> Chart {
        let names = self.backbones.first().map_or_else(Vec::new, |curve| {
            curve.points.iter().map(|point| point.shots.clone()).collect()
        });
        let lines: Vec<Line> =
            self.backbones.iter().map(|curve| line(curve, shown.of_point)).collect();
        let lows = lines
            .iter()
            .flat_map(|line| line.points.iter().map(|p| p.1))
            .chain(lines.iter().flat_map(|line| line.band.iter().map(|b| b.1)));
        let lowest = lows.filter(|low| low.is_finite()).fold(1.0, f64::min);
        // Room below the lines for their names, down to a round number.
        let below = lowest - (1.0 - lowest) * 0.35;
        let from = ((below * 20.0).floor() / 20.0).clamp(0.0, 0.95);
        Chart {
            title: format!("{} of {}, {} seeds", shown.name, self.category, self.seeds.len()),
            x: Axis::named("good parts taught", names),
            y: Axis::new(shown.name, from, 1.0),
            lines,
            marks: Vec::new(),
        }
    }
}

/// With a band of one standard deviation to each side, cut where no figure can be.
fn line(curve: &BackboneCurve, of_point: fn(&Point) -> Spread) -> Line {
    let spreads = || (0..).zip(&curve.points).map(|(i, point)| (f64::from(i), of_point(point)));
    Line {
        name: curve.backbone.clone(),
        points: spreads().map(|(x, spread)| (x, spread.mean.unwrap_or(f64::NAN))).collect(),
        band: spreads()
            .filter_map(|(x, spread)| {
                let (mean, std) = (spread.mean?, spread.std?);
                Some((x, (mean - std).max(0.0), (mean + std).min(1.0)))
            })
            .collect(),
        dots: true,
    }
}

fn words(spread: Spread) -> String {
    match (spread.mean, spread.std) {
        (None, _) => "n/a".to_owned(),
        (Some(mean), None) => format!("{mean:.4}"),
        (Some(mean), Some(std)) => format!("{mean:.4} ± {std:.4}"),
    }
}
