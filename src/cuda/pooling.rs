//! Maxima and means over windows ([`crate::ops::pooling`] is the twin).
//! Letters: R planes: pictures times channels.

use super::{Arg, Launch, Module, Number, Region};

pub const MODULE: Module =
    Module { name: "pooling", ptx: include_str!("../../kernels/ptx/pooling.ptx") };

const THREADS: u32 = 256;
const MEAN_THREADS: u32 = 128;
/// Places of a window from which on a block makes its mean.
const LARGE: usize = 128;

/// 3×3 maximum, stride 2, padding 1: x [R, H, W], (H, W) = `size` → to [R, ⌈H/2⌉, ⌈W/2⌉].
///
/// # Panics
/// If a region is of another size, or a size is 0.
pub fn max_pool(planes: usize, (height, width): (usize, usize), x: Region, to: Region) -> Launch {
    let places = height.div_ceil(2) * width.div_ceil(2);
    let args = vec![
        Arg::Memory(x.holding(planes * height * width, Number::F32, "a map")),
        Arg::Memory(to.holding(planes * places, Number::F32, "maxima")),
        Arg::int(height),
        Arg::int(width),
    ];
    let grid = [places.div_ceil(THREADS as usize), planes, 1];
    Launch::of(MODULE, "max_pool", grid, THREADS, args)
}

/// Means of windows that do not overlap: x [R, H, W], (H, W) = `size` → to [R, `out.0`, `out.1`].
///
/// # Panics
/// As [`max_pool`]; if the sides are no multiples.
pub fn means(
    planes: usize,
    (height, width): (usize, usize),
    out: (usize, usize),
    x: Region,
    to: Region,
) -> Launch {
    assert!(out.0 * out.1 > 0, "means of no windows");
    let fits = height.is_multiple_of(out.0) && width.is_multiple_of(out.1);
    assert!(fits, "{height} × {width} places in {out:?} windows");
    let window = (height / out.0, width / out.1);
    let places = out.0 * out.1;
    let args = vec![
        Arg::Memory(x.holding(planes * height * width, Number::F32, "a map")),
        Arg::Memory(to.holding(planes * places, Number::F32, "means")),
        Arg::int(out.0),
        Arg::int(out.1),
        Arg::int(window.0),
        Arg::int(window.1),
    ];
    if window.0 * window.1 >= LARGE {
        return Launch::of(MODULE, "large_means", [places, planes, 1], MEAN_THREADS, args);
    }
    Launch::of(MODULE, "means", [places.div_ceil(THREADS as usize), planes, 1], THREADS, args)
}
