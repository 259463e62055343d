//! The residual of a feature map to its nearest prototype, in two launches that ask the host nothing
//! ([`crate::ops::prototype_residual`] is the twin).
//! Letters: B maps of M numbers, P prototypes, G parts of a map.

use super::{Arg, Launch, Module, Number, Region, blocks};

pub const MODULE: Module = Module {
    name: "prototype_residual",
    ptx: include_str!("../../kernels/ptx/prototype_residual.ptx"),
};

const THREADS: u32 = 256;
/// Numbers of a map that a block keeps.
const PART: usize = 2048;
/// Maps that share a prototype.
const MAPS: usize = 4;
/// Numbers of a residual that a block makes.
const RESIDUALS: usize = 8192;

/// Sizes of one such operation.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// B
    pub images: usize,
    /// P
    pub prototypes: usize,
    /// M = C · H · W
    pub length: usize,
}

impl Sizes {
    /// Bytes of the distances in between, [B, P, G].
    pub fn part_bytes(self) -> usize {
        4 * self.images * self.prototypes * self.length.div_ceil(PART)
    }
}

/// `maps` [B, M], `prototypes` [P, M] → `residuals` [B, M]; `parts` is of [`Sizes::part_bytes`].
///
/// # Panics
/// If a region is of another size, or one of the sizes is 0.
pub fn prototype_residual(
    sizes: Sizes,
    maps: Region,
    prototypes: Region,
    parts: Region,
    residuals: Region,
) -> [Launch; 2] {
    let Sizes { images, prototypes: count, length } = sizes;
    assert!(images * count * length > 0, "prototypes of {sizes:?}");
    let maps = Arg::Memory(maps.holding(images * length, Number::F32, "maps"));
    let prototypes = Arg::Memory(prototypes.holding(count * length, Number::F32, "prototypes"));
    let residuals = Arg::Memory(residuals.holding(images * length, Number::F32, "residuals"));
    assert_eq!(parts.bytes, sizes.part_bytes(), "bytes of parts of distances");
    let parts = Arg::Memory(parts);
    let part_count = length.div_ceil(PART);
    let launch = |entry, grid, args| Launch {
        module: MODULE,
        entry,
        grid,
        block: [THREADS, 1, 1],
        shared_bytes: 0,
        args,
    };
    [
        launch(
            "map_distances",
            [blocks(part_count), blocks(images.div_ceil(MAPS)), 1],
            vec![
                maps.clone(),
                prototypes.clone(),
                parts.clone(),
                Arg::int(images),
                Arg::int(count),
                Arg::int(length),
            ],
        ),
        launch(
            "map_residuals",
            [blocks(length.div_ceil(RESIDUALS)), blocks(images), 1],
            vec![
                maps,
                prototypes,
                parts,
                Arg::int(part_count),
                Arg::int(count),
                Arg::int(length),
                residuals,
            ],
        ),
    ]
}
