//! The answer of a certificate authority, taken apart and checked before it is used.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::{CertifiedKey, SigningKey};
use ztunnel_core::ids::SpiffeId;

use super::{CertificateInfo, ChainLink, Credentials};
use crate::key::Key;
use crate::tls::{Configs, crypto};
use crate::verify::{Bundle, Judge, Trusted, leaf_identity, parse};

/// The key and what goes with it.
pub(super) struct Holder<'a> {
    pub(super) identity: &'a SpiffeId,
    pub(super) key: Arc<dyn SigningKey>,
    /// SubjectPublicKeyInfo, DER.
    pub(super) public: Vec<u8>,
    pub(super) trusted: &'a Trusted,
}

impl<'a> Holder<'a> {
    pub(super) fn of(
        identity: &'a SpiffeId,
        key: &Key,
        trusted: &'a Trusted,
    ) -> Result<Self, String> {
        Ok(Self {
            identity,
            public: key.public_der()?,
            key: Arc::new(key.clone()),
            trusted,
        })
    }

    /// `chain`: PEM of the leaf, the intermediates, last the roots.
    pub(super) fn credentials(self, chain: &[String]) -> Result<Credentials, String> {
        let (presented, roots) = split_chain(chain)?;
        let leaf = presented.first().ok_or("the chain is empty")?;
        let (not_before, not_after) = self.check_leaf(leaf)?;
        let domain = self.identity.trust_domain();
        let roots = Bundle::parse(roots, domain)?;
        if roots.0.is_empty() {
            return Err("the last element of the chain holds no root".to_owned());
        }
        let info = CertificateInfo {
            identity: self.identity.clone(),
            state: "Available".to_owned(),
            leaf: Some(link(leaf)?),
            intermediates: presented[1..].iter().map(link).collect::<Result<_, _>>()?,
            roots: roots
                .0
                .iter()
                .map(|root| link(&root.der))
                .collect::<Result<_, _>>()?,
        };
        let algorithms = crypto().signature_verification_algorithms;
        let judge = Judge::new(self.trusted.clone(), domain, Arc::new(roots), algorithms);
        let certified = CertifiedKey::new(presented.clone(), self.key);
        Ok(Credentials {
            id: self.identity.clone(),
            not_before,
            not_after,
            configs: Configs::new(certified, Arc::new(judge))?,
            presented,
            info,
        })
    }

    fn check_leaf(&self, leaf: &[u8]) -> Result<(f64, f64), String> {
        let identity = self.identity;
        let found = leaf_identity(leaf)?;
        if found != *identity {
            return Err(format!(
                "the certificate is for {found}, expected {identity}"
            ));
        }
        let parsed = parse(leaf)?;
        if parsed.public_key().raw != self.public {
            return Err(format!(
                "the certificate is not for the last key made for {identity}"
            ));
        }
        let (not_before, not_after) = validity(&parsed);
        if until(not_after).is_zero() {
            return Err(format!(
                "the certificate expired at {}",
                parsed.validity().not_after
            ));
        }
        if !until(not_before).is_zero() {
            return Err(format!(
                "the certificate is valid only from {}",
                parsed.validity().not_before
            ));
        }
        Ok((not_before, not_after))
    }
}

type Certificates = Vec<CertificateDer<'static>>;

/// What we present (leaf, intermediates) and whom we believe (the roots: everything in the last PEM string).
fn split_chain(chain: &[String]) -> Result<(Certificates, &str), String> {
    let [leaf, intermediates @ .., roots] = chain else {
        return Err(format!(
            "the chain has {} element(s); it needs a leaf and, last, the roots",
            chain.len()
        ));
    };
    let mut presented = certificates(leaf)?;
    for text in intermediates {
        presented.extend(certificates(text)?);
    }
    Ok((presented, roots))
}

fn certificates(pem: &str) -> Result<Certificates, String> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|why| format!("the chain is not PEM: {why}"))
}

fn validity(certificate: &x509_parser::certificate::X509Certificate<'_>) -> (f64, f64) {
    let dates = certificate.validity();
    (
        dates.not_before.timestamp() as f64,
        dates.not_after.timestamp() as f64,
    )
}

/// A certificate's last second, Unix seconds. Zero when it is unreadable.
pub(super) fn end(certificate: &[u8]) -> f64 {
    parse(certificate).map_or(0.0, |parsed| validity(&parsed).1)
}

/// Zero for what lies in the past.
pub(super) fn until(unix_seconds: f64) -> Duration {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Duration::try_from_secs_f64(unix_seconds - now.as_secs_f64()).unwrap_or_default()
}

fn link(certificate: &CertificateDer<'static>) -> Result<ChainLink, String> {
    let parsed = parse(certificate)?;
    let (not_before, not_after) = validity(&parsed);
    let serial_number = parsed.serial.to_string();
    let pem = crate::csr::pem("CERTIFICATE", certificate);
    Ok(ChainLink {
        pem,
        serial_number,
        not_before,
        not_after,
    })
}
