//! Folders that are written whole or not at all: in a hidden folder beside, then renamed, so that
//! nobody ever sees half of one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A folder being written; what is left of it goes away with this.
pub struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    /// An empty folder that is to become `folder`, which has a name.
    pub fn beside(folder: &Path) -> Result<Unfinished> {
        let path = hidden(folder, "part");
        fs::create_dir_all(&path).with_context(|| {
            let parent = path.parent().unwrap_or(Path::new("."));
            format!("making a folder in {} (may this user write there?)", parent.display())
        })?;
        Ok(Unfinished { path })
    }

    /// Where its contents are to be written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name. What had that name is gone thereafter, or back if this fails.
    pub fn take_the_place_of(self, folder: &Path) -> Result<()> {
        let old = hidden(folder, "old");
        let replaced = folder.symlink_metadata().is_ok();
        if replaced {
            fs::rename(folder, &old).with_context(|| format!("replacing {}", folder.display()))?;
        }
        if let Err(error) = fs::rename(&self.path, folder) {
            if replaced {
                // whoever reads it must find what was there
                let _ = fs::rename(&old, folder);
            }
            return Err(error).with_context(|| format!("naming the folder {}", folder.display()));
        }
        if replaced {
            fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // after the rename there is nothing here; a failure to tidy up must not hide the cause
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// `.<name>.<process>.<what>` in the same folder, so that a rename stays on one file system.
fn hidden(folder: &Path, what: &str) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.{}.{what}", std::process::id()))
}
