//! The OPC UA wire against clients that we did not write: asyncua's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use inspectd::frame::PartId;
use inspectd::output::opcua::{Camera, Config, Surroundings, bind};
use inspectd::output::{Controls, LineState, LineStatus, RejectOutput, Tally};
use inspectd::telemetry::Progress;
use inspectd::tracker::{Alarm, Alarms};
use inspectd::trigger;
use inspectd::verdict::Verdict;
use serde_json::{Value, json};

use super::peers::{Peer, free_port, python_with};
use super::{SetAtEnd, outcome, status};

/// Far beyond what any wait here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server's place: its port, its folder of keys and its users.
struct Place {
    folder: tempfile::TempDir,
    port: u16,
    python: String,
}

impl Place {
    fn new() -> Option<Place> {
        let python = python_with("asyncua")?;
        let folder = tempfile::tempdir().unwrap();
        for user in ["scada", "viewer"] {
            fs::write(folder.path().join(user), format!("secret of {user}\n")).unwrap();
            fs::create_dir(folder.path().join(format!("keys of {user}"))).unwrap();
        }
        Some(Place { folder, port: free_port(), python })
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn wire(&self, controls: Controls) -> Box<dyn RejectOutput> {
        let text = format!(
            "listen = \"127.0.0.1:{}\"\npki_folder = \"{}\"\n\
             [[user]]\nname = \"scada\"\npassword_file = \"{}\"\ncommands = true\n\
             [[user]]\nname = \"viewer\"\npassword_file = \"{}\"",
            self.port,
            self.path("pki"),
            self.path("scada"),
            self.path("viewer")
        );
        let config: Config = toml::from_str(&text).unwrap();
        let camera = |name: &str| Camera { name: name.into(), bundle: "bottle".into() };
        // The fifth is the one that the results are of.
        let cameras = ["left", "right", "top", "bottom", "back"].map(camera).into();
        bind(&config, Surroundings { line: "line3".to_owned(), cameras, controls }).unwrap()
    }

    fn peer(&self, mode: &str, user: &str, count: u64) -> Peer {
        let arguments = [
            mode.to_owned(),
            format!("opc.tcp://127.0.0.1:{}/", self.port),
            self.path("pki"),
            self.path("keys of scada"),
            user.to_owned(),
            format!("secret of {user}"),
            count.to_string(),
        ];
        Peer::start(&self.python, "opcua_peer.py", &arguments)
    }
}

fn hear(peer: &Peer) -> Value {
    serde_json::from_str(&peer.hear(PATIENCE)).unwrap()
}

fn ends_well(mut peer: Peer) {
    assert!(peer.child.wait().unwrap().success(), "see the peer's words above");
}

/// The next that a watching peer tells of is the `nth` result.
fn has_heard(peer: &Peer, nth: u64) {
    let told = loop {
        let told = hear(peer);
        if told.get("state").is_none() {
            break told;
        }
    };
    let (want, told) = (outcome(nth), &told["result"]);
    assert_eq!(told["part"], want.part.0, "{told}");
    let is_accept = matches!(want.verdict, Verdict::Accept);
    assert_eq!(told["verdict"], if is_accept { "accept" } else { "reject" }, "{told}");
    assert_eq!(told["score"], json!(want.score), "{told}");
}

/// Waits for a state that a watching peer tells of.
fn has_heard_state(peer: &Peer, number: u32) {
    while hear(peer)["state"] != number {}
}

#[expect(clippy::disallowed_methods, reason = "a test's own stopwatch")]
fn clock() -> Instant {
    Instant::now()
}

/// Results at the rate that a line has, with its beats.
fn publish(wire: &mut Box<dyn RejectOutput>, results: std::ops::RangeInclusive<u64>) {
    for nth in results {
        let begun = clock();
        wire.signal(&outcome(nth)).unwrap();
        if nth % 10 == 0 {
            wire.beat(&status()).unwrap();
        }
        assert!(begun.elapsed() < Duration::from_millis(500), "the output thread was held up");
        thread::sleep(Duration::from_millis(2));
    }
    wire.beat(&status()).unwrap();
}

fn is_private(path: &Path) -> bool {
    fs::metadata(path).unwrap().permissions().mode() & 0o077 == 0
}

#[test]
fn clients_see_every_result_and_only_who_may_commands() {
    let Some(place) = Place::new() else { return };
    let wait = trigger::Wait { picture_within_ms: 50.0, picture_before_ms: 0.0 };
    let (port, triggers) = trigger::port(wait);
    triggers.set_ready(true);
    let controls = Controls::new(vec![None, Some(port), None, None, None]);
    let mut wire = place.wire(controls.clone());
    assert!(is_private(&place.folder.path().join("pki/private/private.pem")));
    assert!(is_private(&place.folder.path().join("pki/private")));
    let certificate = fs::read(place.folder.path().join("pki/own/cert.der")).unwrap();
    let service = wire.service().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        let stops = SetAtEnd(&stop);
        let served = threads.spawn(|| service(&stop, &Progress::default()));
        let peer = place.peer("enter", "scada", 0);
        for why in ["untrusted", "anonymous", "password", "user", "unsecured"] {
            let said = hear(&peer);
            assert_eq!(said["refused"], why, "{said}");
        }
        for _ in 0..2 {
            let said = hear(&peer);
            let known = said["namespaces"].as_array().unwrap();
            assert!(known.contains(&"http://opcfoundation.org/UA/MachineVision".into()), "{said}");
        }
        ends_well(peer);

        // Each result is told, in order; so is each state.
        let peer = place.peer("watch", "scada", 430);
        assert_eq!(hear(&peer), json!({"watching": true}));
        publish(&mut wire, 1..=30);
        (1..=30).for_each(|nth| has_heard(&peer, nth));
        for (state, number) in [(LineState::Ready, 6), (LineState::SingleExecution, 7)] {
            wire.beat(&LineStatus { state, ..status() }).unwrap();
            has_heard_state(&peer, number);
        }

        // One that stands still holds up nobody.
        let frozen = place.peer("watch", "viewer", 430);
        assert_eq!(hear(&frozen), json!({"watching": true}));
        frozen.signal("-STOP");
        publish(&mut wire, 31..=430);
        (31..=430).for_each(|nth| has_heard(&peer, nth));
        ends_well(peer);

        let tally = Tally { triggers: 430, accepted: 300, rejected: [80, 0, 40, 0, 0, 0, 0, 0] };
        let mut alarms = Alarms::default();
        alarms.raise(Alarm::BinFull);
        wire.beat(&LineStatus { tally, alarms, ..status() }).unwrap();
        thread::sleep(Duration::from_millis(200));

        let newest = outcome(430).part.0;
        let peer = place.peer("ask", "scada", newest);
        let kinds = hear(&peer);
        for (path, kind) in [
            ("VisionSystem", "VisionSystemType"),
            ("VisionSystem/VisionStateMachine", "VisionStateMachineType"),
            ("VisionSystem/ResultManagement/Results", "ResultFolderType"),
            ("VisionSystem/ResultManagement/Results/Latest", "ResultType"),
        ] {
            assert!(kinds["kinds"][path].as_str().unwrap().ends_with(kind), "{kinds}");
        }
        let line = &hear(&peer)["line"];
        assert_eq!(line["Epoch"], status().epoch, "{line}");
        let counts = ["Triggers", "Accepted", "Rejected", "InFlight"].map(|name| &line[name]);
        assert_eq!(counts, [&json!(430), &json!(300), &json!(120), &json!(10)], "{line}");
        assert_eq!(line["CamerasUp"], json!([true, false]), "{line}");
        assert_eq!(line["Cameras"][4], "back", "{line}");
        assert_eq!(line["Alarms"], json!(["bin_full"]), "{line}");
        assert_eq!(line["MissedResults"], 0, "{line}");
        assert!(line["Heartbeat"].as_u64().unwrap() > 40, "{line}");

        // The camera waits for one trigger; the next finds it busy.
        for (part, missed) in [(77, 0), (78, 1)] {
            let asked = triggers.asked.recv_timeout(PATIENCE).unwrap();
            asked.answer(PartId(part));
            assert_eq!(hear(&peer), json!({"started": part, "missed": missed}));
        }
        assert_eq!(hear(&peer), json!({"confirmed": true}));
        assert_eq!(controls.alarms_cleared(), 1);
        println!("names and numbers compared with the NodeSet: {}", hear(&peer)["compared"]);
        ends_well(peer);

        let peer = place.peer("look", "viewer", newest);
        assert_eq!(hear(&peer), json!({"looked": true}));
        ends_well(peer);
        assert_eq!(controls.alarms_cleared(), 1);
        assert!(triggers.asked.try_recv().is_err(), "somebody who may only look has triggered");

        // It is told of the end, and a client that stands still does not hold that up.
        let peer = place.peer("watch", "scada", 1000);
        assert_eq!(hear(&peer), json!({"watching": true}));
        wire.beat(&LineStatus { state: LineState::Initialized, ..status() }).unwrap();
        let begun = clock();
        drop(stops);
        served.join().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        has_heard_state(&peer, 5);
    });

    // Started again it is who it was, and its clients need not be trusted anew.
    let mut wire = place.wire(Controls::default());
    assert_eq!(fs::read(place.folder.path().join("pki/own/cert.der")).unwrap(), certificate);
    let service = wire.service().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        let _stops = SetAtEnd(&stop);
        threads.spawn(|| service(&stop, &Progress::default()));
        let peer = place.peer("watch", "viewer", 5);
        assert_eq!(hear(&peer), json!({"watching": true}));
        publish(&mut wire, 431..=435);
        (431..=435).for_each(|nth| has_heard(&peer, nth));
        ends_well(peer);
    });
}

#[test]
fn a_port_that_is_taken_and_half_a_key_are_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pki = folder.path().join("pki");
    let text = format!("anonymous = true\npki_folder = \"{}\"", pki.display());
    let mut config: Config = toml::from_str(&text).unwrap();
    let refusal = |config: &Config| {
        let (line, controls) = ("line3".to_owned(), Controls::default());
        let line = Surroundings { line, cameras: Vec::new(), controls };
        format!("{:#}", bind(config, line).err().unwrap())
    };
    config.listen = taken.local_addr().unwrap();
    let error = refusal(&config);
    assert!(error.contains(&format!("output.opcua.listen = \"{}\"", config.listen)), "{error}");
    config.listen.set_port(0);
    fs::create_dir_all(pki.join("own")).unwrap();
    fs::write(pki.join("own/cert.der"), "half").unwrap();
    let error = refusal(&config);
    assert!(error.contains("one is missing"), "{error}");
}
