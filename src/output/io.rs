//! Digital inputs and outputs: what a gate's sensors say and what moves its ejector. One turn of a
//! station writes all of its outputs and reads all of its inputs.

use std::time::Instant;

use anyhow::Result;

/// What digital inputs and the counter read in one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// Input `n` of the station's config is bit `n`; those that are not there read 0.
    pub bits: u32,
    /// Where the station's counter stands; `None`: it has none.
    pub encoder: Option<u32>,
}

/// A digital I/O station. Nobody reaches it but the thread that owns it.
pub trait DigitalIo: Send {
    /// The word for this station in the log.
    fn name(&self) -> &str;

    /// Writes all outputs (output `n` of the config is bit `n`, further bits mean nothing) and reads all
    /// inputs. Blocks for about the station's own time limit at most.
    ///
    /// # Errors
    /// The station did not take part in this turn; it was closed and is opened again by the next turns,
    /// with pauses between attempts.
    fn exchange(&mut self, outputs: u32, now: Instant) -> Result<Inputs>;
}
