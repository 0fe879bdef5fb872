//! The token that gRPC calls have to send, if the configuration names a file with one.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use grpcio::{CheckResult, RpcContext, RpcStatus, RpcStatusCode, ServerChecker};
use openssl::memcmp;
use openssl::sha::sha256;

use super::stubs::name;
use crate::host::secret;
use crate::metrics::grpc::{COUNTS, End};
use crate::server::watched::{Source, Watched};

/// Length of a token: one that cannot be guessed, and fits into the head of a call.
const LENGTH: std::ops::RangeInclusive<usize> = 16..=4096;
/// Digest of a token: equally long, whatever its length.
type Digest = [u8; 32];

/// The file with the token.
struct File(PathBuf);

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gRPC: the token in {}", self.0.display())
    }
}

impl Source for File {
    type Contents = Digest;
    type Value = Digest;

    fn read(&self) -> Result<Digest, String> {
        read(&self.0).map(|token| sha256(token.as_bytes()))
    }

    fn make(&self, token: &Digest) -> Result<Digest, String> {
        Ok(*token)
    }
}

/// Who may call; shared by all calls and those who change it.
#[derive(Clone)]
pub struct Auth(Watched<File>);

/// The token in the file.
pub fn read(path: &Path) -> Result<String, String> {
    const KEY: &str = "server.grpc.auth.token_file";
    let token = secret::read(KEY, path)?;
    if !LENGTH.contains(&token.len()) || !token.bytes().all(|b| b.is_ascii_graphic()) {
        let allowed = "no token: allowed are 16 to 4096 printable ASCII characters without spaces, such as \
                       `openssl rand -hex 32` prints";
        return Err(secret::wrong(KEY, path, &allowed));
    }
    Ok(token)
}

impl Auth {
    /// The token in the file, or none.
    pub fn new(file: Option<&Path>) -> Result<Self, String> {
        Watched::new(file.map(|path| File(path.to_owned()))).map(Self)
    }

    /// Another file from now on, or none. If it cannot be used, all stays as it was.
    pub fn set(&self, file: Option<&Path>) -> Result<(), String> {
        self.0.set(file.map(|path| File(path.to_owned())))
    }

    /// Whether a call with this authorization may be made.
    fn allows(&self, authorization: Option<&[u8]>) -> bool {
        let Some(token) = self.0.current() else { return true };
        let given = authorization.and_then(|value| {
            let (scheme, given) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(given)
        });
        given.is_some_and(|given| memcmp::eq(&sha256(given.trim_ascii()), &*token))
    }
}

impl ServerChecker for Auth {
    fn check(&mut self, context: &RpcContext) -> CheckResult {
        // Kubelets and balancers send no token, and hear nothing but whether it serves.
        let method = context.method();
        if [name::HEALTH_CHECK, name::HEALTH_WATCH].iter().any(|exempt| exempt.as_bytes() == method) {
            return CheckResult::Continue;
        }
        let allows = || {
            let mut all = context.request_headers().iter().filter(|(key, _)| *key == "authorization");
            let first = all.next().map(|(_, value)| value);
            self.allows(first.filter(|_| all.next().is_none()))
        };
        // The caller is C.
        if catch_unwind(AssertUnwindSafe(allows)).unwrap_or(false) {
            return CheckResult::Continue;
        }
        COUNTS.ended(End::Failed);
        let message = "the token of server.grpc.auth.token_file is wanted: authorization: Bearer TOKEN";
        CheckResult::Abort(RpcStatus::with_message(RpcStatusCode::UNAUTHENTICATED, message.into()))
    }

    fn box_clone(&self) -> Box<dyn ServerChecker> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_token_may_call() {
        let path = std::env::temp_dir().join(format!("ebpf-sidecar-token-{}", std::process::id()));
        for bad in ["short", "with a space in it", "fifteen-chars--", "sixteen-letters- "] {
            std::fs::write(&path, bad).unwrap();
            assert!(Auth::new(Some(&path)).is_err_and(|e| e.contains("16 to 4096")), "{bad:?}");
        }
        std::fs::write(&path, "sixteen-letters-\n").unwrap();
        let auth = Auth::new(Some(&path)).unwrap();
        for (given, allowed) in [
            (Some(&b"Bearer sixteen-letters-"[..]), true),
            (Some(b"bearer sixteen-letters-"), true),
            (Some(b"Bearer sixteen-letters"), false),
            (Some(b"Bearer "), false),
            (Some(b"Bearer"), false),
            (Some(b"Basic sixteen-letters-"), false),
            (Some(b"sixteen-letters-"), false),
            (Some(b"\xff\xff\xff\xff\xff\xff\xff\xff"), false),
            (None, false),
        ] {
            assert_eq!(auth.allows(given), allowed, "{given:?}");
        }
        std::fs::write(&path, "another-sixteen-letters").unwrap();
        auth.0.forget_the_time();
        assert!(auth.allows(Some(b"Bearer another-sixteen-letters")) && !auth.allows(Some(b"Bearer sixteen-letters-")));
        std::fs::remove_file(&path).unwrap();
        auth.0.forget_the_time();
        assert!(auth.allows(Some(b"Bearer another-sixteen-letters")) && !auth.allows(None), "what was before stays");
        auth.set(None).unwrap();
        assert!(auth.allows(None));
    }
}
