//! The token that gRPC calls have to send, if the configuration names a file with one. The file is looked at again while calls
//! come, so that a changed token needs neither signal nor restart.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use grpcio::{CheckResult, RpcContext, RpcStatus, RpcStatusCode, ServerChecker};
use openssl::memcmp;
use openssl::sha::sha256;

use super::stubs::name;
use crate::config::read_file;
use crate::host::confine;
use crate::metrics::grpc::{COUNTS, End};

/// Length of a token: one that cannot be guessed, and fits into the head of a call.
const LENGTH: std::ops::RangeInclusive<usize> = 16..=4096;
/// How often the file is looked at, while somebody calls.
const LOOK: Duration = Duration::from_secs(1);

/// Who may call; shared by all calls and those who change it.
#[derive(Clone, Default)]
pub struct Auth(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    file: Option<PathBuf>,
    /// Digest of the token: equally long, whatever its length.
    token: Option<[u8; 32]>,
    looked: Option<Instant>,
    /// Why the file cannot be used, as logged last.
    refused: Option<String>,
}

/// The token in the file.
pub fn read(path: &Path) -> Result<String, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("server.grpc.auth.token_file: {}: {why}", path.display());
    let bytes = read_file(path, *LENGTH.end() as u64 + 2).map_err(|e| wrong(&confine::explained(e)))?;
    let token = bytes.trim_ascii_end();
    if !LENGTH.contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
        let allowed = "no token: allowed are 16 to 4096 printable ASCII characters without spaces, such as \
                       `openssl rand -hex 32` prints";
        return Err(wrong(&allowed));
    }
    // All of it is ASCII.
    Ok(String::from_utf8_lossy(token).into_owned())
}

impl Auth {
    /// The token in the file, or none.
    pub fn new(file: Option<&Path>) -> Result<Self, String> {
        let auth = Self::default();
        auth.set(file)?;
        Ok(auth)
    }

    /// Another file from now on, or none. If it cannot be used, all stays as it was.
    pub fn set(&self, file: Option<&Path>) -> Result<(), String> {
        let token = file.map(read).transpose()?.map(|token| sha256(token.as_bytes()));
        let (file, looked) = (file.map(Path::to_owned), Some(Instant::now()));
        *self.lock() = State { file, token, looked, refused: None };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot have left it half changed.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether a call with this authorization may be made.
    fn allows(&self, authorization: Option<&[u8]>) -> bool {
        let mut state = self.lock();
        state.look();
        let Some(token) = &state.token else { return true };
        let given = authorization.and_then(|value| {
            let (scheme, given) = value.split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(given)
        });
        given.is_some_and(|given| memcmp::eq(&sha256(given.trim_ascii()), token))
    }
}

impl State {
    fn look(&mut self) {
        let due = self.looked.is_none_or(|at| at.elapsed() >= LOOK);
        let Some(file) = self.file.as_ref().filter(|_| due) else { return };
        self.looked = Some(Instant::now());
        match read(file) {
            Ok(token) => {
                let token = Some(sha256(token.as_bytes()));
                if self.token != token {
                    log::info!("gRPC: the token in {} has changed, and is in use now", file.display());
                }
                (self.token, self.refused) = (token, None);
            }
            Err(why) => {
                if self.refused.as_ref() != Some(&why) {
                    log::error!("{why}; the token before stays in use");
                    self.refused = Some(why);
                }
            }
        }
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
        for bad in ["", "short", "with a space in it", "fifteen-chars--", "nul\0nul\0nul\0nul\0nul\0"] {
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
        auth.lock().looked = None;
        assert!(auth.allows(Some(b"Bearer another-sixteen-letters")) && !auth.allows(Some(b"Bearer sixteen-letters-")));
        std::fs::remove_file(&path).unwrap();
        auth.lock().looked = None;
        assert!(auth.allows(Some(b"Bearer another-sixteen-letters")) && !auth.allows(None), "what was before stays");
        auth.set(None).unwrap();
        assert!(auth.allows(None));
    }
}
