//! Keys and signatures.

use crate::der::*;
use crate::forge::*;
use crate::peers::{Mesh, Shown};
use crate::{Case, shows};

const RSA: &[u32] = &[1, 2, 840, 113549, 1, 1, 1];
const MD5_RSA: &[u32] = &[1, 2, 840, 113549, 1, 1, 4];
const SHA1_RSA: &[u32] = &[1, 2, 840, 113549, 1, 1, 5];
const PSS: &[u32] = &[1, 2, 840, 113549, 1, 1, 10];
const SHA1_ECDSA: &[u32] = &[1, 2, 840, 10045, 4, 1];
const EC: &[u32] = &[1, 2, 840, 10045, 2, 1];
const P192: &[u32] = &[1, 2, 840, 10045, 3, 1, 1];
const P256: &[u32] = &[1, 2, 840, 10045, 3, 1, 7];
const SECP256K1: &[u32] = &[1, 3, 132, 0, 10];

fn keyed(mesh: &Mesh, key: Vec<u8>) -> Shown {
    let mut draft = mesh.svid();
    draft.key = key;
    Shown::chain(vec![draft.signed_by(&mesh.root)])
}

/// A modulus of so many bits: odd, highest bit set; nobody knows whether it has factors.
fn rsa(bits: usize, exponent: &[u8]) -> Vec<u8> {
    let mut modulus = vec![0xa5; bits / 8];
    modulus[0] = 0xc1;
    let key = seq(&[&der(INTEGER, &[&[0], &modulus]), &der(INTEGER, &[exponent])]);
    seq(&[&seq(&[&oid(RSA), NULL]), &der(BIT_STRING, &[&[0], &key])])
}

fn ec(parameters: &[u8], point: &[u8]) -> Vec<u8> {
    seq(&[
        &seq(&[&oid(EC), parameters]),
        &der(BIT_STRING, &[&[0], point]),
    ])
}

fn point(length: usize) -> Vec<u8> {
    [vec![4], vec![7; length - 1]].concat()
}

/// The signature is the authority's own; the certificate says it is of another kind.
fn labelled(mesh: &Mesh, inner: Vec<u8>, outer: Vec<u8>) -> Shown {
    let mut draft = mesh.svid();
    (draft.inner_algorithm, draft.outer_algorithm) = (inner, outer);
    Shown::chain(vec![draft.signed_by(&mesh.root)])
}

fn labelled_both(mesh: &Mesh, algorithm: Vec<u8>) -> Shown {
    labelled(mesh, algorithm.clone(), algorithm)
}

/// SHA-256 without MGF and salt named: the defaults would be SHA-1's.
fn odd_pss() -> Vec<u8> {
    let sha256 = seq(&[&oid(&[2, 16, 840, 1, 101, 3, 4, 2, 1])]);
    seq(&[&oid(PSS), &seq(&[&der(0xa0, &[&sha256])])])
}

fn weak_intermediate(mesh: &Mesh) -> Shown {
    let middle = mesh
        .root
        .under_with("middle", |draft| draft.key = rsa(1024, &[1, 0, 1]));
    Shown::chain(vec![mesh.svid().signed_by(&middle), middle.certificate])
}

const WEAK: &str = "RSA key";
const ALGORITHM: &str = "signature algorithm";

pub const CASES: &[Case] = &[
    shows(72, "RSA of 1024 bits", WEAK, |mesh| {
        keyed(mesh, rsa(1024, &[1, 0, 1]))
    }),
    shows(
        72,
        "RSA of 1024 bits in the intermediate",
        WEAK,
        weak_intermediate,
    ),
    shows(72, "RSA of 16384 bits", WEAK, |mesh| {
        keyed(mesh, rsa(16384, &[1, 0, 1]))
    }),
    shows(73, "RSA with SHA-1", ALGORITHM, |mesh| {
        labelled_both(mesh, seq(&[&oid(SHA1_RSA), NULL]))
    }),
    shows(73, "ECDSA with SHA-1", ALGORITHM, |mesh| {
        labelled_both(mesh, seq(&[&oid(SHA1_ECDSA)]))
    }),
    shows(74, "RSA with MD5", ALGORITHM, |mesh| {
        labelled_both(mesh, seq(&[&oid(MD5_RSA), NULL]))
    }),
    shows(75, "P-192", "curve", |mesh| {
        keyed(mesh, ec(&oid(P192), &point(49)))
    }),
    shows(75, "secp256k1", "curve", |mesh| {
        keyed(mesh, ec(&oid(SECP256K1), &point(65)))
    }),
    shows(75, "a curve without a name", "curve", |mesh| {
        keyed(mesh, ec(&seq(&[&der(INTEGER, &[&[1]])]), &point(65)))
    }),
    shows(76, "RSA with exponent 1", WEAK, |mesh| {
        keyed(mesh, rsa(2048, &[1]))
    }),
    shows(76, "RSA with an even exponent", WEAK, |mesh| {
        keyed(mesh, rsa(2048, &[1, 0, 0]))
    }),
    shows(77, "a point not on the curve", "point", |mesh| {
        keyed(mesh, ec(&oid(P256), &point(65)))
    }),
    shows(77, "the point at infinity", "point", |mesh| {
        keyed(mesh, ec(&oid(P256), &[0]))
    }),
    shows(78, "inner and outer algorithm differ", ALGORITHM, |mesh| {
        labelled(
            mesh,
            seq(&[&oid(ECDSA_SHA256)]),
            seq(&[&oid(&[1, 2, 840, 10045, 4, 3, 3])]),
        )
    }),
    shows(79, "RSA-PSS with odd parameters", ALGORITHM, |mesh| {
        labelled_both(mesh, odd_pss())
    }),
    shows(
        80,
        "another private key than the certificate's",
        "does not hold",
        |mesh| Shown {
            key: Some(Key::new()),
            ..Shown::chain(vec![mesh.svid().signed_by(&mesh.root)])
        },
    ),
];
