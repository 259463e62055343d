//! Pixels in: 8-bit pictures of any size to normalised planes of the network's
//! ([`crate::ops::pixels`] is the twin, whose numbers these are).
//! Letters: B pictures, S samples a pixel, h × w of the picture, H × W of the planes.

use super::{Arg, Fields, Launch, Module, Number, Region, blocks};
use crate::ops::pixels::Weights;

pub const MODULE: Module =
    Module { name: "pixels", ptx: include_str!("../../kernels/ptx/pixels.ptx") };

const THREADS: u32 = 256;
/// Shared memory that every card gives a block without being asked: a row of the picture.
const MOST_SHARED: usize = 48 * 1024;
/// Of a side in the kernel's struct.
const SIDE_BYTES: usize = 32;

/// From pictures of one size to planes of one size, with the weights that this takes.
#[derive(Debug)]
pub struct PixelsIn {
    from: (usize, usize),
    to: (usize, usize),
    depth: usize,
    mean: [f32; 3],
    std: [f32; 3],
    rows: Side,
    columns: Side,
}

/// Weights along one side.
#[derive(Debug)]
struct Side {
    firsts: Vec<usize>, // [to]
    counts: Vec<usize>, // [to]
    weights: Vec<i32>,  // [taps, to]
    bits: i32,
}

impl Side {
    fn new(from: usize, to: usize) -> Self {
        let mut weights = Weights::default();
        weights.fit(from, to);
        let taps = (0..to).map(|i| weights.get(i).1.len()).max().unwrap_or(0);
        let mut side = Self {
            firsts: Vec::with_capacity(to),
            counts: Vec::with_capacity(to),
            weights: vec![0; taps * to],
            bits: weights.bits(),
        };
        for i in 0..to {
            let (first, own) = weights.get(i);
            side.firsts.push(first);
            side.counts.push(own.len());
            for (k, weight) in own.iter().enumerate() {
                side.weights[k * to + i] = *weight;
            }
        }
        side
    }

    fn len(&self) -> usize {
        self.firsts.len() + self.counts.len() + self.weights.len()
    }

    fn table(&self) -> impl Iterator<Item = u8> {
        let places = self.firsts.iter().chain(&self.counts).map(|place| super::int(*place));
        places.chain(self.weights.iter().copied()).flat_map(i32::to_le_bytes)
    }

    /// `table` is this side's.
    fn arg(&self, table: Region) -> Arg {
        let to = self.firsts.len();
        Fields::default()
            .memory(table.part(0, 4 * to))
            .memory(table.part(4 * to, 4 * to))
            .memory(table.part(8 * to, 4 * self.weights.len()))
            .put(&self.bits.to_le_bytes())
            .int(to)
            .arg(SIDE_BYTES)
    }
}

impl PixelsIn {
    /// From (h, w) = `from`, `depth` samples a pixel (1 for grey, 3 for red, green, blue), to (H, W) =
    /// `to`; a level p becomes (p/255 − mean)/std.
    ///
    /// # Panics
    /// If a side is 0, `depth` is neither, or a row has more than 48 KiB.
    pub fn new(
        from: (usize, usize),
        depth: usize,
        to: (usize, usize),
        mean: [f32; 3],
        std: [f32; 3],
    ) -> Self {
        assert!(depth == 1 || depth == 3, "{depth} samples a pixel");
        assert!(from.0 * from.1 * to.0 * to.1 > 0, "from {from:?} pixels to {to:?}");
        assert!(from.1 * depth <= MOST_SHARED, "a row of {} samples", from.1 * depth);
        let (rows, columns) = (Side::new(from.0, to.0), Side::new(from.1, to.1));
        Self { from, to, depth, mean, std, rows, columns }
    }

    /// What a launch reads.
    pub fn table(&self) -> Vec<u8> {
        self.rows.table().chain(self.columns.table()).collect()
    }

    /// Bytes of [`PixelsIn::table`].
    pub fn table_bytes(&self) -> usize {
        4 * (self.rows.len() + self.columns.len())
    }

    /// `pictures` [B, h, w, S] → `planes` [B, 3, H, W]; `table` is [`PixelsIn::table`], uploaded.
    ///
    /// # Panics
    /// If a region is of another size.
    pub fn run(&self, images: usize, table: Region, pictures: Region, planes: Region) -> Launch {
        let Self { from, to, depth, mean, std, rows, columns } = self;
        assert_eq!(table.bytes, self.table_bytes(), "bytes of the table of a resize");
        let samples = images * from.0 * from.1 * depth;
        let [first, second] = [4 * rows.len(), 4 * columns.len()];
        let normal = mean.iter().chain(std).fold(Fields::default(), |fields, x| fields.f32(*x));
        Launch {
            module: MODULE,
            entry: if *depth == 3 { "pixels_rgb" } else { "pixels_grey" },
            grid: [blocks(to.0), blocks(images), 1],
            block: [THREADS, 1, 1],
            shared_bytes: blocks((from.1 * depth).next_multiple_of(16)),
            args: vec![
                Arg::Memory(pictures.holding(samples, Number::U8, "pictures")),
                Arg::int(from.0),
                Arg::int(from.1),
                rows.arg(table.part(0, first)),
                columns.arg(table.part(first, second)),
                normal.arg(24),
                Arg::Memory(planes.holding(images * 3 * to.0 * to.1, Number::F32, "planes")),
            ],
        }
    }
}
