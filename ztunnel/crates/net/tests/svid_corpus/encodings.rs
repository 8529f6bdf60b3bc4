//! DER that is none, numbers that are none, and sizes.

use crate::der::*;
use crate::forge::*;
use crate::peers::{Mesh, Shown};
use crate::{Case, shows};

fn leaf(mesh: &Mesh, alter: impl FnOnce(&mut Draft)) -> Shown {
    let mut draft = mesh.svid();
    alter(&mut draft);
    Shown::chain(vec![draft.signed_by(&mesh.root)])
}

fn recoded(mesh: &Mesh, recode: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Shown {
    Shown::chain(vec![recode(mesh.svid().signed_by(&mesh.root))])
}

/// The outermost SEQUENCE with indefinite length, X.690 §8.1.3.6.
fn indefinite(certificate: Vec<u8>) -> Vec<u8> {
    let header = 2 + usize::from(certificate[1] & 0x7f);
    [&[SEQUENCE, 0x80], &certificate[header..], &[0, 0]].concat()
}

/// One byte more for the length than is needed.
fn long_length(certificate: Vec<u8>) -> Vec<u8> {
    let header = 2 + usize::from(certificate[1] & 0x7f);
    let mut out = vec![SEQUENCE, certificate[1] + 1, 0];
    out.extend(&certificate[2..header]);
    out.extend(&certificate[header..]);
    out
}

fn many_names(mesh: &Mesh) -> Shown {
    leaf(mesh, |draft| {
        let mut all: Vec<(u8, &[u8])> = vec![(2, b"a.b"); 10_000];
        all.push((6, mesh.name.as_bytes()));
        draft.set(NAMES, general_names(&all));
    })
}

const SERIAL: &str = "serial number";
const PARSE: &str = "cannot be parsed";

pub const CASES: &[Case] = &[
    shows(81, "bytes behind the certificate", "bytes follow", |mesh| {
        recoded(mesh, |der| [der, vec![0]].concat())
    }),
    shows(
        81,
        "another certificate behind it",
        "bytes follow",
        |mesh| recoded(mesh, |der| [der.clone(), der].concat()),
    ),
    shows(82, "indefinite length", PARSE, |mesh| {
        recoded(mesh, indefinite)
    }),
    shows(82, "a length longer than need be", PARSE, |mesh| {
        recoded(mesh, long_length)
    }),
    shows(83, "negative serial number", SERIAL, |mesh| {
        leaf(mesh, |draft| draft.serial = vec![0x80, 1])
    }),
    shows(84, "serial number zero", SERIAL, |mesh| {
        leaf(mesh, |draft| draft.serial = vec![0])
    }),
    shows(85, "serial number of 21 bytes", SERIAL, |mesh| {
        leaf(mesh, |draft| draft.serial = vec![1; 21])
    }),
    shows(86, "version 1 with extensions", "version", |mesh| {
        leaf(mesh, |draft| draft.version = None)
    }),
    shows(86, "version 2 with extensions", "version", |mesh| {
        leaf(mesh, |draft| draft.version = Some(1))
    }),
    shows(87, "PEM", "PEM", |mesh| {
        recoded(mesh, |der| pem(&der).into_bytes())
    }),
    shows(88, "a certificate of 1 MiB", "more than", |mesh| {
        leaf(mesh, |draft| draft.add(UNKNOWN, false, vec![0; 1 << 20]))
    }),
    shows(88, "a certificate of 17 KiB", "more than", |mesh| {
        leaf(mesh, |draft| draft.add(UNKNOWN, false, vec![0; 17 << 10]))
    }),
    shows(89, "ten thousand names", "more than", many_names),
    shows(82, "nothing at all", PARSE, |_| {
        Shown::chain(vec![vec![SEQUENCE, 0]])
    }),
];
