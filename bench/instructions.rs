//! The tunnel's pure functions, run a given number of times: `instructions NAME TIMES`; without arguments, the names.
//!
//! `bench/instructions.py` counts its instructions under callgrind; the set-up cancels out between two numbers of times.

use bytes::Bytes;
use prost::Message;
use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};
use std::hint::black_box;
use std::net::SocketAddr;
use ztunnel_core::addr::OrigDst;
use ztunnel_core::authz::{Direction, Peer, Verdict, authorise};
use ztunnel_core::decide::{Route, route};
use ztunnel_core::h2::{Config, Connection, Event, StreamId};
use ztunnel_core::hbone::{Trace, request_headers};
use ztunnel_core::ids::SpiffeId;
use ztunnel_core::tables::{Kind, Tables};

#[allow(dead_code, unreachable_pub)]
#[path = "../ztunnel/crates/net/src/tls/cipher.rs"]
mod cipher;
#[allow(dead_code, unreachable_pub)]
#[path = "../ztunnel/crates/net/src/tls/record.rs"]
mod record;
#[allow(dead_code, clippy::all, clippy::use_self, unreachable_pub)]
mod workload {
    include!("../ztunnel/crates/core/src/gen/istio.workload.rs");
}
#[allow(dead_code, clippy::all, clippy::use_self, unreachable_pub)]
mod security {
    include!("../ztunnel/crates/core/src/gen/istio.security.rs");
}

const FULL: usize = 1 << 14;
const WORKLOADS: u32 = 1000;

type Case = (&'static str, fn(u64));

const CASES: &[Case] = &[
    ("route, 1000 workloads", routes),
    ("authorise, 2 policies", |times| authorisations(2, times)),
    ("authorise, 100 policies", |times| {
        authorisations(100, times);
    }),
    ("CONNECT, both ends", connects),
    ("DATA frame 1 B, both ends", |times| frames(1, times)),
    ("DATA frame 16 KiB, both ends", |times| frames(FULL, times)),
    ("record 1 B, seal", |times| records(1, false, times)),
    ("record 1 B, seal and open", |times| records(1, true, times)),
    ("record 16 KiB, seal", |times| records(FULL, false, times)),
    ("record 16 KiB, seal and open", |times| {
        records(FULL, true, times);
    }),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, times] = arguments.as_slice() else {
        CASES.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, run) = CASES
        .iter()
        .find(|(known, _)| known == name)
        .expect("a name from the list");
    run(times.parse().expect("how many times"));
}

// Decisions -----------------------------------------------------------------------------------------------------------

fn pod(number: u32) -> (String, Bytes) {
    let message = workload::Workload {
        uid: format!("Kubernetes//Pod/shop/web-{number}"),
        name: format!("web-{number}"),
        namespace: "shop".into(),
        service_account: "web".into(),
        trust_domain: "cluster.local".into(),
        addresses: vec![Bytes::copy_from_slice(
            &(0x0a00_0000 + number).to_be_bytes(),
        )],
        tunnel_protocol: workload::TunnelProtocol::Hbone.into(),
        ..Default::default()
    };
    let name = message.uid.clone();
    let r#type = Some(workload::address::Type::Workload(message));
    (name, workload::Address { r#type }.encode_to_vec().into())
}

/// Allows one principal, the `number`-th of its kind.
fn policy(number: u32) -> (String, Bytes) {
    let principal = format!("cluster.local/ns/bank/sa/teller-{number}");
    let principals = vec![security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact(principal)),
    }];
    let matches = vec![security::Match {
        principals,
        ..Default::default()
    }];
    let clauses = vec![security::Clause { matches }];
    let message = security::Authorization {
        name: format!("allow-{number}"),
        namespace: "shop".into(),
        scope: security::Scope::Namespace.into(),
        action: security::Action::Allow.into(),
        rules: vec![security::Rule { clauses }],
        ..Default::default()
    };
    (
        format!("shop/allow-{number}"),
        message.encode_to_vec().into(),
    )
}

/// Also under a measurement this is set-up: it does not grow with the times.
fn shop(policies: u32) -> Tables {
    let pods: Vec<_> = (1..=WORKLOADS).map(pod).collect();
    let policies: Vec<_> = (1..=policies).map(policy).collect();
    let (tables, refused) = Tables::new("", "Kubernetes").with(Kind::Address, &pods, &[]);
    assert_eq!(refused, []);
    let (tables, refused) = tables.with(Kind::Authorization, &policies, &[]);
    assert_eq!(refused, []);
    tables
}

fn routes(times: u64) {
    let tables = shop(0);
    let from = tables
        .workload("Kubernetes//Pod/shop/web-1")
        .expect("it was pushed");
    let dst = OrigDst(SocketAddr::from(([10, 0, 3, 1], 80)));
    for random in 0..times {
        let way = route(black_box(&tables), from, black_box(dst), random);
        assert!(matches!(way, Route::Tunnel { .. }));
    }
}

/// The worst case: it is the last policy that allows.
fn authorisations(policies: u32, times: u64) {
    let tables = shop(policies);
    let to = tables
        .workload("Kubernetes//Pod/shop/web-1")
        .expect("it was pushed");
    let friend = SpiffeId::new("cluster.local", "bank", &format!("teller-{policies}"));
    let friend = friend.expect("an identity");
    let peer = Peer {
        source: [10, 0, 0, 9].into(),
        identity: Some(&friend),
        dst: ([10, 0, 0, 1], 80).into(),
        direction: Direction::Inbound,
    };
    for _ in 0..times {
        let verdict = authorise(black_box(&tables), to, black_box(&peer));
        assert!(matches!(verdict, Verdict::Allowed { .. }));
    }
}

// HTTP/2 --------------------------------------------------------------------------------------------------------------

/// A client's connection and a server's, joined.
struct Joined {
    client: Connection,
    server: Connection,
}

impl Joined {
    fn new() -> Self {
        let mut joined = Self {
            client: Connection::new(Config::client()),
            server: Connection::new(Config::server()),
        };
        joined.exchange();
        joined
    }

    /// What either wants to say reaches the other; the last request that the server saw.
    fn exchange(&mut self) -> Option<StreamId> {
        let mut asked = None;
        while !(self.client.output().is_empty() && self.server.output().is_empty()) {
            let said = std::mem::take(self.client.output());
            let heard = self.server.receive(&said, &mut |event| {
                if let Event::Request { id, .. } = event {
                    asked = Some(id);
                }
            });
            heard.expect("the client keeps the rules");
            let said = std::mem::take(self.server.output());
            let heard = self.client.receive(&said, &mut |event| {
                black_box(&event);
            });
            heard.expect("the server keeps the rules");
        }
        asked
    }
}

/// A stream's life without payload: CONNECT with our headers, 200, END_STREAM from both sides.
fn connects(times: u64) {
    let tables = shop(0);
    let from = tables
        .workload("Kubernetes//Pod/shop/web-1")
        .expect("it was pushed");
    let headers = request_headers(from, ([10, 0, 0, 1], 40000).into(), None, &Trace::default());
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let mut joined = Joined::new();
    for _ in 0..times {
        let id = joined.client.open("10.0.3.1:80", &headers);
        let id = id.expect("the last stream is over");
        assert_eq!(joined.exchange(), Some(id));
        joined.server.respond(id, 200, &[], false);
        joined.exchange();
        let end = joined.client.data(id, 0, true);
        joined.client.output().extend_from_slice(&end);
        joined.exchange();
        let end = joined.server.data(id, 0, true);
        joined.server.output().extend_from_slice(&end);
        joined.exchange();
    }
}

/// One DATA frame from the client to the server, taken there, with the WINDOW_UPDATE that it may cost.
fn frames(size: usize, times: u64) {
    let mut joined = Joined::new();
    let id = joined.client.open("10.0.3.1:80", &[]).expect("a stream");
    joined.exchange();
    joined.server.respond(id, 200, &[], false);
    joined.exchange();
    let mut frame = vec![0; 9 + size];
    for _ in 0..times {
        assert!(joined.client.send_room(id) >= size);
        frame[..9].copy_from_slice(&joined.client.data(id, size, false));
        let mut got = 0;
        let heard = joined.server.receive(black_box(&frame), &mut |event| {
            if let Event::Data { payload, .. } = event {
                got = payload.len();
            }
        });
        heard.expect("a frame");
        joined.server.consumed(id, got);
        assert_eq!(got, size);
        joined.exchange();
    }
}

// TLS records ---------------------------------------------------------------------------------------------------------

fn secrets() -> (u64, ConnectionTrafficSecrets) {
    let (key, iv) = (AeadKey::from([7; 32]), Iv::from([9; 12]));
    (0, ConnectionTrafficSecrets::Aes256Gcm { key, iv })
}

fn records(size: usize, open: bool, times: u64) {
    let mut sealer = record::Sealer::new(secrets()).expect("a key");
    let mut opener = record::Opener::new(secrets()).expect("a key");
    let mut buffer = vec![0; record::RECORD_HEADER + size + record::RECORD_TRAILER];
    for _ in 0..times {
        let sealed = sealer.seal(black_box(&mut buffer), record::Content::Data);
        sealed.expect("sealed");
        if open {
            let opened = opener.open(black_box(&mut buffer));
            assert_eq!(opened, Ok((record::Content::Data, size)));
        }
    }
}
