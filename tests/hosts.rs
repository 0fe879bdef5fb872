//! Hosts that are not as most are: without IPv6, with calls that a sandbox refuses, with little of /proc and /sys.

mod common;

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::thread;

use common::{Agent, alone, command, output, skipped, sys};

/// Runs `test` where the network is this thread's own; false if that cannot be had.
fn in_a_network(test: impl FnOnce() + Send) -> bool {
    thread::scope(|scope| {
        let run = || {
            let ready = sys::new_network();
            if ready {
                test();
            }
            ready
        };
        scope.spawn(run).join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    })
}

#[test]
fn both_families_are_served_and_ipv4_alone_where_there_is_no_other() {
    need_bpf!("both_families_are_served_and_ipv4_alone_where_there_is_no_other");
    let _alone = alone();
    let set = |name: &str, value: &str| fs::write(format!("/proc/sys/net/ipv6/{name}"), value).unwrap();
    let test = || {
        if fs::metadata("/proc/sys/net/ipv6").is_err() {
            return skipped("both_families_are_served_and_ipv4_alone_where_there_is_no_other", "there is no IPv6");
        }
        serve_both("[::]");
        set("bindv6only", "1");
        serve_both("[::]");
        // Loopback loses its address of that family.
        set("conf/all/disable_ipv6", "1");
        for address in ["0.0.0.0", "::"] {
            serve(command(), address, "[::]", false);
            let mut command = command();
            sys::refuse(&mut command, &[(libc::SYS_socket, Some(libc::AF_INET6), libc::EAFNOSUPPORT)]);
            serve(command, address, "0.0.0.0", false);
        }
    };
    if !in_a_network(test) {
        skipped("both_families_are_served_and_ipv4_alone_where_there_is_no_other", "needs root");
    }
}

fn serve_both(shown: &str) {
    for address in ["0.0.0.0", "::"] {
        serve(command(), address, shown, true);
    }
}

/// Starts an agent whose servers are told `address`, and asks it in either family.
fn serve(command: Command, address: &str, shown: &str, v6: bool) {
    let settings =
        [("SERVER_HTTP_ADDRESS", address), ("SERVER_GRPC_ADDRESS", address), ("SERVER_ALLOW_CONFIGURE", "loopback")];
    let agent = Agent::start_with(command, &settings);
    for said in [format!("http://{shown}:{}/", agent.port), format!("gRPC: {shown}:{} ", agent.grpc_port)] {
        agent.wait(|_| agent.log().contains(&said));
    }
    for port in [agent.port, agent.grpc_port] {
        assert_eq!(TcpStream::connect(("::1", port)).is_ok(), v6, "port {port} at {address}");
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "port {port} at {address}");
    }
    let port = agent.port.to_string();
    for by in [vec!["health".to_owned()], vec!["health".into(), "--address".into(), format!("[::1]:{port}")]] {
        let args: Vec<&str> = by.iter().map(String::as_str).collect();
        let o = output(&args, &[("SERVER_HTTP_ADDRESS", address), ("SERVER_HTTP_PORT", &port)]);
        assert_eq!(o.status.success(), v6 || args.len() == 1, "{args:?} at {address}: {o:?}");
    }
    // A client of IPv4 counts as one of this host, and has its own address in the log.
    let body = r#"{"module":"iomonitor","enabled":true,"config_json":"{\"interval\":\"1h\"}"}"#;
    let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    let path = "/api/v1/ebpf/modules/configure";
    let request = format!("POST {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n{body}");
    let answer = common::request(agent.port, &request).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let log = agent.log();
    assert!(log.contains("ConfigureModule by 127.0.0.1:") && !log.contains("::ffff"), "{log}");
}
