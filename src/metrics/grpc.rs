//! What the gRPC server counts of itself.

use std::sync::atomic::{AtomicU64, Ordering};

use super::own as m;
use super::snapshot::{Family, Value};

/// The counts of this process.
pub static COUNTS: Counts = Counts {
    ok: AtomicU64::new(0),
    failed: AtomicU64::new(0),
    refused: AtomicU64::new(0),
    certificates_refused: AtomicU64::new(0),
};

/// Counts since the start.
#[derive(Debug)]
pub struct Counts {
    ok: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    certificates_refused: AtomicU64,
}

/// How a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was answered, or its stream opened.
    Ok,
    /// It failed.
    Failed,
    /// A limit was reached.
    Refused,
}

impl Counts {
    /// A call has ended so.
    pub fn ended(&self, end: End) {
        let count = match end {
            End::Ok => &self.ok,
            End::Failed => &self.failed,
            End::Refused => &self.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Changed certificate files could not be used.
    pub fn certificates_refused(&self) {
        self.certificates_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The metrics.
    pub fn families(&self) -> [Family; 2] {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let calls = [("ok", get(&self.ok)), ("failed", get(&self.failed)), ("refused", get(&self.refused))];
        [
            Family::labelled(&m::GRPC_CALLS, calls),
            Family::single(&m::CERTIFICATES_REFUSED, Value::Int(get(&self.certificates_refused))),
        ]
    }
}
