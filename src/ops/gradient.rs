//! Gradients of the operations on feature maps, for networks that learn: same layout, same lanes, same
//! team. Each is named after what it differentiates; what a gradient overwrites is said where it is
//! entered.

pub mod accumulate;
pub mod batch_norm;
pub mod conv;
pub mod cosine;
pub mod depthwise;
pub mod elementwise;
pub mod patch_affine;
pub mod patch_attention;
pub mod place_softmax;
pub mod pooling;
pub mod upsample;
pub mod window_attention;
