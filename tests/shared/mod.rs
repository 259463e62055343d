//! Finds the measurement data that lives beside the repository, never in it.

use std::path::PathBuf;

/// `../shared/<path>`, or `None` with a clear word where that folder does not exist. With
/// `INSPECTD_REQUIRE_SHARED` set (as `.ci/run` does where the folder is there) its absence fails.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("INSPECTD_SHARED")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    assert!(
        std::env::var_os("INSPECTD_REQUIRE_SHARED").is_none(),
        "{} is missing though the shared folder was promised",
        found.display()
    );
    println!("SKIPPED: {} is not here", found.display());
    None
}
