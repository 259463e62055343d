//! The rows that patch_prototypes looks up: each place's features of two levels, aware of their
//! surroundings ([`crate::ops::patch_features`] is the twin).
//! Letters: B pictures, C2 and C3 channels, h × w places of the upper level, D = C2 + C3.

use super::nearest_prototype::code_dims;
use super::{Arg, Launch, Module, Number, Region, blocks};

pub const MODULE: Module =
    Module { name: "patch_features", ptx: include_str!("../../kernels/ptx/patch_features.ptx") };

const THREADS: u32 = 256;
/// Places, and channels, of a block.
const TILE: usize = 32;

/// A level [B, C, h, w].
#[derive(Clone, Copy, Debug)]
pub struct Level {
    pub at: Region,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

/// The rows once more, as [`super::nearest_prototype::nearest`] wants them for tensor cores.
#[derive(Clone, Copy, Debug)]
pub struct RowCodes {
    /// `[D]`, the bank's own.
    pub centre: Region,
    /// [B·h·w, [`code_dims`] of D], bf16.
    pub to: Region,
}

/// `rows` [B·h·w, D], and `codes` where they are wanted.
///
/// # Panics
/// If a region is of another size.
pub fn patch_features(
    images: usize,
    upper: Level,
    deeper: Level,
    rows: Region,
    codes: Option<RowCodes>,
) -> Launch {
    let places = upper.height * upper.width;
    let dims = upper.channels + deeper.channels;
    let maps = [upper, deeper].map(|level| {
        let count = images * level.channels * level.height * level.width;
        assert!(count > 0, "a level of no numbers: {level:?}");
        Arg::Memory(level.at.holding(count, Number::F32, "a level"))
    });
    let rows = rows.holding(images * places * dims, Number::F32, "patch features");
    let wide = if codes.is_some() { code_dims(dims) } else { dims };
    let (centre, to) = match codes {
        Some(RowCodes { centre, to }) => (
            Arg::Memory(centre.holding(dims, Number::F32, "the centre")),
            Arg::Memory(to.holding(images * places * wide, Number::Bf16, "codes")),
        ),
        None => (Arg::nothing(), Arg::nothing()),
    };
    let [upper_map, deeper_map] = maps;
    Launch {
        module: MODULE,
        entry: "patch_features",
        grid: [blocks(places.div_ceil(TILE)), blocks(wide.div_ceil(TILE)), blocks(images)],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
        args: vec![
            upper_map,
            deeper_map,
            Arg::int(upper.channels),
            Arg::int(deeper.channels),
            Arg::int(upper.height),
            Arg::int(upper.width),
            Arg::int(deeper.height),
            Arg::int(deeper.width),
            Arg::Memory(rows),
            centre,
            to,
            Arg::int(wide),
        ],
    }
}
