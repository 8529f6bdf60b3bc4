//! What a client says before its CONNECT is answered: who hears it, when, and how often.

mod transport_support;

use std::cell::Cell;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use transport_support::*;
use ztunnel_core::ids::SpiffeId;
use ztunnel_net::pool::{Limits, OpenError, Opened, Tunnels};
use ztunnel_net::relay::relay_tunnel;
use ztunnel_net::tunnel::{FirstWords, Incoming, Speaker};

const WORDS: &[u8] = b"hello";

/// An application that has said its first words, and the tunnel's end of its connection.
async fn talkative() -> (TcpStream, TcpStream) {
    let (mut near, far) = app().await;
    near.write_all(WORDS).await.expect("connected");
    far.readable().await.expect("connected");
    (near, far)
}

async fn ask(
    tunnels: &Rc<Tunnels>,
    server: &Server,
    to: std::net::SocketAddr,
    (app, words): (&TcpStream, &mut FirstWords),
    heard_by: SpiffeId,
) -> Result<Opened, OpenError> {
    let speaker = Speaker {
        app,
        words,
        to: heard_by,
    };
    let to = to.to_string();
    tunnels
        .open(key(server.at), &dialer, &to, &[], Some(speaker))
        .await
}

/// Relays the rest as `outbound` does, and reads what comes back.
async fn the_rest(near: &mut TcpStream, far: TcpStream, opened: Opened, words: Vec<u8>) -> Vec<u8> {
    opened.stream.begin_with(words[opened.told..].to_vec());
    tokio::task::spawn_local(async move {
        let _ = relay_tunnel(far, opened.stream, &Rc::default()).await; // the test looks at the sockets
    });
    exchange(near, b", world").await.expect("echo")
}

/// Each request is answered by the next of `answers`, the last one for ever; 200 connects to the authority.
async fn answering(ca: &Ca, answers: &'static [u16]) -> (Server, Rc<Cell<usize>>) {
    let calls = Rc::new(Cell::new(0));
    let counted = calls.clone();
    let answer = move |request: Incoming| {
        let call = counted.replace(counted.get() + 1);
        match answers[call.min(answers.len() - 1)] {
            200 => connect_to_authority(request),
            status => request.refuse(status),
        }
    };
    let server = Server::start_with(ca.identities(SERVER), Limits::default(), Rc::new(answer));
    (server.await, calls)
}

#[test]
fn they_go_with_the_request_once_the_peer_is_known() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let to = echo().await;
        for expected in [0, WORDS.len()] {
            let ((mut near, far), mut words) = (talkative().await, FirstWords::default());
            let opened = ask(&tunnels, &server, to, (&far, &mut words), id(SERVER)).await;
            let opened = opened.expect("a stream");
            assert_eq!(opened.told, expected, "the first stream has to find out");
            let back = the_rest(&mut near, far, opened, words.take()).await;
            assert_eq!(back, b"hello, world");
        }
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn they_are_not_for_anybody_else() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let to = echo().await;
        let _introduced = open(&tunnels, server.at, to).await.expect("a stream");
        let ((mut near, far), mut words) = (talkative().await, FirstWords::default());
        let opened = ask(&tunnels, &server, to, (&far, &mut words), id(CLIENT)).await;
        let opened = opened.expect("a stream");
        assert_eq!(opened.told, 0);
        let back = the_rest(&mut near, far, opened, words.take()).await;
        assert_eq!(back, b"hello, world", "they come later, when all is well");
    });
}

#[test]
fn they_are_said_again_after_a_refusal_and_heard_once() {
    on_worker(async {
        let ca = Ca::new();
        let (server, _) = answering(&ca, &[200, 503, 200]).await;
        let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
        let to = echo().await;
        let _introduced = open(&tunnels, server.at, to).await.expect("a stream");
        let ((mut near, far), mut words) = (talkative().await, FirstWords::default());
        let refused = ask(&tunnels, &server, to, (&far, &mut words), id(SERVER)).await;
        assert!(matches!(refused.err(), Some(OpenError::Status(503))));
        assert!(words.may_be_repeated());
        let opened = ask(&tunnels, &server, to, (&far, &mut words), id(SERVER)).await;
        let opened = opened.expect("a stream");
        let back = the_rest(&mut near, far, opened, words.take()).await;
        assert_eq!(back, b"hello, world");
    });
}

#[test]
fn they_are_not_said_again_when_somebody_may_have_heard_them() {
    on_worker(async {
        let ca = Ca::new();
        let cut: Rc<std::cell::OnceCell<Rc<Tunnels>>> = Rc::default();
        let (cutter, calls) = (cut.clone(), Rc::new(Cell::new(0)));
        let counted = calls.clone();
        let answer = move |request: Incoming| {
            counted.set(counted.get() + 1);
            if counted.get() == 2 {
                cutter.get().expect("tunnels").cut(&|_| true);
            }
            connect_to_authority(request);
        };
        let server = Server::start_with(ca.identities(SERVER), Limits::default(), Rc::new(answer));
        let server = server.await;
        let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
        let _ = cut.set(tunnels.clone());
        let to = echo().await;
        let _introduced = open(&tunnels, server.at, to).await.expect("a stream");
        let ((_near, far), mut words) = (talkative().await, FirstWords::default());
        let lost = ask(&tunnels, &server, to, (&far, &mut words), id(SERVER)).await;
        assert!(matches!(lost.err(), Some(OpenError::H2(_))));
        assert!(!words.may_be_repeated());
        assert_eq!((calls.get(), server.accepted.get()), (2, 1));
    });
}

#[test]
fn an_answer_does_not_wait_for_an_application_that_says_nothing() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let (listener, at) = listen().await;
        let _introduced = open(&tunnels, server.at, at).await.expect("a stream");
        let ((_near, far), mut words) = (talkative().await, FirstWords::default());
        let opened = ask(&tunnels, &server, at, (&far, &mut words), id(SERVER)).await;
        assert_eq!(opened.expect("a stream").told, WORDS.len());
        let _first = listener.accept().await.expect("connected");
        let (mut silent, _) = listener.accept().await.expect("connected");
        let mut heard = [0; WORDS.len()];
        silent.read_exact(&mut heard).await.expect("heard");
        assert_eq!(heard, WORDS);
    });
}

#[test]
fn an_end_that_came_with_a_request_is_told_though_that_is_never_answered() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let (mut near, mut ended) = joined(&tunnels, &server).await;
        let (listener, at) = listen().await;
        let ((_near, far), mut words) = (talkative().await, FirstWords::default());
        near.shutdown().await.expect("connected");
        let asked = ask(&tunnels, &server, at, (&far, &mut words), id(SERVER)).await;
        let (_silent, _) = listener.accept().await.expect("connected");
        let mut rest = Vec::new();
        ended.read_to_end(&mut rest).await.expect("in order");
        assert_eq!((rest, asked.is_ok()), (Vec::new(), true));
        drop(ended);
        near.read_to_end(&mut Vec::new()).await.expect("in order");
    });
}

#[test]
fn a_client_that_has_gone_ends_the_attempt() {
    on_worker(async {
        let (tunnels, server) = pair().await;
        let to = echo().await;
        let _introduced = open(&tunnels, server.at, to).await.expect("a stream");
        let ((near, far), mut words) = (talkative().await, FirstWords::default());
        socket2::SockRef::from(&near)
            .set_linger(Some(std::time::Duration::ZERO))
            .expect("TCP");
        drop(near);
        let gone = ask(&tunnels, &server, to, (&far, &mut words), id(SERVER)).await;
        assert!(matches!(gone.err(), Some(OpenError::App(_))));
        assert!(!words.may_be_repeated(), "there is nobody left to try for");
    });
}
