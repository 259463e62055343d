//! Arithmetic on tensors: each operation once, as a plain CPU twin first; tests at the foot.
//!
//! The line's fast path works on [`feature_map`]s with kernels over [`simd`], its threads a [`team`].
//! `unsafe` is allowed in the rooms marked so below and, but for `camera::v4l2`'s device, nowhere else in
//! the house: each block says why it holds, and what it relies on (shapes, lengths, who writes where) is checked where the room
//! is entered, once for an operation.

pub mod activation_range;
#[allow(unsafe_code)]
pub mod affine;
#[allow(unsafe_code)]
pub mod byte_map;
#[allow(unsafe_code)]
pub mod byte_simd;
#[cfg(test)]
#[allow(unsafe_code)]
mod checks;
#[allow(unsafe_code)]
pub mod conv;
pub mod coreset;
#[allow(unsafe_code)]
pub mod cosine_map;
#[allow(unsafe_code)]
pub mod depthwise;
#[allow(unsafe_code)]
pub mod direct_conv;
#[allow(unsafe_code)]
pub mod elementwise;
#[allow(unsafe_code)]
pub mod feature_map;
pub mod gaussian;
#[allow(unsafe_code)]
mod gemm;
#[allow(unsafe_code)]
pub mod gradient;
pub mod gram;
pub mod interpolate;
#[allow(unsafe_code)]
pub mod nearest_prototype;
pub mod neighbourhood;
#[allow(unsafe_code)]
pub mod patch_affine;
#[allow(unsafe_code)]
pub mod patch_attention;
#[allow(unsafe_code)]
pub mod patch_features;
#[allow(unsafe_code)]
pub mod pixels;
#[allow(unsafe_code)]
pub mod place_softmax;
#[allow(unsafe_code)]
pub mod pooling;
#[allow(unsafe_code)]
pub mod prototype_residual;
#[allow(unsafe_code)]
pub mod quantized_conv;
mod rows;
#[allow(unsafe_code)]
pub mod simd;
pub mod simd_math;
#[allow(unsafe_code)]
pub mod smooth_upsample;
#[allow(unsafe_code)]
pub mod squared_norm;
#[allow(unsafe_code)]
pub mod stem_conv;
#[allow(unsafe_code)]
pub mod team;
#[allow(unsafe_code)]
pub mod texture;
#[allow(unsafe_code)]
pub mod upsample;
#[allow(unsafe_code)]
pub mod window_attention;
#[allow(unsafe_code)]
pub mod winograd;
