use std::sync::Mutex;

use protobuf::CodedOutputStream;

use super::*;
use crate::collector::Collector;
use crate::ebpf::object::Error;
use crate::export::{json, prometheus};
use crate::metrics::snapshot::{Family, ProbeStatus, ProcessRow, Value};
use crate::monitor::example;
use crate::monitor::{Module, ModuleSettings, Sample};

/// A module whose samples are given.
struct Fake(Arc<Mutex<Vec<Family>>>);

impl Module for Fake {
    fn name(&self) -> &'static str {
        "iomonitor"
    }
    fn start(&mut self) -> Result<(), Error> {
        Ok(())
    }
    fn stop(&mut self) {}
    fn configure(&mut self, _: &ModuleSettings) -> ModuleSettings {
        ModuleSettings::default()
    }
    fn prepare(&mut self) -> Result<(), Error> {
        Ok(())
    }
    fn collect(&mut self) -> Result<Sample, Error> {
        Ok(Sample { families: self.0.lock().unwrap().clone(), ..Sample::default() })
    }
    fn probes(&self) -> Vec<ProbeStatus> {
        vec![ProbeStatus { name: "p", mode: Some("test"), failures: Vec::new() }]
    }
}

/// An API over `snapshots`, the first of them first.
fn api_over(snapshots: Vec<Snapshot>) -> Api {
    let mut snapshots = snapshots.into_iter();
    let cell = SnapshotCell::with_history(snapshots.next().unwrap(), Duration::from_secs(3600));
    snapshots.for_each(|s| cell.store(s));
    let fake = Fake(Arc::default());
    let collector =
        Collector::start(vec![Box::new(fake)], Duration::from_secs(3600), "host".into(), Duration::ZERO).unwrap();
    let control = collector.control();
    collector.stop().unwrap();
    Api::new(cell, control, AllowConfigure::Loopback)
}

/// Ten snapshots, a second apart.
fn ten() -> Vec<Snapshot> {
    let base = example::snapshot();
    let nth = |n: u64| {
        let mut s = Snapshot {
            sequence: n,
            collected_at: base.collected_at + Duration::from_secs(n),
            collected_instant: base.collected_instant + Duration::from_secs(n),
            ..base.clone()
        };
        s.say("ebpf_fadvise_calls_total", &[1004 + n]);
        s.say("ebpf_fadvise_success_total", &[1001 + n]);
        let row = &mut s.processes.as_mut().unwrap()[0];
        (row.calls, row.success) = (row.calls + n, row.success + n);
        s.say("ebpf_cache_read_attempts_total", &[1000 + 40 * n]);
        s.say("ebpf_cache_misses_total", &[100 + 10 * n]);
        s.say("ebpf_memory_direct_reclaim_processes", &[n % 7]);
        s
    };
    (1..=10).map(nth).collect()
}

fn range(start: Option<u64>, end: Option<u64>) -> MessageField<rpc::TimeRange> {
    let base = example::snapshot().collected_at;
    let time = |n: Option<u64>| n.map_or(MessageField::none(), |n| at(base + Duration::from_secs(n)));
    Some(rpc::TimeRange { start: time(start), end: time(end), ..Default::default() }).into()
}

fn get_metrics(api: &Api, request: &rpc::GetMetricsRequest) -> rpc::GetMetricsResponse {
    api.get_metrics(request).unwrap()
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// `name{labels}` as Prometheus has it.
fn series(metric: &pb::Metric, order: &[&str]) -> String {
    let labels: Vec<String> =
        order.iter().filter_map(|l| Some(format!("{l}=\"{}\"", escaped(metric.labels.get(*l)?)))).collect();
    let labels = labels.join(",");
    if labels.is_empty() { metric.name.clone() } else { format!("{}{{{labels}}}", metric.name) }
}

#[test]
fn metrics_are_those_of_the_exposition() {
    let snapshot = example::snapshot();
    let api = api_over(vec![snapshot.clone()]);
    let answer = get_metrics(&api, &Default::default());
    let [set] = &answer.metric_sets[..] else { panic!("{answer}") };
    assert_eq!((set.module_name.as_str(), set.sequence), ("iomonitor", 42));
    assert_eq!(answer.timestamp, at(snapshot.collected_at));
    assert_eq!(answer.total_metrics as usize, set.metrics.len());
    let text = prometheus::text(&snapshot);
    let exposed: HashMap<&str, f64> = text
        .lines()
        .filter(|l| {
            l.starts_with("ebpf_") && !["ebpf_sidecar_", "ebpf_diagnosis_"].iter().any(|own| l.starts_with(own))
        })
        .map(|l| l.rsplit_once(' ').unwrap())
        .map(|(series, value)| (series, value.parse().unwrap()))
        .collect();
    assert_eq!(set.metrics.len(), exposed.len());
    for metric in &set.metrics {
        let name = series(metric, &["preset", "db", "kind", "advice", "cause", "op", "reclaimer", "le"]);
        let value = *exposed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not exposed"));
        assert!(metric.value == value || metric.value.is_nan() && value.is_nan(), "{name}: {} {value}", metric.value);
        let kind = match name.as_str() {
            n if n.split('{').next().unwrap().ends_with("_total") => pb::MetricType::METRIC_TYPE_COUNTER,
            n if n.contains("_seconds_") => pb::MetricType::METRIC_TYPE_HISTOGRAM,
            _ => pb::MetricType::METRIC_TYPE_GAUGE,
        };
        assert_eq!(metric.type_, kind.into(), "{name}");
        assert_eq!(metric.timestamp, at(snapshot.collected_at));
    }
}

#[test]
fn statistics_are_those_of_the_json() {
    let mut snapshot = example::snapshot();
    snapshot.family_mut("ebpf_fadvise_success_rate_percent").series[0].value = Value::Percent(Some(99.0));
    let stats: serde_json::Value = serde_json::from_str(&json::stats(&snapshot)).unwrap();
    let api = api_over(vec![snapshot]);
    let request = rpc::GetIOStatsRequest { include_process_stats: true, ..Default::default() };
    let answer = api.get_io_stats(&request).unwrap();
    assert_eq!(answer.sequence, 42);
    let options = protobuf_json_mapping::PrintOptions {
        proto_field_name: true,
        always_output_default_values: true,
        ..Default::default()
    };
    let ours = protobuf_json_mapping::print_to_string_with_options(&*answer.stats, &options).unwrap();
    let ours: serde_json::Value = serde_json::from_str(&ours).unwrap();
    let mut compared = 0;
    compare("", &ours, &stats, &mut compared);
    assert_eq!(compared, 3 + 7 + 2 * 4 + 7 + 5 + 2 * 8);
}

#[test]
fn files_are_those_of_the_json() {
    let snapshot = example::snapshot();
    let theirs: serde_json::Value = serde_json::from_str(&json::stats(&snapshot)).unwrap();
    let api = api_over(vec![snapshot]);
    let ask = |files| api.get_io_stats(&rpc::GetIOStatsRequest { files, ..Default::default() }).unwrap();
    assert!(ask(0).stats.files.is_none(), "to clients of the contract nothing is new");
    let options = protobuf_json_mapping::PrintOptions { proto_field_name: true, ..Default::default() };
    let ours = protobuf_json_mapping::print_to_string_with_options(&*ask(20).stats.files, &options).unwrap();
    let mut ours: serde_json::Value = serde_json::from_str(&ours).unwrap();
    // There the counts stand beside the names.
    for list in ["top", "groups"] {
        for row in ours[list].as_array_mut().unwrap() {
            let counts = row.as_object_mut().unwrap().remove("counts").unwrap();
            row.as_object_mut().unwrap().extend(counts.as_object().unwrap().clone());
        }
    }
    let mut compared = 0;
    compare("", &ours, &theirs["files"], &mut compared);
    let counts = 2 + 5 + 3 + 2;
    assert_eq!(compared, 1 + (5 + 3 + counts) + (4 + counts) + counts + (3 + counts) + counts);

    let one = ask(1).stats.files.clone().unwrap();
    assert_eq!(one.top.len(), 1);
    let all = example::snapshot().files.unwrap().total;
    assert_eq!(one.top[0].counts.pages_added.unwrap() + one.rest.pages_added.unwrap(), all.filled());
}

/// Every field of `ours` has the same value in `stats`; proto3's JSON writes 64-bit numbers as text.
fn compare(path: &str, ours: &serde_json::Value, stats: &serde_json::Value, compared: &mut usize) {
    use serde_json::Value;
    match (ours, stats) {
        (Value::Object(fields), _) => {
            fields.iter().for_each(|(k, v)| compare(&format!("{path}/{k}"), v, &stats[k], compared));
        }
        (Value::Array(items), Value::Array(others)) => {
            assert_eq!(items.len(), others.len(), "{path}");
            items.iter().zip(others).for_each(|(a, b)| compare(path, a, b, compared));
        }
        (Value::String(text), Value::Number(n)) => {
            assert_eq!(text, &n.to_string(), "{path}");
            *compared += 1;
        }
        _ => {
            assert_eq!(ours.as_f64(), stats.as_f64(), "{path}");
            assert_eq!(ours.as_str(), stats.as_str(), "{path}");
            *compared += 1;
        }
    }
}

#[test]
fn filters_choose_modules_labels_and_processes() {
    let api = api_over(vec![example::snapshot()]);
    let by_label = |name: &str, value: &str| rpc::GetMetricsRequest {
        label_filters: [(name.to_owned(), value.to_owned())].into(),
        ..Default::default()
    };
    let names = |r: &rpc::GetMetricsRequest| -> Vec<String> {
        get_metrics(&api, r).metric_sets[0].metrics.iter().map(|m| m.name.clone()).collect()
    };
    assert_eq!(names(&by_label("advice", "willneed")), ["ebpf_fadvise_advice_total"]);
    let by_cause = names(&by_label("cause", "prefetch"));
    assert_eq!(
        by_cause,
        [
            "ebpf_page_cache_adds_total",
            "ebpf_file_group_page_cache_adds_total",
            "ebpf_file_group_page_cache_adds_total"
        ]
    );
    assert_eq!(names(&by_label("db", "a \"b\"\\\n")).len(), 5 + 3 + 2);
    assert_eq!(names(&by_label("cause", "none")), [""; 0]);
    let mut both = by_label("cause", "read");
    both.label_filters.insert("le".into(), "+Inf".into());
    assert_eq!(names(&both), [""; 0]);

    let unknown = rpc::GetMetricsRequest { modules: vec!["iomonitor".into(), "net".into()], ..Default::default() };
    let failure = api.get_metrics(&unknown).unwrap_err();
    assert_eq!(failure.code, Code::NotFound);
    assert!(failure.message.contains("\"net\"") && failure.message.contains("iomonitor"), "{failure}");

    let rows = |include_process_stats, pids: &[u32]| {
        let request = rpc::GetIOStatsRequest { include_process_stats, pids: pids.to_vec(), ..Default::default() };
        let answer = api.get_io_stats(&request).unwrap();
        answer.stats.fadvise.process_stats.iter().map(|r| r.pid).collect::<Vec<_>>()
    };
    assert_eq!(rows(false, &[]), [0u32; 0]);
    assert_eq!(rows(false, &[4711]), [0u32; 0]);
    assert_eq!(rows(true, &[]), [4711, 0]);
    assert_eq!(rows(true, &[4711, 1]), [4711]);
}

#[test]
fn a_time_range_is_answered_from_the_history() {
    let api = api_over(ten());
    let sequences = |range| {
        let answer = get_metrics(&api, &rpc::GetMetricsRequest { time_range: range, ..Default::default() });
        assert!(!answer.truncated);
        answer.metric_sets.iter().map(|s| s.sequence).collect::<Vec<_>>()
    };
    assert_eq!(sequences(range(Some(3), Some(6))), [3, 4, 5], "start inclusive, end exclusive, oldest first");
    assert_eq!(sequences(range(Some(8), None)), [8, 9, 10]);
    assert_eq!(sequences(range(None, Some(3))), [1, 2]);
    assert_eq!(sequences(range(Some(11), None)), [0; 0]);

    let stats = |range| api.get_io_stats(&rpc::GetIOStatsRequest { time_range: range, ..Default::default() });
    let answer = stats(range(Some(3), Some(9))).unwrap();
    assert_eq!(answer.sequence, 8);
    let (cache, fadvise) = (&answer.stats.cache, &answer.stats.fadvise);
    assert_eq!((cache.read_attempts, cache.misses, fadvise.total_calls), (Some(200), Some(50), 5));
    assert_eq!((cache.miss_rate_percent, cache.hit_rate_percent), (Some(25.0), Some(75.0)));
    assert_eq!(cache.pages_added, Some(0));
    assert_eq!(answer.stats.memory.direct_reclaim_processes, Some(6));
    let one = stats(range(Some(5), Some(6))).unwrap();
    assert_eq!(one.stats.cache.read_attempts, Some(0), "one collection has not grown");
    assert_eq!(one.stats.cache.hit_rate_percent, None, "of nothing there is no rate");
    assert_eq!(stats(range(Some(11), None)).unwrap_err().code, Code::NotFound);

    for bad in [range(Some(3), Some(3)), range(Some(4), Some(3))] {
        let request = rpc::GetMetricsRequest { time_range: bad.clone(), ..Default::default() };
        assert_eq!(api.get_metrics(&request).unwrap_err().code, Code::InvalidArgument);
        assert_eq!(stats(bad).unwrap_err().code, Code::InvalidArgument);
    }
    for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000), (0, i32::MIN)] {
        let time = Timestamp { seconds, nanos, ..Default::default() };
        let bad = rpc::TimeRange { end: Some(time).into(), ..Default::default() };
        match stats(Some(bad).into()) {
            Err(failure) => assert!(matches!(failure.code, Code::InvalidArgument | Code::NotFound), "{failure}"),
            Ok(_) => assert_eq!((seconds, nanos), (i64::MAX, 0), "a time that this system can name"),
        }
    }
}

#[test]
fn growth_counts_processes_that_came_and_went() {
    let row = |pid, calls, success| ProcessRow { pid, comm: "x".into(), calls, success, ..Default::default() };
    let after = |success, failed, processes| {
        let mut s = example::snapshot();
        s.say("ebpf_fadvise_calls_total", &[success + failed]);
        s.say("ebpf_fadvise_success_total", &[success]);
        s.say("ebpf_fadvise_failed_total", &[failed]);
        Snapshot { processes: Some(processes), ..s }
    };
    // 1 goes on, 2 is forgotten with one more call, 3 is new, 4 is another process with an old id.
    let first = after(100, 0, vec![row(1, 40, 40), row(2, 50, 50), row(4, 10, 10)]);
    let last = after(110, 3, vec![row(0, 61, 61), row(1, 45, 45), row(3, 4, 3), row(4, 3, 1)]);
    let (_, growth, processes) = convert::growth([last, first].into_iter()).unwrap();
    let grown = |name| crate::metrics::snapshot::find(&growth, name).unwrap().total();
    assert_eq!((grown("ebpf_fadvise_success_total"), grown("ebpf_fadvise_failed_total")), (10, 3));
    let rows: Vec<_> = processes.iter().map(|r| (r.pid, r.calls, r.success)).collect();
    assert_eq!(rows, [(1, 5, 5), (3, 4, 3), (4, 3, 1), (0, 1, 1)]);
}

#[test]
fn a_large_answer_keeps_the_newest() {
    let base = example::snapshot();
    let nth =
        |n: u64| Snapshot { sequence: n, collected_at: base.collected_at + Duration::from_millis(n), ..base.clone() };
    let answer = super::metrics_of(&base, (1..=900).rev().map(nth), &Default::default()).unwrap();
    assert!(answer.truncated);
    let sequences: Vec<u64> = answer.metric_sets.iter().map(|s| s.sequence).collect();
    assert!(sequences.is_sorted() && sequences.last() == Some(&900), "{sequences:?}");
    let size = answer.compute_size();
    assert!(size <= ANSWER_MAX && size > ANSWER_MAX - (64 << 10), "{size} bytes, {} sets", sequences.len());
}

#[test]
fn a_stream_wants_an_interval_and_known_modules() {
    let api = api_over(vec![example::snapshot()]);
    let request = |interval_seconds| rpc::StreamMetricsRequest { interval_seconds, ..Default::default() };
    for bad in [0, 3601, u32::MAX] {
        assert_eq!(api.check_stream(&request(bad)).unwrap_err().code, Code::InvalidArgument);
    }
    assert_eq!(api.check_stream(&request(3600)), Ok(Duration::from_secs(3600)));
    let unknown = rpc::StreamMetricsRequest { modules: vec!["x".into()], ..request(1) };
    assert_eq!(api.check_stream(&unknown).unwrap_err().code, Code::NotFound);
    let messages = api.stream(&api.newest(), &request(1)).unwrap();
    assert_eq!(messages.len(), 1);
    let sets = get_metrics(&api, &Default::default()).metric_sets;
    // NaN is not equal to itself, and labels have no order.
    let numbers = |set: &pb::MetricSet| {
        let mut set = set.clone();
        set.metrics.iter_mut().filter(|m| m.value.is_nan()).for_each(|m| m.value = f64::MAX);
        set
    };
    assert_eq!(numbers(&messages[0].metric_set), numbers(&sets[0]));
}

#[test]
fn the_status_tells_each_module() {
    let mut snapshot = example::snapshot();
    snapshot.modules[0].last_error = Some("read map".into());
    let api = api_over(vec![snapshot]);
    let answer = api.get_module_status(&Default::default()).unwrap();
    let [module] = &answer.modules[..] else { panic!("{answer}") };
    assert_eq!((module.name.as_str(), module.enabled, module.running), ("iomonitor", true, true));
    assert_eq!(module.last_error, "read map");
    let system = &answer.system_status;
    let series = example::snapshot().modules[0].metric_count as u32;
    assert_eq!((module.metric_count, system.total_metrics, system.active_modules), (series, series, 1));
    assert!(system.ebpf_supported);
    assert_eq!(system.kernel_version, os::kernel_release());
    let unknown = rpc::GetModuleStatusRequest { modules: vec!["memory".into()], ..Default::default() };
    assert_eq!(api.get_module_status(&unknown).unwrap_err().code, Code::NotFound);
}

#[test]
fn health_is_that_of_the_health_page() {
    let mut snapshot = example::snapshot();
    snapshot.modules[0].probes[1].mode = None;
    snapshot.modules[0].probes[1].failures = vec![("tracepoint", "EACCES".into())];
    let api = api_over(vec![snapshot]);
    let health = api.get_health(&Default::default());
    assert_eq!(health.status, rpc::HealthStatus::HEALTH_STATUS_DEGRADED.into());
    assert_eq!(health.message, "1 of 2 probes not attached: cache_fill (tracepoint: EACCES)");
    let request = rpc::GetHealthRequest { include_diagnostics: true, ..Default::default() };
    let more = api.get_health(&request).message;
    assert!(more.starts_with(&health.message), "{more}");
    assert!(more.contains("fadvise: tracepoint; cache_fill: not attached (tracepoint: EACCES)"), "{more}");
    assert_eq!(api.serving("", &["a"]), Some(true), "degraded is serving");
    assert_eq!((api.serving("a", &["a"]), api.serving("b", &["a"])), (Some(true), None));
}

#[test]
fn only_who_is_allowed_may_configure() {
    let api = |allow| Api { allow: Mutex::new(allow), ..api_over(vec![example::snapshot()]) };
    let caller = |loopback, authenticated| Caller { peer: "test".into(), loopback, authenticated };
    let request = |module: &str, enabled, json: &str| rpc::ConfigureModuleRequest {
        module: module.into(),
        enabled,
        config_json: json.into(),
        ..Default::default()
    };
    let ask = |api: &Api, caller: &Caller, request: &rpc::ConfigureModuleRequest| {
        let result = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&result);
        api.configure(caller, || Ok(request.clone()), move |r| *slot.lock().unwrap() = Some(r.map_err(|f| f.code)));
        // Without a failure the collector, which has ended here, would be asked.
        result.lock().unwrap().take().unwrap().unwrap_err()
    };
    let good = request("iomonitor", true, "");
    for (allow, loopback, authenticated, permitted) in [
        (AllowConfigure::Off, true, true, false),
        (AllowConfigure::Loopback, true, false, true),
        (AllowConfigure::Loopback, false, true, false),
        (AllowConfigure::Mtls, true, false, false),
        (AllowConfigure::Mtls, false, true, true),
        (AllowConfigure::Any, false, false, true),
    ] {
        let code = ask(&api(allow), &caller(loopback, authenticated), &good);
        let expected = if permitted { Code::Unavailable } else { Code::PermissionDenied };
        assert_eq!(code, expected, "{allow:?} {loopback} {authenticated}");
    }
    // What is asked for is not even read then.
    let nobody = api(AllowConfigure::Off);
    nobody.configure(
        &caller(true, true),
        || panic!("read"),
        |r| assert_eq!(r.unwrap_err().code, Code::PermissionDenied),
    );
    let api = api(AllowConfigure::Loopback);
    let me = caller(true, false);
    assert_eq!(ask(&api, &me, &request("none", true, "")), Code::NotFound);
    assert_eq!(ask(&api, &me, &request("iomonitor", false, "{}")), Code::InvalidArgument);
    assert_eq!(ask(&api, &me, &request("iomonitor", true, r#"{"probes":[]}"#)), Code::InvalidArgument);
}

#[test]
fn fields_have_the_numbers_of_the_contract() {
    // One of each kind that existing clients read, by the bytes on the wire.
    let mut bytes = Vec::new();
    let metric = pb::Metric { value: 1.5, type_: pb::MetricType::METRIC_TYPE_GAUGE.into(), ..Default::default() };
    metric.write_to(&mut CodedOutputStream::vec(&mut bytes)).unwrap();
    assert_eq!(bytes, [&[0x11][..], &1.5f64.to_le_bytes(), &[0x18, 2]].concat());
}
