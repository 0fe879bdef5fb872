//! gRPC clients that are not ours: grpcio of Python's registry with stubs made of our proto files, and grpcurl. Both are
//! installed under target/tmp the first time; where that cannot be done, the tests say so.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use common::{Agent, skipped, text, wait_for};

const PROTOS: [&str; 3] =
    ["banyandb/ebpf/v1/metrics.proto", "banyandb/ebpf/v1/rpc.proto", "grpc/health/v1/health.proto"];
const SERVICE: &str = "banyandb.ebpf.v1.EBPFMetricsService";

fn proto() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("proto")
}

/// Where the clients are installed.
fn tools() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("foreign");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Runs a command to its end; an error is its last words.
fn run(command: &mut Command, limit: Duration) -> Result<(), String> {
    let log = tools().join("log");
    let words = fs::File::create(&log).unwrap();
    let command = command.stdin(Stdio::null()).stdout(words.try_clone().unwrap()).stderr(words);
    let mut child = command.spawn().map_err(|e| format!("{:?}: {e}", command.get_program()))?;
    let status = wait_for(&mut child, limit);
    let _ = child.wait();
    if status.is_some_and(|s| s.success()) {
        return Ok(());
    }
    let said = fs::read_to_string(&log).unwrap_or_default();
    let last = said.lines().last().unwrap_or_default();
    Err(format!("{:?}: {}", command.get_program(), if status.is_none() { "takes too long" } else { last }))
}

/// A Python with grpcio and its tools.
fn python() -> Result<PathBuf, String> {
    let venv = tools().join("venv");
    let python = venv.join("bin/python");
    let complete = venv.join("complete");
    if !complete.exists() {
        run(Command::new("python3").args(["-m", "venv", text(&venv)]), Duration::from_secs(120))?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]);
        let locked = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/requirements/foreign.txt");
        run(pip.args(["--only-binary=:all:", "--require-hashes", "-r", locked]), Duration::from_secs(300))?;
        fs::write(&complete, "").unwrap();
    }
    Ok(python)
}

/// grpcurl, built from Go's modules.
fn grpcurl() -> Result<PathBuf, String> {
    let grpcurl = tools().join("grpcurl");
    if !grpcurl.exists() {
        let mut go = Command::new("go");
        go.env("GOBIN", tools()).args(["install", "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"]);
        run(&mut go, Duration::from_secs(600))?;
    }
    Ok(grpcurl)
}

#[test]
fn grpcio_of_python_calls_everything() {
    need_bpf!("grpcio_of_python_calls_everything");
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skipped("grpcio_of_python_calls_everything", &why),
    };
    let generated = common::TempDir::new("stubs");
    let out = text(&generated.path);
    let mut protoc = Command::new(&python);
    protoc.args(["-m", "grpc_tools.protoc", "-I", text(&proto())]);
    protoc.args([format!("--python_out={out}"), format!("--grpc_python_out={out}")]).args(PROTOS);
    run(&mut protoc, Duration::from_secs(60)).unwrap();

    let agent = Agent::start(&[("COLLECTOR_INTERVAL", "1h"), ("SERVER_ALLOW_CONFIGURE", "loopback")]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc/client.py");
    let address = format!("localhost:{}", agent.grpc_port);
    let (metrics, stats) = (agent.metrics(), agent.stats());
    let output = Command::new(&python).args([text(&script), out, &address]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let got: Value = serde_json::from_slice(&output.stdout).unwrap();

    let set = &got["GetMetrics"]["metric_sets"][0];
    assert_eq!(set["module_name"], "iomonitor");
    assert_eq!(set["sequence"], metrics.get("ebpf_sidecar_snapshot_sequence").to_string().as_str());
    let sets = set["metrics"].as_array().unwrap();
    assert!(sets.len() > 30);
    for m in sets {
        let labels = m["labels"].as_object().map_or(String::new(), |labels| {
            let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", v.as_str().unwrap())).collect();
            format!("{{{}}}", labels.join(","))
        });
        let name = format!("{}{labels}", m["name"].as_str().unwrap());
        let value = match &m["value"] {
            Value::String(special) => special.parse().unwrap(), // NaN
            other => other.as_f64().unwrap_or(0.0),
        };
        let exposed = metrics.get(&name);
        assert!(value == exposed || value.is_nan() && exposed.is_nan(), "{name}: {value}, not {exposed}");
    }
    assert_eq!(got["filtered"]["total_metrics"], 1);
    let number = |v: &Value| v.as_str().map_or(0, |s| s.parse::<u64>().unwrap());
    let io = &got["GetIOStats"]["stats"];
    for field in ["read_attempts", "misses", "pages_added", "pages_evicted"] {
        assert_eq!(number(&io["cache"][field]), stats["cache"][field].as_u64().unwrap_or(0), "{field}");
    }
    let rows = io["fadvise"]["process_stats"].as_array().map_or(0, Vec::len);
    assert_eq!(Some(rows), stats["fadvise"]["process_stats"].as_array().map(Vec::len));
    assert_eq!(got["GetModuleStatus"]["modules"][0]["running"], true);
    let health = got["GetHealth"]["status"].as_str().unwrap().to_lowercase();
    assert_eq!(health, format!("health_status_{}", stats["status"].as_str().unwrap()));
    assert_eq!(got["StreamMetrics"].as_array().unwrap().len(), 2);
    assert_eq!((&got["disabled"]["success"], got["disabled"]["status"].get("running")), (&Value::from(true), None));
    assert_eq!((&got["enabled"]["success"], &got["enabled"]["status"]["running"]), (&Value::from(true), &true.into()));
    assert_eq!((&got["Check"]["status"], &got["Watch"]["status"]), (&"SERVING".into(), &"SERVING".into()));
    assert_eq!(got["unknown module"], "NOT_FOUND");
    assert_eq!(got["no interval"], "INVALID_ARGUMENT");
    assert_eq!(got["compressed"], "UNIMPLEMENTED");
}

#[test]
fn grpcurl_calls_everything() {
    need_bpf!("grpcurl_calls_everything");
    let grpcurl = match grpcurl() {
        Ok(grpcurl) => grpcurl,
        Err(why) => return skipped("grpcurl_calls_everything", &why),
    };
    let agent = Agent::start(&[("SERVER_ALLOW_CONFIGURE", "loopback")]);
    let call = |method: &str, json: &str| -> Result<Value, String> {
        let mut c = Command::new(&grpcurl);
        c.args(["-plaintext", "-max-time", "3", "-import-path", text(&proto())]);
        c.args(PROTOS.iter().flat_map(|p| ["-proto", p]));
        let output = c.args(["-d", json, &format!("localhost:{}", agent.grpc_port), method]).output().unwrap();
        // Of a stream that it gave up after the time, the first message.
        let first = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>().next();
        first.and_then(Result::ok).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let ours = |method: &str, json: &str| call(&format!("{SERVICE}/{method}"), json);
    assert_eq!(ours("GetMetrics", "{}").unwrap()["metricSets"][0]["moduleName"], "iomonitor");
    assert_eq!(ours("StreamMetrics", r#"{"interval_seconds":1}"#).unwrap()["metricSet"]["moduleName"], "iomonitor");
    assert!(ours("GetIOStats", r#"{"include_process_stats":true}"#).unwrap()["stats"]["cache"].is_object());
    assert_eq!(ours("GetModuleStatus", "{}").unwrap()["modules"][0]["enabled"], true);
    assert_eq!(ours("GetHealth", "{}").unwrap()["version"], env!("CARGO_PKG_VERSION"));
    let off = ours("ConfigureModule", r#"{"module":"iomonitor","enabled":false}"#).unwrap();
    assert_eq!((&off["success"], off["status"].get("running")), (&true.into(), None));
    assert_eq!(call("grpc.health.v1.Health/Check", "{}").unwrap()["status"], "SERVING");
    assert_eq!(call("grpc.health.v1.Health/Watch", "{}").unwrap()["status"], "SERVING");
    let refused = ours("GetModuleStatus", r#"{"modules":["net"]}"#).unwrap_err();
    assert!(refused.contains("NotFound"), "{refused}");
}
