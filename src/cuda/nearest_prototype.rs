//! Nearest-prototype search, and the score of a picture ([`crate::ops::nearest_prototype`] and
//! [`crate::detector::patch_prototypes`] are the twins).
//!
//! A search names a winner in each of several splits of the bank, and measures the best of them in
//! f32: the distances are the CPU's to the bit. By tensor cores the winners are those of codes: rows
//! less the bank's mean, in bf16. Letters: Q queries, N prototypes, D dimensions, S splits, B pictures
//! of P patches.

use half::bf16;

use super::{Arg, Launch, Module, Number, Region, blocks};

pub const MODULE: Module = Module {
    name: "nearest_prototype",
    ptx: include_str!("../../kernels/ptx/nearest_prototype.ptx"),
};

/// As many prototypes as [`ranked`] finds.
pub const MOST_RANKED: usize = 9;

const THREADS: u32 = 256;
/// Queries of a block that measures winners.
const MEASURERS: usize = 8;
/// Threads of a block that scores a picture, and the prototypes that they measure.
const SCORERS: u32 = 512;
const MOST_NEIGHBOURS: usize = 32;
/// Prototypes of a tile of a search.
const TILE: usize = 64;
/// Dimensions of codes are a multiple of it.
const DEPTH: usize = 32;
/// A lane for each.
const MOST_SPLITS: usize = 32;
/// Blocks that a search is split into where it has few queries: two for each multiprocessor of a
/// large card. The same for all cards, so that they find the same.
const BLOCKS: usize = 264;
/// Prototypes of a block that ranks.
const RANKED_TOGETHER: usize = 256;

/// Dimensions of the codes of rows of `dims` dimensions.
pub fn code_dims(dims: usize) -> usize {
    dims.next_multiple_of(DEPTH)
}

/// What tensor cores search, made of a bank once.
#[derive(Debug)]
pub struct Codes {
    /// `[D]`, the mean of the prototypes: taken away, less is lost by rounding.
    pub centre: Vec<f32>,
    /// [N, [`code_dims`]], the bits of bf16.
    pub rows: Vec<u16>,
    /// `[N]`, of these.
    pub norms2: Vec<f32>,
}

impl Codes {
    /// Of `rows` [N, D].
    ///
    /// # Panics
    /// If these are no rows.
    pub fn new(rows: &[f32], dims: usize) -> Self {
        assert!(dims > 0 && rows.len().is_multiple_of(dims), "rows of {dims} dimensions");
        let count = (rows.len() / dims) as f64;
        let mut sums = vec![0f64; dims];
        for row in rows.chunks(dims) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let centre: Vec<f32> = sums.into_iter().map(|sum| (sum / count) as f32).collect();
        let wide = code_dims(dims);
        let (mut codes, mut norms2) = (Vec::with_capacity(rows.len() / dims * wide), Vec::new());
        for row in rows.chunks(dims) {
            let own = row.iter().zip(&centre).map(|(x, centre)| bf16::from_f32(x - centre));
            let start = codes.len();
            codes.extend(own.map(bf16::to_bits));
            codes.resize(start + wide, 0);
            let squares = codes[start..].iter().map(|x| bf16::from_bits(*x).to_f64().powi(2));
            norms2.push(squares.sum::<f64>() as f32);
        }
        Self { centre, rows: codes, norms2 }
    }
}

/// Prototypes in device memory.
#[derive(Clone, Copy, Debug)]
pub struct Bank {
    pub count: usize,
    pub dims: usize,
    /// [N, D]
    pub rows: Region,
}

/// What winners are found by.
#[derive(Clone, Copy, Debug)]
pub enum Search {
    /// Σ(q − p)² of the rows themselves.
    F32,
    /// Tensor cores.
    Bf16 {
        /// [`Codes::rows`] and [`Codes::norms2`] of the bank.
        codes: Region,
        norms2: Region,
        /// [Q, [`code_dims`]] of the queries ([`super::patch_features`]).
        queries: Region,
    },
}

/// Where a search puts what it finds.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Work space of [`winner_bytes`].
    pub winners: Region,
    /// `[Q]` rows of the bank, u32.
    pub nearest: Region,
    /// `[Q]`, f32, not squared.
    pub distances: Region,
}

/// Splits and prototypes of each but the last.
fn splits(queries: usize, count: usize, query_tile: usize) -> (usize, usize) {
    let tiles = count.div_ceil(TILE);
    let wanted = (BLOCKS / queries.div_ceil(query_tile)).clamp(1, MOST_SPLITS.min(tiles));
    let split = tiles.div_ceil(wanted) * TILE;
    (count.div_ceil(split), split)
}

fn query_tile(search: &Search) -> usize {
    match search {
        Search::F32 => 64,
        Search::Bf16 { .. } => 128,
    }
}

/// Bytes of [`Found::winners`] of a search for `queries` in `bank`.
pub fn winner_bytes(search: &Search, bank: Bank, queries: usize) -> usize {
    splits(queries, bank.count, query_tile(search)).0 * queries * Number::Key.bytes()
}

/// The prototype nearest to each of `count` queries, [Q, D].
///
/// # Panics
/// If a region is of another size, or there are no queries or prototypes.
pub fn nearest(
    search: Search,
    bank: Bank,
    count: usize,
    queries: Region,
    found: Found,
) -> [Launch; 2] {
    assert!(count * bank.count * bank.dims > 0, "{count} queries in {bank:?}");
    let tile = query_tile(&search);
    let (split_count, split) = splits(count, bank.count, tile);
    let Found { winners, nearest, distances } = found;
    let winners = Arg::Memory(winners.holding(split_count * count, Number::Key, "winners"));
    let rows = bank.rows.holding(bank.count * bank.dims, Number::F32, "the bank");
    let queries = queries.holding(count * bank.dims, Number::F32, "queries");
    let (entry, dims, mut args) = match search {
        Search::F32 => ("search_f32", bank.dims, vec![Arg::Memory(queries), Arg::Memory(rows)]),
        Search::Bf16 { codes, norms2, queries } => {
            let dims = code_dims(bank.dims);
            let args = vec![
                Arg::Memory(queries.holding(count * dims, Number::Bf16, "codes of queries")),
                Arg::Memory(codes.holding(bank.count * dims, Number::Bf16, "codes of the bank")),
                Arg::Memory(norms2.holding(bank.count, Number::F32, "norms of the bank")),
            ];
            ("search_bf16", dims, args)
        }
    };
    args.extend([
        winners.clone(),
        Arg::int(count),
        Arg::int(bank.count),
        Arg::int(dims),
        Arg::int(split),
    ]);
    [
        Launch {
            module: MODULE,
            entry,
            grid: [blocks(count.div_ceil(tile)), blocks(split_count), 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            args,
        },
        Launch {
            module: MODULE,
            entry: "measure_winners",
            grid: [blocks(count.div_ceil(MEASURERS)), 1, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            args: vec![
                winners,
                Arg::int(split_count),
                Arg::Memory(queries),
                Arg::Memory(rows),
                Arg::int(count),
                Arg::int(bank.dims),
                Arg::Memory(nearest.holding(count, Number::I32, "indices of the nearest")),
                Arg::Memory(distances.holding(count, Number::F32, "distances")),
            ],
        },
    ]
}

/// Pictures whose patches have been looked up.
#[derive(Clone, Copy, Debug)]
pub struct Patches {
    /// B
    pub images: usize,
    /// P
    pub patches: usize,
    /// [B·P, D]
    pub rows: Region,
    /// [B·P], of [`Found`].
    pub nearest: Region,
    /// [B·P], of [`Found`].
    pub distances: Region,
}

/// `scores` `[B]`: the distance of each picture's worst patch, re-weighted by those to the `around`
/// prototypes nearest to its nearest; `neighbours` [N, around], u32, itself first. NaN where a
/// distance is.
///
/// # Panics
/// If a region is of another size, or `around` is 0 or above 32.
pub fn image_score(
    bank: Bank,
    patches: Patches,
    neighbours: Region,
    around: usize,
    scores: Region,
) -> Launch {
    let Patches { images, patches, rows, nearest, distances } = patches;
    assert!(images * patches > 0, "{images} pictures of {patches} patches");
    assert!((1..=MOST_NEIGHBOURS).contains(&around), "{around} prototypes around the nearest");
    let count = images * patches;
    Launch {
        module: MODULE,
        entry: "image_score",
        grid: [blocks(images), 1, 1],
        block: [SCORERS, 1, 1],
        shared_bytes: 0,
        args: vec![
            Arg::Memory(rows.holding(count * bank.dims, Number::F32, "patch features")),
            Arg::Memory(distances.holding(count, Number::F32, "distances")),
            Arg::Memory(nearest.holding(count, Number::I32, "indices of the nearest")),
            Arg::Memory(bank.rows.holding(bank.count * bank.dims, Number::F32, "the bank")),
            Arg::Memory(neighbours.holding(bank.count * around, Number::I32, "neighbours")),
            Arg::int(patches),
            Arg::int(bank.dims),
            Arg::int(around),
            Arg::Memory(scores.holding(images, Number::F32, "scores")),
        ],
    }
}

/// Where [`ranked`] puts what it finds, nearest first, equal ones by their index.
#[derive(Clone, Copy, Debug)]
pub struct Ranked {
    /// Work space of [`ranked_bytes`].
    pub candidates: Region,
    /// `[k]` rows of the bank, u32.
    pub indices: Region,
    /// `[k]`, f32, squared.
    pub distances2: Region,
}

/// Bytes of [`Ranked::candidates`] for the `k` nearest.
pub fn ranked_bytes(bank: Bank, k: usize) -> usize {
    bank.count.div_ceil(RANKED_TOGETHER) * k * Number::Key.bytes()
}

/// The `k` ≤ [`MOST_RANKED`] prototypes nearest to `row` `[D]`.
///
/// # Panics
/// If a region is of another size, or `k` is 0, too large or more than there are prototypes.
pub fn ranked(bank: Bank, row: Region, k: usize, found: Ranked) -> [Launch; 2] {
    assert!((1..=MOST_RANKED.min(bank.count)).contains(&k), "{k} of {} prototypes", bank.count);
    let groups = bank.count.div_ceil(RANKED_TOGETHER);
    let candidates = found.candidates.holding(groups * k, Number::Key, "candidates");
    let launch = |entry, groups, args| Launch {
        module: MODULE,
        entry,
        grid: [blocks(groups), 1, 1],
        block: [THREADS, 1, 1],
        shared_bytes: 0,
        args,
    };
    [
        launch(
            "rank_some",
            groups,
            vec![
                Arg::Memory(row.holding(bank.dims, Number::F32, "a row")),
                Arg::Memory(bank.rows.holding(bank.count * bank.dims, Number::F32, "the bank")),
                Arg::int(bank.count),
                Arg::int(bank.dims),
                Arg::int(k),
                Arg::Memory(candidates),
            ],
        ),
        launch(
            "rank_all",
            1,
            vec![
                Arg::Memory(candidates),
                Arg::int(groups * k),
                Arg::int(k),
                Arg::Memory(found.indices.holding(k, Number::I32, "indices")),
                Arg::Memory(found.distances2.holding(k, Number::F32, "distances")),
            ],
        ),
    ]
}
