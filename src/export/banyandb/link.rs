//! A connection to BanyanDB. Calls run on gRPC's thread and answer through channels, so that the exporter can do other
//! things while it waits.

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::vec;

use crossbeam::channel::{self, Receiver, Sender};
use futures_util::{Sink, Stream};
use grpcio::{
    CallOption, Channel, ChannelBuilder, ChannelCredentialsBuilder, Client, ClientDuplexReceiver, ClientDuplexSender,
    ClientUnaryReceiver, ConnectivityState, Environment, Error, GrpcSlice, Marshaller, MetadataBuilder, Method,
    MethodType, WriteFlags, pb_de,
};
use protobuf::{Enum, Message};

use super::proto::measure::WriteResponse;
use super::proto::model::Status;
use crate::config::{BanyanDb, credential};
use crate::host::pem;
use crate::server::grpc::stream::Guarded;
use crate::server::grpc::stubs::called;

/// Full names of BanyanDB's methods.
pub mod name {
    /// `GroupRegistryServiceGetRequest` → `GroupRegistryServiceGetResponse`.
    pub const GET_GROUP: &str = "/banyandb.database.v1.GroupRegistryService/Get";
    /// `GroupRegistryServiceCreateRequest` → `GroupRegistryServiceCreateResponse`.
    pub const CREATE_GROUP: &str = "/banyandb.database.v1.GroupRegistryService/Create";
    /// `MeasureRegistryServiceGetRequest` → `MeasureRegistryServiceGetResponse`.
    pub const GET_MEASURE: &str = "/banyandb.database.v1.MeasureRegistryService/Get";
    /// `MeasureRegistryServiceCreateRequest` → `MeasureRegistryServiceCreateResponse`.
    pub const CREATE_MEASURE: &str = "/banyandb.database.v1.MeasureRegistryService/Create";
    /// `AwaitSchemaAppliedRequest` → `AwaitSchemaAppliedResponse`.
    pub const AWAIT_SCHEMA: &str = "/banyandb.schema.v1.SchemaBarrierService/AwaitSchemaApplied";
    /// Stream of `WriteRequest` → stream of `WriteResponse`.
    pub const WRITE: &str = "/banyandb.measure.v1.MeasureService/Write";
    /// `QueryRequest` → `QueryResponse`.
    pub const QUERY: &str = "/banyandb.measure.v1.MeasureService/Query";
}

/// Time without a sign of life after which the server is probed.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Time for it to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a watch of a connection that was closed may linger.
const WATCH: Duration = Duration::from_secs(5);

/// What became of a Write stream.
#[derive(Debug, Default)]
pub struct Written {
    /// Message ids with their statuses; an unknown one is unspecified.
    pub answers: Vec<(u64, Status)>,
    /// Why the stream ended early.
    pub failure: Option<Error>,
}

/// A connection.
pub struct Link {
    client: Client,
    lost: Receiver<()>,
    lost_to: Sender<()>,
    alive: Arc<()>,
}

impl Link {
    /// A connection to `endpoint`, which is made at the first call. An error tells which file cannot be used.
    pub fn new(environment: &Arc<Environment>, endpoint: &str, config: &BanyanDb) -> Result<Self, String> {
        let mut builder = ChannelBuilder::new(Arc::clone(environment))
            // A new connection is a new link: each one is noticed.
            .use_local_subchannel_pool(true)
            // Nor may a call be tried again behind our back.
            .enable_retry(false)
            .enable_http_proxy(false)
            // A quarter of the CPU time of a batch goes into filters that are not used; deadlines are.
            .raw_cfg_int(c"grpc.minimal_stack".into(), 1)
            .raw_cfg_int(c"grpc.enable_deadline_checking".into(), 1)
            .max_receive_message_len(-1)
            .keepalive_time(KEEPALIVE)
            .keepalive_timeout(KEEPALIVE_TIMEOUT);
        if config.tls.enabled {
            let mut credentials = ChannelCredentialsBuilder::new();
            if let Some(ca) = &config.tls.ca_file {
                credentials = credentials.root_cert(pem::certificates("export.banyandb.tls.ca_file", ca)?);
            }
            if let (Some(cert), Some(key)) = (&config.tls.cert_file, &config.tls.key_file) {
                let (cert_key, key_key) = ("export.banyandb.tls.cert_file", "export.banyandb.tls.key_file");
                let (cert, key) = pem::identity((cert_key, cert), (key_key, key))?;
                credentials = credentials.cert(cert, key);
            }
            builder = builder.set_credentials(credentials.build());
        }
        let client = Client::new(builder.connect(endpoint));
        let (lost_to, lost) = channel::bounded(1);
        Ok(Self { client, lost, lost_to, alive: Arc::new(()) })
    }

    /// From now on, when it is connected, a lost connection is told.
    pub fn watch(&self) {
        let channel = self.client.channel().clone();
        let changed = ready_no_more(&channel);
        let alive = Arc::downgrade(&self.alive);
        self.client.spawn(Guarded(Watch { channel, changed, alive, lost: self.lost_to.clone() }));
    }

    /// Where a lost connection is told, once.
    pub fn lost(&self) -> &Receiver<()> {
        &self.lost
    }

    /// Makes a call. Its answer comes through the channel, which closes without one if gRPC fails.
    pub fn call<Q: Message, R: Message + Unpin>(
        &self,
        name: &'static str,
        request: &Q,
        option: CallOption,
    ) -> Receiver<grpcio::Result<R>> {
        let (to, answer) = channel::bounded(1);
        match self.client.unary_call_async(&called(MethodType::Unary, name), request, option) {
            Ok(receiver) => self.client.spawn(Guarded(Forward { receiver, to })),
            // It has room for one.
            Err(e) => drop(to.send(Err(e))),
        }
        answer
    }

    /// Sends `messages` in one Write stream, and reads its answers until the server ends it.
    pub fn write<'a>(&self, messages: impl Iterator<Item = &'a [u8]>, option: CallOption) -> Receiver<Written> {
        let (to, answer) = channel::bounded(1);
        let method = Method {
            ty: MethodType::Duplex,
            name: name::WRITE,
            req_mar: Marshaller { ser: pass, de: |_| Err(Error::Codec("the client reads no requests".into())) },
            resp_mar: Marshaller { ser: |_, _| Err(Error::Codec("nor writes answers".into())), de: pb_de },
        };
        match self.client.duplex_streaming(&method, option) {
            Ok((sink, receiver)) => {
                let messages = messages.map(GrpcSlice::from).collect::<Vec<_>>().into_iter();
                let written = Some(Written::default());
                self.client.spawn(Guarded(Write { sink, receiver, messages, closed: false, written, to }));
            }
            // It has room for one.
            Err(e) => drop(to.send(Written { answers: Vec::new(), failure: Some(e) })),
        }
        answer
    }
}

/// Time limit and credentials of a call. An error tells what is wrong with the password's file.
pub fn option(config: &BanyanDb, limit: Duration) -> Result<CallOption, String> {
    let option = CallOption::default().timeout(limit).wait_for_ready(false);
    let Some(username) = &config.username else { return Ok(option) };
    let password = match (&config.password, &config.password_file) {
        (Some(password), _) => password.0.clone(),
        (None, Some(path)) => {
            let wrong =
                |why: &dyn std::fmt::Display| format!("export.banyandb.password_file: {}: {why}", path.display());
            let text = fs::read_to_string(path).map_err(|e| wrong(&e))?;
            let text = text.trim_end_matches(['\r', '\n']);
            credential(text).map_err(|_| wrong(&"not 1 to 255 printable ASCII characters"))?
        }
        (None, None) => return Ok(option),
    };
    let mut metadata = MetadataBuilder::new();
    // Both are printable, which is all that is asked of them.
    for (key, value) in [("username", username), ("password", &password)] {
        metadata.add_str(key, value).map_err(|_| format!("the {key} cannot be sent"))?;
    }
    Ok(option.headers(metadata.build()))
}

/// Another reference to the same bytes.
fn pass(message: &GrpcSlice, out: &mut GrpcSlice) -> grpcio::Result<()> {
    *out = message.clone();
    Ok(())
}

type Changed = Pin<Box<dyn Future<Output = bool> + Send>>;

fn ready_no_more(channel: &Channel) -> Changed {
    Box::pin(channel.wait_for_state_change(ConnectivityState::GRPC_CHANNEL_READY, WATCH))
}

/// Waits until a connection is not ready any more.
struct Watch {
    channel: Channel,
    changed: Changed,
    alive: Weak<()>,
    lost: Sender<()>,
}

impl Future for Watch {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.changed.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(true) => {
                    // Once is enough.
                    let _ = self.lost.try_send(());
                    return Poll::Ready(());
                }
                Poll::Ready(false) if self.alive.strong_count() == 0 => return Poll::Ready(()),
                Poll::Ready(false) => self.changed = ready_no_more(&self.channel),
            }
        }
    }
}

/// Passes on the answer to a call.
struct Forward<R> {
    receiver: ClientUnaryReceiver<R>,
    to: Sender<grpcio::Result<R>>,
}

impl<R: Unpin> Future for Forward<R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.receiver).poll(cx).map(|answer| {
            // Who waited for it may have given up.
            let _ = self.to.try_send(answer);
        })
    }
}

/// A Write stream: sends and reads at the same time, since the server answers refused messages at once.
struct Write {
    sink: ClientDuplexSender<GrpcSlice>,
    receiver: ClientDuplexReceiver<WriteResponse>,
    messages: vec::IntoIter<GrpcSlice>,
    closed: bool,
    written: Option<Written>,
    to: Sender<Written>,
}

impl Write {
    /// Sends what can be sent. A failure shows when reading: that tells why.
    fn send(&mut self, cx: &mut Context<'_>) {
        let mut sink = Pin::new(&mut self.sink);
        while !self.closed {
            match sink.as_mut().poll_ready(cx) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => self.closed = true,
            }
            if let Some(message) = self.messages.next() {
                // gRPC may gather messages while more follow.
                let flags = WriteFlags::default().buffer_hint(self.messages.len() > 0);
                self.closed |= sink.as_mut().start_send((message, flags)).is_err();
            } else {
                match sink.as_mut().poll_close(cx) {
                    Poll::Pending => return,
                    Poll::Ready(_) => self.closed = true,
                }
            }
        }
    }
}

impl Future for Write {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.send(cx);
        while let Some(written) = &mut this.written {
            let failure = match Pin::new(&mut this.receiver).poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(answer))) => {
                    written.answers.push((answer.message_id, Status::from_str(&answer.status).unwrap_or_default()));
                    continue;
                }
                Poll::Ready(Some(Err(e))) => Some(e),
                Poll::Ready(None) => None,
            };
            written.failure = failure;
            if let Some(written) = this.written.take() {
                // Who waited for it may have given up.
                let _ = this.to.try_send(written);
            }
        }
        Poll::Ready(())
    }
}

/// What a failed call is told as.
pub fn text(what: &str, error: &Error) -> String {
    match error {
        Error::RpcFailure(status) | Error::RpcFinished(Some(status)) => {
            let code = format!("{:?}", status.code());
            let code = code.split_once('-').map_or(code.as_str(), |(_, name)| name);
            format!("{what}: {code}: {}", status.message())
        }
        e => format!("{what}: {e}"),
    }
}

/// How long to wait before trying again after so many failures in a row: doubling, with jitter so that agents that
/// lost the same server do not come back at once.
pub fn backoff(failures: u32, jitter: u64) -> Duration {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(10);
    let full = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST);
    let half = full / 2;
    half + half.mul_f64(jitter as f64 / u64::MAX as f64)
}

/// The time left until `deadline`, and never none: gRPC would take that as no limit.
pub fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_ten_seconds_with_jitter() {
        for (failures, full) in [(0, 200), (1, 200), (2, 400), (3, 800), (6, 6400), (7, 10_000), (u32::MAX, 10_000)] {
            assert_eq!(backoff(failures, 0), Duration::from_millis(full / 2));
            assert_eq!(backoff(failures, u64::MAX), Duration::from_millis(full));
        }
    }
}
