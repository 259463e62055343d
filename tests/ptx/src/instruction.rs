//! What a statement is once it is understood.

use crate::convert::Conversion;
use crate::registers::{Doubles, Register, Words};

/// A number of a word register, double register or predicate, as the place says.
pub type Index = u32;

/// Functions on all lanes at once, by what they take and give: a `W` is a word, a `D` a double, `P`
/// a bit a lane.
#[derive(Clone, Copy)]
pub enum Function {
    W1(fn(&Words) -> Words),
    W2(fn(&Words, &Words) -> Words),
    W3(fn(&Words, &Words, &Words) -> Words),
    W4(fn(&Words, &Words, &Words, &Words) -> Words),
    D1(fn(&Doubles) -> Doubles),
    D2(fn(&Doubles, &Doubles) -> Doubles),
    D3(fn(&Doubles, &Doubles, &Doubles) -> Doubles),
    /// A double by a word: shifts.
    DByW(fn(&Doubles, &Words) -> Doubles),
    DByWw(fn(&Doubles, &Words, &Words) -> Doubles),
    DdByWw(fn(&Doubles, &Doubles, &Words, &Words) -> Doubles),
    /// A double of words.
    WToD(fn(&Words) -> Doubles),
    WWToD(fn(&Words, &Words) -> Doubles),
    WWDToD(fn(&Words, &Words, &Doubles) -> Doubles),
    /// A word of doubles.
    DToW(fn(&Doubles) -> Words),
    WWToP(fn(&Words, &Words) -> u32),
    DDToP(fn(&Doubles, &Doubles) -> u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Global,
    Shared,
    Param,
    /// An address that says itself which of the two it is in.
    Generic,
}

/// Where generic addresses of shared memory begin; buffers lie below.
pub const SHARED_WINDOW: u64 = 0x7e00_0000_0000_0000;
/// Parameter `n` lies at `(n + 1) << PARAM_SHIFT` of its space.
pub const PARAM_SHIFT: u32 = 16;

#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub base: Option<Register>,
    pub offset: i64,
}

/// Part of a word that a narrow access fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extend {
    Zero,
    Sign,
}

#[derive(Clone, Debug)]
pub struct Load {
    pub space: Space,
    /// Bytes of each element.
    pub bytes: usize,
    pub extend: Extend,
    pub to: Vec<Register>,
    pub address: Address,
}

#[derive(Clone, Debug)]
pub struct Store {
    pub space: Space,
    pub bytes: usize,
    pub from: Vec<Register>,
    pub address: Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    /// Compare and swap: the operands are what is compared and what is put.
    Swap,
}

#[derive(Clone, Debug)]
pub struct Atomic {
    pub space: Space,
    pub op: AtomicOp,
    pub bytes: usize,
    pub signed: bool,
    /// What was there before, where it is asked for.
    pub to: Option<Register>,
    pub operands: Vec<Register>,
    pub address: Address,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShuffleMode {
    Xor,
    Down,
    Up,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteMode {
    Ballot,
    All,
    Any,
    Uniform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// What lanes of a warp do together.
#[derive(Clone, Debug)]
pub enum Joint {
    /// bar.warp.sync
    Barrier,
    Shuffle {
        mode: ShuffleMode,
        to: Index,
        valid: Option<Index>,
        from: Index,
        lane: Index,
        clamp: Index,
    },
    Vote {
        mode: VoteMode,
        to: Index,
        from: Index,
        negated: bool,
    },
    /// match.any.sync of words or doubles
    Match {
        to: Index,
        from: Register,
    },
    Reduce {
        op: ReduceOp,
        signed: bool,
        to: Index,
        from: Index,
    },
    /// `matrices` of 8 × 8 pairs of bytes
    LoadMatrix {
        to: Vec<Index>,
        address: Address,
        transposed: bool,
    },
    /// D = A · B + C: A 16 × 16, B 16 × 8 of bf16 or f16
    Multiply {
        d: [Index; 4],
        a: [Index; 4],
        b: [Index; 2],
        c: [Index; 4],
        half: Half,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Bf16,
    F16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockReduce {
    And,
    Or,
    Count,
}

pub enum Op {
    Apply {
        function: Function,
        to: Index,
        from: [Index; 4],
    },
    /// A register of whose lower bits, this many, some must be set where lanes are active.
    Divisor(Register, u32),
    Convert {
        conversion: Conversion,
        to: Register,
        from: Register,
    },
    MoveWord {
        to: Index,
        from: Index,
    },
    MoveDouble {
        to: Index,
        from: Index,
    },
    MovePredicate {
        to: Index,
        from: Index,
    },
    /// A register made of narrower ones, the lowest first.
    Join {
        to: Register,
        parts: Vec<Register>,
        bits: u32,
    },
    Split {
        to: Vec<Option<Register>>,
        from: Register,
        bits: u32,
    },
    SelectWord {
        to: Index,
        yes: Index,
        no: Index,
        by: Index,
    },
    SelectDouble {
        to: Index,
        yes: Index,
        no: Index,
        by: Index,
    },
    /// Truth of two predicates: and, or, xor.
    Logic {
        function: fn(u32, u32) -> u32,
        to: Index,
        from: [Index; 2],
    },
    Not {
        to: Index,
        from: Index,
    },
    Load(Load),
    Store(Store),
    Atomic(Atomic),
    CopyAsync {
        to: Address,
        from: Address,
        bytes: usize,
        real: Option<Index>,
    },
    CommitCopies,
    WaitCopies(usize),
    Jump(usize),
    Return,
    /// bar.sync, with the threads that it waits for if it says so.
    Barrier {
        id: Index,
        threads: Option<Index>,
    },
    ReduceBarrier {
        how: BlockReduce,
        to: Register,
        id: Index,
        from: Index,
        negated: bool,
    },
    Joint {
        what: Joint,
        members: Option<Index>,
    },
    ActiveMask {
        to: Index,
    },
    /// Ordering of memory: all here is in order.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
pub struct Guard {
    pub predicate: Index,
    pub negated: bool,
}

pub struct Instruction {
    pub op: Op,
    pub guard: Option<Guard>,
    /// Line of the PTX, from 1.
    pub line: usize,
    /// Of [`crate::module::Kernel`]'s sources.
    pub source: Option<(u32, u32)>,
}
