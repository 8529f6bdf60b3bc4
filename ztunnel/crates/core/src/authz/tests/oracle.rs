//! Property: `authorise` says what a slow, literal reading of the messages says.

use super::*;
use crate::fixtures::Dice;
use sec::string_match::MatchType;

const NAMESPACES: [&str; 3] = ["a", "ab", "b"];
const ACCOUNTS: [&str; 2] = ["x", "xy"];
const SOURCES: [&str; 4] = ["10.0.0.1", "10.1.0.1", "fd00::1", "192.0.2.1"];
const PORTS: [u32; 3] = [80, 443, 8080];

fn any_text(dice: &mut Dice) -> sec::StringMatch {
    let whole = format!(
        "cluster.local/ns/{}/sa/{}",
        dice.of(&NAMESPACES),
        dice.of(&ACCOUNTS)
    );
    let text = dice.of(&[
        whole,
        "a".into(),
        "b".into(),
        "cluster.local/ns/a".into(),
        "sa/x".into(),
        String::new(),
    ]);
    let kind = match dice.below(4) {
        0 => MatchType::Exact(text),
        1 => MatchType::Prefix(text),
        2 => MatchType::Suffix(text),
        _ => MatchType::Presence(()),
    };
    sec::StringMatch {
        match_type: Some(kind),
    }
}

fn any_range(dice: &mut Dice) -> sec::Address {
    let address = packed(dice.of(&SOURCES));
    let length = dice.of(&[0, 8, 16, 32, 8 * address.len() as u32]);
    sec::Address { address, length }
}

fn any_account(dice: &mut Dice) -> sec::ServiceAccountMatch {
    let namespace = dice.of(&NAMESPACES).into();
    sec::ServiceAccountMatch {
        namespace,
        service_account: dice.of(&ACCOUNTS).into(),
    }
}

/// Mostly nothing, so that matches with one or two attributes are common.
fn few<T>(dice: &mut Dice, one: fn(&mut Dice) -> T) -> Vec<T> {
    let count = if dice.one_in(4) { 1 + dice.below(2) } else { 0 };
    (0..count).map(|_| one(dice)).collect()
}

fn any_match(dice: &mut Dice) -> sec::Match {
    sec::Match {
        namespaces: few(dice, any_text),
        not_namespaces: few(dice, any_text),
        principals: few(dice, any_text),
        not_principals: few(dice, any_text),
        source_ips: few(dice, any_range),
        not_source_ips: few(dice, any_range),
        destination_ips: few(dice, any_range),
        not_destination_ips: few(dice, any_range),
        destination_ports: few(dice, |dice| dice.of(&PORTS)),
        not_destination_ports: few(dice, |dice| dice.of(&PORTS)),
        service_accounts: few(dice, any_account),
        not_service_accounts: few(dice, any_account),
        extensions: vec![],
    }
}

fn any_policy(dice: &mut Dice, n: usize) -> sec::Authorization {
    let list = |dice: &mut Dice| dice.below(3);
    let clause = |dice: &mut Dice| sec::Clause {
        matches: (0..list(dice)).map(|_| any_match(dice)).collect(),
    };
    let rule = |dice: &mut Dice| sec::Rule {
        clauses: (0..list(dice)).map(|_| clause(dice)).collect(),
    };
    let action = dice.of(&[Allow, Deny]);
    policy(&format!("shop/p{n}"), action, vec![]).with(|p| {
        p.rules = (0..list(dice)).map(|_| rule(dice)).collect();
        p.dry_run = dice.one_in(6);
    })
}

struct Slow<'a> {
    source: IpAddr,
    identity: Option<&'a SpiffeId>,
    dst: SocketAddr,
}

impl Slow<'_> {
    fn bits(ip: IpAddr) -> String {
        match ip {
            IpAddr::V4(ip) => format!("{:032b}", ip.to_bits()),
            IpAddr::V6(ip) => format!("{:0128b}", ip.to_bits()),
        }
    }

    fn within(ip: IpAddr, range: &sec::Address) -> bool {
        let base = match range.address.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(&*range.address).unwrap()),
            _ => IpAddr::from(<[u8; 16]>::try_from(&*range.address).unwrap()),
        };
        let (ip, base) = (Self::bits(ip), Self::bits(base));
        ip.len() == base.len() && ip[..range.length as usize] == base[..range.length as usize]
    }

    fn reads(text: &sec::StringMatch, value: &str) -> bool {
        match text.match_type.as_ref().unwrap() {
            MatchType::Exact(exact) => exact == value,
            MatchType::Prefix(prefix) => value.starts_with(prefix.as_str()),
            MatchType::Suffix(suffix) => value.ends_with(suffix.as_str()),
            MatchType::Presence(()) => !value.is_empty(),
        }
    }

    fn attribute<T>(any: &[T], none: &[T], is: impl Fn(&T) -> bool) -> bool {
        let positive = any.is_empty() || any.iter().filter(|t| is(t)).count() > 0;
        let negative = none.iter().filter(|t| is(t)).count() > 0;
        positive && !negative
    }

    fn matches(&self, m: &sec::Match) -> bool {
        if *m == sec::Match::default() {
            return false;
        }
        let path: Vec<&str> = self
            .identity
            .map_or(vec![], |id| id.as_str().split('/').collect());
        let (namespace, account) = if path.is_empty() {
            ("", "")
        } else {
            (path[4], path[6])
        };
        let principal = path.get(2..).map(|parts| parts.join("/"));
        [
            Self::attribute(&m.namespaces, &m.not_namespaces, |t| {
                Self::reads(t, namespace)
            }),
            Self::attribute(&m.principals, &m.not_principals, |t| {
                principal
                    .as_ref()
                    .is_some_and(|principal| Self::reads(t, principal))
            }),
            Self::attribute(&m.source_ips, &m.not_source_ips, |r| {
                Self::within(self.source, r)
            }),
            Self::attribute(&m.destination_ips, &m.not_destination_ips, |r| {
                Self::within(self.dst.ip(), r)
            }),
            Self::attribute(&m.destination_ports, &m.not_destination_ports, |p| {
                *p == u32::from(self.dst.port())
            }),
            Self::attribute(&m.service_accounts, &m.not_service_accounts, |a| {
                (&*a.namespace, &*a.service_account) == (namespace, account)
            }),
        ]
        .iter()
        .all(|holds| *holds)
    }

    fn applies(&self, policy: &sec::Authorization) -> bool {
        let clause =
            |c: &sec::Clause| c.matches.is_empty() || c.matches.iter().any(|m| self.matches(m));
        policy
            .rules
            .iter()
            .any(|rule| rule.clauses.iter().all(clause))
    }

    fn allows(&self, policies: &[sec::Authorization]) -> bool {
        let enforced = |action: sec::Action| {
            policies
                .iter()
                .filter(move |p| !p.dry_run && p.action == i32::from(action))
        };
        if enforced(Deny).any(|p| self.applies(p)) {
            return false;
        }
        enforced(Allow).count() == 0 || enforced(Allow).any(|p| self.applies(p))
    }
}

fn any_identity(dice: &mut Dice) -> Option<SpiffeId> {
    let id = SpiffeId::new("cluster.local", dice.of(&NAMESPACES), dice.of(&ACCOUNTS));
    (!dice.one_in(4)).then_some(id.unwrap())
}

#[test]
fn two_hundred_worlds_are_judged_alike() {
    let (mut denied, mut judged) = (0, 0);
    for seed in 0..200 {
        let dice = &mut Dice(seed);
        let policies: Vec<_> = (0..dice.below(4)).map(|n| any_policy(dice, n)).collect();
        let tables = policies
            .iter()
            .fold(mesh(&[&web()]), |tables, policy| push(&tables, policy));
        for _ in 0..10 {
            let (source, identity) = (ip(dice.of(&SOURCES)), any_identity(dice));
            let dst = SocketAddr::new(ip(dice.of(&SOURCES)), dice.of(&PORTS) as u16);
            let expected = Slow {
                source,
                identity: identity.as_ref(),
                dst,
            }
            .allows(&policies);
            let peer = Peer {
                source,
                identity: identity.as_ref(),
                dst,
                direction: Direction::Inbound,
            };
            let verdict = authorise(&tables, workload(&tables, "shop/web-1"), &peer);
            assert_eq!(
                matches!(verdict, Verdict::Allowed { .. }),
                expected,
                "seed {seed}: {verdict:?}\n{policies:#?}"
            );
            judged += 1;
            denied += usize::from(!expected);
        }
    }
    assert!(
        (judged / 4..judged * 3 / 4).contains(&denied),
        "the dice are loaded: {denied} of {judged} denied"
    );
}
