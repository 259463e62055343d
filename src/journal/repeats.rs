//! What goes wrong once per part is counted, not repeated.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Counts repeats of the same trouble instead of repeating its line.
///
/// The first occurrence of a key is logged, then at most one line per interval with the number of
/// occurrences since the line before.
#[derive(Debug)]
pub struct Repeats<K> {
    interval: Duration,
    seen: BTreeMap<K, Seen>,
}

#[derive(Debug)]
struct Seen {
    logged_at: Instant,
    unlogged: u64,
}

impl<K: Ord + Clone> Repeats<K> {
    pub fn new(interval: Duration) -> Repeats<K> {
        Repeats { interval, seen: BTreeMap::new() }
    }

    /// `Some(n)`: log it now; `n` occurrences, this one included, since the last line.
    /// `None`: it is counted, stay quiet.
    pub fn admit(&mut self, key: K, now: Instant) -> Option<u64> {
        let Some(seen) = self.seen.get_mut(&key) else {
            self.seen.insert(key, Seen { logged_at: now, unlogged: 0 });
            return Some(1);
        };
        seen.unlogged += 1;
        if now.saturating_duration_since(seen.logged_at) < self.interval {
            return None;
        }
        seen.logged_at = now;
        Some(std::mem::take(&mut seen.unlogged))
    }

    /// What was counted, stayed quiet for an interval and then stopped happening: to be logged
    /// now. Called now and then (the minute's summary); keys without news are forgotten.
    pub fn overdue(&mut self, now: Instant) -> Vec<(K, u64)> {
        let mut due = Vec::new();
        self.seen.retain(|key, seen| {
            if now.saturating_duration_since(seen.logged_at) < self.interval {
                return true;
            }
            if seen.unlogged == 0 {
                return false;
            }
            due.push((key.clone(), std::mem::take(&mut seen.unlogged)));
            seen.logged_at = now;
            true
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the beginning")]
    fn repeats_are_counted_not_repeated() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut repeats = Repeats::new(Duration::from_secs(10));
        assert_eq!(repeats.admit("disk", at(0)), Some(1));
        assert_eq!(repeats.admit("disk", at(1)), None);
        assert_eq!(repeats.admit("camera", at(1)), Some(1), "another trouble is news");
        assert_eq!(repeats.admit("disk", at(9)), None);
        assert_eq!(repeats.admit("disk", at(10)), Some(3), "two quiet ones and this one");
        assert_eq!(repeats.admit("disk", at(11)), None);
        assert_eq!(repeats.overdue(at(12)), [], "within the interval");
        assert_eq!(repeats.overdue(at(20)), [("disk", 1)]);
        assert_eq!(repeats.overdue(at(29)), []);
        assert_eq!(repeats.overdue(at(30)), []);
        assert_eq!(repeats.admit("disk", at(31)), Some(1), "forgotten, so it is news again");
    }
}
