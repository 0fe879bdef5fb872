//! Wiring of the agent: command line, configuration, collector, servers, signals.

use ebpf_sidecar::{
    collector::Collector, config::Scope, ebpf::os, metrics::snapshot::Value, modules::iomonitor::IoMonitor,
};
fn main() {
    env_logger::init();
    println!("{:?}", os::mount_tracefs_privately());
    let a = std::env::args().nth(1);
    let scope = match a {
        Some(s) if s.starts_with('/') => Scope::Cgroup(s.into()),
        Some(s) => Scope::Comm(s),
        None => Scope::Host,
    };
    let t = std::time::Instant::now();
    let c =
        Collector::start(vec![Box::new(IoMonitor::new(scope))], std::time::Duration::from_millis(500), "host".into());
    let c = match c {
        Ok(c) => c,
        Err(e) => {
            eprintln!("{e}");
            return;
        }
    };
    eprintln!("{:?}", t.elapsed());
    std::thread::sleep(std::time::Duration::from_secs(6));
    for f in &c.snapshots().load().families {
        for s in &f.series {
            match &s.value {
                Value::Histogram(h) => println!("{} {} {}", f.metric.name, h.count(), h.sum_ns),
                v => println!("{}{:?} {:?}", f.metric.name, s.labels, v),
            }
        }
    }
    println!("{:?}", c.snapshots().load().io.fadvise);
}
