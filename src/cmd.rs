//! One file a subcommand: its `Args` and `run`.

pub mod eval;
pub mod teach;
