//! SIGHUP: the configuration is read again, and what a running agent can take over is.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel;
use log::LevelFilter;

use crate::api::Api;
use crate::collector::{Change, Control, Outcome};
use crate::config::{Config, ConfigError};
use crate::host::{confine, logging};
use crate::monitor::ModuleSettings;
use crate::server::grpc::{GrpcServer, tls};
use crate::server::http::access::{self, Access};
use crate::server::http::hosts::Hosts;

/// Time for the collector to make a change.
const LIMIT: Duration = Duration::from_secs(10);

/// Reads the configuration.
pub type Read<'a> = &'a dyn Fn() -> Result<Config, ConfigError>;

/// What a new configuration changes.
pub struct Reload<'a> {
    /// Reads it.
    pub read: Read<'a>,
    /// The one in use.
    pub in_use: Config,
    /// The level that the command line asks for.
    pub level: Option<LevelFilter>,
    /// Of the collector.
    pub control: Control,
    /// Who may change the agent is known there.
    pub api: Arc<Api>,
    /// The names under which it may be asked.
    pub hosts: Hosts,
    /// Who may ask over HTTP.
    pub access: Access,
}

impl Reload<'_> {
    /// Takes over what can be, and says so in the log. Nothing changes if the new configuration is wrong.
    pub fn reload(&mut self, grpc: Option<&GrpcServer>) {
        match self.try_reload(grpc) {
            Ok(()) => {}
            Err(why) => log::error!("reload: {why}; the configuration in use stays"),
        }
    }

    fn try_reload(&mut self, grpc: Option<&GrpcServer>) -> Result<(), String> {
        let new = (self.read)().map_err(|e| e.to_string())?;
        if let Some(file) = new.files().into_iter().find(|file| confine::is_outside(file)) {
            return Err(format!("{}: it may not be read; {}", file.display(), confine::OUTSIDE));
        }
        // They are looked at with each connection: here it only shows early that they cannot be used.
        tls::check(&new.server.grpc)?;
        let web_config = new.server.http.web_config.as_deref();
        if let Some(path) = web_config {
            access::check(path)?;
        }
        let taken = self.in_use.taking_over(&new, confine::can_attach());
        self.collect(&taken)?;
        self.access.set(taken.server.http.web_config.as_deref())?;
        logging::set_level(self.level.unwrap_or(taken.log.level));
        self.api.allow(taken.server.allow_configure);
        self.hosts.set(taken.server.http.hosts.clone());
        if let Some(grpc) = grpc {
            grpc.auth().set(taken.server.grpc.token_file.as_deref())?;
            grpc.limit(&taken.server.grpc.limits);
        }

        let (changed, restart) = (self.in_use.differences(&taken), taken.differences(&new));
        for line in &changed {
            let hidden = self.level.filter(|_| line.starts_with("log.level:"));
            log::info!("reload: {line}{}", hidden.map_or("", |_| "; --log-level goes before it"));
        }
        for line in &restart {
            log::warn!("reload: {line}: takes a restart");
        }
        if changed.is_empty() && restart.is_empty() {
            log::info!("reload: nothing has changed");
        }
        self.in_use = taken;
        Ok(())
    }

    /// Has the collector make what changes of the collection.
    fn collect(&self, taken: &Config) -> Result<(), String> {
        let (old, new) = (&self.in_use.collector, &taken.collector);
        let interval = (old.interval != new.interval).then_some(new.interval);
        let settings = ModuleSettings {
            scope: (old.scope != new.scope).then(|| new.scope.clone()),
            read_latency: (old.read_latency != new.read_latency).then_some(new.read_latency),
        };
        if interval.is_none() && settings == ModuleSettings::default() {
            return Ok(());
        }
        for module in &self.api.newest().modules {
            let change =
                Change { module: module.name.into(), enabled: module.enabled, interval, settings: settings.clone() };
            let (give, outcome) = channel::bounded(1);
            // Whoever waits may have had enough.
            self.control.request(change, Box::new(move |outcome| drop(give.send(outcome))));
            match outcome.recv_timeout(LIMIT) {
                Ok(Outcome::Done(_)) => {}
                Ok(Outcome::Failed(why, _)) => return Err(format!("module {}: {why}", module.name)),
                Ok(Outcome::Busy) => return Err("other changes are under way: try again".into()),
                Ok(Outcome::NoModule) | Err(_) => {
                    return Err(format!("module {}: the collector has not answered in {LIMIT:?}", module.name));
                }
            }
        }
        Ok(())
    }
}
