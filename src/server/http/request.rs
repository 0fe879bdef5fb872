//! Request heads: where they end, whether they are sound, and the one form in which tiny_http sees them.

use std::net::SocketAddr;

use httparse::{EMPTY_HEADER, Error, Header, Status};

use super::gateway::{CONFIGURE_PATH, STREAM_PATH, is_dear};
use super::hosts::Hosts;

/// Longest request head.
pub const HEAD_MAX: usize = 16 << 10;
/// Longest request body.
pub const BODY_MAX: usize = 64 << 10;
/// Most header lines in a request.
const HEADERS_MAX: usize = 100;

/// Header with which the front tells the routes who makes a request.
pub const PEER: &str = "X-Peer";

/// Why a request is refused: status code and message.
pub type Refusal = (u16, &'static str);

/// A checked request head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// The request as tiny_http gets it, but for its blank line and body: see [`Head::complete`].
    pub canonical: Vec<u8>,
    /// Length of the body that follows.
    pub body: usize,
    /// Whether a route wants the body; the front drops every other.
    pub wants_body: bool,
    /// The query, if the request is for the stream.
    pub stream: Option<String>,
    /// For a path that only those may read who know the agent's name: the Host and Origin headers.
    pub browser: Option<(Option<String>, Option<String>)>,
    /// The Authorization header, if there is one and no other.
    pub authorization: Option<Vec<u8>>,
    /// What the answer has to look like.
    pub reply: Reply,
}

impl Head {
    /// Why the request is refused, if a page of a foreign site may have made it.
    pub fn foreign(&self, hosts: &Hosts) -> Option<Refusal> {
        let (host, origin) = self.browser.as_ref()?;
        // No browser leaves its Host out.
        if host.as_ref().is_some_and(|host| !hosts.know(host)) {
            let why = "the Host header is neither localhost, an address, this host's name nor among server.http.hosts";
            return Some((403, why));
        }
        let own = |origin: &String| {
            let site = origin.split_once("://").map(|(_, site)| site);
            site.zip(host.as_ref()).is_some_and(|(site, host)| site.eq_ignore_ascii_case(host))
        };
        origin.as_ref().filter(|origin| !own(origin)).map(|_| (403, "the Origin header is of another site"))
    }

    /// The whole request as tiny_http gets it. `peer` is who makes it.
    pub fn complete(&mut self, peer: SocketAddr, body: &[u8]) -> Vec<u8> {
        let mut whole = std::mem::take(&mut self.canonical);
        if self.wants_body {
            whole.extend_from_slice(format!("{PEER}: {peer}\r\nContent-Length: {}\r\n", body.len()).as_bytes());
        }
        whole.extend_from_slice(b"\r\n");
        whole.extend_from_slice(body);
        whole
    }
}

/// What the front must know about a request to pass on its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// HEAD: the answer ends with its head.
    pub head_only: bool,
    /// The client takes further answers on this connection.
    pub keep_alive: bool,
    /// The client speaks HTTP/1.0, where keep-alive has to be said.
    pub http_1_0: bool,
    /// To make it takes long.
    pub dear: bool,
}

/// Finds the end of the head, the offset behind its blank line. The first `seen` bytes were searched before.
pub fn end_of_head(input: &[u8], seen: usize) -> Option<usize> {
    let start = seen.saturating_sub(2); // the blank line may have begun there
    let newlines = (start..input.len()).filter(|&i| input[i] == b'\n');
    for i in newlines {
        match &input[i + 1..] {
            [b'\n', ..] => return Some(i + 2),
            [b'\r', b'\n', ..] => return Some(i + 3),
            _ => {}
        }
    }
    None
}

/// Whether a request can begin with `byte`: a TLS handshake, for one, need not wait for the end of its head.
pub fn may_begin(byte: u8) -> bool {
    byte.is_ascii_alphabetic()
}

/// Checks a complete head.
pub fn parse(head: &[u8]) -> Result<Head, Refusal> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        Err(Error::TooManyHeaders) => return Err((431, "too many header lines")),
        Err(Error::Version) if names_http(head) => {
            return Err((505, "only HTTP/1.0 and HTTP/1.1 are spoken here"));
        }
        _ => return Err((400, "not an HTTP request")),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err((400, "not an HTTP request"));
    };
    if !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err((400, "the request target is not ASCII"));
    }

    let hosts = values(request.headers, "Host").count();
    if hosts > 1 || (minor == 1 && hosts == 0) {
        return Err((400, "a request has one Host header"));
    }
    if values(request.headers, "Transfer-Encoding").next().is_some() {
        return Err((501, "no Transfer-Encoding is understood: send the body with a Content-Length"));
    }
    let body = body_length(request.headers)?;

    let said =
        |token: &str| values(request.headers, "Connection").any(|v| v.split(|&b| b == b',').any(|t| is(t, token)));
    // A client that waits for "100 Continue" gets its answer instead. Its body may follow or not: that cannot
    // be told from a next request, so there is none.
    let expects = minor == 1 && body > 0 && values(request.headers, "Expect").any(|v| is(v, "100-continue"));
    let keep_alive = !said("close") && (minor == 1 || said("keep-alive")) && !expects;

    let origin = origin_form(target);
    let (path, query) = origin.split_once('?').unwrap_or((origin, ""));
    let wants_body = method == "POST" && path == CONFIGURE_PATH;
    // What changes the agent asks for more, in the gateway.
    let guarded = !wants_body && (path == "/" || path == "/api" || path.starts_with("/api/"));
    let header = |name| values(request.headers, name).next().map(|v| String::from_utf8_lossy(v).into_owned());
    Ok(Head {
        canonical: canonical(method, origin, request.headers, wants_body),
        body: if expects { 0 } else { body },
        wants_body,
        stream: (method == "GET" && path == STREAM_PATH).then(|| query.to_owned()),
        authorization: {
            let mut all = values(request.headers, "Authorization");
            all.next().filter(|_| all.next().is_none()).map(<[u8]>::to_vec)
        },
        browser: guarded.then(|| (header("Host"), header("Origin"))),
        reply: Reply { head_only: method == "HEAD", keep_alive, http_1_0: minor == 0, dear: is_dear(path, query) },
    })
}

/// The request with what the routes look at and nothing else. Always HTTP/1.1 without a Connection header, so
/// that tiny_http keeps its connection; no TE, on which it would chunk; no Expect, on which it might hang up.
fn canonical(method: &str, target: &str, headers: &[Header], wants_body: bool) -> Vec<u8> {
    let mut out = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    let clean = |v: &&[u8]| v.iter().all(|b| (b' '..=b'~').contains(b) || *b == b'\t'); // tiny_http hangs up on others
    let names = if wants_body { &["Accept", "Host", "Origin", "Content-Type"][..] } else { &["Accept"] };
    for name in names {
        let all: Vec<&[u8]> = values(headers, name).filter(clean).collect();
        // What is not clean is still there: an Origin that cannot be shown must not look like none.
        let unclean = values(headers, name).count() > all.len() && *name != "Accept";
        if !all.is_empty() || unclean {
            out.extend_from_slice(format!("{name}: ").as_bytes());
            out.extend_from_slice(&all.join(&b", "[..]));
            out.extend_from_slice(b"\r\n");
        }
    }
    out
}

/// `/path` of `http://host/path`; every other form is left as it is.
fn origin_form(target: &str) -> &str {
    let Some((scheme, rest)) = target.split_once("://") else {
        return target;
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return target;
    }
    match rest.find(['/', '?', '#']) {
        Some(i) if rest[i..].starts_with('/') => &rest[i..],
        _ => "/",
    }
}

fn body_length(headers: &[Header]) -> Result<usize, Refusal> {
    let mut lengths = values(headers, "Content-Length");
    let Some(length) = lengths.next() else {
        return Ok(0);
    };
    if lengths.next().is_some() || length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return Err((400, "Content-Length is not one number"));
    }
    // Digits only: what does not parse is larger than any usize.
    match std::str::from_utf8(length).ok().and_then(|s| s.parse().ok()) {
        Some(n) if n <= BODY_MAX => Ok(n),
        _ => Err((413, "a request body has at most 64 KiB")),
    }
}

fn values<'a>(headers: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value.trim_ascii())
}

fn is(value: &[u8], token: &str) -> bool {
    value.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
}

/// Whether the request line ends in an HTTP version, if not one of ours.
fn names_http(head: &[u8]) -> bool {
    let line = head.split(|&b| b == b'\n').next().unwrap_or_default().trim_ascii();
    line.rsplit(|&b| b == b' ').next().is_some_and(|word| word.starts_with(b"HTTP/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical_of(head: &str) -> String {
        let mut head = parse(head.as_bytes()).unwrap();
        String::from_utf8(head.complete("[::1]:7".parse().unwrap(), b"")).unwrap()
    }

    #[test]
    fn finds_the_end_of_a_head_however_it_arrives() {
        for head in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.0\n\n", "GET / HTTP/1.0\nA: b\n\r\n"] {
            let bytes = [head.as_bytes(), b"GET"].concat();
            assert_eq!(end_of_head(&bytes, 0), Some(head.len()));
            for seen in 0..head.len() {
                assert_eq!(end_of_head(&bytes[..seen], 0), None, "{head:?} cut at {seen}");
                assert_eq!(end_of_head(&bytes, seen), Some(head.len()), "{head:?} searched to {seen}");
            }
        }
    }

    #[test]
    fn passes_on_only_what_the_routes_look_at() {
        assert_eq!(
            canonical_of(
                "GET /m?q=1 HTTP/1.1\r\nHost: x\r\nTE: chunked\r\nExpect: wonders\r\nConnection: upgrade\r\n\r\n"
            ),
            "GET /m?q=1 HTTP/1.1\r\n\r\n"
        );
        assert_eq!(
            canonical_of("GET / HTTP/1.0\r\naccept: a/b \r\nX: y\r\nAccept: c/d;q=0.1\r\nAccept: \u{e9}\r\n\r\n"),
            "GET / HTTP/1.1\r\nAccept: a/b, c/d;q=0.1\r\n\r\n"
        );
        for (target, path) in [
            ("http://h:80/metrics?x", "/metrics?x"),
            ("HTTPS://h", "/"),
            ("http://h?x=/y", "/"),
            ("*", "*"),
            ("/a?b=http://c/d", "/a?b=http://c/d"),
        ] {
            assert_eq!(canonical_of(&format!("GET {target} HTTP/1.0\r\n\r\n")), format!("GET {path} HTTP/1.1\r\n\r\n"));
        }
    }

    #[test]
    fn a_change_comes_with_who_makes_it_and_what_it_says() {
        let head = "POST /api/v1/ebpf/modules/configure HTTP/1.1\r\nHost: a:1\r\nX-Peer: 127.0.0.1:1\r\n\
             Content-Type: application/json\r\nOrigin: \u{e9}\r\nContent-Length: 2\r\n\r\n";
        let mut head = parse(head.as_bytes()).unwrap();
        assert_eq!((head.wants_body, head.body), (true, 2));
        assert_eq!(
            String::from_utf8(head.complete("10.0.0.1:7".parse().unwrap(), b"{}")).unwrap(),
            "POST /api/v1/ebpf/modules/configure HTTP/1.1\r\nHost: a:1\r\nOrigin: \r\n\
             Content-Type: application/json\r\nX-Peer: 10.0.0.1:7\r\nContent-Length: 2\r\n\r\n{}"
        );
        let stream = |method: &str| {
            let head = format!("{method} http://x/api/v1/ebpf/metrics/stream?interval_seconds=1 HTTP/1.0\r\n\r\n");
            parse(head.as_bytes()).unwrap().stream
        };
        assert_eq!(stream("GET").as_deref(), Some("interval_seconds=1"));
        assert_eq!(stream("POST"), None);
    }

    #[test]
    fn pages_of_foreign_sites_read_nothing() {
        let hosts = Hosts::new(vec!["agent.example".into()]);
        let refused = |path: &str, headers: &str| {
            let head = parse(format!("GET {path} HTTP/1.1\r\n{headers}\r\n").as_bytes()).unwrap();
            head.foreign(&hosts).is_some()
        };
        for path in
            ["/", "/?a", "/api", "/api/v1/stats", "/api/v1/ebpf/metrics/stream?interval_seconds=1", "http://x/api/"]
        {
            for good in ["localhost:8080", "127.0.0.1", "10.0.0.1:8080", "[::1]:8080", "Agent.Example:1"] {
                assert!(!refused(path, &format!("Host: {good}\r\n")), "{path} {good}");
                assert!(!refused(path, &format!("Host: {good}\r\nOrigin: http://{good}\r\n")), "{path} {good}");
                for origin in
                    ["null", "http://evil.example", "", "\u{e9}", "http://localhost", "http://10.0.0.1:8080.evil"]
                {
                    assert!(refused(path, &format!("Host: {good}\r\nOrigin: {origin}\r\n")), "{path} {good} {origin}");
                }
            }
            for bad in ["evil.example", "", "\u{e9}", "localhost.evil.example:8080", "127.0.0.1.evil.example"] {
                assert!(refused(path, &format!("Host: {bad}\r\n")), "{path} {bad}");
                assert!(refused(path, &format!("Host: {bad}\r\nOrigin: http://{bad}\r\n")), "{path} {bad}");
            }
        }
        for path in ["/metrics", "/health"] {
            assert!(!refused(path, "Host: evil.example\r\nOrigin: null\r\n"), "{path}");
        }
        assert!(parse(b"GET / HTTP/1.0\r\n\r\n").unwrap().foreign(&hosts).is_none());
    }

    #[test]
    fn knows_when_a_connection_stays() {
        for (head, keep_alive) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: TE, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n", false),
        ] {
            assert_eq!(parse(head.as_bytes()).unwrap().reply.keep_alive, keep_alive, "{head:?}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_serve() {
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX));
        for (head, code) in [
            ("GET / HTTP/2.0\r\n\r\n", 505),
            ("GET / HTCPCP/1.0\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("\u{1}\u{2}\r\n\r\n", 400),
            ("GET /\u{e9} HTTP/1.0\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nA: b\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nContent-Length: 5, 6\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nContent-Length: +5\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nContent-Length:\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\nContent-Length: 65537\r\n\r\n", 413),
            ("GET / HTTP/1.0\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 501),
            (&many, 431),
        ] {
            assert_eq!(parse(head.as_bytes()).unwrap_err().0, code, "{head:?}");
        }
        assert_eq!(parse(b"POST / HTTP/1.0\r\nContent-Length: 65536\r\n\r\n").unwrap().body, BODY_MAX);
    }
}
