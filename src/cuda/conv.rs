//! Convolutions in f32 with bias, a sum and a ReLU behind ([`crate::ops::conv`] is the twin).
//! Letters: B pictures, C channels, O channels out, G groups, P places out, D = C/G · kernel² depth
//! of a sum.

use super::{Arg, Fields, Launch, Module, Number, Region};

pub const MODULE: Module = Module { name: "conv", ptx: include_str!("../../kernels/ptx/conv.ptx") };

/// Channels, and places, of what a block makes.
const TILE: usize = 64;
/// Of the depth, from tile to tile.
const STEP: usize = 16;
const THREADS: u32 = 128;
const PLACE_THREADS: u32 = 256;
/// Blocks that keep a card busy: two for each of an H100's 132 processors.
const BLOCKS: usize = 264;
/// Steps of a part of the depth, at least: fewer would not pay for the second pass.
const LEAST_STEPS: usize = 8;
/// Parts of a depth: what the second pass reads grows with them.
const MOST_PARTS: usize = 16;
/// Bytes of the kernel's struct.
const CONV_BYTES: usize = 104;
/// A row that no map has: what a tap behind the depth's end looks at.
const NO_ROW: i32 = 1 << 14;

/// One convolution of maps of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    pub images: usize,
    pub c_in: usize,
    pub height: usize,
    pub width: usize,
    pub c_out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub dilation: usize,
    pub groups: usize,
}

/// What is learned, and what follows from the shapes, on the card.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// [`Sizes::pack`]
    pub weights: Region,
    /// [`Sizes::taps`]
    pub taps: Region,
    /// f32 `[O]`
    pub bias: Region,
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// [B, O, P], added.
    pub residual: Option<Region>,
    /// Of what is negative then: 1 changes nothing, 0 is a ReLU.
    pub slope: f32,
}

impl Sizes {
    /// Height and width of the result.
    ///
    /// # Panics
    /// If sizes can't be those of a convolution.
    pub fn out(&self) -> (usize, usize) {
        let Self { height, width, kernel, stride, padding, dilation, groups, .. } = *self;
        assert!(kernel * stride * dilation * groups * self.images > 0, "{self:?}");
        assert!(self.c_in.is_multiple_of(groups) && self.c_out.is_multiple_of(groups), "{self:?}");
        let reach = dilation * (kernel - 1) + 1;
        let side = |side: usize| {
            assert!(side + 2 * padding >= reach && side < NO_ROW as usize, "{self:?}");
            (side + 2 * padding - reach) / stride + 1
        };
        (side(height), side(width))
    }

    fn places(&self) -> usize {
        let (height, width) = self.out();
        height * width
    }

    /// One channel in for each group.
    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.c_in
    }

    fn depth(&self) -> usize {
        self.c_in / self.groups * self.kernel * self.kernel
    }

    fn steps(&self) -> usize {
        self.depth().div_ceil(STEP)
    }

    /// Tiles of a group's channels.
    fn tiles(&self) -> usize {
        (self.c_out / self.groups).div_ceil(TILE)
    }

    /// Steps of one part of the depth.
    fn steps_each(&self) -> usize {
        let blocks = (self.images * self.places()).div_ceil(TILE) * self.groups * self.tiles();
        let most = MOST_PARTS.min(self.steps() / LEAST_STEPS).max(1);
        self.steps().div_ceil(BLOCKS.div_ceil(blocks).min(most))
    }

    fn parts(&self) -> usize {
        self.steps().div_ceil(self.steps_each())
    }

    /// Bytes of memory in between, 0 where none is needed.
    pub fn part_bytes(&self) -> usize {
        match self.parts() {
            _ if self.is_depthwise() => 0,
            1 => 0,
            parts => 4 * parts * self.images * self.c_out * self.places(),
        }
    }

    /// `weights` [O, C/G, K, K] as the kernel reads them: [G, D, O/G], zeros up to multiples of its
    /// steps and tiles; of depthwise ones as they are.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn pack(&self, weights: &[f32]) -> Vec<f32> {
        let (depth, c_out) = (self.depth(), self.c_out / self.groups);
        assert_eq!(weights.len(), self.c_out * depth, "weights of {self:?}");
        if self.is_depthwise() {
            return weights.to_vec();
        }
        let (rows, row) = (self.steps() * STEP, self.tiles() * TILE);
        let mut packed = vec![0.0; self.groups * rows * row];
        for (o, own) in weights.chunks(depth).enumerate() {
            let (group, o) = (o / c_out, o % c_out);
            let to = &mut packed[group * rows * row + o..];
            for (to, weight) in to.iter_mut().step_by(row).zip(own) {
                *to = *weight;
            }
        }
        packed
    }

    /// For each number of the depth where its value lies: how far from the window's corner in
    /// memory, then row and column.
    pub fn taps(&self) -> Vec<i32> {
        let rows = self.steps() * STEP;
        let mut taps = vec![0; 2 * rows];
        for d in 0..rows {
            if d >= self.depth() {
                taps[rows + d] = NO_ROW << 16;
                continue;
            }
            let (c, place) = (d / self.kernel.pow(2), d % self.kernel.pow(2));
            let (y, x) = (place / self.kernel * self.dilation, place % self.kernel * self.dilation);
            taps[d] = super::int((c * self.height + y) * self.width + x);
            taps[rows + d] = super::int(y << 16 | x);
        }
        taps
    }
}

/// `from` [B, C, H, W] → `to` [B, O, P]; `parts` is of [`Sizes::part_bytes`].
///
/// # Panics
/// If a region is of another size, or sizes can't be those of a convolution.
pub fn convolve(
    sizes: &Sizes,
    numbers: &Numbers,
    from: Region,
    parts: Option<Region>,
    to: Region,
    ending: Ending,
) -> Vec<Launch> {
    let (out_height, out_width) = sizes.out();
    let places = out_height * out_width;
    let count = sizes.images * sizes.c_out * places;
    from.holding(sizes.images * sizes.c_in * sizes.height * sizes.width, Number::F32, "a map");
    to.holding(count, Number::F32, "a convolution's result");
    numbers.bias.holding(sizes.c_out, Number::F32, "a convolution's bias");
    let bytes = parts.map_or(0, |parts| parts.bytes);
    assert_eq!(bytes, sizes.part_bytes(), "bytes of parts of sums");
    let nothing = Region { address: 0, bytes: 0 };
    let residual = ending.residual.map_or(nothing, |residual| {
        residual.holding(count, Number::F32, "what a convolution adds")
    });
    let fields = |to: Region, residual: Region, steps_each: usize| {
        Fields::default()
            .memory(from)
            .memory(numbers.weights)
            .memory(numbers.taps)
            .memory(numbers.bias)
            .memory(residual)
            .memory(to)
            .int(sizes.images)
            .int(sizes.c_in)
            .int(sizes.height)
            .int(sizes.width)
            .int(sizes.c_out)
            .int(out_height)
            .int(out_width)
            .int(sizes.groups)
            .int(sizes.depth())
            .int(sizes.stride)
            .int(sizes.padding)
            .int(steps_each)
            .f32(ending.slope)
            .arg(CONV_BYTES)
    };
    if sizes.is_depthwise() {
        numbers.weights.holding(sizes.c_out * sizes.depth(), Number::F32, "depthwise weights");
        let args = vec![fields(to, residual, 0), Arg::int(sizes.kernel), Arg::int(sizes.dilation)];
        let grid = [places.div_ceil(PLACE_THREADS as usize), sizes.c_out, sizes.images];
        return vec![Launch::of(MODULE, "depthwise", grid, PLACE_THREADS, args)];
    }
    let rows = sizes.steps() * STEP;
    let packed = sizes.groups * rows * sizes.tiles() * TILE;
    numbers.weights.holding(packed, Number::F32, "packed weights");
    numbers.taps.holding(2 * rows, Number::I32, "taps");
    let is_point = sizes.kernel == 1
        && sizes.stride == 1
        && sizes.padding == 0
        && places.is_multiple_of(4)
        && from.address.is_multiple_of(16);
    let entry = if is_point { "convolve_point" } else { "convolve_window" };
    let grid =
        [(sizes.images * places).div_ceil(TILE), sizes.groups * sizes.tiles(), sizes.parts()];
    let first = fields(parts.unwrap_or(to), residual, sizes.steps_each());
    let mut launches = vec![Launch::of(MODULE, entry, grid, THREADS, vec![first])];
    if let Some(parts) = parts {
        let args = vec![
            Arg::Memory(parts),
            Arg::Memory(numbers.bias),
            Arg::Memory(residual),
            Arg::Memory(to),
            Arg::int(sizes.parts()),
            Arg::int(count),
            Arg::int(sizes.c_out),
            Arg::int(places),
            Arg::F32(ending.slope),
        ];
        let grid = [count.div_ceil(PLACE_THREADS as usize), 1, 1];
        launches.push(Launch::of(MODULE, "finish_sums", grid, PLACE_THREADS, args));
    }
    launches
}
