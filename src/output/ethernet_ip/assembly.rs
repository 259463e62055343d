//! What lies where in the two assemblies. The numbers are those of the register map
//! ([`super::super::registers::map`]) as CIP has them, low byte and low word first, and each at a multiple
//! of its size, so that a PLC's structure lies over them as it is.

use super::super::registers::map;

/// Assembly instances, by their CIP names: the PLC's input (T→O), its output (O→T), and the
/// configuration, which is empty.
pub(super) const INPUT: u32 = 100;
pub(super) const OUTPUT: u32 = 150;
pub(super) const CONFIGURATION: u32 = 151;

pub(super) const INPUT_BYTES: usize = 264;
pub(super) const OUTPUT_BYTES: usize = 16;

/// Changes when something changes its place or meaning.
const VERSION: u16 = 1;
const VERSION_AT: usize = 36;
/// What the daemon has taken of the PLC's control word.
const CONTROL_ECHO_AT: usize = 38;

/// Registers that are copied.
struct Field {
    /// In the input assembly.
    byte: usize,
    register: u16,
    /// Registers of one number, which come high word first.
    width: usize,
    /// Numbers one after the other.
    count: usize,
}

const fn words(byte: usize, register: u16, count: usize) -> Field {
    Field { byte, register, width: 1, count }
}

const fn doubles(byte: usize, register: u16, count: usize) -> Field {
    Field { byte, register, width: 2, count }
}

const fn quads(byte: usize, register: u16, count: usize) -> Field {
    Field { byte, register, width: 4, count }
}

const FIELDS: [Field; 16] = [
    // Status, state, heartbeat.
    words(0, map::STATUS, 3),
    words(6, map::NEWEST_SEQ, 1),
    doubles(8, map::EPOCH, 1),
    // And how many there are.
    words(12, map::CAMERAS_UP, 2),
    // Ready, acknowledge, missed, exposed.
    words(16, map::TRIGGER_READY, 4),
    doubles(24, map::MISSED, 1),
    // All that stand, the newest.
    words(28, map::ALARMS, 2),
    // And how many wait.
    words(32, map::HELD_STATUS, 2),
    quads(40, map::ACQUISITION, map::CAMERAS_TRIGGERED as usize),
    // Triggered, accepted, rejected, in flight.
    quads(168, map::TRIGGERS, 4),
    // The held result: seq, result, cause, camera.
    words(200, map::HELD + map::SEQ, 4),
    quads(208, map::HELD + map::PART, 1),
    // Score, threshold.
    doubles(216, map::HELD + map::SCORE, 2),
    words(224, map::HELD + map::VALID, 1),
    // Region, latency, epoch.
    doubles(228, map::HELD + map::REGION, 6),
    quads(256, map::HELD + map::TRIGGERED_AT, 1),
];

/// The input assembly. `registers(address, count)` gives them; `control` is what was taken of the PLC's.
pub(super) fn input<'a>(
    registers: impl Fn(u16, usize) -> &'a [u16],
    control: u16,
) -> [u8; INPUT_BYTES] {
    let mut bytes = [0; INPUT_BYTES];
    let mut put = |at: usize, word: u16| bytes[at..at + 2].copy_from_slice(&word.to_le_bytes());
    for field in &FIELDS {
        let numbers = registers(field.register, field.width * field.count);
        for (n, number) in numbers.chunks_exact(field.width).enumerate() {
            for (i, &word) in number.iter().rev().enumerate() {
                put(field.byte + 2 * (n * field.width + i), word);
            }
        }
    }
    put(VERSION_AT, VERSION);
    put(CONTROL_ECHO_AT, control);
    bytes
}

/// What the PLC says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub control: u16,
    pub heartbeat: u16,
    pub trigger: u16,
}

/// Takes the output assembly apart.
pub(super) fn output(bytes: &[u8]) -> Said {
    let word = |at: usize| bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    Said { control: word(0), heartbeat: word(2), trigger: word(4) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lie_low_word_first_at_multiples_of_their_size() {
        // Registers that hold their own address.
        let all: Vec<u16> = (0..500).collect();
        let bytes = input(|address, count| &all[usize::from(address)..][..count], 0xABCD);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let at = |at: usize, count: usize| (0..count).map(|n| word(at + 2 * n)).collect::<Vec<_>>();
        assert_eq!(at(0, 4), [101, 102, 103, 106]);
        assert_eq!(at(8, 4), [105, 104, 109, 110]);
        assert_eq!(at(16, 12), [112, 113, 114, 115, 117, 116, 118, 119, 300, 301, 1, 0xABCD]);
        // The parts of the first and the last camera.
        assert_eq!(at(40, 4), [339, 338, 337, 336]);
        assert_eq!(at(160, 4), [399, 398, 397, 396]);
        assert_eq!(at(168, 4), [155, 154, 153, 152]);
        assert_eq!(at(192, 4), [167, 166, 165, 164]);
        // The held result.
        assert_eq!(at(200, 8), [304, 305, 306, 307, 311, 310, 309, 308]);
        assert_eq!(at(216, 6), [313, 312, 315, 314, 316, 0]);
        assert_eq!(at(228, 14), [319, 318, 321, 320, 323, 322, 325, 324, 327, 326, 329, 328, 0, 0]);
        assert_eq!(at(256, 4), [333, 332, 331, 330]);
        for field in &FIELDS {
            assert_eq!(field.byte % (2 * field.width), 0, "byte {}", field.byte);
        }
    }

    #[test]
    fn what_the_plc_says_is_three_words() {
        let mut bytes = [0; OUTPUT_BYTES];
        bytes[..6].copy_from_slice(&[0x0E, 0x01, 0x34, 0x12, 0x02, 0x80]);
        let said = Said { control: 0x010E, heartbeat: 0x1234, trigger: 0x8002 };
        assert_eq!(output(&bytes), said);
    }
}
