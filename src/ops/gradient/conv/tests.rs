//! Against the definition in f64, and the gradients against each other.

use std::collections::BTreeSet;

use super::*;
use crate::ops::checks::{assert_holds, everywhere, filled, pattern, used};
use crate::ops::conv::tests::plain;

/// kernel, stride, padding, dilation
type Kind = (usize, usize, usize, usize);

/// images, (C, O), groups, (H, W), kind
type Case = (usize, (usize, usize), usize, (usize, usize), Kind);

const CASES: [Case; 24] = [
    (1, (16, 16), 1, (5, 7), (1, 1, 0, 1)),
    (2, (20, 33), 1, (9, 13), (1, 2, 0, 1)),
    (1, (1, 17), 1, (6, 5), (3, 1, 1, 1)),
    (2, (17, 1), 1, (7, 9), (3, 1, 1, 1)),
    (2, (33, 50), 1, (1, 1), (3, 1, 1, 1)),
    (1, (40, 80), 1, (8, 8), (3, 2, 1, 1)),
    (2, (16, 16), 1, (7, 9), (3, 2, 1, 1)),
    (3, (32, 48), 1, (1, 6), (3, 2, 1, 1)),
    (1, (64, 64), 1, (33, 31), (3, 1, 1, 1)),
    (2, (48, 112), 1, (16, 12), (3, 1, 1, 1)),
    (1, (32, 32), 1, (13, 15), (3, 1, 2, 2)),
    (2, (16, 20), 1, (13, 9), (3, 1, 6, 6)),
    (1, (16, 16), 1, (9, 9), (3, 1, 0, 2)),
    (1, (16, 17), 1, (12, 9), (5, 4, 2, 1)),
    (2, (18, 16), 1, (11, 10), (5, 1, 2, 1)),
    (1, (16, 16), 1, (14, 13), (7, 2, 3, 1)),
    (2, (3, 64), 1, (18, 23), (7, 2, 3, 1)),
    (1, (3, 20), 1, (9, 8), (3, 1, 1, 1)),
    (1, (16, 16), 1, (9, 12), (4, 3, 1, 2)),
    (2, (64, 64), 4, (8, 8), (3, 1, 1, 1)),
    (1, (128, 64), 4, (7, 5), (3, 2, 1, 1)),
    (1, (32, 64), 2, (6, 6), (1, 1, 0, 1)),
    // more channels than are summed over at once, and more tiles than one thread takes at once
    (1, (150, 70), 1, (3, 5), (5, 1, 2, 1)),
    (2, (16, 32), 1, (60, 50), (3, 1, 1, 1)),
];

/// The definition in f64: dx and dw of Σ dy·conv(x), group by group.
fn plain_gradients(
    geometry: Geometry,
    groups: usize,
    input: Shape,
    x: &[f32],
    w: &[f32],
    dy: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    let out = geometry.output(input);
    let Geometry { c_in, c_out, kernel, stride, padding, dilation } = geometry;
    let (c_own, o_own) = (c_in / groups, c_out / groups);
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    for b in 0..input.images {
        for (o, c) in (0..c_out).flat_map(|o| (0..c_own).map(move |c| (o, c))) {
            for (oy, ox) in (0..out.height).flat_map(|y| (0..out.width).map(move |x| (y, x))) {
                let g = f64::from(dy[((b * c_out + o) * out.height + oy) * out.width + ox]);
                for (ky, kx) in (0..kernel).flat_map(|y| (0..kernel).map(move |x| (y, x))) {
                    let iy = (oy * stride + ky * dilation).wrapping_sub(padding);
                    let ix = (ox * stride + kx * dilation).wrapping_sub(padding);
                    if iy < input.height && ix < input.width {
                        let channel = o / o_own * c_own + c;
                        let at = ((b * c_in + channel) * input.height + iy) * input.width + ix;
                        let tap = ((o * c_own + c) * kernel + ky) * kernel + kx;
                        dx[at] += g * f64::from(w[tap]);
                        dw[tap] += g * f64::from(x[at]);
                    }
                }
            }
        }
    }
    (dx, dw)
}

/// The definition of `plain` with groups: the weights that others have are zero.
fn ungrouped(geometry: Geometry, groups: usize, w: &[f32]) -> Vec<f32> {
    let Geometry { c_in, c_out, kernel, .. } = geometry;
    let (c_own, taps) = (c_in / groups, kernel * kernel);
    let mut whole = vec![0.0; geometry.weights()];
    for o in 0..c_out {
        let first = o / (c_out / groups) * c_own;
        whole[(o * c_in + first) * taps..][..c_own * taps]
            .copy_from_slice(&w[o * c_own * taps..][..c_own * taps]);
    }
    whole
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}

#[test]
fn all_four_equal_the_definition_on_ragged_shapes() {
    let mut kernels = BTreeSet::new();
    for (images, (c_in, c_out), groups, (height, width), kind) in CASES {
        let (kernel, stride, padding, dilation) = kind;
        let geometry = Geometry { c_in, c_out, kernel, stride, padding, dilation };
        let input = Shape::new(images, c_in, height, width);
        let out = geometry.output(input);
        let ((from, x), (up, dy)) = (filled(input, 1), filled(out, 2));
        let (w, bias) = (pattern(geometry.weights() / groups, 3), pattern(c_out, 4));
        let y = narrow(&plain(geometry, input, &x, &ungrouped(geometry, groups, &w), &bias));
        let (dx, dw) = plain_gradients(geometry, groups, input, &x, &w, &dy);
        let (dx, dw) = (narrow(&dx), narrow(&dw));
        let db: Vec<f32> = (0..c_out)
            .map(|o| {
                let of = |b: usize| &dy[(b * c_out + o) * out.places()..][..out.places()];
                (0..images).flat_map(of).map(|x| f64::from(*x)).sum::<f64>() as f32
            })
            .collect();
        // Sums of n products of numbers below 1 in f32, and Winograd's transforms, which lose a bit
        // or two.
        let bound = |n: usize| 2e-6 * (4.0 + 2.0 * (n as f32).sqrt());
        let taps = kernel * kernel;
        let bounds =
            [c_in / groups * taps, c_out / groups * taps, images * out.places()].map(bound);
        let mut once: Vec<(Isa, Vec<f32>)> = Vec::new();
        everywhere(|team, isa| {
            let conv = TrainConv::new(isa, geometry, groups, input, team.threads(), true);
            kernels.extend((0..3).zip(conv.words()));
            let what = format!("{geometry:?} {groups} {} {:?}", isa.word(), conv.words());
            let scratch = Buffer::from_slice(&vec![f32::NAN; conv.scratch_len()]);
            let to = used(out);
            conv.forward(team, &w, Some(&bias), from.map(input, 0), to.map(out, 0), &scratch);
            assert_holds(to.map(out, 0), &y, (bounds[0], 0.0), &format!("y of {what}"));
            let to = used(input);
            conv.input_gradient(team, &w, up.map(out, 0), to.map(input, 0), &scratch);
            assert_holds(to.map(input, 0), &dx, (bounds[1], 0.0), &format!("dx of {what}"));
            // Onto a pattern, within what a sum of two loses beside.
            let (to, before) = filled(input, 5);
            let sum: Vec<f32> = dx.iter().zip(&before).map(|(dx, before)| dx + before).collect();
            conv.add_input_gradient(team, &w, up.map(out, 0), to.map(input, 0), &scratch);
            assert_holds(to.map(input, 0), &sum, (bounds[1], 2e-7), &format!("dx added, {what}"));
            let mut got = vec![77.0; w.len()];
            conv.weight_gradient(team, from.map(input, 0), up.map(out, 0), &mut got, &scratch);
            for (i, (got, want)) in got.iter().zip(&dw).enumerate() {
                assert!((got - want).abs() < bounds[2], "dw of {what} at {i}: {got}, not {want}");
            }
            // The same whatever the number of threads.
            match once.iter().find(|(of, _)| *of == isa) {
                Some((_, before)) => assert_eq!(&got, before, "dw of {what}"),
                None => once.push((isa, got)),
            }
            let mut got = vec![77.0; c_out];
            conv.bias_gradient(team, up.map(out, 0), &mut got);
            for (got, want) in got.iter().zip(&db) {
                assert!((got - want).abs() < bounds[2], "db of {what}: {got}, not {want}");
            }
        });
    }
    let forward = [(0, "direct"), (0, "stem"), (0, "winograd")];
    let back = [(1, "direct"), (1, "strided"), (1, "winograd")];
    let weights = [(2, "direct"), (2, "stem"), (2, "winograd")];
    assert_eq!(kernels, [forward, back, weights].into_iter().flatten().collect(), "all were tried");
}

/// Where the sums are large, all threads work on some tiles, and go on to the next.
#[test]
fn tiles_in_several_rounds_equal_the_definition() {
    let input = Shape::new(1, 160, 12, 12);
    // 144 phases of one place each: tiles that cost little.
    let geometry =
        Geometry { c_in: 160, c_out: 144, kernel: 3, stride: 1, padding: 12, dilation: 12 };
    let out = geometry.output(input);
    let ((from, x), (up, dy)) = (filled(input, 1), filled(out, 2));
    let w = vec![0.0; geometry.weights()];
    let (_, want) = plain_gradients(geometry, 1, input, &x, &w, &dy);
    everywhere(|team, isa| {
        let mut conv = TrainConv::new(isa, geometry, 1, input, team.threads(), false);
        conv.gradient = WeightGradient::Tiles(Tiles::new(isa, geometry, input, team.threads()));
        let scratch = Buffer::zeroed(conv.scratch_len());
        let mut dw = vec![77.0; w.len()];
        conv.weight_gradient(team, from.map(input, 0), up.map(out, 0), &mut dw, &scratch);
        for (got, want) in dw.iter().zip(&want) {
            assert!((f64::from(*got) - want).abs() < 6e-5, "{}: {got}, not {want}", isa.word());
        }
    });
}

#[test]
fn nan_is_not_hidden() {
    let shape = Shape::new(1, 16, 6, 6);
    for (kernel, stride) in [(3, 1), (1, 1), (3, 2)] {
        let (padding, dilation) = (kernel / 2, 1);
        let geometry = Geometry { c_in: 16, c_out: 16, kernel, stride, padding, dilation };
        everywhere(|team, isa| {
            let conv = TrainConv::new(isa, geometry, 1, shape, team.threads(), true);
            let scratch = Buffer::zeroed(conv.scratch_len());
            let (x, dx) = (Buffer::zeroed(shape.len()), Buffer::zeroed(shape.len()));
            let (dy, out) = (filled(conv.output(), 1).0, conv.output());
            dy.map(out, 0).set(0, 3, 1, 1, f32::NAN);
            let w = pattern(conv.weights_len(), 2);
            conv.input_gradient(team, &w, dy.map(out, 0), dx.map(shape, 0), &scratch);
            assert!(dx.map(shape, 0).get(0, 5, stride, stride).is_nan(), "{geometry:?}");
            let mut dw = vec![0.0; w.len()];
            conv.weight_gradient(team, x.map(shape, 0), dy.map(out, 0), &mut dw, &scratch);
            let of = |o: usize| &dw[o * 16 * kernel * kernel..][..16 * kernel * kernel];
            assert!(of(3).iter().all(|dw| dw.is_nan()), "{geometry:?}");
            assert!(of(4).iter().all(|dw| *dw == 0.0), "{geometry:?}");
            let mut db = vec![0.0; 16];
            conv.bias_gradient(team, dy.map(out, 0), &mut db);
            assert!(db[3].is_nan() && db[4].is_finite());
        });
    }
}

/// Sums over many places stay close: they are made of short ones.
#[test]
fn a_sum_over_many_places_is_as_good_as_a_short_one() {
    let input = Shape::new(8, 16, 64, 64);
    for (kernel, padding) in [(3, 1), (1, 0)] {
        let geometry = Geometry { c_in: 16, c_out: 16, kernel, stride: 1, padding, dilation: 1 };
        let ((from, x), (up, dy)) = (filled(input, 1), filled(input, 2));
        let at = |c: usize, b: usize| (b * 16 + c) * input.places();
        // The middle tap of channel 2 in and 3 out.
        let want: f64 = (0..input.images)
            .flat_map(|b| (0..input.places()).map(move |i| (b, i)))
            .map(|(b, i)| f64::from(x[at(2, b) + i]) * f64::from(dy[at(3, b) + i]))
            .sum();
        let (taps, mut once) = (kernel * kernel, None);
        let isa = Isa::ALL.into_iter().rfind(|isa| isa.is_here()).unwrap();
        for threads in [1, 2] {
            let team = Team::new(threads, false).unwrap();
            let conv = TrainConv::new(isa, geometry, 1, input, threads, false);
            let scratch = Buffer::zeroed(conv.scratch_len());
            let mut dw = vec![0.0; conv.weights_len()];
            conv.weight_gradient(&team, from.map(input, 0), up.map(input, 0), &mut dw, &scratch);
            let got = f64::from(dw[(3 * 16 + 2) * taps + taps / 2]);
            // The sum is of the size √32768 / 3 = 60; measured are 1e-4 and less.
            assert!((got - want).abs() < 5e-4, "{:?}: {got}, not {want}", conv.words());
            assert_eq!(once.get_or_insert_with(|| dw.clone()), &dw, "with {threads} threads");
        }
    }
}

#[test]
#[should_panic(expected = "scratch memory holds a map")]
fn scratch_memory_with_a_map_in_it_is_refused() {
    let shape = Shape::new(1, 16, 4, 4);
    let geometry = Geometry { c_in: 16, c_out: 16, kernel: 3, stride: 1, padding: 1, dilation: 1 };
    let conv = TrainConv::new(Isa::Portable, geometry, 1, shape, 1, true);
    let x = Buffer::zeroed(shape.len());
    let scratch = Buffer::zeroed(conv.scratch_len() + shape.len());
    let (dy, w) = (scratch.map(shape, 0), vec![0.0; conv.weights_len()]);
    conv.input_gradient(&Team::alone(), &w, dy, x.map(shape, 0), &scratch);
}
