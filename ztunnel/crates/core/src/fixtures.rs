//! For tests: resources as a control plane would write them, and dice that fall the same way every time.

use crate::tables::{Kind, Tables, Workload};
use crate::wire::{security as sec, workload as pb};
use bytes::Bytes;
use prost::Message;
use std::net::IpAddr;
use std::sync::Arc;

/// What can be pushed: its type, its name, its bytes.
pub(crate) trait Resource {
    fn kind(&self) -> Kind;
    fn name(&self) -> String;
    fn bytes(&self) -> Bytes;

    fn entry(&self) -> (String, Bytes) {
        (self.name(), self.bytes())
    }
}

impl Resource for pb::Workload {
    fn kind(&self) -> Kind {
        Kind::Address
    }
    fn name(&self) -> String {
        self.uid.clone()
    }
    fn bytes(&self) -> Bytes {
        let r#type = Some(pb::address::Type::Workload(self.clone()));
        pb::Address { r#type }.encode_to_vec().into()
    }
}

impl Resource for pb::Service {
    fn kind(&self) -> Kind {
        Kind::Address
    }
    fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }
    fn bytes(&self) -> Bytes {
        let r#type = Some(pb::address::Type::Service(self.clone()));
        pb::Address { r#type }.encode_to_vec().into()
    }
}

impl Resource for sec::Authorization {
    fn kind(&self) -> Kind {
        Kind::Authorization
    }
    fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
    fn bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}

/// A mesh of network "" and cluster Kubernetes that has taken all of these.
pub(crate) fn mesh(resources: &[&dyn Resource]) -> Tables {
    resources
        .iter()
        .fold(Tables::new("", "Kubernetes"), |tables, resource| {
            push(&tables, *resource)
        })
}

/// The next snapshot, in which the resource was taken.
pub(crate) fn push(tables: &Tables, resource: &dyn Resource) -> Tables {
    let (next, refused) = tables.with(resource.kind(), &[resource.entry()], &[]);
    assert_eq!(refused, []);
    next
}

/// Why a resource is refused.
pub(crate) fn refusal(tables: &Tables, resource: &dyn Resource) -> String {
    let (_, mut refused) = tables.with(resource.kind(), &[resource.entry()], &[]);
    let (name, why) = refused.pop().expect("a refusal");
    assert_eq!(name, resource.name());
    why
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn packed(text: &str) -> Vec<u8> {
    match ip(text) {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

/// A healthy pod with a tunnel; `path`: NAMESPACE/NAME, its service account is its name up to the last hyphen.
pub(crate) fn pod(path: &str, address: &str) -> pb::Workload {
    let (namespace, name) = path.split_once('/').unwrap();
    pb::Workload {
        uid: uid(path),
        name: name.into(),
        namespace: namespace.into(),
        service_account: name
            .rsplit_once('-')
            .map_or(name, |(account, _)| account)
            .into(),
        addresses: vec![packed(address).into()],
        tunnel_protocol: pb::TunnelProtocol::Hbone.into(),
        ..Default::default()
    }
}

pub(crate) fn uid(path: &str) -> String {
    format!("Kubernetes//Pod/{path}")
}

pub(crate) fn spiffe(path: &str) -> String {
    let (namespace, account) = path.split_once('/').unwrap();
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

impl pb::Workload {
    /// Makes it an endpoint of the service with these (service, target) ports.
    pub(crate) fn serving(mut self, service: &str, ports: &[(u32, u32)]) -> Self {
        self.services.insert(
            service.into(),
            pb::PortList {
                ports: port_list(ports),
            },
        );
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// `key`: NAMESPACE/HOSTNAME.
pub(crate) fn service(key: &str, vips: &[&str], ports: &[(u32, u32)]) -> pb::Service {
    let (namespace, hostname) = key.split_once('/').unwrap();
    pb::Service {
        name: hostname.split('.').next().unwrap_or(hostname).into(),
        namespace: namespace.into(),
        hostname: hostname.into(),
        addresses: vips.iter().map(|text| vip(text)).collect(),
        ports: port_list(ports),
        ..Default::default()
    }
}

impl pb::Service {
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// `IP` or `IP/PREFIX`.
fn vip(text: &str) -> pb::NetworkAddress {
    let (address, length) = text
        .split_once('/')
        .map_or((text, None), |(ip, n)| (ip, n.parse().ok()));
    pb::NetworkAddress {
        network: String::new(),
        address: packed(address).into(),
        length,
    }
}

fn port_list(ports: &[(u32, u32)]) -> Vec<pb::Port> {
    let port = |(service_port, target_port): &(u32, u32)| pb::Port {
        service_port: *service_port,
        target_port: *target_port,
        app_protocol: 0,
    };
    ports.iter().map(port).collect()
}

pub(crate) fn gateway_at(address: &str) -> Option<pb::GatewayAddress> {
    let destination = Some(pb::gateway_address::Destination::Address(vip(address)));
    Some(pb::GatewayAddress {
        destination,
        hbone_mtls_port: 15008,
    })
}

/// `key`: NAMESPACE/HOSTNAME.
pub(crate) fn gateway_named(key: &str) -> Option<pb::GatewayAddress> {
    let (namespace, hostname) = key.split_once('/').unwrap();
    let name = pb::NamespacedHostname {
        namespace: namespace.into(),
        hostname: hostname.into(),
    };
    let destination = Some(pb::gateway_address::Destination::Hostname(name));
    Some(pb::GatewayAddress {
        destination,
        hbone_mtls_port: 15008,
    })
}

/// One rule of one clause of these matches; in its namespace.
pub(crate) fn policy(
    key: &str,
    action: sec::Action,
    matches: Vec<sec::Match>,
) -> sec::Authorization {
    let (namespace, name) = key.split_once('/').unwrap();
    sec::Authorization {
        name: name.into(),
        namespace: namespace.into(),
        scope: sec::Scope::Namespace.into(),
        action: action.into(),
        rules: vec![sec::Rule {
            clauses: vec![sec::Clause { matches }],
        }],
        ..Default::default()
    }
}

impl sec::Authorization {
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

pub(crate) fn exact(text: &str) -> sec::StringMatch {
    sec::StringMatch {
        match_type: Some(sec::string_match::MatchType::Exact(text.into())),
    }
}

/// One of our extensions of Workload and Service.
pub(crate) fn extension(name: &str, value: &str) -> pb::Extension {
    let config = prost_types::Any {
        type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
        value: value.to_owned().encode_to_vec(),
    };
    pb::Extension {
        name: name.into(),
        config: Some(config),
    }
}

pub(crate) fn workload<'a>(tables: &'a Tables, path: &str) -> &'a Arc<Workload> {
    tables.workload(&uid(path)).unwrap()
}

/// splitmix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    pub(crate) fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// Up to `most` of them.
    pub(crate) fn some<T: Clone>(&mut self, all: &[T], most: usize) -> Vec<T> {
        let count = self.below(most + 1);
        (0..count).map(|_| self.of(all)).collect()
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}
