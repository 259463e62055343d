//! What the archive kept, read back.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::stock::is_day;
use super::{REJECTS, SAMPLES};
use crate::output::Recorded;

/// What is in the lists of an archive.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recordings {
    /// Day by day, rejects and samples in the order of their ids.
    pub parts: Vec<Recorded>,
    /// Lines that are none of ours, each with its file and number.
    pub damaged: Vec<String>,
}

/// A list that somebody changed must not lead out of the folder.
fn check(recorded: &Recorded, day: &str) -> Result<()> {
    let named = recorded.image.as_ref();
    let own = format!("{day}/{}.png", recorded.part);
    ensure!(named.is_none_or(|image| *image == own), "image = {named:?} is not {own}");
    Ok(())
}

/// Reads the lists of the days that `wanted` says yes to (`2026-05-04`).
///
/// # Errors
/// A folder or list that can't be read; a folder without a single day.
pub fn read(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Recordings> {
    let reading = || format!("reading the archive {}", folder.display());
    let mut days = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let name = entry.with_context(reading)?.file_name().to_string_lossy().into_owned();
        if is_day(&name) {
            days.push(name);
        }
    }
    ensure!(
        !days.is_empty(),
        "{} holds no day of an archive (folders such as 2026-05-04): give the config's \
         archive.folder",
        folder.display()
    );
    days.sort_unstable();
    let mut all = Recordings::default();
    for day in days.iter().filter(|day| wanted(day)) {
        let mut parts = Vec::new();
        for list in [REJECTS, SAMPLES] {
            let path = folder.join(day).join(list);
            if !path.exists() {
                continue;
            }
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            for (i, line) in String::from_utf8_lossy(&text).lines().enumerate() {
                let read = serde_json::from_str::<Recorded>(line).context("no record of a part");
                match read.and_then(|recorded| check(&recorded, day).map(|()| recorded)) {
                    Ok(recorded) => parts.push(recorded),
                    Err(error) => {
                        let at = format!("{}, line {}", path.display(), i + 1);
                        all.damaged.push(format!("{at}: {error:#}"));
                    }
                }
            }
        }
        parts.sort_by_key(|recorded| recorded.part);
        all.parts.extend(parts);
    }
    Ok(all)
}
