//! Instructions that threads carry out together.

use super::{Bank, Decoder, Result, fixed, index};
use crate::instruction::*;

impl Decoder<'_> {
    pub(super) fn barrier(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let words: Vec<&str> =
            words.iter().copied().filter(|&w| w != "cta" && w != "aligned").collect();
        match words[..] {
            ["warp", "sync"] => {
                let [members] = fixed(operands)?;
                let members = Some(self.word(members)?);
                self.push(Op::Joint { what: Joint::Barrier, members });
            }
            ["sync"] => {
                let [id, threads @ ..] = operands else { return Err("which barrier?".into()) };
                let id = self.word(id)?;
                let threads = match threads {
                    [] => None,
                    [count] => Some(self.word(count)?),
                    _ => return Err("operands that it does not have".into()),
                };
                self.push(Op::Barrier { id, threads });
            }
            ["red", how, kind] => {
                let (how, bank) = match (how, kind) {
                    ("and", "pred") => (BlockReduce::And, Bank::Predicate),
                    ("or", "pred") => (BlockReduce::Or, Bank::Predicate),
                    ("popc", "u32") => (BlockReduce::Count, Bank::Word),
                    _ => return Err("unknown barrier".into()),
                };
                let [to, id, from] = fixed(operands)?;
                let to = self.target(to, bank)?;
                let id = self.word(id)?;
                let (from, negated) = self.condition(from)?;
                self.push(Op::ReduceBarrier { how, to, id, from, negated });
            }
            _ => return Err("unknown barrier".into()),
        }
        Ok(())
    }

    fn joint(&mut self, what: Joint, members: Option<Index>) {
        self.push(Op::Joint { what, members });
    }

    pub(super) fn shuffle(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let ["sync", mode, "b32"] = words else { return Err("unknown shuffle".into()) };
        let mode = match *mode {
            "bfly" => ShuffleMode::Xor,
            "down" => ShuffleMode::Down,
            "up" => ShuffleMode::Up,
            "idx" => ShuffleMode::Index,
            _ => return Err("unknown shuffle".into()),
        };
        let [to, from, lane, clamp, members] = fixed(operands)?;
        let (to, valid) = match to.split_once('|') {
            Some((to, valid)) => (to, Some(self.predicate(valid)?)),
            None => (to, None),
        };
        let to = index(self.target(to, Bank::Word)?);
        let (from, lane, clamp) = (self.word(from)?, self.word(lane)?, self.word(clamp)?);
        let members = self.word(members)?;
        self.joint(Joint::Shuffle { mode, to, valid, from, lane, clamp }, Some(members));
        Ok(())
    }

    pub(super) fn vote(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let (mode, bank) = match words {
            ["sync", "ballot", "b32"] => (VoteMode::Ballot, Bank::Word),
            ["sync", "all", "pred"] => (VoteMode::All, Bank::Predicate),
            ["sync", "any", "pred"] => (VoteMode::Any, Bank::Predicate),
            ["sync", "uni", "pred"] => (VoteMode::Uniform, Bank::Predicate),
            _ => return Err("unknown vote".into()),
        };
        let [to, from, members] = fixed(operands)?;
        let to = index(self.target(to, bank)?);
        let (from, negated) = self.condition(from)?;
        let members = self.word(members)?;
        self.joint(Joint::Vote { mode, to, from, negated }, Some(members));
        Ok(())
    }

    pub(super) fn match_any(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let ["any", "sync", kind @ ("b32" | "b64")] = words else {
            return Err("unknown match".into());
        };
        let [to, from, members] = fixed(operands)?;
        let to = index(self.target(to, Bank::Word)?);
        let from = self.operand(from, Bank::of(kind)?)?;
        let members = self.word(members)?;
        self.joint(Joint::Match { to, from }, Some(members));
        Ok(())
    }

    pub(super) fn redux(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let ["sync", op, kind] = words else { return Err("unknown redux".into()) };
        let op = match (*op, *kind) {
            ("add", "u32" | "s32") => ReduceOp::Add,
            ("min", "u32" | "s32") => ReduceOp::Min,
            ("max", "u32" | "s32") => ReduceOp::Max,
            ("and", "b32") => ReduceOp::And,
            ("or", "b32") => ReduceOp::Or,
            ("xor", "b32") => ReduceOp::Xor,
            _ => return Err("unknown redux".into()),
        };
        let [to, from, members] = fixed(operands)?;
        let to = index(self.target(to, Bank::Word)?);
        let (from, members) = (self.word(from)?, self.word(members)?);
        self.joint(Joint::Reduce { op, signed: *kind == "s32", to, from }, Some(members));
        Ok(())
    }

    pub(super) fn load_matrix(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let (count, transposed) = match words {
            ["sync", "aligned", "m8n8", count, "shared" | "shared::cta", "b16"] => (count, false),
            ["sync", "aligned", "m8n8", count, "trans", "shared" | "shared::cta", "b16"] => {
                (count, true)
            }
            _ => return Err("unknown ldmatrix".into()),
        };
        let [to, address] = fixed(operands)?;
        let to = self.words_of(to)?;
        if *count != format!("x{}", to.len()) || ![1, 2, 4].contains(&to.len()) {
            return Err("registers that it does not have".into());
        }
        let address = self.address(address)?;
        self.joint(Joint::LoadMatrix { to, address, transposed }, None);
        Ok(())
    }

    fn words_of(&self, text: &str) -> Result<Vec<Index>> {
        let names = Self::list(text);
        names.into_iter().map(|name| Ok(index(self.target(name, Bank::Word)?))).collect()
    }

    pub(super) fn multiply(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let half = match words {
            ["sync", "aligned", "m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"] => {
                Half::Bf16
            }
            ["sync", "aligned", "m16n8k16", "row", "col", "f32", "f16", "f16", "f32"] => Half::F16,
            _ => return Err("unknown mma".into()),
        };
        let [d, a, b, c] = fixed(operands)?;
        let c =
            Self::list(c).into_iter().map(|name| self.word(name)).collect::<Result<Vec<_>>>()?;
        let four =
            |list: Vec<Index>| list.try_into().map_err(|_| "registers that it does not have");
        let what = Joint::Multiply {
            d: four(self.words_of(d)?)?,
            a: four(self.words_of(a)?)?,
            b: self.words_of(b)?.try_into().map_err(|_| "registers that it does not have")?,
            c: four(c)?,
            half,
        };
        self.joint(what, None);
        Ok(())
    }
}
