//! tmp
/// x
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Scope {
    Host,
    Cgroup(std::path::PathBuf),
    Comm(String),
}
