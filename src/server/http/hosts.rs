//! Under which names the agent may be asked. A page of a foreign site can have its own name point here (DNS rebinding), and
//! a browser then takes our answers for that site's: but it sends that name.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::ebpf::os;

/// The names, shared by all that check.
#[derive(Debug, Clone)]
pub struct Hosts {
    /// This host's name, in lower case.
    own: Arc<str>,
    named: Arc<Mutex<Vec<String>>>,
}

impl Hosts {
    /// localhost, every address, this host's own name, and those of the configuration.
    pub fn new(named: Vec<String>) -> Self {
        Self { own: os::host_name().to_ascii_lowercase().into(), named: Arc::new(Mutex::new(named)) }
    }

    /// Others than those of the configuration before.
    pub fn set(&self, named: Vec<String>) {
        // The assignment is all that is done with it.
        *self.named.lock().unwrap_or_else(|e| e.into_inner()) = named;
    }

    /// Whether a Host header names the agent. An address cannot be anybody's name.
    pub fn know(&self, header: &str) -> bool {
        let host = name_of(header).to_ascii_lowercase();
        host == "localhost"
            || host.parse::<IpAddr>().is_ok()
            || !host.is_empty() && host == *self.own
            || self.named.lock().unwrap_or_else(|e| e.into_inner()).contains(&host)
    }
}

/// A Host header without its port, an IPv6 address without its brackets.
fn name_of(header: &str) -> &str {
    match header.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => header.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_without_ports() {
        for (header, host) in [("a:80", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("127.0.0.1", "127.0.0.1")] {
            assert_eq!(name_of(header), host);
        }
    }

    #[test]
    fn names_of_others_are_not_known() {
        let hosts = Hosts { own: "db-1".into(), named: Arc::new(Mutex::new(vec!["agent.example".into()])) };
        for known in
            ["localhost", "LocalHost:8080", "127.0.0.1:1", "10.1.2.3", "[::1]:8080", "[2001:db8::1]", "DB-1:8080"]
        {
            assert!(hosts.know(known), "{known}");
        }
        for foreign in
            ["", ":80", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "db-1.evil", "[evil]"]
        {
            assert!(!hosts.know(foreign), "{foreign}");
        }
        assert!(hosts.know("Agent.Example:8080"));
        hosts.set(vec![]);
        assert!(!hosts.know("agent.example"));
    }
}
