//! The exporter to BanyanDB, against a server as careless as the real one (tests/common/banyandb.rs): nothing may be
//! lost, nothing written twice, whatever happens in between.

mod common;
#[path = "common/export.rs"]
mod export;
#[path = "common/identity.rs"]
mod identity;
#[path = "common/banyandb.rs"]
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ebpf_sidecar::config::{BanyanDb as Settings, Config};
use ebpf_sidecar::export::banyandb::proto::database::FieldType;
use ebpf_sidecar::export::banyandb::proto::measure::{QueryRequest, QueryResponse, query_request};
use ebpf_sidecar::export::banyandb::proto::model::{Status, TagProjection, TimeRange, tag_projection};
use ebpf_sidecar::export::banyandb::{self, method};
use ebpf_sidecar::export::prometheus;
use ebpf_sidecar::metrics::cell::SnapshotCell;
use ebpf_sidecar::metrics::export::BANYANDB as STATE;
use ebpf_sidecar::metrics::snapshot::{Family, Series, Snapshot, Value};
use ebpf_sidecar::server::grpc::stubs::called;
use grpcio::RpcStatusCode;
use protobuf::well_known_types::timestamp::Timestamp;

use common::{Agent, Metrics, sys};
use export::{LIMIT, Random, collection, seed};
use identity::{Identity, YEAR};
use server::{BanyanDb, Fault, Key};

type Setup = export::Setup<Key>;

fn settings(endpoint: &str) -> Settings {
    Settings {
        endpoint: endpoint.into(),
        node: Some("n1".into()),
        timeout: Duration::from_secs(2),
        batch_size: 500,
        flush_interval: Duration::from_millis(50),
        ..Config::default().export.banyandb
    }
}

/// What the exporter says of itself.
fn own_metrics() -> Metrics {
    export::own_metrics(&STATE)
}

fn wait_until(what: &str, done: impl FnMut() -> bool) {
    export::wait_until(&STATE, what, done);
}

/// The points that a collection is, from what Prometheus would be shown.
fn points_of(snapshot: &Snapshot) -> BTreeMap<Key, f64> {
    let since = snapshot.collected_at.duration_since(std::time::UNIX_EPOCH).unwrap();
    let ms = since.as_millis() as i64;
    let base = ["n1".to_string(), snapshot.scope.clone()];
    let mut points = BTreeMap::new();
    for (series, value) in Metrics::parse(&prometheus::text(snapshot)).0 {
        let (name, labels) = series.split_once('{').unwrap_or((&series, "}"));
        // No value in the example has a comma or an equals sign.
        let labels = labels.strip_suffix('}').unwrap_or_default().split(',').filter_map(|l| l.split_once('='));
        let mut labels: Vec<(&str, String)> = labels.map(|(k, v)| (k, unquoted(v))).collect();
        // The names in a group's pattern are one tag, after whose pattern it is.
        if name.starts_with("ebpf_file_group_") {
            let (names, others): (Vec<_>, Vec<_>) =
                labels.into_iter().partition(|(k, _)| !["preset", "cause"].contains(k));
            let group: Vec<String> = names.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let group = if names.is_empty() { others[0].1.clone() } else { group.join(",") };
            labels = others;
            labels.insert(1, ("group", group));
        }
        let tags = base.iter().cloned().chain(labels.into_iter().map(|(_, v)| v)).collect();
        // The scope is a tag of all.
        if !value.is_nan() && name != SCOPE {
            points.insert((name.to_owned(), tags, ms), value);
        }
    }
    for row in snapshot.processes.iter().flatten() {
        let comm = if row.pid == 0 { "other".to_owned() } else { row.comm.clone() };
        let tags = base.iter().cloned().chain([comm]).collect();
        points.insert(("ebpf_fadvise_process_calls".into(), tags, ms), row.calls as f64);
    }
    points
}

/// The value of a label, as the exposition has it.
fn unquoted(text: &str) -> String {
    serde_json::from_str(text).unwrap() // which escapes the same
}

impl Setup {
    fn start(settings: &Settings) -> Self {
        Self::of(&STATE, "banyandb", settings.unhealthy_after, points_of, |cell| banyandb::start(settings, cell))
    }

    fn sent(&self) -> usize {
        self.grown("points_sent_total", "")
    }

    fn dropped(&self, reason: &str) -> usize {
        self.grown_for("points_dropped_total", reason)
    }

    fn failed(&self, reason: &str) -> usize {
        self.grown_for("points_failed_total", reason)
    }

    /// Waits until the server has what it should have, all of it and nothing else.
    #[track_caller]
    fn arrived(&self, server: &BanyanDb) {
        self.arrived_but(server, &[]);
    }

    #[track_caller]
    fn arrived_but(&self, server: &BanyanDb, given_up: &[Key]) {
        let mut truth = self.truth.clone();
        for key in given_up {
            truth.remove(key);
        }
        let deadline = Instant::now() + LIMIT;
        loop {
            let waiting = own_metrics().get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}");
            let late = Instant::now() > deadline;
            if waiting > 0.0 && !late {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            let stored = server.store().points();
            if stored == truth && waiting == 0.0 {
                break;
            }
            if late {
                let lost: Vec<_> = truth.iter().filter(|(k, v)| stored.get(*k) != Some(v)).take(5).collect();
                let more: Vec<_> = stored.iter().filter(|(k, v)| truth.get(*k) != Some(v)).take(5).collect();
                panic!(
                    "{} of {} points are stored, {waiting} wait; lost: {lost:?}; too many: {more:?}; trouble: {:?}",
                    stored.len(),
                    truth.len(),
                    STATE.trouble(Instant::now())
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(server.store().violations, [""; 0]);
    }
}

#[test]
fn every_sample_arrives_with_its_labels_in_a_schema_of_its_own() {
    let server = BanyanDb::start();
    let mut setup = Setup::start(&settings(&server.endpoint()));
    for _ in 0..20 {
        setup.collect();
    }
    setup.arrived(&server);
    assert_eq!(setup.sent(), setup.truth.len());
    let store = server.store();
    let group = store.group("ebpf-metrics").unwrap();
    assert_eq!((group.resource_opts.shard_num, group.resource_opts.ttl.num), (1, 7));
    let measure = store.measure("ebpf_page_cache_adds_total").unwrap();
    assert_eq!(measure.entity.tag_names, ["node", "scope", "cause"]);
    assert_eq!(measure.tag_families[0].name, "default");
    assert_eq!(measure.fields[0].field_type.enum_value(), Ok(FieldType::FIELD_TYPE_FLOAT));
    assert!(store.largest <= 500, "a batch of {}", store.largest);
    drop(store);
    let metrics = own_metrics();
    assert!(metrics.get("ebpf_sidecar_export_last_success_timestamp_seconds{exporter=\"banyandb\"}") > 1.7e9);
    assert!(metrics.get("ebpf_sidecar_export_batch_seconds_count{exporter=\"banyandb\"}") > 0.0);
    setup.exporter.stop();
    assert!(STATE.families().is_empty(), "no metrics without an exporter");
}

const FAULTS: [Fault; 22] = [
    Fault::KillBefore,
    Fault::KillAfter,
    Fault::KillUnanswered,
    Fault::Hang,
    Fault::Slow,
    Fault::Refuse,
    Fault::Silent,
    Fault::Fails(RpcStatusCode::UNAVAILABLE),
    Fault::Fails(RpcStatusCode::RESOURCE_EXHAUSTED),
    Fault::Fails(RpcStatusCode::INTERNAL),
    Fault::Removed,
    Fault::Touched,
    Fault::Late,
    Fault::Status(Status::STATUS_NOT_FOUND),
    Fault::Status(Status::STATUS_EXPIRED_SCHEMA),
    Fault::Status(Status::STATUS_SCHEMA_NOT_APPLIED),
    Fault::Status(Status::STATUS_DISK_FULL),
    Fault::Status(Status::STATUS_INTERNAL_ERROR),
    Fault::Status(Status::STATUS_INVALID_TIMESTAMP),
    Fault::Status(Status::STATUS_METADATA_REQUIRED),
    Fault::Status(Status::STATUS_VERSION_UNSUPPORTED),
    Fault::Status(Status::STATUS_VERSION_DEPRECATED),
];

/// `TEST_SEED` repeats a run.
#[test]
fn no_point_is_lost_or_doubled_through_a_hundred_faults() {
    let mut random = Random(seed());
    let server = BanyanDb::start();
    server.store().flush_after = Duration::from_millis(500);
    let mut settings = settings(&server.endpoint());
    settings.timeout = Duration::from_secs(3);
    let mut setup = Setup::start(&settings);
    for n in 0..100 {
        // Each once, then any.
        let fault = FAULTS[if n < FAULTS.len() { n } else { random.below(FAULTS.len()) }];
        server.store().fault = Some(fault);
        for _ in 0..1 + random.below(3) {
            setup.collect();
        }
        wait_until(&format!("fault {n}, {fault:?}, to happen"), || server.store().fault.is_none());
    }
    // Statuses that went with a connection were not seen: these are answered once more.
    for (status, reason) in [
        (Status::STATUS_DISK_FULL, "disk_full"),
        (Status::STATUS_INTERNAL_ERROR, "internal_error"),
        (Status::STATUS_NOT_FOUND, "not_found"),
        (Status::STATUS_EXPIRED_SCHEMA, "expired_schema"),
    ] {
        wait_until(&format!("{reason} to be seen"), || {
            let seen = setup.failed(reason) > 0;
            if !seen && server.store().fault.is_none() {
                server.store().fault = Some(Fault::Status(status));
                setup.collect();
            }
            seen
        });
    }
    setup.collect();
    // A point refused for good is missing, unless it was refused when it was sent again. What was acknowledged before a
    // kill is sent again when the exporter has noticed that.
    let mut missing: Vec<Key> = Vec::new();
    wait_until("every point that was not refused to be stored", || {
        if own_metrics().get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}") > 0.0 {
            return false;
        }
        let store = server.store();
        let stored = store.points();
        missing = setup.truth.keys().filter(|k| !stored.contains_key(*k)).cloned().collect();
        missing.iter().all(|k| store.given_up.contains(k))
    });
    let refused = setup.dropped("refused");
    println!("{} points of {} collections, {refused} refused for good", setup.truth.len(), setup.made);
    assert!(missing.len() <= refused, "{} are missing, {refused} are counted", missing.len());
    setup.arrived_but(&server, &missing);
    let (sent, all) = (setup.sent(), setup.truth.len());
    assert!(sent <= all && sent + refused >= all, "{sent} of {all} sent, {refused} refused");
    for reason in ["queue_limit", "queue_bytes", "overrun", "schema", "panic", "stopped"] {
        assert_eq!(setup.dropped(reason), 0, "{reason}");
    }
    for reason in ["connection", "no_answer", "disk_full", "internal_error", "not_found", "expired_schema"] {
        assert!(setup.failed(reason) > 0, "{reason} was not among the faults");
    }
    setup.exporter.stop();
}

/// Of three kinds: of processes, a counter, a part of a histogram.
const MEASURES: [&str; 3] = ["ebpf_fadvise_process_calls", "ebpf_cache_hits_total", "ebpf_read_wait_seconds_bucket"];

impl Setup {
    /// While these measures fail all others arrive, collection after collection. What fails waits.
    #[track_caller]
    fn all_but(&mut self, server: &BanyanDb, failing: &[&str], what: &str) {
        let already = server.store().points();
        let waits = |k: &Key| failing.contains(&k.0.as_str()) && !already.contains_key(k);
        for _ in 0..3 {
            for _ in 0..2 {
                self.collect();
            }
            let sound = self.truth.keys().filter(|k| !waits(k)).count();
            wait_until(what, || self.sent() == sound);
        }
        let (failed, mut sound) = (self.truth.keys().filter(|k| waits(k)).count(), self.truth.clone());
        sound.retain(|k, _| !waits(k));
        assert!(failed > 0 && server.store().points() == sound, "{what}: not all others, or more than them");
        // It is told last. What was acknowledged before a connection ended may wait again too.
        wait_until(what, || {
            own_metrics().get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}") as usize >= failed
        });
    }

    fn drops_nothing(&self) {
        for reason in ["queue_limit", "queue_bytes", "overrun", "schema", "refused", "panic", "stopped"] {
            assert_eq!(self.dropped(reason), 0, "{reason}");
        }
    }
}

#[test]
fn what_fails_of_some_measures_waits_and_the_others_go_on() {
    let server = BanyanDb::start();
    let mut setup = Setup::start(&settings(&server.endpoint()));
    setup.arrived(&server);
    let statuses = [
        (Status::STATUS_UNSPECIFIED, "no_answer"),
        (Status::STATUS_NOT_FOUND, "not_found"),
        (Status::STATUS_EXPIRED_SCHEMA, "expired_schema"),
        (Status::STATUS_SCHEMA_NOT_APPLIED, "schema_not_applied"),
        (Status::STATUS_DISK_FULL, "disk_full"),
        (Status::STATUS_INTERNAL_ERROR, "internal_error"),
        (Status::STATUS_VERSION_DEPRECATED, "version_deprecated"),
    ];
    for (i, (status, reason)) in statuses.into_iter().enumerate() {
        // One by one, and all of them.
        let failing = if i < MEASURES.len() { &MEASURES[i..=i] } else { &MEASURES };
        server.store().failing = failing.iter().map(|m| (m.to_string(), status)).collect();
        let before = setup.failed(reason);
        setup.all_but(&server, failing, reason);
        assert!(setup.failed(reason) > before, "{reason}");
        assert_eq!(STATE.trouble(Instant::now() + Duration::from_secs(3600)), None, "the others are sent");
        server.store().failing.clear();
        setup.arrived(&server);
    }
    setup.drops_nothing();
    assert_eq!(setup.sent(), setup.truth.len());
    setup.exporter.stop();
}

#[test]
fn a_measure_for_which_the_server_ends_every_stream_waits_and_the_others_go_on() {
    let server = BanyanDb::start();
    let mut setup = Setup::start(&settings(&server.endpoint()));
    setup.arrived(&server);
    let codes = [RpcStatusCode::INTERNAL, RpcStatusCode::UNAVAILABLE, RpcStatusCode::UNKNOWN];
    for (failing, code) in [(&MEASURES[..1], codes[0]), (&MEASURES[..], codes[1]), (&MEASURES[1..], codes[2])] {
        server.store().ending = failing.iter().map(|m| (m.to_string(), code)).collect();
        let before = setup.failed("stream_ended");
        setup.all_but(&server, failing, "streams that are ended");
        assert!(setup.failed("stream_ended") > before);
        assert_eq!(STATE.trouble(Instant::now() + Duration::from_secs(3600)), None, "the others are sent");
        server.store().ending.clear();
        setup.arrived(&server);
    }
    // For all of them it is the server that fails, and nothing is put aside.
    let names: Vec<String> = setup.truth.keys().map(|k| k.0.clone()).collect();
    server.store().ending = names.into_iter().map(|m| (m, RpcStatusCode::INTERNAL)).collect();
    let before = setup.failed("stream_ended");
    setup.collect();
    let failures = setup.failed("connection");
    wait_until("it is tried again and again", || setup.failed("connection") > failures + 5);
    assert_eq!(setup.failed("stream_ended"), before);
    server.store().ending.clear();
    setup.arrived(&server);
    setup.drops_nothing();
    assert_eq!(setup.sent(), setup.truth.len());
    setup.exporter.stop();
}

#[test]
fn a_measure_that_takes_the_server_down_waits_and_the_others_go_on() {
    let server = BanyanDb::start();
    let mut setup = Setup::start(&settings(&server.endpoint()));
    setup.arrived(&server);
    server.store().deadly = [MEASURES[0].to_string()].into();
    let others = |mut points: BTreeMap<Key, f64>| {
        points.retain(|key, _| key.0 != MEASURES[0]);
        points
    };
    for _ in 0..4 {
        setup.collect();
        // What it has in memory goes with it each time, and is sent again.
        wait_until("all others are there", || others(server.store().points()) == others(setup.truth.clone()));
    }
    assert!(setup.failed("stream_ended") > 0, "it was found");
    server.store().deadly.clear();
    setup.arrived(&server);
    setup.drops_nothing();
    assert_eq!(setup.sent(), setup.truth.len());
    setup.exporter.stop();
}

#[test]
fn a_measure_that_cannot_be_created_or_is_not_in_effect_does_not_keep_the_others_waiting() {
    for code in [RpcStatusCode::INTERNAL, RpcStatusCode::INVALID_ARGUMENT, RpcStatusCode::PERMISSION_DENIED] {
        let server = BanyanDb::start();
        server.store().refusing = MEASURES[..2].iter().map(|m| (m.to_string(), code)).collect();
        server.store().lagging = MEASURES[2..].iter().map(|m| m.to_string()).collect();
        let mut setup = Setup::start(&settings(&server.endpoint()));
        setup.all_but(&server, &MEASURES, &format!("{code:?}"));
        server.store().refusing.clear();
        server.store().lagging.clear();
        setup.arrived(&server);
        setup.drops_nothing();
        setup.exporter.stop();
    }
    // Where none can be, it is the server that is in trouble.
    let server = BanyanDb::start();
    let scratch = Setup::start(&settings(&server.endpoint()));
    scratch.arrived(&server);
    let names: std::collections::BTreeSet<String> = scratch.truth.keys().map(|k| k.0.clone()).collect();
    scratch.exporter.stop();
    server.store().refusing = names.into_iter().map(|m| (m, RpcStatusCode::INTERNAL)).collect();
    let settings = Settings { unhealthy_after: Duration::from_millis(10), ..settings(&server.endpoint()) };
    let mut setup = Setup::start(&settings);
    wait_until("trouble", || STATE.trouble(Instant::now()).is_some_and(|t| t.contains("INTERNAL: not ebpf_")));
    server.store().refusing.clear();
    setup.collect();
    setup.arrived(&server);
    setup.exporter.stop();
}

#[test]
fn when_nothing_is_taken_all_of_it_waits_and_arrives_later() {
    let server = BanyanDb::start();
    let settings = Settings { unhealthy_after: Duration::from_millis(10), ..settings(&server.endpoint()) };
    let mut setup = Setup::start(&settings);
    setup.arrived(&server);
    let before = setup.truth.clone();
    let names: std::collections::BTreeSet<String> = before.keys().map(|k| k.0.clone()).collect();
    server.store().failing = names.into_iter().map(|m| (m, Status::STATUS_DISK_FULL)).collect();
    for _ in 0..5 {
        setup.collect();
    }
    wait_until("trouble", || STATE.trouble(Instant::now()).is_some_and(|t| t.contains("disk_full")));
    // Each was tried, and some of them again.
    let new = setup.truth.len() - before.len();
    wait_until("all to fail", || setup.failed("disk_full") > new);
    assert!(server.store().points() == before);
    let queued = own_metrics().get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}") as usize;
    assert_eq!(queued, new);
    server.store().failing.clear();
    setup.arrived(&server);
    assert_eq!(setup.sent(), setup.truth.len());
    assert_eq!(STATE.trouble(Instant::now() + Duration::from_secs(60)), None);
    setup.drops_nothing();
    setup.exporter.stop();
}

#[test]
fn what_fails_for_long_is_dropped_before_anything_sound() {
    let server = BanyanDb::start();
    let mut setup = Setup::start(&Settings { queue_bytes: 60_000, ..settings(&server.endpoint()) });
    setup.arrived(&server);
    let name = MEASURES[0];
    server.store().failing.insert(name.into(), Status::STATUS_INTERNAL_ERROR);
    let mut sound = setup.truth.len();
    while setup.dropped("queue_bytes") == 0 {
        for _ in 0..3 {
            setup.collect();
            sound += points_of(&collection(setup.made)).keys().filter(|k| k.0 != name).count();
        }
        wait_until("the sound points", || setup.sent() == sound);
        let bytes = own_metrics().get("ebpf_sidecar_export_queue_bytes{exporter=\"banyandb\"}");
        assert!(bytes <= 60_000.0, "{bytes}");
    }
    server.store().failing.clear();
    wait_until("the rest", || own_metrics().get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}") == 0.0);
    let stored = server.store().points();
    let missing: Vec<&Key> = setup.truth.keys().filter(|k| !stored.contains_key(*k)).collect();
    assert!(missing.iter().all(|k| k.0 == name), "{missing:?}");
    assert_eq!(missing.len(), setup.dropped("queue_bytes"));
    setup.exporter.stop();
}

#[test]
fn a_server_that_cannot_tell_when_its_schema_is_loaded_loses_nothing_either() {
    let server = BanyanDb::start();
    {
        let mut store = server.store();
        store.barrier = false;
        store.load_time = Duration::from_millis(700);
    }
    let mut setup = Setup::start(&settings(&server.endpoint()));
    for _ in 0..5 {
        setup.collect();
    }
    setup.arrived(&server);
    assert!(setup.failed("schema_not_applied") > 0, "it lost none, so that this shows nothing");
    setup.exporter.stop();
}

#[test]
fn an_outage_leaves_no_gap_whether_the_server_was_killed_or_away() {
    let server = BanyanDb::start();
    let mut setup = Setup::start(&settings(&server.endpoint()));
    setup.arrived(&server);
    setup.collect();
    setup.arrived(&server);
    // Acknowledged, but only in memory: the next batch goes to a server that has forgotten them.
    server.kill();
    assert!(server.store().points().is_empty());
    setup.arrived(&server);
    server.refuse(Duration::from_secs(2));
    for _ in 0..200 {
        setup.collect();
    }
    setup.arrived(&server);
    assert_eq!(setup.sent(), setup.truth.len());
    setup.exporter.stop();
}

#[test]
fn the_collector_never_waits_for_a_server_that_hangs() {
    let server = BanyanDb::start();
    let mut setup = Setup::start(&settings(&server.endpoint()));
    setup.arrived(&server);
    server.store().fault = Some(Fault::Hang);
    setup.collect();
    wait_until("the hang", || server.store().fault.is_none());
    // More than a subscriber may leave waiting: they are taken in while it hangs.
    for _ in 0..10 {
        let before = setup.made;
        for _ in 0..20 {
            setup.collect();
        }
        let queued = || own_metrics().get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}") as usize;
        let at_least = (setup.made - before) as usize;
        wait_until("the collections to be taken in", || queued() >= at_least);
    }
    setup.arrived(&server);
    assert_eq!(setup.dropped("overrun"), 0);
    setup.exporter.stop();
}

#[test]
fn a_schema_that_differs_is_left_alone_and_gets_no_points() {
    let server = BanyanDb::start();
    let (name, other) = ("ebpf_cache_hits_total", "ebpf_cache_misses_total");
    {
        // Somebody has made the group and a measure of the same name already.
        let scratch = BanyanDb::start();
        let setup = Setup::start(&settings(&scratch.endpoint()));
        setup.arrived(&scratch);
        setup.exporter.stop();
        let scratch = scratch.store();
        let mut group = scratch.group("ebpf-metrics").unwrap().clone();
        group.resource_opts.mut_or_insert_default().shard_num = 5;
        let mut measure = scratch.measure(name).unwrap().clone();
        measure.fields[0].field_type = FieldType::FIELD_TYPE_INT.into();
        let same = scratch.measure(other).unwrap().clone();
        let mut store = server.store();
        store.create_group(group);
        store.create(measure);
        store.create(same);
    }
    let mut setup = Setup::start(&settings(&server.endpoint()));
    setup.collect();
    let left_out: Vec<Key> = setup.truth.keys().filter(|k| k.0 == name).cloned().collect();
    assert_eq!(left_out.len(), 2);
    setup.arrived_but(&server, &left_out);
    assert_eq!(setup.dropped("schema"), 2);
    let store = server.store();
    assert_eq!(store.measure(name).unwrap().fields[0].field_type.enum_value(), Ok(FieldType::FIELD_TYPE_INT));
    assert_eq!(store.group("ebpf-metrics").unwrap().resource_opts.shard_num, 5);
    drop(store);
    setup.exporter.stop();
}

#[test]
fn the_next_endpoint_is_taken_when_one_fails() {
    let (a, b) = (BanyanDb::start(), BanyanDb::start());
    a.refuse(Duration::from_secs(3600));
    let endpoints = format!("127.0.0.1:{},localhost:{},localhost:{}", common::free_port(), a.port, b.port);
    let mut setup = Setup::start(&settings(&endpoints));
    setup.collect();
    setup.arrived(&b);
    assert!(a.store().points().is_empty());
    setup.exporter.stop();
}

#[test]
fn the_password_is_read_anew_from_its_file() {
    let server = BanyanDb::start();
    server.store().credentials = Some(("agent".into(), "right".into()));
    let dir = common::TempDir::new("banyandb");
    let file = dir.path.join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let settings = Settings {
        username: Some("agent".into()),
        password_file: Some(file.clone()),
        unhealthy_after: Duration::from_millis(10),
        ..settings(&server.endpoint())
    };
    let mut setup = Setup::start(&settings);
    setup.collect();
    let trouble = || STATE.trouble(Instant::now()).unwrap_or_default();
    wait_until("the refusal", || trouble().contains("UNAUTHENTICATED: Invalid credentials"));
    assert!(!trouble().contains("wrong"), "{}", trouble());
    assert_eq!(server.store().messages, 0);
    std::fs::remove_file(&file).unwrap();
    wait_until("the missing file", || trouble().contains("export.banyandb.password_file: "));
    std::fs::write(&file, "right\n").unwrap();
    setup.arrived(&server);
    // While it is connected, too.
    server.store().credentials = Some(("agent".into(), "newer".into()));
    setup.collect();
    wait_until("the refusal", || trouble().contains("UNAUTHENTICATED"));
    std::fs::write(&file, "newer").unwrap();
    setup.arrived(&server);
    assert_eq!(STATE.trouble(Instant::now() + Duration::from_secs(60)), None);
    setup.exporter.stop();
}

#[test]
fn tls_with_a_private_authority_and_a_client_certificate() {
    let ca = Identity::new(1, None, YEAR);
    let (own, other) = (Identity::new(2, Some(&ca), YEAR), Identity::new(3, None, YEAR));
    let required = grpcio::CertificateRequestType::RequestAndRequireClientCertificateAndVerify;
    let identity = Identity::new(4, Some(&ca), YEAR);
    let credentials = grpcio::ServerCredentialsBuilder::new()
        .root_cert(ca.cert_pem(), required)
        .add_cert(identity.cert_pem(), identity.key_pem());
    let server = BanyanDb::with(Some(credentials.build()));
    let dir = common::TempDir::new("banyandb-tls");
    let [ca_file, cert_file, key_file] = ["ca.crt", "tls.crt", "tls.key"].map(|n| dir.path.join(n));
    std::fs::write(&ca_file, other.cert_pem()).unwrap();
    std::fs::write(&cert_file, own.cert_pem()).unwrap();
    let mut settings = Settings { unhealthy_after: Duration::from_millis(10), ..settings(&server.endpoint()) };
    settings.tls.enabled = true;
    settings.tls.ca_file = Some(ca_file.clone());
    settings.tls.cert_file = Some(cert_file);
    settings.tls.key_file = Some(key_file.clone());
    let mut setup = Setup::start(&settings);
    setup.collect();
    let trouble = |words: &str| {
        wait_until(words, || STATE.trouble(Instant::now()).is_some_and(|t| t.contains(words)));
    };
    trouble("export.banyandb.tls.key_file: ");
    std::fs::write(&key_file, other.key_pem()).unwrap();
    trouble("does not belong to the first certificate");
    std::fs::write(&key_file, own.key_pem()).unwrap();
    // The server's certificate is of another authority.
    trouble("certificate verify failed");
    assert_eq!(server.store().messages, 0);
    std::fs::write(&ca_file, [ca.cert_pem(), vec![0]].concat()).unwrap();
    trouble("NUL byte");
    // All files are read for each connection.
    std::fs::write(&ca_file, ca.cert_pem()).unwrap();
    setup.arrived(&server);
    setup.exporter.stop();
}

#[test]
fn the_stop_sends_what_is_left_and_waits_no_longer_than_allowed() {
    let server = BanyanDb::start();
    let patient = Settings { flush_interval: Duration::from_secs(3600), ..settings(&server.endpoint()) };
    let mut setup = Setup::start(&Settings { batch_size: 10_000, ..patient.clone() });
    for _ in 0..3 {
        setup.collect();
    }
    setup.exporter.stop();
    assert_eq!(server.store().points(), setup.truth, "nothing was due before");

    server.refuse(Duration::from_secs(3600));
    let mut setup = Setup::start(&patient);
    setup.collect();
    let began = Instant::now();
    let lost = setup.truth.len();
    STATE.started(patient.unhealthy_after);
    let dropped = "ebpf_sidecar_export_points_dropped_total{exporter=\"banyandb\",reason=\"stopped\"}";
    let before = setup.before.get(dropped);
    setup.exporter.stop();
    assert!(began.elapsed() >= patient.timeout, "it tried");
    STATE.started(patient.unhealthy_after);
    assert_eq!(own_metrics().get(dropped) - before, lost as f64, "and tells what is lost");
    STATE.ended();
}

#[test]
fn what_does_not_fit_into_the_queue_is_dropped_oldest_first_and_counted() {
    let server = BanyanDb::start();
    server.refuse(Duration::from_secs(3600));
    let small = Settings { queue_bytes: 100_000, ..settings(&server.endpoint()) };
    let mut setup = Setup::start(&small);
    let queued = || own_metrics();
    while setup.dropped("queue_bytes") == 0 {
        setup.collect();
        std::thread::sleep(Duration::from_millis(1));
        assert!(queued().get("ebpf_sidecar_export_queue_bytes{exporter=\"banyandb\"}") <= 100_000.0);
    }
    server.accept();
    wait_until("the queue to be sent", || {
        queued().get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}") == 0.0
    });
    let stored = server.store().points();
    let dropped = setup.dropped("queue_bytes");
    assert_eq!(stored.len() + dropped, setup.truth.len());
    let kept: BTreeMap<_, _> = setup.truth.iter().filter(|(k, _)| stored.contains_key(*k)).collect();
    let oldest = kept.keys().map(|k| k.2).min().unwrap();
    assert!(setup.truth.keys().all(|k| stored.contains_key(k) || k.2 <= oldest), "only the oldest are missing");
    setup.exporter.stop();
}

// ---- the agent as a whole ----

fn agent(server: &BanyanDb, more: &[(&str, &str)]) -> Agent {
    let endpoint = server.endpoint();
    let mut settings = vec![
        ("EXPORT_TYPE", "banyandb"),
        ("EXPORT_BANYANDB_ENDPOINT", endpoint.as_str()),
        ("EXPORT_BANYANDB_NODE", "n1"),
        ("EXPORT_BANYANDB_TIMEOUT", "5s"),
        ("EXPORT_BANYANDB_FLUSH_INTERVAL", "200ms"),
        ("COLLECTOR_INTERVAL", "100ms"),
    ];
    settings.extend(more);
    Agent::start(&settings)
}

/// Timestamps of a measure that are stored.
fn times(server: &BanyanDb, name: &str) -> Vec<i64> {
    server.store().points().into_keys().filter(|k| k.0 == name).map(|k| k.2).collect()
}

/// The metric that is no measure: its label is a tag of all.
const SCOPE: &str = "ebpf_sidecar_scope_info";
const SEQUENCE: &str = "ebpf_sidecar_snapshot_sequence";

#[test]
fn the_store_agrees_with_prometheus_and_a_stopped_agent_leaves_nothing_behind() {
    need_bpf!("the_store_agrees_with_prometheus_and_a_stopped_agent_leaves_nothing_behind");
    let server = BanyanDb::start();
    let mut agent = agent(&server, &[]);
    let metrics = agent.wait(|m| {
        m.get(SEQUENCE) > 5.0
            && m.0.get("ebpf_sidecar_export_points_sent_total{exporter=\"banyandb\"}").is_some_and(|sent| *sent > 0.0)
    });
    let last = agent.metrics().get(SEQUENCE);
    sys::kill(agent.child.id(), libc::SIGTERM);
    let status = common::wait_for(&mut agent.child, LIMIT).expect("it does not stop");
    assert!(status.success(), "{}", agent.log());
    let points = server.store().points();
    assert_eq!(server.store().violations, [""; 0]);
    let at = (metrics.get("ebpf_sidecar_snapshot_timestamp_seconds") * 1e3).round() as i64;
    let mut compared = 0;
    for (series, value) in metrics.0.iter().filter(|(s, v)| !v.is_nan() && !s.starts_with(SCOPE)) {
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split(',').filter_map(|l| l.split_once('='));
        let base = ["n1", "host"].map(String::from).into_iter();
        let tags = base.chain(labels.map(|(_, v)| v.trim_matches('"').to_owned())).collect();
        assert_eq!(points.get(&(name.to_owned(), tags, at)), Some(value), "{series}");
        compared += 1;
    }
    assert!(compared > 100, "{compared} compared");
    // Every collection from when the exporter has started up to the stop, each once.
    let sequences: Vec<f64> = points.iter().filter(|(k, _)| k.0 == SEQUENCE).map(|(_, v)| *v).collect();
    assert!(sequences.windows(2).all(|two| two[0] + 1.0 == two[1]), "{sequences:?}");
    assert!(sequences.last().is_some_and(|n| *n >= last), "{sequences:?} up to {last} or more");
}

#[test]
fn health_is_degraded_while_nothing_can_be_sent_and_heals_by_itself() {
    need_bpf!("health_is_degraded_while_nothing_can_be_sent_and_heals_by_itself");
    let server = BanyanDb::start();
    let agent = agent(&server, &[("EXPORT_BANYANDB_UNHEALTHY_AFTER", "1s")]);
    let health = || agent.get("/health");
    let degraded = || health().body.contains("nothing could be sent to BanyanDB");
    wait_until("the first points", || !times(&server, SEQUENCE).is_empty());
    server.refuse(Duration::from_secs(3600));
    wait_until("degraded", degraded);
    let response = health();
    assert_eq!(response.status, 200, "a restart would not help: {}", response.body);
    assert!(response.body.contains("\"status\":\"degraded\""), "{}", response.body);
    server.accept();
    wait_until("healed", || !degraded());
    agent.settled();
    // Nothing is missing of the time in between.
    let newest = agent.metrics().get(SEQUENCE);
    wait_until("the backlog", || {
        let points = server.store().points();
        let sequences: Vec<u64> = points.iter().filter(|(k, _)| k.0 == SEQUENCE).map(|(_, v)| *v as u64).collect();
        sequences.iter().eq((1..=sequences.len() as u64).collect::<Vec<_>>().iter()) && sequences.len() as f64 >= newest
    });
}

#[test]
fn what_a_server_says_neither_forges_nor_floods_the_log() {
    need_bpf!("what_a_server_says_neither_forges_nor_floods_the_log");
    let server = BanyanDb::start();
    let forged = "2026-11-27T00:00:00Z ERROR forged";
    {
        let mut store = server.store();
        store.credentials = Some(("agent".into(), "right".into()));
        store.refusal = format!("no\r\n{forged}\x1b[2J\u{202e}{}", "x".repeat(4000));
    }
    let login = [("EXPORT_BANYANDB_USERNAME", "agent"), ("EXPORT_BANYANDB_PASSWORD", "wrong")];
    let began = Instant::now();
    let agent = agent(&server, &[("EXPORT_BANYANDB_UNHEALTHY_AFTER", "10ms"), login[0], login[1]]);
    wait_until("trouble", || agent.get("/health").body.contains("UNAUTHENTICATED"));
    let health = agent.get("/health").body;
    wait_until("the log", || agent.log().contains("UNAUTHENTICATED"));
    for (what, text) in [("log", agent.log()), ("health", health)] {
        assert!(!text.contains(['\x1b', '\r', '\u{202e}']), "{what}: {text}");
        assert!(text.lines().all(|l| !l.trim_start().starts_with(forged)), "{what}: {text}");
        assert!(!text.contains(&"x".repeat(300)), "{what}: {text}");
    }
    let log = agent.log();
    let lines = log.lines().filter(|l| l.contains("UNAUTHENTICATED")).count() as u64;
    assert!((1..=1 + began.elapsed().as_secs() / 60).contains(&lines), "one a minute: {log}");
}

#[test]
fn an_agent_killed_in_the_middle_of_a_batch_and_started_again_stores_nothing_twice() {
    need_bpf!("an_agent_killed_in_the_middle_of_a_batch_and_started_again_stores_nothing_twice");
    let server = BanyanDb::start();
    // The batch is with the server when the agent dies; the server takes its time to store it.
    let mut first = agent(&server, &[]);
    wait_until("the first points", || !times(&server, SEQUENCE).is_empty());
    server.store().fault = Some(Fault::Slow);
    wait_until("the batch", || server.store().fault.is_none());
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let before = times(&server, SEQUENCE).len();
    let second = agent(&server, &[]);
    wait_until("points of the second", || times(&server, SEQUENCE).len() > before + 5);
    drop(second);
    let points = server.store().points();
    let mut by_time: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for (key, value) in points.iter().filter(|(k, _)| k.0 == SEQUENCE) {
        by_time.entry(key.2).or_default().push(*value);
    }
    assert!(by_time.values().all(|v| v.len() == 1), "{by_time:?}");
    // The sequence begins once more, and only once.
    let restarts = by_time.values().map(|v| v[0]).collect::<Vec<_>>().windows(2).filter(|w| w[1] != w[0] + 1.0).count();
    assert_eq!(restarts, 1, "{by_time:?}");
    assert_eq!(server.store().violations, [""; 0]);
}

// ---- any BanyanDB server ----

/// Asks a server for everything in a measure since `begin`.
struct Reader {
    client: grpcio::Client,
    group: String,
    credentials: Option<(String, String)>,
}

impl Reader {
    fn new(endpoint: &str, group: &str, credentials: Option<(String, String)>, ca: Option<&str>) -> Self {
        let environment = Arc::new(grpcio::EnvBuilder::new().cq_count(1).build());
        let mut builder = grpcio::ChannelBuilder::new(environment).max_receive_message_len(-1);
        if let Some(ca) = ca {
            let pem = std::fs::read(ca).unwrap();
            builder = builder.set_credentials(grpcio::ChannelCredentialsBuilder::new().root_cert(pem).build());
        }
        Self { client: grpcio::Client::new(builder.connect(endpoint)), group: group.into(), credentials }
    }

    /// The points of a measure from this node: tags, milliseconds, value.
    fn points(&self, spec: &(String, Vec<String>), begin: i64, end: i64, node: &str) -> Vec<(Vec<String>, i64, f64)> {
        let at =
            |ms: i64| Timestamp { seconds: ms / 1000, nanos: (ms % 1000 * 1_000_000) as i32, ..Default::default() };
        let range = TimeRange { begin: Some(at(begin)).into(), end: Some(at(end)).into(), ..Default::default() };
        let family = tag_projection::TagFamily { name: "default".into(), tags: spec.1.clone(), ..Default::default() };
        let fields = query_request::FieldProjection { names: vec!["value".into()], ..Default::default() };
        let request = QueryRequest {
            groups: vec![self.group.clone()],
            name: spec.0.clone(),
            time_range: Some(range).into(),
            tag_projection: Some(TagProjection { tag_families: vec![family], ..Default::default() }).into(),
            field_projection: Some(fields).into(),
            limit: 1_000_000,
            ..Default::default()
        };
        let mut option = grpcio::CallOption::default().timeout(LIMIT);
        if let Some((username, password)) = &self.credentials {
            let mut metadata = grpcio::MetadataBuilder::new();
            metadata.add_str("username", username).unwrap().add_str("password", password).unwrap();
            option = option.headers(metadata.build());
        }
        let method = called::<QueryRequest, QueryResponse>(grpcio::MethodType::Unary, method::QUERY);
        let response = self.client.unary_call(&method, &request, option).unwrap();
        let points = response.data_points.iter().map(|p| {
            let tags = p.tag_families.iter().flat_map(|f| &f.tags).map(|t| t.value.str().value.clone());
            let ms = p.timestamp.seconds * 1000 + i64::from(p.timestamp.nanos) / 1_000_000;
            (tags.collect::<Vec<_>>(), ms, p.fields[0].value.float().value)
        });
        points.filter(|p| p.0[0] == node).collect()
    }
}

/// Reads, writes and gives advice until told to stop.
fn load(stop: &AtomicBool) {
    let file = common::TestFile::new("banyandb-load", 16 * common::MIB);
    while !stop.load(Ordering::Relaxed) {
        file.drop_cache();
        common::read_all(&file.reopen(), 64 << 10);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `make test-banyandb BANYANDB=host:port` compares what a BanyanDB server stores with what Prometheus is shown.
#[test]
#[ignore = "needs a BanyanDB server: make test-banyandb BANYANDB=host:port"]
fn a_real_server_stores_what_prometheus_is_shown() {
    const NAME: &str = "a_real_server_stores_what_prometheus_is_shown";
    need_bpf!("a_real_server_stores_what_prometheus_is_shown");
    let variable = |name: &str| std::env::var(format!("TEST_BANYANDB{name}")).ok().filter(|v| !v.is_empty());
    let Some(endpoint) = variable("") else {
        return common::skipped(NAME, "no server: make test-banyandb BANYANDB=host:port");
    };
    let seconds: u64 = variable("_SECONDS").and_then(|s| s.parse().ok()).unwrap_or(300);
    let credentials = variable("_USERNAME").zip(variable("_PASSWORD"));
    let ca = variable("_CA");
    let node = format!("test-{}-{}", std::process::id(), seconds);
    let group = "ebpf-sidecar-test";
    let mut settings = vec![
        ("EXPORT_TYPE", "banyandb"),
        ("EXPORT_BANYANDB_ENDPOINT", endpoint.as_str()),
        ("EXPORT_BANYANDB_GROUP", group),
        ("EXPORT_BANYANDB_NODE", node.as_str()),
        ("COLLECTOR_INTERVAL", "1s"),
    ];
    if let Some((username, password)) = &credentials {
        settings.extend([("EXPORT_BANYANDB_USERNAME", username.as_str())]);
        settings.extend([("EXPORT_BANYANDB_PASSWORD", password.as_str())]);
    }
    if let Some(ca) = &ca {
        settings.extend([("EXPORT_BANYANDB_TLS_ENABLED", "true"), ("EXPORT_BANYANDB_TLS_CA_FILE", ca)]);
    }
    let begin = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let mut agent = Agent::start(&settings);
    let stop = AtomicBool::new(false);
    let mut scraped: BTreeMap<u64, Metrics> = BTreeMap::new();
    std::thread::scope(|scope| {
        scope.spawn(|| load(&stop));
        let started = Instant::now();
        let mut half = variable("_AT_HALF");
        let mut disturbance = None;
        while started.elapsed().as_secs() < seconds {
            let metrics = agent.metrics();
            scraped.insert(metrics.get(SEQUENCE) as u64, metrics);
            std::thread::sleep(Duration::from_millis(100));
            if started.elapsed().as_secs() >= seconds / 2
                && let Some(command) = half.take()
            {
                let child = std::process::Command::new("sh").args(["-c", &command]).spawn().unwrap();
                disturbance = Some(common::Killed(child));
            }
        }
        stop.store(true, Ordering::Relaxed);
        if let Some(mut child) = disturbance {
            assert!(common::wait_for(&mut child.0, LIMIT * 2).is_some_and(|s| s.success()));
        }
    });
    // The backlog of an outage first.
    agent.wait(|m| m.get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}") < 2000.0);
    let metrics = agent.metrics();
    sys::kill(agent.child.id(), libc::SIGTERM);
    let status = common::wait_for(&mut agent.child, LIMIT).expect("it does not stop");
    println!("{}", agent.log().lines().filter(|l| l.contains("BanyanDB")).collect::<Vec<_>>().join("\n"));
    assert!(status.success() && !agent.log().contains("are lost"));
    let own = metrics.0.iter().filter(|(name, _)| name.starts_with("ebpf_sidecar_export_points"));
    own.filter(|(_, v)| **v > 0.0).for_each(|(name, v)| println!("{name} {v}"));

    // What is stored, by measure.
    if let Some(port) = variable("_HTTP_PORT") {
        run_queries(port.parse().unwrap(), group, credentials.clone());
    }
    let reader = Reader::new(&endpoint, group, credentials, ca.as_deref());
    let end = begin + 24 * 3_600_000;
    let mut stored: BTreeMap<Key, f64> = BTreeMap::new();
    for spec in measures(&scraped) {
        for (tags, ms, value) in reader.points(&spec, begin, end, &node) {
            let again = stored.insert((spec.0.clone(), tags.clone(), ms), value);
            assert!(again.is_none(), "{} {tags:?} at {ms} is stored twice", spec.0);
        }
    }
    // The processes' calls add up to all calls, but for those between the two readings of a collection.
    let processes = ("ebpf_fadvise_process_calls".to_owned(), ["node", "scope", "comm"].map(String::from).to_vec());
    let mut by_time: BTreeMap<i64, f64> = BTreeMap::new();
    for (_, ms, calls) in reader.points(&processes, begin, end, &node) {
        *by_time.entry(ms).or_default() += calls;
    }
    let mut before = 0.0;
    for ((_, _, ms), total) in stored.iter().filter(|(k, _)| k.0 == "ebpf_fadvise_calls_total") {
        let sum = by_time.get(ms).copied().unwrap_or_default();
        assert!((before..=*total).contains(&sum), "{sum} calls by process of {total} at {ms}, after {before}");
        before = *total;
    }
    assert!(before > 0.0, "no calls");
    let (mut compared, mut rounded, mut series) = (0, 0, std::collections::BTreeSet::new());
    for metrics in scraped.values() {
        let ms = (metrics.get("ebpf_sidecar_snapshot_timestamp_seconds") * 1e3).round() as i64;
        for (sample, value) in metrics.0.iter().filter(|(s, v)| !v.is_nan() && !s.starts_with(SCOPE)) {
            let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
            let labels = labels.trim_end_matches('}').split(',').filter_map(|l| l.split_once('='));
            let base = [node.clone(), "host".into()].into_iter();
            let tags: Vec<String> = base.chain(labels.map(|(_, v)| v.trim_matches('"').to_owned())).collect();
            let found = stored.get(&(name.to_owned(), tags, ms)).copied();
            let found = found.unwrap_or_else(|| panic!("{sample} at {ms} is not stored"));
            // BanyanDB keeps numbers as decimals: one with more than 15 digits can differ in its last bits.
            let slack = if value.fract() == 0.0 { 0.0 } else { 4.0 * f64::EPSILON * value.abs() };
            assert!((found - value).abs() <= slack, "{sample} at {ms}: {found}, not {value}");
            rounded += usize::from(found != *value);
            series.insert(sample.clone());
            compared += 1;
        }
    }
    let sequences: Vec<u64> = stored.iter().filter(|(k, _)| k.0 == SEQUENCE).map(|(_, v)| *v as u64).collect();
    let expected: Vec<u64> = (1..=sequences.len() as u64).collect();
    assert_eq!(sequences, expected, "a gap");
    println!(
        "{} collections, {} of them scraped, {} series, {} points stored, {compared} values compared: all equal, \
         {rounded} of them rounded in the last bits",
        sequences.len(),
        scraped.len(),
        series.len(),
        stored.len()
    );
    assert!(scraped.len() as u64 > seconds / 2 && compared > 50 * scraped.len());
}

/// Asks a server's HTTP port on this host what configs/banyandb/ has, of another group; each has to find something.
fn run_queries(port: u16, group: &str, credentials: Option<(String, String)>) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/banyandb/queries.bydbql");
    let queries = common::bydbql(&std::fs::read_to_string(file).unwrap());
    for query in &queries {
        let query = query.replace("ebpf-metrics", group);
        let body = serde_json::json!({ "query": query }).to_string();
        let login = credentials.as_ref().map_or(String::new(), |(user, password)| {
            let both = openssl::base64::encode_block(format!("{user}:{password}").as_bytes());
            format!("Authorization: Basic {both}\r\n")
        });
        let head = format!(
            "POST /api/v1/bydbql/query HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{login}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let response = common::request(port, &head).unwrap();
        assert_eq!(response.status, 200, "{query}: {}", response.body);
        assert!(response.body.contains("\"float\":"), "{query} finds nothing: {}", response.body);
    }
    println!("{} queries find something", queries.len());
}

/// The measures of what was scraped, with their tags.
fn measures(scraped: &BTreeMap<u64, Metrics>) -> std::collections::BTreeSet<(String, Vec<String>)> {
    let names = scraped.values().flat_map(|m| m.0.keys()).map(|sample| {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let labels = labels.trim_end_matches('}').split(',').filter_map(|l| l.split_once('='));
        let base = ["node", "scope"].map(String::from).into_iter();
        (name.to_owned(), base.chain(labels.map(|(k, _)| k.to_owned())).collect())
    });
    names.collect()
}

// ---- measurements ----

/// The server of a measurement, in a process of its own so that its time is not the exporter's.
#[test]
#[ignore = "started by the measurements"]
fn a_server_for_a_measurement() {
    if std::env::var_os("TEST_BANYANDB_SERVE").is_none() {
        return;
    }
    let server = BanyanDb::start();
    println!("port {}", server.port);
    // Until the other side closes it.
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

fn server_process() -> (common::Killed, u16) {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "a_server_for_a_measurement", "--nocapture"])
        .env("TEST_BANYANDB_SERVE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let port = lines.map_while(Result::ok).find_map(|l| l.split_once("port ").and_then(|(_, p)| p.parse().ok()));
    (common::Killed(child), port.unwrap())
}

/// User and system time of this process so far, without that of this thread, which makes the collections.
fn cpu() -> Duration {
    let of = |who: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{who}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    Duration::from_millis((of("self") - of("thread-self")) * 10)
}

/// A collection with ten thousand series, as it is after the one with the number before.
fn large(n: u64) -> Snapshot {
    let metrics = &ebpf_sidecar::monitor::catalogue::CATALOGUE;
    let metric = *metrics.iter().find(|m| m.name == "ebpf_page_cache_adds_total").unwrap();
    let series = (0..10_000).map(|i| Series { labels: vec![format!("cause-{i:05}")], value: Value::Int(i * 7 + n) });
    let families = vec![Family { metric, series: series.collect() }];
    Snapshot { families, processes: None, ..collection(n) }
}

#[test]
#[ignore = "a measurement"]
fn cost_of_ten_thousand_series() {
    let (_server, port) = server_process();
    let settings = Settings { batch_size: 1000, ..settings(&format!("localhost:{port}")) };
    let collections: Vec<Snapshot> = (2..=21).map(large).collect();
    let cell = SnapshotCell::new(large(1));
    STATE.started(settings.unhealthy_after);
    let before = own_metrics();
    let sent = || {
        let name = "ebpf_sidecar_export_points_sent_total{exporter=\"banyandb\"}";
        own_metrics().get(name) - before.get(name)
    };
    let exporter = banyandb::start(&settings, &cell).unwrap();
    wait_until("the first collection", || sent() == 10_000.0);
    let began = cpu();
    let mut bytes = 0.0f64;
    for (i, collection) in collections.into_iter().enumerate() {
        cell.store(collection);
        let all = 10_000.0 * (i + 2) as f64;
        let deadline = Instant::now() + LIMIT;
        while sent() < all {
            assert!(Instant::now() < deadline, "{:?}", STATE.trouble(Instant::now()));
            bytes = bytes.max(own_metrics().get("ebpf_sidecar_export_queue_bytes{exporter=\"banyandb\"}"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let took = cpu() - began;
    exporter.stop();
    println!("{:.2} ms of CPU per 1,000 points, of 200,000", took.as_secs_f64() * 1e3 / 200.0);
    if !cfg!(debug_assertions) {
        assert!(took <= Duration::from_millis(5 * 200));
    }

    // How long the queue lasts.
    let away = Settings { endpoint: format!("127.0.0.1:{}", common::free_port()), ..settings };
    let away = Settings { queue_bytes: 8 << 20, timeout: Duration::from_millis(100), ..away };
    let cell = SnapshotCell::new(large(1));
    let exporter = banyandb::start(&away, &cell).unwrap();
    let name = "ebpf_sidecar_export_points_dropped_total{exporter=\"banyandb\",reason=\"queue_bytes\"}";
    let before = own_metrics().get(name);
    let mut n = 1;
    while own_metrics().get(name) == before {
        n += 1;
        cell.store(large(n));
        wait_until("it to be taken in", || {
            let metrics = own_metrics();
            metrics.get("ebpf_sidecar_export_queue_points{exporter=\"banyandb\"}") + metrics.get(name) - before
                >= 10_000.0 * n as f64
        });
    }
    exporter.stop();
    println!("8 MiB are {} collections of 10,000 series: {} min at an interval of 10 s", n - 1, (n - 1) / 6);
}

#[test]
#[ignore = "a measurement"]
fn memory_with_an_hour_of_backlog() {
    need_bpf!("memory_with_an_hour_of_backlog");
    // An hour of collections every 10 s and 15 min of history, a hundred times as fast.
    let endpoint = format!("127.0.0.1:{}", common::free_port());
    let agent = Agent::start(&[
        ("EXPORT_TYPE", "banyandb"),
        ("EXPORT_BANYANDB_ENDPOINT", &endpoint),
        ("COLLECTOR_INTERVAL", "100ms"),
        ("COLLECTOR_HISTORY", "9s"),
    ]);
    let metrics = agent.wait(|m| m.get(SEQUENCE) >= 360.0);
    let own = |name: &str| metrics.get(&format!("ebpf_sidecar_export_{name}{{exporter=\"banyandb\"}}"));
    let (points, bytes) = (own("queue_points"), own("queue_bytes"));
    let (rss, own) = (agent.rss_kib(), common::status_field(agent.child.id(), "RssAnon:"));
    println!("{points} points in {:.0} KiB; resident: {rss} KiB, of which {own} KiB are not files", bytes / 1024.0);
    assert!(points > 360.0 * 100.0);
    // The pages of the program and its libraries depend on how it was built.
    assert!(own <= 12 << 10, "{own} KiB");
}
