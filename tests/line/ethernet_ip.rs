//! The EtherNet/IP wire against a PLC that we did not write: icspacket's scanner.

use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use inspectd::frame::PartId;
use inspectd::output::ethernet_ip::{Config, EthernetIp};
use inspectd::output::{Controls, LineState, LineStatus, RejectOutput};
use inspectd::telemetry::Progress;
use inspectd::trigger::{self, Wait};
use inspectd::verdict::Verdict;

use super::peers::{Peer, free_port, python_with};
use super::{SetAtEnd, outcome, status};

/// Far beyond what any wait here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(90);
/// A loopback address of its own: both ends take the same UDP port.
const ADAPTER: &str = "127.0.0.2";
const COUNT: u64 = 12;

#[test]
fn a_scanner_takes_results_and_triggers_and_is_let_in_again() {
    let Some(python) = python_with("icspacket") else { return };
    let port = free_port();
    let io_port = UdpSocket::bind((ADAPTER, 0)).unwrap().local_addr().unwrap().port();
    let config: Config = toml::from_str(&format!(
        "listen = \"{ADAPTER}\"\nport = {port}\nio_port = {io_port}\nplc_heartbeat_ms = 5000"
    ))
    .unwrap();
    let (asked, triggers) = trigger::port(Wait { picture_within_ms: 50.0, picture_before_ms: 0.0 });
    triggers.set_ready(true);
    let mut wire = EthernetIp::bind(&config, Controls::new(vec![Some(asked)])).unwrap();
    let service = wire.service().unwrap();
    let (stop, no_more_triggers) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|threads| {
        let stops = SetAtEnd(&stop);
        threads.spawn(|| service(&stop, &Progress::default()));
        // The camera: its parts are 1001 and 1002, and it was asked for no other.
        let ends = SetAtEnd(&no_more_triggers);
        let camera = threads.spawn(|| {
            let mut part = 1000;
            while !no_more_triggers.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok(asked) = triggers.asked.recv_timeout(Duration::from_millis(10)) {
                    part += 1;
                    asked.answer(PartId(part));
                    triggers.set_ready(true);
                }
            }
            part
        });
        let numbers = [u64::from(port), u64::from(io_port), u64::from(status().epoch), COUNT];
        let arguments: Vec<String> =
            [ADAPTER.to_owned()].into_iter().chain(numbers.map(|n| n.to_string())).collect();
        let mut plc = Peer::start(&python, "ethernet_ip.py", &arguments);
        // Its next word, while the line's heart goes on.
        let hear = |plc: &Peer, wire: &mut EthernetIp, status: &LineStatus| {
            for _ in 0..PATIENCE.as_millis() / 50 {
                wire.beat(status).unwrap();
                if let Some(line) = plc.hears_within(Duration::from_millis(50)) {
                    return serde_json::from_str::<serde_json::Value>(&line).unwrap();
                }
            }
            panic!("the scanner says nothing; see its words above")
        };
        assert_eq!(hear(&plc, &mut wire, &status())["at"], "ready");
        // Eight are held, one of which may be shown still; the others come when there is room.
        let mut published = 0;
        for nth in 1..=COUNT {
            while published < COUNT.min(nth + 6) {
                published += 1;
                wire.signal(&outcome(published)).unwrap();
            }
            let said = hear(&plc, &mut wire, &status());
            let want = outcome(nth);
            let (result, cause) = match want.verdict {
                Verdict::Accept => (1, 0),
                Verdict::Reject(cause) if want.score.is_some() => (2, cause.code()),
                Verdict::Reject(cause) => (3, cause.code()),
            };
            assert_eq!((&said["at"], &said["seq"]), (&"result".into(), &nth.into()), "{said}");
            assert_eq!(
                (&said["result"], &said["cause"]),
                (&result.into(), &cause.into()),
                "{said}"
            );
            assert_eq!(
                (&said["part"], &said["camera"]),
                (&want.part.0.into(), &4.into()),
                "{said}"
            );
            assert_eq!(said["score"], want.score.unwrap_or(0.0), "{said}");
            assert_eq!(said["threshold"], 2.5, "{said}");
            let region = want.region.map_or([0; 4], |r| [r.x, r.y, r.width, r.height]);
            let told = ["x", "y", "width", "height"].map(|key| said[key].as_u64().unwrap() as u32);
            assert_eq!(told, region, "{said}");
            assert_eq!(said["latency_us"], 100_000 + nth, "{said}");
            assert_eq!(said["epoch"], status().epoch, "{said}");
            assert_eq!(said["triggered_ms"], 1_777_000_000_000 + nth, "{said}");
        }
        let part = hear(&plc, &mut wire, &status());
        assert_eq!((&part["at"], &part["part"]), (&"part".into(), &1001.into()), "{part}");
        let idle = hear(&plc, &mut wire, &status());
        assert_eq!((&idle["at"], &idle["part"]), (&"idle".into(), &1002.into()), "{idle}");
        wire.signal(&outcome(COUNT + 1)).unwrap();
        assert_eq!(hear(&plc, &mut wire, &status())["at"], "silent");
        assert_eq!(hear(&plc, &mut wire, &status())["at"], "back");
        assert_eq!(hear(&plc, &mut wire, &status())["seq"], COUNT + 1);
        let halted = LineStatus { state: LineState::Halted, ..status() };
        assert_eq!(hear(&plc, &mut wire, &halted)["at"], "halted");
        assert!(plc.child.wait().unwrap().success(), "see the scanner's words above");
        drop((stops, ends));
        assert_eq!(camera.join().unwrap(), 1002, "a trigger that the scanner did not mean");
    });
}
