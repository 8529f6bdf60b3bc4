//! Which tunnel a stream goes into, and what happens to it when the tunnel is slow, full, leaving or dead.

mod transport_support;

use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use transport_support::*;
use ztunnel_net::pool::{Limits, OpenError, Tunnels};
use ztunnel_net::tunnel::ServeError;

async fn open_many(tunnels: &Rc<Tunnels>, server: &Server, count: usize) -> Vec<TcpStream> {
    let to = echo().await;
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (tunnels, at) = (tunnels.clone(), server.at);
        all.spawn_local(async move { through(&tunnels, at, to).await });
    }
    all.join_all().await
}

#[test]
fn first_streams_that_come_together_share_one_attempt() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let open = open_many(&tunnels, &server, 50).await;
        assert_eq!((open.len(), server.accepted.get()), (50, 1));
    });
}

#[test]
fn the_stream_after_the_hundredth_gets_a_second_tunnel() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let open = open_many(&tunnels, &server, 101).await;
        assert_eq!((open.len(), server.accepted.get()), (101, 2));
    });
}

#[test]
fn another_expectation_is_another_tunnel() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let to = echo().await;
        let _first = open(&tunnels, server.at, to).await.expect("stream");
        let mut other = key(server.at);
        other.want.push(id(CLIENT));
        let second = tunnels
            .open(other, &dialer, &to.to_string(), &[], None)
            .await;
        assert_eq!(second.expect("stream").peer, id(SERVER));
        assert_eq!(server.accepted.get(), 2);
    });
}

#[test]
fn a_tunnel_that_said_goaway_is_not_used_again_but_carries_what_it_carries() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let mut old = through(&tunnels, server.at, echo().await).await;
        server.tunnels.drain();
        let mut new = through(&tunnels, server.at, echo().await).await;
        assert_eq!(server.accepted.get(), 2);
        assert_eq!(exchange(&mut old, b"old").await.expect("echo"), b"old");
        assert_eq!(exchange(&mut new, b"new").await.expect("echo"), b"new");
    });
}

#[test]
fn a_drained_tunnel_ends_with_its_last_stream() {
    on_worker(async {
        let (tunnels, mut server) = pair().await;
        let mut app = through(&tunnels, server.at, echo().await).await;
        tunnels.drain();
        exchange(&mut app, b"last").await.expect("echo");
        server
            .ended
            .recv()
            .await
            .expect("an end")
            .expect("in order");
    });
}

#[test]
fn a_dead_tunnel_is_replaced() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let _lost = through(&tunnels, server.at, echo().await).await;
        tunnels.cut(&|key| key.from == id(CLIENT));
        let mut app = through(&tunnels, server.at, echo().await).await;
        assert_eq!(exchange(&mut app, b"x").await.expect("echo"), b"x");
        assert_eq!(server.accepted.get(), 2);
    });
}

#[test]
fn a_tunnel_that_dies_with_the_request_unanswered_is_replaced_once() {
    on_worker(async {
        let ca = Ca::new();
        let calls = Rc::new(std::cell::Cell::new(0));
        let counted = calls.clone();
        let cut: Rc<std::cell::OnceCell<Rc<Tunnels>>> = Rc::default();
        let cutter = cut.clone();
        let server = Server::start_with(
            ca.identities(SERVER),
            Limits::default(),
            Rc::new(move |request| {
                counted.set(counted.get() + 1);
                if counted.get() == 2 {
                    cutter.get().expect("tunnels").cut(&|_| true);
                }
                connect_to_authority(request);
            }),
        )
        .await;
        let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
        let _ = cut.set(tunnels.clone());
        let to = echo().await;
        let _first = open(&tunnels, server.at, to).await.expect("stream");
        let second = open(&tunnels, server.at, to).await;
        assert!(second.is_ok());
        assert_eq!((calls.get(), server.accepted.get()), (3, 2));
    });
}

#[test]
fn a_refused_request_says_its_status_and_the_tunnel_stays() {
    on_worker(async {
        let ca = Ca::new();
        let refuse = |request: ztunnel_net::tunnel::Incoming| request.refuse(401);
        let server =
            Server::start_with(ca.identities(SERVER), Limits::default(), Rc::new(refuse)).await;
        let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
        for _ in 0..3 {
            let refused = open(&tunnels, server.at, server.at).await.err();
            assert!(
                matches!(refused, Some(OpenError::Status(401))),
                "{refused:?}"
            );
        }
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn a_peer_that_accepts_and_says_nothing_is_given_up() {
    on_worker_with_stopped_clock(async {
        let (_silent, at) = listen().await;
        let tunnels = Tunnels::new(Ca::new().identities(CLIENT), Limits::default());
        let refused = open(&tunnels, at, at).await.err();
        assert!(
            matches!(refused, Some(OpenError::Timeout("TLS handshake"))),
            "{refused:?}"
        );
    });
}

#[test]
fn a_client_that_connects_and_says_nothing_is_given_up() {
    on_worker_with_stopped_clock(async {
        let (_, mut server) = pair().await;
        let mut silent = TcpStream::connect(server.at).await.expect("connect");
        let ended = server.ended.recv().await.expect("an end");
        assert!(
            matches!(ended, Err(ServeError::HandshakeTimeout(_))),
            "{ended:?}"
        );
        assert_eq!(silent.read(&mut [0; 8]).await.expect("end"), 0);
    });
}

#[test]
fn nobody_listening_is_an_error_of_connect() {
    on_worker(async {
        let (listener, at) = listen().await;
        drop(listener);
        let tunnels = Tunnels::new(Ca::new().identities(CLIENT), Limits::default());
        let refused = open(&tunnels, at, at).await.err();
        assert!(
            matches!(refused, Some(OpenError::Connect(_))),
            "{refused:?}"
        );
    });
}

#[test]
fn an_unused_tunnel_closes_itself() {
    on_worker_with_stopped_clock(async {
        let (tunnels, mut server) = pair().await;
        let mut app = through(&tunnels, server.at, echo().await).await;
        exchange(&mut app, b"x").await.expect("echo");
        let begin = tokio::time::Instant::now();
        server
            .ended
            .recv()
            .await
            .expect("an end")
            .expect("in order");
        let lived = begin.elapsed();
        assert!((300..360).contains(&lived.as_secs()), "{lived:?}");
    });
}

#[test]
fn a_silent_tunnel_lives_as_long_as_its_pings_are_answered() {
    on_worker_with_stopped_clock(async {
        let (tunnels, server) = pair().await;
        let (mut near, mut far) = joined(&tunnels, &server).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::time::timeout(Duration::from_secs(3600), near.read(&mut [0; 8]))
            .await
            .expect_err("an hour of silence");
        let (told, heard) =
            tokio::join!(exchange(&mut far, b"still here"), exchange(&mut near, b""));
        assert_eq!(
            (told.expect("far"), heard.expect("near")),
            (Vec::new(), b"still here".to_vec())
        );
    });
}
