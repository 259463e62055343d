//! One run on the page: charts, kinds of defects, what the bundle is, the gallery.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, PreEscaped, html};

use super::super::gallery::Shown;
use super::super::report::{Report, Run, share};
use super::super::{Counting, Metric};
use crate::metrics::Curve;
use crate::metrics::pixels::AUPRO_LIMIT;
use crate::plot::{Axis, Chart, Histogram, Line, Mark};

pub(super) fn of(number: usize, run: &Run, report: &Report) -> Result<Markup> {
    let charts = charts(run)?;
    Ok(html! {
        section.run id={ "run-" (number) } {
            h2 { (name(run, report)) }
            (facts(run))
            div.charts { @for chart in &charts { div.chart { (PreEscaped(chart)) } } }
            (kinds(run))
            (left_out(run))
            (gallery(run))
        }
    })
}

/// The category, and the bundle where there are several.
pub(super) fn name(run: &Run, report: &Report) -> String {
    if report.by_bundle().len() == 1 {
        run.category.clone()
    } else {
        format!("{} · {}", run.category, run.short_bundle())
    }
}

const CHART_PX: (u32, u32) = (480, 320);

/// ROC, precision and recall, overlap, scores; those that are defined.
fn charts(run: &Run) -> Result<Vec<String>> {
    let curves = &run.curves;
    let labelled = |name: &str, metric: Metric, curve: &Option<Curve>| {
        let curve = curve.as_ref()?;
        let name = format!("{name} ({})", share(metric.of(&run.figures)));
        Some(Line { name, points: curve.points.clone(), ..Line::default() })
    };
    let rate = |label, to| Axis::new(label, 0.0, to);
    let charts = [
        Chart {
            title: "ROC (AUROC)".to_owned(),
            x: rate("false positive rate", 1.0),
            y: rate("true positive rate", 1.0),
            lines: [
                labelled("images", Metric::ImageAuroc, &curves.image_roc),
                labelled("pixels", Metric::PixelAuroc, &curves.pixel_roc),
            ]
            .into_iter()
            .flatten()
            .collect(),
            marks: Vec::new(),
        },
        Chart {
            title: "Precision and recall (AP)".to_owned(),
            x: rate("recall", 1.0),
            y: rate("precision", 1.0),
            lines: [
                labelled("images", Metric::ImageAp, &curves.image_precision),
                labelled("pixels", Metric::PixelAp, &curves.pixel_precision),
            ]
            .into_iter()
            .flatten()
            .collect(),
            marks: Vec::new(),
        },
        Chart {
            title: "Per-region overlap (AUPRO)".to_owned(),
            x: rate("false positive rate of pixels", AUPRO_LIMIT),
            y: rate("per-region overlap", 1.0),
            lines: labelled("regions", Metric::Aupro, &curves.overlap).into_iter().collect(),
            marks: Vec::new(),
        },
    ];
    let drawn = charts.iter().filter(|chart| !chart.lines.is_empty());
    let mut drawn: Vec<String> = drawn.map(|chart| chart.svg(CHART_PX)).collect::<Result<_>>()?;
    let scores = |defect: bool| -> Vec<f64> {
        let of = run.scored.iter().filter(|one| one.sample.defect.is_some() == defect);
        of.map(|one| f64::from(one.score)).collect()
    };
    let histogram = Histogram {
        title: "Scores".to_owned(),
        label: "score".to_owned(),
        groups: vec![("good".to_owned(), scores(false)), ("defect".to_owned(), scores(true))],
        marks: vec![Mark { name: "threshold".to_owned(), x: f64::from(run.figures.threshold) }],
    };
    drawn.push(histogram.svg(CHART_PX)?);
    Ok(drawn)
}

fn facts(run: &Run) -> Markup {
    let (figures, made) = (&run.figures, &run.made);
    html! {
        dl {
            dt { "pictures" }
            dd {
                (figures.images) ": " (figures.goods) " good, " (figures.defects) " with defects ("
                (run.data) ", " (run.layout) ")"
            }
            dt { "threshold" }
            dd {
                (format!("{:.4}", figures.threshold)) ": "
                (figures.false_rejects) " of " (figures.goods) " good parts rejected, "
                (figures.escapes) " of " (figures.defects) " defects escape"
                @if let Some(best) = figures.f1_max_threshold {
                    "; F1 is best at " (format!("{best:.4}"))
                }
            }
            dt { "PG2" }
            dd {
                (share(figures.pg2)) " of the good parts kept where at most 2 % of the defects escape"
            }
            dt { "PB2" }
            dd {
                (share(figures.pb2)) " of the defects caught where at most 2 % of the good parts are "
                "rejected"
            }
            dt { "bundle" }
            dd {
                (run.bundle) ": " (made.system) ", backbone " (made.backbone) " ("
                (made.precision) "), " (made.input.0) "×" (made.input.1) ", "
                @if let Some(prototypes) = made.prototypes { (prototypes) " prototypes from " }
                @if let Some(steps) = made.steps { (steps) " steps of training on " }
                (made.images) " pictures, seed " (made.seed)
            }
            dt { "made by" }
            dd {
                "inspectd " (made.inspectd) ", revision " (made.revision) "; training data "
                code title=(made.training_data_sha256) { (head(&made.training_data_sha256)) }
            }
            dt { "time" }
            dd {
                (format!("{:.1} s, {:.1} images/s decoded and scored; peak memory {:.0} MiB",
                    run.seconds, run.images_per_s, run.peak_rss_mib))
            }
            @if let Some(counting) = figures.pixel_counting {
                dt { "pixels" }
                dd {
                    @match counting {
                        Counting::Exact => { "every pixel ranked" }
                        Counting::Streamed => {
                            "counted in a histogram, since they outgrew memory"
                            @if let Some(bounds) = figures.pixel_bounds {
                                (format!(
                                    "; off by at most {:.1e} (AUROC), {:.1e} (AP), {:.1e} (AUPRO)",
                                    bounds.auroc, bounds.average_precision, bounds.aupro
                                ))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The first letters of a hash, enough to tell two apart.
fn head(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

fn kinds(run: &Run) -> Markup {
    let kinds = &run.figures.kinds;
    html! {
        @if !kinds.is_empty() {
            h3 { "Kinds of defects" }
            div.wide {
                table {
                    thead {
                        tr {
                            th { "kind" }
                            th.number { "images" }
                            th.number { "image AUROC" }
                            th.number { "escapes" }
                            th.number { "lowest score" }
                            th.number { "median" }
                            th.number { "highest" }
                        }
                    }
                    tbody {
                        @for kind in kinds {
                            tr {
                                th { (kind.kind) }
                                td.number { (kind.images) }
                                td.number { (share(kind.image_auroc)) }
                                td.number.bad[kind.escapes > 0] { (kind.escapes) }
                                td.number { (format!("{:.3}", kind.lowest_score)) }
                                td.number { (format!("{:.3}", kind.median_score)) }
                                td.number { (format!("{:.3}", kind.highest_score)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn left_out(run: &Run) -> Markup {
    html! {
        @if !run.seen_anomalies.is_empty() {
            details {
                summary {
                    (run.seen_anomalies.len())
                    " defects that the bundle was taught with, not tested"
                }
                ul { @for name in &run.seen_anomalies { li { (name) } } }
            }
        }
        @if !run.unreadable.is_empty() {
            h3.bad { "Pictures that can't be read; the figures are without them" }
            ul { @for one in &run.unreadable { li { (one.name) ": " (one.why) } } }
        }
    }
}

fn gallery(run: &Run) -> Markup {
    let shown = &run.gallery;
    html! {
        @if !shown.is_empty() {
            h3 { "Pictures" }
            p.faint {
                "Left: the truth, outlined. Right: the anomaly map where it reaches its limit, a \
                 white box around its peak; blue where even the peak is below the limit."
                @if shown.len() < run.figures.images {
                    " " (shown.len()) " of " (run.figures.images)
                    ": errors first, then those nearest to the threshold."
                }
            }
            div.gallery {
                form.controls hidden {
                    label {
                        "sort by "
                        select name="sort" {
                            option value="high" { "score, highest first" }
                            option value="low" { "score, lowest first" }
                            option value="name" { "name" }
                            option value="kind" { "kind, then score" }
                        }
                    }
                    label {
                        "show "
                        select name="show" {
                            option value="all" { "all" }
                            option value="errors" { "errors" }
                            option value="defects" { "defects" }
                            option value="goods" { "good parts" }
                        }
                    }
                    output {}
                }
                div.tiles { @for one in shown { (tile(one, run.figures.threshold)) } }
            }
        }
    }
}

fn tile(one: &Shown, threshold: f32) -> Markup {
    let (sample, score) = (&one.scored.sample, one.scored.score);
    let kind = sample.defect.as_deref();
    let rejected = score >= threshold;
    let is_error = rejected != kind.is_some();
    let word = match (kind.is_some(), rejected) {
        (true, true) => "caught",
        (true, false) => "escape",
        (false, true) => "false reject",
        (false, false) => "accepted",
    };
    html! {
        figure.error[is_error] data-score=(score) data-name=(sample.name)
            data-kind=(kind.unwrap_or("")) data-error=[is_error.then_some("")] {
            img loading="lazy" width=(one.width) height=(one.height)
                alt={ (sample.name) ": truth and anomaly map" }
                src={ "data:image/jpeg;base64," (STANDARD.encode(&one.jpeg)) };
            figcaption {
                span.name title=(sample.name) { (sample.name) }
                span.verdict { (format!("{score:.3}")) " " b { (word) } }
            }
        }
    }
}
