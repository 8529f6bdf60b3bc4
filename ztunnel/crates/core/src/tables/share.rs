//! Equal words of one push become one word in memory: a namespace, a node, a zone or an identity is said a thousand times.
//!
//! A pool lives as long as one push, so that nothing has to be taken out again; pushes are large when there is much to share.

use super::model::*;
use crate::ids::SpiffeId;
use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Pool {
    words: HashSet<Word>,
    ports: HashSet<Arc<[Port]>>,
    identities: HashSet<SpiffeId>,
}

impl Pool {
    pub(super) fn share(&mut self, workload: &mut Workload) {
        let place = &mut workload.locality;
        for word in [
            &mut workload.namespace,
            &mut workload.network,
            &mut workload.node,
            &mut workload.canonical_name,
            &mut workload.canonical_revision,
            &mut workload.workload_name,
            &mut workload.cluster_id,
            &mut place.region,
            &mut place.zone,
            &mut place.subzone,
        ] {
            one(&mut self.words, word);
        }
        for (service, ports) in &mut workload.services {
            one(&mut self.words, service);
            one(&mut self.ports, ports);
        }
        for key in workload
            .authorization_policies
            .iter_mut()
            .chain(&mut workload.egress_policies)
        {
            one(&mut self.words, key);
        }
        one(&mut self.identities, &mut workload.identity);
    }
}

fn one<T: Clone + Eq + Hash + Borrow<T>>(known: &mut HashSet<T>, value: &mut T) {
    match known.get(value) {
        Some(same) => *value = same.clone(),
        None => drop(known.insert(value.clone())),
    }
}
