//! The ledger under `kill -9`, on a disk that is really full, and through the command line.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
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

/// Not a test of its own: the child of `every_part_told_before_kill_9_is_recorded_once`. Appends as
/// fast as it can, the later of two parts first, and tells each id after it was appended.
#[test]
fn child_appends_until_killed() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let (mut ledger, resumed) =
        Ledger::open(&config(Path::new(&folder)), SystemTime::now()).unwrap();
    let sync = ledger.sync();
    let mut out = std::io::stdout().lock();
    let mut part = resumed.next_part.0;
    loop {
        for id in [part + 1, part] {
            ledger.append(&record(id, part + 1)).unwrap();
            writeln!(out, "recorded {id}").unwrap();
        }
        part += 2;
        if part % 4096 < 2 {
            sync.run().unwrap();
        }
    }
}

#[test]
fn every_part_told_before_kill_9_is_recorded_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut told = HashSet::new();
    // A spread of moments, from before the ledger is open to many thousand records in.
    for millis in [0, 1, 2, 3, 5, 7, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200, 300] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_appends_until_killed", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::scope(|threads| {
            let reader = threads.spawn(move || {
                let mut text = Vec::new();
                lines.read_to_end(&mut text).unwrap();
                text
            });
            std::thread::sleep(Duration::from_millis(millis));
            child.kill().unwrap();
            child.wait().unwrap();
            reader.join().unwrap()
        });
        // A line cut off by the kill counts as not told.
        let whole = reader.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for line in reader[..whole].lines() {
            let line = line.unwrap();
            let Some(id) = line.strip_prefix("recorded ") else { continue };
            assert!(told.insert(id.parse::<u64>().unwrap()), "id {id} was given out twice");
        }
        let mut records = HashSet::new();
        for record in ledger::read(folder.path()).unwrap_or_default() {
            assert!(records.insert(record.part.0), "part {} is recorded twice", record.part);
        }
        let missing = told.difference(&records).min();
        assert_eq!(missing, None, "told and not recorded, after {millis} ms");
    }
    assert!(told.len() > 1000, "only {} parts were told: the test killed too early", told.len());
    let (ledger, resumed) = Ledger::open(&config(folder.path()), SystemTime::now()).unwrap();
    assert!(resumed.tally.closed());
    ledger.close(SystemTime::now()).unwrap();
    let records = ledger::read(folder.path()).unwrap();
    assert_eq!(records.len() as u64, resumed.tally.triggers);
    println!("{} parts told, {} recorded, 20 kills", told.len(), records.len());
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
