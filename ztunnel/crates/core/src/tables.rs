//! The snapshot: everything the tunnel knows of the mesh, immutable, replaced as a whole. Owns the look-ups; not what is
//! decided with them (`decide`, `authz`).
//!
//! `with` builds the next snapshot out of this one and shares with it what did not change.

mod cow;
mod decode;
mod decode_policy;
mod endpoints;
mod hash;
mod index;
mod kept;
mod model;
mod offer;
mod share;
mod tree;
mod words;

pub use endpoints::{Endpoint, Lane, Shape, Stretch};
pub use kept::{Kept, Names};
pub use model::*;
pub use offer::{Offer, Offered};

use bytes::Bytes;
use index::Index;
use kept::Decoded;
use share::Pool;
use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

/// The two types of resource that cross door 3 to the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `type.googleapis.com/istio.workload.Address`
    Address,
    /// `type.googleapis.com/istio.security.Authorization`
    Authorization,
}

/// One snapshot. Cloning costs a dozen atomic increments.
#[derive(Clone, Debug)]
pub struct Tables {
    network: Arc<str>,
    cluster: Arc<str>,
    index: Index,
}

impl Tables {
    /// Nothing known yet. `network`, `cluster`: where this tunnel is.
    pub fn new(network: &str, cluster: &str) -> Self {
        Self {
            network: network.into(),
            cluster: cluster.into(),
            index: Index::default(),
        }
    }

    pub fn network(&self) -> &str {
        &self.network
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The next snapshot, and (name, why) of every refused resource, whose old version stays; a refused policy without one
    /// closes what it would have governed, as far as it says what that is. `upserts`: (resource name,
    /// serialized message). An unknown name in `removed` is no error.
    pub fn with(
        &self,
        kind: Kind,
        upserts: &[(String, Bytes)],
        removed: &[String],
    ) -> (Self, Vec<(String, String)>) {
        let mut next = Draft::of(self);
        let refused = next.change(kind, upserts, removed, || {});
        (next.tables, refused)
    }

    /// The next snapshot from what was kept and decoded already; says of each refused one of which kind it was. In any order.
    pub fn with_kept(
        &self,
        kept: impl Iterator<Item = Kept>,
    ) -> (Self, Vec<(Kind, String, String)>) {
        let (mut next, mut refused) = (self.clone(), Vec::new());
        for part in kept {
            for (name, decoded) in part.resources {
                if let Some(why) = next.take(&name, decoded) {
                    refused.push((part.kind, name, why));
                }
            }
        }
        (next, refused)
    }

    /// Why not; `None`: it is in.
    fn take(&mut self, name: &str, decoded: Decoded) -> Option<String> {
        match decoded {
            Decoded::Address(address) => self.index.put_address(address),
            Decoded::Policy(policy) => self.index.put_policy(policy),
            Decoded::BadAddress(why) => return Some(why.to_string()),
            Decoded::BadPolicy(why, closes) => {
                self.index.refuse_policy(name, closes);
                return Some(why.to_string());
            }
        }
        None
    }

    /// Frees what no other snapshot has, a small part at a time. `pause` is called between them.
    pub fn dismantle(self, pause: impl FnMut()) {
        self.index.dismantle(pause);
    }

    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.index.workloads.get(uid)
    }

    /// Of several with one address: a pod with a tunnel, a pod, one with a tunnel, any. `ip` is canonical.
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let owners = self.index.by_ip.get(&ip);
        owners.iter().find(|workload| *workload.network == *network)
    }

    /// One of this cluster before one of another.
    pub fn workload_by_name(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        let named = self.index.by_name.get(name).iter();
        let here = named.filter(|workload| *workload.namespace == *namespace);
        here.min_by_key(|workload| *workload.cluster_id != *self.cluster)
    }

    /// `key`: `namespace/hostname`.
    pub fn service(&self, key: &str) -> Option<&Arc<Service>> {
        self.index.services.get(key)
    }

    /// The service of a virtual IP as a client in `client_namespace` sees it: an exact address before ranges. `ip` is
    /// canonical.
    pub fn service_by_vip(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<Service>> {
        let host = Cidr::host(ip);
        let exact = self.owners(network, host);
        nearest(exact, client_namespace)
            .or_else(|| self.service_by_range(network, ip, client_namespace))
    }

    /// The order of ranges is Istio's: own namespace, then the longest prefix, then canonical.
    fn service_by_range(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<Service>> {
        let prefixes = self.index.range_prefixes(ip.is_ipv4());
        let of_prefix = |prefix| {
            let range = Cidr::new(ip, u32::from(prefix))?;
            nearest(self.owners(network, range), client_namespace).map(|service| (prefix, service))
        };
        let best = prefixes.filter_map(of_prefix);
        let rank = |(prefix, service): &(u8, &Arc<Service>)| {
            (*service.namespace != *client_namespace, Reverse(*prefix))
        };
        best.min_by_key(rank).map(|(_, service)| service)
    }

    fn owners(&self, network: &str, range: Cidr) -> impl Iterator<Item = &Arc<Service>> {
        let owns = move |vip: &Vip| *vip.network == *network && vip.range == range;
        let group = self.index.by_vip.get(&range).iter();
        group.filter(move |service| service.vips.iter().any(owns))
    }

    /// The service of a hostname as a client in `client_namespace` sees it. `hostname` is lower case.
    pub fn service_by_host(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        nearest(self.index.by_host.get(hostname).iter(), client_namespace)
    }

    /// Every service of a hostname, by key. `hostname` is lower case.
    pub fn services_by_host(&self, hostname: &str) -> &[Arc<Service>] {
        self.index.by_host.get(hostname)
    }

    /// Endpoints of a service by their uid, healthy or not, whether the service has arrived or not.
    pub fn endpoints(&self, service: &str) -> impl Iterator<Item = &Endpoint> + Clone {
        self.index
            .endpoints
            .get(service)
            .into_iter()
            .flat_map(|set| set.iter())
    }

    /// Those of a service that may be chosen, by what they have alike.
    pub fn lanes(&self, service: &str) -> &[Lane] {
        let endpoints = self.index.endpoints.get(service);
        endpoints.map_or(&[], |endpoints| endpoints.lanes())
    }

    /// Those of a service's lane that share the first `depth` places of its balancing with `from`.
    pub fn stretch<'a>(
        &'a self,
        service: &str,
        lane: &'a Lane,
        depth: usize,
        from: &'a Workload,
    ) -> Option<Stretch<'a>> {
        let endpoints = self.index.endpoints.get(service)?;
        Some(endpoints.stretch(lane, depth, from))
    }

    /// What is to be asked before somebody may reach this workload: global and namespace policies and those it names.
    /// Err: the name of one that has not arrived or was refused.
    pub fn policies_for<'a>(
        &'a self,
        to: &'a Workload,
    ) -> impl Iterator<Item = Result<&'a Arc<Policy>, &'a Key>> {
        let global = self.index.policies_by_namespace.get("").iter();
        let local = self.index.policies_by_namespace.get(&*to.namespace).iter();
        let applies = |refused: &Refused| {
            let group = refused.group.as_deref();
            group.is_some_and(|group| group.is_empty() || *group == *to.namespace)
        };
        let refused = self.index.refused.iter();
        let closed = refused.filter(move |(_, refused)| applies(refused));
        global
            .chain(local)
            .map(Ok)
            .chain(closed.map(|(key, _)| Err(key)))
            .chain(self.named(&to.authorization_policies))
    }

    /// What is to be asked before this workload may call somebody.
    pub fn egress_policies_for<'a>(
        &'a self,
        from: &'a Workload,
    ) -> impl Iterator<Item = Result<&'a Arc<Policy>, &'a Key>> {
        self.named(&from.egress_policies)
    }

    fn named<'a>(
        &'a self,
        keys: &'a [Key],
    ) -> impl Iterator<Item = Result<&'a Arc<Policy>, &'a Key>> {
        keys.iter().map(|key| self.policy(key).ok_or(key))
    }

    /// Why there is no version of this policy; None: there is one, or none was ever pushed.
    pub fn refusal(&self, key: &str) -> Option<&Refused> {
        self.index.refused.get(key)
    }

    pub fn refusals(&self) -> impl Iterator<Item = (&Key, &Refused)> {
        self.index.refused.iter()
    }

    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.index.policies.get(key)
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.index.workloads.values()
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.index.services.values()
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.index.policies.values()
    }
}

/// A snapshot that is being made and that nobody looks at yet: what it shares with the one in force is copied once,
/// however many pushes go into it.
pub struct Draft {
    tables: Tables,
    pool: Pool,
}

impl Draft {
    pub fn of(tables: &Tables) -> Self {
        Self {
            tables: tables.clone(),
            pool: Pool::default(),
        }
    }

    /// As `Tables::with`. `pause` is called between resources.
    pub fn change<N: AsRef<str>, B: AsRef<[u8]>>(
        &mut self,
        kind: Kind,
        upserts: &[(N, B)],
        removed: &[String],
        mut pause: impl FnMut(),
    ) -> Vec<(String, String)> {
        for name in removed {
            match kind {
                Kind::Address => self.tables.index.remove_address(name),
                Kind::Authorization => self.tables.index.remove_policy(name),
            }
            pause();
        }
        let mut refused = Vec::new();
        for (name, bytes) in upserts {
            let name = name.as_ref();
            let decoded = Decoded::of(kind, name, bytes.as_ref(), &mut self.pool);
            let why = self.tables.take(name, decoded);
            refused.extend(why.map(|why| (name.to_owned(), why)));
            pause();
        }
        refused
    }

    pub fn done(self) -> Tables {
        self.tables
    }
}

/// Of the visible ones: the client's own namespace, then the canonical one, then the first by key.
pub(crate) fn nearest<'a>(
    services: impl Iterator<Item = &'a Arc<Service>>,
    client_namespace: &str,
) -> Option<&'a Arc<Service>> {
    let foreign = |service: &Service| *service.namespace != *client_namespace;
    let visible = services.filter(|service| !(service.namespace_only && foreign(service)));
    visible.min_by_key(|service| (foreign(service), !service.canonical))
}

#[cfg(test)]
pub(crate) use tree::visits;

#[cfg(test)]
mod tests;
