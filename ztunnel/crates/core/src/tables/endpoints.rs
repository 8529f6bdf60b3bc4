//! The endpoints of one service, arranged so that one of them is picked without looking at all. Owns the arrangement; which
//! lanes and which rung suit a connection is `decide`'s.
//!
//! *Lane*: endpoints that suit the same clients and ports. *Rung*: how many leading scopes client and endpoint share.

use super::hash::mixed;
use super::model::*;
use super::tree::{Tree, Weighed};
use std::cmp::Ordering;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;

/// A workload as an endpoint of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    /// Its own port mapping, which goes before the service's.
    pub ports: Arc<[Port]>,
    /// Its place on the ring of hashes.
    on_ring: u64,
}

impl Weighed for Endpoint {
    fn weight(&self) -> u64 {
        self.workload.capacity.into()
    }

    /// Not the order's hash: a tree whose priorities follow its order is a list.
    fn priority(&self) -> u64 {
        mixed(self.on_ring)
    }
}

impl Endpoint {
    pub(super) fn new(workload: Arc<Workload>, ports: Arc<[Port]>) -> Self {
        let on_ring = hash(&workload.uid);
        Self {
            workload,
            ports,
            on_ring,
        }
    }
}

/// Without a random key: the same on every node and after every restart, and from version to version.
fn hash(of: impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(of)
}

/// What endpoints must have alike to be interchangeable for one connection, but for their place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub network: Word,
    pub v4: bool,
    pub v6: bool,
    /// Without an address, to be looked up by name.
    pub named: bool,
    /// Reachable from other networks through their gateway.
    pub gateway: bool,
    pub application_tunnel: bool,
    /// The service ports for which they have a number of their own. Sorted.
    pub ports: Box<[u16]>,
}

impl Shape {
    pub fn of(endpoint: &Endpoint) -> Self {
        let workload = &*endpoint.workload;
        let mut ports: Box<[u16]> = endpoint
            .ports
            .iter()
            .filter_map(|port| port.target.map(|_| port.service))
            .collect();
        ports.sort_unstable();
        Self {
            network: workload.network.clone(),
            v4: workload.addresses.iter().any(|ip| ip.is_ipv4()),
            v6: workload.addresses.iter().any(|ip| ip.is_ipv6()),
            named: workload.addresses.is_empty() && !workload.hostname.is_empty(),
            gateway: workload.network_gateway.is_some(),
            application_tunnel: workload.application_tunnel.is_some(),
            ports,
        }
    }
}

/// Endpoints of one shape that may be chosen: healthy (unless the service takes all) and with a capacity.
#[derive(Clone, Debug)]
pub struct Lane {
    pub shape: Shape,
    /// By place and uid. One per number of shared scopes where clients stick to their endpoint, because then the order
    /// behind the shared scopes is a hash's; else one, in which each such group is a stretch.
    trees: Box<[Tree<Endpoint>]>,
}

/// Part of a lane: those endpoints that share the asked scopes with the client.
#[derive(Clone, Copy)]
pub struct Stretch<'a> {
    tree: &'a Tree<Endpoint>,
    scopes: &'a [Locus],
    from: &'a Workload,
    first: u64,
    pub weight: u64,
}

impl<'a> Stretch<'a> {
    /// `weight` is below this stretch's.
    pub fn at(&self, weight: u64) -> Option<&'a Endpoint> {
        self.tree.at(self.first + weight)
    }

    /// Who comes next on the ring of hashes, and how far that is.
    pub fn next_on_ring(&self, at: u64) -> Option<(u64, &'a Endpoint)> {
        let before = |endpoint: &Endpoint| match place(self.scopes, self.from, endpoint) {
            Ordering::Equal => endpoint.on_ring < at,
            other => other.is_lt(),
        };
        let inside = |endpoint: &&'a Endpoint| place(self.scopes, self.from, endpoint).is_eq();
        let next = self.tree.first_after(before).filter(inside);
        let found = next.or_else(|| self.at(0))?;
        Some((found.on_ring.wrapping_sub(at), found))
    }

    /// In order; O(log endpoints) each.
    pub fn iter(&self) -> impl Iterator<Item = &'a Endpoint> {
        let (stretch, mut weight) = (*self, 0);
        std::iter::from_fn(move || {
            let inside = weight < stretch.weight;
            let found = inside.then(|| stretch.at(weight)).flatten()?;
            weight += found.weight();
            Some(found)
        })
    }
}

/// Where the endpoint lies as seen from those that share these scopes with `from`.
fn place(scopes: &[Locus], from: &Workload, endpoint: &Endpoint) -> Ordering {
    let compare = |locus: &Locus| locus.of(&endpoint.workload).cmp(locus.of(from));
    scopes
        .iter()
        .map(compare)
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// How the lanes of one service are built: the service's balancing, as far as it matters to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Those that are not the lane's own, the network.
    scopes: Box<[Locus]>,
    unhealthy_too: bool,
    sticky: bool,
}

impl Plan {
    fn of(balancing: &Balancing) -> Self {
        let scopes = match balancing.mode {
            Mode::Strict | Mode::Failover => balancing.places().collect(),
            Mode::Standard | Mode::Passthrough => Box::default(),
        };
        Self {
            scopes,
            unhealthy_too: balancing.unhealthy_too,
            sticky: balancing.spread == Spread::ClientAddress,
        }
    }

    fn takes(&self, workload: &Workload) -> bool {
        let reachable = !workload.addresses.is_empty()
            || !workload.hostname.is_empty()
            || workload.network_gateway.is_some();
        workload.capacity > 0 && reachable && (workload.healthy || self.unhealthy_too)
    }

    fn depths(&self) -> std::ops::RangeInclusive<usize> {
        let deepest = self.scopes.len();
        if self.sticky {
            0..=deepest
        } else {
            deepest..=deepest
        }
    }

    /// By the first `depth` scopes, then as on the ring.
    fn order(&self, depth: usize) -> impl Fn(&Endpoint, &Endpoint) -> Ordering {
        let scopes = &self.scopes[..depth];
        move |a, b| {
            let ring = || (a.on_ring, &a.workload.uid).cmp(&(b.on_ring, &b.workload.uid));
            place(scopes, &b.workload, a).then_with(ring)
        }
    }
}

/// All endpoints of a service, and those that may be chosen.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    all: Tree<Endpoint>,
    plan: Plan,
    /// Sorted by shape; none is empty.
    lanes: Arc<Vec<Lane>>,
}

impl Endpoints {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// By uid.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> + Clone {
        self.all.iter()
    }

    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Those of the lane that share the first `depth` places with the client.
    pub(super) fn stretch<'a>(
        &'a self,
        lane: &'a Lane,
        depth: usize,
        from: &'a Workload,
    ) -> Stretch<'a> {
        let tree = &lane.trees[if self.plan.sticky { depth } else { 0 }];
        let scopes = &self.plan.scopes[..depth];
        let first = tree.weight_while(|endpoint| place(scopes, from, endpoint).is_lt());
        let end = tree.weight_while(|endpoint| place(scopes, from, endpoint).is_le());
        Stretch {
            tree,
            scopes,
            from,
            first,
            weight: end - first,
        }
    }

    pub(super) fn is_arranged_for(&self, balancing: &Balancing) -> bool {
        self.plan == Plan::of(balancing)
    }

    /// O(endpoints) if the balancing has changed, else O(1).
    pub(super) fn arrange(&mut self, balancing: &Balancing) {
        let plan = Plan::of(balancing);
        if plan == self.plan {
            return;
        }
        self.plan = plan;
        self.lanes = Arc::default();
        let all = self.all.clone();
        all.iter().for_each(|endpoint| self.enter(endpoint));
    }

    pub(super) fn put(&mut self, endpoint: Endpoint) {
        self.enter(&endpoint);
        let by_uid = |a: &Endpoint, b: &Endpoint| a.workload.uid.cmp(&b.workload.uid);
        self.all.insert(endpoint, &by_uid);
    }

    pub(super) fn remove(&mut self, old: &Endpoint) {
        let uid = &old.workload.uid;
        self.all
            .remove(&|other: &Endpoint| other.workload.uid.cmp(uid));
        let shape = Shape::of(old);
        let Ok(at) = self.lanes.binary_search_by(|lane| lane.shape.cmp(&shape)) else {
            return;
        };
        let lanes = Arc::make_mut(&mut self.lanes);
        for (tree, depth) in lanes[at].trees.iter_mut().zip(self.plan.depths()) {
            let order = self.plan.order(depth);
            tree.remove(&|other: &Endpoint| order(other, old));
        }
        lanes.retain(|lane| !lane.trees[0].is_empty());
    }

    fn enter(&mut self, endpoint: &Endpoint) {
        if !self.plan.takes(&endpoint.workload) {
            return;
        }
        let shape = Shape::of(endpoint);
        let lanes = Arc::make_mut(&mut self.lanes);
        let at = lanes
            .binary_search_by(|lane| lane.shape.cmp(&shape))
            .unwrap_or_else(|at| {
                let trees = self.plan.depths().map(|_| Tree::default()).collect();
                lanes.insert(at, Lane { shape, trees });
                at
            });
        for (tree, depth) in lanes[at].trees.iter_mut().zip(self.plan.depths()) {
            tree.insert(endpoint.clone(), &self.plan.order(depth));
        }
    }
}
