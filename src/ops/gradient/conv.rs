//! A convolution in training: forward and its three gradients, from weights that change with every
//! step and therefore stay the caller's, as `[O, C / groups, K, K]`: what a kernel needs of them is
//! packed into scratch memory on the way.
//!
//! Forward and the input's gradient take the kernels of inference ([`winograd`], [`direct_conv`],
//! [`stem_conv`]), the latter with the weights turned round; that of a strided convolution has its own.
//! The weights' gradient is summed tap by tap, or Winograd's way where that is less work.
//! Letters: B pictures, C channels in, O channels out, K kernel width.
//!
//! [`winograd`]: crate::ops::winograd
//! [`direct_conv`]: crate::ops::direct_conv
//! [`stem_conv`]: crate::ops::stem_conv

use crate::ops::conv::{Conv, Geometry, Stage};
use crate::ops::direct_conv;
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;
use crate::ops::winograd::{self, packed_len};
use pack::Source;
use stem::Stem;
use strided::Strided;
use tiles::Tiles;
use weights::Direct;

mod outer;
mod pack;
mod stem;
mod strided;
#[cfg(test)]
mod tests;
mod tiles;
mod weights;

/// A convolution of inputs of one shape. `geometry` counts the channels of all groups.
pub struct TrainConv {
    isa: Isa,
    geometry: Geometry,
    groups: usize,
    input: Shape,
    threads: usize,
    /// Blocks of a panel of the direct kernel's weights.
    panel: usize,
    forward: Way,
    backward: Option<Way>,
    gradient: WeightGradient,
}

/// The kernel that goes one way, for one group.
enum Way {
    Winograd(winograd::Plan),
    Direct(direct_conv::Plan),
    Strided(Strided),
    Stem(Box<Stem>),
}

enum WeightGradient {
    Tiles(Tiles),
    Direct(Direct),
    /// The stem is in the way forward.
    Stem,
}

impl TrainConv {
    /// # Panics
    /// If there are several groups whose channels, in or out, are no multiple of 16, or the padding
    /// is more than the kernel reaches.
    pub fn new(
        isa: Isa,
        geometry: Geometry,
        groups: usize,
        input: Shape,
        threads: usize,
        needs_input_gradient: bool,
    ) -> Self {
        let Geometry { c_in, c_out, kernel, stride, padding, dilation } = geometry;
        let reach = dilation * (kernel - 1);
        assert!(stride > 0 && dilation > 0 && padding <= reach, "{geometry:?}");
        let whole = |channels: usize| channels.is_multiple_of(groups * LANES);
        assert!(groups == 1 || whole(c_in) && whole(c_out), "{groups} groups of {geometry:?}");
        let own = Geometry { c_in: c_in / groups, c_out: c_out / groups, ..geometry };
        let from = Shape { channels: own.c_in, ..input };
        let out = own.output(from);
        let panel = isa.run(direct_conv::Panel);
        let way = |geometry: Geometry, input: Shape| {
            if Conv::winograd_pays(geometry, input) {
                Way::Winograd(winograd::Plan::new(isa, geometry, input, threads))
            } else {
                Way::Direct(direct_conv::Plan::new(isa, geometry, input))
            }
        };
        let stem = groups == 1 && Stem::takes(geometry);
        let forward = if stem {
            Way::Stem(Box::new(Stem::new(isa, geometry, input, threads)))
        } else {
            way(own, from)
        };
        let backward = needs_input_gradient.then(|| {
            if stride > 1 {
                return Way::Strided(Strided::new(isa, own, from, panel));
            }
            let (c_in, c_out) = (own.c_out, own.c_in);
            way(Geometry { c_in, c_out, padding: reach - padding, ..own }, out)
        });
        let gradient = if stem {
            WeightGradient::Stem
        } else if tiles_pay(own, from) {
            WeightGradient::Tiles(Tiles::new(isa, own, from, threads))
        } else {
            WeightGradient::Direct(Direct::new(isa, geometry, groups, threads))
        };
        Self { isa, geometry, groups, input, threads, panel, forward, backward, gradient }
    }

    /// The input's shape.
    pub fn input(&self) -> Shape {
        self.input
    }

    /// The output's shape.
    pub fn output(&self) -> Shape {
        self.geometry.output(self.input)
    }

    /// Numbers of the weights.
    pub fn weights_len(&self) -> usize {
        self.geometry.weights() / self.groups
    }

    /// The kernels' names: forward, input's gradient, weights' gradient.
    pub fn words(&self) -> [&'static str; 3] {
        let word = |way: &Way| match way {
            Way::Winograd(_) => "winograd",
            Way::Direct(_) => "direct",
            Way::Strided(_) => "strided",
            Way::Stem(_) => "stem",
        };
        let gradient = match self.gradient {
            WeightGradient::Tiles(_) => "winograd",
            WeightGradient::Direct(_) => "direct",
            WeightGradient::Stem => "stem",
        };
        [word(&self.forward), self.backward.as_ref().map_or("none", word), gradient]
    }

    /// Numbers of scratch memory that each of the ways needs.
    pub fn scratch_len(&self) -> usize {
        let ways = [Some(&self.forward), self.backward.as_ref()];
        let way = |way: &Way| {
            let kernel = match way {
                Way::Winograd(plan) => plan.scratch_len(),
                Way::Direct(_) | Way::Strided(_) => 0,
                Way::Stem(stem) => stem.scratch_len(),
            };
            self.bias_len() + self.packed_len(way) + kernel
        };
        let gradient = match (&self.gradient, &self.forward) {
            (WeightGradient::Tiles(tiles), _) => tiles.scratch_len(),
            (WeightGradient::Direct(direct), _) => direct.scratch_len(),
            (WeightGradient::Stem, Way::Stem(stem)) => stem.scratch_len(),
            (WeightGradient::Stem, _) => 0,
        };
        ways.into_iter().flatten().map(way).max().unwrap_or(0).max(gradient)
    }

    /// Numbers of the bias of one group either way, in whole blocks.
    fn bias_len(&self) -> usize {
        let Geometry { c_in, c_out, .. } = self.own();
        c_in.max(c_out).next_multiple_of(LANES)
    }

    fn packed_len(&self, way: &Way) -> usize {
        let own = self.own();
        match way {
            Way::Winograd(_) => packed_len(own),
            Way::Direct(_) | Way::Strided(_) => {
                let blocks = own.c_in.div_ceil(LANES) * own.c_out.div_ceil(LANES);
                blocks * own.kernel * own.kernel * LANES * LANES
            }
            Way::Stem(stem) => stem.packed_len(),
        }
    }

    /// Of one group.
    fn own(&self) -> Geometry {
        let Geometry { c_in, c_out, .. } = self.geometry;
        Geometry { c_in: c_in / self.groups, c_out: c_out / self.groups, ..self.geometry }
    }

    /// The channels of one group of a map.
    fn window<'a>(&self, map: FeatureMap<'a>, group: usize) -> FeatureMap<'a> {
        let channels = map.shape().channels / self.groups;
        map.channels(group * channels, channels)
    }

    fn check(&self, team: &Team, x: FeatureMap<'_>, y: FeatureMap<'_>, scratch: &Buffer) {
        assert_eq!(x.shape(), self.input, "the input of {:?}", self.geometry);
        assert_eq!(y.shape(), self.output(), "the output of {:?}", self.geometry);
        assert_eq!(team.threads(), self.threads, "made for another team");
        assert!(scratch.len() >= self.scratch_len(), "scratch of {} numbers", scratch.len());
        assert!(!x.is_in(scratch) && !y.is_in(scratch), "scratch memory holds a map");
    }

    /// y = conv(x) + bias; `bias` `[O]`.
    ///
    /// # Panics
    /// As all four: if a shape is not what it was made for, what is written overlaps what is read, or
    /// `scratch` is too small.
    pub fn forward(
        &self,
        team: &Team,
        weights: &[f32],
        bias: Option<&[f32]>,
        x: FeatureMap<'_>,
        y: FeatureMap<'_>,
        scratch: &Buffer,
    ) {
        self.check(team, x, y, scratch);
        self.go(team, &self.forward, (weights, false), (bias, Stage::default()), x, y, scratch);
    }

    /// Overwrites dx.
    ///
    /// # Panics
    /// If it was made without.
    pub fn input_gradient(
        &self,
        team: &Team,
        weights: &[f32],
        dy: FeatureMap<'_>,
        dx: FeatureMap<'_>,
        scratch: &Buffer,
    ) {
        self.back(team, weights, dy, dx, Stage::default(), scratch);
    }

    /// Adds to dx, which another user of the input has begun.
    ///
    /// # Panics
    /// If it was made without.
    pub fn add_input_gradient(
        &self,
        team: &Team,
        weights: &[f32],
        dy: FeatureMap<'_>,
        dx: FeatureMap<'_>,
        scratch: &Buffer,
    ) {
        self.back(team, weights, dy, dx, Stage { residual: Some(dx), relu: false }, scratch);
    }

    fn back(
        &self,
        team: &Team,
        weights: &[f32],
        dy: FeatureMap<'_>,
        dx: FeatureMap<'_>,
        stage: Stage<'_>,
        scratch: &Buffer,
    ) {
        self.check(team, dx, dy, scratch);
        let way = self.backward.as_ref().expect("made without the input's gradient");
        self.go(team, way, (weights, true), (None, stage), dy, dx, scratch);
    }

    #[expect(clippy::too_many_arguments, reason = "of both ways")]
    fn go(
        &self,
        team: &Team,
        way: &Way,
        (weights, back): (&[f32], bool),
        (bias, stage): (Option<&[f32]>, Stage<'_>),
        x: FeatureMap<'_>,
        y: FeatureMap<'_>,
        scratch: &Buffer,
    ) {
        assert!(!x.overlaps(&y), "a convolution reads what it overwrites");
        assert_eq!(weights.len(), self.weights_len(), "{:?}", self.geometry);
        let outputs = y.shape().channels;
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "a bias for each channel");
        let (own, outputs) = (self.own(), outputs / self.groups);
        let (own_bias, packed) = (scratch.as_ptr(), scratch.as_ptr().wrapping_add(self.bias_len()));
        let rest = packed.wrapping_add(self.packed_len(way));
        for group in 0..self.groups {
            let weights = &weights[group * own.weights()..][..own.weights()];
            let source = if back {
                Source::backward(own, weights, own.stride == 1)
            } else {
                Source::forward(own, weights)
            };
            let (x, y) = (self.window(x, group), self.window(y, group));
            let residual = stage.residual.map(|map| self.window(map, group));
            let stage = Stage { residual, ..stage };
            // SAFETY: `scratch_len` counts the bias, the packed weights and what the kernel needs;
            // scratch memory holds no map; weights and bias are packed for the kernel that reads them.
            unsafe {
                own_bias.write_bytes(0, self.bias_len());
                if let Some(bias) = bias {
                    let bias = &bias[group * outputs..][..outputs];
                    own_bias.copy_from_nonoverlapping(bias.as_ptr(), outputs);
                }
                let from = (packed.cast_const(), own_bias.cast_const());
                match way {
                    Way::Winograd(plan) => {
                        source.pack_winograd(self.isa, team, packed);
                        plan.run(team, from, x, y, stage, rest);
                    }
                    Way::Direct(plan) => {
                        source.pack_direct(self.isa, team, self.panel, packed);
                        plan.run(team, from, x, y, stage);
                    }
                    Way::Strided(plan) => {
                        source.pack_direct(self.isa, team, self.panel, packed);
                        plan.run(team, packed, x, y, residual.is_some());
                    }
                    Way::Stem(stem) => {
                        let to = std::slice::from_raw_parts_mut(packed, stem.packed_len());
                        stem.pack(weights, to);
                        stem.forward(team, from, x, y, rest);
                    }
                }
            }
        }
    }

    /// Overwrites dw `[O, C / groups, K, K]`.
    pub fn weight_gradient(
        &self,
        team: &Team,
        x: FeatureMap<'_>,
        dy: FeatureMap<'_>,
        dw: &mut [f32],
        scratch: &Buffer,
    ) {
        self.check(team, x, dy, scratch);
        assert_eq!(dw.len(), self.weights_len(), "{:?}", self.geometry);
        let (dw, rest) = (dw.as_mut_ptr(), scratch.as_ptr());
        // SAFETY: the shapes and lengths were checked; a group's weights follow the last one's.
        unsafe {
            match (&self.gradient, &self.forward) {
                (WeightGradient::Tiles(tiles), _) => {
                    for group in 0..self.groups {
                        let dw = dw.add(group * self.own().weights());
                        tiles.run(team, self.window(x, group), self.window(dy, group), dw, rest);
                    }
                }
                (WeightGradient::Direct(direct), _) => direct.run(team, x, dy, dw, rest),
                (WeightGradient::Stem, Way::Stem(stem)) => {
                    stem.weight_gradient(team, x, dy, dw, rest);
                }
                (WeightGradient::Stem, _) => unreachable!("a stem goes forward as one"),
            }
        }
    }

    /// Overwrites db `[O]`: the sums of dy over pictures and places.
    pub fn bias_gradient(&self, team: &Team, dy: FeatureMap<'_>, db: &mut [f32]) {
        assert_eq!(dy.shape(), self.output(), "the output of {:?}", self.geometry);
        bias_gradient(team, self.isa, dy, db);
    }
}

/// Overwrites db `[O]`: the sums of dy [B, O, H, W] over pictures and places.
///
/// # Panics
/// If `db` has another length.
pub(super) fn bias_gradient(team: &Team, isa: Isa, dy: FeatureMap<'_>, db: &mut [f32]) {
    assert_eq!(db.len(), dy.shape().channels, "a bias for each channel");
    let work = Shared((dy, db.as_mut_ptr()));
    team.chunks(dy.shape().blocks(), 1, |_, from, to| {
        let (dy, db) = work.get();
        for block in from..to {
            let sums = isa.run(Sums { dy, block });
            let own = LANES.min(dy.shape().channels - block * LANES);
            // SAFETY: the channels of this block, which is this piece's.
            unsafe { db.add(block * LANES).copy_from_nonoverlapping(sums.as_ptr(), own) };
        }
    });
}

/// Over pictures and places, row by row, so that the sums stay short.
struct Sums<'a> {
    dy: FeatureMap<'a>,
    block: usize,
}

impl Kernel for Sums<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; LANES] {
        let Shape { images, height, width, .. } = self.dy.shape();
        let mut total = s.zero();
        for image in 0..images {
            let mut picture = s.zero();
            for y in 0..height {
                let row = self.dy.place(image, self.block, y as isize, 0).cast_const();
                let mut sum = s.zero();
                for x in 0..width {
                    // SAFETY: place x of the row.
                    sum = s.add(sum, unsafe { s.load(row.add(x * LANES)) });
                }
                picture = s.add(picture, sum);
            }
            total = s.add(total, picture);
        }
        s.to_array(total)
    }
}

/// Multiplications of 16 lanes that the transform of a tile of a block costs, stores and loads among
/// them.
const TRANSFORM: f64 = 200.0;

/// Whether the weights' gradient is less work Winograd's way, counted in products of 16 lanes: tap by
/// tap only what falls into the input is multiplied, while tiles reach beyond its edges.
fn tiles_pay(geometry: Geometry, input: Shape) -> bool {
    let Geometry { kernel, stride, padding, dilation, .. } = geometry;
    if kernel != 3 || stride != 1 || padding != dilation {
        return false;
    }
    let along = |side: usize| (side + 2 * side.saturating_sub(dilation)) as f64;
    let (c, o) = (input.blocks() as f64, geometry.c_out.div_ceil(LANES) as f64);
    let pairs = c * o * LANES as f64;
    let images = input.images as f64;
    let direct = pairs * images * along(input.height) * along(input.width);
    let tiles = winograd::Winograd::tiles(input, dilation) as f64 * images;
    // The sums are written, read and turned once at least.
    tiles * (36.0 * pairs + TRANSFORM * (c + o)) + 4.0 * 36.0 * pairs < direct
}
