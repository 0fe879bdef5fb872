//! Of whom the metrics are: the attributes of OpenTelemetry's resource.

use crate::export::engine::host_name;
use crate::host::version;

/// What the manifests have Kubernetes tell.
const OF_KUBERNETES: [(&str, &str); 5] = [
    ("K8S_NODE_NAME", "k8s.node.name"),
    ("K8S_NAMESPACE_NAME", "k8s.namespace.name"),
    ("K8S_POD_NAME", "k8s.pod.name"),
    ("K8S_POD_UID", "k8s.pod.uid"),
    ("K8S_CONTAINER_NAME", "k8s.container.name"),
];

/// The attributes: what the agent knows of itself, what Kubernetes tells, what `OTEL_RESOURCE_ATTRIBUTES` and
/// `OTEL_SERVICE_NAME` add, and what the configuration does. Of two of the same name the later one counts.
pub fn attributes(configured: &[(String, String)], env: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let own = [("service.name", "ebpf-sidecar"), ("service.version", version::VERSION), ("host.name", &host_name())];
    let mut all: Vec<(String, String)> = own.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mut put = |name: &str, value: &str| match all.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) => *old = value.to_owned(),
        None => all.push((name.to_owned(), value.to_owned())),
    };
    for (variable, name) in OF_KUBERNETES {
        if let Some(value) = env(variable).filter(|value| !value.is_empty()) {
            put(name, &value);
        }
    }
    let given = env("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    for one in given.split(',').filter(|one| !one.trim().is_empty()) {
        match one.split_once('=').and_then(|(name, value)| Some((decoded(name.trim())?, decoded(value.trim())?))) {
            Some((name, value)) if !name.is_empty() => put(&name, &value),
            _ => log::warn!("OTEL_RESOURCE_ATTRIBUTES: {one:?} is not name=value, and left out"),
        }
    }
    if let Some(name) = env("OTEL_SERVICE_NAME").filter(|name| !name.is_empty()) {
        put("service.name", &name);
    }
    configured.iter().for_each(|(name, value)| put(name, value));
    // One agent a host or pod: what names that names the agent, and stays the same when it is started again.
    if !all.iter().any(|(name, _)| name == "service.instance.id") {
        let host = all.iter().find(|(name, _)| name == "host.name").map(|(_, value)| value.clone());
        all.push(("service.instance.id".into(), host.unwrap_or_default()));
    }
    all
}

/// Without percent signs: `%2C` is a comma. `None` if that is not how it is written.
fn decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(configured: &[(&str, &str)], env: &[(&str, &str)]) -> Vec<(String, String)> {
        let configured: Vec<_> = configured.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        attributes(&configured, env)
    }

    #[test]
    fn the_later_goes_before_the_earlier() {
        let get = |all: &[(String, String)], name: &str| {
            let found: Vec<_> = all.iter().filter(|(n, _)| n == name).collect();
            assert!(found.len() < 2, "{name} twice");
            found.first().map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let own = of(&[], &[]);
        assert_eq!(get(&own, "service.name"), "ebpf-sidecar");
        assert_eq!(get(&own, "service.version"), version::VERSION);
        assert_eq!(get(&own, "host.name"), host_name());
        assert_eq!(get(&own, "service.instance.id"), host_name());
        let pod = "k8s.pod.name=banyandb-0, k8s.pod.uid=1-2 ,k8s.node.name=n%2C1,host.name=n1,odd,=x,a=%zz";
        let env = [
            ("OTEL_RESOURCE_ATTRIBUTES", pod),
            ("OTEL_SERVICE_NAME", "mine"),
            ("K8S_POD_UID", "0"),
            ("K8S_NAMESPACE_NAME", "ns"),
            ("K8S_CONTAINER_NAME", ""),
        ];
        let all = of(&[("k8s.pod.name", "other"), ("deployment.environment", "prod")], &env);
        for (name, value) in [
            ("service.name", "mine"),
            ("host.name", "n1"),
            ("k8s.pod.name", "other"),
            ("k8s.node.name", "n,1"),
            ("k8s.pod.uid", "1-2"),
            ("k8s.namespace.name", "ns"),
            ("k8s.container.name", ""),
            ("service.instance.id", "n1"),
            ("deployment.environment", "prod"),
            ("odd", ""),
            ("a", ""),
        ] {
            assert_eq!(get(&all, name), value, "{name}");
        }
        assert_eq!(get(&of(&[("service.instance.id", "7")], &env), "service.instance.id"), "7");
    }
}
