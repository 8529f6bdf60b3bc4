//! What decides nothing but is told (AUDIT, dry run), and what the client's side asks.

use super::*;
use prost::Message;

fn extension(name: &str) -> sec::Extension {
    sec::Extension {
        name: name.into(),
        config: None,
    }
}

fn audit(key: &str) -> sec::Authorization {
    policy(key, Deny, from_namespace("a")).with(|p| {
        p.dry_run = true;
        p.extensions = vec![extension("nodemesh/audit")];
    })
}

fn service(name: &str, host: sec::StringMatch) -> sec::Extension {
    let config = prost_types::Any {
        type_url: "type.googleapis.com/istio.security.StringMatch".into(),
        value: host.encode_to_vec(),
    };
    sec::Extension {
        name: name.into(),
        config: Some(config),
    }
}

/// `web` may call only what this ALLOW policy says.
fn calling(matches: Vec<sec::Match>) -> Tables {
    let config = prost_types::Any {
        type_url: "type.googleapis.com/google.protobuf.StringValue".into(),
        value: "shop/out".to_owned().encode_to_vec(),
    };
    let named = pb::Extension {
        name: "nodemesh/egress-policy".into(),
        config: Some(config),
    };
    let web = web().with(|w| w.extensions = vec![named]);
    let out =
        policy("shop/out", Allow, matches).with(|p| p.scope = sec::Scope::WorkloadSelector.into());
    mesh(&[&web, &out])
}

fn outward<'a>(service: Option<&'a str>, identity: Option<&'a SpiffeId>) -> Peer<'a> {
    Peer {
        source: ip("10.0.0.1"),
        identity,
        dst: "10.0.0.7:5432".parse().unwrap(),
        direction: Direction::Outbound { service },
    }
}

fn may_call(tables: &Tables, peer: &Peer<'_>) -> bool {
    let verdict = authorise(tables, workload(tables, "shop/web-1"), peer);
    matches!(verdict, Verdict::Allowed { .. })
}

#[test]
fn an_audit_decides_nothing_and_is_told_with_its_rule() {
    let tables = mesh(&[&web(), &audit("shop/watch")]);
    assert!(allowed(&tables, "a/x"));
    let id = SpiffeId::parse(&spiffe("a/x")).unwrap();
    let peer = Peer {
        source: ip("10.0.0.9"),
        identity: Some(&id),
        dst: TARGET.parse().unwrap(),
        direction: Direction::Inbound,
    };
    let web = workload(&tables, "shop/web-1");
    assert_eq!(rehearse(&tables, web, &peer), None);
    let seen: Vec<_> = observe(&tables, web, &peer)
        .into_iter()
        .map(|(p, rule)| (p.action, rule))
        .collect();
    assert_eq!(seen, [(Action::Audit, 0)]);
    assert!(
        observe(
            &tables,
            web,
            &Peer {
                identity: None,
                ..peer
            }
        )
        .is_empty()
    );
}

#[test]
fn the_extension_alone_makes_no_audit_of_a_policy_in_force() {
    let enforced = audit("shop/p").with(|p| p.dry_run = false);
    assert!(!allowed(&mesh(&[&web(), &enforced]), "a/x"));
}

#[test]
fn egress_is_judged_by_address_port_service_and_identity_of_the_other_end() {
    let of = |change: fn(&mut sec::Match)| {
        let mut m = sec::Match::default();
        change(&mut m);
        calling(vec![m])
    };
    let bank = SpiffeId::parse(&spiffe("bank/db")).unwrap();
    let db = outward(Some("db.bank.svc"), Some(&bank));
    let cases: [fn(&mut sec::Match); 6] = [
        |m| m.destination_ports = vec![5432],
        |m| {
            m.destination_ips = vec![sec::Address {
                address: packed("10.0.0.0"),
                length: 24,
            }]
        },
        |m| m.namespaces = vec![exact("bank")],
        |m| m.principals = vec![exact("cluster.local/ns/bank/sa/db")],
        |m| m.extensions = vec![service("nodemesh/service", exact("db.bank.svc"))],
        |m| m.extensions = vec![service("nodemesh/not-service", exact("other.svc"))],
    ];
    for (n, case) in cases.into_iter().enumerate() {
        assert!(may_call(&of(case), &db), "case {n}");
    }
    let elsewhere = Peer {
        dst: "192.0.2.1:80".parse().unwrap(),
        ..outward(Some("other.svc"), None)
    };
    for (n, case) in cases.into_iter().enumerate() {
        assert!(!may_call(&of(case), &elsewhere), "case {n}");
    }
}

#[test]
fn without_a_service_no_service_matches() {
    let tables = calling(vec![sec::Match {
        extensions: vec![service("nodemesh/service", exact("db.bank.svc"))],
        ..Default::default()
    }]);
    assert!(!may_call(&tables, &outward(None, None)));
}

#[test]
fn egress_and_ingress_policies_do_not_meet() {
    let tables = calling(vec![]);
    assert!(
        allowed(&tables, "a/x"),
        "what it may call says nothing of who may call it"
    );
    let closed = mesh(&[&web(), &policy("shop/closed", Allow, vec![])]);
    assert!(may_call(&closed, &outward(None, None)));
}

#[test]
fn an_egress_policy_that_is_not_there_denies() {
    let (tables, _) = calling(vec![]).with(
        crate::tables::Kind::Authorization,
        &[],
        &["shop/out".into()],
    );
    let web = workload(&tables, "shop/web-1");
    assert_eq!(
        why(authorise(&tables, web, &outward(None, None))),
        "policy shop/out is not known yet"
    );
}
