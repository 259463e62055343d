//! What becomes of what a gradient's place already holds. A value that several operations read has the
//! sum of their gradients: the first to come is set, the others are added.

use crate::ops::simd::Simd;

/// How a gradient is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// Over whatever stood there.
    Set,
    /// On top of what stands there.
    Add,
}

impl Accumulate {
    /// Writes 16 numbers.
    ///
    /// # Safety
    /// 16 writable numbers at `to`, and readable ones to be added to.
    #[inline(always)]
    pub(in crate::ops) unsafe fn put<S: Simd>(self, s: S, to: *mut f32, value: S::F) {
        // SAFETY: as the caller promises.
        unsafe {
            let value = if self == Self::Add { s.add(s.load(to), value) } else { value };
            s.store(to, value);
        }
    }
}
