//! The hash of the maps of a snapshot: some nanoseconds for a name, where SipHash takes as long as the rest of the look-up.
//!
//! Folds 16 bytes at a time by a multiplication to 128 bits. Without a random key, so that a snapshot depends on its input
//! only; only the control plane chooses the keys. Not for what has to stay the same from version to version.

use std::hash::{BuildHasherDefault, Hasher};

pub(super) type Build = BuildHasherDefault<Folded>;

/// Any odd numbers with as many ones as zeros.
const FIRST: u64 = 0xb3c5_9a27_e46d_1d8b;
const SECOND: u64 = 0x69d2_e51a_8b3c_74a5;

pub(super) struct Folded(u64);

impl Default for Folded {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        let (mut state, mut rest) = (self.0, bytes);
        while rest.len() > 16 {
            let (low, high) = ends(&rest[..16]);
            state = fold(low ^ state, high ^ SECOND);
            rest = &rest[16..];
        }
        // Of a long text the last 16 bytes, even if some of them were folded before.
        let tail = &bytes[bytes.len().saturating_sub(16)..];
        let (low, high) = ends(tail);
        self.0 = fold(low ^ state, high ^ SECOND ^ bytes.len() as u64);
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = fold(self.0 ^ number, SECOND);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The first and the last bytes of up to 16, together all of them.
fn ends(bytes: &[u8]) -> (u64, u64) {
    if let (Some(low), Some(high)) = (bytes.first_chunk(), bytes.last_chunk()) {
        return (u64::from_le_bytes(*low), u64::from_le_bytes(*high));
    }
    if let (Some(low), Some(high)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let (low, high) = (u32::from_le_bytes(*low), u32::from_le_bytes(*high));
        return (low.into(), high.into());
    }
    let gathered = bytes
        .iter()
        .fold(0, |all, byte| (all << 8) | u64::from(*byte));
    (gathered, 0)
}

/// A number that has nothing to do with the order of the other one.
pub(super) fn mixed(number: u64) -> u64 {
    fold(number ^ FIRST, SECOND)
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::{BuildHasher, Hash};
    use std::net::{IpAddr, Ipv4Addr};

    fn hash(of: impl Hash) -> u64 {
        Build::default().hash_one(of)
    }

    /// How full the fullest of 256 parts is, by bits from `at` on, if 128 are to be in each.
    fn fullest(hashes: &[u64], at: u32) -> usize {
        let mut parts = [0; 256];
        hashes
            .iter()
            .for_each(|hash| parts[(hash >> at) as usize % 256] += 1);
        parts.into_iter().max().unwrap_or_default()
    }

    #[test]
    fn every_byte_and_the_length_count() {
        let text = [b'a'; 40];
        let mut seen = HashSet::new();
        for length in 0..=text.len() {
            assert!(seen.insert(hash(&text[..length])), "{length}");
            for at in 0..length {
                let mut other = text;
                other[at] = b'b';
                assert!(seen.insert(hash(&other[..length])), "{length}, {at}");
            }
        }
    }

    #[test]
    fn names_and_addresses_that_are_counted_up_spread_by_any_bits() {
        let count = 256 * 128;
        let names = (0..count).map(|n| hash(format!("Kubernetes//Pod/shop/web-{n:07}")));
        let addresses = (0..count).map(|n| hash(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n))));
        for hashes in [names.collect::<Vec<_>>(), addresses.collect()] {
            for at in [0, 8, 20, 48, 56] {
                let most = fullest(&hashes, at);
                assert!(most < 192, "{most} at {at}");
            }
        }
    }
}
