//! The keys and certificates of the workloads on this node.
//!
//! Owns private keys from birth to death, what is pending and what is in use, whom we trust, and the only reading of the
//! wall clock: validity is a matter of the calendar. Owns no schedule: renewal is Python's, which answers `ask`.

mod chain;
mod inventory;
mod lease;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use zeroize::Zeroizing;
use ztunnel_core::ids::SpiffeId;

use crate::csr::request;
use crate::key::{self, Key};
use crate::tls::Configs;
use crate::vault::Vault;
use crate::verify::{Peer, Trust, Trusted};
use chain::{Holder, until};
pub use inventory::{CertificateInfo, ChainLink};
pub(crate) use lease::Lease;

/// How long a connection waits for the first certificate of its workload.
const FIRST_CHAIN: Duration = Duration::from_secs(10);
/// How long a pod may be here before the control plane says who it is.
const ARRIVAL: Duration = Duration::from_secs(3);

/// Tells the control side that a certificate is wanted; `now`: a connection waits for it.
pub type Ask = Box<dyn Fn(&SpiffeId, bool) + Send + Sync>;

/// One generation of a workload's certificate, ready for handshakes. Never used after `not_after`.
pub struct Credentials {
    pub id: SpiffeId,
    /// Unix seconds.
    pub not_before: f64,
    pub not_after: f64,
    pub(crate) configs: Configs,
    presented: Vec<CertificateDer<'static>>,
    info: CertificateInfo,
}

impl Credentials {
    /// Zero once expired.
    pub(crate) fn remaining(&self) -> Duration {
        until(self.not_after)
    }

    /// Why those who trust whom we trust would refuse it today.
    fn doubt(&self) -> Option<String> {
        let chain: Vec<_> = self.presented.iter().collect();
        let judged = self
            .configs
            .judge
            .identify(&chain, Peer::Server, UnixTime::now());
        judged.err().map(|refusal| refusal.why)
    }
}

/// All identities of one process, shared by its workers. Its lock is taken per handshake, never per connection or byte.
pub struct Identities {
    ask: Ask,
    known: Mutex<HashMap<SpiffeId, Entry>>,
    /// Whose pods are here; a key for anybody else is not made. `None`: everybody's.
    present: Mutex<Option<HashSet<SpiffeId>>>,
    arrivals: watch::Sender<()>,
    trusted: Trusted,
    vault: Option<Vault>,
    dropped: AtomicU64,
    not_kept: Mutex<Option<String>>,
}

type Present<'a> = MutexGuard<'a, Option<HashSet<SpiffeId>>>;

struct Entry {
    /// The key of the last request; a chain must be for this one.
    pending: Option<Key>,
    state: watch::Sender<State>,
    /// Why those who trust whom we trust would refuse what is in use.
    doubt: Option<String>,
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
            doubt: None,
        }
    }

    fn has_key(&self) -> bool {
        self.pending.is_some() || matches!(&*self.state.borrow(), State::Ready(_))
    }

    fn unproven(&self, id: &SpiffeId) -> Option<String> {
        let State::Ready(found) = &*self.state.borrow() else {
            return None;
        };
        if found.remaining().is_zero() {
            return Some(format!("the certificate of {id} has expired"));
        }
        let why = self.doubt.as_ref()?;
        Some(format!("the certificate of {id} would be refused: {why}"))
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
            present: Mutex::default(),
            arrivals: watch::Sender::new(()),
            trusted: Trusted::default(),
            vault: None,
            dropped: AtomicU64::new(0),
            not_kept: Mutex::default(),
        }
    }

    /// Keys of our own making survive a restart in `directory`, which must be on tmpfs.
    pub fn with_vault(mut self, directory: &str) -> Result<Self, String> {
        self.vault = Some(Vault::open(directory)?);
        Ok(self)
    }

    /// Whom to believe from the next handshake on; see door 4. On error nothing changes.
    pub fn set_trust(&self, document: &[u8]) -> Result<(), String> {
        self.trusted.store(Arc::new(Trust::parse(document)?));
        let ready: Vec<_> = {
            let known = self.known();
            known.values().filter_map(Entry::valid).collect()
        };
        for credentials in ready {
            let doubt = credentials.doubt(); // signatures: not under the lock
            if let Some(entry) = self.known().get_mut(&credentials.id) {
                entry.doubt = doubt;
            }
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<SpiffeId, Entry>> {
        // Every change under this lock is a single assignment, so a poisoned map is still whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fresh key, pending until its chain comes; returns its certificate request, PEM. What is in use stays in use.
    pub fn new_key(&self, identity: &SpiffeId) -> Result<String, String> {
        let key = Key::generate()?;
        let request = request(&key, identity)?;
        let _here = self.here(identity)?;
        self.known()
            .entry(identity.clone())
            .or_insert_with(Entry::new)
            .pending = Some(key);
        Ok(request)
    }

    /// An identity that has a pod here keeps it as long as the guard is held.
    fn here(&self, identity: &SpiffeId) -> Result<Present<'_>, String> {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if present.as_ref().is_some_and(|ids| !ids.contains(identity)) {
            return Err(format!("no pod on this node has the identity {identity}"));
        }
        Ok(present)
    }

    /// Takes the CA's answer into use for new handshakes. `chain`: PEM of the leaf, the intermediates, last the roots
    /// (one string may hold several). Returns (not before, not after), Unix seconds. On error nothing changes.
    pub fn install_chain(
        &self,
        identity: &SpiffeId,
        chain: &[String],
    ) -> Result<(f64, f64), String> {
        let pending = self
            .known()
            .get(identity)
            .ok_or_else(|| format!("no key was made for {identity}"))?
            .pending
            .clone();
        let key = pending.ok_or_else(|| format!("no request is pending for {identity}"))?;
        let credentials = Holder::of(identity, &key, &self.trusted)?.credentials(chain)?;
        let _here = self.here(identity)?;
        if let Some(vault) = &self.vault {
            // A restart without it costs a request to the CA, no more.
            let kept = vault.keep(identity, &key, chain).err();
            *self.not_kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        }
        Ok(self.take_into_use(credentials))
    }

    /// The same for key and chain from a SPIFFE Workload API: PKCS#8, and PEM as above.
    pub fn install_svid(
        &self,
        identity: &SpiffeId,
        pkcs8: Zeroizing<Vec<u8>>,
        chain: &[String],
    ) -> Result<(f64, f64), String> {
        let key = key::given(pkcs8)?;
        let public = key
            .public_key()
            .ok_or("the private key has no public half")?;
        let holder = Holder {
            identity,
            public: public.as_ref().to_vec(),
            key: key.clone(),
            trusted: &self.trusted,
        };
        let credentials = holder.credentials(chain)?;
        let _here = self.here(identity)?;
        Ok(self.take_into_use(credentials))
    }

    fn take_into_use(&self, credentials: Credentials) -> (f64, f64) {
        let validity = (credentials.not_before, credentials.not_after);
        let doubt = credentials.doubt();
        let mut known = self.known();
        let entry = known
            .entry(credentials.id.clone())
            .or_insert_with(Entry::new);
        entry.pending = None;
        entry.doubt = doubt;
        entry
            .state
            .send_replace(State::Ready(Arc::new(credentials)));
        validity
    }

    /// Why the last chain was not kept for a restart, if it was not.
    pub fn not_kept(&self) -> Option<String> {
        self.not_kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// What was kept over a restart, into use. None: there is nothing, or nothing that can be used.
    pub fn restore(&self, identity: &SpiffeId) -> Option<(f64, f64)> {
        let vault = self.vault.as_ref()?;
        let kept = vault.find(identity).ok()??;
        let holder = Holder::of(identity, &kept.key, &self.trusted).ok()?;
        let Ok(credentials) = holder.credentials(&kept.chain) else {
            vault.remove(identity); // expired, most likely
            return None;
        };
        let _here = self.here(identity).ok()?;
        Some(self.take_into_use(credentials))
    }

    /// Whose pods are here from now on. Keys of all others are dropped at once; what a vault keeps of those who were never
    /// here in this life stays until `forget_absent`.
    pub fn set_present(&self, present: HashSet<SpiffeId>) {
        let mut now = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<_> = {
            let known = self.known();
            known
                .keys()
                .filter(|id| !present.contains(id))
                .cloned()
                .collect()
        };
        *now = Some(present);
        drop(now);
        self.arrivals.send_replace(());
        gone.iter().for_each(|id| self.forget(id));
    }

    /// A restart's end: what was kept for pods that did not come back goes.
    pub fn forget_absent(&self) {
        let present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(vault), Some(present)) = (&self.vault, &*present) {
            vault.remove_others(present);
        }
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
            let had = u64::from(entry.has_key());
            self.dropped.fetch_add(had, Ordering::Relaxed);
            entry
                .state
                .send_replace(State::Failed("the identity has left this node".to_owned()));
        }
        if let Some(vault) = &self.vault {
            vault.remove(identity);
        }
    }

    /// The newest valid credentials. Without any, asks for them once and waits until they come, the request fails, or
    /// ten seconds have passed.
    pub async fn ready(&self, identity: &SpiffeId) -> Result<Arc<Credentials>, String> {
        if let Some(valid) = self.known().get(identity).and_then(Entry::valid) {
            return Ok(valid);
        }
        self.arrived(identity).await?;
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

    /// Waits for a pod that joins the mesh while it runs: its node may be quicker than the control plane's word.
    async fn arrived(&self, identity: &SpiffeId) -> Result<(), String> {
        let mut arrivals = self.arrivals.subscribe();
        let deadline = tokio::time::Instant::now() + ARRIVAL;
        loop {
            let Err(why) = self.here(identity).map(drop) else {
                return Ok(());
            };
            let next = tokio::time::timeout_at(deadline, arrivals.changed()).await;
            if !matches!(next, Ok(Ok(()))) {
                return Err(why);
            }
        }
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
}
