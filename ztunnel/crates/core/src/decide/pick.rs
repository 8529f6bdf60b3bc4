//! Load balancing: one endpoint of a service for one connection. Owns the choice; not what is done with it.

use crate::tables::{Balancing, Endpoint, Locus, Mode, Port, Service, Tables, Workload};
use std::net::{IpAddr, SocketAddr};

/// The endpoint, and where on it.
pub(super) struct Picked<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
}

/// What is asked of the service.
#[derive(Clone, Copy)]
pub(super) struct Want<'a> {
    pub(super) from: &'a Workload,
    pub(super) service: &'a Service,
    pub(super) port: u16,
    /// Preferred, not demanded.
    pub(super) v4: bool,
    /// A waypoint may listen on the asked port although its service does not list it.
    pub(super) waypoint: bool,
}

/// Why there is none; of several reasons the greatest is told, because it says most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Nobody {
    NoSuchPort,
    Unhealthy,
    OutOfScope,
    NoAddress,
    Remote(Box<str>),
}

/// Weighted by capacity among the endpoints of the best rank. Twice O(endpoints), no allocation.
pub(super) fn pick<'a>(
    tables: &'a Tables,
    want: Want<'_>,
    random: u64,
) -> Result<Picked<'a>, Nobody> {
    if !want.waypoint && find(&want.service.ports, want.port).is_none() {
        return Err(Nobody::NoSuchPort);
    }
    let endpoints = tables.endpoints(&want.service.key);
    let (mut best, mut total, mut reason) = (0, 0, None);
    for endpoint in endpoints.clone() {
        match rank(tables, want, endpoint) {
            Err(why) => reason = reason.max(Some(why)),
            Ok(rank) if rank < best => {}
            Ok(rank) => {
                total = u64::from(endpoint.workload.capacity) + if rank > best { 0 } else { total };
                best = rank;
            }
        }
    }
    let mut left = share(random, total);
    for endpoint in endpoints {
        if rank(tables, want, endpoint) != Ok(best) {
            continue;
        }
        let weight = u64::from(endpoint.workload.capacity);
        if left < weight {
            let ip = address(want, &endpoint.workload).ok_or(Nobody::NoAddress)?;
            let port = target(want, endpoint).ok_or(Nobody::NoSuchPort)?;
            return Ok(Picked { endpoint, ip, port });
        }
        left -= weight;
    }
    Err(reason.unwrap_or(Nobody::Unhealthy))
}

/// `random` of 2^64 as a number below `total` (0 for 0).
pub(super) fn share(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

/// How well it fits, or why it cannot be chosen.
fn rank(tables: &Tables, want: Want<'_>, endpoint: &Endpoint) -> Result<usize, Nobody> {
    let workload = &*endpoint.workload;
    let balancing = &want.service.balancing;
    if workload.capacity == 0 || !(workload.healthy || balancing.unhealthy_too) {
        return Err(Nobody::Unhealthy);
    }
    if *workload.network != *tables.network() {
        return Err(Nobody::Remote(workload.network.clone()));
    }
    if address(want, workload).is_none() {
        return Err(Nobody::NoAddress);
    }
    if target(want, endpoint).is_none() {
        return Err(Nobody::NoSuchPort); // a named one, which this endpoint does not have
    }
    preference(balancing, want.from, workload).ok_or(Nobody::OutOfScope)
}

fn preference(balancing: &Balancing, from: &Workload, to: &Workload) -> Option<usize> {
    let shared = balancing
        .scopes
        .iter()
        .take_while(|locus| has_in_common(**locus, from, to))
        .count();
    match balancing.mode {
        Mode::Strict => (shared == balancing.scopes.len()).then_some(0),
        Mode::Failover => Some(shared),
        Mode::Standard | Mode::Passthrough => Some(0),
    }
}

fn has_in_common(locus: Locus, a: &Workload, b: &Workload) -> bool {
    match locus {
        Locus::Region => a.locality.region == b.locality.region,
        Locus::Zone => a.locality.zone == b.locality.zone,
        Locus::Subzone => a.locality.subzone == b.locality.subzone,
        Locus::Node => a.node == b.node,
        Locus::Cluster => a.cluster_id == b.cluster_id,
        Locus::Network => a.network == b.network,
    }
}

fn address(want: Want<'_>, workload: &Workload) -> Option<IpAddr> {
    let allowed = workload
        .addresses
        .iter()
        .filter(|ip| want.service.ip_families.allows(**ip) && has_family_of(want.from, **ip));
    allowed.min_by_key(|ip| ip.is_ipv4() != want.v4).copied()
}

/// A pod of one family has no way to an address of the other. Nothing known of it: no restriction.
fn has_family_of(from: &Workload, ip: IpAddr) -> bool {
    let own = &from.addresses;
    own.is_empty() || own.iter().any(|own| own.is_ipv4() == ip.is_ipv4())
}

fn target(want: Want<'_>, endpoint: &Endpoint) -> Option<u16> {
    let application_tunnel = want.waypoint && endpoint.workload.application_tunnel.is_some();
    target_port(&endpoint.ports, &want.service.ports, want.port)
        .or(application_tunnel.then_some(want.port))
}

/// The endpoint's mapping goes before the service's; None: neither knows a number for it.
pub(super) fn target_port(own: &[Port], of_service: &[Port], port: u16) -> Option<u16> {
    let number = |ports| find(ports, port).and_then(|port| port.target);
    number(own).or_else(|| number(of_service))
}

fn find(ports: &[Port], service_port: u16) -> Option<&Port> {
    ports.iter().find(|port| port.service == service_port)
}

/// Every endpoint, and why it is not among those that are chosen from. For a person who asks.
pub fn candidates<'a>(
    tables: &'a Tables,
    from: &Workload,
    service: &Service,
    dst: SocketAddr,
) -> Vec<(&'a Endpoint, Option<String>)> {
    let want = Want {
        from,
        service,
        port: dst.port(),
        v4: dst.is_ipv4(),
        waypoint: false,
    };
    let ranked: Vec<_> = tables
        .endpoints(&service.key)
        .map(|endpoint| (endpoint, rank(tables, want, endpoint)))
        .collect();
    let best = ranked
        .iter()
        .filter_map(|(_, rank)| rank.as_ref().ok())
        .max();
    let why = |rank: &Result<usize, Nobody>| match rank {
        Ok(_) if rank.as_ref().ok() == best => None,
        Ok(_) => Some("others are nearer".into()),
        Err(nobody) => Some(nobody.words()),
    };
    ranked
        .iter()
        .map(|(endpoint, rank)| (*endpoint, why(rank)))
        .collect()
}

impl Nobody {
    fn words(&self) -> String {
        match self {
            Self::NoSuchPort => "it has no number for this port".into(),
            Self::Unhealthy => "it is not healthy, or its capacity is 0".into(),
            Self::OutOfScope => "it is not near enough for STRICT load balancing".into(),
            Self::NoAddress => "it has no address of a suitable family".into(),
            Self::Remote(network) => format!("it is in network {network}"),
        }
    }
}
