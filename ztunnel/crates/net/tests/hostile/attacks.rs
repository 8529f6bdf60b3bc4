//! HTTP/2 that no honest client sends: the bytes behind the greeting, and what has to come of them.

use crate::h2_common::*;

/// What has to come of an attack.
pub(crate) enum End {
    /// GOAWAY with this code; the reason is told and counted under the same name.
    Dies(&'static str, &'static str),
    /// These answers, and the tunnel goes on to serve.
    Lives(&'static [&'static str]),
}
use End::{Dies, Lives};

const CALM: &str = "ENHANCE_YOUR_CALM";
const PROTOCOL: &str = "PROTOCOL_ERROR";

pub(crate) type Case = (&'static str, Vec<u8>, End);

fn many(count: u32, frames: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|n| frames(2 * n + 1)).collect()
}

fn times(count: usize, bytes: Vec<u8>) -> Vec<u8> {
    bytes.repeat(count)
}

fn with(extra: &[(&str, &str)]) -> Vec<u8> {
    headers(1, &[CONNECT, extra].concat())
}

fn raw_block(bytes: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, bytes)
}

/// H9, H10: work for nothing.
pub(crate) fn resets() -> Vec<Case> {
    let asked = |id| headers(id, CONNECT);
    let flood = |frames: &dyn Fn(u32) -> Vec<u8>| many(250, frames);
    vec![
        (
            "rapid reset",
            flood(&|n| [asked(n), reset(n, 8)].concat()),
            Dies(CALM, "too many resets"),
        ),
        (
            "rapid reset of ended requests",
            flood(&|n| [last_headers(n, CONNECT), reset(n, 0)].concat()),
            Dies(CALM, "too many resets"),
        ),
        (
            "rapid reset behind payload",
            flood(&|n| [asked(n), data(n, b"x"), reset(n, 8)].concat()),
            Dies(CALM, "too many resets"),
        ),
        (
            "all open streams given up at once",
            [many(199, asked), many(199, |n| reset(n, 8))].concat(),
            Lives(&[]),
        ),
        (
            "make it reset: WINDOW_UPDATE of 0",
            flood(&|n| [asked(n), window_update(n, 0)].concat()),
            Dies(CALM, "too many resets"),
        ),
        (
            "make it reset: window overflow",
            flood(&|n| [asked(n), window_update(n, i32::MAX as u32)].concat()),
            Dies(CALM, "too many resets"),
        ),
        (
            "make it reset: DATA after the end",
            flood(&|n| [last_headers(n, CONNECT), data(n, b"x")].concat()),
            Dies(CALM, "too many resets"),
        ),
        (
            "make it reset: no method",
            flood(&|n| headers(n, &[(":authority", "a:1")])),
            Dies(CALM, "too many resets"),
        ),
        (
            "make it reset: a second head",
            flood(&|n| [asked(n), headers(n, &[("a", "b")])].concat()),
            Dies(CALM, "too many resets"),
        ),
        (
            "make it reset: too large a head",
            flood(&|n| headers(n, &[CONNECT, &[("x", &"v".repeat(17_000))]].concat())),
            Dies(CALM, "too many resets"),
        ),
        (
            "one WINDOW_UPDATE of 0",
            [asked(1), window_update(1, 0)].concat(),
            Lives(&["RST_STREAM 1 PROTOCOL_ERROR"]),
        ),
        (
            "one overflow of a stream's window",
            [asked(1), window_update(1, i32::MAX as u32)].concat(),
            Lives(&["RST_STREAM 1 FLOW_CONTROL_ERROR"]),
        ),
        (
            "overflow of the connection's window",
            window_update(0, i32::MAX as u32),
            Dies("FLOW_CONTROL_ERROR", "largest window"),
        ),
        (
            "streams above the limit",
            [many(260, asked), many(10, |n| reset(n, 8))].concat(),
            Lives(&["RST_STREAM 401 REFUSED_STREAM"]),
        ),
        (
            "streams far above the limit",
            many(1_300, asked),
            Dies(CALM, "too many control frames"),
        ),
    ]
}

/// H13, H19, H20: floods of what carries nothing.
pub(crate) fn floods() -> Vec<Case> {
    let control = || Dies(CALM, "too many control frames");
    let open = || headers(1, CONNECT);
    vec![
        ("PING", times(1_100, ping(1)), Dies(CALM, "")),
        (
            "PONG nobody asked for",
            times(1_100, frame(PING, ACK, 0, &[0; 8])),
            control(),
        ),
        ("SETTINGS", times(110, settings(&[])), control()),
        (
            "SETTINGS that move the window",
            (0..110).flat_map(|n| settings(&[(4, n)])).collect(),
            control(),
        ),
        (
            "SETTINGS that turn the table",
            (0..110).flat_map(|n| settings(&[(1, n * 64)])).collect(),
            control(),
        ),
        (
            "long SETTINGS",
            frame(SETTINGS, 0, 0, &[0; 6 * 65]),
            Dies(CALM, "SETTINGS too long"),
        ),
        (
            "ACK nobody asked for",
            times(1_100, frame(SETTINGS, ACK, 0, &[])),
            control(),
        ),
        (
            "PRIORITY",
            times(1_100, frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1])),
            control(),
        ),
        (
            "WINDOW_UPDATE by one",
            times(1_100, window_update(0, 1)),
            control(),
        ),
        (
            "empty DATA",
            [open(), times(110, data(1, b""))].concat(),
            control(),
        ),
        (
            "DATA of padding",
            [open(), times(1_100, padded(1, b"x", 255))].concat(),
            control(),
        ),
        (
            "crumbs that pile up",
            [open(), times(210_000, data(1, b"x"))].concat(),
            Dies(CALM, "too many small DATA frames"),
        ),
        (
            "frames of an unknown type",
            times(1_100, frame(0xbe, 0xff, 1, b"")),
            control(),
        ),
        ("GOAWAY", times(1_100, go_away(0, 0)), control()),
        (
            "RST_STREAM of dead streams",
            [open(), reset(1, 8), times(1_100, reset(1, 8))].concat(),
            control(),
        ),
    ]
}

/// H11, H12: heads.
pub(crate) fn heads() -> Vec<Case> {
    let fields: Vec<(&str, &str)> = vec![("cookie", "a=b"); 63];
    let large = "v".repeat(17_000);
    let bomb = [
        &block(CONNECT)[..],
        &[0x40, 1, b'a', 0x7f, 0x81, 0x1e],
        &vec![b'v'; 3_968],
        &[0xbe; 60],
    ]
    .concat();
    let too_large = || Lives(&["HEADERS 1 end", "RST_STREAM 1 NO_ERROR"]);
    let no_sense = |why| Dies("COMPRESSION_ERROR", why);
    let half = || frame(HEADERS, 0, 1, &block(CONNECT));
    vec![
        (
            "CONTINUATION without end",
            [half(), times(10, frame(CONTINUATION, 0, 1, b""))].concat(),
            Dies(CALM, "too many CONTINUATION"),
        ),
        (
            "CONTINUATION of nothing",
            frame(CONTINUATION, END_HEADERS, 1, b""),
            Dies(PROTOCOL, ""),
        ),
        (
            "a frame within a block",
            [half(), ping(1)].concat(),
            Dies(PROTOCOL, ""),
        ),
        (
            "a block that goes on elsewhere",
            [half(), frame(CONTINUATION, END_HEADERS, 3, b"")].concat(),
            Dies(PROTOCOL, ""),
        ),
        (
            "a block of a MiB",
            frame(HEADERS, END_HEADERS, 1, &vec![0; 1 << 20]),
            Dies(CALM, "header block too long"),
        ),
        ("cookie crumbs", with(&fields), too_large()),
        ("one huge field", with(&[("x", &large)]), too_large()),
        ("a bomb of references", raw_block(&bomb), too_large()),
        (
            "a table beyond what was announced",
            raw_block(&[0x3f, 0xe2, 0x1f]),
            no_sense("larger than announced"),
        ),
        (
            "a table resized over and over",
            raw_block(&[0x20; 200]),
            no_sense("after the first field"),
        ),
        (
            "an integer without end",
            raw_block(&[&[0xff][..], &[0x80; 40]].concat()),
            no_sense("integer too long"),
        ),
        ("index 0", raw_block(&[0x80]), no_sense("index 0")),
        (
            "an index past the table",
            raw_block(&[0xff, 0x00]),
            no_sense("past the header table"),
        ),
        (
            "a string longer than its block",
            raw_block(&[0, 0x7f, 0xff, 0x7f]),
            no_sense("ends within a field"),
        ),
        (
            "EOS in a Huffman string",
            raw_block(&[0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 1, b'x']),
            no_sense("Huffman"),
        ),
        (
            "an upper-case name",
            with(&[("X-Evil", "1")]),
            Lives(&["RST_STREAM 1 PROTOCOL_ERROR"]),
        ),
        (
            "a line break in a value",
            with(&[("forwarded", "for=a\r\nx-evil: 1")]),
            Lives(&["RST_STREAM 1 PROTOCOL_ERROR"]),
        ),
        (
            "two authorities",
            with(&[(":authority", "127.0.0.1:1")]),
            Lives(&["RST_STREAM 1 PROTOCOL_ERROR"]),
        ),
        (
            "a pseudo-header behind a field",
            headers(
                1,
                &[("a", "b"), (":method", "CONNECT"), (":authority", "a:1")],
            ),
            Lives(&["RST_STREAM 1 PROTOCOL_ERROR"]),
        ),
        (
            "transfer-encoding",
            with(&[("transfer-encoding", "chunked")]),
            Lives(&["RST_STREAM 1 PROTOCOL_ERROR"]),
        ),
    ]
}

/// H17 and the frames' own rules.
pub(crate) fn rules() -> Vec<Case> {
    let mut oversized = vec![0x10, 0, 1, DATA, 0, 0, 0, 0, 1];
    oversized.extend([0; 100]);
    let open = || headers(1, CONNECT);
    let setting = |name, value| settings(&[(name, value)]);
    let overrun = (0..5).flat_map(|_| data(1, &vec![0; 1 << 20])).collect();
    vec![
        ("DATA on stream 0", data(0, b"x"), Dies(PROTOCOL, "")),
        (
            "DATA on an idle stream",
            data(7, b"x"),
            Dies(PROTOCOL, "never opened"),
        ),
        (
            "DATA after END_STREAM",
            [last_headers(1, CONNECT), data(1, b"x")].concat(),
            Lives(&["RST_STREAM 1 STREAM_CLOSED"]),
        ),
        (
            "DATA beyond the window before any answer",
            [open(), overrun].concat(),
            Lives(&["RST_STREAM 1 FLOW_CONTROL_ERROR"]),
        ),
        (
            "a frame longer than announced",
            oversized,
            Dies("FRAME_SIZE_ERROR", "longer than announced"),
        ),
        (
            "padding longer than its frame",
            [open(), frame(DATA, PADDED, 1, &[9, 0])].concat(),
            Dies(PROTOCOL, "padding"),
        ),
        (
            "a stream of the server's",
            headers(2, CONNECT),
            Dies(PROTOCOL, ""),
        ),
        (
            "a stream number that goes back",
            [headers(5, CONNECT), headers(3, CONNECT)].concat(),
            Dies(PROTOCOL, "below the last one"),
        ),
        (
            "HEADERS on stream 0",
            headers(0, CONNECT),
            Dies(PROTOCOL, ""),
        ),
        (
            "RST_STREAM of an idle stream",
            reset(1, 0),
            Dies(PROTOCOL, "never opened"),
        ),
        (
            "WINDOW_UPDATE of an idle stream",
            window_update(5, 1),
            Dies(PROTOCOL, "idle"),
        ),
        (
            "PUSH_PROMISE",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
            Dies(PROTOCOL, "PUSH_PROMISE"),
        ),
        (
            "a window past the largest",
            setting(4, 1 << 31),
            Dies("FLOW_CONTROL_ERROR", "largest window"),
        ),
        (
            "a frame size below the smallest",
            setting(5, 0),
            Dies(PROTOCOL, "MAX_FRAME_SIZE"),
        ),
        (
            "a frame size past the largest",
            setting(5, 1 << 24),
            Dies(PROTOCOL, "MAX_FRAME_SIZE"),
        ),
        (
            "ENABLE_PUSH of 2",
            setting(2, 2),
            Dies(PROTOCOL, "ENABLE_PUSH"),
        ),
        (
            "SETTINGS of five bytes",
            frame(SETTINGS, 0, 0, &[0; 5]),
            Dies("FRAME_SIZE_ERROR", ""),
        ),
        (
            "SETTINGS on a stream",
            frame(SETTINGS, 0, 1, &[]),
            Dies(PROTOCOL, ""),
        ),
        (
            "PING of seven bytes",
            frame(PING, 0, 0, &[0; 7]),
            Dies("FRAME_SIZE_ERROR", ""),
        ),
        (
            "PRIORITY of four bytes",
            frame(PRIORITY, 0, 1, &[0; 4]),
            Dies("FRAME_SIZE_ERROR", ""),
        ),
        (
            "GOAWAY with a low number",
            [open(), go_away(0, 0)].concat(),
            Lives(&[]),
        ),
        (
            "a window of zero",
            [setting(4, 0), setting(4, 65_535)].concat(),
            Lives(&[]),
        ),
    ]
}
