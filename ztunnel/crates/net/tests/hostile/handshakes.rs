//! Peers that never come to HTTP/2: silent, slow, plaintext, too many, too fast. H1 to H6, H21.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};
use ztunnel_net::handshakes::{Allowed, Handshakes, Rate};
use ztunnel_net::pool::{Limits, Tunnels};
use ztunnel_net::tunnel::{Incoming, ServeError};

use crate::corpus::Corpus;
use crate::h2_common::*;
use crate::peer::{Tls, connected, reluctant};
use crate::transport_support::*;

/// The first record of a TLS 1.3 client as rustls writes it.
fn hello(ca: &Ca) -> Vec<u8> {
    let name = rustls::pki_types::ServerName::try_from("0.0.0.0").expect("name");
    let mut session =
        rustls::ClientConnection::new(foreign_config(ca).into(), name).expect("session");
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).expect("memory");
    bytes
}

/// What the peer does until the server ends it: bytes, with a pause behind each piece.
struct Slow {
    pieces: Vec<Vec<u8>>,
    pause: Duration,
}

/// How the server ends it, after how long (of a clock that only deadlines move), and what it said.
async fn endured(ca: &Ca, slow: Slow) -> (ServeError, Duration, Vec<u8>) {
    let mut server = reluctant(ca, Limits::default()).await;
    let begin = Instant::now();
    let (mut reading, mut writing) = TcpStream::connect(server.at)
        .await
        .expect("connect")
        .into_split();
    let writer = tokio::task::spawn_local(async move {
        for piece in slow.pieces {
            if writing.write_all(&piece).await.is_err() {
                return;
            }
            sleep(slow.pause).await;
        }
        std::future::pending::<()>().await; // holds its end open
    });
    let mut said = Vec::new();
    let reply = async {
        let _ = reading.read_to_end(&mut said).await; // a reset is an end too
        writer.abort();
    };
    let (ended, ()) = tokio::join!(server.ended.recv(), reply);
    let ended = ended.expect("an end").expect_err("not in order");
    (ended, begin.elapsed(), said)
}

const NO_PAUSE: Duration = Duration::ZERO;

fn at_once(bytes: &[u8]) -> Slow {
    Slow {
        pieces: vec![bytes.to_vec()],
        pause: NO_PAUSE,
    }
}

/// Within five seconds of the first byte of TCP, whatever trickles in.
fn slow_peers(ca: &Ca) -> Vec<(&'static str, Slow)> {
    let hello = hello(ca);
    let trickle = Slow {
        pieces: hello.iter().map(|byte| vec![*byte]).collect(),
        pause: Duration::from_secs(1),
    };
    vec![
        ("silence", at_once(b"")),
        ("a hello of one byte a second", trickle),
        ("a hello and nothing behind it", at_once(&hello)),
        ("half a record", at_once(&hello[..40])),
        (
            "a hello in records of one byte",
            Slow {
                pieces: [1, 0, 0, 200]
                    .map(|byte| vec![22, 3, 1, 0, 1, byte])
                    .to_vec(),
                pause: Duration::from_millis(1500),
            },
        ),
    ]
}

const PLAIN: [(&str, &[u8]); 6] = [
    ("HTTP/1.1", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("an SSH banner", b"SSH-2.0-OpenSSH_9.2\r\n"),
    ("HTTP/2 without TLS", PREFACE),
    ("a PROXY header", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"),
    (
        "a binary PROXY header",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
    ),
    ("zeros", &[0; 512]),
];

/// Records that are no handshake: the sentence, and an alert for whoever speaks TLS.
fn broken_tls() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (
            "a record of noise",
            [&[22, 3, 1, 0, 64][..], &[0x5a; 64]].concat(),
        ),
        (
            "application data first",
            [&[23, 3, 3, 0, 32][..], &[1; 32]].concat(),
        ),
        (
            "an oversized record",
            [&[22, 3, 1, 0xff, 0xff][..], &[1; 70_000]].concat(),
        ),
        (
            "a message of 16 MiB announced",
            [&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 16_380]].concat(),
        ),
        ("an alert first", vec![21, 3, 1, 0, 2, 2, 40]),
    ]
}

#[test]
fn who_never_comes_to_http2_is_given_up_in_time_and_counted() {
    let (mut corpus, ca) = (Corpus::new("hostile handshakes"), Ca::new());
    for (name, slow) in slow_peers(&ca) {
        corpus.case(name, || {
            let (ended, after, _) = on_worker_with_stopped_clock(endured(&ca, slow));
            assert_eq!(ended.reason(), Some("handshake_timeout"), "{ended}");
            assert_eq!(after.as_secs(), 5);
        });
    }
    for (name, bytes) in PLAIN {
        corpus.case(name, || {
            let (ended, _, said) = on_worker(endured(&ca, at_once(bytes)));
            assert_eq!(ended.reason(), Some("plaintext"), "{ended}");
            assert!(
                said.is_empty(),
                "nothing is said to who speaks no TLS: {said:?}"
            );
        });
    }
    for (name, bytes) in broken_tls() {
        corpus.case(name, || {
            let (ended, ..) = on_worker(endured(&ca, at_once(&bytes)));
            assert_eq!(ended.reason(), Some("tls"), "{ended}");
        });
    }
    crowds(&mut corpus, &ca);
    after_the_handshake(&mut corpus, &ca);
    corpus.finish();
}

async fn from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.bind((source, 0).into()).expect("bind");
    socket.connect(to).await.expect("connect")
}

/// H5: who floods from one address is refused and everybody else is served.
fn crowds(corpus: &mut Corpus, ca: &Ca) {
    corpus.case("a flood of connections from one address", || {
        on_worker(async {
            let mut server = reluctant(ca, Limits::default()).await;
            let mut flood = Vec::new();
            for _ in 0..256 {
                flood.push(from(Ipv4Addr::new(127, 0, 0, 2), server.at).await);
            }
            let mut refused = from(Ipv4Addr::new(127, 0, 0, 2), server.at).await;
            assert_eq!(refused.read(&mut [0]).await.expect("closed"), 0);
            let ended = server
                .ended
                .recv()
                .await
                .expect("an end")
                .expect_err("refused");
            assert_eq!(ended.reason(), Some("handshakes_pending"));
            let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
            let mut honest = through(&tunnels, server.at, echo().await).await;
            assert_eq!(exchange(&mut honest, b"x").await.expect("echo"), b"x");
        });
    });
    corpus.case("handshakes faster than they are due", || {
        on_worker_with_stopped_clock(async {
            let seldom = Rate {
                burst: 1,
                interval: Duration::from_secs(4),
            };
            let allowed = Allowed {
                each: seldom,
                ..Allowed::default()
            };
            let gate = Handshakes::new(allowed);
            let tunnels = Tunnels::sharing(ca.identities(SERVER), Limits::default(), gate);
            let (listener, at) = listen().await;
            let held: Rc<dyn Fn(Incoming)> = Rc::new(drop);
            let mut ends = Vec::new();
            let mut knocking = Vec::new();
            for _ in 0..3 {
                knocking.push(TcpStream::connect(at).await.expect("connect"));
                let (tcp, _) = listener.accept().await.expect("accept");
                let (tunnels, held) = (tunnels.clone(), held.clone());
                let serving = async move { tunnels.serve(tcp, &id(SERVER), held).await };
                ends.push(tokio::task::spawn_local(serving));
            }
            let mut reasons = Vec::new();
            for end in ends {
                let ended = end.await.expect("task").expect_err("not served");
                reasons.push(ended.reason().expect("counted"));
            }
            let late = "handshake_timeout";
            assert_eq!(reasons, [late, late, "handshake_rate"]);
        });
    });
}

type Attack = fn(&mut Tls);

/// H6, H21: a proven identity, and then this.
fn after_the_handshake(corpus: &mut Corpus, ca: &Ca) {
    let table: &[(&str, &str, Attack)] = &[
        ("no preface", "no_preface", |_| {}),
        ("half a preface", "no_preface", |tls| {
            say(tls, &PREFACE[..12])
        }),
        ("a preface without SETTINGS", "no_preface", |tls| {
            say(tls, PREFACE)
        }),
        ("HTTP/1.1 in TLS", "protocol_error", |tls| {
            say(tls, b"GET / HTTP/1.1\r\n\r\n")
        }),
        ("PING before SETTINGS", "protocol_error", |tls| {
            say(tls, &[PREFACE, &ping(1)].concat())
        }),
        ("changing keys over and over", "tls_record", |tls| {
            say(tls, &[PREFACE, &settings(&[])].concat());
            while tls.conn.refresh_traffic_keys().is_ok() && tls.flush().is_ok() {}
        }),
        ("a record that nobody sealed", "tls_record", |tls| {
            say_raw(tls, &[&[23, 3, 3, 0, 32][..], &[7; 32]].concat())
        }),
        ("a record of a handshake", "tls_record", |tls| {
            say_raw(tls, &[22, 3, 3, 0, 2, 1, 0])
        }),
        ("a record that is too long", "tls_record", |tls| {
            say_raw(tls, &[23, 3, 3, 0x7f, 0xff])
        }),
    ];
    for (name, reason, attack) in table {
        corpus.case(name, || {
            let waits = *reason == "no_preface";
            let run = admitted(ca, *attack, waits);
            let (ended, after) = if waits {
                on_worker_with_stopped_clock(run)
            } else {
                on_worker(run)
            };
            assert_eq!(ended.reason(), Some(*reason), "{ended}");
            assert!(after <= Duration::from_secs(6), "{after:?}");
        });
    }
}

fn say(tls: &mut Tls, bytes: &[u8]) {
    let _ = tls.write_all(bytes).and_then(|()| tls.flush()); // a closed door is what some cases want
}

fn say_raw(tls: &mut Tls, bytes: &[u8]) {
    say(tls, &[PREFACE, &settings(&[])].concat());
    let _ = tls.sock.write_all(bytes);
}

/// `waits`: for a deadline; else for the server to hang up.
async fn admitted(ca: &Ca, attack: Attack, waits: bool) -> (ServeError, Duration) {
    let mut server = reluctant(ca, Limits::default()).await;
    let (at, connect) = (server.at, connected(ca));
    let attacking = tokio::task::spawn_blocking(move || {
        let mut tls = connect(at);
        attack(&mut tls);
        if waits {
            return Some(tls);
        }
        let _ = tls.sock.read_to_end(&mut Vec::new()); // a reset is an end too
        None
    });
    let begin = Instant::now();
    let (ended, _open) = tokio::join!(server.ended.recv(), attacking);
    let ended = ended.expect("an end").expect_err("not in order");
    (ended, begin.elapsed())
}

#[test]
fn addresses_are_told_apart_in_both_families() {
    let gate = Handshakes::new(Allowed {
        pending_per_source: 1,
        ..Allowed::default()
    });
    let begin = |ip: &str| gate.begin(ip.parse::<IpAddr>().expect("an address"), Duration::ZERO);
    let held = [begin("fd00::1"), begin("fd00::2"), begin("10.0.0.1")];
    assert!(held.iter().all(Result::is_ok) && begin("fd00::1").is_err());
}
