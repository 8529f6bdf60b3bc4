//! Istio's DNS metrics, by type of question, protocol and the pods' canonical service. Owns the counts, their bound and
//! their text.

use domain::base::iana::Rtype;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use ztunnel_core::tables::Workload;

/// Beyond it the series that has rested for longest is forgotten.
const MOST_SERIES: usize = 2000;
/// Seconds; Istio's buckets.
const BUCKETS_S: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// Which series a question counts in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels {
    rtype: &'static str,
    protocol: &'static str,
    service: Box<str>,
    revision: Box<str>,
}

impl Labels {
    pub(super) fn of(rtype: Rtype, tcp: bool, asker: Option<&Workload>) -> Self {
        let text = |field: fn(&Workload) -> &str| match asker.map(field) {
            None | Some("") => "unknown".into(),
            Some(value) => value.into(),
        };
        Self {
            rtype: name(rtype),
            protocol: if tcp { "tcp" } else { "udp" },
            service: text(|w| &w.canonical_name),
            revision: text(|w| &w.canonical_revision),
        }
    }
}

/// The client chooses the number: what is rare shares one name.
fn name(rtype: Rtype) -> &'static str {
    const NAMES: [(Rtype, &str); 11] = [
        (Rtype::A, "A"),
        (Rtype::AAAA, "AAAA"),
        (Rtype::ANY, "ANY"),
        (Rtype::CNAME, "CNAME"),
        (Rtype::HTTPS, "HTTPS"),
        (Rtype::MX, "MX"),
        (Rtype::NS, "NS"),
        (Rtype::PTR, "PTR"),
        (Rtype::SOA, "SOA"),
        (Rtype::SRV, "SRV"),
        (Rtype::TXT, "TXT"),
    ];
    let known = NAMES.iter().find(|(known, _)| *known == rtype);
    known.map_or("OTHER", |(_, name)| name)
}

#[derive(Debug, Default, Clone)]
struct Counts {
    requests: u64,
    upstream: u64,
    failures: u64,
    /// Not cumulative; the last one is beyond all bounds.
    took: [u64; BUCKETS_S.len() + 1],
    took_s: f64,
    grew: u64,
}

#[derive(Debug, Default)]
struct Series {
    counts: HashMap<Labels, Counts>,
    /// Numbers every growth.
    now: u64,
}

#[derive(Debug, Default)]
pub struct Meter(Mutex<Series>);

impl Meter {
    pub(super) fn asked(&self, labels: &Labels) {
        self.grow(labels, |counts| counts.requests += 1);
    }

    pub(super) fn asked_upstream(&self, labels: &Labels, took: Duration, failed: bool) {
        let took_s = took.as_secs_f64();
        let bucket = BUCKETS_S
            .iter()
            .take_while(|bound| took_s > **bound)
            .count();
        self.grow(labels, |counts| {
            counts.upstream += 1;
            counts.failures += u64::from(failed);
            counts.took[bucket] += 1;
            counts.took_s += took_s;
        });
    }

    fn grow(&self, labels: &Labels, change: impl FnOnce(&mut Counts)) {
        let mut series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        series.now += 1;
        let now = series.now;
        if !series.counts.contains_key(labels) && series.counts.len() >= MOST_SERIES {
            let oldest = series.counts.iter().min_by_key(|(_, counts)| counts.grew);
            if let Some(oldest) = oldest.map(|(labels, _)| labels.clone()) {
                series.counts.remove(&oldest);
            }
        }
        let counts = series.counts.entry(labels.clone()).or_default();
        counts.grew = now;
        change(counts);
    }

    /// Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        let series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<_> = series
            .counts
            .iter()
            .map(|(labels, counts)| (text(labels), counts.clone()))
            .collect();
        drop(series);
        sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut out = String::new();
        for (name, help, value) in FAMILIES {
            head(&mut out, name, "counter", help);
            for (labels, counts) in &sorted {
                let _ = writeln!(out, "{name}{{{labels}}} {}", value(counts));
            }
        }
        durations(&mut out, &sorted);
        out
    }
}

type Family = (&'static str, &'static str, fn(&Counts) -> u64);
const FAMILIES: [Family; 3] = [
    ("istio_dns_requests_total", "Questions of pods", |c| {
        c.requests
    }),
    (
        "istio_dns_upstream_requests_total",
        "Questions passed on to a name server",
        |c| c.upstream,
    ),
    (
        "istio_dns_upstream_failures_total",
        "Questions passed on that no name server answered",
        |c| c.failures,
    ),
];

fn durations(out: &mut String, sorted: &[(String, Counts)]) {
    const NAME: &str = "istio_dns_upstream_request_duration_seconds";
    head(out, NAME, "histogram", "Until a name server answered");
    for (labels, counts) in sorted.iter().filter(|(_, counts)| counts.upstream > 0) {
        let mut below = 0;
        for (bound, count) in BUCKETS_S.iter().zip(counts.took) {
            below += count;
            let _ = writeln!(out, "{NAME}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(
            out,
            "{NAME}_bucket{{{labels},le=\"+Inf\"}} {}",
            counts.upstream
        );
        let _ = writeln!(out, "{NAME}_sum{{{labels}}} {}", counts.took_s);
        let _ = writeln!(out, "{NAME}_count{{{labels}}} {}", counts.upstream);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}");
}

fn text(labels: &Labels) -> String {
    let escape = |value: &str| {
        value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    format!(
        "request_query_type=\"{}\",request_protocol=\"{}\",source_canonical_service=\"{}\",source_canonical_revision=\"{}\"",
        labels.rtype,
        labels.protocol,
        escape(&labels.service),
        escape(&labels.revision),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_those_passed_on_are_counted_by_type_and_protocol() {
        let meter = Meter::default();
        let labels = Labels::of(Rtype::AAAA, false, None);
        meter.asked(&labels);
        meter.asked(&labels);
        meter.asked_upstream(&labels, Duration::from_millis(5), false);
        meter.asked_upstream(&labels, Duration::from_secs(9), true);
        let text = meter.render();
        let l = "request_query_type=\"AAAA\",request_protocol=\"udp\",source_canonical_service=\"unknown\",source_canonical_revision=\"unknown\"";
        for line in [
            format!("istio_dns_requests_total{{{l}}} 2"),
            format!("istio_dns_upstream_requests_total{{{l}}} 2"),
            format!("istio_dns_upstream_failures_total{{{l}}} 1"),
            format!("istio_dns_upstream_request_duration_seconds_bucket{{{l},le=\"0.001\"}} 0"),
            format!("istio_dns_upstream_request_duration_seconds_bucket{{{l},le=\"0.01\"}} 1"),
            format!("istio_dns_upstream_request_duration_seconds_bucket{{{l},le=\"5\"}} 1"),
            format!("istio_dns_upstream_request_duration_seconds_bucket{{{l},le=\"+Inf\"}} 2"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn series_are_bounded_and_the_longest_at_rest_goes() {
        let meter = Meter::default();
        let of = |n: usize| Labels {
            service: n.to_string().into(),
            ..Labels::of(Rtype::A, true, None)
        };
        (0..=MOST_SERIES).for_each(|n| meter.asked(&of(n)));
        let series = meter.0.lock().expect("nobody panicked");
        assert_eq!(series.counts.len(), MOST_SERIES);
        assert!(
            !series.counts.contains_key(&of(0)) && series.counts.contains_key(&of(MOST_SERIES))
        );
    }

    #[test]
    fn types_nobody_has_heard_of_share_a_name() {
        assert_eq!(name(Rtype::from_int(65_000)), "OTHER");
        assert_eq!(name(Rtype::HTTPS), "HTTPS");
    }
}
