//! Who touched a piece of memory last, and whether a barrier lies between.
//!
//! Two accesses of one piece race if they are of different threads, one of them at least writes,
//! not both are atomic, and no barrier orders them: of the block (its epoch counts), or, in shared
//! memory, of the warp. This does not depend on the order in which threads happen to run here.

/// An access in 64 bits, 0 for none. From the top: launch (global memory only), block or barriers,
/// barriers of the warp, how (three bits), thread.
#[derive(Clone, Copy)]
pub struct Tag {
    /// What makes two accesses possibly unordered: an epoch in shared memory; launch and block in
    /// global memory.
    era: u64,
    /// Within an era: what orders accesses of some threads.
    phase: u32,
    thread: u32,
}

const THREAD_BITS: u32 = 10;
const FLAG_BITS: u32 = 2;
const PHASE_BITS: u32 = 18;
const PHASE_SHIFT: u32 = THREAD_BITS + FLAG_BITS;
const ERA_SHIFT: u32 = PHASE_SHIFT + PHASE_BITS;
/// Eras and phases that fit into a tag.
pub const ERAS: u64 = 1 << (64 - ERA_SHIFT);
pub const PHASES: u32 = 1 << PHASE_BITS;

/// The writer's access was atomic.
const ATOMIC: u64 = 1 << THREAD_BITS;
/// Beside the reader's thread others of its group (see [`Rules::same_group`]) read in this phase.
const GROUP: u64 = 1 << THREAD_BITS;
/// Threads of several groups read.
const MANY: u64 = 2 << THREAD_BITS;

impl Tag {
    /// # Panics
    /// If a number does not fit; callers see to it.
    pub fn new(era: u64, phase: u32, thread: u32) -> Self {
        assert!(era > 0 && era < ERAS && phase < PHASES && thread < 1 << THREAD_BITS);
        Self { era, phase, thread }
    }

    /// The same of another thread.
    #[inline]
    pub fn of(self, thread: u32) -> Self {
        Self { thread, ..self }
    }

    #[inline]
    fn bits(self) -> u64 {
        self.era << ERA_SHIFT | u64::from(self.phase) << PHASE_SHIFT | u64::from(self.thread)
    }
}

/// What orders accesses of an era.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Era: barriers of the block so far. Phase: barriers of the warp, which order its lanes.
    Shared,
    /// Era: launch and block. Phase: barriers of the block, which order all its threads; blocks are
    /// in different eras of the same launch and never ordered.
    Global,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Atomic,
}

/// The last accesses of one piece.
#[derive(Clone, Copy, Default)]
pub struct Cell {
    writer: u64,
    reader: u64,
}

/// What was found: the other thread, and whether it wrote.
#[derive(Debug, PartialEq, Eq)]
pub struct Conflict {
    pub thread: u32,
    /// Global memory: the other's block, counted x first.
    pub block: u64,
    pub wrote: bool,
}

/// Blocks of a launch that eras in global memory tell apart.
pub const BLOCKS: u64 = 1 << 20;

impl Rules {
    /// Whether an access of these bits is of a time that no longer matters.
    #[inline]
    fn is_past(self, bits: u64, me: Tag) -> bool {
        match self {
            Rules::Shared => bits >> ERA_SHIFT != me.era,
            Rules::Global => bits >> ERA_SHIFT >> 20 != me.era >> 20,
        }
    }

    /// Whether both are threads among which phases make an order.
    #[inline]
    fn same_group(self, bits: u64, me: Tag) -> bool {
        match self {
            Rules::Shared => (bits as u32 & ((1 << THREAD_BITS) - 1)) / 32 == me.thread / 32,
            Rules::Global => bits >> ERA_SHIFT == me.era,
        }
    }

    #[inline]
    fn is_same_phase(bits: u64, me: Tag) -> bool {
        (bits >> PHASE_SHIFT) as u32 & (PHASES - 1) == me.phase
    }

    #[inline]
    fn is_same_thread(self, bits: u64, me: Tag) -> bool {
        bits as u32 & ((1 << THREAD_BITS) - 1) == me.thread
            && (self == Rules::Shared || bits >> ERA_SHIFT == me.era)
    }

    /// Whether an earlier access by one thread is not ordered before mine.
    #[inline]
    fn is_unordered(self, bits: u64, me: Tag) -> bool {
        bits != 0
            && !self.is_past(bits, me)
            && !self.is_same_thread(bits, me)
            && (!self.same_group(bits, me) || Self::is_same_phase(bits, me))
    }

    /// The same of what readers left.
    #[inline]
    fn is_read_unordered(self, bits: u64, me: Tag) -> bool {
        if bits == 0 || self.is_past(bits, me) {
            return false;
        }
        if bits & MANY != 0 {
            return true;
        }
        if bits & GROUP != 0 {
            return !self.same_group(bits, me) || Self::is_same_phase(bits, me);
        }
        self.is_unordered(bits, me)
    }

    /// Enters an access.
    #[inline]
    pub fn enter(self, cell: &mut Cell, me: Tag, access: Access) -> Result<(), Conflict> {
        let both_atomic = access == Access::Atomic && cell.writer & ATOMIC != 0;
        if self.is_unordered(cell.writer, me) && !both_atomic {
            return Err(conflict(cell.writer, true));
        }
        match access {
            Access::Read => self.enter_read(cell, me),
            Access::Write | Access::Atomic => {
                if self.is_read_unordered(cell.reader, me) {
                    return Err(conflict(cell.reader, false));
                }
                cell.writer = me.bits() | if access == Access::Atomic { ATOMIC } else { 0 };
            }
        }
        Ok(())
    }

    #[inline]
    fn enter_read(self, cell: &mut Cell, me: Tag) {
        let old = cell.reader;
        if old == me.bits() {
            return;
        }
        cell.reader = if old == 0 || self.is_past(old, me) {
            me.bits()
        } else if old & MANY != 0 {
            old
        } else if !self.same_group(old, me) {
            me.bits() | MANY
        } else if !Self::is_same_phase(old, me) {
            me.bits()
        } else if self.is_same_thread(old, me) {
            old
        } else {
            me.bits() | GROUP
        };
    }
}

fn conflict(bits: u64, wrote: bool) -> Conflict {
    Conflict {
        thread: bits as u32 & ((1 << THREAD_BITS) - 1),
        block: (bits >> ERA_SHIFT) & (BLOCKS - 1),
        wrote,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accesses of shared memory: epoch, phase of the warp, thread, how; and whether the last
    /// races.
    #[test]
    fn barriers_make_an_order_in_shared_memory() {
        use Access::{Atomic, Read, Write};
        type Step = (u64, u32, u32, Access);
        let cases: &[(&[Step], bool)] = &[
            (&[(1, 0, 0, Write), (1, 0, 0, Read)], false),
            (&[(1, 0, 0, Write), (1, 0, 1, Read)], true),
            (&[(1, 0, 0, Write), (2, 0, 1, Read)], false),
            (&[(1, 0, 0, Write), (1, 1, 1, Read)], false),
            // Another warp's own barrier orders nothing.
            (&[(1, 0, 0, Write), (1, 1, 32, Read)], true),
            (&[(1, 0, 0, Read), (1, 0, 1, Write)], true),
            (&[(1, 0, 0, Read), (1, 0, 1, Read)], false),
            // A reader is not forgotten when the writer reads too.
            (&[(1, 0, 0, Read), (1, 0, 1, Read), (1, 0, 1, Write)], true),
            (&[(1, 0, 0, Read), (1, 0, 32, Read), (1, 0, 32, Write)], true),
            (&[(1, 0, 0, Read), (1, 0, 1, Read), (1, 1, 1, Write)], false),
            (&[(1, 0, 0, Read), (1, 0, 32, Read), (1, 1, 32, Write)], true),
            (&[(1, 0, 0, Read), (1, 0, 32, Read), (2, 0, 32, Write)], false),
            (&[(1, 0, 0, Write), (1, 0, 1, Write)], true),
            (&[(1, 0, 0, Atomic), (1, 0, 1, Atomic)], false),
            (&[(1, 0, 0, Atomic), (1, 0, 1, Read)], true),
            (&[(1, 0, 0, Write), (1, 0, 1, Atomic)], true),
        ];
        for (steps, races) in cases {
            let mut cell = Cell::default();
            let mut last = Ok(());
            for &(era, phase, thread, access) in *steps {
                assert!(last.is_ok(), "{:?} earlier than expected", last);
                last = Rules::Shared.enter(&mut cell, Tag::new(era, phase, thread), access);
            }
            let steps: Vec<(u64, u32, u32)> = steps.iter().map(|s| (s.0, s.1, s.2)).collect();
            assert_eq!(last.is_err(), *races, "{steps:?}");
        }
    }

    #[test]
    fn nothing_orders_blocks_of_a_launch() {
        let era = |launch: u64, block: u64| launch << 20 | block;
        let mut cell = Cell::default();
        let enter = |cell: &mut Cell, era, phase, thread, access| {
            Rules::Global.enter(cell, Tag::new(era, phase, thread), access)
        };
        enter(&mut cell, era(1, 0), 3, 5, Access::Write).unwrap();
        enter(&mut cell, era(1, 0), 4, 6, Access::Write).unwrap();
        let conflict = enter(&mut cell, era(1, 2), 4, 6, Access::Read).unwrap_err();
        assert_eq!(conflict, Conflict { thread: 6, block: 0, wrote: true });
        enter(&mut cell, era(2, 2), 0, 6, Access::Read).unwrap();
        enter(&mut cell, era(2, 3), 0, 6, Access::Read).unwrap();
        enter(&mut cell, era(2, 3), 0, 6, Access::Write).unwrap_err();
    }
}
