//! A policy that cannot be used and has no older version closes what it would have governed, and opens it again.

use super::*;
use crate::tables::Kind;

fn bad(key: &str, scope: sec::Scope) -> sec::Authorization {
    policy(key, Deny, from_namespace("nobody")).with(|p| {
        p.scope = scope.into();
        p.rules[0].clauses[0].matches[0].destination_ports = vec![70_000];
    })
}

const PLACE: &str =
    "rules[0].clauses[0].matches[0].destination_ports[0]: port: 70000 is not a port";

fn refuse(tables: &Tables, bad: &sec::Authorization) -> Tables {
    let (next, refused) = tables.with(bad.kind(), &[bad.entry()], &[]);
    assert_eq!(refused, [(bad.name(), PLACE.to_owned())]);
    next
}

fn shop_and_bank() -> Tables {
    mesh(&[&web(), &pod("bank/db-1", "10.0.0.2")])
}

fn open(tables: &Tables) -> [bool; 2] {
    let peer = Peer {
        source: ip("10.0.0.9"),
        identity: None,
        dst: TARGET.parse().unwrap(),
        direction: Direction::Inbound,
    };
    ["shop/web-1", "bank/db-1"].map(|name| {
        let verdict = authorise(tables, workload(tables, name), &peer);
        matches!(verdict, Verdict::Allowed { .. })
    })
}

#[test]
fn what_it_says_to_govern_is_closed_and_nothing_else() {
    let cases = [
        (bad("shop/p", sec::Scope::Namespace), [false, true]),
        (bad("istio-system/p", sec::Scope::Global), [false, false]),
        (bad("shop/p", sec::Scope::WorkloadSelector), [true, true]),
        (
            bad("shop/p", sec::Scope::Namespace).with(|p| p.dry_run = true),
            [true, true],
        ),
    ];
    for (policy, expected) in cases {
        let tables = refuse(&shop_and_bank(), &policy);
        assert_eq!(open(&tables), expected, "{policy:?}");
    }
}

#[test]
fn the_refusal_is_the_reason() {
    let tables = refuse(&shop_and_bank(), &bad("shop/p", sec::Scope::Namespace));
    let denied = verdict(&tables, "10.0.0.9", Some("a/x"));
    assert!(
        matches!(&denied, Verdict::Denied { because: Because::Refused(key), .. } if &**key == "shop/p")
    );
    assert_eq!(why(denied), format!("policy shop/p was refused: {PLACE}"));
}

#[test]
fn an_older_version_stays_in_force_instead() {
    let good = policy("shop/p", Deny, from_namespace("nobody"));
    let tables = refuse(
        &push(&shop_and_bank(), &good),
        &bad("shop/p", sec::Scope::Namespace),
    );
    assert_eq!(open(&tables), [true, true]);
    assert_eq!(tables.refusals().count(), 0);
}

#[test]
fn a_correction_or_a_removal_opens_it_again() {
    let closed = refuse(&shop_and_bank(), &bad("shop/p", sec::Scope::Namespace));
    let corrected = push(&closed, &policy("shop/p", Deny, from_namespace("nobody")));
    let (removed, _) = closed.with(Kind::Authorization, &[], &["shop/p".into()]);
    let still = bad("shop/p", sec::Scope::Namespace).with(|p| p.dry_run = true);
    for tables in [corrected, removed, refuse(&closed, &still)] {
        assert_eq!(open(&tables), [true, true]);
    }
}

#[test]
fn bytes_that_do_not_say_what_they_govern_close_only_for_whom_names_them() {
    let names_it = web().with(|w| w.authorization_policies = vec!["shop/p".into()]);
    for (workload, expected) in [(web(), [true, true]), (names_it, [false, true])] {
        let tables = push(&shop_and_bank(), &workload);
        let bytes = bytes::Bytes::from_static(b"\xff\xff");
        let (tables, refused) = tables.with(Kind::Authorization, &[("shop/p".into(), bytes)], &[]);
        assert_eq!((refused.len(), open(&tables)), (1, expected));
    }
}
