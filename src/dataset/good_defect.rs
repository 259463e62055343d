//! Good parts beside defects, without a division into pictures to learn from and to test with:
//!
//! ```text
//! good/*   <defect>/*   ground_truth/<defect>/<stem>_mask.png (or <stem>.png; may be left out)
//! ```
//!
//! Every fifth good picture in the order of the names is for the test, as are all defects.

use std::path::Path;

use anyhow::{Result, bail};

use super::mvtec::{self, MVTEC};
use super::{Contents, Purpose, listing};

pub(super) fn read(root: &Path, purpose: Purpose) -> Result<Contents> {
    let good = listing::needed(root, "good", "with pictures of good parts")?;
    listing::some_pictures(&good)?;
    let mut contents = Contents::default();
    for folder in listing::folders(root)? {
        let (defect, masks) = match listing::name(&folder) {
            name if name == "ground_truth" => continue,
            name if name == "good" => (None, [].as_slice()),
            kind => (Some(kind), MVTEC.masks),
        };
        let of_kind = mvtec::kind_of(root, &folder, defect, masks, &mut contents.oddities)?;
        for (i, sample) in of_kind.into_iter().enumerate() {
            let is_tested_with = sample.defect.is_some() || i % NTH == NTH - 1;
            let half = if is_tested_with { &mut contents.test } else { &mut contents.train };
            half.push(sample);
        }
    }
    if purpose.needs_test() && contents.test.iter().all(|sample| sample.defect.is_none()) {
        bail!(
            "{} has the folder good but none of defects beside it: put pictures of defects into a \
             folder called as their kind, as {}",
            root.display(),
            root.join("scratch").display()
        );
    }
    Ok(contents)
}

/// As large a share of the good parts as is usually held out, and no chance in it.
const NTH: usize = 5;
