//! What lies in a folder, in the order of the bytes of the names; hidden files are left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::camera::folder::{PICTURES, is_picture};

/// The pictures in `folder`, not in folders below it.
pub fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| is_picture(path)).collect())
}

/// The pictures in a folder that must have some.
pub fn some_pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let pictures = pictures(folder)?;
    ensure!(!pictures.is_empty(), "{} has no picture ({})", folder.display(), PICTURES.join(", "));
    Ok(pictures)
}

pub fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

/// `inside` of `root`, which has to be there: `purpose` says for what.
pub fn needed(root: &Path, inside: &str, purpose: &str) -> Result<PathBuf> {
    let folder = root.join(inside);
    if !folder.is_dir() {
        bail!("{} has no folder {inside} {purpose}", root.display());
    }
    Ok(folder)
}

pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The masks in a folder, each found by its picture.
pub struct Masks {
    folder: PathBuf,
    /// By file name, the extension in lower case.
    files: BTreeMap<String, PathBuf>,
}

impl Masks {
    /// None where there is no such folder.
    pub fn open(folder: &Path) -> Result<Masks> {
        let files = if folder.is_dir() { pictures(folder)? } else { Vec::new() };
        let key = |path: &PathBuf| {
            let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            format!("{}.{ending}", stem(path))
        };
        Ok(Masks {
            folder: folder.to_owned(),
            files: files.into_iter().map(|path| (key(&path), path)).collect(),
        })
    }

    /// The mask called as `picture` with one of the `endings` in place of its own; the first counts.
    pub fn of(&self, picture: &Path, endings: &[&str]) -> Option<PathBuf> {
        let stem = stem(picture);
        endings.iter().find_map(|ending| self.files.get(&format!("{stem}{ending}")).cloned())
    }

    /// [`Masks::of`], where one has to be there; `instead` says what else would do.
    pub fn needed(&self, picture: &Path, endings: &[&str], instead: &str) -> Result<PathBuf> {
        self.of(picture, endings).with_context(|| {
            let stem = stem(picture);
            let others: Vec<_> = endings[1..].iter().map(|end| format!("{stem}{end}")).collect();
            let others = match others.len() {
                0 => String::new(),
                _ => format!(" (or {})", others.join(", ")),
            };
            format!(
                "{} has no mask: {}{others} is missing; add it{instead}",
                picture.display(),
                self.folder.join(format!("{stem}{}", endings[0])).display()
            )
        })
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading folder {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if !name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(paths)
}
