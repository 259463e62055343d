//! Device memory: buffers of exactly the size asked for, far apart, each byte of which knows
//! whether it was ever written.

use std::ops::Range;

use crate::fault::{Fault, Kind, Problem};
use crate::race::{Access, BLOCKS, Cell, ERAS, Rules, Tag};

/// Buffers begin this far apart, so that an index gone wrong lands in none, and an address cut to
/// 32 bits too.
const STRIDE_BITS: u32 = 32;
/// Buffers are aligned to this and to no more, as the driver promises.
const ALIGNMENT: u64 = 256;

/// Device memory.
#[derive(Default)]
pub struct Memory {
    /// `None` where it was given back.
    buffers: Vec<Option<Buffer>>,
    launches: u64,
}

struct Buffer {
    bytes: Vec<u8>,
    written: Bits,
    /// Last accesses, empty until a kernel touches the buffer.
    cells: Vec<Cell>,
}

/// One bit a byte.
#[derive(Clone, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    pub fn new(bits: usize) -> Self {
        Self(vec![0; bits.div_ceil(64)])
    }

    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    /// Whether all of some few bits are set that do not cross a multiple of 64.
    #[inline]
    pub fn all(&self, start: usize, count: usize) -> bool {
        let mask = ((1u64 << count) - 1) << (start % 64);
        self.0[start / 64] & mask == mask
    }

    /// Sets or clears some few bits that do not cross a multiple of 64.
    #[inline]
    pub fn put(&mut self, start: usize, count: usize, value: bool) {
        let mask = ((1u64 << count) - 1) << (start % 64);
        let word = &mut self.0[start / 64];
        *word = if value { *word | mask } else { *word & !mask };
    }

    fn get(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    pub fn put_range(&mut self, range: Range<usize>, value: bool) {
        range.for_each(|index| self.put(index, 1, value));
    }

    fn holes(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let mut holes: Vec<Range<usize>> = vec![];
        for index in range.filter(|&index| !self.get(index)) {
            match holes.last_mut() {
                Some(last) if last.end == index => last.end += 1,
                _ => holes.push(index..index + 1),
            }
        }
        holes
    }
}

/// Who accesses global memory.
#[derive(Clone, Copy)]
pub struct Accessor {
    pub tag: Tag,
    /// Bytes that a [`Cell`] stands for, as a power of two: the narrowest access of the kernel.
    pub granule: u32,
}

impl Memory {
    /// A buffer that nobody has written, aligned to 256.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        assert!((bytes as u64) < (1 << STRIDE_BITS) - ALIGNMENT, "a buffer of {bytes} bytes");
        // What a program may read there by mistake should not look like a number.
        let buffer = Buffer { bytes: vec![0xff; bytes], written: Bits::new(bytes), cells: vec![] };
        self.buffers.push(Some(buffer));
        (self.buffers.len() as u64) << STRIDE_BITS | ALIGNMENT
    }

    /// Gives a buffer back; what touches it from now on is out of bounds.
    ///
    /// # Panics
    /// If no buffer begins there.
    pub fn free(&mut self, address: u64) {
        assert_eq!(address % (1 << STRIDE_BITS), ALIGNMENT, "no buffer begins at {address:#x}");
        let slot = (address >> STRIDE_BITS).wrapping_sub(1) as usize;
        let buffer = self.buffers.get_mut(slot).and_then(Option::take);
        assert!(buffer.is_some(), "no buffer at {address:#x}");
    }

    /// # Errors
    /// The bytes do not lie in one buffer.
    pub fn upload(&mut self, from: &[u8], address: u64) -> Result<(), Fault> {
        let (buffer, start) = self.find_mut(address, from.len())?;
        let range = start..start + from.len();
        buffer.bytes[range.clone()].copy_from_slice(from);
        buffer.written.put_range(range, true);
        Ok(())
    }

    /// # Errors
    /// The bytes do not lie in one buffer, or one of them was never written.
    pub fn download(&self, address: u64, to: &mut [u8]) -> Result<(), Fault> {
        let (buffer, start) = self.find(address, to.len())?;
        let range = start..start + to.len();
        if let Some(hole) = buffer.written.holes(range.clone()).first() {
            let detail = format!("bytes {hole:?} of a buffer of {}", buffer.bytes.len());
            return Err(Problem::new(Kind::Unwritten, detail).into());
        }
        to.copy_from_slice(&buffer.bytes[range]);
        Ok(())
    }

    /// Which of the bytes were never written, counted from `address`.
    ///
    /// # Errors
    /// The bytes do not lie in one buffer.
    pub fn unwritten(&self, address: u64, bytes: usize) -> Result<Vec<Range<usize>>, Fault> {
        let (buffer, start) = self.find(address, bytes)?;
        let holes = buffer.written.holes(start..start + bytes);
        Ok(holes.into_iter().map(|hole| hole.start - start..hole.end - start).collect())
    }

    /// Begins a launch: what was accessed before it is ordered before all that it does.
    pub fn begin_launch(&mut self) -> u64 {
        self.launches += 1;
        if self.launches >= ERAS / BLOCKS {
            self.launches = 1;
            for buffer in self.buffers.iter_mut().flatten() {
                buffer.cells.clear();
            }
        }
        self.launches
    }

    #[inline]
    fn find(&self, address: u64, bytes: usize) -> Result<(&Buffer, usize), Problem> {
        let (slot, start) = place(address);
        let Some(Some(buffer)) = self.buffers.get(slot) else {
            return Err(nowhere(address, bytes));
        };
        if start + bytes > buffer.bytes.len() {
            return Err(outside(address, bytes, buffer.bytes.len()));
        }
        Ok((buffer, start))
    }

    #[inline]
    fn find_mut(&mut self, address: u64, bytes: usize) -> Result<(&mut Buffer, usize), Problem> {
        let (slot, start) = place(address);
        let Some(Some(buffer)) = self.buffers.get_mut(slot) else {
            return Err(nowhere(address, bytes));
        };
        if start + bytes > buffer.bytes.len() {
            return Err(outside(address, bytes, buffer.bytes.len()));
        }
        Ok((buffer, start))
    }

    /// The bytes of an access by a kernel, `count` being 1, 2, 4, 8 or 16.
    #[inline]
    pub fn access(
        &mut self,
        address: u64,
        count: usize,
        by: Accessor,
        access: Access,
    ) -> Result<&mut [u8], Problem> {
        if address & (count as u64 - 1) != 0 {
            let detail = format!("{count} bytes of global memory at {}", spell(address));
            return Err(Problem::new(Kind::Misaligned, detail));
        }
        let (buffer, start) = self.find_mut(address, count)?;
        if access == Access::Write {
            buffer.written.put(start, count, true);
        } else if !buffer.written.all(start, count) {
            let detail = format!("{count} bytes of global memory at {}", spell(address));
            return Err(Problem::new(Kind::Uninitialised, detail));
        }
        if buffer.cells.len() << by.granule < buffer.bytes.len() {
            let cells = buffer.bytes.len().div_ceil(1 << by.granule);
            buffer.cells.resize(cells, Cell::default());
        }
        let cells = start >> by.granule..=(start + count - 1) >> by.granule;
        for cell in &mut buffer.cells[cells] {
            if let Err(other) = Rules::Global.enter(cell, by.tag, access) {
                let how = if other.wrote { "written" } else { "read" };
                let detail = format!(
                    "{count} bytes at {} were {how} by thread {} of block {} in the same launch",
                    spell(address),
                    other.thread,
                    other.block
                );
                return Err(Problem::new(Kind::GlobalRace, detail));
            }
        }
        Ok(&mut buffer.bytes[start..start + count])
    }
}

/// Buffer, and byte in it.
#[inline]
fn place(address: u64) -> (usize, usize) {
    let slot = (address >> STRIDE_BITS).wrapping_sub(1) as usize;
    // An address below the first byte wraps to far behind the last.
    let start = (address & ((1 << STRIDE_BITS) - 1)).wrapping_sub(ALIGNMENT) as usize;
    (slot, start & (usize::MAX >> 1))
}

fn spell(address: u64) -> String {
    let (slot, start) = place(address);
    format!("byte {start} of buffer {slot} ({address:#x})")
}

fn nowhere(address: u64, bytes: usize) -> Problem {
    let detail = format!("{bytes} bytes of global memory at {address:#x}, where no buffer is");
    Problem::new(Kind::OutOfBounds, detail)
}

fn outside(address: u64, bytes: usize, length: usize) -> Problem {
    let detail = format!("{bytes} bytes at {}, which has {length}", spell(address));
    Problem::new(Kind::OutOfBounds, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_of_the_size_asked_for_and_know_what_was_written() {
        let mut memory = Memory::default();
        let (first, second) = (memory.alloc(10), memory.alloc(4));
        assert_eq!((first % 256, first % 512), (0, 256));
        memory.upload(&[1, 2, 3], first + 2).unwrap();
        assert_eq!(memory.unwritten(first, 10).unwrap(), [0..2, 5..10]);
        assert_eq!(memory.unwritten(first + 1, 6).unwrap(), [0..1, 4..6]);
        let mut bytes = [0; 3];
        memory.download(first + 2, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3]);
        let fault = memory.download(first + 3, &mut bytes).unwrap_err();
        assert_eq!(fault.kind, Kind::Unwritten);
        for (address, count) in [(first, 11), (first + 10, 1), (first - 1, 1), (0, 1)] {
            let fault = memory.upload(&vec![0; count], address).unwrap_err();
            assert_eq!(fault.kind, Kind::OutOfBounds, "{address:#x}");
        }
        memory.free(first);
        assert_eq!(memory.upload(&[0], first).unwrap_err().kind, Kind::OutOfBounds);
        memory.upload(&[0; 4], second).unwrap();
    }
}
