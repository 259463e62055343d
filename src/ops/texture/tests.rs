//! Held against plain loops over the definitions, and against numbers of torch.

use super::*;
use crate::ops::feature_map::Buffer;

const RULES: [LevelRule; 2] = [LevelRule::Paper, LevelRule::Reference];
const NEIGHBOURS: [Neighbour; 2] = [Neighbour::Diagonal, Neighbour::Right];

fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_here())
}

fn wave(len: usize, seed: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.731 + seed).sin() + (i as f32 * 0.057).cos() * 0.5).collect()
}

/// What `run` writes to a map of `shape`, from maps of the given values; junk behind their channels.
fn made<const K: usize>(
    inputs: [(&[f32], Shape); K],
    shape: Shape,
    run: impl Fn([&FeatureMap<'_>; K], &FeatureMap<'_>),
) -> Vec<f32> {
    let buffers = inputs.map(|(values, shape)| {
        let buffer = Buffer::zeroed(shape.len());
        let map = buffer.map(shape, 0);
        map.write(values);
        for c in shape.channels.max(2)..shape.blocks() * LANES {
            map.set(shape.images - 1, c, 0, 0, 50.0);
        }
        buffer
    });
    let maps: [FeatureMap<'_>; K] = std::array::from_fn(|i| buffers[i].map(inputs[i].1, 0));
    let buffer = Buffer::zeroed(shape.len());
    let y = buffer.map(shape, 0);
    run(std::array::from_fn(|i| &maps[i]), &y);
    y.read()
}

fn assert_close(got: &[f32], want: &[f32], bound: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= bound, "{what} at {i}: {got} {want}");
    }
}

/// The levels of values, and E [K, N].
fn plain_levels(values: &[f32], n: usize, rule: LevelRule) -> (Vec<f32>, Vec<Vec<f32>>) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let level = |i: usize| match rule {
        LevelRule::Paper => (high - low) / n as f32 * (i + 1) as f32 + low,
        LevelRule::Reference => (2 * i + 1) as f32 / (2 * n) as f32 * (high - low) + low,
    };
    let levels: Vec<f32> = (0..n).map(level).collect();
    let kept = |d: f32| match rule {
        LevelRule::Paper => (-0.5 / n as f32..0.5 / n as f32).contains(&d),
        LevelRule::Reference => 1.0 - d.abs() > 1.0 - (levels[1] - levels[0]),
    };
    let of = |d: f32| if kept(d) { 1.0 - d.abs() } else { 0.0 };
    let encoded = values.iter().map(|m| levels.iter().map(|l| of(l - m)).collect()).collect();
    (levels, encoded)
}

fn plain_counts(values: &[f32], n: usize, rule: LevelRule) -> Vec<f32> {
    let (levels, encoded) = plain_levels(values, n, rule);
    let sum = |n: usize| encoded.iter().map(|e| f64::from(e[n])).sum::<f64>();
    let total: f64 = (0..n).map(sum).sum();
    levels.into_iter().chain((0..n).map(|n| (sum(n) / total) as f32)).collect()
}

/// One picture: [3, S², N²].
fn plain_pairs(
    values: &[f32],
    (height, width): (usize, usize),
    (n, regions): (usize, usize),
    (rule, neighbour): (LevelRule, Neighbour),
) -> Vec<f32> {
    let (dy, dx) = neighbour.offset();
    let (h, w) = (height / regions, width / regions);
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    for region in 0..regions * regions {
        let (y, x) = (region / regions * h, region % regions * w);
        let own: Vec<f32> = (0..h * w).map(|i| values[(y + i / w) * width + x + i % w]).collect();
        let (levels, encoded) = plain_levels(&own, n, rule);
        let mut pairs = vec![0.0f64; n * n];
        for (i, j) in (0..h - dy).flat_map(|i| (0..w - dx).map(move |j| (i, j))) {
            let (a, b) = (&encoded[i * w + j], &encoded[(i + dy) * w + j + dx]);
            for (at, pair) in pairs.iter_mut().enumerate() {
                *pair += f64::from(a[at / n]) * f64::from(b[at % n]);
            }
        }
        let total: f64 = pairs.iter().sum();
        for (at, pair) in pairs.iter().enumerate() {
            parts[0].push(levels[at / n]);
            parts[1].push(levels[at % n]);
            parts[2].push((pair / (total + 1e-6)) as f32);
        }
    }
    parts.concat()
}

/// One picture: d [C, N] → [C, K].
fn plain_spread(values: &[f32], d: &[f32], n: usize, rule: LevelRule) -> Vec<f32> {
    let (_, encoded) = plain_levels(values, n, rule);
    let of = |d: &[f32]| -> Vec<f32> {
        encoded.iter().map(|e| e.iter().zip(d).map(|(e, d)| e * d).sum()).collect()
    };
    d.chunks(n).flat_map(of).collect()
}

fn counts(
    isa: Isa,
    threads: usize,
    values: &[f32],
    shape: Shape,
    n: usize,
    rule: LevelRule,
) -> Vec<f32> {
    let team = Team::new(threads, false).unwrap();
    let scratch = Buffer::zeroed(level_counts_scratch(shape.images, n));
    made([(values, shape)], Shape::new(shape.images, 2, 1, n), |[cosines], y| {
        level_counts(&team, isa, cosines, rule, &scratch, y);
    })
}

fn pairs(
    isa: Isa,
    threads: usize,
    values: &[f32],
    shape: Shape,
    (n, regions): (usize, usize),
    rules: (LevelRule, Neighbour),
) -> Vec<f32> {
    let team = Team::new(threads, false).unwrap();
    let scratch = Buffer::zeroed(co_occurrence_scratch(shape, n, regions));
    let wanted = Shape::new(shape.images, 3, regions * regions, n * n);
    made([(values, shape)], wanted, |[cosines], y| {
        co_occurrence(&team, isa, cosines, rules, &scratch, y);
    })
}

fn spread(
    isa: Isa,
    threads: usize,
    (values, d): (&[f32], &[f32]),
    shape: Shape,
    n: usize,
    rule: LevelRule,
) -> Vec<f32> {
    let team = Team::new(threads, false).unwrap();
    let scratch = Buffer::zeroed(spread_levels_scratch(shape.images, n));
    let channels = d.len() / n / shape.images;
    let d = (d, Shape::new(shape.images, channels, 1, n));
    made([(values, shape), d], Shape { channels, ..shape }, |inputs, y| {
        spread_levels(&team, isa, inputs, rule, &scratch, y);
    })
}

/// A range of 0.3, in which the paper's windows take about three levels, or of 3, in which most
/// values have none.
const RANGES: [f32; 2] = [0.1, 1.0];

#[test]
fn counts_pairs_and_spreading_are_the_definitions() {
    struct Case {
        shape: Shape,
        levels: usize,
        regions: usize,
        channels: usize,
    }
    let cases = [
        Case { shape: Shape::new(1, 1, 6, 4), levels: 4, regions: 2, channels: 5 },
        Case { shape: Shape::new(2, 1, 8, 8), levels: 8, regions: 4, channels: 70 },
        Case { shape: Shape::new(2, 1, 3, 9), levels: 19, regions: 1, channels: 16 },
        Case { shape: Shape::new(1, 1, 6, 9), levels: 33, regions: 3, channels: 1 },
    ];
    for (Case { shape, levels, regions, channels }, range) in
        cases.iter().flat_map(|case| RANGES.map(|range| (case, range)))
    {
        let (shape, n) = (*shape, *levels);
        let values: Vec<f32> =
            wave(shape.images * shape.places(), 0.2).iter().map(|x| x * range).collect();
        let d = wave(shape.images * channels * n, 1.1);
        let images = || values.chunks(shape.places());
        for (rule, neighbour) in RULES.into_iter().flat_map(|rule| NEIGHBOURS.map(|to| (rule, to)))
        {
            let what = format!("{rule:?} {neighbour:?} {shape:?} {n} {range}");
            let want_counts: Vec<f32> =
                images().flat_map(|image| plain_counts(image, n, rule)).collect();
            let side = (shape.height, shape.width);
            let want_pairs: Vec<f32> = images()
                .flat_map(|image| plain_pairs(image, side, (n, *regions), (rule, neighbour)))
                .collect();
            let want_spread: Vec<f32> = images()
                .zip(d.chunks(channels * n))
                .flat_map(|(image, d)| plain_spread(image, d, n, rule))
                .collect();
            for (isa, threads) in isas().flat_map(|isa| [(isa, 1), (isa, 2)]) {
                // Shares of sums of ≤ 72 numbers ≤ 1 in f32.
                let got = counts(isa, threads, &values, shape, n, rule);
                assert_close(&got, &want_counts, 2e-6, &what);
                let got = pairs(isa, threads, &values, shape, (n, *regions), (rule, neighbour));
                assert_close(&got, &want_pairs, 2e-6, &what);
                // Up to 33 numbers ≤ 1.5, with and without fused multiplication.
                let got = spread(isa, threads, (&values, &d), shape, n, rule);
                assert_close(&got, &want_spread, 1e-5, &what);
            }
        }
    }
}

/* import sys; sys.path.insert(0, "../shared/spec/tools"); import torch, specmodels as S
M = torch.tensor([[0.1,0.35,-0.2,0.62],[0.5,0.05,0.44,0.71],[-0.11,0.27,0.3,0.58]])
for mode, f in (("paper", S.qco_levels_paper), ("reference", S.qco_levels_ref)):
    m = M.reshape(1, -1); L = f(m, 4); E = S.qco_encode(m, L, 4, mode); c = E.sum(1)
    P = torch.einsum("rijm,rijn->rmn", (e := E.reshape(1, 3, 4, 4))[:, :2, :3], e[:, 1:, 1:])
    print(L, c / c.sum(), P / (P.sum() + 1e-6), torch.arange(1, 5.) * 0.1 @ E[0].T)
    E = S.qco_encode(m, f(m, 20), 20, mode); print(torch.arange(1, 21.) * 0.1 @ E[0].T) */
#[test]
fn torch_says_the_same() {
    let values = [0.1, 0.35, -0.2, 0.62, 0.5, 0.05, 0.44, 0.71, -0.11, 0.27, 0.3, 0.58];
    struct Case {
        rule: LevelRule,
        levels: [f32; 4],
        counts: [f32; 4],
        pairs: [f32; 16],
        spread: [f32; 12],
        spread_20: [f32; 12],
    }
    let cases = [
        Case {
            rule: LevelRule::Paper,
            levels: [0.0275, 0.255, 0.4825, 0.71],
            counts: [0.2004735, 0.2993949, 0.2991318, 0.2009997],
            pairs: [
                0.1997606, 0.2056834, 0.0, 0.0, 0.0, 0.0, 0.1909266, 0.0, 0.0, 0.2132298,
                0.1903992, 0.0, 0.0, 0.0, 0.0, 0.0,
            ],
            spread: [
                0.09275, 0.181, 0.0, 0.364, 0.29475, 0.09775, 0.28725, 0.4, 0.0, 0.197, 0.191,
                0.27075,
            ],
            spread_20: [
                0.68705, 1.1952, 0.0, 1.7982, 1.47375, 1.07495, 1.3958, 2.0, 0.1998, 0.985,
                1.09945, 1.68895,
            ],
        },
        Case {
            rule: LevelRule::Reference,
            levels: [-0.08625, 0.14125, 0.36875, 0.59625],
            counts: [0.1977101, 0.2441357, 0.3015917, 0.2565624],
            pairs: [
                0.0426135, 0.08888718, 0.0487666, 0.04761904, 0.05020669, 0.09917109, 0.09586065,
                0.04047582, 0.0, 0.0458887, 0.1471332, 0.1055877, 0.0, 0.04773745, 0.08972914,
                0.05032302,
            ],
            spread: [
                0.273125, 0.452625, 0.088625, 0.3905, 0.622125, 0.268125, 0.616125, 0.3545,
                0.097625, 0.444625, 0.447625, 0.630125,
            ],
            spread_20: [
                1.464025, 2.443525, 0.097725, 3.615925, 3.031225, 1.077225, 2.834325, 1.9545,
                0.488525, 2.053725, 2.247625, 3.421025,
            ],
        },
    ];
    let shape = Shape::new(1, 1, 3, 4);
    let tenths = |n: u8| (1..=n).map(|i| f32::from(i) * 0.1).collect::<Vec<_>>();
    for (case, isa) in cases.iter().flat_map(|case| isas().map(move |isa| (case, isa))) {
        let rule = case.rule;
        // Seven printed digits of numbers below 4.
        let close = |got: &[f32], want: &[f32]| assert_close(got, want, 1e-6, isa.word());
        let got = counts(isa, 1, &values, shape, 4, rule);
        close(&got, &[case.levels, case.counts].concat());
        close(
            &pairs(isa, 1, &values, shape, (4, 1), (rule, Neighbour::Diagonal))[32..],
            &case.pairs,
        );
        close(&spread(isa, 1, (&values, &tenths(4)), shape, 4, rule), &case.spread);
        close(&spread(isa, 1, (&values, &tenths(20)), shape, 20, rule), &case.spread_20);
    }
}

#[test]
fn one_value_everywhere_is_every_level_of_the_paper_and_none_of_the_reference() {
    let (shape, values) = (Shape::new(1, 1, 2, 2), [0.25; 4]);
    for isa in isas() {
        let got = counts(isa, 1, &values, shape, 5, LevelRule::Paper);
        assert_close(&got, &[[0.25; 5], [0.2; 5]].concat(), 1e-7, "paper");
        let got = spread(isa, 1, (&values, &[1.0; 5]), shape, 5, LevelRule::Paper);
        assert_eq!(got, [5.0; 4]);
        let got = counts(isa, 1, &values, shape, 5, LevelRule::Reference);
        assert_eq!(got, [[0.25; 5], [0.0; 5]].concat());
    }
}

#[test]
fn a_nan_cosine_shows() {
    let shape = Shape::new(1, 1, 3, 6);
    let mut values = wave(18, 0.0);
    values[7] = f32::NAN;
    for (isa, rule) in isas().flat_map(|isa| RULES.map(|rule| (isa, rule))) {
        assert!(counts(isa, 1, &values, shape, 17, rule).iter().all(|x| x.is_nan()));
        for neighbour in NEIGHBOURS {
            let got = pairs(isa, 1, &values, shape, (3, 1), (rule, neighbour));
            assert!(got.iter().all(|x| x.is_nan()));
        }
        let y = spread(isa, 1, (&values, &wave(34, 0.4)), shape, 17, rule);
        assert!(y.iter().all(|x| x.is_nan()));
    }
}

#[test]
fn attention_between_levels_is_the_definition() {
    for (images, c, cv, n) in [(1, 5, 5, 8), (2, 16, 20, 33), (1, 128, 128, 21)] {
        let (shape, wide) = (Shape::new(images, c, 1, n), Shape::new(images, cv, 1, n));
        let values = |shape: Shape, seed: f32| -> Vec<f32> {
            let scale = 1.0 / (shape.channels as f32).sqrt();
            wave(images * shape.channels * n, seed).iter().map(|x| x * scale).collect()
        };
        let (k, q, v) = (values(shape, 0.1), values(shape, 0.8), values(wide, 1.9));
        let mut want = Vec::new();
        for (b, channel, i) in
            (0..images).flat_map(|b| (0..cv).flat_map(move |c| (0..n).map(move |i| (b, c, i))))
        {
            let weight = |j: usize| {
                let dot = |c: usize| f64::from(k[c * n + i]) * f64::from(q[c * n + j]);
                (b * c..(b + 1) * c).map(dot).sum::<f64>().exp()
            };
            let value = |j: usize| weight(j) * f64::from(v[(b * cv + channel) * n + j]);
            let sum: f64 = (0..n).map(weight).sum();
            want.push(((0..n).map(value).sum::<f64>() / sum) as f32);
        }
        for (isa, threads) in isas().flat_map(|isa| [(isa, 1), (isa, 2)]) {
            let team = Team::new(threads, false).unwrap();
            let scratch = Buffer::zeroed(level_attention_scratch(shape));
            let got = made([(&k, shape), (&q, shape), (&v, wide)], wide, |inputs, y| {
                level_attention(&team, isa, inputs, &scratch, y);
            });
            // Logits ≤ 2 and weights in f32 on values ≤ 1.5.
            assert_close(&got, &want, 2e-6, isa.word());
        }
    }
}

#[test]
fn cosines_repeats_and_means_are_the_definitions() {
    for (images, c, h, w, side) in [(1, 3, 4, 6, 2), (2, 40, 5, 5, 1), (1, 16, 9, 27, 3)] {
        let (shape, square) = (Shape::new(images, c, h, w), Shape::new(images, c, side, side));
        let (x, g) = (wave(images * c * h * w, 0.6), wave(images * c * side * side, 2.2));
        let mut want = Vec::new();
        for (b, i) in (0..images).flat_map(|b| (0..h * w).map(move |i| (b, i))) {
            let region = i / w / (h / side) * side + i % w / (w / side);
            let of = |c: usize| (x[c * h * w + i], g[c * side * side + region]);
            let sum = |f: &dyn Fn((f32, f32)) -> f32| -> f64 {
                (b * c..(b + 1) * c).map(|c| f64::from(f(of(c)))).sum()
            };
            let norm = sum(&|(x, _)| x * x).sqrt() * sum(&|(_, g)| g * g).sqrt();
            want.push((sum(&|(x, g)| x * g) / norm) as f32);
        }
        let times = 5;
        let long = Shape::new(images, c, side * side, times);
        let repeated: Vec<f32> = g.iter().flat_map(|x| [*x; 5]).collect();
        let rows = wave(g.len() * times, 0.9);
        let means: Vec<f32> =
            rows.chunks(times).map(|row| row.iter().sum::<f32>() / times as f32).collect();
        for (isa, threads) in isas().flat_map(|isa| [(isa, 1), (isa, 2)]) {
            let team = Team::new(threads, false).unwrap();
            let got =
                made([(&x, shape), (&g, square)], Shape { channels: 1, ..shape }, |[x, g], y| {
                    cosine_to_mean(&team, isa, x, g, y);
                });
            // Sums of ≤ 40 products in f32.
            assert_close(&got, &want, 2e-6, isa.word());
            let got = made([(&g, square)], long, |[x], y| repeat_regions(&team, isa, x, y));
            assert_eq!(got, repeated);
            let got = made([(&rows, long)], square, |[x], y| mean_regions(&team, isa, x, y));
            assert_close(&got, &means, 1e-6, isa.word());
        }
    }
}

#[test]
fn the_cosine_of_nothing_is_zero_and_of_nan_nan() {
    let (shape, square) = (Shape::new(1, 20, 1, 5), Shape::new(1, 20, 1, 1));
    let mut x = vec![0.0; 100];
    x[17 * 5 + 4] = f32::NAN;
    for isa in isas() {
        let y = made(
            [(&x, shape), (&wave(20, 0.0), square)],
            Shape { channels: 1, ..shape },
            |[x, g], y| cosine_to_mean(&Team::alone(), isa, x, g, y),
        );
        assert!(y[..4] == [0.0; 4] && y[4].is_nan(), "{y:?}");
    }
}
