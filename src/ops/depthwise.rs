//! Depthwise convolution: each channel with a K × K filter of its own, and a bias.
//!
//! The padding may be wider than a map's border of one, so windows are cut at the map's edge instead.
//! Letters: C channels, K kernel width, H × W places.

use super::feature_map::{FeatureMap, Frozen, Memory, Shape, Shared};
use super::rows::{Rows, helping};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::team::Team;

/// Places side by side whose sums grow together, so that one need not wait for its last product.
const TOGETHER: usize = 4;

/// The places that a filter looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Window {
    /// Places after the convolution.
    pub(super) fn side(&self, side: usize) -> usize {
        (side + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// The part of the window of output place `i` that lies on a side of that length.
    #[inline(always)]
    fn taps(&self, i: usize, side: usize) -> (usize, usize) {
        let start = i * self.stride;
        let first = self.padding.saturating_sub(start).min(self.kernel);
        let end = (side + self.padding).saturating_sub(start).min(self.kernel);
        (first, end.max(first))
    }
}

/// Weights packed for the line.
#[derive(Debug)]
pub struct Depthwise {
    window: Window,
    channels: usize,
    packed: Frozen,
}

impl Depthwise {
    /// `weight` `[C, 1, K, K]` and `bias` `[C]`.
    ///
    /// # Panics
    /// If the lengths do not fit, or kernel or stride are 0.
    pub fn new(weight: &[f32], bias: &[f32], window: Window) -> Self {
        let channels = bias.len();
        let mut packed = Memory::zeroed(packed_len(channels, window));
        pack(weight, Some(bias), window, packed.as_mut_slice());
        Self { window, channels, packed: packed.into() }
    }

    /// [C, H, W] → [C, (H + 2·padding − K)/stride + 1, the same of W].
    ///
    /// # Panics
    /// If the maps have other shapes, overlap, or are smaller than the window.
    pub fn run(&self, team: &Team, isa: Isa, x: FeatureMap<'_>, to: FeatureMap<'_>) {
        assert_eq!(x.shape().channels, self.channels, "channels of a depthwise convolution");
        run(team, isa, self.window, self.packed.as_slice(), x, to);
    }
}

/// Numbers of packed weights: `[⌈C/16⌉][1 + K·K][16]`, the bias, then the filter.
pub(super) fn packed_len(channels: usize, window: Window) -> usize {
    channels.div_ceil(LANES) * (1 + window.kernel * window.kernel) * LANES
}

/// `weight` `[C, 1, K, K]` and `bias` `[C]`, zero without.
///
/// # Panics
/// As [`Depthwise::new`]; if `to` is not as long as [`packed_len`] says.
pub(super) fn pack(weight: &[f32], bias: Option<&[f32]>, window: Window, to: &mut [f32]) {
    let taps = window.kernel * window.kernel;
    assert!(weight.len() * window.stride > 0, "{window:?} of {} weights", weight.len());
    let channels = weight.len() / taps;
    assert_eq!(weight.len(), channels * taps, "{window:?} on {channels} channels");
    assert!(bias.is_none_or(|bias| bias.len() == channels), "{window:?} on {channels} channels");
    assert_eq!(to.len(), packed_len(channels, window), "{window:?} on {channels} channels");
    to.fill(0.0);
    for (c, filter) in weight.chunks(taps).enumerate() {
        let own = &mut to[c / LANES * (1 + taps) * LANES..];
        own[c % LANES] = bias.map_or(0.0, |bias| bias[c]);
        for (tap, weight) in filter.iter().enumerate() {
            own[(1 + tap) * LANES + c % LANES] = *weight;
        }
    }
}

/// # Panics
/// As [`Depthwise::run`]; if `packed` is not as long as [`packed_len`] says.
pub(super) fn run(
    team: &Team,
    isa: Isa,
    window: Window,
    packed: &[f32],
    x: FeatureMap<'_>,
    to: FeatureMap<'_>,
) {
    let Shape { channels, height, width, .. } = x.shape();
    assert_eq!(packed.len(), packed_len(channels, window), "weights of {window:?}");
    assert!(
        height.min(width) + 2 * window.padding >= window.kernel,
        "{window:?} on {height} × {width}"
    );
    let want = Shape { height: window.side(height), width: window.side(width), ..x.shape() };
    assert_eq!(to.shape(), want, "{window:?} on {height} × {width}");
    assert!(!x.overlaps(&to), "the result overlaps the argument");
    let rows = Rows::of(want);
    let len = want.width * LANES * window.kernel * window.kernel;
    let shared = Shared((x, to, packed.as_ptr()));
    team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
        let (x, to, packed) = shared.get();
        isa.run(DepthwiseRows { window, packed, x, to, rows, first, end });
    });
}

struct DepthwiseRows<'a> {
    window: Window,
    packed: *const f32,
    x: FeatureMap<'a>,
    to: FeatureMap<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

/// One output row of one plane.
#[derive(Clone, Copy)]
struct Row {
    window: Window,
    packed: *const f32,
    /// Place (0, 0) of the argument's plane, and numbers from row to row.
    from: *const f32,
    row_len: usize,
    /// The window's first row, which may lie above the map, and the part of it on the map.
    top: isize,
    rows: (usize, usize),
    to: *mut f32,
}

impl Row {
    /// Output places `i`..`i + N`, which have the same `columns` of the window on the map.
    ///
    /// # Safety
    /// All pointers as described, the places in the output row, `rows` and `columns` on the map for
    /// all of them.
    #[inline(always)]
    unsafe fn places<S: Simd, const N: usize>(self, s: S, i: usize, columns: (usize, usize)) {
        let Window { kernel, stride, padding } = self.window;
        // SAFETY: as the caller promises; the packed block begins with 16 biases.
        let mut sums = [unsafe { s.load(self.packed) }; N];
        for ky in self.rows.0..self.rows.1 {
            for kx in columns.0..columns.1 {
                let y = self.top + ky as isize;
                let x = (i * stride + kx) as isize - padding as isize;
                // SAFETY: row y and places x, x + stride, … are on the map, as the caller promises.
                unsafe {
                    let weight = s.load(self.packed.add((1 + ky * kernel + kx) * LANES));
                    let from = self.from.offset(y * self.row_len as isize + x * LANES as isize);
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = s.mul_add(s.load(from.add(j * stride * LANES)), weight, *sum);
                    }
                }
            }
        }
        for (j, sum) in sums.into_iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe { s.store(self.to.add((i + j) * LANES), sum) };
        }
    }
}

impl Kernel for DepthwiseRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (window, from) = (self.window, self.x.shape());
        let packed_len = (1 + window.kernel * window.kernel) * LANES;
        let width = self.to.shape().width;
        for row in self.first..self.end {
            let (image, block, y) = self.rows.at(row);
            let row = Row {
                window,
                // SAFETY: packed for all blocks of the map.
                packed: unsafe { self.packed.add(block * packed_len) },
                from: self.x.place(image, block, 0, 0),
                row_len: from.row(),
                top: (y * window.stride) as isize - window.padding as isize,
                rows: window.taps(y, from.height),
                to: self.to.place(image, block, y as isize, 0),
            };
            let whole = (0, window.kernel);
            let mut i = 0;
            while i < width {
                let columns = window.taps(i, from.width);
                let last = i + TOGETHER - 1;
                // Windows that are whole at both ends are whole between.
                if last < width && columns == whole && window.taps(last, from.width) == whole {
                    // SAFETY: `taps` keeps rows and columns on the map; places up to `last` are in
                    // the row, which no other thread has.
                    unsafe { row.places::<S, TOGETHER>(s, i, whole) };
                    i += TOGETHER;
                } else {
                    // SAFETY: as above.
                    unsafe { row.places::<S, 1>(s, i, columns) };
                    i += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::checks::{assert_holds, everywhere, filled, pattern, used};
    use super::*;

    fn plain(
        values: &[f32],
        shape: Shape,
        weight: &[f32],
        bias: &[f32],
        window: Window,
    ) -> Vec<f32> {
        let Window { kernel, stride, padding } = window;
        let (height, width) = (shape.height as isize, shape.width as isize);
        let mut out = Vec::new();
        for (plane, values) in values.chunks(shape.places()).enumerate() {
            let c = plane % shape.channels;
            for y in 0..window.side(shape.height) {
                for x in 0..window.side(shape.width) {
                    let mut sum = f64::from(bias[c]);
                    for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                        let sy = (y * stride + ky) as isize - padding as isize;
                        let sx = (x * stride + kx) as isize - padding as isize;
                        if (0..height).contains(&sy) && (0..width).contains(&sx) {
                            sum += f64::from(weight[(c * kernel + ky) * kernel + kx])
                                * f64::from(values[(sy * width + sx) as usize]);
                        }
                    }
                    out.push(sum as f32);
                }
            }
        }
        out
    }

    #[test]
    fn equals_its_scalar_twin() {
        let windows = [(3, 2, 1), (5, 4, 2), (3, 1, 1), (1, 1, 0), (7, 1, 3), (2, 2, 0), (3, 1, 4)];
        let shapes = [(1, 16, 8, 8), (3, 21, 5, 7), (2, 40, 16, 13), (1, 3, 2, 2)];
        for (kernel, stride, padding) in windows {
            let window = Window { kernel, stride, padding };
            for (b, c, h, w) in shapes {
                let shape = Shape::new(b, c, h, w);
                let (x, values) = filled(shape, 9);
                let (weight, bias) = (pattern(c * kernel * kernel, 10), pattern(c, 11));
                let want = plain(&values, shape, &weight, &bias, window);
                let to = Shape { height: window.side(h), width: window.side(w), ..shape };
                let op = Depthwise::new(&weight, &bias, window);
                everywhere(|team, isa| {
                    let out = used(to);
                    op.run(team, isa, x.map(shape, 0), out.map(to, 0));
                    // At most 49 products of numbers below 1 and as many sums below 10.
                    assert_holds(out.map(to, 0), &want, (5e-6, 0.0), "depthwise");
                });
            }
        }
    }

    #[test]
    #[should_panic(expected = "on 4 × 4")]
    fn another_size_is_refused() {
        let shape = Shape::new(1, 16, 4, 4);
        let ((x, _), out) = (filled(shape, 1), used(shape));
        let window = Window { kernel: 3, stride: 2, padding: 1 };
        let op = Depthwise::new(&[0.0; 144], &[0.0; 16], window);
        op.run(&Team::alone(), Isa::Portable, x.map(shape, 0), out.map(shape, 0));
    }
}
