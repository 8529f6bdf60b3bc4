//! The store of keys and certificates: what is taken into use, what is not, and who waits for it.

mod transport_support;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use time::{Duration, OffsetDateTime};
use transport_support::*;
use ztunnel_net::identity::Identities;
use ztunnel_net::pool::{Limits, Tunnels};

fn store() -> Arc<Identities> {
    Arc::new(Identities::new(Box::new(|_, _| {})))
}

fn refused(chain: impl FnOnce(&Ca, &str) -> Vec<String>) -> String {
    let (ca, store) = (Ca::new(), store());
    let csr = store.new_key(&id(CLIENT)).expect("key");
    let why = store
        .install_chain(&id(CLIENT), &chain(&ca, &csr))
        .expect_err("a refusal");
    // The request is still pending: the right answer is taken.
    store
        .install_chain(
            &id(CLIENT),
            &[ca.sign(&csr, CLIENT, |_| {}), ca.root_pem.clone()],
        )
        .expect("installed");
    why
}

#[test]
fn a_chain_for_the_key_and_the_identity_is_installed_with_its_dates() {
    let (ca, store) = (Ca::new(), store());
    let csr = store.new_key(&id(CLIENT)).expect("key");
    let leaf = ca.sign(&csr, CLIENT, |params| {
        params.not_before = OffsetDateTime::UNIX_EPOCH + Duration::seconds(1_000_000_000);
        params.not_after = OffsetDateTime::UNIX_EPOCH + Duration::seconds(4_000_000_000);
    });
    let dates = store.install_chain(&id(CLIENT), &[leaf, ca.root_pem.clone()]);
    assert_eq!(dates, Ok((1e9, 4e9)));
}

#[test]
fn a_chain_for_another_key_is_refused() {
    let why = refused(|ca, _| vec![ca.loose(&[CLIENT], |_| {}).0, ca.root_pem.clone()]);
    assert_eq!(
        why,
        format!("the certificate is not for the last key made for {CLIENT}")
    );
}

#[test]
fn a_chain_for_another_identity_is_refused() {
    let why = refused(|ca, csr| vec![ca.sign(csr, SERVER, |_| {}), ca.root_pem.clone()]);
    assert_eq!(
        why,
        format!("the certificate is for {SERVER}, expected {CLIENT}")
    );
}

#[test]
fn an_expired_chain_is_refused() {
    let why = refused(|ca, csr| {
        let expired = ca.sign(csr, CLIENT, |params| {
            params.not_after = OffsetDateTime::now_utc() - Duration::seconds(1);
        });
        vec![expired, ca.root_pem.clone()]
    });
    assert!(why.starts_with("the certificate expired at"), "{why}");
}

#[test]
fn a_chain_without_roots_is_refused() {
    let why = refused(|ca, csr| vec![ca.sign(csr, CLIENT, |_| {})]);
    assert_eq!(
        why,
        "the chain has 1 element(s); it needs a leaf and, last, the roots"
    );
}

#[test]
fn a_chain_nobody_asked_for_is_refused() {
    let ca = Ca::new();
    let why = store()
        .install_chain(&id(CLIENT), std::slice::from_ref(&ca.root_pem))
        .expect_err("a refusal");
    assert_eq!(why, format!("no key was made for {CLIENT}"));
}

#[test]
fn text_that_is_not_pem_is_refused() {
    let why = refused(|ca, _| {
        vec![
            "-----BEGIN CERTIFICATE-----\n!".to_owned(),
            ca.root_pem.clone(),
        ]
    });
    assert!(why.starts_with("the chain is not PEM"), "{why}");
}

#[test]
fn the_first_who_waits_asks_and_all_who_wait_get_the_chain() {
    on_worker(async {
        let ca = Ca::new();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let store = Arc::new(Identities::new(Box::new(move |_, now| {
            assert!(now);
            count.fetch_add(1, SeqCst);
        })));
        let csr = store.new_key(&id(CLIENT)).expect("key");
        let identity = id(CLIENT);
        let answer = async {
            tokio::task::yield_now().await;
            store.install_chain(
                &identity,
                &[ca.sign(&csr, CLIENT, |_| {}), ca.root_pem.clone()],
            )
        };
        let (one, two, installed) =
            tokio::join!(store.ready(&identity), store.ready(&identity), answer);
        assert_eq!(
            (one.is_ok(), two.is_ok(), installed.is_ok()),
            (true, true, true)
        );
        assert_eq!(asked.load(SeqCst), 1);
    });
}

#[test]
fn who_waits_hears_of_the_failure() {
    on_worker(async {
        let store = store();
        let identity = id(CLIENT);
        let fail = async {
            tokio::task::yield_now().await;
            store.failed(&identity, "the CA says no");
        };
        let (waited, ()) = tokio::join!(store.ready(&identity), fail);
        assert_eq!(waited.err().as_deref(), Some("the CA says no"));
    });
}

#[test]
fn nobody_waits_longer_than_ten_seconds() {
    on_worker_with_stopped_clock(async {
        let begin = tokio::time::Instant::now();
        assert!(store().ready(&id(CLIENT)).await.is_err());
        assert_eq!(begin.elapsed().as_secs(), 10);
    });
}

#[test]
fn a_failure_does_not_take_away_what_is_valid_and_forgetting_does() {
    on_worker_with_stopped_clock(async {
        let store = Ca::new().identities(CLIENT);
        store.failed(&id(CLIENT), "the CA is away");
        assert!(store.ready(&id(CLIENT)).await.is_ok());
        store.forget(&id(CLIENT));
        assert!(store.ready(&id(CLIENT)).await.is_err());
    });
}

#[test]
fn new_handshakes_show_the_newest_certificate() {
    on_worker(async {
        let ca = Ca::new();
        let store = ca.identities(SERVER);
        let first = store.ready(&id(SERVER)).await.expect("credentials");
        let csr = store.new_key(&id(SERVER)).expect("key");
        assert!(Arc::ptr_eq(
            &first,
            &store.ready(&id(SERVER)).await.expect("credentials")
        ));
        store
            .install_chain(
                &id(SERVER),
                &[ca.sign(&csr, SERVER, |_| {}), ca.root_pem.clone()],
            )
            .expect("installed");
        assert!(!Arc::ptr_eq(
            &first,
            &store.ready(&id(SERVER)).await.expect("credentials")
        ));
        let server = Server::start(store, Limits::default()).await;
        let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
        let mut app = through(&tunnels, server.at, echo().await).await;
        assert_eq!(exchange(&mut app, b"x").await.expect("echo"), b"x");
    });
}

#[test]
fn the_dump_shows_chain_and_state_but_no_key() {
    let (ca, store) = (Ca::new(), store());
    let csr = store.new_key(&id(CLIENT)).expect("key");
    assert_eq!(store.dump()[0].state, "Initializing");
    store
        .install_chain(
            &id(CLIENT),
            &[ca.sign(&csr, CLIENT, |_| {}), ca.root_pem.clone()],
        )
        .expect("installed");
    let row = store.dump().remove(0);
    assert_eq!(
        (row.state.as_str(), row.identity),
        ("Available", id(CLIENT))
    );
    assert_eq!((row.intermediates.len(), row.roots.len()), (0, 1));
    let leaf = row.leaf.expect("a leaf");
    assert!(leaf.pem.starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(
        leaf.serial_number
            .bytes()
            .all(|digit| digit.is_ascii_digit())
    );
}

#[test]
fn what_is_asked_for_is_named() {
    on_worker_with_stopped_clock(async {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        let store = Identities::new(Box::new(move |identity, _| {
            noted.lock().expect("lock").push(identity.clone());
        }));
        let _ = store.ready(&id(SERVER)).await; // nobody answers
        assert_eq!(*asked.lock().expect("lock"), [id(SERVER)]);
    });
}
