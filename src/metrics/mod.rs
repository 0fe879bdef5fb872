//! What the agent knows, as values: the [catalogue] declares every metric once, a [snapshot] holds one
//! collection of them. Data flows one way: kernel maps → collector → snapshot → outputs.

pub mod catalogue;
pub mod export;
pub mod grpc;
pub mod health;
pub mod histogram;
pub mod snapshot;
