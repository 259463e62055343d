//! From what activations were seen to the step of their bytes.
//!
//! A byte has 255 steps: over the whole range they are coarse for the many small values, over less
//! they cut the few large ones off. A [`Range`] keeps a histogram of what it is shown and picks the
//! limit with the least squared error. It cuts off no more than one value in ten thousand: on the
//! line, what is larger than ever on good parts is what anomalies look like.

use anyhow::{Result, ensure};

/// Of the histogram: eight or more for each step of a byte.
const BINS: usize = 4096;

/// At most this share of the positive values is cut off.
const CUT_OFF: f64 = 1e-4;

/// The largest byte.
const STEPS: f64 = 255.0;

/// Positive activations of one place in a network.
#[derive(Clone, Debug)]
pub struct Range {
    /// Values in [i · width, (i + 1) · width).
    bins: Vec<u64>,
    width: f64,
    max: f32,
}

impl Default for Range {
    fn default() -> Self {
        Self { bins: vec![0; BINS], width: f64::from(f32::MIN_POSITIVE), max: 0.0 }
    }
}

impl Range {
    /// Takes more values in. Those that a ReLU makes zero cost no accuracy and are passed over.
    ///
    /// # Errors
    /// One is not finite.
    pub fn observe(&mut self, values: &[f32]) -> Result<()> {
        for &value in values {
            ensure!(value.is_finite(), "an activation is {value}");
            if value <= 0.0 {
                continue;
            }
            self.max = self.max.max(value);
            while f64::from(value) >= self.width * BINS as f64 {
                self.widen();
            }
            self.bins[(f64::from(value) / self.width) as usize] += 1;
        }
        Ok(())
    }

    /// Twice the range in as many bins.
    fn widen(&mut self) {
        for i in 0..BINS / 2 {
            self.bins[i] = self.bins[2 * i] + self.bins[2 * i + 1];
        }
        self.bins[BINS / 2..].fill(0);
        self.width *= 2.0;
    }

    /// The largest value seen; zero if none was positive.
    pub fn max(&self) -> f32 {
        self.max
    }

    /// The step that cuts nothing off: 255 of them reach the maximum.
    pub fn widest_scale(&self) -> f32 {
        scale(f64::from(self.max))
    }

    /// The step with the least squared error over what was seen.
    pub fn scale(&self) -> f32 {
        let total: u64 = self.bins.iter().sum();
        let most = (total as f64 * CUT_OFF) as u64;
        let centre = |bin: usize| (bin as f64 + 0.5) * self.width;
        // Error of rounding evenly spread values to steps of t/255.
        let rounding = |t: f64| (t / STEPS).powi(2) / 12.0;
        let max = f64::from(self.max);
        let mut best = (total as f64 * rounding(max), max);
        // Limits from the top down, with the number, sum and sum of squares of what lies above.
        let (mut above, mut sum, mut squares) = (0, 0.0, 0.0);
        for bin in (1..BINS).rev() {
            let count = self.bins[bin];
            above += count;
            if above > most {
                break;
            }
            sum += count as f64 * centre(bin);
            squares += count as f64 * centre(bin).powi(2);
            let limit = bin as f64 * self.width;
            let cut_off = squares - 2.0 * limit * sum + limit * limit * above as f64;
            let error = cut_off + (total - above) as f64 * rounding(limit);
            if limit < max && error < best.0 {
                best = (error, limit);
            }
        }
        scale(best.1)
    }
}

/// 255 steps to `limit`; steps of 1 where nothing was ever above zero.
fn scale(limit: f64) -> f32 {
    if limit > 0.0 { ((limit / STEPS) as f32).max(f32::MIN_POSITIVE) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(values: &[f32]) -> Range {
        let mut range = Range::default();
        range.observe(values).unwrap();
        range
    }

    /// Mean of (x − scale · q)² over `values`.
    fn squared_error(values: &[f32], scale: f32) -> f64 {
        let error = |x: &f32| {
            let q = (x / scale).round_ties_even().clamp(0.0, 255.0);
            f64::from(x - scale * q).powi(2)
        };
        values.iter().map(error).sum::<f64>() / values.len() as f64
    }

    #[test]
    fn even_values_use_the_whole_range() {
        let values: Vec<f32> = (-500..=51_000).map(|i| i as f32 / 1000.0).collect();
        let range = range(&values);
        assert_eq!(range.max(), 51.0);
        assert_eq!(range.widest_scale(), 0.2);
        assert!((range.scale() / 0.2 - 1.0).abs() < 1e-3, "{}", range.scale());
    }

    #[test]
    fn a_few_far_values_are_cut_off_where_that_costs_less() {
        // One of 20,000 lies a little outside: cutting it off costs 0.02² once, and saves every
        // other value 4 % of its squared error.
        let mut values: Vec<f32> = (0..20_000).map(|i| i as f32 / 20_000.0).collect();
        values[0] = 1.02;
        let scale = range(&values).scale();
        let scales = (350..450).map(|i| i as f32 * 1e-5);
        let least = scales.map(|scale| squared_error(&values, scale)).fold(f64::MAX, f64::min);
        assert!(squared_error(&values, scale) < 1.01 * least, "{scale}");
        assert!(scale < 0.99 * range(&values).widest_scale());
    }

    #[test]
    fn no_more_than_one_in_ten_thousand_is_cut_off() {
        let mut values = vec![0.001; 100_000];
        values[..11].fill(100.0);
        assert!(range(&values).scale() >= 0.99 * 100.0 / 255.0);
        values[..10].fill(100.0);
        values[10..20].fill(90.0);
        assert!(range(&values).scale() >= 0.99 * 90.0 / 255.0);
    }

    #[test]
    fn what_is_seen_later_widens_the_range() {
        let mut range = range(&[1e-30, 0.5]);
        range.observe(&[0.7, 1e9, 3.0]).unwrap();
        assert_eq!(range.max(), 1e9);
        assert_eq!(range.bins.iter().sum::<u64>(), 5);
        assert!((range.scale() * 255.0 / 1e9 - 1.0).abs() < 1e-3);
    }

    #[test]
    fn nothing_positive_still_gives_a_step() {
        assert_eq!(range(&[0.0, -1.0]).scale(), 1.0);
        assert_eq!(range(&[]).widest_scale(), 1.0);
        assert!(range(&[f32::MIN_POSITIVE]).scale() > 0.0);
    }

    #[test]
    fn nan_is_refused() {
        let error = Range::default().observe(&[1.0, f32::NAN]).unwrap_err().to_string();
        assert!(error.contains("an activation is NaN"), "{error}");
    }
}
