//! Thresholds from good parts, in raw score units, with the promise they can bear.
//!
//! *Split conformal* (Vovk et al. 2005; Angelopoulos and Bates 2021, "A Gentle Introduction to
//! Conformal Prediction", eq. 1): n held-out good parts and the next good part are exchangeable,
//! so the next score is above the k-th smallest of the n with probability at most α where
//! k = ⌈(n+1)(1−α)⌉. Nothing is assumed of the scores' distribution. The held-out parts must not
//! have helped to make the memory bank; else the promise is void.
//!
//! Where k > n the promise cannot be had from n parts: n ≥ 1/α − 1 are needed. Then the limit is
//! *extrapolated* as if good scores were normal: mean + t(n−1, 1−α) · s · √(1 + 1/n), the upper
//! prediction limit of one further value (Hahn and Meeker 1991, section 4.8), but never at or
//! below a score that a held-out good part had. That is an estimate, not a promise, and the card
//! and the terminal say so. Scores that are probabilities are anything but normal: they crowd at their
//! ends, and the limit might come to lie above 1, where nothing is rejected any more. Of such the
//! log-odds ln(p/(1 − p)) are taken for normal instead.
//!
//! *Cross-fitted* scores, each from a memory bank of the other folds, use every part and see the
//! spread far better where parts are few; but they are not the finished memory bank's. A bank of
//! fewer pictures knows less, so they tend to be a little high and the limits a little cautious.
//! That is a tendency and no theorem: the k-th of them is an estimate too, called *ranked* and not
//! conformal. The worst case of about 2α that is known of cross-fitting (Barber et al. 2021,
//! "Predictive inference with the jackknife+": CV+) is of a rule that scores the next part by the
//! memory banks of all folds, K times the work. For one model refitted on all parts the paper shows
//! that no such bound exists (the jackknife, folds of one part).

use anyhow::{Result, ensure};

use crate::detector::bundle::{Calibration, Rule, Spread, Threshold, Units};

/// The smallest false-reject rate that can be asked for: one part in a million.
pub const LEAST_RATE: f64 = 1e-6;

/// To where good scores are taken for normal.
fn spread_out(units: Units, score: f64) -> f64 {
    if units != Units::Probability {
        return score;
    }
    // What f32 calls 1 has no odds.
    let p = score.clamp(LEAST_PROBABILITY, 1.0 - LEAST_PROBABILITY);
    (p / (1.0 - p)).ln()
}

/// And back.
fn drawn_in(units: Units, value: f64) -> f64 {
    if units == Units::Probability { 1.0 / (1.0 + (-value).exp()) } else { value }
}

/// Half of what stands between 1 and the next smaller f32.
const LEAST_PROBABILITY: f64 = f32::EPSILON as f64 / 4.0;

/// The limits for image scores and for the largest values of the anomaly maps, each by itself
/// keeping to `false_rejects` (a rate, so 0.001 is 1000 ppm). Both slices are raw score units of
/// good parts that the memory bank they were scored by does not have; `folds` says that those were
/// memory banks of folds.
///
/// # Errors
/// Fewer than 2 parts, a score that is not finite, scores without any spread, a rate outside
/// 1e-6..0.5.
pub fn limits(
    scores: &[f32],
    map_maxima: &[f32],
    false_rejects: f64,
    folds: Option<usize>,
    units: Units,
) -> Result<(Threshold, Calibration)> {
    ensure!(
        (LEAST_RATE..=0.5).contains(&false_rejects),
        "false_rejects = {false_rejects}: must be a rate from {LEAST_RATE} to 0.5 (0.001 is one \
         good part in a thousand)"
    );
    ensure!(
        scores.len() == map_maxima.len(),
        "{} scores but {} anomaly maps",
        scores.len(),
        map_maxima.len()
    );
    let (score, rule) = limit(scores, false_rejects, units)?;
    let (map, _) = limit(map_maxima, false_rejects, units)?;
    let calibration = Calibration {
        rule: if folds.is_some() && rule == Rule::Conformal { Rule::Ranked } else { rule },
        false_rejects,
        held_out: scores.len(),
        folds,
        needed: needed(false_rejects),
        scores: spread(scores),
        map_maxima: spread(map_maxima),
    };
    Ok((Threshold { score, map }, calibration))
}

/// How many held-out good parts a promise of `false_rejects` takes: ⌈1/α − 1⌉.
pub fn needed(false_rejects: f64) -> usize {
    (1.0 / false_rejects - 1.0 - SLACK).ceil().max(1.0) as usize
}

/// Rates such as 0.001 have no exact binary form; without this much slack 1/0.001 − 1 could come
/// out a hair above 999 and ask for one part too many. Relative rounding of f64 at 1e6 parts is
/// 1e-10.
const SLACK: f64 = 1e-9;

/// A part is rejected when its score is at or above the returned limit.
fn limit(scores: &[f32], false_rejects: f64, units: Units) -> Result<(f32, Rule)> {
    let n = scores.len();
    ensure!(n >= 2, "{n} held-out good parts: at least 2 are needed to see how far scores vary");
    ensure!(
        scores.iter().all(|score| score.is_finite()),
        "a held-out good part has a score that is not a finite number"
    );
    let mut sorted = scores.to_vec();
    sorted.sort_by(f32::total_cmp);
    let (least, most) = (sorted[0], sorted[n - 1]);
    ensure!(
        least < most,
        "all {n} held-out good parts score {least}: the pictures are copies of one another"
    );
    if n >= needed(false_rejects) {
        let spared = ((n + 1) as f64 * false_rejects + SLACK).floor() as usize;
        // k = n + 1 − ⌊(n+1)α⌋, from 1; a part that only ties the k-th score is still accepted.
        return Ok((sorted[n - spared].next_up(), Rule::Conformal));
    }
    let values = || sorted.iter().map(|&score| spread_out(units, f64::from(score)));
    let mean = values().sum::<f64>() / n as f64;
    let squares: f64 = values().map(|value| (value - mean).powi(2)).sum();
    let std = (squares / (n - 1) as f64).sqrt();
    let reach = t_quantile(n - 1, false_rejects) * (1.0 + 1.0 / n as f64).sqrt();
    let extrapolated = drawn_in(units, mean + reach * std) as f32;
    Ok((extrapolated.max(most.next_up()), Rule::Extrapolated))
}

fn spread(scores: &[f32]) -> Spread {
    let n = scores.len();
    let mut sorted = scores.to_vec();
    sorted.sort_by(f32::total_cmp);
    let mean = sorted.iter().map(|&score| f64::from(score)).sum::<f64>() / n as f64;
    let squares: f64 = sorted.iter().map(|&score| (f64::from(score) - mean).powi(2)).sum();
    Spread {
        min: sorted[0],
        median: sorted[n / 2],
        max: sorted[n - 1],
        mean: mean as f32,
        std: (squares / (n - 1) as f64).sqrt() as f32,
    }
}

/// The t for which Student's distribution with `dof` degrees of freedom leaves `tail` above it.
fn t_quantile(dof: usize, tail: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while t_tail(dof, high) > tail {
        high *= 2.0;
    }
    // halving 64 times passes the resolution of f64 from any start
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if t_tail(dof, middle) > tail { low = middle } else { high = middle }
    }
    high
}

/// P(T > t), t ≥ 0; Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even degrees of freedom).
fn t_tail(dof: usize, t: f64) -> f64 {
    let theta = (t / (dof as f64).sqrt()).atan();
    let (sin, cos) = theta.sin_cos();
    let odd = dof % 2 == 1;
    let mut term = if odd { cos } else { 1.0 };
    let mut sum = if dof == 1 { 0.0 } else { term };
    for power in (if odd { 3 } else { 2 }..dof.saturating_sub(1)).step_by(2) {
        term *= cos * cos * (power - 1) as f64 / power as f64;
        sum += term;
    }
    let within = if odd { std::f64::consts::FRAC_2_PI * (theta + sin * sum) } else { sin * sum };
    0.5 * (1.0 - within)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Scores as detectors give them: positive and skewed to the right.
    fn skewed(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| 1.0 - rng.random::<f32>().max(1e-7).ln()).collect()
    }

    /// Sum of twelve uniforms: mean 6, deviation 1, normal but for the far tails.
    fn normal(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| (0..12).map(|_| rng.random::<f32>()).sum()).collect()
    }

    #[test]
    fn the_quantiles_are_students() {
        /* scipy 1.17.1: scipy.stats.t.isf(tail, dof) */
        let cases = [
            (1, 0.05, 6.313751514675044),
            (2, 0.05, 2.9199855803537256),
            (3, 0.001, 10.214531852407385),
            (4, 0.001, 7.1731822197823085),
            (5, 0.001, 5.893429531356009),
            (30, 0.001, 3.385184866829305),
            (41, 0.0005, 3.5441836429715825),
            (199, 0.001, 3.1316896207264593),
            (998, 0.0001, 3.732879422579596),
        ];
        for (dof, tail, want) in cases {
            let got = t_quantile(dof, tail);
            // 1 − A loses up to 1e-16 / tail of the tail, and a thousand terms add their rounding
            assert!((got - want).abs() < 1e-9 * want, "t({dof}, {tail}) = {got}, want {want}");
        }
    }

    #[test]
    fn the_number_of_parts_needed_is_that_of_the_rank_rule() {
        for (rate, parts) in [(0.5, 1), (0.1, 9), (0.01, 99), (0.001, 999), (0.0005, 1999)] {
            assert_eq!(needed(rate), parts, "{rate}");
            let mut scores: Vec<f32> = (0..parts.max(2)).map(|i| i as f32).collect();
            assert_eq!(limit(&scores, rate, Units::Positive).unwrap().1, Rule::Conformal, "{rate}");
            if parts > 2 {
                scores.pop();
                assert_eq!(
                    limit(&scores, rate, Units::Positive).unwrap().1,
                    Rule::Extrapolated,
                    "{rate}"
                );
            }
        }
    }

    #[test]
    fn the_limit_is_just_above_the_kth_score() {
        // n = 19, α = 0.1: k = ⌈20 · 0.9⌉ = 18
        let scores: Vec<f32> = (1..=19).rev().map(|i| i as f32).collect();
        assert_eq!(
            limit(&scores, 0.1, Units::Positive).unwrap(),
            (18f32.next_up(), Rule::Conformal)
        );
    }

    /// Draws of n calibration parts and one new part, over and over: the share of new parts
    /// rejected must not be above α. The bound allows four standard errors of the simulation.
    #[test]
    fn exchangeable_good_parts_are_rejected_at_most_at_the_rate_asked_for() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (n, rate) in [(19, 0.05), (50, 0.05), (99, 0.01), (30, 0.2)] {
            let draws = 20_000;
            let rejected = (0..draws)
                .filter(|_| {
                    let scores = skewed(&mut rng, n + 1);
                    let (limit, rule) = limit(&scores[..n], rate, Units::Positive).unwrap();
                    assert_eq!(rule, Rule::Conformal);
                    scores[n] >= limit
                })
                .count();
            let share = rejected as f64 / draws as f64;
            let error = (rate * (1.0 - rate) / draws as f64).sqrt();
            assert!(share <= rate + 4.0 * error, "n {n}, α {rate}: {share} rejected");
            // the rule is not merely cautious: k/(n+1) is within 1/(n+1) of 1 − α
            let floor = rate - 1.0 / (n + 1) as f64;
            assert!(share >= floor - 4.0 * error, "n {n}, α {rate}: only {share} rejected");
        }
    }

    #[test]
    fn extrapolation_keeps_the_rate_where_scores_are_normal() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        for n in [5, 12, 40] {
            let (draws, rate) = (20_000, 0.01);
            let rejected = (0..draws)
                .filter(|_| {
                    let scores = normal(&mut rng, n + 1);
                    let (limit, rule) = limit(&scores[..n], rate, Units::Positive).unwrap();
                    assert_eq!(rule, Rule::Extrapolated);
                    scores[n] >= limit
                })
                .count();
            let share = rejected as f64 / draws as f64;
            // 0.0035 is five standard errors of 20,000 draws at 1 %
            assert!((share - rate).abs() < 0.0035, "n {n}: {share}");
        }
    }

    proptest! {
        #[test]
        fn a_stricter_promise_never_lowers_the_limit(
            seed in 0u64..1000, n in 2usize..300, a in 0.002f64..0.5, b in 0.002f64..0.5,
        ) {
            let scores = skewed(&mut ChaCha8Rng::seed_from_u64(seed), n);
            let at = |rate| limit(&scores, rate, Units::Positive).unwrap();
            let (strict, loose) = (at(a.min(b)), at(a.max(b)));
            if strict.1 == loose.1 {
                prop_assert!(strict.0 >= loose.0);
            } else {
                // the fallback is above every held-out score, the rank rule at one of them
                prop_assert_eq!(strict.1, Rule::Extrapolated);
                prop_assert!(strict.0 >= loose.0);
            }
        }

        #[test]
        fn the_fallback_accepts_every_held_out_part(seed in 0u64..1000, n in 2usize..200) {
            let scores = skewed(&mut ChaCha8Rng::seed_from_u64(seed), n);
            let (limit, rule) = limit(&scores, 0.001, Units::Positive).unwrap();
            prop_assert_eq!(rule, Rule::Extrapolated);
            prop_assert!(scores.iter().all(|score| *score < limit));
        }
    }

    /// Probabilities whose log-odds are normal; taken for normal themselves they get a limit above 1.
    #[test]
    fn probabilities_are_extrapolated_by_their_odds() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let (draws, rate, n) = (20_000, 0.01, 40);
        let (mut rejected, mut above_one) = (0, 0);
        for _ in 0..draws {
            let odds = normal(&mut rng, n + 1).into_iter().map(|x| 1.5 * (x - 6.0) + 1.0);
            let scores: Vec<f32> = odds.map(|x| 1.0 / (1.0 + (-x).exp())).collect();
            let (by_odds, rule) = limit(&scores[..n], rate, Units::Probability).unwrap();
            assert_eq!(rule, Rule::Extrapolated);
            assert!(by_odds < 1.0, "{by_odds}");
            rejected += usize::from(scores[n] >= by_odds);
            let plain = limit(&scores[..n], rate, Units::Positive).unwrap().0;
            above_one += usize::from(plain > 1.0);
        }
        let share = rejected as f64 / f64::from(draws);
        // Five standard errors of 20,000 draws at 1 %.
        assert!((share - rate).abs() < 0.0035, "{share}");
        assert!(above_one > 10_000, "{above_one}");
        // Certainties have no odds, and no infinite ones either.
        let (limit, _) = limit(&[0.0, 0.2, 1.0], 0.001, Units::Probability).unwrap();
        assert!(limit.is_finite() && limit > 1.0, "{limit}");
    }

    #[test]
    fn cross_fitted_scores_give_the_same_limits_and_never_a_promise() {
        let scores: Vec<f32> = (1..=19).map(|i| i as f32).collect();
        let cases = [
            (0.1, None, Rule::Conformal),
            (0.1, Some(5), Rule::Ranked),
            (0.01, None, Rule::Extrapolated),
            (0.01, Some(5), Rule::Extrapolated),
        ];
        for (rate, folds, rule) in cases {
            let (threshold, calibration) =
                limits(&scores, &scores, rate, folds, Units::Positive).unwrap();
            assert_eq!((calibration.rule, calibration.folds), (rule, folds), "{rate}");
            assert_eq!(threshold.score, limit(&scores, rate, Units::Positive).unwrap().0, "{rate}");
        }
    }

    #[test]
    fn what_cannot_be_calibrated_is_refused() {
        let good = [1.0, 2.0, 3.0];
        let cases: [(&[f32], &[f32], f64, &str); 6] = [
            (&[1.0], &[1.0], 0.01, "at least 2"),
            (&[1.0, f32::NAN, 2.0], &good, 0.01, "not a finite"),
            (&good, &[1.0, f32::INFINITY, 2.0], 0.01, "not a finite"),
            (&[2.0, 2.0, 2.0], &good, 0.01, "copies"),
            (&good, &good, 0.0, "must be a rate"),
            (&good, &[1.0], 0.01, "anomaly maps"),
        ];
        for (scores, maxima, rate, word) in cases {
            let error =
                limits(scores, maxima, rate, None, Units::Positive).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
