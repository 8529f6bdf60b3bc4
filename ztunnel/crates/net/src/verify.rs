//! Who a peer is: X.509 path validation (webpki) plus the rules of X.509-SVID §2 to §5 and of the Istio profile.
//!
//! Owns the verdict on a peer's certificates; not which identities are wanted, nor what they may do.

mod sentences;
mod strict;
mod svid;
mod trust;

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use ztunnel_core::ids::SpiffeId;

pub(crate) use sentences::{Refusal, explain};
use sentences::{refuse, sentence};
pub(crate) use strict::parse;
pub(crate) use svid::leaf_identity;
pub(crate) use trust::{Bundle, Trust, Trusted};

/// webpki follows at most as many (its `MAX_SUB_CA_COUNT`); and the root may be shown as well.
const MOST_INTERMEDIATES: usize = 6;
const MOST_CERTIFICATES: usize = 1 + MOST_INTERMEDIATES + 1;

/// What the peer is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Client,
    Server,
}

/// Judges peers for one workload of ours.
#[derive(Debug)]
pub(crate) struct Judge {
    trusted: Trusted,
    /// Our own trust domain.
    own: Box<str>,
    /// The roots that came with our certificate: they count for our own domain as long as no bundle was delivered.
    roots: Arc<Bundle>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Judge {
    pub(crate) fn new(
        trusted: Trusted,
        own: &str,
        roots: Arc<Bundle>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            trusted,
            own: own.into(),
            roots,
            algorithms,
        }
    }

    /// Who shows `chain` (leaf first), by what is trusted at this moment. Otherwise the sentence for the log.
    pub(crate) fn identify(
        &self,
        chain: &[&CertificateDer<'_>],
        peer: Peer,
        now: UnixTime,
    ) -> Result<SpiffeId, Refusal> {
        if chain.len() > MOST_CERTIFICATES {
            return Err(format!(
                "the peer shows {} certificates where at most {MOST_CERTIFICATES} are followed",
                chain.len()
            )
            .into());
        }
        let parsed: Vec<X509Certificate<'_>> = chain
            .iter()
            .map(|der| parse(der))
            .collect::<Result<_, _>>()?;
        let (leaf, above) = parsed
            .split_first()
            .ok_or("the peer shows no certificate")?;
        let found = svid::identity(leaf)?;
        let trust = self.trusted.load();
        check_life(leaf, &trust)?;
        check_order(&parsed)?;
        let bundle = self.bundle(&trust, &found)?;
        for authority in above.iter().filter(|each| !is_root(each, &bundle)) {
            strict::check_authority(authority, found.trust_domain(), false)?;
        }
        self.check_path(chain, &parsed, peer, now, &trust, &bundle)?;
        Ok(found)
    }

    /// The roots of that identity's own trust domain, and no others. An alias without a bundle of its own is another
    /// name of our own domain.
    fn bundle(&self, trust: &Trust, found: &SpiffeId) -> Result<Arc<Bundle>, Refusal> {
        let domain = found.trust_domain();
        if let Some(bundle) = trust.bundle(domain) {
            return Ok(bundle.clone());
        }
        if domain == &*self.own || trust.is_alias(domain) {
            return Ok(trust.bundle(&self.own).unwrap_or(&self.roots).clone());
        }
        let domains = trust.domains(&self.own);
        Err(Refusal::unknown_authority(format!(
            "the peer is {found}, expected one of trust domain {domains}"
        )))
    }

    fn check_path(
        &self,
        chain: &[&CertificateDer<'_>],
        parsed: &[X509Certificate<'_>],
        peer: Peer,
        now: UnixTime,
        trust: &Trust,
        bundle: &Bundle,
    ) -> Result<(), Refusal> {
        let roots: Vec<_> = bundle.0.iter().filter(|root| root.is_valid(now)).collect();
        if roots.is_empty() {
            return Err(Refusal::unknown_authority(no_root(bundle)));
        }
        let anchors: Vec<TrustAnchor<'_>> = roots.iter().map(|root| root.anchor()).collect();
        let [leaf, above @ ..] = chain else {
            return Err("the peer shows no certificate".into());
        };
        let above: Vec<CertificateDer<'_>> = above.iter().map(|der| der.as_ref().into()).collect();
        let leaf = EndEntityCert::try_from(*leaf).map_err(sentence)?;
        let usage = match peer {
            Peer::Client => KeyUsage::client_auth(),
            Peer::Server => KeyUsage::server_auth(),
        };
        trust.with_revocations(|revocation| {
            let all = self.algorithms.all;
            let path = leaf
                .verify_for_usage(all, &anchors, &above, now, usage, revocation, None)
                .map_err(sentence)?;
            let length = path.intermediate_certificates().count();
            let root = anchors
                .iter()
                .position(|each| std::ptr::eq(each, path.anchor()));
            let root = root.map(|at| roots[at]).ok_or("the path has no root")?;
            check_key_ids(&parsed[..=length], root.key_id.as_deref())?;
            if root.path_length.is_some_and(|most| length > most) {
                return Err("the path is longer than its root allows".into());
            }
            Ok(())
        })
    }

    /// May `found` stand where one of `want` is expected? The names of one domain and its aliases are one.
    fn is_wanted(&self, found: &SpiffeId, want: &[SpiffeId]) -> bool {
        let trust = self.trusted.load();
        let ours =
            |id: &SpiffeId| id.trust_domain() == &*self.own || trust.is_alias(id.trust_domain());
        let account = |id: &SpiffeId| (id.namespace().to_owned(), id.service_account().to_owned());
        want.contains(found)
            || ours(found)
                && want
                    .iter()
                    .any(|wanted| ours(wanted) && account(wanted) == account(found))
    }
}

fn no_root(bundle: &Bundle) -> String {
    if bundle.0.is_empty() {
        "there is no root for the peer's trust domain".to_owned()
    } else {
        "every root of the peer's trust domain has expired or is not valid yet".to_owned()
    }
}

fn is_root(certificate: &X509Certificate<'_>, bundle: &Bundle) -> bool {
    bundle
        .0
        .iter()
        .any(|root| *root.der == *certificate.as_raw())
}

fn check_life(leaf: &X509Certificate<'_>, trust: &Trust) -> Result<(), String> {
    let dates = leaf.validity();
    let life = dates.not_after.timestamp() - dates.not_before.timestamp();
    let longest = trust.longest_life();
    if u64::try_from(life).is_ok_and(|life| life > longest.as_secs()) {
        return Err(format!(
            "the certificate lives longer than {} h, which policy does not allow",
            longest.as_secs() / 3600
        ));
    }
    Ok(())
}

/// RFC 8446 §4.4.2 lets a peer shuffle; no honest one does, and a line leaves nothing to search.
fn check_order(chain: &[X509Certificate<'_>]) -> Result<(), String> {
    for pair in chain.windows(2) {
        if pair[0].tbs_certificate.issuer.as_raw() != pair[1].tbs_certificate.subject.as_raw() {
            return Err(
                "the peer's certificates are not in order: each must be signed by the next"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

/// RFC 5280 §4.2.1.1: which of several keys of one name has signed.
fn check_key_ids(path: &[X509Certificate<'_>], root: Option<&[u8]>) -> Result<(), String> {
    for (at, certificate) in path.iter().enumerate() {
        let signer = path.get(at + 1).map_or(root, strict::own_key_id);
        let (Some(said), Some(signer)) = (strict::issuer_key_id(certificate), signer) else {
            continue;
        };
        if said != signer {
            return Err(
                "the certificate's authority key identifier is not its issuer's".to_owned(),
            );
        }
    }
    Ok(())
}

fn chain<'a>(
    leaf: &'a CertificateDer<'a>,
    above: &'a [CertificateDer<'a>],
) -> Vec<&'a CertificateDer<'a>> {
    std::iter::once(leaf).chain(above).collect()
}

/// The client's side: whoever is one of `want`. Host names play no part.
#[derive(Debug)]
pub(crate) struct WantedServer {
    pub(crate) judge: Arc<Judge>,
    pub(crate) want: Vec<SpiffeId>,
}

impl WantedServer {
    fn check(&self, chain: &[&CertificateDer<'_>], now: UnixTime) -> Result<(), Refusal> {
        let found = self.judge.identify(chain, Peer::Server, now)?;
        if self.judge.is_wanted(&found, &self.want) {
            return Ok(());
        }
        let want: Vec<&str> = self.want.iter().map(SpiffeId::as_str).collect();
        Err(format!("the peer is {found}, expected {}", want.join(" or ")).into())
    }
}

impl ServerCertVerifier for WantedServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(&chain(leaf, above), now).map_err(refuse)?;
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
        verify_tls13_signature(message, certificate, signature, &self.judge.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.algorithms.supported_schemes()
    }
}

/// The server's side: whoever is of a trust domain that we know. A certificate is mandatory.
#[derive(Debug)]
pub(crate) struct MeshClient(pub(crate) Arc<Judge>);

impl ClientCertVerifier for MeshClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A peer has one certificate to offer; hints would only make the flight longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let judged = self.0.identify(&chain(leaf, above), Peer::Client, now);
        judged.map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
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
        verify_tls13_signature(message, certificate, signature, &self.0.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}
