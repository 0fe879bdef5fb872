//! What this binary is.

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Git commit, with `-dirty` if the tree had changes; `unknown` outside a checkout.
pub const COMMIT: &str = env!("BUILD_COMMIT");
/// When it was built, in seconds since 1970 (`SOURCE_DATE_EPOCH` where that is set).
pub const BUILD_TIME: &str = env!("BUILD_TIME");
