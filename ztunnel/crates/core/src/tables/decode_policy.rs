//! `istio.security.Authorization` to `Policy`. A part that cannot be read refuses the whole policy: leaving it out would
//! widen an ALLOW or narrow a DENY in silence. The refusal names the place, `rules[0].clauses[1].matches[0].source_ips[2]`.
//!
//! What Istio's messages have no field for travels in extensions, so that another tunnel never takes it for something else:
//! an AUDIT is a dry run there, and a policy about outgoing connections one that no workload names.

use super::decode::{Unusable, cidr, filled, known, same_name};
use super::model::*;
use crate::wire::security as pb;
use crate::wire::workload as wl;
use prost::Message;

/// On an Authorization with `dry_run`: its action is AUDIT.
const AUDIT: &str = "nodemesh/audit";
/// On a Workload, one per policy: `google.protobuf.StringValue` with the key of a policy about whom it may call.
const EGRESS: &str = "nodemesh/egress-policy";
/// On a Match, one per value: a `StringMatch` of the addressed service's hostname, and its negation.
const SERVICE: &str = "nodemesh/service";
const NOT_SERVICE: &str = "nodemesh/not-service";

pub(super) fn policy(name: &str, bytes: &[u8]) -> Result<Policy, Unusable> {
    let message = pb::Authorization::decode(bytes)?;
    let (own, namespace) = (
        filled("name", message.name)?,
        filled("namespace", message.namespace)?,
    );
    let key = format!("{namespace}/{own}");
    same_name(name, &key)?;
    let audit = message.dry_run && message.extensions.iter().any(|e| e.name == AUDIT);
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
            _ if audit => Action::Audit,
            pb::Action::Allow => Action::Allow,
            pb::Action::Deny => Action::Deny,
        },
        dry_run: message.dry_run && !audit,
        rules: each("rules", message.rules, rule)?,
    })
}

/// What is closed because this was refused. None: nothing, it would not have been enforced.
pub(super) fn refused(bytes: &[u8], why: &Unusable) -> Option<Refused> {
    let message = pb::Authorization::decode(bytes).unwrap_or_default();
    let governs = match pb::Scope::try_from(message.scope) {
        Ok(pb::Scope::Global) => Some(""),
        Ok(pb::Scope::Namespace) => Some(&*message.namespace),
        Ok(pb::Scope::WorkloadSelector) | Err(_) => None,
    };
    // Bytes that are no message, or one without a namespace, do not say what they govern.
    let known = !message.namespace.is_empty();
    (!message.dry_run).then(|| Refused {
        group: governs.filter(|_| known).map(Box::from),
        why: why.to_string().into(),
    })
}

pub(super) fn egress_policies(extensions: &[wl::Extension]) -> Result<Box<[Key]>, Unusable> {
    let named = extensions.iter().filter(|e| e.name == EGRESS);
    let key = |extension: &wl::Extension| {
        let config = extension.config.as_ref().ok_or(Unusable::Empty(EGRESS))?;
        match String::decode(&*config.value)? {
            key if key.is_empty() => Err(Unusable::Empty(EGRESS)),
            key => Ok(key.into()),
        }
    };
    named.map(key).collect()
}

/// Reads all; a refusal says which one of `field` it is.
fn each<W, T>(
    field: &'static str,
    messages: Vec<W>,
    read: impl Fn(W) -> Result<T, Unusable>,
) -> Result<Box<[T]>, Unusable> {
    let numbered = messages.into_iter().enumerate();
    let one = |(n, message)| read(message).map_err(|why| why.within(format_args!("{field}[{n}]")));
    numbered.map(one).collect()
}

/// An attribute: the names of its two fields, and what is in them.
fn pair<W, T>(
    (field, not_field): (&'static str, &'static str),
    any: Vec<W>,
    none: Vec<W>,
    read: impl Fn(W) -> Result<T, Unusable>,
) -> Result<Pair<T>, Unusable> {
    Ok(Pair {
        any: each(field, any, &read)?,
        none: each(not_field, none, &read)?,
    })
}

fn rule(message: pb::Rule) -> Result<Rule, Unusable> {
    let clause = |clause: pb::Clause| each("matches", clause.matches, one_match).map(Clause);
    each("clauses", message.clauses, clause).map(Rule)
}

fn one_match(m: pb::Match) -> Result<Match, Unusable> {
    let namespaces = ("namespaces", "not_namespaces");
    let principals = ("principals", "not_principals");
    let accounts = ("service_accounts", "not_service_accounts");
    let sources = ("source_ips", "not_source_ips");
    let destinations = ("destination_ips", "not_destination_ips");
    let ports = ("destination_ports", "not_destination_ports");
    Ok(Match {
        namespaces: pair(namespaces, m.namespaces, m.not_namespaces, text)?,
        principals: pair(principals, m.principals, m.not_principals, text)?,
        service_accounts: pair(
            accounts,
            m.service_accounts,
            m.not_service_accounts,
            account,
        )?,
        source_ips: pair(sources, m.source_ips, m.not_source_ips, range)?,
        destination_ips: pair(
            destinations,
            m.destination_ips,
            m.not_destination_ips,
            range,
        )?,
        destination_ports: pair(ports, m.destination_ports, m.not_destination_ports, port)?,
        services: services(m.extensions)?,
    })
}

fn services(extensions: Vec<pb::Extension>) -> Result<Pair<Text>, Unusable> {
    let (mut any, mut none) = (Vec::new(), Vec::new());
    for extension in extensions {
        let (list, field) = match &*extension.name {
            SERVICE => (&mut any, SERVICE),
            NOT_SERVICE => (&mut none, NOT_SERVICE),
            _ => return Err(Unusable::Extension(extension.name)),
        };
        let config = extension.config.ok_or(Unusable::Empty(field))?;
        let value = pb::StringMatch::decode(&*config.value).map_err(Unusable::from);
        list.push(value.and_then(text).map_err(|why| why.within(field))?);
    }
    Ok(Pair {
        any: any.into(),
        none: none.into(),
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
        namespace: filled("namespace", message.namespace)?,
        name: filled("serviceAccount", message.service_account)?,
    })
}

fn range(message: pb::Address) -> Result<Cidr, Unusable> {
    cidr("address", &message.address, message.length)
}

fn port(number: u32) -> Result<u16, Unusable> {
    u16::try_from(number).map_err(|_| Unusable::Port {
        field: "port",
        port: number,
    })
}
