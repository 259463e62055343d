//! Texture statistics of MLFF ([`crate::ops::texture`] is the twin).
//! Letters: B pictures, C channels, H × W places, N levels, R = S × S regions, T columns of one.

use super::{Arg, Launch, Module, Number, Region};
use crate::ops::texture::{LevelRule, Neighbour};

pub const MODULE: Module =
    Module { name: "texture", ptx: include_str!("../../kernels/ptx/texture.ptx") };

const THREADS: u32 = 128;
const WIDE_THREADS: u32 = 256;
/// Places of a block of cosines.
const PLACES: usize = 32;
/// Rows of a block of means.
const ROWS: usize = 8;
/// Channels of a thread that spreads levels.
const CHANNELS: usize = 16;

/// A cosine map [B, 1, H, W].
#[derive(Clone, Copy, Debug)]
pub struct Cosines {
    pub map: Region,
    pub images: usize,
    pub height: usize,
    pub width: usize,
}

impl Cosines {
    fn arg(&self) -> Arg {
        memory(self.map, self.images * self.places())
    }

    fn places(&self) -> usize {
        self.height * self.width
    }

    fn check(&self, levels: usize) {
        assert!(levels > 1 && self.places() > 0, "{levels} levels of {self:?}");
    }

    /// Bytes of [`bounds`].
    pub fn bound_bytes(&self, regions: usize) -> usize {
        8 * self.images * regions * regions
    }
}

/// x [B, C, H, W] of `shape` and means [B, C, S, S] → y [B, 1, H, W]: the cosine between each place
/// and the mean of its region.
///
/// # Panics
/// As all of this room: if a region is of another size, a size is 0, or the regions do not divide
/// the sides.
pub fn cosine_to_mean(
    shape: [usize; 4],
    regions: usize,
    x: Region,
    means: Region,
    y: Region,
) -> Launch {
    let [images, channels, height, width] = shape;
    let fits = height.is_multiple_of(regions) && width.is_multiple_of(regions);
    assert!(fits, "{height} × {width} places in {regions} × {regions} regions");
    let args = vec![
        memory(x, images * channels * height * width),
        memory(means, images * channels * regions * regions),
        memory(y, images * height * width),
        Arg::int(channels),
        Arg::int(height),
        Arg::int(width),
        Arg::int(regions),
    ];
    let grid = [(height * width).div_ceil(PLACES), images, 1];
    Launch::of(MODULE, "cosine_to_mean", grid, WIDE_THREADS, args)
}

/// The smallest and largest cosine of each of S × S regions: `to` [B, R, 2].
pub fn bounds(cosines: &Cosines, regions: usize, to: Region) -> Launch {
    let Cosines { images, height, width, .. } = *cosines;
    let fits = height.is_multiple_of(regions) && width.is_multiple_of(regions);
    assert!(fits, "{height} × {width} places in {regions} × {regions} regions");
    let args = vec![
        cosines.arg(),
        memory(to, 2 * images * regions * regions),
        Arg::int(height),
        Arg::int(width),
        Arg::int(regions),
    ];
    Launch::of(MODULE, "level_bounds", [regions * regions, images, 1], THREADS, args)
}

/// → y [B, 2, 1, N]: the levels and their shares; `bounds` [B, 2] of the whole maps, `sums` [B, N]
/// in between.
pub fn level_counts(
    cosines: &Cosines,
    bounds: Region,
    levels: usize,
    rule: LevelRule,
    sums: Region,
    y: Region,
) -> [Launch; 2] {
    cosines.check(levels);
    let images = cosines.images;
    let (sums, y) = (memory(sums, images * levels), memory(y, 2 * images * levels));
    let count = vec![
        cosines.arg(),
        memory(bounds, 2 * images),
        sums.clone(),
        y.clone(),
        Arg::int(cosines.places()),
        paper(rule),
    ];
    let share = vec![sums, y, Arg::int(levels)];
    [
        Launch::of(MODULE, "level_counts", [levels, images, 1], THREADS, count),
        Launch::of(MODULE, "level_shares", [images, 1, 1], THREADS, share),
    ]
}

/// → y [B, 3, R, N²]; `bounds` [B, R, 2] of the regions.
pub fn co_occurrence(
    cosines: &Cosines,
    bounds: Region,
    (levels, regions): (usize, usize),
    (rule, neighbour): (LevelRule, Neighbour),
    y: Region,
) -> Launch {
    cosines.check(levels);
    let Cosines { images, height, width, .. } = *cosines;
    let all = regions * regions;
    let (below, right) = neighbour.offset();
    let args = vec![
        cosines.arg(),
        memory(bounds, 2 * images * all),
        memory(y, 3 * images * all * levels * levels),
        Arg::int(height),
        Arg::int(width),
        Arg::int(regions),
        Arg::int(levels),
        paper(rule),
        Arg::int(below),
        Arg::int(right),
    ];
    Launch::of(MODULE, "co_occurrence", [all, images, 1], WIDE_THREADS, args)
}

/// x `[rows, T]` → y `[rows]`: their means; rows are pictures times channels times regions.
pub fn mean_regions(rows: usize, length: usize, x: Region, y: Region) -> Launch {
    assert!(length > 0, "means of nothing");
    let args = vec![memory(x, rows * length), memory(y, rows), Arg::int(rows), Arg::int(length)];
    Launch::of(MODULE, "mean_regions", [rows.div_ceil(ROWS), 1, 1], WIDE_THREADS, args)
}

/// Cosines and d [B, C, 1, N] → y [B, C, H, W]: Σ_n d_n E_n of each place; `bounds` [B, 2] of the
/// whole maps.
pub fn spread_levels(
    cosines: &Cosines,
    bounds: Region,
    d: Region,
    (channels, levels): (usize, usize),
    rule: LevelRule,
    y: Region,
) -> Launch {
    cosines.check(levels);
    let (images, places) = (cosines.images, cosines.places());
    let args = vec![
        cosines.arg(),
        memory(d, images * channels * levels),
        memory(bounds, 2 * images),
        memory(y, images * channels * places),
        Arg::int(channels),
        Arg::int(levels),
        Arg::int(places),
        paper(rule),
    ];
    let grid = [places.div_ceil(THREADS as usize), channels.div_ceil(CHANNELS), images];
    Launch::of(MODULE, "spread_levels", grid, THREADS, args)
}

fn paper(rule: LevelRule) -> Arg {
    Arg::I32((rule == LevelRule::Paper).into())
}

fn memory(region: Region, count: usize) -> Arg {
    Arg::Memory(region.holding(count, Number::F32, "numbers of textures"))
}
