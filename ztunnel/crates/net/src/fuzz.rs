//! What this crate parses of a peer's, an authority's or the shell's bytes, on generated input.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};
use ztunnel_core::ids::SpiffeId;
use ztunnel_fuzz::{damaged, fuzz};

use crate::config::Config;
use crate::identity::Identities;
use crate::tls::{Content, Opener, RECORD_HEADER, RECORD_TRAILER, Sealer};
use crate::verify::leaf_identity;

/// A leaf of a test authority that is long gone; its identity is what counts.
const LEAF: &[u8] = include_bytes!("seeds/leaf.der");

fn secret() -> (u64, ConnectionTrafficSecrets) {
    let (key, iv) = (AeadKey::from([7; 32]), Iv::from([9; 12]));
    (0, ConnectionTrafficSecrets::Aes256Gcm { key, iv })
}

fn sealed(content: Content, plain: &[u8]) -> Vec<u8> {
    let mut record = vec![0; RECORD_HEADER + plain.len() + RECORD_TRAILER];
    record[RECORD_HEADER..][..plain.len()].copy_from_slice(plain);
    let mut sealer = Sealer::new(secret()).expect("a key");
    sealer.seal(&mut record, content).expect("sealed");
    record
}

/// Nothing opens that was not sealed exactly so.
#[test]
fn fuzz_records() {
    let good = [
        sealed(Content::Data, b"some payload of a tunnel"),
        sealed(Content::Handshake, &[24, 0, 0, 1, 0]),
        sealed(Content::Alert, &[1, 0]),
        sealed(Content::Data, b""),
    ];
    fuzz(
        "TLS records",
        20_000,
        damaged(good.to_vec()),
        |mut bytes| {
            let whole = bytes.clone();
            let Ok(Some(len)) = Opener::record_length(&bytes) else {
                return;
            };
            let mut opener = Opener::new(secret()).expect("a key");
            if opener.open(&mut bytes[..len]).is_ok() {
                assert!(good.iter().any(|record| record[..] == whole[..len]));
            }
        },
    );
}

/// A certificate is refused or names an identity that reads back the same.
#[test]
fn fuzz_certificates() {
    let whole = leaf_identity(LEAF).expect("the seed");
    fuzz(
        "certificates",
        20_000,
        damaged(vec![LEAF.to_vec()]),
        |bytes| {
            if let Ok(id) = leaf_identity(&bytes) {
                assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(&id));
            }
        },
    );
    assert_eq!(whole.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
}

/// No damaged chain is ever taken for the key that asked.
#[test]
fn fuzz_chains() {
    let identities = Arc::new(Identities::new(Box::new(|_, _| {})));
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").expect("an identity");
    identities.new_key(&id).expect("a key");
    let seed = include_bytes!("seeds/chain.pem").to_vec();
    fuzz("certificate chains", 2_000, damaged(vec![seed]), |bytes| {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let refused = identities.install_chain(&id, &[text.clone(), text]);
        assert!(!refused.expect_err("another key's").is_empty());
    });
}

#[test]
fn fuzz_configuration() {
    let seed = br#"{"workers": 2, "network": "n", "connect_timeout_s": 1e1, "access_log": "off", "ipv6": false}"#;
    let taken = RefCell::new(0);
    fuzz(
        "the core's configuration",
        5_000,
        damaged(vec![seed.to_vec()]),
        |bytes| match Config::parse(&bytes) {
            Ok(config) => {
                assert!(config.connect_timeout().as_secs() <= 86_400);
                *taken.borrow_mut() += 1;
            }
            Err(why) => assert!(!why.contains('\n'), "one sentence: {why:?}"),
        },
    );
    assert!(taken.into_inner() > 0);
}
