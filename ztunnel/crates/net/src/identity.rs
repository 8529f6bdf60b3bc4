//! Keys and certificates (bodies follow).
use std::sync::Arc;
use ztunnel_core::ids::SpiffeId;

pub type Ask = Box<dyn Fn(&SpiffeId, bool) + Send + Sync>;

/// One certificate for the dump (`certificates` of Istio's config dump).
pub struct CertificateInfo {
    pub identity: SpiffeId,
    /// "Available", "Initializing" or "Unavailable: why".
    pub state: String,
    /// PEM of leaf, intermediates and roots; empty when there are none.
    pub leaf: Option<ChainLink>,
    pub intermediates: Vec<ChainLink>,
    pub roots: Vec<ChainLink>,
}

pub struct ChainLink {
    pub pem: String,
    /// Decimal, as Istio prints it.
    pub serial_number: String,
    /// Unix seconds.
    pub not_before: f64,
    pub not_after: f64,
}

pub struct Credentials {
    pub id: SpiffeId,
}

pub struct Identities {}

#[allow(unused_variables)]
impl Identities {
    /// `ask(identity, now)`: a certificate is wanted; `now`: a connection waits for it.
    pub fn new(ask: Ask) -> Self {
        todo!()
    }
    pub fn new_key(&self, identity: &SpiffeId) -> Result<String, String> {
        todo!()
    }
    /// (not before, not after), Unix seconds.
    pub fn install_chain(&self, identity: &SpiffeId, chain: &[String]) -> Result<(f64, f64), String> {
        todo!()
    }
    pub fn failed(&self, identity: &SpiffeId, why: &str) {
        todo!()
    }
    pub fn forget(&self, identity: &SpiffeId) {
        todo!()
    }
    pub async fn ready(&self, identity: &SpiffeId) -> Result<Arc<Credentials>, String> {
        todo!()
    }
    pub fn dump(&self) -> Vec<CertificateInfo> {
        todo!()
    }
}
