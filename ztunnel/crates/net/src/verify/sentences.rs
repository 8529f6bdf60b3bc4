//! A refusal in the words that reach the log: what is wrong, for the person on call.

use std::fmt;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, Error, OtherError, PeerIncompatible};

/// Travels through rustls, which sends an alert and hands it back.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

pub(super) fn refuse(why: String) -> Error {
    CertificateError::Other(OtherError(Arc::new(Refused(why)))).into()
}

/// What webpki says of a path.
pub(super) fn sentence(why: webpki::Error) -> String {
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

/// A failed handshake.
pub(crate) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(ours)))
            if ours.is::<Refused>() =>
        {
            ours.to_string()
        }
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            "the peer does not hold the key of the certificate it shows".to_owned()
        }
        Error::InvalidCertificate(other) => format!("the peer's certificate is not valid: {other}"),
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
