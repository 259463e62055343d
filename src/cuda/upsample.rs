//! Maps at another size ([`crate::ops::upsample`] is the twin).
//! Letters: R planes: pictures times channels.

use super::{Arg, Launch, Module, Number, Region};
use crate::nn::graph::Resample;
use crate::ops::interpolate::Align;

pub const MODULE: Module =
    Module { name: "upsample", ptx: include_str!("../../kernels/ptx/upsample.ptx") };

const THREADS: u32 = 256;
/// Sides from which on the kernel's whole numbers are too small.
const MOST_SIDE: usize = 1 << 15;

/// x [R, H, W], (H, W) = `from` → y [R, `to.0`, `to.1`].
///
/// # Panics
/// If a region is of another size, a size is 0 or a side is above 2¹⁵.
pub fn upsample(
    planes: usize,
    from: (usize, usize),
    to: (usize, usize),
    rule: Resample,
    x: Region,
    y: Region,
) -> Launch {
    let sides = [from.0, from.1, to.0, to.1];
    let fits = sides.iter().all(|side| (1..=MOST_SIDE).contains(side));
    assert!(fits, "resize from {from:?} to {to:?}");
    let mut args = vec![
        Arg::Memory(x.holding(planes * from.0 * from.1, Number::F32, "a map")),
        Arg::Memory(y.holding(planes * to.0 * to.1, Number::F32, "a resized map")),
    ];
    args.extend(sides.map(Arg::int));
    let entry = match rule {
        Resample::Nearest => "nearest",
        // A single place is spread over all: its four neighbours are itself, but their weighted sum
        // may be a rounding away.
        Resample::Bilinear(_) if from == (1, 1) => "nearest",
        Resample::Bilinear(align) => {
            args.push(Arg::I32((align == Align::Corners).into()));
            "bilinear"
        }
    };
    let grid = [(to.0 * to.1).div_ceil(THREADS as usize), planes, 1];
    Launch::of(MODULE, entry, grid, THREADS, args)
}
