//! Certificates of the gRPC server, whose TLS ends at the [`guard`](super::guard).

use std::fmt;
use std::path::PathBuf;

use openssl::ssl::SslContext;

use crate::config::web::TlsServer;
use crate::config::{Grpc, Tls};
use crate::metrics::grpc::COUNTS;
use crate::server::tls::{Pems, Server};
use crate::server::watched::{Source, Watched};

const SERVER: Server = Server { keys: "server.grpc.tls.", protocol: b"\x02h2" };

/// The files that the configuration names.
pub struct Files {
    tls: TlsServer,
    cert: PathBuf,
}

/// Whether the files of the configuration can be used; false if none are needed. An error names the file.
pub fn check(config: &Grpc) -> Result<bool, String> {
    if let Some(file) = config.token_file.as_ref().filter(|_| config.enabled) {
        super::auth::read(file)?;
    }
    let files = Files::of(&config.tls).filter(|_| config.enabled);
    files.map_or(Ok(false), |files| files.read().and_then(|pems| files.make(&pems)).map(|_| true))
}

/// What is in the files; without TLS, nothing.
pub fn watched(config: &Tls) -> Result<Watched<Files>, String> {
    Watched::new(Files::of(config))
}

impl Files {
    fn of(config: &Tls) -> Option<Self> {
        let (true, Some(cert), Some(key)) = (config.enabled, &config.cert_file, &config.key_file) else { return None };
        let tls = TlsServer::of_files(cert.clone(), key.clone(), config.client_ca_file.clone());
        Some(Self { tls, cert: cert.clone() })
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gRPC: {} or a file that belongs to it", self.cert.display())
    }
}

impl Source for Files {
    type Contents = Pems;
    type Value = SslContext;

    fn read(&self) -> Result<Pems, String> {
        SERVER.read(&self.tls)
    }

    fn make(&self, pems: &Pems) -> Result<SslContext, String> {
        SERVER.context(&self.tls, pems)
    }

    fn used(&self, pems: &Pems) {
        COUNTS.certificate(pems.expires().unwrap_or(0));
        SERVER.warn_if_expired(&self.tls, pems);
    }

    fn refused(&self) {
        COUNTS.certificates_refused();
    }
}
