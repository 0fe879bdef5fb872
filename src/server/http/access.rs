//! What `server.http.web_config` asks for, ready for use: TLS, users, headers.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use openssl::ssl::SslContext;

use crate::config::web::{self, RateLimit, WebConfig};
use crate::metrics::http::COUNTS;
use crate::server::tls::{Pems, Server};
use crate::server::watched::{Source, Watched};

const SERVER: Server = Server { keys: "server.http.web_config: ", protocol: b"\x08http/1.1" };

/// What holds for those who ask now.
#[derive(Default)]
pub struct Policy {
    /// TLS; none: plain HTTP.
    pub tls: Option<SslContext>,
    /// What else the file says.
    pub config: WebConfig,
}

/// The file.
struct File(PathBuf);

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP: {} or a file that it names", self.0.display())
    }
}

impl Source for File {
    type Contents = (WebConfig, Pems);
    type Value = Policy;

    fn read(&self) -> Result<(WebConfig, Pems), String> {
        let config = web::read(&self.0)?;
        let pems = config.tls.as_ref().map(|tls| SERVER.read(tls)).transpose()?;
        Ok((config, pems.unwrap_or_default()))
    }

    fn make(&self, (config, pems): &(WebConfig, Pems)) -> Result<Policy, String> {
        let tls = config.tls.as_ref().map(|tls| SERVER.context(tls, pems)).transpose()?;
        Ok(Policy { tls, config: config.clone() })
    }

    fn used(&self, (config, pems): &(WebConfig, Pems)) {
        COUNTS.certificate(pems.expires());
        if let Some(tls) = &config.tls {
            SERVER.warn_if_expired(tls, pems);
        }
    }

    fn refused(&self) {
        COUNTS.config_refused();
    }
}

/// Whether the file and those that it names can be used, and whether it asks for TLS.
pub fn check(path: &Path) -> Result<bool, String> {
    let file = File(path.to_owned());
    file.read().and_then(|contents| file.make(&contents)).map(|policy| policy.tls.is_some())
}

/// Who may ask, and how; shared by the front and those who change it.
#[derive(Clone)]
pub struct Access(Watched<File>);

impl Access {
    /// What the file asks for; without one, nothing.
    pub fn new(path: Option<&Path>) -> Result<Self, String> {
        let access = Self(Watched::new(path.map(|path| File(path.to_owned())))?);
        let policy = access.current();
        if !policy.config.users.0.is_empty() && policy.tls.is_none() {
            log::warn!("server.http.web_config: passwords without TLS: whoever is on the way reads them");
        }
        Ok(access)
    }

    /// What holds now.
    pub fn current(&self) -> Arc<Policy> {
        self.0.current().unwrap_or_default()
    }

    /// Another file from now on, or none. If it cannot be used, all stays as it was.
    pub fn set(&self, path: Option<&Path>) -> Result<(), String> {
        self.0.set(path.map(|path| File(path.to_owned())))?;
        if path.is_none() {
            COUNTS.certificate(None);
        }
        Ok(())
    }
}

/// So many requests, and one more with each interval.
#[derive(Default)]
pub struct Tokens {
    limit: RateLimit,
    left: u32,
    since: Option<Instant>,
}

impl Tokens {
    /// Whether one more request may be answered.
    pub fn take(&mut self, limit: &RateLimit, now: Instant) -> bool {
        if limit.interval.is_zero() {
            return true;
        }
        if *limit != self.limit {
            *self = Self { limit: limit.clone(), left: limit.burst, since: Some(now) };
        }
        let since = *self.since.get_or_insert(now);
        let more = now.saturating_duration_since(since).as_nanos() / limit.interval.as_nanos().max(1);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(limit.burst);
            self.since = limit.interval.checked_mul(more).and_then(|d| since.checked_add(d)).or(Some(now));
        }
        let taken = self.left.checked_sub(1);
        self.left = taken.unwrap_or(0);
        taken.is_some()
    }
}

/// What is taken can be used.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(config: &WebConfig) {
    let printed = format!("{config:?}");
    assert!(!printed.contains("PRIVATE KEY") && !printed.contains("$2"), "{printed}");
    for (name, value) in &config.http.headers.0 {
        assert!(!format!("{name}: {value}").chars().any(char::is_control), "{name:?}: {value:?}");
    }
    let mut tokens = Tokens::default();
    let now = Instant::now();
    assert!(config.rate_limit.burst == 0 || tokens.take(&config.rate_limit, now));
    tokens.take(&config.rate_limit, now + config.rate_limit.interval);
    // The fuzzer would name any file of the machine.
    if let Some(tls) = config.tls.as_ref().filter(|_| config.files().is_empty()) {
        let context = SERVER.read(tls).and_then(|pems| SERVER.context(tls, &pems));
        assert!(context.err().is_none_or(|why| !why.chars().any(char::is_control)));
    }
}
