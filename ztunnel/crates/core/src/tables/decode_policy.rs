//! `istio.security.Authorization` to `Policy`. A part that cannot be read refuses the whole policy: leaving it out would
//! widen an ALLOW or narrow a DENY in silence.

use super::decode::{Unusable, cidr, each, filled, known, same_name};
use super::model::*;
use crate::wire::security as pb;
use prost::Message;

pub(super) fn policy(name: &str, bytes: &[u8]) -> Result<Policy, Unusable> {
    let message = pb::Authorization::decode(bytes)?;
    let (own, namespace) = (
        filled("name", message.name)?,
        filled("namespace", message.namespace)?,
    );
    let key = format!("{namespace}/{own}");
    same_name(name, &key)?;
    Ok(Policy {
        key: key.into(),
        name: own,
        namespace,
        scope: match known("scope", message.scope)? {
            pb::Scope::Global => Scope::Global,
            pb::Scope::Namespace => Scope::Namespace,
            pb::Scope::WorkloadSelector => Scope::WorkloadSelector,
        },
        action: match known("action", message.action)? {
            pb::Action::Allow => Action::Allow,
            pb::Action::Deny => Action::Deny,
        },
        dry_run: message.dry_run,
        rules: each(message.rules, rule)?,
    })
}

fn pair<W, T>(
    any: Vec<W>,
    none: Vec<W>,
    read: impl Fn(W) -> Result<T, Unusable>,
) -> Result<Pair<T>, Unusable> {
    Ok(Pair {
        any: each(any, &read)?,
        none: each(none, &read)?,
    })
}

fn rule(message: pb::Rule) -> Result<Rule, Unusable> {
    each(message.clauses, |clause| {
        each(clause.matches, one_match).map(Clause)
    })
    .map(Rule)
}

fn one_match(message: pb::Match) -> Result<Match, Unusable> {
    if let Some(extension) = message.extensions.into_iter().next() {
        return Err(Unusable::Extension(extension.name));
    }
    Ok(Match {
        namespaces: pair(message.namespaces, message.not_namespaces, text)?,
        principals: pair(message.principals, message.not_principals, text)?,
        service_accounts: pair(
            message.service_accounts,
            message.not_service_accounts,
            account,
        )?,
        source_ips: pair(message.source_ips, message.not_source_ips, |a| {
            range("source_ips", &a)
        })?,
        destination_ips: pair(message.destination_ips, message.not_destination_ips, |a| {
            range("destination_ips", &a)
        })?,
        destination_ports: pair(
            message.destination_ports,
            message.not_destination_ports,
            port,
        )?,
    })
}

fn text(message: pb::StringMatch) -> Result<Text, Unusable> {
    use pb::string_match::MatchType;
    Ok(
        match message.match_type.ok_or(Unusable::Empty("match_type"))? {
            MatchType::Exact(text) => Text::Exact(text.into()),
            MatchType::Prefix(text) => Text::Prefix(text.into()),
            MatchType::Suffix(text) => Text::Suffix(text.into()),
            MatchType::Presence(()) => Text::Presence,
        },
    )
}

fn account(message: pb::ServiceAccountMatch) -> Result<Account, Unusable> {
    Ok(Account {
        namespace: filled("service_accounts.namespace", message.namespace)?,
        name: filled("service_accounts.serviceAccount", message.service_account)?,
    })
}

fn range(field: &'static str, message: &pb::Address) -> Result<Cidr, Unusable> {
    cidr(field, &message.address, message.length)
}

fn port(number: u32) -> Result<u16, Unusable> {
    u16::try_from(number).map_err(|_| Unusable::Port {
        field: "destination_ports",
        port: number,
    })
}
