//! Waypoints: which one a connection goes through, where it is, who is one. Owns no fallback: a waypoint that cannot be
//! reached is never gone round.

use super::pick::{Place, Whom, share};
use super::{Asked, Otherwise, Refusal};
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

/// Finds the listener of a waypoint, or of another network's gateway. `destination`: on whose behalf, for the sentence.
pub(super) fn resolve<'a>(
    asked: &Asked<'a>,
    gateway: &Gateway,
    destination: &Key,
    whom: Whom,
) -> Result<Hop<'a>, Otherwise> {
    let hop = find(asked, gateway, destination, whom)?;
    let waypoint = || Shown(gateway).to_string();
    match hop {
        Some(hop) if hop.workload.protocol == Protocol::Hbone => Ok(hop),
        Some(_) => Err(Otherwise::Refused(Refusal::WaypointWithoutTunnel {
            waypoint: waypoint(),
            destination: destination.clone(),
        })),
        None => Err(Otherwise::Refused(Refusal::UnknownWaypoint {
            waypoint: waypoint(),
            destination: destination.clone(),
        })),
    }
}

fn find<'a>(
    asked: &Asked<'a>,
    gateway: &Gateway,
    destination: &Key,
    whom: Whom,
) -> Result<Option<Hop<'a>>, Otherwise> {
    let tables = asked.tables;
    let service = match &gateway.destination {
        Destination::Service(key) => tables.service(key),
        Destination::Address { network, ip } => {
            // A gateway's address is one of its own network, but we dial it: it must be reachable from here.
            if whom == Whom::Waypoint && **network != *tables.network() {
                return Err(Refusal::RemoteNetwork(destination.clone(), network.clone()).into());
            }
            if let Some(workload) = tables.workload_by_ip(network, *ip) {
                let dial = SocketAddr::new(*ip, gateway.hbone_port);
                return Ok(Some(Hop {
                    workload,
                    service: None,
                    dial,
                }));
            }
            tables.service_by_vip(network, *ip, &asked.from.namespace)
        }
    };
    service
        .map(|service| through(asked, service, gateway.hbone_port, whom))
        .transpose()
}

fn through<'a>(
    asked: &Asked<'a>,
    service: &'a Arc<Service>,
    port: u16,
    whom: Whom,
) -> Result<Hop<'a>, Otherwise> {
    let found = asked.pick(service, port, whom)?;
    let ip = match found.at {
        Place::Ip(ip) => ip,
        Place::Unresolved(hostname) => return Err(Otherwise::Lookup(hostname)),
        Place::Beyond => {
            let network = found.endpoint.workload.network.clone();
            return Err(Refusal::RemoteNetwork(service.key.clone(), network).into());
        }
    };
    Ok(Hop {
        workload: &found.endpoint.workload,
        service: Some(service),
        dial: SocketAddr::new(ip, found.port),
    })
}
