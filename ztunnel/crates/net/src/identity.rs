//! The keys and certificates of the workloads on this node.
//!
//! Owns private keys from birth to death, what is pending and what is in use, and the only reading of the wall clock:
//! validity is a matter of the calendar. Owns no schedule: renewal is Python's, which answers `ask`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;
use ztunnel_core::ids::SpiffeId;

use crate::csr::Key;
use crate::tls::Configs;
use crate::verify::{leaf_identity, parse};

/// How long a connection waits for the first certificate of its workload.
const FIRST_CHAIN: Duration = Duration::from_secs(10);

/// Tells the control side that a certificate is wanted; `now`: a connection waits for it.
pub type Ask = Box<dyn Fn(&SpiffeId, bool) + Send + Sync>;

/// One generation of a workload's certificate, ready for handshakes. Never used after `not_after`.
pub struct Credentials {
    pub id: SpiffeId,
    /// Unix seconds.
    pub not_before: f64,
    pub not_after: f64,
    pub(crate) configs: Configs,
    info: CertificateInfo,
}

impl Credentials {
    /// Zero once expired.
    pub(crate) fn remaining(&self) -> Duration {
        until(self.not_after)
    }
}

/// One row of the dump, in the form of Istio's `certificates`.
#[derive(Clone, Debug)]
pub struct CertificateInfo {
    pub identity: SpiffeId,
    /// `Available`, `Initializing`, or `Unavailable: why`.
    pub state: String,
    pub leaf: Option<ChainLink>,
    pub intermediates: Vec<ChainLink>,
    pub roots: Vec<ChainLink>,
}

/// One certificate of a chain.
#[derive(Clone, Debug)]
pub struct ChainLink {
    pub pem: String,
    /// Decimal, as Istio prints it.
    pub serial_number: String,
    /// Unix seconds.
    pub not_before: f64,
    pub not_after: f64,
}

/// All identities of one process, shared by its workers. Its lock is taken per handshake, never per connection or byte.
pub struct Identities {
    ask: Ask,
    known: Mutex<HashMap<SpiffeId, Entry>>,
}

struct Entry {
    /// The key of the last request; a chain must be for this one.
    pending: Option<Key>,
    state: watch::Sender<State>,
}

#[derive(Clone)]
enum State {
    Waiting,
    Failed(String),
    Ready(Arc<Credentials>),
}

impl Entry {
    fn new() -> Self {
        Self {
            pending: None,
            state: watch::Sender::new(State::Waiting),
        }
    }

    fn valid(&self) -> Option<Arc<Credentials>> {
        match &*self.state.borrow() {
            State::Ready(found) if !found.remaining().is_zero() => Some(found.clone()),
            _ => None,
        }
    }
}

impl Identities {
    /// `ask` is called from any thread, at most once per waiting connection; it must not block.
    pub fn new(ask: Ask) -> Self {
        Self {
            ask,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SpiffeId, Entry>> {
        // Every change under this lock is a single assignment, so a poisoned map is still whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fresh key, pending until its chain comes; returns its certificate request, PEM. What is in use stays in use.
    pub fn new_key(&self, identity: &SpiffeId) -> Result<String, String> {
        let key = Key::generate()?;
        let request = key.request(identity)?;
        let mut known = self.known();
        known
            .entry(identity.clone())
            .or_insert_with(Entry::new)
            .pending = Some(key);
        Ok(request)
    }

    /// Takes the CA's answer into use for new handshakes. `chain`: PEM of the leaf, the intermediates, last the roots
    /// (one string may hold several). Returns (not before, not after), Unix seconds. On error nothing changes.
    pub fn install_chain(
        &self,
        identity: &SpiffeId,
        chain: &[String],
    ) -> Result<(f64, f64), String> {
        let mut known = self.known();
        let entry = known
            .get_mut(identity)
            .ok_or_else(|| format!("no key was made for {identity}"))?;
        let key = entry
            .pending
            .as_ref()
            .ok_or_else(|| format!("no request is pending for {identity}"))?;
        let credentials = Arc::new(credentials(identity, key, chain)?);
        let validity = (credentials.not_before, credentials.not_after);
        entry.pending = None;
        entry.state.send_replace(State::Ready(credentials));
        Ok(validity)
    }

    /// Whoever waits for `identity` fails now; a valid chain stays in use.
    pub fn failed(&self, identity: &SpiffeId, why: &str) {
        if let Some(entry) = self.known().get(identity)
            && entry.valid().is_none()
        {
            entry.state.send_replace(State::Failed(why.to_owned()));
        }
    }

    /// Drops key and chain; whoever waits fails.
    pub fn forget(&self, identity: &SpiffeId) {
        if let Some(entry) = self.known().remove(identity) {
            entry
                .state
                .send_replace(State::Failed("the identity has left this node".to_owned()));
        }
    }

    /// The newest valid credentials. Without any, asks for them once and waits until they come, the request fails, or
    /// ten seconds have passed.
    pub async fn ready(&self, identity: &SpiffeId) -> Result<Arc<Credentials>, String> {
        let (mut state, first) = match self.valid_or_watch(identity) {
            Ok(valid) => return Ok(valid),
            Err(waiting) => waiting,
        };
        if first {
            (self.ask)(identity, true);
        }
        let settled = async {
            loop {
                if state.changed().await.is_err() {
                    return Err("the identity has left this node".to_owned());
                }
                match &*state.borrow_and_update() {
                    State::Ready(found) => return Ok(found.clone()),
                    State::Failed(why) => return Err(why.clone()),
                    State::Waiting => {}
                }
            }
        };
        let waited = tokio::time::timeout(FIRST_CHAIN, settled).await;
        waited.unwrap_or_else(|_| Err(format!("none came within {FIRST_CHAIN:?}")))
    }

    /// Otherwise: where the answer will appear, and whether nobody else waits for it.
    fn valid_or_watch(
        &self,
        identity: &SpiffeId,
    ) -> Result<Arc<Credentials>, (watch::Receiver<State>, bool)> {
        let mut known = self.known();
        let entry = known.entry(identity.clone()).or_insert_with(Entry::new);
        let first = entry.state.receiver_count() == 0;
        // Subscribed under the lock: an answer that comes at once is not missed.
        entry
            .valid()
            .ok_or_else(|| (entry.state.subscribe(), first))
    }

    /// Every identity and what there is for it; no private key is in it.
    pub fn dump(&self) -> Vec<CertificateInfo> {
        let known = self.known();
        let mut rows: Vec<_> = known
            .iter()
            .map(|(identity, entry)| row(identity, entry))
            .collect();
        rows.sort_by(|a, b| a.identity.cmp(&b.identity));
        rows
    }
}

fn row(identity: &SpiffeId, entry: &Entry) -> CertificateInfo {
    let state = match &*entry.state.borrow() {
        State::Ready(found) if !found.remaining().is_zero() => return found.info.clone(),
        State::Ready(_) => "Unavailable: the certificate has expired".to_owned(),
        State::Waiting => "Initializing".to_owned(),
        State::Failed(why) => format!("Unavailable: {why}"),
    };
    CertificateInfo {
        identity: identity.clone(),
        state,
        leaf: None,
        intermediates: Vec::new(),
        roots: Vec::new(),
    }
}

fn credentials(identity: &SpiffeId, key: &Key, chain: &[String]) -> Result<Credentials, String> {
    let (presented, roots) = split_chain(chain)?;
    let leaf = presented.first().ok_or("the chain is empty")?;
    let validity = check_leaf(identity, key, leaf)?;
    let info = CertificateInfo {
        identity: identity.clone(),
        state: "Available".to_owned(),
        leaf: Some(link(leaf)?),
        intermediates: presented[1..].iter().map(link).collect::<Result<_, _>>()?,
        roots: roots.iter().map(link).collect::<Result<_, _>>()?,
    };
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root)
            .map_err(|why| format!("a root of the chain cannot be used: {why}"))?;
    }
    let (not_before, not_after) = validity;
    let trust_domain = identity.trust_domain();
    let configs = Configs::new(presented, key.private_der()?, Arc::new(store), trust_domain)?;
    Ok(Credentials {
        id: identity.clone(),
        not_before,
        not_after,
        configs,
        info,
    })
}

type Certificates = Vec<CertificateDer<'static>>;

/// What we present (leaf, intermediates) and whom we believe (the roots: everything in the last PEM string).
fn split_chain(chain: &[String]) -> Result<(Certificates, Certificates), String> {
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
    let roots = certificates(roots)?;
    if roots.is_empty() {
        return Err("the last element of the chain holds no root".to_owned());
    }
    Ok((presented, roots))
}

fn certificates(pem: &str) -> Result<Certificates, String> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|why| format!("the chain is not PEM: {why}"))
}

fn check_leaf(identity: &SpiffeId, key: &Key, leaf: &[u8]) -> Result<(f64, f64), String> {
    let found = leaf_identity(leaf)?;
    if found != *identity {
        return Err(format!(
            "the certificate is for {found}, expected {identity}"
        ));
    }
    let parsed = parse(leaf)?;
    if parsed.public_key().raw != key.public_der()? {
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

fn validity(certificate: &x509_parser::certificate::X509Certificate<'_>) -> (f64, f64) {
    let dates = certificate.validity();
    (
        dates.not_before.timestamp() as f64,
        dates.not_after.timestamp() as f64,
    )
}

/// How long until a certificate's last second, by the wall clock. Zero when it is over or unreadable.
pub(crate) fn remaining(certificate: &[u8]) -> Duration {
    parse(certificate).map_or(Duration::ZERO, |parsed| until(validity(&parsed).1))
}

/// Zero for what lies in the past.
fn until(unix_seconds: f64) -> Duration {
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
