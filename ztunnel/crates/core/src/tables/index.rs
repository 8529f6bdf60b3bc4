//! The maps behind a snapshot and how they change together. Owns their consistency: every index says the same as the
//! primary maps, in whatever order resources came.

use super::cow::{CowMap, Groups};
use super::decode::Address;
use super::endpoints::{Endpoint, Endpoints};
use super::model::*;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) workloads: CowMap<Key, Arc<Workload>>,
    pub(super) by_ip: Groups<IpAddr, Arc<Workload>>,
    pub(super) by_name: Groups<Word, Arc<Workload>>,
    pub(super) services: CowMap<Key, Arc<Service>>,
    pub(super) by_vip: Groups<Cidr, Arc<Service>>,
    /// Lower case.
    pub(super) by_host: Groups<Box<str>, Arc<Service>>,
    /// How many virtual IPs are ranges of (v4?, prefix): the prefixes worth probing.
    ranges: Arc<BTreeMap<(bool, u8), usize>>,
    /// By service key, also of services that have not arrived.
    pub(super) endpoints: CowMap<Key, Endpoints>,
    pub(super) policies: CowMap<Key, Arc<Policy>>,
    /// Global ones under "". Selector-scoped ones are not here.
    pub(super) policies_by_namespace: Groups<Box<str>, Arc<Policy>>,
    /// Policies without any version that was taken. Few, normally none.
    pub(super) refused: Arc<BTreeMap<Key, Refused>>,
}

impl Index {
    pub(super) fn put_address(&mut self, address: Address) {
        match address {
            Address::Workload(new) => {
                match self.workloads.get(&*new.uid) {
                    Some(old) if **old == new => return,
                    Some(_) => self.remove_workload(&new.uid.clone()),
                    None => self.remove_service(&new.uid.clone()),
                }
                self.add_workload(Arc::new(new));
            }
            Address::Service(new) => {
                if self.services.get(&*new.key).is_none_or(|old| **old != new) {
                    self.remove_address(&new.key.clone());
                    self.add_service(Arc::new(new));
                }
            }
        }
    }

    /// Both types share one name space.
    pub(super) fn remove_address(&mut self, name: &str) {
        self.remove_workload(name);
        self.remove_service(name);
    }

    fn add_workload(&mut self, new: Arc<Workload>) {
        for ip in indexed_ips(&new) {
            self.by_ip.add(*ip, new.clone(), by_preference);
        }
        self.by_name
            .add(new.name.clone(), new.clone(), by_preference);
        for (service, ports) in &new.services {
            let endpoint = Endpoint::new(new.clone(), ports.clone());
            let endpoints = self.endpoints.entry(service.clone());
            if endpoints.is_empty()
                && let Some(service) = self.services.get(service)
            {
                endpoints.arrange(&service.balancing);
            }
            endpoints.put(endpoint);
        }
        self.workloads.insert(new.uid.clone(), new);
    }

    fn remove_workload(&mut self, uid: &str) {
        let Some(old) = self.workloads.remove(uid) else {
            return;
        };
        let is_old = |other: &Arc<Workload>| other.uid == old.uid;
        for ip in indexed_ips(&old) {
            self.by_ip.remove(ip, is_old);
        }
        self.by_name.remove(&old.name, is_old);
        for (service, ports) in &old.services {
            let endpoints = self.endpoints.entry(service.clone());
            endpoints.remove(&Endpoint::new(old.clone(), ports.clone()));
            if endpoints.is_empty() {
                self.endpoints.remove(service);
            }
        }
    }

    fn add_service(&mut self, new: Arc<Service>) {
        for vip in &new.vips {
            self.by_vip.add(vip.range, new.clone(), by_key);
            self.count_range(vip.range, 1);
        }
        let endpoints = self.endpoints.get(&*new.key);
        if endpoints.is_some_and(|endpoints| !endpoints.is_arranged_for(&new.balancing)) {
            let endpoints = self.endpoints.entry(new.key.clone());
            endpoints.arrange(&new.balancing);
        }
        self.by_host.add(lower(&new.hostname), new.clone(), by_key);
        self.services.insert(new.key.clone(), new);
    }

    fn remove_service(&mut self, key: &str) {
        let Some(old) = self.services.remove(key) else {
            return;
        };
        let is_old = |other: &Arc<Service>| other.key == old.key;
        for vip in &old.vips {
            self.by_vip.remove(&vip.range, is_old);
            self.count_range(vip.range, -1);
        }
        self.by_host.remove(&lower(&old.hostname), is_old);
    }

    fn count_range(&mut self, range: Cidr, by: isize) {
        if range.is_host() {
            return;
        }
        let slot = (range.ip.is_ipv4(), range.prefix);
        let counts = Arc::make_mut(&mut self.ranges);
        let count = counts.entry(slot).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            counts.remove(&slot);
        }
    }

    /// The prefix lengths of ranges of this family, each once.
    pub(super) fn range_prefixes(&self, v4: bool) -> impl Iterator<Item = u8> {
        self.ranges
            .range((v4, 0)..=(v4, 128))
            .map(|((_, prefix), _)| *prefix)
    }

    pub(super) fn put_policy(&mut self, new: Policy) {
        self.forget_refusal(&new.key);
        if self.policies.get(&*new.key).is_some_and(|old| **old == new) {
            return;
        }
        self.remove_policy(&new.key.clone());
        let new = Arc::new(new);
        if let Some(group) = group_of(&new) {
            self.policies_by_namespace
                .add(group.into(), new.clone(), |a, b| a.key.cmp(&b.key));
        }
        self.policies.insert(new.key.clone(), new);
    }

    /// `None`: it would not have been enforced. An old version stays in force instead.
    pub(super) fn refuse_policy(&mut self, key: &str, refused: Option<Refused>) {
        match refused {
            Some(refused) if self.policies.get(key).is_none() => {
                Arc::make_mut(&mut self.refused).insert(key.into(), refused);
            }
            _ => self.forget_refusal(key),
        }
    }

    fn forget_refusal(&mut self, key: &str) {
        if self.refused.contains_key(key) {
            Arc::make_mut(&mut self.refused).remove(key);
        }
    }

    pub(super) fn remove_policy(&mut self, key: &str) {
        self.forget_refusal(key);
        let Some(old) = self.policies.remove(key) else {
            return;
        };
        if let Some(group) = group_of(&old) {
            self.policies_by_namespace
                .remove(group, |other| other.key == old.key);
        }
    }

    pub(super) fn dismantle(self, mut pause: impl FnMut()) {
        self.endpoints.dismantle(&mut pause);
        self.by_ip.dismantle(&mut pause);
        self.by_name.dismantle(&mut pause);
        self.workloads.dismantle(&mut pause);
        self.by_vip.dismantle(&mut pause);
        self.by_host.dismantle(&mut pause);
        self.services.dismantle(&mut pause);
    }

    /// How many shards of all maps are not shared with `other`.
    #[cfg(test)]
    pub(super) fn unshared(&self, other: &Self) -> usize {
        self.workloads.unshared(&other.workloads)
            + self.by_ip.unshared(&other.by_ip)
            + self.by_name.unshared(&other.by_name)
            + self.services.unshared(&other.services)
            + self.by_vip.unshared(&other.by_vip)
            + self.by_host.unshared(&other.by_host)
            + self.endpoints.unshared(&other.endpoints)
            + self.policies.unshared(&other.policies)
            + self
                .policies_by_namespace
                .unshared(&other.policies_by_namespace)
    }
}

/// Pods of the host's network share its address: it names none of them.
fn indexed_ips(workload: &Workload) -> &[IpAddr] {
    if workload.host_network {
        &[]
    } else {
        &workload.addresses
    }
}

/// Istio's order of several owners of one address (`state/workload.rs`); then the healthy one, because a pod that goes
/// is unhealthy when its address is already another's; then the uid.
fn by_preference(a: &Arc<Workload>, b: &Arc<Workload>) -> Ordering {
    let rank = |workload: &Workload| {
        let pod = workload.uid.contains("//Pod/");
        (
            !pod,
            workload.protocol != Protocol::Hbone,
            !workload.healthy,
        )
    };
    rank(a).cmp(&rank(b)).then_with(|| a.uid.cmp(&b.uid))
}

fn by_key(a: &Arc<Service>, b: &Arc<Service>) -> Ordering {
    a.key.cmp(&b.key)
}

fn lower(hostname: &str) -> Box<str> {
    hostname.to_ascii_lowercase().into()
}

fn group_of(policy: &Policy) -> Option<&str> {
    match policy.scope {
        Scope::Global => Some(""),
        Scope::Namespace => Some(&policy.namespace),
        Scope::WorkloadSelector => None,
    }
}
