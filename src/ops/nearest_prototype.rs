//! Nearest-prototype search: for each query patch the prototypes of a bank closest to it, by squared
//! L2 distance, exactly. Letters: Q queries, N prototypes, D dimensions.

use anyhow::Result;

/// A prototype found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// Its row in the bank.
    pub index: u32,
    /// Squared L2 distance Σ(a − b)².
    pub distance2: f32,
}

/// Prototypes with what the search needs of them, computed once.
pub struct PrototypeBank {
    dim: usize,
    /// [N, D]
    rows: Vec<f32>,
}

impl PrototypeBank {
    /// `rows` [N, D] with D = `dim`; N ≥ 1, finite.
    pub fn new(rows: Vec<f32>, dim: usize) -> Result<Self> {
        Ok(Self { dim, rows })
    }

    /// Number of prototypes N.
    pub fn len(&self) -> usize {
        self.rows.len() / self.dim
    }

    /// Never: a bank holds at least one prototype.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Prototype `index`, [D].
    pub fn row(&self, index: usize) -> &[f32] {
        &self.rows[index * self.dim..][..self.dim]
    }

    /// The closest prototype of each query: `queries` [Q, D] → [Q]. Ties: lowest index.
    pub fn nearest(&self, queries: &[f32]) -> Result<Vec<Nearest>> {
        self.top(queries, 1)
    }

    /// The min(k, N) closest prototypes of each query, nearest first, ties by lowest index:
    /// `queries` [Q, D] → [Q, min(k, N)], flat.
    pub fn top(&self, queries: &[f32], k: usize) -> Result<Vec<Nearest>> {
        Ok(plain_top(&self.rows, queries, self.dim, k))
    }
}

/// The definition: all distances, sorted. Flat [Q, min(k, N)].
pub fn plain_top(rows: &[f32], queries: &[f32], dim: usize, k: usize) -> Vec<Nearest> {
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

/// Σ(a − b)², f32, in a fixed order.
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}
