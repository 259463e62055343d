//! Softmax over the places of each channel ([`crate::ops::place_softmax`] is the twin).

use super::{Arg, Launch, Module, Number, Region};

pub const MODULE: Module =
    Module { name: "place_softmax", ptx: include_str!("../../kernels/ptx/place_softmax.ptx") };

const THREADS: u32 = 256;

/// x [`planes`, `places`] → y of that shape; planes are pictures times channels.
///
/// # Panics
/// If a region is of another size, or a size is 0.
pub fn place_softmax(planes: usize, places: usize, x: Region, y: Region) -> Launch {
    assert!(places > 0, "planes of no places");
    let args = vec![
        Arg::Memory(x.holding(planes * places, Number::F32, "a map")),
        Arg::Memory(y.holding(planes * places, Number::F32, "its softmax")),
        Arg::int(places),
    ];
    Launch::of(MODULE, "place_softmax", [planes, 1, 1], THREADS, args)
}
