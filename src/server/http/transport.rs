//! A client's connection, with TLS or without.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

use openssl::ssl::{ErrorCode, Ssl, SslContext, SslStream};

use super::request;

/// Bytes taken from a socket for one report that it is readable: somebody who sends what has no meaning (changes of keys,
/// empty records) keeps OpenSSL busy no longer than that.
const BURST: usize = 64 << 10;

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
    /// It has failed, and the client has been told.
    Failed,
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
        Ok(Transport::Tls { ssl: Box::new(ssl), spoken: Spoken::Nothing })
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
        let Transport::Tls { ssl, spoken } = self else { return Handshake::Done };
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
                Ok(0) | Err(_) => return Handshake::Failed,
            }
        }
        ssl.get_mut().left = BURST;
        match ssl.accept() {
            Ok(()) => Handshake::Done,
            Err(e) if e.code() == ErrorCode::WANT_READ => Handshake::Reads,
            Err(e) if e.code() == ErrorCode::WANT_WRITE => Handshake::Writes,
            Err(_) => Handshake::Failed,
        }
    }

    /// Reads from a non-blocking socket; `None` when there is nothing yet.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Transport::Tls { ssl, spoken: Spoken::Tls } = self else { return read(self.tcp(), buffer) };
        ssl.get_mut().left = BURST;
        match ssl.ssl_read(buffer) {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.code() == ErrorCode::WANT_READ => Ok(None),
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
        let Transport::Tls { ssl, spoken: Spoken::Tls } = self else { return self.tcp().write(bytes) };
        match ssl.ssl_write(bytes) {
            Ok(n) => Ok(n),
            Err(e) if e.code() == ErrorCode::WANT_WRITE => Err(ErrorKind::WouldBlock.into()),
            Err(e) => Err(e.into_io_error().unwrap_or_else(io::Error::other)),
        }
    }

    /// Says that nothing more comes.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Transport::Tls { ssl, spoken: Spoken::Tls } = self {
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

fn read(mut stream: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match stream.read(buffer) {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}
