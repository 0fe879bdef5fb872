//! The HTTP server as its clients see it, hostile ones included. It runs in a process of its own (this test
//! binary again, see [`child_server`]), so that memory, threads and descriptors are the server's alone.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ebpf_sidecar::metrics::cell::SnapshotCell;
use ebpf_sidecar::metrics::snapshot::Snapshot;
use ebpf_sidecar::server::http::access::Access;
use ebpf_sidecar::server::http::{self, HttpServer, Page, Render, Rendered};

const METRICS_BYTES: usize = 20 << 10;
const STATS_BYTES: usize = 1 << 20;

fn snapshot(sequence: u64) -> Snapshot {
    Snapshot {
        files: None,
        diagnosis: None,
        scope: "host".into(),
        sequence,
        collected_at: SystemTime::now(),
        collected_instant: Instant::now(),
        started: Instant::now(),
        interval: Duration::from_secs(10),
        families: Vec::new(),
        processes: None,
        knows: Default::default(),
        modules: Vec::new(),
        last_error: None,
    }
}

/// Pages of realistic or larger size, made up.
fn render() -> Render {
    Box::new(|page, snapshot| match page {
        Page::Prometheus => format!("text {} {}\n", snapshot.sequence, "m".repeat(METRICS_BYTES)).into(),
        Page::OpenMetrics => format!("open {}\n# EOF\n", snapshot.sequence).into(),
        Page::Stats => format!("{{\"stats\":\"{}\"}}", "s".repeat(STATS_BYTES)).into(),
        Page::Diagnosis => "{\"verdicts\":[]}".to_owned().into(),
        Page::Health => "{\"status\":\"healthy\"}".to_owned().into(),
    })
}

fn start(cell: &SnapshotCell, render: Render) -> HttpServer {
    http::start("127.0.0.1:0".parse().unwrap(), "/metrics", cell.clone(), render, None, Access::new(None).unwrap())
        .unwrap()
}

// A client.

struct Answer {
    code: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|l| l.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads one answer; an error if the connection ends before it does.
fn read_answer(stream: &mut impl BufRead, head_only: bool) -> io::Result<Answer> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let code = head[9..12].parse().unwrap();
    let mut answer = Answer { code, head, body: Vec::new() };
    assert!(answer.header("Transfer-Encoding").is_none(), "{}", answer.head);
    let length = answer.header("Content-Length").unwrap().parse().unwrap();
    if !head_only {
        answer.body = vec![0; length];
        stream.read_exact(&mut answer.body)?;
    }
    Ok(answer)
}

/// Sends `request` on a new connection and reads one answer, and whether the server then ends the connection.
fn try_send(address: SocketAddr, request: &[u8]) -> io::Result<(Answer, bool)> {
    let mut stream = connect(address);
    stream.write_all(request)?;
    let mut stream = BufReader::new(stream);
    let answer = read_answer(&mut stream, request.starts_with(b"HEAD"))?;
    stream.get_ref().set_read_timeout(Some(Duration::from_millis(200)))?;
    let ended = matches!(stream.read(&mut [0]), Ok(0));
    Ok((answer, ended))
}

fn send(address: SocketAddr, request: &[u8]) -> (Answer, bool) {
    try_send(address, request).unwrap()
}

fn try_get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    try_send(address, request.as_bytes()).map(|(answer, _)| answer)
}

fn get(address: SocketAddr, path: &str) -> Answer {
    try_get(address, path).unwrap()
}

/// Everything until the server ends the connection, and how long that took.
fn read_to_end(mut stream: TcpStream) -> (Vec<u8>, Duration) {
    let (start, mut all) = (Instant::now(), Vec::new());
    let _ = stream.read_to_end(&mut all); // a reset is an end, too
    (all, start.elapsed())
}

// The server in a process of its own.

/// Not a test: the server that the tests run. It follows the commands on its standard input until that ends.
#[test]
fn child_server() {
    if std::env::var_os("HTTP_TEST_CHILD").is_none() {
        return;
    }
    let server = start(&SnapshotCell::new(snapshot(1)), render());
    println!("\naddress={}", server.address());
    let mut hoard = Vec::new();
    for command in io::stdin().lines() {
        match command.unwrap().as_str() {
            "take every descriptor" => hoard.extend(std::iter::from_fn(|| File::open("/dev/null").ok())),
            "give them back" => hoard.clear(),
            other => panic!("{other}?"),
        }
        println!("\ndone {}", hoard.len());
    }
    let start = Instant::now();
    server.stop();
    assert!(start.elapsed() < Duration::from_secs(4), "stopped after {:?}", start.elapsed());
}

struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
    // The attacks measure latencies: one at a time.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl Server {
    fn start() -> Server {
        Server::start_with(4096)
    }

    fn start_with(descriptors: u32) -> Server {
        let alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -n {descriptors}; exec \"$0\" child_server --exact --nocapture"))
            .arg(std::env::current_exe().unwrap())
            .env("HTTP_TEST_CHILD", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let address = expect(&mut stdout, "address=").parse().unwrap();
        let server = Server { child, stdin, stdout, address, _alone: alone };
        get(server.address, "/api/v1/stats"); // what every page needs once is not an attack's doing
        server
    }

    fn command(&mut self, command: &str) -> usize {
        writeln!(self.stdin.as_mut().unwrap(), "{command}").unwrap();
        expect(&mut self.stdout, "done ").parse().unwrap()
    }

    /// A number of /proc/PID/status: kB or threads.
    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Runs an attack while another client asks for /health and /metrics all the time, and sees that it is
    /// served within half a second, or ten times what it takes here without an attack, or what a server that is not
    /// attacked takes meanwhile, and that neither memory
    /// nor threads grow. What a busy machine delays once, it hardly does three times: an answer, or
    /// between connecting and asking this client, whose connection may then be taken for one that can be spared.
    fn under(&mut self, mut attack: impl FnMut(&mut Server)) {
        let (alone, _) = self.slowest_under(&mut |_: &mut Server| {});
        let served = (0..3).any(|_| {
            let (slowest, control) = self.slowest_under(&mut attack);
            slowest < Duration::from_millis(500).max(alone.max(control).saturating_mul(10))
        });
        assert!(served, "an answer was too slow in each of three attacks");
    }

    /// Of the answers to the other client, and of those of the server that is not attacked.
    fn slowest_under(&mut self, attack: &mut impl FnMut(&mut Server)) -> (Duration, Duration) {
        let address = self.address;
        let unattacked = TcpListener::bind("127.0.0.1:0").unwrap();
        let control = unattacked.local_addr().unwrap();
        let answering = thread::spawn(move || {
            let body = "x".repeat(METRICS_BYTES);
            for stream in unattacked.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut line = String::new();
                while stream.read_line(&mut line).unwrap() > 0 && !line.ends_with("\r\n\r\n") {}
                if line.starts_with("END") {
                    return;
                }
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {METRICS_BYTES}\r\n\r\n{body}");
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        let (memory, threads) = (self.status("VmRSS"), self.status("Threads"));
        let over = Arc::new(AtomicBool::new(false));
        let observer = thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let (mut worst, mut unattacked, mut asked) = (Duration::ZERO, Duration::ZERO, 0);
                while !over.load(Ordering::Relaxed) || asked < 10 {
                    for path in ["/health", "/metrics"] {
                        let start = Instant::now();
                        match try_get(address, path) {
                            Ok(answer) => assert_eq!(answer.code, 200),
                            Err(e) => {
                                println!("{path}: {e}");
                                worst = Duration::MAX;
                            }
                        }
                        // `try_get` waits for the end of the connection, so this is more than the answer took.
                        worst = worst.max(start.elapsed());
                        asked += 1;
                    }
                    let start = Instant::now();
                    get(control, "/metrics");
                    unattacked = unattacked.max(start.elapsed());
                    thread::sleep(Duration::from_millis(10));
                }
                connect(control).write_all(b"END\r\n\r\n").unwrap();
                (worst, unattacked, asked)
            }
        });
        let status = format!("/proc/{}/status", self.child.id());
        let peak = thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let mut peak = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    let status = std::fs::read_to_string(&status).unwrap();
                    let field = |name: &str| -> u64 {
                        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
                        line.split_whitespace().next().unwrap().parse().unwrap()
                    };
                    peak = (peak.0.max(field("VmRSS:")), peak.1.max(field("Threads:")));
                    thread::sleep(Duration::from_millis(5));
                }
                peak
            }
        });
        attack(self);
        over.store(true, Ordering::Relaxed);
        let (worst, unattacked, asked) = observer.join().unwrap();
        answering.join().unwrap();
        let peak = peak.join().unwrap();
        let grown = peak.0.saturating_sub(memory);
        println!(
            "{asked} answers, slowest {worst:?}, {unattacked:?} where nobody attacks; memory +{grown} kB; threads {} of {threads}",
            peak.1
        );
        assert!(grown < 24 << 10, "memory grew by {grown} kB");
        assert!(peak.1 <= threads, "{} threads, {threads} at first", peak.1);
        (worst, unattacked)
    }
}

fn expect(lines: &mut impl BufRead, prefix: &str) -> String {
    let found = lines.lines().map(Result::unwrap).find_map(|l| l.strip_prefix(prefix).map(str::to_owned));
    found.unwrap_or_else(|| panic!("the server ended without {prefix:?}"))
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stdin.take()); // which stops it
        let status = self.child.wait().unwrap();
        assert!(status.success() || thread::panicking(), "the server failed: {status}");
    }
}

// What it serves.

#[test]
fn serves_its_pages_and_nothing_else() {
    let server = start(&SnapshotCell::new(snapshot(7)), render());
    let address = server.address();
    for (path, media) in [
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/metrics?name=x", "text/plain; version=0.0.4; charset=utf-8"),
        ("http://other.example:80/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/health", "application/json"),
        ("/api/v1/stats", "application/json"),
        ("/", "text/html; charset=utf-8"),
        ("/?from=a#link", "text/html; charset=utf-8"),
    ] {
        let (got, ended) = send(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert_eq!((got.code, got.header("Content-Type"), ended), (200, Some(media), false), "{path}");
        assert_eq!(got.header("Cache-Control"), Some("no-store"));
        assert_eq!(got.header("X-Content-Type-Options"), Some("nosniff"));
        assert!(got.header("Date").is_some());
        assert!(!got.body.is_empty());

        let (head, ended) = send(address, format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert!(!ended, "HEAD {path} sent a body or closed");
        let without_date = |a: &Answer| -> Vec<String> {
            a.head.lines().filter(|l| !l.starts_with("Date")).map(str::to_owned).collect()
        };
        assert_eq!(without_date(&head), without_date(&got), "{path}");
    }

    let accept =
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;version=1.0.0,*/*;q=0.1\r\n\r\n";
    let open = send(address, accept.as_bytes()).0;
    assert_eq!(open.header("Content-Type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert_eq!(open.body, b"open 7\n# EOF\n");

    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"] {
        let request = format!("{method} /health HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
        let (answer, ended) = send(address, request.as_bytes());
        assert_eq!((answer.code, answer.header("Allow"), ended), (405, Some("GET, HEAD"), false), "{method}");
        assert_error(&answer);
    }
    for target in ["/index.html", "/metrics/", "/Health", "*", "/%6detrics"] {
        let (answer, ended) = send(address, format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert_eq!((answer.code, ended), (404, false), "{target}");
        let message = assert_error(&answer);
        for path in [" /,", "/metrics", "/health", "/api/v1/stats"] {
            assert!(message.contains(path), "{message}");
        }
    }
}

/// What stands between the only `begin` and the `end` after it.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let parts: Vec<&str> = text.split(begin).collect();
    assert_eq!(parts.len(), 2, "{begin}");
    parts[1].split_once(end).unwrap().0
}

#[test]
fn the_page_allows_its_own_script_and_style_alone() {
    let server = start(&SnapshotCell::new(snapshot(1)), render());
    let page = get(server.address(), "/");
    assert_eq!(page.header("Referrer-Policy"), Some("no-referrer"));
    let html = String::from_utf8(page.body.clone()).unwrap();
    assert!(html.len() <= 40 << 10, "{} bytes", html.len());
    let hash = |element: &str| {
        let text = between(&html, &format!("<{element}>"), &format!("</{element}>"));
        let hash = openssl::hash::hash(openssl::hash::MessageDigest::sha256(), text.as_bytes()).unwrap();
        format!("{element}-src 'sha256-{}'", openssl::base64::encode_block(&hash))
    };
    let policy: Vec<&str> = page.header("Content-Security-Policy").unwrap().split("; ").collect();
    let (script, style) = (hash("script"), hash("style"));
    assert_eq!(
        policy,
        [
            "default-src 'none'",
            &script,
            &style,
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    );
    // The other pages are no documents.
    assert_eq!(get(server.address(), "/health").header("Content-Security-Policy"), None);
}

/// Sees that an answer is an error as JSON; its message.
fn assert_error(answer: &Answer) -> String {
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(json["code"], answer.code);
    json["message"].as_str().unwrap().to_owned()
}

#[test]
fn connections_stay_or_end_as_asked() {
    let server = start(&SnapshotCell::new(snapshot(1)), render());
    for (request, ends) in [
        ("GET /health HTTP/1.1\r\nHost: x\r\n\r\n", false),
        ("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", true),
        ("GET /health HTTP/1.0\r\n\r\n", true),
        ("GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", false),
        ("\r\n\r\nGET /health HTTP/1.0\n\n", true),
    ] {
        let (answer, ended) = send(server.address(), request.as_bytes());
        assert_eq!((answer.code, ended), (200, ends), "{request:?}");
        let said = match (ends, request.contains("1.0")) {
            (true, _) => Some("close"),
            (false, true) => Some("keep-alive"),
            (false, false) => None,
        };
        assert_eq!(answer.header("Connection"), said, "{request:?}");
    }

    let mut stream = BufReader::new(connect(server.address()));
    for _ in 0..100 {
        stream.get_mut().write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut stream, false).unwrap().code, 200);
    }
}

#[test]
fn a_client_that_has_finished_sending_gets_its_answers() {
    let server = start(&SnapshotCell::new(snapshot(1)), render());
    let mut stream = connect(server.address());
    stream.write_all(&b"GET /api/v1/stats HTTP/1.1\r\nHost: x\r\n\r\n".repeat(3)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut stream = BufReader::new(stream);
    for _ in 0..3 {
        assert!(read_answer(&mut stream, false).unwrap().body.len() > STATS_BYTES);
    }
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn refuses_bad_requests_with_a_reason() {
    let server = start(&SnapshotCell::new(snapshot(1)), render());
    let too_long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &b"x".repeat(1 << 20)].concat();
    let garbage: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (request, code) in [
        (too_long.as_slice(), 431),
        (&garbage, 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n", 413),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 501),
        // A client that waits for leave to send its body gets the answer instead.
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", 405),
    ] {
        let (answer, ended) = send(server.address(), request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(90)]);
        assert_eq!((answer.code, ended), (code, true), "{shown:?}");
        assert_eq!(answer.header("Connection"), Some("close"));
        assert_error(&answer);
    }
    // The largest body that is taken, and the next request behind it.
    let mut request = b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n".to_vec();
    request.extend(b"G".repeat(65536));
    request.extend(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut stream = connect(server.address());
    stream.write_all(&request).unwrap();
    let mut stream = BufReader::new(stream);
    assert_eq!(read_answer(&mut stream, false).unwrap().code, 405);
    assert_eq!(read_answer(&mut stream, false).unwrap().code, 200);
}

#[test]
fn renders_a_page_once_per_snapshot_and_health_every_time() {
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let cell = SnapshotCell::new(snapshot(1));
    let counted = Arc::clone(&counts);
    let server = start(
        &cell,
        Box::new(move |page, snapshot| {
            counted[usize::from(page == Page::Health)].fetch_add(1, Ordering::Relaxed);
            Rendered { status: if page == Page::Health { 503 } else { 200 }, body: snapshot.sequence.to_string() }
        }),
    );
    for sequence in 1..=3 {
        cell.store(snapshot(sequence));
        for _ in 0..5 {
            assert_eq!(get(server.address(), "/metrics").body, sequence.to_string().as_bytes());
            assert_eq!(get(server.address(), "/api/v1/stats").body, sequence.to_string().as_bytes());
            assert_eq!(get(server.address(), "/health").code, 503);
        }
    }
    assert_eq!(counts[0].load(Ordering::Relaxed), 3 * 2);
    assert_eq!(counts[1].load(Ordering::Relaxed), 3 * 5);
}

#[test]
fn a_page_that_panics_costs_one_answer() {
    let render: Render = Box::new(|page, _| match page {
        Page::Stats => panic!("as the test wants it"),
        _ => "fine".to_owned().into(),
    });
    let server = start(&SnapshotCell::new(snapshot(1)), render);
    assert_eq!(get(server.address(), "/api/v1/stats").code, 500);
    assert_eq!(get(server.address(), "/metrics").code, 200);
}

#[test]
fn starts_and_stops_and_says_why_it_cannot() {
    let cell = SnapshotCell::new(snapshot(1));
    let server = start(&cell, render());
    let address = server.address();
    let error = http::start(address, "/metrics", cell.clone(), render(), None, Access::new(None).unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains(&format!("{} port {}", address.ip(), address.port())), "{error}");
    assert!(error.contains("in use") && error.contains("server.http.port"), "{error}");

    let (_idle, mut half) = (connect(address), connect(address));
    half.write_all(b"GET /").unwrap();
    let begun = Instant::now();
    server.stop();
    assert!(begun.elapsed() < Duration::from_secs(4), "stopped after {:?}", begun.elapsed());
    http::start(address, "/metrics", cell, render(), None, Access::new(None).unwrap())
        .expect("the port is free again")
        .stop();
}

// What it withstands.

#[test]
fn withstands_half_requests() {
    Server::start().under(|server| {
        let held: Vec<TcpStream> = (0..400)
            .map(|i| {
                let mut stream = connect(server.address);
                let half: &[u8] = if i % 2 == 0 { b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Half: " } else { b"POST /" };
                stream.write_all(half).unwrap();
                stream
            })
            .collect();
        // The last ones are inside the limit, and get told when their time is over.
        let (last, took) = read_to_end(held[399].try_clone().unwrap());
        assert!(last.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&last));
        assert!(took < Duration::from_secs(8), "{took:?}");
    });
}

#[test]
fn withstands_a_byte_a_second() {
    Server::start().under(|server| {
        let mut held: Vec<TcpStream> = (0..100).map(|_| connect(server.address)).collect();
        let request = b"GET /metrics HTTP/1.1\r\n";
        for byte in &request[..7] {
            held.retain_mut(|s| s.write_all(&[*byte]).is_ok());
            thread::sleep(Duration::from_secs(1));
        }
        for stream in held {
            let (answer, took) = read_to_end(stream);
            assert!(took < Duration::from_secs(3), "still open {took:?} after 7 s");
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"));
        }
    });
}

#[test]
fn withstands_endless_headers() {
    Server::start().under(|server| {
        let chunk = vec![b'x'; 1 << 20];
        let senders: Vec<_> = (0..8)
            .map(|_| {
                let (mut stream, chunk) = (connect(server.address), chunk.clone());
                thread::spawn(move || {
                    stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
                    (0..1024).take_while(|_| stream.write_all(&chunk).is_ok()).count()
                })
            })
            .collect();
        for sender in senders {
            let mebibytes = sender.join().unwrap();
            assert!(mebibytes < 64, "took {mebibytes} MiB of header"); // socket buffers take a few
        }
    });
}

#[test]
fn withstands_pipelining() {
    Server::start().under(|server| {
        let mut stream = connect(server.address);
        let mut answers = BufReader::new(stream.try_clone().unwrap());
        let reader = thread::spawn(move || {
            for i in 0..10_000 {
                let answer = read_answer(&mut answers, i % 2 == 1).unwrap();
                assert_eq!(answer.code, if i % 10 == 0 { 404 } else { 200 }, "answer {i}");
            }
        });
        let requests: String = (0..10_000)
            .map(|i| {
                let path = if i % 10 == 0 { "/nowhere" } else { "/health" };
                format!("{} {path} HTTP/1.1\r\nHost: x\r\n\r\n", if i % 2 == 1 { "HEAD" } else { "GET" })
            })
            .collect();
        stream.write_all(requests.as_bytes()).unwrap();
        reader.join().unwrap();

        // And from clients that send all and read nothing.
        let held: Vec<_> = (0..100)
            .map(|_| {
                let mut stream = connect(server.address);
                stream.set_nonblocking(true).unwrap();
                let _ = stream.write(requests.as_bytes());
                stream
            })
            .collect();
        thread::sleep(Duration::from_secs(3));
        drop(held);
    });
}

#[test]
fn withstands_clients_that_never_pause() {
    Server::start().under(|server| {
        let (address, end) = (server.address, Instant::now() + Duration::from_secs(3));
        let clients: Vec<_> = (0..100)
            .map(|_| {
                thread::spawn(move || {
                    while Instant::now() < end {
                        let mut stream = connect(address);
                        let requests = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
                        while Instant::now() < end && stream.write_all(&requests).is_ok() {
                            // Others may get its place.
                            let mut answers = BufReader::new(&stream);
                            if (0..200).any(|_| read_answer(&mut answers, false).is_err()) {
                                break;
                            }
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|c| c.join().unwrap());
    });
}

#[test]
fn withstands_readers_that_never_read() {
    Server::start().under(|server| {
        let held: Vec<_> = (0..64)
            .map(|_| {
                let mut stream = connect(server.address);
                stream.write_all(&b"GET /api/v1/stats HTTP/1.1\r\nHost: x\r\n\r\n".repeat(20)).unwrap();
                stream
            })
            .collect();
        thread::sleep(Duration::from_secs(11));
        // 10 s to write an answer: they have all been given up, with what was under way in the buffers.
        for stream in held {
            let (bytes, took) = read_to_end(stream);
            assert!(bytes.len() < 20 * STATS_BYTES && took < Duration::from_secs(5), "{} in {took:?}", bytes.len());
        }
    });
}

#[test]
fn withstands_garbage() {
    Server::start().under(|server| {
        let mut random = 1u64;
        for _ in 0..500 {
            let mut stream = connect(server.address);
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 33) as u8
            })
            .take(5000)
            .collect();
            // Half of them begin like a request, so that the whole head is looked at.
            let begin: &[u8] = if random & 1 == 0 { b"GET / HTTP/1.1\r\n" } else { b"" };
            let _ = stream.write_all(&[begin, &bytes, b"\r\n\r\n"].concat());
            let _ = stream.shutdown(Shutdown::Write);
            let (answer, _) = read_to_end(stream);
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(b"HTTP/1.1 5"));
        }
    });
}

#[test]
fn withstands_connections_that_come_and_go() {
    Server::start().under(|server| {
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            for request in [&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"GET", b""] {
                let mut stream = connect(server.address);
                let _ = stream.write_all(request); // and gone before the answer
            }
        }
    });
}

#[test]
fn withstands_clients_that_use_up_the_descriptors() {
    // 64 descriptors: fewer than the connections it would take.
    Server::start_with(64).under(|server| {
        for _ in 0..5 {
            let held: Vec<_> = (0..200)
                .map(|_| {
                    let mut stream = connect(server.address);
                    let _ = stream.write_all(b"GET /metr");
                    stream
                })
                .collect();
            thread::sleep(Duration::from_millis(500));
            drop(held);
        }
    });
}

#[test]
fn withstands_others_that_use_up_the_descriptors() {
    Server::start_with(64).under(|server| {
        for _ in 0..3 {
            let mut kept = BufReader::new(connect(server.address));
            assert!(server.command("take every descriptor") > 10);
            thread::sleep(Duration::from_millis(500));
            let held: Vec<_> = (0..30).map(|_| connect(server.address)).collect();
            thread::sleep(Duration::from_secs(2));
            drop(held);
            assert_eq!(server.command("give them back"), 0);
            let start = Instant::now();
            assert_eq!(get(server.address, "/health").code, 200);
            assert!(start.elapsed() < Duration::from_secs(20));
            let _ = kept.get_mut().write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"); // open or closed, as may be
            let _ = read_answer(&mut kept, false);
        }
    });
}

#[test]
fn withstands_a_limit_lowered_below_what_is_open() {
    Server::start().under(|server| {
        let limit = |n: u32| {
            let pid = server.child.id().to_string();
            let set = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={n}:4096")]).status();
            assert!(set.expect("prlimit, of util-linux, is needed").success());
        };
        let _held: Vec<_> = (0..120).map(|_| connect(server.address)).collect();
        thread::sleep(Duration::from_millis(100));
        limit(48);
        thread::sleep(Duration::from_secs(1));
        limit(4096);
        thread::sleep(Duration::from_millis(500));
    });

    let server = Server::start();
    let pid = server.child.id().to_string();
    let limit = |n| Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={n}:4096")]).status().unwrap();
    limit("1"); // not even enough to poll
    let mut waiting = connect(server.address);
    waiting.write_all(b"GET /health HTTP/1.0\r\n\r\n").unwrap();
    thread::sleep(Duration::from_secs(1));
    limit("4096");
    let (answer, took) = read_to_end(waiting);
    assert!(answer.starts_with(b"HTTP/1.1 200") && took < Duration::from_secs(20), "{took:?}");
}

/// `cargo test --release --test http -- --ignored --nocapture scrapes`: needs wrk.
#[test]
#[ignore = "a measurement"]
fn scrapes_per_second() {
    let server = Server::start();
    let pid = server.child.id().to_string();
    let pinned = Command::new("taskset").args(["-a", "-p", "-c", "0", &pid]).stdout(Stdio::null()).status();
    assert!(pinned.unwrap().success());
    let url = format!("http://{}/metrics", server.address);
    let wrk = Command::new("taskset").args(["-c", "1", "wrk", "-t1", "-c4", "-d5s", "--latency", &url]).output();
    println!("{}", String::from_utf8(wrk.unwrap().stdout).unwrap());
    println!("resident: {} kB, threads: {}", server.status("VmRSS"), server.status("Threads"));
}
