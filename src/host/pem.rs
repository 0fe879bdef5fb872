//! PEM files of certificates and keys, checked before gRPC sees them: it tells nothing of what is wrong with one.
//! Errors name the key of the configuration and the file.

use std::fmt::Display;
use std::path::Path;

use openssl::asn1::Asn1Time;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

use crate::config;
use crate::host::confine;

/// More than any chain of certificates has.
const MAX_BYTES: u64 = 1 << 20;

fn wrong(key: &str, path: &Path, why: impl Display) -> String {
    format!("{key}: {}: {why}", path.display())
}

/// What the file holds.
pub fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    let pem = config::read_file(path, MAX_BYTES).map_err(|e| wrong(key, path, confine::explained(e)))?;
    // grpcio panics on it, in the middle of C code.
    if pem.contains(&0) { Err(wrong(key, path, "has a NUL byte: not PEM")) } else { Ok(pem) }
}

fn parsed(key: &str, path: &Path) -> Result<(Vec<u8>, Vec<X509>), String> {
    let pem = read(key, path)?;
    let all = chain(&pem).ok_or_else(|| wrong(key, path, NO_CERTIFICATE))?;
    Ok((pem, all))
}

/// What is said of a file without one.
pub const NO_CERTIFICATE: &str = "no PEM certificate in it";
/// What is said of a file without one, or with one that nobody can read.
pub const NO_KEY: &str = "no PEM private key without a password in it";

/// The certificates in `pem`, of which there is one at least.
pub fn chain(pem: &[u8]) -> Option<Vec<X509>> {
    X509::stack_from_pem(pem).ok().filter(|all| !all.is_empty())
}

/// The private key in `pem`.
pub fn key(pem: &[u8]) -> Option<PKey<Private>> {
    // Without a callback OpenSSL would ask the terminal for a password.
    PKey::private_key_from_pem_callback(pem, |_| Ok(0)).ok()
}

/// Whether the key is that of the first certificate.
pub fn belongs(key: &PKey<Private>, chain: &[X509]) -> bool {
    chain.first().is_some_and(|first| first.public_key().is_ok_and(|public| public.public_eq(key)))
}

/// The file `path`, which has at least one certificate.
pub fn certificates(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    parsed(key, path).map(|(pem, _)| pem)
}

/// A certificate chain and the private key of its first certificate: each a key of the configuration with its file.
pub fn identity(cert: (&str, &Path), key: (&str, &Path)) -> Result<(Vec<u8>, Vec<u8>), String> {
    let (chain_pem, chain) = parsed(cert.0, cert.1)?;
    let key_pem = read(key.0, key.1)?;
    let private = self::key(&key_pem).ok_or_else(|| wrong(key.0, key.1, NO_KEY))?;
    if !belongs(&private, &chain) {
        let why = format!("does not belong to the first certificate in {}", cert.1.display());
        return Err(wrong(key.0, key.1, why));
    }
    Ok((chain_pem, key_pem))
}

/// When the first certificate of `pem` expires, in seconds since 1970.
pub fn expires(pem: &[u8]) -> Option<u64> {
    let chain = X509::stack_from_pem(pem).ok()?;
    let since = Asn1Time::from_unix(0).ok()?.diff(chain.first()?.not_after()).ok()?;
    u64::try_from(i64::from(since.days) * 86_400 + i64::from(since.secs)).ok()
}

/// Warns if the first certificate of `pem`, which a key of the configuration gave with its file, is no longer valid: to be
/// called when it comes into use.
pub fn warn_if_expired((key, path): (&str, &Path), pem: &[u8]) {
    let expired = |cert: &X509| Asn1Time::days_from_now(0).is_ok_and(|now| cert.not_after() < now);
    if X509::stack_from_pem(pem).is_ok_and(|chain| chain.first().is_some_and(expired)) {
        log::warn!("{}", wrong(key, path, "the certificate has expired: peers will refuse it"));
    }
}
