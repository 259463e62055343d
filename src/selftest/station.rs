//! A remote I/O module on Modbus TCP: the gate's output and the encoder's counter.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Shared, now};

/// Input registers of the counter, high word first.
pub const ENCODER_AT: u16 = 10;

pub struct Station {
    listener: TcpListener,
    address: SocketAddr,
}

impl Station {
    pub fn bind() -> Result<Station> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the station's port")?;
        listener.set_nonblocking(true).context("the station's port")?;
        let address = listener.local_addr().context("the station's port")?;
        Ok(Station { listener, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves one client after the other, as the simplest modules do.
    pub fn serve(&self, shared: &Shared) {
        while !shared.over() {
            match self.listener.accept() {
                Ok((client, _)) => {
                    // An end of the connection, whatever its reason, is the daemon's to mend.
                    let _ended = serve_client(client, shared);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

fn serve_client(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_nodelay(true)?;
    client.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut header = [0; 7];
    loop {
        if shared.over() || shared.plant().station_cut {
            return Ok(());
        }
        match client.read_exact(&mut header[..1]) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => continue,
            Err(error) => return Err(error),
        }
        client.read_exact(&mut header[1..])?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let mut body = vec![0; length.saturating_sub(1)];
        client.read_exact(&mut body)?;
        while shared.plant().station_deaf && !shared.over() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let answer = answer(&body, shared);
        let mut frame = header[..4].to_vec();
        frame.extend((answer.len() as u16 + 1).to_be_bytes());
        frame.push(header[6]);
        frame.extend(answer);
        client.write_all(&frame)?;
    }
}

fn answer(body: &[u8], shared: &Shared) -> Vec<u8> {
    let word = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    match *body {
        // Write coils.
        [15, _, _, _, _, _, bits, ..] => {
            shared.plant().write_gate(bits & 1 != 0, now());
            body[..5].to_vec()
        }
        // Read the counter.
        [4, _, _, 0, 2] if word(1) == ENCODER_AT => {
            let count = shared.plant().encoder(now());
            [&[4, 4][..], &count.to_be_bytes()].concat()
        }
        [function, ..] => vec![function | 0x80, 1],
        [] => vec![0x80, 1],
    }
}
