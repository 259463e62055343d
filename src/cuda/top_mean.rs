//! The mean of the largest values of a map ([`crate::detector::network::top_mean`] is the twin).
//! Letters: B maps of N values.

use super::{Arg, Launch, Module, Number, Region, blocks};

pub const MODULE: Module =
    Module { name: "top_mean", ptx: include_str!("../../kernels/ptx/top_mean.ptx") };

const THREADS: u32 = 512;

/// `maps` [B, N] → `means` `[B]`, of the `top` largest values, of all where there are fewer; NaN where
/// a value of the map is not finite.
///
/// # Panics
/// If a region is of another size, there are no values or `top` is 0.
pub fn top_mean(images: usize, count: usize, top: usize, maps: Region, means: Region) -> Launch {
    assert!(count > 0 && top > 0, "the mean of {top} of {count} values");
    Launch {
        module: MODULE,
        entry: "top_mean",
        grid: [blocks(images), 1, 1],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
        args: vec![
            Arg::Memory(maps.holding(images * count, Number::F32, "maps")),
            Arg::Memory(means.holding(images, Number::F32, "means")),
            Arg::int(count),
            Arg::int(top.min(count)),
        ],
    }
}
