//! The binary of `make static`, which TEST_STATIC names: of what it is made, and that it needs nothing around it.
//! `make test-static` runs these, and much of the other tests on it.

#[path = "common/grpc.rs"]
mod client;
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use ebpf_sidecar::api::proto::rpc;
use ebpf_sidecar::server::grpc::stubs::name;

use client::Client;
use common::{Agent, MIB, TempDir, TestFile, command_of, read_all, sized, skipped, sys, text};

/// What the issue allows the binary, and the agent with everything running.
const MAX_BYTES: usize = 12 * MIB;
const MAX_RSS_KIB: u64 = 8 * 1024;
/// Beyond that, pages of its file, as many as kernel and file system map around one that is used.
const MAX_AROUND_KIB: u64 = 2 * 1024;
/// Of it, what is no page of its file.
const MAX_OWN_KIB: u64 = 4 * 1024;

fn binary(test: &str) -> Option<PathBuf> {
    let binary = std::env::var_os("TEST_STATIC").map(PathBuf::from);
    if binary.is_none() {
        skipped(test, "TEST_STATIC names no static binary (make test-static)");
    }
    binary
}

/// A little-endian number of an ELF file.
fn number(elf: &[u8], at: usize, bytes: usize) -> usize {
    elf[at..at + bytes].iter().rev().fold(0, |n, b| n << 8 | usize::from(*b))
}

/// Type, offset and size in the file of each segment.
fn segments(elf: &[u8]) -> Vec<(usize, usize, usize)> {
    assert_eq!(elf[..6], *b"\x7fELF\x02\x01", "64 bits, little-endian");
    let (table, size, count) = (number(elf, 32, 8), number(elf, 54, 2), number(elf, 56, 2));
    let headers = (0..count).map(|n| table + n * size);
    headers.map(|at| (number(elf, at, 4), number(elf, at + 8, 8), number(elf, at + 32, 8))).collect()
}

#[test]
fn it_links_to_nothing_and_is_small() {
    let Some(binary) = binary("it_links_to_nothing_and_is_small") else { return };
    let elf = fs::read(&binary).unwrap();
    assert!(elf.len() <= MAX_BYTES, "{} bytes", elf.len());
    let (dynamic, interpreter, needed) = (2, 3, 1);
    for (kind, offset, size) in segments(&elf) {
        assert_ne!(kind, interpreter, "it asks for a dynamic linker");
        if kind == dynamic {
            let tags = (offset..offset + size).step_by(16).map(|at| number(&elf, at, 8));
            assert!(tags.take_while(|tag| *tag != 0).all(|tag| tag != needed), "it asks for a library");
        }
    }
}

/// It would differ between two folders, or between the homes of two people.
#[test]
fn it_does_not_tell_where_it_was_built() {
    let Some(binary) = binary("it_does_not_tell_where_it_was_built") else { return };
    let bytes = fs::read(&binary).unwrap();
    let home = std::env::var("CARGO_HOME").or(std::env::var("HOME").map(|h| h + "/.cargo")).unwrap();
    for folder in [env!("CARGO_MANIFEST_DIR"), env!("CARGO_TARGET_TMPDIR"), &home] {
        let at = bytes.windows(folder.len()).position(|w| w == folder.as_bytes());
        let around = at.map(|at| String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 120)]));
        assert_eq!(around, None);
    }
}

/// The agent with a root of its own that holds the binary alone, and /proc and /sys, as a container without an operating
/// system has them.
fn in_an_empty_root(binary: &Path, root: &Path) -> Command {
    let script = "mount -t tmpfs root $0 && cp $1 $0/agent && mkdir $0/proc $0/sys && \
        mount -o rbind /proc $0/proc && mount -o rbind /sys $0/sys && exec chroot $0 /agent";
    let mut command = command_of("unshare");
    command.args(["-m", "sh", "-c", script, text(root), text(binary)]);
    command
}

#[test]
fn it_counts_in_an_empty_root() {
    need_bpf!("it_counts_in_an_empty_root");
    let Some(binary) = binary("it_counts_in_an_empty_root") else { return };
    let root = TempDir::new("root");
    let agent = Agent::start_with(in_an_empty_root(&binary, &root.path), &[("COLLECTOR_INTERVAL", "100ms")]);
    let entries = fs::read_dir(format!("/proc/{}/root", agent.child.id())).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["agent", "proc", "sys"]);
    let file = TestFile::cold("empty-root", 8 * MIB);
    let pages = (8 * MIB / sys::page()) as f64;
    let (delta, read) = agent.during(|| read_all(&file.file, 64 << 10));
    assert_eq!(read, 8 * MIB as u64);
    // The whole host is counted, so others may add to it.
    assert!(delta.misses_of(pages) >= pages, "{}", delta.moved());
    assert!(delta.attempts(pages) >= pages, "{}", delta.moved());
}

#[test]
fn it_stays_small_while_it_serves() {
    need_bpf!("it_stays_small_while_it_serves");
    let Some(binary) = binary("it_stays_small_while_it_serves") else { return };
    let agent = Agent::start_with(command_of(&binary), &[("COLLECTOR_INTERVAL", "100ms")]);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = Client::new(agent.grpc_port);
                for _ in 0..sized(200, 20) {
                    for page in ["/metrics", "/health", "/api/v1/stats"] {
                        assert_ne!(agent.get(page).body, "");
                    }
                    let request = rpc::GetMetricsRequest::default();
                    client.call::<_, rpc::GetMetricsResponse>(name::GET_METRICS, &request);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
    });
    let (kib, own) = (agent.rss_kib(), agent.own_kib());
    println!("resident: {kib} KiB, {own} of them its own; {MAX_RSS_KIB} are aimed at");
    assert!(kib <= MAX_RSS_KIB + MAX_AROUND_KIB && own <= MAX_OWN_KIB, "{kib} KiB are resident, {own} its own");
}
