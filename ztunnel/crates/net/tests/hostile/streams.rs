//! Streams that stall, linger and churn, with applications at their ends. H9, H14, H15, H18.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use ztunnel_net::pool::Limits;
use ztunnel_net::tunnel::ServeError;

use crate::corpus::Corpus;
use crate::h2_common::*;
use crate::peer::{HONEST, connected, listen_to, reluctant, wait_for_ack};
use crate::transport_support::*;

#[test]
fn streams_that_stall_linger_and_churn_hurt_nobody_else() {
    let mut corpus = Corpus::new("hostile streams");
    corpus.case("2000 connections reset by their clients at once", || {
        on_worker(churn(Who::Client));
    });
    corpus.case("2000 connections reset by their servers at once", || {
        on_worker(churn(Who::Server));
    });
    corpus.case("2000 connections opened and closed", || {
        on_worker(churn(Who::Nobody));
    });
    corpus.case("a window of zero while the application sends", || {
        on_worker(stalled());
    });
    corpus.case("a peer that does not read", || on_worker(unread()));
    corpus.case("a peer that answers no PING", || {
        on_worker_with_stopped_clock(deaf());
    });
    corpus.case("half closed, then silence", || {
        on_worker_with_stopped_clock(half_closed());
    });
    corpus.case("DATA before the 200 waits for it", || on_worker(early()));
    corpus.finish();
}

#[derive(Clone, Copy, PartialEq)]
enum Who {
    Client,
    Server,
    Nobody,
}

fn reset_on_drop(tcp: &TcpStream) {
    SockRef::from(tcp)
        .set_linger(Some(Duration::ZERO))
        .expect("a socket");
}

/// Empty connections, as health checks make them, all through one tunnel of ours.
async fn churn(who: Who) {
    let (tunnels, server) = pair().await;
    let (listener, to) = listen().await;
    tokio::task::spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if who == Who::Server {
                reset_on_drop(&tcp);
            }
            tokio::task::spawn_local(async move {
                let mut tcp = tcp;
                if who != Who::Server {
                    let _ = tcp.read(&mut [0]).await; // until the client ends or resets
                }
            });
        }
    });
    for round in 0..2_000 {
        let mut app = through(&tunnels, server.at, to).await;
        match who {
            Who::Client => reset_on_drop(&app),
            Who::Server => drop(app.read(&mut [0]).await),
            Who::Nobody => drop(exchange(&mut app, b"").await),
        }
        drop(app);
        assert_eq!(server.accepted.get(), 1, "in round {round}");
    }
}

/// An application that sends without end, and how much it got rid of.
async fn fountain() -> (SocketAddr, Rc<std::cell::Cell<usize>>) {
    let (listener, at) = listen().await;
    let sent = Rc::new(std::cell::Cell::new(0));
    let count = sent.clone();
    tokio::task::spawn_local(async move {
        let (mut tcp, _) = listener.accept().await.expect("accept");
        let piece = vec![0; 256 << 10];
        while tcp.write_all(&piece).await.is_ok() {
            count.set(count.get() + piece.len());
        }
    });
    (at, sent)
}

async fn stalled() {
    let ca = Ca::new();
    let mut server = reluctant(&ca, Limits::default()).await;
    let ((to, sent), other) = (fountain().await, echo().await);
    let (at, connect) = (server.at, connected(&ca));
    let served = tokio::task::spawn_blocking(move || {
        let mut tls = connect(at);
        let asking = |id, to: SocketAddr| {
            headers(
                id,
                &[(":method", "CONNECT"), (":authority", &to.to_string())],
            )
        };
        let attack = [PREFACE, &settings(&[(4, 0)]), &asking(1, to)].concat();
        let honest = [
            asking(HONEST, other),
            window_update(HONEST, 6),
            last_data(HONEST, b"honest"),
        ];
        tls.write_all(&[attack, honest.concat()].concat())
            .expect("write");
        listen_to(&mut tls)
    });
    let (said, served) = served.await.expect("the peer");
    assert!(served, "{said:?}");
    assert!(
        !said.iter().any(|said| said.starts_with("DATA 1 ")),
        "{said:?}"
    );
    server
        .ended
        .recv()
        .await
        .expect("an end")
        .expect_err("it was left");
    assert!(sent.get() < 64 << 20, "{} bytes are somewhere", sent.get());
}

async fn unread() {
    let ca = Ca::new();
    let limits = Limits {
        unread: Duration::from_millis(300),
        ..Limits::default()
    };
    let mut server = reluctant(&ca, limits).await;
    let (to, _) = fountain().await;
    let (at, connect) = (server.at, connected(&ca));
    let held = tokio::task::spawn_blocking(move || {
        let mut tls = connect(at);
        let asking = headers(
            1,
            &[(":method", "CONNECT"), (":authority", &to.to_string())],
        );
        let wide = [settings(&[(4, i32::MAX as u32)]), window_update(0, 1 << 30)].concat();
        tls.write_all(&[PREFACE, &wide, &asking].concat())
            .expect("write");
        tls
    });
    let (ended, _held) = tokio::join!(server.ended.recv(), held);
    match ended {
        Some(Err(ServeError::Tunnel(why))) => assert!(why.contains("timed out"), "{why}"),
        other => panic!("{other:?}"),
    }
}

async fn deaf() {
    let ca = Ca::new();
    let mut server = reluctant(&ca, Limits::default()).await;
    let (at, connect) = (server.at, connected(&ca));
    let held = tokio::task::spawn_blocking(move || {
        let mut tls = connect(at);
        let greeting = [PREFACE, &settings(&[]), &headers(1, CONNECT)].concat();
        tls.write_all(&greeting).expect("write");
        wait_for_ack(&mut tls);
        tls
    });
    let begin = Instant::now();
    let (ended, _held) = tokio::join!(server.ended.recv(), held);
    match ended {
        Some(Err(ServeError::Tunnel(why))) => assert!(why.contains("no PING"), "{why}"),
        other => panic!("{other:?}"),
    }
    let after = begin.elapsed().as_secs();
    assert!((30..=40).contains(&after), "after {after} s");
}

async fn half_closed() {
    let (tunnels, server) = pair().await;
    let (mut near, mut far) = joined(&tunnels, &server).await;
    near.shutdown().await.expect("shutdown");
    assert_eq!(far.read(&mut [0]).await.expect("the end"), 0);
    let begin = Instant::now();
    let ended = near.read(&mut [0]).await.expect_err("a reset");
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    let after = begin.elapsed().as_secs();
    assert!((300..=310).contains(&after), "after {after} s");
}

async fn early() {
    let ca = Ca::new();
    let server = reluctant(&ca, Limits::default()).await;
    let (at, connect, to) = (server.at, connected(&ca), echo().await);
    let told = tokio::task::spawn_blocking(move || {
        let mut tls = connect(at);
        let asking = headers(
            1,
            &[(":method", "CONNECT"), (":authority", &to.to_string())],
        );
        let bytes = [PREFACE, &settings(&[]), &asking, &last_data(1, b"early")].concat();
        tls.write_all(&bytes).expect("write");
        let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
        while !heard.windows(5).any(|five| five == b"early") {
            let read = tls.read(&mut piece).expect("an answer");
            assert!(read > 0, "it hung up");
            heard.extend_from_slice(&piece[..read]);
        }
    });
    told.await.expect("the bytes come back");
}
