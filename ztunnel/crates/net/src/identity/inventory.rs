//! What is there for every identity, and whether it would be believed; no private key leaves here.

use super::{Entry, Identities, State};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use ztunnel_core::ids::SpiffeId;

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

impl Identities {
    /// (identities whose private key is in memory, keys dropped since the start)
    pub fn keys(&self) -> (Vec<SpiffeId>, u64) {
        let known = self.known();
        let held = known.iter().filter(|(_, entry)| entry.has_key());
        let mut held: Vec<_> = held.map(|(id, _)| id.clone()).collect();
        held.sort();
        (held, self.dropped.load(Ordering::Relaxed))
    }

    /// Whose certificate is over or would not be believed, and why: connections that rest on it must end.
    pub fn unproven(&self) -> HashMap<SpiffeId, String> {
        let known = self.known();
        let doubted = known
            .iter()
            .filter_map(|(id, entry)| Some((id.clone(), entry.unproven(id)?)));
        doubted.collect()
    }

    /// For who would not show it to anybody: is there a certificate that a peer would accept?
    pub async fn proven(&self, identity: &SpiffeId) -> Result<(), String> {
        self.ready(identity).await?;
        let known = self.known();
        let doubt = known
            .get(identity)
            .and_then(|entry| entry.unproven(identity));
        doubt.map_or(Ok(()), Err)
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
