//! Convolution tap by tap, for every kernel, stride, padding and dilation: what 1×1 and strided
//! convolutions take, and 3×3 ones for which [`super::winograd`] does not pay. The sums of a few
//! places and some blocks of outputs stay in registers over all taps and channels.
//! Letters: C channels in, O channels out, K kernel width.

use super::conv::{Geometry, Stage, check, pack_bias};
use super::feature_map::{Buffer, FeatureMap, Frozen, Shape, Shared};
use super::gemm::panels;
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Pieces of work a thread at least, so that none waits long for another.
const PIECES: usize = 4;

/// Bytes of a panel's weights that are summed over at once: they stay in the core's cache (of 1 MiB)
/// while the rows of a group pass by, whose sums so far wait in the output.
const DEPTH_BYTES: usize = 192 << 10;

/// Bytes of the input's rows that a group reads: they stay there as well, for the next panel.
const GROUP_BYTES: usize = 512 << 10;

/// A convolution with its weights packed.
pub struct DirectConv {
    plan: Plan,
    weights: Frozen,
    bias: Frozen,
}

/// A convolution apart from its weights, which a run is given.
pub(super) struct Plan {
    isa: Isa,
    geometry: Geometry,
    input: Shape,
    /// Blocks of a panel of the weights.
    panel: usize,
}

impl DirectConv {
    /// `weights` `[O, C, K, K]`, `bias` `[O]`.
    pub fn new(isa: Isa, geometry: Geometry, weights: &[f32], bias: &[f32], input: Shape) -> Self {
        assert_eq!(weights.len(), geometry.weights(), "{geometry:?}");
        let plan = Plan::new(isa, geometry, input);
        let weights = pack(geometry, weights, plan.panel);
        let bias = pack_bias(bias, geometry.c_out);
        Self { plan, weights, bias }
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// y = stage(conv(x)); see [`super::conv::Conv::run`].
    pub fn run(&self, team: &Team, x: FeatureMap<'_>, y: FeatureMap<'_>, stage: Stage<'_>) {
        let (weights, bias) = (self.weights.as_ptr(), self.bias.as_ptr());
        // SAFETY: packed for this geometry.
        unsafe { self.plan.run(team, (weights, bias), x, y, stage) };
    }
}

impl Plan {
    pub fn new(isa: Isa, geometry: Geometry, input: Shape) -> Self {
        assert!(geometry.stride > 0 && geometry.dilation > 0 && geometry.kernel > 0);
        Self { isa, geometry, input, panel: isa.run(Panel) }
    }

    /// y = stage(conv(x)).
    ///
    /// # Safety
    /// `weights` are packed as [`pack`] does it for this geometry and panel, the bias has whole
    /// blocks, and neither overlaps y.
    pub unsafe fn run(
        &self,
        team: &Team,
        (weights, bias): (*const f32, *const f32),
        x: FeatureMap<'_>,
        y: FeatureMap<'_>,
        stage: Stage<'_>,
    ) {
        check(&self.geometry, self.input, x, y, stage);
        let out = y.shape();
        let panels = out.blocks().div_ceil(self.panel);
        let group = self.group(out, team.threads(), panels);
        let pieces = out.images * out.height.div_ceil(group) * panels;
        // Panels of one group follow each other, so that its rows stay in the cache.
        let chunk = if team.threads() == 1 { pieces } else { 1 };
        let work = Shared((x, y, stage, weights, bias));
        team.chunks(pieces, chunk, |_, from, to| {
            let (x, y, stage, weights, bias) = work.get();
            let pieces = (from, to);
            self.isa.run(Work { conv: self, weights, bias, x, y, stage, group, pieces });
        });
    }

    /// Rows of the output that go through a panel together.
    fn group(&self, out: Shape, threads: usize, panels: usize) -> usize {
        let Geometry { kernel, stride, dilation, .. } = self.geometry;
        let row = self.input.blocks() * self.input.row() * size_of::<f32>();
        let reach = dilation * (kernel - 1);
        let fits = (GROUP_BYTES / row).saturating_sub(reach) / stride;
        let least = if threads == 1 { 1 } else { PIECES * threads };
        let even = out.images * out.height * panels / least;
        let group = fits.min(even).clamp(1, out.height);
        // Groups of one size, the last not a small rest.
        out.height.div_ceil(out.height.div_ceil(group))
    }
}

/// How many blocks a panel has.
pub(super) struct Panel;

impl Kernel for Panel {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::CONV_PANEL
    }
}

struct Work<'a> {
    conv: &'a Plan,
    weights: *const f32, // [panels][C / 16][K][K][16][16 · blocks of the panel]
    bias: *const f32,
    x: FeatureMap<'a>,
    y: FeatureMap<'a>,
    stage: Stage<'a>,
    /// Rows of a group.
    group: usize,
    /// Of a group's rows in a panel, counted over pictures, groups and panels.
    pieces: (usize, usize),
}

/// Taps from the first to the one behind the last, vertically and horizontally.
#[derive(Clone, Copy)]
struct Taps {
    y: (usize, usize),
    x: (usize, usize),
}

/// Some places of a row, and what is needed to compute them.
#[derive(Clone, Copy)]
struct Places {
    /// The place that tap (0, 0) of the first output place falls on, which may lie outside.
    from: *const f32,
    /// Numbers between the input places of neighbouring output places.
    step: usize,
    x_row: usize,
    x_plane: usize,
    dilation: usize,
    kernel: usize,
    /// Blocks of the input that are summed over.
    blocks: (usize, usize),
    weights: *const f32,
    /// What the sums begin with: the bias and the residual, or else what is in the output.
    begin: Option<*const f32>,
    residual: Option<(*const f32, usize)>,
    to: *mut f32,
    y_plane: usize,
    taps: Taps,
    /// What is fetched of the weights that come next, and how many lines of 16 with each tap and block.
    next: *const f32,
    next_lines: usize,
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (input, out) = (self.x.shape(), self.y.shape());
        let Geometry { kernel, stride, padding, dilation, .. } = self.conv.geometry;
        let panels = out.blocks().div_ceil(S::CONV_PANEL);
        let groups = out.height.div_ceil(self.group);
        let per_block = kernel * kernel * LANES * LANES;
        // Output columns all of whose taps fall into the picture or its border of one place.
        let inside = inside(out.width, input.width, kernel, stride, padding, dilation);
        for piece in self.pieces.0..self.pieces.1 {
            let (image, group, panel) =
                (piece / (panels * groups), piece / panels % groups, piece % panels);
            let first = panel * S::CONV_PANEL;
            let blocks = S::CONV_PANEL.min(out.blocks() - first);
            let rows = group * self.group..((group + 1) * self.group).min(out.height);
            let origin = self.x.place(image, 0, -1, -1).cast_const();
            let depth = (DEPTH_BYTES / (per_block * blocks * size_of::<f32>())).max(1);
            let depth = input.blocks().div_ceil(input.blocks().div_ceil(depth));
            for from in (0..input.blocks()).step_by(depth) {
                let to = (from + depth).min(input.blocks());
                let floor = if to == input.blocks() {
                    self.stage.floor(s)
                } else {
                    s.splat(f32::NEG_INFINITY)
                };
                // SAFETY: the panel whose first output block is `first`.
                let weights = unsafe { self.weights.add(first * input.blocks() * per_block) };
                // The weights that come next, shared out among the pieces of the rows.
                let across = out.width.div_ceil(S::CONV_ROWS);
                let next_lines = (blocks * LANES).div_ceil(rows.len() * across);
                let next_len = (to - from) * kernel * kernel * next_lines * LANES;
                let mut next = weights.wrapping_add(to * per_block * blocks);
                for oy in rows.clone() {
                    let top = (oy * stride) as isize - padding as isize;
                    let mut places = Places {
                        from: origin,
                        step: stride * LANES,
                        x_row: input.row(),
                        x_plane: self.x.plane_len(),
                        dilation,
                        kernel,
                        blocks: (from, to),
                        weights,
                        // SAFETY: the bias has as many blocks as y.
                        begin: (from == 0).then(|| unsafe { self.bias.add(first * LANES) }),
                        residual: self.stage.residual.map(|map| {
                            (map.place(image, first, oy as isize, 0).cast_const(), map.plane_len())
                        }),
                        to: self.y.place(image, first, oy as isize, 0),
                        y_plane: self.y.plane_len(),
                        taps: Taps { y: taps(top, input.height, kernel, dilation), x: (0, kernel) },
                        next,
                        next_lines,
                    };
                    let mut ox = 0;
                    while ox < out.width {
                        let left_edge = (ox * stride) as isize - padding as isize;
                        // At the edges one place at a time, with the taps that fall into the picture.
                        let (count, taps_x) = if ox < inside.0 || ox >= inside.1 {
                            (1, taps(left_edge, input.width, kernel, dilation))
                        } else {
                            let left = inside.1 - ox;
                            (left.div_ceil(left.div_ceil(S::CONV_ROWS)), (0, kernel))
                        };
                        places.taps.x = taps_x;
                        places.from = origin
                            .wrapping_offset((top + 1) * input.row() as isize)
                            .wrapping_offset((left_edge + 1) * LANES as isize);
                        // SAFETY: the taps named fall into the planes of x with their border for each
                        // of the `count` places from column ox on, which lie in y; a group's rows in
                        // a panel belong to one thread.
                        unsafe { dispatch(s, count, blocks, places, floor) };
                        // SAFETY: still in the row, or just behind its end.
                        unsafe {
                            places.to = places.to.add(count * LANES);
                            if let Some((at, _)) = &mut places.residual {
                                *at = at.add(count * LANES);
                            }
                        }
                        places.next = places.next.wrapping_add(next_len);
                        ox += count;
                    }
                    next = places.next;
                }
            }
        }
    }
}

/// Taps that fall on −1..=side, where tap 0 falls on `first`.
fn taps(first: isize, side: usize, kernel: usize, dilation: usize) -> (usize, usize) {
    let falls = |tap: usize| (-1..=side as isize).contains(&(first + (tap * dilation) as isize));
    let from = (0..kernel).find(|&tap| falls(tap)).unwrap_or(0);
    let to = (from..kernel).find(|&tap| !falls(tap)).unwrap_or(kernel);
    (from, to)
}

/// Outputs from the first to the one behind the last all of whose taps fall on −1..=`side`.
fn inside(
    out: usize,
    side: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
) -> (usize, usize) {
    let from = (padding.max(1) - 1).div_ceil(stride).min(out);
    let reach = dilation * (kernel - 1);
    let to = (side + padding).checked_sub(reach).map_or(0, |last| last / stride + 1);
    (from, to.clamp(from, out))
}

/// # Safety
/// See [`Work::run`].
#[inline(always)]
unsafe fn dispatch<S: Simd>(s: S, count: usize, blocks: usize, at: Places, floor: S::F) {
    macro_rules! sizes {
        ($($blocks:literal: $($count:literal)*;)*) => {
            match (blocks, count) {
                // SAFETY: as the caller promises.
                $($(($blocks, $count) if $blocks <= S::CONV_PANEL && $count <= S::CONV_ROWS => unsafe {
                    places::<S, $blocks, $count>(s, at, floor)
                },)*)*
                _ => unreachable!("{count} places of {blocks} blocks"),
            }
        };
    }
    sizes!(
        1: 1 2 3 4 5 6;
        2: 1 2 3 4 5 6;
        3: 1 2 3 4 5 6;
        4: 1 2 3 4 5 6;
    );
}

/// R places of P output blocks.
///
/// # Safety
/// See [`Work::run`].
#[inline(always)]
unsafe fn places<S: Simd, const P: usize, const R: usize>(s: S, at: Places, floor: S::F) {
    let mut sums = [[s.zero(); P]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        for (p, sum) in sums.iter_mut().enumerate() {
            // SAFETY: block p of the panel's bias; place r of block p, in y and in the residual, which
            // has y's shape.
            unsafe {
                *sum = match (at.begin, at.residual) {
                    (None, _) => s.load(at.to.add(p * at.y_plane + r * LANES)),
                    (Some(bias), None) => s.load(bias.add(p * LANES)),
                    (Some(bias), Some((residual, plane))) => s.add(
                        s.load(bias.add(p * LANES)),
                        s.load(residual.add(p * plane + r * LANES)),
                    ),
                };
            }
        }
    }
    let mut next = at.next;
    for block in at.blocks.0..at.blocks.1 {
        for ky in at.taps.y.0..at.taps.y.1 {
            for kx in at.taps.x.0..at.taps.x.1 {
                let tap = (block * at.kernel + ky) * at.kernel + kx;
                let mut weights = at.weights.wrapping_add(tap * LANES * P * LANES);
                let mut from = at.from.wrapping_add(
                    block * at.x_plane + ky * at.dilation * at.x_row + kx * at.dilation * LANES,
                );
                // The places to the right come next: the planes are too many runs of memory for the
                // machine to foresee. Fetching ahead reads nothing.
                for r in R..2 * R {
                    s.prefetch(from.wrapping_add(r * at.step));
                }
                for _ in 0..at.next_lines {
                    s.prefetch(next);
                    next = next.wrapping_add(LANES);
                }
                for _ in 0..LANES {
                    // SAFETY: the tap falls into the plane for each of the R places; its weights are
                    // 16 rows of P blocks.
                    unsafe {
                        let mut own = [s.zero(); P];
                        for (p, own) in own.iter_mut().enumerate() {
                            *own = s.load(weights.add(p * LANES));
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let x = s.splat(*from.add(r * at.step));
                            for p in 0..P {
                                sums[p] = s.mul_add(x, own[p], sums[p]);
                            }
                        }
                    }
                    weights = weights.wrapping_add(P * LANES);
                    from = from.wrapping_add(1);
                }
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (p, sum) in sums.into_iter().enumerate() {
            // SAFETY: place r of block p.
            unsafe { s.store(at.to.add(p * at.y_plane + r * LANES), s.max(floor, sum)) };
        }
    }
}

fn pack(geometry: Geometry, weights: &[f32], panel: usize) -> Frozen {
    let Geometry { c_in, c_out, kernel, .. } = geometry;
    let (blocks_in, taps) = (c_in.div_ceil(LANES), kernel * kernel);
    let blocks_out = c_out.div_ceil(LANES);
    let mut packed = Buffer::zeroed(blocks_out * blocks_in * taps * LANES * LANES);
    let out = packed.as_mut_slice();
    for (first, blocks) in panels(blocks_out, panel) {
        let width = blocks * LANES;
        let start = first * blocks_in * taps * LANES * LANES;
        for k in (first * LANES..(first + blocks) * LANES).take_while(|&k| k < c_out) {
            for c in 0..c_in {
                for tap in 0..taps {
                    let row = (c / LANES * taps + tap) * LANES + c % LANES;
                    out[start + row * width + k - first * LANES] =
                        weights[(k * c_in + c) * taps + tap];
                }
            }
        }
    }
    packed.into()
}

#[cfg(test)]
mod tests {
    use super::super::conv::Conv;
    use super::super::conv::tests::{check_kernel, numbers};
    use super::*;

    #[test]
    fn equals_the_definition_on_ragged_shapes() {
        struct Case(usize, usize, usize, usize, usize, (usize, usize, usize, usize));
        let cases = [
            // images, c_in, c_out, height, width, (kernel, stride, padding, dilation)
            Case(1, 16, 16, 5, 7, (1, 1, 0, 1)),
            Case(2, 20, 33, 9, 13, (1, 2, 0, 1)),
            Case(1, 40, 80, 8, 8, (3, 2, 1, 1)),
            Case(2, 16, 16, 7, 9, (3, 2, 1, 1)),
            Case(1, 16, 16, 1, 1, (3, 1, 1, 1)),
            Case(1, 16, 64, 6, 31, (3, 1, 1, 1)),
            Case(1, 16, 16, 11, 10, (5, 1, 2, 1)),
            Case(1, 16, 17, 12, 9, (5, 4, 2, 1)),
            Case(1, 16, 16, 14, 14, (7, 2, 3, 1)),
            Case(1, 16, 16, 13, 9, (3, 1, 4, 4)),
            Case(1, 16, 16, 9, 9, (3, 1, 0, 2)),
            // more channels than are summed over at once
            Case(1, 140, 70, 3, 5, (5, 1, 2, 1)),
        ];
        for Case(images, c_in, c_out, height, width, (kernel, stride, padding, dilation)) in cases {
            let geometry = Geometry { c_in, c_out, kernel, stride, padding, dilation };
            let input = Shape::new(images, c_in, height, width);
            check_kernel(geometry, input, |isa, weights, bias, _| {
                Conv::Direct(DirectConv::new(isa, geometry, weights, bias, input))
            });
        }
    }

    #[test]
    fn the_output_may_be_the_residual() {
        let geometry =
            Geometry { c_in: 140, c_out: 20, kernel: 5, stride: 1, padding: 2, dilation: 1 };
        let (input, out) = (Shape::new(1, 140, 3, 4), Shape::new(1, 20, 3, 4));
        let (x, w) = (numbers(140 * 12, 1), numbers(geometry.weights(), 2));
        let (from, other, own) =
            (Buffer::zeroed(input.len()), Buffer::zeroed(out.len()), Buffer::zeroed(out.len()));
        from.map(input, 0).write(&x);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let conv = DirectConv::new(isa, geometry, &w, &[0.5; 20], input);
            let residual = numbers(20 * 12, 3);
            own.map(out, 0).write(&residual);
            let rest = Buffer::zeroed(out.len());
            rest.map(out, 0).write(&residual);
            let stage = |map| Stage { residual: Some(map), relu: true };
            let x = from.map(input, 0);
            conv.run(&Team::alone(), x, own.map(out, 0), stage(own.map(out, 0)));
            conv.run(&Team::alone(), x, other.map(out, 0), stage(rest.map(out, 0)));
            assert_eq!(own.map(out, 0).read(), other.map(out, 0).read());
        }
    }

    #[test]
    fn the_columns_without_an_edge_are_found() {
        // every output whose taps all fall on −1..=side, by trying
        for (side, kernel, stride, padding, dilation) in
            [(9, 5, 1, 2, 1), (12, 5, 4, 2, 1), (14, 7, 2, 3, 1), (3, 3, 1, 6, 6), (8, 1, 2, 0, 1)]
        {
            let out = (side + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
            let whole = |o: &usize| {
                let first = (o * stride) as isize - padding as isize;
                taps(first, side, kernel, dilation) == (0, kernel)
            };
            let want: Vec<usize> = (0..out).filter(whole).collect();
            let (from, to) = inside(out, side, kernel, stride, padding, dilation);
            assert_eq!((from..to).collect::<Vec<_>>(), want, "{side} {kernel} {stride}");
        }
    }
}
