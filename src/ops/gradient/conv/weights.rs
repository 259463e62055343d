//! The gradient of weights tap by tap, for every kernel, stride, padding and dilation: for each tap
//! the products of dy and of the x that falls on it, summed over places.

use super::outer::{PANEL, Places, add_products, panel, size};
use crate::ops::conv::Geometry;
use crate::ops::feature_map::{FeatureMap, Shared};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Places that are summed at once, whose x and dy stay in the core's first cache for all taps.
const BAND: usize = 128;

/// Bytes of sums that a thread works on at once: they stay in its second cache.
const SUMS_BYTES: usize = 128 << 10;

/// Pieces of work for each thread, about.
const PIECES: usize = 6;

/// `geometry` of all groups.
pub(super) struct Direct {
    isa: Isa,
    geometry: Geometry,
    groups: usize,
    threads: usize,
    /// Blocks of dy at once.
    panel: usize,
}

impl Direct {
    pub fn new(isa: Isa, geometry: Geometry, groups: usize, threads: usize) -> Self {
        Self { isa, geometry, groups, threads, panel: isa.run(Panel) }
    }

    /// Channels of a group, in and out.
    fn channels(&self) -> (usize, usize) {
        (self.geometry.c_in / self.groups, self.geometry.c_out / self.groups)
    }

    /// Numbers of the sums for a block of channels in.
    fn sums(&self) -> usize {
        self.geometry.kernel * self.geometry.kernel * LANES * self.panel * LANES
    }

    /// Panels of a group, and blocks of channels in that a piece has.
    fn pieces(&self) -> (usize, usize) {
        let (c, o) = self.channels();
        let panels = o.div_ceil(LANES).div_ceil(self.panel);
        let blocks = c.div_ceil(LANES);
        let even = self.groups * panels * blocks / (PIECES * self.threads);
        let most = SUMS_BYTES / (self.sums() * size_of::<f32>());
        (panels, even.min(most).clamp(1, blocks))
    }

    pub fn scratch_len(&self) -> usize {
        self.threads * self.pieces().1 * self.sums()
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
        assert!(team.threads() <= self.threads, "made for {} threads", self.threads);
        let (panels, depth) = self.pieces();
        let shares = self.channels().0.div_ceil(LANES).div_ceil(depth);
        let work = Shared((x, dy, dw, scratch));
        team.chunks(self.groups * panels * shares, 1, |thread, from, to| {
            let (x, dy, dw, scratch) = work.get();
            let sums = scratch.wrapping_add(thread * depth * self.sums());
            for piece in from..to {
                let (group, panel, share) =
                    (piece / (panels * shares), piece / shares % panels, piece % shares);
                let depth = (share * depth, depth);
                self.isa.run(Work { of: self, x, dy, dw, sums, group, panel, depth });
            }
        });
    }
}

struct Panel;

impl Kernel for Panel {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        size::<S>().1.min(PANEL)
    }
}

struct Work<'a> {
    of: &'a Direct,
    x: FeatureMap<'a>,
    dy: FeatureMap<'a>,
    dw: *mut f32,
    sums: *mut f32, // [C / 16][K][K][16][P][16]
    group: usize,
    panel: usize,
    /// First block of channels in, and how many.
    depth: (usize, usize),
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Geometry { kernel, stride, padding, dilation, .. } = self.of.geometry;
        let (c, o) = self.of.channels();
        let (first, blocks) = panel(self.panel, o.div_ceil(LANES), self.of.panel);
        let depth = self.depth.0..(self.depth.0 + self.depth.1).min(c.div_ceil(LANES));
        let taps = kernel * kernel;
        let (tile, own) = (LANES * blocks * LANES, taps * LANES * blocks * LANES);
        // SAFETY: the sums of this thread, which are as many.
        unsafe { self.sums.write_bytes(0, depth.len() * own) };
        let (input, out) = (self.x.shape(), self.dy.shape());
        let (group_x, group_dy) = (self.group * c / LANES, self.group * o / LANES + first);
        let whole = (BAND / out.places()).max(1);
        let rows = if out.places() <= BAND { out.height } else { (BAND / out.width).max(1) };
        for image in (0..out.images).step_by(whole) {
            for top in (0..out.height).step_by(rows) {
                let bottom = (top + rows).min(out.height);
                let images = whole.min(out.images - image);
                for (i, block) in depth.clone().enumerate() {
                    for tap in 0..taps {
                        let offset = |k: usize| (k * dilation) as isize - padding as isize;
                        let (dy, dx) = (offset(tap / kernel), offset(tap % kernel));
                        let (y0, y1) = falls(out.height, input.height, stride, dy);
                        let (y0, y1) = (y0.max(top), y1.min(bottom));
                        let (x0, x1) = falls(out.width, input.width, stride, dx);
                        if y0 >= y1 || x0 >= x1 {
                            continue;
                        }
                        let at = |o: usize, by: isize| (o * stride) as isize + by;
                        let x = self.x.place(image, group_x + block, at(y0, dy), at(x0, dx));
                        let dy = self.dy.place(image, group_dy, y0 as isize, x0 as isize);
                        let mut places = Places {
                            x: x.cast_const(),
                            x_step: stride * LANES,
                            x_row: stride * input.row(),
                            x_image: self.x.stride() * self.x.plane_len(),
                            ahead: self.x.plane_len(),
                            dy: dy.cast_const(),
                            dy_block: self.dy.plane_len(),
                            dy_row: out.row(),
                            dy_image: self.dy.stride() * self.dy.plane_len(),
                            images,
                            rows: y1 - y0,
                            columns: x1 - x0,
                        };
                        let count = size::<S>().0;
                        for lane in (0..LANES.min(c - block * LANES)).step_by(count) {
                            // SAFETY: the taps of these places fall into x; the tile's rows of the
                            // sums from `lane` on.
                            unsafe {
                                let sums =
                                    self.sums.add(i * own + tap * tile + lane * blocks * LANES);
                                add_products(s, (count, blocks), places, sums, false);
                            }
                            places.x = places.x.wrapping_add(count);
                        }
                    }
                }
            }
        }
        for (i, block) in depth.enumerate() {
            for p in 0..blocks {
                let (from, lanes) = ((first + p) * LANES, LANES.min(o - (first + p) * LANES));
                let to = ((self.group * o + from) * c + block * LANES) * taps;
                let channels = LANES.min(c - block * LANES);
                // SAFETY: a tile of these sums; the rows of dw are of this piece alone.
                unsafe {
                    let sums = self.sums.add(i * own + p * LANES);
                    let to = self.dw.add(to);
                    write_turned(sums, blocks * LANES, (taps, channels, lanes), to, c * taps);
                }
            }
        }
    }
}

/// Outputs from the first to the one behind the last for which a tap `by` places further on falls into
/// 0..`side`.
fn falls(out: usize, side: usize, stride: usize, by: isize) -> (usize, usize) {
    let from = (-by).max(0) as usize;
    let to = (side as isize - by).max(0) as usize;
    (from.div_ceil(stride), to.div_ceil(stride).min(out))
}

/// `[taps][16][16 outputs]`, `step` numbers from row to row, to `[outputs][channels][taps]`, `to_step`
/// numbers from output to output.
///
/// # Safety
/// Both are there, for `channels` and `lanes` ≤ 16.
pub(super) unsafe fn write_turned(
    sums: *const f32,
    step: usize,
    (taps, channels, lanes): (usize, usize, usize),
    to: *mut f32,
    to_step: usize,
) {
    for lane in 0..lanes {
        for channel in 0..channels {
            for tap in 0..taps {
                // SAFETY: as the caller promises.
                unsafe {
                    *to.add(lane * to_step + channel * taps + tap) =
                        *sums.add((tap * LANES + channel) * step + lane);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_whose_tap_falls_into_the_input_are_found() {
        for (out, side, stride, by) in
            [(8, 8, 1, -1), (8, 8, 1, 1), (4, 8, 2, -1), (5, 9, 2, 2), (3, 3, 1, -6), (3, 3, 1, 6)]
        {
            let inside = |o: &usize| (0..side as isize).contains(&((o * stride) as isize + by));
            let want: Vec<usize> = (0..out).filter(inside).collect();
            let (from, to) = falls(out, side, stride, by);
            assert_eq!((from..to).collect::<Vec<_>>(), want, "{out} {side} {stride} {by}");
        }
    }
}
