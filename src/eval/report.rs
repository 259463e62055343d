//! An evaluation as people and machines read it.

use std::fmt;

use serde::Serialize;

use super::Figures;

/// The figures with where they come from. `inspectd eval --json` writes this; its keys are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// As named on the command line.
    pub bundle: String,
    pub data: String,
    /// To decode and score all pictures and take the figures.
    pub seconds: f64,
    #[serde(flatten)]
    pub figures: Figures,
}

impl fmt::Display for Report {
    /// A table of about 80 columns.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = &self.figures;
        let Figures { images, goods, defects, .. } = figures;
        let rate = *images as f64 / self.seconds;
        writeln!(f, "bundle     {}", self.bundle)?;
        writeln!(f, "data       {}", self.data)?;
        writeln!(f, "images     {images}: {goods} good, {defects} with defects")?;
        writeln!(f, "seconds    {:.1} ({rate:.1} images/s)", self.seconds)?;
        writeln!(f)?;
        let pairs = [
            ("image AUROC", figures.image_auroc, "pixel AUROC", figures.pixel_auroc),
            ("image AP", figures.image_ap, "pixel AP", figures.pixel_ap),
            ("F1-max", figures.f1_max, "AUPRO@0.3", figures.aupro_0_3),
            ("", None, "IAP", figures.pixel_iap),
            ("", None, "IAP@90", figures.pixel_iap_90),
        ];
        for (left, left_value, right, right_value) in pairs {
            let left_value = if left.is_empty() { String::new() } else { share(left_value) };
            let right_value = share(right_value);
            writeln!(f, "{left:<12} {left_value:>7}      {right:<12} {right_value:>7}")?;
        }
        writeln!(f)?;
        write!(f, "threshold  {:.4}", figures.threshold)?;
        if let Some(best) = figures.f1_max_threshold {
            write!(f, " (F1 is best at {best:.4})")?;
        }
        writeln!(f)?;
        writeln!(f, "false rejects  {} of {goods} good parts", figures.false_rejects)?;
        writeln!(f, "escapes        {} of {defects} defects", figures.escapes)?;
        if figures.kinds.is_empty() {
            return Ok(());
        }
        let widest = figures.kinds.iter().map(|kind| kind.kind.chars().count()).max();
        let wide = widest.unwrap_or(0).max("kind".len());
        writeln!(f)?;
        writeln!(
            f,
            "{:<wide$}  {:>6}  {:>11}  {:>7}  {:>8}  {:>8}  {:>8}",
            "kind", "images", "image AUROC", "escapes", "lowest", "median", "highest"
        )?;
        for kind in &figures.kinds {
            writeln!(
                f,
                "{:<wide$}  {:>6}  {:>11}  {:>7}  {:>8.3}  {:>8.3}  {:>8.3}",
                kind.kind,
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
}

fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "n/a".to_owned(), |value| format!("{value:.4}"))
}
