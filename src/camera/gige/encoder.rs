//! Counts an encoder on past its own wrap.

/// The position by a counter of `bits` bits. A frame's count may lie anywhere within half of the
/// counter's range from the one before, in either direction: belts run back.
#[derive(Debug)]
pub struct Unwrap {
    bits: u32,
    /// The last count, wrapped off and on.
    last: Option<(u64, i64)>,
}

impl Unwrap {
    /// `bits`: 1 to 64.
    pub fn new(bits: u32) -> Unwrap {
        Unwrap { bits, last: None }
    }

    /// The first count is taken as it is.
    pub fn count(&mut self, raw: u64) -> i64 {
        let spare = 64 - self.bits;
        let raw = raw << spare >> spare;
        let total = match self.last {
            None => raw as i64,
            Some((last, total)) => {
                // Shifted to the top, so that the difference has the sign of the counter's.
                let moved = (raw.wrapping_sub(last) << spare) as i64 >> spare;
                total.wrapping_add(moved)
            }
        };
        self.last = Some((raw, total));
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(bits: u32, raw: &[u64]) -> Vec<i64> {
        let mut unwrap = Unwrap::new(bits);
        raw.iter().map(|&raw| unwrap.count(raw)).collect()
    }

    #[test]
    fn the_count_goes_on_over_the_wrap_in_both_directions() {
        let top = u64::from(u32::MAX);
        assert_eq!(
            counts(32, &[top - 1, top, 0, 5, top, 0]),
            [top as i64 - 1, top as i64, 1 << 32, (1 << 32) + 5, top as i64, 1 << 32]
        );
        assert_eq!(counts(16, &[0, 65535, 65530, 3]), [0, -1, -6, 3]);
        assert_eq!(counts(64, &[5, 3, u64::MAX]), [5, 3, -1]);
    }

    #[test]
    fn many_wraps_add_up() {
        let mut unwrap = Unwrap::new(16);
        let mut last = 0;
        for step in 0..1000_u64 {
            last = unwrap.count(step * 30_000 % 65_536);
        }
        assert_eq!(last, 999 * 30_000);
    }

    /// Some cameras send a 32-bit counter in 64 bits with the sign spread over the rest.
    #[test]
    fn bits_above_the_counter_are_left_out() {
        assert_eq!(counts(32, &[(-1_i64) as u64, 0]), [i64::from(u32::MAX), 1 << 32]);
    }
}
