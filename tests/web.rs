//! `server.http.web_config`: TLS, passwords and headers of the HTTP server, against clients that keep to the rules and
//! others. Most servers run in this process, without any programs in the kernel.

mod common;
#[path = "common/grpc.rs"]
mod grpc;
#[path = "common/identity.rs"]
mod identity;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::metrics::cell::SnapshotCell;
use ebpf_sidecar::metrics::http::COUNTS;
use ebpf_sidecar::metrics::snapshot::{Snapshot, Value};
use ebpf_sidecar::monitor::example;
use ebpf_sidecar::server::http::access::{self, Access};
use ebpf_sidecar::server::http::{self, HttpServer, Page};
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslStream, SslVersion};
use openssl::symm::Cipher;

use common::prometheus::Prometheus;
use common::{Agent, TempDir, output, text};
use ebpf_sidecar::api::proto::health::{HealthCheckRequest, HealthCheckResponse};
use ebpf_sidecar::api::proto::rpc;
use ebpf_sidecar::server::grpc::stubs::{called, name};
use grpcio::{CallOption, ChannelCredentialsBuilder, MetadataBuilder, MethodType, RpcStatusCode};
use identity::{Identity, YEAR};

const STATS_BYTES: usize = 1 << 20;

/// A web configuration with the files that it names, all in one folder.
struct Files {
    dir: TempDir,
    ca: Identity,
}

const TLS: &str = "tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n";

impl Files {
    fn new(config: &str) -> Self {
        let files = Self { dir: TempDir::new("web"), ca: Identity::new(1, None, YEAR) };
        files.write("ca.crt", &files.ca.cert_pem());
        files.put(&Identity::new(2, Some(&files.ca), YEAR));
        files.write("web.yml", config.as_bytes());
        files
    }

    /// Puts content in place at once, as a rename does.
    fn write(&self, name: &str, content: &[u8]) {
        let new = self.dir.path.join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, self.dir.path.join(name)).unwrap();
    }

    fn put(&self, own: &Identity) {
        self.write("tls.crt", &own.cert_pem());
        self.write("tls.key", &own.key_pem());
    }

    fn config(&self) -> std::path::PathBuf {
        self.dir.path.join("web.yml")
    }

    fn error(&self) -> String {
        access::check(&self.config()).unwrap_err()
    }

    fn start(&self) -> Server {
        Server::start(Access::new(Some(&self.config())).unwrap())
    }

    /// A client that trusts the authority, and has a certificate if one is given.
    fn connector(&self, own: Option<&Identity>) -> SslConnectorBuilder {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.cert_store_mut().add_cert(self.ca.cert.clone()).unwrap();
        if let Some(own) = own {
            connector.set_certificate(&own.cert).unwrap();
            connector.set_private_key(&own.key).unwrap();
        }
        connector
    }

    fn connect(&self, address: SocketAddr) -> SslStream<TcpStream> {
        let stream = tcp(address, Ipv4Addr::LOCALHOST);
        self.connector(None).build().connect("localhost", stream).unwrap()
    }
}

struct Server {
    http: HttpServer,
    access: Access,
}

impl Server {
    fn start(access: Access) -> Self {
        let cell = SnapshotCell::new(example::snapshot());
        let render = Box::new(|page: Page, _: &Snapshot| match page {
            Page::Stats => "s".repeat(STATS_BYTES).into(),
            _ => "fine\n".to_owned().into(),
        });
        let address = "127.0.0.1:0".parse().unwrap();
        let http = http::start(address, "/metrics", cell, render, None, access.clone()).unwrap();
        Self { http, access }
    }

    fn address(&self) -> SocketAddr {
        self.http.address()
    }
}

/// A connection from an address of this host.
fn tcp(to: SocketAddr, from: Ipv4Addr) -> TcpStream {
    let stream = common::sys::connect_from(to, from).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn basic(user: &str) -> String {
    format!("Authorization: Basic {}\r\n", openssl::base64::encode_block(user.as_bytes()))
}

/// The answer to a request on a connection that ends with it: status, head and body.
fn ask(stream: &mut (impl Read + Write), path: &str, headers: &str) -> io::Result<(u16, String, String)> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let bad = || io::Error::other(format!("no answer: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    Ok((status, head.to_owned(), body.to_owned()))
}

fn hash(password: &str) -> String {
    bcrypt::hash(password, 4).unwrap()
}

/// The value of a metric of the server's own.
fn own(name: &str) -> Option<u64> {
    COUNTS.families().find(|f| f.metric.name == name).map(|f| match f.series[0].value {
        Value::Int(n) => n,
        _ => panic!("{name} is no whole number"),
    })
}

/// Waits until changed files are looked at again.
fn let_it_look() {
    thread::sleep(Duration::from_millis(1100));
}

// ---- TLS ----

#[test]
fn keys_of_every_kind_are_served_and_what_cannot_be_used_is_named() {
    let files = Files::new(TLS);
    let kinds: [(&str, PKey<Private>); 3] = [
        ("EC", Identity::new(3, None, YEAR).key),
        ("RSA", PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()),
        ("Ed25519", PKey::generate_ed25519().unwrap()),
    ];
    for (kind, key) in kinds {
        let leaf = Identity::with_key(4, Some(&files.ca), YEAR, key);
        // With its authority behind it, as chains have it.
        files.write("tls.crt", &[leaf.cert_pem(), files.ca.cert_pem()].concat());
        files.write("tls.key", &leaf.key_pem());
        let server = files.start();
        let mut stream = files.connect(server.address());
        assert_eq!(stream.ssl().peer_cert_chain().unwrap().len(), 2, "{kind}");
        let (status, _, body) = ask(&mut stream, "/api/v1/stats", "").unwrap();
        assert_eq!((status, body.len()), (200, STATS_BYTES), "{kind}");
    }

    let (one, other) = (Identity::new(5, Some(&files.ca), YEAR), Identity::new(6, Some(&files.ca), YEAR));
    let encrypted = one.key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_256_cbc(), b"x").unwrap();
    let weak = Identity::with_key(7, Some(&files.ca), YEAR, PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap());
    for (cert, key, words) in [
        (one.cert_pem(), other.key_pem(), "tls.key: does not belong to the first certificate in"),
        ([files.ca.cert_pem(), one.cert_pem()].concat(), one.key_pem(), "does not belong to the first certificate"),
        (one.cert_pem(), encrypted, "tls.key: no PEM private key without a password"),
        (one.cert_pem(), b"".to_vec(), "tls.key: no PEM private key"),
        (b"hello".to_vec(), one.key_pem(), "tls.crt: no PEM certificate"),
        (one.cert_pem(), [one.key_pem(), vec![0]].concat(), "tls.key: has a NUL byte"),
        (weak.cert_pem(), weak.key_pem(), "tls.crt: TLS cannot be set up with it: ee key too small"),
    ] {
        files.write("tls.crt", &cert);
        files.write("tls.key", &key);
        let error = files.error();
        assert!(error.starts_with("server.http.web_config: ") && error.contains(words), "{error}");
    }
    fs::remove_file(files.dir.path.join("tls.key")).unwrap();
    assert!(files.error().contains("tls.key: No such file"), "{}", files.error());
    let inline = |pem: Vec<u8>| format!("{:?}", String::from_utf8(pem).unwrap());
    let text = format!("tls_server_config:\n  cert: {}\n  key: {}\n", inline(one.cert_pem()), inline(one.key_pem()));
    files.write("web.yml", text.as_bytes());
    let server = files.start();
    assert_eq!(ask(&mut files.connect(server.address()), "/health", "").unwrap().0, 200);
}

#[test]
fn who_does_not_speak_tls_as_it_should_is_told_or_let_go() {
    let files = Files::new(TLS);
    let server = files.start();
    let (status, _, body) = ask(&mut tcp(server.address(), Ipv4Addr::LOCALHOST), "/metrics", "").unwrap();
    assert!(status == 400 && body.contains("https://"), "{status} {body}");

    let connect = |max: SslVersion| {
        let mut connector = files.connector(None);
        connector.set_min_proto_version(None).unwrap();
        connector.set_max_proto_version(Some(max)).unwrap();
        connector.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
        connector.set_alpn_protos(b"\x02h2\x08http/1.1").unwrap();
        let stream = connector.build().connect("localhost", tcp(server.address(), Ipv4Addr::LOCALHOST));
        stream.map(|s| {
            assert_eq!(s.ssl().selected_alpn_protocol(), Some(&b"http/1.1"[..]));
            s.ssl().version_str().to_owned()
        })
    };
    assert_eq!(connect(SslVersion::TLS1_3).unwrap(), "TLSv1.3");
    assert_eq!(connect(SslVersion::TLS1_2).unwrap(), "TLSv1.2");
    for old in [SslVersion::TLS1, SslVersion::TLS1_1] {
        let why = connect(old).unwrap_err().to_string();
        assert!(why.contains("protocol version"), "{why}");
    }
    for noise in
        [&b"\x16\x03\x01\xff\xff"[..], b"\x16\x03\x01\x00\x05aaaaa", b"\x00", b"\x80\x2e\x01\x00\x02", &[0x16; 70_000]]
    {
        let mut stream = tcp(server.address(), Ipv4Addr::LOCALHOST);
        stream.write_all(noise).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(ask(&mut files.connect(server.address()), "/health", "").unwrap().0, 200);
}

#[test]
fn connections_are_kept_and_requests_in_one_record_are_answered_one_by_one() {
    let files = Files::new(TLS);
    let server = files.start();
    let mut stream = files.connect(server.address());
    // In one record, of which the server takes a part for each.
    let request = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let long = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(12 << 10));
    let last = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(format!("{request}{long}{request}{request}{last}").as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 5, "{answers}");
    // And bodies that nobody wants.
    let mut stream = files.connect(server.address());
    let post =
        format!("POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65536\r\n\r\n{}", "b".repeat(65536));
    stream.write_all(post.as_bytes()).unwrap();
    stream.write_all(last.as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert!(answers.starts_with("HTTP/1.1 405") && answers.contains("HTTP/1.1 200"), "{answers}");
}

#[test]
fn a_thousand_half_handshakes_keep_nobody_out() {
    let files = Files::new(TLS);
    let server = files.start();
    // The beginning of a ClientHello, and nothing.
    let half: Vec<TcpStream> = (0..1000)
        .map(|n| {
            let mut stream = tcp(server.address(), Ipv4Addr::LOCALHOST);
            if n % 2 == 0 {
                stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01").unwrap();
            }
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(ask(&mut files.connect(server.address()), "/health", "").unwrap().0, 200);
    }
    drop(half);
    assert_eq!(ask(&mut files.connect(server.address()), "/health", "").unwrap().0, 200);
}

#[test]
fn clients_certificates_are_asked_for_as_the_file_says() {
    let files = Files::new("");
    let stranger = Identity::new(9, None, YEAR);
    let ours = Identity::new(10, Some(&files.ca), YEAR);
    let theirs = Identity::new(11, Some(&stranger), YEAR);
    let old = Identity::new(12, Some(&files.ca), -3600);
    // More than 100 KiB.
    let huge = Identity::new(13, Some(&stranger), YEAR).cert;
    // Who is let in: without one, with ours, with a stranger's, with one that has expired.
    for (kind, more, expected) in [
        ("NoClientCert", "", [true, true, true, true]),
        ("RequestClientCert", "", [true, true, true, true]),
        ("RequireAnyClientCert", "", [false, true, true, true]),
        ("VerifyClientCertIfGiven", ", client_ca_file: ca.crt", [true, true, false, false]),
        ("RequireAndVerifyClientCert", ", client_ca_file: ca.crt", [false, true, false, false]),
        (
            "RequireAndVerifyClientCert",
            ", client_ca_file: ca.crt, client_allowed_sans: [a, localhost]",
            [false, true, false, false],
        ),
        (
            "RequireAndVerifyClientCert",
            ", client_ca_file: ca.crt, client_allowed_sans: [b]",
            [false, false, false, false],
        ),
    ] {
        let config =
            format!("tls_server_config: {{cert_file: tls.crt, key_file: tls.key, client_auth_type: {kind}{more}}}\n");
        files.write("web.yml", config.as_bytes());
        let server = files.start();
        let tried = [None, Some(&ours), Some(&theirs), Some(&old)].map(|own| {
            let stream = tcp(server.address(), Ipv4Addr::LOCALHOST);
            let connected = files.connector(own).build().connect("localhost", stream);
            // With TLS 1.3 the refusal comes after the client thinks that it is connected.
            connected.is_ok_and(|mut s| ask(&mut s, "/health", "").is_ok_and(|(status, ..)| status == 200))
        });
        assert_eq!(tried, expected, "{kind}{more}");
        let mut connector = files.connector(Some(&ours));
        for _ in 0..400 {
            connector.add_extra_chain_cert(huge.clone()).unwrap();
        }
        let stream = connector.build().connect("localhost", tcp(server.address(), Ipv4Addr::LOCALHOST));
        let answered = stream.is_ok_and(|mut s| ask(&mut s, "/health", "").is_ok());
        assert!(!answered || kind == "NoClientCert", "{kind}: a chain of 401 certificates");
    }
}

// ---- changes ----

#[test]
fn certificates_change_under_load_and_broken_ones_change_nothing() {
    let files = Files::new(TLS);
    let server = files.start();
    let serial = || {
        let stream = files.connect(server.address());
        let cert = stream.ssl().peer_certificate().unwrap();
        cert.serial_number().to_bn().unwrap().to_dec_str().unwrap().parse::<u32>().unwrap()
    };
    let refused = || own("ebpf_sidecar_http_web_config_refused_total").unwrap();
    let before = refused();
    let (stop, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(ask(&mut files.connect(server.address()), "/metrics", "").unwrap().0, 200);
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for n in 101..104 {
            let next = Identity::new(n, Some(&files.ca), YEAR);
            let old = serial();
            // Between the two, certificate and key do not match.
            files.write("tls.crt", &next.cert_pem());
            let_it_look();
            assert_eq!(serial(), old, "the pair before stays in use");
            files.write("tls.key", &next.key_pem());
            let_it_look();
            assert_eq!(serial(), n);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(calls.load(Ordering::Relaxed) > 4);
    let expires = own("ebpf_sidecar_http_certificate_expiry_timestamp_seconds").unwrap();
    assert!(expires > 1_700_000_000);
    files.write("web.yml", b"tls_server_confg: {}");
    let_it_look();
    assert_eq!(serial(), 103);
    fs::remove_file(files.config()).unwrap();
    let_it_look();
    assert_eq!(serial(), 103);
    assert!(refused() >= before + 5, "three that did not match, one broken, one gone");
    // Another file, as a reload has it, or none.
    files.write("other.yml", b"http_server_config: {headers: {X-Frame-Options: deny}}\n");
    assert!(server.access.set(Some(&files.config())).is_err());
    assert_eq!(serial(), 103);
    server.access.set(Some(&files.dir.path.join("other.yml"))).unwrap();
    let (status, head, _) = ask(&mut tcp(server.address(), Ipv4Addr::LOCALHOST), "/", "").unwrap();
    assert!(status == 200 && head.contains("X-Frame-Options: deny"), "{head}");
    server.access.set(None).unwrap();
    let (_, head, _) = ask(&mut tcp(server.address(), Ipv4Addr::LOCALHOST), "/", "").unwrap();
    assert!(!head.contains("X-Frame-Options"), "{head}");
}

#[test]
fn headers_are_added_where_there_are_none_and_requests_are_limited() {
    let files = Files::new(
        "http_server_config:\n  headers: {Content-Security-Policy: default-src 'none', X-Content-Type-Options: nosniff, \
         Strict-Transport-Security: max-age=1}\nrate_limit: {interval: 1h, burst: 3}\n",
    );
    let server = files.start();
    let get = |path: &str| ask(&mut tcp(server.address(), Ipv4Addr::LOCALHOST), path, "").unwrap();
    let (_, head, _) = get("/metrics");
    assert!(head.contains("Content-Security-Policy: default-src 'none'") && head.contains("max-age=1"), "{head}");
    assert_eq!(head.matches("nosniff").count(), 1, "{head}");
    let (_, head, _) = get("/");
    assert!(
        head.contains("Content-Security-Policy") && !head.contains("default-src 'none'\r\n"),
        "the page has its own: {head}"
    );
    assert_eq!([get("/health").0, get("/health").0], [200, 429]);
}

// ---- passwords ----

#[test]
fn only_who_has_a_password_is_answered() {
    let hashes = ["s3:cret", "pässword"].map(hash);
    let files = Files::new(&format!("{TLS}basic_auth_users:\n  ann: {}\n  Ünï: {}\n", hashes[0], hashes[1]));
    let server = files.start();
    let status = |path: &str, headers: &str| ask(&mut files.connect(server.address()), path, headers).unwrap();
    for path in ["/metrics", "/health", "/", "/api/v1/stats", "/nothing"] {
        let (code, head, body) = status(path, "");
        assert!(code == 401 && head.contains("WWW-Authenticate: Basic realm=\"ebpf-sidecar\""), "{path}: {head}");
        assert!(!body.contains("fine"), "{body}");
    }
    assert_eq!(status("/metrics", &basic("ann:s3:cret")).0, 200);
    assert_eq!(status("/metrics", &basic("Ünï:pässword")).0, 200);
    for wrong in ["ann:s3", "ann:", "ann", ":", "", "Ann:s3:cret", "bob:s3:cret", "ann:s3:cret\0", "Ünï:s3:cret"] {
        assert_eq!(status("/metrics", &basic(wrong)).0, 401, "{wrong}");
    }
    let twice = format!("{0}{0}", basic("ann:s3:cret"));
    assert_eq!(status("/metrics", &twice).0, 401, "two headers");
    assert_eq!(status("/metrics", "Authorization: Bearer ann\r\n").0, 401);
    assert_eq!(status("/metrics", &format!("Authorization: Basic {}\r\n", "A".repeat(8 << 10))).0, 401);
    let mut stream = files.connect(server.address());
    let _ = write!(stream, "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {}\r\n\r\n", "A".repeat(64 << 10));
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    // A connection is not let in for good: each request has its password.
    let mut stream = files.connect(server.address());
    let (right, none) = (basic("ann:s3:cret"), "Connection: close\r\n");
    write!(stream, "GET /health HTTP/1.1\r\nHost: x\r\n{right}\r\nGET /health HTTP/1.1\r\nHost: x\r\n{none}\r\n")
        .unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert!(answers.starts_with("HTTP/1.1 200") && answers.contains("HTTP/1.1 401"), "{answers}");

    // Another password, and no such user any more.
    files.write("web.yml", format!("{TLS}basic_auth_users: {{ann: {}}}\n", hash("new")).as_bytes());
    let_it_look();
    assert_eq!(status("/metrics", &basic("ann:s3:cret")).0, 401);
    assert_eq!(status("/metrics", &basic("Ünï:pässword")).0, 401);
    assert_eq!(status("/metrics", &basic("ann:new")).0, 200);
}

#[test]
fn a_flood_of_wrong_passwords_starves_no_scrape() {
    // Each costs some 60 ms of a CPU where it is made slow on purpose.
    let files = Files::new(&format!(
        "basic_auth_users: {{scrape: {}, late: {}, last: {}}}\n",
        bcrypt::hash("right", 10).unwrap(),
        bcrypt::hash("too", 10).unwrap(),
        bcrypt::hash("one", 10).unwrap()
    ));
    let server = files.start();
    let status =
        |from: Ipv4Addr, user: &str| ask(&mut tcp(server.address(), from), "/metrics", &basic(user)).map(|a| a.0);
    let scrape = || status(Ipv4Addr::LOCALHOST, "scrape:right").unwrap();
    assert_eq!(scrape(), 200);
    let (stop, refused, turned_away) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let cpu = common::sys::cpu_time();
    let begun = Instant::now();
    thread::scope(|scope| {
        for n in 0..24 {
            let (stop, status, refused, turned_away) = (&stop, &status, &refused, &turned_away);
            scope.spawn(move || {
                for i in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // The user that exists, and others; from one address.
                    let user = if n % 2 == 0 { "scrape" } else { "root" };
                    match status(Ipv4Addr::new(127, 0, 0, 9), &format!("{user}:{n}.{i}")) {
                        Ok(401) => refused.fetch_add(1, Ordering::Relaxed),
                        Ok(429 | 503) => {
                            thread::sleep(Duration::from_millis(100));
                            turned_away.fetch_add(1, Ordering::Relaxed)
                        }
                        Ok(other) => panic!("{other}"),
                        Err(_) => 0, // its place was given to another
                    };
                }
            });
        }
        while turned_away.load(Ordering::Relaxed) < 100 {
            assert_eq!(scrape(), 200, "what is known waits for nobody");
        }
        // And who comes for the first time has a turn, even from behind the same address.
        assert_eq!(status(Ipv4Addr::new(127, 0, 0, 8), "late:too").unwrap(), 200);
        assert_eq!(status(Ipv4Addr::new(127, 0, 0, 9), "last:one").unwrap(), 200);
        stop.store(true, Ordering::Relaxed);
    });
    println!(
        "in {:?}: {} checked, {} turned away, CPU of server and clients together {:?}",
        begun.elapsed(),
        refused.load(Ordering::Relaxed),
        turned_away.load(Ordering::Relaxed),
        common::sys::cpu_time() - cpu
    );
    assert_eq!(scrape(), 200);
}

// ---- the agent ----

/// Starts an agent whose HTTP server has this configuration, and waits with `health` until it answers.
fn start_agent(settings: &[(&str, &str)]) -> Agent {
    let asks = |agent: &Agent| health(agent, settings).status.success();
    Agent::start_asked(common::command(), settings, asks)
}

/// What a command says of this agent, with the same configuration as the agent's.
fn command(agent: &Agent, args: &[&str], settings: &[(&str, &str)]) -> std::process::Output {
    let ports = [agent.port, agent.grpc_port].map(|p| p.to_string());
    let own = [
        ("SERVER_HTTP_ADDRESS", "127.0.0.1"),
        ("SERVER_HTTP_PORT", ports[0].as_str()),
        ("SERVER_GRPC_ADDRESS", "127.0.0.1"),
        ("SERVER_GRPC_PORT", ports[1].as_str()),
    ];
    output(args, &[&own[..], settings].concat())
}

fn health(agent: &Agent, settings: &[(&str, &str)]) -> std::process::Output {
    command(agent, &["health"], settings)
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn a_real_prometheus_scrapes_it_with_tls_and_a_password() {
    need_bpf!("a_real_prometheus_scrapes_it_with_tls_and_a_password");
    let files = Files::new(&format!("{TLS}basic_auth_users: {{prometheus: {}}}\n", hash("s3cret")));
    files.write("password", b"s3cret\n");
    let [config, password, ca] = ["web.yml", "password", "ca.crt"].map(|n| files.dir.path.join(n));
    let settings = [
        ("SERVER_HTTP_WEB_CONFIG", text(&config)),
        ("CLIENT_USERNAME", "prometheus"),
        ("CLIENT_PASSWORD_FILE", text(&password)),
    ];
    let agent = start_agent(&settings);
    let job = |name: &str, password: &str| {
        format!(
            "{{job_name: {name}, scheme: https, tls_config: {{ca_file: {}, server_name: localhost}}, \
             basic_auth: {{username: prometheus, password: {password}}}, static_configs: [{{targets: ['127.0.0.1:{}']}}]}}",
            text(&ca),
            agent.port
        )
    };
    let jobs = [job("right", "s3cret"), job("wrong", "other")];
    let Some(mut prometheus) = Prometheus::start_jobs(&jobs, &[]) else {
        common::skipped(
            "a_real_prometheus_scrapes_it_with_tls_and_a_password",
            "no prometheus (apt-get install prometheus)",
        );
        return;
    };
    let up =
        |p: &Prometheus, job: &str| p.query(&format!("up{{job=\"{job}\"}}"), "").first().map(|(_, v)| v[0].clone());
    prometheus.wait("one is scraped, and one is not", |p| {
        up(p, "right").as_deref() == Some("1") && up(p, "wrong").as_deref() == Some("0")
    });
    let metric = |name: &str| format!("{name}{{job=\"right\"}}");
    prometheus.wait("the failed logins of the other are counted", |p| {
        let failed = p.query(&metric("ebpf_sidecar_http_logins_failed_total"), "");
        failed.first().is_some_and(|(_, v)| v[0].parse::<f64>().unwrap() > 0.0)
    });
    assert_eq!(prometheus.query(&metric("ebpf_sidecar_http_certificate_expiry_timestamp_seconds"), "").len(), 1);
}

#[test]
fn health_needs_no_more_than_the_agents_configuration() {
    need_bpf!("health_needs_no_more_than_the_agents_configuration");
    let files = Files::new(&format!("{TLS}basic_auth_users: {{probe: {}}}\n", hash("s3cret")));
    // For another name than the one that is asked, and by an authority that nobody knows.
    files.write("password", b"s3cret\n");
    files.write("wrong", b"other\n");
    files.write("other.yml", TLS.as_bytes());
    let stranger = Identity::new(9, None, YEAR);
    files.write("stranger.crt", &stranger.cert_pem());
    let path = |name: &str| files.dir.path.join(name);
    let [config, password, wrong, ca, unknown] =
        [path("web.yml"), path("password"), path("wrong"), path("ca.crt"), path("stranger.crt")];
    let web = ("SERVER_HTTP_WEB_CONFIG", text(&config));
    let user = ("CLIENT_USERNAME", "probe");
    let right = [web, user, ("CLIENT_PASSWORD_FILE", text(&password))];
    let agent = start_agent(&right);
    assert!(agent.log().contains("HTTP: https://127.0.0.1:"), "{}", agent.log());
    let report = said(&command(&agent, &["check"], &right));
    assert!(report.contains("web config       can be used, with TLS"), "{report}");

    let with_ca = |ca: &str| said(&health(&agent, &[&right[..], &[("CLIENT_CA_FILE", ca)]].concat()));
    assert!(
        with_ca(text(&ca)).starts_with("healthy:") || with_ca(text(&ca)).starts_with("degraded:"),
        "{}",
        with_ca(text(&ca))
    );
    assert!(with_ca(text(&unknown)).contains("certificate verify failed"), "{}", with_ca(text(&unknown)));
    for (settings, words) in [
        (vec![web], "client.username and client.password_file say which"),
        (vec![web, user, ("CLIENT_PASSWORD_FILE", text(&wrong))], "does not know the user or the password"),
        (vec![user, ("CLIENT_PASSWORD_FILE", text(&password))], "no TLS with"),
    ] {
        let output = health(&agent, &settings);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(words), "{}", said(&output));
    }
    // New files: it asks once more, until the agent has them too.
    files.put(&Identity::new(3, Some(&files.ca), YEAR));
    let answer = health(&agent, &right);
    assert!(answer.status.success(), "{}", said(&answer));
    // Files that the agent cannot take are not those that it shows.
    files.write("tls.crt", &Identity::new(4, Some(&files.ca), YEAR).cert_pem());
    let answer = health(&agent, &right);
    assert!(said(&answer).contains("its certificate is not the one in the file"), "{}", said(&answer));
    assert!(agent.log().contains("does not belong to the first certificate"), "{}", agent.log());
}

#[test]
fn a_reload_takes_over_another_web_configuration() {
    need_bpf!("a_reload_takes_over_another_web_configuration");
    let files = Files::new(TLS);
    let path = |name: &str| files.dir.path.join(name);
    let config = |web: &str| format!("server: {{http: {{web_config: {web}}}}}\n");
    files.write("config.yaml", b"");
    let mut of_agent = common::command();
    of_agent.arg("--config").arg(path("config.yaml"));
    let agent = Agent::start_with(of_agent, &[]);
    let hangup = |words: &str| {
        let before = agent.log().len();
        common::sys::kill(agent.child.id(), libc::SIGHUP);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !agent.log()[before..].contains(words) {
            assert!(Instant::now() < deadline, "{words:?} is not in\n{}", &agent.log()[before..]);
            thread::sleep(Duration::from_millis(20));
        }
    };
    files.write("config.yaml", config(text(&path("web.yml"))).as_bytes());
    hangup("reload: server.http.web_config: none → ");
    let address = SocketAddr::from(([127, 0, 0, 1], agent.port));
    assert_eq!(ask(&mut files.connect(address), "/metrics", "").unwrap().0, 200);
    files.write("config.yaml", config(text(&path("absent.yml"))).as_bytes());
    hangup("absent.yml: No such file");
    assert_eq!(ask(&mut files.connect(address), "/metrics", "").unwrap().0, 200);
    files.write("config.yaml", b"");
    hangup("→ none");
    assert_eq!(agent.get("/metrics").status, 200);
}

/// As Kubernetes mounts a secret: files are links through `..data`, and a new `..data` is another folder.
#[test]
fn a_confined_agent_follows_links_to_folders_that_are_new() {
    need_bpf!("a_confined_agent_follows_links_to_folders_that_are_new");
    let (files, other) = (Files::new(TLS), TempDir::new("elsewhere"));
    let path = |name: &str| files.dir.path.join(name);
    let put = |folder: &str, serial: u32, token: &str| {
        let own = Identity::new(serial, Some(&files.ca), YEAR);
        fs::create_dir(path(folder)).unwrap();
        fs::write(path(folder).join("tls.crt"), own.cert_pem()).unwrap();
        fs::write(path(folder).join("tls.key"), own.key_pem()).unwrap();
        fs::write(path(folder).join("token"), token).unwrap();
        fs::write(path(folder).join("web.yml"), TLS).unwrap();
        std::os::unix::fs::symlink(folder, path("new")).unwrap();
        fs::rename(path("new"), path("..data")).unwrap();
    };
    put("..1", 11, "the-token-of-the-first");
    for name in ["tls.crt", "tls.key", "token", "web.yml"] {
        let _ = fs::remove_file(path(name));
        std::os::unix::fs::symlink(format!("..data/{name}"), path(name)).unwrap();
    }
    // Named from another folder, and with what it names beside it.
    let [web, token, cert, key, ca] = ["web.yml", "token", "tls.crt", "tls.key", "ca.crt"].map(path);
    let settings = [
        ("SERVER_HTTP_WEB_CONFIG", text(&web)),
        ("SERVER_GRPC_AUTH_TOKEN_FILE", text(&token)),
        ("SERVER_GRPC_TLS_ENABLED", "true"),
        ("SERVER_GRPC_TLS_CERT_FILE", text(&cert)),
        ("SERVER_GRPC_TLS_KEY_FILE", text(&key)),
        ("CLIENT_CA_FILE", text(&ca)),
    ];
    let agent = start_agent(&settings);
    let address = SocketAddr::from(([127, 0, 0, 1], agent.port));
    let serial = || {
        let mut stream = files.connect(address);
        let (status, _, metrics) = ask(&mut stream, "/metrics", "").unwrap();
        assert!(status == 200 && metrics.contains("\nebpf_sidecar_system_calls_refused_total 0\n"), "{}", agent.log());
        let cert = stream.ssl().peer_certificate().unwrap();
        cert.serial_number().to_bn().unwrap().to_dec_str().unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(serial(), 11);
    put("..2", 12, "the-token-of-the-second");
    fs::remove_dir_all(path("..1")).unwrap();
    let_it_look();
    assert_eq!(serial(), 12, "{}", agent.log());
    let top = command(&agent, &["top", "--once"], &settings);
    assert!(top.status.success(), "{}{}", said(&top), agent.log());
    // What it names now is in a folder that nothing named at the start.
    if ebpf_sidecar::host::confine::missing().is_empty() {
        for name in ["tls.crt", "tls.key"] {
            fs::copy(path("..2").join(name), other.path.join(name)).unwrap();
        }
        let (cert, key) = (other.path.join("tls.crt"), other.path.join("tls.key"));
        let elsewhere = format!("tls_server_config: {{cert_file: {}, key_file: {}}}", text(&cert), text(&key));
        fs::write(path("..2").join("web.yml"), elsewhere).unwrap();
        let_it_look();
        assert_eq!(serial(), 12);
        let log = agent.log();
        assert!(log.contains(text(&cert)) && log.contains("another one takes a restart"), "{log}");
    }
}

#[test]
fn a_configuration_that_cannot_be_used_ends_the_start() {
    need_bpf!("a_configuration_that_cannot_be_used_ends_the_start");
    let files = Files::new("basic_auth_users: {a: $2y$31$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG}\n");
    let config = files.config();
    for command in ["run", "check"] {
        let ports = common::free_ports::<2>().map(|p| p.to_string());
        let o = output(
            &[command],
            &[
                ("SERVER_HTTP_PORT", &ports[0]),
                ("SERVER_GRPC_PORT", &ports[1]),
                ("SERVER_HTTP_WEB_CONFIG", text(&config)),
            ],
        );
        assert_eq!(o.status.code(), Some(1), "{}", said(&o));
        assert!(said(&o).contains("web.yml:1: ") && said(&o).contains("cost 31"), "{}", said(&o));
    }
}

// ---- the token of gRPC ----

#[test]
fn grpc_calls_need_the_token() {
    need_bpf!("grpc_calls_need_the_token");
    let files = Files::new(TLS);
    files.write("token", b"a-token-of-some-length\n");
    let [token, cert, key, ca] = ["token", "tls.crt", "tls.key", "ca.crt"].map(|n| files.dir.path.join(n));
    let settings = [
        ("SERVER_GRPC_AUTH_TOKEN_FILE", text(&token)),
        ("SERVER_GRPC_TLS_ENABLED", "true"),
        ("SERVER_GRPC_TLS_CERT_FILE", text(&cert)),
        ("SERVER_GRPC_TLS_KEY_FILE", text(&key)),
    ];
    for settings in [&settings[..], &settings[..1]] {
        files.write("token", b"a-token-of-some-length\n");
        let agent = Agent::start(&[settings, &[("COLLECTOR_INTERVAL", "200ms")]].concat());
        assert_eq!(agent.log().contains("token_file without TLS"), settings.len() == 1, "{}", agent.log());
        let tls = (settings.len() > 1).then(|| ChannelCredentialsBuilder::new().root_cert(files.ca.cert_pem()).build());
        let client = grpc::Client::with(agent.grpc_port, tls);
        let raw = grpcio::Client::new(client.channel.clone());
        let call = |tokens: &[&str]| {
            let mut metadata = MetadataBuilder::with_capacity(2);
            for token in tokens {
                metadata.add_str("authorization", token).unwrap();
            }
            let option = CallOption::default().timeout(grpc::LIMIT).headers(metadata.build());
            let method = called::<rpc::GetHealthRequest, rpc::GetHealthResponse>(MethodType::Unary, name::GET_HEALTH);
            raw.unary_call(&method, &rpc::GetHealthRequest::default(), option)
        };
        let right = "Bearer a-token-of-some-length";
        call(&[right]).unwrap();
        for wrong in [&[][..], &["Bearer a-token-of-some-lengtH"], &["a-token-of-some-length"], &[right, right]] {
            let (code, message) = grpc::refusal_of(call(wrong));
            assert_eq!(code, RpcStatusCode::UNAUTHENTICATED, "{message}");
            assert!(message.contains("server.grpc.auth.token_file") && !message.contains("a-token"), "{message}");
        }
        for name in [name::STREAM_METRICS, name::CONFIGURE_MODULE, name::GET_METRICS] {
            let refused: grpcio::Result<rpc::GetHealthResponse> =
                client.try_call(name, &rpc::GetHealthRequest::default());
            assert_eq!(grpc::refusal_of(refused).0, RpcStatusCode::UNAUTHENTICATED, "{name}");
        }
        // Probes have no way to send one.
        let _: HealthCheckResponse = client.call(name::HEALTH_CHECK, &HealthCheckRequest::default());

        // `top` finds token and certificate in the same configuration.
        let top = command(&agent, &["top", "--once"], settings);
        assert!(top.status.success() && said(&top).contains("pages read"), "{}", said(&top));
        let without: Vec<_> = settings.iter().copied().filter(|(key, _)| !key.contains("TOKEN")).collect();
        assert!(said(&command(&agent, &["top", "--once"], &without)).contains("UNAUTHENTICATED"));
        if settings.len() > 1 {
            let top = command(&agent, &["top", "--once"], &[settings, &[("CLIENT_CA_FILE", text(&ca))]].concat());
            assert!(top.status.success(), "{}", said(&top));
        }
        // Another token, from the next call on; a broken file changes nothing.
        files.write("token", b"another-token-of-some-length");
        let_it_look();
        assert!(call(&[right]).is_err());
        call(&["Bearer another-token-of-some-length"]).unwrap();
        files.write("token", b"short");
        let_it_look();
        call(&["Bearer another-token-of-some-length"]).unwrap();
        assert!(agent.log().contains("what was before stays in use"), "{}", agent.log());
    }
}
