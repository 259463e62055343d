//! What a ledger's folder holds when a daemon starts: where to go on, and what to set aside.

use std::path::Path;

use anyhow::Result;

use super::read::{self, Problem};
use super::segment::{End, State};

/// What the folder holds at start, once damaged segments are set aside.
pub(super) struct Found {
    /// There was no ledger.
    pub fresh: bool,
    pub state: State,
    /// The segment to go on with, and how much of it is good.
    pub last: Option<(u64, u64)>,
    /// The number of the next segment.
    pub free_index: u64,
    pub torn_bytes: u64,
    pub damaged: Vec<Problem>,
}

pub(super) fn resume(folder: &Path) -> Result<Found> {
    let segments = read::segments(folder)?;
    // The last segment with a usable header starts the count; those after it (there are none but
    // after a bad disk) are gone through in order.
    let mut first = segments.len().saturating_sub(1);
    while first > 0 && segments[first].header()?.is_none() {
        first -= 1;
    }
    let mut found = Found {
        fresh: segments.is_empty(),
        state: State::default(),
        last: None,
        free_index: segments.last().map_or(1, |segment| segment.index + 1),
        torn_bytes: 0,
        damaged: Vec::new(),
    };
    let mut before = None;
    for (place, segment) in segments.iter().enumerate().skip(first) {
        let bytes = segment.bytes()?;
        let scan = segment.scan(&bytes, before.as_ref(), |_| {})?;
        let newest = place + 1 == segments.len();
        let what = match scan.end {
            End::Whole => {
                found.last = newest.then_some((segment.index, bytes.len() as u64));
                None
            }
            End::Torn { offset } if newest => {
                found.torn_bytes = bytes.len() as u64 - offset;
                found.last = Some((segment.index, offset));
                None
            }
            End::Torn { offset } => Some((offset, "the segment is cut short".to_owned())),
            End::Damaged { offset, what } => Some((offset, what)),
        };
        let mut state = scan.state;
        if let Some((offset, what)) = what
            && !segment.damaged
        {
            let aside = segment.set_aside()?;
            found.damaged.push(Problem { path: aside, offset, what });
        }
        if newest && found.last.is_some() && segment.damaged {
            found.last = None;
        }
        if found.last.is_none() {
            // What the damage swallowed may have included the clean end.
            state.stopped = false;
        }
        before = Some(state);
    }
    found.state = before.unwrap_or_default();
    Ok(found)
}
