//! Answers that take time: streams, and calls whose clients are slow to read.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::Sink;
use grpcio::{GrpcSlice, RpcStatus, ServerStreamingSink, WriteFlags};

use super::gate::{Gate, Permit};
use super::ticker::Timer;

/// Time that a client may take to read a message.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the messages of a stream that are due now.
pub type Produce = Box<dyn FnMut() -> Vec<GrpcSlice> + Send>;

/// A stream that says something at once and then every `interval`, but nothing before the client has read what was
/// said before. It ends when the client leaves, or reads nothing for [`PATIENCE`].
pub struct Stream {
    sink: ServerStreamingSink<GrpcSlice>,
    produce: Produce,
    interval: Duration,
    due: Instant,
    /// Messages of the last tick that are still to be sent.
    queue: VecDeque<GrpcSlice>,
    /// Since when the message before is being sent.
    sending: Option<Instant>,
    /// The bytes of all streams and calls, and those of the last tick among them.
    answers: Gate,
    held: Option<Permit>,
    timer: Timer,
    peer: String,
    _permit: Permit,
}

impl Stream {
    /// A stream to `peer`, of messages that have room among `answers`.
    pub fn new(
        sink: ServerStreamingSink<GrpcSlice>,
        (interval, produce): (Duration, Produce),
        answers: Gate,
        timer: Timer,
        peer: String,
        permit: Permit,
    ) -> Self {
        let (due, queue) = (Instant::now(), VecDeque::new());
        Self { sink, produce, interval, due, queue, sending: None, answers, held: None, timer, peer, _permit: permit }
    }

    /// When it is to be looked at again unless something happens; `None` when it has ended.
    fn advance(&mut self, cx: &mut Context<'_>) -> Option<Instant> {
        loop {
            // Also tells when the client has left.
            match Pin::new(&mut self.sink).poll_ready(cx) {
                Poll::Ready(Err(_)) => return None,
                Poll::Ready(Ok(())) => self.sending = None,
                Poll::Pending => {
                    let patience = *self.sending.get_or_insert_with(Instant::now) + PATIENCE;
                    if Instant::now() < patience {
                        return Some(patience);
                    }
                    log::info!("gRPC: {} has read nothing for {PATIENCE:?}: its stream is ended", self.peer);
                    return None;
                }
            }
            if let Some(message) = self.queue.pop_front() {
                self.sending = Some(Instant::now());
                Pin::new(&mut self.sink).start_send((message, WriteFlags::default())).ok()?;
                continue;
            }
            self.held = None;
            let now = Instant::now();
            if now < self.due {
                return Some(self.due);
            }
            // Ticks that were missed are not made up for; one that there is no room for is missed too.
            while self.due <= now {
                self.due += self.interval;
            }
            let messages = (self.produce)();
            self.held = self.answers.take(messages.iter().map(GrpcSlice::len).sum());
            if self.held.is_some() {
                self.queue.extend(messages);
            }
        }
    }
}

impl Future for Stream {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.advance(cx) {
            None => Poll::Ready(()),
            Some(at) => {
                self.timer.set(at, cx.waker());
                Poll::Pending
            }
        }
    }
}

/// The answer to a call, or why there is none. To HTTP/2 a call is a stream of one message; as such it can be cancelled,
/// which it is when this is dropped too early: else gRPC would keep the message as long as the connection lives.
pub struct Sending {
    sink: ServerStreamingSink<GrpcSlice>,
    message: Option<GrpcSlice>,
}

impl Sending {
    /// Sends `result` through `sink`.
    pub fn new(mut sink: ServerStreamingSink<GrpcSlice>, result: Result<GrpcSlice, RpcStatus>) -> Self {
        let message = result.map_err(|status| sink.set_status(status)).ok();
        Self { sink, message }
    }
}

impl Future for Sending {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { sink, message } = &mut *self;
        let mut sink = Pin::new(sink);
        if message.is_some() {
            match sink.as_mut().poll_ready(cx) {
                Poll::Pending => return Poll::Pending,
                // The client has left.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {}
            }
            if let Some(message) = message.take()
                && sink.as_mut().start_send((message, WriteFlags::default())).is_err()
            {
                return Poll::Ready(());
            }
        }
        sink.poll_close(cx).map(drop)
    }
}

/// What takes a call to its end: given up, and the call with it, when that takes more than [`PATIENCE`].
pub struct Answer<F> {
    work: F,
    until: Instant,
    timer: Timer,
    _held: [Option<Permit>; 2],
}

impl<F> Answer<F> {
    /// The answer that `work` completes; `held` is free again then.
    pub fn new(work: F, timer: Timer, held: [Option<Permit>; 2]) -> Self {
        Self { work, until: Instant::now() + PATIENCE, timer, _held: held }
    }
}

impl<F: Future<Output = ()> + Unpin> Future for Answer<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Pin::new(&mut self.work).poll(cx).is_ready() || Instant::now() >= self.until {
            return Poll::Ready(());
        }
        let until = self.until;
        self.timer.set(until, cx.waker());
        Poll::Pending
    }
}

/// Ends a task that panics, which would otherwise end the thread that serves all calls.
pub struct Guarded<F>(pub F);

impl<F: Future<Output = ()> + Unpin> Future for Guarded<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.0).poll(cx)));
        polled.unwrap_or_else(|_| {
            log::error!("gRPC: a call panicked");
            Poll::Ready(())
        })
    }
}

/// A value that another thread will give.
pub struct Later<T>(Arc<Mutex<Slot<T>>>);

/// The side that gives it. Dropped without, there will be none.
pub struct Give<T>(Arc<Mutex<Slot<T>>>);

struct Slot<T> {
    value: Option<T>,
    closed: bool,
    waiting: Option<Waker>,
}

/// A value and the side that gives it.
pub fn later<T>() -> (Give<T>, Later<T>) {
    let slot = Arc::new(Mutex::new(Slot { value: None, closed: false, waiting: None }));
    (Give(Arc::clone(&slot)), Later(slot))
}

fn lock<T>(slot: &Mutex<Slot<T>>) -> MutexGuard<'_, Slot<T>> {
    // Each change is one assignment: nothing can be half done.
    slot.lock().unwrap_or_else(|e| e.into_inner())
}

impl<T> Give<T> {
    /// Gives the value.
    pub fn give(self, value: T) {
        lock(&self.0).value = Some(value);
    }
}

impl<T> Drop for Give<T> {
    fn drop(&mut self) {
        let mut slot = lock(&self.0);
        slot.closed = true;
        let waiting = slot.waiting.take();
        drop(slot);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl<T> Future for Later<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut slot = lock(&self.0);
        if slot.closed {
            return Poll::Ready(slot.value.take());
        }
        slot.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}
