//! The headers of an HBONE CONNECT: written, and read from peers that are not to be trusted with them. They only ever
//! label metrics and logs. Owns no HTTP/2.

use crate::tables::Workload;
use std::net::SocketAddr;

/// Longer headers of a peer are not read at all.
pub const MAX_HEADER: usize = 1024;

/// `baggage`, `forwarded` and `traceparent` for a CONNECT. `trace`: 16 random bytes of trace id, 8 of span id.
pub fn request_headers(
    from: &Workload,
    client: SocketAddr,
    service_host: Option<&str>,
    trace: [u8; 24],
) -> Vec<(&'static str, String)> {
    let _ = (from, client, service_host, trace);
    todo!()
}

/// `k8s.cluster.name=..,k8s.namespace.name=..`: what a workload says of itself; also sent with the answer 200.
pub fn baggage(of: &Workload) -> String {
    let _ = of;
    todo!()
}

/// What a peer says of itself. Absent, empty and unreadable are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Baggage<'a> {
    pub cluster: Option<&'a str>,
    pub namespace: Option<&'a str>,
    pub workload_type: Option<&'a str>,
    pub workload_name: Option<&'a str>,
    pub service: Option<&'a str>,
    pub revision: Option<&'a str>,
    pub region: Option<&'a str>,
    pub zone: Option<&'a str>,
}

pub fn parse_baggage(header: &str) -> Baggage<'_> {
    let _ = header;
    todo!()
}

/// `host=` of a `forwarded` header: the service that the client addressed.
pub fn parse_forwarded_host(header: &str) -> Option<&str> {
    let _ = header;
    todo!()
}
