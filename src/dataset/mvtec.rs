//! The layout of MVTec AD, also used for sets converted to it, and BTAD's, which has other names:
//!
//! ```text
//! train/good/*            test/good/*  test/<defect>/*
//! ground_truth/<defect>/<stem>_mask.png   (or <stem>.png)
//!
//! train/ok/*              test/ok/*    test/ko/*
//! ground_truth/ko/<stem>.png              (or <stem>.bmp, or <stem>_mask.png)
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::listing::{self, Masks};
use super::{Contents, Purpose, Sample};

/// The names of a layout.
pub(super) struct Tree {
    /// The folder of good parts.
    good: &'static str,
    /// What a mask's name has after the stem of its picture's.
    pub(super) masks: &'static [&'static str],
}

pub(super) const MVTEC: Tree = Tree { good: "good", masks: &["_mask.png", ".png"] };
/// Class 03 has its masks as `.bmp` (PRN's loader of BTAD).
pub(super) const BTAD: Tree = Tree { good: "ok", masks: &[".png", ".bmp", "_mask.png"] };

impl Tree {
    pub(super) fn read(&self, root: &Path, purpose: Purpose) -> Result<Contents> {
        let mut contents = Contents::default();
        if purpose.needs_train() || root.join("train").join(self.good).is_dir() {
            contents.train = self.train(root)?;
        }
        if purpose.needs_test() || root.join("test").is_dir() {
            contents.test = self.test(root, &mut contents.oddities)?;
        }
        Ok(contents)
    }

    /// The good pictures to learn from.
    fn train(&self, root: &Path) -> Result<Vec<Sample>> {
        let good = format!("train/{}", self.good);
        let folder = listing::needed(root, &good, "with good pictures to learn from")?;
        let sample = |path: PathBuf| Sample {
            name: format!("{good}/{}", listing::name(&path)),
            path,
            defect: None,
            mask: None,
        };
        Ok(listing::some_pictures(&folder)?.into_iter().map(sample).collect())
    }

    fn test(&self, root: &Path, oddities: &mut Vec<String>) -> Result<Vec<Sample>> {
        let expected = format!("to test with: expected test/{} and test/<defect>", self.good);
        let folder = listing::needed(root, "test", &expected)?;
        let mut samples = Vec::new();
        for kind in listing::folders(&folder)? {
            let defect = (listing::name(&kind) != self.good).then(|| listing::name(&kind));
            samples.extend(kind_of(root, &kind, defect, self.masks, oddities)?);
        }
        if samples.is_empty() {
            bail!("{} has no picture in any of its folders", folder.display());
        }
        Ok(samples)
    }
}

/// The pictures in the folder of one kind, the defects with their masks below
/// `root`/`ground_truth`, where that is.
pub(super) fn kind_of(
    root: &Path,
    folder: &Path,
    defect: Option<String>,
    endings: &[&str],
    oddities: &mut Vec<String>,
) -> Result<Vec<Sample>> {
    let kind = listing::name(folder);
    let truth = root.join("ground_truth");
    let masks = match &defect {
        Some(defect) if truth.is_dir() => Some(Masks::open(&truth.join(defect))?),
        _ => None,
    };
    let instead = ", or remove the folder ground_truth to do without pixel metrics";
    let mut samples = Vec::new();
    for path in listing::pictures(folder)? {
        let mask = masks.as_ref().map(|masks| masks.needed(&path, endings, instead)).transpose()?;
        let name = format!("{kind}/{}", listing::name(&path));
        samples.push(Sample { name, path, defect: defect.clone(), mask });
    }
    if samples.is_empty() {
        oddities.push(format!("{} has no picture", folder.display()));
    }
    let idle = masks.map_or(0, |masks| masks.len()).saturating_sub(samples.len());
    if idle > 0 {
        oddities.push(format!(
            "{idle} of the pictures in {} are no picture's mask",
            truth.join(&kind).display()
        ));
    }
    Ok(samples)
}
