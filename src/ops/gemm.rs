//! The matrix kernel that convolutions are made of: m = v·u for a few rows of v and a panel of u, the
//! sums in registers. Letters: T rows, C the sum's length, P blocks of 16 outputs in a panel.

use super::simd::{LANES, Simd};

/// Blocks in the panels that `blocks` blocks are cut into: full ones, then what is left.
pub(super) fn panels(blocks: usize, panel: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..blocks).step_by(panel).map(move |first| (first, panel.min(blocks - first)))
}

/// Where the rows of a product lie.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// v [T, C], `v_row` numbers from row to row.
    pub v: *const f32,
    pub v_row: usize,
    /// m [T, 16·P], `m_row` numbers from row to row.
    pub m: *mut f32,
    pub m_row: usize,
}

/// m = v·u for `rows` rows and one panel u [C, 16·P] of `blocks` ≤ `S::PANEL` blocks. What follows u
/// in memory, which is the next panel, is fetched meanwhile.
///
/// # Safety
/// `at` must hold `rows` rows of `c` and of 16·`blocks` numbers, `u` c·16·`blocks` numbers; m overlaps
/// neither.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(
    s: S,
    rows: usize,
    c: usize,
    blocks: usize,
    at: Rows,
    u: *const f32,
) {
    let mut done = 0;
    while done < rows {
        let left = rows - done;
        // Pieces of one size, so that no small one is left at the end.
        let piece = left.div_ceil(left.div_ceil(S::ROWS));
        // SAFETY: `done` rows of both lie behind the start.
        let at =
            unsafe { Rows { v: at.v.add(done * at.v_row), m: at.m.add(done * at.m_row), ..at } };
        // SAFETY: as the caller promises, for the next `piece` rows.
        unsafe {
            match blocks {
                1 => pieces::<S, 1>(s, piece, c, at, u, done == 0),
                2 => pieces::<S, 2>(s, piece, c, at, u, done == 0),
                _ => unreachable!("a panel has at most two blocks"),
            }
        }
        done += piece;
    }
}

/// # Safety
/// As [`multiply`], `rows` ≤ `S::ROWS`.
#[inline(always)]
unsafe fn pieces<S: Simd, const P: usize>(
    s: S,
    rows: usize,
    c: usize,
    at: Rows,
    u: *const f32,
    fetch: bool,
) {
    macro_rules! sizes {
        ($($rows:literal)*) => {
            match rows {
                // SAFETY: as the caller promises.
                $($rows if $rows <= S::ROWS => unsafe {
                    if fetch {
                        piece::<S, P, $rows, true>(s, c, at, u);
                    } else {
                        piece::<S, P, $rows, false>(s, c, at, u);
                    }
                },)*
                _ => unreachable!("{rows} rows at once"),
            }
        };
    }
    sizes!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// # Safety
/// As [`multiply`], for R rows and P blocks.
#[inline(always)]
unsafe fn piece<S: Simd, const P: usize, const R: usize, const FETCH: bool>(
    s: S,
    c: usize,
    at: Rows,
    u: *const f32,
) {
    let ahead = c * P * LANES;
    let mut sums = [[s.zero(); P]; R];
    let (mut u, mut v) = (u, at.v);
    for _ in 0..c {
        // SAFETY: row i of u and number i of each row of v, i < c. Fetching ahead reads nothing: it
        // may point past the end.
        unsafe {
            let mut weights = [s.zero(); P];
            for p in 0..P {
                weights[p] = s.load(u.add(p * LANES));
                if FETCH {
                    s.prefetch(u.wrapping_add(ahead + p * LANES));
                }
            }
            for r in 0..R {
                let x = s.splat(*v.add(r * at.v_row));
                for p in 0..P {
                    sums[r][p] = s.mul_add(x, weights[p], sums[r][p]);
                }
            }
            u = u.add(P * LANES);
            v = v.add(1);
        }
    }
    for r in 0..R {
        for p in 0..P {
            // SAFETY: block p of row r of m.
            unsafe { s.store(at.m.add(r * at.m_row + p * LANES), sums[r][p]) };
        }
    }
}
