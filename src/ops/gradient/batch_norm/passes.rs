//! The passes over memory of a batch norm: sums of pieces, and what is made of them.

use super::{Backward, Cut, row};
use crate::ops::conv::Stage;
use crate::ops::feature_map::FeatureMap;
use crate::ops::gradient::elementwise::{AHEAD, where_above_zero};
use crate::ops::simd::{Kernel, LANES, Simd};

/// Sums that grow side by side, so that one need not wait for its last addition.
const TOGETHER: usize = 4;

/// Whether a gradient passes the ReLU.
pub(super) trait Gate: Copy {
    /// Where its map's place is, if it has a map.
    fn place(&self, image: usize, block: usize, y: usize) -> *const f32;

    /// The gradient `dy` of the place `offset` numbers behind `from`, where x is `x`.
    ///
    /// # Safety
    /// 16 readable numbers there, if the gate has a map.
    unsafe fn pass<S: Simd>(
        self,
        s: S,
        dy: S::F,
        x: S::F,
        norm: [S::F; 2],
        from: *const f32,
        offset: usize,
    ) -> S::F;
}

/// There is no ReLU.
#[derive(Clone, Copy)]
pub(super) struct Open;

/// Open where scale · x + shift is above zero, as it was on the way forward.
#[derive(Clone, Copy)]
pub(super) struct OfNorm;

/// Open where this map is above zero.
#[derive(Clone, Copy)]
pub(super) struct OfY<'a>(pub FeatureMap<'a>);

impl Gate for Open {
    #[inline(always)]
    fn place(&self, _: usize, _: usize, _: usize) -> *const f32 {
        std::ptr::null()
    }

    #[inline(always)]
    unsafe fn pass<S: Simd>(
        self,
        _: S,
        dy: S::F,
        _: S::F,
        _: [S::F; 2],
        _: *const f32,
        _: usize,
    ) -> S::F {
        dy
    }
}

impl Gate for OfNorm {
    #[inline(always)]
    fn place(&self, _: usize, _: usize, _: usize) -> *const f32 {
        std::ptr::null()
    }

    #[inline(always)]
    unsafe fn pass<S: Simd>(
        self,
        s: S,
        dy: S::F,
        x: S::F,
        [scale, shift]: [S::F; 2],
        _: *const f32,
        _: usize,
    ) -> S::F {
        where_above_zero(s, s.mul_add(x, scale, shift), dy)
    }
}

impl Gate for OfY<'_> {
    #[inline(always)]
    fn place(&self, image: usize, block: usize, y: usize) -> *const f32 {
        self.0.place(image, block, y as isize, 0)
    }

    #[inline(always)]
    unsafe fn pass<S: Simd>(
        self,
        s: S,
        dy: S::F,
        _: S::F,
        _: [S::F; 2],
        from: *const f32,
        offset: usize,
    ) -> S::F {
        s.prefetch(from.wrapping_add(offset + AHEAD));
        // SAFETY: as the caller promises.
        where_above_zero(s, unsafe { s.load(from.add(offset)) }, dy)
    }
}

/// Row `row` of the coefficients of `block`.
///
/// # Safety
/// `coefficients` are those of all blocks of a map that has `block`.
#[inline(always)]
unsafe fn coefficient<S: Simd>(s: S, coefficients: *const f32, block: usize, row: usize) -> S::F {
    // SAFETY: as the caller promises.
    unsafe { s.load(coefficients.add((block * row::COUNT + row) * LANES)) }
}

#[inline(always)]
fn total<S: Simd>(s: S, [a, b, c, d]: [S::F; TOGETHER]) -> S::F {
    s.add(s.add(a, b), s.add(c, d))
}

/// For each piece its mean m, Σ(x − m) and Σ(x − m)². The mean is rounded; the first sum says by how
/// much.
pub(super) struct Deviations<'a> {
    pub cut: Cut,
    pub first: usize,
    pub x: FeatureMap<'a>,
    pub partials: *mut f32,
    pub from: usize,
    pub to: usize,
}

impl Kernel for Deviations<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (width, row_len) = (self.cut.shape.width, self.cut.shape.row());
        let whole = width / TOGETHER * TOGETHER;
        for piece in self.from..self.to {
            let (block, image, y, rows) = self.cut.at(piece);
            let from = self.x.place(image, self.first + block, y as isize, 0);
            let mut sums = [s.zero(); TOGETHER];
            for dy in 0..rows {
                // SAFETY: `rows` rows of W places from `from` on.
                unsafe {
                    let row = from.add(dy * row_len);
                    for x in (0..whole).step_by(TOGETHER) {
                        for (j, sum) in sums.iter_mut().enumerate() {
                            *sum = s.add(*sum, s.load(row.add((x + j) * LANES)));
                        }
                    }
                    for x in whole..width {
                        sums[0] = s.add(sums[0], s.load(row.add(x * LANES)));
                    }
                }
            }
            let mean = s.div(total(s, sums), s.splat((rows * width) as f32));
            let (mut off, mut squares) = ([s.zero(); TOGETHER], [s.zero(); TOGETHER]);
            for dy in 0..rows {
                // SAFETY: as above.
                unsafe {
                    let row = from.add(dy * row_len);
                    for x in (0..whole).step_by(TOGETHER) {
                        for j in 0..TOGETHER {
                            let apart = s.sub(s.load(row.add((x + j) * LANES)), mean);
                            off[j] = s.add(off[j], apart);
                            squares[j] = s.mul_add(apart, apart, squares[j]);
                        }
                    }
                    for x in whole..width {
                        let apart = s.sub(s.load(row.add(x * LANES)), mean);
                        off[0] = s.add(off[0], apart);
                        squares[0] = s.mul_add(apart, apart, squares[0]);
                    }
                }
            }
            // SAFETY: three rows for each piece, which no other thread has.
            unsafe {
                let to = self.partials.add(piece * 3 * LANES);
                s.store(to, mean);
                s.store(to.add(LANES), total(s, off));
                s.store(to.add(2 * LANES), total(s, squares));
            }
        }
    }
}

/// y = max(scale·x + shift + residual, floor).
pub(super) struct Normalise<'a> {
    pub cut: Cut,
    pub first: usize,
    pub coefficients: *const f32,
    pub x: FeatureMap<'a>,
    pub residual: Option<FeatureMap<'a>>,
    pub relu: bool,
    pub y: FeatureMap<'a>,
    pub from: usize,
    pub to: usize,
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let floor = Stage { residual: None, relu: self.relu }.floor(s);
        let len = self.cut.shape.width * LANES;
        for piece in self.from..self.to {
            let (block, image, first, rows) = self.cut.at(piece);
            let block = self.first + block;
            // SAFETY: the coefficients of all blocks.
            let (scale, shift) = unsafe {
                (
                    coefficient(s, self.coefficients, block, row::SCALE),
                    coefficient(s, self.coefficients, block, row::SHIFT),
                )
            };
            for y in first..first + rows {
                let y = y as isize;
                let (from, to) =
                    (self.x.place(image, block, y, 0), self.y.place(image, block, y, 0));
                let residual = self.residual.map(|map| map.place(image, block, y, 0));
                for i in (0..len).step_by(LANES) {
                    // SAFETY: a row has W places of 16 in each of the maps; no other thread has this
                    // row of the result.
                    unsafe {
                        let mut value = s.mul_add(s.load(from.add(i)), scale, shift);
                        if let Some(residual) = residual {
                            value = s.add(value, s.load(residual.add(i)));
                        }
                        s.store(to.add(i), s.max(floor, value));
                    }
                }
            }
        }
    }
}

/// For each piece Σ g and Σ g·(x − μ); the residual's gradient is written on the way.
pub(super) struct GradientSums<'a, G> {
    pub cut: Cut,
    pub first: usize,
    pub backward: Backward<'a>,
    pub gate: G,
    pub coefficients: *const f32,
    pub partials: *mut f32,
    pub from: usize,
    pub to: usize,
}

impl<G: Gate> Kernel for GradientSums<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.cut.shape.width;
        let Backward { x, dy, residual, .. } = self.backward;
        for piece in self.from..self.to {
            let (block, image, first, rows) = self.cut.at(piece);
            let block = self.first + block;
            // SAFETY: the coefficients of all blocks.
            let [mean, scale, shift] = unsafe {
                [row::MEAN, row::SCALE, row::SHIFT]
                    .map(|row| coefficient(s, self.coefficients, block, row))
            };
            let (mut alone, mut with_x) = ([s.zero(); TOGETHER], [s.zero(); TOGETHER]);
            for y in first..first + rows {
                let gate = self.gate.place(image, block, y);
                let y = y as isize;
                let (x, dy) = (x.place(image, block, y, 0), dy.place(image, block, y, 0));
                let to = residual.map(|(into, map)| (into, map.place(image, block, y, 0)));
                let mut i = 0;
                while i < width {
                    let together = if i + TOGETHER <= width { TOGETHER } else { 1 };
                    for j in 0..TOGETHER {
                        if j == together {
                            break;
                        }
                        let offset = (i + j) * LANES;
                        // SAFETY: place i + j < W of the row in each of the maps; no other thread
                        // has this row of the residual's gradient.
                        unsafe {
                            let value = s.load(x.add(offset));
                            s.prefetch(dy.wrapping_add(offset + AHEAD));
                            let dy = s.load(dy.add(offset));
                            let g = self.gate.pass(s, dy, value, [scale, shift], gate, offset);
                            if let Some((into, to)) = to {
                                into.put(s, to.add(offset), g);
                            }
                            alone[j] = s.add(alone[j], g);
                            with_x[j] = s.mul_add(g, s.sub(value, mean), with_x[j]);
                        }
                    }
                    i += together;
                }
            }
            // SAFETY: three rows for each piece, which no other thread has.
            unsafe {
                let to = self.partials.add(piece * 3 * LANES);
                s.store(to, total(s, alone));
                s.store(to.add(LANES), total(s, with_x));
            }
        }
    }
}

/// dx (+)= scale·g + slope·(x − μ) + offset, or the first term alone.
pub(super) struct Gradients<'a, G> {
    pub cut: Cut,
    pub first: usize,
    pub backward: Backward<'a>,
    pub gate: G,
    pub fixed: bool,
    pub coefficients: *const f32,
    pub from: usize,
    pub to: usize,
}

impl<G: Gate> Kernel for Gradients<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.cut.shape.width * LANES;
        let Backward { x, dy, into, dx, .. } = self.backward;
        for piece in self.from..self.to {
            let (block, image, first, rows) = self.cut.at(piece);
            let block = self.first + block;
            // SAFETY: the coefficients of all blocks.
            let [mean, scale, shift, slope, offset] = unsafe {
                [row::MEAN, row::SCALE, row::SHIFT, row::SLOPE, row::OFFSET]
                    .map(|row| coefficient(s, self.coefficients, block, row))
            };
            for y in first..first + rows {
                let gate = self.gate.place(image, block, y);
                let y = y as isize;
                let (x, dy) = (x.place(image, block, y, 0), dy.place(image, block, y, 0));
                let dx = dx.place(image, block, y, 0);
                for i in (0..len).step_by(LANES) {
                    // SAFETY: a row has W places of 16 in each of the maps; no other thread has this
                    // row of the result.
                    unsafe {
                        let value = s.load(x.add(i));
                        s.prefetch(dy.wrapping_add(i + AHEAD));
                        let g = s.load(dy.add(i));
                        let g = self.gate.pass(s, g, value, [scale, shift], gate, i);
                        let value = if self.fixed {
                            s.mul(scale, g)
                        } else {
                            let own = s.mul_add(slope, s.sub(value, mean), offset);
                            s.mul_add(scale, g, own)
                        };
                        into.put(s, dx.add(i), value);
                    }
                }
            }
        }
    }
}
