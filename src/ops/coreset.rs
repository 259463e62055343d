//! Greedy k-centre selection (farthest point first; Gonzalez 1985; Sener & Savarese 2018), which
//! keeps the patches that cover all others best, on randomly projected features (Johnson &
//! Lindenstrauss 1984) as PatchCore does (Roth et al. 2022, algorithm 1).
//! Letters: N points, D dimensions, E projected dimensions.

use anyhow::{Result, ensure};
use rand::{Rng, RngExt};
use rayon::prelude::*;

use super::nearest_prototype::squared_distance;

/// Points that one task goes through: the same pieces whatever the number of threads.
const PIECE: usize = 4096;

/// How many points to keep and how they are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoresetConfig {
    /// Points to keep, ≥ 1; all of them where there are fewer.
    pub target: usize,
    /// Projected dimensions E ≥ 1; features of no more dimensions are compared as they are.
    pub projection: usize,
}

impl Default for CoresetConfig {
    fn default() -> Self {
        Self { target: 3000, projection: 128 }
    }
}

/// Indices of the chosen rows of `features` [N, D] with D = `dim`, in the order chosen, no two
/// equal. The first is drawn; each next one is the point farthest from all chosen (ties: lowest
/// index). Fewer than the target where the rest are exact doubles of chosen ones. `progress(done,
/// total)` is called after each. The same rng gives the same indices whatever the number of
/// threads.
pub fn select(
    features: &[f32],
    dim: usize,
    config: &CoresetConfig,
    rng: &mut impl Rng,
    progress: impl FnMut(usize, usize),
) -> Result<Vec<usize>> {
    ensure!(config.target > 0, "a coreset of 0 points: keep at least 1");
    ensure!(config.projection > 0, "a projection to 0 dimensions: keep at least 1");
    ensure!(
        dim > 0 && !features.is_empty() && features.len().is_multiple_of(dim),
        "{} numbers are no features of {dim} dimensions",
        features.len()
    );
    let n = features.len() / dim;
    ensure!(u32::try_from(n).is_ok(), "{n} features are more than 2^32");
    ensure!(features.par_iter().all(|x| x.is_finite()), "a feature is not finite");
    let first = rng.random_range(0..n);
    if dim <= config.projection {
        return Ok(farthest_points(features, dim, first, config.target, progress));
    }
    let projected = Projection::draw(dim, config.projection, rng).apply(features);
    Ok(farthest_points(&projected, config.projection, first, config.target, progress))
}

/// A random linear map D → E whose distances estimate the original ones: entries ±1/√E, each sign
/// a fair coin (Achlioptas 2003, theorem 1.1).
#[derive(Clone, Debug)]
pub struct Projection {
    dim: usize,
    projected: usize,
    signs: Vec<f32>, // [D, E]
}

impl Projection {
    pub fn draw(dim: usize, projected: usize, rng: &mut impl Rng) -> Self {
        let unit = 1.0 / (projected as f32).sqrt();
        let sign = |_| if rng.random::<bool>() { unit } else { -unit };
        Self { dim, projected, signs: (0..dim * projected).map(sign).collect() }
    }

    /// `features` [N, D] → [N, E]; each sum in the order of D, so equal on every machine.
    pub fn apply(&self, features: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; features.len() / self.dim * self.projected];
        let rows = features.par_chunks(self.dim);
        out.par_chunks_mut(self.projected).zip(rows).with_min_len(64).for_each(|(out, row)| {
            for (x, signs) in row.iter().zip(self.signs.chunks(self.projected)) {
                out.iter_mut().zip(signs).for_each(|(out, sign)| *out += x * sign);
            }
        });
        out
    }
}

/// The point farthest from the chosen ones, so far: larger distance first, then lower index.
#[derive(Clone, Copy)]
struct Farthest {
    distance2: f32,
    index: usize,
}

impl Farthest {
    fn or(self, other: Self) -> Self {
        let nearer = self.distance2 < other.distance2
            || self.distance2 == other.distance2 && self.index > other.index;
        if nearer { other } else { self }
    }
}

/// Farthest-point order of `points` [N, E], from `first` on, up to `target` points.
///
/// Most points need not be measured against a new centre c: with a the nearest centre of p so far,
/// d(p, c) ≥ d(c, a) − d(p, a), so d(c, a) ≥ 2·d(p, a) means that c cannot be nearer (Elkan 2003,
/// lemma 1). The result is the same as without that shortcut.
fn farthest_points(
    points: &[f32],
    dim: usize,
    first: usize,
    target: usize,
    mut progress: impl FnMut(usize, usize),
) -> Vec<usize> {
    /// A quarter, less a thousandth that outweighs the rounding of both squared distances.
    const SKIP: f32 = 0.25 * (1.0 - 1e-3);
    let row = |i: usize| &points[i * dim..][..dim];
    let n = points.len() / dim;
    let target = target.min(n);
    let mut distance2 = vec![f32::INFINITY; n];
    let mut owner = vec![0u32; n];
    let mut chosen = vec![first];
    progress(1, target);
    while chosen.len() <= target {
        let newest = chosen.len() - 1;
        let centre = row(chosen[newest]);
        let skip: Vec<f32> = chosen
            .par_iter()
            .with_min_len(512)
            .map(|&other| SKIP * squared_distance(centre, row(other)))
            .collect();
        let pieces = distance2.par_chunks_mut(PIECE).zip(owner.par_chunks_mut(PIECE));
        let farthest = pieces
            .enumerate()
            .map(|(piece, (distance2, owner))| {
                let mut farthest = Farthest { distance2: -1.0, index: 0 };
                let start = piece * PIECE;
                for (i, (nearest, owner)) in distance2.iter_mut().zip(owner).enumerate() {
                    if *nearest > skip[*owner as usize] {
                        let new = squared_distance(centre, row(start + i));
                        if new < *nearest {
                            (*nearest, *owner) = (new, newest as u32);
                        }
                    }
                    if *nearest > farthest.distance2 {
                        farthest = Farthest { distance2: *nearest, index: start + i };
                    }
                }
                farthest
            })
            .reduce(|| Farthest { distance2: -1.0, index: 0 }, Farthest::or);
        if chosen.len() == target || farthest.distance2 <= 0.0 {
            break;
        }
        chosen.push(farthest.index);
        progress(chosen.len(), target);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The definition: every point against every chosen one.
    fn plain(points: &[f32], dim: usize, first: usize, target: usize) -> Vec<usize> {
        let mut chosen = vec![first];
        while chosen.len() < target {
            let nearest = |p: &[f32]| {
                let to = |&c: &usize| squared_distance(&points[c * dim..][..dim], p);
                chosen.iter().map(to).fold(f32::INFINITY, f32::min)
            };
            let mut best = (0.0, usize::MAX);
            for (i, p) in points.chunks(dim).enumerate() {
                if nearest(p) > best.0 {
                    best = (nearest(p), i);
                }
            }
            if best.1 == usize::MAX {
                break;
            }
            chosen.push(best.1);
        }
        chosen
    }

    /// Points in a few clumps of different sizes, as patches of real parts are.
    fn clumps(n: usize, dim: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut points = Vec::with_capacity(n * dim);
        for _ in 0..n {
            let clump = rng.random_range(0..5u32) as f32;
            points.extend((0..dim).map(|_| 3.0 * clump + clump * rng.random::<f32>()));
        }
        points
    }

    #[test]
    fn farthest_is_taken_first_and_ties_by_lowest_index() {
        let line = [0.0, 1.0, 10.0, 5.0, 10.0, 5.0];
        assert_eq!(farthest_points(&line, 1, 0, 9, |_, _| {}), [0, 2, 3, 1]);
        let mut calls = Vec::new();
        farthest_points(&line, 1, 0, 3, |done, total| calls.push((done, total)));
        assert_eq!(calls, [(1, 3), (2, 3), (3, 3)]);
    }

    #[test]
    fn same_seed_same_points_on_one_thread_and_on_many() {
        let features = clumps(9000, 40, 3);
        let config = CoresetConfig { target: 60, projection: 16 };
        let chosen = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            pool.install(|| select(&features, 40, &config, &mut rng, |_, _| {}).unwrap())
        };
        assert_eq!(chosen(1, 7), chosen(5, 7));
        assert_ne!(chosen(2, 7), chosen(2, 8));
    }

    #[test]
    fn projection_keeps_distances() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let points: Vec<f32> = (0..64 * 512).map(|_| rng.random()).collect();
        let projected = Projection::draw(512, 256, &mut rng).apply(&points);
        for (a, b) in (0..63).map(|i| (i, i + 1)) {
            let want = squared_distance(&points[a * 512..][..512], &points[b * 512..][..512]);
            let got = squared_distance(&projected[a * 256..][..256], &projected[b * 256..][..256]);
            // The ratio has mean 1 and variance ≤ 2/E (Achlioptas 2003, lemma 5.1): six deviations.
            assert!((got / want - 1.0).abs() < 6.0 * (2.0 / 256f32).sqrt(), "{got} {want}");
        }
    }

    #[test]
    fn what_cannot_be_chosen_from_is_refused() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let config = CoresetConfig { target: 1, projection: 8 };
        let mut refused = |features: &[f32], config: &CoresetConfig| {
            select(features, 2, config, &mut rng, |_, _| {}).is_err()
        };
        assert!(refused(&[], &config));
        assert!(refused(&[1.0, 2.0, 3.0], &config));
        assert!(refused(&[1.0, f32::NAN], &config));
        assert!(refused(&[1.0, 2.0], &CoresetConfig { target: 0, projection: 8 }));
        assert!(refused(&[1.0, 2.0], &CoresetConfig { target: 1, projection: 0 }));
        assert!(!refused(&[1.0, 2.0], &config));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn equals_the_definition(
            n in prop::sample::select(vec![1usize, 31, 33, 1025]),
            dim in prop::sample::select(vec![1usize, 3, 31, 33]),
            target in 1usize..40,
            seed in any::<u64>(),
        ) {
            let points = clumps(n, dim, seed);
            let first = seed as usize % n;
            let got = farthest_points(&points, dim, first, target, |_, _| {});
            prop_assert_eq!(got, plain(&points, dim, first, target.min(n)));
        }
    }
}
