//! What papers print of other systems, to be put beside our own figures: a table with its sources,
//! `published.md`. Their figures were taken at their authors' settings.

use std::str::FromStr;
use std::sync::LazyLock;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::Metric;
use crate::dataset::Layout;

/// Which published systems are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// [`USUAL`], and whoever is best in a metric if it is none of them.
    #[default]
    Usual,
    All,
    None,
    /// By the method's name, any case.
    Methods(Vec<String>),
}

/// One system of one paper on one category.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Published {
    pub method: &'static str,
    pub paper: &'static str,
    /// Where in the paper.
    pub tables: Vec<&'static str>,
    pub figures: Vec<Figure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub metric: &'static str,
    /// As printed.
    pub percent: f64,
}

/// The category of the means that papers print over a whole data set.
pub const MEAN: &str = "mean";

/// Whoever is shown unless something else is asked for.
pub const USUAL: [&str; 5] = ["PRN", "NTSNet", "MLFF", "DeSTSeg", "PatchCore"];

/// What must stand beside any of these figures.
pub const NOTE: &str = "published figures are at their authors' settings (resolution, backbone, \
    defects seen), and their AUPRO may be integrated by another rule than ours";

/// The chosen systems' figures on a category of a data set in this layout, as the papers order
/// them; empty where there are none. [`MEAN`] is a category too.
pub fn published(layout: Layout, category: &str, choice: &Choice) -> Vec<Published> {
    let Some(set) = data_set(layout) else { return Vec::new() };
    // KolektorSDD2 has one category, and its folder may have any name.
    let category =
        if layout == Layout::Ksdd2 && category != MEAN { "KolektorSDD2" } else { category };
    let mut found: Vec<Published> = Vec::new();
    for row in TABLE.iter().filter(|row| row.dataset == set && row.category == category) {
        let (method, paper, table) = (row.method.as_str(), row.paper.as_str(), row.table.as_str());
        let at = found.iter().position(|one| (one.method, one.paper) == (method, paper));
        let at = at.unwrap_or_else(|| {
            found.push(Published { method, paper, tables: Vec::new(), figures: Vec::new() });
            found.len() - 1
        });
        if !found[at].tables.contains(&table) {
            found[at].tables.push(table);
        }
        found[at].figures.push(Figure { metric: &row.metric, percent: row.value });
    }
    choose(found, choice)
}

/// The categories of a data set whose printed means can be put beside ours if we have them all.
pub fn categories(layout: Layout) -> Vec<&'static str> {
    let set = data_set(layout);
    let mut names: Vec<&str> = TABLE
        .iter()
        .filter(|row| Some(row.dataset.as_str()) == set && row.category != MEAN)
        .map(|row| row.category.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Published {
    /// The figure as a share, 0 to 1.
    pub fn share(&self, metric: Metric) -> Option<f64> {
        let name = metric.published()?;
        self.figures
            .iter()
            .find(|figure| figure.metric == name)
            .map(|figure| figure.percent / 100.0)
    }

    /// The method, and the paper where it is another's.
    pub fn name(&self) -> String {
        if self.method == self.paper {
            self.method.to_owned()
        } else {
            format!("{} (in {})", self.method, self.paper)
        }
    }
}

impl FromStr for Choice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Choice> {
        match text {
            "all" => return Ok(Choice::All),
            "none" => return Ok(Choice::None),
            _ => (),
        }
        let wanted: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        for name in &wanted {
            if !TABLE.iter().any(|row| row.method.eq_ignore_ascii_case(name)) {
                let mut known: Vec<&str> = TABLE.iter().map(|row| row.method.as_str()).collect();
                known.sort_unstable();
                known.dedup();
                bail!("\"{name}\" is in no table; all, none, or of {}", known.join(", "));
            }
        }
        Ok(Choice::Methods(wanted))
    }
}

/// A line of `published.csv`.
#[derive(Deserialize)]
struct Row {
    dataset: String,
    category: String,
    metric: String,
    method: String,
    value: f64,
    paper: String,
    table: String,
}

static TABLE: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let rows =
        csv::Reader::from_reader(include_str!("published.csv").as_bytes()).into_deserialize();
    rows.map(|row| row.expect("the table in the program is well formed")).collect()
});

fn data_set(layout: Layout) -> Option<&'static str> {
    match layout {
        Layout::Mvtec => Some("mvtec_ad"),
        Layout::Btad => Some("btad"),
        Layout::Dagm => Some("dagm"),
        Layout::Ksdd2 => Some("ksdd2"),
        Layout::Visa | Layout::GoodDefect => None,
    }
}

fn choose(mut found: Vec<Published>, choice: &Choice) -> Vec<Published> {
    let chosen: Vec<bool> = match choice {
        Choice::All => return found,
        Choice::None => return Vec::new(),
        Choice::Methods(names) => {
            let is_wanted =
                |one: &Published| names.iter().any(|name| name.eq_ignore_ascii_case(one.method));
            found.iter().map(is_wanted).collect()
        }
        Choice::Usual => usual(&found),
    };
    let mut chosen = chosen.into_iter();
    found.retain(|_| chosen.next().expect("one for each"));
    found
}

fn usual(found: &[Published]) -> Vec<bool> {
    let mut chosen: Vec<bool> = found.iter().map(|one| USUAL.contains(&one.method)).collect();
    for metric in Metric::ALL {
        let best = |chosen: &[bool], of: &dyn Fn(bool) -> bool| {
            let values = found.iter().zip(chosen).filter(|(_, is)| of(**is));
            values
                .filter_map(|(one, _)| one.share(metric))
                .fold(None, |best: Option<f64>, value| {
                    Some(best.map_or(value, |best| best.max(value)))
                })
        };
        let all = best(&chosen, &|_| true);
        if all.is_some() && best(&chosen, &|is| is) < all {
            let at = found.iter().position(|one| one.share(metric) == all);
            chosen[at.expect("somebody is best")] = true;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named<'a>(rows: &'a [Published], method: &str) -> &'a Published {
        rows.iter().find(|one| one.method == method).unwrap()
    }

    /// From the papers: PRN tables 1, 2, 8 and 10, MLFF tables 1 and 2, NTSNet table 1.
    #[test]
    fn figures_are_as_printed() {
        use Metric::{Aupro, ImageAuroc, PixelAp, PixelAuroc};
        let all = |layout, category| published(layout, category, &Choice::All);
        let bottle = all(Layout::Mvtec, "bottle");
        let screw = all(Layout::Mvtec, "screw");
        let btad = all(Layout::Btad, "02");
        let kolektor = all(Layout::Ksdd2, "any_name");
        let mean = all(Layout::Mvtec, MEAN);
        let cases = [
            (&bottle, "PRN", [Some(1.0), Some(0.994), Some(0.923), Some(0.970)]),
            (&bottle, "MLFF", [Some(1.0), Some(0.990), None, Some(0.975)]),
            (&screw, "NTSNet", [Some(0.921), Some(0.985), None, None]),
            (&screw, "PRN", [Some(0.959), Some(0.975), Some(0.449), Some(0.924)]),
            (&btad, "PRN", [Some(0.841), Some(0.951), Some(0.657), Some(0.544)]),
            (&kolektor, "PRN", [Some(0.964), Some(0.976), Some(0.725), Some(0.949)]),
            (&mean, "PatchCore", [Some(0.992), Some(0.981), Some(0.563), Some(0.939)]),
            (&mean, "DeSTSeg", [Some(0.986), None, Some(0.758), None]),
        ];
        for (rows, method, want) in cases {
            let got = [ImageAuroc, PixelAuroc, PixelAp, Aupro]
                .map(|metric| named(rows, method).share(metric));
            for (got, want) in got.into_iter().zip(want) {
                let close = match (got, want) {
                    (Some(got), Some(want)) => (got - want).abs() < 1e-9,
                    (got, want) => got == want,
                };
                assert!(close, "{method}: {got:?}, not {want:?}");
            }
        }
        assert_eq!(named(&bottle, "PRN").tables, ["1", "2"]);
    }

    #[test]
    fn whole_sets_are_in_the_table() {
        assert_eq!(categories(Layout::Mvtec).len(), 15);
        assert_eq!(categories(Layout::Dagm).len(), 10);
        assert_eq!(categories(Layout::Btad), ["01", "02", "03"]);
        assert!(categories(Layout::Visa).is_empty());
        for row in TABLE.iter() {
            assert!((0.0..=100.0).contains(&row.value), "{} {}", row.method, row.category);
            let is_metric = |metric: Metric| metric.published() == Some(row.metric.as_str());
            assert!(Metric::ALL.into_iter().any(is_metric), "{}", row.metric);
        }
    }

    #[test]
    fn the_usual_ones_come_with_the_best() {
        let rows = published(Layout::Mvtec, "screw", &Choice::Usual);
        let names: Vec<String> = rows.iter().map(Published::name).collect();
        for name in ["MLFF", "PRN", "NTSNet", "PatchCore (in PRN)"] {
            assert!(names.iter().any(|one| one == name), "{name}: {names:?}");
        }
        for metric in [Metric::ImageAuroc, Metric::PixelAuroc, Metric::PixelAp, Metric::Aupro] {
            let best = |rows: &[Published]| {
                rows.iter().filter_map(|one| one.share(metric)).fold(0.0, f64::max)
            };
            let all = published(Layout::Mvtec, "screw", &Choice::All);
            assert_eq!(best(&rows), best(&all), "{}", metric.word());
        }
    }

    #[test]
    fn what_was_not_published_has_no_row() {
        assert!(published(Layout::Mvtec, "hazelnut_toy", &Choice::All).is_empty());
        assert!(published(Layout::GoodDefect, "bottle", &Choice::All).is_empty());
        assert!(published(Layout::Mvtec, "bottle", &Choice::None).is_empty());
    }

    #[test]
    fn methods_are_chosen_by_name() {
        let choice: Choice = "patchcore, rd".parse().unwrap();
        let names: Vec<_> =
            published(Layout::Mvtec, "bottle", &choice).iter().map(|one| one.method).collect();
        assert_eq!(names, ["RD", "PatchCore"]);
        let error = "PatchCoar".parse::<Choice>().unwrap_err().to_string();
        assert!(error.contains("PatchCoar") && error.contains("PatchCore"), "{error}");
    }
}
