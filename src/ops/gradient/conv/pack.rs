//! Weights `[O, C, K, K]` laid out for a kernel, either way round, fast enough to be done at every
//! step: turned 16 × 16 at a time, and for Winograd transformed in f32. (Inference packs once, in
//! f64.)

use crate::ops::conv::Geometry;
use crate::ops::feature_map::Shared;
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;
use crate::ops::winograd::{KernelPoints, SKEW};

/// Taps that are turned at once.
const TAPS: usize = 16;

/// The weights of a convolution, seen from the kernel that is to run: its outputs are O, or C where
/// it is the input's gradient that comes out.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    weights: &'a [f32],
    outputs: usize,
    inputs: usize,
    /// Numbers from output to output and from input to input.
    output_step: usize,
    input_step: usize,
    /// K·K.
    taps: usize,
    /// The last tap comes first.
    flipped: bool,
}

impl<'a> Source<'a> {
    pub fn forward(geometry: Geometry, weights: &'a [f32]) -> Self {
        let Geometry { c_in, c_out, kernel, .. } = geometry;
        assert_eq!(weights.len(), geometry.weights(), "{geometry:?}");
        let taps = kernel * kernel;
        Self {
            weights,
            outputs: c_out,
            inputs: c_in,
            output_step: c_in * taps,
            input_step: taps,
            taps,
            flipped: false,
        }
    }

    /// From dy to dx.
    pub fn backward(geometry: Geometry, weights: &'a [f32], flipped: bool) -> Self {
        let forward = Self::forward(geometry, weights);
        Self {
            outputs: forward.inputs,
            inputs: forward.outputs,
            output_step: forward.input_step,
            input_step: forward.output_step,
            flipped,
            ..forward
        }
    }

    fn blocks(&self) -> (usize, usize) {
        (self.inputs.div_ceil(LANES), self.outputs.div_ceil(LANES))
    }

    /// As [`crate::ops::direct_conv`] reads them.
    ///
    /// # Safety
    /// `to` can take them, in whole blocks of 16 × 16, and nobody else reads or writes there.
    pub unsafe fn pack_direct(&self, isa: Isa, team: &Team, panel: usize, to: *mut f32) {
        let (inputs, outputs) = self.blocks();
        let to = Shared(to);
        team.chunks(inputs * outputs, chunk(inputs * outputs, team), |_, from, last| {
            isa.run(Direct { source: self, panel, to: to.get(), pieces: (from, last) });
        });
    }

    /// As [`crate::ops::winograd`] reads them: `packed_len` numbers.
    ///
    /// # Safety
    /// `to` can take them, and nobody else reads or writes there.
    pub unsafe fn pack_winograd(&self, isa: Isa, team: &Team, to: *mut f32) {
        assert_eq!(self.taps, 9, "a 3×3 kernel");
        let (inputs, outputs) = self.blocks();
        let to = Shared(to);
        team.chunks(inputs * outputs, chunk(inputs * outputs, team), |_, from, last| {
            isa.run(Transform { source: self, to: to.get(), pieces: (from, last) });
        });
    }

    /// Taps `from`.. of the 16 outputs from `output` on and of input `input`; zero past the ends.
    #[inline(always)]
    fn turn<const N: usize>(
        &self,
        (output, input): (usize, usize),
        from: usize,
        count: usize,
    ) -> [[f32; LANES]; N] {
        let mut turned = [[0.0; LANES]; N];
        if input < self.inputs {
            for lane in 0..LANES.min(self.outputs - output) {
                let at = (output + lane) * self.output_step + input * self.input_step + from;
                for (tap, weight) in self.weights[at..at + count].iter().enumerate() {
                    turned[tap][lane] = *weight;
                }
            }
        }
        turned
    }
}

fn chunk(pieces: usize, team: &Team) -> usize {
    if team.threads() == 1 { pieces } else { pieces.div_ceil(8 * team.threads()) }
}

/// First block, blocks of the panel, and the block within it, for block `block` of `blocks`.
#[inline(always)]
fn panel_of(block: usize, blocks: usize, panel: usize) -> (usize, usize, usize) {
    let within = block % panel;
    (block - within, panel.min(blocks - (block - within)), within)
}

struct Direct<'a> {
    source: &'a Source<'a>,
    panel: usize,
    to: *mut f32,
    /// A block of inputs of a block of outputs.
    pieces: (usize, usize),
}

impl Kernel for Direct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let source = self.source;
        let ((inputs, outputs), taps) = (source.blocks(), source.taps);
        for piece in self.pieces.0..self.pieces.1 {
            let (block, input) = (piece / inputs, piece % inputs);
            let (first, blocks, within) = panel_of(block, outputs, self.panel);
            let width = blocks * LANES;
            let start = first * inputs * taps * LANES * LANES + within * LANES;
            for lane in 0..LANES {
                for from in (0..taps).step_by(TAPS) {
                    let count = TAPS.min(taps - from);
                    let at = (block * LANES, input * LANES + lane);
                    let turned: [[f32; LANES]; TAPS] = source.turn(at, from, count);
                    for (i, values) in turned.into_iter().enumerate().take(count) {
                        let tap = if source.flipped { taps - 1 - (from + i) } else { from + i };
                        let row = (input * taps + tap) * LANES + lane;
                        // SAFETY: a row of the panel, which is this piece's.
                        unsafe {
                            s.store(self.to.add(start + row * width), s.load_array(values));
                        }
                    }
                }
            }
        }
    }
}

struct Transform<'a> {
    source: &'a Source<'a>,
    to: *mut f32, // [36][panels][C][16 · blocks of the panel]
    pieces: (usize, usize),
}

impl Kernel for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let points = KernelPoints::new(s);
        let source = self.source;
        let (inputs, outputs) = source.blocks();
        let (c, o) = (inputs * LANES, outputs * LANES);
        for piece in self.pieces.0..self.pieces.1 {
            let (block, input) = (piece / inputs, piece % inputs);
            let (first, blocks, within) = panel_of(block, outputs, S::PANEL);
            for i in input * LANES..(input + 1) * LANES {
                let turned: [[f32; LANES]; 9] = source.turn((block * LANES, i), 0, 9);
                let mut half = [[s.zero(); 3]; 6];
                for j in 0..3 {
                    let mut column = [s.zero(); 3];
                    for (l, value) in column.iter_mut().enumerate() {
                        let tap = l * 3 + j;
                        *value = s.load_array(turned[if source.flipped { 8 - tap } else { tap }]);
                    }
                    let column = points.kernel(s, column);
                    for l in 0..6 {
                        half[l][j] = column[l];
                    }
                }
                let start = first * LANES * c + i * blocks * LANES + within * LANES;
                for (l, row) in half.into_iter().enumerate() {
                    for (j, value) in points.kernel(s, row).into_iter().enumerate() {
                        // SAFETY: a row of matrix 6l + j, which is this piece's.
                        unsafe {
                            s.store(self.to.add((l * 6 + j) * (o * c + SKEW) + start), value)
                        };
                    }
                }
            }
        }
    }
}
