//! Between feature maps of floats and of bytes, and pooling of bytes.
//!
//! A byte q stands for x = scale · q: x ≥ 0, as it is behind a ReLU. Letters: B pictures, C channels,
//! H × W places.

use std::sync::atomic::{AtomicBool, Ordering};

use super::byte_simd::{ByteIsa, ByteKernel, ByteSimd};
use super::feature_map::{ByteMap, FeatureMap, Shape, Shared};
use super::simd::{LANES, Simd};
use super::team::Team;

/// Rows of a plane in a piece of work.
const ROWS: usize = 16;

/// `x` in steps of `scale` → `y`, both [B, C, H, W]: rounded to even, 0 for what is negative, 255 for
/// what is too large. Says whether all of `x` was finite; NaN is 255 in `y`, which does not show it.
///
/// # Panics
/// If shapes differ or the scale is not above zero.
#[must_use = "bytes do not show NaN"]
pub fn quantize(team: &Team, isa: ByteIsa, x: FeatureMap<'_>, scale: f32, y: ByteMap<'_>) -> bool {
    assert_eq!(x.shape(), y.shape(), "maps of floats and bytes");
    assert!(scale > 0.0 && scale.is_finite(), "steps of {scale}");
    let (maps, finite) = (Shared((x, y)), AtomicBool::new(true));
    rows(team, x.shape(), |image, block, row| {
        let (x, y) = maps.get();
        let (x, y) = (x.place(image, block, row, 0), y.place(image, block, row, 0));
        let places = maps.get().0.shape().width;
        if !isa.run(Quantize { x, y, places, scale }) {
            finite.store(false, Ordering::Relaxed);
        }
    });
    finite.into_inner()
}

/// `x` in steps of `scale` → `y`, both [B, C, H, W].
///
/// # Panics
/// If shapes differ.
pub fn dequantize(team: &Team, isa: ByteIsa, x: ByteMap<'_>, scale: f32, y: FeatureMap<'_>) {
    assert_eq!(x.shape(), y.shape(), "maps of bytes and floats");
    let maps = Shared((x, y));
    rows(team, x.shape(), |image, block, row| {
        let (x, y) = maps.get();
        let (x, y) = (x.place(image, block, row, 0), y.place(image, block, row, 0));
        isa.run(Dequantize { x, y, places: maps.get().0.shape().width, scale });
    });
}

/// 3×3 maximum, stride 2, padding 1: `x` [B, C, H, W] → `y` [B, C, ⌈H/2⌉, ⌈W/2⌉].
///
/// # Panics
/// If shapes do not fit or the maps overlap.
pub fn max_pool(team: &Team, x: ByteMap<'_>, y: ByteMap<'_>) {
    let Shape { height, width, .. } = x.shape();
    let shape = Shape { height: height.div_ceil(2), width: width.div_ceil(2), ..x.shape() };
    assert_eq!(y.shape(), shape, "what pooling makes of {:?}", x.shape());
    assert!(!y.overlaps(&x), "pooling in place");
    let maps = Shared((x, y));
    rows(team, shape, |image, block, row| {
        let (x, y) = maps.get();
        let to = y.place(image, block, row, 0);
        // The border is zero, and no byte is less.
        let from = [-1, 0, 1].map(|dy| x.place(image, block, 2 * row + dy, -1));
        for place in 0..y.shape().width {
            // SAFETY: the last place read is 2W' ≤ W + 1 behind the left border, which is the right
            // border at most; the one written is in this row, which is no other thread's.
            unsafe {
                let mut max = [0; LANES];
                for tap in from
                    .iter()
                    .flat_map(|row| [0, 1, 2].map(|dx| row.add((2 * place + dx) * LANES)))
                {
                    let now = tap.cast::<[u8; LANES]>().read();
                    for i in 0..LANES {
                        max[i] = max[i].max(now[i]);
                    }
                }
                to.add(place * LANES).cast::<[u8; LANES]>().write(max);
            }
        }
    });
}

/// Calls `work(image, block, row)` for every row of every plane.
fn rows(team: &Team, shape: Shape, work: impl Fn(usize, usize, isize) + Sync) {
    let (blocks, height) = (shape.blocks(), shape.height);
    team.chunks(shape.images * blocks * height, ROWS, |_, from, to| {
        for i in from..to {
            work(i / height / blocks, i / height % blocks, (i % height) as isize);
        }
    });
}

/// `places` · 16 numbers of a row that is no other thread's.
struct Quantize {
    x: *const f32,
    y: *mut u8,
    places: usize,
    scale: f32,
}

impl ByteKernel for Quantize {
    /// Whether all were finite.
    type Output = bool;

    #[inline(always)]
    fn run<B: ByteSimd>(self, b: B) -> bool {
        let s = b.floats();
        let steps = s.splat(1.0 / self.scale);
        // 0 · x is zero unless x is NaN or infinite.
        let mut zeros = s.zero();
        for i in 0..self.places {
            // SAFETY: both rows are that long, as is said where they are given.
            unsafe {
                let x = s.load(self.x.add(i * LANES));
                zeros = s.mul_add(x, s.zero(), zeros);
                b.store(self.y.add(i * LANES), s.mul(x, steps));
            }
        }
        !s.sum(zeros).is_nan()
    }
}

/// `places` · 16 numbers of a row that is no other thread's.
struct Dequantize {
    x: *const u8,
    y: *mut f32,
    places: usize,
    scale: f32,
}

impl ByteKernel for Dequantize {
    type Output = ();

    #[inline(always)]
    fn run<B: ByteSimd>(self, b: B) {
        let s = b.floats();
        let scale = s.splat(self.scale);
        for i in 0..self.places {
            // SAFETY: both rows are that long, as is said where they are given.
            unsafe {
                let x = b.load(self.x.add(i * LANES));
                s.store(self.y.add(i * LANES), s.mul(x, scale));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::feature_map::{Buffer, ByteBuffer};

    fn shapes() -> [Shape; 4] {
        [
            Shape::new(1, 16, 1, 1),
            Shape::new(2, 20, 7, 4),
            Shape::new(1, 3, 6, 9),
            Shape::new(3, 33, 2, 31),
        ]
    }

    fn numbers(shape: Shape) -> usize {
        shape.images * shape.channels * shape.places()
    }

    fn teams() -> [Team; 2] {
        [Team::alone(), Team::new(2, false).unwrap()]
    }

    fn isas() -> impl Iterator<Item = ByteIsa> {
        ByteIsa::ALL.into_iter().filter(|isa| isa.is_here())
    }

    #[test]
    fn floats_become_bytes_and_floats_again() {
        let scale = 0.03;
        for (shape, team) in shapes().into_iter().flat_map(|s| teams().map(|team| (s, team))) {
            let values: Vec<f32> =
                (0..numbers(shape)).map(|i| (i as f32 * 0.71).sin() * 9.0).collect();
            let (floats, back) = (Buffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
            let mut bytes = ByteBuffer::zeroed(shape.len());
            floats.map(shape, 0).write(&values);
            for isa in isas() {
                let map = bytes.map(shape, 0);
                assert!(quantize(&team, isa, floats.map(shape, 0), scale, map));
                let want = values.iter().map(|x| (x * (1.0 / scale)).round_ties_even() as u8);
                let want: Vec<u8> = want.collect();
                assert_eq!(map.read(), want, "{isa:?} {shape:?}");
                dequantize(&team, isa, map, scale, back.map(shape, 0));
                let want: Vec<f32> = want.iter().map(|&q| f32::from(q) * scale).collect();
                assert_eq!(back.map(shape, 0).read(), want, "{isa:?} {shape:?}");
                let filled = bytes.as_mut_slice().iter().filter(|q| **q > 0).count();
                assert_eq!(filled, want.iter().filter(|x| **x > 0.0).count(), "the border");
                bytes.as_mut_slice().fill(0);
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_reported() {
        let shape = Shape::new(1, 20, 3, 5);
        let (floats, bytes) = (Buffer::zeroed(shape.len()), ByteBuffer::zeroed(shape.len()));
        for (value, byte) in [(f32::NAN, 255), (f32::INFINITY, 255), (f32::NEG_INFINITY, 0)] {
            let (x, y) = (floats.map(shape, 0), bytes.map(shape, 0));
            x.set(0, 19, 2, 4, value);
            for (isa, team) in isas().flat_map(|isa| teams().map(|team| (isa, team))) {
                assert!(!quantize(&team, isa, x, 1.0, y), "{isa:?} {value}");
                assert_eq!(y.get(0, 19, 2, 4), byte, "{isa:?} {value}");
            }
        }
    }

    #[test]
    fn pooling_takes_the_largest_of_nine() {
        for (shape, team) in shapes().into_iter().flat_map(|s| teams().map(|team| (s, team))) {
            let pooled =
                Shape { height: shape.height.div_ceil(2), width: shape.width.div_ceil(2), ..shape };
            let (from, to) = (ByteBuffer::zeroed(shape.len()), ByteBuffer::zeroed(pooled.len()));
            let (x, y) = (from.map(shape, 0), to.map(pooled, 0));
            let values: Vec<u8> = (0..numbers(shape)).map(|i| (i * 89 % 251) as u8).collect();
            x.write(&values);
            max_pool(&team, x, y);
            for i in 0..numbers(pooled) {
                let (px, py) = (i % pooled.width, i / pooled.width % pooled.height);
                let (c, b) =
                    (i / pooled.places() % shape.channels, i / pooled.places() / shape.channels);
                let rows = (2 * py).saturating_sub(1)..(2 * py + 2).min(shape.height);
                let want = rows
                    .flat_map(|y| {
                        let columns = (2 * px).saturating_sub(1)..(2 * px + 2).min(shape.width);
                        columns.map(move |x_in| x.get(b, c, y, x_in))
                    })
                    .max();
                assert_eq!(Some(y.get(b, c, py, px)), want, "{shape:?} {i}");
            }
        }
    }
}
