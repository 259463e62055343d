//! The gradient of the input of a convolution with stride S > 1: the places of dx fall into S × S
//! phases, and each is a convolution of dy of stride 1 with the taps that meet it. As
//! [`crate::ops::direct_conv`]: the sums of some places and blocks in registers.
//! Letters: C channels of dx, O of dy, K kernel width.

use crate::ops::conv::Geometry;
use crate::ops::feature_map::{FeatureMap, Shape, Shared};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Pieces of work a thread at least.
const PIECES: usize = 4;

/// As in the direct convolution: bytes of a panel's weights and of dy's rows that stay in the cache.
const DEPTH_BYTES: usize = 192 << 10;
const GROUP_BYTES: usize = 512 << 10;

pub(super) struct Strided {
    isa: Isa,
    /// Of the convolution forward, and its input.
    geometry: Geometry,
    input: Shape,
    panel: usize,
}

impl Strided {
    pub fn new(isa: Isa, geometry: Geometry, input: Shape, panel: usize) -> Self {
        Self { isa, geometry, input, panel }
    }

    /// With `add`, what is in dx stays part of the sums.
    ///
    /// # Safety
    /// `weights` are packed for the direct kernel, from O to C, not flipped, and do not overlap dx.
    pub unsafe fn run(
        &self,
        team: &Team,
        weights: *const f32,
        dy: FeatureMap<'_>,
        dx: FeatureMap<'_>,
        add: bool,
    ) {
        assert_eq!(dx.shape(), self.input, "the gradient of the input of {:?}", self.geometry);
        assert_eq!(dy.shape(), self.geometry.output(self.input), "{:?}", self.geometry);
        assert!(!dx.overlaps(&dy), "a gradient overwrites what it is made of");
        let panels = self.input.blocks().div_ceil(self.panel);
        let group = self.group(dy.shape(), team.threads(), panels);
        let pieces = self.input.images * self.input.height.div_ceil(group) * panels;
        let work = Shared((weights, dy, dx));
        team.chunks(pieces, if team.threads() == 1 { pieces } else { 1 }, |_, from, to| {
            let (weights, dy, dx) = work.get();
            let pieces = (from, to);
            self.isa.run(Work { of: self, weights, dy, dx, add, group, pieces });
        });
    }

    /// Rows of dx that go through a panel together.
    fn group(&self, dy: Shape, threads: usize, panels: usize) -> usize {
        let row = dy.blocks() * dy.row() * size_of::<f32>();
        let fits = (GROUP_BYTES / row).max(1) * self.geometry.stride;
        let least = if threads == 1 { 1 } else { PIECES * threads };
        let even = dy.images * self.input.height * panels / least;
        let group = fits.min(even).clamp(1, self.input.height);
        self.input.height.div_ceil(self.input.height.div_ceil(group))
    }
}

/// The taps that meet the places of one phase in one direction: tap `first` + t·`step` for t below
/// `count` meets, for place j of the phase, place j + `at` − t·`back` of dy.
#[derive(Clone, Copy, Debug)]
struct Phase {
    first: usize,
    step: usize,
    count: usize,
    at: isize,
    back: usize,
}

impl Phase {
    fn new(phase: usize, geometry: Geometry) -> Self {
        let Geometry { kernel, stride, padding, dilation, .. } = geometry;
        let by = |tap: usize| (phase + padding) as isize - (tap * dilation) as isize;
        let meets = |tap: &usize| by(*tap) % stride as isize == 0;
        let Some(first) = (0..kernel).find(meets) else {
            return Self { first: 0, step: 1, count: 0, at: 0, back: 0 };
        };
        let step = (1..=stride).find(|step| (step * dilation) % stride == 0).unwrap_or(stride);
        let count = (kernel - first).div_ceil(step);
        let at = by(first) / stride as isize;
        Self { first, step, count, at, back: step * dilation / stride }
    }

    /// Taps, as a range of t, that meet places of −1..=`side` of dy for place `j`.
    fn taps(&self, j: usize, side: usize) -> (usize, usize) {
        let at = j as isize + self.at;
        let meets = |t: &usize| (-1..=side as isize).contains(&(at - (t * self.back) as isize));
        let from = (0..self.count).find(meets).unwrap_or(0);
        let to = (from..self.count).find(|t| !meets(t)).unwrap_or(self.count);
        (from, to)
    }

    /// Places of the phase, of `places`, from the first to the one behind the last that meet −1..=`side`
    /// with every tap.
    fn inside(&self, places: usize, side: usize) -> (usize, usize) {
        if self.count == 0 {
            return (0, places);
        }
        let from = ((self.count - 1) * self.back) as isize - self.at - 1;
        let to = side as isize - self.at + 1;
        let from = (from.max(0) as usize).min(places);
        (from, (to.max(0) as usize).clamp(from, places))
    }
}

struct Work<'a> {
    of: &'a Strided,
    weights: *const f32, // [panels][O / 16][K][K][16][16 · blocks of the panel]
    dy: FeatureMap<'a>,
    dx: FeatureMap<'a>,
    add: bool,
    group: usize,
    /// Of a group's rows in a panel, counted over pictures, groups and panels.
    pieces: (usize, usize),
}

/// Some places of a phase in a row, and what is needed to compute them.
#[derive(Clone, Copy)]
struct Places {
    /// The place of dy that the first tap of the first place meets, in plane 0.
    from: *const f32,
    plane: usize,
    row_back: usize,
    column_back: usize,
    blocks: (usize, usize),
    weights: *const f32,
    kernel: usize,
    y: Taps,
    x: Taps,
    /// The sums begin with zero, or else with what is in dx.
    begin: bool,
    to: *mut f32,
    to_step: usize,
    to_plane: usize,
}

#[derive(Clone, Copy)]
struct Taps {
    first: usize,
    step: usize,
    count: usize,
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (input, out) = (self.dx.shape(), self.dy.shape());
        let Geometry { kernel, stride, .. } = self.of.geometry;
        let panels = input.blocks().div_ceil(S::CONV_PANEL);
        let groups = input.height.div_ceil(self.group);
        let per_block = kernel * kernel * LANES * LANES;
        for piece in self.pieces.0..self.pieces.1 {
            let (image, group, panel) =
                (piece / (panels * groups), piece / panels % groups, piece % panels);
            let first = panel * S::CONV_PANEL;
            let blocks = S::CONV_PANEL.min(input.blocks() - first);
            let rows = group * self.group..((group + 1) * self.group).min(input.height);
            let origin = self.dy.place(image, 0, -1, -1).cast_const();
            let depth = (DEPTH_BYTES / (per_block * blocks * size_of::<f32>())).max(1);
            let depth = out.blocks().div_ceil(out.blocks().div_ceil(depth));
            for from in (0..out.blocks()).step_by(depth) {
                let to = (from + depth).min(out.blocks());
                for iy in rows.clone() {
                    let phase = Phase::new(iy % stride, self.of.geometry);
                    let (t0, t1) = phase.taps(iy / stride, out.height);
                    let y = Taps {
                        first: phase.first + t0 * phase.step,
                        step: phase.step,
                        count: t1 - t0,
                    };
                    let row_back = phase.back * out.row();
                    let oy = (iy / stride) as isize + phase.at - (t0 * phase.back) as isize;
                    for start in 0..stride.min(input.width) {
                        let phase = Phase::new(start, self.of.geometry);
                        let places = (input.width - start).div_ceil(stride);
                        let inside = phase.inside(places, out.width);
                        let mut j = 0;
                        while j < places {
                            // At the edges one place at a time, with the taps that meet dy.
                            let (count, (t0, t1)) = if j < inside.0 || j >= inside.1 {
                                (1, phase.taps(j, out.width))
                            } else {
                                let left = inside.1 - j;
                                (left.div_ceil(left.div_ceil(S::CONV_ROWS)), (0, phase.count))
                            };
                            let ox = j as isize + phase.at - (t0 * phase.back) as isize;
                            let at = Places {
                                from: origin
                                    .wrapping_offset((oy + 1) * out.row() as isize)
                                    .wrapping_offset((ox + 1) * LANES as isize),
                                plane: self.dy.plane_len(),
                                row_back,
                                column_back: phase.back * LANES,
                                blocks: (from, to),
                                weights: self
                                    .weights
                                    .wrapping_add(first * out.blocks() * per_block),
                                kernel,
                                y,
                                x: Taps {
                                    first: phase.first + t0 * phase.step,
                                    step: phase.step,
                                    count: t1 - t0,
                                },
                                begin: from == 0 && !self.add,
                                to: self.dx.place(
                                    image,
                                    first,
                                    iy as isize,
                                    (start + j * stride) as isize,
                                ),
                                to_step: stride * LANES,
                                to_plane: self.dx.plane_len(),
                            };
                            // SAFETY: the taps named meet the planes of dy with their border for each
                            // of the `count` places, which lie in dx; a group's rows in a panel belong
                            // to one thread.
                            unsafe { dispatch(s, count, blocks, at) };
                            j += count;
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// See [`Work::run`].
#[inline(always)]
unsafe fn dispatch<S: Simd>(s: S, count: usize, blocks: usize, at: Places) {
    macro_rules! sizes {
        ($($blocks:literal: $($count:literal)*;)*) => {
            match (blocks, count) {
                // SAFETY: as the caller promises.
                $($(($blocks, $count) if $blocks <= S::CONV_PANEL && $count <= S::CONV_ROWS => unsafe {
                    places::<S, $blocks, $count>(s, at)
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

/// R places of P blocks of dx.
///
/// # Safety
/// See [`Work::run`].
#[inline(always)]
unsafe fn places<S: Simd, const P: usize, const R: usize>(s: S, at: Places) {
    let mut sums = [[s.zero(); P]; R];
    if !at.begin {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (p, sum) in sums.iter_mut().enumerate() {
                // SAFETY: place r of block p.
                *sum = unsafe { s.load(at.to.add(p * at.to_plane + r * at.to_step)) };
            }
        }
    }
    for block in at.blocks.0..at.blocks.1 {
        for ty in 0..at.y.count {
            for tx in 0..at.x.count {
                let (ky, kx) = (at.y.first + ty * at.y.step, at.x.first + tx * at.x.step);
                let tap = (block * at.kernel + ky) * at.kernel + kx;
                let mut weights = at.weights.wrapping_add(tap * LANES * P * LANES);
                let mut from = at
                    .from
                    .wrapping_add(block * at.plane)
                    .wrapping_sub(ty * at.row_back + tx * at.column_back);
                for r in R..2 * R {
                    s.prefetch(from.wrapping_add(r * LANES));
                }
                for _ in 0..LANES {
                    // SAFETY: the tap meets the plane for each of the R places; its weights are 16
                    // rows of P blocks.
                    unsafe {
                        let mut own = [s.zero(); P];
                        for (p, own) in own.iter_mut().enumerate() {
                            *own = s.load(weights.add(p * LANES));
                        }
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let x = s.splat(*from.add(r * LANES));
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
            unsafe { s.store(at.to.add(p * at.to_plane + r * at.to_step), sum) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tap_meets_the_places_that_it_came_from() {
        for (kernel, stride, padding, dilation) in
            [(3, 2, 1, 1), (1, 2, 0, 1), (7, 2, 3, 1), (5, 4, 2, 1), (3, 2, 2, 2), (4, 3, 1, 2)]
        {
            let geometry = Geometry { c_in: 1, c_out: 1, kernel, stride, padding, dilation };
            for x in 0..40 {
                let phase = Phase::new(x % stride, geometry);
                let got: Vec<_> = (0..phase.count)
                    .map(|t| {
                        let o = (x / stride) as isize + phase.at - (t * phase.back) as isize;
                        (phase.first + t * phase.step, o)
                    })
                    .collect();
                // x = o·S + k·d − p
                let want: Vec<_> = (0..kernel)
                    .map(|k| (k, (x + padding) as isize - (k * dilation) as isize))
                    .filter(|(_, o)| o.rem_euclid(stride as isize) == 0)
                    .map(|(k, o)| (k, o / stride as isize))
                    .collect();
                assert_eq!(got, want, "{geometry:?} at {x}");
            }
        }
    }
}
