//! Convolutions against a plain loop in f64.

use inspectd::cuda::conv::{Ending, Numbers, Sizes, convolve};
use inspectd::cuda::{DeviceMemory, Gpu};

use crate::data::{assert_close, noise};
use crate::interpreter::Interpreter;

/// [B, O, H', W'] of x [B, C, H, W], w [O, C/G, K, K] and b `[O]`; and what is added and done then.
fn plain(s: &Sizes, [x, w, b]: [&[f32]; 3], residual: Option<&[f32]>, slope: f32) -> Vec<f32> {
    let ((height, width), mut out) = (s.out(), Vec::new());
    let (c_in, c_out) = (s.c_in / s.groups, s.c_out / s.groups);
    for (image, o) in (0..s.images).flat_map(|image| (0..s.c_out).map(move |o| (image, o))) {
        for (y, x0) in (0..height).flat_map(|y| (0..width).map(move |x0| (y, x0))) {
            let mut sum = f64::from(b[o]);
            for (c, dy, dx) in (0..c_in).flat_map(|c| {
                (0..s.kernel).flat_map(move |dy| (0..s.kernel).map(move |dx| (c, dy, dx)))
            }) {
                let row = (y * s.stride + dy * s.dilation).wrapping_sub(s.padding);
                let column = (x0 * s.stride + dx * s.dilation).wrapping_sub(s.padding);
                if row < s.height && column < s.width {
                    let plane = image * s.c_in + o / c_out * c_in + c;
                    let weight = w[((o * c_in + c) * s.kernel + dy) * s.kernel + dx];
                    let value = x[(plane * s.height + row) * s.width + column];
                    sum += f64::from(weight) * f64::from(value);
                }
            }
            sum += residual.map_or(0.0, |residual| f64::from(residual[out.len()]));
            out.push(if sum < 0.0 { f64::from(slope) * sum } else { sum } as f32);
        }
    }
    out
}

/// What the card makes of it, and how many launches that took.
fn made(
    s: &Sizes,
    [x, w, b]: [&[f32]; 3],
    residual: Option<&[f32]>,
    slope: f32,
) -> (Vec<f32>, usize) {
    let mut gpu = Interpreter::default();
    let taps: Vec<u8> = s.taps().iter().flat_map(|tap| tap.to_le_bytes()).collect();
    let (from, weights, bias) = (gpu.floats(x), gpu.floats(&s.pack(w)), gpu.floats(b));
    let taps = gpu.buffer(&taps);
    let residual = residual.map(|residual| gpu.floats(residual));
    let (height, width) = s.out();
    let to = gpu.alloc(4 * s.images * s.c_out * height * width).unwrap();
    let parts = (s.part_bytes() > 0).then(|| gpu.alloc(s.part_bytes()).unwrap());
    let numbers = Numbers { weights: weights.region(), taps: taps.region(), bias: bias.region() };
    let ending = Ending { residual: residual.as_ref().map(|r| r.region()), slope };
    let parts = parts.as_ref().map(|parts| parts.region());
    let launches = convolve(s, &numbers, from.region(), parts, to.region(), ending);
    launches.iter().for_each(|launch| gpu.launch(launch).unwrap());
    (gpu.read_floats(to.region()).unwrap(), launches.len())
}

/// Images, C, (H, W), O, then K, stride, padding, dilation, groups.
fn sizes(
    (images, c_in, (height, width), c_out): (usize, usize, (usize, usize), usize),
    [kernel, stride, padding, dilation, groups]: [usize; 5],
) -> Sizes {
    Sizes { images, c_in, height, width, c_out, kernel, stride, padding, dilation, groups }
}

fn inputs(s: &Sizes, seed: u32) -> [Vec<f32>; 4] {
    let depth = s.c_in / s.groups * s.kernel * s.kernel;
    let (height, width) = s.out();
    let scale = 1.0 / (depth as f32).sqrt();
    let weights = noise(s.c_out * depth, seed).iter().map(|w| w * scale).collect();
    [
        noise(s.images * s.c_in * s.height * s.width, seed + 1),
        weights,
        noise(s.c_out, seed + 2),
        noise(s.images * s.c_out * height * width, seed + 3),
    ]
}

#[test]
fn convolutions_of_every_shape_are_the_definition() {
    let cases = [
        // The stem; ragged places and channels.
        sizes((1, 3, (15, 13), 33), [7, 2, 3, 1, 1]),
        sizes((2, 5, (9, 7), 65), [3, 1, 1, 1, 1]),
        sizes((1, 1, (1, 1), 1), [3, 1, 1, 1, 1]),
        sizes((3, 31, (3, 11), 7), [3, 2, 1, 1, 1]),
        // Two tiles of places over the border between pictures.
        sizes((2, 16, (8, 8), 64), [3, 1, 1, 1, 1]),
        // Parts of the depth.
        sizes((1, 65, (4, 4), 66), [3, 1, 1, 1, 1]),
        sizes((1, 513, (1, 1), 3), [1, 1, 0, 1, 1]),
        sizes((2, 288, (2, 2), 40), [1, 1, 0, 1, 1]),
        // 1 × 1: with places in fours, without, with a stride.
        sizes((2, 33, (6, 6), 20), [1, 1, 0, 1, 1]),
        sizes((1, 40, (5, 5), 70), [1, 1, 0, 1, 1]),
        sizes((2, 9, (7, 8), 12), [1, 2, 0, 1, 1]),
        // Dilated, its window larger than the map; even kernel.
        sizes((1, 8, (5, 6), 9), [3, 1, 6, 6, 1]),
        sizes((1, 4, (6, 5), 6), [2, 1, 0, 1, 1]),
        // Groups, and 1 × 1 in groups.
        sizes((2, 12, (5, 4), 9), [3, 1, 1, 1, 3]),
        sizes((1, 34, (4, 6), 132), [1, 1, 0, 1, 2]),
        // Depthwise, with two channels out for each, strided and dilated.
        sizes((2, 17, (9, 31), 17), [3, 1, 1, 1, 17]),
        sizes((1, 6, (8, 8), 12), [7, 2, 3, 1, 6]),
        sizes((1, 5, (17, 17), 5), [5, 1, 4, 2, 5]),
    ];
    let mut with_parts = 0;
    for (i, s) in cases.iter().enumerate() {
        let [x, w, b, residual] = inputs(s, 10 * i as u32);
        let endings = [(None, 1.0), (Some(&residual[..]), 0.0), (Some(&residual[..]), 0.1)];
        let (other, slope) = endings[i % 3];
        for (residual, slope) in [(None, 0.0), (other, slope)] {
            let want = plain(s, [&x, &w, &b], residual, slope);
            let (got, launches) = made(s, [&x, &w, &b], residual, slope);
            with_parts += launches - 1;
            // Sums of ≤ 585 products, of numbers below 2 in the end.
            assert_close(&got, &want, 2e-6, &format!("{s:?} {slope}"));
        }
    }
    assert!(with_parts >= 6, "{with_parts} with parts of their depth");
}

#[test]
fn a_nan_reaches_what_reads_it_and_nothing_else() {
    for s in [
        sizes((1, 3, (6, 6), 2), [3, 1, 1, 1, 1]),
        sizes((1, 3, (6, 6), 2), [1, 1, 0, 1, 1]),
        sizes((1, 2, (6, 6), 2), [3, 1, 1, 1, 2]),
        sizes((1, 300, (2, 3), 1), [1, 1, 0, 1, 1]),
    ] {
        let [mut x, w, b, _] = inputs(&s, 3);
        let want = plain(&s, [&x, &w, &b], None, 0.0);
        x[0] = f32::NAN;
        let with_nan = plain(&s, [&x, &w, &b], None, 0.0);
        let (got, _) = made(&s, [&x, &w, &b], None, 0.0);
        assert!(with_nan.iter().any(|y| y.is_nan()));
        for (i, got) in got.iter().enumerate() {
            assert_eq!(got.is_nan(), with_nan[i].is_nan(), "{s:?}, {i}");
            assert!(got.is_nan() || (got - want[i]).abs() < 1e-5, "{s:?}, {i}");
        }
    }
}
