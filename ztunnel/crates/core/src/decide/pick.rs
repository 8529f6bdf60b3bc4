//! Load balancing: one endpoint of a service for one connection. Owns the choice; not what is done with it.
//!
//! Costs O(log endpoints): a service's endpoints are arranged in advance (`tables::Lane`).

use super::{Circumstances, scramble};
use crate::tables::{
    Balancing, Endpoint, Key, Lane, Locus, Mode, Port, Service, Shape, Spread, Stretch, Tables,
    Word, Workload,
};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;

/// With a client that sticks to its endpoint, so many places of the ring are tried for the nearest endpoint: the busiest
/// gets about 1.1 times its share (multi-probe consistent hashing; Appleton, O'Reilly 2015).
const PROBES: u64 = 21;

/// The endpoint, and where on it.
pub(super) struct Picked<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) at: Place,
    pub(super) port: u16,
}

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Place {
    Ip(IpAddr),
    /// Through the gateway of its network.
    Beyond,
    /// Nobody has looked this name up yet.
    Unresolved(Box<str>),
}

/// What is asked of the service.
#[derive(Clone, Copy)]
pub(super) struct Want<'a> {
    pub(super) from: &'a Workload,
    pub(super) service: &'a Service,
    pub(super) port: u16,
    /// Preferred, not demanded.
    pub(super) v4: bool,
    pub(super) whom: Whom,
}

/// Who is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    Endpoint,
    /// May listen on the asked port although its service does not list it.
    Waypoint,
    /// Dialled directly, in whatever network it stands: that is what it is for.
    Gateway,
}

/// Why there is none; of several reasons the greatest is told, because it says most.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Nobody {
    NoSuchPort,
    Unhealthy,
    OutOfScope,
    NoAddress,
    Remote(Word),
    Unresolvable(Box<str>),
    AllTried,
}

/// Among the nearest endpoints that suit, as the service's balancing wants it. Who was tried in vain is left out.
pub(super) fn pick<'a>(
    tables: &'a Tables,
    want: Want<'a>,
    around: &Circumstances<'_>,
) -> Result<Picked<'a>, Nobody> {
    if want.whom == Whom::Endpoint && find(&want.service.ports, want.port).is_none() {
        return Err(Nobody::NoSuchPort);
    }
    let lanes = tables.lanes(&want.service.key);
    let mut out: Vec<Key> = around.tried.to_vec();
    let mut reason = None;
    // Each round leaves one more name out that leads nowhere.
    for _ in 0..=around.tried.len() + 2 {
        let found = nearest(tables, want, lanes, &out, around);
        let endpoint = found.map_err(|why| reason.clone().unwrap_or(why))?;
        if let Some(at) = reach(tables, want, &endpoint.workload, around) {
            let far = at == Place::Beyond; // the far side maps the port
            let mapped = target(want, endpoint).or(far.then_some(want.port));
            let port = mapped.ok_or(Nobody::NoSuchPort)?;
            return Ok(Picked { endpoint, at, port });
        }
        reason = Some(Nobody::Unresolvable(endpoint.workload.hostname.clone()));
        out.push(endpoint.workload.uid.clone());
    }
    Err(reason.unwrap_or(Nobody::Unhealthy))
}

fn nearest<'a>(
    tables: &'a Tables,
    want: Want<'a>,
    lanes: &'a [Lane],
    out: &[Key],
    around: &Circumstances<'_>,
) -> Result<&'a Endpoint, Nobody> {
    let mut reason = None;
    let mut suiting = Vec::with_capacity(lanes.len());
    for lane in lanes {
        match suits(tables, want, &lane.shape) {
            Ok(()) => suiting.push(lane),
            Err(why) => reason = reason.max(Some(why)),
        }
    }
    let mut tried = false;
    for rung in rungs(&want.service.balancing) {
        let here = |lane: &&&Lane| !rung.own_network || *lane.shape.network == *tables.network();
        let stretch = |lane: &&'a Lane| {
            let stretch = tables.stretch(&want.service.key, lane, rung.depth, want.from);
            stretch.filter(|stretch| stretch.weight > 0)
        };
        let stretches: Vec<Stretch<'a>> = suiting.iter().filter(here).filter_map(stretch).collect();
        tried |= !stretches.is_empty();
        if let Some(endpoint) = choose(&stretches, want, out, around) {
            return Ok(endpoint);
        }
    }
    Err(match (tried, suiting.is_empty()) {
        (true, _) => Nobody::AllTried,
        (false, false) => reason
            .max(Some(Nobody::OutOfScope))
            .unwrap_or(Nobody::OutOfScope),
        (false, true) => reason.unwrap_or(Nobody::Unhealthy),
    })
}

/// What client and endpoint have to share.
pub(super) struct Rung {
    pub(super) own_network: bool,
    /// How many leading places.
    pub(super) depth: usize,
}

/// From the best to the last. When the network is the first scope, those in others still compete by the rest.
pub(super) fn rungs(balancing: &Balancing) -> impl Iterator<Item = Rung> {
    let scopes = &*balancing.scopes;
    let network = scopes.iter().position(|locus| *locus == Locus::Network);
    let shared = move |length: usize| Rung {
        own_network: network.is_some_and(|at| at < length),
        depth: scopes[..length]
            .iter()
            .filter(|locus| **locus != Locus::Network)
            .count(),
    };
    let lowest = match balancing.mode {
        Mode::Standard | Mode::Passthrough => None,
        Mode::Strict => Some(scopes.len()),
        Mode::Failover => Some(usize::from(network == Some(0))),
    };
    let own = lowest.map(|lowest| (lowest..=scopes.len()).rev().map(shared));
    let rest = match (balancing.mode, network) {
        (Mode::Standard | Mode::Passthrough, _) => Some(0),
        (Mode::Failover, Some(0)) => Some(shared(scopes.len()).depth),
        _ => None,
    };
    let foreign = rest.map(|deepest| {
        (0..=deepest).rev().map(|depth| Rung {
            own_network: false,
            depth,
        })
    });
    own.into_iter()
        .flatten()
        .chain(foreign.into_iter().flatten())
}

/// One of all these, which are equally near. None: there is none, or all of them were tried.
fn choose<'a>(
    stretches: &[Stretch<'a>],
    want: Want<'_>,
    out: &[Key],
    around: &Circumstances<'_>,
) -> Option<&'a Endpoint> {
    let total: u64 = stretches.iter().map(|stretch| stretch.weight).sum();
    let is_out = |endpoint: &&Endpoint| out.contains(&endpoint.workload.uid);
    let draw = |random| at(stretches, share(random, total));
    let first = match want.service.balancing.spread {
        Spread::ClientAddress => on_ring(stretches, want.service, around, out.len() as u64),
        Spread::Random => draw(around.random),
        Spread::LeastRequest => {
            let two = (draw(around.random), draw(scramble(!around.random)));
            less_loaded(two.0?, two.1?, around)
        }
    };
    // As many others as were tried, and one, hold at least one that was not, if there is any.
    let others = stretches.iter().flat_map(Stretch::iter).take(out.len() + 1);
    let again = |n: usize| draw(scramble(around.random.wrapping_add(n as u64)));
    let redrawn = (1..=out.len()).filter_map(again);
    first
        .into_iter()
        .chain(redrawn)
        .chain(others)
        .find(|endpoint| !is_out(endpoint))
}

fn at<'a>(stretches: &[Stretch<'a>], mut weight: u64) -> Option<&'a Endpoint> {
    for stretch in stretches {
        if weight < stretch.weight {
            return stretch.at(weight);
        }
        weight -= stretch.weight;
    }
    None
}

fn less_loaded<'a>(
    a: &'a Endpoint,
    b: &'a Endpoint,
    around: &Circumstances<'_>,
) -> Option<&'a Endpoint> {
    let load = |endpoint: &Endpoint| (around.load)(&endpoint.workload) as u64;
    let scaled = |mine, other: &Endpoint| mine * u64::from(other.workload.capacity);
    let b_is_freer = scaled(load(b), a) < scaled(load(a), b);
    Some(if b_is_freer { b } else { a })
}

/// `turn`: the next one on the ring, when the client's own endpoint cannot be reached.
fn on_ring<'a>(
    stretches: &[Stretch<'a>],
    service: &Service,
    around: &Circumstances<'_>,
    turn: u64,
) -> Option<&'a Endpoint> {
    let hash = BuildHasherDefault::<DefaultHasher>::default();
    let seed = hash
        .hash_one((&service.key, around.client))
        .wrapping_add(turn);
    let probe = |n: u64| {
        let place = scramble(seed ^ scramble(n));
        stretches
            .iter()
            .filter_map(move |stretch| stretch.next_on_ring(place))
    };
    let nearest = (0..PROBES)
        .flat_map(probe)
        .min_by_key(|(distance, _)| *distance)?;
    Some(nearest.1)
}

/// `random` of 2^64 as a number below `total` (0 for 0).
pub(super) fn share(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

/// Can endpoints of this shape take the connection at all?
pub(super) fn suits(tables: &Tables, want: Want<'_>, shape: &Shape) -> Result<(), Nobody> {
    if *shape.network != *tables.network() && want.whom != Whom::Gateway {
        let through = shape.gateway && want.whom == Whom::Endpoint;
        return through
            .then_some(())
            .ok_or_else(|| Nobody::Remote(shape.network.clone()));
    }
    let families = want.service.ip_families;
    let (v4, v6) = families_of(want.from);
    let address =
        (shape.v4 && v4 && families.allows_v4()) || (shape.v6 && v6 && families.allows_v6());
    if !(address || shape.named) {
        return Err(Nobody::NoAddress);
    }
    let own = shape.ports.binary_search(&want.port).is_ok();
    let mapped = || number(&want.service.ports, want.port).is_some();
    let relaxed = want.whom == Whom::Waypoint && shape.application_tunnel;
    (own || mapped() || relaxed)
        .then_some(())
        .ok_or(Nobody::NoSuchPort) // a named one, which these endpoints do not have
}

/// None: its name leads nowhere.
fn reach(
    tables: &Tables,
    want: Want<'_>,
    workload: &Workload,
    around: &Circumstances<'_>,
) -> Option<Place> {
    if *workload.network != *tables.network() && want.whom != Whom::Gateway {
        return Some(Place::Beyond);
    }
    if let Some(ip) = address(want, &workload.addresses) {
        return Some(Place::Ip(ip));
    }
    let Some(found) = (around.names)(&workload.hostname) else {
        return Some(Place::Unresolved(workload.hostname.clone()));
    };
    let start = share(scramble(around.random), found.len() as u64) as usize;
    let turned: Vec<IpAddr> = found[start..]
        .iter()
        .chain(&found[..start])
        .copied()
        .collect();
    address(want, &turned).map(Place::Ip)
}

/// Of the client's family, if there is one.
fn address(want: Want<'_>, all: &[IpAddr]) -> Option<IpAddr> {
    let (v4, v6) = families_of(want.from);
    let has_way = |ip: &&IpAddr| if ip.is_ipv4() { v4 } else { v6 };
    let allowed = all
        .iter()
        .filter(|ip| want.service.ip_families.allows(**ip));
    allowed
        .filter(has_way)
        .min_by_key(|ip| ip.is_ipv4() != want.v4)
        .copied()
}

/// A pod of one family has no way to an address of the other. Nothing known of it: no restriction.
fn families_of(from: &Workload) -> (bool, bool) {
    let own = &from.addresses;
    let any = |v4| own.is_empty() || own.iter().any(|ip| ip.is_ipv4() == v4);
    (any(true), any(false))
}

fn target(want: Want<'_>, endpoint: &Endpoint) -> Option<u16> {
    let relaxed = want.whom == Whom::Waypoint && endpoint.workload.application_tunnel.is_some();
    target_port(&endpoint.ports, &want.service.ports, want.port).or(relaxed.then_some(want.port))
}

/// The endpoint's mapping goes before the service's; None: neither knows a number for it.
pub(crate) fn target_port(own: &[Port], of_service: &[Port], port: u16) -> Option<u16> {
    number(own, port).or_else(|| number(of_service, port))
}

fn number(ports: &[Port], port: u16) -> Option<u16> {
    find(ports, port).and_then(|port| port.target)
}

fn find(ports: &[Port], service_port: u16) -> Option<&Port> {
    ports.iter().find(|port| port.service == service_port)
}
