//! TLS of the gRPC server: whom it lets in, what it refuses to start with, and certificates that change while it runs.

mod common;
#[path = "common/grpc.rs"]
mod grpc;
#[path = "common/identity.rs"]
mod identity;

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::api::proto::rpc;
use ebpf_sidecar::server::grpc::stubs::name;
use grpcio::{ChannelCredentials, ChannelCredentialsBuilder, RpcStatusCode};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion};

use common::{Agent, TempDir, output, text};
use grpc::Client;
use identity::{Identity, YEAR};

/// The files of a server.
struct Files {
    dir: TempDir,
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

impl Files {
    fn new(server: &Identity, ca: &Identity) -> Self {
        let dir = TempDir::new("tls");
        let [cert, key, ca_file] = ["tls.crt", "tls.key", "ca.crt"].map(|n| dir.path.join(n));
        fs::write(&cert, server.cert_pem()).unwrap();
        fs::write(&key, server.key_pem()).unwrap();
        fs::write(&ca_file, ca.cert_pem()).unwrap();
        Self { dir, cert, key, ca: ca_file }
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        vec![
            ("SERVER_GRPC_TLS_ENABLED", "true"),
            ("SERVER_GRPC_TLS_CERT_FILE", text(&self.cert)),
            ("SERVER_GRPC_TLS_KEY_FILE", text(&self.key)),
        ]
    }

    fn mutual(&self) -> Vec<(&str, &str)> {
        let mut settings = self.settings();
        settings.push(("SERVER_GRPC_TLS_CLIENT_CA_FILE", text(&self.ca)));
        settings.push(("SERVER_ALLOW_CONFIGURE", "mtls"));
        settings
    }

    /// Puts other content in place at once, as a rename does.
    fn replace(&self, path: &PathBuf, content: &[u8]) {
        let new = self.dir.path.join("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, path).unwrap();
    }
}

fn trusting(ca: &Identity, own: Option<&Identity>) -> ChannelCredentials {
    let mut builder = ChannelCredentialsBuilder::new().root_cert(ca.cert_pem());
    if let Some(own) = own {
        builder = builder.cert(own.cert_pem(), own.key_pem());
    }
    builder.build()
}

fn health(client: &Client) -> grpcio::Result<rpc::GetHealthResponse> {
    client.try_call(name::GET_HEALTH, &rpc::GetHealthRequest::default())
}

#[track_caller]
fn assert_refused(agent: &Agent, credentials: Option<ChannelCredentials>, word: &str) {
    let before = agent.log().len();
    let client = Client::with(agent.grpc_port, credentials);
    let (code, message) = grpc::refusal_of(health(&client));
    assert_eq!(code, RpcStatusCode::UNAVAILABLE, "{message}");
    said(agent, before, word);
}

/// Waits until something is in the log, behind what was there before.
#[track_caller]
fn said(agent: &Agent, before: usize, word: &str) {
    until(&format!("{word:?} in the log"), || agent.log()[before..].contains(word));
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

// ---- tests ----

#[test]
fn files_that_cannot_be_used_end_the_start() {
    need_bpf!("files_that_cannot_be_used_end_the_start");
    let ca = Identity::new(1, None, YEAR);
    let (server, other) = (Identity::new(2, Some(&ca), YEAR), Identity::new(3, Some(&ca), YEAR));
    let encrypted = server.key.private_key_to_pem_pkcs8_passphrase(openssl::symm::Cipher::aes_256_cbc(), b"x").unwrap();
    let cases: [(&str, Option<Vec<u8>>, &str); 9] = [
        ("tls.crt", None, "No such file"),
        ("tls.crt", Some(b"hello".to_vec()), "no PEM certificate in it"),
        ("tls.crt", Some([server.cert_pem(), vec![0]].concat()), "NUL byte"),
        ("tls.crt", Some(other.cert_pem()), "does not belong to the first certificate"),
        ("tls.key", None, "No such file"),
        ("tls.key", Some(server.cert_pem()), "no PEM private key"),
        ("tls.key", Some(other.key_pem()), "does not belong to the first certificate"),
        ("tls.key", Some(encrypted), "without a password"),
        ("ca.crt", Some(server.key_pem()), "no PEM certificate in it"),
    ];
    for (name, content, words) in cases {
        let files = Files::new(&server, &ca);
        let path = files.dir.path.join(name);
        match content {
            None => fs::remove_file(&path).unwrap(),
            Some(bytes) => fs::write(&path, bytes).unwrap(),
        }
        let ports = common::free_ports::<2>().map(|p| p.to_string());
        let mut settings = files.mutual();
        settings.extend([("SERVER_HTTP_PORT", ports[0].as_str()), ("SERVER_GRPC_PORT", ports[1].as_str())]);
        for command in ["run", "check"] {
            let o = output(&[command], &settings);
            let said = String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned();
            assert_eq!(o.status.code(), Some(1), "{command} {name}: {said}");
            assert!(said.contains("server.grpc.tls.") && said.contains(words), "{command} {name}: {said}");
            assert!(!said.contains("panic"), "{said}");
        }
    }
}

#[test]
fn without_client_certificates_who_trusts_the_server_may_call() {
    need_bpf!("without_client_certificates_who_trusts_the_server_may_call");
    let (ca, stranger) = (Identity::new(1, None, YEAR), Identity::new(9, None, YEAR));
    let files = Files::new(&Identity::new(2, Some(&ca), YEAR), &ca);
    let agent = Agent::start(&files.settings());
    health(&Client::with(agent.grpc_port, Some(trusting(&ca, None)))).unwrap();
    // It is the client that refuses: the server need not hear why.
    assert_refused(&agent, Some(trusting(&stranger, None)), "");
    assert_refused(&agent, None, "it speaks without TLS");

    let connect = |max: SslVersion, protocols: &[u8]| {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.set_verify(SslVerifyMode::NONE);
        connector.set_min_proto_version(None).unwrap();
        connector.set_max_proto_version(Some(max)).unwrap();
        connector.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
        connector.set_alpn_protos(protocols).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", agent.grpc_port)).unwrap();
        connector.build().connect("localhost", stream).map(|s| s.ssl().version_str().to_owned()).map_err(drop)
    };
    assert_eq!(connect(SslVersion::TLS1_3, b"\x02h2").as_deref(), Ok("TLSv1.3"));
    assert_eq!(connect(SslVersion::TLS1_2, b"\x08http/1.1\x02h2").as_deref(), Ok("TLSv1.2"));
    assert_eq!(connect(SslVersion::TLS1_1, b"\x02h2"), Err(()));
    // Who does not speak HTTP/2 is let go after the handshake, with a word in the log.
    connect(SslVersion::TLS1_3, b"\x08http/1.1").unwrap();
    connect(SslVersion::TLS1_3, b"").unwrap();
    said(&agent, 0, "it does not offer HTTP/2 (ALPN)");
}

#[test]
fn with_client_certificates_only_those_signed_and_valid_may_call() {
    need_bpf!("with_client_certificates_only_those_signed_and_valid_may_call");
    let (ca, stranger) = (Identity::new(1, None, YEAR), Identity::new(9, None, YEAR));
    let files = Files::new(&Identity::new(2, Some(&ca), YEAR), &ca);
    let agent = Agent::start(&files.mutual());
    let with = |own: &Identity| Some(trusting(&ca, Some(own)));
    assert_refused(&agent, Some(trusting(&ca, None)), "peer did not return a certificate");
    assert_refused(&agent, with(&Identity::new(3, Some(&stranger), YEAR)), "certificate verify failed");
    assert_refused(&agent, with(&Identity::new(4, Some(&ca), -3600)), "certificate verify failed");

    let client = Client::with(agent.grpc_port, with(&Identity::new(5, Some(&ca), YEAR)));
    health(&client).unwrap();
    let off = rpc::ConfigureModuleRequest { module: "iomonitor".into(), ..Default::default() };
    let answer: rpc::ConfigureModuleResponse = client.call(name::CONFIGURE_MODULE, &off);
    assert!(answer.success, "{answer}");
    // HTTP knows no certificates.
    let body = r#"{"module":"iomonitor","enabled":true}"#;
    let head = format!(
        "POST /api/v1/ebpf/modules/configure HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(common::request(agent.port, &head).unwrap().status, 403);
}

#[test]
fn changed_files_are_in_use_without_a_restart() {
    need_bpf!("changed_files_are_in_use_without_a_restart");
    let ca = Identity::new(1, None, YEAR);
    let files = Files::new(&Identity::new(100, Some(&ca), YEAR), &ca);
    let agent = Agent::start(&[files.settings(), vec![("COLLECTOR_INTERVAL", "100ms")]].concat());
    let serial = || {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.set_verify(SslVerifyMode::NONE);
        connector.set_alpn_protos(b"\x02h2").unwrap();
        let stream = TcpStream::connect(("127.0.0.1", agent.grpc_port)).unwrap();
        let stream = connector.build().connect("localhost", stream).unwrap();
        let cert = stream.ssl().peer_certificate().unwrap();
        cert.serial_number().to_bn().unwrap().to_dec_str().unwrap().parse::<u32>().unwrap()
    };
    let (stop, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Each over a connection of its own.
                    health(&Client::with(agent.grpc_port, Some(trusting(&ca, None)))).unwrap();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let refused = || agent.settled().get("ebpf_sidecar_grpc_certificates_refused_total");
        for n in 101..106 {
            let next = Identity::new(n, Some(&ca), YEAR);
            // Between the two, certificate and key do not match.
            files.replace(&files.cert, &next.cert_pem());
            until("those that do not match are refused", || refused() == f64::from(n - 100));
            assert_eq!(serial(), n - 1, "the pair before stays in use");
            files.replace(&files.key, &next.key_pem());
            until("the new pair is in use", || serial() == n);
        }
        files.replace(&files.key, b"broken\0");
        until("a broken key is refused", || refused() == 6.0);
        assert_eq!(serial(), 105);
        fs::remove_file(&files.cert).unwrap();
        until("a file that is gone is refused", || refused() == 7.0);
        assert_eq!(serial(), 105);
        let seen = calls.load(Ordering::Relaxed);
        while calls.load(Ordering::Relaxed) < seen + 4 {
            thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(agent.log().contains("what was before stays in use"), "{}", agent.log());
}

#[test]
fn a_thousand_connections_lock_nobody_out() {
    need_bpf!("a_thousand_connections_lock_nobody_out");
    let ca = Identity::new(1, None, YEAR);
    let files = Files::new(&Identity::new(2, Some(&ca), YEAR), &ca);
    let agent = Agent::start(&files.settings());
    let fds = || fs::read_dir(format!("/proc/{}/fd", agent.child.id())).unwrap().count();
    let new = || Client::with(agent.grpc_port, Some(trusting(&ca, None)));
    let connected = new();
    health(&connected).unwrap();
    let (before, rss) = (fds(), agent.rss_kib() >> 10);
    let connect = || TcpStream::connect(("127.0.0.1", agent.grpc_port)).unwrap();
    // Nothing, the beginning of a ClientHello, what is no TLS.
    for says in [
        &b""[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"\x16\x03\x01\x00\x05hello",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0; 100],
    ] {
        let idle: Vec<TcpStream> = (0..1000)
            .map(|_| {
                let mut stream = connect();
                let _ = stream.write_all(says); // it may have been ended already
                stream
            })
            .collect();
        health(&new()).unwrap();
        health(&connected).unwrap();
        assert!(fds() <= before + 256 + 16, "{} descriptors, {before} before", fds());
        drop(idle);
    }
    // Those that have TLS and say nothing more.
    let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
    connector.set_verify(SslVerifyMode::NONE);
    connector.set_alpn_protos(b"\x02h2").unwrap();
    let connector = connector.build();
    let idle: Vec<_> = (0..400).filter_map(|_| connector.connect("localhost", connect()).ok()).collect();
    health(&new()).unwrap();
    health(&connected).unwrap();
    let most = agent.rss_kib() >> 10;
    println!("{} of 400 handshakes done; MiB resident: {rss} before, {most} with them", idle.len());
    assert!(idle.len() >= 256 && most <= 64, "{} idle connections, {most} MiB resident", idle.len());
    drop(idle);
    until("their descriptors are closed", || fds() <= before + 16);
    assert!(!agent.log().contains("panic"), "{}", agent.log());
}
