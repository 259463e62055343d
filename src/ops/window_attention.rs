//! The attention of NTSNet's contextual block over 3 × 3 windows
//! (`Op::WindowAttention` of [`crate::nn::graph`]): for channel c of values [B, C, H, W] the sum over
//! the window's nine places o of a[c mod G, o] · value at o, where a is the softmax over o.
//!
//! The logits come from a 1 × 1 convolution, whose channels may stand in any order and more than
//! once. Here they are place-major with one logit a lane: L = max(G, 16) channels for each place o of
//! the window, channel L·o + l holding the logit of group l mod G ([`logit_source`]). A block of 16
//! values then meets its sixteen logits in one load, and the softmax is lane by lane.

use super::feature_map::{FeatureMap, Shared};
use super::simd::{Isa, Kernel, LANES, Simd};
use super::simd_math::exp;
use super::team::Team;

/// Places of a window.
pub(super) const WINDOW: usize = 9;

/// Rows that a thread takes at once.
const ROWS_AT_ONCE: usize = 2;

/// For each channel of the engine's logits the channel 9·g + o of the definition's that it repeats.
///
/// # Panics
/// If `groups` neither divides 16 nor is a multiple of it.
pub fn logit_source(groups: usize) -> Vec<usize> {
    assert!(groups > 0, "no groups");
    assert!(LANES.is_multiple_of(groups) || groups.is_multiple_of(LANES), "{groups} groups");
    let lanes = groups.max(LANES);
    (0..WINDOW).flat_map(|o| (0..lanes).map(move |l| l % groups * WINDOW + o)).collect()
}

/// Logits [B, 9·L, H, W] in the order of [`logit_source`] and values [B, C, H, W] → y [B, C, H, W].
/// Outside the map values are zero.
///
/// # Panics
/// If shapes do not fit, or `y` shares memory with an argument.
pub fn window_attention(
    team: &Team,
    isa: Isa,
    logits: &FeatureMap<'_>,
    values: &FeatureMap<'_>,
    y: &FeatureMap<'_>,
) {
    let (a, v) = (logits.shape(), values.shape());
    assert_eq!(v, y.shape(), "window attention's output");
    assert_eq!((a.images, a.height, a.width), (v.images, v.height, v.width), "window logits");
    assert!(a.channels.is_multiple_of(WINDOW * LANES) && a.channels > 0, "{a:?} as window logits");
    assert!(!y.overlaps(logits) && !y.overlaps(values), "window attention in place");
    let groups = a.blocks() / WINDOW;
    let maps = Shared((*logits, *values, *y));
    team.chunks(v.images * groups * v.height, ROWS_AT_ONCE, |_, from, to| {
        let (logits, values, y) = maps.get();
        isa.run(Rows { logits, values, y, from, to });
    });
}

/// Rows `from`..`to`, counted over pictures, blocks of logits and rows: a block of logits serves
/// every (L/16)-th block of values.
struct Rows<'a> {
    logits: FeatureMap<'a>,
    values: FeatureMap<'a>,
    y: FeatureMap<'a>,
    from: usize,
    to: usize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let shape = self.values.shape();
        let groups = self.logits.shape().blocks() / WINDOW;
        for job in self.from..self.to {
            let (b, rest) = (job / (groups * shape.height), job % (groups * shape.height));
            let (group, row) = (rest / shape.height, rest % shape.height);
            let logits = self.logits.place(b, group, row as isize, 0);
            for x in 0..shape.width {
                // SAFETY: place (row, x) of the nine blocks group + o·groups of this picture.
                let (weights, inverse) =
                    unsafe { softmax(s, logits.add(x * LANES), groups * self.logits.plane_len()) };
                for block in (group..shape.blocks()).step_by(groups) {
                    let corner = self.values.place(b, block, row as isize - 1, x as isize - 1);
                    let mut sum = s.zero();
                    for (o, weight) in weights.iter().enumerate() {
                        let offset = o / 3 * shape.row() + o % 3 * LANES;
                        // SAFETY: rows row − 1 to row + 1 and columns x − 1 to x + 1 are in the
                        // plane, border included.
                        let value = unsafe { s.load(corner.add(offset)) };
                        sum = s.mul_add(*weight, value, sum);
                    }
                    let to = self.y.place(b, block, row as isize, x as isize);
                    // SAFETY: a place of y's interior, which this job alone writes.
                    unsafe { s.store(to, s.mul(sum, inverse)) };
                }
            }
        }
    }
}

/// Lane by lane e^(logit − largest) of nine vectors `stride` numbers apart, and one over their sum.
///
/// # Safety
/// 16 readable numbers at each.
#[inline(always)]
pub(super) unsafe fn softmax<S: Simd>(
    s: S,
    logits: *const f32,
    stride: usize,
) -> ([S::F; WINDOW], S::F) {
    let mut weights = [s.zero(); WINDOW];
    let mut largest = s.splat(f32::NEG_INFINITY);
    for (o, weight) in weights.iter_mut().enumerate() {
        // SAFETY: as the caller promises.
        *weight = unsafe { s.load(logits.add(o * stride)) };
        largest = s.max(largest, *weight);
    }
    let mut sum = s.zero();
    for weight in &mut weights {
        // A NaN that `max` let go is still here.
        *weight = exp(s, s.sub(*weight, largest));
        sum = s.add(sum, *weight);
    }
    (weights, s.div(s.splat(1.0), sum))
}

#[cfg(test)]
mod tests {
    use super::super::feature_map::{Buffer, Shape};
    use super::*;

    /// As `Op::WindowAttention` says: logits [B, 9·G, H, W] with channel 9g + o, values [B, C, H, W].
    fn plain(logits: &[f32], groups: usize, values: &[f32], shape: Shape) -> Vec<f32> {
        let Shape { images, channels, height, width } = shape;
        let mut y = Vec::new();
        for (b, c) in (0..images).flat_map(|b| (0..channels).map(move |c| (b, c))) {
            for i in 0..height * width {
                let logit = |o: usize| {
                    let channel = c % groups * WINDOW + o;
                    logits[(b * groups * WINDOW + channel) * height * width + i]
                };
                let value = |o: usize| {
                    let (row, column) = (i / width + o / 3, i % width + o % 3);
                    let inside = (1..=height).contains(&row) && (1..=width).contains(&column);
                    let plane = (b * channels + c) * height * width;
                    if inside { values[plane + (row - 1) * width + column - 1] } else { 0.0 }
                };
                let sum: f32 = (0..WINDOW).map(|o| logit(o).exp()).sum();
                y.push((0..WINDOW).map(|o| logit(o).exp() * value(o)).sum::<f32>() / sum);
            }
        }
        y
    }

    /// The engine's answer on logits in the definition's order.
    fn engine(
        (isa, threads): (Isa, usize),
        logits: &[f32],
        groups: usize,
        values: &[f32],
        shape: Shape,
    ) -> Vec<f32> {
        let source = logit_source(groups);
        let wide = Shape { channels: source.len(), ..shape };
        let (a, v, y) = (wide.len(), shape.len(), shape.len());
        let (a, v, y) = (Buffer::zeroed(a), Buffer::zeroed(v), Buffer::zeroed(y));
        let (a, v, y) = (a.map(wide, 0), v.map(shape, 0), y.map(shape, 0));
        let places = shape.places();
        let of = |b: usize, from: usize| {
            let start = (b * groups * WINDOW + from) * places;
            logits[start..start + places].iter().copied()
        };
        let source = &source;
        let ordered: Vec<f32> = (0..shape.images)
            .flat_map(|b| source.iter().flat_map(move |&from| of(b, from)))
            .collect();
        a.write(&ordered);
        v.write(values);
        window_attention(&Team::new(threads, false).unwrap(), isa, &a, &v, &y);
        y.read()
    }

    fn wave(len: usize, seed: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.731 + seed).sin() * 2.0).collect()
    }

    #[test]
    fn every_path_is_the_definition() {
        struct Case {
            groups: usize,
            shape: Shape,
        }
        let cases = [
            Case { groups: 1, shape: Shape::new(1, 5, 1, 1) },
            Case { groups: 2, shape: Shape::new(2, 16, 5, 5) },
            Case { groups: 8, shape: Shape::new(1, 64, 3, 7) },
            Case { groups: 16, shape: Shape::new(2, 48, 4, 2) },
            Case { groups: 32, shape: Shape::new(1, 96, 3, 3) },
        ];
        for Case { groups, shape } in cases {
            let logits = wave(shape.images * groups * WINDOW * shape.places(), 0.4);
            let values = wave(shape.images * shape.channels * shape.places(), 1.7);
            let want = plain(&logits, groups, &values, shape);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                for threads in [1, 2] {
                    let got = engine((isa, threads), &logits, groups, &values, shape);
                    for (got, want) in got.iter().zip(&want) {
                        // Weights of sum 1 on values ≤ 2, each to within 2⁻²¹.
                        assert!((got - want).abs() < 2e-6, "{} {shape:?}", isa.word());
                    }
                }
            }
        }
    }

    /* s = lambda n, a, m, q: torch.arange(n).mul(a).remainder(m) / q
    a = s(72, 7, 11, 4.).view(1, 2, 9, 2, 2).softmax(2); v = s(16, 5, 13, 4.).view(1, 4, 2, 2)
    u = F.unfold(v, 3, padding=1).view(1, 4, 9, 2, 2)
    print((a[:, torch.arange(4) % 2] * u).sum(2).flatten()) */
    #[test]
    fn torch_says_the_same() {
        let logits: Vec<f32> = (0..72).map(|i| (i * 7 % 11) as f32 / 4.0).collect();
        let values: Vec<f32> = (0..16).map(|i| (i * 5 % 13) as f32 / 4.0).collect();
        let want = [
            0.956_347, 0.962_279, 0.296_916, 0.411_945, 0.804_697, 0.863_859, 1.109_972, 0.725_333,
            1.104_362, 1.111_213, 0.395_092, 0.548_156, 0.434_505, 0.466_45, 1.092_482, 0.614_499,
        ];
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let got = engine((isa, 1), &logits, 2, &values, Shape::new(1, 4, 2, 2));
            for (got, want) in got.iter().zip(want) {
                // Six printed digits.
                assert!((got - want).abs() < 1.5e-6, "{} {got} {want}", isa.word());
            }
        }
    }

    #[test]
    fn a_nan_logit_shows() {
        let shape = Shape::new(1, 16, 1, 2);
        let mut logits = wave(2 * WINDOW * 2, 0.0);
        logits[WINDOW * 2 + 1] = f32::NAN;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let y = engine((isa, 1), &logits, 2, &wave(32, 1.0), shape);
            assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i % 4 == 3)), "{y:?}");
        }
    }
}
