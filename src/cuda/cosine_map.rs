//! How alike two feature maps are, place by place, all levels of a detector in one launch
//! ([`crate::ops::cosine_map`] is the twin).
//! Letters: B pictures, C channels, P places of a level.

use super::{Arg, Fields, Launch, Module, Number, Region, blocks};
use crate::ops::cosine_map::Distance;

pub const MODULE: Module =
    Module { name: "cosine_map", ptx: include_str!("../../kernels/ptx/cosine_map.ptx") };

/// As many as a launch takes.
pub const MOST_LEVELS: usize = 4;

const THREADS: u32 = 256;
/// Bytes along the places that a block has in hand.
const TILE_BYTES: usize = 128;
/// Of a level in the kernel's struct.
const LEVEL_BYTES: usize = 32;

/// Two maps [B, C, P] and where the result goes: f32, [B, P] of a distance, [B, C, P] of a product.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    pub a: Region,
    pub b: Region,
    pub to: Region,
    pub channels: usize,
    pub places: usize,
}

/// How far a and b point apart; maps are of `numbers`, F32 or Bf16.
///
/// # Panics
/// If a region is of another size, there is no level or too many, or numbers are of another kind.
pub fn cosine_distances(
    rule: Distance,
    numbers: Number,
    images: usize,
    levels: &[Level],
) -> Launch {
    let entry = match numbers {
        Number::F32 => "cosine_distances_f32",
        Number::Bf16 => "cosine_distances_bf16",
        _ => panic!("cosines of {numbers:?}"),
    };
    for level in levels {
        level.to.holding(images * level.places, Number::F32, "cosine distances");
    }
    let half_squared = Arg::I32((rule == Distance::HalfSquared).into());
    launch(entry, numbers, images, levels, Some(half_squared))
}

/// −n(a)·n(b), channel by channel; maps are of `numbers`, F32 or Bf16.
///
/// # Panics
/// As [`cosine_distances`].
pub fn cosine_products(numbers: Number, images: usize, levels: &[Level]) -> Launch {
    let entry = match numbers {
        Number::F32 => "cosine_products_f32",
        Number::Bf16 => "cosine_products_bf16",
        _ => panic!("cosines of {numbers:?}"),
    };
    for level in levels {
        let count = images * level.channels * level.places;
        level.to.holding(count, Number::F32, "cosine products");
    }
    launch(entry, numbers, images, levels, None)
}

fn launch(
    entry: &'static str,
    numbers: Number,
    images: usize,
    levels: &[Level],
    rule: Option<Arg>,
) -> Launch {
    assert!((1..=MOST_LEVELS).contains(&levels.len()), "cosines of {} levels", levels.len());
    let mut fields = Fields::default();
    for level in levels {
        let count = images * level.channels * level.places;
        assert!(count > 0, "a level of no numbers: {level:?}");
        fields = fields
            .memory(level.a.holding(count, numbers, "a level"))
            .memory(level.b.holding(count, numbers, "a level"))
            .memory(level.to)
            .int(level.channels)
            .int(level.places);
    }
    let tile = TILE_BYTES / numbers.bytes();
    let tiles = levels.iter().map(|level| level.places.div_ceil(tile)).max().unwrap_or(0);
    Launch {
        module: MODULE,
        entry,
        grid: [blocks(tiles), blocks(images), blocks(levels.len())],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
        args: [fields.arg(MOST_LEVELS * LEVEL_BYTES)].into_iter().chain(rule).collect(),
    }
}
