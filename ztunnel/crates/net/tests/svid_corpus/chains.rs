//! Chains and times.

use crate::forge::*;
use crate::peers::{Mesh, Shown};
use crate::{Case, der::*, shows};

const DAY: i64 = 86_400;

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

fn below_middle(mesh: &Mesh, alter: impl FnOnce(&mut Draft)) -> Shown {
    below(mesh, &[&mesh.root.under_with("middle", alter)])
}

fn expired_root(mesh: &Mesh) -> Shown {
    let root = Authority::root_with("old root", |draft| {
        (draft.not_before, draft.not_after) = (moment(-2 * DAY), moment(-1));
    });
    Shown {
        roots: Some(vec![root.certificate.clone()]),
        ..Shown::chain(vec![mesh.svid().signed_by(&root)])
    }
}

fn same_name_other_key(mesh: &Mesh) -> Shown {
    Shown::chain(vec![mesh.svid().signed_by(&Authority::root("root"))])
}

fn flipped_bit(mesh: &Mesh) -> Shown {
    let draft = mesh.svid();
    let body = draft.body(&mesh.root.name);
    let mut signature = mesh.root.key.sign(&body);
    let last = signature.len() - 1;
    signature[last] ^= 1;
    Shown::chain(vec![draft.with_signature(&body, &signature)])
}

fn other_key_identifier(mesh: &Mesh) -> Shown {
    let middle = mesh.root.under_with("middle", |draft| {
        draft.add(SUBJECT_KEY_ID, false, key_id(b"this one"));
    });
    let mut draft = mesh.svid();
    draft.add(AUTHORITY_KEY_ID, false, authority_key_id(b"another one"));
    Shown::chain(vec![draft.signed_by(&middle), middle.certificate])
}

fn swapped(mesh: &Mesh) -> Shown {
    let leaf = mesh.svid().signed_by(&mesh.middle);
    let (root, middle) = (&mesh.root.certificate, &mesh.middle.certificate);
    Shown::chain(vec![leaf, root.clone(), middle.clone()])
}

fn path_length(mesh: &Mesh) -> Shown {
    let short = mesh.root.under_with("short", |draft| {
        draft.set(BASIC_CONSTRAINTS, seq(&[TRUE, &der(INTEGER, &[&[0]])]));
    });
    let more = short.under("more");
    below(mesh, &[&more, &short])
}

fn path_length_of_the_root(mesh: &Mesh) -> Shown {
    let root = Authority::root_with("short root", |draft| {
        draft.set(BASIC_CONSTRAINTS, seq(&[TRUE, &der(INTEGER, &[&[0]])]));
    });
    let middle = root.under("middle");
    Shown {
        roots: Some(vec![root.certificate.clone()]),
        ..below(mesh, &[&middle])
    }
}

fn seven_intermediates(mesh: &Mesh) -> Shown {
    let mut line = vec![mesh.root.under("1")];
    for number in 2..=7 {
        let next = line[0].under(&number.to_string());
        line.insert(0, next);
    }
    below(mesh, &line.iter().collect::<Vec<_>>())
}

fn leaf_signs_leaf(mesh: &Mesh) -> Shown {
    let key = Key::new();
    let mut first = Draft::svid("spiffe://cluster.local/ns/shop/sa/first", &key);
    first.subject = name("first");
    let first = Authority {
        name: name("first"),
        certificate: first.signed_by(&mesh.root),
        key,
    };
    below(mesh, &[&first])
}

fn root_as_leaf(_: &Mesh) -> Shown {
    let root = Authority::root("root");
    Shown {
        roots: Some(vec![root.certificate.clone()]),
        key: Some(root.key),
        ..Shown::chain(vec![root.certificate])
    }
}

fn loop_of_two(mesh: &Mesh) -> Shown {
    let (a, b) = (Key::new(), Key::new());
    let a_by_b = Draft::authority("a", &a).signed(&name("b"), &b);
    let b_by_a = Draft::authority("b", &b).signed(&name("a"), &a);
    let leaf = mesh.svid().signed(&name("a"), &a);
    Shown::chain(vec![
        leaf,
        a_by_b.clone(),
        b_by_a.clone(),
        a_by_b.clone(),
        b_by_a,
        a_by_b,
    ])
}

fn hundred_of_a_name(mesh: &Mesh) -> Shown {
    let same: Vec<_> = (0..100).map(|_| mesh.root.under("same")).collect();
    let other = mesh.root.under("same");
    let mut chain = vec![mesh.svid().signed_by(&other)];
    chain.extend(same.into_iter().map(|each| each.certificate));
    Shown::chain(chain)
}

fn constraint_bomb(mesh: &Mesh) -> Shown {
    let many: Vec<String> = (0..900).map(|number| format!("n{number}.x")).collect();
    let bases: Vec<(u8, &[u8])> = many.iter().map(|base| (2, base.as_bytes())).collect();
    let middle = mesh.root.under_with("middle", |draft| {
        draft.add(NAME_CONSTRAINTS, true, constraints(&[], &bases));
    });
    let mut draft = mesh.svid();
    let own: Vec<String> = (0..900).map(|number| format!("m{number}.y")).collect();
    let mut all: Vec<(u8, &[u8])> = vec![(6, mesh.name.as_bytes())];
    all.extend(own.iter().map(|host| (2, host.as_bytes())));
    draft.set(NAMES, general_names(&all));
    Shown::chain(vec![draft.signed_by(&middle), middle.certificate])
}

pub const CASES: &[Case] = &[
    shows(1, "leaf expired", "has expired", |mesh| {
        leaf(mesh, |draft| draft.not_after = moment(-1))
    }),
    shows(2, "leaf not valid yet", "not valid yet", |mesh| {
        leaf(mesh, |draft| draft.not_before = moment(60))
    }),
    shows(3, "expired intermediate", "has expired", |mesh| {
        below_middle(mesh, |draft| draft.not_after = moment(-1))
    }),
    shows(4, "expired root", "every root", expired_root),
    shows(
        5,
        "ends before it begins",
        "ends before it begins",
        |mesh| {
            leaf(mesh, |draft| {
                (draft.not_before, draft.not_after) = (moment(3600), moment(-3600));
            })
        },
    ),
    shows(
        6,
        "lives longer than policy allows",
        "lives longer than",
        |mesh| leaf(mesh, |draft| draft.not_after = moment(4 * DAY)),
    ),
    shows(7, "fractional seconds", "cannot be parsed", |mesh| {
        leaf(mesh, |draft| {
            draft.not_after = fractional(3600);
        })
    }),
    shows(7, "a month 13", "cannot be parsed", |mesh| {
        leaf(mesh, |draft| {
            draft.not_after = der(UTC_TIME, &[b"391301000000Z"])
        })
    }),
    shows(8, "self-signed leaf", "not signed by a root", |mesh| {
        let draft = mesh.svid();
        Shown::chain(vec![draft.signed(&draft.subject, &mesh.key)])
    }),
    shows(
        9,
        "issuer of the same name, other key",
        "signature",
        same_name_other_key,
    ),
    shows(
        10,
        "one bit of the signature turned",
        "signature",
        flipped_bit,
    ),
    shows(
        11,
        "key identifiers do not match",
        "key identifier",
        other_key_identifier,
    ),
    shows(12, "root and intermediate swapped", "not in order", swapped),
    shows(13, "intermediate missing", "not signed by a root", |mesh| {
        Shown::chain(vec![mesh.svid().signed_by(&mesh.middle)])
    }),
    shows(14, "path length violated", "path", path_length),
    shows(
        14,
        "the root's path length violated",
        "path",
        path_length_of_the_root,
    ),
    shows(
        15,
        "seven intermediates",
        "more than six intermediates",
        seven_intermediates,
    ),
    shows(16, "intermediate without cA", "is no authority", |mesh| {
        below_middle(mesh, |draft| draft.set(BASIC_CONSTRAINTS, seq(&[])))
    }),
    shows(
        16,
        "intermediate without basic constraints",
        "is no authority",
        |mesh| below_middle(mesh, |draft| draft.drop(BASIC_CONSTRAINTS)),
    ),
    shows(
        17,
        "intermediate without keyCertSign",
        "may not sign certificates",
        |mesh| below_middle(mesh, |draft| draft.set(KEY_USAGE, named_bits(&[SIGN_CRLS]))),
    ),
    shows(
        17,
        "intermediate without key usage",
        "may not sign certificates",
        |mesh| below_middle(mesh, |draft| draft.drop(KEY_USAGE)),
    ),
    shows(
        18,
        "intermediate for servers only",
        "lacks serverAuth or clientAuth",
        |mesh| {
            below_middle(mesh, |draft| {
                draft.add(EXTENDED_KEY_USAGE, false, purposes(&[SERVER_AUTH]));
            })
        },
    ),
    shows(
        18,
        "intermediate for clients only",
        "lacks serverAuth or clientAuth",
        |mesh| {
            below_middle(mesh, |draft| {
                draft.add(EXTENDED_KEY_USAGE, false, purposes(&[CLIENT_AUTH]));
            })
        },
    ),
    shows(
        19,
        "a leaf signed by a leaf",
        "is no authority",
        leaf_signs_leaf,
    ),
    shows(
        20,
        "the root as a leaf",
        "CA certificate cannot be a workload's",
        root_as_leaf,
    ),
    shows(
        21,
        "two authorities that sign each other",
        "not signed by a root",
        loop_of_two,
    ),
    shows(
        22,
        "a hundred intermediates of one name",
        "certificates where at most",
        hundred_of_a_name,
    ),
    shows(
        23,
        "a bomb of name constraints",
        "too many name constraints",
        constraint_bomb,
    ),
];
