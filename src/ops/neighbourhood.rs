//! 3×3 average of each place and its neighbours, stride 1, padding 1: what makes a patch feature of
//! PatchCore (Roth et al. 2022, section 3.1) aware of its surroundings. Zeros stand outside the
//! border and the sum is always divided by 9 (`torch.nn.AvgPool2d(3, 1, 1)`, whose default is
//! `count_include_pad=True`, as patchcore-inspection and anomalib use it).
//! Letters: P planes (pictures × channels), H rows, W columns.

use rayon::prelude::*;

/// `planes` [P, H, W] → [P, H, W]. Sums rows, then columns; planes run in parallel.
pub fn average_planes(planes: &[f32], h: usize, w: usize) -> Vec<f32> {
    let mut out = vec![0.0; planes.len()];
    if planes.is_empty() {
        return out;
    }
    out.par_chunks_mut(h * w).zip(planes.par_chunks(h * w)).for_each_init(
        || vec![0.0; w + 2],
        |sums, (out, plane)| {
            for (y, out_row) in out.chunks_mut(w).enumerate() {
                let rows = plane[y.saturating_sub(1) * w..(y + 2).min(h) * w].chunks(w);
                sums.fill(0.0);
                for row in rows {
                    sums[1..=w].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
                for (x, out) in out_row.iter_mut().enumerate() {
                    *out = (sums[x] + sums[x + 1] + sums[x + 2]) / 9.0;
                }
            }
        },
    );
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the definition.
    fn plain(planes: &[f32], h: usize, w: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for plane in planes.chunks(h * w) {
            for i in 0..h * w {
                let (y, x) = ((i / w) as isize, (i % w) as isize);
                let mut sum = 0.0;
                for (dy, dx) in (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (dy, dx))) {
                    let (y, x) = (y + dy, x + dx);
                    if (0..h as isize).contains(&y) && (0..w as isize).contains(&x) {
                        sum += f64::from(plane[y as usize * w + x as usize]);
                    }
                }
                out.push((sum / 9.0) as f32);
            }
        }
        out
    }

    #[test]
    fn border_counts_zeros_and_divides_by_nine() {
        /* torch.nn.AvgPool2d(3, 1, 1)(torch.tensor([[[[9., 18.], [27., 36.]]]]))
        tensor([[[[10., 10.], [10., 10.]]]]) */
        assert_eq!(average_planes(&[9.0, 18.0, 27.0, 36.0], 2, 2), [10.0; 4]);
        assert_eq!(average_planes(&[9.0], 1, 1), [1.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn equals_the_definition(
            p in 1usize..4,
            h in prop::sample::select(vec![1usize, 2, 31, 33]),
            w in prop::sample::select(vec![1usize, 2, 31, 33, 1025]),
            seed in any::<u32>(),
        ) {
            let planes: Vec<f32> = (0..p * h * w)
                .map(|i| ((i as u32).wrapping_mul(2654435761).wrapping_add(seed) >> 8) as f32 / 1e7)
                .collect();
            for (got, want) in average_planes(&planes, h, w).iter().zip(plain(&planes, h, w)) {
                // Nine additions of numbers below 2, each rounded by at most 2^-24 of the sum.
                prop_assert!((got - want).abs() <= 9.0 * 18.0 / 9.0 * 2f32.powi(-24));
            }
        }
    }
}
