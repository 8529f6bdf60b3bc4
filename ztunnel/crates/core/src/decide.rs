//! Where a connection goes: out of a pod (`route`), into one (`inbound_target`). Owns the choice and its reason, which
//! is part of the answer; dials nothing.

use crate::addr::{DialAddr, OrigDst};
use crate::ids::SpiffeId;
use crate::tables::{Key, Service, Tables, Workload};
use std::net::SocketAddr;
use std::sync::Arc;

/// The way out for one connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// CONNECT `authority` inside a tunnel to `dial`, whose end must prove one of `want`.
    Tunnel {
        dial: DialAddr,
        authority: String,
        want: Vec<SpiffeId>,
        /// Who is at the other end of the tunnel: the destination or its waypoint.
        upstream: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
    },
    /// Plain TCP: the destination is not in the mesh.
    Passthrough {
        dial: DialAddr,
        because: NotMesh,
        upstream: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
    },
    Refused { why: Refusal },
}

/// Why a connection leaves in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMesh {
    #[error("the destination is no address of the mesh")]
    UnknownAddress,
    #[error("the destination workload has no tunnel")]
    WithoutTunnel,
    #[error("the service asks for its connections to be passed through")]
    PassthroughService,
}

/// Why a connection has no way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0} is a port of the tunnel itself: a loop")]
    OwnPort(SocketAddr),
    #[error("service {service} has no port {port}")]
    NoSuchPort { service: Key, port: u16 },
    #[error("service {0} has no healthy endpoint")]
    NoHealthyUpstream(Key),
    #[error("{0} is in network {1}: only destinations in the own network are reachable")]
    RemoteNetwork(Key, Box<str>),
    #[error("{0} has no IP address and is not resolved by name")]
    NoAddress(Key),
    #[error("waypoint {waypoint} of {destination} is not known")]
    UnknownWaypoint { waypoint: String, destination: Key },
    #[error("waypoint {waypoint} of {destination} does not speak HBONE")]
    WaypointWithoutTunnel { waypoint: String, destination: Key },
}

/// Chooses the way out. Total. `random` decides among equals; O(endpoints of the service).
pub fn route(tables: &Tables, from: &Workload, dst: OrigDst, random: u64) -> Route {
    let _ = (tables, from, dst, random);
    todo!()
}

/// Where an inbound CONNECT is delivered.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The pod's own IP, always, and the application's port.
    pub addr: SocketAddr,
    /// When the authority was a hostname.
    pub service: Option<Arc<Service>>,
}

/// The answer to a CONNECT that is not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub status: u16,
    pub why: Unfit,
}

/// Why an inbound CONNECT has no target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the authority is not HOST:PORT")]
    Authority,
}

/// Checks what a peer asks for. `connected`: the pod's address on which the tunnel arrived.
pub fn inbound_target(
    tables: &Tables,
    local: &Workload,
    connected: SocketAddr,
    authority: &str,
) -> Result<Target, Refused> {
    let _ = (tables, local, connected, authority);
    todo!()
}
