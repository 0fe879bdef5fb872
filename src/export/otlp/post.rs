//! Requests to an HTTP server, one at a time on a connection that is kept. They are made in a thread of their own and answer
//! through channels, so that the exporter can do other things while it waits.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVersion};
use openssl::x509::X509;

use super::user_agent;
use crate::config::ClientTls;
use crate::host::confine::{self, Role};
use crate::host::pem;

/// Most bytes of the head of an answer, and of its body.
const HEAD_MAX: usize = 64 << 10;
const BODY_MAX: usize = 1 << 20;
/// Most headers of one.
const HEADERS_MAX: usize = 128;
/// Where systems keep the authorities that they trust.
const AUTHORITIES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// When to try again.
    pub retry_after: Option<String>,
    /// Its body, without what is beyond [`BODY_MAX`].
    pub body: Vec<u8>,
}

/// A server.
pub struct Post {
    jobs: Sender<Job>,
    lost: Receiver<()>,
    _lost_to: Sender<()>,
}

struct Job {
    /// Head and body.
    request: Vec<u8>,
    limit: Duration,
    to: Sender<Result<Answer, String>>,
}

impl Post {
    /// For requests to `path` at `endpoint`, which is connected to with the first of them. `tls` is what stands under `key` in
    /// the configuration. An error tells which file cannot be used.
    pub fn new(endpoint: &str, path: &str, tls: &ClientTls, key: &str) -> Result<Self, String> {
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = if tls.enabled { Some((connector(tls, key)?, name)) } else { None };
        let server = Server { endpoint: endpoint.to_owned(), tls };
        let (jobs, todo) = channel::unbounded::<Job>();
        let (lost_to, lost) = channel::bounded(1);
        let head = format!("POST {path} HTTP/1.1\r\nhost: {endpoint}\r\nuser-agent: {}\r\n", user_agent());
        let work = move || {
            confine::enter(Role::Exporter);
            let mut connection = None;
            for job in todo {
                let request = [head.as_bytes(), &job.request].concat();
                // Who waited for it may have given up.
                let _ = job.to.try_send(server.exchange(&mut connection, &request, Instant::now() + job.limit));
            }
        };
        thread::Builder::new().name("export-http".into()).spawn(work).map_err(|e| format!("no thread: {e}"))?;
        Ok(Self { jobs, lost, _lost_to: lost_to })
    }

    /// Where a lost connection is told: never, since the next request makes another.
    pub fn lost(&self) -> &Receiver<()> {
        &self.lost
    }

    /// Sends `body`, which is encoded in this way. The answer comes through the channel.
    pub fn send(
        &self,
        body: Vec<u8>,
        encoding: Option<&str>,
        headers: Vec<(String, String)>,
        limit: Duration,
    ) -> Receiver<Result<Answer, String>> {
        let mut head = format!("content-type: application/x-protobuf\r\ncontent-length: {}\r\n", body.len());
        let encoding = encoding.map(|name| ("content-encoding".to_owned(), name.to_owned()));
        for (name, value) in headers.into_iter().chain(encoding) {
            head += &format!("{name}: {value}\r\n");
        }
        let request = [head.as_bytes(), b"\r\n", &body].concat();
        let (to, answer) = channel::bounded(1);
        // Without the thread the channel closes.
        let _ = self.jobs.send(Job { request, limit, to });
        answer
    }
}

/// What makes connections with TLS.
fn connector(tls: &ClientTls, key: &str) -> Result<SslConnector, String> {
    let openssl = |e: openssl::error::ErrorStack| format!("{key}: OpenSSL: {e}");
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(openssl)?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2)).map_err(openssl)?;
    let authorities = match &tls.ca_file {
        Some(ca) => pem::certificates(&format!("{key}.ca_file"), ca)?,
        None => {
            let told = std::env::var("SSL_CERT_FILE").ok();
            let mut files = told.as_deref().into_iter().chain(AUTHORITIES).map(Path::new).filter(|p| p.is_file());
            let file =
                files.next().ok_or_else(|| format!("{key}.ca_file: this system has no authorities of its own"))?;
            pem::certificates("the system's authorities", file)?
        }
    };
    for authority in X509::stack_from_pem(&authorities).map_err(openssl)? {
        builder.cert_store_mut().add_cert(authority).map_err(openssl)?;
    }
    if let (Some(cert), Some(private)) = (&tls.cert_file, &tls.key_file) {
        let (cert_key, key_key) = (format!("{key}.cert_file"), format!("{key}.key_file"));
        let (chain, private) = pem::identity((&cert_key, cert), (&key_key, private))?;
        pem::warn_if_expired((&cert_key, cert), &chain);
        let private = pem::key(&private).ok_or_else(|| format!("{key_key}: {}", pem::NO_KEY))?;
        builder.set_private_key(&private).map_err(openssl)?;
        for (i, certificate) in pem::chain(&chain).unwrap_or_default().into_iter().enumerate() {
            match i {
                0 => builder.set_certificate(&certificate).map_err(openssl)?,
                _ => builder.add_extra_chain_cert(certificate).map_err(openssl)?,
            }
        }
    }
    Ok(builder.build())
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref(),
        }
    }

    /// Whether nothing has come, not even its end: between two requests nothing should.
    fn is_quiet(&self) -> bool {
        let quiet = self.tcp().set_nonblocking(true).is_ok()
            && self.tcp().peek(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        quiet && self.tcp().set_nonblocking(false).is_ok()
    }
}

/// Reads and writes until a certain time.
struct Until<'a> {
    stream: &'a mut Stream,
    at: Instant,
}

impl Until<'_> {
    /// What is left of the time.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// A time that is over is told by another name.
fn in_time<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| if e.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { e })
}

impl Read for Until<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.tcp().set_read_timeout(self.left()?)?;
        in_time(match self.stream {
            Stream::Plain(tcp) => tcp.read(into),
            Stream::Tls(tls) => tls.read(into),
        })
    }
}

impl Write for Until<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.stream.tcp().set_write_timeout(self.left()?)?;
        in_time(match self.stream {
            Stream::Plain(tcp) => tcp.write(from),
            Stream::Tls(tls) => tls.write(from),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Server {
    endpoint: String,
    /// With the name that the server's certificate has to have.
    tls: Option<(SslConnector, String)>,
}

impl Server {
    /// Sends a request and reads its answer.
    fn exchange(&self, kept: &mut Option<Stream>, request: &[u8], until: Instant) -> Result<Answer, String> {
        let mut stream = match kept.take().filter(Stream::is_quiet) {
            Some(stream) => stream,
            None => self.connect(until)?,
        };
        let mut timed = Until { stream: &mut stream, at: until };
        // Some answer before they have read all of it, and close.
        let written = timed.write_all(request);
        let answered = read_answer(&mut timed);
        let (answer, keep) = answered.map_err(|e| written.as_ref().err().unwrap_or(&e).to_string())?;
        *kept = (keep && written.is_ok()).then_some(stream);
        Ok(answer)
    }

    fn connect(&self, until: Instant) -> Result<Stream, String> {
        let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let addresses = self.endpoint.to_socket_addrs().map_err(|e| format!("its name: {e}"))?;
        let mut failure = "its name has no address".to_owned();
        let mut connected = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, left()) {
                Ok(tcp) => {
                    connected = Some(tcp);
                    break;
                }
                Err(e) => failure = format!("{address}: {e}"),
            }
        }
        let tcp = connected.ok_or(failure)?;
        let timed = |tcp: &TcpStream| {
            tcp.set_nodelay(true)?;
            tcp.set_read_timeout(Some(left()))?;
            tcp.set_write_timeout(Some(left()))
        };
        timed(&tcp).map_err(|e| e.to_string())?;
        match &self.tls {
            None => Ok(Stream::Plain(tcp)),
            Some((connector, name)) => {
                let tls = connector.connect(name, tcp).map_err(|e| format!("TLS: {e}"))?;
                Ok(Stream::Tls(Box::new(tls)))
            }
        }
    }
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

/// Reads an answer, and whether another request may follow.
fn read_answer(from: &mut impl Read) -> io::Result<(Answer, bool)> {
    let mut input = Input { from, held: Vec::new() };
    loop {
        let head = input.head()?;
        // Of those before the answer there may be some.
        if head.status >= 200 {
            let (body, whole) = input.body(&head)?;
            let keep = head.keep && whole && input.held.is_empty();
            return Ok((Answer { status: head.status, retry_after: head.retry_after, body }, keep));
        }
    }
}

struct Head {
    status: u16,
    retry_after: Option<String>,
    length: Length,
    keep: bool,
}

/// How much follows a head.
enum Length {
    Known(usize),
    Chunked,
    /// All that comes.
    ToTheEnd,
}

/// What has come, and what will.
struct Input<'a, R> {
    from: &'a mut R,
    held: Vec<u8>,
}

impl<R: Read> Input<'_, R> {
    /// Reads on; an error at the end.
    fn more(&mut self) -> io::Result<()> {
        if self.some()? { Ok(()) } else { Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection")) }
    }

    fn some(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 8 << 10];
        let n = self.from.read(&mut buffer)?;
        self.held.extend_from_slice(&buffer[..n]);
        Ok(n > 0)
    }

    fn head(&mut self) -> io::Result<Head> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut response = httparse::Response::new(&mut headers);
            match response.parse(&self.held) {
                Ok(httparse::Status::Complete(end)) => {
                    let head = understood(&response)?;
                    self.held.drain(..end);
                    return Ok(head);
                }
                Ok(httparse::Status::Partial) if self.held.len() < HEAD_MAX => self.more()?,
                _ => return Err(bad("it does not answer as HTTP servers do")),
            }
        }
    }

    /// The body, and whether all of it was read.
    fn body(&mut self, head: &Head) -> io::Result<(Vec<u8>, bool)> {
        match head.length {
            Length::Known(length) => {
                let wanted = length.min(BODY_MAX);
                while self.held.len() < wanted {
                    self.more()?;
                }
                Ok((self.held.drain(..wanted).collect(), wanted == length))
            }
            Length::ToTheEnd => {
                while self.held.len() < BODY_MAX && self.some()? {}
                self.held.truncate(BODY_MAX);
                Ok((std::mem::take(&mut self.held), false))
            }
            Length::Chunked => self.chunks(),
        }
    }

    fn chunks(&mut self) -> io::Result<(Vec<u8>, bool)> {
        let mut body = Vec::new();
        loop {
            let size = loop {
                match httparse::parse_chunk_size(&self.held) {
                    Ok(httparse::Status::Complete((end, size))) => {
                        self.held.drain(..end);
                        break size;
                    }
                    Ok(httparse::Status::Partial) if self.held.len() < HEAD_MAX => self.more()?,
                    _ => return Err(bad("it sends a chunk without a size")),
                }
            };
            let room = BODY_MAX - body.len();
            match usize::try_from(size) {
                Ok(0) => break,
                Ok(size) if size <= room => {
                    // Its end is two bytes.
                    while self.held.len() < size + 2 {
                        self.more()?;
                    }
                    body.extend(self.held.drain(..size));
                    self.held.drain(..2);
                }
                _ => return Ok((body, false)),
            }
        }
        // Trailers would follow; where there are any the connection is not kept.
        while self.held.len() < 2 {
            self.more()?;
        }
        let whole = self.held.starts_with(b"\r\n");
        self.held.drain(..2);
        Ok((body, whole))
    }
}

fn understood(response: &httparse::Response) -> io::Result<Head> {
    let values = |name: &'static str| {
        let of = response.headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name));
        of.map(|h| String::from_utf8_lossy(h.value).trim().to_ascii_lowercase())
    };
    let status = response.code.unwrap_or(0);
    let chunked = values("transfer-encoding").any(|v| v.split(',').any(|part| part.trim() == "chunked"));
    let length = match (status, values("content-length").next()) {
        (100..200 | 204 | 304, _) => Length::Known(0),
        _ if chunked => Length::Chunked,
        (_, Some(n)) if n.bytes().all(|b| b.is_ascii_digit()) => {
            Length::Known(n.parse().map_err(|_| bad("it sends a body that is too long"))?)
        }
        (_, Some(_)) => return Err(bad("it sends a length that is none")),
        _ => Length::ToTheEnd,
    };
    let close = values("connection").any(|v| v.split(',').any(|part| part.trim() == "close"));
    let keep = response.version == Some(1) && !close;
    let retry_after = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("retry-after"));
    let retry_after = retry_after.map(|h| String::from_utf8_lossy(h.value).into_owned());
    Ok(Head { status, retry_after, length, keep })
}

/// Whatever a server sends, its answer is bounded.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok((answer, _)) = read_answer(&mut &bytes[..]) {
        assert!(answer.body.len() <= BODY_MAX && answer.status >= 200);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time.
    struct Slowly<'a>(&'a [u8]);

    impl Read for Slowly<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.read(&mut into[..1])
        }
    }

    #[test]
    fn answers_of_all_forms() {
        for (text, status, retry_after, body, keep) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, None, "ok", true),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", 204, None, "", true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, None, "ok", false),
            ("HTTP/1.1 200 OK\r\nconnection: Close\r\nContent-Length: 2\r\n\r\nok", 200, None, "ok", false),
            ("HTTP/1.1 503 Busy\r\nRetry-After: 7\r\ncontent-length: 0\r\n\r\n", 503, Some("7"), "", true),
            ("HTTP/1.1 400 Bad\r\n\r\nto the end", 400, None, "to the end", false),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n",
                200,
                None,
                "abcd",
                true,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\ntrailer: x\r\n\r\n",
                200,
                None,
                "a",
                false,
            ),
        ] {
            for read in [read_answer(&mut text.as_bytes()), read_answer(&mut Slowly(text.as_bytes()))] {
                let retry_after = retry_after.map(str::to_owned);
                assert_eq!(read.unwrap(), (Answer { status, retry_after, body: body.into() }, keep), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for (text, why) in [
            ("", "closed"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", "closed"),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "none"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "without a size"),
            ("SSH-2.0-OpenSSH\r\n", "not answer as HTTP"),
        ] {
            let error = read_answer(&mut text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(2 * HEAD_MAX));
        assert!(read_answer(&mut endless.as_bytes()).is_err());
        let large = format!("HTTP/1.1 413 No\r\n\r\n{}", "y".repeat(2 * BODY_MAX));
        assert_eq!(read_answer(&mut large.as_bytes()).unwrap().0.body.len(), BODY_MAX);
    }
}
