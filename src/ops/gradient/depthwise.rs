//! A depthwise convolution in training: [`crate::ops::depthwise`] forward and its gradients, from
//! weights `[C, 1, K, K]` that stay the caller's. Letters: C channels, K kernel width, H × W places.

use super::accumulate::Accumulate;
use super::conv::bias_gradient;
use crate::ops::depthwise::{self, Window, packed_len};
use crate::ops::feature_map::{Buffer, FeatureMap, Shape, Shared};
use crate::ops::rows::{Rows, helping};
use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Places side by side whose products have sums of their own, so that one need not wait for its last.
const TOGETHER: usize = 4;

/// For inputs of one shape.
pub struct TrainDepthwise {
    isa: Isa,
    window: Window,
    input: Shape,
}

impl TrainDepthwise {
    /// # Panics
    /// If kernel or stride are 0, or the padded input is smaller than the window.
    pub fn new(isa: Isa, window: Window, input: Shape) -> Self {
        let Window { kernel, stride, padding } = window;
        assert!(kernel * stride > 0, "{window:?}");
        assert!(input.height.min(input.width) + 2 * padding >= kernel, "{window:?} on {input:?}");
        Self { isa, window, input }
    }

    /// The output's shape.
    pub fn output(&self) -> Shape {
        let Shape { height, width, .. } = self.input;
        Shape { height: self.window.side(height), width: self.window.side(width), ..self.input }
    }

    /// Numbers of the weights.
    pub fn weights_len(&self) -> usize {
        self.input.channels * self.window.kernel * self.window.kernel
    }

    /// Numbers of scratch memory that each of the ways needs.
    pub fn scratch_len(&self) -> usize {
        packed_len(self.input.channels, self.window)
    }

    fn check(&self, x: FeatureMap<'_>, y: FeatureMap<'_>) {
        assert_eq!(x.shape(), self.input, "the input of {:?}", self.window);
        assert_eq!(y.shape(), self.output(), "the output of {:?}", self.window);
    }

    /// Weights and bias as kernels read them, in scratch memory that holds none of `maps`.
    fn pack<'a>(
        &self,
        weights: &[f32],
        bias: Option<&[f32]>,
        maps: [FeatureMap<'_>; 2],
        scratch: &'a Buffer,
    ) -> &'a [f32] {
        let len = self.scratch_len();
        assert!(scratch.len() >= len, "scratch of {} numbers", scratch.len());
        assert!(maps.iter().all(|map| !map.is_in(scratch)), "scratch memory holds a map");
        assert_eq!(weights.len(), self.weights_len(), "{:?}", self.window);
        // SAFETY: as many numbers, which hold no map and which nobody else has while this runs.
        let packed = unsafe { std::slice::from_raw_parts_mut(scratch.as_ptr(), len) };
        depthwise::pack(weights, bias, self.window, packed);
        packed
    }

    /// y = conv(x) + bias; `bias` `[C]`.
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
        self.check(x, y);
        let packed = self.pack(weights, bias, [x, y], scratch);
        depthwise::run(team, self.isa, self.window, packed, x, y);
    }

    /// dx (+)= what dy gives.
    pub fn input_gradient(
        &self,
        team: &Team,
        weights: &[f32],
        dy: FeatureMap<'_>,
        (into, dx): (Accumulate, FeatureMap<'_>),
        scratch: &Buffer,
    ) {
        self.check(dx, dy);
        assert!(!dx.overlaps(&dy), "the gradient overlaps the argument");
        let packed = self.pack(weights, None, [dx, dy], scratch);
        let rows = Rows::of(self.input);
        let Window { kernel, stride, .. } = self.window;
        let taps = kernel.div_ceil(stride).pow(2);
        let len = self.input.width * LANES * taps;
        let work = Shared((dy, dx));
        team.chunks(rows.count(), helping(team, rows.count(), len), |_, first, end| {
            let (dy, dx) = work.get();
            let window = self.window;
            self.isa.run(InputRows { window, packed, dy, into, dx, rows, first, end });
        });
    }

    /// Overwrites dw `[C, 1, K, K]`.
    pub fn weight_gradient(
        &self,
        team: &Team,
        x: FeatureMap<'_>,
        dy: FeatureMap<'_>,
        dw: &mut [f32],
    ) {
        self.check(x, dy);
        assert_eq!(dw.len(), self.weights_len(), "{:?}", self.window);
        let kernel = self.window.kernel;
        let work = Shared((x, dy, dw.as_mut_ptr()));
        team.chunks(self.input.blocks() * kernel, 1, |_, from, to| {
            let (x, dy, dw) = work.get();
            for job in from..to {
                let (block, ky) = (job / kernel, job % kernel);
                let own = (x.shape().channels - block * LANES).min(LANES);
                for kx in 0..kernel {
                    let sums = self.isa.run(Tap { window: self.window, x, dy, block, ky, kx });
                    for (lane, sum) in sums.iter().enumerate().take(own) {
                        let at = ((block * LANES + lane) * kernel + ky) * kernel + kx;
                        // SAFETY: row ky of the filters of this block's channels, which is this
                        // job's alone.
                        unsafe { *dw.add(at) = *sum };
                    }
                }
            }
        });
    }

    /// Overwrites db `[C]`.
    pub fn bias_gradient(&self, team: &Team, dy: FeatureMap<'_>, db: &mut [f32]) {
        assert_eq!(dy.shape(), self.output(), "the output of {:?}", self.window);
        bias_gradient(team, self.isa, dy, db);
    }
}

/// Rows `first`..`end` of dx.
struct InputRows<'a> {
    window: Window,
    packed: &'a [f32],
    dy: FeatureMap<'a>,
    into: Accumulate,
    dx: FeatureMap<'a>,
    rows: Rows,
    first: usize,
    end: usize,
}

/// The taps through which place `i` of the input reached an output of `side` places: `first`,
/// `first` + stride, … for `count` of them, at output places `at`, `at` − 1, …
struct Reached {
    first: usize,
    at: usize,
    count: usize,
}

impl Reached {
    #[inline(always)]
    fn new(Window { kernel, stride, padding }: Window, i: usize, side: usize) -> Self {
        let (first, at) = ((i + padding) % stride, (i + padding) / stride);
        // Output places past the end were never made.
        let skipped = (at + 1).saturating_sub(side);
        let taps = kernel.saturating_sub(first).div_ceil(stride).min(at + 1);
        Self {
            first: first + skipped * stride,
            at: at.saturating_sub(skipped),
            count: taps.saturating_sub(skipped),
        }
    }
}

impl Kernel for InputRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Window { kernel, stride, .. } = self.window;
        let (width, out) = (self.dx.shape().width, self.dy.shape());
        let packed_len = (1 + kernel * kernel) * LANES;
        for row in self.first..self.end {
            let (image, block, y) = self.rows.at(row);
            // Behind the bias.
            let filter = self.packed[block * packed_len + LANES..].as_ptr();
            let dy = self.dy.place(image, block, 0, 0).cast_const();
            let dx = self.dx.place(image, block, y as isize, 0);
            let rows = Reached::new(self.window, y, out.height);
            for x in 0..width {
                let columns = Reached::new(self.window, x, out.width);
                let mut sum = s.zero();
                for i in 0..rows.count {
                    let (ky, oy) = (rows.first + i * stride, rows.at - i);
                    for j in 0..columns.count {
                        let (kx, ox) = (columns.first + j * stride, columns.at - j);
                        // SAFETY: tap (ky, kx) < K of this block's filter, place (oy, ox) of dy.
                        unsafe {
                            let weight = s.load(filter.add((ky * kernel + kx) * LANES));
                            let dy = s.load(dy.add(oy * out.row() + ox * LANES));
                            sum = s.mul_add(dy, weight, sum);
                        }
                    }
                }
                // SAFETY: place x of a row that no other thread has.
                unsafe { self.into.put(s, dx.add(x * LANES), sum) };
            }
        }
    }
}

/// Σ dy·x over pictures and places at one tap, row by row, so that the sums stay short.
struct Tap<'a> {
    window: Window,
    x: FeatureMap<'a>,
    dy: FeatureMap<'a>,
    block: usize,
    ky: usize,
    kx: usize,
}

/// Output places whose window has tap `k` on a side of `from` places, of `to` there are.
#[inline(always)]
fn on_map(
    Window { stride, padding, .. }: Window,
    k: usize,
    from: usize,
    to: usize,
) -> (usize, usize) {
    let first = padding.saturating_sub(k).div_ceil(stride);
    let end = (from + padding).saturating_sub(k).div_ceil(stride).min(to);
    (first, end.max(first))
}

impl Kernel for Tap<'_> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; LANES] {
        let Self { window, x, dy, block, ky, kx } = self;
        let Window { stride, padding, .. } = window;
        let (from, out) = (x.shape(), dy.shape());
        let (first_row, end_row) = on_map(window, ky, from.height, out.height);
        let (first, end) = on_map(window, kx, from.width, out.width);
        let mut total = s.zero();
        for image in 0..out.images {
            let mut picture = s.zero();
            for oy in first_row..end_row {
                let y = (oy * stride + ky - padding) as isize;
                let x = x.place(image, block, y, 0).cast_const();
                let dy = dy.place(image, block, oy as isize, 0).cast_const();
                let mut sums = [s.zero(); TOGETHER];
                let mut begin = first;
                while begin < end {
                    let count = (end - begin).min(TOGETHER);
                    for (i, sum) in sums.iter_mut().enumerate().take(count) {
                        let ox = begin + i;
                        let at = ox * stride + kx - padding;
                        // SAFETY: place ox of a row of dy, whose tap is on the map: `on_map`.
                        unsafe {
                            let (x, dy) = (s.load(x.add(at * LANES)), s.load(dy.add(ox * LANES)));
                            *sum = s.mul_add(x, dy, *sum);
                        }
                    }
                    begin += count;
                }
                let row = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
                picture = s.add(picture, row);
            }
            total = s.add(total, picture);
        }
        s.to_array(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::checks::{assert_holds, everywhere, filled, pattern, used};

    const WINDOWS: [(usize, usize, usize); 7] =
        [(3, 2, 1), (5, 4, 2), (3, 1, 1), (1, 1, 0), (7, 1, 3), (2, 2, 0), (2, 3, 1)];

    const SHAPES: [(usize, usize, usize, usize); 4] =
        [(1, 16, 8, 8), (3, 21, 5, 7), (2, 40, 16, 13), (1, 3, 2, 2)];

    struct Plain {
        y: Vec<f32>,
        dx: Vec<f32>,
        dw: Vec<f32>,
        db: Vec<f32>,
    }

    /// The definition, tap by tap, in f64.
    fn plain(window: Window, shape: Shape, [x, weight, bias, dy]: [&[f32]; 4]) -> Plain {
        let Window { kernel, stride, padding } = window;
        let (height, width) = (window.side(shape.height), window.side(shape.width));
        let planes = shape.images * shape.channels;
        let mut y = vec![0.0; planes * height * width];
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        let mut db = vec![0.0; bias.len()];
        for i in 0..y.len() {
            let (plane, oy, ox) = (i / width / height, i / width % height, i % width);
            let c = plane % shape.channels;
            let given = f64::from(dy[i]);
            y[i] = f64::from(bias[c]);
            db[c] += given;
            for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                let (row, column) = (oy * stride + ky, ox * stride + kx);
                let inside = (padding..shape.height + padding).contains(&row)
                    && (padding..shape.width + padding).contains(&column);
                if inside {
                    let at =
                        (plane * shape.height + row - padding) * shape.width + column - padding;
                    let tap = (c * kernel + ky) * kernel + kx;
                    y[i] += f64::from(x[at]) * f64::from(weight[tap]);
                    dx[at] += given * f64::from(weight[tap]);
                    dw[tap] += given * f64::from(x[at]);
                }
            }
        }
        let [y, dx, dw, db] =
            [y, dx, dw, db].map(|values| values.into_iter().map(|value| value as f32).collect());
        Plain { y, dx, dw, db }
    }

    #[test]
    fn all_ways_equal_their_scalar_twins() {
        for (kernel, stride, padding) in WINDOWS {
            let window = Window { kernel, stride, padding };
            for (b, c, h, w) in SHAPES {
                let shape = Shape::new(b, c, h, w);
                let out = Shape { height: window.side(h), width: window.side(w), ..shape };
                let ((x, x_values), (dy, dy_values)) = (filled(shape, 9), filled(out, 12));
                let (x, dy) = (x.map(shape, 0), dy.map(out, 0));
                let (weight, bias) = (pattern(c * kernel * kernel, 10), pattern(c, 11));
                let want = plain(window, shape, [&x_values, &weight, &bias, &dy_values]);
                everywhere(|team, isa| {
                    let op = TrainDepthwise::new(isa, window, shape);
                    let scratch = Buffer::zeroed(op.scratch_len());
                    let (y, dx) = (used(out), used(shape));
                    let (y, dx) = (y.map(out, 0), dx.map(shape, 0));
                    op.forward(team, &weight, Some(&bias), x, y, &scratch);
                    // At most 49 products of numbers below 1 and as many sums below 10.
                    assert_holds(y, &want.y, (5e-6, 0.0), "forward");
                    op.input_gradient(team, &weight, dy, (Accumulate::Set, dx), &scratch);
                    assert_holds(dx, &want.dx, (5e-6, 0.0), "input");
                    op.input_gradient(team, &weight, dy, (Accumulate::Add, dx), &scratch);
                    let twice: Vec<f32> = want.dx.iter().map(|x| 2.0 * x).collect();
                    assert_holds(dx, &twice, (1e-5, 0.0), "input, added");
                    let (mut dw, mut db) = (vec![77.0; weight.len()], vec![77.0; c]);
                    op.weight_gradient(team, x, dy, &mut dw);
                    op.bias_gradient(team, dy, &mut db);
                    for (got, want) in dw.iter().zip(&want.dw).chain(db.iter().zip(&want.db)) {
                        // Sums of at most 416 products of numbers below 1.
                        assert!((got - want).abs() < 2e-5, "{window:?} {shape:?}: {got} {want}");
                    }
                });
            }
        }
    }
}
