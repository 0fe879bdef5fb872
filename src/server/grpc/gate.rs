//! How much there is at a time: calls, and bytes of answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

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
    _of: Option<Share>,
}

/// A gate that keeps places for those who have none: everybody may take as many as stay free. So one gets half of them, two
/// get a third each, and who comes last still finds one.
pub struct Shares {
    gate: Gate,
    taken: Taken,
}

type Taken = Arc<Mutex<HashMap<String, usize>>>;

/// One place of somebody.
struct Share {
    taken: Taken,
    of: String,
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
        Some(Permit { inside: Arc::clone(&self.inside), places, _of: None })
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.inside.load(Ordering::Acquire)
    }
}

impl Shares {
    /// Places for at most `max`.
    pub fn new(max: usize) -> Self {
        Self { gate: Gate::new(max), taken: Taken::default() }
    }

    /// From now on it is for at most `max`; who is inside may stay.
    pub fn resize(&self, max: usize) {
        self.gate.resize(max);
    }

    /// A place for somebody, if that is within the share.
    pub fn enter(&self, who: &str) -> Option<Permit> {
        let mut taken = lock(&self.taken);
        let free = self.gate.max.load(Ordering::Relaxed).saturating_sub(self.gate.taken());
        let own = taken.get(who).copied().unwrap_or(0);
        let mut permit = (own < free).then(|| self.gate.enter()).flatten()?;
        taken.insert(who.to_owned(), own + 1);
        permit._of = Some(Share { taken: Arc::clone(&self.taken), of: who.to_owned() });
        Some(permit)
    }
}

fn lock(taken: &Taken) -> MutexGuard<'_, HashMap<String, usize>> {
    // Each change is one of the map's.
    taken.lock().unwrap_or_else(|e| e.into_inner())
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        match taken.get_mut(&self.of) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(taken.remove(&self.of)),
        }
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
    fn everybody_may_have_as_many_as_stay_free() {
        let places = Shares::new(9);
        let many = |who| std::iter::from_fn(|| places.enter(who)).collect::<Vec<_>>();
        let first = many("a");
        assert_eq!(first.len(), 5);
        let second = many("b");
        assert_eq!(second.len(), 2);
        drop(second);
        assert_eq!(many("b").len(), 2);
        drop(first);
        assert_eq!(many("a").len(), 5, "nothing is left behind");
        assert!(lock(&places.taken).is_empty());
        let all: Vec<_> = (0..9).map(|i| places.enter(&i.to_string())).collect();
        assert!(all.iter().all(Option::is_some) && places.enter("x").is_none());
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
