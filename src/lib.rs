//! Kernel-level I/O observability for a database: fadvise calls, page-cache hits and misses, fills and
//! evictions by cause, memory reclaim. The binary `ebpf-sidecar` is wiring over this library.
//!
//! Data flows one way: BPF programs → kernel maps → [`collector`] → [`metrics::snapshot`] → [`export`] and
//! [`server`]. Nothing downstream calls back.

pub mod api;
pub mod cli;
pub mod collector;
pub mod config;
pub mod ebpf;
pub mod export;
pub mod health;
pub mod healthcheck;
pub mod logging;
pub mod manual;
pub mod metrics;
pub mod modules;
pub mod pem;
pub mod pod;
pub mod preflight;
pub mod server;
pub mod systemd;
pub mod time;
pub mod top;
pub mod version;
