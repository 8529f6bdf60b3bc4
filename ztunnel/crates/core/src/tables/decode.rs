//! Door 4's bytes to the model: every check happens here, so that whoever holds a `Workload` or a `Service` may trust it.
//!
//! Fails closed: what would be routed or judged by a value that is not understood is refused as a whole.

use super::decode_policy;
use super::model::*;
use super::share::Pool;
use super::words::Words;
use crate::ids::{BadId, SpiffeId};
use crate::wire::workload as pb;
use prost::Message;
use std::net::IpAddr;
use std::sync::Arc;

/// Why a resource is refused: one sentence for the NACK.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("not a message of this type: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error("the content is of {0:?}, not of the resource's name")]
    OtherName(String),
    #[error("{0} is empty")]
    Empty(&'static str),
    #[error("{field} has {bytes} bytes instead of 4 or 16")]
    Address { field: &'static str, bytes: usize },
    #[error("{field}: a prefix of {length} bits is longer than the address")]
    Prefix { field: &'static str, length: u32 },
    #[error("{field}: {port} is not a port")]
    Port { field: &'static str, port: u32 },
    #[error("{field} has the unknown value {value}")]
    Unknown { field: &'static str, value: i32 },
    #[error("tunnel protocol LEGACY_ISTIO_MTLS is not spoken")]
    LegacyMtls,
    #[error("the identity is impossible: {0}")]
    Identity(#[from] BadId),
    #[error("{0} has the unknown value {1:?}")]
    Setting(&'static str, String),
    #[error("carries the extension {0:?}, which is not understood")]
    Extension(String),
    /// `path`: from the message down to the field, as `rules[0].clauses[1].matches[0]`.
    #[error("{path}: {why}")]
    Within { path: String, why: Box<Self> },
}

impl Unusable {
    /// With the place where it was found before it.
    pub(super) fn within(self, place: impl std::fmt::Display) -> Self {
        match self {
            Self::Within { path, why } => Self::Within {
                path: format!("{place}.{path}"),
                why,
            },
            why => Self::Within {
                path: place.to_string(),
                why: Box::new(why),
            },
        }
    }
}

/// One resource of type `istio.workload.Address`.
pub(super) enum Address {
    Workload(Workload),
    Service(Service),
}

pub(super) fn address(name: &str, bytes: &[u8], pool: &mut Pool) -> Result<Address, Unusable> {
    let decoded = match Words::read(bytes) {
        Some((words, rest)) => Address::Workload(workload(&words, rest, pool)?),
        None => by_library(bytes, pool)?,
    };
    let own = match &decoded {
        Address::Workload(workload) => &workload.uid,
        Address::Service(service) => &service.key,
    };
    same_name(name, own)?;
    Ok(decoded)
}

fn by_library(bytes: &[u8], pool: &mut Pool) -> Result<Address, Unusable> {
    Ok(match pb::Address::decode(bytes)?.r#type {
        Some(pb::address::Type::Workload(message)) => {
            Address::Workload(workload(&Words::of(&message), message.clone(), pool)?)
        }
        Some(pb::address::Type::Service(message)) => Address::Service(service(message, pool)?),
        None => return Err(Unusable::Empty("type")),
    })
}

/// A resource under a foreign name could never be taken back by its own.
pub(super) fn same_name(name: &str, own: &str) -> Result<(), Unusable> {
    (name == own)
        .then_some(())
        .ok_or_else(|| Unusable::OtherName(own.to_owned()))
}

pub(super) fn filled<S: AsRef<str>, T: From<S>>(
    field: &'static str,
    text: S,
) -> Result<T, Unusable> {
    if text.as_ref().is_empty() {
        Err(Unusable::Empty(field))
    } else {
        Ok(text.into())
    }
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// 4 or 16 bytes, network byte order; the result is canonical.
pub(super) fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Unusable> {
    raw_ip(field, bytes).map(|ip| ip.to_canonical())
}

fn raw_ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, Unusable> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| v6()).map_err(|_| Unusable::Address {
        field,
        bytes: bytes.len(),
    })
}

pub(super) fn cidr(field: &'static str, bytes: &[u8], length: u32) -> Result<Cidr, Unusable> {
    Cidr::new(raw_ip(field, bytes)?, length).ok_or(Unusable::Prefix { field, length })
}

/// 0 is no port here.
fn port(field: &'static str, port: u32) -> Result<u16, Unusable> {
    match u16::try_from(port) {
        Ok(0) | Err(_) => Err(Unusable::Port { field, port }),
        Ok(port) => Ok(port),
    }
}

/// 0: None.
fn optional_port(field: &'static str, number: u32) -> Result<Option<u16>, Unusable> {
    if number == 0 {
        Ok(None)
    } else {
        port(field, number).map(Some)
    }
}

pub(super) fn known<T: TryFrom<i32>>(field: &'static str, value: i32) -> Result<T, Unusable> {
    T::try_from(value).map_err(|_| Unusable::Unknown { field, value })
}

pub(super) fn each<W, T>(
    messages: Vec<W>,
    read: impl Fn(W) -> Result<T, Unusable>,
) -> Result<Box<[T]>, Unusable> {
    messages.into_iter().map(read).collect()
}

fn maybe<W, T>(
    message: Option<W>,
    read: impl Fn(W) -> Result<T, Unusable>,
) -> Result<Option<T>, Unusable> {
    message.map(read).transpose()
}

/// `message`: of its words only those are looked at that `words` has not.
fn workload(
    words: &Words<'_>,
    message: pb::Workload,
    pool: &mut Pool,
) -> Result<Workload, Unusable> {
    let trust_domain = or(words.trust_domain, "cluster.local");
    let account = or(words.service_account, "default");
    let outbound = outbound(&message.extensions)?;
    let host_network = known("network_mode", message.network_mode)?;
    let status = known("status", message.status)?;
    Ok(Workload {
        uid: filled("uid", words.uid)?,
        name: filled("name", words.name)?,
        identity: pool.identity(trust_domain, words.namespace, account)?,
        namespace: pool.word(words.namespace),
        addresses: each(message.addresses, |a| ip("addresses", &a))?,
        hostname: words.hostname.into(),
        network: pool.word(words.network),
        protocol: protocol(message.tunnel_protocol)?,
        waypoint: maybe(message.waypoint, |g| gateway("waypoint", g))?,
        network_gateway: maybe(message.network_gateway, |g| gateway("network_gateway", g))?,
        node: pool.word(words.node),
        canonical_name: pool.word(words.canonical_name),
        canonical_revision: pool.word(words.canonical_revision),
        workload_type: workload_type(message.workload_type),
        workload_name: pool.word(words.workload_name),
        native_tunnel: message.native_tunnel,
        application_tunnel: maybe(message.application_tunnel, application_tunnel)?,
        services: memberships(message.services, pool)?,
        authorization_policies: keys(message.authorization_policies, pool),
        egress_policies: keys(decode_policy::egress_policies(&message.extensions)?, pool),
        healthy: matches!(status, pb::WorkloadStatus::Healthy),
        cluster_id: pool.word(or(words.cluster_id, "Kubernetes")),
        locality: locality(&message.locality.unwrap_or_default(), pool),
        host_network: matches!(host_network, pb::NetworkMode::HostNetwork),
        capacity: message.capacity.unwrap_or(1),
        outbound,
    })
}

fn keys<T: AsRef<str>>(texts: impl IntoIterator<Item = T>, pool: &mut Pool) -> Box<[Key]> {
    let texts = texts.into_iter();
    texts.map(|text| pool.word(text.as_ref())).collect()
}

/// The name of our extension of `Workload`: a `google.protobuf.StringValue`, with Istio's words.
const OUTBOUND: &str = "nodemesh/outbound-policy";

fn outbound(extensions: &[pb::Extension]) -> Result<Option<Outbound>, Unusable> {
    Ok(match text(extensions, OUTBOUND)?.as_deref() {
        None => None,
        Some("ALLOW_ANY") => Some(Outbound::AllowAny),
        Some("REGISTRY_ONLY") => Some(Outbound::RegistryOnly),
        Some(other) => return Err(Unusable::Setting(OUTBOUND, other.to_owned())),
    })
}

fn locality(message: &pb::Locality, pool: &mut Pool) -> Locality {
    Locality {
        region: pool.word(&message.region),
        zone: pool.word(&message.zone),
        subzone: pool.word(&message.subzone),
    }
}

fn protocol(value: i32) -> Result<Protocol, Unusable> {
    match known("tunnel_protocol", value)? {
        pb::TunnelProtocol::None => Ok(Protocol::Tcp),
        pb::TunnelProtocol::Hbone => Ok(Protocol::Hbone),
        pb::TunnelProtocol::LegacyIstioMtls => Err(Unusable::LegacyMtls),
    }
}

fn workload_type(value: i32) -> WorkloadType {
    match pb::WorkloadType::try_from(value) {
        Ok(pb::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(pb::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(pb::WorkloadType::Pod) => WorkloadType::Pod,
        Ok(pb::WorkloadType::Job) => WorkloadType::Job,
        Err(_) => WorkloadType::Other,
    }
}

fn application_tunnel(message: pb::ApplicationTunnel) -> Result<ApplicationTunnel, Unusable> {
    let protocol: pb::application_tunnel::Protocol =
        known("application_tunnel.protocol", message.protocol)?;
    Ok(ApplicationTunnel {
        proxy: matches!(protocol, pb::application_tunnel::Protocol::Proxy),
        port: optional_port("application_tunnel.port", message.port)?,
    })
}

fn memberships(
    services: impl IntoIterator<Item = (String, pb::PortList)>,
    pool: &mut Pool,
) -> Result<Memberships, Unusable> {
    let one = |(key, list): (String, pb::PortList)| Ok((pool.word(&key), ports(list.ports, pool)?));
    let mut all: Memberships = services
        .into_iter()
        .map(one)
        .collect::<Result<_, Unusable>>()?;
    all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(all)
}

/// Of two mappings of one service port the last is in force, as in a map.
fn ports(messages: Vec<pb::Port>, pool: &mut Pool) -> Result<Arc<[Port]>, Unusable> {
    let mut all: Vec<Port> = Vec::with_capacity(messages.len());
    for message in messages {
        let service = port("service_port", message.service_port)?;
        let target = optional_port("target_port", message.target_port)?;
        all.retain(|other| other.service != service);
        all.push(Port { service, target });
    }
    Ok(pool.ports(all))
}

fn gateway(field: &'static str, message: pb::GatewayAddress) -> Result<Gateway, Unusable> {
    use pb::gateway_address::Destination as Wire;
    let destination = match message.destination {
        Some(Wire::Address(address)) => Destination::Address {
            ip: ip(field, &address.address)?,
            network: address.network.into(),
        },
        Some(Wire::Hostname(name)) => {
            Destination::Service(service_key(&name.namespace, &name.hostname)?)
        }
        None => return Err(Unusable::Empty(field)),
    };
    Ok(Gateway {
        destination,
        hbone_port: port(field, message.hbone_mtls_port)?,
    })
}

fn service_key(namespace: &str, hostname: &str) -> Result<Key, Unusable> {
    match (namespace, hostname) {
        ("", _) => Err(Unusable::Empty("namespace")),
        (_, "") => Err(Unusable::Empty("hostname")),
        _ => Ok(format!("{namespace}/{hostname}").into()),
    }
}

fn service(message: pb::Service, pool: &mut Pool) -> Result<Service, Unusable> {
    let visibility = known("visibility", message.visibility)?;
    let spread = spread(&message.extensions)?;
    let identities = message
        .subject_alt_names
        .iter()
        .filter_map(|text| SpiffeId::parse(text).ok());
    Ok(Service {
        key: service_key(&message.namespace, &message.hostname)?,
        name: filled("name", message.name)?,
        subject_alt_names: identities.collect(),
        namespace: message.namespace.into(),
        hostname: message.hostname.into(),
        vips: each(message.addresses, vip)?,
        ports: ports(message.ports, pool)?,
        port_names: port_names(&message.extensions),
        waypoint: maybe(message.waypoint, |g| gateway("waypoint", g))?,
        weighted_waypoints: each(message.weighted_waypoints, weighted)?,
        balancing: balancing(message.load_balancing.unwrap_or_default(), spread)?,
        ip_families: ip_families(known("ip_families", message.ip_families)?),
        canonical: message.canonical,
        namespace_only: matches!(visibility, pb::service::Visibility::Namespace),
    })
}

/// Our control plane's extension: a `google.protobuf.Struct` of name → number. What is no such thing names no port:
/// nothing is routed or judged by it.
const PORT_NAMES: &str = "nodemesh/port-names";

fn port_names(extensions: &[pb::Extension]) -> Box<[(Box<str>, u16)]> {
    use prost_types::{Struct, value::Kind};
    let mut configs = extensions.iter().filter(|each| each.name == PORT_NAMES);
    let config = configs.find_map(|each| each.config.as_ref());
    let told = config.and_then(|any| Struct::decode(&*any.value).ok());
    let numbers = told.unwrap_or_default().fields.into_iter();
    let named = numbers.filter_map(|(name, value)| match value.kind {
        Some(Kind::NumberValue(port)) => Some((name.into(), port as u16)),
        _ => None,
    });
    named.collect()
}

fn vip(message: pb::NetworkAddress) -> Result<Vip, Unusable> {
    let length = message.length.unwrap_or(8 * message.address.len() as u32);
    Ok(Vip {
        range: cidr("addresses", &message.address, length)?,
        network: message.network.into(),
    })
}

fn weighted(message: pb::WeightedWaypoint) -> Result<(Gateway, u32), Unusable> {
    let destination = message
        .destination
        .ok_or(Unusable::Empty("weighted_waypoints.destination"))?;
    Ok((
        gateway("weighted_waypoints.destination", destination)?,
        message.weight,
    ))
}

/// The name of our extension of `Service`: a `google.protobuf.StringValue`. Istio's own tunnel ignores it.
const SPREAD: &str = "nodemesh/load-balancing";

fn spread(extensions: &[pb::Extension]) -> Result<Spread, Unusable> {
    Ok(match text(extensions, SPREAD)?.as_deref() {
        None | Some("random") => Spread::Random,
        Some("least-request") => Spread::LeastRequest,
        Some("client-address") => Spread::ClientAddress,
        Some(other) => return Err(Unusable::Setting(SPREAD, other.to_owned())),
    })
}

/// The text of one of our extensions.
fn text(extensions: &[pb::Extension], name: &'static str) -> Result<Option<String>, Unusable> {
    let found = extensions.iter().find(|extension| extension.name == name);
    let config = found.map(|extension| extension.config.as_ref().ok_or(Unusable::Empty(name)));
    let decode = |config: &prost_types::Any| String::decode(&*config.value).map_err(Unusable::from);
    config.transpose()?.map(decode).transpose()
}

fn balancing(message: pb::LoadBalancing, spread: Spread) -> Result<Balancing, Unusable> {
    use pb::load_balancing::{HealthPolicy, Mode as Wire};
    let health: HealthPolicy = known("load_balancing.health_policy", message.health_policy)?;
    Ok(Balancing {
        mode: match known("load_balancing.mode", message.mode)? {
            Wire::UnspecifiedMode => Mode::Standard,
            Wire::Strict => Mode::Strict,
            Wire::Failover => Mode::Failover,
            Wire::Passthrough => Mode::Passthrough,
        },
        scopes: each(message.routing_preference, locus)?,
        unhealthy_too: matches!(health, HealthPolicy::AllowAll),
        spread,
    })
}

fn locus(value: i32) -> Result<Locus, Unusable> {
    use pb::load_balancing::Scope as Wire;
    let field = "load_balancing.routing_preference";
    Ok(match known(field, value)? {
        Wire::UnspecifiedScope => return Err(Unusable::Unknown { field, value }),
        Wire::Region => Locus::Region,
        Wire::Zone => Locus::Zone,
        Wire::Subzone => Locus::Subzone,
        Wire::Node => Locus::Node,
        Wire::Cluster => Locus::Cluster,
        Wire::Network => Locus::Network,
    })
}

fn ip_families(message: pb::IpFamilies) -> IpFamilies {
    match message {
        pb::IpFamilies::Automatic => IpFamilies::Automatic,
        pb::IpFamilies::Ipv4Only => IpFamilies::V4Only,
        pb::IpFamilies::Ipv6Only => IpFamilies::V6Only,
        pb::IpFamilies::Dual => IpFamilies::Dual,
    }
}
