//! A report for the terminal, at most 100 columns wide.

use std::fmt::{self, Display, Formatter};

use super::published::{self, Published};
use super::report::{Mean, Report, Run, range, share};
use super::{Figures, Metric};

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let [run] = self.runs.as_slice() {
            one(f, run)?;
        } else {
            several(f, self)?;
        }
        beside(f, self)?;
        if self.settings.resamples > 0 {
            let percent = self.settings.confidence * 100.0;
            writeln!(
                f,
                "\nlow–high: where {percent:.0} % of {} resamples of the pictures lie",
                self.settings.resamples
            )?;
        }
        for (run, note) in self.runs.iter().flat_map(|run| run.notes.iter().map(move |n| (run, n)))
        {
            writeln!(f, "note: {}, {}: {note}", run.short_bundle(), run.category)?;
        }
        Ok(())
    }
}

/// What a column of figures is called, and how wide it is.
const COLUMNS: [(Metric, &str, usize); 5] = [
    (Metric::ImageAuroc, "image AUROC", 11),
    (Metric::PixelAuroc, "pixel AUROC", 11),
    (Metric::PixelAp, "pixel AP", 11),
    (Metric::Aupro, "AUPRO@0.3", 11),
    (Metric::Iap, "IAP", 6),
];

/// The longest category that a table shows whole.
const NAME: usize = 17;
/// The longest method, bundle or kind.
const LONG_NAME: usize = 30;

fn one(f: &mut Formatter<'_>, run: &Run) -> fmt::Result {
    let figures = &run.figures;
    let Figures { images, goods, defects, .. } = figures;
    writeln!(f, "bundle     {}", run.bundle)?;
    writeln!(f, "data       {} ({}, {})", run.data, run.layout, run.category)?;
    writeln!(f, "images     {images}: {goods} good, {defects} with defects")?;
    writeln!(
        f,
        "seconds    {:.1} ({:.1} images/s), peak memory {:.0} MiB",
        run.seconds, run.images_per_s, run.peak_rss_mib
    )?;
    writeln!(f)?;
    let pairs = [
        (Some(Metric::ImageAuroc), Metric::PixelAuroc),
        (Some(Metric::ImageAp), Metric::PixelAp),
        (Some(Metric::F1Max), Metric::Aupro),
        (Some(Metric::Pg2), Metric::Iap),
        (Some(Metric::Pb2), Metric::Iap90),
    ];
    for (left, right) in pairs {
        let mut line = String::new();
        for metric in left.into_iter().chain([right]) {
            let interval = metric.interval(&figures.intervals).map(range).unwrap_or_default();
            let value = share(metric.of(figures));
            line += &format!("{:<12} {value:>7}  {interval:<11}     ", metric.word());
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    writeln!(f)?;
    write!(f, "threshold  {:.4}", figures.threshold)?;
    if let Some(best) = figures.f1_max_threshold {
        write!(f, " (F1 is best at {best:.4})")?;
    }
    writeln!(f)?;
    writeln!(f, "false rejects  {} of {goods} good parts", figures.false_rejects)?;
    writeln!(f, "escapes        {} of {defects} defects", figures.escapes)?;
    kinds(f, run)
}

fn kinds(f: &mut Formatter<'_>, run: &Run) -> fmt::Result {
    let kinds = &run.figures.kinds;
    if kinds.is_empty() {
        return Ok(());
    }
    let wide = widest(kinds.iter().map(|kind| kind.kind.as_str()).chain(["kind"]));
    writeln!(
        f,
        "\n{:<wide$}  {:>6}  {:>11}  {:>7}  {:>8}  {:>8}  {:>8}",
        "kind", "images", "image AUROC", "escapes", "lowest", "median", "highest"
    )?;
    for kind in kinds {
        writeln!(
            f,
            "{:<wide$}  {:>6}  {:>11}  {:>7}  {:>8.3}  {:>8.3}  {:>8.3}",
            fit(&kind.kind, LONG_NAME),
            kind.images,
            share(kind.image_auroc),
            kind.escapes,
            kind.lowest_score,
            kind.median_score,
            kind.highest_score
        )?;
    }
    Ok(())
}

fn several(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let mut means = report.means().into_iter();
    for (i, runs) in report.by_bundle().into_iter().enumerate() {
        let seconds: f64 = runs.iter().map(|run| run.seconds).sum();
        let images: usize = runs.iter().map(|run| run.figures.images).sum();
        writeln!(f, "{}bundle   {}", if i == 0 { "" } else { "\n" }, runs[0].bundle)?;
        writeln!(f, "images   {images} of {} categories in {seconds:.1} s\n", runs.len())?;
        write!(f, "{:<NAME$} {:>6}", "category", "images")?;
        for (_, word, wide) in COLUMNS {
            write!(f, " {word:>wide$}")?;
        }
        writeln!(f, " {:>9} {:>9}", "rejects", "escapes")?;
        for run in runs {
            row(f, run)?;
        }
        if let Some(mean) = (runs.len() > 1).then(|| means.next()).flatten() {
            mean_row(f, &mean)?;
        }
        for run in runs.iter().filter(|run| !run.figures.kinds.is_empty()) {
            write!(f, "\n{}", fit(&run.category, LONG_NAME))?;
            kinds(f, run)?;
        }
    }
    writeln!(f, "\nrejects: good parts at or above the threshold; escapes: defects below it")
}

fn row(f: &mut Formatter<'_>, run: &Run) -> fmt::Result {
    let figures = &run.figures;
    write!(f, "{:<NAME$} {:>6}", fit(&run.category, NAME), figures.images)?;
    for (metric, _, wide) in COLUMNS {
        write!(f, " {:>wide$}", share(metric.of(figures)))?;
    }
    let rejects = format!("{}/{}", figures.false_rejects, figures.goods);
    let escapes = format!("{}/{}", figures.escapes, figures.defects);
    writeln!(f, " {rejects:>9} {escapes:>9}")?;
    let intervals = COLUMNS.map(|(metric, _, wide)| (metric.interval(&figures.intervals), wide));
    if intervals.iter().any(|(interval, _)| interval.is_some()) {
        let mut line = " ".repeat(NAME + 7);
        for (interval, wide) in intervals {
            line += &format!(" {:>wide$}", interval.map(range).unwrap_or_default());
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

fn mean_row(f: &mut Formatter<'_>, mean: &Mean) -> fmt::Result {
    write!(f, "{:<NAME$} {:>6}", "mean", "")?;
    for (metric, _, wide) in COLUMNS {
        write!(f, " {:>wide$}", share(mean.of(metric)))?;
    }
    writeln!(f)?;
    mean.note().map_or(Ok(()), |note| writeln!(f, "{note}"))
}

/// Ours and what was published, category by category.
fn beside(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    if !report.has_published() {
        return Ok(());
    }
    for (category, runs) in report.by_category() {
        if runs[0].published.is_empty() {
            continue;
        }
        let ours = runs.iter().map(|run| (run.short_bundle().to_owned(), &run.figures));
        let ours: Vec<_> = ours.map(|(name, figures)| (name, |m: Metric| m.of(figures))).collect();
        side_by_side(f, category, &ours, &runs[0].published)?;
    }
    for mean in report.means().iter().filter(|mean| !mean.published.is_empty()) {
        let ours = [(super::report::short(&mean.bundle).to_owned(), |m: Metric| mean.of(m))];
        side_by_side(f, "mean", &ours, &mean.published)?;
    }
    writeln!(f, "note: {}", published::NOTE)
}

fn side_by_side(
    f: &mut Formatter<'_>,
    what: &str,
    ours: &[(String, impl Fn(Metric) -> Option<f64>)],
    published: &[Published],
) -> fmt::Result {
    let names: Vec<String> = published.iter().map(Published::name).collect();
    let all = names.iter().chain(ours.iter().map(|(name, _)| name)).map(String::as_str);
    let wide = widest(all.chain([what]));
    write!(f, "\n{:<wide$}", fit(what, LONG_NAME))?;
    for (_, word, wide) in COLUMNS {
        write!(f, " {word:>wide$}")?;
    }
    writeln!(f)?;
    let mut line = |name: &str, of: &dyn Fn(Metric) -> String| {
        write!(f, "{:<wide$}", fit(name, LONG_NAME))?;
        for (metric, _, wide) in COLUMNS {
            write!(f, " {:>wide$}", of(metric))?;
        }
        writeln!(f)
    };
    for (name, of) in ours {
        line(name, &|metric| share(of(metric)))?;
    }
    for (one, name) in published.iter().zip(&names) {
        line(name, &|metric| printed(one, metric))?;
    }
    Ok(())
}

/// A published figure: a share with the digits that were printed; nothing where there is none.
pub(super) fn printed(one: &Published, metric: Metric) -> String {
    one.share(metric).map(|share| format!("{share:.3}")).unwrap_or_default()
}

fn widest<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.map(|name| name.chars().count()).max().unwrap_or(0).min(LONG_NAME)
}

/// The name, its middle left out where it is longer than `most`.
fn fit(name: &str, most: usize) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= most {
        return name.to_owned();
    }
    let (head, tail) = (most.div_ceil(2) - 1, most / 2);
    letters[..head].iter().chain(['…'].iter()).chain(&letters[letters.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_head_and_tail() {
        assert_eq!(fit("metal_nut", 9), "metal_nut");
        assert_eq!(fit("metal_contamination", 9), "meta…tion");
        assert_eq!(fit("metal_contamination", 8), "met…tion");
    }
}
