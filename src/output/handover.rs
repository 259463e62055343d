//! From the output thread to a wire's own: never waited for, and what found no room is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

/// How many may be on their way: full only if the wire stands still for many seconds.
pub(super) const ROOM: usize = 1024;

/// The output thread's end.
pub(super) struct Handover<T> {
    wire: &'static str,
    news: Sender<T>,
    missed: Arc<AtomicU64>,
}

/// The wire's end.
pub(super) struct Inbox<T> {
    pub news: Receiver<T>,
    missed: Arc<AtomicU64>,
}

/// The two ends for the wire of this name.
pub(super) fn handover<T>(wire: &'static str) -> (Handover<T>, Inbox<T>) {
    let (give, news) = bounded(ROOM);
    let missed = Arc::new(AtomicU64::new(0));
    (Handover { wire, news: give, missed: missed.clone() }, Inbox { news, missed })
}

impl<T> Handover<T> {
    /// What is said again soon, such as a beat.
    ///
    /// # Errors
    /// The wire stands still, or has ended.
    pub fn give(&self, news: T) -> Result<()> {
        match self.news.try_send(news) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                bail!("{}: the wire stands still, {ROOM} wait", self.wire)
            }
            Err(TrySendError::Disconnected(_)) => bail!("{}: the wire has ended", self.wire),
        }
    }

    /// A result, which comes once: the wire hears how many were missed.
    ///
    /// # Errors
    /// As [`Handover::give`].
    pub fn give_result(&self, result: T) -> Result<()> {
        self.give(result).inspect_err(|_| {
            self.missed.fetch_add(1, Ordering::Relaxed);
        })
    }
}

impl<T> Inbox<T> {
    /// Results that found no room since it was last asked.
    pub fn missed(&self) -> u64 {
        self.missed.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_said_and_counted() {
        let (give, inbox) = handover::<usize>("modbus");
        for i in 0..ROOM {
            give.give_result(i).unwrap();
        }
        let error = give.give_result(0).unwrap_err().to_string();
        assert!(error.contains("modbus: the wire stands still"), "{error}");
        assert!(give.give(0).is_err());
        assert_eq!((inbox.missed(), inbox.missed()), (1, 0));
        assert_eq!(inbox.news.try_iter().collect::<Vec<_>>(), (0..ROOM).collect::<Vec<_>>());
        drop(inbox);
        assert!(give.give(0).unwrap_err().to_string().contains("has ended"));
    }
}
