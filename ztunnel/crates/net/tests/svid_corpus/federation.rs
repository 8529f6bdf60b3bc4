//! Several trust domains: nobody vouches for another's names. The tricks of bundle documents are Python's to refuse
//! (`tests/ztunnel/test_trust.py`); here is what the data path makes of what is left of them.

use crate::forge::*;
use crate::peers::{Mesh, Shown};
use crate::{As, Case, does, shows};

fn trust(entries: &[(&str, &[&Authority])]) -> String {
    let bundles: serde_json::Map<String, serde_json::Value> = entries
        .iter()
        .map(|(domain, roots)| {
            let text: String = roots.iter().map(|root| pem(&root.certificate)).collect();
            ((*domain).to_owned(), text.into())
        })
        .collect();
    serde_json::json!({ "bundles": bundles }).to_string()
}

/// A name of `domain` under `issuer`, while two domains are known.
fn vouched(mesh: &Mesh, domain: &str, by_partner: bool) -> Shown {
    let partner = Authority::root("partner root");
    let name = mesh.name.replacen("cluster.local", domain, 1);
    let draft = Draft::svid(&name, &mesh.key);
    let issuer = if by_partner { &partner } else { &mesh.root };
    Shown {
        trust: Some(trust(&[
            ("cluster.local", &[&mesh.root]),
            ("partner.org", &[&partner]),
        ])),
        ..Shown::chain(vec![draft.signed_by(issuer)])
    }
}

fn emptied(mesh: &Mesh) -> Shown {
    Shown {
        trust: Some(trust(&[("cluster.local", &[])])),
        ..Shown::chain(vec![mesh.svid().signed_by(&mesh.root)])
    }
}

fn told(mesh: &Mesh, document: &str) -> Result<(), String> {
    mesh.ours(mesh.name, std::slice::from_ref(&mesh.root.certificate))
        .set_trust(document.as_bytes())
}

pub const CASES: &[Case] = &[
    shows(
        99,
        "a local name by a foreign authority",
        "not signed by a root",
        |mesh| vouched(mesh, "cluster.local", true),
    ),
    Case {
        roles: As::Client,
        ..shows(
            99,
            "a foreign name by our own authority",
            "not signed by a root",
            |mesh| vouched(mesh, "partner.org", false),
        )
    },
    Case {
        roles: As::Client,
        ..shows(
            99,
            "a name of a domain nobody knows",
            "expected one of trust domain",
            |mesh| vouched(mesh, "third.org", true),
        )
    },
    shows(100, "a bundle without keys", "no root", emptied),
    does(100, "a bundle that is no PEM", As::Client, "PEM", |mesh| {
        told(
            mesh,
            r#"{"bundles": {"cluster.local": "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"}}"#,
        )
    }),
    does(
        100,
        "a bundle of no certificate",
        As::Client,
        "cannot be parsed",
        |mesh| {
            told(
                mesh,
                r#"{"bundles": {"cluster.local": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}}"#,
            )
        },
    ),
    does(
        100,
        "a bundle for no trust domain",
        As::Client,
        "trust domain",
        |mesh| told(mesh, r#"{"bundles": {"Cluster.local": ""}}"#),
    ),
    does(
        100,
        "a bundle whose root is no authority",
        As::Client,
        "is no authority",
        |mesh| {
            let leaf = pem(&mesh.svid().signed_by(&mesh.root));
            told(
                mesh,
                &serde_json::json!({"bundles": {"cluster.local": leaf}}).to_string(),
            )
        },
    ),
    does(
        100,
        "a root of another domain's name",
        As::Client,
        "names \"spiffe://elsewhere",
        |mesh| {
            let root = Authority::root_with("other", |draft| {
                draft.add(NAMES, false, names(&[b"spiffe://elsewhere"]));
            });
            told(mesh, &trust(&[("cluster.local", &[&root])]))
        },
    ),
    does(100, "the same domain twice", As::Client, "twice", |mesh| {
        told(
            mesh,
            r#"{"bundles": {"cluster.local": "", "cluster.local": ""}}"#,
        )
    }),
    does(
        100,
        "a field nobody knows",
        As::Client,
        "unknown field",
        |mesh| told(mesh, r#"{"bundels": {}}"#),
    ),
];
