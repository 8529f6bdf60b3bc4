//! How a policy stands to a peer, in words for a person who asks. Owns no verdict: the same predicates as the verdict's.

use super::{Peer, canonical, clause_holds, is_account, says};
use crate::ids::SpiffeId;
use crate::tables::{Account, Cidr, Clause, Match, Pair, Policy, Rule, Text};
use std::fmt::Display;

/// Longer lists are cut here: the sentence is for people.
const SHOWN: usize = 4;

/// `Ok`: the first rule that matches, counted from 0. `Err`: why each rule does not; empty: there is none.
pub fn standing(policy: &Policy, peer: &Peer<'_>) -> Result<usize, Vec<String>> {
    let peer = &canonical(peer);
    let mut unmet = Vec::with_capacity(policy.rules.len());
    for (number, Rule(clauses)) in policy.rules.iter().enumerate() {
        match clauses.iter().find(|clause| !clause_holds(clause, peer)) {
            None => return Ok(number),
            Some(Clause(matches)) => {
                let each: Vec<_> = matches.iter().map(|m| first_unmet(m, peer)).collect();
                unmet.push(listed(&each, ", and "));
            }
        }
    }
    Err(unmet)
}

fn first_unmet(m: &Match, peer: &Peer<'_>) -> String {
    let namespace = peer.identity.map_or("", SpiffeId::namespace);
    let principal = peer.identity.map_or("", SpiffeId::principal);
    let (source, to, port) = (peer.source, peer.dst.ip(), peer.dst.port());
    let by_identity = |text: &Text| peer.identity.is_some_and(|id| says(text, id.principal()));
    let account = |a: &Account| is_account(a, peer.identity);
    let addressed = peer.service().unwrap_or("");
    let says_of = |text: &Text, service: &str| !service.is_empty() && says(text, service);
    None.or_else(|| {
        unmet(
            &m.destination_ips,
            "destination address",
            &to.to_string(),
            cidr,
            |c| c.contains(to),
        )
    })
    .or_else(|| {
        unmet(
            &m.source_ips,
            "source address",
            &source.to_string(),
            cidr,
            |c| c.contains(source),
        )
    })
    .or_else(|| {
        unmet(
            &m.destination_ports,
            "port",
            &port.to_string(),
            u16::to_string,
            |p| *p == port,
        )
    })
    .or_else(|| {
        unmet(
            &m.service_accounts,
            "service account",
            principal,
            account_name,
            account,
        )
    })
    .or_else(|| unmet(&m.principals, "principal", principal, text, by_identity))
    .or_else(|| {
        unmet(&m.namespaces, "namespace", namespace, text, |t| {
            says(t, namespace)
        })
    })
    .or_else(|| {
        unmet(&m.services, "service", addressed, text, |t| {
            says_of(t, addressed)
        })
    })
    .unwrap_or_else(|| "it asks for nothing, which never matches".into())
}

fn unmet<T>(
    of: &Pair<T>,
    what: &str,
    seen: &str,
    show: impl Fn(&T) -> String,
    is: impl Fn(&T) -> bool,
) -> Option<String> {
    let seen = if seen.is_empty() {
        if what == "service" {
            "(none)"
        } else {
            "(none: plaintext)"
        }
    } else {
        seen
    };
    let several = |values: &[T]| listed(&values.iter().map(&show).collect::<Vec<_>>(), ", ");
    if !of.any.is_empty() && !of.any.iter().any(&is) {
        return Some(format!("{what} {seen} is not {}", several(&of.any)));
    }
    let excluded = of.none.iter().find(|value| is(value))?;
    Some(format!(
        "{what} {seen} is excluded by not {}",
        show(excluded)
    ))
}

fn listed<T: Display>(values: &[T], between: &str) -> String {
    let shown: Vec<_> = values.iter().take(SHOWN).map(T::to_string).collect();
    let more = values.len().saturating_sub(SHOWN);
    let rest = if more > 0 {
        format!(" (and {more} more)")
    } else {
        String::new()
    };
    shown.join(between) + &rest
}

fn cidr(of: &Cidr) -> String {
    if of.is_host() {
        of.ip.to_string()
    } else {
        format!("{}/{}", of.ip, of.prefix)
    }
}

fn account_name(of: &Account) -> String {
    format!("{}/{}", of.namespace, of.name)
}

fn text(of: &Text) -> String {
    match of {
        Text::Exact(value) => value.to_string(),
        Text::Prefix(value) => format!("{value}*"),
        Text::Suffix(value) => format!("*{value}"),
        Text::Presence => "*".into(),
    }
}
