//! The ledger under `kill -9`, on a disk that is really full, and through the command line.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use inspectd::frame::{FrameId, PartId};
use inspectd::ledger::{self, Config, Ledger, Record};
use inspectd::verdict::{Cause, Verdict};

/// Set in the child that is to be killed: the ledger's folder.
const CHILD: &str = "INSPECTD_TEST_LEDGER_CHILD";

fn config(folder: &Path) -> Config {
    Config { folder: folder.to_owned(), max_gib: 0.25 }
}

fn record(part: u64, issued: u64) -> Record {
    let verdict = match part % 3 {
        0 => Verdict::Reject(Cause::Anomaly),
        _ => Verdict::Accept,
    };
    Record {
        part: PartId(part),
        issued: PartId(issued),
        frame: FrameId { camera: 0, seq: part },
        verdict,
        score: Some(part as f32),
        threshold: Some(7.25),
        region: None,
        triggered_at: SystemTime::now(),
        latency_us: 1234,
    }
}

/// Not a test of its own: the child of `every_part_marked_before_kill_9_has_one_record`. As fast as
/// it can it gives out ids and judges parts, of which three are in flight at any time and the later
/// of two is judged first. Tells each id after its mark and after its record.
#[test]
fn child_judges_until_killed() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let (mut ledger, resumed) =
        Ledger::open(&config(Path::new(&folder)), SystemTime::now()).unwrap();
    let sync = ledger.sync();
    let mut out = std::io::stdout().lock();
    // The test harness may have begun a line.
    writeln!(out).unwrap();
    let first = resumed.next_part.0;
    let mut part = first;
    loop {
        for id in [part, part + 1] {
            ledger.mark_issued(PartId(id));
            writeln!(out, "marked {id}").unwrap();
        }
        for id in [part - 1, part - 2] {
            if id >= first {
                ledger.append(&record(id, part + 1)).unwrap();
                writeln!(out, "recorded {id}").unwrap();
            }
        }
        part += 2;
        if part % 4096 < 2 {
            sync.run().unwrap();
        }
    }
}

#[test]
fn every_part_marked_before_kill_9_has_one_record() {
    let folder = tempfile::tempdir().unwrap();
    let (mut marked, mut recorded) = (HashSet::new(), HashSet::new());
    let (mut triggers, mut interrupted) = (0, 0);
    // A spread of moments, from before the ledger is open to many thousand records in.
    for (round, millis) in
        [0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 0, 1, 2, 5, 10, 20, 50, 100, 150, 200].iter().enumerate()
    {
        // In the first rounds counted from the process's start, then from the first record.
        for (word, id) in run_and_kill(folder.path(), Duration::from_millis(*millis), round >= 10) {
            match word.as_str() {
                "marked" => assert!(marked.insert(id), "id {id} was given out twice"),
                _ => assert!(recorded.insert(id), "id {id} was recorded twice"),
            }
        }
        let (ledger, resumed) = Ledger::open(&config(folder.path()), SystemTime::now()).unwrap();
        // Again without a clean end.
        drop(ledger);
        interrupted += resumed.interrupted.len();
        let mut records = HashMap::new();
        for record in ledger::read(folder.path()).unwrap() {
            let twice = records.insert(record.part.0, record.verdict);
            assert_eq!(twice, None, "part {} is recorded twice", record.part);
        }
        assert_eq!(marked.iter().find(|&id| !records.contains_key(id)), None, "no record");
        for id in &recorded {
            assert_eq!(records[id], record(*id, *id).verdict, "part {id} was told and recorded");
        }
        assert!(resumed.tally.closed());
        assert_eq!(resumed.tally.triggers, records.len() as u64);
        assert!(resumed.tally.triggers >= triggers, "triggers never go back");
        triggers = resumed.tally.triggers;
    }
    assert!(interrupted >= 10, "each kill after the first record leaves parts in flight");
    println!(
        "{} ids marked, {triggers} recorded, {interrupted} interrupted, 20 kills",
        marked.len()
    );
}

/// What the child told before it was killed: (`marked` or `recorded`, id). The wait begins with the
/// process or, `once_at_work`, with the first record, however long the start takes.
fn run_and_kill(folder: &Path, wait: Duration, once_at_work: bool) -> Vec<(String, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_judges_until_killed", "--nocapture"])
        .env(CHILD, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let (at_work, work) = mpsc::channel();
    std::thread::scope(|threads| {
        let reader = threads.spawn(move || {
            let (mut told, mut line) = (Vec::new(), String::new());
            // A line cut off by the kill counts as not told.
            while lines.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
                if let Some((word @ ("marked" | "recorded"), id)) = line.trim_end().split_once(' ')
                    && let Ok(id) = id.parse()
                {
                    if word == "recorded" {
                        // Nobody listens in the first rounds, nor twice.
                        let _ = at_work.send(());
                    }
                    told.push((word.to_owned(), id));
                }
                line.clear();
            }
            told
        });
        if once_at_work {
            work.recv().expect("the child ended by itself");
        }
        std::thread::sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
        drop(work);
        reader.join().unwrap()
    })
}

/// A file system of 1 MiB, really full.
#[test]
fn a_full_file_system_delays_records_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(folder.path())
        .stderr(Stdio::null())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no right to mount a tmpfs here");
        return;
    }
    let mounted = Mounted(folder.path());
    let ballast = folder.path().join("ballast");
    let (mut ledger, resumed) =
        Ledger::open(&config(&folder.path().join("ledger")), SystemTime::now()).unwrap();
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let first = resumed.next_part.0;
    let parts = first..first + 500;
    for part in parts.clone() {
        ledger.append(&record(part, part)).unwrap();
    }
    assert!(ledger.backlog() > 400, "the page begun has room for some");
    assert!(ledger.fault().unwrap().contains("No space left"), "{:?}", ledger.fault());
    let reads = ledger::read(&folder.path().join("ledger")).unwrap();
    assert_eq!(reads.len(), 500 - ledger.backlog());
    fs::remove_file(&ballast).unwrap();
    drop(file);
    ledger.flush().unwrap();
    ledger.close(SystemTime::now()).unwrap();
    let reads = ledger::read(&folder.path().join("ledger")).unwrap();
    assert!(reads.iter().map(|record| record.part.0).eq(parts));
    drop(mounted);
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

fn inspectd_ledger(folder: &Path, args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_inspectd"))
        .arg("ledger")
        .args(args)
        .arg("--folder")
        .arg(folder)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text + &String::from_utf8(output.stderr).unwrap())
}

/// The command reads while the daemon holds the ledger, prints what was asked and fails on damage.
#[test]
fn the_command_prints_and_verifies_a_live_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = Ledger::open(&config(folder.path()), SystemTime::now()).unwrap();
    for part in 1..=7 {
        ledger.append(&record(part, part.max(6))).unwrap();
    }
    let (code, text) = inspectd_ledger(folder.path(), &["print", "--rejects", "--from", "4"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("time=20"), "{text}");
    assert!(
        text.contains(
            " part=6 camera=0 seq=6 verdict=reject cause=anomaly score=6 threshold=7.25 region=- \
             latency_ms=1.234"
        ),
        "{text}"
    );
    let (_, text) = inspectd_ledger(folder.path(), &["print", "--to", "2", "--json"]);
    let parts: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(parts.len(), 2);
    assert_eq!((&parts[1]["part"], &parts[1]["cause"]), (&2.into(), &serde_json::Value::Null));

    let segment = folder.path().join("segment-0000000001.ledger");
    let whole = fs::read(&segment).unwrap();
    fs::write(&segment, [whole.as_slice(), &[2; 30]].concat()).unwrap();
    let (code, text) = inspectd_ledger(folder.path(), &["verify"]);
    assert_eq!(code, 0, "a record being written is no damage: {text}");
    assert!(text.contains("note: 30 bytes") && text.contains("ok segments=1 records=7"), "{text}");
    let mut bytes = whole;
    bytes[256 + 80 + 20] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let (code, text) = inspectd_ledger(folder.path(), &["verify"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("segment-0000000001.ledger at byte 336: "), "{text}");
    let (code, text) = inspectd_ledger(&folder.path().join("none"), &["tally"]);
    assert_eq!(code, 1, "{text}");
}

#[test]
fn tally_is_one_line_or_one_object() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, _) = Ledger::open(&config(folder.path()), SystemTime::now()).unwrap();
    for part in 1..=7 {
        ledger.append(&record(part, part.max(6))).unwrap();
    }
    ledger.close(SystemTime::now()).unwrap();
    let (code, text) = inspectd_ledger(folder.path(), &["tally"]);
    assert_eq!(code, 0, "{text}");
    let start = "epoch=1 stopped=true triggers=7 accepted=5 rejected=2 in_flight=0 anomaly=2 ";
    assert!(text.starts_with(start), "{text}");
    let (_, text) = inspectd_ledger(folder.path(), &["tally", "--json"]);
    let object: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&object["accepted"], &object["causes"]["anomaly"]), (&5.into(), &2.into()));
}

/// Not a check but a measurement: `cargo test --release --test ledger_crash append_cost -- --ignored
/// --nocapture`, with a second thread syncing as the daemon's does.
#[test]
#[ignore = "a measurement"]
fn append_cost() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut ledger, resumed) = Ledger::open(&config(folder.path()), SystemTime::now()).unwrap();
    let sync = ledger.sync();
    let first = resumed.next_part.0;
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut nanos: Vec<u128> = Vec::with_capacity(300_000);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                sync.run().unwrap();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        for part in first..first + 300_000 {
            let record = record(part, part);
            #[expect(clippy::disallowed_methods, reason = "a measurement")]
            let begin = std::time::Instant::now();
            ledger.append(&record).unwrap();
            nanos.push(begin.elapsed().as_nanos());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    nanos.sort_unstable();
    let at = |share: f64| nanos[((nanos.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    println!(
        "append: p50 {:.2} us, p99 {:.2} us, p99.9 {:.2} us, max {:.1} us, 300000 records",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}
