//! A client's connection, with TLS or without.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use openssl::ssl::{self, ErrorCode, Ssl, SslContext, SslStream};

use crate::server::http::request;

/// Time spent on handshakes in one round, and then without any: they get half of a thread at most, and a client with a
/// connection waits no longer.
const HANDSHAKES: Duration = Duration::from_millis(10);

/// Bytes taken from a socket for one report that it is readable: somebody who sends what has no meaning (changes of keys,
/// empty records) keeps OpenSSL busy no longer than that.
const BURST: usize = 64 << 10;
/// Bytes of that which may come between data, after which a connection is ended. It is more than a record has, of which the
/// first part may come by itself; each byte of data makes good for as many as the smallest record has around it.
const VAIN: usize = 32 << 10;
const AROUND: usize = 64;

/// A connection.
pub enum Transport {
    /// As it is.
    Plain(TcpStream),
    /// With TLS.
    Tls {
        /// OpenSSL's part, over the socket.
        ssl: Box<SslStream<Socket>>,
        /// What the client has said first.
        spoken: Spoken,
        /// Bytes that were no data.
        vain: usize,
    },
}

/// What a client has said first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// Nothing.
    Nothing,
    /// TLS, or what is neither.
    Tls,
    /// HTTP without TLS, and so it is answered.
    Http,
}

/// A socket that gives so many bytes at a time.
pub struct Socket {
    stream: TcpStream,
    left: usize,
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(self.left);
        if room == 0 && !buffer.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = self.stream.read(&mut buffer[..room])?;
        self.left -= n;
        Ok(n)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How far a handshake is.
#[derive(Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It is done.
    Done,
    /// It goes on when the socket is readable.
    Reads,
    /// It goes on when the socket is writable.
    Writes,
    /// The client speaks HTTP without TLS; the connection is plain now.
    Plain,
    /// It has failed, for this reason, and the client has been told.
    Failed(String),
}

/// The turns of handshakes in a thread that has more to do.
#[derive(Clone, Copy)]
pub struct Turns {
    /// None goes on before.
    at: Instant,
}

impl Turns {
    /// They may go on at once.
    pub fn new(now: Instant) -> Self {
        Self { at: now }
    }

    /// When they go on, if they rest. Meanwhile nobody should be accepted: that would push out those who wait.
    pub fn rest_until(&self, now: Instant) -> Option<Instant> {
        (self.at > now).then_some(self.at)
    }

    /// Goes on with these, the oldest of which comes first, as long as they have time.
    pub fn take<T>(&mut self, ready: impl IntoIterator<Item = T>, mut go_on: impl FnMut(T)) {
        let begun = Instant::now();
        for one in ready {
            if begun.elapsed() >= HANDSHAKES {
                self.at = Instant::now() + HANDSHAKES;
                return;
            }
            go_on(one);
        }
    }
}

impl AsRawFd for Transport {
    fn as_raw_fd(&self) -> RawFd {
        self.tcp().as_raw_fd()
    }
}

impl Transport {
    /// A connection that was just accepted.
    pub fn new(stream: TcpStream, tls: Option<&SslContext>) -> io::Result<Self> {
        let Some(context) = tls else { return Ok(Transport::Plain(stream)) };
        let ssl = SslStream::new(Ssl::new(context)?, Socket { stream, left: 0 })?;
        Ok(Transport::Tls { ssl: Box::new(ssl), spoken: Spoken::Nothing, vain: 0 })
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Transport::Tls { .. })
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Transport::Plain(stream) => stream,
            Transport::Tls { ssl, .. } => &ssl.get_ref().stream,
        }
    }

    /// Goes on with the handshake.
    pub fn handshake(&mut self) -> Handshake {
        let Transport::Tls { ssl, spoken, .. } = self else { return Handshake::Done };
        if *spoken == Spoken::Nothing {
            let mut first = [0];
            match ssl.get_ref().stream.peek(&mut first) {
                Ok(1..) if request::may_begin(first[0]) => {
                    *spoken = Spoken::Http;
                    return Handshake::Plain;
                }
                Ok(1..) => *spoken = Spoken::Tls,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    return Handshake::Reads;
                }
                Ok(0) => return Handshake::Failed("hung up".into()),
                Err(e) => return Handshake::Failed(e.to_string()),
            }
        }
        ssl.get_mut().left = BURST;
        match ssl.accept() {
            Ok(()) => Handshake::Done,
            Err(e) if e.code() == ErrorCode::WANT_READ => Handshake::Reads,
            Err(e) if e.code() == ErrorCode::WANT_WRITE => Handshake::Writes,
            Err(e) => Handshake::Failed(reason(&e)),
        }
    }

    /// Whether the client has said anything.
    pub fn has_spoken(&self) -> bool {
        !matches!(self, Transport::Tls { spoken: Spoken::Nothing, .. })
    }

    /// What both sides have agreed to speak.
    pub fn protocol(&self) -> Option<&[u8]> {
        if let Transport::Tls { ssl, .. } = self { ssl.ssl().selected_alpn_protocol() } else { None }
    }

    /// Reads from a non-blocking socket; `None` when there is nothing yet.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Transport::Tls { ssl, spoken: Spoken::Tls, vain } = self else { return read(self.tcp(), buffer) };
        ssl.get_mut().left = BURST;
        let result = ssl.ssl_read(buffer);
        let data = result.as_ref().map_or(0, |n| n.saturating_mul(AROUND));
        *vain = (*vain + BURST - ssl.get_ref().left).saturating_sub(data);
        match result {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.code() == ErrorCode::WANT_READ && *vain <= VAIN => Ok(None),
            Err(e) if e.code() == ErrorCode::ZERO_RETURN => Ok(Some(0)),
            Err(e) => Err(e.into_io_error().unwrap_or_else(io::Error::other)),
        }
    }

    /// Whether bytes are here that no socket reports.
    pub fn has_more(&self) -> bool {
        matches!(self, Transport::Tls { ssl, .. } if ssl.ssl().pending() > 0)
    }

    /// Writes what the socket takes; `WouldBlock` if that is nothing.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Transport::Tls { ssl, spoken: Spoken::Tls, .. } = self else { return self.tcp().write(bytes) };
        match ssl.ssl_write(bytes) {
            Ok(n) => Ok(n),
            Err(e) if e.code() == ErrorCode::WANT_WRITE => Err(ErrorKind::WouldBlock.into()),
            Err(e) => Err(e.into_io_error().unwrap_or_else(io::Error::other)),
        }
    }

    /// Says that nothing more comes.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Transport::Tls { ssl, spoken: Spoken::Tls, .. } = self {
            // A client that does not read cannot be told.
            let _ = ssl.shutdown();
        }
        self.tcp().shutdown(Shutdown::Write)
    }

    /// What still comes after that, encrypted or not: to be thrown away.
    pub fn drain(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        read(self.tcp(), buffer)
    }
}

fn reason(e: &ssl::Error) -> String {
    let said = e.ssl_error().and_then(|all| all.errors().last()?.reason());
    said.map(str::to_owned).or_else(|| e.io_error().map(io::Error::to_string)).unwrap_or_else(|| "hung up".into())
}

fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match stream.read(buffer) {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}
