//! Charts for people, as SVG text: lines (curves, losses) and histograms of scores.

use anyhow::{Result, anyhow, ensure};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Lines over a common pair of axes.
#[derive(Clone, Debug)]
pub struct Chart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
    pub marks: Vec<Mark>,
}

#[derive(Clone, Debug)]
pub struct Axis {
    pub label: String,
    pub from: f64,
    pub to: f64,
    /// What stands at 0, 1, 2, … of an axis that counts things; numbers where it is empty.
    pub names: Vec<String>,
}

/// One line of a chart. Points that are not finite are left out.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub name: String,
    /// (x, y), in the order they are joined.
    pub points: Vec<(f64, f64)>,
    /// (x, low, high): how far the line's values spread.
    pub band: Vec<(f64, f64, f64)>,
    /// With a dot on each point: for few points, each of which was measured.
    pub dots: bool,
}

/// A vertical line with a name, as a threshold is.
#[derive(Clone, Debug)]
pub struct Mark {
    pub name: String,
    pub x: f64,
}

/// How often values occur, for a few groups over a common axis; each group's bars add up to its own
/// number.
#[derive(Clone, Debug)]
pub struct Histogram {
    pub title: String,
    pub label: String,
    pub groups: Vec<(String, Vec<f64>)>,
    pub marks: Vec<Mark>,
}

impl Axis {
    pub fn new(label: &str, from: f64, to: f64) -> Axis {
        Axis { label: label.to_owned(), from, to, names: Vec::new() }
    }

    /// An axis that counts things: the i-th stands at i.
    pub fn named(label: &str, names: Vec<String>) -> Axis {
        let last = names.len().saturating_sub(1) as f64;
        Axis { label: label.to_owned(), from: -0.3, to: last + 0.3, names }
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.from.is_finite() && self.to.is_finite() && self.from < self.to,
            "axis {} from {} to {} has no length",
            self.label,
            self.from,
            self.to
        );
        Ok(())
    }

    fn tick(&self, at: f64) -> String {
        if self.names.is_empty() {
            return number(at);
        }
        let nearest = at.round();
        let is_there = nearest >= 0.0 && (at - nearest).abs() < 0.01;
        let name = is_there.then(|| self.names.get(nearest as usize)).flatten();
        name.cloned().unwrap_or_default()
    }
}

impl Chart {
    /// The chart as an `<svg>` element of `size` (width, height), pixels.
    ///
    /// # Errors
    /// An axis without length.
    pub fn svg(&self, size: (u32, u32)) -> Result<String> {
        self.x.check()?;
        self.y.check()?;
        let mut text = String::new();
        {
            let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
            root.fill(&WHITE).map_err(undrawable)?;
            let mut chart = ChartBuilder::on(&root)
                .caption(&self.title, ("sans-serif", TITLE_PX))
                .margin(MARGIN_PX)
                .x_label_area_size(BELOW_PX)
                .y_label_area_size(BESIDE_PX)
                .build_cartesian_2d(self.x.from..self.x.to, self.y.from..self.y.to)
                .map_err(undrawable)?;
            chart
                .configure_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(GRID)
                .x_desc(&self.x.label)
                .y_desc(&self.y.label)
                .x_labels(if self.x.names.is_empty() { LABELS } else { self.x.names.len() * 2 })
                .y_labels(LABELS)
                .x_label_formatter(&|at| self.x.tick(*at))
                .y_label_formatter(&|at| self.y.tick(*at))
                .label_style(("sans-serif", TEXT_PX))
                .draw()
                .map_err(undrawable)?;
            for (i, line) in self.lines.iter().enumerate() {
                let colour = PALETTE[i % PALETTE.len()];
                let band = finite(line.band.iter().map(|&(x, _, high)| (x, high))).chain(
                    finite(line.band.iter().map(|&(x, low, _)| (x, low)))
                        .collect::<Vec<_>>()
                        .into_iter()
                        .rev(),
                );
                let band: Vec<_> = band.collect();
                if !band.is_empty() {
                    chart
                        .draw_series([Polygon::new(band, colour.mix(0.15).filled())])
                        .map_err(undrawable)?;
                }
                let points: Vec<_> = finite(line.points.iter().copied()).collect();
                let drawn = chart
                    .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
                    .map_err(undrawable)?;
                if !line.name.is_empty() {
                    drawn.label(&line.name).legend(move |(x, y)| {
                        PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2))
                    });
                }
                if line.dots {
                    let dots = points.iter().map(|&at| Circle::new(at, 3, colour.filled()));
                    chart.draw_series(dots).map_err(undrawable)?;
                }
            }
            let (low, high) = (self.y.from, self.y.to);
            for mark in &self.marks {
                draw_mark(&mut chart, mark, low, high)?;
            }
            if self.lines.iter().any(|line| !line.name.is_empty()) {
                chart
                    .configure_series_labels()
                    .position(SeriesLabelPosition::LowerRight)
                    .background_style(WHITE.mix(0.85))
                    .border_style(GRID)
                    .label_font(("sans-serif", TEXT_PX))
                    .draw()
                    .map_err(undrawable)?;
            }
            root.present().map_err(undrawable)?;
        }
        Ok(text)
    }
}

impl Histogram {
    /// The histogram as an `<svg>` element of `size` (width, height), pixels.
    ///
    /// # Errors
    /// No finite value in any group.
    pub fn svg(&self, size: (u32, u32)) -> Result<String> {
        let values = self.groups.iter().flat_map(|(_, values)| values);
        let seen = values.chain(self.marks.iter().map(|mark| &mark.x)).copied();
        let (low, high) = seen
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        ensure!(low <= high, "{}: no value to draw a histogram of", self.title);
        // A little air, also where all values are equal.
        let air = ((high - low) * 0.04).max(high.abs() * 1e-3).max(1e-6);
        let (low, high) = (low - air, high + air);
        let step = (high - low) / BINS as f64;
        let counts: Vec<[u32; BINS]> =
            self.groups.iter().map(|(_, values)| count(values, low, step)).collect();
        let most = counts.iter().flatten().copied().max().unwrap_or(0).max(1);
        let mut text = String::new();
        {
            let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
            root.fill(&WHITE).map_err(undrawable)?;
            let top = f64::from(most) * 1.15;
            let mut chart = ChartBuilder::on(&root)
                .caption(&self.title, ("sans-serif", TITLE_PX))
                .margin(MARGIN_PX)
                .x_label_area_size(BELOW_PX)
                .y_label_area_size(BESIDE_PX)
                .build_cartesian_2d(low..high, 0.0..top)
                .map_err(undrawable)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(TRANSPARENT)
                .bold_line_style(GRID)
                .x_desc(&self.label)
                .y_desc("pictures")
                .x_label_formatter(&|at| number(*at))
                .y_label_formatter(&|at| number(*at))
                .label_style(("sans-serif", TEXT_PX))
                .draw()
                .map_err(undrawable)?;
            for (i, ((name, _), counts)) in self.groups.iter().zip(&counts).enumerate() {
                let colour = PALETTE[i % PALETTE.len()];
                let bars = counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(bin, &n)| {
                    let left = low + bin as f64 * step;
                    Rectangle::new(
                        [(left, 0.0), (left + step, f64::from(n))],
                        colour.mix(0.55).filled(),
                    )
                });
                let drawn = chart.draw_series(bars).map_err(undrawable)?;
                drawn.label(name).legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.mix(0.55).filled())
                });
            }
            for mark in &self.marks {
                draw_mark(&mut chart, mark, 0.0, top)?;
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(GRID)
                .label_font(("sans-serif", TEXT_PX))
                .draw()
                .map_err(undrawable)?;
            root.present().map_err(undrawable)?;
        }
        Ok(text)
    }
}

type Plane<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn draw_mark(chart: &mut Plane<'_, '_>, mark: &Mark, low: f64, high: f64) -> Result<()> {
    let dashes =
        DashedLineSeries::new([(mark.x, low), (mark.x, high)], 6, 4, BLACK.stroke_width(1));
    chart.draw_series(dashes).map_err(undrawable)?;
    let style = ("sans-serif", TEXT_PX).into_font().into_text_style(chart.plotting_area());
    let style = style.pos(Pos::new(HPos::Left, VPos::Top));
    let at = EmptyElement::at((mark.x, high)) + Text::new(mark.name.clone(), (4, 2), style);
    chart.draw_series([at]).map_err(undrawable)?;
    Ok(())
}

fn finite(points: impl Iterator<Item = (f64, f64)>) -> impl Iterator<Item = (f64, f64)> {
    points.filter(|(x, y)| x.is_finite() && y.is_finite())
}

fn count(values: &[f64], low: f64, step: f64) -> [u32; BINS] {
    let mut counts = [0; BINS];
    for value in values.iter().filter(|value| value.is_finite()) {
        counts[(((value - low) / step) as usize).min(BINS - 1)] += 1;
    }
    counts
}

/// As few digits as tell neighbouring ticks apart.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// The drawing library's errors carry a backend's, which is text in memory and has none.
fn undrawable(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing a chart: {error}")
}

const BINS: usize = 40;
const LABELS: usize = 6;
const TITLE_PX: i32 = 17;
const TEXT_PX: i32 = 13;
const MARGIN_PX: i32 = 10;
const BELOW_PX: i32 = 40;
const BESIDE_PX: i32 = 52;
const GRID: RGBColor = RGBColor(221, 224, 230);

/// Told apart with red-green blindness too (Okabe and Ito 2008).
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        Chart {
            title: "ROC <bottle>".to_owned(),
            x: Axis::new("false positive rate", 0.0, 1.0),
            y: Axis::new("true positive rate", 0.0, 1.0),
            lines: vec![Line {
                name: "compact".to_owned(),
                points: vec![(0.0, 0.0), (0.5, f64::NAN), (1.0, 1.0)],
                band: vec![(0.0, 0.0, 0.1), (1.0, 0.9, 1.0)],
                dots: true,
            }],
            marks: vec![Mark { name: "limit".to_owned(), x: 0.3 }],
        }
    }

    #[test]
    fn a_chart_says_its_names_and_draws_finite_points_only() {
        let svg = chart().svg((480, 320)).unwrap();
        for text in ["ROC &lt;bottle&gt;", "compact", "limit", "false positive rate"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert!(!svg.contains("NaN"));
        // Two dots, of the two points that can be drawn.
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn things_that_are_counted_have_their_names_on_the_axis() {
        let mut chart = chart();
        let shots = ["1", "2", "4", "all"].map(str::to_owned).to_vec();
        chart.x = Axis::named("good parts", shots.clone());
        chart.marks.clear();
        let svg = chart.svg((480, 320)).unwrap();
        let labels: Vec<&str> = svg.lines().map(str::trim).collect();
        for name in shots {
            assert!(labels.contains(&name.as_str()), "{name}: {svg}");
        }
    }

    #[test]
    fn an_axis_without_length_is_refused() {
        let mut chart = chart();
        chart.y.to = 0.0;
        assert!(chart.svg((480, 320)).unwrap_err().to_string().contains("true positive rate"));
    }

    #[test]
    fn a_histogram_counts_every_value_once() {
        let values: Vec<f64> = (0..1000).map(|i| f64::from(i) / 999.0).collect();
        let counts = count(&values, -0.04, 1.08 / BINS as f64);
        assert_eq!(counts.iter().sum::<u32>(), 1000);
        assert_eq!(counts[0], 0);
        assert!(counts[20].abs_diff(27) <= 1, "{counts:?}");
    }

    #[test]
    fn equal_scores_make_a_histogram_too() {
        let histogram = Histogram {
            title: "scores".to_owned(),
            label: "score".to_owned(),
            groups: vec![("good".to_owned(), vec![2.0; 3]), ("defect".to_owned(), vec![])],
            marks: vec![Mark { name: "threshold".to_owned(), x: 2.0 }],
        };
        assert!(histogram.svg((480, 320)).unwrap().contains("threshold"));
        let none = Histogram { groups: vec![], marks: vec![], ..histogram };
        assert!(none.svg((480, 320)).is_err());
    }
}
