//! Every target: its name says which one it is.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ebpf_sidecar::fuzzing::run(env!("CARGO_BIN_NAME"), data));
