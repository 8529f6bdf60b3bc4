//! The peer of the connection under test: frames by hand, and events and frames told in short sentences.
//!
//! `talk.gets(headers(1, CONNECT))` is what the peer sends and returns what the owner hears: `["request 1 CONNECT
//! 10.0.0.1:80"]`; `talk.sends()` is what we answered: `["RST_STREAM 1 PROTOCOL_ERROR"]`.
#![allow(dead_code)] // each test file uses its part

use ztunnel_core::h2::{Config, Connection, ConnectionError, Event, StreamId};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITISED: u8 = 0x20;

const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];

/// A peer may send codes that nobody defined (RFC 9113 §7).
pub(crate) fn code_name(code: u32) -> &'static str {
    CODES.get(code as usize).copied().unwrap_or("UNKNOWN")
}

pub(crate) fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(id.to_be_bytes());
    out.extend(payload);
    out
}

/// A literal field without indexing, by hand.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    assert!(name.len() < 127);
    let mut out = vec![0, name.len() as u8];
    out.extend(name.as_bytes());
    match value.len() {
        short @ 0..127 => out.push(short as u8),
        long => out.extend([
            127,
            ((long - 127) & 0x7f | 0x80) as u8,
            (((long - 127) >> 7) & 0x7f | 0x80) as u8,
            ((long - 127) >> 14) as u8,
        ]),
    }
    out.extend(value.as_bytes());
    out
}

pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|(name, value)| field(name, value))
        .collect()
}

pub(crate) const CONNECT: &[(&str, &str)] =
    &[(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
pub(crate) const OK: &[(&str, &str)] = &[(":status", "200")];

pub(crate) fn headers(id: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, id, &block(fields))
}

pub(crate) fn last_headers(id: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, id, &block(fields))
}

pub(crate) fn data(id: u32, payload: &[u8]) -> Vec<u8> {
    frame(DATA, 0, id, payload)
}

pub(crate) fn last_data(id: u32, payload: &[u8]) -> Vec<u8> {
    frame(DATA, END_STREAM, id, payload)
}

pub(crate) fn padded(id: u32, payload: &[u8], padding: u8) -> Vec<u8> {
    let payload = [&[padding], payload, &vec![0; usize::from(padding)]].concat();
    frame(DATA, PADDED, id, &payload)
}

pub(crate) fn reset(id: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, id, &code.to_be_bytes())
}

pub(crate) fn window_update(id: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, id, &by.to_be_bytes())
}

pub(crate) fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let entry =
        |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat();
    frame(
        SETTINGS,
        0,
        0,
        &entries.iter().flat_map(entry).collect::<Vec<u8>>(),
    )
}

pub(crate) fn go_away(last: u32, code: u32) -> Vec<u8> {
    frame(
        GOAWAY,
        0,
        0,
        &[last.to_be_bytes(), code.to_be_bytes()].concat(),
    )
}

pub(crate) fn ping(payload: u64) -> Vec<u8> {
    frame(PING, 0, 0, &payload.to_be_bytes())
}

/// One event as a sentence.
pub(crate) fn told(event: &Event<'_>) -> String {
    let mark = |end: &bool| if *end { " end" } else { "" };
    match event {
        Event::Request { id, head, end } => {
            let authority = head.authority.as_deref().unwrap_or("-");
            format!("request {} {} {authority}{}", id.0, head.method, mark(end))
        }
        Event::Response {
            id, status, end, ..
        } => format!("response {} {status}{}", id.0, mark(end)),
        Event::Data { id, payload, end } => {
            let text = if payload.len() > 20 {
                format!("({})", payload.len())
            } else {
                String::from_utf8_lossy(payload).into_owned()
            };
            format!("data {} {text}{}", id.0, mark(end))
        }
        Event::Trailers { id } => format!("trailers {}", id.0),
        Event::Reset { id, code } => format!("reset {} {}", id.0, code_name(*code)),
        Event::SendReady { id } => format!("ready {}", id.0),
        Event::Opened => "opened".into(),
        Event::GoAway { last, code } => format!("goaway {} {}", last.0, code_name(*code)),
        Event::Pong(payload) => format!("pong {payload}"),
        Event::Settings => "settings".into(),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// One frame of ours as a sentence; the rest of the bytes comes back.
fn told_frame(bytes: &[u8]) -> (String, &[u8]) {
    let len = u32_at(&[&[0], &bytes[..3]].concat(), 0) as usize;
    let (kind, flags, id) = (bytes[3], bytes[4], u32_at(bytes, 5));
    let (payload, rest) = bytes[9..].split_at(len);
    let end = if flags & END_STREAM != 0 { " end" } else { "" };
    let said = match kind {
        DATA => format!("DATA {id} ({len}){end}"),
        HEADERS => format!("HEADERS {id}{end}"),
        RST_STREAM => format!("RST_STREAM {id} {}", code_name(u32_at(payload, 0))),
        SETTINGS => format!("SETTINGS{}", if flags & ACK != 0 { " ack" } else { "" }),
        PING => format!(
            "PING {}{}",
            u32_at(payload, 4),
            if flags & ACK != 0 { " ack" } else { "" }
        ),
        GOAWAY => format!(
            "GOAWAY {} {}",
            u32_at(payload, 0),
            code_name(u32_at(payload, 4))
        ),
        WINDOW_UPDATE => format!("WINDOW_UPDATE {id} +{}", u32_at(payload, 0)),
        other => format!("frame {other} of {id}"),
    };
    (said, rest)
}

/// Whole frames of ours as sentences.
pub(crate) fn told_frames(mut rest: &[u8]) -> Vec<String> {
    let mut said = Vec::new();
    while !rest.is_empty() {
        let (frame, after) = told_frame(rest);
        said.push(frame);
        rest = after;
    }
    said
}

/// A connection under test, past the greetings.
pub(crate) struct Talk(pub(crate) Connection);

impl Talk {
    pub(crate) fn server() -> Self {
        Self::with(Config::server(), PREFACE)
    }

    pub(crate) fn client() -> Self {
        Self::with(Config::client(), b"")
    }

    pub(crate) fn with(config: Config, preface: &[u8]) -> Self {
        let mut talk = Self(Connection::new(config));
        let greeting = [preface, &settings(&[]), &frame(SETTINGS, ACK, 0, &[])].concat();
        assert_eq!(talk.gets(greeting), ["settings"]);
        talk.0.output().clear();
        talk
    }

    /// What the owner hears of these bytes; the connection must survive them.
    pub(crate) fn gets(&mut self, bytes: Vec<u8>) -> Vec<String> {
        let (heard, result) = self.tries(bytes);
        assert_eq!(result, Ok(()), "after {heard:?}");
        heard
    }

    pub(crate) fn tries(&mut self, bytes: Vec<u8>) -> (Vec<String>, Result<(), ConnectionError>) {
        let mut heard = Vec::new();
        let result = self
            .0
            .receive(&bytes, &mut |event| heard.push(told(&event)));
        (heard, result)
    }

    /// The code the connection dies of.
    pub(crate) fn dies_of(&mut self, bytes: Vec<u8>) -> &'static str {
        match self.tries(bytes) {
            (_, Err(error)) => code_name(error.code),
            (heard, Ok(())) => panic!("lives on and tells {heard:?}"),
        }
    }

    /// What we sent since the last time.
    pub(crate) fn sends(&mut self) -> Vec<String> {
        let output = std::mem::take(self.0.output());
        told_frames(&output)
    }

    /// The request of `CONNECT`, answered with 200.
    pub(crate) fn accept(&mut self, id: u32) -> StreamId {
        assert_eq!(
            self.gets(headers(id, CONNECT)),
            [format!("request {id} CONNECT 10.0.0.1:80")]
        );
        self.0.respond(StreamId(id), 200, &[], false);
        assert_eq!(self.sends().pop(), Some(format!("HEADERS {id}")));
        StreamId(id)
    }

    /// A CONNECT of ours, answered with 200.
    pub(crate) fn connect(&mut self) -> StreamId {
        let id = self.0.open("10.0.0.1:80", &[]).expect("room for a stream");
        assert_eq!(self.sends().pop(), Some(format!("HEADERS {}", id.0)));
        assert_eq!(
            self.gets(headers(id.0, OK)),
            [format!("response {} 200", id.0)]
        );
        id
    }
}
