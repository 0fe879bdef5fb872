//! What surrounds the agent on its host: cgroups, the pod it runs in, systemd, its log, clock, certificates and own usage.

pub mod cgroup;
pub mod confine;
pub mod container;
pub mod logging;
pub mod pem;
pub mod pod;
pub mod process;
pub mod refaults;
pub mod scope;
pub mod secret;
pub mod systemd;
pub mod threads;
pub mod time;
pub mod version;
