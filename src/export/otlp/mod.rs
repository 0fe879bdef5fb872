//! Sends every collection by OTLP, the protocol of OpenTelemetry: what of the exporter is OTLP's own. When to send, and what is
//! kept for it, is the [engine](crate::export::engine)'s.
//!
//! A batch is one request. Its answers mean what the protocol's specification says: some ask to try again, with everything
//! else the batch is given up. So points leave in the order of their times, which some receivers insist on.

mod gzip;
mod headers;
mod points;
mod post;
mod resource;
mod verdict;

use std::io;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use grpcio::{CallOption, MetadataBuilder};

use super::engine::link::Link;
use super::engine::meter::Meter;
use super::engine::{self, Again, Chunk, Converter, Encoding, End, Exporter, Intake, Limits, Settings, is_loopback};
use crate::config::{Compression, Otlp as Config, Protocol};
use crate::host::version;
use crate::metrics::cell::SnapshotCell;
use crate::metrics::export as counts;
use points::Collection;
use post::Post;
use verdict::Verdict;

/// The messages, made from proto/ by build.rs.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/otlp/mod.rs"));
}

/// `ExportMetricsServiceRequest` → `ExportMetricsServiceResponse`.
pub const EXPORT: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// What the configuration's keys of its TLS begin with.
const TLS: &str = "export.otlp.tls";
/// Time between two warnings of points that are refused in part.
const REMIND: Duration = Duration::from_secs(60);

/// Starts to send the snapshots of `cell`. Whether the receiver can be reached shows later, in the log and in health.
pub fn start(config: &Config, cell: &SnapshotCell) -> io::Result<Exporter> {
    if (config.headers.is_some() || config.headers_file.is_some()) && !config.tls.enabled {
        for endpoint in config.endpoint.split(',').filter(|e| !is_loopback(e)) {
            log::warn!("the headers for OTLP go to {endpoint} without TLS: whoever is in between can read them");
        }
    }
    grpcio::redirect_log();
    let settings = Settings {
        endpoints: config.endpoint.split(',').map(str::to_owned).collect(),
        timeout: config.timeout,
        batch_size: config.batch_size,
        flush_interval: config.flush_interval,
        // What is acknowledged is the receiver's, says the specification.
        limits: Limits { age: config.queue_limit, bytes: config.queue_bytes, resend: Duration::ZERO },
        unhealthy_after: config.unhealthy_after,
    };
    engine::start(settings, Otlp { config: config.clone(), told: None }, cell)
}

/// Where it sends, in words.
pub fn words(config: &Config) -> String {
    let tls = if config.tls.enabled { " with TLS" } else { "" };
    match config.protocol {
        Protocol::Grpc => format!("{} by gRPC{tls}", config.endpoint),
        Protocol::Http => format!("{}, {} by HTTP{tls}", config.endpoint, config.path),
    }
}

struct Otlp {
    config: Config,
    /// When it was last told that points were refused in part, or what the receiver warns of.
    told: Option<Instant>,
}

/// A connection to a receiver that answers.
enum Session {
    Grpc(Link),
    Http(Post),
}

impl Otlp {
    /// Sends a request and tells what its answer means.
    fn export(&self, intake: &mut Intake<Collection>, session: &Session, request: Vec<u8>) -> Result<Verdict, End> {
        let headers = headers::read(&self.config)?;
        match session {
            Session::Grpc(link) => {
                let mut metadata = MetadataBuilder::new();
                for (name, value) in &headers {
                    metadata.add_str(name, value).map_err(|_| format!("the header {name} cannot be sent"))?;
                }
                let option = CallOption::default().timeout(intake.limit()).wait_for_ready(false);
                let answer = link.call_encoded(EXPORT, request, option.headers(metadata.build()));
                verdict::of_grpc(intake.answer("Export", &answer)?).map_err(End::Lost)
            }
            Session::Http(post) => {
                let gzip = self.config.compression == Compression::Gzip;
                // It goes as it is where it cannot be compressed.
                let packed = if gzip { gzip::gzip(&request).ok() } else { None };
                let encoding = packed.is_some().then_some("gzip");
                let request = packed.unwrap_or(request);
                let answer = post.send(request, encoding, headers, intake.limit());
                let answer = intake.answer("POST", &answer)?.map_err(|why| format!("POST: {why}"))?;
                Ok(verdict::of_http(&answer))
            }
        }
    }

    /// Tells what the receiver says of a batch that it has taken, but not always.
    fn tell(&mut self, what: &str) {
        if self.told.is_none_or(|at| at.elapsed() >= REMIND) {
            self.told = Some(Instant::now());
            log::warn!("OTLP: {}", crate::host::logging::clean(what.to_owned()));
        }
    }
}

impl Encoding for Otlp {
    const NAME: &'static str = "OTLP";
    const STATE: &'static counts::State = &counts::OTLP;
    type Points = Collection;
    type Session = Session;

    fn converter(&self, meter: Meter) -> Converter<Collection> {
        let resource = resource::attributes(&self.config.resource, |name| std::env::var(name).ok());
        let mut converter = points::Converter::new(resource, self.config.batch_size, meter);
        Box::new(move |snapshot| converter.collections(snapshot))
    }

    fn connect(&mut self, intake: &mut Intake<Collection>, endpoint: &str) -> Result<Session, End> {
        let session = match self.config.protocol {
            Protocol::Grpc => {
                let gzip = self.config.compression == Compression::Gzip;
                Session::Grpc(Link::new(intake.environment(), endpoint, &self.config.tls, TLS, gzip)?)
            }
            Protocol::Http => Session::Http(Post::new(endpoint, &self.config.path, &self.config.tls, TLS)?),
        };
        // A request without points is answered like any other.
        if let Verdict::Again(why, wait) = self.export(intake, &session, Vec::new())? {
            return Err(End::Later(why, wait));
        }
        if let Session::Grpc(link) = &session {
            link.watch();
        }
        Ok(session)
    }

    fn lost(session: &Session) -> &Receiver<()> {
        match session {
            Session::Grpc(link) => link.lost(),
            Session::Http(post) => post.lost(),
        }
    }

    fn send(
        &mut self,
        intake: &mut Intake<Collection>,
        session: &mut Session,
        batch: &mut [Chunk<Collection>],
    ) -> Result<Again<Collection>, End> {
        let mut taken = Again { chunks: Vec::new(), reasons: Vec::new(), of: String::new(), refused: None };
        let request = points::request(batch.iter().map(|chunk| &chunk.points));
        match self.export(intake, session, request)? {
            Verdict::Again(why, wait) => return Err(End::Later(why, wait)),
            Verdict::Taken => {}
            Verdict::Warned(why) => self.tell(&format!("the receiver warns: {why}")),
            Verdict::Partly(rejected, why) => {
                let given_up = give_up(batch, rejected);
                if engine::count(&*batch) == 0 {
                    taken.refused = Some(why);
                } else {
                    self.tell(&format!("the receiver refuses {given_up} points, which are dropped: {why}"));
                }
            }
            Verdict::Refused(why) => {
                give_up(batch, usize::MAX);
                taken.refused = Some(why);
            }
        }
        Ok(taken)
    }
}

/// Gives up so many points of the batch: which ones it is, the receiver does not tell. Returns how many were left to give up.
fn give_up(batch: &mut [Chunk<Collection>], points: usize) -> usize {
    let mut left = points;
    for chunk in batch {
        left -= chunk.points.give_up(left);
    }
    let given_up = points - left;
    counts::OTLP.dropped("refused", given_up);
    given_up
}

/// What is called an agent in heads of requests.
fn user_agent() -> String {
    format!("ebpf-sidecar/{}", version::VERSION)
}

/// What a receiver answers: kind 0 is all that an HTTP server sends, the others are parts of it.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz_answer(kind: u8, bytes: &[u8]) {
    match kind % 4 {
        0 => post::fuzz(bytes),
        kind => verdict::fuzz(kind, bytes),
    }
}
