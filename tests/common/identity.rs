//! Certificates made for a test.

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
use openssl::x509::{X509, X509NameBuilder};

/// A certificate with its key.
pub struct Identity {
    pub cert: X509,
    pub key: PKey<Private>,
}

pub const YEAR: i64 = 365 * 24 * 3600;

impl Identity {
    /// One for `localhost`, signed by `ca` or by itself, that is valid until some seconds from now.
    pub fn new(serial: u32, ca: Option<&Identity>, valid: i64) -> Self {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        Self::with_key(serial, ca, valid, PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap())
    }

    /// The same with another key.
    pub fn with_key(serial: u32, ca: Option<&Identity>, valid: i64, key: PKey<Private>) -> Self {
        let mut name = X509NameBuilder::new().unwrap();
        name.append_entry_by_text("CN", &format!("test {serial}")).unwrap();
        let name = name.build();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        builder.set_serial_number(&BigNum::from_u32(serial).unwrap().to_asn1_integer().unwrap()).unwrap();
        builder.set_subject_name(&name).unwrap();
        builder.set_issuer_name(ca.map_or(&name, |ca| ca.cert.subject_name())).unwrap();
        builder.set_not_before(&Asn1Time::from_unix(now - 2 * YEAR).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::from_unix(now + valid).unwrap()).unwrap();
        builder.set_pubkey(&key).unwrap();
        match ca {
            None => builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap(),
            Some(ca) => {
                let context = builder.x509v3_context(Some(&ca.cert), None);
                let localhost = SubjectAlternativeName::new().dns("localhost").build(&context).unwrap();
                builder.append_extension(localhost).unwrap();
            }
        }
        builder.sign(ca.map_or(&key, |ca| &ca.key), MessageDigest::sha256()).unwrap();
        Self { cert: builder.build(), key }
    }

    pub fn cert_pem(&self) -> Vec<u8> {
        self.cert.to_pem().unwrap()
    }

    pub fn key_pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8().unwrap()
    }
}
