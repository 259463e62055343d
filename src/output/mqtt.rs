//! Results for whoever looks on: an MQTT client (OASIS MQTT 3.1.1) that publishes every verdict and the
//! state of the line to a broker. No PLC decides by it: what a plant sorts by goes over a wire that the
//! PLC acknowledges.
//!
//! ```text
//! <topic>/result   one JSON object a part, at least once each (QoS 1)
//! <topic>/defect   the same for each defect of a web
//! <topic>/status   the line's state and counters, retained, at most once a second
//! <topic>/online   "online", retained; the broker says "offline" when the daemon is gone (last will)
//! ```
//!
//! The wire has a thread of its own ([`Mqtt::service`]). While the broker is away results wait in memory,
//! up to a number; beyond, the oldest go, and the status says how many. The ledger has them all.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, LastWill, MqttOptions, Packet, QoS};
use serde::{Deserialize, Serialize};
use tokio::runtime;
use tokio::time::{sleep, timeout};

use super::handover::{Handover, Inbox, handover};
use super::{LineState, LineStatus, Outcome, Recorded, RejectOutput, Service};
use crate::journal::plain;
use crate::telemetry::Progress;
use crate::verdict::Cause;
use crate::verdict::web::WebDefect;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name or address of the broker.
    pub host: String,
    #[serde(default = "default_port")]
    pub port: u16,
    /// What all topics begin with, such as `plant/line3/inspectd`.
    pub topic: String,
    /// How the broker tells its clients apart: one name for one daemon.
    #[serde(default = "default_client_id")]
    pub client_id: String,
    pub user: Option<String>,
    /// File whose first line is the password; kept out of the config, which more people read.
    pub password_file: Option<std::path::PathBuf>,
    /// The broker says "offline" when it has heard nothing for one and a half times so long.
    #[serde(default = "default_keep_alive_s")]
    pub keep_alive_s: u16,
    /// Results that may wait for a broker that is away.
    #[serde(default = "default_waiting")]
    pub waiting: usize,
}

fn default_port() -> u16 {
    1883
}

fn default_client_id() -> String {
    "inspectd".to_owned()
}

fn default_keep_alive_s() -> u16 {
    10
}

fn default_waiting() -> usize {
    100_000
}

impl Config {
    pub fn check(&self) -> Result<()> {
        ensure!(!self.host.is_empty(), "output.mqtt.host is empty; name a broker");
        ensure!(self.port > 0, "output.mqtt.port = 0: 1883 is usual");
        let named = |topic: &str| {
            !topic.is_empty()
                && topic.len() <= 1024
                && !topic.starts_with('/')
                && !topic.ends_with('/')
                && !topic.contains(['+', '#', '\0'])
        };
        ensure!(
            named(&self.topic),
            "output.mqtt.topic = \"{}\": must be a topic such as plant/line3/inspectd, without + and # \
             and without / at its ends",
            self.topic
        );
        ensure!(!self.client_id.is_empty(), "output.mqtt.client_id is empty");
        ensure!(
            self.user.is_some() || self.password_file.is_none(),
            "output.mqtt.password_file is given without output.mqtt.user"
        );
        ensure!(
            (5..=600).contains(&self.keep_alive_s),
            "output.mqtt.keep_alive_s = {} is not in 5..=600",
            self.keep_alive_s
        );
        ensure!(
            (1..=10_000_000).contains(&self.waiting),
            "output.mqtt.waiting = {} is not in 1..=10000000",
            self.waiting
        );
        Ok(())
    }

    fn broker(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn options(&self) -> Result<MqttOptions> {
        let mut options = MqttOptions::new(&self.client_id, &self.host, self.port);
        options.set_keep_alive(Duration::from_secs(u64::from(self.keep_alive_s)));
        let online = format!("{}/{ONLINE}", self.topic);
        options.set_last_will(LastWill::new(online, "offline", QoS::AtLeastOnce, true));
        if let Some(user) = &self.user {
            let password = self.password_file.as_ref().map(|path| {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    anyhow::anyhow!(
                        "reading output.mqtt.password_file = {}: {error}",
                        path.display()
                    )
                })?;
                anyhow::Ok(text.lines().next().unwrap_or_default().to_owned())
            });
            options.set_credentials(user, password.transpose()?.unwrap_or_default());
        }
        Ok(options)
    }
}

const RESULT: &str = "result";
const DEFECT: &str = "defect";
const STATUS: &str = "status";
const ONLINE: &str = "online";

/// The output thread's end of the wire.
pub struct Mqtt {
    news: Handover<News>,
    publisher: Option<Publisher>,
}

enum News {
    Result(Box<Outcome>),
    Defect(Box<WebDefect>),
    Beat(Box<LineStatus>),
}

impl Mqtt {
    /// Nothing is sent before [`RejectOutput::service`] runs; the broker may come later.
    ///
    /// # Errors
    /// A config that can't be meant; a password file that can't be read.
    pub fn new(config: &Config) -> Result<Mqtt> {
        config.check()?;
        let options = config.options()?;
        let (news, inbox) = handover("mqtt");
        let publisher = Publisher { config: config.clone(), options, inbox };
        Ok(Mqtt { news, publisher: Some(publisher) })
    }
}

impl RejectOutput for Mqtt {
    fn name(&self) -> &str {
        "mqtt"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        self.news.give_result(News::Result(Box::new(outcome.clone())))
    }

    fn defect(&mut self, defect: &WebDefect) -> Result<()> {
        self.news.give_result(News::Defect(Box::new(defect.clone())))
    }

    fn beat(&mut self, status: &LineStatus) -> Result<()> {
        self.news.give(News::Beat(Box::new(status.clone())))
    }

    fn service(&mut self) -> Option<Service> {
        let publisher = self.publisher.take()?;
        Some(Box::new(move |stop, progress| publisher.run(stop, progress)))
    }
}

/// How often the wire looks at its inbox and at `stop`.
const TURN: Duration = Duration::from_millis(20);

/// Between statuses.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Between attempts to connect, doubled each time up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long the wire goes on when it is told to stop, at most.
const FAREWELL: Duration = Duration::from_millis(500);

/// Messages that may be between us and the client: a result, a status, and what is said at either end.
const REQUESTS: usize = 8;

struct Publisher {
    config: Config,
    options: MqttOptions,
    inbox: Inbox<News>,
}

impl Publisher {
    fn run(self, stop: &AtomicBool, progress: &Progress) {
        let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                log::error!("mqtt_down reason=\"{}\"", plain(&error));
                return;
            }
        };
        let (client, events) = AsyncClient::new(self.options.clone(), REQUESTS);
        let desk = Desk {
            client,
            config: &self.config,
            inbox: &self.inbox,
            stop,
            progress,
            stopped_at: None,
            waiting: VecDeque::new(),
            dropped: 0,
            under_way: false,
            connected: false,
            status: None,
            shown: None,
            pause: FIRST_PAUSE,
            told: false,
        };
        runtime.block_on(desk.serve(events));
    }
}

/// What waits to be said, and how far it has come.
struct Desk<'a> {
    client: AsyncClient,
    config: &'a Config,
    inbox: &'a Inbox<News>,
    stop: &'a AtomicBool,
    progress: &'a Progress,
    stopped_at: Option<Instant>,
    /// Results and defects with their topics, the oldest first: it leaves when the broker has
    /// acknowledged it.
    waiting: VecDeque<(&'static str, Vec<u8>)>,
    dropped: u64,
    /// Whether the first of them was sent and is not acknowledged.
    under_way: bool,
    connected: bool,
    /// The newest status, not yet said.
    status: Option<Box<LineStatus>>,
    shown: Option<Instant>,
    pause: Duration,
    /// Whether the log has heard that the broker is away.
    told: bool,
}

impl Desk<'_> {
    async fn serve(mut self, mut events: EventLoop) {
        while !self.is_over() {
            let event = {
                let mut next = pin!(events.poll());
                loop {
                    // A poll that is dropped halfway would begin its connection anew.
                    match timeout(TURN, next.as_mut()).await {
                        Ok(event) => break Some(event),
                        Err(_) => self.turn(),
                    }
                    if self.is_over() {
                        break None;
                    }
                }
            };
            match event {
                Some(Ok(event)) => self.heard(&event),
                Some(Err(error)) => self.cut_off(&error).await,
                None => {}
            }
            self.turn();
        }
        if self.connected {
            self.say(ONLINE, QoS::AtMostOnce, true, b"offline".to_vec());
            // The broker then forgets the will.
            let _asked = self.client.try_disconnect();
            let _gone = timeout(FAREWELL, async { while events.poll().await.is_ok() {} }).await;
        }
    }

    /// Told to stop, and nothing is left to be said or no time to say it in.
    fn is_over(&self) -> bool {
        let Some(stopped_at) = self.stopped_at else { return false };
        !self.connected
            || self.waiting.is_empty() && self.status.is_none()
            || clock() >= stopped_at + FAREWELL
    }

    fn turn(&mut self) {
        self.progress.mark();
        // Before the inbox is emptied: who stops the wire has handed over everything.
        let stopping = self.stop.load(Ordering::SeqCst);
        self.dropped += self.inbox.missed();
        for news in self.inbox.news.try_iter() {
            match news {
                News::Result(outcome) => {
                    let image = outcome.image.as_ref().map(|path| path.display().to_string());
                    // Numbers and strings are always JSON.
                    let message = serde_json::to_vec(&Recorded::of(&outcome, image));
                    self.waiting.push_back((RESULT, message.unwrap_or_default()));
                }
                News::Defect(defect) => {
                    let message = serde_json::to_vec(&Defect::of(&defect));
                    self.waiting.push_back((DEFECT, message.unwrap_or_default()));
                }
                News::Beat(status) => self.status = Some(status),
            }
        }
        while self.waiting.len() > self.config.waiting {
            // Not the one that is under way: its acknowledgement would be taken for another's.
            self.waiting.remove(usize::from(self.under_way && self.waiting.len() > 1));
            self.dropped += 1;
        }
        if stopping && self.stopped_at.is_none() {
            self.stopped_at = Some(clock());
            self.shown = None;
        }
        if !self.connected {
            return;
        }
        if let (false, Some(first)) = (self.under_way, self.waiting.front()) {
            let (topic, message) = first.clone();
            self.under_way = self.say(topic, QoS::AtLeastOnce, false, message);
        }
        let due = self.shown.is_none_or(|shown| clock() >= shown + STATUS_EVERY);
        if let Some(status) = self.status.take_if(|_| due) {
            let status = Status::of(&status, self.waiting.len(), self.dropped);
            let message = serde_json::to_vec(&status).unwrap_or_default();
            self.say(STATUS, QoS::AtMostOnce, true, message);
            self.shown = Some(clock());
        }
    }

    fn heard(&mut self, event: &Event) {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                log::info!("mqtt_link_up broker={}", self.config.broker());
                (self.connected, self.under_way, self.told) = (true, false, false);
                self.pause = FIRST_PAUSE;
                self.shown = None;
                self.say(ONLINE, QoS::AtMostOnce, true, b"online".to_vec());
            }
            Event::Incoming(Packet::PubAck(_)) if self.under_way => {
                self.waiting.pop_front();
                self.under_way = false;
            }
            _ => {}
        }
    }

    async fn cut_off(&mut self, error: &ConnectionError) {
        // What was under way is said again: the session ends with the connection.
        (self.connected, self.under_way) = (false, false);
        if !std::mem::replace(&mut self.told, true) {
            log::error!(
                "mqtt_link_down broker={} reason=\"{}\"",
                self.config.broker(),
                plain(error)
            );
        }
        let until = clock() + self.pause;
        while clock() < until && !self.is_over() {
            sleep(TURN).await;
            self.turn();
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// False where the client takes no more just now.
    fn say(&self, topic: &str, qos: QoS, retain: bool, message: Vec<u8>) -> bool {
        let topic = format!("{}/{topic}", self.config.topic);
        self.client.try_publish(topic, qos, retain, message).is_ok()
    }
}

#[expect(clippy::disallowed_methods, reason = "the wire's own thread, started by pipeline")]
fn clock() -> Instant {
    Instant::now()
}

/// A [`WebDefect`] as JSON.
#[derive(Serialize)]
struct Defect<'a> {
    camera: &'a str,
    defect: u64,
    goes_on: bool,
    part: u64,
    x: u32,
    width: u32,
    row: u64,
    rows: u64,
    peak: f32,
    encoder: Option<[i64; 2]>,
    mm: Option<[f64; 2]>,
}

impl Defect<'_> {
    fn of(defect: &WebDefect) -> Defect<'_> {
        Defect {
            camera: &defect.camera,
            defect: defect.number,
            goes_on: defect.goes_on,
            part: defect.part.0,
            x: defect.x,
            width: defect.width,
            row: defect.row,
            rows: defect.rows,
            peak: defect.peak,
            encoder: defect.counts,
            mm: defect.mm,
        }
    }
}

/// A [`LineStatus`] as JSON.
#[derive(Serialize)]
struct Status {
    state: &'static str,
    epoch: u32,
    triggers: u64,
    accepted: u64,
    rejected: u64,
    in_flight: u64,
    causes: BTreeMap<&'static str, u64>,
    late_verdicts: u64,
    cameras_up: Vec<bool>,
    evidence_lost: bool,
    /// Results that wait for the broker, and those that it will never hear of.
    waiting: usize,
    lost: u64,
}

impl Status {
    fn of(status: &LineStatus, waiting: usize, lost: u64) -> Status {
        let tally = &status.tally;
        Status {
            state: match status.state {
                LineState::Preoperational => "preoperational",
                LineState::Halted => "halted",
                LineState::Error => "error",
                LineState::Initialized => "initialized",
                LineState::Ready => "ready",
                LineState::SingleExecution => "single_execution",
                LineState::ContinuousExecution => "continuous_execution",
            },
            epoch: status.epoch,
            triggers: tally.triggers,
            accepted: tally.accepted,
            rejected: tally.rejected_total(),
            in_flight: tally.in_flight(),
            causes: Cause::ALL
                .into_iter()
                .map(|cause| (cause.word(), tally.rejected_for(cause)))
                .collect(),
            late_verdicts: status.late_verdicts,
            cameras_up: status.cameras_up.clone(),
            evidence_lost: status.evidence_lost,
            waiting,
            lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PartId;

    #[test]
    fn a_defect_is_an_object_with_the_keys_of_its_log_line() {
        let defect = WebDefect {
            camera: "web".into(),
            number: 3,
            part: PartId(412),
            goes_on: true,
            x: 120,
            width: 40,
            row: 88_400,
            rows: 1310,
            peak: 3.5,
            counts: Some([176_800, 179_420]),
            mm: None,
        };
        assert_eq!(
            serde_json::to_string(&Defect::of(&defect)).unwrap(),
            "{\"camera\":\"web\",\"defect\":3,\"goes_on\":true,\"part\":412,\"x\":120,\"width\":40,\
             \"row\":88400,\"rows\":1310,\"peak\":3.5,\"encoder\":[176800,179420],\"mm\":null}"
        );
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let config: Config = toml::from_str("host = \"broker\"\ntopic = \"plant/line3\"").unwrap();
        assert!(config.check().is_ok());
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 6] = [
            ("output.mqtt.host is empty", |config| config.host.clear()),
            ("output.mqtt.topic = \"a/#\"", |config| config.topic = "a/#".to_owned()),
            ("output.mqtt.topic = \"a/\"", |config| config.topic = "a/".to_owned()),
            ("without output.mqtt.user", |config| config.password_file = Some("p".into())),
            ("output.mqtt.keep_alive_s = 1", |config| config.keep_alive_s = 1),
            ("output.mqtt.waiting = 0", |config| config.waiting = 0),
        ];
        for (says, change) in cases {
            let mut changed = config.clone();
            change(&mut changed);
            let error = changed.check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let secret = Config {
            user: Some("line".to_owned()),
            password_file: Some("/nowhere/password".into()),
            ..config
        };
        let error = Mqtt::new(&secret).err().unwrap().to_string();
        assert!(error.contains("output.mqtt.password_file = /nowhere/password"), "{error}");
    }
}
