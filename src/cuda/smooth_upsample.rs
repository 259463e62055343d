//! From the distances of places to an anomaly map: each level resized and smoothed, and the levels
//! added or multiplied, in one launch ([`crate::ops::smooth_upsample`] and [`crate::ops::gaussian`] are
//! the twins). Letters: B pictures, h × w places of a level, H × W the map.

use super::{Arg, Fields, Launch, Module, Number, Region, blocks};
use crate::ops::gaussian::Gaussian;
use crate::ops::interpolate::{Align, bilinear_planes};

pub const MODULE: Module =
    Module { name: "smooth_upsample", ptx: include_str!("../../kernels/ptx/smooth_upsample.ptx") };

/// As many as a launch takes.
pub const MOST_LEVELS: usize = 4;

/// Columns and rows of the map that a block makes.
const COLUMNS: usize = 128;
const ROWS: usize = 4;
/// Of a level in the kernel's struct.
const LEVEL_BYTES: usize = 56;
/// Shared memory that every card gives a block without being asked.
const MOST_SHARED: usize = 48 * 1024;

/// What becomes of the levels' maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    Added,
    Multiplied,
}

/// The way of a level to the map: weights of its rows and columns, made once.
#[derive(Clone, Debug)]
pub struct SmoothUpsample {
    from: (usize, usize),
    to: (usize, usize),
    rows: Band,
    columns: Band,
}

/// A matrix [to, from] that is 0 but for `taps` places of a row.
#[derive(Clone, Debug)]
struct Band {
    taps: usize,
    starts: Vec<usize>, // [to]
    weights: Vec<f32>,  // [to, taps]
}

/// A level's maps and the table of its [`SmoothUpsample`].
#[derive(Clone, Copy, Debug)]
pub struct Level<'a> {
    pub way: &'a SmoothUpsample,
    /// What [`SmoothUpsample::table`] gave, uploaded.
    pub table: Region,
    /// [B, h, w]
    pub from: Region,
}

impl SmoothUpsample {
    /// From `from` = (h, w) to `to` = (H, W), pixel centres aligned, then smoothed with `sigma` places
    /// of the map; 0 smooths nothing.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn new(from: (usize, usize), to: (usize, usize), sigma: f32) -> Self {
        Self::made_by(from, to, |one, to| {
            let mut line = resized(one, to, Align::HalfPixel);
            Gaussian::new(sigma).blur(&mut line, to);
            line
        })
    }

    /// Smoothed with `sigma` places of the level, then brought to `to`, pixel centres aligned.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn smooth_first(from: (usize, usize), to: (usize, usize), sigma: f32) -> Self {
        Self::made_by(from, to, |mut one, to| {
            let width = one.len();
            Gaussian::new(sigma).blur(&mut one, width);
            resized(one, to, Align::HalfPixel)
        })
    }

    /// Not smoothed.
    ///
    /// # Panics
    /// If a side is 0.
    pub fn resize(from: (usize, usize), to: (usize, usize), align: Align) -> Self {
        Self::made_by(from, to, |one, to| resized(one, to, align))
    }

    fn made_by(
        from: (usize, usize),
        to: (usize, usize),
        line: impl Fn(Vec<f32>, usize) -> Vec<f32>,
    ) -> Self {
        let rows = Band::new(from.0, to.0, |one| line(one, to.0));
        let columns = Band::new(from.1, to.1, |one| line(one, to.1));
        Self { from, to, rows, columns }
    }

    /// The same, its map times `weight`.
    pub fn weighted(mut self, weight: f32) -> Self {
        self.rows.weights.iter_mut().for_each(|own| *own *= weight);
        self
    }

    /// What a launch reads: rows' starts and weights, then those of the columns, the latter as
    /// [taps, W].
    pub fn table(&self) -> Vec<u8> {
        let Self { rows, columns, .. } = self;
        let starts = |band: &Band| -> Vec<u8> {
            band.starts.iter().flat_map(|start| super::int(*start).to_le_bytes()).collect()
        };
        let turned = (0..columns.taps)
            .flat_map(|k| columns.weights.iter().skip(k).step_by(columns.taps))
            .flat_map(|weight| weight.to_le_bytes());
        let weights = rows.weights.iter().flat_map(|weight| weight.to_le_bytes());
        starts(rows).into_iter().chain(weights).chain(starts(columns)).chain(turned).collect()
    }

    /// Bytes of [`SmoothUpsample::table`].
    pub fn table_bytes(&self) -> usize {
        (self.rows.starts.len() + self.rows.weights.len()) * 4
            + (self.columns.starts.len() + self.columns.weights.len()) * 4
    }

    /// The most columns of the level that a block looks at.
    fn span(&self) -> usize {
        let Band { starts, taps, .. } = &self.columns;
        let span = |block: &[usize]| block[block.len() - 1] + taps - block[0];
        starts.chunks(COLUMNS).map(span).max().unwrap_or(0)
    }
}

/// One line at another length.
fn resized(line: Vec<f32>, to: usize, align: Align) -> Vec<f32> {
    bilinear_planes(&line, (1, line.len()), (1, to), align)
}

impl Band {
    /// From what each of the `from` places alone becomes.
    fn new(from: usize, to: usize, line: impl Fn(Vec<f32>) -> Vec<f32>) -> Self {
        assert!(from * to > 0, "from {from} places to {to}");
        let columns: Vec<Vec<f32>> = (0..from)
            .map(|i| {
                let mut one = vec![0.0; from];
                one[i] = 1.0;
                line(one)
            })
            .collect();
        // Where a row begins and ends to be other than 0.
        let ends: Vec<(usize, usize)> = (0..to)
            .map(|y| {
                let is_there = |column: &Vec<f32>| column[y] != 0.0;
                let first = columns.iter().position(is_there).unwrap_or(0);
                (first, columns.iter().rposition(is_there).unwrap_or(first) + 1)
            })
            .collect();
        let taps = ends.iter().map(|(first, end)| end - first).max().unwrap_or(1);
        let starts: Vec<usize> = ends.iter().map(|(first, _)| (*first).min(from - taps)).collect();
        let weights = starts
            .iter()
            .enumerate()
            .flat_map(|(y, start)| {
                columns[*start..start + taps].iter().map(move |column| column[y])
            })
            .collect();
        Self { taps, starts, weights }
    }
}

/// The map [B, H, W] of all levels.
///
/// # Panics
/// If a region or the map of a level is of another size, there is no level or too many, or a block
/// would look at more columns of a level than it has room for.
pub fn fuse_levels(fused: Fused, images: usize, levels: &[Level<'_>], map: Region) -> Launch {
    assert!((1..=MOST_LEVELS).contains(&levels.len()), "a map of {} levels", levels.len());
    let (height, width) = levels[0].way.to;
    let map = map.holding(images * height * width, Number::F32, "the map");
    let mut fields = Fields::default();
    for Level { way, table, from } in levels {
        let SmoothUpsample { from: (h, w), to, rows, columns } = way;
        assert_eq!(*to, (height, width), "the map of a level");
        assert_eq!(table.bytes, way.table_bytes(), "bytes of the table of a level");
        let mut before = 0;
        let mut part = |numbers: usize| {
            before += 4 * numbers;
            table.part(before - 4 * numbers, 4 * numbers)
        };
        fields = fields
            .memory(from.holding(images * h * w, Number::F32, "a level"))
            .memory(part(height))
            .memory(part(rows.weights.len()))
            .memory(part(width))
            .memory(part(columns.weights.len()))
            .int(*h)
            .int(*w)
            .int(rows.taps)
            .int(columns.taps);
    }
    let span = levels.iter().map(|level| level.way.span()).max().unwrap_or(0);
    let shared = ROWS * span * 4;
    assert!(shared <= MOST_SHARED, "{span} columns of a level for {COLUMNS} of the map");
    Launch {
        module: MODULE,
        entry: "fuse_levels",
        grid: [blocks(width.div_ceil(COLUMNS)), blocks(height.div_ceil(ROWS)), blocks(images)],
        block: [blocks(COLUMNS), 1, 1],
        shared_bytes: blocks(shared),
        args: vec![
            fields.arg(MOST_LEVELS * LEVEL_BYTES),
            Arg::int(levels.len()),
            Arg::I32((fused == Fused::Multiplied).into()),
            Arg::Memory(map),
            Arg::int(height),
            Arg::int(width),
        ],
    }
}
