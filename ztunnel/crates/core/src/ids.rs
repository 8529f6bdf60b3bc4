//! SPIFFE IDs of the Istio profile. Owns their grammar; not certificates.
//!
//! Source: SPIFFE-ID.md §2 (characters, limits, no query, fragment, userinfo or port; upper case refused, as go-spiffe
//! does), Istio's form `spiffe://TD/ns/NAMESPACE/sa/SERVICE-ACCOUNT`, Kubernetes' names for the two parts.

use std::fmt;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;
const MAX_LABEL: usize = 63;
const MAX_SUBDOMAIN: usize = 253;

/// Why a text is not an identity of this mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    #[error("longer than 2048 bytes")]
    TooLong,
    #[error("does not start with spiffe:// in lower case")]
    Scheme,
    #[error(
        "the trust domain is empty, longer than 255 bytes or has characters other than a-z 0-9 . - _"
    )]
    TrustDomain,
    #[error("the path is not /ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    Path,
    #[error("the namespace is not a DNS label")]
    Namespace,
    #[error("the service account is not a DNS name")]
    ServiceAccount,
}

/// A verified form, not a verified peer. Cloning costs one atomic increment.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_end: u16,
    namespace_end: u16,
}

impl SpiffeId {
    /// Exactly the canonical spelling is accepted, so equal identities are equal texts.
    pub fn parse(text: &str) -> Result<Self, BadId> {
        if text.len() > MAX_ID {
            return Err(BadId::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(BadId::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        check_trust_domain(trust_domain)?;
        let mut parts = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(BadId::Path);
        };
        check_names(namespace, account)?;
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        Ok(Self {
            text: text.into(),
            trust_domain_end: trust_domain_end as u16,
            namespace_end: (trust_domain_end + "/ns/".len() + namespace.len()) as u16,
        })
    }

    /// From its parts, with the same checks.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, BadId> {
        let mut text = String::new();
        Self::spell(&mut text, trust_domain, namespace, service_account);
        Self::parse(&text)
    }

    /// Writes what these parts make, be it an identity or not, in place of `text`.
    pub(crate) fn spell(
        text: &mut String,
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) {
        text.clear();
        for part in [
            SCHEME,
            trust_domain,
            "/ns/",
            namespace,
            "/sa/",
            service_account,
        ] {
            text.push_str(part);
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The form policies speak of: without `spiffe://`.
    pub fn principal(&self) -> &str {
        &self.text[SCHEME.len()..]
    }

    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.trust_domain_end.into()]
    }

    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.trust_domain_end) + "/ns/".len()..self.namespace_end.into()]
    }

    pub fn service_account(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + "/sa/".len()..]
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

fn check_trust_domain(text: &str) -> Result<(), BadId> {
    let fits = (1..=MAX_TRUST_DOMAIN).contains(&text.len());
    let clean = text
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
    (fits && clean).then_some(()).ok_or(BadId::TrustDomain)
}

fn check_names(namespace: &str, account: &str) -> Result<(), BadId> {
    if !is_label(namespace) {
        return Err(BadId::Namespace);
    }
    let subdomain = account.len() <= MAX_SUBDOMAIN && account.split('.').all(is_label); // as Kubernetes checks it
    subdomain.then_some(()).ok_or(BadId::ServiceAccount)
}

/// RFC 1123 §2.1 in Kubernetes' reading: lower case, 1 to 63 bytes, no hyphen at either end.
fn is_label(text: &str) -> bool {
    let inner = text
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    inner && (1..=MAX_LABEL).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests;
