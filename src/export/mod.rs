//! Snapshots on their way out. The renderings are functions from a snapshot to text, so that a server can keep the text
//! until the next collection; what is sent to a server has a thread of its own.

pub mod banyandb;
pub mod diagnosis;
pub mod engine;
pub mod json;
#[cfg(test)]
mod markdown;
pub mod otlp;
pub mod prometheus;
