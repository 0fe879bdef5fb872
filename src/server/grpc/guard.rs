//! What clients can reach of gRPC: one thread that owns the public listener and every connection, ends TLS, reads the
//! heads of HTTP/2's frames as they pass, lets no more calls in than gRPC can hold, and ends a connection that makes work
//! without end. gRPC's core of 2023 does neither: it begins a call for each HEADERS, however fast RST_STREAM takes it back
//! (CVE-2023-44487) and however many wait already, and has no bound on connections.
//!
//! ```text
//!  client ── TCP, TLS ──> up: whole frame heads only, each with its price ──> socket pair ── gRPC
//!         <────────────── down: as it comes; what has been answered pays in        <──
//! ```
//! gRPC has its end of the pair only when a client has said hello in HTTP/2, after its certificate if one is wanted. What it still holds of one that has left counts
//! until it closes that end. Its own limits (idleness, age, keepalive,
//! streams, bytes of requests and of answers) hold behind the guard as before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::tls::Files;
use crate::ebpf::poll::{self, POLLIN, POLLOUT, POLLRDHUP, PollFd};
use crate::host::confine::{self, Role};
use crate::server::listen;
use crate::server::transport::{Handshake, Transport, Turns};
use crate::server::watched::Watched;

/// Most client connections; a further one takes the place of one that has been quiet for longest.
const CLIENTS_MAX: usize = 256;
/// Requests at a time that are not whole: so many for all, and one more for each connection.
const ASKING: usize = 64;
pub const ASKING_MAX: usize = ASKING + CLIENTS_MAX;
/// Most connections that have left and that gRPC is not done with; meanwhile it gets no new one.
const LEAVING_MAX: usize = 64;
/// Time to say hello, from the first packet on; time to take a bit of what is left when gRPC has hung up.
const HELLO: Duration = Duration::from_secs(10);
/// Time for the whole of a request, from its head on.
const REQUEST: Duration = Duration::from_secs(20);
/// Time for a client to take what is sent to it, all of it; and for gRPC to let go of one that has left.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time and bytes for a client after the last word, without which a reset might overtake that.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// Bytes of a client that are looked at a time, and of gRPC. What does not fit into a client's socket waits here.
const UP: usize = 16 << 10;
const DOWN: usize = 64 << 10;
/// Connections accepted in one round.
const ACCEPTS: usize = 64;
/// Time without accepting when there is no descriptor.
const PAUSE: Duration = Duration::from_millis(100);
/// Time after which those that had to wait are looked at again.
const SOON: Duration = Duration::from_millis(5);

/// Bytes that gRPC holds, about, for a call that has no answer yet: beside its message, and for each byte of its head, which
/// may stand for a whole entry of HPACK's table.
const CALL: usize = 4096;
const OF_HEAD: usize = 16;
/// Bytes of such calls that each client may have, and room for all together beyond which nobody gets more than that. What
/// waits in it is served in less than a tenth of a second.
const OWN_ROOM: usize = 16 << 10;
const ROOM: usize = 4 << 20;
/// So many requests of the largest size find room together.
const LARGEST: usize = 4;

/// Work that a connection may make in vain at once (as frames that reset, ping or set, or that gRPC answers by a reset), and
/// each second on and on. 256 honest calls may be given up together. Data is work where it belongs to no request, or comes in
/// crumbs, each of which gRPC keeps by itself.
const BUDGET: i64 = 256 * WASTE;
const PER_SECOND: i64 = 16 * WASTE;
/// What a frame costs of it that makes work and ends nothing; one that opens a window, of which answers take many.
const WASTE: i64 = 4;
const WINDOW: i64 = 1;
const CRUMB: usize = 1024;
/// What an answered call and a frame of an answer that is no crumb bring.
const ANSWERED: i64 = 4;
const DATA_SENT: i64 = 2;
/// The same for all connections together, beyond what each has for itself: a client that comes again is not free. It is no end,
/// but a pause: 1000 calls made in vain take about a tenth of a CPU.
const POOL: i64 = 512 * WASTE;
const POOL_PER_SECOND: i64 = 1000 * WASTE;
const OWN: i64 = 16 * WASTE;
const NEW: i64 = 2 * WASTE;
/// Time after which one that waits for the pool, and was answered nothing meanwhile, has waited long enough: it may have left behind
/// what it has sent, of which 256 connections would have more than a minute's worth.
const BEGGING: Duration = Duration::from_secs(10);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const WINDOW_UPDATE: u8 = 8;
}

/// Whose connection gRPC has at which descriptor.
#[derive(Clone, Default)]
pub struct Peers(Arc<Mutex<HashMap<i32, (u64, SocketAddr)>>>);

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, (u64, SocketAddr)>> {
        // Each change is one of the map's.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The address of the client that gRPC calls `fd:12`. For the log only: that of a connection which has just ended may be
    /// another's by now.
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        let fd = name.strip_prefix("fd:")?.parse().ok()?;
        self.lock().get(&fd).map(|(_, address)| *address)
    }
}

/// Gives gRPC its end of a connection with this client.
pub type Attach = dyn FnMut(UnixStream, SocketAddr) + Send;

/// The thread; it ends, and every connection with it, when this is dropped.
pub struct Guard {
    wake: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    /// Serves `listener`, with TLS if there are files for it; requests have at most so many bytes.
    pub fn start(
        listener: TcpListener,
        tls: Watched<Files>,
        peers: Peers,
        request: usize,
        mut attach: Box<Attach>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let room = ROOM.max(LARGEST * request);
        let (wake, woken) = UnixStream::pair()?;
        let serve = move || {
            confine::enter(Role::Grpc);
            loop {
                let mut rounds = Rounds::new(&listener, &tls, &woken, &peers, room, attach.as_mut());
                match catch_unwind(AssertUnwindSafe(|| rounds.serve())) {
                    Ok(()) => break,
                    // A bug, but not one to be deaf for.
                    Err(_) => log::error!("gRPC: the guard panicked; its connections are lost, it goes on"),
                }
                thread::sleep(PAUSE);
            }
        };
        let thread = thread::Builder::new().name("grpc-guard".into()).spawn(serve)?;
        Ok(Self { wake: Some(wake), thread: Some(thread) })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.wake = None;
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            log::error!("gRPC: the guard had panicked");
        }
    }
}

/// An allowance that comes back with time.
struct Bucket {
    left: i64,
    most: i64,
    per_second: i64,
    at: Instant,
}

impl Bucket {
    fn new(most: i64, per_second: i64, now: Instant) -> Self {
        Self { left: most, most, per_second, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let millis = i64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(i64::MAX);
        let back = millis.saturating_mul(self.per_second) / 1000;
        if back > 0 {
            self.at = now;
            self.add(back);
        }
    }

    fn add(&mut self, n: i64) {
        self.left = self.left.saturating_add(n).min(self.most);
    }
}

/// The head of a frame.
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn new(head: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Self { length, kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) }
    }

    fn ends(&self) -> bool {
        self.flags & END_STREAM != 0
    }
}

/// Follows frames through a stream of bytes.
#[derive(Default)]
struct Frames {
    /// Bytes of the current frame still to come.
    payload: usize,
}

impl Frames {
    /// The frame that begins at `bytes[at..]`, after the payload that does; `Err` where to stop without a whole head.
    fn next(&self, bytes: &[u8], at: usize) -> Result<(usize, Frame), usize> {
        let at = at + self.payload.min(bytes.len() - at);
        bytes[at..].first_chunk().map(|head| (at, Frame::new(*head))).ok_or(at)
    }
}

/// The calls of a connection that gRPC has, by the numbers of their streams, and what those without an answer take.
#[derive(Default)]
struct Calls {
    /// The highest number so far. A number below it begins nothing.
    last: u32,
    /// Their requests are not whole; the oldest comes first.
    asking: BTreeMap<u32, (Instant, usize)>,
    waiting: BTreeMap<u32, usize>,
    answering: BTreeSet<u32>,
    /// Bytes of those that ask and those that wait.
    held: usize,
}

impl Calls {
    fn is_empty(&self) -> bool {
        self.asking.is_empty() && self.waiting.is_empty() && self.answering.is_empty()
    }

    /// What a frame of the client makes gRPC hold; `None` if it belongs to no request.
    fn takes(&self, frame: &Frame) -> Option<usize> {
        match frame.kind {
            kind::HEADERS if frame.stream > self.last && frame.stream % 2 == 1 => Some(CALL + OF_HEAD * frame.length),
            kind::DATA if self.asking.contains_key(&frame.stream) => Some(frame.length),
            _ => None,
        }
    }

    /// A frame of a request passes, which makes gRPC hold so much.
    fn asks(&mut self, frame: &Frame, bytes: usize, now: Instant) {
        self.last = self.last.max(frame.stream);
        let request = self.asking.entry(frame.stream).or_insert((now, 0));
        request.1 += bytes;
        self.held += bytes;
        if frame.ends()
            && let Some((_, bytes)) = self.asking.remove(&frame.stream)
        {
            self.waiting.insert(frame.stream, bytes);
        }
    }

    /// It is no longer one that is without an answer.
    fn leave(&mut self, stream: u32) {
        let asked = self.asking.remove(&stream).map(|(_, bytes)| bytes);
        self.held -= asked.or_else(|| self.waiting.remove(&stream)).unwrap_or(0);
    }

    fn answers(&mut self, stream: u32) {
        if self.asking.contains_key(&stream) || self.waiting.contains_key(&stream) {
            self.leave(stream);
            self.answering.insert(stream);
        }
    }

    fn end(&mut self, stream: u32) {
        self.leave(stream);
        self.answering.remove(&stream);
    }
}

/// What all connections share.
struct Shared {
    /// Of work in vain.
    pool: Bucket,
    /// Bytes of calls that gRPC holds, and how many there may be.
    held: usize,
    room: usize,
    /// Requests that are not whole.
    asking: usize,
}

impl Shared {
    /// Some calls are others than before.
    fn changed<T>(&mut self, calls: &mut Calls, change: impl FnOnce(&mut Calls) -> T) -> T {
        self.held -= calls.held;
        self.asking -= calls.asking.len();
        let result = change(calls);
        self.held += calls.held;
        self.asking += calls.asking.len();
        result
    }
}

/// A client's connection.
struct Client {
    outer: Transport,
    peer: SocketAddr,
    /// Our end of the pair; none before the hello, and at the end.
    inner: Option<UnixStream>,
    /// The same when gRPC is to let go of it.
    parting: Option<UnixStream>,
    /// gRPC's end.
    theirs: Option<Theirs>,
    state: State,
    /// When it came to its state, or last made progress in it.
    since: Instant,
    /// From the client; the first `passed` bytes may go to gRPC.
    up: Vec<u8>,
    passed: usize,
    up_frames: Frames,
    /// For the client, `sent` bytes of it gone.
    down: Vec<u8>,
    sent: usize,
    /// Of what comes down, the head of a frame that is not whole yet.
    down_head: Vec<u8>,
    down_frames: Frames,
    calls: Calls,
    credit: Bucket,
    /// What it may still take without asking the pool.
    own: Bucket,
    /// It has to wait for what all share.
    paused: bool,
    /// Since when it has made more work in vain than is its own, without an answer.
    begs: Option<Instant>,
    /// It has had an answer.
    served: bool,
}

/// Our end of a pair of which gRPC has not closed its own.
struct Leaving {
    inner: UnixStream,
    id: u64,
    theirs: Theirs,
    held: usize,
    /// It has shut down.
    silent: bool,
    until: Instant,
}

/// gRPC's end of a pair: its descriptor, and what tells whether that still is it.
#[derive(Clone, Copy)]
struct Theirs {
    fd: i32,
    number: Option<u64>,
}

impl Theirs {
    fn is_open(self) -> bool {
        self.number.is_some() && poll::socket_number(self.fd) == self.number
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// TLS is being agreed on. Whether the socket has to be written to, to go on.
    Handshake {
        writes: bool,
    },
    /// It has not said hello.
    New,
    Open,
    /// Only what is left for the client is written.
    Ending,
    /// What still comes is thrown away.
    Lingering {
        budget: usize,
    },
}

#[derive(PartialEq, Eq)]
enum Step {
    Go,
    Close,
}

impl Client {
    fn new(outer: Transport, peer: SocketAddr, now: Instant) -> Self {
        let state = if outer.is_tls() { State::Handshake { writes: false } } else { State::New };
        Self {
            outer,
            peer,
            inner: None,
            parting: None,
            theirs: None,
            state,
            since: now,
            up: Vec::new(),
            passed: 0,
            up_frames: Frames::default(),
            down: Vec::new(),
            sent: 0,
            down_head: Vec::new(),
            down_frames: Frames::default(),
            calls: Calls::default(),
            credit: Bucket::new(BUDGET, PER_SECOND, now),
            own: Bucket { left: NEW, ..Bucket::new(OWN, WASTE, now) },
            paused: false,
            begs: None,
            served: false,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Handshake { .. } | State::New | State::Ending => Some(self.since + HELLO),
            State::Open => {
                let asks = self.calls.asking.first_key_value().map(|(_, (begun, _))| *begun + REQUEST);
                let takes = (!self.down.is_empty()).then(|| self.since + PATIENCE);
                asks.into_iter().chain(takes).chain(self.begs.map(|since| since + BEGGING)).min()
            }
            State::Lingering { .. } => Some(self.since + LINGER),
        }
    }

    fn outer_events(&self) -> i16 {
        let takes = match self.state {
            State::Handshake { writes } => return if writes { POLLOUT } else { POLLIN },
            // One that does not take its answers asks nothing more: gRPC would keep them all.
            State::New | State::Open => self.up.len() < UP && !self.paused && self.down.is_empty(),
            State::Ending => false,
            State::Lingering { .. } => true,
        };
        // Of one that has to wait, whether it has gone.
        let waits = if self.state == State::Ending { 0 } else { POLLRDHUP };
        let (read, write) = (if takes { POLLIN } else { waits }, if self.down.is_empty() { 0 } else { POLLOUT });
        read | write
    }

    /// Whether bytes have come that its socket does not report any more, and would be looked at.
    fn has_more(&self) -> bool {
        // What is thrown away is not even decrypted.
        let reads = matches!(self.state, State::New | State::Open) && self.outer_events() & POLLIN != 0;
        reads && self.outer.has_more()
    }

    fn inner_events(&self) -> i16 {
        // While the client does not take what is there, gRPC has to wait; it also may hang up meanwhile.
        let (read, write) = (if self.down.is_empty() { POLLIN } else { 0 }, if self.passed > 0 { POLLOUT } else { 0 });
        read | write
    }

    fn shakes_hands(&self) -> bool {
        matches!(self.state, State::Handshake { .. })
    }

    /// Goes on with the handshake. True when it is done.
    fn greet(&mut self, now: Instant) -> Result<bool, Step> {
        let failed = match self.outer.handshake() {
            Handshake::Done if self.outer.protocol() == Some(b"h2") => {
                self.state = State::New;
                return Ok(true);
            }
            Handshake::Reads => {
                self.state = State::Handshake { writes: false };
                return Ok(false);
            }
            Handshake::Writes => {
                self.state = State::Handshake { writes: true };
                return Ok(false);
            }
            Handshake::Done => "it does not offer HTTP/2 (ALPN)".into(),
            Handshake::Plain => "it speaks without TLS".into(),
            Handshake::Failed(why) => why,
        };
        // Probes of the port connect, and say nothing.
        if self.outer.has_spoken() {
            log::warn!("gRPC: no TLS with {}: {failed}", self.peer);
        }
        Err(self.end(now))
    }

    /// Takes what the client sends.
    fn receive(&mut self, scratch: &mut [u8], now: Instant) -> Step {
        if let State::Lingering { budget } = self.state {
            return match self.outer.drain(scratch) {
                Ok(None) => Step::Go,
                Ok(Some(n @ 1..)) if n <= budget => {
                    self.state = State::Lingering { budget: budget - n };
                    Step::Go
                }
                Ok(Some(_)) | Err(_) => Step::Close,
            };
        }
        let room = UP.saturating_sub(self.up.len());
        if room == 0 {
            return Step::Go;
        }
        match self.outer.read(&mut scratch[..room]) {
            Ok(None) => Step::Go,
            Ok(Some(0)) | Err(_) => Step::Close,
            Ok(Some(n)) => {
                self.up.extend_from_slice(&scratch[..n]);
                if self.state == State::Open {
                    self.since = now;
                }
                Step::Go
            }
        }
    }

    /// Whether the hello is whole; `None` if it is none.
    fn hello(&self) -> Option<bool> {
        let start = self.up.len().min(PREFACE.len());
        if self.up[..start] != PREFACE[..start] {
            return None;
        }
        match self.up.get(PREFACE.len() + 3) {
            Some(&kind::SETTINGS) => Some(self.up.len() >= PREFACE.len() + HEAD),
            Some(_) => None,
            None => Some(false),
        }
    }

    /// Lets pass what has been paid for, and what there is room for. False when the client has used up its credit.
    fn pass(&mut self, shared: &mut Shared, now: Instant) -> bool {
        if self.state != State::Open {
            return true;
        }
        self.credit.refill(now);
        self.own.refill(now);
        self.paused = false;
        let mut at = self.passed;
        loop {
            let (start, frame) = match self.up_frames.next(&self.up, at) {
                Err(end) => {
                    self.up_frames.payload -= end - at;
                    self.passed = end;
                    return true;
                }
                Ok(frame) => frame,
            };
            let takes = self.calls.takes(&frame);
            let price = match frame.kind {
                kind::HEADERS if takes.is_some() => 0,
                kind::DATA if takes.is_some() && (frame.ends() || frame.length >= CRUMB) => 0,
                kind::SETTINGS if frame.flags & ACK != 0 => WINDOW,
                kind::WINDOW_UPDATE => WINDOW,
                _ => WASTE,
            };
            let waste = if price == WASTE { price } else { 0 };
            let pays = waste.min(self.own.left);
            let fits = match takes {
                None => true,
                Some(bytes) => {
                    let begins = frame.kind == kind::HEADERS && !frame.ends();
                    let has_place = !begins || self.calls.asking.is_empty() || shared.asking < ASKING;
                    let room = shared.held < shared.room && shared.pool.left > 0;
                    has_place && (room || self.calls.held + bytes <= OWN_ROOM)
                }
            };
            // It may be less than nothing.
            let begs = waste > pays && shared.pool.left < waste - pays;
            if begs {
                self.begs.get_or_insert(now);
            }
            if !fits || begs {
                self.paused = true;
                self.up_frames.payload = 0;
                self.passed = start;
                return true;
            }
            self.own.left -= pays;
            shared.pool.left -= waste - pays;
            self.credit.left -= price;
            if self.credit.left < 0 {
                return false;
            }
            if let Some(bytes) = takes {
                shared.changed(&mut self.calls, |calls| calls.asks(&frame, bytes, now));
            } else if frame.kind == kind::RST_STREAM {
                shared.changed(&mut self.calls, |calls| calls.end(frame.stream));
            }
            self.up_frames.payload = frame.length;
            at = start + HEAD;
        }
    }

    /// Hands gRPC what has passed.
    fn feed(&mut self) -> Step {
        let Some(inner) = &mut self.inner else { return Step::Go };
        while self.passed > 0 {
            match inner.write(&self.up[..self.passed]) {
                Ok(0) => return Step::Close,
                Ok(n) => {
                    self.up.drain(..n);
                    self.passed -= n;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // It has hung up; what it said last is still to be read.
                Err(_) => {
                    self.up.clear();
                    self.passed = 0;
                }
            }
        }
        Step::Go
    }

    /// Takes what gRPC says, and sends it.
    fn answer(&mut self, scratch: &mut [u8], shared: &mut Shared, now: Instant) -> Step {
        let Some(inner) = self.inner.as_mut().filter(|_| self.down.is_empty()) else { return Step::Go };
        match read(inner, scratch) {
            None => Step::Go,
            Some(0) => self.end(now),
            Some(n) => {
                self.observe(&scratch[..n], shared);
                self.since = now;
                let Some(sent) = put(&mut self.outer, &scratch[..n]) else { return Step::Close };
                self.down.extend_from_slice(&scratch[sent..n]);
                Step::Go
            }
        }
    }

    /// What gRPC has done pays in, or costs.
    fn observe(&mut self, bytes: &[u8], shared: &mut Shared) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let payload = self.down_frames.payload.min(bytes.len());
            self.down_frames.payload -= payload;
            bytes = &bytes[payload..];
            let missing = (HEAD - self.down_head.len()).min(bytes.len());
            self.down_head.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            let Some(head) = self.down_head.first_chunk() else { continue };
            let frame = Frame::new(*head);
            self.down_head.clear();
            self.down_frames.payload = frame.length;
            match frame.kind {
                kind::DATA | kind::HEADERS if frame.ends() => {
                    self.served = true;
                    self.begs = None;
                    self.credit.add(ANSWERED);
                    self.own.add(ANSWERED);
                    shared.changed(&mut self.calls, |calls| calls.end(frame.stream));
                }
                kind::HEADERS => shared.changed(&mut self.calls, |calls| calls.answers(frame.stream)),
                kind::DATA if frame.length >= CRUMB => self.credit.add(DATA_SENT),
                kind::RST_STREAM => {
                    self.credit.left -= WASTE;
                    shared.changed(&mut self.calls, |calls| calls.end(frame.stream));
                }
                _ => {}
            }
        }
    }

    /// Writes what waits for the client.
    fn flush(&mut self, now: Instant) -> Step {
        match put(&mut self.outer, &self.down[self.sent..]) {
            None => return Step::Close,
            Some(n) => self.sent += n,
        }
        if self.sent < self.down.len() {
            return Step::Go;
        }
        self.down = Vec::new();
        self.sent = 0;
        if self.state == State::Ending {
            if self.outer.finish().is_err() {
                return Step::Close;
            }
            self.state = State::Lingering { budget: LINGER_BYTES };
            self.since = now;
        }
        Step::Go
    }

    /// gRPC is let go; the client gets what is left for it.
    fn end(&mut self, now: Instant) -> Step {
        self.parting = self.inner.take();
        self.up = Vec::new();
        self.passed = 0;
        self.state = State::Ending;
        self.since = now;
        self.flush(now)
    }

    /// Ends a connection that makes too much work, and says so where a frame may begin.
    fn calm(&mut self, now: Instant) -> Step {
        log::warn!("gRPC: {} resets or pings more than it has answered: its connection is ended", self.peer);
        if self.down_head.is_empty() && self.down_frames.payload == 0 {
            let reason = b"too_many_resets";
            // GOAWAY, ENHANCE_YOUR_CALM
            self.down.extend_from_slice(&[0, 0, 8 + reason.len() as u8, 7, 0, 0, 0, 0, 0]);
            self.down.extend_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 11]);
            self.down.extend_from_slice(reason);
        }
        self.end(now)
    }
}

/// The connections.
struct Rounds<'a> {
    listener: &'a TcpListener,
    tls: &'a Watched<Files>,
    handshakes: Turns,
    woken: &'a UnixStream,
    peers: &'a Peers,
    attach: &'a mut Attach,
    clients: BTreeMap<u64, Client>,
    leaving: Vec<Leaving>,
    last: u64,
    shared: Shared,
    accept_at: Instant,
    scratch: Vec<u8>,
}

impl<'a> Rounds<'a> {
    fn new(
        listener: &'a TcpListener,
        tls: &'a Watched<Files>,
        woken: &'a UnixStream,
        peers: &'a Peers,
        room: usize,
        attach: &'a mut Attach,
    ) -> Self {
        let now = Instant::now();
        peers.lock().clear();
        Self {
            listener,
            tls,
            handshakes: Turns::new(now),
            woken,
            peers,
            attach,
            clients: BTreeMap::new(),
            leaving: Vec::new(),
            last: 0,
            shared: Shared { pool: Bucket::new(POOL, POOL_PER_SECOND, now), held: 0, room, asking: 0 },
            accept_at: now,
            scratch: vec![0; DOWN],
        }
    }

    /// Serves until it is woken.
    fn serve(&mut self) {
        let mut entries: Vec<PollFd> = Vec::new();
        let (mut ids, mut handshakes): (Vec<u64>, Vec<u64>) = Default::default();
        loop {
            let now = Instant::now();
            self.shared.pool.refill(now);
            let late: Vec<u64> = self
                .clients
                .iter()
                .filter(|(_, c)| c.deadline().is_some_and(|at| at <= now))
                .map(|(&id, _)| id)
                .collect();
            late.into_iter().for_each(|id| self.remove(id, now));

            // The wake-up, the listener, two for each client, and those that are leaving.
            entries.clear();
            ids.clear();
            entries.push(poll::entry(self.woken, POLLIN));
            let resting = self.handshakes.rest_until(now).is_some();
            entries.push(wanted(self.listener, if now >= self.accept_at && !resting { POLLIN } else { 0 }));
            for (&id, client) in &self.clients {
                ids.push(id);
                let rests = resting && client.shakes_hands();
                entries.push(wanted(&client.outer, if rests { 0 } else { client.outer_events() }));
                entries.push(match &client.inner {
                    Some(inner) => wanted(inner, client.inner_events()),
                    None => nothing(),
                });
            }
            entries.extend(self.leaving.iter().map(|l| wanted(&l.inner, if l.silent { 0 } else { POLLIN })));
            if let Err(e) = poll::poll(&mut entries, self.timeout(now)) {
                log::warn!("gRPC: poll failed, closing connections: {e}");
                (0..self.clients.len().div_ceil(2)).for_each(|_| self.evict(now));
                thread::sleep(PAUSE);
                continue;
            }
            if entries[0].revents != 0 {
                return;
            }
            let now = Instant::now();
            self.shared.pool.refill(now);
            let (of_clients, of_leaving) = entries[2..].split_at(2 * ids.len());
            self.let_go(of_leaving, now);
            handshakes.clear();
            for (&id, pair) in ids.iter().zip(of_clients.chunks_exact(2)) {
                if pair[0].revents != 0 && self.clients.get(&id).is_some_and(Client::shakes_hands) {
                    handshakes.push(id);
                } else if self.look(id, pair[0].revents, pair[1].revents, now) == Step::Close {
                    self.remove(id, now);
                }
            }
            let mut turns = self.handshakes;
            turns.take(&handshakes, |id| self.greet(*id, now));
            self.handshakes = turns;
            if entries[1].revents != 0 && turns.rest_until(Instant::now()).is_none() {
                self.accept(now);
            }
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        if self.clients.values().any(Client::has_more) {
            return Some(Duration::ZERO);
        }
        let handshakes = self.handshakes.rest_until(now);
        let accept = (self.accept_at > now).then_some(self.accept_at);
        let paused = self.clients.values().any(|c| c.paused).then(|| now + SOON);
        let leaving = self.leaving.iter().map(|l| if l.silent { now + SOON } else { l.until });
        let clients = self.clients.values().filter_map(Client::deadline);
        let next = clients.chain(accept).chain(handshakes).chain(paused).chain(leaving).min();
        next.map(|at| at.saturating_duration_since(now))
    }

    /// Forgets those that have left and that gRPC is done with. There is an entry for each.
    fn let_go(&mut self, entries: &[PollFd], now: Instant) {
        let mut entries = entries.iter();
        self.leaving.retain_mut(|l| {
            let ready = entries.next().is_some_and(|e| e.revents != 0);
            l.silent |= ready && read(&mut l.inner, &mut self.scratch) == Some(0);
            // It shuts down first, and closes when it has cleared up.
            if l.until > now && (!l.silent || l.theirs.is_open()) {
                return true;
            }
            self.shared.held -= l.held;
            forget(self.peers, l.id, l.theirs);
            false
        });
    }

    /// gRPC is to let go of a connection; what it holds of that counts until it has.
    fn part(&mut self, id: u64, client: &mut Client, now: Instant) {
        let calls = self.shared.changed(&mut client.calls, std::mem::take);
        let Some(inner) = client.parting.take().or_else(|| client.inner.take()) else { return };
        let Some(theirs) = client.theirs.take() else { return };
        // It may have shut down first.
        let _ = inner.shutdown(Shutdown::Write);
        // They were begun in vain. The pool may be empty for a while then, and nobody gets more than is everybody's own.
        self.shared.pool.left -= WASTE * i64::try_from(calls.asking.len() + calls.waiting.len()).unwrap_or(0);
        self.shared.held += calls.held;
        self.leaving.push(Leaving { inner, id, theirs, held: calls.held, silent: false, until: now + PATIENCE });
    }

    /// Goes on with a handshake.
    fn greet(&mut self, id: u64, now: Instant) {
        let step = match self.clients.get_mut(&id).map(|client| client.greet(now)) {
            // The hello may have come with its end.
            Some(Ok(true)) => self.look(id, POLLIN, 0, now),
            Some(Err(step)) => step,
            Some(Ok(false)) | None => Step::Go,
        };
        if step == Step::Close {
            self.remove(id, now);
        }
    }

    fn look(&mut self, id: u64, outer: i16, inner: i16, now: Instant) -> Step {
        let Some(client) = self.clients.get_mut(&id) else { return Step::Go };
        let outer = if client.has_more() { outer | POLLIN } else { outer };
        if outer == 0 && inner == 0 && !client.paused {
            return Step::Go;
        }
        if outer & POLLIN == 0 && outer & !POLLOUT != 0 {
            return Step::Close;
        }
        let mut step = Step::Go;
        if outer & POLLOUT != 0 {
            step = client.flush(now);
        }
        if step == Step::Go && outer & POLLIN != 0 {
            step = client.receive(&mut self.scratch, now);
        }
        if step == Step::Go && client.state == State::New {
            client.paused = false;
            match client.hello() {
                None => step = Step::Close,
                Some(false) => {}
                Some(true) if self.leaving.len() >= LEAVING_MAX => client.paused = true,
                Some(true) => match introduce(id, client, self.peers, self.attach) {
                    Ok(()) => {
                        client.state = State::Open;
                        client.passed = PREFACE.len();
                        client.since = now;
                    }
                    Err(e) => {
                        log::warn!("gRPC: no socket for a client: {e}");
                        step = Step::Close;
                    }
                },
            }
        }
        if step == Step::Go && inner & !POLLOUT != 0 {
            step = client.answer(&mut self.scratch, &mut self.shared, now);
        }
        if step == Step::Go && client.state == State::Open {
            step = if client.pass(&mut self.shared, now) { client.feed() } else { client.calm(now) };
        }
        if step == Step::Go
            && client.parting.is_some()
            && let Some(mut client) = self.clients.remove(&id)
        {
            self.part(id, &mut client, now);
            self.clients.insert(id, client);
        }
        step
    }

    fn remove(&mut self, id: u64, now: Instant) {
        if let Some(mut client) = self.clients.remove(&id) {
            self.part(id, &mut client, now);
        }
    }

    /// Closes the connection that can be spared best. It is of those who have the most of them, so that nobody is put out by
    /// others who come in numbers; of these first without a hello (and before, without a word of TLS), then without any answer
    /// yet, then without calls, the one that is quiet for longest.
    fn evict(&mut self, now: Instant) {
        let mut of_network: HashMap<IpAddr, usize> = HashMap::new();
        for client in self.clients.values() {
            *of_network.entry(listen::network(client.peer.ip())).or_default() += 1;
        }
        let rank = |c: &Client| {
            let others = usize::MAX - of_network.get(&listen::network(c.peer.ip())).copied().unwrap_or(0);
            let served = c.served || !c.calls.answering.is_empty();
            let silent = c.shakes_hands() && !c.outer.has_spoken();
            (others, !silent, c.state == State::Open, served, !c.calls.is_empty(), c.since)
        };
        if let Some(id) = self.clients.iter().min_by_key(|(_, c)| rank(c)).map(|(&id, _)| id) {
            self.remove(id, now);
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS {
            match self.listener.accept() {
                Ok((outer, peer)) => {
                    if outer.set_nonblocking(true).is_err() || outer.set_nodelay(true).is_err() {
                        continue;
                    }
                    let outer = match Transport::new(outer, self.tls.current().as_deref()) {
                        Ok(outer) => outer,
                        Err(e) => {
                            log::warn!("gRPC: no TLS for a new connection: {e}");
                            continue;
                        }
                    };
                    while self.clients.len() >= CLIENTS_MAX {
                        self.evict(now);
                    }
                    self.last += 1;
                    self.clients.insert(self.last, Client::new(outer, listen::plain(peer), now));
                    // At once: a client that has said hello is not in the way of those that come after it. Handshakes have turns.
                    if !self.clients.get(&self.last).is_some_and(Client::shakes_hands)
                        && self.look(self.last, POLLIN, 0, now) == Step::Close
                    {
                        self.remove(self.last, now);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    log::warn!("gRPC: cannot accept, closing idle connections to make room: {e}");
                    (0..4).for_each(|_| self.evict(now));
                    self.accept_at = now + PAUSE;
                    return;
                }
            }
        }
    }
}

/// Has gRPC serve a client.
fn introduce(id: u64, client: &mut Client, peers: &Peers, attach: &mut Attach) -> io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let fd = theirs.as_raw_fd();
    client.theirs = Some(Theirs { fd, number: poll::socket_number(fd) });
    peers.lock().insert(fd, (id, client.peer));
    attach(theirs, client.peer);
    client.inner = Some(ours);
    Ok(())
}

/// gRPC has closed its end of a connection.
fn forget(peers: &Peers, id: u64, theirs: Theirs) {
    let mut peers = peers.lock();
    if peers.get(&theirs.fd).is_some_and(|(of, _)| *of == id) {
        peers.remove(&theirs.fd);
    }
}

/// An entry that reports nothing at all when no event is wanted: poll would report a hang-up again and again.
fn wanted(socket: &impl AsRawFd, events: i16) -> PollFd {
    if events == 0 { nothing() } else { poll::entry(socket, events) }
}

fn nothing() -> PollFd {
    PollFd { fd: -1, events: 0, revents: 0 }
}

/// Writes what a client takes now, and tells how much; `None` for a broken connection.
fn put(to: &mut Transport, bytes: &[u8]) -> Option<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match to.write(&bytes[sent..]) {
            Ok(0) => return None,
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    Some(sent)
}

/// Bytes read; 0 at the end and for a broken connection, `None` if there are none now.
fn read(from: &mut impl Read, to: &mut [u8]) -> Option<usize> {
    if to.is_empty() {
        return None;
    }
    loop {
        match from.read(to) {
            Ok(n) => return Some(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Some(0),
        }
    }
}

/// Bytes of a client and of gRPC, in pieces: what passes is what came, and the verdict is the same however it is cut.
/// The first byte is the length of a piece.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    use std::net::TcpStream;
    static SOCKET: std::sync::LazyLock<(TcpListener, TcpStream)> = std::sync::LazyLock::new(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection to it");
        (listener, client)
    });
    let Some((&piece, bytes)) = data.split_first() else { return };
    let now = Instant::now();
    let shared = || Shared { pool: Bucket::new(i64::MAX / 4, 0, now), held: 0, room: usize::MAX, asking: 0 };
    let run = |piece: usize| {
        let peer = SocketAddr::from(([127, 0, 0, 1], 7));
        let mut client = Client::new(Transport::Plain(SOCKET.1.try_clone().expect("a descriptor")), peer, now);
        let mut shared = shared();
        let mut passed = Vec::new();
        let mut calm = true;
        for piece in bytes.chunks(piece.max(1)) {
            client.up.extend_from_slice(piece);
            if client.state == State::New {
                match client.hello() {
                    None => return (passed, false),
                    Some(false) => continue,
                    Some(true) => (client.state, client.passed) = (State::Open, PREFACE.len()),
                }
            }
            calm = client.pass(&mut shared, now);
            if !calm {
                break;
            }
            assert!(client.passed <= client.up.len());
            passed.extend(client.up.drain(..client.passed));
            client.passed = 0;
            assert_eq!((shared.held, shared.asking), (client.calls.held, client.calls.asking.len()));
            if client.paused {
                break; // wherever it is cut, at the same frame
            }
            // Less than a head is held back.
            assert!(client.up.len() < HEAD);
        }
        assert!(bytes.starts_with(&passed));
        (passed, calm)
    };
    let (whole, cut) = (run(bytes.len()), run(piece.into()));
    assert_eq!(whole.1, cut.1);
    if whole.1 {
        assert_eq!(whole.0, cut.0);
    }
    let heard = |piece: usize| {
        let peer = SocketAddr::from(([127, 0, 0, 1], 7));
        let mut client = Client::new(Transport::Plain(SOCKET.1.try_clone().expect("a descriptor")), peer, now);
        let mut shared = shared();
        bytes.chunks(piece.max(1)).for_each(|piece| client.observe(piece, &mut shared));
        assert!(client.down_head.len() < HEAD);
        (client.credit.left, client.own.left, client.served, client.down_frames.payload, client.down_head)
    };
    assert_eq!(heard(bytes.len()), heard(piece.into()));
}
