//! Waypoints: which one a connection goes through, where it is, who is one. Owns no fallback: a waypoint that cannot be
//! reached is never gone round.

use super::pick::{Want, pick, share};
use super::{Refusal, picked};
use crate::tables::{Destination, Gateway, Key, Protocol, Service, Tables, Workload};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// A waypoint's workload, and its service if it was found through one.
pub(super) struct Hop<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) service: Option<&'a Arc<Service>>,
    pub(super) dial: SocketAddr,
}

/// The way a waypoint is spoken of to people.
struct Shown<'a>(&'a Gateway);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.destination {
            Destination::Address { network, ip } if network.is_empty() => write!(out, "{ip}"),
            Destination::Address { network, ip } => write!(out, "{network}/{ip}"),
            Destination::Service(key) => out.write_str(key),
        }
    }
}

/// By weight among several; the weights are 32 bits, so they cannot overflow a sum.
pub(super) fn of_service(service: &Service, random: u64) -> Option<&Gateway> {
    let total = service
        .weighted_waypoints
        .iter()
        .map(|(_, weight)| u64::from(*weight))
        .sum();
    let mut left = share(random, total);
    for (gateway, weight) in &service.weighted_waypoints {
        if left < u64::from(*weight) {
            return Some(gateway);
        }
        left -= u64::from(*weight);
    }
    service.waypoint.as_ref()
}

/// Is it `local` that stands before the destination with this gateway?
pub(super) fn is_it(tables: &Tables, local: &Workload, gateway: &Gateway) -> bool {
    match &gateway.destination {
        Destination::Service(key) => local.ports_for(key).is_some(),
        Destination::Address { network, ip } => {
            let own = *local.network == **network && local.addresses.contains(ip);
            let service = || tables.service_by_vip(network, *ip, &local.namespace);
            own || service().is_some_and(|service| local.ports_for(&service.key).is_some())
        }
    }
}

/// Is `local` one of the service's waypoints?
pub(super) fn serves(tables: &Tables, local: &Workload, service: &Service) -> bool {
    let mut all = service
        .weighted_waypoints
        .iter()
        .map(|(gateway, _)| gateway)
        .chain(&service.waypoint);
    all.any(|gateway| is_it(tables, local, gateway))
}

/// Finds the waypoint's listener. `destination`: on whose behalf, for the sentence.
pub(super) fn resolve<'a>(
    tables: &'a Tables,
    from: &Workload,
    gateway: &Gateway,
    destination: &Key,
    v4: bool,
    random: u64,
) -> Result<Hop<'a>, Refusal> {
    let unknown = || Refusal::UnknownWaypoint {
        waypoint: Shown(gateway).to_string(),
        destination: destination.clone(),
    };
    let through = |service: &'a Arc<Service>| {
        let want = Want {
            from,
            service,
            port: gateway.hbone_port,
            v4,
            waypoint: true,
        };
        let found =
            pick(tables, want, random).map_err(|nobody| picked(service, want.port, nobody))?;
        let dial = SocketAddr::new(found.ip, found.port);
        Ok(Hop {
            workload: &found.endpoint.workload,
            service: Some(service),
            dial,
        })
    };
    let hop = match &gateway.destination {
        Destination::Service(key) => through(tables.service(key).ok_or_else(unknown)?)?,
        Destination::Address { network, .. } if **network != *tables.network() => {
            return Err(Refusal::RemoteNetwork(destination.clone(), network.clone()));
        }
        Destination::Address { network, ip } => match tables.workload_by_ip(network, *ip) {
            Some(workload) => Hop {
                workload,
                service: None,
                dial: SocketAddr::new(*ip, gateway.hbone_port),
            },
            None => through(
                tables
                    .service_by_vip(network, *ip, &from.namespace)
                    .ok_or_else(unknown)?,
            )?,
        },
    };
    match hop.workload.protocol {
        Protocol::Hbone => Ok(hop),
        Protocol::Tcp => Err(Refusal::WaypointWithoutTunnel {
            waypoint: Shown(gateway).to_string(),
            destination: destination.clone(),
        }),
    }
}
