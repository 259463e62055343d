//! Gradients of the operations on feature maps, for training: same layout, same lanes, same team.
//! Each is named after what it differentiates; what a gradient overwrites is said where it is entered.

pub mod conv;
