//! tiny_http behind a socket that nobody else can reach: a few connections made once, which carry every
//! request for as long as the process lives.
//!
//! tiny_http's accept thread ends at its first failed accept, panics when it cannot duplicate a socket, and
//! takes any number of connections. Here it accepts exactly those that wait in its listener when it starts.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Read, Write};
use std::mem::ManuallyDrop;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use httparse::{EMPTY_HEADER, Status};

use crate::host::confine::Role;
use crate::host::threads;

/// Number of connections to tiny_http, each with a thread: while it answers on one, and for as long as a change of a module
/// keeps that waiting, it can read the next request from the other.
const LANES: usize = 2;

/// A tiny_http server that is fed through its [`Lane`]s.
pub struct Inner {
    // Never dropped: tiny_http's destructor wants to connect to its listener and panics if that has no path.
    // What stays behind is a small queue; its threads end with the lanes.
    server: ManuallyDrop<tiny_http::Server>,
    retired: AtomicBool,
}

impl Inner {
    /// Starts a server and its lanes.
    pub fn start() -> io::Result<(Arc<Inner>, Vec<Lane>)> {
        let random = || RandomState::new().build_hasher().finish();
        let name = format!("ebpf-sidecar-{:016x}{:016x}", random(), random());
        let address = SocketAddr::from_abstract_name(name)?;
        let listener = UnixListener::bind_addr(&address)?;
        let lanes = (0..LANES).map(|_| Lane::connect(&address)).collect::<io::Result<Vec<_>>>()?;
        // Shut down, a listener refuses every further connection, but still hands out those that wait in it.
        // tiny_http then sees one failed accept, logs that as an error and ends its accept thread, as it should.
        UnixStream::from(OwnedFd::from(listener.try_clone()?)).shutdown(Shutdown::Both)?;
        // It needs two descriptors for each lane, and panics without: see that they are there.
        drop((0..2 * LANES).map(|_| listener.try_clone()).collect::<io::Result<Vec<_>>>()?);
        let server = threads::named("http-lane", Role::Http, || tiny_http::Server::from_listener(listener, None))?;
        let server = server.map_err(io::Error::other)?;
        Ok((Arc::new(Inner { server: ManuallyDrop::new(server), retired: AtomicBool::new(false) }), lanes))
    }

    /// The next request; `None` once the server is retired.
    pub fn next_request(&self) -> Option<tiny_http::Request> {
        while !self.retired.load(Ordering::Acquire) {
            // An error is the accept after the last lane, or the wake-up by `retire`.
            if let Ok(request) = self.server.recv() {
                return Some(request);
            }
        }
        None
    }

    /// Ends [`Self::next_request`].
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        // Requests left in the queue would hold their sockets open for good.
        while let Ok(Some(request)) = self.server.try_recv() {
            drop(request);
        }
        self.server.unblock();
    }
}

/// One connection to tiny_http, with at most one request on it.
pub struct Lane {
    stream: UnixStream,
    /// Which client waits for the answer, and whether that ends with its head.
    busy: Option<(u64, bool)>,
    input: Vec<u8>,
    /// Offset of the body in `input`, and length of the whole answer.
    extent: Option<(usize, usize)>,
}

/// The answer to a client's request.
pub struct Answer {
    /// Whose request it was.
    pub client: u64,
    /// Head and body.
    pub bytes: Vec<u8>,
    /// Where the body begins.
    pub body: usize,
}

impl Lane {
    /// Client of the first request on each lane, which shows that tiny_http has accepted it.
    pub const NOBODY: u64 = 0;

    fn connect(address: &SocketAddr) -> io::Result<Lane> {
        let stream = UnixStream::connect_addr(address)?;
        stream.set_nonblocking(true)?;
        let mut lane = Lane { stream, busy: None, input: Vec::new(), extent: None };
        lane.send(Lane::NOBODY, true, b"HEAD / HTTP/1.1\r\n\r\n")?;
        Ok(lane)
    }

    /// The socket, to poll for reading.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the lane can take a request.
    pub fn is_free(&self) -> bool {
        self.busy.is_none()
    }

    /// Sends a request. The lane is free, so the socket's buffer is empty and has room for all of it.
    pub fn send(&mut self, client: u64, head_only: bool, request: &[u8]) -> io::Result<()> {
        match self.stream.write(request)? {
            n if n == request.len() => self.busy = Some((client, head_only)),
            _ => return Err(ErrorKind::WriteZero.into()),
        }
        Ok(())
    }

    /// Reads what has come; the answer once it is complete. After an error the lane is of no more use.
    pub fn receive(&mut self, scratch: &mut [u8]) -> io::Result<Option<Answer>> {
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.input.extend_from_slice(&scratch[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            let Some((client, head_only)) = self.busy else {
                return Err(ErrorKind::InvalidData.into());
            };
            if self.extent.is_none() {
                self.extent = extent(&self.input, head_only)?;
                let total = self.extent.map_or(0, |(_, total)| total);
                // Once and exactly, with room for the Connection line that the front adds.
                self.input.reserve_exact((total + 32).saturating_sub(self.input.len()));
            }
            match self.extent {
                Some((_, total)) if self.input.len() > total => {
                    return Err(ErrorKind::InvalidData.into());
                }
                Some((body, total)) if self.input.len() == total => {
                    (self.busy, self.extent) = (None, None);
                    return Ok(Some(Answer { client, bytes: std::mem::take(&mut self.input), body }));
                }
                _ => {}
            }
        }
    }
}

/// Where the body of an answer begins and where it ends; `None` while its head is incomplete.
fn extent(input: &[u8], head_only: bool) -> io::Result<Option<(usize, usize)>> {
    let mut headers = [EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let body = match response.parse(input).map_err(io::Error::other)? {
        Status::Complete(n) => n,
        Status::Partial => return Ok(None),
    };
    if head_only {
        return Ok(Some((body, body)));
    }
    let length = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("Content-Length"));
    let length = length.and_then(|h| std::str::from_utf8(h.value).ok()?.parse::<usize>().ok());
    match length.and_then(|n| body.checked_add(n)) {
        Some(total) => Ok(Some((body, total))),
        None => Err(ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn is_reached_through_its_lanes_only() {
        let (inner, mut lanes) = Inner::start().unwrap();
        let server = Arc::clone(&inner);
        let thread = thread::spawn(move || {
            while let Some(request) = server.next_request() {
                let path = request.url().to_owned();
                request.respond(tiny_http::Response::from_string(path)).unwrap();
            }
        });
        let mut scratch = [0; 1024];
        let mut receive = |lane: &mut Lane| {
            loop {
                match lane.receive(&mut scratch).unwrap() {
                    Some(answer) => return answer,
                    None => thread::sleep(Duration::from_millis(1)),
                }
            }
        };
        for (i, lane) in lanes.iter_mut().enumerate() {
            assert_eq!(receive(lane).client, Lane::NOBODY);
            for client in 1..100 {
                lane.send(client, false, format!("GET /{i}/{client} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
                let answer = receive(lane);
                assert_eq!(answer.client, client);
                assert_eq!(answer.bytes[answer.body..], *format!("/{i}/{client}").as_bytes());
            }
        }
        let table = std::fs::read_to_string("/proc/net/unix").unwrap();
        for name in table.lines().filter_map(|l| Some(l.split_once("@ebpf-sidecar-")?.1)) {
            let address = SocketAddr::from_abstract_name(format!("ebpf-sidecar-{name}")).unwrap();
            let error = UnixStream::connect_addr(&address).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        drop(lanes);
        inner.retire();
        thread.join().unwrap();
    }
}
