//! Arithmetic on tensors: each operation once, as a plain CPU twin first; tests at the foot.
//!
//! The line's fast path works on [`feature_map`]s with kernels over [`simd`], its threads a [`team`].
//! `unsafe` is allowed in the rooms marked so below and nowhere else in the house: each block says
//! why it holds, and what it relies on (shapes, lengths, who writes where) is checked where the room
//! is entered, once for an operation.

#[allow(unsafe_code)]
pub mod affine;
pub mod conv;
pub mod coreset;
#[allow(unsafe_code)]
pub mod direct_conv;
#[allow(unsafe_code)]
pub mod feature_map;
pub mod gaussian;
#[allow(unsafe_code)]
mod gemm;
pub mod interpolate;
pub mod nearest_prototype;
pub mod neighbourhood;
#[allow(unsafe_code)]
pub mod simd;
#[allow(unsafe_code)]
pub mod smooth_upsample;
#[allow(unsafe_code)]
pub mod stem_conv;
#[allow(unsafe_code)]
pub mod team;
#[allow(unsafe_code)]
pub mod winograd;
