//! inspectd: every triggered part gets exactly one verdict, in time, and what was not inspected is
//! rejected.
//!
//! The map of the house, in the order a frame meets it: [`config`] gathers what a plant sets,
//! [`camera`] grabs a picture, [`frame`] says what crosses the rooms, [`pipeline`] owns the threads
//! and queues, [`detector`] scores it with layers from [`nn`] and arithmetic from [`ops`],
//! [`verdict`] decides, [`tracker`] keeps the deadlines, [`output`] tells the PLC, [`ledger`]
//! records, [`archive`] keeps evidence as [`picture`] draws it, [`journal`] writes the log,
//! [`telemetry`] counts and [`unfinished`] writes folders whole or not at all. The workshop ([`teach`], [`calibrate`], [`dataset`], [`synth`], [`metrics`],
//! [`mod@eval`], [`replay`], [`plot`], [`mod@bench`]) makes and judges models; nothing above it uses it.

pub mod archive;
pub mod camera;
pub mod config;
pub mod cuda;
pub mod detector;
pub mod frame;
pub mod journal;
pub mod ledger;
pub mod nn;
pub mod ops;
pub mod output;
pub mod picture;
pub mod pipeline;
pub mod telemetry;
pub mod tracker;
pub mod trigger;
pub mod unfinished;
pub mod verdict;

pub mod bench;
pub mod calibrate;
pub mod dataset;
pub mod eval;
pub mod metrics;
pub mod plot;
pub mod replay;
#[cfg(feature = "gige")]
pub mod selftest;
pub mod synth;
pub mod teach;
pub mod train;

#[cfg(test)]
#[path = "../tests/shared/mod.rs"]
mod shared;
