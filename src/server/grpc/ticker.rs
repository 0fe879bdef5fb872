//! One thread that wakes tasks at their times, and has time for what is to be done now and then: gRPC has no timer.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::host::confine::{self, Role};

/// Longest sleep. A time that is further away needs no wake-up of the thread when it is set.
const SLEEP: Duration = Duration::from_secs(10);

/// The thread; it ends when this is dropped.
pub struct Ticker {
    times: Arc<Times>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Times {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By time; the number tells equal times apart.
    due: BTreeMap<(Instant, u64), Waker>,
    last: u64,
    /// When the thread will look again by itself.
    sleeps_until: Option<Instant>,
    stop: bool,
}

impl Times {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic would have left is still a valid map.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn run(&self, rest: impl Fn()) {
        let mut state = self.lock();
        let mut rests = Instant::now() + SLEEP;
        while !state.stop {
            let now = Instant::now();
            if now >= rests {
                rests = now + SLEEP;
                drop(state);
                rest();
                state = self.lock();
                continue;
            }
            let mut woken = Vec::new();
            while let Some(entry) = state.due.first_entry().filter(|e| e.key().0 <= now) {
                woken.push(entry.remove());
            }
            if !woken.is_empty() {
                drop(state);
                for waker in woken {
                    // A call that cannot be woken must not take the others along.
                    if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                        log::error!("gRPC: a stream could not be woken");
                    }
                }
                state = self.lock();
                continue;
            }
            let next = state.due.first_key_value().map_or(rests, |(key, _)| key.0.min(rests));
            state.sleeps_until = Some(next);
            let slept = self.changed.wait_timeout(state, next.saturating_duration_since(now));
            state = slept.unwrap_or_else(|e| e.into_inner()).0;
            state.sleeps_until = None;
        }
    }
}

impl Ticker {
    /// Starts the thread, which calls `rest` every [`SLEEP`].
    pub fn start(rest: impl Fn() + Send + 'static) -> io::Result<Self> {
        let times = Arc::<Times>::default();
        let of_thread = Arc::clone(&times);
        let thread = thread::Builder::new().name("grpc-ticker".into()).spawn(move || {
            confine::enter(Role::Grpc);
            of_thread.run(rest);
        })?;
        Ok(Self { times, thread: Some(thread) })
    }

    /// A timer that is not set.
    pub fn timer(&self) -> Timer {
        Timer { times: Arc::clone(&self.times), set: None }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.times.lock().stop = true;
        self.times.changed.notify_one();
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            log::error!("gRPC: the ticker had panicked");
        }
    }
}

/// A task's own wake-up; dropping it takes it back.
pub struct Timer {
    times: Arc<Times>,
    set: Option<(Instant, u64)>,
}

impl Timer {
    /// Has the task woken at `at`, and at no other time.
    pub fn set(&mut self, at: Instant, task: &Waker) {
        let mut state = self.times.lock();
        if let Some(old) = self.set.take() {
            state.due.remove(&old);
        }
        state.last += 1;
        let key = (at, state.last);
        state.due.insert(key, task.clone());
        self.set = Some(key);
        if state.sleeps_until.is_some_and(|until| at < until) {
            self.times.changed.notify_one();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(key) = self.set {
            self.times.lock().due.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::task::Wake;

    struct Note(mpsc::Sender<u32>, u32);

    impl Wake for Note {
        fn wake(self: Arc<Self>) {
            self.0.send(self.1).unwrap();
        }
    }

    #[test]
    fn wakes_in_order_at_the_latest_time_set_and_not_when_dropped() {
        let ticker = Ticker::start(|| ()).unwrap();
        let (sender, woken) = mpsc::channel();
        let note = |n| Waker::from(Arc::new(Note(sender.clone(), n)));
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers: Vec<Timer> = (0..4).map(|_| ticker.timer()).collect();
        timers[0].set(at(60), &note(0));
        timers[1].set(at(30), &note(1));
        timers[2].set(at(3_600_000), &note(2));
        timers[2].set(at(90), &note(3));
        timers[3].set(at(45), &note(4));
        timers.pop();
        for expected in [1, 0, 3] {
            assert_eq!(woken.recv().unwrap(), expected);
        }
        assert!(start.elapsed() >= Duration::from_millis(90));
        drop(timers);
        assert_eq!(ticker.times.lock().due.len(), 0);
        drop(ticker);
        assert!(woken.try_recv().is_err());
    }
}
