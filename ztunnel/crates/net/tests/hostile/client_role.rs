//! A server that has a good certificate and is hostile behind it: what our client makes of it, in which words.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};
use tokio::time::Instant;
use ztunnel_net::pool::{Limits, Tunnels};

use crate::corpus::Corpus;
use crate::h2_common::*;
use crate::peer::wait_for_ack;
use crate::transport_support::*;

/// Accepts tunnels, reads what comes and sends the same bytes into each.
struct Villain {
    config: Arc<ServerConfig>,
    listener: TcpListener,
}

impl Villain {
    fn new(ca: &Ca) -> Self {
        let (chain, key) = ca.loose(&[SERVER], |_| {});
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("version");
        let mut config = builder
            .with_no_client_auth()
            .with_single_cert(vec![certificate(&chain)], private(&key))
            .expect("certificate");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            config: Arc::new(config),
            listener: TcpListener::bind("127.0.0.1:0").expect("bind"),
        }
    }

    fn accept(&self) -> rustls::StreamOwned<ServerConnection, std::net::TcpStream> {
        let (tcp, _) = self.listener.accept().expect("accept");
        let session = ServerConnection::new(self.config.clone()).expect("session");
        let mut tls = rustls::StreamOwned::new(session, tcp);
        let _ = tls.conn.complete_io(&mut tls.sock);
        tls
    }

    /// `tunnels` times. Answers wait for the request; it comes with the client's first words.
    fn serve(&self, bytes: &[u8], tunnels: usize) {
        for _ in 0..tunnels {
            let mut tls = self.accept();
            let _ = tls.read(&mut [0; 4096]);
            let _ = tls.write_all(bytes).and_then(|()| tls.flush());
            let _ = tls.read_to_end(&mut Vec::new()); // until our client hangs up
        }
    }
}

type Case = (&'static str, Vec<u8>, &'static str);

fn answer(fields: &[(&str, &str)]) -> Vec<u8> {
    [settings(&[]), headers(1, fields)].concat()
}

fn after_settings(bytes: &[u8]) -> Vec<u8> {
    [&settings(&[])[..], bytes].concat()
}

/// Each ends the request, at once and with these words.
fn cases() -> Vec<Case> {
    let calm = "too many control frames";
    let malformed = "reset the stream (HTTP/2 code 1)";
    let large = "v".repeat(17_000);
    vec![
        (
            "HTTP/1.1",
            b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
            "frame longer than announced",
        ),
        ("PING first", ping(1), "first frame is not SETTINGS"),
        ("SETTINGS without end", settings(&[]).repeat(120), calm),
        (
            "PING without end",
            after_settings(&ping(1).repeat(1_100)),
            "code 11",
        ),
        (
            "WINDOW_UPDATE without end",
            after_settings(&window_update(0, 1).repeat(1_100)),
            calm,
        ),
        (
            "interim answers without end",
            after_settings(&headers(1, &[(":status", "103")]).repeat(1_100)),
            calm,
        ),
        (
            "CONTINUATION without end",
            after_settings(
                &[
                    frame(HEADERS, 0, 1, b""),
                    frame(CONTINUATION, 0, 1, b"").repeat(9),
                ]
                .concat(),
            ),
            "too many CONTINUATION",
        ),
        (
            "PUSH_PROMISE",
            after_settings(&frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
            "PUSH_PROMISE",
        ),
        (
            "DATA before the answer",
            after_settings(&data(1, b"x")),
            malformed,
        ),
        (
            "DATA on a stream of nobody's",
            after_settings(&data(9, b"x")),
            "never opened",
        ),
        (
            "a stream of its own",
            after_settings(&headers(2, OK)),
            "may not open",
        ),
        ("no status", answer(&[("a", "b")]), malformed),
        (
            "a status that is none",
            answer(&[(":status", "2OO")]),
            malformed,
        ),
        ("status 101", answer(&[(":status", "101")]), malformed),
        (
            "two statuses",
            answer(&[(":status", "200"), (":status", "200")]),
            malformed,
        ),
        (
            "an answer that asks",
            answer(&[(":status", "200"), (":authority", "a:1")]),
            malformed,
        ),
        (
            "a huge answer",
            answer(&[(":status", "200"), ("baggage", &large)]),
            "HTTP/2 code 11",
        ),
        (
            "an answer of noise",
            after_settings(&frame(HEADERS, END_HEADERS, 1, &[0xff; 30])),
            "code 9",
        ),
        (
            "a reset instead of an answer",
            after_settings(&reset(1, 2)),
            "HTTP/2 code 2",
        ),
        (
            "the stream refused",
            after_settings(&reset(1, 7)),
            "refused the stream",
        ),
        (
            "GOAWAY below our stream",
            after_settings(&go_away(0, 0)),
            "refused the stream",
        ),
        (
            "no streams at all",
            [settings(&[(3, 0)]), reset(1, 7)].concat(),
            "refused the stream",
        ),
        (
            "an overflowing window",
            after_settings(&[window_update(0, i32::MAX as u32)].concat()),
            "largest window",
        ),
        ("a denial", answer(&[(":status", "401")]), "answered 401"),
    ]
}

#[test]
fn a_hostile_server_costs_its_clients_a_sentence() {
    let (mut corpus, ca) = (Corpus::new("hostile HTTP/2 servers"), Ca::new());
    for (name, bytes, why) in cases() {
        corpus.case(name, || {
            let told = on_worker(asked(&ca, bytes, 1));
            assert!(told.contains(why), "{told:?} does not say {why:?}");
        });
    }
    corpus.case("tunnels without streams, one after the other", || {
        // The villain accepts the next one when the last is closed: ours does not hoard them.
        let none = [settings(&[(3, 0)]), reset(1, 7)].concat();
        let told = on_worker(asked(&ca, none, 3));
        assert!(told.contains("refused the stream"), "{told:?}");
    });
    corpus.case("silence behind the handshake", || {
        let (told, after) = on_worker_with_stopped_clock(waited(&ca, Vec::new()));
        assert_eq!(
            (told.as_str(), after),
            ("TLS: no HTTP/2 preface within 5s", 5)
        );
    });
    corpus.case("SETTINGS and no answer", || {
        let (told, after) = on_worker_with_stopped_clock(waited(&ca, settings(&[])));
        assert_eq!((told.as_str(), after), ("no answer to CONNECT in time", 20));
    });
    corpus.finish();
}

/// What the client is told the last time.
async fn asked(ca: &Ca, bytes: Vec<u8>, times: usize) -> String {
    let villain = Villain::new(ca);
    let at = villain.listener.local_addr().expect("address");
    let serving = tokio::task::spawn_blocking(move || villain.serve(&bytes, times));
    let told = {
        let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
        let mut opened = open(&tunnels, at, at).await;
        for _ in 1..times {
            opened = open(&tunnels, at, at).await;
        }
        tunnels.cut(&|_| true);
        opened.err().map(|why| why.to_string())
    };
    serving.await.expect("the villain");
    told.expect("refused")
}

async fn waited(ca: &Ca, bytes: Vec<u8>) -> (String, u64) {
    let villain = Villain::new(ca);
    let at = villain.listener.local_addr().expect("address");
    let serving = tokio::task::spawn_blocking(move || {
        let mut tls = villain.accept();
        tls.write_all(&bytes)
            .and_then(|()| tls.flush())
            .expect("write");
        if !bytes.is_empty() {
            wait_for_ack(&mut tls);
        }
        tls
    });
    let tunnels = Tunnels::new(ca.identities(CLIENT), Limits::default());
    let begin = Instant::now();
    let (opened, _held) = tokio::join!(open(&tunnels, at, at), serving);
    let told = opened.err().expect("refused").to_string();
    (told, begin.elapsed().as_secs())
}
