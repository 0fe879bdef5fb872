//! What the agent knows, as values: a [metric] is declared once, a [snapshot] holds one collection of all, and a [cell] the
//! newest of them and the past. Data flows one way: kernel maps → collector → snapshot → outputs.

pub mod cell;
pub mod diagnosis;
pub mod export;
pub mod files;
pub mod grpc;
pub mod health;
pub mod histogram;
pub mod history;
pub mod http;
pub mod metric;
pub mod own;
#[cfg(test)]
pub(crate) mod random;
pub mod snapshot;
