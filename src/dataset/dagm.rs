//! DAGM 2007, one class: a picture is defective if it has a label.
//!
//! ```text
//! Train/NNNN.PNG   Train/Label/NNNN_label.PNG
//! Test/NNNN.PNG    Test/Label/NNNN_label.PNG
//! ```

use std::path::Path;

use anyhow::Result;

use super::listing::{self, Masks};
use super::{Contents, Purpose, Sample};

pub(super) fn read(root: &Path, purpose: Purpose) -> Result<Contents> {
    let mut contents = Contents::default();
    if purpose.needs_train() || root.join("Train").is_dir() {
        let train = half(root, "Train", &mut contents.oddities)?;
        let (defects, goods) = train.into_iter().partition(|sample| sample.defect.is_some());
        contents.train_defects = defects;
        contents.train = goods;
    }
    if purpose.needs_test() || root.join("Test").is_dir() {
        contents.test = half(root, "Test", &mut contents.oddities)?;
    }
    Ok(contents)
}

fn half(root: &Path, half: &str, oddities: &mut Vec<String>) -> Result<Vec<Sample>> {
    let folder = listing::needed(root, half, "with the class's pictures")?;
    let labels = "with NNNN_label.PNG of each defect; without it all would pass for good";
    let labels = Masks::open(&listing::needed(root, &format!("{half}/Label"), labels)?)?;
    let mut samples = Vec::new();
    for path in listing::some_pictures(&folder)? {
        let mask = labels.of(&path, &["_label.png"]);
        let file = listing::name(&path);
        samples.push(Sample {
            name: if half == "Test" { file } else { format!("{half}/{file}") },
            path,
            defect: mask.is_some().then(|| "defect".to_owned()),
            mask,
        });
    }
    let defects = samples.iter().filter(|sample| sample.mask.is_some()).count();
    if defects < labels.len() {
        oddities.push(format!(
            "{half}/Label has {} pictures that belong to no picture in {half}",
            labels.len() - defects
        ));
    }
    Ok(samples)
}
