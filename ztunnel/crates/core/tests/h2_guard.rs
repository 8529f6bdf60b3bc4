//! A peer that makes us work for nothing runs out of budget; an honest one never does.

mod h2_common;
use h2_common::*;
use ztunnel_core::h2::{Config, StreamId, code};

/// How often `flood(n)` is taken before the connection dies of ENHANCE_YOUR_CALM; None: at least 5000 times.
fn endured(talk: &mut Talk, mut flood: impl FnMut(&mut Talk, u32) -> Vec<u8>) -> Option<u32> {
    (0..5_000).find(|&n| {
        let bytes = flood(talk, n);
        let (_, result) = talk.tries(bytes);
        talk.0.output().clear();
        result.is_err_and(|error| {
            assert_eq!(code_name(error.code), "ENHANCE_YOUR_CALM", "{error}");
            true
        })
    })
}

fn odd(n: u32) -> u32 {
    2 * n + 101
}

#[test]
fn floods_of_frames_that_carry_nothing_end_the_connection() {
    type Flood = fn(&mut Talk, u32) -> Vec<u8>;
    let table: &[(&str, u32, Flood)] = &[
        ("PING", 1_000, |_, _| ping(1)),
        ("PONG nobody asked for", 1_000, |_, _| {
            frame(PING, ACK, 0, &[0; 8])
        }),
        ("SETTINGS", 100, |_, _| settings(&[])),
        ("ACK nobody asked for", 1_000, |_, _| {
            frame(SETTINGS, ACK, 0, &[])
        }),
        ("PRIORITY", 1_000, |_, _| frame(PRIORITY, 0, 1, &[0; 5])),
        ("WINDOW_UPDATE by 1", 1_000, |_, _| window_update(0, 1)),
        ("WINDOW_UPDATE of a dead stream", 1_000, |_, _| {
            window_update(3, 1)
        }),
        ("empty DATA", 100, |_, _| data(1, b"")),
        ("DATA of padding", 1_000, |_, _| padded(1, b"x", 2)),
        ("GOAWAY", 1_000, |_, _| go_away(0, 0)),
        ("unknown frames", 1_000, |_, _| frame(0xbe, 0, 1, b"")),
        ("RST_STREAM of a dead stream", 1_000, |_, _| reset(3, 8)),
    ];
    for (what, taken, flood) in table {
        let mut talk = Talk::server();
        talk.accept(1);
        talk.accept(3);
        talk.gets(reset(3, 8));
        let endured = endured(&mut talk, flood).expect(what);
        assert!(
            (taken - 15..=*taken).contains(&endured),
            "{what}: {endured}"
        );
    }
}

#[test]
fn rapid_reset_ends_the_connection() {
    let flood = |_: &mut Talk, n| [headers(odd(n), CONNECT), reset(odd(n), 8)].concat();
    assert_eq!(endured(&mut Talk::server(), flood), Some(200));
}

#[test]
fn an_answer_that_came_first_does_not_hide_the_resets_that_do_not_wait_for_one() {
    let flood = |talk: &mut Talk, n| {
        talk.gets(headers(odd(n), CONNECT));
        if n % 100 == 0 {
            talk.0.respond(StreamId(odd(n)), 200, &[], false);
        }
        reset(odd(n), 8)
    };
    assert_eq!(endured(&mut Talk::server(), flood), Some(203));
}

#[test]
fn all_streams_that_may_be_open_may_be_given_up_at_once() {
    let mut talk = Talk::server();
    for n in 0..200 {
        talk.gets(headers(odd(n), CONNECT));
    }
    for n in 0..200 {
        talk.gets(reset(odd(n), 8));
    }
    talk.accept(odd(200));
}

#[test]
fn making_us_reset_costs_as_much_as_resetting() {
    type Provocation = fn(u32) -> Vec<u8>;
    let table: &[Provocation] = &[
        |id| [headers(id, CONNECT), window_update(id, 0)].concat(),
        |id| [headers(id, CONNECT), window_update(id, (1 << 31) - 1)].concat(),
        |id| [last_headers(id, CONNECT), data(id, b"x")].concat(),
        |id| headers(id, &[("no", "method")]),
        |id| [headers(id, CONNECT), headers(id, &[("not", "the end")])].concat(),
        |id| headers(id, &[CONNECT, &[("x", &"v".repeat(17_000))]].concat()),
    ];
    for provoke in table {
        assert_eq!(
            endured(&mut Talk::server(), |_, n| provoke(odd(n))),
            Some(200)
        );
    }
}

#[test]
fn a_second_gives_back_what_a_second_may_take() {
    let mut talk = Talk::server();
    for n in 0..1_000 {
        talk.gets([headers(odd(n), CONNECT), reset(odd(n), 8)].concat());
        if n % 200 == 199 {
            talk.0.tick();
            talk.0.output().clear();
        }
    }
}

#[test]
fn an_idle_peer_may_ping_ten_times_a_second_forever() {
    let mut talk = Talk::server();
    for _ in 0..500 {
        talk.gets(ping(1).repeat(10));
        talk.0.tick();
        talk.0.output().clear();
    }
}

#[test]
fn streams_that_were_answered_may_be_reset_without_end() {
    let flood = |talk: &mut Talk, n| {
        talk.gets(headers(odd(n), CONNECT));
        talk.0.respond(StreamId(odd(n)), 200, &[], false);
        reset(odd(n), 8)
    };
    assert_eq!(endured(&mut Talk::server(), flood), None);
}

#[test]
fn every_second_stream_may_be_reset() {
    let flood = |talk: &mut Talk, n| {
        if n % 2 == 0 {
            return [headers(odd(n), CONNECT), reset(odd(n), 8)].concat();
        }
        talk.gets(last_headers(odd(n), CONNECT));
        talk.0.respond(StreamId(odd(n)), 200, &[], true);
        vec![]
    };
    assert_eq!(endured(&mut Talk::server(), flood), None);
}

#[test]
fn a_peer_may_update_both_windows_for_every_frame_we_send() {
    let mut talk = Talk::client();
    let id = talk.connect();
    let flood = |talk: &mut Talk, _| {
        talk.0.data(id, 1, false);
        [window_update(0, 1), window_update(1, 1)].concat()
    };
    assert_eq!(endured(&mut talk, flood), None);
}

#[test]
fn an_application_that_keeps_up_may_receive_byte_by_byte() {
    let mut talk = Talk::server();
    let id = talk.accept(1);
    let flood = |talk: &mut Talk, _| {
        talk.0.consumed(id, 1);
        data(1, b"x")
    };
    assert_eq!(endured(&mut talk, flood), None);
}

#[test]
fn crumbs_that_pile_up_end_the_connection() {
    let mut talk = Talk::server();
    talk.accept(1);
    let endured = endured(&mut talk, |_, _| data(1, b"x").repeat(1_000));
    assert_eq!(endured, Some(200));
}

#[test]
fn continuations_without_end_end_the_connection() {
    let mut talk = Talk::server();
    talk.gets(frame(HEADERS, 0, 1, &[]));
    let endured = endured(&mut talk, |_, _| frame(CONTINUATION, 0, 1, &[]));
    assert_eq!(endured, Some(3));
}

#[test]
fn a_block_far_longer_than_its_limit_is_not_even_read() {
    assert_eq!(
        Talk::server().dies_of(vec![1, 0, 1, HEADERS, 0, 0, 0, 0, 1]),
        "ENHANCE_YOUR_CALM"
    );
    let mut talk = Talk::server();
    talk.gets(frame(HEADERS, 0, 1, &block(&[("x", &"v".repeat(40_000))])));
    assert_eq!(
        talk.dies_of(vec![0, 0x80, 0, CONTINUATION, 0, 0, 0, 0, 1]),
        "ENHANCE_YOUR_CALM"
    );
}

#[test]
fn a_list_over_its_limit_gets_431_and_the_connection_lives() {
    let many: Vec<(&str, &str)> = std::iter::repeat_n(("a", "b"), 65).collect();
    let large = "v".repeat(17_000);
    for extra in [&many[..], &[("x", large.as_str())]] {
        let mut talk = Talk::server();
        assert_eq!(
            talk.gets(headers(1, &[CONNECT, extra].concat())),
            Vec::<String>::new()
        );
        assert_eq!(talk.sends(), ["HEADERS 1 end", "RST_STREAM 1 NO_ERROR"]);
        assert_eq!(talk.0.open_streams(), 0);
        talk.accept(3);
    }
}

#[test]
fn a_bomb_of_references_is_counted_decoded() {
    let mut talk = Talk::server();
    let stored = [&[0x40, 1, b'a', 0x7f, 0x81, 0x1e], &vec![b'v'; 3_968][..]].concat();
    let bomb = [&block(CONNECT)[..], &stored, &[0xbe; 60]].concat();
    talk.gets(frame(HEADERS, END_HEADERS, 1, &bomb));
    assert_eq!(talk.sends(), ["HEADERS 1 end", "RST_STREAM 1 NO_ERROR"]);
    let reuse = [&block(CONNECT)[..], &[0xbe]].concat();
    assert_eq!(
        talk.gets(frame(HEADERS, END_HEADERS, 3, &reuse)),
        ["request 3 CONNECT 10.0.0.1:80"]
    );
}

#[test]
fn a_large_response_costs_the_client_one_stream() {
    let mut talk = Talk::client();
    talk.0.open("a:1", &[]).expect("room");
    let large = "v".repeat(17_000);
    assert_eq!(
        talk.gets(headers(1, &[OK, &[("x", &large)]].concat())),
        ["reset 1 ENHANCE_YOUR_CALM"]
    );
}

#[test]
fn interim_responses_without_end_end_the_connection() {
    let mut talk = Talk::client();
    talk.0.open("a:1", &[]).expect("room");
    let endured = endured(&mut talk, |_, _| headers(1, &[(":status", "103")]));
    assert!(endured.is_some_and(|taken| taken <= 1_000));
}

#[test]
fn a_peer_that_reads_none_of_our_replies_is_cut_off() {
    let mut talk = Talk::server();
    for _ in 0..96 {
        talk.gets(ping(1).repeat(10));
        talk.0.tick();
    }
    assert_eq!(talk.dies_of(ping(1).repeat(10)), "ENHANCE_YOUR_CALM");
    assert!(talk.0.output().len() < 20_000);
}

#[test]
fn streams_that_the_application_has_not_emptied_are_bounded_too() {
    let mut talk = Talk::with(
        Config {
            max_streams: 2,
            ..Config::server()
        },
        PREFACE,
    );
    for id in [1, 3, 5, 7] {
        talk.accept(id);
        talk.gets(last_data(id, b"unread"));
        talk.0.data(StreamId(id), 0, true);
    }
    assert_eq!(talk.0.open_streams(), 0);
    talk.gets(headers(9, CONNECT));
    assert_eq!(talk.sends(), ["RST_STREAM 9 REFUSED_STREAM"]);
    talk.0.consumed(StreamId(1), 6);
    talk.accept(11);
}

#[test]
fn cancelling_streams_by_the_thousand_is_our_right() {
    let mut talk = Talk::client();
    let flood = |talk: &mut Talk, _| {
        let id = talk.0.open("a:1", &[]).expect("room");
        talk.0.reset(id, code::CANCEL);
        headers(id.0, OK)
    };
    assert_eq!(endured(&mut talk, flood), None);
}
