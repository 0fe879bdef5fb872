//! Sends every collection to BanyanDB's measure service: what of the exporter is BanyanDB's own. When to send, and what
//! is kept for it, is the [engine](crate::export::engine)'s.
//!
//! A batch is one Write stream. Timestamps and versions of a point stay the same however often it is sent, so that
//! nothing is stored twice.

mod login;
pub mod method;
mod points;
mod prepare;
mod schema;
mod send;
mod write;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use grpcio::CallOption;
use protobuf::Message;

use super::engine::link::Link;
use super::engine::meter::Meter;
use super::engine::{self, Again, Chunk, Converter, Encoding, End, Intake, Limits, Settings, host_name, is_loopback};
use crate::config::BanyanDb as Config;
use crate::metrics::cell::SnapshotCell;
use crate::metrics::export as counts;
use points::Columns;
use schema::Spec;

pub use super::engine::Exporter;

/// The messages, made from proto/ by build.rs.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/banyandb/mod.rs"));
}

/// Starts to send the snapshots of `cell`. Whether BanyanDB can be reached shows later, in the log and in health.
pub fn start(config: &Config, cell: &SnapshotCell) -> io::Result<Exporter> {
    if config.username.is_some() && !config.tls.enabled {
        for endpoint in config.endpoint.split(',').filter(|e| !is_loopback(e)) {
            log::warn!("the password for BanyanDB goes to {endpoint} without TLS: whoever is in between can read it");
        }
    }
    grpcio::redirect_log();
    let settings = Settings {
        endpoints: config.endpoint.split(',').map(str::to_owned).collect(),
        timeout: config.timeout,
        batch_size: config.batch_size,
        flush_interval: config.flush_interval,
        limits: Limits { age: config.queue_limit, bytes: config.queue_bytes, resend: config.resend_window },
        unhealthy_after: config.unhealthy_after,
    };
    engine::start(settings, BanyanDb::new(config.clone()), cell)
}

/// A connection to a server that has our schema.
struct Session {
    link: Link,
    schema: Schema,
}

/// What a server has of our schema.
struct Schema {
    /// Of each measure.
    measures: Vec<MeasureState>,
}

struct MeasureState {
    state: State,
    revision: i64,
    /// Whether it is known that points of it are stored.
    confirmed: bool,
    /// Answers of INTERNAL_ERROR since the last point that was taken.
    internal_errors: u32,
}

enum State {
    /// Its points can be written. This goes before them: its metadata, encoded.
    Ready(Vec<u8>),
    /// It is something else there, and not written.
    Different,
    /// It could not be created or is not in effect yet: why, and when that was tried last.
    NotYet(String, Instant),
}

struct BanyanDb {
    config: Config,
    specs: Arc<[Spec]>,
    /// Differences of the schema that were reported.
    reported: HashSet<String>,
    /// Write streams that the server has ended before their time, and the last time that it did.
    streams_ended: u32,
    ended_at: Option<Instant>,
    /// Where it is looked for the measures for which it does so: the points of each set go in a stream of their own.
    suspects: Vec<BTreeSet<usize>>,
    /// Whether it has taken anything meanwhile.
    taken: bool,
    /// Those measures: the points of each go in a stream of their own.
    alone: HashMap<usize, Alone>,
}

/// A measure whose points end their stream.
struct Alone {
    /// When that was tried last,
    tried: Instant,
    /// and how long it is not tried again.
    wait: Duration,
}

impl BanyanDb {
    fn new(config: Config) -> Self {
        let (reported, suspects, alone) = (HashSet::new(), Vec::new(), HashMap::new());
        let specs = schema::specs().into();
        Self { config, specs, reported, streams_ended: 0, ended_at: None, suspects, taken: false, alone }
    }

    fn option(&self, intake: &Intake<Columns>) -> Result<CallOption, String> {
        login::option(&self.config, intake.limit())
    }

    /// Makes a call. The outer error ends the use of the connection, the inner one is the server's.
    fn call<Q: Message, R: Message + Unpin>(
        &mut self,
        intake: &mut Intake<Columns>,
        link: &Link,
        name: &'static str,
        request: &Q,
    ) -> Result<grpcio::Result<R>, End> {
        let option = self.option(intake)?;
        let what = name.rsplit('.').next().unwrap_or(name);
        intake.answer(what, &link.call(name, request, option))
    }
}

impl Encoding for BanyanDb {
    const NAME: &'static str = "BanyanDB";
    const STATE: &'static counts::State = &counts::BANYANDB;
    type Points = Columns;
    type Session = Session;

    fn converter(&self, meter: Meter) -> Converter<Columns> {
        let node = self.config.node.clone().unwrap_or_else(host_name);
        let mut converter = points::Converter::new(node, Arc::clone(&self.specs), self.config.batch_size, meter);
        Box::new(move |snapshot| converter.chunks(snapshot))
    }

    fn connect(&mut self, intake: &mut Intake<Columns>, endpoint: &str) -> Result<Session, End> {
        let link = Link::new(intake.environment(), endpoint, &self.config.tls, "export.banyandb.tls", false)?;
        self.prepare_group(intake, &link)?;
        link.watch();
        let schema = self.prepare_measures(intake, &link)?;
        Ok(Session { link, schema })
    }

    fn lost(session: &Session) -> &Receiver<()> {
        session.link.lost()
    }

    fn send(
        &mut self,
        intake: &mut Intake<Columns>,
        session: &mut Session,
        batch: &mut [Chunk<Columns>],
    ) -> Result<Again<Columns>, End> {
        self.write(intake, session, batch)
    }
}

/// Every point of the snapshot is a message that the server can read.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_points(snapshot: &crate::metrics::snapshot::Snapshot) {
    let mut converter = points::Converter::new("node".into(), schema::specs().into(), 500, Meter::default());
    let mut encoded = points::Encoded::default();
    for chunk in converter.chunks(snapshot) {
        for (column, row) in chunk.places() {
            encoded.push(&chunk, &chunk.columns[column], row, None);
        }
    }
    let mut messages = 0;
    for message in encoded.messages() {
        proto::measure::WriteRequest::parse_from_bytes(message).expect("a point");
        messages += 1;
    }
    assert!(messages > 0);
}

/// What the server says of its schema.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_answer(kind: u8, bytes: &[u8]) {
    use crate::host::logging::clean;
    use proto::database::{GroupRegistryServiceGetResponse, MeasureRegistryServiceGetResponse};
    let difference = match kind % 4 {
        0 => GroupRegistryServiceGetResponse::parse_from_bytes(bytes).ok().and_then(|found| {
            schema::group_difference(&schema::group(&crate::config::Config::default().export.banyandb), &found.group)
        }),
        1 => MeasureRegistryServiceGetResponse::parse_from_bytes(bytes)
            .ok()
            .and_then(|found| schema::measure_difference(&schema::measure("g", &schema::specs()[0]), &found.measure)),
        2 => proto::measure::WriteResponse::parse_from_bytes(bytes).ok().map(|answer| answer.status),
        _ => {
            proto::schema::AwaitSchemaAppliedResponse::parse_from_bytes(bytes).ok().map(|a| format!("{:?}", a.laggards))
        }
    };
    assert!(difference.is_none_or(|text| clean(text).chars().count() <= 256));
}
