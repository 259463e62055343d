//! Executes the PTX that inspectd ships, on the CPU, and complains of what a card passes over.
//!
//! The way through the house:
//! - `module`: the text, cut into statements, becomes kernels; `decode` makes of each statement an
//!   `instruction::Op` with its registers already looked up, `arithmetic` and `convert` have the
//!   functions on values. What is not known by name is a `ParseError`, never a guess.
//! - `launch`: arguments against the signature, blocks one after the other, barriers.
//! - `warp`: 32 lanes at a time under a mask; lanes that part wait for each other at the smallest
//!   place in the code. `collective`: what lanes do together.
//! - `memory` (global), `shared`, `race`: bytes that know whether they were written, and by whom.
//!
//! What it does not show: what ptxas makes of the PTX, the card's memory model beyond barriers, the
//! order in which `mma` sums (here in f64, rounded once), how exact `.approx` functions are (here
//! rounded once), and speed.

mod arithmetic;
mod collective;
mod convert;
mod decode;
mod fault;
mod float;
mod instruction;
mod launch;
mod memory;
mod module;
mod race;
mod registers;
mod shared;
mod text;
mod warp;

pub use fault::{Fault, Kind, ParseError, Place};
pub use launch::{Run, Shape};
pub use memory::Memory;
pub use module::{Module, Param};
