//! Winograd's F(4×4, 3×3): a 3×3 convolution of stride 1 with a quarter of the multiplications
//! (Winograd 1980; Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks").
//!
//! 6 × 6 places of the input, in steps of 4, are transformed (Bᵀ d B), 36 matrix products over the
//! channels give 36 numbers a tile and output channel, and these are transformed (Aᵀ m A) into 4 × 4
//! places of the output. The polynomial is taken at 0, ±3/4, ±3/2 and ∞, which leaves a third of the
//! rounding error of the textbook's 0, ±1, ±2, ∞ at the same cost (measured in f32 against f64 at 64
//! to 256 channels). A dilated kernel is one undilated kernel on each of d × d phases of the input.
//! Letters: T tiles, C channels in, O channels out.

use super::conv::{Geometry, Stage, check, pack_bias};
use super::feature_map::{Buffer, FeatureMap, Frozen, Shape, Shared};
use super::gemm::{Rows, multiply, panels};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;
use points::transformed;
pub(super) use points::{KernelPoints, Points};

mod points;

/// Places of a transformed tile.
pub(super) const SPOTS: usize = 36;

/// Tiles that a thread works on at once, where weights come from memory each time: T tiles do T/2
/// floating-point operations for each byte of the weights, so that with 48 a core of 285 GFLOP/s reads
/// 12 GB/s, half of what it could, and two are not slowed down by each other. More bring nothing.
const TILES: usize = 48;

/// Where the weights stay in the caches: with fewer tiles their matrices stay near the core.
const FEW_TILES: usize = 24;

/// Bytes of weights that stay in the caches from a block of tiles to the next.
const CACHED: usize = 4 << 20;

/// Tiles at once at least where threads share few tiles.
const LEAST_TILES: usize = 16;

/// Numbers between the 36 matrices beyond what they need, so that they do not fall on the same lines
/// of the cache.
pub(super) const SKEW: usize = LANES;

/// A convolution with its weights transformed.
pub struct Winograd {
    plan: Plan,
    weights: Frozen,
    bias: Frozen,
}

/// A convolution apart from its weights, which a run is given.
pub(super) struct Plan {
    isa: Isa,
    geometry: Geometry,
    input: Shape,
    threads: usize,
    /// Upper left place of each tile of a picture.
    tiles: Vec<(u16, u16)>,
    /// Tiles at once.
    block: usize,
}

impl Winograd {
    /// `weights` `[O, C, 3, 3]`, `bias` `[O]`.
    ///
    /// # Panics
    /// If the geometry is not 3×3, stride 1, padded to keep the size.
    pub fn new(
        isa: Isa,
        geometry: Geometry,
        weights: &[f32],
        bias: &[f32],
        input: Shape,
        threads: usize,
    ) -> Self {
        assert_eq!(weights.len(), geometry.weights(), "{geometry:?}");
        let plan = Plan::new(isa, geometry, input, threads);
        let weights = isa.run(Pack { geometry, weights });
        Self { plan, weights, bias: pack_bias(bias, geometry.c_out) }
    }

    /// Tiles of a picture.
    pub fn tiles(input: Shape, dilation: usize) -> usize {
        let along = |side: usize| -> usize {
            (0..dilation.min(side)).map(|phase| (side - phase).div_ceil(4 * dilation)).sum()
        };
        along(input.height) * along(input.width)
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Numbers of scratch memory that a run needs.
    pub fn scratch_len(&self) -> usize {
        self.plan.scratch_len()
    }

    /// y = stage(conv(x)); see [`super::conv::Conv::run`].
    pub fn run(
        &self,
        team: &Team,
        x: FeatureMap<'_>,
        y: FeatureMap<'_>,
        stage: Stage<'_>,
        scratch: &Buffer,
    ) {
        assert!(scratch.len() >= self.scratch_len(), "scratch of {} numbers", scratch.len());
        let held = [Some(x), Some(y), stage.residual].into_iter().flatten();
        assert!(!{ held }.any(|map| map.is_in(scratch)), "scratch memory holds a map");
        let (weights, bias) = (self.weights.as_ptr(), self.bias.as_ptr());
        // SAFETY: packed for this geometry; the scratch memory is large enough and apart.
        unsafe { self.plan.run(team, (weights, bias), x, y, stage, scratch.as_ptr()) };
    }
}

impl Plan {
    /// # Panics
    /// As [`Winograd::new`].
    pub fn new(isa: Isa, geometry: Geometry, input: Shape, threads: usize) -> Self {
        let Geometry { kernel, stride, padding, dilation, .. } = geometry;
        assert!(kernel == 3 && stride == 1 && padding == dilation && dilation > 0, "{geometry:?}");
        let tiles = tiles(input, dilation);
        let total = tiles.len() * input.images;
        let most = if packed_len(geometry) * size_of::<f32>() > CACHED { TILES } else { FEW_TILES };
        // Blocks of one size, the last not a small rest.
        let block = total.div_ceil(total.div_ceil(most));
        Self { isa, geometry, input, threads, tiles, block }
    }

    fn channels_in(&self) -> usize {
        self.input.blocks() * LANES
    }

    fn channels_out(&self) -> usize {
        self.geometry.c_out.div_ceil(LANES) * LANES
    }

    fn total(&self) -> usize {
        self.tiles.len() * self.input.images
    }

    /// Whether the threads share out the channels of all tiles, there being too few tiles.
    fn together(&self, threads: usize) -> bool {
        threads > 1 && self.total() < 2 * LEAST_TILES
    }

    /// Tiles that a thread takes at once where `threads` share them.
    fn block_for(&self, threads: usize) -> usize {
        if self.together(threads) {
            return self.total();
        }
        if threads == 1 {
            return self.block;
        }
        // At least two turns a thread where tiles allow it, and as many for each, so that none waits
        // long for the others.
        let even = self.total().div_ceil(2 * threads).max(LEAST_TILES);
        let turns = self.total().div_ceil(self.block.min(even)).next_multiple_of(threads);
        self.total().div_ceil(turns)
    }

    /// Numbers of the transformed input and of the products of `tiles` tiles.
    fn matrices(&self, tiles: usize) -> (usize, usize) {
        let of = |channels: usize| SPOTS * (tiles * channels + SKEW);
        (of(self.channels_in()), of(self.channels_out()))
    }

    /// Numbers of scratch memory that a run needs.
    pub fn scratch_len(&self) -> usize {
        let (v, m) = self.matrices(self.block_for(self.threads));
        (v + m) * if self.together(self.threads) { 1 } else { self.threads }
    }

    /// y = stage(conv(x)).
    ///
    /// # Safety
    /// `weights` are packed as [`Pack`] does it for this geometry, the bias has whole blocks, and
    /// `scratch` is memory of `scratch_len` numbers; none of it overlaps a map.
    pub unsafe fn run(
        &self,
        team: &Team,
        (weights, bias): (*const f32, *const f32),
        x: FeatureMap<'_>,
        y: FeatureMap<'_>,
        stage: Stage<'_>,
        scratch: *mut f32,
    ) {
        check(&self.geometry, self.input, x, y, stage);
        assert_eq!(team.threads(), self.threads, "made for another team");
        let block = self.block_for(self.threads);
        let (v_len, m_len) = self.matrices(block);
        let (all, blocks_in, blocks_out) =
            (self.total(), self.input.blocks(), self.channels_out() / LANES);
        let work = Shared((x, y, stage, scratch, weights, bias));
        let piece = |slot: usize, tiles: (usize, usize)| {
            let (x, y, stage, scratch, weights, bias) = work.get();
            // SAFETY: slot < threads, for which scratch_len counts.
            let v = unsafe { scratch.add(slot * (v_len + m_len)) };
            // SAFETY: the products follow the transformed input.
            let m = unsafe { v.add(v_len) };
            Piece {
                conv: self,
                weights,
                bias,
                x,
                y,
                stage,
                tiles,
                v,
                v_spot: block * self.channels_in() + SKEW,
                m,
                m_spot: block * self.channels_out() + SKEW,
            }
        };
        if self.together(self.threads) {
            // Two shares a thread, so that one that is held up leaves the other its second.
            let shares = 2 * self.threads;
            let share = |i: usize, of: usize| (of * i / shares, of * (i + 1) / shares);
            let each = |part: &(dyn Fn(usize) -> Part + Sync)| {
                team.chunks(shares, 1, |_, from, to| {
                    for i in from..to {
                        self.isa.run(Work { piece: piece(0, (0, all)), part: part(i) });
                    }
                });
            };
            // Each share has channels, spots and channels of its own to write, and reads what the
            // round before wrote.
            each(&|i| Part::Input(share(i, blocks_in)));
            each(&|i| Part::Products(share(i, SPOTS)));
            each(&|i| Part::Output(share(i, blocks_out)));
        } else {
            team.chunks(all, block, |thread, from, to| {
                self.isa.run(Work { piece: piece(thread, (from, to)), part: Part::All });
            });
        }
    }
}

/// Numbers of the transformed weights.
pub(super) fn packed_len(geometry: Geometry) -> usize {
    let whole = |channels: usize| channels.div_ceil(LANES) * LANES;
    SPOTS * (whole(geometry.c_in) * whole(geometry.c_out) + SKEW)
}

/// Upper left places of the tiles of one picture.
pub(super) fn tiles(input: Shape, dilation: usize) -> Vec<(u16, u16)> {
    let starts = |side: usize| -> Vec<u16> {
        let phases = 0..dilation.min(side);
        phases.flat_map(|phase| (phase..side).step_by(4 * dilation)).map(|at| at as u16).collect()
    };
    assert!(input.height < 1 << 16 && input.width < 1 << 16, "{input:?}");
    let (rows, columns) = (starts(input.height), starts(input.width));
    rows.iter().flat_map(|&y| columns.iter().map(move |&x| (y, x))).collect()
}

/// Some tiles with the memory that they are worked on in.
#[derive(Clone, Copy)]
struct Piece<'a> {
    conv: &'a Plan,
    weights: *const f32, // [36][panels][C][16 · blocks of the panel]
    bias: *const f32,
    x: FeatureMap<'a>,
    y: FeatureMap<'a>,
    stage: Stage<'a>,
    /// First tile and the one behind the last, counted over all pictures.
    tiles: (usize, usize),
    v: *mut f32, // [36] matrices [T, C]
    v_spot: usize,
    m: *mut f32, // [36] matrices [T, O]
    m_spot: usize,
}

#[derive(Clone, Copy)]
enum Part {
    All,
    /// Blocks of channels.
    Input((usize, usize)),
    /// Of the 36 matrices.
    Products((usize, usize)),
    /// Blocks of channels.
    Output((usize, usize)),
}

struct Work<'a> {
    piece: Piece<'a>,
    part: Part,
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let piece = &self.piece;
        let (blocks_in, blocks_out) = (piece.x.shape().blocks(), piece.conv.channels_out() / LANES);
        match self.part {
            Part::All => {
                piece.input(s, 0, blocks_in);
                piece.products(s, 0, SPOTS);
                piece.output(s, 0, blocks_out);
            }
            Part::Input((from, to)) => piece.input(s, from, to),
            Part::Products((from, to)) => piece.products(s, from, to),
            Part::Output((from, to)) => piece.output(s, from, to),
        }
    }
}

impl Piece<'_> {
    /// Picture and place of tile `t`.
    #[inline(always)]
    fn tile(&self, t: usize) -> (usize, usize, usize) {
        let per_image = self.conv.tiles.len();
        let (y, x) = self.conv.tiles[t % per_image];
        (t / per_image, usize::from(y), usize::from(x))
    }

    #[inline(always)]
    fn input<S: Simd>(&self, s: S, from: usize, to: usize) {
        let points = Points::new(s);
        let Shape { height, width, .. } = self.x.shape();
        let (row, blocks) = (self.x.shape().row(), self.conv.input.blocks());
        let rows = Rows::new(s, self.tiles.1 - self.tiles.0);
        let d = self.conv.geometry.dilation;
        for block in from..to {
            for t in self.tiles.0..self.tiles.1 {
                let (image, y0, x0) = self.tile(t);
                let origin = self.x.place(image, block, -1, -1).cast_const();
                let spot = rows.place(t - self.tiles.0, block, blocks);
                // SAFETY: the corner of a plane of the shape; row t of each matrix, within v.
                unsafe {
                    let to = self.v.add(spot);
                    input_tile(
                        s,
                        &points,
                        (origin, row),
                        (height, width),
                        (y0, x0),
                        d,
                        to,
                        self.v_spot,
                    );
                }
            }
        }
    }

    #[inline(always)]
    fn products<S: Simd>(&self, s: S, from: usize, to: usize) {
        let (c, o) = (self.conv.channels_in(), self.conv.channels_out());
        let rows = Rows::new(s, self.tiles.1 - self.tiles.0);
        for spot in from..to {
            for (first, panel) in panels(o / LANES, S::PANEL) {
                // SAFETY: matrix `spot` of each, and the panel that starts at output block `first`;
                // `Pack` laid them so.
                unsafe {
                    let (v, m) = (self.v.add(spot * self.v_spot), self.m.add(spot * self.m_spot));
                    let u = self.weights.add(spot * (o * c + SKEW) + first * LANES * c);
                    multiply(s, rows, (c / LANES, o / LANES), (first, panel), v, m, u);
                }
            }
        }
    }

    #[inline(always)]
    fn output<S: Simd>(&self, s: S, from: usize, to: usize) {
        let points = Points::new(s);
        let Shape { height, width, .. } = self.y.shape();
        let (row, blocks) = (self.y.shape().row(), self.conv.channels_out() / LANES);
        let rows = Rows::new(s, self.tiles.1 - self.tiles.0);
        let (d, floor) = (self.conv.geometry.dilation, self.stage.floor(s));
        for block in from..to {
            for t in self.tiles.0..self.tiles.1 {
                let (image, y0, x0) = self.tile(t);
                let spot = rows.place(t - self.tiles.0, block, blocks);
                let mut columns = [[s.zero(); 6]; 4];
                for j in 0..6 {
                    let mut m_j = [s.zero(); 6];
                    for (i, value) in m_j.iter_mut().enumerate() {
                        // SAFETY: row t of matrix 6i + j, within m.
                        *value = unsafe { s.load(self.m.add((i * 6 + j) * self.m_spot + spot)) };
                    }
                    let column = points.output(s, m_j);
                    for i in 0..4 {
                        columns[i][j] = column[i];
                    }
                }
                // SAFETY: the bias has as many whole blocks as y.
                let bias = unsafe { s.load(self.bias.add(block * LANES)) };
                let origin = self.y.place(image, block, 0, 0);
                let residual = self.stage.residual.map(|map| map.place(image, block, 0, 0));
                for (i, column) in columns.into_iter().enumerate() {
                    let y = y0 + i * d;
                    if y >= height {
                        break;
                    }
                    for (j, value) in points.output(s, column).into_iter().enumerate() {
                        let x = x0 + j * d;
                        if x >= width {
                            break;
                        }
                        let at = y * row + x * LANES;
                        let mut value = s.add(value, bias);
                        if let Some(residual) = residual {
                            // SAFETY: place (y, x) of a map of the same shape.
                            value = s.add(value, unsafe { s.load(residual.add(at)) });
                        }
                        // SAFETY: place (y, x), which is in this tile and in no other.
                        unsafe { s.store(origin.add(at), s.max(floor, value)) };
                    }
                }
            }
        }
    }
}

/// Bᵀ d B of the tile at (y0, x0), written as 36 values `spot` numbers apart.
///
/// # Safety
/// `origin` is the corner of the border of a plane of `height` × `width` with `row` numbers from row
/// to row, and `to` can take what is written.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "of a plane, a tile and a matrix")]
pub(super) unsafe fn input_tile<S: Simd>(
    s: S,
    points: &Points<S::F>,
    (origin, row): (*const f32, usize),
    (height, width): (usize, usize),
    (y0, x0): (usize, usize),
    d: usize,
    to: *mut f32,
    spot: usize,
) {
    let inside = d == 1 && y0 + 4 <= height && x0 + 4 <= width;
    let mut columns = [[s.zero(); 6]; 6];
    for j in 0..6 {
        let mut d_j = [s.zero(); 6];
        if inside {
            for (i, value) in d_j.iter_mut().enumerate() {
                // SAFETY: rows y0 − 1 to y0 + 4 and columns likewise lie in the plane with its border.
                *value = unsafe { s.load(origin.add((y0 + i) * row + (x0 + j) * LANES)) };
            }
        } else {
            // Counted from the border's corner, which is one place out.
            let at_x = (x0 + j * d + 1).wrapping_sub(d);
            for (i, value) in d_j.iter_mut().enumerate() {
                let at_y = (y0 + i * d + 1).wrapping_sub(d);
                if at_y < height + 2 && at_x < width + 2 {
                    // SAFETY: in the plane with its border, as just checked.
                    *value = unsafe { s.load(origin.add(at_y * row + at_x * LANES)) };
                }
            }
        }
        let column = points.input(s, d_j);
        for i in 0..6 {
            columns[i][j] = column[i];
        }
    }
    for (i, column) in columns.into_iter().enumerate() {
        let line = points.input(s, column);
        for (j, value) in line.into_iter().enumerate() {
            // SAFETY: value 6i + j.
            unsafe { s.store(to.add((i * 6 + j) * spot), value) };
        }
    }
}

/// G g Gᵀ of every kernel, in f64, laid out as panels.
struct Pack<'a> {
    geometry: Geometry,
    weights: &'a [f32],
}

impl Kernel for Pack<'_> {
    type Output = Frozen;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Frozen {
        pack(self.geometry, self.weights, S::PANEL)
    }
}

fn pack(geometry: Geometry, weights: &[f32], panel: usize) -> Frozen {
    let Geometry { c_in, c_out, .. } = geometry;
    let (c, o) = (c_in.div_ceil(LANES) * LANES, c_out.div_ceil(LANES) * LANES);
    let mut packed = Buffer::zeroed(packed_len(geometry));
    let out = packed.as_mut_slice();
    for (first, blocks) in panels(o / LANES, panel) {
        let width = blocks * LANES;
        for lane in 0..width {
            let k = first * LANES + lane;
            if k >= c_out {
                break;
            }
            for i in 0..c_in {
                let kernel = &weights[(k * c_in + i) * 9..][..9];
                for (spot, value) in transformed(kernel).into_iter().enumerate() {
                    out[spot * (o * c + SKEW) + first * LANES * c + i * width + lane] =
                        value as f32;
                }
            }
        }
    }
    packed.into()
}

#[cfg(test)]
mod tests {
    use super::super::conv::Conv;
    use super::super::conv::tests::check_kernel;
    use super::*;

    #[test]
    fn equals_the_definition_on_ragged_shapes() {
        struct Case(usize, usize, usize, usize, usize, usize);
        let cases = [
            // images, c_in, c_out, height, width, dilation
            Case(1, 16, 16, 4, 4, 1),
            Case(2, 20, 33, 7, 9, 1),
            Case(1, 48, 80, 16, 12, 1),
            Case(3, 16, 16, 1, 1, 1),
            Case(1, 32, 16, 31, 5, 1),
            Case(1, 16, 32, 13, 15, 2),
            Case(2, 16, 16, 8, 8, 6),
            Case(1, 64, 64, 33, 33, 1),
        ];
        for Case(images, c_in, c_out, height, width, dilation) in cases {
            let geometry =
                Geometry { c_in, c_out, kernel: 3, stride: 1, padding: dilation, dilation };
            let input = Shape::new(images, c_in, height, width);
            assert_eq!(tiles(input, dilation).len(), Winograd::tiles(input, dilation));
            check_kernel(geometry, input, |isa, weights, bias, threads| {
                Conv::Winograd(Winograd::new(isa, geometry, weights, bias, input, threads))
            });
        }
    }

    #[test]
    fn nan_is_not_hidden_by_relu() {
        let geometry =
            Geometry { c_in: 16, c_out: 16, kernel: 3, stride: 1, padding: 1, dilation: 1 };
        let shape = Shape::new(1, 16, 4, 4);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let conv = Winograd::new(isa, geometry, &[0.1; 16 * 144], &[0.0; 16], shape, 1);
            let (x, y) = (Buffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
            x.map(shape, 0).set(0, 3, 1, 1, f32::NAN);
            let stage = Stage { residual: None, relu: true };
            let scratch = Buffer::zeroed(conv.scratch_len());
            conv.run(&Team::alone(), x.map(shape, 0), y.map(shape, 0), stage, &scratch);
            assert!(y.map(shape, 0).get(0, 5, 1, 1).is_nan());
        }
    }

    #[test]
    #[should_panic(expected = "scratch memory holds a map")]
    fn scratch_memory_with_a_map_in_it_is_refused() {
        let shape = Shape::new(1, 16, 4, 4);
        let geometry =
            Geometry { c_in: 16, c_out: 16, kernel: 3, stride: 1, padding: 1, dilation: 1 };
        let (weights, bias) = (vec![0.0; geometry.weights()], [0.0; 16]);
        let conv = Winograd::new(Isa::Portable, geometry, &weights, &bias, shape, 1);
        let x = Buffer::zeroed(shape.len());
        let scratch = Buffer::zeroed(conv.scratch_len() + shape.len());
        let y = scratch.map(shape, 0);
        conv.run(&Team::alone(), x.map(shape, 0), y, Stage::default(), &scratch);
    }
}
