//! Held against differences of plain f64 functions that are written from the definitions.

use super::*;
use crate::ops::checks::{assert_holds, everywhere, pattern, used};
use crate::ops::feature_map::{Buffer, Shape};
use crate::ops::simd::Isa;
use crate::ops::team::Team;
use crate::ops::texture::{self, Neighbour};

const RULES: [LevelRule; 2] = [LevelRule::Paper, LevelRule::Reference];
const NEIGHBOURS: [Neighbour; 2] = [Neighbour::Diagonal, Neighbour::Right];

/// A range of 0.2, in which the paper's windows take about five levels, or of 2, in which half of the
/// values have none.
const RANGES: [f32; 2] = [0.1, 1.0];

/// Sums of some hundred numbers in f32, some of them divided by sums of a few.
const BOUND: (f32, f32) = (2e-5, 2e-4);

struct Case {
    cosines: Shape,
    levels: usize,
    regions: usize,
    channels: usize,
}

const CASES: [Case; 4] = [
    Case {
        cosines: Shape { images: 1, channels: 1, height: 6, width: 4 },
        levels: 4,
        regions: 2,
        channels: 5,
    },
    Case {
        cosines: Shape { images: 2, channels: 1, height: 8, width: 8 },
        levels: 8,
        regions: 4,
        channels: 70,
    },
    Case {
        cosines: Shape { images: 3, channels: 1, height: 3, width: 9 },
        levels: 19,
        regions: 1,
        channels: 16,
    },
    Case {
        cosines: Shape { images: 1, channels: 1, height: 6, width: 9 },
        levels: 33,
        regions: 3,
        channels: 1,
    },
];

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// Of Σ dy·f(x), by differences.
fn differences(x: &[f32], dy: &[f32], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f32> {
    let mut moved = wide(x);
    let step = 1e-6;
    let mut gradient = Vec::with_capacity(x.len());
    for i in 0..x.len() {
        let value = moved[i];
        let mut loss = |x: f64| -> f64 {
            moved[i] = x;
            f(&moved).iter().zip(dy).map(|(y, dy)| y * f64::from(*dy)).sum()
        };
        let difference = loss(value + step) - loss(value - step);
        gradient.push((difference / (2.0 * step)) as f32);
        moved[i] = value;
    }
    gradient
}

/// The levels of values, and E [K][N].
fn plain_levels(values: &[f64], n: usize, rule: LevelRule) -> (Vec<f64>, Vec<Vec<f64>>) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let level = |i: usize| match rule {
        LevelRule::Paper => (high - low) / n as f64 * (i + 1) as f64 + low,
        LevelRule::Reference => (2 * i + 1) as f64 / (2 * n) as f64 * (high - low) + low,
    };
    let levels: Vec<f64> = (0..n).map(level).collect();
    let encode = |d: f64| {
        let half = 0.5 / n as f64;
        let kept = match rule {
            LevelRule::Paper => (-half..half).contains(&d),
            LevelRule::Reference => d.abs() < levels[1] - levels[0],
        };
        if kept { 1.0 - d.abs() } else { 0.0 }
    };
    let encoded = values.iter().map(|m| levels.iter().map(|l| encode(l - m)).collect()).collect();
    (levels, encoded)
}

/// [2, N].
fn plain_counts(values: &[f64], n: usize, rule: LevelRule) -> Vec<f64> {
    let (levels, encoded) = plain_levels(values, n, rule);
    let sum = |n: usize| encoded.iter().map(|e| e[n]).sum::<f64>();
    let total: f64 = (0..n).map(sum).sum::<f64>() + 1e-12;
    let shares = (0..n).map(|n| sum(n) / total);
    levels.iter().copied().chain(shares).collect()
}

/// [3, S², N²].
fn plain_pairs(
    values: &[f64],
    (height, width): (usize, usize),
    (n, regions): (usize, usize),
    (rule, neighbour): (LevelRule, Neighbour),
) -> Vec<f64> {
    let (h, w) = (height / regions, width / regions);
    let (dy, dx) = neighbour.offset();
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    for region in 0..regions * regions {
        let (y, x) = (region / regions * h, region % regions * w);
        let own: Vec<f64> = (0..h * w).map(|i| values[(y + i / w) * width + x + i % w]).collect();
        let (levels, encoded) = plain_levels(&own, n, rule);
        let mut pairs = vec![0.0; n * n];
        for (i, j) in (0..h - dy).flat_map(|i| (0..w - dx).map(move |j| (i, j))) {
            let (a, b) = (&encoded[i * w + j], &encoded[(i + dy) * w + j + dx]);
            for (at, pair) in pairs.iter_mut().enumerate() {
                *pair += a[at / n] * b[at % n];
            }
        }
        let total: f64 = pairs.iter().sum::<f64>() + 1e-6;
        for (at, pair) in pairs.iter().enumerate() {
            parts[0].push(levels[at / n]);
            parts[1].push(levels[at % n]);
            parts[2].push(pair / total);
        }
    }
    parts.concat()
}

/// d [C, N] → [C, K].
fn plain_spread(values: &[f64], d: &[f64], n: usize, rule: LevelRule) -> Vec<f64> {
    let (_, encoded) = plain_levels(values, n, rule);
    let of = |d: &[f64]| -> Vec<f64> {
        encoded.iter().map(|e| e.iter().zip(d).map(|(e, d)| e * d).sum()).collect()
    };
    d.chunks(n).flat_map(of).collect()
}

/// x [C, H, W] and g [C, S, S] → [H, W].
fn plain_cosines(x: &[f64], g: &[f64], (h, w): (usize, usize), side: usize) -> Vec<f64> {
    let channels = x.len() / (h * w);
    let cosine = |i: usize| {
        let region = i / w / (h / side) * side + i % w / (w / side);
        let of = |c: usize| (x[c * h * w + i], g[c * side * side + region]);
        let sum = |f: &dyn Fn((f64, f64)) -> f64| -> f64 { (0..channels).map(|c| f(of(c))).sum() };
        let norms = sum(&|(x, _)| x * x).sqrt() * sum(&|(_, g)| g * g).sqrt();
        if norms == 0.0 { 0.0 } else { sum(&|(x, g)| x * g) / norms }
    };
    (0..h * w).map(cosine).collect()
}

/// k and q [C, N], v [Cv, N] → [Cv, N].
fn plain_attention([k, q, v]: [&[f64]; 3], n: usize) -> Vec<f64> {
    let mut rows = Vec::with_capacity(n);
    for i in 0..n {
        let dot = |j: usize| -> f64 { (0..k.len() / n).map(|c| k[c * n + i] * q[c * n + j]).sum() };
        let weights: Vec<f64> = (0..n).map(|j| dot(j).exp()).collect();
        let sum: f64 = weights.iter().sum();
        rows.push(weights.into_iter().map(|weight| weight / sum).collect::<Vec<f64>>());
    }
    let mixed = |v: &[f64], i: usize| -> f64 { rows[i].iter().zip(v).map(|(a, v)| a * v).sum() };
    v.chunks(n).flat_map(|v| (0..n).map(move |i| (v, i))).map(|(v, i)| mixed(v, i)).collect()
}

fn map_of(values: &[f32], shape: Shape) -> Buffer {
    let buffer = Buffer::zeroed(shape.len());
    buffer.map(shape, 0).write(values);
    buffer
}

fn scratch(len: usize) -> Buffer {
    // Leavings of another step.
    Buffer::from_slice(&vec![33.0; len])
}

/// Holds what `run` sets, and what it adds to that, against `want`.
fn check(shape: Shape, want: &[f32], what: &str, run: impl Fn(Wanted<'_>)) {
    let buffer = used(shape);
    let dx = buffer.map(shape, 0);
    run((Accumulate::Set, dx));
    assert_holds(dx, want, BOUND, what);
    run((Accumulate::Add, dx));
    let twice: Vec<f32> = want.iter().map(|x| 2.0 * x).collect();
    assert_holds(dx, &twice, (2.0 * BOUND.0, BOUND.1), what);
}

fn each_rule() -> impl Iterator<Item = (&'static Case, f32, LevelRule)> {
    let ranged = CASES.iter().flat_map(|case| RANGES.map(|range| (case, range)));
    ranged.flat_map(|(case, range)| RULES.map(|rule| (case, range, rule)))
}

fn cosines(shape: Shape, range: f32) -> Vec<f32> {
    pattern(shape.images * shape.places(), 41).iter().map(|x| 0.2 + range * x).collect()
}

#[test]
fn counts_have_the_gradient_that_differences_say() {
    for (Case { cosines: shape, levels, .. }, range, rule) in each_rule() {
        let (shape, n) = (*shape, *levels);
        let values = cosines(shape, range);
        let wide = Shape::new(shape.images, 2, 1, n);
        let given = pattern(shape.images * 2 * n, 42);
        let mut want = Vec::new();
        for (image, dy) in values.chunks(shape.places()).zip(given.chunks(2 * n)) {
            want.extend(differences(image, dy, |x| plain_counts(x, n, rule)));
        }
        let (m, dy) = (map_of(&values, shape), map_of(&given, wide));
        everywhere(|team, isa| {
            let scratch = scratch(level_counts_scratch(team.threads(), n));
            let maps = [m.map(shape, 0), dy.map(wide, 0)];
            let what = format!("{rule:?} {shape:?} {n} {range} {}", isa.word());
            check(shape, &want, &what, |dx| level_counts(team, isa, maps, rule, &scratch, dx));
        });
    }
}

#[test]
fn pairs_have_the_gradient_that_differences_say() {
    for (Case { cosines: shape, levels, regions, .. }, range, rule) in each_rule() {
        for neighbour in NEIGHBOURS {
            let (shape, n, rules) = (*shape, *levels, (rule, neighbour));
            let (size, places) = ((shape.height, shape.width), regions * regions);
            let values = cosines(shape, range);
            let wide = Shape::new(shape.images, 3, places, n * n);
            let given = pattern(shape.images * 3 * places * n * n, 43);
            let mut want = Vec::new();
            for (image, dy) in values.chunks(shape.places()).zip(given.chunks(3 * places * n * n)) {
                want.extend(differences(image, dy, |x| plain_pairs(x, size, (n, *regions), rules)));
            }
            let (m, dy) = (map_of(&values, shape), map_of(&given, wide));
            everywhere(|team, isa| {
                let (m, out) = (m.map(shape, 0), Buffer::zeroed(wide.len()));
                let y = out.map(wide, 0);
                let forward = scratch(texture::co_occurrence_scratch(shape, n, *regions));
                texture::co_occurrence(team, isa, &m, rules, &forward, &y);
                let len = co_occurrence_scratch(team.threads(), shape, n, *regions);
                let scratch = scratch(len);
                let maps = [m, y, dy.map(wide, 0)];
                let what = format!("{rules:?} {shape:?} {n} {range} {}", isa.word());
                check(shape, &want, &what, |dx| {
                    co_occurrence(team, isa, maps, rules, &scratch, dx);
                });
            });
        }
    }
}

#[test]
fn spreading_has_the_gradients_that_differences_say() {
    for (Case { cosines: shape, levels, channels, .. }, range, rule) in each_rule() {
        let (shape, n, c) = (*shape, *levels, *channels);
        let (values, d) = (cosines(shape, range), pattern(shape.images * c * n, 44));
        let (short, full) = (Shape::new(shape.images, c, 1, n), Shape { channels: c, ..shape });
        let given = pattern(shape.images * c * shape.places(), 45);
        let (mut by_cosines, mut by_values) = (Vec::new(), Vec::new());
        let images = values.chunks(shape.places()).zip(d.chunks(c * n));
        for ((image, d), dy) in images.zip(given.chunks(c * shape.places())) {
            let (wide_image, wide_d) = (wide(image), wide(d));
            by_cosines.extend(differences(image, dy, |x| plain_spread(x, &wide_d, n, rule)));
            by_values.extend(differences(d, dy, |d| plain_spread(&wide_image, d, n, rule)));
        }
        let (m, d) = (map_of(&values, shape), map_of(&d, short));
        let dy = map_of(&given, full);
        everywhere(|team, isa| {
            let scratch = scratch(spread_levels_scratch(team.threads(), n));
            let maps = [m.map(shape, 0), d.map(short, 0), dy.map(full, 0)];
            let run = |wanted: [Option<Wanted<'_>>; 2]| {
                spread_levels(team, isa, maps, rule, &scratch, wanted)
            };
            let what = format!("{rule:?} {shape:?} {n} {range} {}", isa.word());
            // Alone, and with the other at the same time.
            check(shape, &by_cosines, &what, |dx| run([Some(dx), None]));
            check(short, &by_values, &what, |dd| run([None, Some(dd)]));
            let other = used(short);
            let other = (Accumulate::Set, other.map(short, 0));
            check(shape, &by_cosines, &what, |dx| run([Some(dx), Some(other)]));
            assert_holds(other.1, &by_values, BOUND, &what);
        });
    }
}

#[test]
fn cosines_have_the_gradients_that_differences_say() {
    for (b, c, h, w, side) in
        [(1, 3, 4, 6, 2), (3, 40, 5, 5, 1), (2, 17, 6, 21, 3), (1, 16, 2, 2, 1)]
    {
        let (shape, square) = (Shape::new(b, c, h, w), Shape::new(b, c, side, side));
        let single = Shape { channels: 1, ..shape };
        let (mut x, g) = (pattern(b * c * h * w, 46), pattern(b * c * side * side, 47));
        let given = pattern(b * h * w, 48);
        // A zero vector among the places of the last picture.
        (0..c).for_each(|channel| x[((b - 1) * c + channel) * h * w + 1] = 0.0);
        let (mut by_x, mut by_g) = (Vec::new(), Vec::new());
        let images = x.chunks(c * h * w).zip(g.chunks(c * side * side));
        for ((x, g), dy) in images.zip(given.chunks(h * w)) {
            let (wide_x, wide_g) = (wide(x), wide(g));
            by_x.extend(differences(x, dy, |x| plain_cosines(x, &wide_g, (h, w), side)));
            by_g.extend(differences(g, dy, |g| plain_cosines(&wide_x, g, (h, w), side)));
        }
        // Differences see a step off zero; by definition there is no gradient.
        (0..c).for_each(|channel| by_x[((b - 1) * c + channel) * h * w + 1] = 0.0);
        let (x, g, dy) = (map_of(&x, shape), map_of(&g, square), map_of(&given, single));
        everywhere(|team, isa| {
            let scratch = scratch(cosine_to_mean_scratch(team.threads(), square));
            let maps = [x.map(shape, 0), g.map(square, 0), dy.map(single, 0)];
            let run =
                |wanted: [Option<Wanted<'_>>; 2]| cosine_to_mean(team, isa, maps, &scratch, wanted);
            let what = format!("{shape:?} {side} {}", isa.word());
            check(shape, &by_x, &what, |dx| run([Some(dx), None]));
            check(square, &by_g, &what, |dg| run([None, Some(dg)]));
            let other = used(square);
            let other = (Accumulate::Set, other.map(square, 0));
            check(shape, &by_x, &what, |dx| run([Some(dx), Some(other)]));
            assert_holds(other.1, &by_g, BOUND, &what);
        });
    }
}

#[test]
fn attention_between_levels_has_the_gradients_that_differences_say() {
    for (b, c, cv, n) in [(1, 5, 5, 8), (3, 16, 20, 33), (1, 33, 7, 1), (2, 3, 17, 17)] {
        let (shape, full) = (Shape::new(b, c, 1, n), Shape::new(b, cv, 1, n));
        let (k, q) = (pattern(b * c * n, 51), pattern(b * c * n, 52));
        let (v, given) = (pattern(b * cv * n, 53), pattern(b * cv * n, 54));
        let mut want = [Vec::new(), Vec::new(), Vec::new()];
        for i in 0..b {
            let own = [&k, &q, &v].map(|x| &x[i * x.len() / b..(i + 1) * x.len() / b]);
            let dy = &given[i * cv * n..(i + 1) * cv * n];
            for (at, want) in want.iter_mut().enumerate() {
                want.extend(differences(own[at], dy, |x| {
                    let mut all = own.map(wide);
                    all[at] = x.to_vec();
                    plain_attention([&all[0], &all[1], &all[2]], n)
                }));
            }
        }
        let [k, q] = [&k, &q].map(|values| map_of(values, shape));
        let [v, dy] = [&v, &given].map(|values| map_of(values, full));
        everywhere(|team, isa| {
            let scratch = scratch(level_attention_scratch(team.threads(), n));
            let maps = [k.map(shape, 0), q.map(shape, 0), v.map(full, 0), dy.map(full, 0)];
            let run = |wanted: [Option<Wanted<'_>>; 3]| {
                level_attention(team, isa, maps, &scratch, wanted)
            };
            let what = format!("{b} {c} {cv} {n} {}", isa.word());
            check(shape, &want[0], &what, |dk| run([Some(dk), None, None]));
            check(shape, &want[1], &what, |dq| run([None, Some(dq), None]));
            check(full, &want[2], &what, |dv| run([None, None, Some(dv)]));
            // Keys that are queries too: the first sets, the second adds.
            let both = used(shape);
            let both = both.map(shape, 0);
            run([Some((Accumulate::Set, both)), Some((Accumulate::Add, both)), None]);
            let sum: Vec<f32> = want[0].iter().zip(&want[1]).map(|(k, q)| k + q).collect();
            assert_holds(both, &sum, BOUND, &what);
        });
    }
}

#[test]
fn repeats_are_summed_and_means_shared_out() {
    for (b, c, side, times) in [(1, 3, 2, 5), (2, 40, 1, 1), (3, 17, 3, 9)] {
        let square = Shape::new(b, c, side, side);
        let long = Shape::new(b, c, side * side, times);
        let (rows, ones) =
            (pattern(b * c * side * side * times, 55), pattern(b * c * side * side, 56));
        let sums: Vec<f32> = rows.chunks(times).map(|row| row.iter().sum()).collect();
        let shares: Vec<f32> =
            ones.iter().flat_map(|one| vec![one / times as f32; times]).collect();
        let (rows, ones) = (map_of(&rows, long), map_of(&ones, square));
        everywhere(|team, isa| {
            let (rows, ones) = (rows.map(long, 0), ones.map(square, 0));
            check(square, &sums, "repeats", |dx| repeat_regions(team, isa, rows, dx));
            check(long, &shares, "means", |dx| mean_regions(team, isa, ones, dx));
        });
    }
}

/// Levels of equal cosines are that cosine: what they get goes to the first place, once.
#[test]
fn equal_cosines_give_to_the_first_place() {
    let (shape, short) = (Shape::new(1, 1, 2, 3), Shape::new(1, 2, 1, 4));
    let m = map_of(&[0.25; 6], shape);
    let dy = map_of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], short);
    everywhere(|team, isa| {
        for rule in RULES {
            let scratch = scratch(level_counts_scratch(team.threads(), 4));
            let maps = [m.map(shape, 0), dy.map(short, 0)];
            let want = [10.0, 0.0, 0.0, 0.0, 0.0, 0.0];
            check(shape, &want, "equal", |dx| level_counts(team, isa, maps, rule, &scratch, dx));
        }
    });
}

#[test]
fn a_nan_cosine_shows() {
    let (shape, n) = (Shape::new(1, 1, 4, 6), 17);
    let mut values = cosines(shape, 1.0);
    values[7] = f32::NAN;
    let m = map_of(&values, shape);
    let [counted, paired, short, full] = [
        Shape::new(1, 2, 1, n),
        Shape::new(1, 3, 1, n * n),
        Shape::new(1, 20, 1, n),
        Shape { channels: 20, ..shape },
    ]
    .map(|shape| (map_of(&pattern(shape.channels * shape.places(), 57), shape), shape));
    let check = |team: &Team, isa: Isa, rule: LevelRule| {
        let (m, out) = (m.map(shape, 0), used(shape));
        let dx = out.map(shape, 0);
        let all_nan = |what: &str| assert!(dx.read().iter().all(|x| x.is_nan()), "{what}");
        let into = (Accumulate::Set, dx);
        let room = scratch(1 << 14);
        level_counts(team, isa, [m, counted.0.map(counted.1, 0)], rule, &room, into);
        all_nan("counts");
        let pairs = paired.0.map(paired.1, 0);
        for neighbour in NEIGHBOURS {
            co_occurrence(team, isa, [m, pairs, pairs], (rule, neighbour), &room, into);
            all_nan("pairs");
        }
        let dd = used(short.1);
        let dd = dd.map(short.1, 0);
        let maps = [m, short.0.map(short.1, 0), full.0.map(full.1, 0)];
        spread_levels(team, isa, maps, rule, &room, [Some(into), Some((Accumulate::Set, dd))]);
        all_nan("spread");
        assert!(dd.read().iter().all(|x| x.is_nan()));
    };
    everywhere(|team, isa| RULES.into_iter().for_each(|rule| check(team, isa, rule)));
}
