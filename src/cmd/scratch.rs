//! Folders that a command may empty, since it made them itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// An empty folder: new, or one that an earlier run of the same command made and marked. Nothing else is
/// ever emptied. `command` is its name, as `demo`.
pub fn fresh_folder(folder: &Path, command: &str) -> Result<PathBuf> {
    let doing = || format!("making room in {}", folder.display());
    let marker = folder.join(format!(".inspectd-{command}"));
    if folder.exists() {
        if !marker.exists() {
            bail!(
                "--out {} is there already and was not made by a {command}; name another folder",
                folder.display()
            );
        }
        fs::remove_dir_all(folder).with_context(doing)?;
    }
    fs::create_dir_all(folder).with_context(doing)?;
    fs::write(marker, "").with_context(doing)?;
    Ok(folder.to_owned())
}
