//! What the fuzzer feeds (tests/fuzz): for each of the places where bytes of others come in, a function that takes any bytes
//! and panics where what is promised of that place does not hold. The unit test runs them over the corpus that is kept.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use protobuf::{Message, MessageFull};

use crate::api::proto::rpc;
use crate::api::{Api, Caller};
use crate::collector::Control;
use crate::config::{self, AllowConfigure, web};
use crate::ebpf::{os, verifier};
use crate::export::{banyandb, json, otlp, prometheus};
use crate::host::logging::clean;
use crate::host::{pem, pod};
use crate::metrics::cell::SnapshotCell;
use crate::metrics::snapshot::{ProcessRow, Snapshot};
use crate::monitor::example;
use crate::server::grpc::guard;
use crate::server::http::gateway::{Configure, Gateway};
use crate::server::http::hosts::Hosts;
use crate::server::http::{access, request};

/// A target: takes what the fuzzer makes up.
type Target = fn(&[u8]);

/// All of them, by the name of their binary and of the folder with their corpus.
const TARGETS: [(&str, Target); 14] = [
    ("banyandb", banyandb_answers),
    ("environment", environment),
    ("exposition", exposition),
    ("guard", guard::fuzz),
    ("json_body", json_body),
    ("kernel_text", kernel_text),
    ("otlp", otlp_answers),
    ("pem", pem_files),
    ("protobuf", protobuf_requests),
    ("query", query),
    ("request_head", request_head),
    ("top", crate::commands::top::fuzz),
    ("web_config", web_config),
    ("yaml", yaml),
];

/// Runs the target of this name.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target for each binary");
    target(data);
}

fn request_head(data: &[u8]) {
    // Found alike, however it arrives.
    let end = request::end_of_head(data, 0);
    for seen in 0..end.unwrap_or(data.len()).min(256) {
        assert_eq!(request::end_of_head(&data[..seen], 0), None);
        assert_eq!(request::end_of_head(data, seen), end);
    }
    let Ok(mut head) = request::parse(&data[..end.unwrap_or(data.len())]) else { return };
    assert!(head.body <= request::BODY_MAX);
    head.foreign(&Hosts::new(vec!["agent.example".into()]));
    let (wants_body, reply, stream) = (head.wants_body, head.reply, head.stream.clone());
    let whole = head.complete(([127, 0, 0, 1], 7).into(), b"");
    // What tiny_http sees is one request, of plain lines.
    assert_eq!(request::end_of_head(&whole, 0), Some(whole.len()), "{}", whole.escape_ascii());
    assert!(whole.iter().all(|b| matches!(b, b'\r' | b'\n' | b'\t' | b' '..=b'~')), "{}", whole.escape_ascii());
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut again = httparse::Request::new(&mut headers);
    assert!(again.parse(&whole).is_ok_and(|s| s.is_complete()), "{}", whole.escape_ascii());
    assert_eq!(again.method == Some("HEAD"), reply.head_only);
    assert_eq!(again.headers.iter().any(|h| h.name == request::PEER), wants_body);
    assert!(again.headers.iter().filter(|h| h.name == "Host").count() <= 1);
    if let Some(stream) = stream {
        let _ = API.gateway.stream(&stream);
    }
}

/// An API over invented numbers, that nobody changes.
struct Served {
    api: Arc<Api>,
    gateway: Gateway,
}

static API: LazyLock<Served> = LazyLock::new(|| {
    let first = example::snapshot();
    let cell = SnapshotCell::with_history(first.clone(), Duration::from_secs(60));
    cell.store(Snapshot {
        sequence: 43,
        collected_at: first.collected_at + Duration::from_secs(10),
        collected_instant: first.collected_instant + Duration::from_secs(10),
        ..first
    });
    let api = Arc::new(Api::new(cell, Control::nobody(), AllowConfigure::Any));
    Served { gateway: Gateway::new(Arc::clone(&api), Hosts::new(Vec::new())), api }
});

const PATHS: [&str; 4] = ["metrics", "io/stats", "modules/status", "health"];

/// Any query at each path: an answer is JSON, a refusal one clean line.
fn query(data: &[u8]) {
    let Ok(query) = std::str::from_utf8(data) else { return };
    for path in PATHS {
        match API.gateway.get(&format!("/api/v1/ebpf/{path}"), query) {
            Some(Ok(text)) => drop(serde_json::from_str::<serde_json::Value>(&text).expect("JSON")),
            Some(Err(failure)) => assert_is_clean(&failure.message),
            None => unreachable!("a path of the API"),
        }
    }
    if let Ok(mut ticks) = API.gateway.stream(query) {
        (ticks.next)();
    }
}

fn assert_is_clean(text: &str) {
    assert!(!text.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{202e}')), "{text:?}");
    assert!(text.len() < 8192, "{} bytes", text.len());
}

/// Any body of a request to change the agent.
fn json_body(data: &[u8]) {
    let Ok(body) = std::str::from_utf8(data) else { return };
    let by = Configure {
        peer: "127.0.0.1:7",
        host: "localhost:8080",
        content_type: "application/json",
        has_origin: false,
        body,
    };
    API.gateway.configure(&by, |answer| match answer {
        Ok(text) => drop(serde_json::from_str::<serde_json::Value>(&text).expect("JSON")),
        Err(failure) => assert_is_clean(&failure.message),
    });
    // As in a message of gRPC, whatever is around it.
    let request = rpc::ConfigureModuleRequest {
        module: "iomonitor".into(),
        enabled: true,
        config_json: body.into(),
        ..Default::default()
    };
    API.api.configure(
        &Caller::new("127.0.0.1:7".into(), false),
        || Ok(request),
        |answer| {
            if let Err(failure) = answer {
                assert_is_clean(&failure.message);
            }
        },
    );
}

/// A configuration that is taken is printed so that it is read again as the same.
fn yaml(data: &[u8]) {
    let path = Path::new("config.yaml");
    match config::from_sources(Some((path, data)), []) {
        Err(e) => assert_is_one_line(&e.to_string()),
        Ok(read) => again(&read),
    }
}

/// The file of `server.http.web_config`: what is taken can be used, and nobody prints its secrets.
fn web_config(data: &[u8]) {
    match web::parse(Path::new("web.yml"), data) {
        Err(e) => assert_is_one_line(&e),
        Ok(config) => access::fuzz(&config),
    }
}

fn again(read: &config::Config) {
    let printed = config::print(read);
    // Secrets are not shown.
    if printed.contains("***") {
        return;
    }
    let twice = config::from_sources(Some((Path::new("config.yaml"), printed.as_bytes())), []);
    assert_eq!(twice.as_ref(), Ok(read), "{printed}");
}

fn assert_is_one_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// `NAME=VALUE`, one a line.
fn environment(data: &[u8]) {
    let words = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let variables = data.split(|b| *b == b'\n').filter_map(|line| {
        let at = line.iter().position(|b| *b == b'=')?;
        Some((words(&[config::ENV_PREFIX.as_bytes(), &line[..at]].concat()), words(&line[at + 1..])))
    });
    match config::from_sources(None, variables) {
        Err(e) => assert_is_one_line(&e.to_string()),
        Ok(read) => again(&read),
    }
}

/// A file as certificate, key and authority.
fn pem_files(data: &[u8]) {
    static FILE: LazyLock<PathBuf> =
        LazyLock::new(|| std::env::temp_dir().join(format!("ebpf-sidecar-fuzz-{}", std::process::id())));
    fs::write(&*FILE, data).expect("a temporary file");
    let file = ("server.grpc.tls.cert_file", FILE.as_path());
    if let Ok(pem) = pem::certificates(file.0, file.1) {
        assert!(!pem.contains(&0));
        pem::expires(&pem);
        pem::warn_if_expired(file, &pem);
    }
    let _ = pem::identity(file, file);
    let _ = fs::remove_file(&*FILE);
}

/// The first byte chooses the method, the others are its request.
fn protobuf_requests(data: &[u8]) {
    let Some((method, bytes)) = data.split_first() else { return };
    fn asked<Q: Message, R: MessageFull, E>(bytes: &[u8], answer: impl FnOnce(Q) -> Result<R, E>) {
        let Ok(request) = Q::parse_from_bytes(bytes) else { return };
        if let Ok(answer) = answer(request) {
            let bytes = answer.write_to_bytes().expect("an answer");
            // Not compared as a whole: a value may be NaN.
            let read = R::parse_from_bytes(&bytes).expect("the same answer");
            assert_eq!(read.compute_size(), answer.compute_size());
            protobuf_json_mapping::print_to_string(&answer).expect("JSON");
        }
    }
    let api = &API.api;
    match method % 6 {
        0 => asked(bytes, |r| api.get_metrics(&r)),
        1 => asked(bytes, |r| api.get_io_stats(&r)),
        2 => asked(bytes, |r| api.get_module_status(&r)),
        3 => asked(bytes, |r| Ok::<_, ()>(api.get_health(&r))),
        4 => asked(bytes, |r: rpc::StreamMetricsRequest| {
            api.check_stream(&r)?;
            api.stream(&api.newest(), &r).map(|mut all| all.pop().unwrap_or_default())
        }),
        _ => {
            let Ok(request) = rpc::ConfigureModuleRequest::parse_from_bytes(bytes) else { return };
            api.configure(
                &Caller::new("10.0.0.1:7".into(), true),
                || Ok(request),
                |answer| {
                    if let Err(failure) = answer {
                        assert_is_clean(&failure.message);
                    }
                },
            );
        }
    }
}

/// Names of processes and of a scope, whatever they are: no page has more lines for them, and each says them as they are.
fn exposition(data: &[u8]) {
    let mut names = data.split(|b| *b == 0).map(|name| String::from_utf8_lossy(name).into_owned());
    let mut snapshot = example::snapshot();
    let lines = |s: &Snapshot| [prometheus::text(s), prometheus::openmetrics(s)].map(|page| page.lines().count());
    let before = lines(&snapshot);
    let scope = names.next().unwrap_or_default();
    snapshot.scope.clone_from(&scope);
    for series in snapshot.families.iter_mut().flat_map(|f| &mut f.series) {
        series.labels.iter_mut().for_each(|label| label.clone_from(&scope));
    }
    let mut files = snapshot.files.as_deref().cloned().unwrap_or_default();
    for (_, value) in files.groups.iter_mut().flat_map(|g| &mut g.labels) {
        value.clone_from(&scope);
    }
    snapshot.files = Some(Arc::new(files));
    let comms: Vec<String> = names.collect();
    let row = |(pid, comm): (usize, &String)| ProcessRow {
        pid: pid as u32,
        comm: comm.clone(),
        calls: 2,
        success: 1,
        ..Default::default()
    };
    snapshot.processes = Some(comms.iter().enumerate().map(row).collect());
    // Unicode has ends of lines that the format has not.
    let ends = |page: &str| page.bytes().filter(|b| *b == b'\n').count();
    for (page, lines) in [prometheus::text(&snapshot), prometheus::openmetrics(&snapshot)].iter().zip(before) {
        assert_eq!(ends(page), lines);
        for line in page.lines().filter(|l| !l.starts_with('#')) {
            let said = labels(line).unwrap_or_else(|| panic!("{line}"));
            let ours: &[&str] = if line.starts_with("ebpf_file_group_") { &["preset", "cause"] } else { &["le"] };
            assert!(said.iter().all(|(name, value)| ours.contains(&name.as_str()) || *value == scope), "{line}");
        }
    }
    let stats: serde_json::Value = serde_json::from_str(&json::stats(&snapshot)).expect("JSON");
    assert_eq!(stats["scope"], scope.as_str());
    for (said, comm) in stats["fadvise"]["process_stats"].as_array().into_iter().flatten().zip(&comms) {
        assert_eq!(said["comm"], comm.as_str());
    }
    let health: Result<serde_json::Value, _> = serde_json::from_str(&json::health(&snapshot, Instant::now()).1);
    assert!(health.is_ok());
    banyandb::fuzz_points(&snapshot);
    assert_is_clean(&clean(&scope));
}

/// The labels of a sample, as Prometheus reads them: `name{label="value",…} number`; `None` if it is none.
fn labels(line: &str) -> Option<HashMap<String, String>> {
    let end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    let mut found = HashMap::new();
    let mut rest = &line[end..];
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (name, value) = rest.split_once("=\"")?;
            let (mut text, mut chars) = (String::new(), value.char_indices());
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at + 1,
                    (_, '\\') => text.push(match chars.next()?.1 {
                        'n' => '\n',
                        c @ ('"' | '\\') => c,
                        _ => return None,
                    }),
                    (_, c) => text.push(c),
                }
            };
            found.insert(name.to_owned(), text);
            rest = value[end..].strip_prefix(',').unwrap_or(&value[end..]);
        }
        rest = &rest[1..];
    }
    rest.strip_prefix(' ')?.parse::<f64>().ok().map(|_| found)
}

/// What a server that calls itself BanyanDB says of its schema. The first byte says of what.
fn banyandb_answers(data: &[u8]) {
    if let Some((kind, bytes)) = data.split_first() {
        banyandb::fuzz_answer(*kind, bytes);
    }
}

/// What a receiver of OTLP answers.
fn otlp_answers(data: &[u8]) {
    if let Some((kind, bytes)) = data.split_first() {
        otlp::fuzz_answer(*kind, bytes);
    }
}

/// What the kernel writes under /proc and /sys, and the verifier's log.
fn kernel_text(data: &[u8]) {
    os::fuzz(data);
    let text = String::from_utf8_lossy(data);
    let (short, long) = verifier::explain(&text, data.first().is_some_and(|b| b % 2 == 1));
    assert!(!short.is_empty() && !long.is_empty());
    let (first, second) = data.split_at(data.len() / 2);
    if let Some(uid) = pod::own_uid(&String::from_utf8_lossy(first), &String::from_utf8_lossy(second)) {
        assert!(!uid.contains('\n'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, target) in TARGETS {
            let mut inputs: Vec<PathBuf> =
                fs::read_dir(corpus.join(name)).unwrap().map(|e| e.unwrap().path()).collect();
            inputs.sort();
            assert!(!inputs.is_empty(), "no corpus for {name}");
            target(b"");
            for input in inputs {
                let bytes = fs::read(&input).unwrap();
                eprintln!("{}", input.display());
                // Cut off, too.
                (1..=8).for_each(|n| target(&bytes[..bytes.len() * n / 8]));
            }
        }
        let folders = fs::read_dir(&corpus).unwrap().count();
        assert_eq!(folders, TARGETS.len());
    }
}
