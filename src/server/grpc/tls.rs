//! Certificates of the gRPC server: checked before gRPC sees them, and read again for each new connection, so that
//! changed files need no restart.

use std::error::Error;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;

use grpcio::{CertificateRequestType, ServerCredentials, ServerCredentialsBuilder, ServerCredentialsFetcher};
use openssl::asn1::Asn1Time;
use openssl::pkey::PKey;
use openssl::x509::X509;

use crate::config::{Grpc, Tls};
use crate::metrics::grpc::COUNTS;

/// The server's credentials, `None` without TLS. An error names the file.
pub fn credentials(config: &Tls) -> Result<Option<ServerCredentials>, String> {
    let Some(files) = Files::of(config) else { return Ok(None) };
    files.load()?;
    let kind = match files.ca {
        Some(_) => CertificateRequestType::RequestAndRequireClientCertificateAndVerify,
        None => CertificateRequestType::DontRequestClientCertificate,
    };
    let fetcher = Fetcher { files, kind, state: Mutex::default() };
    Ok(Some(ServerCredentials::with_fetcher(Box::new(fetcher), kind)))
}

/// Whether the files of the configuration can be used; false if none are needed. An error names the file.
pub fn check(config: &Grpc) -> Result<bool, String> {
    let files = Files::of(&config.tls).filter(|_| config.enabled);
    files.map_or(Ok(false), |files| files.load().map(|_| true))
}

struct Files {
    cert: PathBuf,
    key: PathBuf,
    ca: Option<PathBuf>,
}

/// What the files held.
#[derive(Clone, PartialEq, Eq)]
struct Pems {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Option<Vec<u8>>,
}

impl Files {
    fn of(config: &Tls) -> Option<Self> {
        let (true, Some(cert), Some(key)) = (config.enabled, &config.cert_file, &config.key_file) else { return None };
        Some(Self { cert: cert.clone(), key: key.clone(), ca: config.client_ca_file.clone() })
    }

    /// Reads and checks them.
    fn load(&self) -> Result<Pems, String> {
        let read = |key: &str, path: &PathBuf| {
            let at = |why: &dyn std::fmt::Display| format!("server.grpc.tls.{key}: {}: {why}", path.display());
            let pem = fs::read(path).map_err(|e| at(&e))?;
            // gRPC panics on it, in the middle of C code.
            if pem.contains(&0) { Err(at(&"has a NUL byte: not PEM")) } else { Ok(pem) }
        };
        let bad = |key: &str, path: &PathBuf, why: &str| format!("server.grpc.tls.{key}: {}: {why}", path.display());
        let certificates = |key: &str, path: &PathBuf, pem: &[u8]| match X509::stack_from_pem(pem) {
            Ok(all) if !all.is_empty() => Ok(all),
            _ => Err(bad(key, path, "no PEM certificate in it")),
        };

        let cert = read("cert_file", &self.cert)?;
        let chain = certificates("cert_file", &self.cert, &cert)?;
        let key = read("key_file", &self.key)?;
        // Without a callback OpenSSL would ask the terminal for a password.
        let private = PKey::private_key_from_pem_callback(&key, |_| Ok(0))
            .map_err(|_| bad("key_file", &self.key, "no PEM private key without a password in it"))?;
        if !chain[0].public_key().is_ok_and(|public| public.public_eq(&private)) {
            let why = format!("does not belong to the first certificate in {}", self.cert.display());
            return Err(bad("key_file", &self.key, &why));
        }
        if Asn1Time::days_from_now(0).is_ok_and(|now| chain[0].not_after() < now) {
            log::warn!("{}", bad("cert_file", &self.cert, "the certificate has expired: clients will refuse it"));
        }
        let ca = self.ca.as_ref().map(|path| {
            let pem = read("client_ca_file", path)?;
            certificates("client_ca_file", path, &pem).map(|_| pem)
        });
        Ok(Pems { cert, key, ca: ca.transpose()? })
    }
}

struct Fetcher {
    files: Files,
    kind: CertificateRequestType,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    in_use: Option<Pems>,
    /// Why the files cannot be used, as logged last.
    refused: Option<String>,
}

impl Fetcher {
    fn next(&self) -> Result<Option<ServerCredentialsBuilder>, String> {
        // A panic cannot have left it half changed: each change is one assignment.
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let new = match self.files.load() {
            Ok(new) => new,
            Err(why) if state.in_use.is_none() => return Err(why),
            Err(why) => {
                if state.refused.as_ref() != Some(&why) {
                    log::warn!("{why}; the certificates in use stay");
                    COUNTS.certificates_refused();
                    state.refused = Some(why);
                }
                return Ok(None);
            }
        };
        state.refused = None;
        if state.in_use.as_ref() == Some(&new) {
            return Ok(None);
        }
        if state.in_use.is_some() {
            log::info!("gRPC: certificates changed, {} is in use now", self.files.cert.display());
        }
        let Pems { cert, key, ca } = new.clone();
        let mut builder = ServerCredentialsBuilder::new().add_cert(cert, key);
        if let Some(ca) = ca {
            builder = builder.root_cert(ca, self.kind);
        }
        state.in_use = Some(new);
        Ok(Some(builder))
    }
}

impl ServerCredentialsFetcher for Fetcher {
    fn fetch(&self) -> Result<Option<ServerCredentialsBuilder>, Box<dyn Error>> {
        // The caller is C.
        let next = catch_unwind(AssertUnwindSafe(|| self.next()));
        next.unwrap_or_else(|_| Err("reading the certificates panicked".into())).map_err(Into::into)
    }
}
