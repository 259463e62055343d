//! Attention between patches ([`crate::ops::patch_attention`] is the twin) in three launches: QKᵀ,
//! the softmax of its rows, and the mixture of v.
//! Letters: B pictures, C channels, N tokens of p × p places, D = C·p² numbers of one.

use super::{Arg, Launch, Module, Number, Region};

pub const MODULE: Module =
    Module { name: "patch_attention", ptx: include_str!("../../kernels/ptx/patch_attention.ptx") };

const THREADS: u32 = 64;
const SOFTMAX_THREADS: u32 = 128;
/// Side of what a block makes.
const TILE: usize = 32;
/// A slice of D is a multiple of it.
const STEP: usize = 16;
/// Blocks that keep a card busy: two for each of an H100's 132 processors.
const BLOCKS: usize = 264;
/// Steps of a slice, at least.
const LEAST_STEPS: usize = 8;

/// Sizes of one such operation.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub images: usize,
    /// Of q and k.
    pub channels: usize,
    /// Of v and the result.
    pub value_channels: usize,
    pub height: usize,
    pub width: usize,
    pub patch: usize,
}

impl Sizes {
    /// N
    ///
    /// # Panics
    /// If the patch does not divide the sides.
    pub fn tokens(&self) -> usize {
        let Self { height, width, patch, .. } = *self;
        let fits = height.is_multiple_of(patch) && width.is_multiple_of(patch);
        assert!(fits, "patches of {patch} in {height} × {width} places");
        height / patch * (width / patch)
    }

    fn depth(&self) -> usize {
        self.channels * self.patch * self.patch
    }

    /// Numbers of a token that a block of the scores sums over.
    fn slice(&self) -> usize {
        let steps = self.depth().div_ceil(STEP);
        let blocks = self.tokens().div_ceil(TILE).pow(2) * self.images;
        let slices = BLOCKS.div_ceil(blocks).min(steps.div_ceil(LEAST_STEPS)).max(1);
        steps.div_ceil(slices) * STEP
    }

    fn slices(&self) -> usize {
        self.depth().div_ceil(self.slice())
    }

    /// Bytes of the scores in between, [S, B, N, N].
    pub fn score_bytes(&self) -> usize {
        4 * self.slices() * self.images * self.tokens() * self.tokens()
    }
}

/// q, k [B, C, H, W] and v [B, Cv, H, W] → y [B, Cv, H, W]; `scores` is of
/// [`Sizes::score_bytes`], `scale` is what logits are multiplied by.
///
/// # Panics
/// If a region is of another size, or a size is 0.
pub fn patch_attention(
    sizes: &Sizes,
    [q, k, v]: [Region; 3],
    scale: f32,
    scores: Region,
    y: Region,
) -> [Launch; 3] {
    let Sizes { images, channels, value_channels, height, width, patch } = *sizes;
    let (tokens, slices) = (sizes.tokens(), sizes.slices());
    let (asked, given) =
        (images * channels * height * width, images * value_channels * height * width);
    assert_eq!(scores.bytes, sizes.score_bytes(), "bytes of scores");
    let score = || Arg::Memory(scores);
    let map = |region: Region, count| Arg::Memory(region.holding(count, Number::F32, "a map"));
    let sides = [height, width, patch].map(Arg::int);
    let tiles = tokens.div_ceil(TILE);
    let mut asking = vec![map(q, asked), map(k, asked), score(), Arg::int(channels)];
    asking.extend(sides.clone());
    asking.push(Arg::int(sizes.slice()));
    let softmax = vec![score(), Arg::int(slices), Arg::int(tokens), Arg::F32(scale)];
    let mut mixing = vec![score(), map(v, given), map(y, given), Arg::int(value_channels)];
    mixing.extend(sides);
    let columns = (value_channels * patch * patch).div_ceil(TILE);
    [
        Launch::of(MODULE, "patch_scores", [tiles * tiles, slices, images], THREADS, asking),
        Launch::of(MODULE, "patch_softmax", [tokens, images, 1], SOFTMAX_THREADS, softmax),
        Launch::of(MODULE, "patch_mix", [columns, tiles, images], THREADS, mixing),
    ]
}
