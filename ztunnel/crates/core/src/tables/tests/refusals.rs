//! What is refused as a whole, and that the old version stays.

use super::*;
use crate::fixtures::{exact, gateway_at, refusal};

fn web() -> pb::Workload {
    pod("shop/web-1", "10.0.0.1")
}

fn empty() -> Tables {
    Tables::new("", "Kubernetes")
}

type Change<T> = (fn(&mut T), &'static str);

#[test]
fn a_workload_without_a_name_or_an_identity_is_refused_with_a_sentence() {
    let cases: [Change<pb::Workload>; 5] = [
        (|w| w.uid = String::new(), "uid is empty"),
        (|w| w.name = String::new(), "name is empty"),
        (
            |w| w.namespace = String::new(),
            "the identity is impossible: the namespace is not a DNS label",
        ),
        (
            |w| w.service_account = "a b".into(),
            "the identity is impossible: the service account is not a DNS name",
        ),
        (
            |w| w.trust_domain = "TD".into(),
            "the identity is impossible: the trust domain is empty, longer than 255 bytes or has characters other than \
             a-z 0-9 . - _",
        ),
    ];
    for (change, why) in cases {
        assert_eq!(refusal(&empty(), &web().with(change)), why);
    }
}

const UNREACHABLE: [Change<pb::Workload>; 11] = [
    (
        |w| w.addresses = vec![vec![1, 2, 3].into()],
        "addresses has 3 bytes instead of 4 or 16",
    ),
    (
        |w| w.addresses = vec![vec![].into()],
        "addresses has 0 bytes instead of 4 or 16",
    ),
    (
        |w| w.tunnel_protocol = pb::TunnelProtocol::LegacyIstioMtls.into(),
        "tunnel protocol LEGACY_ISTIO_MTLS is not spoken",
    ),
    (
        |w| w.tunnel_protocol = 9,
        "tunnel_protocol has the unknown value 9",
    ),
    (
        |w| w.network_mode = 9,
        "network_mode has the unknown value 9",
    ),
    (|w| w.status = 9, "status has the unknown value 9"),
    (
        |w| w.waypoint = Some(pb::GatewayAddress::default()),
        "waypoint is empty",
    ),
    (
        |w| {
            w.waypoint = gateway_at("10.0.0.9").map(|g| pb::GatewayAddress {
                hbone_mtls_port: 0,
                ..g
            })
        },
        "waypoint: 0 is not a port",
    ),
    (
        |w| {
            w.application_tunnel = Some(pb::ApplicationTunnel {
                protocol: 0,
                port: 70_000,
            })
        },
        "application_tunnel.port: 70000 is not a port",
    ),
    (
        |w| *w = w.clone().serving("shop/web", &[(80, 65_536)]),
        "target_port: 65536 is not a port",
    ),
    (
        |w| *w = w.clone().serving("shop/web", &[(0, 80)]),
        "service_port: 0 is not a port",
    ),
];

#[test]
fn a_workload_that_could_not_be_reached_as_it_says_is_refused_with_a_sentence() {
    for (change, why) in UNREACHABLE {
        assert_eq!(refusal(&empty(), &web().with(change)), why);
    }
}

#[test]
fn a_service_that_is_not_understood_is_refused_with_a_sentence() {
    fn balanced(s: &mut pb::Service, change: impl FnOnce(&mut pb::LoadBalancing)) {
        change(s.load_balancing.get_or_insert_default());
    }
    let cases: [Change<pb::Service>; 11] = [
        (|s| s.namespace = String::new(), "namespace is empty"),
        (|s| s.hostname = String::new(), "hostname is empty"),
        (|s| s.name = String::new(), "name is empty"),
        (|s| s.visibility = 2, "visibility has the unknown value 2"),
        (|s| s.ip_families = 4, "ip_families has the unknown value 4"),
        (
            |s| balanced(s, |b| b.mode = 4),
            "load_balancing.mode has the unknown value 4",
        ),
        (
            |s| balanced(s, |b| b.health_policy = 2),
            "load_balancing.health_policy has the unknown value 2",
        ),
        (
            |s| balanced(s, |b| b.routing_preference = vec![0]),
            "load_balancing.routing_preference has the unknown value 0",
        ),
        (
            |s| s.addresses[0].length = Some(33),
            "addresses: a prefix of 33 bits is longer than the address",
        ),
        (
            |s| s.addresses[0].address = vec![1].into(),
            "addresses has 1 bytes instead of 4 or 16",
        ),
        (
            |s| s.weighted_waypoints = vec![pb::WeightedWaypoint::default()],
            "weighted_waypoints.destination is empty",
        ),
    ];
    for (change, why) in cases {
        assert_eq!(
            refusal(
                &empty(),
                &service("shop/web", &["10.96.0.1"], &[(80, 0)]).with(change)
            ),
            why
        );
    }
}

#[test]
fn a_policy_that_is_not_understood_is_refused_with_a_sentence() {
    fn first(p: &mut sec::Authorization) -> &mut sec::Match {
        &mut p.rules[0].clauses[0].matches[0]
    }
    let cases: [Change<sec::Authorization>; 11] = [
        (|p| p.name = String::new(), "name is empty"),
        (|p| p.namespace = String::new(), "namespace is empty"),
        (|p| p.scope = 3, "scope has the unknown value 3"),
        (|p| p.action = 2, "action has the unknown value 2"),
        (
            |p| first(p).principals = vec![sec::StringMatch::default()],
            "rules[0].clauses[0].matches[0].principals[0]: match_type is empty",
        ),
        (
            |p| first(p).not_namespaces = vec![exact("a"), sec::StringMatch::default()],
            "rules[0].clauses[0].matches[0].not_namespaces[1]: match_type is empty",
        ),
        (
            |p| first(p).destination_ports = vec![65_536],
            "rules[0].clauses[0].matches[0].destination_ports[0]: port: 65536 is not a port",
        ),
        (
            |p| {
                first(p).source_ips = vec![sec::Address {
                    address: packed("10.0.0.0"),
                    length: 33,
                }]
            },
            "rules[0].clauses[0].matches[0].source_ips[0]: address: a prefix of 33 bits is longer than the address",
        ),
        (
            |p| {
                first(p).not_destination_ips = vec![sec::Address {
                    address: vec![],
                    length: 0,
                }]
            },
            "rules[0].clauses[0].matches[0].not_destination_ips[0]: address has 0 bytes instead of 4 or 16",
        ),
        (
            |p| first(p).service_accounts = vec![sec::ServiceAccountMatch::default()],
            "rules[0].clauses[0].matches[0].service_accounts[0]: namespace is empty",
        ),
        (
            |p| {
                first(p).extensions = vec![sec::Extension {
                    name: "x".into(),
                    config: None,
                }]
            },
            "rules[0].clauses[0].matches[0]: carries the extension \"x\", which is not understood",
        ),
    ];
    let good = || policy("shop/p", sec::Action::Allow, vec![sec::Match::default()]);
    for (change, why) in cases {
        assert_eq!(refusal(&empty(), &good().with(change)), why);
    }
}

#[test]
fn a_resource_under_a_foreign_name_is_refused() {
    let cases: [(&dyn Resource, &str); 3] = [
        (
            &web(),
            "the content is of \"Kubernetes//Pod/shop/web-1\", not of the resource's name",
        ),
        (
            &service("shop/web", &[], &[]),
            "the content is of \"shop/web\", not of the resource's name",
        ),
        (
            &policy("shop/p", sec::Action::Deny, vec![]),
            "the content is of \"shop/p\", not of the resource's name",
        ),
    ];
    for (resource, why) in cases {
        let (_, refused) = empty().with(
            resource.kind(),
            &[("shop/other".into(), resource.bytes())],
            &[],
        );
        assert_eq!(refused, [("shop/other".to_owned(), why.to_owned())]);
    }
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    for kind in [Kind::Address, Kind::Authorization] {
        let (_, refused) =
            empty().with(kind, &[("x".into(), Bytes::from_static(b"\xff\xff"))], &[]);
        assert!(
            refused[0].1.starts_with("not a message of this type: "),
            "{refused:?}"
        );
    }
    let (_, refused) = empty().with(Kind::Address, &[("x".into(), Bytes::new())], &[]);
    assert_eq!(refused[0].1, "type is empty");
}

#[test]
fn a_refused_resource_leaves_its_old_version_and_spares_its_neighbours() {
    let tables = mesh(&[&web(), &policy("shop/p", sec::Action::Deny, vec![])]);
    let bad = web().with(|w| w.status = 9);
    let good = pod("shop/web-2", "10.0.0.2");
    let (tables, refused) = tables.with(Kind::Address, &[bad.entry(), good.entry()], &[]);
    assert_eq!(refused.len(), 1);
    assert_eq!(
        (
            owner(&tables, "10.0.0.1").as_deref(),
            owner(&tables, "10.0.0.2").as_deref()
        ),
        (Some("web-1"), Some("web-2"))
    );
    let bad = policy("shop/p", sec::Action::Allow, vec![]).with(|p| p.scope = 3);
    let (tables, _) = tables.with(Kind::Authorization, &[bad.entry()], &[]);
    assert_eq!(tables.policy("shop/p").unwrap().action, Action::Deny);
}

#[test]
fn what_only_telemetry_reads_may_be_newer_than_we_are() {
    let tables = mesh(&[&web().with(|w| w.workload_type = 9)]);
    assert_eq!(
        workload(&tables, "shop/web-1").workload_type,
        WorkloadType::Other
    );
}

#[test]
fn subject_names_outside_the_profile_are_not_accepted_identities() {
    let names = vec![
        "spiffe://td/ns/a/sa/b".into(),
        "web.example.com".into(),
        "spiffe://td/other".into(),
    ];
    let tables = mesh(&[&service("shop/web", &[], &[]).with(|s| s.subject_alt_names = names)]);
    let accepted = &tables.service("shop/web").unwrap().subject_alt_names;
    assert_eq!(
        accepted.iter().map(|id| id.as_str()).collect::<Vec<_>>(),
        ["spiffe://td/ns/a/sa/b"]
    );
}

#[test]
fn a_text_that_is_matched_exactly_may_be_empty() {
    let clause = sec::Match {
        namespaces: vec![exact("")],
        ..Default::default()
    };
    mesh(&[&policy("shop/p", sec::Action::Deny, vec![clause])]);
}
