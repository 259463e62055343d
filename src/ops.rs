//! Arithmetic on tensors: each operation once, as a plain CPU twin first; tests at the foot.

pub mod coreset;
pub mod gaussian;
pub mod interpolate;
pub mod nearest_prototype;
pub mod neighbourhood;
