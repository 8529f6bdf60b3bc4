//! The snapshot: everything the tunnel knows of the mesh, immutable, replaced as a whole. Owns the indices; not what is
//! decided with them (`decide`, `authz`).
//!
//! `with` builds the next snapshot out of this one and shares with it what did not change.

mod model;

pub use model::*;

use bytes::Bytes;
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

/// One snapshot. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Tables {
    network: Arc<str>,
    cluster: Arc<str>,
}

/// A workload as an endpoint of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    pub ports: Arc<[Port]>,
}

impl Tables {
    /// Nothing known yet. `network`, `cluster`: where this tunnel is.
    pub fn new(network: &str, cluster: &str) -> Self {
        Self { network: network.into(), cluster: cluster.into() }
    }

    pub fn network(&self) -> &str {
        &self.network
    }

    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The next snapshot, and (name, why) of every refused resource, whose old version stays. `upserts`: (resource name,
    /// serialized message). Unknown names in `removed` are no error.
    pub fn with(&self, kind: Kind, upserts: &[(String, Bytes)], removed: &[String]) -> (Self, Vec<(String, String)>) {
        let _ = (kind, upserts, removed);
        todo!()
    }

    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        let _ = uid;
        todo!()
    }

    /// `ip` is canonical.
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let _ = (network, ip);
        todo!()
    }

    /// One of this cluster before one of another.
    pub fn workload_by_name(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        let _ = (namespace, name);
        todo!()
    }

    /// `key`: `namespace/hostname`.
    pub fn service(&self, key: &str) -> Option<&Arc<Service>> {
        let _ = key;
        todo!()
    }

    /// The service of a virtual IP as a client in `client_namespace` sees it. `ip` is canonical.
    pub fn service_by_vip(&self, network: &str, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let _ = (network, ip, client_namespace);
        todo!()
    }

    /// The service of a hostname as a client in `client_namespace` sees it.
    pub fn service_by_host(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let _ = (hostname, client_namespace);
        todo!()
    }

    /// Endpoints of a service by their uid, healthy or not.
    pub fn endpoints(&self, service: &str) -> impl Iterator<Item = &Endpoint> {
        let _ = service;
        std::iter::empty()
    }

    /// What is to be asked before somebody may reach this workload: global and namespace policies and those it names.
    /// Err: the name of one that has not arrived or was refused.
    pub fn policies_for<'a>(&'a self, to: &'a Workload) -> impl Iterator<Item = Result<&'a Arc<Policy>, &'a Key>> {
        let _ = to;
        std::iter::empty()
    }

    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        let _ = key;
        todo!()
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        std::iter::empty()
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        std::iter::empty()
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        std::iter::empty()
    }
}
