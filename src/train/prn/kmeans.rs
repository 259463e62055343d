//! K-means of whole feature maps (Lloyd 1982, L2) through the products of the maps with one another:
//! every centre is a mean of maps, so that all distances follow from them, and a round costs N² numbers
//! instead of N·K maps. Letters: N maps, K clusters.

use rayon::prelude::*;

/// Rounds at most (PRN, specification, section 1.1).
const MOST_ROUNDS: usize = 300;

/// The cluster of each map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clusters {
    /// `[N]`, below K; none of the K is empty.
    pub labels: Vec<usize>,
    /// Assignments made.
    pub rounds: usize,
}

/// Beginning with the maps `initial` as centres, which must be distinct. Each map goes to the nearest
/// centre, ties to the lowest; a cluster left empty gets the map that is farthest from its own centre.
/// Ends when an assignment is that of the round before, or after 300.
///
/// # Panics
/// If `products` is not [N, N], or there are no centres or more than maps.
pub fn cluster(products: &[f64], initial: &[usize]) -> Clusters {
    let (n, k) = (products.len().isqrt(), initial.len());
    assert_eq!(n * n, products.len(), "products of N maps with N");
    assert!((1..=n).contains(&k), "{k} centres of {n} maps");
    let mut members: Vec<Vec<usize>> = initial.iter().map(|&map| vec![map]).collect();
    let mut labels = Vec::new();
    for round in 1..=MOST_ROUNDS {
        let (mut assigned, mut distances) = assign(products, &members);
        fill_empty(&mut assigned, &mut distances, k);
        let done = assigned == labels;
        labels = assigned;
        if done || round == MOST_ROUNDS {
            return Clusters { labels, rounds: round };
        }
        members.iter_mut().for_each(Vec::clear);
        for (map, &label) in labels.iter().enumerate() {
            members[label].push(map);
        }
    }
    unreachable!("the last round returns")
}

/// The means [K, ·] of clusters of `maps` [N, ·].
///
/// # Panics
/// If there is not a label for each map, or a cluster is empty.
pub fn centres(maps: &[f32], labels: &[usize], clusters: usize) -> Vec<f32> {
    assert!(maps.len().is_multiple_of(labels.len()), "a label for each map");
    let size = maps.len() / labels.len();
    let mut centres = vec![0.0; clusters * size];
    centres.par_chunks_mut(size).enumerate().for_each(|(cluster, centre)| {
        let mut sums = vec![0.0_f64; size];
        let mut count = 0_u32;
        for (map, _) in maps.chunks_exact(size).zip(labels).filter(|(_, own)| **own == cluster) {
            sums.iter_mut().zip(map).for_each(|(sum, &value)| *sum += f64::from(value));
            count += 1;
        }
        assert!(count > 0, "cluster {cluster} is empty");
        for (value, sum) in centre.iter_mut().zip(sums) {
            *value = (sum / f64::from(count)) as f32;
        }
    });
    centres
}

/// The nearest centre of each map, and the squared distance to it: |x − c|² = xx − 2·xc + cc with c
/// the mean of its `members`.
fn assign(products: &[f64], members: &[Vec<usize>]) -> (Vec<usize>, Vec<f64>) {
    let n = products.len().isqrt();
    let mut labels = vec![0; n];
    let mut nearest = vec![f64::INFINITY; n];
    let mut with_centre = vec![0.0; n];
    for (cluster, members) in members.iter().enumerate() {
        with_centre.fill(0.0);
        for &member in members {
            let row = &products[member * n..][..n];
            with_centre.iter_mut().zip(row).for_each(|(sum, product)| *sum += product);
        }
        let each = 1.0 / members.len() as f64;
        with_centre.iter_mut().for_each(|sum| *sum *= each);
        let own: f64 = members.iter().map(|&member| with_centre[member]).sum::<f64>() * each;
        for map in 0..n {
            let distance = products[map * n + map] - 2.0 * with_centre[map] + own;
            if distance < nearest[map] {
                (labels[map], nearest[map]) = (cluster, distance);
            }
        }
    }
    (labels, nearest)
}

/// Gives each empty cluster the map farthest from its centre, of those that are not alone in theirs.
fn fill_empty(labels: &mut [usize], distances: &mut [f64], clusters: usize) {
    let mut sizes = vec![0; clusters];
    labels.iter().for_each(|&label| sizes[label] += 1);
    for cluster in 0..clusters {
        if sizes[cluster] > 0 {
            continue;
        }
        let free = (0..labels.len()).filter(|&map| sizes[labels[map]] > 1);
        // Of several the first.
        let farthest = free.rev().max_by(|&a, &b| distances[a].total_cmp(&distances[b]));
        let farthest = farthest.expect("there are as many maps as clusters");
        sizes[labels[farthest]] -= 1;
        sizes[cluster] = 1;
        (labels[farthest], distances[farthest]) = (cluster, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::vectors::{Vector, flat};
    use crate::ops::gram::gram;
    use crate::ops::simd::Isa;

    fn clusters_of(maps: &[f32], count: usize, initial: &[usize]) -> Clusters {
        cluster(&gram(Isa::detect().unwrap(), maps, count), initial)
    }

    #[test]
    fn clusters_are_the_vectors() {
        let Some(vector) = Vector::open("prn_kmeans") else { return };
        let maps = flat(&vector.input("X"));
        let whole = |numbers: Vec<f32>| -> Vec<usize> {
            numbers.into_iter().map(|number| number as usize).collect()
        };
        let initial = whole(flat(&vector.input("init_index")));
        let found = clusters_of(&maps, 40, &initial);
        assert_eq!(found.labels, whole(flat(&vector.expected("labels"))));
        let centres = centres(&maps, &found.labels, initial.len());
        let want = flat(&vector.expected("centers"));
        for (got, want) in centres.iter().zip(&want) {
            assert!((got - want).abs() <= 1e-4 + 1e-4 * want.abs(), "{got} {want}");
        }
        let inertia: f64 = (maps.chunks(6).zip(&found.labels))
            .flat_map(|(map, &label)| map.iter().zip(&centres[label * 6..]))
            .map(|(x, c)| f64::from(x - c).powi(2))
            .sum();
        let want = f64::from(flat(&vector.expected("inertia"))[0]);
        assert!((inertia - want).abs() <= 1e-4 + 1e-4 * want, "{inertia} {want}");
    }

    #[test]
    fn an_empty_cluster_gets_the_farthest_map() {
        // Two centres on one place: the second is left without maps, and 9 is farthest from them.
        let maps = [0.0, 0.0, 1.0, 9.0];
        let found = clusters_of(&maps, 4, &[0, 1]);
        assert_eq!(found.labels, [0, 0, 0, 1]);
        assert_eq!(centres(&maps, &found.labels, 2), [(1.0_f64 / 3.0) as f32, 9.0]);
    }

    #[test]
    fn as_many_clusters_as_maps_are_the_maps_even_where_they_are_equal() {
        let maps = [3.0, 1.0, 3.0, 3.0];
        let found = clusters_of(&maps, 4, &[0, 1, 2, 3]);
        let mut labels = found.labels.clone();
        labels.sort_unstable();
        assert_eq!(labels, [0, 1, 2, 3]);
        assert!(found.rounds < MOST_ROUNDS, "{found:?}");
        let mut kept = centres(&maps, &found.labels, 4);
        kept.sort_by(f32::total_cmp);
        assert_eq!(kept, [1.0, 3.0, 3.0, 3.0]);
    }
}
