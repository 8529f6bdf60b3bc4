//! The headers of an HBONE CONNECT: written, and read from peers that are not to be trusted with them. They only ever
//! label metrics and logs. Owns no HTTP/2.
//!
//! Istio's forms: no percent-encoding in `baggage`; of `forwarded` a receiver uses `host=` only.

use crate::tables::{Workload, WorkloadType};
use std::net::SocketAddr;

/// Longer headers of a peer are not read at all. Bytes.
pub const MAX_HEADER: usize = 1024;

/// W3C Trace Context: which trace a connection belongs to, and its own span in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Zero: none.
    pub id: u128,
    pub span: u64,
    /// Somebody wants to see it.
    pub sampled: bool,
}

impl Trace {
    pub fn header(&self) -> String {
        let sampled = u8::from(self.sampled);
        format!("00-{:032x}-{:016x}-{sampled:02x}", self.id, self.span)
    }
}

/// `traceparent` of a peer (W3C Trace Context §3.2): of a later version the part that this one knows. None: absent to us.
pub fn parse_traceparent(header: &str) -> Option<Trace> {
    let (version, rest) = (header.get(..2)?, header.get(2..)?);
    let mut parts = rest.strip_prefix('-')?.splitn(4, '-');
    let (id, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    let lower = |text: &str, length| {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        text.len() == length && text.bytes().all(hex)
    };
    let well = lower(version, 2) && lower(id, 32) && lower(span, 16) && lower(flags, 2);
    if !well || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let trace = Trace {
        id: u128::from_str_radix(id, 16).ok()?,
        span: u64::from_str_radix(span, 16).ok()?,
        sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
    };
    (trace.id != 0 && trace.span != 0).then_some(trace)
}

/// `baggage`, `forwarded` and `traceparent` for a CONNECT.
pub fn request_headers(
    from: &Workload,
    client: SocketAddr,
    service_host: Option<&str>,
    trace: &Trace,
) -> Vec<(&'static str, String)> {
    let host = service_host
        .filter(|host| is_value(host))
        .map_or(String::new(), |host| format!(";host={host}"));
    vec![
        ("baggage", baggage(from)),
        ("forwarded", format!("for=\"{client}\"{host}")),
        ("traceparent", trace.header()),
    ]
}

/// `k8s.cluster.name=..,k8s.namespace.name=..`: what a workload says of itself; also sent with the answer 200.
pub fn baggage(of: &Workload) -> String {
    let fields = [
        ("k8s.cluster.name", &of.cluster_id),
        ("k8s.namespace.name", &of.namespace),
        (type_key(of.workload_type), &of.workload_name),
        ("service.name", &of.canonical_name),
        ("service.version", &of.canonical_revision),
        ("cloud.region", &of.locality.region),
        ("cloud.availability_zone", &of.locality.zone),
    ];
    let mut header = String::with_capacity(256);
    for (key, value) in fields
        .into_iter()
        .filter(|(key, value)| !key.is_empty() && is_value(value))
    {
        header.push_str(if header.is_empty() { "" } else { "," });
        header.extend([key, "=", value]);
    }
    header
}

const WORKLOAD_TYPES: [(WorkloadType, &str, &str); 4] = [
    (
        WorkloadType::Deployment,
        "k8s.deployment.name",
        "deployment",
    ),
    (WorkloadType::CronJob, "k8s.cronjob.name", "cronjob"),
    (WorkloadType::Pod, "k8s.pod.name", "pod"),
    (WorkloadType::Job, "k8s.job.name", "job"),
];

fn type_key(of: WorkloadType) -> &'static str {
    WORKLOAD_TYPES
        .iter()
        .find(|(known, ..)| *known == of)
        .map_or("", |(_, key, _)| key)
}

/// Visible ASCII without what separates values: nothing in it can start another field or header.
fn is_value(text: &str) -> bool {
    let clean = |b: u8| b.is_ascii_graphic() && !matches!(b, b',' | b';' | b'=' | b'"' | b'\\');
    !text.is_empty() && text.bytes().all(clean)
}

/// What a peer says of itself. Absent, empty and unreadable are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Baggage<'a> {
    pub cluster: Option<&'a str>,
    pub namespace: Option<&'a str>,
    /// `deployment`, `cronjob`, `pod` or `job`.
    pub workload_type: Option<&'a str>,
    pub workload_name: Option<&'a str>,
    pub service: Option<&'a str>,
    pub revision: Option<&'a str>,
    pub region: Option<&'a str>,
    pub zone: Option<&'a str>,
}

/// Unknown fields are skipped; of a repeated one the first is taken.
pub fn parse_baggage(header: &str) -> Baggage<'_> {
    let mut baggage = Baggage::default();
    if header.len() > MAX_HEADER {
        return baggage;
    }
    for (key, value) in header.split(',').filter_map(|field| field.split_once('=')) {
        let value = value.trim();
        if is_value(value) {
            baggage.take(key.trim(), value);
        }
    }
    baggage
}

impl<'a> Baggage<'a> {
    fn take(&mut self, key: &str, value: &'a str) {
        let slot = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service,
            "service.version" => &mut self.revision,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => return self.take_workload(key, value),
        };
        slot.get_or_insert(value);
    }

    fn take_workload(&mut self, key: &str, value: &'a str) {
        let known = WORKLOAD_TYPES.iter().find(|(_, known, _)| *known == key);
        if let (Some((.., kind)), None) = (known, self.workload_name) {
            (self.workload_type, self.workload_name) = (Some(*kind), Some(value));
        }
    }
}

/// `host=` of a `forwarded` header (RFC 7239 §4): the service that the client addressed. Of several elements the first.
pub fn parse_forwarded_host(header: &str) -> Option<&str> {
    if header.len() > MAX_HEADER {
        return None;
    }
    let element = header.split(',').next()?;
    let pairs = element
        .split(';')
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, host) = pairs
        .into_iter()
        .find(|(key, _)| key.eq_ignore_ascii_case("host"))?;
    let host = host
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(host);
    Some(host).filter(|host| is_value(host))
}

#[cfg(test)]
mod tests;
