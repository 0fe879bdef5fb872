//! The only thing clients can reach: one thread that owns the public listener and every client connection,
//! bounds what each may take of time and memory, and passes complete requests to tiny_http.
//!
//! ```text
//!           first byte      blank line        known          last byte of the body
//!  Waiting ───────────> Head ───────> Login ───────────> Body ───────────────────> InWork
//!     ^                   │ bad, too large, too late, unknown                         │ answer
//!     │                   v                                                           v
//!     └─ keep-alive ─ Writing <───────────────────────────────────────────────────────┘
//!                         │ otherwise
//!                         v
//!                     Lingering ──> closed
//! ```
//! With TLS a connection begins in Handshake instead. Who may ask without a password leaves Login at once.
//! A request for the stream leads from Body to Streaming instead, which ends with the connection.
//! Nothing is read while a request is in work or its answer is being written: pipelined requests wait in the
//! input buffer, and behind it in the socket.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use super::access::{Access, Policy, Tokens};
use super::gateway::Ticks;
use super::hosts::Hosts;
use super::inner::{Answer, Inner, Lane};
use super::login::{self, Attempt, Known, Login, Place};
use super::request::{self, HEAD_MAX, Head, Reply};
use super::{failure, header};
use crate::ebpf::poll::{self, POLLIN, POLLOUT, POLLRDHUP, PollFd};
use crate::metrics::http::COUNTS;
use crate::server::listen;
use crate::server::transport::{Handshake, Transport, Turns};

/// Most client connections.
const CLIENTS_MAX: usize = 128;
/// Most bytes of answers that wait for slow readers.
const ANSWERS_MAX: usize = 8 << 20;
/// Time without any request, on a new connection or between two requests.
const IDLE: Duration = Duration::from_secs(75);
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time from the first byte of a request to its last.
const REQUEST: Duration = Duration::from_secs(5);
/// Time for tiny_http to answer: far more than any page takes.
const WORK: Duration = Duration::from_secs(10);
/// Time for a client to read its answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Time and bytes for a client to finish sending after the last answer. Closing earlier would reset the
/// connection, and the client might lose the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 2 << 20;
/// Complete requests waiting for tiny_http that are many. Further connections are then taken slowly, and wait
/// their turn in the backlog: accepted, they would push each other out before they have sent a thing.
const QUEUE_LONG: usize = CLIENTS_MAX / 2;
/// Connections accepted in one round, with a long queue, and the time between rounds then.
const ACCEPTS: usize = 64;
const ACCEPTS_SLOW: usize = 16;
const ROUND_SLOW: Duration = Duration::from_millis(10);
/// Descriptors held in reserve, to be accepted on when there are no others.
const RESERVE: usize = 8;
/// Connections fewer than when descriptors ran out, so that some are free for the rest of the agent; and for
/// how long.
const FEWER: usize = 8;
const FEWER_FOR: Duration = Duration::from_secs(10);
/// Time without accepting when that failed and no room could be made.
const PAUSE: Duration = Duration::from_millis(100);
/// Time that requests in work have when the server is stopped.
const STOP: Duration = Duration::from_millis(500);
/// Time between two equal complaints.
const COMPLAINT: Duration = Duration::from_secs(60);

/// Streams at a time.
const STREAMS_MAX: usize = 16;
/// Time for a client to read a line of its stream.
const STREAM_PATIENCE: Duration = Duration::from_secs(60);

/// Requests whose answers take long to make that may wait, while one is being made.
const DEAR_MAX: usize = 4;

/// Opens the stream that a query asks for, or says why there is none: status code and message.
pub type OpenStream = dyn Fn(&str) -> Result<Ticks, (u16, String)> + Send;

/// Serves until the other end of `woken` is closed. Each tiny_http that is started goes to `servers`.
pub fn run(
    listener: &TcpListener,
    woken: &UnixStream,
    inner: (Arc<Inner>, Vec<Lane>),
    servers: &Sender<Arc<Inner>>,
    open_stream: &OpenStream,
    hosts: Option<&Hosts>,
    (access, mut login): (&Access, Login),
) {
    let mut first = Some(inner);
    loop {
        let mut front = Front::new(listener, woken, servers, open_stream, hosts.cloned(), (access, &mut login));
        if let Some(inner) = first.take() {
            front.install(inner);
        }
        match catch_unwind(AssertUnwindSafe(|| front.serve())) {
            Ok(()) => break,
            // A bug, but not one to be deaf for.
            Err(_) => log::error!("HTTP: the front panicked; its connections are lost, it goes on"),
        }
        front.lose_inner();
        thread::sleep(PAUSE);
    }
}

struct Client {
    stream: Transport,
    peer: SocketAddr,
    state: State,
    /// The names under which the agent may be asked.
    hosts: Option<Hosts>,
    /// When it came to its state; for `Body`, when the request began.
    since: Instant,
    /// Received and not used yet; at most `HEAD_MAX` bytes.
    input: Vec<u8>,
    /// It has ended its sending side while its request was in work. It may still read, but nearly all that do this
    /// are gone: others come first.
    leaving: bool,
    /// What is added to the head of each answer, by name.
    headers: Arc<Policy>,
}

enum State {
    /// TLS is being agreed on. Whether the socket has to be written to, to go on.
    Handshake { writes: bool },
    /// No byte of a request yet.
    Waiting,
    /// Part of a head, searched for its end up to here.
    Head { searched: usize },
    /// A complete head. Who asks has to be known; an attempt is being checked, or waits for that.
    Login { head: Box<Head>, attempt: Option<Box<Attempt>> },
    /// A head, what is missing of the body, and what is there of it if a route wants it.
    Body { head: Box<Head>, missing: usize, body: Vec<u8> },
    /// A stream of lines.
    Streaming(Box<Streaming>),
    /// The request is complete: it waits for a free lane, or tiny_http has it (then it is `None` here).
    InWork { request: Option<Vec<u8>>, reply: Reply },
    /// Writing an answer.
    Writing { bytes: Vec<u8>, sent: usize, keep_alive: bool },
    /// Answered for the last time: what still comes is thrown away.
    Lingering { budget: usize },
}

/// A stream of lines, each sent only when those before have been.
struct Streaming {
    /// The query that asks for it, until it is opened.
    query: Option<String>,
    ticks: Option<Ticks>,
    /// HTTP/1.1: each line is a chunk.
    chunked: bool,
    /// When the next lines are due.
    due: Instant,
    bytes: Vec<u8>,
    sent: usize,
    /// When the client last took something.
    progress: Instant,
}

impl Streaming {
    fn is_pending(&self) -> bool {
        self.sent < self.bytes.len()
    }

    /// Makes the lines that are due, unless earlier ones wait.
    fn tick(&mut self, now: Instant) {
        let Some(ticks) = self.ticks.as_mut().filter(|_| self.due <= now) else { return };
        // Ticks that were missed are not made up for.
        while self.due <= now {
            self.due += ticks.interval;
        }
        if self.sent < self.bytes.len() {
            return;
        }
        let lines = (ticks.next)();
        self.bytes.clear();
        self.sent = 0;
        self.progress = now;
        if !lines.is_empty() {
            self.add(lines.as_bytes());
        }
    }

    fn add(&mut self, lines: &[u8]) {
        if self.chunked {
            self.bytes.extend_from_slice(format!("{:x}\r\n", lines.len()).as_bytes());
        }
        self.bytes.extend_from_slice(lines);
        if self.chunked {
            self.bytes.extend_from_slice(b"\r\n");
        }
    }
}

/// What has become of a client.
#[derive(PartialEq, Eq)]
enum Step {
    /// It waits: for its socket, for tiny_http, or for time to pass.
    Wait,
    /// It is finished.
    Close,
}

impl Client {
    fn enter(&mut self, state: State) {
        self.state = state;
        self.since = Instant::now();
    }

    /// When its patience ends.
    fn deadline(&self) -> Instant {
        if let State::Streaming(stream) = &self.state {
            return if stream.is_pending() { stream.progress + STREAM_PATIENCE } else { stream.due };
        }
        self.since
            + match self.state {
                State::Handshake { .. } => HANDSHAKE,
                State::Waiting => IDLE,
                State::Head { .. } | State::Body { .. } => REQUEST,
                State::Login { .. } | State::InWork { .. } => WORK,
                State::Writing { .. } => ANSWER,
                State::Lingering { .. } => LINGER,
                State::Streaming(_) => STREAM_PATIENCE, // has times of its own, see above
            }
    }

    fn events(&self) -> i16 {
        match self.state {
            State::Handshake { writes: true } => POLLOUT,
            State::Login { .. } | State::InWork { .. } if self.leaving => 0,
            State::Login { .. } | State::InWork { .. } => POLLRDHUP,
            State::Writing { .. } => POLLOUT,
            State::Streaming(ref stream) if stream.is_pending() => POLLIN | POLLOUT,
            _ => POLLIN,
        }
    }

    /// How willingly its place is given to another: low goes first.
    fn rank(&self) -> u8 {
        match self.state {
            State::Lingering { .. } | State::Handshake { .. } => 0,
            State::Login { .. } | State::Waiting | State::Head { .. } | State::Body { .. } => 1,
            State::InWork { request: Some(_), .. } if self.leaving => 1,
            State::Writing { .. } | State::Streaming(_) => 2,
            State::InWork { .. } => 3,
        }
    }

    /// Whether it waits for an answer that takes long to make.
    fn is_dear(&self) -> bool {
        matches!(self.state, State::InWork { reply, .. } if reply.dear)
    }

    /// Its socket has these events to report.
    fn ready(&mut self, events: i16, scratch: &mut [u8]) -> Step {
        match &mut self.state {
            State::Handshake { .. } => self.greet(scratch),
            State::Waiting | State::Head { .. } | State::Body { .. } => self.receive(scratch),
            State::Writing { .. } => self.flush(),
            State::Streaming(_) => {
                // What a client sends after its request has no meaning; that it ends does.
                let left = events & !POLLOUT != 0 && !matches!(self.stream.read(scratch), Ok(None | Some(1..)));
                if left { Step::Close } else { self.flush_stream() }
            }
            State::Login { .. } | State::InWork { .. } if events == POLLRDHUP => {
                self.leaving = true;
                Step::Wait
            }
            // The connection is gone in both directions.
            State::Login { .. } | State::InWork { .. } => Step::Close,
            State::Lingering { budget } => match self.stream.drain(scratch) {
                Ok(Some(0)) | Err(_) => Step::Close,
                Ok(None) => Step::Wait,
                Ok(Some(n)) if n > *budget => Step::Close,
                Ok(Some(n)) => {
                    *budget -= n;
                    Step::Wait
                }
            },
        }
    }

    /// Whether bytes have come that its socket does not report any more, and would be looked at.
    fn has_more(&self) -> bool {
        let reads =
            matches!(self.state, State::Waiting | State::Head { .. } | State::Body { .. } | State::Streaming(_));
        reads && self.stream.has_more()
    }

    /// Goes on with the handshake.
    fn greet(&mut self, scratch: &mut [u8]) -> Step {
        match self.stream.handshake() {
            Handshake::Done => {
                self.enter(State::Waiting);
                self.receive(scratch)
            }
            Handshake::Reads => {
                self.state = State::Handshake { writes: false };
                Step::Wait
            }
            Handshake::Writes => {
                self.state = State::Handshake { writes: true };
                Step::Wait
            }
            Handshake::Plain => self.refuse((400, "this port speaks TLS: ask https:// instead of http://")),
            Handshake::Failed(_) => self.linger(),
        }
    }

    fn receive(&mut self, scratch: &mut [u8]) -> Step {
        let room = HEAD_MAX.saturating_sub(self.input.len()).min(scratch.len());
        match self.stream.read(&mut scratch[..room]) {
            Ok(None) => Step::Wait,
            Ok(Some(0)) | Err(_) => Step::Close,
            Ok(Some(n)) => {
                self.input.extend_from_slice(&scratch[..n]);
                self.advance()
            }
        }
    }

    /// Goes as far as the input reaches.
    fn advance(&mut self) -> Step {
        loop {
            match &mut self.state {
                State::Waiting => {
                    // Empty lines between requests are allowed.
                    let blank = self.input.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
                    self.input.drain(..blank);
                    match self.input.first() {
                        None => return Step::Wait,
                        Some(&byte) if request::may_begin(byte) => self.enter(State::Head { searched: 0 }),
                        Some(_) => return self.refuse((400, "not an HTTP request")),
                    }
                }
                State::Head { searched } => match request::end_of_head(&self.input, *searched) {
                    None if self.input.len() >= HEAD_MAX => {
                        return self.refuse((431, "a request head has at most 16 KiB"));
                    }
                    None => {
                        *searched = self.input.len();
                        return Step::Wait;
                    }
                    Some(end) => match request::parse(&self.input[..end]) {
                        Err(refusal) => return self.refuse(refusal),
                        Ok(head) => {
                            if let Some(refusal) = self.hosts.as_ref().and_then(|hosts| head.foreign(hosts)) {
                                return self.refuse(refusal);
                            }
                            self.input.drain(..end);
                            // Not `enter`: the time for a request is one for head and body.
                            self.state = State::Login { head: Box::new(head), attempt: None };
                            return Step::Wait;
                        }
                    },
                },
                State::Body { head, missing, body } => {
                    let here = self.input.len().min(*missing);
                    let part = self.input.drain(..here);
                    if head.wants_body {
                        body.extend(part);
                    } else {
                        drop(part);
                    }
                    *missing -= here;
                    if *missing > 0 {
                        return Step::Wait;
                    }
                    let reply = head.reply;
                    if let Some(query) = head.stream.take() {
                        let now = Instant::now();
                        self.enter(State::Streaming(Box::new(Streaming {
                            query: Some(query),
                            ticks: None,
                            chunked: !reply.http_1_0,
                            due: now,
                            bytes: Vec::new(),
                            sent: 0,
                            progress: now,
                        })));
                        return Step::Wait;
                    }
                    let request = Some(head.complete(self.peer, body));
                    self.enter(State::InWork { request, reply });
                    return Step::Wait;
                }
                State::Handshake { .. }
                | State::Login { .. }
                | State::InWork { .. }
                | State::Writing { .. }
                | State::Lingering { .. }
                | State::Streaming(_) => {
                    return Step::Wait;
                }
            }
        }
    }

    /// Writes as much of the answer as the socket takes.
    fn flush(&mut self) -> Step {
        let State::Writing { bytes, sent, keep_alive } = &mut self.state else {
            return Step::Wait;
        };
        while *sent < bytes.len() {
            match self.stream.write(&bytes[*sent..]) {
                Ok(0) => return Step::Close,
                Ok(n) => *sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Step::Wait,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Step::Close,
            }
        }
        if *keep_alive {
            self.enter(State::Waiting);
            return self.advance();
        }
        self.linger()
    }

    /// Says that nothing more comes, and waits for the client to notice.
    fn linger(&mut self) -> Step {
        if self.stream.finish().is_err() {
            return Step::Close;
        }
        self.input = Vec::new();
        self.enter(State::Lingering { budget: LINGER_BYTES });
        Step::Wait
    }

    /// Writes as much of the stream as the socket takes.
    fn flush_stream(&mut self) -> Step {
        let State::Streaming(stream) = &mut self.state else {
            return Step::Wait;
        };
        while stream.is_pending() {
            match self.stream.write(&stream.bytes[stream.sent..]) {
                Ok(0) => return Step::Close,
                Ok(n) => {
                    stream.sent += n;
                    stream.progress = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Step::Wait,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Step::Close,
            }
        }
        Step::Wait
    }

    /// The request may be answered: it goes on.
    fn let_in(&mut self) -> Step {
        match std::mem::replace(&mut self.state, State::Waiting) {
            State::Login { head, .. } => self.state = State::Body { missing: head.body, head, body: Vec::new() },
            other => self.state = other,
        }
        self.advance()
    }

    /// The agent stops: ends a stream with its last chunk.
    fn end_stream(&mut self) -> Step {
        let State::Streaming(stream) = &mut self.state else { return Step::Wait };
        let (mut bytes, sent) = (std::mem::take(&mut stream.bytes), stream.sent);
        if stream.chunked && stream.ticks.is_some() {
            bytes.extend_from_slice(b"0\r\n\r\n");
        }
        self.enter(State::Writing { bytes, sent, keep_alive: false });
        self.flush()
    }

    /// Answers with an error of the front's own, the last answer on this connection.
    fn refuse(&mut self, (code, message): (u16, &str)) -> Step {
        let head_only = matches!(self.state, State::InWork { reply: Reply { head_only: true, .. }, .. });
        let mut bytes = Vec::with_capacity(512);
        let version = tiny_http::HTTPVersion(1, 1);
        let mut answer = failure(code, message);
        if code == 401 {
            answer = answer.with_header(header("WWW-Authenticate", "Basic realm=\"ebpf-sidecar\", charset=\"UTF-8\""));
        }
        if answer.raw_print(&mut bytes, version, &[], head_only, None).is_err() {
            return Step::Close; // a Vec takes everything
        }
        match request::end_of_head(&bytes, 0) {
            Some(body) => self.answer(bytes, body, false),
            None => Step::Close,
        }
    }

    /// Sends an answer whose body begins at `body`.
    fn answer(&mut self, mut bytes: Vec<u8>, body: usize, keep_alive: bool) -> Step {
        let connection: &[u8] = match (keep_alive, &self.state) {
            (false, _) => b"Connection: close\r\n",
            (true, State::InWork { reply: Reply { http_1_0: true, .. }, .. }) => b"Connection: keep-alive\r\n",
            (true, _) => b"",
        };
        let blank_line = body.saturating_sub(2);
        let mut added = connection.to_vec();
        for (name, value) in &self.headers.config.http.headers.0 {
            if !has_header(&bytes[..blank_line], name) {
                added.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
            }
        }
        bytes.splice(blank_line..blank_line, added);
        self.enter(State::Writing { bytes, sent: 0, keep_alive });
        self.flush()
    }
}

/// Whether an answer's head has a line of this name.
fn has_header(head: &[u8], name: &str) -> bool {
    head.split(|b| *b == b'\n').any(|line| {
        line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
            && line.get(name.len()) == Some(&b':')
    })
}

struct Front<'a> {
    listener: &'a TcpListener,
    woken: &'a UnixStream,
    servers: &'a Sender<Arc<Inner>>,
    open_stream: &'a OpenStream,
    hosts: Option<Hosts>,
    access: &'a Access,
    login: &'a mut Login,
    tokens: Tokens,
    handshakes: Turns,
    /// By number, which grows with each connection and is never used again.
    clients: BTreeMap<u64, Client>,
    last_client: u64,
    /// tiny_http, and the connections to it; none while it has to be started again.
    inner: Option<Arc<Inner>>,
    lanes: Vec<Lane>,
    /// When to start tiny_http again, and how long to wait after the next failure.
    restart_at: Instant,
    backoff: Duration,
    /// Not to accept before.
    accept_at: Instant,
    /// Most connections for now, and when it was lowered.
    limit: usize,
    limited: Instant,
    reserve: Vec<OwnedFd>,
    /// Stopping: end by then.
    stop_at: Option<Instant>,
    /// When each complaint was last made.
    complained: BTreeMap<&'static str, Instant>,
    scratch: Box<[u8]>,
}

impl<'a> Front<'a> {
    fn new(
        listener: &'a TcpListener,
        woken: &'a UnixStream,
        servers: &'a Sender<Arc<Inner>>,
        open_stream: &'a OpenStream,
        hosts: Option<Hosts>,
        (access, login): (&'a Access, &'a mut Login),
    ) -> Self {
        let now = Instant::now();
        Front {
            listener,
            woken,
            servers,
            open_stream,
            hosts,
            access,
            login,
            tokens: Tokens::default(),
            handshakes: Turns::new(now),
            clients: BTreeMap::new(),
            last_client: Lane::NOBODY,
            inner: None,
            lanes: Vec::new(),
            restart_at: now,
            backoff: Duration::ZERO,
            accept_at: now,
            limit: CLIENTS_MAX,
            limited: now,
            reserve: Vec::with_capacity(RESERVE),
            stop_at: None,
            complained: BTreeMap::new(),
            scratch: vec![0; 64 << 10].into(),
        }
    }

    fn serve(&mut self) {
        let mut entries: Vec<PollFd> = Vec::new();
        let (mut polled, mut handshakes): (Vec<u64>, Vec<u64>) = Default::default();
        loop {
            let now = Instant::now();
            let in_work = |c: &Client| matches!(c.state, State::InWork { .. } | State::Writing { .. });
            if self.stop_at.is_some_and(|at| now >= at || !self.clients.values().any(in_work)) {
                return;
            }
            if self.inner.is_none() && now >= self.restart_at {
                self.restart_inner(now);
            }
            self.logins(now);
            self.thin_out();
            self.feed();
            self.open_streams();
            self.expire(now);
            self.recover(now);

            // Lanes, checked passwords, clients, the wake-up while not stopping, the listener while accepting: in this order.
            entries.clear();
            polled.clear();
            entries.extend(self.lanes.iter().map(|lane| poll::entry(lane.stream(), POLLIN)));
            let lanes = entries.len();
            entries.push(poll::entry(self.login.socket(), POLLIN));
            let resting = self.handshakes.rest_until(now).is_some();
            for (&id, client) in &self.clients {
                let rests = resting && matches!(client.state, State::Handshake { .. });
                entries.push(poll::entry(&client.stream, if rests { 0 } else { client.events() }));
                polled.push(id);
            }
            let clients = entries.len();
            let stopping = self.stop_at.is_some();
            if !stopping {
                entries.push(poll::entry(self.woken, POLLIN));
                if now >= self.accept_at && !resting {
                    entries.push(poll::entry(self.listener, POLLIN));
                }
            }
            if let Err(e) = poll::poll(&mut entries, self.timeout(now)) {
                // No memory, or the limit of descriptors was lowered below the number of entries.
                self.complain("poll failed, closing connections", &e);
                for _ in 0..self.clients.len().div_ceil(2) {
                    self.evict(u8::MAX);
                }
                thread::sleep(ROUND_SLOW);
                continue;
            }

            let is_ready = |e: &PollFd| e.revents != 0;
            for (lane, _) in entries[..lanes].iter().enumerate().filter(|(_, e)| is_ready(e)) {
                self.lane_ready(lane);
            }
            if is_ready(&entries[lanes]) {
                self.login.take_results();
            }
            handshakes.clear();
            for (&id, entry) in polled.iter().zip(&entries[lanes + 1..clients]) {
                let Some(client) = self.clients.get_mut(&id).filter(|c| is_ready(entry) || c.has_more()) else {
                    continue;
                };
                if let State::Handshake { .. } = client.state {
                    handshakes.push(id);
                    continue;
                }
                let step = client.ready(if is_ready(entry) { entry.revents } else { POLLIN }, &mut self.scratch);
                self.act(id, step);
            }
            self.shake_hands(&handshakes);
            if entries.get(clients).is_some_and(is_ready) && !stopping {
                self.stop_at = Some(Instant::now() + STOP);
                for id in self.clients.keys().copied().collect::<Vec<_>>() {
                    if let Some(client) = self.clients.get_mut(&id) {
                        let step = client.end_stream();
                        self.act(id, step);
                    }
                }
            }
            if entries.get(clients + 1).is_some_and(is_ready) && self.handshakes.rest_until(Instant::now()).is_none() {
                self.accept();
            }
        }
    }

    fn shake_hands(&mut self, ready: &[u64]) {
        let Front { clients, handshakes, scratch, .. } = self;
        handshakes.take(ready, |id| {
            if let Some(client) = clients.get_mut(id)
                && client.greet(scratch) == Step::Close
            {
                clients.remove(id);
            }
        });
    }

    /// Lets in who may ask, and refuses who may not. What it takes to know that is under way afterwards.
    fn logins(&mut self, now: Instant) {
        let asking = |c: &Client| matches!(c.state, State::Login { .. });
        let ids: Vec<u64> = self.clients.iter().filter(|(_, c)| asking(c)).map(|(&id, _)| id).collect();
        if ids.is_empty() {
            return;
        }
        ids.into_iter().for_each(|id| self.judge(id, now));
        let attempts = self.clients.values().filter(|c| !c.leaving).filter_map(|c| match &c.state {
            State::Login { attempt, .. } => attempt.as_deref(),
            _ => None,
        });
        if let Err(e) = self.login.check(attempts, now) {
            self.complain("no thread to check a password in", &e);
        }
    }

    /// Lets a client in, refuses it, or has it wait until its password was checked.
    fn judge(&mut self, id: u64, now: Instant) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let State::Login { head, attempt } = &client.state else { return };
        let policy = self.access.current();
        let users = &policy.config.users;
        let mut new = None;
        let known = match attempt {
            Some(attempt) => Ok(self.login.known(attempt)),
            None if !self.tokens.take(&policy.config.rate_limit, now) => {
                Err((429, "more requests than the rate_limit of server.http.web_config allows: try again later"))
            }
            None if users.0.is_empty() => Ok(Known::Right),
            None => match &head.authorization {
                None => Err((401, "a user name and a password are wanted")),
                Some(header) => match self.login.attempt(header, users, client.peer.ip()) {
                    None => Ok(Known::Wrong),
                    Some(attempt) => {
                        let known = self.login.known(&attempt);
                        new = Some(Box::new(attempt));
                        Ok(known)
                    }
                },
            },
        };
        client.headers = Arc::clone(&policy);
        let step = match known {
            Ok(Known::Unknown) => {
                let Some(new) = new else { return };
                let waiting = self.clients.iter().filter_map(|(&id, c)| match &c.state {
                    State::Login { attempt: Some(attempt), .. } => Some((id, &**attempt)),
                    _ => None,
                });
                let loser = match login::place(waiting, &new) {
                    Place::Free => None,
                    Place::Of(other) => Some(other),
                    Place::None => Some(id),
                };
                if loser != Some(id)
                    && let Some(Client { state: State::Login { attempt, .. }, .. }) = self.clients.get_mut(&id)
                {
                    *attempt = Some(new);
                }
                let Some((id, client)) = loser.and_then(|id| Some((id, self.clients.get_mut(&id)?))) else { return };
                let step = client.refuse((429, "too many passwords wait to be checked: try again in a second"));
                return self.act(id, step);
            }
            Ok(Known::Right) => client.let_in(),
            Ok(Known::Wrong) => {
                COUNTS.login_failed();
                client.refuse((401, "user name and password do not belong together"))
            }
            Err(refusal) => client.refuse(refusal),
        };
        self.act(id, step);
    }

    /// How long nothing is due.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        if self.clients.values().any(Client::has_more) {
            return Some(Duration::ZERO);
        }
        let restart = self.inner.is_none().then_some(self.restart_at);
        let handshakes = self.handshakes.rest_until(now);
        let waits = self.clients.values().any(|c| matches!(c.state, State::Login { .. }));
        let login = self.login.next_at().filter(|at| waits && *at > now);
        let accept = (self.accept_at > now).then_some(self.accept_at);
        let clients = self.clients.values().map(Client::deadline);
        let next = clients.chain(restart).chain(accept).chain(handshakes).chain(login).chain(self.stop_at).min();
        next.map(|at| at.saturating_duration_since(now))
    }

    /// Ends the patience with clients that have used it up.
    fn expire(&mut self, now: Instant) {
        let late = self.clients.iter().filter(|(_, c)| c.deadline() <= now).map(|(&id, _)| id);
        for id in late.collect::<Vec<_>>() {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            if let State::Streaming(stream) = &mut client.state
                && !stream.is_pending()
            {
                stream.tick(now);
                let step = client.flush_stream();
                self.act(id, step);
                continue;
            }
            let step = match client.state {
                State::Head { .. } | State::Body { .. } => {
                    client.refuse((408, "a request has to be complete within 5 s of its first byte"))
                }
                State::Login { .. } | State::InWork { .. } => client.refuse((503, "the agent is too busy to answer")),
                _ => Step::Close,
            };
            self.act(id, step);
        }
    }

    /// Opens the streams that were asked for.
    fn open_streams(&mut self) {
        let streams = |c: &Client| if let State::Streaming(s) = &c.state { Some(s.query.is_some()) } else { None };
        let mut open = self.clients.values().filter(|c| streams(c) == Some(false)).count();
        let new: Vec<u64> = self.clients.iter().filter(|(_, c)| streams(c) == Some(true)).map(|(&id, _)| id).collect();
        for id in new {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            let State::Streaming(stream) = &mut client.state else {
                continue;
            };
            let query = stream.query.take().unwrap_or_default();
            let opened = match open < STREAMS_MAX {
                true => (self.open_stream)(&query),
                false => Err((503, format!("there are {STREAMS_MAX} streams already"))),
            };
            let step = match opened {
                Err((code, message)) => client.refuse((code, &message)),
                Ok(ticks) => {
                    open += 1;
                    let coding = if stream.chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
                    stream.bytes = format!(
                        "HTTP/1.1 200 OK\r\nServer: ebpf-sidecar\r\nContent-Type: application/x-ndjson\r\n\
                         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{coding}Connection: close\r\n\r\n"
                    )
                    .into_bytes();
                    stream.ticks = Some(ticks);
                    client.flush_stream()
                }
            };
            self.act(id, step);
        }
    }

    fn act(&mut self, id: u64, step: Step) {
        if step == Step::Close {
            self.clients.remove(&id);
        }
    }

    // Accepting and making room.

    fn accept(&mut self) {
        for accepted in 0..ACCEPTS {
            if accepted >= ACCEPTS_SLOW && self.queue().filter(|(_, c)| !c.leaving).count() >= QUEUE_LONG {
                self.accept_at = Instant::now() + ROUND_SLOW;
                return;
            }
            let error = match self.listener.accept() {
                Ok((stream, peer)) => {
                    self.admit(stream, listen::plain(peer));
                    continue;
                }
                Err(e) => e,
            };
            match error.kind() {
                ErrorKind::WouldBlock => return,
                ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                _ => {}
            }
            self.complain("cannot accept, closing idle connections to make room", &error);
            // Descriptors, kernel memory, or something unheard of: less load is the one thing that may help.
            self.limit = self.clients.len().saturating_sub(FEWER).max(RESERVE);
            self.limited = Instant::now();
            if !self.make_room(2) && self.reserve.pop().is_none() {
                self.accept_at = Instant::now() + PAUSE;
                return;
            }
        }
    }

    /// Takes back what descriptors it can, and the full number of connections after a while.
    fn recover(&mut self, now: Instant) {
        while self.reserve.len() < RESERVE
            && let Ok(descriptor) = self.woken.as_fd().try_clone_to_owned()
        {
            self.reserve.push(descriptor);
        }
        if now.duration_since(self.limited) > FEWER_FOR {
            self.limit = CLIENTS_MAX;
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        if stream.set_nonblocking(true).is_err() || stream.set_nodelay(true).is_err() {
            return;
        }
        let policy = self.access.current();
        let stream = match Transport::new(stream, policy.tls.as_ref()) {
            Ok(stream) => stream,
            Err(e) => return self.complain("no TLS for a new connection", &e),
        };
        let tls = stream.is_tls();
        self.make_room(u8::MAX);
        self.last_client += 1;
        let id = self.last_client;
        let since = Instant::now();
        let mut client = Client {
            stream,
            peer,
            hosts: self.hosts.clone(),
            state: if tls { State::Handshake { writes: false } } else { State::Waiting },
            since,
            input: Vec::new(),
            leaving: false,
            headers: policy,
        };
        // At once: a client that has sent its request is not in the way of those that come after it. Handshakes have a turn.
        let step = if tls { Step::Wait } else { client.receive(&mut self.scratch) };
        self.clients.insert(id, client);
        self.act(id, step);
        self.judge(id, since);
    }

    /// Closes connections of at most `rank` until there is room for one more; whether it closed any.
    fn make_room(&mut self, rank: u8) -> bool {
        let before = self.clients.len();
        while self.clients.len() >= self.limit && self.evict(rank) {}
        self.clients.len() < before
    }

    /// Closes the connection that can be spared best, if its rank is at most `rank`; whether there was one.
    fn evict(&mut self, rank: u8) -> bool {
        let victim = self.clients.iter().min_by_key(|(_, c)| (c.rank(), c.since));
        match victim.filter(|(_, c)| c.rank() <= rank).map(|(&id, _)| id) {
            Some(id) => self.clients.remove(&id).is_some(),
            None => false,
        }
    }

    // tiny_http.

    /// Complete requests that wait for a free lane.
    fn queue(&self) -> impl Iterator<Item = (&u64, &Client)> {
        self.clients.iter().filter(|(_, c)| matches!(c.state, State::InWork { request: Some(_), .. }))
    }

    /// Whether an answer is being made that takes long. One thread makes them all, and others have to wait for it.
    fn is_slow(&self) -> bool {
        self.clients.values().any(|c| c.is_dear() && matches!(c.state, State::InWork { request: None, .. }))
    }

    /// Refuses the requests for answers that take long of which there are too many, the last ones.
    fn thin_out(&mut self) {
        let mut waiting: Vec<_> = self.queue().filter(|(_, c)| c.is_dear()).map(|(&id, c)| (c.since, id)).collect();
        if waiting.len() <= DEAR_MAX {
            return;
        }
        waiting.sort_unstable();
        for (_, id) in waiting.split_off(DEAR_MAX) {
            if let Some(client) = self.clients.get_mut(&id) {
                let step = client.refuse((429, "too many queries at a time, try again in a second"));
                self.act(id, step);
            }
        }
    }

    /// Gives waiting requests to free lanes, the oldest of those who are still there first; without tiny_http none
    /// can be answered.
    fn feed(&mut self) {
        while let lane = self.lanes.iter().position(Lane::is_free)
            && (lane.is_some() || self.lanes.is_empty())
            && let slow = self.is_slow()
            && let Some((&id, _)) =
                self.queue().filter(|(_, c)| !(slow && c.is_dear())).min_by_key(|(_, c)| (c.leaving, c.since))
            && let Some(client) = self.clients.get_mut(&id)
            && let State::InWork { request, reply } = &mut client.state
        {
            let (request, head_only) = (request.take().unwrap_or_default(), reply.head_only);
            match lane.and_then(|lane| self.lanes.get_mut(lane)) {
                None => self.unavailable(id),
                Some(lane) => {
                    if let Err(e) = lane.send(id, head_only, &request) {
                        self.inner_failed(&e);
                    }
                }
            }
        }
    }

    fn unavailable(&mut self, id: u64) {
        if let Some(client) = self.clients.get_mut(&id) {
            let step = client.refuse((503, "the HTTP server is starting again, try again in a second"));
            self.act(id, step);
        }
    }

    fn lane_ready(&mut self, lane: usize) {
        // None: an earlier lane of this round has failed, and all with it.
        let Some(lane) = self.lanes.get_mut(lane) else {
            return;
        };
        match lane.receive(&mut self.scratch) {
            Ok(None) => {}
            Ok(Some(answer)) => self.deliver(answer),
            Err(e) => self.inner_failed(&e),
        }
    }

    fn deliver(&mut self, Answer { client: id, bytes, body }: Answer) {
        self.backoff = Duration::ZERO;
        while self.unread() + bytes.len() > ANSWERS_MAX && self.evict_writer() {}
        let stopping = self.stop_at.is_some();
        if let Some(client) = self.clients.get_mut(&id)
            && let State::InWork { request: None, reply } = client.state
        {
            let step = client.answer(bytes, body, reply.keep_alive && !stopping);
            self.act(id, step);
        }
    }

    /// Bytes of answers that clients have not taken.
    fn unread(&self) -> usize {
        let size = |c: &Client| {
            if let State::Writing { bytes, .. } = &c.state { bytes.capacity() } else { 0 }
        };
        self.clients.values().map(size).sum()
    }

    fn evict_writer(&mut self) -> bool {
        let writers = self.clients.iter().filter(|(_, c)| matches!(c.state, State::Writing { .. }));
        match writers.min_by_key(|(_, c)| c.since).map(|(&id, _)| id) {
            Some(id) => self.clients.remove(&id).is_some(),
            None => false,
        }
    }

    fn install(&mut self, (inner, lanes): (Arc<Inner>, Vec<Lane>)) {
        // The receiver lives as long as the sender: its thread ends with the channel.
        let _ = self.servers.send(Arc::clone(&inner));
        self.inner = Some(inner);
        self.lanes = lanes;
    }

    fn restart_inner(&mut self, now: Instant) {
        self.reserve.clear(); // it may need them
        match Inner::start() {
            Ok(inner) => self.install(inner),
            Err(e) => {
                self.complain("cannot start tiny_http again, answering 503", &e);
                self.retry_later(now);
            }
        }
    }

    /// A connection to tiny_http broke, which none should: starts it anew.
    fn inner_failed(&mut self, error: &io::Error) {
        self.complain("lost a connection to tiny_http, starting it again", error);
        self.lose_inner();
        self.retry_later(Instant::now());
        let lost = self.clients.iter().filter(|(_, c)| matches!(c.state, State::InWork { request: None, .. }));
        for id in lost.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.unavailable(id);
        }
    }

    fn lose_inner(&mut self) {
        self.lanes.clear();
        if let Some(inner) = self.inner.take() {
            inner.retire();
        }
    }

    /// At once after the first failure, then ever later, until an answer has come through.
    fn retry_later(&mut self, now: Instant) {
        self.restart_at = now + self.backoff;
        self.backoff = (self.backoff * 2).clamp(PAUSE, Duration::from_secs(2));
    }

    fn complain(&mut self, what: &'static str, error: &io::Error) {
        let last = self.complained.get(what);
        if last.is_none_or(|at| at.elapsed() >= COMPLAINT) {
            self.complained.insert(what, Instant::now());
            log::warn!("HTTP: {what}: {error}");
        }
    }
}

impl Drop for Front<'_> {
    fn drop(&mut self) {
        self.lose_inner();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::sync::mpsc;

    #[test]
    fn starts_tiny_http_again_when_a_connection_breaks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (wake, woken) = UnixStream::pair().unwrap();
        let (servers, received) = mpsc::channel::<Arc<Inner>>();
        let inner = Inner::start().unwrap();
        inner.1[0].stream().shutdown(Shutdown::Both).unwrap();

        thread::scope(|scope| {
            scope.spawn(move || {
                let who = (&Access::new(None).unwrap(), Login::new().unwrap());
                run(&listener, &woken, inner, &servers, &|_| Err((404, "no streams".into())), None, who)
            });
            let started = scope.spawn(move || {
                received
                    .into_iter()
                    .inspect(|inner| {
                        while let Some(request) = inner.next_request() {
                            request.respond(failure(404, "as expected")).unwrap();
                        }
                    })
                    .count()
            });
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
            drop(wake);
            assert_eq!(started.join().unwrap(), 2);
        });
    }
}
