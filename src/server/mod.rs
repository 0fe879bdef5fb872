//! The servers: [`grpc`], and the HTTP endpoints, of which [`http`] has the routes, and starts and stops it all.

pub mod grpc;
pub mod http;
pub mod listen;
mod page;
mod tls;
mod transport;
mod watched;
