//! Renderings of a snapshot. Each is a function from the snapshot to text, so that a server can keep the text
//! until the next collection.

pub mod json;
#[cfg(test)]
mod markdown;
pub mod prometheus;
