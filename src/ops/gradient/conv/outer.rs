//! The kernel that gradients of weights are made of: sums of outer products over places, N numbers of
//! x by P blocks of dy, in registers.

use crate::ops::simd::{Isa, LANES, Simd};

/// The most blocks of dy at once.
pub(super) const PANEL: usize = 3;

/// N and P of these lanes: 24 of AVX-512's 32 registers hold sums, 8 of AVX2's 16.
#[inline(always)]
pub(super) const fn size<S: Simd>() -> (usize, usize) {
    match S::ISA {
        Isa::Avx512 => (8, PANEL),
        Isa::Avx2 => (4, 1),
        Isa::Portable => (2, 1),
    }
}

/// Panels of nearly one size that `blocks` blocks are cut into, none of more than `panel`: first block
/// and blocks of panel `i`.
#[inline(always)]
pub(super) fn panel(i: usize, blocks: usize, panel: usize) -> (usize, usize) {
    let count = blocks.div_ceil(panel);
    let (from, to) = (blocks * i / count, blocks * (i + 1) / count);
    (from, to - from)
}

/// Places whose products are summed: a rectangle of some pictures. The steps are numbers of memory.
#[derive(Clone, Copy)]
pub(super) struct Places {
    /// The N numbers of the first place.
    pub x: *const f32,
    pub x_step: usize,
    pub x_row: usize,
    pub x_image: usize,
    /// Where the x that comes next lies, from each place on: it is fetched meanwhile.
    pub ahead: usize,
    /// The first block of the first place.
    pub dy: *const f32,
    pub dy_block: usize,
    pub dy_row: usize,
    pub dy_image: usize,
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
}

/// Adds the sums over `at` to what is at `sums`, or overwrites it where it is the `first` time.
///
/// # Safety
/// The places can be read and `count` × `blocks` values of 16 lanes be written at `sums`; `count` ≤ N
/// and `blocks` ≤ P as [`size`] says.
#[inline(always)]
pub(super) unsafe fn add_products<S: Simd>(
    s: S,
    (count, blocks): (usize, usize),
    at: Places,
    sums: *mut f32,
    first: bool,
) {
    macro_rules! sizes {
        ($($blocks:literal: $($count:literal)*;)*) => {
            match (blocks, count) {
                // SAFETY: as the caller promises.
                $($(($blocks, $count) if $blocks <= size::<S>().1 && $count <= size::<S>().0 => unsafe {
                    products::<S, $count, $blocks>(s, at, sums, first)
                },)*)*
                _ => unreachable!("{count} numbers by {blocks} blocks"),
            }
        };
    }
    sizes!(
        1: 1 2 3 4 5 6 7 8;
        2: 1 2 3 4 5 6 7 8;
        3: 1 2 3 4 5 6 7 8;
    );
}

/// # Safety
/// As [`add_products`].
#[inline(always)]
unsafe fn products<S: Simd, const N: usize, const P: usize>(
    s: S,
    at: Places,
    to: *mut f32,
    first: bool,
) {
    let mut sums = [[s.zero(); P]; N];
    if !first {
        // They come from a farther cache, and are not needed before the end.
        for i in 0..N * P {
            s.prefetch(to.wrapping_add(i * LANES));
        }
    }
    for image in 0..at.images {
        for row in 0..at.rows {
            let mut x = at.x.wrapping_add(image * at.x_image + row * at.x_row);
            let mut dy = at.dy.wrapping_add(image * at.dy_image + row * at.dy_row);
            for _ in 0..at.columns {
                // SAFETY: a place of both.
                unsafe {
                    let mut own = [s.zero(); P];
                    for (p, own) in own.iter_mut().enumerate() {
                        *own = s.load(dy.add(p * at.dy_block));
                    }
                    for (n, sums) in sums.iter_mut().enumerate() {
                        let x = s.splat(*x.add(n));
                        for p in 0..P {
                            sums[p] = s.mul_add(x, own[p], sums[p]);
                        }
                    }
                }
                s.prefetch(x.wrapping_add(at.ahead));
                x = x.wrapping_add(at.x_step);
                dy = dy.wrapping_add(LANES);
            }
        }
    }
    for (n, sums) in sums.into_iter().enumerate() {
        for (p, sum) in sums.into_iter().enumerate() {
            // SAFETY: value (n, p).
            unsafe {
                let to = to.add((n * P + p) * LANES);
                s.store(to, if first { sum } else { s.add(s.load(to), sum) });
            }
        }
    }
}
