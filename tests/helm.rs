//! The chart: helm is content with it, what it makes is what configs/kubernetes has, and Kubernetes' schemas have nothing
//! against it, however it is set.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_yaml::{Mapping, Value};

use common::{TempDir, output, skipped, text};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/helm/ebpf-sidecar")
}

fn helm(args: &[&str]) -> Option<Output> {
    Command::new(common::tool("helm")).args(args).output().ok()
}

/// Whether there is one; if not, the test says so.
fn has_helm(test: &str) -> bool {
    let found = helm(&["version"]).is_some_and(|o| o.status.success());
    if !found {
        skipped(test, "helm is not installed (make deps-helm)");
    }
    found
}

fn render(settings: &[&str]) -> Result<Vec<Value>, String> {
    let chart = chart();
    let mut args = vec!["template", "ebpf-sidecar", text(&chart)];
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let o = helm(&args).unwrap();
    if !o.status.success() {
        return Err(String::from_utf8_lossy(&o.stderr).into_owned());
    }
    let mut made = common::documents(&String::from_utf8(o.stdout).unwrap());
    made.retain(|document| !document.is_null());
    Ok(made)
}

fn documents(file: &str) -> Vec<Value> {
    common::documents(&read(&format!("kubernetes/{file}")))
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(file)).unwrap()
}

/// Without the labels that only helm has.
fn plain(value: &Value) -> Value {
    match value {
        Value::Mapping(m) => {
            let keep = |key: &Value| {
                let key = key.as_str().unwrap_or_default();
                !matches!(
                    key,
                    "helm.sh/chart"
                        | "app.kubernetes.io/instance"
                        | "app.kubernetes.io/managed-by"
                        | "app.kubernetes.io/version"
                )
            };
            let kept = m.iter().filter(|(k, _)| keep(k)).map(|(k, v)| (k.clone(), plain(v)));
            Value::Mapping(kept.collect::<Mapping>())
        }
        Value::Sequence(s) => Value::Sequence(s.iter().map(plain).collect()),
        other => other.clone(),
    }
}

/// Each as text with its keys in order, whose difference can be read.
fn sorted(values: &[Value]) -> Vec<String> {
    let words = |value: &Value| serde_json::to_string_pretty(&serde_json::to_value(plain(value)).unwrap()).unwrap();
    let mut words: Vec<_> = values.iter().map(words).collect();
    words.sort();
    words
}

#[test]
fn the_chart_and_the_manifests_are_the_same() {
    if !has_helm("the_chart_and_the_manifests_are_the_same") {
        return;
    }
    let daemonset = render(&["image.tag=latest"]).unwrap();
    assert_eq!(sorted(&daemonset), sorted(&documents("daemonset.yaml")));
    let sidecar = render(&["image.tag=latest", "mode=sidecar", "fullnameOverride=x"]).unwrap();
    // The names of BanyanDB's objects begin with the release's.
    let renamed = |words: &String| {
        words.replace("x-banyandb", "banyandb").replace(r#""name": "x""#, r#""name": "banyandb-ebpf""#)
    };
    let mut sidecar: Vec<_> = sorted(&sidecar).iter().map(renamed).collect();
    sidecar.sort();
    assert_eq!(sidecar, sorted(&documents("sidecar.yaml")));
    let monitor: Vec<_> = render(&["serviceMonitor.enabled=true"])
        .unwrap()
        .into_iter()
        .filter(|v| v["kind"] == "ServiceMonitor")
        .collect();
    assert_eq!(sorted(&monitor), sorted(&documents("servicemonitor.yaml")));
}

const SETTINGS: &[&[&str]] = &[
    &[],
    &["mode=sidecar"],
    &["privileged=true"],
    &["mode=sidecar", "banyandb.storageClassName=fast", "banyandb.resources.limits.memory=1Gi"],
    &["config.collector.interval=5s", "config.export.type=banyandb", "config.export.banyandb.endpoint=db:17912"],
    &["prometheusRule.enabled=true", "serviceMonitor.enabled=true", "dashboard.enabled=true"],
    &["prometheusRule.labels.release=p", "prometheusRule.enabled=true", "dashboard.labels.a=b"],
    &["image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000"],
    &["image.pullPolicy=Always", "imagePullSecrets[0].name=s", "priorityClassName=system-node-critical"],
    &["env[0].name=EBPF_SIDECAR_LOG_LEVEL", "env[0].value=debug", "podLabels.a=b", "podAnnotations.c=d"],
    &["capabilities={SYS_ADMIN,SYS_RESOURCE,SYSLOG}", "resources=null", "tolerations=null", "nodeSelector=null"],
    &["probe.exec.command={ebpf-sidecar,health}", "updateStrategy.type=OnDelete"],
    &[
        "extraVolumes[0].name=v",
        "extraVolumes[0].emptyDir.medium=Memory",
        "extraVolumeMounts[0].name=v",
        "extraVolumeMounts[0].mountPath=/v",
    ],
];

#[test]
fn helm_and_kubernetes_are_content_however_it_is_set() {
    if !has_helm("helm_and_kubernetes_are_content_however_it_is_set") {
        return;
    }
    let chart = chart();
    let o = helm(&["lint", "--strict", text(&chart)]).unwrap();
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stdout));
    let folder = TempDir::new("helm");
    for (i, settings) in SETTINGS.iter().enumerate() {
        let made = render(settings).unwrap_or_else(|e| panic!("{settings:?}: {e}"));
        let objects = made.iter().filter(|v| v["apiVersion"] != "monitoring.coreos.com/v1");
        let words: Vec<_> = objects.map(|v| serde_yaml::to_string(v).unwrap()).collect();
        fs::write(folder.path.join(format!("{i}.yaml")), words.join("---\n")).unwrap();
        for rule in made.iter().filter(|v| v["kind"] == "PrometheusRule") {
            let rules: Value = serde_yaml::from_str(&read("prometheus/rules.yml")).unwrap();
            assert_eq!(rule["spec"], rules);
        }
        // A configuration that is set is one that the agent takes.
        for map in made.iter().filter(|v| v["kind"] == "ConfigMap") {
            let Some(config) = map["data"]["config.yaml"].as_str() else { continue };
            let file = folder.path.join(format!("{i}.config"));
            fs::write(&file, config).unwrap();
            let o = output(&["config", "--config", text(&file)], &[]);
            assert!(o.status.success(), "{config}:\n{}", String::from_utf8_lossy(&o.stderr));
            fs::remove_file(file).unwrap();
        }
    }
    let program = common::tool("kubernetes-validate");
    for (i, settings) in SETTINGS.iter().enumerate() {
        let file = folder.path.join(format!("{i}.yaml"));
        match Command::new(&program).args(["--strict", "--quiet", text(&file)]).output() {
            Ok(o) => assert!(
                o.status.success(),
                "{:?}: {}",
                settings,
                String::from_utf8_lossy(&[o.stdout, o.stderr].concat())
            ),
            Err(_) => {
                let why = "kubernetes-validate is not installed (make deps-test)";
                return skipped("helm_and_kubernetes_are_content_however_it_is_set", why);
            }
        }
    }
}

#[test]
fn what_is_set_wrongly_is_refused() {
    if !has_helm("what_is_set_wrongly_is_refused") {
        return;
    }
    for (setting, word) in [
        ("mode=deployment", "mode"),
        ("image.repository=", "repository"),
        ("image.digest=latest", "digest"),
        ("imgae.tag=1", "imgae"),
        ("serviceMonitor.intervall=1s", "intervall"),
        ("serviceMonitor.interval=often", "interval"),
        ("capabilities={bpf}", "capabilities"),
        ("privileged=maybe", "privileged"),
    ] {
        let said = render(&[setting]).expect_err(setting);
        assert!(said.contains(word), "{setting}: {said}");
    }
}
