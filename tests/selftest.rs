//! The factory in a box with the real daemon, as a customer runs it, for a short while.
#![cfg(feature = "gige")]
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn with_every_fault_no_promise_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let figures = folder.path().join("figures.json");
    let run = Command::new(env!("CARGO_BIN_EXE_inspectd"))
        .args(["selftest", "--seconds", "55", "--pause", "0.8", "--rate-hz", "15", "--json"])
        .arg(&figures)
        .arg("--out")
        .arg(folder.path().join("line"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let complained = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}\n{complained}");
    let figures: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&figures).unwrap()).unwrap();
    let number = |key: &str| figures[key].as_u64().unwrap();
    assert_eq!(number("violations"), 0);
    assert_eq!(figures["faults"].as_object().unwrap().len(), 18, "each was played: {said}");
    assert!(number("daemon_starts") >= 2);
    // The line is no blanket reject, however busy this machine is.
    assert!(number("parts") > 300 && number("good_passed") > 50, "{said}");
    assert!(number("defects_rejected") > 0 && number("uninspected_rejected") > 0, "{said}");
    assert!(number("results_read") > 100);
}

#[test]
fn a_fault_that_nobody_knows_is_named_and_a_strange_folder_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_inspectd"))
            .args(["selftest", "--out"])
            .arg(folder.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(!run.status.success());
        String::from_utf8(run.stderr).unwrap()
    };
    assert!(run(&["--faults", "earthquake"]).contains("--faults earthquake"));
    assert!(run(&[]).contains("was not made by a selftest"));
    assert!(folder.path().exists());
}
