//! The layout of MVTec AD, also used for sets converted to it:
//!
//! ```text
//! train/good/*            test/good/*  test/<defect>/*
//! ground_truth/<defect>/<stem>_mask.png   (or <stem>.png)
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Sample;

/// The good pictures to learn from, in byte order of their names.
pub fn train(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = root.join("train").join(GOOD);
    if !folder.is_dir() {
        bail!("{} has no folder train/{GOOD} with good pictures to learn from", root.display());
    }
    let pictures = pictures(&folder)?;
    if pictures.is_empty() {
        bail!("{} has no picture ({})", folder.display(), EXTENSIONS.join(", "));
    }
    Ok(pictures)
}

/// The pictures to test with, good ones and defects, in byte order of their names.
///
/// Without a folder `ground_truth` no sample has a mask; with it each defect must have one.
pub fn test(root: &Path) -> Result<Vec<Sample>> {
    let folder = root.join("test");
    if !folder.is_dir() {
        bail!(
            "{} has no folder test: expected test/{GOOD} and test/<defect>, as MVTec AD has them",
            root.display()
        );
    }
    let truth = root.join("ground_truth");
    let mut samples = Vec::new();
    for kind_folder in entries(&folder)?.into_iter().filter(|path| path.is_dir()) {
        let kind = file_name(&kind_folder);
        for path in pictures(&kind_folder)? {
            let defect = (kind != GOOD).then(|| kind.clone());
            let mask = match &defect {
                Some(defect) if truth.is_dir() => Some(mask_of(&truth.join(defect), &path)?),
                _ => None,
            };
            samples.push(Sample {
                name: format!("{kind}/{}", file_name(&path)),
                path,
                defect,
                mask,
            });
        }
    }
    if samples.is_empty() {
        bail!("{} has no picture in any of its folders", folder.display());
    }
    Ok(samples)
}

/// The folder of good parts.
const GOOD: &str = "good";
const EXTENSIONS: [&str; 6] = ["png", "jpg", "jpeg", "tif", "tiff", "bmp"];

fn mask_of(folder: &Path, picture: &Path) -> Result<PathBuf> {
    let stem = picture.file_stem().unwrap_or_default().to_string_lossy();
    [format!("{stem}_mask.png"), format!("{stem}.png")]
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{} has no mask: {} is missing; add it, or remove the folder ground_truth to do \
                 without pixel metrics",
                picture.display(),
                folder.join(format!("{stem}_mask.png")).display()
            )
        })
}

fn pictures(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_picture = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        path.is_file() && EXTENSIONS.contains(&extension.as_str())
    };
    Ok(entries(folder)?.into_iter().filter(is_picture).collect())
}

/// What is in a folder, sorted by the bytes of the names; hidden files are left out.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading folder {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if !file_name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::shared;

    fn folder_with(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    #[test]
    fn samples_come_sorted_with_kind_and_mask() {
        let root = folder_with(&[
            "test/good/000.PNG",
            "test/scratch/b.jpg",
            "test/scratch/a.png",
            "test/scratch/.hidden.png",
            "test/readme.txt",
            "ground_truth/scratch/a_mask.png",
            "ground_truth/scratch/b.png",
        ]);
        let samples = test(root.path()).unwrap();
        let seen: Vec<_> = samples
            .iter()
            .map(|s| (s.name.as_str(), s.defect.as_deref(), s.mask.as_deref().map(file_name)))
            .collect();
        assert_eq!(
            seen,
            [
                ("good/000.PNG", None, None),
                ("scratch/a.png", Some("scratch"), Some("a_mask.png".into())),
                ("scratch/b.jpg", Some("scratch"), Some("b.png".into())),
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        struct Case {
            files: &'static [&'static str],
            says: &'static str,
        }
        let cases = [
            Case { files: &["train/good/0.png"], says: "no folder test" },
            Case { files: &["test/good/notes.txt"], says: "no picture" },
            Case {
                files: &["test/dent/7.png", "ground_truth/dent/8_mask.png"],
                says: "dent/7_mask.png is missing",
            },
        ];
        for case in cases {
            let error = test(folder_with(case.files).path()).unwrap_err().to_string();
            assert!(error.contains(case.says), "{error}");
        }
        let error = train(folder_with(&["test/good/0.png"]).path()).unwrap_err().to_string();
        assert!(error.contains("no folder train/good"), "{error}");
    }

    #[test]
    fn without_ground_truth_nothing_has_a_mask() {
        let root = folder_with(&["test/dent/7.png"]);
        assert_eq!(test(root.path()).unwrap()[0].mask, None);
    }

    #[test]
    fn the_bottle_set_is_whole() {
        let Some(root) = shared("data/bottle") else { return };
        let samples = test(&root).unwrap();
        assert_eq!(train(&root).unwrap().len(), 209);
        assert_eq!(samples.len(), 83);
        assert_eq!(samples.iter().filter(|s| s.defect.is_none()).count(), 20);
        assert_eq!(samples.iter().filter(|s| s.mask.is_some()).count(), 63);
    }
}
