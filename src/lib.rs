//! Kernel-level I/O observability for a database: fadvise calls, page-cache hits and misses, fills and
//! evictions by cause, memory reclaim. The binary `ebpf-sidecar` is wiring over this library.
//!
//! Data flows one way: BPF programs → kernel maps → [`collector`] → [`metrics::snapshot`] → [`export`] and
//! [`server`]. Nothing downstream calls back.

pub mod api;
pub mod collector;
pub mod commands;
pub mod config;
pub mod diagnosis;
pub mod ebpf;
pub mod export;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod host;
pub mod metrics;
pub mod monitor;
pub mod server;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// The map of the house, from the ground up: what is on a floor uses those below it and none above. Unit tests may
    /// look anywhere.
    const FLOORS: [(&str, &str); 12] = [
        ("metrics", "what is known, as values: the catalogue, a snapshot, a verdict"),
        ("config", "what the agent is told"),
        ("ebpf", "the kernel: system calls, objects, attaching; all of the unsafe code"),
        ("host", "what surrounds the agent: cgroups, pods, systemd, log, clock, certificates; how it is confined"),
        ("monitor", "what it observes: probes, counters, and the metrics made of them"),
        ("diagnosis", "what the numbers of the last minutes mean"),
        ("collector", "the loop that makes a snapshot of it"),
        ("api", "questions and their answers, over snapshots"),
        ("server", "HTTP, gRPC and the page, which carry them"),
        ("export", "snapshots as text, and sent to a store"),
        ("commands", "what the binary does"),
        ("fuzzing", "what the fuzzer feeds; not in the binary"),
    ];

    fn sources(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn no_floor_uses_one_above_it() {
        let floor = |name: &str| FLOORS.iter().position(|(floor, _)| *floor == name);
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut seen = [false; FLOORS.len()];
        for path in
            sources(&src).iter().filter(|p| p.extension().is_some_and(|e| e == "rs") && !p.ends_with("tests.rs"))
        {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
            let module = name.split(['/', '.']).next().unwrap();
            if ["lib", "main"].contains(&module) {
                continue;
            }
            let here = floor(module).unwrap_or_else(|| panic!("src/{name}: {module} is on no floor"));
            seen[here] = true;
            let text = fs::read_to_string(path).unwrap();
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
            for (line, used) in
                code.lines().enumerate().flat_map(|(i, l)| l.split("crate::").skip(1).map(move |u| (i + 1, u)))
            {
                let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                let there = floor(used).unwrap_or_else(|| panic!("src/{name}:{line}: {used} is on no floor"));
                assert!(there <= here, "src/{name}:{line}: {module} uses {used}, which is above it");
            }
        }
        assert_eq!(seen, [true; FLOORS.len()], "a floor without a room");
    }

    /// CVE-2024-11407, which is in gRPC's core: docs/security.md.
    #[test]
    fn nothing_asks_grpc_for_zero_copy() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for path in sources(&src).iter().filter(|p| !p.ends_with("lib.rs")) {
            let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
            assert!(!text.contains("tcp_tx_zerocopy"), "{}", path.display());
        }
    }

    /// Which of the files and folders beside a file it uses.
    fn beside(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap().lines().filter(|l| !l.trim_start().starts_with("//"));
        let code: Vec<&str> = code.collect();
        let code = code.join("\n");
        let folder = path.parent().unwrap();
        let words = code.split("super::").skip(1).flat_map(|used| {
            let end = if used.starts_with('{') { used.find("};") } else { used.find("::") };
            used[..end.unwrap_or(0)].split(|c: char| !c.is_alphanumeric() && c != '_')
        });
        let there = |word: &&str| folder.join(format!("{word}.rs")).exists() || folder.join(word).is_dir();
        words.filter(|word| !word.is_empty()).filter(there).map(str::to_owned).collect()
    }

    #[test]
    fn of_two_files_side_by_side_one_at_most_uses_the_other() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for path in sources(&src).iter().filter(|p| p.extension().is_some_and(|e| e == "rs") && !p.ends_with("mod.rs"))
        {
            let name = path.file_stem().unwrap().to_str().unwrap();
            for other in beside(path) {
                let back = path.with_file_name(format!("{other}.rs"));
                if other != name && back.exists() {
                    assert!(
                        !beside(&back).iter().any(|used| used == name),
                        "{} and {other} use each other",
                        path.display()
                    );
                }
            }
        }
    }
}
