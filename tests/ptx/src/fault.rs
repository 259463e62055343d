//! What is complained of, and where.

use std::fmt;

/// What a complaint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel is not in the module.
    UnknownKernel,
    /// Arguments that are not what the signature says: how many, how wide.
    Arguments,
    /// Grid, block or shared memory that a card or `.maxntid` refuses.
    Shape,
    OutOfBounds,
    Misaligned,
    /// Something is read that nobody wrote.
    Uninitialised,
    /// What was to be handed out was never written.
    Unwritten,
    SharedRace,
    GlobalRace,
    /// A barrier that not all threads of the block reach together.
    Barrier,
    /// A warp's joint instruction without a lane that it names, or by one that it does not name.
    Warp,
    /// A copy still on its way where the thread ends.
    AsyncCopy,
    DivisionByZero,
    /// More instructions than any launch of ours needs.
    Endless,
}

/// Why a launch was stopped, and where.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    pub detail: String,
    pub place: Option<Place>,
}

/// An instruction of a thread.
#[derive(Clone, Debug)]
pub struct Place {
    pub kernel: String,
    /// Line of the PTX, from 1.
    pub line: usize,
    /// File and line of the source, where the PTX has `.loc`.
    pub source: Option<String>,
    pub block: [u32; 3],
    pub thread: [u32; 3],
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.detail)?;
        let Some(place) = &self.place else { return Ok(()) };
        write!(f, " ({}, PTX line {}", place.kernel, place.line)?;
        if let Some(source) = &place.source {
            write!(f, ", {source}")?;
        }
        write!(f, ", block {:?}, thread {:?})", place.block, place.thread)
    }
}

impl std::error::Error for Fault {}

/// Text that is not the PTX we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line of the PTX, from 1.
    pub line: usize,
    pub detail: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.detail)
    }
}

impl std::error::Error for ParseError {}

/// A complaint before it is known where: the lane, if it is one lane's.
#[derive(Debug)]
pub struct Problem {
    pub kind: Kind,
    pub detail: String,
    pub lane: Option<usize>,
}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), lane: None }
    }

    pub fn of_lane(mut self, lane: usize) -> Self {
        self.lane = Some(lane);
        self
    }
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self { kind: problem.kind, detail: problem.detail, place: None }
    }
}
