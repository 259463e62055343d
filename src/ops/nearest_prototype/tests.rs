//! Every scan against the definition.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::search::Distance;
use super::*;

/// The definition: all distances, sorted; flat [Q, min(k, N)].
fn plain_top(rows: &[f32], queries: &[f32], dim: usize, k: usize) -> Vec<Nearest> {
    let mut out = Vec::new();
    for query in queries.chunks(dim) {
        let mut all: Vec<Nearest> = rows
            .chunks(dim)
            .zip(0..)
            .map(|(row, index)| Nearest { index, distance2: squared_distance(query, row) })
            .collect();
        all.sort_by(|a, b| a.distance2.total_cmp(&b.distance2).then(a.index.cmp(&b.index)));
        out.extend(all.into_iter().take(k));
    }
    out
}

/// A bank for every scan, set of instructions and 8-bit dot product of this machine.
fn banks(rows: &[f32], dim: usize) -> Vec<PrototypeBank> {
    let mut banks = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
        let mut bank = |scan, dot| {
            let rows = rows.to_vec();
            banks.push(PrototypeBank::coded(scan, rows, dim, isa, dot).unwrap());
        };
        bank(Scan::F32, None);
        bank(Scan::Int8, None);
        for dot in Dot8::ALL.into_iter().filter(|dot| dot.is_here()) {
            bank(Scan::Int8, Some(dot));
        }
    }
    banks
}

fn draw(n: usize, offset: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n).map(|_| offset + rng.random::<f32>()).collect()
}

/// Vectors that vary in four directions much and in the others a little, as features do.
fn flat_draw(n: usize, dim: usize, offset: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut axes = ChaCha8Rng::seed_from_u64(5);
    let axes: Vec<f32> = (0..4 * dim).map(|_| axes.random::<f32>() - 0.5).collect();
    let mut out = Vec::with_capacity(n * dim);
    for _ in 0..n {
        let along: [f32; 4] = std::array::from_fn(|_| 3.0 * rng.random::<f32>());
        out.extend((0..dim).map(|i| {
            let axis = axes[4 * i..].iter();
            let sum: f32 = along.iter().zip(axis).map(|(a, b)| a * b).sum();
            offset + sum + 0.1 * rng.random::<f32>()
        }));
    }
    out
}

#[test]
fn squared_distance_equals_the_f64_sum() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for dim in [1, 15, 16, 31, 33, 384, 1025] {
        let (a, b) = (draw(dim, 0.0, &mut rng), draw(dim, 0.0, &mut rng));
        let terms = a.iter().zip(&b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
        let want = terms.sum::<f64>();
        let got = f64::from(squared_distance(&a, &b));
        assert!((got - want).abs() <= (dim + 2) as f64 * f64::from(UNIT) * want, "{dim}");
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            assert_eq!(f64::from(isa.run(Distance { a: &a, b: &b })), got, "{}", isa.word());
        }
    }
}

#[test]
fn prototype_equal_to_the_query_has_distance_zero() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    // Far from the origin, where |q|² + |p|² − 2q·p in f32 would be off by more than the
    // distances themselves.
    let rows = draw(300 * 33, 1000.0, &mut rng);
    for bank in banks(&rows, 33) {
        let found = bank.nearest(&Team::alone(), &rows).unwrap();
        for (found, index) in found.iter().zip(0..) {
            assert_eq!(*found, Nearest { index, distance2: 0.0 });
        }
    }
}

#[test]
fn tie_goes_to_the_lowest_index() {
    for bank in banks(&[5.0, 1.0, 3.0, 1.0, 3.0], 1) {
        let found = bank.top(&Team::alone(), &[2.0], 4).unwrap();
        assert_eq!(found.iter().map(|f| f.index).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(bank.top(&Team::alone(), &[2.0], 9).unwrap().len(), 5);
    }
    // All distances are too small for f32.
    for bank in banks(&[2e-23, 1e-23, 1e-24], 1) {
        let found = bank.top(&Team::alone(), &[0.0], 3).unwrap();
        assert_eq!(found.iter().map(|f| f.index).collect::<Vec<_>>(), [0, 1, 2]);
    }
}

#[test]
fn prototypes_nearer_to_each_other_than_codes_can_tell_are_told_apart() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    // Two clumps far apart: steps of a code are as large as a clump or larger.
    for (dim, size) in [(2, 2e-2), (3, 1e-2), (5, 1e-2), (5, 1e-4)] {
        let mut clumps = |n: usize| -> Vec<f32> {
            let side = |i: usize| if i.is_multiple_of(2) { 1.0 } else { -1.0 };
            (0..n * dim).map(|i| side(i / dim) + size * rng.random::<f32>()).collect()
        };
        let (rows, queries) = (clumps(700), clumps(60));
        let want = plain_top(&rows, &queries, dim, 3);
        for bank in banks(&rows, dim) {
            assert_eq!(bank.top(&Team::alone(), &queries, 3).unwrap(), want, "{dim} {size}");
        }
    }
}

#[test]
fn nan_is_refused() {
    let team = Team::alone();
    assert!(PrototypeBank::new(vec![1.0, f32::NAN], 1).is_err());
    assert!(PrototypeBank::new(Vec::new(), 4).is_err());
    for bank in banks(&[1.0, 2.0, 3.0, 5.0], 2) {
        assert!(bank.nearest(&team, &[1.0, f32::NAN]).is_err());
        assert!(bank.nearest(&team, &[1.0, 1.0, 1.0, f32::INFINITY]).is_err());
        assert!(bank.nearest(&team, &[1.0]).is_err());
        assert!(bank.nearest(&team, &[]).unwrap().is_empty());
        assert_eq!(bank.nearest(&team, &[1.0, 3.0]).unwrap()[0].index, 0);
    }
}

#[test]
fn the_farthest_query_is_that_of_the_full_search() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let rows = flat_draw(1500, 96, 0.0, &mut rng);
    let mut queries = flat_draw(150, 96, 0.0, &mut rng);
    // The farthest one twice.
    let far = plain_top(&rows, &queries, 96, 1);
    let far = (0..150).max_by(|&a, &b| far[a].distance2.total_cmp(&far[b].distance2)).unwrap();
    queries.copy_within(far * 96..(far + 1) * 96, 140 * 96);
    let nearest = plain_top(&rows, &queries, 96, 1);
    let want =
        (0..150).rev().max_by(|&a, &b| nearest[a].distance2.total_cmp(&nearest[b].distance2));
    let want = want.unwrap();
    for bank in banks(&rows, 96) {
        for threads in [1, 2] {
            let team = Team::new(threads, false).unwrap();
            let got = bank.farthest_nearest(&team, &queries, &mut Scratch::default()).unwrap();
            assert_eq!(got, (want, nearest[want]), "{:?}", bank.codes);
        }
    }
}

#[test]
fn what_varies_in_few_directions_is_sketched_in_few_dimensions() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let few = PrototypeBank::new(flat_draw(1100, 130, 7.0, &mut rng), 130).unwrap();
    assert_eq!(few.scanned_dims(), 32);
    let many = PrototypeBank::new(draw(1100 * 130, 7.0, &mut rng), 130).unwrap();
    assert_eq!(many.scanned_dims(), 132);
}

#[test]
fn scratch_may_go_from_bank_to_bank() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut scratch = Scratch::default();
    let rows = flat_draw(70, 80, 0.0, &mut rng);
    let queries = flat_draw(53, 80, 0.0, &mut rng);
    let want = plain_top(&rows, &queries, 80, 2);
    for bank in banks(&rows, 80) {
        for threads in [2, 1, 3] {
            let team = Team::new(threads, false).unwrap();
            let mut out = vec![NOTHING; 2 * 53];
            bank.top_into(&team, &queries, 2, &mut out, &mut scratch).unwrap();
            assert_eq!(out, want);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn equals_the_definition(
        q in prop::sample::select(vec![1usize, 33, 130]),
        n in prop::sample::select(vec![1usize, 31, 33, 1025, 2049]),
        dim in prop::sample::select(vec![1usize, 31, 33, 128]),
        k in 1usize..=9,
        offset in prop::sample::select(vec![-0.5f32, 0.0, 300.0]),
        flat in any::<bool>(),
        threads in 1usize..=2,
        seed in any::<u64>(),
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let vectors = |n: usize, rng: &mut ChaCha8Rng| {
            if flat { flat_draw(n, dim, offset, rng) } else { draw(n * dim, offset, rng) }
        };
        let mut rows = vectors(n, &mut rng);
        // Near and exact doubles, far apart in the bank.
        let copy = rows[..dim].to_vec();
        let last = rows.len() - dim;
        rows[last..].copy_from_slice(&copy);
        let middle = (n / 2) * dim;
        rows[middle..middle + dim].iter_mut().zip(&copy).for_each(|(x, c)| *x = c * (1.0 + 2.0 * UNIT));
        let mut queries = vectors(q, &mut rng);
        queries[..dim].copy_from_slice(&copy);
        let team = Team::new(threads, false).unwrap();
        let want = plain_top(&rows, &queries, dim, k);
        for bank in banks(&rows, dim) {
            // Both measure by the same sum, so index and distance are equal to the bit.
            prop_assert_eq!(&bank.top(&team, &queries, k).unwrap(), &want, "{:?}", bank.isa);
        }
    }
}
