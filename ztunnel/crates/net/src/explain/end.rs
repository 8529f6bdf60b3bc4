//! The destination's part of `explain`: target, policies and verdict where a connection arrives. As its tunnel decides.

use crate::registry::Kind;
use crate::verdict::leaving;
use serde_json::{Map, Value, json};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use ztunnel_core::addr::{HBONE_PORT, is_illegal};
use ztunnel_core::authz::{Because, Direction, Hit, Peer, Verdict, authorise, rehearse, standing};
use ztunnel_core::decide::{Route, inbound_target};
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Action, Policy, Protocol, Scope, Tables, Workload};

/// What Istio's control planes call the policies that PeerAuthentication becomes.
const STATIC_STRICT: &str = "istio_converted_static_strict";
const CONVERTED: &str = "converted_peer_authentication_";

/// The source's part: its egress policies, if it has any. A denial there is the end of it.
pub(super) fn leaving_end(
    tables: &Tables,
    from: &Workload,
    dst: SocketAddr,
    route: &Route,
) -> Map<String, Value> {
    let fitting = |ip: &&IpAddr| ip.is_ipv4() == dst.is_ipv4();
    let source = from.addresses.iter().find(fitting).copied();
    let source = source.unwrap_or(dst.ip());
    let asked = leaving(from, source, dst, route).filter(|_| !from.egress_policies.is_empty());
    let Some(asked) = asked else {
        return Map::new();
    };
    let peer = asked.peer(Kind::Outbound);
    let policies = tables.egress_policies_for(from);
    let policies: Vec<_> = policies.map(|p| policy_json(tables, p, &peer)).collect();
    let verdict = authorise(tables, from, &peer);
    let said = verdict_json(&verdict, "source");
    let mut out = object(json!({ "egress": { "policies": policies, "verdict": said } }));
    if let Verdict::Denied { .. } = verdict {
        out.insert("verdict".into(), said);
    }
    out
}

/// What the tunnel at the other end says to the CONNECT.
pub(super) fn tunnel_end(
    tables: &Tables,
    from: &Workload,
    to: Option<&Arc<Workload>>,
    dial: SocketAddr,
    authority: &str,
) -> Map<String, Value> {
    let Some(to) = to else {
        return unjudged("the other end is not known here; it decides itself");
    };
    if to.native_tunnel {
        return unjudged(
            "the other end terminates the tunnel itself and decides by its own policies",
        );
    }
    let arrived = SocketAddr::new(dial.ip(), HBONE_PORT);
    match inbound_target(tables, to, arrived, authority) {
        Err(refused) => object(json!({
            "inbound": { "refused": refused.why.to_string(), "status": refused.status },
            "verdict": denied("destination", &refused.why.to_string()),
        })),
        Ok(target) => {
            let source = from
                .addresses
                .iter()
                .find(|ip| ip.is_ipv4() == dial.is_ipv4());
            let source = source
                .or(from.addresses.first())
                .copied()
                .unwrap_or(dial.ip());
            judged(
                tables,
                to,
                &Peer {
                    source,
                    identity: Some(from.identity()),
                    dst: target.addr,
                    direction: Direction::Inbound,
                },
            )
        }
    }
}

/// A connection that no tunnel carries: at a pod of the mesh it arrives at 15006 and is nobody's.
pub(super) fn plaintext_end(
    tables: &Tables,
    source: Option<IpAddr>,
    to: Option<&Arc<Workload>>,
    dst: SocketAddr,
) -> Map<String, Value> {
    match to {
        Some(to) if to.protocol == Protocol::Hbone && is_illegal(dst.port()) => object(json!({
            "inbound": { "refused": "a port of the tunnel itself: a loop" },
            "verdict": denied("destination", &format!("{dst} is a port of the tunnel itself: a loop")),
        })),
        Some(to) if to.protocol == Protocol::Hbone => judged(
            tables,
            to,
            &Peer {
                source: source.unwrap_or(dst.ip()),
                identity: None,
                dst,
                direction: Direction::Inbound,
            },
        ),
        Some(_) => unjudged("the destination is not in the mesh: nobody checks there"),
        None => unjudged("the destination is outside of the mesh: nobody checks there"),
    }
}

fn judged(tables: &Tables, to: &Arc<Workload>, peer: &Peer<'_>) -> Map<String, Value> {
    let policies: Vec<_> = tables
        .policies_for(to)
        .map(|p| policy_json(tables, p, peer))
        .collect();
    let verdict = authorise(tables, to, peer);
    let rehearsed = match rehearse(tables, to, peer) {
        Some(Verdict::Denied { why, .. }) => Some(why),
        _ => None,
    };
    object(json!({
        "inbound": {
            "workload": format!("{}/{}", to.namespace, to.name),
            "node": to.node,
            "target": peer.dst.to_string(),
            "source": peer.source.to_string(),
            "identity": peer.identity.map(SpiffeId::as_str),
        },
        "policies": policies,
        "peerAuthentication": peer_authentication(tables, to, peer),
        "verdict": verdict_json(&verdict, "destination"),
        "dryRun": rehearsed,
    }))
}

fn policy_json(tables: &Tables, found: Result<&Arc<Policy>, &Arc<str>>, peer: &Peer<'_>) -> Value {
    let policy = match found {
        Ok(policy) => policy,
        Err(key) => {
            let refused = tables.refusal(key).map(|refused| &*refused.why);
            return json!({ "name": **key, "known": false, "refused": refused });
        }
    };
    let stands = standing(policy, peer);
    json!({
        "name": *policy.key,
        "known": true,
        "action": policy.action.name(),
        "scope": match policy.scope {
            Scope::Global => "mesh",
            Scope::Namespace => "namespace",
            Scope::WorkloadSelector => "workload",
        },
        "dryRun": policy.dry_run,
        "matches": stands.is_ok(),
        "rule": stands.as_ref().ok(),
        "rules": policy.rules.len(),
        "because": stands.err().unwrap_or_default(),
    })
}

fn verdict_json(verdict: &Verdict, end: &str) -> Value {
    let (allowed, by, rule, why) = match verdict {
        Verdict::Allowed {
            by: Some(Hit { policy, rule }),
        } => (
            true,
            Some(policy),
            Some(*rule),
            format!("allowed by policy {policy}"),
        ),
        Verdict::Allowed { by: None } => {
            let why = "no ALLOW policy is in force here and no DENY matches";
            (true, None, None, why.to_owned())
        }
        Verdict::Denied { because, why } => match because {
            Because::Matched(Hit { policy, rule }) => {
                (false, Some(policy), Some(*rule), why.clone())
            }
            Because::Refused(key) | Because::Unknown(key) => (false, Some(key), None, why.clone()),
            Because::NoneMatched => (false, None, None, why.clone()),
        },
    };
    json!({ "allowed": allowed, "by": by.map(|key| &**key), "rule": rule, "why": why, "end": end })
}

/// STRICT when plaintext to this port is refused by what PeerAuthentication became.
fn peer_authentication(tables: &Tables, to: &Arc<Workload>, peer: &Peer<'_>) -> Value {
    let anonymous = Peer {
        identity: None,
        ..*peer
    };
    let converted = |p: &&Arc<Policy>| *p.name == *STATIC_STRICT || p.name.starts_with(CONVERTED);
    let refuses = |p: &&Arc<Policy>| {
        p.action == Action::Deny && !p.dry_run && standing(p, &anonymous).is_ok()
    };
    let by = tables
        .policies_for(to)
        .flatten()
        .filter(converted)
        .find(refuses);
    json!({ "mode": if by.is_some() { "STRICT" } else { "PERMISSIVE" }, "by": by.map(|p| &*p.key) })
}

pub(super) fn denied(end: &str, why: &str) -> Value {
    json!({ "allowed": false, "by": null, "rule": null, "why": why, "end": end })
}

pub(super) fn unjudged(why: &str) -> Map<String, Value> {
    object(
        json!({ "verdict": { "allowed": true, "by": null, "rule": null, "why": why, "end": "destination" } }),
    )
}

pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
