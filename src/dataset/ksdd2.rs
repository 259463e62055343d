//! KolektorSDD2: every picture has a truth beside it, and is defective if that is not black.
//!
//! ```text
//! train/NNNNN.png  train/NNNNN_GT.png     test/NNNNN.png  test/NNNNN_GT.png
//! ```
//!
//! Other files in these folders (copies, in some downloads) are none of its pictures.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::listing::{self, Masks};
use super::{Contents, Purpose, Sample};
use crate::camera::folder;

/// Whether pictures called as its are in the folder `train` or `test`.
pub(super) fn is_in(root: &Path) -> Result<bool> {
    for half in ["train", "test"] {
        let folder = root.join(half);
        if folder.is_dir() && listing::pictures(&folder)?.iter().any(|path| is_picture(path)) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn read(root: &Path, purpose: Purpose) -> Result<Contents> {
    let mut contents = Contents::default();
    if purpose.needs_train() || root.join("train").is_dir() {
        let train = half(root, "train", &mut contents.oddities)?;
        let (defects, goods) = train.into_iter().partition(|sample| sample.defect.is_some());
        contents.train_defects = defects;
        contents.train = goods;
    }
    if purpose.needs_test() || root.join("test").is_dir() {
        contents.test = half(root, "test", &mut contents.oddities)?;
    }
    Ok(contents)
}

fn half(root: &Path, half: &str, oddities: &mut Vec<String>) -> Result<Vec<Sample>> {
    let folder = listing::needed(root, half, "with NNNNN.png and NNNNN_GT.png")?;
    let (pictures, others): (Vec<PathBuf>, Vec<PathBuf>) =
        listing::pictures(&folder)?.into_iter().partition(|path| is_picture(path));
    ensure!(!pictures.is_empty(), "{} has no picture NNNNN.png", folder.display());
    let strays: Vec<&PathBuf> = others.iter().filter(|path| !is_truth(path)).collect();
    if let Some(stray) = strays.first() {
        oddities.push(format!(
            "{half} has {} files that are no NNNNN.png and no NNNNN_GT.png and were left out, as {}",
            strays.len(),
            listing::name(stray)
        ));
    }
    let truths = Masks::open(&folder)?;
    let sample = |path: PathBuf| {
        let mask = truths.needed(&path, &["_GT.png"], "; black if the part is good")?;
        let is_defective = folder::read(&mask, 16)?.to_rgb().as_raw().iter().any(|&v| v > 0);
        let file = listing::name(&path);
        Ok(Sample {
            name: if half == "test" { file } else { format!("{half}/{file}") },
            path,
            defect: is_defective.then(|| "defect".to_owned()),
            mask: is_defective.then_some(mask),
        })
    };
    pictures.into_par_iter().map(sample).collect()
}

fn is_picture(path: &Path) -> bool {
    is_png(path) && is_number(&listing::stem(path))
}

fn is_truth(path: &Path) -> bool {
    is_png(path) && listing::stem(path).strip_suffix("_GT").is_some_and(is_number)
}

fn is_png(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
