//! Verdicts for a Siemens PLC: an S7 client (ISO on TCP, RFC 1006) that writes the register image of
//! `docs/plc.md` into a data block, register n at byte 2n, and reads from it what the PLC writes.
//!
//! The wire has a thread of its own ([`S7::service`]); the output thread only hands results over through
//! a bounded channel. A PLC that freezes or goes away holds up nobody: its block stands still, and with
//! it the heartbeat that its program watches. After each connection the whole block is written before
//! the line shows as ready, since results of an earlier start may still lie in it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use crossbeam_channel::RecvTimeoutError;
use rust7::{S7Client, S7Error};
use serde::Deserialize;

use super::handover::{Handover, Inbox, handover};
use super::registers::{Beat, Entry, Exception, Image, Limits, News, map};
use super::{Controls, LineStatus, Outcome, RejectOutput, Service};
use crate::journal::plain;
use crate::telemetry::Progress;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of the CPU or its communication module.
    pub address: Ipv4Addr,
    #[serde(default = "default_port")]
    pub port: u16,
    /// Where the CPU sits: 0 and 1 for an S7-1200 or S7-1500, 0 and 2 for an S7-300.
    #[serde(default)]
    pub rack: u16,
    #[serde(default = "default_slot")]
    pub slot: u16,
    /// Number of the data block: not optimised, at least [`BLOCK_BYTES`] long, for this line alone.
    pub db: u16,
    /// Between two looks at the block.
    #[serde(default = "default_cycle_ms")]
    pub cycle_ms: u64,
    /// The link is given up when an answer takes longer.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
    /// The PLC's heartbeat is called stale when it has not changed for so long.
    #[serde(default = "default_plc_heartbeat_ms")]
    pub plc_heartbeat_ms: u64,
    /// Not ready while the PLC's heartbeat is stale. For PLC programs that write one.
    #[serde(default)]
    pub require_plc_heartbeat: bool,
}

fn default_port() -> u16 {
    102
}

fn default_slot() -> u16 {
    1
}

fn default_cycle_ms() -> u64 {
    20
}

fn default_timeout_ms() -> u64 {
    300
}

fn default_plc_heartbeat_ms() -> u64 {
    500
}

/// Up to the end of the ring.
pub const BLOCK_BYTES: usize = 2 * (map::RING + map::SLOTS * map::ENTRY) as usize;

impl Config {
    pub fn check(&self) -> Result<()> {
        ensure!(self.port > 0, "output.s7.port = 0: 102 is usual");
        ensure!(self.rack <= 7, "output.s7.rack = {} is not in 0..=7", self.rack);
        ensure!(self.slot <= 31, "output.s7.slot = {} is not in 0..=31", self.slot);
        ensure!(self.db > 0, "output.s7.db = 0: data blocks count from 1");
        for (key, value, least, most) in [
            ("cycle_ms", self.cycle_ms, 5, 1000),
            ("timeout_ms", self.timeout_ms, 50, 450),
            ("plc_heartbeat_ms", self.plc_heartbeat_ms, 50, 60_000),
        ] {
            ensure!(
                (least..=most).contains(&value),
                "output.s7.{key} = {value} is not in {least}..={most}"
            );
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits {
            plc_heartbeat: Duration::from_millis(self.plc_heartbeat_ms),
            require_plc_heartbeat: self.require_plc_heartbeat,
            ..Limits::default()
        }
    }

    fn peer(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }
}

/// The output thread's end of the wire.
pub struct S7 {
    news: Handover<News>,
    writer: Option<Writer>,
}

impl S7 {
    /// Nothing is sent before [`RejectOutput::service`] runs; the PLC may come later.
    ///
    /// # Errors
    /// A config that can't be meant.
    pub fn new(config: &Config, controls: Controls) -> Result<S7> {
        config.check()?;
        let (news, inbox) = handover("s7");
        let writer = Writer {
            image: Image::new(config.limits(), controls),
            config: config.clone(),
            inbox,
            link: None,
            next_try: None,
            pause: FIRST_PAUSE,
            told: false,
        };
        Ok(S7 { news, writer: Some(writer) })
    }
}

impl RejectOutput for S7 {
    fn name(&self) -> &str {
        "s7"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        self.news.give_result(News::Result(Entry::of(outcome)))
    }

    fn beat(&mut self, status: &LineStatus) -> Result<()> {
        self.news.give(News::Beat(Beat::of(status)))
    }

    fn service(&mut self) -> Option<Service> {
        let writer = self.writer.take()?;
        Some(Box::new(move |stop, progress| writer.run(stop, progress)))
    }
}

/// Between attempts to connect, doubled each time up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long the wire goes on when it is told to stop, at most: for the PLC to fetch what came last.
const FAREWELL: Duration = Duration::from_millis(500);

/// Ring entries written at once.
const ENTRIES_AT_ONCE: u16 = 3;

/// What the smallest PDU, of 240 bytes, has room for behind its headers.
const PDU_BYTES: u16 = 200;

struct Writer {
    config: Config,
    image: Image,
    inbox: Inbox<News>,
    link: Option<Link>,
    next_try: Option<Instant>,
    pause: Duration,
    /// Whether the log has heard that the link is down.
    told: bool,
}

/// A PLC that answers.
struct Link {
    client: S7Client,
    db: u16,
    /// Results that are in its block.
    written: u64,
    /// Status registers from [`map::LATEST`] on, as they lie in the block.
    shown: Vec<u8>,
    /// The handshake's registers, likewise.
    hand: Vec<u8>,
    /// The PLC's heartbeat when it was last looked at.
    heartbeat: Option<u16>,
}

impl Writer {
    fn run(mut self, stop: &AtomicBool, progress: &Progress) {
        let cycle = Duration::from_millis(self.config.cycle_ms);
        let mut stopped_at = None;
        loop {
            progress.mark();
            // Before the inbox is emptied: who stops the wire has handed over everything.
            let stopping = stop.load(Ordering::SeqCst);
            match self.inbox.news.recv_timeout(cycle) {
                Ok(news) => self.image.take(news, clock()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(cycle),
            }
            self.image.missed(self.inbox.missed());
            let now = clock();
            self.inbox.news.try_iter().for_each(|news| self.image.take(news, now));
            self.serve(stop, progress);
            if stopping {
                let since = *stopped_at.get_or_insert(now);
                if self.link.is_none() || self.image.settled() || clock() >= since + FAREWELL {
                    return;
                }
            }
        }
    }

    /// Brings the block up to date, after a connection where there is none.
    fn serve(&mut self, stop: &AtomicBool, progress: &Progress) {
        let now = clock();
        if self.link.is_none() {
            if self.next_try.is_some_and(|at| now < at) {
                return;
            }
            match Link::open(&self.config, &self.image, stop, progress) {
                Ok(link) => {
                    log::info!("s7_link_up peer={} db={}", self.config.peer(), self.config.db);
                    self.link = Some(link);
                    self.pause = FIRST_PAUSE;
                    self.told = false;
                }
                Err(error) => {
                    self.give_up(&error);
                    return;
                }
            }
        }
        let Some(link) = &mut self.link else { return };
        if let Err(error) = link.update(&mut self.image) {
            self.link = None;
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &Fault) {
        // Once until it works again: an attempt every two seconds would fill the log.
        if !std::mem::replace(&mut self.told, true) {
            log::error!(
                "s7_link_down peer={} db={} reason=\"{}\"",
                self.config.peer(),
                self.config.db,
                plain(error)
            );
        }
        self.next_try = Some(clock() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

#[expect(clippy::disallowed_methods, reason = "the wire's own thread, started by pipeline")]
fn clock() -> Instant {
    Instant::now()
}

/// What a PLC answered, or did not, and when.
#[derive(Debug)]
struct Fault {
    doing: &'static str,
    error: S7Error,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.doing, self.error)?;
        match self.error {
            S7Error::S7NotFound => write!(f, "; the data block is not there (output.s7.db)"),
            S7Error::S7InvalidAddress => write!(
                f,
                "; the data block must be {BLOCK_BYTES} bytes long, without \"optimized block access\""
            ),
            S7Error::S7Unspecified => {
                write!(f, "; the CPU must permit PUT/GET access by remote partners")
            }
            _ => Ok(()),
        }
    }
}

impl Link {
    /// Connects and lays the block out anew: not ready, then the ring, of which an earlier start may
    /// have left results behind.
    fn open(
        config: &Config,
        image: &Image,
        stop: &AtomicBool,
        progress: &Progress,
    ) -> Result<Link, Fault> {
        let during = |doing| move |error| Fault { doing, error };
        let mut client = S7Client::new();
        let timeout = config.timeout_ms;
        client.set_connection_port(config.port).map_err(during("choosing the port"))?;
        client.set_timeout(timeout, timeout, timeout).map_err(during("setting the time limit"))?;
        client
            .connect_rack_slot(&config.address.to_string(), config.rack, config.slot)
            .map_err(during("connecting"))?;
        let mut link = Link {
            client,
            db: config.db,
            written: 0,
            shown: vec![],
            hand: vec![],
            heartbeat: None,
        };
        // Newest and epoch stay until the ring is laid out: they belong together.
        link.write(map::STATUS, &[0, 0]).map_err(during("clearing the status"))?;
        for first in (0..map::SLOTS).step_by(usize::from(ENTRIES_AT_ONCE)) {
            if stop.load(Ordering::Relaxed) {
                let error = S7Error::Other("the line has ended meanwhile".to_owned());
                return Err(Fault { doing: "laying out the ring", error });
            }
            progress.mark();
            let count = ENTRIES_AT_ONCE.min(map::SLOTS - first) * map::ENTRY;
            let address = map::RING + first * map::ENTRY;
            link.copy(image, address, count).map_err(during("laying out the ring"))?;
        }
        link.written = image.published();
        Ok(link)
    }

    /// First results, then counters, last what says that they are there; then what the PLC says.
    fn update(&mut self, image: &mut Image) -> Result<(), Fault> {
        let during = |doing| move |error| Fault { doing, error };
        let slots = u64::from(map::SLOTS);
        let published = image.published();
        for nth in self.written.max(published.saturating_sub(slots))..published {
            let address = map::RING + (nth % slots) as u16 * map::ENTRY;
            self.copy(image, address, map::ENTRY).map_err(during("writing a result"))?;
        }
        self.written = published;
        let now = clock();
        let shown = registers(image, map::LATEST, map::STATUS_END - map::LATEST, now)
            .map_err(during("reading the image"))?;
        if shown != self.shown {
            // The newest result by itself, so that it lies within one PDU.
            let (latest, counters) = shown.split_at(bytes(map::ENTRY));
            self.write(map::LATEST, latest).map_err(during("writing the newest result"))?;
            self.write(map::LATEST + map::ENTRY, counters).map_err(during("writing counters"))?;
            self.shown = shown;
        }
        let hand = registers(image, map::HELD_STATUS, map::HANDSHAKE_END - map::HELD_STATUS, now)
            .map_err(during("reading the image"))?;
        if hand != self.hand {
            let (flags, held) = hand.split_at(bytes(map::HELD - map::HELD_STATUS));
            self.write(map::HELD, held).map_err(during("writing the held result"))?;
            self.write(map::HELD_STATUS, flags).map_err(during("writing that it is held"))?;
            self.hand = hand;
        }
        let head = registers(image, map::MAP_VERSION, HEAD, now).map_err(during("the image"))?;
        self.write(map::MAP_VERSION, &head).map_err(during("writing the status"))?;

        let mut said = [0; 2 * map::WRITABLE as usize];
        self.client.read_db(self.db, 0, &mut said).map_err(during("reading what the PLC says"))?;
        let words: Vec<u16> =
            said.chunks_exact(2).map(|word| u16::from_be_bytes([word[0], word[1]])).collect();
        if self.heartbeat.is_none() {
            // So is a trigger that stands since before: no edge was seen.
            let control = words[usize::from(map::CONTROL)] & !map::TRIGGER_ENABLE;
            let trigger = words[usize::from(map::TRIGGER)];
            for (address, word) in [(map::CONTROL, control), (map::TRIGGER, trigger)] {
                let taken = image.write(address, &[word], clock());
                taken.map_err(unmapped).map_err(during("taking the PLC's word"))?;
            }
        }
        for (address, word) in (0..).zip(words) {
            // What stands in the block was not written now: a heartbeat is one that changes.
            if address == map::PLC_HEARTBEAT {
                let before = self.heartbeat.replace(word);
                if before.is_none_or(|before| before == word) {
                    continue;
                }
            }
            let taken = image.write(address, &[word], clock());
            taken.map_err(unmapped).map_err(during("taking the PLC's word"))?;
        }
        Ok(())
    }

    fn copy(&mut self, image: &Image, address: u16, count: u16) -> Result<(), S7Error> {
        let words = registers(image, address, count, clock())?;
        self.write(address, &words)
    }

    fn write(&mut self, address: u16, words: &[u8]) -> Result<(), S7Error> {
        self.client.write_db(self.db, 2 * address, words)
    }
}

/// The registers before the newest result.
const HEAD: u16 = map::LATEST - map::MAP_VERSION;

// What belongs together is written within the smallest PDU.
const _: () = assert!(2 * HEAD <= PDU_BYTES && 2 * map::ENTRY * ENTRIES_AT_ONCE <= PDU_BYTES);
const _: () = assert!(2 * (map::HANDSHAKE_END - map::HELD) <= PDU_BYTES);

fn bytes(registers: u16) -> usize {
    2 * usize::from(registers)
}

fn registers(image: &Image, address: u16, count: u16, now: Instant) -> Result<Vec<u8>, S7Error> {
    let mut words = Vec::with_capacity(bytes(count));
    image.read(address, count, now, &mut words).map_err(unmapped)?;
    Ok(words)
}

/// Only addresses of the map are used here.
fn unmapped(exception: Exception) -> S7Error {
    S7Error::Other(format!("the image has no such register: {exception:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        toml::from_str("address = \"127.0.0.1\"\ndb = 10").unwrap()
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        assert!(config().check().is_ok());
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 5] = [
            ("output.s7.db = 0", |config| config.db = 0),
            ("output.s7.rack = 8", |config| config.rack = 8),
            ("output.s7.timeout_ms = 500", |config| config.timeout_ms = 500),
            ("output.s7.cycle_ms = 1", |config| config.cycle_ms = 1),
            ("output.s7.port = 0", |config| config.port = 0),
        ];
        for (says, change) in cases {
            let mut changed = config();
            change(&mut changed);
            let error = changed.check().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_block_reaches_to_the_end_of_the_ring() {
        assert_eq!(BLOCK_BYTES, 18_320);
    }
}
