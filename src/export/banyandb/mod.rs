//! Sends every collection to BanyanDB's measure service.
//!
//! One thread of its own takes the snapshots in as they are published, whatever else it waits for: a server that
//! hangs, is slow or away never makes the collector wait. Points leave in batches, one Write stream each; a batch is
//! done when every point of it was answered with success, and what was not is sent again, with the same timestamps
//! and versions, so that nothing is stored twice. After a lost connection the batches acknowledged shortly before are
//! sent again too, since a server answers before it stores.

mod link;
mod points;
mod queue;
mod schema;

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender, never};
use crossbeam::select;
use grpcio::{EnvBuilder, Environment, Error, RpcStatusCode};
use protobuf::Message;
use protobuf::well_known_types::duration::Duration as ProtoDuration;
use protobuf::well_known_types::timestamp::Timestamp;

use crate::config::BanyanDb;
use crate::host::time::timestamp_parts;
use crate::metrics::export::STATE;
use crate::metrics::snapshot::{Snapshot, SnapshotCell};
use link::{Link, Written, backoff, left, name, option, text};
use points::{Converter, Encoded, Meter};
use proto::common::{Catalog, Metadata};
use proto::database::{
    GroupRegistryServiceCreateRequest, GroupRegistryServiceCreateResponse, GroupRegistryServiceGetRequest,
    GroupRegistryServiceGetResponse, MeasureRegistryServiceCreateRequest, MeasureRegistryServiceCreateResponse,
    MeasureRegistryServiceGetRequest, MeasureRegistryServiceGetResponse,
};
use proto::measure::{QueryRequest, QueryResponse, query_request};
use proto::model::{Status, TagProjection, TimeRange, tag_projection};
use proto::schema::{AwaitSchemaAppliedRequest, AwaitSchemaAppliedResponse, SchemaKey};
use queue::{Limits, Queue};
use schema::Spec;

pub use link::name as method;

/// The messages, made from proto/ by build.rs.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/banyandb/mod.rs"));
}

/// Points a second of a backlog, or twice what is collected if that is more.
const BACKLOG_RATE: f64 = 20_000.0;
/// Answers of INTERNAL_ERROR in a row after which the schema is looked at again.
const INTERNAL_ERRORS: u32 = 3;
/// How long a call may outlast its deadline before gRPC itself is given up.
const GRACE: Duration = Duration::from_secs(5);
/// Points that a query for one point may find beside it, of other series and agents.
const QUERY_LIMIT: u32 = 100_000;
/// Time between two warnings of the same problem.
const REMIND: Duration = Duration::from_secs(60);

/// The running exporter.
pub struct Exporter {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Exporter {
    /// Sends what is left, for at most `export.banyandb.timeout`, and ends the thread.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            log::error!("the exporter to BanyanDB had panicked");
        }
    }
}

/// Starts to send the snapshots of `cell`. Whether BanyanDB can be reached shows later, in the log and in health.
pub fn start(config: &BanyanDb, cell: &SnapshotCell) -> io::Result<Exporter> {
    if config.username.is_some() && !config.tls.enabled {
        for endpoint in config.endpoint.split(',').filter(|e| !is_loopback(e)) {
            log::warn!("the password for BanyanDB goes to {endpoint} without TLS: whoever is in between can read it");
        }
    }
    grpcio::redirect_log();
    let (stop, stopped) = channel::bounded(0);
    let snapshots = cell.subscribe();
    let config = config.clone();
    STATE.started(config.unhealthy_after);
    let spawned = thread::Builder::new().name("exporter".into()).spawn(move || {
        let mut worker = Worker::new(config, snapshots, stopped);
        // A bug here must end neither the agent nor the export.
        while catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
            log::error!("the exporter to BanyanDB panicked; it goes on without the batch that it was sending");
            worker.recover();
        }
    });
    match spawned {
        Ok(thread) => Ok(Exporter { stop, thread }),
        Err(e) => {
            STATE.ended();
            Err(e)
        }
    }
}

fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The name of this host, or of the pod, in which it is the host's.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".into() } else { name.into() }
}

/// Why a connection is no longer used.
enum End {
    /// It failed.
    Lost(String),
    /// The agent stops, and there is no more time or nothing to send.
    Stopped,
}

/// A problem with the server, as text, ends the use of the connection.
impl From<String> for End {
    fn from(why: String) -> Self {
        End::Lost(why)
    }
}

/// What a server has of our schema.
struct Schema {
    /// Of each measure.
    measures: Vec<MeasureState>,
}

struct MeasureState {
    /// What goes before the points of it: its metadata, encoded. `None`: it is something else there, and not written.
    metadata: Option<Vec<u8>>,
    revision: i64,
    /// Whether it is known that points of it are stored.
    confirmed: bool,
}

/// A point of the batch in flight.
#[derive(Clone, Copy)]
struct Point {
    chunk: usize,
    column: usize,
    row: usize,
}

struct Worker {
    config: BanyanDb,
    endpoints: Vec<String>,
    /// Which of them is next, counted on and on.
    endpoint: usize,
    specs: Arc<[Spec]>,
    environment: Option<Arc<Environment>>,
    snapshots: Receiver<Arc<Snapshot>>,
    stop: Receiver<()>,
    /// When the time to send what is left is up; `None` while the agent runs.
    stop_at: Option<Instant>,
    converter: Converter,
    queue: Queue,
    /// Sequence and points of the last collection.
    last: (u64, usize),
    /// Points collected a second.
    rate: f64,
    /// Failures since the last success, for the backoff.
    failures: u32,
    /// Of them, answers of INTERNAL_ERROR.
    internal_errors: u32,
    /// Whether a batch has failed since the last success.
    write_failed: bool,
    /// The problem last warned of, and when.
    warned: Option<(String, Instant)>,
    /// Differences of the schema that were reported.
    reported: HashSet<String>,
}

impl Worker {
    fn new(config: BanyanDb, snapshots: Receiver<Arc<Snapshot>>, stop: Receiver<()>) -> Self {
        let specs: Arc<[Spec]> = schema::specs().into();
        let meter = Meter::default();
        let node = config.node.clone().unwrap_or_else(host_name);
        let limits = Limits { age: config.queue_limit, bytes: config.queue_bytes, resend: config.resend_window };
        Self {
            endpoints: config.endpoint.split(',').map(str::to_owned).collect(),
            endpoint: 0,
            converter: Converter::new(node, Arc::clone(&specs), config.batch_size, meter.clone()),
            queue: Queue::new(limits, meter),
            config,
            specs,
            environment: None,
            snapshots,
            stop,
            stop_at: None,
            last: (0, 0),
            rate: 0.0,
            failures: 0,
            internal_errors: 0,
            write_failed: false,
            warned: None,
            reported: HashSet::new(),
        }
    }

    /// Sends until the agent stops.
    fn run(&mut self) {
        loop {
            if self.stop_at.is_some() && self.queue.is_empty() {
                return self.end();
            }
            if self.failures > 0 {
                self.pause(backoff(self.failures, RandomState::new().hash_one(self.failures)));
            }
            let endpoint = self.endpoints[self.endpoint % self.endpoints.len()].clone();
            let end = match self.connect(&endpoint) {
                Ok((link, mut schema)) => self.serve(&link, &mut schema),
                Err(end) => Err(end),
            };
            let end = end.err().unwrap_or(End::Stopped);
            self.queue.send_again();
            self.show();
            let timed_out = self.stop_at.is_some_and(|at| Instant::now() >= at);
            match end {
                End::Lost(why) => {
                    self.problem(format!("BanyanDB at {endpoint}: {why}"));
                    self.endpoint += 1;
                }
                End::Stopped => return self.end(),
            }
            if timed_out {
                return self.end();
            }
        }
    }

    /// After a panic: gives up the batch in flight, which may be why.
    fn recover(&mut self) {
        STATE.dropped("panic", self.queue.give_up());
        self.queue.send_again();
        self.problem("the exporter panicked".into());
    }

    fn end(&mut self) {
        let left = self.queue.unsent();
        if left > 0 {
            STATE.dropped("stopped", left);
            log::warn!("BanyanDB: {left} points could not be sent before the stop, and are lost");
        }
        STATE.ended();
    }

    fn problem(&mut self, why: String) {
        self.failures = self.failures.saturating_add(1);
        STATE.problem(&why);
        let waits = self.queue.size().0;
        match &self.warned {
            Some((last, at)) if *last == why && at.elapsed() < REMIND => log::debug!("{why}; {waits} points wait"),
            _ => {
                log::warn!("{why}; {waits} points wait");
                self.warned = Some((why, Instant::now()));
            }
        }
    }

    // ---- waiting, during which snapshots come in ----

    /// Waits until something comes through `awaited` (`None` too if that closes), or until then. When `idle`, ends at a
    /// snapshot and at the wish to stop as well.
    fn wait<T>(&mut self, awaited: &Receiver<T>, until: Instant, idle: bool) -> Option<T> {
        loop {
            let until = self.stop_at.map_or(until, |at| at.min(until));
            select! {
                recv(self.snapshots) -> snapshot => match snapshot {
                    Ok(snapshot) => self.take_in(&snapshot),
                    Err(_) => self.snapshots = never(),
                },
                // Nothing comes through it: it closes.
                recv(self.stop) -> _ => {
                    self.stop = never();
                    self.stop_at = Some(Instant::now() + self.config.timeout);
                    while let Ok(snapshot) = self.snapshots.try_recv() {
                        self.take_in(&snapshot);
                    }
                    self.snapshots = never();
                }
                recv(awaited) -> value => return value.ok(),
                default(until.saturating_duration_since(Instant::now())) => return None,
            }
            if idle {
                return None;
            }
        }
    }

    /// Waits so long, or until the agent is to stop.
    fn pause(&mut self, time: Duration) {
        let until = Instant::now() + time;
        let stopping = self.stop_at.is_some();
        while Instant::now() < until.min(self.stop_at.unwrap_or(until)) && self.stop_at.is_some() == stopping {
            self.wait::<()>(&never(), until, true);
        }
    }

    fn take_in(&mut self, snapshot: &Snapshot) {
        let missed = snapshot.sequence.saturating_sub(self.last.0 + 1);
        if self.last.0 > 0 && missed > 0 {
            log::warn!("the exporter was not run for so long that it missed {missed} collections");
            STATE.dropped("overrun", usize::try_from(missed).unwrap_or(0).saturating_mul(self.last.1));
        }
        self.last.0 = snapshot.sequence;
        // A failed collection repeats the data and the time of the one before.
        if snapshot.last_error.is_some() {
            return;
        }
        let chunks = self.converter.chunks(snapshot);
        self.last.1 = chunks.iter().map(|c| c.points()).sum();
        self.rate = self.last.1 as f64 / snapshot.interval.as_secs_f64().max(1e-3);
        let dropped = self.queue.push(chunks, Instant::now());
        STATE.dropped("queue_limit", dropped.age);
        STATE.dropped("queue_bytes", dropped.bytes);
        self.show();
    }

    fn show(&self) {
        let (points, bytes) = self.queue.size();
        STATE.queued(points, bytes);
    }

    // ---- calls ----

    /// Waits for what a call gives; an error when the time is up, since then gRPC itself hangs.
    fn answer<T>(&mut self, what: &str, answer: &Receiver<T>) -> Result<T, End> {
        let until = Instant::now() + self.config.timeout + GRACE;
        match self.wait(answer, until, false) {
            Some(value) => Ok(value),
            None if self.stop_at.is_some_and(|at| Instant::now() >= at) => Err(End::Stopped),
            None => {
                self.environment = None;
                Err(End::Lost(format!("{what}: gRPC gave no answer")))
            }
        }
    }

    fn limit(&self) -> Duration {
        self.stop_at.map_or(self.config.timeout, |at| left(at).min(self.config.timeout))
    }

    /// Makes a call. The outer error ends the use of the connection, the inner one is the server's.
    fn call<Q: Message, R: Message + Unpin>(
        &mut self,
        link: &Link,
        name: &'static str,
        request: &Q,
    ) -> Result<grpcio::Result<R>, End> {
        let option = option(&self.config, self.limit())?;
        let what = name.rsplit('.').next().unwrap_or(name);
        self.answer(what, &link.call(name, request, option))
    }

    // ---- the schema ----

    /// A connection to a server that has our schema.
    fn connect(&mut self, endpoint: &str) -> Result<(Link, Schema), End> {
        STATE.attempt(Instant::now());
        let environment = self
            .environment
            .get_or_insert_with(|| Arc::new(EnvBuilder::new().cq_count(1).name_prefix("banyandb").build()));
        let link = Link::new(environment, endpoint, &self.config)?;
        self.prepare_group(&link)?;
        link.watch();
        let schema = self.prepare_measures(&link)?;
        let (waiting, _) = self.queue.size();
        log::info!("BanyanDB: connected to {endpoint}; {waiting} points wait");
        if !self.write_failed {
            STATE.idle();
        }
        Ok((link, schema))
    }

    fn prepare_group(&mut self, link: &Link) -> Result<(), End> {
        let wanted = schema::group(&self.config);
        let get = GroupRegistryServiceGetRequest { group: self.config.group.clone(), ..Default::default() };
        for _ in 0..2 {
            match self.call::<_, GroupRegistryServiceGetResponse>(link, name::GET_GROUP, &get)? {
                Ok(found) => {
                    let group = &self.config.group;
                    if found.group.catalog.enum_value() != Ok(Catalog::CATALOG_MEASURE) {
                        return Err(End::Lost(format!(
                            "the group {group} is none of measures: choose another export.banyandb.group"
                        )));
                    }
                    if let Some(difference) = schema::group_difference(&wanted, &found.group) {
                        self.report(format!("BanyanDB: the group {group} stays as it is: {difference}"));
                    }
                    return Ok(());
                }
                Err(e) if is(&e, RpcStatusCode::NOT_FOUND) => {}
                Err(e) => return Err(End::Lost(text("getting the group", &e))),
            }
            let create = GroupRegistryServiceCreateRequest { group: Some(wanted.clone()).into(), ..Default::default() };
            match self.call::<_, GroupRegistryServiceCreateResponse>(link, name::CREATE_GROUP, &create)? {
                Ok(_) => {
                    log::info!("BanyanDB: created the group {}", self.config.group);
                    return Ok(());
                }
                // Another agent was faster: compare.
                Err(e) if is(&e, RpcStatusCode::ALREADY_EXISTS) => {}
                Err(e) => return Err(End::Lost(text("creating the group", &e))),
            }
        }
        Err(End::Lost("the group comes and goes".into()))
    }

    /// Has every measure created, and waits until they are in effect.
    fn prepare_measures(&mut self, link: &Link) -> Result<Schema, End> {
        let mut measures = Vec::with_capacity(self.specs.len());
        let mut created = 0;
        for spec in Arc::clone(&self.specs).iter() {
            let (state, new) = self.prepare_measure(link, spec)?;
            created += usize::from(new);
            measures.push(state);
        }
        if created > 0 {
            log::info!("BanyanDB: created {created} measures in the group {}", self.config.group);
        }
        let mut schema = Schema { measures };
        let all: Vec<usize> = (0..self.specs.len()).collect();
        self.await_applied(link, &mut schema, &all)?;
        Ok(schema)
    }

    /// Gets or creates a measure; tells whether it is new.
    fn prepare_measure(&mut self, link: &Link, spec: &Spec) -> Result<(MeasureState, bool), End> {
        let wanted = schema::measure(&self.config.group, spec);
        let get = MeasureRegistryServiceGetRequest { metadata: wanted.metadata.clone(), ..Default::default() };
        for _ in 0..2 {
            match self.call::<_, MeasureRegistryServiceGetResponse>(link, name::GET_MEASURE, &get)? {
                Ok(found) => {
                    let revision = found.measure.metadata.mod_revision;
                    let Some(difference) = schema::measure_difference(&wanted, &found.measure) else {
                        return Ok((self.usable(spec, revision)?, false));
                    };
                    self.report(format!(
                        "BanyanDB: the measure {} of the group {} stays as it is and gets no points: {difference}",
                        spec.name, self.config.group
                    ));
                    return Ok((MeasureState { metadata: None, revision, confirmed: true }, false));
                }
                Err(e) if is(&e, RpcStatusCode::NOT_FOUND) => {}
                Err(e) => return Err(End::Lost(text(&format!("getting the measure {}", spec.name), &e))),
            }
            let create =
                MeasureRegistryServiceCreateRequest { measure: Some(wanted.clone()).into(), ..Default::default() };
            match self.call::<_, MeasureRegistryServiceCreateResponse>(link, name::CREATE_MEASURE, &create)? {
                Ok(created) => return Ok((self.usable(spec, created.mod_revision)?, true)),
                Err(e) if is(&e, RpcStatusCode::ALREADY_EXISTS) => {}
                Err(e) => return Err(End::Lost(text(&format!("creating the measure {}", spec.name), &e))),
            }
        }
        Err(End::Lost(format!("the measure {} comes and goes", spec.name)))
    }

    fn usable(&self, spec: &Spec, revision: i64) -> Result<MeasureState, End> {
        let metadata = self.metadata(spec, revision).write_to_bytes();
        let metadata = metadata.map_err(|e| End::Lost(format!("the metadata of {}: {e}", spec.name)))?;
        Ok(MeasureState { metadata: Some(metadata), revision, confirmed: false })
    }

    fn metadata(&self, spec: &Spec, revision: i64) -> Metadata {
        schema::metadata(&self.config.group, &spec.name, revision)
    }

    /// Waits until the server has these measures in effect: before, it may accept points and lose them. One that cannot
    /// tell is asked for the points themselves, when the first were written.
    fn await_applied(&mut self, link: &Link, schema: &mut Schema, measures: &[usize]) -> Result<(), End> {
        let mut request = AwaitSchemaAppliedRequest::new();
        for &i in measures.iter().filter(|i| schema.measures[**i].metadata.is_some()) {
            let (group, name) = (self.config.group.clone(), self.specs[i].name.clone());
            request.keys.push(SchemaKey { kind: "measure".into(), group, name, ..Default::default() });
            request.min_revisions.push(schema.measures[i].revision);
        }
        if request.keys.is_empty() {
            return Ok(());
        }
        let patience = self.limit() / 2;
        request.timeout = Some(ProtoDuration {
            seconds: i64::try_from(patience.as_secs()).unwrap_or(0),
            nanos: patience.subsec_nanos().try_into().unwrap_or(0),
            ..Default::default()
        })
        .into();
        match self.call::<_, AwaitSchemaAppliedResponse>(link, name::AWAIT_SCHEMA, &request)? {
            Ok(answer) if answer.applied => measures.iter().for_each(|i| schema.measures[*i].confirmed = true),
            Ok(answer) => {
                let laggards: Vec<&str> = answer.laggards.iter().map(|l| l.node.as_str()).collect();
                let laggards = laggards.join(", ");
                return Err(End::Lost(format!("the schema is not in effect yet, nodes behind: {laggards:?}")));
            }
            Err(e) if is(&e, RpcStatusCode::UNIMPLEMENTED) => {}
            Err(e) => return Err(End::Lost(text("waiting for the schema", &e))),
        }
        Ok(())
    }

    /// Warns once of what an operator has to decide.
    fn report(&mut self, text: String) {
        if self.reported.insert(text.clone()) {
            log::warn!("{text}");
        }
    }

    // ---- writing ----

    /// Sends batches as they come due, until the connection is lost or all is sent and the agent stops.
    fn serve(&mut self, link: &Link, schema: &mut Schema) -> Result<(), End> {
        // A backlog leaves at a bounded rate.
        let mut not_before = Instant::now();
        loop {
            if self.stop_at.is_some() && self.queue.is_empty() {
                return Err(End::Stopped);
            }
            let due = match self.queue.oldest() {
                _ if self.stop_at.is_some() => not_before,
                _ if self.queue.has(self.config.batch_size) => not_before,
                Some(at) => not_before.max(at + self.config.flush_interval),
                None => Instant::now() + REMIND,
            };
            if Instant::now() < due || self.queue.is_empty() {
                if self.wait(link.lost(), due, true).is_some() {
                    return Err(End::Lost("the connection was lost".into()));
                }
                if self.stop_at.is_some_and(|at| Instant::now() >= at) {
                    return Err(End::Stopped);
                }
                continue;
            }
            let began = Instant::now();
            let points = self.send_batch(link, schema)?;
            let rate = BACKLOG_RATE.max(2.0 * self.rate);
            not_before = began + Duration::from_secs_f64(points as f64 / rate);
        }
    }

    /// Sends the oldest points until each is acknowledged or given up. Returns their number.
    fn send_batch(&mut self, link: &Link, schema: &mut Schema) -> Result<usize, End> {
        self.queue.take(self.config.batch_size);
        let began = Instant::now();
        STATE.attempt(began);
        let mut todo = Vec::new();
        for (chunk, c) in self.queue.in_flight().iter().enumerate() {
            for (column, col) in c.columns.iter().enumerate() {
                let rows = col.values.iter().enumerate().filter(|(_, v)| !v.is_nan());
                todo.extend(rows.map(|(row, _)| Point { chunk, column, row }));
            }
        }
        let points = todo.len();
        let mut attempts = 0;
        loop {
            self.give_up_unwritable(schema, &mut todo);
            if todo.is_empty() {
                break;
            }
            if attempts > 0 {
                self.pause(backoff(attempts, RandomState::new().hash_one(attempts)));
                if link.lost().try_recv().is_ok() {
                    return Err(End::Lost("the connection was lost".into()));
                }
                if self.stop_at.is_some_and(|at| Instant::now() >= at) {
                    return Err(End::Stopped);
                }
            }
            attempts += 1;
            todo = self.attempt(link, schema, todo)?;
        }
        // Before the acknowledged ones that may have to be sent again are forgotten.
        if link.lost().try_recv().is_ok() {
            return Err(End::Lost("the connection was lost".into()));
        }
        let first = self.queue.acknowledge(Instant::now());
        STATE.sent(first);
        STATE.success(began.elapsed());
        self.show();
        if self.failures > 0 || self.warned.is_some() {
            log::info!("BanyanDB: sending works again; {} points wait", self.queue.size().0);
        }
        (self.failures, self.internal_errors, self.write_failed, self.warned) = (0, 0, false, None);
        Ok(points)
    }

    /// Gives up the points of measures that are something else on the server.
    fn give_up_unwritable(&mut self, schema: &Schema, todo: &mut Vec<Point>) {
        let chunks = self.queue.in_flight();
        let mut given_up = 0;
        todo.retain(|p| {
            let measure = chunks[p.chunk].columns[p.column].measure;
            let writable = schema.measures[measure].metadata.is_some();
            if !writable {
                given_up += 1;
                chunks[p.chunk].give_up(p.column, p.row);
            }
            writable
        });
        STATE.dropped("schema", given_up);
    }

    /// Writes these points in one stream. Returns those that have to be written again.
    fn attempt(&mut self, link: &Link, schema: &mut Schema, todo: Vec<Point>) -> Result<Vec<Point>, End> {
        let mut encoded = Encoded::default();
        let mut last = None;
        for p in &todo {
            let chunk = &self.queue.in_flight()[p.chunk];
            let column = &chunk.columns[p.column];
            let metadata = schema.measures[column.measure].metadata.as_deref();
            encoded.push(chunk, column, p.row, metadata.filter(|_| last != Some(column.measure)));
            last = Some(column.measure);
        }
        let option = option(&self.config, self.limit())?;
        let receiver = link.write(encoded.messages(), option);
        drop(encoded);
        let Written { answers, failure } = self.answer("Write", &receiver).inspect_err(|_| {
            self.write_failed = true;
            STATE.failed("connection", todo.len());
        })?;
        // What was answered before a failure may have gone with the server.
        if let Some(e) = failure {
            self.write_failed = true;
            STATE.failed("connection", todo.len());
            return Err(End::Lost(text("Write", &e)));
        }
        let mut statuses = vec![None; todo.len()];
        for (id, status) in answers {
            let slot = usize::try_from(id).ok().and_then(|id| statuses.get_mut(id.checked_sub(1)?));
            if let Some(slot) = slot {
                *slot = Some(status);
            }
        }
        self.judge(link, schema, todo, &statuses)
    }

    /// What becomes of each point, by its status. Returns those that have to be written again.
    fn judge(
        &mut self,
        link: &Link,
        schema: &mut Schema,
        todo: Vec<Point>,
        statuses: &[Option<Status>],
    ) -> Result<Vec<Point>, End> {
        let mut again = Vec::new();
        let mut accepted = Vec::new();
        let (mut unknown, mut expired) = (HashSet::new(), HashSet::new());
        let mut failed: Vec<(&str, usize)> = Vec::new();
        let mut refused: Vec<(Status, usize, usize)> = Vec::new();
        for (p, status) in todo.into_iter().zip(statuses) {
            let chunk = &mut self.queue.in_flight()[p.chunk];
            let measure = chunk.columns[p.column].measure;
            let mut refuse = |status, p: Point| {
                match refused.iter_mut().find(|r| (r.0, r.1) == (status, measure)) {
                    Some(r) => r.2 += 1,
                    None => refused.push((status, measure, 1)),
                }
                STATE.dropped("refused", 1);
                chunk.give_up(p.column, p.row);
            };
            let reason = match status {
                Some(Status::STATUS_SUCCEED) => {
                    accepted.push(p);
                    continue;
                }
                Some(
                    s @ (Status::STATUS_INVALID_TIMESTAMP
                    | Status::STATUS_METADATA_REQUIRED
                    | Status::STATUS_VERSION_UNSUPPORTED),
                ) => {
                    refuse(*s, p);
                    continue;
                }
                // By its contract this version is still served.
                Some(Status::STATUS_VERSION_DEPRECATED) => "version_deprecated",
                Some(Status::STATUS_NOT_FOUND) => {
                    unknown.insert(measure);
                    "not_found"
                }
                Some(Status::STATUS_EXPIRED_SCHEMA) => {
                    expired.insert(measure);
                    "expired_schema"
                }
                Some(Status::STATUS_SCHEMA_NOT_APPLIED) => "schema_not_applied",
                Some(Status::STATUS_DISK_FULL) => "disk_full",
                Some(Status::STATUS_INTERNAL_ERROR) => "internal_error",
                Some(Status::STATUS_UNSPECIFIED) | None => "no_answer",
            };
            match failed.iter_mut().find(|(r, _)| *r == reason) {
                Some((_, n)) => *n += 1,
                None => failed.push((reason, 1)),
            }
            again.push(p);
        }
        for (status, measure, n) in refused {
            let measure = &self.specs[measure].name;
            log::warn!("BanyanDB refuses {n} points of {measure}, which are dropped: {status:?}");
        }
        let lost = self.not_stored(link, schema, &accepted)?;
        if !lost.is_empty() {
            failed.push(("schema_not_applied", lost.len()));
            again.extend(lost);
        }
        for (reason, n) in &failed {
            STATE.failed(reason, *n);
        }
        if again.is_empty() {
            return Ok(again);
        }
        self.write_failed = true;
        let reasons: Vec<String> = failed.iter().map(|(reason, n)| format!("{reason} for {n} points")).collect();
        self.problem(format!("BanyanDB answers {}", reasons.join(", ")));

        if failed.iter().any(|(reason, _)| *reason == "internal_error") {
            self.internal_errors += 1;
        }
        if !unknown.is_empty() {
            // Without the group no measure can be created.
            self.prepare_group(link)?;
        }
        let mut renewed: Vec<usize> = unknown.into_iter().chain(expired).collect();
        if self.internal_errors >= INTERNAL_ERRORS {
            self.internal_errors = 0;
            self.prepare_group(link)?;
            renewed = (0..self.specs.len()).collect();
        }
        for &measure in &renewed {
            let spec = self.specs[measure].clone();
            schema.measures[measure] = self.prepare_measure(link, &spec)?.0;
        }
        self.await_applied(link, schema, &renewed)?;
        Ok(again)
    }

    /// Of these accepted points, those of measures that the server does not store yet, although it says so: asks for
    /// the first of each measure of which nothing is known.
    fn not_stored(&mut self, link: &Link, schema: &mut Schema, accepted: &[Point]) -> Result<Vec<Point>, End> {
        let mut lost = Vec::new();
        let mut rest = accepted;
        while let Some(&p) = rest.first() {
            let chunk = &self.queue.in_flight()[p.chunk];
            let (time, version) = (chunk.time, chunk.version);
            let column = &chunk.columns[p.column];
            let measure = column.measure;
            let same = rest.iter().take_while(|q| (q.chunk, q.column) == (p.chunk, p.column)).count();
            let (these, others) = rest.split_at(same);
            rest = others;
            if schema.measures[measure].confirmed {
                continue;
            }
            let tags = points::tag_values(column.series.tags(column.first + p.row));
            let request = self.query(&self.specs[measure], time);
            let answer = self.call::<_, QueryResponse>(link, name::QUERY, &request)?;
            let answer = answer.map_err(|e| End::Lost(text("looking for a point", &e)))?;
            let found = answer.data_points.iter().any(|d| {
                let found = d.tag_families.iter().flat_map(|f| &f.tags).map(|t| &t.value.str().value);
                d.version >= version && found.eq(&tags)
            });
            if found {
                schema.measures[measure].confirmed = true;
            } else {
                lost.extend_from_slice(these);
            }
        }
        Ok(lost)
    }

    /// Asks for the points of a measure at this time.
    fn query(&self, spec: &Spec, time: i64) -> QueryRequest {
        let timestamp = |ms: i64| {
            let (seconds, nanos) = timestamp_parts(ms);
            Timestamp { seconds, nanos, ..Default::default() }
        };
        let range = TimeRange {
            begin: Some(timestamp(time)).into(),
            end: Some(timestamp(time + 1)).into(),
            ..Default::default()
        };
        let family = tag_projection::TagFamily {
            name: schema::FAMILY.into(),
            tags: spec.tags.iter().map(|t| (*t).into()).collect(),
            ..Default::default()
        };
        let tags = TagProjection { tag_families: vec![family], ..Default::default() };
        let fields = query_request::FieldProjection { names: vec![schema::FIELD.into()], ..Default::default() };
        QueryRequest {
            groups: vec![self.config.group.clone()],
            name: spec.name.clone(),
            time_range: Some(range).into(),
            tag_projection: Some(tags).into(),
            field_projection: Some(fields).into(),
            limit: QUERY_LIMIT,
            ..Default::default()
        }
    }
}

fn is(error: &Error, code: RpcStatusCode) -> bool {
    matches!(error, Error::RpcFailure(status) if status.code() == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_endpoints() {
        for (endpoint, loopback) in
            [("localhost:1", true), ("127.0.0.9:1", true), ("[::1]:1", true), ("db:1", false), ("10.0.0.1:1", false)]
        {
            assert_eq!(is_loopback(endpoint), loopback, "{endpoint}");
        }
    }
}
