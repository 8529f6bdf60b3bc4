//! May this peer reach this workload? Istio's layer-4 semantics, except that what is unknown is denied. Owns the
//! evaluation; not the policies (`tables`) and not what is done to a connection that is denied.

use crate::ids::SpiffeId;
use crate::tables::{Key, Tables, Workload};
use std::net::{IpAddr, SocketAddr};

/// Who asks for what. Addresses are canonical.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub source: IpAddr,
    /// None: plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// The pod's IP and the application's port.
    pub dst: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `by`: the ALLOW policy that matched; None: there is no ALLOW policy.
    Allowed { by: Option<Key> },
    /// `by`: the DENY policy that matched, or the policy that is not known.
    Denied { by: Option<Key>, why: String },
}

/// The verdict in force.
pub fn authorise(tables: &Tables, to: &Workload, peer: &Peer<'_>) -> Verdict {
    let _ = (tables, to, peer);
    todo!()
}

/// The verdict if the dry-run policies were in force too; None: there is none here.
pub fn rehearse(tables: &Tables, to: &Workload, peer: &Peer<'_>) -> Option<Verdict> {
    let _ = (tables, to, peer);
    todo!()
}
