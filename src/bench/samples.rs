//! Times of repeated runs, and what is said of them.

use std::time::Duration;

/// Times of the same work, sorted.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// # Panics
    /// If there are none.
    pub fn new(mut times: Vec<Duration>) -> Self {
        assert!(!times.is_empty(), "no run was timed");
        times.sort();
        Self(times)
    }

    pub fn runs(&self) -> usize {
        self.0.len()
    }

    pub fn min(&self) -> Duration {
        self.0[0]
    }

    /// The smallest time that a share `q` of the runs did not exceed (nearest rank), q in (0, 1].
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = (q * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// From the fastest to the slowest.
    pub fn times(&self) -> &[Duration] {
        &self.0
    }

    pub fn milliseconds(&self) -> Vec<f64> {
        self.0.iter().copied().map(milliseconds).collect()
    }
}

/// For figures.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Runs `work` until `seconds` have passed and `least` runs are timed; three runs before count for
/// nothing. `now` is the clock, seconds.
pub fn repeat(
    seconds: f64,
    least: usize,
    now: impl Fn() -> std::time::Instant,
    mut work: impl FnMut(),
) -> Samples {
    for _ in 0..3 {
        work();
    }
    let begun = now();
    let mut times = Vec::new();
    let mut last = begun;
    while (last - begun).as_secs_f64() < seconds || times.len() < least {
        let started = now();
        work();
        last = now();
        times.push(last - started);
    }
    Samples::new(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_seen() {
        let ms = |n: u64| Duration::from_millis(n);
        let samples = Samples::new((1..=100).rev().map(ms).collect());
        assert_eq!((samples.min(), samples.median()), (ms(1), ms(50)));
        assert_eq!((samples.quantile(0.99), samples.quantile(1.0)), (ms(99), ms(100)));
        assert_eq!(Samples::new(vec![ms(7)]).quantile(0.999), ms(7));
    }
}
