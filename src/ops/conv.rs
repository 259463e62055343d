//! Convolutions on feature maps: what they share, and which kernel does which.
//!
//! A convolution with its batch norm folded in ends in one output stage: bias, then the sum with a
//! residual, then ReLU. Letters: C channels in, O channels out, K kernel width.

use super::direct_conv::DirectConv;
use super::feature_map::{Buffer, FeatureMap, Frozen, Shape};
use super::simd::{Isa, LANES, Simd};
use super::team::Team;
use super::winograd::Winograd;

/// A convolution apart from its weights. Square kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub c_in: usize,
    pub c_out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub dilation: usize,
}

impl Geometry {
    /// What comes of an input of this shape.
    ///
    /// # Panics
    /// If it has other channels, or is smaller than the kernel even with its padding.
    pub fn output(&self, input: Shape) -> Shape {
        assert_eq!(input.channels, self.c_in, "{self:?}");
        let reach = self.dilation * (self.kernel - 1) + 1;
        let side = |side: usize| {
            let padded = side + 2 * self.padding;
            assert!(padded >= reach, "{side} places for {self:?}");
            (padded - reach) / self.stride + 1
        };
        Shape::new(input.images, self.c_out, side(input.height), side(input.width))
    }

    /// Numbers of the weights [O, C, K, K].
    pub fn weights(&self) -> usize {
        self.c_out * self.c_in * self.kernel * self.kernel
    }

    /// Multiplications and additions for one picture of this output, none saved.
    pub fn flops(&self, output: Shape) -> f64 {
        2.0 * (output.places() * self.weights()) as f64
    }
}

/// What follows the sums.
#[derive(Clone, Copy, Default)]
pub struct Stage<'a> {
    /// Added after the bias; of the output's shape.
    pub residual: Option<FeatureMap<'a>>,
    pub relu: bool,
}

impl Stage<'_> {
    /// The smallest value that leaves the stage. NaN stays NaN: see [`Simd::max`].
    #[inline(always)]
    pub(super) fn floor<S: Simd>(&self, s: S) -> S::F {
        s.splat(if self.relu { 0.0 } else { f32::NEG_INFINITY })
    }
}

/// A convolution, its weights packed for the kernel that suits it.
pub enum Conv {
    Winograd(Winograd),
    Direct(DirectConv),
}

/// Floating-point operations that one core does in the time in which it reads a byte of weights from
/// outside its caches, about: 250 GFLOP/s beside 25 GB/s.
const FLOPS_A_BYTE: f64 = 10.0;

/// Of the multiplications that Winograd saves (to a quarter), its transforms give back about a third.
const TRANSFORMS: f64 = 1.35;

impl Conv {
    /// `weights` `[O, C, K, K]` and `bias` `[O]` for inputs of `input`'s shape.
    ///
    /// Winograd's F(4×4, 3×3) does a quarter of the multiplications and reads four times the weights
    /// (36 numbers for 9). Both are turned into time by `FLOPS_A_BYTE`, and the smaller sum wins:
    /// with 512 channels at 8 × 8 a picture has 4 tiles, for which 38 MB of weights would be read,
    /// and the direct kernel is chosen; with a batch of 8 it is Winograd again.
    pub fn new(
        isa: Isa,
        geometry: Geometry,
        weights: &[f32],
        bias: &[f32],
        input: Shape,
        threads: usize,
    ) -> Self {
        if Self::winograd_pays(geometry, input) {
            Self::Winograd(Winograd::new(isa, geometry, weights, bias, input, threads))
        } else {
            Self::Direct(DirectConv::new(isa, geometry, weights, bias, input))
        }
    }

    pub(super) fn winograd_pays(geometry: Geometry, input: Shape) -> bool {
        let Geometry { kernel, stride, padding, dilation, .. } = geometry;
        if kernel != 3 || stride != 1 || padding != dilation {
            return false;
        }
        let direct = geometry.flops(geometry.output(input)) * input.images as f64;
        let tiles = Winograd::tiles(input, dilation) * input.images;
        let padded = direct * (tiles * 16) as f64 / (input.places() * input.images) as f64;
        let bytes = geometry.weights() as f64 * 4.0;
        padded / 4.0 * TRANSFORMS + bytes * 4.0 * FLOPS_A_BYTE < direct + bytes * FLOPS_A_BYTE
    }

    /// Numbers of scratch memory that a run needs.
    pub fn scratch_len(&self) -> usize {
        match self {
            Self::Winograd(conv) => conv.scratch_len(),
            Self::Direct(_) => 0,
        }
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Winograd(conv) => conv.bytes(),
            Self::Direct(conv) => conv.bytes(),
        }
    }

    /// The kernel's name.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Winograd(_) => "winograd",
            Self::Direct(_) => "direct",
        }
    }

    /// y = stage(conv(x)).
    ///
    /// # Panics
    /// If a shape is not what it was made for, `y` overlaps `x`, or `scratch` is too small. `y` may be
    /// the residual.
    pub fn run(
        &self,
        team: &Team,
        x: FeatureMap<'_>,
        y: FeatureMap<'_>,
        stage: Stage<'_>,
        scratch: &Buffer,
    ) {
        match self {
            Self::Winograd(conv) => conv.run(team, x, y, stage, scratch),
            Self::Direct(conv) => conv.run(team, x, y, stage),
        }
    }
}

/// The checks that every kernel makes at its entrance.
pub(super) fn check(
    geometry: &Geometry,
    input: Shape,
    x: FeatureMap<'_>,
    y: FeatureMap<'_>,
    stage: Stage<'_>,
) {
    assert_eq!(x.shape(), input, "the input of {geometry:?}");
    assert_eq!(y.shape(), geometry.output(input), "the output of {geometry:?}");
    assert!(!x.overlaps(&y), "a convolution reads what it overwrites");
    if let Some(residual) = stage.residual {
        assert_eq!(residual.shape(), y.shape(), "the residual of {geometry:?}");
        assert!(y.is_or_is_apart_from(&residual), "the output shares a part with the residual");
    }
}

/// `bias` `[O]` in whole blocks, zeros behind.
pub(super) fn pack_bias(bias: &[f32], c_out: usize) -> Frozen {
    assert_eq!(bias.len(), c_out, "a bias for each channel");
    let mut packed = Buffer::zeroed(c_out.div_ceil(LANES) * LANES);
    packed.as_mut_slice()[..c_out].copy_from_slice(bias);
    packed.into()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Values between −1 and 1, the same for the same seed.
    pub fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2654435761).wrapping_add(12345);
        let mut next = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / 8388608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// The definition, f64: `x` [B, C, H, W] → [B, O, H', W'].
    pub fn plain(geometry: Geometry, input: Shape, x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f64> {
        let out = geometry.output(input);
        let Geometry { c_in, kernel, stride, padding, dilation, .. } = geometry;
        let mut y = Vec::new();
        for b in 0..out.images {
            for o in 0..out.channels {
                for (oy, ox) in (0..out.height).flat_map(|y| (0..out.width).map(move |x| (y, x))) {
                    let mut sum = f64::from(bias[o]);
                    for c in 0..c_in {
                        for (ky, kx) in (0..kernel).flat_map(|y| (0..kernel).map(move |x| (y, x))) {
                            let iy = (oy * stride + ky * dilation).wrapping_sub(padding);
                            let ix = (ox * stride + kx * dilation).wrapping_sub(padding);
                            if iy < input.height && ix < input.width {
                                let at = ((b * c_in + c) * input.height + iy) * input.width + ix;
                                let tap = ((o * c_in + c) * kernel + ky) * kernel + kx;
                                sum += f64::from(x[at]) * f64::from(w[tap]);
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
        y
    }

    /// Holds a kernel against the definition, with and without residual and ReLU, as a part of a
    /// wider output, on one thread and two, on every path.
    pub fn check_kernel(
        geometry: Geometry,
        input: Shape,
        make: impl Fn(Isa, &[f32], &[f32], usize) -> Conv,
    ) {
        let x = numbers(input.images * input.channels * input.places(), 1);
        let w = numbers(geometry.weights(), 2);
        let bias = numbers(geometry.c_out, 3);
        let want = plain(geometry, input, &x, &w, &bias);
        let out = geometry.output(input);
        let residual = numbers(want.len(), 4);
        // Two wider blocks beside the output: nothing of them may change.
        let stride = out.blocks() + 2;
        let terms = (geometry.c_in * geometry.kernel * geometry.kernel) as f64;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            for (threads, relu, add) in [(1, false, false), (2, true, true), (2, false, true)] {
                let team = Team::new(threads, false).unwrap();
                let conv = make(isa, &w, &bias, threads);
                let from = Buffer::zeroed(input.len());
                from.map(input, 0).write(&x);
                let mut to = Buffer::zeroed(input.images * stride * out.plane());
                let rest = Buffer::zeroed(out.len());
                rest.map(out, 0).write(&residual);
                let stage = Stage { residual: add.then(|| rest.map(out, 0)), relu };
                let scratch = Buffer::zeroed(conv.scratch_len());
                let y = to.window(out, 1, stride);
                conv.run(&team, from.map(input, 0), y, stage, &scratch);
                for (i, (got, want)) in y.read().iter().zip(&want).enumerate() {
                    let mut want = *want;
                    if add {
                        want += f64::from(residual[i]);
                    }
                    if relu {
                        want = want.max(0.0);
                    }
                    // Sums of `terms` products of size below 1 in f32, and Winograd's transforms,
                    // which lose a bit or two.
                    let bound = 2e-6 * (4.0 + terms.sqrt() * 2.0);
                    let off = (f64::from(*got) - want).abs();
                    let isa = isa.word();
                    assert!(off < bound, "{geometry:?} {isa} {threads} at {i}: {got} {want}");
                }
                let inside: usize = out.images * out.blocks() * LANES * out.places();
                let written = to.as_mut_slice().iter().filter(|x| **x != 0.0).count();
                assert!(written <= inside, "the border or a neighbour was written");
                for image in 0..input.images {
                    let after = to.window(out, 0, stride).plane(image, 0);
                    // SAFETY: the plane before the window lies in the buffer.
                    let before = unsafe { std::slice::from_raw_parts(after, out.plane()) };
                    assert!(before.iter().all(|x| *x == 0.0), "a neighbouring block was written");
                }
            }
        }
    }

    #[test]
    fn many_channels_on_few_places_are_not_for_winograd() {
        let conv3 = |c: usize| Geometry {
            c_in: c,
            c_out: c,
            kernel: 3,
            stride: 1,
            padding: 1,
            dilation: 1,
        };
        assert!(!Conv::winograd_pays(conv3(512), Shape::new(1, 512, 8, 8)));
        assert!(Conv::winograd_pays(conv3(512), Shape::new(8, 512, 8, 8)));
        assert!(Conv::winograd_pays(conv3(256), Shape::new(1, 256, 16, 16)));
        assert!(Conv::winograd_pays(conv3(64), Shape::new(1, 64, 64, 64)));
        let strided = Geometry { stride: 2, ..conv3(64) };
        assert!(!Conv::winograd_pays(strided, Shape::new(1, 64, 64, 64)));
    }
}
