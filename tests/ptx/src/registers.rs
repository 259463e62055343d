//! Registers of a warp: 32 lanes side by side. Immediate values and special registers are registers
//! too, filled before the first instruction, so that an operand is an index and nothing else.

use crate::fault::{Kind, Problem};

pub const LANES: usize = 32;
pub type Words = [u32; LANES];
pub type Doubles = [u64; LANES];

/// All lanes.
pub const FULL: u32 = u32::MAX;

/// Where a register lies. Registers of 8, 16 and 32 bits lie in words, narrow ones with zeros
/// above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    Predicate(u32),
    Word(u32),
    Double(u32),
}

/// What is in a register before the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    Value(u64),
    Thread(usize),
    ThreadCount(usize),
    Block(usize),
    BlockCount(usize),
    Lane,
}

/// Registers of one kind, and which lanes of each hold something.
pub struct Bank<T> {
    pub values: Vec<T>,
    known: Vec<u32>,
}

impl<T: Copy> Bank<T> {
    pub fn new(count: usize, zero: T) -> Self {
        Self { values: vec![zero; count], known: vec![0; count] }
    }

    /// Forgets all that is in them.
    pub fn clear(&mut self) {
        self.known.fill(0);
    }

    pub fn preset(&mut self, index: u32, value: T) {
        self.values[index as usize] = value;
        self.known[index as usize] = FULL;
    }

    #[inline]
    pub fn get(&self, index: u32, active: u32) -> Result<&T, Problem> {
        let unknown = active & !self.known[index as usize];
        if unknown != 0 {
            return Err(unknown_register(unknown));
        }
        Ok(&self.values[index as usize])
    }

    #[inline]
    pub fn known(&self, index: u32) -> u32 {
        self.known[index as usize]
    }

    /// The register to be written in the lanes of `active`, of which `known` get something known.
    #[inline]
    pub fn target(&mut self, index: u32, active: u32, known: u32) -> &mut T {
        let all = &mut self.known[index as usize];
        *all = *all & !active | known & active;
        &mut self.values[index as usize]
    }
}

#[cold]
fn unknown_register(lanes: u32) -> Problem {
    Problem::new(Kind::Uninitialised, "a register that nothing was put into")
        .of_lane(lanes.trailing_zeros() as usize)
}

/// Lanes of a mask.
pub fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}

/// Puts `from` into the lanes of `active`.
#[inline(always)]
pub fn put<T: Copy>(to: &mut [T; LANES], from: &[T; LANES], active: u32) {
    if active == FULL {
        *to = *from;
    } else {
        for lane in lanes(active) {
            to[lane] = from[lane];
        }
    }
}

pub struct Registers {
    pub predicates: Bank<u32>,
    pub words: Bank<Words>,
    pub doubles: Bank<Doubles>,
}

impl Registers {
    pub fn put_word(&mut self, index: u32, from: &Words, active: u32) {
        put(self.words.target(index, active, FULL), from, active);
    }

    pub fn put_double(&mut self, index: u32, from: &Doubles, active: u32) {
        put(self.doubles.target(index, active, FULL), from, active);
    }

    pub fn put_predicate(&mut self, index: u32, from: u32, active: u32) {
        let to = self.predicates.target(index, active, FULL);
        *to = *to & !active | from & active;
    }

    /// What a register holds in a lane, zeros above.
    pub fn lane(&self, register: Register, lane: usize) -> Result<u64, Problem> {
        let bit = 1 << lane;
        Ok(match register {
            Register::Predicate(index) => u64::from(self.predicates.get(index, bit)? >> lane & 1),
            Register::Word(index) => u64::from(self.words.get(index, bit)?[lane]),
            Register::Double(index) => self.doubles.get(index, bit)?[lane],
        })
    }

    /// What a register holds in the active lanes, zeros above.
    pub fn lanes(&self, register: Register, active: u32) -> Result<Doubles, Problem> {
        Ok(match register {
            Register::Predicate(index) => {
                let bits = *self.predicates.get(index, active)?;
                std::array::from_fn(|lane| u64::from(bits >> lane & 1))
            }
            Register::Word(index) => self.words.get(index, active)?.map(u64::from),
            Register::Double(index) => *self.doubles.get(index, active)?,
        })
    }

    pub fn set_lane(&mut self, register: Register, lane: usize, value: u64) {
        let bit = 1 << lane;
        match register {
            Register::Predicate(index) => {
                self.put_predicate(index, (value as u32 & 1) << lane, bit)
            }
            Register::Word(index) => self.words.target(index, bit, bit)[lane] = value as u32,
            Register::Double(index) => self.doubles.target(index, bit, bit)[lane] = value,
        }
    }
}
