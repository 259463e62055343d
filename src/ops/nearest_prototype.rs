//! Nearest-prototype search: for each query patch the prototypes of a bank closest to it, by squared
//! L2 distance, exactly. Letters: Q queries, N prototypes, D dimensions.
//!
//! A blocked matrix product gives ½|p|² − q·p for a block of queries and a tile of prototypes at a
//! time; the Q×N matrix is never whole in memory. That expansion is wrong for close matches, so
//! each prototype that could be the winner within the rounding error of the product is measured
//! again as Σ(q − p)², and that decides.

use anyhow::{Result, ensure};
use candle_core::{Device, Storage, Tensor};
use rayon::prelude::*;

/// Queries and prototypes of one matrix product: the result (1 MiB) stays in a core's cache.
const BLOCK: usize = 128;
const TILE: usize = 2048;

/// Half an ulp of 1 in f32.
const UNIT: f32 = 1.0 / (1u32 << 24) as f32;

/// A prototype found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// Its row in the bank.
    pub index: u32,
    /// Squared L2 distance Σ(a − b)².
    pub distance2: f32,
}

/// Prototypes with what the search needs of them, computed once.
#[derive(Clone, Debug)]
pub struct PrototypeBank {
    dim: usize,
    rows: Vec<f32>,       // [N, D]
    half_norms: Vec<f32>, // ½|p|², [N]
    largest_norm: f32,
    tiles: Vec<Tensor>, // [D, ≤ TILE], views of [≤ TILE, D]
}

impl PrototypeBank {
    /// `rows` [N, D] with D = `dim`; N ≥ 1, finite.
    pub fn new(rows: Vec<f32>, dim: usize) -> Result<Self> {
        ensure!(
            dim > 0 && !rows.is_empty() && rows.len().is_multiple_of(dim),
            "{} numbers are no prototypes of {dim} dimensions",
            rows.len()
        );
        ensure!(u32::try_from(rows.len() / dim).is_ok(), "more than 2^32 prototypes");
        let half_norms: Vec<f32> = rows.chunks(dim).map(|row| 0.5 * norm2(row)).collect();
        if let Some(bad) = half_norms.iter().position(|norm| !(2.0 * norm).is_finite()) {
            anyhow::bail!("prototype {bad} is not finite");
        }
        let largest_norm = half_norms.iter().fold(0f32, |max, &norm| max.max(2.0 * norm)).sqrt();
        let tiles = rows
            .chunks(TILE * dim)
            .map(|tile| Tensor::from_slice(tile, (tile.len() / dim, dim), &Device::Cpu)?.t())
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { dim, rows, half_norms, largest_norm, tiles })
    }

    /// Number of prototypes N.
    pub fn len(&self) -> usize {
        self.half_norms.len()
    }

    /// Never: a bank holds at least one prototype.
    pub fn is_empty(&self) -> bool {
        self.half_norms.is_empty()
    }

    /// D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Prototype `index`, `[D]`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.rows[index * self.dim..][..self.dim]
    }

    /// All prototypes, [N, D].
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// The closest prototype of each query: `queries` `[Q, D]` → `[Q]`. Ties: lowest index.
    pub fn nearest(&self, queries: &[f32]) -> Result<Vec<Nearest>> {
        self.top(queries, 1)
    }

    /// The min(k, N) closest prototypes of each query, nearest first, ties by lowest index:
    /// `queries` [Q, D] → [Q, min(k, N)], flat. A query that is not finite is an error.
    pub fn top(&self, queries: &[f32], k: usize) -> Result<Vec<Nearest>> {
        ensure!(
            queries.len().is_multiple_of(self.dim),
            "{} numbers are no queries of {} dimensions",
            queries.len(),
            self.dim
        );
        let k = k.min(self.len());
        let blocks = queries.par_chunks(BLOCK * self.dim);
        let found: Vec<Vec<Nearest>> =
            blocks.map(|block| self.top_of_block(block, k)).collect::<Result<_>>()?;
        Ok(found.concat())
    }

    fn top_of_block(&self, block: &[f32], k: usize) -> Result<Vec<Nearest>> {
        let mut searches = Vec::with_capacity(BLOCK);
        for query in block.chunks(self.dim) {
            let norm2 = norm2(query);
            ensure!(norm2.is_finite(), "a feature of the picture is not finite");
            searches.push(Search::new(k, norm2, self.largest_norm, self.dim));
        }
        let queries = Tensor::from_slice(block, (searches.len(), self.dim), &Device::Cpu)?;
        let tiles = self.tiles.iter().zip(self.half_norms.chunks(TILE));
        for ((tile, half_norms), first) in tiles.zip((0..).step_by(TILE)) {
            let products = queries.matmul(tile)?; // [block, tile]
            let (storage, _) = products.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else { unreachable!("made on the CPU") };
            let products = storage.as_slice::<f32>()?;
            for (search, products) in searches.iter_mut().zip(products.chunks(half_norms.len())) {
                search.scan(products, half_norms, first);
            }
        }
        let pairs = searches.into_iter().zip(block.chunks(self.dim));
        Ok(pairs.flat_map(|(search, query)| search.finish(query, self)).collect())
    }
}

/// The search of one query. Values are ½|p|² − q·p, that is half the squared distance less ½|q|².
struct Search {
    /// The k smallest values so far, ascending.
    best: Vec<f32>,
    k: usize,
    /// Every prototype whose value is at or below `limit` when seen: the winners are among them.
    candidates: Vec<(f32, u32)>,
    limit: f32,
    norm2: f32,
    /// Bound of a value's error; see [`Search::new`].
    error: f32,
    /// Bound of the relative error of a squared distance measured as Σ(q − p)².
    relative: f32,
}

impl Search {
    /// Bounds after Higham (2002), section 3.1: a dot product of D terms, summed in any order, is
    /// off by at most D·u·|q||p| (u = 2⁻²⁴; a little more for u²), and Σ(q − p)² by (D + 2)·u of
    /// itself; ½|p|² is rounded once, and so is the difference.
    fn new(k: usize, norm2: f32, largest_norm: f32, dim: usize) -> Self {
        let relative = (dim + 8) as f32 * UNIT;
        let error = relative * norm2.sqrt() * largest_norm + 2.0 * UNIT * largest_norm.powi(2);
        Self {
            best: Vec::with_capacity(k + 1),
            k,
            candidates: Vec::new(),
            limit: f32::INFINITY,
            norm2,
            error,
            relative,
        }
    }

    /// One tile: `products` q·p and `half_norms` ½|p|², prototypes from `first` on.
    fn scan(&mut self, products: &[f32], half_norms: &[f32], first: u32) {
        const LANES: usize = 32;
        let chunks = products.chunks(LANES).zip(half_norms.chunks(LANES));
        for ((products, half_norms), first) in chunks.zip((first..).step_by(LANES)) {
            let mut values = [f32::INFINITY; LANES];
            for ((value, product), half) in values.iter_mut().zip(products).zip(half_norms) {
                *value = half - product;
            }
            // Without a branch an element, so that the compiler makes it a few vector comparisons.
            if values.iter().fold(false, |any, &value| any | (value <= self.limit)) {
                for (&value, index) in values[..products.len()].iter().zip(first..) {
                    self.offer(value, index);
                }
            }
        }
    }

    fn offer(&mut self, value: f32, index: u32) {
        if value > self.limit {
            return;
        }
        self.candidates.push((value, index));
        if self.best.len() == self.k && self.best.last().is_some_and(|&worst| value >= worst) {
            return;
        }
        let at = self.best.partition_point(|&other| other <= value);
        self.best.insert(at, value);
        self.best.truncate(self.k);
        if let [.., worst] = self.best[..]
            && self.best.len() == self.k
        {
            // If p is measured no farther than the k-th best b, then with true distances t:
            // t(p) ≤ t(b)·(1 + 2·relative), hence value(p) ≤ value(b) + 2·error + relative·t(b).
            let farthest = (2.0 * (worst + self.error) + self.norm2).max(0.0);
            self.limit = worst + 2.0 * self.error + 1.01 * self.relative * farthest;
        }
    }

    /// Measures the candidates and keeps the k nearest.
    fn finish(mut self, query: &[f32], bank: &PrototypeBank) -> Vec<Nearest> {
        self.candidates.retain(|&(value, _)| value <= self.limit);
        let measure = |&(_, index): &(f32, u32)| Nearest {
            index,
            distance2: squared_distance(query, bank.row(index as usize)),
        };
        let mut found: Vec<Nearest> = self.candidates.iter().map(measure).collect();
        found.sort_by(|a, b| a.distance2.total_cmp(&b.distance2).then(a.index.cmp(&b.index)));
        found.truncate(self.k);
        found
    }
}

/// Σ(a − b)², f32: sixteen sums side by side, then added in a fixed order, so that the result is
/// the same on every machine.
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    let mut sums = [0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += (a[i] - b[i]) * (a[i] - b[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| (a - b) * (a - b)).sum();
    sums.iter().sum::<f32>() + rest
}

/// |a|², summed in f64.
fn norm2(a: &[f32]) -> f32 {
    a.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

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

    fn draw(n: usize, offset: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
        (0..n).map(|_| offset + rng.random::<f32>()).collect()
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
        }
    }

    #[test]
    fn prototype_equal_to_the_query_has_distance_zero() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        // Far from the origin, where |q|² + |p|² − 2q·p in f32 would be off by more than the
        // distances themselves.
        let rows = draw(300 * 33, 1000.0, &mut rng);
        let bank = PrototypeBank::new(rows.clone(), 33).unwrap();
        for (found, index) in bank.nearest(&rows).unwrap().iter().zip(0..) {
            assert_eq!(*found, Nearest { index, distance2: 0.0 });
        }
    }

    #[test]
    fn tie_goes_to_the_lowest_index() {
        let bank = PrototypeBank::new(vec![5.0, 1.0, 3.0, 1.0, 3.0], 1).unwrap();
        let found = bank.top(&[2.0], 4).unwrap();
        assert_eq!(found.iter().map(|f| f.index).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(bank.top(&[2.0], 9).unwrap().len(), 5);
    }

    #[test]
    fn nan_is_refused() {
        assert!(PrototypeBank::new(vec![1.0, f32::NAN], 1).is_err());
        assert!(PrototypeBank::new(Vec::new(), 4).is_err());
        let bank = PrototypeBank::new(vec![1.0, 2.0], 2).unwrap();
        assert!(bank.nearest(&[1.0, f32::NAN]).is_err());
        assert!(bank.nearest(&[1.0, f32::INFINITY]).is_err());
        assert!(bank.nearest(&[1.0]).is_err());
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
            seed in any::<u64>(),
        ) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut rows = draw(n * dim, offset, &mut rng);
            // Near and exact doubles, far apart in the bank.
            let copy = rows[..dim].to_vec();
            let last = rows.len() - dim;
            rows[last..].copy_from_slice(&copy);
            let middle = (n / 2) * dim;
            rows[middle..middle + dim].iter_mut().zip(&copy).for_each(|(x, c)| *x = c * (1.0 + 2.0 * UNIT));
            let mut queries = draw(q * dim, offset, &mut rng);
            queries[..dim].copy_from_slice(&copy);
            let bank = PrototypeBank::new(rows.clone(), dim).unwrap();
            // Both measure by the same sum, so index and distance are equal to the bit.
            prop_assert_eq!(bank.top(&queries, k).unwrap(), plain_top(&rows, &queries, dim, k));
        }
    }
}
