//! The gRPC API: calls a second, beside a method that does nothing much, and how late the ticks of many streams are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::api::proto::health::{HealthCheckRequest, HealthCheckResponse};
use ebpf_sidecar::api::proto::rpc;
use ebpf_sidecar::server::grpc::stubs::name;
use protobuf::Message;
use protobuf::well_known_types::empty::Empty;

use super::client::{Answer, Client, block_on};
use super::common::Agent;
use super::{Table, at_most};

/// Clients with a connection each, one call at a time.
const CLIENTS: usize = 16;
const SECONDS: u64 = 5;
/// Open streams, over so many connections.
const STREAMS: usize = 1000;
const CONNECTIONS: usize = 20;
/// Ticks of each stream that are looked at, after the first.
const TICKS: usize = 5;

/// An answer of which the clients keep the bytes: on the same CPUs, reading them would be most of what is measured.
type Unread = Empty;

pub fn rows(table: &mut Table) {
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "1s")]);
    let (rate, p99) = calls::<_, Unread>(&agent, name::GET_METRICS, rpc::GetMetricsRequest::default);
    let (least, _) = calls::<_, HealthCheckResponse>(&agent, name::HEALTH_CHECK, HealthCheckRequest::default);
    let target = (">= 10000 /s".to_owned(), rate >= 10_000.0);
    table.row(format!("GetMetrics, {CLIENTS} clients"), format!("{rate:.0} /s"), Some(target));
    table.row("  of the rate of the health Check", format!("{:.2} ({least:.0} /s)", rate / least), None);
    table.row("  99th percentile", format!("{p99:.1} ms"), at_most(10.0, "ms", p99));

    let late = lateness(&agent);
    table.row(
        format!("lateness of ticks, {STREAMS} streams at 1 s, p99"),
        format!("{late:.1} ms"),
        at_most(50.0, "ms", late),
    );
    let metrics = agent.metrics();
    let sum = metrics.get("ebpf_sidecar_collect_duration_seconds_sum");
    let mean = sum * 1e3 / metrics.get("ebpf_sidecar_collect_duration_seconds_count");
    table.row("  a collection meanwhile, mean", format!("{mean:.2} ms"), None);
}

fn percentile_99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}

/// Calls a second, and the 99th percentile of their milliseconds.
fn calls<Q: Message, R: Answer>(agent: &Agent, name: &'static str, request: fn() -> Q) -> (f64, f64) {
    let stop = AtomicBool::new(false);
    let clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(agent.grpc_port)).collect();
    clients.iter().for_each(|c| drop(c.call::<Q, R>(name, &request())));
    let begun = Instant::now();
    let times: Vec<f64> = thread::scope(|scope| {
        let one = |client: &Client| {
            let (request, mut times) = (request(), Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                client.call::<Q, R>(name, &request);
                times.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            times
        };
        let threads: Vec<_> = clients.iter().map(|c| scope.spawn(move || one(c))).collect();
        thread::sleep(Duration::from_secs(SECONDS));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    (times.len() as f64 / begun.elapsed().as_secs_f64(), percentile_99(times))
}

/// 99th percentile of the milliseconds by which ticks come later than a second after the one before.
fn lateness(agent: &Agent) -> f64 {
    let clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::new(agent.grpc_port)).collect();
    let request = rpc::StreamMetricsRequest { interval_seconds: 1, ..Default::default() };
    let late: Vec<f64> = thread::scope(|scope| {
        let all = |client: &Client| {
            let open = |_| client.stream::<_, Unread>(name::STREAM_METRICS, &request);
            let mut streams: Vec<_> = (0..STREAMS / CONNECTIONS).map(open).collect();
            block_on(super::client::arrivals(&mut streams, TICKS + 1))
        };
        let threads: Vec<_> = clients.iter().map(|c| scope.spawn(move || all(c))).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect::<Vec<_>>()
    })
    .into_iter()
    .flat_map(|arrivals: Vec<Instant>| {
        // Against the schedule that the first one sets, not against the one before, which may be late itself.
        let first = arrivals[0];
        let schedule = (1..arrivals.len()).map(move |n| first + Duration::from_secs(n as u64));
        let late = |(at, due): (Instant, Instant)| at.saturating_duration_since(due).as_secs_f64() * 1e3;
        arrivals[1..].iter().copied().zip(schedule).map(late).collect::<Vec<_>>()
    })
    .collect();
    percentile_99(late)
}
