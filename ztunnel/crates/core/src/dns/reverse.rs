//! The name of an address: a service's, or a pod's below its headless service.

use super::{Asker, Data, Found, Reply, is_headless, label_of, vips};
use crate::tables::{Cidr, Tables, Workload};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where addresses of ServiceEntry hosts that have none are given out, as in Istio: nobody else knows their names.
const AUTO_ALLOCATED: [(IpAddr, u32); 2] = [
    (IpAddr::V4(Ipv4Addr::new(240, 240, 0, 0)), 16),
    (IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0)), 48),
];

pub(super) fn resolve(tables: &Tables, asker: &Asker<'_>, ip: IpAddr) -> Reply {
    let pointer = |name: String| {
        Reply::Found(Found {
            data: vec![Data::Pointer(name)],
            ..Found::default()
        })
    };
    if let Some(workload) = tables.workload_by_ip(tables.network(), ip) {
        return pod_name(tables, asker, workload).map_or(Reply::Forward, pointer);
    }
    let service = tables
        .service_by_vip(tables.network(), ip, asker.namespace)
        .filter(|service| vips(tables, service).any(|vip| vip == ip));
    match service {
        Some(service) if !service.hostname.starts_with('*') => {
            pointer(service.hostname.to_ascii_lowercase())
        }
        _ if is_auto_allocated(ip) => Reply::NoSuchName,
        _ => Reply::Forward,
    }
}

fn pod_name(tables: &Tables, asker: &Asker<'_>, workload: &Workload) -> Option<String> {
    let visible = |service: &crate::tables::Service| {
        !service.namespace_only || *service.namespace == *asker.namespace
    };
    let services = workload.services.iter();
    let mut headless = services
        .filter_map(|(key, _)| tables.service(key))
        .filter(|service| {
            is_headless(service) && visible(service) && asker.is_below_services(&service.hostname)
        });
    let service = headless.next()?;
    let endpoint = tables
        .endpoints(&service.key)
        .find(|endpoint| endpoint.workload.uid == workload.uid)?;
    Some(format!(
        "{}.{}",
        label_of(service, endpoint),
        service.hostname
    ))
}

fn is_auto_allocated(ip: IpAddr) -> bool {
    AUTO_ALLOCATED
        .iter()
        .any(|&(base, prefix)| Cidr::new(base, prefix).is_some_and(|range| range.contains(ip)))
}
