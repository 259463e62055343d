//! For PLCs that speak EtherNet/IP, such as Allen-Bradley's: the daemon is an adapter that a scanner owns
//! as it owns an I/O module (class 1, implicit). The PLC's input assembly is sent each packet interval,
//! its output assembly taken as it comes; what they say is in `docs/plc.md`.
//!
//! The register image is the same as of Modbus, but an assembly shows one result at a time: a PLC takes
//! them by the handshake of held results. `ciplink` owns the sockets, on threads of its own, so packets
//! leave in time whatever this wire does; a heartbeat in them that stands still says that it does
//! nothing.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use ciplink::adapter::{
    Adapter, AdapterConfig, AdapterIdentity, Assembly, ConnectionInfo, ConnectionKind, Event,
};
use serde::Deserialize;

use super::handover::{Handover, Inbox, handover};
use super::registers::{Beat, Entry, Image, Limits, News, map};
use super::{Controls, LineStatus, Outcome, RejectOutput, Service};
use crate::telemetry::Progress;

mod assembly;

use assembly::{CONFIGURATION, INPUT, INPUT_BYTES, OUTPUT, OUTPUT_BYTES, Said};

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address of this machine that scanners reach it at. EtherNet/IP knows no passwords: anything
    /// but loopback belongs on the machine's own network.
    #[serde(default = "default_listen")]
    pub listen: Ipv4Addr,
    /// TCP and UDP, of sessions and discovery. PLCs know no other than 44818.
    #[serde(default = "default_port")]
    pub port: u16,
    /// UDP, of implicit messages. PLCs know no other than 2222.
    #[serde(default = "default_io_port")]
    pub io_port: u16,
    /// The PLC's heartbeat is called stale when it has not changed for so long.
    #[serde(default = "default_plc_heartbeat_ms")]
    pub plc_heartbeat_ms: u64,
    /// Not ready while the PLC's heartbeat is stale. For PLC programs that write one.
    #[serde(default)]
    pub require_plc_heartbeat: bool,
}

fn default_listen() -> Ipv4Addr {
    Ipv4Addr::LOCALHOST
}

fn default_port() -> u16 {
    44_818
}

fn default_io_port() -> u16 {
    2222
}

fn default_plc_heartbeat_ms() -> u64 {
    500
}

impl Config {
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.port > 0 && self.io_port > 0,
            "output.ethernet_ip: port = {}, io_port = {}; 44818 and 2222 are what PLCs expect",
            self.port,
            self.io_port
        );
        ensure!(
            self.port != self.io_port,
            "output.ethernet_ip.port and io_port are both {}",
            self.port
        );
        ensure!(
            (50..=60_000).contains(&self.plc_heartbeat_ms),
            "output.ethernet_ip.plc_heartbeat_ms = {} is not in 50..=60000",
            self.plc_heartbeat_ms
        );
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits {
            plc_heartbeat: Duration::from_millis(self.plc_heartbeat_ms),
            require_plc_heartbeat: self.require_plc_heartbeat,
            ..Limits::default()
        }
    }

    fn adapter(&self) -> AdapterConfig {
        AdapterConfig {
            // Without a vendor id of ODVA's; PLCs take it as a generic module, without electronic keying.
            identity: AdapterIdentity {
                product_name: "inspectd".to_owned(),
                ..AdapterIdentity::default()
            },
            assemblies: vec![
                Assembly::input(INPUT, INPUT_BYTES),
                Assembly::output(OUTPUT, OUTPUT_BYTES),
                Assembly::config(CONFIGURATION, 0),
            ],
            app_name: "inspectd".to_owned(),
            app_version: env!("CARGO_PKG_VERSION").to_owned(),
            bind: self.listen,
            port: self.port,
            io_port: self.io_port,
            ..AdapterConfig::default()
        }
    }
}

/// The output thread's end of the wire.
pub struct EthernetIp {
    news: Handover<News>,
    server: Option<Server>,
}

impl EthernetIp {
    /// Takes the ports at once; scanners that come before [`RejectOutput::service`] runs see a line that
    /// has not started.
    ///
    /// # Errors
    /// A config that can't be meant, or a port that another program has.
    pub fn bind(config: &Config, controls: Controls) -> Result<EthernetIp> {
        config.check()?;
        let adapter = Adapter::start(config.adapter())
            .map_err(|error| anyhow!("output.ethernet_ip.listen = {}: {error}", config.listen))?;
        let (news, inbox) = handover("ethernet_ip");
        let image = Image::new(config.limits(), controls);
        let server =
            Server { adapter, image, inbox, control: 0, shown: [0; INPUT_BYTES], owned: false };
        Ok(EthernetIp { news, server: Some(server) })
    }
}

impl RejectOutput for EthernetIp {
    fn name(&self) -> &str {
        "ethernet_ip"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        self.news.give_result(News::Result(Entry::of(outcome)))
    }

    fn beat(&mut self, status: &LineStatus) -> Result<()> {
        self.news.give(News::Beat(Beat::of(status)))
    }

    fn service(&mut self) -> Option<Service> {
        let server = self.server.take()?;
        Some(Box::new(move |stop, progress| server.run(stop, progress)))
    }
}

/// Between two looks at the inbox and at the answers to triggers; the PLC's word wakes the wire at once.
/// The shortest packet interval that ciplink takes.
const TURN: Duration = Duration::from_millis(2);

/// How long the wire goes on when it is told to stop, at most: for the PLC to take the held results.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long it goes on when none is left: some packet intervals, for the state to be read.
const LAST_LOOK: Duration = Duration::from_millis(100);

struct Server {
    adapter: Adapter,
    image: Image,
    inbox: Inbox<News>,
    /// The PLC's control word as it was taken last.
    control: u16,
    /// What the input assembly holds.
    shown: [u8; INPUT_BYTES],
    /// A scanner owns the output assembly.
    owned: bool,
}

impl Server {
    fn run(mut self, stop: &AtomicBool, progress: &Progress) {
        let mut stopped_at = None;
        loop {
            progress.mark();
            // Before the inbox is emptied: who stops the wire has handed over everything.
            let stopping = stop.load(Ordering::SeqCst);
            let mut patience = TURN;
            while let Some(event) = self.adapter.next_event(Some(patience)) {
                self.heed(&event);
                patience = Duration::ZERO;
            }
            let now = clock();
            self.image.missed(self.inbox.missed());
            self.inbox.news.try_iter().for_each(|news| self.image.take(news, now));
            self.listen(now);
            self.show(now);
            if stopping {
                let passed = now - *stopped_at.get_or_insert(now);
                let least = if self.held() { FAREWELL } else { LAST_LOOK };
                if !self.owned || passed >= least {
                    return;
                }
            }
        }
    }

    fn heed(&mut self, event: &Event) {
        let of_owner =
            |connection: &ConnectionInfo| connection.kind == ConnectionKind::ExclusiveOwner;
        match event {
            Event::Opened(connection) if of_owner(connection) => {
                self.owned = true;
                log::info!(
                    "ethernet_ip_link_up peer={} interval_ms={}",
                    connection.originator,
                    connection.t_o_rpi.as_secs_f64() * 1000.0
                );
            }
            Event::Closed(connection) if of_owner(connection) => {
                self.owned = false;
                log::info!("ethernet_ip_link_down peer={} reason=closed", connection.originator);
            }
            Event::TimedOut(connection) if of_owner(connection) => {
                self.owned = false;
                log::error!("ethernet_ip_link_down peer={} reason=silent", connection.originator);
            }
            _ => {}
        }
    }

    /// Takes what the PLC says. A scanner that is idle or gone triggers nothing, clears nothing and has no
    /// heartbeat; what it holds stays held, and its trigger bits are known, so that none rises when it
    /// runs again.
    fn listen(&mut self, now: Instant) {
        let output = self.adapter.output(OUTPUT).expect("the adapter was given this assembly");
        let Said { control, heartbeat, trigger } = assembly::output(&output.data);
        // The ring is not shown here; what is published is handled by the handshake alone.
        let newest = self.registers(map::NEWEST_SEQ, 1, now)[0];
        let written = if output.run {
            self.control = control;
            self.image.write(map::CONTROL, &[control, heartbeat, newest, trigger], now)
        } else {
            self.control &= !map::TRIGGER_ENABLE;
            self.image
                .write(map::CONTROL, &[self.control], now)
                .and_then(|()| self.image.write(map::ACKNOWLEDGE, &[newest, trigger], now))
        };
        written.expect("only registers of the map are written");
    }

    fn show(&mut self, now: Instant) {
        let status = self.registers(map::MAP_VERSION, map::STATUS_END - map::MAP_VERSION, now);
        let hand = self.registers(map::HELD_STATUS, map::HANDSHAKE_END - map::HELD_STATUS, now);
        let registers = |address: u16, count: usize| {
            let (block, from) = if address < map::HELD_STATUS {
                (&status, address - map::MAP_VERSION)
            } else {
                (&hand, address - map::HELD_STATUS)
            };
            &block[usize::from(from)..][..count]
        };
        let input = assembly::input(registers, self.control);
        if input != self.shown {
            let shown = self.adapter.set_input(INPUT, &input);
            shown.expect("the adapter was given this assembly, and its size");
            self.shown = input;
        }
    }

    /// A result stands for the PLC to take.
    fn held(&self) -> bool {
        self.registers(map::HELD_STATUS, 1, clock())[0] & map::RESULTS_VALID != 0
    }

    fn registers(&self, address: u16, count: u16, now: Instant) -> Vec<u16> {
        let mut bytes = Vec::with_capacity(2 * usize::from(count));
        let read = self.image.read(address, count, now, &mut bytes);
        read.expect("only registers of the map are read");
        bytes.as_chunks::<2>().0.iter().map(|&word| u16::from_be_bytes(word)).collect()
    }
}

#[expect(clippy::disallowed_methods, reason = "the wire's own thread, started by pipeline")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (keys, says) in [
            ("port = 0", "output.ethernet_ip: port = 0"),
            ("io_port = 44818", "are both 44818"),
            ("plc_heartbeat_ms = 1", "output.ethernet_ip.plc_heartbeat_ms = 1"),
        ] {
            let config: Config = toml::from_str(keys).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(toml::from_str::<Config>("").unwrap().check().is_ok());
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let config = toml::from_str(&format!("port = {port}")).unwrap();
        let error = EthernetIp::bind(&config, Controls::default()).err().unwrap().to_string();
        assert!(
            error.contains("listen = 127.0.0.1") && error.contains(&port.to_string()),
            "{error}"
        );
    }
}
