//! Asks a running agent for its health: `ebpf-sidecar health`, for images without curl.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::host::logging::clean;
use crate::metrics::health::Status;

/// More than any answer of the agent has, verifier logs in it included.
const MAX_BYTES: usize = 1 << 20;

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
}

impl fmt::Display for Unwell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unwell::Unhealthy(message) => write!(f, "unhealthy: {message}"),
            Unwell::Unreachable(address, e) => write!(f, "unreachable: no answer from {address}: {e}"),
            Unwell::NotTheAgent(address) => write!(f, "what answers at {address} is not ebpf-sidecar"),
        }
    }
}

impl std::error::Error for Unwell {}

/// Asks the agent at `address`, within `limit` altogether. One line if it is healthy or degraded.
pub fn ask(address: SocketAddr, limit: Duration) -> Result<String, Unwell> {
    let answer = fetch(address, limit).map_err(|e| Unwell::Unreachable(address, e))?;
    let answer = parse(&answer).ok_or(Unwell::NotTheAgent(address))?;
    let message = clean(answer.message);
    match answer.status {
        Status::Healthy => Ok(format!("healthy: {message}")),
        Status::Degraded => Ok(format!("degraded: {message}")),
        Status::Unhealthy => Err(Unwell::Unhealthy(message)),
    }
}

/// What is answered to a request for `/health`, head and body, until the connection is closed.
fn fetch(address: SocketAddr, limit: Duration) -> io::Result<Vec<u8>> {
    let late = || io::Error::new(ErrorKind::TimedOut, format!("not within {} s", limit.as_secs_f64()));
    let deadline = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let (mut answer, mut block) = (Vec::new(), [0; 4096]);
    loop {
        // A timeout of zero would be none.
        let left = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()).ok_or_else(late)?;
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut block) {
            Ok(0) => return Ok(answer),
            Ok(n) if answer.len() + n > MAX_BYTES => return Err(io::Error::other("the answer does not end")),
            Ok(n) => answer.extend_from_slice(&block[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Err(late()),
            Err(e) => return Err(e),
        }
    }
}

/// The agent always sends a body of known length, never in chunks.
fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let code = std::str::from_utf8(&answer[..end]).ok()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
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
    use std::thread;

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
        let result = ask(address, Duration::from_secs(60)).map_err(|e| e.to_string());
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
        let e = ask(address, Duration::from_millis(200)).unwrap_err().to_string();
        assert_eq!(e, format!("unreachable: no answer from {address}: not within 0.2 s"));
        drop(listener);
        let e = ask(address, Duration::from_secs(60)).unwrap_err().to_string();
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
