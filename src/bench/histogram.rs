//! A distribution of times as text.

use std::fmt::Write;
use std::time::Duration;

use super::Samples;
use super::samples::milliseconds;

/// Steps of a decade, the first of microseconds, in tenths: each about half as much again as the one
/// before.
const STEPS: [u64; 6] = [10, 15, 20, 30, 50, 70];

/// Width of the longest bar.
const WIDTH: usize = 50;

/// A line a step from the fastest time to the slowest: up to which time, how many, a bar. No bar of
/// a step that was seen is empty: it is the few slow ones that are looked for.
pub fn bars(samples: &Samples) -> String {
    let edges: Vec<Duration> = (0..8)
        .flat_map(|decade| STEPS.map(|step| Duration::from_nanos(step * 10u64.pow(decade + 2))))
        .collect();
    let mut counts = vec![0usize; edges.len() + 1];
    for time in samples.times() {
        counts[edges.partition_point(|edge| edge < time)] += 1;
    }
    let seen = |count: &usize| *count > 0;
    let first = counts.iter().position(seen).unwrap_or(0);
    let last = counts.iter().rposition(seen).unwrap_or(0);
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let mut text = String::new();
    for step in first..=last {
        let edge = match edges.get(step) {
            Some(edge) => format!("≤ {:.3}", milliseconds(*edge)),
            None => "more".to_owned(),
        };
        let count = counts[step];
        let bar = "█".repeat((count * WIDTH).div_ceil(most));
        writeln!(text, "  {edge:>11} ms {count:>7} {bar}").expect("text takes what it is given");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_one_step_and_the_lone_slow_one_is_seen() {
        let us = Duration::from_micros;
        let mut times = vec![us(15); 500];
        times.extend([us(16), us(41), us(3_600_000_000)]);
        let text = bars(&Samples::new(times));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("      ≤ 0.015 ms     500 █"), "{text}");
        assert!(lines[1].starts_with("      ≤ 0.020 ms       1 █"), "{text}");
        assert!(lines[2].ends_with(" 0 "), "{text}");
        assert!(lines.last().unwrap().ends_with("more ms       1 █"), "{text}");
    }
}
