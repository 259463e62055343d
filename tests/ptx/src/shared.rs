//! Shared memory of a block. Arrays lie apart, so that an index gone wrong lands in none of them.

use crate::fault::{Kind, Problem};
use crate::memory::Bits;
use crate::race::{Access, Cell, Rules, Tag};

/// Bytes between two arrays.
pub const GAP: usize = 256;

pub struct Shared {
    bytes: Vec<u8>,
    /// Bytes that belong to an array.
    there: Bits,
    written: Bits,
    cells: Vec<Cell>,
    /// Bytes that a cell stands for, as a power of two.
    granule: u32,
}

impl Shared {
    /// `arrays` are places and lengths; `granule` is the narrowest access, as a power of two.
    pub fn new(arrays: &[(usize, usize)], granule: u32) -> Self {
        let end = arrays.iter().map(|(start, bytes)| start + bytes).max().unwrap_or(0);
        let mut there = Bits::new(end);
        for &(start, bytes) in arrays {
            there.put_range(start..start + bytes, true);
        }
        Self {
            bytes: vec![0xff; end],
            there,
            written: Bits::new(end),
            cells: vec![Cell::default(); end.div_ceil(1 << granule)],
            granule,
        }
    }

    /// Forgets what was written, for the next block.
    pub fn clear(&mut self) {
        self.written.clear();
    }

    /// The bytes of an access, `count` being 1, 2, 4, 8 or 16.
    #[inline]
    pub fn access(
        &mut self,
        address: u64,
        count: usize,
        by: Tag,
        access: Access,
    ) -> Result<&mut [u8], Problem> {
        let start = self.check(address, count, by, access)?;
        if access == Access::Write {
            self.written.put(start, count, true);
        } else if !self.written.all(start, count) {
            let detail = format!("{count} bytes of shared memory at {start}");
            return Err(Problem::new(Kind::Uninitialised, detail));
        }
        Ok(&mut self.bytes[start..start + count])
    }

    /// Notes that bytes will be written some time from now on: until they are they cannot be read.
    pub fn promise(&mut self, address: u64, count: usize, by: Tag) -> Result<(), Problem> {
        let start = self.check(address, count, by, Access::Write)?;
        self.written.put(start, count, false);
        Ok(())
    }

    #[inline]
    fn check(
        &mut self,
        address: u64,
        count: usize,
        by: Tag,
        access: Access,
    ) -> Result<usize, Problem> {
        let start = address as usize;
        if start & (count - 1) != 0 {
            let detail = format!("{count} bytes of shared memory at {start}");
            return Err(Problem::new(Kind::Misaligned, detail));
        }
        if start >= self.bytes.len() || !self.there.all(start, count) {
            let detail = format!("{count} bytes of shared memory at {start}, where no array is");
            return Err(Problem::new(Kind::OutOfBounds, detail));
        }
        let cells = start >> self.granule..=(start + count - 1) >> self.granule;
        for cell in &mut self.cells[cells] {
            if let Err(other) = Rules::Shared.enter(cell, by, access) {
                let how = if other.wrote { "written" } else { "read" };
                let detail = format!(
                    "{count} bytes of shared memory at {start} were {how} by thread {}, and no \
                     barrier lies between",
                    other.thread
                );
                return Err(Problem::new(Kind::SharedRace, detail));
            }
        }
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_end_where_they_end() {
        let mut shared = Shared::new(&[(0, 12), (12 + GAP + 4, 16)], 2);
        let me = Tag::new(1, 0, 0);
        let mut kind = |address, count, access| {
            shared.access(address, count, me, access).map(|_| ()).map_err(|problem| problem.kind)
        };
        assert_eq!(kind(8, 4, Access::Write), Ok(()));
        assert_eq!(kind(8, 4, Access::Read), Ok(()));
        assert_eq!(kind(4, 4, Access::Read), Err(Kind::Uninitialised));
        assert_eq!(kind(8, 8, Access::Write), Err(Kind::OutOfBounds));
        assert_eq!(kind(12, 4, Access::Write), Err(Kind::OutOfBounds));
        assert_eq!(kind(6, 4, Access::Write), Err(Kind::Misaligned));
        assert_eq!(kind(272, 16, Access::Write), Ok(()));
        assert_eq!(kind(288, 4, Access::Write), Err(Kind::OutOfBounds));
        assert_eq!(kind(1 << 40, 4, Access::Write), Err(Kind::OutOfBounds));
        shared.promise(8, 4, me).unwrap();
        let kind = shared.access(8, 4, me, Access::Read).map(|_| ()).unwrap_err().kind;
        assert_eq!(kind, Kind::Uninitialised);
    }
}
