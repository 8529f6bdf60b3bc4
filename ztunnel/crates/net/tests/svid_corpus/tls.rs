//! What goes wrong around the certificate: none, another protocol, tickets, revocation.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::der::*;
use crate::forge::*;
use crate::peers::{
    Mesh, Shown, answer, as_client, as_server, knock, server_config, shows as resolver,
};
use crate::transport_support::any_server;
use crate::{As, Case, does, shows};

fn own(mesh: &Mesh) -> Vec<Vec<u8>> {
    vec![mesh.root.certificate.clone()]
}

fn client_says(
    mesh: &Mesh,
    client: impl FnOnce(SocketAddr) + Send + 'static,
) -> Result<(), String> {
    as_client(mesh, &own(mesh), None, client)
}

fn server_says(mesh: &Mesh, server: impl FnOnce(TcpStream) + Send + 'static) -> Result<(), String> {
    as_server(mesh, &own(mesh), None, server)
}

fn anonymous() -> ClientConfig {
    let mut config = any_server().with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

fn no_certificate(mesh: &Mesh) -> Result<(), String> {
    client_says(mesh, |at| knock(at, anonymous()))
}

fn bytes(mesh: &Mesh, said: Vec<u8>) -> Result<(), String> {
    client_says(mesh, move |at| {
        let mut tcp = TcpStream::connect(at).expect("connect");
        tcp.write_all(&said).expect("write");
        let _ = tcp.read_to_end(&mut Vec::new());
    })
}

/// RFC 5246 §7.4.1.2 and §7.4.1.3: hellos that name no version in an extension.
fn hello(kind: u8, middle: &[u8]) -> Vec<u8> {
    let body = [&[3, 3], &[7; 32][..], middle].concat();
    let length = body.len() as u8;
    [vec![22, 3, 1, 0, length + 4, kind, 0, 0, length], body].concat()
}

fn old_client(mesh: &Mesh) -> Result<(), String> {
    let groups_and_signatures = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    let mut middle = vec![
        0,
        0,
        2,
        0xc0,
        0x2b,
        1,
        0,
        0,
        groups_and_signatures.len() as u8,
    ];
    middle.extend(groups_and_signatures);
    bytes(mesh, hello(1, &middle))
}

fn old_server(mesh: &Mesh) -> Result<(), String> {
    server_says(mesh, |mut tcp| {
        let _ = tcp.read(&mut [0; 4096]).expect("a hello");
        tcp.write_all(&hello(2, &[0, 0xc0, 0x2b, 0]))
            .expect("write");
        let _ = tcp.read_to_end(&mut Vec::new());
    })
}

fn client_alpn(mesh: &Mesh, alpn: &[&[u8]]) -> Result<(), String> {
    let leaf = Shown::chain(vec![mesh.svid().signed_by(&mesh.root)]);
    let mut config = crate::peers::client_config(&leaf, mesh);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    client_says(mesh, |at| knock(at, config))
}

fn server_alpn(mesh: &Mesh, alpn: &[&[u8]]) -> Result<(), String> {
    let config = server_config(resolver(mesh), alpn);
    server_says(mesh, |tcp| answer(tcp, config))
}

fn empty_certificate_of_a_server(mesh: &Mesh) -> Result<(), String> {
    crate::peers::meet(mesh, &Shown::chain(Vec::new()))
}

/// A ticket from a server of the client's own making, with early data in hand: as if we had once let it in.
fn resumes(mesh: &Mesh) -> Result<(), String> {
    let mut config = anonymous();
    config.enable_early_data = true;
    let config = Arc::new(config);
    let mut accomplice = server_config(resolver(mesh), &[b"h2"]);
    accomplice.max_early_data_size = 1024;
    earn_ticket(&config, accomplice);
    client_says(mesh, move |at| {
        let name = ServerName::try_from("0.0.0.0").expect("name");
        let mut session = rustls::ClientConnection::new(config, name).expect("session");
        let mut early = session.early_data().expect("the ticket allows early data");
        early
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .expect("early data");
        let mut tcp = TcpStream::connect(at).expect("connect");
        let _ = session.complete_io(&mut tcp); // refused: that is the point
        assert!(!session.is_early_data_accepted(), "early data was taken");
        let _ = tcp.shutdown(std::net::Shutdown::Write);
        let _ = tcp.read_to_end(&mut Vec::new());
    })
}

fn earn_ticket(config: &Arc<ClientConfig>, accomplice: rustls::ServerConfig) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let at = listener.local_addr().expect("address");
    let serving = std::thread::spawn(move || {
        let mut tcp = listener.accept().expect("accept").0;
        let mut session = rustls::ServerConnection::new(Arc::new(accomplice)).expect("session");
        let _ = rustls::Stream::new(&mut session, &mut tcp).write_all(b"x");
        let _ = tcp.read_to_end(&mut Vec::new());
    });
    let name = ServerName::try_from("0.0.0.0").expect("name");
    let mut session = rustls::ClientConnection::new(config.clone(), name).expect("session");
    let mut tcp = TcpStream::connect(at).expect("connect");
    let mut one = [0];
    let read = rustls::Stream::new(&mut session, &mut tcp).read_exact(&mut one);
    read.expect("the accomplice speaks");
    drop(tcp);
    serving.join().expect("the accomplice");
}

/// Our hello, parsed: none of its extensions may be compress_certificate (27, RFC 8879).
fn offers_compression(mesh: &Mesh) -> Result<(), String> {
    let (told, hears) = std::sync::mpsc::channel();
    let outcome = server_says(mesh, move |mut tcp| {
        let mut hello = vec![0; 4096];
        let read = tcp.read(&mut hello).expect("a hello");
        told.send(hello[..read].to_vec()).expect("somebody listens");
    });
    assert!(outcome.is_err());
    let ids = extension_ids(&hears.recv().expect("a hello"));
    assert!(ids.contains(&43), "parsed: supported_versions is there");
    match ids.contains(&27) {
        true => Ok(()),
        false => Err("compression of certificates is not offered".into()),
    }
}

/// The numbers of a ClientHello's extensions, RFC 8446 §4.1.2.
fn extension_ids(record: &[u8]) -> Vec<u16> {
    let number = |at: usize| usize::from(record[at]) << 8 | usize::from(record[at + 1]);
    let session = 5 + 4 + 2 + 32;
    let suites = session + 1 + usize::from(record[session]);
    let compression = suites + 2 + number(suites);
    let mut at = compression + 1 + usize::from(record[compression]) + 2;
    let mut ids = Vec::new();
    while at + 4 <= record.len() {
        ids.push(number(at) as u16);
        at += 4 + number(at + 2);
    }
    ids
}

/// A v2 revocation list of `issuer`, RFC 5280 §5.1, for `next_s` more seconds.
pub fn revocations(issuer: &Authority, revoked: &[&[u8]], next_s: i64) -> String {
    let each: Vec<_> = revoked
        .iter()
        .map(|serial| seq(&[&der(INTEGER, &[serial]), &moment(-60)]))
        .collect();
    let list = if each.is_empty() {
        Vec::new()
    } else {
        seq(&each.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let number = seq(&[
        &oid(&[2, 5, 29, 20]),
        &der(OCTET_STRING, &[&der(INTEGER, &[&[1]])]),
    ]);
    let body = seq(&[
        &der(INTEGER, &[&[1]]),
        &seq(&[&oid(ECDSA_SHA256)]),
        &issuer.name,
        &moment(-3600),
        &moment(next_s),
        &list,
        &der(0xa0, &[&seq(&[&number])]),
    ]);
    let signature = der(BIT_STRING, &[&[0], &issuer.key.sign(&body)]);
    let whole = seq(&[&body, &seq(&[&oid(ECDSA_SHA256)]), &signature]);
    crate::pem::encode("X509 CRL", &whole)
}

fn trust_with(mesh: &Mesh, lists: &[String]) -> String {
    let bundles = serde_json::json!({"cluster.local": pem(&mesh.root.certificate)});
    serde_json::json!({"bundles": bundles, "crls": lists.concat()}).to_string()
}

fn listed(mesh: &Mesh, next_s: i64, revoke: bool) -> Shown {
    let draft = mesh.svid();
    let serials: &[&[u8]] = if revoke { &[&draft.serial] } else { &[] };
    Shown {
        trust: Some(trust_with(
            mesh,
            &[revocations(&mesh.root, serials, next_s)],
        )),
        ..Shown::chain(vec![draft.signed_by(&mesh.root)])
    }
}

fn revoked_intermediate(mesh: &Mesh) -> Shown {
    let key = Key::new();
    let draft = Draft::authority("listed", &key);
    let middle = Authority {
        name: name("listed"),
        certificate: draft.signed_by(&mesh.root),
        key,
    };
    let lists = [
        revocations(&mesh.root, &[&draft.serial], 600),
        revocations(&middle, &[], 600),
    ];
    Shown {
        trust: Some(trust_with(mesh, &lists)),
        ..Shown::chain(vec![mesh.svid().signed_by(&middle), middle.certificate])
    }
}

fn list_of_another_signer(mesh: &Mesh) -> Shown {
    let forged = revocations(&Authority::root("root"), &[], 600);
    Shown {
        trust: Some(trust_with(mesh, &[forged])),
        ..Shown::chain(vec![mesh.svid().signed_by(&mesh.root)])
    }
}

fn unlisted_issuer(mesh: &Mesh) -> Shown {
    let other = revocations(&Authority::root("somebody else"), &[], 600);
    Shown {
        trust: Some(trust_with(mesh, &[other])),
        ..Shown::chain(vec![mesh.svid().signed_by(&mesh.root)])
    }
}

pub const CASES: &[Case] = &[
    does(
        90,
        "no certificate",
        As::Client,
        "presented no certificate",
        no_certificate,
    ),
    does(
        91,
        "an empty list of certificates",
        As::Server,
        "certificate",
        empty_certificate_of_a_server,
    ),
    does(
        91,
        "an empty list of certificates",
        As::Client,
        "presented no certificate",
        |mesh| crate::peers::meet(mesh, &Shown::chain(Vec::new())),
    ),
    does(
        92,
        "TLS 1.2",
        As::Client,
        "does not speak TLS 1.3",
        old_client,
    ),
    does(
        92,
        "TLS 1.2",
        As::Server,
        "does not speak TLS 1.3",
        old_server,
    ),
    does(93, "no ALPN", As::Client, "ALPN h2", |mesh| {
        client_alpn(mesh, &[])
    }),
    does(93, "HTTP/1.1", As::Client, "ALPN h2", |mesh| {
        client_alpn(mesh, &[b"http/1.1"])
    }),
    does(93, "no ALPN", As::Server, "ALPN h2", |mesh| {
        server_alpn(mesh, &[])
    }),
    does(93, "HTTP/1.1", As::Server, "ALPN", |mesh| {
        server_alpn(mesh, &[b"http/1.1"])
    }),
    does(
        94,
        "early data",
        As::Client,
        "presented no certificate",
        resumes,
    ),
    does(
        95,
        "a ticket instead of a certificate",
        As::Client,
        "presented no certificate",
        resumes,
    ),
    shows(96, "a revoked leaf", "revoked", |mesh| {
        listed(mesh, 600, true)
    }),
    shows(
        96,
        "a revoked intermediate",
        "revoked",
        revoked_intermediate,
    ),
    shows(
        97,
        "a revocation list that is out of date",
        "revocation list",
        |mesh| listed(mesh, -1, false),
    ),
    shows(
        97,
        "a revocation list of another signer",
        "revocation list",
        list_of_another_signer,
    ),
    shows(
        97,
        "no revocation list of the issuer",
        "revocation list",
        unlisted_issuer,
    ),
    does(
        98,
        "compressed certificates",
        As::Server,
        "not offered",
        offers_compression,
    ),
];

/// With a list in force that does not name it: for the good ones.
pub fn not_revoked(mesh: &Mesh) -> Shown {
    listed(mesh, 600, false)
}
