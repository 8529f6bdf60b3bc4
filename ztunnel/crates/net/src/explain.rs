//! `explain`: what would become of a connection, said by the same functions that decide over real ones. Owns the answer's
//! shape (JSON) and no decision; opens nothing.

mod end;

use crate::places::{self, Source};
use end::{denied, leaving_end, object, plaintext_end, tunnel_end, unjudged};
use serde_json::{Map, Value, json};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use ztunnel_core::addr::OrigDst;
use ztunnel_core::decide::{Circumstances, Route, candidates, choose};
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Outbound, Protocol, Service, Tables, Workload};

/// Evenly spread over the dice: everything that more than one in this many connections would get is found.
const ROLLS: u64 = 512;
/// More endpoints than this are counted, not listed.
const LISTED: usize = 50;

/// What else the way depends on: the tunnel's own settings.
#[derive(Debug, Clone, Copy)]
pub struct Own {
    pub same_node_tls: bool,
    /// The direct path within the node is on.
    pub direct: bool,
    pub outbound: Outbound,
}

/// The answer for `source` calling `destination` (notation: `places`). Err: a sentence about the question.
pub fn explain(
    tables: &Tables,
    own: Own,
    source: &str,
    destination: &str,
) -> Result<Value, String> {
    let from = places::source(tables, source)?;
    let namespace = match &from {
        Source::Known(workload) => &*workload.namespace,
        Source::Stranger(_) => "",
    };
    let place = places::destination(tables, namespace, destination)?;
    let ways = match &from {
        Source::Known(workload) if workload.protocol == Protocol::Hbone => {
            captured(tables, own, workload, place.address)
        }
        _ => uncaptured(tables, &from, place.address)?,
    };
    Ok(json!({
        "source": source_json(&from),
        "destination": destination_json(tables, namespace, &place),
        "endpoints": endpoints(tables, &from, namespace, place.address),
        "ways": ways,
        "verdict": overall(&ways),
    }))
}

fn source_json(of: &Source) -> Value {
    match of {
        Source::Stranger(ip) => {
            json!({ "address": ip.to_string(), "known": false, "captured": false })
        }
        Source::Known(w) => json!({
            "known": true,
            "captured": w.protocol == Protocol::Hbone,
            "uid": *w.uid,
            "namespace": w.namespace,
            "name": w.name,
            "node": w.node,
            "address": w.addresses.first().map(ToString::to_string),
            "identity": w.identity().as_str(),
        }),
    }
}

fn destination_json(tables: &Tables, namespace: &str, place: &places::Place) -> Value {
    let ip = place.address.ip();
    let service = tables.service_by_vip(tables.network(), ip, namespace);
    json!({
        "address": place.address.to_string(),
        "headless": place.headless,
        "workload": tables.workload_by_ip(tables.network(), ip).map(|w| format!("{}/{}", w.namespace, w.name)),
        "service": service.map(|s| &*s.key),
    })
}

fn endpoints(tables: &Tables, from: &Source, namespace: &str, dst: SocketAddr) -> Value {
    let Source::Known(from) = from else {
        return json!([]);
    };
    let own = tables.workload_by_ip(tables.network(), dst.ip());
    let Some(service) = tables
        .service_by_vip(tables.network(), dst.ip(), namespace)
        .filter(|_| own.is_none())
    else {
        return json!([]);
    };
    let line = |(e, why): &(&ztunnel_core::tables::Endpoint, Option<String>)| {
        json!({
            "workload": format!("{}/{}", e.workload.namespace, e.workload.name),
            "addresses": e.workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "node": e.workload.node,
            "eligible": why.is_none(),
            "weight": e.workload.capacity,
            "because": why,
        })
    };
    let mut all = candidates(tables, from, service, dst);
    all.sort_by_key(|(_, why)| why.is_some());
    all.iter().take(LISTED).map(line).collect::<Vec<_>>().into()
}

/// Every different way that the dice may choose, each judged at its end.
fn captured(tables: &Tables, own: Own, from: &Arc<Workload>, dst: SocketAddr) -> Value {
    let mut ways: Vec<(Route, u64)> = Vec::new();
    for roll in 0..ROLLS {
        let around = Circumstances {
            client: from.addresses.first().copied().unwrap_or(dst.ip()),
            outbound: own.outbound,
            ..Circumstances::first(roll * (u64::MAX / ROLLS))
        };
        let chosen = choose(tables, from, OrigDst(dst), &around);
        match ways.iter_mut().find(|(known, _)| *known == chosen) {
            Some((_, times)) => *times += 1,
            None => ways.push((chosen, 1)),
        }
    }
    ways.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    let judged = |(way, times): &(Route, u64)| {
        let mut said = judge(tables, own, from, ways.len() == 1, way);
        said.extend(leaving_end(tables, from, dst, way));
        said.insert("share".into(), json!(*times as f64 / ROLLS as f64));
        Value::Object(said)
    };
    ways.iter().map(judged).collect::<Vec<_>>().into()
}

fn judge(
    tables: &Tables,
    own: Own,
    from: &Arc<Workload>,
    only: bool,
    way: &Route,
) -> Map<String, Value> {
    match way {
        Route::Refused { why } => object(json!({
            "route": { "kind": "refused", "because": why.to_string() },
            "verdict": denied("source", &why.to_string()),
        })),
        Route::Lookup { hostname } => {
            let mut said = object(json!({
                "route": { "kind": "lookup", "hostname": hostname, "because": "the endpoint is known by name only" },
            }));
            said.extend(unjudged(
                "the name is looked up when a connection is opened",
            ));
            said
        }
        Route::Passthrough {
            dial,
            because,
            upstream,
            service,
        } => {
            let there = upstream
                .as_ref()
                .or_else(|| tables.workload_by_ip(tables.network(), dial.0.ip()));
            let mut said = object(json!({
                "route": { "kind": "passthrough", "dial": dial.0.to_string(), "because": because.to_string(),
                           "service": service.as_ref().map(|s| &*s.key) },
            }));
            said.extend(plaintext_end(
                tables,
                from.addresses.first().copied(),
                there,
                dial.0,
            ));
            said
        }
        Route::Tunnel {
            dial,
            authority,
            want,
            upstream,
            service,
            beyond,
        } => {
            let joined = upstream
                .as_ref()
                .filter(|_| beyond.is_none())
                .is_some_and(|to| *to.node == *from.node && !to.node.is_empty());
            let joined = joined && !own.same_node_tls;
            let waypoint = upstream.as_ref().filter(|to| {
                beyond.is_none()
                    && !to
                        .addresses
                        .iter()
                        .any(|ip| authority_is_at(authority, *ip))
            });
            let mut said = object(json!({
                "route": {
                    "kind": if joined { "joined" } else { "tunnel" },
                    "direct": joined && own.direct && waypoint.is_none() && (only || service.is_none()),
                    "dial": dial.0.to_string(),
                    "authority": authority,
                    "expects": want.iter().map(SpiffeId::as_str).collect::<Vec<_>>(),
                    "upstream": upstream.as_ref().map(|w| format!("{}/{}", w.namespace, w.name)),
                    "node": upstream.as_ref().map(|w| &*w.node),
                    "service": service.as_ref().map(|s: &Arc<Service>| &*s.key),
                    "gateway": beyond.as_ref().map(|b| format!("{}/{}", b.gateway.namespace, b.gateway.name)),
                },
                "waypoint": waypoint.map(|w| format!("{}/{}", w.namespace, w.name)),
            }));
            said.extend(match beyond {
                Some(_) => unjudged("the other network decides"),
                None => tunnel_end(tables, from, upstream.as_ref(), dial.0, authority),
            });
            said
        }
    }
}

fn authority_is_at(authority: &str, ip: IpAddr) -> bool {
    authority
        .parse::<SocketAddr>()
        .is_ok_and(|to| to.ip() == ip)
}

/// From a pod without capture or from a stranger: this node's tunnel never sees it, the destination's may.
fn uncaptured(tables: &Tables, from: &Source, dst: SocketAddr) -> Result<Value, String> {
    let (source, because) = match from {
        Source::Known(w) => (
            w.addresses.first().copied(),
            "the source has no tunnel: its connections are not captured",
        ),
        Source::Stranger(ip) => (
            Some(*ip),
            "no workload has the source's address: its connections are not captured",
        ),
    };
    let to = tables.workload_by_ip(tables.network(), dst.ip());
    let mut said = object(json!({
        "route": { "kind": "uncaptured", "dial": dst.to_string(), "because": because }, "share": 1.0,
    }));
    let service = tables.service_by_vip(tables.network(), dst.ip(), "");
    if to.is_none() && service.is_some() {
        return Err(format!(
            "{because}; {dst} is a virtual address, which something else resolves for it: ask for one of the endpoints"
        ));
    }
    said.extend(plaintext_end(tables, source, to, dst));
    Ok(json!([said]))
}

/// All ways alike, or it depends on the endpoint.
fn overall(ways: &Value) -> &'static str {
    let allowed = |way: &Value| way["verdict"]["allowed"] == true;
    let all = ways.as_array().map_or(&[][..], Vec::as_slice);
    match all.iter().filter(|way| allowed(way)).count() {
        0 => "denied",
        n if n == all.len() => "allowed",
        _ => "depends on the endpoint",
    }
}
