//! A receiver of OTLP for tests, by gRPC and by HTTP: keeps what it takes, and fails as it is told.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::export::otlp::EXPORT;
use ebpf_sidecar::export::otlp::proto::common::KeyValue;
use ebpf_sidecar::export::otlp::proto::metrics::{AggregationTemporality, metric, number_data_point};
use ebpf_sidecar::export::otlp::proto::metrics_service::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use ebpf_sidecar::export::otlp::proto::status::{RetryInfo, Status};
use ebpf_sidecar::server::grpc::stubs::called;
use grpcio::{
    ChannelBuilder, EnvBuilder, Environment, MethodType, RpcContext, RpcStatus, RpcStatusCode, Server, ServerBuilder,
    ServerCredentials, ServiceBuilder, UnarySink,
};
use openssl::ssl::{SslAcceptor, SslMethod};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use crate::identity::Identity;

/// A series as Prometheus has it (`name{label="value"}`, of a histogram each bucket, sum and count), and nanoseconds.
pub type Key = (String, u64);

/// What can happen to the next request that has points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This code of gRPC, or status of HTTP; nothing is taken.
    Code(i32),
    /// The same, with the time after which to try again.
    Wait(i32, Duration),
    /// All is taken, and the connection closed without an answer.
    Unanswered,
    /// Nothing is taken, and no answer comes.
    Hang,
    /// So many points are refused.
    Partly(i64),
    /// A warning.
    Warning,
    /// What no server answers.
    Garbage,
}

#[derive(Default)]
pub struct Store {
    /// Values; NaN where a point says that there is none.
    pub points: BTreeMap<Key, f64>,
    /// The resource's attributes, as they came last.
    pub resource: BTreeMap<String, String>,
    /// Starts of sums and histograms.
    pub starts: Vec<u64>,
    /// What a correct client never does.
    pub violations: Vec<String>,
    pub fault: Option<Fault>,
    /// Header and value that it asks for.
    pub asks_for: Option<(String, String)>,
    /// Requests with points that were taken, and their points.
    pub requests: Vec<usize>,
    /// Bytes that came, as they came.
    pub bytes: usize,
    /// When a request with points arrived, taken or not.
    pub arrived: Vec<Instant>,
    /// Connections to the HTTP server.
    pub connections: usize,
    closed: bool,
}

impl Store {
    /// Keeps a request. Returns the number of its points.
    fn take(&mut self, request: &ExportMetricsServiceRequest) -> usize {
        let mut points = 0;
        for of in &request.resource_metrics {
            self.resource = attributes(&of.resource.attributes).into_iter().collect();
            for scope in &of.scope_metrics {
                if scope.scope.name != "ebpf-sidecar" {
                    self.violations.push(format!("scope {:?}", scope.scope));
                }
                for metric in &scope.metrics {
                    let cumulative = AggregationTemporality::AGGREGATION_TEMPORALITY_CUMULATIVE;
                    let name = &metric.name;
                    match &metric.data {
                        Some(metric::Data::Gauge(gauge)) => {
                            points += gauge.data_points.len();
                            for p in &gauge.data_points {
                                self.number(name, p.time_unix_nano, &p.attributes, &p.value, p.flags);
                            }
                        }
                        Some(metric::Data::Sum(sum)) => {
                            points += sum.data_points.len();
                            if !sum.is_monotonic || sum.aggregation_temporality != cumulative.into() {
                                self.violations.push(format!("{name} is no counter"));
                            }
                            for p in &sum.data_points {
                                self.start(p.start_time_unix_nano, p.time_unix_nano);
                                self.number(name, p.time_unix_nano, &p.attributes, &p.value, p.flags);
                            }
                        }
                        Some(metric::Data::Histogram(histogram)) => {
                            points += histogram.data_points.len();
                            if histogram.aggregation_temporality != cumulative.into() {
                                self.violations.push(format!("{name} is not cumulative"));
                            }
                            for p in &histogram.data_points {
                                self.start(p.start_time_unix_nano, p.time_unix_nano);
                                if p.bucket_counts.len() != p.explicit_bounds.len() + 1 {
                                    self.violations.push(format!("{name}: {p}"));
                                }
                                let labels = attributes(&p.attributes);
                                let (time, mut sum) = (p.time_unix_nano, 0);
                                let bounds = p.explicit_bounds.iter().copied().chain([f64::INFINITY]);
                                for (count, bound) in p.bucket_counts.iter().zip(bounds) {
                                    sum += count;
                                    let le = [labels.clone(), vec![("le".to_owned(), format!("{bound:?}"))]].concat();
                                    self.put(series(&format!("{name}_bucket"), &le), time, sum as f64);
                                }
                                self.put(series(&format!("{name}_sum"), &labels), time, p.sum.unwrap_or(f64::NAN));
                                self.put(series(&format!("{name}_count"), &labels), time, p.count as f64);
                                if sum != p.count {
                                    self.violations.push(format!("{name}: {p}"));
                                }
                            }
                        }
                        _ => self.violations.push(format!("{name} has no points")),
                    }
                }
            }
        }
        if points > 0 {
            self.requests.push(points);
        }
        points
    }

    fn start(&mut self, start: u64, time: u64) {
        if start == 0 || start > time {
            self.violations.push(format!("a start at {start} of a point at {time}"));
        }
        if !self.starts.contains(&start) {
            self.starts.push(start);
        }
    }

    fn number(
        &mut self,
        name: &str,
        time: u64,
        labels: &[KeyValue],
        value: &Option<number_data_point::Value>,
        flags: u32,
    ) {
        let value = match value {
            _ if flags == 1 => f64::NAN,
            Some(number_data_point::Value::AsInt(n)) => *n as f64,
            Some(number_data_point::Value::AsDouble(v)) => *v,
            _ => return self.violations.push(format!("{name} has no value")),
        };
        self.put(series(name, &attributes(labels)), time, value);
    }

    fn put(&mut self, series: String, time: u64, value: f64) {
        // In the order of their times, as Prometheus wants them, unless it is sent again.
        let newest = self.points.range((series.clone(), 0)..=(series.clone(), u64::MAX)).next_back();
        if let Some(((_, newest), _)) = newest
            && *newest > time
            && !self.points.contains_key(&(series.clone(), time))
        {
            self.violations.push(format!("{series} at {time} after {newest}"));
        }
        let old = self.points.insert((series.clone(), time), value);
        if old.is_some_and(|old| old.to_bits() != value.to_bits()) {
            self.violations.push(format!("{series} at {time} is another, {value}"));
        }
    }
}

fn attributes(all: &[KeyValue]) -> Vec<(String, String)> {
    all.iter().map(|a| (a.key.clone(), a.value.string_value().to_owned())).collect()
}

fn series(name: &str, labels: &[(String, String)]) -> String {
    let labels: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
}

/// Of the same series, as /metrics writes it.
pub fn as_number(series: &str) -> String {
    let Some((head, le)) = series.split_once("le=\"") else { return series.to_owned() };
    let (bound, rest) = le.split_once('"').unwrap();
    let bound: f64 = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
    format!("{head}le=\"{bound:?}\"{rest}")
}

pub struct Otlp {
    store: Arc<Mutex<Store>>,
    pub port: u16,
    _grpc: Option<(Server, Arc<Environment>)>,
}

impl Otlp {
    pub fn grpc(tls: Option<&Identity>) -> Self {
        let store = Arc::new(Mutex::new(Store::default()));
        let environment = Arc::new(EnvBuilder::new().cq_count(1).build());
        let mine = Arc::clone(&store);
        let export = move |ctx: RpcContext<'_>,
                           request: ExportMetricsServiceRequest,
                           sink: UnarySink<ExportMetricsServiceResponse>| {
            let header = |name: &str| {
                let found = ctx.request_headers().iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            };
            match answer(&mine, &request, header) {
                Reply::Response(response) => ctx.spawn(async move { drop(sink.success(response).await) }),
                Reply::Failure(code, wait) => {
                    let details = wait.map_or(Vec::new(), retry_info);
                    let code = if code == UNKNOWN { RpcStatusCode::UNAUTHENTICATED } else { code.into() };
                    let status = RpcStatus::with_details(code, "told so".into(), details);
                    ctx.spawn(async move { drop(sink.fail(status).await) });
                }
                // What a connection that is lost looks like.
                Reply::Close => {
                    let status = RpcStatus::with_message(RpcStatusCode::UNAVAILABLE, "lost".into());
                    ctx.spawn(async move { drop(sink.fail(status).await) });
                }
                Reply::Hang => ctx.spawn(async move {
                    std::mem::forget(sink);
                }),
                Reply::Garbage => {
                    let status = RpcStatus::with_message(RpcStatusCode::UNKNOWN, "garbage".into());
                    ctx.spawn(async move { drop(sink.fail(status).await) });
                }
            }
        };
        let service = ServiceBuilder::new().add_unary_handler(&called(MethodType::Unary, EXPORT), export).build();
        let args = ChannelBuilder::new(Arc::clone(&environment)).reuse_port(false).build_args();
        let mut server =
            ServerBuilder::new(Arc::clone(&environment)).register_service(service).channel_args(args).build().unwrap();
        let credentials = match tls {
            None => ServerCredentials::insecure(),
            Some(id) => grpcio::ServerCredentialsBuilder::new().add_cert(id.cert_pem(), id.key_pem()).build(),
        };
        let port = server.add_listening_port("127.0.0.1:0", credentials).unwrap();
        server.start();
        let port = relay(Arc::clone(&store), port);
        Self { store, port, _grpc: Some((server, environment)) }
    }

    pub fn http(tls: Option<&Identity>) -> Self {
        let store = Arc::new(Mutex::new(Store::default()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tls.map(|id| {
            let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
            acceptor.set_certificate(&id.cert).unwrap();
            acceptor.set_private_key(&id.key).unwrap();
            acceptor.build()
        });
        let mine = Arc::clone(&store);
        thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                let (store, acceptor) = (Arc::clone(&mine), acceptor.clone());
                let mut state = lock(&store);
                if state.closed {
                    return;
                }
                state.connections += 1;
                drop(state);
                thread::spawn(move || {
                    let end = tcp.try_clone().unwrap();
                    match acceptor {
                        None => serve(&store, tcp, &end),
                        Some(acceptor) => {
                            if let Ok(tls) = acceptor.accept(tcp) {
                                serve(&store, tls, &end);
                            }
                        }
                    }
                    let _ = end.shutdown(Shutdown::Both);
                });
            }
        });
        Self { store, port, _grpc: None }
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Otlp {
    fn drop(&mut self) {
        self.store().closed = true;
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Stands before a server and counts what comes. Returns its port.
fn relay(store: Arc<Mutex<Store>>, to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            if lock(&store).closed {
                return;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { return };
            let (store, back) = (Arc::clone(&store), [&client, &server].map(|s| s.try_clone().unwrap()));
            thread::spawn(move || pass(client, server, |n| lock(&store).bytes += n));
            let [client, server] = back;
            thread::spawn(move || pass(server, client, |_| ()));
        }
    });
    port
}

fn pass(mut from: TcpStream, mut to: TcpStream, count: impl Fn(usize)) {
    let mut buffer = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        count(n);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(|e| e.into_inner())
}

fn retry_info(wait: Duration) -> Vec<u8> {
    let info = RetryInfo { retry_delay: MessageField::some(wait.into()), ..Default::default() };
    let value = info.write_to_bytes().unwrap();
    let any = Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value, ..Default::default() };
    Status { details: vec![any], ..Default::default() }.write_to_bytes().unwrap()
}

/// How a request is answered.
enum Reply {
    Response(ExportMetricsServiceResponse),
    Failure(i32, Option<Duration>),
    Close,
    Hang,
    Garbage,
}

/// The code for whom it does not know, in gRPC and in HTTP.
const UNKNOWN: i32 = -1;

fn answer(
    store: &Mutex<Store>,
    request: &ExportMetricsServiceRequest,
    header: impl Fn(&str) -> Option<String>,
) -> Reply {
    let mut store = lock(store);
    if let Some((name, value)) = &store.asks_for
        && header(name).as_ref() != Some(value)
    {
        return Reply::Failure(UNKNOWN, None);
    }
    // Asking whether it is there has no points.
    if request.resource_metrics.is_empty() {
        return Reply::Response(ExportMetricsServiceResponse::default());
    }
    store.arrived.push(Instant::now());
    let partial = |rejected_data_points, error_message: &str| {
        let partial = ExportMetricsPartialSuccess {
            rejected_data_points,
            error_message: error_message.into(),
            ..Default::default()
        };
        Reply::Response(ExportMetricsServiceResponse { partial_success: Some(partial).into(), ..Default::default() })
    };
    match store.fault.take() {
        None => {
            store.take(request);
            Reply::Response(ExportMetricsServiceResponse::default())
        }
        Some(Fault::Code(code)) => Reply::Failure(code, None),
        Some(Fault::Wait(code, wait)) => Reply::Failure(code, Some(wait)),
        Some(Fault::Unanswered) => {
            store.take(request);
            Reply::Close
        }
        Some(Fault::Hang) => Reply::Hang,
        Some(Fault::Partly(n)) => {
            store.take(request);
            partial(n, "some are too old")
        }
        Some(Fault::Warning) => {
            store.take(request);
            partial(0, "soon there will be no room")
        }
        Some(Fault::Garbage) => Reply::Garbage,
    }
}

/// Answers the requests of a connection.
fn serve(store: &Mutex<Store>, stream: impl Read + Write, end: &TcpStream) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let header = |name: &str| {
            let found = head[1..].iter().filter_map(|line| line.split_once(": ")).find(|(n, _)| *n == name);
            found.map(|(_, value)| value.to_owned())
        };
        let mut body = vec![0; header("content-length").unwrap().parse().unwrap()];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        lock(store).bytes += body.len();
        let body = if header("content-encoding").as_deref() == Some("gzip") { gunzip(&body) } else { body };
        let request = ExportMetricsServiceRequest::parse_from_bytes(&body).unwrap();
        let good = head[0] == "POST /v1/metrics HTTP/1.1"
            && header("content-type").as_deref() == Some("application/x-protobuf")
            && header("user-agent").is_some_and(|agent| agent.starts_with("ebpf-sidecar/"))
            && header("host").is_some_and(|host| host.ends_with(&end.local_addr().unwrap().port().to_string()));
        if !good {
            lock(store).violations.push(head.join("; "));
        }
        let write = |stream: &mut BufReader<_>, status: i32, more: &str, body: &[u8]| {
            let length = body.len();
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n{more}\r\n");
            let stream: &mut dyn Write = BufReader::get_mut(stream);
            let _ = stream.write_all(&[head.as_bytes(), body].concat());
        };
        match answer(store, &request, header) {
            Reply::Response(response) => write(&mut stream, 200, "", &response.write_to_bytes().unwrap()),
            Reply::Failure(code, wait) => {
                let status = if code == UNKNOWN { 401 } else { code };
                let wait = wait.map(|wait| format!("retry-after: {}\r\n", wait.as_secs())).unwrap_or_default();
                let body = Status { message: "told so".into(), ..Default::default() }.write_to_bytes().unwrap();
                write(&mut stream, status, &wait, &body);
            }
            Reply::Close => return,
            Reply::Hang => {
                // Until the client has enough.
                let _ = stream.read(&mut [0]);
                return;
            }
            Reply::Garbage => {
                let _ = stream.get_mut().write_all(b"\x16\x03garbage\r\n\r\n");
                return;
            }
        }
    }
}

fn gunzip(file: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
    let mut stdin = gzip.stdin.take().unwrap();
    let file = file.to_vec();
    let writer = thread::spawn(move || stdin.write_all(&file));
    let out = gzip.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(out.status.success(), "not gzip");
    out.stdout
}
