//! The Modbus wire against clients that we did not write: pymodbus plays the PLC, mbpoll (libmodbus) the
//! person with a notebook.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use inspectd::frame::PartId;
use inspectd::output::modbus::{Config, Modbus};
use inspectd::output::{Controls, RejectOutput};
use inspectd::telemetry::Progress;
use inspectd::trigger::{self, Wait};

use super::peers::{program, python_with};
use super::{SetAtEnd, outcome, status};

#[test]
fn pymodbus_reads_what_the_plc_is_promised() {
    let Some(python) = python_with("pymodbus") else { return };
    // The peer sees it fresh after one write, however slow the machine.
    let plc_heartbeat_ms = 5000;
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let config = Config { listen, plc_heartbeat_ms, ..Config::default() };
    let mut wire = Modbus::bind(&config, Controls::default()).unwrap();
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

#[test]
fn pymodbus_triggers_parts_and_takes_held_results() {
    let Some(python) = python_with("pymodbus") else { return };
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let (port, triggers) = trigger::port(Wait { picture_within_ms: 50.0, picture_before_ms: 0.0 });
    let controls = Controls::new(vec![None, Some(port)]);
    let mut wire = Modbus::bind(&Config { listen, ..Config::default() }, controls).unwrap();
    let service = wire.service().unwrap();
    let address = wire.local_addr();
    let arguments = [address.ip().to_string(), address.port().to_string()];
    let mut peer = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/modbus_trigger_peer.py"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = peer.stdin.take().unwrap();
    let commands = BufReader::new(peer.stdout.take().unwrap());
    let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let verdict = std::thread::scope(|threads| {
        let _stops = (SetAtEnd(&stop), SetAtEnd(&over));
        threads.spawn(|| service(&stop, &Progress::default()));
        // Stands in for the camera thread: each trigger is a part, and takes a while.
        threads.spawn(|| {
            let mut part = 0;
            triggers.set_ready(true);
            while !over.load(Ordering::Relaxed) {
                let Ok(asked) = triggers.asked.recv_timeout(Duration::from_millis(10)) else {
                    continue;
                };
                part += 1;
                if !asked.in_time {
                    triggers.count_missed();
                }
                asked.answer(PartId(part));
                // The twelfth comes while the camera is busy with the eleventh.
                if part == 11 {
                    let next = triggers.asked.recv_timeout(Duration::from_secs(30)).unwrap();
                    assert!(!next.in_time);
                    part += 1;
                    triggers.count_missed();
                    next.answer(PartId(part));
                    next.exposed();
                } else {
                    std::thread::sleep(Duration::from_millis(5));
                }
                asked.exposed();
                triggers.set_ready(true);
            }
        });
        let (told, tell) = mpsc::channel();
        threads
            .spawn(move || commands.lines().map_while(Result::ok).try_for_each(|c| told.send(c)));
        let mut published = 0;
        loop {
            let command = match tell.recv_timeout(Duration::from_millis(100)) {
                Ok(command) => command,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    wire.beat(&status()).unwrap();
                    continue;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            let count: u64 = command.strip_prefix("publish ").unwrap().parse().unwrap();
            for _ in 0..count {
                published += 1;
                wire.signal(&outcome(published)).unwrap();
            }
            wire.beat(&status()).unwrap();
            if writeln!(answers, "ok").is_err() {
                break;
            }
        }
        drop(answers);
        peer.wait()
    });
    assert!(verdict.unwrap().success(), "see the peer's words above");
}

/// What mbpoll reads, number by number; values to write are last in `arguments`.
fn mbpoll(program: &str, line: SocketAddr, arguments: &[&str]) -> Vec<String> {
    let port = line.port().to_string();
    let (reading, values) = arguments.split_at(arguments.iter().position(|a| *a == "=").unwrap());
    let run = Command::new(program)
        .args(["-m", "tcp", "-0", "-1", "-B", "-o", "10", "-p", &port])
        .args(reading)
        .arg(line.ip().to_string())
        .args(&values[1..])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    // "[101]: \t0x0001"
    said.lines()
        .filter_map(|line| Some(line.strip_prefix('[')?.split_once("]:")?.1.trim().to_owned()))
        .collect()
}

/// The numbers are those of docs/plc.md.
#[test]
fn mbpoll_reads_and_acknowledges() {
    let Some(mbpoll_at) = program("mbpoll") else { return };
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let mut wire =
        Modbus::bind(&Config { listen, ..Config::default() }, Controls::default()).unwrap();
    let service = wire.service().unwrap();
    let line = wire.local_addr();
    let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|threads| {
        let _stops = (SetAtEnd(&stop), SetAtEnd(&over));
        threads.spawn(|| service(&stop, &Progress::default()));
        for nth in 1..=7 {
            wire.signal(&outcome(nth)).unwrap();
        }
        threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                wire.beat(&status()).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let read = |arguments: &[&str]| mbpoll(&mbpoll_at, line, arguments);
        // The beat goes through another thread; the results came before it.
        let shows = |_| {
            std::thread::sleep(Duration::from_millis(50));
            read(&["-t", "4", "-r", "106", "="]) == ["7"]
        };
        assert!((0..600).any(shows), "the seventh result never shows");
        assert_eq!(read(&["-t", "4", "-r", "100", "="]), ["2"], "the map's version");
        assert_eq!(read(&["-t", "3", "-r", "100", "="]), ["2"], "as an input register too");
        assert_eq!(read(&["-t", "4:int", "-r", "104", "="]), ["70001"], "the epoch");
        assert_eq!(read(&["-t", "1", "-r", "0", "="]), ["1"], "READY as a discrete input");
        assert_eq!(read(&["-t", "0", "-r", "0", "="]), ["1"], "and as a coil");
        // The fifth result, in its slot of the ring: sequence, FAIL, anomaly, camera; its score.
        let slot = (1000 + 4 * 32).to_string();
        assert_eq!(read(&["-t", "4", "-r", &slot, "-c", "4", "="]), ["5", "2", "1", "4"]);
        let score = (1000 + 4 * 32 + 8).to_string();
        assert_eq!(read(&["-t", "4:float", "-r", &score, "="]), ["0.625"]);
        let waiting = || read(&["-t", "4", "-r", "107", "="]);
        assert_eq!(waiting(), ["7"]);
        for (acknowledged, left) in [("3", "4"), ("3", "4"), ("7", "0"), ("7", "0")] {
            read(&["-t", "4", "-r", "2", "=", acknowledged]);
            assert_eq!(waiting(), [left], "after {acknowledged}");
        }
    });
}
