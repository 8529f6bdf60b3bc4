//! What holds for all inputs: chunking changes nothing, garbage never panics, two of us understand each other.

mod h2_common;
use h2_common::*;
use std::collections::BTreeMap;
use ztunnel_core::h2::{Config, Connection, Event, StreamId};

/// xorshift64*: the same run every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// One frame a peer might send, mostly sound.
fn some_frame(random: &mut Random, next_id: &mut u32) -> Vec<u8> {
    let id = (random.below(*next_id as usize) | 1) as u32;
    let len = random.below(300);
    match random.below(80) {
        0..15 => {
            *next_id += 2;
            let head = block(&[CONNECT, &[("baggage", "x")]].concat());
            let (first, second) = head.split_at(random.below(head.len()));
            let continued = [
                frame(HEADERS, 0, *next_id, first),
                frame(CONTINUATION, END_HEADERS, *next_id, second),
            ];
            if random.below(2) == 0 {
                headers(*next_id, CONNECT)
            } else {
                continued.concat()
            }
        }
        15..45 => data(id, &random.bytes(len)),
        45..48 => last_data(id, &random.bytes(len)),
        48..55 => padded(id, &random.bytes(len), len as u8),
        55..60 => window_update(id, 1 + len as u32),
        60..65 => ping(random.next()),
        65..70 => settings(&[(4, 65_535 + len as u32)]),
        70..76 => reset(id, 8),
        76..78 => last_headers(id, &[("trailer", "x")]),
        78 => frame(0xbe, random.next() as u8, id, &random.bytes(len)),
        _ => {
            let kind = random.below(12) as u8;
            frame(kind, random.next() as u8, id, &random.bytes(len))
        }
    }
}

fn some_conversation(random: &mut Random) -> Vec<u8> {
    let mut bytes = [PREFACE, &settings(&[]), &headers(1, CONNECT)].concat();
    let mut next_id = 1;
    for _ in 0..60 {
        bytes.extend(some_frame(random, &mut next_id));
    }
    bytes
}

/// Everything the owner hears, with pieces of payload joined and empty ones dropped.
fn hear(bytes: &[u8], mut chunk: impl FnMut() -> usize) -> (Vec<String>, Vec<u8>) {
    let mut server = Connection::new(Config::server());
    let mut heard: Vec<String> = Vec::new();
    let mut payloads: BTreeMap<StreamId, Vec<u8>> = BTreeMap::new();
    let mut on = |event: Event<'_>| match event {
        Event::Data { id, payload, end } => {
            assert!(
                payload.is_empty() || bytes.as_ptr_range().contains(&payload.as_ptr()),
                "lent, not copied"
            );
            payloads.entry(id).or_default().extend(payload);
            if end {
                heard.push(format!("end {}", id.0));
            }
        }
        other => heard.push(told(&other)),
    };
    let mut rest = bytes;
    let mut result = Ok(());
    while !rest.is_empty() && result.is_ok() {
        let (now, later) = rest.split_at(chunk().clamp(1, rest.len()));
        result = server.receive(now, &mut on);
        rest = later;
    }
    heard.push(format!("{payloads:?} {result:?}"));
    (heard, std::mem::take(server.output()))
}

#[test]
fn any_chunking_of_the_same_bytes_tells_the_same() {
    let mut random = Random(0x9e37_79b9);
    for _ in 0..60 {
        let bytes = some_conversation(&mut random);
        let whole = hear(&bytes, || usize::MAX);
        assert_eq!(hear(&bytes, || 1), whole);
        assert_eq!(hear(&bytes, || 1 + random.below(40)), whole);
    }
}

#[test]
fn garbage_never_panics_and_never_grows_the_output_without_end() {
    let mut random = Random(0xdead_beef);
    for round in 0..250 {
        let mut bytes = some_conversation(&mut random);
        for _ in 0..=round % 8 {
            let at = 24 + random.below(bytes.len() - 24);
            bytes[at] = random.next() as u8;
        }
        let (_, output) = hear(&bytes, || 1 + random.below(2_000));
        assert!(output.len() < 20_000);
    }
}

#[test]
fn garbage_in_header_blocks_never_panics() {
    let mut random = Random(7);
    for _ in 0..2_000 {
        let len = 1 + random.below(60);
        let mut fields = block(&[CONNECT, &[("x", "y")]].concat());
        fields.extend(random.bytes(len));
        let at = random.below(fields.len());
        fields[at] = random.next() as u8;
        let heads = [
            frame(HEADERS, END_HEADERS, 1, &fields),
            frame(HEADERS, END_HEADERS, 3, &fields),
        ];
        hear(&[PREFACE, &settings(&[]), &heads.concat()].concat(), || {
            usize::MAX
        });
    }
}

/// One end of a connection, with an application that echoes nothing but counts.
struct End {
    connection: Connection,
    /// Per stream: bytes to be sent, bytes sent, bytes heard, bytes not yet consumed.
    to_send: BTreeMap<StreamId, usize>,
    heard: BTreeMap<StreamId, Vec<u8>>,
    unconsumed: BTreeMap<StreamId, usize>,
    ended: Vec<StreamId>,
    ready: BTreeMap<StreamId, bool>,
}

impl End {
    fn new(config: Config) -> Self {
        Self {
            connection: Connection::new(config),
            to_send: BTreeMap::new(),
            heard: BTreeMap::new(),
            unconsumed: BTreeMap::new(),
            ended: Vec::new(),
            ready: BTreeMap::new(),
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let mut requests = Vec::new();
        let mut on = |event: Event<'_>| match event {
            Event::Request { id, .. } => requests.push(id),
            Event::Data { id, payload, end } => {
                self.heard.entry(id).or_default().extend(payload);
                *self.unconsumed.entry(id).or_default() += payload.len();
                if end {
                    self.ended.push(id);
                }
            }
            Event::SendReady { id } => assert_eq!(
                self.ready.insert(id, true),
                Some(false),
                "exactly one, when waiting"
            ),
            Event::Response { .. } | Event::Settings | Event::Opened => {}
            other => panic!("{other:?}"),
        };
        self.connection
            .receive(bytes, &mut on)
            .expect("an honest peer");
        for id in requests {
            self.connection.respond(id, 200, &[], false);
            self.to_send.insert(id, 5_000 * id.0 as usize);
            self.ready.insert(id, true);
        }
    }

    /// Sends what one stream may, as an owner does: nothing while it waits for SendReady.
    fn push(&mut self, id: StreamId, wish: usize, wire: &mut Vec<u8>) {
        let (Some(&left), Some(true)) = (self.to_send.get(&id), self.ready.get(&id)) else {
            return;
        };
        let room = self
            .connection
            .send_room(id)
            .min(self.connection.max_frame_send());
        if room == 0 {
            self.ready.insert(id, false);
            return;
        }
        let len = wish.min(room).min(left);
        let head = self.connection.data(id, len, len == left);
        wire.append(self.connection.output());
        wire.extend(head);
        wire.extend((left - len..left).rev().map(|n| n as u8));
        self.to_send.insert(id, left - len);
        if len == left {
            self.to_send.remove(&id);
        } else if self.connection.send_room(id) == 0 {
            self.ready.insert(id, false);
        }
    }

    fn consume(&mut self, id: StreamId, wish: usize) {
        let Some(waiting) = self.unconsumed.get_mut(&id) else {
            return;
        };
        let len = wish.min(*waiting);
        *waiting -= len;
        self.connection.consumed(id, len);
    }
}

fn tiny(role: Config) -> Config {
    Config {
        stream_window: 20_000,
        connection_window: 65_535,
        ..role
    }
}

#[test]
fn two_of_us_deliver_everything_in_order_through_narrow_windows() {
    let mut random = Random(42);
    for _ in 0..6 {
        converse(&mut random);
    }
}

fn converse(random: &mut Random) {
    let (mut client, mut server) = (
        End::new(tiny(Config::client())),
        End::new(tiny(Config::server())),
    );
    let mut ids = Vec::new();
    for n in 1..=8 {
        let id = client.connection.open("a:1", &[]).expect("room");
        client.to_send.insert(id, 9_000 * n);
        client.ready.insert(id, true);
        ids.push(id);
    }
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..12_000 {
        let id = ids[random.below(ids.len())];
        let wish = 1 + random.below(3_000);
        match random.below(6) {
            0 => client.push(id, wish, &mut up),
            1 => server.push(id, wish, &mut down),
            2 => server.consume(id, wish * 3),
            3 => client.consume(id, wish * 3),
            4 => travel(&mut client, &mut up, &mut server, wish),
            _ => travel(&mut server, &mut down, &mut client, wish),
        }
    }
    for id in ids {
        assert_eq!(
            server.heard[&id],
            countdown(9_000 * id.0.div_ceil(2) as usize),
            "up on {id:?}"
        );
        assert_eq!(
            client.heard[&id],
            countdown(5_000 * id.0 as usize),
            "down on {id:?}"
        );
    }
    assert_eq!((client.ended.len(), server.ended.len()), (8, 8));
    assert_eq!(
        (
            client.connection.open_streams(),
            server.connection.open_streams()
        ),
        (0, 0)
    );
}

fn countdown(from: usize) -> Vec<u8> {
    (0..from).rev().map(|n| n as u8).collect()
}

fn travel(from: &mut End, wire: &mut Vec<u8>, to: &mut End, len: usize) {
    wire.append(from.connection.output());
    let arrived: Vec<u8> = wire.drain(..len.min(wire.len())).collect();
    to.hear(&arrived);
}
