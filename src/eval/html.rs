//! A report as one page of HTML that can be mailed: styles, charts, pictures and the script that
//! sorts them are in it, and it asks for nothing from anywhere.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Metric;
use super::published::{self, Published};
use super::report::{Mean, Report, Run, range, share, short};
use super::table::printed;
use crate::journal::rfc3339;

mod section;

pub(super) fn page(report: &Report) -> Result<String> {
    let sections = report.runs.iter().enumerate().map(|(i, run)| section::of(i, run, report));
    let sections: Vec<Markup> = sections.collect::<Result<_>>()?;
    let title = title(report);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p.faint {
                        "inspectd " (report.settings.inspectd) " · " (date(report)) " · "
                        (report.settings.cpu) ", " (counted(report.settings.threads, "thread"))
                    }
                    @if report.runs.len() > 1 { (contents(report)) }
                }
                (summary(report))
                @if report.has_published() { (beside(report)) }
                @for section in &sections { (section) }
                (settings(report))
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/gallery.js");

/// The figures of the summary, in the order of its columns.
const COLUMNS: [Metric; 8] = [
    Metric::ImageAuroc,
    Metric::ImageAp,
    Metric::F1Max,
    Metric::PixelAuroc,
    Metric::PixelAp,
    Metric::Aupro,
    Metric::Iap,
    Metric::Iap90,
];

/// The figures that papers print.
const PUBLISHED: [Metric; 6] = [
    Metric::ImageAuroc,
    Metric::PixelAuroc,
    Metric::PixelAp,
    Metric::Aupro,
    Metric::Iap,
    Metric::Iap90,
];

fn title(report: &Report) -> String {
    let categories: Vec<&str> = report.by_category().iter().map(|(name, _)| *name).collect();
    match categories.as_slice() {
        few if few.len() <= 3 => format!("Evaluation: {}", few.join(", ")),
        many => format!("Evaluation: {} categories", many.len()),
    }
}

/// To the minute; nobody reads more.
fn date(report: &Report) -> String {
    let text = rfc3339(report.made_at);
    format!("{} {} UTC", &text[..10], &text[11..16])
}

fn contents(report: &Report) -> Markup {
    html! {
        nav {
            @for (i, run) in report.runs.iter().enumerate() {
                a href={ "#run-" (i) } { (section::name(run, report)) }
            }
        }
    }
}

fn summary(report: &Report) -> Markup {
    let means = report.means();
    let notes = report.runs.iter().flat_map(|run| run.notes.iter().map(move |note| (run, note)));
    html! {
        section {
            h2 { "Figures" }
            @for runs in report.by_bundle() {
                h3 { (runs[0].bundle) }
                (figures(runs, means.iter().find(|mean| mean.bundle == runs[0].bundle)))
            }
            p.faint {
                @if report.settings.resamples > 0 {
                    "Small: where " (percent(report.settings.confidence)) " of "
                    (report.settings.resamples) " resamples of the pictures lie (seed "
                    (report.settings.seed) "). "
                }
                "False rejects: good parts at or above the bundle's threshold; escapes: defects \
                 below it."
            }
            @let notes: Vec<_> = notes.collect();
            @if !notes.is_empty() {
                ul.notes {
                    @for (run, note) in notes {
                        li { b { (section::name(run, report)) ": " } (note) }
                    }
                }
            }
        }
    }
}

fn figures(runs: &[Run], mean: Option<&Mean>) -> Markup {
    html! {
        div.wide {
            table.figures {
                thead {
                    tr {
                        th { "category" }
                        th.number { "images" }
                        @for metric in COLUMNS { th.number { (metric.word()) } }
                        th.number { "false rejects" }
                        th.number { "escapes" }
                    }
                }
                tbody {
                    @for run in runs {
                        @let figures = &run.figures;
                        tr {
                            th { (run.category) }
                            td.number { (figures.images) }
                            @for metric in COLUMNS {
                                td.number {
                                    (share(metric.of(figures)))
                                    @if let Some(interval) = metric.interval(&figures.intervals) {
                                        small { (range(interval)) }
                                    }
                                }
                            }
                            td.number { (figures.false_rejects) small { "of " (figures.goods) } }
                            td.number { (figures.escapes) small { "of " (figures.defects) } }
                        }
                    }
                    @if let Some(mean) = mean {
                        tr.mean {
                            th { "mean" }
                            td {}
                            @for metric in COLUMNS { td.number { (share(mean.of(metric))) } }
                            td {}
                            td {}
                        }
                    }
                }
            }
        }
        @if let Some(note) = mean.and_then(Mean::note) { p.faint { (note) } }
    }
}

fn beside(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Beside published figures" }
            @for (category, runs) in report.by_category() {
                @if !runs[0].published.is_empty() {
                    h3 { (category) }
                    (side_by_side(
                        runs.iter().map(|run| {
                            let figures = &run.figures;
                            (run.short_bundle(), PUBLISHED.map(|metric| metric.of(figures)))
                        }),
                        &runs[0].published,
                    ))
                }
            }
            @for mean in report.means() {
                @if !mean.published.is_empty() {
                    h3 { "mean" }
                    (side_by_side(
                        [(short(&mean.bundle), PUBLISHED.map(|m| mean.of(m)))].into_iter(),
                        &mean.published,
                    ))
                }
            }
            p.faint { (sentence(published::NOTE)) }
        }
    }
}

fn side_by_side<'a>(
    ours: impl Iterator<Item = (&'a str, [Option<f64>; PUBLISHED.len()])>,
    published: &[Published],
) -> Markup {
    html! {
        div.wide {
            table {
                thead {
                    tr {
                        th { "system" }
                        @for metric in PUBLISHED { th.number { (metric.word()) } }
                        th { "source" }
                    }
                }
                tbody {
                    @for (name, figures) in ours {
                        tr.ours {
                            th { (name) }
                            @for figure in figures { td.number { (share(figure)) } }
                            td { "this report" }
                        }
                    }
                    @for one in published {
                        tr {
                            th { (one.method) }
                            @for metric in PUBLISHED { td.number { (printed(one, metric)) } }
                            td.faint { (source(one)) }
                        }
                    }
                }
            }
        }
    }
}

fn source(one: &Published) -> String {
    match one.tables.as_slice() {
        ["text"] => format!("{}, text", one.paper),
        [table] => format!("{}, table {table}", one.paper),
        tables => format!("{}, tables {}", one.paper, tables.join(", ")),
    }
}

fn settings(report: &Report) -> Markup {
    let settings = &report.settings;
    html! {
        section {
            h2 { "How this was measured" }
            dl {
                dt { "program" }
                dd { "inspectd " (settings.inspectd) ", revision " (settings.revision) }
                dt { "machine" } dd { (settings.cpu) ", " (counted(settings.threads, "thread")) }
                dt { "batch" } dd { (counted(settings.batch, "picture")) " at once" }
                dt { "pixels" }
                dd {
                    @match settings.resolution {
                        super::Resolution::Map => { "counted at the resolution of the anomaly map" }
                        super::Resolution::Original => { "counted at the resolution of the masks" }
                    }
                }
                dt { "intervals" }
                dd {
                    @if settings.resamples == 0 { "none" } @else {
                        (percent(settings.confidence)) ", from " (settings.resamples)
                        " resamples of the pictures, seed " (settings.seed)
                    }
                }
            }
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", letters.as_str())
}
