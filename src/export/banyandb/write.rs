//! A Write stream: all points of a batch, and what the server answers to each.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec;

use crossbeam::channel::{self, Receiver, Sender};
use futures_util::{Sink, Stream};
use grpcio::{
    CallOption, ClientDuplexReceiver, ClientDuplexSender, Error, GrpcSlice, Marshaller, Method, MethodType, WriteFlags,
    pb_de,
};
use protobuf::Enum;

use super::method;
use super::proto::measure::WriteResponse;
use super::proto::model::Status;
use crate::export::engine::link::{Link, pass};
use crate::server::grpc::stream::Guarded;

/// What became of a Write stream.
#[derive(Debug, Default)]
pub struct Written {
    /// Message ids with their statuses; an unknown one is unspecified.
    pub answers: Vec<(u64, Status)>,
    /// Why the stream ended early.
    pub failure: Option<Error>,
}

/// Sends `messages` in one Write stream, and reads its answers until the server ends it.
pub fn write<'a>(link: &Link, messages: impl Iterator<Item = &'a [u8]>, option: CallOption) -> Receiver<Written> {
    let (to, answer) = channel::bounded(1);
    let method = Method {
        ty: MethodType::Duplex,
        name: method::WRITE,
        req_mar: Marshaller { ser: pass, de: |_| Err(Error::Codec("the client reads no requests".into())) },
        resp_mar: Marshaller { ser: |_, _| Err(Error::Codec("nor writes answers".into())), de: pb_de },
    };
    match link.client().duplex_streaming(&method, option) {
        Ok((sink, receiver)) => {
            let messages = messages.map(GrpcSlice::from).collect::<Vec<_>>().into_iter();
            let written = Some(Written::default());
            link.client().spawn(Guarded(Write { sink, receiver, messages, closed: false, written, to }));
        }
        // It has room for one.
        Err(e) => drop(to.send(Written { answers: Vec::new(), failure: Some(e) })),
    }
    answer
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
