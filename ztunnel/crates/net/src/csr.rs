//! The certificate request for a key. Owns the few DER forms it needs; reads no certificate.

use ztunnel_core::ids::SpiffeId;

use crate::key::Key;

// DER tags, X.690 §8.
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const ATTRIBUTES: u8 = 0xa0; // [0] of CertificationRequestInfo, RFC 2986 §4
const URI: u8 = 0x86; // [6] of GeneralName, RFC 5280 §4.2.1.6
// Whole encodings, tag and length included.
const TRUE: &[u8] = &[0x01, 0x01, 0xff];
const ECDSA_WITH_SHA256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const EXTENSION_REQUEST: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e,
];
const SUBJECT_ALT_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];

/// The PKCS#10 request (RFC 2986) as PEM: empty subject, one critical SAN with the one URI, which is what Istio's CA and
/// X.509-SVID §2 ask for.
pub(crate) fn request(key: &Key, identity: &SpiffeId) -> Result<String, String> {
    let info = request_info(&key.public_der()?, identity.as_str());
    let signature = key.signature(&info)?;
    let request = join(
        SEQUENCE,
        &[
            &info,
            &join(SEQUENCE, &[ECDSA_WITH_SHA256]),
            &join(BIT_STRING, &[&[0], &signature]),
        ],
    );
    Ok(pem("CERTIFICATE REQUEST", &request))
}

fn request_info(public_key: &[u8], uri: &str) -> Vec<u8> {
    let names = join(SEQUENCE, &[&join(URI, &[uri.as_bytes()])]);
    let extension = join(
        SEQUENCE,
        &[SUBJECT_ALT_NAME, TRUE, &join(OCTET_STRING, &[&names])],
    );
    let extensions = join(SET, &[&join(SEQUENCE, &[&extension])]);
    let attribute = join(SEQUENCE, &[EXTENSION_REQUEST, &extensions]);
    join(
        SEQUENCE,
        &[
            &join(INTEGER, &[&[0]]),
            &join(SEQUENCE, &[]),
            public_key,
            &join(ATTRIBUTES, &[&attribute]),
        ],
    )
}

/// One DER value: tag, definite length, the parts one after the other.
fn join(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = base64(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().enumerate().fold(0u32, |word, (at, byte)| {
            word | u32::from(*byte) << (16 - 8 * at)
        });
        for at in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= group.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension};

    const ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    fn parsed(check: impl FnOnce(&X509CertificationRequest<'_>)) {
        let key = Key::generate().expect("key");
        let text = request(&key, &SpiffeId::parse(ID).expect("id")).expect("request");
        let (_, pem) = x509_parser::pem::parse_x509_pem(text.as_bytes()).expect("PEM");
        let (rest, request) = X509CertificationRequest::from_der(&pem.contents).expect("DER");
        assert!(rest.is_empty());
        assert_eq!(
            request.certification_request_info.subject_pki.raw,
            key.public_der().expect("public key")
        );
        check(&request);
    }

    #[test]
    fn the_subject_is_empty() {
        parsed(|request| assert_eq!(request.certification_request_info.subject.iter().count(), 0));
    }

    #[test]
    fn the_one_extension_is_a_critical_name_with_the_one_uri() {
        parsed(|request| {
            let attribute = request
                .certification_request_info
                .iter_attributes()
                .next()
                .expect("attribute");
            let x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(asked) =
                attribute.parsed_attribute()
            else {
                panic!("not an extension request")
            };
            assert_eq!(asked.extensions.len(), 1);
            assert!(asked.extensions[0].critical);
            let ParsedExtension::SubjectAlternativeName(names) =
                asked.extensions[0].parsed_extension()
            else {
                panic!("not a SAN")
            };
            assert_eq!(names.general_names, [GeneralName::URI(ID)]);
        });
    }

    #[test]
    fn lengths_take_as_few_bytes_as_they_need() {
        assert_eq!(join(SEQUENCE, &[&[0; 127]])[..2], [0x30, 0x7f]);
        assert_eq!(join(SEQUENCE, &[&[0; 128]])[..3], [0x30, 0x81, 0x80]);
        assert_eq!(join(SEQUENCE, &[&[0; 256]])[..4], [0x30, 0x82, 0x01, 0x00]);
    }

    #[test]
    fn base64_pads_like_the_rfc() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }
}
