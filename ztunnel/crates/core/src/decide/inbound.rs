//! What a peer may ask for with CONNECT: this pod's own address, or a service that it is an endpoint of. Owns the
//! grammar of `:authority`; permission is `authz`'s. Nothing is ever looked up in DNS.

use super::pick::target_port;
use super::waypoint;
use crate::addr;
use crate::tables::{ApplicationTunnel, Key, Service, Tables, Vip, Workload};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Where an inbound CONNECT is delivered.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The pod's own IP, always, and the application's port.
    pub addr: SocketAddr,
    /// When the authority was a hostname.
    pub service: Option<Arc<Service>>,
    /// The application wants a PROXY protocol header, on its loopback address; this is what the client addressed.
    pub proxied: Option<SocketAddr>,
}

/// The answer to a CONNECT that is not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub status: u16,
    pub why: Unfit,
}

/// Why an inbound CONNECT has no target. No text of the peer's is in it but a well-formed hostname.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the authority is not HOST:PORT")]
    Authority,
    #[error("the authority names {asked}, but the connection came to {own}")]
    OtherAddress { asked: IpAddr, own: IpAddr },
    #[error("the authority names {0}, which is every host's own address")]
    OwnHost(IpAddr),
    #[error("no service has the hostname {0}")]
    NoHostname(String),
    #[error("this workload is no endpoint of service {0}")]
    NoEndpoint(Key),
    #[error("service {service} has no port {port} here")]
    NoPort { service: Key, port: u16 },
    #[error("{0} is a port of the tunnel itself: a loop")]
    SelfCall(u16),
    #[error(
        "the application wants a PROXY protocol header, and service {0} has no virtual address to be told in it"
    )]
    NoVirtualAddress(Key),
}

impl From<Unfit> for Refused {
    /// Istio's codes: what the request says is wrong, 400; what cannot be served here, 503.
    fn from(why: Unfit) -> Self {
        let status = match why {
            Unfit::Authority | Unfit::OtherAddress { .. } | Unfit::OwnHost(_) => 400,
            _ => 503,
        };
        Self { status, why }
    }
}

/// Checks what a peer asks for. `connected`: the pod's address on which the tunnel arrived; the target is always there.
pub fn inbound_target(
    tables: &Tables,
    local: &Workload,
    connected: SocketAddr,
    authority: &str,
) -> Result<Target, Refused> {
    let own = connected.ip().to_canonical();
    let (host, asked) = parse(authority).ok_or(Unfit::Authority)?;
    let wants_header = local.application_tunnel.is_some_and(|tunnel| tunnel.proxy);
    let mut proxied = None;
    let (port, service) = match host {
        Host::Ip(ip) => {
            proxied = Some(SocketAddr::new(ip, asked));
            (address_port(tables, local, own, ip, asked)?, None)
        }
        Host::Name(name) => {
            let found = tables.service_by_host(&name, &local.namespace);
            let service = found.ok_or_else(|| Unfit::NoHostname(name.into_string()))?;
            if wants_header {
                proxied = Some(SocketAddr::new(virtual_ip(tables, service)?, asked));
            }
            (
                service_port(tables, local, service, asked)?,
                Some(service.clone()),
            )
        }
    };
    if addr::is_illegal(port) {
        return Err(Unfit::SelfCall(port).into());
    }
    Ok(Target {
        addr: SocketAddr::new(own, port),
        service,
        proxied: proxied.filter(|_| wants_header),
    })
}

/// IPv4 goes first, as with Istio.
fn virtual_ip(tables: &Tables, service: &Service) -> Result<IpAddr, Unfit> {
    let here = |vip: &&Vip| *vip.network == *tables.network() && vip.range.is_host();
    let all = service.vips.iter().filter(here).map(|vip| vip.range.ip);
    all.min_by_key(|ip| !ip.is_ipv4())
        .ok_or_else(|| Unfit::NoVirtualAddress(service.key.clone()))
}

fn address_port(
    tables: &Tables,
    local: &Workload,
    own: IpAddr,
    asked: IpAddr,
    port: u16,
) -> Result<u16, Unfit> {
    if addr::is_own_host(asked) {
        return Err(Unfit::OwnHost(asked));
    }
    if asked != own && !stands_before(tables, local, asked) {
        return Err(Unfit::OtherAddress { asked, own });
    }
    Ok(tunnel_port(local).unwrap_or(port))
}

/// Does the workload or service of that address name this workload as its waypoint?
fn stands_before(tables: &Tables, local: &Workload, asked: IpAddr) -> bool {
    if let Some(workload) = tables.workload_by_ip(tables.network(), asked) {
        return workload
            .waypoint
            .as_ref()
            .is_some_and(|gateway| waypoint::is_it(tables, local, gateway));
    }
    let service = tables.service_by_vip(tables.network(), asked, &local.namespace);
    service.is_some_and(|service| waypoint::serves(tables, local, service))
}

fn service_port(
    tables: &Tables,
    local: &Workload,
    service: &Arc<Service>,
    port: u16,
) -> Result<u16, Unfit> {
    let own = local.ports_for(&service.key);
    if own.is_none() && !waypoint::serves(tables, local, service) {
        return Err(Unfit::NoEndpoint(service.key.clone()));
    }
    let mapped = || target_port(own.map_or(&[], |ports| ports), &service.ports, port);
    let found = tunnel_port(local).or_else(mapped);
    found.ok_or_else(|| Unfit::NoPort {
        service: service.key.clone(),
        port,
    })
}

fn tunnel_port(local: &Workload) -> Option<u16> {
    local
        .application_tunnel
        .and_then(|ApplicationTunnel { port, .. }| port)
}

enum Host {
    /// Canonical.
    Ip(IpAddr),
    /// Lower case.
    Name(Box<str>),
}

/// `IP:port`, `[IPv6]:port` or `hostname:port` (RFC 3986 §3.2 without userinfo; no zone; the port is needed, not 0).
/// None: anything else.
fn parse(authority: &str) -> Option<(Host, u16)> {
    let (host, port) = authority.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            Host::Ip(IpAddr::from(rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?).to_canonical())
        }
        None => host
            .parse()
            .map(|ip: std::net::Ipv4Addr| Host::Ip(ip.into()))
            .ok()
            .or_else(|| name(host))?,
    };
    Some((host, port_number(port)?))
}

/// Decimal, without sign or leading zero.
fn port_number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain)
}

/// DNS names of at most 255 bytes; none that some resolver would take for an address (its last label is a number).
fn name(text: &str) -> Option<Host> {
    let label = |label: &str| {
        let clean = label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        clean && (1..=63).contains(&label.len())
    };
    let number = text
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    let good = text.len() <= 255 && !number && text.split('.').all(label);
    good.then(|| Host::Name(text.to_ascii_lowercase().into()))
}

#[cfg(test)]
mod tests;
