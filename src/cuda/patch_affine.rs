//! A scale and a shift for each number of a patch ([`crate::ops::patch_affine`] is the twin).
//! Letters: B pictures, C channels, H × W places.

use super::{Arg, Launch, Module, Number, Region};

pub const MODULE: Module =
    Module { name: "patch_affine", ptx: include_str!("../../kernels/ptx/patch_affine.ptx") };

const THREADS: u32 = 256;

/// x [B, C, H, W] of `shape` → y of that shape; `scale` and `shift` [C, patch, patch].
///
/// # Panics
/// If a region is of another size, a size is 0, or the patch does not divide the sides.
pub fn patch_affine(
    shape: [usize; 4],
    patch: usize,
    x: Region,
    [scale, shift]: [Region; 2],
    y: Region,
) -> Launch {
    let [images, channels, height, width] = shape;
    let fits = height.is_multiple_of(patch) && width.is_multiple_of(patch);
    assert!(fits, "patches of {patch} in {height} × {width} places");
    let (count, own) = (images * channels * height * width, channels * patch * patch);
    let args = vec![
        Arg::Memory(x.holding(count, Number::F32, "a map")),
        Arg::Memory(scale.holding(own, Number::F32, "scales of a patch")),
        Arg::Memory(shift.holding(own, Number::F32, "shifts of a patch")),
        Arg::Memory(y.holding(count, Number::F32, "a map")),
        Arg::int(height),
        Arg::int(width),
        Arg::int(patch),
    ];
    let grid = [(height * width).div_ceil(THREADS as usize), channels, images];
    Launch::of(MODULE, "patch_affine", grid, THREADS, args)
}
