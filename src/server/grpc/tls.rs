//! Certificates of the gRPC server: checked before gRPC sees them, and read again for each new connection, so that
//! changed files need no restart.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;

use grpcio::{CertificateRequestType, ServerCredentials, ServerCredentialsBuilder, ServerCredentialsFetcher};

use crate::config::{Grpc, Tls};
use crate::host::pem;
use crate::metrics::grpc::COUNTS;

/// Key of the certificate chain in the configuration.
const CERT: &str = "server.grpc.tls.cert_file";

/// The server's credentials, `None` without TLS. An error names the file.
pub fn credentials(config: &Tls) -> Result<Option<ServerCredentials>, String> {
    let Some(files) = Files::of(config) else { return Ok(None) };
    files.load()?.note_expiry(&files);
    let kind = match files.ca {
        Some(_) => CertificateRequestType::RequestAndRequireClientCertificateAndVerify,
        None => CertificateRequestType::DontRequestClientCertificate,
    };
    let fetcher = Fetcher { files, kind, state: Mutex::default() };
    Ok(Some(ServerCredentials::with_fetcher(Box::new(fetcher), kind)))
}

/// Whether the files of the configuration can be used; false if none are needed. An error names the file.
pub fn check(config: &Grpc) -> Result<bool, String> {
    if let Some(file) = config.token_file.as_ref().filter(|_| config.enabled) {
        super::auth::read(file)?;
    }
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

impl Pems {
    /// They come into use.
    fn note_expiry(&self, files: &Files) {
        COUNTS.certificate(pem::expires(&self.cert).unwrap_or(0));
        pem::warn_if_expired((CERT, &files.cert), &self.cert);
    }
}

impl Files {
    fn of(config: &Tls) -> Option<Self> {
        let (true, Some(cert), Some(key)) = (config.enabled, &config.cert_file, &config.key_file) else { return None };
        Some(Self { cert: cert.clone(), key: key.clone(), ca: config.client_ca_file.clone() })
    }

    /// Reads and checks them.
    fn load(&self) -> Result<Pems, String> {
        let (cert, key) = pem::identity((CERT, &self.cert), ("server.grpc.tls.key_file", &self.key))?;
        let ca = self.ca.as_ref().map(|path| pem::certificates("server.grpc.tls.client_ca_file", path));
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
            new.note_expiry(&self.files);
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
