//! A warp: 32 lanes that execute an instruction together under a mask. Where they part, those
//! furthest back in the code go first, so that they meet again.

mod memory;

use crate::fault::{Kind, Problem};
use crate::instruction::*;
use crate::memory::Memory;
use crate::module::Kernel;
use crate::race::Tag;
use crate::registers::{Bank, FULL, LANES, Preset, Register, Registers, lanes, put};
use crate::shared::Shared;

/// Instructions of a warp after which it is taken to go on for ever: a hundred times what the
/// longest kernel of ours takes.
const ENDLESS: u64 = 30_000_000;

/// What the warps of a block have in common.
pub struct Site<'a> {
    pub kernel: &'a Kernel,
    /// Bytes of each argument.
    pub args: &'a [Vec<u8>],
    pub memory: &'a mut Memory,
    pub shared: &'a mut Shared,
    /// Launch and block, as races in global memory tell them apart.
    pub era: u64,
    /// Barriers of this block so far.
    pub barriers: u32,
    /// Barriers of all blocks so far, beginning of each counted as one.
    pub epoch: u64,
    pub sizes: Sizes,
}

/// Where a block stands and how large all is.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub block: [u32; 3],
    pub grid: [u32; 3],
    pub threads: [u32; 3],
}

/// A cp.async on its way.
struct Copy {
    lane: usize,
    /// Groups that its lane had committed before.
    group: u32,
    to: u64,
    values: [u8; 16],
    bytes: usize,
}

pub struct Warp {
    number: u32,
    pub registers: Registers,
    /// Of each lane, its next instruction, or the one that it waits at.
    pub at: [usize; LANES],
    /// Each lane is in one of these states.
    ready: u32,
    /// At an instruction that other lanes must reach.
    joining: u32,
    pub at_barrier: u32,
    pub done: u32,
    /// Of lanes that join, whom they wait for.
    members: [u32; LANES],
    /// Barriers of the warp since the last one of the block.
    phase: u32,
    copies: Vec<Copy>,
    groups: [u32; LANES],
    /// Instructions that the warp executed, and the same counted once a lane.
    steps: u64,
    pub executed: u64,
}

impl Warp {
    pub fn new(number: u32, kernel: &Kernel) -> Self {
        let counts = kernel.counts;
        Self {
            number,
            registers: Registers {
                predicates: Bank::new(counts.predicates as usize, 0),
                words: Bank::new(counts.words as usize, [0; LANES]),
                doubles: Bank::new(counts.doubles as usize, [0; LANES]),
            },
            at: [0; LANES],
            ready: 0,
            joining: 0,
            at_barrier: 0,
            done: 0,
            members: [0; LANES],
            phase: 0,
            copies: vec![],
            groups: [0; LANES],
            steps: 0,
            executed: 0,
        }
    }

    /// At the first instruction of a block.
    pub fn begin(&mut self, kernel: &Kernel, sizes: &Sizes) {
        let count: u32 = sizes.threads.iter().product();
        let first = self.number * LANES as u32;
        self.ready = if count - first >= LANES as u32 { FULL } else { (1 << (count - first)) - 1 };
        self.done = !self.ready;
        (self.joining, self.at_barrier, self.phase, self.steps) = (0, 0, 0, 0);
        (self.at, self.groups) = ([0; LANES], [0; LANES]);
        self.copies.clear();
        self.registers.predicates.clear();
        self.registers.words.clear();
        self.registers.doubles.clear();
        for &(register, preset) in &kernel.presets {
            let value = |lane: u32| match preset {
                Preset::Value(value) => value,
                Preset::Thread(axis) => u64::from(thread(first + lane, sizes.threads)[axis]),
                Preset::ThreadCount(axis) => u64::from(sizes.threads[axis]),
                Preset::Block(axis) => u64::from(sizes.block[axis]),
                Preset::BlockCount(axis) => u64::from(sizes.grid[axis]),
                Preset::Lane => u64::from(lane),
            };
            let values = std::array::from_fn(|lane| value(lane as u32));
            match register {
                Register::Predicate(index) => {
                    let bits = if values[0] == 0 { 0 } else { FULL };
                    self.registers.predicates.preset(index, bits);
                }
                Register::Word(index) => {
                    self.registers.words.preset(index, values.map(|value| value as u32));
                }
                Register::Double(index) => self.registers.doubles.preset(index, values),
            }
        }
    }

    /// Lets lanes that wait at a barrier of the block go on.
    pub fn release(&mut self) {
        for lane in lanes(self.at_barrier) {
            self.at[lane] += 1;
        }
        self.ready = self.at_barrier;
        (self.at_barrier, self.phase) = (0, 0);
    }

    /// Goes on until each lane is at a barrier or done. A problem comes with its place in the code.
    pub fn run(&mut self, site: &mut Site) -> Result<(), (Problem, usize)> {
        while self.ready != 0 {
            self.run_group(site)?;
        }
        if self.joining != 0 {
            let lane = self.joining.trailing_zeros() as usize;
            return Err((self.why_alone(lane), self.at[lane]));
        }
        Ok(())
    }

    fn why_alone(&self, lane: usize) -> Problem {
        let missing = self.members[lane] & !self.joining;
        let (gone, parked) = (missing & self.done, missing & self.at_barrier);
        let detail = if gone != 0 {
            format!("lanes {gone:#010x} are named and have exited")
        } else if parked != 0 {
            format!("lanes {parked:#010x} are named and wait at a barrier of the block")
        } else {
            "lanes that name each other wait at different instructions".into()
        };
        Problem::new(Kind::Warp, detail).of_lane(lane)
    }

    /// The lanes that are furthest back, until they meet others or cannot go on.
    fn run_group(&mut self, site: &mut Site) -> Result<(), (Problem, usize)> {
        let mut at = lanes(self.ready).map(|lane| self.at[lane]).min().unwrap_or(0);
        let (mut group, mut meeting) = (0u32, usize::MAX);
        for lane in lanes(self.ready) {
            if self.at[lane] == at {
                group |= 1 << lane;
            } else {
                meeting = meeting.min(self.at[lane]);
            }
        }
        let kernel = site.kernel;
        loop {
            let instruction = &kernel.code[at];
            self.steps += 1;
            self.executed += u64::from(group.count_ones());
            let active = match instruction.guard {
                None => group,
                Some(guard) => {
                    let bits = *self
                        .registers
                        .predicates
                        .get(guard.predicate, group)
                        .map_err(|problem| (problem, at))?;
                    group & if guard.negated { !bits } else { bits }
                }
            };
            let mut parked = 0;
            if active != 0 {
                match &instruction.op {
                    Op::Jump(target) if active == group => {
                        if *target <= at && self.steps > ENDLESS {
                            let detail = format!("{ENDLESS} instructions of a warp");
                            return Err((Problem::new(Kind::Endless, detail), at));
                        }
                        at = *target;
                        if at >= meeting {
                            self.stop(group, at);
                            return Ok(());
                        }
                        continue;
                    }
                    Op::Jump(target) => {
                        self.stop(active, *target);
                        self.stop(group & !active, at + 1);
                        return Ok(());
                    }
                    Op::Return => {
                        self.finish(active).map_err(|problem| (problem, at))?;
                        parked = active;
                    }
                    Op::Barrier { .. } | Op::ReduceBarrier { .. } => {
                        self.stop(active, at);
                        self.at_barrier |= active;
                        parked = active;
                    }
                    Op::Joint { what, members } => {
                        let alone = self
                            .join(what, *members, active, at, site)
                            .map_err(|problem| (problem, at))?;
                        if !alone {
                            self.stop(group & !active, at + 1);
                            return Ok(());
                        }
                    }
                    op => self.step(op, active, site).map_err(|problem| (problem, at))?,
                }
            }
            self.ready &= !parked;
            group &= !parked;
            at += 1;
            if group == 0 {
                return Ok(());
            }
            if at >= meeting {
                self.stop(group, at);
                return Ok(());
            }
        }
    }

    fn stop(&mut self, group: u32, at: usize) {
        for lane in lanes(group) {
            self.at[lane] = at;
        }
    }

    fn finish(&mut self, active: u32) -> Result<(), Problem> {
        if let Some(copy) = self.copies.iter().find(|copy| active >> copy.lane & 1 == 1) {
            let detail = "a thread exits without waiting for its cp.async";
            return Err(Problem::new(Kind::AsyncCopy, detail).of_lane(copy.lane));
        }
        self.done |= active;
        Ok(())
    }

    /// Lanes reach an instruction that a warp executes together. True if they were all of those
    /// named, so that it is done and they go on as they are.
    fn join(
        &mut self,
        what: &Joint,
        members: Option<Index>,
        active: u32,
        at: usize,
        site: &mut Site,
    ) -> Result<bool, Problem> {
        let named = match members {
            Some(index) => *self.registers.words.get(index, active)?,
            None => [FULL; LANES],
        };
        for lane in lanes(active) {
            if named[lane] >> lane & 1 == 0 {
                let detail = format!("a lane that the mask {:#010x} does not name", named[lane]);
                return Err(Problem::new(Kind::Warp, detail).of_lane(lane));
            }
        }
        if lanes(active).all(|lane| named[lane] == active) {
            self.perform(what, active, site)?;
            return Ok(true);
        }
        for lane in lanes(active) {
            self.members[lane] = named[lane];
            self.at[lane] = at;
        }
        self.ready &= !active;
        self.joining |= active;
        for lane in lanes(active) {
            let members = self.members[lane];
            let is_here = |other: usize| {
                self.joining >> other & 1 == 1
                    && self.at[other] == at
                    && self.members[other] == members
            };
            if self.joining >> lane & 1 == 1 && lanes(members).all(is_here) {
                self.perform(what, members, site)?;
                self.joining &= !members;
                self.ready |= members;
                self.stop(members, at + 1);
            }
        }
        Ok(false)
    }

    pub fn after_warp_barrier(&mut self, members: u32) {
        // One among some of the lanes only makes no order here: races are then reported though
        // there may be none, never the other way.
        if members | self.done == FULL {
            self.phase += 1;
        }
    }

    /// This lane, as races in shared memory know it.
    pub fn shared_tag(&self, site: &Site, lane: usize) -> Tag {
        Tag::new(site.epoch, self.phase, self.number * LANES as u32 + lane as u32)
    }

    // Instructions of lanes that do not need each other.

    #[inline]
    fn step(&mut self, op: &Op, active: u32, site: &mut Site) -> Result<(), Problem> {
        let registers = &mut self.registers;
        match op {
            Op::Apply { function, to, from } => apply(registers, *function, *to, *from, active)?,
            Op::MoveWord { to, from } => {
                let (values, known) =
                    (registers.words.values[*from as usize], registers.words.known(*from));
                put(registers.words.target(*to, active, known), &values, active);
            }
            Op::MoveDouble { to, from } => {
                let values = registers.doubles.values[*from as usize];
                let known = registers.doubles.known(*from);
                put(registers.doubles.target(*to, active, known), &values, active);
            }
            Op::MovePredicate { to, from } => {
                let bits = *registers.predicates.get(*from, active)?;
                registers.put_predicate(*to, bits, active);
            }
            Op::Not { to, from } => {
                let bits = *registers.predicates.get(*from, active)?;
                registers.put_predicate(*to, !bits, active);
            }
            Op::Logic { function, to, from } => {
                let a = *registers.predicates.get(from[0], active)?;
                let b = *registers.predicates.get(from[1], active)?;
                registers.put_predicate(*to, function(a, b), active);
            }
            Op::SelectWord { to, yes, no, by } => {
                let by = *registers.predicates.get(*by, active)?;
                let yes = registers.words.get(*yes, active & by)?;
                let no = registers.words.get(*no, active & !by)?;
                let out = std::array::from_fn(|i| if by >> i & 1 == 1 { yes[i] } else { no[i] });
                registers.put_word(*to, &out, active);
            }
            Op::SelectDouble { to, yes, no, by } => {
                let by = *registers.predicates.get(*by, active)?;
                let yes = registers.doubles.get(*yes, active & by)?;
                let no = registers.doubles.get(*no, active & !by)?;
                let out = std::array::from_fn(|i| if by >> i & 1 == 1 { yes[i] } else { no[i] });
                registers.put_double(*to, &out, active);
            }
            Op::Divisor(register, bits) => {
                for lane in lanes(active) {
                    if registers.lane(*register, lane)? << (64 - bits) == 0 {
                        let detail = "an integer is divided by zero";
                        return Err(Problem::new(Kind::DivisionByZero, detail).of_lane(lane));
                    }
                }
            }
            Op::Convert { conversion, to, from } => {
                for lane in lanes(active) {
                    let value = registers.lane(*from, lane)?;
                    registers.set_lane(*to, lane, conversion.apply(value));
                }
            }
            Op::Join { to, parts, bits } => {
                let mask = u64::MAX >> (64 - bits);
                for lane in lanes(active) {
                    let mut value = 0;
                    for (place, part) in parts.iter().enumerate() {
                        value |= (registers.lane(*part, lane)? & mask) << (place as u32 * bits);
                    }
                    registers.set_lane(*to, lane, value);
                }
            }
            Op::Split { to, from, bits } => {
                let mask = u64::MAX >> (64 - bits);
                for lane in lanes(active) {
                    let value = registers.lane(*from, lane)?;
                    for (place, part) in to.iter().enumerate() {
                        if let Some(part) = part {
                            registers.set_lane(*part, lane, value >> (place as u32 * bits) & mask);
                        }
                    }
                }
            }
            Op::Load(load) if load.space == Space::Param => self.load_param(load, active, site)?,
            Op::Load(load) => self.load(load, active, site)?,
            Op::Store(store) => self.store(store, active, site)?,
            Op::Atomic(atomic) => self.atomic(atomic, active, site)?,
            Op::CopyAsync { to, from, bytes, real } => {
                self.copy_async(*to, *from, *bytes, *real, active, site)?;
            }
            Op::CommitCopies => lanes(active).for_each(|lane| self.groups[lane] += 1),
            Op::WaitCopies(groups) => self.wait_copies(*groups as u32, active, site)?,
            Op::ActiveMask { to } => registers.put_word(*to, &[active; LANES], active),
            Op::Nothing => {}
            Op::Jump(_)
            | Op::Return
            | Op::Barrier { .. }
            | Op::ReduceBarrier { .. }
            | Op::Joint { .. } => unreachable!("run_group carries these out"),
        }
        Ok(())
    }

    #[inline]
    pub fn address(&self, address: Address, lane: usize) -> Result<u64, Problem> {
        let offset = address.offset as u64;
        Ok(match address.base {
            None => offset,
            Some(base @ Register::Word(_)) => {
                self.registers.lane(base, lane)?.wrapping_add(offset) & 0xffff_ffff
            }
            Some(base) => self.registers.lane(base, lane)?.wrapping_add(offset),
        })
    }

    /// The addresses of active lanes.
    #[inline]
    fn addresses(&self, address: Address, active: u32) -> Result<[u64; LANES], Problem> {
        let offset = address.offset as u64;
        let mut all = [offset; LANES];
        match address.base {
            None => {}
            Some(Register::Double(index)) => {
                let base = self.registers.doubles.get(index, active)?;
                for lane in 0..LANES {
                    all[lane] = base[lane].wrapping_add(offset);
                }
            }
            Some(Register::Word(index)) => {
                let base = self.registers.words.get(index, active)?;
                for lane in 0..LANES {
                    all[lane] = u64::from(base[lane].wrapping_add(offset as u32));
                }
            }
            Some(Register::Predicate(_)) => unreachable!("no predicate is an address"),
        }
        Ok(all)
    }
}

#[inline]
fn apply(
    registers: &mut Registers,
    function: Function,
    to: Index,
    from: [Index; 4],
    active: u32,
) -> Result<(), Problem> {
    let word = |place: usize| registers.words.get(from[place], active);
    let double = |place: usize| registers.doubles.get(from[place], active);
    match function {
        Function::W1(f) => {
            let out = f(word(0)?);
            registers.put_word(to, &out, active);
        }
        Function::W2(f) => {
            let out = f(word(0)?, word(1)?);
            registers.put_word(to, &out, active);
        }
        Function::W3(f) => {
            let out = f(word(0)?, word(1)?, word(2)?);
            registers.put_word(to, &out, active);
        }
        Function::W4(f) => {
            let out = f(word(0)?, word(1)?, word(2)?, word(3)?);
            registers.put_word(to, &out, active);
        }
        Function::DToW(f) => {
            let out = f(double(0)?);
            registers.put_word(to, &out, active);
        }
        Function::D1(f) => {
            let out = f(double(0)?);
            registers.put_double(to, &out, active);
        }
        Function::D2(f) => {
            let out = f(double(0)?, double(1)?);
            registers.put_double(to, &out, active);
        }
        Function::D3(f) => {
            let out = f(double(0)?, double(1)?, double(2)?);
            registers.put_double(to, &out, active);
        }
        Function::DByW(f) => {
            let out = f(double(0)?, word(1)?);
            registers.put_double(to, &out, active);
        }
        Function::DByWw(f) => {
            let out = f(double(0)?, word(1)?, word(2)?);
            registers.put_double(to, &out, active);
        }
        Function::DdByWw(f) => {
            let out = f(double(0)?, double(1)?, word(2)?, word(3)?);
            registers.put_double(to, &out, active);
        }
        Function::WToD(f) => {
            let out = f(word(0)?);
            registers.put_double(to, &out, active);
        }
        Function::WWToD(f) => {
            let out = f(word(0)?, word(1)?);
            registers.put_double(to, &out, active);
        }
        Function::WWDToD(f) => {
            let out = f(word(0)?, word(1)?, double(2)?);
            registers.put_double(to, &out, active);
        }
        Function::WWToP(f) => {
            let out = f(word(0)?, word(1)?);
            registers.put_predicate(to, out, active);
        }
        Function::DDToP(f) => {
            let out = f(double(0)?, double(1)?);
            registers.put_predicate(to, out, active);
        }
    }
    Ok(())
}

/// A thread's place in its block.
pub fn thread(number: u32, threads: [u32; 3]) -> [u32; 3] {
    [number % threads[0], number / threads[0] % threads[1], number / threads[0] / threads[1]]
}
