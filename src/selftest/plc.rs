//! A PLC: polls the daemon's registers every few milliseconds, takes each result, acknowledges it, and
//! notices what does not fit together.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Shared;
use crate::output::modbus::map;
use crate::telemetry::Latency;

/// What a PLC may do wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlcTrouble {
    #[default]
    None,
    Frozen,
    Flaps,
    AcksWrongly,
    NeverAcks,
}

/// What the PLC was told, and what of it was wrong.
#[derive(Default)]
pub struct Heard {
    pub ready: bool,
    pub trouble: PlcTrouble,
    pub results: u64,
    pub overrun: u64,
    pub latency: Latency,
    pub broken: Vec<String>,
    parts: HashSet<u64>,
    /// Of the status before.
    epoch: u32,
    triggers: u64,
    /// The last result that was taken.
    seq: u16,
}

/// Between two polls.
const SCAN: Duration = Duration::from_millis(15);

/// A port that nobody has just now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a port for the PLC")?;
    Ok(listener.local_addr().context("a port for the PLC")?.port())
}

pub fn poll(port: u16, shared: &Shared, heard: &Mutex<Heard>) {
    let lock = || heard.lock().unwrap_or_else(PoisonError::into_inner);
    let mut link: Option<Link> = None;
    let mut beat = 0u16;
    while !shared.over() {
        std::thread::sleep(SCAN);
        let trouble = lock().trouble;
        if trouble == PlcTrouble::Frozen {
            continue;
        }
        beat = beat.wrapping_add(1);
        if trouble == PlcTrouble::Flaps && beat.is_multiple_of(5) {
            link = None;
        }
        let open = match link.as_mut() {
            Some(open) => open,
            None => match Link::open(port) {
                Ok(opened) => link.insert(opened),
                Err(_) => {
                    lock().ready = false;
                    continue;
                }
            },
        };
        if scan(open, beat, trouble, lock).is_err() {
            lock().ready = false;
            link = None;
        }
    }
}

/// One cycle of the PLC's program.
fn scan<'a>(
    link: &mut Link,
    beat: u16,
    trouble: PlcTrouble,
    lock: impl Fn() -> MutexGuard<'a, Heard>,
) -> io::Result<()> {
    let acknowledged = match trouble {
        PlcTrouble::NeverAcks => 0,
        PlcTrouble::AcksWrongly if beat.is_multiple_of(3) => lock().seq.wrapping_sub(40),
        PlcTrouble::AcksWrongly if beat.is_multiple_of(5) => lock().seq.wrapping_add(1000),
        _ => lock().seq,
    };
    // Alarms are looked at every other second.
    let control = if beat % 128 < 64 { map::CLEAR_ALARMS | map::CLEAR_OVERRUN } else { 0 };
    link.write(map::CONTROL, &[control, beat, acknowledged])?;
    if trouble == PlcTrouble::AcksWrongly {
        link.write(map::CONTROL, &[control, beat, acknowledged])?;
    }
    let status = link.read(map::MAP_VERSION, 120)?;
    let newest = lock().status(&status);
    loop {
        let seq = lock().seq;
        if seq == newest {
            return Ok(());
        }
        let next = if seq == u16::MAX { 1 } else { seq + 1 };
        let slot = (next - 1) % map::SLOTS;
        let entry = link.read(map::RING + slot * map::ENTRY, map::ENTRY)?;
        if !lock().result(next, &entry, &status) {
            return Ok(());
        }
    }
}

/// Where a register lies in what was read from the status block.
fn at(address: u16) -> usize {
    usize::from(address - map::MAP_VERSION)
}

fn pair(words: &[u16], at: usize) -> u32 {
    u32::from(words[at]) << 16 | u32::from(words[at + 1])
}

fn quad(words: &[u16], at: usize) -> u64 {
    u64::from(pair(words, at)) << 32 | u64::from(pair(words, at + 2))
}

impl Heard {
    /// Looks at the status; the newest result's number.
    fn status(&mut self, words: &[u16]) -> u16 {
        let epoch = pair(words, at(map::EPOCH));
        self.ready = words[at(map::STATUS)] & map::READY != 0;
        if epoch == 0 {
            // Started, and nothing said yet.
            return self.seq;
        }
        if epoch != self.epoch {
            if epoch < self.epoch {
                self.broken.push(format!("the epoch went back from {} to {epoch}", self.epoch));
            }
            (self.epoch, self.seq) = (epoch, 0);
        }
        let [triggers, accepted, rejected, in_flight] =
            [map::TRIGGERS, map::ACCEPTED, map::REJECTED, map::IN_FLIGHT]
                .map(|address| quad(words, at(address)));
        if triggers != accepted + rejected + in_flight {
            self.broken.push(format!(
                "triggers {triggers} are not accepted {accepted} + rejected {rejected} + in flight \
                 {in_flight}"
            ));
        }
        if triggers < self.triggers {
            self.broken.push(format!("triggers went back from {} to {triggers}", self.triggers));
        }
        self.triggers = triggers;
        words[at(map::NEWEST_SEQ)]
    }

    /// Looks at the result that should be number `next`. False: it was overwritten meanwhile.
    fn result(&mut self, next: u16, entry: &[u16], status: &[u16]) -> bool {
        let field = |offset: u16| entry[usize::from(offset)];
        let seq = field(map::SEQ);
        if seq != field(map::SEQ_COPY) {
            self.broken.push(format!("result {seq} was read half old"));
        }
        if seq != next {
            let oldest = status[at(map::OLDEST_UNACKNOWLEDGED_SEQ)];
            let missed = oldest.wrapping_sub(next);
            if oldest == 0 || missed > 20_000 {
                self.broken.push(format!("result {next} is not there, but {seq}"));
            }
            self.overrun += u64::from(missed);
            self.seq = if oldest <= 1 { u16::MAX } else { oldest - 1 };
            return false;
        }
        self.seq = next;
        self.results += 1;
        let part = quad(entry, usize::from(map::PART));
        if !self.parts.insert(part) {
            self.broken.push(format!("part {part} was told twice"));
        }
        let scored = field(map::VALID) & (map::SCORE_VALID | map::THRESHOLD_VALID);
        let number = |offset: u16| f32::from_bits(pair(entry, usize::from(offset)));
        let below = number(map::SCORE) < number(map::THRESHOLD);
        let sound = scored == map::SCORE_VALID | map::THRESHOLD_VALID && below;
        if field(map::RESULT) == map::PASS && !sound {
            self.broken.push(format!("part {part} is a PASS without a score below its threshold"));
        }
        let latency_us = pair(entry, usize::from(map::LATENCY));
        self.latency.record(Duration::from_micros(latency_us.into()));
        true
    }
}

/// A Modbus TCP client.
struct Link {
    stream: TcpStream,
    transaction: u16,
}

impl Link {
    fn open(port: u16) -> io::Result<Link> {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let stream = TcpStream::connect_timeout(&address, Duration::from_millis(200))?;
        stream.set_nodelay(true)?;
        // Longer than the daemon is stopped for: a slow answer is no wrong one.
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(Link { stream, transaction: 0 })
    }

    fn read(&mut self, address: u16, count: u16) -> io::Result<Vec<u16>> {
        let [a, b] = address.to_be_bytes();
        let answer = self.ask(&[3, a, b, 0, count as u8])?;
        match answer.split_at_checked(2) {
            Some((&[3, bytes], words)) if usize::from(bytes) == words.len() => {
                Ok(words.chunks_exact(2).map(|w| u16::from_be_bytes([w[0], w[1]])).collect())
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn write(&mut self, address: u16, words: &[u16]) -> io::Result<()> {
        let [a, b] = address.to_be_bytes();
        let mut body = vec![16, a, b, 0, words.len() as u8, 2 * words.len() as u8];
        body.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        let answer = self.ask(&body)?;
        if answer.first() == Some(&16) { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn ask(&mut self, body: &[u8]) -> io::Result<Vec<u8>> {
        self.transaction = self.transaction.wrapping_add(1);
        let [high, low] = self.transaction.to_be_bytes();
        let mut frame = vec![high, low, 0, 0, 0, body.len() as u8 + 1, 1];
        frame.extend(body);
        self.stream.write_all(&frame)?;
        let mut header = [0; 7];
        self.stream.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut answer = vec![0; length.saturating_sub(1)];
        self.stream.read_exact(&mut answer)?;
        if header[..2] == [high, low] { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u16, part: u16, result: u16) -> Vec<u16> {
        let mut words = vec![0; usize::from(map::ENTRY)];
        words[usize::from(map::SEQ)] = seq;
        words[usize::from(map::SEQ_COPY)] = seq;
        words[usize::from(map::PART) + 3] = part;
        words[usize::from(map::RESULT)] = result;
        words
    }

    #[test]
    fn what_does_not_fit_together_is_noticed() {
        let mut heard = Heard::default();
        let mut status = vec![0; 120];
        status[at(map::EPOCH) + 1] = 1;
        status[at(map::TRIGGERS) + 3] = 3;
        status[at(map::ACCEPTED) + 3] = 2;
        status[at(map::IN_FLIGHT) + 3] = 1;
        status[at(map::NEWEST_SEQ)] = 2;
        assert_eq!(heard.status(&status), 2);
        assert!(heard.result(1, &entry(1, 7, map::FAIL), &status));
        assert!(heard.broken.is_empty());
        assert!(heard.result(2, &entry(2, 7, map::PASS), &status));
        assert_eq!(heard.broken.len(), 2, "twice, and a pass without a score");
        status[at(map::ACCEPTED) + 3] = 3;
        heard.status(&status);
        assert_eq!(heard.broken.len(), 3, "the counters do not close");
        assert!(!heard.result(3, &entry(258, 9, map::FAIL), &status));
        assert_eq!(heard.broken.len(), 4, "a result went lost without an overrun");
    }
}
