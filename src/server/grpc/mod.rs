//! The API over gRPC: services, limits, starting and stopping.
//!
//! Clients reach it through [`guard`]. A fixed number of threads (`grpc-0`, …) run every call.
//! Calls answer at once from the newest snapshot; what takes time (streams, slow readers) is a task that one of these
//! threads looks at when its client, or the ticker, wakes it. No panic may leave a callback: it would end the thread, and
//! all calls on it.

pub mod auth;
mod gate;
pub(crate) mod guard;
pub(crate) mod stream;
pub mod stubs;
mod ticker;
pub mod tls;

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use grpcio::{
    ChannelBuilder, Environment, GrpcSlice, MethodType, ResourceQuota, RpcContext, RpcStatus, Server, ServerBuilder,
    ServerStreamingSink, Service, ServiceBuilder,
};
use protobuf::Message;

use super::listen::{self, StartError};
use crate::api::proto::health::health_check_response::ServingStatus;
use crate::api::proto::health::{HealthCheckRequest, HealthCheckResponse};
use crate::api::proto::rpc;
use crate::api::{ANSWER_MAX, Api, Caller, Code, Failure};
use crate::config;
use crate::ebpf::{os, poll};
use crate::host::confine::Role;
use crate::host::logging::clean;
use crate::host::threads;
use crate::metrics::grpc::{COUNTS, End};
use crate::metrics::snapshot::Snapshot;
use auth::Auth;
use gate::{Gate, Permit, Shares};
use guard::{Guard, Peers};
use stream::{Answer, Guarded, Produce, Sending, Stream, later};
use stubs::{SERVICE, name, served, served_unread};
use ticker::Ticker;

/// Threads that run calls.
const THREADS: usize = 2;
/// Calls that gRPC holds ready for each thread before a client makes them. One that has begun and whose request is not whole
/// keeps its place: there are more places than [`guard::ASKING_MAX`].
const SLOTS: usize = 192;
const _: () = assert!(THREADS * SLOTS > guard::ASKING_MAX);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// How often Watch looks for a change.
const WATCH: Duration = Duration::from_secs(1);
/// Time for the calls of a connection that has reached its age.
const AGE_GRACE: Duration = Duration::from_secs(60);
/// Time for a probed client to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Room that there must be among the answers for a further stream: more than any of its messages takes.
const STREAM_ROOM: usize = 64 << 10;
/// Bytes of an answer that are many: the heap is trimmed afterwards.
const LARGE: usize = 256 << 10;
/// Clients may probe this often; more often is a reason to hang up.
const PINGS_APART: Duration = Duration::from_secs(10);

/// The running server. Dropping it ends every call and stops it.
pub struct GrpcServer {
    address: SocketAddr,
    auth: Auth,
    servers: Servers,
    guard: Option<Guard>,
    // In this order: calls first, then what they wait for.
    shared: Arc<Shared>,
    _environment: Arc<Environment>,
}

/// gRPC's servers: the one for clients of other hosts and the one for those of this host. None any more when they are being
/// stopped.
type Servers = Arc<Mutex<Vec<Server>>>;

impl Drop for GrpcServer {
    fn drop(&mut self) {
        // The guard still carries what they say last. A connection that comes now is let go.
        let servers = std::mem::take(&mut *lock(&self.servers));
        drop(servers);
        self.guard = None;
    }
}

/// What every call has.
struct Shared {
    api: Arc<Api>,
    ticker: Ticker,
    calls: Shares,
    streams: Gate,
    /// Bytes of answers that clients have not taken yet.
    answers: Gate,
    /// Whether there was a large one since the heap was trimmed.
    large: Arc<AtomicBool>,
    peers: Peers,
    /// Whether all of them have shown a certificate that the configured authorities have signed: the guard sees to it.
    authenticated: bool,
    encoded: Mutex<Option<Arc<Encoded>>>,
}

/// The answers of one snapshot that most clients ask for.
struct Encoded {
    sequence: u64,
    /// GetMetrics without filters.
    metrics: GrpcSlice,
    /// The messages of StreamMetrics without filters.
    stream: Vec<GrpcSlice>,
}

impl GrpcServer {
    /// Where it listens; tells the port if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The token that calls need.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// From now on so many streams and calls may be open; what is open stays.
    pub fn limit(&self, limits: &config::Limits) {
        self.shared.streams.resize(limits.streams);
        self.shared.calls.resize(limits.calls);
    }
}

/// Starts the server. It listens when this returns.
pub fn start(config: &config::Grpc, api: Arc<Api>) -> Result<GrpcServer, StartError> {
    let setup = |e| StartError::Setup("gRPC", e);
    let mut address = SocketAddr::new(config.address, config.port);
    let tls = tls::watched(&config.tls).map_err(StartError::Tls)?;
    let auth = Auth::new(config.token_file.as_deref()).map_err(StartError::Tls)?;
    if config.token_file.is_some() && !config.tls.enabled {
        log::warn!("server.grpc.auth.token_file without TLS: whoever may listen on loopback reads the token");
    }
    let listen = move |e| StartError::Listen { server: "gRPC", keys: "server.grpc", address, error: e };
    let listener = listen::bind(address).map_err(listen)?;
    poll::set_backlog(&listener, BACKLOG).map_err(listen)?;
    address = listener.local_addr().map_err(listen)?;

    grpcio::redirect_log();
    let limits = &config.limits;
    let (answers, large) = (Gate::new(limits.answer_bytes), Arc::new(AtomicBool::new(false)));
    let rest = {
        let (answers, large) = (answers.clone(), Arc::clone(&large));
        move || {
            if answers.taken() < LARGE && large.swap(false, Ordering::Relaxed) {
                os::trim_heap();
            }
        }
    };
    let peers = Peers::default();
    let shared = Arc::new(Shared {
        api,
        ticker: Ticker::start(rest).map_err(setup)?,
        calls: Shares::new(limits.calls),
        streams: Gate::new(limits.streams),
        answers,
        large,
        peers: peers.clone(),
        authenticated: config.tls.enabled && config.tls.client_ca_file.is_some(),
        encoded: Mutex::new(None),
    });
    let environment = threads::grpc(THREADS, "grpc", Role::Grpc);
    let serve = || {
        let quota = ResourceQuota::new(Some("ebpf-sidecar")).resize_memory(limits.memory_bytes);
        let server = |local| {
            ServerBuilder::new(Arc::clone(&environment))
                .requests_slot_per_cq(SLOTS)
                .add_checker(auth.clone())
                .channel_args(channel(limits, quota.clone(), &environment).build_args())
                .register_service(metrics_service(&shared, local))
                .register_service(health_service(&shared))
                .build()
                .map_err(|e| setup(io::Error::other(e)))
        };
        let mut servers = vec![server(false)?, server(true)?];
        servers.iter_mut().for_each(Server::start);
        Ok(servers)
    };
    let servers = threads::named(threads::GRPC_CORE, Role::Grpc, serve).map_err(setup)??;
    let servers: Servers = Arc::new(Mutex::new(servers));
    let of_guard = Arc::clone(&servers);
    let attach = move |socket, peer: SocketAddr| {
        let local = usize::from(peer.ip().is_loopback());
        if let Some(server) = lock(&of_guard).get_mut(local) {
            poll::hand_over(server, socket);
        }
    };
    let guard = Some(Guard::start(listener, tls, peers, limits.message_bytes, Box::new(attach)).map_err(setup)?);
    Ok(GrpcServer { address, auth, servers, guard, shared, _environment: environment })
}

fn lock(servers: &Servers) -> MutexGuard<'_, Vec<Server>> {
    // What a panic would have left is still a list.
    servers.lock().unwrap_or_else(|e| e.into_inner())
}

/// What holds for each connection.
fn channel(limits: &config::Limits, quota: ResourceQuota, environment: &Arc<Environment>) -> ChannelBuilder {
    let bytes = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let millis = |d: Duration| i32::try_from(d.as_millis()).unwrap_or(i32::MAX);
    let mut channel = ChannelBuilder::new(Arc::clone(environment))
        .max_receive_message_len(bytes(limits.message_bytes))
        .max_concurrent_stream(bytes(limits.streams + limits.calls))
        .set_resource_quota(quota)
        .keepalive_time(limits.keepalive)
        .keepalive_timeout(KEEPALIVE_TIMEOUT)
        .keepalive_permit_without_calls(true)
        .http2_min_recv_ping_interval_without_data(PINGS_APART)
        .raw_cfg_int(c"grpc.max_connection_idle_ms".into(), millis(limits.connection_idle))
        // No compression: a small message could unfold to any size.
        .raw_cfg_int(c"grpc.compression_enabled_algorithms_bitset".into(), 1);
    if let Some(age) = limits.connection_age {
        channel = channel
            .raw_cfg_int(c"grpc.max_connection_age_ms".into(), millis(age))
            .raw_cfg_int(c"grpc.max_connection_age_grace_ms".into(), millis(AGE_GRACE));
    }
    channel
}

impl Shared {
    fn encoded(&self) -> Result<Arc<Encoded>, Failure> {
        let newest = self.api.newest();
        // What a panic would have left is whole, or nothing.
        let mut kept = self.encoded.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(encoded) = kept.as_ref().filter(|e| e.sequence == newest.sequence) {
            return Ok(Arc::clone(encoded));
        }
        let encoded = Arc::new(Encoded {
            sequence: newest.sequence,
            metrics: encode(&self.api.get_metrics(&rpc::GetMetricsRequest::default())?)?,
            stream: self.stream_messages(&newest, &rpc::StreamMetricsRequest::default())?,
        });
        *kept = Some(Arc::clone(&encoded));
        Ok(encoded)
    }

    fn stream_messages(&self, of: &Snapshot, request: &rpc::StreamMetricsRequest) -> Result<Vec<GrpcSlice>, Failure> {
        self.api.stream(of, request)?.iter().map(encode).collect()
    }

    fn get_metrics(&self, request: &rpc::GetMetricsRequest) -> Result<GrpcSlice, Failure> {
        if *request == rpc::GetMetricsRequest::default() {
            return Ok(self.encoded()?.metrics.clone());
        }
        // Making it is most of the work: not for one that could not be sent.
        if request.time_range.is_some() && self.answers.take(ANSWER_MAX as usize).is_none() {
            return Err(no_room());
        }
        encode(&self.api.get_metrics(request)?)
    }

    fn check_health(&self, request: &HealthCheckRequest) -> Result<GrpcSlice, Failure> {
        match self.api.serving(&request.service, &[SERVICE]) {
            Some(serving) => encode(&health_response(serving_status(serving))),
            None => Err(Failure::new(Code::NotFound, "no such service")),
        }
    }

    /// The answer as it is sent, with its room among those that wait for slow clients; or why there is none.
    fn ended(&self, result: Result<GrpcSlice, Failure>) -> (Result<GrpcSlice, RpcStatus>, Option<Permit>) {
        let result = result.and_then(|bytes| match self.answers.take(bytes.len()) {
            Some(room) => Ok((bytes, room)),
            None => Err(no_room()),
        });
        count(result.as_ref().err().map(|f| f.code));
        match result {
            Ok((bytes, room)) => {
                if bytes.len() >= LARGE {
                    self.large.store(true, Ordering::Relaxed);
                }
                (Ok(bytes), Some(room))
            }
            Err(failure) => (Err(status(&failure)), None),
        }
    }

    /// Sends the answer to a call.
    fn answer(
        &self,
        context: &RpcContext,
        sink: ServerStreamingSink<GrpcSlice>,
        result: Result<GrpcSlice, Failure>,
        permit: Option<Permit>,
    ) {
        let (result, room) = self.ended(result);
        context.spawn(Guarded(Answer::new(Sending::new(sink, result), self.ticker.timer(), [permit, room])));
    }

    /// A place for a call, if one is free and its connection has no more than its share.
    fn enter(&self, context: &RpcContext) -> Option<Permit> {
        self.calls.enter(&context.peer())
    }

    /// Address of the client.
    fn peer(&self, context: &RpcContext) -> String {
        let name = context.peer();
        self.peers.address(&name).map_or(name, |address| address.to_string())
    }

    /// Who calls; `local` tells whether those of this server are of this host.
    fn caller(&self, context: &RpcContext, local: bool) -> Caller {
        Caller { loopback: local, ..Caller::new(self.peer(context), self.authenticated) }
    }

    /// Opens a stream, or refuses it.
    fn open(
        &self,
        context: &RpcContext,
        sink: ServerStreamingSink<GrpcSlice>,
        source: Result<(Duration, Produce), Failure>,
    ) {
        let source = source.and_then(|source| match (self.streams.enter(), self.answers.take(STREAM_ROOM)) {
            (Some(permit), Some(_)) => Ok((source, permit)),
            (None, _) => Err(too_many("streams")),
            (_, None) => Err(no_room()),
        });
        match source {
            Ok((source, permit)) => {
                count(None);
                let (answers, timer) = (self.answers.clone(), self.ticker.timer());
                context.spawn(Guarded(Stream::new(sink, source, answers, timer, self.peer(context), permit)));
            }
            Err(failure) => self.answer(context, sink, Err(failure), None),
        }
    }
}

fn metrics_service(shared: &Arc<Shared>, local: bool) -> Service {
    let builder = ServiceBuilder::new();
    let builder = unary(builder, shared, name::GET_METRICS, |s: &Shared, r| s.get_metrics(r));
    let builder = unary(builder, shared, name::GET_IO_STATS, |s, r| encode(&s.api.get_io_stats(r)?));
    let builder = unary(builder, shared, name::GET_MODULE_STATUS, |s, r| encode(&s.api.get_module_status(r)?));
    let builder = unary(builder, shared, name::GET_HEALTH, |s, r| encode(&s.api.get_health(r)));
    let builder = unary(builder, shared, name::GET_DIAGNOSIS, |s, r| encode(&s.api.get_diagnosis(r)));
    let of_configure = Arc::clone(shared);
    let of_stream = Arc::clone(shared);
    builder
        .add_server_streaming_handler(
            &served_unread(MethodType::ServerStreaming, name::CONFIGURE_MODULE),
            move |context, request, sink| configure(&of_configure, local, &context, &request, sink),
        )
        .add_server_streaming_handler(
            &served(MethodType::ServerStreaming, name::STREAM_METRICS),
            move |context, request, sink| {
                let source = guarded(|| metrics_source(&of_stream, request));
                of_stream.open(&context, sink, source);
            },
        )
        .build()
}

fn health_service(shared: &Arc<Shared>) -> Service {
    let builder = unary(ServiceBuilder::new(), shared, name::HEALTH_CHECK, |s: &Shared, r| s.check_health(r));
    let of_watch = Arc::clone(shared);
    builder
        .add_server_streaming_handler(
            &served(MethodType::ServerStreaming, name::HEALTH_WATCH),
            move |context, request: HealthCheckRequest, sink| {
                of_watch.open(&context, sink, Ok((WATCH, health_source(&of_watch, request.service))));
            },
        )
        .build()
}

/// Adds a method that answers at once; why it is a stream to gRPC: see [`Sending`].
fn unary<Req: Message>(
    builder: ServiceBuilder,
    shared: &Arc<Shared>,
    name: &'static str,
    answer: impl Fn(&Shared, &Req) -> Result<GrpcSlice, Failure> + Clone + Send + 'static,
) -> ServiceBuilder {
    let shared = Arc::clone(shared);
    let method = served(MethodType::ServerStreaming, name);
    builder.add_server_streaming_handler(&method, move |context, request: Req, sink| {
        let permit = shared.enter(&context);
        let result = match permit {
            Some(_) => guarded(|| answer(&shared, &request)),
            None => Err(too_many("calls")),
        };
        shared.answer(&context, sink, result, permit);
    })
}

fn configure(
    shared: &Arc<Shared>,
    local: bool,
    context: &RpcContext,
    request: &[u8],
    sink: ServerStreamingSink<GrpcSlice>,
) {
    let Some(permit) = shared.enter(context) else {
        return shared.answer(context, sink, Err(too_many("calls")), None);
    };
    let (give, result) = later();
    let asked = guarded(|| {
        let request = || {
            rpc::ConfigureModuleRequest::parse_from_bytes(request)
                .map_err(|e| Failure::new(Code::InvalidArgument, format!("no ConfigureModuleRequest: {}", clean(e))))
        };
        shared.api.configure(&shared.caller(context, local), request, |result| give.give(result));
        Ok(())
    });
    if let Err(failure) = asked {
        return shared.answer(context, sink, Err(failure), Some(permit));
    }
    let of_answer = Arc::clone(shared);
    let answered = Box::pin(async move {
        let stopping = || Err(Failure::new(Code::Unavailable, "the agent is stopping"));
        let result = result.await.unwrap_or_else(stopping).and_then(|response| encode(&response));
        let (result, _room) = of_answer.ended(result);
        Sending::new(sink, result).await;
    });
    context.spawn(Guarded(Answer::new(answered, shared.ticker.timer(), [Some(permit), None])));
}

fn metrics_source(shared: &Arc<Shared>, request: rpc::StreamMetricsRequest) -> Result<(Duration, Produce), Failure> {
    let interval = shared.api.check_stream(&request)?;
    let plain = request.modules.is_empty() && request.label_filters.is_empty();
    let shared = Arc::clone(shared);
    let produce = move || {
        let messages = match plain {
            true => shared.encoded().map(|e| e.stream.clone()),
            false => shared.stream_messages(&shared.api.newest(), &request),
        };
        messages.unwrap_or_else(|failure| {
            log::error!("gRPC: a stream has nothing to say: {failure}");
            Vec::new()
        })
    };
    Ok((interval, Box::new(produce)))
}

fn health_source(shared: &Arc<Shared>, service: String) -> Produce {
    let shared = Arc::clone(shared);
    let mut told = None;
    Box::new(move || {
        let status = shared.api.serving(&service, &[SERVICE]).map_or(ServingStatus::SERVICE_UNKNOWN, serving_status);
        if told.replace(status) == Some(status) {
            return Vec::new();
        }
        encode(&health_response(status)).into_iter().collect()
    })
}

fn serving_status(serving: bool) -> ServingStatus {
    if serving { ServingStatus::SERVING } else { ServingStatus::NOT_SERVING }
}

fn health_response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into(), ..Default::default() }
}

fn encode(message: &impl Message) -> Result<GrpcSlice, Failure> {
    let bytes = message.write_to_bytes().map_err(|e| Failure::new(Code::Internal, e.to_string()))?;
    Ok(GrpcSlice::from(bytes))
}

/// The result of `work`; a panic is an internal error.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let bug = || Failure::new(Code::Internal, "a bug: the agent's log has more");
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(bug()))
}

fn too_many(what: &str) -> Failure {
    let message = format!("too many {what} at a time; server.grpc.limits.{what} says how many there may be");
    Failure::new(Code::ResourceExhausted, message)
}

fn no_room() -> Failure {
    let message =
        "too many answers wait for clients to read them; server.grpc.limits.answer_bytes says how much there may be";
    Failure::new(Code::ResourceExhausted, message)
}

/// Counts a call that was answered, or failed with this code.
fn count(failure: Option<Code>) {
    COUNTS.ended(match failure {
        None => End::Ok,
        Some(Code::ResourceExhausted) => End::Refused,
        Some(_) => End::Failed,
    });
}

fn status(failure: &Failure) -> RpcStatus {
    RpcStatus::with_message(failure.code as i32, failure.message.clone())
}
