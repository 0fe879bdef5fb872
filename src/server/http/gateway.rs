//! The API over HTTP: the methods of proto/banyandb/ebpf/v1/rpc.proto at paths of their own, in proto3's JSON. What they
//! do is in `api`; here is only what HTTP has of its own: queries, bodies, browsers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protobuf::MessageFull;
use protobuf::reflect::{MessageDescriptor, RuntimeFieldType, RuntimeType};
use protobuf_json_mapping::PrintOptions;
use serde_json::{Map, Value};

use super::hosts::Hosts;
use crate::api::proto::rpc;
use crate::api::{Api, Caller, Code, Failure};
use crate::host::logging::clean;

/// What all paths begin with.
const PREFIX: &str = "/api/v1/ebpf/";
/// The path that is a stream; the front serves it.
pub const STREAM_PATH: &str = "/api/v1/ebpf/metrics/stream";
/// The path that changes the agent.
pub const CONFIGURE_PATH: &str = "/api/v1/ebpf/modules/configure";

/// Whether the answer to a query may take long to make, and be large.
pub fn is_dear(path: &str, query: &str) -> bool {
    // Names may be encoded in many ways: any query but none may have a time range.
    !query.is_empty() && matches!(path.strip_prefix(PREFIX), Some("metrics" | "io/stats"))
}

/// All of them, as the answer to another path names them.
pub const PATHS: &str = ", /api/v1/ebpf/metrics, /api/v1/ebpf/metrics/stream, /api/v1/ebpf/io/stats, \
     /api/v1/ebpf/modules/status, /api/v1/ebpf/modules/configure, /api/v1/ebpf/health, /api/v1/ebpf/diagnosis";

/// The methods that a path of the API takes, as the Allow header has them; `None` for another path.
pub fn methods(path: &str) -> Option<&'static str> {
    match path.strip_prefix(PREFIX)? {
        "metrics" | "io/stats" | "modules/status" | "health" | "diagnosis" => Some("GET, HEAD"),
        "metrics/stream" => Some("GET"),
        "modules/configure" => Some("POST"),
        _ => None,
    }
}

/// A stream as the front drives it.
pub struct Ticks {
    /// Time between two of its lines; the first is due at once.
    pub interval: Duration,
    /// Makes what is due: a JSON object on each line.
    pub next: Box<dyn FnMut() -> String + Send>,
}

/// A request to change the agent, as far as it matters who makes it.
pub struct Configure<'a> {
    /// Address of the client.
    pub peer: &'a str,
    /// Its Host header.
    pub host: &'a str,
    /// Its Content-Type header.
    pub content_type: &'a str,
    /// Whether it has an Origin header: browsers send one.
    pub has_origin: bool,
    /// The body.
    pub body: &'a str,
}

/// The API over HTTP.
pub struct Gateway {
    api: Arc<Api>,
    hosts: Hosts,
    configuring: Arc<AtomicBool>,
}

impl Gateway {
    /// The gateway to `api`; a request to change the agent may be addressed to `hosts`.
    pub fn new(api: Arc<Api>, hosts: Hosts) -> Self {
        Self { api, hosts, configuring: Arc::default() }
    }

    /// The names under which the agent may be asked.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// The answer to a GET, as JSON; `None` if the path is not one of the API.
    pub fn get(&self, path: &str, query: &str) -> Option<Result<String, Failure>> {
        let api = &self.api;
        Some(match path.strip_prefix(PREFIX)? {
            "metrics" => from_query(query).and_then(|r| json(&api.get_metrics(&r)?)),
            "io/stats" => from_query(query).and_then(|r| json(&api.get_io_stats(&r)?)),
            "modules/status" => from_query(query).and_then(|r| json(&api.get_module_status(&r)?)),
            "health" => from_query(query).and_then(|r| json(&api.get_health(&r))),
            "diagnosis" => from_query(query).and_then(|r| json(&api.get_diagnosis(&r))),
            _ => return None,
        })
    }

    /// Opens a stream.
    pub fn stream(&self, query: &str) -> Result<Ticks, Failure> {
        let request: rpc::StreamMetricsRequest = from_query(query)?;
        let interval = self.api.check_stream(&request)?;
        let api = Arc::clone(&self.api);
        let line = |m: &rpc::StreamMetricsResponse| Ok(format!("{{\"result\": {}}}\n", json(m)?));
        let next = move || {
            let lines: Result<String, Failure> =
                api.stream(&api.newest(), &request).and_then(|all| all.iter().map(line).collect());
            lines.unwrap_or_else(|failure| {
                log::error!("HTTP: a stream has nothing to say: {failure}");
                String::new()
            })
        };
        Ok(Ticks { interval, next: Box::new(next) })
    }

    /// Changes the agent. `reply` is called once, here or in the collector's thread, or dropped when that ends.
    pub fn configure(&self, by: &Configure, reply: impl FnOnce(Result<String, Failure>) + Send + 'static) {
        if let Err(failure) = self.check(by) {
            log::warn!("ConfigureModule by {} refused: {}", by.peer, failure.message);
            return reply(Err(failure));
        }
        // One at a time: each keeps one of the two ways to tiny_http until the collector is done.
        if self.configuring.swap(true, Ordering::AcqRel) {
            return reply(Err(Failure::new(Code::Unavailable, "another change is under way: try again")));
        }
        let done = Done(Arc::clone(&self.configuring));
        let caller = Caller::new(by.peer.to_owned(), false);
        let request = || {
            protobuf_json_mapping::parse_from_str(by.body)
                .map_err(|e| invalid(format!("the body is no ConfigureModuleRequest: {}", clean(e))))
        };
        self.api.configure(&caller, request, move |result| {
            drop(done);
            reply(result.and_then(|response| json(&response)));
        });
    }

    /// A page that somebody looks at in a browser could send a request too: it would have an Origin, or another Host, or
    /// another type.
    fn check(&self, by: &Configure) -> Result<(), Failure> {
        let denied = |message: &str| Err(Failure::new(Code::PermissionDenied, message));
        if by.has_origin {
            return denied("no request with an Origin header may change the agent");
        }
        if !self.hosts.know(by.host) {
            return denied(
                "the Host header is neither localhost, an address, this host's name nor among server.http.hosts",
            );
        }
        let media = by.content_type.split(';').next().unwrap_or_default().trim();
        if !media.eq_ignore_ascii_case("application/json") {
            return Err(Failure::new(Code::InvalidArgument, "Content-Type: allowed: application/json"));
        }
        Ok(())
    }
}

/// Lets the next change in when dropped.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What is false, 0 or empty is said too: only what is unknown is left out.
fn json(message: &impl MessageFull) -> Result<String, Failure> {
    let options = PrintOptions { always_output_default_values: true, ..Default::default() };
    let text = protobuf_json_mapping::print_to_string_with_options(message, &options);
    text.map_err(|e| Failure::new(Code::Internal, format!("no JSON can be made of the answer: {e}")))
}

/// The message that a query stands for: `a=1&b=2&b=3&c.d=4&e[key]=5`, with names as in proto or in JSON.
fn from_query<M: MessageFull>(query: &str) -> Result<M, Failure> {
    let mut fields = Map::new();
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        set(&mut fields, &M::descriptor(), &name, value)
            .ok_or_else(|| invalid(format!("the query's \"{}\" is no field of {}", clean(&name), M::NAME)))?;
    }
    protobuf_json_mapping::parse_from_str(&Value::from(fields).to_string())
        .map_err(|e| invalid(format!("the query is no {}: {}", M::NAME, clean(e))))
}

fn invalid(message: String) -> Failure {
    Failure::new(Code::InvalidArgument, message)
}

/// Puts a value where its name says; `None` if there is no such field.
fn set(fields: &mut Map<String, Value>, of: &MessageDescriptor, name: &str, value: String) -> Option<()> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (own, rest) = name.split_at(end);
    let field = of.fields().find(|f| f.name() == own || f.json_name() == own)?;
    let scalar = |t: &RuntimeType, value: String| match (t, value.as_str()) {
        (RuntimeType::Bool, "true") => Value::Bool(true),
        (RuntimeType::Bool, "false") => Value::Bool(false),
        _ => Value::String(value),
    };
    let key = field.name().to_owned();
    match (field.runtime_field_type(), rest) {
        (RuntimeFieldType::Singular(t), "") => {
            fields.insert(key, scalar(&t, value));
        }
        (RuntimeFieldType::Singular(RuntimeType::Message(inner)), _) => {
            let inside = fields.entry(key).or_insert_with(|| Map::new().into()).as_object_mut()?;
            set(inside, &inner, rest.strip_prefix('.')?, value)?;
        }
        (RuntimeFieldType::Repeated(t), "") => {
            fields.entry(key).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?.push(scalar(&t, value));
        }
        (RuntimeFieldType::Map(_, t), _) => {
            let inside = fields.entry(key).or_insert_with(|| Map::new().into()).as_object_mut()?;
            inside.insert(rest.strip_prefix('[')?.strip_suffix(']')?.to_owned(), scalar(&t, value));
        }
        _ => return None,
    }
    Some(())
}

/// Resolves `%41` and `+`.
fn decode(text: &str) -> Result<String, Failure> {
    let bad = || invalid(format!("the query has \"{}\", which is not encoded as it should", clean(text)));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit().ok_or_else(bad)?, digit().ok_or_else(bad)?);
                (high * 16 + low) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_a_message() {
        let r: rpc::GetMetricsRequest = from_query(
            "modules=a&modules=b%20c&label_filters[cause]=read&labelFilters[le]=%2BInf&\
             time_range.start=2026-11-22T19:47:11Z&timeRange.end=2026-11-22T20:00:00.5%2B01:00",
        )
        .unwrap();
        assert_eq!(r.modules, ["a", "b c"]);
        assert_eq!((r.label_filters["cause"].as_str(), r.label_filters["le"].as_str()), ("read", "+Inf"));
        assert_eq!(r.time_range.start.seconds, 1_795_376_831);
        assert_eq!((r.time_range.end.seconds, r.time_range.end.nanos), (1_795_374_000, 500_000_000));
        let r: rpc::GetIOStatsRequest = from_query("include_process_stats=true&pids=1&pids=4000000000").unwrap();
        assert!(r.include_process_stats && r.pids == [1, 4_000_000_000]);
        assert_eq!(from_query::<rpc::GetHealthRequest>(""), Ok(Default::default()));
        for bad in [
            "x=1",
            "modules.a=1",
            "modules[a]=1",
            "label_filters=1",
            "label_filters[a=1",
            "time_range=1",
            "time_range.x=1",
            "time_range.start=now",
            "a%4",
            "modules=%ff",
            "%%%",
        ] {
            assert_eq!(from_query::<rpc::GetMetricsRequest>(bad).unwrap_err().code, Code::InvalidArgument, "{bad}");
        }
        for bad in ["pids=-1", "pids=x", "pids=4294967296", "include_process_stats=yes", "include_process_stats=1"] {
            assert_eq!(from_query::<rpc::GetIOStatsRequest>(bad).unwrap_err().code, Code::InvalidArgument, "{bad}");
        }
    }
}
