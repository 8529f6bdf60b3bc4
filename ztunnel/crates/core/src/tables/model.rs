//! What the mesh contains, parsed and checked: workloads, services, policies. Plain values with public fields, shared as
//! `Arc`; owns no index.
//!
//! IP addresses are canonical (never IPv4-mapped). Keys are the resource names of door 3.

use crate::ids::SpiffeId;
use std::net::IpAddr;
use std::sync::Arc;

/// `cluster/group/kind/namespace/name` of a workload, `namespace/hostname` of a service, `namespace/name` of a policy.
pub type Key = Arc<str>;

/// What many workloads have in common: equal ones that came together are one (`share`).
pub type Word = Arc<str>;

/// Services, each with a port mapping.
pub type Memberships = Box<[(Key, Arc<[Port]>)]>;

/// `istio.workload.Workload`.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub uid: Key,
    pub name: Word,
    pub namespace: Word,
    pub identity: SpiffeId,
    pub addresses: Box<[IpAddr]>,
    /// To be resolved by DNS when there is no address.
    pub hostname: Box<str>,
    pub network: Word,
    pub protocol: Protocol,
    pub waypoint: Option<Gateway>,
    pub network_gateway: Option<Gateway>,
    pub node: Word,
    pub canonical_name: Word,
    pub canonical_revision: Word,
    pub workload_type: WorkloadType,
    pub workload_name: Word,
    pub native_tunnel: bool,
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The services that it is an endpoint of, with its own port mapping; sorted by key.
    pub services: Memberships,
    /// Selector-scoped policies that apply here.
    pub authorization_policies: Box<[Key]>,
    /// Policies about whom it may call, judged where it is the client.
    pub egress_policies: Box<[Key]>,
    pub healthy: bool,
    pub cluster_id: Word,
    pub locality: Locality,
    /// Shares its node's IP: not found by IP.
    pub host_network: bool,
    /// Weight in load balancing; 0: never chosen.
    pub capacity: u32,
    /// What it may reach; None: as the tunnel's own setting says.
    pub outbound: Option<Outbound>,
}

/// What becomes of a connection to an address that the mesh does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outbound {
    /// It is passed through.
    #[default]
    AllowAny,
    /// It is refused.
    RegistryOnly,
}

impl Workload {
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Its port mapping as an endpoint of that service.
    pub fn ports_for(&self, service: &str) -> Option<&Arc<[Port]>> {
        let at = self
            .services
            .binary_search_by(|(key, _)| (**key).cmp(service))
            .ok()?;
        Some(&self.services[at].1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Hbone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadType {
    Deployment,
    CronJob,
    Pod,
    Job,
    /// A newer control plane's; only telemetry reads it.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplicationTunnel {
    /// The application wants a PROXY protocol header.
    pub proxy: bool,
    /// Overrides the port of every inbound target.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    pub region: Word,
    pub zone: Word,
    pub subzone: Word,
}

/// A waypoint or a network's gateway: where its HBONE listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub destination: Destination,
    pub hbone_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    Address {
        network: Word,
        ip: IpAddr,
    },
    /// Key of a service.
    Service(Key),
}

/// `istio.workload.Service`.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub key: Key,
    pub name: Box<str>,
    pub namespace: Box<str>,
    pub hostname: Box<str>,
    /// Empty: headless.
    pub vips: Box<[Vip]>,
    pub ports: Arc<[Port]>,
    /// Name → service port, as far as the control plane tells (Istio's does not); only DNS reads it.
    pub port_names: Box<[(Box<str>, u16)]>,
    /// Accepted besides the endpoint's own; what is no identity of the Istio profile was left out (narrower).
    pub subject_alt_names: Box<[SpiffeId]>,
    pub waypoint: Option<Gateway>,
    /// With their weights; they take precedence over `waypoint`.
    pub weighted_waypoints: Box<[(Gateway, u32)]>,
    pub balancing: Balancing,
    pub ip_families: IpFamilies,
    /// Wins among services of one address when none is in the client's namespace.
    pub canonical: bool,
    /// Visible only to clients of its own namespace.
    pub namespace_only: bool,
}

impl Service {
    /// The service port of that name.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        let mut names = self.port_names.iter();
        names
            .find(|(known, _)| **known == *name)
            .map(|(_, port)| *port)
    }
}

/// A virtual IP, or a range of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    pub network: Box<str>,
    pub range: Cidr,
}

/// Host bits are zero; the prefix is at most 32 or 128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    pub ip: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// None: the prefix is longer than the address. An IPv4-mapped range of at least 96 bits becomes the v4 range.
    pub fn new(ip: IpAddr, prefix: u32) -> Option<Self> {
        let (ip, prefix) = match (ip, ip.to_canonical()) {
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) if (96..=128).contains(&prefix) => {
                (v4, prefix - 96)
            }
            _ => (ip, prefix),
        };
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then(|| Self {
            ip: mask(ip, prefix),
            prefix: prefix as u8,
        })
    }

    /// The range of one address.
    pub fn host(ip: IpAddr) -> Self {
        Self {
            ip,
            prefix: if ip.is_ipv4() { 32 } else { 128 },
        }
    }

    /// `ip` is canonical. A v4 address is in no v6 range and the other way round.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.ip.is_ipv4() && mask(ip, self.prefix.into()) == self.ip
    }

    /// Exactly one address.
    pub fn is_host(&self) -> bool {
        *self == Self::host(self.ip)
    }
}

fn mask(ip: IpAddr, prefix: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => (ip.to_bits() & u32::MAX.checked_shl(32 - prefix).unwrap_or(0))
            .to_be_bytes()
            .into(),
        IpAddr::V6(ip) => (ip.to_bits() & u128::MAX.checked_shl(128 - prefix).unwrap_or(0))
            .to_be_bytes()
            .into(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    pub service: u16,
    /// None: a named port; the endpoint says which.
    pub target: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancing {
    pub mode: Mode,
    pub scopes: Box<[Locus]>,
    /// Unhealthy endpoints are chosen like healthy ones.
    pub unhealthy_too: bool,
    pub spread: Spread,
}

impl Balancing {
    /// The scopes that are a matter of place; the network is one of reachability.
    pub fn places(&self) -> impl Iterator<Item = Locus> {
        let places = self.scopes.iter().copied();
        places.filter(|locus| *locus != Locus::Network)
    }
}

/// How endpoints that are equally near share the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// Weighted by capacity.
    #[default]
    Random,
    /// Of two random ones the one with fewer open connections of this node, in proportion to its capacity.
    LeastRequest,
    /// One client address, one endpoint, as long as that can be chosen; capacities do not count.
    ClientAddress,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Standard,
    /// Every scope has to match.
    Strict,
    /// The longest run of leading scopes that match wins.
    Failover,
    /// To the original destination, unbalanced.
    Passthrough,
}

/// What client and endpoint may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locus {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

impl Locus {
    pub fn of(self, workload: &Workload) -> &str {
        match self {
            Self::Region => &workload.locality.region,
            Self::Zone => &workload.locality.zone,
            Self::Subzone => &workload.locality.subzone,
            Self::Node => &workload.node,
            Self::Cluster => &workload.cluster_id,
            Self::Network => &workload.network,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamilies {
    Automatic,
    V4Only,
    V6Only,
    Dual,
}

impl IpFamilies {
    pub fn allows_v4(self) -> bool {
        self != Self::V6Only
    }

    pub fn allows_v6(self) -> bool {
        self != Self::V4Only
    }

    pub fn allows(self, ip: IpAddr) -> bool {
        if ip.is_ipv4() {
            self.allows_v4()
        } else {
            self.allows_v6()
        }
    }
}

/// `istio.security.Authorization`.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub key: Key,
    pub name: Box<str>,
    pub namespace: Box<str>,
    pub scope: Scope,
    pub action: Action,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
    /// Any rule matches: the policy does. No rule: it never does.
    pub rules: Box<[Rule]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Global,
    Namespace,
    /// Only for the workloads that name it.
    WorkloadSelector,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
    /// Decides nothing; what matches is reported.
    Audit,
}

impl Action {
    /// As documents write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        }
    }
}

/// A policy that was refused before any version of it was taken: what it would have governed is closed until it is
/// corrected or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The namespace that it governs as a whole, "" for all of them; None: only workloads that name it.
    pub group: Option<Box<str>>,
    pub why: Box<str>,
}

/// All clauses must match; without one it matches everything.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule(pub Box<[Clause]>);

/// Any match is enough; without one it is true.
#[derive(Clone, Debug, PartialEq)]
pub struct Clause(pub Box<[Match]>);

/// Every attribute must hold; without an attribute it is false (as in Istio).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    pub namespaces: Pair<Text>,
    pub principals: Pair<Text>,
    pub service_accounts: Pair<Account>,
    pub source_ips: Pair<Cidr>,
    pub destination_ips: Pair<Cidr>,
    pub destination_ports: Pair<u16>,
    /// Hostname of the service that was addressed; known on the client's side only.
    pub services: Pair<Text>,
}

/// Holds when (there is no positive value or one matches) and no negative value matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair<T> {
    pub any: Box<[T]>,
    pub none: Box<[T]>,
}

impl<T> Default for Pair<T> {
    fn default() -> Self {
        Self {
            any: Box::default(),
            none: Box::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    /// Anything but the empty text.
    Presence,
}

/// A service account in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub namespace: Box<str>,
    pub name: Box<str>,
}
