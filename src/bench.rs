//! How fast this machine is: networks, layers, the search, the whole way of a picture, a test set's figures, against the
//! peak that its arithmetic units can reach. Figures are printed with the machine they were taken
//! on; nothing is judged by them.

pub mod card;
pub mod histogram;
pub mod line;
pub mod metrics;
pub mod nets;
pub mod patches;
pub mod peak;
pub mod samples;
pub mod search;

pub use samples::Samples;
