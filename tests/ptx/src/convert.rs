//! `cvt`: from one type to another.

use half::{bf16, f16};

use crate::float;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Unsigned(u32),
    Signed(u32),
    F16,
    Bf16,
    F32,
    F64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// The conversion is exact, or cuts bits off.
    None,
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    pub to: Type,
    pub from: Type,
    /// To an integer or to a float with fewer digits.
    pub rounding: Rounding,
    /// To an integral value, the type being a float.
    pub integral: bool,
    pub saturate: bool,
}

impl Type {
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => {
                let (kind, bits) = word.split_at_checked(1)?;
                let bits = bits.parse().ok().filter(|bits| [8, 16, 32, 64].contains(bits))?;
                match kind {
                    "u" => Self::Unsigned(bits),
                    "s" => Self::Signed(bits),
                    _ => return None,
                }
            }
        })
    }

    pub fn bits(self) -> u32 {
        match self {
            Self::Unsigned(bits) | Self::Signed(bits) => bits,
            Self::F16 | Self::Bf16 => 16,
            Self::F32 => 32,
            Self::F64 => 64,
        }
    }

    fn is_float(self) -> bool {
        !matches!(self, Self::Unsigned(_) | Self::Signed(_))
    }
}

impl Conversion {
    /// From the words behind `cvt`.
    ///
    /// # Errors
    /// What is not known, or what PTX does not allow: a conversion that needs a rounding without
    /// one.
    pub fn parse(words: &[&str]) -> Result<Self, String> {
        let [modifiers @ .., to, from] = words else { return Err("cvt without types".into()) };
        let kind = |word: &str| Type::parse(word).ok_or_else(|| format!("unknown type .{word}"));
        let (to, from) = (kind(to)?, kind(from)?);
        let mut conversion =
            Self { to, from, rounding: Rounding::None, integral: false, saturate: false };
        for &modifier in modifiers {
            let rounding = match modifier {
                "sat" => {
                    conversion.saturate = true;
                    continue;
                }
                "rn" | "rni" => Rounding::Nearest,
                "rz" | "rzi" => Rounding::Zero,
                "rm" | "rmi" => Rounding::Down,
                "rp" | "rpi" => Rounding::Up,
                _ => return Err(format!("unknown modifier .{modifier}")),
            };
            if conversion.rounding != Rounding::None {
                return Err("two roundings".into());
            }
            conversion.rounding = rounding;
            conversion.integral = modifier.len() == 3;
        }
        let (wants_integral, wants_rounding) = match (from.is_float(), to.is_float()) {
            (true, false) => (true, true),
            (false, true) => (false, true),
            (true, true) if from == to => (conversion.integral, conversion.integral),
            // Fewer digits, or of bf16 and f16 fewer in one way or the other.
            (true, true) => (false, from.bits() > to.bits()),
            (false, false) => (false, false),
        };
        let rounds = conversion.rounding != Rounding::None;
        if rounds != wants_rounding || conversion.integral != wants_integral {
            return Err("a rounding that these types do not have".into());
        }
        let half = matches!(to, Type::F16 | Type::Bf16);
        if half && (from != Type::F32 || conversion.rounding != Rounding::Nearest) {
            return Err("a half float only from f32, to the nearest".into());
        }
        if to == Type::F64 && !from.is_float() && conversion.rounding != Rounding::Nearest {
            return Err("f64 from an integer only to the nearest".into());
        }
        Ok(conversion)
    }

    /// The bits of a register, of which the lower ones hold a value of `from`, as a register for
    /// `to`.
    pub fn apply(self, bits: u64) -> u64 {
        match self.from {
            Type::Unsigned(width) => self.of_integer(i128::from(bits & ones(width))),
            Type::Signed(width) => self.of_integer(i128::from(extend(bits, width))),
            Type::F16 => self.of_float(f16::from_bits(bits as u16).to_f64()),
            Type::Bf16 => self.of_float(bf16::from_bits(bits as u16).to_f64()),
            Type::F32 => self.of_float(f64::from(f32::from_bits(bits as u32))),
            Type::F64 => self.of_float(f64::from_bits(bits)),
        }
    }

    fn of_integer(self, value: i128) -> u64 {
        match self.to {
            Type::Unsigned(width) if self.saturate => value.clamp(0, ones(width).into()) as u64,
            Type::Signed(width) if self.saturate => {
                let most = i128::from(ones(width) >> 1);
                value.clamp(-most - 1, most) as u64 & register(width)
            }
            Type::Unsigned(width) => value as u64 & ones(width),
            // What is narrower than its register fills it with its sign.
            Type::Signed(width) => extend(value as u64, width) as u64 & register(width),
            Type::F32 => {
                let nearest = value as f32;
                let rounded = match self.rounding {
                    // Exact in f64 unless it has more than 53 digits, and then i128 decides.
                    Rounding::Down if nearest as i128 > value => nearest.next_down(),
                    Rounding::Up if (nearest as i128) < value => nearest.next_up(),
                    Rounding::Zero if value > 0 && nearest as i128 > value => nearest.next_down(),
                    Rounding::Zero if value < 0 && (nearest as i128) < value => nearest.next_up(),
                    _ => nearest,
                };
                u64::from(rounded.to_bits())
            }
            Type::F64 => (value as f64).to_bits(),
            Type::F16 | Type::Bf16 => unreachable!("parse lets half floats be made of f32 only"),
        }
    }

    fn of_float(self, value: f64) -> u64 {
        if !self.to.is_float() {
            return self.integer_of(value);
        }
        let mut value = if self.integral { round(value, self.rounding) } else { value };
        if self.saturate {
            // Neither NaN nor -0 is more than 0.
            value = if value > 0.0 { value.min(1.0) } else { 0.0 };
        }
        match self.to {
            Type::F16 => u64::from(f16::from_f64(value).to_bits()),
            Type::Bf16 => u64::from(bf16::from_f64(value).to_bits()),
            Type::F64 => value.to_bits(),
            _ => {
                let single = match self.rounding {
                    Rounding::Down => float::down(value),
                    Rounding::Up => float::up(value),
                    Rounding::Zero => float::toward_zero(value),
                    Rounding::None | Rounding::Nearest => value as f32,
                };
                u64::from(single.to_bits())
            }
        }
    }

    fn integer_of(self, value: f64) -> u64 {
        let width = self.to.bits();
        if value.is_nan() {
            // "Zero if source is not .f64 and destination is not .s64, .u64", says PTX; else the
            // top bit.
            let top = self.from == Type::F64 || width == 64;
            return if top { 1 << (width - 1) } else { 0 };
        }
        // Rust clamps to the range, as PTX does.
        let rounded = round(value, self.rounding) as i128;
        match self.to {
            Type::Signed(_) => {
                let most = i128::from(ones(width) >> 1);
                rounded.clamp(-most - 1, most) as u64 & register(width)
            }
            _ => rounded.clamp(0, ones(width).into()) as u64,
        }
    }
}

fn round(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
        Rounding::None => value,
    }
}

fn ones(width: u32) -> u64 {
    u64::MAX >> (64 - width)
}

/// Bits of the register in which a type of this width lies.
fn register(width: u32) -> u64 {
    ones(width.max(32))
}

/// The lower bits as a signed number.
pub fn extend(bits: u64, width: u32) -> i64 {
    ((bits << (64 - width)) as i64) >> (64 - width)
}
