//! gRPC clients: grpcio's, and one that speaks HTTP/2 by hand and so can misbehave.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fmt::Display;
use std::future::Future;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use ebpf_sidecar::server::grpc::stubs::called;
use futures_util::StreamExt;
use grpcio::{
    CallOption, Channel, ChannelBuilder, ChannelCredentials, ClientSStreamReceiver, EnvBuilder, Error, MethodType,
    RpcStatusCode,
};
use protobuf::Message;

/// What every message made from proto/ is.
pub trait Answer: Message + Display + Unpin {}
impl<M: Message + Display + Unpin> Answer for M {}

/// Far longer than any call takes.
pub const LIMIT: Duration = Duration::from_secs(60);

pub struct Client {
    client: grpcio::Client,
    pub channel: Channel,
}

impl Client {
    pub fn new(port: u16) -> Self {
        Self::with(port, None)
    }

    pub fn with(port: u16, credentials: Option<ChannelCredentials>) -> Self {
        let env = Arc::new(EnvBuilder::new().cq_count(1).build());
        // Connections are shared by equal clients otherwise.
        let mut builder = ChannelBuilder::new(env).use_local_subchannel_pool(true).max_receive_message_len(-1);
        if let Some(credentials) = credentials {
            builder = builder.set_credentials(credentials);
        }
        let channel = builder.connect(&format!("localhost:{port}"));
        Self { client: grpcio::Client::new(channel.clone()), channel }
    }

    pub fn try_call<Q: Message, R: Answer>(&self, name: &'static str, request: &Q) -> grpcio::Result<R> {
        let option = CallOption::default().timeout(LIMIT).wait_for_ready(false);
        self.client.unary_call(&called(MethodType::Unary, name), request, option)
    }

    #[track_caller]
    pub fn call<Q: Message, R: Answer>(&self, name: &'static str, request: &Q) -> R {
        self.try_call(name, request).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The status code and message with which a call fails.
    #[track_caller]
    pub fn refusal<Q: Message, R: Answer>(&self, name: &'static str, request: &Q) -> (RpcStatusCode, String) {
        refusal_of(self.try_call::<Q, R>(name, request))
    }

    pub fn stream<Q: Message, R: Answer>(&self, name: &'static str, request: &Q) -> Reader<R> {
        let option = CallOption::default().timeout(LIMIT);
        Reader(self.client.server_streaming(&called(MethodType::ServerStreaming, name), request, option).unwrap())
    }
}

#[track_caller]
pub fn refusal_of<R: Answer>(result: grpcio::Result<R>) -> (RpcStatusCode, String) {
    match result {
        Err(Error::RpcFailure(status)) => (status.code(), status.message().to_owned()),
        Err(e) => panic!("{e}"),
        Ok(r) => panic!("not refused: {r}"),
    }
}

/// Reads a stream; dropping it leaves.
pub struct Reader<R>(ClientSStreamReceiver<R>);

impl<R> Reader<R> {
    pub fn next(&mut self) -> Option<grpcio::Result<R>> {
        block_on(self.0.next())
    }
}

/// When each stream's messages came, so many of each, all streams at the same time.
pub async fn arrivals<R>(streams: &mut [Reader<R>], messages: usize) -> Vec<Vec<Instant>> {
    let mut came = vec![Vec::new(); streams.len()];
    std::future::poll_fn(|cx| {
        for (stream, came) in streams.iter_mut().zip(&mut came) {
            while came.len() < messages {
                match stream.0.poll_next_unpin(cx) {
                    Poll::Pending => break,
                    Poll::Ready(message) => {
                        assert!(message.is_some_and(|m| m.is_ok()), "a stream ended");
                        came.push(Instant::now());
                    }
                }
            }
        }
        if came.iter().all(|c| c.len() == messages) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    came
}

/// Drives a future in this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        thread::park();
    }
}

/// Opens a call and reads nothing of the answer: with `window` 0 the server may not send any of it either.
pub fn open_by_hand(port: u16, path: &str, request: &impl Message, window: u32) -> std::io::Result<TcpStream> {
    let mut bytes = hello(window);
    call(&mut bytes, 1, path, request);
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(&bytes)?;
    Ok(stream)
}

/// What a client says first.
pub fn hello(window: u32) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE
    frame(&mut bytes, 4, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat());
    bytes
}

/// A call as stream number `stream`, which is odd and above those before.
pub fn call(bytes: &mut Vec<u8>, stream: u32, path: &str, request: &impl Message) {
    headers(bytes, stream, path);
    let message = request.write_to_bytes().unwrap();
    let body = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    frame(bytes, 0, 1, stream, &body); // DATA, END_STREAM
}

/// The head of a call.
pub fn headers(bytes: &mut Vec<u8>, stream: u32, path: &str) {
    frame(bytes, 1, 4, stream, &header_block(path)); // HEADERS, END_HEADERS
}

/// What is in it, to which more can be added.
pub fn header_block(path: &str) -> Vec<u8> {
    let mut head = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        // A literal without indexing; all are short enough for one byte of length.
        for text in [name, value] {
            if text == name {
                head.push(0);
            }
            head.push(text.len() as u8);
            head.extend_from_slice(text.as_bytes());
        }
    }
    head
}

pub fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}
