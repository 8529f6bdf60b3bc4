//! TLS after the handshake, against rustls' own record layer: key changes, bad records, hostile ones.

mod transport_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use transport_support::*;
use ztunnel_core::h2::{Config, Connection, Event};
use ztunnel_net::pool::Limits;
use ztunnel_net::tunnel::ServeError;

type Tls = rustls::StreamOwned<ClientConnection, TcpStream>;

/// A client that is not ours up to its HTTP/2: rustls on a blocking socket.
fn foreign_client(ca: &Ca) -> impl FnOnce(SocketAddr) -> Tls + Send + 'static {
    let config = foreign_config(ca);
    move |at| {
        let name = ServerName::try_from("0.0.0.0").expect("name");
        let session = ClientConnection::new(Arc::new(config), name).expect("session");
        Tls::new(session, TcpStream::connect(at).expect("connect"))
    }
}

/// Sends what waits, then reads until `enough` bytes of payload have come.
fn converse(tls: &mut Tls, h2: &mut Connection, enough: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let waiting = std::mem::take(h2.output());
        tls.write_all(&waiting).expect("write");
        if got.len() >= enough {
            return got;
        }
        let read = tls.read(&mut piece).expect("read");
        let mut answered = false;
        h2.receive(&piece[..read], &mut |event| match event {
            Event::Data { payload, .. } => got.extend_from_slice(payload),
            Event::Response { status, .. } => answered = status == 200,
            _ => {}
        })
        .expect("HTTP/2");
        if enough == 0 && answered {
            return got;
        }
    }
}

#[test]
fn keys_change_in_both_directions_without_a_byte_lost() {
    on_worker(async {
        let ca = Ca::new();
        let server = Server::start(ca.identities(SERVER), Limits::default()).await;
        let (at, to, connect) = (server.at, echo().await, foreign_client(&ca));
        let client = tokio::task::spawn_blocking(move || {
            let mut tls = connect(at);
            let mut h2 = Connection::new(Config::client());
            let id = h2.open(&to.to_string(), &[]).expect("stream");
            converse(&mut tls, &mut h2, 0);
            for round in 0..10u8 {
                // Asks for the peer's key too, so that either side opens under a new one.
                tls.conn.refresh_traffic_keys().expect("refresh");
                let payload = vec![round; 20_000];
                for part in payload.chunks(10_000) {
                    h2.output().clear();
                    let header = h2.data(id, part.len(), false);
                    tls.write_all(&[&header[..], part].concat()).expect("write");
                }
                assert!(converse(&mut tls, &mut h2, payload.len()) == payload);
            }
        });
        client.await.expect("ten rounds");
    });
}

#[test]
fn a_peer_that_only_changes_keys_is_cut() {
    on_worker(async {
        let ca = Ca::new();
        let mut server = Server::start(ca.identities(SERVER), Limits::default()).await;
        let (at, connect) = (server.at, foreign_client(&ca));
        let client = tokio::task::spawn_blocking(move || {
            let mut tls = connect(at);
            let mut h2 = Connection::new(Config::client());
            tls.write_all(h2.output()).expect("preface");
            while tls.conn.refresh_traffic_keys().is_ok() && tls.flush().is_ok() {}
        });
        let ended = server.ended.recv().await.expect("an end");
        client.await.expect("client");
        match ended {
            Err(ServeError::Offence { why, .. }) => {
                assert_eq!(why, "the peer changes its key over and over")
            }
            other => panic!("not cut: {other:?}"),
        }
    });
}

#[test]
fn bytes_that_are_no_record_end_the_tunnel() {
    on_worker(async {
        let ca = Ca::new();
        let mut server = Server::start(ca.identities(SERVER), Limits::default()).await;
        let (at, connect) = (server.at, foreign_client(&ca));
        let client = tokio::task::spawn_blocking(move || {
            let mut tls = connect(at);
            tls.write_all(Connection::new(Config::client()).output())
                .expect("preface");
            tls.sock
                .write_all(b"\x17\x03\x03\x00\x20 a record that nobody has sealed")
                .expect("write");
            let _ = tls.sock.read_to_end(&mut Vec::new()); // until the server hangs up
        });
        let ended = server.ended.recv().await.expect("an end");
        client.await.expect("client");
        match ended {
            Err(ServeError::Offence { why, .. }) => {
                assert!(why.starts_with("a record does not open"), "{why}")
            }
            other => panic!("not ended: {other:?}"),
        }
    });
}

#[test]
fn a_peer_that_speaks_no_http2_is_given_up() {
    on_worker_with_stopped_clock(async {
        let ca = Ca::new();
        let mut server = Server::start(ca.identities(SERVER), Limits::default()).await;
        let (at, connect) = (server.at, foreign_client(&ca));
        let shaken = tokio::task::spawn_blocking(move || {
            let mut tls = connect(at);
            tls.conn.complete_io(&mut tls.sock).expect("handshake");
            tls
        });
        let _open = shaken.await.expect("handshake");
        let ended = server.ended.recv().await.expect("an end");
        match ended {
            Err(ServeError::Offence { why, .. }) => assert_eq!(why, "no HTTP/2 preface within 5s"),
            other => panic!("not given up: {other:?}"),
        }
    });
}
