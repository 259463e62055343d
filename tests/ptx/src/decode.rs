//! A statement becomes an instruction. Modifiers are all looked at: one that is not known is an
//! error.

mod joint;
mod memory;

use std::collections::HashMap;

use crate::arithmetic;
use crate::convert::Conversion;
use crate::instruction::*;
use crate::module::{Counts, Granules, Param, SharedLayout, bytes_of, param_address};
use crate::registers::{Preset, Register};
use crate::text::Statement;

type Result<T> = std::result::Result<T, String>;

pub struct Decoder<'a> {
    params: &'a [Param],
    shared: &'a SharedLayout,
    names: HashMap<String, Register>,
    counts: Counts,
    presets: Vec<(Register, Preset)>,
    code: Vec<Instruction>,
    labels: HashMap<String, usize>,
    /// Jumps whose target is not known yet: place in the code, line, label.
    jumps: Vec<(usize, usize, String)>,
    granules: Granules,
    /// What the next instruction is guarded by and where it comes from.
    guard: Option<Guard>,
    line: usize,
    source: Option<(u32, u32)>,
}

pub struct Decoded {
    pub code: Vec<Instruction>,
    pub counts: Counts,
    pub presets: Vec<(Register, Preset)>,
    pub granules: Granules,
}

/// Which register an operand must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bank {
    Predicate,
    Word,
    Double,
}

impl Bank {
    fn of(kind: &str) -> Result<Self> {
        match kind {
            "pred" => Ok(Self::Predicate),
            _ => match bytes_of(kind) {
                Some(8) => Ok(Self::Double),
                Some(_) => Ok(Self::Word),
                None => Err(format!("unknown type .{kind}")),
            },
        }
    }
}

impl<'a> Decoder<'a> {
    pub fn new(params: &'a [Param], shared: &'a SharedLayout) -> Self {
        Self {
            params,
            shared,
            names: HashMap::new(),
            counts: Counts::default(),
            presets: vec![],
            code: vec![],
            labels: HashMap::new(),
            jumps: vec![],
            granules: Granules { global: 2, shared: 2 },
            guard: None,
            line: 0,
            source: None,
        }
    }

    pub fn finish(mut self) -> Result<Decoded> {
        for (at, line, label) in std::mem::take(&mut self.jumps) {
            let target = self.labels.get(&label);
            let &target = target.ok_or_else(|| format!("line {line}: no label {label}"))?;
            if target == self.code.len() {
                return Err(format!("line {line}: nothing stands behind {label}"));
            }
            self.code[at].op = Op::Jump(target);
        }
        match self.code.last() {
            Some(Instruction { op: Op::Return | Op::Jump(_), guard: None, .. }) => {}
            _ => return Err("a kernel that does not end".into()),
        }
        let (counts, presets) = (self.counts, self.presets);
        Ok(Decoded { code: self.code, counts, presets, granules: self.granules })
    }

    pub fn statement(&mut self, statement: &Statement) -> Result<()> {
        let text = statement.text;
        (self.line, self.source, self.guard) = (statement.line, statement.source, None);
        if statement.is_label {
            let twice = self.labels.insert(text.into(), self.code.len());
            return twice.map_or(Ok(()), |_| Err(format!("label {text} twice")));
        }
        if text.is_empty() || text.starts_with(".pragma") || text.starts_with(".shared") {
            return Ok(());
        }
        if let Some(rest) = text.strip_prefix(".reg") {
            return self.declare(rest);
        }
        if text.starts_with(".local") {
            return Err("local memory: kernels here keep all they have in registers".into());
        }
        let text = match text.strip_prefix('@') {
            Some(rest) => {
                let (guard, rest) =
                    rest.split_once(char::is_whitespace).ok_or("a guard of nothing")?;
                let (name, negated) = guard.strip_prefix('!').map_or((guard, false), |g| (g, true));
                let predicate = self.predicate(name)?;
                self.guard = Some(Guard { predicate, negated });
                rest.trim_start()
            }
            None => text,
        };
        let (name, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let operands = split(operands);
        let words: Vec<&str> = name.split('.').collect();
        self.instruction(name, &words[1..], &operands).map_err(|detail| format!("{text}: {detail}"))
    }

    /// `.reg .b32 %r<12>` or `.reg .pred p, q`
    fn declare(&mut self, text: &str) -> Result<()> {
        let (kind, names) =
            text.trim().split_once(char::is_whitespace).ok_or("registers without names")?;
        let bank = Bank::of(kind.trim_start_matches('.'))?;
        for name in names.split(',').map(str::trim) {
            match name.split_once('<') {
                Some((stem, count)) => {
                    let count: u32 =
                        count.trim_end_matches('>').parse().map_err(|_| "how many registers?")?;
                    for number in 0..count {
                        let register = self.new_register(bank);
                        self.names.insert(format!("{stem}{number}"), register);
                    }
                }
                None => {
                    let register = self.new_register(bank);
                    self.names.insert(name.into(), register);
                }
            }
        }
        Ok(())
    }

    fn new_register(&mut self, bank: Bank) -> Register {
        let (count, make): (_, fn(u32) -> Register) = match bank {
            Bank::Predicate => (&mut self.counts.predicates, Register::Predicate),
            Bank::Word => (&mut self.counts.words, Register::Word),
            Bank::Double => (&mut self.counts.doubles, Register::Double),
        };
        *count += 1;
        make(*count - 1)
    }

    fn preset(&mut self, bank: Bank, preset: Preset) -> Register {
        let matches = |register: &Register| {
            matches!(
                (register, bank),
                (Register::Predicate(_), Bank::Predicate)
                    | (Register::Word(_), Bank::Word)
                    | (Register::Double(_), Bank::Double)
            )
        };
        let known = self.presets.iter().find(|(register, p)| *p == preset && matches(register));
        if let Some((register, _)) = known {
            return *register;
        }
        let register = self.new_register(bank);
        self.presets.push((register, preset));
        register
    }

    fn push(&mut self, op: Op) {
        let (guard, line, source) = (self.guard, self.line, self.source);
        self.code.push(Instruction { op, guard, line, source });
    }

    // Operands.

    /// A register that is written.
    fn target(&self, name: &str, bank: Bank) -> Result<Register> {
        let register = *self.names.get(name).ok_or_else(|| format!("{name} is not declared"))?;
        match (register, bank) {
            (Register::Predicate(_), Bank::Predicate)
            | (Register::Word(_), Bank::Word)
            | (Register::Double(_), Bank::Double) => Ok(register),
            _ => Err(format!("{name} is not a {bank:?}")),
        }
    }

    /// A register or a value that is read.
    fn operand(&mut self, text: &str, bank: Bank) -> Result<Register> {
        if self.names.contains_key(text) {
            return self.target(text, bank);
        }
        let preset = match special(text) {
            Some(preset) if bank == Bank::Word => preset,
            Some(_) => return Err(format!("{text} is a word")),
            None => Preset::Value(self.value(text)?),
        };
        let preset = match preset {
            Preset::Value(value) if bank == Bank::Word => Preset::Value(value & 0xffff_ffff),
            other => other,
        };
        Ok(self.preset(bank, preset))
    }

    fn value(&self, text: &str) -> Result<u64> {
        let unknown = || format!("unknown operand {text}");
        let hex = |digits| u64::from_str_radix(digits, 16).map_err(|_| unknown());
        if let Some(digits) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
            return hex(digits);
        }
        if let Some(digits) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
            return hex(digits);
        }
        if let Some(digits) = text.strip_prefix("0x") {
            return hex(digits.trim_end_matches('U'));
        }
        if let Some(address) = self.shared.address(text) {
            return Ok(address as u64);
        }
        if let Some(address) = param_address(self.params, text) {
            return Ok(address);
        }
        let number: i128 = text.trim_end_matches('U').parse().map_err(|_| unknown())?;
        Ok(number as u64)
    }

    fn word(&mut self, text: &str) -> Result<Index> {
        Ok(index(self.operand(text, Bank::Word)?))
    }

    fn predicate(&self, text: &str) -> Result<Index> {
        Ok(index(self.target(text, Bank::Predicate)?))
    }

    /// A predicate that is read, which may be negated.
    fn condition(&mut self, text: &str) -> Result<(Index, bool)> {
        let (name, negated) = text.strip_prefix('!').map_or((text, false), |name| (name, true));
        Ok((index(self.operand(name, Bank::Predicate)?), negated))
    }

    /// `[base + offset]`
    fn address(&mut self, text: &str) -> Result<Address> {
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let inner = inner.ok_or_else(|| format!("{text} is no address"))?;
        let (base, offset) = match inner.split_once('+') {
            Some((base, offset)) => {
                let offset = offset.trim();
                let number = offset.parse().map_err(|_| format!("unknown offset {offset}"))?;
                (base.trim(), number)
            }
            None => (inner.trim(), 0i64),
        };
        if let Some(&register) = self.names.get(base) {
            return Ok(Address { base: Some(register), offset });
        }
        let start = self.value(base)? as i64;
        Ok(Address { base: None, offset: start + offset })
    }

    /// `{a, b}` or `a`
    fn list(text: &str) -> Vec<&str> {
        match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            Some(inner) => inner.split(',').map(str::trim).collect(),
            None => vec![text],
        }
    }

    // Instructions.

    fn instruction(&mut self, name: &str, words: &[&str], operands: &[&str]) -> Result<()> {
        let head = name.split('.').next().unwrap_or_default();
        let kind = words.last().copied().unwrap_or_default();
        if let Some(function) = arithmetic::function(name) {
            return self.apply(function, operands, arithmetic::divisor(name));
        }
        match head {
            "mov" => self.mov(words, operands),
            "cvt" => self.cvt(name, words, operands),
            "cvta" => self.cvta(words, operands),
            "setp" => self.setp(words, operands),
            "selp" => self.selp(words, operands),
            "and" | "or" | "xor" | "not" if words == ["pred"] => self.logic(head, operands),
            "ld" | "ldu" => self.load(words, operands),
            "st" => self.store(words, operands),
            "atom" | "red" => self.atomic(head, words, operands),
            "bra" => self.bra(words, operands),
            "ret" | "exit" if words.is_empty() || words == ["uni"] => {
                self.push(Op::Return);
                Ok(())
            }
            "bar" | "barrier" => self.barrier(words, operands),
            "cp" => self.copy(words, operands),
            "membar" | "fence" => match words {
                ["cta" | "gl"] | ["acq_rel" | "sc", "cta" | "gpu"] => {
                    self.push(Op::Nothing);
                    Ok(())
                }
                _ => Err("unknown fence".into()),
            },
            "activemask" if kind == "b32" && words.len() == 1 => {
                let [to] = fixed(operands)?;
                let to = index(self.target(to, Bank::Word)?);
                self.push(Op::ActiveMask { to });
                Ok(())
            }
            "shfl" => self.shuffle(words, operands),
            "vote" => self.vote(words, operands),
            "match" => self.match_any(words, operands),
            "redux" => self.redux(words, operands),
            "ldmatrix" => self.load_matrix(words, operands),
            "mma" => self.multiply(words, operands),
            _ => Err("unknown instruction".into()),
        }
    }

    /// `divisor` says how many bits of the second operand must not all be 0.
    fn apply(&mut self, function: Function, operands: &[&str], divisor: Option<u32>) -> Result<()> {
        use Bank::{Double as D, Predicate as P, Word as W};
        let (to, from): (Bank, &[Bank]) = match function {
            Function::W1(_) => (W, &[W]),
            Function::W2(_) => (W, &[W, W]),
            Function::W3(_) => (W, &[W, W, W]),
            Function::W4(_) => (W, &[W, W, W, W]),
            Function::D1(_) => (D, &[D]),
            Function::D2(_) => (D, &[D, D]),
            Function::D3(_) => (D, &[D, D, D]),
            Function::DByW(_) => (D, &[D, W]),
            Function::DByWw(_) => (D, &[D, W, W]),
            Function::DdByWw(_) => (D, &[D, D, W, W]),
            Function::WToD(_) => (D, &[W]),
            Function::WWToD(_) => (D, &[W, W]),
            Function::WWDToD(_) => (D, &[W, W, D]),
            Function::DToW(_) => (W, &[D]),
            Function::WWToP(_) => (P, &[W, W]),
            Function::DDToP(_) => (P, &[D, D]),
        };
        let [target, sources @ ..] = operands else { return Err("no operands".into()) };
        if sources.len() != from.len() {
            return Err(format!("{} operands instead of {}", sources.len(), from.len()));
        }
        let to = index(self.target(target, to)?);
        let mut indices = [0; 4];
        for ((source, &bank), place) in sources.iter().zip(from).zip(&mut indices) {
            let register = self.operand(source, bank)?;
            *place = index(register);
            if let Some(bits) = divisor.filter(|_| std::ptr::eq(source, &sources[1])) {
                self.push(Op::Divisor(register, bits));
            }
        }
        self.push(Op::Apply { function, to, from: indices });
        Ok(())
    }

    fn mov(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let [kind] = words else { return Err("unknown mov".into()) };
        let [to, from] = fixed(operands)?;
        let bank = Bank::of(kind)?;
        let bits = bytes_of(kind).unwrap_or(0) as u32 * 8;
        let part_bank = |count: usize| match bits / count as u32 {
            64 => Bank::Double,
            _ => Bank::Word,
        };
        if from.starts_with('{') {
            let parts = Self::list(from);
            let bank_of_part = part_bank(parts.len());
            let to = self.target(to, bank)?;
            let bits = bits / parts.len() as u32;
            let parts = parts
                .into_iter()
                .map(|part| self.operand(part, bank_of_part))
                .collect::<Result<_>>()?;
            self.push(Op::Join { to, parts, bits });
            return Ok(());
        }
        if to.starts_with('{') {
            let parts = Self::list(to);
            let bank_of_part = part_bank(parts.len());
            let bits = bits / parts.len() as u32;
            let to = parts
                .into_iter()
                .map(|part| match part {
                    "_" => Ok(None),
                    part => self.target(part, bank_of_part).map(Some),
                })
                .collect::<Result<_>>()?;
            let from = self.operand(from, bank)?;
            self.push(Op::Split { to, from, bits });
            return Ok(());
        }
        let to = index(self.target(to, bank)?);
        let from = index(self.operand(from, bank)?);
        self.push(match bank {
            Bank::Predicate => Op::MovePredicate { to, from },
            Bank::Word => Op::MoveWord { to, from },
            Bank::Double => Op::MoveDouble { to, from },
        });
        Ok(())
    }

    fn cvt(&mut self, name: &str, words: &[&str], operands: &[&str]) -> Result<()> {
        if let Some(function) = arithmetic::conversion(name) {
            return self.apply(function, operands, None);
        }
        // Two floats into one register, the first on top.
        if let ["rn", pair @ ("bf16x2" | "f16x2"), "f32"] = words {
            let [to, upper, lower] = fixed(operands)?;
            let half = pair.trim_end_matches("x2");
            let conversion = Conversion::parse(&["rn", half, "f32"])?;
            let mut parts = vec![];
            for source in [lower, upper] {
                let from = self.operand(source, Bank::Word)?;
                let part = self.new_register(Bank::Word);
                self.push(Op::Convert { conversion, to: part, from });
                parts.push(part);
            }
            let to = self.target(to, Bank::Word)?;
            self.push(Op::Join { to, parts, bits: 16 });
            return Ok(());
        }
        let conversion = Conversion::parse(words)?;
        let [to, from] = fixed(operands)?;
        let bank = |bits| if bits == 64 { Bank::Double } else { Bank::Word };
        // Integers may be taken from wider registers and put into them.
        let (mut from_bank, mut to_bank) =
            (bank(conversion.from.bits()), bank(conversion.to.bits()));
        for (name, bank) in [(from, &mut from_bank), (to, &mut to_bank)] {
            if let Some(Register::Double(_)) = self.names.get(name) {
                *bank = Bank::Double;
            }
        }
        let to = self.target(to, to_bank)?;
        let from = self.operand(from, from_bank)?;
        self.push(Op::Convert { conversion, to, from });
        Ok(())
    }

    fn cvta(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let [to, from] = fixed(operands)?;
        let window = match words {
            ["to", "global", "u64"] | ["global", "u64"] => 0,
            ["shared", "u64"] => SHARED_WINDOW,
            ["to", "shared", "u64"] => SHARED_WINDOW.wrapping_neg(),
            _ => return Err("unknown cvta".into()),
        };
        let to = index(self.target(to, Bank::Double)?);
        let from = index(self.operand(from, Bank::Double)?);
        if window == 0 {
            self.push(Op::MoveDouble { to, from });
            return Ok(());
        }
        let window = index(self.preset(Bank::Double, Preset::Value(window)));
        let function = arithmetic::function("add.s64").ok_or("no addition")?;
        self.push(Op::Apply { function, to, from: [from, window, 0, 0] });
        Ok(())
    }

    /// `setp.how[.and].type p[|q], a, b[, c]`
    fn setp(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let (how, joined, kind) = match words {
            [how, kind] => (how, None, kind),
            [how, joined, kind] => (how, Some(*joined), kind),
            _ => return Err("unknown setp".into()),
        };
        let function = arithmetic::comparison(how, kind).ok_or("unknown comparison")?;
        let bank = Bank::of(kind)?;
        let [targets, a, b, rest @ ..] = operands else { return Err("too few operands".into()) };
        let targets: Vec<&str> = targets.split('|').map(str::trim).collect();
        let from = [index(self.operand(a, bank)?), index(self.operand(b, bank)?), 0, 0];
        if targets.len() == 1 && joined.is_none() && rest.is_empty() {
            let to = self.predicate(targets[0])?;
            self.push(Op::Apply { function, to, from });
            return Ok(());
        }
        let result = index(self.new_register(Bank::Predicate));
        self.push(Op::Apply { function, to: result, from });
        let mut outcomes = vec![result];
        if targets.len() == 2 {
            let opposite = index(self.new_register(Bank::Predicate));
            self.push(Op::Not { to: opposite, from: result });
            outcomes.push(opposite);
        }
        let other = match (joined, rest) {
            (None, []) => None,
            (Some(joined), [other]) => {
                let (mut other, negated) = self.condition(other)?;
                if negated {
                    let turned = index(self.new_register(Bank::Predicate));
                    self.push(Op::Not { to: turned, from: other });
                    other = turned;
                }
                Some((logic(joined)?, other))
            }
            _ => return Err("operands that setp does not have".into()),
        };
        // Read all before anything is written: a target may be an operand too.
        for &outcome in &outcomes {
            if let Some((function, other)) = other {
                self.push(Op::Logic { function, to: outcome, from: [outcome, other] });
            }
        }
        for (target, from) in targets.into_iter().zip(outcomes) {
            if target != "_" {
                let to = self.predicate(target)?;
                self.push(Op::MovePredicate { to, from });
            }
        }
        Ok(())
    }

    fn selp(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        let [kind] = words else { return Err("unknown selp".into()) };
        let [to, yes, no, by] = fixed(operands)?;
        let bank = Bank::of(kind)?;
        let to = index(self.target(to, bank)?);
        let (yes, no) = (index(self.operand(yes, bank)?), index(self.operand(no, bank)?));
        let (by, negated) = self.condition(by)?;
        let (yes, no) = if negated { (no, yes) } else { (yes, no) };
        self.push(match bank {
            Bank::Word => Op::SelectWord { to, yes, no, by },
            Bank::Double => Op::SelectDouble { to, yes, no, by },
            Bank::Predicate => return Err("selp of predicates".into()),
        });
        Ok(())
    }

    fn logic(&mut self, head: &str, operands: &[&str]) -> Result<()> {
        let [to, sources @ ..] = operands else { return Err("no operands".into()) };
        let to = self.predicate(to)?;
        match (head, sources) {
            ("not", [from]) => {
                let from = index(self.operand(from, Bank::Predicate)?);
                self.push(Op::Not { to, from });
            }
            (_, [a, b]) => {
                let a = index(self.operand(a, Bank::Predicate)?);
                let b = index(self.operand(b, Bank::Predicate)?);
                self.push(Op::Logic { function: logic(head)?, to, from: [a, b] });
            }
            _ => return Err("operands that it does not have".into()),
        }
        Ok(())
    }

    fn bra(&mut self, words: &[&str], operands: &[&str]) -> Result<()> {
        if !words.is_empty() && words != ["uni"] {
            return Err("unknown branch".into());
        }
        let [label] = fixed(operands)?;
        self.jumps.push((self.code.len(), self.line, label.into()));
        self.push(Op::Jump(usize::MAX));
        Ok(())
    }
}

fn special(text: &str) -> Option<Preset> {
    if text == "%laneid" {
        return Some(Preset::Lane);
    }
    let (name, axis) = text.split_once('.')?;
    let axis = ["x", "y", "z"].iter().position(|&letter| letter == axis)?;
    Some(match name {
        "%tid" => Preset::Thread(axis),
        "%ntid" => Preset::ThreadCount(axis),
        "%ctaid" => Preset::Block(axis),
        "%nctaid" => Preset::BlockCount(axis),
        _ => return None,
    })
}

fn index(register: Register) -> Index {
    let (Register::Predicate(index) | Register::Word(index) | Register::Double(index)) = register;
    index
}

fn logic(name: &str) -> Result<fn(u32, u32) -> u32> {
    match name {
        "and" => Ok(|a, b| a & b),
        "or" => Ok(|a, b| a | b),
        "xor" => Ok(|a, b| a ^ b),
        _ => Err(format!("unknown .{name}")),
    }
}

fn fixed<'t, const N: usize>(operands: &[&'t str]) -> Result<[&'t str; N]> {
    operands.try_into().map_err(|_| format!("{} operands instead of {N}", operands.len()))
}

/// Operands, apart at commas that are in no bracket.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, vec![]);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}
