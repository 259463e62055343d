//! Place by place: sums, products, activations, scales, copies ([`crate::ops::elementwise`] and
//! [`crate::ops::affine`] are the twins). `slope` multiplies what is negative in the end: 1 changes
//! nothing, 0 is a ReLU.
//! Letters: B pictures, C channels, P places.

use super::{Arg, Launch, Module, Number, Region};

pub const MODULE: Module =
    Module { name: "elementwise", ptx: include_str!("../../kernels/ptx/elementwise.ptx") };

const THREADS: u32 = 256;
/// Numbers of a block.
const BLOCK: usize = 1024;

/// `to` = a + b, all of `count` numbers.
///
/// # Panics
/// As all of this room: if a region is of another size, or a size is 0.
pub fn add(count: usize, a: Region, b: Region, to: Region, slope: f32) -> Launch {
    let args = [f32s(a, count), f32s(b, count), f32s(to, count), Arg::int(count), Arg::F32(slope)];
    launch("add", count, args.to_vec())
}

/// `to` = a · b.
pub fn multiply(count: usize, a: Region, b: Region, to: Region) -> Launch {
    let args = [f32s(a, count), f32s(b, count), f32s(to, count), Arg::int(count)];
    launch("multiply", count, args.to_vec())
}

/// `to` = x, or `slope` · x where x is negative.
pub fn leaky_relu(count: usize, x: Region, to: Region, slope: f32) -> Launch {
    let args = [f32s(x, count), f32s(to, count), Arg::int(count), Arg::F32(slope)];
    launch("leaky_relu", count, args.to_vec())
}

/// `to` = 1/(1 + e⁻ˣ).
pub fn sigmoid(count: usize, x: Region, to: Region) -> Launch {
    launch("sigmoid", count, vec![f32s(x, count), f32s(to, count), Arg::int(count)])
}

/// `to` = scale · x + shift for maps of `[images, channels, places]`; `scale` and `shift`
/// `[channels]`.
pub fn affine(
    [images, channels, places]: [usize; 3],
    x: Region,
    [scale, shift]: [Region; 2],
    to: Region,
    slope: f32,
) -> Launch {
    let count = images * channels * places;
    let args = vec![
        f32s(x, count),
        f32s(scale, channels),
        f32s(shift, channels),
        f32s(to, count),
        Arg::int(count),
        Arg::int(channels),
        Arg::int(places),
        Arg::F32(slope),
    ];
    launch("affine", count, args)
}

/// A part of a concatenation: x [B, `channels`, P] to the channels of `to` [B, `all`, P] from
/// `first` on.
pub fn copy_channels(
    (images, places): (usize, usize),
    x: Region,
    channels: usize,
    to: Region,
    (first, all): (usize, usize),
) -> Launch {
    assert!(first + channels <= all, "channels {first}..{} of {all}", first + channels);
    let (length, stride) = (channels * places, all * places);
    let whole = to.holding(images * stride, Number::F32, "a concatenation");
    let to = whole.part(4 * first * places, whole.bytes - 4 * first * places);
    let args = vec![f32s(x, images * length), Arg::Memory(to), Arg::int(length), Arg::int(stride)];
    Launch::of(MODULE, "copy_rows", [length.div_ceil(BLOCK), images, 1], THREADS, args)
}

/// Each run of `length` of x's `count` numbers, `times` times: x [R, length] → to
/// [R, times, length].
pub fn repeat(count: usize, length: usize, times: usize, x: Region, to: Region) -> Launch {
    assert!(length > 0 && count.is_multiple_of(length), "runs of {length} in {count} numbers");
    let made = count * times;
    let args =
        vec![f32s(x, count), f32s(to, made), Arg::int(made), Arg::int(length), Arg::int(times)];
    launch("repeat", made, args)
}

fn f32s(region: Region, count: usize) -> Arg {
    Arg::Memory(region.holding(count, Number::F32, "a map"))
}

fn launch(entry: &'static str, count: usize, args: Vec<Arg>) -> Launch {
    Launch::of(MODULE, entry, [count.div_ceil(BLOCK), 1, 1], THREADS, args)
}
