//! Certificates of which every field is open to abuse, and authorities that sign whatever they are given.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use time::{Duration, OffsetDateTime};

use crate::der::*;

pub const BASIC_CONSTRAINTS: &[u32] = &[2, 5, 29, 19];
pub const KEY_USAGE: &[u32] = &[2, 5, 29, 15];
pub const EXTENDED_KEY_USAGE: &[u32] = &[2, 5, 29, 37];
pub const NAMES: &[u32] = &[2, 5, 29, 17];
pub const NAME_CONSTRAINTS: &[u32] = &[2, 5, 29, 30];
pub const SUBJECT_KEY_ID: &[u32] = &[2, 5, 29, 14];
pub const AUTHORITY_KEY_ID: &[u32] = &[2, 5, 29, 35];
pub const UNKNOWN: &[u32] = &[1, 3, 6, 1, 4, 1, 99999, 1];
pub const SERVER_AUTH: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 3, 1];
pub const CLIENT_AUTH: &[u32] = &[1, 3, 6, 1, 5, 5, 7, 3, 2];
pub const ANY_PURPOSE: &[u32] = &[2, 5, 29, 37, 0];
pub const ECDSA_SHA256: &[u32] = &[1, 2, 840, 10045, 4, 3, 2];
// Bits of KeyUsage, RFC 5280 §4.2.1.3.
pub const DIGITAL_SIGNATURE: u8 = 0;
pub const KEY_ENCIPHERMENT: u8 = 2;
pub const KEY_AGREEMENT: u8 = 4;
pub const SIGN_CERTIFICATES: u8 = 5;
pub const SIGN_CRLS: u8 = 6;

pub struct Key(pub EcdsaKeyPair);

impl Key {
    pub fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("key"))
    }

    /// SubjectPublicKeyInfo.
    pub fn public(&self) -> Vec<u8> {
        AsDer::<PublicKeyX509Der<'_>>::as_der(self.0.public_key())
            .expect("DER")
            .as_ref()
            .to_vec()
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        signature.expect("signature").as_ref().to_vec()
    }
}

#[derive(Clone)]
pub struct Extension {
    pub id: &'static [u32],
    pub critical: bool,
    pub value: Vec<u8>,
}

pub fn extension(id: &'static [u32], critical: bool, value: Vec<u8>) -> Extension {
    Extension {
        id,
        critical,
        value,
    }
}

/// A certificate before it is signed. Names, times and algorithms are whole DER values.
#[derive(Clone)]
pub struct Draft {
    /// 2 is v3; `None`: v1.
    pub version: Option<u8>,
    /// The content of the INTEGER.
    pub serial: Vec<u8>,
    pub inner_algorithm: Vec<u8>,
    pub outer_algorithm: Vec<u8>,
    pub subject: Vec<u8>,
    pub not_before: Vec<u8>,
    pub not_after: Vec<u8>,
    pub key: Vec<u8>,
    pub extensions: Vec<Extension>,
}

impl Draft {
    fn new(subject: Vec<u8>, key: Vec<u8>, extensions: Vec<Extension>) -> Self {
        Self {
            version: Some(2),
            serial: serial(),
            inner_algorithm: seq(&[&oid(ECDSA_SHA256)]),
            outer_algorithm: seq(&[&oid(ECDSA_SHA256)]),
            subject,
            not_before: moment(-120),
            not_after: moment(3600),
            key,
            extensions,
        }
    }

    /// An orderly X.509-SVID.
    pub fn svid(uri: &str, key: &Key) -> Self {
        let extensions = vec![
            extension(NAMES, true, names(&[uri.as_bytes()])),
            extension(BASIC_CONSTRAINTS, true, seq(&[])),
            extension(KEY_USAGE, true, named_bits(&[DIGITAL_SIGNATURE])),
            extension(
                EXTENDED_KEY_USAGE,
                false,
                purposes(&[SERVER_AUTH, CLIENT_AUTH]),
            ),
        ];
        Self::new(name(""), key.public(), extensions)
    }

    /// An orderly authority.
    pub fn authority(common: &str, key: &Key) -> Self {
        let extensions = vec![
            extension(BASIC_CONSTRAINTS, true, seq(&[TRUE])),
            extension(KEY_USAGE, true, named_bits(&[SIGN_CERTIFICATES, SIGN_CRLS])),
        ];
        Self::new(name(common), key.public(), extensions)
    }

    pub fn get(&mut self, id: &[u32]) -> &mut Extension {
        let found = self.extensions.iter_mut().find(|each| each.id == id);
        found.expect("the draft has it")
    }

    pub fn set(&mut self, id: &[u32], value: Vec<u8>) {
        self.get(id).value = value;
    }

    pub fn drop(&mut self, id: &[u32]) {
        self.extensions.retain(|each| each.id != id);
    }

    pub fn add(&mut self, id: &'static [u32], critical: bool, value: Vec<u8>) {
        self.extensions.push(extension(id, critical, value));
    }

    /// Whole names, urgently needed by name constraint tests: URI and DNS.
    pub fn signed_by(&self, issuer: &Authority) -> Vec<u8> {
        self.signed(&issuer.name, &issuer.key)
    }

    pub fn signed(&self, issuer: &[u8], key: &Key) -> Vec<u8> {
        let body = self.body(issuer);
        let signature = key.sign(&body);
        self.with_signature(&body, &signature)
    }

    pub fn with_signature(&self, body: &[u8], signature: &[u8]) -> Vec<u8> {
        let signature = der(BIT_STRING, &[&[0], signature]);
        seq(&[body, &self.outer_algorithm, &signature])
    }

    /// TBSCertificate.
    pub fn body(&self, issuer: &[u8]) -> Vec<u8> {
        let version = self
            .version
            .map(|number| der(0xa0, &[&der(INTEGER, &[&[number]])]));
        let encoded: Vec<_> = self.extensions.iter().map(encode).collect();
        let extensions = match &encoded[..] {
            [] => Vec::new(),
            some => der(
                0xa3,
                &[&seq(&some.iter().map(Vec::as_slice).collect::<Vec<_>>())],
            ),
        };
        seq(&[
            version.as_deref().unwrap_or_default(),
            &der(INTEGER, &[&self.serial]),
            &self.inner_algorithm,
            issuer,
            &seq(&[&self.not_before, &self.not_after]),
            &self.subject,
            &self.key,
            &extensions,
        ])
    }
}

fn encode(extension: &Extension) -> Vec<u8> {
    let critical: &[u8] = if extension.critical { TRUE } else { &[] };
    seq(&[
        &oid(extension.id),
        critical,
        &der(OCTET_STRING, &[&extension.value]),
    ])
}

/// Whoever signs: a name, a key, and the certificate that others know it by.
pub struct Authority {
    pub name: Vec<u8>,
    pub key: Key,
    pub certificate: Vec<u8>,
}

impl Authority {
    pub fn root(common: &str) -> Self {
        Self::root_with(common, |_| {})
    }

    pub fn root_with(common: &str, alter: impl FnOnce(&mut Draft)) -> Self {
        let key = Key::new();
        let mut draft = Draft::authority(common, &key);
        draft.not_after = moment(365 * 86400);
        alter(&mut draft);
        let certificate = draft.signed(&draft.subject, &key);
        Self {
            name: draft.subject,
            key,
            certificate,
        }
    }

    pub fn under(&self, common: &str) -> Self {
        self.under_with(common, |_| {})
    }

    pub fn under_with(&self, common: &str, alter: impl FnOnce(&mut Draft)) -> Self {
        let key = Key::new();
        let mut draft = Draft::authority(common, &key);
        draft.not_after = moment(30 * 86400);
        alter(&mut draft);
        Self {
            name: draft.subject.clone(),
            certificate: draft.signed_by(self),
            key,
        }
    }
}

/// Of these URIs, bytes as they are.
pub fn names(uris: &[&[u8]]) -> Vec<u8> {
    general_names(&uris.iter().map(|uri| (6, *uri)).collect::<Vec<_>>())
}

/// (context tag, content): 6 a URI, 2 a DNS name. RFC 5280 §4.2.1.6.
pub fn general_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let each: Vec<_> = names
        .iter()
        .map(|(tag, content)| der(0x80 | tag, &[content]))
        .collect();
    seq(&each.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

pub fn purposes(ids: &[&[u32]]) -> Vec<u8> {
    let each: Vec<_> = ids.iter().map(|id| oid(id)).collect();
    seq(&each.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// NameConstraints: permitted [0], excluded [1]; each a list of (tag, base).
pub fn constraints(permitted: &[(u8, &[u8])], excluded: &[(u8, &[u8])]) -> Vec<u8> {
    let subtrees = |tag: u8, bases: &[(u8, &[u8])]| {
        let each: Vec<_> = bases
            .iter()
            .map(|(kind, base)| seq(&[&der(0x80 | kind, &[base])]))
            .collect();
        let parts: Vec<_> = each.iter().map(Vec::as_slice).collect();
        if parts.is_empty() {
            Vec::new()
        } else {
            der(tag, &parts)
        }
    };
    seq(&[&subtrees(0xa0, permitted), &subtrees(0xa1, excluded)])
}

pub fn key_id(content: &[u8]) -> Vec<u8> {
    der(OCTET_STRING, &[content])
}

pub fn authority_key_id(content: &[u8]) -> Vec<u8> {
    seq(&[&der(0x80, &[content])])
}

fn serial() -> Vec<u8> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("random");
    bytes[0] = bytes[0] & 0x7f | 1;
    bytes.to_vec()
}

/// UTCTime, so many seconds from now.
pub fn moment(from_now_s: i64) -> Vec<u8> {
    der(UTC_TIME, &[&digits(from_now_s).as_bytes()[2..], b"Z"])
}

/// GeneralizedTime with half a second, which RFC 5280 §4.1.2.5.2 forbids.
pub fn fractional(from_now_s: i64) -> Vec<u8> {
    der(GENERALIZED_TIME, &[digits(from_now_s).as_bytes(), b".5Z"])
}

fn digits(from_now_s: i64) -> String {
    let at = OffsetDateTime::now_utc() + Duration::seconds(from_now_s);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    let month = u8::from(month);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}")
}

pub fn pem(certificate: &[u8]) -> String {
    crate::pem::encode("CERTIFICATE", certificate)
}
