//! Kernel-level I/O observability for a database: fadvise calls, page-cache hits and misses, fills and
//! evictions by cause, memory reclaim. The binary `ebpf-sidecar` is wiring over this library.
//!
//! Data flows one way: BPF programs → kernel maps → collector → [`metrics::snapshot`] → outputs.
//! Nothing downstream calls back.

pub mod ebpf;
pub mod metrics;
pub mod server;
