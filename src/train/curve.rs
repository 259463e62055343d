//! The losses of a run, step by step: `losses.csv` while it goes, `losses.svg` at its end.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Losses;
use crate::plot::{Axis, Chart, Line};

/// The two files.
pub struct Curve {
    folder: PathBuf,
    rows: csv::Writer<File>,
}

/// A line of `losses.csv`: one a loss and step.
#[derive(serde::Serialize, serde::Deserialize)]
struct Row {
    step: u64,
    loss: String,
    value: f64,
    /// Of the whole step.
    milliseconds: f64,
}

impl Curve {
    /// To go on with after `steps` steps; what stands there of later ones is dropped.
    pub fn open(folder: &Path, steps: u64) -> Result<Curve> {
        let path = folder.join(CSV);
        let what = || format!("writing {}", path.display());
        let kept: Vec<Row> = if steps > 0 && path.is_file() {
            read(&path)?.into_iter().filter(|row| row.step <= steps).collect()
        } else {
            Vec::new()
        };
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(&path);
        let mut rows = csv::Writer::from_writer(file.with_context(what)?);
        for row in kept {
            rows.serialize(row).with_context(what)?;
        }
        Ok(Curve { folder: folder.to_owned(), rows })
    }

    pub fn add(&mut self, step: u64, losses: &Losses, time: Duration) -> Result<()> {
        for (loss, value) in losses {
            let milliseconds = time.as_secs_f64() * 1e3;
            let row = Row { step, loss: (*loss).to_owned(), value: *value, milliseconds };
            self.rows.serialize(row)?;
        }
        self.rows.flush().with_context(|| format!("writing {}", self.folder.join(CSV).display()))
    }

    /// Draws what stands in the table, a line a loss.
    pub fn draw(&self) -> Result<()> {
        let rows = read(&self.folder.join(CSV))?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut lines: Vec<Line> = Vec::new();
        for row in &rows {
            let line = match lines.iter_mut().find(|line| line.name == row.loss) {
                Some(line) => line,
                None => {
                    lines.push(Line { name: row.loss.clone(), ..Line::default() });
                    lines.last_mut().expect("just pushed")
                }
            };
            line.points.push((row.step as f64, row.value));
        }
        let last = rows.iter().map(|row| row.step).max().unwrap_or(1).max(2);
        let most = rows.iter().map(|row| row.value).fold(0.0, f64::max);
        let chart = Chart {
            title: "losses".to_owned(),
            x: Axis::new("step", 0.0, last as f64),
            y: Axis::new("loss", 0.0, if most > 0.0 { most } else { 1.0 }),
            lines,
            marks: Vec::new(),
        };
        let path = self.folder.join("losses.svg");
        std::fs::write(&path, chart.svg((900, 480))?)
            .with_context(|| format!("writing {}", path.display()))
    }
}

const CSV: &str = "losses.csv";

fn read(path: &Path) -> Result<Vec<Row>> {
    let what = || format!("reading {}", path.display());
    let mut reader = csv::Reader::from_path(path).with_context(what)?;
    reader.deserialize().collect::<Result<_, _>>().with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_curve_has_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut curve = Curve::open(folder.path(), 0).unwrap();
        for step in 1..=5 {
            let losses = vec![("a", 1.0 / step as f64), ("b", 2.0)];
            curve.add(step, &losses, Duration::from_millis(3)).unwrap();
        }
        let mut curve = Curve::open(folder.path(), 3).unwrap();
        curve.add(4, &vec![("a", 0.5), ("b", 0.5)], Duration::from_millis(3)).unwrap();
        curve.draw().unwrap();
        let rows = read(&folder.path().join(CSV)).unwrap();
        let steps: Vec<u64> = rows.iter().map(|row| row.step).collect();
        assert_eq!(steps, [1, 1, 2, 2, 3, 3, 4, 4]);
        let svg = std::fs::read_to_string(folder.path().join("losses.svg")).unwrap();
        assert!(svg.contains(">\na\n") && svg.contains("step"), "{svg}");
    }
}
