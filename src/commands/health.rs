//! Asks a running agent for its health: `ebpf-sidecar health`, for images without curl.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use openssl::ssl::{HandshakeError, SslStream};
use serde::Deserialize;

use super::client::Http;

use crate::host::logging::clean;
use crate::metrics::health::Status;

/// More than any answer of the agent has, verifier logs in it included.
const MAX_BYTES: usize = 1 << 20;
/// Time after which the agent has changed files in use, and some more.
const CHANGE: Duration = Duration::from_millis(1100);

/// What `/health` says, as far as it matters here.
#[derive(Deserialize)]
struct Answer {
    status: Status,
    message: String,
}

/// Where a server with this configuration can be asked from the same network namespace.
pub fn local(address: IpAddr, port: u16) -> SocketAddr {
    let ip = match address.to_canonical() {
        // Of both families, this is always there.
        ip if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, port)
}

/// Why there is no good answer, in one line.
#[derive(Debug)]
pub enum Unwell {
    /// The agent says so of itself.
    Unhealthy(String),
    /// Nobody answers there within the time.
    Unreachable(SocketAddr, io::Error),
    /// What answers there does not speak as the agent does.
    NotTheAgent(SocketAddr),
    /// What answers there wants a name and a password that it knows.
    Refused(SocketAddr),
    /// What answers there wants TLS, or has another certificate.
    Tls(SocketAddr, String),
}

impl fmt::Display for Unwell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unwell::Unhealthy(message) => write!(f, "unhealthy: {message}"),
            Unwell::Unreachable(address, e) => write!(f, "unreachable: no answer from {address}: {e}"),
            Unwell::Refused(address) => write!(
                f,
                "{address} does not know the user or the password: client.username and client.password_file say which"
            ),
            Unwell::Tls(address, why) => write!(f, "no TLS with {address}: {why}"),
            Unwell::NotTheAgent(address) => write!(f, "what answers at {address} is not ebpf-sidecar"),
        }
    }
}

impl std::error::Error for Unwell {}

/// Asks the agent at `address`, within `limit` altogether. One line if it is healthy or degraded.
pub fn ask(address: SocketAddr, how: &Http, limit: Duration) -> Result<String, Unwell> {
    let answer = fetch(address, how, limit)?;
    match status(&answer) {
        Some("401") => return Err(Unwell::Refused(address)),
        Some("400") if how.tls.is_none() => {
            let why = "it may want it: client.ca_file, or server.http.web_config, has `health` speak it";
            return Err(Unwell::Tls(address, why.into()));
        }
        _ => {}
    }
    let answer = parse(&answer).ok_or(Unwell::NotTheAgent(address))?;
    let message = clean(answer.message);
    match answer.status {
        Status::Healthy => Ok(format!("healthy: {message}")),
        Status::Degraded => Ok(format!("degraded: {message}")),
        Status::Unhealthy => Err(Unwell::Unhealthy(message)),
    }
}

/// A connection to the agent.
enum Connection {
    Plain(TcpStream),
    Tls(SslStream<TcpStream>),
}

impl Connection {
    fn tcp(&self) -> &TcpStream {
        match self {
            Connection::Plain(stream) => stream,
            Connection::Tls(stream) => stream.get_ref(),
        }
    }
}

/// What is answered to a request for `/health`, head and body, until the connection is closed.
fn fetch(address: SocketAddr, how: &Http, limit: Duration) -> Result<Vec<u8>, Unwell> {
    let deadline = Instant::now() + limit;
    let unreachable = |e| Unwell::Unreachable(address, e);
    loop {
        let mut connection = connect(address, how, limit, deadline)?;
        let known = match (&connection, how.tls.as_ref().and_then(|tls| tls.pinned.as_ref())) {
            (Connection::Tls(stream), Some(pinned)) => {
                stream.ssl().peer_certificate().is_some_and(|cert| cert.to_der().ok() == pinned.to_der().ok())
            }
            _ => true,
        };
        if known {
            return exchange(&mut connection, address, &how.authorization, limit, deadline).map_err(unreachable);
        }
        // New files are in use a second after the connection before at the latest.
        if deadline.saturating_duration_since(Instant::now()) < CHANGE {
            let why = "its certificate is not the one in the file that server.http.web_config names";
            return Err(Unwell::Tls(address, why.into()));
        }
        drop(connection);
        thread::sleep(CHANGE);
    }
}

fn connect(address: SocketAddr, how: &Http, limit: Duration, deadline: Instant) -> Result<Connection, Unwell> {
    let unreachable = |e| Unwell::Unreachable(address, e);
    let stream = TcpStream::connect_timeout(&address, limit).map_err(unreachable)?;
    stream.set_write_timeout(Some(limit)).map_err(unreachable)?;
    let Some(tls) = &how.tls else { return Ok(Connection::Plain(stream)) };
    set_limit(&stream, limit, deadline).map_err(unreachable)?;
    let configuration = tls.connector.configure().map_err(|e| Unwell::Tls(address, e.to_string()))?;
    // On this host whoever may listen at the port is the agent, whatever name its certificate has.
    let named = tls.pinned.is_none() && !address.ip().to_canonical().is_loopback();
    let connected = configuration
        .use_server_name_indication(false)
        .verify_hostname(named)
        .connect(&address.ip().to_canonical().to_string(), stream);
    match connected {
        Ok(stream) => Ok(Connection::Tls(stream)),
        Err(HandshakeError::WouldBlock(_)) => Err(unreachable(late(limit))),
        Err(e) => Err(Unwell::Tls(address, clean(e))),
    }
}

fn late(limit: Duration) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("not within {} s", limit.as_secs_f64()))
}

fn set_limit(stream: &TcpStream, limit: Duration, deadline: Instant) -> io::Result<()> {
    // A timeout of zero would be none.
    let left = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()).ok_or_else(|| late(limit))?;
    stream.set_read_timeout(Some(left))
}

fn exchange(
    connection: &mut Connection,
    address: SocketAddr,
    authorization: &str,
    limit: Duration,
    deadline: Instant,
) -> io::Result<Vec<u8>> {
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{authorization}\r\n");
    match connection {
        Connection::Plain(stream) => stream.write_all(request.as_bytes())?,
        Connection::Tls(stream) => stream.write_all(request.as_bytes())?,
    }
    let (mut answer, mut block) = (Vec::new(), [0; 4096]);
    loop {
        set_limit(connection.tcp(), limit, deadline)?;
        let read = match connection {
            Connection::Plain(stream) => stream.read(&mut block),
            Connection::Tls(stream) => stream.read(&mut block),
        };
        match read {
            Ok(0) => return Ok(answer),
            Ok(n) if answer.len() + n > MAX_BYTES => return Err(io::Error::other("the answer does not end")),
            Ok(n) => answer.extend_from_slice(&block[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(late(limit)),
            Err(e) => return Err(e),
        }
    }
}

/// The status code of an answer.
fn status(answer: &[u8]) -> Option<&str> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    std::str::from_utf8(&answer[..end]).ok()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)
}

/// The agent always sends a body of known length, never in chunks.
fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let code = status(answer)?;
    let said: Answer = serde_json::from_slice(&answer[end + 4..]).ok()?;
    // 503 goes with unhealthy, and nothing else does.
    let consistent = match said.status {
        Status::Healthy | Status::Degraded => code == "200",
        Status::Unhealthy => code == "503",
    };
    consistent.then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// What `ask` makes of a server that reads a request, sends `answer` as often as told, and closes.
    fn asked(answer: &str, times: usize) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = answer.to_owned();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            // The client may have had enough.
            let _ = (0..times).try_for_each(|_| stream.write_all(answer.as_bytes()));
            String::from_utf8(head).unwrap()
        });
        let result = ask(address, &Http::default(), Duration::from_secs(60)).map_err(|e| e.to_string());
        let head = server.join().unwrap();
        assert!(head.starts_with("GET /health HTTP/1.1\r\nHost: 127.0.0.1:"), "{head}");
        result.map_err(|e| e.replace(&address.to_string(), "ADDRESS"))
    }

    fn response(code: u16, body: &str) -> String {
        format!("HTTP/1.1 {code} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn the_verdict_is_the_agents() {
        let body = |status| format!(r#"{{"status":"{status}","message":"a\nb","more":[1]}}"#);
        assert_eq!(asked(&response(200, &body("healthy")), 1).unwrap(), "healthy: a\\nb");
        assert_eq!(asked(&response(200, &body("degraded")), 1).unwrap(), "degraded: a\\nb");
        assert_eq!(asked(&response(503, &body("unhealthy")), 1).unwrap_err(), "unhealthy: a\\nb");
    }

    #[test]
    fn another_server_is_not_taken_for_the_agent() {
        for answer in [
            "".to_owned(),
            "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
            response(200, "<html>"),
            response(200, r#"{"status":"fine","message":""}"#),
            response(200, r#"{"status":"healthy"}"#),
            response(404, r#"{"status":"healthy","message":""}"#),
            response(200, r#"{"status":"unhealthy","message":""}"#),
        ] {
            assert_eq!(asked(&answer, 1).unwrap_err(), "what answers at ADDRESS is not ebpf-sidecar", "{answer}");
        }
    }

    #[test]
    fn an_answer_without_end_is_cut_off() {
        let e = asked(&"x".repeat(4096), usize::MAX).unwrap_err();
        assert_eq!(e, "unreachable: no answer from ADDRESS: the answer does not end");
    }

    #[test]
    fn a_silent_or_absent_server_is_unreachable() {
        // Connections are taken by the kernel, and nobody answers them.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let e = ask(address, &Http::default(), Duration::from_millis(200)).unwrap_err().to_string();
        assert_eq!(e, format!("unreachable: no answer from {address}: not within 0.2 s"));
        drop(listener);
        let e = ask(address, &Http::default(), Duration::from_secs(60)).unwrap_err().to_string();
        assert!(e.starts_with(&format!("unreachable: no answer from {address}: Connection refused")), "{e}");
    }

    #[test]
    fn all_addresses_are_asked_on_loopback() {
        for (configured, asked) in [
            ("0.0.0.0", "127.0.0.1:8080"),
            ("::", "127.0.0.1:8080"),
            ("::1", "[::1]:8080"),
            ("::ffff:0.0.0.0", "127.0.0.1:8080"),
            ("10.1.2.3", "10.1.2.3:8080"),
        ] {
            assert_eq!(local(configured.parse().unwrap(), 8080).to_string(), asked);
        }
    }
}
