//! The scope of the configuration on this host: whether it is here, and how it was chosen.

use super::{cgroup, pod};
use crate::config::{Collector, FitResult, Pod, Scope};

/// Finds the scope that a pod is here, and checks that a cgroup is one.
pub fn fit(collector: &mut Collector) -> FitResult {
    match (&collector.pod, &collector.scope) {
        (Some(Pod::Uid(uid)), _) => {
            let found = pod::of_uid(uid).map_err(|why| ("collector.scope.pod_uid", why))?;
            collector.scope = Scope::Cgroup(found);
        }
        // Always something; `words` tells why it is the host.
        (Some(Pod::Auto), _) => collector.scope = pod::own().map_or(Scope::Host, Scope::Cgroup),
        (None, Scope::Cgroup(path)) => {
            if let Some(why) = cgroup::no_scope(path) {
                return Err(("collector.scope.cgroup", why));
            }
        }
        (None, _) => {}
    }
    Ok(())
}

/// The scope in words, with how it was chosen if the agent chose it.
pub fn words(collector: &Collector) -> String {
    let how = match (&collector.pod, pod::own()) {
        (Some(Pod::Auto), Ok(_)) => ", the own pod".into(),
        (Some(Pod::Auto), Err(why)) => format!(", since the own pod is not known: {why}"),
        _ => String::new(),
    };
    format!("{}{how}", collector.scope)
}
