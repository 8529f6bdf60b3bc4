//! Names: look-alikes and what is no SPIFFE ID of this mesh at all.

use crate::forge::*;
use crate::peers::{Mesh, Role, Shown};
use crate::{As, Case, der::name, shows};

const NO_IDENTITY: &str = "no identity of a mesh";

fn named(mesh: &Mesh, uris: &[&[u8]]) -> Shown {
    let mut draft = mesh.svid();
    draft.set(NAMES, names(uris));
    Shown::chain(vec![draft.signed_by(&mesh.root)])
}

/// The peer's own name with `from` replaced.
fn respelt(mesh: &Mesh, from: &str, to: &str) -> Shown {
    let respelt = mesh.name.replacen(from, to, 1);
    assert_ne!(respelt, mesh.name);
    named(mesh, &[respelt.as_bytes()])
}

fn appended(mesh: &Mesh, end: &str) -> Shown {
    named(mesh, &[format!("{}{end}", mesh.name).as_bytes()])
}

const fn respells(number: u8, what: &'static str, make: fn(&Mesh) -> Shown) -> Case {
    shows(number, what, NO_IDENTITY, make)
}

pub const CASES: &[Case] = &[
    shows(24, "no alternative name", "no SPIFFE ID", |mesh| {
        let mut draft = mesh.svid();
        draft.drop(NAMES);
        Shown::chain(vec![draft.signed_by(&mesh.root)])
    }),
    shows(25, "a DNS name only", "no SPIFFE ID", |mesh| {
        let mut draft = mesh.svid();
        draft.set(NAMES, general_names(&[(2, b"cluster.local")]));
        Shown::chain(vec![draft.signed_by(&mesh.root)])
    }),
    shows(
        26,
        "the ID in the common name only",
        "no SPIFFE ID",
        |mesh| {
            let mut draft = mesh.svid();
            draft.drop(NAMES);
            draft.subject = name(mesh.name);
            Shown::chain(vec![draft.signed_by(&mesh.root)])
        },
    ),
    shows(27, "two IDs", "2 URI names", |mesh| {
        named(
            mesh,
            &[mesh.name.as_bytes(), b"spiffe://cluster.local/ns/a/sa/b"],
        )
    }),
    shows(27, "two IDs, the other first", "2 URI names", |mesh| {
        named(
            mesh,
            &[b"spiffe://cluster.local/ns/a/sa/b", mesh.name.as_bytes()],
        )
    }),
    shows(27, "one ID twice", "2 URI names", |mesh| {
        named(mesh, &[mesh.name.as_bytes(), mesh.name.as_bytes()])
    }),
    shows(28, "an ID and a web address", "2 URI names", |mesh| {
        named(mesh, &[mesh.name.as_bytes(), b"https://cluster.local/"])
    }),
    respells(29, "a web address only", |mesh| {
        respelt(mesh, "spiffe", "https")
    }),
    shows(
        30,
        "another trust domain",
        "expected one of trust domain",
        |mesh| respelt(mesh, "cluster.local", "elsewhere"),
    ),
    shows(
        31,
        "our trust domain as a prefix",
        "expected one of trust domain",
        |mesh| respelt(mesh, "cluster.local", "cluster.local.evil"),
    ),
    shows(
        31,
        "our trust domain as a suffix",
        "expected one of trust domain",
        |mesh| respelt(mesh, "cluster.local", "evil.cluster.local"),
    ),
    shows(
        31,
        "our trust domain with a dot behind",
        "expected one of trust domain",
        |mesh| respelt(mesh, "cluster.local", "cluster.local."),
    ),
    respells(32, "upper case in the trust domain", |mesh| {
        respelt(mesh, "cluster.local", "Cluster.local")
    }),
    respells(33, "upper case in the scheme", |mesh| {
        respelt(mesh, "spiffe", "SPIFFE")
    }),
    respells(34, "a port", |mesh| {
        respelt(mesh, "cluster.local", "cluster.local:443")
    }),
    respells(35, "userinfo", |mesh| {
        respelt(mesh, "cluster.local", "me@cluster.local")
    }),
    respells(36, "per cent in the trust domain", |mesh| {
        respelt(mesh, "cluster.local", "%63luster.local")
    }),
    respells(37, "per cent in the path", |mesh| {
        respelt(mesh, "/ns/shop", "/ns/%2e%2e")
    }),
    respells(37, "a slash in disguise", |mesh| {
        respelt(mesh, "/sa/", "%2fsa/")
    }),
    respells(38, "no trust domain", |mesh| {
        respelt(mesh, "cluster.local", "")
    }),
    respells(39, "no path", |mesh| {
        named(mesh, &[b"spiffe://cluster.local"])
    }),
    respells(39, "the root path", |mesh| {
        named(mesh, &[b"spiffe://cluster.local/"])
    }),
    respells(40, "a slash behind", |mesh| appended(mesh, "/")),
    respells(41, "an empty segment", |mesh| {
        respelt(mesh, "/ns/shop", "/ns/")
    }),
    respells(41, "two slashes", |mesh| respelt(mesh, "/ns/", "//ns/")),
    respells(42, "a dot segment", |mesh| respelt(mesh, "/ns/", "/./ns/")),
    respells(42, "two dots as a segment", |mesh| {
        respelt(mesh, "/shop/", "/shop/../shop/")
    }),
    respells(43, "a query", |mesh| appended(mesh, "?a=b")),
    respells(44, "a fragment", |mesh| appended(mesh, "#a")),
    shows(45, "Latin-1", "malformed", |mesh| {
        named(mesh, &[&[mesh.name.as_bytes(), b"\xe9"].concat()])
    }),
    shows(45, "UTF-8, Cyrillic letters", "sh\\u{43e}p", |mesh| {
        respelt(mesh, "shop", "sh\u{43e}p")
    }),
    respells(46, "a NUL byte", |mesh| appended(mesh, "\0")),
    respells(46, "a NUL byte and more", |mesh| appended(mesh, "\0.evil")),
    respells(47, "2049 bytes", |mesh| {
        appended(mesh, &"a".repeat(2049 - mesh.name.len()))
    }),
    respells(48, "a trust domain of 256 bytes", |mesh| {
        respelt(mesh, "cluster.local", &"a".repeat(256))
    }),
    respells(49, "an IPv6 address", |mesh| {
        respelt(mesh, "cluster.local", "[2001:db8::1]")
    }),
    respells(50, "a space", |mesh| respelt(mesh, "shop", "sh op")),
    respells(50, "a tab", |mesh| appended(mesh, "\t")),
    respells(50, "a line of its own", |mesh| {
        appended(mesh, "\r\nlevel=info all is well")
    }),
    respells(51, "an ID of another pattern", |mesh| {
        named(mesh, &[b"spiffe://cluster.local/workload/web"])
    }),
    respells(51, "one segment too many", |mesh| appended(mesh, "/x")),
    respells(51, "upper case in the namespace", |mesh| {
        respelt(mesh, "shop", "Shop")
    }),
    respells(51, "a namespace that is no label", |mesh| {
        respelt(mesh, "shop", "shop.a")
    }),
    Case {
        roles: As::Server,
        ..shows(52, "somebody else", "expected spiffe://", |mesh| {
            assert_eq!(mesh.role, Role::Server);
            named(mesh, &[b"spiffe://cluster.local/ns/shop/sa/thief"])
        })
    },
    Case {
        roles: As::Server,
        ..shows(
            52,
            "the account in another namespace",
            "expected spiffe://",
            |mesh| named(mesh, &[b"spiffe://cluster.local/ns/shop2/sa/db"]),
        )
    },
    shows(
        28,
        "an ID among a hundred other names is fine, a second URI is not",
        "2 URI names",
        |mesh| {
            let mut draft = mesh.svid();
            let mut all: Vec<(u8, &[u8])> = vec![(2, b"a.b"); 100];
            all.extend([(6, mesh.name.as_bytes()), (6, &b"urn:x"[..])]);
            draft.set(NAMES, general_names(&all));
            Shown::chain(vec![draft.signed_by(&mesh.root)])
        },
    ),
];
