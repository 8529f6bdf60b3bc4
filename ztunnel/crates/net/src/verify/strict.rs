//! What must hold of every certificate, whoever shows it: its encoding (RFC 5280 §4.1), its key, and of an authority what
//! makes it one (X509-SVID §3 and §4). Looks at one certificate at a time; signatures and paths are webpki's.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, ED25519,
    ParsedPublicKey, VerificationAlgorithm,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521,
    OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519, OID_X509_EXT_BASIC_CONSTRAINTS,
    OID_X509_EXT_CRL_DISTRIBUTION_POINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_SUBJECT_ALT_NAME, Oid,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};

/// Larger ones are an attack on memory or time: an SVID has well under 2 KiB, even with RSA.
const LONGEST: usize = 16 << 10;
/// RFC 5280 §4.1.2.2.
const LONGEST_SERIAL: usize = 20;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// RFC 8017 §3.1 allows any odd exponent from 3; nobody needs one of more than 8 bytes.
const LONGEST_EXPONENT: usize = 8;

/// One certificate with nothing behind it, of a sane encoding, with a key that we would use.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    if der.len() > LONGEST {
        let length = der.len();
        return Err(format!(
            "the certificate has {length} bytes, more than {LONGEST}"
        ));
    }
    if der.starts_with(b"-----BEGIN") {
        return Err("the certificate is PEM where DER is due".to_owned());
    }
    let certificate = match X509Certificate::from_der(der) {
        Ok(([], certificate)) => certificate,
        Ok(_) => return Err("bytes follow the certificate".to_owned()),
        Err(why) => return Err(format!("the certificate cannot be parsed: {why}")),
    };
    check_numbers(&certificate)?;
    check_extensions(&certificate)?;
    check_key(certificate.public_key())?;
    Ok(certificate)
}

fn check_numbers(certificate: &X509Certificate<'_>) -> Result<(), String> {
    if certificate.version() != X509Version::V3 {
        return Err("the certificate is not of version 3".to_owned());
    }
    let serial = certificate.raw_serial();
    let negative = serial.first().is_none_or(|first| first & 0x80 != 0);
    let zero = serial.iter().all(|byte| *byte == 0);
    if negative || zero || serial.len() > LONGEST_SERIAL {
        return Err(
            "the certificate's serial number is zero, negative or longer than 20 bytes".to_owned(),
        );
    }
    if certificate.signature_algorithm != certificate.tbs_certificate.signature {
        return Err("the certificate names two different signature algorithms".to_owned());
    }
    let dates = certificate.validity();
    if dates.not_after < dates.not_before {
        return Err("the certificate ends before it begins".to_owned());
    }
    Ok(())
}

fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), String> {
    let mut seen: Vec<&Oid<'_>> = Vec::new();
    for extension in certificate.extensions() {
        let id = &extension.oid;
        if seen.contains(&id) {
            return Err(format!("the certificate has the extension {id} twice"));
        }
        seen.push(id);
        if extension.critical && !is_understood(id) {
            return Err(format!(
                "the certificate has a critical extension that nobody here understands, {id}"
            ));
        }
        if let ParsedExtension::ParseError { .. } = extension.parsed_extension() {
            return Err(format!("the certificate's extension {id} is malformed"));
        }
    }
    Ok(())
}

/// By webpki or by us.
fn is_understood(id: &Oid<'_>) -> bool {
    [
        OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_SUBJECT_ALT_NAME,
        OID_X509_EXT_NAME_CONSTRAINTS,
        OID_X509_EXT_CRL_DISTRIBUTION_POINTS,
    ]
    .contains(id)
}

/// A key too weak would only be noticed when somebody had broken it.
fn check_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    let kind = &key.algorithm.algorithm;
    if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        return check_point(key);
    }
    if *kind == OID_PKCS1_RSAENCRYPTION {
        return check_rsa(key);
    }
    if *kind == OID_SIG_ED25519 {
        return usable(&ED25519, key, "the certificate's Ed25519 key is no point");
    }
    Err(format!(
        "the certificate's key is of the kind {kind}, which is not supported"
    ))
}

fn check_point(key: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    let curve = key.algorithm.parameters.as_ref();
    let curve = curve.and_then(|parameters| parameters.as_oid().ok());
    let algorithm: &'static dyn VerificationAlgorithm = match curve {
        Some(named) if named == OID_EC_P256 => &ECDSA_P256_SHA256_ASN1,
        Some(named) if named == OID_NIST_EC_P384 => &ECDSA_P384_SHA384_ASN1,
        Some(named) if named == OID_NIST_EC_P521 => &ECDSA_P521_SHA512_ASN1,
        _ => {
            return Err(
                "the certificate's key is on a curve other than P-256, P-384, P-521".into(),
            );
        }
    };
    usable(
        algorithm,
        key,
        "the certificate's key is no point on its curve",
    )
}

fn usable(
    algorithm: &'static dyn VerificationAlgorithm,
    key: &SubjectPublicKeyInfo<'_>,
    sentence: &str,
) -> Result<(), String> {
    let parsed = ParsedPublicKey::new(algorithm, &key.subject_public_key.data);
    parsed.map(|_| ()).map_err(|_| sentence.to_owned())
}

fn check_rsa(key: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    let Ok(PublicKey::RSA(rsa)) = key.parsed() else {
        return Err("the certificate's RSA key cannot be parsed".to_owned());
    };
    let bits = rsa.key_size();
    let exponent = rsa.exponent;
    let odd = exponent.last().is_some_and(|last| last & 1 == 1);
    let one = exponent.iter().rev().skip(1).all(|byte| *byte == 0) && exponent.last() == Some(&1);
    if !RSA_BITS.contains(&bits) || !odd || one || exponent.len() > LONGEST_EXPONENT {
        return Err(format!(
            "the certificate's RSA key has {bits} bits (2048 to 8192 are allowed) or an exponent that is even or 1"
        ));
    }
    Ok(())
}

/// May it sign certificates of `trust_domain`? `trusted`: a root of ours, of which key usage need not be told.
pub(crate) fn check_authority(
    certificate: &X509Certificate<'_>,
    trust_domain: &str,
    trusted: bool,
) -> Result<(), String> {
    let of = format!("{:?}", certificate.subject().to_string()); // quoted: it may come from an attacker
    let basic = certificate.basic_constraints().ok().flatten();
    if !basic.is_some_and(|found| found.value.ca) {
        return Err(format!("the certificate of {of} is no authority (cA)"));
    }
    let usage = certificate.key_usage().ok().flatten();
    if !usage.map_or(trusted, |found| found.value.key_cert_sign()) {
        return Err(format!(
            "the authority {of} may not sign certificates (keyCertSign)"
        ));
    }
    let purposes = certificate.extended_key_usage().ok().flatten();
    if purposes.is_some_and(|found| {
        !(found.value.any || found.value.server_auth && found.value.client_auth)
    }) {
        return Err(format!(
            "the extended key usage of the authority {of} lacks serverAuth or clientAuth"
        ));
    }
    check_authority_name(certificate, trust_domain)
}

/// X509-SVID §2: an authority's SPIFFE ID, if it has one, is its trust domain's and has no path.
fn check_authority_name(
    certificate: &X509Certificate<'_>,
    trust_domain: &str,
) -> Result<(), String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::URI(uri) = name
            && uri.strip_prefix("spiffe://") != Some(trust_domain)
            && uri.starts_with("spiffe:")
        {
            return Err(format!(
                "the authority names {uri:?}, expected spiffe://{trust_domain} or no SPIFFE ID"
            ));
        }
    }
    Ok(())
}

/// Subject key identifier.
pub(crate) fn own_key_id<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        })
}

/// Authority key identifier.
pub(crate) fn issuer_key_id<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|id| id.0)
            }
            _ => None,
        })
}

/// None: any number of intermediates.
pub(crate) fn path_length(certificate: &X509Certificate<'_>) -> Option<usize> {
    let basic = certificate.basic_constraints().ok().flatten()?;
    basic
        .value
        .path_len_constraint
        .map(|length| usize::try_from(length).unwrap_or(usize::MAX))
}
