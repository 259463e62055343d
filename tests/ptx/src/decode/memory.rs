//! Instructions that touch memory.

use super::{Bank, Decoder, Result, fixed};
use crate::instruction::*;
use crate::module::bytes_of;
use crate::registers::Register;

impl Decoder<'_> {
    fn touches(&mut self, space: Space, bytes: usize) {
        let power = bytes.ilog2();
        if space != Space::Shared {
            self.granules.global = self.granules.global.min(power);
        }
        if space != Space::Global {
            self.granules.shared = self.granules.shared.min(power);
        }
    }

    /// Space, count of elements and type; the rest must be what changes no value.
    fn access(words: &[&str]) -> Result<(Space, usize, String)> {
        let [modifiers @ .., kind] = words else { return Err("no type".into()) };
        let (mut space, mut count) = (Space::Generic, 1);
        for &modifier in modifiers {
            match modifier {
                "global" => space = Space::Global,
                "shared" | "shared::cta" => space = Space::Shared,
                "param" => space = Space::Param,
                "v2" => count = 2,
                "v4" => count = 4,
                "weak"
                | "nc"
                | "ca"
                | "cg"
                | "cs"
                | "lu"
                | "wb"
                | "L1::no_allocate"
                | "L1::evict_first"
                | "L1::evict_last"
                | "L1::evict_normal"
                | "L1::evict_unchanged"
                | "L2::64B"
                | "L2::128B"
                | "L2::256B" => {}
                _ => return Err(format!("unknown modifier .{modifier}")),
            }
        }
        Ok((space, count, (*kind).into()))
    }

    pub(super) fn load(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let (space, count, kind) = Self::access(words)?;
        let bytes = bytes_of(&kind).ok_or("unknown type")?;
        let [to, address] = fixed(operands)?;
        let to = Self::list(to);
        if to.len() != count || count * bytes > 16 {
            return Err(format!("{} registers for {count} elements", to.len()));
        }
        let to = to.into_iter().map(|name| self.holder(name, bytes)).collect::<Result<Vec<_>>>()?;
        let extend = if kind.starts_with('s') { Extend::Sign } else { Extend::Zero };
        let address = self.address(address)?;
        if space != Space::Param {
            self.touches(space, bytes);
        }
        self.push(Op::Load(Load { space, bytes, extend, to, address }));
        Ok(())
    }

    /// The register for what is loaded or stored, which may be wider than that.
    fn holder(&self, name: &str, bytes: usize) -> Result<Register> {
        match self.names.get(name) {
            Some(&register @ Register::Double(_)) => Ok(register),
            Some(&register @ Register::Word(_)) if bytes <= 4 => Ok(register),
            _ => Err(format!("{name} does not hold {bytes} bytes")),
        }
    }

    pub(super) fn store(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let (space, count, kind) = Self::access(words)?;
        let bytes = bytes_of(&kind).ok_or("unknown type")?;
        let [address, from] = fixed(operands)?;
        let names = Self::list(from);
        if names.len() != count || count * bytes > 16 || space == Space::Param {
            return Err("unknown store".into());
        }
        let mut from = vec![];
        for name in names {
            from.push(if self.names.contains_key(name) {
                self.holder(name, bytes)?
            } else {
                self.operand(name, if bytes == 8 { Bank::Double } else { Bank::Word })?
            });
        }
        let address = self.address(address)?;
        self.touches(space, bytes);
        self.push(Op::Store(Store { space, bytes, from, address }));
        Ok(())
    }

    /// `atom[.sem][.scope].space.op.type`
    pub(super) fn atomic(&mut self, head: &str, words: &[&str], operands: &[&str]) -> Result<()> {
        let [modifiers @ .., op, kind] = words else { return Err("unknown atomic".into()) };
        let mut space = Space::Generic;
        for &modifier in modifiers {
            match modifier {
                "global" => space = Space::Global,
                "shared" | "shared::cta" => space = Space::Shared,
                "relaxed" | "cta" | "gpu" => {}
                _ => return Err(format!("unknown modifier .{modifier}")),
            }
        }
        let op = match (*op, *kind) {
            ("add", "u32" | "s32" | "u64") => AtomicOp::Add,
            ("min", "u32" | "s32" | "u64" | "s64") => AtomicOp::Min,
            ("max", "u32" | "s32" | "u64" | "s64") => AtomicOp::Max,
            ("and", "b32" | "b64") => AtomicOp::And,
            ("or", "b32" | "b64") => AtomicOp::Or,
            ("xor", "b32" | "b64") => AtomicOp::Xor,
            ("exch", "b32" | "b64") => AtomicOp::Exchange,
            ("cas", "b32" | "b64") => AtomicOp::Swap,
            // Sums of floats in the order of threads would differ from run to run.
            ("add", "f32" | "f64" | "f16x2" | "bf16x2") => return Err("atomic of floats".into()),
            _ => return Err("unknown atomic".into()),
        };
        let bank = Bank::of(kind)?;
        let bytes = bytes_of(kind).ok_or("unknown type")?;
        let (to, rest) = match (head, operands) {
            ("atom", [to, rest @ ..]) => (Some(self.target(to, bank)?), rest),
            _ => (None, operands),
        };
        let [address, values @ ..] = rest else { return Err("too few operands".into()) };
        if values.len() != if op == AtomicOp::Swap { 2 } else { 1 } {
            return Err("operands that it does not have".into());
        }
        let operands = values.iter().map(|v| self.operand(v, bank)).collect::<Result<_>>()?;
        let address = self.address(address)?;
        let signed = kind.starts_with('s');
        self.touches(space, bytes);
        self.push(Op::Atomic(Atomic { space, op, bytes, signed, to, operands, address }));
        Ok(())
    }

    /// `cp.async.cg.shared.global [to], [from], 16[, real bytes]`
    pub(super) fn copy(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        match words {
            ["async", "commit_group"] => self.push(Op::CommitCopies),
            ["async", "wait_all"] => {
                self.push(Op::CommitCopies);
                self.push(Op::WaitCopies(0));
            }
            ["async", "wait_group"] => {
                let [groups] = fixed(operands)?;
                let groups = groups.parse().map_err(|_| "how many groups?")?;
                self.push(Op::WaitCopies(groups));
            }
            ["async", "ca" | "cg", "shared" | "shared::cta", "global"]
            | [
                "async",
                "ca" | "cg",
                "shared" | "shared::cta",
                "global",
                "L2::64B" | "L2::128B" | "L2::256B",
            ] => {
                let [to, from, bytes, real @ ..] = operands else {
                    return Err("too few operands".into());
                };
                let bytes: usize = bytes.parse().map_err(|_| "how many bytes?")?;
                if ![4, 8, 16].contains(&bytes) || (words[1] == "cg" && bytes != 16) {
                    return Err(format!("{bytes} bytes"));
                }
                let real = match real {
                    [] => None,
                    [real] => Some(self.word(real)?),
                    _ => return Err("operands that it does not have".into()),
                };
                let (to, from) = (self.address(to)?, self.address(from)?);
                self.push(Op::CopyAsync { to, from, bytes, real });
            }
            _ => return Err("unknown copy".into()),
        }
        Ok(())
    }
}
