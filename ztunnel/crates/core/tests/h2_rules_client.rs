//! What a server may not do to a client, and what no greeting may be (RFC 9113 §3.4, §8).

mod h2_common;
use h2_common::*;
use ztunnel_core::h2::{Config, Connection};

#[test]
fn violations_that_end_a_clients_connection() {
    let table: &[(&str, &str, Vec<u8>)] = &[
        (
            "a response nobody asked for",
            "PROTOCOL_ERROR",
            headers(3, OK),
        ),
        ("a request", "PROTOCOL_ERROR", headers(2, CONNECT)),
        (
            "PUSH_PROMISE",
            "PROTOCOL_ERROR",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
        ),
        ("ENABLE_PUSH of 1", "PROTOCOL_ERROR", settings(&[(2, 1)])),
    ];
    for (what, code, bytes) in table {
        let mut talk = Talk::client();
        talk.connect();
        assert_eq!(talk.dies_of(bytes.clone()), *code, "{what}");
    }
}

#[test]
fn violations_that_end_one_stream_of_a_client() {
    let table: &[(&str, Vec<u8>)] = &[
        ("DATA before the response", data(1, b"x")),
        ("no status", headers(1, &[("x", "y")])),
        (
            "a status of four digits",
            headers(1, &[(":status", "0200")]),
        ),
        ("a status past 599", headers(1, &[(":status", "600")])),
        ("101", headers(1, &[(":status", "101")])),
        (
            "an interim response that ends",
            last_headers(1, &[(":status", "100")]),
        ),
        (
            "a response with a method",
            headers(1, &[(":status", "200"), (":method", "GET")]),
        ),
    ];
    for (what, bytes) in table {
        let mut talk = Talk::client();
        talk.0.open("a:1", &[]).expect("room");
        assert_eq!(
            talk.gets(bytes.clone()),
            ["reset 1 PROTOCOL_ERROR"],
            "{what}"
        );
    }
}

#[test]
fn the_greeting_is_judged_too() {
    let table: &[(&str, Vec<u8>)] = &[
        ("HTTP/1.1", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        (
            "a preface with a slip at its end",
            [&PREFACE[..23], b"x"].concat(),
        ),
        (
            "a first frame that is not SETTINGS",
            [PREFACE, &ping(1)].concat(),
        ),
        (
            "an ACK first",
            [PREFACE, &frame(SETTINGS, ACK, 0, &[])].concat(),
        ),
    ];
    for (what, bytes) in table {
        let mut talk = Talk(Connection::new(Config::server()));
        assert_eq!(talk.dies_of(bytes.clone()), "PROTOCOL_ERROR", "{what}");
    }
}
