//! The matrix kernel that convolutions are made of: m = v·u for a few rows of v and a panel of u, the
//! sums in registers. Letters: T rows, C the sum's length, P blocks of 16 outputs in a panel.

use super::simd::{LANES, Simd};

/// Blocks in the panels that `blocks` blocks are cut into: full ones, then what is left.
pub(super) fn panels(blocks: usize, panel: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..blocks).step_by(panel).map(move |first| (first, panel.min(blocks - first)))
}

/// How the rows of a matrix `[T, 16·K]` lie: in pieces of as many rows as are multiplied at once,
/// each `[K][rows of a piece][16]`, so that a multiplication reads one run of memory from end to
/// end.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub count: usize,
    /// Rows of a piece; the last may have fewer.
    piece: usize,
}

impl Rows {
    /// Pieces of one size, so that no small one is left at the end.
    #[inline(always)]
    pub fn new<S: Simd>(_: S, count: usize) -> Self {
        Self { count, piece: count.div_ceil(count.div_ceil(S::ROWS)) }
    }

    /// Where block `block` of `blocks` of row `row` begins.
    #[inline(always)]
    pub fn place(&self, row: usize, block: usize, blocks: usize) -> usize {
        let within = row % self.piece;
        let first = row - within;
        (first * blocks + block * self.piece.min(self.count - first) + within) * LANES
    }
}

/// m = v·u for a panel u [16·K, 16·P] of `panel` = P ≤ `S::PANEL` blocks, `v` having `of.0` = K blocks
/// and `m` having `of.1` blocks, of which P from `first` on are written. What follows u in memory,
/// which is the next panel, is fetched meanwhile, a share of it with each piece of rows, so that memory
/// is never idle.
///
/// # Safety
/// `v`, `m` and `u` must hold what this says; m overlaps neither.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(
    s: S,
    rows: Rows,
    of: (usize, usize),
    (first, panel): (usize, usize),
    v: *const f32,
    m: *mut f32,
    u: *const f32,
) {
    let (len, pieces) = (of.0 * LANES * panel * LANES, rows.count.div_ceil(rows.piece));
    for done in (0..rows.count).step_by(rows.piece) {
        let count = rows.piece.min(rows.count - done);
        // SAFETY: the piece that row `done` begins, in both.
        let at = unsafe {
            Piece {
                v: v.add(rows.place(done, 0, of.0)),
                u,
                m: m.add(rows.place(done, first, of.1)),
                blocks_in: of.0,
                next: u.wrapping_add(len + done / rows.piece * (len / pieces)),
                next_step: panel * LANES / pieces,
            }
        };
        // SAFETY: as the caller promises, for `count` rows.
        unsafe {
            match panel {
                1 => dispatch::<S, 1>(s, count, at),
                2 => dispatch::<S, 2>(s, count, at),
                _ => unreachable!("a panel has at most two blocks"),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Piece {
    v: *const f32, // [K][R][16]
    u: *const f32, // [K][16][16·P]
    m: *mut f32,   // [P][R][16]
    blocks_in: usize,
    /// What is fetched of the next panel meanwhile, and how far it goes on with each row of u.
    next: *const f32,
    next_step: usize,
}

/// # Safety
/// As [`multiply`], `rows` ≤ `S::ROWS`.
#[inline(always)]
unsafe fn dispatch<S: Simd, const P: usize>(s: S, rows: usize, at: Piece) {
    macro_rules! sizes {
        ($($rows:literal)*) => {
            match rows {
                // SAFETY: as the caller promises.
                $($rows if $rows <= S::ROWS => unsafe { piece::<S, P, $rows>(s, at) },)*
                _ => unreachable!("{rows} rows at once"),
            }
        };
    }
    sizes!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// # Safety
/// As [`multiply`], for R rows and P blocks.
#[inline(always)]
unsafe fn piece<S: Simd, const P: usize, const R: usize>(s: S, at: Piece) {
    let mut sums = [[s.zero(); P]; R];
    let (mut u, mut v, mut next) = (at.u, at.v, at.next);
    for _ in 0..at.blocks_in {
        for _ in 0..LANES {
            // SAFETY: a row of u and a number of each row of v. Fetching ahead reads nothing: it may
            // point past the end.
            unsafe {
                let mut weights = [s.zero(); P];
                for (p, weights) in weights.iter_mut().enumerate() {
                    *weights = s.load(u.add(p * LANES));
                }
                s.prefetch(next);
                next = next.wrapping_add(at.next_step);
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = s.splat(*v.add(r * LANES));
                    for p in 0..P {
                        sums[p] = s.mul_add(x, weights[p], sums[p]);
                    }
                }
                u = u.add(P * LANES);
                v = v.add(1);
            }
        }
        // The next block; the last step leads just behind the end.
        v = v.wrapping_add((R - 1) * LANES);
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (p, sum) in sums.into_iter().enumerate() {
            // SAFETY: row r of block p of m.
            unsafe { s.store(at.m.add((p * R + r) * LANES), sum) };
        }
    }
}
