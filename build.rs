//! Compiles bpf/*.bpf.c with clang, makes Rust of proto/, and stamps the build with the git commit and time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, process};

fn main() {
    let out = PathBuf::from(var("OUT_DIR"));
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    // Not v3: what it makes of 32-bit registers, verifiers refuse.
    compile_bpf("iomonitor.bpf.c", &out.join("iomonitor.bpf.o"), &["-mcpu=v2"]);
    // For kernels that do not describe their types, which are the old ones: the oldest instruction set.
    compile_bpf("iomonitor.bpf.c", &out.join("iomonitor-nobtf.bpf.o"), &["-DNO_BTF", "-mcpu=v1"]);
    compile_bpf("peek.bpf.c", &out.join("peek.bpf.o"), &["-mcpu=v1"]);
    generate_messages();
    stamp();
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

/// Ends the build with a message that tells what to do, rather than with a panic's backtrace.
fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    process::exit(1);
}

fn compile_bpf(source: &str, object: &Path, options: &[&str]) {
    let (arch, triple) = match var("CARGO_CFG_TARGET_ARCH").as_str() {
        "x86_64" => ("x86", "x86_64-linux-gnu"),
        "aarch64" => ("arm64", "aarch64-linux-gnu"),
        other => fail(&format!("no system call numbers for {other} in bpf/syscalls.h: x86_64 and aarch64 only")),
    };
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let result = Command::new(&clang)
        .args(["-O2", "-g", "-target", "bpf", "-Wall", "-Werror"])
        .args(["-fdebug-compilation-dir=."]) // the same bytes wherever the tree lies
        .arg(format!("-D__TARGET_ARCH_{arch}"))
        .arg(format!("-I{}", var("DEP_BPF_INCLUDE"))) // bpf/bpf_helpers.h, from libbpf-sys
        // asm/types.h on Debian; elsewhere it is in /usr/include. All architectures have the same.
        .args([format!("-I/usr/include/{triple}"), format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH)])
        .args(options)
        .args(["-c", &format!("bpf/{source}"), "-o"])
        .arg(object)
        .output();
    match result {
        Err(e) => fail(&format!(
            "{clang} could not be run ({e}): it compiles the BPF programs. Install it with `make deps` \
             (Debian: apt-get install clang llvm; Alpine: apk add clang llvm linux-headers)"
        )),
        Ok(o) if !o.status.success() => {
            let text = String::from_utf8_lossy(&o.stderr);
            if text.contains("file not found") {
                let first = text.lines().find(|l| l.contains("file not found")).unwrap_or_default();
                fail(&format!(
                    "{first}\nkernel headers for user space are missing: run `make deps` \
                     (Debian: apt-get install linux-libc-dev; Alpine: apk add linux-headers)"
                ));
            }
            fail(&format!("{clang} rejects bpf/{source}:\n{text}"));
        }
        Ok(_) => {}
    }
    // Without DWARF the object is a third of the size, and half of that without the names of basic blocks and what a linker
    // would need of BTF, which stays. Not worth failing for.
    let _ = Command::new(env::var("LLVM_STRIP").unwrap_or_else(|_| "llvm-strip".into()))
        .args(["-g", "-R", ".rel.BTF", "-R", ".rel.BTF.ext", "-w", "-N", "LBB*"])
        .arg(object)
        .status();
}

/// The messages of the gRPC API, which src/api/mod.rs includes, of BanyanDB (src/export/banyandb/mod.rs) and of
/// OTLP (src/export/otlp/mod.rs).
fn generate_messages() {
    println!("cargo::rerun-if-changed=proto");
    let of_agent = ["banyandb/ebpf/v1/metrics", "banyandb/ebpf/v1/rpc", "grpc/health/v1/health"];
    let of_banyandb = ["common", "model", "database", "measure", "schema"].map(|p| format!("banyandb/{p}/v1/{p}"));
    let of_otlp =
        ["common/v1/common", "resource/v1/resource", "metrics/v1/metrics", "collector/metrics/v1/metrics_service"]
            .map(|file| format!("opentelemetry/proto/{file}"));
    let of_otlp = of_otlp.into_iter().chain(["google/rpc/status".into()]).collect();
    for (out, files) in
        [("proto", of_agent.map(String::from).to_vec()), ("banyandb", of_banyandb.to_vec()), ("otlp", of_otlp)]
    {
        let inputs = files.iter().map(|file| format!("proto/{file}.proto"));
        let result = protobuf_codegen::Codegen::new().pure().include("proto").inputs(inputs).cargo_out_dir(out).run();
        if let Err(e) = result {
            fail(&format!("proto/ could not be turned into Rust: {e}"));
        }
    }
}

fn stamp() {
    for name in ["SOURCE_DATE_EPOCH", "EBPF_SIDECAR_TIME", "EBPF_SIDECAR_COMMIT"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=src");
    // The log of HEAD changes with every commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|p| fs::exists(p).unwrap_or(false)) {
        println!("cargo::rerun-if-changed={log}");
    }
    // An image is built without .git: the commit comes as a build argument there.
    let commit = env::var("EBPF_SIDECAR_COMMIT").ok().filter(|c| !c.is_empty()).or_else(|| {
        let id = git(&["rev-parse", "--short=12", "HEAD"])?;
        let dirty = git(&["status", "--porcelain"]).is_some_and(|s| !s.is_empty());
        Some(if dirty { format!("{id}-dirty") } else { id })
    });
    println!("cargo::rustc-env=BUILD_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    // The first is for .ci/static.sh, whose SOURCE_DATE_EPOCH is the same for every commit.
    let given =
        ["EBPF_SIDECAR_TIME", "SOURCE_DATE_EPOCH"].into_iter().find_map(|name| env::var(name).ok()?.parse().ok());
    let time = given.unwrap_or(now);
    println!("cargo::rustc-env=BUILD_TIME={time}");
}

fn git(args: &[&str]) -> Option<String> {
    let o = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&o.stdout).trim().to_owned())
}
