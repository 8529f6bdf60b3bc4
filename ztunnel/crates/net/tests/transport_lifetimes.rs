//! How long what was established lives: as long as its certificates, and as long as the peer is believed. And the keys.

mod transport_support;

use std::collections::HashSet;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::io::AsyncReadExt;
use transport_support::*;
use ztunnel_net::identity::Identities;
use ztunnel_net::pool::{Limits, Tunnels};

fn trust(bundles: serde_json::Value) -> Vec<u8> {
    serde_json::json!({ "bundles": bundles })
        .to_string()
        .into_bytes()
}

/// Runs until the application's connection ends; the test's own patience is not its meaning.
async fn ends(app: &mut tokio::net::TcpStream) {
    let waited = tokio::time::timeout(Duration::from_secs(60), app.read(&mut [0; 64])).await;
    match waited.expect("it ends") {
        Ok(0) | Err(_) => {}
        Ok(read) => panic!("{read} bytes instead of the end"),
    }
}

#[test]
fn open_streams_end_with_the_certificate_of_either_side() {
    for short in [CLIENT, SERVER] {
        on_worker(async {
            let ca = Ca::new();
            let with = |identity: &str| {
                ca.identities_with(identity, |params| {
                    if identity == short {
                        params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(5);
                    }
                })
                .expect("an orderly certificate")
            };
            let mut server = Server::start(with(SERVER), Limits::default()).await;
            let tunnels = Tunnels::new(with(CLIENT), Limits::default());
            let (mut near, mut far) = joined(&tunnels, &server).await;
            ends(&mut near).await;
            ends(&mut far).await;
            let why = server.ended.recv().await.expect("an end").expect_err("cut");
            let of_server = ["the peer's certificate has expired", "our certificate for"];
            let closed = "the peer closed the tunnel with streams open"; // the other side was quicker
            let why = why.to_string();
            assert!(
                of_server
                    .iter()
                    .chain([&closed])
                    .any(|part| why.contains(part)),
                "{why}"
            );
        });
    }
}

#[test]
fn whoever_is_no_longer_believed_is_cut_and_the_others_are_not() {
    on_worker(async {
        let (ca, partner) = (Ca::new(), Ca::new());
        let store = ca.identities(SERVER);
        let both = trust(
            serde_json::json!({"cluster.local": ca.root_pem, "partner.org": partner.root_pem}),
        );
        store.set_trust(&both).expect("usable");
        let mut server = Server::start(store.clone(), Limits::default()).await;
        let foreign = Identities::new(Box::new(|_, _| {}));
        let name = "spiffe://partner.org/ns/shop/sa/web";
        let request = foreign.new_key(&id(name)).expect("key");
        let leaf = partner.sign(&request, name, |_| {});
        let chain = [leaf, partner.root_pem.clone()];
        foreign.install_chain(&id(name), &chain).expect("installed");
        foreign.set_trust(&both).expect("usable");
        let theirs = Tunnels::new(std::sync::Arc::new(foreign), Limits::default());
        let ours = Tunnels::new(ca.identities(CLIENT), Limits::default());
        let (mut kept, mut kept_far) = joined(&ours, &server).await;
        let (listener, at) = listen().await;
        let mut key = key(server.at);
        key.from = id(name);
        let opened = theirs.open(key, &dialer, &at.to_string(), &[], None).await;
        let (mut near, far) = app().await;
        let counts = std::rc::Rc::default();
        let stream = opened.expect("a stream").stream;
        tokio::task::spawn_local(async move {
            let _ = ztunnel_net::relay::relay_tunnel(far, stream, &counts).await;
        });
        let (_far, _) = listener.accept().await.expect("accept");
        store
            .set_trust(&trust(serde_json::json!({"cluster.local": ca.root_pem})))
            .expect("usable");
        server.tunnels.judge_again();
        ends(&mut near).await;
        let why = server.ended.recv().await.expect("an end").expect_err("cut");
        assert!(
            why.to_string().contains("the peer is no longer trusted"),
            "{why}"
        );
        tokio::io::AsyncWriteExt::write_all(&mut kept, b"x")
            .await
            .expect("open");
        assert_eq!(kept_far.read_u8().await.expect("open"), b'x');
    });
}

#[test]
fn roots_change_in_three_phases_and_no_connection_fails() {
    on_worker(async {
        let (old, new) = (Ca::new(), Ca::new());
        let both = format!("{}{}", old.root_pem, new.root_pem);
        let (client, server_store) = (old.identities(CLIENT), old.identities(SERVER));
        let server = Server::start(server_store.clone(), Limits::default()).await;
        let at = echo().await;
        let renew = |store: &Identities, name: &str, ca: &Ca| {
            let request = store.new_key(&id(name)).expect("key");
            // As a CA answers whose own idea of the roots may lag behind or run ahead of the bundle.
            let chain = [ca.sign(&request, name, |_| {}), ca.root_pem.clone()];
            store.install_chain(&id(name), &chain).expect("installed");
        };
        let believe = |store: &Identities, roots: &str| {
            let document = trust(serde_json::json!({"cluster.local": roots}));
            store.set_trust(&document).expect("usable");
        };
        let steps: [&dyn Fn(); 8] = [
            &|| believe(&client, &old.root_pem),
            &|| believe(&server_store, &old.root_pem),
            &|| believe(&client, &both),
            &|| believe(&server_store, &both),
            &|| renew(&client, CLIENT, &new),
            &|| renew(&server_store, SERVER, &new),
            &|| believe(&client, &new.root_pem),
            &|| believe(&server_store, &new.root_pem),
        ];
        for step in steps {
            step();
            // A pool of its own: each of these is a new handshake.
            let tunnels = Tunnels::new(client.clone(), Limits::default());
            let mut app = through(&tunnels, server.at, at).await;
            assert_eq!(exchange(&mut app, b"x").await.expect("echo"), b"x");
        }
    });
}

#[test]
fn a_key_is_made_only_for_who_is_here_and_goes_when_the_last_one_goes() {
    let ca = Ca::new();
    let store = ca.identities(CLIENT);
    assert_eq!(store.keys(), (vec![id(CLIENT)], 0));
    store.set_present(HashSet::from([id(SERVER)]));
    assert_eq!(store.keys(), (Vec::new(), 1));
    let why = store.new_key(&id(CLIENT)).expect_err("not here");
    assert_eq!(
        why,
        format!("no pod on this node has the identity {CLIENT}")
    );
    store.new_key(&id(SERVER)).expect("here");
    assert_eq!(store.keys(), (vec![id(SERVER)], 1));
}

#[test]
fn a_certificate_that_revocation_reaches_proves_nothing_any_more() {
    on_worker(async {
        let ca = Ca::new();
        let store = ca.identities(CLIENT);
        assert_eq!(store.proven(&id(CLIENT)).await, Ok(()));
        let document = serde_json::json!({"crls_unusable": "crl.pem has expired"});
        store
            .set_trust(document.to_string().as_bytes())
            .expect("usable");
        let why = store.proven(&id(CLIENT)).await.expect_err("no proof");
        assert!(why.contains("crl.pem has expired"), "{why}");
        assert!(store.unproven().contains_key(&id(CLIENT)));
    });
}

#[test]
fn what_was_installed_is_there_again_after_a_restart_and_nothing_else_is() {
    let directory = format!("/dev/shm/nodemesh-restart-{}", std::process::id());
    let fresh = || {
        Identities::new(Box::new(|_, _| {}))
            .with_vault(&directory)
            .expect("a vault")
    };
    let ca = Ca::new();
    let before = fresh();
    for name in [CLIENT, SERVER] {
        let request = before.new_key(&id(name)).expect("key");
        let chain = [ca.sign(&request, name, |_| {}), ca.root_pem.clone()];
        before.install_chain(&id(name), &chain).expect("installed");
    }
    before.forget(&id(SERVER));
    drop(before);
    let after = fresh();
    assert!(after.restore(&id(CLIENT)).is_some());
    assert_eq!(after.restore(&id(SERVER)), None);
    on_worker(async { assert_eq!(after.proven(&id(CLIENT)).await, Ok(())) });
    after.set_present(HashSet::new());
    assert_eq!(fresh().restore(&id(CLIENT)), None, "gone with its pod");
    std::fs::remove_dir_all(&directory).expect("it was made");
}
