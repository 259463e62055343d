//! The real binary: taught on rendered parts, run on a folder of pictures, killed, restarted,
//! reloaded, stopped; its log and its ledger must tell one story.

#![allow(clippy::unwrap_used)]

mod peers;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use inspectd::camera::folder;
use inspectd::camera::pattern;
use inspectd::detector::bundle;
use inspectd::ledger;
use inspectd::nn::engine::{self, Engine};
use inspectd::verdict::{Cause, Verdict};

/// Far beyond what any wait here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(120);

fn inspectd() -> Command {
    Command::new(env!("CARGO_BIN_EXE_inspectd"))
}

/// A plant in a temporary folder: good parts, a bundle taught on them, parts for the line.
struct Plant {
    folder: tempfile::TempDir,
    parts: u64,
}

impl Plant {
    fn new(parts: u64) -> Plant {
        let folder = tempfile::tempdir().unwrap();
        let source = |seed, defect_rate| pattern::Config {
            width: 160,
            height: 160,
            seed,
            defect_rate,
            ..pattern::Config::default()
        };
        for (name, count, config) in
            [("goods", 24, source(1, 0.0)), ("parts", parts, source(2, 0.3))]
        {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            for index in 0..count {
                let (picture, _) = pattern::render(&config, index);
                picture.save(path.join(format!("{index:03}.png"))).unwrap();
            }
        }
        let plant = Plant { folder, parts };
        let taught = inspectd()
            .args(["teach", "--prototypes", "200", "--good"])
            .arg(plant.at("goods"))
            .arg("--out")
            .arg(plant.at("bundle"))
            .output()
            .unwrap();
        assert!(taught.status.success(), "{}", String::from_utf8_lossy(&taught.stderr));
        plant
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self, rate_hz: f64, repeat: bool, limits: &str) -> PathBuf {
        let path = self.at("config.toml");
        let text = format!(
            "
            [line]
            name = 'test'
            bundle = 'bundle'
            [queue]
            frames = 200
            [[camera]]
            name = 'folder'
            source = {{ kind = 'folder', path = 'parts', rate_hz = {rate_hz}, repeat = {repeat} }}
            deadline = {{ travel_ms = 60000 }}
            {limits}
            [ledger]
            folder = 'ledger'
            [archive]
            folder = 'rejects'
            max_gib = 0.1
            accepted_every = 1
            min_free_gib = 0.0
            "
        );
        fs::write(&path, text).unwrap();
        path
    }

    fn records(&self) -> Vec<ledger::Record> {
        ledger::read(&self.at("ledger")).unwrap_or_default()
    }

    fn wait_for_records(&self, count: usize) {
        wait_until(&format!("{count} records"), || self.records().len() >= count);
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let steps = PATIENCE.as_millis() / 20;
    for _ in 0..steps {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("waited {PATIENCE:?} for {what}");
}

/// A running daemon and everything it says.
struct Daemon {
    child: Child,
    said: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Daemon {
    fn start(config: &Path) -> Daemon {
        let mut child = inspectd()
            .args(["--log-level", "debug", "run", "--config"])
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        #[expect(clippy::disallowed_methods, reason = "a test's own reader")]
        let reader = thread::spawn(move || {
            for line in stderr.lines() {
                let mut heard = heard.lock().unwrap();
                heard.push_str(&line.unwrap());
                heard.push('\n');
            }
        });
        Daemon { child, said, reader }
    }

    fn wait_to_hear(&self, words: &str) {
        wait_until(words, || self.said.lock().unwrap().contains(words));
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Waits for its end; says whether it was a success, and the log.
    fn end(mut self) -> (bool, String) {
        let status = self.child.wait().unwrap();
        self.reader.join().unwrap();
        let said = self.said.lock().unwrap().clone();
        (status.success(), said)
    }
}

/// The value of `key` in a `key=value` line; quotes taken off.
fn value<'a>(line: &'a str, key: &str) -> &'a str {
    let start = line.find(&format!(" {key}=")).unwrap() + key.len() + 2;
    let rest = &line[start..];
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap(),
        None => rest.split_whitespace().next().unwrap(),
    }
}

/// Each part that the log speaks a verdict of: part → its line.
fn verdicts(log: &str) -> BTreeMap<u64, String> {
    let mut verdicts = BTreeMap::new();
    for line in
        log.lines().filter(|line| line.contains(" accept part=") || line.contains(" reject part="))
    {
        let part = value(line, "part").parse().unwrap();
        assert!(verdicts.insert(part, line.to_owned()).is_none(), "two verdicts: {line}");
    }
    verdicts
}

#[test]
fn each_picture_of_a_folder_gets_the_verdict_of_its_score() {
    let plant = Plant::new(20);
    let (ended_well, log) = Daemon::start(&plant.config(1000.0, false, "")).end();
    assert!(ended_well, "{log}");
    let told = verdicts(&log);
    assert_eq!(told.len() as u64, plant.parts);

    let mut bundle =
        bundle::load(&plant.at("bundle"), 4, &Engine::new(&engine::Config::default()).unwrap())
            .unwrap();
    let mut rejects = 0;
    for line in told.values() {
        let path = plant.at("parts").join(value(line, "name"));
        let picture = folder::decode(&fs::read(&path).unwrap(), 16).unwrap();
        let score = bundle.detector.detect(&[&picture]).unwrap()[0].score;
        let said: f32 = value(line, "score").parse().unwrap();
        // The line rounds to four decimals; batches sum in another order.
        assert!((said - score).abs() <= 1e-4 + 1e-3 * score, "{said} is not {score}: {line}");
        let reject = score >= bundle.card.threshold.score;
        assert_eq!(line.contains(" reject "), reject, "{score}: {line}");
        if reject {
            rejects += 1;
            assert!(plant.at("rejects").join(value(line, "image")).exists(), "{line}");
        }
    }
    assert!(rejects > 0 && rejects < plant.parts, "both verdicts are seen: {rejects}");
    assert_eq!(plant.records().len() as u64, plant.parts);
}

#[test]
fn what_a_line_kept_is_judged_again() {
    let plant = Plant::new(12);
    let config = plant.config(1000.0, false, "");
    assert!(Daemon::start(&config).end().0);
    let replay = |args: &[&str]| -> serde_json::Value {
        let figures = plant.at("replay.json");
        let output = inspectd()
            .args(["replay", "--config"])
            .arg(&config)
            .arg("--json")
            .arg(&figures)
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&fs::read(figures).unwrap()).unwrap()
    };
    let records = plant.records();
    let rejects = records.iter().filter(|record| record.verdict != Verdict::Accept).count();
    assert!(rejects > 0 && rejects < records.len());

    // The same model and limits say the same.
    let same = replay(&[]);
    let changes = &same["changes"];
    assert_eq!((&same["parts"], &changes["same_reject"]), (&12.into(), &rejects.into()), "{same}");
    assert_eq!(changes["same_accept"], records.len() - rejects, "{same}");
    assert!(same["largest_score_change"].as_f64().unwrap() < 1e-3, "{same}");

    // A limit that nothing reaches turns every reject, and shows them.
    let out = plant.at("flips");
    let place = out.display().to_string();
    let other = replay(&["--threshold", "1e6", "--out", &place]);
    assert_eq!(other["changes"]["reject_to_accept"], rejects, "{other}");
    let list = fs::read_to_string(out.join("flips.jsonl")).unwrap();
    assert_eq!(list.lines().count(), rejects);
    let flip: serde_json::Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&flip["then"]["verdict"], &flip["now"]["threshold"]),
        (&"reject".into(), &1e6.into())
    );
    assert!(image::open(out.join("sheet.png")).unwrap().width() > 100);
}

#[test]
fn kill_9_and_restart_lose_and_double_nothing() {
    let plant = Plant::new(20);
    let config = plant.config(5.0, true, "");
    let mut told = BTreeMap::new();
    for round in 1..=3 {
        let daemon = Daemon::start(&config);
        plant.wait_for_records(plant.records().len() + 12);
        let last = round == 3;
        daemon.signal(if last { "-TERM" } else { "-KILL" });
        let (ended_well, log) = daemon.end();
        assert_eq!(ended_well, last, "{log}");
        for (part, line) in verdicts(&log) {
            assert!(told.insert(part, line).is_none(), "part {part} comes again after a restart");
        }
        let verify = inspectd()
            .args(["ledger", "--folder"])
            .arg(plant.at("ledger"))
            .arg("verify")
            .output()
            .unwrap();
        assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    }

    let mut records = BTreeMap::new();
    for record in plant.records() {
        assert!(records.insert(record.part.0, record).is_none(), "part {} twice", record.part);
    }
    // The log may end before the ledger does when the process is killed, never the other way.
    for (part, line) in &told {
        let accepted = records[part].verdict == Verdict::Accept;
        assert_eq!(accepted, line.contains(" accept "), "ledger against {line}");
    }
    let untold = records.values().filter(|record| !told.contains_key(&record.part.0));
    for record in untold.clone() {
        let interrupted = record.verdict == Verdict::Reject(Cause::Interrupted);
        let before_a_kill = !told.contains_key(&(record.part.0 + 1))
            || record.verdict == Verdict::Reject(Cause::Interrupted);
        assert!(interrupted || before_a_kill, "the log does not know {record:?}");
    }
}

/// A line as a plant has it: pictures as a camera, a PLC that polls, the daemon stopped in order.
#[test]
fn a_plc_reads_every_verdict_once() {
    let Some(python) = peers::python_with("pymodbus") else { return };
    let plant = Plant::new(20);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let wire = format!("output = {{ modbus = {{ listen = '127.0.0.1:{port}' }} }}");
    let config = plant.config(5.0, false, "");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{wire}\n{text}")).unwrap();
    let daemon = Daemon::start(&config);
    let plc = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/plc.py"))
        .args(["127.0.0.1", &port.to_string()])
        .output()
        .unwrap();
    let (ended_well, log) = daemon.end();
    assert!(ended_well, "{log}");
    let complaint = String::from_utf8_lossy(&plc.stderr);
    assert!(plc.status.success(), "{complaint}");

    let records = plant.records();
    assert_eq!(records.len() as u64, plant.parts);
    let read: Vec<serde_json::Value> = String::from_utf8(plc.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(read.len(), records.len(), "{complaint}");
    for (read, record) in read.iter().zip(&records) {
        assert_eq!(read["part"], record.part.0);
        let (result, cause) = match record.verdict {
            Verdict::Accept => (1, 0),
            Verdict::Reject(Cause::Anomaly) => (2, 1),
            Verdict::Reject(cause) => panic!("{cause}: nothing was planted"),
        };
        assert_eq!((&read["result"], &read["cause"]), (&result.into(), &cause.into()), "{read}");
        assert_eq!(read["score"].as_f64().unwrap() as f32, record.score.unwrap());
    }
}

#[test]
fn a_reload_changes_the_threshold_and_a_wrong_file_changes_nothing() {
    let plant = Plant::new(20);
    let lenient = "limits = { threshold = 1e9 }";
    let config = plant.config(5.0, true, lenient);
    let daemon = Daemon::start(&config);
    plant.wait_for_records(8);
    fs::write(&config, "[line]\nnme = 'typo'").unwrap();
    daemon.signal("-HUP");
    daemon.wait_to_hear("reload_failed");
    plant.wait_for_records(plant.records().len() + 8);
    plant.config(5.0, true, "limits = { threshold = 1e-9 }");
    daemon.signal("-HUP");
    wait_until("rejects", || {
        let rejected = |record: &ledger::Record| record.verdict == Verdict::Reject(Cause::Anomaly);
        plant.records().iter().filter(|record| rejected(record)).count() >= 5
    });
    daemon.signal("-TERM");
    let (ended_well, log) = daemon.end();
    assert!(ended_well, "{log}");
    assert!(log.contains("reload_failed") && log.contains("`nme`"), "{log}");

    let records = plant.records();
    let ids: Vec<u64> = records.iter().map(|record| record.part.0).collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>(), "no part is lost");
    let first = records.iter().position(|r| r.verdict != Verdict::Accept).unwrap();
    assert!(first >= 16, "the wrong file changed nothing: {first}");
    for (index, record) in records.iter().enumerate() {
        let verdict = if index < first { Verdict::Accept } else { Verdict::Reject(Cause::Anomaly) };
        let threshold = if index < first { 1e9 } else { 1e-9 };
        assert_eq!((record.verdict, record.threshold), (verdict, Some(threshold)), "{record:?}");
    }
}

#[test]
fn what_cannot_arm_is_refused_with_its_reason() {
    let plant = Plant::new(1);
    let check = |config: &Path| {
        let output = inspectd().args(["check", "--config"]).arg(config).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let config = plant.config(5.0, false, "");
    let text = fs::read_to_string(&config).unwrap();
    let (fine, error) = check(&config);
    assert!(fine, "{error}");

    let put = |text: String| fs::write(&config, text).unwrap();
    put(text.replace("bundle = 'bundle'", "bundle = 'elsewhere'"));
    let (fine, error) = check(&config);
    assert!(!fine && error.contains("elsewhere"), "{error}");
    put(text.replace("travel_ms = 60000", "travel_ms = 60000, travle_ms = 1"));
    let (fine, error) = check(&config);
    assert!(!fine && error.contains("config.toml") && error.contains("travle_ms"), "{error}");

    // A bundle whose weights were touched does not reproduce its golden scores, or its hash.
    put(text);
    let weights = plant.at("bundle").join("weights.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len() - 2;
    bytes[end] ^= 0x7f;
    fs::write(&weights, bytes).unwrap();
    let (fine, error) = check(&config);
    assert!(!fine && error.contains("weights.safetensors"), "{error}");

    let (fine, error) = check(&plant.at("no-such-config.toml"));
    assert!(!fine && error.contains("no-such-config.toml"), "{error}");
}
