//! The factory in a box with the real daemon, as a customer runs it, for a short while.
#![cfg(feature = "gige")]
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn with_every_fault_no_promise_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let figures = folder.path().join("figures.json");
    let run = Command::new(env!("CARGO_BIN_EXE_inspectd"))
        .args(["selftest", "--seconds", "60", "--pause", "0.7", "--rate-hz", "15", "--json"])
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
    assert_eq!(figures["faults"].as_object().unwrap().len(), 20, "each was played: {said}");
    assert!(number("daemon_starts") >= 2);
    // The line is no blanket reject, however busy this machine is.
    assert!(number("parts") > 300 && number("good_passed") > 50, "{said}");
    assert!(number("defects_rejected") > 0 && number("uninspected_rejected") > 0, "{said}");
    assert!(number("results_read") > 100);
}

/// The wall clock of daemon and box leaps by an hour, forth and back.
#[test]
fn a_wall_clock_that_leaps_breaks_no_promise() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(at("stepped_clock.so"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/stepped_clock.c"))
        .arg("-ldl")
        .status();
    if !built.is_ok_and(|built| built.success()) {
        assert!(std::env::var_os("INSPECTD_REQUIRE_PEERS").is_none(), "cc builds no clock");
        println!("SKIPPED: a wall clock that leaps, as cc does not build it here");
        return;
    }
    let step = |seconds: i64| std::fs::write(at("offset"), seconds.to_ne_bytes()).unwrap();
    step(0);
    let mut run = Command::new(env!("CARGO_BIN_EXE_inspectd"))
        .args(["selftest", "--seconds", "14", "--rate-hz", "15"])
        .args(["--faults", "daemon_killed,disk_full,frame_missing", "--pause", "1", "--json"])
        .arg(at("figures.json"))
        .arg("--out")
        .arg(at("line"))
        .env("LD_PRELOAD", at("stepped_clock.so"))
        .env("STEPPED_CLOCK", at("offset"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut steps = [3600, 0, -3600, 0].into_iter().cycle();
    let status = loop {
        std::thread::sleep(Duration::from_millis(1500));
        step(steps.next().unwrap());
        if let Some(status) = run.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success(), "{status}");
    let figures: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(at("figures.json")).unwrap()).unwrap();
    assert_eq!(figures["violations"], 0);
    assert!(figures["good_passed"].as_u64().unwrap() > 10, "{figures}");
    // The log's own times tell that the clock did leap under the daemon.
    let log = std::fs::read_to_string(at("line/daemon.log")).unwrap();
    let hours: std::collections::BTreeSet<&str> =
        log.lines().filter_map(|line| line.get(..13)).collect();
    assert!(hours.len() >= 2, "{hours:?}");
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
