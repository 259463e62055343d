//! Finds the programs that we did not write and test against.

use std::process::{Command, Stdio};

/// A Python that has `module`: `INSPECTD_PYTHON`, else `python3`. `None` with a clear word where
/// there is none; with `INSPECTD_REQUIRE_PEERS` set its absence fails.
pub fn python_with(module: &str) -> Option<String> {
    let python = std::env::var("INSPECTD_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = Command::new(&python)
        .args(["-c", &format!("import {module}")])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if found {
        return Some(python);
    }
    assert!(
        std::env::var_os("INSPECTD_REQUIRE_PEERS").is_none(),
        "{python} can't import {module} though it was promised; pip install pymodbus==3.16.1 \
         python-snap7==3.3.0 and set INSPECTD_PYTHON"
    );
    println!("SKIPPED: {python} can't import {module}");
    None
}
