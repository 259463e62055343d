//! The S7 wire against a PLC that we did not write: python-snap7's server.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use inspectd::output::s7::{Config, S7};
use inspectd::output::{Controls, LineState, LineStatus, RejectOutput};
use inspectd::telemetry::Progress;
use inspectd::verdict::Verdict;

use super::peers::{Peer, free_port, python_with};
use super::{SetAtEnd, outcome, status};

/// Far beyond what any wait here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);
const DB: u16 = 10;

struct Plc(Peer);

impl Plc {
    fn start(python: &str, port: u16, count: u64) -> Plc {
        let numbers = [u64::from(port), u64::from(DB), u64::from(status().epoch), count];
        let plc = Plc(Peer::start(python, "s7_peer.py", &numbers.map(|number| number.to_string())));
        assert_eq!(plc.0.hear(PATIENCE), "listening");
        plc
    }

    /// The next result that its program read is the `nth`.
    fn has_read(&self, nth: u64) {
        let said: serde_json::Value = serde_json::from_str(&self.0.hear(PATIENCE)).unwrap();
        let want = outcome(nth);
        let (result, cause) = match want.verdict {
            Verdict::Accept => (1, 0),
            Verdict::Reject(cause) if want.score.is_some() => (2, cause.code()),
            Verdict::Reject(cause) => (3, cause.code()),
        };
        assert_eq!(said["seq"], nth);
        assert_eq!(said["part"], want.part.0);
        assert_eq!((&said["result"], &said["cause"]), (&result.into(), &cause.into()), "{said}");
        assert_eq!(said["score"], want.score.unwrap_or(0.0), "{said}");
        assert_eq!((&said["camera"], &said["threshold"]), (&4.into(), &2.5.into()), "{said}");
        assert_eq!(said["triggers"], status().tally.triggers, "{said}");
    }
}

#[test]
fn a_siemens_plc_gets_every_result_once_also_after_it_froze() {
    let Some(python) = python_with("snap7") else { return };
    let port = free_port();
    let config: Config = toml::from_str(&format!(
        "address = \"127.0.0.1\"\nport = {port}\ndb = {DB}\ncycle_ms = 5\nplc_heartbeat_ms = 5000"
    ))
    .unwrap();
    let mut wire = S7::new(&config, Controls::default()).unwrap();
    let service = wire.service().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        let stops = SetAtEnd(&stop);
        threads.spawn(|| service(&stop, &Progress::default()));
        let mut published = 0;
        let mut publish = |wire: &mut S7, count: u64| {
            for _ in 0..count {
                published += 1;
                wire.signal(&outcome(published)).unwrap();
            }
            wire.beat(&status()).unwrap();
        };
        // Results that nobody can take yet: the PLC is switched on later.
        publish(&mut wire, 7);
        let mut plc = Plc::start(&python, port, 67);
        let mut next = 1;
        let mut read = |plc: &Plc, count: u64, wire: &mut S7| {
            for _ in 0..count {
                wire.beat(&status()).unwrap();
                plc.has_read(next);
                next += 1;
            }
        };
        // Ready only while beats come.
        for _ in 0..10 {
            wire.beat(&status()).unwrap();
            thread::sleep(Duration::from_millis(50));
        }
        read(&plc, 7, &mut wire);
        publish(&mut wire, 40);
        read(&plc, 40, &mut wire);
        // A PLC that stands still holds up nobody, and misses nothing.
        plc.0.signal("-STOP");
        publish(&mut wire, 20);
        for _ in 0..15 {
            wire.beat(&status()).unwrap();
            thread::sleep(Duration::from_millis(100));
        }
        plc.0.signal("-CONT");
        for _ in 0..20 {
            wire.beat(&status()).unwrap();
            thread::sleep(Duration::from_millis(50));
        }
        read(&plc, 20, &mut wire);
        let halted = LineStatus { state: LineState::Halted, ..status() };
        wire.beat(&halted).unwrap();
        drop(stops);
        assert!(plc.0.child.wait().unwrap().success(), "see the peer's words above");
    });
}
