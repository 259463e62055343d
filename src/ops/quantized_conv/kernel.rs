//! The inside of a convolution of bytes: tiles of P blocks of outputs × R places of a row.
//!
//! Each place of the kernel reads its channels through pointers of its own, one an output place; a
//! pointer that would leave the map rests on its border, which is zero. So any padding, stride and
//! dilation costs the same.

#![expect(
    clippy::needless_range_loop,
    reason = "p and r name a register in several arrays at once"
)]

use super::{Geometry, QUAD, Residual, Scales, quads};
use crate::ops::byte_simd::{ByteKernel, ByteSimd};
use crate::ops::feature_map::{ByteMap, FeatureMap, Shape};
use crate::ops::simd::{LANES, Simd};

/// A convolution of checked maps.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub geometry: Geometry,
    pub scales: Scales,
    pub x: ByteMap<'a>,
    /// Of what comes out.
    pub shape: Shape,
    pub weights: *const i8,
    pub affine: *const f32,
    pub residual: Option<Residual<'a>>,
    pub bytes: Option<ByteMap<'a>>,
    pub floats: Option<FeatureMap<'a>>,
}

/// Rows `from`..`to` of `[B][panels][H']`.
pub(super) struct Rows<'a> {
    pub job: Job<'a>,
    pub from: usize,
    pub to: usize,
}

/// The first place of a tile, and its weights.
#[derive(Clone, Copy)]
struct At {
    image: usize,
    block: usize,
    y: usize,
    x: usize,
    weights: *const i8,
}

impl ByteKernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<B: ByteSimd>(self, b: B) {
        let job = &self.job;
        let Geometry { kernel, .. } = job.geometry;
        let (blocks, height) = (job.shape.blocks(), job.shape.height);
        let panels = blocks.div_ceil(B::PANEL);
        for row in self.from..self.to {
            let (image, panel, y) = (row / height / panels, row / height % panels, row % height);
            let block = panel * B::PANEL;
            let skipped = block * kernel * kernel * quads(&job.geometry) * QUAD;
            // SAFETY: the panels before this one are that long.
            let weights = unsafe { job.weights.add(skipped) };
            let at = At { image, block, y, x: 0, weights };
            match B::PANEL.min(blocks - block) {
                1 => line::<B, 1>(b, job, at),
                2 => line::<B, 2>(b, job, at),
                _ => unreachable!("panels have up to 2 blocks"),
            }
        }
    }
}

/// One row of P blocks, in tiles as equal as they can be.
#[inline(always)]
fn line<B: ByteSimd, const P: usize>(b: B, job: &Job<'_>, mut at: At) {
    while at.x < job.shape.width {
        let left = job.shape.width - at.x;
        let places = left.div_ceil(left.div_ceil(B::PLACES));
        match places {
            1 => tile::<B, P, 1>(b, job, at),
            2 => tile::<B, P, 2>(b, job, at),
            3 => tile::<B, P, 3>(b, job, at),
            4 => tile::<B, P, 4>(b, job, at),
            5 => tile::<B, P, 5>(b, job, at),
            6 => tile::<B, P, 6>(b, job, at),
            7 => tile::<B, P, 7>(b, job, at),
            8 => tile::<B, P, 8>(b, job, at),
            _ => unreachable!("tiles have up to 8 places"),
        }
        at.x += places;
    }
}

/// P blocks of outputs at R places of a row.
#[inline(always)]
fn tile<B: ByteSimd, const P: usize, const R: usize>(b: B, job: &Job<'_>, at: At) {
    if P > B::PANEL || R > B::PLACES {
        unreachable!("the caller keeps to its tile");
    }
    let sums = sums::<B, P, R>(b, job, at);
    finish::<B, P, R>(b, job, at, sums);
}

#[inline(always)]
fn sums<B: ByteSimd, const P: usize, const R: usize>(
    b: B,
    job: &Job<'_>,
    at: At,
) -> [[B::Sums; R]; P] {
    let Geometry { kernel, stride, padding, dilation, .. } = job.geometry;
    let (input, quads) = (job.x.shape(), quads(&job.geometry));
    let (plane, last) = (job.x.plane_len(), input.width as isize);
    let mut sums = [[b.zero(); R]; P];
    let mut weights = at.weights;
    for ky in 0..kernel {
        let y = (at.y * stride + ky * dilation) as isize - padding as isize;
        if y < 0 || y >= input.height as isize {
            // SAFETY: the weights of a row of the kernel are that long.
            weights = unsafe { weights.add(kernel * quads * P * QUAD) };
            continue;
        }
        let row = job.x.place(at.image, 0, y, -1);
        for kx in 0..kernel {
            let x = (at.x * stride + kx * dilation) as isize - padding as isize;
            let mut from = [row.cast_const(); R];
            // SAFETY: places of this row, the border to both sides included.
            unsafe {
                if x >= -1 && x + ((R - 1) * stride) as isize <= last {
                    let first = row.add((x + 1) as usize * LANES);
                    for r in 0..R {
                        from[r] = first.add(r * stride * LANES);
                    }
                } else {
                    for r in 0..R {
                        let x = (x + (r * stride) as isize).clamp(-1, last);
                        from[r] = row.add((x + 1) as usize * LANES);
                    }
                }
            }
            // SAFETY: the channels of a place lie 16 a plane, and there are ⌈C/4⌉ quads of them; the
            // packed weights hold as many for each tap of the panel.
            unsafe {
                for block in 0..quads / 4 {
                    for quad in 0..4 {
                        let offset = block * plane + quad * 4;
                        add_products(b, &mut sums, &from, offset, weights.add(quad * P * QUAD));
                    }
                    weights = weights.add(4 * P * QUAD);
                }
                for quad in 0..quads % 4 {
                    add_products(b, &mut sums, &from, quads / 4 * plane + quad * 4, weights);
                    weights = weights.add(P * QUAD);
                }
            }
        }
    }
    sums
}

/// Adds four channels, which lie `offset` behind each of R places, times their weights.
///
/// # Safety
/// 4 readable bytes there, and P · 64 at `weights`.
#[inline(always)]
unsafe fn add_products<B: ByteSimd, const P: usize, const R: usize>(
    b: B,
    sums: &mut [[B::Sums; R]; P],
    from: &[*const u8; R],
    offset: usize,
    weights: *const i8,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut now = [b.weights(weights); P];
        for p in 1..P {
            now[p] = b.weights(weights.add(p * QUAD));
        }
        for r in 0..R {
            let quad = b.quad(from[r].add(offset));
            for p in 0..P {
                sums[p][r] = b.dot(sums[p][r], quad, now[p]);
            }
        }
    }
}

/// From sums to what is stored.
#[inline(always)]
fn finish<B: ByteSimd, const P: usize, const R: usize>(
    b: B,
    job: &Job<'_>,
    at: At,
    sums: [[B::Sums; R]; P],
) {
    let s = b.floats();
    let (y, x) = (at.y as isize, at.x as isize);
    let biases = job.shape.blocks() * LANES;
    let mut out = [[s.zero(); R]; P];
    for p in 0..P {
        // SAFETY: two rows of ⌈O/16⌉ · 16 numbers each.
        let (factor, bias) = unsafe {
            let factor = job.affine.add((at.block + p) * LANES);
            (s.load(factor), s.load(factor.add(biases)))
        };
        for r in 0..R {
            out[p][r] = s.add(s.mul(b.to_floats(sums[p][r]), factor), bias);
        }
    }
    match job.residual {
        Some(Residual::Bytes { map, scale }) => {
            let factor = s.splat(scale / job.scales.output);
            for p in 0..P {
                let from = map.place(at.image, at.block + p, y, x);
                for r in 0..R {
                    // SAFETY: R places of this row are left in the map.
                    let residual = unsafe { b.load(from.add(r * LANES)) };
                    out[p][r] = s.add(out[p][r], s.mul(residual, factor));
                }
            }
        }
        Some(Residual::Floats(map)) => {
            let factor = s.splat(1.0 / job.scales.output);
            for p in 0..P {
                let from = map.place(at.image, at.block + p, y, x);
                for r in 0..R {
                    // SAFETY: R places of this row are left in the map.
                    let residual = unsafe { s.load(from.add(r * LANES)) };
                    out[p][r] = s.add(out[p][r], s.mul(residual, factor));
                }
            }
        }
        None => {}
    }
    if let Some(map) = job.bytes {
        // A ReLU is what bytes do anyway.
        for p in 0..P {
            let to = map.place(at.image, at.block + p, y, x);
            for r in 0..R {
                // SAFETY: R places of this row are left in the map, and no other thread's.
                unsafe { b.store(to.add(r * LANES), out[p][r]) };
            }
        }
    }
    if let Some(map) = job.floats {
        let scale = s.splat(job.scales.output);
        for p in 0..P {
            let to = map.place(at.image, at.block + p, y, x);
            for r in 0..R {
                let out = if job.scales.relu { s.max(s.zero(), out[p][r]) } else { out[p][r] };
                // SAFETY: R places of this row are left in the map, and no other thread's.
                unsafe { s.store(to.add(r * LANES), s.mul(out, scale)) };
            }
        }
    }
}
