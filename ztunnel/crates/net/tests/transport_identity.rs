//! Who is let in and who is not: every refusal names its reason, and the next good handshake works.

mod transport_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use time::{Duration, OffsetDateTime};
use transport_support::*;
use ztunnel_net::pool::{Limits, OpenError, Tunnels};
use ztunnel_net::tunnel::ServeError;

/// What a hand-made peer shows: certificate and key as PEM.
type Shown = (String, String);

fn roots(ca: &Ca) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&ca.root_pem)).expect("root");
    roots
}

/// A client that takes any server, offers `alpn`, and shows what it is given.
fn rogue_client(shown: Option<&Shown>, alpn: &[&[u8]]) -> ClientConfig {
    let mut config = match shown {
        Some((chain, key)) => any_server()
            .with_client_auth_cert(vec![certificate(chain)], private(key))
            .expect("certificate"),
        None => any_server().with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

/// Knocks and reads until the server hangs up; the server's own words are what the test looks at.
fn knocking(config: ClientConfig) -> impl FnOnce(SocketAddr) + Send + 'static {
    move |at| {
        let name = ServerName::try_from("0.0.0.0").expect("name");
        let mut session = rustls::ClientConnection::new(Arc::new(config), name).expect("session");
        let mut tcp = TcpStream::connect(at).expect("connect");
        let mut stream = rustls::Stream::new(&mut session, &mut tcp);
        // An error is the answer that was hoped for.
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// The sentence with which our server refuses this client; afterwards a good one must still get through.
fn refusal_of(ca: &Ca, client: impl FnOnce(SocketAddr) + Send + 'static) -> String {
    on_worker(async {
        let mut server = Server::start(ca.identities(SERVER), Limits::default()).await;
        let at = server.at;
        let knocking = tokio::task::spawn_blocking(move || client(at));
        let ended = server.ended.recv().await.expect("an end");
        knocking.await.expect("the rogue client");
        let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
        let mut app = through(&tunnels, server.at, echo().await).await;
        assert_eq!(exchange(&mut app, b"good").await.expect("echo"), b"good");
        match ended {
            Err(ServeError::Tls(why)) => why,
            Err(why @ ServeError::Plaintext) => why.to_string(),
            other => panic!("not refused: {other:?}"),
        }
    })
}

fn refused_as_client(uris: &[&str], alter: impl FnOnce(&mut CertificateParams)) -> String {
    let ca = Ca::new();
    let shown = ca.loose(uris, alter);
    refusal_of(&ca, knocking(rogue_client(Some(&shown), &[b"h2"])))
}

/// The sentence with which our client refuses this server.
fn refused_as_server(uris: &[&str], alter: impl FnOnce(&mut CertificateParams)) -> String {
    let ca = Ca::new();
    let (chain, key) = ca.loose(uris, alter);
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(&ca)),
        Arc::new(default_provider()),
    );
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("version")
        .with_client_cert_verifier(verifier.build().expect("verifier"))
        .with_single_cert(vec![certificate(&chain)], private(&key))
        .expect("certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    on_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let at = listener.local_addr().expect("address");
        let serving = tokio::task::spawn_blocking(move || {
            let (mut tcp, _) = listener.accept().expect("accept");
            let mut session = rustls::ServerConnection::new(Arc::new(config)).expect("session");
            let _ = rustls::Stream::new(&mut session, &mut tcp).read_to_end(&mut Vec::new());
        });
        let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
        let refused = open(&tunnels, at, at).await.err();
        serving.await.expect("the rogue server");
        match refused {
            Some(OpenError::Tls(why)) => why,
            other => panic!("not refused: {other:?}"),
        }
    })
}

#[test]
fn a_client_of_another_trust_domain_is_refused() {
    let why = refused_as_client(&["spiffe://elsewhere/ns/shop/sa/web"], |_| {});
    assert_eq!(
        why,
        "the peer is spiffe://elsewhere/ns/shop/sa/web, expected one of trust domain cluster.local"
    );
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let client = rogue_client(None, &[b"h2"]);
    assert_eq!(
        refusal_of(&Ca::new(), knocking(client)),
        "the peer presented no certificate"
    );
}

#[test]
fn a_client_of_another_ca_is_refused() {
    let shown = Ca::new().loose(&[CLIENT], |_| {});
    let why = refusal_of(&Ca::new(), knocking(rogue_client(Some(&shown), &[b"h2"])));
    assert!(
        why.contains("not signed by a root of ours") || why.contains("BadSignature"),
        "{why}"
    );
}

/// A well-formed ClientHello of TLS 1.2 (RFC 5246 §7.4.1.2): it names no version in an extension.
fn hello_of_tls_1_2() -> Vec<u8> {
    let groups_and_signatures = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]); // no session, ECDHE-ECDSA-AES128-GCM-SHA256, no compression
    hello.extend([0, groups_and_signatures.len() as u8]);
    hello.extend(groups_and_signatures);
    let len = hello.len() as u8;
    [vec![22, 3, 1, 0, len + 4, 1, 0, 0, len], hello].concat()
}

fn refusal_of_bytes(bytes: Vec<u8>) -> String {
    refusal_of(&Ca::new(), move |at| {
        let mut tcp = TcpStream::connect(at).expect("connect");
        tcp.write_all(&bytes).expect("write");
        let _ = tcp.read_to_end(&mut Vec::new()); // until the server hangs up
    })
}

#[test]
fn tls_1_2_is_refused() {
    assert_eq!(
        refusal_of_bytes(hello_of_tls_1_2()),
        "the peer does not speak TLS 1.3"
    );
}

#[test]
fn what_is_not_tls_is_refused() {
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ] {
        let why = refusal_of_bytes(bytes.to_vec());
        assert!(why.contains("the peer does not speak TLS"), "{why}");
    }
}

#[test]
fn another_protocol_than_h2_and_none_at_all_are_refused() {
    for alpn in [&[b"http/1.1".as_slice()][..], &[]] {
        let ca = Ca::new();
        let shown = ca.loose(&[CLIENT], |_| {});
        let why = refusal_of(&ca, knocking(rogue_client(Some(&shown), alpn)));
        assert_eq!(why, "the peer does not offer HTTP/2 (ALPN h2)");
    }
}

#[test]
fn an_expired_client_is_refused() {
    let why = refused_as_client(&[CLIENT], |params| {
        params.not_before = OffsetDateTime::now_utc() - Duration::days(2);
        params.not_after = OffsetDateTime::now_utc() - Duration::days(1);
    });
    assert!(
        why.starts_with("the peer's certificate has expired"),
        "{why}"
    );
}

#[test]
fn a_client_from_the_future_is_refused() {
    let why = refused_as_client(&[CLIENT], |params| {
        params.not_before = OffsetDateTime::now_utc() + Duration::hours(1);
    });
    assert!(
        why.starts_with("the peer's certificate is not valid yet"),
        "{why}"
    );
}

/// What a CA must not sign, and what we say when one did: as client and as server alike.
#[test]
fn certificates_that_are_no_svid_are_refused_in_both_roles() {
    type Alter = fn(&mut CertificateParams);
    let cases: &[(&[&str], Alter, &str)] = &[
        (
            &[CLIENT, SERVER],
            |_| {},
            "the certificate carries 2 URI names where exactly one is allowed",
        ),
        (
            &[],
            |params| params.custom_extensions.clear(),
            "the certificate carries no SPIFFE ID: it has no alternative name",
        ),
        (
            &["spiffe://cluster.local/shop"],
            |_| {},
            "which is no identity of a mesh",
        ),
        (
            &["https://cluster.local/ns/shop/sa/db"],
            |_| {},
            "which is no identity of a mesh",
        ),
        (
            &[SERVER],
            |params| params.custom_extensions[0].set_criticality(false),
            "the certificate has an empty subject but its alternative names are not critical",
        ),
        (
            &[SERVER],
            |params| params.key_usages.clear(),
            "the certificate has no key usage",
        ),
        (
            &[SERVER],
            |params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement],
            "the certificate's key may not sign (no digitalSignature)",
        ),
        (
            &[SERVER],
            |params| params.key_usages.push(KeyUsagePurpose::CrlSign),
            "the certificate's key may sign certificates or revocation lists",
        ),
    ];
    for (uris, alter, sentence) in cases {
        for why in [
            refused_as_client(uris, alter),
            refused_as_server(uris, alter),
        ] {
            assert!(why.contains(sentence), "{why:?} should say {sentence:?}");
        }
    }
}

#[test]
fn a_ca_certificate_and_a_one_sided_key_are_refused() {
    let ca_leaf: fn(&mut CertificateParams) = |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    let server_only: fn(&mut CertificateParams) =
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let client_only: fn(&mut CertificateParams) =
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for alter in [ca_leaf, server_only, client_only] {
        for why in [
            refused_as_client(&[CLIENT], alter),
            refused_as_server(&[SERVER], alter),
        ] {
            assert!(why.contains("certificate"), "{why}");
        }
    }
}

#[test]
fn a_server_with_another_identity_is_refused_and_both_are_named() {
    let why = refused_as_server(&["spiffe://cluster.local/ns/shop/sa/thief"], |_| {});
    assert_eq!(
        why,
        format!("the peer is spiffe://cluster.local/ns/shop/sa/thief, expected {SERVER}")
    );
}

#[test]
fn our_client_learns_why_the_server_refuses_it() {
    on_worker(async {
        let (ca, other) = (Ca::new(), Ca::new());
        let server = Server::start(ca.identities(SERVER), Limits::default()).await;
        // Trusts the server's CA but shows a certificate of another one.
        let identities = Arc::new(ztunnel_net::identity::Identities::new(Box::new(|_, _| {})));
        let csr = identities.new_key(&id(CLIENT)).expect("key");
        let leaf = other.sign(&csr, CLIENT, |_| {});
        identities
            .install_chain(&id(CLIENT), &[leaf, ca.root_pem.clone()])
            .expect("installed");
        let refused = open(
            &Tunnels::new(identities, Limits::default()),
            server.at,
            server.at,
        )
        .await
        .err();
        let Some(OpenError::Tls(why)) = refused else {
            panic!("not refused: {refused:?}")
        };
        assert!(why.starts_with("the peer refused us with alert"), "{why}");
        assert_eq!(server.accepted.get(), 1, "a refusal is not retried");
    });
}
