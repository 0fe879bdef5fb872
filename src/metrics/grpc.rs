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
    certificate_expires: AtomicU64::new(0),
};

/// Counts since the start.
#[derive(Debug)]
pub struct Counts {
    ok: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    certificates_refused: AtomicU64,
    /// In seconds since 1970; 0 without one.
    certificate_expires: AtomicU64,
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

    /// A certificate came into use, which expires then, in seconds since 1970.
    pub fn certificate(&self, expires: u64) {
        self.certificate_expires.store(expires, Ordering::Relaxed);
    }

    /// The metrics.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let calls = [("ok", get(&self.ok)), ("failed", get(&self.failed)), ("refused", get(&self.refused))];
        let expires = Some(get(&self.certificate_expires)).filter(|n| *n > 0);
        let own = [
            Family::labelled(&m::GRPC_CALLS, calls),
            Family::single(&m::CERTIFICATES_REFUSED, Value::Int(get(&self.certificates_refused))),
        ];
        own.into_iter().chain(expires.map(|n| Family::single(&m::CERTIFICATE_EXPIRES, Value::Int(n))))
    }
}
