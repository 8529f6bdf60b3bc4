//! HTTP/2 (RFC 9113) for CONNECT tunnels, both roles, without I/O: bytes in, events and bytes out.
//!
//! Owns framing, HPACK, flow control, the streams' life cycle and the budgets a hostile peer runs against. Owns no
//! socket, clock or buffer of payload: received DATA is lent out of the caller's own buffer, sent DATA is only booked.
//! What a CONNECT means (authority, headers of HBONE, status codes) is the owner's affair.

mod connection;
mod fields;
mod flow;
mod frame;
mod frames;
mod guard;
mod heads;
mod hpack;
mod huffman;
mod receive;
mod settings;
mod static_table;
mod streams;

pub use connection::Connection;

/// Error codes of RST_STREAM and GOAWAY (RFC 9113 §7).
pub mod code {
    pub const NO_ERROR: u32 = 0x0;
    pub const PROTOCOL_ERROR: u32 = 0x1;
    pub const INTERNAL_ERROR: u32 = 0x2;
    pub const FLOW_CONTROL_ERROR: u32 = 0x3;
    pub const SETTINGS_TIMEOUT: u32 = 0x4;
    pub const STREAM_CLOSED: u32 = 0x5;
    pub const FRAME_SIZE_ERROR: u32 = 0x6;
    pub const REFUSED_STREAM: u32 = 0x7;
    pub const CANCEL: u32 = 0x8;
    pub const COMPRESSION_ERROR: u32 = 0x9;
    pub const CONNECT_ERROR: u32 = 0xa;
    pub const ENHANCE_YOUR_CALM: u32 = 0xb;
    pub const INADEQUATE_SECURITY: u32 = 0xc;
    pub const HTTP_1_1_REQUIRED: u32 = 0xd;

    /// In lower case, as metrics have it.
    pub fn name(code: u32) -> &'static str {
        const NAMES: [&str; 14] = [
            "no_error",
            "protocol_error",
            "internal_error",
            "flow_control_error",
            "settings_timeout",
            "stream_closed",
            "frame_size_error",
            "refused_stream",
            "cancel",
            "compression_error",
            "connect_error",
            "enhance_your_calm",
            "inadequate_security",
            "http_1_1_required",
        ];
        NAMES.get(code as usize).copied().unwrap_or("unknown")
    }
}

/// Which end of the connection we are: who opens streams, and who sends the preface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// What we announce to the peer and hold it to. Windows and sizes in bytes.
#[derive(Clone, Debug)]
pub struct Config {
    pub role: Role,
    pub stream_window: u32,
    pub connection_window: u32,
    /// The largest frame we announce to take (16 KiB to 16 MiB, RFC 9113 §6.5.2).
    pub max_frame: u32,
    /// Decoded size of one header list, counted as RFC 9113 §6.5.2 does: 32 bytes per field on top.
    pub max_header_list: u32,
    /// Server: streams the peer may hold open. Client: streams we hold open, even where the peer allows more.
    pub max_streams: u32,
}

impl Config {
    pub fn client() -> Self {
        Self {
            max_streams: 100,
            ..Self::of(Role::Client)
        }
    }

    pub fn server() -> Self {
        Self {
            max_streams: 200,
            ..Self::of(Role::Server)
        }
    }

    fn of(role: Role) -> Self {
        Self {
            role,
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            max_frame: 1 << 20,
            max_header_list: 16 << 10,
            max_streams: 0,
        }
    }
}

/// A stream's number, unique for the life of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// The regular fields of a head, in the order they came. Names are lower case; bytes that are not UTF-8 became U+FFFD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(Box<str>, Box<str>)>);

impl Headers {
    /// The first value of `name` (lower case).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| &**key == name)
            .map(|(_, value)| &**value)
    }
}

/// A well-formed request head. Whether it is a CONNECT we serve is the owner's question: a CONNECT with `scheme` or
/// `path`, or without `authority`, arrives here as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    pub method: String,
    pub authority: Option<String>,
    pub scheme: Option<String>,
    pub path: Option<String>,
    pub protocol: Option<String>,
    pub headers: Headers,
}

/// What the peer did. `end`: the peer sends nothing more on this stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Request {
        id: StreamId,
        head: RequestHead,
        end: bool,
    },
    /// The final response; 1xx are passed over.
    Response {
        id: StreamId,
        status: u16,
        headers: Headers,
        end: bool,
    },
    /// A piece of payload, lent: always a part of the bytes `receive` was given, however its frame was cut up. To be
    /// answered with `consumed` once it has been passed on.
    Data {
        id: StreamId,
        payload: &'a [u8],
        end: bool,
    },
    /// Trailers came: the peer sends nothing more on this stream.
    Trailers { id: StreamId },
    /// The stream is dead, by the peer's wish or because it broke the rules.
    Reset { id: StreamId, code: u32 },
    /// `send_room` was 0 and is not any more.
    SendReady { id: StreamId },
    /// `may_open` was false and is true again.
    Opened,
    /// The peer takes no new streams. Our streams above `last` were not processed: each got its `Reset` before this.
    GoAway { last: StreamId, code: u32 },
    /// The answer to our `ping`.
    Pong(u64),
    /// The peer's first SETTINGS: it speaks HTTP/2.
    Settings,
}

/// The connection is dead; the GOAWAY that says so is in `output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("HTTP/2: {why} (code {code})")]
pub struct ConnectionError {
    pub code: u32,
    pub why: &'static str,
}

/// Why no stream was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenRefused {
    #[error("the connection is going away")]
    GoingAway,
    #[error("as many streams are open as the peer allows")]
    TooManyStreams,
    #[error("the connection has used all its stream numbers")]
    Exhausted,
}
