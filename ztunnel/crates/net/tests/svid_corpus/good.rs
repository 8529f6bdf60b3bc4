//! Unusual, and in order.

use crate::der::*;
use crate::forge::*;
use crate::peers::{Mesh, Shown};
use crate::{As, Case, shows};

fn leaf(mesh: &Mesh, alter: impl FnOnce(&mut Draft)) -> Shown {
    let mut draft = mesh.svid();
    alter(&mut draft);
    Shown::chain(vec![draft.signed_by(&mesh.root)])
}

fn below(mesh: &Mesh, issuers: &[&Authority]) -> Shown {
    let mut chain = vec![mesh.svid().signed_by(issuers[0])];
    chain.extend(issuers.iter().map(|each| each.certificate.clone()));
    Shown::chain(chain)
}

fn federated(mesh: &Mesh) -> Shown {
    let partner = Authority::root("partner root");
    let name = mesh.name.replacen("cluster.local", "partner.org", 1);
    let trust = serde_json::json!({"bundles": {
        "cluster.local": pem(&mesh.root.certificate),
        "partner.org": pem(&partner.certificate),
    }});
    Shown {
        trust: Some(trust.to_string()),
        ..Shown::chain(vec![Draft::svid(&name, &mesh.key).signed_by(&partner)])
    }
}

fn alias(mesh: &Mesh) -> Shown {
    let name = mesh.name.replacen("cluster.local", "old.domain", 1);
    let trust = serde_json::json!({
        "bundles": {"cluster.local": pem(&mesh.root.certificate)},
        "aliases": ["old.domain"],
    });
    Shown {
        trust: Some(trust.to_string()),
        ..Shown::chain(vec![Draft::svid(&name, &mesh.key).signed_by(&mesh.root)])
    }
}

fn two_roots(mesh: &Mesh) -> Shown {
    let new = Authority::root("new root");
    let both = format!("{}{}", pem(&mesh.root.certificate), pem(&new.certificate));
    let trust = serde_json::json!({"bundles": {"cluster.local": both}});
    Shown {
        trust: Some(trust.to_string()),
        ..Shown::chain(vec![mesh.svid().signed_by(&new)])
    }
}

fn matching_key_identifiers(mesh: &Mesh) -> Shown {
    let middle = mesh.root.under_with("middle", |draft| {
        draft.add(SUBJECT_KEY_ID, false, key_id(b"this one"));
    });
    let mut draft = mesh.svid();
    draft.add(AUTHORITY_KEY_ID, false, authority_key_id(b"this one"));
    Shown::chain(vec![draft.signed_by(&middle), middle.certificate])
}

fn authority_of_the_domain(mesh: &Mesh) -> Shown {
    let middle = mesh.root.under_with("middle", |draft| {
        draft.add(NAMES, false, names(&[b"spiffe://cluster.local"]));
    });
    below(mesh, &[&middle])
}

fn six_intermediates(mesh: &Mesh) -> Shown {
    let mut line = vec![mesh.root.under("1")];
    for number in 2..=6 {
        let next = line[0].under(&number.to_string());
        line.insert(0, next);
    }
    below(mesh, &line.iter().collect::<Vec<_>>())
}

pub const CASES: &[Case] = &[
    shows(1, "the plain one", "", |mesh| leaf(mesh, |_| {})),
    shows(2, "one intermediate", "", |mesh| {
        below(mesh, &[&mesh.middle])
    }),
    shows(3, "six intermediates", "", six_intermediates),
    shows(4, "the root shown as well", "", |mesh| {
        below(mesh, &[&mesh.middle, &mesh.root])
    }),
    shows(5, "a subject, names not critical", "", |mesh| {
        leaf(mesh, |draft| {
            draft.subject = name("web");
            draft.get(NAMES).critical = false;
        })
    }),
    shows(6, "DNS names beside the ID", "", |mesh| {
        leaf(mesh, |draft| {
            draft.set(
                NAMES,
                general_names(&[(2, b"a.b"), (6, mesh.name.as_bytes()), (2, b"c.d")]),
            );
        })
    }),
    shows(
        7,
        "no extended key usage, no basic constraints",
        "",
        |mesh| {
            leaf(mesh, |draft| {
                draft.drop(EXTENDED_KEY_USAGE);
                draft.drop(BASIC_CONSTRAINTS);
            })
        },
    ),
    shows(8, "more key usages, an unknown extension", "", |mesh| {
        leaf(mesh, |draft| {
            draft.set(
                KEY_USAGE,
                named_bits(&[DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, KEY_AGREEMENT]),
            );
            draft.add(UNKNOWN, false, NULL.to_vec());
        })
    }),
    shows(
        9,
        "key identifiers that match",
        "",
        matching_key_identifiers,
    ),
    shows(
        10,
        "an authority with the trust domain's name",
        "",
        authority_of_the_domain,
    ),
    Case {
        roles: As::Client,
        ..shows(11, "a federated domain under its own root", "", federated)
    },
    shows(12, "an alias of our trust domain", "", alias),
    shows(13, "a second root of our domain", "", two_roots),
    shows(
        14,
        "a revocation list that does not name it",
        "",
        crate::tls::not_revoked,
    ),
    shows(15, "a serial number of 20 bytes", "", |mesh| {
        leaf(mesh, |draft| draft.serial = vec![1; 20])
    }),
];
