//! Everything in the core that parses a peer's or the control plane's bytes, on generated input.

mod h2_common;
use h2_common::{END_HEADERS, HEADERS, PREFACE, block, frame, settings};

use bytes::Bytes;
use std::cell::RefCell;
use std::net::SocketAddr;
use ztunnel_core::authz::{Direction, Peer, authorise};
use ztunnel_core::decide::inbound_target;
use ztunnel_core::h2::{Config, Connection, Event, StreamId};
use ztunnel_core::hbone::{MAX_HEADER, parse_baggage, parse_forwarded_host, parse_traceparent};
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Kind, Tables};
use ztunnel_fuzz::proptest::collection::vec;
use ztunnel_fuzz::proptest::prelude::*;
use ztunnel_fuzz::{damaged, fuzz};

/// What the peer sends, or what the owner does in between.
#[derive(Clone, Debug)]
enum Step {
    Bytes(Vec<u8>),
    Respond(u32),
    Send(u32, usize, bool),
    Consume(u32, usize),
    Reset(u32),
    Open,
    Tick,
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let good = [
        block(&[(":method", "CONNECT"), (":authority", "10.0.0.1:80")]),
        block(&[(":status", "200"), ("baggage", "k8s.namespace.name=a")]),
        vec![
            0x82, 0x41, 0x8a, 0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09, 0xb8, 0xf0, 0x1e, 0x07,
        ], // Huffman
        vec![0x40, 1, b'a', 1, b'b', 0xbe, 0x3f, 0xe1, 0x1f],
        vec![0, 0, 0, 1],
        vec![0, 3, 0, 0, 0, 1, 0, 4, 0, 0, 0, 0, 0, 5, 0, 0, 0x40, 0],
        vec![0; 8],
    ];
    damaged(good.to_vec())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (id, len) = (0..12u32, 0..70_000usize);
    let frames = (0..12u8, any::<u8>(), id.clone(), payload());
    let frames = frames.prop_map(|(kind, flags, id, payload)| {
        let flags = if kind == HEADERS {
            flags | END_HEADERS
        } else {
            flags
        };
        Step::Bytes(frame(kind, flags & 0x2d, id, &payload))
    });
    vec(
        prop_oneof![
            8 => frames,
            1 => vec(any::<u8>(), 0..40).prop_map(Step::Bytes),
            1 => id.clone().prop_map(Step::Respond),
            1 => (id.clone(), len.clone(), any::<bool>()).prop_map(|(id, len, end)| Step::Send(id, len, end)),
            1 => (id.clone(), len).prop_map(|(id, len)| Step::Consume(id, len)),
            1 => id.prop_map(Step::Reset),
            1 => Just(Step::Open),
            1 => Just(Step::Tick),
        ],
        0..40,
    )
}

/// Both roles; what the owner hears does not depend on how the bytes were cut up, and output stays bounded.
#[test]
fn fuzz_http2() {
    for (name, config, greeting) in [
        ("HTTP/2 server", Config::server(), PREFACE),
        ("HTTP/2 client", Config::client(), b"".as_slice()),
    ] {
        fuzz(name, 4_000, (steps(), 1..50usize), |(steps, chunk)| {
            let whole = conversation(&config, greeting, &steps, usize::MAX);
            assert_eq!(conversation(&config, greeting, &steps, chunk), whole);
        });
    }
}

/// What is heard, with payload joined per stream, and what is sent.
fn conversation(
    config: &Config,
    greeting: &[u8],
    steps: &[Step],
    chunk: usize,
) -> (String, Vec<u8>) {
    let mut connection = Connection::new(config.clone());
    let heard = RefCell::new((
        Vec::new(),
        std::collections::BTreeMap::<StreamId, (usize, bool)>::new(),
    ));
    let mut hear = |event: Event<'_>| {
        let (events, payload) = &mut *heard.borrow_mut();
        match event {
            Event::Data {
                id,
                payload: bytes,
                end,
            } => {
                let so_far = payload.entry(id).or_default();
                *so_far = (so_far.0 + bytes.len(), so_far.1 | end);
            }
            other => events.push(format!("{other:?}")),
        }
    };
    let greeting = Step::Bytes([greeting, &settings(&[])].concat());
    let mut alive = true;
    for step in std::iter::once(&greeting).chain(steps) {
        match step {
            Step::Bytes(bytes) => {
                for piece in bytes.chunks(chunk) {
                    alive = alive && connection.receive(piece, &mut hear).is_ok();
                }
            }
            Step::Respond(id) => connection.respond(StreamId(*id), 200, &[("a", "b")], false),
            Step::Send(id, len, end) => {
                let room = connection.send_room(StreamId(*id));
                let len = (*len).min(room).min(connection.max_frame_send());
                if connection.may_send(StreamId(*id)) {
                    connection.data(StreamId(*id), len, *end);
                }
            }
            Step::Consume(id, len) => connection.consumed(StreamId(*id), *len),
            Step::Reset(id) => connection.reset(StreamId(*id), 8),
            Step::Open => {
                if connection.may_open() {
                    let _ = connection.open("10.0.0.1:80", &[("a", "b")]);
                }
            }
            Step::Tick => connection.tick(),
        }
    }
    assert!(connection.output().len() < 64 << 10);
    assert!(connection.open_streams() <= 200);
    let output = std::mem::take(connection.output());
    (format!("{heard:?}"), output)
}

/// Header blocks one after another on one connection: the tables of both ends are in step or the connection is lost.
#[test]
fn fuzz_hpack() {
    fuzz("HPACK", 4_000, vec(payload(), 1..6), |blocks| {
        let mut connection = Connection::new(Config::server());
        let greeting = [PREFACE, &settings(&[])].concat();
        connection
            .receive(&greeting, &mut |_| {})
            .expect("a greeting");
        for (n, block) in blocks.iter().enumerate() {
            let head = frame(HEADERS, END_HEADERS, 2 * n as u32 + 1, block);
            let _ = connection.receive(&head, &mut |event| {
                if let Event::Request { head, .. } = event {
                    let fields = head
                        .headers
                        .0
                        .iter()
                        .map(|(name, value)| name.len() + value.len());
                    assert!(
                        fields.sum::<usize>() <= 48 << 10,
                        "U+FFFD is three bytes for one"
                    );
                    assert!(
                        head.headers
                            .0
                            .iter()
                            .all(|(_, value)| !value.contains(['\r', '\n', '\0']))
                    );
                }
            });
        }
    });
}

#[test]
fn fuzz_hbone_headers() {
    let good = [
        "k8s.cluster.name=c,k8s.namespace.name=n,k8s.deployment.name=d,service.name=s,cloud.region=r",
        "for=\"10.0.0.1:80\";host=a.b.svc.cluster.local",
        "for=x;host=\"a\",for=y;host=b",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ];
    let good = good.map(|text| text.as_bytes().to_vec()).to_vec();
    fuzz("HBONE headers", 20_000, damaged(good), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        let baggage = parse_baggage(&text);
        let values = [
            baggage.cluster,
            baggage.namespace,
            baggage.workload_name,
            baggage.service,
        ];
        let host = parse_forwarded_host(&text);
        for value in values.into_iter().flatten().chain(host) {
            assert!(!value.is_empty() && value.len() <= MAX_HEADER);
            assert!(
                value
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b",;=\"\\".contains(&b)),
                "{value:?}"
            );
        }
        if let Some(trace) = parse_traceparent(&text) {
            assert_eq!(
                parse_traceparent(&trace.header()).map(|again| again.header()),
                Some(trace.header())
            );
        }
    });
}

#[test]
fn fuzz_spiffe_ids() {
    let good = [
        "spiffe://cluster.local/ns/shop/sa/web",
        "spiffe://td-1.example/ns/a/sa/b.c_d-e",
    ];
    let good = good.map(|text| text.as_bytes().to_vec()).to_vec();
    fuzz("SPIFFE IDs", 20_000, damaged(good), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(id) = SpiffeId::parse(&text) {
            assert_eq!(id.as_str(), text);
            let parts = (id.trust_domain(), id.namespace(), id.service_account());
            assert_eq!(
                text,
                format!("spiffe://{}/ns/{}/sa/{}", parts.0, parts.1, parts.2)
            );
            let clean = |c: char| c.is_ascii_alphanumeric() || "./-_".contains(c);
            assert!(id.principal().chars().all(clean), "{text:?}");
        }
    });
}

const WORKLOAD: &[u8] = include_bytes!("seeds/workload.binpb");
const SERVICE: &[u8] = include_bytes!("seeds/service.binpb");
const POLICY: &[u8] = include_bytes!("seeds/policy.binpb");
const UID: &str = "Kubernetes//Pod/shop/web-1";

fn known() -> Tables {
    let tables = Tables::new("", "Kubernetes");
    let resources = [
        (UID.to_owned(), Bytes::from_static(WORKLOAD)),
        (
            "shop/web.shop.svc.cluster.local".to_owned(),
            Bytes::from_static(SERVICE),
        ),
    ];
    let (tables, refused) = tables.with(Kind::Address, &resources, &[]);
    assert!(refused.is_empty(), "{refused:?}");
    let policy = [("shop/allow".to_owned(), Bytes::from_static(POLICY))];
    let (tables, refused) = tables.with(Kind::Authorization, &policy, &[]);
    assert!(refused.is_empty(), "{refused:?}");
    tables
}

/// Whatever is asked for, the target is the pod's own address and none of the tunnel's ports.
#[test]
fn fuzz_authorities() {
    let tables = known();
    let me = tables.workload(UID).expect("the seed").clone();
    let at: SocketAddr = "10.0.0.1:15008".parse().expect("an address");
    let good = [
        "10.0.0.1:80",
        "[fd00::1]:80",
        "[::ffff:10.0.0.1]:80",
        "web.shop.svc.cluster.local:80",
        "127.0.0.1:15000",
        "169.254.169.254:80",
        "10.0.0.1:15008",
        "0x7f.1:80",
        "a@10.0.0.1:80",
    ];
    let good = good.map(|text| text.as_bytes().to_vec()).to_vec();
    fuzz("authorities", 20_000, damaged(good), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(target) = inbound_target(&tables, &me, at, &text) {
            assert_eq!(target.addr.ip(), at.ip());
            assert!(!ztunnel_core::addr::is_illegal(target.addr.port()) && target.addr.port() > 0);
        }
    });
}

/// A resource is taken whole or refused; refused, what was known stays; a policy that nobody understands opens nothing.
#[test]
fn fuzz_resources() {
    let known = known();
    let seeds = [WORKLOAD, SERVICE].map(<[u8]>::to_vec).to_vec();
    fuzz("workloads and services", 20_000, damaged(seeds), |bytes| {
        let (next, refused) = known.with(Kind::Address, &[(UID.into(), bytes.into())], &[]);
        let before = known.workload(UID).expect("the seed");
        if !refused.is_empty() {
            assert_eq!(next.workload(UID), Some(before));
        }
    });
    let source = "10.0.0.9".parse().expect("an address");
    let dst = "10.0.0.1:80".parse().expect("an address");
    let stranger = Peer {
        source,
        identity: None,
        direction: Direction::Inbound,
        dst,
    };
    fuzz(
        "policies",
        20_000,
        damaged(vec![POLICY.to_vec()]),
        |bytes| {
            let named = [("shop/allow".to_owned(), Bytes::from(bytes))];
            let (next, refused) = known.with(Kind::Authorization, &named, &[]);
            let me = next.workload(UID).expect("the seed");
            let verdict = authorise(&next, me, &stranger);
            if !refused.is_empty() {
                assert_eq!(
                    verdict,
                    authorise(&known, me, &stranger),
                    "the last good one stays"
                );
            }
        },
    );
}
