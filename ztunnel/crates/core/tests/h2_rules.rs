//! What breaks the rules, and what it costs: the connection, or one stream (RFC 9113 §5, §6, §8).

mod h2_common;
use h2_common::*;

/// Stream 1 is open and answered, 3 half closed by the peer, 5 reset by the peer, 7 ended by both.
fn server_in_the_middle() -> Talk {
    let mut talk = Talk::server();
    for id in [1, 3, 5, 7] {
        talk.accept(id);
    }
    talk.gets([last_data(3, b""), reset(5, 8), last_data(7, b"")].concat());
    talk.0.data(ztunnel_core::h2::StreamId(7), 0, true);
    talk
}

#[test]
fn violations_in_data_and_heads_that_end_the_connection() {
    #[rustfmt::skip] // one row, one line
    let table: &[(&str, &str, Vec<u8>)] = &[
        ("DATA on stream 0", "PROTOCOL_ERROR", data(0, b"x")),
        ("DATA on an idle stream", "PROTOCOL_ERROR", data(9, b"x")),
        ("DATA on a stream of ours", "PROTOCOL_ERROR", data(2, b"x")),
        ("padding as long as the frame", "PROTOCOL_ERROR", frame(DATA, PADDED, 1, &[3, 0, 0])),
        ("padded DATA without pad length", "FRAME_SIZE_ERROR", frame(DATA, PADDED, 1, &[])),
        ("HEADERS on stream 0", "PROTOCOL_ERROR", headers(0, CONNECT)),
        ("HEADERS on an even stream", "PROTOCOL_ERROR", headers(2, CONNECT)),
        ("HEADERS after both ended", "STREAM_CLOSED", headers(7, CONNECT)),
        ("HEADERS after the peer's reset", "STREAM_CLOSED", headers(5, CONNECT)),
        ("a skipped number comes late", "PROTOCOL_ERROR", [headers(13, CONNECT), headers(11, CONNECT)].concat()),
        ("HEADERS all padding", "PROTOCOL_ERROR", frame(HEADERS, PADDED | END_HEADERS, 9, &[9, 0])),
        ("HEADERS without pad length", "FRAME_SIZE_ERROR", frame(HEADERS, PADDED | END_HEADERS, 9, &[])),
        ("HEADERS without their priority", "FRAME_SIZE_ERROR", frame(HEADERS, PRIORITISED | END_HEADERS, 9, &[0; 4])),
        ("a block that is no HPACK", "COMPRESSION_ERROR", frame(HEADERS, END_HEADERS, 9, &[0xff, 0xff])),
        ("an index past the table", "COMPRESSION_ERROR", frame(HEADERS, END_HEADERS, 9, &[0xbe])),
        ("a table larger than allowed", "COMPRESSION_ERROR", frame(HEADERS, END_HEADERS, 9, &[0x3f, 0xe2, 0x1f])),
        ("a size update behind a field", "COMPRESSION_ERROR", frame(HEADERS, END_HEADERS, 9, &[0x82, 0x20])),
        ("CONTINUATION alone", "PROTOCOL_ERROR", frame(CONTINUATION, END_HEADERS, 1, &[])),
        ("CONTINUATION of another stream", "PROTOCOL_ERROR", [frame(HEADERS, 0, 9, &[0x82]), frame(CONTINUATION, END_HEADERS, 11, &[])].concat()),
        ("a frame within a block", "PROTOCOL_ERROR", [frame(HEADERS, 0, 9, &[0x82]), ping(1)].concat()),
        ("an unknown frame within a block", "PROTOCOL_ERROR", [frame(HEADERS, 0, 9, &[0x82]), frame(0xbe, 0, 9, &[])].concat()),
    ];
    each_kills(table);
}

fn each_kills(table: &[(&str, &str, Vec<u8>)]) {
    for (what, code, bytes) in table {
        let died_of = server_in_the_middle().dies_of(bytes.clone());
        assert_eq!(died_of, *code, "{what}");
    }
}

#[test]
fn violations_in_control_frames_that_end_the_connection() {
    let long_settings: Vec<(u16, u32)> = (0..65).map(|name| (name + 100, 0)).collect();
    #[rustfmt::skip] // one row, one line
    let table: &[(&str, &str, Vec<u8>)] = &[
        ("PRIORITY on stream 0", "PROTOCOL_ERROR", frame(PRIORITY, 0, 0, &[0; 5])),
        ("PRIORITY of four bytes", "FRAME_SIZE_ERROR", frame(PRIORITY, 0, 1, &[0; 4])),
        ("RST_STREAM on stream 0", "PROTOCOL_ERROR", reset(0, 8)),
        ("RST_STREAM on an idle stream", "PROTOCOL_ERROR", reset(9, 8)),
        ("RST_STREAM of five bytes", "FRAME_SIZE_ERROR", frame(RST_STREAM, 0, 1, &[0; 5])),
        ("SETTINGS on a stream", "PROTOCOL_ERROR", frame(SETTINGS, 0, 1, &[])),
        ("SETTINGS of five bytes", "FRAME_SIZE_ERROR", frame(SETTINGS, 0, 0, &[0; 5])),
        ("an ACK with content", "FRAME_SIZE_ERROR", frame(SETTINGS, ACK, 0, &[0; 6])),
        ("SETTINGS without end", "ENHANCE_YOUR_CALM", settings(&long_settings)),
        ("ENABLE_PUSH of 2", "PROTOCOL_ERROR", settings(&[(2, 2)])),
        ("INITIAL_WINDOW_SIZE past 31 bits", "FLOW_CONTROL_ERROR", settings(&[(4, 1 << 31)])),
        ("INITIAL_WINDOW_SIZE that overflows an open stream", "FLOW_CONTROL_ERROR", [window_update(1, 1 << 30), settings(&[(4, (1 << 31) - 1)])].concat()),
        ("MAX_FRAME_SIZE below 16384", "PROTOCOL_ERROR", settings(&[(5, 16_383)])),
        ("MAX_FRAME_SIZE past 24 bits", "PROTOCOL_ERROR", settings(&[(5, 1 << 24)])),
        ("PUSH_PROMISE", "PROTOCOL_ERROR", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("PING on a stream", "PROTOCOL_ERROR", frame(PING, 0, 1, &[0; 8])),
        ("PING of seven bytes", "FRAME_SIZE_ERROR", frame(PING, 0, 0, &[0; 7])),
        ("GOAWAY on a stream", "PROTOCOL_ERROR", frame(GOAWAY, 0, 1, &[0; 8])),
        ("GOAWAY of four bytes", "FRAME_SIZE_ERROR", frame(GOAWAY, 0, 0, &[0; 4])),
        ("WINDOW_UPDATE of three bytes", "FRAME_SIZE_ERROR", frame(WINDOW_UPDATE, 0, 1, &[0; 3])),
        ("WINDOW_UPDATE of 0", "PROTOCOL_ERROR", window_update(0, 0)),
        ("WINDOW_UPDATE on an idle stream", "PROTOCOL_ERROR", window_update(9, 1)),
        ("WINDOW_UPDATE past 31 bits", "FLOW_CONTROL_ERROR", window_update(0, (1 << 31) - 1)),
        ("a frame longer than we announced", "FRAME_SIZE_ERROR", vec![0x10, 0, 1, DATA, 0, 0, 0, 0, 1]),
    ];
    each_kills(table);
}

#[test]
fn violations_that_end_one_stream() {
    let odd = |extra: &[(&'static str, &'static str)]| headers(9, &[CONNECT, extra].concat());
    let upgrade = [&block(CONNECT)[..], &field("Upper", "x")].concat();
    #[rustfmt::skip] // one row, one line
    let table: &[(&str, Vec<u8>, &[&str])] = &[
        ("DATA after END_STREAM", data(3, b"x"), &["RST_STREAM 3 STREAM_CLOSED"]),
        ("HEADERS after END_STREAM", last_headers(3, &[]), &["RST_STREAM 3 STREAM_CLOSED"]),
        ("DATA after the peer's own reset", data(5, b"x"), &["RST_STREAM 5 STREAM_CLOSED"]),
        ("DATA after both ended", data(7, b"x"), &["RST_STREAM 7 STREAM_CLOSED"]),
        ("WINDOW_UPDATE of 0", window_update(1, 0), &["RST_STREAM 1 PROTOCOL_ERROR"]),
        ("WINDOW_UPDATE past 31 bits", window_update(1, (1 << 31) - 1), &["RST_STREAM 1 FLOW_CONTROL_ERROR"]),
        ("trailers that do not end", headers(1, &[("x", "y")]), &["RST_STREAM 1 PROTOCOL_ERROR"]),
        ("trailers with pseudo-headers", last_headers(1, CONNECT), &["RST_STREAM 1 PROTOCOL_ERROR"]),
        ("an upper-case name", frame(HEADERS, END_HEADERS, 9, &upgrade), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("a connection header", odd(&[("connection", "close")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("a pseudo-header behind a regular one", odd(&[("x", "y"), (":path", "/")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("no method", headers(9, &[(":authority", "a:1")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("a method twice", odd(&[(":method", "CONNECT")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("an unknown pseudo-header", odd(&[(":color", "blue")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("a request with a status", odd(&[(":status", "200")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("GET without path", headers(9, &[(":method", "GET"), (":scheme", "http")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("a line break in a value", odd(&[("x", "a\r\nb")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("a blank before a value", odd(&[("x", " a")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
        ("an empty name", odd(&[("", "a")]), &["RST_STREAM 9 PROTOCOL_ERROR"]),
    ];
    for (what, bytes, expected) in table {
        let mut talk = server_in_the_middle();
        talk.gets(bytes.clone());
        assert_eq!(talk.sends(), *expected, "{what}");
        talk.accept(11);
    }
}

#[test]
fn a_broken_stream_is_told_to_its_owner_only_if_it_was_told_before() {
    let mut talk = Talk::server();
    talk.accept(1);
    assert_eq!(talk.gets(window_update(1, 0)), ["reset 1 PROTOCOL_ERROR"]);
    assert_eq!(
        talk.gets(headers(3, &[(":authority", "a:1")])),
        Vec::<String>::new()
    );
}

#[test]
fn what_is_odd_but_well_formed_is_the_owners_to_judge() {
    let table: &[(&[(&str, &str)], &str)] = &[
        (&[(":method", "CONNECT")], "request 1 CONNECT -"),
        (
            &[
                (":method", "CONNECT"),
                (":authority", "a:1"),
                (":scheme", "https"),
                (":path", "/"),
            ],
            "request 1 CONNECT a:1",
        ),
        (
            &[(":method", "GET"), (":scheme", "http"), (":path", "/")],
            "request 1 GET -",
        ),
        (
            &[(":method", "CONNECT"), (":protocol", "websocket")],
            "request 1 CONNECT -",
        ),
    ];
    for (fields, heard) in table {
        assert_eq!(Talk::server().gets(headers(1, fields)), [*heard]);
    }
}
