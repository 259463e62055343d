//! One file a subcommand: its `Args` and `run`; [`machine`] is what several ask.

pub mod bench;
pub mod check;
pub mod demo;
pub mod eval;
pub mod import;
pub mod ledger;
mod machine;
pub mod replay;
pub mod run;
mod scratch;
#[cfg(feature = "gige")]
pub mod selftest;
pub mod synth;
pub mod teach;
pub mod train;
