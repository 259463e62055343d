//! Greedy k-centre selection (farthest point first; Gonzalez 1985; Sener & Savarese 2018), which
//! keeps the patches that cover all others best, on randomly projected features (Johnson &
//! Lindenstrauss 1984) as PatchCore does (Roth et al. 2022, algorithm 1).
//! Letters: N points, D dimensions, E projected dimensions.

mod points;

use anyhow::{Result, ensure};
use rand::{Rng, RngExt};
use rayon::prelude::*;

use super::simd::{Isa, Kernel, LANES, Simd};
use points::Points;

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
    let isa = Isa::detect()?;
    let first = rng.random_range(0..n);
    let points = if dim <= config.projection {
        Points::new(n, dim, isa, |rows, out| {
            out.copy_from_slice(&features[rows.start * dim..rows.end * dim])
        })
    } else {
        let projection = Projection::draw(dim, config.projection, rng);
        Points::new(n, config.projection, isa, |rows, out| {
            projection.project(&features[rows.start * dim..rows.end * dim], isa, out);
        })
    };
    Ok(farthest_points(points, first, config.target, progress))
}

/// A random linear map D → E whose distances estimate the original ones: entries ±1/√E, each sign
/// a fair coin (Achlioptas 2003, theorem 1.1).
#[derive(Clone, Debug)]
pub struct Projection {
    dim: usize,
    projected: usize,
    signs: Vec<f32>, // [⌈E/16⌉][D][16]; zero past E
}

impl Projection {
    pub fn draw(dim: usize, projected: usize, rng: &mut impl Rng) -> Self {
        let unit = 1.0 / (projected as f32).sqrt();
        let mut signs = vec![0f32; projected.next_multiple_of(LANES) * dim];
        for (d, e) in (0..dim).flat_map(|d| (0..projected).map(move |e| (d, e))) {
            let sign = if rng.random::<bool>() { unit } else { -unit };
            signs[(e / LANES * dim + d) * LANES + e % LANES] = sign;
        }
        Self { dim, projected, signs }
    }

    /// `features` [N, D] → `out` [N, E]; each sum in the order of D, so equal on every machine.
    fn project(&self, features: &[f32], isa: Isa, out: &mut [f32]) {
        isa.run(Project { map: self, features, out });
    }
}

struct Project<'a> {
    map: &'a Projection,
    features: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Project<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        /// Points whose sums stay in registers.
        const ROWS: usize = 4;
        let Projection { dim, projected, ref signs } = *self.map;
        let groups = self.features.chunks(ROWS * dim).zip(self.out.chunks_mut(ROWS * projected));
        for (features, out) in groups {
            let count = features.len() / dim;
            // What is past the last point repeats it, and is not written.
            let row = |r: usize| &features[r.min(count - 1) * dim..][..dim];
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            for (block, signs) in signs.as_chunks::<LANES>().0.chunks_exact(dim).enumerate() {
                let mut sums = [s.zero(); ROWS];
                for (i, signs) in signs.iter().enumerate() {
                    let signs = s.load_array(*signs);
                    for (sum, x) in sums.iter_mut().zip([a[i], b[i], c[i], d[i]]) {
                        *sum = s.add(*sum, s.mul(s.splat(x), signs));
                    }
                }
                for (sum, out) in sums.into_iter().zip(out.chunks_exact_mut(projected)) {
                    let out = &mut out[block * LANES..];
                    let width = out.len().min(LANES);
                    out[..width].copy_from_slice(&s.to_array(sum)[..width]);
                }
            }
        }
    }
}

/// Farthest-point order of `points`, from `first` on, up to `target` points.
///
/// The distance of a point to the chosen ones only falls, so one that is known from an earlier day
/// is a bound, and a point needs to be measured again only when its bound is among the largest. All
/// points at or above a level [`LEVEL`] below the largest are brought up to date; the next ones are
/// chosen among them, as long as the farthest of them is not below the level. The result is the same
/// as if every point were measured against every chosen one.
fn farthest_points(
    mut points: Points,
    first: usize,
    target: usize,
    mut progress: impl FnMut(usize, usize),
) -> Vec<usize> {
    let target = target.min(points.len());
    let mut chosen = vec![first];
    progress(1, target);
    points.add_centre(first);
    while chosen.len() < target {
        let largest = points.largest_bound();
        if largest <= 0.0 {
            break;
        }
        let mut level = LEVEL * largest.min(f32::MAX);
        points.refresh(level);
        // Points all about as far, as of noise, would be copied all.
        let (largest, most) = (points.largest_bound(), (points.len() / 8).max(4096));
        while level < largest && points.count_at_least(level) > most {
            level = raised(level, largest);
        }
        let mut near = points.at_least(level);
        while chosen.len() < target
            && let Some(farthest) = near.farthest().filter(|far| far.distance2 >= level)
            && farthest.distance2 > 0.0
        {
            chosen.push(farthest.index);
            points.add_centre(farthest.index);
            near.measure(points.newest_centre());
            progress(chosen.len(), target);
        }
        points.take_back(&near);
    }
    chosen
}

/// Between the two and above `level`, at the least by one step of f32.
fn raised(level: f32, largest: f32) -> f32 {
    (0.5 * (level + largest)).clamp(level.next_up(), largest)
}

/// Of squared distances: lower, more points are kept up to date; higher, all points are looked at
/// more often.
const LEVEL: f32 = 0.97;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::ops::nearest_prototype::squared_distance;

    fn order(
        points: &[f32],
        dim: usize,
        first: usize,
        target: usize,
        progress: impl FnMut(usize, usize),
    ) -> Vec<usize> {
        let fill = |range: std::ops::Range<usize>, out: &mut [f32]| {
            out.copy_from_slice(&points[range.start * dim..range.end * dim]);
        };
        let points = Points::new(points.len() / dim, dim, Isa::detect().unwrap(), fill);
        farthest_points(points, first, target, progress)
    }

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
        assert_eq!(order(&line, 1, 0, 9, |_, _| {}), [0, 2, 3, 1]);
        let mut calls = Vec::new();
        order(&line, 1, 0, 3, |done, total| calls.push((done, total)));
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
    fn more_points_at_the_same_distance_than_are_copied_at_once() {
        // Three times as many as that, on ten places of a circle, and the middle.
        let mut points = vec![0.0, 0.0];
        for i in 0..13_000 {
            let angle = (i % 10) as f32;
            points.extend([angle.sin(), angle.cos()]);
        }
        assert_eq!(order(&points, 2, 0, 12, |_, _| {}), plain(&points, 2, 0, 12));
    }

    #[test]
    fn projection_keeps_distances() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let points: Vec<f32> = (0..64 * 512).map(|_| rng.random()).collect();
        let mut projected = vec![0.0; 64 * 256];
        let projection = Projection::draw(512, 256, &mut rng);
        projection.project(&points, Isa::detect().unwrap(), &mut projected);
        for (a, b) in (0..63).map(|i| (i, i + 1)) {
            let want = squared_distance(&points[a * 512..][..512], &points[b * 512..][..512]);
            let got = squared_distance(&projected[a * 256..][..256], &projected[b * 256..][..256]);
            // The ratio has mean 1 and variance ≤ 2/E (Achlioptas 2003, lemma 5.1): six deviations.
            assert!((got / want - 1.0).abs() < 6.0 * (2.0 / 256f32).sqrt(), "{got} {want}");
        }
    }

    #[test]
    fn every_path_projects_in_the_order_of_the_dimensions() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for (n, dim, projected) in [(1, 3, 1), (7, 40, 33), (16, 130, 16)] {
            let points: Vec<f32> = (0..n * dim).map(|_| rng.random()).collect();
            let projection = Projection::draw(dim, projected, &mut rng);
            let sign = |d: usize, e: usize| projection.signs[(e / 16 * dim + d) * 16 + e % 16];
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
                let mut got = vec![0.0; n * projected];
                projection.project(&points, isa, &mut got);
                for (i, got) in got.iter().enumerate() {
                    let (point, e) = (&points[i / projected * dim..][..dim], i % projected);
                    let want =
                        point.iter().enumerate().fold(0.0, |sum, (d, x)| sum + x * sign(d, e));
                    assert_eq!(*got, want, "{}", isa.word());
                }
            }
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
            let got = order(&points, dim, first, target, |_, _| {});
            prop_assert_eq!(got, plain(&points, dim, first, target.min(n)));
        }
    }
}
