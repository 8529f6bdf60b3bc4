//! Whom this node believes: the roots of each trust domain, never pooled (SPIFFE Trust Domain and Bundle §4), and what has
//! been revoked. Replaced as a whole; owns no schedule and no file.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationOptions,
    RevocationOptionsBuilder, anchor_from_trusted_cert,
};
use ztunnel_core::ids::SpiffeId;

use super::{Refusal, strict};

/// What is trusted now; a new value takes effect with the next handshake.
pub(crate) type Trusted = Arc<ArcSwap<Trust>>;

/// Istio issues for 24 h; what lives longer than three days cannot be withdrawn in time.
const LONGEST_LIFE: Duration = Duration::from_secs(72 * 3600);

/// One root of one trust domain.
#[derive(Debug)]
pub(crate) struct Root {
    anchor: TrustAnchor<'static>,
    pub(crate) der: CertificateDer<'static>,
    /// Unix seconds, both inclusive.
    from: i64,
    until: i64,
    pub(crate) path_length: Option<usize>,
    pub(crate) key_id: Option<Vec<u8>>,
}

impl Root {
    fn new(der: CertificateDer<'static>, trust_domain: &str) -> Result<Self, String> {
        let parsed = strict::parse(&der)?;
        strict::check_authority(&parsed, trust_domain, true)?;
        let dates = parsed.validity();
        let (from, until) = (dates.not_before.timestamp(), dates.not_after.timestamp());
        let path_length = strict::path_length(&parsed);
        let key_id = strict::own_key_id(&parsed).map(<[u8]>::to_vec);
        let anchor = anchor_from_trusted_cert(&der)
            .map_err(|why| format!("the root cannot be used: {why}"))?
            .to_owned();
        Ok(Self {
            anchor,
            der,
            from,
            until,
            path_length,
            key_id,
        })
    }

    pub(crate) fn anchor(&self) -> TrustAnchor<'_> {
        let borrowed = &self.anchor;
        TrustAnchor {
            subject: borrowed.subject.as_ref().into(),
            subject_public_key_info: borrowed.subject_public_key_info.as_ref().into(),
            name_constraints: borrowed
                .name_constraints
                .as_ref()
                .map(|constraints| constraints.as_ref().into()),
        }
    }

    pub(crate) fn is_valid(&self, now: UnixTime) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        (self.from..=self.until).contains(&now)
    }
}

/// The roots of one trust domain. Without any, nobody of that domain is believed: that is a revocation, not a gap.
#[derive(Debug, Default)]
pub(crate) struct Bundle(pub(crate) Vec<Root>);

impl Bundle {
    /// `pem`: certificates one after the other.
    pub(crate) fn parse(pem: &str, trust_domain: &str) -> Result<Self, String> {
        let of = |why: String| format!("the roots of {trust_domain}: {why}");
        let each = CertificateDer::pem_slice_iter(pem.as_bytes()).map(|der| {
            let der = der.map_err(|why| of(format!("not PEM: {why}")))?;
            Root::new(der, trust_domain).map_err(of)
        });
        each.collect::<Result<_, _>>().map(Self)
    }
}

/// Revocation lists, once they are configured.
enum Revocations {
    /// Nobody asked for them.
    Off,
    Lists(Vec<CertRevocationList<'static>>),
    /// Asked for and not to be had: nobody can be believed. The sentence says why.
    Unusable(String),
}

/// Immutable; see the module.
pub(crate) struct Trust {
    bundles: HashMap<String, Arc<Bundle>>,
    aliases: Vec<String>,
    revocations: Revocations,
    longest_life: Duration,
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            bundles: HashMap::new(),
            aliases: Vec::new(),
            revocations: Revocations::Off,
            longest_life: LONGEST_LIFE,
        }
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Trust({:?})", self.bundles.keys())
    }
}

/// The document of door 4. `bundles`: trust domain to PEM. `crls`: PEM; `crls_unusable`: why there is none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    #[serde(deserialize_with = "without_duplicates")]
    bundles: HashMap<String, String>,
    aliases: Vec<String>,
    crls: Option<String>,
    crls_unusable: Option<String>,
    longest_life_s: f64,
}

impl Default for Document {
    fn default() -> Self {
        Self {
            bundles: HashMap::new(),
            aliases: Vec::new(),
            crls: None,
            crls_unusable: None,
            longest_life_s: LONGEST_LIFE.as_secs_f64(),
        }
    }
}

/// The last of two keys would silently win; a bundle map must not have two (SPIFFE Trust Domain and Bundle §4.3).
fn without_duplicates<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<HashMap<String, String>, D::Error> {
    struct Once;
    impl<'de> Visitor<'de> for Once {
        type Value = HashMap<String, String>;
        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("an object of PEM texts by trust domain")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = HashMap::new();
            while let Some((domain, pem)) = entries.next_entry::<String, String>()? {
                if map.insert(domain.clone(), pem).is_some() {
                    return Err(serde::de::Error::custom(format!("{domain} is given twice")));
                }
            }
            Ok(map)
        }
    }
    from.deserialize_map(Once)
}

impl Trust {
    /// One sentence when something in the document cannot be used; then nothing of it is.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let document: Document =
            serde_json::from_slice(json).map_err(|why| format!("the trust document: {why}"))?;
        for domain in document.bundles.keys().chain(&document.aliases) {
            SpiffeId::new(domain, "any", "any").map_err(|why| format!("{domain:?}: {why}"))?;
        }
        let longest_life = Duration::try_from_secs_f64(document.longest_life_s)
            .map_err(|why| format!("longest_life_s: {why}"))?;
        let bundles = document.bundles.into_iter().map(|(domain, pem)| {
            let bundle = Bundle::parse(&pem, &domain)?;
            Ok((domain, Arc::new(bundle)))
        });
        Ok(Self {
            bundles: bundles.collect::<Result<_, String>>()?,
            aliases: document.aliases,
            revocations: revocations(document.crls, document.crls_unusable)?,
            longest_life,
        })
    }

    pub(crate) fn bundle(&self, trust_domain: &str) -> Option<&Arc<Bundle>> {
        self.bundles.get(trust_domain)
    }

    pub(crate) fn is_alias(&self, trust_domain: &str) -> bool {
        self.aliases.iter().any(|alias| alias == trust_domain)
    }

    pub(crate) fn longest_life(&self) -> Duration {
        self.longest_life
    }

    /// Whom a peer may be of, for the sentence of a refusal.
    pub(crate) fn domains(&self, own: &str) -> String {
        let others = self.bundles.keys().filter(|domain| *domain != own);
        let mut all: Vec<&str> = others.chain(&self.aliases).map(String::as_str).collect();
        all.sort_unstable();
        all.insert(0, own);
        all.join(", ")
    }

    /// Calls `verify` with what is revoked. Every certificate of a path is looked up, an issuer without a list is a
    /// refusal, and so is a list whose time is over.
    pub(crate) fn with_revocations<T>(
        &self,
        verify: impl FnOnce(Option<RevocationOptions<'_>>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let lists = match &self.revocations {
            Revocations::Off => return verify(None),
            Revocations::Unusable(why) => {
                return Err(format!("revocation cannot be checked: {why}").into());
            }
            Revocations::Lists(lists) => lists.iter().collect::<Vec<_>>(),
        };
        let options = RevocationOptionsBuilder::new(&lists)
            .map_err(|_| "revocation cannot be checked: there is no revocation list".to_owned())?
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        verify(Some(options))
    }
}

fn revocations(lists: Option<String>, unusable: Option<String>) -> Result<Revocations, String> {
    if let Some(why) = unusable {
        return Ok(Revocations::Unusable(why));
    }
    let Some(pem) = lists else {
        return Ok(Revocations::Off);
    };
    let each = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).map(|der| {
        let der = der.map_err(|why| format!("the revocation lists are not PEM: {why}"))?;
        OwnedCertRevocationList::from_der(&der)
            .map(CertRevocationList::from)
            .map_err(|why| format!("a revocation list cannot be used: {why}"))
    });
    each.collect::<Result<_, _>>().map(Revocations::Lists)
}
