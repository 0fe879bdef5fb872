//! What `health` and `top` need to ask an agent that has TLS or passwords: from the same configuration as the agent's, and from
//! the keys under `client`.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use grpcio::{ChannelCredentials, ChannelCredentialsBuilder};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use openssl::x509::X509;

use crate::config::Config;
use crate::config::web::{self, Source, WebConfig};
use crate::host::{pem, secret};
use crate::server::grpc::auth;

const CA: &str = "client.ca_file";

/// How to ask over HTTP.
#[derive(Default)]
pub struct Http {
    /// TLS, with what is known of the server's certificate.
    pub tls: Option<Tls>,
    /// Lines of the request's head that say who asks.
    pub authorization: String,
}

/// TLS.
pub struct Tls {
    /// Makes connections.
    pub connector: SslConnector,
    /// The one certificate that the server may have, if that is known; else an authority has signed it.
    pub pinned: Option<X509>,
}

/// How to ask over gRPC.
#[derive(Default)]
pub struct Grpc {
    /// TLS, and the name that the certificate of a server on this host has.
    pub tls: Option<(ChannelCredentials, Option<String>)>,
    /// The token.
    pub token: Option<String>,
}

/// A certificate chain and its key, as PEM.
type Pair = (Vec<u8>, Vec<u8>);

fn own_identity(config: &Config) -> Result<Option<Pair>, String> {
    match (&config.client.cert_file, &config.client.key_file) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => pem::identity(("client.cert_file", cert), ("client.key_file", key)).map(Some),
        _ => Err("client.cert_file and client.key_file go together: both or neither".into()),
    }
}

/// How the HTTP server of this configuration is asked, or another with what `client` says.
pub fn http(config: &Config) -> Result<Http, String> {
    let own = match &config.server.http.web_config {
        Some(path) => web::read(path)?,
        None => WebConfig::default(),
    };
    let client = &config.client;
    let authorization = match (&client.username, &client.password_file) {
        (Some(name), Some(path)) => {
            let password = secret::read("client.password_file", path)?;
            format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{name}:{password}")))
        }
        (Some(_), None) | (None, Some(_)) => {
            return Err("client.username and client.password_file go together: both or neither".into());
        }
        _ if !own.users.0.is_empty() => {
            return Err(
                "server.http.web_config asks for a password: client.username and client.password_file say which".into(),
            );
        }
        _ => String::new(),
    };
    if own.tls.is_none() && client.ca_file.is_none() {
        return Ok(Http { tls: None, authorization });
    }

    let wrong = |e: openssl::error::ErrorStack| format!("TLS cannot be set up: {e}");
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(wrong)?;
    if let Some((cert, key)) = own_identity(config)? {
        // Both were found sound.
        let (chain, key) = (pem::chain(&cert).unwrap_or_default(), pem::key(&key));
        for (i, cert) in chain.iter().enumerate() {
            match i {
                0 => builder.set_certificate(cert).map_err(wrong)?,
                _ => builder.add_extra_chain_cert(cert.clone()).map_err(wrong)?,
            }
        }
        if let Some(key) = key {
            builder.set_private_key(&key).map_err(wrong)?;
        }
    }
    let pinned = match (&client.ca_file, own.tls.as_ref().and_then(|tls| tls.cert())) {
        (Some(path), _) => {
            let authorities = pem::certificates(CA, path)?;
            for authority in pem::chain(&authorities).unwrap_or_default() {
                builder.cert_store_mut().add_cert(authority).map_err(wrong)?;
            }
            None
        }
        (None, cert) => {
            // Which certificate it is decides, whoever signed it and whatever name it has.
            builder.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
            let key = "server.http.web_config: cert_file";
            let pem = match cert {
                Some(Source::File(path)) => pem::certificates(key, path)?,
                Some(Source::Inline(text)) => text.as_bytes().to_vec(),
                None => Vec::new(),
            };
            let first = pem::chain(&pem).and_then(|all| all.into_iter().next());
            Some(first.ok_or_else(|| format!("{key}: {}", pem::NO_CERTIFICATE))?)
        }
    };
    Ok(Http { tls: Some(Tls { connector: builder.build(), pinned }), authorization })
}

/// How the gRPC server of this configuration is asked, or another with what `client` says. `at` is where it is.
pub fn grpc(config: &Config, at: IpAddr) -> Result<Grpc, String> {
    let (server, client) = (&config.server.grpc, &config.client);
    let token = match (&client.token_file, &server.token_file) {
        (Some(path), _) => Some(secret::read("client.token_file", path)?),
        (None, Some(path)) => Some(auth::read(path)?),
        (None, None) => None,
    };
    let own = server.cert_file_in_use().map(|path| pem::certificates("server.grpc.tls.cert_file", path)).transpose()?;
    let authorities = client.ca_file.as_ref().map(|path| pem::certificates(CA, path)).transpose()?;
    let Some(trusted) = authorities.or_else(|| own.clone()) else { return Ok(Grpc { tls: None, token }) };
    let mut credentials = ChannelCredentialsBuilder::new().root_cert(trusted);
    if let Some((cert, key)) = own_identity(config)? {
        credentials = credentials.cert(cert, key);
    }
    // gRPC compares names always: on this host with that of the certificate configured.
    let name = own.filter(|_| at.to_canonical().is_loopback()).and_then(|pem| name_of(&pem));
    Ok(Grpc { tls: Some((credentials.build(), name)), token })
}

/// A name that the certificate is for.
fn name_of(pem: &[u8]) -> Option<String> {
    let first = pem::chain(pem)?.into_iter().next()?;
    let names = first.subject_alt_names();
    let dns = names.iter().flatten().find_map(|name| name.dnsname().map(|n| n.replacen("*.", "any.", 1)));
    let ip = || {
        names.iter().flatten().find_map(|name| match name.ipaddress()? {
            &[a, b, c, d] => Some(IpAddr::from([a, b, c, d]).to_string()),
            other => Some(IpAddr::from(<[u8; 16]>::try_from(other).ok()?).to_string()),
        })
    };
    let common = || {
        let entry = first.subject_name().entries_by_nid(openssl::nid::Nid::COMMONNAME).next()?;
        entry.data().to_string().ok()
    };
    dns.or_else(ip).or_else(common)
}
