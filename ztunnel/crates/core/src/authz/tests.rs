//! The semantics one by one, then against a slow evaluator that reads the wire messages themselves.

mod oracle;
mod refused;
mod sides;

use super::*;
use crate::fixtures::{Resource, exact, ip, mesh, packed, pod, policy, push, spiffe, workload};
use crate::wire::security as sec;
use crate::wire::workload as pb;
use sec::Action::{Allow, Deny};

const TARGET: &str = "10.0.0.1:8080";

fn web() -> pb::Workload {
    pod("shop/web-1", "10.0.0.1")
}

fn verdict(tables: &Tables, source: &str, identity: Option<&str>) -> Verdict {
    let identity = identity.map(|path| SpiffeId::parse(&spiffe(path)).unwrap());
    let peer = Peer {
        source: ip(source),
        identity: identity.as_ref(),
        dst: TARGET.parse().unwrap(),
        direction: Direction::Inbound,
    };
    authorise(tables, workload(tables, "shop/web-1"), &peer)
}

fn allowed(tables: &Tables, identity: &str) -> bool {
    matches!(
        verdict(tables, "10.0.0.9", Some(identity)),
        Verdict::Allowed { .. }
    )
}

fn why(verdict: Verdict) -> String {
    match verdict {
        Verdict::Denied { why, .. } => why,
        Verdict::Allowed { by } => panic!("allowed by {by:?}"),
    }
}

fn matched(policy: &str) -> Hit {
    Hit {
        policy: policy.into(),
        rule: 0,
    }
}

fn from_namespace(namespace: &str) -> Vec<sec::Match> {
    vec![sec::Match {
        namespaces: vec![exact(namespace)],
        ..Default::default()
    }]
}

/// PeerAuthentication STRICT as istiod compiles it.
fn strict() -> sec::Authorization {
    let presence = sec::StringMatch {
        match_type: Some(sec::string_match::MatchType::Presence(())),
    };
    policy(
        "shop/strict",
        Deny,
        vec![sec::Match {
            not_principals: vec![presence],
            ..Default::default()
        }],
    )
}

#[test]
fn without_a_policy_everybody_may() {
    let tables = mesh(&[&web()]);
    assert_eq!(
        verdict(&tables, "10.0.0.9", None),
        Verdict::Allowed { by: None }
    );
}

#[test]
fn a_deny_goes_before_an_allow_and_says_its_name() {
    let tables = mesh(&[
        &web(),
        &policy("shop/allow-bank", Allow, from_namespace("bank")),
        &policy("shop/deny-bank", Deny, from_namespace("bank")),
    ]);
    let denied = Verdict::Denied {
        because: Because::Matched(matched("shop/deny-bank")),
        why: "denied by policy shop/deny-bank".into(),
    };
    assert_eq!(verdict(&tables, "10.0.0.9", Some("bank/db")), denied);
}

#[test]
fn where_there_is_an_allow_one_has_to_match() {
    let tables = mesh(&[
        &web(),
        &policy("shop/allow-a", Allow, from_namespace("a")),
        &policy("shop/allow-b", Allow, from_namespace("b")),
    ]);
    let by_b = Verdict::Allowed {
        by: Some(matched("shop/allow-b")),
    };
    assert_eq!(verdict(&tables, "10.0.0.9", Some("b/x")), by_b);
    let refused = verdict(&tables, "10.0.0.9", Some("c/x"));
    assert_eq!(
        why(refused),
        "no ALLOW policy matched (shop/allow-a, shop/allow-b)"
    );
}

#[test]
fn of_many_allows_that_did_not_match_a_few_are_named() {
    let many: Vec<_> = (0..9)
        .map(|n| policy(&format!("shop/p{n}"), Allow, from_namespace("a")))
        .collect();
    let tables = many
        .iter()
        .fold(mesh(&[&web()]), |tables, policy| push(&tables, policy));
    let text = why(verdict(&tables, "10.0.0.9", Some("c/x")));
    assert_eq!(
        text,
        "no ALLOW policy matched (shop/p0, shop/p1, shop/p2, shop/p3, shop/p4, ...)"
    );
}

#[test]
fn strict_refuses_plaintext_only() {
    let tables = mesh(&[&web(), &strict()]);
    assert_eq!(
        why(verdict(&tables, "10.0.0.9", None)),
        "denied by policy shop/strict"
    );
    assert!(allowed(&tables, "bank/db"));
}

#[test]
fn a_policy_that_has_not_come_denies_until_it_comes() {
    let web = web().with(|w| w.authorization_policies = vec!["shop/late".into()]);
    let tables = mesh(&[&web]);
    let unknown = Verdict::Denied {
        because: Because::Unknown("shop/late".into()),
        why: "policy shop/late is not known yet".into(),
    };
    assert_eq!(verdict(&tables, "10.0.0.9", Some("a/x")), unknown);
    let late = policy("shop/late", Allow, from_namespace("a"))
        .with(|p| p.scope = sec::Scope::WorkloadSelector.into());
    assert!(allowed(&push(&tables, &late), "a/x"));
}

#[test]
fn a_policy_that_was_refused_denies_whom_names_it_and_says_why() {
    let web = web().with(|w| w.authorization_policies = vec!["shop/bad".into()]);
    let bad = policy("shop/bad", Allow, vec![]).with(|p| p.action = 7);
    let (tables, refused) = mesh(&[&web]).with(bad.kind(), &[bad.entry()], &[]);
    assert_eq!(refused.len(), 1);
    assert_eq!(
        why(verdict(&tables, "10.0.0.9", Some("a/x"))),
        "policy shop/bad was refused: action has the unknown value 7"
    );
}

#[test]
fn a_deny_that_matches_is_named_rather_than_one_that_is_unknown() {
    let web = web().with(|w| w.authorization_policies = vec!["shop/late".into()]);
    let tables = mesh(&[&web, &strict()]);
    assert_eq!(
        why(verdict(&tables, "10.0.0.9", None)),
        "denied by policy shop/strict"
    );
}

#[test]
fn empty_parts_mean_what_they_mean_in_istio() {
    let all = |rules| policy("shop/p", Allow, vec![]).with(|p| p.rules = rules);
    let clause = |matches| sec::Rule {
        clauses: vec![sec::Clause { matches }],
    };
    let cases = [
        ("no rule never matches", vec![], false),
        (
            "a rule without a clause matches",
            vec![sec::Rule { clauses: vec![] }],
            true,
        ),
        (
            "a clause without a match is true",
            vec![clause(vec![])],
            true,
        ),
        (
            "a match without an attribute is false",
            vec![clause(vec![sec::Match::default()])],
            false,
        ),
    ];
    for (sentence, rules, expected) in cases {
        assert_eq!(
            allowed(&mesh(&[&web(), &all(rules)]), "a/x"),
            expected,
            "{sentence}"
        );
    }
}

#[test]
fn policies_of_other_namespaces_do_not_apply() {
    let tables = mesh(&[&web(), &policy("bank/deny", Deny, vec![])]);
    assert!(allowed(&tables, "a/x"));
}

#[test]
fn a_mapped_source_does_not_slip_past_a_policy_for_its_v4_self() {
    let range = sec::Address {
        address: packed("10.0.0.0"),
        length: 8,
    };
    let matches = vec![sec::Match {
        source_ips: vec![range],
        ..Default::default()
    }];
    let tables = mesh(&[&web(), &policy("shop/deny-ten", Deny, matches)]);
    assert_eq!(
        why(verdict(&tables, "::ffff:10.1.2.3", None)),
        "denied by policy shop/deny-ten"
    );
    assert_eq!(
        verdict(&tables, "192.0.2.1", None),
        Verdict::Allowed { by: None }
    );
}

#[test]
fn a_look_alike_of_an_identity_is_another() {
    let matches = vec![sec::Match {
        principals: vec![exact("cluster.local/ns/bank/sa/db")],
        ..Default::default()
    }];
    let tables = mesh(&[&web(), &policy("shop/allow-db", Allow, matches)]);
    assert!(allowed(&tables, "bank/db"));
    for other in ["bank/db2", "bank2/db", "bank/d", "bank/db.x"] {
        assert!(!allowed(&tables, other), "{other}");
    }
}

#[test]
fn a_dry_run_decides_nothing_and_tells_what_it_would() {
    let dry = strict().with(|p| p.dry_run = true);
    let tables = mesh(&[&web(), &dry]);
    let peer = Peer {
        source: ip("10.0.0.9"),
        identity: None,
        dst: TARGET.parse().unwrap(),
        direction: Direction::Inbound,
    };
    let web = workload(&tables, "shop/web-1");
    assert_eq!(
        authorise(&tables, web, &peer),
        Verdict::Allowed { by: None }
    );
    assert_eq!(
        rehearse(&tables, web, &peer).map(why).as_deref(),
        Some("denied by policy shop/strict")
    );
    let tables = mesh(&[&self::web(), &strict()]);
    assert_eq!(
        rehearse(&tables, workload(&tables, "shop/web-1"), &peer),
        None
    );
}
