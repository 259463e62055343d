//! What the arithmetic units of this machine can do at most: multiplications and additions on
//! registers, nothing read or written.

use std::time::{Duration, Instant};

use crate::ops::simd::{Isa, Kernel, LANES, Simd};
use crate::ops::team::Team;

/// Sums that do not wait for each other: more than latency times width of any machine here, and no
/// more than the registers hold.
const SUMS: usize = 12;
const WIDE_SUMS: usize = 24;

/// Rounds of one slice of work; about a millisecond on a wide machine.
const ROUNDS: usize = 100_000;

/// Most slices looked at, of which the fastest counts: others were disturbed.
const SLICES: usize = 60;

/// Floating-point operations a second on all threads of `team`: of the fastest of many slices.
pub fn measure(isa: Isa, team: &Team, now: impl Fn() -> Instant) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..SLICES {
        let started = now();
        team.run(&|_| {
            std::hint::black_box(isa.run(Rounds));
        });
        best = best.min(now() - started);
    }
    let sums = if isa == Isa::Avx512 { WIDE_SUMS } else { SUMS };
    (2 * sums * LANES * ROUNDS * team.threads()) as f64 / best.as_secs_f64()
}

struct Rounds;

impl Kernel for Rounds {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        if S::ISA == Isa::Avx512 { rounds::<S, WIDE_SUMS>(s) } else { rounds::<S, SUMS>(s) }
    }
}

#[inline(always)]
fn rounds<S: Simd, const N: usize>(s: S) -> f32 {
    // Values that stay finite and away from the slow numbers near zero.
    let (a, b) = (s.splat(std::hint::black_box(0.999)), s.splat(std::hint::black_box(0.001)));
    let mut sums = [s.splat(1.0); N];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = s.mul_add(*sum, a, b);
        }
    }
    sums.into_iter().map(|sum| s.sum(sum)).sum()
}
