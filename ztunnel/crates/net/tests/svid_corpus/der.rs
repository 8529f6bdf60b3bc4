//! DER by hand, also the kind that no encoder would write. X.690 §8 and §10.

pub const INTEGER: u8 = 0x02;
pub const BIT_STRING: u8 = 0x03;
pub const OCTET_STRING: u8 = 0x04;
pub const NULL: &[u8] = &[0x05, 0];
pub const OID: u8 = 0x06;
pub const UTF8: u8 = 0x0c;
pub const SEQUENCE: u8 = 0x30;
pub const SET: u8 = 0x31;
pub const UTC_TIME: u8 = 0x17;
pub const GENERALIZED_TIME: u8 = 0x18;
pub const TRUE: &[u8] = &[1, 1, 0xff];

/// One value: tag, definite length, the parts one after the other.
pub fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=0x7f => out.push(short as u8),
        long => {
            let bytes = long.to_be_bytes();
            let begin = bytes.iter().position(|byte| *byte != 0).unwrap_or_default();
            out.push(0x80 | (bytes.len() - begin) as u8);
            out.extend(&bytes[begin..]);
        }
    }
    out.extend(content);
    out
}

pub fn seq(parts: &[&[u8]]) -> Vec<u8> {
    der(SEQUENCE, parts)
}

/// The whole encoding of an object identifier with small first arcs.
pub fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut content = vec![(arcs[0] * 40 + arcs[1]) as u8];
    for arc in &arcs[2..] {
        let mut digits = vec![(arc & 0x7f) as u8];
        let mut rest = arc >> 7;
        while rest > 0 {
            digits.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        content.extend(digits.iter().rev());
    }
    der(OID, &[&content])
}

/// A BIT STRING of named bits, bit 0 first, without trailing zeros (X.690 §11.2.2).
pub fn named_bits(set: &[u8]) -> Vec<u8> {
    let highest = set.iter().max().copied().unwrap_or_default();
    let mut bytes = vec![0; usize::from(highest / 8) + 1];
    for bit in set {
        bytes[usize::from(bit / 8)] |= 0x80 >> (bit % 8);
    }
    der(BIT_STRING, &[&[7 - highest % 8], &bytes])
}

/// A Name with one common name; `""`: the empty name.
pub fn name(common: &str) -> Vec<u8> {
    if common.is_empty() {
        return seq(&[]);
    }
    let attribute = seq(&[&oid(&[2, 5, 4, 3]), &der(UTF8, &[common.as_bytes()])]);
    seq(&[&der(SET, &[&attribute])])
}
