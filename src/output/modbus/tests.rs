//! The wire on real sockets, with peers that misbehave.

use std::net::TcpStream as Std;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use super::*;
use crate::frame::{FrameId, PartId};
use crate::output::handover::ROOM;
use crate::output::{LineState, Tally};
use crate::verdict::Verdict;

struct Running {
    wire: Modbus,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn config() -> Config {
    Config { listen: (Ipv4Addr::LOCALHOST, 0).into(), ..Config::default() }
}

fn run(config: &Config) -> Running {
    let mut wire = Modbus::bind(config, Controls::default()).unwrap();
    let service = wire.service().unwrap();
    start(wire, service)
}

#[expect(clippy::disallowed_methods, reason = "tests play the pipeline")]
fn start(wire: Modbus, service: Service) -> Running {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = thread::spawn(move || service(&stopped, &Progress::default()));
    Running { wire, stop, thread: Some(thread) }
}

fn connect(running: &Running) -> Std {
    let socket = Std::connect(running.wire.local_addr()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

const READ_NEWEST: [u8; 12] = [0, 9, 0, 0, 0, 6, 1, 3, 0, map::NEWEST_SEQ as u8, 0, 1];

/// The newest sequence number, asked for over `socket`.
fn newest(socket: &mut Std) -> u16 {
    socket.write_all(&READ_NEWEST).unwrap();
    let mut reply = [0; 11];
    socket.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..9], [0, 9, 0, 0, 0, 5, 1, 3, 2]);
    u16::from_be_bytes([reply[9], reply[10]])
}

fn is_closed(socket: &mut Std) -> bool {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

fn outcome(part: u64) -> Outcome {
    Outcome {
        part: PartId(part),
        frame: FrameId { camera: 0, seq: part },
        camera: Arc::from("left"),
        name: Arc::from("1.png"),
        verdict: Verdict::Accept,
        score: None,
        threshold: None,
        region: None,
        position: None,
        latency: Duration::ZERO,
        triggered_at: SystemTime::UNIX_EPOCH,
        image: Some(PathBuf::new()),
        reason: None,
        truth: None,
    }
}

fn status(state: LineState) -> LineStatus {
    LineStatus {
        state,
        epoch: 1,
        tally: Tally::default(),
        late_verdicts: 0,
        cameras_up: vec![],
        alarms: Default::default(),
        evidence_lost: false,
    }
}

#[test]
fn a_signal_is_read_by_every_client() {
    let mut running = run(&config());
    let (mut one, mut two) = (connect(&running), connect(&running));
    for part in 1..=50 {
        running.wire.signal(&outcome(part)).unwrap();
        for socket in [&mut one, &mut two] {
            // A request that overtakes the signal within one turn of the loop sees the one before.
            let seen = (0..1000).any(|_| newest(socket) == part as u16);
            assert!(seen, "part {part}");
        }
    }
}

#[test]
fn a_request_may_come_byte_by_byte_or_many_at_once() {
    let running = run(&config());
    let mut socket = connect(&running);
    for byte in READ_NEWEST {
        socket.write_all(&[byte]).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    let mut reply = [0; 11];
    socket.read_exact(&mut reply).unwrap();
    socket.write_all(&READ_NEWEST.repeat(500)).unwrap();
    for _ in 0..500 {
        socket.read_exact(&mut reply).unwrap();
        assert_eq!(reply, [0, 9, 0, 0, 0, 5, 1, 3, 2, 0, 0]);
    }
}

#[test]
fn garbage_closes_the_connection_and_only_that() {
    let running = run(&config());
    let mut good = connect(&running);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 1, 0, 0, 0, 255], &[255; 5000]] {
        let mut bad = connect(&running);
        bad.write_all(garbage).unwrap();
        assert!(is_closed(&mut bad), "{garbage:?}");
        assert_eq!(newest(&mut good), 0);
    }
}

#[test]
fn a_client_that_reads_nothing_stalls_nobody() {
    let running = run(&config());
    let mut deaf = connect(&running);
    deaf.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    // The largest answer to the smallest question, until both directions are full.
    let request = [0, 9, 0, 0, 0, 6, 1, 3, 0, 100, 0, 125].repeat(1000);
    while deaf.write_all(&request).is_ok() {}
    let mut good = connect(&running);
    for _ in 0..100 {
        newest(&mut good);
    }
}

#[test]
fn silent_and_slow_clients_are_closed_and_make_room() {
    let running = run(&Config { idle_s: 1.0, ..config() });
    let mut silent = connect(&running);
    let mut slow = connect(&running);
    let mut good = connect(&running);
    for round in 0..30 {
        // Zeros on and on: the header is never whole. Refused means that it was closed already.
        let _refused = slow.write_all(if round < 5 { &[0] } else { &[] });
        newest(&mut good);
        thread::sleep(Duration::from_millis(50));
    }
    assert!(is_closed(&mut silent));
    assert!(is_closed(&mut slow));
    assert_eq!(newest(&mut good), 0);
}

#[test]
fn a_full_house_refuses_until_somebody_has_been_silent() {
    let running = run(&Config { max_clients: 2, ..config() });
    let (mut one, mut two) = (connect(&running), connect(&running));
    assert_eq!((newest(&mut one), newest(&mut two)), (0, 0));
    assert!(is_closed(&mut connect(&running)), "both are at work");
    let mut left = GIVES_ROOM + Duration::from_millis(200);
    let step = Duration::from_millis(100);
    while !left.is_zero() {
        newest(&mut two);
        thread::sleep(step.min(left));
        left = left.saturating_sub(step);
    }
    assert_eq!(newest(&mut connect(&running)), 0);
    assert!(is_closed(&mut one), "the silent one made room");
    assert_eq!(newest(&mut two), 0);
}

#[test]
fn a_wire_that_stands_still_is_told_and_shows_as_overrun() {
    let mut wire = Modbus::bind(&config(), Controls::default()).unwrap();
    let service = wire.service().unwrap();
    assert!(wire.service().is_none());
    (1..=ROOM as u64).for_each(|part| wire.signal(&outcome(part)).unwrap());
    let error = wire.signal(&outcome(0)).unwrap_err();
    assert!(error.to_string().contains("stands still"), "{error}");
    assert!(wire.beat(&status(LineState::ContinuousExecution)).is_err());
    let mut running = start(wire, service);
    let mut socket = connect(&running);
    assert_eq!(newest(&mut socket), ROOM as u16);
    socket.write_all(&[0, 9, 0, 0, 0, 6, 1, 3, 0, map::OVERRUNS as u8, 0, 4]).unwrap();
    let mut reply = [0; 17];
    socket.read_exact(&mut reply).unwrap();
    // All but the last ring's worth were written over unread, and one never came in.
    let overruns = ROOM as u16 - map::SLOTS + 1;
    assert_eq!(reply[15..], overruns.to_be_bytes());
    running.end();
    let error = running.wire.signal(&outcome(0)).unwrap_err();
    assert!(error.to_string().contains("has ended"), "{error}");
}

/// The line stops right after its last verdicts, and the PLC comes by later.
#[test]
fn after_the_stop_the_plc_reads_the_last_verdicts_and_halted() {
    let mut wire = Modbus::bind(&config(), Controls::default()).unwrap();
    // A test machine may stand still for longer than the line waits.
    wire.server.as_mut().unwrap().farewell = Duration::from_secs(600);
    let service = wire.service().unwrap();
    let mut running = start(wire, service);
    let mut socket = connect(&running);
    assert_eq!(newest(&mut socket), 0);
    (1..=3).for_each(|part| running.wire.signal(&outcome(part)).unwrap());
    running.wire.beat(&status(LineState::Halted)).unwrap();
    running.stop.store(true, Ordering::SeqCst);
    thread::sleep(2 * (PATIENCE + LAST_LOOK));
    assert_eq!(newest(&mut socket), 3);
    socket.write_all(&[0, 9, 0, 0, 0, 6, 1, 3, 0, map::STATE as u8, 0, 1]).unwrap();
    let mut reply = [0; 11];
    socket.read_exact(&mut reply).unwrap();
    assert_eq!(reply[9..], [0, LineState::Halted as u8]);
    let acknowledge = [0, 9, 0, 0, 0, 6, 1, 6, 0, map::ACKNOWLEDGE as u8, 0, 3];
    socket.write_all(&acknowledge).unwrap();
    let mut reply = [0; 12];
    socket.read_exact(&mut reply).unwrap();
    // Long before the ten minutes are over, or this test hangs.
    running.end();
    assert!(is_closed(&mut socket));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
fn the_farewell_ends_after_the_last_acknowledge_or_when_nobody_acknowledges() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut end = End::default();
    assert!(!end.is_due(FAREWELL, false, at(0)));
    assert!(!end.is_due(FAREWELL, false, at(499)));
    assert!(end.is_due(FAREWELL, false, at(500)));
    let mut end = End::default();
    assert!(!end.is_due(FAREWELL, false, at(0)));
    assert!(!end.is_due(FAREWELL, true, at(30)));
    assert!(!end.is_due(FAREWELL, true, at(129)));
    assert!(end.is_due(FAREWELL, true, at(130)));
}

#[test]
fn a_taken_port_is_named() {
    let wire = Modbus::bind(&config(), Controls::default()).unwrap();
    let error =
        Modbus::bind(&Config { listen: wire.local_addr(), ..config() }, Controls::default())
            .err()
            .unwrap();
    let text = format!("{error:#}");
    assert!(text.starts_with(&format!("output.modbus.listen = {}", wire.local_addr())), "{text}");
}

#[test]
fn limits_out_of_range_are_refused_by_name() {
    for (config, key) in [
        (Config { max_clients: 0, ..config() }, "modbus.max_clients"),
        (Config { idle_s: f64::NAN, ..config() }, "modbus.idle_s"),
        (Config { plc_heartbeat_ms: 0, ..config() }, "modbus.plc_heartbeat_ms"),
    ] {
        let error = Modbus::bind(&config, Controls::default()).err().unwrap();
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn the_config_has_defaults_and_knows_its_keys() {
    let config: Config = toml::from_str("unit = 3").unwrap();
    assert_eq!(config.unit, Some(3));
    assert_eq!(config.listen, (Ipv4Addr::LOCALHOST, 1502).into());
    config.check().unwrap();
    assert!(toml::from_str::<Config>("port = 502").is_err());
}
