//! What a person calls a workload or a service, found in the snapshot: an address, `NAMESPACE/NAME`, a hostname or the
//! beginning of one. Owns the notation of `explain`'s questions; decides nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use ztunnel_core::tables::{Service, Tables, Workload};

/// Who opens the connection.
#[derive(Debug, Clone)]
pub enum Source {
    Known(Arc<Workload>),
    /// No workload has this address.
    Stranger(IpAddr),
}

/// What `connect()` is called with, and what it was called by the person.
#[derive(Debug, Clone)]
pub struct Place {
    pub address: SocketAddr,
    /// A headless service: DNS answers with its endpoints, and this is the first.
    pub headless: bool,
}

/// `ADDRESS`, `NAMESPACE/NAME` of a pod or of what owns it, a uid or an identity. Err: a sentence.
pub fn source(tables: &Tables, text: &str) -> Result<Source, String> {
    if let Ok(ip) = bare(text).parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let known = tables.workload_by_ip(tables.network(), ip).cloned();
        return Ok(known.map_or(Source::Stranger(ip), Source::Known));
    }
    let found = tables
        .workload(text)
        .cloned()
        .or_else(|| named(tables, text));
    let by_identity = |w: &&Arc<Workload>| w.identity().as_str() == text;
    found
        .or_else(|| tables.workloads().find(by_identity).cloned())
        .map(Source::Known)
        .ok_or_else(|| format!("{text:?} is no workload: give NAMESPACE/NAME, an address or a uid"))
}

/// A pod by its name, else the first pod of the Deployment, Job or application of that name.
fn named(tables: &Tables, text: &str) -> Option<Arc<Workload>> {
    let (namespace, name) = text.split_once('/')?;
    if let Some(pod) = tables.workload_by_name(namespace, name) {
        return Some(pod.clone());
    }
    let is_of = |w: &&Arc<Workload>| {
        *w.namespace == *namespace && (*w.workload_name == *name || *w.canonical_name == *name)
    };
    tables
        .workloads()
        .filter(is_of)
        .min_by_key(|w| w.uid.clone())
        .cloned()
}

/// `WHERE` or `WHERE:PORT`; `WHERE` is an address, `NAMESPACE/NAME` or a hostname, which may lack its last labels.
/// `client_namespace` sees what it may see. Err: a sentence.
pub fn destination(tables: &Tables, client_namespace: &str, text: &str) -> Result<Place, String> {
    let (host, port) = split(text)?;
    if let Ok(ip) = bare(host).parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let known = tables.workload_by_ip(tables.network(), ip);
        let service = tables.service_by_vip(tables.network(), ip, client_namespace);
        let port = port.map_or_else(|| only_port(tables, text, known, service), Ok)?;
        return Ok(Place {
            address: SocketAddr::new(ip, port),
            headless: false,
        });
    }
    if let Some(service) = service(tables, client_namespace, host) {
        let port = port.map_or_else(|| only_port(tables, text, None, Some(&service)), Ok)?;
        return at_service(tables, &service, port);
    }
    let pod = named(tables, host).ok_or_else(|| {
        format!("{host:?} is neither a service nor a workload: give HOSTNAME, NAMESPACE/NAME or an address")
    })?;
    let port = port.map_or_else(|| only_port(tables, text, Some(&pod), None), Ok)?;
    let ip = pod
        .addresses
        .first()
        .ok_or_else(|| format!("workload {host} has no address"))?;
    Ok(Place {
        address: SocketAddr::new(*ip, port),
        headless: false,
    })
}

fn at_service(tables: &Tables, service: &Service, port: u16) -> Result<Place, String> {
    let mut here = service
        .vips
        .iter()
        .filter(|vip| *vip.network == *tables.network() && vip.range.is_host());
    if let Some(vip) = here.next() {
        return Ok(Place {
            address: SocketAddr::new(vip.range.ip, port),
            headless: false,
        });
    }
    let mut endpoints = tables.endpoints(&service.key);
    let first = endpoints.find_map(|e| Some((e, *e.workload.addresses.first()?)));
    let (endpoint, ip) = first.ok_or_else(|| {
        format!(
            "service {} has neither a virtual address nor an endpoint",
            service.key
        )
    })?;
    let target = |ports: &[ztunnel_core::tables::Port]| {
        ports
            .iter()
            .find(|p| p.service == port)
            .and_then(|p| p.target)
    };
    let port = target(&endpoint.ports)
        .or_else(|| target(&service.ports))
        .unwrap_or(port);
    Ok(Place {
        address: SocketAddr::new(ip, port),
        headless: true,
    })
}

/// `NAMESPACE/NAME`, a hostname, or `NAME` and `NAME.NAMESPACE` as within a cluster.
fn service(tables: &Tables, client_namespace: &str, text: &str) -> Option<Arc<Service>> {
    let text = &*text.to_ascii_lowercase();
    if let Some((namespace, name)) = text.split_once('/') {
        let is_it = |s: &&Arc<Service>| {
            *s.namespace == *namespace && (*s.name == *name || *s.hostname == *name)
        };
        return tables
            .services()
            .filter(is_it)
            .min_by_key(|s| s.key.clone())
            .cloned();
    }
    let whole = if text.contains('.') {
        text.to_owned()
    } else {
        format!("{text}.{client_namespace}")
    };
    let begins = |s: &&Arc<Service>| {
        s.hostname
            .strip_prefix(&*whole)
            .is_some_and(|rest| rest.starts_with('.'))
    };
    tables
        .service_by_host(text, client_namespace)
        .or_else(|| {
            tables
                .services()
                .filter(begins)
                .min_by_key(|s| s.key.clone())
        })
        .cloned()
}

/// Err: there is not exactly one.
fn only_port(
    tables: &Tables,
    asked: &str,
    pod: Option<&Arc<Workload>>,
    service: Option<&Arc<Service>>,
) -> Result<u16, String> {
    let mut ports: Vec<u16> = match (pod, service) {
        (Some(pod), _) => {
            let mapped = pod.services.iter().flat_map(|(key, own)| {
                let of_service = tables.service(key).map(|s| s.ports.clone());
                own.iter().copied().chain(
                    of_service
                        .iter()
                        .flat_map(|p| p.iter().copied())
                        .collect::<Vec<_>>(),
                )
            });
            mapped.filter_map(|port| port.target).collect()
        }
        (None, Some(service)) => service.ports.iter().map(|p| p.service).collect(),
        (None, None) => Vec::new(),
    };
    ports.sort_unstable();
    ports.dedup();
    match ports[..] {
        [only] => Ok(only),
        _ => {
            let known: Vec<_> = ports.iter().map(u16::to_string).collect();
            let known = if known.is_empty() {
                String::new()
            } else {
                format!("; it has {}", known.join(", "))
            };
            Err(format!("which port? give {asked}:PORT{known}"))
        }
    }
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host)
}

/// A bare IPv6 address has no port: `[::1]:80` has one.
fn split(text: &str) -> Result<(&str, Option<u16>), String> {
    if text.parse::<IpAddr>().is_ok() || text.ends_with(']') {
        return Ok((text, None));
    }
    match text.rsplit_once(':') {
        None => Ok((text, None)),
        Some((host, port)) => match port.parse() {
            Ok(port) if port > 0 => Ok((host, Some(port))),
            _ => Err(format!(
                "{port:?} in {text:?} is no port between 1 and 65535"
            )),
        },
    }
}
