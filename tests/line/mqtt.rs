//! The MQTT wire against a broker and a subscriber that we did not write: mosquitto's.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use inspectd::output::RejectOutput;
use inspectd::output::mqtt::{Config, Mqtt};
use inspectd::telemetry::Progress;

use super::peers::{free_port, program};
use super::{SetAtEnd, outcome, status};

/// Far beyond what any wait here takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "plant/line3/inspectd";

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Peer {
    /// Ends it in order, so that it writes down its sessions.
    fn end(mut self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        self.0.wait().unwrap();
    }
}

fn broker(program: &str, folder: &Path, port: u16) -> Peer {
    let config = folder.join("mosquitto.conf");
    let text = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n\
         persistence_location {}/\nuser root\n",
        folder.display()
    );
    std::fs::write(&config, text).unwrap();
    let quiet = || Stdio::null();
    let child =
        Command::new(program).arg("-c").arg(&config).stderr(quiet()).stdout(quiet()).spawn();
    let broker = Peer(child.unwrap());
    for _ in 0..PATIENCE.as_millis() / 20 {
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return broker;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("{program} does not listen on {port}");
}

/// Everything said below the topic: `<last part> <message>`.
fn subscriber(program: &str, port: u16) -> (Peer, Receiver<String>) {
    let mut child = Command::new(program)
        // A session that outlives both ends of the connection.
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-i", "reader", "-c", "-q", "1"])
        .args(["-v", "-t", &format!("{TOPIC}/#")])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (told, said) = mpsc::channel();
    #[expect(clippy::disallowed_methods, reason = "a test's own reader")]
    thread::spawn(move || {
        lines.map_while(Result::ok).try_for_each(|line| {
            let said = line.strip_prefix(TOPIC).and_then(|rest| rest.strip_prefix('/'));
            told.send(said.unwrap_or(&line).to_owned())
        })
    });
    (Peer(child), said)
}

/// A cable between wire and broker that can be pulled.
struct Cable {
    port: u16,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cable {
    fn to(broker: u16) -> Cable {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let ends = Arc::new(Mutex::new(Vec::new()));
        let all = ends.clone();
        #[expect(clippy::disallowed_methods, reason = "a test's own proxy")]
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else { continue };
                let ways = [(&near, &far), (&far, &near)];
                for (from, to) in
                    ways.map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()))
                {
                    thread::spawn(move || {
                        // Whoever ends first ends both.
                        let _ = io::copy(&mut &from, &mut &to);
                        let _ = from.shutdown(Shutdown::Both);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                all.lock().unwrap().extend([near, far]);
            }
        });
        Cable { port, ends }
    }

    fn pull(&self) {
        for end in self.ends.lock().unwrap().drain(..) {
            // It may be closed already.
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// Waits until `wanted` is said; what else was said meanwhile is given back.
fn hear(said: &Receiver<String>, wanted: &str) -> Vec<String> {
    let mut others = Vec::new();
    loop {
        let line = said.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{wanted}: {others:?}"));
        if line == wanted {
            return others;
        }
        others.push(line);
    }
}

/// Waits for the results up to `last`, each at least once and in order.
fn hear_results(said: &Receiver<String>, first: u64, last: u64) {
    let mut next = first;
    while next <= last {
        let line = said.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("result {next}"));
        let Some(json) = line.strip_prefix("result ") else { continue };
        let result: serde_json::Value = serde_json::from_str(json).unwrap();
        let nth = result["part"].as_u64().unwrap() - outcome(0).part.0;
        assert!(nth <= next, "result {nth} before {next}");
        if nth == next {
            let want = outcome(nth);
            assert_eq!(result["score"].as_f64(), want.score.map(f64::from), "{result}");
            let rejected = want.verdict != inspectd::verdict::Verdict::Accept;
            assert_eq!(result["verdict"], if rejected { "reject" } else { "accept" }, "{result}");
            next += 1;
        }
    }
}

#[test]
fn a_broker_hears_every_result_and_when_the_line_is_gone() {
    let (Some(mosquitto), Some(sub)) = (program("mosquitto"), program("mosquitto_sub")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let first_broker = broker(&mosquitto, folder.path(), port);
    let (_reader, said) = subscriber(&sub, port);
    let cable = Cable::to(port);
    let config: Config = toml::from_str(&format!(
        "host = \"127.0.0.1\"\nport = {}\ntopic = \"{TOPIC}\"",
        cable.port
    ))
    .unwrap();
    let mut wire = Mqtt::new(&config).unwrap();
    let service = wire.service().unwrap();
    // Known to the broker before anything is said that it would not keep.
    thread::sleep(Duration::from_millis(500));
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        let stops = SetAtEnd(&stop);
        let served = threads.spawn(|| service(&stop, &Progress::default()));
        let publish = |wire: &mut Mqtt, results: std::ops::RangeInclusive<u64>| {
            for nth in results {
                wire.signal(&outcome(nth)).unwrap();
            }
            wire.beat(&status()).unwrap();
        };
        publish(&mut wire, 1..=5);
        hear(&said, "online online");
        hear_results(&said, 1, 5);

        // A cut cable is a line that is gone, until it is there again.
        cable.pull();
        hear(&said, "online offline");
        publish(&mut wire, 6..=8);
        hear(&said, "online online");
        hear_results(&said, 6, 8);

        // A broker that is away loses nothing.
        first_broker.end();
        publish(&mut wire, 9..=12);
        let _second_broker = broker(&mosquitto, folder.path(), port);
        hear_results(&said, 9, 12);

        wire.beat(&status()).unwrap();
        let line = loop {
            let line = said.recv_timeout(PATIENCE).unwrap();
            if let Some(json) = line.strip_prefix("status ") {
                break json.to_owned();
            }
            wire.beat(&status()).unwrap();
        };
        let shown: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(shown["state"], "continuous_execution", "{shown}");
        assert_eq!(shown["triggers"], status().tally.triggers, "{shown}");
        assert_eq!((&shown["epoch"], &shown["lost"]), (&status().epoch.into(), &0.into()));

        drop(stops);
        served.join().unwrap();
        hear(&said, "online offline");
    });
}
