//! The JSON of Istio's /config_dump, as `istioctl ztunnel-config` reads it. Owns the shapes; nothing reads it back.

use crate::identity::{CertificateInfo, ChainLink};
use crate::log::rfc3339;
use crate::pod::Pod;
use crate::registry::{Connection, Kind, Parties};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::time::Duration;
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{
    Action, Cidr, Clause, Destination, Endpoint, Gateway, IpFamilies, Locus, Match, Mode, Outbound,
    Pair, Policy, Port, Protocol, Refused, Scope, Service, Spread, Tables, Text, Workload,
    WorkloadType,
};

/// An open connection, ready to cross threads.
pub struct Seen {
    pub uid: String,
    pub inbound: bool,
    pub json: Value,
}

/// `None`: not a connection of an application.
pub fn connection(of: &Connection) -> Option<Seen> {
    if of.kind == Kind::Tunnel {
        return None;
    }
    let Parties {
        src,
        original_dst,
        dst,
        hbone,
        source_id,
        destination_id,
        ..
    } = &*of.parties.borrow();
    // The access log keeps Istio's pod:15008 for a stream; here it is the application that counts.
    let actual = if of.kind == Kind::Stream {
        original_dst
    } else {
        dst
    };
    let json = json!({
        "src": src.to_string(),
        "originalDst": original_dst.to_string(),
        "actualDst": actual.to_string(),
        "protocol": if hbone.is_some() { "HBONE" } else { "TCP" },
        "srcIdentity": source_id.as_ref().map(SpiffeId::as_str),
        "dstIdentity": destination_id.as_ref().map(SpiffeId::as_str),
        "bytesSent": of.counts.sent.get(),
        "bytesReceived": of.counts.received.get(),
        "ageMs": of.opened.elapsed().as_millis() as u64,
    });
    Some(Seen {
        uid: of.pod.uid.to_string(),
        inbound: of.kind != Kind::Outbound,
        json,
    })
}

/// uid → state. Connections of pods that have left since are nobody's.
pub fn workload_state<'a>(
    pods: impl Iterator<Item = &'a Pod>,
    trust_domain: &str,
    seen: Vec<Seen>,
) -> Value {
    let mut by_uid: Map<String, Value> = pods
        .map(|pod| (pod.uid.to_string(), empty_state(pod, trust_domain)))
        .collect();
    for one in seen {
        let direction = if one.inbound { "inbound" } else { "outbound" };
        let list = by_uid
            .get_mut(&one.uid)
            .and_then(|state| state["connections"][direction].as_array_mut());
        if let Some(list) = list {
            list.push(one.json);
        }
    }
    Value::Object(by_uid)
}

fn empty_state(pod: &Pod, trust_domain: &str) -> Value {
    json!({
        "state": "Up",
        "connections": { "inbound": [], "outbound": [] },
        "dns": pod.dns.json(),
        "info": { "name": pod.name, "namespace": pod.namespace, "trustDomain": trust_domain,
                  "serviceAccount": pod.service_account },
    })
}

/// `version` and `config` are added by the shell, which knows them all.
pub fn whole(
    tables: &Tables,
    hits: &HashMap<String, Vec<Value>>,
    certificates: &[CertificateInfo],
    state: Value,
) -> Value {
    let services = tables
        .services()
        .map(|s| service(s, tables.endpoints(&s.key)));
    json!({
        "workloads": tables.workloads().map(|w| workload(w)).collect::<Vec<_>>(),
        "services": services.collect::<Vec<_>>(),
        "policies": tables.policies().map(|p| policy(p, hits.get(&*p.key))).collect::<Vec<_>>(),
        "refusedPolicies": tables.refusals().map(|(key, r)| refused(key, r)).collect::<Vec<_>>(),
        "certificates": certificates.iter().map(certificate).collect::<Vec<_>>(),
        "workloadState": state,
        "stagedServices": {},
        "staticConfig": { "workloads": [], "services": [], "policies": [] },
    })
}

fn workload(of: &Workload) -> Value {
    let services: Map<_, _> = of
        .services
        .iter()
        .map(|(key, map)| (key.to_string(), ports(map)))
        .collect();
    json!({
        "uid": *of.uid,
        "name": of.name,
        "namespace": of.namespace,
        "serviceAccount": of.identity.service_account(),
        "trustDomain": of.identity.trust_domain(),
        "workloadIps": texts(&of.addresses),
        "hostname": of.hostname,
        "network": of.network,
        "networkMode": if of.host_network { "HostNetwork" } else { "Standard" },
        "protocol": if of.protocol == Protocol::Hbone { "HBONE" } else { "TCP" },
        "waypoint": of.waypoint.as_ref().map(gateway),
        "networkGateway": of.network_gateway.as_ref().map(gateway),
        "node": of.node,
        "workloadName": of.workload_name,
        "workloadType": workload_type(of.workload_type),
        "canonicalName": of.canonical_name,
        "canonicalRevision": of.canonical_revision,
        "nativeTunnel": of.native_tunnel,
        "applicationTunnel": of.application_tunnel.map(|t| json!({
            "protocol": if t.proxy { "PROXY" } else { "NONE" },
            "port": t.port,
        })),
        "authorizationPolicies": of.authorization_policies.iter().map(|key| &**key).collect::<Vec<_>>(),
        "outboundPolicy": of.outbound.map(outbound_policy),
        "egressPolicies": of.egress_policies.iter().map(|key| &**key).collect::<Vec<_>>(),
        "status": health(of.healthy),
        "clusterId": of.cluster_id,
        "locality": { "region": of.locality.region, "zone": of.locality.zone, "subzone": of.locality.subzone },
        "services": services,
        "capacity": of.capacity,
    })
}

fn outbound_policy(of: Outbound) -> &'static str {
    match of {
        Outbound::AllowAny => "ALLOW_ANY",
        Outbound::RegistryOnly => "REGISTRY_ONLY",
    }
}

fn workload_type(of: WorkloadType) -> &'static str {
    match of {
        WorkloadType::Deployment => "deployment",
        WorkloadType::CronJob => "cronjob",
        WorkloadType::Pod => "pod",
        WorkloadType::Job => "job",
        WorkloadType::Other => "unknown",
    }
}

fn health(healthy: bool) -> &'static str {
    if healthy { "Healthy" } else { "Unhealthy" }
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

/// Service port → target port; 0: the endpoint says which.
fn ports(of: &[Port]) -> Value {
    of.iter()
        .map(|p| (p.service.to_string(), json!(p.target.unwrap_or(0))))
        .collect::<Map<_, _>>()
        .into()
}

fn gateway(of: &Gateway) -> Value {
    let destination = match &of.destination {
        Destination::Address { network, ip } => format!("{network}/{ip}"),
        Destination::Service(key) => key.to_string(),
    };
    json!({ "destination": destination, "hboneMtlsPort": of.hbone_port })
}

fn service<'a>(of: &Service, endpoints: impl Iterator<Item = &'a Endpoint>) -> Value {
    let range = |c: &Cidr| {
        if c.is_host() {
            c.ip.to_string()
        } else {
            format!("{}/{}", c.ip, c.prefix)
        }
    };
    let (single, ranges): (Vec<_>, Vec<_>) = of.vips.iter().partition(|vip| vip.range.is_host());
    let vips = |of: Vec<&ztunnel_core::tables::Vip>| -> Vec<_> {
        of.iter()
            .map(|vip| format!("{}/{}", vip.network, range(&vip.range)))
            .collect()
    };
    let weighted =
        |(to, weight): &(Gateway, u32)| json!({ "destination": gateway(to), "weight": weight });
    json!({
        "name": of.name,
        "namespace": of.namespace,
        "hostname": of.hostname,
        "vips": vips(single),
        "cidrVips": vips(ranges),
        "ports": ports(&of.ports),
        "endpoints": endpoints.map(|e| (e.workload.uid.to_string(), endpoint(of, e))).collect::<Map<_, _>>(),
        "subjectAltNames": texts(&of.subject_alt_names),
        "waypoint": of.waypoint.as_ref().map(gateway),
        "weightedWaypoints": of.weighted_waypoints.iter().map(weighted).collect::<Vec<_>>(),
        "loadBalancer": balancing(of),
        "ipFamilies": ip_families(of.ip_families),
        "canonical": of.canonical,
        "visibility": if of.namespace_only { "Namespace" } else { "Public" },
    })
}

fn endpoint(of: &Service, endpoint: &Endpoint) -> Value {
    json!({
        "workloadUid": *endpoint.workload.uid,
        "service": *of.key,
        "port": ports(&endpoint.ports),
        "status": health(endpoint.workload.healthy),
    })
}

fn balancing(of: &Service) -> Value {
    let mode = match of.balancing.mode {
        Mode::Standard => "Standard",
        Mode::Strict => "Strict",
        Mode::Failover => "Failover",
        Mode::Passthrough => "Passthrough",
    };
    let scope = |locus: &Locus| match locus {
        Locus::Region => "Region",
        Locus::Zone => "Zone",
        Locus::Subzone => "Subzone",
        Locus::Node => "Node",
        Locus::Cluster => "Cluster",
        Locus::Network => "Network",
    };
    json!({
        "mode": mode,
        "routingPreferences": of.balancing.scopes.iter().map(scope).collect::<Vec<_>>(),
        "spread": match of.balancing.spread {
            Spread::Random => "Random",
            Spread::LeastRequest => "LeastRequest",
            Spread::ClientAddress => "ClientAddress",
        },
        "healthPolicy": if of.balancing.unhealthy_too { "AllowAll" } else { "OnlyHealthy" },
    })
}

fn ip_families(of: IpFamilies) -> Option<&'static str> {
    match of {
        IpFamilies::Automatic => None,
        IpFamilies::V4Only => Some("IPv4"),
        IpFamilies::V6Only => Some("IPv6"),
        IpFamilies::Dual => Some("Dual"),
    }
}

/// `governs`: what is closed because of it.
fn refused(key: &str, of: &Refused) -> Value {
    let governs = match of.group.as_deref() {
        Some("") => "mesh".to_owned(),
        Some(namespace) => format!("namespace {namespace}"),
        None => "workloads that name it".to_owned(),
    };
    json!({ "name": key, "why": of.why, "governs": governs })
}

fn policy(of: &Policy, hits: Option<&Vec<Value>>) -> Value {
    let clauses = |rule: &ztunnel_core::tables::Rule| rule.0.iter().map(clause).collect::<Vec<_>>();
    json!({
        "name": of.name,
        "namespace": of.namespace,
        "scope": match of.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::WorkloadSelector => "WorkloadSelector",
        },
        "action": match of.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
            Action::Audit => "Audit",
        },
        "dryRun": of.dry_run,
        "rules": of.rules.iter().map(clauses).collect::<Vec<_>>(),
        "hits": hits.map_or(&[][..], Vec::as_slice),
    })
}

fn clause(of: &Clause) -> Value {
    of.0.iter().map(matching).collect::<Vec<_>>().into()
}

/// Attributes without a value are left out.
fn matching(of: &Match) -> Value {
    let mut out = Map::new();
    pair(
        &mut out,
        "namespaces",
        "notNamespaces",
        &of.namespaces,
        text,
    );
    pair(
        &mut out,
        "principals",
        "notPrincipals",
        &of.principals,
        text,
    );
    let account = |a: &ztunnel_core::tables::Account| json!({ "namespace": a.namespace, "serviceAccount": a.name });
    pair(
        &mut out,
        "serviceAccounts",
        "notServiceAccounts",
        &of.service_accounts,
        account,
    );
    let cidr = |c: &Cidr| json!(format!("{}/{}", c.ip, c.prefix));
    pair(&mut out, "sourceIps", "notSourceIps", &of.source_ips, cidr);
    pair(
        &mut out,
        "destinationIps",
        "notDestinationIps",
        &of.destination_ips,
        cidr,
    );
    pair(
        &mut out,
        "destinationPorts",
        "notDestinationPorts",
        &of.destination_ports,
        |port| json!(port),
    );
    pair(&mut out, "services", "notServices", &of.services, text);
    Value::Object(out)
}

fn pair<T>(
    out: &mut Map<String, Value>,
    any: &str,
    none: &str,
    of: &Pair<T>,
    show: impl Fn(&T) -> Value,
) {
    for (key, values) in [(any, &of.any), (none, &of.none)] {
        if !values.is_empty() {
            out.insert(
                key.into(),
                values.iter().map(&show).collect::<Vec<_>>().into(),
            );
        }
    }
}

fn text(of: &Text) -> Value {
    match of {
        Text::Exact(value) => json!({ "Exact": value }),
        Text::Prefix(value) => json!({ "Prefix": value }),
        Text::Suffix(value) => json!({ "Suffix": value }),
        Text::Presence => json!({ "Presence": [] }),
    }
}

fn certificate(of: &CertificateInfo) -> Value {
    json!({
        "identity": of.identity.as_str(),
        "state": of.state,
        "certChain": of.leaf.iter().chain(&of.intermediates).map(link).collect::<Vec<_>>(),
        "rootCerts": of.roots.iter().map(link).collect::<Vec<_>>(),
    })
}

fn link(of: &ChainLink) -> Value {
    let time = |seconds: f64| rfc3339(Duration::from_secs_f64(seconds.max(0.0))).to_string();
    json!({
        "pem": of.pem,
        "serialNumber": of.serial_number,
        "validFrom": time(of.not_before),
        "expirationTime": time(of.not_after),
    })
}
