//! The servers: [`grpc`], and the HTTP endpoints, of which [`http`] has the routes, and starts and stops it all.
//!
//! tiny_http alone cannot face a network: it has no timeouts, no limits, a thread per connection, and is deaf
//! after one failed accept. So `front` owns the public socket and every client, and passes only complete,
//! checked requests (`request`) to a tiny_http that nobody else can reach (`inner`).

mod front;
pub mod gateway;
pub mod grpc;
pub mod http;
mod inner;
pub mod listen;
mod page;
mod request;
