use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::nn::vectors::{Vector, flat};

const LIMITS: (f64, f64) = (2.5, 5.0);

/// Within the vectors' tolerance.
fn assert_close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() <= 2e-5 + 1e-4 * want.abs(), "{what}: {got}, not {want}");
}

fn assert_all_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert_close(f64::from(*got), f64::from(*want), what);
    }
}

/// `gradient` against what a small step makes of `value`, number by number.
fn assert_is_slope(x: &[f32], gradient: &[f32], value: impl Fn(&[f32]) -> f64, what: &str) {
    const STEP: f32 = 1e-3;
    for (i, slope) in gradient.iter().enumerate() {
        let at = |step: f32| {
            let mut moved = x.to_vec();
            moved[i] += step;
            (value(&moved), f64::from(moved[i]))
        };
        let ((more, right), (less, left)) = (at(STEP), at(-STEP));
        let want = (more - less) / (right - left);
        let close = (f64::from(*slope) - want).abs() <= 1e-5 + 1e-3 * want.abs();
        assert!(close, "{what}, number {i}: {slope}, not {want}");
    }
}

fn numbers(count: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| scale * (2.0 * rng.random::<f32>() - 1.0)).collect()
}

/// Three pictures of six places: one of both kinds, one all anomalous, one all normal.
const MIXED: [bool; 18] = [
    false, true, false, true, true, false, //
    true, true, true, true, true, true, //
    false, false, false, false, false, false,
];

const EVERY: [(Pairing, Counting); 6] = [
    (Pairing::Random, Counting::Picture),
    (Pairing::Mean, Counting::Picture),
    (Pairing::Ordered, Counting::Picture),
    (Pairing::Random, Counting::Batch),
    (Pairing::Mean, Counting::Batch),
    (Pairing::Ordered, Counting::Batch),
];

fn every_likeness() -> impl Iterator<Item = Likeness> {
    let signs = [Sign::Negative, Sign::Positive].into_iter();
    signs.flat_map(|sign| {
        [Direction::ScoresToFeatures, Direction::FeaturesToScores].into_iter().flat_map(
            move |direction| {
                [false, true].map(|by_row_mean| Likeness {
                    sign,
                    direction,
                    by_row_mean,
                    stop_gradient: false,
                })
            },
        )
    })
}

#[test]
fn losses_are_the_vectors() {
    let Some(vector) = Vector::open("mlff_losses") else { return };
    let one = |name: &str| f64::from(flat(&vector.expected(name))[0]);
    let whole = |name: &str| -> Vec<usize> {
        let numbers = vector.input(name).to_vec1::<f32>().unwrap();
        numbers.into_iter().map(|number| number as usize).collect()
    };
    let psi = flat(&vector.input("psi"));
    let anomalous: Vec<bool> = whole("label").into_iter().map(|label| label == 1).collect();
    let norms: Vec<f32> = psi.chunks(6).map(|psi| psi.iter().map(|x| x * x).sum::<f32>()).collect();
    let radii: Vec<f32> = norms.iter().map(|&norm| radius(f64::from(norm)) as f32).collect();
    assert_all_close(&radii, &flat(&vector.expected("A")), "A");

    let got = feature(&norms, &anomalous, 1, Counting::Picture);
    assert_close(got.value(), one("feature_loss"), "feature loss");
    let by_psi: Vec<f32> = psi
        .chunks(6)
        .zip(&got.gradient)
        .flat_map(|(psi, by)| psi.iter().map(move |x| 2.0 * by * x))
        .collect();
    assert_all_close(&by_psi, &flat(&vector.expected("grad_feature_loss")), "its gradient");

    let scores = flat(&vector.input("score"));
    let normals: Vec<usize> = (0..30).filter(|&place| !anomalous[place]).collect();
    let pairs = whole("pair").into_iter().map(|pair| normals[pair]).collect();
    let paired = Partners::Places(pairs);
    let got = score(&scores, &anomalous, 1, &paired, LIMITS, Counting::Picture);
    assert_close(got.value(), one("score_loss_paired"), "score loss");
    assert_all_close(&got.gradient, &flat(&vector.expected("grad_score_loss")), "its gradient");
    let got = score(&scores, &anomalous, 1, &Partners::Mean, LIMITS, Counting::Picture);
    assert_close(got.value(), one("score_loss_mean"), "score loss by the mean");

    let (features, scores) =
        (flat(&vector.input("patch_features")), flat(&vector.input("patch_scores")));
    for (name, rows, channels) in [("P", &features, 6), ("Q", &scores, 1)] {
        let got: Vec<f32> = distances(rows, channels).iter().map(|&d| d as f32).collect();
        assert_all_close(&got, &flat(&vector.expected(name)), name);
    }
    for (name, sign) in [("consistency_neg", Sign::Negative), ("consistency_pos", Sign::Positive)] {
        let got = consistency(&features, &scores, Likeness { sign, ..Likeness::default() });
        assert_close(got.value, one(name), name);
    }
}

#[test]
fn gradients_by_norms_are_slopes() {
    let norms: Vec<f32> = numbers(18, 2.0, 1).into_iter().map(|x| x * x + 0.1).collect();
    for counting in [Counting::Picture, Counting::Batch] {
        let got = feature(&norms, &MIXED, 3, counting);
        let value = |norms: &[f32]| feature(norms, &MIXED, 3, counting).value();
        assert_is_slope(&norms, &got.gradient, value, &format!("{counting:?}"));
    }
}

#[test]
fn gradients_by_scores_are_slopes_and_a_picture_without_a_normal_place_takes_the_batchs() {
    let scores = numbers(18, 6.0, 2);
    for (pairing, counting) in EVERY {
        let partners = Partners::find(pairing, &MIXED, 3, &mut ChaCha8Rng::seed_from_u64(3));
        if let Partners::Places(places) = &partners {
            assert_eq!(places.len(), 9);
            assert!(places.iter().all(|&place| !MIXED[place]), "{pairing:?}: {places:?}");
            assert!(places[..3].iter().all(|&place| place < 6), "{pairing:?}: {places:?}");
        }
        let value = |scores: &[f32]| score(scores, &MIXED, 3, &partners, LIMITS, counting).value();
        let got = score(&scores, &MIXED, 3, &partners, LIMITS, counting);
        assert!(got.normal > 0.0 && got.anomalous > 0.0);
        assert_is_slope(&scores, &got.gradient, value, &format!("{pairing:?} {counting:?}"));
    }
    let ordered = Partners::find(Pairing::Ordered, &MIXED, 3, &mut ChaCha8Rng::seed_from_u64(3));
    assert_eq!(ordered, Partners::Places(vec![0, 2, 5, 0, 2, 5, 12, 13, 14]));
}

#[test]
fn a_picture_counts_as_much_as_another_or_a_place_does() {
    // One anomalous place of four in the first picture, three in the second.
    let anomalous = [true, false, false, false, true, true, true, false];
    let norms = [3.0, 1.0, 1.0, 1.0, 8.0, 8.0, 8.0, 2.0];
    let normal = |counting| feature(&norms, &anomalous, 2, counting).normal;
    let (one, two) = (radius(1.0), radius(2.0));
    assert!((normal(Counting::Picture) - 0.5 * (one + two) / 2.0).abs() < 1e-12);
    assert!((normal(Counting::Batch) - 0.5 * (3.0 * one + two) / 4.0).abs() < 1e-12);
}

#[test]
fn a_class_that_is_missing_costs_nothing() {
    let (norms, scores) =
        (numbers(6, 1.0, 4).iter().map(|x| x * x).collect::<Vec<_>>(), numbers(6, 9.0, 5));
    for (anomalous, normal_is_zero) in [([true; 6], true), ([false; 6], false)] {
        let got = feature(&norms, &anomalous, 2, Counting::Picture);
        assert_eq!((got.normal == 0.0, got.anomalous == 0.0), (normal_is_zero, !normal_is_zero));
        assert!(got.gradient.iter().all(|slope| slope.is_finite()));
        for (pairing, counting) in EVERY {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let partners = Partners::find(pairing, &anomalous, 2, &mut rng);
            let got = score(&scores, &anomalous, 2, &partners, LIMITS, counting);
            assert_eq!(got.anomalous, 0.0, "{pairing:?}");
            assert_eq!(got.normal == 0.0, normal_is_zero);
            assert!(got.gradient.iter().all(|slope| slope.is_finite()));
        }
    }
}

#[test]
fn a_feature_at_the_origin_is_finite() {
    let got = feature(&[0.0, 0.0], &[true, false], 1, Counting::Picture);
    assert!(got.value().is_finite() && got.gradient.iter().all(|slope| slope.is_finite()));
    // The anomalous one is driven away, the normal one held.
    assert!(got.gradient[0] < 0.0 && got.gradient[1] > 0.0, "{got:?}");
    let far = feature(&[1e9], &[true], 1, Counting::Picture);
    assert_eq!((far.value(), far.gradient[0]), (0.0, 0.0));
}

#[test]
fn gradients_of_likeness_are_slopes() {
    let (features, scores) = (numbers(5 * 3, 1.0, 6), numbers(5, 2.0, 7));
    for likeness in every_likeness() {
        let got = consistency(&features, &scores, likeness);
        let what = format!("{likeness:?}");
        assert!(got.value > 0.0, "{what}");
        let by_features = |x: &[f32]| consistency(x, &scores, likeness).value;
        assert_is_slope(&features, &got.by_features, by_features, &what);
        let by_scores = |x: &[f32]| consistency(&features, x, likeness).value;
        assert_is_slope(&scores, &got.by_scores, by_scores, &what);
        let stopped = consistency(&features, &scores, Likeness { stop_gradient: true, ..likeness });
        assert_eq!(stopped.by_scores, got.by_scores);
        assert_eq!(stopped.by_features, [0.0; 15]);
    }
}

#[test]
fn patches_that_are_one_or_none_are_finite() {
    for likeness in every_likeness() {
        for patches in [0, 1, 4] {
            let got = consistency(&vec![2.0; patches * 20], &vec![1.0; patches], likeness);
            assert_eq!(got.value, 0.0, "{patches} {likeness:?}");
            let all = got.by_features.iter().chain(&got.by_scores);
            assert!(all.clone().all(|slope| *slope == 0.0), "{patches} {likeness:?}");
            assert_eq!(all.count(), patches * 21);
        }
        // Far apart: a softmax that is all one place.
        let (features, scores) = (numbers(4 * 50, 1e3, 8), numbers(4, 1e3, 9));
        let got = consistency(&features, &scores, likeness);
        assert!(got.value.is_finite(), "{likeness:?}");
        assert!(got.by_features.iter().chain(&got.by_scores).all(|slope| slope.is_finite()));
    }
}

#[test]
fn distances_of_long_rows_are_the_plain_ones() {
    let (count, channels) = (5, 83);
    let rows = numbers(count * channels, 3.0, 10);
    let got = distances(&rows, channels);
    for (i, j) in (0..count).flat_map(|i| (0..count).map(move |j| (i, j))) {
        let pairs = (0..channels).map(|c| (rows[i * channels + c], rows[j * channels + c]));
        let want = pairs.map(|(a, b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>().sqrt();
        assert!((got[i * count + j] - want).abs() <= 1e-6 * want, "{i} {j}");
    }
}
