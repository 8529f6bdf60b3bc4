//! May this peer reach this workload? Istio's layer-4 semantics, except that what is unknown is denied. Owns the
//! evaluation; not the policies (`tables`) and not what is done to a connection that is denied.

use crate::ids::SpiffeId;
use crate::tables::{
    Account, Action, Cidr, Clause, Key, Match, Pair, Policy, Rule, Tables, Text, Workload,
};
use std::net::{IpAddr, SocketAddr};

mod words;

pub use words::standing;

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub source: IpAddr,
    /// None: plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// The pod's IP and the application's port.
    pub dst: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `by`: the ALLOW policy that matched; None: there is no ALLOW policy.
    Allowed { by: Option<Key> },
    /// `by`: the DENY policy that matched, or the policy that is not known.
    Denied { by: Option<Key>, why: String },
}

/// The verdict in force. Any DENY that matches, then any policy that is not known, denies; then, if there are ALLOW
/// policies, one has to match. Allocates only to deny.
pub fn authorise(tables: &Tables, to: &Workload, peer: &Peer<'_>) -> Verdict {
    evaluate(tables, to, peer, |policy| !policy.dry_run)
}

/// The verdict if the dry-run policies were in force too; None: there is none here.
pub fn rehearse(tables: &Tables, to: &Workload, peer: &Peer<'_>) -> Option<Verdict> {
    let mut known = tables.policies_for(to).flatten();
    known
        .any(|policy| policy.dry_run)
        .then(|| evaluate(tables, to, peer, |_| true))
}

fn evaluate(
    tables: &Tables,
    to: &Workload,
    peer: &Peer<'_>,
    in_force: impl Fn(&Policy) -> bool,
) -> Verdict {
    let peer = &canonical(peer);
    let (mut unknown, mut allows, mut allowed_by) = (None, false, None);
    for candidate in tables.policies_for(to) {
        match candidate {
            Err(key) => unknown = unknown.or(Some(key)),
            Ok(policy) if !in_force(policy) => {}
            Ok(policy) if policy.action == Action::Deny => {
                if holds(policy, peer) {
                    return denied(
                        Some(&policy.key),
                        format!("denied by policy {}", policy.key),
                    );
                }
            }
            Ok(policy) => {
                allows = true;
                if allowed_by.is_none() && holds(policy, peer) {
                    allowed_by = Some(policy.key.clone());
                }
            }
        }
    }
    match unknown {
        Some(key) => denied(Some(key), format!("policy {key} is not known yet")),
        None if allows && allowed_by.is_none() => denied(None, none_matched(tables, to, in_force)),
        None => Verdict::Allowed { by: allowed_by },
    }
}

/// A mapped address must not slip past a policy for its v4 self.
fn canonical<'a>(peer: &Peer<'a>) -> Peer<'a> {
    Peer {
        source: peer.source.to_canonical(),
        identity: peer.identity,
        dst: crate::addr::canonical(peer.dst),
    }
}

fn denied(by: Option<&Key>, why: String) -> Verdict {
    Verdict::Denied {
        by: by.cloned(),
        why,
    }
}

fn none_matched(tables: &Tables, to: &Workload, in_force: impl Fn(&Policy) -> bool) -> String {
    const SHOWN: usize = 5;
    let known = tables.policies_for(to).flatten();
    let asked: Vec<&str> = known
        .filter(|p| p.action == Action::Allow && in_force(p))
        .map(|policy| &*policy.key)
        .collect();
    let shown = asked[..asked.len().min(SHOWN)].join(", ");
    let rest = if asked.len() > SHOWN { ", ..." } else { "" };
    format!("no ALLOW policy matched ({shown}{rest})")
}

fn holds(policy: &Policy, peer: &Peer<'_>) -> bool {
    policy
        .rules
        .iter()
        .any(|Rule(clauses)| clauses.iter().all(|clause| clause_holds(clause, peer)))
}

fn clause_holds(Clause(matches): &Clause, peer: &Peer<'_>) -> bool {
    matches.is_empty() || matches.iter().any(|m| matches_all(m, peer))
}

fn matches_all(m: &Match, peer: &Peer<'_>) -> bool {
    let source = |range: &Cidr| range.contains(peer.source);
    let destination = |range: &Cidr| range.contains(peer.dst.ip());
    let port = |port: &u16| *port == peer.dst.port();
    let namespace = peer.identity.map_or("", SpiffeId::namespace);
    let principal = |text: &Text| peer.identity.is_some_and(|id| says(text, id.principal()));
    *m != Match::default()
        && pair(&m.destination_ips, destination)
        && pair(&m.source_ips, source)
        && pair(&m.destination_ports, port)
        && pair(&m.service_accounts, |account| {
            is_account(account, peer.identity)
        })
        && pair(&m.principals, principal)
        && pair(&m.namespaces, |text| says(text, namespace))
}

fn pair<T>(pair: &Pair<T>, is: impl Fn(&T) -> bool) -> bool {
    (pair.any.is_empty() || pair.any.iter().any(&is)) && !pair.none.iter().any(is)
}

fn is_account(account: &Account, identity: Option<&SpiffeId>) -> bool {
    identity.is_some_and(|id| {
        id.namespace() == &*account.namespace && id.service_account() == &*account.name
    })
}

fn says(text: &Text, value: &str) -> bool {
    match text {
        Text::Exact(exact) => value == &**exact,
        Text::Prefix(prefix) => value.starts_with(&**prefix),
        Text::Suffix(suffix) => value.ends_with(&**suffix),
        Text::Presence => !value.is_empty(),
    }
}

#[cfg(test)]
mod tests;
