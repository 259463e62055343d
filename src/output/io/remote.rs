//! A remote I/O module on Modbus TCP: the daemon is its client.
//!
//! A turn is up to five requests, one after the other as the simplest modules want it, all within one
//! time limit. The outputs are written in every turn, changed or not, since that is what the module's
//! watchdog waits for. What is not a whole answer to the very request, in time, costs the connection: an
//! answer that comes later would be taken for that of another request. `rmodbus` writes the requests; of
//! answers it checks less than is needed here (length, what a write repeats), so that is done here.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rmodbus::client::ModbusRequest;
use serde::Deserialize;

use super::{DigitalIo, Inputs, Retry, mask};
use crate::journal::plain;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of the module.
    pub address: IpAddr,
    #[serde(default = "default_port")]
    pub port: u16,
    #[serde(default = "default_unit")]
    pub unit: u8,
    /// The first output's coil, counted from 0 as on the wire.
    #[serde(default)]
    pub outputs_at: u16,
    /// Outputs written in each turn, all of them in one request (function 15).
    #[serde(default)]
    pub outputs: u16,
    /// The first discrete input (function 2).
    #[serde(default)]
    pub inputs_at: u16,
    #[serde(default)]
    pub inputs: u16,
    /// The first of the two input registers (function 4) of a 32 bit counter.
    #[serde(default)]
    pub encoder_at: Option<u16>,
    #[serde(default)]
    pub encoder_words: Words,
    /// A holding register (function 6) that is counted up in each turn, for modules whose watchdog
    /// wants to see a change.
    #[serde(default)]
    pub keep_alive_at: Option<u16>,
    /// For modules that stay in their safe state after their watchdog has fired.
    #[serde(default)]
    pub safe_mode: Option<SafeMode>,
    /// Numbers of the outputs that are on when the daemon ends in order; the others go off. What happens
    /// when it ends otherwise is the module's to say.
    #[serde(default)]
    pub safe_on: Vec<u16>,
    /// Of a whole turn; the link is given up when it takes longer.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// Which register of a 32 bit counter comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Words {
    #[default]
    HighFirst,
    LowFirst,
}

/// How a module says that it holds its outputs in the safe state and listens to nobody.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SafeMode {
    /// The coil (function 1) that reads 1 meanwhile.
    pub at: u16,
    /// The coil (function 5) that ends it; `None`: a person does, at the module.
    #[serde(default)]
    pub clear_at: Option<u16>,
    /// What is written there.
    #[serde(default)]
    pub clear_with: bool,
}

fn default_port() -> u16 {
    502
}

fn default_unit() -> u8 {
    1
}

fn default_timeout_ms() -> u64 {
    50
}

impl Config {
    /// Refuses values that cannot be meant. The caller adds file and table to the message.
    pub fn check(&self) -> Result<()> {
        ensure!(self.port > 0, "io.port = 0: 502 is usual");
        ensure!(
            (5..=450).contains(&self.timeout_ms),
            "io.timeout_ms = {} is not in 5..=450",
            self.timeout_ms
        );
        for (key, at, count) in
            [("outputs", self.outputs_at, self.outputs), ("inputs", self.inputs_at, self.inputs)]
        {
            ensure!(count <= 32, "io.{key} = {count} is more than 32");
            ensure!(
                u32::from(at) + u32::from(count) <= 1 << 16,
                "io.{key}_at = {at} with io.{key} = {count} goes beyond address 65535"
            );
        }
        ensure!(
            self.encoder_at != Some(u16::MAX),
            "io.encoder_at = 65535: the counter takes two registers"
        );
        ensure!(
            self.outputs > 0 || self.inputs > 0 || self.encoder_at.is_some(),
            "io has neither outputs, inputs nor encoder_at; say how many outputs or inputs it has"
        );
        if let Some(output) = self.safe_on.iter().find(|&&output| output >= self.outputs) {
            bail!("io.safe_on names output {output}; there are {}, from 0", self.outputs);
        }
        Ok(())
    }

    fn peer(&self) -> SocketAddr {
        (self.address, self.port).into()
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    fn safe_outputs(&self) -> u32 {
        self.safe_on.iter().fold(0, |bits, &output| bits | (1 << output))
    }
}

/// The module, or that there is none just now.
pub struct Remote {
    config: Config,
    link: Option<Link>,
    retry: Retry,
    keep_alive: u16,
    /// What the log has heard; `None`: nothing yet.
    up: Option<bool>,
}

impl Remote {
    /// Connects in the first turn; the module may be switched on later.
    ///
    /// # Errors
    /// A config that can't be meant.
    pub fn new(config: &Config) -> Result<Remote> {
        config.check()?;
        let (link, retry) = (None, Retry::default());
        Ok(Remote { config: config.clone(), link, retry, keep_alive: 0, up: None })
    }

    /// What was read; `None`: the module holds its safe state.
    fn turn(&mut self, outputs: u32) -> Result<Option<Inputs>, Fault> {
        let config = &self.config;
        let link = match &mut self.link {
            Some(link) => link,
            None => self.link.insert(Link::open(config)?),
        };
        link.until = clock() + config.timeout();
        if let Some(safe_mode) = &config.safe_mode
            && link.read_bits(Kind::Coils, safe_mode.at, 1, "reading io.safe_mode.at")? != 0
        {
            if let Some(clear_at) = safe_mode.clear_at {
                link.write("writing io.safe_mode.clear_at", |request, frame| {
                    request.generate_set_coil(clear_at, safe_mode.clear_with, frame)
                })?;
            }
            return Ok(None);
        }
        if config.outputs > 0 {
            link.write_outputs(config, outputs)?;
        }
        if let Some(at) = config.keep_alive_at {
            self.keep_alive = self.keep_alive.wrapping_add(1);
            let count = self.keep_alive;
            link.write("writing io.keep_alive_at", |request, frame| {
                request.generate_set_holding(at, count, frame)
            })?;
        }
        let mut inputs = Inputs { bits: 0, encoder: None };
        if config.inputs > 0 {
            let (at, count) = (config.inputs_at, config.inputs);
            inputs.bits = link.read_bits(Kind::Inputs, at, count, "reading io.inputs_at")?;
        }
        if let Some(at) = config.encoder_at {
            let words = link.read_pair(at, "reading io.encoder_at")?;
            let [high, low] = match config.encoder_words {
                Words::HighFirst => words,
                Words::LowFirst => [words[1], words[0]],
            };
            inputs.encoder = Some((u32::from(high) << 16) | u32::from(low));
        }
        Ok(Some(inputs))
    }

    fn down(&mut self, reason: &anyhow::Error) {
        // Once until it takes part again: turns come hundreds of times a second.
        if self.up.replace(false) != Some(false) {
            let peer = self.config.peer();
            log::error!(
                "io_down station=remote peer={peer} reason=\"{}\"",
                plain(format!("{reason:#}"))
            );
        }
    }
}

impl DigitalIo for Remote {
    fn name(&self) -> &str {
        "remote"
    }

    fn exchange(&mut self, outputs: u32, now: Instant) -> Result<Inputs> {
        let peer = self.config.peer();
        if self.link.is_none() && !self.retry.is_due(now) {
            bail!("remote I/O {peer}: not connected; it is tried again soon");
        }
        let error = match self.turn(outputs) {
            Ok(Some(inputs)) => {
                if self.up.replace(true) != Some(true) {
                    log::info!("io_up station=remote peer={peer}");
                }
                self.retry.worked();
                return Ok(inputs);
            }
            Ok(None) => anyhow!(
                "it holds its outputs in the safe state since its watchdog has fired{}",
                match &self.config.safe_mode {
                    Some(SafeMode { clear_at: Some(_), .. }) => "; told to go on",
                    _ => "; end that at the module, or give io.safe_mode.clear_at",
                }
            ),
            // The answer was whole: the next one belongs to the next request.
            Err(Fault::Refused(error)) => error,
            Err(Fault::Lost(error)) => {
                self.link = None;
                self.down(&error);
                self.retry.failed(now);
                return Err(error).with_context(|| format!("remote I/O {peer}"));
            }
        };
        self.down(&error);
        Err(error).with_context(|| format!("remote I/O {peer}"))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let Some(link) = &mut self.link else { return };
        link.until = clock() + self.config.timeout();
        if self.config.outputs > 0
            && let Err(Fault::Refused(error) | Fault::Lost(error)) =
                link.write_outputs(&self.config, self.config.safe_outputs())
        {
            let peer = self.config.peer();
            log::error!(
                "io_not_safe station=remote peer={peer} reason=\"{}\"",
                plain(format!("{error:#}"))
            );
        }
    }
}

/// Why a turn came to nothing.
#[derive(Debug)]
enum Fault {
    /// The module has answered, and said no.
    Refused(anyhow::Error),
    /// Whatever comes on this connection can't be relied on.
    Lost(anyhow::Error),
}

#[derive(Clone, Copy)]
enum Kind {
    Coils,
    Inputs,
}

/// MODBUS Messaging on TCP/IP Implementation Guide V1.0b, 3.1.3: transaction, protocol, length, unit.
const HEADER_BYTES: usize = 7;
/// Header and the 253 bytes of the largest PDU.
const FRAME_BYTES: usize = HEADER_BYTES + 253;

/// A connection on which every request so far had its answer.
struct Link {
    socket: TcpStream,
    /// When the turn's time is up.
    until: Instant,
    request: ModbusRequest,
    sent: Vec<u8>,
    answer: [u8; FRAME_BYTES],
}

impl Link {
    fn open(config: &Config) -> Result<Link, Fault> {
        let lost = |error: std::io::Error| Fault::Lost(anyhow!(error).context("connecting"));
        let socket = TcpStream::connect_timeout(&config.peer(), config.timeout()).map_err(lost)?;
        // Requests are one small segment each; none waits for more.
        socket.set_nodelay(true).map_err(lost)?;
        Ok(Link {
            socket,
            until: clock(),
            request: ModbusRequest::new_tcp_udp(config.unit, 0),
            sent: Vec::with_capacity(FRAME_BYTES),
            answer: [0; FRAME_BYTES],
        })
    }

    fn write_outputs(&mut self, config: &Config, outputs: u32) -> Result<(), Fault> {
        let coils: [bool; 32] =
            std::array::from_fn(|n| outputs & mask(config.outputs) & (1 << n) != 0);
        self.write("writing io.outputs_at", |request, frame| {
            request.generate_set_coils_bulk(
                config.outputs_at,
                &coils[..usize::from(config.outputs)],
                frame,
            )
        })
    }

    /// The answer repeats address and value, or address and count.
    fn write(
        &mut self,
        doing: &'static str,
        generate: impl FnOnce(&mut ModbusRequest, &mut Vec<u8>) -> Result<(), rmodbus::ErrorKind>,
    ) -> Result<(), Fault> {
        const REPEATED: std::ops::Range<usize> = HEADER_BYTES + 1..HEADER_BYTES + 5;
        let length = self.ask(doing, generate)?;
        if length != REPEATED.end || self.answer[REPEATED] != self.sent[REPEATED] {
            return Err(Fault::Lost(anyhow!("{doing}: the answer repeats something else")));
        }
        Ok(())
    }

    fn read_bits(
        &mut self,
        kind: Kind,
        at: u16,
        count: u16,
        doing: &'static str,
    ) -> Result<u32, Fault> {
        let payload =
            self.read(doing, usize::from(count.div_ceil(8)), |request, frame| match kind {
                Kind::Coils => request.generate_get_coils(at, count, frame),
                Kind::Inputs => request.generate_get_discretes(at, count, frame),
            })?;
        let bits = payload.iter().rev().fold(0, |bits, &byte| (bits << 8) | u32::from(byte));
        Ok(bits & mask(count))
    }

    fn read_pair(&mut self, at: u16, doing: &'static str) -> Result<[u16; 2], Fault> {
        let payload =
            self.read(doing, 4, |request, frame| request.generate_get_inputs(at, 2, frame))?;
        Ok([0, 2].map(|first| u16::from_be_bytes([payload[first], payload[first + 1]])))
    }

    /// The `bytes` behind the answer's byte count.
    fn read(
        &mut self,
        doing: &'static str,
        bytes: usize,
        generate: impl FnOnce(&mut ModbusRequest, &mut Vec<u8>) -> Result<(), rmodbus::ErrorKind>,
    ) -> Result<&[u8], Fault> {
        const PAYLOAD: usize = HEADER_BYTES + 2;
        let length = self.ask(doing, generate)?;
        if length != PAYLOAD + bytes || usize::from(self.answer[PAYLOAD - 1]) != bytes {
            return Err(Fault::Lost(anyhow!("{doing}: the answer has another length")));
        }
        Ok(&self.answer[PAYLOAD..length])
    }

    /// Sends a request and takes its answer. Returns the length of the whole frame.
    fn ask(
        &mut self,
        doing: &'static str,
        generate: impl FnOnce(&mut ModbusRequest, &mut Vec<u8>) -> Result<(), rmodbus::ErrorKind>,
    ) -> Result<usize, Fault> {
        let asked = self.exchange(generate);
        let length = asked.with_context(|| doing).map_err(Fault::Lost)?;
        let function = self.request.func.byte();
        match self.answer[HEADER_BYTES] {
            answered if answered == function => Ok(length),
            answered if answered == function | 0x80 && length == HEADER_BYTES + 2 => {
                let code = self.answer[HEADER_BYTES + 1];
                Err(Fault::Refused(anyhow!(
                    "{doing}: refused with exception {code}{}",
                    meaning(code)
                )))
            }
            answered => Err(Fault::Lost(anyhow!("{doing}: answered with function {answered}"))),
        }
    }

    fn exchange(
        &mut self,
        generate: impl FnOnce(&mut ModbusRequest, &mut Vec<u8>) -> Result<(), rmodbus::ErrorKind>,
    ) -> Result<usize> {
        self.request.tr_id = self.request.tr_id.wrapping_add(1);
        self.sent.clear();
        generate(&mut self.request, &mut self.sent).map_err(|error| anyhow!("{error}"))?;
        self.socket.set_write_timeout(Some(self.time_left()?))?;
        self.socket.write_all(&self.sent).map_err(in_time)?;
        self.receive(0, HEADER_BYTES)?;
        let word = |at: usize| u16::from_be_bytes([self.answer[at], self.answer[at + 1]]);
        ensure!(
            word(0) == self.request.tr_id,
            "the answer is to transaction {} instead of {}",
            word(0),
            self.request.tr_id
        );
        ensure!(word(2) == 0, "the answer is not Modbus");
        // Unit, function and at least one byte, which every answer has.
        let length = HEADER_BYTES - 1 + usize::from(word(4));
        ensure!(
            (HEADER_BYTES + 2..=FRAME_BYTES).contains(&length),
            "the answer claims a length of {} bytes",
            word(4)
        );
        let unit = self.answer[HEADER_BYTES - 1];
        ensure!(
            unit == self.request.unit_id,
            "unit {unit} answers instead of {} (io.unit)",
            self.request.unit_id
        );
        self.receive(HEADER_BYTES, length)?;
        Ok(length)
    }

    fn receive(&mut self, from: usize, to: usize) -> Result<()> {
        let mut held = from;
        while held < to {
            self.socket.set_read_timeout(Some(self.time_left()?))?;
            match self.socket.read(&mut self.answer[held..to]) {
                Ok(0) => bail!("the module has closed the connection"),
                Ok(count) => held += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(in_time(error).into()),
            }
        }
        Ok(())
    }

    fn time_left(&self) -> Result<Duration> {
        let left = self.until.saturating_duration_since(clock());
        ensure!(!left.is_zero(), "not answered in time (io.timeout_ms)");
        Ok(left)
    }
}

/// What a socket says of a time limit, in words that name the key.
fn in_time(error: std::io::Error) -> std::io::Error {
    match error.kind() {
        kind @ (std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
            std::io::Error::new(kind, "not answered in time (io.timeout_ms)")
        }
        _ => error,
    }
}

/// MODBUS Application Protocol V1.1b3, 7: what a person can do about it.
fn meaning(code: u8) -> &'static str {
    match code {
        1 => ": the module does not know this function",
        2 => ": the module has no such address, or not so many",
        3 => ": the module does not take this value",
        4 => ": the module is at fault, or does not take it just now",
        5 | 6 => ": the module is busy",
        10 | 11 => ": no such unit (io.unit)",
        _ => "",
    }
}

#[expect(clippy::disallowed_methods, reason = "a station's own time limit, on its owner's thread")]
fn clock() -> Instant {
    Instant::now()
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
