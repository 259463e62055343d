//! What calls a person to the gate. Codes and words are stable: the PLC and the log use them.

use std::fmt;

/// Each stands until it is cleared; those that [`Alarm::stops`] also ask for the belt to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Alarm {
    /// The I/O station does not answer: neither are its outputs known.
    IoLost = 1,
    /// Parts are triggered while the encoder stands, or it leaps.
    EncoderLost = 2,
    /// The belt runs faster than the line was laid out for.
    Overspeed = 3,
    /// A part that should have come to the photo-eye at the gate did not.
    PartMissing = 4,
    /// Something came to the photo-eye that nobody triggered.
    PartUnexpected = 5,
    /// The belt ran backwards beyond what is remembered of the parts.
    TrackingLost = 6,
    /// A rejected part did not reach the bin.
    RejectNotConfirmed = 7,
    /// The bin's sensor says that it is full.
    BinFull = 8,
    /// The sensor of the ejector's air says that it is low.
    AirLow = 9,
    /// So many rejects in a row that the camera or the recipe is to blame.
    ConsecutiveRejects = 10,
    /// The same by their share.
    RejectRate = 11,
    /// A verdict came after the part had reached the gate; it was rejected.
    VerdictLate = 12,
    /// Two parts of a camera were triggered closer together than parts can be.
    TooClose = 13,
}

impl Alarm {
    pub const ALL: [Alarm; 13] = [
        Alarm::IoLost,
        Alarm::EncoderLost,
        Alarm::Overspeed,
        Alarm::PartMissing,
        Alarm::PartUnexpected,
        Alarm::TrackingLost,
        Alarm::RejectNotConfirmed,
        Alarm::BinFull,
        Alarm::AirLow,
        Alarm::ConsecutiveRejects,
        Alarm::RejectRate,
        Alarm::VerdictLate,
        Alarm::TooClose,
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn word(self) -> &'static str {
        match self {
            Alarm::IoLost => "io_lost",
            Alarm::EncoderLost => "encoder_lost",
            Alarm::Overspeed => "overspeed",
            Alarm::PartMissing => "part_missing",
            Alarm::PartUnexpected => "part_unexpected",
            Alarm::TrackingLost => "tracking_lost",
            Alarm::RejectNotConfirmed => "reject_not_confirmed",
            Alarm::BinFull => "bin_full",
            Alarm::AirLow => "air_low",
            Alarm::ConsecutiveRejects => "consecutive_rejects",
            Alarm::RejectRate => "reject_rate",
            Alarm::VerdictLate => "verdict_late",
            Alarm::TooClose => "too_close",
        }
    }

    /// Whether the belt should stop: rejects may not leave the belt, or where the parts are is not
    /// known any more.
    pub fn stops(self) -> bool {
        !matches!(self, Alarm::VerdictLate | Alarm::PartMissing | Alarm::TooClose)
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The alarms that stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    bits: u16,
    newest: Option<Alarm>,
}

impl Alarms {
    /// True where it did not stand before.
    pub fn raise(&mut self, alarm: Alarm) -> bool {
        let new = !self.stands(alarm);
        self.bits |= bit(alarm);
        if new {
            self.newest = Some(alarm);
        }
        new
    }

    pub fn clear(&mut self) {
        *self = Alarms::default();
    }

    pub fn stands(&self, alarm: Alarm) -> bool {
        self.bits & bit(alarm) != 0
    }

    /// Whether one of them asks for the belt to stop.
    pub fn stop(&self) -> bool {
        Alarm::ALL.into_iter().any(|alarm| alarm.stops() && self.stands(alarm))
    }

    /// The alarm with code `c` is bit `c - 1`.
    pub fn bits(&self) -> u16 {
        self.bits
    }

    pub fn newest(&self) -> Option<Alarm> {
        self.newest
    }

    /// Of bits and the newest one's code, as [`Alarms::bits`] and [`Alarm::code`] give them.
    pub fn of(bits: u16, newest: u8) -> Alarms {
        Alarms { bits, newest: Alarm::ALL.into_iter().find(|alarm| alarm.code() == newest) }
    }
}

fn bit(alarm: Alarm) -> u16 {
    1 << (alarm.code() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_count_from_one_and_each_has_its_bit() {
        let mut alarms = Alarms::default();
        for (alarm, code) in Alarm::ALL.into_iter().zip(1..) {
            assert_eq!(alarm.code(), code);
            assert!(alarms.raise(alarm) && !alarms.raise(alarm));
            assert_eq!(Alarms::of(alarms.bits(), code), alarms);
        }
        assert_eq!((alarms.bits(), alarms.newest()), (0x1FFF, Some(Alarm::TooClose)));
        assert!(alarms.stop());
        alarms.clear();
        alarms.raise(Alarm::VerdictLate);
        assert!(!alarms.stop());
    }
}
