//! May this peer reach this workload? Istio's layer-4 semantics, except that what is unknown is denied. Owns the
//! evaluation; not the policies (`tables`) and not what is done to a connection that is denied.

use crate::ids::SpiffeId;
use crate::tables::{
    Account, Action, Cidr, Clause, Key, Match, Pair, Policy, Rule, Tables, Text, Workload,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

mod words;

pub use words::standing;

/// Which end judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction<'a> {
    /// The server's, by the policies about it.
    Inbound,
    /// The client's, by its egress policies. `service`: hostname of the service that it addressed.
    Outbound { service: Option<&'a str> },
}

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub source: IpAddr,
    /// Of the other end, as the one that judges has proved or demands it. None: plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// The pod's IP and the application's port.
    pub dst: SocketAddr,
    pub direction: Direction<'a>,
}

impl<'a> Peer<'a> {
    /// Hostname of the addressed service, on the client's side.
    fn service(&self) -> Option<&'a str> {
        match self.direction {
            Direction::Outbound { service } => service,
            Direction::Inbound => None,
        }
    }
}

/// A policy that matched, and its first rule that did, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hit {
    pub policy: Key,
    pub rule: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `by`: the ALLOW policy that matched; None: there is no ALLOW policy.
    Allowed { by: Option<Hit> },
    /// `why`: `because` as a sentence.
    Denied { because: Because, why: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// A DENY policy.
    Matched(Hit),
    /// A policy that applies was refused, and there is no older version of it.
    Refused(Key),
    /// A policy that applies has not arrived.
    Unknown(Key),
    /// There are ALLOW policies, and none of them matched.
    NoneMatched,
}

/// The verdict in force. Any DENY that matches, then any policy that is not there, denies; then, if there are ALLOW
/// policies, one has to match. `of`: the workload whose side judges. Allocates only to deny.
pub fn authorise(tables: &Tables, of: &Workload, peer: &Peer<'_>) -> Verdict {
    evaluate(tables, of, peer, |policy| !policy.dry_run)
}

/// The verdict if the dry-run policies were in force too; None: there is none here.
pub fn rehearse(tables: &Tables, of: &Workload, peer: &Peer<'_>) -> Option<Verdict> {
    let mut known = candidates(tables, of, peer.direction).flatten();
    known
        .any(|policy| policy.dry_run)
        .then(|| evaluate(tables, of, peer, |_| true))
}

/// The policies that decide nothing (AUDIT, dry run) and match. Allocates only if there are any.
pub fn observe(tables: &Tables, of: &Workload, peer: &Peer<'_>) -> Vec<(Arc<Policy>, usize)> {
    let peer = &canonical(peer);
    let known = candidates(tables, of, peer.direction).flatten();
    known
        .filter(|policy| policy.dry_run || policy.action == Action::Audit)
        .filter_map(|policy| Some((policy.clone(), first_rule(policy, peer)?)))
        .collect()
}

fn candidates<'a>(
    tables: &'a Tables,
    of: &'a Workload,
    direction: Direction<'_>,
) -> impl Iterator<Item = Result<&'a Arc<Policy>, &'a Key>> {
    let inbound = direction == Direction::Inbound;
    let about_it = inbound.then(|| tables.policies_for(of));
    let its_own = (!inbound).then(|| tables.egress_policies_for(of));
    let about_it = about_it.into_iter().flatten();
    about_it.chain(its_own.into_iter().flatten())
}

fn evaluate(
    tables: &Tables,
    of: &Workload,
    peer: &Peer<'_>,
    in_force: impl Fn(&Policy) -> bool,
) -> Verdict {
    let peer = &canonical(peer);
    let (mut refused, mut unknown, mut allows, mut allowed_by) = (None, None, false, None);
    for candidate in candidates(tables, of, peer.direction) {
        match candidate {
            Err(key) => match tables.refusal(key) {
                Some(refusal) => refused = refused.or(Some((key, &refusal.why))),
                None => unknown = unknown.or(Some(key)),
            },
            Ok(policy) if !in_force(policy) => {}
            Ok(policy) => match policy.action {
                Action::Audit => {}
                Action::Deny => {
                    if let Some(rule) = first_rule(policy, peer) {
                        let why = format!("denied by policy {}", policy.key);
                        return denied(Because::Matched(hit(policy, rule)), why);
                    }
                }
                Action::Allow => {
                    allows = true;
                    if allowed_by.is_none() {
                        allowed_by = first_rule(policy, peer).map(|rule| hit(policy, rule));
                    }
                }
            },
        }
    }
    match (refused, unknown) {
        (Some((key, why)), _) => denied(
            Because::Refused(key.clone()),
            format!("policy {key} was refused: {why}"),
        ),
        (None, Some(key)) => denied(
            Because::Unknown(key.clone()),
            format!("policy {key} is not known yet"),
        ),
        (None, None) if allows && allowed_by.is_none() => {
            none_matched(tables, of, peer.direction, in_force)
        }
        (None, None) => Verdict::Allowed { by: allowed_by },
    }
}

fn hit(policy: &Policy, rule: usize) -> Hit {
    Hit {
        policy: policy.key.clone(),
        rule,
    }
}

/// A mapped address must not slip past a policy for its v4 self.
fn canonical<'a>(peer: &Peer<'a>) -> Peer<'a> {
    Peer {
        source: peer.source.to_canonical(),
        dst: crate::addr::canonical(peer.dst),
        ..*peer
    }
}

fn none_matched(
    tables: &Tables,
    of: &Workload,
    direction: Direction<'_>,
    in_force: impl Fn(&Policy) -> bool,
) -> Verdict {
    const SHOWN: usize = 5;
    let known = candidates(tables, of, direction).flatten();
    let asked: Vec<&str> = known
        .filter(|p| p.action == Action::Allow && in_force(p))
        .map(|policy| &*policy.key)
        .collect();
    let shown = asked[..asked.len().min(SHOWN)].join(", ");
    let rest = if asked.len() > SHOWN { ", ..." } else { "" };
    denied(
        Because::NoneMatched,
        format!("no ALLOW policy matched ({shown}{rest})"),
    )
}

fn denied(because: Because, why: String) -> Verdict {
    Verdict::Denied { because, why }
}

fn first_rule(policy: &Policy, peer: &Peer<'_>) -> Option<usize> {
    policy
        .rules
        .iter()
        .position(|Rule(clauses)| clauses.iter().all(|clause| clause_holds(clause, peer)))
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
        && pair(&m.services, |text| {
            peer.service().is_some_and(|host| says(text, host))
        })
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
