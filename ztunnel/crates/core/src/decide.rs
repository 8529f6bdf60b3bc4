//! Where a connection goes: out of a pod (`route`), into one (`inbound_target`). Owns the choice and its reason, which
//! is part of the answer; dials nothing.

mod candidates;
mod inbound;
mod pick;
mod waypoint;

pub use candidates::candidates;
pub use inbound::{Refused, Target, Unfit, inbound_target};

use crate::addr::{self, DialAddr, HBONE_PORT, OrigDst};
use crate::ids::SpiffeId;
use crate::tables::{Gateway, Key, Mode, Outbound, Protocol, Service, Tables, Word, Workload};
pub(crate) use pick::target_port;
use pick::{Nobody, Picked, Place, Want, Whom, pick};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// What a choice depends on besides the tables.
pub struct Circumstances<'a> {
    /// Decides among equals.
    pub random: u64,
    pub client: IpAddr,
    /// The uids of those that were dialled for this connection in vain.
    pub tried: &'a [Key],
    /// How many connections are open to a workload from here.
    pub load: &'a dyn Fn(&Workload) -> usize,
    /// The addresses of a DNS name; empty: it has none; None: nobody has looked it up yet.
    pub names: &'a dyn Fn(&str) -> Option<Arc<[IpAddr]>>,
    /// For workloads that have no policy of their own.
    pub outbound: Outbound,
}

impl Circumstances<'_> {
    /// The first attempt, nothing else being known.
    pub fn first(random: u64) -> Self {
        Self {
            random,
            client: Ipv4Addr::UNSPECIFIED.into(),
            tried: &[],
            load: &|_| 0,
            names: &|_| None,
            outbound: Outbound::AllowAny,
        }
    }
}

/// The way out for one connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// CONNECT `authority` inside a tunnel to `dial`, whose end must prove one of `want`.
    Tunnel {
        dial: DialAddr,
        authority: String,
        want: Vec<SpiffeId>,
        /// Who is at the other end of the tunnel: the destination or its waypoint.
        upstream: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
        /// The end of this tunnel is the gateway of another network: inside the stream there is a second tunnel, to the
        /// same authority.
        beyond: Option<Beyond>,
    },
    /// Plain TCP: the destination is not in the mesh.
    Passthrough {
        dial: DialAddr,
        because: NotMesh,
        upstream: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
    },
    /// The endpoint is known by name only: to be asked again when `Circumstances::names` knows it.
    Lookup {
        hostname: Box<str>,
    },
    Refused {
        why: Refusal,
    },
}

impl Route {
    /// Whose tunnel, or whose port, is dialled. None: nobody that the mesh knows.
    pub fn dialled(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Tunnel {
                beyond: Some(beyond),
                ..
            } => Some(&beyond.gateway),
            Self::Tunnel { upstream, .. } | Self::Passthrough { upstream, .. } => upstream.as_ref(),
            Self::Lookup { .. } | Self::Refused { .. } => None,
        }
    }
}

/// The far end behind a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Beyond {
    pub gateway: Arc<Workload>,
    /// Whom the inner tunnel's end must prove to be.
    pub want: Vec<SpiffeId>,
}

/// Why a connection leaves in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMesh {
    #[error("the destination is no address of the mesh")]
    UnknownAddress,
    #[error("the destination workload has no tunnel")]
    WithoutTunnel,
    #[error("the service asks for its connections to be passed through")]
    PassthroughService,
}

/// Why a connection has no way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0} is a port of the tunnel itself: a loop")]
    OwnPort(SocketAddr),
    #[error("service {service} has no port {port}")]
    NoSuchPort { service: Key, port: u16 },
    #[error("service {0} has no healthy endpoint")]
    NoHealthyUpstream(Key),
    #[error("service {0} has no healthy endpoint near enough for its STRICT load balancing")]
    NoneInScope(Key),
    #[error("{0} is in network {1}, to which no gateway is known")]
    RemoteNetwork(Key, Word),
    #[error(
        "service {0} is in another network and names no identities (subjectAltNames), so nobody there can be trusted"
    )]
    NobodyToTrust(Key),
    #[error("the endpoints of {0} have no IP address of a suitable family")]
    NoAddress(Key),
    #[error("{hostname}, an endpoint of {service}, cannot be resolved")]
    Unresolvable { service: Key, hostname: Box<str> },
    #[error("service {0} has no further endpoint to try")]
    AllTried(Key),
    #[error("{0} is no address of the mesh, and the outbound policy REGISTRY_ONLY allows no other")]
    NotRegistered(SocketAddr),
    #[error("waypoint {waypoint} of {destination} is not known")]
    UnknownWaypoint { waypoint: String, destination: Key },
    #[error("waypoint {waypoint} of {destination} does not speak HBONE")]
    WaypointWithoutTunnel { waypoint: String, destination: Key },
}

impl Refusal {
    /// Somebody does not want it, as opposed to: it cannot be done.
    pub fn is_policy(&self) -> bool {
        matches!(self, Self::NotRegistered(_))
    }
}

/// The first choice, nothing else being known but a random number.
pub fn route(tables: &Tables, from: &Workload, dst: OrigDst, random: u64) -> Route {
    choose(tables, from, dst, &Circumstances::first(random))
}

/// Chooses the way out: the workload of the address, else the service, else plaintext. Total; O(log endpoints).
pub fn choose(tables: &Tables, from: &Workload, dst: OrigDst, around: &Circumstances<'_>) -> Route {
    let dst = addr::canonical(dst.0);
    let here = addr::is_own_host(dst.ip()) || from.addresses.contains(&dst.ip());
    if here && addr::is_illegal(dst.port()) {
        return Route::Refused {
            why: Refusal::OwnPort(dst),
        };
    }
    let asked = Asked {
        tables,
        from,
        dst,
        around,
    };
    let found = if let Some(workload) = tables.workload_by_ip(tables.network(), dst.ip()) {
        asked.to_workload(workload)
    } else if let Some(service) = tables.service_by_vip(tables.network(), dst.ip(), &from.namespace)
    {
        asked.to_service(service)
    } else if from.outbound.unwrap_or(around.outbound) == Outbound::RegistryOnly {
        Err(Refusal::NotRegistered(dst).into())
    } else {
        Ok(plain(dst, NotMesh::UnknownAddress, None, None))
    };
    found.unwrap_or_else(|otherwise| otherwise.into())
}

/// One connection that looks for its way.
struct Asked<'a> {
    tables: &'a Tables,
    from: &'a Workload,
    dst: SocketAddr,
    around: &'a Circumstances<'a>,
}

/// There is no route, or not yet.
enum Otherwise {
    Refused(Refusal),
    Lookup(Box<str>),
}

impl From<Refusal> for Otherwise {
    fn from(why: Refusal) -> Self {
        Self::Refused(why)
    }
}

impl From<Otherwise> for Route {
    fn from(otherwise: Otherwise) -> Self {
        match otherwise {
            Otherwise::Refused(why) => Self::Refused { why },
            Otherwise::Lookup(hostname) => Self::Lookup { hostname },
        }
    }
}

impl<'a> Asked<'a> {
    fn to_workload(&self, workload: &'a Arc<Workload>) -> Result<Route, Otherwise> {
        match &workload.waypoint {
            Some(gateway) if !waypoint::is_it(self.tables, self.from, gateway) => {
                self.through(gateway, &workload.uid, None)
            }
            _ => Ok(direct(workload, self.dst, None)),
        }
    }

    /// A workload's own waypoint is not asked for what is addressed to a service (Istio's rule).
    fn to_service(&self, service: &'a Arc<Service>) -> Result<Route, Otherwise> {
        let gateway = waypoint::of_service(service, scramble(self.around.random));
        if let Some(gateway) =
            gateway.filter(|_| !waypoint::serves(self.tables, self.from, service))
        {
            return self.through(gateway, &service.key, Some(service));
        }
        if service.balancing.mode == Mode::Passthrough {
            return Ok(plain(
                self.dst,
                NotMesh::PassthroughService,
                None,
                Some(service),
            ));
        }
        let found = self.pick(service, self.dst.port(), Whom::Endpoint)?;
        match found.at {
            Place::Ip(ip) => {
                let to = SocketAddr::new(ip, found.port);
                Ok(direct(&found.endpoint.workload, to, Some(service)))
            }
            Place::Beyond => self.beyond(service, &found.endpoint.workload),
            Place::Unresolved(hostname) => Err(Otherwise::Lookup(hostname)),
        }
    }

    fn pick(
        &self,
        service: &'a Arc<Service>,
        port: u16,
        whom: Whom,
    ) -> Result<Picked<'a>, Otherwise> {
        let want = Want {
            from: self.from,
            service,
            port,
            v4: self.dst.is_ipv4(),
            whom,
        };
        let found = pick(self.tables, want, self.around);
        found.map_err(|nobody| picked(service, port, nobody).into())
    }

    /// Through the gateway of the endpoint's network. Which endpoint it becomes there, the other side decides, so only
    /// the identities that the service names can be expected.
    fn beyond(
        &self,
        service: &'a Arc<Service>,
        endpoint: &Arc<Workload>,
    ) -> Result<Route, Otherwise> {
        let Some(gateway) = &endpoint.network_gateway else {
            let network = endpoint.network.clone();
            return Err(Refusal::RemoteNetwork(service.key.clone(), network).into());
        };
        if service.subject_alt_names.is_empty() {
            return Err(Refusal::NobodyToTrust(service.key.clone()).into());
        }
        let hop = waypoint::resolve(self, gateway, &service.key, Whom::Gateway)?;
        Ok(Route::Tunnel {
            dial: DialAddr(hop.dial),
            authority: format!("{}:{}", service.hostname, self.dst.port()),
            want: identities(hop.workload, hop.service),
            upstream: Some(endpoint.clone()),
            service: Some(service.clone()),
            beyond: Some(Beyond {
                gateway: hop.workload.clone(),
                want: service.subject_alt_names.to_vec(),
            }),
        })
    }

    /// The waypoint is told the original destination and decides itself.
    fn through(
        &self,
        gateway: &Gateway,
        destination: &Key,
        service: Option<&Arc<Service>>,
    ) -> Result<Route, Otherwise> {
        let hop = waypoint::resolve(self, gateway, destination, Whom::Waypoint)?;
        Ok(Route::Tunnel {
            dial: DialAddr(hop.dial),
            authority: self.dst.to_string(),
            want: identities(hop.workload, hop.service),
            upstream: Some(hop.workload.clone()),
            service: service.cloned(),
            beyond: None,
        })
    }
}

fn direct(workload: &Arc<Workload>, to: SocketAddr, service: Option<&Arc<Service>>) -> Route {
    if workload.protocol == Protocol::Tcp {
        return plain(to, NotMesh::WithoutTunnel, Some(workload), service);
    }
    Route::Tunnel {
        dial: DialAddr(SocketAddr::new(to.ip(), HBONE_PORT)),
        authority: to.to_string(),
        want: identities(workload, service),
        upstream: Some(workload.clone()),
        service: service.cloned(),
        beyond: None,
    }
}

fn plain(
    to: SocketAddr,
    because: NotMesh,
    upstream: Option<&Arc<Workload>>,
    service: Option<&Arc<Service>>,
) -> Route {
    Route::Passthrough {
        dial: DialAddr(to),
        because,
        upstream: upstream.cloned(),
        service: service.cloned(),
    }
}

/// Its own first, then what the service it was found by accepts besides.
fn identities(workload: &Workload, service: Option<&Arc<Service>>) -> Vec<SpiffeId> {
    let besides = service.map_or(&[][..], |service| &service.subject_alt_names);
    let mut all = Vec::with_capacity(1 + besides.len());
    all.push(workload.identity.clone());
    all.extend(
        besides
            .iter()
            .filter(|id| **id != workload.identity)
            .cloned(),
    );
    all
}

fn picked(service: &Service, port: u16, nobody: Nobody) -> Refusal {
    let key = service.key.clone();
    match nobody {
        Nobody::NoSuchPort => Refusal::NoSuchPort { service: key, port },
        Nobody::Unhealthy => Refusal::NoHealthyUpstream(key),
        Nobody::OutOfScope => Refusal::NoneInScope(key),
        Nobody::NoAddress => Refusal::NoAddress(key),
        Nobody::Remote(network) => Refusal::RemoteNetwork(key, network),
        Nobody::Unresolvable(hostname) => Refusal::Unresolvable {
            service: key,
            hostname,
        },
        Nobody::AllTried => Refusal::AllTried(key),
    }
}

/// A second random number out of the first (splitmix64), so that waypoint and endpoint are chosen independently.
fn scramble(random: u64) -> u64 {
    let mixed = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
