//! Whether the agent does its work, judged from the snapshot, and from the exporters if there are any: every output that
//! speaks of health asks here.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::metrics::export;
use crate::metrics::snapshot::{ProbeStatus, Snapshot};

/// How well the agent works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every probe is attached and the last collection succeeded.
    Healthy,
    /// Some numbers are missing, or the last collection failed.
    Degraded,
    /// There are no numbers, or they are old.
    Unhealthy,
}

impl Status {
    /// All of them, with their names.
    pub const ALL: [(Self, &str); 3] =
        [(Self::Healthy, "healthy"), (Self::Degraded, "degraded"), (Self::Unhealthy, "unhealthy")];
}

/// The verdict on a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The verdict.
    pub status: Status,
    /// What is wrong and why, in one sentence.
    pub message: String,
    /// Time since the last successful collection.
    pub age: Duration,
}

/// How old numbers may be that are collected every `interval`.
pub fn stale_after(interval: Duration) -> Duration {
    interval.saturating_mul(3).saturating_add(Duration::from_secs(5))
}

/// Judges `snapshot` as of `now`.
pub fn assess(snapshot: &Snapshot, now: Instant) -> Health {
    judge(snapshot, export::troubles(now), now)
}

fn judge(snapshot: &Snapshot, export: impl IntoIterator<Item = String>, now: Instant) -> Health {
    let age = now.saturating_duration_since(snapshot.collected_instant);
    let limit = stale_after(snapshot.interval);
    // Who disabled a module wants no restart for it: that is degraded.
    let (enabled, disabled): (Vec<_>, Vec<_>) = snapshot.modules.iter().partition(|m| m.enabled);
    let probes: Vec<&ProbeStatus> = enabled.iter().flat_map(|m| &m.probes).collect();
    let missing: Vec<&ProbeStatus> = probes.iter().copied().filter(|p| p.mode.is_none()).collect();
    let stale = age > limit;
    let blind = missing.len() == probes.len() && (!enabled.is_empty() || disabled.is_empty());

    let mut wrong = Vec::new();
    wrong.extend(disabled.iter().map(|m| format!("module {} was disabled by ConfigureModule", m.name)));
    if probes.is_empty() && blind {
        wrong.push("no module is running".to_string());
    } else if blind {
        let reasons = reasons(&missing);
        let first = reasons.first().map_or("", |(reason, _)| reason);
        let others = if reasons.len() > 1 { ", and other reasons" } else { "" };
        wrong.push(format!("no probe is attached: {first}{others}"));
    } else if !missing.is_empty() {
        wrong.push(format!("{} of {} probes not attached: {}", missing.len(), probes.len(), with_reasons(&missing)));
    }
    wrong.extend(enabled.iter().filter_map(|m| m.trouble.clone()));
    if stale {
        let (age, limit) = (age.as_secs_f64(), limit.as_secs_f64());
        wrong.push(format!("the last good collection was {age:.1} s ago, more than {limit:.1} s"));
    }
    if let Some(error) = snapshot.last_error.as_deref().and_then(|e| e.lines().next()) {
        wrong.push(format!("the last collection failed: {error}"));
    }
    wrong.extend(export);

    let status = match () {
        _ if blind || stale => Status::Unhealthy,
        _ if !wrong.is_empty() => Status::Degraded,
        _ => Status::Healthy,
    };
    let message = match status {
        Status::Healthy => {
            format!("all {} probes attached, last collection {:.1} s ago", probes.len(), age.as_secs_f64())
        }
        _ => wrong.join("; "),
    };
    Health { status, message, age }
}

/// Bytes of names and reasons; what does not fit of the latter is left to the list of probes.
const LONG: usize = 130;

/// Names of probes, those that failed for the same reason together: `a, b (EPERM), c (no such tracepoint)`.
fn with_reasons(probes: &[&ProbeStatus]) -> String {
    let mut text = String::new();
    for (reason, names) in reasons(probes) {
        let (before, names, reason) = (text.len(), names.join(", "), format!(" ({reason})"));
        text += if before == 0 { "" } else { ", " };
        text += &names;
        if before == 0 || text.len() + reason.len() <= LONG {
            text += &reason;
        }
    }
    text
}

/// Why they are not attached, with the names of those of which it is true: the last way's first line.
fn reasons<'a>(probes: &[&'a ProbeStatus]) -> Vec<(String, Vec<&'a str>)> {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for probe in probes {
        let reason = match probe.failures.last() {
            Some((mode, reason)) => format!("{mode}: {}", reason.lines().next().unwrap_or_default()),
            None => "not tried".into(),
        };
        match groups.iter_mut().find(|(r, _)| *r == reason) {
            Some((_, names)) => names.push(probe.name),
            None => groups.push((reason, vec![probe.name])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::example;

    fn after(snapshot: &Snapshot, age: Duration) -> Health {
        assess(snapshot, snapshot.collected_instant + age)
    }

    #[test]
    fn healthy_until_the_last_collection_is_too_old() {
        let snapshot = example::snapshot(); // interval 10 s
        let health = after(&snapshot, Duration::from_millis(3200));
        assert_eq!(health.status, Status::Healthy);
        assert_eq!(health.message, "all 2 probes attached, last collection 3.2 s ago");
        assert_eq!(health.age, Duration::from_millis(3200));
        assert_eq!(after(&snapshot, Duration::from_secs(35)).status, Status::Healthy);
        let health = after(&snapshot, Duration::from_millis(35_100));
        assert_eq!(health.status, Status::Unhealthy);
        assert_eq!(health.message, "the last good collection was 35.1 s ago, more than 35.0 s");
    }

    #[test]
    fn a_time_before_the_collection_is_age_zero() {
        let snapshot = example::snapshot();
        let Some(before) = snapshot.collected_instant.checked_sub(Duration::from_secs(1)) else { return };
        assert_eq!(assess(&snapshot, before).age, Duration::ZERO);
    }

    #[test]
    fn degraded_with_the_reason_when_a_collection_failed() {
        let snapshot = Snapshot { last_error: Some("map totals: EINVAL\ndetails".into()), ..example::snapshot() };
        let health = after(&snapshot, Duration::from_secs(1));
        assert_eq!(health.status, Status::Degraded);
        assert_eq!(health.message, "the last collection failed: map totals: EINVAL");
    }

    #[test]
    fn degraded_with_one_probe_missing_unhealthy_with_all() {
        let mut snapshot = example::snapshot();
        let probes = &mut snapshot.modules[0].probes;
        probes[1].mode = None;
        probes[1].failures = vec![("fentry", "EPERM".into()), ("tracepoint", "no such file\nlog".into())];
        let health = after(&snapshot, Duration::ZERO);
        assert_eq!(health.status, Status::Degraded);
        assert_eq!(health.message, "1 of 2 probes not attached: cache_fill (tracepoint: no such file)");

        let probes = &mut snapshot.modules[0].probes;
        probes[0].mode = None;
        probes[0].failures = probes[1].failures.clone();
        let health = after(&snapshot, Duration::ZERO);
        assert_eq!(health.status, Status::Unhealthy);
        assert_eq!(health.message, "no probe is attached: tracepoint: no such file");
        snapshot.modules[0].probes[1].failures = vec![("fentry", "EPERM".into())];
        let message = after(&snapshot, Duration::ZERO).message;
        assert_eq!(message, "no probe is attached: tracepoint: no such file, and other reasons");
    }

    #[test]
    fn a_message_has_as_many_reasons_as_it_has_room_for() {
        let probe =
            |name, reason: &str| ProbeStatus { name, mode: None, failures: vec![("kprobe", reason.repeat(90))] };
        let probes = [probe("a", "x"), probe("b", "y"), probe("c", "z"), probe("d", "x")];
        let said = with_reasons(&probes.iter().collect::<Vec<_>>());
        assert_eq!(said, format!("a, d (kprobe: {}), b, c", "x".repeat(90)));
    }

    #[test]
    fn degraded_with_a_disabled_module() {
        let mut snapshot = example::snapshot();
        snapshot.modules[0].enabled = false;
        snapshot.modules[0].probes.iter_mut().for_each(|p| p.mode = None);
        let health = after(&snapshot, Duration::ZERO);
        assert_eq!(health.status, Status::Degraded);
        assert_eq!(health.message, "module iomonitor was disabled by ConfigureModule");
        assert_eq!(after(&snapshot, Duration::from_secs(60)).status, Status::Unhealthy, "but for being stuck");
    }

    #[test]
    fn degraded_while_the_scope_is_not_there() {
        let mut snapshot = example::snapshot();
        snapshot.modules[0].trouble = Some("nothing is counted in the scope's cgroup /a".into());
        let health = after(&snapshot, Duration::ZERO);
        assert_eq!(
            (health.status, health.message.as_str()),
            (Status::Degraded, "nothing is counted in the scope's cgroup /a")
        );
    }

    #[test]
    fn degraded_while_nothing_can_be_sent() {
        let snapshot = example::snapshot();
        let health = judge(&snapshot, Some("BanyanDB is away".into()), snapshot.collected_instant);
        assert_eq!((health.status, health.message.as_str()), (Status::Degraded, "BanyanDB is away"));
    }

    #[test]
    fn unhealthy_without_a_module() {
        let snapshot = Snapshot { modules: vec![], ..example::snapshot() };
        let health = after(&snapshot, Duration::ZERO);
        assert_eq!((health.status, health.message.as_str()), (Status::Unhealthy, "no module is running"));
    }
}
