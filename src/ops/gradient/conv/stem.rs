//! The first convolution in training: on planes of 3 channels instead of blocks of 16, forward by
//! [`StemConv`] and the gradient of its weights. There is none of the picture.
//! Letters: O channels out, K kernel width.

use super::outer::{Places, add_products, panel, size};
use crate::ops::conv::Geometry;
use crate::ops::feature_map::{FeatureMap, Shape, Shared};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::stem_conv::{Planes, StemConv, pack};
use crate::ops::team::Team;

/// The picture's channels.
pub(super) const CHANNELS: usize = 3;

/// The widest kernel: as many numbers of x as are multiplied at once.
pub(super) const WIDEST: usize = 8;

/// Blocks of dy at once: with 7 numbers of x 14 sums.
const PANEL: usize = 2;

/// Parts that the rows of all pictures are cut into, each with sums of its own: fixed, so that the sums
/// are the same whatever the number of threads.
const SHARES: usize = 16;

pub(super) struct Stem {
    isa: Isa,
    geometry: Geometry,
    planes: Planes,
    input: Shape,
    conv: StemConv,
}

impl Stem {
    /// Whether it is made for this convolution.
    pub fn takes(geometry: Geometry) -> bool {
        geometry.c_in == CHANNELS && geometry.dilation == 1 && geometry.kernel <= WIDEST
    }

    pub fn new(isa: Isa, geometry: Geometry, input: Shape, threads: usize) -> Self {
        let planes = Planes { height: input.height, width: input.width, pad: geometry.padding };
        let (weights, bias) = (vec![0.0; geometry.weights()], vec![0.0; geometry.c_out]);
        let conv = StemConv::new(
            isa,
            geometry,
            &weights,
            &bias,
            planes,
            input.images,
            (false, false),
            threads,
        );
        Self { isa, geometry, planes, input, conv }
    }

    /// Numbers of the packed weights.
    pub fn packed_len(&self) -> usize {
        self.geometry.c_out.div_ceil(LANES) * self.taps() * LANES
    }

    fn taps(&self) -> usize {
        CHANNELS * self.geometry.kernel * self.geometry.kernel
    }

    /// The panel of the forward kernel.
    pub fn pack(&self, weights: &[f32], to: &mut [f32]) {
        assert_eq!(weights.len(), self.geometry.weights(), "{:?}", self.geometry);
        to.fill(0.0);
        pack(self.geometry, weights, self.isa.run(Panel), to);
    }

    /// Of the planes, and for the gradient the sums.
    pub fn scratch_len(&self) -> usize {
        self.planes_len() + SHARES * self.packed_len()
    }

    fn planes_len(&self) -> usize {
        self.planes.len(self.input.images).next_multiple_of(LANES)
    }

    /// The picture's channels in planes.
    ///
    /// # Safety
    /// `to` can take them, and nobody else reads or writes there.
    unsafe fn spread(&self, team: &Team, x: FeatureMap<'_>, to: *mut f32) {
        let Planes { height, pad, .. } = self.planes;
        let (row, rows) = (self.planes.row(), height + 2 * pad);
        let shared = Shared((x, to));
        let total = self.input.images * rows;
        team.chunks(total, total.div_ceil(8 * team.threads()), |_, from, last| {
            let (x, to) = shared.get();
            for i in from..last {
                let (image, y) = (i / rows, (i % rows).wrapping_sub(pad));
                for channel in 0..CHANNELS {
                    let at = (image * CHANNELS + channel) * self.planes.plane() + i % rows * row;
                    // SAFETY: a row of a plane, which is this piece's.
                    let to = unsafe { std::slice::from_raw_parts_mut(to.add(at), row) };
                    if y >= height {
                        to.fill(0.0);
                        continue;
                    }
                    let from = x.place(image, 0, y as isize, 0).cast_const();
                    let (left, rest) = to.split_at_mut(pad);
                    let (own, right) = rest.split_at_mut(self.input.width);
                    left.fill(0.0);
                    right.fill(0.0);
                    for (i, to) in own.iter_mut().enumerate() {
                        // SAFETY: a number of place i of the row.
                        *to = unsafe { *from.add(i * LANES + channel) };
                    }
                }
            }
        });
    }

    /// # Safety
    /// As for the other kernels: `weights` and `bias` are packed, `scratch` has `scratch_len` numbers,
    /// all apart from the maps.
    pub unsafe fn forward(
        &self,
        team: &Team,
        (weights, bias): (*const f32, *const f32),
        x: FeatureMap<'_>,
        y: FeatureMap<'_>,
        scratch: *mut f32,
    ) {
        // SAFETY: as the caller promises; without a maximum no further scratch memory is used.
        unsafe {
            self.spread(team, x, scratch);
            let from = (scratch.cast_const(), weights, bias);
            self.conv.run_on(team, from, y, scratch);
        }
    }

    /// # Safety
    /// As above, and `dw` can take the weights.
    pub unsafe fn weight_gradient(
        &self,
        team: &Team,
        x: FeatureMap<'_>,
        dy: FeatureMap<'_>,
        dw: *mut f32,
        scratch: *mut f32,
    ) {
        // SAFETY: as the caller promises.
        unsafe { self.spread(team, x, scratch) };
        let blocks = self.geometry.c_out.div_ceil(LANES);
        let panels = blocks.div_ceil(self.isa.run(Most));
        let sums = scratch.wrapping_add(self.planes_len());
        let shared = Shared((scratch.cast_const(), dy, sums));
        team.chunks(SHARES * panels, 1, |_, from, to| {
            let (planes, dy, sums) = shared.get();
            for piece in from..to {
                let (share, panel) = (piece / panels, piece % panels);
                let sums = sums.wrapping_add(share * self.packed_len());
                self.isa.run(Work { of: self, planes, dy, sums, share, panel });
            }
        });
        let (taps, most) = (self.taps(), self.isa.run(Most));
        for i in 0..panels {
            let (first, blocks) = panel(i, blocks, most);
            for o in first * LANES..((first + blocks) * LANES).min(self.geometry.c_out) {
                for tap in 0..taps {
                    let at = first * taps * LANES + tap * blocks * LANES + o - first * LANES;
                    // SAFETY: a number of each share's sums, and of dw.
                    unsafe {
                        *dw.add(o * taps + tap) = (0..SHARES)
                            .map(|share| *sums.add(share * self.packed_len() + at))
                            .sum();
                    }
                }
            }
        }
    }
}

struct Panel;

impl Kernel for Panel {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::PANEL
    }
}

/// Blocks of dy at once.
struct Most;

impl Kernel for Most {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        size::<S>().1.min(PANEL)
    }
}

struct Work<'a> {
    of: &'a Stem,
    planes: *const f32,
    dy: FeatureMap<'a>,
    sums: *mut f32, // [panels][3][K][K][16 · blocks of the panel]
    share: usize,
    panel: usize,
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Stem { geometry, planes, .. } = self.of;
        let Geometry { kernel, stride, .. } = *geometry;
        let out = self.dy.shape();
        let all = out.blocks();
        let (numbers, most) = (size::<S>().0, size::<S>().1.min(PANEL));
        let (first, blocks) = panel(self.panel, all, most);
        let taps = self.of.taps();
        // SAFETY: this panel's sums of this share.
        let sums = unsafe { self.sums.add(first * taps * LANES) };
        // SAFETY: as many.
        unsafe { sums.write_bytes(0, taps * blocks * LANES) };
        let rows = out.images * out.height;
        for row in rows * self.share / SHARES..rows * (self.share + 1) / SHARES {
            let (image, y) = (row / out.height, row % out.height);
            let dy = self.dy.place(image, first, y as isize, 0).cast_const();
            for channel in 0..CHANNELS {
                for ky in 0..kernel {
                    // The border is as wide as the padding.
                    let from = (image * CHANNELS + channel) * planes.plane()
                        + (y * stride + ky) * planes.row();
                    for kx in (0..kernel).step_by(numbers) {
                        let tap = (channel * kernel + ky) * kernel + kx;
                        // SAFETY: the taps of a row of places lie in the plane; a row of the sums.
                        unsafe {
                            let places = Places {
                                x: self.planes.add(from + kx),
                                x_step: stride,
                                x_row: 0,
                                x_image: 0,
                                ahead: planes.row(),
                                dy,
                                dy_block: self.dy.plane_len(),
                                dy_row: 0,
                                dy_image: 0,
                                images: 1,
                                rows: 1,
                                columns: out.width,
                            };
                            let sums = sums.add(tap * blocks * LANES);
                            let count = numbers.min(kernel - kx);
                            add_products(s, (count, blocks), places, sums, false);
                        }
                    }
                }
            }
        }
    }
}
