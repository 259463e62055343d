//! A GigE Vision camera on a loopback address: telegenic's device, our sockets and our faults.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use telegenic::emulator::{DeviceConfig, GigeDevice};
use telegenic::gige::proto::bootstrap;

use super::plant::Shot;
use super::teaching::{Rendered, SIDE};
use super::{Shared, now};

/// The port of the GigE Vision control protocol.
const GVCP_PORT: u16 = 3956;

/// The first frame id, so that the 16-bit number wraps within seconds.
const FIRST_ID: u64 = 65_400;

/// What its clock shows when it begins, ns: a time of its own.
const CLOCK_BEGINS: u64 = 86_400_000_000_000;
/// The bit of the register `Timestamp control` that keeps the clock to be read.
const LATCH: u32 = 2;

pub struct Camera {
    address: Ipv4Addr,
    control: UdpSocket,
    stream: UdpSocket,
    pictures: Vec<Vec<u8>>,
}

/// The device and where it is in its stream.
struct Session {
    device: GigeDevice,
    began: Instant,
    started: bool,
    to: Option<SocketAddr>,
    next_id: u64,
    /// Of a frame that is kept back, with its packets.
    kept_back: Option<Vec<Vec<u8>>>,
}

impl Session {
    fn clock_ns(&self, at: Instant) -> u64 {
        CLOCK_BEGINS + at.saturating_duration_since(self.began).as_nanos() as u64
    }

    /// Does what the register asks for, which the emulator does not.
    fn latch(&mut self) {
        if self.device.read_reg(bootstrap::TIMESTAMP_CONTROL) & LATCH != 0 {
            let ns = self.clock_ns(now());
            self.device.write_reg(bootstrap::TIMESTAMP_CONTROL, 0);
            self.device.write_reg(bootstrap::TIMESTAMP_LATCHED_HIGH, (ns >> 32) as u32);
            self.device.write_reg(bootstrap::TIMESTAMP_LATCHED_LOW, ns as u32);
        }
    }
}

impl Camera {
    /// Takes the first loopback address whose control port is free.
    pub fn bind(pictures: &[Rendered]) -> Result<Camera> {
        let tries = (1..=50).map(|host| Ipv4Addr::new(127, 77, 0, host));
        let (address, control) = tries
            .filter_map(|address| Some((address, UdpSocket::bind((address, GVCP_PORT)).ok()?)))
            .next()
            .context("no loopback address has its port 3956 free for a camera")?;
        control.set_nonblocking(true).context("the camera's control socket")?;
        let stream = UdpSocket::bind((address, 0)).context("the camera's stream socket")?;
        let pictures = pictures.iter().map(|picture| picture.mono8.clone()).collect();
        Ok(Camera { address, control, stream, pictures })
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub fn serve(&self, shared: &Shared) {
        let config = DeviceConfig { width: SIDE, height: SIDE, ..DeviceConfig::default() };
        let mut session = Session {
            device: GigeDevice::new(self.address, &config),
            began: now(),
            started: false,
            to: None,
            next_id: FIRST_ID,
            kept_back: None,
        };
        while !shared.over() {
            let unplugged = shared.plant().camera.unplugged;
            self.answer_commands(&mut session, unplugged);
            loop {
                let shot = shared.plant().take_shot();
                let Some(shot) = shot else { break };
                if !unplugged {
                    self.shoot(&mut session, &shot, shared);
                }
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    fn answer_commands(&self, session: &mut Session, unplugged: bool) {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = self.control.recv_from(&mut datagram) {
            if unplugged {
                continue;
            }
            let reaction = session.device.handle_datagram(&datagram[..length], from);
            let to = session.device.stream_dest();
            if to != session.to {
                (session.to, session.started) = (to, false);
            }
            if reaction.acquisition_started {
                (session.started, session.next_id) = (true, FIRST_ID);
                session.kept_back = None;
            }
            session.latch();
            if let Some(reply) = reaction.reply {
                let _lost_like_any_datagram = self.control.send_to(&reply, from);
            }
            if let (Some(bytes), Some(to)) = (reaction.fire_test, session.to) {
                // Without the headers of IP and UDP.
                let test = vec![0; usize::from(bytes).saturating_sub(28)];
                let _lost_like_any_datagram = self.stream.send_to(&test, to);
            }
        }
    }

    fn shoot(&self, session: &mut Session, shot: &Shot, shared: &Shared) {
        let take = |count: fn(&mut super::plant::CameraTrouble) -> &mut u32| {
            let mut plant = shared.plant();
            let left = count(&mut plant.camera);
            let taken = *left > 0;
            *left = left.saturating_sub(1);
            taken
        };
        let Some(to) = session.to.filter(|_| session.started) else { return };
        if take(|trouble| &mut trouble.unseen) {
            return;
        }
        let id = session.next_id;
        // After 65535 comes 1: 0 is no frame.
        session.next_id = if id == 65_535 { 1 } else { id + 1 };
        if take(|trouble| &mut trouble.missing) {
            return;
        }
        // However late this thread comes to it.
        session.device.set_leader_timestamp_ns(session.clock_ns(shot.at));
        let mut packets = session.device.frame_packets(id, &self.pictures[shot.picture]);
        let half = take(|trouble| &mut trouble.half);
        if half {
            packets.remove(packets.len() / 2);
        }
        if take(|trouble| &mut trouble.out_of_order) && session.kept_back.is_none() {
            session.kept_back = Some(packets);
            return;
        }
        if self.send(&packets, to).is_ok() && !half {
            shared.plant().delivered(shot.part);
        }
        if let Some(before) = session.kept_back.take() {
            let _lost_like_any_datagram = self.send(&before, to);
        }
        if take(|trouble| &mut trouble.repeated) {
            let _lost_like_any_datagram = self.send(&packets, to);
        }
        if take(|trouble| &mut trouble.burst) {
            for _ in 0..2 {
                let id = session.next_id;
                session.next_id = if id == 65_535 { 1 } else { id + 1 };
                let again = session.device.frame_packets(id, &self.pictures[shot.picture]);
                let _lost_like_any_datagram = self.send(&again, to);
            }
        }
    }

    fn send(&self, packets: &[Vec<u8>], to: SocketAddr) -> io::Result<()> {
        packets.iter().try_for_each(|packet| self.stream.send_to(packet, to).map(|_| ()))
    }
}
