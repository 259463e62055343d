//! MODBUS/TCP frames and function codes, apart from any socket. Source: MODBUS Application Protocol
//! Specification V1.1b3 (function codes and exceptions, chapters 6 and 7) and MODBUS Messaging on
//! TCP/IP Implementation Guide V1.0b (header, chapter 3.1.3).

use std::time::Instant;

use crate::output::registers::{Exception, Image};

/// Transaction, protocol, length, unit.
pub(super) const HEADER_BYTES: usize = 7;

/// Header and the longest function block, 253 bytes.
pub(super) const FRAME_BYTES: usize = 260;

/// What stands at the beginning of a received stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// More bytes are needed.
    Partial,
    /// A frame of this many bytes, header included.
    Frame(usize),
    /// Not MODBUS/TCP: where the next frame begins can't be told, the connection is of no use.
    Garbage,
}

pub(super) fn framing(bytes: &[u8]) -> Framing {
    let word = |at: usize| {
        bytes.get(at..at + 2).map(|word| usize::from(u16::from_be_bytes([word[0], word[1]])))
    };
    match (word(2), word(4)) {
        (Some(1..), _) => Framing::Garbage,
        // The length counts the unit and at least a function code.
        (_, Some(length)) if !(2..=FRAME_BYTES - 6).contains(&length) => Framing::Garbage,
        (_, Some(length)) if bytes.len() >= 6 + length => Framing::Frame(6 + length),
        _ => Framing::Partial,
    }
}

/// Answers one whole frame onto the end of `reply`. With `unit` set, frames for other units (but
/// not 0 and 255, which name this device by the guide) get the exception of a gateway whose target
/// does not respond.
pub(super) fn answer(
    frame: &[u8],
    unit: Option<u8>,
    image: &mut Image,
    now: Instant,
    reply: &mut Vec<u8>,
) {
    let start = reply.len();
    reply.extend_from_slice(&frame[..HEADER_BYTES]);
    let (asked, block) = (frame[HEADER_BYTES - 1], &frame[HEADER_BYTES..]);
    let function = block[0];
    reply.push(function);
    let done = match unit {
        Some(unit) if ![unit, 0, 255].contains(&asked) => Err(Exception::GatewayTarget),
        _ => execute(function, &block[1..], image, now, reply),
    };
    if let Err(exception) = done {
        reply.truncate(start + HEADER_BYTES);
        reply.extend([function | 0x80, exception as u8]);
    }
    let length = (reply.len() - start - 6) as u16;
    reply[start + 4..start + 6].copy_from_slice(&length.to_be_bytes());
}

fn execute(
    function: u8,
    body: &[u8],
    image: &mut Image,
    now: Instant,
    reply: &mut Vec<u8>,
) -> Result<(), Exception> {
    match function {
        READ_COILS | READ_DISCRETE_INPUTS => {
            let [address, count] = words(body)?;
            quantity(count, 2000)?;
            let bits = image.bits(address, count, now)?;
            let bytes = count.div_ceil(8) as usize;
            reply.push(bytes as u8);
            reply.extend_from_slice(&bits.to_le_bytes()[..bytes]);
        }
        READ_HOLDING_REGISTERS | READ_INPUT_REGISTERS => {
            let [address, count] = words(body)?;
            quantity(count, 125)?;
            reply.push((count * 2) as u8);
            image.read(address, count, now, reply)?;
        }
        WRITE_SINGLE_REGISTER => {
            let [address, value] = words(body)?;
            image.write(address, &[value], now)?;
            reply.extend_from_slice(body);
        }
        WRITE_MULTIPLE_REGISTERS => {
            let (head, values) = body.split_at_checked(4).ok_or(Exception::Value)?;
            let [address, count] = words(head)?;
            quantity(count, 123)?;
            image.write(address, &counted(count, values)?, now)?;
            reply.extend_from_slice(head);
        }
        READ_WRITE_MULTIPLE_REGISTERS => {
            let (head, values) = body.split_at_checked(8).ok_or(Exception::Value)?;
            let [read_address, read_count, address, count] = words(head)?;
            quantity(read_count, 125)?;
            quantity(count, 121)?;
            let values = counted(count, values)?;
            // An exception must not leave the write done: the read's address is tried first.
            let start = reply.len();
            reply.push((read_count * 2) as u8);
            image.read(read_address, read_count, now, reply)?;
            image.write(address, &values, now)?;
            reply.truncate(start + 1);
            image.read(read_address, read_count, now, reply)?;
        }
        _ => return Err(Exception::Function),
    }
    Ok(())
}

const READ_COILS: u8 = 1;
const READ_DISCRETE_INPUTS: u8 = 2;
const READ_HOLDING_REGISTERS: u8 = 3;
const READ_INPUT_REGISTERS: u8 = 4;
const WRITE_SINGLE_REGISTER: u8 = 6;
const WRITE_MULTIPLE_REGISTERS: u8 = 16;
const READ_WRITE_MULTIPLE_REGISTERS: u8 = 23;

/// Exactly `N` words. A block of another length has an implied length that is wrong: exception 3.
fn words<const N: usize>(bytes: &[u8]) -> Result<[u16; N], Exception> {
    let (words, rest) = bytes.as_chunks::<2>();
    match <[[u8; 2]; N]>::try_from(words) {
        Ok(words) if rest.is_empty() => Ok(words.map(u16::from_be_bytes)),
        _ => Err(Exception::Value),
    }
}

/// A byte count and that many bytes, which must be `count` registers.
fn counted(count: u16, bytes: &[u8]) -> Result<Vec<u16>, Exception> {
    let (&length, values) = bytes.split_first().ok_or(Exception::Value)?;
    if usize::from(length) != values.len() || u16::from(length) != count * 2 {
        return Err(Exception::Value);
    }
    Ok(values.as_chunks::<2>().0.iter().map(|&word| u16::from_be_bytes(word)).collect())
}

fn quantity(count: u16, most: u16) -> Result<(), Exception> {
    if (1..=most).contains(&count) { Ok(()) } else { Err(Exception::Value) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmodbus::{ModbusProto, client::ModbusRequest};

    use super::*;
    use crate::output::Controls;
    use crate::output::registers::{Limits, map};

    fn image() -> Image {
        Image::new(Limits::default(), Controls::default())
    }

    #[expect(clippy::disallowed_methods, reason = "tests have a clock of their own")]
    fn now() -> Instant {
        Instant::now()
    }

    fn ask(image: &mut Image, frame: &[u8]) -> Vec<u8> {
        assert_eq!(framing(frame), Framing::Frame(frame.len()));
        let mut reply = Vec::new();
        answer(frame, None, image, now(), &mut reply);
        assert_eq!(framing(&reply), Framing::Frame(reply.len()));
        reply
    }

    /// A frame of transaction 0x0102 and unit 1.
    fn frame(block: &[u8]) -> Vec<u8> {
        let length = (block.len() + 1) as u8;
        [&[1, 2, 0, 0, 0, length, 1], block].concat()
    }

    /// The examples' layout of the specification, chapters 6.3, 6.6 and 6.12, by hand.
    #[test]
    fn frames_are_those_of_the_standard() {
        let mut image = image();
        assert_eq!(
            ask(&mut image, &frame(&[3, 0, 100, 0, 1])),
            [1, 2, 0, 0, 0, 5, 1, 3, 2, 0, map::VERSION as u8]
        );
        let write = frame(&[6, 0, 1, 0xAB, 0xCD]);
        assert_eq!(ask(&mut image, &write), write);
        assert_eq!(
            ask(&mut image, &frame(&[16, 0, 1, 0, 2, 4, 0, 7, 0, 0])),
            [1, 2, 0, 0, 0, 6, 1, 16, 0, 1, 0, 2]
        );
        assert_eq!(
            ask(&mut image, &frame(&[23, 0, 0, 0, 2, 0, 1, 0, 1, 2, 0, 9])),
            [1, 2, 0, 0, 0, 7, 1, 23, 4, 0, 0, 0, 9]
        );
    }

    #[test]
    fn faults_get_the_exceptions_of_the_standard() {
        struct Case(&'static str, &'static [u8], u8);
        let cases = [
            Case("function 5, write coil", &[5, 0, 0, 255, 0], 1),
            Case("function 0", &[0], 1),
            Case("function 43, device identification", &[43, 14, 1, 0], 1),
            Case("no registers", &[3, 0, 100, 0, 0], 3),
            Case("126 registers", &[3, 3, 232, 0, 126], 3),
            Case("block cut short", &[3, 0, 100, 0], 3),
            Case("block too long", &[3, 0, 100, 0, 1, 0], 3),
            Case("nothing but the function", &[3], 3),
            Case("a hole in the map", &[3, 0, 50, 0, 1], 2),
            Case("over the end of a block", &[4, 0, 3, 0, 2], 2),
            Case("over the end of the addresses", &[3, 255, 255, 0, 2], 2),
            Case("status is not written", &[6, 0, 101, 0, 1], 2),
            Case("the ring is not written", &[16, 3, 232, 0, 1, 2, 0, 1], 2),
            Case("one register too many", &[16, 0, 3, 0, 2, 4, 0, 1, 0, 1], 2),
            Case("byte count is not twice the registers", &[16, 0, 0, 0, 2, 3, 0, 1, 0], 3),
            Case("byte count beyond the block", &[16, 0, 0, 0, 2, 4, 0, 1, 0], 3),
            Case("124 registers written", &[16, 0, 0, 0, 124, 248], 3),
            Case("bit 16", &[1, 0, 16, 0, 1], 2),
            Case("bits over the end", &[2, 0, 15, 0, 2], 2),
            Case("2001 bits", &[2, 0, 0, 7, 209], 3),
            Case("read of 23 in a hole", &[23, 0, 50, 0, 1, 0, 0, 0, 1, 2, 0, 1], 2),
            Case("write of 23 to the status", &[23, 0, 0, 0, 1, 0, 101, 0, 1, 2, 0, 1], 2),
        ];
        for Case(what, block, code) in cases {
            let mut image = image();
            let reply = ask(&mut image, &frame(block));
            assert_eq!(reply[HEADER_BYTES..], [block[0] | 0x80, code], "{what}");
            let mut control = Vec::new();
            image.read(0, 3, now(), &mut control).unwrap();
            assert_eq!(control, [0; 6], "{what}: nothing was written");
        }
    }

    #[test]
    fn another_unit_gets_the_exception_of_a_gateway() {
        let mut image = image();
        for (asked, served) in [(7, true), (0, true), (255, true), (1, false)] {
            let mut frame = frame(&[3, 0, 100, 0, 1]);
            frame[6] = asked;
            let mut reply = Vec::new();
            answer(&frame, Some(7), &mut image, now(), &mut reply);
            assert_eq!(reply[6], asked);
            assert_eq!(reply[7..] == [0x83, 11], !served, "unit {asked}");
        }
    }

    #[test]
    fn a_stream_is_cut_into_frames_at_any_byte() {
        let whole = frame(&[3, 0, 100, 0, 1]);
        for cut in 0..whole.len() {
            assert_eq!(framing(&whole[..cut]), Framing::Partial, "cut {cut}");
        }
        let two = [whole.as_slice(), &whole[..3]].concat();
        assert_eq!(framing(&two), Framing::Frame(12));
        assert_eq!(framing(b"GET / HTTP/1.1\r\n"), Framing::Garbage);
        assert_eq!(framing(&[0, 1, 0, 0, 0, 1]), Framing::Garbage, "no function code");
        assert_eq!(framing(&[0, 1, 0, 0, 0, 255]), Framing::Garbage, "longer than any frame");
        assert_eq!(framing(&[0, 1, 0, 0, 0, 254]), Framing::Partial);
    }

    /// `rmodbus` speaks the client's side.
    #[test]
    fn an_independent_codec_reads_what_we_answer() {
        let mut image = image();
        let mut client = ModbusRequest::new(1, ModbusProto::TcpUdp);
        let mut request = Vec::new();
        client.generate_set_holdings_bulk(0, &[0, 77, 0], &mut request).unwrap();
        client.parse_ok(&ask(&mut image, &request)).unwrap();
        request.clear();
        client.generate_get_holdings(0, 3, &mut request).unwrap();
        let mut registers = Vec::new();
        client.parse_u16(&ask(&mut image, &request), &mut registers).unwrap();
        assert_eq!(registers, [0, 77, 0]);
        request.clear();
        client.generate_get_discretes(0, 16, &mut request).unwrap();
        let mut bits = Vec::new();
        client.parse_bool(&ask(&mut image, &request), &mut bits).unwrap();
        // The PLC's heartbeat was just written; the line stands still.
        let set: Vec<usize> = (0..16).filter(|&bit| bits[bit]).collect();
        assert_eq!(set, [5]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_codec_stumble(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Framing::Frame(length) = framing(&bytes) {
                ask(&mut image(), &bytes[..length]);
            }
        }

        #[test]
        fn every_function_block_is_answered(block in prop::collection::vec(any::<u8>(), 1..253)) {
            let length = (block.len() + 1) as u16;
            let frame = [&[1, 2, 0, 0], &length.to_be_bytes()[..], &[1], &block].concat();
            let reply = ask(&mut image(), &frame);
            prop_assert!(reply[7] & 0x7F == block[0] & 0x7F);
        }
    }
}
