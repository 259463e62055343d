//! Gradients of operations on feature maps, for networks that learn.

pub mod accumulate;
pub mod batch_norm;
pub mod cosine;
pub mod elementwise;
pub mod pooling;
pub mod upsample;
pub mod window_attention;
