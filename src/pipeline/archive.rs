//! The archive thread: owns the disk for pictures and makes the ledger durable once a second.
//! Nothing here can hold up a verdict.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::now;
use crate::archive::{Archive, Evidence, Kept};
use crate::journal::{Repeats, plain};
use crate::ledger::SyncHandle;
use crate::telemetry::Counters;

const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Returns when the output thread is gone and the queue is empty.
pub(super) fn run(
    mut archive: Option<Archive>,
    sync: Option<SyncHandle>,
    evidence: &Receiver<Evidence>,
    counters: &Counters,
) {
    let mut trouble = Repeats::new(Duration::from_secs(60));
    let mut sync_at = now() + SYNC_EVERY;
    loop {
        if now() >= sync_at {
            sync_at = now() + SYNC_EVERY;
            if let Some(sync) = &sync
                && let Err(error) = sync.run()
                && let Some(times) = trouble.admit("ledger", now())
            {
                log::error!(
                    "ledger_sync_failed times={times} reason=\"{}\"",
                    plain(format!("{error:#}"))
                );
            }
        }
        match evidence.recv_deadline(sync_at) {
            Ok(evidence) => {
                let Some(archive) = &mut archive else { continue };
                match archive.store(&evidence) {
                    Ok(Kept::Yes) => {}
                    Ok(Kept::StillNot) => {
                        counters.evidence_lost.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        counters.evidence_lost.fetch_add(1, Ordering::Relaxed);
                        log::error!("archive_failed reason=\"{}\"", plain(format!("{error:#}")));
                    }
                }
                counters.archive_failing.store(archive.failing(), Ordering::Relaxed);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
}
