//! Who a peer is: X.509 path validation (webpki) plus the rules of X.509-SVID §2 to §5 and of the Istio profile.
//!
//! Owns the verdict on a certificate and its wording; not which identities are wanted, nor what they may do.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, PeerIncompatible, RootCertStore, SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use ztunnel_core::ids::SpiffeId;

/// A refusal in the words that reach the log.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refuse(why: String) -> Error {
    CertificateError::Other(OtherError(Arc::new(Refused(why)))).into()
}

/// The identity of a leaf, if it is a well-formed X.509-SVID of the Istio profile. Says nothing about who signed it.
pub(crate) fn leaf_identity(der: &[u8]) -> Result<SpiffeId, String> {
    let leaf = parse(der)?;
    check_basic_constraints(&leaf)?;
    check_key_usage(&leaf)?;
    check_extended_key_usage(&leaf)?;
    let uri = only_uri(&leaf)?;
    SpiffeId::parse(uri).map_err(|why| {
        format!("the certificate names {uri:?}, which is no identity of a mesh: {why}")
    })
}

/// One certificate with nothing behind it.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("bytes follow the certificate".to_owned()),
        Err(why) => Err(format!("the certificate cannot be parsed: {why}")),
    }
}

fn only_uri<'a>(leaf: &X509Certificate<'a>) -> Result<&'a str, String> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| "the certificate's alternative names are malformed or occur twice".to_owned())?
        .ok_or("the certificate carries no SPIFFE ID: it has no alternative name")?;
    if leaf.subject().iter().next().is_none() && !names.critical {
        return Err(
            "the certificate has an empty subject but its alternative names are not critical"
                .to_owned(),
        );
    }
    let uris: Vec<&str> = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri),
        [] => Err("the certificate carries no SPIFFE ID: it has no URI among its names".to_owned()),
        _ => Err(format!(
            "the certificate carries {} URI names where exactly one is allowed",
            uris.len()
        )),
    }
}

fn check_basic_constraints(leaf: &X509Certificate<'_>) -> Result<(), String> {
    let constraints = leaf.basic_constraints().map_err(|_| {
        "the certificate's basic constraints are malformed or occur twice".to_owned()
    })?;
    match constraints {
        Some(found) if found.value.ca => Err("a CA certificate cannot be a workload's".to_owned()),
        _ => Ok(()),
    }
}

fn check_key_usage(leaf: &X509Certificate<'_>) -> Result<(), String> {
    let usage = leaf
        .key_usage()
        .map_err(|_| "the certificate's key usage is malformed or occurs twice".to_owned())?
        .ok_or("the certificate has no key usage")?;
    if !usage.critical {
        return Err("the certificate's key usage is not critical".to_owned());
    }
    if !usage.value.digital_signature() {
        return Err("the certificate's key may not sign (no digitalSignature)".to_owned());
    }
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err("the certificate's key may sign certificates or revocation lists".to_owned());
    }
    Ok(())
}

fn check_extended_key_usage(leaf: &X509Certificate<'_>) -> Result<(), String> {
    let usage = leaf.extended_key_usage().map_err(|_| {
        "the certificate's extended key usage is malformed or occurs twice".to_owned()
    })?;
    match usage {
        Some(found) if !(found.value.server_auth && found.value.client_auth) => {
            Err("the certificate's extended key usage lacks serverAuth or clientAuth".to_owned())
        }
        _ => Ok(()),
    }
}

/// The client's side: any chain to our roots whose identity is one of `want`. Host names play no part.
#[derive(Debug)]
pub(crate) struct WantedServer {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
    pub(crate) want: Vec<SpiffeId>,
}

impl WantedServer {
    fn check_identity(&self, leaf: &[u8]) -> Result<(), String> {
        let found = leaf_identity(leaf)?;
        if self.want.contains(&found) {
            return Ok(());
        }
        let want: Vec<&str> = self.want.iter().map(SpiffeId::as_str).collect();
        Err(format!(
            "the peer is {found}, expected {}",
            want.join(" or ")
        ))
    }
}

impl ServerCertVerifier for WantedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &leaf,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        self.check_identity(end_entity).map_err(refuse)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The server's side: any chain to our roots whose identity is of our trust domain. A certificate is mandatory.
#[derive(Debug)]
pub(crate) struct MeshClient {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: String,
}

impl MeshClient {
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<rustls::crypto::CryptoProvider>,
        trust_domain: &str,
    ) -> Result<Self, String> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|why| format!("the roots cannot be used: {why}"))?;
        Ok(Self {
            chain,
            trust_domain: trust_domain.to_owned(),
        })
    }

    fn check_identity(&self, leaf: &[u8]) -> Result<(), String> {
        let found = leaf_identity(leaf)?;
        if found.trust_domain() == self.trust_domain {
            return Ok(());
        }
        Err(format!(
            "the peer is {found}, expected one of trust domain {}",
            self.trust_domain
        ))
    }
}

impl ClientCertVerifier for MeshClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A peer has one certificate to offer; hints would only make the flight longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        self.check_identity(end_entity).map_err(refuse)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::SupportedVersionsExtensionRequired.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// A failed handshake as a sentence for the person on call.
pub(crate) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => explain_certificate(why),
        Error::NoCertificatesPresented => "the peer presented no certificate".to_owned(),
        Error::NoApplicationProtocol => "the peer does not offer HTTP/2 (ALPN h2)".to_owned(),
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
        Error::InvalidMessage(_) => format!("the peer does not speak TLS: {error}"),
        other => other.to_string(),
    }
}

fn explain_certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::Other(OtherError(ours)) if ours.is::<Refused>() => ours.to_string(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the peer's certificate has expired: {why}")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the peer's certificate is not valid yet (is a clock wrong?): {why}")
        }
        CertificateError::UnknownIssuer => {
            "the peer's certificate is not signed by a root of ours".to_owned()
        }
        other => format!("the peer's certificate is not valid: {other}"),
    }
}
