//! What the tests of operations on feature maps share.

use super::feature_map::{Buffer, FeatureMap, Shape};
use super::simd::{Isa, LANES};
use super::team::Team;

/// Calls `check` for each set of instructions of this machine, with one thread and with two.
pub fn everywhere(mut check: impl FnMut(&Team, Isa)) {
    for threads in [1, 2] {
        let team = Team::new(threads, false).unwrap();
        Isa::ALL.into_iter().filter(|isa| isa.is_here()).for_each(|isa| check(&team, isa));
    }
}

/// `len` numbers in −1..1 without a visible order.
pub fn pattern(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A buffer with one map of `shape` that holds `pattern`, and those values [B, C, H, W].
pub fn filled(shape: Shape, seed: u32) -> (Buffer, Vec<f32>) {
    let values = pattern(shape.images * shape.channels * shape.places(), seed);
    let buffer = Buffer::zeroed(shape.len());
    buffer.map(shape, 0).write(&values);
    (buffer, values)
}

/// A buffer for one map of `shape` whose places, the lanes past C among them, hold leavings.
pub fn used(shape: Shape) -> Buffer {
    let buffer = Buffer::zeroed(shape.len());
    let whole = Shape { channels: shape.blocks() * LANES, ..shape };
    buffer.map(whole, 0).write(&vec![77.0; whole.images * whole.channels * whole.places()]);
    buffer
}

/// `map` holds `want` within `abs` + `rel` · |want|, and zero in its border and past its channels.
pub fn assert_holds(map: FeatureMap<'_>, want: &[f32], (abs, rel): (f32, f32), what: &str) {
    let got = map.read();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= abs + rel * want.abs() || got.is_nan() && want.is_nan();
        assert!(close, "{what}, number {i}: {got}, not {want}");
    }
    let Shape { images, channels, height, width } = map.shape();
    for (b, block) in (0..images).flat_map(|b| (0..channels.div_ceil(LANES)).map(move |k| (b, k))) {
        for y in -1..=height as isize {
            for x in -1..=width as isize {
                let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
                let own = if inside { (channels - block * LANES).min(LANES) } else { 0 };
                let place = map.place(b, block, y, x);
                for lane in own..LANES {
                    // SAFETY: a place has 16 lanes.
                    let value = unsafe { *place.add(lane) };
                    assert_eq!(value, 0.0, "{what}: lane {lane} of ({y}, {x}) in plane {block}");
                }
            }
        }
    }
}
