//! TLS of both servers: certificates and keys, checked, and what OpenSSL makes of them. Errors name the key of the configuration
//! and the file.

use std::path::Path;

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    AlpnError, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslVerifyMode,
    SslVersion, select_next_proto,
};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Ref};

use crate::config::web::{ClientAuth, Source, TlsServer, Version};
use crate::host::pem;

/// Certificates between a client's and an authority.
const DEPTH: u32 = 8;

/// A server, as its TLS sees it.
pub struct Server {
    /// What stands before `cert_file`, `key_file` and `client_ca_file` in the configuration.
    pub keys: &'static str,
    /// What it speaks, as ALPN has it: its length and its name.
    pub protocol: &'static [u8],
}

/// What the files held.
#[derive(Default, PartialEq, Eq)]
pub struct Pems {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

impl Pems {
    /// When the certificate expires, in seconds since 1970.
    pub fn expires(&self) -> Option<u64> {
        pem::expires(&self.cert)
    }
}

fn place(source: Option<Source<'_>>) -> &Path {
    match source {
        Some(Source::File(path)) => path,
        Some(Source::Inline(_)) => Path::new("the text given"),
        None => Path::new(""),
    }
}

impl Server {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.keys)
    }

    fn wrong(&self, name: &str, source: Option<Source<'_>>, why: &str) -> String {
        format!("{}: {}: {why}", self.key(name), place(source).display())
    }

    /// Reads the files.
    pub fn read(&self, tls: &TlsServer) -> Result<Pems, String> {
        let pem = |name, source| match source {
            None => Ok(Vec::new()),
            Some(Source::File(path)) => pem::read(&self.key(name), path),
            Some(Source::Inline(text)) => Ok(text.as_bytes().to_vec()),
        };
        let (cert, key) = (pem(CERT, tls.cert())?, pem(KEY, tls.key())?);
        Ok(Pems { cert, key, ca: pem(CA, tls.client_ca())? })
    }

    /// What is made of them, if they are sound.
    pub fn context(&self, tls: &TlsServer, pems: &Pems) -> Result<SslContext, String> {
        let chain = pem::chain(&pems.cert).ok_or_else(|| self.wrong(CERT, tls.cert(), pem::NO_CERTIFICATE))?;
        let key = pem::key(&pems.key).ok_or_else(|| self.wrong(KEY, tls.key(), pem::NO_KEY))?;
        if !pem::belongs(&key, &chain) {
            let why = format!("does not belong to the first certificate in {}", place(tls.cert()).display());
            return Err(self.wrong(KEY, tls.key(), &why));
        }
        let authorities = match tls.client_ca() {
            None => Vec::new(),
            ca => pem::chain(&pems.ca).ok_or_else(|| self.wrong(CA, ca, pem::NO_CERTIFICATE))?,
        };
        build(tls, &chain, &key, authorities, self.protocol).map_err(|e| {
            let why = e.errors().first().and_then(|e| e.reason()).unwrap_or("refused by OpenSSL").to_owned();
            self.wrong(CERT, tls.cert(), &format!("TLS cannot be set up with it: {why}"))
        })
    }

    /// Warns if the certificate is no longer valid: to be called when it comes into use.
    pub fn warn_if_expired(&self, tls: &TlsServer, pems: &Pems) {
        pem::warn_if_expired((&self.key(CERT), place(tls.cert())), &pems.cert);
    }
}

const CERT: &str = "cert_file";
const KEY: &str = "key_file";
const CA: &str = "client_ca_file";

fn build(
    tls: &TlsServer,
    chain: &[X509],
    key: &PKey<Private>,
    authorities: Vec<X509>,
    protocol: &'static [u8],
) -> Result<SslContext, ErrorStack> {
    let mut builder = SslContextBuilder::new(SslMethod::tls_server())?;
    // A buffer for each connection only while it is used; an answer is written as far as the socket takes it.
    builder.set_mode(SslMode::RELEASE_BUFFERS | SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
    builder.set_options(SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION | SslOptions::NO_TICKET);
    if tls.prefer_server_cipher_suites.unwrap_or(true) {
        builder.set_options(SslOptions::CIPHER_SERVER_PREFERENCE);
    }
    // No session outlives its connection, or the certificates that it was made with.
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_num_tickets(0)?;
    let version = |v: Version| match v {
        Version::Tls12 => SslVersion::TLS1_2,
        Version::Tls13 => SslVersion::TLS1_3,
    };
    builder.set_min_proto_version(Some(version(tls.min_version.unwrap_or(Version::Tls12))))?;
    builder.set_max_proto_version(tls.max_version.map(version))?;
    let suites = |of_13: bool| -> Vec<&str> {
        tls.cipher_suites.iter().filter(|c| c.is_of_tls13() == of_13).map(|c| c.openssl()).collect()
    };
    if !suites(true).is_empty() {
        builder.set_ciphersuites(&suites(true).join(":"))?;
    }
    if !suites(false).is_empty() {
        builder.set_cipher_list(&suites(false).join(":"))?;
    }
    if !tls.curve_preferences.is_empty() {
        let names: Vec<&str> = tls.curve_preferences.iter().map(|c| c.openssl()).collect();
        builder.set_groups_list(&names.join(":"))?;
    }
    builder.set_alpn_select_callback(move |_, offered| select_next_proto(protocol, offered).ok_or(AlpnError::NOACK));

    if let [first, rest @ ..] = chain {
        builder.set_certificate(first)?;
        for cert in rest {
            builder.add_extra_chain_cert(cert.clone())?;
        }
    }
    builder.set_private_key(key)?;

    let mut store = X509StoreBuilder::new()?;
    for ca in authorities {
        builder.add_client_ca(&ca)?;
        store.add_cert(ca)?;
    }
    builder.set_verify_cert_store(store.build())?;
    builder.set_verify_depth(DEPTH);
    let verifies = matches!(tls.client_auth_type, ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify);
    let mode = match tls.client_auth_type {
        ClientAuth::None => SslVerifyMode::NONE,
        ClientAuth::Request | ClientAuth::VerifyIfGiven => SslVerifyMode::PEER,
        ClientAuth::RequireAny | ClientAuth::RequireAndVerify => {
            SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT
        }
    };
    let names = tls.client_allowed_sans.clone();
    builder.set_verify_callback(mode, move |sound, context| {
        let allowed = || names.is_empty() || context.current_cert().is_some_and(|cert| has_name(cert, &names));
        (sound || !verifies) && (context.error_depth() > 0 || allowed())
    });
    Ok(builder.build())
}

/// Whether the certificate has one of these names, of whatever kind.
fn has_name(cert: &X509Ref, names: &[String]) -> bool {
    let Some(own) = cert.subject_alt_names() else { return false };
    own.iter().any(|name| {
        let ip = name.ipaddress().and_then(|bytes| match bytes.len() {
            4 => Some(std::net::IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
            _ => Some(std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
        });
        let text = name.dnsname().or(name.email()).or(name.uri()).map(str::to_owned).or(ip);
        text.is_some_and(|text| names.contains(&text))
    })
}
