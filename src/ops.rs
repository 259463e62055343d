//! Arithmetic on tensors: each operation once, as a plain CPU twin first; tests at the foot.
//!
//! The line's fast path works on [`feature_map`]s with kernels over [`simd`], its threads a [`team`].
//! `unsafe` is allowed in the rooms marked so below and nowhere else in the house: each block says
//! why it holds, and what it relies on (shapes, lengths, who writes where) is checked where the room
//! is entered, once for an operation.

pub mod coreset;
#[allow(unsafe_code)]
pub mod feature_map;
pub mod gaussian;
pub mod interpolate;
#[allow(unsafe_code)]
pub mod nearest_prototype;
pub mod neighbourhood;
#[allow(unsafe_code)]
pub mod simd;
#[allow(unsafe_code)]
pub mod team;
