//! Attention over 3 × 3 windows ([`crate::ops::window_attention`] is the twin; logits are here as
//! the graph has them: group g, place o of the window at channel 9g + o).
//! Letters: B pictures, C channels, G groups, H × W places.

use super::{Arg, Launch, Module, Number, Region};

pub const MODULE: Module = Module {
    name: "window_attention",
    ptx: include_str!("../../kernels/ptx/window_attention.ptx"),
};

const THREADS: u32 = 128;
/// Channels of a group that a thread makes.
const CHANNELS: usize = 8;
/// Places of a window.
const WINDOW: usize = 9;

/// `logits` [B, G·9, H, W] and `values` [B, C, H, W] of `shape` → `y` of that shape.
///
/// # Panics
/// If a region is of another size, a size is 0, or the groups do not divide the channels.
pub fn window_attention(
    shape: [usize; 4],
    groups: usize,
    logits: Region,
    values: Region,
    y: Region,
) -> Launch {
    let [images, channels, height, width] = shape;
    assert!(channels.is_multiple_of(groups), "{groups} groups of {channels} channels");
    let places = height * width;
    let count = images * channels * places;
    let args = vec![
        Arg::Memory(logits.holding(images * groups * WINDOW * places, Number::F32, "logits")),
        Arg::Memory(values.holding(count, Number::F32, "values")),
        Arg::Memory(y.holding(count, Number::F32, "attended values")),
        Arg::int(channels),
        Arg::int(height),
        Arg::int(width),
    ];
    let parts = (channels / groups).div_ceil(CHANNELS);
    let grid = [places.div_ceil(THREADS as usize), groups, images * parts];
    Launch::of(MODULE, "window_attention", grid, THREADS, args)
}
