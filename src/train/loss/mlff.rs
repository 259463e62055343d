//! MLFF's losses (`../shared/spec/mlff.md`, section 2), each with its gradient: normal features are drawn
//! to the origin and anomalous ones driven from it, scores of the two are held apart, and patches are to
//! be as alike by their scores as by their features. A class that a picture lacks adds nothing.
//!
//! Letters: B pictures, H × W places, C channels, K patches; A = √(‖ψ‖² + 1) − 1 of a feature ψ.

use rand::{Rng, RngExt};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::detector::mlff::radius;

/// How places of several pictures are averaged (M-12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counting {
    /// Over each picture's places of a class, then over the pictures.
    #[default]
    Picture,
    /// Over the places of a class in the whole batch.
    Batch,
}

/// Which normal place an anomalous one's score is held against (M-5). Where a picture has none, it is
/// one of the batch's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// One of the picture's, drawn.
    #[default]
    Random,
    /// The mean of them.
    Mean,
    /// The first with the first, and so on, from the top again where there are fewer.
    Ordered,
}

/// What a distance between patches says of their likeness (M-7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// Near is alike.
    #[default]
    Negative,
    /// The paper to the letter.
    Positive,
}

/// Which likeness is coded by which (M-8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Σ Q ln(Q/P), Q that of scores and P that of features: the order that the paper draws.
    #[default]
    ScoresToFeatures,
    /// Σ P ln(P/Q).
    FeaturesToScores,
}

/// What the paper leaves open of the consistency loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Likeness {
    pub sign: Sign,
    pub direction: Direction,
    /// Features learn nothing from this loss (M-8).
    pub stop_gradient: bool,
    /// Distances are divided by the mean of their row (M-10).
    pub by_row_mean: bool,
}

/// A loss in its two terms, and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    pub normal: f64,
    pub anomalous: f64,
    pub gradient: Vec<f32>,
}

/// Below, 1 − e⁻ᴬ is no number that a logarithm should be taken of.
const LEAST_RADIUS: f64 = 1e-6;

/// Equation 4: ½ the mean of A over normal places less ½ the mean of ln(1 − e⁻ᴬ) over anomalous ones.
/// `squared_norms` are ‖ψ‖² [B, H·W], and so the gradient is by them; `anomalous` has a truth for each.
pub fn feature(
    squared_norms: &[f32],
    anomalous: &[bool],
    pictures: usize,
    counting: Counting,
) -> Terms {
    assert_eq!(squared_norms.len(), anomalous.len(), "a truth for each place");
    let shares = shares(anomalous, pictures, counting);
    let mut terms = Terms::zero(squared_norms.len());
    let places = squared_norms.len() / pictures;
    for (i, (&norm, &anomalous)) in squared_norms.iter().zip(anomalous).enumerate() {
        let share = 0.5 * shares[i / places].of(anomalous);
        let norm = f64::from(norm);
        let radius = radius(norm);
        let by_radius = if anomalous {
            let radius = radius.max(LEAST_RADIUS);
            let inside = -(-radius).exp_m1();
            terms.anomalous -= share * inside.ln();
            -(-radius).exp() / inside
        } else {
            terms.normal += share * radius;
            1.0
        };
        terms.gradient[i] = (share * by_radius / (2.0 * (norm + 1.0).sqrt())) as f32;
    }
    terms
}

/// What the scores of anomalous places are held against.
#[derive(Clone, Debug, PartialEq)]
pub enum Partners {
    /// A normal place for each anomalous one, in their order; places are counted over the batch. Empty
    /// where the batch has no normal place.
    Places(Vec<usize>),
    /// The mean of the picture's normal places, or the batch's where it has none.
    Mean,
}

impl Partners {
    pub fn find(
        pairing: Pairing,
        anomalous: &[bool],
        pictures: usize,
        rng: &mut impl Rng,
    ) -> Partners {
        let normals = Normals::of(anomalous, pictures);
        let mut partners = Vec::new();
        for (picture, truth) in anomalous.chunks(anomalous.len() / pictures).enumerate() {
            let of = normals.for_picture(picture);
            let count = truth.iter().filter(|&&anomalous| anomalous).count();
            if of.is_empty() {
                continue;
            }
            match pairing {
                Pairing::Mean => return Partners::Mean,
                Pairing::Ordered => partners.extend(of.iter().cycle().take(count)),
                Pairing::Random => {
                    partners.extend((0..count).map(|_| of[rng.random_range(0..of.len())]));
                }
            }
        }
        Partners::Places(partners)
    }
}

/// Equation 5: the mean of max(0, S − γ) over normal places, and of max(0, λ − (S − S′)) over anomalous
/// ones, S′ the score of its partner. `scores` [B, H·W].
pub fn score(
    scores: &[f32],
    anomalous: &[bool],
    pictures: usize,
    partners: &Partners,
    (gamma, lambda): (f64, f64),
    counting: Counting,
) -> Terms {
    assert_eq!(scores.len(), anomalous.len(), "a truth for each place");
    let shares = shares(anomalous, pictures, counting);
    let places = scores.len() / pictures;
    let mut terms = Terms::zero(scores.len());
    let mut gradient = vec![0.0_f64; scores.len()];
    let normals = Normals::of(anomalous, pictures);
    let mean = |of: &[usize]| {
        of.iter().map(|&place| f64::from(scores[place])).sum::<f64>() / of.len() as f64
    };
    let mut partner = match partners {
        Partners::Places(places) => places.iter(),
        Partners::Mean => [].iter(),
    };
    for picture in 0..pictures {
        let of = normals.for_picture(picture);
        if of.is_empty() {
            continue;
        }
        let level = if *partners == Partners::Mean { mean(of) } else { 0.0 };
        // What the mean of the normal places gets in all.
        let mut by_level = 0.0;
        for place in picture * places..(picture + 1) * places {
            let (own, share) = (f64::from(scores[place]), shares[picture].of(anomalous[place]));
            if !anomalous[place] {
                if own > gamma {
                    terms.normal += share * (own - gamma);
                    gradient[place] += share;
                }
                continue;
            }
            let (against, partner) = match partner.next() {
                Some(&partner) => (f64::from(scores[partner]), Some(partner)),
                None => (level, None),
            };
            let missing = lambda - (own - against);
            if missing > 0.0 {
                terms.anomalous += share * missing;
                gradient[place] -= share;
                match partner {
                    Some(partner) => gradient[partner] += share,
                    None => by_level += share,
                }
            }
        }
        if by_level > 0.0 {
            of.iter().for_each(|&place| gradient[place] += by_level / of.len() as f64);
        }
    }
    terms.gradient = gradient.into_iter().map(|slope| slope as f32).collect();
    terms
}

/// The consistency loss of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Consistency {
    pub value: f64,
    pub by_features: Vec<f32>, // [K, C]
    pub by_scores: Vec<f32>,   // [K]
}

/// Equation 6: how far the likeness of patches by their scores lies from that by their features, mean
/// over the patches. A likeness is the softmax over a row of Euclidean distances. `features` [K, C],
/// `scores` `[K]`; both of normal patches only.
pub fn consistency(features: &[f32], scores: &[f32], likeness: Likeness) -> Consistency {
    let patches = scores.len();
    let nothing = || vec![0.0; features.len()];
    if patches < 2 {
        // A patch is like itself by either.
        return Consistency { value: 0.0, by_features: nothing(), by_scores: vec![0.0; patches] };
    }
    let channels = features.len() / patches;
    assert_eq!(features.len(), patches * channels, "features of {patches} patches");
    let (p, q) = (distances(features, channels), distances(scores, 1)); // [K, K]
    let (mut by_p, mut by_q) = (vec![0.0; p.len()], vec![0.0; q.len()]);
    let rows = by_p.par_chunks_mut(patches).zip(by_q.par_chunks_mut(patches)).enumerate();
    let values: Vec<f64> = rows
        .map(|(i, (by_p, by_q))| {
            let own = i * patches..(i + 1) * patches;
            let (p, q) = (Row::new(&p[own.clone()], likeness), Row::new(&q[own], likeness));
            let value = match likeness.direction {
                Direction::ScoresToFeatures => divergence((&q, by_q), (&p, by_p)),
                Direction::FeaturesToScores => divergence((&p, by_p), (&q, by_q)),
            };
            p.to_distances(by_p);
            q.to_distances(by_q);
            value / patches as f64
        })
        .collect();
    let by_features = match likeness.stop_gradient {
        true => nothing(),
        false => to_rows(features, channels, &p, &by_p),
    };
    let by_scores = to_rows(scores, 1, &q, &by_q);
    Consistency { value: values.iter().sum(), by_features, by_scores }
}

impl Terms {
    fn zero(places: usize) -> Terms {
        Terms { normal: 0.0, anomalous: 0.0, gradient: vec![0.0; places] }
    }

    pub fn value(&self) -> f64 {
        self.normal + self.anomalous
    }
}

/// What one place of a picture counts.
#[derive(Clone, Copy)]
struct Share {
    normal: f64,
    anomalous: f64,
}

impl Share {
    fn of(self, anomalous: bool) -> f64 {
        if anomalous { self.anomalous } else { self.normal }
    }
}

/// For each picture. A class without a place is never asked for.
fn shares(anomalous: &[bool], pictures: usize, counting: Counting) -> Vec<Share> {
    let count = |truth: &[bool]| {
        let bad = truth.iter().filter(|&&anomalous| anomalous).count();
        [truth.len() - bad, bad]
    };
    let share = |[normal, anomalous]: [usize; 2], of: usize| {
        let one = |count: usize| 1.0 / (count * of) as f64;
        Share { normal: one(normal), anomalous: one(anomalous) }
    };
    match counting {
        Counting::Picture => {
            let pictures_of = anomalous.chunks(anomalous.len() / pictures);
            pictures_of.map(|truth| share(count(truth), pictures)).collect()
        }
        Counting::Batch => vec![share(count(anomalous), 1); pictures],
    }
}

/// The normal places of a batch, picture by picture.
struct Normals {
    places: Vec<usize>,
    /// Where those of each picture begin; one more for the end.
    starts: Vec<usize>,
}

impl Normals {
    fn of(anomalous: &[bool], pictures: usize) -> Normals {
        let places: Vec<usize> = (0..anomalous.len()).filter(|&place| !anomalous[place]).collect();
        let of_picture = anomalous.len() / pictures;
        let first = |picture: usize| places.partition_point(|&place| place < picture * of_picture);
        let starts = (0..=pictures).map(first).collect();
        Normals { places, starts }
    }

    /// Those of a picture, or of all where it has none.
    fn for_picture(&self, picture: usize) -> &[usize] {
        let own = &self.places[self.starts[picture]..self.starts[picture + 1]];
        if own.is_empty() { &self.places } else { own }
    }
}

/// A row of distances as likeness.
struct Row<'a> {
    distances: &'a [f64],
    /// What a logit is of its distance.
    scale: f64,
    by_row_mean: bool,
    logarithms: Vec<f64>,
}

impl<'a> Row<'a> {
    fn new(distances: &'a [f64], likeness: Likeness) -> Row<'a> {
        let sign = match likeness.sign {
            Sign::Negative => -1.0,
            Sign::Positive => 1.0,
        };
        let mean = distances.iter().sum::<f64>() / distances.len() as f64;
        let scale = match likeness.by_row_mean {
            false => sign,
            true if mean > 0.0 => sign / mean,
            // Patches that are all the same stay so.
            true => 0.0,
        };
        let logits = distances.iter().map(|distance| scale * distance);
        let most = logits.clone().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.clone().map(|logit| (logit - most).exp()).sum();
        let logarithms = logits.map(|logit| logit - most - sum.ln()).collect();
        Row { distances, scale, by_row_mean: likeness.by_row_mean, logarithms }
    }

    /// From the gradient by the logits to that by the distances, of the mean over all rows.
    fn to_distances(&self, by: &mut [f64]) {
        let count = by.len() as f64;
        let along: f64 = by.iter().zip(self.distances).map(|(by, distance)| by * distance).sum();
        let sum: f64 = self.distances.iter().sum();
        // The mean moves with each distance.
        let less = if self.by_row_mean && sum > 0.0 { along / sum } else { 0.0 };
        by.iter_mut().for_each(|by| *by = self.scale * (*by - less) / count);
    }
}

/// Σ f ln(f/s), and its gradients by the logits of both.
fn divergence(
    (first, by_first): (&Row<'_>, &mut [f64]),
    (second, by_second): (&Row<'_>, &mut [f64]),
) -> f64 {
    let both = || first.logarithms.iter().zip(&second.logarithms);
    let value: f64 = both().map(|(f, s)| f.exp() * (f - s)).sum();
    for ((f, s), (by_first, by_second)) in both().zip(by_first.iter_mut().zip(by_second)) {
        *by_first = f.exp() * (f - s - value);
        *by_second = s.exp() - f.exp();
    }
    value
}

/// Numbers whose squares are summed side by side.
const SIDE_BY_SIDE: usize = 16;

/// Euclidean distances [K, K] between the rows [K, C].
fn distances(rows: &[f32], channels: usize) -> Vec<f64> {
    let count = rows.len() / channels;
    let row = |i: usize| &rows[i * channels..][..channels];
    let mut distances = vec![0.0; count * count];
    distances.par_chunks_mut(count).enumerate().for_each(|(i, to)| {
        for (j, to) in to.iter_mut().enumerate().take(i) {
            *to = squares(row(i), row(j)).sqrt();
        }
    });
    for i in 0..count {
        for j in i + 1..count {
            distances[i * count + j] = distances[j * count + i];
        }
    }
    distances
}

/// Σ (a − b)²: in f32 along a lane, of which there are few numbers, and in f64 over the lanes.
fn squares(a: &[f32], b: &[f32]) -> f64 {
    let (a_lanes, a_rest) = a.as_chunks::<SIDE_BY_SIDE>();
    let (b_lanes, b_rest) = b.as_chunks::<SIDE_BY_SIDE>();
    let mut sums = [0.0_f32; SIDE_BY_SIDE];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            let away = a[lane] - b[lane];
            *sum += away * away;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    sums.iter().map(|&sum| f64::from(sum)).sum::<f64>() + rest.sum::<f64>()
}

/// From the gradient by the distances [K, K] to that by the rows [K, C]. Two rows that are one have no
/// direction to be drawn in.
fn to_rows(rows: &[f32], channels: usize, distances: &[f64], by: &[f64]) -> Vec<f32> {
    let count = rows.len() / channels;
    let mut gradient = vec![0.0; rows.len()];
    gradient.par_chunks_mut(channels).enumerate().for_each(|(i, to)| {
        let own = &rows[i * channels..][..channels];
        for (j, other) in rows.chunks_exact(channels).enumerate() {
            let distance = distances[i * count + j];
            if distance == 0.0 {
                continue;
            }
            let pull = ((by[i * count + j] + by[j * count + i]) / distance) as f32;
            for ((to, own), other) in to.iter_mut().zip(own).zip(other) {
                *to += pull * (own - other);
            }
        }
    });
    gradient
}

#[cfg(test)]
mod tests;
