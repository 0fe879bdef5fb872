//! The file that `server.http.web_config` names: TLS, passwords and headers of the HTTP server, in the format that the
//! exporters of Prometheus share. What differs: TLS below 1.2 is refused, and so are hashes that take minutes to check.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::keys::duration_text;
use super::{MAX_FILE_BYTES, read_file};

/// Costs of bcrypt that are taken; each step doubles the time of a login: about 1 s at 14.
const COSTS: std::ops::RangeInclusive<u32> = 4..=14;
/// Headers that may be added to answers, as in the exporters.
const HEADERS: [&str; 5] = [
    "Content-Security-Policy",
    "X-Frame-Options",
    "X-Content-Type-Options",
    "X-XSS-Protection",
    "Strict-Transport-Security",
];

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "tls_server_config, http_server_config, basic_auth_users, rate_limit"
)]
pub struct WebConfig {
    /// Encryption; without it the server speaks plain HTTP.
    #[serde(rename = "tls_server_config", deserialize_with = "or_default")]
    pub tls: Option<TlsServer>,
    /// About HTTP itself.
    #[serde(rename = "http_server_config", deserialize_with = "or_default")]
    pub http: HttpServer,
    /// Who may ask, and the bcrypt hash of each one's password; empty: everybody.
    #[serde(rename = "basic_auth_users", deserialize_with = "or_default")]
    pub users: Unique<Hash>,
    /// How often may be asked.
    #[serde(deserialize_with = "or_default")]
    pub rate_limit: RateLimit,
}

impl WebConfig {
    /// The files that it names.
    pub fn files(&self) -> Vec<PathBuf> {
        let of = |tls: &TlsServer| [&tls.cert_file, &tls.key_file, &tls.client_ca_file].map(Clone::clone);
        self.tls.as_ref().map(of).into_iter().flatten().flatten().collect()
    }
}

/// Encryption.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsServer {
    cert_file: Option<PathBuf>,
    cert: Option<String>,
    key_file: Option<PathBuf>,
    key: Option<Inline>,
    client_ca_file: Option<PathBuf>,
    client_ca: Option<String>,
    /// What is asked of clients.
    pub client_auth_type: ClientAuth,
    /// Names of which a client's certificate has to have one; empty: any.
    #[serde(deserialize_with = "or_default")]
    pub client_allowed_sans: Vec<String>,
    /// The least version of TLS.
    pub min_version: Option<Version>,
    /// The greatest.
    pub max_version: Option<Version>,
    /// What may be used to encrypt; empty: what OpenSSL thinks good.
    #[serde(deserialize_with = "or_default")]
    pub cipher_suites: Vec<Cipher>,
    /// Whether the order of `cipher_suites` goes before the client's.
    pub prefer_server_cipher_suites: Option<bool>,
    /// What may be used to agree on a key; empty: what OpenSSL thinks good.
    #[serde(deserialize_with = "or_default")]
    pub curve_preferences: Vec<Curve>,
}

/// PEM text that lies in a file, or in the configuration itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// In this file.
    File(&'a Path),
    /// This text.
    Inline(&'a str),
}

/// A private key, which nothing prints.
#[derive(Clone, PartialEq, Eq, serde::Deserialize)]
struct Inline(String);

impl fmt::Debug for Inline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl TlsServer {
    /// The certificate chain; [`read`] has seen to it that there is one.
    pub fn cert(&self) -> Option<Source<'_>> {
        source(&self.cert_file, self.cert.as_deref())
    }

    /// Its private key; likewise.
    pub fn key(&self) -> Option<Source<'_>> {
        source(&self.key_file, self.key.as_ref().map(|k| k.0.as_str()))
    }

    /// Authorities that sign the clients' certificates.
    pub fn client_ca(&self) -> Option<Source<'_>> {
        source(&self.client_ca_file, self.client_ca.as_deref())
    }

    /// A certificate and its key, and the authorities that have to have signed the clients', if there are any.
    pub fn of_files(cert: PathBuf, key: PathBuf, client_ca: Option<PathBuf>) -> Self {
        let client_auth_type = if client_ca.is_some() { ClientAuth::RequireAndVerify } else { ClientAuth::None };
        let (cert_file, key_file, client_ca_file) = (Some(cert), Some(key), client_ca);
        Self { cert_file, key_file, client_ca_file, client_auth_type, ..Self::default() }
    }

    /// Paths are relative to the folder of the file.
    fn within(&mut self, folder: &Path) {
        for path in [&mut self.cert_file, &mut self.key_file, &mut self.client_ca_file].into_iter().flatten() {
            *path = folder.join(&*path);
        }
    }

    fn check(&self) -> Result<(), String> {
        let both = |name: &str, file: bool, text: bool| match (file, text) {
            (true, true) => {
                Err(format!("tls_server_config: {name} and {name}_file are both given; allowed: one of them"))
            }
            _ => Ok(file || text),
        };
        let cert = both("cert", self.cert_file.is_some(), self.cert.is_some())?;
        let key = both("key", self.key_file.is_some(), self.key.is_some())?;
        let ca = both("client_ca", self.client_ca_file.is_some(), self.client_ca.is_some())?;
        for (there, name) in [(cert, "cert"), (key, "key")] {
            if !there {
                return Err(format!(
                    "tls_server_config: {name}_file is missing; allowed: {name}_file, or {name} with its text"
                ));
            }
        }
        let verifies = matches!(self.client_auth_type, ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify);
        let requires = matches!(self.client_auth_type, ClientAuth::RequireAny | ClientAuth::RequireAndVerify);
        if ca && self.client_auth_type == ClientAuth::None {
            return Err("tls_server_config: client_ca_file without a client_auth_type; allowed: client_auth_type: \
                        RequireAndVerifyClientCert with it"
                .into());
        }
        if verifies && !ca {
            return Err(
                "tls_server_config: client_auth_type needs client_ca_file: who else signs the clients' certificates?"
                    .into(),
            );
        }
        if !self.client_allowed_sans.is_empty() && !requires {
            return Err(
                "tls_server_config: client_allowed_sans needs client_auth_type: RequireAndVerifyClientCert".into()
            );
        }
        if let (Some(min), Some(max)) = (self.min_version, self.max_version)
            && min > max
        {
            return Err("tls_server_config: min_version is above max_version".into());
        }
        Ok(())
    }
}

fn source<'a>(file: &'a Option<PathBuf>, text: Option<&'a str>) -> Option<Source<'a>> {
    file.as_deref().map(Source::File).or(text.map(Source::Inline))
}

/// What is asked of clients, in Go's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
pub enum ClientAuth {
    /// Nothing.
    #[default]
    #[serde(rename = "NoClientCert", alias = "")]
    None,
    /// A certificate, but they need have none.
    #[serde(rename = "RequestClientCert")]
    Request,
    /// A certificate, whoever signed it.
    #[serde(rename = "RequireAnyClientCert", alias = "RequireClientCert")]
    RequireAny,
    /// A certificate, but they need have none; if they have, an authority has signed it.
    #[serde(rename = "VerifyClientCertIfGiven")]
    VerifyIfGiven,
    /// A certificate that an authority has signed.
    #[serde(rename = "RequireAndVerifyClientCert")]
    RequireAndVerify,
}

/// A version of TLS. Those before are broken (RFC 8996).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
pub enum Version {
    /// 1.2
    #[serde(rename = "TLS12")]
    Tls12,
    /// 1.3
    #[serde(rename = "TLS13")]
    Tls13,
}

/// Declares a choice: IANA's (and so Go's) name, and OpenSSL's.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($variant:ident $name:literal $openssl:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
        #[allow(missing_docs, reason = "the names say it")]
        pub enum $type { $(#[serde(rename = $name)] $variant,)* }

        impl $type {
            /// What OpenSSL calls it.
            pub fn openssl(self) -> &'static str {
                match self { $($type::$variant => $openssl,)* }
            }
        }
    };
}

named! {
    /// A cipher suite, of those that Go thinks sound.
    Cipher {
        Aes128 "TLS_AES_128_GCM_SHA256" "TLS_AES_128_GCM_SHA256",
        Aes256 "TLS_AES_256_GCM_SHA384" "TLS_AES_256_GCM_SHA384",
        ChaCha "TLS_CHACHA20_POLY1305_SHA256" "TLS_CHACHA20_POLY1305_SHA256",
        EcdsaAes128 "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" "ECDHE-ECDSA-AES128-GCM-SHA256",
        EcdsaAes256 "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" "ECDHE-ECDSA-AES256-GCM-SHA384",
        RsaAes128 "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" "ECDHE-RSA-AES128-GCM-SHA256",
        RsaAes256 "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" "ECDHE-RSA-AES256-GCM-SHA384",
        EcdsaChaCha "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" "ECDHE-ECDSA-CHACHA20-POLY1305",
        RsaChaCha "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" "ECDHE-RSA-CHACHA20-POLY1305",
        EcdsaAes128Cbc "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA" "ECDHE-ECDSA-AES128-SHA",
        EcdsaAes256Cbc "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA" "ECDHE-ECDSA-AES256-SHA",
        RsaAes128Cbc "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA" "ECDHE-RSA-AES128-SHA",
        RsaAes256Cbc "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA" "ECDHE-RSA-AES256-SHA",
    }
}

impl Cipher {
    /// Whether it is one of TLS 1.3, which are set apart from the others.
    pub fn is_of_tls13(self) -> bool {
        matches!(self, Cipher::Aes128 | Cipher::Aes256 | Cipher::ChaCha)
    }
}

named! {
    /// A group in which both sides agree on a key.
    Curve {
        P256 "CurveP256" "P-256",
        P384 "CurveP384" "P-384",
        P521 "CurveP521" "P-521",
        X25519 "X25519" "X25519",
    }
}

/// About HTTP itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpServer {
    /// Taken, and without effect: the server speaks HTTP/1.1.
    pub http2: Option<bool>,
    /// Headers added to answers that have none of that name.
    #[serde(deserialize_with = "or_default")]
    pub headers: Unique<String>,
}

/// Requests of all clients together: one each `interval`, and up to `burst` at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Time for one more request; zero: no limit.
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
    /// Requests that may come at once.
    pub burst: u32,
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    duration_text(&text)
        .ok_or_else(|| D::Error::custom("a duration from 10ms to 1h is wanted, such as 500ms or 1s, or 0"))
}

/// A bcrypt hash that can be checked in bounded time; nothing prints it.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash(String);

impl Hash {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same cost, and no password that fits: what an unknown user's is compared with.
    pub fn of_nobody(&self) -> Hash {
        Hash(format!("{}{}", self.0.get(..7).unwrap_or_default(), ".".repeat(53)))
    }

    fn parse(text: &str) -> Result<Hash, String> {
        let wanted = "a bcrypt hash is wanted, such as `htpasswd -nBC 10 USER` prints: $2y$10$ and 53 characters";
        let mut parts = text.splitn(4, '$');
        let (Some(""), Some(version), Some(cost), Some(rest)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wanted.into());
        };
        if !["2a", "2b", "2y"].contains(&version) {
            return Err(match version {
                "2x" => "hashes that begin with $2x$ are of a broken bcrypt; allowed: $2a$, $2b$, $2y$".into(),
                _ => wanted.into(),
            });
        }
        let digits = cost.len() == 2 && cost.bytes().all(|b| b.is_ascii_digit());
        match cost.parse::<u32>() {
            Ok(n) if digits && COSTS.contains(&n) => {}
            Ok(n) if digits && n > *COSTS.end() => {
                return Err(format!(
                    "a hash of cost {n} takes too long to check, twice the time with each step; allowed: {} to {}",
                    COSTS.start(),
                    COSTS.end()
                ));
            }
            _ => return Err(wanted.into()),
        }
        let of_base64 = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'/';
        if rest.len() != 53 || !rest.bytes().all(of_base64) {
            return Err(wanted.into());
        }
        Ok(Hash(text.to_owned()))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Hash;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a bcrypt hash")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Hash, E> {
                Hash::parse(text).map_err(E::custom)
            }
        }
        d.deserialize_str(Text)
    }
}

/// A mapping whose names are each there once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unique<T>(pub BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Unique(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Names<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Names<T> {
            type Value = Unique<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names with values")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut all = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if all.contains_key(&name) {
                        return Err(A::Error::custom(format!("{name:?} is given twice; allowed: once")));
                    }
                    all.insert(name, map.next_value()?);
                }
                Ok(Unique(all))
            }
        }
        d.deserialize_map(Names(PhantomData))
    }
}

/// Nothing after a key is as if the key were not there.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// What the file at `path` says. An error names the file, and the line where there is one.
pub fn read(path: &Path) -> Result<WebConfig, String> {
    let bytes =
        read_file(path, MAX_FILE_BYTES).map_err(|e| format!("server.http.web_config: {}: {e}", path.display()))?;
    parse(path, &bytes)
}

/// What `bytes` say, as if they were the file at `path`.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<WebConfig, String> {
    let fail =
        |line: Option<usize>, why: &str| format!("server.http.web_config: {}: {why}", super::yaml::place(path, line));
    // A file without anything in it, or with comments alone, is null.
    let parsed: Result<Option<WebConfig>, _> = serde_yaml::from_slice(bytes);
    let mut config = parsed
        .map_err(|e| fail(e.location().map(|l| l.line()), &words(&super::yaml::without_place(&e))))?
        .unwrap_or_default();
    for name in config.users.0.keys() {
        if name.is_empty() || name.contains(':') || name.chars().any(char::is_control) {
            let why = format!(
                "basic_auth_users: {name:?} is no user name: it cannot be empty or have a colon or control characters in it"
            );
            return Err(fail(None, &why));
        }
    }
    for (name, value) in &config.http.headers.0 {
        if !HEADERS.contains(&name.as_str()) {
            return Err(fail(
                None,
                &format!("http_server_config: headers: {name:?} cannot be set; allowed: {}", HEADERS.join(", ")),
            ));
        }
        if !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(fail(
                None,
                &format!("http_server_config: headers: {name}: allowed: printable ASCII characters"),
            ));
        }
    }
    // Empty: unset.
    config.http.headers.0.retain(|_, value| !value.is_empty());
    if !config.rate_limit.interval.is_zero() && config.rate_limit.burst == 0 {
        return Err(fail(None, "rate_limit: with a burst of 0 nothing would be answered; allowed: 1 and more"));
    }
    if let Some(tls) = &mut config.tls {
        tls.check().map_err(|why| fail(None, &why))?;
        tls.within(path.parent().unwrap_or(Path::new("")));
    }
    Ok(config)
}

/// serde's message in our words, and without the value that it does not like, which may be a password.
fn words(message: &str) -> String {
    let message = message.replacen(", expected one of ", "; allowed: ", 1).replacen(", expected ", "; allowed: ", 1);
    match message.split_once("invalid type: ") {
        Some((before, after)) => match after.rsplit_once("; allowed: ") {
            Some((_, allowed)) => format!("{before}wrong type; allowed: {allowed}"),
            None => format!("{before}wrong type"),
        },
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG";

    fn parsed(text: &str) -> Result<WebConfig, String> {
        parse(Path::new("/etc/x/web.yml"), text.as_bytes())
    }

    #[test]
    fn what_exporters_take_is_taken() {
        for nothing in ["", "# nothing\n", "{}", "tls_server_config:\nbasic_auth_users:\nhttp_server_config:\n"] {
            assert_eq!(parsed(nothing), Ok(WebConfig::default()), "{nothing:?}");
        }
        let config = parsed(&format!(
            "tls_server_config:\n  cert_file: a.crt\n  key_file: /b.key\n  client_ca_file: ../ca.crt\n  \
             client_auth_type: RequireAndVerifyClientCert\n  client_allowed_sans: [a, b]\n  min_version: TLS12\n  \
             max_version: TLS13\n  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]\n  \
             prefer_server_cipher_suites: false\n  curve_preferences: [X25519, CurveP256]\n\
             http_server_config:\n  http2: true\n  headers: {{X-Frame-Options: deny, X-XSS-Protection: ''}}\n\
             basic_auth_users:\n  alice: {HASH}\n  'Ünïcode': \"{HASH}\"\n  1234: {HASH}\nrate_limit: {{interval: 1s, burst: 2}}\n"
        ))
        .unwrap();
        let tls = config.tls.unwrap();
        assert_eq!(tls.cert(), Some(Source::File(Path::new("/etc/x/a.crt"))));
        assert_eq!(tls.key(), Some(Source::File(Path::new("/b.key"))));
        assert_eq!(tls.client_ca(), Some(Source::File(Path::new("/etc/x/../ca.crt"))));
        assert_eq!(tls.client_auth_type, ClientAuth::RequireAndVerify);
        assert_eq!(config.users.0.keys().collect::<Vec<_>>(), ["1234", "alice", "Ünïcode"]);
        assert_eq!(config.http.headers.0.len(), 1);
        assert_eq!(config.rate_limit, RateLimit { interval: Duration::from_secs(1), burst: 2 });
        let inline = parsed("tls_server_config: {cert: C, key: K}").unwrap().tls.unwrap();
        assert_eq!((inline.cert(), inline.key()), (Some(Source::Inline("C")), Some(Source::Inline("K"))));
        assert!(!format!("{inline:?}").contains("\"K\""));
    }

    #[test]
    fn errors_name_file_line_and_what_is_allowed() {
        let both = "tls_server_config:\n  cert_file: a\n  key_file: b\n";
        let user = |hash: &str| format!("# users\nbasic_auth_users:\n  a: {hash}\n");
        for (text, words) in [
            (
                "tls_server_confg: {}".to_owned(),
                &["/etc/x/web.yml:1", "tls_server_confg", "allowed:", "basic_auth_users"][..],
            ),
            (format!("{both}  cert_fil: x"), &["web.yml:4", "cert_fil", "allowed:", "client_ca_file"]),
            (format!("{both}  min_version: TLS10"), &["web.yml:4", "TLS10", "allowed:", "TLS12"]),
            (format!("{both}  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]"), &["web.yml:4", "RC4", "allowed:"]),
            (format!("{both}  client_auth_type: Yes"), &["web.yml:4", "NoClientCert"]),
            (format!("{both}  client_ca_file: x"), &["client_auth_type"]),
            (format!("{both}  client_auth_type: RequireAndVerifyClientCert"), &["client_ca_file"]),
            (format!("{both}  client_allowed_sans: [x]"), &["client_allowed_sans"]),
            (format!("{both}  min_version: TLS13\n  max_version: TLS12"), &["min_version", "max_version"]),
            (format!("{both}  cert: x"), &["cert and cert_file"]),
            ("tls_server_config: {cert_file: a}".into(), &["key_file is missing"]),
            ("http_server_config: {headers: {Server: x}}".into(), &["\"Server\"", "allowed: Content-Security-Policy"]),
            ("http_server_config: {headers: {X-Frame-Options: \"a\\r\\nb\"}}".into(), &["X-Frame-Options", "ASCII"]),
            ("rate_limit: {interval: 1s}".into(), &["burst"]),
            ("rate_limit: {interval: soon, burst: 1}".into(), &["web.yml:1", "duration"]),
            (format!("basic_auth_users:\n  a: {HASH}\n  a: {HASH}"), &["web.yml", "\"a\" is given twice"]),
            (format!("basic_auth_users: {{'a:b': {HASH}}}"), &["\"a:b\"", "colon"]),
            (user(&HASH.replace("$10$", "$31$")), &["web.yml:3", "cost 31", "allowed: 4 to 14"]),
            (user(&HASH.replace("$2y$", "$2x$")), &["web.yml:3", "$2x$", "$2b$"]),
            (user("secret-in-plain"), &["web.yml:3", "bcrypt hash is wanted"]),
            (user("12345678"), &["web.yml:3", "bcrypt hash is wanted"]),
            (user(&HASH[..59]), &["web.yml:3", "bcrypt hash is wanted"]),
            (user(&HASH.replace("$10$", "$1$")), &["web.yml:3", "bcrypt hash is wanted"]),
            (user("[x]"), &["web.yml:3", "a bcrypt hash"]),
            ("basic_auth_users: secret-in-plain".into(), &["web.yml:1", "names with values"]),
            ("- a".into(), &["web.yml", "tls_server_config"]),
            ("{}\n---\n{}\n".into(), &["web.yml", "more than one document"]),
        ] {
            let error = parsed(&text).unwrap_err();
            assert!(error.starts_with("server.http.web_config: /etc/x/web.yml"), "{error}");
            assert!(words.iter().all(|w| error.contains(w)), "{text}: {error}");
            assert!(
                !error.contains("secret-in") && !error.contains("12345678") && !error.contains("X0h1gD"),
                "{error}"
            );
        }
    }

    #[test]
    fn nobody_has_a_hash_of_the_same_cost() {
        let hash = Hash::parse(HASH).unwrap();
        assert_eq!(Hash::parse(hash.of_nobody().as_str()).unwrap().as_str().get(..7), Some("$2y$10$"));
        assert_eq!(bcrypt::verify("", hash.of_nobody().as_str()).ok(), Some(false));
    }
}
