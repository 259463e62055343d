//! A card on trial: every kernel and every network against the CPU.

use anyhow::Result;

use super::nets::{Net, SIDE};
use crate::cuda::Gpu;
use crate::cuda::cases::{self, Case};
use crate::nn::engine::Engine;
use crate::nn::graph::LevelRule;
use crate::nn::mlff;

/// Networks against the CPU's: f32 through some twenty layers in another order, with numbers near
/// each other's ends where an attention or a softmax is.
const NETWORKS: f64 = 1e-4;

/// Every kernel on sizes that fit nothing and on those of a line, then every network at its own
/// size.
///
/// # Errors
/// A network that can't be described.
pub fn all_cases() -> Result<Vec<Case>> {
    let mut cases = cases::ragged();
    cases.extend(cases::line());
    for net in Net::ALL {
        let (graph, bound) = match net {
            // It counts levels, and a value at the edge of one falls to either side by its last bit:
            // by the paper's rule that is a step, by the reference's little.
            Net::Mlff => (mlff::graph(SIDE, SIDE, LevelRule::Reference), 50.0 * NETWORKS),
            net => (net.graph()?, NETWORKS),
        };
        cases.push(Case::network(net.word(), graph, bound));
    }
    Ok(cases)
}

/// Tries all of `cases`, says of each how it went, and gives back how many failed. What the card
/// says counts as failed and does not end the trial, since the next may show what is wrong.
pub fn try_all(
    gpu: &mut impl Gpu,
    engine: &Engine,
    cases: &[Case],
    said: &mut dyn FnMut(&str),
) -> usize {
    let mut failed = 0;
    for case in cases {
        let line = match case.try_on(gpu, engine) {
            Ok(outcome) => {
                failed += usize::from(!outcome.is_good());
                let word = if outcome.is_good() { "ok" } else { "WRONG" };
                let (difference, bound) = (outcome.difference, outcome.bound);
                format!("{word:<8}{difference:9.1e} of {bound:7.0e}  {}", case.name)
            }
            Err(error) => {
                failed += 1;
                format!("FAILED  {}: {error:#}", case.name)
            }
        };
        said(&line);
    }
    failed
}
