//! How much there is at a time: calls, and bytes of answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lets so many in at a time.
#[derive(Clone)]
pub struct Gate {
    inside: Arc<AtomicUsize>,
    max: Arc<AtomicUsize>,
}

/// Places inside; free again when dropped.
pub struct Permit {
    inside: Arc<AtomicUsize>,
    places: usize,
}

impl Gate {
    /// A gate for at most `max`.
    pub fn new(max: usize) -> Self {
        Self { inside: Arc::default(), max: Arc::new(max.into()) }
    }

    /// From now on it is for at most `max`; who is inside may stay.
    pub fn resize(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// A place, if one is free.
    pub fn enter(&self) -> Option<Permit> {
        self.take(1)
    }

    /// So many places, if they are free.
    pub fn take(&self, places: usize) -> Option<Permit> {
        let more = |n: usize| n.checked_add(places).filter(|sum| *sum <= self.max.load(Ordering::Relaxed));
        self.inside.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Permit { inside: Arc::clone(&self.inside), places })
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.inside.load(Ordering::Acquire)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.inside.fetch_sub(self.places, Ordering::AcqRel);
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

    #[test]
    fn places_are_taken_together_or_not_at_all() {
        let gate = Gate::new(10);
        let seven = gate.take(7);
        assert!(gate.take(4).is_none() && gate.take(usize::MAX).is_none());
        assert_eq!(gate.taken(), 7);
        let three = gate.take(3);
        assert!(three.is_some() && gate.enter().is_none());
        drop(seven);
        assert_eq!(gate.taken(), 3);
    }
}
