//! ConfigureModule: who may, what is asked for, and the request to the collector.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::proto::rpc::{ConfigureModuleRequest, ConfigureModuleResponse};
use super::{Api, Code, Failure, convert, no_module};
use crate::collector::{Change, Outcome};
use crate::config::{self, AllowConfigure, Config};
use crate::host::cgroup;
use crate::host::logging::clean;
use crate::metrics::snapshot::ModuleStatus;
use crate::monitor::ModuleSettings;

/// Who makes a call.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Address, for the log.
    pub peer: String,
    /// Whether it comes from this host.
    pub loopback: bool,
    /// Whether it has shown a certificate that the configured authorities have signed.
    pub authenticated: bool,
}

impl Caller {
    /// The caller at `peer`, an address with its port; what is none is not of this host.
    pub fn new(peer: String, authenticated: bool) -> Self {
        let loopback = peer.parse::<SocketAddr>().is_ok_and(|a| a.ip().to_canonical().is_loopback());
        Self { peer: clean(peer), loopback, authenticated }
    }
}

/// `config_json`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    interval: Option<String>,
    scope: Option<WantedScope>,
    read_latency: Option<String>,
}

/// Empty is the whole host.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedScope {
    cgroup: Option<String>,
    comm: Option<String>,
}

impl Api {
    /// Enables, disables or changes a module of the running agent. What is asked for is not looked at before it is known
    /// that `caller` may: `request` reads it. `reply` is called once, here or in the collector's thread.
    pub fn configure(
        &self,
        caller: &Caller,
        request: impl FnOnce() -> Result<ConfigureModuleRequest, Failure>,
        reply: impl FnOnce(Result<ConfigureModuleResponse, Failure>) + Send + 'static,
    ) {
        let asked = || request().and_then(|r| Ok((self.change(&r)?, r)));
        let (change, request) = match self.permit(caller).and_then(|()| asked()) {
            Ok(asked) => asked,
            Err(failure) => {
                log::warn!("ConfigureModule by {} refused: {}", caller.peer, clean(&failure.message));
                return reply(Err(failure));
            }
        };
        let words = describe(&change, &request.config_json);
        let (newest, module, peer) = (self.newest(), change.module.clone(), caller.peer.clone());
        let answer = move |outcome| {
            reply(match outcome {
                Outcome::Busy => Err(Failure::new(Code::Unavailable, "other changes are under way: try again")),
                Outcome::NoModule => Err(no_module(&module, &newest)),
                Outcome::Done(status) => {
                    log::warn!("ConfigureModule by {peer}: {words}");
                    Ok(response(true, String::new(), &status))
                }
                Outcome::Failed(why, status) => {
                    log::warn!("ConfigureModule by {peer}: {words}: failed: {why}");
                    Ok(response(false, why, &status))
                }
            });
        };
        self.control.request(change, Box::new(answer));
    }

    fn permit(&self, caller: &Caller) -> Result<(), Failure> {
        let allow = *self.allow.lock().unwrap_or_else(|e| e.into_inner());
        let permitted = match allow {
            AllowConfigure::Off => false,
            AllowConfigure::Loopback => caller.loopback,
            AllowConfigure::Mtls => caller.authenticated,
            AllowConfigure::Any => true,
        };
        let why = match allow {
            AllowConfigure::Loopback => "only clients on the agent's own host may change it",
            AllowConfigure::Mtls => "only gRPC clients with a certificate may change it",
            _ => "the agent may not be changed",
        };
        let message = || format!("{why}; server.allow_configure decides that");
        if permitted { Ok(()) } else { Err(Failure::new(Code::PermissionDenied, message())) }
    }

    fn change(&self, request: &ConfigureModuleRequest) -> Result<Change, Failure> {
        let newest = self.newest();
        if !newest.modules.iter().any(|m| m.name == request.module) {
            return Err(no_module(&request.module, &newest));
        }
        let json = request.config_json.trim();
        if !request.enabled && !json.is_empty() {
            let message = "config_json: allowed only with enabled: true";
            return Err(Failure::new(Code::InvalidArgument, message));
        }
        let (interval, settings) = match json {
            "" => Default::default(),
            _ => parse(json).map_err(|e| Failure::new(Code::InvalidArgument, format!("config_json: {}", clean(e))))?,
        };
        Ok(Change { module: request.module.clone(), enabled: request.enabled, interval, settings })
    }
}

fn response(success: bool, error: String, status: &ModuleStatus) -> ConfigureModuleResponse {
    let status = Some(convert::module_status(status)).into();
    ConfigureModuleResponse { success, error, status, ..Default::default() }
}

fn describe(change: &Change, json: &str) -> String {
    match (change.enabled, json.trim()) {
        (false, _) => format!("module {} disabled", change.module),
        (true, "") => format!("module {} enabled", change.module),
        (true, json) => format!("module {} enabled with {}", change.module, clean(json)),
    }
}

/// The values of `config_json`, checked by the table of keys.
fn parse(json: &str) -> Result<(Option<Duration>, ModuleSettings), String> {
    let wanted: Wanted = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let mut config = Config::default();
    let mut set = |key: &str, text: &Option<String>| match text {
        Some(text) => config::set(&mut config, key, text),
        None => Ok(()),
    };
    set("collector.interval", &wanted.interval)?;
    set("collector.read_latency", &wanted.read_latency)?;
    if let Some(scope) = &wanted.scope {
        if scope.cgroup.is_some() && scope.comm.is_some() {
            return Err("scope: allowed: cgroup or comm, not both".into());
        }
        set("collector.scope.cgroup", &scope.cgroup)?;
        set("collector.scope.comm", &scope.comm)?;
    }
    if let config::Scope::Cgroup(path) = &config.collector.scope
        && let Err(why) = cgroup::find(path)
    {
        return Err(format!("scope.cgroup: {:?} is not allowed: {why}", path.display()));
    }
    let collector = config.collector;
    let settings = ModuleSettings {
        scope: wanted.scope.map(|_| collector.scope),
        read_latency: wanted.read_latency.map(|_| collector.read_latency),
    };
    Ok((wanted.interval.map(|_| collector.interval), settings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Scope, Switch};

    #[test]
    fn config_json_is_checked_like_the_file() {
        assert_eq!(parse("{}"), Ok((None, ModuleSettings::default())));
        let all = r#"{"interval":"5s","scope":{"comm":"banyand"},"read_latency":"off"}"#;
        let settings = ModuleSettings { scope: Some(Scope::Comm("banyand".into())), read_latency: Some(Switch::Off) };
        assert_eq!(parse(all), Ok((Some(Duration::from_secs(5)), settings)));
        let host = ModuleSettings { scope: Some(Scope::Host), read_latency: None };
        assert_eq!(parse(r#"{"scope":{}}"#), Ok((None, host)));
        for (json, word) in [
            (r#"{"intervall":"5s"}"#, "intervall"),
            (r#"{"interval":"5"}"#, "no unit"),
            (r#"{"interval":5}"#, "string"),
            (r#"{"interval":"5s","interval":"6s"}"#, "duplicate"),
            (r#"{"read_latency":"maybe"}"#, "auto, on or off"),
            (r#"{"scope":{"comm":"a","cgroup":"/b"}}"#, "not both"),
            (r#"{"scope":{"cgroup":"/proc/self"}}"#, "no cgroup v2"),
            (r#"{"scope":{"pid":1}}"#, "pid"),
            (r#"{"probes":["fadvise"]}"#, "probes"),
            ("[]", ""),
            ("{", ""),
            (&"[".repeat(100_000), ""),
        ] {
            let message = parse(json).unwrap_err();
            assert!(message.contains(word), "{json}: {message}");
        }
    }
}
