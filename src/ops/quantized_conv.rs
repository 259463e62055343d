//! Convolution of bytes: activations behind a ReLU as x = s_x · q, q in 0..=255 and one s_x a map;
//! weights as w = s_o · v, v in −127..=127 and one s_o an output channel; their products summed in
//! integers.
//!
//! ```text
//! u = (Σ q·v) · s_x·s_o/s_y + b_o/s_y [+ residual/s_y], relu; bytes: round(u); floats: u · s_y
//! ```
//!
//! All paths give the same numbers to the bit: sums are exact, and what follows is done by the same
//! operations in the same order, each rounded on its own. Zero is the byte zero, so a map's border is
//! what convolutions pad with.
//!
//! Letters: B pictures, C channels in, O channels out, K kernel width, H × W places.
//!
//! Weights lie as `[panel][K][K][⌈C/4⌉][blocks of the panel][16 outputs][4 channels]`: a panel is
//! the blocks whose sums the registers hold at once, for some places of a row, and is read in
//! order. A piece of work is some rows of one panel, which stays in the thread's cache.

mod kernel;

use super::byte_simd::{ByteIsa, ByteKernel, ByteSimd};
use super::conv::Geometry;
use super::feature_map::{Buffer, ByteMap, FeatureMap, Memory, Shared};
use super::simd::LANES;
use super::team::Team;
use kernel::{Job, Rows};

/// Bytes of the weights of a block of outputs for four channels.
const QUAD: usize = LANES * 4;

/// Rows in a piece of work: enough for a thread to profit from the panel that it has in its cache.
const ROWS: usize = 8;

/// Groups of four channels.
fn quads(geometry: &Geometry) -> usize {
    geometry.c_in.div_ceil(4)
}

/// What stands for one step of a byte, and what follows the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// Of the map that comes in.
    pub input: f32,
    /// Of the bytes that come out; 1 where only floats do.
    pub output: f32,
    pub relu: bool,
}

/// What is added before the ReLU.
#[derive(Clone, Copy)]
pub enum Residual<'a> {
    Bytes {
        map: ByteMap<'a>,
        scale: f32,
    },
    /// May be negative. NaN comes out as NaN in floats, and as 255 in bytes.
    Floats(FeatureMap<'a>),
}

/// Where the result goes.
#[derive(Clone, Copy)]
pub enum Output<'a> {
    /// What is below zero is 0, what is above 255 steps is 255.
    Bytes(ByteMap<'a>),
    Floats(FeatureMap<'a>),
    Both(ByteMap<'a>, FeatureMap<'a>),
}

/// A convolution packed for one set of instructions.
pub struct QuantizedConv {
    isa: ByteIsa,
    geometry: Geometry,
    scales: Scales,
    weights: Memory<i8>,
    /// s_x · s_o / s_y, then b_o / s_y: `[2][⌈O/16⌉·16]`.
    affine: Buffer,
}

impl QuantizedConv {
    /// Quantises and packs `weights` `[O, C, K, K]` and `bias` `[O]`.
    ///
    /// # Panics
    /// If the slices are not of those lengths or hold what is not finite, a scale is not above zero,
    /// or sums could leave 32 bits (C·K² above 66,311).
    pub fn new(
        isa: ByteIsa,
        geometry: Geometry,
        scales: Scales,
        (weights, bias): (&[f32], &[f32]),
    ) -> Self {
        let Geometry { c_in, c_out, kernel, stride, dilation, .. } = geometry;
        assert!(
            [c_in, c_out, kernel, stride, dilation].iter().all(|&n| n > 0),
            "{geometry:?}: only the padding may be zero"
        );
        let fan_in = c_in * kernel * kernel;
        assert_eq!((weights.len(), bias.len()), (c_out * fan_in, c_out), "{geometry:?}");
        assert!(fan_in <= i32::MAX as usize / (255 * 127), "{geometry:?}: sums need 32 bits");
        assert!(weights.iter().chain(bias).all(|w| w.is_finite()), "a weight is not finite");
        assert!(positive(scales.input) && positive(scales.output), "{scales:?}");

        let blocks = c_out.div_ceil(LANES);
        let mut packed = Memory::zeroed(blocks * kernel * kernel * quads(&geometry) * QUAD);
        let mut affine = Buffer::zeroed(2 * blocks * LANES);
        let packed_bytes = packed.as_mut_slice();
        let panel_blocks = isa.run(PanelBlocks);
        for (o, weights) in weights.chunks_exact(fan_in).enumerate() {
            let (scale, quantized) = quantize_weights(weights);
            let factor = f64::from(scales.input) * scale / f64::from(scales.output);
            affine.as_mut_slice()[o] = factor as f32;
            affine.as_mut_slice()[blocks * LANES + o] =
                (f64::from(bias[o]) / f64::from(scales.output)) as f32;
            let first = o / LANES / panel_blocks * panel_blocks;
            let in_panel = panel_blocks.min(blocks - first);
            let panel = &mut packed_bytes[first * kernel * kernel * quads(&geometry) * QUAD..];
            for (i, &weight) in quantized.iter().enumerate() {
                let (c, tap) = (i / (kernel * kernel), i % (kernel * kernel));
                let step = (tap * quads(&geometry) + c / 4) * in_panel + o / LANES - first;
                panel[step * QUAD + o % LANES * 4 + c % 4] = weight;
            }
        }
        Self { isa, geometry, scales, weights: packed, affine }
    }

    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub fn scales(&self) -> Scales {
        self.scales
    }

    /// Of weights, factors and biases.
    pub fn bytes(&self) -> usize {
        self.weights.bytes() + self.affine.bytes()
    }

    /// `x` [B, C, H, W] → `y` [B, O, H', W'] as [`Geometry::output`] says, `residual` like `y`.
    ///
    /// # Panics
    /// If shapes do not fit, the residual's scale is not above zero, or what is written overlaps what is read.
    pub fn run(&self, team: &Team, x: ByteMap<'_>, residual: Option<Residual<'_>>, y: Output<'_>) {
        let shape = self.geometry.output(x.shape());
        assert_eq!(x.shape().channels, self.geometry.c_in, "channels that come in");
        let (bytes, floats) = match y {
            Output::Bytes(bytes) => (Some(bytes), None),
            Output::Floats(floats) => (None, Some(floats)),
            Output::Both(bytes, floats) => (Some(bytes), Some(floats)),
        };
        if let Some(bytes) = bytes {
            assert_eq!(bytes.shape(), shape, "what comes out for {:?}", x.shape());
            assert!(!bytes.overlaps(&x), "a convolution in place");
        }
        if let Some(floats) = floats {
            assert_eq!(floats.shape(), shape, "what comes out for {:?}", x.shape());
        }
        match residual {
            Some(Residual::Bytes { map, scale }) => {
                assert_eq!(map.shape(), shape, "residual");
                assert!(positive(scale), "a residual in steps of {scale}");
                assert!(bytes.is_none_or(|y| !y.overlaps(&map)), "a residual in place");
            }
            Some(Residual::Floats(map)) => {
                assert_eq!(map.shape(), shape, "residual");
                assert!(floats.is_none_or(|y| !y.overlaps(&map)), "a residual in place");
            }
            None => {}
        }
        let job = Job {
            geometry: self.geometry,
            scales: self.scales,
            x,
            shape,
            weights: self.weights.as_ptr(),
            affine: self.affine.as_ptr(),
            residual,
            bytes,
            floats,
        };
        let (isa, job) = (self.isa, Shared(job));
        let panels = shape.blocks().div_ceil(isa.run(PanelBlocks));
        team.chunks(shape.images * panels * shape.height, ROWS, |_, from, to| {
            isa.run(Rows { job: job.get(), from, to });
        });
    }
}

fn positive(scale: f32) -> bool {
    scale > 0.0 && scale.is_finite()
}

/// Symmetric: the step, and each weight in steps, the largest 127.
fn quantize_weights(weights: &[f32]) -> (f64, Vec<i8>) {
    let max = weights.iter().fold(0.0, |max: f32, w| max.max(w.abs()));
    let step = f64::from(max) / 127.0;
    let steps = |w: &f32| if step > 0.0 { f64::from(*w) / step } else { 0.0 };
    (step, weights.iter().map(|w| steps(w).round_ties_even() as i8).collect())
}

/// Asks a path for its [`ByteSimd::PANEL`].
struct PanelBlocks;

impl ByteKernel for PanelBlocks {
    type Output = usize;

    #[inline(always)]
    fn run<B: ByteSimd>(self, _: B) -> usize {
        B::PANEL
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::ops::feature_map::{ByteBuffer, Shape};

    /// The formulas of the module doc, one number after the other.
    struct Twin<'a> {
        geometry: Geometry,
        scales: Scales,
        weights: &'a [f32],
        bias: &'a [f32],
    }

    impl Twin<'_> {
        /// Bytes and floats that come out for `x`; `residual(b, o, y, x)` in steps of the output.
        fn run(
            &self,
            x: ByteMap<'_>,
            residual: &dyn Fn(usize, usize, usize, usize) -> Option<f32>,
        ) -> (Vec<u8>, Vec<f32>) {
            let Geometry { c_in, kernel, stride, padding, dilation, .. } = self.geometry;
            let (from, to) = (x.shape(), self.geometry.output(x.shape()));
            let fan_in = c_in * kernel * kernel;
            let inside = |i: usize, tap: usize, side: usize| {
                (i * stride + tap * dilation).checked_sub(padding).filter(|&i| i < side)
            };
            let (mut bytes, mut floats) = (Vec::new(), Vec::new());
            for i in 0..to.images * to.channels * to.places() {
                let (xo, yo) = (i % to.width, i / to.width % to.height);
                let (o, b) = (i / to.places() % to.channels, i / to.places() / to.channels);
                let (step, weights) = quantize_weights(&self.weights[o * fan_in..][..fan_in]);
                let mut sum = 0;
                for (i, &weight) in weights.iter().enumerate() {
                    let (c, ky, kx) = (i / kernel / kernel, i / kernel % kernel, i % kernel);
                    let place = (inside(yo, ky, from.height), inside(xo, kx, from.width));
                    if let (Some(y), Some(x_in)) = place {
                        sum += i64::from(x.get(b, c, y, x_in)) * i64::from(weight);
                    }
                }
                let output = f64::from(self.scales.output);
                let factor = (f64::from(self.scales.input) * step / output) as f32;
                let mut u = sum as f32 * factor + (f64::from(self.bias[o]) / output) as f32;
                if let Some(residual) = residual(b, o, yo, xo) {
                    u += residual;
                }
                // A cast to a byte saturates.
                bytes.push(if u.is_nan() { 255 } else { u.round_ties_even() as u8 });
                let relu = self.scales.relu && u < 0.0;
                floats.push(if relu { 0.0 } else { u * self.scales.output });
            }
            (bytes, floats)
        }
    }

    struct Case {
        images: usize,
        height: usize,
        width: usize,
        geometry: Geometry,
    }

    #[rustfmt::skip]
    fn cases() -> Vec<Case> {
        // B, C, H, W, O, K, stride, padding, dilation
        [
            [1, 16, 5, 7, 16, 3, 1, 1, 1],
            [2, 3, 9, 8, 20, 3, 2, 1, 1],
            [1, 37, 6, 13, 50, 1, 1, 0, 1],
            [1, 20, 7, 9, 33, 1, 2, 0, 1],
            [1, 8, 11, 10, 16, 7, 2, 3, 1],
            [1, 19, 9, 17, 18, 3, 1, 6, 6],
            [2, 5, 4, 1, 1, 5, 1, 2, 1],
            [1, 33, 3, 27, 48, 3, 1, 0, 1],
            [1, 4, 3, 3, 4, 2, 3, 2, 2],
        ]
        .map(|[images, c_in, height, width, c_out, kernel, stride, padding, dilation]| Case {
            images, height, width,
            geometry: Geometry { c_in, c_out, kernel, stride, padding, dilation },
        })
        .into()
    }

    fn random(len: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    /// Part of a wider map, behind its first block.
    fn window(buffer: &ByteBuffer, shape: Shape) -> ByteMap<'_> {
        buffer.window(shape, 1, shape.blocks() + 1)
    }

    /// For a [`window`].
    fn random_bytes(shape: Shape, rng: &mut ChaCha8Rng) -> ByteBuffer {
        let buffer = ByteBuffer::zeroed(shape.len() + (shape.images + 1) * shape.plane());
        let values: Vec<u8> =
            (0..shape.images * shape.channels * shape.places()).map(|_| rng.random()).collect();
        window(&buffer, shape).write(&values);
        buffer
    }

    #[test]
    fn every_path_equals_the_twin_to_the_bit() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let teams = [Team::alone(), Team::new(2, false).unwrap()];
        for (n, Case { images, height, width, geometry }) in cases().into_iter().enumerate() {
            let fan_in = geometry.c_in * geometry.kernel * geometry.kernel;
            let mut weights = random(geometry.c_out * fan_in, &mut rng);
            weights[..fan_in].fill(0.0);
            let bias = random(geometry.c_out, &mut rng);
            let relu = n % 2 == 0;
            let scales = Scales { input: 0.013, output: 0.021 * (fan_in as f32).sqrt(), relu };

            let from = Shape::new(images, geometry.c_in, height, width);
            let to = geometry.output(from);
            let xs = random_bytes(from, &mut rng);
            let byte_residual = random_bytes(to, &mut rng);
            let float_residual = Buffer::zeroed(to.len());
            let floats = random(images * geometry.c_out * to.places(), &mut rng);
            float_residual.map(to, 0).write(&floats);
            let (bytes, floats) = (window(&byte_residual, to), float_residual.map(to, 0));
            let scale = 0.5 * scales.output;

            let twin = Twin { geometry, scales, weights: &weights, bias: &bias };
            let x = window(&xs, from);
            let plain = twin.run(x, &|_, _, _, _| None);
            let with_bytes = twin.run(x, &|b, o, y, x| {
                Some(f32::from(bytes.get(b, o, y, x)) * (scale / scales.output))
            });
            let with_floats =
                twin.run(x, &|b, o, y, x| Some(floats.get(b, o, y, x) * (1.0 / scales.output)));
            for isa in ByteIsa::ALL.into_iter().filter(|isa| isa.is_here()) {
                let conv = QuantizedConv::new(isa, geometry, scales, (&weights, &bias));
                for (team, (residual, want)) in [
                    (None, &plain),
                    (Some(Residual::Bytes { map: bytes, scale }), &with_bytes),
                    (Some(Residual::Floats(floats)), &with_floats),
                ]
                .into_iter()
                .enumerate()
                .map(|(i, case)| (&teams[(i + n) % 2], case))
                {
                    let label = format!("{isa:?} {geometry:?}");
                    check(&conv, team, x, residual, (to, &want.0, &want.1), &label);
                }
            }
        }
    }

    /// Bytes alone, floats alone and both, border and spare channels included.
    fn check(
        conv: &QuantizedConv,
        team: &Team,
        x: ByteMap<'_>,
        residual: Option<Residual<'_>>,
        (shape, bytes, floats): (Shape, &[u8], &[f32]),
        label: &str,
    ) {
        let (mut want_bytes, mut want_floats) =
            (ByteBuffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
        want_bytes.map(shape, 0).write(bytes);
        want_floats.map(shape, 0).write(floats);
        let (mut got_bytes, mut got_floats) =
            (ByteBuffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
        for both in [true, false] {
            let (bytes, floats) = (got_bytes.map(shape, 0), got_floats.map(shape, 0));
            if both {
                conv.run(team, x, residual, Output::Both(bytes, floats));
            } else {
                conv.run(team, x, residual, Output::Bytes(bytes));
                conv.run(team, x, residual, Output::Floats(floats));
            }
            assert!(got_bytes.as_mut_slice() == want_bytes.as_mut_slice(), "{label}");
            assert!(got_floats.as_mut_slice() == want_floats.as_mut_slice(), "{label}");
            got_bytes.as_mut_slice().fill(0);
            got_floats.as_mut_slice().fill(0.0);
        }
    }

    #[test]
    fn the_result_is_near_the_convolution_of_floats() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let geometry =
            Geometry { c_in: 64, c_out: 16, kernel: 1, stride: 1, padding: 0, dilation: 1 };
        let (weights, bias) = (random(1024, &mut rng), random(16, &mut rng));
        let (from, to) = (Shape::new(1, 64, 4, 4), Shape::new(1, 16, 4, 4));
        let (xs, ys) = (random_bytes(from, &mut rng), Buffer::zeroed(to.len()));
        let scales = Scales { input: 1.0 / 255.0, output: 1.0, relu: false };
        let conv = QuantizedConv::new(ByteIsa::Portable, geometry, scales, (&weights, &bias));
        let (x, y) = (window(&xs, from), ys.map(to, 0));
        conv.run(&Team::alone(), x, None, Output::Floats(y));
        for (o, place) in (0..16).flat_map(|o| (0..16).map(move |place| (o, place))) {
            let terms = (0..64).map(|c| {
                weights[o * 64 + c] * f32::from(x.get(0, c, place / 4, place % 4)) / 255.0
            });
            let want = bias[o] + terms.sum::<f32>();
            // 64 weights below 1, each off by half a step of 1/127 at most, times x below 1: 0.25 at
            // worst, and a fifth of it is six standard deviations.
            assert!((y.get(0, o, place / 4, place % 4) - want).abs() < 0.05);
        }
    }

    #[test]
    fn nan_in_a_residual_comes_out() {
        let geometry =
            Geometry { c_in: 4, c_out: 4, kernel: 1, stride: 1, padding: 0, dilation: 1 };
        let scales = Scales { input: 1.0, output: 1.0, relu: true };
        let shape = Shape::new(1, 4, 1, 3);
        let (xs, bytes) = (ByteBuffer::zeroed(shape.len()), ByteBuffer::zeroed(shape.len()));
        let (residual, floats) = (Buffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
        residual.map(shape, 0).set(0, 2, 0, 1, f32::NAN);
        for isa in ByteIsa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let conv = QuantizedConv::new(isa, geometry, scales, (&[0.5; 16], &[0.0; 4]));
            let (bytes, floats) = (bytes.map(shape, 0), floats.map(shape, 0));
            let residual = Some(Residual::Floats(residual.map(shape, 0)));
            conv.run(&Team::alone(), xs.map(shape, 0), residual, Output::Both(bytes, floats));
            for (i, (byte, float)) in bytes.read().into_iter().zip(floats.read()).enumerate() {
                assert_eq!((byte == 255, float.is_nan()), (i == 7, i == 7), "{isa:?} {i}");
            }
        }
    }

    #[test]
    fn weights_are_scaled_channel_by_channel() {
        assert_eq!(quantize_weights(&[-254.0, 127.0, 3.0, 0.9]), (2.0, vec![-127, 64, 2, 0]));
        assert_eq!(quantize_weights(&[0.0; 3]), (0.0, vec![0; 3]));
    }

    #[test]
    #[should_panic(expected = "a convolution in place")]
    fn in_place_is_refused() {
        let geometry =
            Geometry { c_in: 4, c_out: 4, kernel: 1, stride: 1, padding: 0, dilation: 1 };
        let scales = Scales { input: 1.0, output: 1.0, relu: true };
        let conv = QuantizedConv::new(ByteIsa::Portable, geometry, scales, (&[0.5; 16], &[0.0; 4]));
        let shape = Shape::new(1, 4, 2, 2);
        let buffer = ByteBuffer::zeroed(shape.len());
        conv.run(&Team::alone(), buffer.map(shape, 0), None, Output::Bytes(buffer.map(shape, 0)));
    }
}
