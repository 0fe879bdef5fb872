//! Kernel-level I/O observability for a database: fadvise calls, page-cache hits and misses, fills and
//! evictions by cause, memory reclaim. The binary `ebpf-sidecar` is wiring over this library.
//!
//! Data flows one way: BPF programs → kernel maps → [`collector`] → [`metrics::snapshot`] → [`export`] and
//! [`server`]. Nothing downstream calls back.

pub mod api;
pub mod collector;
pub mod commands;
pub mod config;
pub mod ebpf;
pub mod export;
pub mod host;
pub mod metrics;
pub mod monitor;
pub mod server;
