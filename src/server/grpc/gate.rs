//! How many calls there are at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lets so many in at a time.
#[derive(Clone)]
pub struct Gate {
    inside: Arc<AtomicUsize>,
    max: usize,
}

/// A place inside; free again when dropped.
pub struct Permit(Arc<AtomicUsize>);

impl Gate {
    /// A gate for at most `max`.
    pub fn new(max: usize) -> Self {
        Self { inside: Arc::default(), max }
    }

    /// A place, if one is free.
    pub fn enter(&self) -> Option<Permit> {
        let one_more = |n: usize| (n < self.max).then_some(n + 1);
        self.inside.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Permit(Arc::clone(&self.inside)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_in_as_many_as_there_are_places() {
        let gate = Gate::new(2);
        let inside = [gate.enter(), gate.clone().enter()];
        assert!(inside.iter().all(Option::is_some));
        assert!(gate.enter().is_none());
        drop(inside);
        assert!(gate.enter().is_some());
    }
}
