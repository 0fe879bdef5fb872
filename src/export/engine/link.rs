//! A gRPC connection to a server. Calls run on gRPC's thread and answer through channels, so that the exporter can do
//! other things while it waits.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use grpcio::{
    CallOption, Channel, ChannelBuilder, ChannelCredentialsBuilder, Client, ClientUnaryReceiver, CompressionAlgorithms,
    ConnectivityState, Environment, Error, GrpcSlice, Marshaller, Method, MethodType, RpcStatusCode, pb_de,
};
use protobuf::Message;

use crate::config::ClientTls;
use crate::host::pem;
use crate::server::grpc::stream::Guarded;
use crate::server::grpc::stubs::called;

/// Time without a sign of life after which the server is probed.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Time for it to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a watch of a connection that was closed may linger.
const WATCH: Duration = Duration::from_secs(5);

/// A connection.
pub struct Link {
    client: Client,
    lost: Receiver<()>,
    lost_to: Sender<()>,
    alive: Arc<()>,
}

impl Link {
    /// A connection to `endpoint`, which is made at the first call. `tls` is what stands under `key` in the
    /// configuration. With `gzip` what is sent is compressed. An error tells which file cannot be used.
    pub fn new(
        environment: Arc<Environment>,
        endpoint: &str,
        tls: &ClientTls,
        key: &str,
        gzip: bool,
    ) -> Result<Self, String> {
        let mut builder = ChannelBuilder::new(environment)
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
        if gzip {
            builder = builder
                .default_compression_algorithm(CompressionAlgorithms::GRPC_COMPRESS_GZIP)
                // Its default is not to compress.
                .raw_cfg_int(c"grpc.gzip_compression_level".into(), 6);
        }
        if tls.enabled {
            let mut credentials = ChannelCredentialsBuilder::new();
            if let Some(ca) = &tls.ca_file {
                credentials = credentials.root_cert(pem::certificates(&format!("{key}.ca_file"), ca)?);
            }
            if let (Some(cert), Some(private)) = (&tls.cert_file, &tls.key_file) {
                let (cert_key, key_key) = (format!("{key}.cert_file"), format!("{key}.key_file"));
                let (chain, private) = pem::identity((&cert_key, cert), (&key_key, private))?;
                pem::warn_if_expired((&cert_key, cert), &chain);
                credentials = credentials.cert(chain, private);
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
        self.forward(self.client.unary_call_async(&called(MethodType::Unary, name), request, option))
    }

    /// The same with a request that is encoded already.
    pub fn call_encoded<R: Message + Unpin>(
        &self,
        name: &'static str,
        request: Vec<u8>,
        option: CallOption,
    ) -> Receiver<grpcio::Result<R>> {
        let method = Method {
            ty: MethodType::Unary,
            name,
            req_mar: Marshaller { ser: pass, de: |_| Err(Error::Codec("the client reads no requests".into())) },
            resp_mar: Marshaller { ser: |_, _| Err(Error::Codec("nor writes answers".into())), de: pb_de },
        };
        self.forward(self.client.unary_call_async(&method, &GrpcSlice::from(request), option))
    }

    fn forward<R: Unpin + Send + 'static>(
        &self,
        called: grpcio::Result<ClientUnaryReceiver<R>>,
    ) -> Receiver<grpcio::Result<R>> {
        let (to, answer) = channel::bounded(1);
        match called {
            Ok(receiver) => self.client.spawn(Guarded(Forward { receiver, to })),
            // It has room for one.
            Err(e) => drop(to.send(Err(e))),
        }
        answer
    }

    /// For calls of other kinds.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// Another reference to the same bytes.
pub fn pass(message: &GrpcSlice, out: &mut GrpcSlice) -> grpcio::Result<()> {
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

/// Whether a call was answered with this code.
pub fn is(error: &Error, code: RpcStatusCode) -> bool {
    matches!(error, Error::RpcFailure(status) if status.code() == code)
}

/// Whether an error says nothing of what was asked, but that the server cannot be asked.
pub fn is_out_of_reach(error: &Error) -> bool {
    let codes = [
        RpcStatusCode::UNAVAILABLE,
        RpcStatusCode::DEADLINE_EXCEEDED,
        RpcStatusCode::CANCELLED,
        RpcStatusCode::UNAUTHENTICATED,
    ];
    !matches!(error, Error::RpcFailure(_)) || codes.into_iter().any(|code| is(error, code))
}
