//! VisA as published, one category:
//!
//! ```text
//! Data/Images/Normal/*.JPG   Data/Images/Anomaly/*.JPG   Data/Masks/Anomaly/*.png
//! ../split_csv/1cls.csv      object,split,label,image,mask; paths from the folder above
//! ```
//!
//! The split file says which picture is for what. Masks hold small class numbers, not 255.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{Contents, Purpose, Sample, listing};

#[derive(Deserialize)]
struct Row {
    object: String,
    split: String,
    label: String,
    image: String,
    #[serde(default)]
    mask: String,
}

pub(super) fn read(root: &Path, purpose: Purpose) -> Result<Contents> {
    listing::needed(root, "Data/Images", "with Normal and Anomaly")?;
    let set = root.parent().context("a category of VisA lies in the folder of the set")?;
    let object = listing::name(root);
    let file = set.join("split_csv").join("1cls.csv");
    ensure!(
        file.is_file(),
        "{} is missing: it says which picture of VisA is to learn from and which to test with; get \
         it from the published set, or give the set converted to MVTec AD's layout",
        file.display()
    );
    let mut rows =
        csv::Reader::from_path(&file).with_context(|| format!("reading {}", file.display()))?;
    let mut contents = Contents::default();
    let mut listed = HashSet::new();
    for (i, row) in rows.deserialize().enumerate() {
        let row: Row = row.with_context(|| {
            format!("{} needs the columns object, split, label, image, mask", file.display())
        })?;
        if row.object != object {
            continue;
        }
        let at = || format!("{}, row {} below the head", file.display(), i + 1);
        let sample = sample(set, root, &row).with_context(at)?;
        ensure!(listed.insert(sample.path.clone()), "{}: {} comes twice", at(), row.image);
        match (row.split.as_str(), &sample.defect) {
            ("train", None) => contents.train.push(sample),
            ("train", Some(_)) => contents.train_defects.push(sample),
            ("test", _) => contents.test.push(sample),
            (other, _) => bail!("{}: split = {other:?}: must be train or test", at()),
        }
    }
    ensure!(
        !(contents.train.is_empty() && purpose.needs_train()),
        "{} has no picture with object = {object}, split = train, label = normal",
        file.display()
    );
    ensure!(
        !(contents.test.is_empty() && purpose.needs_test()),
        "{} has no picture with object = {object}, split = test",
        file.display()
    );
    for samples in [&mut contents.train, &mut contents.train_defects, &mut contents.test] {
        samples.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    }
    contents.oddities.extend(unlisted(root, &listed)?);
    Ok(contents)
}

fn sample(set: &Path, root: &Path, row: &Row) -> Result<Sample> {
    let present = |path: &str| {
        let path = set.join(path);
        ensure!(path.is_file(), "{} is missing", path.display());
        Ok(path)
    };
    let path = present(&row.image)?;
    let below = path.strip_prefix(root.join("Data/Images")).unwrap_or(&path);
    Ok(Sample {
        name: below.to_string_lossy().into_owned(),
        defect: match row.label.as_str() {
            "normal" => None,
            "anomaly" => Some("anomaly".to_owned()),
            other => bail!("label = {other:?}: must be normal or anomaly"),
        },
        mask: if row.mask.is_empty() { None } else { Some(present(&row.mask)?) },
        path,
    })
}

/// A word on pictures that the split file does not name.
fn unlisted(root: &Path, listed: &HashSet<PathBuf>) -> Result<Option<String>> {
    let mut more = 0;
    for folder in listing::folders(&root.join("Data/Images"))? {
        more += listing::pictures(&folder)?.iter().filter(|path| !listed.contains(*path)).count();
    }
    Ok((more > 0).then(|| {
        format!("{more} pictures in Data/Images are not in split_csv/1cls.csv and were left out")
    }))
}
