//! Remote I/O against a module that we did not write: pymodbus's server.

use std::time::{Duration, Instant};

use inspectd::output::io::{Config, DigitalIo, Inputs};

use super::peers::{Peer, free_port, python_with};

/// Far beyond what any wait here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);
const UNIT: u8 = 3;
const OUTPUTS: u32 = 0b11_1111;

#[expect(clippy::disallowed_methods, reason = "a test's own clock")]
fn now() -> Instant {
    Instant::now()
}

fn module(python: &str, port: u16) -> Peer {
    let peer = Peer::start(python, "remote_io.py", &[port.to_string(), UNIT.to_string()]);
    assert_eq!(peer.hear(PATIENCE), "listening");
    peer
}

fn station(port: u16, keys: &str) -> Box<dyn DigitalIo> {
    let config: Config = toml::from_str(&format!(
        "kind = \"modbus\"\naddress = \"127.0.0.1\"\nport = {port}\ntimeout_ms = 300\n{keys}"
    ))
    .unwrap();
    config.open().unwrap()
}

/// Turns until one works: the machine may be slow, and pauses are kept between attempts.
fn until_up(station: &mut dyn DigitalIo, outputs: u32) -> Inputs {
    let since = now();
    loop {
        match station.exchange(outputs, now()) {
            Ok(inputs) => return inputs,
            Err(error) => assert!(since.elapsed() < PATIENCE, "{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The next change that the module tells.
fn told(peer: &Peer) -> serde_json::Value {
    serde_json::from_str(&peer.hear(PATIENCE)).unwrap()
}

#[test]
fn a_module_gets_outputs_and_gives_inputs_also_after_it_froze_or_was_switched_off() {
    let Some(python) = python_with("pymodbus") else { return };
    let port = free_port();
    let mut station = station(
        port,
        &format!(
            "unit = {UNIT}\noutputs_at = 16\noutputs = 6\ninputs_at = 32\ninputs = 6\nencoder_at = 100\n\
             keep_alive_at = 40\nsafe_mode = {{ at = 80, clear_at = 81 }}\nsafe_on = [1]"
        ),
    );
    // It is switched on later.
    let error = format!("{:#}", station.exchange(0, now()).unwrap_err());
    assert!(error.contains("connecting"), "{error}");
    let peer = module(&python, port);
    let first = until_up(station.as_mut(), 0);
    assert_eq!(first.bits, OUTPUTS);
    // The counter of the module as it was at its first look, and then one step a turn, over its end.
    let mut encoder = first.encoder.unwrap();
    assert_eq!(encoder, 1);
    for outputs in 1..=OUTPUTS {
        let inputs = station.exchange(outputs, now()).unwrap();
        encoder = encoder.wrapping_add(65_537);
        assert_eq!(inputs, Inputs { bits: !outputs & OUTPUTS, encoder: Some(encoder) });
        assert_eq!(told(&peer)["outputs"], outputs);
    }

    // Standing still: each turn ends by its own limit, and its watchdog has fired when it goes on.
    peer.signal("-STOP");
    let since = now();
    let mut late = 0;
    while since.elapsed() < Duration::from_millis(900) {
        let turn = now();
        assert!(station.exchange(0b101, turn).is_err());
        late = late.max(turn.elapsed().as_millis());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(late >= 250, "no turn waited for the module");
    peer.signal("-CONT");
    until_up(station.as_mut(), 0b101);
    assert_eq!(told(&peer), serde_json::json!({ "outputs": 0 }));
    assert_eq!(told(&peer), serde_json::json!({ "latched": true }));
    assert_eq!(told(&peer), serde_json::json!({ "latched": false }));
    assert_eq!(told(&peer), serde_json::json!({ "outputs": 0b101 }));

    // Switched off and on: the outputs are written without being asked for.
    drop(peer);
    assert!(station.exchange(0b110, now()).is_err());
    let peer = module(&python, port);
    until_up(station.as_mut(), 0b110);
    assert_eq!(told(&peer)["outputs"], 0b110);

    drop(station);
    assert_eq!(told(&peer)["outputs"], 0b10, "the safe state");
}

#[test]
fn what_a_module_refuses_is_said_with_the_key() {
    let Some(python) = python_with("pymodbus") else { return };
    let port = free_port();
    let _peer = module(&python, port);
    for (keys, says) in [
        (
            format!("unit = {UNIT}\ninputs_at = 300\ninputs = 1"),
            "io.inputs_at: refused with exception 2",
        ),
        (format!("unit = {UNIT}\nencoder_at = 127"), "io.encoder_at: refused with exception 2"),
        (format!("unit = {}\ninputs = 1", UNIT + 1), "io.inputs_at: refused"),
    ] {
        let mut station = station(port, &keys);
        let error = format!("{:#}", station.exchange(0, now()).unwrap_err());
        assert!(error.contains(says), "{keys}: {error}");
    }
}
