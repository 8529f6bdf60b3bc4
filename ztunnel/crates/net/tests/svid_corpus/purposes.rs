//! What a certificate may be used for, and extensions.

use crate::der::*;
use crate::forge::*;
use crate::peers::{Mesh, Shown};
use crate::{Case, shows};

fn leaf(mesh: &Mesh, alter: impl FnOnce(&mut Draft)) -> Shown {
    let mut draft = mesh.svid();
    alter(&mut draft);
    Shown::chain(vec![draft.signed_by(&mesh.root)])
}

fn usage(mesh: &Mesh, bits: &[u8]) -> Shown {
    leaf(mesh, |draft| draft.set(KEY_USAGE, named_bits(bits)))
}

fn purpose(mesh: &Mesh, ids: &[&[u32]]) -> Shown {
    leaf(mesh, |draft| draft.set(EXTENDED_KEY_USAGE, purposes(ids)))
}

fn below_middle(mesh: &Mesh, alter: impl FnOnce(&mut Draft)) -> Shown {
    let middle = mesh.root.under_with("middle", alter);
    Shown::chain(vec![mesh.svid().signed_by(&middle), middle.certificate])
}

fn below_root(mesh: &Mesh, alter: impl FnOnce(&mut Draft)) -> Shown {
    let root = Authority::root_with("odd root", alter);
    let trust = serde_json::json!({"bundles": {"cluster.local": pem(&root.certificate)}});
    Shown {
        trust: Some(trust.to_string()),
        ..Shown::chain(vec![mesh.svid().signed_by(&root)])
    }
}

pub const CASES: &[Case] = &[
    shows(
        53,
        "leaf with cA",
        "CA certificate cannot be a workload's",
        |mesh| leaf(mesh, |draft| draft.set(BASIC_CONSTRAINTS, seq(&[TRUE]))),
    ),
    shows(54, "no key usage", "has no key usage", |mesh| {
        leaf(mesh, |draft| draft.drop(KEY_USAGE))
    }),
    shows(55, "key usage not critical", "not critical", |mesh| {
        leaf(mesh, |draft| draft.get(KEY_USAGE).critical = false)
    }),
    shows(56, "keyCertSign", "may sign certificates", |mesh| {
        usage(mesh, &[DIGITAL_SIGNATURE, SIGN_CERTIFICATES])
    }),
    shows(57, "cRLSign", "may sign certificates", |mesh| {
        usage(mesh, &[DIGITAL_SIGNATURE, SIGN_CRLS])
    }),
    shows(58, "no digitalSignature", "no digitalSignature", |mesh| {
        usage(mesh, &[KEY_AGREEMENT])
    }),
    shows(
        59,
        "for servers only",
        "lacks serverAuth or clientAuth",
        |mesh| purpose(mesh, &[SERVER_AUTH]),
    ),
    shows(
        60,
        "for clients only",
        "lacks serverAuth or clientAuth",
        |mesh| purpose(mesh, &[CLIENT_AUTH]),
    ),
    shows(
        61,
        "one of both and something else",
        "lacks serverAuth or clientAuth",
        |mesh| purpose(mesh, &[CLIENT_AUTH, UNKNOWN]),
    ),
    shows(
        62,
        "any purpose",
        "lacks serverAuth or clientAuth",
        |mesh| purpose(mesh, &[ANY_PURPOSE]),
    ),
    shows(63, "no purpose", "extended key usage", |mesh| {
        purpose(mesh, &[])
    }),
    shows(
        64,
        "unknown critical extension in the leaf",
        "critical extension",
        |mesh| leaf(mesh, |draft| draft.add(UNKNOWN, true, NULL.to_vec())),
    ),
    shows(
        65,
        "unknown critical extension in the intermediate",
        "critical extension",
        |mesh| below_middle(mesh, |draft| draft.add(UNKNOWN, true, NULL.to_vec())),
    ),
    shows(
        66,
        "unknown critical extension in the root",
        "critical extension",
        |mesh| below_root(mesh, |draft| draft.add(UNKNOWN, true, NULL.to_vec())),
    ),
    shows(67, "key usage twice", "twice", |mesh| {
        leaf(mesh, |draft| {
            draft.add(KEY_USAGE, true, named_bits(&[DIGITAL_SIGNATURE]))
        })
    }),
    shows(67, "an unknown extension twice", "twice", |mesh| {
        leaf(mesh, |draft| {
            draft.add(UNKNOWN, false, NULL.to_vec());
            draft.add(UNKNOWN, false, NULL.to_vec());
        })
    }),
    shows(
        68,
        "empty subject, names not critical",
        "empty subject",
        |mesh| leaf(mesh, |draft| draft.get(NAMES).critical = false),
    ),
    shows(
        69,
        "URI constraint excludes it",
        "name constraint",
        |mesh| {
            below_middle(mesh, |draft| {
                draft.add(
                    NAME_CONSTRAINTS,
                    true,
                    constraints(&[], &[(6, b"cluster.local")]),
                );
            })
        },
    ),
    shows(
        69,
        "URI constraint permits others",
        "name constraint",
        |mesh| {
            below_middle(mesh, |draft| {
                draft.add(
                    NAME_CONSTRAINTS,
                    true,
                    constraints(&[(6, b"elsewhere")], &[]),
                );
            })
        },
    ),
    shows(70, "malformed name constraints", "malformed", |mesh| {
        below_middle(mesh, |draft| {
            draft.add(NAME_CONSTRAINTS, true, seq(&[&der(0xa0, &[NULL])]));
        })
    }),
    shows(
        71,
        "intermediate whose ID has a path",
        "names \"spiffe://cluster.local/ca",
        |mesh| {
            below_middle(mesh, |draft| {
                draft.add(NAMES, false, names(&[b"spiffe://cluster.local/ca"]));
            })
        },
    ),
    shows(
        71,
        "root whose ID has a path",
        "names \"spiffe://cluster.local/ca",
        |mesh| {
            below_root(mesh, |draft| {
                draft.add(NAMES, false, names(&[b"spiffe://cluster.local/ca"]));
            })
        },
    ),
    shows(
        71,
        "intermediate of another trust domain",
        "names \"spiffe://elsewhere",
        |mesh| {
            below_middle(mesh, |draft| {
                draft.add(NAMES, false, names(&[b"spiffe://elsewhere"]))
            })
        },
    ),
];
