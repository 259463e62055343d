//! One file a subcommand: its `Args` and `run`.

pub mod bench;
pub mod check;
pub mod demo;
pub mod eval;
pub mod ledger;
pub mod run;
pub mod teach;
pub mod train;
