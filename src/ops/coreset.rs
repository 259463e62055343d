//! Greedy k-centre selection (farthest point first; Gonzalez 1985; Sener & Savarese 2018), which
//! keeps the patches that cover all others best, on randomly projected features (Johnson &
//! Lindenstrauss 1984) as PatchCore does (Roth et al. 2022, algorithm 1).
//! Letters: N points, D dimensions, E projected dimensions.

use anyhow::Result;
use rand::Rng;

/// How many points to keep and how they are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoresetConfig {
    /// Points to keep; all of them where there are fewer.
    pub target: usize,
    /// Projected dimensions E; features of no more dimensions are compared as they are.
    pub projection: usize,
}

impl Default for CoresetConfig {
    fn default() -> Self {
        Self { target: 3000, projection: 128 }
    }
}

/// Indices of the chosen rows of `features` [N, D] with D = `dim`, in the order chosen, no two
/// equal. The first is drawn; each next one is the point farthest from all chosen (ties: lowest
/// index). `progress(done, total)` is called as points are chosen. The same rng gives the same
/// indices whatever the number of threads.
pub fn select(
    features: &[f32],
    dim: usize,
    config: &CoresetConfig,
    rng: &mut impl Rng,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<usize>> {
    let _ = (features, dim, config, rng);
    progress(0, 0);
    anyhow::bail!("coreset")
}
