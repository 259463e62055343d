//! Where verdicts go: the wires to the PLC and the log.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::frame::{FrameId, PartId, Position, Truth};
use crate::telemetry::Progress;
use crate::tracker::{Alarms, Track};
use crate::trigger::Port;
use crate::verdict::web::WebDefect;
use crate::verdict::{Cause, Region, Verdict};

pub mod ethernet_ip;
pub mod gate;
mod handover;
mod handshake;
pub mod io;
pub mod log;
pub mod modbus;
pub mod mqtt;
pub mod opcua;
mod recorded;
mod registers;
pub mod s7;

pub use recorded::{Recorded, Word};

/// The end of a part's way: its one verdict and what an engineer wants to know about it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub part: PartId,
    pub frame: FrameId,
    /// The camera's name in the config.
    pub camera: Arc<str>,
    /// What the source calls the picture: a file name, a frame number.
    pub name: Arc<str>,
    pub verdict: Verdict,
    /// Raw score units; `None` where nothing was computed.
    pub score: Option<f32>,
    /// The threshold that `score` was held against.
    pub threshold: Option<f32>,
    /// Where the anomaly is, in pixels of the picture.
    pub region: Option<Region>,
    /// Where the belt stood when the picture was taken.
    pub position: Option<Position>,
    /// From trigger to verdict.
    pub latency: Duration,
    /// When the part was triggered, by the wall clock.
    pub triggered_at: SystemTime,
    /// Where the reject's picture is kept, relative to the archive; `None`: it is not kept.
    pub image: Option<PathBuf>,
    /// Free text for the log: what exactly went wrong with an uninspected part.
    pub reason: Option<Arc<str>>,
    /// Known only for rendered parts.
    pub truth: Option<Truth>,
}

/// How many parts went which way. `triggers = accepted + rejected + in flight` at any instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub triggers: u64,
    pub accepted: u64,
    /// By [`Cause`]; index = `cause.code() - 1`.
    pub rejected: [u64; Cause::ALL.len()],
}

impl std::ops::Add for Tally {
    type Output = Tally;

    fn add(self, other: Tally) -> Tally {
        Tally {
            triggers: self.triggers + other.triggers,
            accepted: self.accepted + other.accepted,
            rejected: std::array::from_fn(|i| self.rejected[i] + other.rejected[i]),
        }
    }
}

impl Tally {
    pub fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Accept => self.accepted += 1,
            Verdict::Reject(cause) => self.rejected[usize::from(cause.code()) - 1] += 1,
        }
    }

    pub fn rejected_for(&self, cause: Cause) -> u64 {
        self.rejected[usize::from(cause.code()) - 1]
    }

    pub fn rejected_total(&self) -> u64 {
        self.rejected.iter().sum()
    }

    /// Rejected without an inspection: every cause but anomaly.
    pub fn uninspected(&self) -> u64 {
        self.rejected_total() - self.rejected_for(Cause::Anomaly)
    }

    pub fn in_flight(&self) -> u64 {
        self.triggers.saturating_sub(self.accepted + self.rejected_total())
    }

    /// True when every triggered part has its verdict.
    pub fn closed(&self) -> bool {
        self.triggers == self.accepted + self.rejected_total()
    }
}

/// The states of OPC 40100-1 (OPC UA for Machine Vision) that this daemon can be in; the numbers
/// are those of the standard's state machine and go to the PLC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum LineState {
    /// Starting: config read, nothing loaded.
    Preoperational = 1,
    /// Shut down in order; no part is judged any more.
    Halted = 2,
    /// A camera or the detector is gone, the ledger takes nothing, or part after part is too late: parts
    /// are rejected uninspected.
    Error = 3,
    /// Detector loaded and sealed, cameras not yet up.
    Initialized = 5,
    /// Armed; a PLC or an input triggers, and no part is on its way.
    Ready = 6,
    /// A part that was triggered is on its way.
    SingleExecution = 7,
    /// Armed and inspecting what comes.
    ContinuousExecution = 8,
}

impl LineState {
    /// A part that comes now is inspected.
    pub fn ready(self) -> bool {
        use LineState::{ContinuousExecution, Ready, SingleExecution};
        matches!(self, Ready | SingleExecution | ContinuousExecution)
    }
}

/// What a PLC may command through any of the wires.
#[derive(Clone, Debug, Default)]
pub struct Controls {
    /// By camera; `None`: a PLC does not trigger it.
    pub triggers: Vec<Option<Port>>,
    /// Counts up with each wish to clear the alarms.
    alarms_cleared: Arc<AtomicU64>,
}

impl Controls {
    pub fn new(triggers: Vec<Option<Port>>) -> Controls {
        Controls { triggers, ..Controls::default() }
    }

    /// Somebody has looked and wants the alarms gone.
    pub fn clear_alarms(&self) {
        self.alarms_cleared.fetch_add(1, Ordering::SeqCst);
    }

    /// How often it was wished so far.
    pub fn alarms_cleared(&self) -> u64 {
        self.alarms_cleared.load(Ordering::SeqCst)
    }
}

/// Sent to each wire ten times a second by the end of the pipeline, never by a timer of its own:
/// if it stops, nothing is being judged.
#[derive(Clone, Debug)]
pub struct LineStatus {
    pub state: LineState,
    /// Counts up with every start of the daemon on this ledger.
    pub epoch: u32,
    /// Since the ledger began, across restarts.
    pub tally: Tally,
    /// Parts whose verdict came after their deadline; all of them were rejected.
    pub late_verdicts: u64,
    /// One per camera, in config order: does it deliver?
    pub cameras_up: Vec<bool>,
    /// Evidence is not being kept (disk full, archive behind).
    pub evidence_lost: bool,
    /// The gate's, that stand.
    pub alarms: Alarms,
}

/// Work that a wire does on a thread of its own (serving sockets). Runs until `stop` is set, which
/// it looks at at least every half second, and then for at most half a second, for the PLC to read what
/// came last. Marks its progress each turn.
pub type Service = Box<dyn FnOnce(&AtomicBool, &Progress) + Send>;

/// One wire to the outside. Lives on the output thread, which must not stand still: neither
/// method may block for longer than about a millisecond.
pub trait RejectOutput: Send {
    /// The word for this wire in the log.
    fn name(&self) -> &str;

    /// A part is on its way; its verdict follows. Not every wire needs to know.
    fn triggered(&mut self, track: &Track) -> Result<()> {
        let _not_needed = track;
        Ok(())
    }

    /// Says the verdict of one part. Each part comes exactly once.
    fn signal(&mut self, outcome: &Outcome) -> Result<()>;

    /// Tells of a defect of a web, once it is over, or of a piece of a long one. Its parts have had
    /// their verdicts.
    fn defect(&mut self, _defect: &WebDefect) -> Result<()> {
        Ok(())
    }

    /// The heartbeat and the state of the line.
    fn beat(&mut self, status: &LineStatus) -> Result<()>;

    /// Taken once, before the first `signal`; the pipeline runs it on a named thread.
    fn service(&mut self) -> Option<Service> {
        None
    }
}
