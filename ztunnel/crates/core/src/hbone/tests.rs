use super::*;
use crate::fixtures::{mesh, pod, workload};
use crate::wire::workload as pb;

fn web() -> pb::Workload {
    pod("shop/web-1", "10.0.0.1").with(|w| {
        w.workload_type = pb::WorkloadType::Deployment.into();
        w.workload_name = "web".into();
        w.canonical_name = "web".into();
        w.canonical_revision = "v2".into();
        w.locality = Some(pb::Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: String::new(),
        });
    })
}

#[test]
fn the_headers_are_istios() {
    let tables = mesh(&[&web()]);
    let trace = Trace {
        id: 0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f,
        span: 0x1011_1213_1415_1617,
        sampled: false,
    };
    let client = "10.0.0.1:4711".parse().unwrap();
    let headers = request_headers(
        workload(&tables, "shop/web-1"),
        client,
        Some("db.shop.svc"),
        &trace,
    );
    let expected = [
        (
            "baggage",
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,\
             service.version=v2,cloud.region=r,cloud.availability_zone=z",
        ),
        ("forwarded", "for=\"10.0.0.1:4711\";host=db.shop.svc"),
        (
            "traceparent",
            "00-000102030405060708090a0b0c0d0e0f-1011121314151617-00",
        ),
    ];
    assert_eq!(
        headers,
        expected.map(|(name, value)| (name, value.to_owned()))
    );
}

#[test]
fn a_client_without_a_service_forwards_its_address_only() {
    let tables = mesh(&[&web()]);
    let client = "[fd00::1]:80".parse().unwrap();
    let headers = request_headers(
        workload(&tables, "shop/web-1"),
        client,
        None,
        &Trace::default(),
    );
    assert_eq!(headers[1].1, "for=\"[fd00::1]:80\"");
}

#[test]
fn empty_fields_and_those_that_would_break_out_are_left_out() {
    let tables = mesh(&[&web().with(|w| {
        w.canonical_name = "a,service.name=evil".into();
        w.canonical_revision = "v\r\nx-evil: 1".into();
        w.workload_name = String::new();
        w.locality = None;
    })]);
    assert_eq!(
        baggage(workload(&tables, "shop/web-1")),
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop"
    );
}

#[test]
fn baggage_is_read_back_as_it_was_written() {
    let tables = mesh(&[&web()]);
    let written = baggage(workload(&tables, "shop/web-1"));
    let read = Baggage {
        cluster: Some("Kubernetes"),
        namespace: Some("shop"),
        workload_type: Some("deployment"),
        workload_name: Some("web"),
        service: Some("web"),
        revision: Some("v2"),
        region: Some("r"),
        zone: Some("z"),
    };
    assert_eq!(parse_baggage(&written), read);
}

#[test]
fn a_hostile_peers_baggage_says_nothing() {
    let long = format!("service.name={}", "a".repeat(MAX_HEADER));
    for header in [
        "",
        ",",
        "=",
        "service.name",
        "service.name=",
        "service.name= ",
        "service.name=a\u{e9}",
        &long,
    ] {
        assert_eq!(parse_baggage(header), Baggage::default(), "{header:?}");
    }
    let twice =
        parse_baggage("service.name=a, service.name=b,k8s.pod.name=p,k8s.job.name=j,unknown=x");
    assert_eq!(
        (twice.service, twice.workload_type, twice.workload_name),
        (Some("a"), Some("pod"), Some("p"))
    );
}

#[test]
fn the_host_is_read_out_of_forwarded() {
    let long = format!("host={}", "a".repeat(MAX_HEADER));
    let cases = [
        (
            "for=\"10.0.0.1:4711\";host=db.shop.svc",
            Some("db.shop.svc"),
        ),
        ("Host=\"db\"; for=x", Some("db")),
        ("for=x", None),
        ("for=x, host=later", None),
        ("host=", None),
        ("host=a b", None),
        ("host=\"", None),
        (&long, None),
    ];
    for (header, host) in cases {
        assert_eq!(parse_forwarded_host(header), host, "{header:?}");
    }
}

#[test]
fn a_traceparent_is_read_as_w3c_says_or_not_at_all() {
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = parse_traceparent(good).expect("valid");
    assert!(trace.sampled);
    assert_eq!(trace.header(), good);
    let later = format!("cc-{}-what-will-be", &good[3..]);
    assert_eq!(parse_traceparent(&later), Some(trace));
    for bad in [
        "",
        "00",
        "é0-",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ] {
        assert_eq!(parse_traceparent(bad), None, "{bad:?}");
    }
}
