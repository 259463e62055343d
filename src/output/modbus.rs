//! Verdicts for a PLC that polls: a Modbus TCP server. What the PLC reads and writes, and how its
//! program should, is in `docs/plc.md`.
//!
//! The wire has a thread of its own ([`Modbus::service`]) that owns the registers and all sockets.
//! The output thread only hands results over through a bounded channel: where that is full the wire
//! stands still, the result is counted as missed and the PLC sees the overrun bit; since only a
//! `PASS` it has read keeps a part, the part is rejected.
//!
//! The codec is our own: that of `rmodbus` serves one flat array in which every register may be
//! written and none is missing. Its client side checks ours in the tests.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use serde::Deserialize;

use super::handover::{Handover, Inbox, handover};
use super::registers::{Beat, Entry, Image, Limits, News};
use super::{Controls, LineStatus, Outcome, RejectOutput, Service};
use crate::journal::plain;
use crate::telemetry::Progress;
use protocol::{FRAME_BYTES, Framing};

mod protocol;

pub use super::registers::map;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where PLCs connect. Modbus knows no passwords: anything but loopback belongs on the
    /// machine's own network.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Answer this unit id only (and 0 and 255, which mean the device itself); `None`: all.
    #[serde(default)]
    pub unit: Option<u8>,
    /// More connections than this are refused, unless one of them has been silent for 2 s: then it
    /// makes room.
    #[serde(default = "default_max_clients")]
    pub max_clients: usize,
    /// A connection without a whole request for so long is closed.
    #[serde(default = "default_idle_s")]
    pub idle_s: f64,
    /// The PLC's heartbeat is called stale when it has not changed for so long.
    #[serde(default = "default_plc_heartbeat_ms")]
    pub plc_heartbeat_ms: u64,
    /// Not ready while the PLC's heartbeat is stale. For PLC programs that write one.
    #[serde(default)]
    pub require_plc_heartbeat: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: default_listen(),
            unit: None,
            max_clients: default_max_clients(),
            idle_s: default_idle_s(),
            plc_heartbeat_ms: default_plc_heartbeat_ms(),
            require_plc_heartbeat: false,
        }
    }
}

fn default_listen() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 1502).into()
}

fn default_max_clients() -> usize {
    8
}

fn default_idle_s() -> f64 {
    30.0
}

fn default_plc_heartbeat_ms() -> u64 {
    500
}

impl Config {
    pub fn check(&self) -> Result<()> {
        ensure!(
            (1..=256).contains(&self.max_clients),
            "output.modbus.max_clients = {} is not in 1..=256",
            self.max_clients
        );
        ensure!(
            (1.0..=86_400.0).contains(&self.idle_s),
            "output.modbus.idle_s = {} is not in 1..=86400",
            self.idle_s
        );
        ensure!(
            (50..=60_000).contains(&self.plc_heartbeat_ms),
            "output.modbus.plc_heartbeat_ms = {} is not in 50..=60000",
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
}

/// The output thread's end of the wire.
pub struct Modbus {
    local_addr: SocketAddr,
    news: Handover<News>,
    waker: Waker,
    server: Option<Server>,
}

impl Modbus {
    /// Takes the port at once; nothing is answered before [`RejectOutput::service`] runs.
    pub fn bind(config: &Config, controls: Controls) -> Result<Modbus> {
        config.check()?;
        let listener = TcpListener::bind(config.listen).with_context(|| {
            format!("output.modbus.listen = {}: the port can't be taken", config.listen)
        })?;
        let local_addr = listener.local_addr().context("modbus: asking for the port")?;
        let poll = Poll::new().context("modbus: making a poll")?;
        let waker = Waker::new(poll.registry(), WAKER).context("modbus: making a waker")?;
        let (news, inbox) = handover("modbus");
        let server = Server {
            config: config.clone(),
            image: Image::new(config.limits(), controls),
            inbox,
            poll,
            listener,
            clients: VecDeque::new(),
            next_token: FIRST_CLIENT,
            farewell: FAREWELL,
        };
        Ok(Modbus { local_addr, news, waker, server: Some(server) })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn wake(&self) {
        // It is handed over all the same: the wire looks into its inbox within `PATIENCE`.
        let _woken = self.waker.wake();
    }
}

impl RejectOutput for Modbus {
    fn name(&self) -> &str {
        "modbus"
    }

    fn signal(&mut self, outcome: &Outcome) -> Result<()> {
        self.news.give_result(News::Result(Entry::of(outcome)))?;
        self.wake();
        Ok(())
    }

    fn beat(&mut self, status: &LineStatus) -> Result<()> {
        self.news.give(News::Beat(Beat::of(status)))?;
        self.wake();
        Ok(())
    }

    fn service(&mut self) -> Option<Service> {
        let server = self.server.take()?;
        Some(Box::new(move |stop, progress| server.run(stop, progress)))
    }
}

const WAKER: Token = Token(0);

const FIRST_CLIENT: usize = WAKER.0 + 1;

/// How long the poll may wait; `stop` is looked at as often.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long the wire serves on when it is told to stop, at most: many polls of a PLC that polls every
/// 10 to 50 ms, and little for who waits for the end. What is not fetched then has no PASS.
const FAREWELL: Duration = Duration::from_millis(500);

/// How long it serves on when everything is acknowledged: two polls, for the state to be read.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// A polling PLC is never silent for so long; a connection left over by one that was switched off
/// is.
const GIVES_ROOM: Duration = Duration::from_secs(2);

/// Frames answered for one client before the next one has its turn.
const TURN: usize = 16;

/// A client that lets so many answered bytes lie is not read from any more.
const UNREAD_BYTES: usize = 16 * FRAME_BYTES;

struct Server {
    config: Config,
    image: Image,
    inbox: Inbox<News>,
    poll: Poll,
    listener: TcpListener,
    clients: VecDeque<Client>,
    next_token: usize,
    farewell: Duration,
}

impl Server {
    fn run(mut self, stop: &AtomicBool, progress: &Progress) {
        let listener = Interest::READABLE;
        if let Err(error) = self.poll.registry().register(&mut self.listener, LISTENER, listener) {
            log::error!("modbus_down reason=\"{}\"", plain(&error));
            return;
        }
        let mut events = Events::with_capacity(64);
        let mut at_work = false;
        let mut end = End::default();
        loop {
            progress.mark();
            // Before the inbox is emptied: who stops the wire has handed over everything.
            let stopping = stop.load(Ordering::SeqCst);
            let patience = if at_work { Duration::ZERO } else { PATIENCE };
            match self.poll.poll(&mut events, Some(patience)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::error!("modbus_down reason=\"{}\"", plain(&error));
                    return;
                }
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "the wire's own thread, started by pipeline"
            )]
            let now = Instant::now();
            self.take_news(now);
            for event in &events {
                let known = self.clients.iter_mut().find(|client| client.token == event.token());
                if let Some(client) = known {
                    client.readable |= event.is_readable() || event.is_error();
                }
            }
            self.accept(now);
            at_work = self.serve(now);
            // Where nobody has ever connected there is nobody to wait for.
            let met = self.next_token > FIRST_CLIENT;
            if stopping && (!met || end.is_due(self.farewell, self.image.settled(), now)) {
                return;
            }
        }
    }

    fn take_news(&mut self, now: Instant) {
        self.image.missed(self.inbox.missed());
        self.inbox.news.try_iter().for_each(|news| self.image.take(news, now));
    }

    fn accept(&mut self, now: Instant) {
        // Bounded, so that a flood of connections leaves the others their turn.
        for _ in 0..self.config.max_clients {
            let (mut socket, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                // Out of file descriptors or the like: tried again within `PATIENCE`.
                Err(_) => return,
            };
            if self.clients.len() >= self.config.max_clients {
                let silent =
                    self.clients.iter().enumerate().min_by_key(|(_, client)| client.heard_at);
                match silent {
                    Some((index, client))
                        if now.saturating_duration_since(client.heard_at) >= GIVES_ROOM =>
                    {
                        log::debug!("modbus_closed peer={} reason=gave_room", client.peer);
                        self.clients.remove(index);
                    }
                    _ => {
                        log::debug!("modbus_refused peer={peer} clients={}", self.clients.len());
                        continue;
                    }
                }
            }
            let token = Token(self.next_token);
            self.next_token += 1;
            // Answers are one small segment each; none waits for more.
            let ready = socket.set_nodelay(true).and_then(|()| {
                let both = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut socket, token, both)
            });
            if let Err(error) = ready {
                log::debug!("modbus_refused peer={peer} error={error}");
                continue;
            }
            if self.clients.is_empty() {
                log::info!("modbus_link_up peer={peer}");
            }
            self.clients.push_back(Client {
                socket,
                peer,
                token,
                readable: true,
                heard_at: now,
                input: Vec::with_capacity(INPUT_BYTES),
                output: Vec::new(),
            });
        }
    }

    /// Gives each client one turn. True while somebody has more to do.
    fn serve(&mut self, now: Instant) -> bool {
        let idle = Duration::from_secs_f64(self.config.idle_s);
        let mut more = false;
        let before = self.clients.len();
        self.clients.retain_mut(|client| {
            let mut turn = client.turn(self.config.unit, &mut self.image, now);
            if now.saturating_duration_since(client.heard_at) > idle {
                turn = Turn::Over("idle");
            }
            match turn {
                Turn::Over(reason) => {
                    log::debug!("modbus_closed peer={} reason={reason}", client.peer);
                    return false;
                }
                Turn::More => more = true,
                Turn::Waits => {}
            }
            true
        });
        if before > 0 && self.clients.is_empty() {
            log::info!("modbus_link_down");
        }
        more
    }
}

/// When a wire that was told to stop may end.
#[derive(Default)]
struct End {
    stopped_at: Option<Instant>,
    settled_at: Option<Instant>,
}

impl End {
    /// `settled`: the PLC has acknowledged all results.
    fn is_due(&mut self, farewell: Duration, settled: bool, now: Instant) -> bool {
        let stopped_at = *self.stopped_at.get_or_insert(now);
        if settled {
            self.settled_at.get_or_insert(now);
        }
        now >= stopped_at + farewell || self.settled_at.is_some_and(|at| now >= at + LAST_LOOK)
    }
}

const LISTENER: Token = Token(usize::MAX - 1);

const INPUT_BYTES: usize = 4 * FRAME_BYTES;

struct Client {
    socket: TcpStream,
    peer: SocketAddr,
    token: Token,
    /// The socket may hold bytes not read yet (readiness is told once).
    readable: bool,
    /// When the last whole request came.
    heard_at: Instant,
    input: Vec<u8>,
    output: Vec<u8>,
}

enum Turn {
    More,
    Waits,
    Over(&'static str),
}

impl Client {
    fn turn(&mut self, unit: Option<u8>, image: &mut Image, now: Instant) -> Turn {
        let mut frames = 0;
        loop {
            let mut taken = 0;
            while frames < TURN && self.output.len() < UNREAD_BYTES {
                match protocol::framing(&self.input[taken..]) {
                    Framing::Frame(length) => {
                        let frame = &self.input[taken..taken + length];
                        protocol::answer(frame, unit, image, now, &mut self.output);
                        taken += length;
                        frames += 1;
                        self.heard_at = now;
                    }
                    Framing::Garbage => return Turn::Over("garbage"),
                    Framing::Partial => break,
                }
            }
            self.input.drain(..taken);
            if let Err(over) = self.send() {
                return over;
            }
            if frames >= TURN {
                return if self.output.is_empty() { Turn::More } else { Turn::Waits };
            }
            // What it does not fetch is not added to; it is heard again when it has room.
            if self.output.len() >= UNREAD_BYTES || !self.readable {
                return Turn::Waits;
            }
            match self.receive() {
                Ok(()) => {}
                Err(over) => return over,
            }
        }
    }

    fn send(&mut self) -> Result<(), Turn> {
        let mut sent = 0;
        while sent < self.output.len() {
            match self.socket.write(&self.output[sent..]) {
                Ok(0) => return Err(Turn::Over("closed")),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Turn::Over("broken")),
            }
        }
        self.output.drain(..sent);
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Turn> {
        let held = self.input.len();
        self.input.resize(INPUT_BYTES, 0);
        let read = self.socket.read(&mut self.input[held..]);
        self.input.truncate(held + read.as_ref().map_or(0, |&count| count));
        match read {
            Ok(0) => Err(Turn::Over("closed")),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(_) => Err(Turn::Over("broken")),
        }
    }
}

#[cfg(test)]
#[path = "modbus/tests.rs"]
mod tests;
