//! Instructions of a warp that touch memory, lane by lane.

use super::{Copy, Site, Warp};
use crate::convert::extend;
use crate::fault::{Kind, Problem};
use crate::instruction::*;
use crate::memory::Accessor;
use crate::race::{Access, Tag};
use crate::registers::{FULL, LANES, Register, lanes};

impl Warp {
    /// The lanes, as races in either memory know them.
    fn tags(&self, site: &Site) -> Tags {
        let thread = self.number * LANES as u32;
        Tags {
            first: thread,
            shared: Tag::new(site.epoch, self.phase, thread),
            global: self.accessor(site, 0),
        }
    }

    fn accessor(&self, site: &Site, lane: usize) -> Accessor {
        let thread = self.number * LANES as u32 + lane as u32;
        Accessor {
            tag: Tag::new(site.era, site.barriers, thread),
            granule: site.kernel.granules.global,
        }
    }

    pub(super) fn load(
        &mut self,
        load: &Load,
        active: u32,
        site: &mut Site,
    ) -> Result<(), Problem> {
        let total = load.bytes * load.to.len();
        let addresses = self.addresses(load.address, active)?;
        let tags = self.tags(site);
        for lane in lanes(active) {
            let values =
                access(load.space, addresses[lane], total, Access::Read, tags.of(lane), site)
                    .map_err(|problem| problem.of_lane(lane))?;
            let mut start = 0;
            for &to in &load.to {
                let value = load.value(&values[start..start + load.bytes]);
                start += load.bytes;
                match to {
                    Register::Word(index) => {
                        self.registers.words.values[index as usize][lane] = value as u32;
                    }
                    Register::Double(index) => {
                        self.registers.doubles.values[index as usize][lane] = value;
                    }
                    Register::Predicate(_) => unreachable!("predicates are not loaded"),
                }
            }
        }
        for &to in &load.to {
            match to {
                Register::Word(index) => {
                    self.registers.words.target(index, active, FULL);
                }
                Register::Double(index) => {
                    self.registers.doubles.target(index, active, FULL);
                }
                Register::Predicate(_) => unreachable!("predicates are not loaded"),
            }
        }
        Ok(())
    }

    pub(super) fn load_param(
        &mut self,
        load: &Load,
        active: u32,
        site: &Site,
    ) -> Result<(), Problem> {
        for lane in lanes(active) {
            let address = self.address(load.address, lane)?;
            let total = load.bytes * load.to.len();
            let start = (address & ((1 << PARAM_SHIFT) - 1)) as usize;
            let arg = site.args.get((address >> PARAM_SHIFT).wrapping_sub(1) as usize);
            let Some(values) = arg.and_then(|arg| arg.get(start..start + total)) else {
                let detail = format!("{total} bytes at {start} of a parameter");
                return Err(Problem::new(Kind::OutOfBounds, detail).of_lane(lane));
            };
            if !start.is_multiple_of(total) {
                let detail = format!("{total} bytes at {start} of a parameter");
                return Err(Problem::new(Kind::Misaligned, detail).of_lane(lane));
            }
            for (chunk, &to) in values.chunks_exact(load.bytes).zip(&load.to) {
                self.registers.set_lane(to, lane, load.value(chunk));
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        store: &Store,
        active: u32,
        site: &mut Site,
    ) -> Result<(), Problem> {
        let total = store.bytes * store.from.len();
        let addresses = self.addresses(store.address, active)?;
        let tags = self.tags(site);
        let mut values = [[0; LANES]; 4];
        for (values, &from) in values.iter_mut().zip(&store.from) {
            *values = self.registers.lanes(from, active)?;
        }
        for lane in lanes(active) {
            let bytes =
                access(store.space, addresses[lane], total, Access::Write, tags.of(lane), site)
                    .map_err(|problem| problem.of_lane(lane))?;
            let mut start = 0;
            for values in &values[..store.from.len()] {
                let value = values[lane].to_le_bytes();
                bytes[start..start + store.bytes].copy_from_slice(&value[..store.bytes]);
                start += store.bytes;
            }
        }
        Ok(())
    }

    pub(super) fn atomic(
        &mut self,
        atomic: &Atomic,
        active: u32,
        site: &mut Site,
    ) -> Result<(), Problem> {
        let addresses = self.addresses(atomic.address, active)?;
        let tags = self.tags(site);
        for lane in lanes(active) {
            let operand = self.registers.lane(atomic.operands[0], lane)?;
            let second = match atomic.operands.get(1) {
                Some(&register) => self.registers.lane(register, lane)?,
                None => 0,
            };
            let (place, by) = (addresses[lane], tags.of(lane));
            let bytes = access(atomic.space, place, atomic.bytes, Access::Atomic, by, site)
                .map_err(|problem| problem.of_lane(lane))?;
            let old = number(bytes);
            let new = atomic.combine(old, operand, second);
            bytes.copy_from_slice(&new.to_le_bytes()[..atomic.bytes]);
            if let Some(to) = atomic.to {
                self.registers.set_lane(to, lane, old);
            }
        }
        Ok(())
    }

    pub(super) fn copy_async(
        &mut self,
        to: Address,
        from: Address,
        bytes: usize,
        real: Option<Index>,
        active: u32,
        site: &mut Site,
    ) -> Result<(), Problem> {
        for lane in lanes(active) {
            let (to, from) = (self.address(to, lane)?, self.address(from, lane)?);
            let real = match real {
                Some(index) => self.registers.lane(Register::Word(index), lane)? as usize,
                None => bytes,
            };
            if real > bytes {
                let detail = format!("{real} real bytes of {bytes}");
                return Err(Problem::new(Kind::OutOfBounds, detail).of_lane(lane));
            }
            let tag = self.shared_tag(site, lane);
            site.shared.promise(to, bytes, tag).map_err(|problem| problem.of_lane(lane))?;
            if from % bytes as u64 != 0 {
                let detail = format!("cp.async of {bytes} bytes from {from:#x}");
                return Err(Problem::new(Kind::Misaligned, detail).of_lane(lane));
            }
            let mut values = [0; 16];
            // The card takes the whole piece or its first bytes; the rest is zeros.
            let piece = if real == bytes { bytes } else { 1 };
            let by = self.accessor(site, lane);
            for start in (0..real).step_by(piece) {
                let read = site.memory.access(from + start as u64, piece, by, Access::Read);
                values[start..start + piece]
                    .copy_from_slice(read.map_err(|problem| problem.of_lane(lane))?);
            }
            self.copies.push(Copy { lane, group: self.groups[lane], to, values, bytes });
        }
        Ok(())
    }

    /// Lets all but the last `groups` groups of copies land.
    pub(super) fn wait_copies(
        &mut self,
        groups: u32,
        active: u32,
        site: &mut Site,
    ) -> Result<(), Problem> {
        let copies = std::mem::take(&mut self.copies);
        let lands = |copy: &Copy| {
            active >> copy.lane & 1 == 1 && copy.group + groups < self.groups[copy.lane]
        };
        let (landing, staying): (Vec<_>, Vec<_>) = copies.into_iter().partition(lands);
        self.copies = staying;
        for copy in landing {
            let tag = self.shared_tag(site, copy.lane);
            site.shared
                .access(copy.to, copy.bytes, tag, Access::Write)
                .map_err(|problem| problem.of_lane(copy.lane))?
                .copy_from_slice(&copy.values[..copy.bytes]);
        }
        Ok(())
    }
}

impl Load {
    /// An element as it is put into a register.
    #[inline(always)]
    fn value(&self, bytes: &[u8]) -> u64 {
        match self.extend {
            Extend::Zero => number(bytes),
            Extend::Sign => extend(number(bytes), 8 * self.bytes as u32) as u64,
        }
    }
}

impl Atomic {
    fn combine(&self, old: u64, operand: u64, second: u64) -> u64 {
        let width = 8 * self.bytes as u32;
        let signed = |value| extend(value, width);
        match self.op {
            AtomicOp::Add => old.wrapping_add(operand),
            AtomicOp::Min if self.signed => signed(old).min(signed(operand)) as u64,
            AtomicOp::Max if self.signed => signed(old).max(signed(operand)) as u64,
            AtomicOp::Min => old.min(operand),
            AtomicOp::Max => old.max(operand),
            AtomicOp::And => old & operand,
            AtomicOp::Or => old | operand,
            AtomicOp::Xor => old ^ operand,
            AtomicOp::Exchange => operand,
            AtomicOp::Swap => {
                if old == operand {
                    second
                } else {
                    old
                }
            }
        }
    }
}

/// Who accesses memory.
#[derive(Clone, Copy)]
struct Tags {
    first: u32,
    shared: Tag,
    global: Accessor,
}

impl Tags {
    #[inline(always)]
    fn of(self, lane: usize) -> Self {
        let thread = self.first + lane as u32;
        let global = Accessor { tag: self.global.tag.of(thread), ..self.global };
        Self { shared: self.shared.of(thread), global, ..self }
    }
}

/// The bytes that a lane accesses, after all checks.
#[inline(always)]
fn access<'s>(
    space: Space,
    address: u64,
    count: usize,
    access: Access,
    by: Tags,
    site: &'s mut Site,
) -> Result<&'s mut [u8], Problem> {
    match space {
        Space::Shared => site.shared.access(address, count, by.shared, access),
        Space::Generic if address >= SHARED_WINDOW => {
            site.shared.access(address - SHARED_WINDOW, count, by.shared, access)
        }
        _ => site.memory.access(address, count, by.global, access),
    }
}

/// Up to eight bytes as a number.
#[inline(always)]
fn number(bytes: &[u8]) -> u64 {
    match *bytes {
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a] => u64::from(a),
        _ => unreachable!("elements have 1, 2, 4 or 8 bytes"),
    }
}
