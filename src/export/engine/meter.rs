//! Counts the bytes of what is alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A sum of bytes, shared by all that count into it.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<AtomicUsize>);

impl Meter {
    /// Bytes of all that was metered and not dropped.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts these bytes.
    pub fn add(&self, bytes: usize) -> Metered {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Metered { meter: self.clone(), bytes }
    }
}

/// Bytes that count until it is dropped.
#[derive(Debug)]
pub struct Metered {
    meter: Meter,
    bytes: usize,
}

impl Metered {
    /// Where they count.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.meter.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
