//! The threads that libraries start by themselves, under a name that tells whose they are.

use std::io;
use std::panic;
use std::sync::Arc;
use std::thread;

use grpcio::{EnvBuilder, Environment};

use crate::host::confine::{self, Role};

/// The name of the threads of gRPC's core.
pub const GRPC_CORE: &str = "grpc-core";

/// Runs `f` in a thread of this name and role, which the threads that are started in it inherit.
pub fn named<T: Send>(name: &str, role: Role, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let f = move || {
        confine::enter(role);
        f()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.into()).spawn_scoped(scope, f)?;
        thread.join().map_err(|p| panic::resume_unwind(p))
    })
}

/// What gRPC needs for servers and clients, with so many threads for their calls.
pub fn grpc(calls: usize, name: &str, role: Role) -> Arc<Environment> {
    let new = || Arc::new(EnvBuilder::new().cq_count(calls).name_prefix(name).build());
    // Without a thread to spare they have another name.
    named(GRPC_CORE, role, new).unwrap_or_else(|_| new())
}
