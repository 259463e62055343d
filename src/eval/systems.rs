//! What a `--bundle` stands for: one bundle for whatever is tested, or a folder with a bundle for
//! each category, named as the category is.
//!
//! ```text
//! bottle.bundle/model.toml                            a bundle
//! compact/bottle/model.toml  compact/cable/model.toml a system: a bundle for each category
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::detector::bundle;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// As named on the command line.
    pub path: PathBuf,
    bundles: Bundles,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Bundles {
    One,
    /// The categories that have one, in order.
    ByCategory(Vec<String>),
}

impl System {
    /// Looks at what is there.
    ///
    /// # Errors
    /// Neither a bundle nor a folder of bundles.
    pub fn at(path: &Path) -> Result<System> {
        if bundle::is_at(path) {
            return Ok(System { path: path.to_owned(), bundles: Bundles::One });
        }
        let entries =
            fs::read_dir(path).with_context(|| format!("reading the bundle {}", path.display()))?;
        let mut categories = Vec::new();
        for entry in entries {
            let folder = entry?.path();
            if bundle::is_at(&folder) {
                categories
                    .push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        if categories.is_empty() {
            bail!(
                "{} is no bundle (it has no model.toml), nor does it hold bundles named by \
                 category (bottle/model.toml); make one with `inspectd teach`",
                path.display()
            );
        }
        categories.sort();
        Ok(System { path: path.to_owned(), bundles: Bundles::ByCategory(categories) })
    }

    /// Whether one bundle is used whatever the category.
    pub fn is_one_bundle(&self) -> bool {
        self.bundles == Bundles::One
    }

    /// The bundle for a category.
    ///
    /// # Errors
    /// The system has none for it.
    pub fn bundle_for(&self, category: &str) -> Result<PathBuf> {
        match &self.bundles {
            Bundles::One => Ok(self.path.clone()),
            Bundles::ByCategory(there) if there.iter().any(|one| one == category) => {
                Ok(self.path.join(category))
            }
            Bundles::ByCategory(there) => bail!(
                "{} has no bundle for category {category}: {} is missing; it has {}",
                self.path.display(),
                self.path.join(category).join("model.toml").display(),
                there.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn one_bundle_serves_every_category() {
        let root = folder_with(&["model.toml", "golden/0.png"]);
        let system = System::at(root.path()).unwrap();
        assert!(system.is_one_bundle());
        assert_eq!(system.bundle_for("anything").unwrap(), root.path());
    }

    #[test]
    fn a_folder_of_bundles_has_one_for_each_category() {
        let root = folder_with(&["cable/model.toml", "bottle/model.toml", "notes/readme.txt"]);
        let system = System::at(root.path()).unwrap();
        assert!(!system.is_one_bundle());
        assert_eq!(system.bundle_for("bottle").unwrap(), root.path().join("bottle"));
        let error = system.bundle_for("notes").unwrap_err().to_string();
        for text in ["notes/model.toml is missing", "bottle, cable"] {
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn what_is_no_bundle_is_named() {
        let root = folder_with(&["notes/readme.txt"]);
        let error = System::at(root.path()).unwrap_err().to_string();
        assert!(error.contains("has no model.toml"), "{error}");
        let error = System::at(&root.path().join("gone")).unwrap_err();
        assert!(format!("{error:#}").contains("gone"), "{error:#}");
    }
}
