//! Gaussian smoothing of a map as `scipy.ndimage.gaussian_filter` does it: kernel radius
//! ⌊4σ + ½⌋, border reflected with the edge repeated (d c b a | a b c d | d c b a), reflected again
//! and again where the map is smaller than the radius. Letters: H rows, W columns.

/// A prepared kernel and its work space; one per thread.
#[derive(Clone, Debug)]
pub struct Gaussian {
    /// Weights of offsets 0..=radius; they sum to 1 with offsets > 0 counted twice.
    half_kernel: Vec<f32>,
    /// One line with its reflected borders.
    line: Vec<f32>,
    /// The map between the two passes, [H, W].
    rows: Vec<f32>,
}

impl Gaussian {
    /// `sigma_px` in places of the map; 0 leaves maps as they are. It must be finite and not
    /// negative.
    pub fn new(sigma_px: f32) -> Self {
        assert!(sigma_px.is_finite() && sigma_px >= 0.0, "sigma {sigma_px} is not a width");
        let sigma = f64::from(sigma_px);
        let radius = (4.0 * sigma + 0.5) as usize;
        let bell = |i: usize| if i == 0 { 1.0 } else { (-0.5 * (i as f64 / sigma).powi(2)).exp() };
        let half: Vec<f64> = (0..=radius).map(bell).collect();
        let total = 2.0 * half.iter().sum::<f64>() - half[0];
        let half_kernel = half.iter().map(|weight| (weight / total) as f32).collect();
        Self { half_kernel, line: Vec::new(), rows: Vec::new() }
    }

    /// Smooths `map` [H, W] with W = `width` in place. Allocates only while maps grow.
    pub fn blur(&mut self, map: &mut [f32], width: usize) {
        let radius = self.half_kernel.len() - 1;
        if map.is_empty() || radius == 0 {
            return;
        }
        let height = map.len() / width;
        assert_eq!(height * width, map.len(), "a map of {} has no rows of {width}", map.len());
        self.rows.clear();
        self.rows.resize(map.len(), 0.0);
        self.line.resize(width + 2 * radius, 0.0);
        for (row, out) in map.chunks(width).zip(self.rows.chunks_mut(width)) {
            for (i, value) in self.line.iter_mut().enumerate() {
                *value = row[reflect(i as isize - radius as isize, width)];
            }
            for (offset, &weight) in self.half_kernel.iter().enumerate() {
                let left = &self.line[radius - offset..][..width];
                let right = &self.line[radius + offset..][..width];
                add_pair(out, left, right, weight, offset);
            }
        }
        for (y, out) in map.chunks_mut(width).enumerate() {
            out.fill(0.0);
            for (offset, &weight) in self.half_kernel.iter().enumerate() {
                let above = reflect(y as isize - offset as isize, height) * width;
                let below = reflect((y + offset) as isize, height) * width;
                let (above, below) = (&self.rows[above..][..width], &self.rows[below..][..width]);
                add_pair(out, above, below, weight, offset);
            }
        }
    }
}

/// `out` += `weight`·(a + b), or `weight`·a for the centre.
fn add_pair(out: &mut [f32], a: &[f32], b: &[f32], weight: f32, offset: usize) {
    if offset == 0 {
        out.iter_mut().zip(a).for_each(|(out, a)| *out += weight * a);
    } else {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out += weight * (a + b);
        }
    }
}

/// Index of place `i` in a line of `n` mirrored at its ends, edges repeated.
fn reflect(i: isize, n: usize) -> usize {
    let i = i.rem_euclid(2 * n as isize) as usize;
    if i < n { i } else { 2 * n - 1 - i }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The two-dimensional sum, f64.
    fn plain(map: &[f32], width: usize, sigma: f64) -> Vec<f32> {
        let height = map.len() / width;
        let radius = (4.0 * sigma + 0.5) as isize;
        let bell = |d: isize| (-0.5 * (d as f64 / sigma).powi(2)).exp();
        let total: f64 = (-radius..=radius).map(bell).sum();
        let mirror = |mut i: isize, n: usize| {
            while i < 0 || i >= n as isize {
                i = if i < 0 { -1 - i } else { 2 * n as isize - 1 - i };
            }
            i as usize
        };
        let mut out = Vec::new();
        for (y, x) in (0..height as isize).flat_map(|y| (0..width as isize).map(move |x| (y, x))) {
            let mut sum = 0.0;
            for dy in -radius..=radius {
                for dx in -radius..=radius {
                    let at = mirror(y + dy, height) * width + mirror(x + dx, width);
                    sum += f64::from(map[at]) * bell(dy) * bell(dx);
                }
            }
            out.push((sum / (total * total)) as f32);
        }
        out
    }

    #[test]
    fn equals_scipy() {
        /* scipy 1.17.1
        x = np.zeros((3, 5), dtype=np.float32); x[0, 0] = 1; x[2, 3] = 2; x[1, 4] = -1
        scipy.ndimage.gaussian_filter(x, 1.0), scipy.ndimage.gaussian_filter(x, 4.0) */
        #[rustfmt::skip]
        let cases = [
            (1.0, [
                0.41130748, 0.1951366, 0.05064511, -0.03389107, -0.15240225,
                0.1924218, 0.11774469, 0.13684653, 0.1195322, -0.08606318,
                0.0461832, 0.08649784, 0.29671893, 0.42971265, 0.18960948,
            ]),
            (4.0, [
                0.13723455, 0.13574651, 0.13332489, 0.13089357, 0.12940452,
                0.13724306, 0.13575587, 0.1333356, 0.13090567, 0.12941746,
                0.13725679, 0.13577051, 0.13335174, 0.13092329, 0.129436,
            ]),
        ];
        for (sigma, want) in cases {
            let mut map = [0f32; 15];
            (map[0], map[13], map[9]) = (1.0, 2.0, -1.0);
            Gaussian::new(sigma).blur(&mut map, 5);
            for (got, want) in map.iter().zip(want) {
                // Two passes of at most 17 additions of numbers below 2, and rounded weights.
                assert!((got - want).abs() <= 2.0 * 40.0 * 2f32.powi(-24), "{sigma}: {got} {want}");
            }
        }
    }

    #[test]
    fn sigma_zero_changes_nothing() {
        let mut map = [1.0, 2.0, 3.0];
        Gaussian::new(0.0).blur(&mut map, 3);
        assert_eq!(map, [1.0, 2.0, 3.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn equals_the_double_sum(
            h in prop::sample::select(vec![1usize, 2, 7, 31]),
            w in prop::sample::select(vec![1usize, 3, 31, 33]),
            sigma in prop::sample::select(vec![0.5f32, 1.0, 2.3, 4.0]),
            seed in any::<u32>(),
        ) {
            let mut map: Vec<f32> = (0..h * w)
                .map(|i| ((i as u32).wrapping_mul(2654435761).wrapping_add(seed) >> 8) as f32 / 1e7)
                .collect();
            let want = plain(&map, w, f64::from(sigma));
            Gaussian::new(sigma).blur(&mut map, w);
            for (got, want) in map.iter().zip(want) {
                // Two passes of at most 17 additions of numbers below 2, and rounded weights.
                prop_assert!((got - want).abs() <= 2.0 * 40.0 * 2f32.powi(-24), "{} {}", got, want);
            }
        }
    }
}
