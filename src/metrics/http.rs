//! What the HTTP server counts of its TLS and its logins.

use std::sync::atomic::{AtomicU64, Ordering};

use super::own as m;
use super::snapshot::{Family, Value};

/// The counts of this process.
pub static COUNTS: Counts = Counts {
    logins_failed: AtomicU64::new(0),
    config_refused: AtomicU64::new(0),
    certificate_expires: AtomicU64::new(0),
};

/// Counts since the start.
#[derive(Debug)]
pub struct Counts {
    logins_failed: AtomicU64,
    config_refused: AtomicU64,
    /// In seconds since 1970; 0 without one.
    certificate_expires: AtomicU64,
}

impl Counts {
    /// A request had a name or password that is none.
    pub fn login_failed(&self) {
        self.logins_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// A changed configuration could not be used.
    pub fn config_refused(&self) {
        self.config_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A certificate came into use, which expires then, in seconds since 1970; `None`: none is in use any more.
    pub fn certificate(&self, expires: Option<u64>) {
        self.certificate_expires.store(expires.unwrap_or(0), Ordering::Relaxed);
    }

    /// The metrics.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let expires = Some(get(&self.certificate_expires)).filter(|n| *n > 0);
        let own = [
            Family::single(&m::HTTP_LOGINS_FAILED, Value::Int(get(&self.logins_failed))),
            Family::single(&m::HTTP_CONFIG_REFUSED, Value::Int(get(&self.config_refused))),
        ];
        own.into_iter().chain(expires.map(|n| Family::single(&m::HTTP_CERTIFICATE_EXPIRES, Value::Int(n))))
    }
}
