//! The Modbus wire against a client that we did not write: pymodbus plays the PLC.
#![allow(clippy::unwrap_used)]

mod peers;

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use inspectd::frame::{FrameId, PartId};
use inspectd::output::modbus::{Config, Modbus};
use inspectd::output::{LineState, LineStatus, Outcome, RejectOutput, Tally};
use inspectd::telemetry::Progress;
use inspectd::verdict::{Cause, Region, Verdict};

use peers::python_with_pymodbus;

/// What the peer expects of the nth part, counted from 1.
fn outcome(nth: u64) -> Outcome {
    let verdict = match nth {
        nth if nth.is_multiple_of(5) => Verdict::Reject(Cause::Anomaly),
        nth if nth.is_multiple_of(7) => Verdict::Reject(Cause::TooLate),
        _ => Verdict::Accept,
    };
    let scored = verdict != Verdict::Reject(Cause::TooLate);
    Outcome {
        part: PartId((1 << 40) + nth),
        frame: FrameId { camera: 4, seq: nth },
        camera: Arc::from("left"),
        name: Arc::from("1.png"),
        verdict,
        score: scored.then_some(nth as f32 / 8.0),
        threshold: Some(2.5),
        region: scored.then_some(Region { x: nth as u32, y: 70_000, width: 30, height: 40 }),
        latency: Duration::from_micros(100_000 + nth),
        triggered_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_777_000_000_000 + nth),
        image: None,
        reason: None,
        truth: None,
    }
}

fn status() -> LineStatus {
    LineStatus {
        state: LineState::ContinuousExecution,
        epoch: 70_001,
        tally: Tally { triggers: (1 << 35) + 1, ..Tally::default() },
        late_verdicts: 0,
        cameras_up: vec![true, false],
        evidence_lost: false,
    }
}

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn pymodbus_reads_what_the_plc_is_promised() {
    let Some(python) = python_with_pymodbus() else { return };
    // The peer sees it fresh after one write, however slow the machine.
    let plc_heartbeat_ms = 5000;
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let config = Config { listen, plc_heartbeat_ms, ..Config::default() };
    let mut wire = Modbus::bind(&config).unwrap();
    let service = wire.service().unwrap();
    let mut peer = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/modbus_peer.py"))
        .args([wire.local_addr().ip().to_string(), wire.local_addr().port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = peer.stdin.take().unwrap();
    let commands = BufReader::new(peer.stdout.take().unwrap());
    let stop = AtomicBool::new(false);
    let verdict = std::thread::scope(|threads| {
        // Also when an assertion fails below: the service would run on and the test hang.
        let _stops = SetAtEnd(&stop);
        threads.spawn(|| service(&stop, &Progress::default()));
        let (told, tell) = mpsc::channel();
        threads
            .spawn(move || commands.lines().map_while(Result::ok).try_for_each(|c| told.send(c)));
        let (mut beats, mut published) = (false, 0);
        loop {
            let command = match tell.recv_timeout(Duration::from_millis(100)) {
                Ok(command) => command,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if beats {
                        wire.beat(&status()).unwrap();
                    }
                    continue;
                }
                // The peer has ended, well or not.
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            match command.split_once(' ') {
                Some(("publish", count)) => {
                    for _ in 0..count.parse().unwrap_or(0) {
                        published += 1;
                        wire.signal(&outcome(published)).unwrap();
                    }
                    wire.beat(&status()).unwrap();
                }
                Some(("beats", word)) => beats = word == "on",
                _ => panic!("the peer says {command:?}"),
            }
            if writeln!(answers, "ok").is_err() {
                break;
            }
        }
        drop(answers);
        peer.wait()
    });
    assert!(verdict.unwrap().success(), "see the peer's words above");
}
