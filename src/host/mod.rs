//! What surrounds the agent on its host: the pod it runs in, systemd, its log, clock, certificates and own usage.

pub mod logging;
pub mod pem;
pub mod pod;
pub mod process;
pub mod systemd;
pub mod time;
pub mod version;
