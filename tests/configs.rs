//! Everything under configs/: each file is parsed, validated or run. What Prometheus and Grafana ask for is asked of a
//! real Prometheus that scraped the real agent under load.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ebpf_sidecar::export::prometheus;
use ebpf_sidecar::metrics::metric::Kind;
use ebpf_sidecar::monitor::catalogue::CATALOGUE;
use ebpf_sidecar::monitor::example;
use ebpf_sidecar::monitor::file_groups;
use serde_json::Value as Json;
use serde_yaml::Value as Yaml;

use common::prometheus::Prometheus;
use common::{Agent, Cgroup, MIB, Metrics, TestFile, alone, output, read_all, skipped, sys, text};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn configs() -> PathBuf {
    root().join("configs")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn yaml(path: &Path) -> Yaml {
    serde_yaml::from_str(&read(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

type Check = fn(&Path);

/// How each file is checked. What a file needs besides is in tests of its own below.
const CHECKS: &[(&str, Check)] = &[
    ("banyandb/config.yaml", the_agent_loads_it),
    ("banyandb/increase.jq", increases),
    ("banyandb/queries.bydbql", |file| {
        let tags = ["node", "scope", "le", "comm", "value"];
        let queries = common::bydbql(&read(file));
        assert!(queries.len() > 5);
        for query in queries {
            let (projection, rest) =
                query.strip_prefix("SELECT ").and_then(|q| q.split_once(" FROM MEASURE ")).unwrap();
            let (measure, rest) = rest.split_once(" IN ebpf-metrics TIME > '-").expect(&query);
            let metric = CATALOGUE.iter().find(|m| match m.kind {
                Kind::Histogram => ["_bucket", "_sum", "_count"].iter().any(|p| measure == format!("{}{p}", m.name)),
                _ => measure == m.name,
            });
            assert!(metric.is_some() || measure == "ebpf_fadvise_process_calls", "no measure {measure}");
            let labels = metric.map_or(&[][..], |m| m.labels);
            let known = |c: &str| tags.contains(&c) || labels.contains(&c);
            let columns = projection.split(", ").filter(|c| !c.ends_with("(value)"));
            let grouped = rest.split_once(" GROUP BY ").map_or("", |(_, g)| g);
            for column in columns.chain(grouped.split(", ").filter(|c| !c.is_empty())) {
                assert!(known(column), "{query}: {column}");
            }
        }
    }),
    ("config.yaml", the_agent_loads_it),
    ("grafana/dashboards/ebpf-sidecar.json", dashboard_is_whole),
    ("grafana/provisioning/dashboards/ebpf-sidecar.yml", |file| {
        let provider = &yaml(file)["providers"][0];
        assert_eq!((&provider["type"], provider["options"]["path"].is_string()), (&"file".into(), true));
    }),
    ("grafana/provisioning/datasources/prometheus.yml", |file| {
        let source = &yaml(file)["datasources"][0];
        // What the dashboard takes unless another one is chosen.
        let chosen = &dashboard()["templating"]["list"][0]["current"]["value"];
        assert_eq!((source["uid"].as_str(), source["type"].as_str()), (chosen.as_str(), Some("prometheus")));
    }),
    ("kubernetes/daemonset.yaml", |file| kubernetes(file, 1, &["EBPF_SIDECAR_EXPORT_BANYANDB_NODE"], true)),
    ("kubernetes/privileged-patch.yaml", privileged_patch),
    ("kubernetes/servicemonitor.yaml", service_monitor),
    ("kubernetes/sidecar.yaml", |file| {
        kubernetes(file, 2, &["EBPF_SIDECAR_COLLECTOR_SCOPE_POD_UID", "EBPF_SIDECAR_EXPORT_BANYANDB_NODE"], false)
    }),
    ("prometheus/compose.yml", |file| run_promtool(&["check", "config", text(file)])),
    ("prometheus/prometheus.yml", |file| run_promtool(&["check", "config", text(file)])),
    ("prometheus/rules.yml", |file| run_promtool(&["check", "rules", text(file)])),
    ("prometheus/rules_test.yml", |file| run_promtool(&["test", "rules", text(file)])),
    ("systemd/ebpf-sidecar.service", is_a_unit),
    ("systemd/root.conf", is_a_unit),
    ("web.yml", |file| {
        let config = ebpf_sidecar::config::web::read(file).unwrap();
        assert!(config.tls.is_some() && config.users.0.values().all(|hash| *hash == hash.of_nobody()));
    }),
];

#[test]
fn every_file_is_checked() {
    let mut files = BTreeSet::new();
    let mut folders = vec![configs()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.ends_with("helm") || path.ends_with("packages") => {} // tests/helm.rs, tests/packages.rs
                true => folders.push(path),
                false => drop(files.insert(path.strip_prefix(configs()).unwrap().to_str().unwrap().to_owned())),
            }
        }
    }
    let checked = CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, checked, "each file under configs/ has one check here");
    for (name, check) in CHECKS {
        check(&configs().join(name));
    }
}

fn the_agent_loads_it(file: &Path) {
    let o = output(&["config", "--config", text(file)], &[]);
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
}

/// Sections, keys, comments. tests/systemd.rs has systemd itself judge and run them.
fn is_a_unit(file: &Path) {
    for line in read(file).lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        assert!(line.starts_with('[') && line.ends_with(']') || line.contains('='), "{}: {line}", file.display());
    }
}

/// Runs a program that has to be content; `false` if it is not installed.
fn run(program: &str, args: &[&str]) -> bool {
    match Command::new(program).args(args).output() {
        Ok(o) => {
            let said = String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned();
            assert!(o.status.success(), "{program} {args:?}:\n{said}");
            true
        }
        Err(_) => false,
    }
}

fn run_promtool(args: &[&str]) {
    if !run("promtool", args) {
        skipped("every_file_is_checked", &format!("promtool {args:?}: not installed (apt-get install prometheus)"));
    }
}

// ---- rules ----

struct Rule {
    /// Of a record or an alert.
    name: String,
    record: bool,
    expr: String,
    annotations: BTreeMap<String, String>,
}

fn rules() -> Vec<Rule> {
    let file = yaml(&configs().join("prometheus/rules.yml"));
    let groups = file["groups"].as_sequence().unwrap();
    let all = groups.iter().flat_map(|g| g["rules"].as_sequence().unwrap());
    all.map(|r| {
        let record = r["record"].as_str();
        Rule {
            name: record.or(r["alert"].as_str()).unwrap().to_owned(),
            record: record.is_some(),
            expr: r["expr"].as_str().unwrap().to_owned(),
            annotations: match &r["annotations"] {
                Yaml::Null => BTreeMap::new(),
                annotations => serde_yaml::from_value(annotations.clone()).unwrap(),
            },
        }
    })
    .collect()
}

#[test]
fn every_rule_is_tested_and_every_alert_has_its_page() {
    let tests = read(&configs().join("prometheus/rules_test.yml"));
    for rule in rules() {
        assert!(tests.contains(&rule.name), "rules_test.yml lacks {}", rule.name);
        if rule.record {
            continue;
        }
        for name in ["summary", "description", "runbook_url"] {
            assert!(rule.annotations.get(name).is_some_and(|a| !a.is_empty()), "{} lacks {name}", rule.name);
        }
        let (page, section) = rule.annotations["runbook_url"].split_once('#').unwrap();
        let page = read(&root().join(page));
        let titles: Vec<String> = page.lines().filter_map(|l| l.strip_prefix("## ")).map(anchor).collect();
        assert!(titles.iter().any(|t| t == section), "{}: no section {section} among {titles:?}", rule.name);
    }
}

/// A title as links call it.
fn anchor(title: &str) -> String {
    let kept = title.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.replace(' ', "-")
}

// ---- Kubernetes ----

fn documents(file: &Path) -> Vec<Yaml> {
    common::documents(&read(file))
}

/// Lists of a document, empty where there is none.
fn list(value: &Yaml) -> &[Yaml] {
    value.as_sequence().map_or(&[], Vec::as_slice)
}

fn names(values: &[Yaml]) -> BTreeSet<&str> {
    values.iter().map(|v| v["name"].as_str().unwrap()).collect()
}

/// The pod and the container of the agent in a workload.
fn agent_container(workload: &Yaml) -> (&Yaml, &Yaml) {
    let pod = &workload["spec"]["template"]["spec"];
    (pod, list(&pod["containers"]).iter().find(|c| c["name"] == "ebpf-sidecar").unwrap())
}

#[test]
fn the_schemas_of_kubernetes_have_nothing_against_the_workloads() {
    let program = common::tool("kubernetes-validate");
    for name in ["daemonset", "sidecar"] {
        let file = configs().join(format!("kubernetes/{name}.yaml"));
        if !run(text(&program), &["--strict", "--quiet", text(&file)]) {
            let why = "kubernetes-validate is not installed (make deps-test)";
            return skipped("the_schemas_of_kubernetes_have_nothing_against_the_workloads", why);
        }
    }
}

/// A workload and its Services: nothing in it refers to what is not there.
fn kubernetes(file: &Path, services: usize, variables: &[&str], one_a_node: bool) {
    let all = documents(file);
    let (pod, container) = agent_container(&all[0]);
    assert_eq!(pod["enableServiceLinks"], false);

    // The least that the agent needs.
    let expected: Result<Yaml, _> = serde_yaml::from_str(
        "{runAsUser: 0, runAsNonRoot: false, privileged: false, allowPrivilegeEscalation: false,
          readOnlyRootFilesystem: true, capabilities: {drop: [ALL], add: [BPF, PERFMON, SYSLOG]},
          seccompProfile: {type: RuntimeDefault}}",
    );
    assert_eq!(container["securityContext"], expected.unwrap());
    for kind in ["requests", "limits"] {
        assert!(container["resources"][kind]["memory"].is_string(), "no {kind}");
    }

    // The agent takes the variables.
    let env: Vec<(&str, &str)> = list(&container["env"])
        .iter()
        .map(|v| {
            let value = match v["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.uid") => "0b1c2d3e-aaaa-bbbb-cccc-001122334455",
                Some("spec.nodeName") => "node-1.example",
                Some("metadata.name" | "metadata.namespace") => "some-name",
                Some(from) => panic!("{from}"),
                None => v["value"].as_str().unwrap(),
            };
            (v["name"].as_str().unwrap(), value)
        })
        .collect();
    const OF_OTLP: [&str; 4] = ["K8S_NODE_NAME", "K8S_NAMESPACE_NAME", "K8S_POD_NAME", "K8S_POD_UID"];
    let instance = one_a_node.then_some("OTEL_RESOURCE_ATTRIBUTES");
    let expected = variables.iter().copied().chain(OF_OTLP).chain(instance);
    assert_eq!(env.iter().map(|(name, _)| *name).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    // The tag node of what it exports stays the same when the pod is made anew.
    assert!(env.contains(&("EBPF_SIDECAR_EXPORT_BANYANDB_NODE", "node-1.example")));
    let o = common::command().arg("config").envs(env).output().unwrap();
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));

    // What it serves by default, and who asks for it.
    let config: Yaml = serde_yaml::from_slice(&o.stdout).unwrap();
    let port_of =
        |name: &str| list(&container["ports"]).iter().find(|p| p["name"] == name).unwrap()["containerPort"].clone();
    for name in ["http", "grpc"] {
        assert_eq!(config["server"][name]["port"], port_of(name));
    }
    for probe in ["startupProbe", "livenessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!((get["path"].as_str(), get["port"].as_str()), (Some("/health"), Some("http")), "{probe}");
    }

    let volumes: BTreeSet<&str> =
        names(list(&pod["volumes"])).into_iter().chain(templates(&all[0]["spec"]["volumeClaimTemplates"])).collect();
    let mounted = list(&pod["containers"]).iter().flat_map(|c| names(list(&c["volumeMounts"])));
    assert_eq!(mounted.collect::<BTreeSet<_>>(), volumes, "volumes mounted, and volumes there");

    let labels = &all[0]["spec"]["template"]["metadata"]["labels"];
    assert_eq!(all[0]["spec"]["selector"]["matchLabels"], *labels);
    assert_eq!(all.len(), 1 + services);
    let ports: BTreeSet<&str> = list(&pod["containers"]).iter().flat_map(|c| names(list(&c["ports"]))).collect();
    for service in &all[1..] {
        assert_eq!((service["kind"].as_str(), &service["spec"]["selector"]), (Some("Service"), labels));
        for port in list(&service["spec"]["ports"]) {
            assert!(ports.contains(port["targetPort"].as_str().unwrap()), "{port:?}");
        }
    }
}

/// What a counter grew by, with its agent started anew in between, and times as protocol buffers' JSON has them.
fn increases(file: &Path) {
    let point = |time: &str, node: &str, value: Json| {
        let tag = serde_json::json!({"key": "node", "value": {"str": {"value": node}}});
        let tags = serde_json::json!([{"name": "default", "tags": [tag]}]);
        let fields = serde_json::json!([{"name": "value", "value": {"float": value}}]);
        serde_json::json!({"timestamp": format!("2026-11-27T{time}Z"), "tagFamilies": tags, "fields": fields})
    };
    let value = |v: f64| serde_json::json!({ "value": v });
    let points = [
        point("03:00:20.500", "restarted", value(7.5)),
        point("03:00:00", "restarted", value(1050.0)),
        point("02:59:50", "restarted", value(1000.0)),
        // A zero is left out.
        point("03:00:10", "restarted", serde_json::json!({})),
        point("03:00:20", "restarted", value(4.0)),
        point("03:00:00", "steady", value(3.0)),
        point("03:00:10", "steady", value(3.0)),
        point("03:00:00", "once", value(9.0)),
    ];
    let answer = serde_json::json!({"result": {"measureResult": {"dataPoints": points}}}).to_string();
    let Ok(mut jq) = Command::new("jq").arg("-cf").arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
    else {
        return skipped("every_file_is_checked", "banyandb/increase.jq: no jq: make deps");
    };
    jq.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
    let output = jq.wait_with_output().unwrap();
    assert!(output.status.success());
    let found: Json = serde_json::from_slice(&output.stdout).unwrap();
    let increases = found.as_array().unwrap().iter();
    let increases: Vec<_> = increases.map(|s| (s["node"].as_str().unwrap(), s["increase"].as_f64().unwrap())).collect();
    assert_eq!(increases, [("once", 0.0), ("restarted", 57.5), ("steady", 0.0)]);
}

fn templates(claims: &Yaml) -> impl Iterator<Item = &str> {
    list(claims).iter().map(|c| c["metadata"]["name"].as_str().unwrap())
}

/// It finds the Services of both workloads, by their label and the name of their port.
fn service_monitor(file: &Path) {
    let monitor = yaml(file);
    assert_eq!(
        (&monitor["apiVersion"], &monitor["kind"]),
        (&"monitoring.coreos.com/v1".into(), &"ServiceMonitor".into())
    );
    let (wanted, endpoint) = (&monitor["spec"]["selector"]["matchLabels"], &monitor["spec"]["endpoints"][0]);
    assert_eq!(endpoint["path"], "/metrics");
    for workload in ["kubernetes/daemonset.yaml", "kubernetes/sidecar.yaml"] {
        let all = documents(&configs().join(workload));
        let found: Vec<&Yaml> =
            all.iter().filter(|d| d["kind"] == "Service" && d["metadata"]["labels"] == *wanted).collect();
        assert_eq!(found.len(), 1, "{workload}");
        assert!(names(list(&found[0]["spec"]["ports"])).contains(endpoint["port"].as_str().unwrap()), "{workload}");
        // The job's name, which an alert asks for.
        let label = monitor["spec"]["jobLabel"].as_str().unwrap();
        let job = found[0]["metadata"]["labels"][label].as_str().unwrap();
        assert!(rules().iter().any(|r| r.expr == format!("up{{job=\"{job}\"}} == 0")), "{job}");
    }
}

/// It patches a container that is there.
fn privileged_patch(file: &Path) {
    let patch = yaml(file);
    let (_, container) = agent_container(&patch);
    let daemonset = documents(&configs().join("kubernetes/daemonset.yaml"));
    assert_eq!(agent_container(&daemonset[0]).1["name"], container["name"]);
    // The API refuses a privileged container that may not escalate.
    let context = &container["securityContext"];
    assert_eq!((&context["privileged"], &context["allowPrivilegeEscalation"]), (&true.into(), &true.into()));
}

// ---- the dashboard ----

fn dashboard() -> Json {
    serde_json::from_str(&read(&configs().join("grafana/dashboards/ebpf-sidecar.json"))).unwrap()
}

fn panels(dashboard: &Json) -> impl Iterator<Item = &Json> {
    dashboard["panels"].as_array().unwrap().iter().filter(|p| p["type"] != "row")
}

/// What Grafana would show wrongly without a word.
fn dashboard_is_whole(file: &Path) {
    let dashboard: Json = serde_json::from_str(&read(file)).unwrap();
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string());
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is taken");
        let place = |what: &str| panel["gridPos"][what].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title} is too wide");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{title} lies over another panel");
            }
        }
    }
    let variables: Vec<&str> =
        dashboard["templating"]["list"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "job", "instance"]);
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        assert!(panel["description"].as_str().is_some_and(|d| d.ends_with('.')), "{title}: description");
        let unit = &panel["fieldConfig"]["defaults"]["unit"];
        assert!(unit.is_string() || panel["options"]["yAxis"]["unit"].is_string(), "{title}: unit");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}: no query");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let expr = target["expr"].as_str().unwrap();
            assert!(
                expr.contains(r#"{job=~"$job", instance=~"$instance""#),
                "{title}: not of the chosen agent: {expr}"
            );
            assert_eq!(panel["type"] == "heatmap", target["format"] == "heatmap", "{title}");
        }
    }
}

/// The queries of the dashboard with everything chosen.
fn dashboard_queries() -> Vec<Query> {
    let dashboard = dashboard();
    let of_panel = |panel: &Json| -> Vec<Query> {
        let place = format!("dashboard: {}", panel["title"].as_str().unwrap());
        let exprs = panel["targets"].as_array().unwrap().iter().map(|t| t["expr"].as_str().unwrap());
        exprs
            .map(|expr| {
                let text = expr.replace("$job", ".+").replace("$instance", ".+").replace("$__rate_interval", "1m");
                assert!(!text.contains('$'), "{place}: {text}");
                Query { place: place.clone(), text, may_be_empty: false }
            })
            .collect()
    };
    panels(&dashboard).flat_map(of_panel).collect()
}

#[test]
fn the_dashboard_shows_every_metric_of_the_kernel() {
    // Sums and rates of others that it shows.
    const LEFT_OUT: [&str; 8] = [
        "ebpf_fadvise_calls_total",
        "ebpf_fadvise_success_total",
        "ebpf_fadvise_success_rate_percent",
        "ebpf_cache_hits_total",
        "ebpf_cache_hit_rate_percent",
        "ebpf_cache_miss_rate_percent",
        "ebpf_cache_read_bytes_total",
        "ebpf_memory_reclaim_efficiency_percent",
    ];
    let shown: BTreeSet<String> =
        dashboard_queries().iter().flat_map(|q| metrics_of(&q.text, &BTreeMap::new())).collect();
    for metric in CATALOGUE.iter().filter(|m| m.name.starts_with("ebpf_") && !m.name.starts_with("ebpf_sidecar_")) {
        let is_shown = shown.iter().any(|s| s.starts_with(metric.name));
        assert!(is_shown != LEFT_OUT.contains(&metric.name), "{}", metric.name);
    }
}

// ---- queries ----

/// A query, where it stands, and whether it may find nothing on a day like any other.
struct Query {
    place: String,
    text: String,
    may_be_empty: bool,
}

fn queries() -> Vec<Query> {
    let rules = rules().into_iter().map(|r| Query { place: r.name, text: r.expr, may_be_empty: !r.record });
    rules.chain(dashboard_queries()).chain(documented_queries("docs/interpretation.md")).collect()
}

/// Those of a page of the documentation. What its section "Before trusting any of it" asks for should not be there.
fn documented_queries(page: &str) -> Vec<Query> {
    let content = read(&root().join(page));
    let (mut section, mut query) = ("", None);
    let mut found = Vec::new();
    for line in content.lines() {
        match (line, &mut query) {
            ("```promql", None) => query = Some(String::new()),
            ("```", Some(text)) => {
                let may_be_empty = section == "Before trusting any of it";
                found.push(Query { place: format!("{page}: {section}"), text: std::mem::take(text), may_be_empty });
                query = None;
            }
            (line, Some(text)) => *text += &format!("{line}\n"),
            (line, None) => section = line.strip_prefix("## ").unwrap_or(section),
        }
    }
    assert!(query.is_none() && found.len() > 10, "{page}: {} queries", found.len());
    found
}

/// The metrics of the agent that a query is about, those of recorded series included.
fn metrics_of(query: &str, records: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    // What stands between quotes are values of labels.
    for part in query.split('"').step_by(2) {
        for word in part.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
            if let Some(expr) = records.get(word) {
                names.extend(metrics_of(expr, records));
            } else if word.contains(":ebpf_") {
                panic!("{word} is not recorded: {query}");
            } else if word.starts_with("ebpf_") || word.starts_with("process_") {
                names.insert(word.to_owned());
            }
        }
    }
    names
}

fn records() -> BTreeMap<String, String> {
    rules().into_iter().filter(|r| r.record).map(|r| (r.name, r.expr)).collect()
}

#[test]
fn queries_name_metrics_of_the_catalogue() {
    for query in queries() {
        let names = metrics_of(&query.text, &records());
        assert!(!names.is_empty() || query.text.contains("up{"), "{}: {}", query.place, query.text);
        for name in names {
            let known = CATALOGUE.iter().chain(&file_groups::METRICS).any(|m| match m.kind {
                Kind::Histogram => {
                    name.strip_prefix(m.name).is_some_and(|rest| ["_bucket", "_sum", "_count"].contains(&rest))
                }
                _ => name == m.name,
            });
            assert!(known, "{}: {name} is not in the catalogue: {}", query.place, query.text);
        }
    }
}

/// A little of everything that the agent counts.
fn some_work(file: &TestFile) {
    use std::os::fd::AsRawFd;
    file.drop_cache();
    read_all(&file.file, MIB);
    read_all(&file.file, 4096);
    TestFile::new("configs-written", 64 * 1024);
    sys::fadvise(-1, 0, 0, 0).unwrap_err();
    sys::fadvise(file.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM).unwrap();
}

/// Reads `file` in a cgroup that is too small for it, so that the kernel has to reclaim.
fn read_under_pressure(limit: &Cgroup, file: &TestFile) {
    let script = "echo $$ > $1/cgroup.procs; exec dd if=$2 of=/dev/null bs=64k 2>/dev/null";
    let read = Command::new("sh").args(["-c", script, "sh", text(&limit.path), text(&file.path)]).status();
    assert!(read.unwrap().success());
}

fn has(metrics: &Metrics, name: &str) -> bool {
    metrics.0.keys().any(|k| k.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{')))
}

fn wait_for_data(prometheus: &mut Prometheus, query: &Query) {
    let has_data = |p: &Prometheus| {
        let series = p.query(&query.text, "");
        series.iter().any(|(_, values)| values.iter().any(|v| v != "NaN"))
    };
    prometheus.wait(&format!("data for {}: {}", query.place, query.text), has_data);
}

/// Serves the exposition of an agent with every metric, in which each number is larger at each request. Returns its
/// port.
fn invented_agent() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let text = prometheus::text(&example::snapshot());
    let answer = move |(n, client): (usize, std::io::Result<TcpStream>)| -> std::io::Result<()> {
        let mut client = client?;
        let head = BufReader::new(&client).lines().take_while(|l| l.as_ref().is_ok_and(|l| !l.is_empty()));
        head.for_each(drop);
        let mut body = String::new();
        for line in text.lines() {
            match line.rsplit_once(' ').map(|(series, value)| (series, value.parse::<f64>())) {
                Some((series, Ok(value))) if !line.starts_with('#') => {
                    body += &format!("{series} {}\n", value * (n + 1) as f64);
                }
                _ => body += &format!("{line}\n"),
            }
        }
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}", body.len());
        client.write_all(format!("{head}\r\nConnection: close\r\n\r\n{body}").as_bytes())
    };
    // Ends with the test's process.
    thread::spawn(move || listener.incoming().enumerate().for_each(|request| drop(answer(request))));
    port
}

#[test]
fn every_query_finds_data_where_everything_can_be_known() {
    let rules = configs().join("prometheus/rules.yml");
    let Some(mut prometheus) = Prometheus::start(&[("ebpf-sidecar", invented_agent())], &[&rules]) else {
        let why = "no prometheus (apt-get install prometheus)";
        return skipped("every_query_finds_data_where_everything_can_be_known", why);
    };
    for query in queries().iter().filter(|q| !q.may_be_empty) {
        wait_for_data(&mut prometheus, query);
    }
}

#[test]
fn every_query_finds_data_of_the_real_agent() {
    const TEST: &str = "every_query_finds_data_of_the_real_agent";
    need_bpf!("every_query_finds_data_of_the_real_agent");
    let _alone = alone();
    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "500ms")]);
    let rules = configs().join("prometheus/rules.yml");
    let Some(mut prometheus) = Prometheus::start(&[("ebpf-sidecar", agent.port)], &[&rules]) else {
        return skipped(TEST, "no prometheus (apt-get install prometheus)");
    };
    prometheus.wait("the agent is scraped", |p| p.query("up == 1", "").len() == 1);

    let (file, big) = (TestFile::new("configs", 4 * MIB), TestFile::cold("configs-big", 64 * MIB));
    let limit = Cgroup::with_memory(24 * MIB);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        some_work(&file);
        if let Some(limit) = &limit {
            read_under_pressure(limit, &big);
        }
    }

    let (now, records) = (agent.metrics(), records());
    let (mut found, mut unknown) = (0, Vec::new());
    for query in queries() {
        // Asked in any case: a query that Prometheus refuses ends the test.
        prometheus.query(&query.text, "");
        if query.may_be_empty {
            continue;
        }
        // Without the memory controller, reclaim does not happen on demand.
        let cannot_move = |m: &String| limit.is_none() && m.starts_with("ebpf_memory_");
        let about = metrics_of(&query.text, &records).into_iter();
        let absent: Vec<String> = about.filter(|m| !has(&now, m) || cannot_move(m)).collect();
        if absent.is_empty() {
            wait_for_data(&mut prometheus, &query);
            found += 1;
        } else {
            unknown.extend(absent);
        }
    }
    unknown.sort();
    unknown.dedup();
    println!("{found} queries found data; this machine has no {unknown:?}");
    assert!(found > 10, "{found} queries found data");
}
