//! What the mesh knows about a name or an address: the answering half of DNS, without messages, sockets or caches.
//!
//! Owns which service a name means to one client and what it resolves to. Who asks, in which bytes, and what becomes of
//! questions that the mesh has no answer to is `ztunnel-net`'s. Names are lower case without the last dot.
//!
//! Origin of the order of aliases and wildcards: Istio's DNS proxy (ztunnel `src/dns`); of names below a service: the
//! Kubernetes DNS specification, 2.3 and 2.4.

mod names;
mod reverse;

use crate::tables::{Endpoint, Service, Tables, nearest};
use names::Alias;
use std::net::IpAddr;
use std::sync::Arc;

pub use names::Asker;

/// More records than a message over TCP holds help nobody.
const MOST_ADDRESSES: usize = 1000;

/// What is asked about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    A,
    Aaaa,
    Srv,
    Ptr,
    /// A and AAAA.
    Any,
    /// SVCB and HTTPS: hints about addresses, which would lead around the mesh.
    Hints,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Address(IpAddr),
    Service { port: u16, target: String },
    Pointer(String),
}

/// What the mesh has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing: it is somebody else's name, or something that only somebody else knows about it.
    Forward,
    /// The name exists. Without data there is nothing of this kind (NODATA).
    Found(Found),
    /// Only the mesh could know it, and there is no such name (NXDOMAIN).
    NoSuchName,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What the name stands for, when a search domain was taken off (CNAME); the data belongs to this name then.
    pub alias_of: Option<String>,
    pub data: Vec<Data>,
    /// Addresses of the targets of `data`.
    pub additional: Vec<(String, IpAddr)>,
}

/// `random` turns the order of addresses. O(aliases of the name + endpoints of a headless service).
pub fn resolve(tables: &Tables, asker: &Asker<'_>, name: &str, kind: Kind, random: u64) -> Reply {
    if kind == Kind::Ptr
        && let Some(ip) = names::reverse_address(name)
    {
        return reverse::resolve(tables, asker, ip);
    }
    if let Some((port, host)) = names::service_port(name) {
        return srv(tables, asker, port, host, kind, random);
    }
    let Some(found) = find(tables, asker, name) else {
        return Reply::Forward;
    };
    let of_kind = |ip: &IpAddr| match kind {
        Kind::A => ip.is_ipv4(),
        Kind::Aaaa => ip.is_ipv6(),
        _ => kind == Kind::Any,
    };
    match kind {
        Kind::A | Kind::Aaaa | Kind::Any => {
            let addresses = found.addresses(tables, random);
            Reply::Found(Found {
                alias_of: found.alias_of,
                data: addresses.filter(of_kind).map(Data::Address).collect(),
                additional: Vec::new(),
            })
        }
        Kind::Srv if found.is_ours(asker) && found.endpoint.is_none() => Reply::Found(
            Answer {
                tables,
                service: found.service,
                random,
            }
            .of_ports(&found.service.ports, found.alias_of),
        ),
        Kind::Hints => Reply::Found(Found::default()),
        // Of a name outside the cluster's domain others may know a text or a mail server.
        _ if found.is_ours(asker) => Reply::Found(Found::default()),
        _ => Reply::Forward,
    }
}

/// Whom a name means.
struct Named<'a> {
    service: &'a Arc<Service>,
    /// Only this endpoint of a headless service.
    endpoint: Option<&'a Endpoint>,
    alias_of: Option<String>,
}

impl Named<'_> {
    fn is_ours(&self, asker: &Asker<'_>) -> bool {
        asker.is_below_services(&self.service.hostname)
    }

    fn addresses(&self, tables: &Tables, random: u64) -> impl Iterator<Item = IpAddr> + use<> {
        let all = match self.endpoint {
            Some(endpoint) => of_endpoint(tables, self.service, endpoint).collect(),
            None => of_service(tables, self.service),
        };
        turned(all, random)
    }
}

/// The first alias that the mesh knows, each tried as it is, then as a pod of a headless service, then by wildcards.
fn find<'a>(tables: &'a Tables, asker: &Asker<'_>, name: &str) -> Option<Named<'a>> {
    for Alias { host, stripped } in asker.aliases(name) {
        if let Some(service) = service(tables, asker, &host) {
            let alias_of = stripped.then(|| host.clone());
            return Some(Named {
                service,
                endpoint: None,
                alias_of,
            });
        }
        if let Some((service, endpoint)) = pod(tables, asker, &host) {
            return Some(Named {
                service,
                endpoint: Some(endpoint),
                alias_of: stripped.then(|| host.clone()),
            });
        }
        for wildcard in names::wildcards(&host) {
            if let Some(service) = service(tables, asker, &wildcard) {
                return Some(Named {
                    service,
                    endpoint: None,
                    alias_of: None,
                });
            }
        }
    }
    None
}

/// A service without an address of its own counts only where the mesh is the one who knows: below the cluster's domain.
fn service<'a>(tables: &'a Tables, asker: &Asker<'_>, host: &str) -> Option<&'a Arc<Service>> {
    let candidates = tables.services_by_host(host).iter();
    let answerable = candidates.filter(|service| {
        vips(tables, service).next().is_some() || asker.is_below_services(&service.hostname)
    });
    nearest(answerable, asker.namespace)
}

/// `LABEL.HOST` of a headless service.
fn pod<'a>(
    tables: &'a Tables,
    asker: &Asker<'_>,
    host: &str,
) -> Option<(&'a Arc<Service>, &'a Endpoint)> {
    let (label, of) = host.split_once('.')?;
    let service = service(tables, asker, of).filter(|service| is_headless(service))?;
    let mut endpoints = eligible(tables, service);
    let found = endpoints
        .find(|endpoint| label_of(service, endpoint) == label || *endpoint.workload.name == *label);
    found.map(|endpoint| (service, endpoint))
}

fn is_headless(service: &Service) -> bool {
    service.vips.is_empty()
}

fn vips<'a>(tables: &'a Tables, service: &'a Service) -> impl Iterator<Item = IpAddr> + 'a {
    let here = service
        .vips
        .iter()
        .filter(|vip| *vip.network == *tables.network() && vip.range.is_host());
    here.map(|vip| vip.range.ip)
        .filter(|ip| service.ip_families.allows(*ip))
}

fn of_service(tables: &Tables, service: &Service) -> Vec<IpAddr> {
    if !is_headless(service) {
        return vips(tables, service).collect();
    }
    let all = eligible(tables, service)
        .flat_map(|endpoint| of_endpoint(tables, service, endpoint).collect::<Vec<_>>());
    all.collect()
}

fn of_endpoint<'a>(
    tables: &Tables,
    service: &'a Service,
    endpoint: &'a Endpoint,
) -> impl Iterator<Item = IpAddr> + use<'a> {
    let here = *endpoint.workload.network == *tables.network();
    let addresses = endpoint.workload.addresses.iter().copied();
    addresses.filter(move |ip| here && service.ip_families.allows(*ip))
}

/// Those that clients may be sent to.
fn eligible<'a>(tables: &'a Tables, service: &'a Service) -> impl Iterator<Item = &'a Endpoint> {
    let unhealthy_too = service.balancing.unhealthy_too;
    tables
        .endpoints(&service.key)
        .filter(move |endpoint| endpoint.workload.healthy || unhealthy_too)
}

/// An endpoint's name below its headless service: the host name that its record gives it there, else its own name, else
/// its address in dashes (as CoreDNS writes it).
fn label_of(service: &Service, endpoint: &Endpoint) -> String {
    let workload = &endpoint.workload;
    let given = workload.hostname.to_ascii_lowercase();
    if let Some(label) = given
        .strip_suffix(&*service.hostname)
        .and_then(|rest| rest.strip_suffix('.'))
        .filter(|label| names::is_label(label))
    {
        return label.to_owned();
    }
    if names::is_label(&workload.name) {
        return workload.name.to_string();
    }
    let address = workload.addresses.first().map(ToString::to_string);
    address.unwrap_or_default().replace(['.', ':'], "-")
}

fn srv(
    tables: &Tables,
    asker: &Asker<'_>,
    port: &str,
    host: &str,
    kind: Kind,
    random: u64,
) -> Reply {
    let aliases = asker.aliases(host);
    let found = aliases
        .iter()
        .find_map(|Alias { host, stripped }| Some((service(tables, asker, host)?, *stripped)));
    let Some((service, stripped)) = found.filter(|(s, _)| asker.is_below_services(&s.hostname))
    else {
        return Reply::Forward; // a host outside has service records of its own
    };
    let Some(number) = service.port_named(port) else {
        return Reply::Forward; // the port is UDP, or the control plane does not tell names
    };
    if !matches!(kind, Kind::Srv | Kind::Any) {
        return Reply::Found(Found::default());
    }
    let ports: Vec<_> = service
        .ports
        .iter()
        .filter(|port| port.service == number)
        .copied()
        .collect();
    let alias_of = stripped.then(|| format!("_{port}._tcp.{}", service.hostname));
    let answer = Answer {
        tables,
        service,
        random,
    };
    Reply::Found(answer.of_ports(&ports, alias_of))
}

/// Service records of one service.
struct Answer<'a> {
    tables: &'a Tables,
    service: &'a Service,
    random: u64,
}

impl Answer<'_> {
    fn of_ports(&self, ports: &[crate::tables::Port], alias_of: Option<String>) -> Found {
        let mut found = Found {
            alias_of,
            ..Found::default()
        };
        if !is_headless(self.service) {
            let target = self.service.hostname.to_string();
            for port in ports {
                found.data.push(Data::Service {
                    port: port.service,
                    target: target.clone(),
                });
            }
            let vips = vips(self.tables, self.service);
            found.additional = vips.map(|ip| (target.clone(), ip)).collect();
            return found;
        }
        let endpoints: Vec<_> = eligible(self.tables, self.service).collect();
        for endpoint in turned(endpoints, self.random) {
            let label = label_of(self.service, endpoint);
            let target = format!("{label}.{}", self.service.hostname);
            for port in ports {
                if let Some(number) =
                    crate::decide::target_port(&endpoint.ports, &self.service.ports, port.service)
                {
                    found.data.push(Data::Service {
                        port: number,
                        target: target.clone(),
                    });
                }
            }
            let addresses = of_endpoint(self.tables, self.service, endpoint);
            found
                .additional
                .extend(addresses.map(|ip| (target.clone(), ip)));
        }
        found
    }
}

/// Begins at a random place, and is bounded.
fn turned<T>(mut all: Vec<T>, random: u64) -> std::vec::IntoIter<T> {
    if !all.is_empty() {
        let first = (random % all.len() as u64) as usize;
        all.rotate_left(first);
        all.truncate(MOST_ADDRESSES);
    }
    all.into_iter()
}

#[cfg(test)]
mod tests;
