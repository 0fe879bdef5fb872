//! What `server.http.web_config` asks for, ready for use: TLS, users, headers. The files are looked at again while the server
//! is used, so that changed ones need neither signal nor restart. What cannot be used is told and changes nothing.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    AlpnError, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslVerifyMode,
    SslVersion, select_next_proto,
};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Ref};

use crate::config::web::{self, ClientAuth, RateLimit, Source, TlsServer, Version, WebConfig};
use crate::host::pem;
use crate::metrics::http::COUNTS;

/// How often the files are looked at, while somebody asks.
const LOOK: Duration = Duration::from_secs(1);
/// Certificates between a client's and an authority.
const DEPTH: u32 = 8;

/// What holds for those who ask now.
#[derive(Default)]
pub struct Policy {
    /// TLS; none: plain HTTP.
    pub tls: Option<SslContext>,
    /// What else the file says.
    pub config: WebConfig,
}

/// What the files held, to see whether they changed.
#[derive(Default, PartialEq, Eq)]
struct Contents {
    config: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

/// Who may ask, and how; shared by the front and those who change it.
#[derive(Clone)]
pub struct Access(Arc<Mutex<State>>);

struct State {
    path: Option<PathBuf>,
    contents: Contents,
    policy: Arc<Policy>,
    looked: Instant,
    /// Why the files cannot be used, as logged last.
    refused: Option<String>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Access").field(&self.lock().path).finish()
    }
}

/// Whether the file and those that it names can be used, and whether it asks for TLS.
pub fn check(path: &Path) -> Result<bool, String> {
    let (config, contents) = read(path)?;
    policy(config, &contents).map(|policy| policy.tls.is_some())
}

impl Access {
    /// What the file asks for; without one, nothing.
    pub fn new(path: Option<&Path>) -> Result<Self, String> {
        let (contents, policy) = load(path)?;
        policy.note_expiry(&contents);
        if !policy.config.users.0.is_empty() && policy.tls.is_none() {
            log::warn!("server.http.web_config: passwords without TLS: whoever is on the way reads them");
        }
        let (path, policy, looked) = (path.map(Path::to_owned), Arc::new(policy), Instant::now());
        Ok(Self(Arc::new(Mutex::new(State { path, contents, policy, looked, refused: None }))))
    }

    /// What holds now. Looks at the files first, if that is due.
    pub fn current(&self) -> Arc<Policy> {
        let mut state = self.lock();
        if state.path.is_some() && state.looked.elapsed() >= LOOK {
            state.look();
            state.looked = Instant::now();
        }
        Arc::clone(&state.policy)
    }

    /// Another file from now on, or none. If it cannot be used, all stays as it was.
    pub fn set(&self, path: Option<&Path>) -> Result<(), String> {
        let (contents, policy) = load(path)?;
        let mut state = self.lock();
        if contents != state.contents {
            policy.note_expiry(&contents);
        }
        let path = path.map(Path::to_owned);
        *state = State { path, contents, policy: Arc::new(policy), looked: Instant::now(), refused: None };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot have left it half changed.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    fn look(&mut self) {
        let Some(path) = &self.path else { return };
        let changed = read(path).and_then(|(config, contents)| match contents == self.contents {
            true => Ok(None),
            false => policy(config, &contents).map(|policy| Some((contents, policy))),
        });
        match changed {
            Ok(None) => self.refused = None,
            Ok(Some((contents, policy))) => {
                log::info!("HTTP: {} or a file that it names has changed, and is in use now", path.display());
                policy.note_expiry(&contents);
                (self.contents, self.policy, self.refused) = (contents, Arc::new(policy), None);
            }
            Err(why) => {
                if self.refused.as_ref() != Some(&why) {
                    log::error!("{why}; what was before stays in use");
                    COUNTS.config_refused();
                    self.refused = Some(why);
                }
            }
        }
    }
}

impl Policy {
    /// It comes into use.
    fn note_expiry(&self, contents: &Contents) {
        COUNTS.certificate(self.tls.as_ref().and_then(|_| pem::expires(&contents.cert)));
        if let Some(tls) = &self.config.tls
            && let Some(cert) = tls.cert()
        {
            pem::warn_if_expired((CERT, place(cert)), &contents.cert);
        }
    }
}

const CERT: &str = "server.http.web_config: cert_file";
const KEY: &str = "server.http.web_config: key_file";
const CA: &str = "server.http.web_config: client_ca_file";

fn place(source: Source<'_>) -> &Path {
    match source {
        Source::File(path) => path,
        Source::Inline(_) => Path::new("the text given"),
    }
}

fn pem_of(key: &str, source: Option<Source<'_>>) -> Result<Vec<u8>, String> {
    match source {
        None => Ok(Vec::new()),
        Some(Source::File(path)) => pem::read(key, path),
        Some(Source::Inline(text)) => Ok(text.as_bytes().to_vec()),
    }
}

fn load(path: Option<&Path>) -> Result<(Contents, Policy), String> {
    let Some(path) = path else { return Ok(Default::default()) };
    let (config, contents) = read(path)?;
    let policy = policy(config, &contents)?;
    Ok((contents, policy))
}

fn read(path: &Path) -> Result<(WebConfig, Contents), String> {
    let (bytes, config) = web::read(path)?;
    let mut contents = Contents { config: bytes, ..Contents::default() };
    if let Some(tls) = &config.tls {
        contents.cert = pem_of(CERT, tls.cert())?;
        contents.key = pem_of(KEY, tls.key())?;
        contents.ca = pem_of(CA, tls.client_ca())?;
    }
    Ok((config, contents))
}

fn policy(config: WebConfig, contents: &Contents) -> Result<Policy, String> {
    let tls = config.tls.as_ref().map(|tls| context(tls, contents)).transpose()?;
    Ok(Policy { tls, config })
}

fn context(tls: &TlsServer, contents: &Contents) -> Result<SslContext, String> {
    let wrong = |key: &str, source: Option<Source<'_>>, why: &str| {
        format!("{key}: {}: {why}", source.map_or(Path::new(""), place).display())
    };
    let chain = pem::chain(&contents.cert).ok_or_else(|| wrong(CERT, tls.cert(), pem::NO_CERTIFICATE))?;
    let key = pem::key(&contents.key).ok_or_else(|| wrong(KEY, tls.key(), pem::NO_KEY))?;
    if !pem::belongs(&key, &chain) {
        let cert = tls.cert().map_or(Path::new(""), place).display();
        return Err(wrong(KEY, tls.key(), &format!("does not belong to the first certificate in {cert}")));
    }
    let authorities = match tls.client_ca() {
        None => Vec::new(),
        ca => pem::chain(&contents.ca).ok_or_else(|| wrong(CA, ca, pem::NO_CERTIFICATE))?,
    };
    build(tls, &chain, &key, authorities).map_err(|e| {
        let why = e.errors().first().and_then(|e| e.reason()).unwrap_or("refused by OpenSSL").to_owned();
        wrong(CERT, tls.cert(), &format!("TLS cannot be set up with it: {why}"))
    })
}

fn build(
    tls: &TlsServer,
    chain: &[X509],
    key: &PKey<Private>,
    authorities: Vec<X509>,
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
    builder.set_alpn_select_callback(|_, offered| select_next_proto(b"\x08http/1.1", offered).ok_or(AlpnError::NOACK));

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

/// So many requests, and one more with each interval.
#[derive(Default)]
pub struct Tokens {
    limit: RateLimit,
    left: u32,
    since: Option<Instant>,
}

impl Tokens {
    /// Whether one more request may be answered.
    pub fn take(&mut self, limit: &RateLimit, now: Instant) -> bool {
        if limit.interval.is_zero() {
            return true;
        }
        if *limit != self.limit {
            *self = Self { limit: limit.clone(), left: limit.burst, since: Some(now) };
        }
        let since = *self.since.get_or_insert(now);
        let more = now.saturating_duration_since(since).as_nanos() / limit.interval.as_nanos().max(1);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(limit.burst);
            self.since = limit.interval.checked_mul(more).and_then(|d| since.checked_add(d)).or(Some(now));
        }
        let taken = self.left.checked_sub(1);
        self.left = taken.unwrap_or(0);
        taken.is_some()
    }
}
