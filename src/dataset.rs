//! Public data sets in their own layouts. Workshop: nothing on the line may use it.

use std::path::PathBuf;

pub mod mask;
pub mod mvtec;

/// One picture to test a detector with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub path: PathBuf,
    /// Path below the test folder: `scratch/003.png`.
    pub name: String,
    /// The kind of defect, as its folder is called; `None` on a good part.
    pub defect: Option<String>,
    /// The picture of where the defect is; `None` on a good part and where the set has no masks.
    pub mask: Option<PathBuf>,
}
