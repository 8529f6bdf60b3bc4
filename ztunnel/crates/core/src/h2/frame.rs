//! The wire format of frames (RFC 9113 §4, §6): heads in and out, and the small frames we send.

use super::StreamId;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(super) const HEAD_LEN: usize = 9;
/// What every peer takes before its SETTINGS say more (RFC 9113 §6.5.2).
pub(super) const DEFAULT_MAX_FRAME: u32 = 16_384;
pub(super) const LARGEST_MAX_FRAME: u32 = (1 << 24) - 1;

pub(super) mod kind {
    pub(in crate::h2) const DATA: u8 = 0;
    pub(in crate::h2) const HEADERS: u8 = 1;
    pub(in crate::h2) const PRIORITY: u8 = 2;
    pub(in crate::h2) const RST_STREAM: u8 = 3;
    pub(in crate::h2) const SETTINGS: u8 = 4;
    pub(in crate::h2) const PUSH_PROMISE: u8 = 5;
    pub(in crate::h2) const PING: u8 = 6;
    pub(in crate::h2) const GOAWAY: u8 = 7;
    pub(in crate::h2) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::h2) const CONTINUATION: u8 = 9;
    /// A type nobody knows, which every peer therefore skips (RFC 9113 §4.1, §5.5).
    pub(in crate::h2) const SKIPPED: u8 = 0xfa;
}

pub(super) mod flag {
    pub(in crate::h2) const ACK: u8 = 0x1;
    pub(in crate::h2) const END_STREAM: u8 = 0x1;
    pub(in crate::h2) const END_HEADERS: u8 = 0x4;
    pub(in crate::h2) const PADDED: u8 = 0x8;
    pub(in crate::h2) const PRIORITY: u8 = 0x20;
}

pub(super) mod setting {
    pub(in crate::h2) const HEADER_TABLE_SIZE: u16 = 1;
    pub(in crate::h2) const ENABLE_PUSH: u16 = 2;
    pub(in crate::h2) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(in crate::h2) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(in crate::h2) const MAX_FRAME_SIZE: u16 = 5;
    pub(in crate::h2) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// The nine bytes before every payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) len: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) id: StreamId,
}

impl FrameHead {
    pub(super) fn parse(bytes: &[u8; HEAD_LEN]) -> Self {
        let [l0, l1, l2, kind, flags, i0, i1, i2, i3] = *bytes;
        let id = StreamId(u32::from_be_bytes([i0 & 0x7f, i1, i2, i3]));
        Self {
            len: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            id,
        }
    }

    pub(super) fn bytes(self) -> [u8; HEAD_LEN] {
        let [_, l0, l1, l2] = self.len.to_be_bytes();
        let [i0, i1, i2, i3] = self.id.0.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, i0, i1, i2, i3]
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Appends one whole frame; `payload` is at most 16 KiB for everything we build.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, flags: u8, id: StreamId, payload: &[u8]) {
    let head = FrameHead {
        len: payload.len() as u32,
        kind,
        flags,
        id,
    };
    out.extend_from_slice(&head.bytes());
    out.extend_from_slice(payload);
}

pub(super) fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let mut payload = Vec::with_capacity(settings.len() * 6);
    for (name, value) in settings {
        payload.extend_from_slice(&name.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    put(out, kind::SETTINGS, 0, StreamId(0), &payload);
}

pub(super) fn put_window_update(out: &mut Vec<u8>, id: StreamId, increment: u32) {
    put(out, kind::WINDOW_UPDATE, 0, id, &increment.to_be_bytes());
}

pub(super) fn put_reset(out: &mut Vec<u8>, id: StreamId, code: u32) {
    put(out, kind::RST_STREAM, 0, id, &code.to_be_bytes());
}

/// `why` travels as debug data: the operator at the other end reads it in a trace.
pub(super) fn put_go_away(out: &mut Vec<u8>, last: StreamId, code: u32, why: &str) {
    let mut payload = Vec::with_capacity(8 + why.len());
    payload.extend_from_slice(&last.0.to_be_bytes());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(why.as_bytes());
    put(out, kind::GOAWAY, 0, StreamId(0), &payload);
}

/// Appends a header block as HEADERS and as many CONTINUATION frames as `max_frame` makes necessary.
pub(super) fn put_block(
    out: &mut Vec<u8>,
    id: StreamId,
    block: &[u8],
    end_stream: bool,
    max_frame: usize,
) {
    let end_stream = if end_stream { flag::END_STREAM } else { 0 };
    let (first, mut rest) = block.split_at(block.len().min(max_frame));
    let end_headers = |rest: &[u8]| {
        if rest.is_empty() {
            flag::END_HEADERS
        } else {
            0
        }
    };
    put(
        out,
        kind::HEADERS,
        end_stream | end_headers(rest),
        id,
        first,
    );
    while !rest.is_empty() {
        let (part, after) = rest.split_at(rest.len().min(max_frame));
        put(out, kind::CONTINUATION, end_headers(after), id, part);
        rest = after;
    }
}

pub(super) fn u32_at(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([
        payload[at],
        payload[at + 1],
        payload[at + 2],
        payload[at + 3],
    ])
}
