//! What a card is tried on (`inspectd selftest --device`), in the interpreter: kernels pass, and a
//! trial of broken ones does not.

use inspectd::cuda::{Arg, Gpu, cases};
use inspectd::nn::engine::{Config, Engine};

use super::interpreter::Interpreter;

fn engine() -> Engine {
    Engine::new(&Config { threads: Some(1), ..Default::default() }).unwrap()
}

#[test]
fn every_kernel_passes_the_trial_of_a_card() {
    let engine = engine();
    let mut failed = Vec::new();
    for case in cases::ragged() {
        let outcome = case.try_on(&mut Interpreter::default(), &engine);
        match outcome {
            Ok(outcome) if outcome.is_good() => {}
            other => failed.push(format!("{}: {other:?}", case.name)),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Where the last argument that is a number of things says one less, what should be there is not.
#[test]
fn a_trial_is_not_passed_by_a_kernel_that_leaves_something_out() {
    let engine = engine();
    for case in cases::ragged().into_iter().filter(|case| case.name.starts_with("top_mean (")) {
        let mut gpu = Interpreter::default();
        let mut work = case.lay_out(&mut gpu, &engine).unwrap();
        let Some(Arg::I32(top)) = work.launches[0].args.last_mut() else { panic!("no number") };
        *top -= 1;
        work.launches.iter().for_each(|launch| gpu.launch(launch).unwrap());
        let outcome = work.held_against(&mut gpu).unwrap();
        assert!(!outcome.is_good(), "{}: {outcome:?}", case.name);
    }
}
