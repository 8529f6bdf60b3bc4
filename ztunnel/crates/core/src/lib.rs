//! The tunnel's decisions: who somebody is, what the mesh contains, where a connection goes, whether it may.
//!
//! Pure: no clock, environment, socket, thread or randomness; what a decision needs comes as an argument. Owns the
//! tables, routing, authorisation and the HBONE codec; not the bytes of connections (`ztunnel-net`).

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod addr;
pub mod authz;
pub mod decide;
pub mod dns;
pub mod h2;
pub mod hbone;
pub mod ids;
pub mod proxy;
pub mod tables;

#[cfg(test)]
mod fixtures;

/// The messages that cross door 4, as `ztunnel-gen` wrote them. Nothing outside `tables::decode*` reads them.
#[allow(clippy::all, clippy::use_self, unreachable_pub, dead_code)]
mod wire {
    pub(crate) mod workload {
        include!("gen/istio.workload.rs");
    }
    pub(crate) mod security {
        include!("gen/istio.security.rs");
    }
}
