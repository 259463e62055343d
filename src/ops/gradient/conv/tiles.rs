//! The gradient of a 3×3 kernel of stride 1 by Winograd's F(4×4, 3×3): what [`winograd`] does,
//! transposed. y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A for each tile, so dg = Gᵀ[Σ (A dy Aᵀ) ⊙ (Bᵀ d B)]G: 36
//! products of matrices over the tiles, a quarter of the multiplications.
//! Letters: T tiles, C channels in, O channels out.
//!
//! [`winograd`]: crate::ops::winograd

use super::outer::{Places, add_products, panel, size};
use super::weights::write_turned;
use crate::ops::conv::Geometry;
use crate::ops::feature_map::{FeatureMap, Shape, Shared};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;
use crate::ops::winograd::{KernelPoints, Points, SPOTS, input_tile, tiles};

/// Tiles at once, at least and at most: with more, the sums are read and written less often, with
/// fewer the transformed maps are smaller.
const TILES: (usize, usize) = (LEAST_TILES, 512);
const LEAST_TILES: usize = 128;

/// Tiles of a block of channels that are transformed by one thread at a time.
const TRANSFORMED: usize = 32;

/// Numbers between the 36 matrices beyond what they need, so that they do not fall on the same lines
/// of the cache.
const SKEW: usize = LANES;

/// Parts that the tiles are cut into at most, where the sums are small: each thread then makes and
/// multiplies its own, in memory near its core, and waits for nobody. The number of threads is no part
/// of it, so that the sums are the same with one and with many.
const SHARES: usize = 8;

/// Bytes of sums that are small.
const SMALL_SUMS: usize = 3 << 20;

/// For one group.
pub(super) struct Tiles {
    isa: Isa,
    geometry: Geometry,
    /// Upper left place of each tile of a picture.
    tiles: Vec<(u16, u16)>,
    images: usize,
    /// Tiles at once.
    block: usize,
    /// Up to [`SHARES`], or one that all threads work on.
    shares: usize,
    threads: usize,
}

impl Tiles {
    pub fn new(isa: Isa, geometry: Geometry, input: Shape, threads: usize) -> Self {
        let Geometry { c_in, c_out, kernel, stride, padding, dilation } = geometry;
        assert!(kernel == 3 && stride == 1 && padding == dilation && dilation > 0, "{geometry:?}");
        let tiles = tiles(input, dilation);
        let total = tiles.len() * input.images;
        // As many numbers of transformed maps as of sums.
        let even = (c_in * c_out / (c_in + c_out)).clamp(TILES.0, TILES.1);
        let sums = SPOTS * c_in * c_out * size_of::<f32>();
        let most = if sums <= SMALL_SUMS { SHARES } else { 1 };
        let shares = (total / LEAST_TILES).clamp(1, most);
        let most = total.div_ceil(shares);
        let block = most.div_ceil(most.div_ceil(even));
        Self { isa, geometry, tiles, images: input.images, block, shares, threads }
    }

    fn blocks(&self) -> (usize, usize) {
        (self.geometry.c_in.div_ceil(LANES), self.geometry.c_out.div_ceil(LANES))
    }

    /// Numbers of one of the 36 matrices of x, of dy and of sums.
    fn spots(&self) -> [usize; 3] {
        let (c, o) = self.blocks();
        [self.block * c, self.block * o, c * LANES * o].map(|rows| rows * LANES + SKEW)
    }

    pub fn scratch_len(&self) -> usize {
        let [x, dy, sums] = self.spots();
        let at_once = if self.shares > 1 { self.threads } else { 1 };
        SPOTS * ((x + dy) * at_once + sums * self.shares)
    }

    /// # Safety
    /// x and dy have the shapes of this convolution; `dw` can take its weights and `scratch`
    /// `scratch_len` numbers, apart from all else.
    pub unsafe fn run(
        &self,
        team: &Team,
        x: FeatureMap<'_>,
        dy: FeatureMap<'_>,
        dw: *mut f32,
        scratch: *mut f32,
    ) {
        let [x_spot, dy_spot, sum_spot] = self.spots();
        let (c, o) = self.blocks();
        let total = self.tiles.len() * self.images;
        let at_once = if self.shares > 1 { self.threads } else { 1 };
        assert!(team.threads() <= self.threads, "made for {} threads", self.threads);
        let maps = SPOTS * (x_spot + dy_spot);
        let sums = scratch.wrapping_add(at_once * maps);
        let shared = Shared((x, dy, scratch, sums, dw));
        // For tiles `first`.. of share `share`, in the transformed maps of `thread`.
        let work = |(thread, share): (usize, usize), tiles: (usize, usize), begin, part: Part| {
            let (x, dy, scratch, sums, dw) = shared.get();
            let v = scratch.wrapping_add(thread * maps);
            let d = v.wrapping_add(SPOTS * x_spot);
            let sums = sums.wrapping_add(share * SPOTS * sum_spot);
            let spots = (x_spot, dy_spot, sum_spot);
            Work { of: self, x, dy, v, d, sums, dw, spots, tiles, begin, part }
        };
        if self.shares > 1 {
            team.chunks(self.shares, 1, |thread, from, to| {
                for share in from..to {
                    let at = |share: usize| total * share / self.shares;
                    let (begin, end) = (at(share), at(share + 1));
                    for first in (begin..end).step_by(self.block) {
                        let tiles = (first, self.block.min(end - first));
                        let run = |part| {
                            self.isa.run(work((thread, share), tiles, first == begin, part));
                        };
                        (0..c + o).for_each(|block| {
                            run(Part::Transform { block, tiles: (0, tiles.1) });
                        });
                        (0..SPOTS).for_each(|spot| run(Part::Products { spot, blocks: (0, c) }));
                    }
                }
            });
        }
        let together = if self.shares > 1 { 0 } else { total };
        for first in (0..together).step_by(self.block) {
            let count = self.block.min(total - first);
            let (alone, begin) = ((0, 0), first == 0);
            let shares = count.div_ceil(TRANSFORMED);
            team.chunks((c + o) * shares, 1, |_, from, to| {
                for piece in from..to {
                    let (block, share) = (piece / shares, piece % shares);
                    let tiles = (count * share / shares, count * (share + 1) / shares);
                    self.isa.run(work(
                        alone,
                        (first, count),
                        begin,
                        Part::Transform { block, tiles },
                    ));
                }
            });
            // A spot's channels in two halves where there are enough, so that no thread waits long.
            let halves = c.min(2);
            team.chunks(SPOTS * halves, 1, |_, from, to| {
                for piece in from..to {
                    let (spot, half) = (piece / halves, piece % halves);
                    let blocks = (c * half / halves, c * (half + 1) / halves);
                    self.isa.run(work(
                        alone,
                        (first, count),
                        begin,
                        Part::Products { spot, blocks },
                    ));
                }
            });
        }
        team.chunks(c * o, 1, |_, from, to| {
            self.isa.run(work((0, 0), (0, 0), false, Part::Kernels { pieces: (from, to) }));
        });
    }
}

#[derive(Clone, Copy)]
enum Part {
    /// Of a block of x, or behind those of dy, tiles counted from the first of this round.
    Transform {
        block: usize,
        tiles: (usize, usize),
    },
    Products {
        spot: usize,
        blocks: (usize, usize),
    },
    /// A block of channels in of a block of channels out.
    Kernels {
        pieces: (usize, usize),
    },
}

struct Work<'a> {
    of: &'a Tiles,
    x: FeatureMap<'a>,
    dy: FeatureMap<'a>,
    v: *mut f32,    // [36] matrices [C / 16][T][16]
    d: *mut f32,    // [36] matrices [O / 16][T][16]
    sums: *mut f32, // [36] matrices [panels][C][16 · blocks of the panel]
    dw: *mut f32,
    spots: (usize, usize, usize),
    /// First of this round, counted over all pictures, and how many.
    tiles: (usize, usize),
    /// The sums begin with this round.
    begin: bool,
    part: Part,
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.part {
            Part::Transform { block, tiles } => {
                let c = self.of.blocks().0;
                if block < c {
                    self.input(s, block, tiles);
                } else {
                    self.output(s, block - c, tiles);
                }
            }
            Part::Products { spot, blocks } => self.products(s, spot, blocks),
            Part::Kernels { pieces } => self.kernels(s, pieces),
        }
    }
}

impl Work<'_> {
    /// Picture and place of tile `t` of this round.
    #[inline(always)]
    fn tile(&self, t: usize) -> (usize, usize, usize) {
        let (t, per_image) = (self.tiles.0 + t, self.of.tiles.len());
        let (y, x) = self.of.tiles[t % per_image];
        (t / per_image, usize::from(y), usize::from(x))
    }

    /// Bᵀ d B.
    #[inline(always)]
    fn input<S: Simd>(&self, s: S, block: usize, (from, to): (usize, usize)) {
        let points = Points::new(s);
        let Shape { height, width, .. } = self.x.shape();
        let (row, d) = (self.x.shape().row(), self.of.geometry.dilation);
        for t in from..to {
            let (image, y, x) = self.tile(t);
            let origin = (self.x.place(image, block, -1, -1).cast_const(), row);
            // SAFETY: the corner of a plane of this shape; row t of each matrix.
            unsafe {
                let to = self.v.add((block * self.tiles.1 + t) * LANES);
                input_tile(s, &points, origin, (height, width), (y, x), d, to, self.spots.0);
            }
        }
    }

    /// A dy Aᵀ.
    #[inline(always)]
    fn output<S: Simd>(&self, s: S, block: usize, (from, to): (usize, usize)) {
        let points = Points::new(s);
        let Shape { height, width, .. } = self.dy.shape();
        let (row, d) = (self.dy.shape().row(), self.of.geometry.dilation);
        for t in from..to {
            let (image, y0, x0) = self.tile(t);
            let origin = self.dy.place(image, block, 0, 0).cast_const();
            let mut columns = [[s.zero(); 4]; 6];
            for j in 0..4 {
                let mut column = [s.zero(); 4];
                for (i, value) in column.iter_mut().enumerate() {
                    let (y, x) = (y0 + i * d, x0 + j * d);
                    if y < height && x < width {
                        // SAFETY: place (y, x).
                        *value = unsafe { s.load(origin.add(y * row + x * LANES)) };
                    }
                }
                let column = points.output_gradient(s, column);
                for i in 0..6 {
                    columns[i][j] = column[i];
                }
            }
            let to = self.d.wrapping_add((block * self.tiles.1 + t) * LANES);
            for (i, column) in columns.into_iter().enumerate() {
                let line = points.output_gradient(s, column);
                for (j, value) in line.into_iter().enumerate() {
                    // SAFETY: row t of matrix 6i + j, within d.
                    unsafe { s.store(to.add((i * 6 + j) * self.spots.1), value) };
                }
            }
        }
    }

    #[inline(always)]
    fn products<S: Simd>(&self, s: S, spot: usize, depth: (usize, usize)) {
        let ((c, o), count) = (self.of.blocks(), self.tiles.1);
        let (numbers, most) = size::<S>();
        for i in 0..o.div_ceil(most) {
            let (first, blocks) = panel(i, o, most);
            for block in depth.0..depth.1 {
                for lane in (0..LANES).step_by(numbers) {
                    let row = first * c * LANES + (block * LANES + lane) * blocks;
                    // SAFETY: these blocks of matrix `spot` of each; the rows of the panel's sums are
                    // of this piece alone.
                    unsafe {
                        let places = Places {
                            x: self.v.add(spot * self.spots.0 + block * count * LANES + lane),
                            x_step: LANES,
                            x_row: 0,
                            x_image: 0,
                            ahead: count * LANES,
                            dy: self.d.add(spot * self.spots.1 + first * count * LANES),
                            dy_block: count * LANES,
                            dy_row: 0,
                            dy_image: 0,
                            images: 1,
                            rows: 1,
                            columns: count,
                        };
                        let sums = self.sums.add(spot * self.spots.2 + row * LANES);
                        add_products(s, (numbers, blocks), places, sums, self.begin);
                    }
                }
            }
        }
    }

    /// Gᵀ m G, turned into dw.
    #[inline(always)]
    fn kernels<S: Simd>(&self, s: S, (from, to): (usize, usize)) {
        let points = KernelPoints::new(s);
        let (c, o) = self.of.blocks();
        let Geometry { c_in, c_out, .. } = self.of.geometry;
        let most = size::<S>().1;
        let panels = o.div_ceil(most);
        for piece in from..to {
            let (output, input) = (piece / c, piece % c);
            let at = (0..panels).map(|i| panel(i, o, most)).find(|at| output < at.0 + at.1);
            let (first, blocks) = at.expect("panels hold all blocks");
            let mut turned = [0.0; 9 * LANES * LANES]; // [3][3][16 inputs][16 outputs]
            for lane in 0..LANES {
                let row = first * c * LANES + (input * LANES + lane) * blocks + output - first;
                let share = SPOTS * self.spots.2;
                let mut half = [[s.zero(); 6]; 3];
                for j in 0..6 {
                    let mut column = [s.zero(); 6];
                    for (i, value) in column.iter_mut().enumerate() {
                        let at = (i * 6 + j) * self.spots.2 + row * LANES;
                        // SAFETY: a row of the panel's sums, in each of the 36 matrices of each share.
                        unsafe {
                            *value = s.load(self.sums.add(at));
                            for other in 1..self.of.shares {
                                *value = s.add(*value, s.load(self.sums.add(other * share + at)));
                            }
                        }
                    }
                    let column = points.kernel_gradient(s, column);
                    for i in 0..3 {
                        half[i][j] = column[i];
                    }
                }
                for (i, row) in half.into_iter().enumerate() {
                    for (j, value) in points.kernel_gradient(s, row).into_iter().enumerate() {
                        let at = ((i * 3 + j) * LANES + lane) * LANES;
                        turned[at..at + LANES].copy_from_slice(&s.to_array(value));
                    }
                }
            }
            let (channels, lanes) =
                (LANES.min(c_in - input * LANES), LANES.min(c_out - output * LANES));
            // SAFETY: the rows of dw are of this piece alone.
            unsafe {
                let to = self.dw.add((output * LANES * c_in + input * LANES) * 9);
                write_turned(turned.as_ptr(), LANES, (9, channels, lanes), to, c_in * 9);
            }
        }
    }
}
