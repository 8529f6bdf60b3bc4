//! The labels of Istio's TCP metrics, as text. Owns their names and order; counts nothing.

use crate::meter::Reporter;
use crate::registry::Parties;
use std::fmt::Write as _;
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::Workload;

/// Istio's order. An absent or empty value is "unknown".
pub fn labels(reporter: Reporter, parties: &Parties, flag: &str) -> String {
    let mut out = String::with_capacity(1024);
    label(&mut out, "reporter", reporter.name());
    side(
        &mut out,
        "source",
        parties.source.as_deref(),
        parties.source_id.as_ref(),
    );
    let service = parties.service.as_deref();
    label(
        &mut out,
        "destination_service",
        service.map_or("", |s| &s.hostname),
    );
    label(
        &mut out,
        "destination_service_namespace",
        service.map_or("", |s| &s.namespace),
    );
    label(
        &mut out,
        "destination_service_name",
        service.map_or("", |s| &s.name),
    );
    side(
        &mut out,
        "destination",
        parties.destination.as_deref(),
        parties.destination_id.as_ref(),
    );
    label(&mut out, "request_protocol", "tcp");
    label(&mut out, "response_flags", flag);
    let mutual = parties.source_id.is_some() && parties.destination_id.is_some();
    label(
        &mut out,
        "connection_security_policy",
        if mutual { "mutual_tls" } else { "unknown" },
    );
    for (end, workload) in [
        ("source", &parties.source),
        ("destination", &parties.destination),
    ] {
        let locality = workload.as_ref().map(|w| &w.locality);
        label(
            &mut out,
            &format!("{end}_region"),
            locality.map_or("", |l| &l.region),
        );
        label(
            &mut out,
            &format!("{end}_zone"),
            locality.map_or("", |l| &l.zone),
        );
    }
    out
}

fn side(out: &mut String, end: &str, workload: Option<&Workload>, id: Option<&SpiffeId>) {
    let of = |field: fn(&Workload) -> &str| workload.map_or("", field);
    let namespace = workload
        .map(|w| &*w.namespace)
        .or(id.map(SpiffeId::namespace))
        .unwrap_or("");
    for (name, value) in [
        ("workload", of(|w| &w.workload_name)),
        ("canonical_service", of(|w| &w.canonical_name)),
        ("canonical_revision", of(|w| &w.canonical_revision)),
        ("workload_namespace", namespace),
        ("principal", id.map_or("", SpiffeId::as_str)),
        ("app", of(|w| &w.canonical_name)),
        ("version", of(|w| &w.canonical_revision)),
        ("cluster", of(|w| &w.cluster_id)),
    ] {
        label(out, &format!("{end}_{name}"), value);
    }
}

/// Escapes as the Prometheus text format 0.0.4 wants it.
fn label(out: &mut String, name: &str, value: &str) {
    let value = if value.is_empty() { "unknown" } else { value };
    let comma = if out.is_empty() { "" } else { "," };
    let escaped = value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    // Writing to a String does not fail.
    let _ = write!(out, "{comma}{name}=\"{escaped}\"");
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "reporter source_workload source_canonical_service source_canonical_revision \
        source_workload_namespace source_principal source_app source_version source_cluster destination_service \
        destination_service_namespace destination_service_name destination_workload destination_canonical_service \
        destination_canonical_revision destination_workload_namespace destination_principal destination_app \
        destination_version destination_cluster request_protocol response_flags connection_security_policy \
        source_region source_zone destination_region destination_zone";

    fn strangers() -> Parties {
        Parties::between(([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 2).into())
    }

    #[test]
    fn labels_have_istios_names_in_istios_order() {
        let text = labels(Reporter::Source, &strangers(), "-");
        let names: Vec<_> = text
            .split(',')
            .map(|l| l.split('=').next().unwrap_or(""))
            .collect();
        assert_eq!(names, NAMES.split_whitespace().collect::<Vec<_>>());
        assert!(
            text.contains("source_principal=\"unknown\"") && text.contains("response_flags=\"-\"")
        );
    }

    #[test]
    fn a_namespace_is_known_from_the_identity_alone() {
        let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("an identity");
        let parties = Parties {
            source_id: Some(id),
            ..strangers()
        };
        let text = labels(Reporter::Destination, &parties, "-");
        assert!(
            text.contains("source_workload_namespace=\"shop\""),
            "{text}"
        );
        assert!(
            text.contains("connection_security_policy=\"unknown\""),
            "one side only is not mutual"
        );
    }
}
