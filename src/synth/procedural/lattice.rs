//! Chance that belongs to places: the same at each look, without end in any direction. Gradient noise
//! (Perlin 2002) and cellular noise (Worley 1996) on a square lattice of side 1.

use std::f32::consts::TAU;
use std::sync::LazyLock;

/// A number for a place of the lattice, all bits as good as random.
pub fn hash(column: i32, row: i32, seed: u32) -> u32 {
    let mut bits = (column as u32).wrapping_mul(0x9e37_79b1)
        ^ (row as u32).wrapping_mul(0x85eb_ca77).rotate_left(13)
        ^ seed;
    for factor in [0x2c1b_3c6d, 0x297a_2d39] {
        bits = (bits ^ (bits >> 15)).wrapping_mul(factor);
    }
    bits ^ (bits >> 15)
}

/// The whole number below, and how far above it.
pub fn split(x: f32) -> (i32, f32) {
    // `floor` is a function call where the CPU is not known to have an instruction for it.
    let cut = x as i32;
    let below = cut - i32::from(x < cut as f32);
    (below, x - below as f32)
}

/// The upper bits of a hash as a number from 0 to 1.
pub fn unit(hash: u32) -> f32 {
    (hash >> 8) as f32 / (1 << 24) as f32
}

/// Gradient noise and `count` − 1 finer ones, each half as wide and half as strong; most of it lies
/// within ±0.5.
pub fn octaves(x: f32, y: f32, seed: u32, count: u32) -> f32 {
    let (mut sum, mut strength, mut scale) = (0.0, 1.0, 1.0);
    for octave in 0..count {
        sum += strength * noise(x * scale, y * scale, seed.wrapping_add(octave));
        strength *= 0.5;
        scale *= 2.0;
    }
    sum
}

/// A point of [`cells`].
#[derive(Clone, Copy)]
pub struct Point {
    pub distance: f32,
    pub hash: u32,
}

/// The two nearest of the points that lie about, one in each square of the lattice.
pub fn cells(x: f32, y: f32, seed: u32) -> [Point; 2] {
    let far = Point { distance: f32::MAX, hash: 0 };
    let [mut nearest, mut second] = [far; 2];
    let ((column, _), (row, _)) = (split(x), split(y));
    for row in row - 1..=row + 1 {
        for column in column - 1..=column + 1 {
            let hash = hash(column, row, seed);
            let (dx, dy) = (
                column as f32 + (hash & 0xffff) as f32 / 65536.0 - x,
                row as f32 + (hash >> 16) as f32 / 65536.0 - y,
            );
            // Squared until the end.
            let point = Point { distance: dx * dx + dy * dy, hash };
            if point.distance < nearest.distance {
                second = nearest;
                nearest = point;
            } else if point.distance < second.distance {
                second = point;
            }
        }
    }
    [nearest, second].map(|point| Point {
        distance: point.distance.sqrt(),
        // What says where the point is says nothing else.
        hash: hash(point.hash as i32, 0, seed),
    })
}

/// 64 directions.
static GRADIENTS: LazyLock<[(f32, f32); 64]> = LazyLock::new(|| {
    std::array::from_fn(|k| {
        let (sin, cos) = (TAU * k as f32 / 64.0).sin_cos();
        (cos, sin)
    })
});

/// −0.71 to 0.71, 0 at the corners of the lattice.
fn noise(x: f32, y: f32, seed: u32) -> f32 {
    let gradients = &*GRADIENTS;
    let ((column, dx), (row, dy)) = (split(x), split(y));
    let corner = |right: i32, down: i32| {
        let (gx, gy) = gradients[(hash(column + right, row + down, seed) >> 26) as usize];
        gx * (dx - right as f32) + gy * (dy - down as f32)
    };
    let fade = |t: f32| t * t * t * (t * (t * 6.0 - 15.0) + 10.0);
    let mix = |from: f32, to: f32, t: f32| from + t * (to - from);
    let (across, down) = (fade(dx), fade(dy));
    mix(mix(corner(0, 0), corner(1, 0), across), mix(corner(0, 1), corner(1, 1), across), down)
}
