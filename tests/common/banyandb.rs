//! A BanyanDB server for tests, as strict as the real one where it is strict, and as careless where it is careless: it
//! answers before it stores, forgets what it had in memory when it is killed, and loses points of a measure that it has
//! not loaded yet. Clients reach it through a proxy, which can cut, stall and refuse their connections.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::export::banyandb::method;
use ebpf_sidecar::export::banyandb::proto::common::{Catalog, Group, Metadata};
use ebpf_sidecar::export::banyandb::proto::database::{
    FieldType, GroupRegistryServiceCreateRequest, GroupRegistryServiceCreateResponse, GroupRegistryServiceGetRequest,
    GroupRegistryServiceGetResponse, Measure, MeasureRegistryServiceCreateRequest,
    MeasureRegistryServiceCreateResponse, MeasureRegistryServiceGetRequest, MeasureRegistryServiceGetResponse, TagType,
};
use ebpf_sidecar::export::banyandb::proto::measure::{
    DataPoint, QueryRequest, QueryResponse, WriteRequest, WriteResponse, data_point,
};
use ebpf_sidecar::export::banyandb::proto::model::{FieldValue, Float, Status, Str, Tag, TagFamily, TagValue};
use ebpf_sidecar::export::banyandb::proto::schema::{AwaitSchemaAppliedRequest, AwaitSchemaAppliedResponse};
use ebpf_sidecar::server::grpc::stubs::called;
use futures_util::{SinkExt, StreamExt};
use grpcio::{
    ChannelBuilder, DuplexSink, EnvBuilder, Environment, MethodType, RequestStream, RpcContext, RpcStatus,
    RpcStatusCode, Server, ServerBuilder, ServerCredentials, ServiceBuilder, UnarySink, WriteFlags,
};
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{EnumFull, Message};

/// Measure, tag values, milliseconds.
pub type Key = (String, Vec<String>, i64);

/// What can happen to the next Write stream that carries something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server dies while it reads: what it had not written to disk is gone.
    KillBefore,
    /// It dies after it has answered.
    KillAfter,
    /// It stores all, and dies before it answers.
    KillUnanswered,
    /// It never answers.
    Hang,
    /// It takes its time.
    Slow,
    /// No connection is accepted for a while.
    Refuse,
    /// Every third message has this status, and is not stored.
    Status(Status),
    /// Some answers are missing, whether stored or not.
    Silent,
    /// The call fails, although all was stored.
    Fails(RpcStatusCode),
    /// A measure is removed.
    Removed,
    /// Somebody touches a measure's schema, without changing it.
    Touched,
    /// The measures are loaded late.
    Late,
}

#[derive(Debug, Clone)]
struct Point {
    version: i64,
    value: f64,
}

struct Stored {
    measure: Measure,
    revision: i64,
    /// When it is in effect.
    loaded: Instant,
}

pub struct Store {
    groups: HashMap<String, Group>,
    measures: BTreeMap<String, Stored>,
    revision: i64,
    disk: BTreeMap<Key, Point>,
    /// What a kill loses.
    memory: Vec<(Instant, Key, Point)>,
    /// One more with each kill: what began before it comes to nothing.
    life: u64,
    /// How long a point stays in memory.
    pub flush_after: Duration,
    /// How long a new measure takes to be loaded.
    pub load_time: Duration,
    /// Whether it has the barrier, and checks revisions: servers since May 2026.
    pub barrier: bool,
    /// User and password it asks for.
    pub credentials: Option<(String, String)>,
    /// What it says to others.
    pub refusal: String,
    pub fault: Option<Fault>,
    /// Measures of which each point has this status, and is not stored; unspecified: no answer at all.
    pub failing: BTreeMap<String, Status>,
    /// Measures for a point of which the whole stream is ended, and nothing of it stored.
    pub ending: BTreeMap<String, RpcStatusCode>,
    /// Measures at a point of which the server is gone, and comes again at once.
    pub deadly: BTreeSet<String>,
    /// Measures that can neither be asked for nor created.
    pub refusing: BTreeMap<String, RpcStatusCode>,
    /// Measures that are not in effect on some node.
    pub lagging: BTreeSet<String>,
    refused_until: Option<Instant>,
    /// What a correct client never does.
    pub violations: Vec<String>,
    /// Points that were given a status with which a client has to give them up.
    pub given_up: Vec<Key>,
    /// Messages received.
    pub messages: u64,
    pub streams: u64,
    pub largest: usize,
}

impl Store {
    fn flush(&mut self, older_than: Duration) {
        let now = Instant::now();
        let (old, young) = std::mem::take(&mut self.memory)
            .into_iter()
            .partition(|(at, _, _)| now.saturating_duration_since(*at) >= older_than);
        self.memory = young;
        let old: Vec<(Instant, Key, Point)> = old;
        for (_, key, point) in old {
            put(&mut self.disk, key, point);
        }
    }

    fn kill(&mut self) {
        self.flush(self.flush_after);
        self.memory.clear();
        self.life += 1;
    }

    /// Everything that a query finds.
    pub fn points(&self) -> BTreeMap<Key, f64> {
        let mut all = self.disk.clone();
        for (_, key, point) in &self.memory {
            put(&mut all, key.clone(), point.clone());
        }
        all.into_iter().map(|(k, p)| (k, p.value)).collect()
    }

    pub fn measure(&self, name: &str) -> Option<&Measure> {
        self.measures.get(name).map(|s| &s.measure)
    }

    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }

    /// Puts a schema there before a client comes.
    pub fn create(&mut self, measure: Measure) {
        self.revision += 1;
        let mut stored = Stored { measure, revision: self.revision, loaded: Instant::now() };
        stored.measure.metadata.mut_or_insert_default().mod_revision = self.revision;
        self.measures.insert(stored.measure.metadata.name.clone(), stored);
    }

    pub fn create_group(&mut self, group: Group) {
        self.groups.insert(group.metadata.name.clone(), group);
    }

    fn violation(&mut self, text: String) {
        if self.violations.len() < 20 {
            self.violations.push(text);
        }
    }

    fn refuses(&self, measure: &str) -> Result<(), RpcStatus> {
        let refused = |code: &RpcStatusCode| RpcStatus::with_message(*code, format!("not {measure}"));
        self.refusing.get(measure).map_or(Ok(()), |code| Err(refused(code)))
    }

    /// Checks a message as the server does. What is to be stored, or the status that it is refused with.
    fn check(&mut self, metadata: &Metadata, request: &WriteRequest) -> Result<(Key, Point, bool), Status> {
        if request.message_id == 0 {
            self.violation("message_id 0".into());
        }
        let point = &request.data_point;
        let name = metadata.name.clone();
        if point.timestamp.is_none() || point.timestamp.nanos % 1_000_000 != 0 {
            self.violation(format!("{name}: timestamp {:?}", point.timestamp));
            return Err(Status::STATUS_INVALID_TIMESTAMP);
        }
        let now = Instant::now();
        let barrier = self.barrier;
        let Some(stored) = self.measures.get(&name).filter(|m| m.measure.metadata.group == metadata.group) else {
            return Err(if metadata.mod_revision > 0 && barrier {
                Status::STATUS_NOT_FOUND
            } else {
                Status::STATUS_INTERNAL_ERROR
            });
        };
        let loaded = stored.loaded <= now && !self.lagging.contains(&name);
        if metadata.mod_revision > 0 && barrier {
            if metadata.mod_revision < stored.revision {
                return Err(Status::STATUS_EXPIRED_SCHEMA);
            }
            if metadata.mod_revision > stored.revision || !loaded {
                return Err(Status::STATUS_SCHEMA_NOT_APPLIED);
            }
        }
        let families = &stored.measure.tag_families;
        let mut tags = Vec::new();
        let mut wrong = None;
        if point.tag_families.len() != families.len() || point.fields.len() != stored.measure.fields.len() {
            wrong = Some("number of tag families or fields".to_string());
        }
        for (family, spec) in point.tag_families.iter().zip(families) {
            if family.tags.len() != spec.tags.len() {
                wrong = Some(format!("{} tags", family.tags.len()));
            }
            for (tag, spec) in family.tags.iter().zip(&spec.tags) {
                if !tag.has_str() || spec.type_.enum_value() != Ok(TagType::TAG_TYPE_STRING) {
                    wrong = Some(format!("type of the tag {}", spec.name));
                }
                tags.push(tag.str().value.clone());
            }
        }
        for (field, spec) in point.fields.iter().zip(&stored.measure.fields) {
            if !field.has_float() || spec.field_type.enum_value() != Ok(FieldType::FIELD_TYPE_FLOAT) {
                wrong = Some(format!("type of the field {}", spec.name));
            }
        }
        if let Some(wrong) = wrong {
            self.violation(format!("{name}: {wrong}"));
            return Err(Status::STATUS_INTERNAL_ERROR);
        }
        let ms = point.timestamp.seconds * 1000 + i64::from(point.timestamp.nanos) / 1_000_000;
        let value = point.fields[0].float().value;
        Ok(((name, tags, ms), Point { version: point.version, value }, loaded))
    }

    fn find(&self, request: &QueryRequest) -> Vec<DataPoint> {
        let ms = |t: &Timestamp| t.seconds * 1000 + i64::from(t.nanos) / 1_000_000;
        let (begin, end) = (ms(&request.time_range.begin), ms(&request.time_range.end));
        let limit = if request.limit == 0 { 100 } else { request.limit as usize };
        let Some(stored) = self.measures.get(&request.name) else { return Vec::new() };
        let mut all = self.disk.clone();
        for (_, key, point) in &self.memory {
            put(&mut all, key.clone(), point.clone());
        }
        let inside = all.into_iter().filter(|((name, _, at), _)| *name == request.name && (begin..=end).contains(at));
        inside.take(limit).map(|((_, tags, at), point)| data_point(stored, &tags, at, &point)).collect()
    }
}

fn put(to: &mut BTreeMap<Key, Point>, key: Key, point: Point) {
    match to.get(&key) {
        Some(there) if there.version > point.version => {}
        _ => drop(to.insert(key, point)),
    }
}

fn data_point(stored: &Stored, tags: &[String], at: i64, point: &Point) -> DataPoint {
    let family = &stored.measure.tag_families[0];
    let tag = |(spec, value): (&ebpf_sidecar::export::banyandb::proto::database::TagSpec, &String)| {
        let mut tag_value = TagValue::new();
        tag_value.set_str(Str { value: value.clone(), ..Default::default() });
        Tag { key: spec.name.clone(), value: Some(tag_value).into(), ..Default::default() }
    };
    let mut value = FieldValue::new();
    value.set_float(Float { value: point.value, ..Default::default() });
    let field = data_point::Field { name: "value".into(), value: Some(value).into(), ..Default::default() };
    let timestamp = Timestamp { seconds: at / 1000, nanos: (at % 1000 * 1_000_000) as i32, ..Default::default() };
    DataPoint {
        timestamp: Some(timestamp).into(),
        tag_families: vec![TagFamily {
            name: family.name.clone(),
            tags: family.tags.iter().zip(tags).map(tag).collect(),
            ..Default::default()
        }],
        fields: vec![field],
        version: point.version,
        ..Default::default()
    }
}

// ---- the server ----

pub struct BanyanDb {
    store: Arc<Mutex<Store>>,
    proxy: Arc<Proxy>,
    pub port: u16,
    // In this order: calls first.
    _server: Server,
    _environment: Arc<Environment>,
}

#[derive(Clone)]
struct Service {
    store: Arc<Mutex<Store>>,
    proxy: Arc<Proxy>,
}

impl BanyanDb {
    pub fn start() -> Self {
        Self::with(None)
    }

    pub fn with(credentials: Option<ServerCredentials>) -> Self {
        let store = Arc::new(Mutex::new(Store {
            groups: HashMap::new(),
            measures: BTreeMap::new(),
            revision: 0,
            disk: BTreeMap::new(),
            memory: Vec::new(),
            life: 0,
            flush_after: Duration::from_secs(5),
            load_time: Duration::ZERO,
            barrier: true,
            credentials: None,
            refusal: "Invalid credentials".into(),
            fault: None,
            failing: BTreeMap::new(),
            ending: BTreeMap::new(),
            deadly: BTreeSet::new(),
            refusing: BTreeMap::new(),
            lagging: BTreeSet::new(),
            refused_until: None,
            violations: Vec::new(),
            given_up: Vec::new(),
            messages: 0,
            streams: 0,
            largest: 0,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Arc::new(Proxy::default());
        let environment = Arc::new(EnvBuilder::new().cq_count(1).build());
        let service = Service { store: Arc::clone(&store), proxy: Arc::clone(&proxy) };
        let mut server = ServerBuilder::new(Arc::clone(&environment))
            .channel_args(ChannelBuilder::new(Arc::clone(&environment)).reuse_port(false).build_args())
            .register_service(service.build())
            .build()
            .unwrap();
        let credentials = credentials.unwrap_or_else(ServerCredentials::insecure);
        let inner = server.add_listening_port("127.0.0.1:0", credentials).unwrap();
        server.start();
        Proxy::start(&proxy, listener, inner, Arc::clone(&store));
        Self { store, proxy, port, _server: server, _environment: environment }
    }

    pub fn endpoint(&self) -> String {
        format!("localhost:{}", self.port)
    }

    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// SIGKILL, and started again at once.
    pub fn kill(&self) {
        self.store().kill();
        self.proxy.cut();
    }

    /// As if nothing listened, for so long.
    pub fn refuse(&self, time: Duration) {
        self.store().refused_until = Some(Instant::now() + time);
        self.proxy.cut();
    }

    /// Accepts connections again.
    pub fn accept(&self) {
        self.store().refused_until = None;
    }
}

impl Drop for BanyanDb {
    fn drop(&mut self) {
        self.store().refused_until = None;
        self.proxy.state().closed = true;
        self.proxy.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Service {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn refused(&self, context: &RpcContext) -> Option<RpcStatus> {
        let store = self.store();
        let (user, password) = store.credentials.as_ref()?;
        let header = |name: &str| {
            context.request_headers().iter().find(|(k, _)| *k == name).map(|(_, v)| v.to_vec()).unwrap_or_default()
        };
        let right = header("username") == user.as_bytes() && header("password") == password.as_bytes();
        (!right).then(|| RpcStatus::with_message(RpcStatusCode::UNAUTHENTICATED, store.refusal.clone()))
    }

    fn unary<Q: Message, R: Message + Unpin>(
        &self,
        builder: ServiceBuilder,
        name: &'static str,
        answer: impl Fn(&mut Store, Q) -> Result<R, RpcStatus> + Send + Clone + 'static,
    ) -> ServiceBuilder {
        let service = self.clone();
        let method = called::<Q, R>(MethodType::Unary, name);
        builder.add_unary_handler(&method, move |context: RpcContext, request: Q, sink: UnarySink<R>| {
            let result = match service.refused(&context) {
                Some(status) => Err(status),
                None => answer(&mut service.store(), request),
            };
            let sent = match result {
                Ok(response) => sink.success(response),
                Err(status) => sink.fail(status),
            };
            context.spawn(async move {
                let _ = sent.await;
            });
        })
    }

    fn build(self) -> grpcio::Service {
        let missing = |what: &str| RpcStatus::with_message(RpcStatusCode::NOT_FOUND, format!("no such {what}"));
        let exists = || RpcStatus::with_message(RpcStatusCode::ALREADY_EXISTS, "already exists".into());
        let builder = ServiceBuilder::new();
        let builder = self.unary(builder, method::GET_GROUP, move |s, q: GroupRegistryServiceGetRequest| {
            let group = s.groups.get(&q.group).cloned().ok_or_else(|| missing("group"))?;
            Ok(GroupRegistryServiceGetResponse { group: Some(group).into(), ..Default::default() })
        });
        let builder = self.unary(builder, method::CREATE_GROUP, move |s, q: GroupRegistryServiceCreateRequest| {
            let group = q.group.unwrap_or_default();
            let options = &group.resource_opts;
            if options.shard_num == 0 || options.ttl.num == 0 || options.segment_interval.num == 0 {
                s.violation(format!("group without shards, ttl or segments: {group}"));
            }
            if group.catalog.enum_value() != Ok(Catalog::CATALOG_MEASURE) {
                s.violation("not a group of measures".into());
            }
            if s.groups.contains_key(&group.metadata.name) {
                return Err(exists());
            }
            s.revision += 1;
            s.create_group(group);
            Ok(GroupRegistryServiceCreateResponse { mod_revision: s.revision, ..Default::default() })
        });
        let builder = self.unary(builder, method::GET_MEASURE, move |s, q: MeasureRegistryServiceGetRequest| {
            s.refuses(&q.metadata.name)?;
            let stored = s.measures.get(&q.metadata.name).ok_or_else(|| missing("measure"))?;
            Ok(MeasureRegistryServiceGetResponse { measure: Some(stored.measure.clone()).into(), ..Default::default() })
        });
        let builder = self.unary(builder, method::CREATE_MEASURE, move |s, q: MeasureRegistryServiceCreateRequest| {
            let measure = q.measure.unwrap_or_default();
            s.refuses(&measure.metadata.name)?;
            if !s.groups.contains_key(&measure.metadata.group) {
                return Err(missing("group"));
            }
            let tags: Vec<_> = measure.tag_families.iter().flat_map(|f| &f.tags).map(|t| &t.name).collect();
            if measure.entity.tag_names.is_empty() || !measure.entity.tag_names.iter().all(|t| tags.contains(&t)) {
                s.violation(format!("the entity of {} is not of its tags", measure.metadata.name));
            }
            if s.measures.contains_key(&measure.metadata.name) {
                return Err(exists());
            }
            let load_time = s.load_time;
            let name = measure.metadata.name.clone();
            s.create(measure);
            if let Some(stored) = s.measures.get_mut(&name) {
                stored.loaded += load_time;
            }
            Ok(MeasureRegistryServiceCreateResponse { mod_revision: s.revision, ..Default::default() })
        });
        let builder = self.unary(builder, method::AWAIT_SCHEMA, move |s, q: AwaitSchemaAppliedRequest| {
            if !s.barrier {
                return Err(RpcStatus::with_message(RpcStatusCode::UNIMPLEMENTED, "unknown service".into()));
            }
            let now = Instant::now();
            let there = |name: &str, revision: i64| {
                let in_effect = !s.lagging.contains(name);
                in_effect && s.measures.get(name).is_some_and(|m| m.loaded <= now && m.revision >= revision)
            };
            let applied = q.keys.iter().zip(&q.min_revisions).all(|(k, r)| k.kind == "measure" && there(&k.name, *r));
            Ok(AwaitSchemaAppliedResponse { applied, ..Default::default() })
        });
        let builder = self.unary(builder, method::QUERY, |s, q: QueryRequest| {
            if q.time_range.is_none() {
                return Err(RpcStatus::with_message(RpcStatusCode::INVALID_ARGUMENT, "no time range".into()));
            }
            Ok(QueryResponse { data_points: s.find(&q), ..Default::default() })
        });
        let service = self.clone();
        let write = called::<WriteRequest, WriteResponse>(MethodType::Duplex, method::WRITE);
        builder
            .add_duplex_streaming_handler(&write, move |context, requests, sink| {
                let refused = service.refused(&context);
                let service = service.clone();
                context.spawn(async move {
                    // A client that has gone is no failure.
                    let _ = service.write(refused, requests, sink).await;
                });
            })
            .build()
    }

    async fn write(
        self,
        refused: Option<RpcStatus>,
        mut requests: RequestStream<WriteRequest>,
        mut sink: DuplexSink<WriteResponse>,
    ) -> grpcio::Result<()> {
        if let Some(status) = refused {
            return sink.fail(status).await;
        }
        let life = self.store().life;
        let mut metadata: Option<Metadata> = None;
        let mut accepted = Vec::new();
        let mut fault = None;
        let mut n = 0;
        while let Some(request) = requests.next().await {
            let request = request?;
            if let Some(new) = request.metadata.as_ref() {
                metadata = Some(new.clone());
            }
            let Some(metadata) = &metadata else {
                self.store().violation("no metadata on the first message".into());
                let answer = answer(&request, Status::STATUS_METADATA_REQUIRED);
                sink.send((answer, WriteFlags::default())).await?;
                let status = RpcStatus::with_message(RpcStatusCode::UNKNOWN, "metadata is required".into());
                return sink.fail(status).await;
            };
            if n == 0 {
                fault = self.begin();
            }
            let ends = self.store().ending.get(&metadata.name).copied();
            if let Some(code) = ends {
                return sink.fail(RpcStatus::with_message(code, format!("panic: {}", metadata.name))).await;
            }
            let dies = self.store().deadly.contains(&metadata.name);
            if dies {
                self.store().kill();
                self.proxy.cut();
                return Ok(());
            }
            n += 1;
            if fault == Some(Fault::KillBefore) && n == 2 {
                self.store().kill();
                self.proxy.cut();
            }
            let checked = {
                let mut store = self.store();
                store.messages += 1;
                let checked = store.check(metadata, &request);
                match (checked, fault) {
                    (Ok((key, _, _)), Some(Fault::Status(status))) if n % 3 == 0 => {
                        let final_ = [
                            Status::STATUS_INVALID_TIMESTAMP,
                            Status::STATUS_METADATA_REQUIRED,
                            Status::STATUS_VERSION_UNSUPPORTED,
                        ];
                        if final_.contains(&status) {
                            store.given_up.push(key);
                        }
                        Err(status)
                    }
                    (Ok(_), _) if store.failing.contains_key(&metadata.name) => Err(store.failing[&metadata.name]),
                    (checked, _) => checked,
                }
            };
            match checked {
                Err(Status::STATUS_UNSPECIFIED) => {}
                Ok(point) => accepted.push((request.message_id, point)),
                // At once.
                Err(status) => sink.send((answer(&request, status), WriteFlags::default())).await?,
            }
        }
        match fault {
            Some(Fault::Hang) => {
                sleep(Duration::from_secs(120)).await;
                return Ok(());
            }
            Some(Fault::Slow) => sleep(Duration::from_millis(400)).await,
            _ => {}
        }
        {
            let mut store = self.store();
            store.streams += 1;
            store.largest = store.largest.max(n);
            if store.life != life {
                return Ok(());
            }
            let flush_after = store.flush_after;
            store.flush(flush_after);
            for (_, (key, point, loaded)) in &accepted {
                // It says that it has the point, and loses it, while the measure is not loaded.
                if *loaded {
                    store.memory.push((Instant::now(), key.clone(), point.clone()));
                }
            }
            if fault == Some(Fault::KillUnanswered) {
                store.kill();
                self.proxy.cut();
            }
        }
        if let Some(Fault::Fails(code)) = fault {
            return sink.fail(RpcStatus::with_message(code, "a fault".into())).await;
        }
        for (i, (id, _)) in accepted.iter().enumerate() {
            if fault == Some(Fault::Silent) && i % 5 == 0 {
                continue;
            }
            let mut answer = WriteResponse { message_id: *id, ..Default::default() };
            answer.status = name_of(Status::STATUS_SUCCEED);
            sink.send((answer, WriteFlags::default())).await?;
        }
        sink.close().await?;
        if fault == Some(Fault::KillAfter) {
            // The answers are on their way before the connection ends.
            sleep(Duration::from_millis(100)).await;
            self.store().kill();
            self.proxy.cut();
        }
        Ok(())
    }

    /// Takes the fault that is to happen, and does to the schema what belongs to it.
    fn begin(&self) -> Option<Fault> {
        let mut store = self.store();
        let fault = store.fault.take()?;
        let n = store.messages as usize;
        let name = store.measures.keys().nth(n % store.measures.len().max(1)).cloned();
        match (fault, name) {
            (Fault::Refuse, _) => {
                store.refused_until = Some(Instant::now() + Duration::from_millis(500));
                store.life += 1;
                self.proxy.cut();
            }
            (Fault::Removed, Some(name)) => drop(store.measures.remove(&name)),
            (Fault::Touched, Some(name)) => {
                store.revision += 1;
                let revision = store.revision;
                if let Some(stored) = store.measures.get_mut(&name) {
                    stored.revision = revision;
                    stored.measure.metadata.mut_or_insert_default().mod_revision = revision;
                }
            }
            (Fault::Late, _) => {
                let loaded = Instant::now() + Duration::from_millis(500);
                store.measures.values_mut().for_each(|m| m.loaded = loaded);
            }
            _ => {}
        }
        Some(fault)
    }
}

fn answer(to: &WriteRequest, status: Status) -> WriteResponse {
    WriteResponse { message_id: to.message_id, status: name_of(status), ..Default::default() }
}

fn name_of(status: Status) -> String {
    status.descriptor().name().to_owned()
}

/// Ends after so long.
fn sleep(time: Duration) -> impl Future<Output = ()> + Send {
    #[derive(Default)]
    struct Alarm {
        over: bool,
        waker: Option<Waker>,
    }
    struct Sleep(Arc<Mutex<Alarm>>);
    impl Future for Sleep {
        type Output = ();
        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            let mut alarm = self.0.lock().unwrap();
            if alarm.over {
                return Poll::Ready(());
            }
            alarm.waker = Some(cx.waker().clone());
            Poll::Pending
        }
    }
    let alarm = Arc::new(Mutex::new(Alarm::default()));
    let rings = Arc::clone(&alarm);
    thread::spawn(move || {
        thread::sleep(time);
        let mut alarm = rings.lock().unwrap();
        alarm.over = true;
        if let Some(waker) = alarm.waker.take() {
            waker.wake();
        }
    });
    Sleep(alarm)
}

// ---- the proxy ----

#[derive(Default)]
pub struct Proxy(Mutex<ProxyState>);

#[derive(Default)]
struct ProxyState {
    connections: Vec<TcpStream>,
    closed: bool,
}

impl Proxy {
    fn state(&self) -> MutexGuard<'_, ProxyState> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Ends every connection.
    fn cut(&self) {
        for connection in self.state().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn start(this: &Arc<Self>, listener: TcpListener, to: u16, store: Arc<Mutex<Store>>) {
        let this = Arc::clone(this);
        thread::spawn(move || {
            for client in listener.incoming() {
                if this.state().closed {
                    return;
                }
                let refused = store.lock().unwrap_or_else(|e| e.into_inner()).refused_until;
                let (Ok(client), false) = (client, refused.is_some_and(|until| Instant::now() < until)) else {
                    continue;
                };
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let both = [&client, &server].map(|s| s.try_clone().unwrap());
                this.state().connections.extend(both);
                for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    thread::spawn(move || {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(n @ 1..) = from.read(&mut buffer) {
                            if to.write_all(&buffer[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                        let _ = from.shutdown(Shutdown::Both);
                    });
                }
            }
        });
    }
}
