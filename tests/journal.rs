//! The log in a real process with a real standard error: read, stuck, closed.
//!
//! Each test starts this test binary again with [`CHILD`] naming a scene; the child plays it.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use inspectd::journal;
use log::LevelFilter;

const CHILD: &str = "INSPECTD_TEST_JOURNAL";
/// Other targets than our own are heard from warning up only.
const TARGET: &str = "inspectd::test";
const LINES: usize = 20_000;

#[test]
fn child() {
    let Ok(scene) = std::env::var(CHILD) else { return };
    let guard = journal::start(LevelFilter::Info).unwrap();
    match scene.as_str() {
        "panic" => {
            log::info!(target: TARGET, "last word before");
            panic!("planted");
        }
        "flood" => {
            for n in 0..LINES {
                log::info!(target: TARGET, "reject part={n} camera=left cause=anomaly score=3.81 threshold=2.90");
            }
            print_and_flush("alive");
            drop(guard);
        }
        other => panic!("no scene {other}"),
    }
}

fn print_and_flush(word: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{word}").unwrap();
    stdout.flush().unwrap();
}

fn play(scene: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, scene)
        .env_remove("JOURNAL_STREAM")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// All that the child prints, or nothing if it is not done in ten seconds: it hangs then.
fn within_ten_seconds(mut stdout: ChildStdout) -> Option<String> {
    let (sender, printed) = mpsc::channel();
    #[expect(clippy::disallowed_methods, reason = "reading a pipe has no time limit of its own")]
    std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        let _ = sender.send(text);
    });
    printed.recv_timeout(Duration::from_secs(10)).ok()
}

#[test]
fn a_panic_is_in_the_log_after_the_lines_before_it() {
    let output = play("panic").wait_with_output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    let last = text.find("INFO last word before\n").expect("the line before the panic");
    let panic = text.find("ERROR panic thread=").expect("the panic as a log line");
    assert!(last < panic, "{text}");
    let line = text[panic..].lines().next().unwrap();
    assert!(line.ends_with("planted"), "the panic's text is on the same line: {line}");
}

#[test]
fn a_stderr_that_nobody_reads_blocks_nobody() {
    let mut child = play("flood");
    // The pipe holds 64 KiB of some 2 MB; whoever writes more stands still.
    let stderr = child.stderr.take();
    let printed = within_ten_seconds(child.stdout.take().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    drop(stderr);
    assert!(printed.expect("the child hangs").contains("alive"));
}

#[test]
fn a_stderr_that_is_closed_kills_nobody() {
    let mut child = play("flood");
    drop(child.stderr.take());
    let printed = within_ten_seconds(child.stdout.take().unwrap());
    assert!(printed.expect("the child hangs").contains("alive"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_slow_reader_learns_how_many_lines_are_missing() {
    let mut child = play("flood");
    let mut stderr = child.stderr.take().unwrap();
    // Nothing is read until all lines are logged: more than pipe and queue hold together.
    let mut first = [0; 5];
    let mut stdout = child.stdout.take().unwrap();
    while !first.ends_with(b"alive") {
        first.rotate_left(1);
        stdout.read_exact(&mut first[4..]).expect("the child ended early");
    }
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    let dropped: usize = text
        .lines()
        .filter_map(|line| line.split_once("WARN log lines_dropped=")?.1.parse::<usize>().ok())
        .sum();
    let written = text.lines().filter(|line| line.contains("INFO reject part=")).count();
    assert!(dropped > 0, "nothing was dropped of {LINES} lines");
    assert_eq!(written + dropped, LINES, "every line is written or counted");
}
