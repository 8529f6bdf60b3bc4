//! A refusal: what is wrong, in words for our log and as the alert that the peer hears (RFC 8446 §6.2).

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// Why a peer's certificates are not accepted. Whatever says so in words alone is `certificate_unknown`: some other issue.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) why: String,
    kind: CertificateError,
}

impl Refusal {
    pub(super) fn new(kind: CertificateError, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { why, kind }
    }

    /// No root of ours stands above the peer.
    pub(super) fn unknown_authority(why: impl Into<String>) -> Self {
        Self::new(CertificateError::UnknownIssuer, why)
    }
}

impl<T: Into<String>> From<T> for Refusal {
    fn from(why: T) -> Self {
        Self::new(
            CertificateError::Other(rustls::OtherError(Arc::new(Unspecific))),
            why,
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.why)
    }
}

#[derive(Debug)]
struct Unspecific;

impl fmt::Display for Unspecific {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the peer's certificate is not acceptable")
    }
}

impl std::error::Error for Unspecific {}

thread_local! {
    /// rustls' errors choose the alert but carry no words. Between our verdict and [`explain`] nothing else runs on the
    /// thread: both happen within one call into rustls and the line after it.
    static SAID: Cell<Option<String>> = const { Cell::new(None) };
}

pub(super) fn refuse(refusal: Refusal) -> Error {
    SAID.set(Some(refusal.why));
    refusal.kind.into()
}

/// What webpki says of a path.
pub(super) fn sentence(why: webpki::Error) -> Refusal {
    let words = words(&why);
    match kind(&why) {
        Some(kind) => Refusal::new(kind, words),
        None => words.into(),
    }
}

fn kind(why: &webpki::Error) -> Option<CertificateError> {
    use webpki::Error as E;
    Some(match why {
        E::CertExpired { .. } => CertificateError::Expired,
        E::CertNotValidYet { .. } => CertificateError::NotValidYet,
        E::CertRevoked => CertificateError::Revoked,
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        // "corrupt, contained signatures that did not verify correctly, etc."
        E::InvalidSignatureForPublicKey | E::BadDer | E::BadDerTime | E::TrailingData(_) => {
            CertificateError::BadEncoding
        }
        _ => return None,
    })
}

fn words(why: &webpki::Error) -> String {
    use webpki::Error as E;
    match why {
        E::CertExpired { .. } => format!("the peer's certificate has expired: {why}"),
        E::CertNotValidYet { .. } => {
            format!("the peer's certificate is not valid yet (is a clock wrong?): {why}")
        }
        E::UnknownIssuer => "the peer's certificate is not signed by a root of ours".to_owned(),
        E::InvalidSignatureForPublicKey => {
            "the peer's certificate is not signed by a root of ours: a signature does not match (same name, other key?)"
                .to_owned()
        }
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "the peer's certificate has a signature algorithm that is too weak or not supported"
                .to_owned()
        }
        E::CertRevoked => "the peer's certificate, or an issuer's, is revoked".to_owned(),
        E::UnknownRevocationStatus => {
            "there is no revocation list of an issuer of the peer's certificate".to_owned()
        }
        E::CrlExpired { .. } => format!("a revocation list is out of date: {why}"),
        E::InvalidCrlSignatureForPublicKey | E::IssuerNotCrlSigner => {
            format!("a revocation list is not the issuer's: {why}")
        }
        E::NameConstraintViolation => {
            "a name constraint of an issuer does not permit the peer's name".to_owned()
        }
        E::MaximumNameConstraintComparisonsExceeded => {
            "the peer's certificates have too many name constraints".to_owned()
        }
        E::MalformedNameConstraint => "an issuer's name constraints are malformed".to_owned(),
        E::PathLenConstraintViolated => {
            "the path of the peer's certificates is longer than an issuer allows".to_owned()
        }
        E::MaximumPathDepthExceeded => {
            "the peer's certificate has more than six intermediates".to_owned()
        }
        E::BadDerTime => "a time in the peer's certificates cannot be parsed".to_owned(),
        E::BadDer | E::TrailingData(_) => {
            "the peer's certificates cannot be parsed: something in them is malformed".to_owned()
        }
        other => format!("the peer's certificate is not valid: {other}"),
    }
}

/// A failed handshake, at once after it failed.
pub(crate) fn explain(error: &Error) -> String {
    let said = SAID.take();
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "the peer does not hold the key of the certificate it shows".to_owned()
        }
        Error::InvalidCertificate(other) => {
            said.unwrap_or_else(|| format!("the peer's certificate is not valid: {other}"))
        }
        Error::NoCertificatesPresented => "the peer presented no certificate".to_owned(),
        Error::NoApplicationProtocol
        | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "the peer does not offer HTTP/2 (ALPN h2)".to_owned()
        }
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        )
        | Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "the peer does not speak TLS 1.3".to_owned()
        }
        Error::AlertReceived(alert) => format!("the peer refused us with alert {alert:?}"),
        Error::InvalidMessage(rustls::InvalidMessage::HandshakePayloadTooLarge) => {
            "the peer sends more than 64 KiB of certificates".to_owned()
        }
        Error::InvalidMessage(_) => format!("the peer does not speak TLS: {error}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(refusal: Refusal) -> AlertDescription {
        match refuse(refusal) {
            Error::InvalidCertificate(kind) => kind.into(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_peer_hears_what_rfc_8446_section_6_2_has_for_it() {
        use AlertDescription as A;
        use webpki::Error as E;
        for (why, heard) in [
            (E::UnknownIssuer, A::UnknownCA),
            (E::CertRevoked, A::CertificateRevoked),
            (E::InvalidSignatureForPublicKey, A::BadCertificate),
            (E::BadDer, A::BadCertificate),
            (E::PathLenConstraintViolated, A::CertificateUnknown),
        ] {
            assert_eq!(alert(sentence(why)), heard);
        }
        assert_eq!(alert(Refusal::unknown_authority("no root")), A::UnknownCA);
        assert_eq!(alert("not the one".into()), A::CertificateUnknown);
    }

    #[test]
    fn the_log_hears_a_sentence_and_each_only_once() {
        let error = refuse(Refusal::unknown_authority("no root of theirs"));
        assert_eq!(explain(&error), "no root of theirs");
        assert!(explain(&error).contains("UnknownIssuer"));
    }
}
