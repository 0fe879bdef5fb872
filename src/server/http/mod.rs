//! The routes `/`, `/metrics`, `/health`, `/api/v1/stats` and `/api/v1/diagnosis`, and starting and stopping the server.
//!
//! Two threads: `http-front` (`front`) talks to the clients, `http` answers what it passes on. Both
//! read the newest snapshot only; neither waits for the collector.

use std::io::Cursor;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use tiny_http::{Header, Method, Request, Response};

pub mod access;
mod front;
pub mod gateway;
pub mod hosts;
mod inner;
mod login;
pub(crate) mod request;

use self::access::Access;
use self::gateway::{CONFIGURE_PATH, Configure, Gateway};
use self::inner::Inner;
use self::login::Login;
use self::request::PEER;
use crate::api::{Code, Failure};
use crate::ebpf::poll;
use crate::host::confine::{self, Role};
use crate::metrics::cell::SnapshotCell;
use crate::metrics::snapshot::Snapshot;
use crate::server::listen::{self, StartError};
use crate::server::page;

/// Connections that may wait to be accepted: as many as the kernel allows by default (net.core.somaxconn). One more,
/// and whoever comes next waits a second until TCP tries again.
const BACKLOG: i32 = 4096;
/// Bytes of an answer that the kernel takes ahead of a slow reader (it doubles them for its own needs).
const SEND_BUFFER: i32 = 64 << 10;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The metrics as Prometheus text 0.0.4.
    Prometheus,
    /// The metrics as OpenMetrics 1.0.
    OpenMetrics,
    /// The statistics as JSON.
    Stats,
    /// What the numbers mean, as JSON.
    Diagnosis,
    /// The state of the agent as JSON; made anew for each request, since it tells ages.
    Health,
}

impl Page {
    fn content_type(self) -> &'static str {
        match self {
            Page::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Page::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Page::Stats | Page::Diagnosis | Page::Health => "application/json",
        }
    }
}

/// A page as text.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// Status code of the answer.
    pub status: u16,
    /// Its body.
    pub body: String,
}

impl From<String> for Rendered {
    fn from(body: String) -> Self {
        Rendered { status: 200, body }
    }
}

/// Turns a snapshot into a page. All but [`Page::Health`] are rendered once per snapshot.
pub type Render = Box<dyn Fn(Page, &Snapshot) -> Rendered + Send>;

/// The running server. Dropping it stops it.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    /// Closing it tells the front to end; the other thread ends with the front.
    wake: Option<UnixStream>,
    threads: Vec<JoinHandle<()>>,
}

impl HttpServer {
    /// Where it listens; tells the port if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it within about a second: requests in work are still answered, if their clients read.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        self.wake = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("an HTTP thread had panicked");
            }
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Starts the server, with `gateway`'s paths if there is one, for those whom `access` lets in. It listens when this returns.
pub fn start(
    address: SocketAddr,
    metrics_path: &str,
    cell: SnapshotCell,
    render: Render,
    gateway: Option<Gateway>,
    access: Access,
) -> Result<HttpServer, StartError> {
    let listen = |e| StartError::Listen { server: "HTTP", keys: "server.http", address, error: e };
    let setup = |e| StartError::Setup("HTTP", e);
    let listener = listen::bind(address).map_err(listen)?;
    poll::set_backlog(&listener, BACKLOG).map_err(listen)?;
    poll::set_send_buffer(&listener, SEND_BUFFER).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;

    let (wake, woken) = UnixStream::pair().map_err(setup)?;
    let inner = Inner::start().map_err(setup)?;
    let login = Login::new().map_err(setup)?;
    let (servers, received) = mpsc::channel::<Arc<Inner>>();
    let gateway = gateway.map(Arc::new);
    let of_front = gateway.clone();
    let hosts = gateway.as_ref().map(|gateway| gateway.hosts().clone());
    let open_stream = move |query: &str| match &of_front {
        Some(gateway) => gateway.stream(query).map_err(|f| (f.code.http(), f.message)),
        None => Err((404, "no such page".into())),
    };
    let mut routes = Routes {
        metrics_path: metrics_path.to_owned(),
        cell,
        render,
        gateway,
        cache: Cache::default(),
        start_page: page::HTML.as_bytes().into(),
        start_page_policy: page::policy(),
    };

    let mut server = HttpServer { address, wake: Some(wake), threads: Vec::with_capacity(2) };
    let answer = thread::Builder::new().name("http".into()).spawn(move || {
        confine::enter(Role::Http);
        for inner in received {
            answer_all(&inner, &mut routes);
        }
    });
    server.threads.push(answer.map_err(setup)?);
    let front = thread::Builder::new().name("http-front".into()).spawn(move || {
        confine::enter(Role::Http);
        front::run(&listener, &woken, inner, &servers, &open_stream, hosts.as_ref(), (&access, login));
    });
    // On failure the closure is gone, and with it the sender that the first thread waits for.
    server.threads.push(front.map_err(setup)?);
    Ok(server)
}

fn answer_all(inner: &Inner, routes: &mut Routes) {
    while let Some(mut request) = inner.next_request() {
        let configures = request.url() == CONFIGURE_PATH && *request.method() == Method::Post;
        if let Some(gateway) = routes.gateway.as_ref().filter(|_| configures) {
            let changed = catch_unwind(AssertUnwindSafe(|| configure(gateway, &mut request)));
            let answer = match changed {
                // Nobody else is kept waiting meanwhile.
                Ok(result) => thread::Builder::new().name("http-configure".into()).spawn(move || {
                    let stopping = || Err(Failure::new(Code::Unavailable, "the agent is stopping"));
                    let response = json_response(result.recv().unwrap_or_else(|_| stopping()));
                    if let Err(e) = request.respond(response) {
                        log::warn!("HTTP: an answer was lost: {e}");
                    }
                }),
                Err(_) => continue, // dropped, a request is answered with 500
            };
            if let Err(e) = answer {
                log::warn!("HTTP: an answer was lost: {e}");
            }
            continue;
        }
        let response = catch_unwind(AssertUnwindSafe(|| routes.answer(&request)));
        let response = response.unwrap_or_else(|_| failure(500, "the page could not be rendered"));
        if let Err(e) = request.respond(response) {
            log::warn!("HTTP: an answer was lost: {e}");
        }
    }
}

/// Asks for a change; its result comes through the channel.
fn configure(gateway: &Gateway, request: &mut Request) -> mpsc::Receiver<Result<String, Failure>> {
    let (reply, result) = mpsc::sync_channel(1);
    let mut body = String::new();
    // The front has it whole, and bounds it.
    let read = request.as_reader().read_to_string(&mut body);
    let value = |name: &'static str| {
        request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.as_str().trim().to_owned())
    };
    let has_origin = value("Origin").is_some();
    let [peer, host, content_type] = [PEER, "Host", "Content-Type"].map(|n| value(n).unwrap_or_default());
    match read {
        Ok(_) => {
            let by = Configure { peer: &peer, host: &host, content_type: &content_type, has_origin, body: &body };
            // Who waits for it may have gone.
            gateway.configure(&by, move |result| drop(reply.send(result)));
        }
        Err(_) => {
            let failure = Failure::new(Code::InvalidArgument, "the body is not UTF-8 text");
            drop(reply.send(Err(failure)));
        }
    }
    result
}

fn json_response(result: Result<String, Failure>) -> Response<Body> {
    match result {
        Ok(json) => respond(200, "application/json", json.into_bytes().into()),
        Err(f) => failure(f.code.http(), &f.message),
    }
}

type Body = Cursor<Arc<[u8]>>;

struct Routes {
    metrics_path: String,
    cell: SnapshotCell,
    render: Render,
    gateway: Option<Arc<Gateway>>,
    cache: Cache,
    start_page: Arc<[u8]>,
    start_page_policy: String,
}

/// The pages of one snapshot, as far as they were asked for.
#[derive(Default)]
struct Cache {
    sequence: u64,
    pages: Vec<(Page, u16, Arc<[u8]>)>,
}

impl Routes {
    fn answer(&mut self, request: &Request) -> Response<Body> {
        let target = request.url().split('#').next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let gateway = self.gateway.as_ref().filter(|_| gateway::methods(path).is_some());
        let allowed = gateway.and_then(|_| gateway::methods(path)).unwrap_or("GET, HEAD");
        let wrong_method = !allowed.split(", ").any(|method| method == request.method().as_str());
        let not_allowed = || {
            failure(405, &format!("only {} is allowed here", allowed.replace(", ", " or ")))
                .with_header(header("Allow", allowed))
        };
        if let Some(gateway) = gateway {
            return match gateway.get(path, query) {
                _ if wrong_method => not_allowed(),
                Some(result) => json_response(result),
                None => failure(404, "no query is taken here"),
            };
        }
        let page = match path {
            "/" => None,
            p if p == self.metrics_path => {
                let accept = request.headers().iter().find(|h| h.field.equiv("Accept"));
                if accept.is_some_and(|h| prefers_openmetrics(h.value.as_str())) {
                    Some(Page::OpenMetrics)
                } else {
                    Some(Page::Prometheus)
                }
            }
            "/health" => Some(Page::Health),
            "/api/v1/stats" => Some(Page::Stats),
            "/api/v1/diagnosis" => Some(Page::Diagnosis),
            _ => {
                let api = if self.gateway.is_some() { gateway::PATHS } else { "" };
                let own = "/health, /api/v1/stats, /api/v1/diagnosis";
                return failure(404, &format!("no such page; there are /, {}, {own}{api}", self.metrics_path));
            }
        };
        if wrong_method {
            return not_allowed();
        }
        let Some(page) = page else { return self.start_page() };
        let (status, body) = self.page(page);
        let vary = (path == self.metrics_path).then(|| header("Vary", "Accept"));
        vary.into_iter().fold(respond(status, page.content_type(), body), Response::with_header)
    }

    fn start_page(&self) -> Response<Body> {
        respond(200, "text/html; charset=utf-8", Arc::clone(&self.start_page))
            .with_header(header("Content-Security-Policy", &self.start_page_policy))
            .with_header(header("Referrer-Policy", "no-referrer"))
    }

    fn page(&mut self, page: Page) -> (u16, Arc<[u8]>) {
        let snapshot = self.cell.load();
        if self.cache.sequence != snapshot.sequence {
            self.cache = Cache { sequence: snapshot.sequence, pages: Vec::new() };
        }
        if let Some((_, status, body)) = self.cache.pages.iter().find(|(p, ..)| *p == page) {
            return (*status, Arc::clone(body));
        }
        let rendered = (self.render)(page, &snapshot);
        let body: Arc<[u8]> = rendered.body.into_bytes().into();
        if page != Page::Health {
            self.cache.pages.push((page, rendered.status, Arc::clone(&body)));
        }
        (rendered.status, body)
    }
}

/// A JSON error, for routes and front alike.
pub(super) fn failure(code: u16, message: &str) -> Response<Body> {
    let body = serde_json::json!({ "code": code, "message": message }).to_string();
    respond(code, "application/json", body.into_bytes().into())
}

fn respond(status: u16, content_type: &str, body: Arc<[u8]>) -> Response<Body> {
    let headers = vec![
        header("Server", "ebpf-sidecar"),
        header("Content-Type", content_type),
        header("Cache-Control", "no-store"),
        header("X-Content-Type-Options", "nosniff"),
    ];
    let length = body.len();
    // The front wants a Content-Length on every answer, tiny_http would chunk from 32 KiB on.
    Response::new(status.into(), headers, Cursor::new(body), Some(length), None).with_chunked_threshold(usize::MAX)
}

fn header(name: &str, value: &str) -> Header {
    // Every header of ours is an ASCII literal, or the page's policy, which is ASCII too.
    Header::from_bytes(name, value).expect("ASCII")
}

/// Whether an Accept header prefers OpenMetrics 1.0 to Prometheus text 0.0.4. It has to name it: a wildcard
/// alone gets the older format, which every client reads.
fn prefers_openmetrics(accept: &str) -> bool {
    // Best quality of each in thousandths, and whether it was named rather than matched by a wildcard.
    let (mut open, mut text, mut wildcard) = (None, None, None);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut version) = (Some(1000), None);
        for (name, value) in parts.filter_map(|p| p.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = thousandths(value.trim()),
                "version" => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        let best = match (media.as_str(), version) {
            ("application/openmetrics-text", None | Some("1.0.0")) => &mut open,
            ("text/plain", None | Some("0.0.4")) => &mut text,
            ("text/*" | "*/*", _) => &mut wildcard,
            _ => continue,
        };
        *best = (*best).max(quality);
    }
    let text = text.map(|q| (q, true)).or(wildcard.map(|q| (q, false)));
    open.is_some_and(|q| q > 0 && Some((q, true)) > text)
}

/// A quality value; `None` if it is none, which leaves its media range out.
fn thousandths(q: &str) -> Option<u32> {
    let (whole, fraction) = q.split_once('.').unwrap_or((q, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction: u32 = format!("{fraction:0<3}").parse().ok()?;
    match (whole, fraction) {
        ("0", n) => Some(n),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiates_the_exposition_format() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, open) in [
            (prometheus_3, true),
            ("application/openmetrics-text", true),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\" ; Q=0.5 , text/plain;q=0.4", true),
            ("application/openmetrics-text,*/*", true),
            ("application/openmetrics-text,text/plain", false),
            ("application/openmetrics-text;q=0.5,*/*", false),
            ("application/openmetrics-text;q=0.5,text/plain;q=0.4,*/*", true),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=2", false),
            ("application/openmetrics-text;q=0.12345", false),
            ("application/openmetrics-text;version=0.0.1", false),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
            ("*/*", false),
            ("", false),
            (",;=;q,;;", false),
        ] {
            assert_eq!(prefers_openmetrics(accept), open, "{accept}");
        }
    }
}
