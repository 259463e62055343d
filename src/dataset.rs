//! Public data sets in their own layouts. Workshop: nothing on the line may use it.

pub mod mvtec;
