//! What clients without TLS can reach of gRPC: one thread that owns the public listener and every connection, reads the
//! heads of HTTP/2's frames as they pass, and ends a connection that makes work without end. gRPC's core of 2023 does not:
//! it begins a call for each HEADERS, however fast RST_STREAM takes it back (CVE-2023-44487), and has no bound on connections.
//!
//! ```text
//!  client ── TCP ──> up: whole frame heads only, each with its price ──> socket pair ── gRPC
//!         <───────── down: as it comes; what has been answered pays in        <──
//! ```
//! gRPC has its end of the pair only when a client has said hello in HTTP/2. Its own limits (idleness, age, keepalive,
//! streams, bytes of requests and of answers) hold behind the guard as before.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::ebpf::poll::{self, POLLIN, POLLOUT, PollFd};
use crate::server::listen;

/// Most client connections; a further one takes the place of one that has been quiet for longest.
const CLIENTS_MAX: usize = 256;
/// Time to say hello; time to take a bit of what is left when gRPC has hung up.
const HELLO: Duration = Duration::from_secs(10);
/// Time for a client to take what is sent to it.
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

/// Work that a connection may make in vain at once (as frames that reset, ping or set, or that gRPC answers by a reset), and
/// each second on and on. 256 honest calls may be given up together.
const BUDGET: i64 = 256 * WASTE;
const PER_SECOND: i64 = 16 * WASTE;
/// What a frame costs of it that makes work and ends nothing; one that opens a window, of which answers take many.
const WASTE: i64 = 4;
const WINDOW: i64 = 1;
/// What an answered call and a frame of an answer bring.
const ANSWERED: i64 = 4;
const DATA_SENT: i64 = 2;
/// The same for all connections together, beyond what each has for itself: a client that comes again is not free. It is no end,
/// but a pause: 1000 calls made in vain take about a tenth of a CPU.
const POOL: i64 = 512 * WASTE;
const POOL_PER_SECOND: i64 = 1000 * WASTE;
const OWN: i64 = 16 * WASTE;

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
    /// Serves `listener`.
    pub fn start(listener: TcpListener, peers: Peers, mut attach: Box<Attach>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (wake, woken) = UnixStream::pair()?;
        let serve = move || {
            loop {
                let mut rounds = Rounds::new(&listener, &woken, &peers, attach.as_mut());
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
        match bytes[at..] {
            [a, b, c, kind, flags, _, _, _, _, ..] => {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                Ok((at, Frame { length, kind, flags }))
            }
            _ => Err(at),
        }
    }
}

/// A client's connection.
struct Client {
    outer: TcpStream,
    peer: SocketAddr,
    /// Our end of the pair; none before the hello, and at the end.
    inner: Option<UnixStream>,
    /// The number of gRPC's end.
    fd: Option<i32>,
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
    /// Calls begun and not ended, about.
    calls: u32,
    credit: Bucket,
    /// What it may still take without asking the pool.
    own: Bucket,
    /// The pool was empty.
    paused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
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
    fn new(outer: TcpStream, peer: SocketAddr, now: Instant) -> Self {
        Self {
            outer,
            peer,
            inner: None,
            fd: None,
            state: State::New,
            since: now,
            up: Vec::new(),
            passed: 0,
            up_frames: Frames::default(),
            down: Vec::new(),
            sent: 0,
            down_head: Vec::new(),
            down_frames: Frames::default(),
            calls: 0,
            credit: Bucket::new(BUDGET, PER_SECOND, now),
            own: Bucket::new(OWN, WASTE, now),
            paused: false,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::New | State::Ending => Some(self.since + HELLO),
            State::Open => (!self.down.is_empty()).then(|| self.since + PATIENCE),
            State::Lingering { .. } => Some(self.since + LINGER),
        }
    }

    fn outer_events(&self) -> i16 {
        let takes = match self.state {
            State::New | State::Open => self.up.len() < UP && !self.paused,
            State::Ending => false,
            State::Lingering { .. } => true,
        };
        let (read, write) = (if takes { POLLIN } else { 0 }, if self.down.is_empty() { 0 } else { POLLOUT });
        read | write
    }

    fn inner_events(&self) -> i16 {
        // While the client does not take what is there, gRPC has to wait; it also may hang up meanwhile.
        let (read, write) = (if self.down.is_empty() { POLLIN } else { 0 }, if self.passed > 0 { POLLOUT } else { 0 });
        read | write
    }

    /// Takes what the client sends.
    fn receive(&mut self, scratch: &mut [u8], now: Instant) -> Step {
        if let State::Lingering { budget } = self.state {
            return match read(&mut self.outer, scratch) {
                Some(0) => Step::Close,
                Some(n) if n > budget => Step::Close,
                Some(n) => {
                    self.state = State::Lingering { budget: budget - n };
                    Step::Go
                }
                None => Step::Go,
            };
        }
        let room = UP.saturating_sub(self.up.len());
        match read(&mut self.outer, &mut scratch[..room]) {
            Some(0) => Step::Close,
            Some(n) => {
                self.up.extend_from_slice(&scratch[..n]);
                if self.state == State::Open && self.down.is_empty() {
                    self.since = now;
                }
                Step::Go
            }
            None => Step::Go,
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

    /// Lets pass what has been paid for. False when the client has used up its credit.
    fn pass(&mut self, pool: &mut Bucket, now: Instant) -> bool {
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
            let price = match frame.kind {
                kind::HEADERS => 0,
                kind::DATA if frame.length > 0 || frame.flags & END_STREAM != 0 => 0,
                kind::SETTINGS if frame.flags & ACK != 0 => WINDOW,
                kind::WINDOW_UPDATE => WINDOW,
                _ => WASTE,
            };
            if price == WASTE {
                let pays = price.min(self.own.left);
                if pool.left < price - pays {
                    self.paused = true;
                    self.up_frames.payload = 0;
                    self.passed = start;
                    return true;
                }
                self.own.left -= pays;
                pool.left -= price - pays;
            }
            self.credit.left -= price;
            if self.credit.left < 0 {
                return false;
            }
            match frame.kind {
                kind::HEADERS => self.calls += 1,
                kind::RST_STREAM => self.calls = self.calls.saturating_sub(1),
                _ => {}
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
    fn answer(&mut self, scratch: &mut [u8], now: Instant) -> Step {
        let Some(inner) = self.inner.as_mut().filter(|_| self.down.is_empty()) else { return Step::Go };
        match read(inner, scratch) {
            None => Step::Go,
            Some(0) => self.end(now),
            Some(n) => {
                self.observe(&scratch[..n]);
                self.since = now;
                let sent = match self.outer.write(&scratch[..n]) {
                    Ok(sent) => sent,
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                    Err(_) => return Step::Close,
                };
                self.down.extend_from_slice(&scratch[sent..n]);
                Step::Go
            }
        }
    }

    /// What gRPC has done pays in, or costs.
    fn observe(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let payload = self.down_frames.payload.min(bytes.len());
            self.down_frames.payload -= payload;
            bytes = &bytes[payload..];
            let missing = (HEAD - self.down_head.len()).min(bytes.len());
            self.down_head.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.down_head.len() < HEAD {
                continue;
            }
            let head = std::mem::take(&mut self.down_head);
            self.down_frames.payload = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let ends = head[4] & END_STREAM != 0;
            match head[3] {
                kind::DATA | kind::HEADERS if ends => {
                    self.credit.add(ANSWERED);
                    self.own.add(ANSWERED);
                    self.calls = self.calls.saturating_sub(1);
                }
                kind::DATA => self.credit.add(DATA_SENT),
                kind::RST_STREAM => self.credit.left -= WASTE,
                _ => {}
            }
        }
    }

    /// Writes what waits for the client.
    fn flush(&mut self, now: Instant) -> Step {
        while self.sent < self.down.len() {
            match self.outer.write(&self.down[self.sent..]) {
                Ok(0) => return Step::Close,
                Ok(n) => {
                    self.sent += n;
                    self.since = now;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Step::Go,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Step::Close,
            }
        }
        self.down = Vec::new();
        self.sent = 0;
        if self.state == State::Ending {
            if self.outer.shutdown(Shutdown::Write).is_err() {
                return Step::Close;
            }
            self.state = State::Lingering { budget: LINGER_BYTES };
            self.since = now;
        }
        Step::Go
    }

    /// gRPC is let go; the client gets what is left for it.
    fn end(&mut self, now: Instant) -> Step {
        self.inner = None;
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
    woken: &'a UnixStream,
    peers: &'a Peers,
    attach: &'a mut Attach,
    clients: BTreeMap<u64, Client>,
    last: u64,
    pool: Bucket,
    accept_at: Instant,
    scratch: Vec<u8>,
}

impl<'a> Rounds<'a> {
    fn new(listener: &'a TcpListener, woken: &'a UnixStream, peers: &'a Peers, attach: &'a mut Attach) -> Self {
        let now = Instant::now();
        peers.lock().clear();
        Self {
            listener,
            woken,
            peers,
            attach,
            clients: BTreeMap::new(),
            last: 0,
            pool: Bucket::new(POOL, POOL_PER_SECOND, now),
            accept_at: now,
            scratch: vec![0; DOWN],
        }
    }

    /// Serves until it is woken.
    fn serve(&mut self) {
        let mut entries: Vec<PollFd> = Vec::new();
        let mut ids = Vec::new();
        loop {
            let now = Instant::now();
            self.pool.refill(now);
            let late: Vec<u64> = self
                .clients
                .iter()
                .filter(|(_, c)| c.deadline().is_some_and(|at| at <= now))
                .map(|(&id, _)| id)
                .collect();
            late.into_iter().for_each(|id| self.remove(id));

            // The wake-up, the listener, and two for each client.
            entries.clear();
            ids.clear();
            entries.push(poll::entry(self.woken, POLLIN));
            entries.push(wanted(self.listener, if now >= self.accept_at { POLLIN } else { 0 }));
            for (&id, client) in &self.clients {
                ids.push(id);
                entries.push(wanted(&client.outer, client.outer_events()));
                entries.push(match &client.inner {
                    Some(inner) => wanted(inner, client.inner_events()),
                    None => nothing(),
                });
            }
            if let Err(e) = poll::poll(&mut entries, self.timeout(now)) {
                log::warn!("gRPC: poll failed, closing connections: {e}");
                (0..self.clients.len().div_ceil(2)).for_each(|_| self.evict());
                thread::sleep(PAUSE);
                continue;
            }
            if entries[0].revents != 0 {
                return;
            }
            let now = Instant::now();
            self.pool.refill(now);
            for (&id, pair) in ids.iter().zip(entries[2..].chunks_exact(2)) {
                if self.look(id, pair[0].revents, pair[1].revents, now) == Step::Close {
                    self.remove(id);
                }
            }
            if entries[1].revents != 0 {
                self.accept(now);
            }
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        let accept = (self.accept_at > now).then_some(self.accept_at);
        let paused = self.clients.values().any(|c| c.paused).then(|| now + Duration::from_millis(10));
        let next = self.clients.values().filter_map(Client::deadline).chain(accept).chain(paused).min();
        next.map(|at| at.saturating_duration_since(now))
    }

    fn look(&mut self, id: u64, outer: i16, inner: i16, now: Instant) -> Step {
        let Some(client) = self.clients.get_mut(&id) else { return Step::Go };
        if outer == 0 && inner == 0 && !client.paused {
            return Step::Go;
        }
        let mut step = Step::Go;
        if outer & POLLOUT != 0 {
            step = client.flush(now);
        }
        if step == Step::Go && outer & !POLLOUT != 0 {
            step = client.receive(&mut self.scratch, now);
        }
        if step == Step::Go && client.state == State::New {
            match client.hello() {
                None => step = Step::Close,
                Some(false) => {}
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
            step = client.answer(&mut self.scratch, now);
        }
        if step == Step::Go && client.state == State::Open {
            step = if client.pass(&mut self.pool, now) { client.feed() } else { client.calm(now) };
        }
        step
    }

    fn remove(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else { return };
        if let Some(fd) = client.fd {
            let mut peers = self.peers.lock();
            if peers.get(&fd).is_some_and(|(of, _)| *of == id) {
                peers.remove(&fd);
            }
        }
    }

    /// Closes the connection that can be spared best: first those without a hello, then those without calls, the one that is
    /// quiet for longest.
    fn evict(&mut self) {
        let rank = |c: &Client| (c.state == State::Open, c.calls > 0, c.since);
        if let Some(id) = self.clients.iter().min_by_key(|(_, c)| rank(c)).map(|(&id, _)| id) {
            self.remove(id);
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS {
            match self.listener.accept() {
                Ok((outer, peer)) => {
                    if outer.set_nonblocking(true).is_err() || outer.set_nodelay(true).is_err() {
                        continue;
                    }
                    while self.clients.len() >= CLIENTS_MAX {
                        self.evict();
                    }
                    self.last += 1;
                    self.clients.insert(self.last, Client::new(outer, listen::plain(peer), now));
                    // At once: a client that has said hello is not in the way of those that come after it.
                    if self.look(self.last, POLLIN, 0, now) == Step::Close {
                        self.remove(self.last);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    log::warn!("gRPC: cannot accept, closing idle connections to make room: {e}");
                    (0..4).for_each(|_| self.evict());
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
    peers.lock().insert(fd, (id, client.peer));
    attach(theirs, client.peer);
    (client.inner, client.fd) = (Some(ours), Some(fd));
    Ok(())
}

/// An entry that reports nothing at all when no event is wanted: poll would report a hang-up again and again.
fn wanted(socket: &impl AsRawFd, events: i16) -> PollFd {
    if events == 0 { nothing() } else { poll::entry(socket, events) }
}

fn nothing() -> PollFd {
    PollFd { fd: -1, events: 0, revents: 0 }
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
    static SOCKET: std::sync::LazyLock<(TcpListener, TcpStream)> = std::sync::LazyLock::new(|| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection to it");
        (listener, client)
    });
    let Some((&piece, bytes)) = data.split_first() else { return };
    let now = Instant::now();
    let run = |piece: usize| {
        let peer = SocketAddr::from(([127, 0, 0, 1], 7));
        let mut client = Client::new(SOCKET.1.try_clone().expect("a descriptor"), peer, now);
        let mut pool = Bucket::new(i64::MAX / 4, 0, now);
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
            calm = client.pass(&mut pool, now);
            if !calm {
                break;
            }
            assert!(client.passed <= client.up.len());
            passed.extend(client.up.drain(..client.passed));
            client.passed = 0;
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
        let mut client = Client::new(SOCKET.1.try_clone().expect("a descriptor"), peer, now);
        bytes.chunks(piece.max(1)).for_each(|piece| client.observe(piece));
        assert!(client.down_head.len() < HEAD);
        (client.credit.left, client.own.left, client.calls, client.down_frames.payload, client.down_head)
    };
    assert_eq!(heard(bytes.len()), heard(piece.into()));
}
