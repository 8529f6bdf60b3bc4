//! Where a connection goes: out of a pod (`route`), into one (`inbound_target`). Owns the choice and its reason, which
//! is part of the answer; dials nothing.

mod inbound;
mod pick;
mod waypoint;

pub use inbound::{Refused, Target, Unfit, inbound_target};
pub use pick::candidates;

use crate::addr::{self, DialAddr, HBONE_PORT, OrigDst};
use crate::ids::SpiffeId;
use crate::tables::{Gateway, Key, Mode, Protocol, Service, Tables, Workload};
use pick::{Nobody, Want, pick};
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
    Refused {
        why: Refusal,
    },
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
    #[error("service {0} has no healthy endpoint near enough for its STRICT load balancing")]
    NoneInScope(Key),
    #[error("{0} is in network {1}: only destinations in the own network are reachable")]
    RemoteNetwork(Key, Box<str>),
    #[error(
        "the endpoints of {0} have no IP address of a suitable family, and none is looked up by name"
    )]
    NoAddress(Key),
    #[error("waypoint {waypoint} of {destination} is not known")]
    UnknownWaypoint { waypoint: String, destination: Key },
    #[error("waypoint {waypoint} of {destination} does not speak HBONE")]
    WaypointWithoutTunnel { waypoint: String, destination: Key },
}

/// Chooses the way out: the workload of the address, else the service, else plaintext. Total. `random` decides among
/// equals; O(endpoints of the service).
pub fn route(tables: &Tables, from: &Workload, dst: OrigDst, random: u64) -> Route {
    let dst = addr::canonical(dst.0);
    let here = addr::is_own_host(dst.ip()) || from.addresses.contains(&dst.ip());
    if here && addr::is_illegal(dst.port()) {
        return Route::Refused {
            why: Refusal::OwnPort(dst),
        };
    }
    let asked = Asked {
        tables,
        from,
        dst,
        random,
    };
    let found = if let Some(workload) = tables.workload_by_ip(tables.network(), dst.ip()) {
        asked.to_workload(workload)
    } else if let Some(service) = tables.service_by_vip(tables.network(), dst.ip(), &from.namespace)
    {
        asked.to_service(service)
    } else {
        Ok(plain(dst, NotMesh::UnknownAddress, None, None))
    };
    found.unwrap_or_else(|why| Route::Refused { why })
}

/// One connection that looks for its way.
struct Asked<'a> {
    tables: &'a Tables,
    from: &'a Workload,
    dst: SocketAddr,
    random: u64,
}

impl Asked<'_> {
    fn to_workload(&self, workload: &Arc<Workload>) -> Result<Route, Refusal> {
        match &workload.waypoint {
            Some(gateway) if !waypoint::is_it(self.tables, self.from, gateway) => {
                self.through(gateway, &workload.uid, None)
            }
            _ => Ok(direct(workload, self.dst, None)),
        }
    }

    /// A workload's own waypoint is not asked for what is addressed to a service (Istio's rule).
    fn to_service(&self, service: &Arc<Service>) -> Result<Route, Refusal> {
        let gateway = waypoint::of_service(service, scramble(self.random));
        if let Some(gateway) =
            gateway.filter(|_| !waypoint::serves(self.tables, self.from, service))
        {
            return self.through(gateway, &service.key, Some(service));
        }
        if service.balancing.mode == Mode::Passthrough {
            return Ok(plain(
                self.dst,
                NotMesh::PassthroughService,
                None,
                Some(service),
            ));
        }
        let want = Want {
            from: self.from,
            service,
            port: self.dst.port(),
            v4: self.dst.is_ipv4(),
            waypoint: false,
        };
        let found = pick(self.tables, want, self.random)
            .map_err(|nobody| picked(service, want.port, nobody))?;
        Ok(direct(
            &found.endpoint.workload,
            SocketAddr::new(found.ip, found.port),
            Some(service),
        ))
    }

    /// The waypoint is told the original destination and decides itself.
    fn through(
        &self,
        gateway: &Gateway,
        destination: &Key,
        service: Option<&Arc<Service>>,
    ) -> Result<Route, Refusal> {
        let hop = waypoint::resolve(self, gateway, destination)?;
        Ok(Route::Tunnel {
            dial: DialAddr(hop.dial),
            authority: self.dst.to_string(),
            want: identities(hop.workload, hop.service),
            upstream: Some(hop.workload.clone()),
            service: service.cloned(),
        })
    }
}

fn direct(workload: &Arc<Workload>, to: SocketAddr, service: Option<&Arc<Service>>) -> Route {
    if workload.protocol == Protocol::Tcp {
        return plain(to, NotMesh::WithoutTunnel, Some(workload), service);
    }
    Route::Tunnel {
        dial: DialAddr(SocketAddr::new(to.ip(), HBONE_PORT)),
        authority: to.to_string(),
        want: identities(workload, service),
        upstream: Some(workload.clone()),
        service: service.cloned(),
    }
}

fn plain(
    to: SocketAddr,
    because: NotMesh,
    upstream: Option<&Arc<Workload>>,
    service: Option<&Arc<Service>>,
) -> Route {
    Route::Passthrough {
        dial: DialAddr(to),
        because,
        upstream: upstream.cloned(),
        service: service.cloned(),
    }
}

/// Its own first, then what the service it was found by accepts besides.
fn identities(workload: &Workload, service: Option<&Arc<Service>>) -> Vec<SpiffeId> {
    let besides = service.map_or(&[][..], |service| &service.subject_alt_names);
    let mut all = Vec::with_capacity(1 + besides.len());
    all.push(workload.identity.clone());
    all.extend(
        besides
            .iter()
            .filter(|id| **id != workload.identity)
            .cloned(),
    );
    all
}

fn picked(service: &Service, port: u16, nobody: Nobody) -> Refusal {
    let key = service.key.clone();
    match nobody {
        Nobody::NoSuchPort => Refusal::NoSuchPort { service: key, port },
        Nobody::Unhealthy => Refusal::NoHealthyUpstream(key),
        Nobody::OutOfScope => Refusal::NoneInScope(key),
        Nobody::NoAddress => Refusal::NoAddress(key),
        Nobody::Remote(network) => Refusal::RemoteNetwork(key, network),
    }
}

/// A second random number out of the first (splitmix64), so that waypoint and endpoint are chosen independently.
fn scramble(random: u64) -> u64 {
    let mixed = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
