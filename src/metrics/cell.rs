//! Where the collector publishes its snapshots, and the outputs read them: the newest, those to come, those of the past.

use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use crossbeam::channel::{self, Receiver, Sender, TrySendError};

use super::history::{History, Past};
use super::snapshot::Snapshot;

/// The place where the collector publishes and the outputs read. Reading takes a lock for the copy of one
/// pointer and never waits for a collection.
#[derive(Debug, Clone)]
pub struct SnapshotCell(Arc<RwLock<Kept>>);

/// Snapshots that may wait for a subscriber; more pass it by.
const SUBSCRIBER_WAITING: usize = 256;

#[derive(Debug)]
struct Kept {
    newest: Arc<Snapshot>,
    subscribers: Vec<Sender<Arc<Snapshot>>>,
    past: History,
}

impl SnapshotCell {
    /// A cell holding `first`, and no past.
    pub fn new(first: Snapshot) -> Self {
        Self::with_history(first, Duration::ZERO)
    }

    /// A cell holding `first`, that will keep the collections of the last `history`, and at most
    /// [`HISTORY_BYTES`](super::history::HISTORY_BYTES) of them.
    pub fn with_history(first: Snapshot, history: Duration) -> Self {
        let newest = Arc::new(first);
        let mut kept = Kept { newest: Arc::clone(&newest), subscribers: Vec::new(), past: History::new(history) };
        kept.remember(&newest);
        Self(Arc::new(RwLock::new(kept)))
    }

    /// The newest snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        // A poisoned lock still holds a whole pointer: it is replaced in one assignment.
        Arc::clone(&self.0.read().unwrap_or_else(|e| e.into_inner()).newest)
    }

    /// The collections kept that began in `start..end`; a missing end is open.
    pub fn between(&self, start: Option<SystemTime>, end: Option<SystemTime>) -> Past {
        self.0.read().unwrap_or_else(|e| e.into_inner()).past.between(start, end)
    }

    /// The newest snapshot, and every later one as it is published.
    pub fn subscribe(&self) -> Receiver<Arc<Snapshot>> {
        let (sender, receiver) = channel::bounded(SUBSCRIBER_WAITING);
        let mut kept = self.0.write().unwrap_or_else(|e| e.into_inner());
        // It has room, and its receiver is here.
        let _ = sender.try_send(Arc::clone(&kept.newest));
        kept.subscribers.push(sender);
        receiver
    }

    /// Publishes `next`. Never waits for a subscriber.
    pub fn store(&self, next: Snapshot) {
        let next = Arc::new(next);
        let mut kept = self.0.write().unwrap_or_else(|e| e.into_inner());
        kept.newest = Arc::clone(&next);
        kept.subscribers.retain(|s| !matches!(s.try_send(Arc::clone(&next)), Err(TrySendError::Disconnected(_))));
        kept.remember(&next);
    }
}

impl Kept {
    fn remember(&mut self, next: &Arc<Snapshot>) {
        // A failed collection repeats the data and the time of the one before.
        match next.last_error {
            None => self.past.add(next),
            Some(_) => self.past.forget(next.collected_instant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::example;

    fn sequences(of: &Past) -> Vec<u64> {
        of.newest_first().map(|s| s.sequence).collect()
    }

    #[test]
    fn the_past_is_kept_for_its_time_and_found_by_collection_time() {
        let base = example::snapshot();
        let at = |n| Some(base.collected_at + Duration::from_secs(n));
        let next = |n: u64| Snapshot {
            sequence: n,
            collected_at: base.collected_at + Duration::from_secs(n),
            collected_instant: base.collected_instant + Duration::from_secs(n),
            ..base.clone()
        };
        let cell = SnapshotCell::with_history(next(1), Duration::from_secs(5));
        for n in 2..=10 {
            cell.store(next(n));
        }
        cell.store(Snapshot { last_error: Some("failed".into()), collected_at: next(10).collected_at, ..next(11) });
        assert_eq!(cell.load().sequence, 11);
        assert_eq!(sequences(&cell.between(None, None)), [10, 9, 8, 7, 6], "what is older than 5 s has gone");
        assert_eq!(sequences(&cell.between(at(7), at(9))), [8, 7], "the start is in it, the end is not");
        assert_eq!(sequences(&cell.between(at(11), None)), [0; 0]);
        assert_eq!(sequences(&cell.between(None, at(6))), [0; 0]);
    }
}
