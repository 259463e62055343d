//! Training of networks by gradient descent: what the published systems are learned with. Workshop:
//! nothing on the line uses it.

pub mod loss;
pub mod optimizer;
pub mod parameters;
pub mod tape;
